"""Strategies choose the next question. A strategy sees candidates and label counts, never the truth, and only ranks.

To add one, write a function like those in ``box.py`` or ``image.py`` and name it here.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from rarebox.config import CostSettings, SelectionSettings
from rarebox.errors import unknown_name
from rarebox.strategies import box, image
from rarebox.strategies.box import Ranking
from rarebox.strategies.pieces import Streamed, first
from rarebox.types import Candidates, LabelState

Strategy = Callable[[Candidates, LabelState, np.random.Generator], Ranking]
"""Candidates (T), labels so far, generator -> ranking, best first: rows of the candidates with their utility, or, for
an image-level strategy, image ids."""

BOX: dict[str, Strategy] = {
    "random": box.random,
    "entropy": box.entropy,
    "coreset": box.coreset,
    "uncertainty": box.uncertainty,
    "class_balanced": box.class_balanced,
    "inverse_frequency": box.inverse_frequency,
    "quota": box.quota,
    "compas": box.compas,
    "per_second": box.per_second,
}

IMAGE: dict[str, Strategy] = {
    "image_random": image.image_random,
    "image_entropy": image.image_entropy,
    "image_coreset": image.image_coreset,
    "image_cald": image.image_cald,
    "enms_divproto": image.enms_divproto,
    "image_per_second": image.image_per_second,
}

SHOWN_AS = {"compas": "compas-like"}
"""Names in figures and tables for strategies that differ from the published ones (docs/strategies.md)."""

STREAMED: dict[str, Streamed] = {
    "random": Streamed(first, frozenset()),
    "entropy": Streamed(first, frozenset({"class_probs"})),
    "uncertainty": Streamed(first, frozenset()),
    "class_balanced": Streamed(first, frozenset()),
    "inverse_frequency": Streamed(first, frozenset()),
    "quota": Streamed(box.quota_keeps, frozenset()),
    "compas": Streamed(first, frozenset({"class_disagreement", "box_disagreement"}), box.compas_extremes),
    "per_second": Streamed(first, frozenset()),
}
"""How box-level strategies rank a pool in pieces (:mod:`rarebox.strategies.pieces`). A strategy that is not listed here
gets the whole pool in memory."""

IMAGE_BY_IMAGE = {"image_entropy": frozenset({"class_probs"})}
"""Image-level strategies whose utility of an image depends only on its own candidates, and the columns that they read.
They get a piece of the pool at a time; the others get the whole pool."""

IMAGE_READS: dict[str, frozenset[str]] = {"image_per_second": frozenset()}
"""The optional columns that an image-level strategy with the whole pool in memory reads. The others read all."""

NEEDS = {
    "coreset": {"features", "box_features"},
    "image_coreset": {"image_features"},
    "enms_divproto": {"features"},
}
"""Additional inputs of strategies: ``features`` of the candidates, ``box_features`` of the labelled boxes,
``image_features`` of labelled and open images."""

BY_HITS = frozenset({"per_second", "image_per_second"})
"""Strategies that use the probability that a box shows an object."""

BLIND = frozenset({"image_random", "image_coreset"})
"""Strategies that use neither candidates nor scores, so the pool need not be scored."""

BY_SCORES = frozenset({"image_cald"})
"""Image-level strategies that use the images' scores and no candidates."""


def choose(settings: SelectionSettings, cost: CostSettings = box.COST, proposed_from: float = 1.0) -> Strategy:
    """The strategy of the settings. Raises UserError, with the nearest name, if it is unknown.

    ``cost`` are the prices of the annotator's actions, by default those of a new run. A whole image is shown with its
    detections from the score ``proposed_from`` up.
    """
    known = {**BOX, **IMAGE}
    if settings.strategy not in known:
        raise unknown_name("strategy", settings.strategy, known)
    if settings.strategy == "class_balanced":
        return partial(box.class_balanced, sigma=settings.sigma)
    if settings.strategy == "per_second":
        return partial(box.per_second, cost=cost, sigma=settings.sigma)
    if settings.strategy == "image_per_second":
        return partial(image.image_per_second, cost=cost, proposed_from=proposed_from, sigma=settings.sigma)
    if settings.strategy == "coreset":
        return partial(box.coreset, points=settings.coreset_points)
    if settings.strategy == "image_entropy":
        return partial(image.image_entropy, pooling=settings.image_entropy)
    return known[settings.strategy]


def streamed(settings: SelectionSettings) -> Streamed:
    """How the box-level strategy of the settings ranks a pool in pieces."""
    if settings.strategy == "coreset":
        return Streamed(partial(box.coreset_keeps, settings.coreset_points), frozenset({"features"}))
    return STREAMED.get(settings.strategy, Streamed())


class Queue:
    """A ranking that is computed as far as it is read."""

    def __init__(self, ranking: Ranking) -> None:
        self._rest: Iterator[tuple[int, float]] = iter(ranking)
        self._seen: list[tuple[int, float]] = []

    def __call__(self, place: int) -> tuple[int, float] | None:
        """The entry at a place, counted from 0, with its utility; None after the end."""
        while len(self._seen) <= place:
            following = next(self._rest, None)
            if following is None:
                return None
            self._seen.append(following)
        return self._seen[place]
