"""The state of a run on disk, the locks of its folder, and the guarantee that no stored answer is deleted."""

import sqlite3
from collections.abc import Collection, Generator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import create_engine, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from rarebox import config
from rarebox.config import Settings
from rarebox.core.files import PART, damaged, hold, read_json, real, sweep, write_text
from rarebox.core.text import counted, read_text
from rarebox.data.remote import trust
from rarebox.errors import Busy, UserError
from rarebox.labels import schema
from rarebox.labels.sqlite import has_content
from rarebox.labels.store import Store
from rarebox.loop.metrics import CycleRecord, as_record
from rarebox.types import ORACLE

KEPT = ("scoring.shard_size",)
"""Settings that do not change any result. A run keeps those it started with."""


START = ("backbone", "weights", "file", "sha256", "note", "asked_backbone", "asked_weights")
"""The keys of ``start.json``: a :class:`rarebox.detectors.start.Start`, and the settings for which it was chosen."""


class RunFolder:
    """The files of one run; every one is written whole or not at all.

    ``settings.yaml``, ``start.json`` (the initial weights), ``environment.json``, ``problems.json`` (of the data),
    ``labels.sqlite`` (the store), ``numbers.json`` (what a project's models and rankings call images and classes),
    ``metrics.json`` (one record a cycle), and for each cycle a folder: the model, the candidates that were chosen from,
    the targets it was trained on, what it was measured at (``evaluated.json``), and its detections on the test images
    (``tested.parquet``). A run of a grid that failed has ``failed.json``, with the reason.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings, self.environment = root / "settings.yaml", root / "environment.json"
        self.store, self.metrics = root / "labels.sqlite", root / "metrics.json"
        self.problems, self.failed = root / "problems.json", root / "failed.json"
        self.photos, self.start = root / "photos.json", root / "start.json"
        self.numbers = root / "numbers.json"
        self.locks = root / "lock", root / "serve.lock"

    def labels(self, settings: Settings) -> Path | str:
        """The place of the label store under these settings: a file or a database URL."""
        return settings.people.store or self.store

    def cycle(self, cycle: int) -> Path:
        """The folder of one cycle, counted from 1."""
        return self.root / f"cycle_{cycle:02d}"

    def tested(self, cycle: int) -> Path:
        """The detections of a cycle's detector on the test images: see :mod:`rarebox.loop.tested`."""
        return self.cycle(cycle) / "tested.parquet"

    def records(self) -> list[CycleRecord]:
        """The records of the finished cycles."""
        if not self.metrics.exists():
            return []
        written = read_json(self.metrics, list)
        try:
            return [as_record(one) for one in written]
        except ValueError as error:
            raise damaged(self.metrics, error) from None

    def read_settings(self) -> Settings:
        """Read the settings that this run was started with. Raises UserError if there is no run."""
        if not self.root.exists():
            raise UserError(f"{self.root} does not exist. Name the folder of a run")
        if not self.settings.exists():
            raise UserError(f"{self.root} holds no run (there is no settings.yaml). Name the folder of a run")
        try:
            told = self._written()
            if not told:
                raise UserError(f"the settings file {self.settings} is empty")
            settings = config.check(config.as_written_before(told))
        except UserError as error:
            raise UserError(f"{error}. Fix {self.settings}, or restore a copy of it") from error
        trust(settings.data)
        return self.with_start(settings)

    def read_start(self) -> dict[str, str]:
        """Read the recorded start of this run and the settings it was chosen for; empty before it is decided."""
        if not self.start.exists():
            return {}
        told = read_json(self.start, dict)
        if not all(isinstance(told.get(name), str) for name in START):
            raise damaged(self.start, f"it should hold {', '.join(START)}")
        return told

    def with_start(self, settings: Settings) -> Settings:
        """The settings with the recorded start, if that was decided for these settings."""
        start, detector = self.read_start(), settings.detector
        if not start or (start["asked_backbone"], start["asked_weights"]) != (detector.backbone, detector.weights):
            return settings
        update = {"backbone": start["backbone"], "weights": start["weights"]}
        return settings.model_copy(update={"detector": detector.model_copy(update=update)})

    def _written(self) -> dict[str, object]:
        """Read ``settings.yaml`` as nested values. Empty if the file does not exist yet."""
        if not self.settings.exists():
            return {}
        if config.is_cut_short(read_text(self.settings)):
            raise UserError(f"the end of {self.settings} is missing (it begins with '---' but does not end with '...')")
        return config.read_file(self.settings)

    def check_first_model(self) -> None:
        """Raise UserError if there is no model of cycle 1."""
        if not (self.cycle(1) / "model.safetensors").exists():
            raise UserError(
                f"--share {self.root}: there is no cycle-1 model. Name the folder of a run that has finished cycle 1"
            )

    def check(self, settings: Settings, but: Collection[str] = ()) -> None:
        """Raise UserError if the folder holds a project, or a run under other settings that has answers or a model.

        Differences in the settings named ``but`` are allowed. The message lists the others.
        """
        if not self.settings.exists():
            return
        before = self.read_settings()
        if self._is_project(before):
            count = counted(answers_in(self.labels(before)), "answer")
            raise UserError(
                f"{self.root} holds a project in which people answer ({count} so far). Continue it with "
                f"rarebox serve {self.root}, or name another folder for the run"
            )
        # A setting that the version of this run lacked keeps its former value, unless the user sets a special one.
        new = config.usual(settings).difference(name for name, _ in config.flatten(self._written()))
        settings = self.with_start(settings)
        unasked = [n for n in ("weights", "backbone") if getattr(settings.detector, n) == "auto"]
        but = (*but, *(f"detector.{name}" for name in unasked))  # whatever its initial weights
        changed = config.difference(before, settings, (*KEPT, *but, *new)) if self._has_begun() else []
        if changed:
            raise UserError(
                f"{self.root} holds a run with other settings. Name another folder, or repeat the settings it was "
                "started with:\n  " + "\n  ".join(changed)
            )

    def claim(self, settings: Settings) -> Settings:
        """Claim or check the folder for this run, and return the settings to resume with. Requires the lock."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.check(settings)
        if not self._has_begun():
            self.start.unlink(missing_ok=True)
        if (self.metrics.exists() or (self.cycle(1) / "model.safetensors").exists()) and not answers_in(self.store):
            raise UserError(
                f"{self.store} is missing or empty, and the run needs its answers. Restore a copy of it, or name "
                "a new folder"
            )
        if not self.settings.exists():
            write_text(self.settings, config.dump(settings))
        elif not self._has_begun() and self.read_settings() != settings:
            self._begin_anew(settings)
        return self.read_settings()

    def _holds_something_else(self) -> bool:
        # These files are left by a first start that was interrupted or failed.
        ours = {*(lock.name for lock in self.locks), self.failed.name}
        ours |= {f"{self.settings.name}{PART}", f"{self.failed.name}{PART}"}
        return any(file.name not in ours for file in self.root.iterdir())

    def _has_begun(self) -> bool:
        """Whether there is something to lose: an answer or a trained model."""
        return self._has_trained() or (self.settings.exists() and answers_in(self.store) > 0)

    def _has_trained(self) -> bool:
        trained = (self.cycle(1) / "model.safetensors", self.cycle(1) / "fit.checkpoint", self.metrics)
        return self.settings.exists() and any(file.exists() for file in trained)

    def _is_project(self, settings: Settings) -> bool:
        """Whether this is a project. A run writes its environment before its store; a project writes none."""
        labels = self.labels(settings)
        if self.environment.exists() or (isinstance(labels, Path) and not labels.exists()):
            return False
        return not self._has_trained() or answers_in(labels, of_people=True) > 0

    def _begin_anew(self, settings: Settings) -> None:
        """Start over with other settings, for a run that stopped before its first answer (after a mistyped option)."""
        discard_store(self.store)
        for file in (self.environment, self.problems, self.start):
            file.unlink(missing_ok=True)
        write_text(self.settings, config.dump(settings))

    @contextmanager
    def locked(self) -> Generator[None]:
        """Lock the folder against all other processes, servers too. The lock ends with this process in any case.

        Removes partly written files of a killed process.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        # In this order, because another process may claim the folder in between.
        if self._holds_something_else() and not self.settings.exists():
            count = answers_in(self.store)
            held = (
                f" It holds {self.store.name} with {counted(count, 'answer')}: adopt it with "
                f"rarebox init {self.root} --images FOLDER."
                if count
                else ""
            )
            raise UserError(f"{self.root} is not empty and holds no run of rarebox. Name a new or empty folder.{held}")
        with self.alone():
            yield

    @contextmanager
    def alone(self) -> Generator[None]:
        """Lock the folder as :meth:`locked` does, with any content."""
        first, second = self.locks
        with hold(first), hold(second):
            sweep(self.root)
            yield


# ------------------------------------------------------------------------------------------- stored answers


def answers_in(place: str | Path, *, of_people: bool = False) -> int:
    """The number of answers in a label store, including withdrawn and corrected ones and those in the log of a killed
    writer; 0 if there is no store. ``of_people``: without those of the simulated oracle. Raises UserError if it is
    unknown: the file is damaged, not a label store, or written by a newer rarebox, or only its log exists.
    """
    statement = select(func.count()).select_from(schema.answers)
    if of_people:
        statement = statement.where(schema.answers.c.by != ORACLE)
    if not is_store(place):
        return 0
    with Store(place) as store, store.transaction() as connection:
        return connection.scalar(statement) or 0


def discard_store(file: Path) -> None:
    """Empty a store that holds no answer, so that another one can be created in its place. Nothing else ever removes a
    store. The transaction that empties it also checks for answers, while no other process has the file open; later
    processes find no store. Otherwise nothing is changed: raises UserError if it holds an answer or cannot be read, and
    Busy if another process has it open.
    """
    if not is_store(file):
        return
    with Store(file):
        pass  # raises if it is no store, or has an unknown schema
    try:
        with closing(sqlite3.connect(file, timeout=1, isolation_level=None)) as connection:
            # Leaving the log mode requires the only connection; from then on no other process can use the file until it
            # is closed.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("BEGIN EXCLUSIVE")
            if count := connection.execute("SELECT count(*) FROM answers").fetchone()[0]:
                raise UserError(f"{file} holds {counted(count, 'answer')} and is left unchanged. Name another folder")
            for table in reversed(schema.tables.sorted_tables):
                connection.execute(f"DROP TABLE IF EXISTS {table.name}")
            connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise UserError(f"{file}: {error}; it is left unchanged") from error
        raise Busy(f"another program has {file} open. Close it and try again") from error


def is_store(place: str | Path) -> bool:
    """Whether a file or database has tables, or is something else that must not be changed. Raises UserError if a file
    is gone and its log is not."""
    if "://" in str(place):
        try:
            return bool(inspect(create_engine(str(place))).get_table_names())
        except (SQLAlchemyError, ImportError):
            return True  # opening it as a store reports what is wrong with it
    file = Path(place)
    if not has_content(file):
        return False
    try:
        with closing(sqlite3.connect(f"{real(file).as_uri()}?mode=rw", uri=True)) as connection:
            return connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] > 0
    except sqlite3.Error:
        return True  # as above


def open_store(place: str | Path) -> Store:
    """The label store of a run or project: by its folder, its file, or a database URL. UserError if there is none."""
    if "://" in str(place) or not Path(place).is_dir():
        return Store(place)
    folder = RunFolder(Path(place))
    return Store(folder.labels(folder.read_settings()) if folder.settings.exists() else folder.store)
