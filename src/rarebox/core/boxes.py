"""Geometry of boxes: ``float32`` rows ``x1, y1, x2, y2`` in absolute, 0-based pixels, ``x2 > x1`` and ``y2 > y1``."""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

FEW, PAIRS = 2**12, 2**18
"""The most pairs that are compared directly, and the size of the pieces in which more pairs are compared."""

BLOCK = 512
"""Boxes that :func:`suppress` compares at a time."""

ASPECT = 0.02
"""The largest relative difference between the aspect ratios of a picture and its resized copy, from rounding."""


def area(boxes: Floats) -> Floats:
    """(..., 4) -> (...): width times height, in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(boxes: Floats, others: Floats) -> Floats:
    """Shared area of boxes that broadcast together: (..., 4), (..., 4) -> (...), in square pixels."""
    top_left = np.maximum(boxes[..., :2], others[..., :2])
    bottom_right = np.minimum(boxes[..., 2:], others[..., 2:])
    return np.clip(bottom_right - top_left, 0, None).prod(axis=-1)


def paired_iou(boxes: Floats, others: Floats) -> Floats:
    """Intersection over union of boxes that broadcast together: (..., 4), (..., 4) -> (...), in [0, 1]."""
    shared = intersection(boxes, others)
    union = area(boxes) + area(others) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def iou_matrix(boxes: Floats, others: Floats) -> Floats:
    """IoU of every box with every other box: (N, 4), (M, 4) -> (N, M), in [0, 1]."""
    return paired_iou(boxes[:, None], others[None])


def overlapping(
    boxes: Floats, others: Floats, iou: float = 0.0, group: Ints | None = None, other_group: Ints | None = None
) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Pairs whose IoU is above 0 and at least ``iou``: rows of (N, 4), rows of (M, 4), and their IoU, (P,) each.

    Each pair is yielded once, in no particular order, in pieces of about ``PAIRS``, so memory is bounded. With
    ``group`` (N,) and ``other_group`` (M,), such as image ids, only pairs within one group count.

    Sweep and prune: two boxes can only have that IoU if, on each axis, one starts within the first 1 - ``iou`` of the
    other's side. A binary search finds the pairs on the axis that leaves fewer of them.
    """
    if len(boxes) * len(others) <= FEW:
        found = iou_matrix(boxes, others)
        wanted = (found > 0) & (found >= iou)
        if group is not None and other_group is not None:
            wanted &= group[:, None] == other_group[None]
        rows, columns = np.nonzero(wanted)
        yield rows, columns, found[rows, columns]
        return
    sweeps = [_sweep(boxes, others, axis, iou, group, other_group) for axis in (0, 1)]
    for order, first, last, swapped in min(sweeps, key=lambda parts: sum(int((b - a).sum()) for _, a, b, _ in parts)):
        ends = np.cumsum(last - first)
        cuts = np.searchsorted(ends, np.arange(PAIRS, int(ends[-1]), PAIRS)) + 1
        for some in np.split(np.arange(len(ends)), cuts):
            count = (last - first)[some]
            rows = np.repeat(some, count)
            columns = order[np.arange(len(rows)) + np.repeat(first[some] - np.cumsum(count) + count, count)]
            if swapped:
                rows, columns = columns, rows
            if group is not None and other_group is not None:
                same = group[rows] == other_group[columns]
                rows, columns = rows[same], columns[same]
            found = paired_iou(boxes[rows], others[columns])
            wanted = (found > 0) & (found >= iou)
            yield rows[wanted], columns[wanted], found[wanted]


def all_overlapping(
    boxes: Floats, others: Floats, iou: float, group: Ints | None = None, other_group: Ints | None = None
) -> tuple[Ints, Ints, Floats]:
    """The pairs of :func:`overlapping` at once: rows of (N, 4), rows of (M, 4), and their IoU, (P,) each."""
    pairs = zip(*overlapping(boxes, others, iou, group, other_group), strict=True)
    rows, columns, found = (np.concatenate(parts) for parts in pairs)
    return rows, columns, found


def pair_up(boxes: Floats, others: Floats, iou: float) -> Iterator[tuple[int, int]]:
    """Pairs of a row of (N, 4) and a row of (M, 4), each row in at most one: by decreasing IoU, down to ``iou``. Ties:
    the smaller rows."""
    rows, columns, found = all_overlapping(boxes, others, iou)
    free, free_others = {*range(len(boxes))}, {*range(len(others))}
    for nth in np.lexsort((columns, rows, -found)):
        a, b = int(rows[nth]), int(columns[nth])
        if a in free and b in free_others:
            yield a, b
            free.remove(a)
            free_others.remove(b)


def _sweep(
    boxes: Floats, others: Floats, axis: int, iou: float, group: Ints | None, other_group: Ints | None
) -> list[tuple[Ints, Ints, Ints, bool]]:
    """Ranges of possible pairs along an axis: first where the other box starts at or after the box, then before it.

    Each entry is an order of the partners, each row's range in it (first, last), and whether rows and partners are
    swapped.
    """
    starts, other_starts = boxes[:, axis].astype(np.float64), others[:, axis].astype(np.float64)
    sides, other_sides = (b[:, axis + 2].astype(np.float64) - b[:, axis] for b in (boxes, others))
    slack = 1e-5  # float32 rounds an IoU by less
    reach, other_reach = (side * (1 - iou + slack) for side in (sides, other_sides))
    if group is not None and other_group is not None:
        # Lay the groups side by side, farther apart than any box reaches.
        ids, places = np.unique(np.concatenate([group, other_group]), return_inverse=True)
        lowest = min(starts.min(), other_starts.min())
        apart = 2 * (max((starts + sides).max(), (other_starts + other_sides).max()) - lowest)
        starts = starts - lowest + places[: len(boxes)] * apart
        other_starts = other_starts - lowest + places[len(boxes) :] * apart
        lost = np.spacing(apart * (len(ids) + 1))
        reach, other_reach = reach + lost, other_reach + lost
    order, other_order = np.argsort(starts, kind="stable"), np.argsort(other_starts, kind="stable")
    in_order, others_in_order = starts[order], other_starts[other_order]
    return [
        (
            other_order,
            np.searchsorted(others_in_order, starts, "left"),
            np.searchsorted(others_in_order, starts + reach, "right"),
            False,
        ),
        (
            order,
            np.searchsorted(in_order, other_starts, "right"),
            np.searchsorted(in_order, other_starts + other_reach, "right"),
            True,
        ),
    ]


def nearest(
    boxes: Floats, others: Floats, iou: float = 0.0, group: Ints | None = None, other_group: Ints | None = None
) -> tuple[Ints, Floats]:
    """For each box, the row of the other box with the largest IoU (the first of equals), and that IoU: (N,), (N,).

    -1 and 0 where no other box overlaps with an IoU of at least ``iou``. Groups as in :func:`overlapping`.
    """
    nobody = len(others)
    partner = np.full(len(boxes), nobody, dtype=np.int64)
    best = np.zeros(len(boxes), dtype=np.result_type(boxes, others))
    for rows, columns, found in overlapping(boxes, others, iou, group, other_group):
        before = best.copy()
        np.maximum.at(best, rows, found)
        partner[best > before] = nobody
        hits = found == best[rows]
        np.minimum.at(partner, rows[hits], columns[hits])
    return np.where(partner == nobody, -1, partner), best


def cover(boxes: Floats, patches: Floats) -> Floats:
    """The fraction of each box that each patch hides: (N, 4), (P, 4) -> (N, P), in [0, 1]."""
    return intersection(boxes[:, None], patches[None]) / area(boxes)[:, None]


def clip(boxes: Floats, width: float, height: float) -> Floats:
    """Boxes cut at the borders of a ``width`` x ``height`` image: (..., 4) -> (..., 4)."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def hull(points: ArrayLike) -> Floats:
    """The axis-aligned box around points: (..., P, 2) -> (..., 4), as ``float64``."""
    places = np.asarray(points, dtype=np.float64)
    return np.concatenate([places.min(axis=-2), places.max(axis=-2)], axis=-1)


def hull_of_turned(box: ArrayLike, degrees: float, about: ArrayLike | None = None) -> Floats:
    """The axis-aligned box around a box rotated clockwise on the screen: (4,) -> (4,), as ``float64``.

    ``about`` is the centre of rotation (2,), by default the centre of the box. Both must be in pixels or another unit
    that is the same along both axes: rotating fractions or percentages shears the box unless the image is square.
    """
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    fixed = np.array([x1 + x2, y1 + y2]) / 2 if about is None else np.asarray(about, dtype=np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) - fixed
    return hull(corners @ np.array([[cos, sin], [-sin, cos]]) + fixed)


def hull_of_ellipse(centre: ArrayLike, radii: ArrayLike, degrees: float = 0.0) -> Floats:
    """The axis-aligned box around an ellipse rotated about its centre: (2,), (2,) -> (4,), as ``float64``.

    Units as in :func:`hull_of_turned`.
    """
    (x, y), (across, down) = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    wide, high = math.hypot(across * cos, down * sin), math.hypot(across * sin, down * cos)
    return np.array([x - wide, y - high, x + wide, y + high])


def rescaling(stated: tuple[float, float], real: tuple[float, float]) -> NDArray[np.float64] | None:
    """The factors (4,) that map boxes of a picture of one (width, height) to a copy of another size.

    None if the aspect ratios differ by more than ``ASPECT``, or match better when one picture is rotated by 90°: the
    copy is rotated, cropped or a different picture, so no box fits.
    """
    sides = np.array([stated, real], dtype=np.float64)
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        return None
    across, down = sides[1] / sides[0]
    misfit, on_its_side = np.abs(np.log([across / down, sides[:, 0].prod() / sides[:, 1].prod()]))
    if abs(across / down - 1) > ASPECT or misfit > on_its_side + 1e-9:
        return None
    return np.array([across, down, across, down])


def suppress(boxes: Floats, scores: Floats, threshold: float) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression: (N, 4), (N,) -> (N,), True where a box is kept.

    A box is suppressed if its IoU with a *kept* box of higher score exceeds ``threshold`` (equal scores: the earlier
    row wins). Boxes are compared from the best score down, a block at a time, first with those kept from earlier
    blocks.
    """
    order = np.argsort(-scores, kind="stable")
    kept = np.zeros(0, dtype=np.int64)
    for start in range(0, len(order), BLOCK):
        block = order[start : start + BLOCK]
        block = block[nearest(boxes[block], boxes[kept], threshold)[1] <= threshold]
        block = block[keep_best(iou_matrix(boxes[block], boxes[block]) > threshold, scores[block])]
        kept = np.concatenate([kept, block])
    stays = np.zeros(len(order), dtype=bool)
    stays[kept] = True
    return stays


def keep_best(rivals: NDArray[np.bool_], scores: Floats) -> NDArray[np.bool_]:
    """Which rows are kept if a kept rival of higher score suppresses a row: (N, N) symmetric, (N,) -> (N,).

    There is no loop over rows: the rule is applied to all rows until nothing changes. That takes as many rounds as the
    longest chain of rows that suppress each other. The fixed point is the greedy result.
    """
    order = np.argsort(-scores, kind="stable")
    better = np.tril(rivals[order][:, order], k=-1)
    stays = np.ones(len(order), dtype=bool)
    while True:
        again = ~np.any(better & stays[None], axis=1)
        if (again == stays).all():
            break
        stays = again
    result = np.empty_like(stays)
    result[order] = stays
    return result


def far_from(boxes: Floats, others: Floats, iou: float, strict: bool = False) -> Bools:
    """Boxes whose IoU with every other is below ``iou``, or with ``strict`` at most ``iou``: (N, 4), (M, 4) -> (N,)."""
    _, overlap = nearest(boxes, others, iou)
    return overlap <= iou if strict else overlap < iou
