"""Another detector's boxes in a new project: class and image numbers follow the labels, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarebox import config
from rarebox.cli.label import init_project
from rarebox.errors import UserError
from rarebox.external import rank
from rarebox.project.project import Project

LABELS: dict[str, Any] = {
    "images": [{"id": 7, "file_name": "p1.png", "width": 200, "height": 200}],
    "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 2, "bbox": [10, 10, 50, 50]}],
}
RESULT: dict[str, Any] = {"image_id": 7, "category_id": 2, "bbox": [100, 100, 50, 50], "score": 0.6}
LINE: dict[str, Any] = {"image": "p1.png", "boxes": [[100, 100, 150, 150]], "scores": [0.6], "labels": [1]}
UNSURE = config.resolve("laptop", None, {"selection.strategy": "uncertainty"})
YOLO = "train: images\nnames: [cat, dog]\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for place in ("photos", "yolo/images"):
        (tmp_path / place).mkdir(parents=True)
        for number in (1, 2):
            Image.new("RGB", (200, 200), (number, 0, 0)).save(tmp_path / place / f"p{number}.png")
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    (tmp_path / "yolo" / "data.yaml").write_text(YOLO)
    (tmp_path / "yolo" / "labels").mkdir()
    (tmp_path / "yolo" / "labels" / "p1.txt").write_text("1 0.1 0.1 0.1 0.1\n")
    return tmp_path


def offered(folder: Path, found: Any, classes: str | None, labels: str | None) -> tuple[tuple[str, ...], list[Any]]:
    """The classes of the new project, and (photo, class) of each box that it offers."""
    lines = not isinstance(found, list)
    (folder / "found").write_text(json.dumps(found) + "\n" * lines)
    given = folder / labels if labels else None
    init_project(folder / "p", folder / "photos", classes, given, False, folder / "found", "laptop", {})
    project = Project(folder / "p")
    boxes, names, images = project.read_predictions(), project.store.classes(), project.store.images()
    project.store.close()
    assert boxes
    pairs = zip(boxes.image_id.tolist(), boxes.labels.tolist(), strict=True)
    return names, [(Path(images[i].path).name, names[label]) for i, label in pairs]


@pytest.mark.parametrize(
    ("found", "classes", "labels", "known"),
    [
        ([RESULT], None, "labels.json", ("cat", "dog")),
        ([{**RESULT, "image_id": "p1.png"}], "bird", "labels.json", ("cat", "dog", "bird")),
        (LINE, None, "labels.json", ("cat", "dog")),
        (LINE, None, "yolo", ("cat", "dog")),
        (LINE, "cat,dog", None, ("cat", "dog")),
        (LINE, " cat , dog", None, ("cat", "dog")),
        (LINE, "cat,dog,bird", "labels.json", ("cat", "dog", "bird")),
        ({**LINE, "labels": None, "class_probs": [[0.1, 0.6]]}, None, "labels.json", ("cat", "dog")),
    ],
)
def test_numbers_of_classes_and_images_are_those_of_the_labels(
    folder: Path, found: Any, classes: str | None, labels: str | None, known: tuple[str, ...]
) -> None:
    assert offered(folder, found, classes, labels) == (known, [("p1.png", "dog")])


@pytest.mark.parametrize(
    ("names", "number", "meant"),
    [
        ("{0: cat, 5: dog, 2: owl}", 2, "owl"),
        ("{0: cat, 5: dog, 2: owl}", 5, "dog"),
        ("[cat, cat, dog]", 1, "cat"),
        ("[cat, cat, dog]", 2, "dog"),
        ("{0: cat, 1: 'a  b', 2: 'a b', 3: dog}", 3, "dog"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_class_numbers_are_those_of_the_label_files(
    folder: Path, names: str, number: int, meant: str, flat: bool
) -> None:
    (folder / "yolo" / "labels" / "p1.txt").write_text("0 0.1 0.1 0.1 0.1\n")
    if flat and names.startswith("["):
        (folder / "yolo" / "data.yaml").unlink()
        (folder / "yolo" / "classes.txt").write_text("\n".join(names.strip("[]").split(", ")))
    else:
        (folder / "yolo" / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    assert offered(folder, {**LINE, "labels": [number]}, None, "yolo")[1] == [("p1.png", meant)]


@pytest.mark.parametrize(
    ("names", "found", "wanted"),
    [
        ("{0: cat, 5: dog, 2: owl}", LINE, "class number 1.*0 cat, 2 owl, 5 dog"),
        ("[cat, cat, dog]", {**LINE, "labels": None, "class_probs": [[0.1, 0.6, 0.1]]}, "first line"),
        ("[cat, cat, dog]", {**LINE, "class_probs": [[0.1, 0.6, 0.1]]}, "first line"),
    ],
)
def test_numbers_that_the_label_files_lack_and_vectors_of_such_classes_are_refused(
    folder: Path, names: str, found: Any, wanted: str
) -> None:
    (folder / "yolo" / "data.yaml").write_text(f"train: images\nnames: {names}\n")
    (folder / "yolo" / "labels" / "p1.txt").write_text("0 0.1 0.1 0.1 0.1\n")
    with pytest.raises(UserError, match=wanted):
        offered(folder, found, None, "yolo")


def categories(*names: str, above: str | None = None) -> dict[str, Any]:
    """LABELS with other categories, whose ids count from 1. ``above`` is the name of a placeholder with id 0."""
    listed = [{"id": n, "name": name, "supercategory": above or "x"} for n, name in enumerate(names, 1)]
    return {**LABELS, "categories": [{"id": 0, "name": above}] * bool(above) + listed}


@pytest.mark.parametrize(
    ("labels", "number", "meant"),
    [
        (categories("cat", "dog", "cat"), 2, "cat"),
        (categories("cat", "cat", "dog"), 1, "cat"),
        (categories("cat", "dog", above="animals"), 1, None),
    ],
)
@pytest.mark.parametrize("command", ["init", "rank"])
def test_class_numbers_are_places_among_all_categories(
    folder: Path, labels: dict[str, Any], number: int, meant: str | None, command: str
) -> None:
    (folder / "labels.json").write_text(json.dumps(labels))
    found = {**LINE, "labels": [number]}

    def meaning() -> str:
        if command == "init":
            return offered(folder, found, None, "labels.json")[1][0][1]
        (folder / "found").write_text(json.dumps(found) + "\n")
        ranked = rank(folder / "found", None, folder / "labels.json", None, UNSURE, 9)
        (query,) = ranked.queries
        assert query.guess is not None
        return ranked.classes[query.guess]

    if meant:
        assert meaning() == meant
    else:
        with pytest.raises(UserError, match="first line"):
            meaning()


def test_class_numbers_that_two_lists_of_classes_contradict_are_refused(folder: Path) -> None:
    (folder / "yolo" / "data.yaml").unlink()
    (folder / "yolo" / "labels" / "classes.txt").write_text("cat\ndog\n")
    (folder / "yolo" / "images" / "p2.txt").write_text("1 0.1 0.1 0.1 0.1\n")
    (folder / "yolo" / "images" / "classes.txt").write_text("owl\ndog\n")
    with pytest.raises(UserError, match="first line"):
        offered(folder, LINE, None, "yolo")


@pytest.mark.parametrize(
    ("found", "classes", "labels", "wanted"),
    [
        ([{**RESULT, "image_id": "p1.png"}], "cat,dog", None, "Give the COCO file with these categories as --labels"),
        ([{**RESULT, "image_id": "p1.png"}], None, "yolo", "Give the COCO file"),
        ([{**RESULT, "category_id": 3}], None, "labels.json", "category 3"),
        (LINE, None, None, "first line"),
        (LINE, "dog,cat", "labels.json", "first line"),
        ({**LINE, "labels": [2]}, "cat,dog", None, "class number 2"),
    ],
)
def test_numbers_that_nothing_explains_are_refused_before_a_project_is_made(
    folder: Path, found: Any, classes: str | None, labels: str | None, wanted: str
) -> None:
    with pytest.raises(UserError, match=wanted):
        offered(folder, found, classes, labels)
    assert not (folder / "p").exists()
