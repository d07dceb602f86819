"""Greedy rankings, computed pick by pick: each pick depends on the earlier ones."""

from collections.abc import Iterator

import numpy as np

from rarebox.types import Floats

CHUNK = 256
"""The number of centres whose distances are computed at once, which bounds the memory."""


def k_center(points: Floats, centres: Floats, first: int) -> Iterator[tuple[int, float]]:
    """k-center greedy (Sener and Savarese, "CoreSet"): each pick is the point farthest from all centres so far.

    ``points`` is (N, D). ``centres`` (L, D) are the initial centres; if there are none, row ``first`` is picked first.
    Yields (row, Euclidean distance to the nearest centre), every row once. A row that the caller skips still counts as
    a centre. Only the running minimum is stored: O(N) memory, O(N D) per pick. A point with NaN counts as farthest.
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
