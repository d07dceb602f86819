"""What comes last in a ranking, because a better question is at hand: slivers at the border, and near-duplicates."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from rarebox.core import seeds
from rarebox.core.boxes import keep_best
from rarebox.pool.candidates import Shards
from rarebox.strategies import Ranking
from rarebox.types import Bools, Candidates, Floats, Ints

Sizes = Mapping[int, tuple[int, int]]
"""Width and height of images in pixels, by id."""

EDGE, DEPTH, LENGTH = 0.005, 0.03, 3.0
"""A sliver: a box within EDGE of the border whose depth from there is below DEPTH, both as fractions of the photo's
side, and that is more than LENGTH times as long as deep."""

MOST_COMPARED = 4096
"""Only so many places from the top are compared with one another."""

WIDTH = 64
"""The length of a sketch."""


def slivers(boxes: Floats, sizes: Floats) -> Bools:
    """Boxes at the border of their photo of which hardly anything is visible: (T, 4), (T, 2) -> (T,).

    A photo of unknown size (0) has none.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    touches = (boxes[:, :2] <= EDGE * sizes) | (boxes[:, 2:] >= (1 - EDGE) * sizes)
    thin = touches & (sides < DEPTH * sizes) & (sides[:, ::-1] > LENGTH * sides)
    return thin[:, 0] | thin[:, 1]


def slivers_among(found: Candidates, sizes: Sizes) -> Bools:
    """Which candidates are slivers: (T,)."""
    ids, place = np.unique(found.image_id, return_inverse=True)
    return slivers(found.boxes, np.array([sizes.get(i, (0, 0)) for i in ids.tolist()]).reshape(-1, 2)[place])


def duplicates(found: Candidates, features: Floats, cosine: float) -> Bools:
    """Which candidates, best first, look like a better one of their class on another photo that stays: (T,).

    ``features`` (T, D) are unit vectors; NaN is like nothing. Boxes of one photo are different objects, however much
    they look alike.
    """
    behind = np.zeros(len(found), dtype=bool)
    for label in np.unique(found.labels):
        rows = np.flatnonzero(found.labels == label)
        like = features[rows] @ features[rows].T >= cosine
        like &= found.image_id[rows][:, None] != found.image_id[rows][None]
        behind[rows] = ~keep_best(like, -np.arange(len(rows), dtype=np.float64))
    return behind


def at_the_end(ranking: Ranking, behind: Bools) -> Ranking:
    """The ranking with the rows of ``behind`` (T,) after all others, computed as far as it is read."""
    held: list[tuple[int, float]] = []
    for row, utility in ranking:
        if behind[row]:
            held.append((row, utility))
        else:
            yield row, utility
    yield from held


# ------------------------------------------------------------------------------------------- features


def sketch(features: Floats) -> Floats:
    """Unit vectors (N, WIDTH) whose cosines are about those of the features (N, D): a random projection.

    Johnson and Lindenstrauss 1984. It is the same for all features of a length.
    """
    projection = seeds.stream(0, "sketch", features.shape[1]).standard_normal((features.shape[1], WIDTH))
    return unit(features.astype(np.float64) @ projection).astype(np.float32)


def unit(vectors: Floats) -> Floats:
    """Vectors (N, D) of length 1."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def features_of(found: Candidates, pool: Shards) -> Floats | None:
    """Sketches of the features of candidates of a pool, (T, WIDTH), NaN for those without. None if none has any."""
    row_of = {key: row for row, key in enumerate(_keys(found.image_id, found.box_index))}
    features: Floats | None = None
    for piece in _with_features(pool, found.image_id):
        if features is None:
            features = np.full((len(found), WIDTH), np.nan, dtype=np.float32)
        keys = enumerate(_keys(piece["image_id"], piece["box_index"]))
        pairs = np.array([(row_of[key], here) for here, key in keys if key in row_of], dtype=np.int64).reshape(-1, 2)
        features[pairs[:, 0]] = _as_sketch(piece["features"][pairs[:, 1]].astype(np.float32))
    return features


def _as_sketch(features: Floats) -> Floats:
    """A pool holds sketches already, unless its strategy needs the features themselves."""
    return unit(features) if features.shape[1] == WIDTH else sketch(features)


def _with_features(pool: Shards, image_id: Ints) -> Iterator[dict[str, np.ndarray]]:
    """The rows of these images that have features."""
    for piece in pool.columns(("image_id", "box_index", "features")):
        if "features" in piece and len(here := np.flatnonzero(np.isin(piece["image_id"], image_id))):
            yield {name: column[here] for name, column in piece.items()}


def _keys(image_id: Ints, box_index: Ints) -> Iterable[tuple[int, int]]:
    return zip(image_id.tolist(), box_index.tolist(), strict=True)
