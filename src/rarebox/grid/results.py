"""The results of a grid: curves over seeds, differences paired by seed, areas, rare classes.

The input is ``results.jsonl``, one line a run. Only runs of one :class:`Group` are compared: same data, same detector,
same budgets. A number that is not known is NaN here and a dash in a table; a standard deviation is the sample's
(divisor n - 1), and unknown with one seed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple, cast

import numpy as np
from pydantic import AliasChoices, BaseModel, Field, ValidationError

from rarebox import strategies
from rarebox.config import CostSettings, as_written_before, check, current_unit
from rarebox.core.text import read_text
from rarebox.errors import UserError
from rarebox.grid.statistics import NAN, spread
from rarebox.loop.metrics import METERS, CycleRecord, Meter, as_record, paid, with_seconds

RESULTS = "results.jsonl"
FULL = "full"
"""The method name of a run that trains on all labels: the ceiling. It has a single cycle."""

DASH = "–"

_BEFORE = check(as_written_before({}))
"""The settings of a run whose line holds none."""

Values = dict[str, dict[int, float]]
"""One number of each run: method -> seed -> value."""


@dataclass(frozen=True, eq=False)
class GridRun:
    """One line of the results. ``reason`` says why the run failed; None if it is done."""

    data: str
    detector: str
    method: str
    seed: int
    budget: tuple[int, ...]
    settings: Mapping[str, object]
    cycles: Sequence[CycleRecord]
    reason: str | None = None

    def setting(self, name: str) -> object:
        """Return a setting by its dotted name. If the line lacks it: the value of the version that wrote it."""
        return self.settings[name] if name in self.settings else attrgetter(name)(_BEFORE)

    def curve(self, meter: Meter, value: "Value") -> tuple[np.ndarray, np.ndarray]:
        """The paid labels (reviews, seconds) and the value after each cycle, without cycles of which one is unknown."""
        points = [(paid(record, meter), value(record)) for record in self.cycles]
        known = [(x, y) for x, y in points if x == x and y == y]
        x, y = np.array(known, dtype=float).reshape(-1, 2).T
        return x, y

    @property
    def estimated(self) -> bool:
        """Whether the seconds of some cycle are estimated."""
        return any(record.get("seconds_estimated") for record in self.cycles)


Value = Callable[[CycleRecord], float]
"""A number from a record, such as :func:`ap50`."""


def ap50(record: CycleRecord) -> float:
    """AP50 by area; NaN where there was no truth to measure on."""
    return NAN if record["ap50"] is None else record["ap50"]


def ap50_11(record: CycleRecord) -> float:
    """AP50 by 11 points, as VOC 2007 and the paper count."""
    return NAN if record["ap50_11"] is None else record["ap50_11"]


@dataclass(frozen=True, eq=False)
class Group:
    """The runs that may be compared: same data, detector and budgets. Its ceiling may come from other budgets."""

    data: str
    detector: str
    budget: tuple[int, ...]
    unit: Meter
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
        """A number for every finished run."""
        return {name: {seed: value(run) for seed, run in runs.items()} for name, runs in self.methods.items()}


def is_grid(path: Path) -> bool:
    """Whether a path is the outcome of a grid, or the results file of one, rather than a run."""
    return path.suffix == ".jsonl" or ((path / RESULTS).exists() and not (path / "settings.yaml").exists())


def read(paths: Sequence[Path], cost: CostSettings | None = None) -> list[Group]:
    """Read the groups of one or more grids, in the order of the files. The last line about a run counts.

    With ``cost``, the seconds of all runs follow from these costs. Lines of earlier versions get estimated seconds.
    Raises UserError with the file if it is missing or empty, or has a line that is not a run.
    """
    runs: dict[object, GridRun] = {}
    for file in (path / RESULTS if path.is_dir() else path for path in paths):
        for run in _read_file(file, cost):
            runs[run.data, run.detector, run.method, run.seed, run.budget, _unit(run)] = run
    return _grouped(list(runs.values()))


def _grouped(runs: Sequence[GridRun]) -> list[Group]:
    """Group the runs. A ceiling joins every group of its data and detector, or forms one if there is none."""
    compared = [run for run in runs if run.method != FULL]
    places = {(run.data, run.detector) for run in compared}
    lonely = [run for run in runs if run.method == FULL and (run.data, run.detector) not in places]
    keys: dict[tuple[str, str, tuple[int, ...], Meter], None] = dict.fromkeys(
        (run.data, run.detector, run.budget, _unit(run)) for run in [*compared, *lonely]
    )
    for data in {run.data for run in runs}:
        named = {tuple(cycle["per_class_ap50"]) for run in runs if run.data == data for cycle in run.cycles}
        if len(named) > 1:
            raise UserError(
                f"the runs on {data} do not have the same classes, so they use different data sets. Compare them "
                "separately, or name the data sets differently"
            )
    return [
        Group(
            data,
            detector,
            budget,
            unit,
            [
                run
                for run in runs
                if (run.data, run.detector) == (data, detector)
                and (run.method == FULL or (run.budget, _unit(run)) == (budget, unit))
            ],
        )
        for data, detector, budget, unit in keys
    ]


def _unit(run: GridRun) -> Meter:
    return cast("Meter", run.setting("budget_unit"))


def _read_file(file: Path, cost: CostSettings | None) -> list[GridRun]:
    try:
        lines = read_text(file).splitlines()
    except OSError as error:
        raise UserError(
            f"{file} cannot be read ({error.strerror}). Name the folder of a grid, or its {RESULTS}"
        ) from error
    runs = [_read_line(file, n, line, cost) for n, line in enumerate(lines, start=1) if line.strip()]
    if not runs:
        raise UserError(f"{file} holds no run yet. Wait for the grid's first run")
    return runs


class _Cycle(BaseModel):
    """The fields of a record that are checked."""

    cycle: int
    labels: float
    reviews: float = Field(validation_alias=AliasChoices("reviews", "looks"))
    ap50: float | None
    ap50_11: float | None
    per_class_ap50: dict[str, float | None]
    human_per_class: dict[str, float]
    selected_per_class: dict[str, float]
    hits_per_class: dict[str, float]


class _Line(BaseModel):
    """The fields of a line that are checked."""

    data: str
    detector: str
    method: str
    seed: int
    budget: tuple[int, ...]
    status: Literal["done", "failed"]
    settings: dict[str, object]
    reason: str | None = None
    cycles: list[_Cycle]


def _read_line(file: Path, number: int, line: str, cost: CostSettings | None) -> GridRun:
    try:
        told = _Line.model_validate_json(line)
        if told.status == "done" and not told.cycles:
            raise ValueError("a run that is done has cycles")
        if (unit := current_unit(told.settings.get("budget_unit", "labels"))) not in METERS:
            raise ValueError(f"budget_unit is {unit!r}, not labels, reviews or seconds")
        cycles = [as_record(cycle) for cycle in json.loads(line)["cycles"]]
        cycles = with_seconds(cycles, cost or CostSettings(), rescore=cost is not None)
    except ValueError as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            error = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}".removeprefix(": ")
        raise UserError(f"{file}, line {number} is not a run of a grid ({error}). Fix or delete the line") from None
    own_name = told.method == told.settings.get("selection.strategy")
    method = strategies.SHOWN_AS.get(told.method, told.method) if own_name else told.method
    return GridRun(
        told.data,
        told.detector,
        method,
        told.seed,
        told.budget,
        {**told.settings, "budget_unit": unit},
        cycles,
        reason=None if told.status == "done" else told.reason or "no reason was given",
    )


class Short(NamedTuple):
    """A batch that ended short of its budget: nothing was left to ask about, or (in older runs) no image fitted."""

    cycle: int
    spent: float
    budget: int


def short(cycles: Sequence[CycleRecord], budget: Sequence[int], unit: Meter) -> list[Short]:
    """The batches of a run that ended short; ``unit`` says what was to be spent."""
    batches = [
        Short(after["cycle"], paid(after, unit) - paid(before, unit), wanted)
        for (before, after), wanted in zip(pairwise(cycles), budget, strict=False)  # a run may have failed midway
    ]
    return [batch for batch in batches if batch.spent < batch.budget]


def signed(value: float) -> str:
    """``0.0214`` -> ``+0.021``, ``-0.003`` -> ``−0.003``, and ``0.000``."""
    text = f"{abs(value):.3f}"
    return f"{'' if float(text) == 0 else '+' if value > 0 else '−'}{text}"
