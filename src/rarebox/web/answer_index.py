"""What was asked and answered so far, kept in memory and brought up to date question by question, answer by answer.

All that is counted is in ``sums``, and changes with each answer by what its question was worth before and is after: no
count is made anew, however many answers there are. Labels stay as they came; what each counts as by now is looked up
where it matters, so that a class can be merged into another without going through all answers.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rarebox.labels.leases import Given, Lease, Question, agreement
from rarebox.project.project import HELD_OUT
from rarebox.types import Ints, Verdict

Merged = Mapping[int, int]
"""What labels of merged classes count as by now."""

INFORMATIVE = (Verdict.OBJECT, Verdict.NOT_AN_OBJECT)
"""Answers that say whether a guess was right."""


def counted(labels: Ints, merged: Merged) -> Ints:
    """Labels as what they count as: (N,) -> (N,)."""
    return np.array([merged.get(label, label) for label in labels.tolist()], dtype=np.int64)


def right(guess: int, labels: Sequence[int], merged: Merged) -> bool:
    """Whether the class that was guessed is among those that were said."""
    return merged.get(guess, guess) in [merged.get(label, label) for label in labels]


@dataclass
class History:
    """All that was said to one query: ``standing`` by person, ``ever`` how many answers that were not withdrawals."""

    question: Question
    standing: dict[str, Given] = field(default_factory=dict)
    ever: int = 0

    @property
    def latest(self) -> Given | None:
        """The answer that counts."""
        return max(self.standing.values(), key=lambda given: given.id, default=None)

    def agrees(self, merged: Merged) -> bool | None:
        """Whether people agree; None unless several have answered as was wanted."""
        if len(self.standing) < 2 or self.question.wanted < 2:
            return None
        answers = (given.answer for given in self.standing.values())
        return agreement([replace(answer, labels=counted(answer.labels, merged)) for answer in answers])

    def worth(self, merged: Merged) -> Iterator[tuple[tuple[Any, ...], int]]:
        """What it adds to the sums."""
        question, latest, agrees = self.question, self.latest, self.agrees(merged)
        cycle = question.cycle
        if question.asked_by is None:
            yield ("asked", cycle), 1
            if not self.standing:
                yield ("open", cycle), 1
        for name in self.standing:
            yield ("by", name), 1
        if agrees is not None:
            yield ("second opinions",), 1
            yield ("agreements",), int(agrees)
        if latest is None:
            return
        boxes, query = len(latest.answer.labels), latest.query
        yield ("labels", cycle), boxes
        yield ("reviews", cycle), max(boxes, question.asked_by is None) if query.box is None else 1
        for label in latest.answer.labels.tolist():
            yield ("label", label), 1
        if question.asked_by is None and query.guess is not None and latest.answer.verdict in INFORMATIVE:
            labels = latest.answer.labels.tolist()
            yield ("guesses", cycle), 1
            yield ("right guesses", cycle), int(right(query.guess, labels, merged))
            yield ("guessed", cycle, query.guess, *labels), 1
        if query.why and query.why.get(HELD_OUT) and latest.answer.verdict is not Verdict.CANNOT_TELL:
            yield ("held images",), 1
            yield ("held boxes",), boxes


class AnswerIndex:
    """Questions and answers by query, image and person."""

    def __init__(self) -> None:
        self.last_question, self.last_answer = 0, 0
        self.merged: Merged = {}
        self.queries: dict[int, History] = {}
        self.of_image: dict[int, set[int]] = defaultdict(set)
        self.of_person: dict[str, list[Given]] = defaultdict(list)
        self.sums: Counter[tuple[Any, ...]] = Counter()
        self._given: list[Given] = []
        self._differing: set[int] = set()
        self._wanting: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of each cycle: (position, id), sorted
        self._busy: dict[int, Counter[int]] = defaultdict(Counter)

    def merge(self, counts_as: Ints) -> None:
        """Labels count as others from now on, (K,), as the store says. Answers that agreed still do: only those that
        differed are looked at again."""
        differing = [self.queries[number] for number in self._differing]
        for history in differing:
            self._count(history, -1)
        self.merged = {label: into for label, into in enumerate(counts_as.tolist()) if label != into}
        for history in differing:
            self._count(history, 1)
        guessed = [(what, count) for what, count in self.sums.items() if what[0] == "guessed"]
        for (_, cycle, *_), _ in guessed:
            self.sums["right guesses", cycle] = 0
        for (_, cycle, guess, *labels), count in guessed:
            self.sums["right guesses", cycle] += count * right(guess, labels, self.merged)

    def take_in(self, asked: Iterable[Question], given: Iterable[Given]) -> None:
        """Further questions and answers, in the order in which they came."""
        for question in asked:
            history = self.queries[question.id] = History(question)
            self._count(history, 1)
            self.of_image[question.image_id].add(question.id)
            self.last_question = question.id
        for one in given:
            history = self.queries[one.query.id]
            self._count(history, -1)
            if one.answer.verdict is Verdict.WITHDRAWN:
                history.standing.pop(one.answer.by, None)
            else:
                history.standing[one.answer.by] = one
                history.ever += 1
            self._count(history, 1)
            self.of_person[one.answer.by].append(one)
            self._given.append(one)
            self.last_answer = one.id

    def _count(self, history: History, sign: int) -> None:
        for what, worth in history.worth(self.merged):
            self.sums[what] += sign * worth
        question = history.question
        if question.asked_by is None and len(history.standing) < question.wanted:
            wanting, place = self._wanting[question.cycle], (question.position, question.id)
            if sign > 0:
                insort(wanting, place)
            else:
                del wanting[bisect_left(wanting, place)]
        if question.asked_by is None and not history.standing:
            busy = self._busy[question.cycle]
            busy[question.image_id] += sign
            if not busy[question.image_id]:
                del busy[question.image_id]
        if history.agrees(self.merged) is False:
            (self._differing.add if sign > 0 else self._differing.discard)(question.id)

    # Questions

    def held(self, holder: str, by: str, leases: Sequence[Lease]) -> list[int]:
        """Queries that a holder is at work on and may answer."""
        taken = Counter(lease.query_id for lease in leases if lease.holder != holder)
        elsewhere = {lease.query_id for lease in leases if lease.by == by and lease.holder != holder}
        own = (lease.query_id for lease in leases if lease.holder == holder and lease.query_id in self.queries)
        return [number for number in own if number not in elsewhere and self._is_free(number, by, taken[number])]

    def open_to(self, holder: str, by: str, cycle: int, leases: Sequence[Lease]) -> Iterator[int]:
        """Queries of a cycle that this person may be given, in their order."""
        taken = Counter(lease.query_id for lease in leases)
        own = {lease.query_id for lease in leases if lease.by == by or lease.holder == holder}
        for _, number in self._wanting[cycle]:
            if number not in own and self._is_free(number, by, taken[number]):
                yield number

    def _is_free(self, number: int, by: str, taken: int) -> bool:
        history = self.queries[number]
        return len(history.standing) + taken < history.question.wanted and by not in history.standing

    def busy(self, cycle: int) -> Iterable[int]:
        """Images with a question of a cycle that nobody has answered."""
        return self._busy[cycle].keys()

    # Answers

    def standing(self) -> Iterator[Given]:
        """The answer that counts of every query that has one, newest first."""
        return (one for one in reversed(self._given) if self.queries[one.query.id].latest is one)

    def image(self, image_id: int) -> list[Given]:
        """The answers that count of one image, in the order of their queries."""
        found = (self.queries[query].latest for query in sorted(self.of_image.get(image_id, ())))
        return [one for one in found if one]

    def counts(self, classes: int) -> Ints:
        """Human boxes of each class: (K,)."""
        said = [self.sums["label", label] for label in range(classes)]
        return np.bincount(counted(np.arange(classes), self.merged), said, classes).astype(np.int64)

    def agreement_with_guesses(self, cycle: int) -> float | None:
        """Share of the guesses of a cycle that people confirmed; None where none was answered."""
        return self._share(("right guesses", cycle), ("guesses", cycle))

    def agreement_between_people(self) -> float | None:
        """Share of the questions answered twice, as was wanted, in which people said the same."""
        return self._share(("agreements",), ("second opinions",))

    def _share(self, part: tuple[Any, ...], whole: tuple[Any, ...]) -> float | None:
        return self.sums[part] / self.sums[whole] if self.sums[whole] else None

    def disagreements(self) -> list[History]:
        """Second opinions that differ and that nobody has decided on since."""
        differing = [self.queries[number] for number in sorted(self._differing)]
        return [history for history in differing if history.ever <= history.question.wanted]

    def per_minute(self, person: str, last: int = 20) -> float | None:
        """Answers a minute of working time, over a person's last ones."""
        given = self.of_person.get(person, [])[-last:]
        times = [one.answer.milliseconds for one in given if one.answer.milliseconds]
        return 60_000 * len(times) / sum(times) if len(times) >= 3 else None
