"""A pool in pieces is ranked as in one piece, and memory does not grow with the pool."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox import config, strategies
from rarebox.config import Settings
from rarebox.core import boxes, seeds
from rarebox.core.boxes import far_from
from rarebox.errors import UserError
from rarebox.labels import targets
from rarebox.pool import candidates as pool_file
from rarebox.pool import ranking
from rarebox.pool.candidates import Shards, rows_by_image
from rarebox.strategies import box
from rarebox.types import Candidates, ImageLabels, ImageScores, LabelState, as_boxes, concatenate
from tests.shards import read_all
from tests.thinned import first_seeds, thinned

CLASSES, WIDTH = 4, 5
NAMES = [*strategies.BOX, *strategies.IMAGE]


def made_up(seed: int, images: int = 60, background: bool = True) -> Candidates:
    """Candidates of images, zero to nine of each, with many equal numbers, rounded as in a shard."""
    dice = np.random.default_rng(seed)
    counts = dice.integers(0, 10, images)
    total = int(counts.sum())
    corner = dice.integers(0, 40, (total, 2)).astype(np.float32)
    probs = dice.integers(1, 4, (total, CLASSES + background)).astype(np.float16)
    half = dice.integers(0, 9, (2, total)) / 8
    return Candidates(
        np.repeat(np.arange(images), counts),
        np.concatenate([np.arange(n) for n in counts]),
        np.hstack([corner, corner + dice.integers(5, 20, (total, 2))]),
        dice.integers(0, CLASSES, total),
        dice.integers(1, 10, total) / 10,
        dice.integers(0, 9, total) / 8,
        dice.random(total),
        probs / probs.sum(axis=1, keepdims=True),
        dice.integers(0, 4, (total, WIDTH)).astype(np.float32),
        np.where(dice.random(total) < 0.1, np.nan, half[0]),
        half[1],
    )


def answers(found: Candidates, seed: int) -> dict[int, ImageLabels]:
    """Labels of a third of the images: boxes of every kind on and near the candidates; some images are complete."""
    dice = np.random.default_rng(seed)
    labels = {}
    for image_id in dice.permutation(found.image_id.max() + 1)[: len(np.unique(found.image_id)) // 3].tolist():
        boxes = found.boxes[found.image_id == image_id]
        near = np.vstack([boxes, boxes + dice.integers(0, 9, boxes.shape).astype(np.float32) * [0, 0, 1, 1]])
        human, rejected, skipped = (as_boxes(near[dice.random(len(near)) < 0.15]) for _ in range(3))
        kinds = dice.integers(0, CLASSES, len(human))
        labels[image_id] = ImageLabels(human, kinds, rejected, skipped, complete=bool(dice.random() < 0.2))
    return labels


def write(found: Candidates, folder: Path, images: int) -> list[Path]:
    """Shards of that many images each, in a folder."""
    files = []
    for number, start in enumerate(range(0, int(found.image_id.max()) + 1, images)):
        here = (found.image_id >= start) & (found.image_id < start + images)
        files.append(folder / f"shard_{number:05d}.parquet")
        pool_file.write(files[-1], found[here])
    return files


def settings_of(strategy: str, **changes: Any) -> Settings:
    return config.resolve(changes={"selection.strategy": strategy, "selection.duplicate_cosine": 1, **changes})


def scores_of(images: int) -> ImageScores:
    dice = np.random.default_rng(9)
    return ImageScores(np.arange(images), dice.integers(0, 4, images) / 4, dice.random((images, CLASSES)))


# ------------------------------------------------------------------------------------------- in one piece


def plain_state(
    told: Settings, budget: int, labels: dict[int, ImageLabels], found: Candidates, images: ImageScores
) -> tuple[LabelState, Candidates]:
    """The label state and the open candidates, image by image."""
    free, loose = np.ones(len(found), bool), np.ones(len(found), bool)
    for image_id, rows in rows_by_image(found).items():
        if said := labels.get(image_id):
            free[rows] = ranking.still_open(found.boxes[rows], said, told.selection.answered_iou)
            loose[rows] = targets.remaining(found.boxes[rows], said, told.pseudo)
            loose[rows] &= far_from(found.boxes[rows], said.settled, told.selection.answered_iou)
    counts = np.bincount(ranking.joined([said.labels for said in labels.values()]), minlength=CLASSES)
    reading, sure = told.selection.class_frequency, found.scores >= told.pseudo.class_high
    weights = found.scores if reading == "soft" else sure.astype(float)
    shares = np.bincount(found.labels[loose], weights[loose], CLASSES)
    shares = shares + counts if reading == "with_labels" else shares
    total = shares.max() if reading == "max_normalised" else shares.sum()
    untouched = images[np.array([i not in labels for i in images.image_id.tolist()], dtype=bool)]
    complete = sum(said.complete for said in labels.values())
    return LabelState(shares / max(total, 1e-12), counts, untouched, complete, budget), found[free]


def with_features(state: LabelState) -> LabelState:
    dice = np.random.default_rng(4)
    return replace(
        state,
        box_features=dice.random((3, WIDTH)),
        image_features=dice.random((len(state.images), 3)),
        labelled_image_features=dice.random((2, 3)),
    )


Asked = list[tuple[Any, float]]


def named(found: Candidates, row: int) -> tuple[int, int]:
    return int(found.image_id[row]), int(found.box_index[row])


def in_one_piece(told: Settings, found: Candidates, state: LabelState, seed: int) -> Asked:
    order = strategies.choose(told.selection)(found, state, seeds.stream(seed, "strategy", 2))
    return [(what if told.selection.strategy in strategies.IMAGE else named(found, what), u) for what, u in order]


def streamed(told: Settings, pool: Shards, labels: dict[int, ImageLabels], state: LabelState, seed: int) -> Asked:
    queue = ranking.head(told, pool, labels, state, partial(seeds.stream, seed, "strategy", 2))
    asked: Asked = []
    while item := queue(len(asked)):
        what = item[0] if told.selection.strategy in strategies.IMAGE else named(queue.candidates, item[0])
        asked.append((what, item[1]))
    return asked


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pieces, heads and sorted parts small, so that there are many of each."""
    monkeypatch.setattr(pool_file, "PIECE", 17)
    monkeypatch.setattr(pool_file, "WIDE_PIECE", 13)
    monkeypatch.setattr(ranking, "LEAST", 3)
    monkeypatch.setattr(ranking, "AHEAD", 1)
    monkeypatch.setattr(boxes, "PAIRS", 10)
    monkeypatch.setattr(boxes, "FEW", 0)
    monkeypatch.setattr(box, "SORTED_AT_ONCE", 2)


@pytest.mark.parametrize("seed", first_seeds(3))
@pytest.mark.parametrize("name", NAMES)
def test_a_pool_in_pieces_is_ranked_as_in_one_piece(name: str, seed: int, tmp_path: Path) -> None:
    found = made_up(seed, background=seed != 1)
    labels = answers(found, seed)
    told = settings_of(name, **{"selection.coreset_points": 40, "pseudo.class_high": 0.5})
    files = write(found, tmp_path, images=7)
    whole, images = read_all(tmp_path), scores_of(60)
    state, open_ones = plain_state(told, 5, labels, whole, images)
    known, counts = ranking.label_state(told, 5, labels, Shards(files), images)
    assert known.class_frequency.tolist() == state.class_frequency.tolist()
    assert counts.tolist() == np.bincount(open_ones.labels, minlength=CLASSES).tolist()
    assert known.images.image_id.tolist() == state.images.image_id.tolist()
    assert known.class_counts.tolist() == state.class_counts.tolist()
    wanted = in_one_piece(told, open_ones, with_features(state), seed)
    assert len(wanted) == (len(state.images) if name in strategies.IMAGE else len(open_ones)) > 30
    assert streamed(told, Shards(files), labels, with_features(known), seed) == wanted
    assert streamed(told, Shards([whole]), labels, with_features(known), seed) == wanted


@pytest.mark.parametrize(
    ("reading", "iou"),
    thinned(
        product(["hard", "soft", "with_labels", "max_normalised"], [0.3, 0.0, 1.0]),
        lambda number, case: case[1] == 0.3 or number in (1, 5),
    ),
)
def test_p_of_every_reading_is_the_same_to_the_last_bit(reading: str, iou: float, tmp_path: Path) -> None:
    found = made_up(5)
    labels = answers(found, 5)
    changes = {"selection.class_frequency": reading, "selection.answered_iou": iou, "pseudo.class_high": 0.5}
    changes |= {"pseudo.human_iou": 1 - iou, "pseudo.rejected_iou": iou}
    told = settings_of("class_balanced", **changes)
    state, open_ones = plain_state(told, 5, labels, found, scores_of(60))
    known, counts = ranking.label_state(told, 5, labels, Shards(write(found, tmp_path, images=4)), scores_of(60))
    assert known.class_frequency.tolist() == state.class_frequency.tolist()
    assert state.class_frequency.any()
    assert counts.sum() == len(open_ones)
    sure = ranking.sure_per_class(told, labels, Shards(write(found, tmp_path, images=4)), CLASSES)
    assert sure.sum() > 0
    if reading == "hard":  # the shares of these counts are p(l)
        assert (sure / sure.sum()).tolist() == known.class_frequency.tolist()


@pytest.mark.parametrize("unknown", [False, True])
def test_a_ranking_is_sorted_as_far_as_it_is_read(unknown: bool) -> None:
    found = made_up(4, images=200)[np.random.default_rng(4).permutation(800)]
    utility = found.uncertainty.astype(np.float64)
    utility[::7] = np.nan if unknown else -0.0
    wanted = np.lexsort((found.box_index, found.image_id, -utility))
    order = list(box.by(found, utility))
    assert [row for row, _ in order] == wanted.tolist()
    np.testing.assert_array_equal([u for _, u in order], utility[wanted])


def test_an_unlisted_strategy_gets_the_whole_pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made_up(2)
    given: list[Candidates] = []

    def relative(candidates: Candidates, state: LabelState, rng: np.random.Generator) -> Iterator[tuple[int, float]]:
        """The candidate whose score is nearest to the mean score, which no piece determines."""
        given.append(candidates)
        return box.by(candidates, -np.abs(candidates.scores - candidates.scores.mean()))

    monkeypatch.setitem(strategies.BOX, "relative", relative)
    told = settings_of("relative")
    state, open_ones = plain_state(told, 5, {}, found, scores_of(60))
    asked = streamed(told, Shards(write(found, tmp_path, images=7)), {}, state, 0)
    assert asked == in_one_piece(told, open_ones, state, 0)
    assert len(given[0]) == len(found)
    assert given[0].features is not None


def test_a_used_up_head_is_fetched_twice_as_long(tmp_path: Path) -> None:
    found = made_up(0)
    told = settings_of("uncertainty")
    pool, passes = Shards(write(found, tmp_path, images=7)), []

    class Counted(Shards):
        def pieces(self, rest: Any = ()) -> Iterator[Candidates]:
            passes.append(rest)
            return super().pieces(rest)

    state = LabelState(np.zeros(CLASSES), np.zeros(CLASSES, dtype=np.int64), scores_of(60), budget=5)
    queue = ranking.head(told, Counted(pool.parts), {}, state, partial(seeds.stream, 0, "strategy", 2))
    assert passes == []  # nothing is read before it is requested
    for place, wanted in ((0, 1), (4, 1), (5, 2), (9, 2), (10, 3), (19, 3), (20, 4)):
        assert queue(place) is not None
        assert len(passes) == wanted, place
    assert len(queue.candidates) == 40  # and no more is in memory
    assert queue(10_000) is None


def test_what_uncertainty_would_select_takes_the_earlier_row_of_equal_ones(tmp_path: Path) -> None:
    found = made_up(1)
    labels = answers(found, 1)
    told = settings_of("uncertainty")
    _, open_ones = plain_state(told, 5, labels, found, scores_of(60))
    shards = Shards(write(found, tmp_path, images=7))
    for most in (0, 1, 20, 10_000):
        order = np.argsort(-open_ones.uncertainty, kind="stable")[:most]
        found_labels = ranking.most_uncertain(shards, ranking.Answered(labels), told, most)
        assert found_labels.tolist() == open_ones.labels[order].tolist()


def test_only_the_rows_of_some_images_stay(tmp_path: Path) -> None:
    found = made_up(3)
    counts_as = np.array([0, 1, 2, 1])
    some = Shards(write(found, tmp_path, images=7), counts_as).of_images({3, 20, 21, 59, 1000})
    assert sorted(some) == [i for i in (3, 20, 21, 59) if i in found.image_id]
    for image_id, rows in some.items():
        there = found[found.image_id == image_id]
        assert rows.box_index.tolist() == there.box_index.tolist()
        assert rows.boxes.tolist() == there.boxes.tolist()
        assert rows.labels.tolist() == counts_as[there.labels].tolist()


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    files = write(made_up(3), tmp_path, images=7)
    files[2].write_bytes(files[2].read_bytes()[:-40])
    with pytest.raises(UserError, match="shard_00002"):
        list(Shards(files).pieces())


@pytest.mark.parametrize(
    "name",
    thinned(["class_balanced", "coreset", "quota", "compas", "random"], lambda number, _: number < 2),
)
def test_memory_does_not_grow_with_the_pool(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five times a pool that fills the best K: the same peak; arrays of all of it would be five times as large."""
    monkeypatch.undo()
    monkeypatch.setattr(pool_file, "PIECE", 1000)
    monkeypatch.setattr(pool_file, "WIDE_PIECE", 500)
    monkeypatch.setattr(ranking, "LEAST", 250)
    told = settings_of(name, **{"selection.coreset_points": 250})
    made = made_up(0, images=600)
    file = tmp_path / "shard.parquet"
    pool_file.write(file, made)
    labels = answers(made, 0)

    def peak(times: int) -> int:
        images, parts = scores_of(600), Shards([file] * times)
        tracemalloc.start()
        state, counts = ranking.label_state(told, 50, labels, parts, images)
        state = with_features(state)
        queue = ranking.head(told, parts, labels, state, partial(seeds.stream, 0, "strategy", 2))
        assert queue(100) is not None
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert counts.sum() > 750 * times
        return highest

    peak(1)  # what is imported and kept the first time
    small, large = peak(5), peak(25)
    assert large < 1.2 * small


def test_pieces_join_to_what_was_written(tmp_path: Path) -> None:
    found = made_up(7)
    together = concatenate(list(Shards(write(found, tmp_path, images=7)).pieces(pool_file.REST)))
    for name in (*pool_file.PLAIN, "features", "class_disagreement", "box_disagreement"):
        np.testing.assert_array_equal(getattr(together, name), getattr(found, name))
