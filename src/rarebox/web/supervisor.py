"""The trainer's process as the server sees it: started, watched, told what to do, and started again."""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from threading import Lock, Thread
from typing import Any

COMMAND = (sys.executable, "-m", "rarebox.trainer")


class Supervisor:
    """One trainer for one project. ``told`` is called, on a thread of its own, with each event of it."""

    def __init__(self, root: Path, told: Callable[[str], None]) -> None:
        self._root, self._told = root, told
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._errors: deque[str] = deque(maxlen=20)
        self._stage: tuple[str, float, int] = ("", 0.0, 0)
        self._closed = False
        self.status: dict[str, Any] = _status("idle")

    @property
    def working(self) -> bool:
        return self.status["state"] == "working"

    def send(self, what: str) -> None:
        """``go on`` with what is due, or ``train`` without waiting for the budget; nothing while it is at work."""
        with self._lock:
            if self.working or self._closed:
                return
            self.status = _status("working", stage="starting")
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process
            assert self._process.stdin
            try:
                self._process.stdin.write(json.dumps({"do": what}) + "\n")
                self._process.stdin.flush()
            except OSError:
                pass  # it has just ended; the reader of its output says why
        self._told("progress")

    def close(self) -> None:
        """End the process, in the middle of whatever is going on: it resumes from the disk."""
        with self._lock:
            self._closed = True
            if self._process and self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def _start(self) -> None:
        self._errors.clear()
        self._process = subprocess.Popen(
            [*COMMAND, str(self._root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, encoding="utf-8", errors="replace",
        )  # fmt: skip
        Thread(target=self._listen, args=(self._process,), daemon=True).start()
        Thread(target=self._collect_errors, args=(self._process,), daemon=True).start()

    def _collect_errors(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr
        for line in process.stderr:
            self._errors.append(line.rstrip())

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # some library printed something
            self._hear(event)
        code = process.wait()
        if not self._closed:
            self.status = _status("failed", reason=self._why_it_ended(code))
            self._told("failed")

    def _hear(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            if self._stage[0] != event["stage"]:
                self._stage = (event["stage"], time.monotonic(), event["done"])
            _, since, first = self._stage
            done, left = event["done"] - first, event["of"] - event["done"]
            seconds = (time.monotonic() - since) / done * left if done > 0 else None
            self.status = _status("working", event["stage"], event["done"], event["of"], seconds, event["note"])
        elif kind == "idle":
            self.status = _status("idle")
        elif kind == "failed":
            self.status = _status("failed", reason=event["reason"])
        self._told(kind)

    def _why_it_ended(self, code: int) -> str:
        if code in (-9, 137):
            return (
                "the training process was killed, most often because the memory of the machine is full; lower "
                "training.batch_size or detector.image_size in settings.yaml if it happens again. No label is lost"
            )
        last = next((line for line in reversed(self._errors) if line.strip()), "no message")
        return f"the training process ended with status {code}: {last}. No label is lost"


def _status(
    state: str, stage: str | None = None, done: int = 0, of: int = 0, seconds_left: float | None = None,
    note: str = "", reason: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "state": state, "stage": stage, "done": done, "of": of, "note": note,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1), "reason": reason,
    }  # fmt: skip
