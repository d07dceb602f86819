"""Connections that are silent, slow, or do not read: real sockets at a real server, which still answers others."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from PIL import Image

from rarebox.data.images import UnreadableImage, content_of
from rarebox.data.remote import is_url
from rarebox.web import connections, pictures
from rarebox.web.connections import BoundedConnection, Limits, RateLimited, config_of
from tests.house import House, make_project, open_cycle, opened
from tests.web import test_serve
from tests.web.test_serve import serving

LIMITS = Limits(connections=20, request=1.0, idle=30, reply=1.0)


class Listening:
    """The application of a house on a port, in a thread."""

    def __init__(self, house: House, limits: Limits = LIMITS) -> None:
        self.house = house
        self.server = uvicorn.Server(config_of(house.app, limits))
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]})
        self.cookie = f"{house.authenticator.cookie}={house.browser().http.cookies[house.authenticator.cookie]}"
        self.thread.start()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)

    def connect(self, sends: bytes = b"") -> socket.socket:
        one = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        one.sendall(sends)
        return one

    def open(self) -> int:
        return len(self.server.server_state.connections)

    def unread(self) -> int:
        """Connections whose client does not read its reply."""
        there = list(self.server.server_state.connections)
        return sum(isinstance(one, BoundedConnection) and one._unread is not None for one in there)

    def answers(self, within: float = 3) -> None:
        began = time.monotonic()
        assert httpx.get(f"http://127.0.0.1:{self.port}/static/icon.svg", timeout=within).status_code == 200
        assert time.monotonic() - began < within


def until(came: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not came():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def large_photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A photo of 17 MB."""
    noise = np.random.default_rng(0).integers(0, 255, (2400, 2400, 3), dtype=np.uint8)
    file = tmp_path_factory.mktemp("large") / "photo99.png"
    Image.fromarray(noise).save(file, compress_level=0)
    return file


@pytest.fixture
def listening(large_photo: Path, tmp_path: Path) -> Iterator[Listening]:
    project = make_project(tmp_path)
    (tmp_path / "photos" / "photo99.png").hardlink_to(large_photo)
    project.add_new_images()
    open_cycle(project, 2, range(4, 13))
    with opened(project) as house, closing(Listening(house)) as listening:
        yield listening


def is_closed(one: socket.socket) -> bool:
    """Whether the other side closes it; waits for that."""
    try:
        while one.recv(65536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


@contextmanager
def closed(many: list[socket.socket]) -> Iterator[None]:
    try:
        yield
    finally:
        for one in many:
            one.close()


def test_silent_connections_are_closed_to_admit_others(listening: Listening) -> None:
    silent = [listening.connect() for _ in range(100)]
    with closed(silent):
        for _ in range(5):
            listening.answers()
        assert listening.open() <= LIMITS.connections + 1
        assert all(is_closed(one) for one in silent)
        assert listening.open() <= 1


HALF = {
    "headers": (["GET / HTTP/1.1", "Host: localhost"], "\r\n", b"X: x\r\n"),
    "a body": (["POST /api/next HTTP/1.1", "Host: localhost", "Content-Length: 9999"], "\r\n\r\n", b" "),
    "an answer": (
        ["POST /api/next HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Content-Length: 9999"],
        "\r\nCookie: COOKIE\r\n\r\n",
        b" ",
    ),
}


@pytest.fixture
def roomy(tmp_path: Path) -> Iterator[Listening]:
    """A client that opens more connections than the server has threads."""
    with opened(make_project(tmp_path)) as house, closing(Listening(house, Limits(connections=100))) as listening:
        yield listening


def test_a_host_that_does_not_send_its_pictures_delays_nobody(
    roomy: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening, images = roomy, roomy.house.service.memory.images
    images[1] = replace(images[1], path="http://images.example/1.jpg")
    begun, released = threading.Semaphore(0), threading.Event()

    @contextmanager
    def waiting(path: str) -> Iterator[bytes]:
        begun.release()
        released.wait(30)
        raise UnreadableImage(path, "the host did not answer")
        yield b""

    real = content_of
    monkeypatch.setattr(pictures, "content_of", lambda path: waiting(path) if is_url(path) else real(path))
    request = f"GET /api/images/1 HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {listening.cookie}\r\n\r\n".encode()
    many = [listening.connect(request) for _ in range(45)]  # more than the threads of the server
    with closed(many):
        assert begun.acquire(timeout=10)
        for path in ("/api/state", "/api/images/2"):
            reply = httpx.get(
                f"http://127.0.0.1:{listening.port}{path}", headers={"Cookie": listening.cookie}, timeout=5
            )
            assert reply.status_code == 200
        released.set()
        assert many[0].recv(20).startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize("path", ["/api/export", "/api/answers?label=1", "/ml/KEY/predict"])
def test_many_long_replies_at_a_time_delay_nobody(roomy: Listening, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    listening, running = roomy, threading.Semaphore(0)
    released = threading.Event()

    def long(*_: object) -> object:
        running.release()
        released.wait(30)
        return b"" if "export" in path else []

    monkeypatch.setattr("rarebox.web.app._zipped", long)
    monkeypatch.setattr("rarebox.web.ml_backend._prediction", long)
    monkeypatch.setattr(listening.house.service.presenter, "answers", long)
    body = b'{"tasks": [{"data": {"image": "1.jpg"}}]}'
    verb = "POST" if "predict" in path else "GET"
    place = path.replace("KEY", listening.house.authenticator.key)
    head = f"{verb} {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: {listening.cookie}\r\n"
    sent = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    many = [listening.connect(head.encode() + (b"\r\n" if verb == "GET" else sent)) for _ in range(45)]
    with closed(many):
        assert running.acquire(timeout=10)
        for other in ("/api/state", "/api/images/2"):
            url = f"http://127.0.0.1:{listening.port}{other}"
            assert httpx.get(url, headers={"Cookie": listening.cookie}, timeout=5).status_code == 200
        assert not running.acquire(blocking=False)  # one at a time
        released.set()
        assert many[0].recv(20).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("kind", HALF)
def test_a_request_that_never_ends_is_ended(listening: Listening, kind: str) -> None:
    lines, end, more = HALF[kind]
    one = listening.connect(("\r\n".join(lines) + end.replace("COOKIE", listening.cookie)).encode())
    began = time.monotonic()
    with closed([one]):
        while time.monotonic() - began < 5:
            try:
                one.sendall(more)
            except ConnectionError:
                break
            time.sleep(0.1)
    assert 0.5 < time.monotonic() - began < 4
    listening.answers()


def test_a_connection_may_rest_between_requests(listening: Listening) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.port}") as http:
        for _ in range(3):
            assert http.get("/static/icon.svg").status_code == 200
            time.sleep(1.3)  # longer than a request may take to come in
        assert listening.open() == 1


def test_a_stream_of_news_outlives_the_time_for_a_request_and_a_crowd(listening: Listening) -> None:
    url, cookie = f"http://127.0.0.1:{listening.port}", {"Cookie": listening.cookie}
    with httpx.Client(base_url=url, headers=cookie) as http, http.stream("GET", "/api/events") as stream:
        lines = stream.iter_lines()
        assert next(lines).startswith("event")
        with closed([listening.connect() for _ in range(60)]):
            time.sleep(1.5)
            assert httpx.post(f"{url}/api/classes", json={"add": "eel"}, headers=cookie).status_code == 200
            assert any("eel" in line for line in lines)


def test_an_unread_reply_is_abandoned(listening: Listening) -> None:
    request = f"GET /api/images/13 HTTP/1.1\r\nHost: localhost\r\nCookie: {listening.cookie}\r\n\r\n"
    many = [listening.connect(request.encode()) for _ in range(10)]
    with closed(many):
        until(lambda: listening.unread() == 10)  # the pictures are larger than the system's buffers
        until(lambda: listening.open() == 0)
        listening.answers()


def test_unread_replies_are_abandoned_to_admit_others(listening: Listening) -> None:
    request = f"GET /api/images/13 HTTP/1.1\r\nHost: localhost\r\nCookie: {listening.cookie}\r\n\r\n"
    with closing(Listening(listening.house, replace(LIMITS, reply=60.0))) as patient:
        many = [patient.connect(request.encode()) for _ in range(LIMITS.connections)]
        with closed(many):
            until(lambda: patient.unread() == len(many))
            for _ in range(3):
                patient.answers()


def test_streams_are_bounded(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rarebox.web.app.MOST_STREAMS", 2)
    url, cookie = f"http://127.0.0.1:{listening.port}/api/events", {"Cookie": listening.cookie}
    with httpx.Client(headers=cookie) as http:
        with http.stream("GET", url) as first, http.stream("GET", url) as second:
            assert first.status_code == second.status_code == 200
            lines = first.iter_lines(), second.iter_lines()
            assert all(next(news).startswith("event") for news in lines)
            assert http.get(url).status_code == 503
        end = time.monotonic() + 10
        while time.monotonic() < end:
            with http.stream("GET", url) as again:
                if again.status_code == 200:
                    return
            time.sleep(0.2)
        pytest.fail("a place was not given back")


def test_bad_requests_do_not_fill_the_log(listening: Listening, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "uvicorn.error"):
        for _ in range(30):
            with closing(listening.connect(b"\x00\x01\r\n\r\n")) as one:
                assert is_closed(one)
    assert len([record for record in caplog.records if "Invalid HTTP" in record.getMessage()]) == 1


def test_a_line_is_logged_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(connections.time, "monotonic", lambda: now)
    limited = RateLimited()

    def passes(line: str) -> bool:
        return bool(limited.filter(logging.LogRecord("asyncio", logging.ERROR, "", 0, line, None, None)))

    assert [passes("a"), passes("a"), passes("b")] == [True, False, True]
    now = connections.REPEAT_SECONDS + 0.1
    assert [passes("a"), passes("a")] == [True, False]


def test_more_connections_than_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that may open 256 files has 500 silent visitors: it still answers, and logs little."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 600:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
    monkeypatch.setattr(test_serve, "NOT_TRAINING", few + test_serve.NOT_TRAINING)
    project = make_project(tmp_path)
    open_cycle(project, 2, range(4, 13))
    project.store.close()
    with serving(project.folder.root) as server:
        link = httpx.URL(server.links[0])
        silent = [socket.create_connection((link.host, link.port)) for _ in range(500)]
        with closed(silent):
            for _ in range(5):
                assert httpx.get(f"http://{link.host}:{link.port}/static/icon.svg", timeout=5).status_code == 200
        assert sum(map(len, server.said)) < 10_000
