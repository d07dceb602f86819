"""How certain AP50 is: a bootstrap over the test images."""

from collections.abc import Mapping

import numpy as np

from rarebox.evaluation.voc import judged
from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints

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
    found, true, _, counted, right = judged(detections, truth, num_classes)
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
