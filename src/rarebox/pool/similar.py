"""Find more like this: the candidates of any guessed class that look most like given boxes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rarebox.core.boxes import nearest
from rarebox.types import Floats, Ints, Rows, as_boxes

FLOOR = 0.6
"""The least similarity of a box that is offered (decisions row 48)."""

MOST = 30
"""The most boxes that one search offers."""

MOST_TRIED = 3000
"""The number of most similar boxes among which a search looks for ones that nobody has answered."""

MOST_EXAMPLES = 1000
"""Only so many boxes of a class, the latest, are compared with."""

SAME_BOX = 0.5
"""A box has the features of the known one on its image that overlaps it most, from this IoU up."""

PIECE = 8192
"""Candidates that are compared at a time."""

SIMILARITY = "similarity"
"""The key in a query's reasons that holds how much its box looks like an example: a cosine, at most 1."""


@dataclass(frozen=True, eq=False)
class BoxFeatures(Rows):
    """Boxes with their features, unit vectors (T, D); NaN for a box without."""

    image_id: Ints
    boxes: Floats
    features: Floats

    def __post_init__(self) -> None:
        self._column("image_id", np.int64)
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("features", np.float32, (None,))


@dataclass(frozen=True, eq=False)
class Search:
    """What one person looks for in a cycle: ``places`` of its ranking with their similarity, the most similar first.

    ``label`` is offered as the class; with None it is the detector's guess.
    """

    cycle: int
    label: int | None
    places: Mapping[int, float]

    def found(self, why: Mapping[str, float] | None) -> bool:
        """Whether a question with these reasons is about one of the boxes."""
        return why is not None and SIMILARITY in why and why.get("rank") in self.places


def rows_of(among: BoxFeatures, image_id: Ints, boxes: Floats) -> Ints:
    """The rows of the boxes with features that match some boxes: (E,), (E, 4). Ascending; a box may have none."""
    known = np.flatnonzero(np.isin(among.image_id, image_id) & np.isfinite(among.features).all(axis=1))
    partner, _ = nearest(boxes, among.boxes[known], SAME_BOX, image_id, among.image_id[known])
    return known[np.unique(partner[partner >= 0])]


def similarity(features: Floats, examples: Floats) -> Floats:
    """The cosine of each box with the nearest example: unit vectors (T, D), (E, D) -> (T,). -1 for NaN."""
    pieces = [features[start : start + PIECE] @ examples.T for start in range(0, len(features), PIECE)]
    nearest_one = [piece.max(axis=1, initial=-1) for piece in pieces]
    return np.nan_to_num(np.concatenate([np.zeros(0, np.float32), *nearest_one]), nan=-1)


def most_similar(similarity: Floats, least: float = FLOOR) -> Ints:
    """The first rows with at least this similarity, the most similar first; ties: the earlier row."""
    order = np.argsort(-similarity, kind="stable")
    return order[: min(int((similarity >= least).sum()), MOST_TRIED)]
