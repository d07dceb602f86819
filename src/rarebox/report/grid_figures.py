"""The figures of a grid. They stay readable with sixteen methods: eight have a colour, the others are grey, and each
method has a small panel with all others in the background.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.patches import Rectangle

from rarebox.grid import measures, paper, results, statistics
from rarebox.grid.measures import Point
from rarebox.grid.results import Group, Value
from rarebox.loop.metrics import METERS, Meter
from rarebox.report.drawing import (
    LIGHT,
    MARKERS,
    PALETTE,
    ROW,
    WIDTH,
    Panel,
    canvas,
    curve_axes,
    empty,
    label_below,
    row_axes,
)
from rarebox.report.plotting import Axes, new_figure
from rarebox.report.wording import number, plural, short

MOST_BANDS = 4
"""Up to this number of methods, the figure of all methods shows standard deviations."""

MOST_CLASSES = 20
LONGEST_METHOD = 24

Style = tuple[str, str]
"""Colour and marker of a method."""


def styles_of(groups: Sequence[Group]) -> dict[str, Style]:
    """The style of each method, the same in all figures. The ablation and the references get a colour first, then the
    best of the others."""
    first = [name for group in groups for name in (*paper.ablation(group).values(), *paper.references(group).values())]
    names = list(dict.fromkeys([*first, *(name for group in groups for name in measures.ranked(group))]))
    plain = (LIGHT["muted"], "")
    return {name: (PALETTE[i], MARKERS[i]) if i < len(PALETTE) else plain for i, name in enumerate(names)}


def of_group(group: Group, styles: Mapping[str, Style]) -> dict[str, list[Panel]]:
    """All panels of a group, by section of the page."""
    rare = measures.mean_ap(measures.rarest(group))
    values = {"all classes": results.ap50, "the rarest third": rare}
    many = len(group.methods) > MOST_BANDS
    return {
        "learning": [_overview(group, styles, m, which, v) for which, v in values.items() for m in METERS],
        "each": [_each(group, styles, meter) for meter in METERS] if many else [],
        "differences": [_differences(group, styles, *pair) for pair in paper.references(group).items()],
        "classes": _classes(group),
    }


# ------------------------------------------------------------------------------------------------ curves


def _overview(group: Group, styles: Mapping[str, Style], meter: Meter, which: str, value: Value) -> Panel:
    """All mean curves in one panel, as in the paper's Fig. 3. The coloured ones are named at their ends."""
    figure, axes = canvas(330)
    ends: list[tuple[Point, str, str]] = []
    said: list[str] = []
    for name, runs in group.methods.items():
        points = measures.curve(runs.values(), meter, value)
        colour, marker = styles[name]
        if marker:
            _line(axes, points, colour, marker, band=len(group.methods) <= MOST_BANDS)
            ends.append((points[-1], name, colour))
        else:
            _line(axes, points, LIGHT["quiet"], "", width=1.2)
        said.append(f"{name}: {', '.join(number(point.value.mean, 3) for point in points)}")
    ceiling = statistics.spread(value(run.cycles[-1]) for run in group.full).mean
    _ceiling(axes, ceiling)
    curve_axes(axes, meter)
    _name_ends(axes, [end for end in ends if end[0].value.n])
    look_for = {
        "labels": "At the same number of labels, the higher curve is the better method.",
        "reviews": "The same against all boxes shown to annotators, whether they held an object or not.",
        "seconds": "The same against the time of the annotators.",
    }[meter]
    if meter == "seconds" and any(run.estimated for run in group.finished):
        look_for += " Partly estimated: see the table."
    if grey := sum(not styles[name][1] for name in group.methods):
        look_for += f" Grey: {plural(grey, 'other method')}, shown separately below."
    if ceiling == ceiling:
        look_for += " Dashed: training on all labels."
    title = f"AP50 of {which} against {meter}"
    return Panel(
        f"{'ap50' if which == 'all classes' else 'rare'}_{meter}",
        title,
        look_for,
        f"{title}. {'; '.join(said)}",
        figure,
    )


def _line(
    axes: Axes, points: Sequence[Point], colour: str, marker: str, *, band: bool = False, width: float = 2
) -> None:
    x, mean, sd = np.array([(point.paid, *point.value[:2]) for point in points], dtype=float).T
    axes.plot(x, mean, color=colour, marker=marker, linewidth=width, markersize=5.5, zorder=3 if marker or band else 2)
    if band:
        axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)


def _ceiling(axes: Axes, height: float) -> None:
    if height == height:
        axes.axhline(height, color=LIGHT["ink"], linewidth=1.2, linestyle=(0, (5, 4)))


def _name_ends(axes: Axes, ends: Sequence[tuple[Point, str, str]]) -> None:
    """Write names right of the axes, without overlap, in the order of the curves' ends and with a line to each end."""
    low, high = axes.get_ylim()
    ordered = sorted(ends, key=lambda end: end[0].value.mean)
    places = _apart([end.value.mean for end, _, _ in ordered], gap=(high - low) * 13.5 / 250, low=low, high=high)
    for (end, name, colour), place in zip(ordered, places, strict=True):
        axes.annotate(
            short(name, LONGEST_METHOD),
            (end.paid, end.value.mean),
            (1.04, place),
            fontsize=9.5,
            va="center",
            textcoords=("axes fraction", "data"),
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
        )


def _apart(heights: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Rising heights -> the nearest ones (least squares) that are a gap apart and, if they fit, within the bounds.

    Without the gaps this is isotonic regression, which replaces neighbours in the wrong order by their mean.
    """
    pools: list[tuple[float, int]] = []
    for i, height in enumerate(heights):
        pool = (height - i * gap, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, n = pools.pop()
            pool = ((mean * n + pool[0] * pool[1]) / (n + pool[1]), n + pool[1])
        pools.append(pool)
    top = high - (len(heights) - 1) * gap
    level = [min(max(mean, low), top) for mean, n in pools for _ in range(n)]
    return [place + i * gap for i, place in enumerate(level)]


def _each(group: Group, styles: Mapping[str, Style], meter: Meter) -> Panel:
    """A small panel for each method: its mean and standard deviation, with all others in grey."""
    names = measures.ranked(group)
    curves = {name: measures.curve(group.methods[name].values(), meter) for name in names}
    rows = -(-len(names) // 2)
    figure = new_figure(WIDTH, 30 + 98 * rows)
    grid: Sequence[Axes] = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False).ravel().tolist()
    for axes, name in zip(grid, names, strict=False):
        for other in names:
            _line(axes, curves[other], LIGHT["line"], "", width=1)
        _line(axes, curves[name], styles[name][0], styles[name][1] or "o", band=True)
        _ceiling(axes, group.ceiling)
        axes.set_title(short(name, 28), fontsize=10, loc="left", color=LIGHT["ink"], pad=3)
        axes.tick_params(labelsize=9)
        axes.locator_params(axis="x", nbins=4)
        axes.locator_params(axis="y", nbins=4)
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    figure.supxlabel(f"{meter}, and AP50 of all classes", x=0.01, ha="left", fontsize=11, color=LIGHT["muted"])
    said = "; ".join(
        f"{name}: {', '.join(f'{number(p.value.mean, 3)} ± {number(p.value.sd, 3)}' for p in curves[name])}"
        for name in names
    )
    return Panel(
        f"each_{meter}",
        f"Each method against {meter}",
        "The band is one standard deviation over seeds; the other methods are grey. Where bands overlap widely, a few "
        "seeds do not separate two methods. The paired differences below are often more sensitive.",
        f"AP50 by {meter}, best first. {said}",
        figure,
    )


# ------------------------------------------------------------------------------------------------ differences


def _differences(group: Group, styles: Mapping[str, Style], label: str, reference: str) -> Panel:
    """The mean paired difference of the final AP50 with its interval, a row for each method."""
    values = measures.measures(group)["AP50"]
    names = [name for name in measures.ranked(group) if name != reference]
    figure, axes = canvas(64 + ROW * max(1, len(names)))
    title = f"Final AP50 minus {label}"
    steps = {name: statistics.paired(values[name], values[reference]) for name in names}
    if not names:
        empty(axes, "there is no other method")
    for row, (name, step) in enumerate(steps.items()):
        colour = styles[name][0]
        if step.low == step.low:
            axes.plot([step.low, step.high], [row, row], color=colour, linewidth=2.2)
        axes.plot(
            step.mean,
            row,
            color=colour,
            marker="o",
            markeredgewidth=1.8,
            markerfacecolor=colour if step.sign else LIGHT["card"],
        )
        axes.annotate(
            results.signed(step.mean) if step.n else results.DASH,
            (1.02, row),
            fontsize=10,
            va="center",
            xycoords=("axes fraction", "data"),
            color=LIGHT["muted"],
            annotation_clip=False,
        )
    if names:
        row_axes(axes, [short(name, LONGEST_METHOD) for name in names])
        axes.axvline(0, color=LIGHT["ink"], linewidth=1)
        axes.locator_params(axis="x", nbins=5)
        label_below(axes, f"AP50 minus that of {short(reference, 30)}, paired by seed")
    said = "; ".join(f"{name} {results.signed(step.mean)}" for name, step in steps.items())
    return Panel(
        f"minus_{label.replace(' ', '_')}",
        title,
        f"Right of the line: better. The bar is the paired 95 % t interval{_over(steps.values())}. A full dot: it "
        f"excludes 0, over {statistics.ENOUGH_SEEDS} seeds or more.",
        f"{title}: {said}",
        figure,
    )


def _over(steps: Iterable[statistics.Difference]) -> str:
    """The number of seeds, as part of a sentence."""
    numbers = sorted({step.n for step in steps if step.n})
    return f" over {' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} seeds" if numbers else ""


# ------------------------------------------------------------------------------------------------ classes


def _classes(group: Group) -> list[Panel]:
    order = measures.rare_first(group)
    hits = {name: measures.hit_rates(group.methods[name].values()) for name in measures.ranked(group)}
    hits = {name: rates for name, rates in hits.items() if rates[""] == rates[""]}
    heights = {
        name: {c: statistics.spread(measures.mean_ap([c])(run.cycles[-1]) for run in runs.values()).mean for c in order}
        for name, runs in ((name, group.methods[name]) for name in measures.ranked(group))
    }
    ap = _heat(
        heights,
        order,
        "ap_of_classes",
        "Final AP50 of each class",
        "Columns go from rare to frequent. Which method is best on the left?",
    )
    rates = _heat(
        hits,
        order,
        "hits_of_classes",
        "Hit rate of each class",
        "The fraction of the reviewed boxes of a predicted class that held an object without a label. Image-level "
        "methods are not shown.",
    )
    return [ap, rates]


def _heat(
    values: Mapping[str, Mapping[str, float]], order: Sequence[str], name: str, title: str, look_for: str
) -> Panel:
    """A cell for each method and class, in per cent. With many classes, only the rarest and the most frequent."""
    if len(order) > MOST_CLASSES:
        half = MOST_CLASSES // 2
        look_for += f" Of {len(order)} classes the {half} rarest and the {half} most frequent."
        order = [*order[:half], *order[-half:]]
    figure, axes = canvas(110 + 20 * max(1, len(values)))
    known = [of[c] for of in values.values() for c in order if of[c] == of[c]]
    if not known:
        empty(axes, "no box has been shown")
        return Panel(name, title, look_for, f"{title}: none", figure)
    for row, of in enumerate(values.values()):
        for column, c in enumerate(order):
            if of[c] == of[c]:
                shade = 0.04 + 0.5 * of[c] / (max(known) or 1)
                axes.add_patch(Rectangle((column - 0.47, row - 0.46), 0.94, 0.92, color=PALETTE[0], alpha=shade, lw=0))
                axes.text(
                    column, row, f"{100 * of[c]:.0f}", ha="center", va="center", fontsize=9 if len(order) <= 12 else 7
                )
    row_axes(axes, [short(method, LONGEST_METHOD) for method in values])
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_xticks(range(len(order)), [short(c, 16) for c in order], rotation=90)
    axes.tick_params(axis="x", length=0, labelsize=10)
    axes.xaxis.tick_top()
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    label_below(axes, "per cent; classes from rare to frequent")
    said = ". ".join(f"{method}: {'; '.join(f'{c} {number(of[c])}' for c in order)}" for method, of in values.items())
    return Panel(name, title, look_for, f"{title}. {said}", figure)
