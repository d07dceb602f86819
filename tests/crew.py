"""Fits by several processes: training data with weights of every kind, and every loss term of every step."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.nn.modules.module import register_module_forward_hook

import rarebox.detectors.detector
from rarebox import detectors
from rarebox.cli import main
from rarebox.config import TrainingSettings
from rarebox.data.pictures import Pictures, which_are_tall
from rarebox.detectors import TorchDetector, distributed
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.retinanet import WeightedRetinaNet
from rarebox.errors import UserError
from rarebox.types import Bools, Picture, Source, Targets
from tests import forked, tiny
from tests.small import CLASSES, make

TRAINING: dict[str, Any] = {
    "steps": 2,
    "epochs": 0,
    "batch_size": 4,
    "lr": 1e-3,
    "warmup_steps": 1,
    "scale_jitter": 0.2,
    "precision": "float32",
}

SIZE = 64
"""Short side of the pictures and of the network's input."""


class Case(NamedTuple):
    """One fit."""

    detector: str
    normaliser: str = "own"
    batch_size: int = 4
    images: int = 7


def to_learn(images: int) -> tuple[list[Picture], list[Targets]]:
    """Wide and tall pictures of several sizes, with targets of every kind: weights 1, soft ones, 0, in one branch only,
    rejected boxes, and none at all."""
    rng = np.random.default_rng(4)
    pictures, targets = [], []
    for place in range(images):
        height, width = (SIZE, SIZE + 8 * int(rng.integers(5)))[:: 1 if place % 3 else -1]
        coarse = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        pictures.append(Picture(coarse.repeat(8, axis=0).repeat(8, axis=1), width, height))
        count = (0, 3, 5, 2)[place % 4]
        corner = rng.uniform(0, SIZE * 0.6, (count, 2))
        boxes = np.hstack([corner, corner + rng.uniform(SIZE / 8, SIZE * 0.4, (count, 2))])
        soft = np.array([1.0, 0.0, 0.6, 1.0, 0.3])[:count]
        box_weight = np.array([1.0, 0.0, 0.8, 0.0, 0.0])[:count]
        rejected = np.array([False, False, False, True, False])[:count]
        targets.append(Targets.of(boxes, rng.integers(0, CLASSES, count), Source.PSEUDO, soft, box_weight, rejected))
    return pictures, targets


class Watched(Pictures):
    """Pictures in memory; each process notes in a file which ones it reads."""

    def __init__(self, pictures: Sequence[Picture], log: Path) -> None:
        super().__init__((), (SIZE, SIZE))
        self.pictures, self.log = pictures, log

    def __reduce__(self) -> Any:
        return Watched, (self.pictures, self.log)

    @property
    def tall(self) -> Bools:
        return which_are_tall(self.pictures)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: Any) -> Any:
        with Path(f"{self.log}_{os.environ['RANK']}.read").open("a", encoding="utf-8") as file:
            file.write(f"{index}\n")
        return self.pictures[index]


def small(case: Case) -> TorchDetector:
    """A small detector whose fit uses every kind of randomness."""
    settings = TrainingSettings.model_validate({**TRAINING, "batch_size": case.batch_size})
    with tiny.small_network():
        return make(case.detector, normaliser=case.normaliser, image_size=SIZE, training=settings)


Terms = dict[str, list[float]]
"""Each loss term at each step."""


@contextmanager
def terms_noted() -> Iterator[Terms]:
    """This process's loss terms during the block."""
    noted: Terms = {}

    def note(network: Any, given: Any, losses: Any) -> None:
        if isinstance(network, (WeightedRetinaNet, WeightedFasterRCNN)) and network.training:
            for name, loss in losses.items():
                noted.setdefault(name, []).append(float(loss.detach()))

    handle = register_module_forward_hook(note)
    try:
        yield noted
    finally:
        handle.remove()


@contextmanager
def in_double_precision() -> Iterator[None]:
    """Networks compute in float64, so rounding and real differences cannot be confused."""
    single, as_target, train = Tensor.float, rarebox.detectors.detector.as_target, rarebox.detectors.detector.train

    def double_target(*given: Any) -> dict[str, Tensor]:
        return {name: t.double() if t.is_floating_point() else t for name, t in as_target(*given).items()}

    def double_train(network: Any, *given: Any, **named: Any) -> float:
        return train(network.double(), *given, **named)

    try:
        Tensor.float = Tensor.double  # type: ignore[method-assign]
        rarebox.detectors.detector.as_target, rarebox.detectors.detector.train = double_target, double_train
        yield
    finally:
        Tensor.float = single  # type: ignore[method-assign]
        rarebox.detectors.detector.as_target, rarebox.detectors.detector.train = as_target, train


# ------------------------------------------------------------------------------------------- one process


def fit_cases(
    out: Path, cases: Sequence[Case], make_it: Callable[[Case], TorchDetector] = small, exactly: bool = True
) -> None:
    """One fit after the other; for each, every process writes its loss terms, its weights and what it read to a
    folder."""
    fits: list[TorchDetector] = []
    honest = TorchDetector.fit

    def fit(detector: TorchDetector, *given: Any, **named: Any) -> float:
        with terms_noted() as terms:
            loss = honest(detector, *given, **named)
        file = out / f"{len(fits)}_{os.environ['RANK']}"
        torch.save(detector.network.state_dict(), file.with_suffix(".pt"))
        file.with_suffix(".json").write_text(json.dumps(terms), encoding="utf-8")
        fits.append(detector)
        return loss

    TorchDetector.fit = fit  # type: ignore[method-assign]
    with (
        in_double_precision() if exactly else nullcontext(),
        tiny.small_network() if make_it is small else nullcontext(),  # for the followers
    ):
        if os.environ["RANK"] != "0":
            distributed.follow(detectors.help_train)
            return
        with distributed.leading():
            for number, case in enumerate(cases):
                pictures, targets = to_learn(case.images)
                make_it(case).fit(Watched(pictures, out / str(number)), targets, seed=7)


def run_command(arguments: Sequence[str], said: Path, end: Callable[[], None] | None, rank: int, step: int) -> None:
    """``rarebox run`` on a small network and without figures, with all output in a file. The process of that rank meets
    its ``end`` in the middle of a step, unless torchrun has restarted it.
    """
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    steps = 0

    def count(network: Any, given: Any) -> None:
        nonlocal steps
        if isinstance(network, (WeightedRetinaNet, WeightedFasterRCNN)) and network.training:
            steps += 1
            if end and steps == step:
                end()

    if int(os.environ["RANK"]) == rank and os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        torch.nn.modules.module.register_module_forward_pre_hook(count)
    sys.argv = ["rarebox", "run", *arguments]
    try:
        with tiny.small_network(), tiny.without_figures():
            main.main()
    except SystemExit as error:
        if error.code:
            raise


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def be_interrupted() -> None:
    """Ctrl-C, which torchrun passes to all its processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background would ignore it
    os.kill(os.getpid(), signal.SIGINT)


def meet_a_mistake() -> None:
    """A user error in a single process."""
    raise UserError("this GPU is too small")


# ------------------------------------------------------------------------------------------- several processes


def together(processes: int, work: Callable[..., None], *given: Any, seconds: float = 60) -> list[int | None]:
    """Start that many processes as torchrun would, each doing the same work. Return their exit codes; None for one that
    did not end in time.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # with torchrun, it also outlives them
    crew = [forked.start(in_place, rank, processes, store.port, work, given) for rank in range(processes)]
    try:
        for process in crew:
            process.join(seconds)
        return [process.exitcode for process in crew]
    finally:
        for process in crew:
            process.kill()


def in_place(rank: int, processes: int, port: int, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    """The entry point of one of several processes."""
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    work(*given)
