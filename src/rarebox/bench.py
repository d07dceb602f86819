"""A grid of runs: data × detector × method × budget × seed. Read :meth:`Bench.work` first.

The loop is imported where a run begins: a mistake in a grid is refused before torch is loaded.
"""

import json
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from shutil import rmtree
from threading import Lock
from typing import Any

import yaml

from rarebox import compare, config, strategies
from rarebox.cluster import Cluster
from rarebox.compare import FULL, RESULTS
from rarebox.config import PseudoSettings, Settings
from rarebox.data import Dataset, refuse_missing
from rarebox.errors import Busy, Damaged, UserError, unknown_name
from rarebox.files import read_json, write_json, write_text
from rarebox.parsing import Loader, from_yaml
from rarebox.run_folder import RunFolder, hold_when_free
from rarebox.text import read_text

KEYS = ("preset", "settings", "data", "detector", "methods", "strategy", "pseudo", "budgets", "seeds", "full")
"""What a grid file may hold."""

OWNED = {
    "data": "data",
    "detector": "detector.name",
    "strategy": "selection.strategy",
    "pseudo": "pseudo.method",
    "budgets": "budget",
    "seeds": "seed",
}
"""Each axis and its own setting, which nothing else in the grid may give."""

EVERY_IMAGE = 10**9
"""More images than any pool has."""

POLL_SECONDS = 2.0
"""How often a process that has nothing free looks again."""

MOST_AT_ONCE = 256
"""Runs that are handed to a cluster at a time."""

Changes = dict[str, Any]
"""Dotted names of settings -> values."""

HERE = ("data", "device")
"""Settings that say something of the machine, not of the method; a line of the results leaves them out."""


@dataclass(frozen=True)
class Planned:
    """A run that a grid wants, with its folder in the grid's."""

    folder: str
    data: str
    detector: str
    method: str
    settings: Settings
    share: "Planned | None" = None
    """The run that trains the cycle-1 model of this one."""

    @property
    def name(self) -> str:
        """``<data>/<detector>/<method>/seed_<n>``, as people see it."""
        return self.folder.removeprefix("runs/")

    @property
    def about(self) -> dict[str, Any]:
        """Where the run stands in the grid."""
        return {
            "run": self.folder, "data": self.data, "detector": self.detector, "method": self.method,
            "seed": self.settings.seed, "budget": list(self.settings.budget),
        }  # fmt: skip


# ------------------------------------------------------------------------------------------- the grid file


def read(file: Path, places: Mapping[str, str] | None = None) -> list[Planned]:
    """Every run of a grid file, checked, in the order they are done; ``places`` says where its data sets lie.

    UserError names the file and what is wrong in it.
    """
    try:
        return list(_expand(_load(file), places or {}))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except RecursionError:
        raise UserError(f"{file}: something in it holds itself (an alias, *, inside its own anchor, &)") from None


MOST_SEEDS = 1000
"""How many seeds a grid may ask for by their number."""


def choose(runs: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    """The runs whose name holds one of the texts, or fits it if it has ``*``, ``?`` or ``[``; all if there is none."""

    def fits(name: str, text: str) -> bool:
        return fnmatchcase(name, text) if set(text) & set("*?[") else text in name

    for text in only:
        if not any(fits(run.name, text) for run in runs):
            raise UserError(f"--only {text}: none of the {len(runs)} runs is named so; the first is {runs[0].name}")
    return [run for run in runs if not only or any(fits(run.name, text) for text in only)]


class _OneOfEach(Loader):
    """YAML lets the last of two equal names win, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, times in names.items() if times > 1]:
            raise UserError(f"{twice[0]!r} is there twice, after line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def _load(file: Path) -> dict[str, Any]:
    try:
        grid = from_yaml(read_text(file), _OneOfEach)
    except FileNotFoundError as error:
        raise UserError("there is no such grid; the paper's are in the folder paper/ of the sources") from error
    except OSError as error:
        raise UserError(f"the grid cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from error
    if not isinstance(grid, dict):
        raise UserError(f"a grid is a mapping with some of the keys {', '.join(KEYS)}")
    for key in grid:
        if key not in KEYS:
            raise unknown_name("key", str(key), KEYS)
    return grid


def _expand(grid: Mapping[str, Any], places: Mapping[str, str]) -> Iterator[Planned]:
    preset, common = grid.get("preset", "laptop"), _changes("settings", grid.get("settings"))
    base = config.resolve(str(preset), None, common)
    axes = {"data": _axis(grid, "data", base.data), "detector": _axis(grid, "detector", base.detector.name)}
    if "methods" in grid:
        axes["methods"] = _axis(grid, "methods", None)
    if "methods" not in grid or {"strategy", "pseudo"} & grid.keys():
        axes["strategy"] = _axis(grid, "strategy", base.selection.strategy)
        axes["pseudo"] = _axis(grid, "pseudo", base.pseudo.method)
    _each_setting_from_one_place(grid, {"settings": {"": common}, **axes})
    _place_data(axes["data"], places)
    budgets, seeds = _budgets(grid), _seeds(grid, base.seed)
    ceilings = _whole(grid.get("full", 0), "full")
    if ceilings > len(seeds):
        raise UserError(f"full is {ceilings}, but there are only {len(seeds)} seeds")

    def run(folder: str, data: str, detector: str, method: str, *changes: Changes) -> Planned:
        layers = [common, axes["data"][data], axes["detector"][detector], *changes]
        try:
            settings = config.resolve(str(preset), None, {n: value for layer in layers for n, value in layer.items()})
            strategies.choose(settings.selection)
        except UserError as error:
            raise UserError(f"{data}/{detector}/{method}: {error}") from error
        place = f"{folder}/seed_{settings.seed}"
        share = None if method == FULL else _first(data, detector, settings)
        return Planned(place, data, detector, method, settings, share)

    for place, seed in enumerate(seeds):
        pairs = [(data, detector) for data in axes["data"] for detector in axes["detector"]]
        for data, detector in pairs if place < ceilings else ():
            all_labels = {"initial_images": EVERY_IMAGE, "budget": [], "seed": seed}
            yield run(f"runs/{data}/{detector}/{FULL}", data, detector, FULL, all_labels)
        for data, detector in pairs:
            for method, changes in _methods(axes).items():
                for name, budget in budgets.items():
                    part = f"/budget_{name}" if len(budgets) > 1 else ""
                    folder = f"runs/{data}/{detector}/{method}{part}"
                    yield run(folder, data, detector, method, changes, budget, {"seed": seed})


def _first(data: str, detector: str, settings: Settings) -> Planned:
    """The run that trains cycle 1 and stops.

    What a first cycle does not depend on (``loop.first_cycle`` says what it does) is left at its default, so that all
    methods of a seed come to the same run.
    """
    first = Settings(
        data=settings.data, seed=settings.seed, initial_images=settings.initial_images, budget=(),
        device=settings.device, detector=settings.detector, training=settings.training,
        pseudo=PseudoSettings(difficult=settings.pseudo.difficult),
    )  # fmt: skip
    told = config.dump(first.model_copy(update={"data": "", "seed": 0}))
    folder = f"first/{data}-{detector}-{sha256(told.encode()).hexdigest()[:8]}-seed_{settings.seed}"
    return Planned(folder, data, detector, "first", first)


def _axis(grid: Mapping[str, Any], key: str, default: Any) -> dict[str, Changes]:
    """Name -> changes of settings. A list names values of the axis' own setting, data sets by the last part."""
    given = grid.get(key, [default])
    if isinstance(given, list) and key in OWNED:
        pairs = [(Path(str(v)).name if key == "data" else v, {OWNED[key]: v}) for v in given]
    elif isinstance(given, dict):
        pairs = [(name, _changes(f"{key}.{name}", changes)) for name, changes in given.items()]
    else:
        wanted = "names with changes of settings" + (", or a list" if key in OWNED else "")
        raise UserError(f"{key} must be {wanted}; got {given!r}")
    return _named(key, pairs)


def _named(key: str, pairs: Sequence[tuple[Any, Changes]]) -> dict[str, Changes]:
    """The pairs, if there are any and each name is good for a folder, on file systems without capitals too."""
    if not pairs:
        raise UserError(f"{key} is empty; give at least one value, or leave it out")
    seen: dict[str, str] = {}
    for name, _ in pairs:
        if not isinstance(name, str):
            raise UserError(f"{key}: the name {name!r} is not text; put it in quotes")
        if not re.fullmatch(r"[\w+]([\w.+=-]*[\w+=-])?", name) or (key == "methods" and name == FULL):
            kept = f" ({FULL!r} is kept for training on all labels)" if name == FULL else ""
            raise UserError(
                f"{key}: {name!r} cannot name a folder{kept}; use letters, digits and . + = _ -, "
                f"as in  {key}: {{NAME: {{setting: value}}}}"
            )
        if name.casefold() in seen:
            raise UserError(f"{key}: {seen[name.casefold()]!r} and {name!r} are the same name")
        seen[name.casefold()] = name
    return dict(pairs)


def _changes(where: str, given: Any) -> Changes:
    """Nested or dotted changes in dotted form, their names checked."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise UserError(f"{where} must hold settings and values, got {given!r}")
    changes = dict(config.flatten(given))
    for name in changes:
        if name not in config.NAMES:
            raise UserError(f"{where}: {unknown_name('setting', name, config.NAMES)}")
    return changes


def _each_setting_from_one_place(grid: Mapping[str, Any], layers: Mapping[str, Mapping[str, Changes]]) -> None:
    if "methods" in layers and "strategy" in layers:
        raise UserError("give either methods, or strategy and pseudo")
    for axis in OWNED.keys() & grid.keys():
        for layer, entries in layers.items():
            for name, changes in entries.items():
                if layer != axis and OWNED[axis] in changes:
                    where = f"{layer}.{name}".rstrip(".")
                    raise UserError(f"{OWNED[axis]} is given by {axis} and by {where}; leave one of them out")


def _place_data(data: Mapping[str, Changes], places: Mapping[str, str]) -> None:
    """Put in where the data sets lie, if that was said apart from the grid."""
    for name, folder in places.items():
        if name not in data:
            raise unknown_name("data set of the grid", name, data)
        data[name]["data"] = folder
    for name, changes in data.items():
        if "data" not in changes:
            raise UserError(f"data.{name}: its folder is missing; give `data`, or --data {name}=FOLDER")


def _methods(axes: Mapping[str, Mapping[str, Changes]]) -> Mapping[str, Changes]:
    if "methods" in axes:
        return axes["methods"]
    return {f"{s}+{p}": {**one, **two} for s, one in axes["strategy"].items() for p, two in axes["pseudo"].items()}


def _budgets(grid: Mapping[str, Any]) -> dict[str, Changes]:
    if "budgets" not in grid:
        return {"": {}}
    given = grid["budgets"]
    if not isinstance(given, list) or not all(isinstance(budget, list) for budget in given):
        raise UserError(f"budgets must be a list of budgets, such as [[60, 120]]; got {given!r}")
    pairs = [("-".join(str(_whole(spend, "budgets")) for spend in b) or "none", {"budget": b}) for b in given]
    return _named("budgets", pairs)


def _seeds(grid: Mapping[str, Any], default: int) -> list[int]:
    given = grid.get("seeds", [default])
    if not isinstance(given, list) and _whole(given, "seeds") > MOST_SEEDS:
        raise UserError(f"seeds: {given} are more than {MOST_SEEDS}; give fewer, or a list of the seeds themselves")
    seeds = [_whole(s, "seeds") for s in given] if isinstance(given, list) else [*range(given)]
    _named("seeds", [(str(seed), {}) for seed in seeds])
    return seeds


def _whole(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{key}: a whole number is wanted, 0 or more; got {value!r}")
    return value


# ------------------------------------------------------------------------------------------- the work


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
    progress: Callable[[str, int, int, str], None] = lambda *_: None
    tell: Callable[[dict[str, Any]], None] = lambda _: None
    cluster: Cluster | None = None
    """Where the runs are done, if not in this process."""
    _datasets: dict[str, Dataset] = field(default_factory=dict, init=False)
    _done: dict[str, list[dict[str, Any]]] = field(default_factory=dict, init=False)
    _earlier: dict[str, int | None] = field(default_factory=dict, init=False)
    """The failures of before this work."""
    _one_talks: Lock = field(default_factory=Lock, init=False)
    """Runs on a cluster are waited for by many threads."""
    _since: float = field(default=0.0, init=False)
    _begun: bool = field(default=False, init=False)
    _trained: int = field(default=0, init=False)
    """When the first run of this work began, whether it has, and how many models were trained by then."""

    @property
    def results(self) -> Path:
        return self.out / RESULTS

    def place(self, run: Planned) -> RunFolder:
        return RunFolder(self.out / run.folder)

    def records(self, run: Planned) -> list[dict[str, Any]]:
        """A run's finished cycles; a file that says it all is read once."""
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
        """Do what is wanted and not done yet; the runs that failed come back. ``file`` is the grid's.

        Runs that another process is at work on are left to it, and looked after again when nothing else is left. A
        run that failed before is tried once more; one that fails now, here or in another process, is not.
        """
        for name, folder in sorted({(r.data, r.settings.data) for r in self.wanted if self.state(r) != "done"}):
            try:
                refuse_missing(folder)
            except UserError as error:
                raise UserError(f"the data set {name}: {error}\nSay where it lies: --data {name}=FOLDER") from error
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
        """Do one run that is free, or on a cluster all of them, side by side; False if none is."""
        if self.cluster is None:
            return any(self._attempt(run) for run in todo)  # stops at the first that was free
        left, at_work, attempted = {run.folder: run for run in todo}, dict[Future[bool], str](), False
        # A thread only waits for its run; how many run at once is up to the cluster.
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
        """Remove the models of runs that finished just when their process was killed."""
        for run in self.wanted:
            if self.state(run) == "done":
                with suppress(Busy), self.place(run).locked():
                    remove_models(self.place(run))
                self._let_go_of_shared(run)

    def _let_go_of_shared(self, run: Planned) -> None:
        """Remove what a frozen backbone saw and the first scores, once all the grid's runs that share them are done."""
        if run.share and all(self.state(other) == "done" for other in self.runs if other.share == run.share):
            remove_shared(self.place(run.share))

    def write_results(self) -> None:
        """A line for each run of the grid that is done or has failed, from what the run folders hold now."""
        with hold_when_free(self.out / "lock"):
            lines = [json.dumps(self._result(run)) for run in self.runs if self.state(run) in ("done", "failed")]
            write_text(self.results, "".join(line + "\n" for line in lines))

    def _result(self, run: Planned) -> dict[str, Any]:
        records = self.records(run)
        chosen = config.flatten(run.settings.model_dump(mode="json"))
        return {
            **run.about,
            "status": self.state(run),
            "reason": self.reason(run),
            # The folder of the data is this machine's; what it is called stands above.
            "settings": {name: value for name, value in chosen if name not in HERE},
            "cycles": records,
            "seconds": sum(second for record in records for second in record["seconds"].values()),
        }

    def _claim(self, file: Path) -> None:
        """Make the folder this grid's; UserError if it is not, or if a run has begun with other settings."""
        there = {file.name for file in self.out.iterdir()} if self.out.exists() else set()
        if "grid.yaml" not in there and there - {"lock", "grid.yaml.part"}:  # these: a first start that was cut short
            raise UserError(f"{self.out} is not empty and holds no grid of rarebox; name a new or empty folder")
        self.out.mkdir(parents=True, exist_ok=True)
        for run in with_shares(self.runs):
            # Where the data of a finished run lay, and on what it ran, does not matter any more.
            self.place(run).check(run.settings, but=HERE if self.state(run) == "done" else ())
        with hold_when_free(self.out / "lock"):
            write_text(self.out / "grid.yaml", read_text(file))
        told = self.results.read_text(encoding="utf-8", errors="replace").splitlines() if self.results.exists() else []
        before = set[str]()
        for line in told:
            with suppress(ValueError, TypeError, KeyError):  # a damaged line: the file is made anew anyway
                before.add(json.loads(line)["run"])
        if dropped := before - {run.folder for run in self.runs}:
            self.tell({"event": "dropped", "runs": sorted(dropped)})

    def _todo(self) -> list[Planned]:
        return with_shares([run for run in self.wanted if self._is_open(run)], self._is_open)

    def _is_open(self, run: Planned) -> bool:
        """Whether it is neither done nor has failed since this work began."""
        return self.state(run) != "done" and self._failure(run) == self._earlier[run.folder]

    def _failure(self, run: Planned) -> int | None:
        """What tells one failure from the next."""
        try:
            return self.place(run).failed.stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def _attempt(self, run: Planned) -> bool:
        """Do a run, or record why it failed; False if that is up to another process just now."""
        from rarebox import loop

        place = self.place(run)
        try:
            if run.share and self.state(run.share) != "done":
                if self._is_open(run.share):
                    return False
                raise UserError(f"the first cycle that it shares has failed: {self.reason(run.share)}")
            with place.locked():
                pass  # only whether it is free: the loop takes the lock itself
            common: dict[str, Any] = {
                "share": self.place(run.share).root if run.share else None,
                "progress": lambda *said: self._show(run, *said),
                "finished": lambda record: self._say("cycle", run, **record),
            }
            if self.cluster is None:
                self._say("begin", run)
                records = loop.run(place.root, run.settings, self._dataset(run.settings.data), **common)
            else:
                records = self.cluster.run(place.root, run.settings, begun=lambda: self._say("begin", run), **common)
            with hold_when_free(self.out / "lock"):  # nobody is reading it for the results
                place.failed.unlink(missing_ok=True)
            if run in self.wanted and not self.keep_models:
                remove_models(place)
            self._let_go_of_shared(run)
            few = compare.short(records, run.settings.budget, run.settings.budget_unit)
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
        from rarebox import loop

        if name not in self._datasets:
            self._datasets[name] = loop.load_data(name, self.progress)
        return self._datasets[name]

    def _say(self, event: str, run: Planned | None, **more: Any) -> None:
        """Tell, together with how far all is, and in how many seconds it may be done."""
        with self._one_talks:
            if event == "begin" and not self._begun:  # what a cluster takes until then is no part of a run
                self._begun, self._since = True, time.monotonic()
            trained, left = self._cycles(self.wanted)
            each = (time.monotonic() - self._since) / (trained - self._trained) if trained > self._trained else None
            finished = sum(self.state(r) == "done" for r in self.wanted)
            about = {"finished": finished, "of": len(self.wanted), "left": each and each * left}
            self.tell({"event": event, "run": run and run.folder, **about, **more})

    def _show(self, run: Planned, stage: str, done: int, of: int, note: str) -> None:
        with self._one_talks:
            self.progress(f"{run.name}, {stage}", done, of, note)

    def _cycles(self, runs: Sequence[Planned]) -> tuple[int, int]:
        """How many models are trained, and how many are still to be; a shared one costs nothing."""
        trained = left = 0
        for run in with_shares(runs):
            shared, done = int(run.share is not None), len(self.records(run))
            trained += max(done - shared, 0)
            left += self._is_open(run) * (len(run.settings.budget) + 1 - max(done, shared))
        return trained, left


def with_shares(runs: Iterable[Planned], wanted: Callable[[Planned], bool] = lambda _: True) -> list[Planned]:
    """The runs, each behind the one that it shares the first cycle of, if that is wanted."""
    found: dict[str, Planned] = {}
    for run in runs:
        if run.share and wanted(run.share):
            found.setdefault(run.share.folder, run.share)
        found[run.folder] = run
    return list(found.values())


def remove_shared(place: RunFolder) -> None:
    """Remove what a frozen backbone saw, and what the first model said of the pool."""
    for name in ("maps", "scored"):
        rmtree(place.root / name, ignore_errors=True)


def remove_models(place: RunFolder) -> None:
    """Remove what only an unfinished run needs and takes most of its room."""
    remove_shared(place)
    for name in ("model.safetensors", "fit.checkpoint"):
        for file in place.root.glob(f"cycle_*/{name}"):
            file.unlink(missing_ok=True)
