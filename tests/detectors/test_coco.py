"""Detectors that start from torchvision's COCO weights, or from another detector."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as stock

from rarebox import detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector
from rarebox.detectors.architectures import ARCHITECTURES, LIGHT
from rarebox.types import Picture
from tests.detectors.test_detectors import as_tensor, run

STOCK: dict[tuple[str, str], tuple[Callable[..., nn.Module], Any]] = {
    ("faster_rcnn", "resnet50"): (stock.fasterrcnn_resnet50_fpn, stock.FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    ("faster_rcnn", "resnet50_v2"): (
        stock.fasterrcnn_resnet50_fpn_v2,
        stock.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    ),
    ("faster_rcnn", "mobilenet_v3_large"): (
        stock.fasterrcnn_mobilenet_v3_large_fpn,
        stock.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    ),
    ("faster_rcnn", "mobilenet_v3_large_320"): (
        stock.fasterrcnn_mobilenet_v3_large_320_fpn,
        stock.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    ),
    ("retinanet", "resnet50"): (stock.retinanet_resnet50_fpn, stock.RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    ("retinanet", "resnet50_v2"): (stock.retinanet_resnet50_fpn_v2, stock.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
}
"""torchvision's detectors and their COCO weights."""


def old_names(name: str) -> str:
    """A tensor's name in the files of torchvision's first detectors."""
    if ".conv." not in name or not name.startswith(("head.", "rpn.")):
        return name
    before, after = name.split(".conv.")
    place, _, kind = after.split(".")
    return f"{before}.conv.{kind}" if name.startswith("rpn.") else f"{before}.conv.{2 * int(place)}.{kind}"


def level(tensor: Tensor) -> float:
    """The root mean square."""
    return float(tensor.square().mean().sqrt())


@torch.no_grad()
def drawn(make: Callable[..., nn.Module]) -> Any:
    """torchvision's network with random weights whose outputs are not all alike, and of an ordinary size."""
    torch.manual_seed(7)
    network: Any = make(weights=None, weights_backbone=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    maps = list(network.backbone(torch.randn(1, 3, 64, 64)).values())
    for block in network.backbone.fpn.layer_blocks:
        block[0].weight /= level(maps[0])
    like_maps = torch.randn(4, 256, 7, 7)
    if hasattr(network, "head"):
        head = network.head
        size = level(head.classification_head.conv(like_maps)) * 48
        head.classification_head.cls_logits.weight.normal_(0, 1.5 / size)
        head.classification_head.cls_logits.bias.fill_(-3)
        head.regression_head.bbox_reg.weight.normal_(0, 0.01)
    else:
        network.rpn.head.cls_logits.weight.normal_(0, 0.1)
        size = level(network.roi_heads.box_head(like_maps)) * 32
        network.roi_heads.box_predictor.cls_score.weight.normal_(0, 2 / size)
        network.roi_heads.box_predictor.bbox_pred.weight.normal_(0, 1 / size)
    return network


def coco_file(key: tuple[str, str], home: Path) -> Path:
    """Put a file of random weights where torch looks for torchvision's, in torchvision's own format."""
    make, weights = STOCK[key]
    saved = {name: t for name, t in drawn(make).state_dict().items() if "num_batches" not in name}
    if key[1] == "resnet50":
        saved = {old_names(name): tensor for name, tensor in saved.items()}
    file = home / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, file)
    return file


def build(key: tuple[str, str], num_classes: int, weights: str, **settings: Any) -> TorchDetector:
    exact = TrainingSettings(precision="float32")
    given = {"image_size": 64, "long_side": 96, "device": "cpu", "seed": 3, "training": exact, **settings}
    return detectors.build(key[0], num_classes, key[1], weights=weights, **given)


# ------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize("key", STOCK, ids="-".join)
def test_detections_with_the_stock_file_are_torchvisions_own(
    key: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, pictures: list[Picture]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file, first = coco_file(key, tmp_path), int(key[0] == "faster_rcnn")
    make, weights = STOCK[key]
    few = {"box_detections_per_img": 100} if first else {"detections_per_img": 100}
    theirs: Any = make(weights=weights, min_size=64, max_size=96, **few).eval()
    images = [as_tensor(p) for p in pictures]
    network: Any = build(key, 91 - first, "coco").network
    if key == ("faster_rcnn", "resnet50_v2"):  # its box head is slow
        for proposals in (theirs.rpn, network.rpn):
            proposals._post_nms_top_n["testing"] = 50
    wanted = run(theirs, [image / 255 for image in images])
    for ours, one in zip(run(network, images), wanted, strict=True):
        assert len(ours["scores"]) > 5
        assert ours["scores"] == pytest.approx(one["scores"], abs=1e-5)
        assert ours["boxes"] == pytest.approx(one["boxes"], rel=1e-5, abs=1e-3)
        assert ours["labels"].tolist() == (one["labels"] - first).tolist()
        assert len(set(ours["labels"].tolist())) > 1
    from_file = build(key, 91 - first, str(file)).network.state_dict()
    assert all(tensor.equal(from_file[name]) for name, tensor in network.state_dict().items())


def test_every_architecture_is_listed_with_torchvisions_weights_and_each_name_has_a_light_one() -> None:
    assert {key for key, kind in ARCHITECTURES.items() if "coco" in kind.starts} == STOCK.keys()
    for key, (_, weights) in STOCK.items():
        assert ARCHITECTURES[key].starts["coco"].url == weights.url
    assert {(name, backbone) for name, several in LIGHT.items() for backbone in several} <= ARCHITECTURES.keys()
    assert {name for name, _ in ARCHITECTURES} == LIGHT.keys()
