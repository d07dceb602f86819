"""Detections of any detector, as files: COCO results, or JSON lines with class vectors and augmented copies.

A JSON line is one picture: ``{"image": "a.jpg", "boxes": [[x1, y1, x2, y2], …], "scores": […], "labels": […],
"class_probs": [[…], …]}``. The first line may name the classes: ``{"classes": ["cat", "dog"]}``. Lines are found by
image, in any order, and held in memory one image at a time.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rarebox.core.files import open_regular
from rarebox.core.parsing import from_json, unrepeated
from rarebox.core.text import decode, encoding_of, read_text
from rarebox.data.naming import is_writable
from rarebox.errors import UserError
from rarebox.types import Floats

Image = str | int
"""How a file names an image: by a file name, or by a number."""


FARTHEST = 1e9
"""No number of a place is as large, in pixels; the area of a box is then a ``float32``."""


@dataclass(frozen=True, eq=False)
class Line:
    """What a detector said of one picture: N boxes, as they are written.

    ``boxes`` (N, 4) are x1, y1, x2, y2 in pixels of the picture, ``labels`` class names or indices, ``class_probs``
    (N, width) class vectors; each of the last three is None where the file does not say. ``matrix`` (2, 3) maps the
    image into the picture, ``undone`` says that the boxes are in the image already; ``patches`` (P, 4) are the places
    of the image that the picture hides.
    """

    where: str
    image: Image
    boxes: Floats
    labels: Sequence[str | int] | None
    scores: Floats | None
    class_probs: Floats | None
    size: tuple[int, int] | None = None
    view: str | None = None
    undone: bool = False
    matrix: NDArray[np.float64] | None = None
    patches: Floats = field(default_factory=lambda: np.zeros((0, 4), np.float32))


class DetectionFile(Protocol):
    """Detections by image. ``images`` and their views are known at once, the boxes are read on request.

    ``classes`` are the names that the file declares, ``background`` where it says that class vectors have it: first,
    last, or nothing said. ``names`` are the class names that its labels use, ``numbers`` the class numbers.
    """

    path: Path
    classes: tuple[str, ...] | None
    background: str | None
    names: set[str]
    numbers: set[int]

    def images(self) -> list[Image]:
        """Every image that has a line, in the order of the file."""
        ...

    def read(self, image: Image) -> list[Line]:
        """The lines of one image."""
        ...


def open_detections(path: Path) -> DetectionFile:
    """COCO results or JSON lines, told apart by the first sign; UserError names the line that cannot be used."""
    try:
        with open_regular(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    encoding = encoding_of(start)
    first = start.decode(encoding, errors="ignore").lstrip()[:1]
    if first == "[":
        return CocoResults(path)
    if first == "{":
        if not encoding.startswith("utf-8"):
            raise UserError(f"{path}: JSON lines are UTF-8, and this is {encoding.upper()}; save it as UTF-8")
        return JsonLines(path)
    raise UserError(
        f"{path} holds no detections; wanted is a list of COCO results, or one JSON object a line such as "
        '{"image": "a.jpg", "boxes": [[10, 20, 90, 80]], "scores": [0.9], "labels": ["cat"]}'
    )


class JsonLines:
    """Detections as JSON lines. The file is gone through once for its images; their lines are read when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: tuple[str, ...] | None = None
        self.background: str | None = None
        self.names, self.numbers = set[str](), set[int]()
        self._places: dict[Image, list[tuple[int, int]]] = defaultdict(list)
        place = 0
        with open_regular(path) as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    self._note(number, place, self._parse(number, text))
                place += len(text)

    def _note(self, number: int, place: int, value: dict[str, Any]) -> None:
        if "classes" in value and "image" not in value:
            self.classes, self.background = _header(value, self.path, number)
            return
        image: Any = value.get("image")
        if not isinstance(image, str) and not _is_number(image):
            raise UserError(f'{self.path}, line {number}: "image" must be a file name or a number, got {image!r:.60}')
        self._places[image].append((number, place))
        _refuse_unwritable("image", image, f"{self.path}, line {number}")
        for label in _list(value, "labels", self.path, number) or ():
            if isinstance(label, str):
                _refuse_unwritable("class", label, f"{self.path}, line {number}")
                self.names.add(label)
            elif _is_number(label):
                self.numbers.add(label)
            else:
                raise UserError(
                    f"{self.path}, line {number}: a label is a class name or a number from 0, got {label!r:.60}"
                )

    def images(self) -> list[Image]:
        """Every image that has a line, in the order of the file."""
        return list(self._places)

    def read(self, image: Image) -> list[Line]:
        """The lines of one image."""
        lines = []
        with open_regular(self.path) as file:
            for number, place in self._places.get(image, ()):
                file.seek(place)
                lines.append(_line(self._parse(number, file.readline()), self.path, number))
        return lines

    def _parse(self, number: int, text: bytes) -> dict[str, Any]:
        try:
            value = from_json(decode(text, f"{self.path}, line {number}"))
        except ValueError as error:
            raise UserError(
                f"{self.path}, line {number}: this is not one JSON object ({error}); write each picture on a line of "
                "its own"
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{self.path}, line {number}: wanted is a JSON object, got {text[:40].decode('utf-8', 'replace')}"
            )
        return value


def _header(value: dict[str, Any], path: Path, number: int) -> tuple[tuple[str, ...], str | None]:
    names, background = value["classes"], value.get("background")
    if not isinstance(names, list) or not all(isinstance(n, str) and n for n in names) or len(set(names)) < len(names):
        raise UserError(f'{path}, line {number}: "classes" must be a list of different names')
    for name in names:
        _refuse_unwritable("class", name, f"{path}, line {number}")
    if background not in (None, "first", "last"):
        raise UserError(f'{path}, line {number}: "background" must be "first" or "last", got {background!r}')
    return tuple(names), background


def _refuse_unwritable(kind: str, name: Image, where: str) -> None:
    """UserError for a name that the lists and files which come of it could not hold."""
    if isinstance(name, str) and not is_writable(name):
        raise UserError(
            f"{where}: the {kind} {name!r:.60} cannot be written to files, for it holds a control character or half a "
            "character; name it otherwise"
        )


def _is_number(value: Any) -> bool:
    """Whether a value numbers an image or a class: a whole number from 0 that every JSON reader holds exactly."""
    return type(value) is int and 0 <= value < 2**53


def _list(value: dict[str, Any], name: str, path: Path, number: int) -> list[Any] | None:
    found = value.get(name)
    if found is not None and not isinstance(found, list):
        raise UserError(f'{path}, line {number}: "{name}" must be a list, got {found!r:.40}')
    return found


def _line(value: dict[str, Any], path: Path, number: int) -> Line:
    where = f"{path}, line {number}"
    if value.get("boxes") is None:
        raise UserError(f'{where}: there are no "boxes"; where the detector found nothing, write an empty list')
    boxes = _array(value, "boxes", where, 4)
    columns = {name: _array(value, name, where, width) for name, width in (("scores", 0), ("class_probs", None))}
    labels = _list(value, "labels", path, number)
    for name, column in (("labels", labels), *columns.items()):
        if column is not None and len(column) != len(boxes):
            raise UserError(f'{where}: there are {len(boxes)} boxes but {len(column)} "{name}"')
    size = (value.get("width"), value.get("height"))
    known = all(isinstance(side, int) and side > 0 for side in size)
    if not known and size != (None, None):
        raise UserError(f"{where}: width and height must be whole numbers from 1, got {size[0]!r} and {size[1]!r}")
    matrix = None if value.get("matrix") is None else _array(value, "matrix", where, 3)
    if matrix is not None and not (matrix.shape == (2, 3) and _inverts(matrix)):
        raise UserError(f'{where}: "matrix" must be two rows of three numbers that can be inverted')
    view = value.get("view")
    return Line(
        where,
        value["image"],
        boxes,
        labels,
        columns["scores"],
        columns["class_probs"],
        size if known else None,  # type: ignore[arg-type]
        None if view is None else str(view),
        bool(value.get("undone")),
        matrix,
        _array({"patches": value.get("patches") or []}, "patches", where, 4),
    )


def _inverts(matrix: NDArray[np.float64]) -> bool:
    """Whether a (2, 3) map has an inverse, to the numbers that there are."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(1e-9 < abs(np.linalg.det(matrix[:, :2])) < 1e9)


def _array(value: dict[str, Any], name: str, where: str, width: int | None) -> Any:
    """A list of numbers (``width`` 0), or of rows of them (None: of any one width), as an array; None if absent."""
    given = value.get(name)
    if given is None:
        return None
    try:
        found = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f'{where}: "{name}" must hold numbers, in rows of one length') from None
    if found.size == 0:
        return np.zeros((0,) if width == 0 else (0, width or 0))
    if found.ndim != (1 if width == 0 else 2) or (width and found.shape[1] != width):
        wanted = "a list of numbers" if width == 0 else f"rows of {width or 'equally many'} numbers"
        raise UserError(f'{where}: "{name}" must be {wanted}, got shape {found.shape}')
    if not (np.abs(found) < FARTHEST).all():
        raise UserError(f'{where}: "{name}" must hold finite numbers, none as large as {FARTHEST:g}')
    return found


class CocoResults:
    """A list of ``{"image_id", "category_id", "bbox", "score"}``; held as columns, 48 bytes a box.

    Labels are category ids here, for the reader to look up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.classes: tuple[str, ...] | None = None
        self.background: str | None = None
        self.names = set[str]()
        codes: dict[Image, int] = {}
        code, category, numbers = array("q"), array("q"), array("d")
        for place, entry in enumerate(_entries(path), 1):
            image, label, values = _result(entry, path, place)
            code.append(codes.setdefault(image, len(codes)))
            category.append(label)
            numbers.extend(values)
        self._categories = np.array(category, dtype=np.int64)
        columns = np.array(numbers, dtype=np.float64).reshape(-1, 5)
        self._boxes = np.concatenate([columns[:, :2], columns[:, :2] + columns[:, 2:4]], axis=1)
        self._scores = columns[:, 4]
        order = np.argsort(np.array(code, dtype=np.int64), kind="stable")
        ends = np.cumsum(np.bincount(np.array(code, dtype=np.int64), minlength=len(codes)))
        self._rows = dict(zip(codes, np.split(order, ends[:-1]), strict=True)) if codes else {}
        self.numbers = set(np.unique(self._categories).tolist())

    def images(self) -> list[Image]:
        """Every image that has a result, in the order of the file."""
        return list(self._rows)

    def read(self, image: Image) -> list[Line]:
        """What is said of one image, as a single line."""
        if image not in self._rows:
            return []
        rows = self._rows[image]
        where = f"{self.path}, image {image!r}"
        return [Line(where, image, self._boxes[rows], self._categories[rows].tolist(), self._scores[rows], None)]


def _result(entry: Any, path: Path, number: int) -> tuple[Image, int, list[float]]:
    where = f"{path}, result {number}"
    if not isinstance(entry, dict) or not {"image_id", "category_id", "bbox", "score"} <= entry.keys():
        raise UserError(f"{where}: a COCO result has image_id, category_id, bbox and score, got {entry!r:.60}")
    image, category, bbox, score = (entry[name] for name in ("image_id", "category_id", "bbox", "score"))
    if not (isinstance(image, str) or _is_number(image)) or not _is_number(category):
        raise UserError(f"{where}: image_id and category_id must be numbers, got {image!r:.60} and {category!r:.60}")
    _refuse_unwritable("image", image, where)
    try:
        numbers = [float(value) for value in (*bbox, score)]
        if len(numbers) != 5 or not (np.abs(numbers) < FARTHEST).all():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: bbox must be four numbers x, y, width, height and score one") from None
    return image, category, numbers


CHUNK = 1 << 20


def _entries(path: Path) -> Iterator[Any]:
    """The entries of a JSON list, parsed one by one: the text of a million results is never in memory as a whole."""
    try:
        yield from _parsed(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason}); write it again as UTF-8") from None
    except RecursionError:
        raise UserError(f"{path}: a result is nested too deeply; a result has four entries") from None


def _parsed(path: Path) -> Iterator[Any]:
    decoder, text, place, number = json.JSONDecoder(object_pairs_hook=unrepeated), "", 0, 0
    with open_regular(path) as start:
        encoding = encoding_of(start.read(4))
    with path.open(encoding=encoding) as file:

        def more() -> bool:
            nonlocal text, place
            try:
                read = file.read(CHUNK)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}: this is not {encoding.upper()} text ({error.reason}); save it as UTF-8"
                ) from None
            text, place = text[place:] + read, 0
            return bool(read)

        def next_sign() -> str:
            nonlocal place
            while True:
                while place < len(text) and text[place] in " \t\r\n":
                    place += 1
                if place < len(text) or not more():
                    return text[place : place + 1]

        next_sign()
        place += 1  # the opening bracket
        while next_sign() != "]":
            number += 1
            while True:
                try:
                    entry, end = decoder.raw_decode(text, place)
                    if end < len(text) or not more():
                        break
                except ValueError as error:
                    if not more():
                        raise UserError(f"{path}, result {number}: this is not valid JSON ({error})") from None
            yield entry
            place = end
            if next_sign() == ",":
                place += 1
            elif next_sign() != "]":
                raise UserError(f"{path}, behind result {number}: the list does not go on and does not end")


def read_map(path: Path) -> dict[str, dict[str, Any]]:
    """What ``rarebox views`` wrote: the file of each copy -> its entry (image, view, matrix, patches, …)."""
    copies = {}
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    for number, text in enumerate(lines, 1):
        try:
            entry = from_json(text)
            if not isinstance(entry, dict) or {type(entry[name]) for name in ("file", "image", "view")} != {str}:
                raise TypeError("file, image and view are names")
            numbers = {
                "matrix": np.array(entry["matrix"], dtype=np.float64).reshape(2, 3),
                "patches": np.array(entry["patches"], dtype=np.float64).reshape(-1, 4),
                "size": np.array([entry["width"], entry["height"]], dtype=np.int64),
            }
            near = all((np.abs(array) < FARTHEST).all() for array in numbers.values())
            if not near or not _inverts(numbers["matrix"]):
                raise ValueError("matrix and patches are finite numbers, and the matrix can be inverted")
            width, height = numbers.pop("size").tolist()
            copies[entry["file"]] = {**entry, **numbers, "width": width, "height": height}
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number}: this is not a map that `rarebox views` wrote ({error!r}); write it anew"
            ) from None
    return copies
