"""The server's index in memory agrees with the store and with a newly built index, after any actions."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rarebox.config import CostSettings
from rarebox.labels.cost import bill
from rarebox.labels.leases import Outcome, People, Status, Submission
from rarebox.labels.store import Store
from rarebox.project.project import HELD_OUT
from rarebox.types import ImageRecord, Query, Verdict
from rarebox.web.answer_index import AnswerIndex
from tests.thinned import first_seeds

PEOPLE = ("anna", "ben", "cleo")
SECONDS = 600
COST = CostSettings(longest=1)
"""No recorded time counts for more than the actions cost, so both of them count in these tests."""


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    """Whole images in cycle 1, and boxes, a third of them for two people, in cycle 2."""
    with Store(tmp_path / "labels.sqlite", classes=("fish", "ray", "shark"), flush=False) as store:
        store.add_images(ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 8))
        for cycle in (1, 2):
            store.open_cycle(cycle)
        store.ask(1, [Query(i, why={HELD_OUT: float(i == 2)}) for i in (1, 2, 3)])
        yield People(store)


def ask(people: People, number: int) -> None:
    box = np.array([number, 0, number + 10, 10], dtype=np.float32)
    people.store.ask(2, [Query(1 + number % 7, box, number % 3, wanted=1 + (number % 3 == 0))])


def act(people: People, dice: random.Random, step: int) -> Outcome | None:
    """Somebody answers, corrects, withdraws, draws a box, or gets a new question."""
    by, what = dice.choice(PEOPLE), dice.random()
    key, label = f"k{step}", dice.randrange(3)
    cycle = dice.choice((1, 2, 2))
    box = np.array([[dice.randrange(500), 0, 600, 10]], dtype=np.float32)
    if what < 0.25:
        ask(people, step)
        return None
    if what < 0.35:
        return people.submit(by, by, Submission(key, Verdict.OBJECT, box, np.array([label]), image_id=1 + step % 7))
    if what < 0.55 and (given := people.given()):
        one = dice.choice(given)
        verdict = dice.choice((Verdict.WITHDRAWN, Verdict.WITHDRAWN, Verdict.CANNOT_TELL))
        said = Submission(key, verdict, box[:0], np.zeros(0, np.int64), query_id=one.query.id, after=one.id)
        return people.submit(by, by, said, SECONDS)
    queries = people.claim(by, by, dice.randrange(1, 4), dice.choice((SECONDS, SECONDS, -1)), cycle)
    if not queries:
        return None
    query, verdict = dice.choice(queries), dice.choice((Verdict.OBJECT, Verdict.OBJECT, Verdict.NOT_AN_OBJECT))
    boxes = box if verdict is Verdict.OBJECT else box[:0]
    return people.submit(by, by, Submission(key, verdict, boxes, np.full(len(boxes), label), 1000, query.id))


def take_in(answer_index: AnswerIndex, people: People) -> AnswerIndex:
    answer_index.take_in(people.questions(answer_index.last_question), people.given(answer_index.last_answer))
    return answer_index


def roll_back(answer_index: AnswerIndex, people: People, dice: random.Random, step: int) -> None:
    """Take in what is then rolled back."""
    mark = answer_index.last_question, answer_index.last_answer
    with people.store.transaction(writes=True) as connection:
        undone = connection.begin_nested()
        for more in range(dice.randrange(4)):
            act(people, dice, 1000 * (step + 1) + more)
        take_in(answer_index, people)
        undone.rollback()
    answer_index.forget(*mark)


@pytest.mark.parametrize("seed", first_seeds(5))
def test_an_updated_index_agrees_with_the_store(people: People, seed: int) -> None:
    dice, answer_index, store, saved = random.Random(seed), AnswerIndex(COST), people.store, 0
    for step in range(250):
        outcome = act(people, dice, step)
        saved += outcome is not None and outcome.status is Status.SAVED
        if dice.random() < 0.5:
            take_in(answer_index, people)
        if dice.random() < 0.1:
            roll_back(answer_index, people, dice, step)
        if dice.random() < 0.2:
            answer_index.first_found()
    take_in(answer_index, people)
    assert saved > 80
    for cycle in (1, 2):
        spent, unanswered = store.spent(cycle), store.unanswered(cycle)
        assert (answer_index.sums["labels", cycle], answer_index.sums["reviews", cycle]) == (
            spent.labels,
            spent.reviews,
        )
        assert answer_index.sums["milliseconds", cycle] == bill(store, cycle, COST).milliseconds > 0
        assert answer_index.sums["asked", cycle] == sum(query.asked_by is None for query in store.queries(cycle))
        assert answer_index.sums["open", cycle] == len(unanswered)
        assert set(answer_index.busy(cycle)) == {query.image_id for query in unanswered}
    answered = {query.id: answer for query, answer in store.answered()}
    assert {one.query.id: one.id for one in answer_index.standing()}.keys() == answered.keys()
    for one in answer_index.standing():
        assert (one.answer.by, one.answer.labels.tolist()) == (
            answered[one.query.id].by,
            answered[one.query.id].labels.tolist(),
        )
    counting = {one.id for one in answer_index.standing()}
    boxes = [
        (label, (one.cycle, place))
        for place, one in enumerate(people.given(), 1)
        if one.id in counting
        for label in one.answer.labels.tolist()
    ]
    assert answer_index.first_found() == dict(reversed(boxes))
    asked_about = [q.guess for q, _ in store.answered() if q.asked_by is None and q.guess is not None]
    assert answer_index.asked_about(3).tolist() == np.bincount(asked_about, minlength=3).tolist()
    labels = [label for answer in answered.values() for label in answer.labels.tolist()]
    assert answer_index.counts(3).tolist() == np.bincount(labels, minlength=3).tolist()
    held = [
        answer
        for query, answer in store.answered(1)
        if query.why and query.why[HELD_OUT] and answer.verdict is not Verdict.CANNOT_TELL
    ]
    assert answer_index.sums["held images",] == len(held)
    said = {(one.query.id, one.answer.by): one.answer.verdict for one in people.given()}
    for name in PEOPLE:
        count = sum(by == name and verdict is not Verdict.WITHDRAWN for (_, by), verdict in said.items())
        assert answer_index.sums["by", name] == count

    anew = take_in(AnswerIndex(COST), people)
    assert {what: n for what, n in anew.sums.items() if n} == {what: n for what, n in answer_index.sums.items() if n}
    assert [h.question.id for h in anew.disagreements()] == [h.question.id for h in answer_index.disagreements()]
    twice = [h for h in anew.queries.values() if h.agrees({}) is not None]
    assert len(twice) > 3
    assert answer_index.agreement_between_people() == sum(bool(h.agrees({})) for h in twice) / len(twice)
    assert anew.disagreements() == [h for h in twice if not h.agrees({}) and h.ever <= h.question.wanted]


@pytest.mark.parametrize("seed", first_seeds(5))
def test_assignment_is_the_same_with_and_without_an_index(people: People, seed: int) -> None:
    dice, answer_index = random.Random(seed), AnswerIndex(COST)
    for step in range(75):
        act(people, dice, step)
        take_in(answer_index, people)
        for by in (*PEOPLE, "dora"):
            for tab in ("", "'s phone"):
                holder = by + tab
                leases = people.leases(holder)
                everything = [query.id for query in _would_be_given(people, holder, by)]
                held = answer_index.held(holder, {by}, leases)
                open_ones = list(answer_index.open_to(holder, {by}, 2, leases))
                assert (sorted(everything[: len(held)]), everything[len(held) :]) == (sorted(held), open_ones)


def _would_be_given(people: People, holder: str, by: str) -> list[Query]:
    """The result of claiming everything, which is then undone."""
    with people.store.transaction(writes=True) as connection:
        undone = connection.begin_nested()
        try:
            return people.claim(holder, by, 10**6, SECONDS)
        finally:
            undone.rollback()


@pytest.mark.parametrize("seed", first_seeds(5))
def test_an_index_that_learns_of_merged_classes_counts_like_a_new_one(people: People, seed: int) -> None:
    dice, answer_index = random.Random(seed), AnswerIndex(COST)
    for step in range(240):
        act(people, dice, step)
        take_in(answer_index, people)
        if step in (120, 180):
            people.merge_class(1 if step == 120 else 0, 2, "anna")
            answer_index.merge(people.store.counts_as())
    anew = take_in(AnswerIndex(COST), people)
    anew.merge(people.store.counts_as())
    assert answer_index.counts(3).tolist() == anew.counts(3).tolist()
    assert answer_index.counts(3)[:2].tolist() == [0, 0]
    for cycle in (1, 2):
        assert answer_index.agreement_with_guesses(cycle) == anew.agreement_with_guesses(cycle)
    assert (
        answer_index.agreement_with_guesses(2) == 1
        or answer_index.sums["guesses", 2] > answer_index.sums["right guesses", 2]
    )
    assert answer_index.agreement_between_people() == anew.agreement_between_people()
    assert [h.question.id for h in answer_index.disagreements()] == [h.question.id for h in anew.disagreements()]
    assert answer_index.asked_about(3).tolist() == anew.asked_about(3).tolist()
    named = ("guessed", "label", "asked about")  # of these the sum over classes is what counts
    told, plain = (
        {what: n for what, n in one.sums.items() if n and what[0] not in named} for one in (answer_index, anew)
    )
    assert told == plain
