"""Eq. 7 on tensors: the target and weight of each anchor or proposal, and the normalisation of the sums."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rarebox.detectors.distributed import crew_size, total
from rarebox.method import two_sided_loss, weighted_loss

Normaliser = Literal["own", "batch", "paper"]
"""``own``: as in torchvision's detector. ``batch``: RetinaNet's positives are counted over the batch, as in
MMDetection. ``paper``: 1/|P_cls|, 1/|N_cls|, 1/|P_reg|, exactly as in Eq. 7."""


BACKGROUND, BETWEEN = -1, -2
"""Values of torchvision's matcher where no box matches, and where the IoU is between the thresholds."""


@dataclass(frozen=True)
class Assignment:
    """The targets of S anchors or proposals of one image, for each branch by itself.

    ``positive`` (S,) marks the class branch's positives, ``row`` (S,) is their target, and ``class_weight`` (S,) that
    branch's weight: 1 for negatives, 0 for ignored samples. ``box_row`` (S,) is the target of the box branch, and
    ``box_weight`` (S,) its weight: 0 without a target. Rows are arbitrary where the weight is 0.
    """

    row: Tensor
    positive: Tensor
    class_weight: Tensor
    box_row: Tensor
    box_weight: Tensor

    @property
    def sampled_as(self) -> Tensor:
        """Labels (S,) for torchvision's samplers: 1 for a positive of either branch, 0 negative, -1 ignored by both."""
        taught = self.positive | (self.box_weight > 0)
        return torch.where(taught, 1, torch.where(self.class_weight > 0, 0, -1))


def assign(overlap: Tensor, target: dict[str, Tensor], match: Callable[[Tensor], Tensor]) -> Assignment:
    """P_cls, N_cls and P_reg of Eq. 7 for one image, from the IoU (G, S) of its targets with anchors or proposals.

    ``match`` is torchvision's matcher: (g, S) -> (S,), the best row, BACKGROUND or BETWEEN. Each branch matches
    against the boxes that it trusts, and against those that neither branch trusts, which both ignore. The class branch
    ignores a box that only the box branch trusts. Samples that match a rejected box and no object are negatives, even
    where they would be ignored.
    """
    class_weight, box_weight = target["class_weight"], target["box_weight"]
    unknown = target["background"] & (class_weight > 0)  # background to the class branch
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
    """``match`` against the chosen targets: (G, S), (G,) -> (S,), a row among all targets, or a negative value."""
    rows = chosen.nonzero()[:, 0]
    if not len(rows):
        return overlap.new_full((overlap.shape[1],), BACKGROUND, dtype=torch.int64)
    matched = match(overlap[rows])
    return torch.where(matched >= 0, rows[matched.clamp(min=0)], matched)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, or zeros for an image without targets."""
    return values[index] if len(values) else values.new_zeros(len(index))


def two_sided(class_loss: Tensor, background_loss: Callable[[], Tensor], weight: Tensor) -> tuple[Tensor, Tensor]:
    """Class losses (S,) with background as the counterweight, and the weights (S,) that are left: 1 for all.

    Samples of weight 0 must be left out. Negatives, of weight 1, keep their loss.
    """
    return two_sided_loss(class_loss, background_loss(), weight), torch.ones_like(weight)


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

    Samples with weight 0 must be left out. ``by`` and ``boxes_by`` are the detector's own normalisers. If several
    processes split the batch, all must call this with their parts, and the *mean* of the results is the term, because
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
    """The two terms of one image, each branch divided by its positives; arguments as in :func:`reduce`."""
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
    """The mean of one term over the images of the batch, split among processes as in :func:`reduce`."""
    (images,) = total(len(terms))
    return crew_size() * torch.stack(list(terms)).sum() / images
