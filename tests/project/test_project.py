"""A project with annotators, without a server: how it starts, and that its loop is the simulation's."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sqlalchemy import update
from typer.testing import CliRunner

from rarebox import external
from rarebox.cli import main
from rarebox.core import boxes
from rarebox.core.files import read_json
from rarebox.data.datasets import load
from rarebox.errors import UserError
from rarebox.labels import schema
from rarebox.labels.leases import People, Status, Submission
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.loop import ask, cycle
from rarebox.loop.cycle import rank_pool
from rarebox.loop.features import labelled_features, some_of_each_class
from rarebox.pool import ranking
from rarebox.pool.last import sketch
from rarebox.project import project, trainer
from rarebox.project.create import create
from rarebox.project.predictions import matched
from rarebox.project.project import Project
from rarebox.project.run import open_project
from rarebox.types import Answer, ImageLabels, Query, Verdict
from rarebox.web import wording
from rarebox.web.service import AnnotationService
from tests import tiny
from tests.house import CLASSES, make_project

pytestmark = pytest.mark.usefixtures("small_network")

CHANGES = {name: value for name, value in tiny.CHANGES.items() if name not in ("initial_images", "budget")}
CHANGES |= {"initial_images": 5, "budget": [6], "budget_unit": "reviews", "people.overlap": 0}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("pictures") / "scenes")


def photos(pictures: Path, folder: Path) -> Path:
    """The training pictures alone, without any label."""
    folder.mkdir()
    for image in load(pictures).train.images:
        shutil.copy(image.path, folder)
    return folder


def start(pictures: Path, folder: Path, **changes: Any) -> Project:
    classes = load(pictures).classes
    create(folder / "project", photos(pictures, folder / "photos"), classes, changes={**CHANGES, **changes})
    return Project(folder / "project")


def oracle_of(pictures: Path, now: Project) -> SimulatedOracle:
    """Answers from the ground truth, for the project's image numbers."""
    truth = load(pictures).train
    by_name = {Path(image.path).name: truth.truth[image.id] for image in truth.images}
    return SimulatedOracle({i: by_name[Path(image.path).name] for i, image in now.store.images().items()}, iou=0.1)


def answer_cycle(now: Project, oracle: SimulatedOracle) -> None:
    """The server's work for one person: ask while the budget lasts, and record."""
    cycle, asker = now.cycle, now.asker(now.cycle)
    while True:
        if asker and (most := now.budget(cycle).to_ask) > 0:
            asker.ask(most)
        if not (queries := now.store.unanswered(cycle)):
            return
        now.store.record([oracle.answer(queries[0])])


def quiet(*_: Any) -> None:
    pass


def test_three_cycles_of_a_project(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    assert (now.cycle, now.store.queries()) == (0, [])
    assert trainer.advance(now, quiet) == "questions"
    first = now.store.queries(1)
    assert len(first) == 5
    assert len({q.image_id for q in first}) == 5
    (held,) = [q.image_id for q in first if q.why and q.why[project.HELD_OUT]]
    assert trainer.advance(now, quiet) is None  # annotators must answer first
    oracle = oracle_of(pictures, now)
    for number in (1, 2, 3):
        assert now.cycle == number
        answer_cycle(now, oracle)
        assert now.budget(number).spent == now.budget(number).total == (5 if number == 1 else 6)
        assert trainer.advance(now, quiet) == "trained"
        assert trainer.advance(now, quiet) == "questions"
        assert trainer.advance(now, quiet) is None
    records = now.folder.records()
    assert [r["cycle"] for r in records] == [1, 2, 3]
    assert all(r["ap50"] is not None for r in records)  # on the image that is held out
    assert held not in _trained_on(now, 3)
    assert {q.image_id for q in first} - {held} <= set(_trained_on(now, 3))


def test_boxes_like_the_labelled_ones_can_be_looked_for(pictures: Path, tmp_path: Path) -> None:
    """The trainer keeps features of labelled boxes that compare with those of the candidates: a box that is labelled
    where a candidate is looks like it."""
    now = start(pictures, tmp_path)
    trainer.advance(now, quiet)
    answer_cycle(now, oracle_of(pictures, now))
    for _ in range(2):  # train and rank
        trainer.advance(now, quiet)
    found = now.read_ranking(2).candidates
    features = now.read_features(2, found)
    assert features is not None
    held = project.held_out_in(now.store)
    known = {i: said for i, said in now.store.labels().items() if len(said.boxes) and i not in held}
    assert features.image_id[: len(found)].tolist() == found.image_id.tolist()
    assert {*features.image_id[len(found) :].tolist()} == known.keys()
    assert len(features) - len(found) == sum(len(said.boxes) for said in known.values())
    assert np.linalg.norm(features.features, axis=1) == pytest.approx(1, abs=1e-2)

    # The same model's features of boxes that are the candidates themselves.
    run = open_project(now.folder, now.settings, now.store, quiet)
    run.cycle = 2
    some = found[:8]
    own = {
        i: ImageLabels(some.boxes[some.image_id == i], some.labels[some.image_id == i], *NONE) for i in some.image_id
    }
    again = labelled_features(run, 2, own)
    above = list[float]()
    for image_id, box, vector in zip(again.image_id, again.boxes, sketch(again.features), strict=True):
        cosines = features.features[: len(found)] @ vector
        (same,) = np.flatnonzero((found.image_id == image_id) & (found.boxes == box).all(axis=1))
        above.append(float((cosines > cosines[same]).mean()))
    assert np.median(above) < 0.05  # RetinaNet may have found a box from an anchor that is not the nearest one


NONE = (np.zeros((0, 4), np.float32), np.zeros((0, 4), np.float32), False)
"""The rejected and the skipped boxes of an image that is not complete."""


@pytest.mark.parametrize("budget", [[], [0], [50, 0]])
def test_a_budget_that_would_train_without_answers_is_refused(
    pictures: Path, tmp_path: Path, budget: list[int]
) -> None:
    with pytest.raises(UserError, match=r"at least one number.*no 0"):
        start(pictures, tmp_path, budget=budget)


def test_labelled_boxes_are_compared_up_to_a_number_for_each_class() -> None:
    box = np.array([[0, 0, 9, 9]], dtype=np.float32)
    said = {i: ImageLabels(box, np.array([label]), *NONE) for i, label in enumerate([0, 1, 0, 0, 1])}
    assert [*some_of_each_class(said, 2)] == [4, 3, 2, 1]
    assert [*some_of_each_class(said, 1)] == [4, 3]


def test_missing_photos_do_not_stop_the_training(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    oracle, images = oracle_of(pictures, now), now.store.images()
    Path(images[1].path).unlink()
    assert trainer.advance(now, quiet) == "questions"
    answer_cycle(now, oracle)
    first = [query.image_id for query in now.store.queries(1)]
    assert 1 not in first
    for gone in (first[0], first[-1]):  # labelled for training and for evaluation
        Path(images[gone].path).rename(tmp_path / f"{gone}.aside")
    assert trainer.advance(now, quiet) == "trained"
    assert trainer.advance(now, quiet) == "questions"
    assert first[0] not in _trained_on(now, 1)
    answer_cycle(now, oracle)
    Path(tmp_path / f"{first[0]}.aside").rename(images[first[0]].path)
    assert trainer.advance(now, quiet) == "trained"
    assert first[0] in _trained_on(now, 2)  # its labels were kept


@pytest.mark.parametrize("lost", ["all", "labelled"])
def test_a_training_without_photos_names_their_folder(pictures: Path, tmp_path: Path, lost: str) -> None:
    now = start(pictures, tmp_path)
    with now.store.transaction(writes=True):
        now.store.open_cycle(1)
        now.store.ask(1, [Query(1), Query(2)])
    for query in now.store.unanswered(1):
        now.store.record([Answer(query.id, np.array([[1, 1, 9, 9]]), np.zeros(1, np.int64), Verdict.OBJECT)])
    for number in now.store.images() if lost == "all" else (1, 2):
        Path(now.store.images()[number].path).unlink()
    with pytest.raises(UserError, match=rf"photos .*missing: {tmp_path / 'photos'}.*rarebox relocate"):
        trainer.advance(now, quiet)
    assert not now.folder.records()


def test_a_project_without_photos_asks_nothing_and_names_their_folder(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    shutil.rmtree(tmp_path / "photos")
    with pytest.raises(UserError, match=f"the photos are missing: {tmp_path / 'photos'} holds none of the"):
        trainer.advance(now, quiet)


def _trained_on(now: Project, cycle: int) -> list[int]:
    from rarebox.labels.targets import read_targets

    return list(read_targets(now.folder.cycle(cycle) / "targets.parquet"))


def test_people_and_the_simulation_ask_the_same(pictures: Path, tmp_path: Path) -> None:
    """One loop, not two: with the same first images and the same answers, the same boxes are asked about."""
    now = start(pictures, tmp_path)
    trainer.advance(now, quiet)
    oracle = oracle_of(pictures, now)
    answer_cycle(now, oracle)
    for _ in range(2):
        trainer.advance(now, quiet)
    answer_cycle(now, oracle)
    asked = [(q.image_id, q.box.tolist() if q.box is not None else None, q.utility) for q in now.store.queries(2)]

    # The simulation, from a copy of the project's state after cycle 1.
    run = open_project(now.folder, now.settings, now.store, quiet)
    with Store(tmp_path / "again.sqlite", classes=now.store.classes(), flush=False) as store:
        store.add_images(now.store.images().values())
        store.open_cycle(1)
        store.ask(1, [Query(q.image_id, why=q.why) for q in now.store.queries(1)])
        run.store, run.oracle = store, oracle_of(pictures, now)
        ask.answer_all(run, store.unanswered(1))
        store.open_cycle(2)
        ask.ask(run, 2, rank_pool(run, 2))
        again = [(q.image_id, q.box.tolist() if q.box is not None else None, q.utility) for q in store.queries(2)]
        assert again == asked
        assert len(again) == 6
        ours, theirs = now.store.labels(), store.labels()
        assert {i: (x.boxes.tolist(), x.labels.tolist()) for i, x in ours.items()} == {
            i: (x.boxes.tolist(), x.labels.tolist()) for i, x in theirs.items()
        }


def test_train_now_and_a_class_added_and_merged_between_cycles(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    trainer.advance(now, quiet)
    oracle, people = oracle_of(pictures, now), People(now.store)
    now.store.record([oracle.answer(q) for q in now.store.unanswered(1)[:3]])
    assert trainer.advance(now, quiet) is None
    assert trainer.advance(now, quiet, train=True) == "trained"
    assert trainer.advance(now, quiet) == "questions"
    new = people.add_class("smudge")
    people.merge_class(0, 1, "anna")
    query = now.asker(2).ask(1)[0]  # type: ignore[union-attr]
    assert query.guess != 0
    now.store.record([Answer(query.id, np.array([query.box]), np.array([new]), Verdict.OBJECT, "anna")])
    assert trainer.advance(now, quiet, train=True) == "trained"
    assert trainer.advance(now, quiet) == "questions"
    record = now.folder.records()[-1]
    assert record["human_per_class"]["smudge"] == 1
    kept = now.read_ranking(3)
    assert len(kept.class_frequency) == len(kept.open_per_class) == new + 1
    assert 0 not in kept.candidates.labels
    assert kept.open_per_class.tolist() == np.bincount(kept.candidates.labels, minlength=new + 1).tolist()


def test_an_interrupted_step_is_repeated(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = start(pictures, tmp_path)
    trainer.advance(now, quiet)
    answer_cycle(now, oracle_of(pictures, now))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cycle, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.advance(now, quiet)
    assert now.folder.records() == []
    assert trainer.advance(Project(now.folder.root), quiet) == "trained"
    with monkeypatch.context() as patch:
        patch.setattr(Project, "write_ranking", stop)
        with pytest.raises(KeyboardInterrupt):
            trainer.advance(now, quiet)
    assert now.cycle == 1
    assert trainer.advance(Project(now.folder.root), quiet) == "questions"
    assert now.cycle == 2


def test_photos_that_people_label_before_the_choice_are_no_initial_images(pictures: Path, tmp_path: Path) -> None:
    """They train the first model, which still waits for the initial images, however many they are."""
    now = start(pictures, tmp_path)
    oracle, count = oracle_of(pictures, now), now.settings.initial_images
    early = [query for _ in range(count) for query in now.ask_further()]
    now.store.record([oracle.answer(query) for query in early])
    assert trainer.advance(now, quiet) == "questions"
    initial = {query.image_id for query in now.store.queries(1)[count:]}
    assert len(initial - {query.image_id for query in early}) == count
    assert trainer.advance(now, quiet) is None
    answer_cycle(now, oracle)
    assert trainer.advance(now, quiet) == "trained"
    assert {query.image_id for query in early} <= {*_trained_on(now, 1)}


def test_initial_images_differ_from_those_that_are_labelled(pictures: Path, tmp_path: Path) -> None:
    """The same photo under another name comes last."""
    now = start(pictures, tmp_path, initial_images=3)
    (early,) = now.ask_further()
    path = Path(now.store.images()[early.image_id].path)
    now.store.close()
    shutil.copy(path, path.with_name(f"copy{path.suffix}"))
    now = Project(now.folder.root)
    now.add_new_images()
    assert trainer.advance(now, quiet) == "questions"
    order = json.loads((now.folder.cycle(1) / "further_images.json").read_text())
    assert now.store.images()[order[-1]].path.endswith(f"copy{path.suffix}")


def test_the_first_training_does_not_wait_for_further_images(pictures: Path, tmp_path: Path) -> None:
    """One is open before it begins, is answered while it runs, and trains the next model; another stays open."""
    now = start(pictures, tmp_path)
    oracle = oracle_of(pictures, now)
    assert trainer.advance(now, quiet) == "questions"
    answer_cycle(now, oracle)
    (further,) = now.ask_further()

    def answers(stage: str, done: int, of: int, note: str) -> None:
        if "fit" in stage and further.id in {query.id for query in now.store.unanswered(1)}:
            now.store.record([oracle.answer(further)])
            later.extend(now.ask_further())

    later: list[Query] = []
    assert trainer.advance(now, answers) == "trained"
    assert trainer.advance(now, quiet) == "questions"
    assert now.cycle == 2
    answer_cycle(now, oracle)
    assert trainer.advance(now, quiet) == "trained"
    assert [query.id for query in now.store.unanswered(1)] == [query.id for query in later]
    assert further.image_id not in _trained_on(now, 1)
    assert further.image_id in _trained_on(now, 2)
    assert now.store.labels()[further.image_id].complete
    assert len(later) == 1


def test_photos_asked_about_while_the_first_ones_are_chosen_are_not_asked_twice(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)

    def meanwhile(stage: str, done: int, of: int, note: str) -> None:
        if not now.store.queries(1):
            now.store.open_cycle(1)
            now.store.ask(1, [Query(image_id) for image_id in [*now.store.images()][:10]])

    assert trainer.advance(now, meanwhile) == "questions"
    asked = [query.image_id for query in now.store.queries(1)]
    assert len(asked) == len(set(asked)) == 14


def test_a_project_may_ask_about_whole_images_with_the_detectors_boxes(pictures: Path, tmp_path: Path) -> None:
    """They are asked about in the order of the simulation, several at a time, until the budget is spent."""
    verify = {"selection.strategy": "image_per_second", "oracle.verify": True, "people.proposal_score": 0.01}
    now = start(pictures, tmp_path, budget=[8], **verify)
    oracle = oracle_of(pictures, now)
    assert trainer.advance(now, quiet) == "questions"
    answer_cycle(now, oracle)
    assert trainer.advance(now, quiet) == "trained"
    assert trainer.advance(now, quiet) == "questions"
    run = open_project(now.folder, now.settings, now.store, quiet)
    run.cycle = 2
    ranked = rank_pool(run, 2)
    wanted = [item[0] for place in range(50) if (item := ranked.queue(place))]
    shown = now.read_ranking(2).candidates
    with_boxes = [image_id for image_id in wanted if image_id in shown.image_id]
    asker = now.asker(2)
    assert asker
    first, second = asker.ask(2)
    assert [first.image_id, second.image_id] == with_boxes[:2]
    assert first.box is None
    assert [query.why for query in (first, second)] == [{"image_rank": 0, "cycle": 2}, {"image_rank": 1, "cycle": 2}]
    now.store.ask(2, [Query(wanted[-1], np.array([1, 1, 9, 9]), 0, why={"rank": 2, "cycle": 2})])  # by another strategy
    asker = now.asker(2)
    assert asker
    (third,) = asker.ask(1, skip_busy=True)
    assert third.image_id == with_boxes[2]
    service = AnnotationService(now, train=False)
    try:
        page = service.presenter.query(first)
        assert page["reason"] == wording.RANKED_IMAGE
        assert any(other["likely"] for other in page["others"])
        answer_cycle(now, oracle)
        asked = [query for query in now.store.queries(2) if query.box is None]
        assert [query.image_id for query in asked] == with_boxes[: len(asked)]
        spent = now.budget(2)
        assert spent.spent >= spent.total
        assert trainer.advance(now, quiet) == "trained"
        assert trainer.advance(now, quiet) == "questions"
        assert now.folder.records()[-1]["actions_this_cycle"]["scan"] == len(asked)
    finally:
        service.close()


def test_whole_images_are_asked_about_when_no_candidate_is_left(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path, **{"scoring.candidate_threshold": 1.0})
    trainer.advance(now, quiet)
    answer_cycle(now, oracle_of(pictures, now))
    assert [trainer.advance(now, quiet) for _ in range(3)] == ["trained", "questions", None]
    assert [q.box for q in now.store.queries(2)] == [None] * 5


def test_existing_labels_are_imported(pictures: Path, tmp_path: Path) -> None:
    images = photos(pictures, tmp_path / "photos")
    create(tmp_path / "whole", images, ["extra"], pictures, changes=CHANGES)
    now = Project(tmp_path / "whole")
    truth = load(pictures)
    assert now.store.classes() == (*truth.classes, "extra")
    labels = now.store.labels()
    assert len(labels) == 14
    assert all(said.complete for said in labels.values())
    assert sum(len(said.boxes) for said in labels.values()) == sum(len(t) for t in truth.train.truth.values())
    held = {q.image_id for q in now.store.queries(1) if q.why and q.why.get(project.HELD_OUT)}
    assert len(held) == 3  # a fifth of fourteen
    assert trainer.advance(now, quiet) == "trained"  # no need to draw boxes first
    assert now.folder.records()[0]["ap50"] is not None
    assert not held & set(_trained_on(now, 1))
    create(tmp_path / "part", images, [], pictures, partial=True, changes=CHANGES)
    part = Project(tmp_path / "part").store.labels()
    assert not any(said.complete for said in part.values())


def test_labels_do_not_go_to_a_photo_that_only_shares_its_name(pictures: Path, tmp_path: Path) -> None:
    images = photos(pictures, tmp_path / "photos")
    (first, second, *_) = sorted(images.iterdir())
    (images / "more").mkdir()
    shutil.copy(second, images / "more" / first.name)
    with open(first, "ab") as file:
        file.write(b"saved anew")  # otherwise its content determines which of the two is meant
    problems = create(tmp_path / "p", images, [], pictures, changes=CHANGES)
    assert [Path(one.where).name for one in problems if "several photos" in one.what].count(first.name) == 1
    now = Project(tmp_path / "p")
    labelled = {Path(now.store.images()[i].path).name for i in now.store.labels()}
    assert first.name not in labelled
    assert len(labelled) == 13


def test_a_project_that_cannot_be(pictures: Path, tmp_path: Path) -> None:
    images = photos(pictures, tmp_path / "photos")
    with pytest.raises(UserError, match="is not a folder"):
        create(tmp_path / "p", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image in it"):
        create(tmp_path / "p", tmp_path / "empty")
    (tmp_path / "empty" / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="none of its images can be read"):
        create(tmp_path / "p", tmp_path / "empty")
    with pytest.raises(UserError, match="is not empty and holds no project"):
        create(images, images)
    with pytest.raises(UserError, match=r"holds no project\. Start one: rarebox init"):
        Project(tmp_path / "p")
    Image.new("RGB", (30, 20)).save(tmp_path / "empty" / "fine.png")
    *alike, problem = create(tmp_path / "p", tmp_path / "empty", ["Fish", "fish", " fish "])
    assert problem.where.endswith("broken.jpg")
    assert [one.where for one in alike] == ["fish", "fish"]
    assert Project(tmp_path / "p").store.classes() == ("fish",) or Project(tmp_path / "p").store.classes() == ("Fish",)
    with pytest.raises(UserError, match="Continue it with rarebox serve"):
        create(tmp_path / "p", images)


def test_first_images_without_any_object_are_followed_by_more(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path, initial_images=8)
    nothing = np.zeros((0, 4))
    for asked, step in ((8, "questions"), (14, "questions"), (14, None)):
        assert trainer.advance(now, quiet) == step
        assert len(now.store.queries(1)) == asked
        now.store.record([Answer(q.id, nothing, np.zeros(0, int), Verdict.OBJECT) for q in now.store.unanswered(1)])
    assert now.folder.records() == []


def test_fewer_labelled_photos_than_would_be_asked_for_are_enough_if_they_are_all(
    pictures: Path, tmp_path: Path
) -> None:
    images = photos(pictures, tmp_path / "photos")
    create(tmp_path / "p", images, [], pictures, changes={**CHANGES, "initial_images": 50})
    now = Project(tmp_path / "p")
    assert [trainer.advance(now, quiet) for _ in range(2)] == ["trained", None]  # and then there is nothing left


def test_photos_added_later_are_included(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    before = now.store.images()
    assert now.add_new_images() == 0
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "0_new.png")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no picture")
    assert now.add_new_images() == 1
    after = now.store.images()
    assert {i: after[i] for i in before} == before
    assert after[max(before) + 1].path.endswith("0_new.png")


def test_links_in_the_folder_of_photos_are_followed_or_named(tmp_path: Path) -> None:
    for place in ("photos/a.jpg", "photos/.thumbnails/a.jpg", "disk/b.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20)).save(tmp_path / place)
    (tmp_path / "photos" / "cam1").symlink_to("../disk")
    (tmp_path / "photos" / "c.jpg").symlink_to("/nowhere/c.jpg")
    (tmp_path / "photos" / ".hidden.heic").touch()
    problems = create(tmp_path / "photos" / "project", tmp_path / "photos", ["cat"])
    assert [(p.where.rsplit("/", 1)[1], "link to /nowhere" in p.what) for p in problems] == [("c.jpg", True)]
    now = Project(tmp_path / "photos" / "project")
    assert sorted(Path(i.path).name for i in now.store.images().values()) == ["a.jpg", "b.jpg"]
    # Neither a second link to a photo nor a file in the project's folder is a new photo.
    (tmp_path / "photos" / "0").symlink_to("../disk")
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "project" / "figure.png")
    assert now.add_new_images() == 0
    now.store.close()


def test_another_detectors_boxes_go_to_the_photo_in_the_folder_that_they_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for cam in ("cam1", "cam2"):
        (tmp_path / "photos" / cam).mkdir(parents=True)
        Image.new("RGB", (30, 20)).save(tmp_path / "photos" / cam / "1.jpg")
    line = {"image": "cam1/1.jpg", "boxes": [[1, 2, 9, 9]], "scores": [0.9], "labels": ["cat"]}
    (tmp_path / "found.jsonl").write_text(json.dumps(line))
    create(Path("p"), Path("photos"), ["cat"])
    now = Project(Path("p"))
    # As if the photos were not on this disk: then only their names are known.
    found = external.read(Path("found.jsonl"), now.settings)
    assert now.add_predictions("sam", matched(found, now.store.images(), now.store.classes())).boxes == 1
    offered = now.read_predictions()
    assert offered is not None
    assert [now.store.images()[i].path.split("/")[-2] for i in offered.image_id.tolist()] == ["cam1"]
    now.store.close()


class Idle:
    """A trainer that does nothing and records its commands."""

    def __init__(self) -> None:
        self.working, self.status, self.sent = False, {"state": "idle"}, list[str]()

    def send(self, what: str) -> None:
        self.sent.append(what)

    def close(self) -> None:
        pass


def test_a_ranking_whose_stored_part_is_used_up_continues(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(project, "MOST_RANKED", 3)
    monkeypatch.setattr(ranking, "LEAST", 1)
    now = start(pictures, tmp_path, budget=[10_000])
    trainer.advance(now, quiet)
    answer_cycle(now, oracle_of(pictures, now))
    assert [trainer.advance(now, quiet) for _ in range(2)] == ["trained", "questions"]
    queue = rank_pool(open_project(now.folder, now.settings, now.store, quiet), 2).queue
    queue(10_000)
    whole = queue.candidates[[item[0] for place in range(len(queue.candidates)) if (item := queue(place))]]
    service = AnnotationService(Project(now.folder.root), train=False)
    service.trainer = idle = Idle()  # type: ignore[assignment]
    kept, asked = [len(now.read_ranking(2).candidates)], []
    while True:
        while queries := service.answer("anna", "anna", [], 1).result(20)[1]:
            (query,) = queries
            asked.append((query.image_id, query.box.tolist()))  # type: ignore[union-attr]
            no = Submission(f"k{query.id}", Verdict.NOT_AN_OBJECT, np.zeros((0, 4)), np.zeros(0, int), 1, query.id)
            assert service.answer("anna", "anna", [no], 0).result(20)[0][0].status is Status.SAVED
        service.do(lambda: None).result(20)  # the work after the last job is done
        assert idle.sent.pop() == "rank on"
        if not trainer.rank_on(now, quiet):
            break
        kept.append(len(now.read_ranking(2).candidates))
        service._hear("questions")
        service.do(lambda: None).result(20)
    service.close()
    assert kept == [min(3 * 2**i, len(whole)) for i in range(len(kept))]
    assert kept[-1] == len(whole) > 12
    # Every box of the ranking in order, except those that an earlier one had settled.
    wanted: list[tuple[int, list[float]]] = []
    for image_id, box in zip(whole.image_id.tolist(), whole.boxes, strict=True):
        before = np.array([b for i, b in wanted if i == image_id], dtype=np.float32).reshape(-1, 4)
        if boxes.far_from(box[None], before, now.settings.selection.answered_iou)[0]:
            wanted.append((image_id, box.tolist()))
    assert asked == wanted


def test_the_process_takes_commands_and_ends_with_its_starter(pictures: Path, tmp_path: Path) -> None:
    now = start(pictures, tmp_path)
    command = [sys.executable, "-m", "rarebox.project.trainer", str(now.folder.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write('{"do": "go on"}\n')
        process.stdin.flush()
        told: list[str] = []
        while not told or '"idle"' not in told[-1]:
            told.append(process.stdout.readline())
        assert '"ready"' in told[0]
        assert any('"progress"' in line for line in told)
        assert len(now.store.unanswered(1)) == 5
        process.stdin.close()
        assert process.wait(10) == 0


def test_boxes_of_another_detector_are_offered_on_the_first_images(pictures: Path, tmp_path: Path) -> None:
    images = photos(pictures, tmp_path / "photos")
    name = sorted(images.iterdir())[3].name
    (tmp_path / "found.jsonl").write_text(
        '{"classes": ["smudge", "three"]}\n'
        f'{{"image": "{name}", "width": 96, "height": 96, "boxes": [[10, 20, 50, 60]], "scores": [0.9], "labels": ["three"]}}\n'  # noqa: E501
    )
    command = [
        "init",
        str(tmp_path / "p"),
        "--images",
        str(images),
        "--classes",
        "one",
        "--predictions",
        str(tmp_path / "found.jsonl"),
    ]
    done = CliRunner().invoke(main.app, command)
    assert done.exit_code == 0, done.output
    now = Project(tmp_path / "p")
    assert now.store.classes() == ("one", "smudge", "three")
    offered = now.read_predictions()
    assert offered
    assert (offered.image_id.tolist(), offered.labels.tolist(), offered.boxes.tolist()) == (
        [4],
        [2],
        [[10, 20, 50, 60]],
    )
    service = AnnotationService(now, train=False)
    assert [(one["box"], one["label"]) for one in service.presenter.image(4)["others"]] == [([10, 20, 50, 60], 2)]
    assert service.presenter.image(3)["others"] == []
    service.close()


@pytest.mark.parametrize("which", ["first", "last"])
def test_a_photo_whose_size_is_damaged_is_not_added_again(pictures: Path, tmp_path: Path, which: str) -> None:
    now = start(pictures, tmp_path)
    last = max(now.store.images())
    damaged = schema.images.c.id == (last if which == "last" else 1)
    with now.store.transaction(writes=True) as connection:
        connection.execute(update(schema.images).where(damaged).values(width=-1))
    assert now.add_new_images() == 0
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "new.png")
    assert now.add_new_images() == 1
    assert max(now.store.images()) == last + 1


def test_a_restored_store_gives_no_number_of_the_models_to_another_class_or_photo(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.store.back_up(tmp_path / "backup.sqlite")
    People(project.store).add_class("zebra")
    Image.new("RGB", (96, 64), "red").save(tmp_path / "photos" / "zz.png")
    assert project.add_new_images() == 1
    project.note_numbers()
    project.store.close()
    shutil.copy(tmp_path / "backup.sqlite", project.folder.root / "labels.sqlite")
    Image.new("RGB", (96, 64), "blue").save(tmp_path / "photos" / "aa.png")
    restored = Project(project.folder.root)
    assert restored.restore_classes() == ["zebra"]
    assert restored.restore_classes() == []
    assert People(restored.store).add_class("bus") == len(CLASSES) + 1
    assert restored.add_new_images() == 2
    assert sorted(restored.store.images())[-2:] == [14, 15]
    restored.note_numbers()
    assert read_json(restored.folder.numbers) == {"images": 15, "classes": [*CLASSES, "zebra", "bus"]}
    restored.store.close()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"images": "x"}', '{"classes": 5}'])
def test_damaged_numbers_stop_nothing(tmp_path: Path, content: str) -> None:
    project = make_project(tmp_path)
    project.folder.numbers.write_text(content)
    assert project.restore_classes() == []
    project.note_numbers()
    assert read_json(project.folder.numbers) == {"images": 12, "classes": [*CLASSES]}
    project.store.close()
