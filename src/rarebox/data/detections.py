"""Files of detections from any detector: COCO results, or JSON lines with class vectors and augmented copies.

A JSON line is one picture: ``{"image": "a.jpg", "boxes": [[x1, y1, x2, y2], …], "scores": […], "labels": […],
"class_probs": [[…], …]}``. The first line may name the classes: ``{"classes": ["cat", "dog"]}``. Lines may be in any
order. Only the lines of one image are in memory at a time.
"""

import json
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, TypedDict, TypeGuard

import numpy as np
from numpy.typing import NDArray

from rarebox.core.files import open_regular
from rarebox.core.parsing import from_json, unrepeated
from rarebox.core.text import decode, encoding_of, lines_of, read_text
from rarebox.data.naming import is_writable
from rarebox.data.narrow import Object, as_float, as_list, is_list, is_object
from rarebox.errors import UserError
from rarebox.types import Floats

Image = str | int
"""How a file names an image: by a file name, or by a number."""

FARTHEST = 1e9
"""Coordinates in pixels must be smaller than this, so that the area of a box fits into ``float32``."""


@dataclass(frozen=True, eq=False)
class Line:
    """The N detections on one picture, as the file has them.

    ``boxes`` (N, 4) are x1, y1, x2, y2 in pixels of the picture, ``labels`` (N,) class names or indices, ``scores``
    (N,), ``class_probs`` (N, width) class vectors. The last three are None if the file lacks them. ``matrix`` (2, 3)
    maps the image into the picture. ``undone``: the boxes are in pixels of the image already. ``patches`` (P, 4) are
    the parts of the image that the picture hides.
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
    """Detections by image. The images are listed on opening; their boxes are read on request.

    ``classes`` are the names that the file declares. ``background`` is its place in the class vectors, "first" or
    "last", if the file says so. ``names`` are the class names that the labels use, ``numbers`` the class numbers.
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
    """COCO results or JSON lines, told apart by the first character. Raises `UserError`, naming the faulty line."""
    try:
        with open_regular(path) as file:
            start = file.read(4096)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}. Check the path.") from error
    encoding = encoding_of(start)
    first = start.decode(encoding, errors="ignore").lstrip()[:1]
    if first == "[":
        return CocoResults(path)
    if first == "{":
        if not encoding.startswith("utf-8"):
            raise UserError(f"{path}: JSON lines must be UTF-8, but this is {encoding.upper()}. Save it as UTF-8.")
        return JsonLines(path)
    raise UserError(
        f"{path} holds no detections. Write a list of COCO results, or one JSON object per line such as "
        '{"image": "a.jpg", "boxes": [[10, 20, 90, 80]], "scores": [0.9], "labels": ["cat"]}'
    )


class JsonLines:
    """Detections as JSON lines. Opening reads the file once to find the images; their lines are read on request."""

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
                    where = self._where(number)
                    self._note(number, place, _parse(text, where), where)
                place += len(text)

    def images(self) -> list[Image]:
        """Every image that has a line, in the order of the file."""
        return list(self._places)

    def read(self, image: Image) -> list[Line]:
        """The lines of one image."""
        lines: list[Line] = []
        with open_regular(self.path) as file:
            for number, place in self._places.get(image, ()):
                file.seek(place)
                where = self._where(number)
                lines.append(_line(_parse(file.readline(), where), where))
        return lines

    def _where(self, number: int) -> str:
        return f"{self.path}, line {number}"

    def _note(self, number: int, place: int, value: Object, where: str) -> None:
        if "classes" in value and "image" not in value:
            head = _header(value, where)
            if self.classes is not None and head != (self.classes, self.background):
                raise UserError(f"{where}: another line gives other classes. Use one file for each detector.")
            self.classes, self.background = head
            return
        self._places[_image(value, where)].append((number, place))
        for label in _labels(value, where) or ():
            if isinstance(label, str):
                self.names.add(label)
            else:
                self.numbers.add(label)


def _parse(text: bytes, where: str) -> Object:
    try:
        value: object = from_json(decode(text, where))
    except ValueError as error:
        raise UserError(f"{where}: not one JSON object ({error}). Write one line per image.") from None
    if not is_object(value):
        raise UserError(f"{where}: {text[:40].decode('utf-8', 'replace')} is not a JSON object. Write one per line.")
    return value


def _header(value: Object, where: str) -> tuple[tuple[str, ...], str | None]:
    """The classes and the place of the background in a first line."""
    listed, background = as_list(value["classes"]), value.get("background")
    names = tuple(name for name in listed if isinstance(name, str) and name)
    if not is_list(value["classes"]) or len({*names}) < len(listed):
        raise UserError(f'{where}: "classes" must be a list of different names. Correct it.')
    for name in names:
        _refuse_unwritable("class", name, where)
    if background is not None and background not in ("first", "last"):
        raise UserError(f'{where}: "background" must be "first" or "last", not {background!r:.40}.')
    return names, None if background is None else str(background)


def _image(value: Object, where: str) -> Image:
    image = value.get("image")
    if not isinstance(image, str) and not _is_number(image):
        raise UserError(f'{where}: "image" must be a file name or a number, not {image!r:.60}.')
    _refuse_unwritable("image", image, where)
    return image


def _labels(value: Object, where: str) -> list[str | int] | None:
    """The labels of a line, each a class name or number; None if it has none."""
    given = value.get("labels")
    if given is None:
        return None
    if not is_list(given):
        raise UserError(f'{where}: "labels" must be a list, not {given!r:.40}.')
    labels: list[str | int] = []
    for label in given:
        if not isinstance(label, str) and not _is_number(label):
            raise UserError(f"{where}: a label is a class name or a number from 0, not {label!r:.60}.")
        _refuse_unwritable("class", label, where)
        labels.append(label)
    return labels


def _refuse_unwritable(kind: str, name: Image, where: str) -> None:
    """Raise `UserError` for a name that the files written later cannot hold."""
    if isinstance(name, str) and not is_writable(name):
        raise UserError(
            f"{where}: the {kind} {name!r:.60} cannot be written to files, because it holds a control character or "
            "an unpaired surrogate. Rename it."
        )


def _is_number(value: object) -> TypeGuard[int]:
    """Whether a value can number an image or a class: a whole number from 0 that JSON readers represent exactly."""
    return type(value) is int and 0 <= value < 2**53


def _line(value: Object, where: str) -> Line:
    if value.get("boxes") is None:
        raise UserError(f'{where}: there are no "boxes". If the detector found nothing, write an empty list.')
    boxes = _array(value["boxes"], "boxes", where, 4)
    columns = {
        name: _array(value[name], name, where, width)
        for name, width in (("scores", 0), ("class_probs", None))
        if value.get(name) is not None
    }
    labels = _labels(value, where)
    for name, column in {**columns, **({} if labels is None else {"labels": labels})}.items():
        if len(column) != len(boxes):
            raise UserError(
                f'{where}: there are {len(boxes)} boxes but {len(column)} "{name}". Write one for each box.'
            )
    width, height = value.get("width"), value.get("height")
    size = (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None
    if size is None and (width, height) != (None, None):
        raise UserError(
            f"{where}: width and height must be whole numbers from 1, not {width!r:.40} and {height!r:.40}."
        )
    matrix = None if value.get("matrix") is None else _array(value["matrix"], "matrix", where, 3)
    if matrix is not None and not (matrix.shape == (2, 3) and _inverts(matrix)):
        raise UserError(f'{where}: "matrix" must be two rows of three numbers that can be inverted.')
    view, undone = value.get("view"), value.get("undone")
    if not isinstance(view, str | None):
        raise UserError(f'{where}: "view" must be the name of a view, not {view!r:.40}.')
    if not isinstance(undone, bool | None):
        raise UserError(f'{where}: "undone" must be true or false, not {undone!r:.40}.')
    return Line(
        where,
        _image(value, where),
        boxes,
        labels,
        columns.get("scores"),
        columns.get("class_probs"),
        size,
        view,
        bool(undone),
        matrix,
        _array(value.get("patches") or [], "patches", where, 4),
    )


def _inverts(matrix: NDArray[np.float64]) -> bool:
    """Whether a (2, 3) map has an inverse within floating-point precision."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(1e-9 < abs(np.linalg.det(matrix[:, :2])) < 1e9)


def _array(given: object, name: str, where: str, width: int | None) -> NDArray[np.float64]:
    """A list of numbers (``width`` 0), or of rows of ``width`` numbers (None: any one width), as an array."""
    try:
        if _has_other_values(given):
            raise TypeError
        found = np.asarray(given, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise UserError(f'{where}: "{name}" must hold numbers, in rows of equal length.') from None
    if found.size == 0:
        return np.zeros((0,) if width == 0 else (0, width or 0))
    if found.ndim != (1 if width == 0 else 2) or (width and found.shape[1] != width):
        wanted = "a list of numbers" if width == 0 else f"rows of {width or 'equally many'} numbers"
        raise UserError(f'{where}: "{name}" must be {wanted}, but its shape is {found.shape}.')
    if not (np.abs(found) < FARTHEST).all():
        raise UserError(f'{where}: "{name}" must hold finite numbers below {FARTHEST:g}.')
    return found


def _has_other_values(given: object) -> bool:
    """Whether a list, or a list of lists, holds truth values or text, which NumPy would convert to numbers."""
    return any(not {bool, str}.isdisjoint(map(type, row if is_list(row) else [row])) for row in as_list(given))


class CocoResults:
    """A list of ``{"image_id", "category_id", "bbox", "score"}``, held in memory as columns of 48 bytes a box.

    Labels are category ids, which the caller looks up.
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
        """The results of one image, as a single line."""
        if image not in self._rows:
            return []
        rows = self._rows[image]
        where = f"{self.path}, image {image!r}"
        return [Line(where, image, self._boxes[rows], self._categories[rows].tolist(), self._scores[rows], None)]


def concatenated(lines: Sequence[Line]) -> Line:
    """COCO results under several numbers of one image as one line."""
    scores = [line.scores for line in lines if line.scores is not None]
    return replace(
        lines[0],
        boxes=np.concatenate([line.boxes for line in lines]),
        labels=[label for line in lines for label in line.labels or ()],
        scores=np.concatenate(scores) if scores else None,
    )


def _result(entry: object, path: Path, number: int) -> tuple[Image, int, list[float]]:
    """The image, the category and x, y, width, height and score of a result."""
    where = f"{path}, result {number}"
    if not is_object(entry) or not {"image_id", "category_id", "bbox", "score"} <= entry.keys():
        raise UserError(f"{where}: a COCO result has image_id, category_id, bbox and score, not {entry!r:.60}.")
    image, category = entry["image_id"], entry["category_id"]
    if not (isinstance(image, str) or _is_number(image)) or not _is_number(category):
        raise UserError(f"{where}: image_id and category_id must be numbers, not {image!r:.60} and {category!r:.60}.")
    _refuse_unwritable("image", image, where)
    try:
        numbers = [as_float(value) for value in (*as_list(entry["bbox"]), entry["score"])]
        if len(numbers) != 5 or not (np.abs(numbers) < FARTHEST).all():
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{where}: bbox must be four numbers x, y, width, height, and score one number.") from None
    return image, category, numbers


CHUNK = 1 << 20
"""Characters of a JSON list that are read at a time."""


def _entries(path: Path) -> Iterator[object]:
    """The entries of a JSON list, parsed one by one, so that the whole text is never in memory.

    Not by ``ijson``: it is slower when it checks for duplicate keys, and deep nesting exhausts its memory.
    """
    try:
        yield from _parsed(path)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}). Save it as UTF-8.") from None
    except RecursionError:
        raise UserError(
            f"{path}: a result is nested too deeply. Write image_id, category_id, bbox and score only."
        ) from None


def _parsed(path: Path) -> Iterator[object]:
    decoder, text, place, number = json.JSONDecoder(object_pairs_hook=unrepeated), "", 0, 0
    with open_regular(path) as start:
        encoding = encoding_of(start.read(4))
    with path.open(encoding=encoding) as file:

        def more() -> bool:
            nonlocal text, place
            try:
                read = file.read(CHUNK)
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: not {encoding.upper()} text ({error.reason}). Save it as UTF-8.") from None
            text, place = text[place:] + read, 0
            return bool(read)

        def next_character() -> str:
            nonlocal place
            while True:
                while place < len(text) and text[place] in " \t\r\n":
                    place += 1
                if place < len(text) or not more():
                    return text[place : place + 1]

        next_character()
        place += 1  # the opening bracket
        while next_character() != "]":
            number += 1
            while True:
                try:
                    found = decoder.raw_decode(text, place)
                    entry: object = found[0]
                    end: int = found[1]
                    if end < len(text) or not more():
                        break
                except ValueError as error:
                    if not more():
                        raise UserError(
                            f"{path}, result {number}: not valid JSON ({error}). Repair it, or write the file again."
                        ) from None
            yield entry
            place = end
            if next_character() == ",":
                place += 1
            elif next_character() != "]":
                raise UserError(
                    f"{path}, after result {number}: a comma or bracket is missing. Repair it, or write the file again."
                )


class Copy(TypedDict):
    """An augmented copy: its file, the image and view it was made from, and its size in pixels.

    ``matrix`` (2, 3) maps the image into the copy. ``patches`` (P, 4) are the parts of the image that the copy hides.
    """

    file: str
    image: str
    view: str
    width: int
    height: int
    matrix: NDArray[np.float64]
    patches: NDArray[np.float64]


def read_map(path: Path) -> dict[str, Copy]:
    """The map that ``rarebox views`` wrote: file of a copy -> the copy. Raises `UserError`, which names the line."""
    try:
        lines = lines_of(read_text(path))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Check the path.") from error
    copies: dict[str, Copy] = {}
    for number, text in enumerate(lines, 1):
        try:
            copy = _copy(from_json(text))
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path}, line {number}: this is not a map that `rarebox views` wrote ({error!r}). Write it again."
            ) from None
        copies[copy["file"]] = copy
    return copies


def _copy(entry: object) -> Copy:
    if not is_object(entry):
        raise TypeError("a copy is a JSON object")
    file, image, view = entry["file"], entry["image"], entry["view"]
    if not isinstance(file, str) or not isinstance(image, str) or not isinstance(view, str):
        raise TypeError("file, image and view are names")
    matrix = np.array(entry["matrix"], dtype=np.float64).reshape(2, 3)
    patches = np.array(entry["patches"], dtype=np.float64).reshape(-1, 4)
    size = np.array([entry["width"], entry["height"]], dtype=np.int64)
    if not all((np.abs(array) < FARTHEST).all() for array in (matrix, patches, size)) or not _inverts(matrix):
        raise ValueError("matrix and patches are finite numbers, and the matrix can be inverted")
    width, height = size.tolist()
    return Copy(file=file, image=image, view=view, width=width, height=height, matrix=matrix, patches=patches)
