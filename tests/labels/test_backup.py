"""Backups of a store while people answer, and how docs/store.md restores them."""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
from typer.testing import CliRunner

from rarebox.cli import main
from rarebox.errors import Unavailable, UserError
from rarebox.labels import store
from rarebox.labels.leases import People, Status, Submission
from rarebox.labels.store import Store
from rarebox.project.collect import collect
from rarebox.project.project import Project
from rarebox.types import Answer, Query, Verdict
from tests.house import BOX, House, ask_whole_images, make_project

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path)
    ask_whole_images(made, *range(1, 13))
    return made


def answer(labels: Store, query: int) -> None:
    labels.record([Answer(query, np.array([BOX]), np.array([0]), Verdict.OBJECT, "anna")])


def test_a_backup_is_whole_while_others_write(project: Project, tmp_path: Path) -> None:
    project.store.add_images([])
    project.store.ask(1, [Query(1) for _ in range(300)])
    written, over = [0], threading.Event()

    def write() -> None:
        for query in range(1, 301):
            if over.is_set():
                return
            answer(project.store, query)
            written[0] = query

    writing = threading.Thread(target=write)
    writing.start()
    counts = []
    for number in range(5):
        before = written[0]
        done = CliRunner().invoke(main.app, ["backup", str(project.folder.root), str(tmp_path / f"{number}.sqlite")])
        assert done.exit_code == 0, done.output
        with sqlite3.connect(f"file:{tmp_path / f'{number}.sqlite'}?mode=ro", uri=True) as copy:
            (count,) = copy.execute("SELECT count(*) FROM answers").fetchone()
        copy.close()
        assert before <= count <= written[0] + 1
        counts.append(count)
    over.set()
    writing.join()
    assert counts == sorted(counts)
    assert sorted(file.name for file in tmp_path.glob("*sqlite*")) == [f"{number}.sqlite" for number in range(5)]
    assert not list(tmp_path.glob(".*"))


def test_a_backup_overwrites_nothing(project: Project, tmp_path: Path) -> None:
    root = project.folder.root
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in (tmp_path / "file", tmp_path / "link", tmp_path, root / "labels.sqlite"):
        with pytest.raises(UserError, match=r"exists and is not overwritten\. Name a new file"):
            project.store.back_up(place)
    with pytest.raises(UserError, match=r"there is no folder .*no. Create it"):
        project.store.back_up(tmp_path / "no" / "folder.sqlite")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal", "-JOURNAL"])
def test_a_backup_takes_no_name_that_sqlite_uses(project: Project, tmp_path: Path, end: str) -> None:
    for place in (project.folder.root / f"labels.sqlite{end}", tmp_path / f"another.sqlite{end}"):
        there = place.exists()
        with pytest.raises(UserError, match=r"SQLite may delete files with names|exists and is not overwritten"):
            project.store.back_up(place)
        assert place.exists() == there


def test_a_backup_that_fails_leaves_nothing(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.os, "fsync", full)
    with pytest.raises(UserError, match=r"copy\.sqlite cannot be written .*No space left"):
        project.store.back_up(tmp_path / "copy.sqlite")
    assert not list(tmp_path.glob("*copy*"))
    assert not list(tmp_path.glob(".*"))


def test_a_disk_without_links(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(store.os, "link", no_links)
    project.store.back_up(tmp_path / "copy.sqlite")
    assert (tmp_path / "copy.sqlite").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_database_server_has_its_own_backup(database: str, tmp_path: Path) -> None:
    with Store(database, classes=("fish",)) as there:
        if "://" not in database:
            there.back_up(tmp_path / "copy.sqlite")
            return
        with pytest.raises(UserError, match="Use pg_dump"):
            there.back_up(tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()


def commands(heading: str) -> str:
    """The commands below a heading of the page about the store."""
    page = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    found = re.search(rf"## {heading}\n.*?```sh\n(.*?)```", page, re.DOTALL)
    assert found, heading
    return found[1]


@pytest.mark.parametrize("lost", ["store", "folder"])
def test_a_backup_is_restored_as_the_page_says(project: Project, tmp_path: Path, lost: str) -> None:
    for query in (1, 2, 3):
        answer(project.store, query)
    tool = tmp_path / "bin" / "rarebox"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m rarebox "$@"\n')
    tool.chmod(0o755)
    path = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}

    def do(heading: str) -> None:
        subprocess.run(["sh", "-e", "-c", commands(heading)], cwd=tmp_path, env=path, check=True)

    do("Back up")
    answer(project.store, 4)  # which the backup does not know
    if lost == "folder":
        project.store.close()
        shutil.rmtree(project.folder.root)
    else:  # with its log beside it, as after a power cut
        files = {file: file.read_bytes() for file in project.folder.root.glob("labels.sqlite*")}
        project.store.close()
        for file, content in files.items():
            file.write_bytes(content)
        (project.folder.root / "labels.sqlite").write_bytes(b"damaged" * 1000)
    do("Roll back to a backup")
    again = Project(tmp_path / "project")
    house = House(again)
    try:
        assert len(People(again.store).given()) == 3
        anna = house.browser("anna")
        (asked,) = anna.next(1)
        assert asked["id"] == 4
        anna.saved(query=4, boxes=[BOX], labels=[1])
    finally:
        house.service.close()
    assert sum(len(one.boxes) for one in collect(tmp_path / "project")[2]) == 4


@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_is_reported_as_saved_after_the_file_was_replaced(tmp_path: Path, replaced: bool) -> None:
    project = make_project(tmp_path)
    ask_whole_images(project, 1, 2, 3)
    file = project.folder.root / "labels.sqlite"
    project.store.back_up(tmp_path / "copy.sqlite")
    with closing(House(project).service) as service:
        first, second = service.answer("tab", "anna", [], 2).result(20).queries
        boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
        said = [
            Submission(str(uuid4()), Verdict.NOT_AN_OBJECT, boxes, labels, query_id=query.id)
            for query in (first, second)
        ]
        assert service.answer("tab", "anna", said[:1], 0).result(20)[0][0].status is Status.SAVED
        for part in file.parent.glob("labels.sqlite*"):
            part.unlink()
        if replaced:
            shutil.copy(tmp_path / "copy.sqlite", file)
        with pytest.raises(Unavailable, match=r"labels\.sqlite: the file was removed or replaced while it was open"):
            service.answer("tab", "anna", said[1:], 0).result(20)


@pytest.mark.parametrize("ends", [["-wal"], ["-shm"], ["-wal", "-shm"]])
def test_nothing_saved_is_lost_with_the_files_that_sqlite_adds(
    project: Project, tmp_path: Path, ends: list[str]
) -> None:
    """Saved answers are kept, later ones are refused by name, and a restart resumes."""
    file = project.folder.root / "labels.sqlite"
    answer(project.store, 1)
    for end in ends:
        file.with_name(file.name + end).unlink()
    with pytest.raises(Unavailable, match=rf"labels\.sqlite{ends[0]}: .*nothing is saved\. Stop rarebox with Ctrl-C"):
        answer(project.store, 2)
    assert [query.id for query, _ in project.store.answered()] == [1]
    shutil.copy(file, tmp_path / "as after kill -9.sqlite")
    with Store(tmp_path / "as after kill -9.sqlite") as killed:
        assert [query.id for query, _ in killed.answered()] == [1]
    project.store.close()
    with Store(file) as again:
        answer(again, 2)
        assert [query.id for query, _ in again.answered()] == [1, 2]


def test_a_log_removed_during_a_write_loses_nothing_saved(project: Project, tmp_path: Path) -> None:
    file = project.folder.root / "labels.sqlite"
    answer(project.store, 1)

    def remove_while_writing() -> None:
        with project.store.transaction(writes=True):
            answer(project.store, 2)
            file.with_name("labels.sqlite-wal").unlink()

    with pytest.raises(Unavailable, match=r"-wal: the file was removed"):
        remove_while_writing()
    shutil.copy(file, tmp_path / "copy.sqlite")
    with Store(tmp_path / "copy.sqlite") as killed:
        assert [query.id for query, _ in killed.answered()] == [1]


def test_a_log_put_back_is_used_again(project: Project) -> None:
    file = project.folder.root / "labels.sqlite"
    log = file.with_name("labels.sqlite-wal")
    for query in (1, 2):
        log.rename(file.with_name("away"))
        with pytest.raises(Unavailable):
            answer(project.store, query)
        file.with_name("away").rename(log)
        answer(project.store, query)
    log.unlink()
    assert len(project.store.answered()) == 2  # a reader copies the log, too
    assert sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True).execute(
        "SELECT count(*) FROM answers"
    ).fetchone() == (2,)


def test_a_backup_of_a_damaged_store_is_refused(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    ask_whole_images(project, 1, 2, 3)
    project.store.close()
    file = project.folder.root / "labels.sqlite"
    content = bytearray(file.read_bytes())
    page = int.from_bytes(content[16:18])
    with closing(sqlite3.connect(file)) as opened:
        (root,) = opened.execute("SELECT rootpage FROM sqlite_master WHERE name = 'queries'").fetchone()
    content[(root - 1) * page + 8 : (root - 1) * page + 10] = b"\xff\xff"  # the position of its first cell
    file.write_bytes(content)
    with Store(file) as damaged, pytest.raises(UserError, match="damaged"):
        damaged.back_up(tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()
