"""Which detection found which object: right, missed, wrong, and the confusion matrix."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rarebox.core.boxes import overlapping
from rarebox.evaluation.tables import FoundRows, TrueRows
from rarebox.evaluation.thresholds import best_thresholds
from rarebox.evaluation.voc import Judged, judged, voc_ap
from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints


@dataclass(frozen=True, eq=False)
class Matches:
    """The counted detections from the threshold of their class on (N rows), and the objects (G rows).

    ``image`` of both tables is the image id. No row is difficult, nor a detection of a difficult object. ``partner``
    (N,) is the row of the object that a detection is matched to, -1 if there is none. No object has two detections.
    """

    found: FoundRows
    objects: TrueRows
    partner: Ints
    num_classes: int

    @property
    def right(self) -> Bools:
        """(N,): whether a detection is matched to an object of its own class."""
        return (self.partner >= 0) & (self.true_class == self.found.labels)

    @property
    def true_class(self) -> Ints:
        """(N,): the class of the object that a detection is matched to; K where there is none."""
        return np.append(self.objects.labels, self.num_classes)[self.partner]

    @property
    def missed(self) -> Bools:
        """(G,): whether no detection is matched to an object."""
        missed = np.ones(len(self.objects.labels), dtype=bool)
        missed[self.partner[self.partner >= 0]] = False
        return missed

    @property
    def confusion(self) -> Ints:
        """The confusion matrix (K + 1, K + 1): rows are true classes, then "no object"; columns are predicted classes,
        then "missed".

        A row of a class adds up to its objects, a column of a class to its counted detections. The corner is 0.
        """
        side = self.num_classes + 1
        missed = self.objects.labels[self.missed] * side + self.num_classes
        cells = np.concatenate([self.true_class * side + self.found.labels, missed])
        return np.bincount(cells, minlength=side * side).reshape(side, side)

    @property
    def precision(self) -> Floats:
        """(K,) in [0, 1]: the fraction of the detections of a class that are right; NaN without detections."""
        counts = self.confusion[:, :-1]
        return _divide(np.diagonal(counts), counts.sum(axis=0))

    @property
    def recall(self) -> Floats:
        """(K,) in [0, 1]: the fraction of the objects of a class that are found as such; NaN without objects."""
        counts = self.confusion[:-1]
        return _divide(np.diagonal(counts), counts.sum(axis=1))

    @property
    def f1(self) -> Floats:
        """(K,) in [0, 1]: F1 of each class; NaN without objects."""
        return f1_of(self.confusion)


def f1_of(confusion: Ints) -> Floats:
    """F1 of each class, (K + 1, K + 1) -> (K,) in [0, 1], the harmonic mean of precision and recall.

    NaN for a class without objects.
    """
    objects, found = confusion.sum(axis=1)[:-1], confusion.sum(axis=0)[:-1]
    return np.where(objects > 0, _divide(2 * np.diagonal(confusion)[:-1], objects + found), np.nan)


def _divide(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def match(
    detections: Mapping[int, Detections], truth: Mapping[int, GroundTruth], num_classes: int, thresholds: Floats
) -> Matches:
    """Match the detections whose score reaches the threshold of their class, (K,), with the objects, at IoU 0.5.

    1. Within each class as for AP50 (:func:`rarebox.evaluation.voc_ap`): best score first, a detection belongs to the
       object of its class and image with the largest IoU, if that is at least 0.5. The first detection of an object is
       right. So the diagonal of the confusion matrix are the true positives of AP50. Detections of a difficult object
       (or crowd) do not count, and difficult objects are left out, as in AP50.
    2. The other detections, best score first (equal scores: lower class, image id, row): each is matched to the object
       of *another* class with the largest IoU of at least 0.5 that is not difficult and has no detection yet. That is a
       confusion of two classes.
    3. A detection without a match is wrong: nothing is there, it is too imprecise, or its object has a detection
       already. An object without a match is missed.

    Raises ValueError as ``voc_ap`` does.
    """
    all_found = judged(detections, truth, num_classes)
    found, true, nearest, counted, right = all_found
    shown = counted & (found.scores >= np.asarray(thresholds)[found.labels])
    partner = np.where(right & shown, nearest, -1)
    rest = np.flatnonzero(shown & ~right)
    partner[rest] = _confused(all_found, rest[np.argsort(-found.scores[rest], kind="stable")], partner)[rest]
    ids, kept = np.array(sorted(truth), dtype=np.int64), ~true.difficult
    place = np.append(np.cumsum(kept) - 1, -1)  # of a row of the truth among the objects; -1, none, is the last
    return Matches(
        FoundRows(ids[found.image[shown]], found.labels[shown], found.boxes[shown], found.scores[shown]),
        TrueRows(ids[true.image[kept]], true.labels[kept], true.boxes[kept], true.difficult[kept]),
        place[partner[shown]],
        num_classes,
    )


def _confused(all_found: Judged, rest: Ints, partner: Ints) -> Ints:
    """``partner`` (N,) with objects of other classes for the detections ``rest``, which are given best first."""
    found, true = all_found.found, all_found.true
    free = ~true.difficult
    free[partner[partner >= 0]] = False
    pairs = overlapping(found.boxes[rest], true.boxes, 0.5, found.image[rest], true.image)
    places, objects, ious = (np.concatenate(parts) for parts in zip(([], [], []), *pairs, strict=True))
    places, objects = places.astype(np.int64), objects.astype(np.int64)
    other = free[objects] & (found.labels[rest[places]] != true.labels[objects])
    places, objects, ious = places[other], objects[other], ious[other]
    partner = partner.copy()
    for pair in np.lexsort((objects, -ious, places)):
        row, mine = rest[places[pair]], objects[pair]
        if partner[row] < 0 and free[mine]:
            partner[row], free[mine] = mine, False
    return partner


def cross_checked(detections: Mapping[int, Detections], truth: Mapping[int, GroundTruth], num_classes: int) -> Ints:
    """The confusion matrix (K + 1, K + 1) at thresholds that were chosen on other images than they are measured on.

    Every second image, in order of the ids, is one half, and the rest is the other. The thresholds of each half are
    those of largest F1 on the other one (:func:`best_thresholds`). The counts of both halves are added. Raises
    ValueError as ``voc_ap`` does.
    """
    halves = [
        ({i: detections[i] for i in ids if i in detections}, {i: truth[i] for i in ids})
        for ids in (sorted(truth)[::2], sorted(truth)[1::2])
    ]
    chosen = [best_thresholds(voc_ap(*half, num_classes)).scores for half in halves]
    first, second = (
        match(*half, num_classes, other).confusion for half, other in zip(halves, reversed(chosen), strict=True)
    )
    return first + second
