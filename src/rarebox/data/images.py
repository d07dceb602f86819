"""Reading image files of every common kind as upright 8-bit RGB; whatever cannot be read says why."""

import errno
import io
import os
import warnings
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarebox.core.files import NOT_REGULAR
from rarebox.data import remote
from rarebox.data.naming import is_litter
from rarebox.data.room import Room
from rarebox.errors import UserError, presentable
from rarebox.types import ImageRecord, Picture

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".mpo",
    ]
)

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000")
"""Pillow's names of what is read. The content decides, whatever the file is called, and Pillow knows forty kinds more:
some start other programs, such as Ghostscript."""

DECODED = Room(1 << 30)
"""Bytes of pixels that all threads together have in memory while they decode."""

STRIP = 1 << 22
"""Pixels that are converted at a time."""

# Pillow warns of an image that is larger than MAX_IMAGE_PIXELS; here none is read.
warnings.simplefilter("error", Image.DecompressionBombWarning)

# EXIF orientation -> what makes the picture upright (EXIF 2.32, tag 0x0112)
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


class UnreadableImage(UserError):
    """One image file that cannot be used. ``path`` names it, ``reason`` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both stay in ``args``, so that it can cross a process border
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return presentable(f"cannot read the image {self.path}: {self.reason}; replace the file or remove it")


def image_files(folder: str | Path) -> list[Path]:
    """All image files below a folder, by their suffix, sorted by path.

    Walked as :func:`files_below` does. Dead links and folders that cannot be read are in the list as well: reading
    them says what is wrong (`UnreadableImage`), so nothing is passed over in silence.
    """
    return files_below(folder, SUFFIXES, lost=True)


def files_below(folder: str | Path, suffixes: Collection[str], *, lost: bool = False) -> list[Path]:
    """All files below a folder that end in one of the suffixes, whatever their capitals, sorted by path.

    Links are followed, but not to a folder that holds ``folder``. A file that is reached on several ways comes once:
    as itself rather than by a link. Litter is left out. With ``lost`` the list has dead links too, if they end in one
    of the suffixes or in none, and folders that cannot be read.
    """
    top = Path(folder)
    found: dict[str, Path] = {}  # where a file really is -> how it is reached
    nowhere: list[Path] = []
    links: list[Path] = []
    walked = {str(parent) for parent in Path(os.path.realpath(top)).parents}
    waiting, linked = [top], list[Path]()
    while waiting or linked:
        place = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(place)
        if real in walked:
            continue
        walked.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            nowhere.append(place)
            continue
        for entry in entries:
            path = place / entry.name
            if is_litter(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif os.path.isdir(path):
                linked.append(path)
            elif entry.is_symlink() and not os.path.exists(path):
                if not path.suffix or path.suffix.lower() in suffixes:
                    nowhere.append(path)
            elif path.suffix.lower() in suffixes:
                if entry.is_symlink():
                    links.append(path)
                else:
                    found[os.path.join(real, entry.name)] = path
    for path in links:
        found.setdefault(os.path.realpath(path), path)
    return sorted([*found.values(), *nowhere] if lost else found.values())


def image_size(path: str | Path, content: bytes | None = None) -> tuple[int, int, int]:
    """Width and height of the upright image, and the EXIF orientation of the file (1: it is upright).

    Reads the header only, of the file's ``content`` if that is at hand. Raises `UnreadableImage`.
    """
    with opened(path, content) as image:
        orientation = _orientation(image)
        return *_swapped(image.size, orientation), orientation if orientation in _UPRIGHT else 1


def read_image(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """The whole image, upright: (H, W, 3) ``uint8`` RGB.

    Grey, palette, CMYK and 1-bit images become RGB. Transparent pixels are shown on white, as a person labelling them
    on a page sees them (what lies under full transparency is often arbitrary). 16-bit grey is scaled from its full
    range, not cut off. Of an animation this is the first frame. ``content`` is the file's, if it is at hand. Raises
    `UnreadableImage`.
    """
    with opened(path, content) as image:
        orientation = _orientation(image)
        with DECODED.hold(_bytes_of(image)):
            return np.array(_upright(_eight_bits(image), orientation).convert("RGB"))


def read_picture(record: ImageRecord, short_side: int, long_side: int, content: bytes | None = None) -> Picture:
    """The image at working size: as large as ``short_side`` allows, but no side longer than ``long_side`` pixels.

    Decoded and resized once, with antialiasing. A JPEG that shrinks to half or less is decoded at a fraction of its
    size, which is several times faster. Raises `UnreadableImage`, also when the file has another size than when the
    data set was read, since then no box would fit. ``content`` is the file's, if it is at hand.
    """
    with opened(record.path, content) as image:
        orientation = _orientation(image)
        size = _swapped(image.size, orientation)
        if size != (record.width, record.height):
            was, now = f"{record.width} x {record.height}", f"{size[0]} x {size[1]}"
            raise UnreadableImage(record.path, f"it is {now} pixels now, but was {was} when the data set was read")
        working = _swapped(working_size(record.width, record.height, short_side, long_side), orientation)
        image.draft(None, working)
        with DECODED.hold(_bytes_of(image)):
            small = _eight_bits(image).resize(working, Image.Resampling.BILINEAR)
        return Picture(np.array(_upright(small, orientation).convert("RGB")), record.width, record.height)


def working_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Width and height after scaling by min(short_side / shorter side, long_side / longer side), at least 1 pixel."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def readers(far: bool) -> int:
    """How many threads read images at a time: those that wait for a network need no core."""
    return 2 * (os.cpu_count() or 1) if not far else 32


@contextmanager
def content_of(path: str | Path) -> Iterator[bytes | None]:
    """The content of an image file that is not on this disk, for as long as the block runs; None for one that is.

    Raises `UnreadableImage`.
    """
    with ExitStack() as held:
        try:
            content = held.enter_context(remote.fetched(str(path))) if remote.is_url(path) else None
        except (UserError, MemoryError):
            raise
        except Exception as error:  # each service has errors of its own
            raise UnreadableImage(path, remote.reason(error)) from error
        yield content


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Iterator[Image.Image]:
    """The open image file, of one of the kinds in ``FORMATS``; its ``content`` may be at hand.

    Whatever goes wrong while it is open becomes an `UnreadableImage`.
    """
    with ExitStack() as held:
        content = held.enter_context(content_of(path)) if content is None else content
        if not _is_text(str(path)):
            raise UnreadableImage(path, "its name is not valid UTF-8, so rename it")
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
            folder = os.path.isdir(path)
            raise UnreadableImage(path, "it is a folder that may not be read" if folder else NOT_REGULAR)
        try:
            image = Image.open(path if content is None else io.BytesIO(content), formats=_formats())
            held.enter_context(image)
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice this
                raise Image.DecompressionBombError
            yield image
        except (UserError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            reason = f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels; scale it down"
            raise UnreadableImage(path, reason) from None
        except FileNotFoundError:
            try:
                reason = f"it is a link to {os.readlink(path)}, where there is nothing"
            except OSError:
                reason = "there is no such file"
            raise UnreadableImage(path, reason) from None
        except Image.UnidentifiedImageError:
            size = Path(path).stat().st_size if content is None else len(content)
            reason = "it is not an image of a known kind" if size else "the file is empty"
            raise UnreadableImage(path, reason) from None
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
            refused = getattr(error, "errno", None) == errno.ENAMETOOLONG or "\0" in str(path)  # no file has that name
            reason = "there is no such file" if refused else str(error) or type(error).__name__
            raise UnreadableImage(path, reason) from error


def _is_text(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none; to be asked before the pixels are loaded."""
    if image.format == "TIFF":
        return 1  # Pillow turns these by itself
    try:  # the base class's method, because that of PNG files decodes all pixels in search of a late EXIF block
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block raises anything; the pixels are as good as ever
        return 1
    return orientation if isinstance(orientation, int) else 1


def _swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """A size in the file as that of the upright image, and the other way round."""
    return (size[1], size[0]) if orientation in SIDEWAYS else size


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _bytes_of(image: Image.Image) -> int:
    """What decoding takes at most: the pixels as Pillow keeps them, once more in a decoder that makes them all at once,
    and what they become."""
    each = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(image.mode, 4)
    at_once = image.format in ("WEBP", "AVIF", "JPEG2000", "GIF")
    becomes = 0 if image.mode in ("L", "RGB") else 4
    return image.width * image.height * (each * (1 + at_once) + becomes)


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey or RGB. What has another mode is converted in strips, so that no third copy is made."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        image.load()
        return image
    deep = image.mode == "F" or image.mode.startswith("I")
    low, high = _range(image) if deep else (0.0, 0.0)
    shown = Image.new("L" if deep or image.mode == "1" else "RGB", image.size)
    for strip, box in _strips(image):
        if deep:
            strip = Image.fromarray(_scaled(np.asarray(strip), low, high))
        elif strip.has_transparency_data:
            white = Image.new("RGBA", strip.size, "white")
            white.alpha_composite(strip.convert("RGBA"))
            strip = white
        shown.paste(strip.convert(shown.mode), box)
    return shown


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int, int, int]]]:
    """The image in strips of its whole width, each with its place."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), box


def _range(image: Image.Image) -> tuple[float, float]:
    """What of deep grey becomes 0 and 255: the full range of 16-bit values; the min and max of anything else (32-bit,
    float)."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    strips = (np.asarray(strip) for strip, _ in _strips(image))
    ends = [(float(values.min()), float(values.max())) for values in strips]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    if not np.isfinite([low, high]).all() or np.isnan(sum(one + other for one, other in ends)):
        raise ValueError("it holds values that are not finite numbers")
    return (0.0, 65535.0) if image.mode != "F" and low >= 0 and high <= 65535 else (low, high)


def _scaled(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Deep grey -> 8 bits."""
    return np.round((values.astype(np.float64) - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
