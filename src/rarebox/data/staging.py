"""Folders that appear whole or not at all, and replace nothing but an earlier export that nobody has changed."""

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rarebox.core.parsing import from_json
from rarebox.core.text import counted
from rarebox.data.listings import EXPORT_MARK
from rarebox.data.narrow import as_list, as_object, is_object
from rarebox.errors import UserError, presentable

MOST_NAMED = 3


class _State(NamedTuple):
    """What tells whether a file was changed: its time of change in nanoseconds, its size in bytes, and its content.

    ``content`` is a SHA-256, or the target of a link. ``time`` and ``size`` only save reading an unchanged file again.
    """

    time: int
    size: int
    content: str


def state_of(file: Path) -> _State:
    """The state of a file or link. Raises ``OSError``."""
    about = file.lstat()
    if file.is_symlink():
        return _State(about.st_mtime_ns, about.st_size, f"-> {os.readlink(file)}")
    with file.open("rb") as content:
        return _State(about.st_mtime_ns, about.st_size, hashlib.file_digest(content, "sha256").hexdigest())


OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini")
"""Files that showing a folder leaves in it. They are replaced with an export."""


def files_in(folder: Path) -> list[str]:
    """All files and links below a folder, relative to it, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())


@contextmanager
def staged(folder: Path) -> Generator[Path, None, None]:
    """A folder beside ``folder`` to write to, which replaces it at the end and is deleted on an error.

    Raises `UserError` if ``folder`` holds anything but an earlier export, before or after the block, or if a file of
    that was changed since and the new one would replace it. Also removes what killed processes left beside it.
    """
    folder = Path(os.path.realpath(folder))  # the target of a link is replaced, not the link
    _sweep(folder)
    _refuse_foreign(folder)
    stage, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{state}") for state in ("new", "old"))
    try:
        stage.mkdir(parents=True)
        yield stage
        _refuse_foreign(folder)
        _refuse_changed(folder, stage)
        if folder.exists():
            folder.rename(old)
        stage.rename(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}). Free some space, or choose another folder.") from error
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(stage, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove the drafts of killed processes beside a folder. An earlier export that one had moved away is restored."""
    draft = re.compile(rf"\.{re.escape(folder.name)}\.([0-9]+)\.(new|old)")
    beside = os.listdir(folder.parent) if folder.parent.is_dir() else []
    for found in filter(None, map(draft.fullmatch, beside)):
        left = folder.with_name(found[0])
        if int(found[1]) != os.getpid() and _is_running(int(found[1])):
            continue
        if found[2] == "old" and not os.path.lexists(folder):
            left.rename(folder)
        else:
            shutil.rmtree(left, ignore_errors=True)


def _is_running(process: int) -> bool:
    """Whether there is a process with that number. Windows cannot tell without harm, so there it may be."""
    if sys.platform == "win32":
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _refuse_foreign(folder: Path) -> None:
    """Raise `UserError` if a folder holds anything but an earlier export."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file. Name a folder to export to.")
    others = set(files_in(folder)) - _written_before(folder).keys() - {EXPORT_MARK}
    foreign = sorted(name for name in others if Path(name).name not in OF_FILE_MANAGERS)
    if foreign:
        raise UserError(
            f"{folder} holds files that are not from a rarebox export, such as {foreign[0]}. "
            "Choose another folder, or move them away."
        )


def _refuse_changed(folder: Path, stage: Path) -> None:
    """Raise `UserError` if files of an earlier export were changed, unless ``stage`` has the same ones."""
    before = _written_before(folder)
    changed = [
        name
        for name in (files_in(folder) if folder.exists() else ())
        if (known := before.get(name))
        and _has_changed(folder / name, known)
        and not _is_same(folder / name, stage / name)
    ]
    if changed:
        named = ", ".join(changed[:MOST_NAMED]) + (", …" if len(changed) > MOST_NAMED else "")
        files = f"{counted(len(changed), 'file')} {'was' if len(changed) == 1 else 'were'} changed"
        raise UserError(
            presentable(
                f"{folder}: {files} since the export there: {named}. The new export would replace what was changed. "
                "Choose another folder, or move the changed files away."
            )
        )


def _has_changed(file: Path, known: _State) -> bool:
    about = file.lstat()
    if (about.st_mtime_ns, about.st_size) == (known.time, known.size):
        return False
    return state_of(file).content != known.content


def _is_same(file: Path, new: Path) -> bool:
    return os.path.lexists(new) and state_of(file).content == state_of(new).content


def _written_before(folder: Path) -> Mapping[str, _State | None]:
    """The files of an earlier export, each with its state then; None for those of a version that kept no states."""
    try:
        files = as_object(from_json((folder / EXPORT_MARK).read_text(encoding="utf-8"))).get("files")
    except (OSError, ValueError):
        return {}
    if not is_object(files):
        return dict.fromkeys(map(str, as_list(files)))
    return {name: _state(as_list(value)) for name, value in files.items()}


def _state(value: list[object]) -> _State | None:
    match value:
        case [int(time), int(size), str(content)]:
            return _State(time, size, content)
        case _:
            return None
