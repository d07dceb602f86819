"""The simulated annotator. It reads the ground truth; its answers do not depend on a score, utility or guess."""

from collections.abc import Iterable, Mapping

import numpy as np

from rarebox.core.boxes import iou_matrix
from rarebox.types import Answer, Bools, Floats, GroundTruth, Ints, Query, Verdict


class SimulatedOracle:
    """Answers queries from the ground truth of a data set: image id -> its objects.

    The answer to a box query is the true box and class of the object, of any class, with the largest IoU with the shown
    box, among those with IoU >= ``iou`` that are neither difficult nor labelled yet (equal IoU: the first one). If
    there is none, the verdict is:

    - ALREADY_LABELLED if a labelled object overlaps that much. It is not NOT_AN_OBJECT, because a rejected box would
      train background on a real object;
    - CANNOT_TELL if only a difficult object does, for the same reason;
    - NOT_AN_OBJECT otherwise.

    The answer to a whole-image query (box None) is every object that is not difficult, labelled already or not. For an
    image without any it is OBJECT with no boxes.

    An answer depends on the image, the box and the objects labelled so far. The oracle counts the objects of its own
    answers as labelled. After a restart, pass the answers in the store to :meth:`remember`. To discard answers that
    were not recorded, build a new oracle and let it remember those in the store.
    """

    def __init__(self, truth: Mapping[int, GroundTruth], iou: float = 0.5) -> None:
        if not 0 < iou <= 1:
            raise ValueError(f"iou must be in (0, 1], got {iou}")
        self._truth = truth
        self._iou = iou
        self._labelled: dict[int, Bools] = {}

    def answer(self, query: Query) -> Answer:
        """The answer by the rules above, ``by`` "oracle", in 0 ms. Raises ``KeyError`` for an image without truth."""
        truth, labelled = self._truth[query.image_id], self._labelled_in(query.image_id)
        if query.box is None:
            hits, verdict = np.flatnonzero(~truth.difficult), Verdict.OBJECT
        else:
            hits, verdict = _review(query.box, truth, labelled, self._iou)
        labelled[hits] = True
        return Answer(query.id, truth.boxes[hits], truth.labels[hits], verdict)

    def remember(self, answered: Iterable[tuple[Query, Answer]]) -> None:
        """Count the objects of these answers as labelled. Boxes that equal no true box are ignored."""
        for query, answer in answered:
            truth, labelled = self._truth[query.image_id], self._labelled_in(query.image_id)
            for box, label in zip(answer.boxes, answer.labels, strict=True):
                same = (truth.boxes == box).all(axis=1) & (truth.labels == label) & ~truth.difficult & ~labelled
                labelled[np.flatnonzero(same)[:1]] = True

    def _labelled_in(self, image_id: int) -> Bools:
        return self._labelled.setdefault(image_id, np.zeros(len(self._truth[image_id]), dtype=bool))


def _review(box: Floats, truth: GroundTruth, labelled: Bools, threshold: float) -> tuple[Ints, Verdict]:
    """Review one box (4,): the row of the object found (1,), or no row (0,), and the verdict."""
    iou = iou_matrix(box[None], truth.boxes)[0]
    near = iou >= threshold
    free = np.flatnonzero(near & ~truth.difficult & ~labelled)
    if len(free):
        return free[[iou[free].argmax()]], Verdict.OBJECT
    if (near & labelled).any():
        return free, Verdict.ALREADY_LABELLED
    return free, Verdict.CANNOT_TELL if near.any() else Verdict.NOT_AN_OBJECT
