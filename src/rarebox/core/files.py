"""Files: writes are atomic and never replace a label store; only regular files are read."""

import errno
import json
import os
import shutil
import stat
import sys
import time
from collections.abc import Collection, Generator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, overload

from rarebox.core.parsing import from_json
from rarebox.errors import Busy, Damaged, UserError

ROOM_FOR_ANSWERS = 8 << 20
"""Bytes that every write leaves free on the disk, so that answers can still be saved."""

NOT_REGULAR = "it is not a regular file"
"""The message for a pipe, a socket or a device, which are never read."""

PART = ".part"
"""The suffix of a file that is being written."""

PARTS = (f"*{PART}", f"cycle_*/*{PART}", f"cycle_*/candidates/*{PART}", f"figures/*{PART}")
"""Glob patterns of partly written files, relative to the folder of a run or project."""

OWN_MARK = "rarebox.json"
"""The file in every folder whose images rarebox has written, so that no command takes them for photos."""

DATABASES = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""The first bytes of an SQLite file and of its write-ahead log."""


def real(path: str | Path) -> Path:
    """Resolve a path to an absolute path without links. A loop or a broken link is left unresolved, without an error.

    ``Path.resolve`` raises ``RuntimeError`` for a loop and ``ValueError`` for a NUL.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(os.path.abspath(path))


Stat = tuple[int, int, int, int]
"""Size in bytes, modification time and change time in nanoseconds, inode."""


def stat_of(found: os.stat_result) -> Stat:
    """What changes when a file changes or another one takes its name, even one of the same size and time."""
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def open_regular(path: str | Path) -> BufferedReader:
    """Open a user's file for reading. Raises ``OSError`` if it is missing, unreadable or not a regular file.

    Opening a named pipe would wait for a writer, and a device such as ``/dev/zero`` has no end.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL in the path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return open(path, "rb")


def read_bytes(path: str | Path) -> bytes:
    """Read a file, opened by :func:`open_regular`. Raises UserError if it does not fit into memory."""
    with open_regular(path) as opened:
        try:
            return opened.read()
        except MemoryError:
            size = os.fstat(opened.fileno()).st_size
            raise UserError(
                f"{path}: its {size / 1e9:.1f} GB do not fit into memory. Check whether it is complete"
            ) from None


def write_bytes(file: Path, content: bytes, mode: int = 0o666) -> None:
    """Create or replace a file atomically, with the permissions ``mode`` (less the umask).

    The function writes a part file beside it, flushes that to the disk, renames it and flushes the folder. So a
    database row that is written afterwards never refers to a file that a power cut has emptied. If anything fails, the
    part is removed and the file is unchanged. Raises ``OSError`` with ``ENOSPC`` if fewer than
    :data:`ROOM_FOR_ANSWERS` bytes would stay free, and UserError if the file is an SQLite database: a label store is
    never overwritten.
    """
    refuse_database(file)
    if shutil.disk_usage(file.parent).free - len(content) < ROOM_FOR_ANSWERS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    part = file.with_name(file.name + PART)
    try:
        part.unlink(missing_ok=True)  # left by a killed process, perhaps with other permissions
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    flush_folder(file.parent)


def write_new(file: Path, content: bytes) -> None:
    """Write a new file. Raises ``FileExistsError`` if the name is taken; a link is never followed."""
    with open(file, "xb") as handle:
        handle.write(content)


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8, as :func:`write_bytes` does. Lone surrogates are escaped."""
    write_bytes(file, text.encode(errors="backslashreplace"))


def write_json(file: Path, value: object) -> None:
    """Write JSON, as :func:`write_bytes` does."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


@overload
def read_json(file: Path, kind: type[dict[str, Any]]) -> dict[str, Any]: ...
@overload
def read_json(file: Path, kind: type[list[Any]]) -> list[Any]: ...
@overload
def read_json(file: Path) -> object: ...
def read_json(file: Path, kind: type = object) -> object:
    """Read a JSON file of a kind, ``list`` or ``dict``. Raises Damaged if it is missing or of another kind."""
    try:
        value = from_json(file.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it should hold a {kind.__name__}")
        return value
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: object) -> Damaged:
    """The error for a file that rarebox wrote and cannot read. Every such file can be rebuilt or is not needed."""
    if isinstance(error, FileNotFoundError):
        return Damaged(f"{file} is missing. Restore a copy of it, or repeat the command")
    return Damaged(f"{file} is damaged ({error}). Restore a copy of it, or delete it and repeat the command")


def mark_own(folder: Path, command: str) -> None:
    """Create a folder for images that a command writes, and its mark, unless it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / OWN_MARK).exists():
        write_json(folder / OWN_MARK, {"written_by": f"rarebox {command}"})


def is_own(names: Collection[str]) -> bool:
    """Whether a folder with these files is one that rarebox writes: it has a mark, or holds a run or project."""
    return OWN_MARK in names or {"settings.yaml", "labels.sqlite"}.issubset(names)


def copy(source: str | Path, to: str | Path) -> None:
    """Copy a file's content atomically, as :func:`write_bytes` writes it."""
    write_bytes(Path(to), read_bytes(source))


def refuse_database(file: Path) -> None:
    """Raise UserError if a file to be written is an SQLite database, such as a label store, or is named like one.

    The name counts too, because a damaged store may still be recoverable.
    """
    start = b""
    if file.is_file():
        with file.open("rb") as there:
            start = there.read(16)
    if start.startswith(DATABASES) or ".sqlite" in file.name:
        raise UserError(f"{file} is a database, perhaps a label store with people's answers. Name another file")


def sweep(folder: Path) -> None:
    """Remove the part files that a killed process left in the folder of a run or project. Hold its lock."""
    for pattern in PARTS:
        for part in folder.glob(pattern):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system supports that (Windows does not)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks refuse
            os.fsync(handle)
    finally:
        os.close(handle)


if sys.platform == "win32":
    import msvcrt

    def _try_lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def hold(lock: Path) -> Generator[None]:
    """Lock a file, and so its folder, against other processes. Raises Busy if one holds it. It ends with the process.

    The lock is the operating system's own. On a disk without such locks it is refused; a marker file in its place
    would outlive ``kill -9``.
    """
    with lock.open("a") as handle:
        try:
            _try_lock(handle.fileno())
        except OSError:
            raise Busy(f"another rarebox process is working in {lock.parent}. Wait for it, or stop it") from None
        yield


@contextmanager
def hold_when_free(lock: Path) -> Generator[None]:
    """Wait until a file's lock is free, then hold it as :func:`hold` does."""

    while True:
        try:
            with hold(lock):
                yield
                return
        except Busy:
            time.sleep(0.05)
