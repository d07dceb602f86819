"""Box-level strategies: one function each, from candidates to utilities."""

import numpy as np

from rarebox.method import class_balanced_utility
from rarebox.types import Candidates, Floats, LabelState


def random(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Floats:
    """Uniform over the candidates, whatever order they come in: (T,) in [0, 1)."""
    utility = np.empty(len(candidates))
    utility[np.lexsort((candidates.box_index, candidates.image_id))] = rng.random(len(candidates))
    return utility


def uncertainty(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Floats:
    """u(b) of Eq. 3, row U of Table 1: (T,) in [0, c_m]."""
    return candidates.uncertainty


def class_balanced(
    candidates: Candidates, state: LabelState, rng: np.random.Generator, *, sigma: float = 1.0
) -> Floats:
    """a(b) of Eq. 1, row U+CB of Table 1: (T,) in [0, c_m]."""
    return class_balanced_utility(candidates.uncertainty, state.class_frequency[candidates.labels], sigma)
