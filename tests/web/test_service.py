"""The service without HTTP: one person's error affects nobody else, and old answers cost nothing later."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import numpy as np
import pytest
from sqlalchemy import event

from rarebox.core import seeds
from rarebox.errors import Unavailable, UserError
from rarebox.labels.leases import Outcome, People, Status, Submission
from rarebox.labels.store import Store
from rarebox.loop import rules
from rarebox.pool import asker
from rarebox.pool.asker import Asker
from rarebox.pool.ranking import still_open
from rarebox.project.project import FURTHER, Project
from rarebox.types import Answer, ImageRecord, Query, Verdict
from rarebox.web import wording, writer
from rarebox.web.replies import VisitorState
from rarebox.web.service import AnnotationService
from rarebox.web.supervisor import IDLE
from tests import house
from tests.serving import make_project
from tests.thinned import first_seeds

CLASSES = ("fish", "ray", "shark")


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 4001)]
    made = make_project(tmp_path / "project", records, CLASSES)
    yield made
    made.store.close()


@pytest.fixture
def service(project: Project) -> Iterator[AnnotationService]:
    service = AnnotationService(project, train=False)
    yield service
    service.close()


def next_of(service: AnnotationService, who: str = "anna", want: int = 4) -> list[Query]:
    return service.answer(who, who, [], want).result(20)[1]


def said(query: Query, key: str = "k") -> Submission:
    assert query.box is not None
    return Submission(f"{key} {query.id}", Verdict.OBJECT, query.box[None], np.array([1]), 1000, query.id)


def save(service: AnnotationService, query: Query, who: str = "anna", want: int = 4) -> list[Query]:
    outcomes, queries, *_ = service.answer(who, who, [said(query)], want).result(20)
    assert [outcome.status for outcome in outcomes] == [Status.SAVED]
    return queries


def wait_for(came: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not came():
        assert time.monotonic() < end
        time.sleep(0.02)


def spent(service: AnnotationService) -> float:
    return service.presenter.state("anna", False)["budget"]["spent"]


@pytest.mark.parametrize("bound", [0.0, 0.5, 1.0])
def test_detections_from_a_score_on_are_likely(bound: float, tmp_path: Path) -> None:
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 21)]
    made = make_project(tmp_path / "project", records, CLASSES, people__proposal_score=bound)
    service = AnnotationService(made, train=False)
    try:
        others = [other for record in records for other in service.presenter.image(record.id)["others"]]
    finally:
        service.close()
    assert len(others) == 20
    assert [other["likely"] for other in others] == [(other["score"] or 0) >= bound for other in others]


def test_a_client_that_leaves_while_waiting_blocks_nobody(service: AnnotationService) -> None:
    gone = [service.answer("anna", "anna", [], 1) for _ in range(20)]
    cancelled = [future.cancel() for future in gone]
    assert any(cancelled)
    assert len(next_of(service, "ben")) == 4


def test_a_failure_of_one_job_is_undone_for_that_job_only(service: AnnotationService) -> None:
    first, second, *_ = next_of(service)

    def fail() -> None:
        service.people.submit("anna", "anna", said(first))
        service.memory.take_in()
        raise UserError("no")

    failed, kept = service.do(fail), service.answer("anna", "anna", [said(second)], 4)
    with pytest.raises(UserError, match="no"):
        failed.result(20)
    assert kept.result(20)[0][0].status is Status.SAVED
    assert spent(service) == 1
    assert save(service, first)  # perhaps under the same number as the undone one
    assert spent(service) == 2
    assert service.project.budget(2).spent == 2


def test_a_failed_job_reads_the_ranking_again_only_if_it_had_read_something(
    service: AnnotationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_cycle = list[int](), service.memory._open
    monkeypatch.setattr(service.memory, "_open", lambda cycle: opened.append(cycle) or open_cycle(cycle))

    def fail(*read: Callable[[], None]) -> None:
        for one in read:
            one()
        raise UserError("no")

    for read, times in (((), 0), ((service.memory.see_classes,), 1), ((), 1)):
        with pytest.raises(UserError, match="no"):
            service.do(lambda read=read: fail(*read)).result(20)
        assert len(opened) == times


def test_a_disk_that_fails_for_a_while_loses_nothing(
    service: AnnotationService, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = next_of(service)
    save(service, next_of(service, "carl")[0], "carl")
    record, full, read, given = Store.record, True, list[int](), service.people.given
    monkeypatch.setattr(service.people, "given", lambda after=0: read.append(after) or given(after))

    def failing(store: Store, answers: Any, keys: Any = None) -> list[int]:
        numbers = record(store, answers, keys)
        if full:
            with store.transaction() as connection:
                connection.exec_driver_sql("PRAGMA max_page_count = 1")
                connection.exec_driver_sql("CREATE TABLE more AS SELECT randomblob(100000)")
        return numbers

    def room() -> None:
        with service.people.store.transaction() as connection:
            connection.exec_driver_sql("PRAGMA max_page_count = 100000")

    monkeypatch.setattr(Store, "record", failing)
    waiting = [service.answer("anna", "anna", [said(first)], 4), service.answer("ben", "ben", [], 4)]
    with pytest.raises(Unavailable, match="full"):
        waiting[0].result(20)
    assert (spent(service), service.project.budget(2).spent) == (1, 1)
    assert 0 not in read  # no answer was read again, of which there may be many
    full = False
    service.do(room).result(20)
    assert save(service, first)
    assert save(service, second)
    assert (spent(service), service.project.budget(2).spent) == (3, 3)


def test_next_and_save_do_not_grow_with_what_was_answered(project: Project) -> None:
    """Counted in steps of SQLite's virtual machine, which are the same on every computer."""
    few, many = steps(project, answered=100), steps(project, answered=3000)
    assert many < 1.2 * few


def steps(project: Project, answered: int) -> float:
    """The database's work for one answer, in hundreds of steps, with that many answers stored."""
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
    service = AnnotationService(again, train=False)
    queries = next_of(service)
    done = 0
    for _ in range(20):
        queries = save(service, queries[0])
    service.close()
    return done / 20


def test_another_process_may_ask_too(service: AnnotationService, project: Project) -> None:
    """`rarebox export` asks questions for people who work elsewhere: the page does not ask them again."""
    before = next_of(service)
    asker = project.asker(2)
    assert asker
    elsewhere = asker.ask(30)
    assert len(elsewhere) == 30
    seen: list[Query] = []
    queries = before
    for _ in range(60):
        seen.append(queries[0])
        queries = save(service, queries[0])
    ranks = [int(query.why["rank"]) for query in project.store.queries(2) if query.why]
    assert len(ranks) == len(set(ranks))
    assert [query.id for query in seen] == sorted({query.id for query in seen})


def test_answers_and_classes_of_another_process_are_taken_in_without_a_request(
    service: AnnotationService, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    reacted = list[float]()
    monkeypatch.setattr(service, "_written", lambda: reacted.append(spent(service)))
    before = service.memory.version
    service._catch_up()
    assert (service.memory.version, reacted) == (before, [])
    with Store(project.folder.store) as other, other.transaction(writes=True):
        (query,) = other.ask(2, [Query(1, np.array([1.0, 1, 9, 9]), 0, asked_by="ben")])
        other.record([Answer(query.id, np.array([[1.0, 1, 9, 9]]), np.array([0]), Verdict.OBJECT, "ben")])
        People(other).rename_class(0, "whale", "ben")
    wait_for(lambda: reacted == [1])
    assert service.presenter.state("anna", False)["classes"][0]["name"] == "whale"
    assert service.memory.version > before


def test_a_future_of_a_job_is_running_before_it_begins(service: AnnotationService) -> None:
    """Nobody can withdraw an answer that is being written."""
    states: list[bool] = []
    future: Future[None] = service.do(lambda: states.append(future.cancel()))
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


def test_an_undo_that_the_trainer_saw_does_not_keep_it_from_training(tmp_path: Path) -> None:
    """Between the undo of the last answer of the budget and its repetition the trainer looks, and nothing is due."""
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 41)]
    made = make_project(tmp_path / "project", records, CLASSES, budget=[3], budget_unit="reviews")
    service, sent = AnnotationService(made, train=False), list[str]()
    trainer = SimpleNamespace(status=IDLE, working=False, send=sent.append, close=lambda: None)
    service.trainer = cast(Any, trainer)
    outcomes = list[Outcome]()
    for _ in range(3):
        (query,) = next_of(service, want=1)
        outcomes = service.answer("anna", "anna", [said(query)], 0).result(20).outcomes
    assert sent == ["go on"]
    trainer.status = {**IDLE, "state": "working"}
    nothing = np.zeros((0, 4)), np.zeros(0, np.int64)
    undo = Submission("undo", Verdict.WITHDRAWN, *nothing, query_id=outcomes[0].query_id, after=outcomes[0].answer_id)
    service.answer("anna", "anna", [undo], 1).result(20)
    trainer.status = IDLE
    (again,) = next_of(service, want=1)
    service.answer("anna", "anna", [said(again, "again")], 1).result(20)
    service.close()
    assert sent == ["go on"] * 2


# ------------------------------------------------------------------------------------------- more people than photos


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Project]:
    """Ten photos with 100 boxes each."""
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 11)]
    made = make_project(tmp_path / "small", records, CLASSES, grid=10)
    yield made
    made.store.close()


def test_finding_every_photo_taken_does_not_delay_others(small: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    labels_of = Store.labels_of_images
    monkeypatch.setattr(Store, "labels_of_images", lambda store, ids: (looked.extend(ids), labels_of(store, ids))[1])
    service = AnnotationService(small, train=False)
    held = [query for who in range(10) for query in next_of(service, f"person {who}")]
    assert len(held) == 10
    looked.clear()
    for who in range(10, 30):
        assert next_of(service, f"person {who}") == []
    assert len(looked) <= 20  # one image for each of them, not the whole ranking
    service.close()


def test_with_few_photos_everybody_gets_one(small: Project) -> None:
    service = AnnotationService(small, train=False)
    tabs = [f"person {who}" for who in range(10)]
    held = {tab: next_of(service, tab) for tab in tabs}
    assert [len(queries) for queries in held.values()][:5] == [
        4,
        4,
        2,
        0,
        0,
    ]  # the first one knew of no others
    for tab in tabs[:3]:
        for query in held[tab]:
            assert service.answer(tab, tab, [said(query)], 0).result(20)[0][0].status is Status.SAVED
    assert [len(next_of(service, tab)) for tab in tabs] == [1] * 10
    for tab in tabs[1:]:
        service.leave(tab).result(20)
    assert len(next_of(service, tabs[0])) == 4
    service.close()


def plainly(asker: Asker, done: set[int], most: int, skip_busy: bool, busy: set[int]) -> list[int]:
    """The places to ask about, found by going through the ranking from the top."""
    found, taken, labels = [], set(busy), asker.store.labels()
    for place in range(1000):
        row, _ = asker.queue(place) or (0, 0.0)
        image = int(asker.queue.candidates.image_id[row])
        said = labels.get(image) or asker.store.labels_of(image)
        if place in done or not still_open(asker.queue.candidates.boxes[[row]], said, 0.5)[0] or len(found) == most:
            continue
        if image not in taken:
            found.append(place)
            taken.add(image)
        elif not skip_busy:
            break
    return found


@pytest.mark.parametrize("seed", first_seeds(3))
def test_the_questions_are_those_found_by_scanning_the_ranking(
    small: Project, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker, "BATCH", 7)
    dice, store, source = random.Random(seed), small.store, small.asker(2)
    assert source
    source._iou, done, total = 0.5, set[int](), 0
    for _ in range(40):
        most, skip_busy = dice.randrange(1, 7), dice.random() < 0.5
        busy = {query.image_id for query in store.unanswered(2)}
        wanted = plainly(source, done, most, skip_busy, busy)
        asked = source.ask(most, skip_busy=skip_busy)
        assert [int(query.why["rank"]) for query in asked if query.why] == wanted
        done.update(wanted)
        total += len(wanted)
        for query in store.unanswered(2):
            if dice.random() < 0.5:
                # Its own box, or a large one that settles others beside it, or the whole image.
                box = query.box if dice.random() < 0.7 else np.array([0, 0, 640, 480], dtype=np.float32)
                assert box is not None
                store.record([Answer(query.id, box[None], np.array([0]), Verdict.OBJECT, "anna")])
        if dice.random() < 0.1:
            (whole,) = store.ask(2, [Query(dice.randrange(1, 11), asked_by="anna")])
            store.record([Answer(whole.id, np.zeros((0, 4)), np.zeros(0, int), Verdict.OBJECT, "anna")])
        if dice.random() < 0.2:
            place = dice.randrange(300)
            done.add(place)
            source.was_asked({"rank": place})
    assert total > 20


# ------------------------------------------------------------------------------------------- classes


def test_a_new_name_reads_no_answer_again(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    given = People.given
    monkeypatch.setattr(People, "given", lambda people, after=0: (read.append(after), given(people, after))[1])
    service = AnnotationService(project, train=False)
    for query in next_of(service):
        save(service, query)
    asker, before, questions = service.memory.asker, len(read), service.memory.questions
    service.change_classes(lambda: service.people.add_class("eel")).result(20)
    service.change_classes(lambda: service.people.rename_class(0, "cod", "anna")).result(20)
    service.change_classes(lambda: service.people.merge_class(1, 2, "anna")).result(20)
    assert all(after == 4 for after in read[before:])  # what came after the last answer
    assert service.memory.asker is asker
    assert service.memory.questions == questions + 3  # open pages ask again: what they show may have another name
    classes = service.presenter.state("anna", False)["classes"]
    assert [(one["name"], one["count"], one["merged_into"]) for one in classes] == [
        ("cod", 0, None),
        ("ray", 0, 2),
        ("shark", 4, None),
        ("eel", 0, None),
    ]
    service.close()


def test_a_class_is_counted_from_the_moment_it_is_listed(small: Project) -> None:
    service = AnnotationService(small, train=False)
    seen: list[VisitorState] = []

    def add() -> None:
        service.people.add_class("new")
        service.memory.see_classes()
        seen.append(
            service.presenter.state("anna", False)
        )  # as another thread may read before the writing thread is done

    service.do(add).result(20)
    assert [one["name"] for one in seen[0]["classes"]] == [*CLASSES, "new"]
    assert [one["name"] for one in service.presenter.state("anna", False)["classes"]] == [*CLASSES, "new"]
    service.close()


def test_a_database_that_falls_silent_does_not_keep_the_server_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "CLOSING_SECONDS", 0.1)
    asked, back = Event(), Event()
    store = MagicMock()

    def never(**_: Any) -> None:
        asked.set()
        back.wait()
        raise OSError("the connection is gone")

    store.transaction.side_effect = never
    writing = writer.Writer(store, MagicMock(), MagicMock(), MagicMock())
    waiting = writing.do(lambda: None)
    assert asked.wait(10)
    assert not writing.close()
    assert not waiting.done()
    back.set()
    assert isinstance(waiting.exception(10), OSError)
    assert writing.close()


TRAINING = SimpleNamespace(working=True, status={**IDLE, "state": "working", "stage": "fit"}, close=lambda: None)
"""A trainer in the middle of a training."""


def test_more_images_are_asked_about_while_the_first_model_trains(tmp_path: Path) -> None:
    project = house.make_project(tmp_path)
    house.ask_whole_images(project, 1, 2)
    project.keep_further_images([2, 7, 99, 5])  # one was asked about, one is not in the project
    service = AnnotationService(project, train=False)

    def ask(tab: str, by: str, *said: Submission) -> list[Query]:
        return service.answer(tab, by, said, want=1).result(30).queries

    try:
        asked = ask("tab", "anna")
        for number in (1, 2):
            assert [query.image_id for query in asked] == [number]
            box = np.array([[0, 0, 9, 9]])
            asked = ask("tab", "anna", Submission(str(number), Verdict.OBJECT, box, np.array([0]), 0, asked[0].id))
        assert asked == []  # no training
        service.trainer = cast(Any, TRAINING)
        (query,) = ask("tab", "anna")
        assert (query.image_id, query.why) == (7, {FURTHER: 1})
        assert service.presenter.query(query)["reason"] == wording.FURTHER_IMAGE
        assert [again.id for again in ask("tab", "anna")] == [query.id]
        assert [query.image_id for query in ask("tab two", "ben")] == [5]
        assert ask("tab three", "cem") == []
    finally:
        service.close()


@pytest.mark.parametrize("exploration", [0.0, 1.0], ids=["boxes", "whole images"])
def test_a_photo_in_somebodys_hand_is_asked_of_nobody_else_in_cycle_2(tmp_path: Path, exploration: float) -> None:
    """Anna holds a photo that filled the time of the first training. Its boxes would be labelled twice."""
    records = [ImageRecord(number, str(tmp_path / f"{number}.jpg"), 640, 480) for number in range(1, 5)]
    for record in records:
        Path(record.path).touch()
    project = make_project(tmp_path / "p", records, ("fish", "ray"), selection__exploration=exploration)
    explored = rules.images_to_explore(project.settings, project.store, 2, range(1, 5))
    first = explored[0] if exploration else 1
    [further] = project.store.ask(1, [Query(first, why={FURTHER: 1.0})])
    service = AnnotationService(project, train=False)

    def ask(tab: str, by: str) -> set[int]:
        return {query.image_id for query in service.answer(tab, by, [], want=8).result(30).queries}

    try:
        service.do(lambda: service.people.claim("tab", "anna", 1, 60, among=[further.id])).result(30)
        seen = ask("tab two", "ben")
        assert seen
        assert first not in seen
        service.leave("tab").result(30)
        service.leave("tab two").result(30)
        assert first in ask("tab two", "ben") | ask("tab three", "cem") | ask("tab four", "dora")
    finally:
        service.close()


def test_a_project_whose_photos_are_all_answered_before_any_is_chosen_is_finished(tmp_path: Path) -> None:
    project = house.make_project(tmp_path)
    project.store.open_cycle(1)
    for query in project.store.ask(1, [Query(i, why={FURTHER: 1.0}) for i in project.store.images()]):
        project.store.record([Answer(query.id, np.zeros((0, 4)), np.zeros(0, np.int64), Verdict.OBJECT, "anna")])
    service = AnnotationService(project, train=False)
    try:
        assert service.presenter.state("anna", False)["phase"] == "preparing"
        service.memory.records = [cast(Any, {"cycle": 1})]
        assert service.presenter._phase() == "finished"
    finally:
        service.close()


def test_while_the_trainer_chooses_the_initial_images_random_ones_are_asked_about(tmp_path: Path) -> None:
    """A person who opens a new project need not wait."""
    project = house.make_project(tmp_path)
    missing, *there = seeds.stream(project.settings.seed, "further images").permutation(range(1, 13)).tolist()
    Path(project.store.images()[missing].path).unlink()
    service = AnnotationService(project, train=False)

    def ask(tab: str, *said: Submission) -> list[Query]:
        return service.answer(tab, "anna", said, want=1).result(30).queries

    try:
        assert ask("tab") == []  # nothing is chosen
        service.trainer = cast(Any, TRAINING)
        (query,) = ask("tab")
        assert (query.image_id, query.why) == (there[0], {FURTHER: 1})
        assert service.presenter.query(query)["reason"] == wording.RANDOM_IMAGE
        assert service.presenter.state("anna", False)["phase"] == "preparing"
        nothing = Submission("1", Verdict.OBJECT, np.zeros((0, 4)), np.zeros(0, int), 0, query.id)
        assert [query.image_id for query in ask("tab", nothing)] == [there[1]]
        house.ask_whole_images(project, there[5])
        service._hear("questions")
        service.do(lambda: None).result(30)
        assert there[5] in {query.image_id for query in service.answer("tab two", "ben", [], 2).result(30).queries}
        assert service.presenter.state("anna", False)["phase"] == "first_images"
    finally:
        service.close()


@pytest.mark.parametrize("content", [None, b"", b"{", b"{}", b'["a", null]'])
def test_a_lost_list_of_further_images_stops_nothing(tmp_path: Path, content: bytes | None) -> None:
    project = house.make_project(tmp_path)
    house.ask_whole_images(project, 1)
    project.keep_further_images([2])
    file = project.folder.cycle(1) / "further_images.json"
    file.unlink() if content is None else file.write_bytes(content)
    assert [query.image_id != 1 for query in project.ask_further()] == [True]  # in random order
    project.store.close()
