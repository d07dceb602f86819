"""Large photos are cut into tiles, and the boxes on the tiles are joined to those of whole objects."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarebox.core.files import hold
from rarebox.data import tiles
from rarebox.data.images import image_size, read_image
from rarebox.data.tiles import Tiling, cut, join, join_detections, tiling_of
from rarebox.errors import Busy, Damaged, UserError
from rarebox.types import Detections, Floats, as_boxes

SIZE = (1000, 500)
TILING = Tiling(400, 100)
WINDOWS = TILING.windows(*SIZE)


def seen(objects: Sequence[Sequence[float]], least: float = 4) -> tuple[Floats, list[int], list[int]]:
    """What a perfect detector finds on each tile, in pixels of the photo: boxes, their tiles, their objects."""
    boxes, of_tile, of_object = [], list[int](), list[int]()
    for tile, (x1, y1, x2, y2) in enumerate(WINDOWS.tolist()):
        for number, (a, b, c, d) in enumerate(objects):
            part = [max(a, x1), max(b, y1), min(c, x2), min(d, y2)]
            if part[2] - part[0] >= least and part[3] - part[1] >= least:
                boxes.append(part)
                of_tile.append(tile)
                of_object.append(number)
    return as_boxes(boxes), of_tile, of_object


def together(objects: Sequence[Sequence[float]], labels: Sequence[int] | None = None) -> list[list[float]]:
    boxes, tile, number = seen(objects)
    classes = np.array(labels or [0] * len(objects))[number]
    found, rows = join(boxes, classes, np.ones(len(boxes)), np.array(tile), WINDOWS, SIZE)
    assert sorted(set(rows.tolist())) == rows.tolist()
    return sorted(found.tolist())


@given(st.integers(1, 5000), st.integers(64, 1200), st.floats(0, 0.5))
def test_tiles_cover_a_photo_and_overlap(length: int, side: int, share: float) -> None:
    tiling = Tiling(side, int(side * share))
    starts = tiling.windows(length, 10)[:, 0]
    assert starts[0] == 0
    assert starts[-1] + min(side, length) == length
    assert (np.diff(starts) <= side - tiling.overlap).all()
    assert len(starts) == 1 or len(starts) * (side - tiling.overlap) < length + side  # no more than needed


@pytest.mark.parametrize(
    "box",
    [
        [10, 10, 60, 50],  # inside the first tile
        [310, 10, 390, 60],  # whole in two tiles
        [250, 10, 350, 60],  # whole in one, cut by another
        [150, 10, 750, 60],  # larger than a tile: cut by all
        [0, 0, 1000, 500],
        [380, 190, 420, 310],
    ],
)
def test_an_object_has_one_box_wherever_tiles_cut_it(box: list[float]) -> None:
    assert together([box]) == [box]


def test_neighbours_stay_apart() -> None:
    objects = [[305, 10, 345, 60], [350, 10, 395, 60], [305, 70, 345, 120]]
    assert together(objects) == sorted(objects)
    beside = [[250, 10, 340, 60], [250, 40, 340, 90]]  # overlapping by 40 %
    assert together(beside) == sorted(beside)


def test_objects_of_two_classes_in_one_place_stay_apart() -> None:
    assert together([[250, 10, 350, 60]] * 2, [0, 1]) == [[250, 10, 350, 60]] * 2


@given(st.lists(st.tuples(*(st.integers(0, 9),) * 2), min_size=1, max_size=20, unique=True))
def test_objects_up_to_the_overlap_have_exactly_their_boxes(cells: list[tuple[int, int]]) -> None:
    objects = [[x * 100 + 8.0, y * 50 + 8.0, x * 100 + 92.0, y * 50 + 42.0] for x, y in cells]
    assert together(objects) == sorted(objects)


def test_the_box_of_the_highest_score_counts_among_whole_ones() -> None:
    boxes = as_boxes([[310, 10, 380, 60], [312, 10, 380, 60], [320, 10, 380, 60]])
    scores, tile = np.array([0.5, 0.9, 0.4]), np.array([0, 1, 1])
    found, rows = join(boxes, np.zeros(3, np.int64), scores, tile, WINDOWS, SIZE)
    assert (found.tolist(), rows.tolist()) == ([[312, 10, 380, 60]], [1])


def test_a_whole_box_wins_over_a_part_with_a_higher_score() -> None:
    boxes = as_boxes([[250, 10, 350, 60], [300, 10, 350, 60]])
    found, rows = join(boxes, np.zeros(2, np.int64), np.array([0.5, 0.9]), np.array([0, 1]), WINDOWS, SIZE)
    assert (found.tolist(), rows.tolist()) == ([[250, 10, 350, 60]], [0])


def test_nothing_on_any_tile() -> None:
    found, rows = join(as_boxes([]), np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64), WINDOWS, SIZE)
    assert (found.shape, len(rows)) == ((0, 4), 0)


def test_detections_are_moved_joined_and_sorted() -> None:
    def on(boxes: list[list[float]], scores: list[float]) -> Detections:
        return Detections(as_boxes(boxes), np.zeros(len(boxes), np.int64), np.array(scores), np.ones((len(boxes), 1)))

    parts = [on([], []) for _ in WINDOWS]
    parts[0], parts[1] = on([[10, 10, 20, 20]], [0.3]), on([[200, 5, 250, 25]], [0.8])
    found = join_detections(parts, WINDOWS, SIZE)
    assert found.boxes.tolist() == [[500, 5, 550, 25], [10, 10, 20, 20]]
    assert found.scores.tolist() == pytest.approx([0.8, 0.3])
    assert join_detections([parts[0]], WINDOWS[:1], (400, 400)) is parts[0]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (500, 1000, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    Image.fromarray(pixels[:300, :200]).save(folder / "sub" / "a.jpg", quality=95)
    return folder


def test_a_folder_is_cut_and_the_pixels_stay(photos: Path) -> None:
    to = photos.parent / "tiles"
    done = cut(photos, to, TILING)
    assert (done.photos, done.tiles, done.unreadable) == (2, 7, ())
    known = tiles.read(to)
    assert known
    assert known.sizes == {"a.png": (1000, 500), "sub/a.jpg": (200, 300)}
    whole = read_image(photos / "a.png")
    for file, (x1, y1, x2, y2) in zip(known.files("a.png"), WINDOWS.astype(int).tolist(), strict=True):
        assert (read_image(file) == whole[y1:y2, x1:x2]).all()
    assert image_size(known.files("sub/a.jpg")[0])[:2] == (200, 300)


def test_a_turned_photo_is_cut_upright(photos: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (800, 300), (200, 0, 0)).save(photos / "turned.jpg", exif=exif)
    cut(photos, photos.parent / "tiles", TILING)
    known = tiles.read(photos.parent / "tiles")
    assert known
    assert known.sizes["turned.jpg"] == (300, 800)
    assert [image_size(file) for file in known.files("turned.jpg")] == [(300, 400, 1)] * 3


def test_cutting_resumes_and_adds_new_photos(photos: Path) -> None:
    to = photos.parent / "tiles"
    cut(photos, to, TILING)
    known = tiles.read(to)
    assert known
    first, *_ = known.files("a.png")
    first.unlink()
    stamps = [file.stat().st_mtime_ns for file in known.files("sub/a.jpg")]
    Image.new("RGB", (500, 400)).save(photos / "new.png")
    assert cut(photos, to, TILING).photos == 3
    assert first.exists()
    assert [file.stat().st_mtime_ns for file in known.files("sub/a.jpg")] == stamps
    again = tiles.read(to)
    assert again
    assert set(again.sizes) == {"a.png", "sub/a.jpg", "new.png"}
    (photos / "new.png").unlink()
    cut(photos, to, TILING)
    kept = tiles.read(to)
    assert kept
    assert "new.png" in kept.sizes


def test_an_interrupted_cut_is_refused_with_the_way_out(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = photos.parent / "tiles"

    def die(done: str, at: int, of: int, what: str) -> None:
        if at == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut(photos, to, TILING, die)
    with pytest.raises(UserError, match=r"not hold all tiles yet.*rarebox tile .* --side 400 --overlap 100"):
        tiles.read(to)
    cut(photos, to, TILING)
    assert tiles.read(to)


def test_bad_input_is_refused(photos: Path) -> None:
    to = photos.parent / "tiles"
    (photos / "broken.jpg").write_bytes(b"no image")
    assert [one.path for one in cut(photos, to, TILING).unreadable] == [str(photos / "broken.jpg")]
    with pytest.raises(UserError, match=r"holds tiles of 400 pixels that overlap by 100.*--side 400 --overlap 100"):
        cut(photos, to, Tiling(300, 100))
    (photos.parent / "full").mkdir()
    (photos.parent / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no tiles"):
        cut(photos, photos.parent / "full", TILING)
    assert [file.name for file in (photos.parent / "full").iterdir()] == ["mine.txt"]
    for inside in (photos / "tiles", photos, photos.parent):
        with pytest.raises(UserError, match="must lie outside"):
            cut(photos, inside, TILING)
    with pytest.raises(UserError, match="is not a folder"):
        cut(photos / "a.png", to, TILING)
    with hold(to / "lock"), pytest.raises(Busy):
        cut(photos, to, TILING)
    with pytest.raises(UserError, match="Give the side"):
        tiling_of(None, 20)
    assert tiling_of(None, None) is None
    for side, overlap in ((10, 0), (400, 300), (400, -1)):
        with pytest.raises(UserError):
            Tiling(side, overlap)
    (to / tiles.TILES).write_text('{"side": 400}')
    with pytest.raises(Damaged, match=r"tiles\.json is damaged"):
        tiles.read(to)
