"""COCO AP, by a library."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from rarebox.evaluation.tables import flatten, mean
from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints


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
    found, true = flatten(detections, truth, num_classes)
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
        ap=mean(whole), ap50=mean(ap50), ap75=mean(ap75), per_class=whole, per_class_ap50=ap50, per_class_ap75=ap75
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
