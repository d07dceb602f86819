"""The web side of `rarebox serve`: what each route does, and what it refuses."""

import base64
import hmac
import io
import json
import shutil
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarebox.core.files import write_json
from rarebox.errors import Unavailable
from rarebox.labels.store import Store
from rarebox.project.project import HELD_OUT, Project
from rarebox.types import Answer, ImageRecord, Query, Verdict
from rarebox.web import wording
from rarebox.web.security import Visitor
from tests.house import BOX, CLASSES, Browser, House, ask_whole_images, item, make_project, open_cycle, opened, record


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Three whole images are asked about."""
    made = make_project(tmp_path)
    ask_whole_images(made, 1, 2, 3)
    return made


@pytest.fixture
def house(project: Project) -> Iterator[House]:
    with opened(project) as house:
        yield house


@pytest.fixture
def later(tmp_path: Path) -> Iterator[House]:
    """Cycle 2: one box on each of the images 4 to 12."""
    made = make_project(tmp_path)
    open_cycle(made, 2, range(4, 13))
    with opened(made) as house:
        yield house


# ------------------------------------------------------------------------------------------- state


def test_a_project_without_questions_is_being_prepared(tmp_path: Path) -> None:
    with opened(make_project(tmp_path)) as house:
        browser = house.browser()
        assert browser.get("/api/state")["phase"] == "preparing"
        assert browser.next() == []
        assert "no question" in browser.say(query=1)["reason"]
        assert "still being prepared" in browser.say(image=1)["reason"]


def test_the_state_of_the_first_images(house: House) -> None:
    state = house.browser().get("/api/state")
    assert set(state) == {
        "id",
        "project",
        "server",
        "session",
        "you",
        "fixed_name",
        "names",
        "classes",
        "phase",
        "cycle",
        "budget",
        "trainer",
        "records",
        "held_out",
        "speed",
        "agreement",
        "advice",
        "people",
        "can_train",
        "search",
        "version",
    }
    assert (state["project"], state["you"], state["fixed_name"]) == ("project", "anna", False)
    assert state["classes"] == [
        {"label": i, "name": name, "merged_into": None, "count": 0, "first": None, "asked": 0}
        for i, name in enumerate(CLASSES)
    ]
    assert (state["phase"], state["cycle"]) == ("first_images", 1)
    assert state["budget"] == {"spent": 0, "of": 3, "unit": "images"}
    assert state["trainer"]["state"] == "idle"
    assert (state["records"], state["people"], state["can_train"], state["advice"]) == ([], [], False, None)
    aside = "One of every five initial images is held out to measure accuracy. No model is trained on it."
    assert state["held_out"] == {"images": 0, "boxes": 0, "note": aside}
    assert state["speed"] == {"per_minute": None, "minutes_left": None}
    assert state["agreement"] == {"with_guesses": None, "between_people": None, "disagreements": 0}


def test_the_state_follows_the_answers(later: House) -> None:
    anna, ben = later.browser("anna"), later.browser("ben")
    before = anna.get("/api/state")
    assert (before["phase"], before["cycle"], before["budget"]) == (
        "asking",
        2,
        {"spent": 0, "of": 6, "unit": "reviews"},
    )
    assert before["records"] == [{**record(1), "ap50": None, "ap50_interval": None}]  # no held-out boxes
    for query, label in zip(anna.next(3), (0, 0, 1), strict=True):
        anna.saved(query=query["id"], labels=[label], milliseconds=2000)
    ben.saved(query=ben.next(1)[0]["id"], verdict="not_an_object")
    state = anna.get("/api/state")
    assert state["version"] > before["version"]
    assert state["budget"]["spent"] == 4
    assert [one["count"] for one in state["classes"]] == [2, 1, 0]
    assert state["people"] == [{"name": "anna", "answers": 3}, {"name": "ben", "answers": 1}]
    assert state["speed"] == {"per_minute": 30.0, "minutes_left": 0.1}
    assert state["agreement"]["with_guesses"] == 0.5  # two of four
    assert state["can_train"]
    assert ben.get("/api/state")["speed"]["per_minute"] is None
    assert later.browser(None).get("/api/state")["you"] is None


def test_the_page_states_what_ap_is_measured_on(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    project.store.open_cycle(1)
    project.store.ask(1, [Query(1), Query(2), Query(3, why={HELD_OUT: 1.0}), Query(4, why={HELD_OUT: 1.0})])
    with opened(project) as house:
        anna = house.browser()
        first, second, kept, empty = anna.next(4)

        def note(**said: Any) -> str:
            anna.saved(**said)
            return anna.get("/api/state")["held_out"]["note"]

        note(query=first["id"])
        note(query=kept["id"], verdict="cannot_tell")
        assert "One of every five" in note(query=empty["id"], boxes=[], labels=[])
        last = note(query=second["id"])
        assert last == "Accuracy cannot be measured: there are no boxes on the 1 held-out image."
        before = anna.get("/api/answers")["answers"]
        skipped = next(one["answer"] for one in before if one["query"] == kept["id"])
        assert "would rest on 1 held-out box, and fewer than 20" in note(query=kept["id"], after=skipped)
        write_json(project.folder.metrics, [record(1)])
        house.service.do(house.service.memory.read_records).result(30)
        shown = ["ap50", "ap50_interval"]
        assert [anna.get("/api/state")["records"][0][name] for name in shown] == [None, None]
        kept_now = next(one["answer"] for one in anna.get("/api/answers")["answers"] if one["query"] == kept["id"])
        many = [[4.0 * i, 0.0, 4.0 * i + 3, 9.0] for i in range(20)]
        said = note(query=kept["id"], after=kept_now, boxes=many, labels=[0] * 20)
        assert said == "Accuracy (AP50) is measured on 2 held-out images (20 boxes). Read it as a rough trend."
        assert [anna.get("/api/state")["records"][0][name] for name in shown] == [0.1, None]
        project.folder.cycle(1).mkdir()
        write_json(project.folder.cycle(1) / "evaluated.json", {"ap50_interval": [0.05, 0.2]})
        house.service.do(house.service.memory.read_records).result(30)
        assert [anna.get("/api/state")["records"][0][name] for name in shown] == [0.1, [0.05, 0.2]]
    (other := tmp_path / "other").mkdir()
    project = make_project(other)
    open_cycle(project, 2, range(4, 13))
    with opened(project) as house:
        assert "no initial image was held out" in house.browser().get("/api/state")["held_out"]["note"]


@pytest.mark.parametrize(("fewest", "said"), [(0, True), (1, False)])
def test_the_stop_signal_is_in_words_if_ap_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fewest: int, said: bool
) -> None:
    """The project has no held-out box."""
    monkeypatch.setattr(wording, "FEWEST_BOXES", fewest)
    project = make_project(tmp_path)
    open_cycle(project, 3, range(4, 13))
    with opened(project) as house:
        advice = house.browser().get("/api/state")["advice"]
    assert ("more labels are worthwhile" in (advice or "")) == said


def test_a_project_at_its_end_is_finished(later: House) -> None:
    write_json(later.project.folder.metrics, [record(1), record(2)])
    later.service._hear("idle")
    later.service.do(lambda: None).result(10)
    state = later.browser().get("/api/state")
    assert (state["phase"], state["can_train"]) == ("finished", False)


# ------------------------------------------------------------------------------------------- questions and answers


def test_whole_images_come_first(house: House) -> None:
    anna = house.browser()
    first, second, _ = anna.next(3)
    assert (first["image"]["id"], first["box"], first["guess"], first["score"]) == (1, None, None, None)
    assert first["image"] == {"id": 1, "name": "photo01.jpg", "width": 96, "height": 64, "url": first["image"]["url"]}
    assert first["image"]["url"].startswith("/api/images/1?of=")
    assert "box around every object" in first["reason"]
    result = anna.answer(item(query=first["id"], boxes=[BOX, [0, 0, 5, 5]], labels=[0, 2]), want=3)
    assert [one["id"] for one in result["queries"]][:1] == [second["id"]]
    assert result["state"]["budget"]["spent"] == 1
    whole = anna.get("/api/image/1")
    assert whole["complete"]
    assert [(one["box"], one["label"], one["by"]) for one in whole["labels"]] == [
        (BOX, 0, "anna"),
        ([0, 0, 5, 5], 2, "anna"),
    ]
    anna.saved(query=second["id"], boxes=[], labels=[])  # nothing is in it
    assert anna.get("/api/image/2")["complete"]


def test_a_question_about_a_box(later: House) -> None:
    first, second = later.browser().next(2)
    assert set(first) == {
        "id",
        "cycle",
        "position",
        "image",
        "box",
        "guess",
        "score",
        "uncertainty",
        "similarity",
        "reason",
        "labels",
        "others",
        "complete",
        "lease_seconds",
    }
    assert (first["cycle"], first["position"], second["position"]) == (2, 0, 1)
    assert (first["box"], first["guess"]) == (BOX, 0)
    assert first["score"] == pytest.approx(0.9)
    assert first["uncertainty"] == pytest.approx(0.8)
    assert first["reason"].startswith("It looks like fish")
    assert (first["labels"], first["complete"]) == ([], False)
    assert first["others"] == [{"box": BOX, "label": 0, "score": 0.9, "likely": True}]
    assert first["lease_seconds"] == later.project.settings.people.lease_seconds


def test_no_two_people_get_the_same_question(later: House) -> None:
    anna, ben, phone = later.browser("anna"), later.browser("ben"), later.browser("anna", "phone")
    given = [[query["id"] for query in browser.next(2)] for browser in (anna, ben, phone)]
    assert len({number for numbers in given for number in numbers}) == 6
    assert [query["id"] for query in anna.next(2)] == given[0]  # a reload returns the same ones
    assert ben.next(9) == ben.next(0)  # the budget is assigned; held questions stay


def test_an_answer_settles_its_box(later: House) -> None:
    anna = later.browser()
    (query,) = anna.next(1)
    number = anna.saved(query=query["id"], boxes=[[12, 12, 48, 40]], labels=[1])
    image = anna.get(f"/api/image/{query['image']['id']}")
    assert image["labels"] == [
        {"box": [12, 12, 48, 40], "label": 1, "query": query["id"], "answer": number, "by": "anna"}
    ]
    assert image["others"] == []
    assert not image["complete"]
    assert query["id"] not in [one["id"] for one in anna.next()]


def test_the_same_key_saves_once(later: House) -> None:
    anna = later.browser()
    said = item(query=anna.next(1)[0]["id"])
    first, again = (anna.answer(said)["results"][0] for _ in range(2))
    assert first == again
    assert first["status"] == "saved"
    drawn = item(image=4)
    both = anna.answer(drawn, drawn)["results"]
    assert both[0] == both[1]
    assert len(anna.get("/api/answers")["answers"]) == 2


def test_an_answer_that_was_not_written_may_be_sent_again(later: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise Unavailable("the disk is full")

    anna = later.browser()
    said = item(query=anna.next(1)[0]["id"])
    with monkeypatch.context() as patch:
        patch.setattr(later.project.store, "record", full)
        assert anna.refused("/api/answers", {"client": "tab", "answers": [said]}, 503) == "the disk is full"
    assert anna.get("/api/answers")["answers"] == []
    assert anna.answer(said)["results"][0]["status"] == "saved"


def test_a_correction_and_a_conflict(later: House) -> None:
    anna, ben = later.browser("anna"), later.browser("ben")
    query = anna.next(1)[0]["id"]
    first = anna.saved(query=query)
    second = ben.saved(query=query, labels=[1], after=first)
    late = anna.say(query=query, labels=[2], after=first)
    assert (late["status"], late["query"], late["answer"]) == ("conflict", query, None)
    current = late["current"]
    assert (current["answer"], current["by"], current["labels"], current["boxes"]) == (second, "ben", [1], [BOX])
    assert current["verdict"] == "object"
    assert "in the meantime" in late["reason"]
    assert anna.get("/api/image/4")["labels"][0]["label"] == 1
    anna.saved(query=query, verdict="cannot_tell", after=second)
    assert anna.get("/api/image/4")["labels"] == []


def test_undo_opens_the_question_again_and_it_comes_first(later: House) -> None:
    anna = later.browser()
    ids = [query["id"] for query in anna.next(3)]
    first = anna.saved(query=ids[0])
    result = anna.answer(item(query=ids[0], verdict="withdrawn", after=first), want=3)
    assert result["results"][0]["status"] == "saved"
    assert [query["id"] for query in result["queries"]] == ids
    assert result["state"]["budget"]["spent"] == 0
    assert later.browser("ben").next(1)[0]["id"] not in ids
    assert anna.get("/api/answers")["answers"] == []
    anna.saved(query=ids[0], labels=[2])


def test_undo_comes_first_also_before_older_questions(later: House) -> None:
    anna, ben = later.browser("anna"), later.browser("ben")
    (early,), (late,) = anna.next(1), ben.next(1)
    number = ben.saved(query=late["id"])
    later.service.people.claim("anna\ntab", "anna", 1, seconds=-1)  # her lease has expired
    assert ben.next(1)[0]["id"] == early["id"]
    result = ben.answer(item(query=late["id"], verdict="withdrawn", after=number), want=1)
    assert [query["id"] for query in result["queries"]] == [late["id"], early["id"]]


def test_a_missed_object_and_a_complete_image(later: House) -> None:
    anna = later.browser()
    drawn = anna.say(image=9, boxes=[[90, 50, 500, 500]], labels=[2])
    image = anna.get("/api/image/9")
    assert image["labels"][0]["box"] == [90, 50, 96, 64]  # cut at the border
    assert not image["complete"]
    anna.saved(image=9, complete=True)
    assert anna.get("/api/image/9")["complete"]
    anna.saved(query=drawn["query"], verdict="withdrawn", after=drawn["answer"])
    assert anna.get("/api/image/9")["labels"] == []
    assert anna.say(image=99)["status"] == "refused"
    assert anna.say(image=9, verdict="not_an_object")["status"] == "refused"


class Busy:
    """A trainer at work."""

    working, status = True, {"state": "working", "stage": "cycle 2: fit"}

    def close(self) -> None: ...


def test_people_continue_beyond_the_budget_while_the_trainer_works(later: House) -> None:
    anna = later.browser()
    for query in anna.next(6):
        anna.saved(query=query["id"])
    assert anna.next(3) == []  # the budget is spent
    later.service.trainer = Busy()  # type: ignore[assignment]
    beyond = anna.next(3)
    assert len(beyond) == 3
    anna.saved(query=beyond[0]["id"])
    assert anna.get("/api/state")["budget"] == {"spent": 7, "of": 6, "unit": "reviews"}


def test_a_budget_of_seconds_counts_peoples_time_without_a_coffee_break(tmp_path: Path) -> None:
    made = make_project(tmp_path, budget=[20], budget_unit="seconds")
    open_cycle(made, 2, range(4, 13))
    with opened(made) as house:
        anna, ben = house.browser("anna"), house.browser("ben", "another")
        first, second = anna.next(3)  # at most 6.8 s each: a third one might exceed the budget
        assert ben.next(3) == []
        anna.saved(query=first["id"], milliseconds=6000)
        assert anna.get("/api/state")["budget"] == {"spent": 6.0, "of": 20, "unit": "seconds"}
        (third,) = ben.next(3)
        ben.saved(query=third["id"], verdict="not_an_object", milliseconds=600_000)  # counts 10 x 1.8 s
        assert ben.get("/api/state")["budget"]["spent"] == 24.0
        assert ben.next(3) == []
        anna.saved(query=second["id"], milliseconds=1000)  # she had it already
        assert anna.next(3) == []
        assert made.budget(2).spent == house.service.memory.spent == 25.0


class Idle:
    """A trainer that waits for commands."""

    working, status = False, {"state": "idle", "stage": None}

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, what: str) -> None:
        self.sent.append(what)

    def close(self) -> None: ...


@pytest.mark.parametrize(("unit", "command"), [("seconds", "train"), ("reviews", "go on")])
def test_the_trainer_is_told_when_the_budget_is_spent(tmp_path: Path, unit: str, command: str) -> None:
    made = make_project(tmp_path, budget=[2], budget_unit=unit)
    open_cycle(made, 2, range(4, 13))
    with opened(made) as house:
        anna, trainer = house.browser(), Idle()
        house.service.trainer = trainer  # type: ignore[assignment]
        for milliseconds in (1500, 1400):
            assert trainer.sent == []  # nothing is due yet
            (query,) = anna.next(1)
            anna.saved(query=query["id"], milliseconds=milliseconds)
        house.service.do(lambda: None).result(20)  # the writer tells the trainer after it has replied
        assert trainer.sent == [command]


def test_the_rest_of_a_cycle_is_estimated_from_a_persons_own_pace(tmp_path: Path) -> None:
    made = make_project(tmp_path, budget=[50], budget_unit="reviews")
    open_cycle(made, 2, range(4, 13))
    with opened(made) as house:
        anna, ben = house.browser("anna"), house.browser("ben", "another")
        # Before any answer: half confirmed, half rejected, 1.8 s each.
        assert anna.get("/api/state")["speed"]["minutes_left"] == 1.5
        for query in anna.next(5):
            anna.saved(query=query["id"], milliseconds=36_000)  # 20 times as long as 1.8 s
        # Five answers of hers against five that took 1.8 s: 10.5 times. All but one of the last six were confirmed,
        # so the 45 that are left take (6 x 10.5 x 1.8 + 1.8) / 7 s each.
        assert anna.get("/api/state")["speed"]["minutes_left"] == pytest.approx(12.3, abs=0.06)
        assert ben.get("/api/state")["speed"]["minutes_left"] == pytest.approx(45 * 1.8 / 60, abs=0.06)
        assert house.browser(None).get("/api/state")["speed"]["minutes_left"] is None


def test_the_rest_of_the_first_images_is_estimated_once_one_is_labelled(house: House) -> None:
    anna = house.browser()
    (query,) = anna.next(1)
    two = {"boxes": [BOX, [60, 10, 90, 40]], "labels": [0, 1], "milliseconds": 21_800}  # a scan and two boxes: 7.8 + 14
    anna.saved(query=query["id"], **two)
    assert anna.get("/api/state")["speed"]["minutes_left"] == round(2 * 21.8 / 60, 1)


def test_a_question_says_why_it_is_asked(later: House) -> None:
    anna = later.browser()
    first, *others = anna.next(4)
    assert first["reason"] == "It looks like fish; the detector is 90% sure."
    for query in others:
        anna.saved(query=query["id"], labels=[1])
    (again,) = anna.next(1)
    assert again["reason"].startswith("It looks like fish, a rare class (0 of 3 labels so far)")


def test_a_closed_tab_returns_its_questions(later: House) -> None:
    first, second, ben = later.browser("anna", "1"), later.browser("anna", "2"), later.browser("ben")
    asked = [query["id"] for query in first.next(2)]
    assert [query["id"] for query in second.next(2)] != asked
    reply = first.http.post("/api/leave", json={"client": "1"})
    assert (reply.status_code, reply.content) == (204, b"")
    assert ben.next(1)[0]["id"] == asked[0]
    assert asked[1] in [query["id"] for query in second.next(3)]
    assert "Enter your name" in later.browser(None).refused("/api/leave", {"client": "1"}, 403)


def test_answers_are_cut_at_the_border(later: House) -> None:
    anna = later.browser()
    first, second = anna.next(2)
    anna.saved(query=first["id"], boxes=[[-50, -5, 1000, 40]])
    assert anna.get(f"/api/image/{first['image']['id']}")["labels"][0]["box"] == [0, 0, 96, 40]
    outside = anna.say(query=second["id"], boxes=[[200, 200, 300, 300]])
    assert outside["status"] == "refused"
    assert "x2 > x1" in outside["reason"]


def test_the_last_answers_and_the_gallery(later: House) -> None:
    anna, ben = later.browser("anna"), later.browser("ben")
    numbers = [
        anna.saved(query=query["id"], labels=[label]) for query, label in zip(anna.next(3), (0, 1, 1), strict=True)
    ]
    numbers.append(ben.saved(query=ben.next(1)[0]["id"], verdict="not_an_object"))

    def shown(**query: Any) -> list[int]:
        return [one["answer"] for one in anna.get("/api/answers", **query)["answers"]]

    assert shown() == numbers[::-1]
    assert shown(limit=2) == numbers[:1:-1]
    assert shown(limit=2, before=numbers[2]) == numbers[1::-1]
    assert shown(by="me") == numbers[2::-1]
    assert shown(by="ben") == shown(verdict="not_an_object") == [numbers[3]]
    assert shown(label=1) == [numbers[2], numbers[1]]
    assert shown(label=1, verdict="not_an_object") == []
    (newest,) = anna.get("/api/answers", limit=1)["answers"]
    assert set(newest) == {
        "answer",
        "query",
        "by",
        "verdict",
        "boxes",
        "labels",
        "milliseconds",
        "at",
        "image",
        "box",
        "guess",
        "cycle",
    }
    assert (newest["by"], newest["milliseconds"], newest["box"], newest["guess"]) == ("ben", 1200, BOX, 0)
    assert newest["at"].endswith("Z")


def test_a_disagreement_waits_for_a_decision(tmp_path: Path) -> None:
    project = make_project(tmp_path, people__overlap=1)
    open_cycle(project, 2, range(4, 13))
    with opened(project) as house:
        anna, ben, cleo = (house.browser(name) for name in ("anna", "ben", "cleo"))
        query = anna.next(1)[0]["id"]
        assert ben.next(1)[0]["id"] == query
        anna.saved(query=query, labels=[0])
        assert anna.next(1)[0]["id"] != query
        assert anna.get("/api/disagreements")["disagreements"] == []
        second = ben.saved(query=query, labels=[1])
        (open_one,) = cleo.get("/api/disagreements")["disagreements"]
        assert open_one["query"]["id"] == query
        assert [(one["by"], one["labels"]) for one in open_one["answers"]] == [("anna", [0]), ("ben", [1])]
        state = cleo.get("/api/state")
        assert state["agreement"] == {"with_guesses": 0.0, "between_people": 0.0, "disagreements": 1}
        assert cleo.say(query=query, labels=[0])["status"] == "conflict"
        cleo.saved(query=query, labels=[0], after=second)
        assert cleo.get("/api/disagreements")["disagreements"] == []
        assert cleo.get("/api/image/4")["labels"][0]["label"] == 0


def test_a_second_opinion_is_another_persons_also_after_a_new_name(tmp_path: Path) -> None:
    project = make_project(tmp_path, people__overlap=1)
    open_cycle(project, 2, range(4, 13))
    with opened(project) as house:
        bob, cleo = house.browser("bob"), house.browser("cleo")
        asked = [query["id"] for query in bob.next(4)]
        numbers = [bob.saved(query=query, labels=[0]) for query in asked]
        assert bob.post("/api/me", {"name": "robert"})["names"] == ["bob", "robert"]
        assert not {query["id"] for query in bob.next(4)} & set(asked)
        bob.saved(query=asked[0], labels=[1], after=numbers[0])  # still one opinion
        state = bob.get("/api/state")
        assert state["agreement"]["between_people"] is None
        assert [(one["name"], one["answers"]) for one in state["people"]] == [("bob", 4)]
        assert len(bob.get("/api/answers", by="me")["answers"]) == 4
        assert [query["id"] for query in cleo.next(4)] == asked
        cleo.saved(query=asked[0], labels=[1])
        assert bob.get("/api/state")["agreement"]["between_people"] == 1.0


def restored(project: Project, backup: Path) -> Project:
    """The project with the store of a backup."""
    for part in project.folder.root.glob("labels.sqlite*"):
        part.unlink()
    shutil.copy(backup, project.folder.root / "labels.sqlite")
    return Project(project.folder.root)


def backed_up(project: Project, to: Path, how: str) -> Path:
    """A backup by the command, beside whatever runs, or of a store that is closed, by copying its file."""
    if how == "command":
        with Store(project.folder.root / "labels.sqlite") as store:
            store.back_up(to)
    else:
        project.store.close()
        shutil.copy(project.folder.root / "labels.sqlite", to)
    return to


@pytest.mark.parametrize("how", ["command", "copy", "while serving"])
def test_numbers_from_before_a_restored_backup_are_refused(tmp_path: Path, how: str) -> None:
    """Images, questions, answers and classes that are gone with the backup leave their numbers to others."""
    project = make_project(tmp_path, images=6)
    open_cycle(project, 2, range(4, 7))
    photos = tmp_path / "photos"
    with opened(project) as house:
        session = house.browser("ann").post("/api/next", {"client": "tab"})["state"]["session"]
    backup = backed_up(Project(project.folder.root), tmp_path / "backup.sqlite", how)
    Image.new("RGB", (96, 64), "red").save(photos / "zz.jpg")
    project = Project(project.folder.root)
    assert project.add_new_images() == 1
    with opened(project) as house:
        ann = house.browser("ann")
        if how == "while serving":  # by the process that adds more afterwards
            backup.unlink()
            project.store.back_up(backup)
            session = ann.post("/api/next", {"client": "tab"})["state"]["session"]
        reply = ann.post("/api/next", {"client": "tab", "session": session})
        assert not reply["outdated"]  # a page outlives a restart
        seen = reply["state"]["session"]
        before = ann.say(image=3, session=seen)
        state = ann.post("/api/classes", {"add": "zebra"})
        label, seen = state["classes"][-1]["label"], state["session"]
        assert ann.say(query=before["query"], after=before["answer"], session=seen, labels=[1])["status"] == "saved"
    Image.new("RGB", (96, 64), "blue").save(photos / "aa.jpg")
    project = restored(project, backup)
    project.add_new_images()
    with opened(project) as house:
        after = house.browser("ben").say(image=5)
        assert (after["query"], after["answer"]) == (before["query"], before["answer"])
        ann = house.browser("ann")
        reply = ann.post("/api/next", {"client": "tab", "session": seen})
        assert (reply["outdated"], reply["queries"]) == (True, [])
        for change in (
            {"query": after["query"], "after": after["answer"]},
            {"query": after["query"], "after": after["answer"], "verdict": "withdrawn"},
            {"query": after["query"], "after": after["answer"], "verdict": "not_an_object"},
            {"image": 7},
            {"image": 7, "complete": True},
            {"image": 3, "labels": [label]},
        ):
            refused = ann.say(session=seen, **change)
            assert (refused["status"], "restored from a backup" in refused["reason"]) == ("rolled_back", True), change
        assert len(house.project.store.answered()) == 1
        fresh = ann.post("/api/next", {"client": "tab"})
        assert (fresh["outdated"], len(fresh["queries"])) == (False, 3)
        ann.saved(query=after["query"], after=after["answer"], session=fresh["state"]["session"], labels=[1])


def test_a_picture_has_another_address_when_its_number_is_another_photos(tmp_path: Path) -> None:
    """Browsers keep pictures for a day."""
    with opened(make_project(tmp_path / "a")) as one, opened(make_project(tmp_path / "b")) as other:
        first, second = (house.browser().get("/api/image/4")["image"]["url"] for house in (one, other))
        assert first != second
        assert one.browser().http.get(first).status_code == 200


# ------------------------------------------------------------------------------------------- classes


def test_classes_are_added_renamed_and_merged(later: House) -> None:
    anna = later.browser()
    query = anna.next(1)[0]["id"]
    added = anna.post("/api/classes", {"add": "  sea   horse "})["classes"][3]
    assert added == {"label": 3, "name": "sea horse", "merged_into": None, "count": 0, "first": None, "asked": 0}
    anna.saved(query=query, labels=[3])
    renamed = anna.post("/api/classes", {"rename": {"label": 1, "name": "stingray"}})["classes"]
    assert [one["name"] for one in renamed] == ["fish", "stingray", "shark", "sea horse"]
    merged = anna.post("/api/classes", {"merge": {"label": 3, "into": 1}})["classes"]
    assert [(one["merged_into"], one["count"]) for one in merged] == [(None, 0), (None, 1), (None, 0), (1, 0)]
    assert anna.get("/api/answers")["answers"][0]["labels"] == [1]
    assert anna.get("/api/image/4")["labels"][0]["label"] == 1


def test_a_merged_class_is_no_longer_guessed(later: House) -> None:
    anna = later.browser()
    first, second = anna.next(2)
    number = anna.saved(query=first["id"], labels=[1])
    anna.post("/api/classes", {"merge": {"label": 0, "into": 1}})
    (query,) = [one for one in anna.next(1) if one["id"] == second["id"]]
    assert query["guess"] == 1
    assert query["reason"].startswith("It looks like ray")
    assert [one["label"] for one in query["others"]] == [1]
    (given,) = anna.get("/api/answers")["answers"]
    assert (given["answer"], given["guess"]) == (number, 1)
    assert anna.get("/api/state")["agreement"]["with_guesses"] == 1.0
    anna.saved(query=second["id"], labels=[0])  # a tab that does not know yet
    assert anna.get("/api/state")["classes"][1]["count"] == 2


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """A house whose classes no test changes."""
    with opened(make_project(tmp_path_factory.mktemp("unchanged"))) as house:
        yield house


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"add": "FISH"}, "there is already a class 'fish'"),
        ({"add": " "}, "a class needs a name"),
        ({"add": "x" * 61}, "1 to 60"),
        ({"rename": {"label": 1, "name": "Shark"}}, "there is already a class 'shark'"),
        ({"rename": {"label": 9, "name": "eel"}}, "there is no class 9"),
        ({"merge": {"label": 1, "into": 1}}, "into itself"),
        ({"merge": {"label": 1, "into": 9}}, "there is no class 9"),
    ],
)
def test_a_class_that_cannot_be(unchanged: House, body: dict[str, Any], sentence: str) -> None:
    browser = unchanged.browser()
    assert sentence in browser.refused("/api/classes", body)
    assert [one["name"] for one in browser.get("/api/state")["classes"]] == list(CLASSES)


# ------------------------------------------------------------------------------------------- names, links, training


def test_the_name_is_requested_once(house: House) -> None:
    somebody = house.browser(None)
    assert somebody.get("/api/state")["you"] is None
    assert "Enter your name" in somebody.refused("/api/next", {"client": "tab"}, 403)
    assert "a person needs a name" in somebody.refused("/api/me", {"name": "a\u202eb"})
    assert "name of the simulated annotator" in somebody.refused(
        "/api/me", {"name": "Oracle"}
    )  # its answers look alike
    assert somebody.post("/api/me", {"name": "  Zoë  "})["you"] == "Zoë"
    assert somebody.get("/api/state")["you"] == "Zoë"
    assert len(somebody.next()) == 3


def test_leases_follow_a_person_who_takes_another_name(house: House) -> None:
    anna, ben = house.browser(), house.browser("ben")
    other_tab = Browser(anna.http, "other-tab")
    first, second = anna.next(2)
    (third,) = other_tab.next(1)
    for name in ("carla", "anna-carla"):
        assert anna.post("/api/me", {"name": name})["you"] == name
    anna.saved(query=first["id"])
    other_tab.saved(query=third["id"])
    assert second["id"] not in {query["id"] for query in ben.next(3)}
    assert [query["id"] for query in anna.next(2)] == [second["id"]]
    anna.saved(query=second["id"])
    assert {one["by"] for one in anna.get("/api/answers")["answers"]} == {"anna-carla"}


def test_answers_under_a_former_name_are_the_persons_own(house: House) -> None:
    anna, ben = house.browser(), house.browser("ben")
    (query,) = anna.next(1)
    first, missed = item(query=query["id"]), item(image=query["image"]["id"])
    before = anna.answer(first, missed)["results"]
    assert [one["status"] for one in before] == ["saved", "saved"]
    for name in ("carla", "dora"):
        anna.post("/api/me", {"name": name})
    assert anna.answer(first, missed)["results"] == before  # sent again: the reply was lost
    assert [one["status"] for one in ben.answer(first, missed)["results"]] == ["refused", "refused"]
    assert ben.say(query=query["id"], verdict="withdrawn", after=before[0]["answer"])["status"] == "refused"
    changed = anna.saved(query=query["id"], labels=[1], after=before[0]["answer"])
    anna.saved(query=query["id"], verdict="withdrawn", after=changed)
    anna.saved(query=before[1]["query"], verdict="withdrawn", after=before[1]["answer"])
    assert sum(one["count"] for one in anna.get("/api/state")["classes"]) == 0
    assert anna.get(f"/api/image/{query['image']['id']}")["labels"] == []
    assert query["id"] in {one["id"] for one in anna.next(4)}  # open again


def test_a_cookie_without_former_names_is_still_recognised(house: House) -> None:
    text = base64.urlsafe_b64encode(b'{"name": "anna", "fixed": false}').decode()  # as earlier versions wrote it
    signature = hmac.new(b"a secret for tests", f"cookie:{text}".encode(), "sha256").hexdigest()
    assert house.authenticator.recognise(f"{text}.{signature}") == Visitor("anna")


def test_an_invitation_lets_one_browser_in(house: House) -> None:
    url = house.browser().post("/api/invite")["url"]
    assert url.startswith("http://localhost:8765/?token=")
    assert house.browser().post("/api/invite")["local"]
    guest = house.stranger()
    reply = guest.get(url)
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    assert guest.get("/api/state").json()["you"] is None
    assert guest.get(url).status_code == 303  # a signed-in visitor may follow the link again
    other = house.stranger()
    assert other.get(url).status_code == 200  # the page that says how to sign in
    assert other.get("/api/state").status_code == 401


def test_an_invitation_made_on_the_servers_machine_uses_its_public_name(project: Project) -> None:
    with opened(project, host="0.0.0.0", also=("desk-17",)) as house:
        invited = house.browser().post("/api/invite")  # the browser's Host is localhost
        assert invited["url"].startswith("http://desk-17:8765/?token=")
        assert not invited["local"]


def test_a_personal_link_is_that_persons_on_every_device(house: House) -> None:
    link = house.authenticator.personal_link("anna")
    devices = [house.stranger() for _ in range(2)]
    for device in devices:
        assert device.get("/", params={"token": link}).status_code == 303
        state = device.get("/api/state").json()
        assert (state["you"], state["fixed_name"]) == ("anna", True)
        refusal = device.post("/api/me", json={"name": "ben"})
        assert refusal.status_code == 403
        assert "for anna" in refusal.json()["error"]
    guest = house.stranger()
    guest.get(devices[0].post("/api/invite", json={}).json()["url"])
    state = guest.get("/api/state").json()
    assert (state["you"], state["fixed_name"]) == ("anna", True)  # nobody else can use her link under another name


def test_training_is_requested(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(house.service, "train", lambda: asked.append("train"))
    monkeypatch.setattr(house.service, "retry", lambda: asked.append("retry"))
    anna = house.browser()
    assert anna.post("/api/train")["you"] == "anna"
    assert anna.post("/api/retry")["you"] == "anna"
    assert asked == ["train", "retry"]


# ------------------------------------------------------------------------------------------- pictures


def shown(house: House, image_id: int, **query: Any) -> tuple[str, Image.Image]:
    reply = house.browser().http.get(f"/api/images/{image_id}", params=query)
    assert reply.status_code == 200, reply.text
    return reply.headers["content-type"], Image.open(io.BytesIO(reply.content))


def put(project: Project, name: str, image: Image.Image, **how: Any) -> int:
    """One more picture in the project; its id."""
    from rarebox.data.images import image_size

    file = project.folder.root.parent / "photos" / name
    image.save(file, **how)
    width, height, _ = image_size(file)
    number = len(project.store.images()) + 1
    project.store.add_images([ImageRecord(number, str(file), width, height)])
    return number


def test_a_photo_is_served_as_it_is(house: House) -> None:
    file = Path(house.project.store.images()[1].path)
    reply = house.browser().http.get("/api/images/1")
    assert reply.content == file.read_bytes()
    assert reply.headers["content-type"] == "image/jpeg"
    assert "private" in reply.headers["cache-control"]


def test_a_smaller_picture_on_request(house: House) -> None:
    _, image = shown(house, 1, size=48)
    assert image.size == (48, 32)
    assert shown(house, 1, size=96)[1].size == (96, 64)
    browser = house.browser().http
    assert [browser.get("/api/images/1", params={"size": size}).status_code for size in (0, 15, 4097, "x")] == [422] * 4


def test_pictures_that_a_browser_would_show_wrongly_are_converted(project: Project) -> None:
    half = Image.new("RGBA", (90, 60), (255, 0, 0, 255))
    half.paste((0, 0, 0, 0), (0, 0, 45, 60))
    see_through = Image.new("RGB", (90, 60), (0, 255, 0))
    sideways = Image.new("RGB", (90, 60), (0, 0, 255))
    sideways.paste((255, 255, 0), (0, 0, 45, 60))
    turned = Image.Exif()
    turned[0x0112] = 6  # to be rotated clockwise
    deep = Image.fromarray(np.full((60, 90), 32768, dtype=np.uint16))
    frames = [Image.new("RGB", (90, 60), colour) for colour in ("red", "blue")]
    numbers = {
        "alpha": put(project, "alpha.png", half),
        "colour key": put(project, "key.png", see_through, transparency=(0, 255, 0)),
        "16 bit": put(project, "deep.png", deep),
        "cmyk": put(project, "print.jpg", Image.new("CMYK", (90, 60), (0, 255, 255, 0))),
        "turned png": put(project, "turned.png", sideways, exif=turned),
        "animated": put(project, "film.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True),
        "tiff": put(project, "scan.tiff", Image.new("L", (90, 60), 77)),
    }
    with opened(project) as house:
        images = {}
        for name, number in numbers.items():
            kind, image = shown(house, number)
            assert kind == "image/jpeg", name
            images[name] = image.convert("RGB")

        def near(name: str, at: tuple[int, int], colour: tuple[int, int, int]) -> bool:
            return all(abs(a - b) < 12 for a, b in zip(images[name].getpixel(at), colour, strict=True))  # type: ignore[arg-type]

        assert near("alpha", (10, 30), (255, 255, 255))
        assert near("alpha", (80, 30), (255, 0, 0))
        assert near("colour key", (10, 30), (255, 255, 255))
        assert near("16 bit", (10, 30), (128, 128, 128))
        assert near("cmyk", (10, 30), (255, 0, 0))
        assert images["turned png"].size == (60, 90)
        assert near("turned png", (30, 10), (255, 255, 0))
        assert near("turned png", (30, 80), (0, 0, 255))
        assert near("animated", (10, 30), (255, 0, 0))
        assert near("tiff", (10, 30), (77, 77, 77))
        about = house.browser().get(f"/api/image/{numbers['turned png']}")["image"]
        assert (about["width"], about["height"]) == (60, 90)


def test_a_rotated_photo_is_upright(project: Project) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    number = put(project, "turned.jpg", Image.new("RGB", (90, 60)), exif=exif)
    with opened(project) as house:
        assert shown(house, number)[1].getexif()[0x0112] == 6  # the browser rotates it
        assert shown(house, number, size=45)[1].size == (30, 45)
        assert 0x0112 not in shown(house, number, size=45)[1].getexif()


def test_a_huge_picture_is_made_smaller(project: Project) -> None:
    number = put(project, "wide.png", Image.new("RGB", (9000, 90)))
    with opened(project) as house:
        assert shown(house, number)[1].size == (4096, 41)


def test_a_missing_or_broken_picture_is_reported(house: House) -> None:
    images = house.project.store.images()
    Path(images[2].path).unlink()
    Path(images[3].path).write_bytes(b"no picture")
    Image.new("RGB", (50, 50)).save(images[4].path)
    for number, reason in ((2, "no such file"), (3, "not an image"), (4, "50 x 50 pixels now"), (99, "no such image")):
        reply = house.browser().http.get(f"/api/images/{number}")
        assert reply.status_code == 404
        assert reason in reply.json()["error"]
    assert str(house.project.folder.root) not in house.browser().http.get("/api/images/2").text


# ------------------------------------------------------------------------------------------- export


def exported(house: House, format: str) -> zipfile.ZipFile:
    reply = house.browser().http.get("/api/export", params={"format": format})
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/zip"
    assert reply.headers["content-disposition"] == f'attachment; filename="project-{format}.zip"'
    return zipfile.ZipFile(io.BytesIO(reply.content))


def test_the_labels_are_exported(house: House) -> None:
    anna = house.browser()
    anna.saved(query=anna.next(1)[0]["id"], boxes=[BOX], labels=[2])
    anna.saved(image=5, boxes=[BOX], labels=[1])
    coco = json.loads(exported(house, "coco").read("annotations.json"))
    assert [(one["image_id"], one["category_id"], one["bbox"]) for one in coco["annotations"]] == [
        (1, 3, [10, 10, 40, 30]),
        (5, 2, [10, 10, 40, 30]),
    ]
    assert "<name>shark</name>" in exported(house, "voc").read("Annotations/photo01.xml").decode()
    yolo = exported(house, "yolo")
    labels = [name for name in yolo.namelist() if name.endswith("photo01.txt")]
    assert yolo.read(labels[0]).decode().startswith("2 ")
    assert not [name for name in yolo.namelist() if name.endswith("photo05.txt")]  # it is partially labelled
    assert all(not name.endswith(".jpg") for name in yolo.namelist())


def test_a_missing_photo_does_not_block_the_download(house: House) -> None:
    anna = house.browser()
    anna.saved(query=anna.next(1)[0]["id"], boxes=[BOX], labels=[2])
    photo = Path(house.service.memory.images[1].path)
    photo.unlink()
    for format in ("coco", "voc", "yolo", "labelstudio", "cvat"):
        archive = exported(house, format)
        assert archive.read("missing.txt").decode() == f"{photo}: No such file or directory\n", format
        mark = json.loads(archive.read("rarebox.json"))
        assert len(mark["images"]["photo01.jpg"]["objects"]) == 1, format


def test_an_export_of_nothing(house: House) -> None:
    assert json.loads(exported(house, "coco").read("annotations.json"))["annotations"] == []
    reply = house.browser().http.get("/api/export", params={"format": "yolo"})
    assert reply.status_code == 400
    assert "No image is fully labelled" in reply.json()["error"]
    assert "/" not in reply.json()["error"]
    assert "--" not in reply.json()["error"]


def test_a_filter_lets_others_go_first_after_each_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that matches nothing reads all answers."""
    project = make_project(tmp_path)
    ask_whole_images(project, *range(1, 10))
    boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=np.int64)
    answers = [Answer(query, boxes, labels, Verdict.NOT_AN_OBJECT, "anna") for query in range(1, 10)]
    project.store.record(answers)
    monkeypatch.setattr("rarebox.web.presenter.PIECE", 2)
    with opened(project) as house:
        counting = CountingLock()
        monkeypatch.setattr(house.service.memory, "lock", counting)
        assert house.service.presenter.answers(10, None, None, 1, None) == []
        assert counting.taken >= 5
        answers = house.service.presenter.answers
        every = answers(10, None, None, None, None)
        assert [one["answer"] for one in every] == list(range(9, 0, -1))
        assert [one["answer"] for one in answers(3, 6, ["anna"], None, "not_an_object")] == [
            5,
            4,
            3,
        ]
        assert answers(3, None, ["ben"], None, None) == []


class CountingLock:
    """A lock that counts how often it is acquired."""

    def __init__(self) -> None:
        self.taken, self._lock = 0, threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_box_on_an_unknown_image_is_refused_by_its_number(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    ask_whole_images(project, 1)
    with opened(project) as house:
        anna = house.browser("anna")
        for what in ({"complete": True}, {}):
            result = anna.say(image=99, **what)
            assert (result["status"], result["reason"]) == ("refused", "there is no image 99. Reload the page")
