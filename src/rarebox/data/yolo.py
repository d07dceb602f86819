"""Ultralytics YOLO: a ``data.yaml``, and beside every image in ``images/`` its lines in ``labels/``.

A line is ``class centre_x centre_y width height``, in shares of the image's sides; or a class and the corners of a
polygon, whose hull is the box. Where data.yaml has ``kpt_shape``, key points follow the box.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rarebox.data import ListedBox, ListedImage, Listing, Problem, Reader, export_mark, exported_complete
from rarebox.data.disk import Disk, slashes
from rarebox.data.images import files_below, image_files
from rarebox.errors import UserError
from rarebox.files import read_bytes
from rarebox.parsing import PlainLoader, from_yaml
from rarebox.text import read_text

_SHARES = (-0.5, 1.5)
"""Between these lies every share of an image's side, also of a box that reaches out of it; pixels do not."""

_NOTHING = ("", "~", "null", "Null", "NULL")
"""How YAML writes that there is nothing."""


def find(path: Path) -> Reader | None:
    """Recognises a YAML file, a folder with data.yaml, and one whose only YAML file says ``names`` and ``train``."""
    if path.is_file():
        return partial(read, path) if path.suffix.lower() in (".yaml", ".yml") else None
    for name in ("data.yaml", "data.yml"):
        if (path / name).is_file():
            return partial(read, path / name)
    others = [p for p in sorted(path.glob("*.y*ml")) if _looks_like_yolo(p)]
    return partial(read, others[0]) if len(others) == 1 else None


def read(file: Path) -> tuple[Listing, Listing | None]:
    """The images that ``train`` lists, and as test those of ``test``, or else of ``val``. Raises `UserError`."""
    content = _parse(file)
    form = _Form(_names(file, content), _key_points(file, content), exported_complete(export_mark(file.parent)), Disk())
    listing = _listing(file, "train", content, form)
    split = next((key for key in ("test", "val") if content.get(key)), None)
    if split == "test" and content.get("val"):
        listing.problems.append(Problem("split not used", f"{file}: val", "'test' is the test split"))
    return listing, _listing(file, split, content, form) if split else None


class _Form(NamedTuple):
    """How the label files of a data set are to be read: class number -> name, how many numbers of key points follow a
    box, which images an export of rarebox calls complete, and the files that are there."""

    names: Mapping[int, str]
    key_points: int
    complete: Mapping[str, bool]
    disk: Disk


def _looks_like_yolo(path: Path) -> bool:
    text = read_bytes(path).replace(b"\0", b"")  # UTF-16 has zeros between
    return b"names:" in text and b"train:" in text


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        content = from_yaml(read_text(file), PlainLoader)  # every value is the text that is written there
    except (yaml.YAMLError, OSError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"{file}{line}: this is not valid YAML ({what}); repair the file") from None
    content = {k: v for k, v in content.items() if v not in _NOTHING} if isinstance(content, dict) else {}
    if not content.get("train"):
        raise UserError(f"{file}: there is no entry 'train'; name the folder or list of the training images there")
    return content


def _names(file: Path, content: Mapping[str, Any]) -> dict[int, str]:
    """Class number -> name, by rising number."""
    names = content.get("names")
    pairs = names.items() if isinstance(names, dict) else enumerate(names if isinstance(names, list) else [])
    try:
        numbered = {int(number): str(name).strip() for number, name in pairs}
    except (TypeError, ValueError):
        numbered = {}
    if not numbered or not all(numbered.values()):
        raise UserError(f"{file}: 'names' is not a list of the classes' names, nor names by number; write it there")
    return dict(sorted(numbered.items()))


def _key_points(file: Path, content: Mapping[str, Any]) -> int:
    """How many numbers of key points follow each box: ``kpt_shape`` is their count, and 2 or 3 numbers for each."""
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    try:
        count, numbers = (int(value) for value in shape)
    except (TypeError, ValueError):
        count = numbers = 0
    if count < 1 or numbers not in (2, 3):
        raise UserError(f"{file}: 'kpt_shape' is {shape!r}; write the number of key points and 2 or 3, such as [17, 3]")
    return count * numbers


def _listing(file: Path, split: str, content: Mapping[str, Any], form: _Form) -> Listing:
    problems: list[Problem] = []
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    images: set[Path] = set()
    for entry in entries:
        path = _locate(file, content.get("path"), str(entry), form.disk)
        if path is None:
            raise UserError(f"{file}: '{split}' names {entry}, which is neither there nor under 'path'; correct it")
        images.update(image_files(path) if path.is_dir() else _image_list(path, form.disk))
        if path.is_dir():
            problems += _labels_alone(path, form.disk)
    listed = [_image(path, form, problems) for path in sorted(images)]
    return Listing(file, list(dict.fromkeys(form.names.values())), listed, problems)


def _locate(file: Path, base: Any, entry: str, disk: Disk) -> Path | None:
    """An entry is relative to ``path``, which is relative to the file. Exports often say ../train for ./train."""
    folder, entry = file.parent, slashes(entry)
    bases = [folder / slashes(str(base)), folder] if base else [folder]
    tries = [place / name for name in (entry, entry.removeprefix("../")) for place in bases]
    exact = next((path for path in tries if os.path.exists(path)), None)
    return exact or next(filter(None, map(disk.find, tries)), None)


def _image_list(file: Path, disk: Disk) -> Iterable[Path]:
    """The images that a text file names, relative to its folder."""
    paths = [file.parent / slashes(line.strip()) for line in read_text(file).splitlines() if line.strip()]
    return [disk.find(path) or path for path in paths]


def label_file(image: Path) -> Path:
    """Where the lines of an image are: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parts)
    folders = [part.lower() for part in parts[:-1]]
    if "images" in folders:
        parts[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _label_file(image: Path, disk: Disk) -> Path | None:
    """The file that has the lines of an image, whatever its capitals; beside the image, if there is none elsewhere."""
    return disk.find(label_file(image)) or disk.find(image.with_suffix(".txt"))


def _labels_alone(folder: Path, disk: Disk) -> list[Problem]:
    """Label files below the labels folder of an images folder that no image claims."""
    labels = disk.find(label_file(folder / "x").parent)
    if labels is None or labels == folder or not labels.is_dir():
        return []
    claimed = {_label_file(image, disk) for image in image_files(folder)}
    alone = [p for p in files_below(labels, {".txt"}) if p not in claimed and p.name != "classes.txt"]
    what = "there is no image of that name; the labels are not used"
    return [Problem("annotation without image", str(path), what) for path in alone]


def _image(path: Path, form: _Form, problems: list[Problem]) -> ListedImage:
    file = _label_file(path, form.disk)
    if file is None:
        what = f"there is no {label_file(path)}; the image counts as showing no object"
        problems.append(Problem("image without annotation", str(path), what))
        return ListedImage(path, labelled=False)
    complete = form.complete.get(path.name)
    try:
        lines = [(n, line) for n, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    except (OSError, UserError) as error:
        problems.append(Problem("unreadable annotation", str(file), f"{error}; none of its objects is used"))
        return ListedImage(path, relative=True, complete=complete, lost=True, labelled=False)
    read = [_box(line, f"{file}, line {n}", form, problems) for n, line in lines]
    boxes = [box for box in read if box is not None]
    return ListedImage(path, boxes, relative=True, complete=complete, lost=len(boxes) < len(lines))


def _box(line: str, where: str, form: _Form, problems: list[Problem]) -> ListedBox | None:
    """One line, its box still in shares of the image's sides."""
    words = line.split()
    try:
        number, *values = (float(word) for word in words)
    except ValueError:
        comma = "; write points, not commas, and blanks between the numbers" if "," in line else ""
        what = f"{line.strip()[:60]!r} is not a row of numbers{comma}"
        problems.append(Problem("box dropped", where, what))
        return None
    if number not in form.names:
        what = f"class {number:g} is not among the names in data.yaml; the box is dropped"
        problems.append(Problem("unknown category", where, what))
        return None
    if form.key_points and len(values) == 4 + form.key_points:
        values = values[:4]
    fault = _fault(values, words, form)
    if fault:
        problems.append(Problem("box dropped", where, fault))
        return None
    if len(values) == 4:
        x, y, width, height = values
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    else:
        xs, ys = values[::2], values[1::2]
        corners = (min(xs), min(ys), max(xs), max(ys))
    return ListedBox(corners, form.names[int(number)], False, where)


def _fault(values: Sequence[float], words: Sequence[str], form: _Form) -> str:
    """Why the numbers behind a class are neither a box nor the corners of a polygon; empty if they are."""
    count = len(values)
    if form.key_points and count != 4:
        return (
            f"{count} numbers follow the class; 'kpt_shape' in data.yaml asks for 4 and {form.key_points} of key points"
        )
    tracked = count == 6 and words[-1].isdecimal() and max(values[:5]) <= _SHARES[1]
    if count == 5 or tracked:
        return f"{count} numbers follow the class, as a detector writes them that adds its score; a label has 4"
    if count != 4 and (count < 6 or count % 2):
        return f"{count} numbers follow the class, not 4 or a polygon's"
    if max(values) > _SHARES[1] or min(values) < _SHARES[0]:
        return f"it reaches from {min(values):g} to {max(values):g}; write shares of the image's sides, not pixels"
    return ""
