"""The common part of all figures: colours, style, panels, axes, and their files (SVG, PNG and inline SVG).

Every figure is drawn once, in the light theme, as one narrow panel: a page shows two side by side on a desktop and one
above the other on a phone. In the inline SVG each colour of the theme becomes a CSS variable, so the page can
switch it to dark.
"""

import io
import re
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from rarebox.core.files import mark_own, write_bytes, write_text
from rarebox.loop.metrics import Meter
from rarebox.report.plotting import Axes, Figure, new_figure, settings
from rarebox.types import Floats

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
"""Colours by role. c0 to c7 are distinct with colour blindness too, with a contrast of at least 3 : 1 to the card."""

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

ABOUT: dict[Meter, str] = {
    "labels": "labels (boxes given by annotators)",
    "reviews": "reviews (boxes shown to annotators)",
    "seconds": "seconds (time of the annotators)",
}
"""The label of an axis that shows what was paid."""

WIDTH = 390  # points; the page scales figures slightly up on a desktop and slightly down on a phone
ROW = 23  # points per class


@dataclass(frozen=True, eq=False)
class Panel:
    """A figure with its title, one sentence on what to look for, and an alternative text.

    ``name`` is the stem of its files; ``svg`` is the inline form, once it is published.
    """

    name: str
    title: str
    look_for: str
    alt: str
    figure: Figure
    svg: str = ""


@contextmanager
def style() -> Generator[None]:
    """The style in which figures are made and published. Characters that no font has become boxes, silently."""
    with settings(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


# ------------------------------------------------------------------------------------------- axes


def canvas(height: float) -> tuple[Figure, Axes]:
    """A figure of the common width with one pair of axes. ``height`` is in points."""
    figure = new_figure(WIDTH, height)
    return figure, figure.add_subplot()


def curve_axes(axes: Axes, meter: Meter) -> None:
    """Set up the axes of a learning curve. They span at least 0.15 AP50, so that noise is not magnified."""
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    values = values[~np.isnan(values)] if not np.isnan(values).all() else np.zeros(1)
    low, high = max(0.0, values.min() - 0.03), values.max() + 0.03
    axes.set_ylim(low, max(high, low + 0.15))
    axes.margins(x=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter("{x:.2f}")
    axes.set_xlabel(ABOUT[meter])
    axes.set_ylabel("AP50")


def row_axes(axes: Axes, labels: Sequence[str]) -> None:
    """Set up one labelled row for each class or method, from top to bottom."""
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)


def end_values(axes: Axes, ends: Sequence[float] | Floats, texts: Sequence[str]) -> None:
    """Write a number at the end of each bar, in place of a scale."""
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


def label_below(axes: Axes, text: str) -> None:
    """Write a label across the whole width, because long class names may leave little room for the axes."""
    axes.get_figure(root=True).supxlabel(text, x=0.01, ha="left", fontsize=11, color=LIGHT["muted"])


def empty(axes: Axes, text: str) -> None:
    """Show a text in place of axes without data."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=LIGHT["muted"])


def floats(values: Sequence[float | None]) -> NDArray[np.float64]:
    """The values, with NaN for None: (N,)."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# ------------------------------------------------------------------------------------------- files


def publish(panel: Panel, folder: Path, prefix: str = "") -> Panel:
    """Write a panel as SVG and PNG, and return it with its inline SVG. Call it within :func:`style`."""
    stem = prefix + panel.name
    panel.figure.draw_without_rendering()
    panel.figure.set_layout_engine("none")  # one layout for both files
    text = _svg(panel.figure, stem)
    mark_own(folder, "report")
    write_text(folder / f"{stem}.svg", text)
    content = io.BytesIO()
    panel.figure.savefig(content, format="png", dpi=144, metadata={"Software": None})
    write_bytes(folder / f"{stem}.png", content.getvalue())
    return replace(panel, svg=_inline(text, panel.alt))


def _svg(figure: Figure, salt: str) -> str:
    """The figure as SVG, reproducibly: ids depend on the salt, and there is no date."""
    handle = io.StringIO()
    with settings({"svg.hashsalt": salt}):
        figure.savefig(handle, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return handle.getvalue()


def _inline(svg: str, alt: str) -> Markup:
    """An SVG file as an element of the page, with the size and colours of the page and without ids."""
    body = svg[svg.index("<svg") :]
    view_box = re.search(r'viewBox="[^"]*"', body)
    assert view_box is not None
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    names = {colour: f"var(--{name})" for name, colour in LIGHT.items()}
    body = re.sub("|".join(names), lambda found: names[found[0]], body)
    return Markup(f'<svg class="plot" {view_box[0]} role="img" aria-label="{escape(alt)}">{body}')
