"""Eq. 7 in D-FINE's matching loss: every term of the library's loss, with a weight on every target box.

``transformers`` matches each target with one query of each decoder layer; all other queries are background. Here the
targets that a branch trusts are matched. The class weight acts on the varifocal loss of the query, the box weight on
L1, GIoU and the distribution terms (FGL, DDF). A query without a target adds no loss if it shows an ignored box
(``SHOWS``), and is background otherwise. With all weights 1 and nothing ignored, each term equals the library's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou
from transformers import DFineConfig
from transformers.loss.loss_d_fine import bbox2distance
from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

from rarebox.detectors.distributed import crew_size, total
from rarebox.detectors.losses import Normaliser, two_sided
from rarebox.method import weighted_loss

SHOWS = 0.5
"""Minimum IoU at which a query shows a box: the evaluation would count it as a detection of that object (AP50)."""

TEMPERATURE = 5
"""Temperature of the distillation (DDF), as in the library."""


@dataclass(frozen=True)
class Wanted:
    """The targets of one image, in fractions of the canvas.

    Rows are the G boxes that a branch trusts: ``boxes`` (G, 4) as x, y of the centre, width and height; ``labels``
    (G,); ``positive`` (G,), where they are objects to the class branch; ``class_weight`` (G,), 0 where it ignores them
    and 1 where they are background to it; ``box_weight`` (G,). ``ignored`` (I, 4) are the corners of the boxes that the
    class branch ignores, ``rejected`` (R, 4) of those that are background to it.
    """

    boxes: Tensor
    labels: Tensor
    positive: Tensor
    class_weight: Tensor
    box_weight: Tensor
    ignored: Tensor
    rejected: Tensor

    @classmethod
    def of(cls, target: dict[str, Tensor], canvas: tuple[int, int]) -> "Wanted":
        """The targets of ``inputs.as_target`` on a canvas of that height and width, in pixels."""
        height, width = canvas
        corners = target["boxes"] / target["boxes"].new_tensor([width, height, width, height])
        class_weight, box_weight = target["class_weight"], target["box_weight"]
        background = target["background"] & (class_weight > 0)
        positive = (class_weight > 0) & ~background
        trusted = positive | (box_weight > 0)
        return cls(
            box_convert(corners[trusted], "xyxy", "cxcywh"),
            target["labels"][trusted],
            positive[trusted],
            torch.where(background, 1.0, class_weight)[trusted],
            box_weight[trusted],
            corners[class_weight == 0],
            corners[background & (box_weight == 0)],
        )

    @property
    def as_labels(self) -> dict[str, Tensor]:
        """The form in which the library matches targets and makes denoising queries from them."""
        return {"class_labels": self.labels, "boxes": self.boxes}


@dataclass(frozen=True)
class Layer:
    """What one layer predicts for Q queries of B images, by the name that the library gives to its terms.

    ``logits`` (B, Q, K); ``boxes`` (B, Q, 4), centre and size in [0, 1]. ``corners`` (B, Q, 4 (bins + 1)) are the
    distributions of the four sides, relative to ``points`` (B, Q, 4). ``teacher`` are the corners and logits of the
    layer that it is distilled from, if any. ``groups`` counts the denoising groups, 0 for the queries themselves.
    """

    name: str
    logits: Tensor
    boxes: Tensor
    corners: Tensor | None = None
    points: Tensor | None = None
    teacher: tuple[Tensor, Tensor] | None = None
    groups: int = 0


@dataclass(frozen=True)
class Matches:
    """Which queries of one layer train what.

    ``image`` and ``query`` (P,) are the matched queries and ``row`` (P,) their targets, counted over the batch.
    ``class_weight`` (B, Q) is 0 where the class branch ignores a query, ``positive`` (B, Q) marks its positives.
    ``free`` (B, Q) marks unmatched queries that are not ignored.
    """

    image: Tensor
    query: Tensor
    row: Tensor
    class_weight: Tensor
    positive: Tensor
    free: Tensor


class SetLoss(nn.Module):
    """The loss of a batch: all terms of all layers, by the names of the library."""

    def __init__(self, config: DFineConfig, normaliser: Normaliser, two_sided: bool = False) -> None:
        super().__init__()
        self.matcher = RTDetrHungarianMatcher(config)
        self.config, self.normaliser, self.two_sided = config, normaliser, two_sided

    def forward(self, outputs: Any, wanted: Sequence[Wanted]) -> dict[str, Tensor]:
        """The terms of a ``DFineModelOutput`` for the targets of its images.

        If several processes split the batch, the mean of their results is the loss (see ``losses.reduce``).
        """
        known = outputs.denoising_meta_values
        layers = list(_layers(outputs))
        matches = [self._match(layer, wanted, known) for layer in layers]
        everything = _Rows(
            torch.cat([image.boxes for image in wanted]),
            torch.cat([image.labels for image in wanted]),
            torch.cat([image.positive for image in wanted]),
            torch.cat([image.box_weight for image in wanted]),
        )
        counts = self._count(layers, matches, everything)
        terms: dict[str, Tensor] = {}
        for layer, matched, numbers in zip(layers, matches, counts, strict=True):
            for name, term in self._terms(layer, matched, everything, numbers).items():
                terms[f"loss_{name}{layer.name}"] = crew_size() * getattr(self.config, f"weight_loss_{name}") * term
        return terms

    def _match(self, layer: Layer, wanted: Sequence[Wanted], known: Any) -> Matches:
        labels = [image.as_labels for image in wanted]
        if layer.groups:
            pairs = [
                (rows, torch.arange(len(image.labels), device=rows.device).tile(layer.groups))
                for rows, image in zip(known["dn_positive_idx"], wanted, strict=True)
            ]
        else:
            # The library's matcher refuses boxes that are not finite, before the loss can report them.
            told = {"logits": layer.logits.detach(), "pred_boxes": layer.boxes.detach().nan_to_num()}
            pairs = self.matcher(told, labels)
        device, first = layer.boxes.device, 0
        weight = layer.boxes.new_ones(layer.boxes.shape[:2])
        positive = torch.zeros_like(weight, dtype=torch.bool)
        image, query, row = [], [], []
        for i, ((queries, rows), truth) in enumerate(zip(pairs, wanted, strict=True)):
            queries, rows = queries.to(device), rows.to(device)
            shown = box_convert(layer.boxes[i].detach(), "cxcywh", "xyxy")
            weight[i, _shows(shown, truth.ignored) & ~_shows(shown, truth.rejected)] = 0.0
            image.append(torch.full_like(queries, i))
            query.append(queries)
            row.append(rows + first)
            first += len(truth.labels)
        free = weight > 0
        image, query, row = torch.cat(image), torch.cat(query), torch.cat(row)
        weight[image, query] = torch.cat([truth.class_weight for truth in wanted])[row]
        positive[image, query] = torch.cat([truth.positive for truth in wanted])[row]
        free[image, query] = False
        return Matches(image, query, row, weight, positive, free)

    def _count(self, layers: Sequence[Layer], matches: Sequence[Matches], rows: "_Rows") -> list["_Counts"]:
        """The counts of each layer over all processes, summed at once: a process may lack denoising layers."""
        objects, boxes = rows.positive.sum(), (rows.box_weight > 0).sum()
        table = []
        for layer, matched in zip(layers, matches, strict=True):
            negatives = (~matched.positive & (matched.class_weight > 0)).sum()
            taught = (rows.box_weight[matched.row] > 0).sum()
            repeats = layer.groups or 1
            table.append(torch.stack([objects * repeats, negatives, boxes * repeats, taught, matched.free.sum()]))
        counts = torch.stack(table).flatten().tolist()
        missing = 5 * (2 * self.config.decoder_layers + 1) - len(counts)
        agreed = torch.tensor(total(*counts, *[0] * missing)).view(-1, 5).tolist()
        return [_Counts(*numbers) for numbers in agreed[: len(layers)]]

    def _terms(self, layer: Layer, matched: Matches, rows: "_Rows", counts: "_Counts") -> dict[str, Tensor]:
        here = matched.image, matched.query
        truth = rows.boxes[matched.row]
        ious, gious = _paired(*(box_convert(boxes, "cxcywh", "xyxy") for boxes in (layer.boxes[here], truth)))
        by = counts.objects, counts.negatives if self.normaliser == "paper" else counts.objects, counts.boxes
        taught = rows.box_weight[matched.row] > 0
        weight = rows.box_weight[matched.row[taught]]
        nothing = weight[:0]

        def boxes(loss: Tensor) -> Tensor:
            return weighted_loss(nothing, nothing, nothing, loss[taught], weight, by)[2]

        positive, negative = matched.positive, ~matched.positive & (matched.class_weight > 0)
        quality = torch.zeros_like(layer.logits)
        quality[matched.image, matched.query, rows.labels[matched.row]] = ious.detach()
        hot = torch.zeros_like(layer.logits)
        hot[matched.image, matched.query, rows.labels[matched.row]] = 1
        objects = self._varifocal(layer.logits[positive], quality[positive], hot[positive])
        class_weight = matched.class_weight[positive]
        if self.two_sided:
            objects, class_weight = two_sided(objects, lambda: self._background(layer.logits[positive]), class_weight)
        background = self._background(layer.logits[negative])
        classes = weighted_loss(objects, class_weight, background, nothing, nothing, by)
        terms = {
            "vfl": classes[0] + classes[1],
            "bbox": boxes((layer.boxes[here] - truth).abs().sum(dim=1)),
            "giou": boxes(1 - gious),
        }
        if layer.corners is not None:
            terms["fgl"] = boxes(self._fine_grained(layer, matched, truth, ious))
        if layer.teacher is not None:
            terms["ddf"] = self._distillation(layer, matched, taught, weight, ious.detach(), counts)
        return terms

    def _varifocal(self, logits: Tensor, quality: Tensor, hot: Tensor) -> Tensor:
        """The varifocal loss of queries, summed over the classes: (N, K) each -> (N,).

        ``hot`` is 1 at the class of an object, whose target ``quality`` is its IoU, and 0 elsewhere.
        """
        focus = self.config.focal_loss_alpha * logits.detach().sigmoid() ** self.config.focal_loss_gamma
        weight = focus * (1 - hot) + quality
        return F.binary_cross_entropy_with_logits(logits, quality, weight=weight, reduction="none").sum(dim=1)

    def _background(self, logits: Tensor) -> Tensor:
        """The loss of queries as background: (N, K) -> (N,)."""
        return self._varifocal(logits, torch.zeros_like(logits), torch.zeros_like(logits))

    def _fine_grained(self, layer: Layer, matched: Matches, truth: Tensor, ious: Tensor) -> Tensor:
        """FGL of each match, summed over the sides: (P,). Cross entropy of the two bins next to the target."""
        assert layer.corners is not None
        assert layer.points is not None
        here, bins = (matched.image, matched.query), self.config.max_num_bins
        with torch.no_grad():
            up = truth.new_tensor([self.config.up])
            corners = box_convert(truth, "cxcywh", "xyxy")
            place, right, left = bbox2distance(layer.points[here], corners, bins, self.config.reg_scale, up)
        sides = layer.corners[here].reshape(-1, bins + 1).log_softmax(dim=1)
        lower = place.long()[:, None]
        loss = -(sides.gather(1, lower)[:, 0] * left + sides.gather(1, lower + 1)[:, 0] * right)
        return loss.view(-1, 4).sum(dim=1) * ious.detach()

    def _distillation(
        self, layer: Layer, matched: Matches, taught: Tensor, weight: Tensor, ious: Tensor, counts: "_Counts"
    ) -> Tensor:
        """DDF: the last layer teaches the sides' distributions, to matched queries by IoU, to free ones by score."""
        assert layer.corners is not None
        assert layer.teacher is not None
        bins = self.config.max_num_bins + 1
        student, teacher = (
            corners.unflatten(-1, (4, bins)) / TEMPERATURE for corners in (layer.corners, layer.teacher[0].detach())
        )
        apart = F.kl_div(student.log_softmax(dim=-1), teacher.softmax(dim=-1), reduction="none").sum(dim=(2, 3))
        apart = TEMPERATURE**2 * apart
        score = layer.teacher[1].detach().sigmoid().amax(dim=-1)
        at = matched.image[taught], matched.query[taught]
        parts = (weight * ious[taught] * apart[at]).sum(), (score * apart)[matched.free].sum()
        means = [part / (4 * max(1, n)) for part, n in zip(parts, (counts.taught, counts.free), strict=True)]
        shares = [n**0.5 for n in (counts.taught, counts.free)]
        return (means[0] * shares[0] + means[1] * shares[1]) / max(1.0, sum(shares))


@dataclass(frozen=True)
class _Rows:
    """Targets of all images of a batch, as in :class:`Wanted`."""

    boxes: Tensor
    labels: Tensor
    positive: Tensor
    box_weight: Tensor


@dataclass(frozen=True)
class _Counts:
    """What a layer's sums are divided by: targets of the class branch, its negatives, targets of the box branch; and
    the distilled queries that have a target, and that have none."""

    objects: int
    negatives: int
    boxes: int
    taught: int
    free: int


def _layers(outputs: Any) -> Iterator[Layer]:
    """The layers that the library trains, paired and named as in ``DFineForObjectDetectionLoss``.

    Its logits and boxes have one entry more than its distributions, that of the first layer before refinement.
    """
    meta: dict[str, Any] | None = outputs.denoising_meta_values
    predicted: list[Tensor] = [
        outputs.intermediate_logits.float(),
        outputs.intermediate_reference_points.float().clamp(0, 1),
        outputs.intermediate_predicted_corners.float(),
        outputs.initial_reference_points.float().detach(),
    ]
    noisy: list[Tensor] = []
    if meta is not None:
        parts = [tensor.split(meta["dn_num_split"], dim=2) for tensor in predicted]
        noisy, predicted = [part[0] for part in parts], [part[1] for part in parts]
    logits, boxes, corners, _ = predicted
    depth = corners.shape[1]
    yield Layer("", logits[:, -1], boxes[:, -1])
    for i in range(depth - 1):
        yield Layer(f"_aux_{i}", *(tensor[:, i] for tensor in predicted), teacher=(corners[:, -1], logits[:, -1]))
    yield Layer(f"_aux_{depth - 1}", outputs.enc_topk_logits.float(), outputs.enc_topk_bboxes.float().clamp(0, 1))
    if meta is None:
        return
    for i in range(depth):
        teacher = (noisy[2][:, -1], noisy[0][:, -1]) if i < depth - 1 else None  # the last layer is the teacher
        yield Layer(f"_dn_{i}", *(tensor[:, i] for tensor in noisy), teacher=teacher, groups=meta["dn_num_group"])


def _shows(boxes: Tensor, others: Tensor) -> Tensor:
    """Which boxes show one of the others, both as corners: (Q, 4), (I, 4) -> (Q,)."""
    return (box_iou(boxes, others) >= SHOWS).any(dim=1)


def _paired(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of pairs of corners: (P, 4), (P, 4) -> (P,), (P,)."""
    low, high = torch.minimum(boxes, others), torch.maximum(boxes, others)
    shared = (low[:, 2:] - high[:, :2]).clamp(min=0).prod(dim=1)
    hull = (high[:, 2:] - low[:, :2]).prod(dim=1)
    areas = [(b[:, 2:] - b[:, :2]).prod(dim=1) for b in (boxes, others)]
    union = areas[0] + areas[1] - shared
    return shared / union, shared / union - (hull - union) / hull
