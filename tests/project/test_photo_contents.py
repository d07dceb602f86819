"""Labels follow the content of a photo, not its path: swapped, renumbered, edited and replaced photos."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.core import files
from rarebox.data import contents as hashes
from rarebox.data.contents import Contents
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.project.run import open_project
from rarebox.types import Answer, Query, Verdict
from tests.house import make_project, opened
from tests.serving import Served

COUNT = 6


def name(number: int) -> str:
    return f"frame_{number}.png"


def draw(number: int, size: tuple[int, int] = (20, 10)) -> Image.Image:
    """The photo with that number, which determines its red value."""
    return Image.new("RGB", size, (10 * number, 0, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(1, COUNT + 1):
        draw(number).save(tmp_path / "photos" / name(number))
    return tmp_path / "photos"


@pytest.fixture
def root(folder: Path, tmp_path: Path) -> Path:
    """A project in which photo n has a box whose left edge is at n."""
    root = tmp_path / "project"
    create(root, folder, ["fish"])
    with Store(root / "labels.sqlite") as store:
        store.open_cycle(1)
        asked = store.ask(1, [Query(image_id) for image_id in store.images()])
        store.record(
            [Answer(query.id, np.array([[query.image_id, 1, 9, 9]]), np.array([0]), Verdict.OBJECT) for query in asked]
        )
    return root


def command(*words: str | Path) -> str:
    """The output of a command on both streams."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def exported(root: Path, to: Path) -> dict[int, list[float]]:
    """The photos of an export, by their number, with the left edges of their boxes."""
    command("export", root, to, "--format", "coco", "--copy-images")
    content = json.loads((to / "annotations.json").read_text())
    found = {}
    for image in content["images"]:
        if (file := to / image["file_name"]).exists():
            with Image.open(file) as picture:
                red = picture.convert("RGB").getpixel((0, 0))
            assert isinstance(red, tuple)
            boxes = [one["bbox"][0] for one in content["annotations"] if one["image_id"] == image["id"]]
            found[red[0] // 10] = boxes
    return found


def start(root: Path) -> int:
    """The first step of `serve`. Returns the number of new photos."""
    project = Project(root)
    try:
        return project.add_new_images()
    finally:
        project.store.close()


def paths(root: Path) -> dict[int, str]:
    with Store(root / "labels.sqlite") as store:
        return {i: image.path for i, image in store.images().items()}


def swap(folder: Path, one: int, other: int) -> None:
    (folder / name(one)).rename(folder / "aside")
    (folder / name(other)).rename(folder / name(one))
    (folder / "aside").rename(folder / name(other))


LABELS = {number: [float(number)] for number in range(1, COUNT + 1)}


def nothing(root: Path) -> None:
    pass


@pytest.mark.parametrize("indexed", [True, False], ids=["index", "no index"])
@pytest.mark.parametrize(
    "first",
    [start, lambda root: command("relocate", root, root.parent / "photos"), nothing],
    ids=["serve", "relocate", "export alone"],
)
def test_labels_follow_photos_that_change_places(
    root: Path,
    folder: Path,
    tmp_path: Path,
    first: Callable[[Path], object],
    indexed: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hashes, "JUST_NOW", -1)  # the photos are seconds old, so their hashes are not kept
    start(root)
    assert len(json.loads((root / "photos.json").read_text())) == COUNT
    if not indexed:
        (root / "photos.json").unlink()
    swap(folder, 2, 5)
    first(root)
    assert exported(root, tmp_path / "out") == LABELS
    assert start(root) == 0
    assert len(set(paths(root).values())) == COUNT


def test_labels_follow_photos_that_are_renumbered_after_a_deletion(root: Path, folder: Path, tmp_path: Path) -> None:
    (folder / name(2)).rename(tmp_path / "deleted.png")
    for number in range(3, COUNT + 1):
        (folder / name(number)).rename(folder / name(number - 1))
    said = command("relocate", root, folder)
    assert f"{COUNT - 1} photos found in" in said
    assert "cannot be found, and another photo has taken its path: frame_2 (missing, image 2).png." in said
    assert start(root) == 0
    assert exported(root, tmp_path / "out") == {n: boxes for n, boxes in LABELS.items() if n != 2}
    assert len(set(paths(root).values())) == COUNT
    (tmp_path / "deleted.png").rename(folder / name(COUNT))  # back under another name
    assert start(root) == 0
    assert exported(root, tmp_path / "out") == LABELS


def test_a_photo_copied_over_another_does_not_get_its_label(root: Path, folder: Path, tmp_path: Path) -> None:
    (folder / name(3)).write_bytes((folder / name(4)).read_bytes())
    assert start(root) == 1  # a second copy of photo 4
    assert not Path(paths(root)[3]).exists()
    assert 3 not in exported(root, tmp_path / "out")


@pytest.mark.parametrize("how", ["serve", "relocate", "export"])
def test_a_photo_that_was_edited_keeps_its_labels_and_is_named(
    root: Path, folder: Path, tmp_path: Path, how: str
) -> None:
    before = (folder / name(4)).read_bytes()
    edited = draw(4)
    edited.putpixel((19, 9), (0, 255, 0))
    edited.save(folder / name(4))

    def said(times: int) -> str:
        if how == "serve":
            with Served(root) as server:
                return "\n".join(server.said)
        return (
            command("relocate", root, folder) if how == "relocate" else command("export", root, tmp_path / f"{times}")
        )

    warning = "1 photo changed since it was labelled: frame_4.png. Check the labels or restore the files"
    for times in range(2):  # repeated until somebody fixes it
        assert warning in said(times)
        assert start(root) == 0
    assert exported(root, tmp_path / "out") == LABELS
    (folder / name(4)).write_bytes(before)
    assert "changed" not in said(2)


def test_a_photo_of_another_size_gets_no_labels(root: Path, folder: Path, tmp_path: Path) -> None:
    (folder / name(4)).rename(tmp_path / "aside.png")
    draw(9, size=(30, 10)).save(folder / name(4))
    assert start(root) == 1
    assert exported(root, tmp_path / "out") == {**{n: b for n, b in LABELS.items() if n != 4}, 9: []}
    (tmp_path / "aside.png").rename(folder / name(4))
    assert start(root) == 0
    assert exported(root, tmp_path / "out") == LABELS


def test_a_touched_photo_is_the_same_photo(root: Path, folder: Path) -> None:
    start(root)
    for file in folder.iterdir():
        os.utime(file, (0, 0))
    said = command("relocate", root, folder)
    assert "changed" not in said
    assert f"{COUNT} photos found in" in said


def test_neither_training_nor_the_page_shows_a_photo_that_has_taken_anothers_path(tmp_path: Path) -> None:
    project = make_project(tmp_path, images=3)
    with opened(project) as house:
        one, other = (tmp_path / "photos" / f"photo0{number}.jpg" for number in (1, 2))
        browser = house.browser()
        assert browser.http.get("/api/images/1").status_code == 200
        content = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(content)
        for number, status in ((1, 404), (2, 404), (3, 200)):
            assert browser.http.get(f"/api/images/{number}").status_code == status
        run = open_project(project.folder, project.settings, project.store, lambda *_: None)
        assert [record.id for record in run.pool.records] == [3]
        assert browser.http.get("/api/export").status_code == 200  # which searches for them
        assert [browser.http.get(f"/api/images/{number}").status_code for number in (1, 2)] == [200, 200]


def test_import_refuses_a_name_that_two_photos_have_had(root: Path, folder: Path, tmp_path: Path) -> None:
    swap(folder, 1, 2)
    box = '<box label="fish" xtl="3" ytl="3" xbr="7" ybr="7" occluded="0"/>'
    (tmp_path / "cvat.xml").write_text(
        f'<annotations><image id="0" name="{name(1)}" width="20" height="10">{box}</image></annotations>'
    )
    refused = CliRunner().invoke(app, ["import", str(root), str(tmp_path / "cvat.xml"), "--format", "cvat"])
    assert isinstance(refused.exception, UserError)  # the file may be from before or after the swap
    assert f"'{name(1)}' is the name of image 2 and is or was the name of image 1" in str(refused.exception)
    assert exported(root, tmp_path / "out") == LABELS


def test_rank_reads_the_labels_of_photos_that_are_renumbered(root: Path, folder: Path, tmp_path: Path) -> None:
    """Only photo 2 is unlabelled; a deletion gives it the name of photo 1."""
    with Store(root / "labels.sqlite") as store:
        nobody = np.zeros((0, 4)), np.zeros(0, np.int64)
        store.record([Answer(2, *nobody, Verdict.WITHDRAWN)])
    start(root)  # as after any command that has read the photos
    for number in range(1, COUNT):
        (folder / name(number + 1)).rename(folder / name(number))
    found = {"width": 20, "height": 10, "boxes": [[2, 1, 9, 9]], "scores": [0.6], "labels": ["fish"]}
    lines = [json.dumps({"image": name(number), **found}) for number in (1, 2)]
    (tmp_path / "found.jsonl").write_text("\n".join(lines) + "\n")
    words = ("--detections", tmp_path / "found.jsonl", "--labels", root, "--budget", "9", "--to", tmp_path / "l.json")
    command("rank", *words, "--format", "coco")
    listed = json.loads((tmp_path / "l.json").read_text())
    path_of = {image["id"]: Path(image["file_name"]).name for image in listed["images"]}
    assert [path_of[one["image_id"]] for one in listed["annotations"]] == [name(1)]


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "JUST_NOW", -1)
    file, index = tmp_path / "a.png", tmp_path / "photos.json"
    file.write_bytes(b"one")
    first = Contents(index)
    known = first.of(file)
    first.save()
    read: list[str] = []
    real = files.open_regular
    monkeypatch.setattr(hashes, "open_regular", lambda path: (read.append(str(path)), real(path))[1])
    assert Contents(index).of(file) == known
    assert read == []
    file.write_bytes(b"two")
    assert Contents(index).of(file) != known
    for damage in ("", "[]", "{}", '{"x": 1}', f'{{"{file}": [[1, 2, 3], 5]}}', "[" * 100_000):
        index.write_text(damage)
        assert Contents(index).of(file) == Contents().of(file)


def test_a_hash_of_a_file_that_has_only_just_changed_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"one")
    contents = Contents()
    known, before = contents.of(file), file.stat()
    file.write_bytes(b"two")  # of the same size, in the same inode
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert contents.of(file) != known


def test_a_path_with_a_nul_does_not_keep_the_others_from_being_exported(root: Path, tmp_path: Path) -> None:
    with Store(root / "labels.sqlite") as store:
        store.move_images({3: "x\0y"})
    assert exported(root, tmp_path / "out") == LABELS  # its photo is found by its content
    with Store(root / "labels.sqlite") as store:
        gone = Path(store.images()[3].path)
        store.move_images({3: "x\0y"})
    gone.unlink()
    assert exported(root, tmp_path / "out") == {n: boxes for n, boxes in LABELS.items() if n != 3}
    assert start(root) == 0
