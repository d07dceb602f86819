"""Which boxes can be used on an image: the rules for labels, and those that detections share with them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rarebox.core.boxes import clip, overlapping, rescaling
from rarebox.core.text import counted
from rarebox.data.detections import FARTHEST
from rarebox.data.images import SIDEWAYS
from rarebox.data.listings import OPEN_BOXES, QUESTION, Guess, ListedBox, ListedImage, Problem, Size
from rarebox.errors import UserError
from rarebox.types import Bools, Floats, Source

SAME_IOU = 0.9999
"""Boxes of one class with this IoU are the same object, as in the store. They may differ by rounding."""

ROUNDED = 1.0
"""By how many pixels other tools move a box when they save it."""

_LARGEST_SHARE = 1.001  # of an image's side, with some rounding


def in_first_pixel(boxes: Floats, size: tuple[float, float] | None = None) -> Bools:
    """Whether boxes (N, 4) must be in fractions of the image's sides although the format has pixels: (N,).

    Fractions are at most 1, in any layout of a box. In pixels such a box would be at most one pixel large, in the
    corner of the image. Boxes without area are not judged, nor those of images whose ``size`` is at most two pixels.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    if size and min(size) <= 2:
        return np.zeros(len(boxes), dtype=bool)
    begins = np.maximum(boxes[:, :2], sides).max(axis=1)
    return np.asarray((sides.min(axis=1) > 0) & (np.minimum(boxes[:, 2:].max(axis=1), begins) <= _LARGEST_SHARE))


def has_area(boxes: Floats) -> Bools:
    """Whether boxes (N, 4) have a positive width and height: (N,)."""
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))


def reach_out(boxes: Floats, inside: Floats) -> Bools:
    """Whether boxes (N, 4) end a pixel or more beyond their image, given the same boxes clipped: (N,)."""
    return np.asarray((np.abs(boxes - inside) >= 1).any(axis=1))  # less is rounding


class CornerCheck:
    """Recognise COCO boxes that were written as x1, y1, x2, y2 in place of x, y, width, height."""

    def __init__(self) -> None:
        self._all = self._far = 0
        self._fitting = True

    def add(self, boxes: Floats, size: tuple[float, float] | None) -> None:
        """Judge boxes (N, 4), x1, y1, x2, y2 as read from x, y, width, height. ``size`` is that of their image."""
        if size is None or not len(boxes):
            return
        begins, ends, sides = boxes[:, :2], boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]
        self._all += len(boxes)
        self._far += int((ends > 1.02 * np.array(size) + 1).any(axis=1).sum())
        self._fitting &= bool(((begins >= -1) & (begins < sides) & (sides <= np.array(size) + 1)).all())

    @property
    def doubts(self) -> bool:
        """Whether most boxes extend far beyond their images and all fit if read as x1, y1, x2, y2."""
        return self._all > 1 and 2 * self._far >= self._all and self._fitting

    def refuse(self, path: Path) -> None:
        """Raise `UserError` if the check :attr:`doubts` the boxes."""
        if self.doubts:
            raise UserError(
                f"{path}: a COCO bbox is x, y, width, height, but these seem to be x1, y1, x2, y2: {self._far} of "
                f"{self._all} extend beyond their images. Write width and height in place of the second corner."
            )


class Fitted(NamedTuple):
    """The usable labels of an image: ``boxes`` (N, 4) in its pixels, clipped to it, and the same boxes as listed.

    ``incomplete``: the image has objects that ``boxes`` lacks, or that no person has confirmed. ``doubtful``: the file
    has an EXIF rotation, and the labels fit with and without it.
    """

    boxes: Floats
    listed: Sequence[ListedBox]
    incomplete: bool
    labelled: bool
    doubtful: bool


def fitted(image: ListedImage, size: Size | None, problems: list[Problem]) -> Fitted:
    """The usable labels of an image. What cannot be used goes to ``problems``.

    ``size`` is None if the size is unknown; then boxes are neither scaled nor clipped.
    """
    image = _without_shares(_without_questions(image, problems), size, problems)
    if size:
        image = _resized(image, *size, problems)
    boxes, bad = _usable(image, size, problems)
    lost = image.lost or bool(bad.any()) or image.complete is False
    boxes, kept = boxes[~bad], [box for box, dropped in zip(image.boxes, bad, strict=True) if not dropped]
    if size and image.guesses:
        kept = _marked(image.guesses, boxes, kept, size)
    first = _first_of_each(boxes, kept)
    if not first.all():
        what = f"{counted(int((~first).sum()), 'object')} with the class and the box of another one. Each counts once."
        problems.append(Problem("object listed twice", str(image.path), what))
        boxes, kept = boxes[first], [box for box, counts in zip(kept, first, strict=True) if counts]
    guessed = any(box.source == Source.PSEUDO for box in kept)
    return Fitted(boxes, kept, lost or guessed, image.labelled, size is not None and _hides_its_turn(image, size[2]))


def _marked(guesses: Sequence[Guess], boxes: Floats, listed: Sequence[ListedBox], size: Size) -> list[ListedBox]:
    """The boxes, those that are pseudo labels of an export marked as such: of the same class and place, or of the same
    place if the class was renamed.

    Tools that save the labels again drop the source, and round boxes, some to whole pixels (:data:`ROUNDED`).
    """
    x, y, w, h = np.array([[guess.x, guess.y, guess.width, guess.height] for guess in guesses], dtype=np.float64).T
    places = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1) * np.tile(size[:2], 2)
    near: Bools = np.abs(boxes[:, None].astype(np.float64) - places).max(axis=2) <= ROUNDED
    names = np.array([guess.name for guess in guesses], dtype=object)
    return [
        box._replace(source=Source.PSEUDO) if {box.name, None} & {*names[row]} else box
        for box, row in zip(listed, near, strict=True)
    ]


def _first_of_each(boxes: Floats, listed: Sequence[ListedBox]) -> Bools:
    """Whether no other box of the class is the same and counts more: (N,), for boxes (N, 4).

    A person's object counts more than a crowd, a guess or a rejection there; otherwise the first one does.
    """

    def doubt(row: int) -> tuple[bool, bool, bool]:
        box = listed[row]
        return box.source in (Source.PSEUDO, Source.REJECTED), box.crowd, box.difficult

    number = {name: n for n, name in enumerate(dict.fromkeys(box.name for box in listed))}
    groups = np.array([number[box.name] for box in listed], dtype=np.int64)
    exact = dict[object, int]()
    for row in sorted(range(len(listed)), key=doubt):
        exact.setdefault((*boxes[row].tolist(), listed[row].name), row)
    first = np.zeros(len(listed), dtype=bool)
    rows = np.array([*exact.values()], dtype=np.int64)
    first[rows] = True
    for earlier, later, _ in overlapping(boxes[rows], boxes[rows], SAME_IOU, groups[rows], groups[rows]):
        first[rows[later[earlier < later]]] = False
    return first


def _without_questions(image: ListedImage, problems: list[Problem]) -> ListedImage:
    """The image without the boxes that a ranked list asks about. No person has confirmed them."""
    kept = [box for box in image.boxes if box.source != QUESTION]
    count = len(image.boxes) - len(kept)
    if not count:
        return image
    what = f"{counted(count, 'box', 'boxes')} of a list of rarebox rank, which nobody has answered. They are ignored."
    problems.append(Problem(OPEN_BOXES, str(image.path), what))
    return replace(image, boxes=kept, labelled=bool(kept), lost=True)


def _without_shares(image: ListedImage, size: Size | None, problems: list[Problem]) -> ListedImage:
    """The image without boxes in fractions where the format has pixels. Boxes of rarebox's exports are in pixels."""
    if image.relative or not image.boxes:
        return image
    with np.errstate(over="ignore", invalid="ignore"):
        shares = in_first_pixel(np.array([box.box for box in image.boxes], dtype=np.float64), size and size[:2])
    kept: list[ListedBox] = []
    for box, share in zip(image.boxes, shares.tolist(), strict=True):
        if share and box.source not in list(Source):
            what = (
                f"{list(box.box)} lies within the first pixel. "
                "If it is in fractions of the image's sides, write pixels."
            )
            problems.append(Problem("box dropped", box.where, what))
        else:
            kept.append(box)
    return replace(image, boxes=kept, lost=image.lost or len(kept) < len(image.boxes))


def _resized(image: ListedImage, width: int, height: int, orientation: int, problems: list[Problem]) -> ListedImage:
    """The image with its boxes in pixels of the upright file, which may differ from the copy they were drawn on.

    The boxes are scaled if the aspect ratio is the same. Otherwise they are dropped, unless a box extends beyond the
    listed size but not beyond the file: then only the size in the labels is wrong.
    """
    real = (width, height)
    if image.relative or image.size is None or image.size == real:
        return image
    listed, here, where = "{:g} x {:g}".format(*image.size), f"{width} x {height}", str(image.path)
    turned = orientation in SIDEWAYS and rescaling(image.size, (height, width)) is not None
    kind = "image rotated by EXIF" if turned else "image size differs"
    if _ends_beyond(image, image.size) and not _ends_beyond(image, real):
        what = (
            f"the labels say {listed}, but a box reaches beyond it. They are assumed to be drawn on the upright {here}."
        )
        problems.append(Problem("size in labels is wrong", where, what))
        return image
    factors = rescaling(image.size, real)
    if factors is not None:
        what = f"the labels say {listed} pixels, the file has {here}. The boxes are scaled."
        problems.append(Problem("boxes scaled", where, what))
        return replace(image, boxes=[b._replace(box=tuple((np.array(b.box) * factors).tolist())) for b in image.boxes])
    why = "ignore its EXIF rotation" if turned else "belong to a cropped, rotated or different image"
    what = f"the labels say {listed}, but it is {here} upright, so they may {why}. They are skipped. Label it again."
    problems.append(Problem(kind, where, what))
    return replace(image, boxes=(), labelled=False, lost=True)


def _hides_its_turn(image: ListedImage, orientation: int) -> bool:
    """Whether the file has an EXIF rotation, and the labels fit with and without it."""
    if orientation == 1 or not image.boxes:
        return False
    return orientation not in SIDEWAYS or image.relative or image.size is None or image.size[0] == image.size[1]


def _ends_beyond(image: ListedImage, size: tuple[float, float]) -> bool:
    """Whether a box ends too far beyond a picture of that size to have been drawn on it."""
    return any(box[2] > 1.05 * size[0] + 1 or box[3] > 1.05 * size[1] + 1 for box, *_ in image.boxes)


def _usable(image: ListedImage, size: Size | None, problems: list[Problem]) -> tuple[Floats, Bools]:
    """The boxes of an image (N, 4) in pixels, clipped to it, and which of them (N,) cannot be used."""
    width, height = size[:2] if size else (FARTHEST, FARTHEST)
    sides = np.tile([width, height], 2) if image.relative else np.ones(4)
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite and is dropped as such
        boxes = (np.array([b.box for b in image.boxes], dtype=np.float64).reshape(-1, 4) * sides).astype(np.float32)
    inside = clip(boxes, width, height)
    faults: dict[str, Bools] = {
        "it has a number that is not finite": ~np.asarray(np.isfinite(boxes).all(axis=1)),
        "its width or height is not positive": ~has_area(boxes),
        f"it is outside the {width:g} x {height:g} image": ~has_area(inside),
    }
    bad = np.asarray(np.any(list(faults.values()), axis=0))
    for row in np.flatnonzero(bad).tolist():
        fault = next(fault for fault, rows in faults.items() if rows[row])
        problems.append(Problem("box dropped", image.boxes[row].where, f"{boxes[row].tolist()}: {fault}."))
    for row in np.flatnonzero(~bad & reach_out(boxes, inside)).tolist():
        what = f"{boxes[row].tolist()} extends beyond the {width:g} x {height:g} image. It is clipped."
        problems.append(Problem("box clipped", image.boxes[row].where, what))
    return inside, bad
