"""Scoring a pool with the engine ray and two workers, compared with two plain processes of the engine local.

    python benchmarks/engines.py [--images 2000] [--rounds 3] [--size 64]

Both sides score the same shards with the same model in two processes of one thread. The difference is what Ray adds:
sending shards, results and progress, and its own processes on the same cores. Each plain process gets every second
shard; Ray assigns its shards dynamically. All sides start from files and write Parquet, and every file must be the same
on both sides, byte for byte. Rounds alternate in one run. ``start`` is when the first worker began to score, after
loading Python, torch and the model. A plain process loads them once per run, a worker once per cycle.

The pool is synthetic: 20 `scenes`, each in many files; one view, batches of 16, an ImageNet backbone and fresh heads.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from shutil import copyfile, rmtree
from statistics import median

from rarebox import config
from rarebox.data import datasets, scenes
from rarebox.data.pictures import Pictures
from rarebox.detectors.environment import compute_with
from rarebox.labels.store import Store
from rarebox.loop import cluster, simulate
from rarebox.loop.run import Run, load_detector, new_detector
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.scoring import score_images
from rarebox.loop.shards import make_shards
from rarebox.pool import candidates
from rarebox.types import ImageRecord

PROCESSES, DRAWN = 2, 20


def prepare(folder: Path, images: int, size: int) -> None:
    """Write the files of a pool, and a run that has a model of cycle 1."""
    place = scenes.make(folder / "data", seed=3, train=DRAWN, test=2, size=(128, 128))
    changes = {
        "data": str(place),
        "device": "cpu",
        "detector.name": "retinanet",
        "detector.image_size": size,
        "detector.score_threshold": 0.01,
        "scoring.candidate_threshold": 0.01,
        "scoring.shard_size": 100,
        "scoring.views": ["flip"],
        "scoring.batch_size": 16,
        "training.precision": "float32",
    }
    run_folder = RunFolder(folder / "run")
    run_folder.root.mkdir()
    run_folder.settings.write_text(config.dump(config.resolve("laptop", None, changes)))
    drawn = datasets.load(place).train.images
    for number in range(images):  # drawing this many would take longer than all rounds
        copyfile(drawn[number % len(drawn)].path, folder / f"{number:05d}.jpg")
    run = open_run(folder, Store(folder / "labels.sqlite", classes=datasets.load(place).classes))
    new_detector(run).save(run.folder.cycle(1))
    run.store.close()


def open_run(folder: Path, store: Store) -> Run:
    """Open that run with all files as its pool, without a cache of decoded images."""
    place = RunFolder(folder / "run")
    settings = place.read_settings()
    run = simulate.open_run(place, settings, datasets.load(settings.data), store, lambda *_: None)
    files = sorted(folder.glob("*.jpg"))
    records = [ImageRecord(number, str(file), 128, 128) for number, file in enumerate(files)]
    run.pool = Pictures(records, settings.detector.size, keep_bytes=0)
    run.cycle = 2
    return run


def part(folder: Path, number: int) -> None:
    """Score every second shard, as one plain process, into separate files."""
    compute_with(1)
    with Store(folder / "labels.sqlite") as store:
        run = open_run(folder, store)
        size = run.settings.scoring.shard_size
        every = [run.pool.records[i : i + size] for i in range(0, len(run.pool), size)]
        places = range(number, len(every), PROCESSES)
        detector = load_detector(run, 1)
        print("started", flush=True)
        for place in places:
            pictures = Pictures(every[place], run.settings.detector.size, keep_bytes=0)
            found, of_images = score_images(detector, pictures, run.settings, 2)
            candidates.write(folder / "plain" / f"images_{place:05d}.parquet", of_images)
            candidates.write(folder / "plain" / f"shard_{place:05d}.parquet", found)


def by_processes(folder: Path) -> tuple[float, float]:
    """Seconds of two plain processes, in total and until the first of them scored."""
    rmtree(folder / "plain", ignore_errors=True)
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--folder", str(folder), "--part"]
    parts = [
        subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
        for n in range(PROCESSES)
    ]
    started = 0.0
    for one in parts:
        assert one.stdout
        one.stdout.readline()
        started = started or time.perf_counter() - begin
    if any(one.wait() for one in parts):
        raise SystemExit("a plain process failed")
    return time.perf_counter() - begin, started


def by_ray(folder: Path, where: cluster.Cluster) -> tuple[float, float]:
    """Seconds of Ray's workers, in total and until the first of them scored."""
    with Store(folder / "labels.sqlite") as store:
        run = open_run(folder, store)
        rmtree(run.folder.cycle(2), ignore_errors=True)
        begin, begun = time.perf_counter(), list[float]()

        def progress(_: str, done: int, of: int, note: str) -> None:
            if not begun and " by " in note:
                begun.append(time.perf_counter() - begin)

        run.progress, run.engine = progress, where.score
        make_shards(run, 2, run.pool.records)
        return time.perf_counter() - begin, begun[0]


def same_files(folder: Path) -> bool:
    """Whether both sides wrote the same bytes."""
    ray = sorted((folder / "run" / "cycle_02" / "candidates").glob("*.parquet"))
    plain = sorted((folder / "plain").glob("*.parquet"))
    return len(ray) == len(plain) and all(a.read_bytes() == b.read_bytes() for a, b in zip(ray, plain, strict=True))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=2000)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--folder", type=Path)
    options.add_argument("--part", type=int)
    chosen = options.parse_args()
    if chosen.part is not None:
        part(chosen.folder, chosen.part)
        return
    folder = Path(tempfile.mkdtemp())
    compute_with(1)
    begin = time.perf_counter()
    prepare(folder, chosen.images, chosen.size)
    print(f"prepared in {time.perf_counter() - begin:.0f} s", file=sys.stderr, flush=True)
    rows = []
    with cluster.connected("ray") as where:
        assert where
        for turn in range(chosen.rounds):
            # The order alternates, because other load on the machine changes slowly.
            found: dict[str, float] = {"load": os.getloadavg()[0]}
            for engine in ("ray", "plain") if turn % 2 else ("plain", "ray"):
                found[engine], found[f"{engine}_start"] = (
                    by_ray(folder, where) if engine == "ray" else by_processes(folder)
                )
            row = {name: found[name] for name in ("ray", "ray_start", "plain", "plain_start", "load")}
            rows.append({**{name: round(value, 1) for name, value in row.items()}, "same_bytes": same_files(folder)})
            print(rows[-1], file=sys.stderr, flush=True)
    rmtree(folder)
    whole = [row["ray"] / row["plain"] for row in rows]
    scoring = [(row["ray"] - row["ray_start"]) / (row["plain"] - row["plain_start"]) for row in rows]
    print(
        json.dumps(
            {
                "images": chosen.images,
                "size": chosen.size,
                "processes": PROCESSES,
                "rounds": rows,
                "ray_over_plain": [round(r, 3) for r in whole],
                "median": round(median(whole), 3),
                "after_start": [round(r, 3) for r in scoring],
                "median_after_start": round(median(scoring), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
