"""Images by URL: listed, read in parallel, retried, skipped with a reason, shown, trained on and exported."""

import contextlib
import gzip
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.data import datasets, remote
from rarebox.data.export import export
from rarebox.data.images import SUFFIXES, UnreadableImage, image_size, read_picture
from rarebox.data.memory_limit import MemoryLimit
from rarebox.data.pictures import AHEAD, Pictures
from rarebox.data.remote import Refused, check_hop
from rarebox.errors import UserError
from rarebox.loop import simulate
from rarebox.project.create import create
from rarebox.project.photo_folder import read_images
from rarebox.project.project import Project
from rarebox.types import ImageRecord
from tests import tiny
from tests.house import opened

pytestmark = pytest.mark.usefixtures("small_network")

CHANGES = {"initial_images": 2, "budget": [3], "detector.image_size": 64}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data") / "scenes")


class Bucket(MemoryFileSystem):
    """An in-memory file system for s3://."""

    protocol = ("s3",)
    store: ClassVar[dict[str, Any]] = {}  # pyright: ignore[reportIncompatibleVariableOverride]
    pseudo_dirs: ClassVar[list[str]] = [""]

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("s3://").strip("/")

    def unstrip_protocol(self, name: str) -> str:
        return f"s3://{name.strip('/')}"


@pytest.fixture
def buckets() -> Iterator[Bucket]:
    """Buckets, empty at first."""
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield Bucket()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]


@pytest.fixture
def bucket(pictures: Path, buckets: Bucket) -> str:
    """A bucket with six photos in two folders, one file without an image suffix and one with broken content."""
    store = buckets
    for number, file in enumerate(sorted((pictures / "images").glob("train_*"))[:6]):
        store.pipe(f"/bucket/photos/{'sub/' * (number % 2)}{file.name}", file.read_bytes())
    store.pipe("/bucket/photos/readme.md", b"hello")
    store.pipe("/bucket/photos/broken.jpg", b"not a photo")
    return "s3://bucket/photos"


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder. Each file is refused ``refusals`` times before it is sent."""

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
    """A web server for the photos' folder, with an index page."""
    pytest.importorskip("aiohttp", reason='nothing reads https:// here: pip install "rarebox[http]"')
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    Handler.refusals, Handler.asked = {}, Counter()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Handler(*a, directory=str(pictures)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(remote.HOSTS, f"127.0.0.1:{server.server_address[1]}")
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_bucket_is_listed_with_all_its_folders(bucket: str) -> None:
    found = remote.listing(bucket, SUFFIXES)
    assert found == sorted(found)
    assert len(found) == 7
    assert all(url.startswith("s3://") for url in found)
    assert sum("/sub/" in url for url in found) == 3
    for litter in (".thumbnails/a.jpg", "sub/@eaDir/a.jpg", "__MACOSX/a.jpg", "._a.jpg"):
        Bucket().pipe(f"/bucket/photos/{litter}", b"no person has put it there")
    assert remote.listing(bucket, SUFFIXES) == found
    for name in ("rarebox.json", "images/a.jpg"):  # an export
        Bucket().pipe(f"/bucket/photos/out/{name}", b"written by rarebox")
    assert remote.listing(bucket, SUFFIXES) == found
    assert remote.listing(f"{bucket}/out", SUFFIXES) == [f"{bucket.rstrip('/')}/out/images/a.jpg"]


def test_an_index_page_and_a_list_name_the_same_images(
    web: str, pictures: Path, tmp_path: Path, buckets: Bucket
) -> None:
    found = remote.listing(f"{web}/images", SUFFIXES)
    assert [url.rsplit("/", 1)[1] for url in found] == sorted(file.name for file in (pictures / "images").iterdir())
    here = tmp_path / "photos.txt"
    here.write_text(f"# two photos\n{found[3]}\n\n{found[1]}\n{found[3]}\nmine.jpg\n")
    assert remote.listing(str(here), SUFFIXES) == [found[3], found[1], str(tmp_path / "mine.jpg")]
    buckets.pipe("/lists/a.txt", b"b.jpg\ns3://x/c.jpg\n")
    assert remote.listing("s3://lists/a.txt", SUFFIXES) == ["s3://lists/b.jpg", "s3://x/c.jpg"]


def test_busy_addresses_are_retried_and_missing_ones_are_not(web: str) -> None:
    url = f"{web}/images/train_0000.jpg"
    Handler.refusals["train_0000.jpg"] = [503, 429, 500]
    assert image_size(url) == (96, 96, 1)
    assert Handler.asked["train_0000.jpg"] == 4
    Handler.refusals["train_0001.jpg"] = [403] * 9
    with pytest.raises(UnreadableImage, match="403"):
        image_size(f"{web}/images/train_0001.jpg")
    assert Handler.asked["train_0001.jpg"] == 1
    with pytest.raises(UnreadableImage, match="nothing is there"):
        image_size(f"{web}/images/none.jpg")
    Handler.refusals["train_0002.jpg"] = [503] * 9
    with pytest.raises(UnreadableImage, match="503"):
        image_size(f"{web}/images/train_0002.jpg")
    assert Handler.asked["train_0002.jpg"] == len(remote.WAITS) + 1


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("{web}/nowhere/", "cannot be listed: nothing is there"),
        ("http://127.0.0.1:1/photos", "cannot be listed: .*[Cc]onnect.*127.0.0.1"),
        ("s3://nowhere", "cannot be listed: nothing is there"),
        ("nonsense://x", "images are read from http://"),
    ],
)
@pytest.mark.usefixtures("buckets")
def test_a_listing_that_fails_reports_why(web: str, url: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        create(tmp_path / "project", url.format(web=web), ["a"])


def test_a_scheme_that_nothing_here_reads_names_its_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def missing(*_: Any, **__: Any) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(UserError, match=r's3:// is not installed\. Run: pip install "rarebox\[s3\]"'):
        create(tmp_path / "project", "s3://bucket/photos", ["a"])


def test_a_project_of_a_bucket_leaves_out_what_cannot_be_read_and_shows_the_rest(bucket: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["init", str(tmp_path / "project"), "--images", bucket, "--classes", "a,b", "--set", "budget=[3]"]
    )
    assert done.exit_code == 0, done.output
    assert "6 photos" in done.output
    assert "broken.jpg: it is not an image in a supported format; the image is left out" in done.output.replace(
        "\n", ""
    )
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
            with remote.fetched(image.path) as content:
                assert reply.content == content  # unchanged
        small = browser.http.get(f"/api/images/{images[1].id}?size=48")
        assert small.status_code == 200
        Bucket().rm(images[1].path)
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

    monkeypatch.setattr("rarebox.data.pictures.read_picture", slow)
    records = [ImageRecord(i, f"s3://x/{i}.jpg", 4, 4) for i in range(200)]
    pictures = Pictures(records, (4, 4), keep_bytes=0)
    monkeypatch.setattr(pictures._memory, "keep", lambda *_: None)
    seen = []
    for rows, batch in pictures.in_batches(np.arange(i, i + 5) for i in range(0, 200, 5)):
        assert rows.tolist() == batch
        seen += batch
        assert len(read) <= len(seen) + AHEAD + 5
    assert seen == [*range(200)]
    assert most > 3


def test_a_list_of_urls_is_read_in_parallel_and_a_missing_one_is_listed(web: str, pictures: Path) -> None:
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
    found = datasets.load(tmp_path)
    assert not found.problems
    assert all(image.path.startswith("http://") for image in found.train.images)
    there = simulate.simulate(tmp_path / "there", tiny.settings(tmp_path, budget=[4]))
    here = simulate.simulate(tmp_path / "here", tiny.settings(pictures, budget=[4]))
    assert [{**record, "seconds": 0} for record in there] == [{**record, "seconds": 0} for record in here]


# ------------------------------------------------------------------------------------------- refused addresses


@pytest.mark.parametrize(
    "line",
    [
        "file:///etc/passwd",
        "local:///etc/x.png",
        "simplecache::file:///etc/x.png",
        "zip://a.png::file:///etc/x.zip",
        "ftp://host/a.png",
        "sftp://host/a.png",
        "memory://a.png",
        "data://a.png",
        "github://a:b@/c.png",
        "s3://bucket/a.png::file:///etc/x.png",
        "s3:///a.png",
        "http:///a.png",
    ],
)
def test_one_rule_for_every_address_from_any_source(line: str, buckets: Bucket, tmp_path: Path) -> None:
    buckets.pipe_file("/listed/all.txt", line.encode())
    (tmp_path / "all.txt").write_text(line)
    for place in ("s3://listed/all.txt", str(tmp_path / "all.txt")):
        with pytest.raises(UserError, match=r"which is not read: (images are read from|it names no host)"):
            remote.listing(place, frozenset({".png"}))
    with pytest.raises(UserError, match="cannot be listed"):
        remote.listing(line, frozenset({".png"}))
    with pytest.raises(UnreadableImage, match=r"images are read from|it names no host"):
        image_size(line)


def coco_of(folder: Path, *names: str) -> Path:
    """A COCO file that names those images and one existing file."""
    images = [{"id": n, "file_name": name} for n, name in enumerate((*names, "here.png"), 1)]
    box = {"id": 1, "image_id": len(images), "category_id": 1, "bbox": [1, 1, 4, 4]}
    content = {"images": images, "annotations": [box], "categories": [{"id": 1, "name": "cat"}]}
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "here.png")
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json"


LOOPBACK = [
    "127.0.0.1",
    "localhost",
    "2130706433",
    "0x7f000001",
    "017700000001",
    "127.1",
    "[::1]",
    "[::ffff:127.0.0.1]",
]


@pytest.mark.parametrize("host", [*LOOPBACK, "[::1]", "0.0.0.0", "[::]"])
def test_a_coco_file_reaches_no_host_that_only_this_machine_can_reach(
    web: str, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(remote.HOSTS)
    url = f"http://{host}:{web.rsplit(':')[-1]}/images/train_0000.jpg"
    found = datasets.load(coco_of(tmp_path / "data", url))
    problem = next(problem for problem in found.problems if problem.where == url)
    assert problem.kind == "unreadable image"
    assert not Handler.asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("64:ff9b::808:808", True),
        ("::ffff:8.8.8.8", True),
        ("10.0.0.1", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.100.100.200", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("239.1.1.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("ff0e::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::", False),
    ],
)
def test_which_addresses_are_of_the_public_internet(address: str, public: bool) -> None:
    if public:
        remote._refuse_private("host", address)
    else:
        with pytest.raises(remote.Refused, match=f"in its network .*{remote.HOSTS}=host"):
            remote._refuse_private("host", address)


class Answers(BaseHTTPRequestHandler):
    """Replies with the response that the test sets for a path."""

    told: ClassVar[dict[str, Callable[["Answers"], None]]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        with contextlib.suppress(ConnectionError):
            self.told[self.path](self)

    def begin(self, status: int = 200, /, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, format: str, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server under a name that looks public, and short timeouts."""
    pytest.importorskip("aiohttp", reason='nothing reads https:// here: pip install "rarebox[http]"')
    monkeypatch.setattr(remote, "WAITS", ())
    Answers.told, Answers.asked = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv(remote.HOSTS, f"nas.local, 127.0.0.1:{server.server_address[1]}")
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def moved(to: str) -> Callable[[Answers], None]:
    return lambda answers: answers.begin(302, Location=to, Content_Length="0")


def test_every_hop_of_a_redirect_is_checked(server: str, web: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(remote.HOSTS, server.removeprefix("http://"))
    for name, target, said in (
        ("/private", f"{web}/images/train_0000.jpg", "is this machine or in its network"),
        ("/metadata", "http://169.254.169.254/latest/meta-data", "is this machine or in its network"),
        ("/twice", "/private", "is this machine or in its network"),
        ("/file", "file:///etc/passwd", "images are read from http://"),
        ("/bucket", "s3://bucket/a.jpg", "it redirects from http:// to s3://"),
    ):
        Answers.told[name] = moved(target)
        with pytest.raises(UnreadableImage, match=said):
            image_size(server + name)
    assert not Handler.asked
    Answers.told["/a.jpg"] = moved("/b.jpg")
    Answers.told["/b.jpg"] = sends(b"not an image")
    with pytest.raises(UnreadableImage, match="not an image in a supported format"):
        image_size(server + "/a.jpg")
    Answers.told["/round"] = moved("/round")
    with pytest.raises(UnreadableImage):
        image_size(server + "/round")


def sends(body: bytes, **headers: str) -> Callable[[Answers], None]:
    def answer(answers: Answers) -> None:
        answers.begin(Content_Length=str(len(body)), **headers)
        answers.wfile.write(body)

    return answer


def test_the_address_that_was_checked_is_connected_to(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that resolves to a public address first, and to this machine the next time."""
    asked = []

    async def resolve(_: Any, host: str, port: int = 0, family: Any = None) -> list[dict[str, Any]]:
        asked.append(host)
        address = "192.0.2.1" if len(asked) == 1 else "127.0.0.1"  # of a block that is routed nowhere
        return [{"hostname": host, "host": address, "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr("aiohttp.resolver.ThreadedResolver.resolve", resolve)
    port = server.rsplit(":")[-1]
    for _ in range(2):
        with pytest.raises(UnreadableImage, match=r"rebinds\.example is this machine or in its network"):
            image_size(f"http://rebinds.example:{port}/a.jpg")
    assert not Answers.asked
    Answers.told["/a.jpg"] = sends(b"")
    with pytest.raises(UnreadableImage, match="the file is empty"):
        image_size(f"http://nas.local:{port}/a.jpg")  # named by the user


def test_the_users_address_is_followed_and_its_lists_are_not(
    server: str, web: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(remote.HOSTS)
    monkeypatch.setattr(remote, "_named", set())
    photo = (pictures / "images" / "train_0000.jpg").read_bytes()
    Answers.told["/photos.txt"] = sends(f"/a.jpg\n{server}/a.jpg\n{web}/images/train_0001.jpg\n".encode())
    Answers.told["//a.jpg"] = Answers.told["/a.jpg"] = sends(photo)
    problems = create(tmp_path / "project", f"{server}/photos.txt", ["a"], changes={"detector.image_size": 64})
    assert [problem.where for problem in problems] == [f"{web}/images/train_0001.jpg"]
    assert not Handler.asked
    remote._named.clear()  # another process
    project = Project(tmp_path / "project")
    for image in project.store.images().values():
        assert image_size(image.path) == (96, 96, 1)
    project.store.close()


def endless(answers: Answers) -> None:
    answers.begin()  # without a length: to the end of the connection
    while True:
        answers.wfile.write(bytes(1 << 16))


def endless_chunks(answers: Answers) -> None:
    answers.protocol_version = "HTTP/1.1"
    answers.begin(Transfer_Encoding="chunked")
    while True:
        answers.wfile.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")


def a_drop_at_a_time(answers: Answers) -> None:
    answers.begin()
    for _ in range(100):
        answers.wfile.write(b"x")
        time.sleep(0.1)


BOMB = gzip.compress(bytes(64 << 20))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (endless, "it has more than 1 MiB"),
        (endless_chunks, "it has more than 1 MiB"),
        (lambda answers: answers.begin(Content_Length=str(1 << 40)), "it has more than 1 MiB"),
        (sends(BOMB, Content_Encoding="gzip"), "the server sends it compressed"),
        (a_drop_at_a_time, "no answer"),
    ],
)
def test_a_body_without_an_end_is_not_read_to_its_end(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: Callable[[Answers], None], said: str
) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(remote, "SECONDS", 2)
    remote._over_http.cache_clear()
    for name in ("/a.jpg", "/a.txt", "/photos/"):
        Answers.told[name] = body
    begun = time.monotonic()
    with pytest.raises(UnreadableImage, match=said):
        image_size(f"{server}/a.jpg")
    for place in ("a.txt", "photos/"):
        with pytest.raises(UserError, match=f"cannot be listed: {said}"):
            remote.listing(f"{server}/{place}", SUFFIXES)
    remote._over_http.cache_clear()
    assert time.monotonic() - begun < 12


def test_endless_index_pages_are_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_LISTED", 50)

    class Everywhere(dict[str, Any]):
        def __missing__(self, _: str) -> Any:
            return sends(b'<a href="a.jpg">a</a> <a href="deeper/">on</a>', Content_Type="text/html")

    monkeypatch.setattr(Answers, "told", Everywhere())
    with pytest.raises(UserError, match="do not end"):
        remote.listing(f"{server}/", SUFFIXES)
    assert len(Answers.asked) < 60


def test_a_large_object_of_a_bucket_is_refused_unread(buckets: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MOST_BYTES", 1 << 20)
    buckets.pipe_file("/photos/a.jpg", bytes((1 << 20) + 1))
    monkeypatch.setattr(Bucket, "cat_file", lambda *_: pytest.fail("it was read"))
    with pytest.raises(UnreadableImage, match="it has more than 1 MiB"):
        image_size("s3://photos/a.jpg")


def test_threads_share_the_memory_for_remote_files(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROOM", MemoryLimit(3 << 20))
    Answers.told["/a.jpg"] = sends(bytes(1 << 20))
    at_once, most, lock = 0, 0, threading.Lock()

    def work(_: int) -> None:
        nonlocal at_once, most
        with remote.fetched(f"{server}/a.jpg"):
            with lock:
                at_once += 1
                most = max(most, at_once)
            time.sleep(0.05)
            with lock:
                at_once -= 1

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert 1 < most <= 3


def test_no_message_shows_the_secrets_of_a_url(server: str, tmp_path: Path) -> None:
    host = server.removeprefix("http://")
    Answers.told["/a.jpg?X-Signature=s3cret"] = lambda answers: answers.begin(403)
    Answers.told["/b.jpg?X-Signature=s3cret"] = sends(b"not an image")
    urls = [f"http://anna:s3cret@{host}/{name}.jpg?X-Signature=s3cret" for name in "ab"]
    said = [str(datasets.load(coco_of(tmp_path / "data", *urls)).problems)]
    for work in (lambda: image_size(urls[0]), lambda: remote.listing(urls[0], SUFFIXES)):
        with pytest.raises(UserError) as error:
            work()
        said.append(str(error.value))
    assert "a.jpg" in said[0]
    assert "b.jpg" in said[0]
    assert all("403" in text for text in said)
    assert not [text for text in said if "s3cret" in text]


def test_an_export_names_files_after_photos_and_not_after_signatures(buckets: Bucket, tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "PNG")
    paths = ["s3://photos/a%20b.png", "s3://photos/..%2f..%2fc", "s3://photos/d.png?X-Signature=s3cret"]
    for path in paths:
        buckets.pipe_file(path, content.getvalue())
    images = [ImageRecord(n, path, 8, 8) for n, path in enumerate(paths, 1)]
    export(tmp_path / "labels", "coco", ["cat"], images, [])
    names = sorted(file.name for file in (tmp_path / "labels" / "images").iterdir())
    assert names == ["_.._c.jpg", "a b.png", "d.png"]


@pytest.mark.parametrize(
    ("url", "to"),
    [
        ("https://a.example/x.jpg", "http://a.example/x.jpg"),
        ("https://a.example/x.jpg", "s3://bucket/x.jpg"),
        ("http://a.example/x.jpg", "file:///etc/passwd"),
        ("http://a.example/x.jpg", "http://"),
    ],
)
def test_a_redirect_to_a_weaker_or_other_scheme_is_refused(url: str, to: str) -> None:
    with pytest.raises(Refused):
        check_hop(url, to)


@pytest.mark.parametrize("url", ["http://a.example/x.jpg", "https://a.example/x.jpg"])
def test_a_redirect_may_lead_to_https(url: str) -> None:
    check_hop(url, "https://b.example/x.jpg")
