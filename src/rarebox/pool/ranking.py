"""The steps between candidates and a strategy, for the loop and for external detections alike.

They find the open candidates, collect what a strategy may know about the labels, and rank a pool read in pieces.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rarebox import strategies
from rarebox.config import Settings
from rarebox.core.boxes import far_from, overlapping
from rarebox.pool import last
from rarebox.pool.candidates import REST, Shards, class_frequency, rows_by_image
from rarebox.strategies import Queue, Ranking
from rarebox.strategies.pieces import head_of, image_by_image
from rarebox.types import Bools, Candidates, Floats, ImageLabels, ImageScores, Ints, LabelState, concatenate

MOST_IMAGES = 10_000
"""The most ranked images whose boxes a project stores."""

AHEAD, LEAST = 4, 4096
"""A ranking fetches this many times the budget, and at least this many boxes, because asking skips some."""


def still_open(boxes: Floats, said: ImageLabels, iou: float) -> Bools:
    """Boxes of one image that no answer has settled (decisions row 9): (T, 4) -> (T,)."""
    return far_from(boxes, said.settled, iou) & (not said.complete)


class Answered:
    """The labels so far as columns, for comparison with many candidates of many images at once."""

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
        """(T,), (T, 4) -> the largest IoU with the image's human, rejected and skipped boxes, (3, T), and whether the
        image is complete, (T,).

        The IoU is 0 if there are no such boxes, and -1 if the image has no answers.
        """
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
        """Candidates that no answer has settled, as :func:`still_open` for one image: (T,)."""
        (human, rejected, skipped), complete = self.overlap(candidates.image_id, candidates.boxes)
        return (human < iou) & (rejected < iou) & (skipped < iou) & ~complete


def open_pieces(
    pool: Shards, answered: Answered, settings: Settings, rest: Collection[str] = ()
) -> Iterator[Candidates]:
    """The candidates that may be asked about, piece by piece, with the optional columns named in ``rest``.

    No answer has settled them, and their score reaches the threshold (decisions rows 7 and 9).
    """
    for piece in pool.pieces(rest):
        likely = piece[piece.scores >= settings.scoring.candidate_threshold]
        yield likely[answered.leaves_open(likely, settings.selection.answered_iou)]


def with_added(pool: Shards, added: Candidates | None, settings: Settings) -> Shards:
    """The pool with the boxes of other detectors that overlap none of its candidates (decisions row 44).

    They have only the columns that every candidate has, so a strategy that reads more ranks the pool without them.
    """
    if added is None or strategies.streamed(settings.selection).reads != frozenset():
        return pool
    near = pool.of_images(np.unique(added.image_id).tolist())
    keep = np.ones(len(added), dtype=bool)
    for image_id, rows in rows_by_image(added).items():
        if (ours := near.get(image_id)) is not None:
            likely = ours.boxes[ours.scores >= settings.scoring.candidate_threshold]
            keep[rows] = far_from(added.boxes[rows], likely, settings.selection.answered_iou)
    return replace(pool, parts=[*pool.parts, added[keep]])


def label_state(
    settings: Settings, budget: int, labels: Mapping[int, ImageLabels], pool: Shards, images: ImageScores
) -> tuple[LabelState, Ints]:
    """The state that a strategy may know, and the number of open candidates of each class, (K,).

    p(l) of Eq. 1 is computed over the pseudo labels that the pool would have now. ``budget`` may be spent in this
    cycle. The caller adds features. The function reads the pool once.
    """
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
    """The candidates that may become pseudo labels and that no answer has settled, piece by piece.

    Yields their labels (T,) and scores (T,), for p(l) of Eq. 1, and the labels (O,) of the candidates that may be asked
    about.
    """
    answered, iou = Answered(labels), settings.selection.answered_iou
    for piece in pool.columns(("image_id", "boxes", "labels", "scores")):
        likely = piece["scores"] >= settings.scoring.candidate_threshold
        piece = {name: column[likely] for name, column in piece.items()}
        (human, rejected, skipped), complete = answered.overlap(piece["image_id"], piece["boxes"])
        unasked = (human < iou) & (rejected < iou) & (skipped < iou)
        free = unasked & (human <= settings.pseudo.human_iou) & (rejected < settings.pseudo.rejected_iou)
        yield piece["labels"][free], piece["scores"][free], piece["labels"][unasked & ~complete]


def sure_per_class(settings: Settings, labels: Mapping[int, ImageLabels], pool: Shards, classes: int) -> Ints:
    """The number of detections of each class that p(l) of Eq. 1 counts (Fig. 1 b): (K,). Reads the pool once."""
    counts = np.zeros(classes, dtype=np.int64)
    for found, scores, _ in loose(settings, labels, pool):
        counts += np.bincount(found[scores >= settings.pseudo.class_high], minlength=classes)
    return counts


def most_uncertain(pool: Shards, answered: Answered, settings: Settings, most: int) -> Ints:
    """Labels of the ``most`` open candidates with the largest u(b) (ties: the earlier row): (at most ``most``,)."""
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
    """A ranking of the pool that is computed as far as it is read: call it with a place.

    ``fetch(most)`` reads the pool and returns candidates, their ranking, and how many of its places are those of the
    whole pool's ranking (``most``, or infinity if no candidate is missing). When these are used up, twice as many are
    fetched.
    """

    def __init__(self, fetch: Callable[[int], tuple[Candidates, Ranking, float]], most: int) -> None:
        self._fetch, self._most = fetch, most
        self._places: float = 0
        self.candidates, self._queue = Candidates.none(0), Queue(iter(()))

    @classmethod
    def of(cls, candidates: Candidates, ranking: Ranking) -> "LazyRanking":
        """Wrap the ranking of a complete table of candidates."""
        return cls(lambda most: (candidates, ranking, np.inf), 1)

    def __call__(self, place: int) -> tuple[int, float] | None:
        """The entry at a place, counted from 0: a row of the current ``candidates`` (or an image id) and its utility.

        None after the end.
        """
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
    sizes: last.Sizes | None = None,
) -> LazyRanking:
    """The ranking by the strategy of the settings, best first. ``rng`` returns an equal generator at each call.

    ``sizes`` are those of the images; without them no box is a sliver.
    """
    name = settings.selection.strategy
    proposed_from = settings.people.proposal_score if settings.oracle.verify else 1.0
    strategy = strategies.choose(settings.selection, settings.cost, proposed_from)
    answered = Answered(labels)

    def rank(candidates: Candidates, state: LabelState) -> Ranking:
        return strategy(candidates, state, rng())

    def pieces(reads: Collection[str] | None) -> Iterator[Candidates]:
        return open_pieces(pool, answered, settings, REST if reads is None else reads)

    def boxes(places: int) -> tuple[Candidates, Ranking, float]:
        streamed = strategies.streamed(settings.selection)
        return head_of(streamed, rank, lambda: pieces(streamed.reads), state, places)

    def tidied(places: int) -> tuple[Candidates, Ranking, float]:
        """Boxes with slivers and near-duplicates at the end of the whole pool's ranking."""
        fetched = places
        while True:
            candidates, ranking, known = boxes(fetched)
            ranking, behind = tidy(settings, candidates, ranking, pool, sizes or {})
            if known == np.inf or known - behind >= places:
                return candidates, ranking, known - behind if known < np.inf else known
            fetched *= 2

    def fetch(places: int) -> tuple[Candidates, Ranking, float]:
        if name not in strategies.IMAGE:
            return tidied(places)
        nothing = Candidates.none(len(state.class_counts))
        if name in strategies.IMAGE_BY_IMAGE:
            return nothing, image_by_image(rank, pieces(strategies.IMAGE_BY_IMAGE[name]), state), np.inf
        reads = strategies.IMAGE_READS.get(name)
        found = [] if name in strategies.BLIND | strategies.BY_SCORES else list(pieces(reads))
        return nothing, rank(concatenate(found) if found else nothing, state), np.inf

    return LazyRanking(fetch, max(LEAST, AHEAD * state.budget))


def on_images(settings: Settings, pool: Shards, labels: Mapping[int, ImageLabels], images: LazyRanking) -> LazyRanking:
    """The open candidates of the first :data:`MOST_IMAGES` ranked images, image by image, best score first, each with
    the utility of its image."""
    order: dict[int, tuple[int, float]] = {}
    while len(order) < MOST_IMAGES and (item := images(len(order))):
        order[item[0]] = len(order), item[1]
    ranked = np.array([*order], dtype=np.int64)
    pieces = [piece[np.isin(piece.image_id, ranked)] for piece in open_pieces(pool, Answered(labels), settings)]
    found = concatenate([Candidates.none(0), *pieces])
    places = np.array([order[image_id][0] for image_id in found.image_id.tolist()], dtype=np.int64)
    found = found[np.lexsort((found.box_index, -found.scores, places))]
    return LazyRanking.of(found, enumerate(order[image_id][1] for image_id in found.image_id.tolist()))


def tidy(
    settings: Settings, candidates: Candidates, ranking: Ranking, pool: Shards, sizes: last.Sizes
) -> tuple[Ranking, int]:
    """The ranking with what comes last at its end (decisions row 45), and how many boxes these are."""
    chosen, behind = settings.selection, np.zeros(len(candidates), dtype=bool)
    if chosen.slivers_last:
        behind |= last.slivers_among(candidates, sizes)
    if chosen.duplicate_cosine < 1 and chosen.strategy not in strategies.NEEDS:  # they choose by features themselves
        order = list(ranking)
        rows = np.array([row for row, _ in order if not behind[row]][: last.MOST_COMPARED], dtype=np.int64)
        if (features := last.features_of(candidates[rows], pool)) is not None:
            behind[rows] = last.duplicates(candidates[rows], features, chosen.duplicate_cosine)
        ranking = iter(order)
    return last.at_the_end(ranking, behind) if behind.any() else ranking, int(behind.sum())


def joined(labels: Sequence[Ints]) -> Ints:
    """Concatenate the labels of several images."""
    return np.concatenate([np.zeros(0, dtype=np.int64), *labels])
