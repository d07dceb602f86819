"""Faster R-CNN with a weight on every target box in both stages, and the class vector of every detection."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, remove_small_boxes
from torchvision.ops.poolers import LevelMapper

from rarebox.detectors import on_device
from rarebox.detectors.backbones import Pyramid
from rarebox.detectors.losses import Normaliser, assign, reduce, two_sided
from rarebox.detectors.maps import Input

FURTHER_ROWS = ("__background__",)
"""Rows of the class layers before those of the classes, by torchvision's name."""

BETA = 1 / 9
"""Smooth L1 is quadratic below this, in both stages, as in torchvision."""


class Sampler(BalancedPositiveNegativeSampler):
    """torchvision's sampler. With ``seeds``, one for each image, an image's sample depends on its own seed only."""

    seeds: Sequence[int] = ()

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (1, 0, -1) of each image's anchors or proposals -> masks of the sampled positives and negatives."""
        if not self.seeds:
            return super().__call__(matched_idxs)
        positives, negatives = [], []
        for seed, image in zip(self.seeds, matched_idxs, strict=True):
            torch.manual_seed(seed)
            for masks, mask in zip((positives, negatives), super().__call__([image]), strict=True):
                masks += mask
        return positives, negatives


class ExactCoder(BoxCoder):
    """torchvision's coder in float32 under any precision: above 256, bfloat16 represents even pixels only."""

    def decode(self, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        """Deltas (A, 4) of all images and their anchors -> boxes (A, 1, 4)."""
        return super().decode(rel_codes.float(), boxes)


class LeastMatcher(Matcher):
    """torchvision's matcher with a minimum IoU for low-quality matches, like MMDetection's ``min_pos_iou``."""

    def __init__(self, high: float, low: float, least: float) -> None:
        super().__init__(high, low, allow_low_quality_matches=True)
        self.least = least

    def set_low_quality_matches_(self, matches: Tensor, all_matches: Tensor, match_quality_matrix: Tensor) -> None:
        """Match each box with its best anchor, by IoU (G, S), if that is at least ``least``."""
        near = match_quality_matrix.max(dim=1).values >= self.least
        super().set_low_quality_matches_(matches, all_matches, match_quality_matrix[near])


class WeightedProposals(RegionProposalNetwork):
    """torchvision's proposal network. The class weight acts on objectness, the box weight on regression.

    torchvision passes labels from ``assign_targets_to_anchors`` to ``compute_loss`` unchanged. Here they have four
    columns: the sampler's label (1, 0, or -1 for ignored), the target objectness, class weight and box weight.
    """

    fg_bg_sampler: Sampler
    normaliser: Normaliser = "own"
    two_sided = False
    weighted = True
    beta = BETA
    settled: Tensor
    """(B,): for which images the asynchronous proposals equal those of ``filter_proposals``."""

    def forward(
        self, images: ImageList, features: dict[str, Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals (P, 4) of each image and, in training, the losses."""
        maps = list(features.values())
        if self.training or not on_device.use_async_path(maps[0].device):
            return super().forward(images, features, targets)
        return self._propose_for_all(images, maps), {}

    def filter_proposals(
        self,
        proposals: Tensor,
        objectness: Tensor,
        image_shapes: list[tuple[int, int]],
        num_anchors_per_level: list[int],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """torchvision's filter in float32: in bfloat16, many scores would be equal."""
        return super().filter_proposals(proposals, objectness.float(), image_shapes, num_anchors_per_level)

    def _propose_for_all(self, images: ImageList, maps: list[Tensor]) -> list[Tensor]:
        """``filter_proposals`` with a fixed number of rows: (P, 4) per image, padded with 0."""
        objectness, deltas = self.head(maps)
        counts = [level.shape[1:].numel() for level in objectness]
        most = min(self.pre_nms_top_n(), max(counts))
        flat = [
            t.float().reshape(len(objectness[0]), sum(counts), -1)
            for t in concat_box_prediction_layers(objectness, deltas)
        ]
        anchors = self.anchor_generator(images, maps)[0].split(counts)
        levels = []
        for logits, codes, own in zip(flat[0].split(counts, 1), flat[1].split(counts, 1), anchors, strict=True):
            scores, rows = logits[..., 0].sigmoid().topk(min(most, len(own)), dim=1)
            boxes = on_device.clip(
                on_device.decode(self.box_coder, on_device.take(codes, rows), own[rows]), images.image_sizes
            )
            lacking = most - rows.shape[1]
            levels.append((F.pad(boxes, (0, 0, 0, lacking)), F.pad(scores, (0, lacking), value=-1.0)))
        boxes, scores = (torch.stack(column, dim=1) for column in zip(*levels, strict=True))
        large = ((boxes[..., 2:] - boxes[..., :2]) >= self.min_size).all(dim=-1)
        real = large & (scores >= self.score_thresh)
        each = [on_device.survivors(*one, self.nms_thresh) for one in zip(boxes.unbind(1), real.unbind(1), strict=True)]
        stays, settled = (torch.stack(column, dim=1) for column in zip(*each, strict=True))
        self.settled = settled.all(dim=1)
        scores = scores.masked_fill(~stays, -1).flatten(1)
        best, rows = scores.topk(min(self.post_nms_top_n(), scores.shape[1]), dim=1)
        return list(on_device.take(boxes.flatten(1, 2), rows).masked_fill((best < 0)[..., None], 0))

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict[str, Tensor]]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The packed label columns (A, 4) and the matched boxes (A, 4) of each image."""
        packed, boxes = [], []
        for image_anchors, target in zip(anchors, targets, strict=True):
            overlap = self.box_similarity(target["boxes"], image_anchors)
            given = assign(overlap, target if self.weighted else _all_ones(target), self.proposal_matcher)
            columns = (given.sampled_as.float(), given.positive.float(), given.class_weight, given.box_weight)
            packed.append(torch.stack(columns, dim=1))
            boxes.append(target["boxes"][given.box_row] if len(target["boxes"]) else torch.zeros_like(image_anchors))
        return packed, boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Cross entropy and box loss of the sampled anchors, normalised as in torchvision."""
        positives, negatives = self.fg_bg_sampler([columns[:, 0] for columns in labels])
        positives = torch.cat(positives).nonzero()[:, 0]
        sampled = torch.cat([positives, torch.cat(negatives).nonzero()[:, 0]])
        _, wanted, class_weight, box_weight = torch.cat(labels).unbind(dim=1)
        deltas = torch.cat(regression_targets)

        in_class = sampled[class_weight[sampled] > 0]
        in_box = positives[box_weight[positives] > 0]
        class_loss = F.binary_cross_entropy_with_logits(
            objectness.flatten()[in_class].float(), wanted[in_class], reduction="none"
        )
        weight = class_weight[in_class]
        if self.two_sided:
            class_loss, weight = two_sided(
                class_loss, lambda: F.softplus(objectness.flatten()[in_class].float()), weight
            )
        box_loss = smooth_l1(pred_bbox_deltas[in_box], deltas[in_box], self.beta)
        return reduce(
            class_loss,
            wanted[in_class] > 0,
            weight,
            box_loss,
            box_weight[in_box],
            by=len(in_class),
            boxes_by=len(sampled),
            normaliser=self.normaliser,
        )


def _all_ones(target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The target with every positive weight set to 1, for ``roi_only``; ignored and background boxes stay."""
    taught = ((target["class_weight"] > 0) | (target["box_weight"] > 0)).float()
    return {**target, "class_weight": taught, "box_weight": taught * ~target["background"]}


def smooth_l1(deltas: Tensor, wanted: Tensor, beta: float) -> Tensor:
    """Smooth L1 of each row (L1 for ``beta`` 0), summed over its four numbers: (S, 4), (S, 4) -> (S,)."""
    return F.smooth_l1_loss(deltas.float(), wanted.float(), beta=beta, reduction="none").sum(dim=1)


@dataclass(frozen=True)
class Samples:
    """The targets of the S sampled proposals of a batch.

    ``label`` (S,) counts classes from 1; 0 is background. ``class_weight`` (S,) is 0 where the class branch ignores the
    sample. ``box_label`` (S,) and ``deltas`` (S, 4) are the box branch's target; ``box_weight`` (S,) is 0 without one.
    """

    label: Tensor
    class_weight: Tensor
    box_label: Tensor
    deltas: Tensor
    box_weight: Tensor


class WeightedRoIHeads(RoIHeads):
    """torchvision's box head with weighted losses. Detections keep their class vector and, on request, features."""

    fg_bg_sampler: Sampler
    normaliser: Normaliser = "own"
    two_sided = False
    beta = BETA
    with_features = False

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """In training, no detections and the two losses; otherwise detections (a list or Columns) and no losses."""
        if not self.training:
            pooled = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
            logits, deltas = self.box_predictor(pooled)
            detect = self._detect_all if on_device.use_async_path(logits.device) else self._detect
            return detect(logits.float(), deltas.float(), pooled, proposals, image_shapes), {}
        assert targets is not None
        sampled, samples = self.choose_samples(proposals, targets)
        pooled = self.box_head(self.box_roi_pool(features, sampled, image_shapes))
        logits, deltas = self.box_predictor(pooled)
        return [], self.losses(logits, deltas, samples)

    def choose_samples(self, proposals: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[list[Tensor], Samples]:
        """The sampled proposals of each image and their targets. Every target box is a proposal, too."""
        proposals = self.add_gt_proposals(proposals, [target["boxes"].to(proposals[0].dtype) for target in targets])
        given = [
            assign(self.box_similarity(target["boxes"], own), target, self.proposal_matcher)
            for target, own in zip(targets, proposals, strict=True)
        ]
        chosen = self.subsample([each.sampled_as for each in given])
        sampled = [own[rows] for own, rows in zip(proposals, chosen, strict=True)]
        columns: list[tuple[Tensor, ...]] = []
        for target, own, each, rows in zip(targets, sampled, given, chosen, strict=True):
            boxes, labels = target["boxes"], target["labels"] + 1
            if not len(boxes):  # nothing is positive, so the row is irrelevant
                boxes, labels = own.new_zeros(1, 4), labels.new_zeros(1)
            positive, row, box_row = each.positive[rows], each.row[rows], each.box_row[rows]
            wanted = self.box_coder.encode_single(boxes[box_row].to(own.dtype), own)
            columns.append(
                (labels[row] * positive, each.class_weight[rows], labels[box_row], wanted, each.box_weight[rows])
            )
        return sampled, Samples(*(torch.cat(column) for column in zip(*columns, strict=True)))

    def losses(self, logits: Tensor, deltas: Tensor, samples: Samples) -> dict[str, Tensor]:
        """Cross entropy and box loss of S sampled proposals: logits (S, K + 1), deltas (S, 4 K + 4).

        With the normaliser ``own``, cross entropy is divided by the samples with class weight, and the box loss by all.
        """
        in_class, in_box = samples.class_weight > 0, (samples.box_weight > 0).nonzero()[:, 0]
        label, weight = samples.label[in_class], samples.class_weight[in_class]
        class_loss = F.cross_entropy(logits[in_class].float(), label, reduction="none")
        if self.two_sided:
            class_loss, weight = two_sided(class_loss, lambda: -logits[in_class].float().log_softmax(1)[:, 0], weight)
        by_class = deltas.reshape(len(deltas), -1, 4)
        box_loss = smooth_l1(by_class[in_box, samples.box_label[in_box]], samples.deltas[in_box], self.beta)
        classes, boxes = reduce(
            class_loss,
            label > 0,
            weight,
            box_loss,
            samples.box_weight[in_box],
            by=len(label),
            boxes_by=len(samples.label),
            normaliser=self.normaliser,
        )
        return {"loss_classifier": classes, "loss_box_reg": boxes}

    def _detect(
        self, logits: Tensor, deltas: Tensor, pooled: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """torchvision's post-processing, which also keeps track of the source proposals."""
        counts = [len(p) for p in proposals]
        boxes = self.box_coder.decode(deltas, proposals).split(counts)
        probs = logits.softmax(dim=-1).split(counts)
        return [self._detect_one(*image) for image in zip(boxes, probs, pooled.split(counts), sizes, strict=True)]

    def _detect_one(self, boxes: Tensor, probs: Tensor, pooled: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        classes = probs.shape[1] - 1
        scores, flat = probs[:, 1:].flatten(), clip_boxes_to_image(boxes, size)[:, 1:].reshape(-1, 4)
        kept = (scores > self.score_thresh).nonzero()[:, 0]
        kept = kept[remove_small_boxes(flat[kept], min_size=1e-2)]
        keep = batched_nms(flat[kept], scores[kept], kept % classes, self.nms_thresh)[: self.detections_per_img]
        kept = kept[keep]
        source = kept // classes
        found = {"boxes": flat[kept], "scores": scores[kept], "labels": kept % classes, "class_probs": probs[source]}
        return {**found, "features": pooled[source]} if self.with_features else found

    def _detect_all(
        self, logits: Tensor, deltas: Tensor, pooled: Tensor, proposals: list[Tensor], sizes: list[tuple[int, int]]
    ) -> on_device.Columns:
        """:meth:`_detect` for all images at once, with a fixed number of rows. Proposals without area are padding."""
        given = torch.stack(proposals)
        images, number = given.shape[:2]
        probs = logits.softmax(dim=-1).unflatten(0, (images, number))
        codes = deltas.view(images, number, -1, 4)[:, :, 1:]
        boxes = on_device.clip(on_device.decode(self.box_coder, codes, given[:, :, None]), sizes)
        large = ((boxes[..., 2:] - boxes[..., :2]) >= 1e-2).all(dim=-1)
        real = (
            (probs[..., 1:] > self.score_thresh) & large & (given[..., 2:] > given[..., :2]).all(dim=-1, keepdim=True)
        )
        scores = torch.where(real, probs[..., 1:], -1)
        labels = torch.arange(scores.shape[2], device=scores.device).expand_as(scores).flatten(1)
        boxes, scores = boxes.flatten(1, 2), scores.flatten(1)
        rows, real, settled = on_device.best_boxes(boxes, scores, labels, self.nms_thresh, self.detections_per_img)
        source = rows // probs[..., 1:].shape[2]
        found = {
            name: on_device.take(t, rows) for name, t in (("boxes", boxes), ("scores", scores), ("labels", labels))
        }
        found |= {"class_probs": on_device.take(probs, source), "real": real, "settled": settled}
        vectors = (
            {"features": on_device.take(pooled.unflatten(0, (images, number)), source)} if self.with_features else {}
        )
        return {**found, **vectors}


class WeightedFasterRCNN(GeneralizedRCNN):
    """The two weighted stages on one backbone. Labels in targets and detections count from 0."""

    stretches = False
    with_features = False
    class_layers: ClassVar = {"roi_heads.box_predictor.cls_score": (1, 1), "roi_heads.box_predictor.bbox_pred": (1, 4)}
    """Layers with rows for each class: the number of groups, and the rows per class in each."""
    further_rows = FURTHER_ROWS
    """Rows before those of the classes."""

    rpn: WeightedProposals
    roi_heads: WeightedRoIHeads

    def __init__(
        self, backbone: Pyramid, rpn: WeightedProposals, roi_heads: WeightedRoIHeads, transform: nn.Module
    ) -> None:
        super().__init__(backbone, rpn, roi_heads, transform)
        rpn.box_coder = ExactCoder(rpn.box_coder.weights)
        for stage in (rpn, roi_heads):
            stock = stage.fg_bg_sampler
            stage.fg_bg_sampler = Sampler(stock.batch_size_per_image, stock.positive_fraction)
        # torchvision would derive the scales from the first batch, and wrongly if its images are small.
        pool, strides = cast(MultiScaleRoIAlign, roi_heads.box_roi_pool), backbone.strides
        first, last = strides[0].bit_length() - 1, strides[-1].bit_length() - 1
        pool.scales = [1 / stride for stride in strides]
        pool.map_levels = LevelMapper(first, last, pool.canonical_scale, pool.canonical_level)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """In training, the four losses. Otherwise a list with one dict of detections per image, or Columns.

        A ``seed`` in an image's target decides which of its anchors and proposals are sampled.
        """
        given = [int(target["seed"]) for target in targets or () if "seed" in target]
        self.rpn.fg_bg_sampler.seeds, self.roi_heads.fg_bg_sampler.seeds = given, [seed + 1 for seed in given]
        self.roi_heads.with_features = self.with_features
        found: Any = super().forward(images, targets)
        if not self.training and isinstance(found, dict):
            found["settled"] &= self.rpn.settled
        return found

    def detect_one(self, batch: ImageList) -> dict[str, Tensor]:
        """The detections of a normalised batch of one image, by code that can be traced for any size."""
        features = self.backbone(batch.tensors)
        proposals, _ = self.rpn(batch, features)
        heads = self.roi_heads
        pooled = heads.box_head(heads.box_roi_pool(features, proposals, batch.image_sizes))
        logits, deltas = heads.box_predictor(pooled)
        boxes = heads.box_coder.decode(deltas, proposals)
        return heads._detect_one(boxes, logits.softmax(dim=-1), pooled, batch.image_sizes[0])

    def box_features(self, images: list[Input], boxes: list[Tensor]) -> list[Tensor]:
        """The box head's vector of each given box, used as a proposal: (G, 4) -> (G, D) per image."""
        batch, _ = self.transform(images, None)
        pooled = self.roi_heads.box_roi_pool(self.backbone(batch.tensors), boxes, batch.image_sizes)
        return list(self.roi_heads.box_head(pooled).split([len(b) for b in boxes]))
