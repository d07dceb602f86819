"""Detectors, trained on weighted boxes. :func:`build` makes a detector, :func:`load` restores one.

:mod:`rarebox.detectors.protocol` says how to add another one.
"""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models.detection import (
    FasterRCNN_ResNet50_FPN_Weights,
    RetinaNet_ResNet50_FPN_Weights,
    fasterrcnn_resnet50_fpn,
    retinanet_resnet50_fpn,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors import distributed
from rarebox.detectors.backbones import (
    BACKBONES,
    BackboneSpec,
    faster_rcnn_pyramid,
    fetch,
    fold_batch_norms,
    retinanet_pyramid,
)
from rarebox.detectors.detector import Network, TorchDetector, read_about
from rarebox.detectors.faster_rcnn import BETA, LeastMatcher, WeightedFasterRCNN, WeightedProposals, WeightedRoIHeads
from rarebox.detectors.inputs import InputTransform
from rarebox.detectors.protocol import Detector as Detector
from rarebox.detectors.retinanet import WeightedHead, WeightedRetinaNet, light_head
from rarebox.detectors.roi_pool import RoIPool
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

    ``name`` is ``retinanet``, ``faster_rcnn`` or ``dfine``. ``weights`` is ``imagenet`` (backbone only), ``coco`` (all
    but the class head; resnet50 only), ``none``, or a file (``.safetensors`` or ``.pth``) with either; for ``dfine``
    it is ``coco``, ``none``, a model on the Hugging Face Hub, or a folder. Layers that are not pretrained are
    initialised from ``seed``; of D-FINE, the rows of ``classes`` that the weights know by name are pretrained. Further
    ``settings`` are those of :class:`~rarebox.config.DetectorSettings`. Raises UserError for unknown names, and
    WeightsUnavailable, which says where to put the file.
    """
    if name not in DETECTORS:
        raise unknown_name("detector", name, DETECTORS)
    if backbone not in BACKBONES and backbone not in DFINE_BACKBONES:
        raise unknown_name("backbone", backbone, (*BACKBONES, *DFINE_BACKBONES))
    given = DetectorSettings.model_validate(
        {"name": name, "backbone": backbone, "image_size": image_size, "weights": weights, **settings}
    )
    if seed is not None:
        torch.manual_seed(seed)
    network = _assemble(given, num_classes, pretrained=weights == "imagenet" and name != "dfine")
    if name == "dfine":
        if weights != "none":
            _dfine().start_from(network, given, classes)
    elif weights == "coco":
        _load(network, _coco(name, backbone))
    elif weights not in ("imagenet", "none"):
        _load_file(network, Path(weights))
    return TorchDetector(network, num_classes, given, training or TrainingSettings(), choose_device(device))


def load(folder: Path, device: str = "auto", training: TrainingSettings | None = None) -> TorchDetector:
    """Restore the detector that :meth:`TorchDetector.save` wrote into a folder. Raises Damaged if there is none."""
    num_classes, settings = read_about(folder)
    network = _assemble(settings, num_classes, pretrained=False)
    detector = TorchDetector(network, num_classes, settings, training or TrainingSettings(), choose_device(device))
    detector.load(folder)
    return detector


def help_train(job: distributed.Job) -> None:
    """Do a helper's part of a fit under torchrun: this process's part of each batch, from the leader's weights."""
    network = _assemble(job.detector, job.num_classes, pretrained=False)
    device = choose_device("auto" if job.device == "cuda" else job.device)
    detector = TorchDetector(network, job.num_classes, job.detector, job.training, device)
    detector.fit(job.images, job.targets, seed=job.seed, complete=job.complete)


def fetch_weights(settings: DetectorSettings) -> None:
    """Download the pretrained weights. Raises WeightsUnavailable, which says where to put the file."""
    if settings.name == "dfine":
        if settings.weights != "none":
            _dfine().find_folder(settings)
    elif settings.weights == "imagenet":
        BACKBONES[settings.backbone].imagenet()
    elif settings.weights == "coco":
        _coco(settings.name, settings.backbone)


def body_channels(settings: DetectorSettings) -> dict[int, int]:
    """Channels of the backbone maps that the detector uses, by stride."""
    if settings.name == "dfine":
        return _dfine().size_of(settings).channels
    channels = BACKBONES[settings.backbone].channels
    return {stride: c for stride, c in channels.items() if stride >= 8 or settings.name == "faster_rcnn"}


def _assemble(settings: DetectorSettings, num_classes: int, pretrained: bool) -> Network:
    if settings.name == "dfine":
        return _dfine().WeightedDFine(num_classes, settings)
    if settings.backbone not in BACKBONES:
        raise UserError(f"{settings.name} has no backbone {settings.backbone}. Choose one of {', '.join(BACKBONES)}")
    spec = BACKBONES[settings.backbone]
    body = spec.body(settings.batch_norm)
    if pretrained:
        _load(body, spec.imagenet())
    fold_batch_norms(body)
    return NETWORKS[settings.name](spec, body, num_classes, settings)


def _dfine() -> ModuleType:
    """The module of D-FINE, whose library is an extra."""
    try:
        from rarebox.detectors import dfine
    except ModuleNotFoundError as error:
        raise UserError(
            f'dfine needs the package {error.name}, which is not installed: pip install "rarebox[detr]"'
        ) from error
    return dfine


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


PAPER_SHORT_SIDE = 600
"""Anchors and RoI levels have torchvision's sizes at the paper's input size, and shrink with smaller inputs."""

CELLS = 32 / 8
"""Width of torchvision's smallest anchor in cells of the finest map. Strides do not shrink with the input, so anchors
shrink no further than ``anchor_cells``: a head cannot recognise an object of one cell."""


class Anchors(AnchorGenerator):
    """torchvision's anchors in float32 under any precision: bfloat16 would round them, above 256 to even pixels."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors (A, 4) of each image. Of the maps, only sizes and device are used."""
        exact = torch.zeros((), device=feature_maps[0].device)
        return super().forward(image_list, [exact.expand(level.shape) for level in feature_maps])


def _retinanet(spec: BackboneSpec, body: nn.Module, classes: int, settings: DetectorSettings) -> Network:
    unit = _unit(spec, settings)
    sizes = tuple(tuple(2 ** (5 + level + octave / 3) * unit for octave in range(3)) for level in range(5))
    anchors = Anchors(sizes, ((0.5, 1.0, 2.0),) * 5)  # type: ignore[arg-type]
    head = (light_head if spec.light else WeightedHead)(spec.width, 9, classes)
    head.normaliser = settings.normaliser
    network = WeightedRetinaNet(
        retinanet_pyramid(spec, body, p6_from_p5=settings.weights == "coco"),
        classes,
        anchor_generator=anchors,
        head=head,
        score_thresh=settings.score_threshold,
        nms_thresh=settings.nms_iou,
        detections_per_img=100,
    )
    network.transform = InputTransform(spec.mean, spec.std)  # type: ignore[assignment]
    return network


def _faster_rcnn(spec: BackboneSpec, body: nn.Module, classes: int, settings: DetectorSettings) -> Network:
    unit = _unit(spec, settings)
    pyramid = faster_rcnn_pyramid(spec, body)
    levels = len(pyramid.strides) + 1
    scales = (1.0, 2**0.5) if spec.light else (1.0,)  # fewer levels, so two sizes per level
    sizes = tuple(tuple(2 ** (5 + level) * unit * scale for scale in scales) for level in range(levels))
    proposals = WeightedProposals(
        Anchors(sizes, ((0.5, 1.0, 2.0),) * levels),  # type: ignore[arg-type]
        RPNHead(spec.width, 3 * len(scales)),
        0.7,
        0.3,
        256,
        0.5,
        {"training": 1000 if spec.light else 2000, "testing": 500 if spec.light else 1000},
        {"training": settings.proposals or (500 if spec.light else 2000), "testing": 200 if spec.light else 1000},
        0.7,
    )
    pool = RoIPool(
        [str(level) for level in range(levels - 1)], 7, 2, canonical_scale=round(224 * unit), canonical_level=4
    )
    hidden = 256 if spec.light else 1024
    heads = WeightedRoIHeads(
        pool,
        TwoMLPHead(spec.width * 49, hidden),
        FastRCNNPredictor(hidden, classes + 1),
        0.5,
        0.5,
        128 if spec.light else 512,
        0.25,
        None,
        settings.score_threshold,
        settings.nms_iou,
        100,
    )
    proposals.proposal_matcher = LeastMatcher(0.7, 0.3, settings.low_quality_iou)
    proposals.beta = heads.beta = 0.0 if settings.box_loss == "l1" else BETA
    proposals.normaliser = heads.normaliser = settings.normaliser
    proposals.weighted = settings.weighted_stages == "both"
    return WeightedFasterRCNN(pyramid, proposals, heads, InputTransform(spec.mean, spec.std))


def _unit(spec: BackboneSpec, settings: DetectorSettings) -> float:
    """The scale of anchors relative to the paper's input size; 1 for the paper's backbone."""
    return max(settings.image_size / PAPER_SHORT_SIDE, settings.anchor_cells / CELLS) if spec.light else 1.0


NETWORKS = {"retinanet": _retinanet, "faster_rcnn": _faster_rcnn}
"""The functions that assemble torchvision's networks, by the name in the settings."""

DETECTORS = (*NETWORKS, "dfine")
DFINE_BACKBONES = ("hgnet_v2_n", "hgnet_v2_s")


def _coco(name: str, backbone: str) -> dict[str, Tensor]:
    """torchvision's COCO detector of the same shape, loaded through the stock network, which renames old tensors."""
    if backbone != "resnet50":
        raise UserError("coco weights exist for resnet50 only. Use --backbone resnet50 or --weights imagenet")
    make, weights = {
        "retinanet": (retinanet_resnet50_fpn, RetinaNet_ResNet50_FPN_Weights.COCO_V1),
        "faster_rcnn": (fasterrcnn_resnet50_fpn, FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    }[name]
    saved = fetch(weights.url)
    stock = make(weights=None, weights_backbone=None)
    stock.load_state_dict(saved)
    return stock.state_dict()


def _load_file(network: Network, file: Path) -> None:
    """Load a file with the weights of a whole detector or of a backbone."""
    try:
        saved = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except Exception as error:  # torch and safetensors raise many types, which mean the same to the user
        raise UserError(f"the weights file {file} cannot be read: {error}") from error
    _load(network, saved)


def _load(module: nn.Module, saved: dict[str, Tensor]) -> None:
    """Copy every saved tensor that fits by name and shape. Raises UserError unless the whole backbone fits.

    The networks name their parts as torchvision does, so a whole detector fits by name; the tensors of a bare backbone
    go under ``backbone.body``.
    """
    own = module.state_dict()
    fitting = {
        place: tensor
        for name, tensor in saved.items()
        for place in (name, f"backbone.body.{name}")
        if place in own and own[place].shape == tensor.shape
    }
    body = [name for name in own if name.startswith("backbone.body.")] or list(own)
    missing = [name for name in body if name not in fitting]
    if missing:
        raise UserError(
            f"these weights do not fit the backbone: {len(missing)} of its {len(body)} tensors are missing or have "
            f"another shape, such as {missing[0]}"
        )
    module.load_state_dict({**own, **fitting})
