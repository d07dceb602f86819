"""Boxes like an example, against cosines by hand."""

from pathlib import Path

import numpy as np
import pytest

from rarebox.labels.store import Store
from rarebox.pool import similar
from rarebox.pool.asker import Asker
from rarebox.pool.ranking import LazyRanking
from rarebox.pool.similar import BoxFeatures, Search, most_similar, rows_of, similarity
from rarebox.types import Answer, Candidates, ImageRecord, Query, Verdict

BOXES = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10], [20, 0, 30, 10]], dtype=np.float32)


def test_a_box_is_as_similar_as_to_its_nearest_example() -> None:
    features = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0], [np.nan, np.nan]])
    assert similarity(features, np.array([[1.0, 0.0]])).tolist() == pytest.approx([1, 0, 0.6, -1, -1])
    both = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert similarity(features, both).tolist() == pytest.approx([1, 1, 0.8, 0, -1])
    assert similarity(features, both[:0]).tolist() == [-1] * 5


def test_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features, examples = np.split(np.random.default_rng(0).standard_normal((30, 4)), [23])
    at_once = similarity(features, examples)
    monkeypatch.setattr(similar, "PIECE", 5)
    assert similarity(features, examples).tolist() == at_once.tolist()


def test_the_most_similar_come_first_down_to_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    cosines = np.array([0.7, 0.59, 0.9, -1, 0.6, 0.9])
    assert most_similar(cosines).tolist() == [2, 5, 0, 4]
    assert most_similar(cosines, 0.95).tolist() == []
    monkeypatch.setattr(similar, "MOST_TRIED", 3)
    assert most_similar(cosines).tolist() == [2, 5, 0]


def test_a_box_has_the_features_of_the_known_one_on_its_image_that_overlaps_it_most() -> None:
    known = BoxFeatures(np.array([1, 1, 2, 2]), BOXES, np.array([[1, 0], [0, 1], [1, 0], [np.nan, np.nan]]))
    shifted = np.array([[0, 0, 10, 8], [0, 0, 10, 20], [0, 0, 10, 21], [20, 0, 30, 10], [0, 0, 10, 10]])
    images = np.array([2, 1, 1, 2, 3])  # IoU 0.8, 0.5 and less; then without features, and on an unknown image
    assert [rows_of(known, images[i : i + 1], shifted[i : i + 1]).tolist() for i in range(5)] == [[2], [0], [], [], []]
    assert rows_of(known, np.array([1, 1]), BOXES[[1, 1]]).tolist() == [1]


@pytest.fixture
def asker(tmp_path: Path) -> Asker:
    """Four boxes on two images, in this order; two on each."""
    store = Store(tmp_path / "labels.sqlite", classes=("fish", "ray"))
    store.add_images([ImageRecord(i, f"{i}.jpg", 100, 100) for i in (1, 2)])
    store.open_cycle(1)
    numbers = np.linspace(0.1, 0.4, 4)
    found = Candidates(
        np.array([1, 1, 2, 2]), np.arange(4), BOXES, np.zeros(4, int), numbers, numbers, numbers, np.zeros((4, 0))
    )
    return Asker(store, 1, LazyRanking.of(found, enumerate([4.0, 3.0, 2.0, 1.0])), 0.5)


def test_boxes_of_a_search_are_asked_about_before_their_turn_and_once(asker: Asker) -> None:
    search = Search(1, 1, {3: 0.9, 2: 0.8})
    (first,) = asker.ask_ahead(search, 1)
    assert (first.image_id, first.guess, first.utility) == (2, 1, 1.0)
    assert first.box is not None
    assert first.box.tolist() == BOXES[3].tolist()
    assert first.why == {"rank": 3, "cycle": 1, "similarity": 0.9}  # no score: that is one of another guess
    assert search.found(first.why)
    assert not search.found({"rank": 3.0})
    (second,) = asker.ask_ahead(search, 9)  # on the same image, whose other box is still open
    assert second.why == {"rank": 2, "cycle": 1, "similarity": 0.8}
    assert asker.ask_ahead(search, 9) == []
    rest = [query.why["rank"] for _ in range(4) for query in asker.ask(4, skip_busy=True) if query.why]
    assert rest == [0]  # the other one waits for it, and those of the search come no second time
    again = Asker(asker.store, 1, asker.queue, 0.5)  # after a restart
    assert again.unasked(range(4)) == [1]


def test_without_a_class_the_detectors_guess_is_offered(asker: Asker) -> None:
    (query,) = asker.ask_ahead(Search(1, None, {0: 0.7}), 1)
    assert query.guess == 0


def test_settled_boxes_are_left_out_and_those_under_an_open_question_wait(asker: Asker) -> None:
    asker.store.ask(1, [Query(1, BOXES[1] + 1), Query(1, BOXES[0] + 1), Query(2)])
    assert asker.free(range(4), 9) == []  # a box or the whole image is being asked about
    assert asker.unasked(range(4)) == [0, 1, 2, 3]
    label = np.array([0])
    asker.store.record([Answer(1, BOXES[1:2], label, Verdict.OBJECT), Answer(3, BOXES[2:3], label, Verdict.OBJECT)])
    asker.store.record([Answer(2, BOXES[:0], label[:0], Verdict.NOT_AN_OBJECT)])
    assert asker.free(range(4), 9) == []  # settled by an answer, nearby or for the whole image
    assert asker.unasked(range(4)) == []


def test_only_as_many_places_as_wanted_are_free(asker: Asker) -> None:
    assert asker.free([2, 0, 1], 2) == [2, 0]
    assert asker.free([2, 0, 1], 0) == []
