"""AP50 of a detector trained on complete images with several training recipes, paired by seed.

    python benchmarks/recipe.py DATA --images 60 --seeds 0 1 2 --to FILE --recipe base --recipe "ema training.ema=0.99"

A recipe is a name and settings (``a.b=value``), changes of the preset ``laptop``. ``--images 0`` takes all images of
the pool. A seed decides which images, the new layers, and the order of training. Each line of the file has recipe,
images, seed, AP50, AP50 of each class, steps, and seconds of processor time. Cells that the file has are not repeated.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from rarebox import config, detectors, evaluation
from rarebox.core import seeds
from rarebox.data.datasets import load_data
from rarebox.data.listings import Dataset
from rarebox.data.pictures import Pictures
from rarebox.detectors.training import steps_in_all
from rarebox.labels.targets import make_targets
from rarebox.types import Detections, ImageLabels

Cell = tuple[str, str, int, int]
"""Data, recipe, images, and seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, nargs="+", default=[60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipe", action="append", required=True, dest="recipes")
    parser.add_argument("--to", type=Path, required=True)
    given = parser.parse_args()
    dataset = load_data(str(given.data))
    done = {cell_of(json.loads(line)) for line in given.to.read_text().splitlines()} if given.to.exists() else set()
    for seed in given.seeds:
        for count in given.images:
            for name, *changes in map(str.split, given.recipes):
                if (given.data.name, name, count, seed) not in done:
                    line = measure(dataset, count, seed, changes)
                    line = {"data": given.data.name, "recipe": name, "images": count, "seed": seed, **line}
                    with given.to.open("a") as file:
                        file.write(json.dumps(line) + "\n")
                    print(line["recipe"], count, seed, line["ap50"], line["cpu_seconds"], flush=True)


def cell_of(line: dict[str, object]) -> tuple[object, ...]:
    """What identifies a line."""
    return tuple(line[name] for name in ("data", "recipe", "images", "seed"))


def measure(dataset: Dataset, count: int, seed: int, changes: list[str]) -> dict[str, object]:
    """Train on ``count`` images (0: all) with a recipe, and evaluate on the test images."""
    settings = config.resolve("laptop", None, config.parse_changes(changes))
    assert dataset.test is not None
    pool = dataset.train.images
    order = seeds.stream(seed, "initial pool").permutation(len(pool))
    records = [pool[i] for i in (order[:count] if count else order)]
    truth = dataset.train.truth
    targets = [
        make_targets(
            ImageLabels.of(
                truth[r.id].boxes[~truth[r.id].difficult], truth[r.id].labels[~truth[r.id].difficult], complete=True
            ),
            None,
            truth[r.id].boxes[truth[r.id].difficult],
            settings.pseudo,
        )
        for r in records
    ]
    side, long_side = settings.detector.size
    pictures = Pictures(records, (round(side * settings.training.zoom), round(long_side * settings.training.zoom)))
    detector = detectors.build(
        **settings.detector.model_dump(),
        num_classes=len(dataset.classes),
        device="cpu",
        training=settings.training,
        seed=seeds.number(seed, "model"),
    )
    began, cpu = time.perf_counter(), time.process_time()
    loss = detector.fit(pictures, targets, seed=seeds.number(seed, "fit", 1))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    tested = Pictures(dataset.test.images, settings.detector.size)
    found: dict[int, Detections] = {}
    for start in range(0, len(tested), 8):
        records_here = tested.records[start : start + 8]
        found |= zip([r.id for r in records_here], detector.predict(tested[start : start + 8]), strict=True)
    result = evaluation.evaluate(found, dataset.test.truth, len(dataset.classes))
    per_class = dict(zip(dataset.classes, np.round(result.per_class_ap50, 4).tolist(), strict=True))
    return {
        "set": changes,
        "labels": sum(len(t) for t in targets),
        "steps": steps_in_all(settings.training, len(records)),
        "loss": round(loss, 4),
        "ap50": round(result.ap50, 4),
        "per_class_ap50": per_class,
        "cpu_seconds": round(cpu),
        "seconds": round(seconds),
    }


if __name__ == "__main__":
    main()
