"""Random augmentation of training images: mirror, scale, crop, and colour, with their target boxes.

Each image draws its own :class:`Draw` from its own generator, so the result does not depend on the rest of the batch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rarebox.config import TrainingSettings
from rarebox.detectors.inputs import Size, as_input, as_target, scale_of, scaled
from rarebox.detectors.maps import CachedPicture, Input
from rarebox.types import Picture, Targets

VISIBLE = 0.3
"""A box of which a crop shows a smaller fraction is ignored."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


@dataclass(frozen=True)
class Draw:
    """What happens to one image.

    ``scale`` multiplies the size of the input. ``place`` in [0, 1] says where a crop lies in an image that is larger
    than the input. ``colour`` are the factors of brightness, contrast, and saturation.
    """

    mirrored: bool
    scale: float
    place: tuple[float, float]
    colour: tuple[float, float, float]

    @classmethod
    def of(cls, die: np.random.Generator, settings: TrainingSettings) -> "Draw":
        """Draw by the settings. Every image takes the same count of numbers from its generator."""
        mirrored, jitter = die.random() < settings.flip, die.uniform(-1, 1)
        zoom, x, y, *colour = die.uniform(-1, 1, 6)
        return cls(
            mirrored,
            float((1 + settings.scale_jitter * jitter) * settings.zoom**zoom),
            ((x + 1) / 2, (y + 1) / 2),
            (
                1 + settings.colour_jitter * colour[0],
                1 + settings.colour_jitter * colour[1],
                1 + settings.colour_jitter * colour[2],
            ),
        )


def augmented(
    picture: Picture | CachedPicture,
    targets: Targets,
    draw: Draw,
    size: Size,
    crop: bool,
    device: torch.device,
) -> tuple[Input, dict[str, Tensor]]:
    """The augmented input of a picture and its targets, boxes in pixels of that input.

    ``size`` is that of the network's input. With ``crop``, an image that its scale makes larger than
    the input is cut to the size of the input.
    """
    image = as_input(picture, scaled(size, draw.scale), device)
    truth = as_target(targets, scale_of(picture, *image.shape[1:]), device)
    if isinstance(image, Tensor):
        if crop and draw.scale > 1:
            window = (round(image.shape[1] / draw.scale), round(image.shape[2] / draw.scale))
            image, truth = _crop(image, truth, window, draw.place)
        if draw.colour != (1.0, 1.0, 1.0):
            image = _recolour(image, draw.colour)
    if draw.mirrored:
        width = image.shape[2]
        boxes = truth["boxes"]
        image = image.flip(2)
        boxes = boxes[:, [2, 1, 0, 3]] * boxes.new_tensor([-1, 1, -1, 1]) + boxes.new_tensor([1, 0, 1, 0]) * width
        truth = {**truth, "boxes": boxes}
    return image, truth


def _crop(
    image: Tensor, truth: dict[str, Tensor], window: tuple[int, int], place: tuple[float, float]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cut a window (h, w) out of the image. Boxes are clipped; those that are hardly visible are ignored."""
    height, width = window
    left, top = round(place[0] * (image.shape[2] - width)), round(place[1] * (image.shape[1] - height))
    moved = truth["boxes"] - truth["boxes"].new_tensor([left, top, left, top])
    limits = moved.new_tensor([width, height, width, height])
    boxes = torch.minimum(moved.clamp(min=0), limits)
    visible = _areas(boxes) / _areas(moved).clamp(min=1e-6)
    trusted = (visible >= VISIBLE).float()
    stays = ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
    columns = {
        **truth,
        "boxes": boxes,
        "class_weight": truth["class_weight"] * trusted,
        "box_weight": truth["box_weight"] * trusted,
    }
    return image[:, top : top + height, left : left + width], {name: each[stays] for name, each in columns.items()}


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1)


def _recolour(image: Tensor, factors: tuple[float, float, float]) -> Tensor:
    """Multiply brightness, contrast (about the mean luminance), and saturation (about each pixel's luminance)."""
    brightness, contrast, saturation = factors
    image = image * brightness
    grey = (image * image.new_tensor(GREY)[:, None, None]).sum(dim=0, keepdim=True)
    image = grey + (image - grey) * saturation
    mean = grey.mean()
    return (mean + (image - mean) * contrast).clamp(0, 255)
