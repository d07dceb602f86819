"""A detector as one graph for other programs, ONNX or TorchScript: from an image of any size to boxes in its pixels.

The graph is traced from the network's own modules. Resizing, normalisation, decoding and non-maximum suppression are
part of it. It computes in float32, one image at a time.
"""

import json
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from importlib.util import find_spec
from io import BytesIO
from typing import cast

import torch
from torch import Tensor, nn
from torch.onnx.operators import shape_as_tensor
from torchvision.models.detection.image_list import ImageList

from rarebox.detectors.detector import TorchDetector
from rarebox.detectors.inputs import InputTransform
from rarebox.detectors.maps import STRIDE
from rarebox.errors import UserError

INPUT, OUTPUTS = "image", ["boxes", "scores", "labels"]

OPSET = 17
"""The version of ONNX's operators; the first with all that is used is 16 (RoiAlign as torchvision computes it)."""

ANY_SIZE = (480, 640)
"""Height and width of the image on which a graph for all sizes is traced."""

Size = tuple[int, int]
"""Height and width of images, in pixels."""


class OneImage(nn.Module):
    """A detector as a function of one image: (h, w, 3) ``uint8`` RGB -> boxes (N, 4), scores (N,), labels (N,).

    At most 100 boxes x1, y1, x2, y2 in pixels of the image, best score first. Labels are ``int64`` and count from 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, detector: TorchDetector) -> None:
        super().__init__()
        self.network, self.size = deepcopy(detector.network).float().eval().requires_grad_(False), detector.size
        self.network.with_features = False
        transform = cast(InputTransform, self.network.transform)
        self.register_buffer("mean", transform.mean.clone(), persistent=False)
        self.register_buffer("std", transform.std.clone(), persistent=False)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detections of an image. All sizes are tensors, so that none becomes a constant of the graph."""
        sides = shape_as_tensor(image)[:2].double()
        wanted = self._wanted(sides)
        canvas = (wanted / STRIDE).ceil() * STRIDE
        pixels = (image.permute(2, 0, 1).float() - self.mean) / self.std
        rows, columns = (_resizing(*axis) for axis in zip(sides, wanted, canvas, strict=True))
        inside = (wanted[0], wanted[1])
        found = self.network.detect_one(ImageList((rows @ (pixels @ columns.T))[None], [inside]))  # type: ignore[list-item]
        boxes = found["boxes"] * (sides / wanted).float().flip(0).repeat(2)
        good = (boxes[:, 2:] > boxes[:, :2]).all(dim=1).nonzero()[:, 0]
        return boxes[good], found["scores"][good], found["labels"][good]

    def _wanted(self, sides: Tensor) -> Tensor:
        """:func:`~rarebox.detectors.inputs.input_size` on tensors: height and width (2,) -> (2,)."""
        if not isinstance(self.size, tuple):
            return torch.full_like(sides, max(1, round(self.size)))
        scale = torch.minimum(self.size[0] / sides.min(), self.size[1] / sides.max())
        return (sides * scale).round().clamp(min=1)


def _resizing(length: Tensor, wanted: Tensor, canvas: Tensor) -> Tensor:
    """The matrix (canvas, length) that resizes one axis to ``wanted`` pixels. Its further rows are 0, the padding.

    As torch's antialiased bilinear interpolation, which ONNX lacks: the weights are a triangle over ``length / wanted``
    pixels to either side, at least 1.
    """
    scale, count = length / wanted, cast("Callable[[Tensor], Tensor]", torch.arange)
    places = count(canvas).double()
    distance = count(length).double() + 0.5 - (places[:, None] + 0.5) * scale
    weight = (1 - distance.abs() / scale.clamp(min=1)).clamp(min=0) * (places < wanted)[:, None]
    return (weight / weight.sum(dim=1, keepdim=True).clamp(min=1e-6)).float()


def as_onnx(detector: TorchDetector, about: Mapping[str, object], size: Size | None = None) -> bytes:
    """The content of an ONNX file, for images of one size or of any. Needs the extra ``onnx``.

    ``about`` becomes its metadata, each value as JSON. Raises UserError without the library.
    """
    if find_spec("onnx") is None:
        raise UserError('the format onnx needs the package onnx, which is not installed: pip install "rarebox[onnx]"')
    import onnx

    some = {name: {0: "detections"} for name in OUTPUTS}
    content = BytesIO()
    with _tracing():
        torch.onnx.export(
            OneImage(detector),
            (_example(size),),
            content,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=OUTPUTS,
            dynamic_axes=some if size else {INPUT: {0: "height", 1: "width"}, **some},
        )
    model = onnx.load_from_string(content.getvalue())
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    return model.SerializeToString()


def as_torchscript(detector: TorchDetector, about: Mapping[str, object], size: Size | None = None) -> bytes:
    """The content of a TorchScript file, which needs torchvision. ``about`` becomes files ``NAME.json`` in it."""
    content = BytesIO()
    with _tracing():
        traced = torch.jit.trace(OneImage(detector), (_example(size),), check_trace=False)
        torch.jit.save(traced, content, {f"{name}.json": json.dumps(value) for name, value in about.items()})
    return content.getvalue()


def _example(size: Size | None) -> Tensor:
    """A noisy image: on one without detections, some of the graph would not be traced."""
    dice = torch.Generator().manual_seed(0)
    return torch.randint(256, (*(size or ANY_SIZE), 3), generator=dice, dtype=torch.uint8)


@contextmanager
def _tracing() -> Generator[None]:
    """Without gradients, and without warnings: of constants, which are those of the network, and of newer exporters,
    which cannot trace a number of boxes that depends on the image."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
