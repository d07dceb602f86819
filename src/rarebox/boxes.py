"""Geometry of boxes: ``float32`` rows ``x1, y1, x2, y2`` in absolute, 0-based pixels, ``x2 > x1`` and ``y2 > y1``."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ASPECT = 0.02
"""How much the shape of a picture and of a copy of another size may differ, as a share: copies have whole pixels."""


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


def rescaling(said: tuple[float, float], real: tuple[float, float]) -> NDArray[np.float64] | None:
    """What boxes in a picture of one (width, height) are multiplied by to be those of a copy of another size: (4,).

    None where the shapes differ by more than ``ASPECT``: the one is turned or cut, or another picture, so no box fits.
    """
    sides = np.array([said, real], dtype=np.float64)
    if not (np.isfinite(sides).all() and (sides > 0).all()):
        return None
    across, down = sides[1] / sides[0]
    return np.array([across, down, across, down]) if abs(across / down - 1) <= ASPECT else None


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
