"""Right, missed and wrong detections, and the confusion matrix, against numbers worked out by hand and a plain loop."""

import numpy as np
import pytest

from rarebox.evaluation import best_thresholds, cross_checked, f1_of, match, voc_ap
from rarebox.types import Detections, GroundTruth
from tests.test_evaluation import NOTHING, NOWHERE, A, B, C, D, found, plain_iou, random_scene, true

HALF = np.full(3, 0.5)


def test_the_confusion_matrix_by_hand():
    truth = {1: true((A, 0), (B, 1), (C, 1)), 2: true((A, 2), (B, 2), (D, 0))}
    detections = {
        1: found(
            (A, 0, 0.9),  # right
            (A, 0, 0.8),  # wrong: A has a detection
            (B, 2, 0.7),  # B, of class 1, taken for class 2
            (C, 1, 0.4),  # below the threshold, so C is missed
        ),
        2: found(
            (A, 2, 0.5),  # right: the threshold itself is enough
            (B, 0, 0.6),  # B, of class 2, taken for class 0
            (NOWHERE, 1, 0.9),  # wrong: nothing is there
        ),  # D is missed
    }
    matches = match(detections, truth, 3, HALF)
    assert matches.confusion.tolist() == [
        [1, 0, 0, 1],  # class 0: A of image 1 right, D missed
        [0, 0, 1, 1],  # class 1: B taken for class 2, C missed
        [1, 0, 1, 0],  # class 2: B taken for class 0, A right
        [1, 1, 0, 0],  # no object: the second A, and the one nowhere
    ]
    np.testing.assert_allclose(matches.precision, [1 / 3, 0, 1 / 2])
    np.testing.assert_allclose(matches.recall, [1 / 2, 0, 1 / 2])
    assert matches.found.image.tolist() == [1, 1, 2, 2, 1, 2]  # by class, best first
    assert matches.right.tolist() == [True, False, False, False, False, True]
    assert matches.true_class.tolist() == [0, 3, 2, 3, 1, 2]
    assert matches.objects.boxes[matches.missed].tolist() == [C, D]


def test_each_class_has_its_own_threshold():
    detections = {1: found((A, 0, 0.3), (B, 1, 0.3))}
    matches = match(detections, {1: true((A, 0), (B, 1))}, 2, np.array([0.2, 0.4]))
    assert matches.confusion.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


def test_difficult_objects_are_neither_missed_nor_found_nor_confused():
    truth = {1: true((A, 0), (B, 0), difficult=(0, 1))}
    # The first detection does not count, as in AP50; one of another class does, and is wrong.
    matches = match({1: found((A, 0, 0.9), (B, 1, 0.8))}, truth, 2, HALF[:2])
    assert matches.confusion.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert len(matches.objects.labels) == 0


def test_a_detection_of_the_true_class_comes_before_a_better_one_of_another_class():
    # The shark scores higher, but the fish is found as a fish; so the shark is wrong, not a confusion.
    matches = match({1: found((A, 1, 0.9), (A, 0, 0.6))}, {1: true((A, 0))}, 2, HALF[:2])
    assert matches.confusion.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_of_two_detections_of_other_classes_the_better_one_is_the_confusion():
    matches = match({1: found((A, 1, 0.6), (A, 2, 0.9))}, {1: true((A, 0))}, 3, HALF)
    assert matches.confusion.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_a_confusion_takes_the_free_object_that_overlaps_most():
    near, far = [1, 0, 11, 10], [3, 0, 13, 10]  # IoU with A: 9/11 and 7/13
    truth = {1: true((far, 0), (near, 0), (NOWHERE, 0))}
    matches = match({1: found((A, 1, 0.9), (A, 1, 0.8), (A, 1, 0.7))}, truth, 2, HALF[:2])
    assert matches.objects.boxes[matches.partner[:2]].tolist() == [near, far]
    assert matches.partner[2] == -1


@pytest.mark.parametrize(("height", "taken"), [(5, 1), (4.99, 0)])
def test_half_an_iou_is_enough_for_a_confusion(height: float, taken: int):
    matches = match({1: found(([0, 0, 10, height], 1, 0.9))}, {1: true((A, 0))}, 2, HALF[:2])
    assert matches.confusion[0].tolist() == [0, taken, 1 - taken]


def test_objects_and_detections_of_other_images_do_not_match():
    matches = match({7: found((A, 0, 0.9))}, {7: NOTHING, 3: true((A, 1))}, 2, HALF[:2])
    assert matches.confusion.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0]]
    assert (matches.found.image.tolist(), matches.objects.image.tolist()) == ([7], [3])


@pytest.mark.parametrize(("detections", "truth"), [({}, {}), ({}, {1: NOTHING}), ({1: found()}, {1: NOTHING})])
def test_nothing_to_match(detections: dict[int, Detections], truth: dict[int, GroundTruth]):
    matches = match(detections, truth, 2, HALF[:2])
    assert not matches.confusion.any()
    assert np.isnan(matches.precision).all()
    assert np.isnan(matches.recall).all()


def test_cross_checked_counts_have_thresholds_of_the_other_half():
    # Images 1 and 3 are one half, 2 the other. The best thresholds are 0.45 on the first, midway between 0.7 and 0.2,
    # and 0.6 on the second.
    truth = {1: true((A, 0)), 2: true((A, 0)), 3: NOTHING}
    detections = {1: found((A, 0, 0.7)), 2: found((A, 0, 0.9), (NOWHERE, 0, 0.3)), 3: found((NOWHERE, 0, 0.2))}
    # So image 1 is right at 0.6, and image 2 at 0.45.
    assert cross_checked(detections, truth, 1).tolist() == [[2, 0], [0, 0]]
    worse = detections | {3: found((NOWHERE, 0, 0.65))}
    assert cross_checked(worse, truth, 1).tolist() == [[2, 0], [1, 0]]
    assert f1_of(cross_checked(worse, truth, 1)).tolist() == [4 / 5]
    assert not cross_checked({}, {}, 1).any()


# ---------------------------------------------------------------------------------------------- against a plain loop


def plain_confusion(
    detections: dict[int, Detections], truth: dict[int, GroundTruth], num_classes: int, least: np.ndarray
) -> list[list[int]]:
    """The rules in words, one detection at a time."""
    matrix = [[0] * (num_classes + 1) for _ in range(num_classes + 1)]
    rows = [(-d.scores[r], int(d.labels[r]), i, r) for i, d in detections.items() for r in range(len(d))]
    taken, rest = set[tuple[int, int]](), []
    for score, label, i, r in sorted(rows):
        t = truth[i]
        ious = [
            plain_iou(detections[i].boxes[r], box, 0) if t.labels[g] == label else 0 for g, box in enumerate(t.boxes)
        ]
        best = int(np.argmax(ious)) if ious else -1
        if -score < least[label] or (best >= 0 and ious[best] >= 0.5 and t.difficult[best]):
            continue
        if best >= 0 and ious[best] >= 0.5 and (i, best) not in taken:
            taken.add((i, best))
            matrix[label][label] += 1
        else:
            rest.append((label, i, r))
    for label, i, r in rest:
        t = truth[i]
        free = [
            (-plain_iou(detections[i].boxes[r], box, 0), g)
            for g, box in enumerate(t.boxes)
            if (i, g) not in taken and not t.difficult[g] and t.labels[g] != label
        ]
        iou, g = min(free, default=(0, -1))
        true_class = num_classes
        if -iou >= 0.5:
            taken.add((i, g))
            true_class = int(t.labels[g])
        matrix[true_class][label] += 1
    for i, t in truth.items():
        for g in range(len(t)):
            if not t.difficult[g] and (i, g) not in taken:
                matrix[t.labels[g]][num_classes] += 1
    return matrix


@pytest.mark.parametrize("seed", range(6))
def test_the_matrix_is_that_of_a_plain_loop_and_agrees_with_ap50(seed: int):
    detections, truth = random_scene(seed, images=30)
    curves = voc_ap(detections, truth, 4)
    best = best_thresholds(curves)
    matches = match(detections, truth, 4, best.scores)
    matrix = matches.confusion
    assert matrix.tolist() == plain_confusion(detections, truth, 4, best.scores)
    assert matrix[:-1].sum(axis=1).tolist() == curves.objects.tolist()
    for k in range(3):  # the last class has no objects
        kept = int((curves.scores[k] >= best.scores[k]).sum())
        assert matrix[:, k].sum() == kept
        assert matches.precision[k] == pytest.approx(curves.precision[k][kept - 1])
        assert matches.recall[k] == pytest.approx(curves.recall[k][kept - 1])
        assert best.f1[k] == pytest.approx(matches.f1[k])
        assert best.f1[k] == pytest.approx(2 / (1 / matches.precision[k] + 1 / matches.recall[k]))
