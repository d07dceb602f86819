"""The training loop: plain torch, one process or several, resumable at any step."""

import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from rarebox import seeds
from rarebox.config import TrainingSettings
from rarebox.errors import TrainingDiverged
from rarebox.types import Picture, Targets

Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, smoothed loss)."""

Prepare = Callable[
    [Sequence[Picture], Sequence[Targets], np.random.Generator], tuple[list[Tensor], list[dict[str, Tensor]]]
]
"""Pictures and their targets -> what the network takes, augmented."""

READERS = 8
"""Threads that decode the next batch while the network works on the present one."""


def steps_in_all(settings: TrainingSettings, images: int) -> int:
    """Optimiser steps of one fit on that many images."""
    return settings.steps or settings.epochs * math.ceil(images / settings.batch_size)


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate at a step: linear warm-up, then a cosine to 0 or one drop to a tenth."""
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "cosine":
        return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    return settings.lr * warm * (0.1 if step >= settings.drop_at * steps else 1.0)


def order(seed: int, images: int, step: int, batch_size: int) -> list[int]:
    """The images of one step: a walk through a fresh permutation each epoch, the same for the same seed."""
    places = range(step * batch_size, (step + 1) * batch_size)
    epochs = {place // images: seeds.stream(seed, "loader", place // images).permutation(images) for place in places}
    return [int(epochs[place // images][place % images]) for place in places]


def amp_dtype(device: torch.device, precision: str) -> torch.dtype | None:
    """The type of mixed precision, or None for plain float32."""
    if precision == "float32":
        return None
    if precision == "bfloat16" or (device.type == "cuda" and torch.cuda.is_bf16_supported()):
        return torch.bfloat16
    return None


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which the network runs."""
    dtype = amp_dtype(device, precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def train(
    network: nn.Module,
    prepare: Prepare,
    images: Sequence[Picture],
    targets: Sequence[Targets],
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> float:
    """Fit the network; the smoothed loss at the end comes back.

    Under ``torchrun`` each process takes its share of every batch and the gradients are averaged. With ``checkpoint``
    the state is saved there now and then, and a fit that finds one goes on from it as if never stopped. Raises
    TrainingDiverged, and leaves the last checkpoint, when the loss is not finite.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    steps = steps_in_all(settings, len(images))
    optimiser = _optimiser(network, settings)
    first, smooth = _restore(checkpoint, network, optimiser, device)
    model = DistributedDataParallel(network) if world > 1 else network
    keep = _Keeper(checkpoint if rank == 0 else None, settings.checkpoint_seconds)
    network.train()

    with ThreadPoolExecutor(READERS) as readers:

        def load(step: int) -> list[tuple[Future[Picture], Targets]]:
            chosen = order(seed, len(images), step, settings.batch_size)[rank::world] if step < steps else []
            return [(readers.submit(images.__getitem__, i), targets[i]) for i in chosen]

        upcoming = load(first)
        for step in range(first, steps):
            batch, upcoming = upcoming, load(step + 1)
            # Every random number of a step depends on the seed and the step alone, so a resumed fit repeats it.
            torch.manual_seed(seeds.number(seed, "training", step, rank))
            pictures, truths = prepare(
                [picture.result() for picture, _ in batch],
                [target for _, target in batch],
                seeds.stream(seed, "augment", step, rank),
            )
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps, settings)
            with autocast(device, settings.precision):
                loss = torch.stack(list(model(pictures, truths).values())).sum()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingDiverged(
                    f"the loss became {value} at step {step + 1} of {steps}; the state before it is kept"
                    + (f" in {checkpoint}" if checkpoint and checkpoint.exists() else "")
                    + f". Lower training.lr (now {settings.lr}) or training.clip_norm (now {settings.clip_norm})"
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            optimiser.step()
            smooth = value if step == 0 else 0.98 * smooth + 0.02 * value
            keep(step + 1, smooth, network, optimiser)
            if progress:
                progress(step + 1, steps, smooth)
    network.eval()
    return smooth


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD as the paper's framework sets it up, or AdamW, which leaves norms and biases undecayed."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(trained, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay)
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr)


class _Keeper:
    """Saves the state of a fit to a file, now and then, by write and rename."""

    def __init__(self, file: Path | None, seconds: float) -> None:
        self.file, self.seconds, self.last = file, seconds, time.monotonic()

    def __call__(self, step: int, smooth: float, network: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        if self.file is None or time.monotonic() - self.last < self.seconds:
            return
        state = {"step": step, "smooth": smooth, "network": network.state_dict(), "optimiser": optimiser.state_dict()}
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)
        self.last = time.monotonic()


def _restore(
    checkpoint: Path | None, network: nn.Module, optimiser: torch.optim.Optimizer, device: torch.device
) -> tuple[int, float]:
    """Load a checkpoint if there is one; the steps done and the smoothed loss."""
    if checkpoint is None or not checkpoint.exists():
        return 0, 0.0
    state = torch.load(checkpoint, map_location=device, weights_only=True)
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"], state["smooth"]
