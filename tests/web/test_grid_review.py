"""Grid review on the server: which boxes of one class a tab gets at once, and that they are ordinary questions."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox.errors import Unavailable
from rarebox.project.project import Project
from rarebox.types import Answer, Query, Verdict
from rarebox.web.grid_review import CROPS, FEWEST, Crop, grid_of
from tests.house import BOX, Browser, House, item, make_project, open_cycle, opened

BUDGET = 40


def photos(tmp_path: Path, count: int, **changes: Any) -> Project:
    """A project that asks about one box of class 0 on each of ``count`` photos, with scores from 0.9 down to 0.1."""
    project = make_project(tmp_path, count, budget=[BUDGET], **changes)
    open_cycle(project, 2, range(1, count + 1))
    return project


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(photos(tmp_path, 30)) as house:  # 15 are likely
        yield house


def grid(browser: Browser) -> list[dict[str, Any]]:
    return browser.post("/api/grid", {"client": browser.tab})["queries"]


def release(browser: Browser, *queries: int) -> None:
    reply = browser.http.post("/api/release", json={"client": browser.tab, "queries": queries})
    assert reply.status_code == 204, reply.text


def ids(queries: list[dict[str, Any]]) -> list[int]:
    return [query["id"] for query in queries]


def test_a_grid_has_the_class_with_the_most_boxes_best_first() -> None:
    boxes = [Crop(place, place % 3 == 0, 1 if place == 1 else None) for place in range(30)]
    found = grid_of(boxes, 100)
    assert {crop.label for crop in found} == {0}
    assert [crop.place for crop in found] == [place for place in range(30) if place % 3][:CROPS]
    assert [crop.place for crop in grid_of(boxes, 3)] == [1, 2, 4, 5]  # one that has a question, and three new ones
    assert grid_of(boxes, FEWEST - 2) == []
    assert grid_of(boxes[: FEWEST - 1], 100) == []


def test_a_tab_gets_twelve_likely_boxes_of_one_class(house: House) -> None:
    anna = house.browser()
    reply = anna.post("/api/next", {"client": anna.tab, "want": 4})
    assert reply["grid"] == {"label": 0, "boxes": CROPS}
    crops = grid(anna)
    assert len(crops) == CROPS
    assert ids(crops)[:4] == ids(reply["queries"])
    assert all(crop["guess"] == 0 and crop["score"] >= 0.5 and crop["lease_seconds"] for crop in crops)
    assert len({crop["image"]["id"] for crop in crops}) == CROPS
    assert ids(grid(anna)) == ids(crops)  # asked again, as after a lost reply
    assert {*ids(anna.next(4))} == {*ids(crops)}  # and their leases are renewed with all others
    assert len(house.project.store.queries(2)) == CROPS


def test_its_answers_are_ordinary_ones(house: House) -> None:
    anna = house.browser()
    crops = grid(anna)
    sent = [
        item(query=crop["id"], milliseconds=400, boxes=[crop["box"]])
        if place % 2
        else item(query=crop["id"], milliseconds=400, verdict="not_an_object", boxes=[], labels=[])
        for place, crop in enumerate(crops)
    ]
    for _ in range(2):  # sent again after a lost reply: counted once
        assert {one["status"] for one in anna.answer(*sent)["results"]} == {"saved"}
    state = anna.get("/api/state")
    assert state["budget"]["spent"] == CROPS
    assert state["classes"][0]["count"] == CROPS // 2
    assert anna.get("/api/answers", limit=200)["answers"][0]["milliseconds"] == 400
    result = anna.say(query=crops[0]["id"], after=anna.get("/api/answers", limit=200)["answers"][-1]["answer"])
    assert result["status"] == "saved"  # a correction
    assert anna.get("/api/state")["classes"][0]["count"] == CROPS // 2 + 1
    assert grid(anna) == []  # three likely ones are left
    assert len(anna.next(4)) == 4


def test_two_people_get_different_boxes_and_what_is_given_back_is_free(house: House) -> None:
    anna, ben = house.browser("anna", "a"), house.browser("ben", "b")
    crops = grid(anna)
    assert grid(ben) == []  # three likely ones are left
    first = ben.next(4)
    assert not {*ids(first)} & {*ids(crops)}
    release(ben, *ids(crops))  # not his
    assert anna.say(query=crops[0]["id"])["status"] == "saved"
    assert ben.say(query=crops[1]["id"])["reason"].startswith("this question is not assigned to you")
    release(anna, *ids(crops))
    taken = grid(ben)
    assert len(taken) >= 11
    assert {*ids(crops)[1:]} <= {*ids(taken)}
    assert anna.say(query=crops[1]["id"])["status"] == "refused"


def test_neither_more_questions_than_the_budget_nor_unlikely_ones(tmp_path: Path) -> None:
    project = make_project(tmp_path, 30, budget=[7])
    open_cycle(project, 2, range(1, 31))
    with opened(project) as house:
        assert len(grid(house.browser())) == 7
    assert project.folder.root.exists()


def test_a_weak_detector_offers_no_grid(tmp_path: Path) -> None:
    with opened(photos(tmp_path, 30, people__proposal_score=0.95)) as house:
        anna = house.browser()
        assert anna.post("/api/next", {"client": anna.tab, "want": 4})["grid"] is None
        assert grid(anna) == []


def test_boxes_that_an_answer_settled_are_left_out(house: House) -> None:
    """A box drawn over the third candidate settles it, although nobody was asked about it."""
    anna = house.browser()
    asked = house.project.read_ranking(2).candidates[:3]
    anna.saved(image=int(asked.image_id[2]), boxes=[asked.boxes[2].tolist()], labels=[1])
    assert int(asked.image_id[2]) not in {crop["image"]["id"] for crop in grid(anna)}


def test_answers_arrive_while_the_cycle_changes(house: House) -> None:
    anna = house.browser()
    crops = grid(anna)
    open_cycle(house.project, 3, range(13, 30), guess=1)
    house.service._hear("questions")
    results = anna.answer(*(item(query=crop["id"]) for crop in crops))["results"]
    assert {one["status"] for one in results} == {"saved"}
    assert {crop["guess"] for crop in grid(anna)} == {1}


def test_before_the_first_model_there_is_no_grid(tmp_path: Path) -> None:
    project = make_project(tmp_path)
    with opened(project) as house:
        assert grid(house.browser()) == []


def test_whole_images_have_no_grid(tmp_path: Path) -> None:
    project = photos(tmp_path, 30, selection__strategy="image_per_second")
    with opened(project) as house:
        assert grid(house.browser()) == []


def test_bad_requests_are_refused(house: House) -> None:
    anna = house.browser()
    crops = grid(anna)
    assert "at most 12" in anna.refused("/api/release", {"client": "tab", "queries": [*range(13)]}, 422)
    anna.refused("/api/release", {"client": "tab", "queries": [-1]}, 422)
    anna.refused("/api/release", {"client": "tab"}, 422)
    anna.refused("/api/grid", {"client": "tab", "want": 100}, 422)
    anna.refused("/api/grid", {}, 422)
    release(anna)
    release(anna, 10**6, crops[-1]["id"], crops[-1]["id"])  # unknown, and twice
    assert anna.say(query=crops[-1]["id"])["status"] == "refused"
    assert anna.say(query=crops[0]["id"])["status"] == "saved"


def test_a_page_of_an_older_store_gets_no_grid(house: House) -> None:
    reply = house.browser().post("/api/grid", {"client": "tab", "session": "another"})
    assert (reply["queries"], reply["outdated"]) == ([], True)


def test_a_question_answered_by_another_person_is_a_conflict(house: House) -> None:
    anna = house.browser()
    first, *others = grid(anna)
    no_box = np.zeros((0, 4)), np.zeros(0, dtype=np.int64)
    house.project.store.record([Answer(first["id"], *no_box, Verdict.NOT_AN_OBJECT, "ben")])
    results = anna.answer(item(query=first["id"]), *(item(query=crop["id"]) for crop in others))["results"]
    assert [one["status"] for one in results] == ["conflict", *["saved"] * len(others)]


def test_a_tab_that_holds_more_than_its_share_gets_no_new_ones(tmp_path: Path) -> None:
    """One question is open per photo, and people who come late need some."""
    with opened(photos(tmp_path, 12, people__proposal_score=0.0)) as house:
        anna = house.browser("anna", "a")
        held = anna.next(5)
        for name in ("ben", "cem", "dora"):
            assert len(house.browser(name, name).next(1)) == 1
        assert {*ids(grid(anna))} == {*ids(held)}


def test_a_grid_that_could_not_be_saved_loses_no_question(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk."""
    anna = house.browser()

    def full(*_: Any, **__: Any) -> None:
        raise Unavailable("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(house.service.people, "claim", full)
        assert anna.http.post("/api/grid", json={"client": anna.tab}).status_code == 503
    assert [query["image"]["id"] for query in grid(anna)] == [*range(1, CROPS + 1)]


def test_a_grid_has_one_class_even_if_the_ranking_was_made_anew(house: House) -> None:
    """The open questions ask about class 1; the ranking now takes their boxes for class 0."""
    asked = [Query(i, np.array(BOX, np.float32), 1, why={"rank": i - 1.0, "cycle": 2.0}) for i in (1, 2)]
    house.project.store.ask(2, asked)
    crops = grid(house.browser())
    assert {crop["guess"] for crop in crops} == {0}
    assert len(crops) >= FEWEST
