"""COCO JSON: ``images``, ``annotations`` with ``bbox`` = x, y, width, height in 0-based pixels, ``categories``."""

import json
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rarebox.core.files import read_bytes
from rarebox.core.parsing import from_json
from rarebox.core.text import read_text
from rarebox.data.disk import Disk, slashes
from rarebox.data.listings import EXPORT_MARK, ListedBox, ListedImage, Listing, Problem, Reader, listed_size, upright
from rarebox.data.remote import is_url
from rarebox.errors import UserError

_TEST_NAMES = ("test", "valid", "val")
_ROBOFLOW = "_annotations.coco.json"
_OBJECTS = ("annotations", "objects", "boxes", "bboxes", "bbox")
_TRUE = (1, True, "1", "true", "True")


def find(path: Path) -> Reader | None:
    """Recognises train.json beside test.json (or valid.json, val.json), and Roboflow's one folder for each split."""
    for pattern in ("{}.json", "{}/" + _ROBOFLOW):
        train = path / pattern.format("train")
        if os.path.isfile(train):
            tests = [path / pattern.format(name) for name in _TEST_NAMES]
            return partial(read, train, *filter(os.path.isfile, tests))
    return None


def find_single(path: Path) -> Reader | None:
    """Recognises a JSON file, and a folder that holds exactly one that looks like COCO."""
    if os.path.isfile(path):
        return partial(read, path) if path.suffix.lower() == ".json" else None
    candidates = [p for p in sorted(path.glob("*.json")) if _looks_like_coco(p)]
    return partial(read, candidates[0]) if len(candidates) == 1 else None


def read(train: Path, test: Path | None = None, *unused: Path) -> tuple[Listing, Listing | None]:
    """Both files; a further split is not used, which is listed. Raises `UserError` for a file that is not COCO."""
    listing = _listing(train)
    for path in unused:
        listing.problems.append(Problem("split not used", str(path), f"{test} is the test split"))
    return listing, _listing(test) if test else None


def categories(path: Path) -> dict[int, str]:
    """The numbers of the categories of a file and the classes that they stand for, those of :func:`read`."""
    names = _names(path, _parse(path), [])
    return {key: name for key, name in names.items() if isinstance(key, int)}


def _looks_like_coco(path: Path) -> bool:
    """By its words only, so that a broken file is recognised too and its reader can say what is wrong."""
    text = read_bytes(path).replace(b"\0", b"") if path.name != EXPORT_MARK else b""  # UTF-16 has zeros between
    return b'"images"' in text or b'"annotations"' in text


def _listing(path: Path) -> Listing:
    content = _parse(path)
    problems: list[Problem] = []
    names = _names(path, content, problems)
    boxes, lost = _boxes(path, content, names, problems)
    images = _images(path, content, boxes, lost, problems)
    _refuse_corners(path, images)
    return Listing(path, list(dict.fromkeys(names.values())), images, problems)


def _parse(path: Path) -> dict[str, list[Any]]:
    """The file's content, with its three lists present. Raises `UserError`, naming the line of a syntax error."""
    repair = "repair the file or export it again"
    try:
        content = from_json(read_text(path))
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}, {where}: this is not valid JSON ({error.msg}); {repair}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {repair}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a COCO file is an object with 'images', 'annotations' and 'categories'; {repair}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            raise UserError(f"{path}: there is no list '{key}', so this is not a COCO label file; {repair}")
    return content


def _names(path: Path, content: dict[str, list[Any]], problems: list[Problem]) -> dict[Any, str]:
    """Category id -> class name, by rising id, without a placeholder that only names the others' supercategory."""
    categories: dict[Any, dict[str, Any]] = {}
    ambiguous: set[Any] = set()
    for index, category in enumerate(content["categories"]):
        where = f"{path}: category {index + 1} in the list"
        if not isinstance(category, dict) or "id" not in category or not _name(category):
            problems.append(Problem("unknown category", where, "it has no id or no name; it is left out"))
        elif (first := categories.setdefault(_key(category["id"]), category)) is not category:
            same = _name(first) == _name(category)
            ambiguous |= set() if same else {_key(category["id"])}
            what = "is taken; the first one is used" if same else "has two names, so its boxes are dropped"
            problems.append(Problem("duplicate id", where, f"id {category['id']} {what}"))
    for key in {*_placeholders(categories, content["annotations"]), *ambiguous}:
        del categories[key]
    by_id = sorted(categories, key=lambda key: (isinstance(key, str), key))
    return {key: _name(categories[key]) for key in by_id}


def _name(category: dict[str, Any]) -> str:
    """What a category is called, which may be a number; empty if it has no name."""
    name = category.get("name")
    return "" if name is None else str(name).strip()


def _placeholders(categories: dict[Any, dict[str, Any]], annotations: list[Any]) -> list[Any]:
    """Categories without a box, named like the supercategory of all the others (Roboflow writes one, with id 0)."""
    used = {_key(a.get("category_id")) for a in annotations if isinstance(a, dict)}
    idle = [key for key in categories if key not in used]
    return [k for k in idle if _is_above(categories[k], [c for key, c in categories.items() if key != k])]


def _is_above(category: dict[str, Any], others: list[dict[str, Any]]) -> bool:
    return bool(others) and all(other.get("supercategory") == category["name"] for other in others)


def _boxes(
    path: Path, content: dict[str, list[Any]], names: dict[Any, str], problems: list[Problem]
) -> tuple[dict[Any, list[ListedBox]], set[Any]]:
    """Image id -> its boxes; and the ids of images that lost an object, for it has no box or no class."""
    boxes: dict[Any, list[ListedBox]] = defaultdict(list)
    lost: set[Any] = set()
    seen: dict[Any, Any] = {}
    for index, annotation in enumerate(content["annotations"]):
        if not isinstance(annotation, dict):
            where = f"{path}: annotation {index + 1} in the list"
            problems.append(Problem("box dropped", where, f"{annotation!r:.60} is not an annotation"))
            continue
        where = f"{path}: annotation {annotation.get('id', f'{index + 1} in the list')}"
        name = names.get(_key(annotation.get("category_id")))
        try:
            box, fault = _corners(annotation), ""
        except ValueError as error:
            box, fault = None, str(error)
        if "id" in annotation and _is_repeated(annotation, seen, where, problems):
            continue
        image_id = _key(annotation.get("image_id"))
        if name is None or box is None:
            lost.add(image_id)
        if name is None:
            what = f"category_id {annotation.get('category_id')!r} is not among the categories; the box is dropped"
            problems.append(Problem("unknown category", where, what))
        elif box is None:
            problems.append(Problem("box dropped", where, fault))
        else:
            source, crowd = str(_said(annotation).get("source", "")), _crowd(annotation)
            boxes[image_id].append(ListedBox(box, name, _difficult(annotation), where, source, crowd))
    return boxes, lost


def _is_repeated(annotation: dict[str, Any], seen: dict[Any, Any], where: str, problems: list[Problem]) -> bool:
    """Whether the very same annotation came before; an id that merely occurs twice is only listed."""
    first = seen.setdefault(_key(annotation["id"]), annotation)
    if first is annotation:
        return False
    repeated = first == annotation
    what = "the same annotation came before, it is dropped" if repeated else "the id is taken, both boxes are kept"
    problems.append(Problem("duplicate id", where, what))
    return repeated


def _corners(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """The upright box of an annotation: x1, y1, x2, y2. Raises ``ValueError`` that says what is wrong with it."""
    bbox = annotation.get("bbox")
    try:
        x, y, width, height = (float(value) for value in (bbox if isinstance(bbox, list) else ()))
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bbox is {bbox!r:.60}, not four numbers x, y, width, height") from None
    said = {key: value for place in _places(annotation) for key, value in place.items() if value}
    return upright((x, y, x + width, y + height), said)


def _refuse_corners(path: Path, images: list[ListedImage]) -> None:
    """UserError if the boxes make sense only as x1, y1, x2, y2: as read, most reach far out of their images."""
    judged = [(box.box, image.size) for image in images if image.size for box in image.boxes]
    far = sum(x2 > 1.02 * width + 1 or y2 > 1.02 * height + 1 for (_, _, x2, y2), (width, height) in judged)
    fitting = all(
        0 <= x1 < x2 - x1 <= width + 1 and 0 <= y1 < y2 - y1 <= height + 1
        for (x1, y1, x2, y2), (width, height) in judged
    )
    if len(judged) > 1 and 2 * far >= len(judged) and fitting:
        raise UserError(
            f"{path}: a COCO bbox is x, y, width, height, and these seem to be x1, y1, x2, y2, for {far} of "
            f"{len(judged)} reach out of their images; write width and height in place of the second corner"
        )


def _said(entry: dict[str, Any]) -> dict[str, Any]:
    """What rarebox's own export says beside the format."""
    attributes = entry.get("attributes")
    return attributes if isinstance(attributes, dict) else {}


def _crowd(annotation: dict[str, Any]) -> bool:
    """Whether the box is a region of several objects, or one to be ignored, as some data sets say."""
    return annotation.get("iscrowd") in _TRUE or annotation.get("ignore") in _TRUE


def _difficult(annotation: dict[str, Any]) -> bool:
    """Crowds, and the flag ``difficult`` where converters put it."""
    return _crowd(annotation) or any(place.get("difficult") in _TRUE for place in _places(annotation))


def _places(annotation: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects in which tools write what they say beside the format."""
    places = (annotation, annotation.get("attributes"), annotation.get("extra"))
    return [place for place in places if isinstance(place, dict)]


def _images(
    path: Path,
    content: dict[str, list[Any]],
    boxes: dict[Any, list[ListedBox]],
    lost: set[Any],
    problems: list[Problem],
) -> list[ListedImage]:
    entries: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for index, entry in enumerate(content["images"]):
        if isinstance(entry, dict) and isinstance(entry.get("file_name"), str) and "id" in entry:
            entries[_key(entry["id"])].append(entry)
        else:
            where = f"{path}: image {index + 1} in the list"
            problems.append(Problem("unreadable image", where, "it has no id or no file_name; it is left out"))
    images = []
    found = _located(path, {entry["file_name"] for same in entries.values() for entry in same})
    strays = boxes.keys() - entries.keys()  # boxes of any image, perhaps of one that seems to show nothing
    for key, same in entries.items():
        if len(same) > 1:
            problems += _duplicates(path, same)
        if len({entry["file_name"] for entry in same}) == 1:
            image = _image(path, same[0], boxes.get(key, []), found[same[0]["file_name"]], problems)
            empty = key not in boxes and key not in lost and not image.lost
            images.append(replace(image, lost=image.lost or key in lost, labelled=not empty or not strays))
            if empty:
                what = "it has no boxes and counts as showing no object"
                problems.append(Problem("image without annotation", f"{path}: {same[0]['file_name']}", what))
    for key in (key for key in boxes if key not in entries):
        for box in boxes[key]:
            what = f"image_id {key!r} is not among the images; the box is dropped"
            problems.append(Problem("annotation without image", box.where, what))
    return images


def _duplicates(path: Path, same: list[dict[str, Any]]) -> list[Problem]:
    """Entries with one id: of one file, the first is used; of several files none, as the boxes could be of any."""
    where, files = f"{path}: image id {same[0]['id']}", sorted({entry["file_name"] for entry in same})
    if len(files) == 1:
        return [Problem("duplicate id", where, f"{files[0]} is listed {len(same)} times; one entry is used")]
    what = f"it names {', '.join(files)}; all are left out, since whose boxes these are cannot be told"
    return [Problem("duplicate id", where, what)]


def _image(
    path: Path, entry: dict[str, Any], boxes: list[ListedBox], place: Path | str, problems: list[Problem]
) -> ListedImage:
    """One image; ``lost`` if its entry holds objects of its own, which are not read."""
    where = f"{path}: {entry['file_name']}"
    size = listed_size(entry.get("width"), entry.get("height"), where, problems)
    key = _key(entry["id"])
    own = key if type(key) is int else None
    complete = _said(entry)["complete"] in _TRUE if "complete" in _said(entry) else None
    inside = next((name for name in _OBJECTS if isinstance(entry.get(name), list) and entry[name]), None)
    if inside:
        what = f"the image's own list '{inside}' is not read; write its objects into the file's list 'annotations'"
        problems.append(Problem("box dropped", where, what))
    return ListedImage(place, boxes, own, size, complete=complete, lost=inside is not None)


def _located(path: Path, names: Iterable[str]) -> dict[str, Path | str]:
    """The image file of each name: a URL, or in the folder of the JSON, in ``images/``, or in one named like the split.

    A file whose name differs, in capitals say, belongs to a name only if no other name in the list fits it.
    """
    disk, folder = Disk(), path.parent
    folders = (folder, folder / "images", folder / path.stem, folder / "images" / path.stem)
    found: dict[str, Path | str] = {}
    alike: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        places = [place / slashes(name) for place in folders]
        there = name if is_url(name) else next(filter(os.path.isfile, places), None)
        if there is None and (near := next(filter(None, map(disk.find, places)), None)):
            alike[near].append(name)
        found[name] = there or places[0]
    taken = set(found.values())
    return found | {same[0]: place for place, same in alike.items() if len(same) == 1 and place not in taken}


def _key(value: Any) -> Any:
    """An id as something to look up by, whatever the file holds; ``"1"`` and ``1`` are one id."""
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 and str(int(value)) == value else value
    return value if isinstance(value, int | float) else repr(value)
