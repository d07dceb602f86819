"""The desk without HTTP: what went wrong for one is nobody else's, and what was answered costs nothing later."""

from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from rarebox.errors import Unavailable, UserError
from rarebox.people import Status, Submission
from rarebox.project import Project
from rarebox.store import Store
from rarebox.types import Answer, ImageRecord, Query, Verdict
from rarebox.web.desk import Desk
from tests.serving import make_project

CLASSES = ("fish", "ray", "shark")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 4001)]
    made = make_project(tmp_path / "project", records, CLASSES)
    yield made
    made.store.close()


@pytest.fixture
def desk(project: Project) -> Iterator[Desk]:
    desk = Desk(project, train=False)
    yield desk
    desk.close()


def next_of(desk: Desk, who: str = "anna", want: int = 4) -> list[Query]:
    return desk.answer(who, who, [], want).result(20)[1]


def said(query: Query, key: str = "k") -> Submission:
    assert query.box is not None
    return Submission(f"{key} {query.id}", Verdict.OBJECT, query.box[None], np.array([1]), 1000, query.id)


def save(desk: Desk, query: Query, who: str = "anna", want: int = 4) -> list[Query]:
    outcomes, queries = desk.answer(who, who, [said(query)], want).result(20)
    assert [outcome.status for outcome in outcomes] == [Status.SAVED]
    return queries


def spent(desk: Desk) -> int:
    return desk.state("anna", False)["budget"]["spent"]


def test_somebody_who_goes_away_while_they_wait_stops_nobody(desk: Desk) -> None:
    gone = [desk.answer("anna", "anna", [], 1) for _ in range(20)]
    cancelled = [future.cancel() for future in gone]
    assert any(cancelled)
    assert len(next_of(desk, "ben")) == 4


def test_what_fails_for_one_is_undone_for_one(desk: Desk) -> None:
    first, second, *_ = next_of(desk)

    def fail() -> None:
        desk.people.submit("anna", "anna", said(first))
        desk._take_in()
        raise UserError("no")

    failed, kept = desk.do(fail), desk.answer("anna", "anna", [said(second)], 4)
    with pytest.raises(UserError, match="no"):
        failed.result(20)
    assert kept.result(20)[0][0].status is Status.SAVED
    assert spent(desk) == 1
    assert save(desk, first)  # under the same number, perhaps, as what was undone
    assert spent(desk) == 2
    assert desk.project.spent(2) == 2


def test_a_disk_that_fails_for_a_while_loses_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = next_of(desk)
    record, full = Store.record, True

    def failing(store: Store, answers: Any, keys: Any = None) -> list[int]:
        numbers = record(store, answers, keys)
        if full:
            with store.transaction() as connection:
                connection.exec_driver_sql("PRAGMA max_page_count = 1")
                connection.exec_driver_sql("CREATE TABLE more AS SELECT randomblob(100000)")
        return numbers

    def room() -> None:
        with desk.people.store.transaction() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")

    monkeypatch.setattr(Store, "record", failing)
    waiting = [desk.answer("anna", "anna", [said(first)], 4), desk.answer("ben", "ben", [], 4)]
    with pytest.raises(Unavailable, match="full"):
        waiting[0].result(20)
    assert (spent(desk), desk.project.spent(2)) == (0, 0)
    full = False
    desk.do(room).result(20)
    assert save(desk, first)
    assert save(desk, second)
    assert (spent(desk), desk.project.spent(2)) == (2, 2)


def test_next_and_save_do_not_grow_with_what_was_answered(project: Project) -> None:
    """Counted in steps of the database's own machine, which are the same on every computer."""
    few, many = steps(project, answered=100), steps(project, answered=3000)
    assert many < 1.2 * few


def steps(project: Project, answered: int) -> float:
    """How much work an answer is for the database, in hundreds of steps, with so many answers there already."""
    found = project.read_ranking(2).candidates
    there = len(project.store.queries(2))
    rows, nothing = range(there, answered), np.zeros((0, 4))
    asked = [Query(int(found.image_id[row]), found.boxes[row], 0, 1.0, {"rank": float(row)}) for row in rows]
    queries = project.store.ask(2, asked)
    project.store.record([Answer(q.id, nothing, np.zeros(0, int), Verdict.NOT_AN_OBJECT, "ben") for q in queries])
    done = 0

    def count() -> int:
        nonlocal done
        done += 1
        return 0

    def watch(connection: Any, _: object) -> None:
        connection.set_progress_handler(count, 100)

    again = Project(project.folder.root)
    event.listen(again.store._engine, "connect", watch)
    again.store._engine.dispose()
    desk = Desk(again, train=False)
    queries = next_of(desk)
    done = 0
    for _ in range(20):
        queries = save(desk, queries[0])
    desk.close()
    return done / 20


def test_another_process_may_ask_too(desk: Desk, project: Project) -> None:
    """`rarebox export` asks ahead for people who work elsewhere: the page does not ask the same again."""
    before = next_of(desk)
    asker = project.asker(2)
    assert asker
    elsewhere = asker.ask(30)
    assert len(elsewhere) == 30
    seen: list[Query] = []
    queries = before
    for _ in range(60):
        seen.append(queries[0])
        queries = save(desk, queries[0])
    ranks = [int(query.why["rank"]) for query in project.store.queries(2) if query.why]
    assert len(ranks) == len(set(ranks))
    assert [query.id for query in seen] == sorted({query.id for query in seen})


def test_a_future_of_a_job_is_running_before_it_begins(desk: Desk) -> None:
    """Nobody can take back what is being written."""
    states: list[bool] = []
    future: Future[None] = desk.do(lambda: states.append(future.cancel()))
    future.result(20)
    assert states == [False]


@pytest.mark.parametrize("share", [0, 0.25, 1])
def test_the_wanted_share_of_the_questions_is_for_two_people(tmp_path: Path, share: float) -> None:
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 401)]
    made = make_project(tmp_path / "project", records, CLASSES, people__overlap=share)
    asker = made.asker(2)
    assert asker
    wanted = [query.wanted for query in asker.ask(400)]
    assert len(wanted) == 400
    assert set(wanted) <= {1, 2}
    assert wanted.count(2) / 400 == pytest.approx(share, abs=0.07)  # three standard deviations
    made.store.close()
