"""Pipes, devices, sockets and circular links among photos and labels are reported, and nothing waits for them."""

import faulthandler
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox.cli import options
from rarebox.core.files import read_bytes, real
from rarebox.core.text import read_text
from rarebox.data import cvat, datasets, labelstudio
from rarebox.data.detections import open_detections
from rarebox.data.images import UnreadableImage, image_size
from rarebox.errors import UserError
from rarebox.loop.run_folder import is_store
from rarebox.project.project import Project


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.path.relpath(path))  # the name of a socket must be short


STRANGE: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": make_loop,
}


@pytest.fixture(autouse=True)
def in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """End the process if a test waits for a pipe, because a hanging thread cannot be stopped."""
    monkeypatch.chdir(tmp_path)
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(params=STRANGE)
def make(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    return STRANGE[request.param]


def command(*words: str | Path, status: int = 0) -> str:
    """The output of a command, on both streams."""
    done = CliRunner().invoke(options.app, [str(word) for word in words])
    if status:
        assert isinstance(done.exception, UserError)
    else:
        assert done.exit_code == 0, (done.output, done.exception)
    return done.output


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (20, 10), (number, 0, 0)).save(tmp_path / "photos" / f"{number}.png")
    return tmp_path / "photos"


def test_init_lists_it_and_imports_the_rest(photos: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(photos / "strange.jpg")
    said = command("init", tmp_path / "project", "--images", photos, "--classes", "a")
    assert "1 x unreadable image" in said
    assert "strange.jpg" in said
    assert "4 photos" in said


def test_photos_are_found_again_beside_it(photos: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    command("init", tmp_path / "project", "--images", photos, "--classes", "a")
    make(photos / "strange.jpg")
    (photos / "0.png").rename(photos / "new.png")
    (photos / "1.png").unlink()
    make(photos / "1.png")  # where a photo was
    said = command("relocate", tmp_path / "project", photos)
    assert "3 photos found in" in said
    assert f"not found: {photos / '1.png'}" in said
    project = Project(tmp_path / "project")
    assert project.add_new_images() == 0
    assert not project.photos().is_there(project.store.images()[2])
    project.store.close()
    for how in ("--copy-images", "--format=voc"):
        assert "1 photo cannot be read" in command("export", tmp_path / "project", tmp_path / f"out{how}", how)


def test_init_refuses_it_in_place_of_labels(photos: Path, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "strange.json")
    command("init", tmp_path / "p", "--images", photos, "--labels", tmp_path / "strange.json", status=2)


@pytest.mark.parametrize(
    "reader",
    [
        read_bytes,
        read_text,
        open_detections,
        cvat.read,
        labelstudio.read,
        image_size,
        lambda path: datasets.load(path.with_name("data.yaml")),
    ],
)
def test_every_reader_refuses_it(
    tmp_path: Path, make: Callable[[Path], None], reader: Callable[[Path], object]
) -> None:
    make(tmp_path / "strange.json")
    make(tmp_path / "strange.txt")
    (tmp_path / "data.yaml").write_text("train: strange.txt\nval: strange.txt\nnames: [a]\n")
    with pytest.raises((OSError, UserError)):
        reader(tmp_path / "strange.json")


@pytest.mark.parametrize("form", ["yolo", "voc"])
def test_a_label_file_is_listed_and_the_rest_is_read(tmp_path: Path, make: Callable[[Path], None], form: str) -> None:
    images, labels, suffix = {
        "yolo": ("images/train", "labels/train", "txt"),
        "voc": ("JPEGImages", "Annotations", "xml"),
    }[form]
    for folder in (images, labels):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("a", "b"):
        Image.new("RGB", (20, 10)).save(tmp_path / images / f"{name}.png")
    make(tmp_path / labels / f"a.{suffix}")
    if form == "yolo":
        (tmp_path / labels / "b.txt").write_text("0 0.5 0.5 0.5 0.5\n")
        (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [fish]\n")
    else:
        box = "<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
        (tmp_path / labels / "b.xml").write_text(
            f"<annotation><filename>b.png</filename><object><name>fish</name>{box}</object></annotation>"
        )
    found = datasets.load(tmp_path / "data.yaml" if form == "yolo" else tmp_path)
    assert sum(len(one) for one in found.train.truth.values()) == 1
    assert any(f"a.{suffix}" in problem.where for problem in found.problems)


def test_a_path_that_cannot_be_resolved_is_kept_unchanged(tmp_path: Path) -> None:
    make_loop(tmp_path / "loop")
    for path in (tmp_path / "loop", tmp_path / "loop" / "x.jpg"):
        assert real(path) == Path(os.path.realpath(tmp_path)) / path.relative_to(tmp_path)
    assert real("a\0b") == Path.cwd() / "a\0b"
    assert not is_store(tmp_path / "loop")
    with pytest.raises(FileNotFoundError):
        read_bytes("a\0b")
    with pytest.raises(UnreadableImage):
        image_size(tmp_path / "loop")
