"""SQLite's files: the database, its write-ahead log and its index. Copies, and a watch over files that are open."""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from threading import Lock

from rarebox.core.files import flush_folder
from rarebox.errors import Unavailable

BUSY_SECONDS = 30
COMPANIONS = ("-wal", "-shm", "-journal")
"""Suffixes of the files that SQLite creates beside a database."""

Identity = tuple[int, int] | None
"""The device and inode of a file, which differ for another file of the same name; None if there is no file."""


class Watch:
    """Notices that somebody has removed or replaced the files of an open store.

    Its connection stays open, so it still reaches a log that has lost its name. It also keeps other processes from
    removing the log when they close the store.
    """

    def __init__(self, file: Path) -> None:
        self._files = [file, *(file.with_name(file.name + suffix) for suffix in ("-wal", "-shm"))]
        self._connection = sqlite3.connect(file, timeout=1, isolation_level=None, check_same_thread=False)
        with suppress(sqlite3.Error):
            self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens the log
        self._lock, self._copied = Lock(), False
        self._identities = self._now()

    def check(self) -> None:
        """Raise Unavailable if a commit could be lost: SQLite would succeed, but the next process would not find it."""
        if (now := self._now()) == self._identities:
            return
        gone = next(file for file, a, b in zip(self._files, now, self._identities, strict=True) if a != b)
        if gone == self._files[0]:
            todo = "Restore it if you can, and repeat the command"
        else:
            todo = "Stop rarebox with Ctrl-C and start it again. Everything saved before is kept"
        raise Unavailable(f"{gone}: the file was removed or replaced while it was open, so nothing is saved. {todo}")

    def keep(self) -> None:
        """Copy the log into the database if it has lost its name. Call it outside a transaction."""
        now = self._now()
        with self._lock, suppress(sqlite3.Error):
            if now == self._identities:
                self._copied = False
            elif not self._copied and now[0] == self._identities[0]:
                busy, frames, copied = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
                self._copied = not busy and frames == copied

    def _now(self) -> list[Identity]:
        return [_identity(file) for file in self._files]

    def close(self) -> None:
        """Copy the log into the database, unless another process still uses it, and close the files."""
        with suppress(sqlite3.Error):
            if not self._copied:
                self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        self._connection.close()


def _identity(file: Path) -> Identity:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def copy(source: sqlite3.Connection, part: Path) -> None:
    """Copy a database in one step, and check the copy."""
    part.unlink(missing_ok=True)
    part.touch()  # its error is clearer than SQLite's
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
