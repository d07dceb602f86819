"""Distributes the shards of a pool among the workers of a Ray cluster, which may be lost or added at any time."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

from rarebox.errors import UserError
from rarebox.loop.worker import SAME, about
from rarebox.types import Candidates, ImageRecord, ImageScores

if TYPE_CHECKING:
    from rarebox.loop.cluster import Cluster
    from rarebox.loop.run import EngineProgress

PATIENCE = 600.0
"""Seconds without a single worker after which waiting for the cluster ends."""

MOST_TRIES = 4
"""How often a shard or run is started when its workers are lost, before it is assumed to be the cause."""


class Lost(Exception):
    """A worker or its node was lost."""


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


class Dispatcher:
    """The shards that are waiting, and the workers that are starting or scoring one."""

    def __init__(
        self,
        cluster: "Cluster",
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
            there = self.cluster.hear(ref)
        except (Lost, ImportError) as error:
            self.failed_starts, self.reason = self.failed_starts + 1, str(error)
            if self.failed_starts >= MOST_TRIES and not self.busy:
                raise UserError(
                    f"no worker starts on the cluster ({self.reason}). Every node needs the same rarebox and Python"
                ) from error
            return
        here = about()
        if other := [f"{name} {there[name]} there, {here[name]} here" for name in SAME if there[name] != here[name]]:
            raise UserError(f"the nodes of the cluster run different versions ({', '.join(other)}). Install the same")
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
                    f"{MOST_TRIES} workers were lost while scoring the shard of {name} ({error}). If their memory is "
                    "full, lower scoring.batch_size"
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
