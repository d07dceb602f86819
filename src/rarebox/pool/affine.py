"""The geometry of views, without their pixels: where a box lies on an augmented copy of its image.

The geometry of a view is one affine map, so boxes need no code per view: a box maps to the hull of its mapped corners,
clipped at the border of the copy. A box and a detection on a copy are compared in the copy's frame (Eq. 2 and Eq. 4),
as CALD does. The hull of a rotated box is larger than the box, so a comparison in the image's frame would enlarge the
detection twice and the box not at all. Coordinates are continuous: x runs from 0 at the left edge to the width at the
right edge.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from rarebox.core.boxes import clip, cover
from rarebox.types import Bools, Floats

MAX_COVER = 0.4
"""A view does not count for a detection if a patch hides more than this fraction of it (decisions row 1)."""


@dataclass(frozen=True, eq=False)
class Frame:
    """The geometry of one augmented copy relative to its image.

    ``matrix`` (2, 3) maps a point of the image to the copy. ``patches`` (P, 4) are the regions of the image that the
    copy hides. ``extent`` is the copy's width and height in pixels, or None if they are unknown.
    """

    name: str
    matrix: NDArray[np.float64]
    patches: Floats = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    extent: tuple[float, float] | None = None

    def to_view(self, boxes: Floats) -> Floats:
        """Map boxes of the image to the copy, clipped at its border, in its pixels: (N, 4) -> (N, 4).

        A box outside the copy has no area there.
        """
        corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64) @ self.matrix[:, :2].T
        corners += self.matrix[:, 2]
        return self.cut(np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32))

    def cut(self, view_boxes: Floats) -> Floats:
        """Clip boxes in the copy at its border, if that is known: (N, 4) -> (N, 4)."""
        return clip(view_boxes, *self.extent) if self.extent else view_boxes

    def back(self, view_boxes: Floats) -> Floats:
        """Invert :meth:`to_view`: boxes in the copy -> boxes of the image, (N, 4) -> (N, 4).

        Not for comparisons: no box of the image maps to a box that is too thin for the rotation. For such a box the
        result has x2 < x1 or y2 < y1.
        """
        linear, shift = self.matrix[:, :2], self.matrix[:, 2]
        corners = view_boxes.astype(np.float64)
        middle = ((corners[:, :2] + corners[:, 2:]) / 2 - shift) @ np.linalg.inv(linear).T
        half = (corners[:, 2:] - corners[:, :2]) / 2 @ np.linalg.pinv(np.abs(linear)).T
        return np.concatenate([middle - half, middle + half], axis=1).astype(np.float32)

    @property
    def inverse(self) -> Floats:
        """The map (2, 3) from a point of the copy to a point of the image."""
        return np.linalg.inv(_square(self.matrix))[:2]

    def hides(self, boxes: Floats) -> Bools:
        """Which boxes of the image do not count in this copy: (N, 4) -> (N,).

        A patch hides more than ``MAX_COVER`` of them, or they lie outside the copy.
        """
        shown = self.to_view(boxes)
        outside = np.any(shown[:, 2:] <= shown[:, :2], axis=1)
        return outside | np.any(cover(boxes, self.patches) > MAX_COVER, axis=1)

    def from_original(self, scale: Floats) -> "Frame":
        """The frame relative to an original; ``scale`` (4,) maps boxes of the original to boxes of the image."""
        return Frame(self.name, self.matrix * [scale[0], scale[1], 1], self.patches / scale, self.extent)


def still(height: int, width: int) -> NDArray[np.float64]:
    """The identity map: (2, 3)."""
    return np.eye(2, 3)


def mirrored(height: int, width: int) -> NDArray[np.float64]:
    """The map of a horizontal flip: (2, 3)."""
    return np.array([[-1.0, 0, width], [0, 1, 0]])


def scaled_size(factor: float, height: int, width: int) -> tuple[int, int]:
    """Height and width of a copy ``factor`` times as large, in whole pixels."""
    return max(1, round(height * factor)), max(1, round(width * factor))


def size(name: str, height: int, width: int) -> tuple[int, int]:
    """Height and width of the named view's picture."""
    return SIZES[name](height, width) if name in SIZES else (height, width)


def scaled(factor: float, height: int, width: int) -> NDArray[np.float64]:
    """The map to a copy ``factor`` times as large: (2, 3)."""
    new_height, new_width = scaled_size(factor, height, width)
    return np.diag([new_width / width, new_height / height, 1])[:2]


def rotated(degrees: float, height: int, width: int) -> NDArray[np.float64]:
    """The map of a rotation about the centre, scaled so that the whole image fits its original size: (2, 3)."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre = np.array([width / 2, height / 2])
    grown = np.array([width * abs(cos) + height * abs(sin), width * abs(sin) + height * abs(cos)])
    turn = np.diag(2 * centre / grown) @ np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([turn, centre - turn @ centre])


MAPS: dict[str, Callable[[int, int], NDArray[np.float64]]] = {
    "flip": mirrored,
    "scale_0.8": partial(scaled, 0.8),
    "rotate_5": partial(rotated, 5.0),
    "scale_1.2": partial(scaled, 1.2),
    "colour": still,
    "noise": still,
}
"""Height and width of an image -> the map of a view, for the views whose map is not random."""

SIZES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "scale_0.8": partial(scaled_size, 0.8),
    "scale_1.2": partial(scaled_size, 1.2),
}
"""Height and width of an image -> those of a view's picture, for the views of another size."""


def _square(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.vstack([matrix, [0, 0, 1]])
