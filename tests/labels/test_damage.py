"""A damaged cell is reported, everything else is exported, and annotation continues."""

import json
import logging
import shutil
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import JSON
from typer.testing import CliRunner

from rarebox.cli import main
from rarebox.data.review import Batch, Region, Returned
from rarebox.errors import UserError
from rarebox.labels import schema
from rarebox.labels.leases import People, Submission
from rarebox.labels.store import Store
from rarebox.project.collect import collect
from rarebox.project.exchange.importing import bring_in
from rarebox.project.project import Project
from rarebox.project.trainer import asked_first, is_due
from rarebox.types import Query, Verdict
from tests.house import BOX, House, ask_whole_images, make_project, open_cycle, opened
from tests.thinned import first_seeds

GARBAGE = (b"\xff\xfe\x00", "a\0b", "no such thing", -5, 2**40, 1e308, None, "NaN", "")
"""Possible contents of a cell after a bit flip or an edit."""

JSON_GARBAGE = ("[[1, 2", '{"rank": NaN}', "[[9, 9, 1, 1]]")
"""More of them where the content is parsed; elsewhere they are only text that is not expected, as above."""

CELLS = [
    (table.name, column.name, (*GARBAGE, *JSON_GARBAGE) if isinstance(column.type, JSON) else GARBAGE)
    for table in schema.tables.sorted_tables
    for column in table.columns
    if not (column.primary_key and table.name != "leases")
]
"""Every cell except row ids, which SQLite forces to be whole numbers."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a project in which two people have answered, renamed and merged, and which has moved."""
    folder = tmp_path_factory.mktemp("damage")
    project = make_project(folder)
    ask_whole_images(project, 1, 2, 3)
    open_cycle(project, 2, [4, 5, 6, 7, 8], guess=1)
    people = People(project.store)
    people.store.ask(2, [Query(i, np.array(BOX, np.float32), 1, why={"rank": 0.0}) for i in (9, 10, 11)])
    people.claim("ben\ntab", "ben", 1, 1000, cycle=2)
    people.claim("anna\ntab", "anna", 3, 1000, cycle=1)
    for number in (1, 2, 3):
        people.submit("anna\ntab", "anna", said(f"k{number}", number, (BOX, number % 3)))
    people.submit("ben\ntab", "ben", said("k4", None, (BOX, 1), image_id=6))
    people.submit("ben\ntab", "ben", said("k5", 3, (BOX, 2), after=3))
    import_a_task(project)
    people.rename_class(2, "hammerhead", "anna")
    people.merge_class(1, 0, "anna")
    project.store.move_images({12: str(folder / "photos" / "elsewhere.jpg")})
    project.store.close()
    return folder / "project"


def import_a_task(project: Project) -> None:
    """A task that returns a box which has its label already."""
    x1, y1, x2, y2 = BOX
    region = Region((x1, y1, x2, y2), project.store.classes()[1], None, "1")
    name = Path(image.path).name if (image := project.store.images().get(6)) else "6.jpg"
    bring_in(project.store, Batch([Returned("f", name, None, None, (), (region,), "cy", task="7")]), "cvat")


def said(key: str, query: int | None, *objects: tuple[list[float], int], **more: Any) -> Submission:
    boxes, labels = np.array([box for box, _ in objects], np.float32), np.array([label for _, label in objects])
    return Submission(key, Verdict.OBJECT, boxes.reshape(-1, 4), labels, query_id=query, **more)


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "project")
    return tmp_path / "project"


def damaged(root: Path, table: str, column: str, value: Any, row: int = 1) -> bool:
    """Set a cell of a row (0: the last), bypassing all constraints; False if the file does not allow it."""
    connection = sqlite3.connect(root / "labels.sqlite", isolation_level=None)
    try:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, ' NOT NULL', '') WHERE type = 'table'")
        connection.close()
        connection = sqlite3.connect(root / "labels.sqlite", isolation_level=None)
        (number,) = connection.execute(
            f"SELECT rowid FROM {table} ORDER BY rowid {'LIMIT 1 OFFSET ' + str(row - 1) if row else 'DESC'}"
        ).fetchone()
        bits = value.encode() if isinstance(value, str) else value
        cast = "CAST(? AS TEXT)" if isinstance(bits, bytes) and value != GARBAGE[0] else "?"
        connection.execute(f'UPDATE {table} SET "{column}" = {cast} WHERE rowid = {number}', (bits,))
        return True
    except sqlite3.IntegrityError:
        return False
    finally:
        connection.close()


def run(*command: Any) -> tuple[int, str]:
    """Run a command: its status and its error output. A traceback fails the test."""
    done = CliRunner().invoke(main.app, [str(part) for part in command])
    if done.exception and not isinstance(done.exception, SystemExit | UserError):
        raise done.exception
    return done.exit_code, f"{done.output}{done.exception or ''}"


@pytest.mark.parametrize("sixth", first_seeds(6))
@pytest.mark.parametrize(
    ("number_of_cell", "table", "column", "contents"),
    [pytest.param(number, *cell, id="-".join(cell[:2])) for number, cell in enumerate(CELLS)],
)
def test_no_damaged_cell_ends_in_a_traceback(
    root: Path, number_of_cell: int, table: str, column: str, contents: tuple[Any, ...], sixth: int, tmp_path: Path
) -> None:
    """Each sixth of the garbage starts elsewhere in the next cell, so that one sixth of each has all kinds."""
    whole = (root / "labels.sqlite").read_bytes()
    tried = [*enumerate(contents)][(number_of_cell + sixth) % 6 :: 6]
    in_full = tried[number_of_cell // 6 % len(tried)][0]
    for number, value in tried:
        (root / "labels.sqlite").write_bytes(whole)
        if not damaged(root, table, column, value, row=number % 2):
            continue
        collect(root)
        project = Project(root)
        people = People(project.store)
        people.leases("anna\ntab")
        assert len(people.claim("dora\ntab", "dora", 1, 100, cycle=2)) == 1
        project.store.spent()
        asked_first(project)
        is_due(project, 1, True)
        with suppress(UserError):
            import_a_task(project)
        if number == in_full and (number_of_cell + sixth) % 2 == 0:
            everything(project, tmp_path)
        project.store.close()


def everything(project: Project, to: Path) -> None:
    """The requests to a server, and the commands that read a store."""
    root = project.folder.root
    with opened(project) as house:
        browser = house.browser("cleo")
        queries = browser.next(2)
        assert queries
        for query in queries:
            browser.saved(query=query["id"], boxes=[BOX], labels=[0])
        browser.get("/api/answers", limit=200)
        browser.get("/api/disagreements")
        for image in house.service.memory.images:
            browser.get(f"/api/image/{image}")
        assert browser.http.get("/api/export", params={"format": "coco"}).status_code == 200
    for command in (
        ["export", root, to / "out", "--format", "voc"],
        ["backup", root, to / "copy"],
        ["export", root, to / "asked", "--queries", "--format", "cvat"],
    ):
        status, told = run(*command)
        assert status == 0, told


@pytest.mark.parametrize(
    ("table", "column", "value", "left"),
    [
        ("answers", "boxes", "[[10, 10, 50,", 3),
        ("answers", "labels", "[9]", 3),
        ("answers", "verdict", "objecv", 3),
        ("answers", "by", b"\xff", 4),
        ("answers", "milliseconds", "x", 4),
        ("answers", "query_id", 999, 3),
        ("answers", "answered_at", "2026-99-99", 4),
        ("queries", "utility", "x", 4),
        ("queries", "box", "[1, 2]", 4),
        ("queries", "why", "{", 4),
        ("queries", "guess", 77, 4),
        ("queries", "wanted", "x", 4),
        ("queries", "image_id", 999, 3),
        ("images", "width", "x", 3),
        ("images", "path", b"\xff", 4),
        ("classes", "name", b"\xff", 4),
        ("class_changes", "merged_into", 99, 4),
    ],
)
def test_damaged_items_are_named_and_the_rest_is_exported(
    root: Path, caplog: pytest.LogCaptureFixture, table: str, column: str, value: Any, left: int
) -> None:
    row = 2 if table == "class_changes" else 1
    assert damaged(root, table, column, value, row)
    with caplog.at_level(logging.WARNING), Store(root / "labels.sqlite") as store:
        People(store).given()
        store.spent()
        store.images()
        store.classes()
        told = [*store.damage]
    damage: list[str] = []
    _, _, annotations = collect(root, damage)
    assert sum(len(one.boxes) for one in annotations) == left
    number = 0 if table == "classes" else row
    name = f"{root / 'labels.sqlite'}: table {table}, row {number}: {column} is damaged"
    assert [line for line in {*told, *damage} if line.startswith(name)]
    assert any(record.getMessage().startswith(name) for record in caplog.records)


def test_the_download_names_what_is_damaged(root: Path) -> None:
    import io
    import zipfile

    damaged(root, "answers", "boxes", "[[10, 10, 50,")
    house = House(Project(root))
    try:
        reply = house.browser().http.get("/api/export", params={"format": "coco"})
    finally:
        house.service.close()
    archive = zipfile.ZipFile(io.BytesIO(reply.content))
    assert "table answers, row 1: boxes is damaged" in archive.read("damaged.txt").decode()
    assert len(json.loads(archive.read("annotations.json"))["annotations"]) == 3


def test_a_damaged_answer_may_be_repeated(root: Path) -> None:
    damaged(root, "answers", "labels", "[0")
    house = House(Project(root))
    try:
        anna = house.browser("anna")
        (given,) = (one for one in anna.get("/api/answers", limit=200)["answers"] if one["answer"] == 1)
        assert (given["verdict"], given["boxes"]) == ("cannot_tell", [])
        anna.saved(query=given["query"], boxes=[BOX], labels=[0], after=1)
    finally:
        house.service.close()
    assert sum(len(one.boxes) for one in collect(root)[2]) == 4


def test_a_store_of_no_version(root: Path) -> None:
    connection = sqlite3.connect(root / "labels.sqlite")
    connection.execute("DELETE FROM rarebox")
    connection.commit()
    connection.close()
    status, told = run("export", root, root.parent / "out")
    assert status != 0
    assert "table rarebox: schema is damaged (None). Restore a copy of it (docs/store.md)" in told


@pytest.mark.parametrize(
    ("old", "new"), [(b"verdict", b"verdicu"), (b"CREATE TABLE", b"CREATE\xc2TABLE"), (b'"by"', b'"b\xc2"')]
)
def test_damage_beyond_cells_asks_for_a_backup(root: Path, old: bytes, new: bytes) -> None:
    file = root / "labels.sqlite"
    file.write_bytes(file.read_bytes().replace(old, new))
    status, told = run("export", root, root.parent / "out")
    assert status != 0
    assert f"{file}: " in told
    assert "the file is damaged. Restore a copy of it (docs/store.md)" in told
