"""COCO JSON: ``images``, ``categories``, and ``annotations`` with ``bbox`` = x, y, width, height in 0-based pixels.

`CocoFile` is the form in which rarebox writes it. Input may hold anything, and is checked part by part.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from filecmp import cmp
from functools import partial
from pathlib import Path
from typing import NamedTuple, NotRequired, TypedDict

import numpy as np

from rarebox.core.parsing import from_json
from rarebox.core.text import read_text
from rarebox.data import foreign
from rarebox.data.disk import Disk, place_key, searchable, slashes
from rarebox.data.exported import Exports
from rarebox.data.fitting import CornerCheck
from rarebox.data.images import UnreadableImage, files_below, image_size
from rarebox.data.listings import EXPORT_MARK, ListedBox, ListedImage, Listing, Problem, Reader, listed_size, upright
from rarebox.data.narrow import Object, as_float, as_list, as_object, is_list, is_object
from rarebox.data.remote import is_url
from rarebox.errors import UserError


class CocoCategory(TypedDict):
    """A class; ``id`` counts from 1."""

    id: int
    name: str
    supercategory: NotRequired[str]


class CocoImage(TypedDict):
    """An image; ``width`` and ``height`` in pixels. The attribute ``complete`` says whether every object has a box."""

    id: int
    file_name: str
    width: int
    height: int
    attributes: NotRequired[dict[str, bool]]


class CocoAnnotation(TypedDict):
    """A box; ``bbox`` is x, y, width, height in 0-based pixels. ``attributes`` hold what COCO has no field for."""

    id: int
    image_id: int
    category_id: int
    bbox: list[float]
    area: float
    iscrowd: int
    digit: NotRequired[int]
    score: NotRequired[float | None]
    attributes: NotRequired[Mapping[str, object]]


class CocoFile(TypedDict):
    """A COCO file as rarebox writes it."""

    info: dict[str, str]
    licenses: NotRequired[list[str]]
    categories: list[CocoCategory]
    images: list[CocoImage]
    annotations: list[CocoAnnotation]


Key = int | float | str
"""The id of an image, annotation or category; ``"1"`` and ``1`` are the same id."""


class _Content(NamedTuple):
    """The three lists of a file that was read; their entries are not checked yet."""

    images: list[object]
    annotations: list[object]
    categories: list[object]


class _Entry(NamedTuple):
    """An entry of ``images``: the file name, and the raw entry."""

    name: str
    raw: Object


_UNUSED = "This file is not read. To use its labels, name the file instead of the folder."
_TEST_NAMES = ("test", "valid", "val")
_ROBOFLOW = "_annotations.coco.json"
_OBJECTS = ("annotations", "objects", "boxes", "bboxes", "bbox")
_TRUE = (1, True, "1", "true", "True")
_DETECTED = (
    "it has a score, as in the output of a detector, which is no label. Give the list 'annotations' to --predictions. "
    "If people drew the boxes, remove the scores."
)


def find(path: Path) -> Reader | None:
    """Recognise train.json beside test.json (or valid.json, val.json), and Roboflow's folder for each split."""
    for pattern in ("{}.json", "{}/" + _ROBOFLOW):
        train = path / pattern.format("train")
        if os.path.isfile(train):
            tests = [file for name in _TEST_NAMES if os.path.isfile(file := path / pattern.format(name))]
            others = files_of(path, but=(train, *tests))
            return partial(read, train, *(tests or [None]), *others)
    return None


def files_of(folder: Path, but: Collection[Path] = ()) -> list[Path]:
    """The other files directly in a folder that look like COCO, sorted. Those named in ``but`` are not opened."""
    files = (file for file in sorted(folder.glob("*")) if file.suffix.lower() == ".json" and file not in but)
    return [file for file in files if _looks_like_coco(file)]


def unread(folder: Path, read: Collection[str]) -> Iterator[Path]:
    """The files below a folder that look like COCO, except those read, which are given by their real paths."""
    found = (file for file in files_below(folder, {".json"}) if os.path.realpath(file) not in read)
    return filter(_looks_like_coco, found)


def find_single(path: Path) -> Reader | None:
    """Recognise a JSON file, and a folder with exactly one JSON file that looks like COCO."""
    if os.path.isfile(path):
        return partial(read, path) if path.suffix.lower() == ".json" else None
    candidates = files_of(path) if os.path.isdir(path) else []
    return partial(read, candidates[0]) if len(candidates) == 1 else None


def read(train: Path, test: Path | None = None, *unused: Path) -> tuple[Listing, Listing | None]:
    """Both files. Further splits are not used, and reported as problems. Raises `UserError` if a file is not COCO."""
    listing = _listing(train)
    for path in unused:
        chosen = f"{test} is the test split" if test else f"{train} is read"
        listing.problems.append(Problem("split not used", str(path), f"{chosen}. {_UNUSED}"))
    listing.files.update((train, *unused), [test] if test else [])
    return listing, _listing(test) if test else None


_LIST = re.compile(rb'"(images|annotations)"\s*:\s*\[')


def _looks_like_coco(path: Path) -> bool:
    """Whether a file has two of COCO's keys and a list under one of them, unlike a settings file.

    A broken file counts, so that its reader can say what is wrong.
    """
    text = searchable(path) if path.name != EXPORT_MARK else b""
    words = sum(b'"%s"' % word.encode() in text for word in _Content._fields)
    return words > 1 and _LIST.search(text) is not None


def _listing(path: Path) -> Listing:
    content = _parse(path)
    problems: list[Problem] = []
    names, numbers = _names(path, content, problems)
    boxes, lost = _boxes(path, content, names, problems)
    images = _images(path, content, boxes, lost, {*names.values()}, problems)
    if _corners_of(images, lambda image: image.size).doubts:
        _corners_of(images, _size_of_file).refuse(path)  # the listed sizes may be wrong, not the boxes
    categories = {key: name for key, name in names.items() if isinstance(key, int)}
    return Listing(path, list(dict.fromkeys(names.values())), images, problems, categories, numbers)


def _corners_of(images: Iterable[ListedImage], size_of: Callable[[ListedImage], tuple[int, int] | None]) -> CornerCheck:
    check = CornerCheck()
    for image in images:
        check.add(np.array([box.box for box in image.boxes], dtype=np.float64).reshape(-1, 4), size_of(image))
    return check


def _size_of_file(image: ListedImage) -> tuple[int, int] | None:
    """Width and height of the upright image; those listed for an image that is remote or cannot be read."""
    try:
        return image.size if is_url(image.path) else image_size(image.path)[:2]
    except UnreadableImage:
        return image.size


def _parse(path: Path) -> _Content:
    """The three lists of a file. Raises `UserError`, which names the line of a syntax error."""
    repair = "Repair the file, or export it again."
    try:
        content: object = from_json(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}, {where}: this is not valid JSON ({error.msg}). {repair}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}). {repair}") from None
    if not is_object(content):
        if is_list(content) and content and "score" in as_object(content[0]):
            raise UserError(f"{path}: these are detections, which are no labels. Give them to --predictions.")
        what = f"a COCO file is an object with 'images', 'annotations' and 'categories'. {repair}"
        raise UserError(f"{path}: {foreign.advice(path) or what}")
    lists: list[list[object]] = []
    for key in _Content._fields:
        if not is_list(found := content.get(key)):
            what = foreign.advice(path) or f"the list '{key}' is missing, so this is not a COCO label file. {repair}"
            raise UserError(f"{path}: {what}")
        lists.append(found)
    return _Content(*lists)


def _names(path: Path, content: _Content, problems: list[Problem]) -> tuple[dict[Key, str], dict[int, str]]:
    """Category id -> class name, in order of id, without a placeholder that is only the supercategory of the others.

    Also the names by their positions from 0, which are the class numbers of most detectors. These are empty if a
    placeholder is left out, because detectors may or may not count it.
    """
    categories: dict[Key, Object] = {}
    ambiguous, nameless = set[Key](), set[Key]()
    for index, category in enumerate(content.categories):
        where = f"{path}: category {index + 1} in the list"
        if not is_object(category) or "id" not in category or not _name(category):
            nameless |= {_key(category["id"])} if is_object(category) and "id" in category else set()
            problems.append(Problem("unknown category", where, "it has no id or no name. It is skipped."))
        elif (first := categories.setdefault(_key(category["id"]), category)) is not category:
            same = _name(first) == _name(category)
            ambiguous |= set() if same else {_key(category["id"])}
            what = "is already used. The first category is used." if same else "has two names. Its boxes are dropped."
            problems.append(Problem("duplicate id", where, f"id {category['id']} {what}"))
    placeholders = _placeholders(categories, content.annotations)
    by_id = sorted(categories.keys() | nameless, key=lambda key: (isinstance(key, str), key))
    lacking = {*placeholders, *ambiguous, *(nameless - categories.keys())}
    named = {key: _name(categories[key]) for key in by_id if key not in lacking}
    numbers = {place: named[key] for place, key in enumerate(by_id) if key in named}
    return named, {} if placeholders else numbers


def _name(category: Object) -> str:
    """The name of a category, which may be a number in the file. Empty if it has none."""
    name = category.get("name")
    return "" if name is None else str(name).strip()


def _placeholders(categories: Mapping[Key, Object], annotations: list[object]) -> list[Key]:
    """Categories without a box that are the supercategory of all others. Roboflow writes one, with id 0."""
    used = {_key(annotation.get("category_id")) for annotation in annotations if is_object(annotation)}
    idle = [key for key in categories if key not in used]
    return [k for k in idle if _is_above(categories[k], [c for key, c in categories.items() if key != k])]


def _is_above(category: Object, others: list[Object]) -> bool:
    return bool(others) and all(other.get("supercategory") == category["name"] for other in others)


def _boxes(
    path: Path, content: _Content, names: Mapping[Key, str], problems: list[Problem]
) -> tuple[dict[Key, list[ListedBox]], set[Key]]:
    """Image id -> its boxes; and the ids of images with an object whose box or class cannot be used."""
    boxes: dict[Key, list[ListedBox]] = defaultdict(list)
    lost: set[Key] = set()
    scored = any(_score(annotation) not in (None, 1) for annotation in content.annotations)
    seen: dict[Key, Object] = {}
    for index, annotation in enumerate(content.annotations):
        if not is_object(annotation):
            where = f"{path}: annotation {index + 1} in the list"
            problems.append(Problem("box dropped", where, f"{annotation!r:.60} is not an annotation."))
            continue
        where = f"{path}: annotation {annotation.get('id', f'{index + 1} in the list')}"
        name = names.get(_key(annotation.get("category_id")))
        try:
            box, fault = _corners(annotation), ""
        except ValueError as error:
            box, fault = None, str(error)
        if scored and _score(annotation) is not None:
            box, fault = None, _DETECTED
        if "id" in annotation and _is_repeated(annotation, seen, where, problems):
            continue
        image_id = _key(annotation.get("image_id"))
        if name is None or box is None:
            lost.add(image_id)
        if name is None:
            what = f"category_id {annotation.get('category_id')!r} is not among the categories. The box is dropped."
            problems.append(Problem("unknown category", where, what))
        elif box is None:
            problems.append(Problem("box dropped", where, fault))
        else:
            source, crowd = str(_attributes(annotation).get("source", "")), _crowd(annotation)
            boxes[image_id].append(ListedBox(box, name, _difficult(annotation), where, source, crowd))
    return boxes, lost


def _is_repeated(annotation: Object, seen: dict[Key, Object], where: str, problems: list[Problem]) -> bool:
    """Whether an earlier annotation is identical. If different boxes share an id, it is reported and both are kept."""
    first = seen.setdefault(_key(annotation["id"]), annotation)
    if first is annotation:
        return False
    repeated = first == annotation
    what = (
        "it repeats an earlier annotation. It is dropped."
        if repeated
        else "the id is already used. Both boxes are kept."
    )
    problems.append(Problem("duplicate id", where, what))
    return repeated


def _corners(annotation: Object) -> tuple[float, float, float, float]:
    """The upright box of an annotation: x1, y1, x2, y2 in pixels. Raises ``ValueError`` if it has none."""
    bbox = annotation.get("bbox")
    try:
        x, y, width, height = map(as_float, as_list(bbox))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox is {bbox!r:.60}. Write four numbers: x, y, width, height.") from None
    said = {key: value for place in _places(annotation) for key, value in place.items() if value}
    return upright((x, y, x + width, y + height), said)


def _score(annotation: object) -> float | None:
    """The score that a detector gave the box, unless the file says where the box comes from, as exports do."""
    if not is_object(annotation) or "source" in _attributes(annotation):
        return None
    score = annotation.get("score")
    return score if isinstance(score, int | float) and not isinstance(score, bool) else None


def _attributes(entry: Object) -> Object:
    """The attributes of an image or annotation, where rarebox's own export writes what COCO has no field for.

    Some tools write them as a list of objects with ``name`` and ``value``.
    """
    given = entry.get("attributes")
    pairs = [as_object(pair) for pair in as_list(given)]
    return as_object(given) or {str(pair["name"]): pair.get("value") for pair in pairs if "name" in pair}


def _crowd(annotation: Object) -> bool:
    """Whether the box is around several objects (``iscrowd``, Open Images' ``IsGroupOf``), or an ignore region
    (``ignore``)."""
    groups = (place.get(name) for place in _places(annotation) for name in ("IsGroupOf", "is_group_of"))
    return any(flag in _TRUE for flag in (annotation.get("iscrowd"), annotation.get("ignore"), *groups))


def _difficult(annotation: Object) -> bool:
    """Whether the box is a crowd, or has the flag ``difficult`` in one of the places where converters write it."""
    return _crowd(annotation) or any(place.get("difficult") in _TRUE for place in _places(annotation))


def _places(annotation: Object) -> list[Object]:
    """The objects in which tools write attributes."""
    return [annotation, _attributes(annotation), as_object(annotation.get("extra"))]


def _images(
    path: Path,
    content: _Content,
    boxes: Mapping[Key, list[ListedBox]],
    lost: set[Key],
    classes: Collection[str],
    problems: list[Problem],
) -> list[ListedImage]:
    entries: dict[Key, list[_Entry]] = defaultdict(list)
    for index, entry in enumerate(content.images):
        if is_object(entry) and (name := _file_name(entry)) and "id" in entry:
            entries[_key(entry["id"])].append(_Entry(name, entry))
        else:
            where = f"{path}: image {index + 1} in the list"
            problems.append(Problem("unreadable image", where, "it has no id or no file_name. It is skipped."))
    images: list[ListedImage] = []
    exports = Exports(path.parent)
    found = _located(path, {entry.name for same in entries.values() for entry in same}, problems)
    strays = boxes.keys() - entries.keys()  # boxes with an unknown image_id, perhaps of an image that seems empty
    for key, same in entries.items():
        if len(same) > 1:
            problems += _duplicates(path, same)
        if len({entry.name for entry in same}) == 1:
            image = _image(path, same[0], boxes.get(key, []), found[same[0].name], problems)
            file = slashes(same[0].name).rsplit("/", 1)[-1]
            export = exports.named(file)
            if place_key(file) in export.incomplete:
                image = replace(image, complete=False)
            image = replace(image, guesses=export.guesses(file, classes))
            empty = key not in boxes and key not in lost and not image.lost
            images.append(replace(image, lost=image.lost or key in lost, labelled=not empty or not strays))
            if empty and image.complete is not False:
                what = "it has no boxes and counts as an image without objects."
                problems.append(Problem("image without annotation", f"{path}: {same[0].name}", what))
    for key in (key for key in boxes if key not in entries):
        for box in boxes[key]:
            what = f"image_id {key!r} is not among the images. The box is dropped."
            problems.append(Problem("annotation without image", box.where, what))
    if federated := [same[0].name for same in entries.values() if _is_federated(same[0].raw)]:
        what = (
            f"in {len(federated)} images people looked for some classes only, as in LVIS. They count as partially "
            "labelled."
        )
        problems.append(Problem("classes not checked", f"{path}: {federated[0]}", what))
    if not any(image.complete for image in images):
        return images
    for image in (image for image in images if image.complete is None):
        what = "other images of the file are marked as complete, this one is not. It counts as partially labelled."
        problems.append(Problem("completeness unknown", f"{path}: {image.path}", what))
    return [image if image.complete is not None else replace(image, complete=False) for image in images]


def _file_name(image: Object) -> str:
    """The file name of an image; LVIS has only its address. Empty if there is none."""
    name, address = image.get("file_name"), image.get("coco_url")
    return name if isinstance(name, str) else address.rsplit("/", 1)[-1] if isinstance(address, str) else ""


def _duplicates(path: Path, same: list[_Entry]) -> list[Problem]:
    """Report entries that share an id. If they name the same file, the first is used; if different files, none is."""
    where, files = f"{path}: image id {same[0].raw['id']}", sorted({entry.name for entry in same})
    if len(files) == 1:
        return [Problem("duplicate id", where, f"{files[0]} is listed {len(same)} times. One entry is used.")]
    what = f"several images have this id: {', '.join(files)}. They are skipped, since the boxes could belong to any."
    return [Problem("duplicate id", where, what)]


def _is_federated(image: Object) -> bool:
    """Whether people looked for some classes only (LVIS), and the image does not say that it is complete."""
    checked = "neg_category_ids" in image or bool(image.get("not_exhaustive_category_ids"))
    return checked and "complete" not in _attributes(image)


def _image(
    path: Path, entry: _Entry, boxes: list[ListedBox], place: Path | str, problems: list[Problem]
) -> ListedImage:
    """One image; ``lost`` if its entry has a separate list of objects, which is not read."""
    where, raw = f"{path}: {entry.name}", entry.raw
    size = listed_size(raw.get("width"), raw.get("height"), where, problems)
    key = _key(raw["id"])
    own = key if type(key) is int else None
    attributes = _attributes(raw)
    complete = attributes["complete"] in _TRUE if "complete" in attributes else False if _is_federated(raw) else None
    inside = next((name for name in _OBJECTS if as_list(raw.get(name))), None)
    if inside:
        what = f"the image's own list '{inside}' is not read. Move its objects to the file's list 'annotations'."
        problems.append(Problem("box dropped", where, what))
    return ListedImage(place, boxes, own, size, complete=complete, lost=inside is not None)


def _located(path: Path, names: Iterable[str], problems: list[Problem]) -> dict[str, Path | str]:
    """Name -> image file: a URL, or a file beside the JSON, in ``images/``, or in a folder named like the split.

    A file whose name differs in case belongs to a name only if no other name in the list fits it. Different files of
    one name in several of these places are reported as a problem.
    """
    disk, folder = Disk(), path.parent
    folders = (folder, folder / "images", folder / path.stem, folder / "images" / path.stem)
    found: dict[str, Path | str] = {}
    alike: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        places = [place / slashes(name) for place in folders]
        files = [] if is_url(name) else [*filter(os.path.isfile, places)]
        there = name if is_url(name) else files[0] if files else None
        for other in files[1:]:
            if not cmp(files[0], other, shallow=False):
                what = f"{files[0]} and {other} have this name and differ. The first is used. Remove the wrong one."
                problems.append(Problem("several image files", f"{path}: {name}", what))
        if there is None and (near := next(filter(None, map(disk.find, places)), None)):
            alike[near].append(name)
        found[name] = there or places[0]
    taken = set(found.values())
    return found | {same[0]: place for place, same in alike.items() if len(same) == 1 and place not in taken}


def _key(value: object) -> Key:
    """An id as a key to look up by; a value that is not an id becomes its ``repr``."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 and str(int(value)) == value else value
    return value if isinstance(value, int | float) else repr(value)
