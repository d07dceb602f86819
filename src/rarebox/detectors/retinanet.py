"""RetinaNet with a weight on every target box and the class vector of every detection."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import _topk_min
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, sigmoid_focal_loss

from rarebox.detectors import on_device
from rarebox.detectors.losses import Assignment, Normaliser, assign, mean_over_images, reduce, reduce_image, two_sided
from rarebox.detectors.maps import Input


class WeightedHead(RetinaNetHead):
    """torchvision's head with Eq. 7 as the loss of both branches."""

    normaliser: Normaliser = "own"
    two_sided = False

    def losses(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        given: list[Assignment],
    ) -> dict[str, Tensor]:
        """Focal loss and L1, weighted per target box, as the mean over images.

        Both are divided by the image's positives of weight above 0. With a normaliser other than ``own``, the batch
        counts as one image.
        """
        logits, deltas = head_outputs["cls_logits"], head_outputs["bbox_regression"]
        per_image = [self._samples(*image) for image in zip(targets, logits, deltas, anchors, given, strict=True)]
        if self.normaliser == "own":
            terms = [reduce_image(*image) for image in per_image]
            classes, boxes = (mean_over_images(term) for term in zip(*terms, strict=True))
        else:
            samples = [torch.cat(column) for column in zip(*per_image, strict=True)]
            by = int(samples[1].sum())
            classes, boxes = reduce(*samples, by=by, boxes_by=len(samples[4]), normaliser=self.normaliser)
        return {"classification": classes, "bbox_regression": boxes}

    def _samples(
        self, target: dict[str, Tensor], logits: Tensor, deltas: Tensor, anchors: Tensor, given: Assignment
    ) -> tuple[Tensor, ...]:
        """Per-anchor terms of one image: class loss, positive mask and class weight (S,); box loss and weight (P,)."""
        in_class, in_box = given.class_weight > 0, given.box_weight > 0
        rows = in_class.nonzero()[:, 0]
        positive = given.positive[rows]
        wanted = torch.zeros_like(logits[rows])
        wanted[positive, target["labels"][given.row[rows[positive]]]] = 1.0
        own, weight = logits[rows].float(), given.class_weight[rows]
        class_loss = sigmoid_focal_loss(own, wanted.float()).sum(dim=1)
        if self.two_sided:
            class_loss, weight = two_sided(
                class_loss, lambda: sigmoid_focal_loss(own, torch.zeros_like(own)).sum(dim=1), weight
            )

        boxes = target["boxes"][given.box_row[in_box]]
        coder = self.regression_head.box_coder
        box_loss = (deltas[in_box] - coder.encode_single(boxes, anchors[in_box])).abs().sum(dim=1)
        return class_loss, positive, weight, box_loss, given.box_weight[in_box]

    def with_tower(self, features: list[Tensor]) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The head's outputs, and the class tower's last feature map (B, C, h, w) of each level."""
        return self(features), [self.classification_head.conv(level) for level in features]


class WeightedRetinaNet(RetinaNet):
    """torchvision's RetinaNet whose detections keep their class vector and, on request, a feature vector."""

    head: WeightedHead
    stretches = False
    with_features = False
    class_layers: ClassVar = {"head.classification_head.cls_logits": (9, 1)}
    """Layers with rows for each class: the number of groups, and the rows per class in each."""
    further_rows = ()
    """Rows before those of the classes."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """In training, the losses. Otherwise a list with one dict of detections per image, or Columns."""
        if self.training:
            return super().forward(images, targets)
        batch, _ = self.transform(images, None)
        features = list(self.backbone(batch.tensors).values())
        outputs, towers = self.head.with_tower(features) if self.with_features else (self.head(features), [])
        anchors = self.anchor_generator(batch, features)
        per_place = self.anchor_generator.num_anchors_per_location()[0]
        sizes = [f.shape[2] * f.shape[3] * per_place for f in features]
        flat = [t.flatten(2).transpose(1, 2) for t in towers]
        if on_device.use_async_path(features[0].device):
            logits, deltas = (outputs[name].float().split(sizes, 1) for name in ("cls_logits", "bbox_regression"))
            return self._detect_all(logits, deltas, anchors[0].split(sizes), batch.image_sizes, flat, per_place)
        return [
            self._detect(
                outputs["cls_logits"][i].float().split(sizes),
                outputs["bbox_regression"][i].float().split(sizes),
                anchors[i].split(sizes),
                size,
                [t[i] for t in flat],
                per_place,
            )
            for i, size in enumerate(batch.image_sizes)
        ]

    def detect_one(self, batch: ImageList) -> dict[str, Tensor]:
        """The detections of a normalised batch of one image, by code that can be traced for any size."""
        features = list(self.backbone(batch.tensors).values())
        outputs, anchors = self.head(features), self.anchor_generator(batch, features)
        per_place = self.anchor_generator.num_anchors_per_location()[0]
        sizes = [f.shape[2] * f.shape[3] * per_place for f in features]
        logits, deltas = (outputs[name][0].split(sizes) for name in ("cls_logits", "bbox_regression"))
        return self._detect(logits, deltas, anchors[0].split(sizes), batch.image_sizes[0], [], per_place)

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """The losses of a batch, with anchors matched for each branch by itself."""
        given = [
            assign(box_iou(target["boxes"], own), target, self.proposal_matcher)
            for target, own in zip(targets, anchors, strict=True)
        ]
        return self.head.losses(targets, head_outputs, anchors, given)

    def box_features(self, images: list[Input], boxes: list[Tensor]) -> list[Tensor]:
        """The class tower's vector at the anchor that overlaps each box most: (G, 4) -> (G, C) per image."""
        batch, _ = self.transform(images, None)
        features = list(self.backbone(batch.tensors).values())
        towers = torch.cat([t.flatten(2).transpose(1, 2) for t in self.head.with_tower(features)[1]], dim=1)
        per_place = self.anchor_generator.num_anchors_per_location()[0]
        best = [
            box_iou(wanted, anchors).argmax(dim=1)
            for wanted, anchors in zip(boxes, self.anchor_generator(batch, features), strict=True)
        ]
        return [tower[row // per_place] for tower, row in zip(towers, best, strict=True)]

    def _detect(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        size: tuple[int, int],
        tower: list[Tensor],
        per_place: int,
    ) -> dict[str, Tensor]:
        """torchvision's post-processing of one image, which also keeps track of the source anchors."""
        columns: list[tuple[Tensor, ...]] = []
        for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
            probs = level_logits.sigmoid()
            scores = probs.flatten()
            kept = (scores > self.score_thresh).nonzero()[:, 0]
            kept = kept[scores[kept].topk(_topk_min(kept, self.topk_candidates, 0)).indices]
            source = kept // probs.shape[1]
            boxes = self.box_coder.decode_single(level_deltas[source], level_anchors[source])
            row = (clip_boxes_to_image(boxes, size), scores[kept], kept % probs.shape[1], probs[source])
            columns.append((*row, tower[level][source // per_place]) if tower else row)
        found = dict(
            zip(
                ("boxes", "scores", "labels", "class_probs", "features"),
                (torch.cat(column) for column in zip(*columns, strict=True)),
                strict=False,
            )
        )
        keep = batched_nms(found["boxes"], found["scores"], found["labels"], self.nms_thresh)[: self.detections_per_img]
        return {name: column[keep] for name, column in found.items()}

    def _detect_all(
        self,
        logits: Sequence[Tensor],
        deltas: Sequence[Tensor],
        anchors: Sequence[Tensor],
        sizes: list[tuple[int, int]],
        tower: list[Tensor],
        per_place: int,
    ) -> on_device.Columns:
        """:meth:`_detect` for all images at once, with a fixed number of rows."""
        columns: list[tuple[Tensor, ...]] = []
        for level, (level_logits, level_deltas, level_anchors) in enumerate(zip(logits, deltas, anchors, strict=True)):
            probs = level_logits.sigmoid()
            scores = probs.flatten(1)
            scores = torch.where(scores > self.score_thresh, scores, -1)
            scores, kept = scores.topk(min(scores.shape[1], self.topk_candidates), dim=1)
            source = kept // probs.shape[2]
            boxes = on_device.decode(self.box_coder, on_device.take(level_deltas, source), level_anchors[source])
            row = (on_device.clip(boxes, sizes), scores, kept % probs.shape[2], on_device.take(probs, source))
            columns.append((*row, on_device.take(tower[level], source // per_place)) if tower else row)
        names = ("boxes", "scores", "labels", "class_probs", "features")
        found = dict(zip(names, (torch.cat(column, dim=1) for column in zip(*columns, strict=True)), strict=False))
        rows, real, settled = on_device.best_boxes(
            found["boxes"], found["scores"], found["labels"], self.nms_thresh, self.detections_per_img
        )
        found = {name: on_device.take(column, rows) for name, column in found.items()}
        return {**found, "real": real, "settled": settled}
