"""Images with boxes drawn on them, to look at."""

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from rarebox.core.files import write_bytes
from rarebox.core.progress import Progress
from rarebox.data.detected import ImageDetections
from rarebox.data.images import UnreadableImage, image_size, read_picture, readers
from rarebox.types import ImageRecord

PICTURES = "pictures"

LONGEST = 1600
"""The longest side of a picture, in pixels. Smaller images keep their size."""

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
"""Okabe and Ito's palette, which people with colour blindness tell apart. The name of the class is written too."""


def draw(
    to: Path,
    files: Mapping[str, Path | str],
    shown: Sequence[ImageDetections],
    classes: Sequence[str],
    progress: Progress,
) -> None:
    """Write each image with its boxes to ``to/pictures``, at :func:`places_of` its name, as a JPEG.

    An image that can no longer be read is left out.
    """
    places = places_of([one.image for one in shown])
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(dict.fromkeys(classes))}
    with ThreadPoolExecutor(readers(far=False)) as threads:
        drawn = threads.map(partial(_draw, to / PICTURES, places, files, colours), shown)
        for done, _ in enumerate(drawn, 1):
            progress("draw", done, len(shown), "pictures")


def remove_pictures(to: Path, before: Sequence[str], now: Sequence[ImageDetections]) -> None:
    """Remove the pictures of images that had a result before and have none now."""
    kept = set(places_of([one.image for one in now]).values())
    for place in set(places_of(before).values()) - kept:
        (to / PICTURES / place).unlink(missing_ok=True)


def _draw(
    to: Path,
    places: Mapping[str, Path],
    files: Mapping[str, Path | str],
    colours: Mapping[str, str],
    found: ImageDetections,
) -> None:
    try:
        width, height, _ = image_size(files[found.image])
        side = min(LONGEST, max(width, height))
        picture = read_picture(ImageRecord(0, str(files[found.image]), width, height), side, side)
    except UnreadableImage:
        return
    image = Image.fromarray(picture.pixels)
    _add_boxes(image, found, colours)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=90)
    place = to / places[found.image]
    place.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(place, content.getvalue())


def _add_boxes(image: Image.Image, found: ImageDetections, colours: Mapping[str, str]) -> None:
    pen, scale = ImageDraw.Draw(image), image.size[0] / found.width
    thick = max(2, max(image.size) // 400)
    font = ImageFont.load_default(max(11, max(image.size) // 70))
    rows = zip(found.boxes, found.labels, found.scores, strict=True)
    for box, label, score in reversed(list(rows)):  # the best box on top
        x1, y1, x2, y2 = (edge * scale for edge in box)
        pen.rectangle((x1, y1, max(x2, x1), max(y2, y1)), outline=colours[label], width=thick)
        text = f"{label} {score:.2f}"
        right, bottom = pen.textbbox((0, 0), text, font=font)[2:]
        x, y = min(x1, image.size[0] - right - 4), y1 - bottom - 4 if y1 > bottom + 4 else y1
        pen.rectangle((x, y, x + right + 4, y + bottom + 4), fill=colours[label])
        pen.text((x + 2, y + 2), text, fill=_ink(colours[label]), font=font)


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on a colour."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return "#000000" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "#ffffff"


def places_of(names: Sequence[str]) -> dict[str, Path]:
    """A file below ``pictures`` for each image, and no two in one: its own name if that is a JPEG's, else with .jpg."""
    jpegs = {name for name in names if name.lower().endswith((".jpg", ".jpeg"))}
    places, taken = dict[str, Path](), set[str]()
    for name in sorted(names, key=lambda name: name not in jpegs):  # JPEGs first
        inside = "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
        wanted = inside if name in jpegs else f"{inside}.jpg"
        while wanted.lower() in taken:
            wanted = f"{wanted}.jpg"
        taken.add(wanted.lower())
        places[name] = Path(wanted)
    return places
