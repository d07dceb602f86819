"""The simulated oracle, rule by rule. Objects are boxes on a line: IoU of two boxes of width 10, d apart, is
(10 - d) / (10 + d)."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarebox.labels.oracle import SimulatedOracle
from rarebox.types import Answer, GroundTruth, Query, Verdict


def box(x: float, width: float = 10) -> list[float]:
    return [x, 0, x + width, 10]


def truth(*objects: tuple[Sequence[float], int], difficult: Sequence[int] = ()) -> GroundTruth:
    return GroundTruth(
        np.array([b for b, _ in objects], dtype=np.float32),
        np.array([label for _, label in objects]),
        np.isin(np.arange(len(objects)), difficult),
    )


def look(oracle: SimulatedOracle, shown: Sequence[float], image_id: int = 1, id: int = 7) -> Answer:
    return oracle.answer(Query(image_id, np.array(shown, dtype=np.float32), id=id))


def said(answer: Answer) -> tuple[str, list[list[float]], list[int]]:
    return answer.verdict.value, answer.boxes.tolist(), answer.labels.tolist()


def proposed(*boxes: Sequence[float]) -> np.ndarray:
    return np.array(boxes, dtype=np.float32)


NOTHING = ("not_an_object", [], [])


def test_an_answer_has_the_true_box_and_class_of_the_object_with_the_largest_iou_of_any_class() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4), (box(3), 2), (box(100), 4))})
    answer = look(oracle, box(2))  # 2 from the first: IoU 8/12; 1 from the second: IoU 9/11
    assert said(answer) == ("object", [box(3)], [2])
    assert (answer.query_id, answer.by, answer.milliseconds) == (7, "oracle", 0)


def test_the_threshold_is_included() -> None:
    objects = truth((box(0), 0))
    half = box(0, 5)  # half of the object: IoU 50 / 100
    assert said(look(SimulatedOracle({1: objects}), half)) == ("object", [box(0)], [0])
    assert said(look(SimulatedOracle({1: objects}, iou=0.51), half)) == NOTHING
    assert said(look(SimulatedOracle({1: objects}, iou=0.25), box(6))) == ("object", [box(0)], [0])  # IoU 4 / 16
    assert said(look(SimulatedOracle({1: objects}, iou=0.26), box(6))) == NOTHING


def test_a_box_that_is_good_enough_is_the_label_and_any_other_is_mended() -> None:
    objects = truth((box(0), 4), (box(30), 2))
    shown = box(1)  # 1 from the first: IoU 9 / 11 = 0.82
    for accept_iou, label in ((0.81, shown), (0.83, box(0)), (None, box(0)), (1.0, box(0))):
        assert said(look(SimulatedOracle({1: objects}, accept_iou=accept_iou), shown)) == ("object", [label], [4])
    edge = box(0, 5)  # half of the object: IoU 0.5, which is included
    assert said(look(SimulatedOracle({1: objects}, accept_iou=0.5), edge)) == ("object", [edge], [4])
    oracle = SimulatedOracle({1: objects}, accept_iou=0.75)
    assert said(look(oracle, box(33))) == ("object", [box(30)], [2])  # IoU 7 / 13
    assert said(look(oracle, shown)) == ("object", [shown], [4])
    assert said(look(oracle, box(0))) == ("already_labelled", [], [])


def test_a_whole_image_keeps_the_boxes_that_were_accepted() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4), (box(30), 2))}, accept_iou=0.75)
    look(oracle, box(1))
    assert said(oracle.answer(Query(1))) == ("object", [box(1), box(30)], [4, 2])


def test_equal_overlap_gives_the_first_object() -> None:
    oracle = SimulatedOracle({1: truth((box(4), 1), (box(0), 2))})
    assert said(look(oracle, box(2))) == ("object", [box(4)], [1])


def test_each_object_is_returned_once_and_then_the_next_best() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4), (box(3), 2))})
    assert said(look(oracle, box(2))) == ("object", [box(3)], [2])
    assert said(look(oracle, box(2))) == ("object", [box(0)], [4])
    assert said(look(oracle, box(2))) == ("already_labelled", [], [])


def test_a_second_review_of_an_object_is_not_a_rejection_but_one_beside_it_is() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4))})
    look(oracle, box(1))
    assert look(oracle, box(1)).verdict == Verdict.ALREADY_LABELLED
    assert look(oracle, box(4)).verdict == Verdict.NOT_AN_OBJECT  # IoU 6 / 14


def test_a_difficult_object_is_never_returned_and_never_rejected() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4), (box(3), 2), difficult=[0])})
    assert said(look(oracle, box(0))) == ("object", [box(3)], [2])  # IoU 7 / 13, the only one that counts
    assert said(look(oracle, box(-2))) == ("cannot_tell", [], [])
    assert said(look(oracle, box(50))) == NOTHING


def test_a_whole_image_returns_every_object_that_is_not_difficult_and_may_be_empty() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4), (box(30), 1), (box(60), 2), difficult=[1]), 2: truth()})
    look(oracle, box(0))
    assert said(oracle.answer(Query(1))) == ("object", [box(0), box(60)], [4, 2])
    assert said(look(oracle, box(60))) == ("already_labelled", [], [])
    assert said(look(oracle, box(30))) == ("cannot_tell", [], [])
    assert said(oracle.answer(Query(2))) == ("object", [], [])
    assert said(look(oracle, box(0), image_id=2)) == NOTHING


def test_images_are_independent() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4)), 2: truth((box(0), 5))})
    look(oracle, box(0), image_id=1)
    assert said(look(oracle, box(0), image_id=2)) == ("object", [box(0)], [5])


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"iou must be in \(0, 1\], got 0"):
        SimulatedOracle({}, iou=0)
    with pytest.raises(ValueError, match=r"accept_iou must be in \(0, 1\], got 1.5"):
        SimulatedOracle({}, accept_iou=1.5)
    with pytest.raises(KeyError):
        SimulatedOracle({}).answer(Query(1))


TWINS = [
    (truth((box(0), 0), (box(0), 1)), [0, 1]),  # one box, two classes
    (truth((box(0), 1), (box(0), 1)), [1, 1]),  # equal in everything
    (truth((box(0), 1), (box(0), 1), difficult=[0]), [1]),  # equal, but the first is difficult
]


@pytest.mark.parametrize(("objects", "labels"), TWINS)
@pytest.mark.parametrize("remembered", [0, 1, 2])
def test_twins_are_returned_one_by_one_also_when_remembered(
    objects: GroundTruth, labels: list[int], remembered: int
) -> None:
    oracle, query = SimulatedOracle({1: objects}), Query(1, np.array(box(0), dtype=np.float32))
    answers = [oracle.answer(query) for _ in range(3)]
    assert [label for a in answers for label in a.labels] == labels
    new = SimulatedOracle({1: objects})
    new.remember((query, a) for a in answers[:remembered])
    assert [said(new.answer(query)) for _ in range(3 - remembered)] == [said(a) for a in answers[remembered:]]


def test_a_box_of_another_class_than_the_truth_says_is_not_remembered() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 1))})
    shown = np.array([box(0)], dtype=np.float32)
    oracle.remember([(Query(1, shown[0]), Answer(7, shown, np.array([0]), Verdict.OBJECT, by="Zoë"))])
    assert said(look(oracle, box(0))) == ("object", [box(0)], [1])


SPOTS = st.lists(st.integers(0, 12), min_size=1, max_size=25)
OBJECTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 2), st.booleans()), max_size=6)


def a_truth(objects: list[tuple[int, int, bool]]) -> GroundTruth:
    difficult = [i for i, (_, _, d) in enumerate(objects) if d]
    return truth(*((box(x), label) for x, label, _ in objects), difficult=difficult)


@given(OBJECTS, SPOTS, st.data())
def test_a_new_oracle_that_remembers_resumes_as_the_old_one(
    objects: list[tuple[int, int, bool]], spots: list[int], data: st.DataObject
) -> None:
    """Includes twins with the same box and class. Spot 0 asks about the whole image."""
    queries = [Query(1, np.array(box(x), dtype=np.float32) if x else None, id=i) for i, x in enumerate(spots)]
    stop = data.draw(st.integers(0, len(queries)))
    old, new = (SimulatedOracle({1: a_truth(objects)}) for _ in range(2))
    new.remember([(query, old.answer(query)) for query in queries[:stop]])
    assert [said(new.answer(q)) for q in queries[stop:]] == [said(old.answer(q)) for q in queries[stop:]]


@given(OBJECTS, SPOTS, st.sampled_from([0.3, 0.5, 0.75]), st.data())
def test_a_new_oracle_remembers_objects_whose_label_is_the_box_shown(
    objects: list[tuple[int, int, bool]], spots: list[int], accept_iou: float, data: st.DataObject
) -> None:
    """Among up to six objects that overlap, of three classes, also twins. Spot 0 asks about the whole image."""
    queries = [Query(1, np.array(box(x), dtype=np.float32) if x else None, id=i) for i, x in enumerate(spots)]
    stop = data.draw(st.integers(0, len(queries)))
    old, new = (SimulatedOracle({1: a_truth(objects)}, 0.3, accept_iou) for _ in range(2))
    new.remember([(query, old.answer(query)) for query in queries[:stop]])
    assert [said(new.answer(q)) for q in queries[stop:]] == [said(old.answer(q)) for q in queries[stop:]]


@given(OBJECTS, SPOTS)
def test_no_object_is_returned_twice_and_no_real_one_rejected(
    objects: list[tuple[int, int, bool]], spots: list[int]
) -> None:
    oracle = SimulatedOracle({1: a_truth(objects)})
    brought = []
    for x in spots:
        answer = look(oracle, box(x))
        brought += [(int(b[0]), int(label)) for b, label in zip(answer.boxes, answer.labels, strict=True)]
        overlapped = any(abs(x - other) <= 10 / 3 for other, _, _ in objects)  # IoU >= 0.5
        assert (answer.verdict == Verdict.NOT_AN_OBJECT) == (not overlapped)
        assert (answer.verdict == Verdict.OBJECT) == bool(len(answer.boxes))
    payable = [(x, label) for x, label, difficult in objects if not difficult]
    assert all(brought.count(one) <= payable.count(one) for one in brought)


@given(arrays(np.float64, 4), st.integers(), st.dictionaries(st.text(), st.floats()))
def test_the_answer_does_not_depend_on_guess_utility_and_reasons(
    utilities: np.ndarray, guess: int, why: dict[str, float]
) -> None:
    plain, scrambled = (SimulatedOracle({1: truth((box(0), 4), (box(3), 2))}) for _ in range(2))
    for x, utility in zip((2, 2, 2, 50), utilities, strict=True):
        shown = np.array(box(x), dtype=np.float32)
        strange = Query(1, shown, guess=guess, utility=float(utility), why=why)
        assert said(scrambled.answer(strange)) == said(plain.answer(Query(1, shown)))


def test_a_proposal_on_a_whole_image_is_confirmed_from_accept_iou_up_and_the_rest_gets_its_true_box() -> None:
    objects = truth((box(0), 4), (box(30), 2), (box(60), 1), (box(90), 3), difficult=[3])
    oracle = SimulatedOracle({1: objects}, accept_iou=0.75)
    # 1 from the first: IoU 0.82. 3 from the second: 0.54. The last two show nothing, and a difficult object.
    shown = proposed(box(1), box(33), box(75), box(90))
    assert said(oracle.answer(Query(1), shown)) == ("object", [box(1), box(30), box(60)], [4, 2, 1])


def test_a_second_proposal_on_an_object_changes_nothing() -> None:
    oracle = SimulatedOracle({1: truth((box(0), 4))}, accept_iou=0.75)
    assert said(oracle.answer(Query(1), proposed(box(1), box(0.5)))) == ("object", [box(1)], [4])


def test_without_accept_iou_a_whole_image_has_true_boxes() -> None:
    assert said(SimulatedOracle({1: truth((box(0), 4))}).answer(Query(1), proposed(box(1)))) == (
        "object",
        [box(0)],
        [4],
    )


def test_confirmed_proposals_are_remembered_after_a_restart() -> None:
    objects = truth((box(0), 4), (box(30), 2))
    answer = SimulatedOracle({1: objects}, accept_iou=0.75).answer(Query(1, id=3), proposed(box(1)))
    again = SimulatedOracle({1: objects}, accept_iou=0.75)
    again.remember([(Query(1, id=3), answer)])
    assert said(look(again, box(0))) == ("already_labelled", [], [])
    assert said(again.answer(Query(1))) == ("object", [box(1), box(30)], [4, 2])
