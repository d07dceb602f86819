"""A run for the report: the contents of its folder, and a few numbers derived from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rarebox import strategies
from rarebox.config import CostSettings, Section, Settings
from rarebox.core.files import damaged, read_json, real
from rarebox.errors import UserError
from rarebox.loop.metrics import CycleRecord, PerClass, lacks, with_seconds
from rarebox.loop.run_folder import RunFolder
from rarebox.settings_text import with_page

Problem = dict[str, str]
"""One entry of ``problems.json``: ``kind``, ``where``, ``what``."""


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """One run with at least one finished cycle. ``name`` distinguishes it from the other runs."""

    folder: RunFolder
    settings: Settings
    records: Sequence[CycleRecord]
    environment: Mapping[str, object]
    problems: Sequence[Problem]
    name: str

    @property
    def first(self) -> CycleRecord:
        return self.records[0]

    @property
    def last(self) -> CycleRecord:
        return self.records[-1]

    @property
    def choosing(self) -> Sequence[CycleRecord]:
        """The cycles in which a strategy chose: all but the first."""
        return self.records[1:]

    @property
    def cycles_left(self) -> int:
        return len(self.settings.budget) + 1 - len(self.records)

    @property
    def classes(self) -> list[str]:
        """The K class names in the order of their labels."""
        return list(self.last["human_per_class"])

    @property
    def rare_first(self) -> list[str]:
        """The classes from rare to frequent, by the boxes of the initial images, which were drawn at random."""
        return sorted(self.classes, key=self.first["human_per_class"].__getitem__)

    @property
    def rarest(self) -> list[str]:
        """The rarest third of the classes, at least one."""
        return self.rare_first[: max(1, round(len(self.classes) / 3))]

    def tail_ap(self, record: CycleRecord) -> float:
        """Mean AP50 of the rarest third, over the classes with ground truth; NaN if there are none."""
        known = [ap for name in self.rarest if (ap := record["per_class_ap50"][name]) is not None]
        return float(np.mean(known)) if known else float("nan")

    def summed(self, counts: PerClass) -> dict[str, int]:
        """A count per class, such as ``selected_per_class``, over all cycles in which a strategy chose."""
        return {name: sum(record[counts][name] for record in self.choosing) for name in self.classes}

    @property
    def asked(self) -> int:
        """The number of queried boxes."""
        return sum(self.summed("selected_per_class").values())

    @property
    def hits(self) -> int:
        """The queried boxes that held an object without a label."""
        return sum(self.summed("hits_per_class").values())

    @property
    def hit_rate(self) -> float:
        return self.hits / self.asked if self.asked else float("nan")

    @property
    def estimated(self) -> bool:
        """Whether the annotator's seconds of some cycle are estimated."""
        return any(record.get("seconds_estimated") for record in self.records)

    @property
    def seconds(self) -> dict[str, float]:
        """Time of each stage over all cycles."""
        stages = dict.fromkeys(stage for record in self.records for stage in record["seconds"])
        return {stage: sum(record["seconds"].get(stage, 0.0) for record in self.records) for stage in stages}


def read_runs(folders: Sequence[Path], cost: CostSettings | None = None) -> list[ReportedRun]:
    """The runs of some folders, each with a name. With ``cost``, their seconds follow from these costs.

    Raises UserError for a folder without a finished cycle.
    """
    if not folders:
        raise UserError("There is no run to report. Name the folder of at least one run.")
    runs = [_read(RunFolder(folder), cost) for folder in folders]
    names = _names(runs)
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read(folder: RunFolder, cost: CostSettings | None) -> ReportedRun:
    settings = folder.read_settings()
    records = folder.records()
    if not records:
        raise UserError(
            f"{folder.root} has no finished cycle yet. Wait for cycle 1, or repeat the command of the run: it resumes "
            "where it stopped."
        )
    if missing := lacks(records[-1]):
        raise damaged(folder.metrics, f"it lacks {', '.join(missing)}")
    problems = folder.root / "problems.json"
    return ReportedRun(
        folder,
        settings,
        with_seconds(records, cost or settings.cost, rescore=cost is not None),
        environment=read_json(folder.environment, dict) if folder.environment.exists() else {},
        problems=read_json(problems, list) if problems.exists() else [],
        name=real(folder.root).name,
    )


# ------------------------------------------------------------------------------------------------ settings


@dataclass(frozen=True)
class Setting:
    """One setting of a run by its dotted name; ``values`` holds one value for each run."""

    name: str
    description: str
    default: object
    values: tuple[object, ...]

    @property
    def changed(self) -> bool:
        return any(value != self.default for value in self.values)

    @property
    def differs(self) -> bool:
        return any(value != self.values[0] for value in self.values)


def settings_of(runs: Sequence[ReportedRun]) -> list[Setting]:
    """All settings of the runs, in the order of ``config.Settings``."""
    columns = [list(_walk(run.settings)) for run in runs]
    return [
        Setting(name, description, default, tuple(column[i][3] for column in columns))
        for i, (name, description, default, _) in enumerate(_walk(Settings()))
    ]


def _walk(section: Section, prefix: str = "") -> Iterator[tuple[str, str, object, object]]:
    """Dotted name, description, default and value of every setting; the defaults are those of the class."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, with_page(field.description or ""), field.default, value


def _names(runs: Sequence[ReportedRun]) -> list[str]:
    """A name for each run: the settings in which it differs, and its folder where they are not unique."""
    differing = [setting for setting in settings_of(runs) if setting.differs]
    names = [", ".join(_say(s.name, s.values[i]) for s in differing[:3]) for i in range(len(runs))]
    if len(set(names)) == len(runs) > 1:
        return names
    return [", ".join(filter(None, (name, run.name))) for name, run in zip(names, runs, strict=True)]


def _say(setting: str, value: object) -> str:
    if setting == "selection.strategy":
        return strategies.SHOWN_AS.get(str(value), str(value))
    if setting in ("detector.name", "detector.backbone"):
        return str(value)
    if setting == "pseudo.method":
        return "no pseudo labels" if value == "none" else f"{value} pseudo labels"
    if setting == "data":
        return Path(str(value)).name
    return f"{setting.rpartition('.')[2]} {value}"
