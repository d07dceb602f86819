"""Box-level strategies: which candidate to ask about next."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from rarebox.config import CostSettings
from rarebox.method import class_balanced_utility, hit_evidence, hit_probability
from rarebox.strategies.greedy import k_center
from rarebox.types import Bools, Candidates, Floats, Ints, LabelState

Ranking = Iterator[tuple[int, float]]
"""Pairs of a row of the candidates (or an image id) and its utility, best first, computed lazily."""

COST = CostSettings()
"""The prices of the annotator's actions by default."""

COMPAS_FLOOR = 0.5
"""ComPAS asks only about detections above this score; here those below come last."""


def in_place(candidates: Candidates) -> Ints:
    """Rows sorted by (image id, box index): (T,)."""
    return np.lexsort((candidates.box_index, candidates.image_id))


SORTED_AT_ONCE = 4096
"""The number of rows sorted first. Each further step sorts four times as many."""


def by(candidates: Candidates, utility: Floats) -> Ranking:
    """Rows by decreasing utility (T,), ties by (image id, box index) (decisions row 28).

    They are sorted as far as they are read: the first K of T rows cost O(T + K log K).
    """
    rest, size = np.arange(len(utility)), SORTED_AT_ONCE
    while len(rest):
        head = np.ones(len(rest), dtype=bool)
        if len(rest) > size:
            bound = np.partition(-utility[rest], size)[size]
            head = (-utility[rest] <= bound) | np.isnan(bound)
        rows, rest, size = rest[head], rest[~head], 4 * size
        rows = rows[np.lexsort((candidates.box_index[rows], candidates.image_id[rows], -utility[rows]))]
        yield from zip(rows.tolist(), utility[rows].tolist(), strict=True)


def random(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Uniform over the candidates; utility in [0, 1).

    The utility of a candidate is drawn from its image id and box index, so it does not depend on the other candidates.
    """
    drawn = np.full(len(candidates), rng.integers(2**64, dtype=np.uint64))
    for part in (candidates.image_id, candidates.box_index):
        drawn = _mixed(drawn + part.astype(np.uint64))
    return by(candidates, (drawn >> np.uint64(11)) * 2.0**-53)


def _mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The next number of SplitMix64 (Steele, Lea and Flood 2014) from each state."""
    z = state + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def entropies(candidates: Candidates, num_classes: int) -> Floats:
    """Class entropy of each candidate, in nats: (T,).

    It is the entropy of the whole distribution if the class vector has a background (Faster R-CNN), else of the score
    and its complement (RetinaNet, as in PPAL and EnmsDivproto), which is largest at a score of 0.5.
    """
    score = candidates.scores[:, None].astype(float)
    whole = candidates.class_probs.shape[1] > num_classes
    p = np.clip(candidates.class_probs if whole else np.hstack([score, 1 - score]), 1e-12, 1)
    return -(p * np.log(p)).sum(axis=1)


def entropy(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """The boxes with the largest class entropy first; utility in nats."""
    return by(candidates, entropies(candidates, len(state.class_counts)))


def coreset(candidates: Candidates, state: LabelState, rng: np.random.Generator, *, points: int = 100_000) -> Ranking:
    """k-center greedy on box features, starting from the labelled boxes; utility: distance to the nearest centre.

    Only the ``points`` most uncertain candidates take part. The others follow by uncertainty, with the utility
    u(b) - 2, which is below any distance.
    """
    assert candidates.features is not None
    assert state.box_features is not None
    in_front = np.fromiter((row for row, _ in islice(uncertainty(candidates, state, rng), points)), dtype=np.int64)
    order = in_front[in_place(candidates[in_front])]
    first = int(rng.integers(max(len(order), 1)))
    for row, far in k_center(candidates.features[order], state.box_features, first):
        yield int(order[row]), far
    behind = np.setdiff1d(np.arange(len(candidates)), in_front)
    for row, unsure in by(candidates[behind], candidates.uncertainty[behind] - 2.0):
        yield int(behind[row]), unsure


def coreset_keeps(points: int, rank: object, candidates: Candidates, state: LabelState, places: int) -> Ints:
    """The most uncertain candidates: ``points`` of them, or ``places`` if that is more."""
    most = islice(by(candidates, candidates.uncertainty), max(points, places))
    return np.fromiter((row for row, _ in most), dtype=np.int64)


def uncertainty(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Ranking by u(b) of Eq. 3, row U of Table 1: utility in [0, c_m]."""
    return by(candidates, candidates.uncertainty)


def class_balanced(
    candidates: Candidates, state: LabelState, rng: np.random.Generator, *, sigma: float = 1.0
) -> Ranking:
    """Ranking by a(b) of Eq. 1, row U+CB of Table 1: utility in [0, c_m]."""
    frequency = state.class_frequency[candidates.labels]
    return by(candidates, class_balanced_utility(candidates.uncertainty, frequency, sigma))


def inverse_frequency(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Brust et al. 2018 in place of Eq. 1: u(b) times (boxes + classes) / (boxes of the class + 1), human boxes."""
    weight = (state.class_counts.sum() + len(state.class_counts)) / (state.class_counts + 1)
    return by(candidates, candidates.uncertainty * weight[candidates.labels])


def per_second(
    candidates: Candidates,
    state: LabelState,
    rng: np.random.Generator,
    *,
    cost: CostSettings = COST,
    sigma: float = 1.0,
) -> Ranking:
    """a(b) of Eq. 1 times the probability that b shows an object, over the seconds that the question is expected to
    take.

    An object is confirmed with the probability cons(b) of Eq. 4, else mended; the rest is rejected.
    """
    hit = hits(candidates, state)
    worth = class_balanced_utility(candidates.uncertainty, state.class_frequency[candidates.labels], sigma) * hit
    return by(candidates, worth / (cost.look + check_seconds(candidates, hit, cost)))


def hits(candidates: Candidates, state: LabelState) -> Floats:
    """The probability that each candidate shows an object: (T,)."""
    return hit_probability(evidence(candidates), state.hit_weights)


def evidence(candidates: Candidates) -> Floats:
    """What that probability depends on: (T, 4)."""
    return hit_evidence(candidates.scores, candidates.uncertainty, candidates.box_consistency)


def check_seconds(candidates: Candidates, hit: Floats, cost: CostSettings) -> Floats:
    """The seconds that checking each box is expected to take, without the look at a new image: (T,)."""
    kept = np.nan_to_num(candidates.box_consistency)
    return hit * (kept * cost.confirm + (1 - kept) * cost.mend) + (1 - hit) * cost.reject


def quota(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """MUS-CDB's balance in place of Eq. 1: ranking by u(b), first within the quota of each class, then the rest.

    The quota of class c is budget * softmax_c(1 - N_c / N) reviews, where N_c is its number of human boxes. The utility
    is u(b).
    """
    order, over = _in_quota(candidates, state)
    rows = np.concatenate([order[~over], order[over]])
    return zip(rows.tolist(), candidates.uncertainty[rows].tolist(), strict=True)


def quota_keeps(rank: object, candidates: Candidates, state: LabelState, places: int) -> Ints:
    """The most uncertain candidates of each class and overall."""
    order, over = _in_quota(candidates, state)
    return order[~over | (np.arange(len(order)) < places)]


def _in_quota(candidates: Candidates, state: LabelState) -> tuple[Ints, Bools]:
    """Rows by decreasing u(b), and which of them exceed the quota of their class."""
    weight = np.exp(1 - state.class_counts / max(state.class_counts.sum(), 1))
    quotas = np.ceil(state.budget * weight / weight.sum())
    order = np.lexsort((candidates.box_index, candidates.image_id, -candidates.uncertainty))
    labels = candidates.labels[order]
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    place = np.empty(len(order), dtype=np.int64)  # the rank within the class
    place[by_class] = np.arange(len(order)) - starts
    return order, place >= quotas[labels]


def compas(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """ComPAS-like (BLAD): a committee's disagreement on the class times that on the position, each scaled to [0, 1].

    The committee is the set of views here, and ten strongly augmented students in ComPAS. Boxes with a score below
    0.5, about which ComPAS never asks, and boxes without a match in any view come last, by score.
    """
    asked, of_class, of_box = _committee(candidates)
    utility = candidates.scores.astype(float) - 2
    utility[asked] = _scaled(of_class[asked]) * _scaled(of_box[asked])
    return by(candidates, utility)


def compas_extremes(candidates: Candidates) -> Ints:
    """Rows with the least and largest disagreements, which determine how all others are scaled."""
    asked, of_class, of_box = _committee(candidates)
    rows = np.flatnonzero(asked)
    ends = [at for values in (of_class[rows], of_box[rows]) if len(rows) for at in (values.argmin(), values.argmax())]
    return np.unique(rows[np.array(ends, dtype=np.int64)])


def _committee(candidates: Candidates) -> tuple[Bools, Floats, Floats]:
    """Which candidates ComPAS asks about, and how much the views disagree on the class and position of each."""
    assert candidates.class_disagreement is not None
    assert candidates.box_disagreement is not None
    asked = (candidates.scores >= COMPAS_FLOOR) & ~np.isnan(candidates.class_disagreement)
    return asked, candidates.class_disagreement, candidates.box_disagreement


def _scaled(values: Floats) -> Floats:
    """Values scaled to [0, 1]; all 0 if they are equal."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
