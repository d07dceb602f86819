"""Boxes of detections and of labels are judged by the rules of all label files."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarebox import config
from rarebox.data import datasets
from rarebox.data.listings import QUESTION
from rarebox.data.ranked import as_coco
from rarebox.errors import UserError
from rarebox.external import Ranked, rank
from rarebox.labels.store import Store
from rarebox.project.create import create
from rarebox.types import Source

SETTINGS = config.resolve("laptop", None, {"selection.strategy": "uncertainty"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for n in (1, 2):
        Image.new("RGB", (200, 100), (n, 0, 0)).save(tmp_path / f"p{n}.png")
    return tmp_path


def labels(folder: Path, *annotations: dict[str, Any], complete: bool = True) -> Path:
    """A COCO file of both images. Annotations are on image 1 and have class 1, unless they say otherwise."""
    images = [
        {"id": n, "file_name": f"p{n}.png", "width": 200, "height": 100, "attributes": {"complete": complete}}
        for n in (1, 2)
    ]
    listed = [{"id": n, "image_id": 1, "category_id": 1, **given} for n, given in enumerate(annotations, 1)]
    content = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": listed}
    (folder / "labels.json").write_text(json.dumps(content))
    return folder / "labels.json"


def line(image: int, *boxes: list[float]) -> dict[str, Any]:
    scores = [0.9 - n / 10 for n in range(len(boxes))]
    return {"image": f"p{image}.png", "boxes": boxes, "scores": scores, "labels": ["cat"] * len(boxes)}


def result(image: int, box: list[float]) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": box, "score": 0.9}


def ranked(folder: Path, found: list[Any], said: Path | None, images: Path | None = None, **options: Any) -> Ranked:
    file = folder / "found"
    coco = "bbox" in found[0]
    file.write_text(json.dumps(found) if coco else "".join(json.dumps(one) + "\n" for one in found))
    return rank(file, None, said, images, SETTINGS, 9, **options)


def boxes(found: Ranked) -> list[tuple[int, list[float]]]:
    return sorted((query.image_id, query.box.tolist()) for query in found.queries if query.box is not None)


def test_coco_results_written_as_corners_are_refused_like_labels(folder: Path) -> None:
    corners = [[100.0, 50.0, 190.0, 90.0], [50.0, 60.0, 180.0, 95.0]]
    with pytest.raises(UserError, match="seem to be x1, y1, x2, y2"):
        ranked(folder, [result(n, box) for n, box in enumerate(corners, 1)], None, labels(folder))
    with pytest.raises(UserError, match="seem to be x1, y1, x2, y2"):
        datasets.load(labels(folder, *({"bbox": box} for box in corners)))


def test_detections_beyond_the_image_are_clipped_and_counted(folder: Path) -> None:
    found = ranked(folder, [line(1, [150, 50, 230, 90], [10, 10, 30, 30])], None, labels(folder))
    assert boxes(found) == [(1, [10, 10, 30, 30]), (1, [150, 50, 200, 90])]
    assert "1 boxes extend beyond their images and are clipped" in found.notes


def test_detections_in_fractions_beside_others_in_pixels_are_skipped_and_counted(folder: Path) -> None:
    shares = line(1, [0.1, 0.1, 0.5, 0.5], [0.5, 0.5, 0.9, 0.9])
    found = ranked(folder, [shares, line(2, [10, 10, 50, 50])], None, labels(folder))
    assert boxes(found) == [(2, [10, 10, 50, 50])]
    assert any(note.startswith("2 boxes lie within the first pixel") for note in found.notes)


FAULTS = [{"bbox": [0.5, 0.5, 0.2, 0.2]}, {"bbox": [500, 50, 40, 40]}, {"bbox": [100, 50, 0, 40]}]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("complete", [False, True])
def test_an_image_whose_label_cannot_be_used_is_not_fully_labelled(
    folder: Path, fault: dict[str, Any], complete: bool
) -> None:
    said = labels(folder, fault, {"image_id": 2, "bbox": [10, 10, 20, 20]}, complete=not complete)
    found = ranked(folder, [line(1, [50, 50, 90, 90]), line(2, [50, 50, 90, 90])], said, labels_complete=complete)
    assert (1, [50, 50, 90, 90]) in boxes(found)
    assert any(note.startswith("1 objects of the labels cannot be used") for note in found.notes)
    assert datasets.load(said).train.incomplete >= {1}


@pytest.mark.parametrize("fault", FAULTS)
def test_labels_of_which_no_object_can_be_used_are_refused(folder: Path, fault: dict[str, Any]) -> None:
    said = labels(folder, fault)
    for read in (lambda: ranked(folder, [line(1, [50, 50, 90, 90])], said), lambda: datasets.load(said)):
        with pytest.raises(UserError, match="none of its objects can be used"):
            read()


def test_an_image_with_a_crowd_is_not_fully_labelled(folder: Path) -> None:
    said = labels(folder, {"bbox": [10, 10, 20, 20], "iscrowd": 1}, {"image_id": 2, "bbox": [10, 10, 20, 20]})
    found = ranked(folder, [line(1, [50, 50, 90, 90]), line(2, [50, 50, 90, 90])], said)
    assert boxes(found) == [(1, [50, 50, 90, 90])]


def test_a_box_that_a_person_rejected_is_not_an_object(folder: Path) -> None:
    rejected = {"bbox": [50, 50, 40, 40], "attributes": {"source": "rejected"}}
    said = labels(folder, rejected, {"bbox": [10, 10, 20, 20]})
    assert datasets.load(said).train.truth[1].boxes.tolist() == [[10, 10, 30, 30]]
    assert datasets.load(said).train.incomplete == frozenset()


def test_images_with_matching_names_are_not_reported(folder: Path) -> None:
    said = labels(folder, {"image_id": 2, "bbox": [10, 10, 20, 20]}, complete=False)
    found = ranked(folder, [line(1, [50, 50, 90, 90])], said)
    assert "0 of 1 labelled images of labels.json have detections in found" in found.notes


def twice(folder: Path, said: Path, **second: Any) -> Path:
    """Name the photo of image 1 under the number 2 too."""
    content = json.loads(said.read_text())
    content["images"][1] |= {"file_name": "p1.png", **second}
    said.write_text(json.dumps(content))
    return said


def test_a_photo_under_two_numbers_has_the_boxes_of_both(folder: Path) -> None:
    first, second, third = [10.0, 10.0, 40.0, 40.0], [100.0, 50.0, 40.0, 40.0], [60.0, 20.0, 30.0, 30.0]
    said = twice(folder, labels(folder, {"bbox": first}, {"bbox": second, "image_id": 2}, complete=False))
    corners = [[x, y, x + width, y + height] for x, y, width, height in (first, second, third)]
    assert boxes(ranked(folder, [line(1, *corners)], said)) == [(1, corners[2])]
    results = [result(1, first), result(2, second), result(2, third)]
    assert boxes(ranked(folder, results, said)) == [(1, corners[2])]
    assert boxes(ranked(folder, results, None, said)) == [(1, corner) for corner in sorted(corners)]


def test_a_photo_under_two_numbers_is_complete_only_if_both_entries_say_so(folder: Path) -> None:
    found = [line(1, [60, 20, 90, 50])]
    whole = twice(folder, labels(folder, {"bbox": [10, 10, 40, 40]}))
    assert not boxes(ranked(folder, found, whole))
    part = twice(folder, labels(folder, {"bbox": [10, 10, 40, 40]}), attributes={"complete": False})
    assert boxes(ranked(folder, found, part)) == [(1, [60, 20, 90, 50])]


def test_links_to_a_photo_are_one_photo(folder: Path) -> None:
    (folder / "p2.png").unlink()
    (folder / "p2.png").symlink_to(folder / "p1.png")
    said = labels(folder, {"bbox": [10, 10, 40, 40]}, {"bbox": [100, 50, 40, 40], "image_id": 2})
    train = datasets.load(said).train
    assert [len(truth) for truth in train.truth.values()] == [2]


def test_boxes_of_another_entry_in_another_size_are_reported(folder: Path) -> None:
    said = labels(folder, {"bbox": [10, 10, 40, 40]}, {"bbox": [60, 20, 30, 30], "image_id": 2})
    found = ranked(folder, [line(1, [60, 20, 90, 50])], twice(folder, said, width=100, height=50))
    assert boxes(found) == [(1, [60, 20, 90, 50])]
    assert any("listed in several sizes" in note for note in found.notes)


def test_an_object_that_is_written_twice_is_one_object(folder: Path) -> None:
    same = {"bbox": [10, 10, 40, 40]}
    data = datasets.load(labels(folder, same, same, {"bbox": [10, 10, 40, 41]}))
    assert data.train.truth[1].boxes.tolist() == [[10, 10, 50, 50], [10, 10, 50, 51]]
    assert data.train.incomplete == frozenset()
    (told,) = (problem for problem in data.problems if problem.kind == "object listed twice")
    assert told.where == str(folder / "p1.png")


def test_of_one_object_with_several_flags_the_surest_counts(folder: Path) -> None:
    box = {"bbox": [10, 10, 40, 40]}
    flags = [{"iscrowd": 1}, {"attributes": {"source": "pseudo"}}, {"difficult": 1}, {}, {"iscrowd": 1}]
    train = datasets.load(labels(folder, *(box | flag for flag in flags))).train
    assert train.truth[1].difficult.tolist() == train.unsure[1].tolist() == [False]


@pytest.mark.parametrize(
    "again",
    [
        [10.0000001, 10, 40, 40],
        [10, 10, 40, 40.0001],
        pytest.param([10, 10, 40, 40], id="equal"),
    ],
)
def test_boxes_that_differ_by_rounding_are_one_object(folder: Path, again: list[float]) -> None:
    turned = {"bbox": [10, 10, 40, 40], "attributes": {"rotation": 90}}
    data = datasets.load(labels(folder, {"bbox": [10, 10, 40, 40]}, {"bbox": again}, turned))
    assert len(data.train.truth[1]) == 1
    assert [problem.kind for problem in data.problems] == ["image without annotation", "object listed twice"]


def test_boxes_that_are_equal_inside_the_image_are_one_object(folder: Path) -> None:
    data = datasets.load(labels(folder, {"bbox": [150, 10, 90, 30]}, {"bbox": [150, 10, 50, 30]}))
    assert data.train.truth[1].boxes.tolist() == [[150, 10, 200, 40]]
    assert "object listed twice" in [problem.kind for problem in data.problems]


def test_a_question_does_not_hide_a_rejection(folder: Path) -> None:
    same = [{"bbox": [10, 10, 40, 40], "attributes": {"source": source}} for source in (QUESTION, Source.REJECTED)]
    for flags in (same, same[::-1]):
        train = datasets.load(labels(folder, *flags, {"bbox": [100, 50, 40, 40]})).train
        assert train.rejected[1].tolist() == [[10, 10, 50, 50]]


def test_the_questions_of_a_ranked_list_are_no_labels(folder: Path) -> None:
    asked = ranked(folder, [line(1, [50, 50, 90, 90], [10, 10, 30, 30])], None, folder)
    said = folder / "r.json"
    said.write_text(as_coco(asked.images, asked.classes, asked.queries))
    train = datasets.load(said).train
    assert [len(truth) for truth in train.truth.values()] == [0]
    assert train.unlabelled == train.incomplete == {1}
    again = ranked(folder, [line(1, [50, 50, 90, 90])], said)
    assert boxes(again) == [(1, [50, 50, 90, 90])]
    assert any(note.startswith("r.json holds questions that nobody has answered") for note in again.notes)
    create(folder / "project", folder, labels=said)
    with Store(folder / "project" / "labels.sqlite") as store:
        assert not store.labels()


@pytest.mark.parametrize("source", [*Source, QUESTION])
def test_no_source_that_rarebox_writes_makes_a_person_of_a_model(folder: Path, source: str) -> None:
    said = labels(folder, {"bbox": [10, 10, 40, 40], "attributes": {"source": source}}, {"bbox": [90, 50, 40, 40]})
    create(folder / "project", folder, labels=said)
    with Store(folder / "project" / "labels.sqlite") as store:
        imported = store.labels()[1].boxes.tolist()
    assert imported == [[10, 10, 50, 50]] * (source in (Source.HUMAN, Source.DIFFICULT)) + [[90, 50, 130, 90]]


@pytest.mark.parametrize("vectors", [False, True])
def test_numbers_that_one_file_leaves_open_are_not_taken_from_the_other(folder: Path, vectors: bool) -> None:
    said = labels(folder, {"bbox": [10, 10, 40, 40]})
    content = json.loads(said.read_text())
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    said.write_text(json.dumps(content))
    above = [{"id": n, "name": name, "supercategory": "animals"} for n, name in ((1, "cat"), (2, "dog"))]
    content |= {"categories": [{"id": 0, "name": "animals", "supercategory": "none"}, *above], "annotations": []}
    (folder / "images.json").write_text(json.dumps(content))
    found = {**line(1, [60, 20, 90, 50]), "labels": None, "class_probs": [[0.1, 0.8]]}
    found = found if vectors else {**line(1, [60, 20, 90, 50]), "labels": [1]}
    with pytest.raises(UserError, match="class"):
        ranked(folder, [found], said, folder / "images.json")


def test_a_category_without_a_name_keeps_its_place(folder: Path) -> None:
    said = labels(folder, {"bbox": [10, 10, 40, 40]})
    content = json.loads(said.read_text())
    content["categories"] = [{"id": 1, "name": "cat"}, {"id": 2}, {"id": 3, "name": "dog"}]
    said.write_text(json.dumps(content))
    assert datasets.numbers_of(said).classes == {0: "cat", 2: "dog"}
