"""From answers and the remaining candidates to weighted training targets (section 3.2 of the paper)."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

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
    """Training truth of one image: its human boxes, and its candidates as weighted pseudo labels.

    ``candidates``: those of this image, from the model before retraining; a completely labelled image needs none.
    ``difficult`` (D, 4): objects that training ignores, or takes for background. ``settings`` are by default the
    paper's soft pseudo labels (Eq. 5, 6).
    """
    parts = [Targets.of(human.boxes, human.labels)]
    if settings.difficult == "ignore":
        parts.append(Targets.of(difficult, np.zeros(len(difficult)), Source.DIFFICULT, 0.0, 0.0))
    if settings.rejected == "background":
        parts.append(
            Targets.of(human.rejected, np.zeros(len(human.rejected)), Source.REJECTED, 1.0, 0.0, background=True)
        )
    if candidates is not None and not human.complete:
        parts.append(pseudo_labels(candidates[remaining(candidates, human, settings)], settings))
    return concatenate(parts)


def calibrate(scores: Floats, shown: Floats, right: Bools) -> Floats:
    """What scores are worth by the answers: (T,) -> (T,) in [0, 1], monotone.

    ``shown`` (Q,) are the scores of the boxes that were asked about, ``right`` (Q,) whether the answer confirmed the
    class. Isotonic regression, with one made-up answer at either end (a score of 0 is wrong, of 1 right), so that a few
    answers do not say too much.
    """
    from sklearn.isotonic import IsotonicRegression  # here, for it takes two seconds and ranking does without

    known = np.concatenate([[0.0], shown, [1.0]])
    truth = np.concatenate([[0.0], right.astype(float), [1.0]])
    fitted = IsotonicRegression(y_min=0, y_max=1).fit(known, truth)
    return np.interp(scores, fitted.X_thresholds_, fitted.y_thresholds_)


def remaining(candidates: Candidates, human: ImageLabels, settings: PseudoSettings) -> Bools:
    """Candidates of one image that no answer has settled, so that they may become pseudo labels: (T,)."""
    return far_from(candidates.boxes, human.boxes, settings.human_iou, strict=True) & far_from(
        candidates.boxes, human.rejected, settings.rejected_iou
    )


def pseudo_labels(candidates: Candidates, settings: PseudoSettings) -> Targets:
    """Candidates of one image -> pseudo labels by the chosen method; boxes that would teach nothing are left out."""
    class_weight, box_weight, background = METHODS[settings.method](candidates, settings)
    if settings.zero_weight == "drop":
        background = background | (class_weight == 0)
        class_weight = np.where(background, 1.0, class_weight)
    taught = ~background | (box_weight > 0)
    targets = Targets.of(candidates.boxes, candidates.labels, Source.PSEUDO, class_weight, box_weight, background)
    return targets[taught]


Weights = tuple[Floats, Floats, Bools]
"""Class weights (T,), box weights (T,), and where the class branch is taught background (T,)."""


def _none(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """No pseudo labels: whatever has no human box is background."""
    nothing = np.zeros(len(candidates))
    return nothing, nothing, np.ones(len(candidates), dtype=bool)


def _hard(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """HPL: boxes with conf >= tau_0^cls teach both branches; the others are background."""
    sure = candidates.scores >= settings.class_high
    return np.ones(len(sure)), sure.astype(float), ~sure


def _task_hard(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """THPL: the class branch takes conf >= tau_0^cls, the box branch cons >= tau_0^box, each for itself."""
    sure = candidates.scores >= settings.class_high
    steady = candidates.box_consistency >= settings.box_high
    return np.ones(len(sure)), steady.astype(float), ~sure


def _soft(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """TSPL: Eq. 5 for the class branch, Eq. 6 for the box branch."""
    class_weight = soft_weight(candidates.scores, settings.class_high, settings.class_low)
    box_weight = soft_weight(candidates.box_consistency, settings.box_high, settings.box_low)
    return class_weight, box_weight, np.zeros(len(candidates), dtype=bool)


def _ignore_only(candidates: Candidates, settings: PseudoSettings) -> Weights:
    """As HPL, but what lies between the thresholds is ignored instead of background."""
    sure = (candidates.scores >= settings.class_high).astype(float)
    return sure, sure, candidates.scores <= settings.class_low


METHODS = {"none": _none, "hard": _hard, "task_hard": _task_hard, "soft": _soft, "ignore_only": _ignore_only}
"""Every way to make pseudo labels, by its name in the settings."""


def count_sure(targets: Mapping[int, Targets], num_classes: int, above: float) -> Ints:
    """Pseudo labels of each class that the class branch trusts with at least this weight: (K,)."""
    labels = [
        t.labels[(t.source == Source.PSEUDO) & ~t.background & (t.class_weight >= above)] for t in targets.values()
    ]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=num_classes)


def write_targets(file: Path, targets: Mapping[int, Targets]) -> None:
    """Keep the targets of a cycle as one Parquet table, a row per box (decisions row 16)."""
    together = concatenate(list(targets.values()))
    image_id = np.repeat(list(targets), [len(t) for t in targets.values()])
    columns = {f.name: getattr(together, f.name) for f in fields(together)}
    parquet.write(file, {"image_id": image_id, **columns, "source": together.source.astype(object)})


def read_targets(file: Path) -> dict[int, Targets]:
    """Read what :func:`write_targets` wrote; images without a box are not in it."""
    columns = parquet.read(file)
    image_id = columns.pop("image_id")
    together = Targets(**columns)
    return {int(i): together[image_id == i] for i in np.unique(image_id)}
