"""Which questions a cycle asks besides those of the ranking: whole images for classes that nothing finds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox import config
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop.rules import CycleAsker, in_turn
from rarebox.pool.candidates import Shards
from rarebox.pool.ranking import LazyRanking, head, label_state, with_added
from rarebox.project.predictions import as_candidates
from rarebox.types import Answer, Candidates, ImageRecord, ImageScores, Query, Verdict

CLASSES = ("fish", "ray", "shark")
IMAGES = 40


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(i, f"{i}.jpg", 100, 100) for i in range(1, IMAGES + 1)])
        store.open_cycle(1)
        store.open_cycle(2)
        yield store


def box(place: int = 0) -> np.ndarray:
    """One of nine boxes of an image that do not overlap."""
    x, y = place % 3 * 30 + 5, place // 3 * 30 + 5
    return np.array([x, y, x + 20, y + 20], np.float32)


def table(rows: Sequence[tuple[int, int, int]], scores: Sequence[float] | None = None) -> Candidates:
    """Candidates from (image, place in the image, label), best first."""
    images, places, labels = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    value = np.linspace(0.9, 0.5, len(rows)) if scores is None else np.array(scores)
    boxes = np.stack([box(place) for place in places]) if len(rows) else np.zeros((0, 4))
    return Candidates(images, places, boxes, labels, value, value, value, np.zeros((len(rows), 0)))


def asker(
    store: Store, found: Candidates, counts: Sequence[int], added: Candidates | None = None, /, **changes: Any
) -> CycleAsker:
    """The asker of cycle 2 with these candidates, ranked as they are; ``changes`` are settings."""
    settings = config.resolve("laptop", None, {**config.PROJECT, **changes})
    queue = LazyRanking.of(found, enumerate(found.uncertainty.tolist()))
    return CycleAsker(settings, store, 2, queue, np.array(counts), lambda: store.images(), added=added)


def label(store: Store, label: int, image_id: int = 1, place: int = 8, cycle: int = 1) -> None:
    """Answer a question with one box."""
    (query,) = store.ask(cycle, [Query(image_id, box(place), label)])
    store.record([Answer(query.id, box(place)[None], np.array([label]), Verdict.OBJECT)])


def answer(store: Store, queries: Sequence[Query]) -> None:
    """Draw a box of class 0 on each whole image, and reject single boxes."""
    none = np.zeros((0, 4), np.float32)
    for query in queries:
        said = (box()[None], np.array([0]), Verdict.OBJECT) if query.box is None else (none, [], Verdict.NOT_AN_OBJECT)
        store.record([Answer(query.id, said[0], np.asarray(said[1], np.int64), said[2])])


# ------------------------------------------------------------------------------------------- whole images


RANKED = table([(i, 0, 0) for i in range(1, 21)])


@pytest.mark.parametrize(
    ("labelled", "counts", "explores"),
    [
        ((0, 1, 2), (9, 9, 9), False),
        ((0, 1, 2), (9, 0, 9), True),  # the detector never predicts the second class
        ((0, 2), (9, 9, 9), True),  # it has no example: what the detector predicts is noise
    ],
)
def test_a_class_without_a_candidate_or_an_example_is_explored_for_by_default(
    store: Store, labelled: Sequence[int], counts: Sequence[int], explores: bool
) -> None:
    for place, each in enumerate(labelled):
        label(store, each, place=place)
    assert (asker(store, RANKED, counts).ask(1)[0].box is None) is explores
    assert asker(store, RANKED, counts, **{"selection.exploration": 0.0}).ask(1)[0].box is not None


def test_an_example_of_this_cycle_does_not_end_exploring(store: Store) -> None:
    """So what is asked does not depend on when the process was restarted."""
    label(store, 1)
    label(store, 2, place=7)
    label(store, 0, place=6, cycle=2)
    assert asker(store, RANKED, (9, 9, 9)).ask(1)[0].box is None


def test_exploring_spends_its_fraction_of_the_budget_and_says_so(store: Store) -> None:
    now, asked = asker(store, RANKED, (9, 0, 9)), list[Query]()
    while len(asked) < 12:
        asked += now.ask(1)
        answer(store, asked[-1:])
    whole = [query.box is None for query in asked]
    assert whole == [True] * 10 + [False] * 2  # a fifth of 50 reviews
    assert {query.why["cycle"] for query in asked if query.why} == {2}


def test_a_class_that_was_merged_is_not_explored_for_and_a_new_one_is(store: Store) -> None:
    label(store, 0)
    label(store, 2, place=7)
    People(store).merge_class(1, 2, "anna")
    now = asker(store, RANKED, (9, 0, 9))
    assert now.ask(1)[0].box is not None
    People(store).add_class("eel")
    now.see_classes()
    (query,) = now.ask(1)
    assert query.box is None


# ------------------------------------------------------------------------------------------- boxes of other detectors


def added(rows: Sequence[tuple[int, int, int]], scores: Sequence[float]) -> Candidates:
    """Another detector's boxes from (image, place in the image, label)."""
    found = table(rows)
    return as_candidates(found.image_id, found.boxes, found.labels, np.array(scores, np.float32))


SHARKS = added([(30 + i, i % 3, 2) for i in range(8)], np.linspace(0.4, 0.9, 8).tolist())


def known_but_shark(store: Store) -> None:
    label(store, 0)
    label(store, 1, place=7)


def asks(store: Store, found: Candidates | None, most: int = 10, **changes: Any) -> list[Query]:
    """The questions of a cycle, asked and rejected one after the other."""
    asked: list[Query] = []
    while len(asked) < most:  # each time as after a restart
        asked += asker(store, RANKED, (20, 9, 0), found, **changes).ask(1)
        answer(store, asked[-1:])
    return asked


def test_added_boxes_of_a_class_without_examples_get_their_fraction_of_the_questions(store: Store) -> None:
    known_but_shark(store)
    asked = asks(store, SHARKS)
    assert [query.guess for query in asked] == [2, 0, 0, 2, 0, 0, 2, 0, 0, 0]  # 3 of 10
    assert [query.image_id for query in asked if query.guess == 2] == [37, 36, 35]  # best first
    why = asked[0].why or {}
    assert why["added"] == pytest.approx(0.9)
    assert "score" not in why  # it must not calibrate the scores of our detector
    without = {"selection.added": 0.0, "selection.exploration": 0.0}
    assert {query.guess for query in asks(store, SHARKS, 4, **without)} == {0}


def test_many_questions_at_once_hold_the_fraction_too(store: Store) -> None:
    known_but_shark(store)
    asked = asker(store, RANKED, (20, 9, 0), SHARKS).ask(10)
    assert sorted(query.guess or 0 for query in asked) == [0] * 7 + [2] * 3


def test_a_class_with_added_boxes_is_not_explored_for(store: Store) -> None:
    known_but_shark(store)
    assert asks(store, None, 1)[0].box is None
    assert asks(store, SHARKS, 1)[0].box is not None


def test_an_added_box_that_a_label_settles_or_that_was_asked_is_not_asked_again(store: Store) -> None:
    known_but_shark(store)
    label(store, 0, image_id=30, place=0)
    (moved,) = store.ask(1, [Query(31, box(1), 2)])
    store.record([Answer(moved.id, box(5)[None], np.array([0]), Verdict.OBJECT)])  # the person moved the box far
    two = added([(30, 0, 2), (31, 1, 2), (32, 2, 2)], [0.9, 0.8, 0.7])
    assert [query.image_id for query in asks(store, two, 6) if query.guess == 2] == [32]


def test_classes_take_turns_and_each_image_gives_its_best_box_first() -> None:
    rows = [(1, 0, 0), (1, 1, 0), (2, 0, 0), (3, 0, 1), (3, 1, 2)]
    order = in_turn(table(rows, [9, 8, 7, 6, 5]))
    named = zip(order.image_id.tolist(), order.labels.tolist(), order.scores.tolist(), strict=True)
    assert [*named] == [(1, 0, 9), (3, 1, 6), (3, 2, 5), (2, 0, 7), (1, 0, 8)]


def test_added_boxes_are_ranked_with_the_pool_where_no_candidate_is(store: Store) -> None:
    settings = config.resolve("laptop", None, {**config.PROJECT, "selection.strategy": "uncertainty"})
    ours = table([(1, 0, 0), (2, 0, 0)], [0.9, 0.05])
    others = added([(1, 0, 1), (1, 4, 1), (2, 0, 1)], [0.8, 0.5, 0.3])
    pool = with_added(Shards([ours], np.arange(3)), others, settings)
    state, counts = label_state(settings, 9, {}, pool, ImageScores.none(3))
    queue = head(settings, pool, {}, state, lambda: np.random.default_rng(0))
    rows = [item[0] for place in range(9) if (item := queue(place))]
    found = [(int(queue.candidates.image_id[row]), int(queue.candidates.labels[row])) for row in rows]
    # The first added box is our first candidate; our second one is too weak to be asked about.
    assert sorted(found) == [(1, 0), (1, 1), (2, 1)]
    assert counts.tolist() == [1, 2, 0]
    (query,) = asker(store, queue.candidates[rows[1:2]], (1, 2, 0), **{"selection.exploration": 0.0}).ask(1)
    assert (query.why or {}).keys() == {"rank", "cycle", "added"}
    vectors = config.resolve("laptop", None, {"selection.strategy": "entropy"})
    assert with_added(Shards([ours]), others, vectors).parts == [ours]
