"""The work of a Ray worker: scoring shards with the model that it holds, or executing a run of a grid."""

import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from rarebox.config import Settings
from rarebox.data.pictures import Pictures
from rarebox.data.remote import trust
from rarebox.errors import UserError
from rarebox.loop.metrics import CycleRecord
from rarebox.types import Candidates, ImageRecord, ImageScores

if TYPE_CHECKING:
    from rarebox.detectors import TorchDetector

TOLD_EVERY = 0.3
"""Seconds between two progress reports of a worker."""

SAME = ("rarebox", "torch")
"""Versions that a worker must share with the driver, for the same numbers."""


def about() -> dict[str, Any]:
    """The versions and hardware of this process."""
    from rarebox.detectors.environment import describe

    return describe()


class Scorer:
    """A worker that holds the model of a cycle."""

    def __init__(self, model: Mapping[str, bytes], settings: Settings, cycle: int, threads: int) -> None:
        self.model: Mapping[str, bytes] = model
        self.settings, self.cycle, self.threads = settings, cycle, threads
        self.detector: TorchDetector | None = None
        trust(settings.data)

    def ready(self) -> Iterator[dict[str, object]]:
        """Load the model, and yield the versions and the process id of this worker."""
        from rarebox import detectors

        with tempfile.TemporaryDirectory() as folder:
            for name, content in self.model.items():
                (Path(folder) / name).write_bytes(content)
            self.detector = detectors.load(Path(folder), self.settings.device, self.settings.training)
        self.model = {}
        versions = about()
        yield {"pid": os.getpid(), **{name: versions[name] for name in SAME}}

    def score(self, images: Sequence[ImageRecord]) -> Iterator[tuple[str, object]]:
        """Yield progress reports on a shard, then its candidates and image scores."""
        from rarebox.loop import scoring

        detector = self.detector
        assert detector is not None
        pictures, due = Pictures(images, self.settings.detector.size, keep_bytes=0), _seldom()

        def work(tell: Callable[..., None]) -> tuple[Candidates, ImageScores]:
            def report(done: int) -> None:
                if due(done == len(images)):
                    tell("progress", done)

            return scoring.score_images(detector, pictures, self.settings, self.cycle, report)

        yield from _told(work, self.threads)


def run_in_grid(folder: Path, settings: Settings, share: Path | None, threads: int) -> Iterator[tuple[str, object]]:
    """Execute a run of a grid: yield its events, then its records."""
    from rarebox.loop import simulate

    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist on the node {socket.gethostname()}. Put the folder of the grid and its data on a "
            "shared file system, under the same path on every node"
        )
    yield "begun", ()
    due = _seldom()

    def work(tell: Callable[..., None]) -> list[CycleRecord]:
        def progress(stage: str, done: int, of: int, note: str) -> None:
            if due(done == of):
                tell("progress", stage, done, of, note)

        finished = partial(tell, "finished")
        return simulate.simulate(folder, settings, share=share, finished=finished, progress=progress)

    yield from _told(work, threads)


def _seldom() -> Callable[[bool], bool]:
    """A function that returns whether a report is due: every :data:`TOLD_EVERY` seconds, and always at the end."""
    last = 0.0

    def due(at_end: bool) -> bool:
        nonlocal last
        if not at_end and time.monotonic() - last <= TOLD_EVERY:
            return False
        last = time.monotonic()
        return True

    return due


def _told(work: Callable[[Callable[..., None]], object], threads: int) -> Iterator[tuple[str, object]]:
    """Do the work with this many threads. Yield its reports as (kind, what), and finally ("result", its result)."""
    from rarebox.detectors.environment import compute_with

    said: SimpleQueue[tuple[str, object]] = SimpleQueue()

    def tell(kind: str, *what: object) -> None:
        said.put((kind, what))

    def go() -> None:
        try:
            compute_with(threads)
            said.put(("result", work(tell)))
        except BaseException as error:
            said.put(("error", error))

    Thread(target=go, daemon=True).start()
    while True:
        kind, what = said.get()
        if isinstance(what, BaseException):
            raise what
        yield kind, what
        if kind == "result":
            return
