"""A moving average of the weights during a fit, and the pseudo labels that it renews as a teacher.

Not in the paper, which makes pseudo labels once per cycle by the model before retraining. The mean teacher of
semi-supervised detection (Tarvainen and Valpola 2017; Liu et al. 2021) renews them at every step.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou

from rarebox.config import PseudoSettings
from rarebox.detectors.maps import Input
from rarebox.types import Floats


class Average:
    """An exponential moving average of the trained weights of a network. ``decay`` 0 keeps none.

    It follows the network closely at first and reaches its full length after about 10 / (1 - decay) steps, so that the
    start of a short fit does not dominate it.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.teacher = deepcopy(network).eval() if decay else None
        """The network with the averaged weights, or None."""
        self._network = network

    @property
    def weights(self) -> list[Tensor]:
        """The averaged weights, in the order of the network's trained parameters."""
        return [p.detach() for p in self.teacher.parameters() if p.requires_grad] if self.teacher else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the network's weights after a step, counted from 0."""
        if self.teacher:
            trained = (p for p in self._network.parameters() if p.requires_grad)
            for weight, own in zip(self.weights, trained, strict=True):
                weight.lerp_(own, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def apply(self) -> None:
        """Copy the averaged weights into the network."""
        if self.teacher:
            self._network.load_state_dict(self.teacher.state_dict())


@dataclass(frozen=True)
class Renewal:
    """How a teacher renews the pseudo labels of partially labelled images during a fit.

    ``scores`` and ``worth`` are the points of a piecewise linear map from the score of a detection to conf(b) of Eq. 5.
    From ``class_high`` up, a detection trains both branches; below that, and above ``class_low``, it is ignored.
    """

    settings: PseudoSettings
    scores: Floats
    worth: Floats

    @torch.no_grad()
    def __call__(self, teacher: nn.Module, images: Sequence[Input], truths: Sequence[dict[str, Tensor]]) -> list[Any]:
        """The targets with renewed pseudo labels of partially labelled images (``partial``)."""
        rows = [i for i, truth in enumerate(truths) if truth["partial"]]
        if not rows:
            return list(truths)
        found: Any = teacher([images[i] for i in rows])
        if isinstance(found, dict):  # padded columns, on the asynchronous path of a GPU
            real = found.pop("real")
            found = [{name: c[i][real[i]] for name, c in found.items() if len(c.shape) > 1} for i in range(len(rows))]
        renewed = list(truths)
        for i, detections in zip(rows, found, strict=True):
            renewed[i] = self._renewed(truths[i], detections["boxes"], detections["labels"], detections["scores"])
        return renewed

    def _renewed(self, truth: dict[str, Tensor], boxes: Tensor, labels: Tensor, scores: Tensor) -> dict[str, Tensor]:
        known = ~truth["pseudo"]
        columns = {name: truth[name][known] for name in ROW_COLUMNS}
        worth = _interpolated(scores.float(), scores.new_tensor(self.scores), scores.new_tensor(self.worth))
        human = columns["boxes"][~columns["background"]]
        rejected = columns["boxes"][columns["background"]]
        used = (
            (worth > self.settings.class_low)
            & (_nearest(boxes, human) <= self.settings.human_iou)
            & (_nearest(boxes, rejected) < self.settings.rejected_iou)
            & ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(dim=1)
        )
        weight = (worth[used] >= self.settings.class_high).to(columns["class_weight"].dtype)
        new = {
            "boxes": boxes[used].to(columns["boxes"].dtype),
            "labels": labels[used],
            "class_weight": weight,
            "box_weight": weight,
            "background": torch.zeros_like(used[used]),
            "pseudo": torch.ones_like(used[used]),
        }
        return {**truth, **{name: torch.cat([columns[name], new[name]]) for name in ROW_COLUMNS}}


ROW_COLUMNS = ("boxes", "labels", "class_weight", "box_weight", "background", "pseudo")
"""The columns of a target that have one row per box."""


def _nearest(boxes: Tensor, others: Tensor) -> Tensor:
    """The largest IoU of each box with the others: (N, 4), (M, 4) -> (N,), 0 without others."""
    return box_iou(boxes, others).amax(dim=1) if len(others) and len(boxes) else boxes.new_zeros(len(boxes))


def _interpolated(x: Tensor, points: Tensor, values: Tensor) -> Tensor:
    """``numpy.interp`` on tensors: (N,), increasing (P,), (P,) -> (N,)."""
    right = torch.searchsorted(points, x).clamp(1, len(points) - 1)
    left = right - 1
    part = ((x - points[left]) / (points[right] - points[left]).clamp(min=1e-9)).clamp(0, 1)
    return values[left] + part * (values[right] - values[left])
