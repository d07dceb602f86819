"""Several GPUs through ``torchrun``: rank 0 runs the whole loop, the other ranks only help it to train.

Everything but training (scoring, asking, the files on disk) happens on rank 0 alone, so the state of a run has one
writer however many processes there are. The helpers wait for a job, train along, and wait for the next.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors.maps import Seen
from rarebox.types import Picture, Targets

PATIENCE = timedelta(days=7)
"""How long a helper waits for its next job: rank 0 may be scoring a large pool meanwhile."""


@dataclass(frozen=True)
class Job:
    """All that a helper needs to train along; the weights come from rank 0 when the training starts."""

    detector: DetectorSettings
    training: TrainingSettings
    num_classes: int
    images: Sequence[Picture | Seen]
    targets: Sequence[Targets]
    seed: int


@contextmanager
def ranks(help_with: Callable[[Job], None]) -> Iterator[bool]:
    """Join the processes that torchrun started; yields whether this one leads.

    A helper works through the leader's jobs before this yields False. Without torchrun it yields True at once.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield True
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank())
    distributed.init_process_group("cuda:nccl,cpu:gloo" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    # No tidying up after an error: the others wait inside a training step, and torchrun ends them with this process.
    if distributed.get_rank() == 0:
        yield True
        _broadcast(None)
    else:
        while (job := _broadcast(None)) is not None:
            help_with(job)
        yield False
    distributed.destroy_process_group()


def local_rank() -> int:
    """This process's place on its machine, and so its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def call_helpers(job: Job) -> None:
    """On rank 0 with helpers: let them train along. Otherwise nothing."""
    if distributed.is_initialized() and distributed.get_rank() == 0:
        _broadcast(job)


def from_leader(value: Any) -> Any:
    """The leader's value, on every rank."""
    return _broadcast(value) if distributed.is_initialized() else value


def mean_over_ranks(loss: torch.Tensor) -> float:
    """The mean of a number over all ranks, so that all of them see a loss that is not finite."""
    if distributed.is_initialized():
        loss = loss.clone()
        distributed.all_reduce(loss)
        loss /= distributed.get_world_size()
    return float(loss)


def _broadcast(value: Any) -> Any:
    parcel = [value]
    distributed.broadcast_object_list(parcel, src=0, device=torch.device("cpu"))
    return parcel[0]
