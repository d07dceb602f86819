"""Geometry of boxes: ``float32`` rows ``x1, y1, x2, y2`` in absolute, 0-based pixels, ``x2 > x1`` and ``y2 > y1``."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]


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
    """Every box against every other: (N, 4), (M, 4) -> (N, M), in [0, 1]."""
    return paired_iou(boxes[:, None], others[None])


def cover(boxes: Floats, patches: Floats) -> Floats:
    """Share of each box that each patch hides: (N, 4), (P, 4) -> (N, P), in [0, 1]."""
    return intersection(boxes[:, None], patches[None]) / area(boxes)[:, None]


def clip(boxes: Floats, width: float, height: float) -> Floats:
    """Boxes cut at the borders of a ``width`` x ``height`` image: (..., 4) -> (..., 4)."""
    return np.clip(boxes, 0, np.array([width, height, width, height], dtype=boxes.dtype))


def hull(points: ArrayLike) -> Floats:
    """The upright box around points: (..., P, 2) -> (..., 4), as ``float64``."""
    places = np.asarray(points, dtype=np.float64)
    return np.concatenate([places.min(axis=-2), places.max(axis=-2)], axis=-1)


def hull_of_turned(box: ArrayLike, degrees: float, about: ArrayLike | None = None) -> Floats:
    """The upright box around a box that is turned clockwise (as seen, y points down): (4,) -> (4,), as ``float64``.

    ``about`` is the fixed point (2,), by default the centre of the box. Both must be in pixels or another unit that is
    the same along both axes: a turn of shares or percentages shears the box wherever the image is not square.
    """
    x1, y1, x2, y2 = np.asarray(box, dtype=np.float64)
    fixed = np.array([x1 + x2, y1 + y2]) / 2 if about is None else np.asarray(about, dtype=np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) - fixed
    return hull(corners @ np.array([[cos, sin], [-sin, cos]]) + fixed)


def hull_of_ellipse(centre: ArrayLike, radii: ArrayLike, degrees: float = 0.0) -> Floats:
    """The upright box around an ellipse that is turned about its centre: (2,), (2,) -> (4,), as ``float64``.

    Units as in :func:`hull_of_turned`.
    """
    (x, y), (across, down) = np.asarray(centre, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    wide, high = math.hypot(across * cos, down * sin), math.hypot(across * sin, down * cos)
    return np.array([x - wide, y - high, x + wide, y + high])


def suppress(boxes: Floats, scores: Floats, threshold: float) -> NDArray[np.bool_]:
    """Greedy non-maximum suppression: (N, 4), (N,) -> (N,), True where a box stays.

    A box falls if its IoU with a *staying* box of higher score exceeds ``threshold`` (equal scores: the earlier row
    wins).
    """
    return keep_best(iou_matrix(boxes, boxes) > threshold, scores)


def keep_best(rivals: NDArray[np.bool_], scores: Floats) -> NDArray[np.bool_]:
    """Which rows stay if each falls to a staying rival of higher score: (N, N) symmetric, (N,) -> (N,).

    Without a loop over rows: the rule is iterated on all at once until nothing changes, which it does after as many
    rounds as the longest chain of rows that suppress each other; the fixed point is the greedy answer.
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
