"""The figures of the report, drawn once in the light theme and written three times: SVG file, PNG file, inline SVG.

Every figure is one narrow panel, so that a page can set two side by side on a desk and one above the other on a phone.
In the inline SVG each colour of the theme becomes a CSS variable, so the page turns it dark.
"""

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rarebox.core.files import write_bytes, write_text
from rarebox.evaluation import imbalance_factor
from rarebox.loop.metrics import CycleRecord
from rarebox.report.reading import ReportedRun
from rarebox.report.words import count, factor, is_number, number, plural, short

LIGHT = {
    "card": "#ffffff",
    "ink": "#1b1f27",
    "muted": "#596170",
    "line": "#dde1e7",
    "quiet": "#b9c1cd",
    "c0": "#0a5a8d",
    "c1": "#f25e76",
    "c2": "#1699a5",
    "c3": "#897627",
    "c4": "#821e00",
    "c5": "#8d980d",
    "c6": "#004b47",
    "c7": "#865638",
}
"""Colours by their role. c0 to c7 stay apart for the colour-blind too, and each has 3 : 1 against the card."""

DARK = {
    "card": "#1b1e24",
    "ink": "#eceef2",
    "muted": "#a7afbc",
    "line": "#343a44",
    "quiet": "#566070",
    "c0": "#47adff",
    "c1": "#fec7cb",
    "c2": "#22e5f7",
    "c3": "#d8c06e",
    "c4": "#fb693a",
    "c5": "#d2de40",
    "c6": "#42a59f",
    "c7": "#dca482",
}

PALETTE = tuple(LIGHT[f"c{i}"] for i in range(8))
MARKERS = "osD^vPX*"

STYLE = {
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "figure.facecolor": LIGHT["card"],
    "axes.facecolor": "none",
    "axes.edgecolor": LIGHT["line"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["line"],
    "ytick.color": LIGHT["line"],
    "xtick.labelcolor": LIGHT["muted"],
    "ytick.labelcolor": LIGHT["ink"],
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "lines.markersize": 7,
    "svg.fonttype": "none",
}

WIDTH = 390  # points; the page shows a figure a little larger than this on a desk, a little smaller on a phone
ROW = 23  # points for one class
MOST_ROWS = 40
LONGEST_NAME = 22


@dataclass(frozen=True, eq=False)
class Panel:
    """A figure with its title, one sentence on what to look for, and a text for those who cannot see it.

    ``name`` is the stem of its files; ``svg`` the inline form, once it is published.
    """

    name: str
    title: str
    look_for: str
    alt: str
    figure: Figure
    svg: str = ""


@contextmanager
def style() -> Iterator[None]:
    """The report's look while figures are made and published; letters that no font has become boxes, silently."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():  # type: ignore[arg-type]
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# ------------------------------------------------------------------------------------------- one run


def of_run(run: ReportedRun, uncertain: ReportedRun | None = None) -> dict[str, list[Panel]]:
    """All panels of one run, by section of the page. ``uncertain`` is the run by plain uncertainty beside it."""
    return {
        "learning": [_learning(run, "labels"), _learning(run, "reviews")],
        "classes": [_ap_per_class(run), _reviews_per_class(run)],
        "balance": _balance(run, uncertain),
        "time": [_time(run)],
    }


def _learning(run: ReportedRun, meter: str) -> Panel:
    figure, axes = _canvas(240)
    x = [record[meter] for record in run.records]
    lines = {
        "all classes": [record["ap50"] for record in run.records],
        f"rarest third ({len(run.rarest)})": [run.tail_ap(record) for record in run.records],
    }
    for i, (name, y) in enumerate(lines.items()):
        axes.plot(x, _floats(y), marker=MARKERS[i], color=PALETTE[i], linestyle=("-", "--")[i], label=name)
        for point in zip(x, y, strict=True):
            if is_number(point[1]):
                axes.annotate(
                    number(point[1]),
                    point,
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    color=LIGHT["muted"],
                    fontsize=10,
                )
    _curve_axes(axes, meter)
    figure.legend(loc="outside upper left", ncols=2)
    look_for = {
        "labels": "A line that climbs steeply: few labels bought much. A flat one: more of the same will not help.",
        "reviews": "The same against every box that a person had to look at, whether there was an object or not.",
    }[meter]
    points = "; ".join(f"{number(y)} at {count(n)}" for n, y in zip(x, lines["all classes"], strict=True))
    return Panel(f"ap50_{meter}", f"AP50 against {meter}", look_for, f"AP50 by {meter}: {points}", figure)


def _ap_per_class(run: ReportedRun) -> Panel:
    rows = _rows(run)
    figure, axes = _canvas(62 + ROW * len(rows))
    human = run.last["human_per_class"]
    now, before = (_means(record["per_class_ap50"], rows) for record in (run.last, run.first))
    axes.barh(range(len(rows)), np.nan_to_num(now), color=_colours(run, rows), height=0.66)
    if len(run.records) > 1:
        axes.scatter(
            before, range(len(rows)), marker="|", s=150, linewidths=2, color=LIGHT["ink"], label="after cycle 1"
        )
        figure.legend(loc="outside upper left")
    ends = np.nan_to_num(np.fmax(now, before))
    _row_axes(axes, [f"{row.label} · {count(_mean(human, row))}" for row in rows])
    _values(axes, ends, [number(value) for value in now])
    _below(axes, "AP50 of the last cycle")
    alt = "AP50 of each class, rare to frequent: " + _spoken(rows, now, number)
    return Panel(
        "ap_per_class",
        "AP50 of each class, rare to frequent",
        "The upper bars: do the rare classes catch up with the frequent ones? Beside each name its human boxes.",
        alt,
        figure,
    )


def _reviews_per_class(run: ReportedRun) -> Panel:
    rows = _rows(run)
    figure, axes = _canvas(62 + ROW * len(rows))
    asked, hits = (_means(run.summed(name), rows) for name in ("selected_per_class", "hits_per_class"))
    if any(asked):
        axes.barh(range(len(rows)), asked, color=LIGHT["quiet"], height=0.66, label="asked about")
        axes.barh(range(len(rows)), hits, color=_colours(run, rows), height=0.66)
        figure.legend(loc="outside upper left")
        _row_axes(axes, [row.label for row in rows])
        _values(axes, asked, [f"{count(h)} of {count(a)}" if a else "0" for h, a in zip(hits, asked, strict=True)])
        _below(axes, "boxes by the class they were taken for; in colour: held an object")
    else:
        _nothing(axes, "no box has been selected yet")
    said = [f"{count(h)} of {count(a)}" for h, a in zip(hits, asked, strict=True)]
    alt = "Objects found among the boxes asked about: " + "; ".join(
        f"{row.label} {text}" for row, text in zip(rows, said, strict=True)
    )
    return Panel(
        "reviews_per_class",
        "Who was asked about, and how often it paid",
        "Long bars at the top: the rare classes got the attention. Much grey: the detector sees ghosts of that class.",
        alt,
        figure,
    )


def _balance(run: ReportedRun, uncertain: ReportedRun | None) -> list[Panel]:
    """The paper's Fig. 1 (a) to (d), p(l), and what was asked, of the first cycle with a selection.

    (c) are the labels that the run by plain uncertainty got, if there is one; (d) those of this run, if it is another.
    """
    first = f"of {plural(run.first['images_full'], 'image')}"
    panels = [
        _counts(
            run,
            run.first,
            "human_per_class",
            "fig1_a",
            "(a) The first labels",
            f"human boxes {first}",
            "The long tail as it comes: these images were drawn at random.",
        )
    ]
    if not run.choosing:
        return panels
    record = run.choosing[0]
    cycle = f"in cycle {record['cycle']}"
    if "sure_per_class" in record:  # records of earlier versions have no such counts
        panels.append(
            _counts(
                run,
                record,
                "sure_per_class",
                "fig1_b",
                "(b) The sure detections",
                f"detections in the pool with a score of {run.settings.pseudo.class_high} or more",
                "Usually more uneven than (a): the detector is sure of what it has seen often. p(l) is read off these.",
            )
        )
    if uncertain and uncertain.choosing:
        panels.append(
            _counts(
                run,
                uncertain.choosing[0],
                "labels_per_class",
                "fig1_c",
                "(c) What plain uncertainty brought",
                f"labels {cycle} of “{short(uncertain.name, 40)}”, by their true class",
                "Ranked by uncertainty alone, which tends to ask for what is frequent anyway.",
            )
        )
    if run is not uncertain:
        panels.append(
            _counts(
                run,
                record,
                "labels_per_class",
                "fig1_d",
                "(d) What the answers brought",
                f"labels {cycle}, by their true class",
                "A more even picture than (c) is what class-balanced sampling is for.",
            )
        )
    return [
        *panels,
        _counts(
            run,
            record,
            "class_frequency",
            "class_frequency",
            "p(l), as the strategy saw it",
            "share of the sure detections",
            "A class with a short bar here is favoured by class-balanced sampling.",
            say=lambda value: number(value, 3),
        ),
        _counts(
            run,
            record,
            "selected_per_class",
            "asked",
            "What was asked",
            f"boxes, by the class they were taken for, {cycle}",
            "Compare with the labels: where the detector mistakes one class for another, its labels land elsewhere.",
        ),
        _counts(
            run,
            record,
            "uncertainty_would_select",
            "uncertainty_would_ask",
            "What plain uncertainty would ask",
            f"candidates, by the class they were taken for, {cycle}",
            "As many boxes as were asked about, ranked by uncertainty alone.",
        ),
    ]


def _counts(
    run: ReportedRun,
    record: CycleRecord,
    key: str,
    name: str,
    title: str,
    label: str,
    look_for: str,
    say: Callable[[float], str] = count,
) -> Panel:
    """Bars of one count per class, with its imbalance factor in the sentence below."""
    rows = _rows(run)
    figure, axes = _canvas(44 + ROW * len(rows))
    values = _means(record[key], rows)
    if any(values):
        axes.barh(range(len(rows)), values, color=_colours(run, rows), height=0.66)
        _row_axes(axes, [row.label for row in rows])
        _values(axes, values, [say(value) for value in values])
        _below(axes, label)
    else:
        _nothing(axes, "none")
    if any(values) and key != "class_frequency":
        look_for += f" {_imbalance(list(record[key].values()))}"
    return Panel(name, title, look_for, f"{title}: {_spoken(rows, values, say)}", figure)


def _imbalance(counts: Sequence[int]) -> str:
    none = sum(not n for n in counts)
    without = f", with {plural(none, 'class')} that {'has' if none == 1 else 'have'} none" if none else ""
    return f"Imbalance factor {factor(imbalance_factor(counts))}{without}."


def _time(run: ReportedRun) -> Panel:
    figure, axes = _canvas(74 + 26 * len(run.records))
    left = np.zeros(len(run.records))
    for i, stage in enumerate(run.seconds):
        minutes = np.array([record["seconds"].get(stage, 0.0) for record in run.records]) / 60
        axes.barh(
            range(len(run.records)),
            minutes,
            left=left,
            height=0.66,
            label=stage,
            color=PALETTE[i % 8],
            edgecolor=LIGHT["card"],
            linewidth=1,
        )
        left = left + minutes
    _row_axes(axes, [f"cycle {record['cycle']}" for record in run.records])
    _below(axes, "minutes")
    if run.seconds:
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.2)
    alt = "Seconds of each stage in all: " + "; ".join(f"{name} {value:.0f}" for name, value in run.seconds.items())
    return Panel("time", "Where the time went", "The longest piece is the one worth making faster.", alt, figure)


# ------------------------------------------------------------------------------------------- several runs


def of_comparison(runs: Sequence[ReportedRun]) -> dict[str, list[Panel]]:
    """Panels with all runs in each, by section of the page."""
    learning = [
        _curves(runs, meter, which) for which in ("all classes", "rarest third") for meter in ("labels", "reviews")
    ]
    same_classes = len({tuple(run.classes) for run in runs}) == 1
    return {"learning": learning, "classes": _compared_classes(runs) if same_classes else []}


def _compared_classes(runs: Sequence[ReportedRun]) -> list[Panel]:
    ap = _dots(
        runs,
        lambda run, row: _mean(run.last["per_class_ap50"], row),
        number,
        "compare_ap_per_class",
        "AP50 of each class, rare to frequent",
        "AP50 of each run's last cycle",
        "The upper rows: which run serves the rare classes best?",
    )
    reviews = _dots(
        runs,
        lambda run, row: _mean(run.summed("selected_per_class"), row),
        count,
        "compare_reviews_per_class",
        "Who was asked about",
        "boxes, by the class they were taken for",
        "A class-balanced run lies to the right in the upper rows, and to the left in the lower ones.",
    )
    return [ap, reviews]


def _curves(runs: Sequence[ReportedRun], meter: str, which: str) -> Panel:
    figure, axes = _canvas(225 + 17 * len(runs))
    said = []
    for i, run in enumerate(runs):
        y = [record["ap50"] if which == "all classes" else run.tail_ap(record) for record in run.records]
        axes.plot([record[meter] for record in run.records], _floats(y), label=short(run.name, 56), **_run_look(i))
        said.append(f"{run.name}: {', '.join(map(number, y))}")
    _curve_axes(axes, meter)
    figure.legend(loc="outside upper left", ncols=1, labelspacing=0.25)
    look_for = f"The higher of two lines at the same number of {meter} learned more from what was paid."
    if which != "all classes":
        look_for += " The rarest third is where strategies differ most."
    stem = "ap50" if which == "all classes" else "tail"
    title = f"AP50 of {'all classes' if which == 'all classes' else 'the rarest third'} against {meter}"
    return Panel(f"compare_{stem}_{meter}", title, look_for, f"{title}. {'; '.join(said)}", figure)


def _dots(
    runs: Sequence[ReportedRun],
    value: Callable[[ReportedRun, "Row"], float],
    say: Callable[[float], str],
    name: str,
    title: str,
    label: str,
    look_for: str,
) -> Panel:
    """A row for each class, a dot in it for each run."""
    rows = _rows(runs[0])
    figure, axes = _canvas(60 + ROW * len(rows) + 17 * len(runs))
    said = []
    for i, run in enumerate(runs):
        values = [value(run, row) for row in rows]
        axes.plot(values, range(len(rows)), label=short(run.name, 56), **{**_run_look(i), "linestyle": "none"})
        said.append(f"{run.name}: {_spoken(rows, values, say)}")
    _row_axes(axes, [row.label for row in rows])
    axes.grid(axis="y", visible=True)
    axes.margins(x=0.08)
    _below(axes, label)
    figure.legend(loc="outside upper left", ncols=1, labelspacing=0.25)
    return Panel(name, title, look_for, f"{title}. {'. '.join(said)}", figure)


def _run_look(i: int) -> dict[str, Any]:
    lines = ("-", "--", "-.", ":")
    return {"color": PALETTE[i % 8], "marker": MARKERS[i % 8], "linestyle": lines[i % 4]}


# ------------------------------------------------------------------------------------------- rows of classes


@dataclass(frozen=True)
class Row:
    """One bar: a class, or, where there are very many, the mean of those in the middle."""

    label: str
    members: tuple[str, ...]


def _rows(run: ReportedRun) -> list[Row]:
    """The classes from rare to frequent; of more than 40 the rarest, the most frequent, and one row for the others."""
    order = run.rare_first
    rows = [Row(short(name, LONGEST_NAME), (name,)) for name in order]
    if len(rows) <= MOST_ROWS:
        return rows
    top, bottom = MOST_ROWS // 2, len(rows) - (MOST_ROWS // 2 - 1)
    return [*rows[:top], Row(f"mean of {bottom - top} between", tuple(order[top:bottom])), *rows[bottom:]]


def _means(values: Mapping[str, float | None], rows: Sequence[Row]) -> list[float]:
    return [_mean(values, row) for row in rows]


def _mean(values: Mapping[str, float | None], row: Row) -> float:
    """The value of the row's class; of several classes the mean of what is known, NaN if nothing is."""
    known = _floats([values[name] for name in row.members])
    known = known[~np.isnan(known)]
    return float(known.mean()) if len(known) else float("nan")


def _colours(run: ReportedRun, rows: Sequence[Row]) -> list[str]:
    """The colour of a class follows its label, so it is the same in every figure and every cycle."""
    label = {name: i for i, name in enumerate(run.classes)}
    return [PALETTE[label[row.members[0]] % 8] if len(row.members) == 1 else LIGHT["muted"] for row in rows]


def _spoken(rows: Sequence[Row], values: Sequence[float], say: Callable[[float], str]) -> str:
    return "; ".join(f"{row.label} {say(value)}" for row, value in zip(rows, values, strict=True))


# ------------------------------------------------------------------------------------------- axes


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    return figure, figure.add_subplot()


def _curve_axes(axes: Axes, meter: str) -> None:
    """From a little below the lowest point to a little above the highest, so that noise is not blown up."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    values = values[~np.isnan(values)] if not np.isnan(values).all() else np.zeros(1)
    low, high = max(0.0, values.min() - 0.03), values.max() + 0.03
    axes.set_ylim(low, max(high, low + 0.15))
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.set_xlabel({"labels": "labels: boxes that people gave", "reviews": "reviews: boxes that people saw"}[meter])
    axes.set_ylabel("AP50")


def _row_axes(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def _values(axes: Axes, ends: Sequence[float] | np.ndarray, texts: Sequence[str]) -> None:
    """A number behind the end of each bar, and room for it; a scale would only repeat it."""
    axes.set_xlim(0, max(*ends, 0.0) * (1.1 + 0.022 * max(map(len, texts))) or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    for y, (x, text) in enumerate(zip(ends, texts, strict=True)):
        axes.annotate(
            text,
            (x, y),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=LIGHT["muted"],
            fontsize=10,
            annotation_clip=False,
        )


def _below(axes: Axes, text: str) -> None:
    """A label along the whole width, since long class names may leave the axes little of it."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.supxlabel(text, x=0.01, ha="left", fontsize=11, color=LIGHT["muted"])


def _nothing(axes: Axes, text: str) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=LIGHT["muted"])


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


# ------------------------------------------------------------------------------------------- files


def publish(panel: Panel, folder: Path, prefix: str = "") -> Panel:
    """Write a panel as SVG and PNG, and give it its inline SVG. To be called within :func:`style`."""
    stem = prefix + panel.name
    panel.figure.draw_without_rendering()
    panel.figure.set_layout_engine("none")  # it is laid out now, for both files
    text = _svg(panel.figure, stem)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{stem}.svg", text)
    content = io.BytesIO()
    panel.figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    write_bytes(folder / f"{stem}.png", content.getvalue())
    return replace(panel, svg=_inline(text, panel.alt))


def _svg(figure: Figure, salt: str) -> str:
    """SVG text, the same on every call: ids come from the salt, and there is no date in it."""
    handle = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(handle, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return handle.getvalue()


def _inline(svg: str, alt: str) -> Markup:
    """An SVG file -> an element of the page: its size and its colours are the page's, its ids unique there."""
    body = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    names = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
    body = re.sub("|".join(names), lambda found: names[found[0]], body)
    return Markup(f'<svg class="plot" {view_box[0]} role="img" aria-label="{escape(alt)}">{body}')
