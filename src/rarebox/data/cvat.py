"""CVAT: writes rectangles as "CVAT for images 1.1" XML, reads rectangles and other shapes.

CVAT does not keep the ids of boxes. A box carries its query, or its index among the labels, in the attribute ``query``.
The tag ``rarebox`` on the image holds its number and lists all queries and labels that were exported there, so that
renamed photos are found and deleted boxes are noticed. Both must be among the labels of the CVAT task; ``labels.json``
adds them.
"""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from rarebox.core.boxes import hull, hull_of_ellipse, hull_of_turned
from rarebox.core.files import read_bytes
from rarebox.core.parsing import finite, from_json
from rarebox.data.markup import from_xml
from rarebox.data.review import (
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
)
from rarebox.errors import UserError
from rarebox.types import Floats, Query

QUERY, TAG, NUMBER, SHOWN, LABELS, PROJECT = "query", "rarebox", "image", "queries", "labels", "project"
MOST_LABELS = 25
"""Labels in one tag: CVAT keeps at most 4096 characters of an attribute."""
NEW = "new"
"""The value of the attribute ``query`` for a box that a person has drawn."""

_NUMBER = re.compile(r"\b[0-9]{1,18}\b")


class Attribute(TypedDict):
    """An attribute of a label."""

    name: str
    input_type: str
    mutable: bool
    default_value: str
    values: list[str]


class Label(TypedDict):
    """A label of a CVAT task."""

    name: str
    color: str
    type: str
    attributes: list[Attribute]


def labels(classes: Sequence[str]) -> str:
    """The labels of a CVAT task, as JSON for its "Raw" constructor."""

    def text(name: str, value: str) -> Attribute:
        return {"name": name, "input_type": "text", "mutable": False, "default_value": value, "values": [value]}

    boxes: list[Label] = [
        {"name": name, "color": colour(label), "type": "rectangle", "attributes": [text(QUERY, NEW)]}
        for label, name in enumerate(classes)
    ]
    lists = [text(name, "") for name in (NUMBER, SHOWN, LABELS, PROJECT)]
    tag: Label = {"name": TAG, "color": "#888888", "type": "tag", "attributes": lists}
    return json.dumps([*boxes, tag], indent=1, ensure_ascii=False) + "\n"


def annotations(sheets: Iterable[ReviewTask], classes: Sequence[str]) -> str:
    """The text of ``annotations.xml``: every image with its queries (source "auto") and labelled boxes ("manual")."""
    root = ET.Element("annotations")
    ET.SubElement(root, "version").text = "1.1"
    listed = list(sheets)
    task = ET.SubElement(ET.SubElement(root, "meta"), "task")
    for name, value in (("name", "rarebox"), ("size", str(len(listed))), ("mode", "annotation")):
        ET.SubElement(task, name).text = value
    names = ET.SubElement(task, "labels")
    for label, name in enumerate((*classes, TAG)):
        entry = ET.SubElement(names, "label")
        ET.SubElement(entry, "name").text = name
        ET.SubElement(entry, "color").text = colour(label)
        ET.SubElement(entry, "type").text = "tag" if name == TAG else "rectangle"
    for sheet in listed:
        _image(root, sheet, classes)
    ET.indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _image(root: ET.Element, sheet: ReviewTask, classes: Sequence[str]) -> None:
    record = sheet.record
    about = {"id": str(sheet.number - 1), "name": sheet.file, "width": str(record.width), "height": str(record.height)}
    image = ET.SubElement(root, "image", about)
    for query in sheet.queries:
        _box(image, sheet, query, classes, "auto", str(query.id) if query.id else NEW)
    for n, query in enumerate(sheet.labelled):
        _box(image, sheet, query, classes, "manual", held_name(n))
    tag = ET.SubElement(image, "tag", label=TAG, source="auto")
    ET.SubElement(tag, "attribute", name=NUMBER).text = str(record.id)
    if sheet.project:
        ET.SubElement(tag, "attribute", name=PROJECT).text = sheet.project
    if shown := [str(query.id) for query in sheet.queries if query.id]:
        ET.SubElement(tag, "attribute", name=SHOWN).text = " ".join(shown)
    held = held_in(sheet, classes)
    for start in range(0, len(held), MOST_LABELS):
        tag = ET.SubElement(image, "tag", label=TAG, source="auto")
        part = json.dumps(held[start : start + MOST_LABELS], ensure_ascii=False, separators=(",", ":"))
        ET.SubElement(tag, "attribute", name=LABELS).text = part


def _box(image: ET.Element, sheet: ReviewTask, query: Query, classes: Sequence[str], source: str, number: str) -> None:
    assert query.box is not None
    assert query.guess is not None
    limits = [sheet.record.width or np.inf, sheet.record.height or np.inf] * 2
    edges = dict(zip(("xtl", "ytl", "xbr", "ybr"), np.clip(query.box, 0, limits).tolist(), strict=True))
    places = {name: f"{float(value):.2f}" for name, value in edges.items()}
    about = {"label": classes[query.guess], "source": source, "occluded": "0", **places, "z_order": "0"}
    box = ET.SubElement(image, "box", about)
    ET.SubElement(box, "attribute", name=QUERY).text = number


# ------------------------------------------------------------------------------------------- import


def read(file: Path) -> Batch:
    """An export as "CVAT for images 1.1": the XML file, unpacked from its archive.

    Rotated boxes, ellipses, polygons, polylines, masks and cuboids become the upright box around them. Points and
    skeletons do not outline an object; they go to ``left_out``. Raises `UserError`, which names the file and the image.
    """
    try:
        content = read_bytes(file)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. Check the path.") from None
    if content.startswith(b"PK"):
        raise UserError(
            f"{file}: this is the zip file that CVAT exports. Unpack it, and import the annotations.xml in it."
        )
    try:
        root = from_xml(content)
    except (ET.ParseError, ValueError) as error:
        raise UserError(f"{file}: not valid XML ({error}). Export it again as CVAT for images 1.1.") from None
    if root.tag != "annotations" or root.find("track") is not None:
        raise UserError(f'{file}: not in the format "CVAT for images 1.1". Export the task again in that format.')
    own = _name_of(root)
    people = {task.findtext("id") or "": _person(task) for task in root.iterfind("meta//task")}
    found: list[Returned] = []
    for image in root.iter("image"):
        task = image.get("task_id") or own
        found.append(_returned(image, file, people.get(task) or _person(root), task))
    return Batch(found)


def _name_of(root: ET.Element) -> str:
    """The task that a file is of, or the job, whose task it does not name; empty if it names neither."""
    job = root.findtext("meta/job/id")
    return f"job {job}" if job else root.findtext("meta/task/id") or ""


def _person(element: ET.Element) -> str:
    """The annotator of a task, or of all that a file holds: the assignee, else the owner. Empty if there is none."""
    places = (".//assignee/username", ".//owner/username")
    return next((name for place in places if (name := element.findtext(place))), "")


def _returned(image: ET.Element, file: Path, by: str, task: str) -> Returned:
    name = image.get("name")
    where = f"{file}, image {name}"
    if not name:
        raise UserError(f"{where}: it has no name. Export the task again.")
    shapes = [shape for shape in image if shape.tag != "tag"]
    try:
        size = (int(finite(image.attrib["width"])), int(finite(image.attrib["height"])))
        regions = tuple(_region(shape) for shape in shapes if shape.tag in _HULLS)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{where}: the image or a shape on it lacks a number ({error!r}). Export the task again."
        ) from None
    tags = [tag for tag in image.iter("tag") if tag.get("label") == TAG]
    shown = [int(number) for tag in tags for number in _NUMBER.findall(_attribute(tag, SHOWN))]
    number = next((int(text) for tag in tags if _NUMBER.fullmatch(text := _attribute(tag, NUMBER))), None)
    left_out = tuple(f"{shape.tag} ({shape.get('label')})" for shape in shapes if shape.tag not in _HULLS)
    held = tuple(label for tag in tags for label in _held(_attribute(tag, LABELS), where))
    project = next((text for tag in tags if (text := _attribute(tag, PROJECT))), "")
    about = (where, name, number, size, tuple(shown), regions, by)
    return Returned(*about, left_out=left_out, held=held, task=task, project=project)


def _held(text: str, where: str) -> tuple[Held, ...]:
    try:
        return read_held(from_json(text or "[]"), where)
    except ValueError:
        return read_held([text], where)


def _region(shape: ET.Element) -> Region:
    x1, y1, x2, y2 = _HULLS[shape.tag](shape).tolist()
    said = _attribute(shape, QUERY)
    query = int(said) if _NUMBER.fullmatch(said) else None
    return Region((x1, y1, x2, y2), shape.attrib["label"], query, "", held_index(said))


def _numbers(shape: ET.Element, *names: str) -> list[float]:
    return [finite(shape.attrib[name]) for name in names]


def _degrees(shape: ET.Element) -> float:
    """The clockwise rotation of a shape about its centre, in degrees."""
    return finite(shape.get("rotation") or "0")


def _box_hull(shape: ET.Element) -> Floats:
    return hull_of_turned(_numbers(shape, "xtl", "ytl", "xbr", "ybr"), _degrees(shape))


def _ellipse_hull(shape: ET.Element) -> Floats:
    return hull_of_ellipse(_numbers(shape, "cx", "cy"), _numbers(shape, "rx", "ry"), _degrees(shape))


def _points_hull(shape: ET.Element) -> Floats:
    return hull([[finite(n) for n in point.split(",")] for point in shape.attrib["points"].split(";")])


def _mask_hull(shape: ET.Element) -> Floats:
    x, y, width, height = _numbers(shape, "left", "top", "width", "height")
    return np.array([x, y, x + width, y + height])


def _cuboid_hull(shape: ET.Element) -> Floats:
    corners = [f"{corner}{side}" for corner in ("tl", "bl", "tr", "br") for side in (1, 2)]
    return hull([_numbers(shape, f"x{corner}", f"y{corner}") for corner in corners])


_HULLS: Mapping[str, Callable[[ET.Element], Floats]] = {
    "box": _box_hull,
    "ellipse": _ellipse_hull,
    "polygon": _points_hull,
    "polyline": _points_hull,
    "mask": _mask_hull,
    "cuboid": _cuboid_hull,
}
"""Element -> the upright box around its shape (4,), in pixels."""


def _attribute(element: ET.Element, name: str) -> str:
    return next((a.text or "" for a in element.iter("attribute") if a.get("name") == name), "").strip()
