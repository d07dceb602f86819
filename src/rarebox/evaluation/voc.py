"""VOC AP by the devkit's rules (own code)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rarebox.core.boxes import nearest
from rarebox.evaluation.tables import FoundRows, TrueRows, flatten, mean
from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints


@dataclass(frozen=True, eq=False)
class VocResult:
    """AP of each class: ``ap`` by area and ``ap11`` by 11 points, both (K,) in [0, 1], NaN without counted truth.

    ``recall`` and ``precision`` hold the curve of each class, one point per counted detection, best score first, and
    ``scores`` the scores of these detections. ``objects`` (K,) counts the truth boxes that are not difficult.
    """

    ap: Floats
    ap11: Floats
    objects: Ints
    recall: tuple[Floats, ...]
    precision: tuple[Floats, ...]
    scores: tuple[Floats, ...]

    @property
    def mean_ap(self) -> float:
        """Mean area AP of the classes that have truth, in [0, 1]; NaN if none has."""
        return mean(self.ap)

    @property
    def mean_ap11(self) -> float:
        """Mean 11-point AP of the classes that have truth, in [0, 1]; NaN if none has."""
        return mean(self.ap11)


def voc_ap(
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
    num_classes: int,
    iou: float = 0.5,
    *,
    legacy_pixels: bool = False,
) -> VocResult:
    """Average precision by the rules of the PASCAL VOC devkit (VOCevaldet.m, since the release of 2010).

    The detections of a class, over all images, are sorted by score; equal scores by image id and row. Each is matched
    to the truth box of its class and image with the largest IoU (the first of equals). If that IoU is at least ``iou``
    (the devkit's ``ovmax >= MINOVERLAP``), the first detection of the box is a true positive and any further one a
    false positive; detections of a difficult box do not count. A detection whose largest IoU is smaller is a false
    positive.

    ``iou`` is in (0, 1]. ``legacy_pixels`` measures boxes as the devkit does, whose x2 and y2 name the last pixel
    *inside*: one pixel wider and higher. Raises ValueError for detections on images without truth and for labels
    outside [0, num_classes).
    """
    found, true, _, counted, right = judged(detections, truth, num_classes, iou, legacy_pixels)
    sizes = np.bincount(true.labels[~true.difficult], minlength=num_classes)
    rows = _by_class(found.labels, counted, sizes)
    curves = [_curve(right[mine], size) for mine, size in rows]
    recall, precision = tuple(zip(*curves, strict=True)) if curves else ((), ())
    ap = [_area_ap(*curve) if size else np.nan for curve, size in zip(curves, sizes, strict=True)]
    ap11 = [_eleven_point_ap(*curve) if size else np.nan for curve, size in zip(curves, sizes, strict=True)]
    scores = tuple(found.scores[mine] for mine, _ in rows)
    return VocResult(np.array(ap), np.array(ap11), sizes.astype(np.int64), recall, precision, scores)


class Judged(NamedTuple):
    """All detections, sorted by class and best first, and all truth.

    ``nearest`` (N,) is the row of the truth box of its class and image with the largest IoU, -1 if that is too small;
    ``counted`` (N,) whether the detection counts, ``right`` (N,) whether it is a true positive.
    """

    found: FoundRows
    true: TrueRows
    nearest: Ints
    counted: Bools
    right: Bools


def judged(
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
    num_classes: int,
    iou: float = 0.5,
    legacy_pixels: bool = False,
) -> Judged:
    """Judge every detection by the rules of :func:`voc_ap`."""
    found, true = flatten(detections, truth, num_classes)
    order = np.lexsort((-found.scores, found.labels))  # stable: ties stay in order of image and row
    found = FoundRows(found.image[order], found.labels[order], found.boxes[order], found.scores[order])
    nearest = _nearest(found, true, num_classes, iou, legacy_pixels)
    counted = ~np.append(true.difficult, False)[nearest]  # -1, no box, is the last and not difficult
    return Judged(found, true, nearest, counted, counted & _first_of_its_kind(nearest))


def _nearest(found: FoundRows, true: TrueRows, num_classes: int, iou: float, legacy_pixels: bool) -> Ints:
    """For each detection, the row in ``true`` with the largest IoU of its image and class: (N,).

    -1 if that IoU is below ``iou``.
    """
    groups, wanted = (some.image * num_classes + some.labels for some in (true, found))
    wider = np.array([0, 0, 1, 1]) if legacy_pixels else 0
    return nearest(found.boxes + wider, true.boxes + wider, iou, wanted, groups)[0]


def _first_of_its_kind(values: Ints) -> Bools:
    """(N,) -> (N,): True where a value >= 0 appears for the first time."""
    first = np.zeros(len(values), dtype=bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first & (values >= 0)


def _by_class(labels: Ints, counted: Bools, sizes: Ints) -> list[tuple[Ints, int]]:
    """The counted rows of each class, in their order, and the number of truth boxes of that class."""
    rows = np.flatnonzero(counted)
    cuts = np.searchsorted(labels[rows], np.arange(1, len(sizes)))  # labels are sorted
    return list(zip(np.split(rows, cuts), sizes.tolist(), strict=True)) if len(sizes) else []


def _curve(right: Bools, size: int) -> tuple[Floats, Floats]:
    """Recall and precision (N,) after each detection; without truth boxes, the recall is NaN."""
    hits = np.cumsum(right)
    recall = hits / size if size else np.full(len(hits), np.nan)
    return recall, hits / np.arange(1, len(hits) + 1)


def _envelope(precision: Floats) -> Floats:
    """(N,) -> (N,): the best precision at this recall or any larger one."""
    return np.maximum.accumulate(precision[::-1])[::-1]


def _area_ap(recall: Floats, precision: Floats) -> float:
    """The area under the envelope of the curve."""
    return float(np.sum(np.diff(recall, prepend=0) * _envelope(precision)))


def _eleven_point_ap(recall: Floats, precision: Floats) -> float:
    """The mean of the best precision at recall >= t, for t = 0, 0.1, ..., 1; 0 where that recall is not reached.

    t is k / 10, rounded once, so that a recall of 3 out of 10 reaches 0.3; in the devkit's ``0:0.1:1``, as in
    ``3 * 0.1``, it falls short by a rounding error.
    """
    at = np.searchsorted(recall, np.arange(11) / 10, side="left")
    return float(np.append(_envelope(precision), 0)[at].mean())
