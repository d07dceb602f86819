"""What comes last in a ranking (`pool/last.py`): how many true boxes the rules would put last, and what they cost.

    python benchmarks/last.py --slivers shared/data/aquarium shared/data/bccd shared/data/taco
    python benchmarks/last.py --duplicates RUN DATA
    python benchmarks/last.py --speed

``--slivers`` counts the true boxes of data sets that are slivers. ``--duplicates`` compares, with the first model of a
run, the features of true boxes with those on a changed copy of the photo and with those of other boxes of their class.
``--speed`` ranks 50,000 boxes with and without the rules. Times are processor seconds.
"""

import argparse
import io
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rarebox import config, detectors
from rarebox.core import seeds
from rarebox.data import datasets
from rarebox.data.pictures import Pictures
from rarebox.pool import candidates as pool_file
from rarebox.pool import last, ranking
from rarebox.pool.candidates import Shards
from rarebox.types import Candidates, Floats, ImageScores, LabelState, Picture

MOST_IMAGES, BOXES, PER_SHARD = 40, 50_000, 5_000


def slivers(data: str) -> None:
    """Print the fraction of true boxes that are slivers."""
    dataset = datasets.load(data)
    found = [
        last.slivers(split.truth[image.id].boxes, np.array([[image.width, image.height]]))
        for split in (dataset.train, dataset.test)
        if split
        for image in split.images
        if image.id in split.truth
    ]
    among = np.concatenate(found)
    print(f"{dataset.name}: {among.sum()} of {len(among)} true boxes ({among.mean():.2%}) are slivers")


def copies(picture: Picture, boxes: Floats) -> dict[str, tuple[Picture, Floats]]:
    """The picture as the next one of a series might be, with its boxes."""
    pixels, scale = picture.pixels, picture.width / picture.pixels.shape[1]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40)
    brighter = np.clip(pixels * 1.15, 0, 255).astype(np.uint8)
    shifted = {f"shifted by {n} px": (np.roll(pixels, (n, n), (0, 1)), boxes + np.float32(n * scale)) for n in (2, 6)}
    changed = {"JPEG quality 40": (np.asarray(Image.open(file)), boxes), "15 % brighter": (brighter, boxes), **shifted}
    return {
        name: (Picture(np.ascontiguousarray(p), picture.width, picture.height), b) for name, (p, b) in changed.items()
    }


def duplicates(run: str, data: str) -> None:
    """Print how alike the same and different objects of a class look to a model, as sketches."""
    detector, train = detectors.load(Path(run) / "cycle_01", "cpu"), datasets.load(data).train
    images = [image for image in train.images if len(train.truth[image.id].boxes)][:MOST_IMAGES]
    pictures = Pictures(images, config.resolve().detector.size)
    same: dict[str, list[Floats]] = {}
    sketches: list[Floats] = []
    for place, image in enumerate(images):
        boxes, picture = train.truth[image.id].boxes, pictures[place]
        sketches.append(last.sketch(detector.box_features([picture], [boxes])[0]))
        for name, (copy, moved) in copies(picture, boxes).items():
            inside = (moved[:, 2] <= picture.width) & (moved[:, 3] <= picture.height)
            there = last.sketch(detector.box_features([copy], [moved[inside]])[0])
            same.setdefault(name, []).append((sketches[-1][inside] * there).sum(axis=1))
    labels = np.concatenate([train.truth[image.id].labels for image in images])
    image_of, every = np.repeat(np.arange(len(images)), [len(each) for each in sketches]), np.concatenate(sketches)
    others = (image_of[:, None] < image_of[None]) & (labels[:, None] == labels[None])
    columns = {
        **{name: np.concatenate(each) for name, each in same.items()},
        "other objects": (every @ every.T)[others],
    }
    for name, cosines in columns.items():
        above = ", ".join(f"{(cosines >= bound).mean():.2%} from {bound} up" for bound in (0.93, 0.95, 0.97))
        print(f"{name}: median cosine {np.median(cosines):.3f}; {above}")


def speed() -> None:
    """Print the time to rank 50,000 boxes of 500 photos."""
    dice = np.random.default_rng(0)
    corner = dice.random((BOXES, 2)) * 200
    vectors = last.unit(dice.standard_normal((BOXES, last.WIDTH)).astype(np.float32))
    found = Candidates(
        np.repeat(np.arange(BOXES // 100), 100),
        np.tile(np.arange(100), BOXES // 100),
        np.hstack([corner, corner + 20]),
        dice.integers(0, 4, BOXES),
        dice.random(BOXES),
        dice.random(BOXES),
        dice.random(BOXES),
        np.ones((BOXES, 5)),
        vectors,
    )
    sizes = dict.fromkeys(range(BOXES // 100), (220, 220))
    state = LabelState(np.zeros(4), np.zeros(4, np.int64), ImageScores.none(4), budget=50)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"shard_{start:05d}.parquet" for start in range(0, BOXES, PER_SHARD)]
        for start, file in zip(range(0, BOXES, PER_SHARD), files, strict=True):
            pool_file.write(file, found[start : start + PER_SHARD])
        for changes in ({"selection.slivers_last": False, "selection.duplicate_cosine": 1.0}, {}):
            rng, begin = partial(seeds.stream, 0, "strategy", 2), time.process_time()
            queue = ranking.head(config.resolve(changes=changes), Shards(files), {}, state, rng, sizes)
            queue(BOXES - 1)
            took = time.process_time() - begin
            print(f"{'with' if not changes else 'without'} the rules: {took:.2f} s of processor time for {BOXES} boxes")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--slivers", nargs="+", metavar="DATA", default=[])
    options.add_argument("--duplicates", nargs=2, metavar=("RUN", "DATA"))
    options.add_argument("--speed", action="store_true")
    given = options.parse_args()
    for data in given.slivers:
        slivers(data)
    if given.duplicates:
        duplicates(*given.duplicates)
    if given.speed:
        speed()


if __name__ == "__main__":
    main()
