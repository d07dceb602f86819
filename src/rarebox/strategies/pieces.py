"""Ranking of a pool in pieces, in the same order as the whole pool.

A box among the first places of the whole ranking is among the first places of any part that contains it. So the rows so
far are reduced to those that may be among the first, the next piece is added, and at the end the strategy ranks the
rest.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from rarebox.strategies import image
from rarebox.strategies.box import Ranking
from rarebox.types import Candidates, Floats, Ints, LabelState, concatenate

Rank = Callable[[Candidates, LabelState], Ranking]
"""A strategy with its random generator."""

Keep = Callable[[Rank, Candidates, LabelState, int], Ints]
"""(strategy, candidates so far, labels so far, places) -> rows that may be in the first ``places`` at the end."""


def first(rank: Rank, candidates: Candidates, state: LabelState, places: int) -> Ints:
    """The first rows of the ranking, for strategies whose utility of a box depends only on the box."""
    return np.fromiter((row for row, _ in islice(rank(candidates, state), places)), dtype=np.int64)


def everything(rank: Rank, candidates: Candidates, state: LabelState, places: int) -> Ints:
    """All rows, for strategies that declare nothing."""
    return np.arange(len(candidates))


@dataclass(frozen=True)
class Streamed:
    """How a box-level strategy ranks a pool in pieces.

    ``keep`` selects the rows to keep. ``reads`` names the optional columns that the strategy reads (None: all).
    ``beside`` selects rows that the strategy must see beside any part of the pool, to rank it as within the whole.
    """

    keep: Keep = everything
    reads: frozenset[str] | None = None
    beside: Callable[[Candidates], Ints] | None = None


def shrink(pieces: Iterable[Candidates], keep: Callable[[Candidates], Ints]) -> tuple[Candidates | None, bool]:
    """Concatenate pieces, dropping rows that ``keep`` does not select. Returns the rest, and whether it is complete.

    Up to as many new rows as kept ones are collected between two selections, so that no row is compared often.
    """
    waiting: list[Candidates] = []
    kept, come, whole = 0, 0, True

    def drop() -> None:
        nonlocal kept, come, whole
        together = concatenate(waiting)
        rows = keep(together)
        whole = whole and len(rows) == len(together)
        kept, come = len(rows), 0
        waiting[:] = [together[rows]]

    for piece in pieces:
        waiting.append(piece)
        come += len(piece)
        if come >= kept:
            drop()
    if come:
        drop()
    return (waiting[0] if waiting else None), whole


def head_of(
    streamed: Streamed, rank: Rank, pieces: Callable[[], Iterable[Candidates]], state: LabelState, places: int
) -> tuple[Candidates, Ranking, float]:
    """Candidates, their ranking, and how many of its places equal those of the whole pool: at least ``places``."""
    among = rank
    if streamed.beside and (beside := shrink(pieces(), streamed.beside)[0]):
        among = _beside(beside, rank)
    kept, whole = shrink(pieces(), lambda together: streamed.keep(among, together, state, places))
    if kept is None:
        return Candidates.none(0), iter(()), np.inf
    return kept, among(kept, state), np.inf if whole else places


def _beside(others: Candidates, rank: Rank) -> Rank:
    """The strategy that ranks candidates together with some others and then omits those others."""

    def among(candidates: Candidates, state: LabelState) -> Ranking:
        ranking = rank(concatenate([others, candidates]), state)
        return ((row - len(others), utility) for row, utility in ranking if row >= len(others))

    return among


def image_by_image(rank: Rank, pieces: Iterable[Candidates], state: LabelState) -> Ranking:
    """Rank whole images by a strategy whose utility of an image depends only on its own candidates.

    The candidates of an image must be adjacent.
    """
    images = state.images[np.argsort(state.images.image_id)]
    seen = np.zeros(len(images), dtype=bool)
    found: list[tuple[Ints, Floats]] = []

    def rank_here(candidates: Candidates, here: Ints) -> None:
        ranking = list(rank(candidates, replace(state, images=images[here])))
        found.append((np.array([i for i, _ in ranking], np.int64), np.array([u for _, u in ranking], np.float64)))
        seen[here] = True

    rest: Candidates | None = None
    for piece in pieces:
        together = piece if rest is None else concatenate([rest, piece])
        if not len(together):
            continue
        last = together.image_id == together.image_id[-1]  # its other candidates may be in the next piece
        rest, done = together[last], together[~last]
        rank_here(done, np.flatnonzero(np.isin(images.image_id, done.image_id)))
    if rest is not None:
        rank_here(rest, np.flatnonzero(np.isin(images.image_id, rest.image_id)))
        rank_here(rest[:0], np.flatnonzero(~seen))
    else:
        rank_here(Candidates.none(len(state.class_counts)), np.flatnonzero(~seen))
    ids, utility = (np.concatenate(column) for column in zip(*found, strict=True))
    return image.by(ids, utility)
