"""Equations 1 to 7 of the paper, in order of use, then two of our own: arrays in, arrays out.

Liao, Xu, Foo, Cai, "Box-Level Class-Balanced Sampling for Active Object Detection". N boxes, M views, K classes.
Every function works on NumPy arrays. :func:`weighted_loss` also takes torch tensors, so the detectors train with it.
"""

from typing import Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def js_divergence(p: Floats, q: Floats, base: float = 2.0) -> Floats:
    """JS of Eq. 2: Jensen-Shannon divergence of class vectors, each normalised to sum 1: (..., K), (..., K) -> (...).

    In [0, log_base(2)], so in [0, 1] for base 2. A vector of zeros counts as uniform.
    """
    p, q = _normalise(p), _normalise(q)
    mean = (p + q) / 2
    return np.clip((_relative_entropy(p, mean) + _relative_entropy(q, mean)) / (2 * np.log(base)), 0, None)


def _normalise(p: Floats) -> Floats:
    p = np.asarray(p, dtype=np.float64)
    total = p.sum(axis=-1, keepdims=True)
    return np.divide(p, total, out=np.full_like(p, 1 / p.shape[-1]), where=total > 0)


def _relative_entropy(p: Floats, q: Floats) -> Floats:
    """Sum of p ln(p / q) with 0 ln 0 = 0: (..., K), (..., K) -> (...), in nats."""
    ratio = np.divide(p, q, out=np.ones_like(p), where=p > 0)
    return (p * np.log(ratio)).sum(axis=-1)


def consistency(score: Floats, view_score: Floats, js: Floats, iou: Floats, beta: float = 1.3) -> Floats:
    """Eq. 2: ``c(b) = E_m | (s_b + s_bm) / 2 * (1 - JS(b, b_m)) + IoU(b, b_m) - beta |``.

    (N,), (M, N), (M, N), (M, N) -> (N,) in [0, max(beta, 2 - beta)]. A view whose ``iou`` is NaN does not count for
    that box. A box for which no view counts gets c(b) = beta, the value of a box without a match in any view.
    """
    return _mean_over_views(np.abs((score + view_score) / 2 * (1 - js) + iou - beta), none=beta)


def uncertainty(consistency: Floats, beta: float = 1.3) -> Floats:
    """Eq. 3: u(b) = c_m - c(b) with c_m = max(beta, 2 - beta).  (N,) -> (N,) in [0, c_m]."""
    return max(beta, 2 - beta) - consistency


def box_consistency(iou: Floats) -> Floats:
    """Eq. 4: cons(b) = E_m IoU(b, b_m).  (M, N) -> (N,) in [0, 1]; NaN marks a view that does not count."""
    return _mean_over_views(iou, none=0.0)


def _mean_over_views(value: Floats, none: float) -> Floats:
    """E_m of Eq. 2 and Eq. 4: mean of (M, N) over the views, ignoring NaN: (N,), ``none`` where all are NaN."""
    counts = ~np.isnan(value)
    views = counts.sum(axis=0)
    return np.where(views > 0, np.where(counts, value, 0).sum(axis=0) / np.maximum(views, 1), none)


def class_balanced_utility(uncertainty: Floats, class_frequency: Floats, sigma: float = 1.0) -> Floats:
    """Eq. 1: a(b) = u(b) exp(-p(l_b) / sigma).  (N,), p of each box's class (N,) in [0, 1] -> (N,)."""
    return uncertainty * np.exp(-class_frequency / sigma)


def soft_weight(value: Floats, high: float, low: float) -> Floats:
    """Eq. 5 and Eq. 6, weights of pseudo boxes: 1 from ``high`` up, the value itself in between, 0 up to ``low``.

    (N,) -> (N,) in [0, 1]. ``value`` is conf(b) for the class branch (Eq. 5) and cons(b) for the box branch (Eq. 6).
    """
    return np.where(value >= high, 1.0, np.where(value <= low, 0.0, value))


class Column(Protocol):
    """The operations that :func:`weighted_loss` uses. NumPy arrays and torch tensors have them."""

    def __len__(self) -> int: ...
    def __mul__(self, other: Self, /) -> Self: ...
    def __add__(self, other: Self, /) -> Self: ...
    def __rsub__(self, other: float, /) -> Self: ...
    def __truediv__(self, other: float, /) -> Self: ...
    def sum(self) -> Self: ...


C = TypeVar("C", bound=Column)


def weighted_loss(
    positive: C,
    class_weight: C,
    negative: C,
    box: C,
    box_weight: C,
    normalisers: tuple[float, float, float] | None = None,
) -> tuple[C, C, C]:
    """Eq. 7, its three terms: class loss of positives, class loss of negatives, box loss. L is their sum.

    ``positive`` (P,) and ``negative`` (N,) are per-sample class losses, ``box`` (R,) per-sample box losses;
    ``class_weight`` (P,) and ``box_weight`` (R,) are the weights of the boxes they are matched to. ``normalisers``
    divide the terms. None divides as the equation does, by P, N and R. Each is at least 1.
    """
    by_positives, by_negatives, by_boxes = normalisers or (len(positive), len(negative), len(box))
    return (
        (class_weight * positive).sum() / max(1, by_positives),
        negative.sum() / max(1, by_negatives),
        (box_weight * box).sum() / max(1, by_boxes),
    )


# ------------------------------------------------------------------------------------------- not in the paper


def two_sided_loss(positive: C, background: C, weight: C) -> C:
    """w L(class) + (1 - w) L(background) of each sample, (S,) each, for a label that is right with probability w.

    Eq. 7 multiplies L(class) by w alone, so a box of weight 0.2 also converges to the score 1, only
    more slowly.
    """
    return positive * weight + background * (1 - weight)


def hit_evidence(scores: Floats, uncertainty: Floats, box_consistency: Floats) -> Floats:
    """What the probability that a box shows an object depends on: the logit of the score, 1, and u(b) and
    cons(b) on a common scale: three of (N,) -> (N, 4). A cons(b) that is NaN counts as 0."""
    score = np.clip(scores.astype(np.float64), 1e-4, 1 - 1e-4)
    steady = np.nan_to_num(box_consistency.astype(np.float64))
    return np.stack(
        [np.log(score / (1 - score)), np.ones(len(score)), (uncertainty - 0.5) / 0.3, (steady - 0.5) / 0.3], axis=1
    )


def hit_probability(evidence: Floats, weights: Floats) -> Floats:
    """P(b shows an object), a logistic function: (N, 4), (3,) -> (N,) in (0, 1).

    ``weights`` of 1, u(b) and cons(b) correct the score: with zeros, the probability is the score.
    """
    return 1 / (1 + np.exp(-(evidence[:, 0] + evidence[:, 1:] @ weights)))
