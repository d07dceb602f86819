"""The grammar of a grid file: which settings, methods, budgets and seeds it spans."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import cast

import yaml

from rarebox import config, strategies
from rarebox.config import PseudoSettings, ScoringSettings, Settings
from rarebox.core.parsing import from_yaml
from rarebox.core.text import read_text
from rarebox.errors import UserError, unknown_name
from rarebox.grid.results import FULL

KEYS = ("preset", "settings", "data", "detector", "methods", "strategy", "pseudo", "budgets", "seeds", "full")
"""The keys of a grid file."""

OWNED = {
    "data": "data",
    "detector": "detector.name",
    "strategy": "selection.strategy",
    "pseudo": "pseudo.method",
    "budgets": "budget",
    "seeds": "seed",
}
"""Each axis and its setting, which nothing else in the grid may set."""

EVERY_IMAGE = 10**9
"""A number of initial images that covers every pool."""

Changes = dict[str, object]
"""Dotted names of settings -> values."""


@dataclass(frozen=True)
class Planned:
    """A run of a grid, with its folder in that of the grid."""

    folder: str
    data: str
    detector: str
    method: str
    settings: Settings
    share: "Planned | None" = None
    """The run that trains the cycle-1 model of this one."""

    @property
    def name(self) -> str:
        """``<data>/<detector>/<method>/seed_<n>``, as shown to people."""
        return self.folder.removeprefix("runs/")

    @property
    def about(self) -> dict[str, object]:
        """The place of the run in the grid, for a line of the results."""
        return {
            "run": self.folder,
            "data": self.data,
            "detector": self.detector,
            "method": self.method,
            "seed": self.settings.seed,
            "budget": list(self.settings.budget),
        }


def read(file: Path, places: Mapping[str, str] | None = None) -> list[Planned]:
    """Read and check a grid file. Return its runs in the order of execution.

    ``places`` maps names of data sets to their folders. Raises UserError with the file and what is wrong in it.
    """
    try:
        return list(_expand(_load(file), places or {}))
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    except RecursionError:
        raise UserError(f"{file}: an alias (*) is inside its own anchor (&), so the file contains itself") from None


MOST_SEEDS = 1000
"""The largest value of ``seeds`` as a number."""


def choose(runs: Sequence[Planned], only: Sequence[str]) -> list[Planned]:
    """The runs whose name contains one of the texts, or matches it (``*``, ``?``, ``[``). All by default."""

    def fits(name: str, text: str) -> bool:
        return fnmatchcase(name, text) if set(text) & set("*?[") else text in name

    for text in only:
        if not any(fits(run.name, text) for run in runs):
            raise UserError(
                f"--only {text}: no name of the {len(runs)} runs contains this. The first is {runs[0].name}"
            )
    return [run for run in runs if not only or any(fits(run.name, text) for text in only)]


def _load(file: Path) -> dict[str, object]:
    try:
        grid = from_yaml(read_text(file))
    except FileNotFoundError as error:
        raise UserError("the file does not exist. The grids of the paper are in the sources, in paper/") from error
    except OSError as error:
        raise UserError(f"the grid cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"not valid YAML: {error}") from error
    if not isinstance(grid, dict):
        raise UserError(f"a grid is a mapping with some of the keys {', '.join(KEYS)}")
    for key in cast(dict[object, object], grid):
        if key not in KEYS:
            raise unknown_name("key", str(key), KEYS)
    return cast(dict[str, object], grid)


def _expand(grid: Mapping[str, object], places: Mapping[str, str]) -> Iterator[Planned]:
    preset, common = grid.get("preset", "laptop"), _changes("settings", grid.get("settings"))
    if preset == "laptop":  # a comparison must not depend on which weights a machine has
        common = {**config.INSTALLED, **common}
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
            if "auto" in (settings.detector.backbone, settings.detector.weights):
                raise UserError(
                    "compared runs must start alike: name detector.backbone and detector.weights instead of auto"
                )
        except UserError as error:
            raise UserError(f"{data}/{detector}/{method}: {error}") from error
        place = f"{folder}/seed_{settings.seed}"
        share = None if method == FULL else _first(data, detector, settings, base)
        return Planned(place, data, detector, method, settings, share)

    for place, seed in enumerate(seeds):
        pairs = [(data, detector) for data in axes["data"] for detector in axes["detector"]]
        for data, detector in pairs if place < ceilings else ():
            all_labels: Changes = {"initial_images": EVERY_IMAGE, "budget": [], "seed": seed}
            yield run(f"runs/{data}/{detector}/{FULL}", data, detector, FULL, all_labels)
        for data, detector in pairs:
            for method, changes in _methods(axes).items():
                for name, budget in budgets.items():
                    part = f"/budget_{name}" if len(budgets) > 1 else ""
                    folder = f"runs/{data}/{detector}/{method}{part}"
                    yield run(folder, data, detector, method, changes, budget, {"seed": seed})


def _first(data: str, detector: str, settings: Settings, base: Settings) -> Planned:
    """The run that trains cycle 1 and stops.

    Settings that a first cycle does not depend on (:func:`rarebox.loop.sharing.first_cycle` lists the others) keep
    their defaults, so that all methods of a seed share one run. With a frozen backbone the run has the views of
    ``base``, the settings of the whole grid, so that one folder of feature maps serves all runs.
    """
    frozen = settings.training.freeze == "backbone"
    first = Settings(
        data=settings.data,
        seed=settings.seed,
        initial_images=settings.initial_images,
        budget=(),
        device=settings.device,
        detector=settings.detector,
        training=settings.training.of_first_cycle(),
        pseudo=PseudoSettings(difficult=settings.pseudo.difficult),
        scoring=ScoringSettings(views=base.scoring.views) if frozen else ScoringSettings(),
    )
    told = config.dump(first.model_copy(update={"data": "", "seed": 0}))
    folder = f"first/{data}-{detector}-{sha256(told.encode()).hexdigest()[:8]}-seed_{settings.seed}"
    return Planned(folder, data, detector, "first", first)


def _axis(grid: Mapping[str, object], key: str, default: object) -> dict[str, Changes]:
    """Name -> changes of settings. A list gives values of the setting of the axis; data sets are named by folder."""
    given = grid.get(key, [default])
    pairs: list[tuple[object, Changes]]
    if isinstance(given, list) and key in OWNED:
        values = cast(list[object], given)
        pairs = [(Path(str(v)).name if key == "data" else v, {OWNED[key]: v}) for v in values]
    elif isinstance(given, dict):
        entries = cast(dict[object, object], given)
        pairs = [(name, _changes(f"{key}.{name}", changes)) for name, changes in entries.items()]
    else:
        wanted = "names with changes of settings" + (", or a list" if key in OWNED else "")
        raise UserError(f"{key} must be {wanted}; got {given!r}")
    return _named(key, pairs)


def _named(key: str, pairs: Sequence[tuple[object, Changes]]) -> dict[str, Changes]:
    """The pairs as a dictionary. Raises UserError unless each name fits a folder, on every file system."""
    if not pairs:
        raise UserError(f"{key} is empty. Give at least one value, or omit it")
    seen: dict[str, str] = {}
    for name, _ in pairs:
        if not isinstance(name, str):
            raise UserError(f"{key}: the name {name!r} is not text. Put it in quotes")
        if not re.fullmatch(r"[\w+]([\w.+=-]*[\w+=-])?", name) or (key == "methods" and name == FULL):
            kept = f" ({FULL!r} is reserved for training on all labels)" if name == FULL else ""
            raise UserError(
                f"{key}: {name!r} cannot name a folder{kept}. Use letters, digits and . + = _ -, "
                f"as in  {key}: {{NAME: {{setting: value}}}}"
            )
        if name.casefold() in seen:
            raise UserError(f"{key}: {seen[name.casefold()]!r} and {name!r} are the same name")
        seen[name.casefold()] = name
    return {str(name): changes for name, changes in pairs}


def _changes(where: str, given: object) -> Changes:
    """Convert nested or dotted changes to dotted form, and check their names."""
    given = {} if given is None else given
    if not isinstance(given, dict):
        raise UserError(f"{where} must hold settings and values, got {given!r}")
    changes: Changes = dict(config.flatten(cast(dict[str, object], given)))
    for name in changes:
        if name not in config.NAMES:
            raise UserError(f"{where}: {unknown_name('setting', name, config.NAMES)}")
    return changes


def _each_setting_from_one_place(grid: Mapping[str, object], layers: Mapping[str, Mapping[str, Changes]]) -> None:
    if "methods" in layers and "strategy" in layers:
        raise UserError("give either methods, or strategy and pseudo")
    for axis in OWNED.keys() & grid.keys():
        for layer, entries in layers.items():
            for name, changes in entries.items():
                if layer != axis and OWNED[axis] in changes:
                    where = f"{layer}.{name}".rstrip(".")
                    raise UserError(f"{OWNED[axis]} is set by both {axis} and {where}. Omit one of them")


def _place_data(data: Mapping[str, Changes], places: Mapping[str, str]) -> None:
    """Set the folders of data sets that were given outside the grid file."""
    for name, folder in places.items():
        if name not in data:
            raise unknown_name("data set of the grid", name, data)
        data[name]["data"] = folder
    for name, changes in data.items():
        if "data" not in changes:
            raise UserError(f"data.{name}: its folder is missing. Give `data`, or --data {name}=FOLDER")


def _methods(axes: Mapping[str, Mapping[str, Changes]]) -> Mapping[str, Changes]:
    if "methods" in axes:
        return axes["methods"]
    return {f"{s}+{p}": {**one, **two} for s, one in axes["strategy"].items() for p, two in axes["pseudo"].items()}


def _budgets(grid: Mapping[str, object]) -> dict[str, Changes]:
    if "budgets" not in grid:
        return {"": {}}
    given = grid["budgets"]
    if not isinstance(given, list) or not all(isinstance(budget, list) for budget in cast(list[object], given)):
        raise UserError(f"budgets must be a list of budgets, such as [[60, 120]]; got {given!r}")
    budgets = [[_whole(spend, "budgets") for spend in budget] for budget in cast(list[list[object]], given)]
    return _named("budgets", [("-".join(map(str, budget)) or "none", {"budget": budget}) for budget in budgets])


def _seeds(grid: Mapping[str, object], default: int) -> list[int]:
    given = grid.get("seeds", [default])
    whole = 0 if isinstance(given, list) else _whole(given, "seeds")
    if whole > MOST_SEEDS:
        raise UserError(f"seeds: {given} are more than {MOST_SEEDS}. Give fewer, or a list of the seeds themselves")
    seeds = [_whole(s, "seeds") for s in cast(list[object], given)] if isinstance(given, list) else [*range(whole)]
    _named("seeds", [(str(seed), {}) for seed in seeds])
    return seeds


def _whole(value: object, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{key}: must be a whole number, 0 or more; got {value!r}")
    return value


def with_shares(runs: Iterable[Planned], wanted: Callable[[Planned], bool] = lambda _: True) -> list[Planned]:
    """The runs, each after the run whose first cycle it shares, if that one is wanted."""
    found: dict[str, Planned] = {}
    for run in runs:
        if run.share and wanted(run.share):
            found.setdefault(run.share.folder, run.share)
        found[run.folder] = run
    return list(found.values())
