"""Writing a ranked list of boxes: CSV and JSON to read, COCO to import."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from rarebox.data.review import short
from rarebox.types import Floats, ImageRecord, Query

COLUMNS: tuple[str, ...] = (
    "rank",
    "image",
    "image_id",
    "x1",
    "y1",
    "x2",
    "y2",
    "guess",
    "score",
    "uncertainty",
    "box_consistency",
    "class_frequency",
    "utility",
)
"""``rank`` counts from 1. ``box_consistency`` is empty where there were no augmented copies."""


def rows(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> list[dict[str, Any]]:
    """One row for each box, with ``COLUMNS``, best first."""
    return [_row(place, images[query.image_id], classes, query) for place, query in enumerate(queries, 1)]


def _row(place: int, record: ImageRecord, classes: Sequence[str], query: Query) -> dict[str, Any]:
    assert query.box is not None
    assert query.guess is not None
    why = query.why or {}
    corners = dict(zip(("x1", "y1", "x2", "y2"), (short(edge) for edge in query.box), strict=True))
    numbers = {name: short(why.get(name)) for name in ("score", "uncertainty", "box_consistency", "class_frequency")}
    return {
        "rank": place,
        "image": record.path,
        "image_id": record.id,
        **corners,
        "guess": classes[query.guess],
        **numbers,
        "utility": short(query.utility),
    }


def as_csv(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> str:
    """A table with a head line."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(rows(images, classes, queries))
    return text.getvalue()


def as_json(
    images: Mapping[int, ImageRecord],
    classes: Sequence[str],
    queries: Sequence[Query],
    class_frequency: Floats,
    about: Mapping[str, Any],
) -> str:
    """One object: what is ``about`` the list as a whole, p(l) of each class, and the boxes."""
    frequency = {name: float(value) for name, value in zip(classes, class_frequency, strict=True)}
    boxes = rows(images, classes, queries)
    return json.dumps({**about, "class_frequency": frequency, "boxes": boxes}, indent=1, ensure_ascii=False) + "\n"


def as_coco(images: Mapping[int, ImageRecord], classes: Sequence[str], queries: Sequence[Query]) -> str:
    """A COCO file whose annotations are the boxes, best first: the guess as category, the numbers as attributes."""
    asked = {query.image_id for query in queries}
    annotations = []
    for row in rows(images, classes, queries):
        x1, y1, x2, y2 = (row.pop(name) for name in ("x1", "y1", "x2", "y2"))
        annotations.append(
            {
                "id": row["rank"],
                "image_id": row["image_id"],
                "category_id": classes.index(row["guess"]) + 1,
                "bbox": [x1, y1, short(x2 - x1), short(y2 - y1)],
                "area": short((x2 - x1) * (y2 - y1)),
                "iscrowd": 0,
                "score": row["score"],
                "attributes": {"source": "query", **{n: v for n, v in row.items() if n not in ("image", "image_id")}},
            }
        )
    content = {
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
