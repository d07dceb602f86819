"""An index of all questions and answers in memory, updated with each of them.

All counts are in ``sums``. An answer changes them by the difference between what its question adds after and before it,
so the cost of an update does not grow with the number of answers. Labels are stored as given and mapped when read, so
merging two classes does not visit every answer.
"""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Literal

import numpy as np

from rarebox.config import CostSettings
from rarebox.labels.cost import Action, Actions, Pace, actions_of, expected_seconds, fit_pace, milliseconds
from rarebox.labels.leases import Given, Lease, Question, agreement
from rarebox.pool.similar import SIMILARITY
from rarebox.project.project import HELD_OUT
from rarebox.types import JUDGED, Ints, Verdict

Merged = Mapping[int, int]
"""Labels of merged classes, and the labels that they count as."""

Sum = tuple[str | int, ...]
"""The key of a sum: what it counts, and for which cycle, label or person."""


Unit = Literal["images", "labels", "reviews"]

RECENT, SEARCHED = 50, 200
"""The answers from which the next ones are predicted, and the most among which they are looked for."""

CONFIRMED, REJECTED = (Actions({Action.LOOK: 1, action: 1}) for action in (Action.CONFIRM, Action.REJECT))
"""What is expected before there are answers: one of each."""


def counted(labels: Ints, merged: Merged) -> Ints:
    """The labels that labels count as: (N,) -> (N,)."""
    return np.array([merged.get(label, label) for label in labels.tolist()], dtype=np.int64)


def right(guess: int, labels: Sequence[int], merged: Merged) -> bool:
    """Whether the guessed class is among the labels of the answer."""
    return merged.get(guess, guess) in [merged.get(label, label) for label in labels]


@dataclass
class History:
    """The answers to one query: all of them in their order, and those ``standing`` by person.

    ``new_image``: the question asked before it in its cycle is about another image.
    """

    question: Question
    cost: CostSettings
    new_image: bool
    given: list[Given] = field(default_factory=list[Given])
    standing: dict[str, Given] = field(default_factory=dict[str, Given])

    def add(self, one: Given) -> None:
        self.given.append(one)
        self._apply(one)

    def remove_last(self) -> None:
        self.given.pop()
        self.standing.clear()
        for one in self.given:
            self._apply(one)

    def _apply(self, one: Given) -> None:
        if one.answer.verdict is Verdict.WITHDRAWN:
            self.standing.pop(one.answer.by, None)
        else:
            self.standing[one.answer.by] = one

    @property
    def ever(self) -> int:
        """How many answers were not withdrawals."""
        return sum(one.answer.verdict is not Verdict.WITHDRAWN for one in self.given)

    @property
    def latest(self) -> Given | None:
        """The answer that counts."""
        return max(self.standing.values(), key=lambda given: given.id, default=None)

    def agrees(self, merged: Merged) -> bool | None:
        """Whether annotators agree; None unless the query wanted several answers and has them."""
        if len(self.standing) < 2 or self.question.wanted < 2:
            return None
        answers = (given.answer for given in self.standing.values())
        return agreement([replace(answer, labels=counted(answer.labels, merged)) for answer in answers])

    def contributions(self, merged: Merged) -> Iterator[tuple[Sum, int]]:
        """What the query adds to the sums."""
        question, latest, agrees = self.question, self.latest, self.agrees(merged)
        cycle = question.cycle
        if question.asked_by is None:
            yield ("asked", cycle), 1
            if not self.standing:
                yield ("open", cycle), 1
        for name in self.standing:
            yield ("by", name), 1
        for one in self.given:
            yield ("milliseconds", cycle), milliseconds(one.query, one.answer, self.cost, self.new_image)
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
        if question.asked_by is None and query.guess is not None:
            yield ("asked about", query.guess), 1
        guess = None if SIMILARITY in (query.why or {}) else query.guess  # the detector's
        if question.asked_by is None and guess is not None and latest.answer.verdict in JUDGED:
            labels = latest.answer.labels.tolist()
            yield ("guesses", cycle), 1
            yield ("right guesses", cycle), int(right(guess, labels, merged))
            yield ("guessed", cycle, guess, *labels), 1
        if query.why and query.why.get(HELD_OUT) and latest.answer.verdict is not Verdict.CANNOT_TELL:
            yield ("held images",), 1
            yield ("held boxes",), boxes


class AnswerIndex:
    """Questions and answers by query, image and person."""

    def __init__(self, cost: CostSettings) -> None:
        self.cost = cost
        self.last_question, self.last_answer = 0, 0
        self.merged: Merged = {}
        self.queries: dict[int, History] = {}
        self.of_image: dict[int, set[int]] = defaultdict(set)
        self.of_person: dict[str, list[Given]] = defaultdict(list)
        self.sums: Counter[Sum] = Counter()
        self._given: list[Given] = []
        self._known_actions: dict[int, Actions] = {}
        self._first: dict[int, int] = {}  # of each label, the place in `_given` of its first box ever
        self._standing_first: dict[int, int] = {}  # the same without answers that were corrected, as far as it is known
        self._differing: set[int] = set()
        self._wanting: dict[int, list[tuple[int, int]]] = defaultdict(list)  # of each cycle: (position, id), sorted
        self._busy: dict[int, Counter[int]] = defaultdict(Counter)
        self._images: dict[int, list[int]] = defaultdict(lambda: [0])  # of each cycle's questions, in their order

    def merge(self, counts_as: Ints) -> None:
        """Apply merged classes: (K,), what each label counts as. Answers that agreed still agree, so only those that
        differed are compared again."""
        differing = [self.queries[number] for number in self._differing]
        for history in differing:
            self._count(history, -1)
        self.merged = {label: into for label, into in enumerate(counts_as.tolist()) if label != into}
        for history in differing:
            self._count(history, 1)
        guessed = [(map(int, what[1:]), count) for what, count in self.sums.items() if what[0] == "guessed"]
        for what in [what for what in self.sums if what[0] == "right guesses"]:
            self.sums[what] = 0
        for (cycle, guess, *labels), count in guessed:
            self.sums["right guesses", cycle] += count * right(guess, labels, self.merged)

    def take_in(self, asked: Iterable[Question], given: Iterable[Given]) -> None:
        """Add new questions and answers, in the order in which they were stored."""
        for question in asked:
            images = self._images[question.cycle]
            history = self.queries[question.id] = History(question, self.cost, question.image_id != images[-1])
            if question.asked_by is None:
                images.append(question.image_id)
            self._count(history, 1)
            self.of_image[question.image_id].add(question.id)
            self.last_question = question.id
        for one in given:
            history = self.queries[one.query.id]
            self._count(history, -1)
            history.add(one)
            self._count(history, 1)
            self.of_person[one.answer.by].append(one)
            for label in one.answer.labels.tolist():
                self._first.setdefault(label, len(self._given))
            if len(history.given) > 1:
                self._standing_first.clear()
            self._given.append(one)
            self.last_answer = one.id

    def forget(self, last_question: int, last_answer: int) -> None:
        """Undo what was taken in after these two, because it was rolled back. The cost does not grow with the rest."""
        while self._given and (one := self._given[-1]).id > last_answer:
            history = self.queries[one.query.id]
            self._count(history, -1)
            history.remove_last()
            self._count(history, 1)
            self.of_person[one.answer.by].pop()
            self._given.pop()
            self._known_actions.pop(one.id, None)
        self._first = {label: place for label, place in self._first.items() if place < len(self._given)}
        self._standing_first.clear()
        while self.queries and (number := next(reversed(self.queries))) > last_question:
            history = self.queries.pop(number)
            self._count(history, -1)
            if history.question.asked_by is None:
                self._images[history.question.cycle].pop()
            self.of_image[history.question.image_id].discard(number)
        self.last_question, self.last_answer = last_question, last_answer

    def _count(self, history: History, sign: int) -> None:
        for what, number in history.contributions(self.merged):
            self.sums[what] += sign * number
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

    def held(self, holder: str, names: Collection[str], leases: Sequence[Lease]) -> list[int]:
        """Queries that a holder, a person with these ``names``, has leased and may answer."""
        taken = Counter(lease.query_id for lease in leases if lease.holder != holder)
        elsewhere = {lease.query_id for lease in leases if lease.by in names and lease.holder != holder}
        own = (lease.query_id for lease in leases if lease.holder == holder and lease.query_id in self.queries)
        return [number for number in own if number not in elsewhere and self._is_free(number, names, taken[number])]

    def open_to(self, holder: str, names: Collection[str], cycle: int, leases: Sequence[Lease]) -> Iterator[int]:
        """Queries of a cycle that may be assigned to this person, in their order."""
        taken = Counter(lease.query_id for lease in leases)
        own = {lease.query_id for lease in leases if lease.by in names or lease.holder == holder}
        for _, number in self._wanting[cycle]:
            if number not in own and self._is_free(number, names, taken[number]):
                yield number

    def _is_free(self, number: int, names: Collection[str], taken: int) -> bool:
        standing, question = self.queries[number].standing, self.queries[number].question
        return len(standing) + taken < question.wanted and not any(name in standing for name in names)

    def unanswered(self, cycle: int) -> Iterator[Question]:
        """The questions of a cycle that nobody has answered, in their order."""
        return (one.question for _, number in self._wanting[cycle] if not (one := self.queries[number]).standing)

    def busy(self, cycle: int) -> Iterable[int]:
        """Images with an unanswered question of a cycle."""
        return self._busy[cycle].keys()

    def in_hand(self, leases: Sequence[Lease], cycle: int) -> set[int]:
        """Images about which somebody holds an unanswered question of an earlier cycle."""
        held = (self.queries[lease.query_id] for lease in leases if lease.query_id in self.queries)
        return {one.question.image_id for one in held if one.question.cycle < cycle and not one.standing}

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
        boxes = [self.sums["label", label] for label in range(classes)]
        return np.bincount(counted(np.arange(classes), self.merged), boxes, classes).astype(np.int64)

    def asked_about(self, classes: int) -> Ints:
        """Answered questions about a box that was taken for each class: (K,)."""
        asked = [self.sums["asked about", label] for label in range(classes)]
        return np.bincount(counted(np.arange(classes), self.merged), asked, classes).astype(np.int64)

    def first_found(self) -> dict[int, tuple[int, int]]:
        """For each class with a box: the cycle of its first one, and how many answers there were until then.

        A box that was corrected or withdrawn since does not count. Only after a correction are answers searched again.
        """
        found: dict[int, tuple[int, int]] = {}
        for label, ever in self._first.items():
            place = self._standing_first[label] = self._search(label, self._standing_first.get(label, ever))
            if place < len(self._given):
                into = self.merged.get(label, label)
                earlier = found.get(into, (0, place + 1))[1]
                if place < earlier:
                    found[into] = self._given[place].cycle, place + 1
        return found

    def _search(self, label: int, place: int) -> int:
        """The place of the first answer from ``place`` on that counts and has a box of the class."""
        while place < len(self._given):
            one = self._given[place]
            if label in one.answer.labels and self.queries[one.query.id].latest is one:
                break
            place += 1
        return place

    def agreement_with_guesses(self, cycle: int) -> float | None:
        """Fraction of a cycle's guesses that annotators confirmed; None if none was answered."""
        return self._fraction(("right guesses", cycle), ("guesses", cycle))

    def agreement_between_people(self) -> float | None:
        """Fraction of the questions with two wanted answers in which the answers agree; None if there are none."""
        return self._fraction(("agreements",), ("second opinions",))

    def _fraction(self, part: Sum, whole: Sum) -> float | None:
        return self.sums[part] / self.sums[whole] if self.sums[whole] else None

    def disagreements(self) -> list[History]:
        """Questions with different answers that nobody has resolved since."""
        differing = [self.queries[number] for number in sorted(self._differing)]
        return [history for history in differing if history.ever <= history.question.wanted]

    def seconds_each(self, person: str, unit: Unit) -> float | None:
        """About how long one image, label or review takes a person, by the latest answers and the person's pace.

        None for images before the first one is labelled.
        """
        whole, pace = unit == "images", self._pace(person)
        asked = (one for one in islice(self.standing(), SEARCHED) if one.query.asked_by is None)
        recent = islice((one for one in asked if (one.query.box is None) == whole), RECENT)
        seen = [(self._actions(one), len(one.answer.labels) if unit == "labels" else 1) for one in recent]
        seen += [] if whole else [(CONFIRMED, 1), (REJECTED, int(unit == "reviews"))]
        paid = sum(count for _, count in seen)
        return sum(expected_seconds(each, self.cost, pace) for each, _ in seen) / paid if paid else None

    def _pace(self, person: str) -> Pace:
        """The pace of a person by the latest timed answers."""
        given = [one for one in self.of_person.get(person, [])[-SEARCHED:] if one.answer.milliseconds]
        return fit_pace(((self._actions(one), one.answer.milliseconds) for one in given), self.cost)

    def _actions(self, one: Given) -> Actions:
        if one.id not in self._known_actions:
            self._known_actions[one.id] = actions_of(one.query, one.answer, self.queries[one.query.id].new_image)
        return self._known_actions[one.id]

    def per_minute(self, person: str, last: int = 20) -> float | None:
        """Answers per minute of working time, over a person's last ones; None if fewer than three are timed."""
        given = self.of_person.get(person, [])[-last:]
        times = [one.answer.milliseconds for one in given if one.answer.milliseconds]
        return 60_000 * len(times) / sum(times) if len(times) >= 3 else None
