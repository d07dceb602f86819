"""`rarebox serve` as a process: how it starts and stops, its trainer, and the stream of news."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from rarebox.cli.main import app, main
from rarebox.errors import UserError
from rarebox.labels.leases import People, Submission
from rarebox.labels.store import Store
from rarebox.project.project import Project
from rarebox.types import Verdict
from rarebox.web import supervisor
from rarebox.web.security import read_secret
from rarebox.web.serve import serve
from rarebox.web.service import AnnotationService
from rarebox.web.supervisor import Supervisor
from tests import tiny
from tests.house import BOX, CHANGES, ask_whole_images, item, make_project, open_cycle
from tests.serving import WAITING
from tests.thinned import thinned

PATIENCE = 60


def wait_for(what: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The result of a function once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s")


@pytest.fixture
def project(tmp_path: Path) -> Project:
    few = {name: value for name, value in tiny.CHANGES.items() if name not in CHANGES}
    made = make_project(tmp_path, **few)
    ask_whole_images(made, 1, 2, 3)
    return made


NOT_TRAINING = f"""
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
from rarebox.web import supervisor
supervisor.COMMAND = {(sys.executable, "-c", WAITING)!r}
from rarebox.cli.main import main
main()
"""


class Server:
    """A running `rarebox serve`; unless it ``trains``, its trainer only waits, and need not load torch."""

    def __init__(self, root: Path, *options: str, trains: bool) -> None:
        rarebox = ("-m", "rarebox") if trains else ("-c", NOT_TRAINING)
        command = [sys.executable, *rarebox, "serve", str(root), "--no-browser", "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8"
        )
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._listen, daemon=True)
        self.reader.start()
        wait_for(lambda: self.links or self.process.poll() is not None)

    def _listen(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.said.append(line)

    @property
    def links(self) -> list[str]:
        return [found[0] for line in self.said if (found := re.findall(r"http://\S+", line))]

    def browser(self) -> httpx.Client:
        """A browser that has followed the first link."""
        link = httpx.URL(self.links[0])
        address = f"http://127.0.0.1:{link.port}"
        reply = httpx.get(address, params={"token": link.params["token"]})
        assert reply.status_code == 303
        return httpx.Client(base_url=address, timeout=PATIENCE, cookies=reply.cookies)


@contextmanager
def serving(root: Path, *options: str, trains: bool = False) -> Iterator[Server]:
    server = Server(root, *options, trains=trains)
    try:
        assert server.process.poll() is None, server.said
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.reader.join(PATIENCE)


def trainer_of(server: Server) -> psutil.Process:
    (child,) = wait_for(lambda: psutil.Process(server.process.pid).children())
    return child


# ------------------------------------------------------------------------------------------- start and stop


def test_a_server_from_its_link_to_its_end(project: Project) -> None:
    with serving(project.folder.root) as server:
        assert "12 photos" in server.said[0]
        with server.browser() as browser:
            assert browser.get("/").text.startswith("<!doctype html>")
            assert browser.get("/static/main.js").status_code == 200
            me = browser.get("/api/state").json()["you"]
            assert browser.get("/api/state").json()["phase"] == "first_images"
            if me is None:
                browser.post("/api/me", json={"name": "anna"})
            given = browser.post("/api/next", json={"client": "tab", "want": 1}).json()["queries"]
            body = {"client": "tab", "answers": [item(query=given[0]["id"])]}
            assert browser.post("/api/answers", json=body).json()["results"][0]["status"] == "saved"
            cookies = dict(browser.cookies)
        trainer = trainer_of(server)
        server.process.kill()  # and everything is kept
        wait_for(lambda: not trainer.is_running() or trainer.status() == psutil.STATUS_ZOMBIE)
    assert len(project.store.labels()) == 1
    with serving(project.folder.root) as again:
        link = httpx.URL(again.links[0])
        state = httpx.get(f"http://127.0.0.1:{link.port}/api/state", cookies=cookies).json()
        assert state["budget"]["spent"] == 1  # signed-in visitors stay signed in


def test_a_second_server_on_one_project_is_refused(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(project.folder.root):
        monkeypatch.setattr(sys, "argv", ["rarebox", "serve", str(project.folder.root), "--no-browser"])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "is already being served" in " ".join(told.split())
    assert "Traceback" not in told


def test_a_port_that_is_taken(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1, port {port}.*another port with --port"):
            serve(project.folder.root, port=port, browser=False)
    with pytest.raises(UserError, match=r"cannot listen on 203\.0\.113\.7"):
        serve(project.folder.root, host="203.0.113.7", people=["anna"], browser=False)
    with pytest.raises(UserError, match=r"cannot listen on no\.such\.host\.invalid"):
        serve(project.folder.root, host="no.such.host.invalid", people=["anna"], browser=False)


def test_other_machines_only_with_names(project: Project) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", ""):
        with pytest.raises(UserError, match="admits other machines"):
            serve(project.folder.root, host=host, browser=False)
    result = CliRunner().invoke(app, ["serve", str(project.folder.root), "--host", "0.0.0.0", "--people", " , "])
    assert isinstance(result.exception, UserError)
    assert "HTTPS" in str(result.exception)
    with pytest.raises(UserError, match="a person needs a name"):
        serve(project.folder.root, people=["anna", "\u202e"], browser=False)
    with pytest.raises(UserError, match="holds no project"):
        serve(project.folder.root / "none", browser=False)


def test_links_for_people_on_a_network(project: Project) -> None:
    with serving(project.folder.root, "--host", "0.0.0.0", "--people", "anna, Zoë ,anna") as server:
        wait_for(lambda: len(server.links) == 2)
        port = httpx.URL(server.links[0]).port
        for link, name in zip(server.links, ("anna", "Zoë"), strict=True):
            token = httpx.URL(link).params["token"]
            for _ in range(2):
                with httpx.Client(base_url=f"http://127.0.0.1:{port}") as device:
                    assert device.get("/", params={"token": token}).status_code == 303
                    state = device.get("/api/state").json()
                    assert (state["you"], state["fixed_name"]) == (name, True)
                    assert device.post("/api/me", json={"name": "ben"}).status_code == 403
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as stranger:
            assert stranger.get("/api/state").status_code == 401
            assert stranger.get("/", headers={"Host": "evil.example"}).status_code == 421
            assert stranger.get("/", headers={"Host": socket.gethostname().upper()}).status_code == 200


def test_the_secret_is_for_its_owner_and_survives(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    (tmp_path / "secret.part").write_text("left behind")
    secret = read_secret(file)
    assert len(secret) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_secret(file) == secret
    for damaged in (b"", b"\xff\xfe", b"short"):
        file.write_bytes(damaged)
        again = read_secret(file)
        assert again != secret
        assert len(again) == 64
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_ctrl_c_ends_it_also_while_a_page_is_open(project: Project) -> None:
    with serving(project.folder.root, trains=True) as server, server.browser() as browser:
        trainer = trainer_of(server)
        with browser.stream("GET", "/api/events") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: state"
            began = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(60) == 0
            assert time.monotonic() - began < 8
        wait_for(lambda: not trainer.is_running())
        assert "Traceback" not in "".join(server.said)


def answered(browser: httpx.Client, number: int) -> int:
    """Answer that many questions. Return how many were reported as saved."""
    browser.post("/api/me", json={"name": "anna"}).raise_for_status()
    asked = browser.post("/api/next", json={"client": "tab", "want": number}).raise_for_status().json()["queries"]
    items = [{"key": f"k{query['id']}", "query": query["id"], "verdict": "cannot_tell"} for query in asked]
    reply = browser.post("/api/answers", json={"client": "tab", "want": 0, "answers": items}).raise_for_status().json()
    return sum(result["status"] == "saved" for result in reply["results"])


def in_a_copy(root: Path, to: Path) -> int:
    """The number of answers in a copy of the store's file, without its log."""
    shutil.copy(root / "labels.sqlite", to)
    with Store(to) as copy:
        return len(People(copy).given())


@pytest.mark.parametrize(
    "signals",
    thinned(
        [(("SIGTERM", "SIGTERM", "SIGINT"),), (("SIGHUP",),), (("SIGINT", "SIGINT"),), (("SIGTERM",),)],
        lambda number, _: number < 2,
    ),
    ids=" ".join,
)
def test_every_way_of_ending_closes_the_store(project: Project, tmp_path: Path, signals: tuple[str, ...]) -> None:
    root = project.folder.root
    with serving(root) as server, server.browser() as browser:
        assert answered(browser, 3) == 3
        with browser.stream("GET", "/api/events") as stream:
            assert next(stream.iter_lines()) == "event: state"
            began = time.monotonic()
            for name in signals:
                server.process.send_signal(getattr(signal, name))
                time.sleep(0.05)
            assert server.process.wait(60) == 0
            assert time.monotonic() - began < 10
        assert "Traceback" not in "".join(server.said)
    assert in_a_copy(root, tmp_path / "copy.sqlite") == 3
    project.store.close()
    assert [file.name for file in root.glob("labels.sqlite*")] == ["labels.sqlite"]


def test_a_reply_that_takes_long_delays_the_end_by_seconds_only(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time, rarebox.web.app as app\napp._zipped = lambda *_: time.sleep(100)\n"
    monkeypatch.setattr(f"{__name__}.NOT_TRAINING", slow + NOT_TRAINING)
    with serving(project.folder.root) as server, server.browser() as browser:
        assert answered(browser, 3) == 3
        asking = threading.Thread(target=lambda: suppress_http(browser, "/api/export"), daemon=True)
        asking.start()
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        asking.join(PATIENCE)
    assert in_a_copy(project.folder.root, tmp_path / "copy.sqlite") == 3


def suppress_http(browser: httpx.Client, path: str) -> None:
    """A request whose reply is ignored."""
    with suppress(httpx.HTTPError):
        browser.get(path)


def test_nohup_is_respected(project: Project) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.NOT_TRAINING", NOT_TRAINING.replace("SIG_DFL", "SIG_IGN"))
        with serving(project.folder.root) as server, server.browser() as browser:
            server.process.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            assert answered(browser, 3) == 3


def test_news_are_pushed(project: Project) -> None:
    with serving(project.folder.root, "--people", "anna") as server, server.browser() as browser:
        news: list[tuple[str, Any]] = []

        def listen() -> None:
            with server.browser() as other, other.stream("GET", "/api/events") as stream:
                event = ""
                for line in stream.iter_lines():
                    name, _, value = line.partition(": ")
                    event = value if name == "event" else event
                    if name == "data":
                        news.append((event, json.loads(value)))

        def first(name: str, where: Callable[[Any], bool] = bool) -> Any:
            return wait_for(lambda: [data for event, data in news if event == name and where(data)])

        listener = threading.Thread(target=_quietly(listen), daemon=True)
        listener.start()
        assert first("state")[0]["you"] == "anna"
        browser.post("/api/classes", json={"add": "eel"})
        first("state", lambda state: len(state["classes"]) == 4)
        versions = [data["version"] for event, data in news if event == "state"]
        assert versions == sorted(set(versions))
        server.process.kill()
        listener.join(PATIENCE)


def _quietly(work: Callable[[], None]) -> Callable[[], None]:
    def quiet() -> None:
        with suppress(httpx.HTTPError):  # the server is gone: the test is over
            work()

    return quiet


# ------------------------------------------------------------------------------------------- the service


def drawn(key: str) -> Submission:
    import numpy as np

    return Submission(key, Verdict.OBJECT, np.array([BOX]), np.array([0]), image_id=5)


def test_pending_writes_are_finished_before_the_end(project: Project) -> None:
    for _ in range(3):
        service = AnnotationService(Project(project.folder.root), train=False)
        busy = threading.Event()
        first = service.do(lambda busy=busy: busy.wait(10))
        waiting = [service.answer("anna", "anna", [drawn(f"{id(service)}-{number}")], 0) for number in range(5)]
        closing = threading.Thread(target=service.close, daemon=True)
        closing.start()
        time.sleep(0.1)
        busy.set()
        closing.join(10)
        assert not closing.is_alive()
        assert all(future.done() for future in (first, *waiting))
    assert len(project.store.answered()) == 15


def test_a_client_that_does_not_wait_for_the_reply_blocks_nobody(project: Project) -> None:
    service = AnnotationService(project, train=False)
    busy = threading.Event()
    service.do(lambda: busy.wait(10))
    gone = service.answer("anna", "anna", [drawn("gone")], 0)
    gone.cancel()
    busy.set()
    outcomes, *_ = service.answer("ben", "ben", [drawn("there")], 0).result(10)
    assert outcomes[0].status == "saved"
    service.close()


def test_a_failed_job_does_not_affect_the_others(project: Project) -> None:
    service = AnnotationService(project, train=False)
    busy = threading.Event()
    service.do(lambda: busy.wait(10))
    bad = service.do(lambda: 1 / 0)
    good = service.answer("ben", "ben", [drawn("there")], 0)
    busy.set()
    with pytest.raises(ZeroDivisionError):
        bad.result(10)
    assert good.result(10)[0][0].status == "saved"
    service.close()


def test_new_questions_are_announced(project: Project) -> None:
    service = AnnotationService(project, train=False)
    before, version = service.memory.questions, service.memory.version
    open_cycle(project, 2, range(4, 13))
    service._hear("questions")
    wait_for(lambda: service.memory.version > version)
    assert service.memory.questions > before
    assert [one["cycle"] for one in service.presenter.state("anna", False)["records"]] == [1]
    assert service.answer("anna", "anna", [], 1).result(10)[1][0].box is not None
    service.close()


# ------------------------------------------------------------------------------------------- the trainer's process

FAKE = """
import json, os, signal, sys, time
def say(**what): print(json.dumps(what), flush=True)
say(event="ready")
for line in sys.stdin:
    said = json.loads(line)["do"]
    {body}
"""


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a trainer that runs a few lines at each command."""

    def make(body: str) -> None:
        lines = FAKE.replace("{body}", body.replace("\n", "\n    "))
        monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", lines))

    return make


def run_until(root: Path, state: str) -> tuple[Supervisor, list[str]]:
    told: list[str] = []
    trainer = Supervisor(root, told.append)
    trainer.send("go on")
    wait_for(lambda: trainer.status["state"] == state)
    return trainer, told


FAILURES = {
    "says why": ('say(event="failed", reason="the disk is full. Free some")', "the disk is full. Free some"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", "was killed, most often because the machine is out of memory"),
    "traceback": ("raise RuntimeError('CUDA out of memory')", "ended with status 1: RuntimeError: CUDA out of memory"),
    "silent": ("sys.exit(3)", "ended with status 3: no message"),
    "clean exit": ("sys.exit(0)", "ended with status 0"),
    "crash": ("os.abort()", "ended with status -6"),
    "rubbish first": (
        "print('hello', 1, flush=True); print('[1]'); print('null'); print('{}'); print('{\"event\": [1]}')\n"
        'print(\'{"event": "progress"}\'); print(\'{"event": "idle", \', \'\\x00\')\n'
        "sys.stdout.buffer.write(b'\\xff\\xfe\\n'); sys.stdout.flush(); os.kill(os.getpid(), 9)",
        "was killed",
    ),
    "much to say": ("sys.stderr.write('x' * 300_000 + '\\n'); sys.stderr.flush(); sys.exit(2)", "with status 2: x"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_trainer_reports_why_and_can_be_restarted(
    fake: Callable[[str], None], tmp_path: Path, failure: str
) -> None:
    body, reason = FAILURES[failure]
    fake(body)
    trainer, told = run_until(tmp_path, "failed")
    shown = trainer.status["reason"] or ""
    assert reason in shown
    assert len(shown) < 500
    assert "rarebox/" not in shown
    wait_for(lambda: "failed" in told)
    for _ in range(2):
        trainer.send("go on")
        wait_for(lambda: trainer.status["state"] == "failed")
    fake('say(event="progress", stage="cycle 2: fit", done=1, of=4, note="")\nsay(event="idle")')
    if failure == "says why":
        trainer.close()  # that process is unchanged
    else:
        trainer.send("go on")
        wait_for(lambda: trainer.status["state"] == "idle")
        trainer.close()


def test_progress_and_the_time_left(fake: Callable[[str], None], tmp_path: Path) -> None:
    fake(
        'for done in (10, 20): say(event="progress", stage="fit", done=done, of=40, note="loss 1"); time.sleep(0.2)\n'
        "time.sleep(60)"
    )
    trainer, _ = run_until(tmp_path, "working")
    wait_for(lambda: trainer.status["done"] == 20)
    status = trainer.status
    assert (status["stage"], status["of"], status["note"], status["reason"]) == ("fit", 40, "loss 1", None)
    assert 0.3 < (status["seconds_left"] or 0) < 5
    trainer.send("train")  # it is busy: nothing happens
    assert trainer.working
    trainer.close()
    assert trainer._process
    assert trainer._process.poll() is not None
    trainer.send("go on")
    assert trainer._process.poll() is not None  # a closed one stays closed


def test_the_failed_command_is_retried(fake: Callable[[str], None], tmp_path: Path) -> None:
    fake('say(event="failed" if said == "train" else "idle", reason=said)')
    trainer = Supervisor(tmp_path, lambda _: None)
    trainer.send("train")
    for again in (trainer.again, lambda: trainer.send("go on")):
        wait_for(lambda: trainer.status["state"] == "failed")
        assert trainer.status["reason"] == "train"
        again()
    wait_for(lambda: trainer.status["state"] == "idle")
    trainer.again()
    wait_for(lambda: trainer.status["state"] == "idle")
    trainer.close()


def test_the_end_of_an_old_trainer_does_not_mark_its_successor_as_failed(
    fake: Callable[[str], None], tmp_path: Path
) -> None:
    """It reports its failure before it ends; by then the next one may be running."""
    lingers = "subprocess.Popen(['sleep', '2'])"  # it holds the output open, so the end is noticed late
    fake(f'import subprocess; say(event="failed", reason="full"); {lingers}; os._exit(1)')
    trainer, _ = run_until(tmp_path, "failed")
    old, reader = trainer._process, trainer._follower
    assert old
    assert reader
    fake('say(event="progress", stage="fit", done=1, of=4, note=""); time.sleep(60)')
    wait_for(lambda: old.poll() is not None)
    trainer.send("go on")
    reader.join(PATIENCE)
    assert trainer.working
    trainer.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
        (BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)), "Resource temporarily unavailable"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "Too many open files"),
        (MemoryError(), "the machine is out of memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
    ids=["ENOMEM", "EAGAIN", "EMFILE", "memory", "threads"],
)
def test_a_trainer_that_cannot_be_started_is_reported_and_can_be_retried(
    fake: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    """First it is killed; then another one cannot be started; then it can."""
    fake("os.kill(os.getpid(), signal.SIGKILL)")
    trainer, told = run_until(tmp_path, "failed")
    fake('say(event="idle")')

    def refuse(*_: object, **__: object) -> None:
        raise error

    where = (threading.Thread, "start") if isinstance(error, RuntimeError) else (subprocess, "Popen")
    with monkeypatch.context() as patch:
        patch.setattr(*where, refuse)
        trainer.again()
    assert (trainer.status["state"], trainer.working) == ("failed", False)
    assert reason in (trainer.status["reason"] or "")
    assert told[-1] == "failed"
    trainer.again()
    wait_for(lambda: trainer.status["state"] == "idle")
    trainer.close()


def test_a_dead_trainer_does_not_count_as_working_even_if_its_output_is_held_open(
    fake: Callable[[str], None], tmp_path: Path
) -> None:
    """The kernel ends the largest process, and its own children live on with its output open."""
    fake("import subprocess; subprocess.Popen(['sleep', '30']); os.kill(os.getpid(), signal.SIGKILL)")
    trainer = Supervisor(tmp_path, lambda _: None)
    trainer.send("go on")
    wait_for(lambda: trainer.status["state"] == "failed", 15)
    assert "was killed" in (trainer.status["reason"] or "")
    fake('say(event="idle")')
    trainer.again()
    wait_for(lambda: trainer.status["state"] == "idle", 15)
    trainer.close()


def test_partly_written_files_of_a_killed_trainer_are_removed(fake: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "cycle_01").mkdir()
    part = tmp_path / "cycle_01" / "model.safetensors.part"
    fake(f"open({str(part)!r}, 'w').write('half'); os.kill(os.getpid(), signal.SIGKILL)")
    trainer, _ = run_until(tmp_path, "failed")
    assert not part.exists()
    trainer.close()


def test_people_continue_while_the_trainer_fails(fake: Callable[[str], None], project: Project) -> None:
    fake("os.kill(os.getpid(), signal.SIGKILL)")
    service = AnnotationService(project)
    wait_for(lambda: service.presenter.state("anna", False)["trainer"]["state"] == "failed")
    outcomes, queries, *_ = service.answer("anna", "anna", [drawn("one")], 3).result(10)
    assert outcomes[0].status == "saved"
    assert len(queries) == 3
    version = service.memory.version
    fake('say(event="idle")')
    service.retry()
    wait_for(lambda: service.presenter.state("anna", False)["trainer"]["state"] == "idle")
    assert service.memory.version > version
    assert len(project.store.labels()) == 1
    service.close()


@pytest.mark.slow
def test_a_real_trainer_that_is_killed_in_the_middle(project: Project) -> None:
    with serving(project.folder.root, "--people", "anna", trains=True) as server, server.browser() as browser:
        wait_for(lambda: browser.get("/api/state").json()["trainer"]["state"] == "idle")
        given = browser.post("/api/next", json={"client": "tab", "want": 3}).json()["queries"]
        answers = [item(query=query["id"]) for query in given]
        browser.post("/api/answers", json={"client": "tab", "answers": answers})
        wait_for(lambda: browser.get("/api/state").json()["trainer"]["state"] == "working")
        trainer_of(server).kill()
        failed = wait_for(lambda: (s := browser.get("/api/state").json())["trainer"]["state"] == "failed" and s)
        assert "No label is lost" in failed["trainer"]["reason"]
        assert sum(one["count"] for one in failed["classes"]) == 3
        again = browser.post("/api/retry", json={}).json()
        assert again["trainer"]["state"] == "working"
        state = wait_for(lambda: (s := browser.get("/api/state").json())["cycle"] == 2 and s, 120)
        assert [one["cycle"] for one in state["records"]] == [1]
        wait_for(lambda: browser.get("/api/state").json()["trainer"]["state"] == "idle")
        after = browser.post("/api/next", json={"client": "tab", "want": 1}).json()["queries"]
        assert after
        assert after[0]["cycle"] == 2
