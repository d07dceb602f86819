"""Detections with the names of their classes, as COCO files and CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, count
from pathlib import Path

from rarebox.core.files import write_json, write_text
from rarebox.data.coco import CocoAnnotation, CocoFile
from rarebox.types import Source

COLUMNS = ("image", "class", "score", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class ImageDetections:
    """The N detections on one image, best first.

    ``boxes`` (N, 4) are x1, y1, x2, y2 in pixels, ``labels`` (N,) the names of their classes today, ``scores`` (N,) in
    [0, 1], ``numbers`` (N,) their classes in the model. ``stamp`` changes when the file does.
    """

    image: str
    width: int
    height: int
    boxes: list[list[float]]
    labels: list[str]
    scores: list[float]
    numbers: list[int]
    stamp: str | None = None

    def only(self, rows: Sequence[bool]) -> "ImageDetections":
        """The detections in these rows."""
        return replace(
            self,
            boxes=list(compress(self.boxes, rows)),
            labels=list(compress(self.labels, rows)),
            scores=list(compress(self.scores, rows)),
            numbers=list(compress(self.numbers, rows)),
        )


@dataclass(frozen=True)
class Predicted:
    """The outcome: the images with a result, and the boxes shown, in total and of each class, the most frequent first.
    ``known`` images already had a result. ``unreadable`` names the images that cannot be read, with the reason.
    ``left_out`` is a note on images that rarebox has written itself or cannot read, or empty.
    """

    folder: Path
    images: int
    known: int
    boxes: int
    per_class: dict[str, int]
    unreadable: tuple[str, ...]
    measured: bool
    left_out: str = ""


def write_detected(
    to: Path,
    classes: Sequence[str],
    shown: Sequence[ImageDetections],
    every: Sequence[ImageDetections],
    given: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {}),
) -> None:
    """Write ``detections.csv`` and ``coco.json`` with the boxes that are shown, and ``coco_results.json`` with all.

    ``given`` are the ids of images by name and of categories by class that both COCO files use. Others follow them.
    """
    images = _numbered([one.image for one in every], given[0])
    categories = _numbered(classes, given[1])
    write_text(to / "detections.csv", _csv(shown))
    write_json(to / "coco.json", _coco(shown, images, categories))
    results = [
        {"image_id": images[one.image], "category_id": categories[label], "bbox": _sized(box), "score": score}
        for one in every
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True)
    ]
    write_json(to / "coco_results.json", results)


def _numbered(names: Sequence[str], given: Mapping[str, int]) -> dict[str, int]:
    """A number for each name: the given one, else the next after all of these."""
    free = count(max(given.values(), default=0) + 1)
    return {name: given[name] if name in given else next(free) for name in dict.fromkeys(names)}


def _csv(shown: Sequence[ImageDetections]) -> str:
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    rows.writerow(COLUMNS)
    for one in shown:
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True):
            rows.writerow((one.image, label, score, *box))
    return text.getvalue()


def _coco(shown: Sequence[ImageDetections], images: Mapping[str, int], categories: Mapping[str, int]) -> CocoFile:
    annotations: list[CocoAnnotation] = []
    for one in shown:
        for box, label, score in zip(one.boxes, one.labels, one.scores, strict=True):
            sized = _sized(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": images[one.image],
                    "category_id": categories[label],
                    "bbox": sized,
                    "area": round(sized[2] * sized[3], 2),
                    "iscrowd": 0,
                    "score": score,
                    "attributes": {"source": Source.PSEUDO.value},
                }
            )
    return {
        "info": {"description": "Detections of a model, written by rarebox. No person has checked them."},
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "images": [
            {
                "id": images[one.image],
                "file_name": one.image,
                "width": one.width,
                "height": one.height,
                "attributes": {"complete": False},
            }
            for one in shown
        ],
        "annotations": annotations,
    }


def _sized(box: Sequence[float]) -> list[float]:
    """x1, y1, x2, y2 -> x, y, width, height."""
    x1, y1, x2, y2 = box
    return [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
