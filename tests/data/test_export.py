"""Exports are read back with their provenance, and nothing is overwritten or trained as background by accident."""

import errno
import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rarebox.data import export as export_module
from rarebox.data.datasets import load
from rarebox.data.export import Annotations, Exported, export, export_queries
from rarebox.errors import UserError
from rarebox.types import ImageRecord, Query, Source

CLASSES = ("zebra", "ant", "a cat & <dog>")
FORMATS = ("coco", "voc", "yolo")
TOLERANCE = {"coco": 1e-4, "voc": 1e-4, "yolo": 1e-3}  # pixels; as docs/data.md says


def annotations(
    image_id: int,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    source: Any = Source.HUMAN,
    complete: bool = True,
) -> Annotations:
    ones = np.ones(len(boxes))
    names = np.broadcast_to(np.asarray(source, dtype=np.str_), len(boxes))
    return Annotations(image_id, np.array(boxes), np.array(labels), names, ones, ones, ones, complete)


@pytest.fixture
def images(tmp_path: Path) -> list[ImageRecord]:
    """Three images of 100 x 50 pixels, two of which differ in name only by suffix and folder."""
    paths = [tmp_path / "photos" / name for name in ("b.png", "x/a.png", "y/a.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 50)).save(path)
    return [ImageRecord(id, str(path), 100, 50) for id, path in zip((7, 3, 12), paths, strict=True)]


@st.composite
def one_image(draw: st.DrawFn) -> tuple[int, int, list[list[float]], list[int]]:
    """Width, height, boxes at least half a pixel wide and high that lie inside, and their labels."""
    width, height = draw(st.integers(1, 5000)), draw(st.integers(1, 5000))

    def span(side: int) -> list[float]:
        start = draw(st.floats(0, side - 0.5, width=32))
        return [start, draw(st.floats(start + 0.5, side))]

    pairs = [(span(width), span(height)) for _ in range(draw(st.integers(0, 4)))]
    boxes = [[x[0], y[0], x[1], y[1]] for x, y in pairs]
    return width, height, boxes, [draw(st.integers(0, 2)) for _ in boxes]


@pytest.mark.parametrize("format", FORMATS)
@given(content=st.lists(one_image(), min_size=1, max_size=3))
@settings(max_examples=25, deadline=None)
def test_boxes_are_read_back(tmp_path_factory: pytest.TempPathFactory, format: str, content: list[Any]) -> None:
    """COCO keeps the ids; in the other formats, images are numbered in the order of their names."""
    folder = tmp_path_factory.mktemp("round")
    records, given_labels = [], []
    for number, (width, height, boxes, labels) in enumerate(content, 1):
        path = folder / f"{number}.png"
        Image.new("1", (width, height)).save(path)
        records.append(ImageRecord(number, str(path), width, height))
        given_labels.append(annotations(number, boxes, labels))
    export(folder / "out", format, CLASSES, records, given_labels)
    data = load(folder / "out")
    assert data.classes == CLASSES
    assert {p.kind for p in data.problems} <= {"image without annotation"}
    assert [(i.id, i.width, i.height) for i in data.train.images] == [(r.id, r.width, r.height) for r in records]
    for expected in given_labels:
        truth = data.train.truth[expected.image_id]
        assert truth.labels.tolist() == expected.labels.tolist()
        np.testing.assert_allclose(truth.boxes, expected.boxes, rtol=0, atol=TOLERANCE[format])
    shutil.rmtree(folder)


@pytest.mark.parametrize("format", FORMATS)
def test_a_photo_that_changed_since_it_was_labelled_is_reported(
    tmp_path: Path, images: list[ImageRecord], format: str
) -> None:
    labels = [annotations(image.id, [[1, 2, 30, 20]], [0]) for image in images]
    known = {images[1].id: sha256(b"the photo before it changed").hexdigest()}
    export(tmp_path / "out", format, CLASSES, images, labels, digests=known)
    places = [Path(image.path) for image in images]

    def changed(**more: Any) -> list[str]:
        problems = load(tmp_path / "out", **more).problems
        return sorted(Path(problem.where).name for problem in problems if problem.kind == "photo changed")

    assert changed() == ["a.png"]
    Image.new("RGB", (100, 50), "red").save(places[0])
    assert changed() == ["a.png", "b.png"]
    (tmp_path / "elsewhere").mkdir()
    Image.new("RGB", (100, 50), "red").save(moved := tmp_path / "elsewhere" / "b.png")
    places[0].unlink()
    assert changed(photos=[moved]) == ["a.png", "b.png"]  # `rarebox init --labels` looks for the photos by name


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("copy", [True, False])
def test_images_are_exported_under_unique_names(
    tmp_path: Path, images: list[ImageRecord], format: str, copy: bool
) -> None:
    done = export(
        tmp_path / "out",
        format,
        CLASSES,
        images,
        [annotations(i.id, [[1, 2, 3, 4]], [1]) for i in images],
        copy_images=copy,
    )
    assert done == Exported(tmp_path / "out", images=3, boxes=3, partly_labelled=0, unlabelled=0)
    data = load(tmp_path / "out")
    assert sorted(Path(i.path).name for i in data.train.images) == ["a-12.jpg", "a.png", "b.png"]
    assert all(Path(i.path).is_symlink() != copy for i in data.train.images)
    if format == "coco":
        assert [i.id for i in data.train.images] == [7, 3, 12]


def test_the_voc_file_has_one_based_pixels_and_difficult(tmp_path: Path, images: list[ImageRecord]) -> None:
    """In VOC, the whole 100 x 50 image is 1, 1, 100, 50."""
    boxes, sources = [[0, 0, 100, 50], [0.5, 1, 2, 2]], [Source.HUMAN, Source.DIFFICULT]
    export(tmp_path / "out", "voc", CLASSES, images[:1], [annotations(7, boxes, [2, 0], sources)])
    root = ET.parse(tmp_path / "out" / "Annotations" / "b.xml").getroot()
    edges = [[item.findtext(f"bndbox/{e}") for e in ("xmin", "ymin", "xmax", "ymax")] for item in root.iter("object")]
    assert edges == [["1", "1", "100", "50"], ["1.5", "2", "2", "2"]]
    assert [item.findtext("name") for item in root.iter("object")] == [CLASSES[2], CLASSES[0]]
    assert [item.findtext("difficult") for item in root.iter("object")] == ["0", "1"]
    assert [item.findtext("rarebox/source") for item in root.iter("object")] == ["human", "human"]
    assert (tmp_path / "out" / "ImageSets" / "Main" / "trainval.txt").read_text() == "b\n"
    assert load(tmp_path / "out").train.truth[1].difficult.tolist() == [False, True]


def test_the_yolo_file(tmp_path: Path, images: list[ImageRecord]) -> None:
    export(tmp_path / "out", "yolo", CLASSES, images[:1], [annotations(7, [[10, 10, 30, 20]], [2])])
    number, *shares = (tmp_path / "out" / "labels" / "b.txt").read_text().split()
    assert number == "2"
    assert [float(share) for share in shares] == [0.2, 0.3, 0.2, 0.2]
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert content == {"train": "images", "names": dict(enumerate(CLASSES))}


@pytest.mark.parametrize("include_pseudo", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_only_the_wanted_sources_are_written(
    tmp_path: Path, images: list[ImageRecord], format: str, include_pseudo: bool
) -> None:
    boxes = [[i, i, i + 5, i + 5] for i in range(4)]
    sources = [Source.HUMAN, Source.PSEUDO, Source.REJECTED, Source.DIFFICULT]
    export(
        tmp_path / "out",
        format,
        CLASSES,
        images[:1],
        [annotations(7, boxes, [0, 1, 2, 0], sources)],
        include_pseudo=include_pseudo,
    )
    truth = next(iter(load(tmp_path / "out").train.truth.values()))
    np.testing.assert_allclose(truth.boxes[:, 0], [0, 1, 3] if include_pseudo else [0, 3], atol=1e-3)
    assert truth.difficult.any() == (format != "yolo")


@pytest.mark.parametrize("format", ["labelstudio", "cvat"])
def test_a_labelling_tool_gets_no_pseudo_labels_as_a_persons(
    tmp_path: Path, images: list[ImageRecord], format: str
) -> None:
    with pytest.raises(UserError, match=r"Omit --include-pseudo, or use --queries"):
        export(tmp_path / "out", format, CLASSES, images[:1], [], include_pseudo=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_provenance_is_kept(tmp_path: Path, images: list[ImageRecord], format: str) -> None:
    """In rarebox.json for every format, in COCO also where COCO readers find it."""
    labels = Annotations(
        7,
        np.array([[1, 2, 3, 4.0]]),
        np.array([1]),
        np.array(["pseudo"]),
        np.array([0.9]),
        np.array([0.25]),
        np.array([0.1]),
        complete=False,
    )
    export(tmp_path / "out", format, CLASSES, images, [labels], include_pseudo=True)
    expected = {"source": "pseudo", "score": 0.9, "class_weight": 0.25, "box_weight": 0.1, "difficult": 0}
    mark = json.loads((tmp_path / "out" / "rarebox.json").read_text())
    entry = mark["images"]["b.png"]
    assert len(entry.pop("pseudo")) == 1
    assert entry.pop("photo") == sha256(Path(images[0].path).read_bytes()).hexdigest()
    assert entry == {"id": 7, "complete": False, "objects": [expected]}
    assert (tmp_path / "out" / "incomplete.txt").read_text() == "b.png\na.png\na-12.jpg\n"
    if format == "coco":
        content = json.loads((tmp_path / "out" / "annotations.json").read_text())
        assert content["annotations"][0]["attributes"] == expected
        assert content["annotations"][0]["iscrowd"] == 0
        assert content["annotations"][0]["bbox"] == [1, 2, 2, 2]
        assert content["images"][0]["attributes"] == {"complete": False}


def test_yolo_refuses_partial_labels_and_names_the_options(tmp_path: Path, images: list[ImageRecord]) -> None:
    labels = [annotations(7, [[1, 2, 3, 4]], [0]), annotations(3, [[1, 2, 3, 4]], [1], complete=False)]
    with pytest.raises(UserError) as caught:
        export(tmp_path / "out", "yolo", CLASSES, images, labels)
    message = str(caught.value)
    assert message.startswith("2 of 3 images are partially labelled or unlabelled (for example a.png)")
    for word in ("train as background", "--complete-only", "--include-pseudo", "--allow-partial", "incomplete.txt"):
        assert word in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ways_out", "files", "incomplete"),
    [({"complete_only": True}, 1, None), ({"allow_partial": True}, 3, 2), ({"include_pseudo": True}, 3, 2)],
)
def test_the_ways_out(
    tmp_path: Path, images: list[ImageRecord], ways_out: dict[str, bool], files: int, incomplete: int | None
) -> None:
    labels = [annotations(7, [[1, 2, 3, 4]], [0]), annotations(3, [[1, 2, 3, 4]], [1], complete=False)]
    export(tmp_path / "out", "yolo", CLASSES, images, labels, **ways_out)  # type: ignore[arg-type]
    assert len(list((tmp_path / "out" / "labels").iterdir())) == files
    listed = tmp_path / "out" / "incomplete.txt"
    assert (len(listed.read_text().splitlines()) if listed.exists() else None) == incomplete


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_without_any_box_is_not_partly_labelled(
    tmp_path: Path, images: list[ImageRecord], format: str
) -> None:
    """One fully labelled image without objects, one partially labelled, and one unlabelled with a rejected box."""
    labels = [
        annotations(7, [], []),
        annotations(3, [[1, 2, 3, 4]], [1], complete=False),
        annotations(12, [[1, 2, 3, 4]], [1], Source.REJECTED, complete=False),
    ]
    done = export(tmp_path / "out", format, CLASSES, images, labels, allow_partial=True)
    assert done == Exported(tmp_path / "out", images=3, boxes=1, partly_labelled=1, unlabelled=1)
    assert (tmp_path / "out" / "incomplete.txt").read_text() == "a.png\na-12.jpg\n"


def test_nothing_complete_is_nothing_to_export(tmp_path: Path, images: list[ImageRecord]) -> None:
    with pytest.raises(UserError, match=r"nothing to export to .*out: .*Drop --complete-only"):
        export(tmp_path / "out", "coco", CLASSES, images, [], complete_only=True)


def test_an_unknown_format_suggests_the_nearest(tmp_path: Path, images: list[ImageRecord]) -> None:
    with pytest.raises(UserError, match=r"unknown export format 'coca'; did you mean 'coco'\?"):
        export(tmp_path / "out", "coca", CLASSES, images, [])


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path, images: list[ImageRecord]) -> None:
    everything = [annotations(i.id, [[1, 2, 3, 4]], [0]) for i in images]
    export(tmp_path / "out", "yolo", CLASSES, images, everything)
    export(tmp_path / "out", "voc", CLASSES, images[:1], everything[:1])
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "Annotations",
        "ImageSets",
        "JPEGImages",
        "rarebox.json",
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


@pytest.mark.parametrize("copy", [True, False])
def test_an_export_of_an_export_to_the_same_place_keeps_the_images(
    tmp_path: Path, images: list[ImageRecord], copy: bool
) -> None:
    everything = [annotations(i.id, [[1, 2, 3, 4]], [0]) for i in images]
    export(tmp_path / "out", "coco", CLASSES, images, everything, copy_images=copy)
    again = load(tmp_path / "out").train.images
    export(tmp_path / "out", "yolo", CLASSES, again, everything)
    assert len(load(tmp_path / "out", check_pixels=True).train.images) == 3


@pytest.mark.parametrize("earlier", [True, False])
def test_other_files_are_never_overwritten(tmp_path: Path, images: list[ImageRecord], earlier: bool) -> None:
    everything = [annotations(i.id, [[1, 2, 3, 4]], [0]) for i in images]
    if earlier:
        export(tmp_path / "out", "coco", CLASSES, images, everything)
    (tmp_path / "out" / "mine").mkdir(parents=True)
    (tmp_path / "out" / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"out holds files that are not from a rarebox export, such as mine/thesis.txt"):
        export(tmp_path / "out", "coco", CLASSES, images, everything)
    assert (tmp_path / "out" / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_export_never_writes_through_a_link_to_a_photo(tmp_path: Path, images: list[ImageRecord]) -> None:
    """On a disk that treats two names as the same, the second photo finds the link to the first."""
    before = Path(images[0].path).read_bytes()
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "b.png").symlink_to(images[0].path)
    taken = export_module._Item(images[1], "b.png", annotations(3, [], []))
    for copy in (True, False):
        with pytest.raises(UserError, match=r"does not distinguish b\.png from the name of another image"):
            export_module._place_images(tmp_path / "stage", [taken], copy, tmp_path / "out")
    assert Path(images[0].path).read_bytes() == before


def test_files_added_while_an_export_is_written_are_kept(
    tmp_path: Path, images: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "out", "coco", CLASSES, images, [])
    mark = export_module._write_mark

    def slow(*given: Any) -> None:
        (tmp_path / "out" / "notes.txt").write_text("mine")
        mark(*given)

    monkeypatch.setattr(export_module, "_write_mark", slow)
    with pytest.raises(UserError, match=r"such as notes\.txt"):
        export(tmp_path / "out", "coco", CLASSES, images, [])
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


LABEL_FILES = {
    "coco": "annotations.json",
    "voc": "Annotations/b.xml",
    "yolo": "labels/b.txt",
    "cvat": "annotations.xml",
}


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("format", [*LABEL_FILES])
def test_what_was_changed_since_the_export_is_not_replaced(
    tmp_path: Path, images: list[ImageRecord], format: str, copy: bool
) -> None:
    everything, out = [annotations(i.id, [[1, 2, 3, 4]], [0]) for i in images], tmp_path / "out"
    file = out / LABEL_FILES[format]

    def again(labels: Sequence[Annotations]) -> None:
        export(out, format, CLASSES, images, labels, copy_images=copy)

    again(everything)
    written = file.read_text()
    again([annotations(i.id, [[1, 2, 3, 5]], [0]) for i in images])  # nobody has changed the files
    shutil.copytree(out, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)  # without times
    shutil.rmtree(out)
    (tmp_path / "copy").rename(out)
    again([annotations(i.id, [], []) for i in images])
    file.write_text("corrected by hand")
    with pytest.raises(UserError, match=rf"out: 1 file was changed since the export there: {LABEL_FILES[format]}\. "):
        again(everything)
    assert file.read_text() == "corrected by hand"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]
    file.write_text(written)  # what the new export holds, too: nothing would be lost
    again(everything)
    file.unlink()
    again(everything)


def test_an_export_names_at_most_three_changed_files(tmp_path: Path, images: list[ImageRecord]) -> None:
    more = [replace(images[0], id=number) for number in range(20, 24)]
    export(tmp_path / "out", "yolo", CLASSES, more, [annotations(i.id, [], []) for i in more])
    for file in (tmp_path / "out" / "labels").iterdir():
        file.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(UserError, match=r"4 files were changed.*: labels/[^,]*, labels/[^,]*, labels/[^,]*, …\. The"):
        export(tmp_path / "out", "yolo", CLASSES, more, [annotations(i.id, [], []) for i in more])


def test_an_export_with_a_list_of_files_only_is_replaced(tmp_path: Path, images: list[ImageRecord]) -> None:
    mark = tmp_path / "out" / "rarebox.json"
    export(tmp_path / "out", "coco", CLASSES, images, [])
    written = json.loads(mark.read_text())
    mark.write_text(json.dumps({**written, "files": [*written["files"]]}))  # as version 0.1.0 wrote it
    export(tmp_path / "out", "coco", CLASSES, images, [])
    assert json.loads(mark.read_text())["files"].keys() == written["files"].keys()


def test_what_a_killed_export_left_is_removed(tmp_path: Path, images: list[ImageRecord]) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    for folder in (f".out.{ended.pid}.new", f".out.{os.getppid()}.new", f".other.{ended.pid}.new", ".out.mine.new"):
        (tmp_path / folder / "images").mkdir(parents=True)
        (tmp_path / folder / "images" / "b.png").write_text("half")
    export(tmp_path / "out", "coco", CLASSES, images, [])
    kept = [f".other.{ended.pid}.new", f".out.{os.getppid()}.new", ".out.mine.new", "out", "photos"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)
    (tmp_path / "out").rename(tmp_path / f".out.{ended.pid}.old")  # killed between the two last steps
    (tmp_path / f".out.{ended.pid}.old" / "annotations.json").write_text("corrected by hand")
    with pytest.raises(UserError, match="1 file was changed"):
        export(tmp_path / "out", "coco", CLASSES, images, [])
    assert (tmp_path / "out" / "annotations.json").read_text() == "corrected by hand"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(kept)


def test_an_export_to_a_link_replaces_what_the_link_leads_to(tmp_path: Path, images: list[ImageRecord]) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "out").symlink_to("far")
    for _ in range(2):
        export(tmp_path / "out", "coco", CLASSES, images, [])
    assert (tmp_path / "out").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["far", "out", "photos"]


def test_a_file_in_the_way(tmp_path: Path, images: list[ImageRecord]) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"out is a file\. Name a folder"):
        export(tmp_path / "out", "coco", CLASSES, images, [])


def test_an_empty_folder_is_used(tmp_path: Path, images: list[ImageRecord]) -> None:
    (tmp_path / "out").mkdir()
    export(tmp_path / "out", "coco", CLASSES, images, [])
    assert (tmp_path / "out" / "annotations.json").exists()


def test_a_full_disk_leaves_the_earlier_export(
    tmp_path: Path, images: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    export(tmp_path / "out", "coco", CLASSES, images, [annotations(7, [[1, 2, 3, 4]], [0])])
    before = (tmp_path / "out" / "annotations.json").read_text()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(export_module, "_write_mark", full)
    with pytest.raises(UserError, match=r"out cannot be written \(.*No space left on device\)\. Free some space"):
        export(tmp_path / "out", "coco", CLASSES, images, [])
    assert (tmp_path / "out" / "annotations.json").read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "photos"]


@pytest.mark.parametrize("format", [*FORMATS, "labelstudio", "cvat"])
@pytest.mark.parametrize("copy", [True, False])
def test_photos_that_cannot_be_read_are_named_and_all_labels_are_there(
    tmp_path: Path, images: list[ImageRecord], format: str, copy: bool
) -> None:
    gone, folder, _ = (Path(image.path) for image in images)
    gone.unlink()
    folder.unlink()
    folder.mkdir()
    said = [annotations(i.id, [[1, 2, 3, 4]], [1]) for i in images]
    done = export(tmp_path / "out", format, CLASSES, images, said, copy_images=copy)
    assert (done.images, done.boxes) == (3, 3)
    assert list(done.missing) == [f"{gone}: No such file or directory", f"{folder}: Is a directory"]
    assert (tmp_path / "out" / "missing.txt").read_text(encoding="utf-8").splitlines() == list(done.missing)
    placed = {file.name for file in (tmp_path / "out").rglob("*.[jp][pn]g")}
    assert placed == {"a-12.jpg"}
    mark = json.loads((tmp_path / "out" / "rarebox.json").read_text(encoding="utf-8"))
    assert {file: len(one["objects"]) for file, one in mark["images"].items()} == {
        "b.png": 1,
        "a.png": 1,
        "a-12.jpg": 1,
    }
    again = export(tmp_path / "out", format, CLASSES, images[2:], said[2:], copy_images=copy)
    assert again.missing == ()
    assert not (tmp_path / "out" / "missing.txt").exists()


def test_a_photo_that_no_server_delivers_is_named(tmp_path: Path, images: list[ImageRecord]) -> None:
    far = ImageRecord(99, "memory://nowhere/c.png", 100, 50)
    done = export(tmp_path / "out", "coco", CLASSES, [*images, far], [])
    assert [line.split(": ")[0] for line in done.missing] == [far.path]
    without = export(tmp_path / "out", "coco", CLASSES, [*images, far], [], photos=False)
    assert without.missing == ()
    assert not (tmp_path / "out" / "images").exists()


def test_questions_about_a_missing_photo(tmp_path: Path, images: list[ImageRecord]) -> None:
    Path(images[0].path).unlink()
    asked = [Query(i.id, np.array([1, 2, 3, 4], dtype=np.float32), 0, id=i.id) for i in images]
    done = export_queries(tmp_path / "out", "labelstudio", CLASSES, images, asked)
    assert (done.boxes, done.missing) == (3, (f"{images[0].path}: No such file or directory",))


def test_wrong_columns_are_refused() -> None:
    one = np.ones(1)
    with pytest.raises(ValueError, match=r"labels must have shape \(1,\), got \(2,\)"):
        Annotations(1, np.array([[1, 2, 3, 4.0]]), np.array([1, 2]), np.array(["human"]), one, one, one, True)
    with pytest.raises(ValueError, match=r"source must be one of .*, got guess"):
        annotations(1, [[1, 2, 3, 4]], [1], "guess")
    with pytest.raises(ValueError, match=r"labels must be in \[0, 3\)"):
        export("out", "coco", CLASSES, [], [annotations(1, [[1, 2, 3, 4]], [3])])
    with pytest.raises(ValueError, match="all of them in the export"):
        export("out", "coco", CLASSES, [], [annotations(1, [[1, 2, 3, 4]], [2])])


def two_exports(folder: Path, format: str) -> tuple[Path, Path]:
    """Exports of two projects: one of a partially labelled image a1, one of a fully labelled image b1."""
    found: list[Path] = []
    for name, complete in (("a", False), ("b", True)):
        photo = folder / name / f"{name}1.png"
        photo.parent.mkdir()
        Image.new("RGB", (100, 50)).save(photo)
        record = ImageRecord(1, str(photo), 100, 50)
        labels = [annotations(1, [[10, 10, 40, 40]], [0], complete=complete)]
        done = export(folder / f"{name}-out", format, ["cat"], [record], labels, allow_partial=True, copy_images=True)
        found.append(done.folder)
    return found[0], found[1]


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("format", FORMATS)
def test_a_photo_of_another_export_in_the_folder_is_partially_labelled(
    tmp_path: Path, format: str, listed: bool
) -> None:
    both, second = two_exports(tmp_path, format)
    shutil.copytree(second, both, dirs_exist_ok=True)
    if format == "voc":
        shutil.rmtree(both / "ImageSets")  # else the list of the second export leaves out the photos of the first
    if format == "coco":
        content = json.loads((both / "annotations.json").read_text())
        (image,) = content["images"]
        content["images"].append({**image, "id": 2, "file_name": "images/a1.png", "attributes": {}})
        content["annotations"].append({**content["annotations"][0], "id": 2, "image_id": 2})
        (both / "annotations.json").write_text(json.dumps(content))
    if not listed:
        (both / "incomplete.txt").unlink()
    data = load(both)
    assert [Path(image.path).name for image in data.train.images] == ["b1.png", "a1.png"][
        :: 1 if format == "coco" else -1
    ]
    partial = [Path(image.path).name for image in data.train.images if image.id in data.train.incomplete]
    assert partial == ["a1.png"]
    unknown = [Path(problem.where).name for problem in data.problems if problem.kind == "completeness unknown"]
    assert unknown == ["a1.png"] * (format != "coco" or not listed)


def test_exports_below_a_data_yaml_keep_their_marks(tmp_path: Path) -> None:
    two_exports(tmp_path, "yolo")
    (tmp_path / "data.yaml").write_text("train: [a-out/images, b-out/images]\nnames: [cat]\n")
    data = load(tmp_path / "data.yaml")
    assert [Path(i.path).name for i in data.train.images if i.id in data.train.incomplete] == ["a1.png"]


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_a_photo_of_an_export_without_its_label_file_is_not_without_objects(tmp_path: Path, format: str) -> None:
    _, folder = two_exports(tmp_path, format)
    Image.new("RGB", (100, 50)).save(folder / ("JPEGImages" if format == "voc" else "images") / "new.png")
    if format == "voc":
        shutil.rmtree(folder / "ImageSets")
    data = load(folder)
    assert [Path(i.path).name for i in data.train.images if i.id in data.train.incomplete] == ["new.png"]
