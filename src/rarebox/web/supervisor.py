"""The trainer's process as the server sees it: started, watched, told what to do, and started again."""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Any

from rarebox.core.files import sweep

COMMAND = (sys.executable, "-m", "rarebox.project.trainer")

CLOSING_SECONDS = 5
"""How long the end of a killed trainer's output is waited for."""

LONGEST_REASON = 300
"""Characters of an unexpected error that people are shown."""

LAST_WORDS = 2.0
"""Seconds in which what a process said before its end is still read."""


class Supervisor:
    """One trainer for one project. ``told`` is called, on a thread of its own, with each event of it. ``engine`` is
    where it scores the pool: a name, and perhaps an address."""

    def __init__(self, root: Path, told: Callable[[str], None], engine: Sequence[str] = ()) -> None:
        self._root, self._told, self._engine = root, told, engine
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._follower: Thread | None = None
        self._stage: tuple[str, float, int] = ("", 0.0, 0)
        self._closed = False
        self._wanted = "go on"
        self.status: dict[str, Any] = _status("idle")

    @property
    def working(self) -> bool:
        return self.status["state"] == "working"

    def send(self, what: str) -> None:
        """``go on`` with what is due, ``train`` without waiting for the budget, or ``rank on`` where what is kept of
        the ranking is used up; nothing while it is at work. Where it cannot be started the status says so."""
        with self._lock:
            if self.working or self._closed:
                return
            self._wanted, self.status = what, _status("working", stage="starting")
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._process
                assert self._process.stdin
                with suppress(BrokenPipeError, ValueError):  # it has just ended; who waits for it says why
                    self._process.stdin.write(json.dumps({"do": what}) + "\n")
                    self._process.stdin.flush()
            except (OSError, MemoryError, RuntimeError) as error:  # the last: no thread to be had
                if self._process:
                    self._process.kill()
                self._process, self.status = None, _status("failed", reason=_why_it_did_not_start(error))
        self._told("failed" if self.status["state"] == "failed" else "progress")

    def again(self) -> None:
        """What it was told last, once more."""
        self.send(self._wanted)

    def close(self) -> None:
        """End the process, in the middle of whatever is going on: it resumes from the disk."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()
        if self._follower:
            self._follower.join(CLOSING_SECONDS)  # something that it started may hold its output open

    def _start(self) -> None:
        sweep(self._root)  # nobody writes there now
        process = self._process = subprocess.Popen(
            [*COMMAND, str(self._root), *self._engine],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdout
        assert process.stderr
        complaints: deque[str] = deque(maxlen=20)
        readers = [
            Thread(target=_read, args=(process.stdout, lambda line: self._hear(process, line)), daemon=True),
            Thread(target=_read, args=(process.stderr, complaints.append), daemon=True),
        ]
        self._follower = Thread(target=self._follow, args=(process, readers, complaints), daemon=True)
        for thread in (*readers, self._follower):
            thread.start()

    def _follow(self, process: subprocess.Popen[str], readers: Sequence[Thread], complaints: Iterable[str]) -> None:
        """Wait for the end of a process, which counts as working no longer, whoever still holds its output open."""
        process.wait()
        until = time.monotonic() + LAST_WORDS
        for reader in readers:
            reader.join(max(until - time.monotonic(), 0))
        assert process.stdin
        with suppress(OSError):  # a command that it did not read any more cannot be flushed
            process.stdin.close()
        with self._lock:
            if self._closed or process is not self._process:
                return
            sweep(self._root)  # what was half-written would keep a full disk full
            self.status = _status("failed", reason=_why_it_ended(process.returncode, [*complaints]))
        self._told("failed")

    def _hear(self, process: subprocess.Popen[str], line: str) -> None:
        if process is not self._process:
            return
        try:
            event = json.loads(line)
            kind = event["event"]
            if kind == "progress":
                self.status = self._progress(event["stage"], event["done"], event["of"], event["note"])
            elif kind == "idle":
                self._wanted, self.status = "go on", _status("idle")
            elif kind == "failed":
                self.status = _status("failed", reason=event["reason"])
        except (ValueError, TypeError, KeyError):
            return  # some library printed something
        self._told(kind)

    def _progress(self, stage: str, done: int, of: int, note: str) -> dict[str, Any]:
        if self._stage[0] != stage:
            self._stage = (stage, time.monotonic(), done)
        _, since, first = self._stage
        seconds = (time.monotonic() - since) / (done - first) * (of - done) if done > first else None
        return _status("working", stage, done, of, seconds, note)


def _read(stream: IO[str], hear: Callable[[str], None]) -> None:
    """Hand on the lines of a stream until nobody holds its other end."""
    with stream:
        for line in stream:
            hear(line)


def _why_it_did_not_start(error: BaseException) -> str:
    said = (error.strerror if isinstance(error, OSError) else str(error)) or "the memory of the machine is full"
    return f"the training process could not be started ({said}). No label is lost; try again, or free some memory first"


def _why_it_ended(code: int, complaints: Iterable[str]) -> str:
    if code in (-9, 137):
        return (
            "the training process was killed, most often because the memory of the machine is full; lower "
            "training.batch_size or detector.image_size in settings.yaml if it happens again. No label is lost"
        )
    last = [line.strip() for line in complaints if line.strip()][-1:] or ["no message"]
    return f"the training process ended with status {code}: {last[0][:LONGEST_REASON]}. No label is lost; try again"


def _status(
    state: str,
    stage: str | None = None,
    done: int = 0,
    of: int = 0,
    seconds_left: float | None = None,
    note: str = "",
    reason: str | None = None,
) -> dict[str, Any]:
    return {
        "state": state,
        "stage": stage,
        "done": done,
        "of": of,
        "note": note,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
        "reason": reason,
    }
