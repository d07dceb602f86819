"""Image-level strategies: which whole image to label next. Each of its objects counts as a label (decisions row 15)."""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from rarebox.config import CostSettings
from rarebox.core.boxes import keep_best
from rarebox.method import class_balanced_utility, js_divergence
from rarebox.strategies.box import COST, Ranking, check_seconds, entropies, hits
from rarebox.strategies.greedy import k_center
from rarebox.types import Candidates, Floats, Ints, LabelState

Pooling = Literal["mean", "max", "sum"]

ENMS, INTRA, INTER = 0.5, 0.7, 0.3
"""EnmsDivproto's thresholds T_enms, T_intra, T_inter."""
ALPHA, BETA = 0.5, 0.75
"""EnmsDivproto: the rarest fraction alpha of the classes gets a fraction beta of the picks."""

CALD_MARGIN = 1.2
"""CALD's class stage reorders this many times the number of wanted images."""


def by(image_id: Ints, utility: Floats) -> Ranking:
    """Image ids by decreasing utility (I,), ties by image id."""
    order = np.lexsort((image_id, -utility))
    return zip(image_id[order].tolist(), utility[order].tolist(), strict=True)


def image_random(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """Uniform over the images; utility in [0, 1)."""
    utility = np.empty(len(state.images))
    utility[np.argsort(state.images.image_id)] = rng.random(len(state.images))
    return by(state.images.image_id, utility)


def image_entropy(
    candidates: Candidates, state: LabelState, rng: np.random.Generator, *, pooling: Pooling = "mean"
) -> Ranking:
    """The images with the largest class entropy of their boxes (mean, largest or sum), in nats.

    ``sum`` favours crowded images, ``mean`` nearly empty ones; an image without a candidate comes last.
    """
    ids, place = np.unique(state.images.image_id, return_inverse=True)
    rows = np.flatnonzero(np.isin(candidates.image_id, ids))
    where, values = (
        np.searchsorted(ids, candidates.image_id[rows]),
        entropies(candidates[rows], len(state.class_counts)),
    )
    pooled = np.zeros(len(ids))
    (np.maximum if pooling == "max" else np.add).at(pooled, where, values)
    if pooling == "mean":
        pooled /= np.maximum(np.bincount(where, minlength=len(ids)), 1)
    return by(state.images.image_id, pooled[place])


def image_coreset(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """k-center greedy on feature maps averaged over the image; utility: distance to the nearest labelled image."""
    assert state.image_features is not None
    assert state.labelled_image_features is not None
    order = np.argsort(state.images.image_id)
    first = int(rng.integers(max(len(order), 1)))
    picks = k_center(state.image_features[order], state.labelled_image_features, first)
    return ((int(state.images.image_id[order[row]]), far) for row, far in picks)


def image_cald(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """CALD: the least consistent images, reordered so that classes unlike the labelled ones come first.

    The class stage reorders the first 1.2 times as many images as the budget covers, by the JS divergence between the
    softmaxes of the image's class scores and of the mean class counts of the labelled images. Images without
    detections come first. The number of images that a budget covers is estimated from the labelled ones.
    """
    images, labelled = state.images, max(state.images_labelled, 1)
    order = np.lexsort((images.image_id, images.consistency))
    boxes_an_image = max(state.class_counts.sum() / labelled, 1.0)
    head = order[: int(np.ceil(CALD_MARGIN * state.budget / boxes_an_image))]
    scores = images.class_scores[head]
    unlike = js_divergence(_softmax(scores), _softmax(np.tile(state.class_counts / labelled, (len(head), 1))))
    empty = ~scores.any(axis=1)
    head = head[np.lexsort((images.image_id[head], -unlike, ~empty))]
    order = np.concatenate([head, order[len(head) :]])
    return zip(images.image_id[order].tolist(), (-images.consistency[order]).tolist(), strict=True)


def _softmax(values: Floats) -> Floats:
    """Softmax over the last axis: (..., K) -> (..., K)."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def enms_divproto(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Ranking:
    """EnmsDivproto (Wu et al., CVPR 2022): entropy, diversity within and between images, minority classes first.

    The first pass goes by decreasing entropy. It takes an image if its prototypes differ enough from those of the same
    classes taken before (its least cosine is below T_intra), and if it shows with a score above T_inter a minority
    class whose quota is open. The rest follows by entropy. The number of images that a budget covers is estimated from
    the labelled ones. The utility is the entropy of the image.
    """
    classes = len(state.class_counts)
    score, prototypes, confidence = _describe(candidates, state)
    ids = state.images.image_id
    order: list[int] = np.lexsort((ids, -score)).tolist()
    wanted = state.budget / max(state.class_counts.sum() / max(state.images_labelled, 1), 1.0)
    rare = np.lexsort((np.arange(classes), state.class_counts))[: max(round(ALPHA * classes), 1)]
    left = np.zeros(classes)
    left[rare] = np.ceil(BETA * wanted / len(rare))
    chosen: dict[int, list[Floats]] = {c: [] for c in range(classes)}
    later: list[int] = []
    for row in order:
        shown = np.flatnonzero((confidence[row] > INTER) & (left > 0))
        if not len(shown) or _alike(prototypes[row], chosen) >= INTRA:
            later.append(row)
            continue
        left[shown] -= 1
        for label, vector in prototypes[row].items():
            chosen[label].append(vector)
        yield int(ids[row]), float(score[row])
    yield from ((int(ids[row]), float(score[row])) for row in later)


def _describe(candidates: Candidates, state: LabelState) -> tuple[Floats, list[dict[int, Floats]], Floats]:
    """For each image: its entropy after entropy-NMS (I,), a prototype of each class it shows, best scores (I, K)."""
    assert candidates.features is not None
    classes, ids = len(state.class_counts), state.images.image_id
    uncertain = entropies(candidates, classes)
    unit = candidates.features / np.maximum(np.linalg.norm(candidates.features, axis=1, keepdims=True), 1e-12)
    row_of = {int(image_id): row for row, image_id in enumerate(ids)}
    score, confidence = np.zeros(len(ids)), np.zeros((len(ids), classes))
    prototypes: list[dict[int, Floats]] = [{} for _ in ids]
    for image_id, rows in _groups(candidates):
        if image_id not in row_of:
            continue
        image = row_of[image_id]
        np.maximum.at(confidence[image], candidates.labels[rows], candidates.scores[rows])
        kept = rows[entropy_nms(uncertain[rows], candidates.labels[rows], unit[rows])]
        score[image] = uncertain[kept].sum()
        for label in np.unique(candidates.labels[kept]):
            of_class = kept[candidates.labels[kept] == label]
            mean = uncertain[of_class] @ candidates.features[of_class]
            prototypes[image][int(label)] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return score, prototypes, confidence


def entropy_nms(entropy: Floats, labels: Ints, unit_features: Floats) -> Ints:
    """Rows kept when a box suppresses boxes of its class with lower entropy and a cosine above T_enms."""
    like = (unit_features @ unit_features.T > ENMS) & (labels[:, None] == labels[None])
    return np.flatnonzero(keep_best(like, entropy))


def _alike(prototypes: dict[int, Floats], chosen: dict[int, list[Floats]]) -> float:
    """M_g: the minimum, over an image's classes, of the largest cosine to a chosen prototype of that class."""
    return min((max((float(v @ mine) for v in chosen[c]), default=-1.0) for c, mine in prototypes.items()), default=1.0)


def image_per_second(
    candidates: Candidates,
    state: LabelState,
    rng: np.random.Generator,
    *,
    cost: CostSettings = COST,
    proposed_from: float = 1.0,
    sigma: float = 1.0,
) -> Ranking:
    """The images with the largest summed a(b) of Eq. 1 times P(object) per second of the annotator's time.

    Every image takes a scan. Its candidates with a score of at least ``proposed_from`` are checked, and the objects
    expected among the others are drawn. The images are picked one after the other: the objects expected on the picked
    ones count in p(l), so that the next image shows other classes. Ties: the smaller image id.
    """
    classes, ids = len(state.class_counts), np.unique(state.images.image_id)
    rows = np.flatnonzero(np.isin(candidates.image_id, ids))
    found, where = candidates[rows], np.searchsorted(ids, candidates.image_id[rows])
    hit = hits(found, state)
    shown = found.scores >= proposed_from
    seconds = cost.scan + np.bincount(
        where, np.where(shown, check_seconds(found, hit, cost), hit * cost.draw), minlength=len(ids)
    )

    def summed(values: Floats) -> Floats:
        """The sum of each image's values (T,) by class: (I, K)."""
        sums = np.zeros((len(ids), classes))
        np.add.at(sums, (where, found.labels), values)
        return sums

    unsure, expected = summed(found.uncertainty * hit), summed(hit)
    labelled, left = state.class_counts.astype(float), np.arange(len(ids))
    while len(left):
        worth = class_balanced_utility(unsure[left], labelled / max(labelled.sum(), 1.0), sigma).sum(axis=1)
        best = int((worth / seconds[left]).argmax())
        yield int(ids[left[best]]), float(worth[best] / seconds[left[best]])
        labelled += expected[left[best]]
        left = np.delete(left, best)


def _groups(candidates: Candidates) -> Iterator[tuple[int, Ints]]:
    """Each image id with the rows of its candidates, sorted by (image id, box index)."""
    order = np.lexsort((candidates.box_index, candidates.image_id))
    ids, starts = np.unique(candidates.image_id[order], return_index=True)
    return zip(ids.tolist(), np.split(order, starts[1:]), strict=True) if len(order) else iter(())
