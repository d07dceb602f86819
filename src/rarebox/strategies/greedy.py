"""Rankings made one by one, as they are asked for: what comes next depends on what was taken."""

from collections.abc import Iterator

import numpy as np

from rarebox.types import Floats

CHUNK = 256
"""Centres whose distances are computed at once; bounds the memory to that many columns."""


def k_center(points: Floats, centres: Floats, first: int) -> Iterator[tuple[int, float]]:
    """k-center greedy (Sener and Savarese, "CoreSet"): always the point farthest from all centres so far.

    ``points`` (N, D), ``centres`` (L, D) that are taken already; without any, ``first`` opens. Yields (row, Euclidean
    distance to the nearest centre), every row once; what the caller then passes over counts as a centre all the same.
    Only the running minimum is kept: O(N) memory, O(N D) a pick. A point that holds NaN is as far from all as can be.
    """
    points = np.ascontiguousarray(points, dtype=np.float32)
    squares = np.einsum("nd,nd->n", points, points)
    nearest = np.full(len(points), np.inf, dtype=np.float32)
    for start in range(0, len(centres), CHUNK):
        chunk = np.asarray(centres[start : start + CHUNK], dtype=np.float32)
        product = points @ chunk.T
        np.multiply(product, -2, out=product)
        product += np.einsum("nd,nd->n", chunk, chunk)
        np.fmin(nearest, squares + np.fmin.reduce(product, axis=1), out=nearest)
    if len(points) and not len(centres):
        nearest[first] = np.inf
        nearest[:first] = nearest[first + 1 :] = np.finfo(np.float32).max
    distance = np.empty_like(nearest)
    for _ in range(len(points)):
        row = int(nearest.argmax())
        yield row, float(np.sqrt(max(nearest[row], 0.0)))
        np.dot(points, points[row], out=distance)
        np.multiply(distance, -2, out=distance)
        distance += squares
        distance += squares[row]
        np.fmin(nearest, distance, out=nearest)
        nearest[row] = -np.inf
