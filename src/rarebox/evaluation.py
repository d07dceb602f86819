"""Evaluation: VOC AP by the devkit's rules (own code), COCO AP (by a library), and the imbalance factor.

docs/evaluation.md explains why AP differs between rules on the same detections. Ground truth and detections are one
table per image, keyed by image id. The images of the truth are the test set: an image without detections counts with
the objects that it misses, and detections on any other image are an error.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rarebox.core.boxes import nearest
from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints

# ---------------------------------------------------------------------------------------------- VOC


@dataclass(frozen=True, eq=False)
class VocResult:
    """AP of each class: ``ap`` by area and ``ap11`` by 11 points, both (K,) in [0, 1], NaN without counted truth.

    ``recall`` and ``precision`` hold the curve of each class, one point per counted detection, best score first, and
    ``scores`` the scores of these detections. ``truth`` (K,) counts the boxes that are not difficult.
    """

    ap: Floats
    ap11: Floats
    truth: Ints
    recall: tuple[Floats, ...]
    precision: tuple[Floats, ...]
    scores: tuple[Floats, ...]

    @property
    def mean_ap(self) -> float:
        """Mean area AP of the classes that have truth, in [0, 1]; NaN if none has."""
        return _mean(self.ap)

    @property
    def mean_ap11(self) -> float:
        """Mean 11-point AP of the classes that have truth, in [0, 1]; NaN if none has."""
        return _mean(self.ap11)


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
    found, true, counted, right = _judged(detections, truth, num_classes, iou, legacy_pixels)
    sizes = np.bincount(true.labels[~true.difficult], minlength=num_classes)
    rows = _by_class(found.labels, counted, sizes)
    curves = [_curve(right[mine], size) for mine, size in rows]
    recall, precision = tuple(zip(*curves, strict=True)) if curves else ((), ())
    ap = [_area_ap(*curve) if size else np.nan for curve, size in zip(curves, sizes, strict=True)]
    ap11 = [_eleven_point_ap(*curve) if size else np.nan for curve, size in zip(curves, sizes, strict=True)]
    scores = tuple(found.scores[mine] for mine, _ in rows)
    return VocResult(np.array(ap), np.array(ap11), sizes.astype(np.int64), recall, precision, scores)


def _judged(
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
    num_classes: int,
    iou: float,
    legacy_pixels: bool = False,
) -> "tuple[_Found, _True, Bools, Bools]":
    """All detections, sorted by class and best first; all truth; which detections count (N,), and are right (N,)."""
    found, true = _flatten(detections, truth, num_classes)
    order = np.lexsort((-found.scores, found.labels))  # stable: ties stay in order of image and row
    found = _Found(found.image[order], found.labels[order], found.boxes[order], found.scores[order])
    nearest = _nearest(found, true, num_classes, iou, legacy_pixels)
    counted = ~np.append(true.difficult, False)[nearest]  # -1, no box, is the last and not difficult
    return found, true, counted, counted & _first_of_its_kind(nearest)


class _Found(NamedTuple):
    """All detections, N rows; ``image`` counts the test images in order of their ids."""

    image: Ints
    labels: Ints
    boxes: Floats
    scores: Floats


class _True(NamedTuple):
    """All truth, G rows, sorted by image."""

    image: Ints
    labels: Ints
    boxes: Floats
    difficult: Bools


def _flatten(
    detections: Mapping[int, Detections], truth: Mapping[int, GroundTruth], num_classes: int
) -> tuple[_Found, _True]:
    """One table of all detections and one of all truth, in order of the image ids."""
    strange = sorted(set(detections) - set(truth))
    if strange:
        raise ValueError(f"detections on images that have no truth: {strange[:5]}. Give those an empty GroundTruth")
    ids = sorted(truth)
    found = [detections[i] for i in ids if i in detections]
    images = np.flatnonzero([i in detections for i in ids])
    true = [truth[i] for i in ids]
    tables = (
        _Found(_owners(images, found), _column(found, "labels"), _boxes(found), _column(found, "scores")),
        _True(_owners(np.arange(len(ids)), true), _column(true, "labels"), _boxes(true), _column(true, "difficult")),
    )
    for labels in (tables[0].labels, tables[1].labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"labels must be in [0, {num_classes}), got {labels.min()} to {labels.max()}")
    return tables


_DTYPES = {"labels": np.int64, "scores": np.float64, "difficult": np.bool_}


def _column(tables: list[Detections] | list[GroundTruth], name: str) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, _DTYPES[name]), *(getattr(t, name) for t in tables)], dtype=_DTYPES[name])


def _boxes(tables: list[Detections] | list[GroundTruth]) -> Floats:
    """All boxes (N, 4) in double precision, so that an IoU of exactly one half is one half."""
    return np.concatenate([np.zeros((0, 4)), *(t.boxes for t in tables)])


def _owners(images: Ints, tables: list[Detections] | list[GroundTruth]) -> Ints:
    return np.repeat(images, [len(t) for t in tables])


def _nearest(found: _Found, true: _True, num_classes: int, iou: float, legacy_pixels: bool) -> Ints:
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


def _mean(values: Floats) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


# ---------------------------------------------------------------------------------------------- confidence

RESAMPLES = 1000

IN_MEMORY = 2**22
"""The most numbers of one table of :func:`ap50_interval`."""


def ap50_interval(
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
    num_classes: int,
    rng: np.random.Generator,
) -> tuple[float, float] | None:
    """A 95 % interval of the mean area AP at IoU 0.5 in [0, 1], for other test images of the same kind.

    Bootstrap: RESAMPLES times as many images are drawn from the test images, with replacement, and measured (Efron's
    percentiles). Classes without truth in a draw do not count there. It says nothing about another training. None with
    fewer than two images, or without truth.
    """
    found, true, counted, right = _judged(detections, truth, num_classes, 0.5)
    if len(truth) < 2 or true.difficult.all():
        return None
    drawn = rng.multinomial(len(truth), np.full(len(truth), 1 / len(truth)), RESAMPLES)  # how often each image
    ap = np.full((RESAMPLES, num_classes), np.nan)
    for k in range(num_classes):
        mine = counted & (found.labels == k)
        images = true.image[~true.difficult & (true.labels == k)]
        step = max(1, IN_MEMORY // (len(images) + int(mine.sum()) + 1))
        for start in range(0, RESAMPLES, step):
            some = drawn[start : start + step]
            ap[start : start + step, k] = _weighted_ap(
                right[mine], some[:, found.image[mine]], some[:, images].sum(axis=1)
            )
    known = ~np.isnan(ap)
    means = np.where(known, ap, 0).sum(axis=1)[known.any(axis=1)] / known.sum(axis=1)[known.any(axis=1)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _weighted_ap(right: Bools, weight: Ints, size: Ints) -> Floats:
    """Area AP of R draws of the test images: (R,), NaN without truth.

    ``right`` (N,) are the detections of one class, best first, ``weight`` (R, N) how often the image of each was drawn,
    ``size`` (R,) the truth boxes.
    """
    hits, seen = np.cumsum(weight * right, axis=1), np.cumsum(weight, axis=1)
    envelope = np.maximum.accumulate((hits / np.maximum(seen, 1))[:, ::-1], axis=1)[:, ::-1]
    area = (weight * right * envelope).sum(axis=1)
    return np.divide(area, size, out=np.full(len(size), np.nan), where=size > 0)


# ---------------------------------------------------------------------------------------------- thresholds

FEWEST_OBJECTS = 20
"""A class with fewer objects gets the common threshold of all classes."""

UNMEASURED = 0.5
"""The threshold if nothing has been measured."""


class Thresholds(NamedTuple):
    """The minimum score of a shown detection, (K,), and the F1 of each class at it, (K,), NaN without truth. ``own``
    (K,): whether the class has its own threshold rather than the common one.
    """

    scores: Floats
    f1: Floats
    own: Bools


def best_thresholds(result: VocResult) -> Thresholds:
    """The score of each class at which F1, the harmonic mean of precision and recall, is largest.

    A threshold lies midway between the last detection that it keeps and the first that it leaves out. Classes with
    fewer than FEWEST_OBJECTS objects share the threshold at which the F1 of all detections together is largest.
    """
    known = [k for k, size in enumerate(result.truth) if size]
    hits = [np.diff(np.rint(result.recall[k] * result.truth[k]), prepend=0) for k in known]
    nothing = np.zeros(0)
    together = _best_f1(
        np.concatenate([nothing, *hits]),
        np.concatenate([nothing, *(result.scores[k] for k in known)]),
        int(result.truth.sum()),
    )
    scores, f1 = np.full(len(result.truth), together), np.full(len(result.truth), np.nan)
    own = result.truth >= FEWEST_OBJECTS
    for k, right in zip(known, hits, strict=True):
        if own[k]:
            scores[k] = _best_f1(right, result.scores[k], int(result.truth[k]))
        kept = result.scores[k] >= scores[k]
        f1[k] = 2 * right[kept].sum() / (kept.sum() + result.truth[k])
    return Thresholds(scores, f1, own)


def _best_f1(right: Floats, scores: Floats, size: int) -> float:
    """The threshold of largest F1, given whether each detection is right (N,), their scores (N,) and the truth boxes.

    Of equal ones the highest. UNMEASURED without a right detection.
    """
    if not right.any():
        return UNMEASURED
    order = np.argsort(-scores, kind="stable")
    scores, hits = scores[order], np.cumsum(right[order])
    last = np.append(np.diff(scores) < 0, True)  # a threshold cannot separate equal scores
    f1 = np.where(last, 2 * hits / (np.arange(1, len(hits) + 1) + size), -1)
    best = int(np.argmax(f1))
    return float((scores[best] + (scores[best + 1] if best + 1 < len(scores) else 0)) / 2)


# ---------------------------------------------------------------------------------------------- COCO


class CocoResult(TypedDict):
    """AP in [0, 1] over IoU 0.5 to 0.95, at 0.5 and at 0.75; NaN without truth. (K,) arrays for each class."""

    ap: float
    ap50: float
    ap75: float
    per_class: Floats
    per_class_ap50: Floats
    per_class_ap75: Floats


class CocoTables(NamedTuple):
    """What a COCO evaluator needs: image and category ids start at 1, boxes are x, y, width, height."""

    images: int
    categories: int
    truth_image: Ints  # (G,)
    truth_category: Ints  # (G,)
    truth_boxes: Floats  # (G, 4)
    truth_crowd: Bools  # (G,)
    results: Floats  # (N, 7): image, x, y, width, height, score, category


CocoEngine = Callable[[CocoTables], Floats]


def coco_ap(
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
    num_classes: int,
    engine: CocoEngine | None = None,
) -> CocoResult:
    """COCO's average precision: 101 points of recall, all object sizes, at most 100 detections per image and class.

    COCO has no difficult objects; they become ``iscrowd``, which is not the same: a detection is ignored if a crowd
    covers enough of the *detection* (the fraction of the detection's area, not the IoU), and a crowd can match any
    number of detections. ``engine`` computes the table of precisions; the default is the library hotcoco. Raises
    ValueError as ``voc_ap`` does.
    """
    found, true = _flatten(detections, truth, num_classes)
    columns = [found.image + 1, _corner_and_size(found.boxes), found.scores, found.labels + 1]
    results = np.column_stack(columns).astype(np.float64)
    tables = CocoTables(
        len(truth), num_classes, true.image + 1, true.labels + 1, _corner_and_size(true.boxes), true.difficult, results
    )
    if len(truth) == 0 or num_classes == 0:
        precision = np.full((10, 101, num_classes), -1.0)
    else:
        precision = (engine or hotcoco_precision)(tables)
    ap = np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)  # (10, K)
    whole, ap50, ap75 = ap.mean(axis=0), ap[0], ap[5]
    return CocoResult(
        ap=_mean(whole), ap50=_mean(ap50), ap75=_mean(ap75), per_class=whole, per_class_ap50=ap50, per_class_ap75=ap75
    )


def hotcoco_precision(tables: CocoTables) -> Floats:
    """The precision (10, 101, K) at each IoU (0.5, 0.55, ..., 0.95), recall and class; -1 for a class without truth."""
    import hotcoco  # imported here, as only this function uses the library

    images = [{"id": i + 1} for i in range(tables.images)]
    categories = [{"id": i + 1, "name": str(i)} for i in range(tables.categories)]
    truth = hotcoco.COCO.from_arrays(
        images, categories, tables.truth_image, tables.truth_category, tables.truth_boxes, iscrowd=tables.truth_crowd
    )
    evaluator = hotcoco.COCOeval(truth, truth.load_res(tables.results), "bbox")
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    return np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]  # all sizes, 100 detections


def _corner_and_size(boxes: Floats) -> Floats:
    """(N, 4) x1, y1, x2, y2 -> (N, 4) x, y, width, height."""
    return np.hstack([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]])


# ---------------------------------------------------------------------------------------------- class imbalance


def imbalance_factor(counts: ArrayLike) -> float:
    """The largest class count over the smallest, >= 1, among the classes that have boxes; NaN if none has.

    (K,) -> one number. Classes without boxes are ignored: they would make the factor infinite.
    """
    present = np.asarray(counts)[np.asarray(counts) > 0]
    return float(present.max() / present.min()) if len(present) else float("nan")


# ---------------------------------------------------------------------------------------------- all at once


class Evaluation(NamedTuple):
    """Average precision by the rules of VOC and of COCO, each in [0, 1]; NaN where there is no truth.

    ``ap50`` (area) and ``ap50_11`` (11 points) are VOC's, means over the classes; ``per_class_ap50`` (K,) is ``ap50``
    of each class. ``coco_ap`` is the mean over IoU 0.5 to 0.95. ``thresholds`` are those of largest F1 at IoU 0.5.
    """

    ap50: float
    ap50_11: float
    per_class_ap50: Floats
    coco_ap: float
    coco_ap50: float
    coco_ap75: float
    thresholds: Thresholds


def evaluate(detections: Mapping[int, Detections], truth: Mapping[int, GroundTruth], num_classes: int) -> Evaluation:
    """Measure detections on test images, both by image id: :func:`voc_ap` and :func:`coco_ap` together.

    The images of ``truth`` are the test set. Raises ValueError for detections on other images and for labels outside
    [0, num_classes).
    """
    voc, coco = voc_ap(detections, truth, num_classes), coco_ap(detections, truth, num_classes)
    chosen = best_thresholds(voc)
    return Evaluation(voc.mean_ap, voc.mean_ap11, voc.ap, coco["ap"], coco["ap50"], coco["ap75"], chosen)
