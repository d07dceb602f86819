"""Combine the latest answers about one image to its labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rarebox.core.boxes import all_overlapping, overlapping
from rarebox.labels.rows import Box
from rarebox.types import Bools, Floats, ImageLabels, Ints, Verdict, as_boxes

MANY = 64
"""With more boxes of an image, equal ones are sorted out before any are compared."""

SAME_IOU = 0.9999
"""Two boxes of one label that overlap at least this much are the same object."""

DRAWN_TWICE = 0.7
"""The same for boxes of two answers, one of them about the whole image."""


class Said(NamedTuple):
    """A latest answer as it is stored, and the box ``shown``, if it is readable; ``whole`` for a whole image.

    ``difficult`` is the label of the object there that is marked as difficult, if one is.
    """

    boxes: list[Box]
    labels: list[int]
    verdict: Verdict
    shown: Box | None
    whole: bool
    difficult: int | None = None


def combined(said: Sequence[Said], counts_as: Ints) -> ImageLabels:
    """Combine the latest answers about one image."""
    boxes = as_boxes([box for one in said for box in one.boxes])
    labels = counts_as[np.array([label for one in said for label in one.labels], dtype=np.int64)]
    once = _first_of_each(boxes, labels)
    once[_drawn_again(boxes, labels, once, said)] = False
    difficult = [one for one in said if one.difficult is not None]
    fruitless = [(one.shown, one.verdict) for one in said if one.shown is not None and not one.boxes]
    return ImageLabels(
        boxes=boxes[once],
        labels=labels[once],
        rejected=as_boxes([shown for shown, verdict in fruitless if verdict is Verdict.NOT_AN_OBJECT]),
        skipped=as_boxes([shown for shown, verdict in fruitless if verdict is not Verdict.NOT_AN_OBJECT]),
        complete=any(one.whole and one.verdict is not Verdict.CANNOT_TELL for one in said),
        difficult=as_boxes([one.shown for one in difficult if one.shown is not None]),
        difficult_labels=counts_as[np.array([one.difficult for one in difficult], dtype=np.int64)],
    )


def _first_of_each(boxes: Floats, labels: Ints) -> Bools:
    """(G, 4), (G,) -> (G,): True where no earlier row is the same object."""
    first = np.zeros(len(boxes), dtype=bool)
    rows = np.arange(len(boxes))
    if len(rows) > MANY:  # many may be equal, so compare only the first of each
        rows = np.sort(np.unique(np.column_stack([boxes, labels]), axis=0, return_index=True)[1])
    first[rows] = True
    for earlier, later, _ in overlapping(boxes[rows], boxes[rows], SAME_IOU, labels[rows], labels[rows]):
        first[rows[later[earlier < later]]] = False
    return first


def _drawn_again(boxes: Floats, labels: Ints, once: Bools, said: Sequence[Said]) -> Ints:
    """(G, 4), (G,), (G,) -> rows, among those that count ``once``: an earlier answer has the same object, and one of
    the two answers is about the whole image.

    The page shows labelled boxes, so nobody draws them again, unless somebody else labelled them in the meantime.
    """
    if len(said) == 1 or not any(one.whole for one in said):
        return np.zeros(0, dtype=np.int64)
    counts, rows = [len(one.boxes) for one in said], np.flatnonzero(once)
    answer, whole = np.repeat(np.arange(len(said)), counts), np.repeat([one.whole for one in said], counts)
    earlier, later, _ = all_overlapping(boxes[rows], boxes[rows], DRAWN_TWICE, labels[rows], labels[rows])
    earlier, later = rows[earlier], rows[later]
    return later[(answer[earlier] < answer[later]) & (whole[earlier] | whole[later])]


NOTHING = combined([], np.zeros(0, dtype=np.int64))
"""The labels of an image without an answer."""
