"""``rarebox predictions``: another detector's boxes come into a project at any time, and are asked about."""

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarebox.cli import main
from rarebox.core import parquet
from rarebox.labels.leases import People, Status, Submission
from rarebox.labels.store import Store
from rarebox.project import predictions
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.types import Answer, ImageRecord, Query, Verdict
from rarebox.web.service import AnnotationService
from tests.serving import make_project

CLASSES = ("fish", "Killer Whale")
RESULT = {"image_id": 7, "category_id": 3, "bbox": [100, 50, 20, 20], "score": 0.6}
COCO = {
    "images": [{"id": 7, "file_name": "p1.png", "width": 400, "height": 200}],
    "categories": [{"id": 3, "name": "killer whale"}],
    "annotations": [],
}


def line(image: str = "p1.png", label: str | int = "killer whale", score: float = 0.6, **more: Any) -> dict[str, Any]:
    return {"image": image, "boxes": [[100, 50, 120, 70]], "scores": [score], "labels": [label], **more}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two photos, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in (1, 2):
        Image.new("RGB", (400, 200), (number, 0, 0)).save(f"photos/p{number}.png")
    create(Path("p"), Path("photos"), CLASSES)
    return Path("p")


@pytest.fixture
def rarebox(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command: its status, output and messages."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rarebox", "predictions", *words])
        with pytest.raises(SystemExit) as left:
            main.main()
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out.strip(), " ".join(said.err.split())

    return call


def write(name: str, found: Sequence[dict[str, Any]], lines: bool = True) -> str:
    text = "".join(json.dumps(one) + "\n" for one in found) if lines else json.dumps(found)
    Path(name).write_text(text, encoding="utf-8")
    return name


def held(root: Path) -> list[tuple[str, int, list[float]]]:
    """Photo, label and box of everything that was added."""
    project = Project(root)
    found, images = project.read_predictions(), project.store.images()
    project.store.close()
    if found is None:
        return []
    rows = zip(found.image_id.tolist(), found.labels.tolist(), found.boxes.tolist(), strict=True)
    return [(Path(images[i].path).name, label, box) for i, label, box in rows]


BOX = [100, 50, 120, 70]


def test_boxes_are_matched_by_the_names_of_photos_and_classes(root: Path, rarebox: Any) -> None:
    found = [line(), line("elsewhere.png"), line("photos/p2.png", "FISH")]
    found[2]["boxes"] += [[0, 0, 9, 9]]
    found[2] |= {"labels": ["FISH", "boat"], "scores": [0.6, 0.6]}
    status, out, err = rarebox("add", "p", write("sam 3.jsonl", found))
    assert (status, out) == (0, "sam-3: 2 boxes on 2 photos (Killer Whale 1, fish 1)"), err
    assert "1 image skipped, not among the project's photos: elsewhere.png" in err
    assert "1 box skipped, of classes that the project does not have: boat" in err
    assert held(root) == [("p1.png", 1, BOX), ("p2.png", 0, BOX)]


@pytest.mark.parametrize(
    ("found", "options"),
    [
        ([line(label=1)], []),  # numbers are those of the project's classes
        ([line(label=0)], ["--classes", "killer whale"]),
        ([{"classes": ["x", "killer whale"]}, line(label=1)], []),
        ([{**line(), "boxes": [[50, 25, 60, 35]], "width": 200, "height": 100}], []),  # of a smaller copy
        ([RESULT], ["--images", "coco.json"]),
    ],
)
def test_every_format_and_numbering_that_rank_reads(
    root: Path, rarebox: Any, found: list[dict[str, Any]], options: list[str]
) -> None:
    Path("coco.json").write_text(json.dumps(COCO))
    status, _, err = rarebox("add", "p", write("found", found, lines="bbox" not in found[0]), *options)
    assert status == 0, err
    assert held(root) == [("p1.png", 1, BOX)]


def test_numbers_are_refused_once_classes_were_merged(root: Path, rarebox: Any) -> None:
    """An export numbers the remaining classes from 0, so a detector trained on it calls class 1 of the project 0."""
    with Store(root / "labels.sqlite") as store:
        People(store).merge_class(0, 1, "ann")
    status, _, err = rarebox("add", "p", write("found", [line(label=0)]))
    assert (status, "does not name its classes" in err, "merged" in err) == (2, True, True)
    assert rarebox("add", "p", "found", "--classes", "killer whale")[0] == 0
    assert held(root) == [("p1.png", 1, BOX)]


def test_they_are_listed_and_removed_by_name(root: Path, rarebox: Any) -> None:
    assert rarebox("list", "p")[1] == "p has no added predictions"
    rarebox("add", "p", write("a.jsonl", [line()]), "--name", "owl")
    rarebox("add", "p", write("b.jsonl", [line("p2.png", "fish")]))
    assert rarebox("list", "p")[1].splitlines() == [
        "b: 1 box on 1 photo (fish 1)",
        "owl: 1 box on 1 photo (Killer Whale 1)",
    ]
    assert json.loads(rarebox("list", "p", "--json")[1].splitlines()[1])["per_class"] == {"Killer Whale": 1}
    assert rarebox("remove", "p", "owl")[:2] == (0, "owl: removed")
    assert held(root) == [("p2.png", 0, BOX)]
    status, _, err = rarebox("remove", "p", "owl")
    assert (status, "unknown predictions 'owl'" in err) == (2, True)


def test_the_same_again_changes_nothing_and_others_are_not_replaced(root: Path, rarebox: Any) -> None:
    first = rarebox("add", "p", write("sam.jsonl", [line()]))
    assert rarebox("add", "p", "sam.jsonl") == first
    assert rarebox("add", "p", "sam.jsonl", "--name", "again")[0] == 0
    assert len(held(root)) == 1  # the same box counts once
    status, _, err = rarebox("add", "p", write("sam.jsonl", [line(score=0.7)]))
    assert status == 2
    assert "rarebox predictions remove p sam" in err
    assert held(root) == [("p1.png", 1, BOX)]


@pytest.mark.parametrize(
    ("found", "options", "wanted"),
    [
        ([], [], "holds no detections"),
        ([line(score=0.01)], [], "no box with a score of at least 0.1"),
        ([line("elsewhere.png")], [], "none of the 1 box can be used. 1 image skipped, not among the project's photos"),
        ([line(label="boat")], [], "none of the 1 box can be used. 1 box skipped, of classes"),
        ([line(label=5)], [], "class number 5"),
        ([line(width=300, height=300)], [], "300 x 300"),
        ([{**line(), "boxes": [[500, 50, 520, 70]]}], [], "outside"),
        ([RESULT], [], "Give a COCO file with these categories as --images"),
        ([line()], ["--name", "../labels"], "cannot name predictions"),
        ([line()], ["--name", ".x"], "cannot name predictions"),
    ],
)
def test_bad_files_and_names_say_what_to_do_and_add_nothing(
    root: Path, rarebox: Any, found: list[dict[str, Any]], options: list[str], wanted: str
) -> None:
    status, out, err = rarebox("add", "p", write("found", found, lines=not found or "bbox" not in found[0]), *options)
    assert (status, out) == (2, "")
    assert wanted in err
    assert "Traceback" not in err
    assert held(root) == []


def test_a_file_of_predictions_that_is_damaged_is_named(root: Path, rarebox: Any) -> None:
    rarebox("add", "p", write("sam.jsonl", [line()]))
    Path("p/predictions/sam.parquet").write_bytes(b"PAR1")
    status, _, err = rarebox("list", "p")
    assert (status, "p/predictions/sam.parquet is damaged" in err) == (2, True)


def test_a_merged_class_takes_its_added_boxes_along(root: Path, rarebox: Any) -> None:
    rarebox("add", "p", write("sam.jsonl", [line()]))
    project = Project(root)
    People(project.store).merge_class(1, 0, "anna")
    project.store.close()
    assert held(root) == [("p1.png", 0, BOX)]


def test_the_file_of_an_earlier_version_is_read_and_removable(root: Path, rarebox: Any) -> None:
    columns = {"image_id": np.array([1]), "boxes": np.array([BOX], np.float32), "labels": np.array([1])}
    parquet.write(root / "predictions.parquet", {**columns, "scores": np.array([0.5], np.float32)})
    assert held(root) == [("p1.png", 1, BOX)]
    assert rarebox("remove", "p", "predictions")[0] == 0
    assert held(root) == []


# ------------------------------------------------------------------------------------------- while people answer


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project of 30 images with examples of two classes, whose ranking asks only about these."""
    (tmp_path / "photos").mkdir()
    for i in range(1, 31):
        Image.new("RGB", (640, 480), (i, 0, 0)).save(tmp_path / "photos" / f"{i}.png")
    records = [ImageRecord(i, str(tmp_path / "photos" / f"{i}.png"), 640, 480) for i in range(1, 31)]
    project = make_project(tmp_path / "project", records, ("fish", "ray"))
    People(project.store).add_class("shark")
    box = np.array([[1, 1, 9, 9]], np.float32)
    for label, query in enumerate(project.store.ask(1, [Query(1, box[0]), Query(2, box[0])])):
        project.store.record([Answer(query.id, box, np.array([label]), Verdict.OBJECT)])
    yield project
    project.store.close()


def sharks(images: Sequence[int]) -> predictions.Matched:
    """A box of the third class on each image, where the ranking has none."""
    boxes = np.tile(np.array([[600, 440, 630, 470]], np.float32), (len(images), 1))
    scores = np.full(len(images), 0.6, np.float32)
    found = predictions.as_candidates(np.array(images), boxes, np.full(len(images), 2), scores)
    return predictions.Matched(found, ())


def test_a_running_server_asks_about_what_another_process_adds_and_not_what_it_removes(project: Project) -> None:
    service = AnnotationService(project, train=False)
    done = 0

    def next_guesses(most: int) -> list[int | None]:
        """The guesses of the next questions, asked one at a time and rejected."""
        nonlocal done
        found: list[int | None] = []
        while len(found) < most:
            (query,) = service.answer("anna", "anna", [], 1).result(20)[1]
            said = Submission(f"{done}", Verdict.NOT_AN_OBJECT, np.zeros((0, 4)), np.zeros(0, np.int64), 1000, query.id)
            (outcome,) = service.answer("anna", "anna", [said], 0).result(20)[0]
            assert outcome.status is Status.SAVED
            found.append(query.guess)
            done += 1
        return found

    assert 2 not in next_guesses(3)
    other = Project(project.folder.root)
    other.add_predictions("sam", sharks([10, 11, 12, 13, 14]))
    asker = service.memory.asker
    wait_for(lambda: service.memory.asker is not asker)
    assert next_guesses(7).count(2) == 3  # three tenths of the ten questions so far
    (query,) = service.answer("anna", "anna", [], 1).result(20)[1]
    reason = service.presenter.query(query)["reason"]
    assert reason == "It looks like shark, a rare class (0 of 2 labels so far); another detector is 60% sure."
    asker = service.memory.asker
    other.remove_predictions("sam")
    other.store.close()
    wait_for(lambda: service.memory.asker is not asker)
    assert next_guesses(10).count(2) == 1  # the one that was asked before
    service.close()


def wait_for(came: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not came():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_added_boxes_outlive_every_new_ranking(project: Project) -> None:
    """They are on disk as long as nobody removes them, also for a process that starts later."""
    project.add_predictions("sam", sharks([10, 11]))
    for cycle in (3, 4):
        ranking = project.read_ranking(2)
        project.folder.cycle(cycle).mkdir()
        project.write_ranking(cycle, ranking.queue, ranking.class_frequency, ranking.open_per_class)
        project.store.open_cycle(cycle)
        later = Project(project.folder.root)
        asker = later.asker(cycle)
        assert asker
        (query,) = asker.ask(1)
        later.store.close()
        assert (query.guess, (query.why or {})["added"]) == (2, pytest.approx(0.6))


def test_a_process_that_is_killed_leaves_all_predictions_or_none(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it told the server: the same command again tells it."""
    session = project.store.session()
    with monkeypatch.context() as patch:
        patch.setattr(Project, "_begin_session", lambda _: sys.exit(9))
        with pytest.raises(SystemExit):
            project.add_predictions("sam", sharks([10]))
    assert project.store.session() == session
    assert project.add_predictions("sam", sharks([10])).boxes == 1
    assert project.store.session() != session
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: sys.exit(9))
        patch.setattr("os.replace", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            project.add_predictions("owl", sharks([11, 12]))
    assert [one.name for one in project.list_predictions()] == ["sam"]
