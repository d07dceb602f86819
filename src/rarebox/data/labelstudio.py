"""Label Studio: tasks with predictions going out, its JSON and JSON-MIN exports coming back.

Rectangles are x, y, width, height in percent of the image, turned about their top left corner. Polygons and ellipses
come back as the upright box around them; brushes and key points outline nothing that is read here. All boxes of a
prediction are in one object (of two with one version, Label Studio shows only one). The id of a region stays when a
person takes a prediction over, so it carries the query; the list of what was shown lies in the task's own data, under
``rarebox``.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zlib import crc32

import numpy as np

from rarebox.core.boxes import hull, hull_of_ellipse, hull_of_turned
from rarebox.core.parsing import finite, from_json
from rarebox.core.text import read_text
from rarebox.data.markup import from_xml
from rarebox.data.review import MODEL, Batch, Region, Returned, ReviewTask, colour, short
from rarebox.errors import UserError
from rarebox.types import Floats, Query

LABEL, IMAGE, OURS = "label", "image", "rarebox"
"""The names of the labels and of the image in the labelling configuration, and of our own field in a task's data."""

TYPE = "rectanglelabels"

Task = dict[str, Any]
"""A task, a prediction or a region as Label Studio's JSON has them."""

_QUERY = re.compile(r"query-(\d+)")


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
        view = from_xml(config)
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"the labelling configuration is not valid XML: {error}") from None
    found = (label for labels in view.iter("RectangleLabels") for label in labels.iter("Label"))
    return [name for label in found if (name := label.get("value"))]


def tasks(
    sheets: Iterable[ReviewTask], classes: Sequence[str], image_url: str, version: str = MODEL
) -> list[dict[str, Any]]:
    """Tasks to import, one for each image; ``image_url`` goes before the image's name."""
    return [_task(sheet, classes, image_url, version) for sheet in sheets]


def _task(sheet: ReviewTask, classes: Sequence[str], image_url: str, version: str) -> Task:
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


def prediction(sheet: ReviewTask, classes: Sequence[str], version: str = MODEL) -> dict[str, Any]:
    """All queries of an image as one prediction; its score is the mean of theirs."""
    result = [_region(sheet, query, classes, _key(query)) for query in sheet.queries]
    scores = [region["score"] for region in result if "score" in region]
    return {"model_version": version, "score": short(sum(scores) / len(scores)) if scores else 0.0, "result": result}


def _key(query: Query) -> str:
    """The id of a region: its query, or, for a box that nobody asks about, a name that is the box's own."""
    assert query.box is not None
    return f"query-{query.id}" if query.id else f"guess-{crc32(query.box.tobytes()):08x}"


def _region(sheet: ReviewTask, query: Query, classes: Sequence[str], key: str) -> dict[str, Any]:
    assert query.box is not None
    assert query.guess is not None
    width, height = sheet.record.width, sheet.record.height
    if not width:
        raise UserError(
            f"the size of {sheet.record.path} is unknown, and Label Studio's boxes are in percent of it; "
            "write its width and height beside its detections, or give --images"
        )
    x1, y1, x2, y2 = np.clip(query.box.astype(np.float64) * 100 / [width, height, width, height], 0, 100).tolist()
    place = {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0}
    score = (query.why or {}).get("score")
    return {
        "id": key,
        "type": TYPE,
        "from_name": LABEL,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**place, TYPE: [classes[query.guess]]},
        **({} if score is None else {"score": short(score)}),
    }


# ------------------------------------------------------------------------------------------- what comes back


def read(file: Path) -> Batch:
    """An export as JSON or JSON-MIN. Of several annotations of an image the latest counts; drafts do not.

    Versions before 1.0 call annotations ``completions``. Lists may be JSON in a text, as tables hold them.
    """
    try:
        content = from_json(read_text(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
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
        given = [a for a in _list(task.get("annotations") or task.get("completions"), where) if isinstance(a, dict)]
        counted = [a for a in given if not (a.get("was_cancelled") or a.get("skipped"))]
        skipped += bool(given) and not counted
        older += max(len(counted) - 1, 0)
        if counted:
            returned.append(from_annotation(task, max(counted, key=_age), where))
    return Batch(returned, skipped, older)


def _list(value: Any, where: str) -> list[Any]:
    """A list, or an object as a list of one, also if it is in a text as JSON; none for anything else.

    UserError for a text that seems to hold regions and is not JSON.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            value = from_json(value)
        except ValueError as error:
            if "labels" in value or "result" in value:
                raise UserError(f"{where}: a text of regions is not valid JSON ({error}); export it again") from None
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


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
    if not isinstance(annotation.get("result"), list | str):
        raise UserError(f"{where}: the annotation has no result list")
    result = _list(annotation["result"], where)
    unread = isinstance(annotation["result"], str) and not result
    if unread or not all(isinstance(region, dict) for region in result):
        raise UserError(f"{where}: 'result' is not a list of regions; export it again")
    by, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    returned = _returned(task.get("data"), result, by, seconds, where)
    begun_with = annotation.get("parent_prediction", OURS)
    kept = annotation.get("prediction")
    if isinstance(kept, dict) and isinstance(kept.get("result"), list) and begun_with in (OURS, kept.get("id")):
        returned = replace(returned, queries=tuple(filter(None, map(_query_of, kept["result"]))))
    taken_over = begun_with is not None or any(region.query is not None for region in returned.regions)
    return replace(returned, began_with_guesses=taken_over)


def _query_of(region: Any) -> int | None:
    """The query that a region is of, by its id."""
    key = str(region.get("id") or "") if isinstance(region, dict) else ""
    found = _QUERY.fullmatch(key.split("#")[0])
    return int(found[1]) if found else None


def _from_short(task: Mapping[str, Any], where: str) -> Returned:
    """A task of JSON-MIN: its data and its regions side by side, the regions without their ids."""
    listed = [entry for value in task.values() for entry in _list(value, where)]
    entries = [part for entry in listed for part in (_list(entry, where) if isinstance(entry, str) else [entry])]
    found = [{**entry, "value": entry} for entry in entries if _is_region(entry)]
    return _returned(task, found, task.get("annotator"), task.get("lead_time"), where)


def _is_region(entry: Any) -> bool:
    """Whether an entry of a list of JSON-MIN is of the annotation; it may also be of the task's own data."""
    return isinstance(entry, dict) and ("original_width" in entry or bool(_names(entry)))


def image_of(data: Any, where: str) -> tuple[str, int | None]:
    """The image's address in a task's data (see :class:`~rarebox.data.naming.ByName`), and its number here, if the task
    one of ours."""
    if not isinstance(data, dict) or not isinstance(data.get(IMAGE), str):
        raise UserError(f'{where}: its data names no "{IMAGE}"; only tasks with an image can be taken in')
    image_id = _ours(data).get("image_id")
    return data[IMAGE], image_id if isinstance(image_id, int) else None


def _ours(data: Mapping[str, Any]) -> Mapping[str, Any]:
    ours = data.get(OURS)
    return ours if isinstance(ours, dict) else {}


def _returned(data: Any, entries: Sequence[Mapping[str, Any]], by: Any, seconds: Any, where: str) -> Returned:
    image, image_id = image_of(data, where)
    shown = tuple(q for q in _list(_ours(data).get("queries"), where) if isinstance(q, int))
    milliseconds = round(1000 * seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e7 else 0
    size, regions, left_out = _regions(entries, where)
    return Returned(where, image, image_id, size, shown, regions, _person(by), milliseconds, left_out=left_out)


def _person(by: Any) -> str:
    if isinstance(by, dict):
        return str(by.get("email") or by.get("username") or by.get("id") or "")
    return "" if by is None else f"user {by}" if isinstance(by, int) else str(by)


def _regions(
    entries: Sequence[Mapping[str, Any]], where: str
) -> tuple[tuple[int, int] | None, tuple[Region, ...], tuple[str, ...]]:
    """The size of the picture, the boxes in pixels of it, and the shapes that no box can be made of.

    A region may be one entry (``RectangleLabels``) or several (``Rectangle`` and ``Labels``, further questions about
    it), which repeat its id and its place. Entries without a place are about the image, not about an object on it.
    """
    of_region: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        if isinstance(entry.get("value"), dict) and (_shape(entry["value"]) or _names(entry["value"])):
            place = {name: entry["value"][name] for name in _PLACE if name in entry["value"]}
            of_region.setdefault(json.dumps([entry.get("id"), place], sort_keys=True), []).append(entry)
    every = [entry for same in of_region.values() for entry in same]
    if len({repr((entry.get("to_name"), entry.get("item_index"))) for entry in every}) > 1:
        raise UserError(f"{where}: its regions are on several images; only tasks with one image can be taken in")
    size: tuple[int, int] | None = None
    regions, left_out = list[Region](), list[str]()
    for entry, *others in of_region.values():
        names = list(dict.fromkeys(name for part in (entry, *others) for name in _names(part["value"])))
        if (shape := _shape(entry["value"])) not in _HULLS:
            left_out.append(f"{shape or entry.get('type') or 'region'} ({', '.join(names) or 'no class'})")
            continue
        try:
            width, height = (int(entry[f"original_{side}"]) for side in ("width", "height"))
            x1, y1, x2, y2 = _HULLS[shape](entry["value"], np.array([width, height]) / 100).tolist()
            turned = float(entry.get("image_rotation") or 0) % 360
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{where}: a region lacks its place or the size of the image ({error!r})") from None
        size = size or (width, height)
        if size != (width, height):
            raise UserError(f"{where}: its regions are of pictures of different sizes")
        if turned:
            raise UserError(f"{where}: the image was turned in Label Studio; turn it back there, and export again")
        if len(names) != 1:
            said = f"several classes ({', '.join(names)}); keep one" if names else "no class; give it one"
            raise UserError(f"{where}: a region has {said} in Label Studio, or delete it")
        key = str(entry.get("id") or "").split("#")[0]
        regions.append(Region((x1, y1, x2, y2), names[0], _query_of(entry), key))
    return size, tuple(regions), tuple(left_out)


_PLACE = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "vertices", "rle", "imageDataURL")
"""What of a value tells where a region is."""


def _shape(value: Mapping[str, Any]) -> str:
    """The kind of a region, by what its value tells of its place: JSON-MIN does not name it. Empty if it has none."""
    marks = {
        "rle": "brush",
        "imageDataURL": "brush",
        "vertices": "vector",
        "points": "polygon",
        "radiusX": "ellipse",
        "height": "rectangle",
        "x": "key point",
    }
    return next((shape for mark, shape in marks.items() if mark in value), "")


def _names(value: Mapping[str, Any]) -> list[str]:
    """The classes in a value: under ``rectanglelabels``, ``polygonlabels``, …, or ``labels``."""
    lists = (names for key, names in value.items() if key.endswith("labels") and isinstance(names, list))
    return [str(name) for names in lists for name in names]


def _pair(value: Mapping[str, Any], first: str, second: str, percent: Floats) -> Floats:
    """Two of a value's numbers, of which the first is across and the second down, in pixels: (2,)."""
    return np.array([finite(value[first]), finite(value[second])]) * percent


def _rectangle_hull(value: Mapping[str, Any], percent: Floats) -> Floats:
    corner = _pair(value, "x", "y", percent)
    opposite = corner + _pair(value, "width", "height", percent)
    return hull_of_turned([*corner, *opposite], finite(value.get("rotation") or 0), about=corner)


def _ellipse_hull(value: Mapping[str, Any], percent: Floats) -> Floats:
    centre, radii = _pair(value, "x", "y", percent), _pair(value, "radiusX", "radiusY", percent)
    return hull_of_ellipse(centre, radii, finite(value.get("rotation") or 0))


def _polygon_hull(value: Mapping[str, Any], percent: Floats) -> Floats:
    return hull(np.array([[finite(x), finite(y)] for x, y in value["points"]]) * percent)


_HULLS: Mapping[str, Callable[[Mapping[str, Any], Floats], Floats]] = {
    "rectangle": _rectangle_hull,
    "ellipse": _ellipse_hull,
    "polygon": _polygon_hull,
}
"""Shape -> the upright box around it in pixels (4,), from its value and the pixels of one percent of each side (2,)."""
