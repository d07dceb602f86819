"""The tables of a comparison, for the page and as Markdown. Their cells are text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rarebox.grid.measures import curve, hit_rates, labels_to_reach, mean_ap, measures, ranked, rarest, several_seeds
from rarebox.grid.paper import ablation, is_papers, references
from rarebox.grid.results import DASH, Group, Values, ap50, ap50_11, short, signed
from rarebox.grid.statistics import CAUTION, ENOUGH_SEEDS, Difference, Spread, paired, spread
from rarebox.loop.metrics import METERS, paid

PAPER_TABLE_1 = {
    "U": ((57.13, 1.03), (64.26, 3.29), (72.54, 0.20)),
    "U+CB": ((57.76, 1.07), (64.93, 2.14), (73.25, 0.78)),
    "+ HPL": ((57.72, 0.79), (65.00, 1.22), (73.31, 0.63)),
    "+ THPL": ((58.06, 0.49), (65.21, 0.42), (73.34, 0.19)),
    "+ TSPL": ((61.90, 0.88), (67.92, 1.87), (73.56, 0.32)),
}
"""Mean and standard deviation of three runs after batches 2 to 4 (cycles 2 to 4), in per cent."""


ESTIMATED = (
    "≈: seconds estimated from labels, reviews and hits, because the run is of a version that did not count them."
)


@dataclass(frozen=True)
class Table:
    """A table whose cells are text already; the first column names the row."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def tables(group: Group) -> list[Table]:
    """All tables of a group: the methods, short batches, the differences, Table 1. None where no run has finished."""
    if not group.methods:
        return []
    found = measures(group)
    by = [_differences(group, name, values) for name, values in found.items()] if references(group) else []
    return [_methods(group, found), *_short(group), *(table for table in by if table.rows), *_ablation(group)]


def _methods(group: Group, found: Mapping[str, Values]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name in ranked(group):
        runs = group.methods[name].values()
        points = curve(runs)
        spent = [_count(spread(paid(run.cycles[-1], meter) for run in runs).mean) for meter in METERS]
        spent[-1] = f"{'≈ ' if any(run.estimated for run in runs) else ''}{spent[-1]}"
        reach = [labels_to_reach(points, part * group.ceiling) for part in (0.90, 0.95) if group.full]
        rows.append(
            (
                name,
                str(len(runs)),
                *(_spread(spread(values[name].values())) for values in found.values()),
                _per_cent(hit_rates(runs)[""]),
                *spent,
                *map(_count, reach),
            )
        )
    if group.full:
        values = (ap50, mean_ap(rarest(group)))
        height, rare = (_spread(spread(value(run.cycles[-1]) for run in group.full)) for value in values)
        labels = spread(run.cycles[-1]["labels"] for run in group.full).mean
        areas = (DASH,) * (len(METERS) + 1)
        rest = (_count(labels), *(DASH,) * (len(METERS) + 1))
        rows.append(("all labels", str(len(group.full)), height, *areas, rare, DASH, *rest))
    counted = "a run on all labels" if group.full else "the first images"
    over = "Mean ± standard deviation over seeds" if several_seeds(group) else "One seed"
    note = (
        f"{over}, after the last cycle. Equal labels: the AP50 curve at the most labels that all methods of a seed "
        "have paid. Area: its mean height over the range of labels (reviews, seconds) that all methods of a seed have "
        "paid. "
        f"Rarest third: {', '.join(rarest(group))}, by the boxes of {counted}. Hit rate: boxes shown that held "
        "something new."
    )
    columns = (
        "method",
        "seeds",
        *found,
        "hit rate",
        *METERS,
    )
    if any(run.estimated for run in group.finished):
        note += f" {ESTIMATED}"
    if group.full:
        columns += ("to 90\u00a0%", "to 95\u00a0%")
        note += " The last two columns: labels at which the mean curve reaches that fraction of the AP50 of all labels."
    return Table("All methods", note, columns, tuple(rows))


def _short(group: Group) -> list[Table]:
    rows: list[tuple[str, ...]] = []
    for name in ranked(group):
        runs = group.methods[name]
        found = [(batch, seed) for seed, run in runs.items() for batch in short(run.cycles, group.budget, group.unit)]
        if found:
            least, seed = min(found, key=lambda one: one[0].spent / one[0].budget)
            where = f"{_count(least.spent)} of {_count(least.budget)} (seed {seed}, cycle {least.cycle})"
            rows.append((name, f"{len(found)} of {len(runs) * len(group.budget)}", where))
    note = (
        "Nothing was left to ask about; or, in runs of earlier versions, no remaining image fitted the rest of the "
        f"budget. The budget counts {group.unit}."
    )
    columns = ("method", "batches", "the shortest")
    return [Table("Batches that ended short of their budget", note, columns, tuple(rows))] if rows else []


def _differences(group: Group, measure: str, values: Values) -> Table:
    others = references(group)

    def cell(name: str, other: str) -> str:
        return DASH if name == other else _difference(paired(values[name], values[other]))

    rows = [(name, *(cell(name, other) for other in others.values())) for name in ranked(group)]
    rows = [row for row in rows if set(row[1:]) != {DASH}]
    interval = f"; in brackets the paired 95 % t interval, * where {ENOUGH_SEEDS} seeds or more exclude 0"
    note = f"Paired by seed: {_common_seeds(values, others)}{interval if several_seeds(group) else ''}."
    columns = ("method", *(f"minus {label}" + f" ({name})" * (name != label) for label, name in others.items()))
    return Table(f"Differences: {measure}", note, columns, tuple(rows))


def _common_seeds(values: Values, others: Mapping[str, str]) -> str:
    """The number of common seeds behind the differences of a table."""
    numbers = {paired(values[name], values[other]).n for name in values for other in others.values() if name != other}
    least, most = min(numbers, default=0), max(numbers, default=0)
    return f"n = {most}" if least == most else f"n = {least} to {most}"


def _ablation(group: Group) -> list[Table]:
    rows, papers = ablation(group), is_papers(group)
    if not rows:
        return []
    value = ap50_11 if papers else ap50
    lines: list[tuple[str, str, dict[int, str]]] = []
    batches: dict[int, list[float]] = {}
    for row, name in rows.items():
        points = [point for point in curve(group.methods[name].values(), value=value) if point.cycle > 1]
        ours = {point.cycle: _bracketed(point.value.mean * 100, point.value.sd * 100) for point in points}
        for point in points:
            batches.setdefault(point.cycle, []).append(point.paid)
        lines.append((row, name, ours))
    header = [f"batch {cycle} ({_count(float(np.mean(paid)))} labels)" for cycle, paid in sorted(batches.items())]
    cells = [
        (row, *_marks(row), *_beside(row, [ours.get(c, DASH) for c in sorted(batches)], papers), name)
        for row, name, ours in lines
    ]
    columns = ("", *MARKS, *_with_papers(header, papers), "method")
    how = "11-point AP50" if papers else "AP50"
    note = f"The paper's Table 1: {how} in per cent{', mean (standard deviation over seeds)' * several_seeds(group)}."
    if papers:
        note += " Beside it the paper's own numbers, in the same setting."
    return [Table("Ablation", note, columns, tuple(cells))]


MARKS = ("U", "CB", "HPL", "THPL", "TSPL")


def _marks(row: str) -> list[str]:
    """The ticks of the paper's table; every row has U, every one but the first CB."""
    return ["✓" if mark == "U" or (mark == "CB" and row != "U") or row == f"+ {mark}" else "" for mark in MARKS]


def _with_papers(header: Sequence[str], papers: bool) -> list[str]:
    return [text for batch in header for text in ((batch, "the paper") if papers else (batch,))]


def _beside(row: str, cells: Sequence[str], papers: bool) -> list[str]:
    if not papers:
        return list(cells)
    theirs = (_bracketed(*numbers) for numbers in PAPER_TABLE_1[row])
    return [text for pair in zip(cells, theirs, strict=False) for text in pair]


def markdown(groups: Sequence[Group], level: int = 2) -> str:
    """All tables as Markdown, with headings from a level on, for pages such as ``paper/README.md``."""
    parts: list[str] = []
    for group in groups:
        parts.append(f"{'#' * level} {group.title}")
        parts += [_markdown(table, level + 1) for table in tables(group)]
        if group.failed:
            parts.append("Failed runs:")
            parts.append(
                "\n".join(f"- {run.method}, seed {run.seed}: {_flat(run.reason or '')}" for run in group.failed)
            )
    parts += [caution(groups)] if caution(groups) else []
    return "\n\n".join(parts) + "\n"


def caution(groups: Sequence[Group]) -> str:
    """The caution about the intervals, if there are any."""
    return CAUTION if any(map(several_seeds, groups)) else ""


def _markdown(table: Table, level: int) -> str:
    line = "|" + "---|" * len(table.columns)
    rows = "\n".join(f"| {' | '.join(map(_flat, row))} |" for row in (table.columns, *table.rows))
    head, _, body = rows.partition("\n")
    return f"{'#' * level} {table.title}\n\n{table.note}\n\n{head}\n{line}\n{body}"


def _flat(text: str) -> str:
    """Text for one cell: no line break, no bar."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def _spread(value: Spread) -> str:
    if value.mean != value.mean:
        return DASH
    return f"{value.mean:.3f} ± {value.sd:.3f}" if value.sd == value.sd else f"{value.mean:.3f}"


def _bracketed(mean: float, sd: float) -> str:
    if mean != mean:
        return DASH
    return f"{mean:.2f} ({sd:.2f})" if sd == sd else f"{mean:.2f}"


def _difference(value: Difference) -> str:
    if value.mean != value.mean:
        return DASH
    if value.low != value.low:
        return signed(value.mean)
    return f"{signed(value.mean)} ({signed(value.low)} to {signed(value.high)}){' *' * abs(value.sign)}"


def _per_cent(value: float) -> str:
    return f"{value:.0%}".replace("%", "\u00a0%") if value == value else DASH


def _count(value: float | None) -> str:
    return DASH if value is None or value != value else f"{value:,.0f}".replace(",", "\u202f")
