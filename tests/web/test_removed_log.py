"""SQLite's files are removed while the server runs, and another process opens the store: no saved answer is lost."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from itertools import product
from pathlib import Path
from uuid import uuid4

import httpx
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rarebox.cli import main
from rarebox.errors import Unavailable
from rarebox.labels.store import Store
from rarebox.project.project import Project
from rarebox.types import Answer, Query, Verdict
from tests.house import BOX, ask_whole_images, make_project
from tests.serving import Served
from tests.thinned import thinned

TASK = {
    "data": {"image": "photo05.jpg"},
    "annotations": [
        {
            "id": 1,
            "result": [
                {
                    "id": "r",
                    "type": "rectanglelabels",
                    "from_name": "label",
                    "to_name": "image",
                    "original_width": 96,
                    "original_height": 64,
                    "value": {"x": 5, "y": 5, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["fish"]},
                }
            ],
        }
    ],
}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    made = make_project(tmp_path)
    ask_whole_images(made, 1, 2, 3)
    return made


def do_import(project: Project, folder: Path) -> Result:
    file = folder / "tasks.json"
    file.write_text(json.dumps([TASK]))
    return CliRunner().invoke(
        main.app, ["import", str(project.folder.root), str(file), "--format", "labelstudio", "--by", "ben"]
    )


def answers_in_file(file: Path) -> int:
    """The answers that the database holds without its log."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
        return opened.execute("SELECT count(*) FROM answers").fetchone()[0]


def save(served: Served, answers: int) -> None:
    (cookies,) = served.cookies(["anna"]).values()
    with httpx.Client(base_url=served.url, cookies=cookies) as browser:
        asked = browser.post("/api/next", json={"client": "tab", "want": answers}).json()["queries"]
        said = [{"key": str(uuid4()), "query": q["id"], "verdict": "not_an_object"} for q in asked]
        body = {"client": "tab", "answers": said, "want": 0}
        results = browser.post("/api/answers", json=body).json()["results"]
        assert [result["status"] for result in results] == ["saved"] * answers


@pytest.mark.parametrize(
    ("ends", "end"),
    thinned(
        product((["-wal", "-shm"], ["-wal"]), (signal.SIGKILL, signal.SIGTERM)), lambda number, _: number in (0, 3)
    ),
)
def test_an_import_waits_until_the_server_has_ended(
    project: Project, tmp_path: Path, ends: list[str], end: signal.Signals
) -> None:
    project.store.close()
    file = project.folder.store
    with Served(project.folder.root) as served:
        save(served, 3)
        for suffix in ends:
            file.with_name(file.name + suffix).unlink()
        refused = do_import(project, tmp_path)
        message = str(refused.exception)
        assert isinstance(refused.exception, Unavailable), refused.output
        assert "-wal: the file was removed or replaced while another rarebox process has the store open" in message
        assert "with Ctrl-C, and repeat the command" in message
        until = time.monotonic() + 20
        while answers_in_file(file) < 3 and time.monotonic() < until:
            time.sleep(0.05)  # an idle server copies the log within a second
        served.signal(end)
        served.process.join(20)
    done = do_import(project, tmp_path)
    assert done.exit_code == 0, done.output
    with Store(file) as store:
        assert sorted(answer.by for _, answer in store.answered()) == ["anna"] * 3 + ["ben"]


def answer(store: Store, query: int) -> None:
    store.record([Answer(query, np.array([BOX]), np.array([0]), Verdict.OBJECT, "anna")])


def test_a_store_is_opened_again_only_with_its_log(project: Project) -> None:
    file = project.folder.store
    log = file.with_name("labels.sqlite-wal")
    answer(project.store, 1)
    with Store(file) as other:
        assert len(other.answered()) == 1
    content = log.read_bytes()
    log.unlink()
    log.write_bytes(content)  # as a program that synchronises folders does
    with pytest.raises(Unavailable, match=r"labels\.sqlite-wal: .*another rarebox process has the store open"):
        Store(file)
    file.with_name("labels.sqlite-shm").unlink()
    log.unlink()
    project.store.close()
    with Store(file) as again:
        assert len(again.answered()) == 1
    assert not file.with_name(".labels.sqlite.open").exists()


def test_a_register_left_by_a_killed_process_is_ignored(project: Project) -> None:
    project.store.close()
    register = project.folder.root / ".labels.sqlite.open"
    for content in ("[[1, 2], [1, 3], [1, 4]]", "damaged"):
        register.write_text(content)
        with Store(project.folder.store) as store, Store(project.folder.store) as another:
            store.ask(1, [Query(4)])
            assert len(another.queries()) == len(store.queries())
        assert not register.exists()


WRITE = """
import sqlite3, sys
opened = sqlite3.connect(sys.argv[1], isolation_level=None)
opened.execute("INSERT INTO cycles VALUES (7, '2026-01-01 00:00:00.000000')")
"""
READ = """
import sqlite3, sys
opened = sqlite3.connect(sys.argv[1])
print(opened.execute("SELECT (SELECT count(*) FROM answers), (SELECT max(cycle) FROM cycles)").fetchone())
"""


def sqlite_program(code: str, file: Path) -> str:
    """Run another program, unaware of rarebox, on a database."""
    return subprocess.run([sys.executable, "-c", code, file], check=True, capture_output=True, text=True).stdout.strip()


def test_another_programs_log_is_not_overwritten(project: Project, tmp_path: Path) -> None:
    """The saved answers are then in a file beside the store."""
    file = project.folder.store
    answer(project.store, 1)
    for end in ("-wal", "-shm"):
        file.with_name(file.name + end).unlink()
    sqlite_program(WRITE, file)
    with pytest.raises(Unavailable, match=r"Everything saved before is in .*labels\.rescued-\d+\.sqlite"):
        answer(project.store, 2)
    with pytest.raises(Unavailable, match="removed or replaced"):
        answer(project.store, 3)
    project.store.close()
    (rescued,) = project.folder.root.glob("labels.rescued-*")
    assert sqlite_program(READ, rescued) == "(1, 1)"
    assert sqlite_program(READ, file) == "(0, 7)"
    shutil.copy(rescued, tmp_path / "copy.sqlite")
    with Store(tmp_path / "copy.sqlite") as copy:
        assert len(copy.answered()) == 1
