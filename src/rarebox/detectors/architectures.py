"""Every detector that the settings can name, and the weights that it can start from.

:data:`ARCHITECTURES` is the table: ``(detector.name, detector.backbone)`` -> :class:`Architecture`. To add a detector,
add an entry whose ``make`` returns it with random weights; its ``starts`` are the weights that ``detector.weights`` can
name. :data:`LIGHT` lists what ``detector.backbone: auto`` chooses from.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models import detection as stock
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors import hub
from rarebox.detectors.backbones import BACKBONES, BackboneSpec, Pyramid, fold_batch_norms, norm_layer
from rarebox.detectors.detector import Network, TorchDetector
from rarebox.detectors.dfine_sizes import NANO, SMALL, Size
from rarebox.detectors.faster_rcnn import BETA, LeastMatcher, WeightedFasterRCNN, WeightedProposals, WeightedRoIHeads
from rarebox.detectors.inputs import InputTransform
from rarebox.detectors.retinanet import WeightedHead, WeightedRetinaNet
from rarebox.detectors.roi_pool import RoIPool
from rarebox.detectors.weights import Source, Tensors, through


@dataclass(frozen=True)
class Blueprint:
    """The specification of a detector. ``classes`` are the names of its classes, empty if unknown."""

    settings: DetectorSettings
    num_classes: int
    training: TrainingSettings
    device: torch.device
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Architecture:
    """One kind of detector.

    ``make`` returns a detector with random weights, drawn from torch's generator. ``starts`` are the weights that it
    can start from, by the value of ``detector.weights``. ``levels`` are stride and channels of the maps that a frozen
    backbone keeps for it. ``elsewhere`` reads any other file that the user names. ``library`` is ``transformers`` for a
    network of that library, which is an extra; the user may then name a model on the Hugging Face Hub.
    """

    make: Callable[[Blueprint], TorchDetector]
    starts: Mapping[str, Source]
    levels: tuple[tuple[int, int], ...]
    elsewhere: Source = field(default_factory=Source)
    library: str = ""


class Anchors(AnchorGenerator):
    """torchvision's anchors in float32 always: bfloat16 would round coordinates above 256 to even pixels."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Anchors (A, 4) of each image. Of the maps, only sizes and device are used."""
        exact = torch.zeros((), device=feature_maps[0].device)
        return super().forward(image_list, [exact.expand(level.shape) for level in feature_maps])


PAPER_SHORT_SIDE = 600
"""Scaled anchors and RoI levels have torchvision's sizes at the paper's input size, and shrink with smaller inputs."""

CELLS = 32 / 8
"""Width of torchvision's smallest anchor in cells of the finest map. Strides do not shrink with the input, so anchors
shrink no further than ``anchor_cells``: a head cannot recognise an object of one cell."""

RATIOS = (0.5, 1.0, 2.0)


def _unit(scaled: bool, settings: DetectorSettings) -> float:
    """The scale of anchors relative to torchvision's: 1 unless ``scaled``, as COCO weights expect torchvision's."""
    return max(settings.image_size / PAPER_SHORT_SIDE, settings.anchor_cells / CELLS) if scaled else 1.0


def _body(backbone: str, settings: DetectorSettings) -> tuple[BackboneSpec, nn.Module]:
    spec = BACKBONES[backbone]
    body = spec.body(settings.batch_norm)
    fold_batch_norms(body)
    return spec, body


@dataclass(frozen=True)
class OneStage:
    """RetinaNet. ``convs`` are the convolutions of each tower, ``norm`` their normalisation, given the channels.

    ``coco`` are torchvision's weights. With these weights, anchors have whole pixels, and the first version computes P6
    from P5, as in torchvision. With other weights, P6 comes from the body's last map, and anchors are MMDetection's.
    ``scaled``: anchors shrink with the input. ``second``: torchvision's second version.
    """

    backbone: str
    convs: int = 4
    norm: Callable[[int], nn.Module] | None = None
    coco: Source | None = None
    scaled: bool = False
    second: bool = False

    def __call__(self, plan: Blueprint) -> TorchDetector:
        """The detector with random weights."""
        settings = plan.settings
        spec, body = _body(self.backbone, settings)
        of_coco = self.coco is not None and (settings.weights == "coco" or self.coco.is_named(settings.weights))
        last = spec.width if of_coco and not self.second else spec.levels[-1][1]
        unit = _unit(self.scaled, settings)
        sizes = tuple(tuple(2 ** (5 + level + octave / 3) * unit for octave in range(3)) for level in range(5))
        if of_coco or self.second:
            sizes = tuple(tuple(float(int(size)) for size in level) for level in sizes)
        head = WeightedHead(spec.width, 9, plan.num_classes, norm_layer=self.norm)
        for tower in (head.classification_head, head.regression_head):
            tower.conv = tower.conv[: self.convs]
        head.normaliser = settings.normaliser
        head.two_sided = settings.soft_loss == "two_sided"
        network = WeightedRetinaNet(
            Pyramid(spec, body, 3, LastLevelP6P7(last, spec.width)),
            plan.num_classes,
            anchor_generator=Anchors(sizes, (RATIOS,) * 5),  # type: ignore[arg-type]
            head=head,
            score_thresh=settings.score_threshold,
            nms_thresh=settings.nms_iou,
            detections_per_img=100,
        )
        network.transform = InputTransform(spec.mean, spec.std)  # type: ignore[assignment]
        return _detector(plan, network)


@dataclass(frozen=True)
class TwoStages:
    """Faster R-CNN. Where two numbers are given, the first applies in training, the second at inference.

    ``anchors`` are the sizes on each pyramid level, including the extra pooled one. ``best`` is how many proposals per
    level enter suppression, ``proposals`` how many per image survive it, with a score of at least ``objectness``.
    ``coco`` are torchvision's weights. ``hidden`` is the width of the box head, ``samples`` how many proposals of an
    image train it. ``scaled``: anchors shrink with the input. ``second``: the deeper heads of torchvision's second
    version.
    """

    backbone: str
    anchors: tuple[tuple[float, ...], ...]
    best: tuple[int, int] = (2000, 1000)
    proposals: tuple[int, int] = (2000, 1000)
    objectness: float = 0.0
    coco: Source | None = None
    hidden: int = 1024
    samples: int = 512
    scaled: bool = False
    second: bool = False

    def __call__(self, plan: Blueprint) -> TorchDetector:
        """The detector with random weights."""
        settings = plan.settings
        spec, body = _body(self.backbone, settings)
        unit, norm = _unit(self.scaled, settings), norm_layer(settings.batch_norm)
        pyramid = Pyramid(spec, body, len(spec.levels), LastLevelMaxPool(), norm if self.second else None)
        sizes = tuple(tuple(size * unit for size in level) for level in self.anchors)
        anchors = Anchors(sizes, (RATIOS,) * len(sizes))  # type: ignore[arg-type]
        depth = 2 if self.second else 1
        proposals = WeightedProposals(
            anchors,
            RPNHead(spec.width, anchors.num_anchors_per_location()[0], depth),
            0.7,
            0.3,
            256,
            0.5,
            dict(zip(("training", "testing"), self.best, strict=True)),
            {"training": settings.proposals or self.proposals[0], "testing": self.proposals[1]},
            0.7,
            self.objectness,
        )
        names = [str(level) for level in range(len(spec.levels))]
        head = (
            FastRCNNConvFCHead((spec.width, 7, 7), [256] * 4, [self.hidden], norm)
            if self.second
            else TwoMLPHead(spec.width * 49, self.hidden)
        )
        heads = WeightedRoIHeads(
            RoIPool(names, 7, 2, canonical_scale=round(224 * unit), canonical_level=4),
            head,
            FastRCNNPredictor(self.hidden, plan.num_classes + 1),
            0.5,
            0.5,
            self.samples,
            0.25,
            None,
            settings.score_threshold,
            settings.nms_iou,
            100,
        )
        proposals.proposal_matcher = LeastMatcher(0.7, 0.3, settings.low_quality_iou)
        proposals.beta = heads.beta = 0.0 if settings.box_loss == "l1" else BETA
        proposals.normaliser = heads.normaliser = settings.normaliser
        proposals.two_sided = heads.two_sided = settings.soft_loss == "two_sided"
        proposals.weighted = settings.weighted_stages == "both"
        network = WeightedFasterRCNN(pyramid, proposals, heads, InputTransform(spec.mean, spec.std))
        return _detector(plan, network)


@dataclass(frozen=True)
class Transformer:
    """D-FINE of one size. Its module is imported when it is needed: ``transformers`` is an extra."""

    size: Size

    def __call__(self, plan: Blueprint) -> TorchDetector:
        """The detector with random weights."""
        from rarebox.detectors.dfine import WeightedDFine

        return _detector(plan, WeightedDFine(self.size, plan.num_classes, plan.settings))

    def read(self, saved: Tensors) -> Tensors:
        """The tensors of a file of ``transformers``, renamed as in our network."""
        from rarebox.detectors.dfine import read

        return read(self.size, saved)


def _detector(plan: Blueprint, network: Network) -> TorchDetector:
    return TorchDetector(network, plan.num_classes, plan.settings, plan.training, plan.device, plan.classes)


def _coco(weights: WeightsEnum, network: Callable[..., nn.Module], epsilon: float = 1e-5) -> Source:
    """A whole detector of torchvision's, trained on COCO."""
    return Source(weights.url, rows=tuple(weights.meta["categories"]), read=through(network), epsilon=epsilon)


def _architecture(make: OneStage | TwoStages) -> Architecture:
    body = BACKBONES[make.backbone]
    starts = {"imagenet": body.imagenet} | ({"coco": make.coco} if make.coco else {})
    return Architecture(make, starts, body.levels[-3:] if isinstance(make, OneStage) else body.levels)


def transformer(size: Size) -> Architecture:
    """The entry of D-FINE of one size."""
    make = Transformer(size)
    coco = Source(
        hub.url_of(size.coco),
        f"{size.coco.replace('/', '--')}.safetensors",
        rows=COCO,
        read=make.read,
        instead="another detector, such as that of --preset laptop",
    )
    return Architecture(make, {"coco": coco}, size.levels, Source(read=make.read), "transformers")


COCO = tuple(
    name
    for name in stock.FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    if name not in ("__background__", "N/A")
)
"""The 80 classes of COCO, in their order there."""

OF_RESNET = tuple((32.0 * 2**level,) for level in range(5))
OF_LITE0 = tuple((32.0 * 2**level, 32.0 * 2 ** (level + 0.5)) for level in range(4))
OF_MOBILENET = ((32.0, 64.0, 128.0, 256.0, 512.0),) * 3
"""Sizes of anchors on each level, in pixels."""

ARCHITECTURES: dict[tuple[str, str], Architecture] = {
    ("faster_rcnn", "resnet50"): _architecture(
        TwoStages(
            "resnet50",
            OF_RESNET,
            coco=_coco(stock.FasterRCNN_ResNet50_FPN_Weights.COCO_V1, stock.fasterrcnn_resnet50_fpn, epsilon=0.0),
        )
    ),
    ("faster_rcnn", "resnet50_v2"): _architecture(
        TwoStages(
            "resnet50",
            OF_RESNET,
            coco=_coco(stock.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, stock.fasterrcnn_resnet50_fpn_v2),
            second=True,
        )
    ),
    ("faster_rcnn", "mobilenet_v3_large"): _architecture(
        TwoStages(
            "mobilenet_v3_large",
            OF_MOBILENET,
            objectness=0.05,
            coco=_coco(
                stock.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1, stock.fasterrcnn_mobilenet_v3_large_fpn
            ),
        )
    ),
    ("faster_rcnn", "mobilenet_v3_large_320"): _architecture(
        TwoStages(
            "mobilenet_v3_large",
            OF_MOBILENET,
            best=(2000, 150),
            proposals=(500, 150),
            objectness=0.05,
            coco=_coco(
                stock.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
                stock.fasterrcnn_mobilenet_v3_large_320_fpn,
            ),
            samples=128,
        )
    ),
    ("faster_rcnn", "efficientnet_lite0"): _architecture(
        TwoStages(
            "efficientnet_lite0",
            OF_LITE0,
            best=(1000, 500),
            proposals=(500, 200),
            hidden=256,
            samples=128,
            scaled=True,
        )
    ),
    ("retinanet", "resnet50"): _architecture(
        OneStage(
            "resnet50",
            coco=_coco(stock.RetinaNet_ResNet50_FPN_Weights.COCO_V1, stock.retinanet_resnet50_fpn, epsilon=0.0),
        )
    ),
    ("retinanet", "resnet50_v2"): _architecture(
        OneStage(
            "resnet50",
            norm=partial(nn.GroupNorm, 32),
            coco=_coco(stock.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1, stock.retinanet_resnet50_fpn_v2),
            second=True,
        )
    ),
    ("retinanet", "efficientnet_lite0"): _architecture(
        OneStage("efficientnet_lite0", convs=2, norm=lambda width: nn.GroupNorm(width // 8, width), scaled=True)
    ),
    ("dfine", "hgnet_v2_n"): transformer(NANO),
    ("dfine", "hgnet_v2_s"): transformer(SMALL),
}
"""Every detector, by ``detector.name`` and ``detector.backbone``."""

LIGHT: dict[str, tuple[str, ...]] = {
    "faster_rcnn": ("mobilenet_v3_large_320", "efficientnet_lite0"),
    "retinanet": ("efficientnet_lite0",),
    "dfine": ("hgnet_v2_s",),
}
"""The backbones that ``detector.backbone: auto`` chooses from, by ``detector.name``: the first with COCO weights
available, else the last, whose weights are installed. D-FINE has only COCO weights."""
