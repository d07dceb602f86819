"""Images of the report with boxes drawn over them, shared by the galleries of queries and of detections."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from rarebox.data.images import UnreadableImage, read_picture
from rarebox.report.wording import short
from rarebox.types import Floats, ImageRecord

WIDTH, HEIGHT = 480, 640  # an image is shown 480 pixels wide, or narrower where it would be higher than 640
LONGEST_LABEL = 24
MOST_BYTES = 60_000
"""The most bytes of an embedded image. It is 4/3 as long in the page."""


@dataclass(frozen=True)
class Box:
    """A box of the overlay, in pixels of the image as shown. ``kind``: hit, miss, pseudo or human.

    ``label`` begins at ``text_x``, its base line is at ``text_y``; it is empty if it would hide other labels.
    """

    kind: str
    x: float
    y: float
    width: float
    height: float
    label: str
    tooltip: str
    opacity: float = 1.0
    text_x: float = 0.0
    text_y: float = 0.0


@dataclass(frozen=True)
class Shot:
    """One image of the gallery; where the file cannot be read, ``problem`` says why and ``source`` is empty."""

    name: str
    caption: str
    source: str
    problem: str
    width: int
    height: int
    boxes: tuple[Box, ...]


def shown_size(record: ImageRecord) -> tuple[int, int]:
    """Width and height of an image on the page, in pixels."""
    shrink = min(WIDTH / record.width, HEIGHT / record.height)
    return max(1, round(record.width * shrink)), max(1, round(record.height * shrink))


def scale_of(record: ImageRecord) -> Floats:
    """The factors (4,) from pixels of an image to pixels on the page."""
    width, height = shown_size(record)
    return np.array([width / record.width, height / record.height] * 2)


def shot_of(record: ImageRecord, boxes: Sequence[Box], caption: str) -> Shot:
    """An image with its boxes, the last one on top."""
    width, height = shown_size(record)
    source, problem = _picture(record, width, height)
    return Shot(Path(record.path).name, caption, source, problem, width, height, with_labels(boxes, width, height))


def box_of(kind: str, box: Floats, scale: Floats, label: str, tooltip: str, weight: float = 1.0) -> Box:
    """A box (4,) of the overlay, given in pixels of the image."""
    x1, y1, x2, y2 = (round(float(value), 1) for value in box * scale)
    return Box(
        kind,
        x1,
        y1,
        round(x2 - x1, 1),
        round(y2 - y1, 1),
        short(label, LONGEST_LABEL),
        tooltip,
        round(0.15 + 0.85 * weight, 2),
    )


def with_labels(boxes: Sequence[Box], width: int, height: int) -> tuple[Box, ...]:
    """The boxes with labels that do not overlap: the topmost box first, above, below or inside it, else without."""
    taken: list[tuple[float, float, float, float]] = []
    placed: list[Box] = []
    for box in reversed(boxes):
        long = len(box.label) * (6.8 if box.kind == "pseudo" else 8.2)
        x = max(0.0, min(box.x, width - long))
        for y in (box.y - 5, box.y + box.height + 13, box.y + 15):
            spot = (x, y - 11, x + long, y + 3)
            free = not any(_overlap(spot, other) for other in taken)
            if box.label and spot[1] >= 0 and spot[3] <= height and free:
                taken.append(spot)
                placed.append(replace(box, text_x=round(x, 1), text_y=round(y, 1)))
                break
        else:
            placed.append(replace(box, label=""))
    return tuple(reversed(placed))


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _picture(record: ImageRecord, width: int, height: int) -> tuple[str, str]:
    """The image as a data URI, or nothing and the reason."""
    try:
        pixels = read_picture(record, min(width, height), max(width, height)).pixels
    except UnreadableImage as error:
        return "", error.reason
    return "data:image/jpeg;base64," + base64.b64encode(_jpeg(Image.fromarray(pixels))).decode("ascii"), ""


def _jpeg(image: Image.Image) -> bytes:
    """An image as a JPEG of at most MOST_BYTES: as good as fits, and then smaller."""
    while True:
        for quality in (82, 65, 45):
            handle = io.BytesIO()
            image.save(handle, "JPEG", quality=quality, optimize=True)
            if handle.tell() <= MOST_BYTES:
                return handle.getvalue()
        image = image.reduce(2)
