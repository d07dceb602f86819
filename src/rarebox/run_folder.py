"""Where a run keeps its state on disk, and how a file gets there whole or not at all."""

import json
import os
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

from rarebox import config
from rarebox.config import Settings
from rarebox.data.remote import trust
from rarebox.errors import Busy, UserError
from rarebox.parsing import from_json
from rarebox.store import Store

if os.name == "nt":
    import msvcrt

    def _try_lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
else:
    import fcntl

    def _try_lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


KEPT = ("scoring.shard_size",)
"""Settings that change nothing in what comes out; a run goes on with those it began with."""


class RunFolder:
    """The files of one run; every one is written whole or not at all.

    ``settings.yaml``, ``environment.json``, ``problems.json`` (of the data), ``labels.sqlite`` (the store),
    ``metrics.json`` (one record a cycle), and for each cycle a folder: the model, the candidates that were chosen from,
    the targets it was trained on. A run of a grid that failed has ``failed.json``, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings, self.environment = root / "settings.yaml", root / "environment.json"
        self.store, self.metrics = root / "labels.sqlite", root / "metrics.json"
        self.problems, self.failed = root / "problems.json", root / "failed.json"

    def labels(self, settings: Settings) -> Path | str:
        """Where the store of a run with those settings is: a file, or a database's URL."""
        return settings.people.store or self.store

    def cycle(self, cycle: int) -> Path:
        """The folder of one cycle, counted from 1."""
        return self.root / f"cycle_{cycle:02d}"

    def records(self) -> list[dict[str, Any]]:
        """The finished cycles' records."""
        records = read_json(self.metrics) if self.metrics.exists() else []
        if not isinstance(records, list):
            raise UserError(f"{self.metrics} is damaged: it should hold a list; restore it, or name a new folder")
        return records

    def read_settings(self) -> Settings:
        """The settings this run was started with; UserError where no run has been."""
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist; name the folder of a run")
        if not self.settings.exists():
            raise UserError(f"{self.root} holds no run (there is no settings.yaml); name the folder of a run")
        settings = config.check(config.as_written_before(self._written()))
        trust(settings.data)
        return settings

    def _written(self) -> dict[str, Any]:
        """What ``settings.yaml`` holds; nothing where it is not there yet."""
        return config.read_file(self.settings) if self.settings.exists() else {}

    def check_first_model(self) -> None:
        """UserError if there is no model of cycle 1."""
        if not (self.cycle(1) / "model.safetensors").exists():
            raise UserError(
                f"--share {self.root}: there is no cycle-1 model; name the folder of a run that has finished cycle 1"
            )

    def check(self, settings: Settings, but: Collection[str] = ()) -> None:
        """UserError shows in what else than ``but`` the settings differ from a run that has trained something here."""
        # A setting that this run's version did not have stays as it was then, unless the user asks for a special value.
        new = config.usual(settings).difference(name for name, _ in config.flatten(self._written()))
        changed = config.difference(self.read_settings(), settings, (*KEPT, *but, *new)) if self._has_trained() else []
        if changed:
            raise UserError(
                f"{self.root} holds a run with other settings; name another folder, or repeat the settings it was "
                "started with:\n  " + "\n  ".join(changed)
            )

    def claim(self, settings: Settings) -> Settings:
        """Make the folder this run's, or check that it is; the settings to go on with."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.check(settings)
        if not self.settings.exists():
            write_text(self.settings, config.dump(settings))
        elif not self._has_trained() and self.read_settings() != settings:
            self._begin_anew(settings)
        return self.read_settings()

    def _holds_something_else(self) -> bool:
        # A first start that was cut short, or failed before it began.
        ours = {"lock", f"{self.settings.name}.part", self.failed.name, f"{self.failed.name}.part"}
        return any(file.name not in ours for file in self.root.iterdir())

    def _has_trained(self) -> bool:
        trained = (self.cycle(1) / "model.safetensors", self.cycle(1) / "fit.checkpoint", self.metrics)
        return self.settings.exists() and any(file.exists() for file in trained)

    def _begin_anew(self, settings: Settings) -> None:
        """A run that stopped before it trained anything (a mistyped option, say) may be started with other settings."""
        for file in (*self.root.glob(f"{self.store.name}*"), self.environment, self.problems):
            file.unlink(missing_ok=True)
        for folder in (self.cycle(1), self.root / "maps", self.root / "scored"):  # which go by an image's number
            rmtree(folder, ignore_errors=True)
        write_text(self.settings, config.dump(settings))

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second process; the lock goes with the process, however it ends."""
        self.root.mkdir(parents=True, exist_ok=True)
        # In this order: another process may be making the folder its run just now.
        if self._holds_something_else() and not self.settings.exists():
            raise UserError(f"{self.root} is not empty and holds no run of rarebox; name a new or empty folder")
        with hold(self.root / "lock"):
            yield


def open_store(place: str | Path) -> Store:
    """The label store of a run or project: by its folder, its file, or a database URL. UserError if there is none."""
    if "://" in str(place) or not Path(place).is_dir():
        return Store(place)
    folder = RunFolder(Path(place))
    return Store(folder.labels(folder.read_settings()) if folder.settings.exists() else folder.store)


@contextmanager
def hold(lock: Path) -> Iterator[None]:
    """Keep other processes out of the folder of the lock file; Busy where one is in. The lock ends with the process."""
    with lock.open("w") as handle:
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


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file by write, flush and rename."""
    part = file.with_name(file.name + ".part")
    with part.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    part.replace(file)


def write_text(file: Path, text: str) -> None:
    """Write a text file as UTF-8 by write, flush and rename; what UTF-8 cannot hold (lone surrogates) is escaped."""
    write_bytes(file, text.encode(errors="backslashreplace"))


def write_json(file: Path, value: Any) -> None:
    """Write JSON by write, flush and rename."""
    write_text(file, json.dumps(value, indent=1, allow_nan=False))


def read_json(file: Path) -> Any:
    """Read JSON; UserError names a file that is broken."""
    try:
        return from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged ({error}); restore it, or start again in a new folder") from error
