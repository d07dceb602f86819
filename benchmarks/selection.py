"""Selection at scale compared with plain versions: k-center, EnmsDivproto, and VOC AP against pycocotools.

    OMP_NUM_THREADS=2 python benchmarks/selection.py

The plain k-center holds the full distance matrix, as published code does. It is timed at a size that both can hold.
Peak memory is that of a separate process.
"""

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rarebox.evaluation import coco_ap, voc_ap
from rarebox.strategies import image
from rarebox.strategies.greedy import k_center
from rarebox.types import Detections, GroundTruth


def ours(points: np.ndarray, picks: int) -> list[int]:
    return [row for row, _ in islice(k_center(points, points[:1], 0), picks)]


def full_matrix(points: np.ndarray, picks: int) -> list[int]:
    """k-center that computes all distances first."""
    squares = (points**2).sum(axis=1)
    distance = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * points @ points.T, 0))
    nearest, chosen = distance[:, 0].copy(), []
    for _ in range(picks):
        chosen.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[:, chosen[-1]])
    return chosen


def entropy_nms_loop(entropy: np.ndarray, labels: np.ndarray, features: np.ndarray) -> list[int]:
    """Entropy-NMS in a loop over boxes."""
    kept: list[int] = []
    for i in np.argsort(-entropy, kind="stable"):
        same = [j for j in kept if labels[j] == labels[i]]
        if all(float(features[i] @ features[j]) <= image.ENMS for j in same):
            kept.append(int(i))
    return sorted(kept)


def clocked(work: Callable[[], object]) -> tuple[float, object]:
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure_k_center(which: str, size: int, picks: int, width: int) -> dict[str, object]:
    points = np.random.default_rng(0).normal(size=(size, width)).astype(np.float32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, chosen = clocked(lambda: {"ours": ours, "full": full_matrix}[which](points, picks))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "extra_mib": (peak - before) / 1024, "chosen": chosen}


def radius(size: int, width: int, chosen: object) -> float:
    """The largest distance from a point to its nearest chosen point."""
    points = np.random.default_rng(0).normal(size=(size, width)).astype(np.float32)
    centres = points[np.array([0, *chosen])]  # type: ignore[misc]
    squares = (points**2).sum(axis=1)[:, None] + (centres**2).sum(axis=1) - 2 * points @ centres.T
    return float(np.sqrt(np.maximum(squares.min(axis=1), 0).max()))


def in_a_process(*arguments: object) -> dict[str, object]:
    done = subprocess.run([sys.executable, __file__, "--one", *map(str, arguments)], capture_output=True, check=True)
    return json.loads(done.stdout)


def measure_enms(images: int, boxes: int) -> tuple[float, float]:
    dice = np.random.default_rng(0)
    tables = []
    for _ in range(images):
        middle = dice.normal(size=(8, 256))
        features = middle[dice.integers(0, 8, boxes)] + 0.5 * dice.normal(size=(boxes, 256))
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        tables.append((dice.random(boxes), dice.integers(0, 20, boxes), features.astype(np.float32)))
    fast, a = clocked(lambda: [image.entropy_nms(*table).tolist() for table in tables])
    slow, b = clocked(lambda: [entropy_nms_loop(*table) for table in tables])
    assert a == b, "both must keep the same boxes"
    return fast, slow


def measure_evaluation(images: int, classes: int) -> dict[str, float]:
    """Seconds for VOC AP and COCO AP of synthetic detections, ours and pycocotools."""
    dice = np.random.default_rng(0)
    truth, found, listed, annotations = {}, {}, [], []
    for image_id in range(1, images + 1):
        corner, side = dice.uniform(0, 400, (8, 2)), dice.uniform(20, 200, (8, 2))
        boxes, labels = np.hstack([corner, corner + side]), dice.integers(0, classes, 8)
        truth[image_id] = GroundTruth(boxes, labels, np.zeros(8, dtype=bool))
        guess = dice.integers(0, 8, 40)
        seen = boxes[guess] + dice.uniform(-8, 8, (40, 4))
        scores, named = dice.random(40), np.where(dice.random(40) < 0.8, labels[guess], dice.integers(0, classes, 40))
        found[image_id] = Detections(seen, named, scores, np.zeros((40, classes)))
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            size = [box[2] - box[0], box[3] - box[1]]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "iscrowd": 0,
                    "bbox": [*box[:2], *size],
                    "area": size[0] * size[1],
                }
            )
        for box, label, score in zip(found[image_id].boxes.tolist(), named.tolist(), scores.tolist(), strict=True):
            wide = [*box[:2], box[2] - box[0], box[3] - box[1]]
            listed.append({"image_id": image_id, "category_id": label + 1, "bbox": wide, "score": score})

    def pycoco() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            coco = COCO()
            coco.dataset = {  # type: ignore[assignment]
                "images": [{"id": i} for i in truth],
                "annotations": annotations,
                "categories": [{"id": c + 1} for c in range(classes)],
            }
            coco.createIndex()
            run = COCOeval(coco, coco.loadRes(listed), "bbox")  # type: ignore[arg-type]
            run.evaluate()
            run.accumulate()
            run.summarize()
        return float(run.stats[0])

    voc, _ = clocked(lambda: voc_ap(found, truth, classes))
    coco, ours = clocked(lambda: coco_ap(found, truth, classes)["ap"])
    slow, theirs = clocked(pycoco)
    assert abs(float(str(ours)) - float(str(theirs))) < 1e-6, "both must agree"
    return {"voc_ap": voc, "coco_ap": coco, "pycocotools": slow, "voc_ratio": slow / voc, "coco_ratio": slow / coco}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/selection.jsonl"))
    given = parser.parse_args()
    if given.one:
        which, *numbers = given.one
        print(json.dumps(measure_k_center(which, *map(int, numbers))))
        return
    lines: list[dict[str, object]] = []
    both = {which: in_a_process(which, 20_000, 800, 256) for which in ("ours", "full")}
    for one in both.values():  # rounding may change the picks, but not how well they cover the points
        one["radius"] = radius(20_000, 256, one.pop("chosen"))
    ratio = float(str(both["full"]["seconds"])) / float(str(both["ours"]["seconds"]))
    lines.append({"what": "k-center, 20,000 x 256, 800 picks", **both, "ratio": ratio})
    large = in_a_process("ours", 100_000, 8_000, 256)
    large.pop("chosen")
    lines.append({"what": "k-center, 100,000 x 256, 8,000 picks", "ours": large})
    fast, slow = measure_enms(images=500, boxes=100)
    lines.append({"what": "entropy-NMS, 500 images of 100 boxes", "seconds": fast, "loop": slow, "ratio": slow / fast})
    lines.append({"what": "evaluation, 2,000 images, 20 classes, 80,000 boxes", **measure_evaluation(2_000, 20)})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    given.out.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main()
