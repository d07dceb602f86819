"""Eq. 7 on tensors: what each anchor or proposal learns, with which weight, and how the sums are divided."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rarebox.detectors.distributed import crew_size, total
from rarebox.method import weighted_loss

Normaliser = Literal["own", "batch", "paper"]
"""``own``: as torchvision's stock detector does. ``batch``: RetinaNet's positives counted over the batch, as
MMDetection does. ``paper``: Eq. 7 to the letter, 1/|P_cls|, 1/|N_cls|, 1/|P_reg|."""


BACKGROUND, BETWEEN = -1, -2
"""What torchvision's matcher says where no box matches, and where one overlaps too much for background."""


@dataclass(frozen=True)
class Assignment:
    """What each of S anchors or proposals of one image is taught, by each branch for itself.

    ``row`` (S,) is the target of the class branch's positives, ``positive`` (S,), and ``class_weight`` (S,) that
    branch's weights: 1 for negatives, 0 for ignored samples. ``box_row`` (S,) is the target of the box branch,
    ``box_weight`` (S,) its weights: 0 where it is taught nothing. Rows are arbitrary where they do not count.
    """

    row: Tensor
    positive: Tensor
    class_weight: Tensor
    box_row: Tensor
    box_weight: Tensor

    @property
    def sampled_as(self) -> Tensor:
        """For torchvision's samplers, (S,): 1 a positive of either branch, 0 a negative, -1 ignored by both."""
        taught = self.positive | (self.box_weight > 0)
        return torch.where(taught, 1, torch.where(self.class_weight > 0, 0, -1))


def assign(overlap: Tensor, target: dict[str, Tensor], match: Callable[[Tensor], Tensor]) -> Assignment:
    """P_cls, N_cls and P_reg of Eq. 7 for one image, by IoU (G, S) of its targets with anchors or proposals.

    ``match`` is torchvision's matcher: (g, S) -> (S,), the nearest row, BACKGROUND or BETWEEN. Each branch matches
    against the boxes that it trusts, and against those that neither branch trusts, which both ignore. A box that the
    box branch alone trusts is no background for the class branch, which ignores it. Samples that match a rejected box
    and no object are negatives, also where they would be ignored.
    """
    class_weight, box_weight = target["class_weight"], target["box_weight"]
    unknown = target["background"] & (class_weight > 0)  # the class branch knows no object there
    trusts_class, trusts_box = (class_weight > 0) & ~unknown, box_weight > 0
    nobody = (class_weight == 0) & ~trusts_box
    by_class = _match(overlap, trusts_class | nobody, match)
    by_box = _match(overlap, trusts_box | nobody, match)
    doubted = _match(overlap, (class_weight == 0) & trusts_box, match)
    rejected = _match(overlap, unknown & ~trusts_box, match)

    row, box_row = by_class.clamp(min=0), by_box.clamp(min=0)
    weight = torch.where(by_class >= 0, _take(class_weight, row), (by_class == BACKGROUND).float())
    weight = weight.masked_fill((by_class == BACKGROUND) & (doubted != BACKGROUND), 0.0)
    positive = (by_class >= 0) & (weight > 0)
    weight = weight.masked_fill((rejected >= 0) & ~positive, 1.0)
    return Assignment(row, positive, weight, box_row, torch.where(by_box >= 0, _take(box_weight, box_row), 0.0))


def _match(overlap: Tensor, chosen: Tensor, match: Callable[[Tensor], Tensor]) -> Tensor:
    """``match`` against some of the targets: (G, S), (G,) -> (S,) a row among all of them, or a negative number."""
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return overlap.new_full((overlap.shape[1],), BACKGROUND, dtype=torch.int64)
    matched = match(overlap[rows])
    return torch.where(matched >= 0, rows[matched.clamp(min=0)], matched)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, also where there are no values at all (an image without targets)."""
    return values[index] if len(values) else values.new_zeros(len(index))


def reduce(
    class_loss: Tensor,
    positive: Tensor,
    class_weight: Tensor,
    box_loss: Tensor,
    box_weight: Tensor,
    by: int,
    boxes_by: int,
    normaliser: Normaliser,
) -> tuple[Tensor, Tensor]:
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
        positives,
        class_weight[positive],
        class_loss[~positive],
        box_loss,
        box_weight,
        (len(positives), len(positives), len(box_loss)),
    )
    return terms[0] + terms[1], terms[2]


def mean_over_images(terms: Sequence[Tensor]) -> Tensor:
    """One term of each image -> their mean over the batch; shared among processes as in :func:`reduce`."""
    (images,) = total(len(terms))
    return crew_size() * torch.stack(list(terms)).sum() / images
