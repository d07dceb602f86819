"""Writing a ranked list of boxes: CSV and JSON to read, COCO to import."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rarebox.data.coco import CocoAnnotation, CocoFile
from rarebox.data.listings import QUESTION
from rarebox.data.review import short, shortest
from rarebox.types import Floats, ImageRecord, Query


class Row(NamedTuple):
    """A box of the list. The corners are in pixels; ``rank`` counts from 1.

    ``box_consistency`` is None if there were no augmented copies.
    """

    rank: int
    image: str
    image_id: int
    x1: float
    y1: float
    x2: float
    y2: float
    guess: str
    score: float | None
    uncertainty: float | None
    box_consistency: float | None
    class_frequency: float | None
    utility: float | None


COLUMNS: tuple[str, ...] = Row._fields


def rows(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> list[Row]:
    """One row for each box query, best first."""
    return [_row(place, images[query.image_id], classes, query) for place, query in enumerate(queries, 1)]


def _row(place: int, record: ImageRecord, classes: Sequence[str], query: Query) -> Row:
    assert query.box is not None
    assert query.guess is not None
    why = query.why or {}
    x1, y1, x2, y2 = (shortest(edge) for edge in query.box)
    return Row(
        place,
        record.path,
        record.id,
        x1,
        y1,
        x2,
        y2,
        guess=classes[query.guess],
        score=short(why.get("score")),
        uncertainty=short(why.get("uncertainty")),
        box_consistency=short(why.get("box_consistency")),
        class_frequency=short(why.get("class_frequency")),
        utility=short(query.utility),
    )


def as_csv(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> str:
    """A table with a header line."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows(images, classes, queries))
    return text.getvalue()


def as_json(
    images: Mapping[int, ImageRecord],
    classes: Sequence[str],
    queries: Sequence[Query],
    class_frequency: Floats,
    about: Mapping[str, object],
) -> str:
    """A JSON object with the fields of ``about``, the class frequency p(l) of each class, and the boxes."""
    frequency = {name: float(value) for name, value in zip(classes, class_frequency, strict=True)}
    boxes = [row._asdict() for row in rows(images, classes, queries)]
    return json.dumps({**about, "class_frequency": frequency, "boxes": boxes}, indent=1, ensure_ascii=False) + "\n"


def as_coco(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> str:
    """A COCO file whose annotations are the boxes, best first: the guess as category, the numbers as attributes."""
    asked = {query.image_id for query in queries}
    annotations: list[CocoAnnotation] = []
    for row in rows(images, classes, queries):
        width, height = row.x2 - row.x1, row.y2 - row.y1
        annotations.append(
            {
                "id": row.rank,
                "image_id": row.image_id,
                "category_id": classes.index(row.guess) + 1,
                "bbox": [row.x1, row.y1, shortest(width), shortest(height)],
                "area": shortest(width * height),
                "iscrowd": 0,
                "score": row.score,
                "attributes": {
                    "source": QUESTION,
                    "rank": row.rank,
                    "guess": row.guess,
                    "score": row.score,
                    "uncertainty": row.uncertainty,
                    "box_consistency": row.box_consistency,
                    "class_frequency": row.class_frequency,
                    "utility": row.utility,
                },
            }
        )
    content: CocoFile = {
        "info": {"description": "boxes to label next, best first, by rarebox"},
        "licenses": [],
        "categories": [{"id": label + 1, "name": name} for label, name in enumerate(classes)],
        "images": [
            {"id": r.id, "file_name": r.path, "width": r.width, "height": r.height, "attributes": {"complete": False}}
            for r in images.values()
            if r.id in asked
        ],
        "annotations": annotations,
    }
    return json.dumps(content, ensure_ascii=False) + "\n"
