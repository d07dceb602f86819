"""The same work on a Ray cluster: shards of the pool by workers that hold the model, runs of a grid as tasks.

A worker receives everything but the images over the network, the model included, and returns tables, which the driver
(the process of the command) writes. So scoring needs no shared disk. A worker computes with as many threads as the
driver would, because the last bits of a float may depend on it. The work of a lost worker or node goes to another. Ray
is imported on connecting, the loop (and torch) where work begins.
"""

import os
import socket
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rarebox.config import Settings
from rarebox.core.files import real
from rarebox.errors import UserError, unknown_name
from rarebox.loop.dispatch import MOST_TRIES, Dispatcher, Lost
from rarebox.loop.metrics import CycleRecord
from rarebox.loop.worker import Scorer, about, run_in_grid
from rarebox.types import Candidates, ImageRecord, ImageScores

if TYPE_CHECKING:
    from rarebox.core.progress import Progress
    from rarebox.loop.run import EngineProgress, Run

MODEL = ("model.json", "model.safetensors")
"""The files of a saved model."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns
    "RAY_worker_niceness": "0",  # workers of a local cluster run at the priority of the command
}
"""Environment variables set before Ray starts, unless the user has set them."""

REACHABLE = 10.0
"""Seconds in which an address must accept a connection."""


def check(engine: str, address: str | None = None, settings: Settings | None = None) -> None:
    """Raise UserError for an engine that is unknown or not installed, for an address that does not answer, and for
    settings that only the engine ``local`` supports."""
    if engine not in ("local", "ray"):
        raise unknown_name("engine", engine, ("local", "ray"))
    if engine == "local" and address:
        raise UserError(f"--address {address} names a Ray cluster. Use it with --engine ray")
    if address is not None and not address.strip():
        raise UserError("--address is empty. Give HOST:PORT or auto, or omit it to use this machine alone")
    if engine == "ray" and settings and settings.training.freeze == "backbone":
        raise UserError(
            "the feature maps of a frozen backbone are stored on this machine, so other machines would compute them "
            "again in each cycle. Omit --engine ray, or set training.freeze to nothing"
        )
    if engine == "ray" and find_spec("ray") is None:
        raise UserError('Ray is not installed: pip install "rarebox[cluster]"')
    if address and "://" in address:
        raise UserError(
            f"--address {address}: the command must run on a node of the cluster. Run it there with --address auto, "
            "or submit it as a job: ray job submit -- rarebox …"
        )
    if address and address not in ("auto", "local"):
        host, _, port = address.rpartition(":")
        try:  # Ray itself would try for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=REACHABLE).close()
        except (ValueError, OverflowError):
            raise UserError(f"--address {address}: give HOST:PORT, or auto for the cluster of this machine") from None
        except OSError as error:
            raise UserError(
                f"--address {address}: nothing answers there ({error.strerror or error}). Start a cluster "
                "(ray start --head), and pass the address that it prints"
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
        what = (
            "Ray cannot be started on this machine" if address == "local" else f"--address {address}: no such cluster"
        )
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(
            f"{what} ({reason}). Pass --address auto for the cluster of this machine, HOST:PORT as printed by the head "
            f"of another one, or no address to use this machine alone{_token_hint(address)}"
        ) from error
    worker = sys.modules["ray._private.worker"]
    if hasattr(worker, "print_to_stdstream"):  # it would print lost workers among JSON and progress bars
        worker.print_to_stdstream = lambda *_, **__: None  # type: ignore[attr-defined]


def _token_hint(address: str) -> str:
    """A hint for the error message if this machine has a token of Ray: then the head may require it."""
    if (
        address == "local"
        or "RAY_AUTH_MODE" in os.environ
        or not os.path.exists(os.path.expanduser("~/.ray/auth_token"))
    ):
        return ""
    return ". If the cluster requires the token in ~/.ray/auth_token, run export RAY_AUTH_MODE=token and try again"


@dataclass
class Cluster:
    """A Ray cluster that this process is connected to."""

    ray: Any

    def score(
        self, run: "Run", cycle: int, shards: Sequence[Sequence[ImageRecord]], report: "EngineProgress"
    ) -> Iterator[tuple[int, Candidates, ImageScores]]:
        """The engine of :func:`rarebox.loop.shards.make_shards`: shards by workers, in any order."""
        ray, folder = self.ray, run.folder.cycle(cycle - 1)
        model = ray.put({name: (folder / name).read_bytes() for name in MODEL})
        needs, threads = self._needs(run.settings.device), about()["threads"]
        actor = ray.remote(Scorer).options(**needs, max_restarts=0, max_task_retries=0)
        start = partial(actor.remote, model, run.settings, cycle, threads)
        yield from Dispatcher(self, needs, start, shards, report).results()

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
        task = ray.remote(run_in_grid).options(
            **self._needs(settings.device), max_retries=0, num_returns="streaming", name=folder.name
        )
        lost: Exception | None = None
        for _ in range(MOST_TRIES):
            try:
                stream = task.remote(real(folder), settings, share and real(share), about()["threads"])
                while True:
                    kind, said = self.hear(stream)
                    if kind == "result":
                        return said
                    {"begun": begun, "progress": progress, "finished": finished}[kind](*said)
            except Lost as error:
                lost = error
        raise UserError(f"the worker of this run was lost {MOST_TRIES} times ({lost})")

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
        return {"num_cpus": max(1, min(about()["threads"], int(largest)))}

    def nodes(self) -> list[Mapping[str, float]]:
        """The resources of each node that is alive."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def room(self, needs: Mapping[str, int]) -> int:
        """How many workers with these needs fit on the idle cluster."""
        wanted = {name: needs[key] for name, key in (("CPU", "num_cpus"), ("GPU", "num_gpus")) if key in needs}
        return sum(min(int(node.get(name, 0) // count) for name, count in wanted.items()) for node in self.nodes())
