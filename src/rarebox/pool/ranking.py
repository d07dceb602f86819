"""What lies between candidates and a strategy, for the loop and for detections from outside alike: which boxes are
still open, what a strategy may know of the labels so far, and the ranking of a pool that comes in pieces."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np

from rarebox import strategies
from rarebox.config import Settings
from rarebox.core.boxes import far_from, overlapping
from rarebox.pool.candidates import REST, Shards, class_frequency
from rarebox.strategies import Queue, Ranking
from rarebox.strategies.pieces import head_of, image_by_image
from rarebox.types import Bools, Candidates, Floats, ImageLabels, ImageScores, Ints, LabelState, concatenate

AHEAD, LEAST = 4, 4096
"""A ranking's head holds so many times what the budget may buy, and at least so many boxes: asking passes over some."""


def still_open(boxes: Floats, said: ImageLabels, iou: float) -> Bools:
    """Boxes of one image that no answer has settled (decisions row 9): (T, 4) -> (T,)."""
    return far_from(boxes, said.settled, iou) & (not said.complete)


class Answered:
    """What the answers so far have settled, as columns, to hold many candidates of many images against it at once."""

    def __init__(self, labels: Mapping[int, ImageLabels]) -> None:
        self._images = np.array(sorted(labels), dtype=np.int64)
        said = [labels[int(i)] for i in self._images]
        self._complete = np.array([one.complete for one in said], dtype=bool)
        kinds = [[one.boxes, one.rejected, one.skipped] for one in said]
        self._boxes = np.concatenate([np.zeros((0, 4), np.float32), *(boxes for three in kinds for boxes in three)])
        counts = np.array([[len(boxes) for boxes in three] for three in kinds], dtype=np.int64).reshape(-1, 3)
        self._kind = np.repeat(np.tile(np.arange(3), len(said)), counts.ravel())
        self._image = np.repeat(np.arange(len(said)), counts.sum(axis=1))

    def overlap(self, image_id: Ints, boxes: Floats) -> tuple[Floats, Bools]:
        """(T,), (T, 4) -> the largest IoU with the image's human, rejected and skipped boxes, (3, T), which is 0 where
        there are none and -1 where nobody has looked into the image; and whether the image is complete, (T,)."""
        found = np.full((3, len(boxes)), -1, dtype=np.float32)
        complete = np.zeros(len(boxes), dtype=bool)
        if not len(self._images):
            return found, complete
        place = np.minimum(np.searchsorted(self._images, image_id), len(self._images) - 1)
        rows = np.flatnonzero(self._images[place] == image_id)
        complete[rows] = self._complete[place[rows]]
        found[:, rows] = 0
        for near, said, iou in overlapping(boxes[rows], self._boxes, 0.0, place[rows], self._image):
            np.maximum.at(found, (self._kind[said], rows[near]), iou)
        return found, complete

    def leaves_open(self, candidates: Candidates, iou: float) -> Bools:
        """Candidates that no answer has settled, as :func:`still_open` says of one image: (T,)."""
        (human, rejected, skipped), complete = self.overlap(candidates.image_id, candidates.boxes)
        return (human < iou) & (rejected < iou) & (skipped < iou) & ~complete


def open_pieces(
    pool: Shards, answered: Answered, settings: Settings, rest: Collection[str] = ()
) -> Iterator[Candidates]:
    """The candidates that may be asked about, piece by piece, with those columns of the ``rest``.

    No answer has settled them, and their score is high enough (decisions rows 7 and 9).
    """
    for piece in pool.pieces(rest):
        worth = piece[piece.scores >= settings.scoring.candidate_threshold]
        yield worth[answered.leaves_open(worth, settings.selection.answered_iou)]


def label_state(
    settings: Settings, budget: int, labels: Mapping[int, ImageLabels], pool: Shards, images: ImageScores
) -> tuple[LabelState, Ints]:
    """What a strategy may know: p(l) among the pseudo labels that the pool would have now, the human boxes, and the
    images that nobody has labelled. ``budget`` is what may be spent now; features are for the caller to add. And how
    many candidates of each class are open, (K,). One pass over the pool."""
    classes = images.class_scores.shape[1]
    counts = np.bincount(joined([found.labels for found in labels.values()]), minlength=classes)
    open_ones = np.zeros(classes, dtype=np.int64)

    def counted() -> Iterator[tuple[Ints, Floats]]:
        nonlocal open_ones
        for found, scores, is_open in loose(settings, labels, pool):
            open_ones = open_ones + np.bincount(is_open, minlength=classes)
            yield found, scores

    frequency = class_frequency(counted(), counts, settings.pseudo.class_high, settings.selection.class_frequency)
    untouched = images[~np.isin(images.image_id, list(labels))]
    complete = sum(said.complete for said in labels.values())
    return LabelState(frequency, counts, untouched, complete, budget), open_ones


def loose(settings: Settings, labels: Mapping[int, ImageLabels], pool: Shards) -> Iterator[tuple[Ints, Floats, Ints]]:
    """What no answer has settled, neither as a question nor as a pseudo label, piece by piece: labels (T,) and scores
    (T,), of which p(l) is read; and the labels of the candidates that may be asked about, (O,)."""
    answered, iou = Answered(labels), settings.selection.answered_iou
    for piece in pool.columns(("image_id", "boxes", "labels", "scores")):
        worth = piece["scores"] >= settings.scoring.candidate_threshold
        piece = {name: column[worth] for name, column in piece.items()}
        (human, rejected, skipped), complete = answered.overlap(piece["image_id"], piece["boxes"])
        unasked = (human < iou) & (rejected < iou) & (skipped < iou)
        free = unasked & (human <= settings.pseudo.human_iou) & (rejected < settings.pseudo.rejected_iou)
        yield piece["labels"][free], piece["scores"][free], piece["labels"][unasked & ~complete]


def sure_per_class(settings: Settings, labels: Mapping[int, ImageLabels], pool: Shards, classes: int) -> Ints:
    """How many detections of each class p(l) counts (the paper's Fig. 1 b): (K,). One pass over the pool."""
    counts = np.zeros(classes, dtype=np.int64)
    for found, scores, _ in loose(settings, labels, pool):
        counts += np.bincount(found[scores >= settings.pseudo.class_high], minlength=classes)
    return counts


def most_uncertain(pool: Shards, answered: Answered, settings: Settings, most: int) -> Ints:
    """Labels of the open candidates with the largest u(b), the earlier row first of equal ones: (at most ``most``,)."""
    labels, uncertainty = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
    for piece in open_pieces(pool, answered, settings):
        bound = uncertainty[-1] if 0 < most == len(labels) else -np.inf
        better = piece.uncertainty > bound
        labels = np.concatenate([labels, piece.labels[better]])
        uncertainty = np.concatenate([uncertainty, piece.uncertainty[better]])
        order = np.argsort(-uncertainty, kind="stable")[:most]
        labels, uncertainty = labels[order], uncertainty[order]
    return labels


class LazyRanking:
    """The order in which boxes are asked about, as far as it is looked at: call it with a place.

    ``fetch(most)`` goes through the pool and gives candidates, their ranking, and how many of its places are those of
    the whole pool's ranking (``most``, or no end to them where no candidate is missing). When they are used up, twice
    as many are fetched.
    """

    def __init__(self, fetch: Callable[[int], tuple[Candidates, Ranking, float]], most: int) -> None:
        self._fetch, self._most = fetch, most
        self._places: float = 0
        self.candidates, self._queue = Candidates.none(0), Queue(iter(()))

    @classmethod
    def of(cls, candidates: Candidates, ranking: Ranking) -> "LazyRanking":
        """A ranking of candidates that are all there is."""
        return cls(lambda most: (candidates, ranking, np.inf), 1)

    def __call__(self, place: int) -> tuple[int, float] | None:
        """What stands at a place, counted from 0: its row of ``candidates`` as they are now (or an image id) and its
        utility; None behind the end."""
        if place >= self._places:
            most = max(self._most, 2 * int(self._places), place + 1)
            self.candidates, ranking, self._places = self._fetch(most)
            self._queue = Queue(ranking)
        return self._queue(place)


def head(
    settings: Settings,
    pool: Shards,
    labels: Mapping[int, ImageLabels],
    state: LabelState,
    rng: Callable[[], np.random.Generator],
) -> LazyRanking:
    """What to ask, best first, by the strategy of the settings; ``rng`` gives the same randomness at each call."""
    name = settings.selection.strategy
    strategy, answered = strategies.choose(settings.selection), Answered(labels)

    def rank(candidates: Candidates, state: LabelState) -> Ranking:
        return strategy(candidates, state, rng())

    def pieces(reads: Collection[str] | None) -> Iterator[Candidates]:
        return open_pieces(pool, answered, settings, REST if reads is None else reads)

    def fetch(places: int) -> tuple[Candidates, Ranking, float]:
        if name not in strategies.IMAGE:
            streamed = strategies.streamed(settings.selection)
            return head_of(streamed, rank, lambda: pieces(streamed.reads), state, places)
        nothing = Candidates.none(len(state.class_counts))
        if name in strategies.IMAGE_BY_IMAGE:
            return nothing, image_by_image(rank, pieces(strategies.IMAGE_BY_IMAGE[name]), state), np.inf
        found = [] if name in strategies.BLIND | strategies.BY_SCORES else list(pieces(None))
        return nothing, rank(concatenate(found) if found else nothing, state), np.inf

    return LazyRanking(fetch, max(LEAST, AHEAD * state.budget))


def joined(labels: Sequence[Ints]) -> Ints:
    """Labels of several images, one after the other."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *labels])
