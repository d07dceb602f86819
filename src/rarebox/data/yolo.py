"""Ultralytics YOLO: a ``data.yaml``, images in ``images/``, and a label file for each image in ``labels/``.

A line is ``class centre_x centre_y width height``, in fractions of the image's sides, or a class and the corners of a
polygon, whose hull is the box. If data.yaml has ``kpt_shape``, key points follow the box.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import yaml

from rarebox.core.parsing import PlainLoader, finite, from_yaml
from rarebox.core.text import lines_of, read_text
from rarebox.data.disk import Disk, place_key, searchable, slashes
from rarebox.data.exported import Exports
from rarebox.data.images import SUFFIXES, files_below, image_files
from rarebox.data.listings import (
    NO_LABEL_FILE,
    ListedBox,
    ListedImage,
    Listing,
    Problem,
    Reader,
    agreed,
    written_by_rarebox,
)
from rarebox.data.narrow import Object, as_list, as_object, is_list, is_object
from rarebox.errors import UserError

_SHARES = (-0.5, 1.5)
"""The range of fractions of an image's side, including boxes that extend beyond it. Pixels are outside this range."""

_CLASSES = "classes.txt"
"""The file that lists the classes of the label files beside and below it, where there is no data.yaml."""

_NOTHING = ("", "~", "null", "Null", "NULL")
"""The ways to write an empty value in YAML."""


def find(path: Path) -> Reader | None:
    """Recognise a YAML file, a folder with data.yaml, and a folder whose only YAML file has ``names`` and ``train``."""
    if os.path.isfile(path):
        return partial(read, path) if path.suffix.lower() in (".yaml", ".yml") else None
    for name in ("data.yaml", "data.yml"):
        if os.path.isfile(path / name):
            return partial(read, path / name)
    others = files_of(path)
    return partial(read, others[0]) if len(others) == 1 else None


def files_of(folder: Path) -> list[Path]:
    """The files directly in a folder that look like a data.yaml, sorted."""
    files = (file for file in sorted(folder.glob("*")) if file.suffix.lower() in (".yaml", ".yml"))
    return [file for file in files if _looks_like_yolo(file)]


def unread(folder: Path, read: Collection[str]) -> Iterator[Path]:
    """Label files of photos below a folder, and YAML files in it, that were not read. ``read`` holds real paths."""
    photos = _photos(folder)
    places = dict.fromkeys(place for image in photos for place in _label_places(image) if os.path.isfile(place))
    stems = {place_key(photo.stem) for photo in photos}
    alike = (file for file in files_below(folder, {".txt"}) if place_key(file.stem) in stems)
    found = (file for file in dict.fromkeys([*places, *alike]) if os.path.realpath(file) not in read)
    yield from filter(_has_rows, found)
    yield from (file for file in files_of(folder) if os.path.realpath(file) not in read)


def _has_rows(label: Path) -> bool:
    """Whether the first line of a text file is a class number and the numbers of a box or polygon."""
    first = next(iter(searchable(label).split(b"\n")), b"").split()
    with suppress(ValueError):
        return len([float(word) for word in first]) >= 5
    return False


def find_flat(path: Path) -> Reader | None:
    """Recognise a folder with a label file for some image and its classes.txt, as labelImg writes them."""
    disk = Disk()
    labels = (place for image in _photos(path) for place in _label_places(image) if os.path.exists(place))
    return partial(read_flat, path) if any(_classes_file(label, path, disk) for label in labels) else None


def _photos(folder: Path) -> list[Path]:
    return [image for image in image_files(folder) if image.suffix]  # no folders


def read_flat(folder: Path) -> tuple[Listing, None]:
    """All images below a folder, with label files beside them or in ``labels/``.

    The classes of a label file are in the nearest ``classes.txt``, in its folder or above. Equal names in several of
    these are one class. Raises `UserError` if a classes.txt cannot be read or lists no class, and for rows that may
    have key points.
    """
    disk, images = Disk(), _photos(folder)
    pairs = _Pairs(images, disk)
    nearest = {label: file for label in pairs.claimed if (file := _classes_file(label, folder, disk))}
    files = sorted(set(nearest.values()), key=lambda file: (len(file.parts), file))
    listed = {file: _Names(file, _listed_classes(file)) for file in files}
    if any(_likely_key_points(pairs.owned.values())):
        raise UserError(f"{folder}: the label rows may have key points. Add a data.yaml with their kpt_shape.")
    names = {label: listed[file] for label, file in nearest.items()}
    numbered = [pair for file in files for pair in listed[file].by_number.items()]
    classes, numbers = [name for _, name in numbered], agreed(numbered)
    form = _Form(names, classes, numbers, 0, pairs, Exports(folder))
    listing = _listing(files[0] if len(files) == 1 else folder, [], images, form)
    listing.problems[:0] = [*written_by_rarebox(folder), *_alone(folder, pairs)]
    listing.files.update(pairs.claimed)
    return listing, None


def _classes_file(label: Path, top: Path, disk: Disk) -> Path | None:
    """The nearest classes.txt in the folder of a label file or above, up to ``top``; None if there is none.

    A label file outside ``top`` is in the folder ``labels`` beside it, and the search ends there and in ``top``.
    """
    folders: list[Path] = []
    for folder in label.parents:
        folders.append(folder)
        if folder in (top, label_file(top / "x").parent):
            break
    return next(filter(None, (disk.find(folder / _CLASSES) for folder in [*folders, top])), None)


def _listed_classes(file: Path) -> dict[int, str]:
    """Class number -> name, from a classes.txt. Raises `UserError`."""
    try:
        names = [line.strip() for line in lines_of(read_text(file))]
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}. Check its permissions.") from None
    while names and not names[-1]:
        names.pop()
    if not names or not all(names):
        raise UserError(f"{file}: write the name of a class on each line, without empty lines.")
    return dict(enumerate(names))


def read(file: Path) -> tuple[Listing, Listing | None]:
    """The images of ``train``, and those of ``test`` or else ``val`` as the test split. Raises `UserError`."""
    content, disk = _parse(file), Disk()
    names, key_points = _names(file, content), _key_points(file, content)
    test = next((key for key in ("test", "val") if content.get(key)), None)
    folders = {key: _entries(file, key, content, disk) for key in ("train", test) if key}
    if test:
        _refuse_above(file, test, folders[test], [path for _, path in folders["train"]])
    images = {key: _images(file, key, entries, disk) for key, entries in folders.items()}
    pairs = _Pairs([image for listed in images.values() for image in listed], disk)
    problems: list[Problem] = []
    if key_points is None:
        key_points, unsure = _likely_key_points(pairs.owned.values())
        if key_points:
            problems.append(Problem("key points assumed", str(file), _ASSUMED.format(key_points)))
        elif unsure:
            problems.append(Problem("polygons assumed", str(file), _POLYGONS))
    numbered = dict.fromkeys(pairs.claimed, _Names(file, names))
    problems += _contradicting(names, file, pairs)
    form = _Form(numbered, [*names.values()], names, key_points, pairs, Exports(file.parent))
    unused: list[Path] = []
    if test == "test" and content.get("val"):
        problems.append(Problem("split not used", f"{file}: val", _UNUSED))
        with suppress(UserError):
            unused = _images(file, "val", _entries(file, "val", content, disk), disk)
    listings = {key: _listing(file, folders[key], listed, form) for key, listed in images.items()}
    listings["train"].problems[:0] = problems
    listings["train"].files.update((file,), pairs.claimed, _Pairs(unused, disk).claimed)
    return listings["train"], listings[test] if test else None


_UNUSED = "'test' is the test split, so the images of 'val' are not read. To use their labels, add them to 'train'."

_ASSUMED = (
    "the label rows look like boxes with {} numbers of key points, and are read as such. Add their kpt_shape, or "
    "'kpt_shape: [0, 2]' if they are polygons."
)


_POLYGONS = (
    "the label rows may be polygons or boxes with key points. They are read as polygons. Add 'kpt_shape: [0, 2]' if "
    "this is right, otherwise their kpt_shape."
)


def _contradicting(names: Mapping[int, str], file: Path, pairs: "_Pairs") -> list[Problem]:
    """A problem for each classes.txt beside or above the label files that names a class number differently."""
    lists = {_classes_file(folder / "x", file.parent, pairs.disk) for folder in {p.parent for p in pairs.claimed}}
    problems: list[Problem] = []
    for listed in sorted(filter(None, lists)):
        with suppress(UserError):  # data.yaml names the classes, so the list is not needed
            for number, name in _listed_classes(listed).items():
                if names.get(number, name) != name:
                    what = f"class {number} is {name!r} here and {names[number]!r} in {file.name}, which is used."
                    problems.append(Problem("contradicting classes", str(listed), f"{what} Remove the wrong one."))
                    break
    return problems


class _Pairs:
    """Which label file belongs to which photo: ``owned`` is photo -> label file.

    A label file belongs to the photo of the same name, or else to the only photo whose name differs in case. If several
    photos fit equally well, it belongs to none: ``rivals`` is label file -> those photos. Photos in the same folders
    that are not listed count too. ``claimed`` has all label files that fit some photo.
    """

    def __init__(self, images: Iterable[Path], disk: Disk) -> None:
        self.disk = disk
        self.owned: dict[Path, Path] = {}
        self.rivals: dict[Path, list[Path]] = {}
        self.claimed: dict[Path, dict[Path, bool]] = {}  # label file -> photo -> whether the names are identical
        listed = dict.fromkeys(images)
        beside = (photo for image in listed for photo in disk.namesakes(image) if photo.suffix.lower() in SUFFIXES)
        for photo in dict.fromkeys([*listed, *beside]):
            places = _label_places(photo)
            exact = next((place for place in places if os.path.exists(place)), None)
            if file := exact or next(filter(None, map(disk.find, places)), None):
                self.claimed.setdefault(file, {})[photo] = exact is not None
        for file, photos in self.claimed.items():
            there = [photo for photo in photos if os.path.exists(photo)] or list(photos)
            best = [photo for photo in there if photos[photo]] or there
            if len({os.path.realpath(photo) for photo in best}) == 1:
                self.owned |= dict.fromkeys(best, file)
            else:
                self.rivals[file] = best


class _Names(NamedTuple):
    """Class number -> name, and the file that lists them."""

    file: Path
    by_number: Mapping[int, str]


class _Form(NamedTuple):
    """How to read the label files of a data set.

    ``names`` is label file -> its classes. ``classes`` are all class names, perhaps repeated. ``numbers`` are the names
    by number if all label files agree on them. ``key_points`` is how many numbers of key points follow a box.
    ``pairs`` assigns label files to photos. ``exports`` are the rarebox exports that photos belong to.
    """

    names: Mapping[Path, _Names]
    classes: Sequence[str]
    numbers: Mapping[int, str]
    key_points: int
    pairs: _Pairs
    exports: Exports


def _looks_like_yolo(path: Path) -> bool:
    text = searchable(path)
    return b"names:" in text and b"train:" in text


def _parse(file: Path) -> Object:
    """The entries of data.yaml that are not empty. Raises `UserError`, which names the line of a syntax error."""
    try:
        content: object = from_yaml(read_text(file), PlainLoader)  # every value is the text that is written there
    except (yaml.YAMLError, OSError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"{file}{line}: not valid YAML ({what}). Repair the file.") from None
    content = {key: value for key, value in as_object(content).items() if value not in _NOTHING}
    if not content.get("train"):
        raise UserError(f"{file}: the entry 'train' is missing. Add it, with the folder or list of training images.")
    return content


def _names(file: Path, content: Object) -> dict[int, str]:
    """Class number -> name, in order of number."""
    names = content.get("names")
    pairs = names.items() if is_object(names) else enumerate(as_list(names))
    try:
        numbered = {
            int(number): "" if is_object(name) or is_list(name) else str(name).strip() for number, name in pairs
        }
    except (TypeError, ValueError):
        numbered = {}
    if not numbered or not all(numbered.values()):
        raise UserError(f"{file}: 'names' must be a list of class names, or names by number. Correct it.")
    return dict(sorted(numbered.items()))


def _key_points(file: Path, content: Object) -> int | None:
    """How many numbers of key points follow each box: the product of the two numbers of ``kpt_shape``; None without
    it."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    try:
        count, numbers = (int(str(value)) for value in as_list(shape))
    except ValueError:
        count = numbers = 0
    if count < 0 or numbers not in (2, 3):
        raise UserError(f"{file}: 'kpt_shape' is {shape!r}. Write the number of key points and 2 or 3, as in [17, 3].")
    return count * numbers


def _likely_key_points(files: Iterable[Path]) -> tuple[int, bool]:
    """How many numbers of key points seem to follow each box, judged by all rows, and whether this is in doubt.

    It is 0 if the rows are read as polygons; then the flag says that they may be key points. Rows other than plain
    boxes must all have the same number of values, at least eight. If a flag of 0, 1 or 2 follows each point, most boxes
    must contain their points. Without flags every box must, and its points must be centred in it and span at least half
    of one side, since small polygons look similar.
    """
    rows: list[list[float]] = []
    for file in files:
        with suppress(OSError, UserError, ValueError):  # reported as a problem when its boxes are read
            lines = [_words(line)[1:] for line in lines_of(read_text(file)) if line.strip()]
            rows += [values for words in lines if len(values := [finite(word) for word in words]) != 4]
    counts = {len(values) for values in rows}
    if len(counts) != 1 or (count := counts.pop()) < 8:
        return 0, False
    numbers = 3 if (count - 4) % 3 == 0 and all(flag in (0, 1, 2) for v in rows for flag in v[6::3]) else 2
    if (count - 4) % numbers:
        return 0, False
    poses = [(values[:4], [values[at : at + 2] for at in range(4, count, numbers)]) for values in rows]
    if numbers == 2 and any(points[-1] == box[:2] for box, points in poses):
        return 0, False  # a closed polygon
    holding = [_holds(box, points) for box, points in poses]
    mostly = sum(holding) > len(rows) / 2
    filled = all(holding) and all(_fills(box, points) for box, points in poses)
    if mostly if numbers == 3 else filled:
        return count - 4, False
    return 0, mostly


def _holds(box: Sequence[float], points: Sequence[Sequence[float]]) -> bool:
    """Whether four numbers may be a box that lies in the image and contains the points, not part of a rotated box."""
    x, y, width, height = box
    if len(points) == 2:
        (x3, y3), (x4, y4) = points
        if max(abs(x + x3 - width - x4), abs(y + y3 - height - y4)) < _SLACK:
            return False  # the four corners of a rotated box: the diagonals have the same centre
    inside = width / 2 <= min(x, 1 - x) + _SLACK and height / 2 <= min(y, 1 - y) + _SLACK
    within = (abs(px - x) <= width / 2 + _SLACK and abs(py - y) <= height / 2 + _SLACK for px, py in _seen(points))
    return inside and all(within)


def _fills(box: Sequence[float], points: Sequence[Sequence[float]]) -> bool:
    """Whether points are centred in a box and spread over at least half of one of its sides.

    A small polygon, misread as a box and key points, has its points close together in a large box.
    """
    if not (seen := _seen(points)):
        return True
    ratios: list[float] = []
    for along in (0, 1):
        values, centre, side = [point[along] for point in seen], box[along], box[along + 2]
        if abs(sum(values) / len(values) - centre) > side / 4:
            return False
        ratios.append((max(values) - min(values) + _SLACK) / side if side > 0 else 0)
    return max(ratios) >= 0.5


def _seen(points: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Points without those at (0, 0), which are not labelled."""
    return [point for point in points if any(point)]


_SLACK = 0.005
"""How far a key point may lie outside its box, as a fraction of the image's side."""


def _entries(file: Path, key: str, content: Object, disk: Disk) -> list[tuple[str, Path]]:
    """The entries of a split in data.yaml, and their paths. Raises `UserError` for an entry that does not exist."""
    named = content[key]
    base = str(content.get("path") or "")
    entries: list[tuple[str, Path]] = []
    for entry in map(str, as_list(named) or [named]):
        path = _locate(file, base, entry, disk)
        if path is None:
            raise UserError(f"{file}: '{key}' names {entry}, which does not exist, with or without 'path'. Correct it.")
        entries.append((entry, path))
    _refuse_above(file, key, entries, [file.parent, *([file.parent / slashes(base)] if base else [])])
    return entries


def _refuse_above(file: Path, key: str, entries: Sequence[tuple[str, Path]], inner: Sequence[Path]) -> None:
    """Raise `UserError` for a folder above one of ``inner``, or a whole disk: it holds more than this split."""
    within = {parent for place in inner for parent in Path(os.path.realpath(place)).parents}
    for entry, path in entries:
        real = Path(os.path.realpath(path))
        if real in within or real == real.parent:
            raise UserError(
                f"{file}: '{key}' names {entry}, which is {real} and holds more than the images of '{key}'. Name a "
                f"folder that holds only these, such as images/{key}."
            )


def _images(file: Path, key: str, entries: Sequence[tuple[str, Path]], disk: Disk) -> list[Path]:
    """All images that a split of data.yaml names, each once, sorted. Raises `UserError`."""
    images: set[Path] = set()
    for entry, path in entries:
        if os.path.isdir(path):
            images.update(image_files(path))
            continue
        try:
            if not os.path.isfile(path):
                raise OSError(None, "it is neither a folder nor a file")
            images.update(_image_list(path, disk))
        except OSError as error:
            raise UserError(
                f"{file}: '{key}' names {entry}, which cannot be read ({error.strerror or error}). Name a folder of "
                "images, or a text file that lists them."
            ) from None
    return sorted(images)


def _listing(file: Path, entries: Sequence[tuple[str, Path]], images: Sequence[Path], form: _Form) -> Listing:
    problems: list[Problem] = []
    for _, path in entries:
        problems += [*written_by_rarebox(path), *_labels_alone(path, form.pairs)] if os.path.isdir(path) else []
    here = set(images)
    rivals = {label: photos for label, photos in form.pairs.rivals.items() if not here.isdisjoint(photos)}
    for label, photos in rivals.items():
        names = ", ".join(photo.name for photo in photos)
        what = (
            f"it fits several photos: {names}. Its labels are skipped. Give each photo a different name and its own "
            "label file."
        )
        problems.append(Problem("ambiguous annotation", str(label), what))
    doubtful = {photo for photos in rivals.values() for photo in photos}
    listed = [
        ListedImage(path, lost=True, labelled=False) if path in doubtful else _image(path, form, problems)
        for path in images
    ]
    return Listing(file, list(dict.fromkeys(form.classes)), listed, problems, numbers=form.numbers)


def _locate(file: Path, base: str, entry: str, disk: Disk) -> Path | None:
    """The path of an entry, None if missing. Entries are relative to ``path``, and ``path`` to the file.

    Exports often write ../train for ./train.
    """
    folder, entry = file.parent, slashes(entry)
    bases = [folder / slashes(base), folder] if base else [folder]
    tries = [place / name for name in (entry, entry.removeprefix("../")) for place in bases]
    exact = next((path for path in tries if os.path.exists(path)), None)
    return exact or next(filter(None, map(disk.find, tries)), None)


def _image_list(file: Path, disk: Disk) -> Iterable[Path]:
    """The images that a text file names, relative to its folder."""
    paths = [file.parent / slashes(line.strip()) for line in lines_of(read_text(file)) if line.strip()]
    return [disk.find(path) or path for path in paths]


def _label_places(image: Path) -> tuple[Path, Path]:
    """Where the label file of an image may be: where YOLO expects it, and beside the image."""
    return label_file(image), image.with_suffix(".txt")


def label_file(image: Path) -> Path:
    """The label file of an image: the last folder ``images`` becomes ``labels``, and the suffix ``.txt``."""
    parts = list(image.parts)
    folders = [part.lower() for part in parts[:-1]]
    if "images" in folders:
        parts[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


def _labels_alone(folder: Path, pairs: _Pairs) -> list[Problem]:
    """A problem for each label file of an images folder that fits no image."""
    labels = pairs.disk.find(label_file(folder / "x").parent)
    if labels is None or labels == folder or not os.path.isdir(labels):
        return []
    return _alone(labels, pairs)


def _alone(labels: Path, pairs: _Pairs) -> list[Problem]:
    """A problem for each label file below a folder that fits no image."""
    claimed = {file for file, photos in pairs.claimed.items() if any(map(os.path.exists, photos))}
    alone = [p for p in files_below(labels, {".txt"}) if p not in claimed and place_key(p.name) != _CLASSES]
    what = "no image has this name. The labels are not used."
    return [Problem("annotation without image", str(path), what) for path in alone]


def _image(path: Path, form: _Form, problems: list[Problem]) -> ListedImage:
    file, export = form.pairs.owned.get(path), form.exports.of(path)
    complete = export.is_complete(path, problems)
    if file is None:
        problems.append(Problem("image without annotation", str(path), NO_LABEL_FILE))
        lacking = None if complete is None else False  # each image of an export had a label file
        return ListedImage(path, complete=lacking, labelled=False)
    try:
        lines = [(n, line) for n, line in enumerate(lines_of(read_text(file)), 1) if line.strip()]
    except (OSError, UserError) as error:
        problems.append(
            Problem("unreadable annotation", str(file), f"{str(error).rstrip('.')}. None of its objects is used.")
        )
        return ListedImage(path, relative=True, complete=complete, lost=True, labelled=False)
    names = form.names.get(file, _Names(file, {}))
    if lines and not names.by_number:
        what = f"there is no {_CLASSES} in its folder or above. None of its objects is used. Add the file."
        problems.append(Problem("unknown category", str(file), what))
        return ListedImage(path, relative=True, complete=complete, lost=True, labelled=False)
    read = [_box(line, f"{file}, line {n}", names, form, problems) for n, line in lines]
    boxes = [box for box in read if box is not None]
    lost = len(boxes) < len(lines)
    return ListedImage(
        path, boxes, relative=True, complete=complete, lost=lost, guesses=export.guesses(path.name, form.classes)
    )


def _box(line: str, where: str, names: _Names, form: _Form, problems: list[Problem]) -> ListedBox | None:
    """The box of one line, in fractions of the image's sides; None, and a problem, if it cannot be used."""
    try:
        words = _words(line)
        number, *values = (finite(word) for word in words)
    except ValueError:
        comma = " Use decimal points, not commas, and spaces between the numbers." if "," in line else ""
        what = f"{line.strip()[:60]!r} is not a row of finite numbers.{comma}"
        problems.append(Problem("box dropped", where, what))
        return None
    if number not in names.by_number:
        what = f"class {number:g} is not among the names in {names.file.name}. The box is dropped."
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
    return ListedBox(corners, names.by_number[int(number)], False, where)


def _words(line: str) -> list[str]:
    """The words of a row. Raises ``ValueError`` if it contains a line separator, so it may be several rows."""
    (row,) = line.strip().splitlines()
    return row.split()


def _fault(values: Sequence[float], words: Sequence[str], form: _Form) -> str:
    """Why the numbers after a class are neither a box nor the corners of a polygon; empty if they are."""
    count = len(values)
    if form.key_points and count != 4:
        return f"{count} numbers follow the class. 'kpt_shape' in data.yaml requires 4 or {4 + form.key_points}."
    tracked = count == 6 and words[-1].isdecimal() and max(values[:5]) <= _SHARES[1]
    if count == 5 or tracked:
        return f"{count} numbers follow the class, as in the output of a detector that adds its score. Write only 4."
    if count != 4 and (count < 6 or count % 2):
        return f"{count} numbers follow the class. Write 4 for a box, or 3 or more pairs for a polygon."
    if max(values) > _SHARES[1] or min(values) < _SHARES[0]:
        return (
            f"values range from {min(values):g} to {max(values):g}. Write fractions of the image's sides, not pixels."
        )
    return ""
