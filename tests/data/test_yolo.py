"""Ultralytics YOLO folders."""

from pathlib import Path

import pytest
from PIL import Image

from rarebox.data import yolo
from rarebox.data.datasets import load
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
    (problem,) = data.problems
    assert problem.kind == "split not used"
    assert "the images of 'val' are not read. To use their labels, add them to 'train'" in problem.what
    data_yaml(tmp_path, "train: [train/images, valid/images]\nval: valid/images\ntest: test/images")
    assert {Path(image.path).stem for image in load(tmp_path).train.images} == {"train", "valid"}


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
    lines = [
        "7 0.5 0.5 0.2 0.4",
        "0 0.5 0.5 0.2",
        "0 0.5 0.5 0.2 0.4 0.9",
        "x 1 2 3 4",
        "0 nan 0.5 0.2 0.4",
        "0 0.5 0.5 0 0.4",
        "0 0.5 0.5 -0.2 0.4",
        "0 2.5 0.5 0.2 0.4",
        "0 0.05 0.5 0.2 0.4",
    ]
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
        ("train: images\nnames: [a, b", r"data\.yaml, line \d+: not valid YAML .*Repair the file"),
        ("train: images\nnames: [a]\n bad: - x", r"data\.yaml, line 3: not valid YAML"),
        ("names: [a]", r"data\.yaml: the entry 'train' is missing"),
        ("- a", r"data\.yaml: the entry 'train' is missing"),
        ("train: images", r"data\.yaml: 'names' must be a list"),
        ("train: images\nnames: {cat: 0}", r"data\.yaml: 'names' must be a list"),
        ("train: images\nnames: [{0: cat}, {1: dog}]", r"data\.yaml: 'names' must be a list"),
        ("train: images\nnames: [cat, [dog]]", r"data\.yaml: 'names' must be a list"),
        (
            "train: nowhere\nnames: [a]",
            r"data\.yaml: 'train' names nowhere, which does not exist, with or without 'path'",
        ),
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


# ------------------------------------------------------------------------------------------- ownership of labels


def test_a_label_file_belongs_to_the_photo_of_the_very_same_name(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/A.png")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    add(tmp_path, "images/B.png")
    (tmp_path / "labels" / "b.txt").write_text("1 0.5 0.5 0.2 0.4")  # only B.png fits
    data = load(tmp_path)
    found = {Path(i.path).name: data.train.truth[i.id].labels.tolist() for i in data.train.images}
    assert found == {"A.png": [], "B.png": [1], "a.png": [0]}
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("image without annotation", "A.png")]
    assert data.train.unlabelled == {1}


@pytest.mark.parametrize("listed", ["images", "only.txt"])
@pytest.mark.parametrize("other", ["x.jpg", "X.png"])
def test_a_label_file_that_fits_several_photos_equally_well_is_skipped(tmp_path: Path, listed: str, other: str) -> None:
    data_yaml(tmp_path, f"train: [{listed}, more]")
    add(tmp_path, "more/y.png", "0 0.5 0.5 0.2 0.4")
    add(tmp_path, "images/x.png")
    add(tmp_path, f"images/{other}")
    (tmp_path / "only.txt").write_text("images/x.png\n")  # the photo beside it still counts
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / ("x.txt" if other == "x.jpg" else "x.TXT")).write_text("0 0.5 0.5 0.2 0.4")
    data = load(tmp_path)
    doubtful = {i.id for i in data.train.images if Path(i.path).parent.name == "images"}
    assert all(len(data.train.truth[i]) == 0 for i in doubtful)
    assert doubtful <= data.train.incomplete & data.train.unlabelled
    (problem,) = data.problems
    assert problem.kind == "ambiguous annotation"
    assert "x.png" in problem.what
    assert other in problem.what


def test_two_names_of_one_photo_are_no_rivals(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    (tmp_path / "images" / "a.jpeg").symlink_to("a.png")
    assert len(load(tmp_path).train.truth[1]) == 1


@pytest.mark.parametrize("entry", ["/", "..", "../", ".", "images/.."])
@pytest.mark.parametrize("key", ["val", "test"])
def test_a_split_that_holds_more_than_its_images_is_refused(tmp_path: Path, entry: str, key: str) -> None:
    root = tmp_path / "set"
    data_yaml(root, f"train: images/train\n{key}: {entry}")
    add(root, "images/train/a.png", "0 0.5 0.5 0.2 0.4")
    add(tmp_path, "else/b.png")
    with pytest.raises(UserError, match=rf"data\.yaml: '{key}' names .* holds more than .*such as images/{key}"):
        load(root)


def test_a_training_folder_above_the_data_set_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    data_yaml(root, "train: ..")
    add(root, "a.png", "0 0.5 0.5 0.2 0.4")
    with pytest.raises(UserError, match=r"'train' names \.\., which is"):
        load(root)
    data_yaml(root, "train: .")
    assert len(load(root).train.truth[1]) == 1


def test_an_entry_that_is_neither_a_folder_nor_a_file_is_refused(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: /dev/null")
    with pytest.raises(UserError, match=r"data\.yaml: 'train' names /dev/null, which cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize("names", ["names: {0: cat, 0: dog}", "names:\n  0: cat\n  00: dog", "names: [a]\nnames: [b]"])
def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, names: str) -> None:
    data_yaml(tmp_path, "train: images", names)
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.4")
    with pytest.raises(UserError, match=r"data\.yaml, line \d+: .*the key '\w+' occurs more than once"):
        load(tmp_path)


@pytest.mark.parametrize(
    "row", ["0 .1 .1 nan .9 .5 .5", "0 .1 .1 .5 inf .5 .5", "0 0_5 0.5 0.2 0.4", "0 nan 0.5 0.2 0.4"]
)
def test_a_row_with_something_else_than_finite_numbers_is_dropped(tmp_path: Path, row: str) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", row, "1 0.5 0.5 0.2 0.4")
    data = load(tmp_path)
    assert data.train.truth[1].labels.tolist() == [1]
    assert [p.kind for p in data.problems] == ["box dropped"]
    assert data.train.incomplete == {1}


POSES = {
    2: ("0 0.5 0.5 0.2 0.2 0.45 0.45 0.55 0.55", "1 0.3 0.6 0.4 0.4 0.2 0.5 0.4 0.75"),
    3: ("0 0.5 0.5 0.2 0.2 0.45 0.45 2 0.55 0.55 1 0 0 0", "1 0.3 0.6 0.4 0.4 0.2 0.5 2 0.4 0.75 2 0.3 0.6 0"),
}


@pytest.mark.parametrize("numbers", POSES)
def test_key_points_are_known_without_kpt_shape_where_all_rows_have_them(tmp_path: Path, numbers: int) -> None:
    data_yaml(tmp_path, "train: images")
    for name, row in zip("ab", POSES[numbers], strict=True):
        add(tmp_path, f"images/{name}.png", row)
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [[40, 20, 60, 30]]
    assert data.train.truth[2].boxes.tolist() == [[10, 20, 50, 40]]
    (problem,) = data.problems
    assert problem.kind == "key points assumed"
    assert "kpt_shape: [0, 2]" in problem.what


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (POSES[2], "kpt_shape: [0, 2]"),
        ((POSES[2][0], "1 0.1 0.1 0.5 0.1 0.3 0.5"), ""),
        (("0 0.5 0.5 0.6 0.5 0.6 0.6 0.5 0.6",), ""),  # the corners of a box
        (("0 0.1 0.1 0.9 0.1 0.9 0.8 0.1 0.9",), ""),
        (("0 0.5 0.45 0.55 0.5 0.55 0.55 0.5 0.6 0.45 0.55",), ""),  # a small pentagon
        (("0 0.5 0.5 0.52 0.5 0.52 0.52 0.5 0.52 0.5 0.5",), ""),  # a small ring that is closed
        (("0 0.5 0.5 0.3 0.4 0.4 0.6 0.6 0.6 0.5 0.5",), ""),  # a larger one
    ],
)
def test_polygons_are_not_read_as_key_points(tmp_path: Path, rows: tuple[str, ...], more: str) -> None:
    data_yaml(tmp_path, f"train: images\n{more}")
    add(tmp_path, "images/a.png", *rows)
    data = load(tmp_path)
    values = [float(word) for word in rows[0].split()[1:]]
    hull = [100 * min(values[::2]), 50 * min(values[1::2]), 100 * max(values[::2]), 50 * max(values[1::2])]
    assert data.train.truth[1].boxes[0].tolist() == pytest.approx(hull)
    assert {problem.kind for problem in data.problems} <= {"polygons assumed"}


FACE = "0 0.5 0.5 0.2 0.4 0.46 0.43 0.54 0.43 0.5 0.5 0.47 0.57 0.53 0.57"
FLAGGED = "0 0.5 0.5 0.2 0.4 0.46 0.43 1 0.54 0.43 1 0.47 0.57 1 0.53 0.57 0"


def several(row: str) -> list[str]:
    """Three rows like this one, whose boxes are a little larger each time."""
    return [row.replace("0.2 0.4", f"0.2 0.4{n}") for n in range(3)]


@pytest.mark.parametrize("odd", ["0 0.5 0.5 0.2 0.4 0.65 0.43 0.54 0.43 0.5 0.5 0.47 0.57 0.53 0.57", FACE])
def test_points_that_may_be_key_points_are_never_read_as_polygons_silently(tmp_path: Path, odd: str) -> None:
    """Landmarks that do not fill their box, or one point outside it."""
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", *several(FACE), odd.replace("0.2 0.4", "0.2 0.43"))
    (problem,) = load(tmp_path).problems
    assert problem.kind == "polygons assumed"
    assert "kpt_shape" in problem.what


@pytest.mark.parametrize("odd", [FLAGGED.replace("0.46 0.43", "0.75 0.43"), "0 0.5 0.5 0.2 0.4" + " 0" * 12])
def test_one_odd_row_does_not_turn_flagged_key_points_into_polygons(tmp_path: Path, odd: str) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", *several(FLAGGED), odd.replace("0.2 0.4", "0.2 0.43"))
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [pytest.approx([40, 15 - n / 4, 60, 35 + n / 4]) for n in range(4)]
    assert [problem.kind for problem in data.problems] == ["key points assumed"]


def test_plain_boxes_beside_key_points_are_boxes(tmp_path: Path) -> None:
    data_yaml(tmp_path, "train: images")
    add(tmp_path, "images/a.png", *several(FLAGGED), "1 0.3 0.5 0.2 0.4")
    data = load(tmp_path)
    assert data.train.truth[1].boxes[3].tolist() == pytest.approx([20, 15, 40, 35])
    assert len(data.train.truth[1]) == 4
    assert [problem.kind for problem in data.problems] == ["key points assumed"]


@pytest.mark.parametrize(("classes", "told"), [("dog\ncat\n", True), ("cat\ndog\n", False), ("cat\n", False)])
@pytest.mark.parametrize("place", ["labels", "."])
def test_a_classes_txt_that_contradicts_data_yaml_is_listed(
    tmp_path: Path, classes: str, told: bool, place: str
) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.2")
    (tmp_path / place / "classes.txt").write_text(classes)
    assert [p.where for p in load(tmp_path).problems if p.kind == "contradicting classes"] == [
        str(tmp_path / place / "classes.txt")
    ] * told


def test_a_row_that_is_written_twice_is_one_object(tmp_path: Path) -> None:
    add(tmp_path, "images/a.png", "0 0.5 0.5 0.2 0.2", "0 0.5 0.5 0.2 0.2", "1 0.5 0.5 0.2 0.2")
    data_yaml(tmp_path, "train: images")
    data = load(tmp_path)
    assert data.train.truth[1].labels.tolist() == [0, 1]
    assert [problem.kind for problem in data.problems] == ["object listed twice"]
