"""Selection from a pool that does not fit in memory: seconds and peak memory at 1, 10 and 100 million candidates.

    OMP_NUM_THREADS=2 python benchmarks/out_of_core.py FOLDER

Synthetic shards of 2,000 images with 100 boxes each are written to FOLDER (3.1 GB; they are reused, and ``--remove``
deletes them). Each measurement is a separate process: p(l), the candidates that 6,000 answers leave open, the ranking
by class_balanced, and its first 4 x 4,000 boxes, for a budget of 4,000. Rounds alternate between the sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np

from rarebox import config
from rarebox.core import parquet, seeds
from rarebox.pool import ranking
from rarebox.pool.candidates import Shards
from rarebox.types import ImageLabels, ImageScores, as_boxes

IMAGES, BOXES, CLASSES = 2_000, 100, 20
SHARD = IMAGES * BOXES
ANSWERS, BUDGET = 6_000, 4_000


def make(folder: Path, shards: int) -> list[Path]:
    """Write shards with the columns that every candidate has, in the types that scoring writes."""
    files = [folder / f"shard_{number:05d}.parquet" for number in range(shards)]
    frequency = 1 / np.arange(1, CLASSES + 1)
    for number, file in enumerate(files):
        if file.exists():
            continue
        dice = np.random.default_rng(number)
        corner = dice.uniform(0, 900, (SHARD, 2)).astype(np.float32)
        side = dice.uniform(8, 100, (SHARD, 2)).astype(np.float32)
        parquet.write(
            file,
            {
                "image_id": np.repeat(np.arange(number * IMAGES, (number + 1) * IMAGES), BOXES),
                "box_index": np.tile(np.arange(BOXES), IMAGES),
                "boxes": np.hstack([corner, corner + side]),
                "labels": dice.choice(CLASSES, SHARD, p=frequency / frequency.sum()),
                "scores": dice.random(SHARD, dtype=np.float32),
                "uncertainty": dice.random(SHARD, dtype=np.float32) * np.float32(1.3),
                "box_consistency": dice.random(SHARD, dtype=np.float32),
            },
        )
    return files


def answers(files: list[Path]) -> dict[int, ImageLabels]:
    """Three answers for each of several images from the whole pool, on boxes of candidates."""
    labels, nothing = {}, np.zeros((0, 4), np.float32)
    each = ANSWERS // 3 // len(files) + 1
    for number, file in enumerate(files):
        boxes = next(parquet.batches(file, ["boxes"], each * BOXES))["boxes"]
        for image in range(min(each, ANSWERS // 3 - len(labels))):
            human = as_boxes(boxes[image * BOXES : image * BOXES + 2] + 1)
            rejected = as_boxes(boxes[[image * BOXES + 2]])
            labels[number * IMAGES + image] = ImageLabels(human, np.array([image % 7, 3]), rejected, nothing, False)
    return labels


def peak_mib() -> int:
    """Peak memory of this process in MiB (``ru_maxrss`` starts at the peak of the parent process)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def measure(folder: Path, shards: int) -> dict[str, object]:
    """Time and memory of one selection in this process."""
    files = make(folder, shards)
    labels = answers(files)
    settings = config.resolve(changes={"selection.strategy": "class_balanced"})
    before = peak_mib()
    load, start, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    pool = Shards(files)
    state, open_per_class = ranking.label_state(settings, BUDGET, labels, pool, ImageScores.none(CLASSES))
    middle = time.perf_counter()
    queue = ranking.head(settings, pool, labels, state, partial(seeds.stream, 0, "strategy", 2))
    asked = [item for place in range(4 * BUDGET) if (item := queue(place))]
    end = time.perf_counter()
    return {
        "boxes": shards * SHARD,
        "open": int(open_per_class.sum()),
        "first": [round(asked[0][1], 6), len(asked)],
        "seconds": round(end - start, 2),
        "p_of_l": round(middle - start, 2),
        "ranking": round(end - middle, 2),
        "processor_seconds": round(time.process_time() - processor, 2),
        "peak_mib": peak_mib(),
        "before_mib": before,
        "load": round(load, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--millions", type=int, nargs="+", default=[1, 10, 100])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--remove", action="store_true", help="delete the shards afterwards")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/out_of_core.jsonl"))
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.folder, given.one)))
        return
    files = make(given.folder, max(given.millions) * 1_000_000 // SHARD)
    lines = []
    for number in range(given.rounds):
        for millions in given.millions:
            command = [sys.executable, __file__, str(given.folder), "--one", str(millions * 1_000_000 // SHARD)]
            done = subprocess.run(command, capture_output=True, check=True, text=True)
            lines.append({"round": number, **json.loads(done.stdout)})
            print(lines[-1])
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if given.remove:
        for file in files:
            file.unlink()


if __name__ == "__main__":
    main()
