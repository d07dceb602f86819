"""Assigns questions to annotators and records their answers. Read :meth:`AnnotationService.answer` first."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from hashlib import sha256
from itertools import islice
from math import ceil
from secrets import token_hex
from threading import RLock
from typing import Literal, NamedTuple, TypeVar

import numpy as np

from rarebox.core.boxes import far_from
from rarebox.core.files import real
from rarebox.errors import UserError
from rarebox.labels.leases import Given, Lease, Outcome, People, Submission
from rarebox.loop import rules
from rarebox.loop.metrics import CycleRecord, Meter
from rarebox.pool.candidates import rows_by_image
from rarebox.pool.proposals import MOST_SHOWN
from rarebox.pool.similar import MOST, SIMILARITY, Search, rows_of
from rarebox.project.project import FURTHER, Project
from rarebox.types import Candidates, Floats, ImageRecord, Ints, Query, Verdict, as_boxes
from rarebox.web import likeness, replies, wording
from rarebox.web.answer_index import AnswerIndex, Unit
from rarebox.web.grid_review import AHEAD, Crop, grid_of
from rarebox.web.supervisor import IDLE, Supervisor
from rarebox.web.writer import Mark, Writer

MOST_QUESTIONS = 10
"""Questions that one tab may hold."""

WAITING_SECONDS = 30.0
"""A tab that asked for questions counts as waiting for this long."""

PIECE = 200
"""Answers that a filter reads at a time."""

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
        self.project, self.people = project, People(project.store)
        self.see_photos()
        self.version, self.questions = 0, 0
        self.trainer = Supervisor(project.folder.root, self._hear, engine) if train else None
        self._answer_index, self._lock = AnswerIndex(project.settings.cost), RLock()
        self._asker: rules.CycleAsker | None = None
        self._cycle = -1
        self._shown: Candidates | None = None
        self._rows: dict[int, Ints] = {}
        self._budget, self._spent, self._went_on = 0, 0, (-1, -1, -1, -1)
        self._exhausted = False
        self._asked_at: dict[str, float] = {}
        self._searches: dict[str, Search] = {}  # by person
        self._counts: Ints = np.zeros(0, dtype=np.int64)
        self._common: tuple[int, replies.SharedState] | None = None
        self._classes: tuple[str, ...] = ()
        self._class_reads = 0
        self._name, self._session = token_hex(8), ""
        self._counts_as: Ints = np.zeros(0, dtype=np.int64)
        self._records: list[CycleRecord] = []
        self._intervals: list[tuple[float, float] | None] = []
        self.refresh()
        self._writer = Writer(project.store, self)
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
        seconds, store = self.project.settings.people.lease_seconds, self.project.store

        def job() -> Exchange:
            outdated = bool(session) and not store.has_session(session)
            outcomes = [self.people.submit(holder, by, one, seconds, former) for one in said]
            reopened = {one.query_id for one in said if one.verdict is Verdict.WITHDRAWN}
            queries = [] if outdated else self._assign(holder, by, former, min(want, MOST_QUESTIONS))
            later = self._cycle > 1  # then an image that filled the time of the first training can wait
            sought = self._search_of(by)
            queries.sort(
                key=lambda query: (
                    query.id not in reopened,
                    not (sought and sought.found(query.why)),
                    later and FURTHER in (query.why or {}),
                )
            )
            if any(query.id > self._answer_index.last_question for query in queries):
                self._take_in()
            crops = self._grid(holder, (by, *former)) if want and not outdated else []
            return Exchange(outcomes, queries, outdated, (crops[0].label, len(crops)) if crops else None)

        return self.do(job)

    def grid(self, holder: str, by: str, former: Sequence[str] = (), session: str = "") -> Future[Exchange]:
        """Assign up to twelve questions about likely boxes of one class, to be checked at once; none if too few.

        They are questions that this cycle asks anyway. Those that the tab holds already stay with it.
        """
        seconds = self.project.settings.people.lease_seconds

        def job() -> Exchange:
            if session and not self.project.store.has_session(session):
                return Exchange([], [], True)
            self._take_in()
            crops = self._grid(holder, (by, *former), certain=True)
            new = self._asker.ask_at([crop.place for crop in crops if crop.query is None]) if self._asker else []
            wanted = [*(crop.query for crop in crops if crop.query is not None), *(query.id for query in new)]
            held = self._answer_index.held(holder, (by, *former), self.people.leases(holder))
            want = len({*held, *wanted})
            claimed = self.people.claim(holder, by, want, seconds, among=wanted, former=former)
            return Exchange([], [query for query in claimed if query.id in wanted], False)

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
        with self._lock:
            cycle, ranked = self._cycle, self._shown
            likeness.check_project(self.project, cycle)
            if label is not None and (label >= len(self._classes) or self._counts_as[label] != label):
                raise UserError(f"there is no class {label}. Choose one from the list of classes")
        ids, boxes, reason = self._examples(label, image_id, box)
        if ranked is None or (known := self.project.read_features(cycle, ranked)) is None:
            raise UserError(likeness.NO_FEATURES)
        if not len(examples := rows_of(known, ids, boxes)):
            raise UserError(reason)
        alike = likeness.most_like(known, ranked, examples)

        def job() -> None:
            self._take_in()
            asker = self._asker
            if self._cycle != cycle or asker is None:
                raise UserError(likeness.NEW_CYCLE)
            if self._may_ask_ahead() < 1:
                raise UserError(likeness.SPENT)
            if not (places := asker.free(alike, MOST)):
                raise UserError(likeness.NO_MORE)
            self._searches[by] = Search(cycle, label, {place: alike[place] for place in places})

        return self.do(job)

    def stop_search(self, by: str) -> "Future[None]":
        """End a person's search. Its open questions keep their turn."""

        def job() -> None:
            self._searches.pop(by, None)

        return self.do(job)

    def _examples(self, label: int | None, image_id: int | None, box: Sequence[float]) -> tuple[Ints, Floats, str]:
        """The boxes that a search compares with, and why it cannot if none of them has features: (E,), (E, 4)."""
        if image_id is None:
            assert label is not None
            ids, boxes = likeness.boxes_of(label, self._standing())
            if not len(boxes):
                raise UserError(likeness.no_example(self._classes[label]))
            return ids, boxes, likeness.no_features(self._classes[label])
        if image_id not in self.images:
            raise UserError(f"there is no image {image_id}. Reload the page")
        return np.array([image_id]), _as_box(box), likeness.NOT_DETECTED

    def _standing(self) -> Iterator[tuple[Given, list[int]]]:
        """The answers that count and their labels, newest first."""
        with self._lock:
            walk = self._answer_index.standing()
        while True:
            with self._lock:  # of a piece, so that other requests need not wait for all
                if not (piece := [(one, self._counted(one)) for one in islice(walk, PIECE)]):
                    return
            yield from piece

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
            self._see_classes()
            if self._asker:
                self._asker.see_classes()
            self.questions += 1

        return self.do(work)

    def see_photos(self) -> None:
        """Read where the photos are, which changes when moved ones are found."""
        self.images: dict[int, ImageRecord] = self.project.store.images()
        self.photos = self.project.photos()

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
        self._take_in()
        answer_index, cycle, leases = self._answer_index, self._cycle, self.people.leases(holder)
        want, names = min(want, self._most_for(holder, leases)), (by, *former)
        own = answer_index.held(holder, names, leases)
        found = self._sought(by, want, own, answer_index.open_to(holder, names, cycle, leases), leases)
        held, want = len(own), max(want, len(own) + len(found))  # what the tab holds already waits behind them
        others = (number for number in answer_index.open_to(holder, names, cycle, leases) if number not in found)
        found += islice(others, max(want - held - len(found), 0))
        if want and not held and not found and self._before_first_model:
            found += [query.id for query in self.project.ask_further()]
        if (missing := want - held - len(found)) > 0 and self._asker:
            budget = self._budget_of(cycle)
            if (most := self._at_most(missing, budget)) > 0:
                busy, in_hand = answer_index.busy(cycle), answer_index.in_hand(leases, cycle)
                asked = self._asker.ask(most, busy=busy, in_hand=in_hand)
                if not asked and not held and not found:
                    asked = self._asker.ask(1, skip_busy=True, busy=busy, in_hand=in_hand)
                self._exhausted = not asked and not budget.open and budget.left > 0
                found += [query.id for query in asked]
        seconds = self.project.settings.people.lease_seconds
        if want and not held and not found and self.people.leave_other_tabs(holder, by, seconds, former):
            return self._assign(holder, by, former, want)  # the remaining ones were leased to a closed tab
        return self.people.claim(holder, by, want, seconds, among=found, former=former)

    @property
    def _before_first_model(self) -> bool:
        """Whether the trainer is choosing the initial images or training the first model."""
        return self.trainer is not None and self.trainer.working and 0 <= self._cycle <= 1 and not self._records

    @property
    def _initial_are_chosen(self) -> bool:
        """Whether the trainer has chosen the initial images, or imported labels replace them. Until then, people are
        asked about random ones."""
        asked = (history.question for history in self._answer_index.queries.values())
        return self._cycle > 1 or any(one.cycle == 1 and FURTHER not in (one.why or {}) for one in asked)

    def _at_most(self, want: int, budget: rules.Budget) -> int:
        """How many of ``want`` further questions may be asked. During a training, the budget is no limit."""
        over = budget.left <= 0 and self.trainer is not None and self.trainer.working
        return want if over else min(want, budget.to_ask)

    def _grid(self, holder: str, names: Sequence[str], certain: bool = False) -> list[Crop]:
        """The boxes that one tab may check at once, best first: likely objects of one class, one on each image.

        They come from the questions that this person may answer and from the next ones of the ranking, as many as the
        budget allows. A box is likely if its score is at least ``people.proposal_score``. ``certain``: see
        :meth:`Asker.ahead`.
        """
        if not (asker := self._asker):
            return []
        index, cycle, leases = self._answer_index, self._cycle, self.people.leases(holder)
        held = index.held(holder, names, leases)
        whys = {query: index.queries[query].question for query in (*held, *index.open_to(holder, names, cycle, leases))}
        places = {
            int(asked.why["rank"]): query
            for query, asked in whys.items()
            if asked.cycle == cycle and asked.why and "rank" in asked.why and SIMILARITY not in asked.why
        }
        next_ones = asker.ahead(self._at_most(AHEAD, self._budget_of(cycle)), certain)
        ranked = [(place, item[0]) for place in (*places, *next_ones) if (item := asker.queue(place))]
        boxes = asker.queue.candidates[np.array([row for _, row in ranked], dtype=np.int64)]
        likely = boxes.scores >= self.project.settings.people.proposal_score
        found, seen = list[Crop](), {*index.busy(cycle), *index.in_hand(leases, cycle)}
        for row, (place, _) in enumerate(ranked):
            image = int(boxes.image_id[row])
            if likely[row] and (place in places or image not in seen):
                found.append(Crop(place, int(self._counts_as[boxes.labels[row]]), places.get(place)))
                seen.add(image)
        return grid_of(found, self._most_for(holder, leases) - len(held))

    def _search_of(self, person: str) -> Search | None:
        """What a person looks for in the current cycle."""
        found = self._searches.get(person)
        return found if found and found.cycle == self._cycle else None

    def _sought(
        self, person: str, want: int, held: Sequence[int], open_ones: Iterable[int], leases: Sequence[Lease]
    ) -> list[int]:
        """The next questions of a person's search: open ones first, then new ones."""
        sought, asker = self._search_of(person), self._asker
        if sought is None or asker is None:
            return []

        def is_found(number: int) -> bool:
            return sought.found(self._answer_index.queries[number].question.why)

        missing = max(want - sum(map(is_found, held)), 0)
        found = list(islice(filter(is_found, open_ones), missing))
        most = min(missing - len(found), self._may_ask_ahead())
        return found + [
            query.id for query in asker.ask_ahead(sought, most, self._answer_index.in_hand(leases, self._cycle))
        ]

    def _may_ask_ahead(self) -> int:
        """How many questions of a search the budget allows. Open ones do not count, because they wait behind it."""
        budget = self._budget_of(self._cycle)
        if budget.left > 0:
            return ceil(budget.left / budget.most_each)
        return MOST if self.trainer is not None and self.trainer.working else 0

    def _most_for(self, holder: str, leases: Sequence[Lease]) -> int:
        """How many questions one tab may hold. One question is open per image at a time, so with few images the tabs
        share them."""
        now = time.monotonic()
        self._asked_at = {tab: at for tab, at in self._asked_at.items() if at > now - WAITING_SECONDS} | {holder: now}
        tabs = self._asked_at.keys() | {lease.holder for lease in leases}
        return max(len(self.images) // len(tabs), 1)

    def _budget_of(self, cycle: int) -> rules.Budget:
        """What a cycle may spend and has spent, counted without reading all answers again."""
        sums = self._answer_index.sums

        def count(what: Meter | Literal["asked", "open"]) -> float:
            return sums["milliseconds", cycle] / 1000 if what == "seconds" else sums[what, cycle]

        return rules.budget_of(self.project.settings, cycle, count)

    # What the writer keeps up to date

    def mark(self) -> Mark:
        """How far the store has been read."""
        return self._answer_index.last_question, self._answer_index.last_answer, self._class_reads

    def undo(self, mark: Mark) -> None:
        """Forget what was read after a mark and rolled back. The next refresh reads classes and the ranking again."""
        if mark != self.mark():
            with self._lock:
                self._answer_index.forget(*mark[:2])
                self._cycle = -1

    def refresh(self) -> None:
        """Update the state in memory from the store."""
        project = self.project
        with self._lock:
            self._take_in()
            if (cycle := project.cycle) != self._cycle:
                self._open(cycle)
            budget = self._budget_of(cycle)
            self._budget, self._spent = budget.total, budget.spent
            self._counts = self._answer_index.counts(len(self._classes))
            self._session = project.store.session()
            self.version += 1

    def _take_in(self) -> None:
        """Read questions and answers that are new in the store, including those of the current transaction."""
        with self._lock, self.project.store.transaction():
            given = self.people.given(after=self._answer_index.last_answer)
            asked = self.people.questions(after=self._answer_index.last_question)
            if any(one.answer.labels.max(initial=-1) >= len(self._classes) for one in given):
                self._see_classes()  # another process has added some
            self._answer_index.take_in(asked, given)
            for question in asked:
                if self._asker and question.cycle == self._cycle:
                    self._asker.was_asked(question.why)

    def _see_classes(self) -> None:
        """Read the classes, which may have changed."""
        with self._lock, self.project.store.transaction():
            self._class_reads += 1
            self._classes, self._counts_as = self.project.store.classes(), self.project.store.counts_as()
            self._answer_index.merge(self._counts_as)
            self._counts = self._answer_index.counts(len(self._classes))

    def _open(self, cycle: int) -> None:
        """Prepare for the questions of a cycle."""
        project = self.project
        self._cycle = cycle
        self._see_classes()
        self._asker = project.asker(cycle) if cycle > 1 else None
        ranked = project.has_ranking(cycle)
        self._shown = project.read_ranking(cycle).candidates if ranked else project.read_predictions()
        self._rows = rows_by_image(self._shown) if self._shown else {}
        self._read_records()
        self._exhausted = False
        self.questions += 1

    def _read_records(self) -> None:
        """Read what the finished cycles reached."""
        self._records = self.project.folder.records()
        self._intervals = [self.project.ap50_interval(record["cycle"]) for record in self._records]

    def _hear(self, event: str) -> None:
        """React to an event of the trainer."""
        if event == "questions":  # of a new cycle, or further ones of this cycle
            self.do(lambda: setattr(self, "_cycle", -1)).add_done_callback(lambda _: None)
        elif event in ("trained", "idle"):
            self.do(self._read_records).add_done_callback(lambda _: None)
        else:
            self.version += 1

    def written(self) -> None:
        """Start the trainer if a step is due that needs no annotator."""
        if not self.trainer or self.trainer.status["state"] != "idle":
            return
        here = (self._cycle, self._spent, len(self._records), len(self._shown or ()))
        ready = self._exhausted or len(self._records) >= self._cycle or self._spent >= self._budget
        if ready and here != self._went_on:
            self._went_on = here
            # After a merge of classes the trainer may count a second less: what is spent here is spent.
            seconds = self.project.settings.budget_unit == "seconds" and self._cycle > 1
            spent = "train" if seconds and len(self._records) < self._cycle else "go on"
            self.trainer.send("rank on" if self._exhausted else spent)

    def catch_up(self) -> None:
        """Read what another process has written, such as ``rarebox import``: it began a session."""
        if self.project.store.session() != self._session:
            with self._lock:
                self._cycle = -1
                self.refresh()
            self.written()

    # What annotators see

    def query(self, query: Query) -> replies.Query:
        """A question in the page's form."""
        image, why = self.images[query.image_id], query.why or {}
        with self._lock:
            return {
                "id": query.id,
                "cycle": int(why.get("cycle", 1)),
                "position": int(why.get("rank", why.get("image_rank", 0))),
                **self._image(image),
                "box": None if query.box is None else _rounded(query.box),
                "guess": query.guess if query.guess is None else int(self._counts_as[query.guess]),
                "score": why.get("score"),
                "uncertainty": why.get("uncertainty"),
                "similarity": why.get(SIMILARITY),
                "reason": self._reason(query),
                "lease_seconds": self.project.settings.people.lease_seconds,
            }

    def image(self, image_id: int) -> replies.LabelledImage:
        """One image with its boxes."""
        with self._lock:
            return self._image(self.images[image_id])

    def given(self, one: Given) -> replies.Answer:
        """An answer in the page's form."""
        image, guess = self.images[one.query.image_id], one.query.guess
        return {
            "answer": one.id,
            "query": one.query.id,
            "by": one.answer.by,
            "verdict": one.answer.verdict.value,
            "boxes": [_rounded(box) for box in one.answer.boxes],
            "labels": self._counted(one),
            "milliseconds": one.answer.milliseconds,
            "at": f"{one.at.isoformat(timespec='seconds')}Z",
            "image": _about(image),
            "box": None if one.query.box is None else _rounded(one.query.box),
            "guess": None if guess is None else int(self._counts_as[guess]),
            "cycle": one.cycle,
        }

    def _counted(self, one: Given) -> list[int]:
        """The labels of an answer, after merges of classes."""
        return self._counts_as[one.answer.labels].tolist()

    def answers(
        self, limit: int, before: int | None, names: Sequence[str] | None, label: int | None, verdict: str | None
    ) -> list[replies.Answer]:
        """Answers that count, newest first; with ``names`` those under one of them.

        A filter may match nothing, so the scan of all answers yields to other requests after each piece.
        """
        found: list[replies.Answer] = []
        with self._lock:
            walk = self._answer_index.standing()
        while len(found) < limit:
            with self._lock:
                if not (piece := list(islice(walk, PIECE))):
                    break
                found += [
                    self.given(one)
                    for one in piece
                    if (before is None or one.id < before)
                    and (names is None or one.answer.by in names)
                    and verdict in (None, one.answer.verdict.value)
                    and (label is None or label in self._counted(one))
                ]
        return found[:limit]

    def disagreements(self) -> list[replies.Disagreement]:
        """Questions that annotators answered differently, with their answers."""
        with self._lock:
            found = [sorted(h.standing.values(), key=lambda one: one.id) for h in self._answer_index.disagreements()]
        return [{"query": self.query(all[0].query), "answers": [self.given(one) for one in all]} for all in found]

    def outcome(self, outcome: Outcome) -> replies.Result:
        """The outcome of an answer, in the page's form."""
        current = self.given(outcome.current) if outcome.current else None
        return {
            "key": outcome.key,
            "status": outcome.status.value,
            "query": outcome.query_id,
            "answer": outcome.answer_id,
            "reason": outcome.reason,
            "current": current,
        }

    def state(self, person: str | None, fixed: bool) -> replies.VisitorState:
        """Progress, class counts, cycles and annotators, with the speed of one person."""
        with self._lock:
            if self._common is None or self._common[0] != self.version:
                self._common = (self.version, self._state_for_all())
            per_minute = self._answer_index.per_minute(person) if person else None
            minutes = self._minutes_left(person) if person else None
            speed: replies.Speed = {"per_minute": per_minute and round(per_minute, 1), "minutes_left": minutes}
            search = self._search_state(person) if person else None
            return {**self._common[1], "you": person, "fixed_name": fixed, "speed": speed, "search": search}

    def _search_state(self, person: str) -> replies.Search | None:
        """What a person looks for and how many boxes are left. None if none is."""
        if not (sought := self._search_of(person)) or self._asker is None:
            return None
        unasked = self._asker.unasked(sought.places)
        left = len(unasked) + sum(sought.found(one.why) for one in self._answer_index.unanswered(self._cycle))
        return {"label": sought.label, "left": left} if left else None

    def _minutes_left(self, person: str) -> float | None:
        """About how long the rest of the cycle's budget takes one person. None if that is not known."""
        unit, left = self._unit, max(self._budget - self._spent, 0)
        each = 1.0 if unit == "seconds" else self._answer_index.seconds_each(person, unit)
        return None if each is None else round(left * each / 60, 1)

    @property
    def _unit(self) -> Unit | Literal["seconds"]:
        """What the current cycle counts."""
        return "images" if self._cycle <= 1 else self.project.settings.budget_unit

    def _state_for_all(self) -> replies.SharedState:
        answer_index = self._answer_index
        trainer = self.trainer.status if self.trainer else IDLE
        return {
            "project": real(self.project.folder.root).name,
            "server": self._name,
            "session": self._session,
            "classes": self._class_states(),
            "phase": self._phase(),
            "cycle": self._cycle,
            "budget": {
                "spent": round(self._spent, 1),
                "of": self._budget,
                "unit": self._unit,
            },
            "trainer": trainer,
            "records": [
                {
                    "cycle": record["cycle"],
                    "labels": record["labels"],
                    "reviews": record["reviews"],
                    "ap50": record["ap50"] if self._is_measured else None,
                    "ap50_interval": interval if self._is_measured else None,
                    "seconds": record["seconds"],
                }
                for record, interval in zip(self._records, self._intervals, strict=True)
            ],
            "held_out": self._held_out(),
            "agreement": {
                "with_guesses": _fraction(answer_index.agreement_with_guesses(self._cycle)),
                "between_people": _fraction(answer_index.agreement_between_people()),
                "disagreements": len(answer_index.disagreements()),
            },
            "advice": self._advice(),
            "people": [
                {"name": name, "answers": answer_index.sums["by", name]} for name in sorted(answer_index.of_person)
            ],
            "can_train": trainer["state"] != "working"
            and bool(self._counts.sum())
            and len(self._records) < self._cycle,
            "version": self.version,
        }

    def _class_states(self) -> list[replies.Class]:
        found, asked = self._answer_index.first_found(), self._answer_index.asked_about(len(self._classes))
        return [
            {
                "label": label,
                "name": name,
                "count": int(self._counts[label]),
                "first": {"cycle": found[label][0], "answers": found[label][1]} if label in found else None,
                "asked": int(asked[label]),
                "merged_into": None if self._counts_as[label] == label else int(self._counts_as[label]),
            }
            for label, name in enumerate(self._classes)
        ]

    def _phase(self) -> replies.Phase:
        if not self._initial_are_chosen:
            return "preparing"
        idle = not self.trainer or self.trainer.status["state"] == "idle"
        if idle and (len(self._records) >= self._cycle or (self._exhausted and not self._spent)):
            return "finished"
        return "first_images" if self._cycle == 1 else "asking"

    def _held_out(self) -> replies.HeldOut:
        images, boxes = self._answer_index.sums["held images",], self._answer_index.sums["held boxes",]
        asking = self._cycle <= 1 and self._budget - self._spent > 0
        return {"images": images, "boxes": boxes, "note": wording.held_out(images, boxes, asking)}

    @property
    def _is_measured(self) -> bool:
        """Whether there are enough held-out boxes for AP to mean anything."""
        return self._answer_index.sums["held boxes",] >= wording.FEWEST_BOXES

    def _advice(self) -> str | None:
        measured = [(record["reviews"], ap) for record in self._records if (ap := record["ap50"]) is not None]
        measured = measured if self._is_measured else []
        return wording.advice(measured, self._answer_index.agreement_with_guesses(self._cycle))

    def _image(self, image: ImageRecord) -> replies.LabelledImage:
        given = self._answer_index.image(image.id)
        labels: list[replies.Label] = [
            {"box": _rounded(box), "label": label, "query": one.query.id, "answer": one.id, "by": one.answer.by}
            for one in given
            for box, label in zip(one.answer.boxes, self._counted(one), strict=True)
        ]
        rows = self._rows.get(image.id, np.zeros(0, dtype=np.int64))
        others: list[replies.Other] = []
        if (shown := self._shown) is not None and len(rows):
            settled = [one.query.box for one in given if one.query.box is not None]
            known = np.array([*settled, *(label["box"] for label in labels)], dtype=np.float32).reshape(-1, 4)
            free = rows[far_from(shown.boxes[rows], known, self.project.settings.selection.answered_iou)]
            best = free[np.argsort(-shown.scores[free], kind="stable")][:MOST_SHOWN]
            others = [
                {
                    "box": _rounded(box),
                    "label": int(self._counts_as[label]),
                    "score": _fraction(float(score)),
                    "likely": bool(score >= self.project.settings.people.proposal_score),
                }
                for box, label, score in zip(shown.boxes[best], shown.labels[best], shown.scores[best], strict=True)
            ]
        complete = any(one.query.box is None and one.answer.verdict.value != "cannot_tell" for one in given)
        return {"image": _about(image), "labels": labels, "others": others, "complete": complete}

    def _reason(self, query: Query) -> str:
        if query.box is None:
            why = query.why or {}
            later = wording.RANKED_IMAGE if "image_rank" in why else wording.EXPLORED
            further = wording.FURTHER_IMAGE if self._initial_are_chosen else wording.RANDOM_IMAGE
            first = further if FURTHER in why else wording.FIRST_IMAGE
            return later if why.get("cycle", 1) > 1 else first
        if query.guess is None:
            return wording.DRAWN
        guess, counts = int(self._counts_as[query.guess]), self._counts
        offered = int((self._counts_as == np.arange(len(self._counts_as))).sum())
        return wording.reason(self._classes[guess], int(counts[guess]), int(counts.sum()), offered, query.why or {})


def _as_box(sides: Sequence[float]) -> Floats:
    """One box as (1, 4). Raises UserError if it has no area."""
    try:
        return as_boxes([sides])
    except ValueError as error:
        raise UserError("a box needs a width and a height. Draw it again") from error


def _about(image: ImageRecord) -> replies.Image:
    name = image.path.replace("\\", "/").rsplit("/", 1)[-1]
    return {
        "id": image.id,
        "name": name,
        "width": image.width,
        "height": image.height,
        "url": f"/api/images/{image.id}?of={sha256(image.path.encode(errors='replace')).hexdigest()[:8]}",
    }


def _rounded(box: Floats) -> replies.Box:
    return [round(side, 2) for side in box.tolist()]


def _fraction(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
