"""The same work on a Ray cluster: shards of the pool by workers that hold the model, runs of a grid as tasks.

A worker receives everything but the images over the network, the model included, and returns tables, which the driver
(the process of the command) writes. So scoring needs no shared disk. A worker computes with as many threads as the
driver would, because the last bits of a float may depend on it. The work of a lost worker or node goes to another. Ray
is imported on connecting, the loop (and torch) where work begins.
"""

import os
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Protocol

from rarebox.config import Settings
from rarebox.core.files import real
from rarebox.data.pictures import Pictures
from rarebox.data.remote import trust
from rarebox.errors import UserError, unknown_name
from rarebox.loop.metrics import CycleRecord
from rarebox.types import Candidates, ImageRecord, ImageScores

if TYPE_CHECKING:
    from rarebox.core.progress import Progress
    from rarebox.detectors import TorchDetector
    from rarebox.loop.run import EngineProgress, Run

MODEL = ("model.json", "model.safetensors")
"""The files of a saved model."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns
    "RAY_worker_niceness": "0",  # of a cluster that begins here: its work is the command's own, not what is left over
}
"""Environment variables set before Ray starts, unless the user has set them."""

PATIENCE = 600.0
"""Seconds without a single worker after which waiting for the cluster ends."""

REACHABLE = 10.0
"""Seconds in which an address must take a connection."""

MOST_TRIES = 4
"""How often a shard or run is started when its workers are lost. Then it is assumed to be the cause."""

TOLD_EVERY = 0.3
"""Seconds between two progress reports of a worker."""

SAME = ("rarebox", "torch")
"""Versions that a worker must share with the driver, for the same numbers."""


def check(engine: str, address: str | None = None, settings: Settings | None = None) -> None:
    """Raise UserError for an engine that is unknown or not installed, for an address that does not answer, and for
    settings that only the engine ``local`` supports."""
    if engine not in ("local", "ray"):
        raise unknown_name("engine", engine, ("local", "ray"))
    if engine == "local" and address:
        raise UserError(f"--address {address} says where a Ray cluster is; it goes with --engine ray")
    if address is not None and not address.strip():
        raise UserError("--address is empty; give HOST:PORT, or auto, or leave it out to use this machine alone")
    if engine == "ray" and settings and settings.training.freeze == "backbone":
        raise UserError(
            "what a frozen backbone has seen is kept on this machine, and others would have to look again in each "
            "cycle; leave out --engine ray, or train with training.freeze: nothing"
        )
    if engine == "ray" and find_spec("ray") is None:
        raise UserError('Ray is not installed: pip install "rarebox[cluster]"')
    if address and "://" in address:
        raise UserError(
            f"--address {address}: only a node of the cluster itself can give out work; run the command there with "
            "--address auto, or hand it over: ray job submit -- rarebox …"
        )
    if address and address not in ("auto", "local"):
        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE).close()
        except (ValueError, OverflowError):
            raise UserError(f"--address {address}: give HOST:PORT, or auto for the cluster of this machine") from None
        except OSError as error:
            raise UserError(
                f"--address {address}: nobody answers there ({error.strerror or error}); start a cluster "
                "(ray start --head), and name the address that it says"
            ) from None


@contextmanager
def connected(engine: str, address: str | None = None) -> "Generator[Cluster | None]":
    """Connect to the cluster of an engine; None for ``local``. Raises UserError as :func:`check` does.

    ``ray`` without an address starts a cluster on this machine, which ends with the command.
    """
    address = address or (os.environ.get("RAY_ADDRESS") if engine == "ray" else None)
    check(engine, address)
    if engine == "local":
        yield None
        return
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    cluster = Cluster(ray)
    if cluster.ray.is_initialized():
        yield cluster
        return
    _connect(ray, address or "local")
    try:
        yield cluster
    finally:
        cluster.ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    """Join the cluster, quietly."""
    options: dict[str, bool] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", configure_logging=True, **options)
    except (OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        what = "Ray does not start here" if address == "local" else f"--address {address}: no such cluster"
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{what} ({reason}). Give auto for the cluster that this machine is part of, HOST:PORT for the one whose "
            f"head says so, or no address for this machine alone{_token_hint(address)}"
        ) from error
    worker = sys.modules["ray._private.worker"]
    if hasattr(worker, "print_to_stdstream"):  # it would print what befalls workers, amid JSON and progress bars
        worker.print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]


def _token_hint(address: str) -> str:
    """A hint for the error message if this machine has a token of Ray: then the head may require it."""
    if (
        address == "local"
        or "RAY_AUTH_MODE" in os.environ
        or not os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    ):
        return ""
    return ". Or it wants the token in ~/.ray/auth_token: export RAY_AUTH_MODE=token, and try again"


@dataclass
class Cluster:
    """A Ray cluster that this process is connected to."""

    ray: Any

    def score(
        self, run: "Run", cycle: int, shards: Sequence[Sequence[ImageRecord]], report: "EngineProgress"
    ) -> Iterator[tuple[int, Candidates, ImageScores]]:
        """The engine of :func:`rarebox.loop.scoring.make_shards`: shards by workers, in any order."""
        ray, folder = self.ray, run.folder.cycle(cycle - 1)
        model = ray.put({name: (folder / name).read_bytes() for name in MODEL})
        needs, threads = self._needs(run.settings.device), _about()["threads"]
        actor = ray.remote(Scorer).options(**needs, max_restarts=0, max_task_retries=0)
        start = partial(actor.remote, model, run.settings, cycle, threads)
        yield from _Scoring(self, needs, start, shards, report).results()

    def run(
        self,
        folder: Path,
        settings: Settings,
        *,
        share: Path | None,
        progress: "Progress",
        finished: Callable[[CycleRecord], None],
        begun: Callable[[], None],
    ) -> list[CycleRecord]:
        """:func:`rarebox.loop.simulate.simulate` as a task; it resumes elsewhere if its worker is lost.

        The folder and the data set must be where they are on every node (a shared file system).
        """
        ray = self.ray
        task = ray.remote(_run).options(
            **self._needs(settings.device), max_retries=0, num_returns="streaming", name=folder.name
        )
        lost: Exception | None = None
        for _ in range(MOST_TRIES):
            try:
                stream = task.remote(real(folder), settings, share and real(share), _about()["threads"])
                while True:
                    kind, said = self.hear(stream)
                    if kind == "result":
                        return said
                    {"begun": begun, "progress": progress, "finished": finished}[kind](*said)
            except Lost as error:
                lost = error
        raise UserError(f"its worker was lost {MOST_TRIES} times ({lost})")

    def hear(self, stream: Iterator[object]) -> Any:
        """Return the next message of a worker. Raises Lost if the worker is lost, and the error that it raised."""
        exceptions = self.ray.exceptions
        try:
            return self.ray.get(next(stream))
        except exceptions.RayTaskError as error:
            cause = getattr(error, "cause", None)
            if not isinstance(cause, Exception) or isinstance(cause, exceptions.RayError):
                raise
            raise cause from (None if isinstance(cause, UserError) else error)  # the cause shows where
        except exceptions.RayError as error:
            raise Lost(next(iter(str(error).splitlines()), type(error).__name__)) from error

    def _needs(self, device: str) -> dict[str, int]:
        """The resources of a worker: a GPU, or as many cores as scoring uses here."""
        if device != "cpu" and self.ray.cluster_resources().get("GPU"):
            return {"num_gpus": 1, "num_cpus": 1}
        largest = max((node.get("CPU", 0) for node in self.nodes()), default=0)
        return {"num_cpus": max(1, min(_about()["threads"], int(largest)))}

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each node that is alive."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def room(self, needs: Mapping[str, int]) -> int:
        """How many workers with these needs fit on the idle cluster."""
        wanted = {name: needs[key] for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if key in needs}
        return sum(min(int(node.get(name, 0) // count) for name, count in wanted.items()) for node in self.nodes())


def _about() -> dict[str, Any]:
    """The versions and hardware of this process."""
    from rarebox.detectors.environment import describe

    return describe()


class Lost(Exception):
    """A worker or its node was lost."""


# ------------------------------------------------------------------------------------------- on a worker


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
        about = _about()
        yield {"pid": os.getpid(), **{name: about[name] for name in SAME}}

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


def _run(folder: Path, settings: Settings, share: Path | None, threads: int) -> Iterator[tuple[str, object]]:
    """Do a run of a grid: yield its events, then its records."""
    from rarebox.loop import simulate

    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there on the node {socket.gethostname()}; a grid on a cluster needs its folder and its "
            "data under the same path on every node, on a shared file system"
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
    """A function that says whether a report is due: every :data:`TOLD_EVERY` seconds, and always at the end."""
    last = 0.0

    def due(at_end: bool) -> bool:
        nonlocal last
        if not at_end and time.monotonic() - last <= TOLD_EVERY:
            return False
        last = time.monotonic()
        return True

    return due


def _told(work: Callable[[Callable[..., None]], object], threads: int) -> Iterator[tuple[str, object]]:
    """Do the work with this many threads. Yield its reports as (kind, what), and at last ("result", its result)."""
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


# ------------------------------------------------------------------------------------------- on the driver


class Method(Protocol):
    """A method of an actor, as Ray offers it."""

    def options(self, *, num_returns: str) -> "Method": ...
    def remote(self, *arguments: object) -> Iterator[object]: ...


class Worker(Protocol):
    """The handle of a :class:`Scorer` on a node."""

    @property
    def ready(self) -> Method: ...
    @property
    def score(self) -> Method: ...


class _Scoring:
    """The shards that are waiting, and the workers that are starting or scoring one."""

    def __init__(
        self,
        cluster: Cluster,
        needs: Mapping[str, int],
        start: Callable[[], Worker],
        shards: Sequence[Sequence[ImageRecord]],
        report: "EngineProgress",
    ) -> None:
        self.cluster, self.needs, self.start, self.shards, self.report = cluster, needs, start, shards, report
        self.waiting, self.tries = deque(range(len(shards))), [0] * len(shards)
        self.starting: dict[Iterator[object], Worker] = {}
        self.busy: dict[Iterator[object], tuple[Worker, int]] = {}
        self.idle: list[Worker] = []
        self.done: dict[int, int] = {}
        self.failed_starts = self.lost = 0
        self.reason = ""
        self.alive_at = time.monotonic()

    def results(self) -> Iterator[tuple[int, Candidates, ImageScores]]:
        """Yield the number and the scores of every shard, in the order of arrival."""
        try:
            while self.waiting or self.busy:
                self._start_workers()
                refs = [*self.starting, *self.busy]
                ready, _ = self.cluster.ray.wait(refs, num_returns=1, timeout=1.0) if refs else (time.sleep(1.0), 0)
                for ref in ready or ():
                    if ref in self.starting:
                        self._started(ref)
                    elif (result := self._heard(ref)) is not None:
                        yield result
                self._watch()
        finally:
            for actor in [*self.starting.values(), *self.idle, *(actor for actor, _ in self.busy.values())]:
                with suppress(Exception):
                    self.cluster.ray.kill(actor)

    def _start_workers(self) -> None:
        """Start as many workers as the cluster has room for, on new nodes too, and as there are shards."""
        wanted = min(self.cluster.room(self.needs), len(self.waiting) + len(self.busy))
        for _ in range(wanted - len(self.starting) - len(self.busy) - len(self.idle)):
            actor = self.start()
            self.starting[actor.ready.options(num_returns="streaming").remote()] = actor

    def _started(self, ref: Iterator[object]) -> None:
        actor = self.starting.pop(ref)
        try:
            about = self.cluster.hear(ref)
        except (Lost, ImportError) as error:
            self.failed_starts, self.reason = self.failed_starts + 1, str(error)
            if self.failed_starts >= MOST_TRIES and not self.busy:
                raise UserError(
                    f"no worker of the cluster starts ({self.reason}); every node needs the same rarebox and Python"
                ) from error
            return
        here = _about()
        if other := [f"{name} {about[name]} there, {here[name]} here" for name in SAME if about[name] != here[name]]:
            raise UserError(f"the nodes of the cluster run other versions ({', '.join(other)}); install the same")
        self.failed_starts = 0
        self._give(actor)

    def _give(self, actor: Worker) -> None:
        """Assign the next shard to a free worker. Without a shard it stays idle, as another worker may be lost."""
        if not self.waiting:
            self.idle.append(actor)
            return
        number = self.waiting.popleft()
        self.tries[number] += 1
        self.busy[actor.score.options(num_returns="streaming").remote(self.shards[number])] = (actor, number)

    def _heard(self, stream: Iterator[object]) -> tuple[int, Candidates, ImageScores] | None:
        """Read a message of a worker. Return the scores of its shard if they are complete."""
        actor, number = self.busy[stream]
        try:
            kind, said = self.cluster.hear(stream)
        except Lost as error:
            del self.busy[stream]
            self.lost, self.reason = self.lost + 1, str(error)
            self.done[number] = 0
            self.waiting.appendleft(number)
            if self.tries[number] >= MOST_TRIES:
                name = self.shards[number][0].path
                raise UserError(
                    f"the shard of {name} has cost {MOST_TRIES} workers ({error}); if their memory is full, lower "
                    "scoring.batch_size"
                ) from error
            if self.idle:
                self._give(self.idle.pop())
            return None
        if kind == "progress":
            self.done[number] = said[0]
            return None
        del self.busy[stream]
        self.done[number] = len(self.shards[number])
        self._give(actor)
        return number, *said

    def _watch(self) -> None:
        """Report the progress. Raises UserError if the cluster has had no worker for :data:`PATIENCE` seconds."""
        at_work = len(self.busy)
        lost = f"; {self.lost} lost" if self.lost else ""
        workers = f" by {at_work} worker{'s' * (at_work != 1)}" if at_work else "; workers are starting"
        self.report(sum(self.done.values()), workers + lost)
        if at_work:
            self.alive_at = time.monotonic()
        elif time.monotonic() - self.alive_at > PATIENCE and self.waiting:
            wanted = {name.removeprefix("num_"): count for name, count in self.needs.items() if name.startswith("num_")}
            raise UserError(
                f"no worker for {PATIENCE / 60:.0f} minutes: one needs {wanted}, the nodes have "
                f"{[dict(node) for node in self.cluster.nodes()]}"
            )
