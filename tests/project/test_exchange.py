"""Questions to Label Studio and CVAT, and the returned answers: nothing is lost, doubled or invented."""

import copy
import html
import json
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hotcoco
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox.cli.main import app, main
from rarebox.data import cvat, labelstudio
from rarebox.data.export import Annotations, export, export_queries
from rarebox.data.review import Batch, Region, Returned
from rarebox.errors import UserError
from rarebox.labels.leases import People, Submission
from rarebox.labels.store import Store
from rarebox.loop.run_folder import open_store
from rarebox.project.exchange.importing import Imported, bring_in
from rarebox.project.exchange.questions import open_questions
from rarebox.types import Answer, ImageRecord, Query, Source, Verdict

CLASSES = ("cat", "a dog & <friends>", "owl")
BOXES = ([10, 20, 50, 60], [100.25, 20.5, 150, 90], [30, 30, 70.75, 80])
GUESSES = (0, 1, 2)
IMAGES = (0, 0, 1)

Task = dict[str, Any]
Edit = Callable[[list[Task]], None]


def sdk(part: str) -> Any:
    """A module of Label Studio's own library. Other tests do not need it, because it pins an older NumPy."""
    return pytest.importorskip(f"label_studio_sdk.{part}")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A store with two images of 200 x 100 pixels, and three open questions, two about the first."""
    (tmp_path / "project" / "photos").mkdir(parents=True)
    records = [ImageRecord(4 + n, str(tmp_path / "project" / "photos" / f"{n} ä.png"), 200, 100) for n in range(2)]
    for record in records:
        Image.new("RGB", (200, 100)).save(record.path)
    with Store(tmp_path / "project" / "labels.sqlite", classes=CLASSES) as store:
        store.add_images(records)
        store.open_cycle(2)
        store.ask(
            2,
            [
                Query(4 + image, np.array(box), guess, 0.5, {"score": 0.25 + guess / 4, "rank": guess})
                for image, box, guess in zip(IMAGES, BOXES, GUESSES, strict=True)
            ],
        )
    return tmp_path / "project"


@pytest.fixture
def store(project: Path) -> Iterator[Store]:
    with open_store(project) as opened:
        yield opened


def send(project: Path, to: Path, format: str) -> Path:
    """Export the open questions."""
    with open_store(project) as store:
        found = open_questions(store)
    export_queries(to, format, found.classes, list(found.images.values()), found.queries)
    return to


def nothing(result: list[Task]) -> None:
    """A person who accepts everything."""


def annotated(project: Path, to: Path, edit: Edit = nothing, only: int | None = None, **more: Any) -> Path:
    """Label Studio's export after somebody has accepted the predictions, changed them and submitted."""
    tasks = json.loads((send(project, to / "out", "labelstudio") / "tasks.json").read_text())
    exported = []
    for number, task in enumerate(tasks):
        result = [{**region, "origin": "prediction"} for region in task["predictions"][0]["result"]]
        if only is None or only == number:
            edit(result)
        annotation = {
            "id": 30 + number,
            "completed_by": 1,
            "result": result,
            "was_cancelled": False,
            "ground_truth": False,
            "created_at": "2026-11-23T18:00:00.000000Z",
            "updated_at": "2026-11-23T18:00:09.000000Z",
            "lead_time": 9.0,
            "prediction": {},
            "result_count": len(result),
            "parent_prediction": 70 + number,
            **more,
        }
        exported.append(
            {**task, "id": 10 + number, "annotations": [annotation], "drafts": [], "meta": {}, "project": 1}
        )
    file = to / "exported.json"
    file.write_text(json.dumps(exported))
    return file


def region(box: Sequence[float], name: str, key: str = "dRaWn1", **more: Any) -> Task:
    """A rectangle as Label Studio's page makes it, on an image of 200 x 100 pixels."""
    x1, y1, x2, y2 = box
    value = {"x": x1 / 2, "y": y1, "width": (x2 - x1) / 2, "height": y2 - y1, "rotation": 0, "rectanglelabels": [name]}
    return {
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": {**value, **more},
        "id": key,
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
    }


def verdicts(store: Store) -> dict[int, tuple[str, list[list[float]], list[int]]]:
    return {q.id: (a.verdict.value, a.boxes.tolist(), a.labels.tolist()) for q, a in store.answered()}


def everything(store: Store) -> list[Any]:
    """Everything that was ever recorded."""
    return [(g.id, g.query.id, g.answer.verdict, g.answer.boxes.tolist(), g.answer.by) for g in People(store).given()]


# ------------------------------------------------------------------------------------------- export


def test_label_studios_own_library_accepts_the_tasks(project: Path, tmp_path: Path) -> None:
    out = send(project, tmp_path / "out", "labelstudio")
    library, values = sdk("label_interface.interface"), sdk("label_interface.objects")
    interface = library.LabelInterface((out / "config.xml").read_text())
    interface.validate()
    assert [list(names) for names in interface.labels] == [list(CLASSES)]
    tasks = json.loads((out / "tasks.json").read_text())
    assert [len(task["predictions"]) for task in tasks] == [1, 1]  # of two with one version only one would be shown
    for task in tasks:
        assert values.TaskValue(**task).predictions
        assert interface.validate_task({"data": task["data"]})
        prediction = task["predictions"][0]
        assert interface.validate_prediction(prediction, return_errors=True) == []
        assert values.PredictionValue(**prediction).model_version == "rarebox"
        assert prediction["score"] == pytest.approx(np.mean([r["score"] for r in prediction["result"]]))
        name = task["data"]["image"].rsplit("/", 1)[1]
        assert task["data"]["image"].startswith("/data/local-files/?d=out/images/")
        assert (out / "images" / unquote(name)).is_file()
    # Percent of the image's sides.
    value = tasks[0]["predictions"][0]["result"][1]["value"]
    assert [value[side] for side in ("x", "y", "width", "height")] == [50.125, 20.5, 24.875, 69.5]
    assert tasks[0]["data"]["rarebox"]["queries"] == [1, 2]


def test_label_studios_converter_reads_the_labels_as_they_were(project: Path, tmp_path: Path) -> None:
    file = annotated(project, tmp_path)
    config = (tmp_path / "out" / "config.xml").read_text()
    sdk("converter.converter").Converter(config, str(tmp_path)).convert_to_coco(
        str(file), str(tmp_path / "coco"), is_dir=False
    )
    coco = json.loads((tmp_path / "coco" / "result.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    found = sorted((names[a["category_id"]], a["bbox"]) for a in coco["annotations"])
    wanted = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in BOXES]
    assert found == sorted((CLASSES[guess], pytest.approx(box)) for guess, box in zip(GUESSES, wanted, strict=True))


@pytest.mark.parametrize("reader", ["hotcoco", "globox"])
def test_other_libraries_read_the_cvat_file(project: Path, tmp_path: Path, reader: str) -> None:
    file = send(project, tmp_path / "out", "cvat") / "annotations.xml"
    if reader == "hotcoco":
        with pytest.warns(UserWarning, match="2 unsupported"):  # the tags, which it ignores
            coco = hotcoco.COCO.from_cvat(str(file))
        names = {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())}
        found = [(html.unescape(names[a["category_id"]]), a["bbox"]) for a in coco.loadAnns(coco.getAnnIds())]
    else:
        globox = pytest.importorskip("globox")
        boxes = [box for image in globox.AnnotationSet.from_cvat(file) for box in image.boxes]
        found = [(str(b.label), [b.xmin, b.ymin, b.xmax - b.xmin, b.ymax - b.ymin]) for b in boxes]
    wanted = [(CLASSES[g], [b[0], b[1], b[2] - b[0], b[3] - b[1]]) for g, b in zip(GUESSES, BOXES, strict=True)]
    assert sorted(found) == sorted((name, pytest.approx(box, abs=0.011)) for name, box in wanted)
    labels = json.loads((tmp_path / "out" / "labels.json").read_text())
    assert [label["name"] for label in labels] == [*CLASSES, "rarebox"]
    assert {label["type"] for label in labels} == {"rectangle", "tag"}


def test_labels_are_exported_as_annotations(project: Path, tmp_path: Path, store: Store) -> None:
    ones = np.ones(2)
    labels = [
        Annotations(4, np.array(BOXES[:2]), np.array([0, 1]), np.array([Source.HUMAN] * 2), ones, ones, ones, True)
    ]
    images = list(store.images().values())
    export(tmp_path / "ls", "labelstudio", CLASSES, images, labels)
    tasks = json.loads((tmp_path / "ls" / "tasks.json").read_text())
    assert [len(task.get("annotations", [])) for task in tasks] == [1, 0]
    assert [task["data"]["rarebox"]["complete"] for task in tasks] == [True, False]
    export(tmp_path / "cvat", "cvat", CLASSES, images, labels)
    written = ET.parse(tmp_path / "cvat" / "annotations.xml").getroot()
    assert [len(image.findall("box")) for image in written.iter("image")] == [2, 0]
    # And back, as boxes drawn by people; a file without questions adds none.
    for format, reader, name in (("ls", labelstudio, "tasks.json"), ("cvat", cvat, "annotations.xml")):
        with Store(tmp_path / f"{format}.sqlite", classes=CLASSES) as other:
            other.add_images(images)
            assert bring_in(other, reader.read(tmp_path / format / name), format) == Imported(missed=2)
            assert other.labels()[4].boxes == pytest.approx(np.array(BOXES[:2]), abs=0.01)


@pytest.mark.parametrize(("format", "name"), [("labelstudio", "tasks.json"), ("cvat", "annotations.xml")])
def test_the_projects_own_labels_change_nothing(format: str, name: str, tmp_path: Path, store: Store) -> None:
    images, ones = list(store.images().values()), np.ones(2)
    with Store(tmp_path / "own.sqlite", classes=CLASSES) as own:
        own.add_images(images)
        own.open_cycle(1)
        people = People(own)
        for number, box in enumerate(BOXES[:2]):
            drawn = Submission(f"k{number}", Verdict.OBJECT, np.array([box]), np.array([number]), image_id=4)
            assert people.submit("ada", "ada", drawn).status == "saved"
        labels = Annotations(
            4, np.array(BOXES[:2]), np.array([0, 1]), np.array([Source.HUMAN] * 2), ones, ones, ones, False
        )
        export(tmp_path / format, format, CLASSES, images, [labels])
        reader = labelstudio if format == "labelstudio" else cvat
        assert bring_in(own, reader.read(tmp_path / format / name), format) == Imported(unchanged=2)
        assert len(own.queries()) == 2

        # Changed there, they contradict their labels: they are reported, and replaced only on request.
        changed = replace(labels, boxes=labels.boxes + np.array([[4, 0, 4, 0], [0, 0, 0, 0]]), labels=np.array([0, 2]))
        export(tmp_path / "changed", format, CLASSES, images, [changed])
        batch = reader.read(tmp_path / "changed" / name)
        assert bring_in(own, batch, format) == Imported(left=2)
        assert own.labels()[4].labels.tolist() == [0, 1]
        assert bring_in(own, batch, format, instead=True) == Imported(missed=2)
        assert len(own.queries()) == 2
        assert own.labels()[4].labels.tolist() == [0, 2]
        assert own.labels()[4].boxes == pytest.approx(changed.boxes, abs=0.01)


def without_boxes(file: Path, **more: Any) -> Batch:
    """An export of labels in which somebody has deleted all boxes."""
    if file.suffix == ".xml":
        tree = ET.parse(file)
        for image in tree.getroot().iter("image"):
            for box in image.findall("box"):
                image.remove(box)
        tree.write(file)
        return cvat.read(file)
    tasks = json.loads(file.read_text())
    for task in tasks:
        for annotation in task.get("annotations", []):
            annotation.update(result=[], **more)
    file.write_text(json.dumps(tasks))
    return labelstudio.read(file)


@pytest.mark.parametrize(("format", "name"), [("labelstudio", "tasks.json"), ("cvat", "annotations.xml")])
def test_a_deleted_label_is_reported_and_with_replace_withdrawn(
    format: str, name: str, tmp_path: Path, store: Store
) -> None:
    images, ones = list(store.images().values()), np.ones(2)
    none = np.zeros((0, 4)), np.zeros(0, np.int64)
    with Store(tmp_path / "own.sqlite", classes=CLASSES) as own:
        own.add_images(images)
        own.open_cycle(1)
        asked = own.ask(1, [Query(4, np.array(BOXES[0]), 0), Query(4, np.array(BOXES[1]), 0, asked_by="ada"), Query(5)])
        for query, box, label in zip(asked, BOXES, (0, 1, 2), strict=True):
            own.record([Answer(query.id, np.array([box]), np.array([label]), Verdict.OBJECT, "ada")])
        human = np.array([Source.HUMAN] * 2)
        labels = [
            Annotations(4, np.array(BOXES[:2]), np.array([0, 1]), human, ones, ones, ones, False),
            Annotations(5, np.array(BOXES[2:]), np.array([2]), human[:1], ones[:1], ones[:1], ones[:1], True),
        ]
        export(tmp_path / format, format, CLASSES, images, labels)
        before = everything(own)
        batch = without_boxes(tmp_path / format / name)
        assert bring_in(own, batch, format) == Imported(left=2, whole=1)
        assert everything(own) == before
        # A single box of a fully labelled image is kept.
        assert bring_in(own, batch, format, instead=True) == Imported(withdrawn=2, whole=1)
        assert [own.labels()[i].boxes.tolist() for i in (4, 5)] == [[], [BOXES[2]]]
        assert own.labels()[4].rejected.tolist() == [BOXES[0], pytest.approx(BOXES[1])]
        assert bring_in(own, batch, format, instead=True) == Imported(whole=1)
        # The author's own: the question is answered, and the drawn box is withdrawn.
        own.record([Answer(1, *none, Verdict.WITHDRAWN, format), Answer(2, *none, Verdict.WITHDRAWN, format)])
        assert bring_in(own, batch, format, by="ada") == Imported(withdrawn=2, whole=1)
        assert own.labels()[4].rejected.tolist() == [BOXES[0]]


def test_an_annotation_that_did_not_start_from_the_labels_deletes_none(tmp_path: Path, store: Store) -> None:
    images, one = list(store.images().values()), np.ones(1)
    store.record([Answer(1, np.array([BOXES[0]]), np.array([0]), Verdict.OBJECT, "ada")])
    human = np.array([Source.HUMAN])
    labels = Annotations(4, np.array(BOXES[:1]), np.array([0]), human, one, one, one, False)
    for more, wanted in (({"import_id": None}, Imported()), ({"import_id": 1}, Imported(left=1))):
        export(tmp_path / str(wanted), "labelstudio", CLASSES, images, [labels])
        assert bring_in(store, without_boxes(tmp_path / str(wanted) / "tasks.json", **more), "labelstudio") == wanted
    export(tmp_path / "out", "labelstudio", CLASSES, images, [labels])
    # The same for an image that lost the list of its labels.
    tasks = json.loads((tmp_path / "out" / "tasks.json").read_text())
    tasks[0]["data"]["rarebox"]["labels"] = [["cat", [1, 2]]]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match="Export the labels again"):
        labelstudio.read(tmp_path / "x.json")
    del tasks[0]["data"]["rarebox"]["labels"]
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    assert bring_in(store, without_boxes(tmp_path / "x.json"), "labelstudio") == Imported()


def test_a_single_box_of_a_whole_images_answer_is_not_replaced(tmp_path: Path, store: Store) -> None:
    images, ones = list(store.images().values()), np.ones(2)
    with Store(tmp_path / "own.sqlite", classes=CLASSES) as own:
        own.add_images(images)
        own.open_cycle(1)
        (query,) = own.ask(1, [Query(4)])
        own.record([Answer(query.id, np.array(BOXES[:2]), np.array([0, 1]), Verdict.OBJECT, "ada")])
        moved = np.array(BOXES[:2]) + np.array([[4, 0, 4, 0], [0, 0, 0, 0]])
        labels = Annotations(4, moved, np.array([0, 1]), np.array([Source.HUMAN] * 2), ones, ones, ones, False)
        export(tmp_path / "out", "labelstudio", CLASSES, images, [labels])
        batch = labelstudio.read(tmp_path / "out" / "tasks.json")
        assert bring_in(own, batch, "labelstudio", instead=True) == Imported(unchanged=1, whole=1)
        assert own.labels()[4].boxes == pytest.approx(np.array(BOXES[:2]))


# ------------------------------------------------------------------------------------------- round trip


def test_what_was_kept_changed_deleted_and_drawn(project: Path, tmp_path: Path, store: Store) -> None:
    def edit(result: list[Task]) -> None:
        if len(result) == 2:
            result[0]["value"]["rectanglelabels"] = ["owl"]  # another class, the box untouched
            result[1]["value"]["x"] += 5  # moved by ten pixels
            result.append(region([0, 0, 20, 10], "cat"))  # missed
        else:
            result.clear()  # deleted

    batch = labelstudio.read(annotated(project, tmp_path, edit))
    assert bring_in(store, batch, "labelstudio", by="Ada") == Imported(objects=2, no_objects=1, missed=1)
    assert verdicts(store) == {
        1: ("object", [BOXES[0]], [2]),
        2: ("object", [pytest.approx([110.25, 20.5, 160, 90])], [1]),
        3: ("not_an_object", [], []),
        4: ("object", [[0, 0, 20, 10]], [0]),
    }
    assert {g.answer.by for g in People(store).given()} == {"Ada"}
    assert [(q.asked_by, q.guess) for q in store.queries() if q.id == 4] == [("Ada", 0)]
    assert sum(g.answer.milliseconds for g in People(store).given()) == 18_000
    assert not any(said.complete for said in store.labels().values())
    assert open_questions(store).queries == []


@pytest.mark.parametrize("format", ["labelstudio", "cvat"])
def test_importing_twice_changes_nothing(project: Path, tmp_path: Path, store: Store, format: str) -> None:
    if format == "cvat":
        file = from_cvat(project, tmp_path, drawn=[[0, 0, 20, 10], [0, 0, 20, 10]], drop=[2])
    else:
        file = annotated(
            project, tmp_path, lambda result: result.append(region([0, 0, 20, 10], "cat", str(len(result))))
        )
    reader = {"labelstudio": labelstudio, "cvat": cvat}[format]
    first = bring_in(store, reader.read(file), format, complete=True)
    assert first.objects + first.no_objects == 3
    assert (first.missed, first.complete) == (2, 2)
    before = everything(store)
    again = bring_in(store, reader.read(file), format, complete=True)
    assert again == Imported(unchanged=7)
    assert everything(store) == before
    assert len(store.queries()) == 7


def test_a_second_thought_replaces_the_first(project: Path, tmp_path: Path, store: Store) -> None:
    def draw(result: list[Task]) -> None:
        result.append(region([0, 0, 20, 10], "cat"))

    def redraw(result: list[Task]) -> None:
        del result[0]
        result[-1] = region([0, 0, 24, 12], "owl")  # the same region, moved and renamed

    bring_in(store, labelstudio.read(annotated(project, tmp_path, draw, only=0)), "labelstudio")
    file = edited(tmp_path / "exported.json", 0, redraw)
    assert bring_in(store, labelstudio.read(file), "labelstudio") == Imported(no_objects=1, missed=1, unchanged=2)
    assert verdicts(store)[1][0] == "not_an_object"
    assert verdicts(store)[4] == ("object", [[0, 0, 24, 12]], [2])
    assert len(store.queries()) == 4
    gone = edited(file, 0, lambda result: result.pop())
    assert bring_in(store, labelstudio.read(gone), "labelstudio") == Imported(withdrawn=1, unchanged=3)
    assert 4 not in verdicts(store)
    assert bring_in(store, labelstudio.read(gone), "labelstudio") == Imported(unchanged=3)
    assert bring_in(store, labelstudio.read(file), "labelstudio") == Imported(missed=1, unchanged=3)  # drawn again


def edited(file: Path, number: int, edit: Edit | Callable[[list[Task]], Any]) -> Path:
    tasks = json.loads(file.read_text())
    edit(tasks[number]["annotations"][0]["result"])
    other = file.with_stem(file.stem + "-edited")
    other.write_text(json.dumps(tasks))
    return other


def test_keys_made_up_by_a_browser_do_not_stop_an_import(store: Store) -> None:
    def batch() -> Batch:
        region = Region((30.0, 30.0, 70.0, 80.0), CLASSES[0], None, "abc")
        return Batch([Returned("task 1", "0 ä.png", 4, None, (), (region,))])

    theirs = f"cvat:4:{sha256(b'abc').hexdigest()[:24]}"
    nowhere = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    store.record(
        [Answer(3, *nowhere, Verdict.CANNOT_TELL), Answer(3, *nowhere, Verdict.CANNOT_TELL)], [theirs, "cvat:x"]
    )
    assert bring_in(store, batch(), "cvat").missed == 1
    assert bring_in(store, batch(), "cvat").unchanged == 1
    assert store.labels_of(4).labels.tolist() == [0]


def test_a_box_redrawn_in_place_of_a_guess_is_its_object(project: Path, tmp_path: Path, store: Store) -> None:
    def edit(result: list[Task]) -> None:
        result[0] = region([12, 22, 52, 62], "owl")  # IoU 0.82 with the guess that was deleted

    assert bring_in(store, labelstudio.read(annotated(project, tmp_path, edit, only=0)), "ls") == Imported(objects=3)
    assert verdicts(store)[1] == ("object", [[12, 22, 52, 62]], [2])


def test_a_deleted_guess_on_a_labelled_object_does_not_train_background(
    project: Path, tmp_path: Path, store: Store
) -> None:
    def edit(result: list[Task]) -> None:
        result[0] = {**result[1], "value": {**region(BOXES[0], "cat")["value"]}}  # the other box, moved onto it
        del result[1]
        result.append(region([100.25, 20.5, 149, 90], "owl"))

    bring_in(store, labelstudio.read(annotated(project, tmp_path, edit, only=0)), "ls")
    assert verdicts(store)[1][0] == "already_labelled"
    assert not len(store.labels()[4].rejected)


def test_guesses_that_nobody_saw_do_not_count_as_deleted(project: Path, tmp_path: Path, store: Store) -> None:
    def edit(result: list[Task]) -> None:
        result[:] = [region([0, 0, 20, 10], "cat")]

    file = annotated(project, tmp_path, edit, parent_prediction=None)
    assert bring_in(store, labelstudio.read(file), "labelstudio") == Imported(missed=2, unseen=3)
    assert len(open_questions(store).queries) == 3


def test_skipped_empty_and_older_annotations(project: Path, tmp_path: Path, store: Store) -> None:
    tasks = json.loads(annotated(project, tmp_path).read_text())
    early, late = tasks[0]["annotations"][0], copy.deepcopy(tasks[0]["annotations"][0])
    late.update(id=99, updated_at="2026-11-23T19:00:00.000000Z", completed_by={"id": 2, "email": "bo@example.org"})
    late["result"][0]["value"]["rectanglelabels"] = ["owl"]
    tasks[0]["annotations"] = [late, early, {**late, "id": 100, "updated_at": "2027", "was_cancelled": True}]
    tasks[1]["annotations"][0]["was_cancelled"] = True
    (tmp_path / "x.json").write_text(json.dumps([*tasks, {"data": {"image": "?"}, "annotations": []}]))
    batch = labelstudio.read(tmp_path / "x.json")
    assert (batch.skipped, batch.older) == (1, 1)
    assert bring_in(store, batch, "labelstudio") == Imported(objects=2)
    assert verdicts(store)[1][2] == [2]
    assert {g.answer.by for g in People(store).given()} == {"bo@example.org"}


@pytest.mark.parametrize("writer", ["by hand", "a column named data", "library"])
def test_json_min_is_refused(project: Path, tmp_path: Path, store: Store, writer: str) -> None:
    """It cannot say whether a guess without a region was rejected or never shown."""
    file = annotated(project, tmp_path, lambda result: result.clear())
    short = tmp_path / "min" / "result.json"
    if writer == "library":
        config = (tmp_path / "out" / "config.xml").read_text()
        converter = sdk("converter.converter").Converter(config, str(tmp_path))
        converter.convert_to_json_min(str(file), str(short.parent), is_dir=False)
    else:
        short.parent.mkdir()
        column = {"data": "x", "annotations": []} if writer == "a column named data" else {}
        short.write_text(json.dumps([{"image": "a.jpg", "id": 1, "annotator": 1, "annotation_id": 3, **column}]))
    with pytest.raises(UserError, match=r"JSON-MIN.*choose Export, then JSON"):
        labelstudio.read(short)


def test_somebody_elses_answer_stands(project: Path, tmp_path: Path, store: Store) -> None:
    file = annotated(project, tmp_path)
    store.record(
        [
            Answer(1, [], [], Verdict.NOT_AN_OBJECT, "Bo"),  # type: ignore[arg-type]
            Answer(2, [BOXES[1]], [1], Verdict.OBJECT, "Bo"),  # type: ignore[arg-type]
        ]
    )
    assert bring_in(store, labelstudio.read(file), "labelstudio") == Imported(objects=1, unchanged=1, left=1)
    assert verdicts(store)[1][0] == "not_an_object"
    assert bring_in(store, labelstudio.read(file), "labelstudio", instead=True) == Imported(objects=1, unchanged=2)
    assert verdicts(store)[1][0] == "object"


A, B, NEAR_B = [10.0, 10, 50, 50], [100.0, 20, 150, 60], [102.0, 20, 152, 60]
both_tools = pytest.mark.parametrize("tool", ["labelstudio", "cvat"])


def of_one_image(tool: str, folder: Path, *drawn: list[float]) -> Batch:
    """An export of either tool, in which somebody has drawn these boxes on a.jpg."""
    if tool == "labelstudio":
        return labelstudio.read(labelled(folder / "x.json", [region(box, "cat", str(box[0])) for box in drawn]))
    shapes = (f'<box label="cat" xtl="{x1}" ytl="{y1}" xbr="{x2}" ybr="{y2}"/>' for x1, y1, x2, y2 in drawn)
    return cvat.read(drawn_in_cvat(folder / "x.xml", "".join(shapes)))


@both_tools
def test_another_persons_drawn_box_that_is_gone_is_reported_and_with_replace_rejected(
    tmp_path: Path, fresh: Store, tool: str
) -> None:
    both, first, none = (of_one_image(tool, tmp_path, *drawn) for drawn in ((A, B), (A,), ()))
    bring_in(fresh, both, tool, by="Ada")
    before = everything(fresh)
    assert bring_in(fresh, first, tool, by="Bo") == Imported(unchanged=1, left=1)
    assert bring_in(fresh, none, tool, by="Bo") == Imported(left=2)
    assert everything(fresh) == before
    assert bring_in(fresh, first, tool, by="Bo", instead=True) == Imported(unchanged=1, withdrawn=1)
    assert fresh.labels()[1].boxes.tolist() == [A]
    assert fresh.labels()[1].rejected.tolist() == [B]
    assert bring_in(fresh, first, tool, by="Bo", instead=True) == Imported(unchanged=1)  # again: no change
    assert bring_in(fresh, both, tool, by="Ada") == Imported(unchanged=1, left=1)
    assert bring_in(fresh, none, tool, by="Bo", instead=True) == Imported(withdrawn=1)
    assert not len(fresh.labels()[1].boxes)
    assert bring_in(fresh, both, tool, by="Ada", instead=True) == Imported(missed=2)
    assert fresh.labels()[1].boxes.tolist() == [A, B]
    assert everything(fresh)[: len(before)] == before


@both_tools
def test_a_drawn_box_that_somebody_else_has_changed_is_kept_unless_replaced(
    tmp_path: Path, fresh: Store, tool: str
) -> None:
    drawn, gone = of_one_image(tool, tmp_path, B), of_one_image(tool, tmp_path)
    bring_in(fresh, drawn, tool, by="Ada")
    fresh.record([Answer(1, np.array([NEAR_B]), np.array([2]), Verdict.OBJECT, "Bo")])
    for batch in (drawn, gone):
        assert bring_in(fresh, batch, tool, by="Ada") == Imported(left=1)
        assert verdicts(fresh)[1] == ("object", [NEAR_B], [2])
    assert bring_in(fresh, drawn, tool, by="Ada", instead=True) == Imported(missed=1)
    assert verdicts(fresh)[1] == ("object", [B], [0])
    fresh.record([Answer(1, np.array([NEAR_B]), np.array([2]), Verdict.OBJECT, "Bo")])
    assert bring_in(fresh, gone, tool, by="Ada", instead=True) == Imported(withdrawn=1)
    assert not len(fresh.labels()[1].boxes)


@both_tools
def test_a_deleted_correction_does_not_restore_what_it_corrected(tmp_path: Path, fresh: Store, tool: str) -> None:
    bring_in(fresh, of_one_image(tool, tmp_path, B), tool, by="Ada")
    moved = of_one_image(tool, tmp_path, NEAR_B)
    assert bring_in(fresh, moved, tool, by="Bo") == Imported(left=1)
    assert bring_in(fresh, moved, tool, by="Bo", instead=True) == Imported(missed=1)
    assert bring_in(fresh, of_one_image(tool, tmp_path), tool, by="Bo") == Imported(withdrawn=1)
    assert not len(fresh.labels()[1].boxes)


@both_tools
def test_a_second_box_on_an_object_that_another_person_deletes_does_not_train_background(
    tmp_path: Path, fresh: Store, tool: str
) -> None:
    bring_in(fresh, of_one_image(tool, tmp_path, B, NEAR_B), tool, by="Ada")
    done = bring_in(fresh, of_one_image(tool, tmp_path, B), tool, by="Bo", instead=True)
    assert done == Imported(unchanged=1, withdrawn=1)
    assert verdicts(fresh)[2][0] == "already_labelled"
    assert not len(fresh.labels()[1].rejected)


def test_a_drawn_box_does_not_count_as_deleted_where_a_shape_is_skipped(tmp_path: Path, fresh: Store) -> None:
    bring_in(fresh, of_one_image("labelstudio", tmp_path, B), "labelstudio", by="Ada")
    brush = labelstudio.read(labelled(tmp_path / "y.json", WITHOUT_BOX["brush"]))
    for by in ("Ada", "Bo"):
        assert bring_in(fresh, brush, "labelstudio", by=by, instead=True) == Imported(shapes=1)
        assert fresh.labels()[1].boxes.tolist() == [B]


def test_the_command_reports_another_persons_deleted_box(
    tmp_path: Path, fresh: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bring_in(fresh, of_one_image("labelstudio", tmp_path, B), "labelstudio", by="Ada")
    file = labelled(tmp_path / "x.json", [])
    command = ["rarebox", "import", str(tmp_path / "fresh.sqlite"), str(file), "--format", "labelstudio", "--by", "Bo"]
    for more, wanted in (([], "1 answer not used"), (["--replace"], "1 box withdrawn")):
        monkeypatch.setattr("sys.argv", [*command, *more])
        with pytest.raises(SystemExit):
            main()
        assert wanted in capsys.readouterr().out


def test_a_rotated_rectangle_becomes_the_upright_box_around_it(project: Path, tmp_path: Path, store: Store) -> None:
    def edit(result: list[Task]) -> None:
        # 40 x 20 pixels, rotated by 90° clockwise about its corner at (100, 50): 20 to the left, 40 down.
        result.append(region([100, 50, 140, 70], "cat", rotation=90))

    bring_in(store, labelstudio.read(annotated(project, tmp_path, edit, only=1)), "labelstudio")
    assert verdicts(store)[4][1] == [pytest.approx([80, 50, 100, 90])]


def test_merged_classes_are_not_offered_and_count_as_what_they_became(
    project: Path, tmp_path: Path, store: Store
) -> None:
    People(store).merge_class(2, 0, "Ada")
    found = open_questions(store)
    assert found.classes == CLASSES[:2]
    assert [found.classes[q.guess or 0] for q in found.queries] == ["cat", CLASSES[1], "cat"]
    bring_in(store, labelstudio.read(annotated(project, tmp_path)), "labelstudio")
    assert store.labels()[5].labels.tolist() == [0]


@pytest.mark.parametrize(
    ("edit", "wanted"),
    [
        (lambda tasks: tasks[1]["annotations"][0]["result"].append(region([0, 0, 9, 8], "cta")), "did you mean 'cat'"),
        (lambda tasks: tasks[1]["data"].update(image="/upload/12345678-other.png", rarebox={}), "other.png' is not"),
        (lambda tasks: tasks[1]["data"]["rarebox"].update(queries=[77]), "query 77 does not belong to this image"),
        (lambda tasks: tasks.append(tasks[1]), "this image is already in"),
        (lambda tasks: tasks[1]["annotations"][0]["result"].append(region([9, 9, 9, 9], "cat")), "x2 > x1"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0].update(original_height=300), "of different sizes"),
        (lambda tasks: [r.update(original_height=300) for r in tasks[1]["annotations"][0]["result"]], "or rotated"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0]["value"].pop("x"), "lacks its position"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0]["value"].update(rectanglelabels=[]), "has no class"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0]["value"]["rectanglelabels"].append("cat"), "several"),
        (lambda tasks: [r.update(image_rotation=90) for r in tasks[1]["annotations"][0]["result"]], "rotated in Label"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0].update(to_name="other"), "several images"),
        (lambda tasks: tasks[1]["annotations"][0]["result"][0]["value"].update(rotation=float("inf")), "not a finite"),
        (lambda tasks: tasks[1].update(data={}), 'names no "image"'),
        (lambda tasks: tasks[1]["annotations"][0].update(result=None), "no result list"),
        (
            lambda tasks: tasks[1]["annotations"][0].update(completed_by="x" * 99),
            r"x\.json, task 11: .*1 to 60 printable.*with --by",
        ),
    ],
)
def test_mistakes_write_nothing(project: Path, tmp_path: Path, store: Store, edit: Any, wanted: str) -> None:
    file = annotated(project, tmp_path, lambda result: result.append(region([0, 0, 9, 9], "cat")))
    tasks = json.loads(file.read_text())
    edit(tasks)
    (tmp_path / "x.json").write_text(json.dumps(tasks))
    with pytest.raises(UserError, match=wanted):
        bring_in(store, labelstudio.read(tmp_path / "x.json"), "labelstudio", complete=True)
    assert everything(store) == []
    assert len(store.queries()) == 3


def test_the_zip_that_cvat_exports_must_be_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        archive.writestr("annotations.xml", "<annotations/>")
    with pytest.raises(UserError, match=r"job\.zip: this is the zip file.*Unpack it"):
        cvat.read(tmp_path / "job.zip")


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    for read in (labelstudio.read, cvat.read):
        with pytest.raises(UserError, match=r"nothing\.file cannot be read: No such file"):
            read(tmp_path / "nothing.file")


def other_project(root: Path, *names: str) -> Store:
    """A project of photos with those names, numbered from 4, with a question about each."""
    store = Store(root / "other.sqlite", classes=CLASSES)
    store.add_images([ImageRecord(4 + n, str(root / "elsewhere" / name), 200, 100) for n, name in enumerate(names)])
    store.open_cycle(2)
    store.ask(2, [Query(4 + n, np.array([150, 60, 190, 90]), 0) for n in range(len(names))])
    return store


def test_numbers_of_another_project_do_not_say_which_photo_is_meant(project: Path, tmp_path: Path) -> None:
    """The same photos have other numbers there, and its questions are not ours."""
    file = annotated(project, tmp_path)
    with open_store(project) as store:
        bring_in(store, labelstudio.read(file), "labelstudio")
        wanted = {Path(store.images()[i].path).name: said.boxes.tolist() for i, said in store.labels().items()}
    with other_project(tmp_path, "1 ä.png", "0 ä.png") as other:
        bring_in(other, labelstudio.read(file), "labelstudio")
        found = {Path(other.images()[i].path).name: said.boxes.tolist() for i, said in other.labels().items()}
        assert {name: sorted(boxes) for name, boxes in found.items()} == {n: sorted(b) for n, b in wanted.items()}
        assert len(other.unanswered(2)) == 2


def test_a_file_about_other_photos_is_refused_whatever_its_numbers(project: Path, tmp_path: Path) -> None:
    file = annotated(project, tmp_path)
    with other_project(tmp_path, "a.png", "b.png") as other, pytest.raises(UserError, match="another project"):
        bring_in(other, labelstudio.read(file), "labelstudio")
    tasks = json.loads(file.read_text())
    tasks[1]["data"].update(image="/upload/12345678-other.png")
    file.write_text(json.dumps(tasks))
    with open_store(project) as store:
        with pytest.raises(UserError, match=r"other\.png' is not in the store"):
            bring_in(store, labelstudio.read(file), "labelstudio")
        assert everything(store) == []


def test_the_labels_of_another_project_come_in_as_the_error_says(tmp_path: Path) -> None:
    for n, folder in enumerate(("x", "y")):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        pixels = np.random.default_rng(n).integers(0, 255, (100, 200, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / folder / "a.png")
    coco = {
        "images": [{"id": 1, "file_name": "y/a.png", "width": 200, "height": 100}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 40, 40]}],
    }
    (tmp_path / "labels.json").write_text(json.dumps(coco))

    def run(*words: str) -> str:
        done = CliRunner().invoke(app, [word.replace("@", str(tmp_path)) for word in words])
        return done.output if done.exit_code == 0 else str(done.exception)

    run("init", "@/first", "--images", "@/photos", "--labels", "@/labels.json", "--partial")
    run("init", "@/second", "--images", "@/photos", "--classes", "cat")
    run("export", "@/first", "@/ls", "--format", "labelstudio")
    said = run("import", "@/second", "@/ls/tasks.json", "--format", "labelstudio")
    assert "not in the store" in said
    assert "--format coco" in said
    assert "rarebox init NEW --images PHOTOS --labels EXPORT" in said
    run("export", "@/first", "@/coco", "--format", "coco")
    run("init", "@/third", "--images", "@/photos", "--labels", "@/coco", "--partial")
    with open_store(tmp_path / "third") as store:
        found = {Path(store.images()[n].path).parent.name: one.boxes.tolist() for n, one in store.labels().items()}
    assert found["y"] == [[10, 10, 50, 50]]


def test_a_photo_that_was_renamed_since_it_was_sent_keeps_its_answers(project: Path, tmp_path: Path) -> None:
    file = annotated(project, tmp_path)
    with open_store(project) as store:
        store.move_images({4: "/moved/first.png", 5: "/moved/second.png"})
        store.move_images({4: "/again/one.png"})
        assert bring_in(store, labelstudio.read(file), "labelstudio").objects == 3
        assert sorted(store.labels()) == [4, 5]


@pytest.mark.parametrize(
    ("data", "to_name", "wanted"),
    [
        ({"image": "0 ä.png", "image2": "1 ä.png"}, "image2", 5),
        ({"image": "0 ä.png", "image2": "1 ä.png"}, "image", 4),
        ({"image": "0 ä.png", "note": "a dog"}, "img", 4),
        ({"image": "0 ä.png", "image2": "1 ä.png"}, "img", None),
        ({"photo": "0 ä.png", "note": "a dog", "page": "https://x.org/dog"}, "img", 4),
    ],
)
def test_boxes_go_to_the_image_of_the_task_that_they_are_on(
    tmp_path: Path, store: Store, data: Task, to_name: str, wanted: int | None
) -> None:
    drawn = {**region([0, 0, 20, 10], "cat"), "to_name": to_name}
    file = tmp_path / "x.json"
    file.write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"id": 1, "result": [drawn]}]}]))
    if wanted is None:
        with pytest.raises(UserError, match=r"several images \(image, image2\)"):
            labelstudio.read(file)
        return
    bring_in(store, labelstudio.read(file), "labelstudio")
    assert list(store.labels()) == [wanted]
    if "image2" not in data:  # an empty annotation does not say what it is on
        file.write_text(file.read_text().replace(json.dumps([drawn]), "[]"))
        assert [one.image for one in labelstudio.read(file).returned] == ["0 ä.png"]


def test_numbers_with_thousands_of_digits_name_no_query(tmp_path: Path, fresh: Store) -> None:
    digits = "9" * 5000
    batch = labelstudio.read(labelled(tmp_path / "x.json", [region([0, 0, 20, 10], "cat", f"query-{digits}")]))
    assert bring_in(fresh, batch, "labelstudio") == Imported(missed=1)
    shapes = f'{BOX[:-2]}><attribute name="query">{digits}</attribute></box>'
    tag = f'<tag label="rarebox"><attribute name="queries">{digits} x</attribute></tag>'
    assert bring_in(fresh, cvat.read(drawn_in_cvat(tmp_path / "x.xml", shapes + tag)), "cvat") == Imported(missed=1)
    file = drawn_in_cvat(tmp_path / "y.xml", BOX)
    file.write_text(file.read_text().replace('"200"', f'"{digits[:400]}"'))
    with pytest.raises(UserError, match="lacks a number"):
        cvat.read(file)


@both_tools
def test_an_import_before_its_class_was_merged_changes_nothing_after(tmp_path: Path, fresh: Store, tool: str) -> None:
    name = CLASSES[2]
    if tool == "labelstudio":
        batch = labelstudio.read(labelled(tmp_path / "x.json", [region(A, name), region(B, name, "other")]))
    else:
        batch = cvat.read(drawn_in_cvat(tmp_path / "x.xml", BOX.replace("cat", name)))
    first = bring_in(fresh, batch, tool)
    People(fresh).merge_class(2, 0, "Ada")
    assert bring_in(fresh, batch, tool) == Imported(unchanged=first.missed)


def test_the_latest_annotation_is_found_by_time_not_by_text(tmp_path: Path) -> None:
    def made(number: int, name: str, **times: Any) -> Task:
        return {"id": number, "result": [region(A, name)], **times}

    for late, early in (
        ({"updated_at": "2026-01-01T10:00:00-08:00"}, {"updated_at": "2026-01-01T11:00:00Z"}),
        ({"created_at": "2026-01-02T10:00:00Z"}, {"created_at": "2026-01-01", "updated_at": "2026-01-01T11:00:00Z"}),
        ({"created_at": 1573479561}, {"created_at": 1573479560}),
    ):
        task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [made(1, "owl", **late), made(2, "cat", **early)]}
        (tmp_path / "x.json").write_text(json.dumps([task]))
        assert labelstudio.read(tmp_path / "x.json").returned[0].regions[0].name == "owl"


@pytest.mark.parametrize("text", ["", "{}", "[1]", "<annotations/>"])
def test_files_of_another_kind(tmp_path: Path, text: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(UserError, match="x"):
        labelstudio.read(tmp_path / "x")
    for other in ("", "{}", "<html/>", "<annotations><track/></annotations>"):
        (tmp_path / "x").write_text(other)
        with pytest.raises(UserError, match="CVAT for images"):
            cvat.read(tmp_path / "x")


# ------------------------------------------------------------------------------------------- names and shapes


def shape(kind: str, labels: str | None = None, key: str = "q1", **value: Any) -> Task:
    """A region of another kind, on an image of 200 x 100 pixels."""
    named = {labels: ["cat"]} if labels else {}
    about = {"id": key, "type": kind, "from_name": kind, "to_name": "image", "image_rotation": 0}
    return {**about, "original_width": 200, "original_height": 100, "value": {**value, **named}}


CORNERS = [[25, 10], [40, 50], [10, 60]]
SQUARE: dict[str, Any] = {"x": 50, "y": 50, "width": 10, "height": 20, "rotation": 0}
OUTLINES = {
    "polygon": ([shape("polygonlabels", "polygonlabels", points=CORNERS, closed=True)], [20, 10, 80, 60]),
    "polygon and labels": (
        [shape("polygon", points=CORNERS), shape("labels", "labels", points=CORNERS)],
        [20, 10, 80, 60],
    ),
    "ellipse": ([shape("ellipselabels", "ellipselabels", x=50, y=50, radiusX=10, radiusY=10)], [80, 40, 120, 60]),
    # 20 pixels across and 10 down, rotated by 90°.
    "turned ellipse": (
        [shape("ellipselabels", "ellipselabels", x=50, y=50, radiusX=10, radiusY=10, rotation=90)],
        [90, 30, 110, 70],
    ),
    "rectangle and labels": ([shape("rectangle", **SQUARE), shape("labels", "labels", **SQUARE)], [100, 50, 120, 70]),
    "labels before the rectangle": (
        [shape("labels", "labels", **SQUARE), shape("rectangle", **SQUARE)],
        [100, 50, 120, 70],
    ),
    "with an attribute": (
        [
            shape("rectanglelabels", "rectanglelabels", **SQUARE),
            shape("choices", **SQUARE, choices=["occluded"]),
            {"id": "c", "type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["outdoors"]}},
            {"type": "relation", "from_id": "q1", "to_id": "q2", "direction": "right"},
        ],
        [100, 50, 120, 70],
    ),
}
WITHOUT_BOX = {
    "brush": [shape("brushlabels", "brushlabels", format="rle", rle=[0, 1, 2])],
    "bitmask": [shape("bitmasklabels", "bitmasklabels", imageDataURL="data:image/png;base64,")],
    "key point": [shape("keypointlabels", "keypointlabels", x=50, y=50, width=0.5)],
    "vector": [shape("vectorlabels", "vectorlabels", vertices=[{"x": 1, "y": 2}])],
    "unheard of": [shape("videorectangle", "labels", sequence=[])],
}


def labelled(file: Path, result: list[Task], image: str = "a.jpg") -> Path:
    """An export of one task as JSON."""
    annotation = {"id": 3, "result": result, "created_at": "2026", "updated_at": "2026", "lead_time": 1}
    task = {"id": 1, "data": {"image": image}, "annotations": [annotation]}
    file.write_text(json.dumps([task]))
    return file


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Store]:
    """A store with one image of 200 x 100 pixels."""
    with Store(tmp_path / "fresh.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(1, str(tmp_path / "a.jpg"), 200, 100)])
        yield store


@pytest.mark.parametrize("name", OUTLINES)
def test_an_outline_of_label_studio_becomes_the_box_around_it(tmp_path: Path, fresh: Store, name: str) -> None:
    result, wanted = OUTLINES[name]
    batch = labelstudio.read(labelled(tmp_path / "x.json", result))
    assert bring_in(fresh, batch, "labelstudio", complete=True) == Imported(missed=1, complete=1)
    assert fresh.labels()[1].boxes.tolist() == [pytest.approx(wanted, abs=1e-4)]
    assert bring_in(fresh, batch, "labelstudio", complete=True) == Imported(unchanged=2)


@pytest.mark.parametrize("name", WITHOUT_BOX)
def test_an_image_with_shapes_that_are_left_out_is_not_complete(tmp_path: Path, fresh: Store, name: str) -> None:
    result = [*WITHOUT_BOX[name], region([0, 0, 9, 9], "cat")]
    batch = labelstudio.read(labelled(tmp_path / "x.json", result))
    (returned,) = batch.returned
    assert len(returned.left_out) == 1
    assert "(cat)" in returned.left_out[0]
    assert bring_in(fresh, batch, "labelstudio", complete=True) == Imported(missed=1, shapes=1)
    assert not fresh.labels()[1].complete


def test_a_guess_replaced_by_a_brush_is_not_a_false_positive(project: Path, tmp_path: Path, store: Store) -> None:
    def edit(result: list[Task]) -> None:
        result[:] = [WITHOUT_BOX["brush"][0]]

    done = bring_in(store, labelstudio.read(annotated(project, tmp_path, edit, only=1)), "labelstudio")
    assert done == Imported(objects=2, unseen=1, shapes=1)
    assert not len(store.labels()[4].rejected)


def test_the_command_names_the_shapes_that_it_leaves_out(
    tmp_path: Path, fresh: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = labelled(tmp_path / "x.json", [shape("keypointlabels", "keypointlabels", x=5, y=5, width=0.5)])
    command = ["rarebox", "import", str(tmp_path / "fresh.sqlite"), str(file), "--format", "labelstudio", "--complete"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr()
    assert "task 1: key point (cat) skipped" in told.err
    assert "1 shape skipped" in told.out
    assert "now complete" not in told.out


def in_text(file: Path, format: str) -> None:
    """Change an export to the form of older versions and tables."""
    (task,) = json.loads(file.read_text())
    result = task["annotations"][0]["result"]
    if format == "completions":
        task["completions"] = task.pop("annotations")
    elif format == "annotations as text":
        task["annotations"] = json.dumps(task["annotations"])
    else:
        task["annotations"][0]["result"] = json.dumps(result)
    file.write_text(json.dumps([task]))


@pytest.mark.parametrize("format", ["completions", "annotations as text", "result as text"])
def test_regions_are_read_however_they_are_wrapped(tmp_path: Path, fresh: Store, format: str) -> None:
    file = labelled(tmp_path / "x.json", [region([10, 20, 50, 60], "cat")])
    in_text(file, format)
    done = bring_in(fresh, labelstudio.read(file), "labelstudio", complete=True)
    assert (done.missed, done.complete) == (1, 1)
    (said,) = fresh.labels().values()
    assert said.boxes.tolist() == [[10, 20, 50, 60]]


def test_regions_that_cannot_be_read_make_no_image_complete(tmp_path: Path) -> None:
    file = labelled(tmp_path / "x.json", [region([10, 20, 50, 60], "cat")])
    in_text(file, "result as text")
    (task,) = json.loads(file.read_text())
    task["annotations"][0]["result"] = task["annotations"][0]["result"][:-3]
    file.write_text(json.dumps([task]))
    with pytest.raises(UserError, match=r"a text of regions is not valid JSON .*Export it again"):
        labelstudio.read(file)


@pytest.mark.parametrize("folder", ["", "images/", "a\\b\\"])
@pytest.mark.parametrize("only", [False, True])
def test_an_own_cvat_export_finds_its_photos(tmp_path: Path, only: bool, folder: str) -> None:
    records = [
        ImageRecord(n, f"/photos/{name}", 200, 100) for n, name in enumerate(("d1/a.jpg", "d2/a.jpg", "z/a-2.jpg"), 1)
    ]
    one = np.ones(1)
    said = [
        Annotations(
            r.id, np.array([[r.id * 10, 10, 100, 60]]), np.array([0]), np.array([Source.HUMAN]), one, one, one, True
        )
        for r in records
    ]
    export(tmp_path / "out", "cvat", CLASSES, records, said, photos=False)
    tree = ET.parse(tmp_path / "out" / "annotations.xml")
    for image in tree.getroot().findall("image"):
        if only and image.get("name") != "a-2.jpg":
            tree.getroot().remove(image)
        image.set("name", folder + image.attrib["name"])
    tree.write(tmp_path / "out" / "annotations.xml")
    with Store(tmp_path / "s.sqlite", classes=CLASSES) as store:
        store.add_images(records)
        bring_in(store, cvat.read(tmp_path / "out" / "annotations.xml"), "cvat")
        found = {i: one.boxes[0, 0] for i, one in store.labels().items()}
    assert found == ({3: 30} if only else {1: 10, 2: 20, 3: 30})


@pytest.mark.parametrize("folder", ["d1", "photos", "x/d2"])
def test_a_made_up_name_in_a_folder_of_the_photos_is_no_export_of_ours(tmp_path: Path, folder: str) -> None:
    with Store(tmp_path / "s.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(n, f"/photos/d{n}/a.jpg", 200, 100) for n in (1, 2)])
        with pytest.raises(UserError, match=f"'{folder}/a-2.jpg' is not in the store"):
            bring_in(store, Batch([Returned("file", f"{folder}/a-2.jpg", None, None, (), ())]), "cvat")


def test_a_bare_name_of_two_photos_is_still_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(n, f"/photos/d{n}/a.jpg", 200, 100) for n in (1, 2)])
        with pytest.raises(UserError, match="may be"):
            bring_in(store, Batch([Returned("file", "a.jpg", None, None, (), ())]), "cvat")


FOLDERS = ("cam1/1.jpg", "cam2/1.jpg", "20240315-0900.jpg", "0900.jpg", "cam1/a b.jpg")


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("/data/local-files/?d=photos/cam2/1.jpg", "cam2/1.jpg"),
        ("cam1\\1.jpg", "cam1/1.jpg"),
        ("/data/local-files/?d=photos/20240315-0900.jpg", "20240315-0900.jpg"),
        ("/data/upload/3/1a2b3c4d-0900.jpg", "0900.jpg"),
        ("/data/local-files/?d=cam1/a%20b.jpg", "cam1/a b.jpg"),
        ("/data/local-files/?d=photos/20240316-0900.jpg", None),  # a photo of another day, which is not in the project
        ("/data/local-files/?d=photos/cam2/a%20b.jpg", None),  # the other camera's
    ],
)
@pytest.mark.parametrize("tool", ["labelstudio", "cvat"])
def test_names_with_dates_and_folders_mean_one_photo(tmp_path: Path, tool: str, name: str, image: str | None) -> None:
    if tool == "labelstudio":
        batch = labelstudio.read(labelled(tmp_path / "x", [region([0, 0, 9, 9], "cat")], name))
    else:
        batch = cvat.read(drawn_in_cvat(tmp_path / "x", BOX, name))
    with Store(tmp_path / "labels.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(n, f"/x/photos/{file}", 200, 100) for n, file in enumerate(FOLDERS)])
        if image is None:
            with pytest.raises(UserError, match="not in the store"):
                bring_in(store, batch, tool)
        else:
            bring_in(store, batch, tool)
        assert [i for i, said in store.labels().items() if len(said.boxes)] == (
            [] if image is None else [FOLDERS.index(image)]
        )


# ------------------------------------------------------------------------------------------- CVAT

BOX = '<box label="cat" xtl="0" ytl="0" xbr="9" ybr="9"/>'


def drawn_in_cvat(file: Path, shapes: str, name: str = "a.jpg") -> Path:
    """An export of CVAT with one image of 200 x 100 pixels."""
    about = f'<image id="0" name="{html.escape(name)}" width="200" height="100">'
    file.write_text(f"<annotations><version>1.1</version>{about}{shapes}</image></annotations>")
    return file


CVAT_OUTLINES = [
    ('<box label="cat" xtl="60" ytl="40" xbr="140" ybr="60" rotation="90"/>', [90, 10, 110, 90]),
    ('<box label="cat" xtl="60" ytl="40" xbr="140" ybr="60" rotation="45"/>', [64.645, 14.645, 135.355, 85.355]),
    ('<polygon label="cat" points="50,10;80,50;20,60.5"/>', [20, 10, 80, 60.5]),
    ('<polyline label="cat" points="50,10;80,50"/>', [50, 10, 80, 50]),
    ('<ellipse label="cat" cx="100" cy="50" rx="20" ry="10"/>', [80, 40, 120, 60]),
    ('<ellipse label="cat" cx="100" cy="50" rx="20" ry="10" rotation="270"/>', [90, 30, 110, 70]),
    ('<mask label="cat" rle="1, 2" left="30" top="10" width="20" height="5"/>', [30, 10, 50, 15]),
    (
        '<cuboid label="cat" xtl1="10" ytl1="20" xbl1="10" ybl1="60" xtr1="40" ytr1="20" xbr1="40" ybr1="60" '
        'xtl2="50" ytl2="15" xbl2="50" ybl2="50" xtr2="70" ytr2="15" xbr2="70" ybr2="50"/>',
        [10, 15, 70, 60],
    ),
]


@pytest.mark.parametrize(("drawn", "wanted"), CVAT_OUTLINES)
def test_an_outline_of_cvat_becomes_the_box_around_it(
    tmp_path: Path, fresh: Store, drawn: str, wanted: list[float]
) -> None:
    batch = cvat.read(drawn_in_cvat(tmp_path / "x.xml", drawn))
    assert bring_in(fresh, batch, "cvat", complete=True) == Imported(missed=1, complete=1)
    assert fresh.labels()[1].boxes.tolist() == [pytest.approx(wanted, abs=1e-3)]


@pytest.mark.parametrize(
    "drawn",
    [
        '<points label="cat" points="5,5;9,9"/>',
        '<skeleton label="cat"><points label="nose" points="5,5"/><box label="x" xtl="1"/></skeleton>',
        '<novelty label="cat"/>',
    ],
)
def test_points_of_cvat_are_left_out_and_their_image_is_not_complete(tmp_path: Path, fresh: Store, drawn: str) -> None:
    batch = cvat.read(drawn_in_cvat(tmp_path / "x.xml", drawn + BOX))
    assert bring_in(fresh, batch, "cvat", complete=True) == Imported(missed=1, shapes=1)
    assert not fresh.labels()[1].complete


@pytest.mark.parametrize(
    "drawn",
    [
        '<box label="cat" xtl="1" ytl="1" xbr="9"/>',
        '<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" rotation="inf"/>',
        '<polygon label="cat" points="1,2;3"/>',
        '<ellipse label="cat" cx="5" cy="nan" rx="1" ry="1"/>',
    ],
)
def test_a_shape_of_cvat_without_its_numbers_is_an_error(tmp_path: Path, drawn: str) -> None:
    with pytest.raises(UserError, match="lacks a number"):
        cvat.read(drawn_in_cvat(tmp_path / "x.xml", drawn))


@pytest.mark.parametrize("tool", ["labelstudio", "cvat"])
def test_boxes_drawn_on_a_smaller_copy_are_scaled(tmp_path: Path, tool: str) -> None:
    if tool == "labelstudio":
        batch = labelstudio.read(labelled(tmp_path / "x", [region([20, 10, 100, 50], "cat")]))
    else:
        batch = cvat.read(drawn_in_cvat(tmp_path / "x", '<box label="cat" xtl="20" ytl="10" xbr="100" ybr="50"/>'))
    with Store(tmp_path / "labels.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(1, "a.jpg", 400, 200)])
        bring_in(store, batch, tool)
        assert store.labels()[1].boxes.tolist() == [[40, 20, 200, 100]]


def from_cvat(
    project: Path,
    to: Path,
    drawn: list[list[float]] | tuple[()] = (),
    drop: list[int] | tuple[()] = (),
) -> Path:
    """CVAT's export after somebody has edited the import: boxes deleted by query, and drawn on the first image."""
    tree = ET.parse(send(project, to / "out", "cvat") / "annotations.xml")
    task = tree.find("meta/task")
    assert task is not None
    owner = ET.SubElement(task, "owner")
    ET.SubElement(owner, "username").text = "ada"
    images = list(tree.getroot().iter("image"))
    for image in images:
        for box in list(image.iter("box")):
            if int(box.findtext("attribute") or 0) in drop:
                image.remove(box)
    for x1, y1, x2, y2 in drawn:
        places = {"xtl": f"{x1:.2f}", "ytl": f"{y1:.2f}", "xbr": f"{x2:.2f}", "ybr": f"{y2:.2f}"}
        box = ET.SubElement(
            images[0], "box", {"label": "cat", "source": "manual", "occluded": "0", **places, "z_order": "0"}
        )
        ET.SubElement(box, "attribute", name="query").text = "new"
    tree.write(to / "annotations.xml", encoding="utf-8")
    return to / "annotations.xml"


def test_cvat_and_back(project: Path, tmp_path: Path, store: Store) -> None:
    file = from_cvat(project, tmp_path, drawn=[[0, 0, 20, 10]], drop=[3])
    assert bring_in(store, cvat.read(file), "cvat") == Imported(objects=2, no_objects=1, missed=1)
    assert verdicts(store) == {
        1: ("object", [BOXES[0]], [0]),
        2: ("object", [BOXES[1]], [1]),  # CVAT's two decimals do not move a box
        3: ("not_an_object", [], []),
        4: ("object", [[0, 0, 20, 10]], [0]),
    }
    assert {g.answer.by for g in People(store).given()} == {"ada"}


def test_cvat_without_the_tag_ignores_missing_boxes(project: Path, tmp_path: Path, store: Store) -> None:
    file = from_cvat(project, tmp_path, drop=[3])
    tree = ET.parse(file)
    for image in tree.getroot().iter("image"):
        for tag in list(image.iter("tag")):
            image.remove(tag)
    tree.write(file)
    assert bring_in(store, cvat.read(file), "cvat") == Imported(objects=2)
    assert [q.id for q in open_questions(store).queries] == [3]


def test_a_store_without_a_cycle_imports_earlier_labels(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(1, "a.jpg", 200, 100)])
        task = {"data": {"image": "a.jpg"}, "annotations": [{"result": [region([0, 0, 9, 9], "cat")]}]}
        (tmp_path / "x.json").write_text(json.dumps([task]))
        done = bring_in(store, labelstudio.read(tmp_path / "x.json"), "labelstudio", complete=True)
        assert done == Imported(missed=1, complete=1)
        assert store.labels()[1].complete
        assert store.labels()[1].boxes.tolist() == [[0, 0, 9, 9]]
        assert bring_in(store, Batch([]), "labelstudio") == Imported()


def test_nothing_to_ask(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UserError, match="no open question"):
        export_queries(tmp_path / "out", "cvat", CLASSES, [], [])
    with pytest.raises(UserError, match="no label store"):
        open_store(tmp_path)
