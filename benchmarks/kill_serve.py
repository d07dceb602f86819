"""Kill `rarebox serve` repeatedly, with SIGKILL and SIGTERM, while four people answer over HTTP.

The writers behave like the page: each answer has a key and is sent again, under the same key, until the server confirms
that it is saved. At the end the labels are exported, and every confirmed answer must be there exactly once.

    python -m benchmarks.kill_serve [--kills 200] [--writers 4] [--seed 0]

Prints one line of JSON. Exits with 1 if an answer is lost or doubled, if the server gave one another status than saved,
or if the server did not end within ten seconds after SIGTERM.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
from PIL import Image
from tests.serving import Served, make_project

from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.types import ImageRecord

IMAGES, SIDE, GRID = 40, 1000, 30
CLASSES = ("fish", "ray", "shark")
UNASKED = 0.15
"""Fraction of the answers that are a box drawn without a question."""

PAUSE = 0.02
"""Longest think time of a writer, in seconds."""

PATIENCE = 60
"""Seconds after which a writer without a reply gives up."""

Box = tuple[int, float, float, float, float]
"""Image id, x, y, width and height, rounded to a tenth of a pixel."""


@dataclass(frozen=True)
class Outcome:
    """The result. ``saved``: answers confirmed as saved; ``exported``: boxes in the export."""

    kills: dict[str, int]
    saved: int
    exported: int
    lost: int
    doubled: int
    not_saved: int
    slow_ends: int
    sent_again: int
    seconds: float

    @property
    def good(self) -> bool:
        return self.saved > 0 and not (self.lost or self.doubled or self.not_saved or self.slow_ends)


@dataclass
class Writer:
    """One person's browser."""

    url: str
    cookies: httpx.Cookies
    dice: random.Random
    over: Event
    saved: dict[str, Box] = field(default_factory=dict)
    not_saved: list[str] = field(default_factory=list)
    sent_again: int = 0

    def work(self) -> None:
        """Answer until ``over`` is set; the request in progress is completed."""
        with httpx.Client(base_url=self.url, cookies=self.cookies, timeout=20) as http:
            queries = self.exchange(http, "/api/next", {})["queries"]
            while not self.over.is_set():
                time.sleep(self.dice.random() * PAUSE)
                items = [self.say(query) for query in queries]
                if not items or self.dice.random() < UNASKED:
                    items.append(self.say(None))
                reply = self.exchange(http, "/api/answers", {"answers": [item for item, _ in items]})
                for result, (item, box) in zip(reply["results"], items, strict=True):
                    if result["status"] == "saved":
                        self.saved[item["key"]] = box
                    else:
                        self.not_saved.append(f"{result['status']}: {result['reason']}")
                queries = reply["queries"]

    def say(self, query: dict[str, Any] | None) -> tuple[dict[str, Any], Box]:
        """Return an answer with a unique box, and that box."""
        if query is None:
            about, x, y = {"image": self.dice.randrange(IMAGES) + 1}, 0.0, 0.0
            side, most = 5.0, SIDE - 20.0
        else:
            about, (x, y, *_), side, most = {"query": query["id"]}, query["box"], SIDE / GRID / 2, SIDE / GRID / 4
        x, y = (round(start + self.dice.random() * most, 1) for start in (x, y))
        image = about.get("image") or query["image"]["id"]  # type: ignore[index]
        item = {"key": str(uuid4()), "verdict": "object", "boxes": [[x, y, x + side, y + side]], **about}
        box = (image, x, y, round(side, 1), round(side, 1))
        return {**item, "labels": [self.dice.randrange(len(CLASSES))]}, box

    def exchange(self, http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request until it gets a reply."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            try:
                reply = http.post(path, json={"client": "tab", "want": 2, **body})
                if reply.status_code == 200:
                    return reply.json()
                if reply.status_code < 500:
                    raise RuntimeError(f"{path}: {reply.status_code} {reply.text}")
            except httpx.TransportError:
                pass
            self.sent_again += 1
            time.sleep(0.02)
        raise TimeoutError(f"{path}: no reply for {PATIENCE} s.")


def run(kills: int, writers: int, seed: int, folder: Path) -> Outcome:
    """Kill a server ``kills`` times, every second time with SIGTERM, and compare its store at the end."""
    dice, root, start = random.Random(seed), folder / "project", time.monotonic()
    Image.new("RGB", (SIDE, SIDE), (90, 120, 90)).save(folder / "photo.png")
    records = [ImageRecord(i, str(folder / "photo.png"), SIDE, SIDE) for i in range(1, IMAGES + 1)]
    make_project(root, records, CLASSES, grid=GRID).store.close()
    over, done, slow = Event(), Counter[str](), 0
    names = [f"writer {number}" for number in range(1, writers + 1)]
    with Served(root) as server, ThreadPoolExecutor(writers) as pool:
        cookies = server.cookies(names)
        crew = [Writer(server.url, cookies[name], random.Random(f"{seed} {name}"), over) for name in names]
        working = [pool.submit(writer.work) for writer in crew]
        try:
            for number in range(kills):
                time.sleep(dice.uniform(0.05, 0.5))
                which = signal.SIGKILL if number % 2 == 0 else signal.SIGTERM
                server.signal(which)
                server.process.join(10)
                if server.process.is_alive():
                    slow += 1
                    server.kill()
                done[which.name] += 1
                server.start()
                if any(future.done() for future in working):
                    break
        finally:
            over.set()
        for future in working:
            future.result()
        server.signal(signal.SIGTERM)
        server.process.join(10)
    return _compare(root, crew, dict(done), slow, time.monotonic() - start)


def _compare(root: Path, crew: Sequence[Writer], kills: dict[str, int], slow: int, seconds: float) -> Outcome:
    to = root.parent / "labels"
    command = [sys.executable, "-m", "rarebox", "export", str(root), str(to), "--format", "coco"]
    subprocess.run(command, check=True, capture_output=True)
    content = json.loads((to / "annotations.json").read_text(encoding="utf-8"))
    exported = Counter((one["image_id"], *(round(side, 1) for side in one["bbox"])) for one in content["annotations"])
    saved = Counter(box for writer in crew for box in writer.saved.values())
    with Store(RunFolder(root).store) as store:
        given = Counter(one.query.id for one in People(store).given())
    return Outcome(
        kills=kills,
        saved=sum(saved.values()),
        exported=sum(exported.values()),
        lost=sum((saved - exported).values()),
        doubled=sum((exported - saved).values()) + sum(count - 1 for count in given.values()),
        not_saved=sum(len(writer.not_saved) for writer in crew),
        slow_ends=slow,
        sent_again=sum(writer.sent_again for writer in crew),
        seconds=round(seconds, 1),
    )


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--writers", type=int, default=4)
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = run(chosen.kills, chosen.writers, chosen.seed, Path(folder))
    print(json.dumps(asdict(outcome)))
    return 0 if outcome.good else 1


if __name__ == "__main__":
    sys.exit(main())
