"""Files are written atomically and flushed, failed writes leave nothing, and label stores are never overwritten."""

import ast
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox.core import files, parquet
from rarebox.errors import Damaged, UserError
from rarebox.labels.store import Store
from rarebox.types import Answer, ImageRecord, Query, Verdict

SRC = Path(files.__file__).parents[1]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MB, if the system allows mounting one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_file_and_its_folder_are_flushed_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def flushed(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")

    monkeypatch.setattr(os, "fsync", flushed)
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: done.append("rename") or replace(self, to))
    for write in (
        lambda: files.write_bytes(tmp_path / "model", b"x"),
        lambda: files.write_json(tmp_path / "metrics.json", []),
        lambda: parquet.write(tmp_path / "ranking.parquet", {"a": np.arange(3)}),
    ):
        done.clear()
        write()
        assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), MemoryError(), KeyboardInterrupt(), RuntimeError()])
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_failed_write_leaves_the_file_unchanged_and_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException, at: str
) -> None:
    file = tmp_path / "model.safetensors"
    files.write_bytes(file, b"old")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(*((os, "fsync") if at == "fsync" else (Path, "replace")), fail)
    with pytest.raises(type(failure)):
        files.write_bytes(file, b"new" * 1000)
    assert contents(tmp_path) == {"model.safetensors": b"old"}


def test_answers_are_saved_on_a_disk_that_training_has_filled(small_disk: Path) -> None:
    with Store(small_disk / "labels.sqlite", classes=["cat"]) as store:
        store.add_images([ImageRecord(1, "a.jpg", 100, 100)])
        store.open_cycle(1)
        (query,) = store.ask(1, [Query(1)])
        free = shutil.disk_usage(small_disk).free
        while shutil.disk_usage(small_disk).free > files.ROOM_FOR_ANSWERS + (3 << 20):
            files.write_bytes(small_disk / f"model_{free}", bytes(2 << 20))
            free = shutil.disk_usage(small_disk).free
        with pytest.raises(OSError, match="No space left"):
            files.write_bytes(small_disk / "checkpoint", bytes(100 << 20))
        assert not list(small_disk.glob("*.part"))
        for _ in range(500):
            store.record([Answer(query.id, np.array([[1, 2, 30, 40]]), np.array([0]), Verdict.OBJECT, "anna")])
        (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free))  # another program uses all of it
        with pytest.raises(OSError, match="No space left"):
            files.write_bytes(small_disk / "model", bytes(1 << 20))
    assert not list(small_disk.glob("*.part"))


def test_a_file_leaves_room_for_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(_: Path) -> Any:
        return shutil._ntuple_diskusage(10**9, 0, files.ROOM_FOR_ANSWERS + 100)  # type: ignore[attr-defined]

    monkeypatch.setattr(shutil, "disk_usage", usage)
    files.write_bytes(tmp_path / "small", bytes(100))
    with pytest.raises(OSError, match="No space left") as full:
        files.write_bytes(tmp_path / "large", bytes(101))
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(tmp_path / "large"))
    assert [file.name for file in tmp_path.iterdir()] == ["small"]


def test_a_label_store_is_never_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path / "labels.sqlite", classes=["cat"])
    store.open_cycle(1)
    for name in ("labels.sqlite", "labels.sqlite-wal"):
        with pytest.raises(UserError, match=r"is a database.*Name another file"):
            files.write_text(tmp_path / name, "a,b\n")
    store.close()


def test_part_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    for name in ("settings.yaml.part", "cycle_02/model.safetensors.part", "cycle_02/candidates/shard.parquet.part"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "cycle_01.part").mkdir()
    (tmp_path / "cycle_01.part" / "model.safetensors").write_bytes(b"half")
    (tmp_path / "cycle_02" / "model.safetensors").write_bytes(b"whole")
    files.sweep(tmp_path)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / "cycle_02" / "model.safetensors"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'"text"'])
def test_json_that_cannot_be_read_is_damaged(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(Damaged, match=r"metrics\.json is missing. Restore a copy of it, or repeat the command"):
        files.read_json(tmp_path / "metrics.json", list)
    (tmp_path / "metrics.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"metrics\.json is damaged .*delete it and repeat the command"):
        files.read_json(tmp_path / "metrics.json", list)


OTHER_WRITERS = {
    "data/scenes.py": "pictures of scenes are made in a folder of their own, which takes its place as a whole",
    "data/voc.py": "an archive is fetched on from where it stopped",
    "loop/worker.py": "into a temporary folder",
    "web/serve.py": "the last port; a damaged one is as good as none",
    "detectors/frozen.py": "files that only grow",
    "core/files.py": "an empty lock",
    "deploy/results.py": "each result is appended at once, and a line that was cut short is dropped",
    "detectors/weights.py": "a download is written as it arrives, and takes its name when its checksum is right",
}


def test_nobody_else_writes_files() -> None:
    calls = {"write_text", "write_bytes", "savefig", "copyfile", "write_table"}
    found = set[str]()
    for file in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                words = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
                opens = node.func.attr == "open" and any(set(word) & set("wax") for word in words if len(word) < 4)
                if opens or (node.func.attr in calls and ast.unparse(node.func.value) != "files"):
                    found.add(str(file.relative_to(SRC)))
    # These write into memory.
    assert found - {"core/parquet.py", "report/drawing.py"} == OTHER_WRITERS.keys()


def test_a_new_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    photo, name = tmp_path / "photo.jpg", tmp_path / "export.jpg"
    photo.write_bytes(b"the only one")
    name.symlink_to(photo)
    with pytest.raises(FileExistsError):
        files.write_new(name, b"another")
    assert photo.read_bytes() == b"the only one"
    files.write_new(tmp_path / "b.jpg", b"another")
    assert (tmp_path / "b.jpg").read_bytes() == b"another"
