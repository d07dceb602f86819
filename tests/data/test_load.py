"""Paths that hold no data set, or several, as a new user would name them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rarebox.data.datasets import load, refuse_missing
from rarebox.errors import UserError


def test_a_missing_folder_suggests_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "aquarium").mkdir()
    with pytest.raises(UserError, match=r"aquariun does not exist. Did you mean .*/aquarium\?"):
        load(tmp_path / "aquariun")
    with pytest.raises(UserError, match=r"xyz does not exist\. Name a folder with images and labels"):
        load(tmp_path / "xyz")


@pytest.mark.parametrize(("name", "meant"), [("scene", "scenes"), ("voc712", "voc0712")])
def test_a_name_that_is_nearly_that_of_a_known_data_set_suggests_it(name: str, meant: str) -> None:
    for look in (load, refuse_missing):
        with pytest.raises(UserError, match=f"{name} does not exist. Did you mean '{meant}'"):
            look(name)


def test_a_folder_without_a_data_set_is_refused_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is empty\. Put images and labels there"):
        refuse_missing(tmp_path)
    refuse_missing("scenes")
    refuse_missing("voc0712")


def test_the_content_under_the_name_of_a_download_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("voc2007").mkdir()
    (tmp_path / "voc2007" / "readme.txt").touch()
    (tmp_path / "photos").symlink_to("gone")
    with pytest.raises(UserError, match="voc2007"):
        refuse_missing("voc2007")
    with pytest.raises(UserError, match=r"photos does not exist\. Name a folder"):
        refuse_missing("photos")
    with pytest.raises(UserError, match="neither a COCO JSON"):
        refuse_missing("/dev/null")


def test_a_missing_path_reports_its_existing_part(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"only {tmp_path} does\)"):
        load(tmp_path / "no" / "such" / "folder")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)is empty. Put images and labels there.*COCO.*VOC.*YOLO"):
        load(tmp_path)


def test_images_without_labels_are_counted(tmp_path: Path) -> None:
    for name in "abc":
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"(?s)holds 3 images and no labels.*COCO.*VOC.*YOLO"):
        load(tmp_path)


def test_a_folder_of_something_else_shows_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"holds no data set .*found notes\.txt, papers/"):
        load(tmp_path)


def test_a_data_set_one_folder_deeper_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "fish").mkdir()
    (tmp_path / "fish" / "train.json").write_text("{}")
    with pytest.raises(UserError, match=r"Did you mean .*/fish\?"):
        load(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("a,b")
    with pytest.raises(UserError, match=r"labels\.csv is neither a COCO JSON nor a YOLO data\.yaml"):
        load(tmp_path / "labels.csv")


def test_several_label_files_without_the_known_names(tmp_path: Path) -> None:
    for name in ("one.json", "two.json"):
        (tmp_path / name).write_text('{"images": []}')
    with pytest.raises(UserError, match=r"found one\.json, two\.json"):
        load(tmp_path)


@pytest.mark.parametrize("name", ["nolabels.json", "none/data.yaml"])
def test_a_missing_file_is_not_called_a_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"does not exist.* Check the path of the file"):
        load(tmp_path / name)


XML = (
    "<annotation><filename>a.png</filename><object><name>{}</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax>"
    "<ymax>9</ymax></bndbox></object></annotation>"
)
ROW, DATA = "0 .5 .5 .2 .2", "train: images\nnames: [cat]\n"


def written(folder: Path, photo: str, **files: str) -> Path:
    """A folder with a photo and text files. In their names, ``__`` is a slash and ``_`` a dot."""
    (folder / photo).parent.mkdir(exist_ok=True)
    Image.new("RGB", (20, 20)).save(folder / photo)
    for name, content in files.items():
        place = folder / name.replace("__", "/").replace("_", ".")
        place.parent.mkdir(exist_ok=True)
        place.write_text(content)
    return folder


def test_photos_beside_a_folder_of_voc_files_may_be_in_images(tmp_path: Path) -> None:
    data = load(written(tmp_path, "images/a.png", annotations__a_xml=XML.format("cat")))
    assert (data.classes, [len(truth) for truth in data.train.truth.values()]) == (("cat",), [1])


@pytest.mark.parametrize("yolo", [True, False])
def test_a_folder_of_voc_files_without_its_photos_does_not_hide_complete_labels(tmp_path: Path, yolo: bool) -> None:
    if yolo:
        written(tmp_path, "images/a.png", data_yaml=DATA, labels__a_txt=ROW, annotations__a_xml=XML.format("dog"))
    else:
        written(tmp_path, "a.png", a_xml=XML.format("cat"), Annotations__b_xml=XML.format("dog"))
    data = load(tmp_path)
    assert [[data.classes[label] for label in truth.labels] for truth in data.train.truth.values()] == [["cat"]]
    assert {problem.kind for problem in data.problems} & {"labels not read", "missing image file"}


def test_yolo_labels_beside_the_labels_that_are_read_are_reported(tmp_path: Path) -> None:
    for name in "vy":
        (tmp_path / name).mkdir()
    voc = written(tmp_path / "v", "JPEGImages/a.png", Annotations__a_xml=XML.format("cat"), labels__a_txt=ROW)
    yolo = written(tmp_path / "y", "images/a.png", data_yaml=DATA, labels__a_txt=ROW, labels2__a_txt=ROW)
    for folder, unread in ((voc, "labels"), (yolo, "labels2")):
        found = [problem.where for problem in load(folder).problems if problem.kind == "labels not read"]
        assert found == [str(folder / unread / "a.txt")]


@pytest.mark.parametrize("listed", [(120, 90), (80, 100)])
def test_boxes_that_fit_the_file_are_not_refused_for_a_wrong_size_in_the_labels(
    tmp_path: Path, listed: tuple[int, int]
) -> None:
    Image.new("RGB", (90, 120)).save(tmp_path / "a.png")
    entry = {"id": 1, "file_name": "a.png", "width": listed[0], "height": listed[1]}
    boxes = [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": [x, y, 50, 85]}
        for n, (x, y) in enumerate([(30, 20), (20, 30)])
    ]
    content = {"images": [entry], "annotations": boxes, "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [[30, 20, 80, 105], [20, 30, 70, 115]]
    assert [problem.kind for problem in data.problems] == ["size in labels is wrong"]
