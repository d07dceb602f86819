"""Shared fixtures: one thread for torch, and small detectors with varied outputs."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from uuid import uuid4

import hypothesis
import numpy as np
import pytest
import torch
from sqlalchemy import create_engine
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
from rarebox.types import Picture, Targets
from tests import tiny

torch.set_num_threads(1)
os.environ["RAREBOX_OFFLINE"] = "1"  # for the processes that tests start, too

SERVER = "RAREBOX_POSTGRESQL"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a store can be created: a file, or a new schema on a PostgreSQL server if one is named."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.sqlite")
        return
    if SERVER not in os.environ:
        pytest.skip(f"{SERVER} names no server, such as postgresql+psycopg://postgres@localhost/postgres")
    name = f"rarebox_{uuid4().hex[:12]}"
    server = create_engine(os.environ[SERVER])
    with server.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield f"{os.environ[SERVER]}?options=-csearch_path%3D{name}"
    with server.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    server.dispose()


# The same examples every time, on fast and slow machines.
hypothesis.settings.register_profile("rarebox", deadline=None, derandomize=True)
hypothesis.settings.load_profile("rarebox")

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


@pytest.fixture(scope="session")
def retinanet() -> TorchDetector:
    """A small RetinaNet that no test may change."""
    return make("retinanet")


@pytest.fixture(scope="session")
def faster_rcnn() -> TorchDetector:
    """A small Faster R-CNN that no test may change."""
    return make("faster_rcnn")


@pytest.fixture(params=["retinanet", "faster_rcnn"])
def detector(request: pytest.FixtureRequest) -> TorchDetector:
    """Each of the two small detectors in turn; no test may change them."""
    found: TorchDetector = request.getfixturevalue(request.param)
    found.network.zero_grad(set_to_none=True)
    return found


@pytest.fixture(scope="session")
def make_detector() -> Callable[..., TorchDetector]:
    """A function that makes a small detector which a test may change."""
    return make


@pytest.fixture(scope="session")
def pictures() -> list[Picture]:
    """Three noisy pictures: one wide, one tall, and one that is half as large as its original."""
    dice = np.random.default_rng(1)

    def noise(height: int, width: int) -> np.ndarray:
        coarse = dice.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        return coarse.repeat(8, axis=0).repeat(8, axis=1)

    return [Picture(noise(64, 96), 96, 64), Picture(noise(80, 64), 64, 80), Picture(noise(64, 64), 128, 128)]


@pytest.fixture(scope="session")
def targets() -> list[Targets]:
    """Objects of those pictures: two boxes, one box, none."""
    return [
        Targets.of([[4, 6, 40, 50], [50, 20, 90, 44]], [2, 0]),
        Targets.of([[10, 10, 50, 70]], [1]),
        Targets.of([], []),
    ]


@pytest.fixture(scope="module")
def small_network() -> Iterator[None]:
    """Detectors of this module get a small body. Do not use it in modules that use this file's detectors."""
    with tiny.small_network():
        yield


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt to fetch a file fails at once, as on a machine without a network."""

    def refuse(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.delenv("RAREBOX_OFFLINE")
    monkeypatch.setattr("rarebox.detectors.weights.urlopen", refuse)


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


@pytest.fixture(scope="session")
def stock_of() -> Callable[[TorchDetector], Any]:
    """A function that makes torchvision's own network of a detector."""
    return torchvisions_own
