"""Checks in the constructors of the data types, and the geometry of boxes."""

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarebox.core import boxes, parquet, seeds
from rarebox.labels.combining import Said, combined
from rarebox.types import (
    Answer,
    Candidates,
    Detections,
    GroundTruth,
    Picture,
    Source,
    Targets,
    Verdict,
    as_boxes,
    concatenate,
)

SIDE = st.integers(1, 30)


@st.composite
def some_boxes(draw: st.DrawFn, most: int = 12) -> np.ndarray:
    """Up to ``most`` boxes with whole-number corners, many of which overlap."""
    count = draw(st.integers(0, most))
    corner = draw(arrays(np.int64, (count, 2), elements=st.integers(0, 30)))
    size = draw(arrays(np.int64, (count, 2), elements=SIDE))
    return np.concatenate([corner, corner + size], axis=1).astype(np.float32)


# ------------------------------------------------------------------------------------------- authentication


def test_boxes_become_float32_rows_and_none_is_an_empty_table() -> None:
    assert as_boxes([[0, 1, 2, 3]]).dtype == np.float32
    assert as_boxes([]).shape == (0, 4)


@pytest.mark.parametrize("wrong", [[1, 2, 3, 4], [[1, 2, 3]], [[[1, 2, 3, 4]]]])
def test_boxes_of_another_shape_are_refused(wrong: list) -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\)"):
        as_boxes(wrong)


@pytest.mark.parametrize("wrong", [[5, 5, 5, 9], [5, 5, 9, 5], [9, 5, 5, 9], [0, 0, np.inf, 5], [0, 0, np.nan, 5]])
def test_boxes_without_area_or_with_nan_are_refused(wrong: list[float]) -> None:
    with pytest.raises(ValueError, match="finite with x2 > x1"):
        as_boxes([[0, 0, 1, 1], wrong])


def test_columns_of_another_length_are_refused() -> None:
    two, none = as_boxes([[0, 0, 1, 1], [0, 0, 2, 2]]), np.zeros(2, dtype=np.int64)
    with pytest.raises(ValueError, match="labels"):
        Detections(two, none[:1], np.zeros(2), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="class_probs"):
        Detections(two, none, np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match="features"):
        Detections(two, none, np.zeros(2), np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="labels"):
        Answer(1, two, np.array([1]), Verdict.OBJECT)
    with pytest.raises(ValueError, match="difficult"):
        GroundTruth(two, none, np.zeros(3, dtype=bool))


@pytest.mark.parametrize("weight", [-0.1, 1.1, np.nan])
def test_weights_outside_0_to_1_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="class_weight"):
        Targets.of([[0, 0, 1, 1]], [0], class_weight=weight)
    with pytest.raises(ValueError, match="box_weight"):
        Targets.of([[0, 0, 1, 1]], [0], box_weight=weight)


def test_pixels_must_be_rgb_bytes() -> None:
    with pytest.raises(ValueError, match="uint8"):
        Picture(np.zeros((4, 4, 3), dtype=np.float32), 4, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint8"):
        Picture(np.zeros((4, 4), dtype=np.uint8), 4, 4)


# ------------------------------------------------------------------------------------------- tables


def table(labels: list[int], features: bool = True) -> Detections:
    n = len(labels)
    corner = np.arange(n, dtype=float)[:, None] + np.array([0, 0, 1, 1])
    return Detections(
        corner, np.array(labels), np.arange(n) / 10, np.ones((n, 2)), np.full((n, 5), 7.0) if features else None
    )


def test_indexing_takes_the_same_rows_of_every_column() -> None:
    found = table([4, 5, 6])
    for rows in (np.array([False, True, True]), np.array([1, 2]), slice(1, 3)):
        part = found[rows]
        assert part.labels.tolist() == [5, 6]
        assert part.boxes[:, 0].tolist() == [1, 2]
        assert part.features is not None
        assert part.features.shape == (2, 5)
    assert table([4, 5], features=False)[:1].features is None


def test_concatenation_keeps_the_order_and_an_optional_column_only_where_all_have_it() -> None:
    together = concatenate([table([1, 2]), table([]), table([3])])
    assert together.labels.tolist() == [1, 2, 3]
    assert together.features is not None
    assert concatenate([table([1]), table([2], features=False)]).features is None


def test_targets_of_one_source_take_one_number_for_all_or_one_for_each() -> None:
    two = Targets.of([[0, 0, 1, 1], [0, 0, 2, 2]], [3, 4], Source.PSEUDO, 0.5, [0.0, 1.0])
    assert two.class_weight.tolist() == [0.5, 0.5]
    assert two.box_weight.tolist() == [0, 1]
    assert two.background.tolist() == [False, False]
    assert two.source.tolist() == ["pseudo", "pseudo"]
    assert len(Targets.of([], [])) == 0


def test_no_candidates_is_a_table_with_the_right_widths() -> None:
    none = Candidates.none(7)
    assert len(none) == 0
    assert none.class_probs.shape == (0, 7)


@given(st.lists(st.integers(0, 5), max_size=6), st.booleans())
def test_columns_are_read_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, labels: list[int], wide: bool
) -> None:
    file = tmp_path_factory.mktemp("tables") / "deep" / "some.parquet"
    columns = {"labels": np.array(labels, dtype=np.int64), "names": np.array([str(i) for i in labels], dtype=object)}
    if wide:
        columns["probs"] = np.random.default_rng(0).random((len(labels), 3)).astype(np.float16)
    parquet.write(file, columns)
    back = parquet.read(file)
    assert back.keys() == columns.keys()
    for name, column in columns.items():
        assert back[name].shape == column.shape
        assert back[name].tolist() == column.tolist()


def test_a_truncated_file_counts_as_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def burst(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", burst)
    with pytest.raises(OSError, match="disk full"):
        parquet.write(tmp_path / "a.parquet", {"x": np.zeros(1)})
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- geometry by hand


def test_iou_by_hand() -> None:
    # [0,0,4,4] and [2,2,6,6] share 2 x 2 = 4 of 16 + 16 - 4 = 28; [4,0,8,4] only touches; [1,1,3,3] lies inside: 4 / 16
    ours, others = as_boxes([[0, 0, 4, 4]]), as_boxes([[2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3], [0, 0, 4, 4]])
    assert boxes.iou_matrix(ours, others)[0] == pytest.approx([4 / 28, 0, 4 / 16, 1])
    assert boxes.paired_iou(ours, others) == pytest.approx([4 / 28, 0, 4 / 16, 1])
    assert boxes.area(others).tolist() == [16, 16, 4, 16]


def test_cover_is_the_fraction_of_the_box_not_of_the_patch() -> None:
    # the patch hides 2 x 4 of the box's 16 pixels, and all of the small box
    assert boxes.cover(as_boxes([[0, 0, 4, 4], [3, 0, 4, 1]]), as_boxes([[2, 0, 10, 4]])).tolist() == [[0.5], [1]]


def test_clip_cuts_at_the_borders() -> None:
    assert boxes.clip(np.array([[-3.0, 2, 50, 40]]), 20, 30).tolist() == [[0, 2, 20, 30]]


def test_the_hull_of_a_rotated_box() -> None:
    wide = [30, 50, 130, 70]
    assert boxes.hull_of_turned(wide, 0).tolist() == wide
    for degrees in (90, -90, 450):
        assert boxes.hull_of_turned(wide, degrees) == pytest.approx([70, 10, 90, 110])
    # Clockwise about its first corner: what was below is now on the left.
    assert boxes.hull_of_turned(wide, 90, about=(30, 50)) == pytest.approx([10, 50, 30, 150])
    assert boxes.hull_of_turned(wide, 180, about=(30, 50)) == pytest.approx([-70, 30, 30, 50])
    half = 120 / 8**0.5  # half of (100 + 20) / sqrt(2)
    assert boxes.hull_of_turned(wide, 45) == pytest.approx([80 - half, 60 - half, 80 + half, 60 + half])


@given(st.floats(-720, 720), st.tuples(st.floats(1, 50), st.floats(1, 50)))
def test_the_hull_of_an_ellipse_holds_its_outline_and_touches_it(degrees: float, radii: tuple[float, float]) -> None:
    angles = np.linspace(0, 2 * np.pi, 2000)
    turn = np.radians(degrees)
    outline = np.stack([radii[0] * np.cos(angles), radii[1] * np.sin(angles)], axis=1)
    outline = outline @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + [7, 9]
    assert boxes.hull_of_ellipse((7, 9), radii, degrees) == pytest.approx(boxes.hull(outline), abs=1e-3)


@given(some_boxes(), some_boxes())
def test_iou_is_symmetric_between_0_and_1_and_1_only_with_itself(one: np.ndarray, other: np.ndarray) -> None:
    iou = boxes.iou_matrix(one, other)
    assert iou.shape == (len(one), len(other))
    assert (iou == boxes.iou_matrix(other, one).T).all()
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((iou == 1) == (one[:, None] == other[None]).all(axis=2)).all()


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits, so that a dozen boxes count as many."""
    monkeypatch.setattr(boxes, "FEW", 0)
    monkeypatch.setattr(boxes, "PAIRS", 5)
    monkeypatch.setattr(boxes, "BLOCK", 3)


GROUPS = st.lists(st.integers(-2, 2**40), min_size=3, max_size=3)
SHARE = st.sampled_from([0.0, 1 / 7, 0.25, 0.5, 0.9999, 1.0])
MOVED = st.sampled_from([0.0, 1e-3, 7777.7, 1e6])


@pytest.mark.usefixtures("in_small_pieces")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_boxes(), some_boxes(), SHARE, st.none() | GROUPS, MOVED)
def test_overlapping_boxes_are_those_of_all_against_all(
    one: np.ndarray, other: np.ndarray, iou: float, groups: list[int] | None, moved: float
) -> None:
    one, other = one * np.float32(0.37) + np.float32(moved), other * np.float32(0.37) + np.float32(moved)
    if not ((one[:, 2:] > one[:, :2]).all() and (other[:, 2:] > other[:, :2]).all()):
        return  # moved so far that float32 has no room for their sides
    wanted = boxes.iou_matrix(one, other)
    group = other_group = None
    if groups:
        group, other_group = (np.resize(np.array(groups), len(some)) for some in (one, other[::-1]))
        wanted = np.where(group[:, None] == other_group[None], wanted, 0)
    wanted = np.where(wanted >= iou, wanted, 0)
    found = np.zeros_like(wanted)
    for rows, columns, value in boxes.overlapping(one, other, iou, group, other_group):
        assert (found[rows, columns] == 0).all()
        assert (value > 0).all()
        found[rows, columns] = value
    assert (found == wanted).all()
    partner, best = boxes.nearest(one, other, iou, group, other_group)
    assert best.tolist() == wanted.max(axis=1, initial=0).tolist()
    assert partner.tolist() == [int(row.argmax()) if row.max(initial=0) else -1 for row in wanted]


def test_many_boxes_on_one_image_take_little_memory_and_time() -> None:
    """Comparing all pairs of 8,000 boxes would take 64 million IoUs: 2 GB and 20 seconds."""
    chance = np.random.default_rng(0)
    corner = chance.uniform(0, 4000, (8_000, 2))
    many = np.hstack([corner, corner + chance.uniform(5, 40, (8_000, 2))]).astype(np.float32)
    tracemalloc.start()
    began = time.process_time()
    boxes.nearest(many, many[::2], 0.5)
    boxes.suppress(many, chance.random(8_000), 0.7)
    said = Said(many.tolist(), [0] * len(many), Verdict.OBJECT, None, whole=True)
    combined([said], np.arange(1))
    assert time.process_time() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    tracemalloc.stop()


def test_boxes_that_all_overlap_take_little_memory() -> None:
    pile = as_boxes(np.array([[0, 0, 100, 100]]) + np.linspace(0, 1, 2000)[:, None])
    tracemalloc.start()
    partner, best = boxes.nearest(pile, pile)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert (best == 1).all()
    assert (partner == np.arange(2000)).all()
    assert np.flatnonzero(boxes.suppress(pile, np.ones(2000), 0.5)).tolist() == [0]


def greedy(found: np.ndarray, scores: np.ndarray, threshold: float) -> list[bool]:
    """Non-maximum suppression as a plain loop: the best box suppresses every box that overlaps it too much."""
    stays = [False] * len(found)
    left = sorted(range(len(found)), key=lambda i: (-scores[i], i))
    while left:
        best, *rest = left
        stays[best] = True
        left = [i for i in rest if boxes.iou_matrix(found[[best]], found[[i]])[0, 0] <= threshold]
    return stays


@pytest.mark.usefixtures("in_small_pieces")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(some_boxes(), st.data(), st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]))
def test_suppression_equals_the_plain_greedy_loop(found: np.ndarray, data: st.DataObject, threshold: float) -> None:
    scores = data.draw(arrays(np.float32, len(found), elements=st.sampled_from([0.1, 0.3, 0.5, 0.9])))
    assert boxes.suppress(found, scores, threshold).tolist() == greedy(found, scores, threshold)


def test_the_first_of_many_equally_good_boxes_is_kept() -> None:
    found, scores = as_boxes([[0, 0, 9, 9]] * 500), np.tile([0.5, 0.9], 250)
    assert np.flatnonzero(boxes.suppress(found, scores, 0.5)).tolist() == [1]


def test_a_box_that_was_suppressed_suppresses_nothing() -> None:
    # a chain: each overlaps the next by 6 / 14 > 0.4, the first and the third by 2 / 18 only
    chain = as_boxes([[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]])
    assert boxes.suppress(chain, np.array([0.9, 0.8, 0.7]), 0.4).tolist() == [True, False, True]


# ------------------------------------------------------------------------------------------- seeds


def test_a_stream_repeats_and_differs_from_every_other() -> None:
    def first(*key: object) -> float:
        return seeds.stream(*key).random()  # type: ignore[arg-type]

    keys = [(0, "views", 0, 1), (0, "loader", 0, 1), (1, "views", 0, 1), (0, "views", 1, 1), (0, "views", 1, 0)]
    assert [first(*key) for key in keys] == [first(*key) for key in keys]
    assert len({first(*key) for key in keys}) == len(keys)


def test_a_seed_for_libraries_fits_31_bits_and_does_not_depend_on_the_process() -> None:
    numbers = [seeds.number(0, "fit", cycle) for cycle in range(50)]
    assert all(0 <= n < 2**31 for n in numbers)
    assert len(set(numbers)) == 50
    # 0x504C0B4B is the CRC-32 of "fit": unlike Python's own hash it is the same in every process.
    rng = np.random.default_rng(np.random.SeedSequence([0, 0x504C0B4B, 3]))
    assert numbers[3] == rng.integers(2**31)
