"""The embedded data set: reproducible bytes, exact boxes, a long tail, disjoint splits, written whole or not at all."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from rarebox.core.boxes import area, intersection
from rarebox.core.seeds import stream
from rarebox.data import drawing, scenes
from rarebox.data.drawing import DEFAULT_LOOK, Look, draw
from rarebox.data.scenes import CLASSES, class_counts, make
from rarebox.errors import UserError
from rarebox.evaluation import imbalance_factor
from tests.thinned import thinned

SMALL: dict[str, Any] = {"train": 10, "test": 5, "size": (112, 144)}
PLAIN = Look(
    object_size=(14, 56), turn=25, contrast=(150, 150), strangers=(0, 0), occluded=0, texture=0, clutter=(0, 0), grain=0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "scenes", **SMALL)


def read(folder: Path, split: str) -> dict[str, Any]:
    return json.loads((folder / f"{split}.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def boxes_of(coco: dict[str, Any], image_id: int) -> np.ndarray:
    rows = [a["bbox"] for a in coco["annotations"] if a["image_id"] == image_id]
    xywh = np.array(rows, dtype=np.float32)
    return np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]])


# ---------------------------------------------------------------------------------------------- what is drawn


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(folder: Path, tmp_path: Path):
    again, other = make(tmp_path / "again", **SMALL), make(tmp_path / "other", seed=1, **SMALL)
    assert contents(again) == contents(folder)
    assert contents(other)["images/train_0000.jpg"] != contents(folder)["images/train_0000.jpg"]


def test_the_files_are_those_of_a_coco_data_set(folder: Path):
    train, test = read(folder, "train"), read(folder, "test")
    images = train["images"] + test["images"]
    assert [c["name"] for c in train["categories"]] == list(CLASSES)
    assert (len(train["images"]), len(test["images"])) == (10, 5)
    assert len({i["id"] for i in images}) == 15
    assert {i["file_name"] for i in images} == {f"images/{p.name}" for p in (folder / "images").iterdir()}
    for record in images:
        with Image.open(folder / record["file_name"]) as image:
            assert (
                (image.width, image.height, image.mode)
                == (record["width"], record["height"], "RGB")
                == (144, 112, "RGB")
            )
    for coco in (train, test):
        assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])
        assert all(a["area"] == a["bbox"][2] * a["bbox"][3] for a in coco["annotations"])


def test_boxes_lie_inside_and_hardly_overlap(folder: Path):
    for split in ("train", "test"):
        coco = read(folder, split)
        for image in coco["images"]:
            boxes = boxes_of(coco, image["id"])
            assert 1 <= len(boxes) <= 9
            assert (boxes >= 0).all()
            assert (boxes <= [144, 112, 144, 112]).all()
            shared = intersection(boxes[:, None], boxes[None]) / np.minimum(area(boxes)[:, None], area(boxes)[None])
            assert (shared[~np.eye(len(boxes), dtype=bool)] <= 1 / 8).all()


def test_sizes_span_the_range_asked_for():
    inks = load_digits().images / 16  # type: ignore[attr-defined]
    sides = []
    for n in range(40):
        boxes = draw(stream(0, "sizes", n), inks[6 * n : 6 * n + 6], inks, (192, 256), PLAIN)[1]
        sides.extend(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]))
    # a stamp may lose or gain a pixel at its soft rim
    assert 12 <= min(sides) <= 16
    assert 50 <= max(sides) <= 58


@pytest.mark.parametrize("seed", range(10))
def test_boxes_are_tight_around_the_ink(seed: int):
    inks = load_digits().images[seed * 9 : seed * 9 + 6] / 16  # type: ignore[attr-defined]
    pixels, boxes = draw(stream(seed, "tight"), inks, inks, (192, 256), PLAIN)
    ground = np.median(pixels.reshape(-1, 3), axis=0)
    ink = np.linalg.norm(pixels - ground, axis=2)  # flat ground, no strangers: all that differs is ink
    outside = np.ones(ink.shape, dtype=bool)
    for x1, y1, x2, y2 in boxes.astype(int):
        outside[y1:y2, x1:x2] = False
        rim = [ink[y1, x1:x2], ink[y2 - 1, x1:x2], ink[y1:y2, x1], ink[y1:y2, x2 - 1]]
        assert min(line.max() for line in rim) > 0.2 * 150  # a rim holds at least a quarter of the full contrast
    assert ink[outside].max() == 0


def test_faint_objects_are_fainter():
    inks = load_digits().images[:6] / 16  # type: ignore[attr-defined]
    differences = []
    for contrast in (30.0, 150.0):
        look = replace(PLAIN, contrast=(contrast, contrast))
        pixels, _ = draw(stream(0, "faint"), inks, inks, (192, 256), look)
        ground = np.median(pixels.reshape(-1, 3), axis=0)
        differences.append(np.linalg.norm(pixels - ground, axis=2).max())
    assert differences == [pytest.approx(30, abs=2), pytest.approx(150, abs=2)]


def test_strangers_are_no_digits():
    inks = load_digits().images / 16  # type: ignore[attr-defined]
    assert drawing._passes_for_digit(inks[0], inks[1:])  # a real zero among real digits
    assert not drawing._passes_for_digit(np.ones((8, 8)), inks)  # a full square
    rng = np.random.default_rng(0)
    assert not any(drawing._passes_for_digit(drawing._stranger(rng, inks), inks) for _ in range(50))


# ---------------------------------------------------------------------------------------------- who appears


def test_class_counts_by_hand():
    # one each; of the other 26, shares 16:8:4:2:1 of 31 are 13.4, 6.7, 3.4, 1.7, 0.8, so 13, 6, 3, 1, 0; 3 remain
    assert class_counts(31, 16, 5).tolist() == [1 + 13 + 3, 1 + 6, 1 + 3, 1 + 1, 1]
    assert class_counts(3, 16, 5).tolist() == [1, 1, 1, 0, 0]


@given(total=st.integers(10, 5000), imbalance=st.floats(1, 100))
def test_class_counts_fall_and_add_up(total: int, imbalance: float):
    counts = class_counts(total, imbalance)
    assert counts.sum() == total
    assert counts.min() >= 1
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_default_set_has_a_long_tail_that_can_be_measured(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    blank = np.zeros((192, 256, 3), dtype=np.uint8)
    monkeypatch.setattr(scenes, "draw", lambda rng, inks, *_: (blank, np.tile(np.array([0, 0, 9, 9]), (len(inks), 1))))
    made = make(tmp_path / "scenes", seed=seed)
    rows = [read(made, split)["annotations"] for split in ("train", "test")]
    train, test = (np.bincount([a["category_id"] for a in split])[1:] for split in rows)
    assert not {a["digit"] for a in rows[0]} & {a["digit"] for a in rows[1]}
    assert (len(train), len(test)) == (10, 10)
    assert imbalance_factor(train) >= 25
    assert test.min() >= 12
    assert (np.diff(train) <= 0).all()
    assert (np.diff(test) <= 0).all()


def test_no_digit_is_in_both_splits_and_labels_are_those_of_the_digits(folder: Path):
    train, test = (read(folder, split)["annotations"] for split in ("train", "test"))
    assert not {a["digit"] for a in train} & {a["digit"] for a in test}
    target = load_digits().target  # type: ignore[attr-defined]
    assert all(a["category_id"] - 1 == target[a["digit"]] for a in train + test)


# ---------------------------------------------------------------------------------------------- the folder


def fail(*_: Any) -> Any:
    raise AssertionError("drew again")


def test_finished_scenes_are_used_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes, "draw", fail)
    assert make(folder, **SMALL) == folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 3}, "seed is 0, not 3"),
        ({"train": 11}, "train is 10, not 11"),
        ({"look": Look(turn=0)}, "look is"),
    ],
)
def test_other_settings_need_another_folder(folder: Path, change: dict[str, Any], said: str):
    before = contents(folder)
    with pytest.raises(UserError, match=said):
        make(folder, **(SMALL | change))
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["photo.jpg", "scenes.json"])
def test_a_foreign_folder_is_unchanged(tmp_path: Path, name: str):
    (tmp_path / name).write_text("[1, 2]")
    with pytest.raises(UserError, match="does not hold scenes"):
        make(tmp_path, **SMALL)
    assert contents(tmp_path) == {name: b"[1, 2]"}


def test_an_empty_folder_and_missing_parents_are_fine(folder: Path, tmp_path: Path):
    empty = tmp_path / "deep" / "empty"
    empty.mkdir(parents=True)
    for target in (empty, tmp_path / "missing" / "new"):
        assert contents(make(target, **SMALL)) == contents(folder)
        assert [p.name for p in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]):
    drawn = 0

    def stop_at_the_third(*arguments: Any) -> Any:
        nonlocal drawn
        drawn += 1
        if drawn == 3:
            raise error
        return draw(*arguments)

    monkeypatch.setattr(scenes, "draw", stop_at_the_third)
    with pytest.raises(error):
        make(tmp_path / "scenes", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_data_set_and_the_next_one_succeeds(folder: Path, tmp_path: Path):
    code = f"from rarebox.data.scenes import make; make({str(tmp_path / 'scenes')!r}, train=5000)"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("*/images/*.jpg")) and not list(tmp_path.glob(".*/images/*.jpg")):
            assert time.monotonic() < deadline, "never began"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "scenes").exists()
    (draft,) = tmp_path.iterdir()
    assert contents(make(tmp_path / "scenes", **SMALL)) == contents(folder)
    assert draft.exists()  # a recent draft may be in use
    two_hours_ago = time.time() - 7200
    os.utime(draft, (two_hours_ago, two_hours_ago))
    shutil.rmtree(tmp_path / "scenes")
    make(tmp_path / "scenes", **SMALL)
    assert not draft.exists()


def test_two_at_once_agree(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def meanwhile(*arguments: Any) -> Any:
        if not (tmp_path / "scenes").exists():
            shutil.copytree(folder, tmp_path / "scenes")
        return draw(*arguments)

    monkeypatch.setattr(scenes, "draw", meanwhile)
    assert contents(make(tmp_path / "scenes", **SMALL)) == contents(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["scenes"]


@pytest.mark.parametrize("wrong", [{"train": 0}, {"test": 0}, {"size": (64, 200)}])
def test_what_cannot_be_drawn_is_refused(tmp_path: Path, wrong: dict[str, Any]):
    with pytest.raises(UserError, match="at least"):
        make(tmp_path / "scenes", **(SMALL | wrong))


@pytest.mark.parametrize(
    ("size", "look", "pictures"),
    thinned(
        [
            ((96, 96), DEFAULT_LOOK, 20),
            ((96, 400), Look(object_size=(40, 60), max_objects=13), 20),
            ((96, 97), Look(max_objects=12, object_size=(20, 95)), 20),
            ((96, 96), Look(object_size=(8, 90), max_objects=60, strangers=(20, 40)), 2),
        ],
        lambda number, _: number < 2,
    ),
)
def test_a_crowded_picture_is_drawn_in_a_bounded_number_of_trials(
    size: tuple[int, int], look: Look, pictures: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Without a limit, the first of these never finished: large things left no room for a small one."""
    arranged, place, trials = drawing._arrange, drawing._free_place, [0]

    def counted(*given: Any) -> Any:
        trials[0] += 1
        assert trials[0] <= drawing.MOST_TRIES * (look.max_objects + look.strangers[1])
        return place(*given)

    def begun(*given: Any) -> Any:
        trials[0] = 0
        return arranged(*given)

    monkeypatch.setattr(drawing, "_free_place", counted)
    monkeypatch.setattr(drawing, "_arrange", begun)
    made = make(tmp_path / "scenes", train=pictures, test=1, size=size, look=look)
    for split in ("train", "test"):
        coco = read(made, split)
        for image in coco["images"]:
            boxes = boxes_of(coco, image["id"])
            assert (boxes >= 0).all()
            assert (boxes[:, 2:] <= [size[1], size[0]]).all()
            assert min(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])) >= look.object_size[0] - 3
            shared = intersection(boxes[:, None], boxes[None]) / np.minimum(area(boxes)[:, None], area(boxes)[None])
            assert (shared[~np.eye(len(boxes), dtype=bool)] <= 1 / 8).all()


@pytest.mark.parametrize(
    ("look", "said"),
    [
        (Look(max_objects=13), "no room for 17 things of 20 pixels"),
        (Look(object_size=(20, 96)), "between 8 and 95 pixels"),
        (Look(object_size=(4, 20)), "between 8 and 95 pixels"),
        (Look(object_size=(40, 20)), "between 8 and 95 pixels"),
    ],
)
def test_a_look_that_does_not_fit_is_refused(tmp_path: Path, look: Look, said: str):
    with pytest.raises(UserError, match=said):
        make(tmp_path / "scenes", train=1, test=1, size=(96, 96), look=look)
    assert not (tmp_path / "scenes").exists()
