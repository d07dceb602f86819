"""Helpers for tests of the page: a real browser, a real server and a person at the keyboard."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

LAPTOP = {"width": 1366, "height": 768}
PHONE = {"width": 390, "height": 844}


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(QUIET))
        try:
            yield browser
        finally:
            browser.close()


def rarebox(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line as a person would."""
    command = [sys.executable, "-m", "rarebox", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


@contextmanager
def served(project: Path, *options: str) -> Iterator[str]:
    """Run `rarebox serve` and yield the link that it prints."""
    command = [sys.executable, "-m", "rarebox", "serve", str(project), "--no-browser", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            printed = ""
            while not (link := re.search(r"http://\S+\?token=\S+", printed)):
                line = server.stderr.readline()
                assert line, f"the server ended: {printed}"
                printed += line
            yield link.group(0)
        finally:
            server.terminate()
            server.wait(20)


class Person:
    """A person at the page: what they see, press and drag. They have seen the tour, unless ``tour``."""

    def __init__(self, page: Page, shots: Path, tour: bool = False) -> None:
        self.page, self.shots = page, shots
        if not tour:
            page.add_init_script("try { localStorage.setItem('rarebox/tour', 'true') } catch {}")
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._hear)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.problems.append(message.text)

    def see(self, name: str) -> Any:
        return self.page.get_by_test_id(name)

    def task(self, kind: str, seconds: float = 400) -> None:
        """Wait until a task of this kind is shown: ``image``, ``box`` or ``none``."""
        self.page.wait_for_function(
            "kind => document.body.dataset.task === kind && document.querySelector('#waiting').hidden",
            arg=kind,
            timeout=seconds * 1000,
        )

    def photo(self) -> str:
        return self.page.locator("[data-fact=photo] b").inner_text()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def saved(self) -> None:
        """Wait until the page reports that everything is saved."""
        self.page.wait_for_function(
            "() => document.querySelector('#save-state').dataset.state === 'saved'", timeout=20_000
        )

    def drag(self, box: Any, width: int, height: int) -> None:
        """Draw a box given in pixels of the photo. Wait first, because the page moves the picture in its next frame."""
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        frame = self.page.locator("#stage .picture").bounding_box()
        assert frame
        x, y = frame["width"] / width, frame["height"] / height
        mouse = self.page.mouse
        mouse.move(frame["x"] + float(box[0]) * x, frame["y"] + float(box[1]) * y)
        mouse.down()
        mouse.move(frame["x"] + float(box[0] + box[2]) / 2 * x, frame["y"] + float(box[1] + box[3]) / 2 * y)
        mouse.move(frame["x"] + float(box[2]) * x, frame["y"] + float(box[3]) * y)
        mouse.up()

    def shoot(self, name: str) -> None:
        self.page.screenshot(path=str(self.shots / f"{name}.png"))

    def until(self, accepts: Callable[[dict[str, Any]], bool], seconds: float = 20) -> dict[str, Any]:
        """Wait until `accepts` is true for the state, and return the state."""
        end = time.monotonic() + seconds
        while not accepts(state := self.state()):
            assert time.monotonic() < end, state
            self.page.wait_for_timeout(200)
        return state

    def state(self) -> dict[str, Any]:
        return self.page.evaluate("fetch('/api/state').then(answer => answer.json())")
