"""The augmentations M of Eq. 2 and 4: how each changes the network's input, and how boxes go into it and back.

A view's geometry is one affine map, so boxes need no code per view: the hull of their mapped corners, forwards with
the matrix, backwards with its inverse. Mirroring and scaling return a box exactly; rotation returns a box that
contains it. Coordinates are continuous: x runs from 0 at the left edge to the width at the right edge.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from rarebox.boxes import cover
from rarebox.errors import unknown_name
from rarebox.types import Bools, Floats

CUTOUT_PATCHES, CUTOUT_SIDES = 2, (0.05, 0.2)
MAX_COVER = 0.4
"""A patch that hides more of a detection than this makes the cutout view not count for it (decisions row 1)."""
GREY = 117.0
"""What patches and the corners of a rotated image are filled with: about the mean of natural images, in [0, 255]."""


@dataclass(frozen=True, eq=False)
class View:
    """One augmented copy of one image.

    ``matrix`` (2, 3) maps a point of the network's input into the view, ``pixels`` makes the view's picture from the
    input, (3, h, w) -> (3, h', w') with values in [0, 255], and ``patches`` (P, 4) are the places it hides.
    """

    name: str
    matrix: NDArray[np.float64]
    pixels: Callable[[Tensor], Tensor]
    patches: Floats = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))

    def apply(self, image: Tensor) -> Tensor:
        """The input (3, h, w) -> the view's picture, on the same device."""
        return self.pixels(image)

    def to_view(self, boxes: Floats) -> Floats:
        """Boxes of the input -> boxes in the view: (N, 4) -> (N, 4)."""
        return _hull(boxes, self.matrix)

    def undo(self, view_boxes: Floats) -> Floats:
        """Boxes in the view -> boxes of the input: (N, 4) -> (N, 4)."""
        return _hull(view_boxes, np.linalg.inv(_square(self.matrix))[:2])

    def hides(self, boxes: Floats) -> Bools:
        """Which boxes of the input are hidden too much to be judged in this view: (N, 4) -> (N,)."""
        return np.any(cover(boxes, self.patches) > MAX_COVER, axis=1)


def make_views(names: Sequence[str], height: int, width: int, rng: np.random.Generator) -> tuple[View, ...]:
    """The named views of an input of that size; what they draw at random comes from ``rng``, in order.

    Raises UserError for a name that is not in ``VIEWS``.
    """
    for name in names:
        if name not in VIEWS:
            raise unknown_name("view", name, VIEWS)
    return tuple(VIEWS[name](name, height, width, rng) for name in names)


def _flip(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    return View(name, np.array([[-1.0, 0, width], [0, 1, 0]]), lambda image: image.flip(2))


def _cutout(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    sides = rng.uniform(*CUTOUT_SIDES, (CUTOUT_PATCHES, 2)) * (width, height)
    corner = rng.uniform(0, 1, (CUTOUT_PATCHES, 2)) * ((width, height) - sides)
    patches = np.concatenate([corner, corner + sides], axis=1).round().astype(np.float32)

    def pixels(image: Tensor) -> Tensor:
        image = image.clone()
        for x1, y1, x2, y2 in patches.astype(int):
            image[:, y1:y2, x1:x2] = GREY
        return image

    return View(name, np.eye(2, 3), pixels, patches)


def _scale(factor: float, name: str, height: int, width: int, rng: np.random.Generator) -> View:
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    matrix = np.diag([size[1] / width, size[0] / height, 1])[:2]
    return View(name, matrix, partial(_resize, size=size))


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(image[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]


def _rotate(degrees: float, name: str, height: int, width: int, rng: np.random.Generator) -> View:
    """Turned about the centre, the canvas grown to hold all of it, then shrunk back to the input's size."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre = np.array([width / 2, height / 2])
    grown = np.array([width * abs(cos) + height * abs(sin), width * abs(sin) + height * abs(cos)])
    turn = np.diag(2 * centre / grown) @ np.array([[cos, -sin], [sin, cos]])
    matrix = np.column_stack([turn, centre - turn @ centre])
    return View(name, matrix, partial(_warp, matrix=matrix))


def _warp(image: Tensor, matrix: NDArray[np.float64]) -> Tensor:
    """Resample the image through the inverse of an affine map, size kept."""
    height, width = image.shape[1:]
    unit = np.array([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]])  # pixels -> [-1, 1]
    back = unit @ np.linalg.inv(_square(matrix)) @ np.linalg.inv(unit)
    theta = torch.as_tensor(back[None, :2], dtype=image.dtype, device=image.device)
    grid = F.affine_grid(theta, [1, 3, height, width], align_corners=False)
    return F.grid_sample(image[None] - GREY, grid, mode="bilinear", align_corners=False)[0] + GREY


def _colour(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    """Brightness, contrast and saturation each times a number in [0.7, 1.3]."""
    brightness, contrast, saturation = rng.uniform(0.7, 1.3, 3)

    def pixels(image: Tensor) -> Tensor:
        image = image * brightness
        image = (image - image.mean()) * contrast + image.mean()
        grey = image.mean(dim=0, keepdim=True)
        return ((image - grey) * saturation + grey).clamp(0, 255)

    return View(name, np.eye(2, 3), pixels)


def _noise(name: str, height: int, width: int, rng: np.random.Generator) -> View:
    """Gaussian noise with a standard deviation of 16."""
    seed = int(rng.integers(2**31))

    def pixels(image: Tensor) -> Tensor:
        noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        return (image + 16 * noise.to(image.device)).clamp(0, 255)

    return View(name, np.eye(2, 3), pixels)


VIEWS: dict[str, Callable[[str, int, int, np.random.Generator], View]] = {
    "flip": _flip,
    "cutout": _cutout,
    "scale_0.8": partial(_scale, 0.8),
    "rotate_5": partial(_rotate, 5.0),
    "scale_1.2": partial(_scale, 1.2),
    "colour": _colour,
    "noise": _noise,
}
"""Every view by its name; the first four are CALD's and the default."""


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])


def _hull(boxes: Floats, matrix: Floats) -> Floats:
    """Upright boxes around the mapped corners of boxes: (N, 4), (2, 3) -> (N, 4)."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
