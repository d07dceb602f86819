"""SQLite's files: the database, its write-ahead log and its index. Copies, and a watch over files that are open."""

import ctypes
import json
import os
import sqlite3
import sys
import time
import weakref
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from threading import Lock

from rarebox.core.files import flush_folder, real
from rarebox.errors import Unavailable, UserError

if sys.platform != "win32":
    import fcntl

BUSY_SECONDS = 30
FOLDER_SECONDS = 5.0
COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite creates beside a database."""

HEADER = b"SQLite format 3\0"
"""The first bytes of a database."""

Identity = tuple[int, int] | None
"""The device and inode of a file, which differ for another file of the same name; None if there is no file."""


def has_content(file: Path) -> bool:
    """Whether a database file is there and not empty. Raises UserError if it is not, and its log holds changes: SQLite
    would remove the log."""
    log = real(file).with_name(f"{real(file).name}-wal")
    if file.exists() and file.stat().st_size:
        return True
    if log.exists() and log.stat().st_size:
        raise UserError(
            f"{log} holds the last answers, but {file} is {'empty' if file.exists() else 'missing'}. Restore both "
            "together, or move the log away"
        )
    return False


def is_database(file: Path) -> bool:
    """Whether a file begins like a database. SQLite writes into other files before it notices."""
    with file.open("rb") as content:
        return content.read(len(HEADER)) == HEADER


class Watch:
    """Registers that a store is open, and detects when its files are removed or replaced.

    Every process that has the store open holds a shared lock on ``.labels.sqlite.open``, in which the first one records
    the identities of the files. Another process opens the store only if these files are still in their places: with a
    new log it would not see what the others have saved.

    The watch has a connection that stays open, so it still reaches a log whose file was removed. It also prevents other
    processes from removing the log when they close the store.
    """

    def __init__(self, file: Path) -> None:
        self._files = [file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))]
        self._note = file.with_name(f".{file.name}.open")
        self._shared: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._identities: list[Identity] = []
        self._lock, self._copied, self._rescued = Lock(), False, False
        self._rescue_file = file

    @contextmanager
    def opening(self) -> Generator[None]:
        """Open the store in this context, which others wait for. Raises Unavailable if its files are not those that
        another process uses."""
        file = self._files[0]
        with _alone_in(file.parent):
            self._identities = self._enter()
            if self._identities and (gone := self._gone()):
                raise Unavailable(
                    f"{gone}: the file was removed or replaced while another rarebox process has the store open, so "
                    "nothing is read or written. Stop that process, such as rarebox serve, with Ctrl-C, and repeat "
                    "the command"
                )
            yield
            self._connection = sqlite3.connect(file, timeout=1, isolation_level=None, check_same_thread=False)
            with suppress(sqlite3.Error):
                self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
            if not self._identities:
                self._identities = self._now()
                if self._shared is not None:
                    os.write(self._shared, json.dumps(self._identities).encode())
            if log := self._identities[1]:
                self._rescue_file = file.with_name(f"{file.stem}.rescued-{log[1]}.sqlite")

    def check(self) -> None:
        """Raise Unavailable if a commit could be lost: SQLite would succeed, but the next process would not find it."""
        if not self._connection or not (gone := self._gone()):
            return
        if gone == self._files[0]:
            todo = "Restore it if you can, and repeat the command"
        elif self._rescued:
            todo = (
                f"Another program has written a new log. Everything saved before is in {self._rescue_file}. Stop "
                "rarebox with Ctrl-C and restore that file as a backup (docs/store.md)"
            )
        else:
            todo = "Stop rarebox with Ctrl-C and start it again. Everything saved before is kept"
        raise Unavailable(f"{gone}: the file was removed or replaced while it was open, so nothing is saved. {todo}")

    def keep(self) -> None:
        """Copy the log into the database if its file was removed or replaced. Call it outside a transaction.

        If another program has written a log in its place, the database belongs to that log, so everything saved before
        is copied to a new file.
        """
        now = self._now()
        with self._lock, suppress(sqlite3.Error, OSError):
            if not self._connection or now[0] != self._identities[0]:
                return
            if now == self._identities:
                self._copied = False
            elif self._another_writes():
                if not self._rescued:
                    self._rescue(self._connection)
            elif not self._copied:
                busy, frames, copied = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
                self._copied = not busy and frames == copied

    def close(self) -> None:
        """Copy the log into the database, unless another process still uses it, and close the files."""
        self.keep()
        with _alone_in(self._files[0].parent):
            if self._connection and self._another_writes():
                # Never closed: the last connection would copy its log over the database and delete the other log.
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            elif self._connection:
                with suppress(sqlite3.Error):
                    if not self._copied:
                        self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
                self._connection.close()
            self._connection = None
            self._leave()

    def _enter(self) -> list[Identity]:
        """Register this process. Returns the identities that another process has recorded; empty if this is the first.

        Windows needs no register, because it removes no open file. Without write permission there is none.
        """
        if sys.platform == "win32":
            return []
        with suppress(OSError):
            handle = self._shared = os.open(self._note, os.O_RDWR | os.O_CREAT, 0o666)
            self._unregister = weakref.finalize(self, os.close, handle)  # also if nobody closes the store
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.truncate(handle, 0)  # left by a killed process
                fcntl.flock(handle, fcntl.LOCK_SH)
            except BlockingIOError:
                fcntl.flock(handle, fcntl.LOCK_SH)
                with suppress(ValueError):
                    return [one and (int(one[0]), int(one[1])) for one in json.loads(os.read(handle, 1000))]
        return []

    def _leave(self) -> None:
        """Unregister this process. The last one removes the register."""
        if sys.platform == "win32" or self._shared is None:
            return
        with suppress(OSError):
            fcntl.flock(self._shared, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._note.unlink()
        self._unregister()
        self._shared = None

    def _now(self) -> list[Identity]:
        return [_identity(file) for file in self._files]

    def _gone(self) -> Path | None:
        """The first file that was removed or replaced."""
        pairs = zip(self._files, self._now(), self._identities, strict=True)
        return next((file for file, now, before in pairs if now != before), None)

    def _another_writes(self) -> bool:
        """Whether another log with content has taken the place of ours."""
        log = self._files[1]
        return _identity(log) not in (None, self._identities[1]) and log.stat().st_size > 0

    def _rescue(self, connection: sqlite3.Connection) -> None:
        """Copy the store, as its old log has it, to a new file."""
        part = self._rescue_file.with_name(f".{self._rescue_file.name}.{os.getpid()}.part")
        try:
            copy(connection, part)
            with suppress(FileExistsError):  # the trainer or the server has already done it
                place(part, self._rescue_file)
            self._rescued = True
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _alone_in(folder: Path) -> Generator[None]:
    """Wait until no other process opens or closes a store of a folder, where the system can lock folders.

    At most FOLDER_SECONDS, because another program may hold that lock for long, such as flock(1) around the command.
    """
    if sys.platform == "win32":
        yield
        return
    with ExitStack() as stack:
        with suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            _try_for(FOLDER_SECONDS, partial(fcntl.flock, handle, fcntl.LOCK_EX | fcntl.LOCK_NB))
        yield


def _try_for(seconds: float, work: Callable[[], object]) -> None:
    """Repeat a call until it raises no BlockingIOError. Raises the last one after ``seconds``."""
    until = time.monotonic() + seconds
    while True:
        try:
            work()
            return
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _identity(file: Path) -> Identity:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def copy(source: sqlite3.Connection, part: Path) -> None:
    """Copy a database in one step, and check the copy."""
    part.unlink(missing_ok=True)
    part.touch()  # this error is clearer than SQLite's
    with closing(sqlite3.connect(part)) as copy:
        source.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # a single file, until rarebox opens it
        if (found := copy.execute("PRAGMA quick_check(1)").fetchone()) != ("ok",):
            raise sqlite3.DatabaseError(f"the store is damaged: {found[0]}")
    with part.open("rb+") as file:
        os.fsync(file.fileno())


def place(part: Path, file: Path) -> None:
    """Give a finished file its name. Raises FileExistsError if the name is taken."""
    try:
        os.link(part, file)  # unlike a rename, this never replaces a file created in the meantime
    except FileExistsError:
        raise
    except OSError:  # a disk without links
        if file.exists():
            raise FileExistsError(file) from None
        part.rename(file)
    flush_folder(file.parent)


def log_ahead(execute: Callable[[str], object]) -> None:
    """Switch to a write-ahead log. SQLite does not wait if another process opens a new file at the same moment."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
