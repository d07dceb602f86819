"""Who answers queries. The simulated oracle reads the truth; its answers know of no score, utility or guess."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from rarebox.core.boxes import iou_matrix
from rarebox.types import Answer, Bools, Floats, GroundTruth, Query, Verdict


class Oracle(Protocol):
    """Answers queries: people behind a page, or the truth of a finished data set."""

    def answer(self, query: Query) -> Answer:
        """The answer to one query, under the query's id."""
        ...


class SimulatedOracle:
    """Answers from the ground truth of a data set: image id -> its objects.

    A box query brings the true box and class of the object, of any class, that overlaps the shown box most among
    those with IoU >= ``iou`` that are neither difficult nor labelled yet (equal IoU: the first one). If there is none:

    - ALREADY_LABELLED where an object that has its label overlaps as much: a look spent, nothing gained, and no
      rejected box either, which would teach background on a real object;
    - CANNOT_TELL where only a difficult object does, for the same reason;
    - NOT_AN_OBJECT elsewhere.

    A whole-image query (box None) brings every object that is not difficult, labelled already or not; an image
    without any is answered OBJECT with no boxes.

    An answer depends on the image, the box and what is labelled so far. The oracle counts the objects of its own
    answers as labelled; after a restart, ``remember`` tells it those of the store. Answers that were given but not
    recorded are forgotten by building a new oracle and letting it remember.
    """

    def __init__(self, truth: Mapping[int, GroundTruth], iou: float = 0.5) -> None:
        if not 0 < iou <= 1:
            raise ValueError(f"iou must be in (0, 1], got {iou}")
        self._truth = truth
        self._iou = iou
        self._labelled: dict[int, Bools] = {}

    def answer(self, query: Query) -> Answer:
        """The answer by the rules above, ``by`` "oracle", in no time. ``KeyError`` for an image without truth."""
        truth, labelled = self._truth[query.image_id], self._labelled_in(query.image_id)
        if query.box is None:
            hits, verdict = np.flatnonzero(~truth.difficult), Verdict.OBJECT
        else:
            hits, verdict = _look(query.box, truth, labelled, self._iou)
        labelled[hits] = True
        return Answer(query.id, truth.boxes[hits], truth.labels[hits], verdict)

    def remember(self, answered: Iterable[tuple[Query, Answer]]) -> None:
        """Count the objects of these answers as labelled; boxes that are not exactly one of the truth are passed by."""
        for query, answer in answered:
            truth, labelled = self._truth[query.image_id], self._labelled_in(query.image_id)
            for box, label in zip(answer.boxes, answer.labels, strict=True):
                same = (truth.boxes == box).all(axis=1) & (truth.labels == label) & ~truth.difficult & ~labelled
                labelled[np.flatnonzero(same)[:1]] = True

    def _labelled_in(self, image_id: int) -> Bools:
        return self._labelled.setdefault(image_id, np.zeros(len(self._truth[image_id]), dtype=bool))


def _look(box: Floats, truth: GroundTruth, labelled: Bools, threshold: float) -> tuple[np.ndarray, Verdict]:
    """What a look at one box (4,) brings: the row of the object found (1,), or no row (0,), and the verdict."""
    iou = iou_matrix(box[None], truth.boxes)[0]
    near = iou >= threshold
    free = np.flatnonzero(near & ~truth.difficult & ~labelled)
    if len(free):
        return free[[iou[free].argmax()]], Verdict.OBJECT
    if (near & labelled).any():
        return free, Verdict.ALREADY_LABELLED
    return free, Verdict.CANNOT_TELL if near.any() else Verdict.NOT_AN_OBJECT
