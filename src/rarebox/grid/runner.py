"""A grid of runs: data × detector × method × budget × seed. Read :meth:`Bench.work` first.

The loop is imported where a run begins: a mistake in a grid is refused before torch is loaded.
"""

import json
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from shutil import rmtree
from threading import Lock

from rarebox import config
from rarebox.core.files import hold_when_free, read_json, write_json, write_text
from rarebox.core.progress import Progress, silent
from rarebox.core.text import read_text
from rarebox.data.datasets import refuse_missing
from rarebox.data.listings import Dataset
from rarebox.errors import Busy, Damaged, UserError
from rarebox.grid.results import RESULTS, short
from rarebox.grid.spec import Planned, with_shares
from rarebox.loop.cluster import Cluster
from rarebox.loop.metrics import CycleRecord
from rarebox.loop.run_folder import RunFolder

POLL_SECONDS = 2.0
"""Seconds after which a process without a free run checks again."""

MOST_AT_ONCE = 256
"""How many runs a cluster receives at a time."""

HERE = ("data", "device")
"""Settings of the machine, not of the method. The results omit them."""


@dataclass
class Bench:
    """A grid in its folder.

    ``runs`` are all of the grid, ``wanted`` those to be done now. ``tell`` is called with what happens: ``event`` is
    ``dropped``, ``accepted`` (the grid; ``run`` is null), ``begin``, ``cycle``, ``done`` (with ``short``, if a batch
    ended short), ``failed`` or ``waiting``.
    """

    out: Path
    runs: Sequence[Planned]
    wanted: Sequence[Planned]
    keep_models: bool = False
    progress: Progress = silent
    tell: Callable[[dict[str, object]], None] = lambda _: None
    cluster: Cluster | None = None
    """Where the runs are executed, if not in this process."""
    _datasets: dict[str, Dataset] = field(default_factory=dict[str, Dataset], init=False)
    _done: dict[str, list[CycleRecord]] = field(default_factory=dict[str, list[CycleRecord]], init=False)
    _earlier: dict[str, int | None] = field(default_factory=dict[str, int | None], init=False)
    """The last failure of each run before this work."""
    _one_talks: Lock = field(default_factory=Lock, init=False)
    """Many threads wait for runs on a cluster."""
    _since: float = field(default=0.0, init=False)
    _begun: bool = field(default=False, init=False)
    _trained: int = field(default=0, init=False)
    """When the first run of this work started, whether it has, and how many models were trained before."""

    @property
    def results(self) -> Path:
        return self.out / RESULTS

    def place(self, run: Planned) -> RunFolder:
        return RunFolder(self.out / run.folder)

    def records(self, run: Planned) -> list[CycleRecord]:
        """The finished cycles of a run. The file of a finished run is read once."""
        records = self._done.get(run.folder) or self.place(run).records()
        if len(records) > len(run.settings.budget):
            self._done[run.folder] = records
        return records

    def state(self, run: Planned) -> str:
        """``done``, ``failed`` (the last time it was tried), ``started`` or ``open``."""
        place = self.place(run)
        if len(self.records(run)) > len(run.settings.budget):
            return "done"
        return "failed" if place.failed.exists() else "started" if place.settings.exists() else "open"

    def reason(self, run: Planned) -> str | None:
        """Why a run failed."""
        if self.state(run) != "failed":
            return None
        with suppress(Damaged):
            return read_json(self.place(run).failed, dict).get("reason", "unknown")
        return "unknown"

    def work(self, file: Path) -> list[Planned]:
        """Do the wanted runs that are not done yet, and return those that failed. ``file`` is the grid file.

        Runs of another process are left to it, and checked again when nothing else is left. A run that failed before
        is tried once more. One that fails now, here or in another process, is not.
        """
        for name, folder in sorted({(r.data, r.settings.data) for r in self.wanted if self.state(r) != "done"}):
            try:
                refuse_missing(folder)
            except UserError as error:
                raise UserError(f"the data set {name}: {error}\nName its folder: --data {name}=FOLDER") from error
        self._claim(file)
        self._earlier = {run.folder: self._failure(run) for run in with_shares(self.wanted)}
        self._since, self._trained = time.monotonic(), self._cycles(self.wanted)[0]
        if not self.keep_models:
            self._clear()
        self.write_results()
        if self._todo():
            self._say("accepted", None)
        waited = False
        while todo := self._todo():
            if self._attempt_any(todo):
                waited = False
            else:
                if not waited:
                    self.tell({"event": "waiting", "runs": [run.folder for run in todo]})
                waited = True
                time.sleep(POLL_SECONDS)
        return [run for run in self.wanted if self.state(run) == "failed"]

    def _attempt_any(self, todo: Sequence[Planned]) -> bool:
        """Do one free run, or on a cluster all of them side by side. Return False if none is free."""
        if self.cluster is None:
            return any(self._attempt(run) for run in todo)  # stops at the first that was free
        left, at_work, attempted = {run.folder: run for run in todo}, dict[Future[bool], str](), False
        # Each thread only waits for its run; the cluster decides how many run at once.
        with ThreadPoolExecutor(MOST_AT_ONCE) as threads:
            while left or at_work:
                unready = {*left, *at_work.values()}
                for run in [run for run in left.values() if not (run.share and run.share.folder in unready)]:
                    at_work[threads.submit(self._attempt, left.pop(run.folder))] = run.folder
                for future in wait(at_work, return_when=FIRST_COMPLETED).done:
                    del at_work[future]
                    attempted |= future.result()
        return attempted

    def _clear(self) -> None:
        """Remove the models of finished runs whose process was killed before it could."""
        for run in self.wanted:
            if self.state(run) == "done":
                with suppress(Busy), self.place(run).locked():
                    remove_models(self.place(run))
                self._let_go_of_shared(run)

    def _let_go_of_shared(self, run: Planned) -> None:
        """Remove the shared feature maps and first scores once all runs that use them are done."""
        if run.share and all(self.state(other) == "done" for other in self.runs if other.share == run.share):
            remove_shared(self.place(run.share))

    def write_results(self) -> None:
        """Write a line for each run of the grid that is done or has failed, from the run folders."""
        with hold_when_free(self.out / "lock"):
            lines = [json.dumps(self._result(run)) for run in self.runs if self.state(run) in ("done", "failed")]
            write_text(self.results, "".join(line + "\n" for line in lines))

    def _result(self, run: Planned) -> dict[str, object]:
        records = self.records(run)
        chosen = config.flatten(run.settings.model_dump(mode="json"))
        return {
            **run.about,
            "status": self.state(run),
            "reason": self.reason(run),
            # The data folder belongs to this machine; the name of the data set is in `about`.
            "settings": {name: value for name, value in chosen if name not in HERE},
            "cycles": records,
            "seconds": sum(second for record in records for second in record["seconds"].values()),
        }

    def _claim(self, file: Path) -> None:
        """Claim the folder. Raises UserError if it belongs to another grid, or a run started with other settings."""
        there = {file.name for file in self.out.iterdir()} if self.out.exists() else set[str]()
        if "grid.yaml" not in there and there - {"lock", "grid.yaml.part"}:  # left by an interrupted first start
            raise UserError(f"{self.out} is not empty and holds no grid of rarebox. Name a new or empty folder")
        self.out.mkdir(parents=True, exist_ok=True)
        for run in with_shares(self.runs):
            # The data folder and the device of a finished run no longer matter.
            self.place(run).check(run.settings, but=HERE if self.state(run) == "done" else ())
        with hold_when_free(self.out / "lock"):
            write_text(self.out / "grid.yaml", read_text(file))
        told = self.results.read_text(encoding="utf-8", errors="replace").splitlines() if self.results.exists() else []
        before = set[str]()
        for line in told:
            with suppress(ValueError, TypeError, KeyError):  # a damaged line; the file is written again anyway
                before.add(json.loads(line)["run"])
        if dropped := before - {run.folder for run in self.runs}:
            self.tell({"event": "dropped", "runs": sorted(dropped)})

    def _todo(self) -> list[Planned]:
        return with_shares([run for run in self.wanted if self._is_open(run)], self._is_open)

    def _is_open(self, run: Planned) -> bool:
        """Whether a run is neither done nor has failed since this work began."""
        return self.state(run) != "done" and self._failure(run) == self._earlier[run.folder]

    def _failure(self, run: Planned) -> int | None:
        """The time of the last failure, which identifies it. None without one."""
        try:
            return self.place(run).failed.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _attempt(self, run: Planned) -> bool:
        """Execute a run, or record why it failed. Return False if another process is working on it."""
        from rarebox.loop import simulate

        place = self.place(run)
        try:
            # In this order: another process may finish the shared run at any moment.
            if run.share and self._is_open(run.share):
                return False
            if run.share and self.state(run.share) != "done":
                raise UserError(f"its shared first cycle failed: {self.reason(run.share)}")
            with place.locked():
                pass  # only a check whether it is free: the simulation takes the lock
            share = self.place(run.share).root if run.share else None
            progress, finished = partial(self._show, run), partial(self._say_cycle, run)
            if self.cluster is None:
                self._say("begin", run)
                records = simulate.simulate(
                    place.root,
                    run.settings,
                    self._dataset(run.settings.data),
                    share=share,
                    progress=progress,
                    finished=finished,
                )
            else:
                begun = partial(self._say, "begin", run)
                records = self.cluster.run(
                    place.root, run.settings, share=share, progress=progress, finished=finished, begun=begun
                )
            with hold_when_free(self.out / "lock"):  # nobody is reading it for the results
                place.failed.unlink(missing_ok=True)
            if run in self.wanted and not self.keep_models:
                remove_models(place)
            self._let_go_of_shared(run)
            few = short(records, run.settings.budget, run.settings.budget_unit)
            told = {"ap50": [record["ap50"] for record in records], **({"short": few} if few else {})}
        except Busy:
            return False
        except Exception as error:
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            place.root.mkdir(parents=True, exist_ok=True)
            write_json(place.failed, {"reason": reason, "traceback": traceback.format_exc()})
            told = {"reason": reason}
        self.write_results()
        self._say("failed" if "reason" in told else "done", run, **told)
        return True

    def _dataset(self, name: str) -> Dataset:
        from rarebox.data import datasets

        if name not in self._datasets:
            self._datasets[name] = datasets.load_data(name, self.progress)
        return self._datasets[name]

    def _say(self, event: str, run: Planned | None, **more: object) -> None:
        """Report an event with the progress of the grid and an estimate of the seconds left."""
        with self._one_talks:
            if event == "begin" and not self._begun:  # the start of a cluster is not part of a run
                self._begun, self._since = True, time.monotonic()
            trained, left = self._cycles(self.wanted)
            each = (time.monotonic() - self._since) / (trained - self._trained) if trained > self._trained else None
            finished = sum(self.state(r) == "done" for r in self.wanted)
            about = {"finished": finished, "of": len(self.wanted), "left": each and each * left}
            self.tell({"event": event, "run": run and run.folder, **about, **more})

    def _say_cycle(self, run: Planned, record: CycleRecord) -> None:
        self._say("cycle", run, **record)

    def _show(self, run: Planned, stage: str, done: int, of: int, note: str) -> None:
        with self._one_talks:
            self.progress(f"{run.name}, {stage}", done, of, note)

    def _cycles(self, runs: Sequence[Planned]) -> tuple[int, int]:
        """How many models are trained, and how many are left. Shared models count as 0."""
        trained = left = 0
        for run in with_shares(runs):
            shared, done = int(run.share is not None), len(self.records(run))
            trained += max(done - shared, 0)
            left += self._is_open(run) * (len(run.settings.budget) + 1 - max(done, shared))
        return trained, left


def remove_shared(place: RunFolder) -> None:
    """Remove the feature maps of a frozen backbone and the scores by the first model."""
    for name in ("maps", "scored"):
        rmtree(place.root / name, ignore_errors=True)


def remove_models(place: RunFolder) -> None:
    """Remove the large files that only an unfinished run needs."""
    remove_shared(place)
    for name in ("model.safetensors", "fit.checkpoint"):
        for file in place.root.glob(f"cycle_*/{name}"):
            file.unlink(missing_ok=True)
