"""What tiles are worth on large photos with small objects.

    python benchmarks/tiles.py DATA WORK --seeds 0 1 2 >> benchmarks/results/tiles.jsonl

DATA is a folder with train.json and test.json. Its photos are shrunk and laid out on sheets of 4096 x 4096 pixels, so
that their objects become small: the sheets are the large photos. A detector is trained on the sheets and another one
on their tiles, both with the preset `laptop`, the same steps and the same size of input. Both then detect on the sheets
of the test photos, the second one on tiles. Prints one JSON line per seed: AP50 on the sheets, processor seconds.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rarebox import config, evaluation
from rarebox.core.boxes import area, clip
from rarebox.data import datasets, tiles
from rarebox.data.coco import CocoFile
from rarebox.data.images import read_image
from rarebox.data.tiles import Tiling
from rarebox.deploy.predict import predict
from rarebox.deploy.results import LINES
from rarebox.deploy.train import train
from rarebox.types import Detections, Floats, GroundTruth, as_boxes

SHEET, CELL = 4096, 256
"""Sides in pixels of a sheet and of the cell of one photo."""

VISIBLE = 0.5
"""An object counts on a tile if it shows at least this fraction of its box."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--overlap", type=int, default=64)
    given = parser.parse_args()
    tiling = Tiling(given.side, given.overlap)
    sheets = {split: given.work / split for split in ("train", "test")}
    truth = {split: make_sheets(given.data / f"{split}.json", folder) for split, folder in sheets.items()}
    tiles.cut(sheets["train"], given.work / "tiles", tiling)
    label_tiles(given.work / "tiles", truth["train"])
    classes = datasets.load(given.data / "train.json").classes
    test, sides = truth["test"], np.sqrt(np.concatenate([area(one.boxes) for one in truth["test"].values()]))
    for seed in given.seeds:
        line: dict[str, object] = {
            "data": given.data.name,
            "seed": seed,
            "objects": len(sides),
            "side": round(float(np.median(sides)), 1),
            "tile": given.side,
            "overlap": given.overlap,
            "steps": given.steps,
        }
        for name, labels, cut in (("sheets", sheets["train"], None), ("tiles", given.work / "tiles", tiling)):
            settings = config.resolve(
                "laptop", None, {"seed": seed, "training.steps": given.steps, "training.epochs": 0}, final=True
            )
            model, to = given.work / f"{name}-{seed}", given.work / f"{name}-{seed}-found"
            start = time.process_time()
            train(labels / "annotations.json", model, settings, hold_out=False)
            trained = time.process_time()
            predict(model, sheets["test"], to, tiling=cut, pictures=False)
            line[f"{name}_train_s"] = round(trained - start, 1)
            line[f"{name}_predict_s"] = round(time.process_time() - trained, 1)
            line[f"{name}_ap50"] = round(
                evaluation.evaluate(found_in(to, test), dict(enumerate(test.values())), len(classes)).ap50, 4
            )
        print(json.dumps(line), flush=True)


def make_sheets(labels: Path, folder: Path) -> dict[str, GroundTruth]:
    """Lay out the photos of a data set on sheets, and write those with their labels. Returns the truth by file name."""
    data = datasets.load(labels)
    split, per_sheet = data.train, (SHEET // CELL) ** 2
    folder.mkdir(parents=True, exist_ok=True)
    truth = dict[str, GroundTruth]()
    for first in range(0, len(split.images), per_sheet):
        sheet, boxes, found = Image.new("RGB", (SHEET, SHEET), (117, 117, 117)), list[Floats](), list[GroundTruth]()
        for place, image in enumerate(split.images[first : first + per_sheet]):
            x, y = place % (SHEET // CELL) * CELL, place // (SHEET // CELL) * CELL
            scale = CELL / max(image.width, image.height)
            size = (round(image.width * scale), round(image.height * scale))
            sheet.paste(Image.fromarray(read_image(image.path)).resize(size, Image.Resampling.LANCZOS), (x, y))
            one = split.truth[image.id]
            boxes.append(one.boxes * scale + np.array([x, y, x, y]))
            found.append(one)
        name = f"{first // per_sheet}.png"
        sheet.save(folder / name)
        labels_of = np.concatenate([one.labels for one in found])
        truth[name] = GroundTruth(as_boxes(np.concatenate(boxes)), labels_of, np.zeros(len(labels_of), bool))
    write_coco(folder, data.classes, {name: (SHEET, SHEET, one) for name, one in truth.items()})
    return truth


def label_tiles(folder: Path, truth: Mapping[str, GroundTruth]) -> None:
    """Write the labels of the tiles in a folder: the parts of objects of which enough is visible."""
    known = tiles.read(folder)
    assert known
    labelled = dict[str, tuple[int, int, GroundTruth]]()
    for name, one in truth.items():
        for file, (x1, y1, x2, y2) in zip(known.files(name), known.tiling.windows(SHEET, SHEET), strict=True):
            parts = clip(one.boxes - np.array([x1, y1, x1, y1]), x2 - x1, y2 - y1)
            shown = area(parts) >= VISIBLE * area(one.boxes)
            mine = GroundTruth(parts[shown], one.labels[shown], one.difficult[shown])
            labelled[file.name] = (int(x2 - x1), int(y2 - y1), mine)
    write_coco(folder, datasets.load(folder.parent / "train" / "annotations.json").classes, labelled)


def write_coco(folder: Path, classes: Sequence[str], labelled: Mapping[str, tuple[int, int, GroundTruth]]) -> None:
    content: CocoFile = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
    }
    for number, (name, (width, height, one)) in enumerate(labelled.items(), 1):
        content["images"].append({"id": number, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label in zip(one.boxes.tolist(), one.labels.tolist(), strict=True):
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
    (folder / "annotations.json").write_text(json.dumps(content))


def found_in(to: Path, truth: Mapping[str, GroundTruth]) -> dict[int, Detections]:
    """The detections that `predict` wrote, by the place of their image among those of the truth."""
    places, found = {name: place for place, name in enumerate(truth)}, dict[int, Detections]()
    for line in (to / LINES).read_text().splitlines()[1:]:
        one = json.loads(line)
        labels, scores = np.array(one["numbers"], np.int64), np.array(one["scores"])
        found[places[one["image"]]] = Detections(as_boxes(one["boxes"]), labels, scores, scores[:, None])
    return found


if __name__ == "__main__":
    main()
