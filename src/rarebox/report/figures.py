"""The figures of one run."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from rarebox.evaluation import imbalance_factor
from rarebox.loop.metrics import METERS, CycleRecord, Meter, paid
from rarebox.report.drawing import (
    LIGHT,
    MARKERS,
    PALETTE,
    ROW,
    Panel,
    canvas,
    curve_axes,
    empty,
    end_values,
    floats,
    label_below,
    row_axes,
)
from rarebox.report.reading import ReportedRun
from rarebox.report.rows import colours, mean, means, rows_of, spoken
from rarebox.report.wording import count, factor, is_number, number, plural, short

CountKey = Literal[
    "human_per_class",
    "sure_per_class",
    "labels_per_class",
    "class_frequency",
    "selected_per_class",
    "uncertainty_would_select",
]
"""The numbers per class of a record that are drawn as bars."""


def of_run(run: ReportedRun, uncertain: ReportedRun | None = None) -> dict[str, list[Panel]]:
    """All panels of one run, by section of the page. ``uncertain`` is the run by uncertainty sampling to compare."""
    return {
        "learning": [_learning(run, meter) for meter in METERS],
        "classes": [_ap_per_class(run), _reviews_per_class(run)],
        "balance": _balance(run, uncertain),
        "time": [_time(run)],
    }


def _learning(run: ReportedRun, meter: Meter) -> Panel:
    figure, axes = canvas(240)
    x = [paid(record, meter) for record in run.records]
    lines = {
        "all classes": [record["ap50"] for record in run.records],
        f"rarest third ({len(run.rarest)})": [run.tail_ap(record) for record in run.records],
    }
    for i, (name, y) in enumerate(lines.items()):
        axes.plot(x, floats(y), marker=MARKERS[i], color=PALETTE[i], linestyle=("-", "--")[i], label=name)
        for place, height in zip(x, y, strict=True):
            if is_number(height):
                axes.annotate(
                    number(height),
                    (place, height),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    color=LIGHT["muted"],
                    fontsize=10,
                )
    curve_axes(axes, meter)
    figure.legend(loc="outside upper left", ncols=2)
    look_for = {
        "labels": "A steep curve: few labels improved the detector much. A flat curve: more such labels will not help.",
        "reviews": "The same against all boxes shown to annotators, whether they held an object or not.",
        "seconds": "The same against the time of the annotators.",
    }[meter]
    if meter == "seconds" and run.estimated:
        look_for += " It is estimated for the cycles of a version that did not count it."
    points = "; ".join(f"{number(y)} at {count(n)}" for n, y in zip(x, lines["all classes"], strict=True))
    return Panel(f"ap50_{meter}", f"AP50 against {meter}", look_for, f"AP50 by {meter}: {points}", figure)


def _ap_per_class(run: ReportedRun) -> Panel:
    rows = rows_of(run)
    figure, axes = canvas(62 + ROW * len(rows))
    human = run.last["human_per_class"]
    now, before = (means(record["per_class_ap50"], rows) for record in (run.last, run.first))
    axes.barh(range(len(rows)), np.nan_to_num(now), color=colours(run, rows), height=0.66)
    if len(run.records) > 1:
        axes.scatter(
            before, range(len(rows)), marker="|", s=150, linewidths=2, color=LIGHT["ink"], label="after cycle 1"
        )
        figure.legend(loc="outside upper left")
    ends = np.nan_to_num(np.fmax(now, before))
    row_axes(axes, [f"{row.label} · {count(mean(human, row))}" for row in rows])
    end_values(axes, ends, [number(value) for value in now])
    label_below(axes, "AP50 of the last cycle")
    alt = "AP50 of each class, rare to frequent: " + spoken(rows, now, number)
    return Panel(
        "ap_per_class",
        "AP50 of each class, rare to frequent",
        "Do the rare classes (top) catch up with the frequent ones? Beside each class: its human boxes.",
        alt,
        figure,
    )


def _reviews_per_class(run: ReportedRun) -> Panel:
    rows = rows_of(run)
    figure, axes = canvas(62 + ROW * len(rows))
    asked, hits = (means(run.summed(name), rows) for name in ("selected_per_class", "hits_per_class"))
    if any(asked):
        axes.barh(range(len(rows)), asked, color=LIGHT["quiet"], height=0.66, label="queried")
        axes.barh(range(len(rows)), hits, color=colours(run, rows), height=0.66)
        figure.legend(loc="outside upper left")
        row_axes(axes, [row.label for row in rows])
        end_values(axes, asked, [f"{count(h)} of {count(a)}" if a else "0" for h, a in zip(hits, asked, strict=True)])
        label_below(axes, "queried boxes by predicted class; in colour: hits")
    else:
        empty(axes, "no box has been queried yet")
    said = [f"{count(h)} of {count(a)}" for h, a in zip(hits, asked, strict=True)]
    alt = "Hits among the queried boxes: " + "; ".join(
        f"{row.label} {text}" for row, text in zip(rows, said, strict=True)
    )
    return Panel(
        "reviews_per_class",
        "Queries and hits of each class",
        "Long bars at the top: the queries favour rare classes. Much grey: many false positives of that class.",
        alt,
        figure,
    )


def _balance(run: ReportedRun, uncertain: ReportedRun | None) -> list[Panel]:
    """The paper's Fig. 1 (a) to (d), p(l) and the queries, of the first cycle with a selection.

    (c) shows the labels of the run by uncertainty sampling, if there is one; (d) those of this run, if that is a
    different one.
    """
    first = f"of {plural(run.first['images_full'], 'image')}"
    panels = [
        _counts(
            run,
            run.first,
            "human_per_class",
            "fig1_a",
            "(a) Initial labels",
            f"human boxes {first}",
            "The class imbalance of the data: these images were drawn at random.",
        )
    ]
    if not run.choosing:
        return panels
    record = run.choosing[0]
    cycle = f"in cycle {record['cycle']}"
    if "sure_per_class" in record:  # records of earlier versions lack these counts
        panels.append(
            _counts(
                run,
                record,
                "sure_per_class",
                "fig1_b",
                "(b) Confident detections",
                f"detections in the pool with a score of at least {run.settings.pseudo.class_high}",
                "Usually more imbalanced than (a). p(l) is the class distribution of these detections.",
            )
        )
    if uncertain and uncertain.choosing:
        panels.append(
            _counts(
                run,
                uncertain.choosing[0],
                "labels_per_class",
                "fig1_c",
                "(c) Labels from uncertainty sampling",
                f"labels {cycle} of “{short(uncertain.name, 40)}”, by true class",
                "Ranked by uncertainty alone, which tends to query frequent classes.",
            )
        )
    if run is not uncertain:
        panels.append(
            _counts(
                run,
                record,
                "labels_per_class",
                "fig1_d",
                "(d) Labels from this run",
                f"labels {cycle}, by true class",
                "Class-balanced sampling aims at a more even distribution than (c).",
            )
        )
    return [
        *panels,
        _counts(
            run,
            record,
            "class_frequency",
            "class_frequency",
            "Class frequency p(l)",
            "fraction of the confident detections",
            "Class-balanced sampling favours classes with short bars.",
            say=lambda value: number(value, 3),
        ),
        _counts(
            run,
            record,
            "selected_per_class",
            "asked",
            "Queries",
            f"queried boxes by predicted class, {cycle}",
            "Compare with the labels: where the detector confuses two classes, the labels belong to the other one.",
        ),
        _counts(
            run,
            record,
            "uncertainty_would_select",
            "uncertainty_would_ask",
            "Queries of uncertainty sampling",
            f"candidates by predicted class, {cycle}",
            "As many boxes as were queried, ranked by uncertainty alone.",
        ),
    ]


def _counts(
    run: ReportedRun,
    record: CycleRecord,
    key: CountKey,
    name: str,
    title: str,
    label: str,
    look_for: str,
    say: Callable[[float], str] = count,
) -> Panel:
    """Bars of one count per class, with the imbalance factor in the sentence below."""
    rows = rows_of(run)
    figure, axes = canvas(44 + ROW * len(rows))
    values = means(record[key], rows)
    if any(values):
        axes.barh(range(len(rows)), values, color=colours(run, rows), height=0.66)
        row_axes(axes, [row.label for row in rows])
        end_values(axes, values, [say(value) for value in values])
        label_below(axes, label)
    else:
        empty(axes, "none")
    if any(values) and key != "class_frequency":
        look_for += f" {_imbalance(list(record[key].values()))}"
    return Panel(name, title, look_for, f"{title}: {spoken(rows, values, say)}", figure)


def _imbalance(counts: Sequence[int]) -> str:
    none = sum(not n for n in counts)
    without = f"; {plural(none, 'class')} {'has' if none == 1 else 'have'} none" if none else ""
    return f"Imbalance factor {factor(imbalance_factor(counts))}{without}."


def _time(run: ReportedRun) -> Panel:
    figure, axes = canvas(74 + 26 * len(run.records))
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
    row_axes(axes, [f"cycle {record['cycle']}" for record in run.records])
    label_below(axes, "minutes")
    if run.seconds:
        figure.legend(loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1.2)
    alt = "Total seconds of each stage: " + "; ".join(f"{name} {value:.0f}" for name, value in run.seconds.items())
    return Panel("time", "Time of each stage", "Speeding up the longest stage saves the most time.", alt, figure)
