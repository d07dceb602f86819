"""Box-level strategies: which candidate to ask about next."""

from collections.abc import Iterator

import numpy as np

from rarebox.method import class_balanced_utility
from rarebox.strategies.greedy import k_center
from rarebox.types import Candidates, Floats, Ints, LabelState

Ranking = Iterator[tuple[int, float]]
"""(row of the candidates, or image id; its utility), first asked first, made as it is asked for."""

COMPAS_FLOOR = 0.5
"""ComPAS asks about detections above this score only; here those below come after all above."""


def in_place(candidates: Candidates) -> Ints:
    """Rows in the order (image id, box index), whatever order they came in: (T,)."""
    return np.lexsort((candidates.box_index, candidates.image_id))


def by(candidates: Candidates, utility: Floats) -> Ranking:
    """Rows by falling utility (T,), ties by (image id, box index) (decisions row 28)."""
    order = np.lexsort((candidates.box_index, candidates.image_id, -utility))
    return zip(order.tolist(), utility[order].tolist(), strict=True)


def random(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Uniform over the candidates; utility in [0, 1)."""
    utility = np.empty(len(candidates))
    utility[in_place(candidates)] = rng.random(len(candidates))
    return by(candidates, utility)


def entropies(candidates: Candidates, num_classes: int) -> Floats:
    """Entropy of each candidate's class, in nats: (T,).

    Of the whole distribution where the class vector has a background (Faster R-CNN), else of the score against its
    complement (RetinaNet, as in PPAL and EnmsDivproto); the latter is largest at a score of 0.5.
    """
    score = candidates.scores[:, None].astype(float)
    whole = candidates.class_probs.shape[1] > num_classes
    p = np.clip(candidates.class_probs if whole else np.hstack([score, 1 - score]), 1e-12, 1)
    return -(p * np.log(p)).sum(axis=1)


def entropy(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """The box whose class is least sure; utility in nats."""
    return by(candidates, entropies(candidates, len(state.class_counts)))


def coreset(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """k-center greedy on box features, seeded with the labelled boxes'; utility: distance to the nearest of them."""
    assert candidates.features is not None
    assert state.box_features is not None
    order = in_place(candidates)
    first = int(rng.integers(max(len(order), 1)))
    return ((int(order[row]), far) for row, far in k_center(candidates.features[order], state.box_features, first))


def uncertainty(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """u(b) of Eq. 3, row U of Table 1: utility in [0, c_m]."""
    return by(candidates, candidates.uncertainty)


def class_balanced(
    candidates: Candidates, state: LabelState, rng: np.random.Generator, *, sigma: float = 1.0
) -> Ranking:
    """a(b) of Eq. 1, row U+CB of Table 1: utility in [0, c_m]."""
    frequency = state.class_frequency[candidates.labels]
    return by(candidates, class_balanced_utility(candidates.uncertainty, frequency, sigma))


def inverse_frequency(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Brust et al. 2018 in place of Eq. 1: u(b) times (boxes + classes) / (boxes of the class + 1), human boxes."""
    weight = (state.class_counts.sum() + len(state.class_counts)) / (state.class_counts + 1)
    return by(candidates, candidates.uncertainty * weight[candidates.labels])


def quota(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """MUS-CDB's balance in place of Eq. 1: by u(b), but of each class only its quota first, then the rest.

    Class c may fill budget * softmax_c(1 - N_c / N) of the looks, N_c its human boxes. The utility is u(b).
    """
    share = np.exp(1 - state.class_counts / max(state.class_counts.sum(), 1))
    quotas = np.ceil(state.budget * share / share.sum())
    order = np.lexsort((candidates.box_index, candidates.image_id, -candidates.uncertainty))
    labels = candidates.labels[order]
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], labels[by_class])
    place = np.empty(len(order), dtype=np.int64)  # how many of its class come before it
    place[by_class] = np.arange(len(order)) - starts
    over = place >= quotas[labels]
    rows = np.concatenate([order[~over], order[over]])
    return zip(rows.tolist(), candidates.uncertainty[rows].tolist(), strict=True)


def compas(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """ComPAS (BLAD): disagreement of a committee on the class times that on the place, each scaled to [0, 1].

    The committee are the views here, its ten strongly augmented students there. Boxes below a score of 0.5, which it
    never asks about, and boxes that no view saw come last, by score.
    """
    assert candidates.class_disagreement is not None
    assert candidates.box_disagreement is not None
    asked = (candidates.scores >= COMPAS_FLOOR) & ~np.isnan(candidates.class_disagreement)
    utility = candidates.scores.astype(float) - 2
    product = _scaled(candidates.class_disagreement[asked]) * _scaled(candidates.box_disagreement[asked])
    utility[asked] = product
    return by(candidates, utility)


def _scaled(values: Floats) -> Floats:
    """Values stretched to [0, 1]; all 0 where they are all the same."""
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    return (values - low) / (high - low) if high > low else np.zeros(len(values))
