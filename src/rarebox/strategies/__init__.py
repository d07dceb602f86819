"""How the next question is chosen. A strategy sees candidates and label counts, never the truth, and only ranks.

To add one: write a function like those in ``box.py`` or ``image.py`` and give it a name here.
"""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from rarebox.config import SelectionSettings
from rarebox.errors import unknown_name
from rarebox.strategies import box, image
from rarebox.strategies.box import Ranking
from rarebox.types import Candidates, LabelState

Strategy = Callable[[Candidates, LabelState, np.random.Generator], Ranking]
"""Candidates (T), labels so far, randomness -> what to ask, best first: rows of the candidates with their utility,
or, of an image-level strategy, ids of images."""

BOX: dict[str, Strategy] = {
    "random": box.random,
    "entropy": box.entropy,
    "coreset": box.coreset,
    "uncertainty": box.uncertainty,
    "class_balanced": box.class_balanced,
    "inverse_frequency": box.inverse_frequency,
    "quota": box.quota,
    "compas": box.compas,
}

IMAGE: dict[str, Strategy] = {
    "image_random": image.image_random,
    "image_entropy": image.image_entropy,
    "image_coreset": image.image_coreset,
    "image_cald": image.image_cald,
    "enms_divproto": image.enms_divproto,
}

NEEDS = {
    "coreset": {"features", "box_features"},
    "image_coreset": {"image_features"},
    "enms_divproto": {"features"},
}
"""What must be computed for a strategy besides the rest: ``features`` of the candidates, ``box_features`` of the
labelled boxes, ``image_features`` of labelled and open images."""

BLIND = frozenset({"image_random", "image_coreset"})
"""Strategies that look at no candidate and no score: the pool is not scored for their sake."""


def choose(settings: SelectionSettings) -> Strategy:
    """The strategy that the settings name, or a UserError with the nearest one."""
    known = {**BOX, **IMAGE}
    if settings.strategy not in known:
        raise unknown_name("strategy", settings.strategy, known)
    if settings.strategy == "class_balanced":
        return partial(box.class_balanced, sigma=settings.sigma)
    if settings.strategy == "image_entropy":
        return partial(image.image_entropy, pooling=settings.image_entropy)
    return known[settings.strategy]


class Queue:
    """A ranking that is made as far as it is looked at."""

    def __init__(self, ranking: Ranking) -> None:
        self._rest: Iterator[tuple[int, float]] = iter(ranking)
        self._seen: list[tuple[int, float]] = []

    def __call__(self, place: int) -> tuple[int, float] | None:
        """What stands at a place, counted from 0, with its utility; None behind the end."""
        while len(self._seen) <= place:
            following = next(self._rest, None)
            if following is None:
                return None
            self._seen.append(following)
        return self._seen[place]
