"""Small detectors with varied outputs, and torchvision's own networks of the same shapes."""

from typing import Any

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign

from rarebox import detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.retinanet import WeightedRetinaNet

SIZE, CLASSES = 64, 3


def enliven(detector: TorchDetector) -> TorchDetector:
    """Spread the outputs of fresh heads, which otherwise give every position the same scores and deltas."""
    network, dice = detector.network, torch.Generator().manual_seed(5)
    if isinstance(network, WeightedRetinaNet):
        layers = {network.head.classification_head.cls_logits: 0.05, network.head.regression_head.bbox_reg: 0.005}
    else:
        assert isinstance(network, WeightedFasterRCNN)
        box, objectness = network.roi_heads.box_predictor, network.rpn.head
        layers = {box.cls_score: 0.3, box.bbox_pred: 0.3, objectness.cls_logits: 0.1, objectness.bbox_pred: 0.05}
    with torch.no_grad():
        for layer, spread in layers.items():
            layer.weight.normal_(0, spread, generator=dice)
            if isinstance(network, WeightedRetinaNet) and spread == 0.05:
                torch.nn.init.constant_(layer.get_parameter("bias"), -1.0)
    return detector


def make(name: str, **settings: object) -> TorchDetector:
    """A small detector for three classes on a 64-pixel input, with random weights that are always the same."""
    exact = TrainingSettings(precision="float32")
    given = {"image_size": SIZE, "weights": "none", "device": "cpu", "seed": 3, "training": exact, **settings}
    return enliven(detectors.build(name, CLASSES, **given))  # type: ignore[arg-type]


def torchvisions_own(detector: TorchDetector) -> Any:
    """torchvision's own network of the same shape with the same weights, built from torchvision's classes alone."""
    ours = detector.network
    light = detector.settings.backbone == "efficientnet_lite0"
    width = 96 if light else 256
    if isinstance(ours, WeightedRetinaNet):
        norm = (lambda channels: nn.GroupNorm(channels // 8, channels)) if light else None
        head = RetinaNetHead(width, 9, CLASSES, norm_layer=norm)
        if light:
            head.classification_head.conv = head.classification_head.conv[:2]
            head.regression_head.conv = head.regression_head.conv[:2]
        stock: Any = RetinaNet(
            ours.backbone, CLASSES, anchor_generator=ours.anchor_generator, head=head, detections_per_img=100
        )
    else:
        assert isinstance(ours, WeightedFasterRCNN)
        levels, hidden = (3, 256) if light else (4, 1024)
        top = (1000, 500, 500, 200) if light else (2000, 1000, 2000, 1000)
        unit = max(detector.settings.image_size / 600, detector.settings.anchor_cells / 4) if light else 1
        stock = FasterRCNN(
            ours.backbone,
            rpn_anchor_generator=ours.rpn.anchor_generator,
            rpn_head=RPNHead(width, 6 if light else 3),
            rpn_pre_nms_top_n_train=top[0],
            rpn_pre_nms_top_n_test=top[1],
            rpn_post_nms_top_n_train=top[2],
            rpn_post_nms_top_n_test=top[3],
            box_roi_pool=MultiScaleRoIAlign(
                [str(level) for level in range(levels)], 7, 2, canonical_scale=round(224 * unit)
            ),
            box_head=TwoMLPHead(width * 49, hidden),
            box_predictor=FastRCNNPredictor(hidden, CLASSES + 1),
            box_batch_size_per_image=128 if light else 512,
        )
    stock.load_state_dict(ours.state_dict())
    stock.transform = ours.transform
    return stock.train(ours.training)
