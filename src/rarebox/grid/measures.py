"""The numbers that methods are compared by."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rarebox.grid.results import GridRun, Group, Value, Values, ap50
from rarebox.grid.statistics import NAN, Spread, area, spread
from rarebox.loop.metrics import CycleRecord, Meter, paid


class Point(NamedTuple):
    """A point of a learning curve: after a cycle, at the mean of what was paid, the value over the seeds."""

    cycle: int
    paid: float
    value: Spread


def curve(runs: Iterable[GridRun], meter: Meter = "labels", value: Value = ap50) -> list[Point]:
    """The mean learning curve of one method's runs against labels, reviews or seconds (the paper's Fig. 3)."""
    cycles: dict[int, list[CycleRecord]] = {}
    for run in runs:
        for record in run.cycles:
            cycles.setdefault(record["cycle"], []).append(record)
    return [
        Point(cycle, spread(paid(record, meter) for record in records).mean, spread(map(value, records)))
        for cycle, records in sorted(cycles.items())
    ]


def areas(group: Group, meter: Meter = "labels", value: Value = ap50) -> Values:
    """The area under each run's curve, over the range that all methods of its seed have in common.

    The last image of an image-level batch may overshoot the budget, and box-level methods need more reviews; a common
    range of what was paid is fair to both.
    """
    return _in_common(group, meter, value, area)


def at_equal_cost(group: Group, meter: Meter = "labels", value: Value = ap50) -> Values:
    """The height of each run's curve, linear between its points, at the most that all methods of its seed have paid."""
    return _in_common(group, meter, value, lambda x, y, low, high: float(np.interp(high, x, y)) if high > low else NAN)


def _in_common(
    group: Group, meter: Meter, value: Value, measure: Callable[[np.ndarray, np.ndarray, float, float], float]
) -> Values:
    """``measure`` of each run's curve over the range that all methods of its seed have paid."""
    found: Values = {name: {} for name in group.methods}
    for seed in group.seeds:
        curves = {name: runs[seed].curve(meter, value) for name, runs in group.methods.items() if seed in runs}
        curves = {name: (x, y) for name, (x, y) in curves.items() if len(x) and x[-1] > x[0]}
        low = max((x[0] for x, _ in curves.values()), default=NAN)
        high = min((x[-1] for x, _ in curves.values()), default=NAN)
        for name, (x, y) in curves.items():
            found[name][seed] = measure(x, y, low, high)
    return found


def labels_to_reach(points: Sequence[Point], target: float) -> float | None:
    """Where a curve first reaches a height, linear between its points; None if it does not, or the height is NaN."""
    known = [(point.paid, point.value.mean) for point in points if point.value.mean == point.value.mean]
    if known and known[0][1] >= target:
        return known[0][0]
    for (x0, y0), (x1, y1) in pairwise(known):
        if y0 < target <= y1:
            return x0 + (target - y0) / (y1 - y0) * (x1 - x0)
    return None


# ------------------------------------------------------------------------------------------------ classes


def rare_first(group: Group) -> list[str]:
    """The classes from rare to frequent, by the human boxes of a run on all labels. Without such a run, by those of
    cycle 1 in one run per seed: they are drawn at random, so they show how rare a class is.
    """
    if group.full:
        counted = [group.full[0].cycles[0]]
    else:
        counted = list({run.seed: run.cycles[0] for run in group.finished}.values())
    names = counted[0]["human_per_class"] if counted else {}
    return sorted(names, key=lambda name: sum(record["human_per_class"][name] for record in counted))


def rarest(group: Group) -> list[str]:
    """The rarest third of the classes, at least one."""
    classes = rare_first(group)
    return classes[: max(1, round(len(classes) / 3))]


def mean_ap(classes: Sequence[str]) -> Value:
    """Reads the mean AP50 of some classes off a record, of those that have truth."""

    def read_off(record: CycleRecord) -> float:
        known = [ap for name in classes if (ap := record["per_class_ap50"][name]) is not None]
        return float(np.mean(known)) if known else NAN

    return read_off


def hit_rates(runs: Iterable[GridRun]) -> dict[str, float]:
    """Hits divided by reviews for each predicted class, over all cycles except the first.

    NaN where nothing was shown, as with image-level methods. The key ``""`` holds all classes together.
    """
    hits: dict[str, int] = {"": 0}
    reviews: dict[str, int] = {"": 0}
    for record in (record for run in runs for record in run.cycles if record["cycle"] > 1):
        for name, shown in record["selected_per_class"].items():
            for key in (name, ""):
                hits[key] = hits.get(key, 0) + record["hits_per_class"][name]
                reviews[key] = reviews.get(key, 0) + shown
    return {name: hits[name] / reviews[name] if reviews[name] else NAN for name in reviews}


# ------------------------------------------------------------------------------------------- comparison groups


def measures(group: Group) -> dict[str, Values]:
    """The numbers that methods are compared by, each in [0, 1]; higher is better."""
    rare = mean_ap(rarest(group))
    return {
        "AP50": group.values(lambda run: ap50(run.cycles[-1])),
        "AP50, equal labels": at_equal_cost(group, "labels"),
        "area, labels": areas(group, "labels"),
        "area, reviews": areas(group, "reviews"),
        "area, seconds": areas(group, "seconds"),
        "rarest third": group.values(lambda run: rare(run.cycles[-1])),
    }


def ranked(group: Group) -> list[str]:
    """The methods by their mean final AP50, best first."""
    height = {name: spread(ap50(run.cycles[-1]) for run in runs.values()).mean for name, runs in group.methods.items()}
    return sorted(height, key=lambda name: -height[name] if height[name] == height[name] else 1)


def several_seeds(group: Group) -> bool:
    """Whether there is a method with a second seed; deviations and intervals require one."""
    return any(len(runs) > 1 for runs in group.methods.values())
