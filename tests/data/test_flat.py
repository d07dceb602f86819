"""Label files beside the images, as labelImg writes them, and foreign formats that are refused with advice."""

import errno
import json
import os
import shutil
from io import BufferedReader
from pathlib import Path

import pytest
from PIL import Image

from rarebox.core import files
from rarebox.core.files import open_regular
from rarebox.data import remote
from rarebox.data.datasets import load
from rarebox.data.detections import read_map
from rarebox.data.images import SUFFIXES
from rarebox.data.listings import Dataset
from rarebox.errors import UserError

XML = (
    "<annotation><filename>a.jpg</filename><size><width>80</width><height>40</height></size><object><name>cat</name>"
    "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>30</xmax><ymax>20</ymax></bndbox></object></annotation>"
)
ROW = "1 0.25 0.3125 0.25 0.375"  # the same box
BOX = [10, 5, 30, 20]


def photos(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (80, 40)).save(folder / name)
    return folder


def boxes(data: Dataset) -> dict[str, list[tuple[str, list[float]]]]:
    found = {}
    for image in data.train.images:
        truth = data.train.truth[image.id]
        pairs = zip(truth.labels, truth.boxes.tolist(), strict=True)
        found[Path(image.path).name] = [(data.classes[label], [round(edge, 3) for edge in box]) for label, box in pairs]
    return found


@pytest.mark.parametrize("inner", ["", "night"])
def test_voc_files_beside_the_images_are_read(tmp_path: Path, inner: str) -> None:
    folder = photos(tmp_path / inner, "a.jpg", "b.png")
    (folder / "a.xml").write_text(XML)
    data = load(tmp_path)
    assert boxes(data) == {"a.jpg": [("cat", BOX)], "b.png": []}
    assert [data.train.images[1].id] == [*data.train.unlabelled]


def test_yolo_files_beside_the_images_are_read(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "b.png")
    (tmp_path / "classes.txt").write_text("dog\ncat\n\n")
    (tmp_path / "a.txt").write_text(f"{ROW}\n7 0.5 0.5 0.1 0.1\n")
    (tmp_path / "gone.txt").write_text(ROW)
    data = load(tmp_path)
    assert data.classes == ("dog", "cat")
    assert boxes(data) == {"a.jpg": [("cat", BOX)], "b.png": []}
    assert [data.train.images[1].id] == [*data.train.unlabelled]
    assert [(p.kind, Path(p.where.split(",")[0]).name) for p in data.problems] == [
        ("annotation without image", "gone.txt"),
        ("unknown category", "a.txt"),
        ("image without annotation", "b.png"),
    ]
    assert "names in classes.txt" in data.problems[1].what


def test_yolo_files_in_a_folder_of_their_own_without_a_data_yaml_are_read(tmp_path: Path) -> None:
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(ROW)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    data = load(tmp_path)
    assert boxes(data) == {"a.jpg": [("cat", BOX)]}
    assert data.problems == ()


def test_classes_without_a_name_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text(ROW)
    for text in ("\n\n", "dog\n\ncat\n"):
        (tmp_path / "classes.txt").write_text(text)
        with pytest.raises(UserError, match=r"classes\.txt: write the name of a class on each line"):
            load(tmp_path)


def trees(top: Path, **classes: str) -> None:
    """Folders, each with its own classes.txt (if not empty), and an image with one box of class 0."""
    for name, text in classes.items():
        photos(top / name, f"{name}.jpg")
        (top / name / f"{name}.txt").write_text("0 0.25 0.3125 0.25 0.375\n")
        if text:
            (top / name / "classes.txt").write_text(text)


def test_the_nearest_classes_txt_counts_and_equal_names_are_one_class(tmp_path: Path) -> None:
    trees(tmp_path, one="cat\n", two="dog\ncat\n", three="")
    trees(tmp_path / "two", deep="")
    (tmp_path / "classes.txt").write_text("bird\n")
    data = load(tmp_path)
    assert data.classes == ("bird", "cat", "dog")
    assert {name: [label for label, _ in found] for name, found in boxes(data).items()} == {
        "one.jpg": ["cat"],
        "two.jpg": ["dog"],
        "three.jpg": ["bird"],
        "deep.jpg": ["dog"],
    }
    assert data.problems == ()


def test_labels_without_a_classes_txt_at_or_above_them_are_listed(tmp_path: Path) -> None:
    trees(tmp_path, one="cat\n", two="")
    data = load(tmp_path)
    assert boxes(data) == {"one.jpg": [("cat", BOX)], "two.jpg": []}
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("unknown category", "two.txt")]
    assert [image.id for image in data.train.images if image.path.endswith("two.jpg")] == [*data.train.incomplete]


def test_a_classes_txt_among_the_labels_or_above_the_images_is_found(tmp_path: Path) -> None:
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(ROW)
    (tmp_path / "labels" / "Classes.txt").write_text("dog\ncat\n")
    for path in (tmp_path, tmp_path / "images"):
        assert boxes(load(path)) == {"a.jpg": [("cat", BOX)]}
    (tmp_path / "labels" / "Classes.txt").rename(tmp_path / "images" / "classes.txt")
    assert boxes(load(tmp_path / "images")) == {"a.jpg": [("cat", BOX)]}


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_only_line_ends_separate_classes_and_rows(tmp_path: Path, sign: str) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    (tmp_path / "classes.txt").write_bytes(f"dog{sign}puppy\r\ncat\rbird\n".encode())
    (tmp_path / "a.txt").write_text(ROW)
    (tmp_path / "b.txt").write_text(
        f"{ROW}{sign}{ROW}{sign}{ROW}\n{ROW}", encoding="utf-8"
    )  # otherwise a polygon of seven points
    data = load(tmp_path)
    assert data.classes == ("dog puppy", "cat", "bird")
    assert boxes(data) == {"a.jpg": [("cat", BOX)], "b.jpg": [("cat", BOX)]}
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [
        ("box dropped", "b.txt, line 1"),
        ("class name cleaned", "classes.txt"),
    ]


@pytest.mark.parametrize("sign", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_list_may_name_a_photo_with_any_sign_but_a_line_end(tmp_path: Path, sign: str) -> None:
    name = f"a{sign}b"
    folder = photos(tmp_path / "images", f"{name}.jpg")
    (folder / "list.txt").write_text(f"{name}.jpg\r\n", encoding="utf-8", newline="")
    assert remote.listing(str(folder / "list.txt"), SUFFIXES) == [str(folder / f"{name}.jpg")]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{name}.txt").write_text(ROW)
    (tmp_path / "data.yaml").write_text("train: images/list.txt\nnames: [dog, cat]\n")
    assert boxes(load(tmp_path)) == {f"{name}.jpg": [("cat", BOX)]}
    (tmp_path / "data.yaml").unlink()
    folder.rename(tmp_path / "JPEGImages")
    (tmp_path / "labels" / f"{name}.txt").rename(tmp_path / "labels" / f"{name}.xml")
    (tmp_path / "labels" / f"{name}.xml").write_text(XML)
    (tmp_path / "labels").rename(tmp_path / "Annotations")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text(f"{name}\r\n", encoding="utf-8", newline="")
    assert boxes(load(tmp_path)) == {f"{name}.jpg": [("cat", BOX)]}
    copy = {"file": name, "image": name, "view": "flip", "matrix": [1, 0, 0, 0, 1, 0], "patches": []}
    line = json.dumps({**copy, "width": 80, "height": 40}, ensure_ascii=False)
    (tmp_path / "map.jsonl").write_text(line + "\n", encoding="utf-8")
    assert [*read_map(tmp_path / "map.jsonl")] == [name]


def forbid(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    """Refuse to open a file, as for a user without permission (root may open all files)."""

    def opened(path: str | Path) -> BufferedReader:
        if Path(path) == file:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_regular(path)

    monkeypatch.setattr(files, "open_regular", opened)


UNREADABLE = {"pipe": os.mkfifo, "folder": Path.mkdir, "forbidden": Path.touch}


@pytest.mark.parametrize("suffix", [".xml", ".txt"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_label_file_that_cannot_be_read_is_listed(
    tmp_path: Path, kind: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path, "a.jpg", "b.jpg")
    strange = tmp_path / f"a{suffix}"
    UNREADABLE[kind](strange)
    if kind == "forbidden":
        forbid(monkeypatch, strange)
    (tmp_path / f"b{suffix}").write_text(XML if suffix == ".xml" else ROW)
    if suffix == ".txt":
        (tmp_path / "classes.txt").write_text("dog\ncat\n")
    data = load(tmp_path)
    assert boxes(data)["b.jpg"] == [("cat", BOX)]
    assert [p.kind for p in data.problems if p.where == str(strange)] == ["unreadable annotation"]


@pytest.mark.parametrize("name", ["classes.txt", "a.json", "data.yaml", "ImageSets/Main/train.txt", "train.json"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_that_decides_the_format_and_cannot_be_read_is_a_user_error(
    tmp_path: Path, kind: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path / "JPEGImages", "a.jpg")
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.txt").write_text(ROW)
    if name.startswith("ImageSets"):
        (tmp_path / "Annotations").mkdir()
        (tmp_path / "Annotations" / "a.xml").write_text(XML)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    UNREADABLE[kind](tmp_path / name)
    if kind == "forbidden":
        forbid(monkeypatch, tmp_path / name)
    with pytest.raises(UserError):
        load(tmp_path)


@pytest.mark.parametrize("call", ["scandir", "listdir"])
def test_a_folder_that_cannot_be_listed_is_a_user_error(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object = ".") -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    photos(tmp_path, "a.jpg")
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(UserError):
        load(tmp_path)


def test_two_photos_of_one_name_are_both_listed(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg", "a.png")
    (tmp_path / "a.xml").write_text(XML.replace("a.jpg", "a.png"))
    data = load(tmp_path)
    assert boxes(data) == {"a.jpg": [], "a.png": [("cat", BOX)]}
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("image without annotation", "a.jpg")]


def test_rows_that_may_have_key_points_need_a_data_yaml(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    (tmp_path / "a.txt").write_text(f"{ROW} 0.2 0.3 2 0.3 0.4 2\n")
    with pytest.raises(UserError, match=r"Add a data\.yaml with their kpt_shape"):
        load(tmp_path)


def test_two_formats_beside_the_images_are_refused(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.xml").write_text(XML)
    (tmp_path / "a.txt").write_text(ROW)
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match=r"both VOC \(\.xml\) and YOLO \(\.txt\).* Keep one format"):
        load(tmp_path)
    (tmp_path / "a.txt").unlink()
    assert boxes(load(tmp_path)) == {"a.jpg": [("cat", BOX)]}


def test_a_second_format_in_the_folder_is_listed(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.xml").write_text(XML)
    image = {"id": 1, "file_name": "a.jpg", "width": 80, "height": 40}
    coco = {"images": [image], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "old.json").write_text(json.dumps(coco))
    data = load(tmp_path)
    assert [(p.kind, "VOC format" in p.what) for p in data.problems if p.kind == "labels not read"] == [
        ("labels not read", True)
    ]
    shutil.copy(tmp_path / "old.json", tmp_path / "other.JSON")  # neither of the two is chosen
    assert "labels not read" in {p.kind for p in load(tmp_path).problems}
    (tmp_path / "other.JSON").unlink()
    (tmp_path / "a.xml").unlink()
    assert "labels not read" not in {p.kind for p in load(tmp_path).problems}


@pytest.mark.parametrize("second", ["more/labels.json", "b.JSON", "old/a.xml", "images/a.txt", "B.YAML"])
def test_label_files_that_are_not_read_are_listed(tmp_path: Path, second: str) -> None:
    (tmp_path / "images").mkdir()
    photos(tmp_path / "images", "a.jpg")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(ROW)
    (tmp_path / "data.yaml").write_text("train: images\nnames: [dog, cat]\n")
    assert "labels not read" not in {p.kind for p in load(tmp_path).problems}
    content = {"json": '{"images": [], "annotations": []}', "xml": XML, "txt": ROW, "yaml": "train: .\nnames: [x]\n"}
    (tmp_path / second).parent.mkdir(exist_ok=True)
    (tmp_path / second).write_text(content[second.rpartition(".")[2].lower()])
    (problem,) = [p for p in load(tmp_path).problems if p.kind == "labels not read"]
    assert problem.where == str(tmp_path / second)


@pytest.mark.parametrize("suffix", ["JPG", "jpg", "PNG"])
def test_label_files_beside_images_with_upper_case_suffixes_are_read(tmp_path: Path, suffix: str) -> None:
    photos(tmp_path, f"a.{suffix}")
    (tmp_path / "a.xml").write_text(XML)
    assert boxes(load(tmp_path)) == {f"a.{suffix}": [("cat", BOX)]}


def test_a_second_coco_file_beside_train_json_is_listed(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    image = {"id": 1, "file_name": "a.jpg", "width": 80, "height": 40}
    content = json.dumps({"images": [image], "annotations": [], "categories": [{"id": 1, "name": "dog"}]})
    for name in ("train.json", "labels.json"):
        (tmp_path / name).write_text(content)
    (problem,) = (p for p in load(tmp_path).problems if p.kind == "split not used")
    assert Path(problem.where).name == "labels.json"


def test_classes_txt_without_labels_is_no_data_set(tmp_path: Path) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(UserError, match="holds 1 images and no labels"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("place", "content", "tool"),
    [
        ("via.json", {"_via_img_metadata": {}}, "VIA"),
        ("via.json", {"a.jpg1": {"filename": "a.jpg", "regions": [{"shape_attributes": {}}]}}, "VIA"),
        ("via.csv", "filename,file_size,region_count,region_shape_attributes\n", "VIA"),
        ("a.json", {"shapes": [], "imagePath": "a.jpg"}, "LabelMe"),
        ("ds0/ann/a.jpg.json", {"objects": [{"classTitle": "cat"}]}, "Supervisely"),
    ],
)
def test_an_unsupported_format_is_named_with_the_way_to_coco(
    tmp_path: Path, place: str, content: object, tool: str
) -> None:
    photos(tmp_path, "a.jpg")
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=rf"{file.name} is in the format of {tool}.*COCO"):
            load(path)


@pytest.mark.parametrize(
    "settings", ['{"images": {"size": 3}}', '{"images": ["a.jpg"]}', '{"annotations": {}, "images": {}}']
)
def test_a_json_file_of_settings_is_no_label_file(tmp_path: Path, settings: str) -> None:
    photos(tmp_path, "a.jpg")
    (tmp_path / "a.xml").write_text(XML)
    (tmp_path / "settings.json").write_text(settings)
    data = load(tmp_path)
    assert data.classes == ("cat",)
    assert "labels not read" not in {problem.kind for problem in data.problems}
