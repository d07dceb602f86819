"""Precision-recall curves of the final model, one small panel for each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import FixedLocator

from rarebox.evaluation import Thresholds, VocResult
from rarebox.report.drawing import LIGHT, PALETTE, WIDTH, Panel
from rarebox.report.plotting import Axes, new_figure
from rarebox.report.rows import LONGEST_NAME
from rarebox.report.wording import count, number, plural, short
from rarebox.types import Floats, Ints

MOST = 40
"""With more classes, the rarest and the most frequent ones have a curve, as many as this together."""

TOGETHER = 6
"""So many classes share one figure. More of them make two figures side by side."""

POINTS = 200
"""About half the most points of a curve. More would not be visible."""


def of_classes(labels: Sequence[int], names: Sequence[str], curves: VocResult, chosen: Thresholds) -> list[Panel]:
    """The panels. ``labels`` are the classes from rare to frequent, ``names`` (K,) their names by label."""
    shown = [*labels[: MOST // 2], *labels[-MOST // 2 :]] if len(labels) > MOST else [*labels]
    if len(shown) <= TOGETHER:
        return [_panel(shown, names, curves, chosen, "precision_recall", "Precision and recall, rare to frequent")]
    half = -(-len(shown) // 2)
    left = f", {plural(len(labels) - MOST, 'class')} between them left out" if len(labels) > MOST else ""
    return [
        _panel(some, names, curves, chosen, f"precision_recall_{which}", f"Precision and recall, {title}")
        for some, which, title in (
            (shown[:half], "rare", "the rarer classes"),
            (shown[half:], "frequent", f"the more frequent classes{left}"),
        )
    ]


def _panel(
    labels: Sequence[int], names: Sequence[str], curves: VocResult, chosen: Thresholds, stem: str, title: str
) -> Panel:
    rows = -(-len(labels) // 2)
    figure = new_figure(WIDTH, 34 + 118 * rows)
    grid: Sequence[Axes] = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    said: list[str] = []
    for axes, label in zip(grid, labels, strict=False):
        title_of = f"{short(names[label], LONGEST_NAME)} · {count(curves.objects[label])}"
        axes.set_title(title_of, fontsize=11, loc="left", color=LIGHT["ink"], pad=4)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.03)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(FixedLocator([0, 0.5, 1]))
        axes.tick_params(labelsize=9.5, length=0)
        if curves.objects[label]:
            said.append(f"{names[label]}: {_curve(axes, label, curves, chosen)}")
    for axes in grid[max(0, len(labels) - 2) : len(labels)]:
        axes.tick_params(labelbottom=True)
    for axes in grid[len(labels) :]:
        axes.set_axis_off()
    figure.supxlabel("across: recall; up: precision", x=0.01, ha="left", fontsize=11, color=LIGHT["muted"])
    look_for = (
        "Beside each class: its test boxes. The shaded area is AP50. The dot is the threshold of largest F1, hollow "
        "where a class has too few boxes and shares that of all classes. A curve that falls early: confident false "
        "positives. A curve that ends early: objects that are never found."
    )
    return Panel(stem, title, look_for, f"{title}. {'; '.join(said)}", figure)


def _curve(axes: Axes, label: int, curves: VocResult, chosen: Thresholds) -> str:
    """Draw the curve of a class and its threshold, and describe them."""
    recall, precision, scores = curves.recall[label], curves.precision[label], curves.scores[label]
    colour, ap = PALETTE[label % len(PALETTE)], number(curves.ap[label])
    place = (0.97, 0.9) if curves.ap[label] < 0.5 else (0.48, 0.1)  # where the curve is not
    style = {"fontsize": 10.5, "ha": "right", "va": "center", "color": LIGHT["ink"]}
    axes.text(*place, f"AP50 {ap}", transform=axes.transAxes, **style)
    if not len(recall):
        return f"AP50 {ap}, no detections"
    best = np.maximum.accumulate(precision[::-1])[::-1]  # the area under this envelope is AP50
    some = _corners(recall)
    x, y = np.append(0, recall[some]), np.append(best[0], best[some])
    axes.fill_between(x, np.zeros(len(x)), y, step="pre", color=colour, alpha=0.16, linewidth=0)
    axes.plot(recall[some], precision[some], color=colour, linewidth=1.6)
    threshold, kept = float(chosen.scores[label]), int((scores >= chosen.scores[label]).sum())
    if not kept:
        return f"AP50 {ap}, no detection reaches the threshold {number(threshold)}"
    point = float(recall[kept - 1]), float(precision[kept - 1])
    _mark(axes, point, colour, number(threshold), own=bool(chosen.own[label]))
    return f"AP50 {ap}, at threshold {number(threshold)} precision {number(point[1])} and recall {number(point[0])}"


def _corners(recall: Floats) -> Ints:
    """The places that draw a curve: its hits and the places before them, thinned, and its end."""
    hits = np.flatnonzero(np.diff(recall, prepend=0) > 0)
    if len(hits) > POINTS:
        hits = hits[np.linspace(0, len(hits) - 1, POINTS).round().astype(np.int64)]
    return np.unique(np.concatenate([np.maximum(hits - 1, 0), hits, [len(recall) - 1]]))


def _mark(axes: Axes, point: tuple[float, float], colour: str, text: str, *, own: bool) -> None:
    face = colour if own else LIGHT["card"]
    axes.plot(
        [point[0]],
        [point[1]],
        marker="o",
        markersize=6,
        markerfacecolor=face,
        markeredgecolor=colour,
        markeredgewidth=1.6,
        clip_on=False,
        zorder=5,
    )
    to_left, high = point[0] > 0.8, point[1] > 0.85  # a curve falls, so that above and right of it is room
    axes.annotate(
        text,
        point,
        xytext=(-7 if to_left else 8, -12 if to_left and high else 0 if high else 7),
        textcoords="offset points",
        ha="right" if to_left else "left",
        va="center" if high else "bottom",
        fontsize=10.5,
        color=LIGHT["ink"],
    )
