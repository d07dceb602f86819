"""The augmentations M of Eq. 2 and Eq. 4: the pixels of each view. Their geometry is in :mod:`rarebox.pool.affine`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rarebox.errors import unknown_name
from rarebox.pool import affine
from rarebox.pool.affine import Frame

CUTOUT_PATCHES, CUTOUT_SIDES = 2, (0.05, 0.2)
GREY = 117.0
"""The fill of patches and of the corners of a rotated image: about the mean of natural images, in [0, 255]."""


@dataclass(frozen=True, eq=False)
class View(Frame):
    """One augmented copy of an image: its frame, relative to the network's input, and its pixels.

    ``pixels`` computes the view's picture from the input, (3, h, w) -> (3, h', w') with values in [0, 255].
    """

    pixels: Callable[[Tensor], Tensor] = field(kw_only=True)

    def apply(self, image: Tensor) -> Tensor:
        """Compute the view's picture from the input (3, h, w), on the same device."""
        return self.pixels(image)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to the device. Pinned memory is used for a GPU, so that the host does not wait for the copy."""
    if device.type != "cuda":
        return tensor.to(device)
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)
    return pinned.to(device, non_blocking=True)


def make_views(names: Sequence[str], height: int, width: int, rng: np.random.Generator) -> tuple[View, ...]:
    """The named views of an input of ``height`` x ``width`` pixels. They draw from ``rng`` in order.

    Raises UserError for a name that is not in ``VIEWS``.
    """
    for name in names:
        if name not in VIEWS:
            raise unknown_name("view", name, VIEWS)
    made = [VIEWS[name](name, height, width, rng) for name in names]
    sizes = [affine.size(name, height, width) for name in names]
    return tuple(replace(view, extent=(w, h)) for view, (h, w) in zip(made, sizes, strict=True))


def _flip(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    return View(name, affine.mirrored(height, width), pixels=lambda image: image.flip(2))


def _cutout(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    sides = rng.uniform(*CUTOUT_SIDES, (CUTOUT_PATCHES, 2)) * (width, height)
    corner = rng.uniform(0, 1, (CUTOUT_PATCHES, 2)) * ((width, height) - sides)
    patches = np.concatenate([corner, corner + sides], axis=1).round().astype(np.float32)

    def pixels(image: Tensor) -> Tensor:
        image = image.clone()
        for x1, y1, x2, y2 in patches.astype(int):
            image[:, y1:y2, x1:x2] = GREY
        return image

    return View(name, affine.still(height, width), patches, pixels=pixels)


def _scale(factor: float, name: str, height: int, width: int, rng: np.random.Generator) -> View:
    size = affine.scaled_size(factor, height, width)
    return View(name, affine.scaled(factor, height, width), pixels=partial(_resize, size=size))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _rotate(degrees: float, name: str, height: int, width: int, rng: np.random.Generator) -> View:
    matrix = affine.rotated(degrees, height, width)
    return View(name, matrix, pixels=partial(_warp, matrix=matrix))


def _warp(image: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """Resample the image through the inverse of an affine map, at the same size."""
    height, width = image.shape[1:]
    unit = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])  # pixels -> [-1, 1]
    back = unit @ np.linalg.inv(np.vstack([matrix, [0, 0, 1]])) @ np.linalg.inv(unit)
    theta = send(torch.as_tensor(back[None, :2], dtype=image.dtype), image.device)
    grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return F.grid_sample(image[None] - GREY, grid, mode="bilinear", align_corners=False)[0] + GREY


def _colour(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    """Multiply brightness, contrast and saturation each by a number in [0.7, 1.3]."""
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3)

    def pixels(image: Tensor) -> Tensor:
        image = image * brightness
        image = (image - image.mean()) * contrast + image.mean()
        grey = image.mean(dim=0, keepdim=True)
        return ((image - grey) * saturation + grey).clamp(0, 255)

    return View(name, affine.still(height, width), pixels=pixels)


def _noise(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    """Add Gaussian noise with a standard deviation of 16."""
    seed = int(rng.integers(2**31))

    def pixels(image: Tensor) -> Tensor:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return (image + 16 * send(noise, image.device)).clamp(0, 255)

    return View(name, affine.still(height, width), pixels=pixels)


VIEWS: dict[str, Callable[[str, int, int, np.random.Generator], View]] = {
    "flip": _flip,
    "cutout": _cutout,
    "scale_0.8": partial(_scale, 0.8),
    "rotate_5": partial(_rotate, 5.0),
    "scale_1.2": partial(_scale, 1.2),
    "colour": _colour,
    "noise": _noise,
}
"""The views by name. The first four are CALD's and the default."""
