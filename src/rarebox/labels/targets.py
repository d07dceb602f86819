"""Weighted training targets from answers and the remaining candidates: Eq. 5 and Eq. 6 (section 3.2 of the paper)."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import cast

import numpy as np

from rarebox.config import PseudoSettings
from rarebox.core import parquet
from rarebox.core.boxes import far_from
from rarebox.method import soft_weight
from rarebox.types import Bools, Candidates, Floats, ImageLabels, Ints, Source, Targets, concatenate

NO_BOXES = np.zeros((0, 4), dtype=np.float32)
THE_PAPERS = PseudoSettings()


def make_targets(
    human: ImageLabels,
    candidates: Candidates | None = None,
    difficult: Floats = NO_BOXES,
    settings: PseudoSettings = THE_PAPERS,
) -> Targets:
    """The training targets of one image, with the weights of Eq. 7.

    ``candidates`` are those of this image, from the model before retraining; a fully labelled image needs none.
    ``difficult`` (D, 4) are objects that training ignores or treats as background. ``settings`` default to the paper's
    soft pseudo labels (Eq. 5, 6).
    """
    parts = [Targets.of(human.boxes, human.labels)]
    if settings.difficult == "ignore":
        parts.append(Targets.of(difficult, np.zeros(len(difficult)), Source.DIFFICULT, 0.0, 0.0))
    if settings.rejected == "background":
        parts.append(
            Targets.of(human.rejected, np.zeros(len(human.rejected)), Source.REJECTED, 1.0, 0.0, background=True)
        )
    if candidates is not None and not human.complete:
        parts.append(pseudo_labels(candidates[remaining(candidates.boxes, human, settings)], settings))
    return concatenate(parts)


def calibration(shown: Floats, right: Bools) -> tuple[Floats, Floats]:
    """The points of a piecewise linear map from scores to the precision of guesses, both increasing and in [0, 1].

    ``shown`` (Q,) are the scores of the boxes asked about, ``right`` (Q,) whether the answer confirmed the class. The
    method is isotonic regression, with one artificial answer at either end (a score of 0 is wrong, of 1 right), so
    that a few answers have a limited effect.
    """
    # Imported here: it takes half a second, and ranking does not need it.
    from scipy.optimize import isotonic_regression  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    known = np.concatenate([[0.0], shown, [1.0]])
    truth = np.concatenate([[0.0], right.astype(float), [1.0]])
    scores, place, answers = np.unique(known, return_inverse=True, return_counts=True)
    fitted = cast("dict[str, Floats]", isotonic_regression(np.bincount(place, truth) / answers, weights=answers))
    return scores, fitted["x"]


def remaining(boxes: Floats, human: ImageLabels, settings: PseudoSettings) -> Bools:
    """Which boxes (T, 4) of one image may be pseudo labels, because no human or rejected box is near: (T,)."""
    return far_from(boxes, human.boxes, settings.human_iou, strict=True) & far_from(
        boxes, human.rejected, settings.rejected_iou
    )


def pseudo_labels(candidates: Candidates, settings: PseudoSettings) -> Targets:
    """Convert candidates of one image to pseudo labels by the chosen method, without boxes that have no effect."""
    class_weight, box_weight, background = METHODS[settings.method](candidates, settings)
    if settings.zero_weight == "drop":
        background = background | (class_weight == 0)
        class_weight = np.where(background, 1.0, class_weight)
    used = ~background | (box_weight > 0)
    targets = Targets.of(candidates.boxes, candidates.labels, Source.PSEUDO, class_weight, box_weight, background)
    return targets[used]


Weights = tuple[Floats, Floats, Bools]
"""Class weights (T,), box weights (T,), and where the class branch is trained on background (T,)."""


def _none(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """No pseudo labels: everything without a human box is background."""
    nothing = np.zeros(len(candidates))
    return nothing, nothing, np.ones(len(candidates), dtype=bool)


def _hard(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """HPL: boxes with conf >= tau_0^cls train both branches; the others are background."""
    sure = candidates.scores >= settings.class_high
    return np.ones(len(sure)), sure.astype(float), ~sure


def _task_hard(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """THPL: the class branch uses boxes with conf >= tau_0^cls, the box branch those with cons >= tau_0^box."""
    sure = candidates.scores >= settings.class_high
    steady = candidates.box_consistency >= settings.box_high
    return np.ones(len(sure)), steady.astype(float), ~sure


def _soft(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """TSPL: Eq. 5 gives the weights of the class branch, Eq. 6 those of the box branch."""
    class_weight = soft_weight(candidates.scores, settings.class_high, settings.class_low)
    box_weight = soft_weight(candidates.box_consistency, settings.box_high, settings.box_low)
    return class_weight, box_weight, np.zeros(len(candidates), dtype=bool)


def _ignore_only(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """HPL, except that boxes with a score between the thresholds are ignored and not background."""
    sure = (candidates.scores >= settings.class_high).astype(float)
    return sure, sure, candidates.scores <= settings.class_low


METHODS = {"none": _none, "hard": _hard, "task_hard": _task_hard, "soft": _soft, "ignore_only": _ignore_only}
"""The pseudo-label methods, by their names in the settings."""


def count_sure(targets: Mapping[int, Targets], num_classes: int, above: float) -> Ints:
    """The number of pseudo labels of each class whose class weight (Eq. 5) is at least ``above``: (K,)."""
    labels = [
        t.labels[(t.source == Source.PSEUDO) & ~t.background & (t.class_weight >= above)] for t in targets.values()
    ]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=num_classes)


def write_targets(file: Path, targets: Mapping[int, Targets]) -> None:
    """Write the targets of a cycle to one Parquet table, a row per box (decisions row 16)."""
    together = concatenate(list(targets.values()))
    image_id = np.repeat(list(targets), [len(t) for t in targets.values()])
    columns = {f.name: getattr(together, f.name) for f in fields(together)}
    parquet.write(file, {"image_id": image_id, **columns, "source": together.source.astype(object)})


def read_targets(file: Path) -> dict[int, Targets]:
    """Read targets that :func:`write_targets` wrote, by image id; images without a box are missing."""
    columns = parquet.read(file)
    image_id = columns.pop("image_id")
    together = Targets(**columns)
    return {int(i): together[image_id == i] for i in np.unique(image_id)}
