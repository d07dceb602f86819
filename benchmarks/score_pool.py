"""Scoring a pool with M views against M + 1 plain ``predict`` passes of the same model, decoding included.

    python benchmarks/score_pool.py RUN [--images 64] [--rounds 3]

RUN is the folder of a finished run, whose last model and data set are used. Both sides start from files on disk.
"""

import argparse
import json
import time
from pathlib import Path

from rarebox import detectors, loop, running, scoring
from rarebox.detectors import TorchDetector
from rarebox.pictures import Pictures
from rarebox.run_folder import RunFolder


def plain(detector: TorchDetector, pictures: Pictures, passes: int, size: int) -> float:
    """Seconds of so many passes of ``predict`` over freshly decoded pictures, in batches of one orientation."""
    start = time.perf_counter()
    for _ in range(passes):
        for rows in running.batches(pictures, size):
            detector.predict([pictures[int(i)] for i in rows])
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("run", type=Path)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    folder = RunFolder(chosen.run)
    settings = folder.read_settings()
    records = loop.load_data(settings.data).train.images[: chosen.images]
    detector = detectors.load(folder.cycle(folder.records()[-1]["cycle"]), settings.device, settings.training)
    views = len(settings.scoring.views)
    ratios = []
    for turn in range(chosen.rounds + 1):
        start = time.perf_counter()
        scoring.score_images(detector, Pictures(records, settings.detector.size), settings, cycle=2)
        ours = time.perf_counter() - start
        # One batch of `predict` holds as many pictures as one batch of scoring holds pictures and views.
        batch = settings.scoring.batch_size * (views + 1)
        theirs = plain(detector, Pictures(records, settings.detector.size), views + 1, batch)
        if turn:
            ratios.append(round(ours / theirs, 3))
    name, images = settings.detector.name, len(records)
    print(json.dumps({"detector": name, "images": images, "views": views, "ratios": ratios, "best": min(ratios)}))


if __name__ == "__main__":
    main()
