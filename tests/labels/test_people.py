"""Several annotators on one store: leases, versioned answers, withdrawals, class changes."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox.errors import UserError
from rarebox.labels.leases import Outcome, People, Status, Submission, agreement
from rarebox.labels.store import Store
from rarebox.types import Answer, ImageRecord, Query, Verdict

A, B, C, D = ([x, 0.0, x + 10, 10.0] for x in (0.0, 100.0, 200.0, 300.0))
NOTHING = np.zeros((0, 4), dtype=np.float32)


class Hands:
    """A monotonic clock that a test sets."""

    seconds = 5000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def people(database: str, hands: Hands) -> Iterator[People]:
    """A store with three classes, images 1 to 9, and in cycle 1 a question on each of four boxes of four images."""
    with Store(database, classes=("fish", "ray", "shark"), flush=False) as store:
        store.add_images(ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 10))
        store.open_cycle(1)
        store.ask(1, [Query(i, np.array(box, dtype=np.float32), 0) for i, box in enumerate((A, B, C, D), start=1)])
        yield People(store, hands)


def said(
    key: str,
    query: int | None = None,
    verdict: Verdict = Verdict.OBJECT,
    *objects: tuple[list[float], int],
    **more: Any,
) -> Submission:
    boxes = np.array([box for box, _ in objects], dtype=np.float32).reshape(-1, 4)
    return Submission(key, verdict, boxes, np.array([label for _, label in objects], np.int64), query_id=query, **more)


def claimed(people: People, holder: str, want: int = 1, by: str | None = None, seconds: float = 100) -> list[int]:
    return [q.id for q in people.claim(holder, by or holder, want, seconds)]


def waiting(people: People) -> int:
    """How many of the four questions nobody holds."""
    return 4 - len(people.leases())


def told(outcome: Outcome) -> tuple[Status, int | None]:
    return outcome.status, outcome.answer_id


def test_a_question_is_one_persons_until_its_lease_ends(people: People, hands: Hands) -> None:
    assert claimed(people, "anna", 2) == [1, 2]
    assert claimed(people, "ben", 3) == [3, 4]
    assert claimed(people, "anna", 2) == [1, 2]  # she keeps her questions
    assert claimed(people, "anna", 4) == [1, 2]
    assert waiting(people) == 0
    hands.seconds += 200
    assert waiting(people) == 4
    assert claimed(people, "cleo", 3) == [1, 2, 3]
    refused = people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0)))
    assert refused.status is Status.REFUSED
    assert "somebody else" in str(refused.reason)
    assert people.submit("ben", "ben", said("k2", 4, Verdict.OBJECT, (D, 0))).status is Status.SAVED  # nobody took it


def test_a_question_whose_lease_ended_is_not_assigned_twice(people: People, hands: Hands) -> None:
    assert claimed(people, "anna", 2) == [1, 2]
    hands.seconds += 200
    assert claimed(people, "ben", 1) == [1]
    assert claimed(people, "anna", 2) == [2, 3]
    assert people.submit("ben", "ben", said("k1", 1, Verdict.OBJECT, (A, 0))).status is Status.SAVED


def test_only_named_questions_are_considered(people: People) -> None:
    assert claimed(people, "ben") == [1]
    assert [q.id for q in people.claim("anna", "anna", 2, 100, among=[1, 3, 4])] == [3, 4]  # 1 is ben's
    assert [q.id for q in people.claim("anna", "anna", 3, 100, among=[2])] == [3, 4, 2]
    assert [q.id for q in people.claim("cleo", "cleo", 3, 100, among=[])] == []
    assert sorted(lease[:3] for lease in people.leases()) == [
        (1, "ben", "ben"),
        (2, "anna", "anna"),
        (3, "anna", "anna"),
        (4, "anna", "anna"),
    ]


def test_a_refused_submission_leaves_nothing_behind(people: People) -> None:
    with people.store.transaction(writes=True):
        refused = people.submit("anna", "anna", said("k1", None, Verdict.OBJECT, (A, 7), image_id=5))  # no such class
        assert refused.status is Status.REFUSED
        nowhere = people.submit("anna", "anna", said("k2", None, Verdict.OBJECT, image_id=77, complete=True))
        assert nowhere.status is Status.REFUSED
        assert people.submit("anna", "anna", said("k3", None, Verdict.OBJECT, (A, 1), image_id=5)).status == "saved"
    assert [(q.image_id, q.asked_by) for q in people.store.queries(1) if q.asked_by] == [(5, "anna")]


def test_two_servers_at_one_database(people: People, database: str) -> None:
    """Writers take turns: no question is assigned twice, and ids are in order."""
    boxes = [np.array([x, 0, x + 5, 5], dtype=np.float32) for x in range(100)]
    asked = [query.id for query in people.store.ask(1, [Query(1 + x % 9, box, 0) for x, box in enumerate(boxes)])]

    def work(name: str) -> list[int]:
        mine: list[int] = []
        with Store(database, flush=False) as store:
            while found := claimed(People(store), name, 3):
                for number in found:
                    said_it = People(store).submit(name, name, said(f"{name} {number}", number, Verdict.CANNOT_TELL))
                    assert said_it.status is Status.SAVED
                mine += found
        return mine

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(work, ("anna", "ben", "cleo")))
    assert sorted(number for mine in done for number in mine) == [1, 2, 3, 4, *asked]
    assert all(mine == sorted(mine) for mine in done)


def test_a_question_of_a_closed_tab_returns_to_its_person(people: People, hands: Hands) -> None:
    assert claimed(people, "anna 1", 2, by="anna") == [1, 2]
    assert claimed(people, "ben", 2) == [3, 4]
    assert claimed(people, "anna 2", 2, by="anna") == []
    assert not people.leave_other_tabs("anna 2", "anna", 100)  # that tab may be open: it sent a request recently
    hands.seconds += 60
    assert people.leave_other_tabs("anna 2", "anna", 100)
    assert claimed(people, "anna 2", 2, by="anna") == [1, 2]
    assert not people.leave_other_tabs("anna 2", "anna", 100)
    assert people.submit("anna 1", "anna", said("k1", 1, Verdict.NOT_AN_OBJECT)).status is Status.REFUSED
    assert claimed(people, "ben", 4) == [3, 4]


def test_a_tab_that_reports_its_closing_releases_its_questions(people: People) -> None:
    assert claimed(people, "anna 1", 3, by="anna") == [1, 2, 3]
    assert claimed(people, "ben", 2) == [4]
    people.let_go("anna 1")
    assert claimed(people, "anna 2", 1, by="anna") == [1]
    assert claimed(people, "ben", 2) == [4, 2]
    assert claimed(people, "anna 1", 2, by="anna") == [3]  # reloaded: unclaimed questions are still its own
    assert people.submit("ben", "ben", said("k1", 4, Verdict.NOT_AN_OBJECT)).status is Status.SAVED


def test_an_answer_is_recorded_and_the_question_gone(people: People) -> None:
    claimed(people, "anna")
    assert told(people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 2), milliseconds=7))) == ("saved", 1)
    (given,) = people.given()
    assert (given.id, given.query.id, given.answer.labels.tolist(), given.answer.by) == (1, 1, [2], "anna")
    assert (given.answer.milliseconds, given.cycle) == (7, 1)
    assert people.given(after=1) == []
    assert claimed(people, "anna", 4) == [2, 3, 4]


def test_the_same_key_again_saves_once(people: People) -> None:
    claimed(people, "anna")
    for _ in range(2):
        assert told(people.submit("anna", "anna", said("k1", 1, Verdict.NOT_AN_OBJECT))) == ("saved", 1)
    assert told(people.submit("anna", "anna", said("k2", None, Verdict.OBJECT, (A, 1), image_id=5))) == ("saved", 2)
    assert told(people.submit("anna", "anna", said("k2", None, Verdict.OBJECT, (A, 1), image_id=5))) == ("saved", 2)
    assert len(people.given()) == 2
    assert people.store.spent().labels == 1


@pytest.mark.parametrize(
    ("by", "other"),
    [
        ("anna", said("k1", 2, Verdict.OBJECT, (A, 0))),
        ("anna", said("k1", 1, Verdict.OBJECT, (B, 0))),
        ("anna", said("k1", 1, Verdict.OBJECT, (A, 1))),
        ("anna", said("k1", 1, Verdict.NOT_AN_OBJECT)),
        ("ben", said("k1", 1, Verdict.OBJECT, (A, 0))),
        ("anna", said("k1", None, Verdict.OBJECT, (A, 0), image_id=1)),
        ("anna", said("k2", None, Verdict.OBJECT, (B, 0), image_id=6)),
        ("anna", said("k2", None, Verdict.OBJECT, (A, 0), image_id=5)),
        ("anna", said("k2", None, Verdict.OBJECT, image_id=5, complete=True)),
        ("anna", said("k2", 1, Verdict.OBJECT, (B, 0))),
    ],
)
def test_another_answer_under_a_known_key_is_refused(people: People, by: str, other: Submission) -> None:
    claimed(people, "anna", 2)
    first = said("k1", 1, Verdict.OBJECT, (A, 0)), said("k2", None, Verdict.OBJECT, (B, 0), image_id=5)
    assert [people.submit("anna", "anna", one).status for one in first] == ["saved", "saved"]
    refused = people.submit(by, by, other)
    assert (refused.status, refused.answer_id) == (Status.REFUSED, None)
    assert "another answer was saved under this key" in str(refused.reason)
    assert [people.submit("anna", "anna", one).answer_id for one in first] == [1, 2]
    assert len(people.given()) == 2


def test_the_same_answer_again_is_known_after_clipping_merging_and_correcting(people: People) -> None:
    claimed(people, "anna", 2)
    beyond = said("k1", 1, Verdict.OBJECT, ([-5.0, -5.0, 10.25, 2000.0], 1))
    assert told(people.submit("anna", "anna", beyond)) == ("saved", 1)
    people.merge_class(1, 0, "ben")
    assert told(people.submit("ben", "ben", said("k2", 1, Verdict.OBJECT, (A, 2), after=1))) == ("saved", 2)
    assert told(people.submit("anna", "anna", beyond)) == ("saved", 1)
    taken_back = said("k3", 1, Verdict.WITHDRAWN, after=2)
    assert [told(people.submit("ben", "ben", taken_back)) for _ in range(2)] == [("saved", 3)] * 2


def test_only_the_assigned_person_may_answer_a_question(people: People) -> None:
    outcome = people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0)))
    assert outcome.status is Status.REFUSED
    assert "not assigned to you" in str(outcome.reason)
    assert people.submit("anna", "anna", said("k2", 99, Verdict.OBJECT, (A, 0))).status is Status.REFUSED
    assert people.given() == []


def test_invalid_answers_are_refused(people: People) -> None:
    claimed(people, "anna")
    for bad in (
        said("k", 1, Verdict.OBJECT, (A, 3)),
        said("k", 1, Verdict.NOT_AN_OBJECT, (A, 0)),
        said("k", 1, Verdict.WITHDRAWN),
        said("k", None, Verdict.OBJECT, image_id=5),
        said("k", None, Verdict.OBJECT, (A, 0), image_id=77),
        said("k", None, Verdict.OBJECT, (A, 0), image_id=5, complete=True),
    ):
        assert people.submit("anna", "anna", bad).status is Status.REFUSED, bad
    assert people.given() == []


def test_a_correction_names_what_it_corrects(people: People) -> None:
    claimed(people, "anna")
    people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0)))
    assert told(people.submit("ben", "ben", said("k2", 1, Verdict.OBJECT, (A, 1), after=1))) == ("saved", 2)
    late = people.submit("anna", "anna", said("k3", 1, Verdict.OBJECT, (A, 2), after=1))
    assert late.status is Status.CONFLICT
    assert late.current
    assert (late.current.id, late.current.answer.by, late.current.answer.labels.tolist()) == (2, "ben", [1])
    assert people.store.labels_of(1).labels.tolist() == [1]
    assert people.submit("anna", "anna", said("k4", 2, Verdict.OBJECT, (B, 2), after=1)).status is Status.CONFLICT


def test_a_withdrawn_answer_reopens_the_question_for_its_author(people: People) -> None:
    claimed(people, "anna")
    people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0)))
    others = people.submit("ben", "ben", said("k2", 1, Verdict.WITHDRAWN, after=1))
    assert others.status is Status.REFUSED
    assert told(people.submit("anna", "anna", said("k3", 1, Verdict.WITHDRAWN, after=1), seconds=100)) == ("saved", 2)
    assert (len(people.store.labels_of(1).boxes), people.store.spent().labels) == (0, 0)
    assert [q.id for q in people.store.unanswered(1)] == [1, 2, 3, 4]
    assert claimed(people, "ben", 2) == [2, 3]
    assert claimed(people, "anna", 1) == [1]
    assert told(people.submit("anna", "anna", said("k4", 1, Verdict.OBJECT, (A, 1)))) == ("saved", 3)
    assert people.store.labels_of(1).labels.tolist() == [1]


def test_a_withdrawn_correction_leaves_the_answer_before_it(people: People) -> None:
    claimed(people, "anna")
    people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0)))
    people.submit("ben", "ben", said("k2", 1, Verdict.OBJECT, (A, 1), after=1))
    people.submit("ben", "ben", said("k3", 1, Verdict.WITHDRAWN, after=2))
    assert people.store.labels_of(1).labels.tolist() == [0]


def test_two_answers_are_wanted_of_two_people(people: People) -> None:
    box = np.array(A, dtype=np.float32)
    (twice,) = people.store.ask(1, [Query(9, box, 0, wanted=2)])
    assert claimed(people, "anna", 9) == [1, 2, 3, 4, twice.id]
    assert claimed(people, "ben", 9) == [twice.id]
    assert claimed(people, "cleo", 9) == []
    assert claimed(people, "anna's phone", 9, by="anna") == []
    people.submit("anna", "anna", said("k1", twice.id, Verdict.OBJECT, (A, 0)))
    assert claimed(people, "anna's phone", 9, by="anna") == []
    assert people.submit("ben", "ben", said("k2", twice.id, Verdict.NOT_AN_OBJECT)).status is Status.SAVED
    assert people.submit("cleo", "cleo", said("k3", twice.id, Verdict.NOT_AN_OBJECT)).status is Status.CONFLICT
    decided = people.submit("cleo", "cleo", said("k4", twice.id, Verdict.OBJECT, (A, 0), after=2))
    assert decided.status is Status.SAVED
    assert people.store.labels_of(9).labels.tolist() == [0]


def test_nobody_gives_a_second_opinion_on_their_own_answer_under_another_name(people: People) -> None:
    box = np.array(A, dtype=np.float32)
    twice, other = people.store.ask(1, [Query(9, box, 0, wanted=2), Query(8, box, 0, wanted=2)])
    assert claimed(people, "bob", 9) == [1, 2, 3, 4, twice.id, other.id]
    people.submit("bob", "bob", said("k1", twice.id, Verdict.OBJECT, (A, 0)))
    people.let_go("bob")
    robert = {"by": "robert", "former": ("bob",)}
    free = [q.id for q in people.claim("phone", want=9, seconds=100, **robert)]
    assert free == [1, 2, 3, 4, other.id]
    again = people.submit("phone", said=said("k2", twice.id, Verdict.OBJECT, (A, 0)), **robert)
    assert again.status is Status.CONFLICT
    assert claimed(people, "cleo", 9) == [twice.id, other.id]


def test_a_lease_under_a_former_name_is_the_persons_own(people: People, hands: Hands) -> None:
    box = np.array(A, dtype=np.float32)
    (twice,) = people.store.ask(1, [Query(9, box, 0, wanted=2)])
    assert claimed(people, "tab", 9, by="bob") == [1, 2, 3, 4, twice.id]
    assert people.claim("phone", "robert", 9, 100, former=("bob",)) == []
    hands.seconds += 60
    assert people.leave_other_tabs("phone", "robert", 100, former=("bob",))
    assert len(people.claim("phone", "robert", 9, 100, former=("bob",))) == 5


def test_deciding_after_answering_under_a_former_name_counts_as_one_person(people: People) -> None:
    box = np.array(A, dtype=np.float32)
    (twice,) = people.store.ask(1, [Query(9, box, 0, wanted=2)])
    claimed(people, "bob", 9)
    claimed(people, "ben", 9)
    first = people.submit("bob", "bob", said("k1", twice.id, Verdict.OBJECT, (A, 0)))
    second = people.submit("ben", "ben", said("k2", twice.id, Verdict.OBJECT, (A, 1)))
    assert (first.status, second.status) == (Status.SAVED, Status.SAVED)
    corrected = said("k3", twice.id, Verdict.OBJECT, (A, 1), after=second.answer_id)
    assert people.submit("bob", "robert", corrected, former=("bob",)).status is Status.SAVED
    assert [(one.answer.by, one.answer.labels.tolist()) for one in people.given()] == [
        ("bob", [0]),
        ("ben", [1]),
        ("bob", [1]),
    ]


def test_a_missed_object_and_a_complete_image(people: People) -> None:
    people.submit("anna", "anna", said("k1", None, Verdict.OBJECT, (B, 1), image_id=5))
    assert not people.store.labels_of(5).complete
    people.submit("anna", "anna", said("k2", None, Verdict.OBJECT, image_id=5, complete=True))
    labels, spent = people.store.labels_of(5), people.store.spent()
    assert (labels.complete, labels.boxes.tolist(), labels.labels.tolist()) == (True, [B], [1])
    assert (spent.labels, spent.reviews) == (1, 1)  # marking it as complete costs no box
    people.submit("anna", "anna", said("k3", people.given()[-1].query.id, Verdict.WITHDRAWN, after=2))
    assert not people.store.labels_of(5).complete
    again = people.given()[-1].query.id
    assert people.submit("ben", "ben", said("k4", again)).status is Status.REFUSED
    assert people.submit("anna", "anna", said("k5", again)).status is Status.SAVED
    assert people.store.labels_of(5).complete
    assert [q.id for q in people.store.unanswered(1)] == [1, 2, 3, 4]  # nobody is asked about a volunteered answer


def test_questions_of_the_latest_cycle_are_assigned_and_old_ones_are_not(people: People) -> None:
    assert claimed(people, "anna") == [1]
    people.store.open_cycle(2)
    (new,) = people.store.ask(2, [Query(9, np.array(A, dtype=np.float32), 0)])
    assert claimed(people, "ben", 5) == [new.id]
    assert claimed(people, "anna", 1) == [1]  # the question in front of her stays
    assert people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 0))).status is Status.SAVED


def test_many_in_one_transaction_and_a_refusal_among_them(people: People) -> None:
    with people.store.transaction(writes=True):
        assert claimed(people, "anna", 2) == [1, 2]
        assert people.submit("anna", "anna", said("k1", 1, Verdict.OBJECT, (A, 7))).status is Status.REFUSED
        assert people.submit("anna", "anna", said("k2", 2, Verdict.OBJECT, (B, 1))).status is Status.SAVED
    assert [given.query.id for given in people.given()] == [2]


def test_a_class_is_added_renamed_and_merged(people: People) -> None:
    store = people.store
    assert people.add_class("  whale   shark ") == 3
    people.rename_class(1, "stingray", "anna")
    assert store.classes() == ("fish", "stingray", "shark", "whale shark")
    claimed(people, "anna", 4)
    for query, label in ((1, 3), (2, 2), (3, 0)):
        people.submit("anna", "anna", said(f"k{query}", query, Verdict.OBJECT, ((A, B, C)[query - 1], label)))
    people.merge_class(3, 2, "anna")
    assert store.counts_as().tolist() == [0, 1, 2, 2]
    people.merge_class(2, 0, "anna")
    assert store.counts_as().tolist() == [0, 1, 0, 0]
    assert [store.labels_of(i).labels.tolist() for i in (1, 2, 3)] == [[0], [0], [0]]
    assert {tuple(a.labels) for _, a in store.answered()} == {(0,)}
    assert people.add_class("shark") == 4  # the name is free again


@pytest.mark.parametrize("name", ["", "   ", "FISH", "x" * 61, "a\x00b"])
def test_a_class_name_that_cannot_be(people: People, name: str) -> None:
    with pytest.raises(UserError, match=r"a class needs a name|there is already a class 'fish'"):
        people.add_class(name)
    with pytest.raises(UserError, match=r"there is no class 9"):
        people.merge_class(9, 0, "anna")
    with pytest.raises(UserError, match=r"into itself"):
        people.merge_class(1, 1, "anna")
    people.rename_class(0, "Fish", "anna")  # its own name in other letters is free to it


def test_agreement() -> None:
    def answer(verdict: Verdict, *boxes: list[float], label: int = 0) -> Answer:
        return Answer(1, np.array(boxes, dtype=np.float32).reshape(-1, 4), np.full(len(boxes), label), verdict)

    near = [1.0, 0.0, 11.0, 10.0]
    assert agreement([answer(Verdict.OBJECT, A), answer(Verdict.OBJECT, near)])
    assert not agreement([answer(Verdict.OBJECT, A), answer(Verdict.OBJECT, B)])
    assert not agreement([answer(Verdict.OBJECT, A), answer(Verdict.OBJECT, A, label=1)])
    assert not agreement([answer(Verdict.OBJECT, A), answer(Verdict.NOT_AN_OBJECT)])
    assert agreement([answer(Verdict.CANNOT_TELL), answer(Verdict.CANNOT_TELL)])


# Leases and clocks


@pytest.mark.parametrize("jump", [-86400.0, 86400.0])
def test_setting_the_wall_clock_neither_ends_nor_extends_a_lease(
    people: People, hands: Hands, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    wall = time.time
    assert claimed(people, "anna", 2) == [1, 2]
    monkeypatch.setattr(time, "time", lambda: wall() + jump)
    hands.seconds += 60
    assert claimed(people, "ben", 2) == [3, 4]
    assert waiting(people) == 0
    hands.seconds += 60  # of 100 seconds each
    assert waiting(people) == 2
    assert claimed(people, "cleo", 4) == [1, 2]


def test_a_lease_outlasts_a_restart_but_not_by_more_than_its_time(people: People, hands: Hands) -> None:
    assert claimed(people, "anna", 2) == [1, 2]
    hands.seconds += 90
    people.let_go("nobody")  # any write keeps the elapsed time
    for start in (0.0, 1e9):  # the machine restarted, or another one resumes
        after = Hands()
        after.seconds = start
        again = People(people.store, after)
        assert waiting(again) == 2
        after.seconds += 5
        assert waiting(again) == 2
    after.seconds += 6
    assert waiting(again) == 4


def test_the_clock_that_is_ahead_counts(people: People, hands: Hands) -> None:
    there = Hands()
    there.seconds = 7.0
    other = People(people.store, there)
    assert claimed(people, "anna") == [1]
    assert claimed(other, "ben") == [2]
    hands.seconds += 60
    there.seconds += 60
    assert claimed(people, "cleo") == [3]
    assert claimed(other, "dora") == [4]
    hands.seconds += 50
    there.seconds += 50
    assert waiting(people) == waiting(other) == 2  # each second counts once, not once per process
    hands.seconds += 1000
    claimed(people, "emil", 0)
    assert waiting(other) == 4


def test_an_older_store_is_upgraded(tmp_path: Path) -> None:
    with Store(tmp_path / "new.sqlite", classes=("fish",), flush=False) as store:
        store.add_images([ImageRecord(1, "1.jpg", 640, 480)])
        store.open_cycle(1)
        (query,) = store.ask(1, [Query(1, np.array(A, dtype=np.float32), 0)])
        store.record([Answer(query.id, np.array([A]), np.array([0]), Verdict.OBJECT)])
    connection = sqlite3.connect(tmp_path / "new.sqlite")
    for statement in (
        "DROP INDEX answers_key",
        "ALTER TABLE answers DROP COLUMN key",
        "ALTER TABLE queries DROP COLUMN wanted",
        "ALTER TABLE queries DROP COLUMN asked_by",
        "DROP TABLE leases",
        "DROP TABLE class_changes",
        "ALTER TABLE images DROP COLUMN digest",
        "DROP TABLE image_moves",
        "DROP TABLE clock",
        "UPDATE rarebox SET schema = 1",
    ):
        connection.execute(statement)
    connection.commit()
    connection.close()
    for _ in range(2):
        with Store(tmp_path / "new.sqlite", flush=False) as store:
            assert [(q.wanted, q.asked_by, a.labels.tolist()) for q, a in store.answered()] == [(1, None, [0])]
            assert People(store).claim("anna", "anna", 1, 10) == []


def test_wall_clock_leases_end_when_a_store_is_upgraded(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    with Store(file, classes=("fish",), flush=False) as store:
        store.add_images([ImageRecord(1, "1.jpg", 640, 480)])
        store.open_cycle(1)
        store.ask(1, [Query(1, np.array(A, dtype=np.float32), 0)])
        assert claimed(People(store), "anna") == [1]
    connection = sqlite3.connect(file)
    connection.executescript(
        "DROP TABLE clock; DROP TABLE image_moves; ALTER TABLE images DROP COLUMN digest;"
        f"UPDATE leases SET until = {time.time() + 1e6}; UPDATE rarebox SET schema = 2"
    )
    connection.close()
    with Store(file, flush=False) as store:
        assert People(store).leases() == []
        assert store.images() == {1: ImageRecord(1, "1.jpg", 640, 480)}
        assert claimed(People(store), "anna") == [1]
