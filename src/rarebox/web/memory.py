"""What the server keeps in memory of a project, so that no request reads all answers again."""

from collections.abc import Iterator
from itertools import islice
from threading import RLock
from typing import Literal

import numpy as np

from rarebox.labels.leases import Given, People
from rarebox.loop import rules
from rarebox.loop.metrics import CycleRecord, Meter
from rarebox.pool.candidates import rows_by_image
from rarebox.pool.similar import Search
from rarebox.project.project import Project, is_further
from rarebox.types import Candidates, ImageRecord, Ints
from rarebox.web.answer_index import AnswerIndex
from rarebox.web.writer import Mark

PIECE = 200
"""Answers that a filter reads at a time."""


class ProjectMemory:
    """One project as its store and its files are now. The writing thread keeps it up to date: see :class:`Writer`.

    Others hold ``lock`` while they read several values that belong together. ``version`` grows with every change,
    ``questions`` with every change of what may be asked.
    """

    def __init__(self, project: Project) -> None:
        self.project, self.people = project, People(project.store)
        self.lock = RLock()
        self.version, self.questions = 0, 0
        self.answer_index = AnswerIndex(project.settings.cost)
        self.cycle = -1
        self.asker: rules.CycleAsker | None = None
        self.shown: Candidates | None = None
        self.rows: dict[int, Ints] = {}
        self.budget, self.spent = 0, 0.0
        self.exhausted = False
        self.searches: dict[str, Search] = {}  # by person
        self.classes: tuple[str, ...] = ()
        self.counts: Ints = np.zeros(0, dtype=np.int64)
        self.counts_as: Ints = np.zeros(0, dtype=np.int64)
        self.session = ""
        self.records: list[CycleRecord] = []
        self.intervals: list[tuple[float, float] | None] = []
        self._class_reads = 0
        self.see_photos()
        self.refresh()

    def mark(self) -> Mark:
        """How far the store has been read, and the ranking asked from."""
        asked = self.asker.passed if self.asker else 0
        return self.answer_index.last_question, self.answer_index.last_answer, self._class_reads, asked

    def undo(self, mark: Mark) -> None:
        """Forget what was read or asked after a mark and rolled back."""
        if mark != self.mark():
            with self.lock:
                self.answer_index.forget(*mark[:2])
                self.reopen()

    def refresh(self) -> None:
        """Update the state in memory from the store."""
        project = self.project
        with self.lock:
            self.take_in()
            if (cycle := project.cycle) != self.cycle:
                self._open(cycle)
            budget = self.budget_of(cycle)
            self.budget, self.spent = budget.total, budget.spent
            self.counts = self.answer_index.counts(len(self.classes))
            self.session = project.store.session()
            self.version += 1

    def reopen(self) -> None:
        """Have the next refresh read the classes and the ranking of the cycle again."""
        self.cycle = -1

    def take_in(self) -> None:
        """Read questions and answers that are new in the store, including those of the current transaction."""
        with self.lock, self.project.store.transaction():
            given = self.people.given(after=self.answer_index.last_answer)
            asked = self.people.questions(after=self.answer_index.last_question)
            if any(one.answer.labels.max(initial=-1) >= len(self.classes) for one in given):
                self.see_classes()  # another process has added some
            self.answer_index.take_in(asked, given)
            for question in asked:
                if self.asker and question.cycle == self.cycle:
                    self.asker.was_asked(question.why)

    def see_photos(self) -> None:
        """Read where the photos are, which changes when moved ones are found."""
        self.images: dict[int, ImageRecord] = self.project.store.images()
        self.photos = self.project.photos()

    def see_classes(self) -> None:
        """Read the classes, which may have changed."""
        with self.lock, self.project.store.transaction():
            self._class_reads += 1
            self.classes, self.counts_as = self.project.store.classes(), self.project.store.counts_as()
            self.answer_index.merge(self.counts_as)
            self.counts = self.answer_index.counts(len(self.classes))

    def _open(self, cycle: int) -> None:
        """Prepare for the questions of a cycle."""
        project = self.project
        self.cycle = cycle
        self.see_classes()
        self.asker = project.asker(cycle) if cycle > 1 else None
        ranked = project.has_ranking(cycle)
        self.shown = project.read_ranking(cycle).candidates if ranked else project.read_predictions()
        self.rows = rows_by_image(self.shown) if self.shown else {}
        self.read_records()
        self.exhausted = False
        self.questions += 1

    def read_records(self) -> None:
        """Read what the finished cycles reached."""
        self.records = self.project.folder.records()
        self.intervals = [self.project.ap50_interval(record["cycle"]) for record in self.records]

    def budget_of(self, cycle: int) -> rules.Budget:
        """What a cycle may spend and has spent, counted without reading all answers again."""
        sums = self.answer_index.sums

        def count(what: Meter | Literal["asked", "open"]) -> float:
            return sums["milliseconds", cycle] / 1000 if what == "seconds" else sums[what, cycle]

        return rules.budget_of(self.project.settings, cycle, count)

    @property
    def initial_are_chosen(self) -> bool:
        """Whether the trainer has chosen the initial images, or labels replace them: imported ones, or those of all
        images. Until then, people are asked about random ones."""
        asked = (history.question for history in self.answer_index.queries.values())
        return self.cycle > 1 or bool(self.records) or any(one.cycle == 1 and not is_further(one) for one in asked)

    def class_of(self, guess: int | None) -> int | None:
        """A question's guess, after merges of classes."""
        return None if guess is None else int(self.counts_as[guess])

    def search_of(self, person: str) -> Search | None:
        """What a person looks for in the current cycle."""
        found = self.searches.get(person)
        return found if found and found.cycle == self.cycle else None

    def standing(self) -> Iterator[tuple[Given, list[int]]]:
        """The answers that count and their labels, newest first."""
        with self.lock:
            walk = self.answer_index.standing()
        while True:
            with self.lock:  # of a piece, so that other requests need not wait for all
                if not (piece := [(one, self.counted(one)) for one in islice(walk, PIECE)]):
                    return
            yield from piece

    def counted(self, one: Given) -> list[int]:
        """The labels of an answer, after merges of classes."""
        return self.counts_as[one.answer.labels].tolist()
