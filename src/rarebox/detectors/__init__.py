"""Object detectors, trained on weighted boxes. :func:`build` makes a detector, :func:`load` restores one.

:data:`~rarebox.detectors.architectures.ARCHITECTURES` lists them, and :mod:`rarebox.detectors.protocol` says how to add
another one.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors import distributed
from rarebox.detectors.architectures import ARCHITECTURES as ARCHITECTURES
from rarebox.detectors.architectures import Architecture, Blueprint
from rarebox.detectors.detector import WEIGHTS, TorchDetector, read_about, rows_of
from rarebox.detectors.protocol import Detector as Detector
from rarebox.detectors.start import Start, architecture, choose
from rarebox.detectors.weights import Tensors
from rarebox.errors import UserError


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
    whole detector), ``auto``, ``none``, a file (``.safetensors`` or ``.pth``), the folder of a model, or for ``dfine``
    a model on the Hugging Face Hub. ``classes`` are the names of the classes: classes that the weights have keep their
    rows of the class layers. Layers that are not pretrained are initialised from ``seed``. Further ``settings`` are
    those of :class:`~rarebox.config.DetectorSettings`. Raises UserError for unknown names and for weights of another
    detector, and WeightsUnavailable, which says where to put the file.
    """
    given = {"name": name, "backbone": backbone, "image_size": image_size, "weights": weights, **settings}
    try:
        wanted = DetectorSettings.model_validate(given)
    except ValidationError:
        architecture(name, backbone)  # raises for an unknown name, with the nearest
        raise
    chosen = choose(wanted)
    wanted = chosen.of(wanted)
    kind = architecture(wanted.name, wanted.backbone)
    if seed is not None:
        torch.manual_seed(seed)
    plan = Blueprint(wanted, num_classes, training or TrainingSettings(), choose_device(device), tuple(classes))
    detector = kind.make(plan)
    if chosen.file:
        detector.start_from(*_saved(kind, chosen, wanted))
    return detector


def _saved(kind: Architecture, chosen: Start, settings: DetectorSettings) -> tuple[Tensors, tuple[str, ...]]:
    """The tensors of a start, and the names of the rows of its class layers."""
    file = Path(chosen.file)
    for weights, source in kind.starts.items():
        if weights == chosen.weights or source.is_named(chosen.file):
            return source.load(file), source.rows
    return kind.elsewhere.load(file), rows_of(file.parent) if file.name == WEIGHTS else ()


def load(folder: Path, device: str = "auto", training: TrainingSettings | None = None) -> TorchDetector:
    """Restore the detector that :meth:`TorchDetector.save` wrote into a folder. Raises Damaged if there is none."""
    num_classes, settings = read_about(folder)
    detector = _unfilled(settings, num_classes, training or TrainingSettings(), choose_device(device))
    detector.load(folder)
    return detector


def help_train(job: distributed.Job) -> None:
    """Take part in a fit under torchrun as a helper: this process's part of each batch, from the leader's weights."""
    device = choose_device("auto" if job.device == "cuda" else job.device)
    detector = _unfilled(job.detector, job.num_classes, job.training, device)
    detector.fit(job.images, job.targets, seed=job.seed, complete=job.complete, renewal=job.renewal)


def body_channels(settings: DetectorSettings) -> tuple[tuple[int, int], ...]:
    """Stride and channels of the backbone maps that the detector uses."""
    return architecture(settings.name, settings.backbone).levels


def _unfilled(
    settings: DetectorSettings, num_classes: int, training: TrainingSettings, device: torch.device
) -> TorchDetector:
    """A detector with random weights, to be replaced by others."""
    kind = architecture(settings.name, settings.backbone)
    return kind.make(Blueprint(settings, num_classes, training, device))


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
