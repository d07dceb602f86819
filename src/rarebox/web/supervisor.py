"""Supervises the trainer's process: starts it, sends it commands, watches it, and restarts it."""

import json
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from threading import Lock, Thread
from typing import IO, Literal

from rarebox.core.files import sweep
from rarebox.web.replies import Trainer

COMMAND = (sys.executable, "-m", "rarebox.project.trainer")

CLOSING_SECONDS = 5
"""How long the server waits for the end of a killed trainer's output."""

LONGEST_REASON = 300
"""Characters of an unexpected error that the page shows."""

OUTPUT_SECONDS = 2.0
"""How long the server reads a process's output after its end."""


class Supervisor:
    """One trainer for one project. ``told`` is called with the name of each of its events, on a separate thread.
    ``engine`` is where it scores the pool: a name, and perhaps an address."""

    def __init__(self, root: Path, told: Callable[[str], None], engine: Sequence[str] = ()) -> None:
        self._root, self._told, self._engine = root, told, engine
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None
        self._follower: Thread | None = None
        self._stage: tuple[str, float, int] = ("", 0.0, 0)
        self._closed = False
        self._wanted = "go on"
        self.status: Trainer = IDLE

    @property
    def working(self) -> bool:
        return self.status["state"] == "working"

    def send(self, what: str) -> None:
        """Send a command: ``go on`` with what is due, ``train`` before the budget is spent, or ``rank on`` when the
        saved part of the ranking is used up. Does nothing while the trainer works. If the process cannot be started,
        the status says why."""
        with self._lock:
            if self.working or self._closed:
                return
            self._wanted, self.status = what, _status("working", stage="starting")
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                assert self._process
                assert self._process.stdin
                with suppress(BrokenPipeError, ValueError):  # it has just ended; `_follow` reports why
                    self._process.stdin.write(json.dumps({"do": what}) + "\n")
                    self._process.stdin.flush()
            except (OSError, MemoryError, RuntimeError) as error:  # RuntimeError: no thread can be started
                if self._process:
                    self._process.kill()
                self._process, self.status = None, _status("failed", reason=_why_it_did_not_start(error))
        self._told("failed" if self.status["state"] == "failed" else "progress")

    def again(self) -> None:
        """Send the last command again."""
        self.send(self._wanted)

    def close(self) -> None:
        """Kill the process. The next one resumes from the disk."""
        with self._lock:
            self._closed = True
            if self._process:
                self._process.kill()
        if self._follower:
            self._follower.join(CLOSING_SECONDS)  # a child of it may hold its output open

    def _start(self) -> None:
        sweep(self._root)  # no other process is writing there
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
            Thread(target=_read, args=(process.stdout, partial(self._hear, process)), daemon=True),
            Thread(target=_read, args=(process.stderr, complaints.append), daemon=True),
        ]
        self._follower = Thread(target=self._follow, args=(process, readers, complaints), daemon=True)
        for thread in (*readers, self._follower):
            thread.start()

    def _follow(self, process: subprocess.Popen[str], readers: Sequence[Thread], complaints: Iterable[str]) -> None:
        """Wait for the end of a process and report it, even if a child of it still holds its output open."""
        process.wait()
        until = time.monotonic() + OUTPUT_SECONDS
        for reader in readers:
            reader.join(max(until - time.monotonic(), 0))
        assert process.stdin
        with suppress(OSError):  # an unread command cannot be flushed
            process.stdin.close()
        with self._lock:
            if self._closed or process is not self._process:
                return
            sweep(self._root)  # half-written files would keep a full disk full
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
                self._wanted, self.status = "go on", IDLE
            elif kind == "failed":
                self.status = _status("failed", reason=event["reason"])
        except (ValueError, TypeError, KeyError):
            return  # a library printed something
        self._told(kind)

    def _progress(self, stage: str, done: int, of: int, note: str) -> Trainer:
        if self._stage[0] != stage:
            self._stage = (stage, time.monotonic(), done)
        _, since, first = self._stage
        seconds = (time.monotonic() - since) / (done - first) * (of - done) if done > first else None
        return _status("working", stage, done, of, seconds, note)


def _read(stream: IO[str], hear: Callable[[str], None]) -> None:
    """Pass on each line of a stream until its other end is closed."""
    with stream:
        for line in stream:
            hear(line)


def _why_it_did_not_start(error: BaseException) -> str:
    said = (error.strerror if isinstance(error, OSError) else str(error)) or "the machine is out of memory"
    return f"The training process could not be started ({said}). No label is lost. Free some memory and try again."


def _why_it_ended(code: int, complaints: Iterable[str]) -> str:
    if code in (-9, 137):
        return (
            "The training process was killed, most often because the machine is out of memory. No label is lost. If it "
            "happens again, lower training.batch_size or detector.image_size in settings.yaml."
        )
    last = [line.strip() for line in complaints if line.strip()][-1:] or ["no message"]
    return f"The training process ended with status {code}: {last[0][:LONGEST_REASON]}. No label is lost. Try again."


def _status(
    state: Literal["idle", "working", "failed"],
    stage: str | None = None,
    done: int = 0,
    of: int = 0,
    seconds_left: float | None = None,
    note: str = "",
    reason: str | None = None,
) -> Trainer:
    return {
        "state": state,
        "stage": stage,
        "done": done,
        "of": of,
        "note": note,
        "seconds_left": None if seconds_left is None else round(seconds_left, 1),
        "reason": reason,
    }


IDLE = _status("idle")
"""The status of a waiting trainer."""
