"""k-center on a pool read in pieces: time, peak memory, and coverage when only the most uncertain may be chosen.

    OMP_NUM_THREADS=2 python benchmarks/coverage.py FOLDER --thousands 200 1000

Synthetic shards with 256 features per box are written to FOLDER (0.5 GB per million; ``--remove`` deletes them): 500
clusters with sizes proportional to 1/n, each with its own spread. Half of a box's uncertainty is that of its cluster,
half is random. Each measurement is a separate process that uses the code of the loop, ``ranking.head``. Then the
distances of all points of the pool to their nearest pick are measured, also for random picks.
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
from rarebox.types import ImageScores, LabelState

WIDTH, CLUSTERS, CLASSES = 256, 500, 20
IMAGES, BOXES = 500, 40
SHARD = IMAGES * BOXES


def make(folder: Path, shards: int) -> list[Path]:
    """Write shards with features, in the types that scoring writes."""
    dice = np.random.default_rng(0)
    middles = dice.normal(size=(CLUSTERS, WIDTH)).astype(np.float32)
    spread, level = dice.uniform(0.2, 0.8, CLUSTERS).astype(np.float32), dice.random(CLUSTERS)
    share = 1 / np.arange(1, CLUSTERS + 1)
    files = [folder / f"features_{number:05d}.parquet" for number in range(shards)]
    for number, file in enumerate(files):
        if file.exists():
            continue
        dice = np.random.default_rng([1, number])
        cluster = dice.choice(CLUSTERS, SHARD, p=share / share.sum())
        features = middles[cluster] + spread[cluster, None] * dice.normal(size=(SHARD, WIDTH)).astype(np.float32)
        corner, side = dice.uniform(0, 900, (SHARD, 2)), dice.uniform(8, 100, (SHARD, 2))
        parquet.write(
            file,
            {
                "image_id": np.repeat(np.arange(number * IMAGES, (number + 1) * IMAGES), BOXES),
                "box_index": np.tile(np.arange(BOXES), IMAGES),
                "boxes": np.hstack([corner, corner + side]).astype(np.float32),
                "labels": cluster % CLASSES,
                "scores": dice.random(SHARD, dtype=np.float32),
                "uncertainty": (0.65 * (level[cluster] + dice.random(SHARD))).astype(np.float32),
                "box_consistency": dice.random(SHARD, dtype=np.float32),
                "features": features.astype(np.float16),
            },
        )
    return files


def peak_mib() -> int:
    """Peak memory of this process in MiB (``ru_maxrss`` starts at the peak of the parent process)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


def pick(files: list[Path], points: int, picks: int) -> dict[str, object]:
    """Time and memory of the first picks of coreset in this process, and their rows in the pool."""
    settings = config.resolve(changes={"selection.strategy": "coreset", "selection.coreset_points": points})
    state = LabelState(
        np.zeros(CLASSES),
        np.zeros(CLASSES, dtype=np.int64),
        ImageScores.none(CLASSES),
        budget=picks,
        box_features=np.zeros((0, WIDTH), np.float32),
    )
    before = peak_mib()
    load, start, processor = os.getloadavg()[0], time.perf_counter(), time.process_time()
    queue = ranking.head(settings, Shards(files), {}, state, partial(seeds.stream, 0, "strategy", 2))
    queue(0)
    read = time.perf_counter()
    rows = [item[0] for place in range(picks) if (item := queue(place))]
    seconds, peak = time.perf_counter() - start, peak_mib()
    found = queue.candidates
    return {
        "seconds": round(seconds, 1),
        "to_the_first_pick": round(read - start, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "peak_mib": peak,
        "before_mib": before,
        "load": round(load, 1),
        "picked": (found.image_id[rows] * BOXES + found.box_index[rows]).tolist(),
    }


def distances(files: list[Path], picked: list[int]) -> dict[str, float]:
    """The largest and the mean distance from the points of the pool to the nearest pick."""
    wanted, parts = np.array(sorted(picked)), []
    for number, file in enumerate(files):
        here = wanted[wanted // SHARD == number] % SHARD
        if len(here):
            parts.append(parquet.read(file)["features"][here].astype(np.float32))
    centres = np.concatenate(parts)
    nearest = []
    for file in files:
        points = parquet.read(file)["features"].astype(np.float32)
        product = points @ centres.T
        squares = (points**2).sum(axis=1) + ((centres**2).sum(axis=1) - 2 * product).min(axis=1)
        nearest.append(np.sqrt(np.maximum(squares, 0)))
    together = np.concatenate(nearest)
    return {"largest": round(float(together.max()), 3), "mean": round(float(together.mean()), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--thousands", type=int, nargs="+", default=[200, 1000])
    parser.add_argument("--picks", type=int, default=2000)
    parser.add_argument(
        "--points", type=int, nargs="+", default=[100_000, 10**9], help="10**9: all, so the result is exact"
    )
    parser.add_argument("--remove", action="store_true", help="delete the shards afterwards")
    parser.add_argument("--one", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/coverage.jsonl"))
    given = parser.parse_args()
    if given.one:
        shards, points = given.one
        print(json.dumps(pick(make(given.folder, shards), points, given.picks)))
        return
    files = make(given.folder, max(given.thousands) * 1000 // SHARD)
    lines = []
    for thousands in given.thousands:
        shards = thousands * 1000 // SHARD
        told = {"points": thousands * 1000, "width": WIDTH, "picks": given.picks}
        for points in given.points:
            command = [sys.executable, __file__, str(given.folder), "--picks", str(given.picks), "--one", str(shards)]
            done = subprocess.run([*command, str(points)], capture_output=True, check=True, text=True)
            found = json.loads(done.stdout)
            covered = distances(files[:shards], found.pop("picked"))
            lines.append({**told, "among": min(points, thousands * 1000), **found, **covered})
            print(lines[-1], flush=True)
        chance = np.random.default_rng(0).choice(thousands * 1000, given.picks, replace=False).tolist()
        lines.append({**told, "among": "random", **distances(files[:shards], chance)})
        print(lines[-1], flush=True)
    given.out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if given.remove:
        for file in files:
            file.unlink()


if __name__ == "__main__":
    main()
