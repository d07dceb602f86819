"""Detections of a whole batch on a GPU, without making the host wait.

The host waits for its GPU, which then idles, whenever a size depends on data (``nonzero``, ``nms``, a boolean index),
a number is read, or pageable memory is copied. This module does none of that. Its tables have a fixed number of rows,
of which some are not *real*. Its loops have a fixed number of rounds, which may leave a picture not *settled*; the host
then repeats the batch on the synchronous path. B counts the pictures of a batch, n the rows of each.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from rarebox.pool.affine import Frame
from rarebox.pool.views import send
from rarebox.types import Floats

Columns = dict[str, Tensor]
"""Detections of a batch: (B, n, …) by the names of :class:`~rarebox.types.Detections`, ``real`` (B, n), and ``settled``
(B,)."""

FIRST = 1000
"""How many of the best rows of a picture suppression considers."""

ROUNDS = 32
"""Rounds of suppression; 24 were too few for some pictures of an untrained ResNet-50."""

_may_wait = ContextVar("may_wait", default=False)


def use_async_path(device: torch.device) -> bool:
    """Whether detectors use this module: only on a GPU. A CPU is faster with lists that shrink."""
    return device.type == "cuda" and not _may_wait.get()


@contextmanager
def waiting() -> Iterator[None]:
    """Make detectors use torchvision's synchronous path, for which the host waits."""
    token = _may_wait.set(True)
    try:
        yield
    finally:
        _may_wait.reset(token)


def take(table: Tensor, rows: Tensor) -> Tensor:
    """The chosen rows of each picture: (B, n, …), (B, k) -> (B, k, …)."""
    return table[torch.arange(len(rows), device=rows.device)[:, None], rows]


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """``boxes.paired_iou`` on tensors: (…, 4), (…, 4) -> (…); NaN for two boxes without area."""
    side = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    shared = side.clamp(min=0).prod(dim=-1)
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (boxes, others)]
    return shared / (areas[0] + areas[1] - shared)


def decode(coder: BoxCoder, deltas: Tensor, boxes: Tensor) -> Tensor:
    """torchvision's ``decode_single`` without its wait for a constant: (…, 4), (…, 4) -> (…, 4)."""
    boxes = boxes.to(deltas.dtype)
    by_place, _, by_size, _ = coder.weights
    size = boxes[..., 2:] - boxes[..., :2]
    middle = deltas[..., :2] / by_place * size + (boxes[..., :2] + 0.5 * size)
    half = 0.5 * ((deltas[..., 2:] / by_size).clamp(max=coder.bbox_xform_clip).exp() * size)
    return torch.cat([middle - half, middle + half], dim=-1)


def clip(boxes: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Boxes (B, …, 4) cut at the borders of each picture, given its (height, width)."""
    borders = send(torch.tensor([[w, h, w, h] for h, w in sizes], dtype=boxes.dtype), boxes.device)
    return boxes.clamp(min=0).minimum(borders.view(-1, *[1] * (boxes.ndim - 2), 4))


def best_boxes(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The first ``count`` rows that ``batched_nms`` keeps, best first: rows and real (B, count), settled (B,).

    Boxes are (B, n, 4), scores and labels (B, n). A row with a negative score is ignored; equal scores are in any
    order. Suppression depends on better rows only, so it considers the best ``FIRST``; a picture for which these are
    too few is not settled.
    """
    some, rows = scores.topk(min(FIRST, scores.shape[1]), dim=1)
    stays, settled = survivors(take(boxes, rows), some >= 0, threshold, take(labels, rows))
    enough = (stays.sum(dim=1) >= count) | (some[:, -1] < 0) | (some.shape[1] == scores.shape[1])
    best, places = some.masked_fill(~stays, -1).topk(min(count, some.shape[1]), dim=1)
    return take(rows, places), best >= 0, settled & enough


def survivors(boxes: Tensor, real: Tensor, threshold: float, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Greedy suppression of rows sorted best first: which rows stay (B, n), and which pictures are settled (B,).

    Boxes are (B, n, 4), real and labels (B, n). A row falls if a better row of its label that stays overlaps it. Each
    round applies this rule to all rows at once. The first row is final after one round, the second after two, and
    nearly all after a few; a result that a round does not change is the greedy one. A round is three kernels.
    """
    falls = iou(boxes[:, :, None], boxes[:, None]) > threshold
    if labels is not None:
        falls &= labels[:, :, None] == labels[:, None]
    falls, stays, before = falls.triu(1), real, real
    for _ in range(ROUNDS):
        before, stays = stays, real & ~(falls & stays[:, :, None]).any(dim=1)
    return stays, (stays == before).all(dim=1)


def scaled(found: Columns, scales: Floats) -> Columns:
    """Detections with boxes multiplied by ``scales`` (B, 4); a box that loses its area is not real."""
    boxes = found["boxes"] * send(torch.tensor(scales), found["boxes"].device)[:, None]
    real = found["real"] & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    return {**found, "boxes": boxes, "real": real}


def partners(found: Columns, images: Sequence[int], frames: Sequence[Frame]) -> Columns:
    """``candidates.find_partners`` for each picture and the image it shows: ``partner`` and ``iou``, (B, n) each.

    ``images`` (B,) is the row of the batch that holds the image itself, whose n boxes ``frames`` (B,) map into each
    picture. A partner is an index among the real rows, or -1.
    """
    boxes, real = found["boxes"], found["real"]
    own = _to_views(boxes[send(torch.tensor(images), boxes.device)], frames)
    overlap = iou(own[:, :, None], boxes[:, None]).masked_fill(~real[:, None], 0)
    best, row = overlap.max(dim=2)
    return {"partner": (real.cumsum(dim=1) - 1).gather(1, row).masked_fill(best == 0, -1), "iou": best}


def _to_views(boxes: Tensor, frames: Sequence[Frame]) -> Tensor:
    """``Frame.to_view`` of each picture's boxes: (B, n, 4) -> (B, n, 4)."""
    matrix = send(torch.tensor(np.stack([frame.matrix for frame in frames])), boxes.device)
    unbounded = (-math.inf, -math.inf, math.inf, math.inf)
    bounds = [(0, 0, *frame.extent) if frame.extent else unbounded for frame in frames]
    low, high = send(torch.tensor(bounds, dtype=boxes.dtype), boxes.device)[:, None].split(2, dim=-1)
    x1, y1, x2, y2 = boxes.double().unbind(dim=-1)
    corners = torch.stack([x1, y1, x2, y1, x2, y2, x1, y2], dim=-1).unflatten(-1, (4, 2))
    mapped = corners @ matrix[:, None, :, :2].mT + matrix[:, None, None, :, 2]
    ends = [end.float().maximum(low).minimum(high) for end in (mapped.amin(dim=2), mapped.amax(dim=2))]
    return torch.cat(ends, dim=-1)


class Parcel:
    """Tensors in transfer to the host, in one copy as ``float32``. Only :meth:`open` waits for it."""

    def __init__(self, tensors: Columns) -> None:
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        flat = torch.cat([tensor.flatten().float() for tensor in tensors.values()])
        self._numbers = torch.empty(flat.shape, pin_memory=flat.is_cuda).copy_(flat, non_blocking=flat.is_cuda)
        self._there = torch.cuda.current_stream(flat.device).record_event() if flat.is_cuda else None

    def open(self) -> dict[str, Floats]:
        """Wait for the transfer, and return the arrays by name."""
        if self._there is not None:
            self._there.synchronize()
        ends = np.cumsum([shape.numel() for shape in self._shapes.values()])
        parts = np.split(self._numbers.numpy(), ends[:-1])
        return {name: part.reshape(shape) for part, (name, shape) in zip(parts, self._shapes.items(), strict=True)}
