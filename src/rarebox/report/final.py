"""The part of the report about the final model: its curves, thresholds, confusions and detections on test images."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from rarebox.core.files import read_json
from rarebox.errors import Damaged
from rarebox.evaluation import FEWEST_OBJECTS, Matches, Thresholds, VocResult, best_thresholds, f1_of
from rarebox.loop.tested import Tested, read_tested
from rarebox.report import curves, detections
from rarebox.report.drawing import Panel
from rarebox.report.reading import ReportedRun
from rarebox.report.shots import Shot
from rarebox.report.wording import count, listed, number, plural
from rarebox.types import Floats, Ints

MOST_CONFUSIONS = 5


@dataclass(frozen=True)
class Advice:
    """The threshold of one class, and what it reaches on the test images.

    If there is no advice, ``no_advice`` is the reason. ``checked`` is F1 where each half of the images has the
    threshold of the other half.
    """

    name: str
    label: int
    objects: int
    ap50: float
    threshold: float
    precision: float
    recall: float
    f1: float
    checked: float
    no_advice: str = ""


@dataclass(frozen=True)
class Cell:
    """A count of the confusion matrix, and which fraction of its row it is. ``right``: it lies on the diagonal."""

    count: int
    share: float
    right: bool


@dataclass(frozen=True, eq=False)
class FinalModel:
    """Everything that the page shows of the final model. If nothing can be shown, ``missing`` says why."""

    missing: str = ""
    measured: str = ""
    panels: Sequence[Panel] = ()
    advice: Sequence[Advice] = ()
    caution: str = ""
    columns: Sequence[str] = ()
    confusion: Sequence[tuple[str, Sequence[Cell]]] = ()
    confused: str = ""
    shots: Sequence[Shot] = ()


def of_run(run: ReportedRun) -> FinalModel:
    """What the last finished cycle stored of its detections on the test images."""
    cycle = run.last["cycle"]
    file = run.folder.tested(cycle)
    if not file.exists():
        return FinalModel(
            f"The run did not store the detections of cycle {cycle} on the test images, so they cannot be shown. "
            "Earlier versions of rarebox did not store them."
        )
    try:
        tested = read_tested(file)
        measured = tested.curves(len(run.classes))
    except (Damaged, ValueError):
        return FinalModel(f"{file.parent.name}/{file.name} is damaged, so the final model cannot be shown.")
    if not measured.objects.any():
        return FinalModel("The final model cannot be measured, because there is no object on the test images.")
    return _of(run, tested, measured, best_thresholds(measured))


def _of(run: ReportedRun, tested: Tested, measured: VocResult, chosen: Thresholds) -> FinalModel:
    names = run.classes
    order = [names.index(name) for name in run.rare_first]
    matches = tested.match(len(names), chosen.scores)
    checked = f1_of(tested.cross_checked(len(names)))
    rows = matches.confusion
    return FinalModel(
        measured=_measured(run, tested, measured),
        panels=curves.of_classes(order, names, measured, chosen),
        advice=[_advice(label, names[label], measured, chosen, matches, checked) for label in order],
        caution=_caution(len(tested.images), int(measured.objects.sum()), chosen),
        columns=[*(names[label] for label in order), "missed"],
        confusion=_table(rows, order, [*(names[label] for label in order), "no object"]),
        confused=_confused(rows, names),
        shots=detections.of_test(tested, matches, order, names),
    )


def _measured(run: ReportedRun, tested: Tested, measured: VocResult) -> str:
    interval = None
    with suppress(Damaged):
        interval = read_json(run.folder.cycle(run.last["cycle"]) / "evaluated.json", dict).get("ap50_interval")
    certain = f" (95\u00a0% interval {number(interval[0])} to {number(interval[1])})" if interval else ""
    images, objects = plural(len(tested.images), "test image"), plural(int(measured.objects.sum()), "object")
    return (
        f"The model of cycle {run.last['cycle']} reaches AP50\u00a0{number(measured.mean_ap)}{certain} on {images} "
        f"with {objects}."
    )


def _advice(
    label: int, name: str, measured: VocResult, chosen: Thresholds, matches: Matches, checked: Floats
) -> Advice:
    objects, threshold = int(measured.objects[label]), float(chosen.scores[label])
    why = ""
    if not chosen.own[label]:
        why = f"No advice: {f'fewer than {FEWEST_OBJECTS}' if objects else 'no'} test boxes."
    elif not chosen.f1[label]:
        why = "No advice: no detection is right at any threshold."
    return Advice(
        name,
        label,
        objects,
        float(measured.ap[label]),
        threshold,
        float(matches.precision[label]),
        float(matches.recall[label]),
        float(chosen.f1[label]),
        float(checked[label]),
        why,
    )


def _caution(images: int, objects: int, chosen: Thresholds) -> str:
    """How far to trust the thresholds, and what applies to the classes without advice."""
    shared = set(chosen.scores[~chosen.own].tolist())
    rest = f" Classes with fewer boxes share the threshold of all classes, {number(*shared)}." if shared else ""
    if objects < FEWEST_OBJECTS:
        return f"There are only {plural(objects, 'test box')} in all, so no threshold is advised.{rest}"
    return (
        f"The thresholds were chosen on the same {plural(images, 'image')} on which precision, recall and F1 are "
        "measured, so these are optimistic, most of all for classes with few boxes. “F1, checked” is not: each half of "
        f"the images is measured at the threshold of the other half (of all classes, with fewer than {FEWEST_OBJECTS} "
        f"boxes there). If it is much lower than F1, the threshold is not reliable.{rest}"
    )


def _table(matrix: Ints, order: Sequence[int], titles: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """The rows of the matrix with the classes in this order, "no object" and "missed" last."""
    rows = [*order, len(order)]
    return [
        (
            title,
            [
                Cell(int(matrix[row, column]), float(matrix[row, column] / max(1, matrix[row].sum())), row == column)
                for column in rows
            ],
        )
        for title, row in zip(titles, rows, strict=True)
    ]


def _confused(matrix: Ints, names: Sequence[str]) -> str:
    """The most frequent confusions of two classes in one sentence."""
    between = matrix[:-1, :-1].copy()
    np.fill_diagonal(between, 0)
    if not between.any():
        return "No class is taken for another one."
    order = np.argsort(-between, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [divmod(int(place), len(names)) for place in order]
    said = [
        f"{names[true]} taken for {names[found]} ({count(between[true, found])} of {count(matrix[true].sum())})"
        for true, found in pairs
        if between[true, found]
    ]
    return f"Most frequent confusions: {listed(said, MOST_CONFUSIONS)}."
