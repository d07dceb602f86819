"""`rarebox predict` reports the model's detections, repeats no detection, and writes only where it should."""

import csv
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import rarebox
from rarebox import config, detectors, external
from rarebox.cli import main
from rarebox.data.images import image_size, read_picture
from rarebox.data.tiles import Tiling
from rarebox.deploy import predict as predicting
from rarebox.deploy.model import open_model
from rarebox.deploy.pictures import places_of
from rarebox.deploy.predict import predict
from rarebox.deploy.results import LINES
from rarebox.detectors import TorchDetector
from rarebox.errors import UserError
from rarebox.evaluation import UNMEASURED
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop import simulate
from rarebox.loop.run_folder import RunFolder
from rarebox.project.create import create
from rarebox.types import Detections, ImageRecord, as_boxes
from tests.tiny import make_data, settings

pytestmark = pytest.mark.usefixtures("small_network")

COUNT = 11


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one cycle; its model is too weak for measured thresholds."""
    root = tmp_path_factory.mktemp("deploy")
    simulate.simulate(root / "run", settings(make_data(root / "scenes"), budget=[]))
    return root / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eleven images, one in a subfolder; more than one batch."""
    dice, folder = np.random.default_rng(4), tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    for number in range(COUNT):
        pixels = dice.integers(0, 255, (70, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / ("below/10.png" if number == 10 else f"{number:02}.png"))
    return folder


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of the detector."""
    sizes, real = list[int](), TorchDetector.predict

    def counted(self: TorchDetector, images: Any, **more: Any) -> Any:
        sizes.append(len(images))
        return real(self, images, **more)

    monkeypatch.setattr(TorchDetector, "predict", counted)
    return sizes


def lines_of(out: Path) -> list[dict[str, Any]]:
    """The lines of the images, after the first line of the file."""
    return [json.loads(line) for line in (out / LINES).read_text().splitlines()][1:]


def outputs_of(out: Path) -> dict[str, bytes]:
    return {file.relative_to(out).as_posix(): file.read_bytes() for file in out.rglob("*") if file.is_file()}


def test_with_tiles_the_model_sees_each_tile_at_full_size(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiling, shapes = Tiling(64, 20), list[tuple[int, ...]]()

    def one_box(self: TorchDetector, images: Any, **more: Any) -> list[Detections]:
        shapes.extend((picture.width, picture.height) for picture in images)
        tops = [4 + 10 * (number % 4) for number in range(len(shapes) - len(images), len(shapes))]
        one = np.ones((1, self.num_classes))
        return [
            Detections(as_boxes([[4, top, 14, top + 8]]), np.zeros(1, np.int64), np.full(1, 0.9), one) for top in tops
        ]

    monkeypatch.setattr(TorchDetector, "predict", one_box)
    done = predict(run, photos, tmp_path / "out", tiling=tiling, score=0.5, pictures=False)
    assert shapes == [(64, 64)] * 4 * COUNT
    assert done.boxes == 4 * COUNT
    first = json.loads((tmp_path / "out" / LINES).read_text().splitlines()[1])
    assert first["boxes"] == [[4, 4, 14, 12], [30, 14, 40, 22], [4, 30, 14, 38], [30, 40, 40, 48]]
    assert (first["width"], first["height"]) == (90, 70)
    assert predict(run, photos, tmp_path / "out", tiling=tiling, pictures=False).known == COUNT
    for other in (None, Tiling(64, 10)):
        with pytest.raises(UserError, match="tiles of another size"):
            predict(run, photos, tmp_path / "out", tiling=other)


def test_the_detections_are_those_of_the_model(run: Path, photos: Path, tmp_path: Path) -> None:
    done = predict(run, photos, tmp_path / "out", pictures=False)
    detector = detectors.load(run / "cycle_01", "cpu")
    assert (done.images, done.known, done.unreadable) == (COUNT, 0, ())
    assert [line["image"] for line in lines_of(tmp_path / "out")] == [f"{n:02}.png" for n in range(10)] + [
        "below/10.png"
    ]
    classes = open_model(run).classes
    for line in lines_of(tmp_path / "out"):
        picture = read_picture(ImageRecord(0, str(photos / line["image"]), 90, 70), *detector.settings.size)
        (expected,) = detector.predict([picture])
        assert len(expected) > 3
        np.testing.assert_allclose(line["boxes"], expected.boxes, atol=0.02)
        np.testing.assert_allclose(line["scores"], expected.scores, atol=1e-3)
        assert line["labels"] == [classes[label] for label in expected.labels]


def test_the_files_show_what_is_above_the_threshold(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(run, photos, out, pictures=False)
    scores = np.array([score for line in lines_of(out) for score in line["scores"]])
    bound = float(np.median(scores))
    done = predict(run, photos, out, score=bound, pictures=False)
    assert 0 < done.boxes == (scores >= bound).sum() < len(scores)
    rows = list(csv.DictReader((out / "detections.csv").read_text().splitlines()))
    coco, results = (json.loads((out / name).read_text()) for name in ("coco.json", "coco_results.json"))
    names = {one["id"]: one["name"] for one in coco["categories"]}
    files = {one["id"]: one["file_name"] for one in coco["images"]}
    assert (len(rows), len(coco["annotations"]), len(results)) == (done.boxes, done.boxes, len(scores))
    for row, one in zip(rows, coco["annotations"], strict=True):
        assert (row["image"], row["class"]) == (files[one["image_id"]], names[one["category_id"]])
        x, y, width, height = one["bbox"]
        corners = [float(row[name]) for name in ("x1", "y1", "x2", "y2")]
        np.testing.assert_allclose(corners, [x, y, x + width, y + height], atol=0.011)
        assert float(row["score"]) == one["score"] >= bound
    everything = [
        (name, label, score)
        for name, line in ((line["image"], line) for line in lines_of(out))
        for label, score in zip(line["labels"], line["scores"], strict=True)
    ]
    assert [(files[r["image_id"]], names[r["category_id"]], r["score"]) for r in results] == everything
    assert done.per_class == {n: c for n in names.values() if (c := [row["class"] for row in rows].count(n))}


def test_each_class_has_its_own_threshold(run: Path, photos: Path, tmp_path: Path) -> None:
    kept = run / "cycle_01" / "evaluated.json"
    count = len(open_model(run).classes)
    told = json.loads(kept.read_text())
    told["thresholds"] = [0.0] + [1.0] * (count - 1)
    kept.write_text(json.dumps(told))
    assert open_model(run).measured
    done = predict(run, photos, tmp_path / "out", pictures=False)
    assert done.boxes > 0
    assert set(done.per_class) == {open_model(run).classes[0]}


@pytest.mark.parametrize("told", [None, [], [0.5], [2.0] * 10, "half", [None] * 10, {"a": 1}])
def test_thresholds_that_make_no_sense_do_not_count(run: Path, told: object) -> None:
    kept = run / "cycle_01" / "evaluated.json"
    kept.write_text(json.dumps({"thresholds": told}))
    found = open_model(run)
    assert not found.measured
    assert set(found.thresholds) == {UNMEASURED}


def test_an_interrupted_run_resumes_where_it_stopped(
    run: Path, photos: Path, tmp_path: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(run, photos, tmp_path / "whole")
    assert sum(seen) == COUNT
    seen.clear()
    counting = TorchDetector.predict

    def stopped(self: TorchDetector, images: Any, **more: Any) -> Any:
        if seen:
            raise KeyboardInterrupt
        return counting(self, images, **more)

    with monkeypatch.context() as patch:
        patch.setattr(TorchDetector, "predict", stopped)
        with pytest.raises(KeyboardInterrupt):
            predict(run, photos, tmp_path / "out")
    whole = (tmp_path / "out" / LINES).read_bytes()
    assert whole.count(b"\n") == 1 + 8
    (tmp_path / "out" / LINES).write_bytes(whole[:-30])  # what a killed process leaves
    seen.clear()
    done = predict(run, photos, tmp_path / "out")
    assert (sum(seen), done.known) == (4, 7)
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "whole")
    seen.clear()
    assert predict(run, photos, tmp_path / "out").known == COUNT
    assert not seen


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """Three frames of one size in bytes and one time, as unpacked from a zip file."""
    folder, dice = tmp_path / "frames", np.random.default_rng(9)
    folder.mkdir()
    for number in range(3):
        Image.fromarray(dice.integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(folder / f"{number}.bmp")
        os.utime(folder / f"{number}.bmp", (1_700_000_000, 1_700_000_000))
    return folder


def test_a_frame_that_takes_the_name_of_another_is_detected_again(run: Path, frames: Path, tmp_path: Path) -> None:
    predict(run, frames, tmp_path / "out", pictures=False)
    before = {line["image"]: line["boxes"] for line in lines_of(tmp_path / "out")}
    (frames / "0.bmp").unlink()
    (frames / "1.bmp").rename(frames / "0.bmp")
    (frames / "2.bmp").rename(frames / "1.bmp")
    assert predict(run, frames, tmp_path / "out", pictures=False).known == 0
    after = {line["image"]: line["boxes"] for line in lines_of(tmp_path / "out")}
    assert after == {"0.bmp": before["1.bmp"], "1.bmp": before["2.bmp"]} != before


def test_a_changed_image_is_detected_again_and_a_removed_one_disappears(
    run: Path, photos: Path, tmp_path: Path, seen: list[int]
) -> None:
    out = tmp_path / "out"
    predict(run, photos, out, pictures=False)
    before = {line["image"]: line["boxes"] for line in lines_of(out)}
    seen.clear()
    Image.new("RGB", (90, 70), (0, 200, 0)).save(photos / "03.png")
    os.utime(photos / "03.png", ns=(1, 1))
    (photos / "04.png").unlink()
    done = predict(run, photos, out, pictures=False)
    assert (seen, done.images) == ([1], COUNT - 1)
    after = {line["image"]: line["boxes"] for line in lines_of(out)}
    assert "04.png" not in after
    assert {name for name in after if after[name] != before[name]} == {"03.png"}
    assert "04.png" not in (out / "coco.json").read_text()


def test_unreadable_images_are_named_and_the_others_done(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (photos / "05.png").write_text("no image")
    os.symlink(photos / "nowhere.png", photos / "99.png")
    done = predict(run, photos, out)
    assert done.images == COUNT - 1
    named = (out / "unreadable.txt").read_text().splitlines()
    assert [Path(line.split(": ")[0]).name for line in named] == ["05.png", "99.png"]
    assert not (out / "pictures" / "05.png.jpg").exists()
    (photos / "05.png").unlink()
    (photos / "99.png").unlink()
    assert not predict(run, photos, out).unreadable
    assert not (out / "unreadable.txt").exists()


def test_earlier_results_stay_when_all_photos_are_missing(run: Path, photos: Path, tmp_path: Path) -> None:
    out, listed = tmp_path / "out", tmp_path / "photos.txt"
    listed.write_text("photos/00.png\nphotos/01.png\n")
    predict(run, listed, out)
    before = outputs_of(out)
    photos.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"photos.txt: none of its images can be read, .*00.png: there"):
        predict(run, listed, out)
    assert outputs_of(out) == before


def test_pictures_show_the_boxes(run: Path, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 70), (120, 120, 120)).save(photos / "00.png")
    predict(run, photos, tmp_path / "none", score=1.0)
    predict(run, photos, tmp_path / "all", score=0.0)
    for name in ("00.png.jpg", "below/10.png.jpg"):
        with Image.open(tmp_path / "all" / "pictures" / name) as drawn:
            assert drawn.size == (90, 70)
    plain, drawn = (
        np.asarray(Image.open(tmp_path / which / "pictures" / "00.png.jpg")).astype(int) for which in ("none", "all")
    )
    assert np.ptp(plain) <= 4
    assert np.ptp(drawn) > 80


def test_the_output_may_be_among_the_images(run: Path, photos: Path) -> None:
    assert predict(run, photos, photos / "found").images == COUNT
    assert predict(run, photos, photos / "found").images == COUNT


@given(st.lists(st.sampled_from(["a.jpg", "A.jpg", "a.png", "a.jpg.jpg", "b/a.png", "/etc/a.jpg", "../a", "h.org"])))
def test_every_image_has_a_separate_picture_inside_the_folder(names: list[str]) -> None:
    places = places_of(list(dict.fromkeys(names)))
    assert places.keys() == set(names)
    assert len({str(place).lower() for place in places.values()}) == len(places)
    for name, place in places.items():
        assert not place.is_absolute()
        assert ".." not in place.parts
        assert place.suffix.lower() == ".jpg"
        assert name.lower().endswith(".jpg") or place.name.startswith(Path(name).name)


def test_two_images_whose_pictures_would_have_one_name(run: Path, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 30), (255, 0, 0)).save(photos / "00.png.jpg")
    predict(run, photos, tmp_path / "out")
    drawn = sorted(file for file in (tmp_path / "out" / "pictures").rglob("*") if file.is_file())
    assert len(drawn) == COUNT + 1
    for name, width in (("00.png.jpg", 40), ("00.png.jpg.jpg", 90)):
        with Image.open(tmp_path / "out" / "pictures" / name) as picture:
            assert picture.width == width


def test_pictures_of_missing_images_are_removed(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(run, photos, out)
    (out / "pictures" / "mine.txt").write_text("a person's")
    (photos / "02.png").unlink()
    predict(run, photos, out)
    assert not (out / "pictures" / "02.png.jpg").exists()
    assert (out / "pictures" / "mine.txt").exists()
    assert (out / "pictures" / "03.png.jpg").exists()


def test_results_have_the_numbers_of_the_coco_file_that_was_given(run: Path, photos: Path, tmp_path: Path) -> None:
    classes = open_model(run).classes
    names = [*reversed(classes[1:]), "nobody's"]  # the model has one class more, and the file has one that it lacks
    test = {
        "images": [{"id": 70 - i, "file_name": f"photos/0{i}.png", "width": 90, "height": 70} for i in range(3)],
        "annotations": [],
        "categories": [{"id": 3 * place, "name": name} for place, name in enumerate(names)],
    }
    (tmp_path / "test.json").write_text(json.dumps(test))
    out = tmp_path / "out"
    predict(run, tmp_path / "test.json", out, score=0, pictures=False)
    ids = {image["file_name"].removeprefix("photos/"): image["id"] for image in test["images"]}
    numbers = {**{name: 3 * place for place, name in enumerate(names)}, classes[0]: 3 * len(names) - 2}
    shown = json.loads((out / "coco.json").read_text())
    assert {image["file_name"].rsplit("/")[-1]: image["id"] for image in shown["images"]} == ids
    assert {one["name"]: one["id"] for one in shown["categories"]} == {name: numbers[name] for name in classes}
    lines = [json.loads(line) for line in (out / LINES).read_text().splitlines()[1:]]
    said = [(ids[one["image"].rsplit("/")[-1]], numbers[label]) for one in lines for label in one["labels"]]
    results = json.loads((out / "coco_results.json").read_text())
    assert [(one["image_id"], one["category_id"]) for one in results] == said
    assert len(said) > 0
    assert [(one["image_id"], one["category_id"]) for one in shown["annotations"]] == said


def test_no_later_call_takes_its_pictures_for_photos(run: Path, photos: Path) -> None:
    assert predict(run, photos, photos / "one").left_out == ""
    assert predict(run, photos, photos / "one").left_out == ""  # where it writes itself
    again = predict(run, photos, photos / "two", pictures=False)
    assert again.images == COUNT
    assert again.left_out.startswith(f"{COUNT} images left out")
    assert str(photos / "one") in again.left_out


def test_an_image_that_became_unreadable_keeps_no_result(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(run, photos, out)
    (photos / "02.png").write_text("no image")
    assert predict(run, photos, out).images == COUNT - 1
    for name in (LINES, "detections.csv", "coco.json"):
        assert "02.png" not in (out / name).read_text()
    assert not (out / "pictures" / "02.png.jpg").exists()


def test_another_address_of_the_same_name_is_another_image(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    contents = {f"https://{host}.org/x.png": (photos / f"0{host}.png").read_bytes() for host in "12"}
    monkeypatch.setattr(predicting, "image_size", lambda file: image_size(file, contents[str(file)]))
    monkeypatch.setattr(
        predicting, "read_picture", lambda record, *size: read_picture(record, *size, content=contents[record.path])
    )
    for number, url in enumerate(contents, 1):
        (tmp_path / "list.txt").write_text(url)
        predict(run, tmp_path / "list.txt", tmp_path / "out", pictures=False)
        assert len(seen) == number
    predict(run, tmp_path / "list.txt", tmp_path / "out", pictures=False)  # a URL is not fetched again
    assert len(seen) == 2


def test_names_that_no_file_of_detections_can_hold_are_left_out(run: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "00.png").rename(photos / "a\nb.png")
    done = predict(run, photos, tmp_path / "out", pictures=False)
    assert done.images == COUNT - 1
    assert "control character" in done.unreadable[0]


def test_detections_never_become_labels_of_people(run: Path, photos: Path, tmp_path: Path) -> None:
    predict(run, photos, tmp_path / "out", score=0.0, pictures=False)
    shutil.copy(tmp_path / "out" / "coco.json", photos / "labels.json")
    create(tmp_path / "new", photos, ["zero"], photos / "labels.json")
    with Store(RunFolder(tmp_path / "new").store) as store:
        assert not any(len(said.boxes) or said.complete for said in store.labels().values())


def test_detections_are_read_back_as_boxes_to_ask_about(run: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "00.png", photos / "below" / "00.png")
    predict(run, photos, tmp_path / "out", pictures=False)
    every = config.resolve("laptop", None, {"selection.strategy": "uncertainty", "scoring.candidate_threshold": 0.0})
    ranked = external.rank(tmp_path / "out" / LINES, None, None, photos, every, 10**6)
    asked = Counter(ranked.images[query.image_id].path for query in ranked.queries)
    listed = {Path(path).relative_to(photos).as_posix(): count for path, count in asked.items()}
    assert listed.keys() == {line["image"].removeprefix("photos/") for line in lines_of(tmp_path / "out")}
    assert listed["00.png"] == listed["below/00.png"] > 3


def test_renamed_and_merged_classes_have_their_current_names(run: Path, photos: Path, tmp_path: Path) -> None:
    before = open_model(run).classes
    with Store(RunFolder(run).store) as store:
        people = People(store)
        people.rename_class(0, "first", "ann")
        people.merge_class(1, 2, "ann")
    predict(run, photos, tmp_path / "out", pictures=False)
    labels = {label for line in lines_of(tmp_path / "out") for label in line["labels"]}
    assert "first" in labels
    assert not labels & {before[0], before[1]}
    assert before[2] in labels


def test_classes_that_are_merged_later_are_merged_in_earlier_results(run: Path, photos: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", open_model(run).classes
    predict(run, photos, out, pictures=False)
    with Store(RunFolder(run).store) as store:
        People(store).merge_class(0, 1, "ann")
        People(store).rename_class(2, "other", "ann")
    Image.new("RGB", (90, 70), (0, 200, 0)).save(photos / "new.png")
    assert predict(run, photos, out, pictures=False).known == COUNT
    labels = {label for line in lines_of(out) for label in line["labels"]}
    assert not labels & {before[0], before[2]}
    assert {before[1], "other"} <= labels


def test_a_model_folder_alone_knows_its_classes(run: Path, photos: Path, tmp_path: Path) -> None:
    classes = open_model(run).classes
    alone = Path(shutil.copytree(run / "cycle_01", tmp_path / "alone"))
    assert open_model(alone).classes == classes
    about = json.loads((alone / "model.json").read_text())
    guest = Path(shutil.copytree(alone, run / "guest"))
    foreign = ["first", *classes[1:]]
    (guest / "model.json").write_text(json.dumps({**about, "classes": foreign}))
    assert open_model(guest).classes == tuple(foreign)
    (alone / "model.json").write_text(json.dumps({**about, "classes": []}))
    with pytest.raises(UserError, match=r"no names for them\. Name the run or project"):
        open_model(alone)


def mistakes(run: Path, photos: Path, tmp_path: Path) -> dict[str, tuple[Callable[[], object], str]]:
    """Each mistake, and what the message says."""
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    return {
        "no model": (lambda: predict(photos, photos, out), "holds no model"),
        "no folder": (lambda: predict(tmp_path / "film.mp4", photos, out), "is not a folder"),
        "video": (lambda: predict(run, tmp_path / "film.mp4", out), "ffmpeg"),
        "no images": (lambda: predict(run, tmp_path / "empty", out), "contains no images"),
        "no such images": (lambda: predict(run, tmp_path / "gone", out), "does not exist"),
        "full": (lambda: predict(run, photos, tmp_path / "full"), "is not empty"),
        "into the run": (lambda: predict(run, photos, run), "is not empty"),
        "file": (lambda: predict(run, photos, tmp_path / "film.mp4"), "is a file"),
        "score": (lambda: predict(run, photos, out, score=30), "must be in"),
    }


def test_mistakes_are_explained_and_nothing_is_written(run: Path, photos: Path, tmp_path: Path) -> None:
    for made, said in mistakes(run, photos, tmp_path).values():
        with pytest.raises(UserError, match=said):
            made()
    assert not (tmp_path / "out").exists()
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["letter.txt"]


def test_results_of_another_model_are_kept(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict(run, photos, out, pictures=False)
    before = outputs_of(out)
    lines = (out / LINES).read_text().splitlines(keepends=True)
    head = json.loads(lines[0])
    (out / LINES).write_text("".join([json.dumps({**head, "model": "0" * 64}) + "\n", *lines[1:]]))
    with pytest.raises(UserError, match="another model"):
        predict(run, photos, out, pictures=False)
    assert (out / LINES).read_text().splitlines()[1:] == before[LINES].decode().splitlines()[1:]


def test_from_python(run: Path, photos: Path, tmp_path: Path) -> None:
    done = rarebox.predict(str(run), str(photos), str(tmp_path / "out"), score=0.0, pictures=False)
    assert isinstance(done, rarebox.Predicted)
    assert (done.images, done.boxes) == (COUNT, sum(len(line["boxes"]) for line in lines_of(tmp_path / "out")))


def test_the_command(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", run, photos, "--to", tmp_path / "out", "--no-pictures", "--score", "0", "--json"]
    monkeypatch.setattr(sys, "argv", ["rarebox", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert not left.value.code
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["images"] == COUNT
    assert told["boxes"] == sum(len(line["boxes"]) for line in lines_of(tmp_path / "out")) > 0
    assert not (tmp_path / "out" / "pictures").exists()
