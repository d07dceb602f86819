"""VOC folders, their 1-based pixels, and the download."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarebox.data import voc
from rarebox.data.datasets import load
from rarebox.errors import UserError


def label(name: str = "cat", box: str = "11 21 40 30", difficult: int = 0) -> str:
    edges = "".join(
        f"<{tag}>{at}</{tag}>" for tag, at in zip(("xmin", "ymin", "xmax", "ymax"), box.split(), strict=True)
    )
    return f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{edges}</bndbox></object>"


def add(year: Path, stem: str, *objects: str, image: bool = True, size: tuple[int, int] = (100, 50)) -> None:
    """An image of 100 x 50 pixels with its label file."""
    for folder in ("Annotations", "JPEGImages"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    text = f"<annotation><filename>{stem}.jpg</filename>{sides}{''.join(objects)}</annotation>"
    (year / "Annotations" / f"{stem}.xml").write_text(text)
    if image:
        Image.new("RGB", (100, 50)).save(year / "JPEGImages" / f"{stem}.jpg")


def image_set(year: Path, name: str, *stems: str) -> None:
    (year / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    (year / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def devkit(folder: Path) -> None:
    """2007 with trainval 1 and test 2; 2012 with trainval 3 and a test set without labels."""
    for year, train, test in (("VOC2007", "000001", "000002"), ("VOC2012", "2008_000003", "2008_000004")):
        add(folder / year, train, label())
        add(folder / year, test, label("dog"))
        image_set(folder / year, "trainval", train)
        image_set(folder / year, "test", test)
    (folder / "VOC2012" / "Annotations" / "2008_000004.xml").unlink()


def test_the_first_corner_moves_by_one_pixel() -> None:
    """The box of the first pixel alone, and one that covers a whole 4 x 3 image."""
    written = np.array([[1.0, 1, 1, 1], [1, 1, 4, 3]])
    assert voc.to_zero_based(written).tolist() == [[0, 0, 1, 1], [0, 0, 4, 3]]
    assert np.array_equal(voc.to_one_based(voc.to_zero_based(written)), written)


@pytest.mark.parametrize("inside", ["", "VOCdevkit"])
def test_the_union_trains_on_both_years_and_tests_on_2007(tmp_path: Path, inside: str) -> None:
    devkit(tmp_path / inside)
    data = load(tmp_path)
    assert data.test is not None
    assert [(i.id, Path(i.path).stem) for i in data.train.images] == [(1, "000001"), (2, "2008_000003")]
    assert [(i.id, Path(i.path).stem) for i in data.test.images] == [(3, "000002")]
    assert data.train.truth[1].boxes.tolist() == [[10, 20, 40, 30]]
    assert data.classes == ("cat", "dog")
    assert [p.kind for p in data.problems] == ["class only in test"]


def test_an_object_that_is_written_twice_is_one_object(tmp_path: Path) -> None:
    devkit(tmp_path)
    add(tmp_path / "VOC2007", "000001", label(), label(), label("dog"))
    data = load(tmp_path / "VOC2007")
    assert len(data.train.truth[data.train.images[0].id]) == 2
    assert "object listed twice" in [problem.kind for problem in data.problems]


def test_a_single_year(tmp_path: Path) -> None:
    devkit(tmp_path)
    for year, has_test in (("VOC2007", True), ("VOC2012", False)):
        data = load(tmp_path / year)
        assert len(data.train.images) == 1
        assert (data.test is not None) == has_test
    assert [p.kind for p in data.problems] == ["split not used"]


def test_train_and_val_without_trainval(tmp_path: Path) -> None:
    for stem in "ab":
        add(tmp_path, stem, label())
    image_set(tmp_path, "train", "a")
    image_set(tmp_path, "val", "b")
    data = load(tmp_path)
    assert data.test is not None
    assert [Path(i.path).stem for i in (*data.train.images, *data.test.images)] == ["a", "b"]


def test_a_plain_folder_is_all_training_data(tmp_path: Path) -> None:
    add(tmp_path, "b", label("dog", difficult=1), label("cat"))
    add(tmp_path, "a photo", label())
    data = load(tmp_path)
    assert data.test is None
    assert [Path(i.path).stem for i in data.train.images] == ["a photo", "b"]
    assert data.train.truth[2].labels.tolist() == [1, 0]
    assert data.train.truth[2].difficult.tolist() == [True, False]


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    head = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    add(tmp_path, "a", label().replace("</object>", head + "</object>"))
    data = load(tmp_path)
    assert data.classes == ("cat",)
    assert len(data.train.truth[1]) == 1


def test_what_cannot_be_used_is_listed(tmp_path: Path) -> None:
    add(
        tmp_path,
        "a",
        label(),
        label(box="0 1 9 9"),
        label(box="9 9 4 4"),
        label(box="nan 1 2 2"),
        label(box="200 1 210 9"),
    )
    add(tmp_path, "b", label(""), label(box="1 2 x 4"), "<object><name>cat</name></object>")
    add(tmp_path, "c", label(), image=False)
    add(tmp_path, "d", label())
    (tmp_path / "Annotations" / "d.xml").unlink()
    add(tmp_path, "e", label(), size=(640, 480))
    (tmp_path / "Annotations" / "f.xml").write_text("<annotation>\n<object>")
    Image.new("RGB", (9, 9)).save(tmp_path / "JPEGImages" / "f.jpg")
    data = load(tmp_path)
    assert [Path(i.path).stem for i in data.train.images] == ["a", "b", "d", "e"]
    assert data.train.truth[1].boxes.tolist() == [[10, 20, 40, 30], [0, 0, 9, 9]]
    assert sorted((p.kind, Path(p.where.split(":")[0]).stem) for p in data.problems) == [
        ("box clipped", "a"),
        ("box dropped", "a"),
        ("box dropped", "a"),
        ("box dropped", "a"),
        ("box dropped", "b"),
        ("box dropped", "b"),
        ("image size differs", "e"),
        ("image without annotation", "d"),
        ("missing image file", "c"),
        ("unknown category", "b"),
        ("unreadable annotation", "f"),
    ]


def test_if_every_label_file_is_broken_the_first_is_named(tmp_path: Path) -> None:
    for stem in "ab":
        add(tmp_path, stem)
        (tmp_path / "Annotations" / f"{stem}.xml").write_text("<annotation>\n<object>\n</annotation>")
    with pytest.raises(UserError, match=r"none of the 2 label files can be read: .*a\.xml, line 3: .*Repair the file"):
        load(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_entity_bombs_are_refused_unparsed(tmp_path: Path, encoding: str) -> None:
    add(tmp_path, "a")
    bomb = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>'
    (tmp_path / "Annotations" / "a.xml").write_text(bomb, encoding=encoding)
    with pytest.raises(UserError, match=r"a\.xml: it declares a DOCTYPE or entities"):
        load(tmp_path)


def test_an_unknown_encoding_is_named(tmp_path: Path) -> None:
    add(tmp_path, "a")
    (tmp_path / "Annotations" / "a.xml").write_text('<?xml version="1.0" encoding="klingon"?><annotation/>')
    with pytest.raises(UserError, match=r"a\.xml.*encoding"):
        load(tmp_path)


def test_missing_training_images_are_reported(tmp_path: Path) -> None:
    add(tmp_path, "a", label())
    image_set(tmp_path, "test", "a")
    with pytest.raises(UserError, match="lists no training images"):
        load(tmp_path)


# ---- the download, from a server in this process


def archive(*stems: str, name: str) -> bytes:
    """A tar like the published ones: VOCdevkit/VOC2007 with one image set."""
    buffer = io.BytesIO()
    picture = io.BytesIO()
    Image.new("RGB", (100, 50)).save(picture, "jpeg")
    files = {f"ImageSets/Main/{name}.txt": "\n".join(stems).encode()}
    for stem in stems:
        files[f"JPEGImages/{stem}.jpg"] = picture.getvalue()
        files[f"Annotations/{stem}.xml"] = f"<annotation>{label()}</annotation>".encode()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file, content in files.items():
            entry = tarfile.TarInfo(f"VOCdevkit/VOC2007/{file}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


TRAIN, TEST = voc.ARCHIVES["voc2007"]


class Server:
    """Serves the archives; with ``cut`` it stops after that many bytes."""

    def __init__(self) -> None:
        self.files = {TRAIN: archive("000001", name="trainval"), TEST: archive("000002", name="test")}
        self.cut: int | None = None
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.asked.append((name, wanted))
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        content = self.files[name][start:]
        handler.send_response(416 if wanted and not content else 206 if start else 200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: self.cut])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(voc, "HOST", f"http://127.0.0.1:{http.server_port}")
        for name, content in served.files.items():
            monkeypatch.setitem(voc.MD5, name, hashlib.md5(content).hexdigest())
        yield served
        http.shutdown()
        thread.join()


def check(root: Path) -> None:
    data = load(root)
    assert data.test is not None
    assert [Path(i.path).stem for i in (*data.train.images, *data.test.images)] == ["000001", "000002"]


def test_voc_is_downloaded_once(tmp_path: Path, server: Server) -> None:
    check(tmp_path / "voc2007")
    check(tmp_path / "voc2007")
    assert server.asked == [(TRAIN, None), (TEST, None)]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(tmp_path: Path, server: Server, ranges: bool) -> None:
    root, server.cut, server.ranges = tmp_path / "voc2007", 1000, ranges
    with pytest.raises(UserError, match=r"connection was closed too early.*Try again to resume"):
        load(root)
    server.cut = None
    check(root)
    assert server.asked == [(TRAIN, None), (TRAIN, "bytes=1000-"), (TEST, None)]


def test_a_download_that_was_killed_before_it_was_renamed(tmp_path: Path, server: Server) -> None:
    (tmp_path / "voc2007").mkdir()
    (tmp_path / "voc2007" / f"{Path(TRAIN).name}.part").write_bytes(server.files[TRAIN])
    check(tmp_path / "voc2007")


def test_archives_copied_by_hand_are_used(tmp_path: Path, server: Server) -> None:
    (tmp_path / "voc2007").mkdir()
    for name, content in server.files.items():
        (tmp_path / "voc2007" / Path(name).name).write_bytes(content)
    check(tmp_path / "voc2007")
    assert server.asked == []


def test_a_wrong_archive_is_named(tmp_path: Path, server: Server) -> None:
    (tmp_path / "voc2007").mkdir()
    wrong = tmp_path / "voc2007" / Path(TRAIN).name
    wrong.write_bytes(b"something else")
    with pytest.raises(UserError, match=rf"{wrong.name} is not the published file .*Delete it and try again"):
        load(tmp_path / "voc2007")
    assert wrong.exists()
    wrong.unlink()
    server.files[TRAIN] = b"something else"
    with pytest.raises(UserError, match=rf"{wrong.name} is not the published file"):
        load(tmp_path / "voc2007")
    assert list((tmp_path / "voc2007").iterdir()) == []


def test_archives_cannot_write_elsewhere(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../escaped.txt"))
    server.files[TRAIN] = buffer.getvalue()
    monkeypatch.setitem(voc.MD5, TRAIN, hashlib.md5(buffer.getvalue()).hexdigest())
    with pytest.raises(UserError, match=r"cannot be unpacked: .*escaped\.txt would lie outside"):
        load(tmp_path / "voc2007")
    assert not (tmp_path / "escaped.txt").exists()


@pytest.mark.parametrize("kind", ["a file", "a link to itself", "a link elsewhere"])
def test_an_obstacle_to_unpacking_is_named(tmp_path: Path, server: Server, kind: str) -> None:
    way = tmp_path / "voc2007" / "VOCdevkit"
    way.parent.mkdir()
    if kind == "a file":
        way.touch()
    else:
        way.symlink_to(way if kind == "a link to itself" else tmp_path)
    (way.parent / Path(TRAIN).name).write_bytes(server.files[TRAIN])
    with pytest.raises(UserError, match=r"cannot be unpacked.*VOCdevkit"):
        load(tmp_path / "voc2007")


def test_without_a_network_the_error_says_which_files_go_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(voc, "HOST", "http://127.0.0.1:1")
    with pytest.raises(UserError) as caught:
        load(tmp_path / "voc0712")
    message = str(caught.value)
    assert all(f"{voc.HOST}/{name}" in message for name in voc.ARCHIVES["voc0712"])
    assert f"put them into the folder {tmp_path / 'voc0712'}" in message
    assert not (tmp_path / "voc0712").exists()


def test_files_added_by_macos_are_neither_images_nor_labels(tmp_path: Path) -> None:
    add(tmp_path, "a", label())
    for file in ("Annotations/._a.xml", "JPEGImages/._a.jpg", "JPEGImages/.a.jpg"):
        (tmp_path / file).write_bytes(b"\0\5\x16\7")
    data = load(tmp_path)
    assert [Path(i.path).name for i in data.train.images] == ["a.jpg"]
    assert data.problems == ()
