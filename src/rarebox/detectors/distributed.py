"""Several GPUs through ``torchrun``: rank 0 runs the loop, and the other ranks help it to train.

Rank 0 alone scores, asks and writes files, so the state of a run has one writer. The helpers wait for a job, train,
and wait for the next job.

The processes of one fit are a *crew*. Each takes a part of every batch. They agree on what the batch has in common (its
padded size, the counts that the losses are divided by) through the CPU.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import TypeVar, cast

import torch
from torch import distributed
from torch.distributed import PrefixStore, ProcessGroup  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors.maps import CachedPicture
from rarebox.detectors.teacher import Renewal
from rarebox.errors import TrainingDiverged, UserError
from rarebox.types import Bools, Picture, Targets

T = TypeVar("T")
Number = TypeVar("Number", int, float)

JOB_TIMEOUT = timedelta(days=7)
"""How long a helper waits for its next job; rank 0 may be scoring a large pool."""

STEP_TIMEOUT = timedelta(minutes=10)
"""How long a process waits for the others in a training step. It covers machines that stop responding; the end of a
process is noticed at once."""

FAILED = 2
"""Exit status of a process that ends because another one failed and has reported why."""


@dataclass(frozen=True)
class Job:
    """What a helper needs to take part in a fit. Rank 0 sends the weights when the fit starts.

    ``device`` is the type of rank 0's device, such as ``cuda``; each process has its own device of that type.
    """

    device: str
    detector: DetectorSettings
    training: TrainingSettings
    num_classes: int
    images: Sequence[Picture | CachedPicture]
    targets: Sequence[Targets]
    seed: int
    complete: Bools | None
    renewal: Renewal | None = None


@dataclass(frozen=True)
class Crew:
    """The processes of one fit: the rank of this one, their number, and torch's group (None for all ranks).

    A process whose ``rank`` is not below ``size`` would get no image and takes no part in the fit.
    """

    rank: int = 0
    size: int = 1
    group: ProcessGroup | None = None


_crew = Crew()


@contextmanager
def leading() -> Iterator[None]:
    """Act as rank 0 of the processes that torchrun started, and release the helpers at the end.

    Without torchrun this does nothing. An error in one process ends all of them: the first reports it, the others exit
    with FAILED. Raises UserError in a process that finds another one gone without a report.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield
        return
    with _joined():
        yield
        _next_job(None)


def follow(help_with: Callable[[Job], None]) -> None:
    """Act as a helper: do the leader's jobs until it releases this process. Errors end it as in :func:`leading`."""
    # Ctrl-C reaches all processes; rank 0 handles it, and the others end with rank 0.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with _joined():
        while (job := _next_job(None)) is not None:
            with suppress(TrainingDiverged):  # rank 0 reports it
                help_with(job)


@contextmanager
def _joined() -> Iterator[None]:
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    store, rank, size = next(rendezvous("env://"))
    # torchrun keeps one store over restarts, which would hold addresses of ended processes.
    store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    backend = "cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=STEP_TIMEOUT)
    try:
        _waiting_room()
        yield
    except BaseException as error:
        # No clean-up: processes that wait in a training step notice when this one ends.
        if _is_reported(store):
            sys.exit(FAILED)
        if _is_loss_of_another(error):
            raise UserError(
                "another process of this training has ended or cannot be reached. Repeat the command to resume from "
                "the last checkpoint (torchrun --max-restarts 3 does so automatically)"
            ) from error
        raise
    distributed.destroy_process_group()


def local_rank() -> int:
    """The rank of this process on its machine, which is also the index of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def processes() -> int:
    """How many processes there are, including the leader."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def call_helpers(job: Job) -> None:
    """Start a job on the helpers of rank 0. Does nothing on other ranks and without helpers."""
    if distributed.is_initialized() and distributed.get_rank() == 0:
        _next_job(job)


@contextmanager
def crew(batch_size: int) -> Iterator[Crew]:
    """Split batches of that size among the processes, at least one image each. All processes must enter together."""
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
    """How many processes split the current batch."""
    return _crew.size


def total(*counts: int) -> tuple[int, ...]:
    """Each count summed over the crew."""
    return _agree(counts, torch.int64, distributed.ReduceOp.SUM)


def largest(*numbers: int) -> tuple[int, ...]:
    """The maximum of each number over the crew."""
    return _agree(numbers, torch.int64, distributed.ReduceOp.MAX)


def mean(number: float) -> float:
    """The mean of a number over the crew, so that all processes notice a loss that is not finite."""
    return _agree((number,), torch.float64, distributed.ReduceOp.SUM)[0] / _crew.size


def from_leader(value: T) -> T:
    """The leader's value, on every rank of the crew."""
    return _broadcast(value, _crew.group) if _crew.size > 1 else value


def _agree(numbers: tuple[Number, ...], dtype: torch.dtype, how: distributed.ReduceOp.RedOpType) -> tuple[Number, ...]:
    if _crew.size == 1:
        return numbers
    tensor = torch.tensor(numbers, dtype=dtype)
    distributed.all_reduce(tensor, how, group=_crew.group)
    return tuple(tensor.tolist())


@cache
def _first(size: int) -> ProcessGroup | None:
    """The group of the first ``size`` ranks; None for all of them."""
    if size == distributed.get_world_size():
        return None
    return cast(ProcessGroup, distributed.new_group(range(size), timeout=STEP_TIMEOUT))


@cache
def _waiting_room() -> ProcessGroup:
    """The group in which helpers wait for jobs."""
    return cast(ProcessGroup, distributed.new_group(backend="gloo", timeout=JOB_TIMEOUT))


def _next_job(job: Job | None) -> Job | None:
    return _broadcast(job, _waiting_room())


def _broadcast(value: T, group: ProcessGroup | None) -> T:
    parcel = [value]
    distributed.broadcast_object_list(parcel, src=0, group=group, device=torch.device("cpu"))
    return parcel[0]


def _is_reported(store: PrefixStore) -> bool:
    """Whether another process has reported the failure. The first caller gets False, and must report it."""
    try:
        return store.add("ended", 1) > 1
    except RuntimeError:  # torchrun itself is gone
        return False


def _is_loss_of_another(error: BaseException) -> bool:
    # Gloo raises plain RuntimeErrors.
    return isinstance(error, distributed.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
