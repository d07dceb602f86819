"""How likely a box shows an object, by the answers of the cycle before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rarebox.labels.store import Store
from rarebox.loop import hits
from rarebox.method import hit_evidence, hit_probability
from rarebox.pool.candidates import Shards
from rarebox.types import Answer, Bools, Candidates, Floats, ImageRecord, Query, Verdict


def box(x: float) -> list[float]:
    return [x, 0, x + 10, 10]


def candidates(image_id: int, scores: dict[float, float]) -> Candidates:
    """Boxes of one image: place -> score. Every u(b) is 0.4 and every cons(b) 0.9."""
    some = np.arange(len(scores))
    boxes = np.array([box(x) for x in scores])
    known, unsure, steady = np.array([*scores.values()]), np.full(len(scores), 0.4), np.full(len(scores), 0.9)
    return Candidates(some * 0 + image_id, some, boxes, some * 0, known, unsure, steady, known[:, None])


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
    why = {"score": score, "uncertainty": 0.4, "box_consistency": 0.9}
    [query] = store.ask(cycle, [Query(image_id, np.array(box(0), np.float32), 0, why=why)])
    boxes = [box(0)] if verdict is Verdict.OBJECT else np.zeros((0, 4))
    store.record([Answer(query.id, np.array(boxes), np.zeros(len(boxes), int), verdict)])


def learnt(scores: list[float], right: list[bool]) -> Floats:
    """The weights after these answers about boxes with u(b) = 0.4 and cons(b) = 0.9."""
    known = hit_evidence(np.array(scores), np.full(len(scores), 0.4), np.full(len(scores), 0.9))
    return hits.fit(known, np.array(right, dtype=bool))


def test_every_candidate_of_a_whole_image_counts(run: Any) -> None:
    [query] = run.store.ask(2, [Query(1)])
    run.store.record([Answer(query.id, np.array([box(1), box(20)]), np.array([0, 0]), Verdict.OBJECT)])
    # 0.9 is an object, one of two at 0.6, and 0.05 is below the threshold. Image 2 was not asked about.
    expected = learnt([0.9, 0.6, 0.6], [True, True, False])
    assert hits.hit_weights(run, 3) == pytest.approx(expected, abs=1e-4)
    assert np.abs(expected).max() > 0.01


def test_labels_from_other_answers_of_a_complete_image_count(run: Any) -> None:
    """The page marks an image complete by an answer without boxes."""
    asked(run.store, 2, 1, 0.9, Verdict.OBJECT)
    [whole] = run.store.ask(2, [Query(1, asked_by="anna")])
    run.store.record([Answer(whole.id, np.zeros((0, 4)), np.zeros(0, int), Verdict.OBJECT, "anna")])
    expected = learnt([0.9, 0.9, 0.6, 0.6], [True, True, False, False])
    assert hits.hit_weights(run, 3) == pytest.approx(expected, abs=1e-4)


def test_boxes_that_were_asked_about_count_unless_nobody_could_tell(run: Any) -> None:
    asked(run.store, 2, 3, 0.5, Verdict.OBJECT)
    asked(run.store, 2, 4, 0.7, Verdict.NOT_AN_OBJECT)
    asked(run.store, 2, 5, 0.8, Verdict.CANNOT_TELL)
    asked(run.store, 1, 2, 0.3, Verdict.OBJECT)  # in another cycle
    [other] = run.store.ask(2, [Query(2, np.array(box(50), np.float32), 0, why={"added": 0.9})])  # another detector's
    run.store.record([Answer(other.id, np.array([box(50)]), np.array([0]), Verdict.OBJECT)])
    assert hits.hit_weights(run, 3) == pytest.approx(learnt([0.5, 0.7], [True, False]), abs=1e-4)


def test_before_the_first_answers_scores_are_probabilities(run: Any) -> None:
    for cycle in (2, 3):
        assert hits.hit_weights(run, cycle).tolist() == [0, 0, 0]


def test_the_fit_is_the_penalised_maximum_of_the_likelihood() -> None:
    known = hit_evidence(np.full(4, 0.5), np.full(4, 0.5), np.full(4, 0.5))  # the evidence is (0, 1, 0, 0)
    weights = hits.fit(known, np.array([True, True, True, False]))
    assert weights[1:] == pytest.approx([0, 0])
    assert hits.RIDGE * weights[0] == pytest.approx(3 - 4 / (1 + np.exp(-weights[0])), abs=1e-4)
    assert 0.5 < hit_probability(known, weights)[0] < 0.75  # four answers do not reach 3 of 4


def _pool(dice: np.random.Generator, count: int) -> tuple[Floats, Bools, Floats]:
    """Evidence on boxes whose scores are twice too high and say less than u(b), what they show, and their u(b)."""
    score, unsure, steady = dice.uniform(0.1, 0.9, count), dice.uniform(0, 1, count), dice.uniform(0, 1, count)
    true = 1 / (1 + np.exp(-(np.log(score / (1 - score)) - 2 + 3 * unsure + steady)))
    return hit_evidence(score, unsure, steady), dice.random(count) < true, unsure


def test_answers_chosen_by_uncertainty_do_not_bias_the_probability() -> None:
    bias, of_answers = [], []
    for seed in range(8):
        dice = np.random.default_rng(seed)
        known, right, unsure = _pool(dice, 4000)
        chosen = np.argsort(-unsure * dice.random(4000) ** 2)[:400]
        bias.append(hit_probability(known, hits.fit(known[chosen], right[chosen])).mean() - right.mean())
        of_answers.append(right[chosen].mean() - right.mean())
    assert np.mean(of_answers) > 0.15
    assert abs(np.mean(bias)) < 0.04
    assert np.abs(bias).max() < 0.1
