"""The rows of figures with one bar or dot for each class."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rarebox.report.drawing import LIGHT, PALETTE, floats
from rarebox.report.reading import ReportedRun
from rarebox.report.wording import short

MOST_ROWS = 40
LONGEST_NAME = 22


@dataclass(frozen=True)
class Row:
    """One bar: a class or, if there are very many, the mean of those in the middle."""

    label: str
    members: tuple[str, ...]


def rows_of(run: ReportedRun) -> list[Row]:
    """The classes from rare to frequent; of more than 40 the rarest, the most frequent and one row for the others."""
    order = run.rare_first
    rows = [Row(short(name, LONGEST_NAME), (name,)) for name in order]
    if len(rows) <= MOST_ROWS:
        return rows
    top, bottom = MOST_ROWS // 2, len(rows) - (MOST_ROWS // 2 - 1)
    return [*rows[:top], Row(f"mean of {bottom - top} others", tuple(order[top:bottom])), *rows[bottom:]]


def means(values: Mapping[str, float | None], rows: Sequence[Row]) -> list[float]:
    return [mean(values, row) for row in rows]


def mean(values: Mapping[str, float | None], row: Row) -> float:
    """The value of the class; for several classes the mean of the known values, NaN if there are none."""
    known = floats([values[name] for name in row.members])
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def colours(run: ReportedRun, rows: Sequence[Row]) -> list[str]:
    """The colour of each class. It depends on the label, so it is the same in all figures and cycles."""
    label = {name: i for i, name in enumerate(run.classes)}
    return [PALETTE[label[row.members[0]] % 8] if len(row.members) == 1 else LIGHT["muted"] for row in rows]


def spoken(rows: Sequence[Row], values: Sequence[float], say: Callable[[float], str]) -> str:
    return "; ".join(f"{row.label} {say(value)}" for row, value in zip(rows, values, strict=True))
