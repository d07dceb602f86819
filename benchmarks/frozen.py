"""Cycles with a frozen backbone and ordinary ones, on the same images, seed and steps: time and AP50.

    OMP_NUM_THREADS=1 python benchmarks/frozen.py DATA [--detector faster_rcnn] [--image-size 256] [--steps 300]

The two runs alternate, cycle by cycle, each in its own process. Compare processor time, because the machine may be
busy. Between the last answer of one cycle and the first question of the next, a person waits for training and
evaluation in the former and for scoring in the latter.
"""

import argparse
import json
import multiprocessing
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rarebox import config
from rarebox.loop import simulate
from rarebox.loop.metrics import CycleRecord


def cycles(out: Path, settings: config.Settings, turn: Any, done: Any) -> None:
    """Run all cycles, each when it is this run's turn, and put the records with processor seconds into ``done``."""
    spent = 0.0
    turn.acquire()
    start = time.process_time()

    def finished(record: CycleRecord) -> None:
        nonlocal spent, start
        spent = time.process_time() - start
        done.put((settings.training.freeze, {**record, "processor_seconds": round(spent, 1)}))
        if record["cycle"] <= len(settings.budget):
            turn.acquire()
        start = time.process_time()

    simulate.simulate(out, settings, finished=finished)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--detector", default="faster_rcnn")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--initial-images", type=int, default=60)
    parser.add_argument("--budget", default="150,300")
    options = parser.parse_args()
    budget = [int(part) for part in options.budget.split(",")]
    with TemporaryDirectory() as place:
        done: Any = multiprocessing.Queue()
        turns = {}
        for freeze in ("nothing", "backbone"):
            settings = config.resolve(
                "laptop",
                None,
                {
                    "data": options.data,
                    "detector.name": options.detector,
                    "detector.image_size": options.image_size,
                    "training.steps": options.steps,
                    "training.epochs": 0,
                    "training.freeze": freeze,
                    "initial_images": options.initial_images,
                    "budget": budget,
                },
            )
            turns[freeze] = multiprocessing.Semaphore(0)
            process = multiprocessing.Process(target=cycles, args=(Path(place) / freeze, settings, turns[freeze], done))
            process.daemon = True
            process.start()
        for cycle in range(1, len(budget) + 2):
            for turn in turns.values():
                turn.release()
                freeze, record = done.get()
                told = {"ap50": record["ap50"], "processor_seconds": record["processor_seconds"], **record["seconds"]}
                print(json.dumps({"detector": options.detector, "freeze": freeze, "cycle": cycle, **told}), flush=True)


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    main()
