"""Ultralytics YOLO folders."""

from pathlib import Path

import pytest
from PIL import Image

from rarebox.data import load, yolo
from rarebox.errors import UserError


def add(root: Path, image: str, *lines: str) -> None:
    """An image of 100 x 50 pixels; with lines also its label file."""
    path = root / image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50)).save(path)
    if lines:
        label = yolo.label_file(path)
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("\n".join(lines))


def data_yaml(root: Path, text: str, names: str = "names: [cat, dog]") -> None:
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(f"{text}\n{names}\n")


def test_train_and_val(tmp_path: Path) -> None:
    data_yaml(tmp_path, f"path: {tmp_path}\ntrain: images/train\nval: images/val")
    add(tmp_path, "images/train/b.png", "1 0.5 0.5 0.2 0.4", "0 0.5 0.5 1 1")
    add(tmp_path, "images/train/a.png", "")
    add(tmp_path, "images/val/a.png", "0 0.1 0.1 0.2 0.2")
    data = load(tmp_path)
    assert data.problems == ()
    assert data.classes == ("cat", "dog")
    assert data.test is not None
    found = [(i.id, Path(i.path).parent.name, Path(i.path).name) for i in (*data.train.images, *data.test.images)]
    assert found == [(1, "train", "a.png"), (2, "train", "b.png"), (3, "val", "a.png")]
    assert data.train.truth[2].boxes.tolist() == [[40, 15, 60, 35], [0, 0, 100, 50]]
    assert data.train.truth[2].labels.tolist() == [1, 0]
    assert len(data.train.truth[1]) == 0


@pytest.mark.parametrize(
    "train",
    [
        "train: images/train",
        "train: ../images/train",
        "path: .\ntrain: images/train",
        "path: elsewhere\ntrain: images/train",
        "train: train.txt",
        "train: [images/train]",
        "train:\n - images/train\n - train.txt",
    ],
)
def test_ways_to_name_the_training_images(tmp_path: Path, train: str) -> None:
    root = tmp_path / "root"
    data_yaml(root, train)
    add(root, "images/train/a.png", "0 0.5 0.5 0.2 0.4")
    (root / "train.txt").write_text("./images/train/a.png\n\n")
    for path in (root, root / "data.yaml"):
        data = load(path)
        assert [i.path for i in data.train.images] == [str(root / "images/train/a.png")]
        assert len(data.train.truth[1]) == 1
        assert data.test is None


def test_a_yaml_of_another_name(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    (tmp_path / "data.yaml").rename(tmp_path / "fish.yml")
    (tmp_path / "other.yaml").write_text("a: 1")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    assert len(load(tmp_path).train.images) == 1


def test_test_goes_before_val(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: train/images\nval: valid/images\ntest: test/images")
    for split in ("train", "valid", "test"):
        add(tmp_path, f"{split}/images/{split}.png", "0 0.5 0.5 0.2 0.4")
    data = load(tmp_path)
    assert data.test is not None
    assert Path(data.test.images[0].path).stem == "test"
    assert [p.kind for p in data.problems] == ["split not used"]


def test_names_by_number(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images", "names: {3: dog, 1: cat}")
    add(tmp_path, "images/a.png", "3 0.5 0.5 0.2 0.4")
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.train.truth[1].labels.tolist() == [1]


def test_only_the_last_images_folder_becomes_labels() -> None:
    assert yolo.label_file(Path("/images/x/images/train/a.b.jpg")) == Path("/images/x/labels/train/a.b.txt")
    assert yolo.label_file(Path("x/a.jpg")) == Path("x/a.txt")


def test_a_polygon_becomes_its_hull(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", "0 0.1 0.2 0.5 0.4 0.3 0.8")
    assert load(tmp_path).train.truth[1].boxes.tolist() == [[10, 10, 50, 40]]


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: [images, list.txt]")
    lines = ["7 0.5 0.5 0.2 0.4", "0 0.5 0.5 0.2", "0 0.5 0.5 0.2 0.4 0.9", "x 1 2 3 4", "0 nan 0.5 0.2 0.4",
             "0 0.5 0.5 0 0.4", "0 0.5 0.5 -0.2 0.4", "0 2.5 0.5 0.2 0.4", "0 0.05 0.5 0.2 0.4"]  # fmt: skip
    add(tmp_path, "images/a.png", *lines)
    add(tmp_path, "images/b.png")
    (tmp_path / "labels/c.txt").write_text("0 0.5 0.5 0.2 0.4")
    (tmp_path / "list.txt").write_text("images/gone.png")
    (tmp_path / "labels/gone.txt").write_text("")
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [[0, 15, 15, 35]]
    found = sorted((p.kind, Path(p.where.split(",")[0]).name, p.where.partition("line ")[2]) for p in data.problems)
    assert found == [
        ("annotation without image", "c.txt", ""),
        ("annotation without image", "gone.txt", ""),
        ("box clipped", "a.txt", "9"),
        *(("box dropped", "a.txt", str(line)) for line in range(2, 9)),
        ("image without annotation", "b.png", ""),
        ("missing image file", "gone.png", ""),
        ("unknown category", "a.txt", "1"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: images\nnames: [a, b", r"data\.yaml, line \d+: this is not valid YAML .*repair the file"),
        ("train: images\nnames: [a]\n bad: - x", r"data\.yaml, line 3: this is not valid YAML"),
        ("names: [a]", r"data\.yaml: there is no entry 'train'"),
        ("- a", r"data\.yaml: there is no entry 'train'"),
        ("train: images", r"data\.yaml: 'names' is not a list"),
        ("train: images\nnames: {cat: 0}", r"data\.yaml: 'names' is not a list"),
        ("train: nowhere\nnames: [a]", r"data\.yaml: 'train' names nowhere, which is neither there nor under 'path'"),
        ("train: empty\nnames: [a]", r"data\.yaml lists no training images"),
    ],
)
def test_a_broken_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "empty").mkdir()
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_copies_in_hidden_folders_are_no_images_without_objects(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    add(tmp_path, "images/.ipynb_checkpoints/a-checkpoint.png", "0 0.5 0.5 0.2 0.4")
    add(tmp_path, "images/__MACOSX/._a.png")
    (tmp_path / "labels" / "._a.txt").write_bytes(b"\0\5\x16\7")
    data = load(tmp_path)
    assert [Path(i.path).name for i in data.train.images] == ["a.png"]
    assert data.problems == ()


def test_labels_belong_to_the_name_of_a_link_and_dead_links_are_listed(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "images" / "a.png").rename(tmp_path / "0123.png")
    (tmp_path / "images" / "a.png").symlink_to("../0123.png")
    (tmp_path / "images" / "b.png").symlink_to("../4567.png")
    data = load(tmp_path)
    assert len(data.train.truth[1]) == 1
    assert [p.kind for p in data.problems if Path(p.where).name == "b.png"] == [
        "image without annotation",
        "missing image file",
    ]
