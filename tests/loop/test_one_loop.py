"""A scripted annotator at the page's own API, and the simulated oracle in the loop: the same labels, cycle by cycle."""

import os
import re
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rarebox.data.datasets import load
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.loop import ask
from rarebox.loop.cycle import rank_pool, train_cycle
from rarebox.loop.run_folder import RunFolder
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.project.run import open_project
from rarebox.types import ImageRecord, Query
from tests import tiny
from tests.browser import served

AQUARIUM = Path(os.environ.get("RAREBOX_AQUARIUM") or Path(__file__).parents[3] / "shared" / "data" / "aquarium")

CHANGES: dict[str, Any] = {
    **{name: value for name, value in tiny.CHANGES.items() if name not in ("initial_images", "budget")},
    "initial_images": 4,
    "budget": [8],
    "budget_unit": "reviews",
    "people.overlap": 0,
    "training.steps": 8,
    "detector.score_threshold": 0.001,
    "scoring.candidate_threshold": 0.001,
}
CYCLES = 3


class Annotator:
    """Answers whatever the page would show, from the truth."""

    def __init__(self, link: str, oracle: SimulatedOracle) -> None:
        self.client, self.oracle, self.number = httpx.Client(base_url=link.split("?")[0], timeout=60), oracle, 0
        assert self.client.get(link).status_code == 303

    def state(self) -> dict[str, Any]:
        return self.client.get("/api/state").json()

    def post(self, route: str, **body: Any) -> dict[str, Any]:
        answer = self.client.post(route, json={"client": "script", **body})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def work(self, cycle: int) -> None:
        """Answer the questions of one cycle until its budget is spent, three of them at hand as in the page."""
        at_hand = self.post("/api/next", want=3)["queries"]
        while True:
            mine = [query for query in at_hand if query["cycle"] == cycle]
            if not mine or self.state()["budget"]["spent"] >= self.state()["budget"]["of"]:
                return
            query, self.number = mine[0], self.number + 1
            box = None if query["box"] is None else np.array(query["box"], dtype=np.float32)
            said = self.oracle.answer(Query(query["image"]["id"], box, id=query["id"]))
            # A person says "can't tell" of what they have labelled already, or moves on: it brings no box either way.
            verdict = {"already_labelled": "cannot_tell"}.get(said.verdict.value, said.verdict.value)
            item = {
                "key": f"{cycle}-{self.number}",
                "query": query["id"],
                "verdict": verdict,
                "boxes": said.boxes.tolist(),
                "labels": said.labels.tolist(),
            }
            done = self.post("/api/answers", answers=[item], want=3)
            assert [result["status"] for result in done["results"]] == ["saved"]
            at_hand = done["queries"]

    def wait_for(self, cycle: int) -> None:
        end = time.monotonic() + 200
        while (state := self.state())["cycle"] < cycle:
            assert time.monotonic() < end, state
            assert state["trainer"]["state"] != "failed", state
            time.sleep(0.3)


def simulate(folder: Path, project: Project, truth: dict[int, Any]) -> Store:
    """The loop with the oracle, from the same first images on."""
    store = Store(folder / "labels.sqlite", classes=project.store.classes(), flush=False)
    store.add_images(project.store.images().values())
    store.open_cycle(1)
    first = [query for query in project.store.queries(1) if query.asked_by is None]
    store.ask(1, [Query(query.image_id, why=query.why) for query in first])
    run = open_project(RunFolder(folder), project.settings, store, lambda *_: None)
    run.oracle = SimulatedOracle(truth, project.settings.oracle.iou)
    ask.answer_all(run, store.unanswered(1))
    run = open_project(RunFolder(folder), project.settings, store, lambda *_: None)
    run.oracle = SimulatedOracle(truth, project.settings.oracle.iou)
    run.oracle.remember(store.answered())
    train_cycle(run, 1, None)
    for cycle in range(2, CYCLES + 1):
        run.cycle = cycle
        store.open_cycle(cycle)
        ranked = rank_pool(run, cycle)
        ask.ask(run, cycle, ranked)
        if cycle < CYCLES:
            train_cycle(run, cycle, ranked)
    return store


def test_people_and_the_oracle_reach_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as this process; other sums of floats come out otherwise
    known = load(AQUARIUM if AQUARIUM.exists() else tiny.make_data(tmp_path / "scenes"))
    images = known.train.images[:16]
    (tmp_path / "photos").mkdir()
    for image in images:
        (tmp_path / "photos" / Path(image.path).name).symlink_to(image.path)
    create(tmp_path / "project", tmp_path / "photos", known.classes, changes=CHANGES)
    project = Project(tmp_path / "project")

    def name(image: ImageRecord) -> str:
        return re.split(r"[\\/]", image.path)[-1]

    by_name = {name(image): known.train.truth[image.id] for image in images}
    truth = {i: by_name[name(image)] for i, image in project.store.images().items()}
    with served(tmp_path / "project") as link:
        annotator = Annotator(link, SimulatedOracle(truth, project.settings.oracle.iou))
        for cycle in range(1, CYCLES + 1):
            annotator.wait_for(cycle)
            annotator.work(cycle)
        annotator.client.close()
    (tmp_path / "again").mkdir()
    with simulate(tmp_path / "again", project, truth) as store:
        for cycle in range(1, CYCLES + 1):
            asked, again = project.store.queries(cycle), store.queries(cycle)
            budget = project.budget(cycle).total
            told = [(q.image_id, None if q.box is None else q.box.round(2).tolist(), q.utility) for q in asked[:budget]]
            assert told == [
                (q.image_id, None if q.box is None else q.box.round(2).tolist(), q.utility) for q in again[:budget]
            ], cycle
            assert len(told) == budget
        ours, theirs = project.store.labels(), store.labels()
        assert ours.keys() == theirs.keys()
        assert sum(len(said.boxes) for said in ours.values()) > 0
        for i in ours:
            np.testing.assert_array_equal(ours[i].boxes, theirs[i].boxes)
            np.testing.assert_array_equal(ours[i].labels, theirs[i].labels)
            np.testing.assert_array_equal(ours[i].rejected, theirs[i].rejected)
    project.store.close()
