"""Imports of rarebox's own exports: unchanged labels change nothing, and edited ones change only themselves."""

import json
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.data import cvat, labelstudio
from rarebox.data.export import Annotations, export
from rarebox.data.review import Batch, Region, Returned
from rarebox.errors import UserError
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.project.exchange.importing import Imported, bring_in
from rarebox.project.exchange.photos import Photos
from rarebox.types import Answer, ImageRecord, Query, Source, Verdict

CLASSES = ("cat", "dog", "owl")
TOOLS = ("labelstudio", "cvat")
A, B, FAR, NEAR_A = [10.0, 10, 50, 50], [100.0, 20, 150, 60], [120.0, 60, 160, 100], [13.0, 10, 53, 50]
of_both_tools = pytest.mark.parametrize("tool", TOOLS)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store of four images of 200 x 100 pixels, without labels."""
    with Store(tmp_path / "labels.sqlite", classes=CLASSES) as made:
        made.add_images([ImageRecord(n, f"/photos/img_{n}.png", 200, 100) for n in range(1, 5)])
        made.open_cycle(1)
        yield made


def draw(store: Store, box: list[float], label: int = 0, image: int = 1, by: str = "Ann") -> int:
    """Draw a box on the page. Return the id of its query."""
    (query,) = store.ask(1, [Query(image, np.array(box), label, asked_by=by)])
    answer(store, query.id, [box], [label], by)
    return query.id


def answer(
    store: Store, query: int, boxes: list[list[float]], labels: list[int], by: str = "Ann", verdict: str = "object"
) -> None:
    store.record([Answer(query, np.array(boxes).reshape(-1, 4), np.array(labels, np.int64), Verdict(verdict), by)])


def sent(store: Store, tool: str, to: Path, session: str = "") -> Path:
    """Export the labels of the store. Return the file."""
    said: list[Annotations] = []
    for number, one in store.labels().items():
        human, ones = np.array([Source.HUMAN] * len(one.boxes)), np.ones(len(one.boxes))
        said.append(Annotations(number, one.boxes, one.labels, human, ones, ones, ones, one.complete))
    export(to, tool, store.classes(), list(store.images().values()), said, photos=False, project=session)
    return to / ("annotations.xml" if tool == "cvat" else "tasks.json")


def read(file: Path) -> Batch:
    return cvat.read(file) if file.suffix == ".xml" else labelstudio.read(file)


def edited(file: Path, box: list[float], to: list[float] | None = None, name: str = "cat") -> Batch:
    """The export after somebody has moved a box, changed its class, or deleted it."""
    if file.suffix == ".xml":
        tree = ET.parse(file)
        sides = ("xtl", "ytl", "xbr", "ybr")
        for image in tree.getroot().iter("image"):
            for shape in image.findall("box"):
                if [float(shape.attrib[side]) for side in sides] == box:
                    shape.attrib.update({"label": name, **dict(zip(sides, map(str, to or box), strict=True))})
                    if to is None:
                        image.remove(shape)
        tree.write(file.with_name("edited.xml"))
        return cvat.read(file.with_name("edited.xml"))

    def value(box: list[float]) -> dict[str, Any]:
        x1, y1, x2, y2 = box
        return {"x": x1 / 2, "y": y1, "width": (x2 - x1) / 2, "height": y2 - y1, "rotation": 0}

    tasks = json.loads(file.read_text())
    for annotation in (a for task in tasks for a in task.get("annotations", [])):
        for region in list(annotation["result"]):
            if all(region["value"][side] == pytest.approx(at) for side, at in value(box).items()):
                region["value"] = {**value(to or box), "rectanglelabels": [name]}
                if to is None:
                    annotation["result"].remove(region)
    file.with_name("edited.json").write_text(json.dumps(tasks))
    return labelstudio.read(file.with_name("edited.json"))


def boxes(store: Store, image: int = 1) -> list[list[float]]:
    return sorted(store.labels_of(image).boxes.round(1).tolist())


def everything(store: Store) -> list[Any]:
    """Everything that was ever asked and answered."""
    given = [(g.id, g.query.id, g.answer.verdict, g.answer.boxes.tolist(), g.answer.by) for g in People(store).given()]
    return [len(store.queries()), *given]


def change(store: Store, chance: random.Random) -> None:
    """Actions of a person on the page: draw, box a whole image, correct, move far, withdraw, import, rename."""
    x, y = chance.uniform(0, 150), chance.uniform(0, 60)
    box = [x, y, x + chance.uniform(5, 50), y + chance.uniform(5, 40)]
    label, by, image = chance.randrange(3), chance.choice(["Ann", "Bo"]), chance.randint(1, 4)
    queries = store.queries()
    if not queries or chance.random() < 0.4:
        draw(store, box, label, image, by)
    elif chance.random() < 0.1:
        bring_in(store, in_task(chance.choice(["", "7/1"]), ("1", box)), chance.choice(TOOLS))
    elif chance.random() < 0.1:
        (query,) = store.ask(1, [Query(image, asked_by=by)])
        answer(store, query.id, [box, A], [label, 0], by)
    elif chance.random() < 0.1:
        renumber(store)
    elif (query := chance.choice(queries)).box is None or chance.random() < 0.3:
        answer(store, query.id, [], [], by, "withdrawn")
    elif chance.random() < 0.5:
        answer(store, query.id, [(query.box + np.array([2, 0, 3, 0])).tolist()], [label], by)
    else:
        answer(store, query.id, [box], [label], by)


@of_both_tools
@pytest.mark.parametrize("seed", range(4))
def test_an_unchanged_export_never_changes_the_store(seed: int, tool: str, tmp_path: Path, store: Store) -> None:
    chance, files = random.Random(seed), list[Path]()
    for number in range(5):
        for _ in range(chance.randrange(5)):
            change(store, chance)
        files.append(sent(store, chance.choice([tool, tool, *TOOLS]), tmp_path / str(number)))
        before = everything(store), store.labels()
        for file in files:
            done = bring_in(store, read(file), tool, by=chance.choice(["", "Ann"]), instead=chance.random() < 0.5)
            assert done == Imported(unchanged=done.unchanged)
        assert everything(store) == before[0]


@of_both_tools
def test_a_label_withdrawn_or_moved_since_the_export_does_not_return(tool: str, tmp_path: Path, store: Store) -> None:
    taken_back, moved = draw(store, A), draw(store, B)
    file = sent(store, tool, tmp_path / "out")
    answer(store, taken_back, [], [], verdict="withdrawn")
    answer(store, moved, [FAR], [0])
    assert bring_in(store, read(file), tool) == Imported(unchanged=2)
    assert boxes(store) == [FAR]


@of_both_tools
def test_a_store_that_never_had_the_labels_imports_them(tool: str, tmp_path: Path, store: Store) -> None:
    draw(store, A)
    file = sent(store, tool, tmp_path / "out")
    with Store(tmp_path / "other.sqlite", classes=CLASSES) as other:
        other.add_images(list(store.images().values()))
        assert bring_in(other, read(file), tool) == Imported(missed=1)
        assert boxes(other) == [A]


@of_both_tools
@pytest.mark.parametrize("name", ["cat", "dog"])
def test_a_label_moved_far_in_the_tool_is_reported_and_with_replace_moved(
    name: str, tool: str, tmp_path: Path, store: Store
) -> None:
    draw(store, A)
    draw(store, B)
    batch = edited(sent(store, tool, tmp_path / "out"), A, FAR, name)
    assert bring_in(store, batch, tool) == Imported(left=1, unchanged=1)
    assert boxes(store) == [A, B]
    assert bring_in(store, batch, tool, instead=True) == Imported(missed=1, unchanged=1)
    assert boxes(store) == [B, FAR]
    assert bring_in(store, batch, tool) == Imported(unchanged=2)
    # In the next export, another label has the first place in the list.
    file = sent(store, tool, tmp_path / "again")
    assert bring_in(store, read(file), tool, by="Bo") == Imported(unchanged=2)
    assert bring_in(store, edited(file, B, [B[0] + 6, *B[1:]]), tool, by="Bo") == Imported(left=1, unchanged=1)
    assert bring_in(store, edited(file, B, B, "owl"), tool, by="Bo") == Imported(left=1, unchanged=1)
    assert bring_in(store, edited(file, B), tool, by="Bo", instead=True) == Imported(withdrawn=1, unchanged=1)
    assert boxes(store) == [FAR]


@of_both_tools
@pytest.mark.parametrize("to", [FAR, NEAR_A, None])
def test_a_change_that_is_undone_in_the_tool_is_undone_here(
    to: list[float] | None, tool: str, tmp_path: Path, store: Store
) -> None:
    """The file then equals the export again: only earlier answers of its own task tell that it says something new."""

    def of_task(batch: Batch, task: str) -> Imported:
        returned = [replace(one, task=task) for one in batch.returned]
        return bring_in(store, replace(batch, returned=returned), tool, by="Bo", instead=True)

    draw(store, A)
    draw(store, B, 1)
    file = sent(store, tool, tmp_path / "sent")
    of_task(edited(file, A, to, "dog"), "7")
    assert boxes(store) == sorted([B, *([to] if to else [])])
    changed = everything(store)
    assert of_task(read(file), "8") == bring_in(store, read(file), tool) == Imported(unchanged=2)
    assert everything(store) == changed
    assert of_task(read(file), "7") == Imported(missed=1, unchanged=1)
    assert boxes(store) == [A, B]
    assert sorted(store.labels_of(1).labels.tolist()) == [0, 1]
    assert of_task(read(file), "7") == Imported(unchanged=2)


@of_both_tools
@pytest.mark.parametrize("change", ["split", "swap", "merge and reuse"])
def test_names_in_a_file_mean_what_they_meant_when_it_was_exported(
    change: str, tool: str, tmp_path: Path, store: Store
) -> None:
    draw(store, A)
    draw(store, B, 1)
    file, people = sent(store, tool, tmp_path / "sent", store.session()), People(store)
    if change == "merge and reuse":
        people.merge_class(0, 1, "Ann")
        people.add_class("cat")
    else:
        people.rename_class(0, "animal", "Ann")
        if change == "swap":
            people.rename_class(1, "cat", "Ann")
            people.rename_class(0, "dog", "Ann")
        else:
            people.add_class("cat")
    before = everything(store)
    assert bring_in(store, read(file), tool, by="Ann") == Imported(unchanged=2)
    for name in ("dog", "cat") if change == "swap" else ():
        with pytest.raises(UserError, match=rf"'{name}' was the name of .* another class now"):
            bring_in(store, edited(file, B if name == "cat" else A, A if name == "dog" else B, name), tool, by="Ann")
    assert everything(store) == before
    assert bring_in(store, edited(file, A, FAR, "cat"), tool, by="Ann") == Imported(missed=1, unchanged=1)
    cat_was = 1 if change == "merge and reuse" else 0
    assert sorted(store.labels_of(1).labels.tolist()) == sorted([cat_was, 1])
    again = sent(store, tool, tmp_path / "again", store.session())
    bring_in(store, edited(again, FAR, FAR, "cat"), tool, by="Ann")
    assert sorted(store.labels_of(1).labels.tolist()) == sorted([store.classes().index("cat", cat_was), 1])


@of_both_tools
def test_a_class_that_was_split_in_the_tool_too_is_refused_where_it_is_unclear(
    tool: str, tmp_path: Path, store: Store
) -> None:
    """The other box has the new name of its class, so the tool's names have changed, and this one may be a new cat."""
    draw(store, A)
    draw(store, FAR)
    file, people = sent(store, tool, tmp_path / "sent", store.session()), People(store)
    people.rename_class(0, "animal", "Ann")
    people.add_class("cat")
    with pytest.raises(UserError, match=r"'cat' was the name of 'animal' .* another class now"):
        bring_in(store, edited(file, FAR, FAR, "animal"), tool, by="Ann")
    people.rename_class(3, "house cat", "Ann")
    assert bring_in(store, edited(file, FAR, FAR, "animal"), tool, by="Ann") == Imported(unchanged=2)


@of_both_tools
def test_a_change_in_the_tool_that_was_corrected_on_the_page_stays_so(tool: str, tmp_path: Path, store: Store) -> None:
    query = draw(store, A)
    file = sent(store, tool, tmp_path / "sent")
    batch = edited(file, A, NEAR_A, "dog")
    bring_in(store, replace(batch, returned=[replace(one, task="7") for one in batch.returned]), tool, instead=True)
    answer(store, query, [FAR], [2])
    batch = read(file)
    done = bring_in(store, replace(batch, returned=[replace(one, task="7") for one in batch.returned]), tool)
    assert (done, boxes(store)) == (Imported(unchanged=1), [FAR])


def test_regions_that_were_swapped_are_matched_by_position(tmp_path: Path, store: Store) -> None:
    draw(store, A)
    draw(store, B)
    file = sent(store, "labelstudio", tmp_path / "out")
    tasks = json.loads(file.read_text())
    first, second = tasks[0]["annotations"][0]["result"]
    first["value"], second["value"] = second["value"], {**first["value"], "x": first["value"]["x"] + 1}
    file.write_text(json.dumps(tasks))
    assert bring_in(store, read(file), "labelstudio") == Imported(left=1, unchanged=1)
    assert boxes(store) == [A, B]


@of_both_tools
def test_a_class_that_was_renamed_since_keeps_its_former_name(tool: str, tmp_path: Path, store: Store) -> None:
    draw(store, A, 0)
    draw(store, B, 1)
    file = sent(store, tool, tmp_path / "out")
    People(store).rename_class(0, "lynx", "Ann")
    assert bring_in(store, read(file), tool) == Imported(unchanged=2)
    assert bring_in(store, edited(file, A), tool, instead=True) == Imported(withdrawn=1, unchanged=1)
    assert boxes(store) == [B]
    # A name that two classes have had is ambiguous.
    for label, name in ((1, "wolf"), (2, "dog"), (2, "eagle")):
        People(store).rename_class(label, name, "Ann")
    with pytest.raises(UserError, match="'dog'"):
        bring_in(store, read(file), tool)


def renumber(store: Store) -> None:
    """Give each photo the name of the one before: the first was deleted and the rest renumbered."""
    store.move_images({n: f"/photos/img_{n - 1}.png" for n in (2, 3, 4)})


@of_both_tools
def test_labels_stay_with_their_photos_that_were_renumbered_since(tool: str, tmp_path: Path, store: Store) -> None:
    for image in (2, 3, 4):
        draw(store, A, image=image)
    file = sent(store, tool, tmp_path / "out")
    renumber(store)
    before = everything(store)
    assert bring_in(store, read(file), tool) == Imported(unchanged=3)
    assert everything(store) == before
    assert bring_in(store, edited(file, A, FAR), tool, instead=True) == Imported(missed=3)
    assert [boxes(store, image) for image in (1, 2, 3, 4)] == [[], [FAR], [FAR], [FAR]]


@of_both_tools
@pytest.mark.parametrize("name", ["img_2.png", "/data/upload/1/1a2b3c4d-img_2.png", "photos/img_2.png"])
def test_a_name_that_two_photos_have_had_is_refused(name: str, tool: str, store: Store) -> None:
    batch = Batch([Returned("task 1", name, None, None, (), (Region((10, 10, 50, 50), "cat", None, ""),))])
    renumber(store)
    with pytest.raises(UserError, match=r"img_2\.png' is the name of image 3 and is or was the name of image 2"):
        bring_in(store, batch, tool)
    assert everything(store) == [0]


def test_photos_that_were_moved_to_another_folder_keep_their_names(store: Store) -> None:
    store.move_images({n: f"/moved/d{n}/a.png" for n in (1, 2, 3)})
    store.move_images({n: f"/again/d{n}/a.png" for n in (1, 2)})
    photos = Photos(store)
    assert [photos.named(name) for name in ("d1/a.png", "moved/d3/a.png", "img_4.png")] == [1, 3, 4]
    store.move_images({1: "/again/d1/b.png", 2: "/again/d1/a.png"})
    with pytest.raises(UserError, match=r"image 2 and is or was the name of image 1"):
        Photos(store).named("d1/a.png")


def in_task(task: str, *drawn: tuple[str, list[float]]) -> Batch:
    """Boxes with ids that another tool gave them in a task about the first image."""
    regions = tuple(Region((x1, y1, x2, y2), "cat", None, key) for key, (x1, y1, x2, y2) in drawn)
    return Batch([Returned(task, "img_1.png", 1, None, (), regions, task=task)])


def test_the_same_ids_in_two_tasks_are_different_boxes(store: Store) -> None:
    assert bring_in(store, in_task("7/1", ("1", A), ("2", B)), "labelstudio") == Imported(missed=2)
    assert bring_in(store, in_task("7/2", ("1", FAR)), "labelstudio") == Imported(missed=1)
    assert boxes(store) == [A, B, FAR]
    # Within one task they are the same boxes: one moved, one deleted.
    assert bring_in(store, in_task("7/2", ("1", [0, 60, 20, 90])), "labelstudio") == Imported(missed=1, withdrawn=1)
    assert bring_in(store, in_task("7/1", ("2", B)), "labelstudio") == Imported(unchanged=1, withdrawn=1)
    assert boxes(store) == [[0, 60, 20, 90], B]


def with_task(file: Path, project: int, task: int) -> Batch:
    """A Label Studio file of a task with these numbers, or a CVAT file of a task."""
    if file.suffix == ".xml":
        text = file.read_text().replace("<task>", f"<task><id>{task}</id>")
    else:
        text = json.dumps([{**one, "id": task, "project": project} for one in json.loads(file.read_text())[:1]])
    file.write_text(text)
    return read(file)


@of_both_tools
def test_files_say_which_task_their_boxes_are_of(tool: str, tmp_path: Path, store: Store) -> None:
    draw(store, A)
    (one, *_) = with_task(sent(store, tool, tmp_path / "out"), 7, 2).returned
    assert one.task == ("2" if tool == "cvat" else "7/2")
    assert [(region.key, region.held) for region in one.regions] == [("", 0)]


@pytest.mark.parametrize("instead", [False, True])
def test_labels_that_a_complete_file_lacks_are_kept_and_counted(instead: bool, store: Store) -> None:
    draw(store, A)
    draw(store, B, 1)
    (whole,) = store.ask(1, [Query(2, asked_by="Ann")])
    answer(store, whole.id, [A, B], [0, 1])
    seen = [
        Returned(f"task {n}", f"img_{n}.png", None, (200, 100), (), (Region((*A,), "cat", None, ""),)) for n in (1, 2)
    ]
    assert bring_in(store, Batch(seen), "cvat", instead=instead) == Imported(unchanged=2)
    done = bring_in(store, Batch(seen), "cvat", complete=True, instead=instead)
    assert done == Imported(unchanged=3, complete=1, kept=2)
    assert boxes(store) == boxes(store, 2) == [A, B]
    empty = [Returned("task 3", "img_3.png", None, (200, 100), (), ())]
    assert bring_in(store, Batch(empty), "cvat", complete=True) == Imported(complete=1)


def test_replace_is_not_advised_for_boxes_of_a_whole_images_answer(tmp_path: Path, store: Store) -> None:
    (whole,) = store.ask(1, [Query(1, asked_by="Ann")])
    answer(store, whole.id, [A, B], [0, 1])
    edited(sent(store, "cvat", tmp_path / "out"), A, NEAR_A)
    words = ["import", str(tmp_path / "labels.sqlite"), str(tmp_path / "out" / "edited.xml"), "--format", "cvat"]
    for said in (invoked(words), invoked([*words, "--replace"])):
        assert "1 answer not used: single boxes of a fully labelled image" in said
        assert "--replace" not in said


def invoked(words: list[str]) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    return done.output
