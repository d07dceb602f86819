"""Ultralytics YOLO: a ``data.yaml``, and beside every image in ``images/`` its lines in ``labels/``.

A line is ``class centre_x centre_y width height``, in shares of the image's sides; or a class and the corners of a
polygon, whose hull is the box.
"""

import os
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from rarebox.data import ListedBox, ListedImage, Listing, Problem, Reader
from rarebox.data.images import files_below, image_files
from rarebox.errors import UserError
from rarebox.parsing import from_yaml


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
    names = _names(file, content)
    listing = _listing(file, "train", content, names)
    split = next((key for key in ("test", "val") if content.get(key)), None)
    if split == "test" and content.get("val"):
        listing.problems.append(Problem("split not used", f"{file}: val", "'test' is the test split"))
    return listing, _listing(file, split, content, names) if split else None


def _looks_like_yolo(path: Path) -> bool:
    text = path.read_bytes()
    return b"names:" in text and b"train:" in text


def _parse(file: Path) -> Mapping[str, Any]:
    try:
        content = from_yaml(file.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, OSError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"{file}{line}: this is not valid YAML ({what}); repair the file") from None
    if not isinstance(content, dict) or not content.get("train"):
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
    if not numbered:
        raise UserError(f"{file}: 'names' is not a list of the classes' names, nor names by number; write it there")
    return dict(sorted(numbered.items()))


def _listing(file: Path, split: str, content: Mapping[str, Any], names: Mapping[int, str]) -> Listing:
    problems: list[Problem] = []
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    images: set[Path] = set()
    for entry in entries:
        path = _locate(file, content.get("path"), str(entry))
        if path is None:
            raise UserError(f"{file}: '{split}' names {entry}, which is neither there nor under 'path'; correct it")
        images.update(image_files(path) if path.is_dir() else _image_list(path))
        if path.is_dir():
            problems += _labels_alone(path)
    listed = [_image(path, names, problems) for path in sorted(images)]
    return Listing(file, list(names.values()), listed, problems)


def _locate(file: Path, base: Any, entry: str) -> Path | None:
    """An entry is relative to ``path``, which is relative to the file. Exports often say ../train for ./train."""
    folder = file.parent
    bases = [folder / str(base), folder] if base else [folder]
    tries = [place / name for name in (entry, entry.removeprefix("../")) for place in bases]
    return next((path for path in tries if os.path.exists(path)), None)


def _image_list(file: Path) -> Iterable[Path]:
    """The images that a text file names, relative to its folder."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [file.parent / line.strip() for line in lines if line.strip()]


def label_file(image: Path) -> Path:
    """Where the lines of an image are: the last folder ``images`` becomes ``labels``, the suffix ``.txt``."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _labels_alone(folder: Path) -> list[Problem]:
    """Label files below the labels folder of an images folder that no image claims."""
    labels = label_file(folder / "x").parent
    if labels == folder or not labels.is_dir():
        return []
    claimed = {label_file(image) for image in image_files(folder)}
    alone = [p for p in files_below(labels, {".txt"}) if p not in claimed and p.name != "classes.txt"]
    what = "there is no image of that name; the labels are not used"
    return [Problem("annotation without image", str(path), what) for path in alone]


def _image(path: Path, names: Mapping[int, str], problems: list[Problem]) -> ListedImage:
    file = label_file(path)
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):  # ValueError: a name that no file can have
        what = f"there is no {file}; the image counts as showing no object"
        problems.append(Problem("image without annotation", str(path), what))
        return ListedImage(path)
    boxes = [_box(line, f"{file}, line {n}", names, problems) for n, line in enumerate(lines, 1) if line.strip()]
    return ListedImage(path, [box for box in boxes if box is not None], relative=True)


def _box(line: str, where: str, names: Mapping[int, str], problems: list[Problem]) -> ListedBox | None:
    """One line, its box still in shares of the image's sides."""
    try:
        number, *values = (float(word) for word in line.split())
    except ValueError:
        problems.append(Problem("box dropped", where, f"{line.strip()[:60]!r} is not a row of numbers"))
        return None
    if number not in names:
        what = f"class {number:g} is not among the names in data.yaml; the box is dropped"
        problems.append(Problem("unknown category", where, what))
        return None
    name = names[int(number)]
    if len(values) == 4:
        x, y, width, height = values
        return ListedBox((x - width / 2, y - height / 2, x + width / 2, y + height / 2), name, False, where)
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return ListedBox((min(xs), min(ys), max(xs), max(ys)), name, False, where)
    problems.append(Problem("box dropped", where, f"{len(values)} numbers follow the class, not 4 or a polygon's"))
    return None
