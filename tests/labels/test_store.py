"""The label store returns what it records, loses nothing, and gives advice when it refuses."""

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.schema import CreateTable

from rarebox.errors import UserError
from rarebox.labels import schema, sqlite
from rarebox.labels import store as store_module
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import LONGEST_TIME, Spent, Store
from rarebox.types import Answer, GroundTruth, ImageLabels, ImageRecord, Query, Verdict

CLASSES = ("fish", "jellyfish", "penguin")
A, B, C, D = ([x, 0.0, x + 10, 10.0] for x in (0.0, 100.0, 200.0, 300.0))
OBJECT, NOT_AN_OBJECT, CANNOT_TELL, ALREADY_LABELLED, _ = Verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "labels.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store with images 1 to 9 and cycle 0."""
    with Store(path, classes=CLASSES, flush=False) as store:
        store.add_images(image(i) for i in range(1, 10))
        store.open_cycle(0)
        yield store


def image(id: int, path: str | None = None, width: int = 640) -> ImageRecord:
    return ImageRecord(id, path or f"{id}.jpg", width, 480)


def query(image_id: int = 1, box: Sequence[float] | None = None) -> Query:
    return Query(image_id, None if box is None else np.array(box, dtype=np.float32))


def answer(to: Query, verdict: Verdict = OBJECT, *objects: tuple[Sequence[float], int], ms: int = 0) -> Answer:
    boxes = np.array([box for box, _ in objects], dtype=np.float32)
    return Answer(to.id, boxes, np.array([label for _, label in objects], dtype=np.int64), verdict, milliseconds=ms)


def ask_one(store: Store, box: Sequence[float] | None = None, image_id: int = 1, cycle: int = 0) -> Query:
    return store.ask(cycle, [query(image_id, box)])[0]


def tell(
    store: Store,
    box: Sequence[float] | None,
    verdict: Verdict,
    *objects: tuple[Sequence[float], int],
    image_id: int = 1,
    cycle: int = 0,
    ms: int = 0,
) -> Query:
    """Ask about one box (or the whole image) and answer at once."""
    asked = ask_one(store, box, image_id, cycle)
    store.record([answer(asked, verdict, *objects, ms=ms)])
    return asked


def ids(queries: Sequence[Query]) -> list[int]:
    return [q.id for q in queries]


def rows(path: Path, statement: str) -> list[tuple[Any, ...]]:
    """Read with sqlite3 alone, as docs/store.md shows."""
    connection = sqlite3.connect(path)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


# Images, classes, cycles


def test_no_time_is_too_long_for_the_database(store: Store) -> None:
    store.open_cycle(1)
    [query] = store.ask(1, [Query(1)])
    store.record([Answer(query.id, np.zeros((0, 4)), np.zeros(0, int), Verdict.OBJECT, "anna", 10**10)])
    assert [answer.milliseconds for _, answer in store.answered()] == [LONGEST_TIME]


def test_classes_and_images_are_there_after_reopening(path: Path) -> None:
    with Store(path, classes=CLASSES) as store:
        store.add_images([image(3), image(1)])
    assert list(path.parent.iterdir()) == [path]  # closed, it is one file
    with Store(path) as store:
        assert store.classes() == CLASSES
        assert store.images() == {1: image(1), 3: image(3)}
        assert (store.cycles(), store.queries(), store.answered(), store.labels()) == ([], [], [], {})
        assert store.spent() == Spent(0, 0, 0)


def test_adding_images_again_adds_only_the_new_ones(store: Store) -> None:
    store.add_images([image(9), image(10), image(10)])
    store.add_images([])
    assert list(store.images()) == list(range(1, 11))


@pytest.mark.parametrize("other", [image(2, "else.jpg"), image(2, width=320)])
def test_an_id_never_changes_its_image(store: Store, other: ImageRecord) -> None:
    with pytest.raises(UserError, match=r"image 2 is 2\.jpg \(640 x 480\) in the store but .* now. Restore the images"):
        store.add_images([image(11), other])
    with pytest.raises(UserError, match=r"image 11 is a\.jpg"):
        store.add_images([image(11, "a.jpg"), image(11, "b.jpg")])
    assert 11 not in store.images()


def test_opening_a_cycle_again_changes_nothing(store: Store, path: Path) -> None:
    before = rows(path, "SELECT * FROM cycles")
    store.open_cycle(2)
    store.open_cycle(0)
    assert store.cycles() == [0, 2]
    assert rows(path, "SELECT * FROM cycles WHERE cycle = 0") == before


# Asking


def test_queries_are_read_back_as_they_were_asked(store: Store) -> None:
    """``ask`` itself converts NumPy numbers to plain ones and boxes to ``float32``, before they are read back."""
    box = np.array([0.1, 1 / 3, 7.7, 9.9])
    rich = replace(query(1, A), box=box, guess=np.int64(2), utility=np.float32(0.1), why={"score": np.float32(0.3)})
    asked = store.ask(0, [rich, query(2)])
    first, second = store.queries(0)
    assert ids([first, second]) == ids(asked)
    for got in (first, asked[0]):
        assert got.box is not None
        assert got.box.dtype == np.float32
        assert got.box.tolist() == box.astype(np.float32).tolist()
        assert (got.image_id, got.guess, got.utility) == (1, 2, np.float32(0.1))
        assert got.why == {"score": np.float32(0.3)}
    assert (second.image_id, second.box, second.guess, second.utility, second.why) == (2, None, None, 0.0, None)


def test_the_order_is_kept_over_several_calls_and_cycles(store: Store, path: Path) -> None:
    first = store.ask(0, [query(i) for i in (5, 3, 9, 1)])
    store.open_cycle(1)
    later = store.ask(1, [query(2)])
    second = store.ask(0, [query(4), query(2)])
    assert store.ask(0, []) == []
    assert [q.image_id for q in store.queries(0)] == [5, 3, 9, 1, 4, 2]
    assert ids(store.queries()) == ids(first + second + later)
    assert rows(path, "SELECT position FROM queries WHERE cycle = 0 ORDER BY id") == [(i,) for i in range(6)]


def test_unanswered_queries_are_those_of_one_cycle_in_the_order_asked(store: Store) -> None:
    store.ask(0, [query(1)])
    store.open_cycle(1)
    assert store.unanswered(1) == []
    one, two, three = store.ask(1, [query(1), query(2), query(3)])
    store.record([answer(two)])
    assert ids(store.unanswered(1)) == [one.id, three.id]
    store.record([answer(one)])
    assert ids(store.unanswered(1)) == [three.id]
    store.record([answer(three)])
    assert store.unanswered(1) == []
    assert len(store.unanswered(0)) == 1


@pytest.mark.parametrize(
    ("cycle", "bad", "message"),
    [
        (7, query(1), r"cycle 7 is not open. Call open_cycle\(7\)"),
        (0, query(99), "must name an image of the store"),
        (0, query(1, [5, 0, 5, 10]), "x2 > x1"),
    ],
)
def test_an_invalid_query_is_refused_with_its_whole_batch(store: Store, cycle: int, bad: Query, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store.ask(cycle, [query(1), bad])
    assert store.queries() == []


# Answering


def test_answers_are_read_back_with_their_queries_in_the_order_asked(store: Store) -> None:
    one, two = store.ask(0, [query(1, A), query(2, B)])
    tricky = [0.1, 1 / 3, 7.7, 9.9]
    store.record([answer(two, NOT_AN_OBJECT), replace(answer(one, OBJECT, (tricky, 2)), by="Zoë", milliseconds=830)])
    (q1, a1), (q2, a2) = store.answered(0)
    assert (q1.id, q2.id) == (a1.query_id, a2.query_id) == (one.id, two.id)
    assert (a1.verdict, a1.by, a1.milliseconds, a1.labels.tolist()) == (OBJECT, "Zoë", 830, [2])
    assert a1.boxes.tolist() == np.array([tricky], dtype=np.float32).tolist()
    assert (a2.verdict, a2.by, a2.boxes.shape, a2.labels.shape) == (NOT_AN_OBJECT, "oracle", (0, 4), (0,))


def test_a_later_answer_supersedes_and_the_earlier_one_stays_on_file(store: Store, path: Path) -> None:
    asked = tell(store, A, OBJECT, (A, 0), ms=500)
    other = tell(store, B, OBJECT, (B, 1), ms=100)
    store.record([answer(asked, NOT_AN_OBJECT, ms=300)])
    store.record([answer(asked, OBJECT, (C, 2), ms=200)])
    assert [(a.query_id, a.boxes.tolist()) for _, a in store.answered()] == [(asked.id, [C]), (other.id, [B])]
    assert store.labels_of(1).boxes.tolist() == [C, B]
    assert store.labels_of(1).rejected.tolist() == []
    assert store.spent() == Spent(labels=2, reviews=2, milliseconds=1100)
    on_file = [verdict for (verdict,) in rows(path, "SELECT verdict FROM answers ORDER BY id")]
    assert on_file == ["object", "object", "not_an_object", "object"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda q: answer(replace(q, id=99)), "a query that ask\\(\\) returned"),
        (lambda q: answer(q, OBJECT, (A, 3)), r"labels must be in \[0, 3\), got \[3\]"),
        (lambda q: answer(q, OBJECT, (A, -1)), r"labels must be in \[0, 3\)"),
        (lambda q: answer(q, NOT_AN_OBJECT, (A, 0)), "'not_an_object' must have no boxes, got 1"),
        (lambda q: answer(q, CANNOT_TELL, (A, 0)), "'cannot_tell' must have no boxes"),
    ],
)
def test_an_invalid_answer_is_refused_with_its_whole_batch(store: Store, bad: Any, message: str) -> None:
    asked = ask_one(store, A)
    with pytest.raises(ValueError, match=message):
        store.record([answer(asked, OBJECT, (A, 0)), bad(asked)])
    assert store.answered() == []
    store.record([])


# What the answers mean


def test_each_verdict_leaves_its_own_kind_of_box(store: Store) -> None:
    tell(store, A, OBJECT, ([1, 0, 12, 10], 1))
    tell(store, B, NOT_AN_OBJECT)
    tell(store, C, CANNOT_TELL)
    tell(store, D, ALREADY_LABELLED)
    tell(store, A, NOT_AN_OBJECT, image_id=2)
    labels = store.labels()
    assert list(labels) == [1, 2]
    one = labels[1]
    assert (one.boxes.tolist(), one.labels.tolist()) == ([[1, 0, 12, 10]], [1])
    assert one.rejected.tolist() == [B]
    assert one.skipped.tolist() == [C, D]
    assert one.settled.tolist() == [[1, 0, 12, 10], B, C, D]
    assert not one.complete
    assert labels[2].settled.tolist() == [A]


@pytest.mark.parametrize(("verdict", "complete"), [(OBJECT, True), (NOT_AN_OBJECT, True), (CANNOT_TELL, False)])
def test_a_whole_image_without_objects_is_complete_unless_nobody_can_tell(
    store: Store, verdict: Verdict, complete: bool
) -> None:
    tell(store, None, verdict)
    known = store.labels()[1]
    assert known.complete is complete
    assert known.settled.shape == (0, 4)


def test_an_image_without_answers_has_empty_labels(store: Store) -> None:
    ask_one(store, A)
    nothing = store.labels_of(1)
    assert 1 not in store.labels()
    assert (nothing.boxes.shape, nothing.labels.shape, nothing.labels.dtype) == ((0, 4), (0,), np.int64)
    assert (nothing.rejected.shape, nothing.skipped.shape, nothing.complete) == ((0, 4), (0, 4), False)


@pytest.mark.parametrize("whole_first", [False, True])
def test_an_object_that_a_whole_image_and_a_question_have_is_returned_once(store: Store, whole_first: bool) -> None:
    """Somebody boxed a photo while another person was asked about an object there."""
    store.add_images([image(1)])
    store.open_cycle(1)
    near, apart, of_another_class = [12, 10, 60, 61], [40, 10, 90, 60], [13, 10, 60, 60]
    one, whole = store.ask(1, [query(1, [10, 10, 60, 60]), query(1)])
    drawn = answer(whole, OBJECT, (near, 0), (apart, 0), (of_another_class, 1))
    confirmed = answer(one, OBJECT, ([10, 10, 60, 60], 0))
    for each in (drawn, confirmed) if whole_first else (confirmed, drawn):
        store.record([each])
    found = store.labels()[1]
    assert found.complete
    assert sorted(zip(found.labels.tolist(), found.boxes[:, 0].tolist(), strict=True)) in (
        [(0, 10.0), (0, 40.0), (1, 13.0)],
        [(0, 12.0), (0, 40.0), (1, 13.0)],
    )


def test_boxes_drawn_close_together_on_a_whole_image_all_count(store: Store) -> None:
    store.add_images([image(1)])
    store.open_cycle(1)
    (whole,) = store.ask(1, [query(1)])
    store.record([answer(whole, OBJECT, ([10, 10, 60, 60], 0), ([12, 10, 60, 61], 0))])
    assert len(store.labels()[1].boxes) == 2


def test_an_object_recorded_twice_is_returned_once(store: Store) -> None:
    almost = [0.0, 0.0, 10.0, 10.0005]  # IoU with A 0.99995
    near = [0.0, 0.0, 10.0, 10.01]  # IoU with A 0.999
    tell(store, A, OBJECT, (A, 0))
    tell(store, C, OBJECT, (almost, 0), (B, 1), (A, 1), (near, 0))
    tell(store, None, OBJECT, (B, 1))
    known = store.labels_of(1)
    assert (known.boxes.tolist(), known.labels.tolist()) == (
        np.array([A, B, A, near], dtype=np.float32).tolist(),
        [0, 1, 1, 0],
    )
    assert known.complete


def test_labels_of_the_past(store: Store) -> None:
    for cycle, (box, image_id) in enumerate([(A, 1), (B, 1), (C, 2)]):
        store.open_cycle(cycle)
        tell(store, box, OBJECT, (box, cycle), image_id=image_id, cycle=cycle)
    assert {i: known.labels.tolist() for i, known in store.labels(up_to_cycle=1).items()} == {1: [0, 1]}
    assert {i: known.labels.tolist() for i, known in store.labels().items()} == {1: [0, 1], 2: [2]}


def test_labels_and_boxes_shown_are_both_counted(store: Store) -> None:
    tell(store, A, OBJECT, (A, 0), ms=10)
    tell(store, A, ALREADY_LABELLED, ms=20)
    tell(store, B, NOT_AN_OBJECT, ms=30)
    store.open_cycle(1)
    tell(store, None, OBJECT, (A, 0), (B, 0), (C, 1), image_id=2, cycle=1, ms=40)
    tell(store, None, OBJECT, image_id=3, cycle=1)
    tell(store, D, CANNOT_TELL, image_id=3, cycle=1, ms=50)
    ask_one(store, D, image_id=4, cycle=1)
    assert store.spent(0) == Spent(labels=1, reviews=3, milliseconds=60)
    assert store.spent(1) == Spent(labels=3, reviews=3 + 1 + 1, milliseconds=90)  # image 3 was reviewed and is empty
    assert store.spent() == Spent(labels=4, reviews=8, milliseconds=150)


SAYINGS = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([OBJECT, NOT_AN_OBJECT, CANNOT_TELL]), st.integers(0, 2)), max_size=12
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(SAYINGS)
def test_the_latest_answer_counts(
    tmp_path_factory: pytest.TempPathFactory, sayings: list[tuple[int, Verdict, int]]
) -> None:
    """Four boxes of one image, answered and corrected in any order, beside a plain dictionary."""
    shown = [A, B, C, D]
    with Store(tmp_path_factory.mktemp("store") / "labels.sqlite", classes=CLASSES, flush=False) as store:
        store.add_images([image(1)])
        store.open_cycle(0)
        asked = store.ask(0, [query(1, box) for box in shown])
        last: dict[int, tuple[Verdict, int]] = {}
        for i, verdict, label in sayings:
            store.record([answer(asked[i], verdict, *([(shown[i], label)] if verdict == OBJECT else []))])
            last[i] = verdict, label
        known = store.labels_of(1)
        unanswered = [asked.index(q) for q in asked if q.id in ids(store.unanswered(0))]
        spent = store.spent()
    says = {v: [shown[i] for i in sorted(last) if last[i][0] == v] for v in Verdict}
    assert known.boxes.tolist() == says[OBJECT]
    assert known.labels.tolist() == [last[i][1] for i in sorted(last) if last[i][0] == OBJECT]
    assert known.rejected.tolist() == says[NOT_AN_OBJECT]
    assert known.skipped.tolist() == says[CANNOT_TELL]
    assert unanswered == [i for i in range(4) if i not in last]
    assert spent == Spent(labels=len(says[OBJECT]), reviews=len(last))


def test_the_simulated_oracle_resumes_from_the_store(store: Store, path: Path) -> None:
    truth = {1: GroundTruth(np.array([[0, 0, 9.7, 9.9], B]), np.array([0, 1]), np.zeros(2, dtype=bool))}
    oracle = SimulatedOracle(truth)
    store.record([oracle.answer(ask_one(store, A))])
    with Store(path) as reopened:
        again = SimulatedOracle(truth)
        again.remember(reopened.answered())
        reopened.record([again.answer(ask_one(reopened, box)) for box in (A, B, C)])
        known = reopened.labels_of(1)
    assert known.labels.tolist() == [0, 1]
    assert (known.skipped.tolist(), known.rejected.tolist()) == ([A], [C])


def test_the_page_about_the_store_reads_it_with_plain_sqlite3(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(store, A, NOT_AN_OBJECT)
    corrected = tell(store, None, OBJECT, image_id=2)
    store.record([answer(corrected, OBJECT, (B, 2))])
    page = (Path(__file__).parents[2] / "docs" / "store.md").read_text(encoding="utf-8")
    monkeypatch.chdir(path.parent)
    names: dict[str, Any] = {}
    exec(page.split("```python")[1].split("```")[0], names)
    names["connection"].close()
    assert capsys.readouterr().out.splitlines() == [
        f"1.jpg {A} not_an_object [] [] oracle",
        f"2.jpg None object [{B}] [2] oracle",
    ]


# Opening


def test_other_classes_are_refused(store: Store, path: Path) -> None:
    with pytest.raises(UserError, match="has the classes fish, jellyfish, penguin, but you gave fish, shark"):
        Store(path, classes=["fish", "shark"])
    with pytest.raises(UserError, match="each class needs its own name"):
        Store(path.with_name("new.db"), classes=["fish", "fish"])
    Store(path, classes=list(CLASSES)).close()


def test_no_classes_yet_is_a_store_too(tmp_path: Path) -> None:
    with Store(tmp_path / "a.db", classes=()) as store:
        assert store.classes() == ()


def test_reading_does_not_create_a_missing_store(path: Path) -> None:
    with pytest.raises(UserError, match="there is no label store here"):
        Store(path)
    assert not path.exists()


def test_files_that_are_not_a_store_are_refused_and_unchanged(path: Path) -> None:
    def refused(message: str) -> None:
        before = path.read_bytes()
        for classes in (None, CLASSES):
            with pytest.raises(UserError, match=message) as caught:
                Store(path, classes=classes)
            assert str(path) in str(caught.value)
        assert path.read_bytes() == before
        path.unlink()

    path.write_text("labels: [fish, shark]\n" * 100)
    refused("this is not a rarebox label store")
    rows(path, "CREATE TABLE images (id)")
    refused("this is not a rarebox label store")
    path.touch()
    with pytest.raises(UserError, match="this is not a rarebox label store"):
        Store(path)
    with pytest.raises(UserError, match=r"unable to open database file: check that the folder exists"):
        Store(path.parent / "missing" / "labels.sqlite", classes=CLASSES)


def test_a_newer_store_is_refused(store: Store, path: Path) -> None:
    store.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE rarebox SET schema = 99")
    connection.commit()
    connection.close()
    with pytest.raises(UserError, match=r"written by a newer rarebox \(schema 99, this one reads up to 6\). Upgrade"):
        Store(path)
    assert list(path.parent.iterdir()) == [path]


def test_urls(tmp_path: Path) -> None:
    with Store(f"sqlite:///{tmp_path}/labels.sqlite", classes=CLASSES):
        pass
    with Store(tmp_path / "labels.sqlite") as store:
        assert store.classes() == CLASSES
    for url, message in [("nonsense://x", "no driver"), ("://", "not a database URL")]:
        with pytest.raises(UserError, match=message):
            Store(url, classes=CLASSES)


@pytest.mark.parametrize("content", [b"", b"x", b"a note to myself" * 10])
def test_a_file_that_is_no_store_is_left_as_it_is(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "labels.sqlite").write_bytes(content)
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(UserError, match="not a rarebox label store"):
        Store(tmp_path / "other")
    (tmp_path / "labels.sqlite-wal").write_bytes(b"the last answers")
    with pytest.raises(UserError, match="Restore both together" if not content else "not a rarebox label store"):
        Store(tmp_path / "labels.sqlite")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {
        "labels.sqlite": content,
        "other": content,
        "labels.sqlite-wal": b"the last answers",
    }


def test_the_tables_can_be_made_in_postgresql() -> None:
    tables = schema.tables.sorted_tables
    sql = "".join(str(CreateTable(table).compile(dialect=postgresql.dialect())) for table in tables)
    assert sql.count("CREATE TABLE") == 12
    assert "DOUBLE PRECISION" in sql


# Durability


def test_a_store_is_created_completely_or_not_at_all(path: Path) -> None:
    with pytest.raises(IntegrityError):  # after the tables and the first class were made
        Store(path, classes=["fish", None])  # type: ignore[list-item]
    assert rows(path, "SELECT name FROM sqlite_master") == []
    Store(path, classes=CLASSES).close()


@pytest.mark.parametrize(("flush", "synchronous"), [(True, 2), (False, 1)])
def test_people_are_flushed_to_the_disk_and_simulations_are_not(path: Path, flush: bool, synchronous: int) -> None:
    with Store(path, classes=CLASSES, flush=flush) as store, store._engine.connect() as connection:
        pragmas = ("synchronous", "journal_mode", "foreign_keys", "busy_timeout")
        values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == [synchronous, "wal", 1, 30_000]


def test_a_full_disk_is_reported_and_nothing_is_lost(store: Store, path: Path) -> None:
    tell(store, A, OBJECT, (A, 0))
    with store._engine.connect() as connection:  # the pool keeps it, so the limit stays
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(UserError) as caught:
        store.ask(0, [query(1, B)] * 5000)
    assert str(caught.value) == (
        f"{path}: database or disk is full: free some space and try again. Nothing recorded before is lost"
    )
    with store._engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert len(store.queries()) == 1
    assert store.labels_of(1).boxes.tolist() == [A]
    store.ask(0, [query(1, B)] * 5000)


def test_a_store_that_stays_locked_is_reported(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0)
    with (
        Store(path) as other,
        store.transaction(writes=True),
        pytest.raises(UserError, match="another program kept it busy"),
    ):
        other.open_cycle(5)
    assert store.cycles() == [0]


def test_readers_do_not_wait_for_a_writer(store: Store, path: Path) -> None:
    with Store(path) as reader, store.transaction(writes=True) as connection:
        connection.exec_driver_sql("INSERT INTO cycles VALUES (5, '2026-01-01')")
        assert reader.cycles() == [0]


def test_many_at_once_make_one_store_and_contiguous_positions(path: Path) -> None:
    """Each thread opens its own store, as a process would. One writes while the others wait."""

    def work(worker: int) -> None:
        with Store(path, classes=CLASSES, flush=False) as store:
            store.add_images(image(i) for i in range(1, 10))
            store.open_cycle(0)
            for _ in range(10):
                asked = store.ask(0, [query(worker), query(worker)])
                store.record([replace(answer(q), by=str(worker)) for q in asked])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(1, 9)))
    assert rows(path, "SELECT position FROM queries ORDER BY id") == [(i,) for i in range(160)]
    with Store(path) as store:
        assert all(a.by == str(q.image_id) for q, a in store.answered())
        assert store.unanswered(0) == []


def test_switching_to_the_log_is_tried_again_where_sqlite_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """When many open a new file at once, SQLite reports it as locked to one in a thousand, without waiting."""

    class Connection:
        def __init__(self, *said: str) -> None:
            self.said = list(said)

        def execute(self, statement: str) -> None:
            assert statement == "PRAGMA journal_mode = WAL"
            if self.said:
                raise sqlite3.OperationalError(self.said.pop(0))

    twice, broken = Connection(*["database is locked"] * 2), Connection("disk I/O error", "not asked again")
    sqlite.log_ahead(twice.execute)
    assert not twice.said
    with pytest.raises(sqlite3.OperationalError, match="disk"):
        sqlite.log_ahead(broken.execute)
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        sqlite.log_ahead(Connection(*["database is locked"] * 99).execute)


def test_threads_may_share_a_store(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: tell(store, None, OBJECT, (A, 0), image_id=i), [*range(1, 9)] * 5))
    assert store.spent() == Spent(labels=40, reviews=40)


KILLED_FIVE_TIMES = """
import os, random, signal, sys, time
from rarebox.labels.store import Store
from rarebox.types import Answer, Query, Verdict

def work():
    with Store(sys.argv[1], flush=sys.argv[2] == "True") as store:
        while True:
            asked = store.ask(0, [Query(1)] * 5)
            store.record([Answer(q.id, [[0, 0, 9, 9]], [0], Verdict.OBJECT) for q in asked])
            os.write(1, f"{asked[0].id}\\n".encode())

for seed in range(5):
    child = os.fork()
    if child == 0:
        work()
    time.sleep(random.Random(seed).uniform(0.02, 0.4))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("flush", [True, False])
def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(store: Store, path: Path, flush: bool) -> None:
    command = [sys.executable, "-c", KILLED_FIVE_TIMES, str(path), str(flush)]
    acknowledged = {int(line) for line in subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.split()}
    assert acknowledged
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]
    with Store(path) as reopened:
        asked, answered = ids(reopened.queries(0)), {a.query_id for _, a in reopened.answered(0)}
        assert rows(path, "SELECT position FROM queries ORDER BY id") == [(i,) for i in range(len(asked))]
        fives = [asked[i : i + 5] for i in range(0, len(asked), 5)]
        assert len(fives[-1]) == 5
        assert all(len(answered.intersection(five)) in (0, 5) for five in fives)
        assert acknowledged <= answered
        assert ask_one(reopened).id > asked[-1]


def test_many_answers_are_fast(store: Store) -> None:
    """The target is 3 s. The bound is loose, for slow disks and busy machines; it detects N² and a commit per row."""
    start = time.perf_counter()
    for chunk in range(20):
        asked = store.ask(0, [query(1 + (chunk + i) % 9, A) for i in range(500)])
        store.record([answer(q, OBJECT, (A, 0)) for q in asked])
    known = store.labels()
    assert time.perf_counter() - start < 15
    assert all(isinstance(k, ImageLabels) and len(k.boxes) == 1 for k in known.values())


@pytest.mark.skipif(sys.platform == "win32", reason="Windows locks no folders")
def test_a_lock_of_another_program_on_the_folder_only_delays_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    monkeypatch.setattr(sqlite, "FOLDER_SECONDS", 0.1)
    handle = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with Store(tmp_path / "labels.sqlite", classes=["a"]) as store:
            store.open_cycle(1)
        with Store(tmp_path / "labels.sqlite") as store:
            assert store.cycles()
    finally:
        os.close(handle)
