"""The score from which detections of a class are shown: where F1 is largest."""

from typing import NamedTuple

import numpy as np

from rarebox.evaluation.voc import VocResult
from rarebox.types import Bools, Floats

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
    known = [k for k, size in enumerate(result.objects) if size]
    hits = [np.diff(np.rint(result.recall[k] * result.objects[k]), prepend=0) for k in known]
    nothing = np.zeros(0)
    together = _best_f1(
        np.concatenate([nothing, *hits]),
        np.concatenate([nothing, *(result.scores[k] for k in known)]),
        int(result.objects.sum()),
    )
    scores, f1 = np.full(len(result.objects), together), np.full(len(result.objects), np.nan)
    own = result.objects >= FEWEST_OBJECTS
    for k, right in zip(known, hits, strict=True):
        if own[k]:
            scores[k] = _best_f1(right, result.scores[k], int(result.objects[k]))
        kept = result.scores[k] >= scores[k]
        f1[k] = 2 * right[kept].sum() / (kept.sum() + result.objects[k])
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
