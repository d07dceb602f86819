"""Find more like this: what is asked next and for whom, and why nothing can be compared."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox.core import parquet
from rarebox.pool.similar import BoxFeatures
from rarebox.project.project import Project
from rarebox.types import Answer, Query, Verdict
from rarebox.web import likeness
from tests.house import BOX, Browser, House, directions, item, keep_features, make_project, open_cycle, opened

DEGREES = (0, 80, 10, 60, 20, 85, 30, 50, 90)
"""The angles, in degrees, of the features of the boxes on images 4 to 12. Those at 10, 20, 30 and 50 are
similar enough to the first: cosine 0.6 is 53 degrees."""

LIKE_THE_FIRST = [6, 8, 10, 11]
"""Their images, the most similar first."""


def started(folder: Path, *degrees: float, **changes: Any) -> Project:
    """Cycle 2 asks about a box on each of the images 4 to 12, which the detector takes for fish."""
    made = make_project(folder, **{"budget": [100], **changes})
    open_cycle(made, 2, range(4, 13))
    if degrees:
        keep_features(made, 2, *degrees)
    return made


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with opened(started(tmp_path, *DEGREES)) as house:
        yield house


@pytest.fixture
def anna(house: House) -> Browser:
    """She has labelled the first box as a shark."""
    return with_a_shark(house)


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Her browser, for requests that must change nothing, and so can share it."""
    with opened(started(tmp_path_factory.mktemp("refused"), *DEGREES)) as house:
        yield with_a_shark(house)


def with_a_shark(house: House) -> Browser:
    anna = house.browser("anna")
    (first,) = anna.next(1)
    anna.saved(query=first["id"], boxes=[first["box"]], labels=[2])
    return anna


def images_of(queries: list[dict[str, Any]]) -> list[int]:
    return [query["image"]["id"] for query in queries]


def give_all(browser: Browser, want: int = 3) -> list[int]:
    """Answer one question after the other, and return their images."""
    images, queries = list[int](), browser.next(want)
    while queries:
        images.append(queries[0]["image"]["id"])
        queries = browser.answer(item(query=queries[0]["id"], labels=[2]), want=want)["queries"]
    return images


def test_the_most_similar_come_next_with_the_class_as_the_guess(house: House, anna: Browser) -> None:
    assert anna.get("/api/state")["search"] is None
    state = anna.post("/api/search", {"label": 2})
    assert state["search"] == {"label": 2, "left": 4}
    first, second, *_ = anna.next(2)
    assert images_of([first, second]) == LIKE_THE_FIRST[:2]
    assert (first["guess"], first["score"], first["box"]) == (2, None, BOX)
    assert first["similarity"] == pytest.approx(np.cos(np.radians(10)), abs=1e-3)
    assert "resembles it (98%)" in first["reason"]
    assert give_all(anna) == [*LIKE_THE_FIRST, 5, 7, 9, 12]  # then the others by their rank, and none twice
    assert anna.get("/api/state")["search"] is None
    asked = house.project.store.queries(2)
    assert len({query.image_id for query in asked}) == len(asked) == 9
    assert [query.guess for query in asked[1:5]] == [2] * 4
    assert [query.guess for query in asked[5:]] == [0] * 4


def test_the_questions_are_ordinary_ones(house: House, anna: Browser) -> None:
    before = anna.get("/api/state")["budget"]["spent"]
    anna.post("/api/search", {"label": 2})
    (query,) = anna.next(1)
    number = anna.saved(query=query["id"], labels=[2])
    state = anna.get("/api/state")
    assert state["budget"]["spent"] == before + 1
    assert state["classes"][2]["count"] == 2
    assert state["search"]["left"] == 3
    anna.saved(query=query["id"], after=number, verdict="withdrawn")
    state = anna.get("/api/state")
    assert (state["budget"]["spent"], state["search"]["left"]) == (before, 4)
    assert anna.next(1)[0]["id"] == query["id"]
    stored = next(one for one in house.project.store.queries(2) if one.id == query["id"])
    assert set(stored.why or {}) == {"rank", "cycle", "similarity"}


def test_a_searched_guess_says_nothing_about_the_detectors(anna: Browser) -> None:
    before = anna.get("/api/state")["agreement"]["with_guesses"]
    assert before == 0  # the detector took a shark for a fish
    anna.post("/api/search", {"label": 2})
    anna.saved(query=anna.next(1)[0]["id"], labels=[2])
    assert anna.get("/api/state")["agreement"]["with_guesses"] == before


def test_questions_that_the_tab_holds_wait_and_can_still_be_answered(anna: Browser) -> None:
    held = anna.next(2)
    assert images_of(held) == [5, 6]
    anna.post("/api/search", {"label": 2})
    both = anna.next(2)
    assert images_of(both) == [8, 10, 5, 6]  # image 6 was asked about already, so it keeps its turn
    assert [query["guess"] for query in both] == [2, 2, 0, 0]
    anna.saved(query=held[0]["id"])
    assert give_all(anna, want=2) == [8, 10, 11, 6, 7, 9, 12]


def test_boxes_like_one_box(anna: Browser) -> None:
    """The box of image 5, at 80 degrees, was not answered. It is itself not offered."""
    assert anna.post("/api/search", {"image": 5, "box": BOX, "label": 1})["search"] == {"label": 1, "left": 5}
    queries = anna.next(5)
    assert images_of(queries) == [9, 12, 7, 11, 10]  # 5, 10, 20, 30 and 50 degrees from it
    assert {query["guess"] for query in queries} == {1}


def test_without_a_class_the_detectors_guess_is_offered(anna: Browser) -> None:
    assert anna.post("/api/search", {"image": 5, "box": BOX})["search"] == {"label": None, "left": 5}
    assert anna.next(1)[0]["guess"] == 0


def test_another_search_takes_the_place_of_the_first(anna: Browser) -> None:
    anna.post("/api/search", {"label": 2})
    assert images_of(anna.next(1)) == [6]
    anna.post("/api/search", {"image": 5, "box": BOX, "label": 1})
    assert images_of(anna.next(1)) == [9, 6]


def test_a_search_ends_when_the_person_stops_it(anna: Browser) -> None:
    anna.post("/api/search", {"label": 2})
    anna.next(1)
    assert anna.post("/api/search/stop")["search"] is None
    assert give_all(anna) == [6, 5, 7, 8, 9, 10, 11, 12]  # the open question, then the ranking
    assert anna.post("/api/search/stop")["search"] is None


def test_two_people_who_look_for_the_same_are_never_asked_about_the_same_box(house: House, anna: Browser) -> None:
    ben = house.browser("ben", "another-tab")
    for browser in (anna, ben):
        assert browser.post("/api/search", {"label": 2})["search"]["left"] == 4
    tabs, seen = [anna, ben], list[int]()
    mine = {browser.tab: browser.next(1) for browser in tabs}
    while any(mine.values()):
        for browser in tabs:
            if queries := mine[browser.tab]:
                seen.append(queries[0]["image"]["id"])
                mine[browser.tab] = browser.answer(item(query=queries[0]["id"]), want=1)["queries"]
    assert seen[:4] == LIKE_THE_FIRST
    assert sorted(seen) == [5, 6, 7, 8, 9, 10, 11, 12]
    assert house.browser("carl").get("/api/state")["search"] is None


def test_a_search_is_one_persons(house: House, anna: Browser) -> None:
    anna.post("/api/search", {"label": 2})
    ben = house.browser("ben", "another-tab")
    assert ben.get("/api/state")["search"] is None
    assert images_of(ben.next(1)) == [5]
    assert images_of(anna.next(1)) == [6]


def test_a_restart_forgets_the_search_and_no_answer(tmp_path: Path) -> None:
    made = started(tmp_path, *DEGREES)
    made.store.record([Answer(made.store.ask(2, [Query(4, np.array(BOX), 2)])[0].id, *labelled(BOX, 2))])
    with opened(made) as house:
        browser = house.browser("anna")
        browser.post("/api/search", {"label": 2})
        browser.saved(query=browser.next(2)[0]["id"], labels=[2])
    with opened(Project(made.folder.root)) as house:
        again = house.browser("anna")
        assert again.get("/api/state")["search"] is None
        assert again.get("/api/state")["classes"][2]["count"] == 2
        assert images_of(again.next(1)) == [8]  # asked about before, and still open
        assert again.post("/api/search", {"label": 2})["search"] == {"label": 2, "left": 2 + 1}


def labelled(box: list[float], label: int) -> tuple[Any, Any, Verdict]:
    return np.array([box]), np.array([label]), Verdict.OBJECT


def test_boxes_of_a_complete_image_are_compared_by_the_features_that_the_trainer_kept(tmp_path: Path) -> None:
    """No candidate is on such an image, because it is not scored."""
    made = started(tmp_path, *DEGREES)
    (whole,) = made.store.ask(1, [Query(1)])
    made.store.record([Answer(whole.id, *labelled(BOX, 1))])
    with opened(made) as house:
        browser = house.browser("anna")
        assert browser.refused("/api/search", {"label": 1}) == likeness.no_features("ray")
        made.write_examples(2, BoxFeatures(np.array([1]), np.array([BOX]), directions(95)))
        assert browser.post("/api/search", {"label": 1})["search"] == {"label": 1, "left": 5}
        assert images_of(browser.next(3)) == [12, 9, 5]
        made.folder.cycle(2).joinpath("examples.parquet").write_bytes(b"damaged")
        assert browser.refused("/api/search", {"label": 1}) == likeness.no_features("ray")


def test_a_question_of_a_search_may_go_to_two_people(tmp_path: Path) -> None:
    made = started(tmp_path, *DEGREES, people__overlap=1)
    with opened(made) as house:
        anna, ben = house.browser("anna"), house.browser("ben", "another-tab")
        (first,) = anna.next(1)
        anna.saved(query=first["id"], labels=[2])
        anna.post("/api/search", {"label": 2})
        (query,) = anna.next(1)
        anna.saved(query=query["id"], labels=[2])
        assert anna.get("/api/state")["search"]["left"] == 3
        ben.saved(query=ben.next(1)[0]["id"])
        assert query["id"] in [one["id"] for one in ben.next(3)]


# ------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"label": 3}, "there is no class 3"),
        ({"label": 0}, likeness.no_example("fish")),
        ({"image": 99, "box": BOX}, "there is no image 99"),
        ({"image": 4, "box": [50, 50, 50, 60]}, "width and a height"),
        ({"image": 4, "box": [70, 50, 90, 60], "label": 2}, likeness.NOT_DETECTED),
        ({"image": 1, "box": BOX, "label": 2}, likeness.NOT_DETECTED),
    ],
)
def test_the_reason_is_given_if_nothing_can_be_compared(refused: Browser, body: dict[str, Any], reason: str) -> None:
    assert reason in refused.refused("/api/search", body)
    assert refused.get("/api/state")["search"] is None


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"image": 4},
        {"box": BOX},
        {"label": 2, "image": 4},
        {"label": -1},
        {"image": 4, "box": BOX[:3]},
        {"image": 4, "box": [0, 0, "x", 1]},
        {"label": 2, "like": "this"},
    ],
)
def test_a_malformed_request_is_refused(refused: Browser, body: dict[str, Any]) -> None:
    refused.refused("/api/search", body, 422)


def test_a_merged_class_is_refused_and_its_boxes_count_for_the_other(anna: Browser) -> None:
    anna.post("/api/classes", {"merge": {"label": 2, "into": 1}})
    assert "there is no class 2" in anna.refused("/api/search", {"label": 2})
    assert anna.post("/api/search", {"label": 1})["search"] == {"label": 1, "left": 4}


def test_nothing_can_be_compared_before_the_first_model(tmp_path: Path) -> None:
    made = make_project(tmp_path)
    made.store.open_cycle(1)
    with opened(made) as house:
        assert house.browser().refused("/api/search", {"label": 0}) == likeness.TOO_EARLY


def one_answer(house: House) -> Browser:
    browser = house.browser("anna")
    browser.saved(query=browser.next(1)[0]["id"], labels=[2])
    return browser


@pytest.mark.parametrize(("cosine", "reason"), [(1.0, likeness.NO_FEATURES), (0.9, likeness.FEATURES_LOST)])
def test_nothing_can_be_compared_without_features(tmp_path: Path, cosine: float, reason: str) -> None:
    with opened(started(tmp_path, selection__duplicate_cosine=cosine)) as house:
        assert one_answer(house).refused("/api/search", {"label": 2}) == reason


@pytest.mark.parametrize("damage", ["garbage", "another shape"])
def test_damaged_features_are_an_error_that_names_no_dead_end(house: House, damage: str) -> None:
    (shard,) = (house.project.folder.cycle(2) / "candidates").glob("shard_*.parquet")
    if damage == "garbage":
        shard.write_bytes(b"no such thing")
    else:
        columns = parquet.read(shard)
        parquet.write(shard, {**columns, "features": columns["features"][:, 0]})
    assert one_answer(house).refused("/api/search", {"label": 2}) == likeness.FEATURES_LOST


def test_a_project_of_whole_images_has_no_boxes_to_look_through(tmp_path: Path) -> None:
    made = started(tmp_path, *DEGREES, selection__strategy="image_per_second")
    with opened(made) as house:
        assert house.browser().refused("/api/search", {"image": 4, "box": BOX}) == likeness.WHOLE_IMAGES


def test_boxes_that_are_too_different_are_not_offered(tmp_path: Path) -> None:
    with opened(started(tmp_path, 0, *range(54, 62))) as house:
        assert one_answer(house).refused("/api/search", {"label": 2}) == likeness.NO_MORE


def test_a_spent_budget_leaves_nothing_to_look_for(tmp_path: Path) -> None:
    with opened(started(tmp_path, *DEGREES, budget=[1])) as house:
        assert one_answer(house).refused("/api/search", {"label": 2}) == likeness.SPENT


def test_a_search_goes_on_while_the_budget_lasts(tmp_path: Path) -> None:
    """The question that the tab already holds waits, so it takes nothing from the budget of the search."""
    with opened(started(tmp_path, *DEGREES, budget=[3])) as house:
        browser = one_answer(house)
        assert images_of(browser.next(1)) == [5]
        browser.post("/api/search", {"label": 2})
        assert images_of(browser.next(3)) == [6, 8, 5]


def test_a_cycle_that_begins_meanwhile_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(tmp_path, *DEGREES)
    with opened(made) as house:
        browser = one_answer(house)
        browser.post("/api/search", {"label": 2})

        def begin_a_cycle() -> None:
            open_cycle(made, 3, range(4, 13))
            keep_features(made, 3, *DEGREES)

        compare: Callable[..., dict[int, float]] = likeness.most_like
        monkeypatch.setattr(
            likeness, "most_like", lambda *those: (house.service.do(begin_a_cycle).result(20), compare(*those))[1]
        )
        assert browser.refused("/api/search", {"label": 2}) == likeness.NEW_CYCLE
        monkeypatch.undo()
        assert browser.get("/api/state")["search"] is None  # of the cycle before
        assert browser.post("/api/search", {"label": 2})["search"] == {"label": 2, "left": 4}
        assert images_of(browser.next(1)) == [6]
