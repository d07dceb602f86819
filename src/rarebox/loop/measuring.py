"""A detector measured on test images: AP, its interval, and the threshold of each class."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np

from rarebox import evaluation
from rarebox.core import seeds
from rarebox.core.progress import StageProgress
from rarebox.data.pictures import Pictures
from rarebox.detectors import Detector
from rarebox.loop.metrics import Measures
from rarebox.loop.record import or_null
from rarebox.loop.run import batches
from rarebox.types import Detections, GroundTruth

TEST_BATCH = 8


class Measured(TypedDict):
    """What ``evaluated.json`` holds of a model of K classes.

    ``thresholds`` (K,) are the scores from which detections are shown, None if nothing was measured; ``own`` (K,) says
    which classes have enough objects for their own, ``f1`` (K,) is F1 there, ``objects`` (K,) counts the test objects
    that are not difficult. ``ap50_interval`` is the 95 % interval of AP50 for other test images.
    """

    result: Measures
    thresholds: list[float] | None
    own: list[bool]
    f1: list[float | None]
    objects: list[int]
    images: int
    ap50_interval: list[float] | None


def detect(detector: Detector, pictures: Pictures, report: StageProgress) -> dict[int, Detections]:
    """The detections on all pictures, by image id."""
    found: dict[int, Detections] = {}
    for places, batch in pictures.in_batches(batches(pictures, TEST_BATCH)):
        found |= zip([pictures.records[i].id for i in map(int, places)], detector.predict(batch), strict=True)
        report(len(found), len(pictures), "images")
    return found


def measure(
    seed: int, found: Mapping[int, Detections], truth: Mapping[int, GroundTruth], classes: Sequence[str]
) -> Measured:
    """Measure detections on test images by the rules of VOC and of COCO.

    ``seed`` is that of the run, for the interval.
    """
    measured = evaluation.evaluate(found, truth, len(classes))
    interval = evaluation.ap50_interval(found, truth, len(classes), seeds.stream(seed, "interval"))
    chosen = measured.thresholds
    nothing = np.isnan(chosen.f1).all()
    labels = np.concatenate([np.zeros(0, np.int64), *(one.labels[~one.difficult] for one in truth.values())])
    return {
        "result": {
            "ap50": or_null(measured.ap50),
            "ap50_11": or_null(measured.ap50_11),
            "per_class_ap50": dict(zip(classes, map(or_null, measured.per_class_ap50.tolist()), strict=True)),
            "coco_ap": or_null(measured.coco_ap),
            "coco_ap50": or_null(measured.coco_ap50),
            "coco_ap75": or_null(measured.coco_ap75),
        },
        "thresholds": None if nothing else chosen.scores.tolist(),
        "own": chosen.own.tolist(),
        "f1": [or_null(value) for value in chosen.f1.tolist()],
        "objects": np.bincount(labels, minlength=len(classes)).tolist(),
        "images": len(truth),
        "ap50_interval": None if interval is None else list(interval),
    }
