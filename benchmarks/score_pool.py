"""Scoring a pool with M views compared with M + 1 plain ``predict`` passes of the same model, including decoding.

    python benchmarks/score_pool.py RUN [--images 64] [--rounds 3] [--device cuda]

RUN is the folder of a finished run; its last model and its data set are used. Both sides start from files on disk,
which threads read ahead. Prints images per second of plain inference and of scoring in the best round of each, and the
ratio of the seconds in every round. Scoring counts an image once, with all its views.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rarebox import detectors
from rarebox.data import datasets
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector
from rarebox.loop import run, scoring
from rarebox.loop.run_folder import RunFolder


def plain(detector: TorchDetector, pictures: Pictures, passes: int, size: int) -> None:
    """Run ``predict`` over all pictures ``passes`` times, in batches of one shape."""
    for _ in range(passes):
        for _, batch in pictures.in_batches(run.batches(pictures, size)):
            detector.predict(batch)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of some work, including the time until a GPU has finished."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", help="default: that of the run")
    chosen = options.parse_args()
    folder = RunFolder(chosen.run)
    settings = folder.read_settings()
    records = datasets.load_data(settings.data).train.images[: chosen.images]
    model = folder.cycle(folder.records()[-1]["cycle"])
    detector = detectors.load(model, chosen.device or settings.device, settings.training)
    views = len(settings.scoring.views)
    # One batch of `predict` holds as many pictures as one batch of scoring holds pictures and views.
    batch = settings.scoring.batch_size * (views + 1)
    ours, theirs = [], []
    for turn in range(chosen.rounds + 1):
        new = Pictures(records, settings.detector.size)
        scored = seconds(lambda new=new: scoring.score_images(detector, new, settings, cycle=2), detector.device)
        new = Pictures(records, settings.detector.size)
        passed = seconds(lambda new=new: plain(detector, new, views + 1, batch), detector.device)
        if turn:
            ours.append(scored)
            theirs.append(passed)
    images, ratios = len(records), [round(mine / plains, 3) for mine, plains in zip(ours, theirs, strict=True)]
    told = {
        "detector": settings.detector.name,
        "device": str(detector.device),
        "images": images,
        "views": views,
        "plain_images_a_second": round(images * (views + 1) / min(theirs), 2),
        "scored_images_a_second": round(images / min(ours), 2),
        "ratios": ratios,
        "best": min(ratios),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
