"""The page in a real browser, with failing servers and networks and unexpected input. Nothing is trained."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Route

from rarebox.data import scenes
from rarebox.data.datasets import load
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.project.project import Project
from rarebox.types import ImageRecord, Query
from tests import tiny
from tests.browser import CHROMIUM, LAPTOP, PHONE, Person, chromium
from tests.house import keep_features
from tests.serving import Served, make_project

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (Debian: apt install chromium)")


@pytest.fixture(scope="module")
def chrome() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@dataclass
class Office:
    """A server and the browsers of people who are signed in."""

    server: Served
    chrome: Browser
    cookies: dict[str, httpx.Cookies]
    shots: Path

    def browser(self, name: str) -> BrowserContext:
        context = self.chrome.new_context(viewport=LAPTOP)  # type: ignore[arg-type]
        context.add_cookies(
            [
                {"name": cookie.name, "value": cookie.value or "", "url": self.server.url}
                for cookie in self.cookies[name].jar
            ]
        )
        return context

    def tab(self, context: BrowserContext, tour: bool = False) -> Person:
        person = Person(context.new_page(), self.shots, tour)
        person.page.goto(self.server.url)
        return person

    def given(self) -> list[tuple[int, str, str]]:
        """Return query, verdict and author of each stored answer, oldest first."""
        folder = RunFolder(self.server.root)
        with Store(folder.labels(folder.read_settings())) as store:
            return [(one.query.id, one.answer.verdict.value, one.answer.by) for one in People(store).given()]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ImageRecord]:
    return load(tiny.make_data(tmp_path_factory.mktemp("pictures"))).train.images


@pytest.fixture
def office(
    pictures: Sequence[ImageRecord], tmp_path: Path, chrome: Browser, request: pytest.FixtureRequest
) -> Iterator[Office]:
    """Serve ten pictures with four questions each, or as many pictures with one question as the test asks for."""
    few = getattr(request, "param", None)
    root = tmp_path / "project"
    make_project(root, pictures[: few or 10], ("fish", "ray", "shark"), grid=1 if few else 2).store.close()
    with Served(root) as server:
        yield Office(server, chrome, server.cookies(("anna", "ben")), tmp_path)


def test_the_next_questions_and_pictures_are_loaded_ahead(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.page.wait_for_timeout(1000)
    office.server.signal(signal.SIGSTOP)
    try:
        seen = [anna.photo()]
        for _ in range(3):
            anna.press("x")
            anna.task("box", 5)  # with its picture
            seen.append(anna.photo())
        assert len(set(seen)) == 4
        assert anna.see("save-state").get_attribute("data-state") == "saving"
    finally:
        office.server.signal(signal.SIGCONT)
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()] == ["not_an_object"] * 3


def test_a_budget_of_seconds_is_shown_in_minutes_with_what_is_left(
    pictures: Sequence[ImageRecord], tmp_path: Path, chrome: Browser
) -> None:
    """A box that was answered at once leaves almost all of the ten minutes, also before the server counts it."""
    changes: dict[str, Any] = {"budget": [600], "budget_unit": "seconds"}
    make_project(tmp_path / "project", pictures[:10], ("fish", "ray", "shark"), **changes).store.close()
    with Served(tmp_path / "project") as server:
        office = Office(server, chrome, server.cookies(("anna",)), tmp_path)
        anna = office.tab(office.browser("anna"))
        anna.task("box", 30)
        assert anna.page.locator("#progress-text").inner_text() == "0 of 10 minutes"
        assert anna.see("to-go").inner_text() == "about 10 minutes to go"
        anna.press("Enter")
        anna.saved()
        spent = anna.until(lambda state: state["budget"]["spent"] > 0)["budget"]["spent"]
        assert spent < 18  # at most ten times 1.8 s, however slow this machine is
        assert anna.see("budget-left").inner_text() in {str(round((600 - spent) / 6) / 10), "10"}


def test_answers_to_a_stopped_server_survive_closing_the_page(office: Office) -> None:
    browser = office.browser("anna")
    anna = office.tab(browser)
    anna.task("box", 30)
    anna.page.wait_for_timeout(1000)
    office.server.kill()
    anna.press("x")
    anna.task("box", 10)
    anna.press("Enter")
    anna.page.wait_for_function("() => document.querySelector('#save-state').textContent.includes('2 waiting')")
    anna.page.close()
    office.server.start()
    assert office.given() == []
    again = office.tab(browser)
    again.until(lambda state: state["budget"]["spent"] == 2, 30)
    assert [answer[1:] for answer in office.given()] == [("not_an_object", "anna"), ("object", "anna")]


def test_a_whole_image_is_verified_with_few_keys(office: Office) -> None:
    """The detector's likely boxes are there already. The page's own time is a few frames and one picture an image."""
    folder = RunFolder(office.server.root)
    with Store(folder.labels(folder.read_settings())) as store:
        asked = store.ask(2, [Query(image) for image in store.images()])
    anna = office.tab(office.browser("anna"))
    anna.task("image", 30)
    proposed = anna.see("mark-draft").count()
    assert 0 < proposed < 4  # by score
    anna.shoot("verify")
    anna.press("n", "x", "n")
    assert anna.see("mark-draft").count() == proposed - 1
    anna.press("Escape")
    anna.drag((5, 5, 30, 30), 96, 96)
    anna.press("1")
    assert "Complete" in anna.see("yes").inner_text()
    waits = list[float]()
    for _ in range(6):
        empty = not anna.see("mark-draft").count()  # which needs a second press
        before, start = anna.photo(), time.monotonic()
        anna.press(*["Enter"] * (1 + empty))
        anna.page.wait_for_function(
            "name => document.querySelector('[data-fact=photo] b')?.innerText !== name"
            " && document.querySelector('#waiting').hidden",
            arg=before,
        )
        waits.append(time.monotonic() - start)
    assert sorted(waits)[len(waits) // 2] < 3
    anna.saved()
    with Store(folder.labels(folder.read_settings())) as store:
        answers = {query.id: answer for query, answer in store.answered(2) if query.box is None}
        first = answers[asked[0].id]
        assert len(first.boxes) == proposed
        assert store.labels_of(asked[0].image_id).complete


@pytest.mark.parametrize("office", [14], indirect=True)
def test_more_like_a_class_and_more_like_a_box_come_next(office: Office) -> None:
    """One box on each of fourteen pictures. All look alike, so each that was not asked about is found."""
    keep_features(Project(office.server.root), 2, *range(0, 42, 3))
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.page.wait_for_function("() => document.querySelectorAll('.bars li').length === 3")
    shark = anna.see("similar-2")
    shark.click()
    assert "“shark” has no box yet" in anna.see("notice").last.inner_text()  # what to do instead
    anna.press("3")
    anna.saved()
    waiting = anna.photo()
    shark.click()
    anna.see("stop-search").wait_for()
    strip = anna.see("search")
    assert strip.inner_text().startswith("More like “shark”: ")
    assert strip.inner_text() == "More like “shark”: 9 to go Stop".replace(" Stop", "\nStop")
    anna.page.wait_for_function("() => document.querySelector('[data-fact=similarity]')")
    assert "shark" in anna.see("question").inner_text()
    anna.task("box", 10)
    anna.shoot("similar")
    anna.press("Enter")
    anna.until(lambda state: state["search"]["left"] == 8)
    anna.see("stop-search").click()
    strip.wait_for(state="hidden")
    anna.page.wait_for_function(
        "name => document.querySelector('[data-fact=photo] b')?.innerText === name", arg=waiting
    )

    anna.see("similar").click()  # more like the box that is shown
    strip.wait_for()
    assert strip.inner_text().startswith("More like “")
    left = 4  # four of the first search are still open
    anna.until(lambda state: (state["search"] or {}).get("left") == left)
    anna.press("m")
    anna.page.wait_for_function("() => document.querySelector('#notices').innerText.includes('No further box')")
    for _ in range(left):
        anna.page.wait_for_function("() => document.querySelector('[data-fact=similarity]')")
        anna.task("box", 10)
        anna.press("x")
        anna.saved()
    strip.wait_for(state="hidden")
    assert anna.page.locator("[data-sentence^='That was all like']").count() == 1
    refused = "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    assert anna.problems == [refused] * 2
    folder = RunFolder(office.server.root)
    with Store(folder.labels(folder.read_settings())) as store:
        answered = store.answered(2)
    found = [(query.guess, answer.verdict.value) for query, answer in answered if "similarity" in (query.why or {})]
    assert found[0] == (2, "object")
    assert len(found) == 1 + left
    assert {verdict for _, verdict in found[1:]} == {"not_an_object"}
    images = [query.image_id for query, _ in answered]
    assert len({*images}) == len(images)  # each picture has one box, and none was asked about twice


def test_undo_and_redo_go_over_several_answers(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    photos = []
    for key in ("x", "Enter", "Space"):
        anna.task("box", 30)
        photos.append(anna.photo())
        anna.press(key)
    for photo in reversed(photos):
        anna.press("z")
        anna.page.wait_for_function(
            "name => document.querySelector('[data-fact=photo] b')?.innerText === name", arg=photo
        )
    anna.saved()
    verdicts = [verdict for _, verdict, _ in office.given()]
    assert verdicts == ["not_an_object", "object", "cannot_tell"] + ["withdrawn"] * 3
    assert anna.state()["budget"]["spent"] == 0
    anna.press("y", "y")
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()][6:] == ["not_an_object", "object"]


def test_the_keys_and_the_gallery_are_shown(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.press("Enter")
    anna.saved()
    anna.press("?")
    anna.shoot("keys")
    anna.press("Escape")
    anna.press("g")  # immediately: the late close event of one dialog must not empty the next
    anna.see("gallery-item").first.wait_for()
    anna.shoot("gallery")
    anna.press("Escape")
    assert anna.problems == []


def test_an_invited_person_answers_on_a_phone_by_touch(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    phone = office.chrome.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)  # type: ignore[arg-type]
    carla = Person(phone.new_page(), office.shots)
    carla.page.goto(
        anna.page.evaluate(
            "fetch('/api/invite', {method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{}'})"
            ".then(a => a.json()).then(a => a.url)"
        )
    )
    carla.see("name").fill("carla")
    carla.shoot("phone-name")
    carla.press("Enter")
    carla.task("box", 30)
    carla.shoot("phone-box")
    carla.see("not_object").tap()
    carla.saved()
    assert [(verdict, by) for _, verdict, by in office.given()] == [("not_an_object", "carla")]
    assert "carla" in {one["name"] for one in carla.state()["people"]}
    assert anna.problems == carla.problems == []


@pytest.mark.parametrize("office", [5], indirect=True)
def test_a_box_drawn_over_the_asked_one_replaces_it_unless_d_was_pressed(
    office: Office, pictures: Sequence[ImageRecord]
) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    shown = next(one for one in pictures if Path(one.path).name == anna.photo())
    around = [0.05 * shown.width, 0.05 * shown.height, 0.95 * shown.width, 0.95 * shown.height]
    anna.press("f")
    anna.drag(around, shown.width, shown.height)
    anna.page.get_by_text("replaces the box in question").wait_for()
    assert office.given() == []
    anna.press("d")
    anna.drag(around, shown.width, shown.height)
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()] == ["object"]
    anna.press("Escape", "x")  # the question is still open
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()] == ["object", "not_an_object"]
    assert anna.problems == []


@pytest.mark.parametrize("office", [5], indirect=True)
def test_released_questions_go_to_people_who_have_none(office: Office) -> None:
    browser = office.browser("anna")
    anna = office.tab(browser)
    anna.task("box", 30)  # and the next three
    photo = anna.photo()
    other = office.tab(browser)  # closed again: the question is at once hers in the next tab
    other.task("box", 30)
    assert other.photo() != photo
    anna.page.close()
    third = office.tab(browser)
    third.task("box", 30)
    assert third.photo() == photo

    for _ in range(4):
        third.task("box", 30)
        third.press("x")
    third.saved()
    third.page.close()
    ben = office.tab(office.browser("ben"))
    ben.see("waiting").get_by_text("No questions right now").wait_for()
    assert "other people or in another tab" in ben.see("waiting").inner_text()
    began = time.monotonic()
    other.page.close()
    ben.task("box", 30)
    assert time.monotonic() - began < 20


def test_an_unfinished_change_of_an_old_answer_is_kept(office: Office) -> None:
    browser = office.browser("anna")
    anna = office.tab(browser)
    anna.task("box", 30)
    anna.press("Enter")
    anna.saved()
    anna.see("recent-answer").first.click()
    anna.page.wait_for_function(
        "() => document.body.dataset.task === 'edit' && document.querySelector('#waiting').hidden"
    )
    anna.press("Shift+ArrowRight", "Shift+ArrowDown")
    anna.page.reload()
    anna.page.wait_for_function(
        "() => document.body.dataset.task === 'edit' && document.querySelector('#waiting').hidden"
    )
    assert "unfinished change" in anna.see("notices").inner_text()
    anna.press("Enter")
    anna.saved()
    (answer,) = anna.page.evaluate("fetch('/api/answers').then(r => r.json())")["answers"]
    assert [round(x - y) for x, y in zip(answer["boxes"][0], answer["box"], strict=True)] == [10] * 4
    anna.page.reload()
    anna.task("box", 30)  # the change is finished


def test_a_restarted_server_receives_the_answers_of_the_open_page(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.page.evaluate("window.sameDocument = true")
    office.server.kill()
    anna.press("x")
    anna.page.wait_for_function("() => document.querySelector('#save-state').dataset.state === 'offline'")
    office.server.start()
    anna.saved()
    assert anna.page.evaluate("window.sameDocument") is True
    assert [answer[1:] for answer in office.given()] == [("not_an_object", "anna")]
    anna.task("box", 30)
    anna.press("Enter")
    anna.saved()
    assert len(office.given()) == 2


def test_classes_are_added_renamed_and_merged_and_never_become_markup(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    evil = "<img src=x onerror=document.title=1>"
    anna.press("/")
    anna.page.keyboard.type(f"  {evil.replace(' ', '   ')} ")
    anna.press("Enter")  # a new class, and the answer
    anna.until(lambda state: [(one["name"], one["count"]) for one in state["classes"]][3:] == [(evil, 1)])
    anna.task("box", 30)
    anna.press("g")
    anna.see("gallery-item").get_by_text(evil).wait_for()
    anna.press("Escape")
    anna.see("classes-editor").click()
    row = anna.see("class-row").nth(1)
    row.get_by_test_id("rename").click()
    anna.see("rename-input").fill("FISH")
    anna.press("Enter")
    anna.page.get_by_text("there is already a class 'fish'").wait_for()
    anna.see("rename-input").fill("<b>stingray</b>")
    anna.press("Enter")
    anna.see("class-row").get_by_text("<b>stingray</b>").wait_for()
    anna.see("class-row").nth(3).get_by_test_id("merge").click()
    anna.page.keyboard.type("STING")
    anna.press("Enter")
    anna.see("merge-confirm").click()
    anna.until(lambda state: [one["count"] for one in state["classes"]] == [0, 1, 0, 0])
    anna.press("Escape")
    anna.see("class-1").get_by_text("<b>stingray</b>").wait_for()
    anna.press("/")
    anna.page.keyboard.type(evil)
    anna.press("Enter")  # a new class of the name that was merged, and the answer
    anna.until(lambda state: [(one["name"], one["count"]) for one in state["classes"]][4:] == [(evil, 1)])
    assert anna.page.locator("img[src=x], b b").count() == 0
    assert anna.page.title() == "project · rarebox"
    assert ["400" in problem for problem in anna.problems] == [True]  # the name exists


def test_the_session_timer_runs_only_while_the_person_works(office: Office) -> None:
    context = office.browser("anna")
    context.clock.install()
    anna = office.tab(context)
    anna.task("box", 30)
    anna.see("goal").select_option("10")
    context.clock.run_for(300_000)  # no input for five minutes
    assert anna.see("goal-clock").inner_text() == "1 of 10 min"
    over = anna.page.get_by_text("10 minutes are up")
    for _ in range(75):
        anna.press("h")
        context.clock.run_for(8_000)
        if over.count():
            break
    else:
        pytest.fail("the page did not report the end of the session")
    assert anna.see("goal-clock").inner_text() == "10 of 10 min"


def test_a_signed_out_page_shows_only_that(office: Office) -> None:
    stranger = Person(office.chrome.new_page(viewport=PHONE), office.shots)  # type: ignore[arg-type]
    stranger.page.goto(f"{office.server.url}/?token={office.server.token}")  # used up
    stranger.see("waiting").get_by_text("Not signed in").wait_for()
    for name in ("save-state", "yes", "undo"):
        assert not stranger.see(name).is_visible()
    assert not stranger.page.locator(".top .bar").is_visible()


def test_an_invitation_from_a_local_server_says_that_it_works_on_this_computer_only(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.see("invite").click()
    assert "this computer only" in anna.see("invite-local").inner_text()
    assert office.server.url in anna.see("invite-link").input_value()


# ------------------------------------------------------------------------------------------- no answer is lost

HTML = {"content_type": "text/html", "body": "<html>Please sign in</html>"}
JSON = {"content_type": "application/json"}
STRANGE: dict[str, dict[str, Any]] = {
    "a proxy's 404": {"status": 404, **HTML},
    "a proxy's 413": {"status": 413, **HTML},
    "a proxy's 401": {"status": 401, **HTML},
    "a page": {"status": 200, **HTML},
    "a redirect": {"status": 302, "headers": {"Location": "/"}},
    "another program": {"status": 200, **JSON, "body": "{}"},
    "another program's list": {"status": 200, **JSON, "body": "[]"},
    "another program's refusal": {"status": 422, **JSON, "body": '{"detail": [{"msg": "no"}]}'},
    "cut short": {"status": 200, **JSON, "body": '{"results": [{"key"'},
    "nothing": {"status": 204},
    "a whole body refused": {"status": 413, **JSON, "body": '{"error": "too large"}'},
    "another's answer refused": {"status": 422, **JSON, "body": '{"error": "wrong", "keys": ["x"]}'},
    "another's answer saved": {"status": 200, **JSON, "body": '{"results": [], "queries": [], "state": {}}'},
    "another name": {"status": 421, **JSON, "body": '{"error": "this server does not go by that name"}'},
}


def kept(person: Person) -> int:
    """Return the number of unsent answers in the browser."""
    return person.page.evaluate("Object.keys(localStorage).filter(name => name.includes('/out/')).length")


class Proxy:
    """Between a page and ``/api/answers``.

    It is one route for the whole test, because a request may slip past a route that has just been set.
    """

    def __init__(self, page: Page) -> None:
        self.replies: Callable[[Route], None] = Route.continue_
        page.route("**/api/answers", lambda route: self.replies(route))


def wait_until_offline(person: Person) -> None:
    person.page.wait_for_function("() => document.querySelector('#save-state').dataset.state === 'offline'")


def test_only_a_reply_of_our_own_server_settles_an_answer(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    proxy = Proxy(anna.page)
    for number, (name, reply) in enumerate(STRANGE.items()):
        anna.task("box", 30)
        proxy.replies = lambda route, reply=reply: route.fulfill(**reply)
        anna.press("x")
        wait_until_offline(anna)
        assert kept(anna) == 1, name
        proxy.replies = Route.continue_
        anna.saved()
        assert (kept(anna), len(office.given())) == (0, number + 1), name


def test_a_refused_answer_does_not_take_others_with_it(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    anna.page.wait_for_timeout(1000)
    proxy = Proxy(anna.page)
    proxy.replies = Route.abort
    for _ in range(3):
        anna.press("x")
        anna.task("box", 10)
    wait_until_offline(anna)
    keys = sorted(anna.page.evaluate("Object.keys(localStorage).filter(name => name.includes('/out/'))"))
    wrong = keys[1][-36:]

    def spoil(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        for answer in body["answers"]:
            if answer["key"] == wrong:
                answer["boxes"] = ["abcd"]
        route.continue_(post_data=body)

    proxy.replies = spoil
    anna.page.get_by_text("Not saved").wait_for()
    anna.saved()
    assert kept(anna) == 0
    assert len({query for query, _, _ in office.given()}) == 2


def test_the_correction_of_an_answer_is_sent_by_another_tab(office: Office) -> None:
    browser = office.browser("anna")
    other = office.tab(browser)
    other.task("box", 30)
    anna = office.tab(browser)
    anna.task("box", 30)
    anna.press("x")
    anna.saved()
    Proxy(anna.page).replies = Route.abort
    anna.press("z")
    wait_until_offline(anna)
    anna.page.close()
    other.until(lambda state: state["budget"]["spent"] == 0, 30)
    assert [verdict for _, verdict, _ in office.given()] == ["not_an_object", "withdrawn"]


def test_damaged_entries_in_the_browser_are_harmless(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    damage = """id => {
        for (const [name, text] of [["a", "{}"], ["b", "null"], ["c", "{"], ["d", '{"item": 1, "client": "x", "at": 1}'], ["e", '"x"']])
            localStorage.setItem(`rarebox/${id}/out/${name}`, text);
        localStorage.setItem(`rarebox/${id}/saved`, "null");
        sessionStorage.setItem(`rarebox/${id}/history`, "{}");
    }"""  # noqa: E501
    anna.page.evaluate(damage, anna.state()["id"])
    anna.page.reload()
    anna.task("box", 30)
    anna.page.wait_for_timeout(9000)  # long enough to adopt the answers of closed tabs
    anna.press("x")
    anna.saved()
    assert len(office.given()) == 1


def test_a_full_browser_storage_is_reported_and_loses_nothing(office: Office) -> None:
    anna = office.tab(office.browser("anna"))
    anna.task("box", 30)
    fill = """() => {
        for (let size = 1 << 22, n = 0; size >= 1; n++) {
            try { localStorage.setItem(`filler${n}`, "x".repeat(size)); } catch { size >>= 1; }
        }
    }"""
    anna.page.evaluate(fill)
    office.server.kill()
    anna.press("x")
    anna.page.get_by_text("has no room").wait_for()
    wait_until_offline(anna)
    office.server.start()
    anna.saved()
    assert len(office.given()) == 1


@pytest.mark.slow
def test_another_project_on_the_same_port_does_not_receive_the_answers(office: Office, tmp_path: Path) -> None:
    """The browser is signed in to both projects, and cookies do not distinguish ports."""
    records = [ImageRecord(i, f"{i}.jpg", 640, 480) for i in range(1, 11)]
    make_project(tmp_path / "second", records, ("fish", "ray", "shark"), grid=2).store.close()
    browser = office.browser("anna")
    with Served(tmp_path / "second") as second:
        cookies = second.cookies(["anna"])["anna"].jar
        browser.add_cookies([{"name": c.name, "value": c.value or "", "url": second.url} for c in cookies])
        second.kill()
        anna = office.tab(browser)
        anna.task("box", 30)
        office.server.kill()
        second.port = office.server.port
        second.start()
        anna.press("x")
        anna.page.get_by_text("now serves another project").wait_for()
        anna.page.wait_for_timeout(2000)
        assert (kept(anna), Office(second, office.chrome, {}, tmp_path).given()) == (1, [])
    (office.server.root / "secret").unlink()  # everyone signs in again; unsent answers still belong to this project
    office.server.start()
    with httpx.Client(base_url=office.server.url) as http:
        http.get("/", params={"token": office.server.token})
        http.post("/api/me", json={"name": "anna"})
        browser.add_cookies(
            [{"name": c.name, "value": c.value or "", "url": office.server.url} for c in http.cookies.jar]
        )
    anna.until(lambda state: state.get("budget", {}).get("spent") == 1, 60)
    assert kept(anna) == 0


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ImageRecord]:
    """Pictures for three grids."""
    data = scenes.make(tmp_path_factory.mktemp("alike") / "scenes", seed=4, train=34, test=1, size=(96, 96))
    return load(data).train.images


@pytest.fixture
def alike_office(alike: Sequence[ImageRecord], tmp_path: Path, chrome: Browser) -> Iterator[Office]:
    """Serve one question on each of 34 pictures, all of them likely and taken for one class."""
    root = tmp_path / "project"
    make_project(root, alike, ("fish",), people__proposal_score=0.0).store.close()
    with Served(root) as server:
        yield Office(server, chrome, server.cookies(("anna", "ben")), tmp_path)


def grid_shown(person: Person, crops: int = 12) -> None:
    """Wait for a grid with its pictures, then as long as it takes no answer."""
    person.page.wait_for_function(
        "n => document.querySelectorAll('.tile').length === n"
        " && !document.querySelector('[data-testid=grid_answer]').disabled",
        arg=crops,
        timeout=20_000,
    )
    person.page.wait_for_timeout(500)


def pressed(person: Person) -> list[int]:
    """The places of the crops that are marked as wrong."""
    marks = person.see("crop").evaluate_all("all => all.map(one => one.getAttribute('aria-pressed'))")
    return [place for place, mark in enumerate(marks) if mark == "true"]


def test_twelve_boxes_are_answered_with_a_few_keys(alike_office: Office) -> None:
    """The page's own part, from Enter to the next grid with its pictures, is far less than 0.7 s a crop."""
    anna = alike_office.tab(alike_office.browser("anna"))
    anna.task("box", 30)
    assert "Check 12 at once" in anna.see("grid").inner_text()
    anna.press("b")
    grid_shown(anna)
    anna.press("2", "=", "ArrowDown", "Space", "3", "3")
    assert pressed(anna) == [1, 4, 11]
    assert anna.see("grid_answer").inner_text().startswith("Confirm 9, reject 3")
    anna.press("x", "c", "Shift+Enter")  # keys of single questions
    anna.see("crop").nth(11).click()
    assert pressed(anna) == [1, 4]
    waits = list[float]()
    for crops in (12, 10):
        start = time.monotonic()
        anna.press("Enter")
        anna.saved()
        grid_shown(anna, crops)
        waits.append(time.monotonic() - start - 0.5)
    assert max(waits) < 0.7 * 12
    given = alike_office.given()
    assert [verdict for _, verdict, _ in given[:12]].count("not_an_object") == 2
    assert [given[place][1] for place in (1, 4)] == ["not_an_object"] * 2
    assert [verdict for _, verdict, _ in given[12:]] == ["object"] * 12
    assert anna.state()["budget"]["spent"] == 24
    times = anna.page.evaluate(
        "fetch('/api/answers?limit=24').then(answer => answer.json())"
        ".then(all => all.answers.map(one => one.milliseconds))"
    )
    assert max(times[:12]) - min(times[:12]) <= 1
    assert 400 < sum(times[:12]) < 5000  # of the screen, not of each crop
    anna.press("Enter")
    anna.page.wait_for_function("() => document.body.dataset.task === 'none'")  # everything is answered
    anna.saved()
    assert len(alike_office.given()) == 34
    assert anna.problems == []


def test_a_grid_is_taken_back_as_a_whole_and_single_answers_after_it(alike_office: Office) -> None:
    anna = alike_office.tab(alike_office.browser("anna"))
    anna.task("box", 30)
    anna.press("b")
    grid_shown(anna)
    anna.press("1", "5", "Enter")
    anna.saved()
    grid_shown(anna)
    anna.press("z")
    grid_shown(anna)
    assert pressed(anna) == [0, 4]
    anna.saved()
    assert anna.state()["budget"]["spent"] == 0
    anna.press("1", "Enter")
    anna.saved()
    grid_shown(anna)
    standing = {query: verdict for query, verdict, _ in alike_office.given()}
    assert sorted(standing.values()) == ["not_an_object"] + ["object"] * 11
    anna.press("Escape")
    anna.task("box", 20)
    last = anna.photo()
    anna.press("z")
    anna.page.wait_for_function("name => document.querySelector('[data-fact=photo] b')?.innerText !== name", arg=last)
    anna.saved()
    assert anna.state()["budget"]["spent"] == 11
    anna.press("x")
    anna.saved()
    assert alike_office.given()[-1][1] == "not_an_object"
    assert anna.problems == []


def test_a_box_adjusted_before_a_grid_is_confirmed_as_adjusted(alike_office: Office) -> None:
    anna = alike_office.tab(alike_office.browser("anna"))
    anna.task("box", 30)
    anna.press("ArrowRight", "ArrowRight")
    anna.press("b")
    grid_shown(anna)
    anna.press("Enter")
    anna.saved()
    folder = RunFolder(alike_office.server.root)
    with Store(folder.labels(folder.read_settings())) as store:
        given = People(store).given()
    moved = [one.answer.boxes[0] - one.query.box for one in given if one.query.box is not None]
    assert moved[0][0] > 0  # to the right, and not down
    assert [np.abs(by).max() < 0.01 for by in (moved[0][1::2], *moved[1:])] == [True] * 12


def test_a_crop_is_asked_about_separately(alike_office: Office) -> None:
    anna = alike_office.tab(alike_office.browser("anna"))
    anna.task("box", 30)
    anna.see("grid").click()
    grid_shown(anna)
    anna.see("separate").nth(6).click()
    anna.press("Shift+Digit3")
    assert anna.see("grid_answer").inner_text().startswith("Confirm 10, ask about 2")
    anna.press("Enter")
    anna.task("box", 20)
    anna.saved()
    assert len(alike_office.given()) == 10
    anna.press("Space")
    anna.task("box", 20)
    anna.press("x")
    grid_shown(anna)  # the next one, without another key
    anna.saved()
    given = alike_office.given()
    assert [verdict for _, verdict, _ in given[10:]] == ["cannot_tell", "not_an_object"]
    assert len({query for query, _, _ in given}) == 12
    assert anna.problems == []


def test_unanswered_crops_are_free_again_when_a_person_leaves(alike_office: Office) -> None:
    anna, ben = (alike_office.tab(alike_office.browser(name)) for name in ("anna", "ben"))
    for person in (anna, ben):
        person.task("box", 30)
    first = anna.photo()
    anna.press("b")
    grid_shown(anna)
    anna.press("b")
    anna.task("box", 20)
    assert anna.photo() == first
    anna.page.wait_for_timeout(500)
    ben.press("b")
    grid_shown(ben)
    anna.press("b")
    grid_shown(anna)
    names = [
        {label.split(", ")[1] for label in person.see("crop").evaluate_all("all => all.map(one => one.ariaLabel)")}
        for person in (anna, ben)
    ]
    assert not names[0] & names[1]
    assert alike_office.given() == []


def test_a_grid_answered_without_a_server_is_kept(alike_office: Office) -> None:
    browser = alike_office.browser("anna")
    anna = alike_office.tab(browser)
    anna.task("box", 30)
    anna.press("b")
    grid_shown(anna)
    alike_office.server.kill()
    anna.press("4", "Enter")
    anna.page.wait_for_function("() => document.querySelector('#save-state').textContent.includes('12 waiting')")
    anna.page.close()
    alike_office.server.start()
    again = alike_office.tab(browser)
    again.until(lambda state: state["budget"]["spent"] == 12, 30)
    assert sorted(verdict for _, verdict, _ in alike_office.given()) == ["not_an_object"] + ["object"] * 11


def test_a_grid_is_answered_by_touch(alike_office: Office) -> None:
    phone = alike_office.chrome.new_context(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)  # type: ignore[arg-type]
    for cookie in alike_office.cookies["anna"].jar:
        phone.add_cookies([{"name": cookie.name, "value": cookie.value or "", "url": alike_office.server.url}])
    anna = alike_office.tab(phone)
    anna.task("box", 30)
    anna.shoot("phone-offer")
    anna.see("grid").tap()
    grid_shown(anna)
    lefts = {round(anna.see("crop").nth(place).bounding_box()["x"]) for place in range(12)}
    assert len(lefts) == 3  # columns
    anna.see("crop").nth(7).tap()
    anna.shoot("phone-grid")
    anna.see("grid_answer").tap()
    anna.saved()
    grid_shown(anna)
    assert [verdict for _, verdict, _ in alike_office.given()].count("not_an_object") == 1
    assert anna.problems == []


def tour_text(person: Person) -> str:
    return person.page.locator("#tour-text").inner_text()


def test_a_newcomer_sees_the_tour_once(office: Office) -> None:
    browser = office.browser("anna")
    anna = office.tab(browser, tour=True)
    anna.see("tour").wait_for()
    assert anna.page.evaluate("document.body.dataset.task === 'box' && document.querySelector('#waiting').hidden")
    seen = [tour_text(anna)]
    anna.press("Enter")  # the button has the focus: no answer
    for _ in range(2):
        seen.append(tour_text(anna))
        anna.see("tour-next").click()
    seen.append(tour_text(anna))
    assert len(set(seen)) == 4
    assert [word for word in ("asks", "Answer", "Undo", "far") if word not in " ".join(seen)] == []
    assert office.given() == []
    anna.press("Enter")
    anna.see("tour").wait_for(state="hidden")
    anna.press("Enter", "x")  # keys answer again
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()] == ["object", "not_an_object"]
    ben = office.browser("ben")
    for person in (office.tab(browser, tour=True), office.tab(ben, tour=True)):
        person.task("box", 30)
        person.page.wait_for_timeout(300)
    assert person.see("tour").is_visible()  # another browser of another person
    assert not browser.pages[-1].get_by_test_id("tour").is_visible()
    assert anna.problems == []


def test_a_skipped_tour_stays_away_until_it_is_asked_for(office: Office) -> None:
    browser = office.browser("anna")
    anna = office.tab(browser, tour=True)
    anna.see("tour").wait_for()
    anna.press("Escape")
    anna.see("tour").wait_for(state="hidden")
    anna.page.reload()
    anna.task("box", 30)
    anna.page.wait_for_timeout(300)
    assert not anna.see("tour").is_visible()
    anna.press("?")
    anna.see("show-tour").click()
    anna.see("tour").wait_for()
    anna.see("tour-skip").click()
    anna.press("x")
    anna.saved()
    assert [verdict for _, verdict, _ in office.given()] == ["not_an_object"]
    assert anna.problems == []


def test_the_tour_waits_for_the_first_question(
    pictures: Sequence[ImageRecord], tmp_path: Path, chrome: Browser
) -> None:
    root = tmp_path / "project"
    make_project(root, pictures[:1], ("fish",)).store.close()
    with Served(root) as server:
        office = Office(server, chrome, server.cookies(("anna", "ben")), tmp_path)
        anna = office.tab(office.browser("anna"))
        anna.task("box", 30)
        ben = office.tab(office.browser("ben"), tour=True)
        ben.page.get_by_text("No questions right now").wait_for()
        ben.page.wait_for_timeout(300)
        assert not ben.see("tour").is_visible()
        anna.page.close()
        ben.see("tour").wait_for(timeout=30_000)
        assert ben.page.evaluate("document.body.dataset.task") == "box"
