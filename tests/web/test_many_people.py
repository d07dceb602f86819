"""Several people at one server that is killed repeatedly: nothing is answered twice or lost."""

import random
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import pytest

from rarebox.data.datasets import load
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.project.collect import collect
from rarebox.types import ImageRecord
from tests import tiny
from tests.serving import Served, make_project

CLASSES = ("fish", "ray", "shark")
ANSWERS, KILLS = 120, 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Sequence[ImageRecord]:
    return load(tiny.make_data(tmp_path_factory.mktemp("pictures"))).train.images[:10]


@pytest.fixture
def root(pictures: Sequence[ImageRecord], tmp_path: Path, database: str) -> Path:
    """A project of ten pictures with 100 questions each, a fifth of them for two people."""
    root = tmp_path / "project"
    settings = {"people__overlap": 0.2, "people__store": database if "://" in database else None}
    make_project(root, pictures, CLASSES, grid=10, **settings).store.close()
    return root


@dataclass
class Browser:
    """Answers as the page sends them: each has a key and is sent again until it is reported as saved."""

    url: str
    name: str
    cookies: httpx.Cookies
    chance: random.Random
    saved: dict[str, tuple[int, int]] = field(default_factory=dict)
    said: dict[str, dict[str, Any]] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    repeats: int = 0

    def work(self, answers: int) -> None:
        with httpx.Client(base_url=self.url, cookies=self.cookies, timeout=20) as http:
            queries = self.exchange(http, "/api/next", {})["queries"]
            while len(self.saved) < answers:
                known = {query["id"] for query in self.shown}
                self.shown += [query for query in queries if query["id"] not in known]
                items = [self.say(query) for query in queries[: self.chance.choice((1, 1, 1, 2, 3))]]
                self.said |= {item["key"]: item for item in items}
                reply = self.exchange(http, "/api/answers", {"answers": items})
                for result in reply["results"]:
                    assert result["status"] == "saved", result
                    self.saved[result["key"]] = (result["query"], result["answer"])
                queries = reply["queries"]

    def say(self, query: dict[str, Any]) -> dict[str, Any]:
        item = {"key": str(uuid4()), "query": query["id"], "milliseconds": self.chance.randrange(1, 3000)}
        if self.chance.random() < 0.2:
            return {**item, "verdict": "not_an_object"}
        return {**item, "verdict": "object", "boxes": [query["box"]], "labels": [self.chance.randrange(len(CLASSES))]}

    def exchange(self, http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                reply = http.post(path, json={"client": "tab", "want": 4, **body})
                if reply.status_code < 500:
                    assert reply.status_code == 200, reply.text
                    return reply.json()
            except httpx.TransportError:
                pass
            self.repeats += 1
            time.sleep(0.02)
        raise TimeoutError(path)


@pytest.mark.slow
def test_two_browsers_and_a_server_killed_five_times(root: Path) -> None:
    chance = random.Random()  # different moments each time
    with Served(root) as server, ThreadPoolExecutor(2) as pool:
        cookies = server.cookies(("anna", "ben"))
        browsers = [Browser(server.url, name, cookies[name], random.Random(name)) for name in cookies]
        working = [pool.submit(browser.work, ANSWERS) for browser in browsers]
        moments = sorted(chance.sample(range(10, 2 * ANSWERS - 60), KILLS))
        for moment in moments:
            while sum(len(browser.saved) for browser in browsers) < moment:
                assert not any(future.done() and future.exception() for future in working)
                time.sleep(0.002)
            time.sleep(chance.random() * 0.05)
            server.kill()
            server.start()
        for future in working:
            future.result()
    assert all(browser.repeats > 0 for browser in browsers)  # they noticed

    folder = RunFolder(root)
    with Store(folder.labels(folder.read_settings())) as store:
        given, asked = People(store).given(), {query.id: query for query in store.queries(2)}
    # Nothing is lost or doubled: the store holds what was reported as saved.
    saved = {answer: (query, browser.name) for browser in browsers for query, answer in browser.saved.values()}
    assert {one.id: (one.query.id, one.answer.by) for one in given} == saved
    assert len(saved) == sum(len(browser.saved) for browser in browsers) >= 2 * ANSWERS
    by_query: dict[int, list[str | None]] = defaultdict(list)
    for one in given:
        by_query[one.query.id].append(one.answer.by)
    assert all(len(set(people)) == len(people) <= asked[query].wanted for query, people in by_query.items())
    assert sum(len(people) == 2 for people in by_query.values()) > 20

    # Nobody was shown somebody else's question, and everybody got their questions in order.
    shown = {browser.name: [query["id"] for query in browser.shown] for browser in browsers}
    assert all(asked[query].wanted == 2 for query in set(shown["anna"]) & set(shown["ben"]))
    for browser in browsers:
        assert shown[browser.name] == sorted(set(shown[browser.name]))
        assert [query for query, _ in browser.saved.values()] == shown[browser.name][: len(browser.saved)]

    # The export contains all of it: the latest answer to each question.
    last = {query: answer for answer, (query, _) in sorted(saved.items())}
    told = {answer: browser.said[key] for browser in browsers for key, (_, answer) in browser.saved.items()}
    objects = {query: told[answer] for query, answer in last.items() if told[answer]["verdict"] == "object"}
    wanted = {
        (asked[query].image_id, *np.array(item["boxes"][0], dtype=np.float32).round(1), item["labels"][0])
        for query, item in objects.items()
    }
    _, _, annotations = collect(root)
    exported = [
        (one.image_id, *box.round(1), label)
        for one in annotations
        for box, label in zip(one.boxes, one.labels, strict=True)
    ]
    assert len(exported) == len(wanted)
    assert set(exported) == wanted


def test_a_lease_that_ends_while_somebody_thinks(root: Path) -> None:
    settings = root / "settings.yaml"
    settings.write_text(settings.read_text().replace("lease_seconds: 600.0", "lease_seconds: 1.0"))
    with Served(root) as server:
        cookies = server.cookies(("anna", "ben"))
        with (
            httpx.Client(base_url=server.url, cookies=cookies["anna"]) as anna,
            httpx.Client(base_url=server.url, cookies=cookies["ben"]) as ben,
        ):

            def say(browser: httpx.Client, query: int, want: int = 0) -> dict[str, Any]:
                item = {"key": str(uuid4()), "query": query, "verdict": "cannot_tell"}
                body = {"client": "tab", "want": want, "answers": [item]}
                return browser.post("/api/answers", json=body).raise_for_status().json()

            def ask(browser: httpx.Client, want: int) -> list[int]:
                reply = browser.post("/api/next", json={"client": "tab", "want": want}).raise_for_status().json()
                return [query["id"] for query in reply["queries"]]

            hers = ask(anna, 3)
            time.sleep(1.2)
            his = ask(ben, 2)
            assert his == hers[:2]  # her expired questions, before new ones
            (late,) = say(anna, hers[0])["results"]
            assert (late["status"], "somebody else" in late["reason"]) == ("refused", True)
            assert ask(anna, 0) == hers[2:]  # nobody claimed that one
            assert say(ben, his[0])["results"][0]["status"] == "saved"
            (later,) = say(anna, hers[0])["results"]
            assert (later["status"], later["current"]["by"]) == ("conflict", "ben")
            assert say(anna, hers[2])["results"][0]["status"] == "saved"


def test_small_replies_are_sent_at_once(root: Path) -> None:
    """If the system collects small packets, each request on an open connection waits 40 ms."""
    with Served(root) as server, httpx.Client(base_url=server.url) as browser:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            browser.get("/static/icon.svg").raise_for_status()
            times.append(time.perf_counter() - start)
    assert min(times[1:]) < 0.03
