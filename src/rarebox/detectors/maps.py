"""Feature maps of a frozen backbone, which the heads take in place of pixels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rarebox.pool.views import send

STRIDE = 32
"""Inputs are padded to a multiple of this, the coarsest stride of the backbone, in pixels."""

Extracted = tuple[tuple[int, int], list[NDArray[np.float16]]]
"""(h, w) of an input, and all levels of it and of its views in order, (h, w, C) each."""


@dataclass(frozen=True)
class FeatureMaps:
    """The backbone's feature maps of one input, or of a batch.

    ``levels`` are (C, h, w) at growing strides, ``shape`` is the (3, h, w) of the input; a batch adds a leading B.
    ``mirror`` returns the maps of the mirrored input.
    """

    levels: tuple[Tensor, ...]
    shape: tuple[int, ...]
    mirror: "Callable[[], FeatureMaps] | None" = None

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        return self.levels[0].device

    def flip(self, dim: int) -> "FeatureMaps":
        """Mirror like a tensor (3, h, w) of pixels; only the width, ``dim`` 2, can be mirrored."""
        assert dim == 2
        assert self.mirror is not None
        return self.mirror()


def collate(inputs: Sequence[FeatureMaps], height: int, width: int, device: torch.device) -> FeatureMaps:
    """Zero-pad the maps of several inputs to those of ``height`` and ``width``, as one batch on the device."""
    levels, own = [], inputs[0].shape
    for parts in zip(*(one.levels for one in inputs), strict=True):
        size = (height * parts[0].shape[1] // padded(own[1]), width * parts[0].shape[2] // padded(own[2]))
        batch = torch.zeros(len(parts), len(parts[0]), *size, device=device).to(memory_format=torch.channels_last)
        for row, part in zip(batch, parts, strict=True):
            row[:, : part.shape[1], : part.shape[2]] = send(part, device)
        levels.append(batch)
    return FeatureMaps(tuple(levels), (len(inputs), 3, height, width))


def padded(side: int) -> int:
    """The length of an input's side after padding, in pixels."""
    return -(-side // STRIDE) * STRIDE


@dataclass(frozen=True)
class CachedPicture:
    """A picture whose feature maps are cached.

    ``width`` and ``height`` are those of the original, ``input_size`` is the (h, w) of the input. ``maps(m)`` returns
    the maps of view m, counted from 1; ``maps(0)`` those of the image itself.
    """

    width: int
    height: int
    input_size: tuple[int, int]
    maps: Callable[[int], FeatureMaps]


Input = Tensor | FeatureMaps
"""A network's input for one image: pixels (3, h, w) in [0, 255], or cached maps."""
