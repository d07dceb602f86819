"""Files exported by another project, such as a former one on the same photos: their numbers are ignored."""

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.data import cvat, labelstudio
from rarebox.data.export import Annotations, export, export_queries
from rarebox.data.review import Batch, Region, Returned
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.loop.run_folder import open_store
from rarebox.project.create import create
from rarebox.project.exchange.importing import Imported, bring_in
from rarebox.types import Answer, ImageRecord, Query, Source, Verdict

CLASSES = ("cat", "dog")
A, B, C, D = [10.0, 10, 50, 50], [100.0, 20, 150, 60], [150.0, 60, 190, 90], [60.0, 50, 90, 95]
of_both_tools = pytest.mark.parametrize("tool", ["labelstudio", "cvat"])


def made(place: Path, *boxes: list[float]) -> Store:
    """A store of two photos, with questions about boxes on the first."""
    store = Store(place, classes=CLASSES)
    store.add_images([ImageRecord(n, f"/photos/img_{n}.png", 200, 100) for n in (1, 2)])
    store.open_cycle(1)
    store.ask(1, [Query(1, np.array(box), 0) for box in boxes])
    return store


@pytest.fixture
def former(tmp_path: Path) -> Iterator[Store]:
    with made(tmp_path / "former.sqlite", A, B) as store:
        yield store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with made(tmp_path / "labels.sqlite", C, D) as store:
        yield store


def questions(store: Store, tool: str, to: Path, project: str | None = None) -> Path:
    name = store.session() if project is None else project
    export_queries(to, tool, CLASSES, list(store.images().values()), store.queries(), project=name)
    return to / ("annotations.xml" if tool == "cvat" else "tasks.json")


def labels(store: Store, tool: str, to: Path) -> Path:
    said: list[Annotations] = []
    for number, one in store.labels().items():
        human, ones = np.array([Source.HUMAN] * len(one.boxes)), np.ones(len(one.boxes))
        said.append(Annotations(number, one.boxes, one.labels, human, ones, ones, ones, one.complete))
    images = list(store.images().values())
    export(to, tool, CLASSES, images, said, photos=False, project=store.session())
    return to / ("annotations.xml" if tool == "cvat" else "tasks.json")


def without_first(file: Path) -> Path:
    """The file after somebody has answered its questions and deleted the first box of the first image."""
    text = file.read_text()
    if file.suffix == ".xml":
        file.write_text(re.sub("<box.*?</box>", "", text, count=1, flags=re.DOTALL))
        return file
    tasks = json.loads(text)
    for task in tasks:
        shown = task.pop("predictions", None) or task.get("annotations", [{"result": []}])
        task["annotations"] = [{"id": 1, "parent_prediction": 1, "result": shown[0]["result"]}]
    del tasks[0]["annotations"][0]["result"][0]
    file.write_text(json.dumps(tasks))
    return file


def read(file: Path) -> Batch:
    return cvat.read(file) if file.suffix == ".xml" else labelstudio.read(file)


def boxes(store: Store) -> list[list[float]]:
    return sorted(store.labels_of(1).boxes.round(1).tolist())


@of_both_tools
def test_questions_of_another_project_answer_none_of_ours(
    tool: str, tmp_path: Path, former: Store, store: Store
) -> None:
    file = without_first(questions(former, tool, tmp_path / "out"))
    assert bring_in(store, read(file), tool) == Imported(missed=1, foreign=1)
    assert (boxes(store), len(store.labels_of(1).rejected)) == ([B], 0)
    assert [query.id for query in store.unanswered(1)] == [1, 2]
    assert bring_in(store, read(file), tool) == Imported(unchanged=1, foreign=1)
    # They belong to the former project.
    assert bring_in(former, read(file), tool) == Imported(objects=1, no_objects=1)


@of_both_tools
def test_a_file_that_names_no_project_is_assumed_to_be_ours(tool: str, tmp_path: Path, store: Store) -> None:
    file = without_first(questions(store, tool, tmp_path / "out", project=""))
    assert bring_in(store, read(file), tool) == Imported(objects=1, no_objects=1)


@of_both_tools
def test_labels_that_another_project_lists_are_not_deleted_here(
    tool: str, tmp_path: Path, former: Store, store: Store
) -> None:
    for project in (former, store):
        for box in (A, B):
            (query,) = project.ask(1, [Query(1, np.array(box), 0, asked_by="Ann")])
            project.record([Answer(query.id, np.array([box]), np.array([0]), Verdict.OBJECT, "Ann")])
    file = without_first(labels(former, tool, tmp_path / "out"))
    assert bring_in(store, read(file), tool, instead=True) == Imported(unchanged=1, foreign=2)
    assert boxes(store) == [A, B]


@of_both_tools
def test_equal_names_of_two_projects_are_two_boxes(tool: str, tmp_path: Path, former: Store, store: Store) -> None:
    """Both call a region query-2."""
    with made(tmp_path / "third.sqlite", [0.0, 0, 9, 9], [0.0, 60, 30, 90]) as third:
        for number, project in enumerate((former, third)):
            file = without_first(questions(project, tool, tmp_path / str(number)))
            assert bring_in(store, read(file), tool) == Imported(missed=1, foreign=1)
    assert boxes(store) == [[0, 60, 30, 90], B]


@of_both_tools
def test_numbers_of_another_project_do_not_decide_between_photos(
    tool: str, tmp_path: Path, former: Store, store: Store
) -> None:
    """Its image 1 is img_1.png; here that was the name of image 1, and is now that of image 2."""
    store.move_images({1: "/photos/img_0.png", 2: "/photos/img_1.png"})
    file = without_first(questions(former, tool, tmp_path / "out"))
    with pytest.raises(Exception, match="may mean either"):
        bring_in(store, read(file), tool)
    assert not store.labels()


def test_a_copy_has_the_sessions_of_its_numbers_only(tmp_path: Path, former: Store, store: Store) -> None:
    before = store.session()
    assert before not in ("", former.session())
    store.back_up(tmp_path / "copy.sqlite")
    assert store.session() == before
    (query,) = store.ask(1, [Query(1)])
    asked = store.session()
    store.back_up(tmp_path / "later.sqlite")
    store.record([Answer(query.id, np.zeros((0, 4)), np.zeros(0, np.int64), Verdict.CANNOT_TELL, "ann")])
    answered = store.session()
    assert len({before, asked, answered}) == 3
    assert all(map(store.has_session, (before, asked, answered)))
    with Store(tmp_path / "copy.sqlite") as copy, Store(tmp_path / "later.sqlite") as later:
        assert [copy.has_session(name) for name in (before, asked, answered)] == [True, False, False]
        assert [later.has_session(name) for name in (before, asked, answered)] == [True, True, False]


def test_a_session_that_was_rolled_back_begins_again(store: Store) -> None:
    with store.transaction(writes=True):
        with suppress(ZeroDivisionError), store.part():
            store.ask(1, [Query(1)])
            _ = 1 / 0
        before = store.session()
        store.ask(1, [Query(1)])
        middle = store.session()
        store.ask(1, [Query(1)])
        assert before != middle == store.session()


def test_a_damaged_name_of_a_session_is_nobodys(tmp_path: Path, store: Store) -> None:
    store.back_up(tmp_path / "copy.sqlite")
    with sqlite3.connect(tmp_path / "copy.sqlite") as connection:
        connection.execute("UPDATE sessions SET name = x'ff' WHERE id = (SELECT max(id) FROM sessions)")
    connection.close()
    with Store(tmp_path / "copy.sqlite") as damaged:
        assert damaged.session() == ""


@of_both_tools
def test_questions_from_before_a_restored_backup_are_anothers(tool: str, tmp_path: Path, store: Store) -> None:
    """The number of a question that is gone with the backup is now that of another one, on the same image."""
    store.back_up(tmp_path / "restored.sqlite")
    (gone,) = store.ask(1, [Query(1, np.array([0.0, 60, 30, 90]), 0)])
    file = questions(store, tool, tmp_path / "out")
    with Store(tmp_path / "restored.sqlite") as restored:
        (now,) = restored.ask(1, [Query(1, np.array([100.0, 60, 130, 90]), 0)])
        assert now.id == gone.id
        imported = bring_in(restored, read(without_first(file)), tool)
        assert imported.foreign
        assert [query.id for query, _ in restored.answered()].count(now.id) == 0


def sessions_in(text: str) -> set[str]:
    return {*re.findall(r"\b[0-9a-f]{32}\b", text)}


@of_both_tools
def test_the_commands_write_the_session_and_say_when_it_is_anothers(tool: str, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (200, 100)).save(tmp_path / "photos" / "a.png")
    for name in ("project", "anew"):
        create(tmp_path / name, tmp_path / "photos", CLASSES)
    with open_store(tmp_path / "project") as store:
        store.open_cycle(1)
        (query,) = store.ask(1, [Query(1, np.array(A), 0)])

    def run(command: str, *words: object) -> str:
        done = CliRunner().invoke(app, [command, *map(str, words), "--format", tool])
        assert done.exit_code == 0, done.output
        return done.output

    def known_in(file: Path) -> set[str]:
        found = set[str]()
        for name in ("project", "anew"):
            with open_store(tmp_path / name) as store:
                found |= {name for session in sessions_in(file.read_text()) if store.has_session(session)}
        return found

    run("export", tmp_path / "project", tmp_path / "asked", "--queries")
    file = tmp_path / "asked" / ("annotations.xml" if tool == "cvat" else "tasks.json")
    assert known_in(file) == {"project"}
    with open_store(tmp_path / "project") as store:
        store.record([Answer(query.id, np.array([A]), np.array([0]), Verdict.OBJECT, "Ann")])
    run("export", tmp_path / "project", tmp_path / "asked")
    assert known_in(file) == {"project"}
    said = run("import", tmp_path / "anew", file)
    assert "1 box drawn for missed objects, 1 image exported by another project" in said
    assert "another project" not in run("import", tmp_path / "project", file)


@pytest.fixture
def cameras(tmp_path: Path) -> Iterator[Store]:
    """A store of photos of one name in several folders, and one whose name is that of another in an export."""
    paths = ("100/IMG.png", "101/IMG.png", "102/IMG.png", "102/one.png", "z/IMG-2.png")
    with Store(tmp_path / "cameras.sqlite", classes=CLASSES) as store:
        store.add_images([ImageRecord(n, f"/photos/{path}", 200, 100) for n, path in enumerate(paths, 1)])
        yield store


@pytest.mark.parametrize(
    ("number", "name", "image"),
    [
        (1, "ph/101/IMG.png", 2),
        (3, "/data/local-files/?d=ph/101/IMG.png", 2),
        (2, "elsewhere/IMG.png", 2),  # the folder says nothing, the number is all there is
        (2, "IMG-2-2.png", 2),  # its name in an export
        (1, "ph/z/IMG.png", None),  # z has no such photo
        (4, "ph/101/one.png", None),
        (2, "IMG-2.png", None),  # image 5, or image 2 in an export
    ],
)
def test_a_number_of_no_known_project_never_contradicts_the_folders(
    number: int, name: str, image: int | None, cameras: Store
) -> None:
    box = Region((10, 10, 50, 50), "cat", None, "a")
    batch = Batch([Returned("task", name, number, (200, 100), (), (box,))])
    if image is None:
        with pytest.raises(UserError, match=r"not in the store|in an export"):
            bring_in(cameras, batch, "labelstudio")
    else:
        bring_in(cameras, batch, "labelstudio")
    assert [*cameras.labels()] == ([] if image is None else [image])


def test_a_number_of_this_project_counts_whatever_the_folders(cameras: Store) -> None:
    box = Region((10, 10, 50, 50), "cat", None, "a")
    batch = Batch([Returned("task", "101/IMG.png", 1, (200, 100), (), (box,), project=cameras.session())])
    bring_in(cameras, batch, "labelstudio")
    assert [*cameras.labels()] == [1]


@pytest.mark.parametrize("labels", [False, True])
def test_ranked_tasks_hold_the_numbers_of_the_project_or_none(labels: bool, tmp_path: Path) -> None:
    for folder in ("b", "c"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        Image.new("RGB", (200, 100)).save(tmp_path / "photos" / folder / "a.png")
    create(tmp_path / "project", tmp_path / "photos", CLASSES)
    with open_store(tmp_path / "project") as store:
        ours = store.session()
    line = {"width": 200, "height": 100, "boxes": [A], "scores": [0.9], "labels": ["cat"]}
    lines = [json.dumps({"image": name, **line}) for name in ("c/a.png", "new.png")]
    (tmp_path / "found").write_text("\n".join(lines))
    words = [
        "--detections",
        tmp_path / "found",
        "--budget",
        "9",
        "--format",
        "labelstudio",
        "--to",
        tmp_path / "t.json",
    ]
    words += ["--labels", tmp_path / "project"] if labels else []
    done = CliRunner().invoke(app, ["rank", *map(str, words)])
    assert done.exit_code == 0, done.output
    about = [task["data"]["rarebox"] for task in json.loads((tmp_path / "t.json").read_text())]
    assert [(one.get("image_id"), one.get("project")) for one in about] == [
        (2, ours) if labels else (None, None),
        (None, None),
    ]
