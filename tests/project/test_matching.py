"""Matching many boxes: the results of comparing all pairs, in little memory."""

import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rarebox.core import boxes as core_boxes
from rarebox.core.boxes import iou_matrix
from rarebox.data.review import Region
from rarebox.project.exchange import matching
from rarebox.types import Answer, Query, Verdict


def all_pairs_unmoved(boxes: np.ndarray, others: np.ndarray) -> Any:
    return np.nonzero(np.abs(boxes[:, None] - others).max(axis=2) <= matching.STILL)


def all_pairs_near(boxes: np.ndarray, others: np.ndarray, iou: float) -> Any:
    found = iou_matrix(boxes, others)
    rows, columns = np.nonzero(found >= iou)
    return rows, columns, found[rows, columns]


def most_alike(
    boxes: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray
) -> list[tuple[int, int, bool]]:
    """All pairs, sorted by one number: 2 for the same box and class, plus the IoU."""
    still = np.abs(boxes[:, None] - others).max(axis=2) <= matching.STILL
    worth = iou_matrix(boxes, others) + 2 * (still & (labels[:, None] == other_labels))
    order = [divmod(int(n), len(others)) for n in np.argsort(-worth, axis=None, kind="stable")]
    return [(row, column, bool(worth[row, column] >= 2)) for row, column in order if worth[row, column] >= 0.5]


def crowd(chance: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of which many are the same, nearly the same, smaller than `STILL`, or overlap."""
    corner = chance.integers(0, 5, (count, 2)) * chance.choice([1, 3, 0.04])
    return np.hstack([corner, corner + chance.choice([0.06, 1, 5, 8], (count, 2))]).astype(np.float32)


def region(box: np.ndarray, held: int | None) -> Region:
    return Region(tuple(box.tolist()), "cat", None, "", held)


def answers(chance: np.random.Generator, boxes: np.ndarray, labels: list[int], most: int) -> list[Answer]:
    """Answers of 0 to ``most`` boxes each; a few queries have several."""
    cuts = np.cumsum(chance.integers(0, most + 1, len(boxes)))
    parts = zip(np.split(boxes, cuts), np.split(np.array(labels, np.int64), cuts), strict=True)
    return [Answer(int(chance.integers(1, 30)), *part, Verdict.OBJECT, "Ann") for part in parts]


def matched(seed: int) -> list[Any]:
    """What the three functions find in a crowd."""
    chance = np.random.default_rng(seed)
    many, fewer = chance.integers(0, 120, 2)
    boxes, places = crowd(chance, many), crowd(chance, fewer)
    labels, classes = chance.integers(0, 2, many).tolist(), chance.integers(0, 2, fewer).tolist()
    regions = [region(box, int(chance.integers(0, fewer + 3)) if chance.random() < 0.5 else None) for box in boxes]
    free = np.flatnonzero(chance.random(many) < 0.8).tolist()
    past = answers(chance, places, classes, 3)
    latest = {answer.query_id: answer for answer in past}
    known: Any = SimpleNamespace(latest=latest.get)
    labelled = matching.match_labelled(boxes, labels, free, {n: Query(1, id=n) for n in latest}, known)
    return [
        matching.match_held(regions, boxes, labels, free, places.astype(np.float64), classes),
        matching.labels_before(boxes.astype(np.float64), labels, past, past[::2], (30, 30)),
        [(row, query.id, *rest) for row, (query, *rest) in labelled.items()],
    ]


def test_the_matches_are_those_of_all_against_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [matched(seed) for seed in range(60)]
    monkeypatch.setattr(matching, "unmoved", all_pairs_unmoved)
    monkeypatch.setattr(matching, "all_overlapping", all_pairs_near)
    monkeypatch.setattr(core_boxes, "all_overlapping", all_pairs_near)  # for pair_up
    monkeypatch.setattr(
        matching, "_by_likeness", lambda *crowds: np.array(most_alike(*crowds), np.int64).reshape(-1, 3).T
    )
    assert found == [matched(seed) for seed in range(60)]
    assert all(any(len(parts[n]) for parts in found) for n in range(3))


def test_many_labels_on_one_photo_take_little_memory() -> None:
    """Comparing all pairs of 4,000 boxes would take 512 MB for the distances alone."""
    left, top = np.divmod(np.arange(4000), 64) * np.array([[20], [20]])
    boxes = np.stack([left, top, left + 15, top + 15], axis=1).astype(np.float32)
    labels = [0] * len(boxes)
    said = [Answer(n + 1, box[None], np.array([0]), Verdict.OBJECT, "Ann") for n, box in enumerate(boxes)]
    known: Any = SimpleNamespace(latest=lambda number: said[number - 1])
    ours = {answer.query_id: Query(1, id=answer.query_id) for answer in said}
    every = range(len(boxes))
    tracemalloc.start()
    same, _ = matching.match_held([region(box, None) for box in boxes], boxes, labels, every, boxes, labels)
    before = matching.labels_before(boxes, labels, said, said, (2000, 2000))
    labelled = matching.match_labelled(boxes, labels, every, ours, known)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same == {n: n for n in every}
    assert before == {n: n + 1 for n in every}
    assert {n: query.id for n, (query, *_) in labelled.items()} == before
    assert peak < 60 * 2**20
