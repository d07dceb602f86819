"""Object detectors, trained on weighted boxes. :func:`build` makes a detector, :func:`load` restores one.

:data:`~rarebox.detectors.architectures.ARCHITECTURES` lists them, and :mod:`rarebox.detectors.protocol` says how to add
another one.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors import distributed
from rarebox.detectors.architectures import ARCHITECTURES, Architecture, Blueprint
from rarebox.detectors.detector import TorchDetector, read_about
from rarebox.detectors.protocol import Detector as Detector
from rarebox.detectors.weights import read_weights
from rarebox.errors import UserError, unknown_name


def build(
    name: str,
    num_classes: int,
    backbone: str = "efficientnet_lite0",
    image_size: int = 320,
    weights: str = "imagenet",
    device: str = "auto",
    training: TrainingSettings | None = None,
    seed: int | None = None,
    classes: Sequence[str] = (),
    **settings: object,
) -> TorchDetector:
    """A detector for ``num_classes`` classes, ready to fit.

    ``name`` and ``backbone`` are a key of ``ARCHITECTURES``. ``weights`` is ``imagenet`` (backbone only), ``coco`` (a
    whole detector), ``none``, or a file (``.safetensors`` or ``.pth``) with either. ``classes`` are the names of the
    classes: those that the weights know keep their rows of the class layers. Layers that are not pretrained are
    initialised from ``seed``. Further ``settings`` are those of :class:`~rarebox.config.DetectorSettings`. Raises
    UserError for unknown names, and WeightsUnavailable, which says where to put the file.
    """
    if not any(name == known for known, _ in ARCHITECTURES):
        raise unknown_name("detector", name, {known for known, _ in ARCHITECTURES})
    if not any(backbone == known for _, known in ARCHITECTURES):
        raise unknown_name("backbone", backbone, {known for _, known in ARCHITECTURES})
    given = DetectorSettings.model_validate(
        {"name": name, "backbone": backbone, "image_size": image_size, "weights": weights, **settings}
    )
    kind = architecture(given)
    if seed is not None:
        torch.manual_seed(seed)
    plan = Blueprint(given, num_classes, training or TrainingSettings(), choose_device(device), tuple(classes))
    detector = kind.make(plan)
    if weights in ("imagenet", "coco"):
        if weights not in kind.starts:
            having = ", ".join(b for (n, b), each in ARCHITECTURES.items() if n == name and weights in each.starts)
            raise UserError(
                f"there are no {weights} weights for {name} on {backbone}. Use --weights imagenet, or --backbone with "
                f"one of {having}"
            )
        source = kind.starts[weights]
        detector.start_from(source.load(), source.rows)
    elif weights != "none":
        _start_from_file(detector, kind, Path(weights))
    return detector


def _start_from_file(detector: TorchDetector, kind: Architecture, file: Path) -> None:
    for source in kind.starts.values():
        if source.is_named(str(file)):
            detector.start_from(source.load(file), source.rows)
            return
    detector.start_from(read_weights(file))


def load(folder: Path, device: str = "auto", training: TrainingSettings | None = None) -> TorchDetector:
    """Restore the detector that :meth:`TorchDetector.save` wrote into a folder. Raises Damaged if there is none."""
    num_classes, settings = read_about(folder)
    detector = _unfilled(settings, num_classes, training or TrainingSettings(), choose_device(device))
    detector.load(folder)
    return detector


def help_train(job: distributed.Job) -> None:
    """Do a helper's part of a fit under torchrun: this process's part of each batch, from the leader's weights."""
    device = choose_device("auto" if job.device == "cuda" else job.device)
    detector = _unfilled(job.detector, job.num_classes, job.training, device)
    detector.fit(job.images, job.targets, seed=job.seed, complete=job.complete)


def fetch_weights(settings: DetectorSettings) -> None:
    """Download the pretrained weights. Raises WeightsUnavailable, which says where to put the file."""
    if source := architecture(settings).starts.get(settings.weights):
        source.fetch()


def body_channels(settings: DetectorSettings) -> tuple[tuple[int, int], ...]:
    """Stride and channels of the backbone maps that the detector uses."""
    return architecture(settings).levels


def architecture(settings: DetectorSettings) -> Architecture:
    """The entry of ``ARCHITECTURES`` that the settings name. Raises UserError if there is none."""
    name, backbone = settings.name, settings.backbone
    if (name, backbone) not in ARCHITECTURES:
        known = ", ".join(b for n, b in ARCHITECTURES if n == name)
        raise UserError(f"there is no {name} on {backbone}. Use --backbone with one of {known}")
    return ARCHITECTURES[name, backbone]


def _unfilled(
    settings: DetectorSettings, num_classes: int, training: TrainingSettings, device: torch.device
) -> TorchDetector:
    """A detector with random weights, for others to be put in their place."""
    return architecture(settings).make(Blueprint(settings, num_classes, training, device))


def choose_device(device: str) -> torch.device:
    """The device of that torch name; ``auto`` is the accelerator if there is one, otherwise the CPU."""
    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"the device {device!r} is not available: {str(error).splitlines()[0]}") from error
        return torch.device(device)
    if torch.cuda.is_available():
        place, gpus = distributed.local_rank(), torch.cuda.device_count()
        if place >= gpus:
            raise UserError(f"this machine has {gpus} GPUs. Give torchrun at most that --nproc-per-node")
        return torch.device("cuda", place)
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
