"""A cycle with a frozen backbone beside the ordinary one, on the same images, seed and steps: time and AP50.

    OMP_NUM_THREADS=1 python benchmarks/frozen.py DATA [--detector faster_rcnn] [--image-size 256] [--steps 300]

The two runs take turns, cycle by cycle, in one process each; what counts is processor time, for the machine may be
busy. What a person waits for between the last answer of a cycle and the first question of the next is the training of
the one, its evaluation, and the scoring of the other.
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


def cycles(out: Path, settings: config.Settings, turn: Any, done: Any) -> None:
    """Run all cycles, each only when it is this run's turn; the records go to ``done``, with processor seconds."""
    spent = 0.0
    turn.acquire()
    start = time.process_time()

    def finished(record: dict[str, Any]) -> None:
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
