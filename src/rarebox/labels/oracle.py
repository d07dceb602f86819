"""The simulated annotator. It reads the ground truth; its answers do not depend on a score, utility or guess."""

from collections.abc import Iterable, Mapping

import numpy as np

from rarebox.core.boxes import iou_matrix
from rarebox.types import Answer, Bools, Floats, GroundTruth, Ints, Query, Verdict


class SimulatedOracle:
    """Answers queries from the ground truth of a data set: image id -> its objects.

    A box query asks about the object, of any class, with the largest IoU with the shown box, among those with IoU >=
    ``iou`` that are neither difficult nor labelled yet (equal IoU: the first one). The answer is its true class, with
    the box shown if that IoU is at least ``accept_iou``: an annotator confirms a box that is good enough. Otherwise
    the annotator mends it, and the answer is the true box; with ``accept_iou`` None it always is. If there is no such
    object, the verdict is:

    - ALREADY_LABELLED if a labelled object overlaps that much. It is not NOT_AN_OBJECT, because a rejected box would
      train background on a real object;
    - CANNOT_TELL if only a difficult object does, for the same reason;
    - NOT_AN_OBJECT otherwise.

    The answer to a whole-image query (box None) is every object that is not difficult, with its true box or, if it is
    labelled already, the box of its label. For an image without any it is OBJECT with no boxes. If the image is shown
    with proposals, each of them, best score first, is checked like a shown box: the object that it meets, if the IoU is
    at least ``accept_iou``, gets the proposal's box.

    An answer depends on the image, the box and the objects labelled so far. The oracle counts the objects of its own
    answers as labelled. After a restart, pass the answers in the store to :meth:`remember`. To discard answers that
    were not recorded, build a new oracle and let it remember those in the store.
    """

    def __init__(self, truth: Mapping[int, GroundTruth], iou: float = 0.5, accept_iou: float | None = None) -> None:
        for name, bound in (("iou", iou), ("accept_iou", accept_iou)):
            if bound is not None and not 0 < bound <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {bound}")
        self._truth = truth
        self._iou, self._accept_iou = iou, 2.0 if accept_iou is None else accept_iou
        self._labelled: dict[int, Bools] = {}
        self._boxes: dict[int, Floats] = {}

    def answer(self, query: Query, proposals: Floats | None = None) -> Answer:
        """The answer by the rules above, ``by`` "oracle", in 0 ms. Raises ``KeyError`` for an image without truth.

        ``proposals`` (P, 4) are the boxes that a whole image is shown with, best score first.
        """
        truth, labelled, boxes = self._known(query.image_id)
        if query.box is None:
            for box in proposals if proposals is not None else ():
                self._meet(box, truth, labelled, boxes)
            hits, verdict = np.flatnonzero(~truth.difficult), Verdict.OBJECT
        else:
            hits, verdict = self._meet(query.box, truth, labelled, boxes)
        labelled[hits] = True
        return Answer(query.id, boxes[hits], truth.labels[hits], verdict)

    def _meet(self, box: Floats, truth: GroundTruth, labelled: Bools, boxes: Floats) -> tuple[Ints, Verdict]:
        """Review a shown box (4,), label the object that it shows, and return its row (1,), or no row, and the
        verdict."""
        hits, verdict = _review(box, truth, labelled, self._iou)
        accepted = iou_matrix(box[None], truth.boxes[hits])[0] >= self._accept_iou
        boxes[hits[accepted]] = box
        labelled[hits] = True
        return hits, verdict

    def remember(self, answered: Iterable[tuple[Query, Answer]]) -> None:
        """Count the objects of these answers, in the order given, as labelled.

        A box is that of the object with this true box and class, or, if there is none and it may be a box shown, of the
        object of its class that :meth:`answer` chooses. Other boxes are ignored.
        """
        for query, answer in answered:
            truth, labelled, boxes = self._known(query.image_id)
            for box, label in zip(answer.boxes, answer.labels, strict=True):
                free = ~truth.difficult & ~labelled & (truth.labels == label)
                found = np.flatnonzero(free & (truth.boxes == box).all(axis=1))
                shown = query.box is None or bool((box == query.box).all())
                if shown and not len(found):
                    found = _review(box, truth, ~free, self._iou)[0]
                labelled[found[:1]], boxes[found[:1]] = True, box

    def _known(self, image_id: int) -> tuple[GroundTruth, Bools, Floats]:
        """The objects of an image, which of them are labelled, and the boxes of their labels (true ones before)."""
        truth = self._truth[image_id]
        labelled = self._labelled.setdefault(image_id, np.zeros(len(truth), dtype=bool))
        return truth, labelled, self._boxes.setdefault(image_id, truth.boxes.copy())


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
