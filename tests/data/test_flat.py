"""Label files beside the images, as labelImg writes them; and formats that are only named, with the way to COCO."""

import json
from pathlib import Path

import pytest
from PIL import Image

from rarebox.data.datasets import load
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
def test_a_format_that_is_not_read_is_named_with_the_way_to_coco(
    tmp_path: Path, place: str, content: object, tool: str
) -> None:
    photos(tmp_path, "a.jpg")
    file = tmp_path / place
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=rf"{file.name} is in the format of {tool}.*COCO"):
            load(path)
