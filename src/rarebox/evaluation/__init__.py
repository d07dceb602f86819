"""Evaluation: average precision, its interval, thresholds, matches, and the imbalance factor.

docs/evaluation.md explains why AP differs between rules on the same detections. Ground truth and detections are one
table per image, keyed by image id. The images of the truth are the test set: an image without detections counts with
the objects that it misses, and detections on any other image are an error.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rarebox.evaluation.coco import CocoTables, coco_ap
from rarebox.evaluation.interval import ap50_interval
from rarebox.evaluation.matches import Matches, cross_checked, f1_of, match
from rarebox.evaluation.thresholds import FEWEST_OBJECTS, UNMEASURED, Thresholds, best_thresholds
from rarebox.evaluation.voc import VocResult, voc_ap
from rarebox.types import Detections, Floats, GroundTruth

__all__ = [
    "FEWEST_OBJECTS",
    "UNMEASURED",
    "CocoTables",
    "Evaluation",
    "Matches",
    "Thresholds",
    "VocResult",
    "ap50_interval",
    "best_thresholds",
    "coco_ap",
    "cross_checked",
    "evaluate",
    "f1_of",
    "imbalance_factor",
    "match",
    "voc_ap",
]


def imbalance_factor(counts: ArrayLike) -> float:
    """The largest class count over the smallest, >= 1, among the classes that have boxes; NaN if none has.

    (K,) -> one number. Classes without boxes are ignored: they would make the factor infinite.
    """
    present = np.asarray(counts)[np.asarray(counts) > 0]
    return float(present.max() / present.min()) if len(present) else float("nan")


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
