"""Detections may name photos differently from the labels: a labelled photo is recognised, or the command reports it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarebox import config, external
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.types import ImageRecord

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
