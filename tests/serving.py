"""A real ``rarebox serve`` in a separate process, with questions that need no training. Its trainer only waits."""

import os
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from rarebox import config
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.pool.ranking import LazyRanking
from rarebox.project.project import Project
from rarebox.types import Candidates, ImageRecord
from rarebox.web import serve, supervisor
from tests import forked

WAITING = """
import sys
for _ in sys.stdin:
    print('{"event": "idle"}', flush=True)
"""
"""A trainer with nothing to do."""


def make_project(
    root: Path, records: Sequence[ImageRecord], classes: Sequence[str], grid: int = 1, **changes: Any
) -> Project:
    """A project whose cycle 2 asks about ``grid`` x ``grid`` boxes of every image, image after image in turn."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    usual = {"people.overlap": 0, "budget": [10**6], "selection.exploration": 0.0}
    settings = config.resolve("laptop", None, {**config.PROJECT, "data": str(root), **usual, **named})
    folder = RunFolder(root)
    root.mkdir(parents=True)
    folder.settings.write_text(config.dump(settings), encoding="utf-8")
    with Store(folder.labels(settings), classes=classes) as store:
        store.add_images(records)
        store.open_cycle(1)
        store.open_cycle(2)
    project = Project(root)
    places = [(x, y) for y in range(grid) for x in range(grid)]
    rows = [(index, record, place) for index, place in enumerate(places) for record in records]
    sides = [np.array([record.width, record.height, record.width, record.height]) / grid for _, record, _ in rows]
    corners = np.array([(x + 0.1, y + 0.1, x + 0.9, y + 0.9) for _, _, (x, y) in rows])
    chance = np.random.default_rng(0)
    found = Candidates(
        image_id=np.array([record.id for _, record, _ in rows]),
        box_index=np.array([index for index, _, _ in rows]),
        boxes=corners * np.stack(sides),
        labels=chance.integers(len(classes), size=len(rows)),
        scores=chance.random(len(rows)),
        uncertainty=chance.random(len(rows)),
        box_consistency=chance.random(len(rows)),
        class_probs=np.zeros((len(rows), 0)),
    )
    folder.cycle(2).mkdir()
    order = LazyRanking.of(found, enumerate(np.linspace(1, 0, len(rows)).tolist()))
    counts = np.bincount(found.labels, minlength=len(classes))
    project.write_ranking(2, order, np.ones(len(classes)) / len(classes), counts)
    return project


def be_server(root: Path, port: int, log: Path, tells: Connection) -> None:
    """Run ``rarebox serve``, with its messages sent into a pipe. Its trainer only waits."""
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    supervisor.COMMAND = (sys.executable, "-c", WAITING)
    serve.serve(root, port=port, browser=False, say=tells.send)


class Served:
    """``rarebox serve`` for a project. It keeps its address when it is killed and restarted."""

    def __init__(self, root: Path) -> None:
        self.root, self.port = root, 0
        self.start()

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        log = self.root.parent / f"{self.root.name}.log"
        hears, tells = forked.CONTEXT.Pipe(duplex=False)
        self.process = forked.start(be_server, self.root, self.port, log, tells)
        tells.close()
        try:
            self.said = [hears.recv()]
            while "?token=" not in self.said[-1]:
                self.said.append(hears.recv())
        except EOFError:
            raise AssertionError(log.read_text()) from None
        link = httpx.URL(self.said[-1].split()[-1])
        self.port, self.token = link.port or 0, link.params["token"]
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                httpx.get(self.url)
                return
            except httpx.TransportError:
                time.sleep(0.02)
        raise TimeoutError(f"{self.url} does not answer")

    def signal(self, which: int) -> None:
        """Send a signal to the server."""
        assert self.process.pid
        os.kill(self.process.pid, which)

    def kill(self) -> None:
        """Kill the server, with ``kill -9`` where there is one."""
        self.process.kill()
        self.process.join()

    def cookies(self, names: Sequence[str]) -> dict[str, httpx.Cookies]:
        """Sign in people, each with a separate link; the cookies of each."""
        found, token = {}, self.token
        for name in names:
            with httpx.Client(base_url=self.url) as browser:
                assert browser.get("/", params={"token": token}, follow_redirects=True).status_code == 200
                assert browser.post("/api/me", json={"name": name}).status_code == 200
                token = browser.post("/api/invite", json={}).json()["url"].partition("token=")[2]
                found[name] = httpx.Cookies(browser.cookies)
        return found
