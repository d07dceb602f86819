"""What lies between candidates and a strategy, for the loop and for detections from outside alike: which boxes are
still open, and what a strategy may know of the labels so far."""

from collections.abc import Mapping, Sequence

import numpy as np

from rarebox.candidates import class_frequency, rows_by_image
from rarebox.config import Settings
from rarebox.pseudo import far_from, remaining
from rarebox.store import ImageLabels
from rarebox.types import Bools, Candidates, Floats, ImageScores, Ints, LabelState


def still_open(boxes: Floats, said: ImageLabels, iou: float) -> Bools:
    """Boxes of one image that no answer has settled (decisions row 9): (T, 4) -> (T,)."""
    return far_from(boxes, said.settled, iou) & (not said.complete)


def unanswered(candidates: Candidates, labels: Mapping[int, ImageLabels], iou: float) -> Bools:
    """Candidates that no answer has settled: (T,)."""
    free = np.ones(len(candidates), dtype=bool)
    for image_id, rows in rows_by_image(candidates).items():
        if image_id in labels:
            free[rows] = still_open(candidates.boxes[rows], labels[image_id], iou)
    return free


def label_state(
    settings: Settings, budget: int, labels: Mapping[int, ImageLabels], candidates: Candidates, images: ImageScores
) -> LabelState:
    """What a strategy may know: p(l) among the pseudo labels that the pool would have now, the human boxes, and the
    images that nobody has labelled. ``budget`` is what may be spent now; features are for the caller to add."""
    counts = np.bincount(joined([found.labels for found in labels.values()]), minlength=images.class_scores.shape[1])
    loose = np.ones(len(candidates), dtype=bool)
    for image_id, rows in rows_by_image(candidates).items():
        if image_id in labels:
            boxes, said = candidates[rows], labels[image_id]
            loose[rows] = remaining(boxes, said, settings.pseudo)
            loose[rows] &= far_from(boxes.boxes, said.settled, settings.selection.answered_iou)
    frequency = class_frequency(
        candidates[loose], counts, settings.pseudo.class_high, settings.selection.class_frequency
    )
    untouched = images[np.array([int(i) not in labels for i in images.image_id], dtype=bool)]
    complete = sum(said.complete for said in labels.values())
    return LabelState(frequency, counts, untouched, complete, budget)


def joined(labels: Sequence[Ints]) -> Ints:
    """Labels of several images, one after the other."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *labels])
