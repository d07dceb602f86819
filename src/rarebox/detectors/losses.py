"""Eq. 7 on tensors: what each anchor or proposal learns, with which weight, and how the sums are divided."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rarebox.detectors.distributed import crew_size, total
from rarebox.method import weighted_loss

Normaliser = Literal["own", "batch", "paper"]
"""``own``: as torchvision's stock detector does. ``batch``: RetinaNet's positives counted over the batch, as
MMDetection does. ``paper``: Eq. 7 to the letter, 1/|P_cls|, 1/|N_cls|, 1/|P_reg|."""


@dataclass(frozen=True)
class Assignment:
    """What each of S anchors or proposals of one image is taught.

    ``index`` (S,) is the matched target row (any row where nothing matched), ``positive`` (S,) the class branch's
    positives, ``class_weight`` (S,) its weights (0: ignored), ``box_weight`` (S,) the box branch's (0: not taught).
    """

    index: Tensor
    positive: Tensor
    class_weight: Tensor
    box_weight: Tensor


def assign(matched: Tensor, target: dict[str, Tensor]) -> Assignment:
    """Weights of a torchvision matching: (S,) target row, or -1 background, or -2 ignored.

    Background rows weigh 1; a row matched to a ``background`` target is background too; weight 0 is ignored.
    """
    index, hit = matched.clamp(min=0), matched >= 0
    class_weight = torch.where(hit, _take(target["class_weight"], index), 1.0).masked_fill(matched == -2, 0.0)
    box_weight = torch.where(hit, _take(target["box_weight"], index), 0.0)
    return Assignment(index, hit & ~_take(target["background"], index), class_weight, box_weight)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, also where there are no values at all (an image without targets)."""
    return values[index] if len(values) else values.new_zeros(len(index))


def reduce(
    class_loss: Tensor, positive: Tensor, class_weight: Tensor, box_loss: Tensor, box_weight: Tensor, by: int,
    boxes_by: int, normaliser: Normaliser,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Per-sample losses of a batch -> the class term and the box term of Eq. 7.

    Samples with weight 0 must have been left out. ``by`` and ``boxes_by`` are the detector's own normalisers. Where the
    batch is shared among processes, all must call this with their shares, and the *mean* of the results is the term:
    gradients are averaged, too.
    """
    positives, negatives = class_loss[positive], class_loss[~positive]
    counts = (len(positives), len(negatives), len(box_loss)) if normaliser == "paper" else (by, by, boxes_by)
    by_positives, by_negatives, by_boxes = total(*counts)
    terms = weighted_loss(
        positives, class_weight[positive], negatives, box_loss, box_weight, (by_positives, by_negatives, by_boxes)
    )
    return crew_size() * (terms[0] + terms[1]), crew_size() * terms[2]


def reduce_image(
    class_loss: Tensor, positive: Tensor, class_weight: Tensor, box_loss: Tensor, box_weight: Tensor
) -> tuple[Tensor, Tensor]:
    """The same for one image by itself, each branch divided by its positives."""
    positives = class_loss[positive]
    terms = weighted_loss(
        positives, class_weight[positive], class_loss[~positive], box_loss, box_weight,
        (len(positives), len(positives), len(box_loss)),
    )  # fmt: skip
    return terms[0] + terms[1], terms[2]


def mean_over_images(terms: Sequence[Tensor]) -> Tensor:
    """One term of each image -> their mean over the batch; shared among processes as in :func:`reduce`."""
    (images,) = total(len(terms))
    return crew_size() * torch.stack(list(terms)).sum() / images
