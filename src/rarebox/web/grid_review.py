"""Grid review: which boxes of one class a person may check at once."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

CROPS = 12
"""The most boxes of one grid."""

FEWEST = 4
"""The fewest. Fewer than these are asked about one at a time."""

AHEAD = 200
"""How many of the next questions are searched for likely boxes."""


class Crop(NamedTuple):
    """A likely box: its place in the ranking, the class it is taken for, and its question if it has one."""

    place: int
    label: int
    query: int | None


def grid_of(crops: Sequence[Crop], most_new: int) -> list[Crop]:
    """The crops of one grid, best first: of the class with the most of them, or none if they are too few.

    At most ``most_new`` of them have no question yet.
    """
    best: list[Crop] = []
    for label in dict(Counter(crop.label for crop in crops)):
        own = sorted(crop for crop in crops if crop.label == label)
        new = [crop for crop in own if crop.query is None][:most_new]
        grid = sorted([*(crop for crop in own if crop.query is not None), *new])[:CROPS]
        best = max(best, grid, key=len)
    return best if len(best) >= FEWEST else []
