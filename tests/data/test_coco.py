"""COCO label files: what is read, what is dropped, and that every drop is listed."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarebox.data.datasets import load
from rarebox.data.listings import Dataset, Problem
from rarebox.errors import UserError


def picture(path: Path, size: tuple[int, int] = (100, 50)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def image(id: Any, name: str, **extra: Any) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": 100, "height": 50, **extra}


def box(id: Any, image_id: Any, bbox: Any = (10, 20, 30, 10), category_id: Any = 1, **extra: Any) -> dict[str, Any]:
    return {"id": id, "image_id": image_id, "category_id": category_id, "bbox": bbox, **extra}


def write(path: Path, images: list[Any], annotations: list[Any], categories: list[Any] | None = None) -> None:
    """A COCO file, and all the images in it."""
    categories = categories or [{"id": 1, "name": "cat"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    for entry in images:
        picture(path.parent / entry["file_name"])


def only(dataset: Dataset, kind: str) -> Problem:
    """The one problem of the data set, which is of this kind."""
    assert [p.kind for p in dataset.problems] == [kind]
    return dataset.problems[0]


def test_a_pair_is_read_with_ids_made_unique(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png"), image(2, "b.png")], [box(1, 1), box(2, 2)])
    write(tmp_path / "test.json", [image(1, "c.png"), image(5, "d.png")], [box(1, 1, [0, 0, 100, 50]), box(2, 5)])
    data = load(tmp_path)
    assert (data.name, data.root, data.classes, data.problems) == (tmp_path.name, tmp_path, ("cat",), ())
    assert data.test is not None
    assert [i.id for i in data.train.images] == [1, 2]
    assert [i.id for i in data.test.images] == [3, 7]
    assert data.train.truth[1].boxes.tolist() == [[10, 20, 40, 30]]
    assert data.test.truth[3].boxes.tolist() == [[0, 0, 100, 50]]
    record = data.train.images[0]
    assert (record.path, record.width, record.height) == (str(tmp_path / "a.png"), 100, 50)


def test_ids_that_do_not_clash_stay(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(7, "a.png")], [box(1, 7)])
    write(tmp_path / "test.json", [image(3, "b.png")], [box(1, 3)])
    data = load(tmp_path)
    assert data.test is not None
    assert [data.train.images[0].id, data.test.images[0].id] == [7, 3]


def test_ids_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image("x", "a.png"), image("y", "b.png")], [box(1, "y")])
    data = load(tmp_path)
    assert [i.id for i in data.train.images] == [1, 2]
    assert [len(data.train.truth[id]) for id in (1, 2)] == [0, 1]


@pytest.mark.parametrize("test_name", ["test", "valid", "val"])
@pytest.mark.parametrize("layout", ["{}.json", "{}/_annotations.coco.json"])
def test_names_of_the_test_split(tmp_path: Path, layout: str, test_name: str) -> None:
    write(tmp_path / layout.format("train"), [image(0, "a.png")], [box(1, 0)])
    write(tmp_path / layout.format(test_name), [image(0, "b.png")], [box(1, 0)])
    data = load(tmp_path)
    assert data.test is not None
    assert len(data.test.images) == 1


def test_a_third_split_is_not_used_and_that_is_listed(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        write(tmp_path / f"{split}.json", [image(1, f"{split}.png")], [box(1, 1)])
    data = load(tmp_path)
    assert data.test is not None
    assert Path(data.test.images[0].path).name == "test.png"
    problem = only(data, "split not used")
    assert problem.where == str(tmp_path / "valid.json")
    assert "To use its labels, name the file instead of the folder" in problem.what
    assert [Path(image.path).name for image in load(tmp_path / "valid.json").train.images] == ["valid.png"]


def test_a_single_file_has_no_test_split(tmp_path: Path) -> None:
    write(tmp_path / "labels.json", [image(1, "a.png")], [box(1, 1)])
    (tmp_path / "package.json").write_text("{}")
    for path in (tmp_path, tmp_path / "labels.json"):
        data = load(path)
        assert data.test is None
        assert len(data.train.images) == 1


@pytest.mark.parametrize("place", ["", "images", "train", "images/train"])
def test_where_images_are_looked_for(tmp_path: Path, place: str) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1)])
    (tmp_path / "a.png").unlink()
    picture(tmp_path / place / "a.png")
    assert load(tmp_path).train.images[0].path == str(tmp_path / place / "a.png")


def test_classes_are_in_the_order_of_their_ids_and_a_placeholder_is_ignored(tmp_path: Path) -> None:
    categories = [
        {"id": 9, "name": "dog", "supercategory": "animals"},
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 4, "name": "cat", "supercategory": "animals"},
    ]
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, category_id=9)], categories)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.train.truth[1].labels.tolist() == [1]
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, category_id=0)], categories)
    assert load(tmp_path).classes == ("animals", "cat", "dog")


def test_a_class_that_only_test_has_comes_last(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1)], [{"id": 1, "name": "dog"}])
    names = [{"id": 1, "name": "ant"}, {"id": 2, "name": "dog"}]
    write(tmp_path / "test.json", [image(1, "b.png")], [box(1, 1), box(2, 1, category_id=2)], names)
    data = load(tmp_path)
    assert data.classes == ("dog", "ant")
    assert data.test is not None
    assert data.test.truth[2].labels.tolist() == [1, 0]
    assert "'ant'" in only(data, "class only in test").what


@pytest.mark.parametrize(
    "flag",
    [
        {"iscrowd": 1},
        {"difficult": 1},
        {"attributes": {"difficult": True}},
        {"extra": {"difficult": "1"}},
        {"IsGroupOf": 1},
        {"attributes": {"is_group_of": True}},
    ],
)
def test_crowds_and_the_flag_are_difficult(tmp_path: Path, flag: dict[str, Any]) -> None:
    plain = box(2, 1, [0, 0, 5, 5], iscrowd=0, difficult=0, attributes={"difficult": False}, extra={"difficult": "0"})
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, **flag), plain])
    assert load(tmp_path).train.truth[1].difficult.tolist() == [True, False]


def test_an_image_without_a_file_name_has_that_of_its_address(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    entry = {"id": 1, "width": 100, "height": 50, "coco_url": "http://images.example.org/train2017/a.png"}
    content = {"images": [entry], "annotations": [box(1, 1)], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    assert load(tmp_path / "lvis.json").train.images[0].path == str(tmp_path / "a.png")


def test_detections_and_tasks_are_refused_as_labels_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "found.json").write_text(json.dumps([box(1, 1, score=0.5)]))
    with pytest.raises(UserError, match=r"detections, which are no labels\. Give them to --predictions"):
        load(tmp_path / "found.json")
    (tmp_path / "tasks.json").write_text('[{"data": {"image": "a.png"}, "annotations": [{"completed_by": 1}]}]')
    with pytest.raises(UserError, match=r"format of Label Studio.*rarebox import PROJECT FILE"):
        load(tmp_path / "tasks.json")


def test_boxes_with_scores_are_no_labels(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, score=0.31), box(2, 1, [0, 0, 5, 5], score=1)])
    with pytest.raises(UserError, match=r"has a score, as in the output of a detector.* to --predictions"):
        load(tmp_path)
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, score=0.31), box(2, 1, [0, 0, 5, 5])])
    data = load(tmp_path)
    assert (data.train.truth[1].boxes.tolist(), data.train.incomplete) == ([[0, 0, 5, 5]], {1})
    assert "score" in only(data, "box dropped").what


@pytest.mark.parametrize("score", [{"score": 1.0}, {"score": None}, {"score": 0.5, "attributes": {"source": "human"}}])
def test_a_score_that_no_detector_gave_does_no_harm(tmp_path: Path, score: dict[str, Any]) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1, **score)])
    assert len(load(tmp_path).train.truth[1].boxes) == 1


def test_an_image_on_which_people_looked_for_some_classes_only_is_partially_labelled(tmp_path: Path) -> None:
    checked = [{"neg_category_ids": [1]}, {"neg_category_ids": []}, {"not_exhaustive_category_ids": [1]}]
    whole = [{"not_exhaustive_category_ids": []}, {"neg_category_ids": [], "attributes": {"complete": True}}]
    images = [image(id, "a.png") | {"file_name": f"{id}.png"} | more for id, more in enumerate([*checked, *whole], 1)]
    for these, incomplete in ((images[:4], {1, 2, 3}), (images, {1, 2, 3, 4})):  # one says that it is complete
        write(tmp_path / "train.json", these, [box(entry["id"], entry["id"]) for entry in these])
        data = load(tmp_path)
        assert data.train.incomplete == incomplete
        (problem,) = (problem for problem in data.problems if problem.kind == "classes not checked")
        assert problem.what.startswith("in 3 images")


def test_boxes_are_clipped_or_dropped_and_listed(tmp_path: Path) -> None:
    bboxes = {
        1: [-5, 10, 20, 10],  # clipped
        2: [10, 10, 90.5, 10],  # half a pixel too wide: clipped silently
        3: [10, 10, 0, 10],
        4: [10, 10, 10, -3],
        5: [200, 10, 10, 10],
        6: [float("nan"), 10, 10, 10],
        7: [10, 10, float("inf"), 10],
        8: [1e300, 10, 10, 10],
        9: [10, 10, 10],
        10: None,
        11: ["a", 1, 2, 3],
        12: "1234",
    }
    write(tmp_path / "train.json", [image(1, "a.png")], [box(id, 1, bbox) for id, bbox in bboxes.items()])
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [[0, 10, 15, 20], [10, 10, 100, 20]]
    clipped = [p.where for p in data.problems if p.kind == "box clipped"]
    dropped = [p.where for p in data.problems if p.kind == "box dropped"]
    assert clipped == [f"{tmp_path / 'train.json'}: annotation 1"]
    assert sorted(dropped) == sorted(f"{tmp_path / 'train.json'}: annotation {id}" for id in range(3, 13))
    assert len(data.problems) == 11


def test_orphaned_entries_are_listed(tmp_path: Path) -> None:
    annotations = [box(1, 1), box(2, 99), box(3, 1, category_id=8), "nonsense"]
    write(tmp_path / "train.json", [image(1, "a.png"), image(2, "b.png")], annotations)
    data = load(tmp_path)
    kinds = ["unknown category", "box dropped", "image without annotation", "annotation without image"]
    assert [p.kind for p in data.problems] == kinds
    assert [len(data.train.truth[i.id]) for i in data.train.images] == [1, 0]
    assert "image_id 99" in data.problems[3].what
    assert "category_id 8" in data.problems[0].what
    assert "b.png" in data.problems[2].where


def test_two_images_with_one_id_are_skipped_because_their_boxes_are_ambiguous(tmp_path: Path) -> None:
    images = [image(1, "a.png"), image(1, "b.png"), image(2, "c.png")]
    write(tmp_path / "train.json", images, [box(1, 1), box(2, 2)])
    data = load(tmp_path)
    assert [Path(i.path).name for i in data.train.images] == ["c.png"]
    assert "a.png, b.png" in only(data, "duplicate id").what


def test_the_same_image_listed_again_is_used_once(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png"), image(1, "a.png")], [box(1, 1)])
    data = load(tmp_path)
    assert len(data.train.images) == 1
    assert only(data, "duplicate id")


def test_duplicate_annotation_ids(tmp_path: Path) -> None:
    annotations = [box(1, 1), box(1, 1), box(1, 1, [0, 0, 5, 5])]
    write(tmp_path / "train.json", [image(1, "a.png")], annotations)
    data = load(tmp_path)
    assert data.train.truth[1].boxes.tolist() == [[10, 20, 40, 30], [0, 0, 5, 5]]
    assert [p.kind for p in data.problems] == ["duplicate id", "duplicate id"]


def test_a_file_listed_under_two_ids_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1)])
    write(tmp_path / "test.json", [image(1, "a.png")], [box(1, 1)])
    assert only(load(tmp_path), "image listed twice").where == str(tmp_path / "a.png")


@pytest.mark.parametrize("again", ["a.png", "./a.png", "b/../a.png"])
def test_a_file_listed_under_two_ids_of_one_split_is_one_image(tmp_path: Path, again: str) -> None:
    (tmp_path / "b").mkdir()
    twice = [image(1, "a.png"), image(2, again)]
    write(tmp_path / "train.json", twice, [box(1, 1), box(2, 2), box(3, 2, [0, 0, 5, 5])])
    data = load(tmp_path)
    assert [truth.boxes.tolist() for truth in data.train.truth.values()] == [[[10, 20, 40, 30], [0, 0, 5, 5]]]
    told = {problem.kind: problem.what for problem in data.problems}
    assert told["image listed twice"].endswith("joined.")
    assert told.keys() == {"image listed twice", "object listed twice"}
    assert data.train.incomplete == frozenset()


def test_missing_and_unreadable_images_are_left_out_and_the_ids_stay(tmp_path: Path) -> None:
    names = ["gone.png", "bad.png", "cut.png", "good.png"]
    write(
        tmp_path / "train.json", [image(None, n) | {"id": n} for n in names], [box(i, n) for i, n in enumerate(names)]
    )
    (tmp_path / "gone.png").unlink()
    (tmp_path / "bad.png").write_text("no picture")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:-30])
    data = load(tmp_path)
    found = [(p.kind, Path(p.where).name) for p in data.problems]
    assert found == [("missing image file", "gone.png"), ("unreadable image", "bad.png")]
    assert [i.id for i in data.train.images] == [3, 4]
    assert set(data.train.truth) == {3, 4}
    checked = load(tmp_path, check_pixels=True)
    assert [(p.kind, Path(p.where).name) for p in checked.problems] == [*found, ("unreadable image", "cut.png")]
    assert [i.id for i in checked.train.images] == [4]


def test_the_file_s_own_size_counts(tmp_path: Path) -> None:
    write(
        tmp_path / "train.json",
        [image(1, "a.png", width=50, height=25), image(2, "b.png", width=None)],
        [box(1, 1, [5, 10, 15, 5]), box(2, 2)],
    )
    data = load(tmp_path)
    assert [(i.width, i.height) for i in data.train.images] == [(100, 50), (100, 50)]
    assert [data.train.truth[i].boxes.tolist() for i in (1, 2)] == [[[10, 20, 40, 30]]] * 2
    assert "50 x 25" in only(data, "boxes scaled").what


def test_an_image_rotated_by_exif_has_its_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sizes = {"upright": (50, 100), "stored": (100, 50)}
    entries = [image(i, f"{n}.jpg", width=w, height=h) for i, (n, (w, h)) in enumerate(sizes.items())]
    write(tmp_path / "train.json", entries, [box(i, i, [10, 70, 20, 20]) for i in range(2)])
    for name in sizes:
        Image.new("RGB", (100, 50)).save(tmp_path / f"{name}.jpg", exif=exif)
    data = load(tmp_path)
    assert [(i.width, i.height) for i in data.train.images] == [(50, 100), (50, 100)]
    assert data.train.truth[0].boxes.tolist() == [[10, 70, 30, 90]]
    assert Path(only(data, "size in labels is wrong").where).name == "stored.jpg"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [],\n "annotations": [}', r"train\.json, line 2, column 18: this is not valid JSON .*Repair"),
        ("[]", r"train\.json: a COCO file is an object"),
        ('{"images": [], "categories": []}', r"train\.json: the list 'annotations' is missing"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', r"train\.json lists no train"),
        ("\xff", r"train\.json: this is not UTF-8 text"),
        ("[" * 100_000, r"train\.json cannot be read"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "train.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=message):
        load(tmp_path)


def test_labels_without_any_class(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [], [{"id": 1, "name": " "}])
    with pytest.raises(UserError, match=r"train\.json has no classes\. Label at least one object"):
        load(tmp_path)


def test_when_no_image_is_left_the_error_names_one(tmp_path: Path) -> None:
    write(tmp_path / "train.json", [image(1, "a.png"), image(2, "b.png")], [box(1, 1), box(2, 2)])
    (tmp_path / "a.png").unlink()
    (tmp_path / "b.png").write_text("no picture")
    with pytest.raises(UserError, match=r"train\.json: none of its 2 images can be read, for example .*b\.png"):
        load(tmp_path)


REAL = Path(os.environ.get("RAREBOX_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.parametrize("name", ["aquarium", "bccd"])
def test_real_data(name: str) -> None:
    """Everything that the files list is read, unchanged except for float32 rounding."""
    if not (REAL / name).is_dir():
        pytest.skip(f"there is no {REAL / name}. Set RAREBOX_DATA")
    data = load(REAL / name)
    assert {p.kind for p in data.problems} <= {"image without annotation"}
    for split, file in ((data.train, "train.json"), (data.test, "test.json")):
        assert split is not None
        listed = json.loads((REAL / name / file).read_text())
        assert len(split.images) == len(listed["images"])
        boxes = [row for i in split.images for row in split.truth[i.id].boxes.tolist()]
        expected = [
            [a["bbox"][0], a["bbox"][1], a["bbox"][0] + a["bbox"][2], a["bbox"][1] + a["bbox"][3]]
            for a in listed["annotations"]
        ]
        assert sorted(boxes) == [pytest.approx(row, abs=0.02) for row in sorted(expected)]
        names = {c["id"]: c["name"] for c in listed["categories"]}
        found = [data.classes[label] for i in split.images for label in split.truth[i.id].labels]
        assert sorted(found) == sorted(names[a["category_id"]] for a in listed["annotations"])


@pytest.mark.parametrize("differ", [False, True])
def test_different_files_that_match_one_coco_name_are_listed(tmp_path: Path, differ: bool) -> None:
    write(tmp_path / "train.json", [image(1, "a.png")], [box(1, 1)])
    (tmp_path / "train").mkdir()
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "train" / "a.png").write_bytes(content + b"x" * differ)
    assert [p.kind for p in load(tmp_path).problems] == ["several image files"] * differ
