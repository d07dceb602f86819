"""The paper's own tables: which runs belong to which row, and whether a grid has the paper's setting."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import cast

from rarebox import config
from rarebox.grid.results import GridRun, Group

REFERENCES = {
    "U": ("uncertainty", ()),
    "box random": ("random", ()),
    "image random": ("image_random", ()),
}
"""The methods that others are compared with: strategy, and allowed pseudo labels (preferably none)."""

ABLATION = {
    "U": ("uncertainty", "none"),
    "U+CB": ("class_balanced", "none"),
    "+ HPL": ("class_balanced", "hard"),
    "+ THPL": ("class_balanced", "task_hard"),
    "+ TSPL": ("class_balanced", "soft"),
}
"""The rows of the paper's Table 1: strategy and pseudo labels."""

VOC_CLASSES = frozenset(
    {
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    }
)

OF_THE_MACHINE = frozenset(
    {
        "data",
        "seed",
        "device",
        "training.checkpoint_seconds",
        "scoring.batch_size",
        "scoring.shard_size",
    }
)
"""Settings that change results only by chance."""

OF_OTHERS = frozenset(
    {
        "selection.strategy",
        "pseudo.method",  # these two make the row
        "selection.image_entropy",
        "selection.coreset_points",
        "people.store",
        "people.overlap",
        "people.lease_seconds",
        *(f"cost.{name}" for name in config.CostSettings.model_fields),
    }
)
"""Settings that no row of Table 1 reads, and those that make the row."""


@cache
def paper_setting() -> dict[str, object]:
    """The settings of a run that may be compared with Table 1 of the paper, in any row: dotted name -> value.

    It is the preset ``paper`` on RetinaNet, with every setting but those of the machine and of other strategies: a new
    setting matters until it is named there.
    """
    whole = config.resolve("paper", None, {"detector.name": "retinanet"}).model_dump(mode="json")
    return {name: value for name, value in config.flatten(whole) if name not in OF_THE_MACHINE | OF_OTHERS}


def _find(group: Group, strategy: str, pseudo: Sequence[str] = ()) -> str | None:
    """The method with this strategy and one of these kinds of pseudo labels, by its settings and not by its name.

    Of several methods, the one without pseudo labels, then the one most like the rest of the grid, then the first.
    """
    fitting: list[tuple[bool, int, int, str]] = []
    for name, runs in group.methods.items():
        run = next(iter(runs.values()))
        kind = run.setting("pseudo.method")
        if run.setting("selection.strategy") == strategy and (not pseudo or kind in pseudo):
            fitting.append((kind != "none", _unusual(group, run), len(fitting), name))
    return min(fitting)[-1] if fitting else None


def _unusual(group: Group, run: GridRun) -> int:
    """The number of settings in which a run differs from most of the group's methods."""
    firsts = [next(iter(runs.values())) for runs in group.methods.values()]
    names = {name for one in firsts for name in one.settings} - {"selection.strategy", "pseudo.method"}
    usual = {name: Counter(repr(one.setting(name)) for one in firsts).most_common(1)[0][0] for name in names}
    return sum(repr(run.setting(name)) != value for name, value in usual.items())


def references(group: Group) -> dict[str, str]:
    """The methods the others are compared with, those of :data:`REFERENCES` that the grid has."""
    found = {label: _find(group, *wanted) for label, wanted in REFERENCES.items()}
    return {label: name for label, name in found.items() if name is not None}


def ablation(group: Group) -> dict[str, str]:
    """The rows of the paper's Table 1 that the grid has, and the method of each."""
    found = {row: _find(group, strategy, (pseudo,)) for row, (strategy, pseudo) in ABLATION.items()}
    return {row: name for row, name in found.items() if name is not None}


def is_papers(group: Group) -> bool:
    """Whether the rows of Table 1 that the group has were run in the paper's own setting: VOC0712 and its twenty
    classes, and every setting of :func:`paper_setting`."""
    runs = [run for name in ablation(group).values() for run in group.methods[name].values()]
    return (
        bool(runs)
        and Path(group.data).name == "voc0712"
        and list(group.budget) == paper_setting()["budget"]
        and all(_fits(run) for run in runs)
    )


def _fits(run: GridRun) -> bool:
    classes = frozenset(run.cycles[-1]["per_class_ap50"])
    wanted = paper_setting().items()
    return classes == VOC_CLASSES and all(_plain(run.setting(name)) == value for name, value in wanted)


def _plain(value: object) -> object:
    """A value as a line of the results holds it."""
    return list(cast(tuple[object, ...], value)) if isinstance(value, tuple) else value
