"""The training loop: plain torch, one process or several, resumable at any step."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rarebox.config import TrainingSettings
from rarebox.core import seeds
from rarebox.core.files import write_bytes
from rarebox.data.pictures import which_are_tall
from rarebox.detectors import distributed, on_device
from rarebox.detectors.maps import CachedPicture, Input
from rarebox.detectors.protocol import FitProgress
from rarebox.detectors.teacher import Average
from rarebox.errors import TrainingDiverged
from rarebox.types import Bools, Floats, Ints, Picture, Targets

Prepare = Callable[
    [Sequence[Picture | CachedPicture], Sequence[Targets], Sequence[np.random.Generator]],
    tuple[list[Input], list[dict[str, Tensor]]],
]
"""Pictures, their targets and a generator for each -> the network's augmented inputs and targets."""

Renew = Callable[[nn.Module, Sequence[Input], Sequence[dict[str, Tensor]]], list[dict[str, Tensor]]]
"""The averaged network, augmented inputs and their targets -> the targets with new pseudo labels."""

READERS = 8
"""Threads that decode the next batch while the network trains on the current one."""


def steps_in_all(settings: TrainingSettings, images: int) -> int:
    """Optimiser steps of one fit: at least ``steps``, and enough for ``epochs`` passes over that many images.

    A fit that starts from the previous cycle's model (``start: warm``) takes ``warm_fraction`` of them.
    """
    steps = max(settings.steps or 1, settings.epochs * math.ceil(images / settings.batch_size))
    return math.ceil(settings.warm_fraction * steps) if settings.start == "warm" else steps


def learning_rate(step: int, steps: int, settings: TrainingSettings) -> float:
    """The learning rate at a step: linear warm-up, then a cosine to 0 or one drop to a tenth."""
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    if settings.schedule == "cosine":
        return settings.lr * warm * 0.5 * (1 + math.cos(math.pi * step / steps))
    return settings.lr * warm * (0.1 if step >= settings.drop_at * steps else 1.0)


class Walk:
    """The images of each step, in a new random order each epoch that depends on the seed only.

    ``tall`` (n,) marks images that are higher than wide; they share batches, since a batch of one shape needs no
    padding. Every batch is full: an epoch's last ones are filled from its start. If ``complete`` (n,) marks some but
    not all images as fully labelled, these are the fraction ``share`` of each epoch. ``repeat`` (n,) says how often
    each image is drawn, relative to the others.
    """

    def __init__(
        self,
        seed: int,
        tall: Bools,
        batch_size: int,
        complete: Bools | None = None,
        share: float | None = None,
        repeat: Floats | None = None,
    ) -> None:
        self.seed, self.tall, self.batch_size = seed, tall, batch_size
        self.complete, self.share, self.repeat = complete, share, repeat
        self._epoch, self._batches = -1, [[0]]

    def __call__(self, step: int) -> list[int]:
        """Indices of the images of one step."""
        epoch, place = divmod(step, math.ceil(len(self.tall) / self.batch_size))
        if epoch != self._epoch:
            self._epoch, self._batches = epoch, self._cut(seeds.stream(self.seed, "loader", epoch))
        return self._batches[place]

    def _cut(self, rng: np.random.Generator) -> list[list[int]]:
        size = self.batch_size
        order = rng.permutation(len(self.tall))
        if self.repeat is not None:
            order = order[_systematic(self.repeat[order], len(order), rng.random())]
            order = rng.permutation(order)
        if self.complete is not None and self.share is not None and 0 < self.complete.sum() < len(order):
            wanted = round(self.share * len(order))
            kinds = (order[self.complete[order]], wanted), (order[~self.complete[order]], len(order) - wanted)
            order = rng.permutation(np.concatenate([np.resize(kind, count) for kind, count in kinds]))
        piles = [order[~self.tall[order]], order[self.tall[order]]]
        full = [len(pile) // size * size for pile in piles]
        whole = [pile[i : i + size] for pile, end in zip(piles, full, strict=True) for i in range(0, end, size)]
        rest = np.concatenate([pile[end:] for pile, end in zip(piles, full, strict=True)])
        rest = np.concatenate([rest, np.resize(order, -len(rest) % size)])
        batches = [*whole, *(rest[i : i + size] for i in range(0, len(rest), size))]
        return [batches[i].tolist() for i in rng.permutation(len(batches))]


def _systematic(weight: Floats, count: int, start: float) -> Ints:
    """``count`` places drawn in proportion to ``weight`` (n,), each at most one time more or less than its share."""
    return np.searchsorted(np.cumsum(weight) / weight.sum(), (np.arange(count) + start) / count, side="right")


def repeat_factors(targets: Sequence[Targets], below: float) -> Floats:
    """How often each image is drawn relative to the others: (n,), at least 1.

    An image counts sqrt(below / f) times, where f is the fraction of images that show the rarest of its classes: the
    repeat factor sampling of LVIS (Gupta et al. 2019, section 4.2). Boxes of class weight 0 do not count.
    """
    shown = [set(t.labels[(t.class_weight > 0) & ~t.background].tolist()) for t in targets]
    images = Counter(label for labels in shown for label in labels)
    factor = {label: max(1.0, math.sqrt(below * len(targets) / count)) for label, count in images.items()}
    return np.array([max((factor[label] for label in labels), default=1.0) for labels in shown])


def amp_dtype(device: torch.device, precision: str, inference: bool) -> torch.dtype | None:
    """The dtype of mixed precision, or None for float32.

    ``auto`` is bfloat16 on CUDA, and for inference on CPUs that support it: there ``predict`` is 1.7 times faster, but
    a training step is slower (``benchmarks/results``).
    """
    if precision == "bfloat16":
        return torch.bfloat16
    if precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    if precision == "auto" and device.type == "cpu" and inference and torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16
    return None


def autocast(device: torch.device, precision: str, inference: bool = False) -> AbstractContextManager[object]:
    """The precision context in which the network runs."""
    dtype = amp_dtype(device, precision, inference)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


def train(
    network: nn.Module,
    prepare: Prepare,
    images: Sequence[Picture | CachedPicture],
    targets: Sequence[Targets],
    settings: TrainingSettings,
    *,
    seed: int,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: FitProgress | None = None,
    complete: Bools | None = None,
    renew: Renew | None = None,
) -> float:
    """Fit the network, and return the final smoothed loss.

    Under ``torchrun`` each process takes a part of every batch; the result differs from that of one process by rounding
    only. Processes beyond one per image of a batch are idle and return 0.0. ``complete`` (n,) marks the fully labelled
    images (``training.complete_share``). ``renew`` renews the pseudo labels of each batch after the fraction
    ``training.renew_from`` of the steps. With ``checkpoint`` the state is saved there regularly, and a fit that finds a
    checkpoint resumes from it with the same result. Raises TrainingDiverged if the loss is not finite, and keeps the
    last checkpoint.
    """
    with distributed.crew(settings.batch_size) as crew:
        if crew.rank >= crew.size:
            return 0.0
        return _train(
            network, prepare, images, targets, settings, seed, device, checkpoint, progress, complete, renew, crew
        )


def _train(
    network: nn.Module,
    prepare: Prepare,
    images: Sequence[Picture | CachedPicture],
    targets: Sequence[Targets],
    settings: TrainingSettings,
    seed: int,
    device: torch.device,
    checkpoint: Path | None,
    progress: FitProgress | None,
    complete: Bools | None,
    renew: Renew | None,
    crew: distributed.Crew,
) -> float:
    steps = steps_in_all(settings, len(images))
    optimiser = _optimiser(network, settings)
    own_checkpoint = checkpoint if crew.rank == 0 else None
    average = Average(network, settings.ema)
    first, smooth = _restore(own_checkpoint, network, optimiser, average)
    model = DistributedDataParallel(network, process_group=crew.group) if crew.size > 1 else network
    save = _Checkpoint(own_checkpoint, settings.checkpoint_seconds, network, optimiser, average)
    repeat = repeat_factors(targets, settings.repeat_below) if settings.repeat_below else None
    walk = Walk(seed, which_are_tall(images), settings.batch_size, complete, settings.complete_share, repeat)
    network.train()

    with ThreadPoolExecutor(READERS) as readers:

        def load(step: int) -> list[tuple[Future[Picture | CachedPicture], int]]:
            chosen = walk(step)[crew.rank :: crew.size] if step < steps else []
            return [(readers.submit(images.__getitem__, i), i) for i in chosen]

        upcoming = load(first)
        for step in range(first, steps):
            batch, upcoming = upcoming, load(step + 1)
            # An image's random numbers depend only on the seed, the step and its place in the batch, so they are the
            # same in a resumed fit and with another number of processes.
            places = range(crew.rank, settings.batch_size, crew.size)
            dice = [seeds.stream(seed, "augment", step, place) for place in places]
            loaded, wanted = [picture.result() for picture, _ in batch], [targets[i] for _, i in batch]
            pictures, truths = prepare(loaded, wanted, dice)
            for truth, (_, i) in zip(truths, batch, strict=True):
                truth["partial"] = torch.tensor(complete is not None and not complete[i])
            if renew and average.teacher and step >= settings.renew_from * steps:
                with autocast(device, settings.precision, inference=True):
                    truths = renew(average.teacher, pictures, truths)
            for truth, die in zip(truths, dice, strict=True):
                truth["seed"] = torch.tensor(int(die.integers(2**31)))
            for group in optimiser.param_groups:
                group["lr"] = group["scale"] * learning_rate(step, steps, settings)
            with autocast(device, settings.precision):
                loss = torch.stack(list(model(pictures, truths).values())).sum()
            parcel = on_device.Parcel({"loss": loss.detach()})
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
            # A GPU computes the gradients while the host reads the loss. The state has not changed yet.
            value = distributed.mean(float(parcel.open()["loss"]))
            if not math.isfinite(value):
                save(step, smooth, now=True)
                raise TrainingDiverged(
                    f"the loss became {value} at step {step + 1} of {steps}"
                    + (f". The state before it is in {checkpoint}" if checkpoint else "")
                    + f". Start over in a new folder with training.lr below {settings.lr} or training.clip_norm "
                    f"below {settings.clip_norm}"
                )
            optimiser.step()
            average.update(step)
            smooth = value if step == 0 else 0.98 * smooth + 0.02 * value
            save(step + 1, smooth)
            if progress:
                progress(step + 1, steps, smooth)
    average.apply()
    network.eval()
    return smooth


def _optimiser(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD or AdamW. The pretrained backbone has ``backbone_lr`` times the learning rate of the new layers.

    AdamW does not decay norms and biases; SGD decays everything, as in the paper's framework.
    """
    groups = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            scale = settings.backbone_lr if name.startswith("backbone.body.") else 1.0
            decayed = settings.optimiser == "sgd" or parameter.ndim > 1
            groups.append((scale, settings.weight_decay if decayed else 0.0, parameter))
    kinds = sorted({group[:2] for group in groups})
    sorted_groups = [
        {"params": [p for *kind, p in groups if tuple(kind) == (scale, decay)], "scale": scale, "weight_decay": decay}
        for scale, decay in kinds
    ]
    if settings.optimiser == "sgd":
        return torch.optim.SGD(sorted_groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(sorted_groups, lr=settings.lr)


class _Checkpoint:
    """Save the state of a fit to a file at most every ``seconds``, by write and rename."""

    def __init__(
        self,
        file: Path | None,
        seconds: float,
        network: nn.Module,
        optimiser: torch.optim.Optimizer,
        average: Average,
    ) -> None:
        self.file, self.seconds, self.last = file, seconds, time.monotonic()
        self.network, self.optimiser, self.average = network, optimiser, average

    def __call__(self, step: int, smooth: float, now: bool = False) -> None:
        if self.file is None or not (now or time.monotonic() - self.last >= self.seconds):
            return
        state = {
            "step": step,
            "smooth": smooth,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "average": self.average.weights,
        }
        content = BytesIO()
        torch.save(state, content)
        write_bytes(self.file, content.getvalue())
        self.last = time.monotonic()


def _restore(
    checkpoint: Path | None, network: nn.Module, optimiser: torch.optim.Optimizer, average: Average
) -> tuple[int, float]:
    """Load rank 0's checkpoint, if any, on every rank, and return the steps done and the smoothed loss."""
    state = None
    if checkpoint is not None and checkpoint.exists():
        with suppress(Exception):  # torch raises many types; a damaged checkpoint is ignored
            state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state = distributed.from_leader(state)
    if state is None:
        return 0, 0.0
    network.load_state_dict(state["network"])
    optimiser.load_state_dict(state["optimiser"])
    for weight, saved in zip(average.weights, state.get("average", ()), strict=True):
        weight.copy_(saved)
    return state["step"], state["smooth"]
