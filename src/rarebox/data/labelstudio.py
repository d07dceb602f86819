"""Label Studio: tasks with predictions going out, its JSON and JSON-MIN exports coming back.

Rectangles are x, y, width, height in percent of the image, turned about their top left corner. All boxes of a
prediction are in one object (of two with one version, Label Studio shows only one). The id of a region stays when a
person takes a prediction over, so it carries the query; the list of what was shown lies in the task's own data, under
``rarebox``.
"""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote
from zlib import crc32

import numpy as np

from rarebox.data.review import MODEL, Batch, Region, Returned, Sheet, colour, short
from rarebox.errors import UserError
from rarebox.text import read_text
from rarebox.types import Floats, Query

LABEL, IMAGE, OURS = "label", "image", "rarebox"
"""The names of the labels and of the image in the labelling configuration, and of our own field in a task's data."""

TYPE = "rectanglelabels"

Task = dict[str, Any]
"""A task, a prediction or a region as Label Studio's JSON has them."""

_QUERY = re.compile(r"query-(\d+)")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded files."""


def config(classes: Sequence[str]) -> str:
    """The labelling configuration: an image, and rectangles of these classes."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
    labels = ET.SubElement(view, "RectangleLabels", name=LABEL, toName=IMAGE, canRotate="false")
    for label, name in enumerate(classes):
        ET.SubElement(labels, "Label", value=name, background=colour(label))
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def classes_of(config: str) -> list[str]:
    """The classes of the rectangles of a labelling configuration. UserError if it is no XML."""
    try:
        view = ET.fromstring(config)
    except ET.ParseError as error:
        raise UserError(f"the labelling configuration is not valid XML: {error}") from None
    found = (label for labels in view.iter("RectangleLabels") for label in labels.iter("Label"))
    return [name for label in found if (name := label.get("value"))]


def tasks(
    sheets: Iterable[Sheet], classes: Sequence[str], image_url: str, version: str = MODEL
) -> list[dict[str, Any]]:
    """Tasks to import, one for each image; ``image_url`` goes before the image's name."""
    return [_task(sheet, classes, image_url, version) for sheet in sheets]


def _task(sheet: Sheet, classes: Sequence[str], image_url: str, version: str) -> Task:
    shown = [query.id for query in sheet.queries if query.id]
    about = {"image_id": sheet.record.id, "rank": sheet.number, "queries": shown, "complete": sheet.complete}
    task: Task = {"data": {IMAGE: image_url + quote(sheet.file), OURS: about}}
    if sheet.queries:
        task["predictions"] = [prediction(sheet, classes, version)]
    if sheet.labelled or sheet.complete:
        task["annotations"] = [
            {"result": [_region(sheet, q, classes, f"box-{n}") for n, q in enumerate(sheet.labelled)]}
        ]
    return task


def prediction(sheet: Sheet, classes: Sequence[str], version: str = MODEL) -> dict[str, Any]:
    """All queries of an image as one prediction; its score is the mean of theirs."""
    result = [_region(sheet, query, classes, _key(query)) for query in sheet.queries]
    scores = [region["score"] for region in result if "score" in region]
    return {"model_version": version, "score": short(sum(scores) / len(scores)) if scores else 0.0, "result": result}


def _key(query: Query) -> str:
    """The id of a region: its query, or, for a box that nobody asks about, a name that is the box's own."""
    assert query.box is not None
    return f"query-{query.id}" if query.id else f"guess-{crc32(query.box.tobytes()):08x}"


def _region(sheet: Sheet, query: Query, classes: Sequence[str], key: str) -> dict[str, Any]:
    assert query.box is not None
    assert query.guess is not None
    width, height = sheet.record.width, sheet.record.height
    if not width:
        raise UserError(f"the size of {sheet.record.path} is unknown, and Label Studio's boxes are in percent of it; write its width and height beside its detections, or give --images")  # fmt: skip  # noqa: E501
    x1, y1, x2, y2 = np.clip(query.box.astype(np.float64) * 100 / [width, height, width, height], 0, 100).tolist()
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    score = (query.why or {}).get("score")
    return {
        "id": key, "type": TYPE, "from_name": LABEL, "to_name": IMAGE, "original_width": width,
        "original_height": height, "image_rotation": 0, "value": {**place, TYPE: [classes[query.guess]]},
        **({} if score is None else {"score": short(score)}),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- what comes back


def read(file: Path) -> Batch:
    """An export as JSON or JSON-MIN. Of several annotations of an image the latest counts; drafts do not."""
    try:
        content = json.loads(read_text(file))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read as JSON ({error}); export it again, as JSON") from None
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise UserError(f"{file} is not a list of tasks; in Label Studio choose Export, then JSON")
    returned: list[Returned] = []
    skipped = older = 0
    for number, task in enumerate(content, 1):
        where = f"{file}, task {task.get('id', f'{number} in the list')}"
        if "data" not in task:
            returned.append(_from_short(task, where))
            continue
        given = [a for a in task.get("annotations") or () if isinstance(a, dict)]
        counted = [a for a in given if not a.get("was_cancelled")]
        skipped += bool(given) and not counted
        older += max(len(counted) - 1, 0)
        if counted:
            returned.append(from_annotation(task, max(counted, key=_age), where))
    return Batch(returned, skipped, older)


def _age(annotation: Mapping[str, Any]) -> tuple[str, int]:
    """What grows with time: ISO dates sort as text."""
    number = annotation.get("id")
    return str(annotation.get("updated_at") or ""), number if isinstance(number, int) else 0


def from_annotation(task: Mapping[str, Any], annotation: Mapping[str, Any], where: str) -> Returned:
    """One annotation of one task, as exports and webhooks have it.

    Label Studio names the prediction that an annotation began with: where that is none, and no region is of a query,
    the predictions were not shown as a start. It also keeps the prediction itself, which tells what was shown even
    where the task is not one of our export.
    """
    result = annotation.get("result")
    if not isinstance(result, list):
        raise UserError(f"{where}: the annotation has no result list")
    size, regions = _regions([r for r in result if isinstance(r, dict) and r.get("type") == TYPE], where)
    by, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    returned = _returned(task.get("data"), size, regions, by, seconds, where)
    begun_with = annotation.get("parent_prediction", OURS)
    kept = annotation.get("prediction")
    if isinstance(kept, dict) and isinstance(kept.get("result"), list) and begun_with in (OURS, kept.get("id")):
        returned = replace(returned, queries=tuple(filter(None, map(_query_of, kept["result"]))))
    taken_over = begun_with is not None or any(region.query is not None for region in regions)
    return replace(returned, began_with_guesses=taken_over)


def _query_of(region: Any) -> int | None:
    """The query that a region is of, by its id."""
    key = str(region.get("id") or "") if isinstance(region, dict) else ""
    found = _QUERY.fullmatch(key.split("#")[0])
    return int(found[1]) if found else None


def _from_short(task: Mapping[str, Any], where: str) -> Returned:
    """A task of JSON-MIN: its data and its regions side by side, the regions without their ids."""
    lists = [value for value in task.values() if isinstance(value, list)]
    found = [entry for entries in lists for entry in entries if isinstance(entry, dict) and TYPE in entry]
    size, regions = _regions([{**entry, "value": entry} for entry in found], where)
    return _returned(task, size, regions, task.get("annotator"), task.get("lead_time"), where)


def image_of(data: Any, where: str) -> tuple[str, int | None]:
    """The image's own name in a task's data, and its number here, if the task is one of ours."""
    if not isinstance(data, dict) or not isinstance(data.get(IMAGE), str):
        raise UserError(f'{where}: its data names no "{IMAGE}"; only tasks with an image can be taken in')
    image_id = _ours(data).get("image_id")
    return file_name(data[IMAGE]), image_id if isinstance(image_id, int) else None


def _ours(data: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = data.get(OURS)
    return ours if isinstance(ours, dict) else {}


def _returned(data: Any, size: Any, regions: list[Region], by: Any, seconds: Any, where: str) -> Returned:
    image, image_id = image_of(data, where)
    shown = tuple(q for q in _ours(data).get("queries") or () if isinstance(q, int))
    milliseconds = round(1000 * seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e7 else 0
    return Returned(where, image, image_id, size, shown, tuple(regions), _person(by), milliseconds)


def file_name(url: str) -> str:
    """The image's own name in a task's address: local storage, uploads, or any web address."""
    path = url.split("?d=", 1)[1] if "?d=" in url else url.split("?", 1)[0]
    return _UPLOAD.sub("", unquote(path).replace("\\", "/").rsplit("/", 1)[-1])


def _person(by: Any) -> str:
    if isinstance(by, dict):
        return str(by.get("email") or by.get("username") or by.get("id") or "")
    return "" if by is None else f"user {by}" if isinstance(by, int) else str(by)


def _regions(entries: Sequence[Mapping[str, Any]], where: str) -> tuple[tuple[int, int] | None, list[Region]]:
    """The size of the picture, and its rectangles in pixels of it."""
    size: tuple[int, int] | None = None
    regions = []
    for entry in entries:
        try:
            width, height = (int(entry[f"original_{side}"]) for side in ("width", "height"))
            size = size or (width, height)
            value = entry["value"]
            x, y, w, h = (float(value[name]) for name in ("x", "y", "width", "height"))
            rotation = float(value.get("rotation") or 0)
            if not np.isfinite([x, y, w, h, rotation]).all():
                raise ValueError("a number without end")
            box = _corners(x, y, w, h, rotation, width, height)
            names = value.get(TYPE)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: a region lacks its place or the size of the image ({error!r})") from None
        if size != (width, height):
            raise UserError(f"{where}: its regions are of pictures of different sizes")
        if not isinstance(names, list) or not names:
            raise UserError(f"{where}: a region has no class; give it one in Label Studio, or delete it")
        key = str(entry.get("id") or "").split("#")[0]
        regions.append(Region(box, str(names[0]), _query_of(entry), key))
    return size, regions


def _corners(
    x: float, y: float, w: float, h: float, rotation: float, width: int, height: int
) -> tuple[float, float, float, float]:
    """Percent -> the upright box in pixels around the rectangle, which is turned clockwise about its first corner."""
    x, w, y, h = x * width / 100, w * width / 100, y * height / 100, h * height / 100
    if not rotation:
        return x, y, x + w, y + h
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    corners: Floats = np.array([[0, 0], [w, 0], [w, h], [0, h]]) @ np.array([[cos, sin], [-sin, cos]]) + [x, y]
    (x1, y1), (x2, y2) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    return x1, y1, x2, y2
