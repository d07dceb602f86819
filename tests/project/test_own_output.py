"""What rarebox itself writes below a folder of photos is never taken for photos, and the user is told."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarebox import config, external
from rarebox.core.files import mark_own
from rarebox.data.datasets import load
from rarebox.data.export import Annotations, export
from rarebox.data.image_list import left_out_for, named_images
from rarebox.data.images import image_files, left_out
from rarebox.data.tiles import Tiling, cut
from rarebox.errors import UserError
from rarebox.external.write_copies import write_copies
from rarebox.project.create import create
from rarebox.project.photo_folder import relocate
from rarebox.project.project import Project
from rarebox.types import ImageRecord

XML = (
    "<annotation><filename>a.png</filename><size><width>20</width><height>10</height></size><object><name>cat</name>"
    "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
)
NAMES = ["a.png", "b/c.png"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10), (number, 0, 0)).save(folder / name)
    (folder / "a.xml").write_text(XML)
    return folder


def exported(format: str) -> Callable[[Path, Path], None]:
    def write(photos: Path, to: Path) -> None:
        records = [ImageRecord(number, str(photos / name), 20, 10) for number, name in enumerate(NAMES, 1)]
        box, one = np.array([[1, 1, 9, 9]]), np.ones(1)
        labels = [
            Annotations(i.id, box, np.zeros(1, dtype=int), np.array(["human"]), one, one, one, True) for i in records
        ]
        export(to, format, ["cat"], records, labels, copy_images=True)

    return write


def copied(photos: Path, to: Path) -> None:
    write_copies(photos, to, ["flip"], 0)


def reported(photos: Path, to: Path) -> None:
    mark_own(to / "figures", "report")
    Image.new("RGB", (20, 10)).save(to / "figures" / "ap50.png")


def as_project(photos: Path, to: Path) -> None:
    create(to, photos, ["cat"])
    (to / "figures").mkdir()  # an earlier version left no mark there
    Image.new("RGB", (20, 10)).save(to / "figures" / "ap50.png")


WRITERS = {
    "export as COCO": exported("coco"),
    "export as VOC": exported("voc"),
    "export as YOLO": exported("yolo"),
    "export for CVAT": exported("cvat"),
    "views": copied,
    "report": reported,
    "project": as_project,
}


@pytest.fixture(params=[*WRITERS])
def out(request: pytest.FixtureRequest, photos: Path) -> Path:
    WRITERS[request.param](photos, photos / "b" / "out")
    return photos / "b" / "out"


def names(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in image_files(folder)]


def test_no_walk_takes_it_for_photos_unless_it_is_named(photos: Path, out: Path) -> None:
    assert names(photos) == NAMES
    assert [name for name, _ in named_images(photos, but=photos / "b" / "new")] == NAMES
    inside = [file for file in out.rglob("*.*") if file.suffix in (".png", ".jpg")]
    assert image_files(inside[0].parent) == sorted(inside)
    assert f"{len(inside)} image" in left_out(photos)
    assert str(out) in left_out(photos)


def test_a_data_set_of_files_beside_the_images_is_as_before(photos: Path, out: Path) -> None:
    data = load(photos)
    assert [Path(image.path).relative_to(photos).as_posix() for image in data.train.images] == NAMES
    problems = {problem.kind: problem.what for problem in data.problems}
    assert problems.keys() == {"image without annotation", "written by rarebox"}
    assert str(out) in problems["written by rarebox"]


def test_a_project_does_not_get_it(photos: Path, out: Path, tmp_path: Path) -> None:
    problems = create(tmp_path / "p", photos, ["cat"])
    assert [problem.kind for problem in problems] == ["written by rarebox"]
    WRITERS["views"](photos, photos / "copies")
    project = Project(tmp_path / "p")
    assert any("left out" in warning for warning in project.find_moved_images().warnings())
    assert project.add_new_images() == 0
    assert len(project.store.images()) == len(NAMES)
    project.store.close()


def test_boxes_are_not_ranked_there(photos: Path, out: Path, tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"image": "a.png", "boxes": [[1, 1, 9, 9]], "scores": [0.5], "labels": ["cat"]}\n')
    ranked = external.rank(file, None, None, photos, config.resolve("laptop"), 1)
    assert len(ranked.images) == len(NAMES)
    assert sum("left out" in note for note in ranked.notes) == 1


def test_a_folder_of_own_output_only_is_refused_by_name(photos: Path, tmp_path: Path) -> None:
    exported("coco")(photos, tmp_path / "all" / "export")
    with pytest.raises(UserError, match=r"no image in it. 2 images left out, .*export\. To use them, name that folder"):
        create(tmp_path / "project", tmp_path / "all", ["cat"])


def test_an_export_that_the_user_names_is_read(photos: Path, tmp_path: Path) -> None:
    WRITERS["export as YOLO"](photos, tmp_path / "out")
    assert names(tmp_path / "out") == ["images/a.png", "images/c.png"]
    assert len(load(tmp_path / "out").train.images) == len(NAMES)
    create(tmp_path / "p", tmp_path / "out", ["cat"])


def test_own_copies_in_a_project_that_is_served_again_are_not_new(photos: Path, tmp_path: Path) -> None:
    project = photos / "project"
    create(project, photos, ["cat"])
    reported(photos, project)
    opened = Project(project)
    assert opened.find_moved_images().warnings() == []  # nobody needs to hear of the project's own folder
    assert opened.add_new_images() == 0
    opened.store.close()


def test_errors_name_the_images_that_were_left_out(photos: Path, tmp_path: Path) -> None:
    create(tmp_path / "p", photos, ["cat"])
    below = tmp_path / "all"
    exported("voc")(photos, below / "sub" / "out")
    (below / "all.yaml").write_text("train: sub\nnames: [cat]\n")
    shutil.rmtree(photos)
    asked: list[Callable[[], object]] = [
        lambda: relocate(tmp_path / "p", below / "sub"),
        lambda: named_images(below / "sub"),
        lambda: load(below / "all.yaml"),
    ]
    for ask in asked:
        with pytest.raises(UserError, match=r"2 images left out, in folders that rarebox wrote.*name that folder"):
            ask()


def test_a_project_is_not_a_data_set_and_the_error_says_how_to_export(photos: Path, tmp_path: Path) -> None:
    create(tmp_path / "p", photos, ["cat"])
    with pytest.raises(UserError, match=r"is a project or run, not a data set\. Export its labels: rarebox export"):
        load(tmp_path / "p")


def test_an_unlabelled_image_of_an_export_is_not_called_one_without_objects(photos: Path, tmp_path: Path) -> None:
    records = [ImageRecord(number, str(photos / name), 20, 10) for number, name in enumerate(NAMES, 1)]
    one = np.ones(1)
    said = Annotations(1, np.array([[1, 1, 9, 9]]), np.zeros(1, dtype=int), np.array(["human"]), one, one, one, True)
    export(tmp_path / "out", "coco", ["cat"], records, [said])
    data = load(tmp_path / "out")
    assert (data.problems, data.train.incomplete) == ((), {2})


def test_pictures_that_cannot_be_read_are_named_with_the_way_out(photos: Path, tmp_path: Path) -> None:
    said = r"1 file of a kind that is not read, such as .*\.HEIC\. Convert such files to JPEG"
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "IMG_1.HEIC").touch()
    commands: list[Callable[[Path], object]] = [
        lambda folder: create(tmp_path / "p", folder, ["cat"]),
        lambda folder: named_images(folder, but=tmp_path / "out"),  # of rarebox predict and views
        lambda folder: cut(folder, tmp_path / "tiles", Tiling.of(64)),
    ]
    for command in commands:
        with pytest.raises(UserError, match=said):
            command(tmp_path / "phone")
    (photos / "IMG_1.HEIC").touch()
    assert re.search(said, left_out_for(photos, tmp_path / "out"))
    file = tmp_path / "found.jsonl"
    file.write_text('{"image": "a.png", "boxes": [[1, 2, 9, 9]], "scores": [0.9], "labels": ["cat"]}')
    notes = external.rank(file, None, None, photos, config.resolve("laptop"), 1).notes
    assert sum(bool(re.search(said, note)) for note in notes) == 1
