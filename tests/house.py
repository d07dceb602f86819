"""A small project behind a server, and browsers that are signed in."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from anyio.from_thread import BlockingPortal, start_blocking_portal
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from rarebox.core.files import write_json
from rarebox.pool import candidates
from rarebox.pool.last import WIDTH
from rarebox.pool.ranking import LazyRanking
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.types import Candidates, Query
from rarebox.web.app import make_app
from rarebox.web.security import Authenticator, Visitor
from rarebox.web.service import AnnotationService

HOST = "localhost:8765"
CLASSES = ("fish", "ray", "shark")
BOX = [10.0, 10.0, 50.0, 40.0]
CHANGES: dict[str, Any] = {
    "initial_images": 3,
    "budget": [6],
    "budget_unit": "reviews",
    "people.overlap": 0,
    "selection.exploration": 0,
}


def make_project(folder: Path, images: int = 12, **changes: Any) -> Project:
    """A project of grey photos (96 x 64) in ``folder / "project"``, without questions."""
    photos = folder / "photos"
    photos.mkdir(parents=True)
    for number in range(1, images + 1):
        Image.new("RGB", (96, 64), (10 * number, 90, 90)).save(photos / f"photo{number:02d}.jpg")
    named = {name.replace("__", "."): value for name, value in changes.items()}
    create(folder / "project", photos, CLASSES, changes={**CHANGES, **named})
    return Project(folder / "project")


def ask_whole_images(project: Project, *image_ids: int) -> None:
    """Open the first cycle, as the trainer does."""
    project.store.open_cycle(1)
    project.store.ask(1, [Query(image_id) for image_id in image_ids])


def open_cycle(project: Project, cycle: int, image_ids: range | list[int], guess: int = 0) -> None:
    """Open a cycle with one candidate on each of these images, ranked in this order. Earlier cycles are trained."""
    count = len(image_ids)
    found = Candidates(
        image_id=np.array(image_ids),
        box_index=np.zeros(count, np.int64),
        boxes=np.array([BOX] * count),
        labels=np.full(count, guess),
        scores=np.linspace(0.9, 0.1, count),
        uncertainty=np.linspace(0.8, 0.2, count),
        box_consistency=np.ones(count),
        class_probs=np.zeros((count, 0)),
    )
    project.folder.cycle(cycle).mkdir()
    order = LazyRanking.of(found, enumerate(found.scores.tolist()))
    counts = np.bincount(found.labels, minlength=len(CLASSES))
    project.write_ranking(cycle, order, np.ones(len(CLASSES)) / len(CLASSES), counts)
    write_json(project.folder.metrics, [record(number) for number in range(1, cycle)])
    project.store.open_cycle(1)
    project.store.open_cycle(cycle)


def keep_features(project: Project, cycle: int, *degrees: float) -> None:
    """Store features of the candidates of a cycle in their order, as the trainer does: the cosine of two of them is
    that of the angle between them."""
    ranked = project.read_ranking(cycle).candidates
    found = replace(ranked, features=directions(*degrees), class_probs=np.zeros((len(ranked), 1)))
    candidates.write(project.folder.cycle(cycle) / "candidates" / "shard_00000.parquet", found)


def directions(*degrees: float) -> NDArray[np.float64]:
    """Unit vectors of the width of a sketch, all in one plane, at these angles."""
    angles = np.radians(degrees)
    return np.pad(np.stack([np.cos(angles), np.sin(angles)], axis=1), ((0, 0), (0, WIDTH - 2)))


def record(cycle: int) -> dict[str, Any]:
    """The record of a finished cycle."""
    return {"cycle": cycle, "labels": 3, "reviews": 3 * cycle, "ap50": 0.1 * cycle, "seconds": {"fit": 1.0}}


def item(**what: Any) -> dict[str, Any]:
    """One answer with a new key: by default "object" with one box."""
    if what.get("verdict", "object") == "object" and not what.get("complete"):
        what = {"boxes": [BOX], "labels": [0], **what}
    return {"key": str(uuid4()), "milliseconds": 1200, "verdict": "object", **what}


class Browser:
    """One browser tab: its cookies, and the page's requests."""

    def __init__(self, client: TestClient, name: str = "tab") -> None:
        self.http, self.tab = client, name

    def get(self, path: str, **query: Any) -> Any:
        """The reply to a GET. Fails the test unless it succeeds."""
        reply = self.http.get(path, params=query)
        assert reply.status_code == 200, reply.text
        return reply.json()

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The reply to a POST. Fails the test unless it succeeds."""
        reply = self.http.post(path, json=body or {})
        assert reply.status_code == 200, reply.text
        return reply.json()

    def refused(self, path: str, body: dict[str, Any], status: int = 400) -> str:
        """The error message of a refused POST."""
        reply = self.http.post(path, json=body)
        assert reply.status_code == status, reply.text
        assert list(reply.json()) == ["error"]
        return reply.json()["error"]

    def next(self, want: int = 3) -> list[dict[str, Any]]:
        """Up to ``want`` questions for this tab."""
        return self.post("/api/next", {"client": self.tab, "want": want})["queries"]

    def answer(self, *items: dict[str, Any], want: int = 0) -> dict[str, Any]:
        """Send answers in one request."""
        return self.post("/api/answers", {"client": self.tab, "answers": items, "want": want})

    def say(self, **what: Any) -> dict[str, Any]:
        """Send one answer and return its result."""
        (result,) = self.answer(item(**what))["results"]
        return result

    def saved(self, **what: Any) -> int:
        """Send one answer that must be saved, and return its number."""
        result = self.say(**what)
        assert result["status"] == "saved", result
        return result["answer"]


class House:
    """A project with its annotation service and application."""

    portal: BlockingPortal | None = None

    def __init__(self, project: Project, host: str = "127.0.0.1", also: tuple[str, ...] = ()) -> None:
        self.project, self.authenticator = project, Authenticator(b"a secret for tests")
        self.service = AnnotationService(project, train=False)
        self.app = make_app(self.service, self.authenticator, host, also)

    def stranger(self, host: str = HOST, **options: Any) -> TestClient:
        """A browser without a cookie."""
        client = TestClient(self.app, base_url=f"http://{host}", follow_redirects=False, **options)
        client.portal = self.portal
        return client

    def browser(self, name: str | None = "anna", tab: str = "tab") -> Browser:
        """A browser that is signed in with a one-time link."""
        client = self.stranger()
        reply = client.get("/", params={"token": self.authenticator.one_time_link(Visitor(name))})
        assert reply.status_code == 303
        return Browser(client, tab)


@contextmanager
def opened(project: Project, **options: Any) -> Iterator[House]:
    """A house that is closed at the end. Its requests share one event loop; starting one for each would double their
    cost."""
    house = House(project, **options)
    with start_blocking_portal() as house.portal:
        try:
            yield house
        finally:
            house.service.close()
