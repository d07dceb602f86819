"""Several GPUs through ``torchrun``: rank 0 runs the whole loop, the other ranks only help it to train.

Everything but training (scoring, asking, the files on disk) happens on rank 0 alone, so the state of a run has one
writer however many processes there are. The helpers wait for a job, train along, and wait for the next.

While a fit lasts, its processes are a *crew*: each has its share of every batch, and what a batch has in common (the
size it is padded to, the counts that the losses are divided by) is agreed upon among them, through the CPU.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

import torch
from torch import distributed
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors.maps import CachedPicture
from rarebox.errors import TrainingDiverged, UserError
from rarebox.types import Bools, Picture, Targets

PATIENCE = timedelta(days=7)
"""How long a helper waits for its next job: rank 0 may be scoring a large pool meanwhile."""

PATIENCE_IN_A_FIT = timedelta(minutes=10)
"""How long a process waits for the others in a training step. One that ended is noticed at once, without this; it is
for a machine that has fallen silent."""

FAILED = 2
"""Exit status of a process that ends because another one did, and that one has said why."""


@dataclass(frozen=True)
class Job:
    """All that a helper needs to train along; the weights come from rank 0 when the training starts.

    ``device`` is the kind of rank 0's, such as ``cuda``; each has its own of that kind.
    """

    device: str
    detector: DetectorSettings
    training: TrainingSettings
    num_classes: int
    images: Sequence[Picture | CachedPicture]
    targets: Sequence[Targets]
    seed: int
    complete: Bools | None


@dataclass(frozen=True)
class Crew:
    """The processes of one fit: this one's place among them, how many they are, and how torch calls them.

    A process whose ``rank`` is not below ``size`` would never get an image and has no part in the fit.
    """

    rank: int = 0
    size: int = 1
    group: Any = None


_crew = Crew()


@contextmanager
def leading() -> Iterator[None]:
    """Be rank 0 of the processes that torchrun started while it lasts, and let the others go. Nothing without torchrun.

    Whatever ends one process ends them all, and the first that it ends says why: the others leave with FAILED and no
    word. Raises UserError in a process that finds another one gone without a word.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    with _joined():
        yield
        _next_job(None)


def follow(help_with: Callable[[Job], None]) -> None:
    """Be another rank: work through the leader's jobs, until it lets this process go. Ends as :func:`leading` does."""
    # Ctrl-C reaches all processes; rank 0 answers it, and the others end with rank 0.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _joined():
        while (job := _next_job(None)) is not None:
            with suppress(TrainingDiverged):  # so it has on rank 0, which says so
                help_with(job)


@contextmanager
def _joined() -> Iterator[None]:
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps one store for all its restarts, and with it the addresses of those who are gone.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE_IN_A_FIT)
    try:
        _waiting_room()
        yield
    except BaseException as error:
        # No tidying up: the others may wait inside a training step, and notice when this process ends.
        if _said_already(store):
            sys.exit(FAILED)
        if _is_loss_of_another(error):
            raise UserError(
                "another process of this training has ended, or cannot be reached any more; repeat the command to go "
                "on from the last checkpoint (torchrun --max-restarts 3 does so by itself)"
            ) from error
        raise
    distributed.destroy_process_group()


def local_rank() -> int:
    """This process's place on its machine, and so its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def processes() -> int:
    """How many there are, the leader included."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def call_helpers(job: Job) -> None:
    """On rank 0 with helpers: let them train along. Otherwise nothing."""
    if distributed.is_initialized() and distributed.get_rank() == 0:
        _next_job(job)


@contextmanager
def crew(batch_size: int) -> Iterator[Crew]:
    """Share batches of that size among the processes while it lasts, one image each at least.

    All processes must enter it together.
    """
    global _crew
    size = min(processes(), batch_size)
    if size > 1:
        _crew = Crew(distributed.get_rank(), size, _first(size))
    elif distributed.is_initialized():
        _crew = Crew(distributed.get_rank())
    try:
        yield _crew
    finally:
        _crew = Crew()


def crew_size() -> int:
    """Among how many processes a batch is shared just now."""
    return _crew.size


def total(*counts: int) -> tuple[int, ...]:
    """Each count summed over the crew."""
    return _agree(counts, torch.int64, distributed.ReduceOp.SUM)


def largest(*numbers: int) -> tuple[int, ...]:
    """The largest of each number in the crew."""
    return _agree(numbers, torch.int64, distributed.ReduceOp.MAX)


def mean(number: float) -> float:
    """The mean of a number over the crew, so that all of them see a loss that is not finite."""
    return _agree((number,), torch.float64, distributed.ReduceOp.SUM)[0] / _crew.size


def from_leader(value: Any) -> Any:
    """The leader's value, on every rank of the crew."""
    return _broadcast(value, _crew.group) if _crew.size > 1 else value


def _agree(numbers: tuple[Any, ...], dtype: torch.dtype, how: Any) -> tuple[Any, ...]:
    if _crew.size == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=dtype)
    distributed.all_reduce(tensor, how, group=_crew.group)
    return tuple(tensor.tolist())


@cache
def _first(size: int) -> Any:
    """The group of so many ranks; None is all of them."""
    if size == distributed.get_world_size():
        return None
    return distributed.new_group(range(size), timeout=PATIENCE_IN_A_FIT)


@cache
def _waiting_room() -> Any:
    """The group in which helpers wait for jobs."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def _next_job(job: Job | None) -> Job | None:
    return _broadcast(job, _waiting_room())


def _broadcast(value: Any, group: Any) -> Any:
    parcel = [value]
    distributed.broadcast_object_list(parcel, src=0, group=group, device=torch.device("cpu"))
    return parcel[0]


def _said_already(store: Any) -> bool:
    """Whether another process has said why all of them end; the first that asks is told that none has."""
    try:
        return store.add("ended", 1) > 1
    except RuntimeError:  # torchrun itself is gone
        return False


def _is_loss_of_another(error: BaseException) -> bool:
    # Gloo's errors have no type of their own.
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
