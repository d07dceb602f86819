"""What a grid of runs says: curves over seeds, differences paired by seed, areas, rare classes.

The input is ``results.jsonl``, one line a run. Only runs of one :class:`Group` are compared: same data, same detector,
same budgets. A number that is not known is NaN here and a dash in a table; a standard deviation is the sample's
(divisor n - 1), and unknown with one seed.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, reduce
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ValidationError
from scipy.special import stdtrit

from rarebox import config, strategies
from rarebox.config import Settings
from rarebox.errors import UserError
from rarebox.text import read_text

RESULTS = "results.jsonl"
FULL = "full"
"""The method name of a run that trains on all labels: the ceiling. It has a single cycle."""

ENOUGH_SEEDS = 6
"""With fewer common seeds no difference is called one, whatever its interval."""

DASH = "–"
NAN = float("nan")

Record = dict[str, Any]
"""One cycle of a run, as in its ``metrics.json``."""

Values = dict[str, dict[int, float]]
"""One number of each run: method -> seed -> value."""

# ------------------------------------------------------------------------------------------------ what the file holds


@dataclass(frozen=True, eq=False)
class GridRun:
    """One line of the results. ``reason`` says why a run failed; None: it is done."""

    data: str
    detector: str
    method: str
    seed: int
    budget: tuple[int, ...]
    settings: Mapping[str, Any]
    cycles: Sequence[Record]
    reason: str | None = None

    def setting(self, name: str) -> Any:
        """A setting by its dotted name; what the line does not hold is at its default."""
        return self.settings[name] if name in self.settings else reduce(getattr, name.split("."), Settings())

    def curve(self, meter: str, value: "Value") -> tuple[np.ndarray, np.ndarray]:
        """The paid labels (or looks) and the value after each cycle, without cycles whose value is not known."""
        points = [(record[meter], value(record)) for record in self.cycles]
        known = [point for point in points if point[1] == point[1]]
        x, y = np.array(known, dtype=float).reshape(-1, 2).T
        return x, y


Value = Callable[[Record], float]
"""What is read off a record, such as :func:`ap50`."""


def ap50(record: Record) -> float:
    """AP50 by area; NaN where there was no truth to measure on."""
    return NAN if record["ap50"] is None else record["ap50"]


def ap50_11(record: Record) -> float:
    """AP50 by 11 points, as VOC 2007 and the paper count."""
    return NAN if record["ap50_11"] is None else record["ap50_11"]


@dataclass(frozen=True, eq=False)
class Group:
    """The runs that may be compared: same data, detector and budgets. Its ceiling may come from other budgets."""

    data: str
    detector: str
    budget: tuple[int, ...]
    unit: str
    runs: Sequence[GridRun]

    @property
    def title(self) -> str:
        spent = ", ".join(f"+{n}" for n in self.budget)
        return " · ".join(filter(None, (Path(self.data).name, self.detector, spent and f"{spent} {self.unit}")))

    @cached_property
    def methods(self) -> dict[str, dict[int, GridRun]]:
        """Finished runs by method and seed, in the order of the file."""
        found: dict[str, dict[int, GridRun]] = {}
        for run in self.runs:
            if run.reason is None and run.method != FULL:
                found.setdefault(run.method, {})[run.seed] = run
        return found

    @cached_property
    def full(self) -> list[GridRun]:
        """Finished runs on all labels."""
        return [run for run in self.runs if run.reason is None and run.method == FULL]

    @cached_property
    def failed(self) -> list[GridRun]:
        return [run for run in self.runs if run.reason is not None]

    @cached_property
    def seeds(self) -> list[int]:
        return sorted({seed for runs in self.methods.values() for seed in runs})

    @cached_property
    def finished(self) -> list[GridRun]:
        """One run after the other, without the ceiling."""
        return [run for runs in self.methods.values() for run in runs.values()]

    @property
    def ceiling(self) -> float:
        """Mean AP50 of the runs on all labels; NaN without one."""
        return spread([ap50(run.cycles[-1]) for run in self.full]).mean

    def values(self, value: Callable[[GridRun], float]) -> Values:
        """A number of every finished run."""
        return {name: {seed: value(run) for seed, run in runs.items()} for name, runs in self.methods.items()}


def is_grid(path: Path) -> bool:
    """Whether a path is the outcome of a grid, or the results file of one, rather than a run."""
    return path.suffix == ".jsonl" or ((path / RESULTS).exists() and not (path / "settings.yaml").exists())


def read(paths: Sequence[Path]) -> list[Group]:
    """The groups of one or more grids, in the order of the files; of two lines about one run the last one holds.

    UserError names a file that is missing, holds nothing, or has a line that is not a run.
    """
    runs: dict[tuple[Any, ...], GridRun] = {}
    for file in (path / RESULTS if path.is_dir() else path for path in paths):
        for run in _read_file(file):
            runs[run.data, run.detector, run.method, run.seed, run.budget, _unit(run)] = run
    return _grouped(list(runs.values()))


def _grouped(runs: Sequence[GridRun]) -> list[Group]:
    """A ceiling belongs to every group of its data and detector; it makes one of its own only where there is none."""
    compared = [run for run in runs if run.method != FULL]
    places = {(run.data, run.detector) for run in compared}
    lonely = [run for run in runs if run.method == FULL and (run.data, run.detector) not in places]
    keys = dict.fromkeys((run.data, run.detector, run.budget, _unit(run)) for run in [*compared, *lonely])
    for data in {run.data for run in runs}:
        named = {tuple(cycle["per_class_ap50"]) for run in runs if run.data == data for cycle in run.cycles}
        if len(named) > 1:
            raise UserError(
                f"the runs on {data} do not have the same classes, so they are not of one data set; compare them "
                "apart, or name the data sets differently"
            )
    return [
        Group(*key, [run for run in runs if (run.data, run.detector) == key[:2]
                     and (run.method == FULL or (run.budget, _unit(run)) == key[2:])])
        for key in keys
    ]  # fmt: skip


def _unit(run: GridRun) -> str:
    return str(run.setting("budget_unit"))


def _read_file(file: Path) -> list[GridRun]:
    try:
        lines = read_text(file).splitlines()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}); name the folder of a grid, or its {RESULTS}"
        ) from error
    runs = [_read_line(file, n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    if not runs:
        raise UserError(f"{file} holds no run yet, so there is nothing to compare; wait for the grid's first run")
    return runs


class _Cycle(BaseModel):
    """What is read of a record; it may hold more."""

    cycle: int
    labels: float
    looks: float
    ap50: float | None
    ap50_11: float | None
    per_class_ap50: dict[str, float | None]
    human_per_class: dict[str, float]
    selected_per_class: dict[str, float]
    hits_per_class: dict[str, float]


class _Line(BaseModel):
    """What is read of a line."""

    data: str
    detector: str
    method: str
    seed: int
    budget: tuple[int, ...]
    status: Literal["done", "failed"]
    settings: dict[str, Any]
    reason: str | None = None
    cycles: list[_Cycle]


def _read_line(file: Path, number: int, line: str) -> GridRun:
    try:
        told = _Line.model_validate_json(line)
        if told.status == "done" and not told.cycles:
            raise ValueError("a run that is done has cycles")
        if (unit := told.settings.get("budget_unit", "labels")) not in ("labels", "looks"):
            raise ValueError(f"budget_unit is {unit!r}, not labels or looks")
    except ValueError as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            error = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
        raise UserError(f"{file}, line {number} is not a run of a grid ({error}); mend or delete the line") from None
    own_name = told.method == told.settings.get("selection.strategy")
    method = strategies.SHOWN_AS.get(told.method, told.method) if own_name else told.method
    return GridRun(
        told.data, told.detector, method, told.seed, told.budget, told.settings, json.loads(line)["cycles"],
        reason=None if told.status == "done" else told.reason or "no reason was given",
    )  # fmt: skip


class Short(NamedTuple):
    """A batch that ended short of its budget: nothing was left to ask about, or (in older runs) no image fitted."""

    cycle: int
    spent: int
    budget: int


def short(cycles: Sequence[Record], budget: Sequence[int], unit: str) -> list[Short]:
    """The batches of a run that ended short; ``unit`` says whether labels or looks were to be spent."""
    batches = [
        Short(after["cycle"], after[unit] - before[unit], wanted)
        for (before, after), wanted in zip(pairwise(cycles), budget, strict=False)  # a run may have failed on the way
    ]
    return [batch for batch in batches if batch.spent < batch.budget]


# ------------------------------------------------------------------------------------------------ over the seeds


class Spread(NamedTuple):
    """Mean and sample standard deviation of ``n`` known numbers."""

    mean: float
    sd: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation, leaving out what is not known."""
    known = [value for value in values if value == value]
    mean = float(np.mean(known)) if known else NAN
    return Spread(mean, float(np.std(known, ddof=1)) if len(known) > 1 else NAN, len(known))


class Point(NamedTuple):
    """A point of a learning curve: after a cycle, at the mean of what was paid, the value over the seeds."""

    cycle: int
    paid: float
    value: Spread


def curve(runs: Iterable[GridRun], meter: str = "labels", value: Value = ap50) -> list[Point]:
    """The mean learning curve of one method's runs against ``labels`` or ``looks`` (the paper's Fig. 3)."""
    cycles: dict[int, list[Record]] = {}
    for run in runs:
        for record in run.cycles:
            cycles.setdefault(record["cycle"], []).append(record)
    return [
        Point(cycle, spread(record[meter] for record in records).mean, spread(map(value, records)))
        for cycle, records in sorted(cycles.items())
    ]


class Difference(NamedTuple):
    """Mean difference over ``n`` common seeds, and its interval; NaN bounds with one seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 where there are seeds enough and the interval excludes 0: a difference. Else 0: not told apart."""
        return (int(self.low > 0) - int(self.high < 0)) if self.n >= ENOUGH_SEEDS else 0


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Value minus reference, seed by seed, with the 95 % t interval of the mean over seeds (Student 1908).

    Pairing takes out what a seed does to both: the same first images, the same first model. The interval is the mean
    -/+ t s / sqrt(n), with s the standard deviation of the differences (divisor n - 1) and t the 97.5th percentile of
    Student's distribution with n - 1 degrees of freedom. With one seed there is none.
    """
    common = sorted(values.keys() & reference.keys())
    steps = np.array([values[seed] - reference[seed] for seed in common], dtype=float)
    steps = steps[~np.isnan(steps)]
    n, mean = len(steps), float(steps.mean()) if len(steps) else NAN
    if n < 2:
        return Difference(mean, NAN, NAN, n)
    reach = float(stdtrit(n - 1, 0.975) * steps.std(ddof=1) / np.sqrt(n))
    return Difference(mean, mean - reach, mean + reach, n)


CAUTION = (
    "Intervals are paired t intervals: if differences are about normal, 95 of 100 hold the true mean difference. With "
    f"fewer than {ENOUGH_SEEDS} seeds no difference is called one. Nothing corrects for there being many intervals."
)


def area(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """Area under the curve between two numbers of labels (or looks) over their distance: the mean height there."""
    if not high > low:
        return NAN
    at = np.array([low, *x[(x > low) & (x < high)], high])
    return float(np.trapezoid(np.interp(at, x, y), at) / (high - low))


def areas(group: Group, meter: str = "labels", value: Value = ap50) -> Values:
    """The area under each run's curve, over the range that all methods of its seed have in common.

    The last image of an image-level batch may overshoot the budget, and box-level methods need more looks; a common
    range of what was paid is fair to both.
    """
    return _in_common(group, meter, value, area)


def at_equal_cost(group: Group, meter: str = "labels", value: Value = ap50) -> Values:
    """The height of each run's curve, linear between its points, at the most that all methods of its seed have paid."""
    return _in_common(group, meter, value, lambda x, y, low, high: float(np.interp(high, x, y)) if high > low else NAN)


def _in_common(
    group: Group, meter: str, value: Value, measure: Callable[[np.ndarray, np.ndarray, float, float], float]
) -> Values:
    """``measure`` of each run's curve over the range of labels (or looks) that all methods of its seed have paid."""
    found: Values = {name: {} for name in group.methods}
    for seed in group.seeds:
        curves = {name: runs[seed].curve(meter, value) for name, runs in group.methods.items() if seed in runs}
        curves = {name: (x, y) for name, (x, y) in curves.items() if len(x) and x[-1] > x[0]}
        low = max((x[0] for x, _ in curves.values()), default=NAN)
        high = min((x[-1] for x, _ in curves.values()), default=NAN)
        for name, (x, y) in curves.items():
            found[name][seed] = measure(x, y, low, high)
    return found


def labels_to_reach(points: Sequence[Point], target: float) -> float | None:
    """Where a curve first reaches a height, linear between its points; None if it does not, or the height is NaN."""
    known = [(point.paid, point.value.mean) for point in points if point.value.mean == point.value.mean]
    if known and known[0][1] >= target:
        return known[0][0]
    for (x0, y0), (x1, y1) in pairwise(known):
        if y0 < target <= y1:
            return x0 + (target - y0) / (y1 - y0) * (x1 - x0)
    return None


# ------------------------------------------------------------------------------------------------ classes


def rare_first(group: Group) -> list[str]:
    """The classes from rare to frequent, by the human boxes of a run on all labels, which are all there are.

    Without such a run by those of cycle 1, one run a seed: drawn at random, they show how rare a class is.
    """
    if group.full:
        counted = [group.full[0].cycles[0]]
    else:
        counted = list({run.seed: run.cycles[0] for run in group.finished}.values())
    names = counted[0]["human_per_class"] if counted else {}
    return sorted(names, key=lambda name: sum(record["human_per_class"][name] for record in counted))


def rarest(group: Group) -> list[str]:
    """The rarest third of the classes, at least one."""
    classes = rare_first(group)
    return classes[: max(1, round(len(classes) / 3))]


def mean_ap(classes: Sequence[str]) -> Value:
    """Reads the mean AP50 of some classes off a record, of those that have truth."""

    def read_off(record: Record) -> float:
        known = [ap for name in classes if (ap := record["per_class_ap50"][name]) is not None]
        return float(np.mean(known)) if known else NAN

    return read_off


def hit_rates(runs: Iterable[GridRun]) -> dict[str, float]:
    """Hits over looks of each class a box was taken for, all choosing cycles (all but the first) pooled.

    NaN where nothing was shown, as with image-level methods. The key ``""`` holds all classes together.
    """
    hits: dict[str, int] = {"": 0}
    looks: dict[str, int] = {"": 0}
    for record in (record for run in runs for record in run.cycles if record["cycle"] > 1):
        for name, shown in record["selected_per_class"].items():
            for key in (name, ""):
                hits[key] = hits.get(key, 0) + record["hits_per_class"][name]
                looks[key] = looks.get(key, 0) + shown
    return {name: hits[name] / looks[name] if looks[name] else NAN for name in looks}


# ------------------------------------------------------------------------------------------------ which method is what

REFERENCES = {
    "U": ("uncertainty", ()),
    "box random": ("random", ()),
    "image random": ("image_random", ()),
}
"""What the others are compared with: strategy, and the pseudo labels it must have (any, but rather none)."""

ABLATION = {
    "U": ("uncertainty", "none"),
    "U+CB": ("class_balanced", "none"),
    "+ HPL": ("class_balanced", "hard"),
    "+ THPL": ("class_balanced", "task_hard"),
    "+ TSPL": ("class_balanced", "soft"),
}
"""The rows of the paper's Table 1: strategy and pseudo labels."""

VOC_CLASSES = frozenset({
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
})  # fmt: skip

OF_THE_MACHINE = frozenset({
    "data", "seed", "device", "training.checkpoint_seconds", "scoring.batch_size", "scoring.shard_size",
})  # fmt: skip
"""Settings that do not change what a run measures but for chance."""

OF_OTHERS = frozenset({
    "selection.strategy", "pseudo.method",  # these two make the row
    "selection.image_entropy", "selection.coreset_points", "people.store", "people.overlap", "people.lease_seconds",
})  # fmt: skip
"""Settings that no row of Table 1 reads, and those that make the row."""


@cache
def paper_setting() -> dict[str, Any]:
    """All that a run must have to be set beside the paper's Table 1, whatever its row: dotted name -> value.

    It is the preset ``paper`` on RetinaNet, with every setting but those of the machine and of other strategies: a
    setting that is new matters until it is named there.
    """
    whole = config.resolve("paper", None, {"detector.name": "retinanet"}).model_dump(mode="json")
    return {name: value for name, value in config.flatten(whole) if name not in OF_THE_MACHINE | OF_OTHERS}


def _find(group: Group, strategy: str, pseudo: Sequence[str] = ()) -> str | None:
    """The method with this strategy and one of these kinds of pseudo labels, by its settings and not by its name.

    Of several the one without pseudo labels, then the one most like the rest of the grid, then the first.
    """
    fitting = []
    for name, runs in group.methods.items():
        run = next(iter(runs.values()))
        kind = run.setting("pseudo.method")
        if run.setting("selection.strategy") == strategy and (not pseudo or kind in pseudo):
            fitting.append((kind != "none", _unusual(group, run), len(fitting), name))
    return min(fitting)[-1] if fitting else None


def _unusual(group: Group, run: GridRun) -> int:
    """How many settings of a run are not those of most of the group's methods."""
    firsts = [next(iter(runs.values())) for runs in group.methods.values()]
    names = {name for one in firsts for name in one.settings} - {"selection.strategy", "pseudo.method"}
    usual = {name: Counter(repr(one.setting(name)) for one in firsts).most_common(1)[0][0] for name in names}
    return sum(repr(run.setting(name)) != value for name, value in usual.items())


def references(group: Group) -> dict[str, str]:
    """The methods the others are compared with, those of :data:`REFERENCES` that the grid has."""
    found = {label: _find(group, *wanted) for label, wanted in REFERENCES.items()}
    return {label: name for label, name in found.items() if name is not None}


def ablation(group: Group) -> dict[str, str]:
    """The rows of the paper's Table 1 that the grid has, and the method of each."""
    found = {row: _find(group, strategy, (pseudo,)) for row, (strategy, pseudo) in ABLATION.items()}
    return {row: name for row, name in found.items() if name is not None}


def is_papers(group: Group) -> bool:
    """Whether the rows of Table 1 that the group has were run in the paper's own setting: VOC0712 and its twenty
    classes, and every setting of :func:`paper_setting`."""
    runs = [run for name in ablation(group).values() for run in group.methods[name].values()]
    return (
        bool(runs)
        and Path(group.data).name == "voc0712"
        and list(group.budget) == paper_setting()["budget"]
        and all(_fits(run) for run in runs)
    )


def _fits(run: GridRun) -> bool:
    classes = set(run.cycles[-1]["per_class_ap50"])
    wanted = paper_setting().items()
    return classes == VOC_CLASSES and all(_plain(run.setting(name)) == value for name, value in wanted)


def _plain(value: Any) -> Any:
    """A value as it is written in a line."""
    return list(value) if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------------- what is compared


def measures(group: Group) -> dict[str, Values]:
    """The numbers that methods are compared by, each from 0 to 1 and the higher the better."""
    rare = mean_ap(rarest(group))
    return {
        "AP50": group.values(lambda run: ap50(run.cycles[-1])),
        "AP50, equal labels": at_equal_cost(group, "labels"),
        "area, labels": areas(group, "labels"),
        "area, looks": areas(group, "looks"),
        "rarest third": group.values(lambda run: rare(run.cycles[-1])),
    }


def ranked(group: Group) -> list[str]:
    """The methods by their mean final AP50, the best first."""
    height = {name: spread(ap50(run.cycles[-1]) for run in runs.values()).mean for name, runs in group.methods.items()}
    return sorted(height, key=lambda name: -height[name] if height[name] == height[name] else 1)


def several_seeds(group: Group) -> bool:
    """Whether there is a method with a second seed; deviations and intervals want one."""
    return any(len(runs) > 1 for runs in group.methods.values())


def signed(value: float) -> str:
    """``0.0214`` -> ``+0.021``, ``-0.003`` -> ``−0.003``, and ``0.000``."""
    text = f"{abs(value):.3f}"
    return f"{'' if float(text) == 0 else '+' if value > 0 else '−'}{text}"
