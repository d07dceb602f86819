"""Which questions a cycle asks besides those of the ranking: whole images for classes that nothing finds."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox import config
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop.rules import CycleAsker
from rarebox.pool.ranking import LazyRanking
from rarebox.types import Answer, Candidates, ImageRecord, Query, Verdict

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


def asker(store: Store, found: Candidates, counts: Sequence[int], cycle: int = 2, **changes: Any) -> CycleAsker:
    settings = config.resolve("laptop", None, {**config.PROJECT, **changes})
    queue = LazyRanking.of(found, enumerate(found.uncertainty.tolist()))
    return CycleAsker(settings, store, cycle, queue, np.array(counts), lambda: store.images())


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
