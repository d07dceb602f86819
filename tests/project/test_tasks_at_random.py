"""Random edits in several tasks about one photo and on the page, imported in any order: what always holds."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from rarebox.data.review import Batch, Region, Returned
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.project.exchange.importing import bring_in
from rarebox.types import Answer, Floats, ImageRecord, Verdict
from tests.thinned import first_seeds

OBJECTS = 3
"""Objects on the photo, 60 pixels apart. Each box is 40 pixels wide and at most 6 pixels off."""


@dataclass(frozen=True)
class Drawn:
    """A box in a task. ``key`` is its lasting id there; CVAT has none."""

    object: int
    shift: int
    label: int
    key: str

    @property
    def box(self) -> tuple[float, float, float, float]:
        left = 10 + 60 * self.object + self.shift
        return left, 10, left + 40, 50


@dataclass
class Task:
    """A task of a tool, and what it held when it was last imported."""

    number: int
    by: str
    tool: str
    drawn: list[Drawn] = field(default_factory=list[Drawn])
    imported: list[Drawn] = field(default_factory=list[Drawn])

    def edit(self, chance: random.Random, most: int) -> None:
        """Draw, delete, move or reclassify a box, move it to another object, or draw it anew."""
        here = chance.choice(self.drawn) if self.drawn else None
        free = [n for n in range(OBJECTS) if sum(one.object == n for one in self.drawn) < most]
        key = f"{chance.random()}" if self.tool == "labelstudio" else ""
        what = chance.randrange(6) if here else 0
        if not here or what < 2:
            if free:
                self.drawn.append(Drawn(chance.choice(free), chance.randrange(7), chance.randrange(2), key))
            return
        self.drawn.remove(here)
        if what == 3:
            self.drawn.append(replace(here, shift=chance.randrange(7), label=chance.randrange(2)))
        elif what == 4 and free:
            self.drawn.append(replace(here, object=chance.choice(free)))
        elif what == 5:
            self.drawn.append(replace(here, key=key))

    def bring_in(self, store: Store, instead: bool = False) -> None:
        regions = tuple(Region(one.box, ("cat", "dog")[one.label], None, one.key) for one in self.drawn)
        returned = Returned("file", "img_1.png", None, (200, 100), (), regions, self.by, task=str(self.number))
        bring_in(store, Batch([returned]), self.tool, instead=instead)
        self.imported = [*self.drawn]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite", classes=("cat", "dog"), flush=False) as made:
        made.add_images([ImageRecord(1, "/photos/img_1.png", 200, 100)])
        yield made


def correct_on_page(store: Store, chance: random.Random) -> int | None:
    """Reject, withdraw or move a label on the page. Return its object."""
    labels = [(query, answer) for query, answer in store.answered() if len(answer.boxes)]
    if not labels:
        return None
    query, answer = chance.choice(labels)
    verdict = chance.choice([Verdict.OBJECT, Verdict.OBJECT, Verdict.NOT_AN_OBJECT, Verdict.WITHDRAWN])
    is_object = verdict is Verdict.OBJECT
    boxes = answer.boxes + np.float32(chance.choice([0.5, 1.5])) * np.array([1, 0, 1, 0], np.float32)
    by = answer.by if verdict is Verdict.WITHDRAWN else chance.choice(["Ann", "Bob", "Cy"])
    store.record(
        [Answer(query.id, boxes[: len(boxes) * is_object], answer.labels[: len(boxes) * is_object], verdict, by)]
    )
    return object_of(answer.boxes[0])


def object_of(box: Floats) -> int:
    return int((box[0] - 5) // 60)


def labels(store: Store, number: int) -> list[tuple[float, int]]:
    """The left edge and class of each label of an object."""
    found = store.labels_of(1)
    pairs = zip(found.boxes, found.labels.tolist(), strict=True)
    return sorted((float(box[0]), label) for box, label in pairs if object_of(box) == number)


def on(boxes: list[Drawn], number: int) -> list[tuple[float, int]]:
    return sorted((one.box[0], one.label) for one in boxes if one.object == number)


@pytest.mark.parametrize("page", [False, True], ids=["tasks", "page"])
@pytest.mark.parametrize("most", [1, 2], ids=["single", "doubles"])
@pytest.mark.parametrize("seed", first_seeds(4))
def test_imports_in_any_order(seed: int, most: int, page: bool, store: Store) -> None:
    chance = random.Random(f"{seed} {most} {page}")
    tasks = [Task(7, "Ann", "cvat"), Task(8, "Bob", "cvat"), Task(9, "Ann", "cvat"), Task(1, "Bob", "labelstudio")]
    corrected = set[int]()
    for _ in range(25):
        if page and chance.random() < 0.2:
            corrected.add(correct_on_page(store, chance) or 0)
            continue
        task = chance.choice(tasks)
        for _ in range(chance.randrange(3)):
            task.edit(chance, most)
        before = {number: labels(store, number) for number in range(OBJECTS)}
        changed = {n for n in range(OBJECTS) if on(task.imported, n) != on(task.drawn, n)}
        instead = page and chance.random() < 0.1
        corrected |= {*range(OBJECTS)} if instead else set()
        task.bring_in(store, instead)
        for number in range(OBJECTS):
            now = labels(store, number)
            held = [on(each.imported, number) for each in tasks]
            assert len(now) <= (most if number in corrected else max(map(len, held))), "one label for each object"
            if number not in changed and not instead:
                assert now == before[number], "a task that has changed nothing says nothing"
            if number not in corrected:
                assert {*now} <= {*chain(*held)}, "a label is a box of a task"
                assert bool(now) == any(held), "an object keeps a label until each task has deleted its box"
        answers = len(People(store).given())
        task.bring_in(store, instead)
        assert len(People(store).given()) == answers, "the same file again changes nothing"
