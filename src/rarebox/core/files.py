"""Files: written whole or not at all, never over a label store; read only if they are regular files."""

import errno
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from rarebox.core.parsing import from_json
from rarebox.errors import Busy, Damaged, UserError

ROOM_FOR_ANSWERS = 8 << 20
"""Bytes that a file leaves free on its disk: people's answers go first."""

NOT_REGULAR = "it is not a regular file"
"""The reason why a pipe, a socket or a device is not read."""

PART = ".part"
"""Ends the name of a file that is being written."""

PARTS = (f"*{PART}", f"cycle_*/*{PART}", f"cycle_*/candidates/*{PART}", f"figures/*{PART}")
"""Where the parts of a run's or project's files lie, from its folder."""

DATABASES = (b"SQLite format 3\0", b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")
"""How an SQLite file begins, and its write-ahead log."""


def real(path: str | Path) -> Path:
    """The absolute path without links. Where the links form a loop or lead nowhere, the rest stays as it is; no error.

    ``Path.resolve`` raises ``RuntimeError`` for a loop, ``ValueError`` for a NUL.
    """
    try:
        return Path(os.path.realpath(path))
    except (OSError, ValueError):
        return Path(os.path.abspath(path))


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file of somebody else for reading. ``OSError`` if it is missing, unreadable or not a regular file.

    Opening a named pipe waits for a writer, and a device such as ``/dev/zero`` has no end.
    """
    try:
        mode = os.stat(path).st_mode
    except ValueError as error:  # a NUL in the path
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from error
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, NOT_REGULAR, str(path))
    return open(path, "rb")


def read_bytes(path: str | Path) -> bytes:
    """The content of a file, opened by :func:`open_regular`. UserError if it does not fit into memory."""
    with open_regular(path) as opened:
        try:
            return opened.read()
        except MemoryError:
            size = os.fstat(opened.fileno()).st_size
            raise UserError(
                f"{path}: its {size / 1e9:.1f} GB do not fit into memory; check whether it is whole"
            ) from None


def write_bytes(file: Path, content: bytes, mode: int = 0o666) -> None:
    """Replace a file, or make it, with the permissions ``mode`` (less the umask).

    A part beside it is written, flushed to the disk, and renamed; then the folder is flushed. So a row of a database
    that is written afterwards never refers to a file that a power cut has emptied. If anything fails, the part is
    removed and the file stays as it was. ``OSError`` with ``ENOSPC`` where fewer than :data:`ROOM_FOR_ANSWERS` bytes
    would stay free. UserError where the file is an SQLite database: a label store is never overwritten.
    """
    refuse_database(file)
    if shutil.disk_usage(file.parent).free - len(content) < ROOM_FOR_ANSWERS:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    part = file.with_name(file.name + PART)
    try:
        part.unlink(missing_ok=True)  # a killed process left it, perhaps with other permissions
        with open(part, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        part.replace(file)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    _flush_folder(file.parent)


def write_new(file: Path, content: bytes) -> None:
    """Write a file that is not there. ``FileExistsError`` where something has its name; a link is never followed."""
    with open(file, "xb") as handle:
        handle.write(content)


def write_text(file: Path, text: str) -> None:
    """Write a text file in UTF-8, as :func:`write_bytes` does; what it cannot hold (lone surrogates) is escaped."""
    write_bytes(file, text.encode(errors="backslashreplace"))


def write_json(file: Path, value: Any) -> None:
    """Write JSON, as :func:`write_bytes` does."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


def read_json(file: Path, kind: type = object) -> Any:
    """Read JSON of a kind, ``list`` or ``dict`` say; Damaged names a file that is gone or holds something else."""
    try:
        value = from_json(file.read_text(encoding="utf-8"))
        if not isinstance(value, kind):
            raise ValueError(f"it should hold a {kind.__name__}")
        return value
    except (OSError, ValueError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: object) -> Damaged:
    """The error for a file that rarebox wrote and cannot read; each such file is made anew, or not needed."""
    if isinstance(error, FileNotFoundError):
        return Damaged(f"{file} is missing; restore a copy of it, or repeat the command")
    return Damaged(f"{file} is damaged ({error}); restore a copy of it, or delete it and repeat the command")


def copy(source: str | Path, to: str | Path) -> None:
    """Copy the content of a file, as :func:`write_bytes` writes it."""
    write_bytes(Path(to), read_bytes(source))


def refuse_database(file: Path) -> None:
    """UserError if a file that is to be written is an SQLite database, such as a label store, or is named like one: a
    damaged store may still be saved."""
    start = b""
    if file.is_file():
        with file.open("rb") as there:
            start = there.read(16)
    if start.startswith(DATABASES) or ".sqlite" in file.name:
        raise UserError(f"{file} is a database, perhaps a label store with people's answers; name another file")


def sweep(folder: Path) -> None:
    """Remove the parts that a killed process left in the folder of a run or project. Call it where nobody writes."""
    for pattern in PARTS:
        for part in folder.glob(pattern):
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Have the disk know the names in a folder, where the system can do that (Windows cannot)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks refuse
            os.fsync(handle)
    finally:
        os.close(handle)


if os.name == "nt":
    import msvcrt

    def _try_lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Keep other processes out of the folder of the lock file; Busy where one is in. The lock ends with the process."""
    with lock.open("a") as handle:
        try:
            _try_lock(handle.fileno())
        except OSError:
            raise Busy(f"another rarebox is at work in {lock.parent}; wait for it, or stop it") from None
        yield


@contextmanager
def hold_when_free(lock: Path) -> Iterator[None]:
    """The same, once the other processes have let go of it."""
    while True:
        try:
            with hold(lock):
                yield
                return
        except Busy:
            time.sleep(0.05)
