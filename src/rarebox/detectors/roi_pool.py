"""RoIAlign as one sparse product, because the backward pass of torchvision's CPU kernel is scalar."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from rarebox.detectors import on_device
from rarebox.pool.views import send


class RoIPool(MultiScaleRoIAlign):
    """torchvision's pooling of boxes from a feature pyramid, reimplemented for CPUs and the asynchronous path
    (:mod:`~rarebox.detectors.on_device`). Other cases use torchvision's kernel.

    Every cell of a pooled box is a weighted sum of pixels of its level, so one ``embedding_bag`` pools all boxes of all
    levels. On a CPU that is several times faster, forwards and backwards (``benchmarks/roi_pool.py``). ``scales`` and
    ``map_levels`` must be set, and ``sampling_ratio`` above 0.
    """

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps (B, C, h, w) by name; boxes (R, 4) of each image in input pixels -> (sum of R, C, side, side)."""
        maps = [x[name] for name in self.featmap_names]
        device = maps[0].device
        slow = device.type != "cpu" and (self.training or not on_device.use_async_path(device))
        if slow or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return super().forward(x, boxes, image_shapes)
        assert self.scales is not None
        assert self.map_levels is not None
        level = self.map_levels(boxes)
        every = torch.cat(boxes)
        image = torch.cat([torch.full((len(b),), i, device=device) for i, b in enumerate(boxes)])
        sizes = send(torch.tensor([m.shape[2:] for m in maps]), device)
        areas = send(torch.tensor([len(m) for m in maps]), device) * sizes.prod(dim=1)
        scaled = every * send(torch.tensor(self.scales), device)[level][:, None]
        corner, extent = scaled[:, :2], (scaled[:, 2:] - scaled[:, :2]).clamp(min=1.0)
        height, width = sizes[level].unbind(dim=1)
        rows, row_weights = self._taps(corner[:, 1], extent[:, 1], height, self.output_size[0])
        columns, column_weights = self._taps(corner[:, 0], extent[:, 0], width, self.output_size[1])
        first = (areas.cumsum(0) - areas)[level] + image * height * width
        places = first[:, None, None, None, None] + rows[:, :, None, :, None] * width[:, None, None, None, None]
        places = places + columns[:, None, :, None, :]
        weights = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        pixels = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]).to(weights.dtype)
        cells = places.flatten(0, 2).flatten(1)
        pooled = F.embedding_bag(cells, pixels, per_sample_weights=weights.flatten(0, 2).flatten(1), mode="sum")
        return pooled.unflatten(0, (-1, *self.output_size)).permute(0, 3, 1, 2)

    def _taps(self, start: Tensor, extent: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor]:
        """Along one axis, the pixels that contribute to each of ``side`` cells of a box, and their weights.

        ``start``, ``extent`` and the map's ``length`` are (R,); the results are (R, side, 2 * sampling_ratio), two
        neighbours for each sampling point. Points more than a pixel off the map have weight 0.
        """
        points = side * self.sampling_ratio
        place = start[:, None] + (torch.arange(points, device=start.device) + 0.5) / points * extent[:, None]
        last = (length - 1)[:, None]
        inside = (place >= -1) & (place <= length[:, None])
        place = place.clamp(min=0).minimum(last.to(place))
        low = place.floor()
        share = torch.stack([1 - (place - low), place - low], dim=2) * inside[:, :, None] / self.sampling_ratio
        pixels = torch.stack([low.long(), torch.minimum(low.long() + 1, last)], dim=2)
        return pixels.unflatten(1, (side, -1)).flatten(2), share.unflatten(1, (side, -1)).flatten(2)
