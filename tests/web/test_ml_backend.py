"""Label Studio's ML-backend protocol, with requests as Label Studio sends them, and many questions of a project."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from sqlalchemy import Engine
from sqlalchemy import event as database

from rarebox.data import labelstudio
from rarebox.data.export import export_queries
from rarebox.data.review import Batch
from rarebox.errors import UserError
from rarebox.labels.leases import People
from rarebox.pool.ranking import LazyRanking
from rarebox.project.create import create
from rarebox.project.exchange.importing import Imported, bring_in
from rarebox.project.exchange.questions import ask_ahead, open_questions
from rarebox.project.exchange.source import ReviewSource, at_once
from rarebox.project.project import Project
from rarebox.types import Candidates, ImageRecord, Query
from rarebox.web.ml_backend import make_router, router_of
from tests.project.test_exchange import region, sdk

CLASSES = ("cat", "dog")
BOXES = np.array([[10, 20, 50, 60], [100, 20, 150, 90], [60, 5, 90, 95], [10, 10, 90, 90]], dtype=np.float32)
IMAGE_OF = np.array([1, 1, 1, 2])
SCORES = np.array([0.5, 0.6, 0.2, 0.9], dtype=np.float32)
LABELS = np.array([0, 1, 1, 0])

CONFIG = labelstudio.config(CLASSES)
EXPLORE_NOT = {"selection.exploration": 0}


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Three photos of 200 x 100 pixels, and the ranking of cycle 2: three boxes on the first, one on the second."""
    (tmp_path / "photos").mkdir()
    for name in "abc":
        Image.new("RGB", (200, 100)).save(tmp_path / "photos" / f"{name}.jpg")
    create(
        tmp_path / "project", tmp_path / "photos", CLASSES, changes={"budget": [3], "people.overlap": 0, **EXPLORE_NOT}
    )
    now = Project(tmp_path / "project")
    now.store.open_cycle(2)
    u = np.array([0.9, 0.8, 0.7, 0.6])
    candidates = Candidates(IMAGE_OF, np.arange(4), BOXES, LABELS, SCORES, u, u, np.zeros((4, 0)))
    now.folder.cycle(2).mkdir()
    now.write_ranking(2, LazyRanking.of(candidates, enumerate(u.tolist())), np.array([0.5, 0.5]), np.array([2, 2]))
    yield now
    now.store.close()


@pytest.fixture
def client(project: Project) -> Iterator[TestClient]:
    ask_ahead(project.folder.root, 10)
    app = FastAPI()
    app.include_router(router_of(ReviewSource(project)), prefix="/labelstudio")
    with TestClient(app, base_url="http://testserver/labelstudio/") as opened:
        yield opened


def task(number: int, name: str, **data: Any) -> dict[str, Any]:
    """A task as Label Studio sends it, with many irrelevant fields."""
    return {
        "id": number,
        "data": {"image": f"/data/upload/1/1a2b3c4d-{name}", **data},
        "meta": {},
        "project": 1,
        "created_at": "2026-11-23T18:00:00Z",
        "updated_at": "2026-11-23T18:00:00Z",
        "is_labeled": False,
        "overlap": 1,
        "inner_id": number,
        "total_annotations": 0,
        "cancelled_annotations": 0,
        "total_predictions": 0,
        "file_upload": 3,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "updated_by": 1,
        "comment_authors": [],
        "annotations": [],
        "predictions": [],
    }


def ask(client: TestClient, *names: str) -> list[dict[str, Any]]:
    answer = client.post(
        "predict",
        json={
            "tasks": [task(n, name) for n, name in enumerate(names, 1)],
            "project": "1.1732380000",
            "label_config": CONFIG,
            "params": {"login": None, "password": None, "context": None},
        },
    )
    assert answer.status_code == 200, answer.text
    return answer.json()["results"]


def event(action: str, name: str, prediction: dict[str, Any], result: list[Any], **more: Any) -> dict[str, Any]:
    """A webhook's payload."""
    annotation = {
        "id": 5,
        "result": result,
        "completed_by": 7,
        "was_cancelled": False,
        "ground_truth": False,
        "task": 1,
        "created_at": "2026-11-23T18:10:00Z",
        "updated_at": "2026-11-23T18:10:00Z",
        "lead_time": 4.5,
        "project": 1,
        "prediction": {"id": 9, **prediction},
        "parent_prediction": 9,
        "parent_annotation": None,
        "unique_id": "x",
        "result_count": len(result),
        "import_id": None,
        "last_action": None,
        "last_created_by": None,
        **more,
    }
    return {"action": action, "annotation": annotation, "task": task(1, name), "project": {"id": 1, "title": "t"}}


def test_health_setup_and_versions(client: TestClient) -> None:
    assert client.get("health").json()["status"] == "UP"
    assert client.get("").json()["status"] == "UP"
    body = {
        "project": "1.1732380000",
        "schema": CONFIG,
        "hostname": "http://localhost:8080",
        "access_token": "t",
        "extra_params": None,
    }
    assert client.post("setup", json=body).json() == {"model_version": "rarebox cycle 2"}
    assert client.get("versions").json() == {"versions": ["rarebox cycle 2"]}
    refused = client.post("setup", json={**body, "schema": labelstudio.config(["cat"])})
    assert refused.status_code == 400
    assert "no rectangle label for dog" in refused.json()["detail"]
    assert client.post("setup", json={**body, "schema": "<View"}).status_code == 400
    assert client.get("is_training").json() == {"is_training": False}
    assert client.post("job_status", json={"job": "1"}).status_code == 410


def test_predictions_are_the_open_questions_and_what_else_is_likely(client: TestClient, project: Project) -> None:
    first, second, third, fourth = ask(client, "a.jpg", "c.jpg", "b.jpg", "unknown.jpg")
    (about_a, about_b) = project.store.unanswered(2)
    # One question an image is open at a time; the second box of the first image is likely (0.6), the third not (0.2).
    assert [r["id"].split("-")[0] for r in first["result"]] == ["query", "guess"]
    assert first["result"][0]["id"].startswith(f"query-{about_a.id}-")
    assert [r["value"]["rectanglelabels"] for r in first["result"]] == [["cat"], ["dog"]]
    assert [r["score"] for r in first["result"]] == pytest.approx([0.5, 0.6])
    assert [r["id"][:-9] for r in third["result"]] == [f"query-{about_b.id}"]
    assert second["result"] == fourth["result"] == []
    for prediction in (first, second, third):
        assert prediction["model_version"] == "rarebox cycle 2"


def test_label_studios_own_library_accepts_the_predictions(client: TestClient) -> None:
    interface = sdk("label_interface.interface").LabelInterface(CONFIG)
    for prediction in ask(client, "a.jpg", "b.jpg"):
        assert prediction["result"]
        assert interface.validate_prediction(prediction, return_errors=True) == []


def test_an_annotation_becomes_answers_immediately(client: TestClient, project: Project) -> None:
    shown = ask(client, "a.jpg")[0]
    kept = [{**r, "origin": "prediction"} for r in shown["result"]]
    drawn = region([0, 0, 20, 10], "dog")
    answer = client.post("webhook", json=event("ANNOTATION_CREATED", "a.jpg", shown, [*kept, drawn]))
    assert answer.status_code == 201
    assert answer.json()["result"] == {**zeros(), "objects": 1, "missed": 2}
    said = project.store.labels()[1]
    assert sorted(said.boxes.tolist()) == sorted([*BOXES[:2].tolist(), [0, 0, 20, 10]])
    assert {given.answer.by for given in People(project.store).given()} == {"user 7"}
    # Sent again, as Label Studio does on every save, it changes nothing. A deleted guess is found by what was shown.
    again = client.post("webhook", json=event("ANNOTATION_UPDATED", "a.jpg", shown, [*kept, drawn]))
    assert again.json()["result"] == {**zeros(), "unchanged": 3}
    changed = client.post("webhook", json=event("ANNOTATION_UPDATED", "a.jpg", shown, kept[1:]))
    assert changed.json()["result"] == {**zeros(), "no_objects": 1, "unchanged": 1, "withdrawn": 1}
    assert project.store.labels()[1].rejected.tolist() == BOXES[:1].tolist()
    # The image has no open question, but the ranking has more.
    assert [r["id"] for r in ask(client, "a.jpg")[0]["result"]] == []


@pytest.mark.parametrize("later", [False, True])
def test_a_confirmed_guess_keeps_its_class_whatever_the_names_mean_now(
    later: bool, client: TestClient, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    """The task was exported, then the names of two classes were exchanged, before or after it was shown."""
    exported, people = {"rarebox": {"project": project.store.session()}}, People(project.store)

    def exchange() -> None:
        for label, name in ((0, "owl"), (1, "cat"), (0, "dog")):
            people.rename_class(label, name, "Ann")

    def submit(shown: dict[str, Any], *result: dict[str, Any]) -> Any:
        sent = event("ANNOTATION_CREATED", "a.jpg", shown, [{**one, "origin": "prediction"} for one in result])
        sent["task"]["data"].update(exported)
        return client.post("webhook", json=sent)

    if not later:
        exchange()
    shown = ask(client, "a.jpg")[0]
    if later:
        exchange()
    (guess, _) = shown["result"]
    assert guess["value"]["rectanglelabels"] == ["cat" if later else "dog"]
    changed = {**guess, "value": {**guess["value"], "rectanglelabels": ["dog" if later else "cat"]}}
    with caplog.at_level("WARNING"):
        submit(shown, changed)
    assert "and is another class now" in caplog.text
    assert project.store.labels() == {}
    assert submit(shown, guess).json()["result"]["objects"] == 1
    assert project.store.labels()[1].labels.tolist() == [0]


def test_another_persons_deleted_box_is_kept_and_reported(
    client: TestClient, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    drawn = region([5, 5, 20, 20], "dog", "x")
    client.post("webhook", json=event("ANNOTATION_CREATED", "a.jpg", {}, [drawn], parent_prediction=None))
    other = event("ANNOTATION_CREATED", "a.jpg", {}, [], id=6, completed_by=8, parent_prediction=None)
    with caplog.at_level("WARNING"):
        assert client.post("webhook", json=other).json()["result"] == {**zeros(), "left": 1}
    assert "task 1: another person answered differently. Answers not used: 1" in caplog.text
    assert project.store.labels()[1].boxes.tolist() == [[5, 5, 20, 20]]


def test_annotations_created_in_bulk_are_all_recorded(
    client: TestClient, project: Project, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = (
        event("ANNOTATION_CREATED", name, {}, [region([5, 5, 20, 20], "dog")], id=n, task=n, parent_prediction=None)
        for n, name in ((1, "a.jpg"), (2, "b.jpg"))
    )
    two["task"]["id"] = 2
    told = {"action": "ANNOTATIONS_CREATED", "task": [one["task"], two["task"]], "project": {"id": 1}}
    told["annotation"] = [two["annotation"], one["annotation"]]  # tasks are in any order
    assert client.post("webhook", json=told).json() == {"result": {**zeros(), "missed": 2}, "status": "ok"}
    assert {i: said.boxes.tolist() for i, said in project.store.labels().items()} == {
        1: [[5, 5, 20, 20]],
        2: [[5, 5, 20, 20]],
    }
    # An invalid one does not block the others.
    told["annotation"] = [
        {**two["annotation"], "id": 3, "result": None},
        {**one["annotation"], "id": 4, "result": [region([50, 5, 90, 20], "cat", "n")]},
    ]
    refused = client.post("webhook", json=told)
    assert (refused.status_code, "task 2" in refused.json()["detail"]) == (422, True)
    assert "NOT recorded. Task 2, annotation 3" in caplog.text  # nobody reads the reply
    assert [50, 5, 90, 20] in project.store.labels()[1].boxes.tolist()
    told["annotation"] = [{**two["annotation"], "task": 9}]
    assert client.post("webhook", json=told).status_code == 422


def test_the_webhook_also_accepts_shapes_rotated_boxes_and_folders(tmp_path: Path) -> None:
    for name in ("cam1", "cam2"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(tmp_path / "photos" / name / "1.jpg")
    create(tmp_path / "project", tmp_path / "photos", CLASSES)
    project = Project(tmp_path / "project")
    app = FastAPI()
    app.include_router(router_of(ReviewSource(project)))
    (second,) = (i for i, record in project.store.images().items() if "cam2" in record.path)
    drawn = [
        {
            **region([0, 0, 1, 1], "cat", "p"),
            "type": "polygonlabels",
            "value": {"points": [[10, 10], [20, 30], [5, 40]], "polygonlabels": ["cat"]},
        },
        region([100, 50, 140, 70], "dog", "t", rotation=90),
    ]
    key_point = {
        **region([0, 0, 1, 1], "cat", "k"),
        "type": "keypointlabels",
        "value": {"x": 5, "y": 5, "width": 1, "keypointlabels": ["cat"]},
    }
    told = event("ANNOTATION_CREATED", "1.jpg", {}, [*drawn, key_point], parent_prediction=None)
    told["task"]["data"]["image"] = "/data/local-files/?d=mnt/cam2/1.jpg"
    with TestClient(app) as client:
        answer = client.post("/webhook", json=told)
    assert answer.json()["result"] == {**zeros(), "missed": 2, "shapes": 1}
    said = project.store.labels()[second].boxes
    assert said.tolist() == [pytest.approx([10, 10, 40, 40]), pytest.approx([80, 50, 100, 90])]
    project.store.close()


def zeros() -> dict[str, int]:
    return dict.fromkeys(Imported.__dataclass_fields__, 0)


def test_other_events_and_skipped_tasks_change_nothing(client: TestClient, project: Project) -> None:
    shown = ask(client, "a.jpg")[0]
    assert client.post("webhook", json={"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 5}]}).status_code == 201
    assert client.post("webhook", json={"action": "START_TRAINING", "project": {"id": 1}}).status_code == 201
    skipped = client.post("webhook", json=event("ANNOTATION_CREATED", "a.jpg", shown, [], was_cancelled=True))
    assert skipped.json()["result"] == zeros()
    assert People(project.store).given() == []


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"task": task(1, "unknown.jpg")}, "unknown.jpg' is not in the store"),
        ({"task": None}, "payload"),
        ({"task": {"data": {"text": "no image"}}}, "names no"),
        ({"task": {"data": {"one": "a.png", "other": "b.png"}}}, "nor a single picture"),
    ],
)
def test_invalid_events_are_refused(client: TestClient, project: Project, change: Any, wanted: str) -> None:
    shown = ask(client, "a.jpg")[0]
    answer = client.post("webhook", json={**event("ANNOTATION_CREATED", "a.jpg", shown, shown["result"]), **change})
    assert answer.status_code == 422
    assert wanted in answer.json()["detail"]
    assert People(project.store).given() == []


def test_an_annotation_with_an_unreadable_result_withdraws_nothing(client: TestClient, project: Project) -> None:
    shown = ask(client, "a.jpg")[0]
    drawn = region([5, 5, 20, 20], "dog", "x")
    assert client.post("webhook", json=event("ANNOTATION_CREATED", "a.jpg", shown, [drawn])).status_code == 201
    before = project.store.labels()[1].boxes.tolist()
    assert before
    told = event("ANNOTATION_UPDATED", "a.jpg", shown, [])
    for result in ("x", "[", [None], ["x"], [3], None, 3):
        told["annotation"]["result"] = result
        answer = client.post("webhook", json=told)
        assert answer.status_code == 422, result
        assert "result" in answer.json()["detail"], result
        assert project.store.labels()[1].boxes.tolist() == before, result


def test_an_event_that_arrives_late_undoes_nothing(client: TestClient, project: Project) -> None:
    shown = ask(client, "a.jpg")[0]
    first, second = region([5, 5, 20, 20], "dog", "x"), region([40, 5, 60, 20], "cat", "y")
    later = event("ANNOTATION_UPDATED", "a.jpg", shown, [first, second], updated_at="2026-01-02T10:00:00Z")
    earlier = event("ANNOTATION_CREATED", "a.jpg", shown, [first], updated_at="2026-01-01T10:00:00Z")
    assert client.post("webhook", json=later).json()["result"]["missed"] == 2
    boxes = project.store.labels()[1].boxes.tolist()
    assert "later state" in client.post("webhook", json=earlier).json()["status"]
    assert project.store.labels()[1].boxes.tolist() == boxes
    newest = event("ANNOTATION_UPDATED", "a.jpg", shown, [second], updated_at="2026-01-03T10:00:00Z")
    assert client.post("webhook", json=newest).json()["result"]["withdrawn"] == 1


@pytest.mark.parametrize("path", ["predict", "setup", "webhook"])
def test_malformed_requests_are_refused(client: TestClient, path: str) -> None:
    for body in ("[]", "nonsense", '{"tasks": 3, "schema": 4, "action": 5}'):
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, body


def test_any_provider_works() -> None:
    told: list[Any] = []
    app = FastAPI()

    def record(batch: Batch) -> Future[dict[str, int]]:
        told.append(batch)
        return at_once(dict[str, int])

    app.include_router(make_router(lambda images: [None] * len(images), lambda: CLASSES, lambda: "v", record))
    with TestClient(app) as client:
        assert client.post("/predict", json={"tasks": [task(1, "a.jpg"), {"id": 2}]}).json() == {
            "results": [{"model_version": "v", "score": 0.0, "result": []}] * 2,
            "model_version": "v",
        }
        client.post("/webhook", json=event("ANNOTATION_CREATED", "a.jpg", {"result": [{"id": "query-3"}]}, []))
    assert [one.queries for one in told[0].returned] == [(3,)]


def test_an_event_reads_only_the_rows_of_its_image(client: TestClient, project: Project) -> None:
    """Otherwise each annotation would delay everybody's answers while the whole store is read."""
    shown = ask(client, "a.jpg")[0]
    statements: list[tuple[str, Any]] = []

    @database.listens_for(Engine, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, values: Any, *___: Any) -> None:
        statements.append((statement, values))

    try:
        drawn = [*shown["result"], region([5, 5, 20, 20], "dog", "x")]
        for result in (drawn, drawn[:-1]):
            answer = client.post("webhook", json=event("ANNOTATION_UPDATED", "a.jpg", shown, result))
            assert answer.json()["status"] == "ok"
    finally:
        database.remove(Engine, "before_cursor_execute", note)
    tables = ("queries", "answers", "images", "image_moves")
    asked = [(s, v) for s, v in statements if s.startswith("SELECT") and any(name in s for name in tables)]
    plans = list[str]()
    with project.store.transaction() as connection:
        for statement, values in asked:
            plans += [row[-1] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert plans
    assert [plan for plan in plans if plan.startswith(tuple(f"SCAN {name}" for name in tables))] == []


def app_that_waits() -> tuple[FastAPI, list[Future[dict[str, int]]]]:
    """The routes, and what they are waiting for: each event is recorded when its future has a result."""
    waiting: list[Future[dict[str, int]]] = []

    def record(batch: Batch) -> Future[dict[str, int]]:
        waiting.append(Future())
        return waiting[-1]

    app = FastAPI()
    app.include_router(make_router(lambda _: [], lambda: CLASSES, lambda: "v", record))
    return app, waiting


def test_events_that_wait_for_the_writing_thread_hold_no_other_thread() -> None:
    app, waiting = app_that_waits()
    events = [event("ANNOTATION_CREATED", "a.jpg", {}, [], id=number) for number in range(60)]

    async def scenario() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            asyncio.TaskGroup() as group,
        ):
            sent = [group.create_task(client.post("/webhook", json=one)) for one in events]
            while len(waiting) < len(events):
                await asyncio.sleep(0)
            assert (await client.get("/versions")).json() == {"versions": ["v"]}
            for future in waiting:
                future.set_result({"missed": 1})
        assert {one.result().status_code for one in sent} == {201}

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_two_events_of_one_annotation_are_recorded_in_turn() -> None:
    app, waiting = app_that_waits()
    late, early = (
        event("ANNOTATION_UPDATED", "a.jpg", {}, [], updated_at=f"2026-01-0{day}T10:00:00Z") for day in (2, 1)
    )

    async def scenario() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
            asyncio.TaskGroup() as group,
        ):
            first = group.create_task(client.post("/webhook", json=late))
            while not waiting:
                await asyncio.sleep(0)
            second = group.create_task(client.post("/webhook", json=early))
            for _ in range(100):
                await asyncio.sleep(0)
            waiting[0].set_result({})
        assert first.result().json()["status"] == "ok"
        assert "later state" in second.result().json()["status"]

    asyncio.run(asyncio.wait_for(scenario(), 20))
    assert len(waiting) == 1


def test_a_photo_added_while_the_server_runs_is_found(client: TestClient, project: Project) -> None:
    assert ask(client, "new.jpg")[0]["result"] == []
    place = str(project.folder.root / "new.jpg")
    project.store.add_images([ImageRecord(9, place, 200, 100)])
    drawn = event("ANNOTATION_CREATED", "new.jpg", {}, [region([5, 5, 20, 20], "dog")], parent_prediction=None)
    assert client.post("webhook", json=drawn).json()["result"]["missed"] == 1
    project.store.move_images({9: str(project.folder.root / "renamed.jpg")})
    told = {**event("ANNOTATION_CREATED", "renamed.jpg", {}, [], parent_prediction=None)}
    told["annotation"]["id"] = 6
    assert client.post("webhook", json=told).json()["result"]["withdrawn"] == 1


@pytest.mark.parametrize(
    ("early", "late"),
    [
        ({"updated_at": "2026-01-01T10:00:00Z"}, {"updated_at": "2026-01-01T09:00:00-08:00"}),
        ({"updated_at": "2026-01-01T10:00:00Z"}, {"updated_at": None, "created_at": "2026-01-02T10:00:00Z"}),
        ({"updated_at": "soon"}, {"updated_at": "2026-01-01T10:00:00Z"}),
        ({"updated_at": None, "created_at": 1573479560}, {"updated_at": None, "created_at": 1573479561.5}),
    ],
)
def test_the_later_of_two_states_is_found_by_time_not_by_text(
    client: TestClient, project: Project, early: dict[str, Any], late: dict[str, Any]
) -> None:
    shown = ask(client, "a.jpg")[0]
    drawn = region([5, 5, 20, 20], "dog", "x")
    first = event("ANNOTATION_UPDATED", "a.jpg", shown, [drawn], **{"created_at": None, **late})
    second = event("ANNOTATION_UPDATED", "a.jpg", shown, [], **{"created_at": None, **early})
    assert client.post("webhook", json=first).json()["status"] == "ok"
    assert "later state" in client.post("webhook", json=second).json()["status"]
    assert client.post("webhook", json=first).json()["status"] == "ok"


# ------------------------------------------------------------------------------------------- many questions


def test_a_stack_of_questions_is_asked_within_the_budget(project: Project, tmp_path: Path) -> None:
    ask_ahead(project.folder.root, 1)
    assert [q.image_id for q in open_questions(project.store).queries] == [1]
    ask_ahead(project.folder.root, 10)
    ask_ahead(project.folder.root, 10)
    found = open_questions(project.store)
    assert [(q.image_id, q.guess) for q in found.queries] == [(1, 0), (2, 0)]  # one per image
    export_queries(tmp_path / "out", "labelstudio", found.classes, list(found.images.values()), found.queries)
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    for number, sent in enumerate(tasks):
        sent["annotations"] = [{"id": number, "result": sent["predictions"][0]["result"], "parent_prediction": 1}]
    (tmp_path / "back.json").write_text(json.dumps(tasks))
    assert bring_in(project.store, labelstudio.read(tmp_path / "back.json"), "labelstudio") == Imported(objects=2)
    ask_ahead(project.folder.root, 10)
    assert [q.image_id for q in open_questions(project.store).queries] == [1]  # the rest of three
    assert project.budget(2).spent == 2


def test_whole_images_are_sent_without_boxes_and_returned_complete(project: Project, tmp_path: Path) -> None:
    project.store.open_cycle(3)
    project.store.ask(3, [Query(3)])
    found = open_questions(project.store)
    export_queries(tmp_path / "out", "labelstudio", found.classes, list(found.images.values()), found.queries)
    (sent,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert "predictions" not in sent
    sent["annotations"] = [{"id": 1, "result": [region([0, 0, 20, 10], "dog")], "parent_prediction": None}]
    (tmp_path / "back.json").write_text(json.dumps([sent]))
    done = bring_in(project.store, labelstudio.read(tmp_path / "back.json"), "labelstudio", complete=True)
    assert done == Imported(missed=1, complete=1)
    assert project.store.unanswered(3) == []
    assert project.store.labels()[3].complete
    found = open_questions(project.store)
    with pytest.raises(UserError, match="no open question"):
        export_queries(tmp_path / "out", "cvat", found.classes, list(found.images.values()), found.queries)
