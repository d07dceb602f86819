"""Images by URL: listed, read in parallel, tried again, left out with a reason; and shown, trained on and exported."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

from rarebox import cli, data, loop
from rarebox.data import remote
from rarebox.data.export import export
from rarebox.data.images import SUFFIXES, UnreadableImage, image_size, read_picture
from rarebox.errors import UserError
from rarebox.pictures import AHEAD, Pictures
from rarebox.project import Project, create, read_images
from rarebox.types import ImageRecord
from tests import tiny
from tests.web import opened

CHANGES = {"initial_images": 2, "budget": [3], "detector.image_size": 64}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture
def bucket(pictures: Path) -> Iterator[str]:
    """A bucket with six photos in two folders, one file that is no image by its name and one by its content."""
    store = fsspec.filesystem("memory")
    for number, file in enumerate(sorted((pictures / "images").glob("train_*"))[:6]):
        store.pipe(f"/bucket/photos/{'sub/' * (number % 2)}{file.name}", file.read_bytes())
    store.pipe("/bucket/photos/readme.md", b"hello")
    store.pipe("/bucket/photos/broken.jpg", b"not a photo")
    yield "memory://bucket/photos"
    store.rm("/bucket", recursive=True)


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, each refused as often as ``refusals`` says before it is sent."""

    refusals: ClassVar[dict[str, list[int]]] = {}
    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.asked[name] += 1
        if self.refusals.get(name):
            self.send_error(self.refusals[name].pop())
        else:
            super().do_GET()

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.fixture
def web(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A web server of the photos' folder, which makes an index page of it."""
    pytest.importorskip("aiohttp", reason='nothing reads https:// here: pip install "rarebox[http]"')
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    Handler.refusals, Handler.asked = {}, Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(pictures)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bucket_is_listed_with_all_its_folders(bucket: str) -> None:
    found = remote.listing(bucket, SUFFIXES)
    assert found == sorted(found)
    assert len(found) == 7
    assert all(url.startswith("memory://") for url in found)
    assert sum("/sub/" in url for url in found) == 3
    for litter in (".thumbnails/a.jpg", "sub/@eaDir/a.jpg", "__MACOSX/a.jpg", "._a.jpg"):
        fsspec.filesystem("memory").pipe(f"/bucket/photos/{litter}", b"no person has put it there")
    assert remote.listing(bucket, SUFFIXES) == found


def test_an_index_page_and_a_list_name_the_same_images(web: str, pictures: Path, tmp_path: Path) -> None:
    found = remote.listing(f"{web}/images", SUFFIXES)
    assert [url.rsplit("/", 1)[1] for url in found] == sorted(file.name for file in (pictures / "images").iterdir())
    here = tmp_path / "photos.txt"
    here.write_text(f"# two photos\n{found[3]}\n\n{found[1]}\n{found[3]}\nmine.jpg\n")
    assert remote.listing(str(here), SUFFIXES) == [found[3], found[1], str(tmp_path / "mine.jpg")]
    fsspec.filesystem("memory").pipe("/lists/a.txt", b"b.jpg\nmemory://x/c.jpg\n")
    assert remote.listing("memory://lists/a.txt", SUFFIXES) == ["memory://lists/b.jpg", "memory://x/c.jpg"]


def test_what_is_busy_is_tried_again_and_what_is_gone_is_not(web: str) -> None:
    url = f"{web}/images/train_0000.jpg"
    Handler.refusals["train_0000.jpg"] = [503, 429, 500]
    assert image_size(url) == (96, 96, False)
    assert Handler.asked["train_0000.jpg"] == 4
    Handler.refusals["train_0001.jpg"] = [403] * 9
    with pytest.raises(UnreadableImage, match="403"):
        image_size(f"{web}/images/train_0001.jpg")
    assert Handler.asked["train_0001.jpg"] == 1
    with pytest.raises(UnreadableImage, match="there is nothing"):
        image_size(f"{web}/images/none.jpg")
    Handler.refusals["train_0002.jpg"] = [503] * 9
    with pytest.raises(UnreadableImage, match="503"):
        image_size(f"{web}/images/train_0002.jpg")
    assert Handler.asked["train_0002.jpg"] == len(remote.WAITS) + 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{web}/nowhere/", "cannot be listed: there is nothing"),
        ("http://127.0.0.1:1/photos", "cannot be listed: .*127.0.0.1"),
        ("memory://nowhere", "cannot be listed: there is nothing"),
        ("nonsense://x", "Protocol not known"),
    ],
)
def test_what_cannot_be_listed_says_why(web: str, url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        create(tmp_path / "project", url.format(web=web), ["a"])


def test_a_scheme_that_nothing_here_reads_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(UserError, match=r's3:// is not installed: pip install "rarebox\[s3\]"'):
        create(tmp_path / "project", "s3://bucket/photos", ["a"])


def test_a_project_of_a_bucket_leaves_out_what_cannot_be_read_and_shows_the_rest(bucket: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli.app, ["init", str(tmp_path / "project"), "--images", bucket, "--classes", "a,b", "--set", "budget=[3]"]
    )
    assert done.exit_code == 0, done.output
    assert "6 photos" in done.output
    assert "broken.jpg: it is not an image of a known kind; the image is left out" in done.output.replace("\n", "")
    project = Project(tmp_path / "project")
    images = project.store.images()
    assert len(images) == 6
    assert {(image.width, image.height) for image in images.values()} == {(96, 96)}
    assert project.add_new_images() == 0
    with opened(project) as house:
        browser = house.browser()
        for image in images.values():
            reply = browser.http.get(f"/api/images/{image.id}")
            assert reply.headers["content-type"] == "image/jpeg"
            assert reply.content == remote.fetch(image.path)  # as it is
        small = browser.http.get(f"/api/images/{images[1].id}?size=48")
        assert small.status_code == 200
        fsspec.filesystem("memory").rm(remote._system(images[1].path)[1])
        assert browser.http.get(f"/api/images/{images[1].id}").status_code == 404
    done = export(tmp_path / "labels", "coco", ["a"], list(images.values())[1:], [])
    assert len(list((tmp_path / "labels" / "images").iterdir())) == done.images == 5


def test_pictures_are_read_ahead_by_many_but_never_more_than_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most, lock, several = 0, 0, threading.Lock(), threading.Event()
    read = list[int]()

    def slow(record: ImageRecord, *size: int) -> Any:
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
            read.append(record.id)
            if at_once > 3:
                several.set()
        several.wait(5)
        with lock:
            at_once -= 1
        return record.id

    monkeypatch.setattr("rarebox.pictures.read_picture", slow)
    records = [ImageRecord(i, f"memory://x/{i}.jpg", 4, 4) for i in range(200)]
    pictures = Pictures(records, (4, 4), keep_bytes=0)
    monkeypatch.setattr(pictures._memory, "keep", lambda *_: None)
    seen = []
    for rows, batch in pictures.in_batches(np.arange(i, i + 5) for i in range(0, 200, 5)):
        assert rows.tolist() == batch
        seen += batch
        assert len(read) <= len(seen) + AHEAD + 5
    assert seen == [*range(200)]
    assert most > 3


def test_a_list_of_urls_is_read_by_many_and_a_gone_one_is_listed(web: str, pictures: Path) -> None:
    urls = [*remote.listing(f"{web}/images", SUFFIXES), f"{web}/images/gone.jpg"]
    records, problems = read_images(urls, (64, 64))
    assert [record.path for record in records] == urls[:-1]
    assert [(problem.kind, problem.where) for problem in problems] == [("unreadable image", urls[-1])]
    here = read_picture(ImageRecord(1, str(pictures / "images" / "train_0003.jpg"), 96, 96), 64, 64)
    there = read_picture(next(r for r in records if r.path.endswith("train_0003.jpg")), 64, 64)
    assert (here.pixels == there.pixels).all()


def test_a_coco_file_may_name_images_by_url_and_a_run_on_them_is_the_same(
    web: str, pictures: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        content = json.loads((pictures / f"{split}.json").read_text())
        for image in content["images"]:
            image["file_name"] = f"{web}/images/{Path(image['file_name']).name}"
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    found = data.load(tmp_path)
    assert not found.problems
    assert all(image.path.startswith("http://") for image in found.train.images)
    there = loop.run(tmp_path / "there", tiny.settings(tmp_path, budget=[4]))
    here = loop.run(tmp_path / "here", tiny.settings(pictures, budget=[4]))
    assert [{**record, "seconds": 0} for record in there] == [{**record, "seconds": 0} for record in here]


@pytest.mark.parametrize("line", ["file:///etc/passwd", "local:///etc/x.png", "simplecache::file:///etc/x.png"])
def test_a_list_from_elsewhere_names_no_file_of_this_disk(line: str) -> None:

    fsspec.filesystem("memory").pipe_file("/listed/all.txt", line.encode())
    with pytest.raises(UserError, match="may name only what lies elsewhere"):
        remote.listing("memory://listed/all.txt", frozenset({".png"}))
