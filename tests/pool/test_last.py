"""Slivers at the border and near-duplicates come last, and nothing is dropped."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox import config
from rarebox.core import seeds
from rarebox.pool import candidates as pool_file
from rarebox.pool import last, ranking
from rarebox.pool.candidates import Shards
from rarebox.types import Candidates, ImageScores, LabelState

SIZE = (640, 480)


@pytest.mark.parametrize(
    ("box", "wanted"),
    [
        ([0, 100, 10, 140], True),  # at the left border, 10 of 640 pixels deep
        ([3, 100, 13, 140], True),  # within half a percent of it
        ([632, 100, 640, 140], True),
        ([100, 0, 140, 9], True),
        ([100, 472, 140, 480], True),
        ([5, 100, 15, 140], False),  # not at the border
        ([0, 100, 20, 200], False),  # deeper than 3 % of the width
        ([0, 100, 10, 130], False),  # three times as long as deep, not more
        ([0, 0, 10, 8], False),  # a small thing in the corner
        ([0, 200, 640, 214], False),  # a thin thing across the photo touches the border with its ends
    ],
)
def test_slivers_by_hand(box: list[float], wanted: bool) -> None:
    assert last.slivers(np.array([box], np.float32), np.array([SIZE])).tolist() == [wanted]


def test_a_photo_of_unknown_size_has_no_slivers() -> None:
    assert not last.slivers(np.array([[0, 0, 1, 90]], np.float32), np.array([[0, 0]])).any()


def table(
    rows: Sequence[tuple[int, int]], features: Sequence[Sequence[float]] | None = None, **columns: Any
) -> Candidates:
    """Candidates from (image, label), best first."""
    count = len(rows)
    images, labels = np.array(rows).T
    boxes = columns.get("boxes", np.tile([50, 50, 90, 90], (count, 1)))
    value = np.linspace(1, 0.5, count)
    vectors = None if features is None else np.array(features, np.float16)
    return Candidates(images, np.arange(count), boxes, labels, value, value, value, np.ones((count, 1)), vectors)


def at(*degrees: float) -> list[list[float]]:
    return [[np.cos(np.radians(each)), np.sin(np.radians(each))] for each in degrees]


@pytest.mark.parametrize(
    ("rows", "degrees", "wanted"),
    [
        ([(1, 0), (2, 0)], (0, 5), [False, True]),
        ([(1, 0), (2, 0)], (0, 15), [False, False]),  # not alike enough
        ([(1, 0), (1, 0)], (0, 5), [False, False]),  # two objects of one photo
        ([(1, 0), (2, 1)], (0, 5), [False, False]),  # two classes
        ([(1, 0), (2, 0)], (0, np.nan), [False, False]),  # unknown
        ([(1, 0), (2, 0), (3, 0)], (0, 8, 16), [False, True, False]),  # the last is like the second, which comes last
        ([(1, 0), (2, 0), (3, 0), (4, 0)], (0, 40, 5, 45), [False, False, True, True]),
    ],
)
def test_duplicates_by_hand(rows: list[tuple[int, int]], degrees: tuple[float, ...], wanted: list[bool]) -> None:
    found = table(rows)
    assert last.duplicates(found, np.array(at(*degrees)), np.cos(np.radians(10))).tolist() == wanted


def test_sketches_keep_cosines() -> None:
    """Of a nearly equal pair exactly enough to tell it from any other."""
    dice = np.random.default_rng(0)
    one = dice.standard_normal((200, 1024)).astype(np.float32)
    near = one + 0.1 * dice.standard_normal((200, 1024)).astype(np.float32)
    first, second = last.sketch(one), last.sketch(near)
    assert first.shape == (200, last.WIDTH)
    np.testing.assert_allclose((first**2).sum(axis=1), 1, rtol=1e-5)
    same, others = (first * second).sum(axis=1), (first[:-1] * second[1:]).sum(axis=1)
    assert same.min() > 0.98  # 0.995 before
    assert others.max() < 0.6
    np.testing.assert_allclose(last.sketch(one[3:5]), first[3:5], atol=1e-6)


# ------------------------------------------------------------------------------------------- in a ranking


def order(found: Candidates, pool: Shards | None = None, /, **changes: Any) -> list[tuple[int, int]]:
    """(image, box index) in the order of asking, of a pool that the strategy ranks as it is."""
    settings = config.resolve(changes={"selection.strategy": "uncertainty", "selection.duplicate_cosine": 1, **changes})
    state = LabelState(np.zeros(3), np.zeros(3, np.int64), ImageScores.none(3), budget=1)
    sizes = dict.fromkeys(found.image_id.tolist(), SIZE)
    rng = partial(seeds.stream, 0, "strategy", 2)
    queue = ranking.head(settings, pool or Shards([found]), {}, state, rng, sizes)
    asked: list[tuple[int, int]] = []
    while item := queue(len(asked)):
        asked.append((int(queue.candidates.image_id[item[0]]), int(queue.candidates.box_index[item[0]])))
    return asked


SLIVER, INNER = [0, 100, 10, 140], [50, 50, 90, 90]


def test_slivers_come_after_everything_else_in_their_own_order() -> None:
    found = table([(i, 0) for i in range(6)], boxes=[SLIVER, INNER, SLIVER, INNER, INNER, SLIVER])
    assert [image for image, _ in order(found)] == [1, 3, 4, 0, 2, 5]
    assert [image for image, _ in order(found, **{"selection.slivers_last": False})] == [0, 1, 2, 3, 4, 5]


def test_duplicates_come_last_and_are_asked_when_nothing_else_is_left() -> None:
    found = table([(0, 0), (1, 0), (2, 0), (3, 1)], at(0, 5, 90, 0))
    assert [image for image, _ in order(found, **{"selection.duplicate_cosine": 0.98})] == [0, 2, 3, 1]
    assert [image for image, _ in order(found)] == [0, 1, 2, 3]


def test_without_features_nothing_is_a_duplicate() -> None:
    found = table([(0, 0), (1, 0)])
    assert [image for image, _ in order(found, **{"selection.duplicate_cosine": 0.5})] == [0, 1]


def test_a_pool_read_in_pieces_has_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where so many boxes come last that more of the pool must be read."""
    dice = np.random.default_rng(1)
    count = 400
    boxes = np.where(dice.random((count, 1)) < 0.6, SLIVER, INNER)
    found = table([(i, int(dice.integers(2))) for i in range(count)], at(*(90 * dice.random(count))), boxes=boxes)
    changes = {"selection.duplicate_cosine": 0.9999}
    whole = order(found, **changes)
    assert sorted(whole) == sorted(zip(found.image_id.tolist(), found.box_index.tolist(), strict=True))
    monkeypatch.setattr(ranking, "LEAST", 16)
    monkeypatch.setattr(ranking, "AHEAD", 1)
    files = [tmp_path / f"shard_{start:05d}.parquet" for start in range(0, count, 50)]
    for start, file in zip(range(0, count, 50), files, strict=True):
        pool_file.write(file, found[start : start + 50])
    pieces = order(found, Shards(files), **changes)
    assert pieces == order(found, **changes) == whole
