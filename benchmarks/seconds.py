"""AP50 against the annotator's seconds, from the lines of a grid, also with other prices of the annotator's actions.

    python benchmarks/seconds.py paper/results/seconds-aquarium.jsonl

Prints the paired difference of the area under AP50 over seconds, and of AP50 at the largest common time, of every two
methods: mean, 95 % t interval, number of seeds. Then the areas with drawing, checking or searching priced at half and
twice the time, with the share of the boxes shown that are objects in each later cycle, and with the mean AP50 of the
rarest third of the classes.
"""

import sys
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np

from rarebox.config import CostSettings
from rarebox.grid import measures, results
from rarebox.grid.statistics import paired

CHECKS = ("look", "confirm", "class_key", "mend", "reject", "cannot_tell")
PRICES: Mapping[str, tuple[str, ...]] = {"drawing": ("draw",), "checking": CHECKS, "searching": ("scan",)}


def main() -> None:
    file = Path(sys.argv[1])
    [group] = results.read([file])
    rare = measures.mean_ap(measures.rarest(group))
    print("rarest third:", ", ".join(measures.rarest(group)))
    compare("area", measures.areas(group, "seconds"))
    compare("last", measures.at_equal_cost(group, "seconds"))
    compare("last, rarest third", measures.at_equal_cost(group, "seconds", rare))
    usual = CostSettings()
    for action, names in PRICES.items():
        for factor in (0.5, 2):
            cost = usual.model_copy(update={name: factor * getattr(usual, name) for name in names})
            [changed] = results.read([file], cost)
            compare(f"area, {action} x {factor:g}", measures.areas(changed, "seconds"))
    for method, runs in group.methods.items():
        shares = [[share(record) for record in run.cycles[1:]] for run in runs.values()]
        print(f"hits of boxes shown, {method}: {np.round(np.mean(shares, axis=0), 2).tolist()} by cycle")


def compare(what: str, values: Mapping[str, Mapping[int, float]]) -> None:
    """Print the difference of every two methods."""
    for method, other in combinations(values, 2):
        found = paired(values[method], values[other])
        interval = f"({found.low:+.3f} to {found.high:+.3f}), n = {found.n}"
        print(f"{what}: {method} minus {other} {found.mean:+.3f} {interval}")


def share(record: Mapping[str, object]) -> float:
    """The share of the boxes shown in a cycle that are objects; NaN if none was shown."""
    actions, hits = record["actions_this_cycle"], record["hits"]
    shown = sum(actions[name] for name in ("confirm", "mend", "reject", "cannot_tell"))  # type: ignore[index]
    return hits / shown if shown else float("nan")  # type: ignore[operator]


if __name__ == "__main__":
    main()
