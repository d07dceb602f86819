"""What was answered so far, kept in memory and brought up to date answer by answer."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from rarebox.people import Given, agreement
from rarebox.types import Ints, Verdict

TELLING = (Verdict.OBJECT, Verdict.NOT_AN_OBJECT)
"""Answers that say whether a guess was right."""


@dataclass
class History:
    """All that was said to one query: ``standing`` by person, ``ever`` how many answers that were not withdrawals."""

    standing: dict[str, Given] = field(default_factory=dict)
    ever: int = 0

    @property
    def latest(self) -> Given | None:
        """The answer that counts."""
        return max(self.standing.values(), key=lambda given: given.id, default=None)


class Ledger:
    """Answers by query, image and person."""

    def __init__(self) -> None:
        self.last = 0
        self.queries: dict[int, History] = {}
        self.of_image: dict[int, set[int]] = defaultdict(set)
        self.of_person: dict[str, list[Given]] = defaultdict(list)

    def take_in(self, given: Iterable[Given]) -> None:
        """Further answers, in the order in which they came."""
        for one in given:
            history = self.queries.setdefault(one.query.id, History())
            if one.answer.verdict is Verdict.WITHDRAWN:
                history.standing.pop(one.answer.by, None)
            else:
                history.standing[one.answer.by] = one
                history.ever += 1
            self.of_image[one.query.image_id].add(one.query.id)
            self.of_person[one.answer.by].append(one)
            self.last = one.id

    def standing(self) -> Iterator[Given]:
        """The answer that counts of every query that has one, newest first."""
        found = (history.latest for history in self.queries.values())
        return iter(sorted((one for one in found if one), key=lambda one: -one.id))

    def image(self, image_id: int) -> list[Given]:
        """The answers that count of one image, in the order of their queries."""
        found = (self.queries[query].latest for query in sorted(self.of_image.get(image_id, ())))
        return [one for one in found if one]

    def counts(self, classes: int) -> Ints:
        """Human boxes of each class: (K,)."""
        labels = [one.answer.labels for one in self.standing()]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=classes)

    def agreement_with_guesses(self, cycle: int) -> float | None:
        """Share of the guesses of a cycle that people confirmed; None where none was answered."""
        told = [
            one.query.guess in one.answer.labels
            for one in self.standing()
            if one.cycle == cycle and one.query.asked_by is None and one.query.guess is not None
            and one.answer.verdict in TELLING
        ]  # fmt: skip
        return sum(told) / len(told) if told else None

    def second_opinions(self) -> Iterator[tuple[History, bool]]:
        """Every query that several people have answered as was wanted, and whether they agree."""
        for history in self.queries.values():
            answers = list(history.standing.values())
            if len(answers) > 1 and answers[0].query.wanted > 1:
                yield history, agreement([one.answer for one in answers])

    def disagreements(self) -> list[History]:
        """Second opinions that differ and that nobody has decided on since."""
        return [
            history
            for history, agree in self.second_opinions()
            if not agree and history.ever <= next(iter(history.standing.values())).query.wanted
        ]

    def per_minute(self, person: str, last: int = 20) -> float | None:
        """Answers a minute of working time, over a person's last ones."""
        times = [one.answer.milliseconds for one in self.of_person.get(person, [])[-last:] if one.answer.milliseconds]
        return 60_000 * len(times) / sum(times) if len(times) >= 3 else None
