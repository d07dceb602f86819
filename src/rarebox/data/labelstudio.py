"""Label Studio: writes tasks with predictions, reads its JSON exports.

A rectangle is x, y, width, height in percent of the image, rotated about its top left corner. Polygons and ellipses are
read as the upright box around them. Brushes and key points do not outline an object and are not read. All boxes of a
prediction go into one object, because Label Studio shows only one of two with the same version. A region keeps its id
when a person accepts a prediction, so the id carries the query. The task's own data lists under ``rarebox`` what was
shown.
"""

import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple, NotRequired, TypedDict
from urllib.parse import quote
from zlib import crc32

import numpy as np

from rarebox.core.boxes import hull, hull_of_ellipse, hull_of_turned
from rarebox.core.parsing import finite, from_json
from rarebox.core.text import read_text
from rarebox.data.images import SUFFIXES
from rarebox.data.markup import from_xml
from rarebox.data.narrow import Object, as_float, as_list, as_object, is_list, is_object
from rarebox.data.review import (
    MODEL,
    Batch,
    Held,
    Region,
    Returned,
    ReviewTask,
    colour,
    held_in,
    held_index,
    held_name,
    read_held,
    short,
)
from rarebox.errors import UserError
from rarebox.types import Floats, Query

LABEL: Final = "label"
"""The name of the labels in the labelling configuration."""

IMAGE: Final = "image"
"""The name of the image in the labelling configuration, and the field of a task's data that holds its address."""

OURS: Final = "rarebox"
"""The field of a task's data that holds an `About`."""

TYPE: Final = "rectanglelabels"


class Rectangle(TypedDict):
    """A box in percent of the image, and its class."""

    x: float
    y: float
    width: float
    height: float
    rotation: int
    rectanglelabels: list[str]


class ShownRegion(TypedDict):
    """A region of a prediction or annotation, as rarebox writes it; the sizes are in pixels."""

    id: str
    type: str
    from_name: str
    to_name: str
    original_width: int
    original_height: int
    image_rotation: int
    value: Rectangle
    score: NotRequired[float | None]


class Prediction(TypedDict):
    """All boxes that a model shows on one image."""

    model_version: str
    score: float | None
    result: list[ShownRegion]


class Annotation(TypedDict):
    """All boxes that people have drawn on one image. Label Studio keeps its ``id`` as ``import_id``."""

    id: int
    result: list[ShownRegion]


class About(TypedDict):
    """What rarebox needs when a task is returned. ``rank`` counts from 1, best first.

    ``labels`` are those of its annotation: one that is missing later was deleted. ``project`` is the session of the
    store that the numbers belong to.
    """

    image_id: NotRequired[int]
    rank: int
    queries: list[int]
    complete: bool
    labels: NotRequired[list[Held]]
    project: NotRequired[str]


class TaskData(TypedDict):
    """The data of a task: the address of the image, and what rarebox adds."""

    image: str
    rarebox: About


class Task(TypedDict):
    """A task to import into Label Studio."""

    data: TaskData
    predictions: NotRequired[list[Prediction]]
    annotations: NotRequired[list[Annotation]]


class _Part(NamedTuple):
    """An entry of a result that has a position or a class, and its ``value``."""

    entry: Object
    value: Object


_QUERY = re.compile(r"query-([0-9]{1,18})(?:-([0-9a-f]{8}))?")


def config(classes: Sequence[str]) -> str:
    """The labelling configuration, as XML: an image, and rectangles of these classes."""
    view = ET.Element("View")
    ET.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}", zoom="true", zoomControl="true")
    labels = ET.SubElement(view, "RectangleLabels", name=LABEL, toName=IMAGE, canRotate="false")
    for label, name in enumerate(classes):
        ET.SubElement(labels, "Label", value=name, background=colour(label))
    ET.indent(view)
    return ET.tostring(view, encoding="unicode") + "\n"


def classes_of(config: str) -> list[str]:
    """The classes of the rectangles in a labelling configuration. Raises `UserError` if it is not XML."""
    try:
        view = from_xml(config)
    except (ET.ParseError, ValueError) as error:
        raise UserError(
            f"the labelling configuration is not valid XML ({error}). Correct it in Label Studio."
        ) from None
    found = (label for labels in view.iter("RectangleLabels") for label in labels.iter("Label"))
    return [name for label in found if (name := label.get("value"))]


def tasks(sheets: Iterable[ReviewTask], classes: Sequence[str], image_url: str, version: str = MODEL) -> list[Task]:
    """Tasks to import, one for each image. ``image_url`` is put before the image's name."""
    return [_task(sheet, classes, image_url, version) for sheet in sheets]


def _task(sheet: ReviewTask, classes: Sequence[str], image_url: str, version: str) -> Task:
    shown = [query.id for query in sheet.queries if query.id]
    about = About(rank=sheet.number, queries=shown, complete=sheet.complete)
    if sheet.numbered:
        about["image_id"] = sheet.record.id
    if sheet.project:
        about["project"] = sheet.project
    task: Task = {"data": {IMAGE: image_url + quote(sheet.file), OURS: about}}
    if sheet.queries:
        task["predictions"] = [prediction(sheet, classes, version)]
    if sheet.labelled or sheet.complete:
        about["labels"] = held_in(sheet, classes)
        task["annotations"] = [
            {
                "id": sheet.number,
                "result": [_region(sheet, q, classes, held_name(n)) for n, q in enumerate(sheet.labelled)],
            }
        ]
    return task


def prediction(sheet: ReviewTask, classes: Sequence[str], version: str = MODEL) -> Prediction:
    """All queries about an image as one prediction. Its score is the mean of theirs.

    Raises `UserError` if the size of the image is unknown.
    """
    result = [_region(sheet, query, classes, _key(query, classes)) for query in sheet.queries]
    scores = [score for region in result if (score := region.get("score")) is not None]
    return {"model_version": version, "score": short(sum(scores) / len(scores)) if scores else 0.0, "result": result}


def _key(query: Query, classes: Sequence[str]) -> str:
    """The id of a region: its query and the hash of its class name, or a hash of the box if it belongs to no query."""
    assert query.box is not None
    assert query.guess is not None
    return f"query-{query.id}-{_hash(classes[query.guess])}" if query.id else f"guess-{crc32(query.box.tobytes()):08x}"


def _hash(name: str) -> str:
    return f"{crc32(name.encode()):08x}"


def _region(sheet: ReviewTask, query: Query, classes: Sequence[str], key: str) -> ShownRegion:
    assert query.box is not None
    assert query.guess is not None
    width, height = sheet.record.width, sheet.record.height
    if not width:
        raise UserError(
            f"{sheet.record.path}: its size is unknown, and Label Studio needs boxes in percent of it. Write width and "
            "height beside its detections, or give --images."
        )
    x1, y1, x2, y2 = np.clip(query.box.astype(np.float64) * 100 / [width, height, width, height], 0, 100).tolist()
    region: ShownRegion = {
        "id": key,
        "type": TYPE,
        "from_name": LABEL,
        "to_name": IMAGE,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1, "rotation": 0, TYPE: [classes[query.guess]]},
    }
    score = (query.why or {}).get("score")
    if score is not None:
        region["score"] = short(score)
    return region


# ------------------------------------------------------------------------------------------- import


def read(file: Path) -> Batch:
    """An export as JSON. The latest annotation of each image counts; drafts do not.

    Versions before 1.0 call annotations ``completions``. Lists may be JSON in a text, as in tables. Raises `UserError`,
    which names the file and the task, also for JSON-MIN: it does not say which guess a region answers, which guesses
    were shown, or which labels an annotation began with, so a box without a region may be rejected, deleted or unseen.
    """
    try:
        content: object = from_json(read_text(file))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. Check the path.") from None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}). Export it again, as JSON.") from None
    if not is_list(content):
        raise _no_tasks(file)
    returned: list[Returned] = []
    skipped = older = 0
    for number, task in enumerate(content, 1):
        if not is_object(task):
            raise _no_tasks(file)
        if "annotation_id" in task or not is_object(task.get("data")):
            raise _short(file) if "image" in task or "id" in task else _no_tasks(file)
        where = f"{file}, task {task.get('id', f'{number} in the list')}"
        given = [a for a in _list(task.get("annotations") or task.get("completions"), where) if is_object(a)]
        counted = [a for a in given if not (a.get("was_cancelled") or a.get("skipped"))]
        skipped += bool(given) and not counted
        older += max(len(counted) - 1, 0)
        if counted:
            returned.append(from_annotation(task, max(counted, key=_age), where))
    return Batch(returned, skipped, older)


def _short(file: Path) -> UserError:
    return UserError(
        f"{file}: this is JSON-MIN, which does not say which guesses were shown and answered. In Label Studio choose "
        "Export, then JSON."
    )


def _no_tasks(file: Path) -> UserError:
    return UserError(f"{file}: not a list of tasks. In Label Studio choose Export, then JSON.")


def _list(value: object, where: str) -> list[object]:
    """A list; an object as a list of one; either also as JSON in a text. Any other value is an empty list.

    Raises `UserError` for a text that seems to hold regions and is not valid JSON.
    """
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            found: object = from_json(value)
        except ValueError as error:
            if "labels" in value or "result" in value:
                raise UserError(f"{where}: a text of regions is not valid JSON ({error}). Export it again.") from None
            return []
        value = found
    return value if is_list(value) else [value] if is_object(value) else []


def _age(annotation: Object) -> tuple[float, int]:
    """A sort key that grows with time."""
    number = annotation.get("id")
    return saved_at(annotation), number if isinstance(number, int) else 0


def saved_at(annotation: Object) -> float:
    """When an annotation was changed, else created, in seconds since 1970; minus infinity if it does not say so.

    A time without a zone is UTC. Versions before 1.0 write seconds.
    """
    for field in ("updated_at", "created_at"):
        value = annotation.get(field)
        try:
            if isinstance(value, str):
                time = datetime.fromisoformat(value)
                return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
            return finite(value)
        except (TypeError, ValueError, OverflowError):
            continue
    return -math.inf


def from_annotation(task: Object, annotation: Object, where: str) -> Returned:
    """One annotation of one task, from an export or a webhook. Raises `UserError`, which begins with ``where``.

    Label Studio names the prediction that an annotation started from. If it names none and no region belongs to a
    query, the annotator did not start from the predictions. The copy of the prediction that it keeps says what was
    shown, even in a task that rarebox has not exported.
    An annotation whose ``import_id`` is null was not begun with the labels of an export.
    """
    given = annotation.get("result")
    if not (isinstance(given, str) or is_list(given)):
        raise UserError(f"{where}: the annotation has no result list. Export it again.")
    result = _list(given, where)
    regions = [region for region in result if is_object(region)]
    if len(regions) < len(result) or (isinstance(given, str) and not result):
        raise UserError(f"{where}: 'result' is not a list of regions. Export it again.")
    by, seconds = annotation.get("completed_by"), annotation.get("lead_time")
    returned = replace(_returned(task.get("data"), regions, by, seconds, where), task=_name_of(task))
    begun_with = annotation.get("parent_prediction", OURS)
    kept = as_object(annotation.get("prediction"))
    if is_list(shown := kept.get("result")) and begun_with in (OURS, kept.get("id")):
        returned = replace(returned, queries=tuple(filter(None, map(_query_of, shown))))
    taken_over = begun_with is not None or any(region.query is not None for region in returned.regions)
    held = returned.held if annotation.get("import_id", OURS) is not None else ()
    return replace(returned, began_with_guesses=taken_over, held=held)


def _name_of(task: Object) -> str:
    """The number of a task in Label Studio, and of its project; empty for a task that was not there.

    Every new server counts from 1, so the time when the task was made is part of its name.
    """
    made = saved_at({"created_at": task.get("created_at")})
    when = f" of {made}" if made > -math.inf else ""
    return f"{task.get('project', '')}/{task['id']}{when}" if "id" in task else ""


def _query_of(region: object) -> int | None:
    """The query that the id of a region names, if any."""
    return _query_and_name(region)[0]


def _query_and_name(region: object) -> tuple[int | None, str | None]:
    """The query that the id of a region names, and the hash of the name with which its guess was shown."""
    found = _QUERY.fullmatch(str(as_object(region).get("id") or "").split("#")[0])
    return (int(found[1]), found[2]) if found else (None, None)


def image_of(data: object, where: str, regions: Sequence[Object] = ()) -> tuple[str, int | None]:
    """The image's address in a task's data (see :class:`~rarebox.data.naming.ByName`), and its id, if rarebox wrote it.

    It is the value on which the ``regions`` are, else that of "image", else the only one that names a picture. Raises
    `UserError` if the data has no image, or several of which the ``regions`` name none.
    """
    fields = as_object(data)
    drawn_on = next((str(region["to_name"]) for region in regions if "to_name" in region), "")
    pictures = [name for name, value in fields.items() if isinstance(value, str) and _is_picture(value)]
    only = pictures[0] if len(pictures) == 1 else IMAGE
    field = next((name for name in (drawn_on, IMAGE) if isinstance(fields.get(name), str)), only)
    image = fields.get(field)
    if not isinstance(image, str):
        raise UserError(
            f'{where}: its data names no "{IMAGE}", nor a single picture. Export only tasks with one image.'
        )
    if regions and drawn_on not in fields and len(pictures) > 1:
        raise UserError(
            f"{where}: its data has several images ({', '.join(pictures)}), and its regions do not say which one they "
            "are on. Export tasks with one image each."
        )
    image_id = _ours(data).get("image_id")
    return image, image_id if isinstance(image_id, int) and field == IMAGE else None


def _is_picture(address: str) -> bool:
    """Whether an address in a task's data ends like the name of a picture."""
    return PurePosixPath(address.split("?d=")[-1].split("?")[0]).suffix.lower() in SUFFIXES


def _ours(data: object) -> Object:
    return as_object(as_object(data).get(OURS))


def _returned(data: object, entries: Sequence[Object], by: object, seconds: object, where: str) -> Returned:
    image, image_id = image_of(data, where, entries)
    shown = tuple(q for q in _list(_ours(data).get("queries"), where) if isinstance(q, int))
    milliseconds = round(1000 * seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e7 else 0
    size, regions, left_out = _regions(entries, where)
    held = read_held(_list(_ours(data).get("labels"), where), where)
    about = (where, image, image_id, size, shown, regions, _person(by), milliseconds)
    return Returned(*about, left_out=left_out, held=held, project=str(_ours(data).get("project") or ""))


def _person(by: object) -> str:
    """The name of an annotator: an email address, a user name, or a number."""
    if is_object(by):
        return str(by.get("email") or by.get("username") or by.get("id") or "")
    return "" if by is None else f"user {by}" if isinstance(by, int) else str(by)


def _regions(
    entries: Sequence[Object], where: str
) -> tuple[tuple[int, int] | None, tuple[Region, ...], tuple[str, ...]]:
    """The size of the picture, the boxes in its pixels, and the shapes that cannot become a box.

    A region may be one entry (``RectangleLabels``) or several (``Rectangle`` and ``Labels``, or further questions about
    it), which repeat its id and position. Entries without a position are about the image, not about an object.
    """
    of_region: dict[str, list[_Part]] = {}
    for entry in entries:
        if is_object(value := entry.get("value")) and (_shape(value) or _names(value)):
            place = {name: value[name] for name in _PLACE if name in value}
            key = json.dumps([entry.get("id"), place], sort_keys=True)
            of_region.setdefault(key, []).append(_Part(entry, value))
    every = [part.entry for same in of_region.values() for part in same]
    if len({repr((entry.get("to_name"), entry.get("item_index"))) for entry in every}) > 1:
        raise UserError(f"{where}: its regions are on several images. Export only tasks with one image.")
    size: tuple[int, int] | None = None
    regions, left_out = list[Region](), list[str]()
    for (entry, value), *others in of_region.values():
        names = list(dict.fromkeys([*_names(value), *(name for _, other in others for name in _names(other))]))
        if (shape := _shape(value)) not in _HULLS:
            left_out.append(f"{shape or entry.get('type') or 'region'} ({', '.join(names) or 'no class'})")
            continue
        try:
            width, height = (int(as_float(entry[f"original_{side}"])) for side in ("width", "height"))
            x1, y1, x2, y2 = _HULLS[shape](value, np.array([width, height]) / 100).tolist()
            turned = as_float(entry.get("image_rotation") or 0) % 360
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"{where}: a region lacks its position or the size of the image ({error!r}). Export it again."
            ) from None
        size = size or (width, height)
        if size != (width, height):
            raise UserError(f"{where}: its regions belong to images of different sizes. Label this image again.")
        if turned:
            raise UserError(f"{where}: the image was rotated in Label Studio. Rotate it back there, and export again.")
        if len(names) != 1:
            said = f"several classes ({', '.join(names)}). Keep one" if names else "no class. Give it one"
            raise UserError(f"{where}: a region has {said} in Label Studio, or delete the region.")
        key = str(entry.get("id") or "").split("#")[0]
        held = held_index(key)
        query, shown = _query_and_name(entry)
        renamed = None if shown is None else shown != _hash(names[0])
        key = "" if held is not None else key
        regions.append(Region((x1, y1, x2, y2), names[0], query, key, held, renamed))
    return size, tuple(regions), tuple(left_out)


_PLACE = ("x", "y", "width", "height", "rotation", "radiusX", "radiusY", "points", "vertices", "rle", "imageDataURL")
"""The fields of a value that give the position of a region."""


def _shape(value: Object) -> str:
    """The shape of a region, told by the fields of its value. Empty if it has none."""
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


def _names(value: Object) -> list[str]:
    """The classes in a value: under ``rectanglelabels``, ``polygonlabels``, …, or ``labels``."""
    return [str(name) for key, names in value.items() if key.endswith("labels") for name in as_list(names)]


def _pair(value: Object, first: str, second: str, percent: Floats) -> Floats:
    """Two percentages of a value, across and down, in pixels: (2,)."""
    return np.array([finite(value[first]), finite(value[second])]) * percent


def _rectangle_hull(value: Object, percent: Floats) -> Floats:
    corner = _pair(value, "x", "y", percent)
    opposite = corner + _pair(value, "width", "height", percent)
    return hull_of_turned([*corner, *opposite], finite(value.get("rotation") or 0), about=corner)


def _ellipse_hull(value: Object, percent: Floats) -> Floats:
    centre, radii = _pair(value, "x", "y", percent), _pair(value, "radiusX", "radiusY", percent)
    return hull_of_ellipse(centre, radii, finite(value.get("rotation") or 0))


def _polygon_hull(value: Object, percent: Floats) -> Floats:
    points = [(finite(x), finite(y)) for x, y in map(as_list, as_list(value["points"]))]
    return hull(np.array(points) * percent)


_HULLS: Mapping[str, Callable[[Object, Floats], Floats]] = {
    "rectangle": _rectangle_hull,
    "ellipse": _ellipse_hull,
    "polygon": _polygon_hull,
}
"""Shape -> the upright box around it (4,) in pixels, from its value and the pixels in one percent of each side (2,)."""
