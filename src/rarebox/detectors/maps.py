"""What a frozen body made of a picture, which takes the place of its pixels in front of the heads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rarebox.pool.views import send

STRIDE = 32
"""Inputs are padded to a multiple of this, the coarsest stride of the body."""


@dataclass(frozen=True)
class FeatureMaps:
    """What the body made of one input, in place of its pixels; or of a whole batch of them.

    ``levels`` (C, h, w) at growing strides, ``shape`` (3, h, w) of the input; with a leading B for a batch. ``mirror``
    brings the maps of the mirrored input.
    """

    levels: tuple[Tensor, ...]
    shape: tuple[int, ...]
    mirror: "Callable[[], FeatureMaps] | None" = None

    def flip(self, dim: int) -> "FeatureMaps":
        """As of a tensor (3, h, w) of pixels: mirrored, which is possible in its width alone."""
        assert dim == 2
        assert self.mirror is not None
        return self.mirror()


def collate(inputs: Sequence[FeatureMaps], height: int, width: int, device: torch.device) -> FeatureMaps:
    """Maps of several inputs -> those of one batch on the device, of an input of that padded size: filled up with 0."""
    levels, own = [], inputs[0].shape
    for parts in zip(*(one.levels for one in inputs), strict=True):
        size = (height * parts[0].shape[1] // padded(own[1]), width * parts[0].shape[2] // padded(own[2]))
        batch = torch.zeros(len(parts), len(parts[0]), *size, device=device).to(memory_format=torch.channels_last)
        for row, part in zip(batch, parts, strict=True):
            row[:, : part.shape[1], : part.shape[2]] = send(part, device)
        levels.append(batch)
    return FeatureMaps(tuple(levels), (len(inputs), 3, height, width))


def padded(side: int) -> int:
    """A side of the input as the body sees it."""
    return -(-side // STRIDE) * STRIDE


@dataclass(frozen=True)
class CachedPicture:
    """A picture whose maps are kept: ``width`` and ``height`` of the original, (h, w) of the input; ``maps(m)`` brings
    those of its view m, counted from 1, and of the input itself for 0."""

    width: int
    height: int
    input_size: tuple[int, int]
    maps: Callable[[int], FeatureMaps]
