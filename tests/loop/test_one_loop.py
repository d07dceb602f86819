"""A project answered from the ground truth, and a simulation: both ask, label and train the same."""

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rarebox.core.files import write_json
from rarebox.data.datasets import load
from rarebox.data.listings import Dataset
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.labels.targets import read_targets
from rarebox.loop import rules
from rarebox.loop.cycle import run_cycle
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.simulate import held_out_images
from rarebox.project import trainer
from rarebox.project.create import create
from rarebox.project.exchange.questions import ask_ahead
from rarebox.project.project import HELD_OUT, Project
from rarebox.project.run import open_project
from rarebox.types import Answer, Floats, GroundTruth, ImageRecord, Query
from tests import tiny
from tests.browser import served
from tests.thinned import thinned

CHANGES: dict[str, Any] = {
    **{name: value for name, value in tiny.CHANGES.items() if name not in ("initial_images", "budget")},
    "initial_images": 4,
    "budget": [8],
    "budget_unit": "reviews",
    "people.overlap": 0,
    "oracle.accept_iou": None,  # the page rounds the box shown
    "training.steps": 8,
    "detector.score_threshold": 0.001,
    "scoring.candidate_threshold": 0.001,
}
CYCLES = 3

THRESHOLD = 0.011
"""With this score as the threshold the small network has candidates, and none of some class."""


class Annotator:
    """Answers the page's questions from the ground truth."""

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
        """Answer the questions of one cycle until its budget is spent, holding three at a time as the page does."""
        at_hand = self.post("/api/next", want=3)["queries"]
        while True:
            mine = [query for query in at_hand if query["cycle"] == cycle]
            if not mine or self.state()["budget"]["spent"] >= self.state()["budget"]["of"]:
                return
            query, self.number = mine[0], self.number + 1
            box = None if query["box"] is None else np.array(query["box"], dtype=np.float32)
            said = self.oracle.answer(Query(query["image"]["id"], box, id=query["id"]))
            # For an object that is already labelled, a person answers "can't tell" or skips: neither adds a box.
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


class OracleAtThePage(SimulatedOracle):
    """Sees boxes as the page shows them, with two decimals: an IoU may be just at the threshold."""

    def answer(self, query: Query, proposals: Floats | None = None) -> Answer:
        shown = (
            query.box if query.box is None else np.array([round(side, 2) for side in query.box.tolist()], np.float32)
        )
        return super().answer(replace(query, box=shown), proposals)


def simulate(folder: Path, project: Project, truth: dict[int, GroundTruth]) -> Store:
    """Run the loop with the oracle, starting from the initial images of the project."""
    store = Store(folder / "labels.sqlite", classes=project.store.classes(), flush=False)
    store.add_images(project.store.images().values())
    store.open_cycle(1)
    first = [query for query in project.store.queries(1) if query.asked_by is None]
    asked = store.ask(1, [Query(query.image_id, why=query.why) for query in first])
    oracle = OracleAtThePage(truth, project.settings.oracle.iou)
    store.record([oracle.answer(query) for query in asked])  # before the run: this is the test truth
    run = open_project(RunFolder(folder), project.settings, store, lambda *_: None)
    run.oracle = oracle
    for run.cycle in range(1, CYCLES + 1):
        run.notes, record = [], run_cycle(run, run.cycle)
        write_json(run.folder.metrics, [*run.folder.records(), record])
    return store


def annotate(project: Project, truth: dict[int, GroundTruth]) -> None:
    """Answer the questions of a project one at a time, in this process; the trainer works in between."""
    oracle = SimulatedOracle(truth, project.settings.oracle.iou)
    while len(project.folder.records()) < CYCLES:
        while trainer.advance(project, lambda *_: None):
            pass
        if project.budget(project.cycle).left > 0:
            ask_ahead(project.folder.root, 1)
            project.store.record([oracle.answer(query) for query in project.store.unanswered(project.cycle)[:1]])


def start(folder: Path, known: Dataset, images: Sequence[ImageRecord], **changes: object) -> Project:
    """A project of those images, without their labels."""
    (folder / "photos").mkdir()
    for image in images:
        (folder / "photos" / Path(image.path).name).symlink_to(image.path)
    create(folder / "project", folder / "photos", known.classes, changes={**CHANGES, **changes})
    return Project(folder / "project")


def truth_of(project: Project, known: Dataset) -> dict[int, GroundTruth]:
    """The objects of each image, by its id in the project."""
    by_name = {name(image): known.train.truth[image.id] for image in known.train.images}
    return {i: by_name[name(image)] for i, image in project.store.images().items()}


def name(image: ImageRecord) -> str:
    return re.split(r"[\\/]", image.path)[-1]


def asked_in(store: Store, cycle: int) -> list[str]:
    """The questions of a cycle as plain values."""
    return [
        repr((query.image_id, None if query.box is None else query.box.tolist(), query.guess, query.utility, query.why))
        for query in store.queries(cycle)
    ]


def trained_in(folder: RunFolder, cycle: int) -> dict[int, dict[str, object]]:
    """The training targets of a cycle: image id -> column -> values."""
    return {
        i: {column: np.asarray(values).tolist() for column, values in vars(targets).items()}
        for i, targets in read_targets(folder.cycle(cycle) / "targets.parquet").items()
    }


@pytest.mark.parametrize(
    ("unit", "budget"), thinned([("seconds", [150, 40]), ("reviews", [16, 8])], lambda number, _: number == 0)
)
def test_a_project_and_a_simulation_ask_and_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: str, budget: list[int]
) -> None:
    called: list[str] = []
    for rule in ("budget_of", "images_to_explore", "held_out"):
        real = getattr(rules, rule)
        monkeypatch.setattr(rules, rule, lambda *a, rule=rule, real=real: called.append(rule) or real(*a))
    known = load(tiny.make_data(tmp_path / "scenes"))
    changes = {
        "initial_images": 6,
        "budget": budget,
        "budget_unit": unit,
        "selection.exploration": 0.5,
        "scoring.candidate_threshold": THRESHOLD,
    }
    with tiny.small_network():
        project = start(tmp_path, known, known.train.images, **changes)
        truth = truth_of(project, known)
        annotate(project, truth)
        assert set(called) == {"budget_of", "images_to_explore", "held_out"}
        called.clear()
        (tmp_path / "again").mkdir()
        with simulate(tmp_path / "again", project, truth) as store:
            assert set(called) == {"budget_of", "images_to_explore"}  # the initial images are the project's
            for cycle in range(2, CYCLES + 1):
                assert asked_in(project.store, cycle) == asked_in(store, cycle)
                assert trained_in(project.folder, cycle) == trained_in(RunFolder(tmp_path / "again"), cycle)
            explored = [query.box is None for query in store.queries(2)]
            assert explored == sorted(explored, reverse=True), "whole images come first"
            assert 1 < sum(explored) < len(explored)
    ours, theirs = project.folder.records(), RunFolder(tmp_path / "again").records()
    assert [{**record, "seconds": {}} for record in ours] == [{**record, "seconds": {}} for record in theirs]
    assert ours[-1]["ap50"] is not None  # measured on the images held out
    first = project.store.queries(1)
    kept = [query.image_id for query in first if query.why and query.why[HELD_OUT]]
    images = [project.store.images()[query.image_id] for query in first]
    assert kept == [image.id for image in held_out_images(images, project.settings.seed)]
    project.store.close()


@pytest.mark.exhaustive
def test_people_and_the_oracle_reach_the_same_labels(tmp_path: Path) -> None:
    known = load(tiny.make_data(tmp_path / "scenes"))
    project = start(tmp_path, known, known.train.images)
    truth = truth_of(project, known)
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
