"""How often a score means an object, from the answers of the cycle before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rarebox.labels.store import Store
from rarebox.loop import hits
from rarebox.pool.candidates import Shards
from rarebox.types import Answer, Candidates, ImageRecord, Query, Verdict


def box(x: float) -> list[float]:
    return [x, 0, x + 10, 10]


def candidates(image_id: int, scores: dict[float, float]) -> Candidates:
    """Boxes of one image: place -> score."""
    some = np.arange(len(scores))
    boxes = np.array([box(x) for x in scores])
    zeros, known = np.zeros(len(scores)), np.array([*scores.values()])
    return Candidates(some * 0 + image_id, some, boxes, some * 0, known, zeros, zeros, zeros[:, None])


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A run in its third cycle. The pool of the second held candidates on images 1 and 2."""
    pool = [candidates(1, {0: 0.9, 20: 0.6, 40: 0.6, 60: 0.05}), candidates(2, {0: 0.9})]
    monkeypatch.setattr(hits, "scored_pool", lambda run, cycle: Shards(pool) if cycle == 2 else Shards([]))
    with Store(tmp_path / "labels.sqlite", classes=("cat",), flush=False) as store:
        store.add_images(ImageRecord(i, f"{i}.jpg", 100, 100) for i in range(1, 6))
        store.open_cycle(1)
        store.open_cycle(2)
        settings = SimpleNamespace(scoring=SimpleNamespace(candidate_threshold=0.1), oracle=SimpleNamespace(iou=0.5))
        yield SimpleNamespace(store=store, settings=settings)


def asked(store: Store, cycle: int, image_id: int, score: float, verdict: Verdict) -> None:
    """Ask about one box, and answer."""
    [query] = store.ask(cycle, [Query(image_id, np.array(box(0), np.float32), 0, why={"score": score})])
    boxes = [box(0)] if verdict is Verdict.OBJECT else np.zeros((0, 4))
    store.record([Answer(query.id, np.array(boxes), np.zeros(len(boxes), int), verdict)])


def test_every_candidate_of_a_whole_image_counts(run: Any) -> None:
    [query] = run.store.ask(2, [Query(1)])
    run.store.record([Answer(query.id, np.array([box(1), box(20)]), np.array([0, 0]), Verdict.OBJECT)])
    # 0.9 is an object, one of two at 0.6, and 0.05 is below the threshold. Image 2 was not asked about.
    assert np.interp([0, 0.6, 0.9], *hits.hit_map(run, 3)) == pytest.approx([0, 0.5, 1])


def test_labels_from_other_answers_of_a_complete_image_count(run: Any) -> None:
    """The page marks an image complete by an answer without boxes."""
    asked(run.store, 2, 1, 0.9, Verdict.OBJECT)
    [whole] = run.store.ask(2, [Query(1, asked_by="anna")])
    run.store.record([Answer(whole.id, np.zeros((0, 4)), np.zeros(0, int), Verdict.OBJECT, "anna")])
    assert np.interp(0.9, *hits.hit_map(run, 3)) == pytest.approx(1)


def test_boxes_that_were_asked_about_count_unless_nobody_could_tell(run: Any) -> None:
    asked(run.store, 2, 3, 0.5, Verdict.OBJECT)
    asked(run.store, 2, 4, 0.5, Verdict.NOT_AN_OBJECT)
    asked(run.store, 2, 5, 0.8, Verdict.CANNOT_TELL)
    asked(run.store, 1, 2, 0.3, Verdict.OBJECT)  # in another cycle
    assert np.interp([0, 0.5, 1], *hits.hit_map(run, 3)).tolist() == [0, 0.5, 1]
    assert np.interp(0.8, *hits.hit_map(run, 3)) == pytest.approx(0.5 + 0.5 * 0.3 / 0.5)  # no point of the map


def test_before_the_first_answers_scores_are_probabilities(run: Any) -> None:
    for cycle in (2, 3):
        assert np.interp([0, 0.3, 1], *hits.hit_map(run, cycle)).tolist() == [0, 0.3, 1]
