"""Assigns questions to annotators and records their answers. Read :meth:`AnnotationService.answer` first."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import islice
from math import ceil
from typing import NamedTuple, TypeVar

import numpy as np

from rarebox.errors import UserError
from rarebox.labels.leases import Lease, Outcome, Submission
from rarebox.loop import rules
from rarebox.pool.similar import MOST, SIMILARITY, Search, rows_of
from rarebox.project.project import Project, is_further
from rarebox.types import Floats, Ints, Query, Verdict, as_boxes
from rarebox.web import likeness
from rarebox.web.grid_review import AHEAD, Crop, grid_of
from rarebox.web.memory import ProjectMemory
from rarebox.web.presenter import Presenter
from rarebox.web.supervisor import IDLE, Supervisor
from rarebox.web.writer import Writer

MOST_QUESTIONS = 10
"""Questions that one tab may hold."""

WAITING_SECONDS = 30.0
"""A tab that asked for questions counts as waiting for this long."""

T = TypeVar("T")


class Exchange(NamedTuple):
    """What one tab gets: the outcomes of its answers, and questions.

    ``outdated``: the store was restored from a backup after the page was loaded. ``grid``: the class and the number of
    the boxes that the tab may check at once.
    """

    outcomes: list[Outcome]
    queries: list[Query]
    outdated: bool
    grid: tuple[int, int] | None = None


class AnnotationService:
    """One project and its annotators.

    One thread does all writing (:class:`Writer`). An answer is reported as saved only when it is on the disk.
    """

    def __init__(self, project: Project, train: bool = True, engine: Sequence[str] = ()) -> None:
        self.memory = ProjectMemory(project)
        self.project, self.people = project, self.memory.people
        self.trainer = Supervisor(project.folder.root, self._hear, engine) if train else None
        self.presenter = Presenter(self.memory, lambda: self.trainer.status if self.trainer else IDLE)
        self._asked_at: dict[str, float] = {}
        self._went_on: tuple[float, ...] | None = None  # when the trainer was last told to
        self._writer = Writer(project.store, self.memory, self._written, self._catch_up)
        self.retry()

    def close(self) -> None:
        """End the trainer, finish writing and close the store. Raises UserError if the database has fallen silent."""
        if self.trainer:
            self.trainer.close()
        if not self._writer.close():
            raise UserError(
                "The database does not answer, so the server ends without waiting for it. Answers that it has not "
                "saved stay in the annotators' browsers, which send them when the server is back."
            )
        self.project.store.close()

    # What annotators do

    def answer(
        self,
        holder: str,
        by: str,
        said: Sequence[Submission],
        want: int,
        former: Sequence[str] = (),
        session: str = "",
    ) -> Future[Exchange]:
        """Record answers and assign up to ``want`` questions, in one transaction; done when it is on the disk.

        A page whose ``session`` is not in the store gets no questions: its numbers are not those of this store.
        """
        memory = self.memory
        seconds, store = self.project.settings.people.lease_seconds, self.project.store

        def job() -> Exchange:
            outdated = bool(session) and not store.has_session(session)
            outcomes = [self.people.submit(holder, by, one, seconds, former) for one in said]
            reopened = {one.query_id for one in said if one.verdict is Verdict.WITHDRAWN}
            queries = [] if outdated else self._assign(holder, by, former, min(want, MOST_QUESTIONS))
            later = memory.cycle > 1  # then an image that filled the time of the first training can wait
            sought = memory.search_of(by)
            queries.sort(
                key=lambda query: (
                    query.id not in reopened,
                    not (sought and sought.found(query.why)),
                    later and is_further(query),
                )
            )
            if any(query.id > memory.answer_index.last_question for query in queries):
                memory.take_in()
            crops = self._grid(holder, (by, *former)) if want and not outdated else []
            return Exchange(outcomes, queries, outdated, (crops[0].label, len(crops)) if crops else None)

        return self.do(job)

    def grid(self, holder: str, by: str, former: Sequence[str] = (), session: str = "") -> Future[Exchange]:
        """Assign up to twelve questions about likely boxes of one class, to be checked at once; none if too few.

        They are questions that this cycle asks anyway. Those that the tab holds already stay with it.
        """
        memory = self.memory
        seconds = self.project.settings.people.lease_seconds

        def job() -> Exchange:
            if session and not self.project.store.has_session(session):
                return Exchange([], [], True)
            memory.take_in()
            crops = self._grid(holder, (by, *former), certain=True)
            new = memory.asker.ask_at([crop.place for crop in crops if crop.query is None]) if memory.asker else []
            wanted = [*(crop.query for crop in crops if crop.query is not None), *(query.id for query in new)]
            held = memory.answer_index.held(holder, (by, *former), self.people.leases(holder))
            want = len({*held, *wanted})
            claimed = self.people.claim(holder, by, want, seconds, among=wanted, former=former)
            # If the ranking was made anew, an open question may ask about another class than its place holds now.
            asked = [one for one in claimed if one.id in wanted and memory.class_of(one.guess) == crops[0].label]
            return Exchange([], asked, False)

        return self.do(job)

    def release(self, holder: str, queries: Sequence[int]) -> "Future[None]":
        """End a tab's leases of some questions."""
        return self.do(lambda: self.people.release(holder, queries))

    def search(
        self, by: str, label: int | None, image_id: int | None = None, box: Sequence[float] = ()
    ) -> "Future[None]":
        """Look for boxes like those of a class, or like one box of an image. They come first for this person.

        With a box, the class is only offered. A search lasts until it has no box left, the person stops it, or the
        cycle ends; a restart forgets it. Raises UserError with the reason if nothing can be compared.
        """
        memory = self.memory
        with memory.lock:
            cycle, ranked = memory.cycle, memory.shown
            likeness.check_project(self.project, cycle)
            if label is not None and (label >= len(memory.classes) or memory.counts_as[label] != label):
                raise UserError(f"there is no class {label}. Choose one from the list of classes")
        ids, boxes, reason = self._examples(label, image_id, box)
        if ranked is None:
            raise UserError(likeness.FEATURES_LOST)
        known = likeness.features_of(self.project, cycle, ranked)
        if not len(examples := rows_of(known, ids, boxes)):
            raise UserError(reason)
        alike = likeness.most_like(known, ranked, examples)

        def job() -> None:
            memory.take_in()
            asker = memory.asker
            if memory.cycle != cycle or asker is None:
                raise UserError(likeness.NEW_CYCLE)
            if self._may_ask_ahead() < 1:
                raise UserError(likeness.SPENT)
            if not (places := asker.free(alike, MOST)):
                raise UserError(likeness.NO_MORE)
            memory.searches[by] = Search(cycle, label, {place: alike[place] for place in places})

        return self.do(job)

    def stop_search(self, by: str) -> "Future[None]":
        """End a person's search. Its open questions keep their turn."""

        def job() -> None:
            self.memory.searches.pop(by, None)

        return self.do(job)

    def _examples(self, label: int | None, image_id: int | None, box: Sequence[float]) -> tuple[Ints, Floats, str]:
        """The boxes that a search compares with, and why it cannot if none of them has features: (E,), (E, 4)."""
        if image_id is None:
            assert label is not None
            ids, boxes = likeness.boxes_of(label, self.memory.standing())
            if not len(boxes):
                raise UserError(likeness.no_example(self.memory.classes[label]))
            return ids, boxes, likeness.no_features(self.memory.classes[label])
        if image_id not in self.memory.images:
            raise UserError(f"there is no image {image_id}. Reload the page")
        return np.array([image_id]), _as_box(box), likeness.NOT_DETECTED

    def leave(self, holder: str) -> "Future[None]":
        """End the leases of a tab that was closed."""

        def job() -> None:
            self._asked_at.pop(holder, None)
            self.people.let_go(holder)

        return self.do(job)

    def do(self, job: Callable[[], T]) -> "Future[T]":
        """Have the writing thread call a function, as part of a transaction."""
        return self._writer.do(job)

    def change_classes(self, job: Callable[[], object]) -> "Future[None]":
        """Add, rename or merge classes and update all counts. No answer is read again. A new class is explored for."""

        def work() -> None:
            job()
            self.memory.see_classes()
            if self.memory.asker:
                self.memory.asker.see_classes()
            self.memory.questions += 1

        return self.do(work)

    def train(self) -> None:
        """Train now, before the budget is spent."""
        if self.trainer:
            self.trainer.send("train")

    def retry(self) -> None:
        """Have the trainer do the next step, even after it has failed."""
        if self.trainer:
            self.trainer.again()

    def _assign(self, holder: str, by: str, former: Sequence[str], want: int) -> list[Query]:
        """Questions for one holder: open ones first, then new ones from the ranking.

        When the budget is spent, annotators continue with the ranking until the next cycle has questions.
        """
        memory = self.memory
        memory.take_in()
        answer_index, cycle, leases = memory.answer_index, memory.cycle, self.people.leases(holder)
        want, names = min(want, self._most_for(holder, leases)), (by, *former)
        own = answer_index.held(holder, names, leases)
        found = self._sought(by, want, own, answer_index.open_to(holder, names, cycle, leases), leases)
        held, want = len(own), max(want, len(own) + len(found))  # what the tab holds already waits behind them
        others = (number for number in answer_index.open_to(holder, names, cycle, leases) if number not in found)
        found += islice(others, max(want - held - len(found), 0))
        if want and not held and not found and self._before_first_model:
            found += [query.id for query in self.project.ask_further()]
        found += self._ask_anew(want - held - len(found), leases, idle=not held and not found)
        seconds = self.project.settings.people.lease_seconds
        if want and not held and not found and self.people.leave_other_tabs(holder, by, seconds, former):
            return self._assign(holder, by, former, want)  # the remaining ones were leased to a closed tab
        return self.people.claim(holder, by, want, seconds, among=found, former=former)

    def _ask_anew(self, want: int, leases: Sequence[Lease], *, idle: bool) -> list[int]:
        """Ask up to ``want`` new questions of the ranking, within the budget, and return their ids.

        An ``idle`` annotator gets one even if the box that is next must wait, because its image has an open question.
        """
        memory = self.memory
        if want <= 0 or not memory.asker:
            return []
        budget = memory.budget_of(memory.cycle)
        if (most := self._at_most(want, budget)) <= 0:
            return []
        busy = memory.answer_index.busy(memory.cycle)
        in_hand = memory.answer_index.in_hand(leases, memory.cycle)
        asked = memory.asker.ask(most, busy=busy, in_hand=in_hand)
        if not asked and idle:
            asked = memory.asker.ask(1, skip_busy=True, busy=busy, in_hand=in_hand)
        memory.exhausted = not asked and not budget.open and budget.left > 0
        return [query.id for query in asked]

    @property
    def _trains(self) -> bool:
        """Whether the trainer is at work."""
        return self.trainer is not None and self.trainer.working

    @property
    def _before_first_model(self) -> bool:
        """Whether the trainer is choosing the initial images or training the first model."""
        memory = self.memory
        return self._trains and 0 <= memory.cycle <= 1 and not memory.records

    def _at_most(self, want: int, budget: rules.Budget) -> int:
        """How many of ``want`` further questions may be asked. During a training, the budget is no limit."""
        over = budget.left <= 0 and self._trains
        return want if over else min(want, budget.to_ask)

    def _grid(self, holder: str, names: Sequence[str], certain: bool = False) -> list[Crop]:
        """The boxes that one tab may check at once, best first: likely objects of one class, one on each image.

        They come from the questions that this person may answer and from the next ones of the ranking, as many as the
        budget allows. A box is likely if its score is at least ``people.proposal_score``. ``certain``: see
        :meth:`Asker.ahead`.
        """
        memory = self.memory
        if not (asker := memory.asker):
            return []
        index, cycle, leases = memory.answer_index, memory.cycle, self.people.leases(holder)
        held = index.held(holder, names, leases)
        open_ones = (*held, *index.open_to(holder, names, cycle, leases))
        places = {
            int(asked.why["rank"]): asked.id
            for asked in (index.queries[number].question for number in open_ones)
            if asked.cycle == cycle and asked.why and "rank" in asked.why and SIMILARITY not in asked.why
        }
        next_ones = asker.ahead(self._at_most(AHEAD, memory.budget_of(cycle)), certain)
        ranked = [(place, item[0]) for place in (*places, *next_ones) if (item := asker.queue(place))]
        boxes = asker.queue.candidates[np.array([row for _, row in ranked], dtype=np.int64)]
        likely = boxes.scores >= self.project.settings.people.proposal_score
        found, seen = list[Crop](), {*index.busy(cycle), *index.in_hand(leases, cycle)}
        for row, (place, _) in enumerate(ranked):
            image = int(boxes.image_id[row])
            if likely[row] and (place in places or image not in seen):
                found.append(Crop(place, int(memory.counts_as[boxes.labels[row]]), places.get(place)))
                seen.add(image)
        return grid_of(found, max(self._most_for(holder, leases) - len(held), 0))

    def _sought(
        self, person: str, want: int, held: Sequence[int], open_ones: Iterable[int], leases: Sequence[Lease]
    ) -> list[int]:
        """The next questions of a person's search: open ones first, then new ones."""
        memory = self.memory
        sought, asker = memory.search_of(person), memory.asker
        if sought is None or asker is None:
            return []

        def is_found(number: int) -> bool:
            return sought.found(memory.answer_index.queries[number].question.why)

        missing = max(want - sum(map(is_found, held)), 0)
        found = list(islice(filter(is_found, open_ones), missing))
        most = min(missing - len(found), self._may_ask_ahead())
        return found + [
            query.id for query in asker.ask_ahead(sought, most, memory.answer_index.in_hand(leases, memory.cycle))
        ]

    def _may_ask_ahead(self) -> int:
        """How many questions of a search the budget allows. Open ones do not count, because they wait behind it."""
        budget = self.memory.budget_of(self.memory.cycle)
        if budget.left > 0:
            return ceil(budget.left / budget.most_each)
        return MOST if self._trains else 0

    def _most_for(self, holder: str, leases: Sequence[Lease]) -> int:
        """How many questions one tab may hold. One question is open per image at a time, so with few images the tabs
        share them."""
        now = time.monotonic()
        self._asked_at = {tab: at for tab, at in self._asked_at.items() if at > now - WAITING_SECONDS} | {holder: now}
        tabs = self._asked_at.keys() | {lease.holder for lease in leases}
        return max(len(self.memory.images) // len(tabs), 1)

    def _hear(self, event: str) -> None:
        """React to an event of the trainer."""
        if event == "questions":  # of a new cycle, or further ones of this cycle
            self.do(self.memory.reopen).add_done_callback(lambda _: None)
        elif event in ("trained", "idle"):
            self.do(self.memory.read_records).add_done_callback(lambda _: None)
        else:
            self.memory.version += 1

    def _written(self) -> None:
        """Start the trainer if a step is due that needs no annotator."""
        memory = self.memory
        ready = memory.exhausted or len(memory.records) >= memory.cycle or memory.spent >= memory.budget
        if not ready:
            self._went_on = None  # also after an undo, which the trainer may have seen and done nothing
        if not ready or not self.trainer or self.trainer.status["state"] != "idle":
            return
        here = (memory.cycle, memory.spent, len(memory.records), len(memory.shown or ()))
        if here != self._went_on:
            self._went_on = here
            # After a merge of classes the trainer may count a second less: what is spent here is spent.
            seconds = self.project.settings.budget_unit == "seconds" and memory.cycle > 1
            spent = "train" if seconds and len(memory.records) < memory.cycle else "go on"
            self.trainer.send("rank on" if memory.exhausted else spent)

    def _catch_up(self) -> None:
        """Read what another process has written, such as ``rarebox import``: it began a session."""
        if self.project.store.session() != self.memory.session:
            with self.memory.lock:
                self.memory.reopen()
                self.memory.refresh()
            self._written()


def _as_box(sides: Sequence[float]) -> Floats:
    """One box as (1, 4). Raises UserError if it has no area."""
    try:
        return as_boxes([sides])
    except ValueError as error:
        raise UserError("a box needs a width and a height. Draw it again") from error
