"""A weighted training step compared with torchvision's stock loss code on the same network: time and memory.

    python benchmarks/train_step.py [--backbone resnet50] [--rounds 15]

Both sides run the same network object on the same batch. The stock side uses torchvision's own classes (the loss code,
the forward pass of the box head, the assignment of the proposal network, box pooling). Rounds alternate, and the ratio
of medians counts.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np
import torch
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import MultiScaleRoIAlign

from rarebox.detectors import TorchDetector, build
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN, WeightedProposals, WeightedRoIHeads
from rarebox.detectors.retinanet import WeightedHead
from rarebox.detectors.roi_pool import RoIPool
from rarebox.types import Picture, Targets


def make_stock(detector: TorchDetector, stock: bool) -> None:
    """Switch the network to torchvision's own loss code, or back to ours."""
    if isinstance(detector.network, WeightedFasterRCNN):
        detector.network.rpn.__class__ = RegionProposalNetwork if stock else WeightedProposals  # type: ignore[assignment]
        detector.network.roi_heads.box_roi_pool.__class__ = MultiScaleRoIAlign if stock else RoIPool  # type: ignore[assignment]
        detector.network.roi_heads.__class__ = RoIHeads if stock else WeightedRoIHeads  # type: ignore[assignment]
    else:
        detector.network.head.__class__ = RetinaNetHead if stock else WeightedHead  # type: ignore[assignment]


def batch(images: int, classes: int, stock_labels: bool) -> tuple[list[Picture], list[Targets]]:
    """Images of 427 x 320 pixels with 8 boxes each, with soft weights unless ``stock_labels``."""
    rng = np.random.default_rng(0)
    pictures, targets = [], []
    for _ in range(images):
        pictures.append(Picture(rng.integers(0, 255, (427, 320, 3), dtype=np.uint8), 320, 427))
        corner = rng.uniform(0, 220, (8, 2))
        boxes = np.hstack([corner, corner + rng.uniform(20, 90, (8, 2))])
        weight = 1.0 if stock_labels else rng.uniform(0.1, 1, 8)
        targets.append(Targets.of(boxes, rng.integers(0, classes, 8), class_weight=weight, box_weight=weight))
    return pictures, targets


def step(detector: TorchDetector, pictures: list[Picture], targets: list[Targets], stock: bool) -> float:
    """Seconds of one forward and backward pass."""
    make_stock(detector, stock)
    start = time.perf_counter()
    torch.stack(list(detector.losses(pictures, targets).values())).sum().backward()
    return time.perf_counter() - start


def times(name: str, backbone: str, rounds: int) -> dict[str, object]:
    detector = build(name, 7, backbone, weights="none", device="cpu", seed=0)
    pictures, targets = batch(4, 6, stock_labels=False)
    _, ones = batch(4, 6, stock_labels=True)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 2):
        for stock in (True, False) if turn % 2 else (False, True):
            taken = step(detector, pictures, ones if stock else targets, stock)
            if turn >= 2:
                seconds[stock].append(taken)
    medians = {stock: statistics.median(taken) for stock, taken in seconds.items()}
    fastest = {stock: min(taken) for stock, taken in seconds.items()}
    return {
        "detector": name,
        "backbone": backbone,
        "time_ratio_of_medians": round(medians[False] / medians[True], 3),
        "time_ratio_of_minima": round(fastest[False] / fastest[True], 3),
    }


def peak_memory(name: str, backbone: str, stock: bool) -> int:
    """Peak resident memory in KiB of a new process that makes four steps."""
    code = f"import benchmarks.train_step as b; b.four_steps({name!r}, {backbone!r}, {stock})"
    return int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def four_steps(name: str, backbone: str, stock: bool) -> None:
    detector = build(name, 7, backbone, weights="none", device="cpu", seed=0)
    pictures, targets = batch(4, 6, stock_labels=stock)
    for _ in range(4):
        step(detector, pictures, targets, stock)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--backbone", default="efficientnet_lite0")
    options.add_argument("--rounds", type=int, default=15)
    chosen = options.parse_args()
    for detector_name in ("retinanet", "faster_rcnn"):
        result = times(detector_name, chosen.backbone, chosen.rounds)
        ours, theirs = (peak_memory(detector_name, chosen.backbone, stock) for stock in (False, True))
        print(json.dumps({**result, "memory_ratio": round(ours / theirs, 3)}), flush=True)
