"""AP against curves computed by hand, against a plain loop over the devkit's rules, and COCO AP against pycocotools."""

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rarebox.evaluation import (
    FEWEST_OBJECTS,
    UNMEASURED,
    CocoTables,
    ap50_interval,
    best_thresholds,
    coco_ap,
    imbalance_factor,
    voc_ap,
)
from rarebox.types import Detections, GroundTruth

A, B, C, D = [0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10], [60, 0, 70, 10]
NOWHERE = [200, 200, 210, 210]


def found(*rows: tuple[Sequence[float], int, float]) -> Detections:
    """Detections from (box, label, score)."""
    boxes, labels, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(np.array(boxes), np.array(labels), np.array(scores), np.zeros((len(rows), 1)))


def true(*rows: tuple[Sequence[float], int], difficult: tuple[int, ...] = ()) -> GroundTruth:
    """Truth from (box, label); ``difficult`` names rows."""
    boxes, labels = zip(*rows, strict=True) if rows else ((), ())
    return GroundTruth(np.array(boxes), np.array(labels), np.isin(np.arange(len(rows)), difficult))


NOTHING = true()

# ---------------------------------------------------------------------------------------------- VOC, by hand


def test_the_two_interpolations_on_a_small_curve():
    truth = {1: true((A, 0), (B, 0)), 2: true((A, 0), (B, 0))}
    detections = {
        1: found((A, 0, 0.9), (NOWHERE, 0, 0.8), (B, 0, 0.7)),
        2: found((NOWHERE, 0, 0.6), (NOWHERE, 0, 0.5), (B, 0, 0.4)),
    }
    # in order of score: right wrong right wrong wrong right, of 4 boxes
    # recall    1/4  1/4  2/4  2/4  2/4  3/4
    # precision  1   1/2  2/3  2/4  2/5  3/6     envelope: 1 up to 1/4, 2/3 up to 2/4, 1/2 up to 3/4, then 0
    result = voc_ap(detections, truth, 1)
    np.testing.assert_allclose(result.recall[0], [1 / 4, 1 / 4, 2 / 4, 2 / 4, 2 / 4, 3 / 4])
    np.testing.assert_allclose(result.precision[0], [1, 1 / 2, 2 / 3, 2 / 4, 2 / 5, 3 / 6])
    # area: (1 + 2/3 + 1/2) / 4 = 13/24
    assert result.ap[0] == pytest.approx(13 / 24)
    # 11 points: 1 at 0, .1, .2;  2/3 at .3, .4, .5;  1/2 at .6, .7;  0 at .8, .9, 1:  (3 + 2 + 1) / 11
    assert result.ap11[0] == pytest.approx(6 / 11)
    assert result.objects.tolist() == [4]


def test_a_second_hit_on_the_same_box_is_wrong():
    detections = {1: found((A, 0, 0.9), (A, 0, 0.8), (B, 0, 0.7))}
    # right wrong right, of 2: recall 1/2 1/2 1, precision 1 1/2 2/3: 1/2 * 1 + 1/2 * 2/3 = 5/6
    assert voc_ap(detections, {1: true((A, 0), (B, 0))}, 1).ap[0] == pytest.approx(5 / 6)


def test_a_detection_goes_to_its_nearest_box_even_if_that_one_is_taken():
    # second detection: IoU with A 95/105, with the neighbour 85/115; the neighbour is free but not the nearest
    neighbour, shifted = [2, 0, 12, 10], [0.5, 0, 10.5, 10]
    detections, truth = {1: found((A, 0, 0.9), (shifted, 0, 0.8))}, {1: true((A, 0), (neighbour, 0))}
    # VOC: right wrong, of 2: 1/2.  COCO gives the second detection to the free neighbour: both right.
    assert voc_ap(detections, truth, 1).ap[0] == pytest.approx(1 / 2)
    assert coco_ap(detections, truth, 1)["ap50"] == pytest.approx(1)


def test_the_nearest_of_two_boxes_is_the_first_of_equals():
    # a detection halfway: IoU 9/11 with both; it takes the first row, so the exact hit on the first comes too late
    left, right, between = [0, 0, 10, 10], [2, 0, 12, 10], [1, 0, 11, 10]
    detections = {1: found((between, 0, 0.9), (left, 0, 0.8))}
    assert voc_ap(detections, {1: true((left, 0), (right, 0))}, 1).ap[0] == pytest.approx(1 / 2)
    assert voc_ap(detections, {1: true((right, 0), (left, 0))}, 1).ap[0] == pytest.approx(1)


def test_difficult_boxes_are_neither_missed_nor_hit():
    truth = {1: true((A, 0), (B, 0), (C, 0), difficult=(1, 2))}
    # two hits on the difficult B do not count, C is not missed: right, of 1
    result = voc_ap({1: found((B, 0, 0.9), (B, 0, 0.8), (A, 0, 0.7))}, truth, 1)
    assert result.ap[0] == 1
    assert result.ap11[0] == 1
    assert result.objects.tolist() == [1]
    assert result.precision[0].tolist() == [1]


def test_a_detection_nearer_to_a_difficult_box_does_not_find_the_ordinary_one():
    # IoU with the difficult box 1, with the ordinary one 8/12 >= 1/2: ignored, so the ordinary one is missed
    truth = {1: true((A, 0), ([2, 0, 12, 10], 0), difficult=(1,))}
    assert voc_ap({1: found(([2, 0, 12, 10], 0, 0.9))}, truth, 1).ap[0] == 0


def test_the_wrong_class_is_wrong_and_misses():
    result = voc_ap({1: found((A, 1, 0.9), (B, 1, 0.8))}, {1: true((A, 0), (B, 1))}, 2)
    # class 0: nothing found.  class 1: wrong right, of 1: precision 0, 1/2
    assert result.ap.tolist() == [0, 1 / 2]
    assert result.mean_ap == 1 / 4


def test_the_wrong_image_is_wrong():
    assert voc_ap({2: found((A, 0, 0.9))}, {1: true((A, 0)), 2: NOTHING}, 1).ap[0] == 0


@pytest.mark.parametrize(("height", "ap"), [(5, 1), (4.99, 0)])
def test_half_an_iou_is_enough(height: float, ap: float):
    # 10 x 5 inside 10 x 10: 50 / 100, exactly one half
    assert voc_ap({1: found(([0, 0, 10, height], 0, 0.9))}, {1: true((A, 0))}, 1).ap[0] == ap


def test_legacy_pixels_count_the_last_pixel():
    # continuous: 9 * 4 / 81 = 0.44.  pixels 0..9 by 0..4 in 0..9 by 0..9: 10 * 5 / 100 = 0.5
    detections, truth = {1: found(([0, 0, 9, 4], 0, 0.9))}, {1: true(([0, 0, 9, 9], 0))}
    assert voc_ap(detections, truth, 1).ap[0] == 0
    assert voc_ap(detections, truth, 1, legacy_pixels=True).ap[0] == 1


def test_another_threshold():
    detections, truth = {1: found(([0, 0, 10, 6], 0, 0.9))}, {1: true((A, 0))}
    assert [voc_ap(detections, truth, 1, iou=t).ap[0] for t in (0.55, 0.65)] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "ap"),
    [
        ({1: [A], 2: [NOWHERE]}, 1),  # right, wrong
        ({2: [NOWHERE], 1: [A]}, 1),  # the order of the mapping does not matter
        ({1: [NOWHERE], 2: [B]}, 1 / 2),  # wrong, right
        ({1: [NOWHERE, A]}, 1 / 2),  # rows in their order
        ({1: [A, NOWHERE]}, 1),
    ],
)
def test_equal_scores_come_in_order_of_image_and_row(rows: dict[int, list[list[float]]], ap: float):
    detections = {i: found(*((box, 0, 0.5) for box in boxes)) for i, boxes in rows.items()}
    box, image = (B, 2) if [B] in rows.values() else (A, 1)
    truth = {1: NOTHING, 2: NOTHING} | {image: true((box, 0))}
    assert voc_ap(detections, truth, 1).ap[0] == ap


def test_a_class_without_truth_has_no_ap_and_stays_out_of_the_mean():
    truth = {1: true((A, 0), (B, 2), difficult=(1,))}  # class 1: none; class 2: only a difficult one
    result = voc_ap({1: found((A, 0, 0.9), (C, 1, 0.9), (C, 2, 0.9))}, truth, 3)
    assert np.isnan(result.ap).tolist() == [False, True, True]
    assert np.isnan(result.ap11).tolist() == [False, True, True]
    assert (result.mean_ap, result.mean_ap11) == (1, 1)


def test_no_truth_at_all():
    result = voc_ap({}, {1: NOTHING}, 2)
    assert math.isnan(result.mean_ap)
    assert math.isnan(result.mean_ap11)


@pytest.mark.parametrize("detections", [{}, {1: found()}])
def test_no_detections(detections: dict[int, Detections]):
    result = voc_ap(detections, {1: true((A, 0))}, 1)
    assert (result.mean_ap, result.mean_ap11) == (0, 0)


def test_a_recall_of_exactly_three_tenths_reaches_the_point_there():
    # 3 of 10 found, all right: 1 at 0, .1, .2 and .3, although 3 * 0.1 > 0.3 in binary
    boxes = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(10)]
    truth, detections = {1: true(*((b, 0) for b in boxes))}, {1: found(*((b, 0, 0.9) for b in boxes[:3]))}
    result = voc_ap(detections, truth, 1)
    assert result.ap11[0] == pytest.approx(4 / 11)
    assert result.ap[0] == pytest.approx(3 / 10)


@pytest.mark.parametrize("metric", [voc_ap, coco_ap])
def test_unmeasurable_input_is_refused(metric: Any):
    with pytest.raises(ValueError, match=r"no truth: \[7\]"):
        metric({7: found((A, 0, 0.9))}, {1: NOTHING}, 1)
    with pytest.raises(ValueError, match=r"\[0, 2\), got 2 to 2"):
        metric({1: found((A, 2, 0.9))}, {1: NOTHING}, 2)
    with pytest.raises(ValueError, match=r"\[0, 2\), got -1 to -1"):
        metric({}, {1: true((A, -1))}, 2)


# ---------------------------------------------------------------------------------------------- VOC, plain loops


def plain_iou(a: np.ndarray, b: np.ndarray, extra: int) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + extra
    height = min(a[3], b[3]) - max(a[1], b[1]) + extra
    if width <= 0 or height <= 0:
        return 0.0
    areas = [float((x[2] - x[0] + extra) * (x[3] - x[1] + extra)) for x in (a, b)]
    return float(width * height) / (areas[0] + areas[1] - float(width * height))


def plain_voc(
    detections: dict[int, Detections], truth: dict[int, GroundTruth], label: int, iou: float, extra: int
) -> tuple[float, float]:
    """Area and 11-point AP of one class, following VOCevaldet.m line by line."""
    wanted = sum(1 for t in truth.values() for c, d in zip(t.labels, t.difficult, strict=True) if c == label and not d)
    if wanted == 0:
        return math.nan, math.nan
    rows = [(i, k) for i in sorted(detections) for k in range(len(detections[i])) if detections[i].labels[k] == label]
    rows.sort(key=lambda row: -detections[row[0]].scores[row[1]])  # stable
    points: list[tuple[float, float]] = []
    taken, right, wrong = set(), 0, 0
    for i, k in rows:
        best, nearest = -math.inf, -1
        for j, box in enumerate(truth[i].boxes):
            if truth[i].labels[j] == label:
                overlap = plain_iou(detections[i].boxes[k], box, extra)
                if overlap > best:
                    best, nearest = overlap, j
        if best >= iou:
            if truth[i].difficult[nearest]:
                continue
            if (i, nearest) in taken:
                wrong += 1
            else:
                right += 1
                taken.add((i, nearest))
        else:
            wrong += 1
        points.append((right / wanted, right / (right + wrong)))
    # VOCap.m: the area under the envelope, one rectangle for each change of recall
    recall = [0.0, *(r for r, _ in points), 1.0]
    precision = [0.0, *(p for _, p in points), 0.0]
    for n in range(len(precision) - 2, -1, -1):
        precision[n] = max(precision[n], precision[n + 1])
    area = sum((recall[n] - recall[n - 1]) * precision[n] for n in range(1, len(recall)))
    eleven = sum(max((p for r, p in points if r >= k / 10), default=0.0) for k in range(11)) / 11
    return area, eleven


# few places and sizes, so that boxes hit each other, tie and reach one half exactly
BOX = st.builds(lambda x, y, w, h: [x, y, x + w, y + h], *[st.integers(0, 4)] * 2, *[st.integers(2, 5)] * 2)
LABEL = st.integers(0, 1)
IMAGE_TRUTH = st.lists(st.tuples(BOX, LABEL, st.sampled_from([False, False, True])), max_size=4)
IMAGE_FOUND = st.lists(st.tuples(BOX, LABEL, st.sampled_from([0.2, 0.5, 0.8])), max_size=6)
IMAGES = st.lists(st.tuples(IMAGE_TRUTH, IMAGE_FOUND), min_size=1, max_size=4)


@given(images=IMAGES, iou=st.sampled_from([0.3, 0.5, 0.75]), legacy=st.booleans())
def test_voc_ap_is_the_devkits(images: list[Any], iou: float, legacy: bool):
    truth = {
        10 - n: true(*((b, c) for b, c, _ in t), difficult=tuple(k for k, row in enumerate(t) if row[2]))
        for n, (t, _) in enumerate(images)
    }
    detections = {10 - n: found(*rows) for n, (_, rows) in enumerate(images)}
    result = voc_ap(detections, truth, 2, iou, legacy_pixels=legacy)
    expected = [plain_voc(detections, truth, label, iou, int(legacy)) for label in (0, 1)]
    np.testing.assert_allclose(np.stack([result.ap, result.ap11], axis=1), expected, atol=1e-12)


# ---------------------------------------------------------------------------------------------- COCO


def pycocotools_precision(tables: CocoTables) -> np.ndarray:
    """The same table by the reference implementation, without its output."""
    crowd = tables.truth_crowd.astype(int).tolist()
    rows = zip(tables.truth_image, tables.truth_category, tables.truth_boxes.tolist(), crowd, strict=True)
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": i + 1} for i in range(tables.images)],
            "categories": [{"id": i + 1} for i in range(tables.categories)],
            "annotations": [
                {"id": n, "image_id": int(i), "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": k}
                for n, (i, c, b, k) in enumerate(rows, start=1)
            ],
        }
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(tables.results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    return np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]


def random_scene(seed: int, images: int = 12, classes: int = 4) -> tuple[dict[int, Detections], dict[int, GroundTruth]]:
    """Truth, a fifth of it difficult; detections near it and anywhere, with tied scores, over 100 in one image."""
    rng = np.random.default_rng(seed)
    detections, truth = {}, {}
    for i in range(images):
        corner = rng.uniform(0, 150, (6, 2))
        boxes = np.hstack([corner, corner + rng.uniform(10, 80, (6, 2))])
        labels = rng.integers(0, classes - 1, 6)  # the last class has no truth
        truth[i] = GroundTruth(boxes, labels, rng.random(6) < 0.2)
        pick = rng.integers(0, 6, 130 if i == 0 else 20)
        near = boxes[pick] + rng.normal(0, 6, (len(pick), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 2)
        guess = np.where(rng.random(len(pick)) < 0.7, labels[pick], rng.integers(0, classes, len(pick)))
        guess[: 110 if i == 0 else 0] = 0  # more than COCO's limit for one class
        detections[i] = Detections(near, guess, rng.random(len(pick)).round(2), np.zeros((len(pick), 1)))
    return detections, truth


class Draws:
    """A generator whose draws of test images are given: how often each image is in each of them."""

    def __init__(self, *draws: Sequence[int]) -> None:
        self.draws = np.array(draws)

    def multinomial(self, images: int, shares: np.ndarray, size: int) -> np.ndarray:
        assert images == len(shares)
        assert size == 1000
        return np.resize(self.draws, (size, images))


def test_the_interval_is_over_the_ap_of_test_images_drawn_again():
    """Each draw is measured as if its images were the test set, the repeated ones under several ids."""
    detections, truth = random_scene(1)
    ids = sorted(truth)
    draws = np.random.default_rng(0).multinomial(len(ids), [1 / len(ids)] * len(ids), 40)
    expected = []
    for draw in draws:
        copies = [(1000 * i + n, i) for i, count in zip(ids, draw, strict=True) for n in range(count)]
        # equal scores of copies have no order of their own, so each copy's are a little apart
        shown = {
            copy: Detections(d.boxes, d.labels, d.scores.astype(np.float64) - 1e-6 * (copy % 1000), d.class_probs)
            for copy, i in copies
            if (d := detections.get(i)) is not None
        }
        expected.append(voc_ap(shown, {copy: truth[i] for copy, i in copies}, 4).mean_ap)
    low, high = np.quantile(np.resize(expected, 1000), (0.025, 0.975))
    found_low, found_high = ap50_interval(detections, truth, 4, Draws(*draws)) or (0, 0)  # type: ignore[arg-type]
    assert found_low < voc_ap(detections, truth, 4).mean_ap < found_high
    np.testing.assert_allclose((found_low, found_high), (low, high), atol=0.02)


def test_the_interval_of_one_draw_is_its_ap():
    detections, truth = random_scene(2)
    whole = Draws([1] * len(truth))
    found_interval = ap50_interval(detections, truth, 4, whole)  # type: ignore[arg-type]
    assert found_interval
    np.testing.assert_allclose(found_interval, [voc_ap(detections, truth, 4).mean_ap] * 2, atol=1e-12)


def test_there_is_no_interval_without_two_images_and_an_object():
    rng = np.random.default_rng(0)
    assert ap50_interval({}, {}, 1, rng) is None
    assert ap50_interval({}, {1: true((A, 0))}, 1, rng) is None
    assert ap50_interval({}, {1: NOTHING, 2: true((A, 0), difficult=(0,))}, 1, rng) is None
    assert ap50_interval({}, {1: NOTHING, 2: true((A, 0))}, 1, rng) == (0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_coco_ap_is_that_of_pycocotools(seed: int):
    detections, truth = random_scene(seed)
    ours, reference = coco_ap(detections, truth, 4), coco_ap(detections, truth, 4, engine=pycocotools_precision)
    assert 0 < reference["ap"] < reference["ap50"] < 1
    for key, value in reference.items():
        np.testing.assert_allclose(ours[key], value, atol=1e-12)  # type: ignore[literal-required]


def test_coco_ap_by_hand():
    # IoU 0.62 with the only box: right at 0.5, 0.55 and 0.6, wrong at the other seven
    result = coco_ap({1: found(([0, 0, 10, 6.2], 0, 0.9))}, {1: true((A, 0))}, 2)
    assert result["ap"] == pytest.approx(3 / 10)
    assert (result["ap50"], result["ap75"]) == (pytest.approx(1), 0)
    assert np.isnan(result["per_class"]).tolist() == [False, True]
    np.testing.assert_allclose(result["per_class_ap50"][0], 1)


def test_a_difficult_box_is_a_crowd_for_coco():
    # a detection well inside the difficult box is covered by it, so COCO forgives it; its IoU is 1/4, VOC does not
    detections = {1: found(([20, 0, 25, 5], 0, 0.9), (A, 0, 0.8))}
    truth = {1: true((A, 0), (B, 0), difficult=(1,))}
    assert coco_ap(detections, truth, 1)["ap50"] == pytest.approx(1)
    assert voc_ap(detections, truth, 1).ap[0] == pytest.approx(1 / 2)


@pytest.mark.parametrize("truth", [{}, {1: NOTHING}])
def test_coco_ap_of_nothing(truth: dict[int, GroundTruth]):
    result = coco_ap({}, truth, 2)
    assert math.isnan(result["ap"])
    assert np.isnan(result["per_class"]).tolist() == [True, True]


def test_coco_ap_without_detections_is_zero():
    assert coco_ap({}, {1: true((A, 0))}, 1)["ap"] == 0


def test_the_library_prints_nothing(capfd: pytest.CaptureFixture[str]):
    coco_ap(*random_scene(0), 4)
    assert capfd.readouterr() == ("", "")


# ---------------------------------------------------------------------------------------------- the tail


@pytest.mark.parametrize(("counts", "factor"), [([30, 12, 3], 10), ([5], 1), ([0, 8, 4], 2), ([7, 2], 3.5)])
def test_imbalance_factor(counts: list[int], factor: float):
    assert imbalance_factor(counts) == factor


@pytest.mark.parametrize("counts", [[], [0, 0]])
def test_imbalance_factor_of_nothing(counts: list[int]):
    assert math.isnan(imbalance_factor(counts))


# ---------------------------------------------------------------------------------------------- thresholds


def test_the_best_threshold_by_hand():
    truth = {1: true((A, 0), (B, 0), (C, 0)), 2: true((A, 0))}
    detections = {1: found((A, 0, 0.9), (B, 0, 0.7), (NOWHERE, 0, 0.6), (C, 0, 0.4)), 2: found((NOWHERE, 0, 0.3))}
    # kept  1    2    3    4    5     of 4 boxes
    # hits  1    2    2    3    3
    # F1   2/5  4/6  4/7  6/8  6/9   the best keeps four: between 0.4 and 0.3
    best = best_thresholds(voc_ap(detections, truth, 1))
    assert best.scores == pytest.approx([0.35])
    assert best.f1 == pytest.approx([6 / 8])
    assert not best.own[0]  # four boxes are too few for a threshold of its own


def test_classes_with_few_objects_share_a_threshold():
    many = {i: true((A, 0)) for i in range(1, FEWEST_OBJECTS + 1)} | {99: true((A, 1), (B, 2))}
    rows = {i: found((A, 0, 0.9), (NOWHERE, 0, 0.5)) for i in range(1, FEWEST_OBJECTS + 1)}
    best = best_thresholds(voc_ap(rows | {99: found((A, 1, 0.8), (NOWHERE, 1, 0.2))}, many, 4))
    # class 0 alone: midway between 0.9 and 0.5. All together: the hit at 0.8 too, midway between 0.8 and 0.5.
    assert best.scores == pytest.approx([0.7, 0.65, 0.65, 0.65])
    np.testing.assert_allclose(best.f1, [1, 1, 0, np.nan])
    assert best.own.tolist() == [True, False, False, False]


@pytest.mark.parametrize("detections", [{}, {1: found((NOWHERE, 0, 0.9))}])
def test_without_a_hit_the_threshold_is_not_measured(detections: dict[int, Detections]):
    best = best_thresholds(voc_ap(detections, {1: true((A, 0))}, 2))
    assert best.scores.tolist() == [UNMEASURED, UNMEASURED]


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.4, 0.5, 0.8, 0.9]), st.booleans()), max_size=12))
def test_no_threshold_is_better(rows: list[tuple[float, bool]]):
    places = [[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(len(rows) + 1)]
    truth = {1: true(*((places[i], 0) for i, (_, hit) in enumerate(rows) if hit), (places[-1], 0))}
    detections = {1: found(*((places[i], 0, score) for i, (score, _) in enumerate(rows)))}
    best = best_thresholds(voc_ap(detections, truth, 1))

    def f1(bound: float) -> float:
        kept = [hit for score, hit in rows if score >= bound]
        return 2 * sum(kept) / (len(kept) + len(truth[1]))

    reached = f1(float(best.scores[0]))
    assert best.f1[0] == pytest.approx(reached)
    assert reached == pytest.approx(max(map(f1, [0, 0.15, 0.3, 0.45, 0.6, 0.85, 1.0])))
