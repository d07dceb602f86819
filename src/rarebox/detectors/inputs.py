"""Pictures and targets as the network's input on the device, and the scale of its pixels to the original's."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from rarebox.detectors.distributed import largest
from rarebox.detectors.maps import CachedPicture, FeatureMaps, Input, collate, padded
from rarebox.pool.views import View, send
from rarebox.types import Floats, Picture, Source, Targets

SMALLEST = 0.1
"""Smallest side of a target box, in pixels of the input; mirrored in float32, a smaller one could lose its area."""


class InputTransform(nn.Module):
    """Normalise and pad a batch. It replaces torchvision's transform, which would also resize."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def forward(
        self, images: list[Input], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """Inputs -> one normalised batch, zero-padded to the largest input.

        Under ``torchrun`` that is the largest of all processes: anchors in the padding take part in the loss.
        """
        sizes = [(i.shape[1], i.shape[2]) for i in images]
        height, width = (padded(side) for side in largest(*(max(size[d] for size in sizes) for d in (0, 1))))
        if maps := [image for image in images if isinstance(image, FeatureMaps)]:
            return ImageList(collate(maps, height, width, self.mean.device), sizes), targets  # type: ignore[arg-type]
        batch = self.mean.new_empty(len(images), 3, height, width).to(memory_format=torch.channels_last)
        batch[:] = self.mean  # the padding is 0 after normalising
        for row, image in zip(batch, images, strict=True):
            assert isinstance(image, Tensor)
            row[:, : image.shape[1], : image.shape[2]] = image
        batch = (batch - self.mean) / self.std
        return ImageList(batch, sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
    ) -> list[dict[str, Tensor]]:
        """Leave detections in the input's pixels; ``TorchDetector`` scales them back."""
        return result


Size = tuple[float, float] | float
"""Maximum short and long side of an input, in pixels; or the side of the square that it is stretched to."""


def scaled(size: Size, factor: float) -> Size:
    """A size times a factor."""
    return (size[0] * factor, size[1] * factor) if isinstance(size, tuple) else size * factor


def input_size(height: int, width: int, size: Size) -> tuple[int, int]:
    """Height and width of the input: the short side is ``size[0]``, unless the long side would then exceed
    ``size[1]``."""
    if not isinstance(size, tuple):
        return max(1, round(size)), max(1, round(size))
    scale = min(size[0] / min(height, width), size[1] / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_input(picture: Picture | CachedPicture, size: Size, device: torch.device) -> Input:
    """A picture -> pixels (3, h, w) in [0, 255] on the device, resized to the input's size; or its cached maps."""
    if isinstance(picture, CachedPicture):
        return picture.maps(0)
    pixels = send(torch.tensor(picture.pixels), device).permute(2, 0, 1).float()
    wanted = input_size(pixels.shape[1], pixels.shape[2], size)
    if tuple(pixels.shape[1:]) == wanted:
        return pixels
    return resize(pixels, wanted)


def with_views(
    picture: Picture | CachedPicture, views: Sequence[View], size: Size, device: torch.device
) -> list[Input]:
    """The input of a picture, then those of its views."""
    if isinstance(picture, CachedPicture):
        return [picture.maps(m) for m in range(len(views) + 1)]
    image = as_input(picture, size, device)
    assert isinstance(image, Tensor)
    return [image, *(view.apply(image) for view in views)]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) -> (3, *size), antialiased bilinear."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def scale_of(picture: Picture | CachedPicture, height: int, width: int) -> Floats:
    """The factors from boxes in the original image to boxes in an input of that size: (4,)."""
    return np.tile([width / picture.width, height / picture.height], 2).astype(np.float32)


def as_target(targets: Targets, scale: Floats, device: torch.device) -> dict[str, Tensor]:
    """Targets as torchvision's dict, boxes in pixels of the input, without those smaller than ``SMALLEST``.

    Everything is copied, since arrays may be read-only.
    """
    boxes = targets.boxes * scale
    seen = np.all(boxes[:, 2:] - boxes[:, :2] >= SMALLEST, axis=1)
    targets, boxes = targets[seen], boxes[seen]
    return {
        "boxes": send(torch.tensor(boxes), device),
        "labels": send(torch.tensor(targets.labels), device),
        "class_weight": send(torch.tensor(targets.class_weight), device),
        "box_weight": send(torch.tensor(targets.box_weight), device),
        "background": send(torch.tensor(targets.background), device),
        "pseudo": send(torch.tensor(targets.source == Source.PSEUDO), device),
    }
