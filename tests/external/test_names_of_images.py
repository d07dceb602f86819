"""Detections may name photos differently from the labels: a labelled photo is recognised, or the command reports it."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox import config, external
from rarebox.cli.label import init_project
from rarebox.cli.main import app
from rarebox.data.export import export
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.project.collect import collect
from rarebox.project.create import create
from rarebox.project.predictions import read_all
from rarebox.project.project import Project
from rarebox.types import Answer, ImageRecord, Query, Verdict

SETTINGS = config.resolve("laptop", None, {"selection.strategy": "uncertainty"})


def labels_of(folder: Path, *names: str) -> Path:
    """A COCO file whose images are fully labelled with one box each."""
    content = {
        "images": [
            {"id": n, "file_name": name, "width": 200, "height": 200, "attributes": {"complete": True}}
            for n, name in enumerate(names, 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [10, 10, 50, 50]} for n, _ in enumerate(names, 1)
        ],
    }
    folder.mkdir(exist_ok=True)
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


def found_on(folder: Path, *names: str | int) -> Path:
    line: dict[str, Any] = {"boxes": [[100, 100, 150, 150]], "scores": [0.6], "labels": ["cat"]}
    file = folder / "found.jsonl"
    lines = ({"image": name, "width": 200, "height": 200, **line} for name in names)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def rank(folder: Path, labels: Path, *names: str | int, images: Path | None = None) -> tuple[list[str], str]:
    """The paths of the images whose boxes are listed, and the notes."""
    ranked = external.rank(found_on(folder, *names), None, labels, images, SETTINGS, 9)
    return [ranked.images[query.image_id].path for query in ranked.queries], "\n".join(ranked.notes)


NAMES = ["p0.png", "images/p0.png", "/data/photos/p0.png", "P0.PNG", "x\\p0.png", "p0.jpg", "night/P0.JPEG", "p0", 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_labelled_photo_is_recognised_under_another_folder_case_or_suffix(tmp_path: Path, name: str | int) -> None:
    listed, notes = rank(tmp_path, labels_of(tmp_path / "o", "p0.png"), name)
    assert listed == []
    assert "1 of 1 labelled images of labels.json have detections in found.jsonl" in notes
    assert ("almost the same name" in notes) == (name not in ("p0.png", "p0", 1))


@pytest.mark.parametrize("name", ["p0.png", "elsewhere/P0.png"])
def test_a_photo_labelled_in_a_project_is_recognised_too(tmp_path: Path, name: str) -> None:
    with Store(tmp_path / "labels.sqlite", classes=["cat"]) as store:
        store.add_images([ImageRecord(5, "/photos/p0.png", 200, 200), ImageRecord(6, "/photos/p1.png", 200, 200)])
    assert external.rank(found_on(tmp_path, name), None, tmp_path, None, SETTINGS, 9).queries[0].image_id == 5


def test_names_that_fit_no_labelled_photo_are_reported(tmp_path: Path) -> None:
    listed, notes = rank(tmp_path, labels_of(tmp_path / "o", "p0.png"), "q0.png")
    assert listed == ["q0.png"]
    assert "0 of 1 labelled images" in notes
    assert "Their names do not match" in notes


def test_a_name_that_is_the_photos_own_excludes_other_folders(tmp_path: Path) -> None:
    listed, notes = rank(
        tmp_path, labels_of(tmp_path / "o", "a/p0.png", "b/p0.png"), "a/p0.png", "b/p0.png", "c/p0.png"
    )
    assert listed == ["c/p0.png"]
    assert "almost the same name" not in notes


@pytest.mark.parametrize(
    ("labelled", "names", "wanted"),
    [
        (["a/p0.png", "b/p0.png"], ["c/p0.png"], r"'c/p0.png' may be .*a/p0.png or .*b/p0.png.*--images"),
        (["p0.png"], ["c/p0.png", "d/p0.png"], r"'c/p0.png' and 'd/p0.png' may both be .*p0.png"),
        (["p0.png", "P0.png"], ["c/P0.PNG"], r"'c/P0.PNG' may be .*p0.png or .*P0.png"),
    ],
)
def test_ambiguous_names_are_refused(tmp_path: Path, labelled: list[str], names: list[str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        rank(tmp_path, labels_of(tmp_path / "o", *labelled), *names)


def test_two_photos_of_a_folder_do_not_become_one_labelled_image(tmp_path: Path) -> None:
    labels = labels_of(tmp_path / "o", "p0.png")
    for folder in ("c", "d"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        Image.new("RGB", (200, 200)).save(tmp_path / "photos" / folder / "p0.png")
    with pytest.raises(UserError, match=r"may both be .*o/p0\.png"):
        rank(tmp_path, labels, "c/p0.png", images=tmp_path / "photos")
    (tmp_path / "photos" / "d" / "p0.png").unlink()
    assert rank(tmp_path, labels, "c/p0.png", images=tmp_path / "photos")[0] == []


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """A project of ``x/a.png``, ``y/a.png`` and ``y/b.png``, the first two labelled, and its export ``e``."""
    for number, name in enumerate(("x/a.png", "y/a.png", "y/b.png")):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (200, 200), (number, 0, 0)).save(tmp_path / "photos" / name)
    create(tmp_path / "p", tmp_path / "photos", ["cat"])
    with Store(tmp_path / "p" / "labels.sqlite") as store:
        store.open_cycle(1)
        box = np.array([[10, 10, 60, 60]], np.float32)
        store.record(
            [Answer(q.id, box, np.array([0]), Verdict.OBJECT, "ann") for q in store.ask(1, [Query(1), Query(2)])]
        )
    images, classes, labels = collect(tmp_path / "p")
    export(tmp_path / "e", "coco", classes, images, labels)
    export(tmp_path / "copied", "coco", classes, images, labels, copy_images=True)
    for place in ("e", "copied"):
        result = {"category_id": 1, "score": 0.8}
        results = [{**result, "image_id": image.id, "bbox": [5, 5, 40 + image.id, 40]} for image in images]
        (tmp_path / place / "results.json").write_text(json.dumps(results))
    return tmp_path


@pytest.mark.parametrize("place", ["e", "copied"])
@pytest.mark.parametrize("names", [["x/a.png", "y/a.png", "y/b.png"], ["x/a.png", "a-2.png", "b.png"]])
def test_a_photo_and_its_image_in_an_export_are_one(alike: Path, place: str, names: list[str]) -> None:
    listed, notes = rank(alike, alike / place / "annotations.json", *names, images=alike / "photos")
    assert listed == [str(alike / "photos" / "y" / "b.png")]  # the others are fully labelled
    assert "2 of 2 labelled images" in notes


@pytest.mark.parametrize("place", ["e", "copied"])
def test_results_on_an_export_go_to_the_photos_that_it_shows(alike: Path, place: str) -> None:
    results, labels = str(alike / place / "results.json"), alike / place / "annotations.json"
    app_runs("predictions", "add", str(alike / "p"), results, "--images", str(labels))
    init_project(alike / "n", alike / "photos", None, labels, False, Path(results), "laptop", {})
    for project in ("p", "n"):
        with closing(Project(alike / project).store) as store:
            found = read_all(alike / project, store.counts_as())
            assert found is not None
            paths = [Path(store.images()[i].path).relative_to(alike / "photos") for i in found.image_id.tolist()]
        width = dict(zip(map(str, paths), (found.boxes[:, 2] - 45).tolist(), strict=True))
        assert width == {"x/a.png": 1, "y/a.png": 2, "y/b.png": 3}


def test_a_name_of_several_photos_costs_only_its_own_boxes(alike: Path) -> None:
    said = app_runs("predictions", "add", str(alike / "p"), str(found_on(alike, "a.png", "b.png")))
    assert "1 image skipped, since several photos fit: 'a.png' may be" in said
    assert "1 box on 1 photo" in said
    refused = CliRunner().invoke(app, ["predictions", "add", str(alike / "p"), str(found_on(alike, "a.png"))])
    assert "several photos fit" in str(refused.exception)


def app_runs(*words: str) -> str:
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    return " ".join(result.output.split())
