"""Silently wrong labels, from any tool, are read correctly, or the lost objects are listed and not trained on.

Every photo here has 160 x 120 pixels and two objects, a cat at 40, 30 to 120, 90 and a dog at 10, 10 to 30, 25.
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox import config, external
from rarebox.cli.doctor import examine
from rarebox.cli.main import app
from rarebox.data.assembly import usable
from rarebox.data.classes import Classes
from rarebox.data.datasets import load
from rarebox.data.detections import open_detections
from rarebox.data.export import Annotations, export
from rarebox.data.listings import NOT_USED, Dataset, Problem
from rarebox.data.review import Batch, Region, Returned
from rarebox.errors import UserError
from rarebox.labels.targets import remaining
from rarebox.loop import simulate
from rarebox.loop.cycle import training_targets
from rarebox.pool.ranking import still_open
from rarebox.project.collect import collect
from rarebox.project.create import create
from rarebox.project.exchange.importing import bring_in
from rarebox.project.project import Project
from rarebox.project.run import open_project
from rarebox.types import ImageRecord, Source, Verdict

SIZE = (160, 120)
CAT, DOG = [40.0, 30.0, 120.0, 90.0], [10.0, 10.0, 30.0, 25.0]
CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def photo(path: Path, size: tuple[int, int] = SIZE, orientation: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size, "grey").save(path, exif=exif)


def entry(id: Any, name: str, **more: Any) -> dict[str, Any]:
    return {"id": id, "file_name": name, "width": SIZE[0], "height": SIZE[1], **more}


def annotation(id: int, image_id: Any, box: Sequence[float], category: Any = 1, **more: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {"id": id, "image_id": image_id, "category_id": category, "bbox": [x1, y1, x2 - x1, y2 - y1], **more}


def coco(
    file: Path, images: list[Any], annotations: list[Any], categories: list[Any] = CATEGORIES, encoding: str = "utf-8"
) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"images": images, "annotations": annotations, "categories": categories}
    file.write_text(json.dumps(content), encoding=encoding)
    return file


def voc(folder: Path, name: str, *objects: str, filename: str = "", photo_as: str = "", size: str = "") -> None:
    """A label file and, beside it, its photo."""
    xml = folder / "Annotations" / f"{name}.xml"
    xml.parent.mkdir(parents=True, exist_ok=True)
    told = f"<filename>{filename}</filename>" if filename else ""
    xml.write_text(f"<annotation>{told}{size}{''.join(objects)}</annotation>")
    photo(folder / "JPEGImages" / (photo_as or f"{name}.jpg"))


def item(name: str, box: Sequence[float | str], **more: Any) -> str:
    """An object of a VOC file, whose pixels count from 1."""
    x1, y1, x2, y2 = (
        edge if isinstance(edge, str) else edge + add for edge, add in zip(box, (1, 1, 0, 0), strict=True)
    )
    flags = "".join(f"<{flag}>{value}</{flag}>" for flag, value in more.items())
    edges = f"<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
    return f"<object><name>{name}</name>{flags}<bndbox>{edges}</bndbox></object>"


def yolo(
    folder: Path,
    *lines: str,
    more: str = "",
    names: str = "[cat, dog]",
    labels: str = "labels/a.txt",
    encoding: str = "utf-8",
) -> Path:
    photo(folder / "images" / "a.jpg")
    (folder / "data.yaml").write_text(f"train: images\nnames: {names}\n{more}", encoding=encoding)
    (folder / labels).parent.mkdir(parents=True, exist_ok=True)
    (folder / labels).write_text("\n".join(lines), encoding=encoding)
    return folder


def share(box: Sequence[float]) -> str:
    """A box as the four numbers of YOLO."""
    x1, y1, x2, y2 = box[0] / SIZE[0], box[1] / SIZE[1], box[2] / SIZE[0], box[3] / SIZE[1]
    return f"{(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}"


def boxes_of(data: Dataset) -> dict[str, list[tuple[str, list[float]]]]:
    """Photo -> its objects, rounded to half a pixel."""
    return {
        Path(image.path).name: [
            (data.classes[label], (np.round(box * 2) / 2).tolist())
            for box, label in zip(data.train.truth[image.id].boxes, data.train.truth[image.id].labels, strict=True)
        ]
        for image in data.train.images
    }


def kinds(problems: Sequence[Problem]) -> list[str]:
    return [problem.kind for problem in problems]


class Begun:
    """A project that has imported labels: the labels of each photo, by its name."""

    def __init__(self, root: Path, photos: Path, labels: Path, classes: Sequence[str] = (), **options: Any) -> None:
        self.problems = create(root, photos, classes, labels, **options)
        now = Project(root)
        self.project, self.classes = now, now.store.classes()
        said = now.store.labels()
        self.said = {Path(record.path).name: said[i] for i, record in now.store.images().items() if i in said}

    def boxes(self, name: str) -> list[tuple[str, list[float]]]:
        one = self.said[name]
        return [(self.classes[label], box.tolist()) for box, label in zip(one.boxes, one.labels, strict=True)]


# ------------------------------------------------------------------------------- lost objects (completeness)


def lost_in_coco(folder: Path) -> Path:
    photo(folder / "a.jpg")
    no_box = {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[10, 10, 30, 10, 30, 25]]}
    return coco(folder / "labels.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT), no_box])


def unknown_category_in_coco(folder: Path) -> Path:
    photo(folder / "a.jpg")
    return coco(folder / "labels.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT), annotation(2, 1, DOG, 9)])


def no_area_in_coco(folder: Path) -> Path:
    photo(folder / "a.jpg")
    return coco(folder / "labels.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT), annotation(2, 1, [9, 9, 9, 9])])


def crowd_in_coco(folder: Path) -> Path:
    photo(folder / "a.jpg")
    crowd = annotation(2, 1, DOG, 2, iscrowd=1)
    return coco(folder / "labels.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT), crowd])


def lost_in_voc(folder: Path) -> Path:
    voc(folder, "a", item("cat", CAT), item("dog", ["10,5", "11", "30", "25"]))
    return folder


def lost_in_yolo(folder: Path) -> Path:
    return yolo(folder, f"0 {share(CAT)}", f"7 {share(DOG)}")


LOSSES = [lost_in_coco, unknown_category_in_coco, no_area_in_coco, lost_in_voc, lost_in_yolo]


@pytest.mark.parametrize("make", [*LOSSES, crowd_in_coco])
def test_an_image_that_lost_an_object_is_not_complete(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    labels = make(tmp_path / "set")
    begun = Begun(tmp_path / "p", tmp_path / "set", labels)
    assert begun.boxes("a.jpg") == [("cat", CAT)]
    assert not begun.said["a.jpg"].complete
    assert {*kinds(load(labels).problems)} <= {*kinds(begun.problems)}
    assert json.loads((tmp_path / "p" / "problems.json").read_text()) == [vars(p) for p in begun.problems]


def test_nobody_is_asked_about_a_crowd(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "p", tmp_path / "set", crowd_in_coco(tmp_path / "set"))
    assert begun.said["a.jpg"].skipped.tolist() == [DOG]


@pytest.mark.parametrize("make", LOSSES)
def test_a_simulation_skips_an_image_that_lost_an_object(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    labels = make(tmp_path / "set")
    with pytest.raises(UserError, match="no training image has an object that can be used"):
        usable(load(labels))
    with pytest.raises(UserError, match="no training image has an object that can be used"):
        simulate.simulate(tmp_path / "run", config.resolve("laptop", None, {"data": str(labels)}))


def test_images_skipped_by_a_simulation_are_listed_and_the_rest_is_kept(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    labels = [annotation(1, 1, CAT), annotation(2, 1, DOG, 9), annotation(3, 2, CAT)]
    file = coco(tmp_path / "train.json", [entry(1, "a.jpg"), entry(2, "b.jpg")], labels)
    data = usable(load(file))
    assert boxes_of(data) == {"b.jpg": [("cat", CAT)]}
    assert [Path(p.where).name for p in data.problems if p.kind == NOT_USED] == ["a.jpg"]


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("format", ["coco", "voc"])
def test_a_difficult_object_stays_one_from_import_to_training_and_export(
    tmp_path: Path, format: str, partial: bool
) -> None:
    voc(tmp_path / "set", "a", item("cat", CAT), item("dog", DOG, difficult=1))
    begun = Begun(tmp_path / "p", tmp_path / "set", tmp_path / "set", partial=partial)
    now, said = begun.project, begun.said["a.jpg"]
    assert (begun.boxes("a.jpg"), said.complete) == ([("cat", CAT)], not partial)
    assert not still_open(said.difficult, said, 0.5).any()  # nobody is asked about it
    run = open_project(now.folder, now.settings, now.store, lambda *_: None)
    (targets,) = training_targets(run, 1, None).values()
    assert targets.source.tolist() == ["human", "difficult"]
    assert targets.class_weight.tolist() == targets.box_weight.tolist() == [1, 0]
    assert (targets.boxes[1].tolist(), targets.background.any()) == (DOG, False)
    assert not remaining(said.difficult, said, now.settings.pseudo).any()  # no pseudo label there either
    images, classes, labels = collect(now.folder.root)
    export(tmp_path / "out", format, classes, images, labels)
    again = load(tmp_path / "out").train
    assert (again.truth[1].boxes.tolist(), again.truth[1].difficult.tolist()) == ([CAT, DOG], [False, True])
    assert bool(again.incomplete) == partial
    for tool in ("cvat", "labelstudio"):  # it would return as an ordinary object
        export(tmp_path / tool, tool, classes, images, labels)
    assert (tmp_path / "cvat" / "annotations.xml").read_text().count("<box ") == 1


def test_a_difficult_object_is_difficult_when_a_project_measures(tmp_path: Path) -> None:
    for name in "abcdefghij":
        voc(tmp_path / "set", name, item("cat", CAT), item("dog", DOG, difficult=1))
    now = Begun(tmp_path / "p", tmp_path / "set", tmp_path / "set").project
    run = open_project(now.folder, now.settings, now.store, lambda *_: None)
    assert [one.difficult.tolist() for one in run.test_truth.values()] == [[False, True]] * 2


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_an_own_export_says_which_images_are_complete_and_which_boxes_are_guesses(tmp_path: Path, format: str) -> None:
    records = [ImageRecord(i, str(tmp_path / "set" / f"{name}.jpg"), *SIZE) for i, name in enumerate("ab", 1)]
    for record in records:
        photo(Path(record.path))
    one = np.ones(1)
    done, begun = (
        Annotations(i, np.array([CAT]), np.array([0]), np.array([source]), one, one, one, complete=i == 1)
        for i, source in ((1, Source.HUMAN), (2, Source.PSEUDO))
    )
    export(tmp_path / "out", format, ["cat"], records, [done, begun], allow_partial=True, include_pseudo=True)
    again = Begun(tmp_path / "p", tmp_path / "set", tmp_path / "out")
    assert again.said["a.jpg"].complete
    assert "b.jpg" not in again.said  # a model's own box is not an answer


def save_again(folder: Path, format: str) -> None:
    """Save the labels of an export as other tools do: without unknown fields, rounded."""
    if format == "yolo":
        for file in (folder / "labels").iterdir():
            rows = (line.split() for line in file.read_text().splitlines())
            file.write_text("".join(" ".join([n, *(f"{float(v):.6f}" for v in place)]) + "\n" for n, *place in rows))
    elif format == "coco":
        content = json.loads((folder / "annotations.json").read_text())
        for entry in (*content["annotations"], *content["images"]):
            del entry["attributes"]
        (folder / "annotations.json").write_text(json.dumps(content))
    else:
        for file in (folder / "Annotations").iterdir():
            text = re.sub(r"<rarebox>.*?</rarebox>", "", file.read_text(), flags=re.DOTALL)
            file.write_text(re.sub(r"\d+\.\d+", lambda number: str(round(float(number[0]))), text))


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_a_guess_stays_a_guess_after_another_tool_has_saved_it(tmp_path: Path, format: str) -> None:
    photo(tmp_path / "set" / "a.jpg")
    record = ImageRecord(1, str(tmp_path / "set" / "a.jpg"), *SIZE)
    guess, human = (10.4, 10.3, 30.6, 40.2), (60.1, 20.2, 80.3, 50.4)
    boxes, one = np.array([guess, human, guess]), np.ones(3)
    sources = np.array([Source.PSEUDO, Source.HUMAN, Source.HUMAN])
    labels = Annotations(1, boxes, np.array([0, 0, 1]), sources, one, one, one, complete=False)
    export(tmp_path / "out", format, ["cat", "dog"], [record], [labels], allow_partial=True, include_pseudo=True)
    save_again(tmp_path / "out", format)
    found = load(tmp_path / "out").train
    [truth], [unsure] = found.truth.values(), found.unsure.values()
    assert [*zip(truth.labels.tolist(), unsure.tolist(), strict=True)] == [(0, True), (0, False), (1, False)]
    assert found.incomplete == {1}


def with_a_guess(folder: Path, name: str, format: str, guesses: int = 1) -> None:
    """Export two boxes of the photo a.jpg: one of a person, and perhaps a pseudo label."""
    photo(folder / "set" / "a.jpg")
    record, one = ImageRecord(1, str(folder / "set" / "a.jpg"), *SIZE), np.ones(1 + guesses)
    boxes = np.array([(60.1, 20.2, 80.3, 50.4), (10.4, 10.3, 30.6, 40.2)])[: 1 + guesses]
    sources = np.array([Source.HUMAN, Source.PSEUDO], dtype=object)[: 1 + guesses]
    labels = Annotations(1, boxes, np.arange(1 + guesses), sources, one, one, one, complete=False)
    export(folder / name, format, ["cat", "dog"], [record], [labels], allow_partial=True, include_pseudo=bool(guesses))


def unsure_in(path: Path) -> list[tuple[str, bool]]:
    """The classes of the objects of the one image, and whether they are guesses. The image is not complete."""
    found = load(path)
    [truth], [unsure] = found.train.truth.values(), found.train.unsure.values()
    assert len(found.train.incomplete) == 1
    return sorted((found.classes[n], bool(guess)) for n, guess in zip(truth.labels.tolist(), unsure, strict=True))


@pytest.mark.parametrize("format", ["yolo", "coco"])
def test_a_guess_of_a_renamed_class_stays_a_guess(tmp_path: Path, format: str) -> None:
    with_a_guess(tmp_path, "out", format)
    save_again(tmp_path / "out", format)
    file = tmp_path / "out" / ("data.yaml" if format == "yolo" else "annotations.json")
    file.write_text(file.read_text().replace("dog", "hound"))
    assert unsure_in(tmp_path / "out") == [("cat", False), ("hound", True)]


def test_a_split_export_keeps_its_guesses_and_its_partial_images(tmp_path: Path) -> None:
    """Its list is further up, and data.yaml elsewhere."""
    with_a_guess(tmp_path, "out", "yolo")
    for kind in ("images", "labels"):
        (tmp_path / "out" / kind / "train").mkdir()
        for file in (tmp_path / "out" / kind).glob("a.*"):
            file.rename(file.parent / "train" / file.name)
    (tmp_path / "split.yaml").write_text("path: out\ntrain: images/train\nnames: [cat, dog]\n")
    assert unsure_in(tmp_path / "split.yaml") == [("cat", False), ("dog", True)]


def test_a_coco_file_below_its_export_keeps_its_guesses_and_its_partial_images(tmp_path: Path) -> None:
    with_a_guess(tmp_path, "out", "coco")
    save_again(tmp_path / "out", "coco")
    (tmp_path / "out" / "annotations").mkdir()
    file = (tmp_path / "out" / "annotations.json").rename(tmp_path / "out" / "annotations" / "instances_default.json")
    file.write_text(file.read_text().replace("images/a.jpg", "a.jpg"))
    begun = Begun(tmp_path / "p", tmp_path / "set", file)
    assert [name for name, _ in begun.boxes("a.jpg")] == ["cat"]  # the dog is a guess
    assert not begun.said["a.jpg"].complete


def test_a_guess_of_one_of_two_exports_of_a_photo_stays_a_guess(tmp_path: Path) -> None:
    with_a_guess(tmp_path, "first", "yolo", guesses=0)
    with_a_guess(tmp_path, "second", "yolo")
    (tmp_path / "both.yaml").write_text("train: [first/images, second/images]\nnames: [cat, dog]\n")
    assert unsure_in(tmp_path / "both.yaml") == [("cat", False), ("dog", True)]


@pytest.mark.parametrize("damage", ["", "[]", '{"images": {"a.j'])
def test_an_export_whose_list_is_damaged_is_refused(tmp_path: Path, damage: str) -> None:
    """Its pseudo labels would count as a person's."""
    photo(tmp_path / "set" / "a.jpg")
    record, one = ImageRecord(1, str(tmp_path / "set" / "a.jpg"), *SIZE), np.ones(1)
    guess = Annotations(1, np.array([CAT]), np.array([0]), np.array([Source.PSEUDO]), one, one, one, complete=False)
    export(tmp_path / "out", "yolo", ["cat"], [record], [guess], allow_partial=True, include_pseudo=True)
    (tmp_path / "out" / "rarebox.json").write_text(damage)
    with pytest.raises(UserError, match=r"rarebox\.json cannot be read.*Copy it from the export again"):
        load(tmp_path / "out")


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_a_photo_without_a_label_file_waits_for_labels(tmp_path: Path, format: str) -> None:
    folder = tmp_path / "set"
    if format == "voc":
        voc(folder, "a", item("cat", CAT))
        photo(folder / "JPEGImages" / "b.jpg")
    else:
        yolo(folder, f"0 {share(CAT)}")
        photo(folder / "images" / "b.jpg")
    begun = Begun(tmp_path / "p", folder, folder)
    assert begun.said.keys() == {"a.jpg"}
    assert {"image without annotation", "photo without labels"} <= {*kinds(begun.problems)}


def test_init_counts_problems_by_kind_and_reports_what_was_imported(tmp_path: Path) -> None:
    photos = tmp_path / "set"
    lost = [annotation(n, 1, DOG, 9) for n in range(2, 40)]
    photo(photos / "a.jpg")
    photo(photos / "b.jpg")
    images = [entry(1, "a.jpg"), entry(2, "b.jpg")]
    labels = coco(photos / "labels.json", images, [annotation(1, 1, CAT), *lost, annotation(50, 2, DOG, 2)])
    done = CliRunner().invoke(app, ["init", str(tmp_path / "p"), "--images", str(photos), "--labels", str(labels)])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "38 x unknown category, the first:" in text
    assert "all 38 are listed in" in text
    assert "1 of them count as fully labelled (--partial if they are not); 1 as partially labelled" in text


# ------------------------------------------------------------------------------------------------- names of classes


def test_labels_follow_the_names_of_classes_and_not_their_numbers(tmp_path: Path) -> None:
    names = ["Fish", "fish ", "shark", "sea  star"]
    categories = [{"id": n, "name": name} for n, name in enumerate(names)]
    photo(tmp_path / "a.jpg")
    labels = [annotation(n + 1, 1, [10 * n, 10, 10 * n + 9, 19], n) for n in range(4)]
    file = coco(tmp_path / "labels.json", [entry(1, "a.jpg")], labels, categories)
    begun = Begun(tmp_path / "p", tmp_path, file, ["shark", "Sea star", "crab"])
    assert begun.classes == ("Fish", "shark", "sea star", "crab")
    assert [name for name, _ in begun.boxes("a.jpg")] == ["Fish", "Fish", "shark", "sea star"]
    assert "class names alike" in kinds(begun.problems)


def test_classes_are_found_by_their_own_name_first() -> None:
    classes = Classes(["Fish", "fish", "cafe\u0301"])
    assert [classes.find(name) for name in ("fish", "FISH", " caf\xe9 ", "crab")] == [1, 0, 2, None]


def test_an_import_finds_classes_as_init_does(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "p", tmp_path / "set", lost_in_yolo(tmp_path / "set"))
    region = Region((5, 5, 25, 20), " Dog", None, "")
    bring_in(begun.project.store, Batch([Returned("file", "a.jpg", None, SIZE, (), (region,))]), "cvat")
    (said,) = begun.project.store.labels().values()
    assert [begun.classes[label] for label in said.labels] == ["cat", "dog"]


# --------------------------------------------------------------------------------------------------- identity of photos


def test_a_stale_filename_does_not_carry_labels_to_another_photo(tmp_path: Path) -> None:
    voc(tmp_path, "a", item("cat", CAT), filename="b.jpg")
    voc(tmp_path, "b", item("dog", DOG), filename="a.jpg")
    data = load(tmp_path)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)], "b.jpg": [("dog", DOG)]}
    assert kinds(data.problems) == ["contradicting filename"] * 2


def test_a_filename_that_is_another_label_file_s_photo_is_not_used(tmp_path: Path) -> None:
    voc(tmp_path, "a", item("cat", CAT))
    voc(tmp_path, "gone", item("dog", DOG), filename="a.jpg")
    (tmp_path / "JPEGImages" / "gone.jpg").unlink()
    assert boxes_of(load(tmp_path)) == {"a.jpg": [("cat", CAT)]}


def test_the_filename_is_used_where_no_photo_is_called_like_the_label_file(tmp_path: Path) -> None:
    voc(tmp_path, "1", item("cat", CAT), filename="night\\frame.jpg", photo_as="frame.jpg")
    assert boxes_of(load(tmp_path)) == {"frame.jpg": [("cat", CAT)]}


@pytest.mark.parametrize(
    ("xml", "jpeg"), [("a", "a.JPG"), ("night/a", "night/a.jpg"), ("Night/a", "night/A.Jpeg"), ("a", "night/a.jpg")]
)
def test_voc_pairs_files_across_case_and_folders(tmp_path: Path, xml: str, jpeg: str) -> None:
    voc(tmp_path, xml, item("cat", CAT), photo_as=jpeg)
    data = load(tmp_path)
    assert list(boxes_of(data).values()) == [[("cat", CAT)]]
    assert data.problems == ()


def test_two_photos_of_one_name_in_two_folders_keep_their_own_labels(tmp_path: Path) -> None:
    voc(tmp_path, "day/a", item("cat", CAT))
    voc(tmp_path, "night/a", item("dog", DOG))
    data = load(tmp_path)
    found = {Path(i.path).parent.name: data.classes[data.train.truth[i.id].labels[0]] for i in data.train.images}
    assert found == {"day": "cat", "night": "dog"}


@pytest.mark.parametrize("name", ["a.jpg", "IMAGES\\A.jpg", "images/a.JPG"])
def test_coco_finds_files_across_case_and_separators(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "Images" / "a.jpg")
    file = coco(tmp_path / "train.json", [entry(1, name)], [annotation(1, 1, CAT)])
    assert boxes_of(load(file)) == {"a.jpg": [("cat", CAT)]}


@pytest.mark.parametrize("labels", ["Labels/a.txt", "labels/A.TXT", "images/a.txt"])
def test_yolo_finds_label_files_across_case(tmp_path: Path, labels: str) -> None:
    assert boxes_of(load(yolo(tmp_path, f"0 {share(CAT)}", labels=labels))) == {"a.jpg": [("cat", CAT)]}


def test_labels_need_not_be_beside_the_photos(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "x" / "a.jpg")
    photo(tmp_path / "photos" / "y" / "a.jpg")
    images = [entry(1, "C:\\old\\x\\a.jpg"), entry(2, "y/a.jpg"), entry(3, "z/other.jpg")]
    file = coco(tmp_path / "old.json", images, [annotation(1, 1, CAT), annotation(2, 2, DOG, 2)])
    begun = Begun(tmp_path / "p", tmp_path / "photos", file)
    records, said = begun.project.store.images(), begun.project.store.labels()
    assert {Path(records[i].path).parent.name: one.boxes.tolist() for i, one in said.items()} == {
        "x": [CAT],
        "y": [DOG],
    }
    assert "missing image file" in kinds(begun.problems)


def test_voc_label_files_alone_are_enough_for_photos_elsewhere(tmp_path: Path) -> None:
    voc(tmp_path / "set", "a", item("cat", CAT))
    (tmp_path / "set" / "JPEGImages").rename(tmp_path / "photos")
    assert Begun(tmp_path / "p", tmp_path / "photos", tmp_path / "set").boxes("a.jpg") == [("cat", CAT)]


def test_two_labelled_images_that_may_be_one_photo_are_left_out(tmp_path: Path) -> None:
    for place in ("set/x/a.jpg", "set/y/a.jpg", "photos/a.jpg"):
        photo(tmp_path / place)
    images = [entry(1, "x/a.jpg"), entry(2, "y/a.jpg")]
    file = coco(tmp_path / "set" / "l.json", images, [annotation(1, 1, CAT), annotation(2, 2, DOG)])
    begun = Begun(tmp_path / "p", tmp_path / "photos", file)
    assert begun.said == {}
    assert kinds(begun.problems) == ["labels match no single photo"] * 2


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_an_own_export_finds_its_photos(tmp_path: Path, format: str, copied: bool) -> None:
    names = ["d1/a.jpg", "d2/a.jpg", "z/a-2.jpg", "z/\u00e9.jpg", "y/e\u0301.jpg"]
    for n, name in enumerate(names):
        photo(tmp_path / "photos" / name, (SIZE[0] + n, SIZE[1]))
    labels = [annotation(n, n, [10 * n, 10, 10 * n + 9, 30]) for n in range(1, 6)]
    images = [entry(n, name, width=SIZE[0] + n - 1) for n, name in enumerate(names, 1)]
    first = Begun(tmp_path / "p", tmp_path / "photos", coco(tmp_path / "photos" / "l.json", images, labels))
    store = first.project.store
    records = list(store.images().values())
    said = [
        Annotations(i, one.boxes, one.labels, np.array([Source.HUMAN]), np.ones(1), np.ones(1), np.ones(1), True)
        for i, one in store.labels().items()
    ]
    assert len(said) == 5
    export(tmp_path / "out", format, store.classes(), records, said, copy_images=copied)
    again = Begun(tmp_path / "again", tmp_path / "photos", tmp_path / "out").project.store
    found = {i: np.round(one.boxes, 2).tolist() for i, one in again.labels().items()}
    assert found == {i: one.boxes.tolist() for i, one in store.labels().items()}


def test_a_photo_that_is_listed_twice_is_labelled_once(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    labels = [annotation(1, 1, CAT), annotation(2, 2, CAT), annotation(3, 2, DOG, 2)]
    file = coco(tmp_path / "l.json", [entry(1, "a.jpg"), entry(2, "a.jpg")], labels)
    begun = Begun(tmp_path / "p", tmp_path, file)
    assert begun.boxes("a.jpg") == [("cat", CAT), ("dog", DOG)]


def test_ids_that_are_numbers_in_one_list_and_text_in_the_other_are_the_same(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    file = coco(tmp_path / "train.json", [entry("1", "a.jpg")], [annotation(1, 1, CAT, "1")])
    assert boxes_of(load(file)) == {"a.jpg": [("cat", CAT)]}


def test_an_image_that_seems_empty_waits_for_labels_where_boxes_belong_to_no_image(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    images = [entry(1, "a.jpg"), entry(2, "b.jpg")]
    file = coco(tmp_path / "l.json", images, [annotation(1, 1, CAT), annotation(2, 77, DOG)])
    assert Begun(tmp_path / "p", tmp_path, file).said.keys() == {"a.jpg"}


# -------------------------------------------------------------------------------------------------------- sizes, units


def test_labels_of_smaller_copies_are_scaled(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg", (640, 480))
    photo(tmp_path / "small" / "a.jpg")
    beside = coco(tmp_path / "small" / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT)])
    alone = coco(tmp_path / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT)])
    for number, file in enumerate((beside, alone)):
        begun = Begun(tmp_path / f"p{number}", tmp_path / "photos", file)
        assert begun.boxes("a.jpg") == [("cat", [4 * edge for edge in CAT])]


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_labels_of_a_picture_of_another_shape_are_left_out(tmp_path: Path, format: str) -> None:
    for name in ("a", "b"):
        size = (160, 200) if name == "a" else SIZE
        voc(
            tmp_path / "set",
            name,
            item("cat", CAT),
            size=f"<size><width>{size[0]}</width><height>{size[1]}</height></size>",
        )
    file = tmp_path / "set"
    if format == "coco":
        images = [entry(1, "JPEGImages/a.jpg", height=200), entry(2, "JPEGImages/b.jpg")]
        file = coco(tmp_path / "set" / "l.json", images, [annotation(1, 1, CAT), annotation(2, 2, CAT)])
    begun = Begun(tmp_path / "p", tmp_path / "set" / "JPEGImages", file)
    assert begun.said.keys() == {"b.jpg"}
    assert "image size differs" in kinds(begun.problems)
    assert [Path(i.path).name for i in usable(load(file)).train.images] == ["b.jpg"]


def test_labels_that_may_refer_to_the_unrotated_photo_are_skipped(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg", SIZE, orientation=6)  # upright it is 120 x 160
    photo(tmp_path / "b.jpg")
    images = [entry(1, "a.jpg"), entry(2, "b.jpg")]
    file = coco(tmp_path / "l.json", images, [annotation(1, 1, DOG), annotation(2, 2, CAT)])
    begun = Begun(tmp_path / "p", tmp_path, file)
    assert begun.said.keys() == {"b.jpg"}
    assert "image rotated by EXIF" in kinds(begun.problems)


def test_a_rotated_nearly_square_photo_is_not_scaled(tmp_path: Path) -> None:
    photo(tmp_path / "set" / "a.jpg", (400, 396), orientation=6)  # upright it is 396 x 400
    photo(tmp_path / "set" / "b.jpg", (200, 198))
    photo(tmp_path / "photos" / "b.jpg", (396, 400))
    photo(tmp_path / "photos" / "a.jpg", (400, 396), orientation=6)
    images = [entry(1, "a.jpg", width=400, height=396), entry(2, "b.jpg", width=200, height=198)]
    file = coco(tmp_path / "set" / "l.json", images, [annotation(1, 1, DOG), annotation(2, 2, CAT)])
    begun = Begun(tmp_path / "p", tmp_path / "photos", file)
    assert begun.said == {}
    assert {"image rotated by EXIF", "labels match no single photo"} <= {*kinds(begun.problems)}
    assert "boxes scaled" not in kinds(begun.problems)


def test_an_exif_rotation_that_labels_cannot_confirm_is_listed_once(tmp_path: Path) -> None:
    for name, size, orientation in (("a", (120, 120), 6), ("b", SIZE, 3), ("c", SIZE, 6), ("d", SIZE, 1)):
        photo(tmp_path / f"{name}.jpg", size, orientation)
    images = [entry(1, "a.jpg", width=120), entry(2, "b.jpg"), entry(3, "c.jpg", width=120, height=160)]
    images.append(entry(4, "d.jpg"))
    data = load(coco(tmp_path / "l.json", images, [annotation(n, n, DOG) for n in range(1, 5)]))
    (problem,) = data.problems
    assert (problem.kind, Path(problem.where).name) == ("EXIF rotation", "a.jpg")
    assert "2" in problem.what
    assert "upright" in problem.what
    photo(tmp_path / "y" / "images" / "b.jpg", SIZE, 6)
    yolo(tmp_path / "y", f"0 {share(DOG)}", labels="labels/b.txt")
    assert "EXIF rotation" in kinds(load(tmp_path / "y").problems)


SHARES = [0.25, 0.25, 0.75, 0.75]


def test_fractions_are_not_read_as_pixels(tmp_path: Path) -> None:
    photo(tmp_path / "c" / "a.jpg")
    coco(tmp_path / "c" / "train.json", [entry(1, "a.jpg")], [annotation(1, 1, SHARES)])
    voc(tmp_path / "v", "a", item("cat", [str(edge) for edge in SHARES]))
    for folder in ("c", "v"):
        with pytest.raises(
            UserError, match=r"none of its objects can be used .*fractions of the image's sides, write pixels"
        ):
            load(tmp_path / folder)


def test_one_box_in_fractions_among_others_is_listed(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    file = coco(tmp_path / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, SHARES), annotation(2, 1, CAT)])
    data = load(file)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
    assert kinds(data.problems) == ["box dropped"]


def test_two_corners_are_not_read_as_a_corner_and_a_size(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    boxes = [CAT, [90, 70, 150, 110]]
    labels = [annotation(n, 1, box) | {"bbox": box} for n, box in enumerate(boxes)]
    with pytest.raises(UserError, match=r"seem to be x1, y1, x2, y2: 1 of 2 extend beyond"):
        load(coco(tmp_path / "l.json", [entry(1, "a.jpg")], labels))


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("0 80 60 80 60", "not pixels"),
        ("0 40 30 120 30 120 90", "not pixels"),
        ("0 0,5 0,5 0,5 0,5", "not commas"),
        ("0 0.5 0.5 0.5 0.5 0.93", "adds its score"),
        ("0 0.5 0.5 0.5 0.5 0.93 7", "adds its score"),
        ("0 0.5 0.5 0.5 0.5 0.4 0.4 2 0.9 0.9 2", "not pixels"),  # key points, without kpt_shape in data.yaml
    ],
)
def test_a_yolo_line_of_another_kind_is_listed_with_advice(tmp_path: Path, line: str, fault: str) -> None:
    data = load(yolo(tmp_path, line, f"1 {share(DOG)}"))
    assert boxes_of(data) == {"a.jpg": [("dog", DOG)]}
    (problem,) = data.problems
    assert fault in problem.what
    with pytest.raises(UserError, match="none of its objects can be used"):
        load(yolo(tmp_path, line))


@pytest.mark.parametrize("numbers", [2, 3])
def test_key_points_are_not_corners(tmp_path: Path, numbers: int) -> None:
    point = "0.9 0.9" + " 2" * (numbers - 2)
    data = load(
        yolo(
            tmp_path,
            f"0 {share(CAT)} {point} {point}",
            f"1 {share(DOG)}",
            f"0 {share(CAT)} 0.1 0.1",
            more=f"kpt_shape: [2, {numbers}]",
        )
    )
    assert boxes_of(data) == {"a.jpg": [("cat", CAT), ("dog", DOG)]}
    assert "kpt_shape" in data.problems[0].what
    with pytest.raises(UserError, match="'kpt_shape' is"):
        load(yolo(tmp_path, more="kpt_shape: seventeen"))


def test_the_corners_of_a_rotated_box_have_a_hull(tmp_path: Path) -> None:
    corners = " ".join(f"{x / SIZE[0]} {y / SIZE[1]}" for x, y in ((80, 30), (120, 60), (80, 90), (40, 60)))
    assert boxes_of(load(yolo(tmp_path, f"0 {corners}"))) == {"a.jpg": [("cat", CAT)]}


# ------------------------------------------------------------------------------------------------------ text and names

MARKED = ["utf-8-sig", "utf-16", "utf-16-le with mark", "utf-32"]


def encoded(file: Path, encoding: str) -> None:
    """Rewrite the text of a file."""
    text = file.read_text(encoding="utf-8")
    mark = "\ufeff" if encoding.endswith("mark") else ""
    file.write_bytes((mark + text).encode(encoding.split()[0]))


@pytest.mark.parametrize("encoding", MARKED)
def test_byte_order_marks_are_not_part_of_any_text(tmp_path: Path, encoding: str) -> None:
    folder = yolo(tmp_path / "y", f"0 {share(CAT)}", f"1 {share(DOG)}")
    (folder / "list.txt").write_text("images/a.jpg\n")
    (folder / "data.yaml").write_text("train: list.txt\nnames: [cat, dog]\n")
    for file in ("data.yaml", "list.txt", "labels/a.txt"):
        encoded(folder / file, encoding)
    assert boxes_of(load(folder)) == {"a.jpg": [("cat", CAT), ("dog", DOG)]}
    voc(tmp_path / "v", "a", item("cat", CAT))
    (tmp_path / "v" / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "v" / "ImageSets" / "Main" / "trainval.txt").write_text("a\n")
    encoded(tmp_path / "v" / "ImageSets" / "Main" / "trainval.txt", encoding)
    assert boxes_of(load(tmp_path / "v")) == {"a.jpg": [("cat", CAT)]}
    photo(tmp_path / "c" / "a.jpg")
    coco(tmp_path / "c" / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT)])
    encoded(tmp_path / "c" / "l.json", encoding)
    assert boxes_of(load(tmp_path / "c")) == {"a.jpg": [("cat", CAT)]}
    (tmp_path / "settings.yaml").write_text("seed: 7\n")
    encoded(tmp_path / "settings.yaml", encoding)
    assert config.resolve("laptop", tmp_path / "settings.yaml", {}).seed == 7


def test_text_without_a_mark_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = yolo(tmp_path, f"0 {share(CAT)}")
    (folder / "labels" / "a.txt").write_bytes(f"0 {share(CAT)}".encode("utf-16-le"))
    data = load(folder)
    assert kinds(data.problems) == ["unreadable annotation"]
    assert "Save it as UTF-8" in data.problems[0].what
    assert data.train.incomplete
    (folder / "data.yaml").write_bytes("train: images\nnames: [caf\xe9]".encode("latin-1"))
    with pytest.raises(UserError, match=r"data\.yaml: this is not UTF-8 text .*Save it as UTF-8"):
        load(folder)


@pytest.mark.parametrize("encoding", MARKED)
def test_detections_may_begin_with_a_byte_order_mark(tmp_path: Path, encoding: str) -> None:
    results, lines = tmp_path / "r.json", tmp_path / "l.jsonl"
    results.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]))
    lines.write_text('{"image": "a.jpg", "boxes": [], "scores": []}\n{"image": "b.jpg", "boxes": [], "scores": []}\n')
    for file in (results, lines):
        encoded(file, encoding)
    assert open_detections(results).images() == [1]
    if encoding == "utf-8-sig":
        assert open_detections(lines).images() == ["a.jpg", "b.jpg"]
        assert len(open_detections(lines).read("a.jpg")) == 1
    else:
        with pytest.raises(UserError, match=r"[Ss]ave it as UTF-8"):
            open_detections(lines)


NAMES = ["no", "on", "012", "1_000", "1e3", "null", "2024-01-01", "0x1F", "true", "12:30", "~", "1.0"]


@pytest.mark.parametrize("style", ["list", "numbers"])
def test_names_in_yaml_are_names(tmp_path: Path, style: str) -> None:
    text = "".join(f"\n  {n}: {name}" if style == "numbers" else f"\n  - {name}" for n, name in enumerate(NAMES))
    folder = yolo(tmp_path, f"2 {share(CAT)}", names=text, more="test:\nval: null\n")
    data = load(folder)
    assert data.classes == tuple(NAMES)
    assert data.test is None
    assert boxes_of(data) == {"a.jpg": [("012", CAT)]}


# --------------------------------------------------------------------------------------------- external detections


def rank(tmp_path: Path, results: Any, **given: Any) -> external.Ranked:
    file = tmp_path / "found.json"
    file.write_text(json.dumps(results) if isinstance(results, list) else results)
    options = {"labels": None, "images": tmp_path / "photos", **given}
    settings = config.resolve("laptop", None, {})
    return external.rank(file, None, options.pop("labels"), options.pop("images"), settings, 10, **options)


def result(image: Any, box: Sequence[float] = (10, 10, 20, 20)) -> dict[str, Any]:
    return {"image_id": image, "category_id": 1, "bbox": list(box), "score": 0.8}


@pytest.mark.parametrize(
    ("names", "image", "meant"),
    [
        (["1.jpg", "10.jpg", "2.jpg"], 2, "2.jpg"),
        (["000000000139.jpg", "1.jpg"], 139, "000000000139.jpg"),
        (["x/7.JPG", "y/8.jpg"], 8, "8.jpg"),
        (["frame_a.jpg", "frame_b.png"], "frame_b", "frame_b.png"),
    ],
)
def test_a_number_is_the_name_of_a_file_where_nothing_has_given_ids(
    tmp_path: Path, names: list[str], image: Any, meant: str
) -> None:
    for name in names:
        photo(tmp_path / "photos" / name)
    found = rank(tmp_path, [result(image)])
    assert [Path(found.images[query.image_id].path).name for query in found.queries] == [meant]
    with pytest.raises(UserError, match="not among --images"):
        rank(tmp_path, [result(3)])


def test_a_number_that_may_be_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("1.jpg", "01.jpg"):
        photo(tmp_path / "photos" / name)
    with pytest.raises(UserError, match=r"the image 1 may be .* or .*\. Write file names"):
        rank(tmp_path, [result(1)])


def test_ids_of_a_coco_file_count_and_a_doubt_is_noted(tmp_path: Path) -> None:
    images = coco(tmp_path / "l.json", [entry(1, "2.jpg"), entry(2, "1.jpg")], [])
    found = rank(tmp_path, [result(2)], images=images)
    assert found.images[found.queries[0].image_id].path.endswith("1.jpg")
    assert any("they are read as ids" in note for note in found.notes)


def test_numbers_of_a_store_are_not_read_as_names(tmp_path: Path) -> None:
    for name in ("1.jpg", "10.jpg", "2.jpg"):
        photo(tmp_path / "photos" / name)
    create(tmp_path / "p", tmp_path / "photos", ["1"])
    with pytest.raises(
        UserError, match=r"the image 2 may be .*10\.jpg, which has that number in the store, or .*2\.jpg"
    ):
        rank(tmp_path, [result(2)], labels=tmp_path / "p", images=None)


def test_detections_and_labels_of_other_sizes_are_scaled_or_refused(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg", (320, 240))
    line = {"image": "a.jpg", "boxes": [CAT], "scores": [0.9], "labels": ["cat"], "width": 160, "height": 120}
    (query,) = rank(tmp_path, json.dumps(line)).queries
    assert query.box is not None
    assert query.box.tolist() == [2 * edge for edge in CAT]
    labels = coco(tmp_path / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT)])
    assert rank(tmp_path, json.dumps(line), labels=labels).queries == []  # the same object is labelled
    with pytest.raises(UserError, match=r"160 x 160 pixels, and .*a\.jpg 320 x 240: it is cropped, rotated"):
        rank(tmp_path, json.dumps(line | {"height": 160}))
    with pytest.raises(UserError, match=r"a box lies outside of .*a\.jpg, which has 320 x 240 pixels"):
        rank(tmp_path, json.dumps({**line, "boxes": [[400, 300, 500, 400]], "width": None, "height": None}))


def test_labels_that_lost_an_object_are_not_complete_for_rank_either(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.jpg")
    labels = coco(tmp_path / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT), annotation(2, 1, DOG, 9)])
    found = rank(tmp_path, [result(1, [70, 95, 20, 20])], labels=labels, labels_complete=True, images=None)
    assert len(found.queries) == 1
    assert any("do not count as fully labelled" in note for note in found.notes)


# -------------------------------------------------------------------------------------------------- a set without a box


def test_a_data_set_without_an_object_is_reported_and_refused(tmp_path: Path) -> None:
    folder = yolo(tmp_path / "y")
    (folder / "labels" / "a.txt").unlink()
    check = next(check for check in examine(str(folder)) if check.name == "data")
    assert not check.ok
    assert "1 x image without annotation" in check.advice
    with pytest.raises(UserError, match="Correct the labels"):
        simulate.simulate(tmp_path / "run", config.resolve("laptop", None, {"data": str(folder)}))
    assert not (tmp_path / "run" / "settings.yaml").exists()


@pytest.mark.parametrize("lost", [True, False])
def test_test_images_without_an_object_are_not_replaced_silently(tmp_path: Path, lost: bool) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name)
    coco(
        tmp_path / "train.json", [entry(1, "a.jpg"), entry(2, "b.jpg")], [annotation(1, 1, CAT), annotation(2, 2, CAT)]
    )
    coco(tmp_path / "test.json", [entry(1, "c.jpg")], [annotation(1, 1, [9, 9, 9, 9])] if lost else [])
    check = next(check for check in examine(str(tmp_path)) if check.name == "data")
    assert not check.ok
    with pytest.raises(UserError, match=r"no test image has an object .*Correct the labels, or remove the test images"):
        simulate.simulate(tmp_path / "run", config.resolve("laptop", None, {"data": str(tmp_path)}))


def test_the_verdict_on_a_crowd_adds_no_object(tmp_path: Path) -> None:
    begun = Begun(tmp_path / "p", tmp_path / "set", crowd_in_coco(tmp_path / "set"))
    assert [answer.verdict for _, answer in begun.project.store.answered()] == [Verdict.OBJECT, Verdict.CANNOT_TELL]


# ------------------------------------------------------------------------------------------ what files say in passing


def lists(folder: Path, **of: str) -> None:
    """Write image sets of a VOC folder: their names and lines."""
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name, lines in of.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(lines)


def turned(place: str, format: str, folder: Path, name: str, value: Any) -> Path:
    """A cat in a box of 80 x 10 pixels at 40, 55 that the file marks as rotated."""
    flat = [40.0, 55.0, 120.0, 65.0]
    if format == "coco":
        photo(folder / "a.jpg")
        listed = [{"name": "occluded", "value": False}, {"name": name, "value": value}]
        more = {name: value} if place == "beside" else {place: {name: value}}
        more = {"attributes": listed} if place == "list" else more
        return coco(folder / "train.json", [entry(1, "a.jpg")], [annotation(1, 1, flat, **more)])
    beside = {name: value} if place == "beside" else {}
    attribute = f"<attribute><name>{name}</name><value>{value}</value></attribute>"
    voc(folder, "a", item("cat", flat, **(beside or {"attributes": attribute})))
    return folder


@pytest.mark.parametrize(
    ("format", "place"),
    [
        ("coco", "attributes"),
        ("coco", "list"),
        ("coco", "extra"),
        ("coco", "beside"),
        ("voc", "attributes"),
        ("voc", "beside"),
    ],
)
@pytest.mark.parametrize(
    ("name", "value"),
    [("rotation", 90.0), ("rotation", "-90"), ("angle", 270), ("Rotation", "90°"), ("rotation", "90 Degrees")],
)
def test_a_rotated_box_becomes_the_upright_box_around_it(
    tmp_path: Path, format: str, place: str, name: str, value: Any
) -> None:
    data = load(turned(place, format, tmp_path, name, value))
    assert boxes_of(data) == {"a.jpg": [("cat", [75.0, 20.0, 85.0, 100.0])]}
    assert data.problems == ()


@pytest.mark.parametrize("format", ["coco", "voc"])
@pytest.mark.parametrize(("name", "value"), [("angle", 1.57), ("theta", "0.3"), ("rotation", "nan")])
def test_a_box_with_an_ambiguous_rotation_is_lost(tmp_path: Path, format: str, name: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"none of its objects can be used .*it is rotated \({name} {value}\)"):
        load(turned("attributes", format, tmp_path, name, value))


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_a_box_whose_rotation_is_not_a_number_is_lost(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match=r"none of its objects can be used .*its rotation '1\.2 rad' is not a number"):
        load(turned("attributes", format, tmp_path, "rotation", "1.2 rad"))


@pytest.mark.parametrize("format", ["coco", "voc"])
@pytest.mark.parametrize(("name", "value"), [("rotation", "0.0"), ("angle", "from above"), ("rotation", "")])
def test_a_value_that_is_not_a_rotation_leaves_the_box_unchanged(
    tmp_path: Path, format: str, name: str, value: Any
) -> None:
    data = load(turned("attributes", format, tmp_path, name, value))
    assert boxes_of(data) == {"a.jpg": [("cat", [40.0, 55.0, 120.0, 65.0])]}


@pytest.mark.parametrize("filename", ["", "b.jpg"])
def test_a_label_file_does_not_go_to_the_photo_of_another_folder(tmp_path: Path, filename: str) -> None:
    for name in ("day/c", "night/a"):
        voc(tmp_path, name, item("dog", DOG))
    voc(tmp_path, "night/b", item("cat", CAT), filename=filename, photo_as="day/b.jpg")
    begun = Begun(tmp_path / "p", tmp_path / "JPEGImages", tmp_path)
    assert begun.said.keys() == {"a.jpg", "c.jpg"}
    assert {"missing image file", "image without annotation"} <= {*kinds(begun.problems)}


def test_label_files_of_two_folders_that_may_belong_to_one_photo_are_skipped(tmp_path: Path) -> None:
    for name in ("day/b", "night/b"):
        voc(tmp_path, name, item("cat", CAT if name == "day/b" else DOG), photo_as="b.jpg")
    voc(tmp_path, "c", item("dog", DOG))
    begun = Begun(tmp_path / "p", tmp_path / "JPEGImages", tmp_path)
    assert begun.said.keys() == {"c.jpg"}
    assert "several label files" in kinds(begun.problems)


@pytest.mark.parametrize("second", ["a.XML", "other.xml"])
def test_two_label_files_of_one_photo_are_not_used(tmp_path: Path, second: str) -> None:
    voc(tmp_path, "b", item("dog", DOG))
    voc(tmp_path, "1", item("cat", CAT), filename="a.jpg", photo_as="a.jpg")
    first = tmp_path / "Annotations" / ("1.xml" if second == "other.xml" else "a.xml")
    (tmp_path / "Annotations" / "1.xml").rename(first)
    other = tmp_path / "Annotations" / second
    other.write_bytes(first.read_bytes())
    assert kinds(load(tmp_path).problems) == []  # they agree
    other.write_text(first.read_text().replace("cat", "dog"))
    assert Begun(tmp_path / "p", tmp_path / "JPEGImages", tmp_path).said.keys() == {"b.jpg"}
    data = load(tmp_path)
    assert kinds(data.problems) == ["several label files"]
    assert boxes_of(usable(data)) == {"b.jpg": [("dog", DOG)]}


def test_a_label_file_of_two_photos_is_listed(tmp_path: Path) -> None:
    voc(tmp_path, "a", item("cat", CAT), photo_as="a.png")
    photo(tmp_path / "JPEGImages" / "a.bmp")
    assert kinds(load(tmp_path).problems) == ["several photos of one name", "image without annotation"]
    voc(tmp_path, "a", item("cat", CAT), photo_as="a.png", filename="a.png")
    data = load(tmp_path)
    assert boxes_of(data) == {"a.bmp": [], "a.png": [("cat", CAT)]}
    assert boxes_of(usable(data)) == {"a.png": [("cat", CAT)]}
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [("image without annotation", "a.bmp")]


def test_photos_of_one_name_without_a_label_file_are_all_listed(tmp_path: Path) -> None:
    voc(tmp_path, "a", item("cat", CAT))
    photo(tmp_path / "JPEGImages" / "b.bmp")
    photo(tmp_path / "JPEGImages" / "b.png")
    data = load(tmp_path)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)], "b.bmp": [], "b.png": []}
    assert kinds(data.problems) == ["image without annotation"] * 2
    assert len(data.train.unlabelled) == 2


def test_label_files_that_no_used_list_names_are_listed(tmp_path: Path) -> None:
    for name in "abcd":
        voc(tmp_path, name, item("cat", CAT))
    lists(tmp_path, train="a\n", val="b\n", test="c\n")
    data = load(tmp_path)
    assert [(p.kind, Path(p.where).name) for p in data.problems] == [
        ("split not used", "val.txt"),
        ("split not used", "Annotations"),
    ]
    assert "b.xml" in data.problems[0].what
    assert "d.xml" in data.problems[1].what
    lists(tmp_path, trainval="a\nb\nd\n")
    assert load(tmp_path).problems == ()


def test_elements_of_voc_are_found_by_local_name_in_any_case(tmp_path: Path) -> None:
    voc(tmp_path, "a", item("cat", CAT))
    xml = tmp_path / "Annotations" / "a.xml"
    text = xml.read_text()
    for changed in (
        text.replace("<annotation>", '<annotation xmlns="http://x.org/voc">'),
        text.replace("<annotation>", '<v:annotation xmlns:v="http://x.org/voc">').replace("</ann", "</v:ann"),
        text.replace("object>", "Object>").replace("bndbox>", "BndBox>").replace("xmin>", "XMin>"),
    ):
        xml.write_text(changed)
        data = load(tmp_path)
        assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
        assert data.problems == ()


CAT_ITEM = item("cat", CAT)
UNREAD = {
    "nested": f"<objects>{CAT_ITEM}</objects>",
    "other names": CAT_ITEM.replace("object", "item"),
    "in an object": CAT_ITEM.replace("</object>", f"{CAT_ITEM}</object>"),
    "as attributes": '<object_list><box label="cat" xmin="1" /></object_list>',
    "as text": "<boxes>40 30 120 90</boxes>",
    "two boxes": CAT_ITEM.replace("</bndbox>", "</bndbox><bndbox><xmin>1</xmin></bndbox>"),
    "two names": CAT_ITEM.replace("<bndbox>", "<name>dog</name><bndbox>"),
    "two edges": CAT_ITEM.replace("<ymin>", "<xmin>3</xmin><ymin>"),
}


@pytest.mark.parametrize("unread", UNREAD.values(), ids=UNREAD)
def test_an_object_of_voc_that_is_not_read_makes_its_image_incomplete(tmp_path: Path, unread: str) -> None:
    voc(tmp_path, "a", item("dog", DOG), unread)
    begun = Begun(tmp_path / "p", tmp_path / "JPEGImages", tmp_path)
    assert ("dog", DOG) in begun.boxes("a.jpg")
    assert not begun.said["a.jpg"].complete
    assert "box dropped" in kinds(begun.problems)


def test_other_elements_of_voc_tools_hold_no_objects(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    about = "<source><annotation>PASCAL VOC2007</annotation></source><owner><name>A B</name></owner>"
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size><segmented>0</segmented>"
    voc(tmp_path, "a", CAT_ITEM.replace("</object>", f"{head}</object>"), size=size + about)
    data = load(tmp_path)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
    assert data.problems == ()
    assert not data.train.incomplete


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("annotation>", "annotations>"),
        ("<annotation>", "<annotation><filename>a.jpg</filename><filename>b.jpg</filename>"),
        ("<annotation>", "<annotation><size><width>1</width></size><size><width>2</width></size>"),
    ],
)
def test_a_voc_file_of_another_kind_is_unreadable(tmp_path: Path, before: str, after: str) -> None:
    for name in "ab":
        voc(tmp_path, name, item("cat", CAT))
    xml = tmp_path / "Annotations" / "b.xml"
    xml.write_text(xml.read_text().replace(before, after))
    data = load(tmp_path)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
    assert kinds(data.problems) == ["unreadable annotation"]


@pytest.mark.parametrize("format", ["coco", "voc"])
def test_sizes_may_be_text_and_invalid_ones_are_listed(tmp_path: Path, format: str) -> None:
    def labels(width: Any, height: Any) -> Path:
        voc(tmp_path, "a", item("cat", CAT), size=f"<size><width>{width}</width><height>{height}</height></size>")
        photo(tmp_path / "JPEGImages" / "a.jpg", (320, 240))
        if format == "voc":
            return tmp_path
        return coco(
            tmp_path / "l.json", [entry(1, "JPEGImages/a.jpg", width=width, height=height)], [annotation(1, 1, CAT)]
        )

    assert boxes_of(load(labels("160", "120.0"))) == {"a.jpg": [("cat", [2 * edge for edge in CAT])]}
    for width, height in (("160px", "120"), (-160, -120), (160, 0), ("1,60", "1,20"), ("inf", "nan")):
        data = load(labels(width, height))
        assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
        assert kinds(data.problems) == ["size in labels is wrong"]
    assert load(labels(0, 0)).problems == ()


def test_labels_of_two_images_that_have_the_name_of_one_photo_are_left_out(tmp_path: Path) -> None:
    for place in ("photos/1.jpg", "photos/2.jpg", "photos/3.jpg", "set/x/2.jpg"):
        photo(tmp_path / place)
    images = [entry(n, name) for n, name in enumerate(("train/1.jpg", "test/1.jpg", "x/2.jpg", "y/2.jpg", "x/3.jpg"))]
    labels = [annotation(n, n, DOG if n % 2 else CAT) for n in range(5)]
    begun = Begun(tmp_path / "p", tmp_path / "photos", coco(tmp_path / "set" / "l.json", images, labels))
    assert begun.said.keys() == {"3.jpg"}
    assert kinds(begun.problems).count("labels match no single photo") == 4


def test_a_photos_own_labels_count_not_those_of_its_namesakes(tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "1.jpg")
    images = [entry(1, "photos/1.jpg"), entry(2, "test/1.jpg")]
    file = coco(tmp_path / "l.json", images, [annotation(1, 1, CAT), annotation(2, 2, DOG)])
    begun = Begun(tmp_path / "p", tmp_path / "photos", file)
    assert begun.boxes("1.jpg") == [("cat", CAT)]
    assert "labels match no single photo" in kinds(begun.problems)


def test_labels_that_fit_several_photos_are_listed_as_such(tmp_path: Path) -> None:
    for place in ("x/1.jpg", "y/1.jpg", "2.jpg"):
        photo(tmp_path / "photos" / place)
    file = coco(
        tmp_path / "l.json", [entry(1, "1.jpg"), entry(2, "2.jpg")], [annotation(1, 1, CAT), annotation(2, 2, CAT)]
    )
    begun = Begun(tmp_path / "p", tmp_path / "photos", file)
    assert begun.said.keys() == {"2.jpg"}
    assert "labels match no single photo" in kinds(begun.problems)


@pytest.mark.parametrize("there", [["a.jpg"], ["a.jpg", "b.jpg"]])
def test_two_names_in_coco_do_not_share_a_file_that_differs_in_capitals(tmp_path: Path, there: list[str]) -> None:
    for name in there:
        photo(tmp_path / name)
    images = [entry(1, "a.jpg"), entry(2, "A.jpg"), entry(3, "b.JPG"), entry(4, "B.jpg")]
    data = load(coco(tmp_path / "l.json", images, [annotation(n, n, CAT if n == 1 else DOG) for n in range(1, 5)]))
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
    assert kinds(data.problems) == ["missing image file"] * 3


@pytest.mark.parametrize("size", [SIZE, (320, 240)])
@pytest.mark.parametrize(
    ("bbox", "more"),
    [
        ([0.6, 0.6, 0.5, 0.6], {}),  # a centre and a size
        ([0.1, 0.1, 0.2, 0.2], {"attributes": {"source": "manual"}}),
    ],
)
def test_fractions_of_every_kind_are_dropped_and_listed(
    tmp_path: Path, bbox: list[float], more: dict[str, Any], size: tuple[int, int]
) -> None:
    photo(tmp_path / "a.jpg", size)
    labels = [annotation(1, 1, CAT), annotation(2, 1, CAT, **more) | {"bbox": bbox}]
    data = load(coco(tmp_path / "l.json", [entry(1, "a.jpg")], labels))
    assert [len(truth) for truth in data.train.truth.values()] == [1]
    assert "box dropped" in kinds(data.problems)
    assert data.train.incomplete


def test_objects_inside_an_image_of_coco_are_not_skipped(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    inside = entry(1, "a.jpg", annotations=[annotation(2, 1, DOG)])
    data = load(coco(tmp_path / "l.json", [inside], [annotation(1, 1, CAT)]))
    assert kinds(data.problems) == ["box dropped"]
    assert data.train.incomplete


LONG = "x" * 400


@pytest.mark.parametrize(("format", "name"), [("coco", LONG), ("coco", "a\0b"), ("voc", LONG), ("yolo", LONG)])
def test_a_name_that_no_file_can_have_is_that_of_a_missing_image(tmp_path: Path, format: str, name: str) -> None:
    if format == "coco":
        photo(tmp_path / "a.jpg")
        coco(tmp_path / "train.json", [entry(1, "a.jpg"), entry(2, f"{name}.jpg")], [annotation(1, 1, CAT)])
    elif format == "voc":
        voc(tmp_path, "a", CAT_ITEM)
        lists(tmp_path, trainval=f"a\n{name}\n")
    else:
        yolo(tmp_path, f"0 {share(CAT)}")
        (tmp_path / "data.yaml").write_text("train: list.txt\nnames: [cat]\n")
        (tmp_path / "list.txt").write_text(f"images/a.jpg\nimages/{name}.jpg\n")
    data = load(tmp_path)
    assert boxes_of(data) == {"a.jpg": [("cat", CAT)]}
    assert [p.what for p in data.problems if p.kind == "missing image file"] == [
        "there is no such file. The image is skipped."
    ]


@pytest.mark.parametrize("path", [LONG, f"{LONG}/set"])
def test_a_data_set_whose_name_no_file_can_have_does_not_exist(path: str) -> None:
    check = next(check for check in examine(path) if check.name == "data")
    assert not check.ok
    assert "does not exist" in f"{check.found} {check.advice}"


def test_a_key_that_is_twice_in_an_object_of_json_is_refused(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    file = coco(tmp_path / "l.json", [entry(1, "a.jpg")], [annotation(1, 1, CAT)])
    file.write_text(file.read_text().replace('"annotations": ', '"annotations": [], "annotations": '))
    with pytest.raises(UserError, match=r"l\.json .*the key 'annotations' occurs more than once"):
        load(file)
    twice = '"bbox": [1, 2, 3, 4], "bbox": [5, 6, 7, 8]'
    (tmp_path / "r.json").write_text(f'[{{"image_id": 1, "category_id": 1, {twice}, "score": 0.5}}]')
    (tmp_path / "l.jsonl").write_text('{"image": "a.jpg", "boxes": [], "scores": [], "boxes": [[1, 2, 3, 4]]}\n')
    for name in ("r.json", "l.jsonl"):
        with pytest.raises(UserError, match="occurs more than once"):
            open_detections(tmp_path / name)
