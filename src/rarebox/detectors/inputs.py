"""From pictures to the network's input, on the device, and from its frame back to the original image's pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from rarebox.detectors.distributed import largest
from rarebox.detectors.maps import CachedPicture, FeatureMaps, collate, padded
from rarebox.pool.views import View, send
from rarebox.types import Floats, Picture, Targets

SMALLEST = 0.1
"""Pixels of the input below which a box's side is nothing: mirrored in float32 it could lose its area."""


class InputTransform(nn.Module):
    """Normalises and pads a batch; takes the place of torchvision's transform, whose resizing is done before."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1) * 255, persistent=False)

    def forward(
        self, images: list[Any], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        """(3, h, w) tensors with values in [0, 255] -> one zero-padded, normalised batch; or kept maps -> theirs.

        Its size is that of the whole batch, of which another process may have a share: the padding holds anchors.
        """
        sizes = [(i.shape[1], i.shape[2]) for i in images]
        height, width = (padded(side) for side in largest(*(max(size[d] for size in sizes) for d in (0, 1))))
        if isinstance(images[0], FeatureMaps):
            return ImageList(collate(images, height, width, self.mean.device), sizes), targets  # type: ignore[arg-type]
        batch = self.mean.new_empty(len(images), 3, height, width).to(memory_format=torch.channels_last)
        batch[:] = self.mean  # the padding is 0 after normalising
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[1], : image.shape[2]] = image
        batch = (batch - self.mean) / self.std
        return ImageList(batch, sizes), targets

    def postprocess(
        self, result: list[dict[str, Tensor]], image_shapes: object, original_image_sizes: object
    ) -> list[dict[str, Tensor]]:
        """Detections stay in the input's frame; the detector itself maps them back."""
        return result


def input_size(height: int, width: int, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which an image goes in: short side ``size[0]``, unless the long side then exceeds
    ``size[1]``."""
    scale = min(size[0] / min(height, width), size[1] / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def as_input(picture: Picture | CachedPicture, size: tuple[int, int], device: torch.device) -> Any:
    """A picture -> (3, h, w) on the device, values in [0, 255], resized unless it has the input's size already.

    Of a picture whose maps are kept, those.
    """
    if isinstance(picture, CachedPicture):
        return picture.maps(0)
    pixels = send(torch.tensor(picture.pixels), device).permute(2, 0, 1).float()
    wanted = input_size(pixels.shape[1], pixels.shape[2], size)
    if tuple(pixels.shape[1:]) == wanted:
        return pixels
    return resize(pixels, wanted)


def with_views(
    picture: Picture | CachedPicture, views: Sequence[View], size: tuple[int, int], device: torch.device
) -> list[Any]:
    """The input of a picture, then those of its views."""
    if isinstance(picture, CachedPicture):
        return [picture.maps(m) for m in range(len(views) + 1)]
    image = as_input(picture, size, device)
    return [image, *(view.apply(image) for view in views)]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, h, w) -> (3, *size), antialiased bilinear."""
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def scale_of(picture: Picture | CachedPicture, height: int, width: int) -> Floats:
    """What boxes of the original image are multiplied by in an input of that size: (4,)."""
    return np.tile([width / picture.width, height / picture.height], 2).astype(np.float32)


def as_target(targets: Targets, scale: Floats, device: torch.device) -> dict[str, Tensor]:
    """Targets -> torchvision's dict, boxes in the input's frame; all copied, since arrays may be read-only.

    Boxes that shrink to a point in the input are left out.
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
    }


def augment(
    images: Sequence[Tensor],
    truths: Sequence[dict[str, Tensor]],
    dice: Sequence[np.random.Generator],
    flip: float,
    jitter: float,
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Mirror a share ``flip`` of the images and scale each by 1 ± ``jitter``, boxes along with them.

    Each image has its own generator, so that what becomes of it does not depend on those beside it.
    """
    done = [
        _augment_one(image, truth, die.random() < flip, 1 + jitter * die.uniform(-1, 1))
        for image, truth, die in zip(images, truths, dice, strict=True)
    ]
    return [image for image, _ in done], [truth for _, truth in done]


def _augment_one(
    image: Tensor, truth: dict[str, Tensor], mirrored: bool, scale: float
) -> tuple[Tensor, dict[str, Tensor]]:
    boxes = truth["boxes"]
    if mirrored:
        image = image.flip(2)
        boxes = (
            boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1]) + boxes.new_tensor([1, 0, 1, 0]) * image.shape[2]
        )
    if scale != 1:
        height, width = (round(side * scale) for side in image.shape[1:])
        boxes = boxes * boxes.new_tensor([width / image.shape[2], height / image.shape[1]] * 2)
        image = resize(image, (height, width))
    return image, {**truth, "boxes": boxes}
