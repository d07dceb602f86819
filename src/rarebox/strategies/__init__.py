"""How candidates are ranked. A strategy sees candidates and label counts, never the truth, and only ranks.

To add one: write a function like those in ``box.py`` and give it a name here.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from rarebox.errors import unknown_name
from rarebox.strategies import box
from rarebox.types import Candidates, Floats, LabelState

Strategy = Callable[[Candidates, LabelState, np.random.Generator], Floats]
"""Candidates (T), labels so far, randomness -> the utility of each candidate (T,); the highest is asked first."""


def strategies(sigma: float) -> dict[str, Strategy]:
    """Every strategy by its name."""
    return {
        "random": box.random,
        "uncertainty": box.uncertainty,
        "class_balanced": partial(box.class_balanced, sigma=sigma),
    }


def choose(name: str, sigma: float = 1.0) -> Strategy:
    """The strategy of that name, or a UserError with the nearest one."""
    known = strategies(sigma)
    if name not in known:
        raise unknown_name("strategy", name, known)
    return known[name]


def rank(candidates: Candidates, utility: Floats) -> np.ndarray:
    """Rows by falling utility, ties by (image id, box index): (T,) -> (T,) row numbers (decisions row 28)."""
    return np.lexsort((candidates.box_index, candidates.image_id, -utility))
