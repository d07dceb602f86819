"""Ultralytics YOLO: a ``data.yaml``, and beside every image in ``images/`` its lines in ``labels/``.

A line is ``class centre_x centre_y width height``, in shares of the image's sides; or a class and the corners of a
polygon, whose hull is the box. Where data.yaml has ``kpt_shape``, key points follow the box.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rarebox.core.files import read_bytes
from rarebox.core.parsing import PlainLoader, finite, from_yaml
from rarebox.core.text import read_text
from rarebox.data.disk import Disk, slashes
from rarebox.data.images import SUFFIXES, files_below, image_files
from rarebox.data.listings import ListedBox, ListedImage, Listing, Problem, Reader, export_mark, exported_complete
from rarebox.errors import UserError

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
    form = _Form(names, key_points, exported_complete(export_mark(file.parent)), pairs)
    if test == "test" and content.get("val"):
        problems.append(Problem("split not used", f"{file}: val", "'test' is the test split"))
    listings = {key: _listing(file, folders[key], listed, form) for key, listed in images.items()}
    listings["train"].problems[:0] = problems
    return listings["train"], listings[test] if test else None


_ASSUMED = (
    "the rows of the labels look like boxes with {} numbers of key points, and are read so. Write their "
    "kpt_shape there, or 'kpt_shape: [0, 2]' if the rows are polygons"
)


_POLYGONS = (
    "the rows of the labels may be polygons or boxes with key points; they are read as polygons. If they are key "
    "points, write their kpt_shape there; 'kpt_shape: [0, 2]' says that they are polygons"
)


class _Pairs:
    """Which label file belongs to which photo: ``owned`` is photo -> label file.

    A label file belongs to the photo whose name it has. If there is none, it belongs to the only photo whose name
    differs in capitals. If several photos fit equally well, it is nobody's: ``rivals`` is label file -> those photos.
    Photos beside the listed ones count too. ``claimed`` are all label files that
    some photo fits.
    """

    def __init__(self, images: Iterable[Path], disk: Disk) -> None:
        self.disk = disk
        self.owned: dict[Path, Path] = {}
        self.rivals: dict[Path, list[Path]] = {}
        self.claimed: dict[Path, dict[Path, bool]] = {}  # label file -> photo -> whether it has the very same name
        listed = dict.fromkeys(images)
        beside = (photo for image in listed for photo in disk.namesakes(image) if photo.suffix.lower() in SUFFIXES)
        for photo in dict.fromkeys([*listed, *beside]):
            places = [label_file(photo), photo.with_suffix(".txt")]
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


class _Form(NamedTuple):
    """How the label files of a data set are to be read: class number -> name, how many numbers of key points follow a
    box, which images an export of rarebox calls complete, and whose they are."""

    names: Mapping[int, str]
    key_points: int
    complete: Mapping[str, bool]
    pairs: _Pairs


def _looks_like_yolo(path: Path) -> bool:
    try:
        text = read_bytes(path).replace(b"\0", b"")  # UTF-16 has zeros between
    except OSError:  # a folder of that name, or a file that may not be read
        return False
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


def _key_points(file: Path, content: Mapping[str, Any]) -> int | None:
    """How many numbers of key points follow each box: ``kpt_shape`` is their count, and 2 or 3 numbers for each. None
    where the file does not say."""
    shape = content.get("kpt_shape")
    if shape is None:
        return None
    try:
        count, numbers = (int(value) for value in shape)
    except (TypeError, ValueError):
        count = numbers = 0
    if count < 0 or numbers not in (2, 3):
        raise UserError(f"{file}: 'kpt_shape' is {shape!r}; write the number of key points and 2 or 3, such as [17, 3]")
    return count * numbers


def _likely_key_points(files: Iterable[Path]) -> tuple[int, bool]:
    """How many numbers of key points follow each box by the look of all rows, 0 if the rows are read as polygons; and
    whether they may be key points all the same.

    All rows but plain boxes must have the same number of values, at least eight. With a flag of 0, 1 or 2 behind each
    point, most boxes must hold their points. Without flags all boxes must, and their points must fill them, for a small
    polygon looks alike.
    """
    rows = []
    for file in files:
        with suppress(OSError, UserError, ValueError):  # listed when it is read for its boxes
            lines = [line.split()[1:] for line in read_text(file).splitlines() if line.strip()]
            rows += [values for words in lines if len(values := [finite(word) for word in words]) != 4]
    counts = {len(values) for values in rows}
    if len(counts) != 1 or (count := counts.pop()) < 8:
        return 0, False
    numbers = 3 if (count - 4) % 3 == 0 and all(flag in (0, 1, 2) for v in rows for flag in v[6::3]) else 2
    if (count - 4) % numbers:
        return 0, False
    poses = [(values[:4], [values[at : at + 2] for at in range(4, count, numbers)]) for values in rows]
    if numbers == 2 and any(points[-1] == box[:2] for box, points in poses):
        return 0, False  # a ring of corners that ends where it began
    holding = [_holds(box, points) for box, points in poses]
    mostly = sum(holding) > len(rows) / 2
    filled = all(holding) and all(_fills(box, points) for box, points in poses)
    if mostly if numbers == 3 else filled:
        return count - 4, False
    return 0, mostly


def _holds(box: Sequence[float], points: Sequence[Sequence[float]]) -> bool:
    """Whether four numbers may be a box in the image that holds points, and with them are no turned box."""
    x, y, width, height = box
    if len(points) == 2:
        (x3, y3), (x4, y4) = points
        if max(abs(x + x3 - width - x4), abs(y + y3 - height - y4)) < _SLACK:
            return False  # the diagonals of the four corners have one centre
    inside = width / 2 <= min(x, 1 - x) + _SLACK and height / 2 <= min(y, 1 - y) + _SLACK
    within = (abs(px - x) <= width / 2 + _SLACK and abs(py - y) <= height / 2 + _SLACK for px, py in _seen(points))
    return inside and all(within)


def _fills(box: Sequence[float], points: Sequence[Sequence[float]]) -> bool:
    """Whether points lie about the centre of a box and spread over at least half of it along one side.

    A small polygon read as a box and key points has its points in one spot of a large box.
    """
    if not (seen := _seen(points)):
        return True
    ratios = []
    for along in (0, 1):
        values, centre, side = [point[along] for point in seen], box[along], box[along + 2]
        if abs(sum(values) / len(values) - centre) > side / 4:
            return False
        ratios.append((max(values) - min(values) + _SLACK) / side if side > 0 else 0)
    return max(ratios) >= 0.5


def _seen(points: Sequence[Sequence[float]]) -> list[Sequence[float]]:
    """Points without those at (0, 0), which stand for a point that is not labelled."""
    return [point for point in points if any(point)]


_SLACK = 0.005
"""By how much a key point may lie outside its box, as a fraction of the image's side."""


def _entries(file: Path, key: str, content: Mapping[str, Any], disk: Disk) -> list[tuple[str, Path]]:
    """What a split of data.yaml names, and where that is. Raises `UserError`."""
    named = content[key] if isinstance(content[key], list) else [content[key]]
    base = content.get("path")
    entries = []
    for entry in map(str, named):
        path = _locate(file, base, entry, disk)
        if path is None:
            raise UserError(f"{file}: '{key}' names {entry}, which is neither there nor under 'path'; correct it")
        entries.append((entry, path))
    _refuse_above(file, key, entries, [file.parent, *([file.parent / slashes(str(base))] if base else [])])
    return entries


def _refuse_above(file: Path, key: str, entries: Sequence[tuple[str, Path]], inner: Sequence[Path]) -> None:
    """UserError for a folder above one of these, or a whole disk: it holds more than the images of this split."""
    within = {parent for place in inner for parent in Path(os.path.realpath(place)).parents}
    for entry, path in entries:
        real = Path(os.path.realpath(path))
        if real in within or real == real.parent:
            raise UserError(
                f"{file}: '{key}' names {entry}, which is {real} and holds more than the images of '{key}'. Write the "
                f"folder that holds only these, such as images/{key}"
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
                "images or a text file that lists them"
            ) from None
    return sorted(images)


def _listing(file: Path, entries: Sequence[tuple[str, Path]], images: Sequence[Path], form: _Form) -> Listing:
    problems: list[Problem] = []
    for _, path in entries:
        problems += _labels_alone(path, form.pairs) if os.path.isdir(path) else []
    here = set(images)
    rivals = {label: photos for label, photos in form.pairs.rivals.items() if not here.isdisjoint(photos)}
    for label, photos in rivals.items():
        names = ", ".join(photo.name for photo in photos)
        what = (
            f"it may be of any of {names}; its labels are left out. Give each photo a name and a label file of its own"
        )
        problems.append(Problem("ambiguous annotation", str(label), what))
    doubtful = {photo for photos in rivals.values() for photo in photos}
    listed = [
        ListedImage(path, lost=True, labelled=False) if path in doubtful else _image(path, form, problems)
        for path in images
    ]
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


def _labels_alone(folder: Path, pairs: _Pairs) -> list[Problem]:
    """Label files below the labels folder of an images folder that no image has the name of."""
    labels = pairs.disk.find(label_file(folder / "x").parent)
    if labels is None or labels == folder or not labels.is_dir():
        return []
    claimed = {file for file, photos in pairs.claimed.items() if any(map(os.path.exists, photos))}
    alone = [p for p in files_below(labels, {".txt"}) if p not in claimed and p.name != "classes.txt"]
    what = "there is no image of that name; the labels are not used"
    return [Problem("annotation without image", str(path), what) for path in alone]


def _image(path: Path, form: _Form, problems: list[Problem]) -> ListedImage:
    file = form.pairs.owned.get(path)
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
        number, *values = (finite(word) for word in words)
    except ValueError:
        comma = "; write points, not commas, and blanks between the numbers" if "," in line else ""
        what = f"{line.strip()[:60]!r} is not a row of finite numbers{comma}"
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
