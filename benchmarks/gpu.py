"""Images per second on a GPU for plain inference, scoring and training, and whether the GPU ever waits.

    python benchmarks/gpu.py FOLDER [--images 512] [--networks retinanet-320 faster_rcnn-320 ...] [--device cuda]

FOLDER holds JPEG or PNG images. If there are too few, they are repeated under new ids and decoded again. ``320`` is the
preset ``laptop`` (EfficientNet-Lite0), ``600`` the paper's network (ResNet-50, 1000 x 600). The heads are untrained and
the score threshold is 0, so every image yields the maximum of 100 boxes: the most expensive case. Each number is the
best of ``--rounds``, and the compared methods alternate. Prints one line per network:

- ``plain``: passes of ``predict``; ``scored``: images, from files and from memory, each counted once with all its
  views. ``ratio`` is scoring divided by M + 1 plain passes, from memory.
- ``scored_by_16``: sixteen images and their views in one batch, instead of four.
- ``scored_waiting``: with torchvision's own post-processing, for which the host waits several times per batch.
- ``train_*``: images per second of whole optimiser steps (forward, backward, update) in each precision, and peak
  memory.
- ``busy``: the fraction of the time of scoring from memory in which a kernel or copy ran, and the most expensive
  kernels.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from rarebox import config
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector, build, on_device
from rarebox.loop import run, scoring
from rarebox.types import ImageRecord, Targets

NETWORKS: dict[str, dict[str, Any]] = {
    f"{name}-{size}": {"name": name, "backbone": backbone, "image_size": size, "weights": weights}
    for size, backbone, weights in ((320, "efficientnet_lite0", "imagenet"), (600, "resnet50", "none"))
    for name in ("retinanet", "faster_rcnn")
}
CLASSES = 20


def records_of(folder: Path, count: int) -> list[ImageRecord]:
    """``count`` images of a folder. If there are too few, files are repeated under other ids."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not files:
        raise SystemExit(f"{folder}: no JPEG or PNG image found.")
    sizes = [Image.open(file).size for file in files]
    places = [i % len(files) for i in range(count)]
    return [ImageRecord(id=n, path=str(files[i]), width=sizes[i][0], height=sizes[i][1]) for n, i in enumerate(places)]


def rate(work: Callable[[], object], count: int, device: torch.device) -> float:
    """Items per second, including the time until a GPU has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return count / (time.perf_counter() - start)


def plain(detector: TorchDetector, pictures: Pictures, size: int) -> None:
    """Run ``predict`` on each picture once, in batches of one shape."""
    for _, batch in pictures.in_batches(run.batches(pictures, size)):
        detector.predict(batch)


def training_rate(detector: TorchDetector, pictures: Pictures, steps: int) -> float:
    """Images per second over the steps after the first third."""
    dice = np.random.default_rng(0)
    targets = []
    for record in pictures.records:
        side = np.array([record.width, record.height])
        corner = dice.uniform(0, 0.7, (8, 2))
        boxes = np.hstack([corner, corner + dice.uniform(0.05, 0.3, (8, 2))]) * np.tile(side, 2)
        weight = dice.uniform(0.1, 1, 8)
        targets.append(Targets.of(boxes, dice.integers(0, CLASSES, 8), class_weight=weight, box_weight=weight))
    times: dict[int, float] = {}

    def report(done: int, of: int, loss: float) -> None:
        times[done] = time.perf_counter()

    detector.fit(pictures, targets, seed=0, progress=report)
    first = min(done for done in times if done >= steps // 3)
    return (steps - first) * detector.training.batch_size / (times[steps] - times[first])


def busy(work: Callable[[], object]) -> dict[str, Any]:
    """The fraction of the time in which the GPU was busy, and the kernels that took longest."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        elapsed = time.perf_counter() - start
    spans, kernels = [], Counter[str]()
    for event in seen.events() or []:
        if str(event.device_type).endswith("CUDA"):
            spans.append((event.time_range.start, event.time_range.end))
            kernels[event.name[:60]] += event.time_range.end - event.time_range.start
    end, at_work = 0.0, 0.0
    for first, last in sorted(spans):
        at_work += max(0.0, last - max(first, end))
        end = max(end, last)
    top = {name: round(spent / 1e6 / elapsed, 3) for name, spent in kernels.most_common(10)}
    return {"busy": round(at_work / 1e6 / elapsed, 3), "kernels_launched": len(spans), "share_of_time": top}


def measure(name: str, records: Sequence[ImageRecord], rounds: int, steps: int, device: str) -> dict[str, Any]:
    settings = config.resolve(
        "laptop", None, {"scoring.candidate_threshold": 0.0, "training.steps": steps, "training.epochs": 0}
    )
    training = settings.training
    batch = 16 if device == "cuda" else training.batch_size

    def make(precision: str) -> TorchDetector:
        chosen = training.model_copy(update={"precision": precision, "batch_size": batch})
        return build(**NETWORKS[name], num_classes=CLASSES, device=device, training=chosen, seed=0, score_threshold=0.0)

    detector = make("auto")
    size, views = detector.settings.size, len(settings.scoring.views)
    at_once = settings.scoring.batch_size * (views + 1)
    memory = Pictures(records, size, keep_bytes=16 << 30)
    ways: dict[str, Callable[[], object]] = {
        "plain_from_files": lambda: plain(detector, Pictures(records, size), at_once),
        "scored_from_files": lambda: scoring.score_images(detector, Pictures(records, size), settings, cycle=2),
        "plain": lambda: plain(detector, memory, at_once),
        "scored": lambda: scoring.score_images(detector, memory, settings, cycle=2),
    }
    if device == "cuda":
        large = settings.model_copy(update={"scoring": settings.scoring.model_copy(update={"batch_size": 16})})
        ways["scored_by_16"] = lambda: scoring.score_images(detector, memory, large, cycle=2)
        ways["scored_waiting"] = ways["scored"]
    found: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds + 1):
        for way, work in ways.items():
            with on_device.waiting() if way == "scored_waiting" else nullcontext():
                each = rate(work, len(records), detector.device)
            if turn:  # the first warms up
                found[way].append(each)
    told: dict[str, Any] = {f"{way}_images_a_second": round(max(rates), 1) for way, rates in found.items()}
    pairs = zip(found["plain"], found["scored"], strict=True)
    told["ratios"] = [round(plains / (views + 1) / scored, 3) for plains, scored in pairs]
    if device == "cuda":
        few = memory.of(records[:24])
        scoring.score_images(detector, few, settings, cycle=2)
        told |= busy(lambda: scoring.score_images(detector, few, settings, cycle=2))
    for precision in ("float32", "bfloat16"):
        learner = make(precision)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        told[f"train_{precision}_images_a_second"] = round(training_rate(learner, memory, steps), 1)
        if device == "cuda":
            told[f"train_{precision}_peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return told


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--steps", type=int, default=36)
    options.add_argument("--device", default="cuda")
    chosen = options.parse_args()
    records = records_of(chosen.folder, chosen.images)
    card = torch.cuda.get_device_name() if chosen.device == "cuda" else "cpu"
    for name in chosen.networks:
        start = time.perf_counter()
        told = measure(name, records, chosen.rounds, chosen.steps, chosen.device)
        about = {"network": name, "device": card, "torch": torch.__version__, "images": len(records)}
        print(json.dumps({**about, **told, "seconds": round(time.perf_counter() - start)}), flush=True)


if __name__ == "__main__":
    main()
