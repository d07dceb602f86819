"""The rules that a simulation and a project share: what a cycle may spend, what it explores, what is held out.

The simulation, the trainer, the server and the exchange with other tools call these functions. None of them has its own
rules.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from rarebox.config import Settings
from rarebox.core import seeds
from rarebox.labels.store import Store
from rarebox.loop.metrics import Meter
from rarebox.pool.asker import Asker
from rarebox.pool.ranking import LazyRanking, joined
from rarebox.types import Bools, Ints, Query

HELD_OUT = 0.2
"""Fraction of the images that is held out for evaluation where a data set names no test images."""


FEWEST_TO_HOLD_OUT = 5
"""With fewer images that people have labelled fully, none is held out: training needs them all (decisions row 33)."""


@dataclass(frozen=True)
class Budget:
    """What one cycle may spend and has spent, in the unit of the budget; ``open`` counts its unanswered questions."""

    total: int
    spent: int
    open: int

    @property
    def left(self) -> int:
        """The unspent part. Negative if the last whole image exceeded the budget (decisions row 15)."""
        return self.total - self.spent

    @property
    def to_ask(self) -> int:
        """How many further questions the budget allows, each of them and each open one counted as 1."""
        return self.left - self.open


Counter = Callable[[Meter | Literal["asked", "open"]], int]
"""Counts for one cycle: the questions that a strategy asked, those that are still open, or what the answers cost."""


def budget_of(settings: Settings, cycle: int, count: Counter) -> Budget:
    """The budget of a cycle. Cycle 1 spends one for each image that it asks about."""
    open_ones = count("open")
    if cycle <= 1:
        asked = count("asked")
        return Budget(asked, asked - open_ones, open_ones)
    return Budget(total_of(settings, cycle), count(settings.budget_unit), open_ones)


def total_of(settings: Settings, cycle: int) -> int:
    """What a cycle after the first may spend. The last value of ``budget`` applies to all later cycles."""
    return settings.budget[min(cycle - 2, len(settings.budget) - 1)]


def counts_in(store: Store, cycle: int) -> Counter:
    """Counts one cycle of a store."""

    def count(what: Meter | Literal["asked", "open"]) -> int:
        if what == "asked":
            return sum(query.asked_by is None for query in store.queries(cycle))
        if what == "open":
            return len(store.unanswered(cycle))
        spent = store.spent(cycle)
        return spent.labels if what == "labels" else spent.reviews

    return count


def held_out(seed: int, count: int, fewest: int = 2) -> list[int]:
    """Which of ``count`` images are held out for evaluation: ascending places of a random fifth, at least one.

    None of them if there are fewer than ``fewest``.
    """
    if count < fewest:
        return []
    chosen = seeds.stream(seed, "held out").permutation(count)[: max(1, round(HELD_OUT * count))]
    return sorted(chosen.tolist())


def images_to_explore(settings: Settings, store: Store, cycle: int, pool: Iterable[int]) -> list[int]:
    """The images of the pool without any label from an earlier cycle, in the random order of exploration."""
    before = store.labels(up_to_cycle=cycle - 1)
    unlabelled = sorted(image_id for image_id in pool if image_id not in before)
    return [int(i) for i in seeds.stream(settings.seed, "explore", cycle).permutation(unlabelled)]


def live_classes(store: Store) -> Bools:
    """Which classes were not merged into another: (K,)."""
    counts_as = store.counts_as()
    return counts_as == np.arange(len(counts_as))


def examples_per_class(store: Store, cycle: int) -> Ints:
    """The human boxes of each class from the cycles before this one: (K,)."""
    said = [labels.labels for labels in store.labels(up_to_cycle=cycle - 1).values()]
    return np.bincount(joined(said), minlength=len(store.counts_as()))


class CycleAsker(Asker):
    """Asks the questions of one cycle: random whole images while exploration is due, then boxes from the ranking.

    Exploration spends the fraction ``selection.exploration`` of the budget while some class has no candidate or no
    example from an earlier cycle, because the detector cannot ask about what it never predicts (decisions row 29). It
    asks about one image at a time: its cost is unknown before it is labelled, so the last one may exceed the fraction
    and the budget.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        cycle: int,
        queue: LazyRanking,
        open_per_class: Ints,
        pool: Callable[[], Iterable[int]],
        wanted: Callable[[int], int] = lambda place: 1,
    ) -> None:
        """``open_per_class`` (K,) counts the open candidates, ``pool`` returns the ids of the images that may be asked
        about, and ``wanted`` how many people answer the question at a place of the ranking."""
        super().__init__(store, cycle, queue, settings.selection.answered_iou, wanted)
        self._settings, self._pool, self._open = settings, pool, open_per_class
        self._to_explore = 0.0
        self.see_classes()

    def see_classes(self) -> None:
        """Decide what to explore for, when the cycle begins and when somebody has added a class."""
        if not (fraction := self._settings.selection.exploration):
            return
        examples = examples_per_class(self.store, self.cycle)
        known = examples * np.pad(self._open, (0, len(examples) - len(self._open)))
        lacking = not known[live_classes(self.store)].all()
        self._to_explore = fraction * total_of(self._settings, self.cycle) if lacking else 0.0

    def ask(self, most: int, skip_busy: bool = False, busy: Iterable[int] | None = None) -> list[Query]:
        """Ask up to ``most`` questions and return them, at most one while exploration is due.

        While an explored image is unanswered, nothing else is asked unless ``skip_busy``.
        """
        if most < 1 or not self._to_explore:
            return super().ask(most, skip_busy, busy)
        whole = {query.image_id for query in self.store.queries(self.cycle) if query.box is None}
        image_id = next((i for i in self._order if i not in whole), None)
        if image_id is None or self._explored() >= self._to_explore:
            self._to_explore = 0.0
        elif all(query.box is not None for query in self.store.unanswered(self.cycle)):
            return self.store.ask(self.cycle, [Query(image_id, why={"cycle": self.cycle})])
        elif not skip_busy:
            return []
        return super().ask(most, skip_busy, busy)

    @cached_property
    def _order(self) -> list[int]:
        return images_to_explore(self._settings, self.store, self.cycle, self._pool())

    def _explored(self) -> int:
        """What the cycle has spent on whole images; one without an object costs one review."""
        boxes = [len(answer.boxes) for query, answer in self.store.answered(self.cycle) if query.box is None]
        return sum(boxes) if self._settings.budget_unit == "labels" else sum(max(count, 1) for count in boxes)
