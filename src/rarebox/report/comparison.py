"""The figures that compare several runs."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from rarebox.loop.metrics import METERS, Meter, paid
from rarebox.report.drawing import MARKERS, PALETTE, ROW, Panel, canvas, curve_axes, floats, label_below, row_axes
from rarebox.report.reading import ReportedRun
from rarebox.report.rows import Row, mean, rows_of, spoken
from rarebox.report.wording import count, number, short


def of_runs(runs: Sequence[ReportedRun]) -> dict[str, list[Panel]]:
    """Panels that each show all runs, by section of the page."""
    learning = [_curves(runs, meter, which) for which in ("all classes", "rarest third") for meter in METERS]
    same_classes = len({tuple(run.classes) for run in runs}) == 1
    return {"learning": learning, "classes": _compared_classes(runs) if same_classes else []}


def _compared_classes(runs: Sequence[ReportedRun]) -> list[Panel]:
    ap = _dots(
        runs,
        lambda run, row: mean(run.last["per_class_ap50"], row),
        number,
        "compare_ap_per_class",
        "AP50 of each class, rare to frequent",
        "AP50 of each run's last cycle",
        "Which run detects the rare classes (top) best?",
    )
    reviews = _dots(
        runs,
        lambda run, row: mean(run.summed("selected_per_class"), row),
        count,
        "compare_reviews_per_class",
        "Queries of each class",
        "queried boxes by predicted class",
        "Which run asks more about the rare classes (top)? It can ask only about classes that its detector predicts.",
    )
    return [ap, reviews]


def _curves(runs: Sequence[ReportedRun], meter: Meter, which: str) -> Panel:
    figure, axes = canvas(225 + 17 * len(runs))
    texts: list[str] = []
    for i, run in enumerate(runs):
        y = [record["ap50"] if which == "all classes" else run.tail_ap(record) for record in run.records]
        axes.plot(
            [paid(record, meter) for record in run.records], floats(y), label=short(run.name, 56), **_line_style(i)
        )
        texts.append(f"{run.name}: {', '.join(map(number, y))}")
    curve_axes(axes, meter)
    figure.legend(loc="outside upper left", ncols=1, labelspacing=0.25)
    look_for = f"At the same number of {meter}, the higher curve is the better run."
    if which != "all classes":
        look_for += " The mean of the rarest third of the classes."
    stem = "ap50" if which == "all classes" else "tail"
    title = f"AP50 of {'all classes' if which == 'all classes' else 'the rarest third'} against {meter}"
    return Panel(f"compare_{stem}_{meter}", title, look_for, f"{title}. {'; '.join(texts)}", figure)


def _dots(
    runs: Sequence[ReportedRun],
    value: Callable[[ReportedRun, Row], float],
    say: Callable[[float], str],
    name: str,
    title: str,
    label: str,
    look_for: str,
) -> Panel:
    """A row for each class, with a dot for each run."""
    rows = rows_of(runs[0])
    figure, axes = canvas(60 + ROW * len(rows) + 17 * len(runs))
    texts: list[str] = []
    for i, run in enumerate(runs):
        values = [value(run, row) for row in rows]
        axes.plot(values, range(len(rows)), label=short(run.name, 56), **{**_line_style(i), "linestyle": "none"})
        texts.append(f"{run.name}: {spoken(rows, values, say)}")
    row_axes(axes, [row.label for row in rows])
    axes.grid(axis="y", visible=True)
    axes.margins(x=0.08)
    label_below(axes, label)
    figure.legend(loc="outside upper left", ncols=1, labelspacing=0.25)
    return Panel(name, title, look_for, f"{title}. {'. '.join(texts)}", figure)


class LineStyle(TypedDict):
    color: str
    marker: str
    linestyle: str


def _line_style(i: int) -> LineStyle:
    lines = ("-", "--", "-.", ":")
    return {"color": PALETTE[i % 8], "marker": MARKERS[i % 8], "linestyle": lines[i % 4]}
