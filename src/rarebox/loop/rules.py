"""The rules that a simulation and a project share: what a cycle may spend, what it explores, what is held out.

The simulation, the trainer, the server and the exchange with other tools call these functions. None of them has its own
rules.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from rarebox.config import CostSettings, Settings
from rarebox.core import seeds
from rarebox.labels.cost import bill, dearest_box, milliseconds
from rarebox.labels.store import Store
from rarebox.loop.metrics import Meter
from rarebox.pool.asker import Asker
from rarebox.pool.ranking import LazyRanking, joined
from rarebox.strategies import IMAGE
from rarebox.types import Bools, Candidates, ImageLabels, Ints, Query

HELD_OUT = 0.2
"""Fraction of the images that is held out for evaluation where a data set names no test images."""


FEWEST_TO_HOLD_OUT = 5
"""With fewer images that people have labelled fully, none is held out: training needs them all (decisions row 33)."""


@dataclass(frozen=True)
class Budget:
    """What one cycle may spend and has spent, in the unit of the budget.

    ``open`` counts its unanswered questions. ``most_each`` is the most that a question is expected to cost.
    """

    total: int
    spent: float
    open: int
    most_each: float = 1

    @property
    def left(self) -> float:
        """The unspent part. Negative if the last question exceeded the budget (decisions row 15)."""
        return self.total - self.spent

    @property
    def to_ask(self) -> int:
        """How many further questions the budget allows, each of them and each open one counted as ``most_each``.

        While anything is left and no question is open it allows one, so only the last question exceeds the budget.
        """
        return max(int(self.left // self.most_each) - self.open, int(self.left > 0 and not self.open))


Counter = Callable[[Meter | Literal["asked", "open"]], float]
"""Counts for one cycle: the questions that a strategy asked, those that are still open, or what the answers cost."""


def budget_of(settings: Settings, cycle: int, count: Counter) -> Budget:
    """The budget of a cycle. Cycle 1 spends one for each image that it asks about."""
    open_ones = int(count("open"))
    if cycle <= 1:
        asked = int(count("asked"))
        return Budget(asked, asked - open_ones, open_ones)
    most_each = dearest_box(settings.cost) if settings.budget_unit == "seconds" else 1
    return Budget(total_of(settings, cycle), count(settings.budget_unit), open_ones, most_each)


def total_of(settings: Settings, cycle: int) -> int:
    """What a cycle after the first may spend. The last value of ``budget`` applies to all later cycles."""
    return settings.budget[min(cycle - 2, len(settings.budget) - 1)]


def boxes_of(settings: Settings, cycle: int) -> int:
    """About how many boxes a cycle may ask about, or, for an image-level strategy, have drawn."""
    total, cost = total_of(settings, cycle), settings.cost
    if settings.budget_unit != "seconds":
        return total
    each = cost.draw if settings.selection.strategy in IMAGE else cost.look + (cost.confirm + cost.reject) / 2
    return round(total / each)


def counts_in(store: Store, cycle: int, cost: CostSettings) -> Counter:
    """Counts one cycle of a store."""

    def count(what: Meter | Literal["asked", "open"]) -> float:
        if what == "asked":
            return sum(query.asked_by is None for query in store.queries(cycle))
        if what == "open":
            return len(store.unanswered(cycle))
        if what == "seconds":
            return bill(store, cycle, cost).seconds
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


class AddedAsker(Asker):
    """Asks about boxes of other detectors, best first. Their places are not those of the cycle's ranking."""

    def was_asked(self, why: Mapping[str, float] | None) -> None:
        """Ignore the places of the ranking."""

    def _query(self, place: int) -> Query:
        query = super()._query(place)
        return replace(query, why={name: value for name, value in (query.why or {}).items() if name != "rank"})


class CycleAsker(Asker):
    """Asks the questions of one cycle: random whole images while exploration is due, then boxes from the ranking.

    Exploration spends the fraction ``selection.exploration`` of the budget while some class has no candidate or no
    example from an earlier cycle, because the detector cannot ask about what it never predicts (decisions row 29). It
    asks about one image at a time: its cost is unknown before it is labelled, so the last one may exceed the fraction
    and the budget. A class of which another detector has found boxes needs no exploration: a fraction
    ``selection.added`` of the questions is about them while the class has no example (row 44).
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
        added: Candidates | None = None,
    ) -> None:
        """``open_per_class`` (K,) counts the open candidates, ``pool`` returns the ids of the images that may be asked
        about, and ``wanted`` how many people answer the question at a place of the ranking. ``added`` are boxes of
        other detectors."""
        super().__init__(store, cycle, queue, settings.selection.answered_iou, wanted)
        self._settings, self._pool, self._open, self._added = settings, pool, open_per_class, added
        self._to_explore = 0.0
        self.see_classes()

    def see_classes(self) -> None:
        """Decide what to explore for, when the cycle begins and when somebody has added a class."""
        if not (fraction := self._settings.selection.exploration):
            return
        examples = examples_per_class(self.store, self.cycle)
        known = examples * np.pad(self._open, (0, len(examples) - len(self._open)))
        if (boxes := self._boxes_of_lacking) is not None:
            known += np.bincount(boxes.labels, minlength=len(known))
        lacking = not known[live_classes(self.store)].all()
        self._to_explore = fraction * total_of(self._settings, self.cycle) if lacking else 0.0

    def ask(
        self,
        most: int,
        skip_busy: bool = False,
        busy: Iterable[int] | None = None,
        in_hand: Collection[int] = (),
    ) -> list[Query]:
        """Ask up to ``most`` questions and return them, at most one while exploration is due.

        While an explored image is unanswered, nothing else is asked unless ``skip_busy``.
        """
        if most < 1 or not self._to_explore:
            return self._ask_about_boxes(most, skip_busy, busy, in_hand)
        whole = {query.image_id for query in self.store.queries(self.cycle) if query.box is None}
        unanswered = self.store.unanswered(self.cycle)
        image_id = next((i for i in self._order if i not in whole.union(in_hand)), None)
        if image_id is None or self._explored() >= self._to_explore:
            self._to_explore = 0.0
        elif all(query.box is not None for query in unanswered):
            return self.store.ask(self.cycle, [Query(image_id, why={"cycle": self.cycle})])
        elif not skip_busy:
            return []
        return self._ask_about_boxes(most, skip_busy, busy, in_hand)

    def _ask_about_boxes(
        self, most: int, skip_busy: bool, busy: Iterable[int] | None, in_hand: Collection[int]
    ) -> list[Query]:
        """Ask about added boxes of classes without an example, up to their fraction, then from the ranking."""
        found: list[Query] = []
        if (due := self._added_due(most)) > 0 and self._of_lacking:
            found = self._of_lacking.ask(due, skip_busy=True, busy=busy, in_hand=in_hand)
            busy = None if busy is None else {*busy, *(query.image_id for query in found)}
        return found + super().ask(most - len(found), skip_busy, busy, in_hand)

    def _added_due(self, most: int) -> int:
        """How many of the next ``most`` questions are about added boxes of classes without an example."""
        if most < 1 or self._of_lacking is None:
            return 0
        asked = [query.why or {} for query in self.store.queries(self.cycle) if query.box is not None]
        before = sum("added" in why and "rank" not in why for why in asked)
        return min(most, int(np.ceil(self._settings.selection.added * (len(asked) + most))) - before)

    @cached_property
    def _of_lacking(self) -> AddedAsker | None:
        """Asks about the added boxes of classes without an example."""
        if (boxes := self._boxes_of_lacking) is None:
            return None
        queue = LazyRanking.of(boxes, enumerate(map(float, boxes.scores)))
        return AddedAsker(self.store, self.cycle, queue, self._settings.selection.answered_iou)

    @cached_property
    def _boxes_of_lacking(self) -> Candidates | None:
        """The added boxes of classes without an example that were not asked about, in the order of asking."""
        if (added := self._added) is None or not self._settings.selection.added:
            return None
        asked = {(query.image_id, query.box.tobytes()) for query in self.store.queries() if query.box is not None}
        keys = zip(added.image_id.tolist(), added.boxes, strict=True)
        free = np.array([(image_id, box.tobytes()) not in asked for image_id, box in keys], dtype=bool)
        free &= np.isin(added.image_id, [*self._pool()])
        free &= examples_per_class(self.store, self.cycle)[added.labels] == 0
        free &= added.scores >= self._settings.scoring.candidate_threshold
        return in_turn(added[free]) if free.any() else None

    @cached_property
    def _order(self) -> list[int]:
        return images_to_explore(self._settings, self.store, self.cycle, self._pool())

    def _explored(self) -> float:
        """What the cycle has spent on whole images; one without an object costs one review."""
        whole = [(query, answer) for query, answer in self.store.answered(self.cycle) if query.box is None]
        if self._settings.budget_unit == "seconds":
            return sum(milliseconds(*pair, self._settings.cost) for pair in whole) / 1000
        boxes = [len(answer.boxes) for _, answer in whole]
        return sum(boxes) if self._settings.budget_unit == "labels" else sum(max(count, 1) for count in boxes)


class ImageAsker(CycleAsker):
    """Asks about whole images in the order of a ranking that holds one candidate of each. It explores nothing else.

    Their places are called ``image_rank``: those of boxes, from before the strategy was changed, mean other images.
    """

    def was_asked(self, why: Mapping[str, float] | None) -> None:
        super().was_asked({"rank": why["image_rank"]} if why and "image_rank" in why else None)

    def see_classes(self) -> None:
        """Ignore which classes lack examples: whole images show every class."""

    def ahead(self, most: int, certain: bool = False) -> list[int]:
        """No box is asked about."""
        return []

    def _unsettled(self, rows: Sequence[int], said: ImageLabels) -> Bools:
        return np.full(len(rows), not said.complete)

    def _query(self, place: int) -> Query:
        why: dict[str, float] = {"image_rank": place, "cycle": self.cycle}
        return replace(super()._query(place), box=None, guess=None, why=why)


def in_turn(found: Candidates) -> Candidates:
    """Candidates in another order: the classes take turns, each with the best box of every image before the second."""
    order = np.argsort(-found.scores, kind="stable")
    of_image = found.image_id * (found.labels.max(initial=0) + 1) + found.labels
    for group in (of_image, found.labels):
        order = order[np.argsort(_places(group[order]), kind="stable")]
    return found[order]


def _places(group: Ints) -> Ints:
    """For each row, the number of earlier rows of its group: (T,) -> (T,)."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    place = np.empty(len(group), dtype=np.int64)
    place[order] = np.arange(len(group)) - starts
    return place
