"""The pictures sent to the page: the file itself, or an upright JPEG."""

import io

from fastapi.responses import FileResponse, Response
from PIL import ExifTags, Image

from rarebox.data.images import content_of, opened, read_picture, seen_alike
from rarebox.types import ImageRecord

LARGEST_SIDE = 4096
"""Pixels of the longer side of a picture that is sent, at most."""


def picture_of(record: ImageRecord, size: int | None) -> Response:
    """The file itself if browsers show it correctly; otherwise an upright RGB JPEG. ``size``: pixels of the longer
    side, at most. Raises UnreadableImage."""
    cached = {"Cache-Control": "private, max-age=86400, immutable"}
    side = max(record.width, record.height)
    wanted = min(size or LARGEST_SIDE, side, LARGEST_SIDE)
    with content_of(record.path) as far:
        if wanted == side and (media_type := _plain(record, far)):
            if far is not None:
                return Response(far, media_type=media_type, headers=cached)
            return FileResponse(record.path, media_type=media_type, headers=cached)
        pixels = read_picture(record, wanted, wanted, far).pixels
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return Response(content.getvalue(), media_type="image/jpeg", headers=cached)


def _plain(record: ImageRecord, content: bytes | None) -> str | None:
    """The media type of a file that every browser shows as we read it; None for the rest (CMYK, transparency,
    animations)."""
    try:
        with opened(record.path, content) as image:
            if image.mode not in ("RGB", "L") or set(image.size) != {record.width, record.height}:
                return None
            if not seen_alike(image):
                return None
            if image.format in ("JPEG", "MPO"):  # phones write MPO: a JPEG followed by more data
                return "image/jpeg"
            # Not every browser rotates these formats. (The method of the base class reads no pixels.)
            turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) != 1
            if turned or image.has_transparency_data or getattr(image, "is_animated", False):
                return None
            return {"PNG": "image/png", "WEBP": "image/webp"}.get(image.format or "")
    except Exception:  # `read_picture` reports what is wrong with the file
        return None
