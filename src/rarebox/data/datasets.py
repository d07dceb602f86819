"""Data sets by name or path: finds the reader that understands one, or reports why none does.

To add a format, write a module with a ``find`` function like that of ``coco.py`` and add it to :func:`_reader`.
"""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rarebox.core.places import cache_folder
from rarebox.core.progress import Progress
from rarebox.data import coco, foreign, listings, scenes, voc, yolo
from rarebox.data.assembly import assemble
from rarebox.data.contents import as_labelled
from rarebox.data.images import image_files
from rarebox.data.listings import Dataset, Numbers, Reader, ReadProgress
from rarebox.errors import UserError

_LAYOUTS = """rarebox reads:
  COCO   train.json and test.json (or valid.json), train/_annotations.coco.json, or one JSON file
  VOC    VOCdevkit/VOC2007 and VOC2012, Annotations/ and JPEGImages/, or XML files beside the images
  YOLO   data.yaml with images/ and labels/, or classes.txt with TXT files beside the images"""


def numbers_of(path: Path) -> Numbers:
    """The numbers of a COCO or YOLO data set. Raises `UserError` if its files use one category number twice."""
    found = _reader(path)
    splits = [split for split in found[1]() if split] if found else []
    categories: dict[int, str] = {}
    images: dict[int, set[str]] = {}
    for split in splits:
        for number, name in split.categories.items():
            if categories.setdefault(number, name) != name:
                raise UserError(
                    f"{split.source}: category {number} is {name!r} here and {categories[number]!r} in the other file. "
                    "Both must use the same numbers."
                )
        for image in split.images:
            if image.id is not None:
                images.setdefault(image.id, set()).add(str(image.path))
    numbers = [split.numbers for split in splits[:1]]  # a detector is trained on the first split
    return Numbers(dict(*numbers), categories, {i: min(paths) for i, paths in images.items() if len(paths) == 1})


def load(
    path: str | Path,
    *,
    check_pixels: bool = False,
    read: ReadProgress = lambda done, of: None,
    photos: Sequence[str | Path] = (),
) -> Dataset:
    """Read a data set in COCO, VOC or YOLO format, which the content of the folder decides.

    The headers of all images are read, their pixels only with ``check_pixels``. What cannot be used is skipped and
    listed in ``problems``. A missing folder ``voc0712``, ``voc2007`` or ``voc2012`` is downloaded. ``read`` is called
    after every image. Images that are missing where the labels expect them are looked up among ``photos`` by name.
    Raises `UserError` if no format fits or nothing usable is left.
    """
    path = Path(os.path.expanduser(path))
    if voc.wants_download(path):
        voc.download(path)
    if not os.path.exists(path):  # unlike Path.exists, False for a name that the file system refuses
        raise _missing(path)
    found = _reader(path)
    if found is None:
        raise _not_understood(path)
    train, test = found[1]()
    train, test = as_labelled(train, path), test and as_labelled(test, path)
    if os.path.isdir(path):
        read_files = {os.path.realpath(file) for file in train.files}
        for kind, unread in _UNREAD.items():
            if (first := next(iter(unread(path, read_files)), None)) is not None:
                what = f"labels in {kind} format are here, too, and are not read. Move them elsewhere."
                train.problems.append(listings.Problem("labels not read", str(first), what))
    return assemble(Path(os.path.abspath(path)), train, test, check_pixels=check_pixels, read=read, photos=photos)


MADE = "scenes"
"""The name of the embedded data set, which is generated when needed."""


def refuse_missing(name: str | Path) -> None:
    """Raise `UserError`, quickly, for a data set that does not exist or whose format is unknown.

    Images are not read. Data sets that would be generated or downloaded count as existing.
    """
    if not str(name).strip():
        raise UserError("--data is empty. Give a folder with images and labels, or scenes.")
    path = Path(os.path.expanduser(name))
    if str(name) == MADE or voc.wants_download(path):
        return
    if not os.path.exists(path):
        raise _missing(path)
    if _reader(path) is None:
        raise _not_understood(path)


_UNREAD = {"COCO": coco.unread, "VOC": voc.unread, "YOLO": yolo.unread}
"""Functions that find unread label files, by format."""


def _reader(path: Path) -> tuple[str, Reader] | None:
    """The first format that recognises this path, and its reader. Raises `UserError` for two formats of labelImg."""
    finders = (("COCO", coco.find), ("VOC", voc.find), ("YOLO", yolo.find), ("COCO", coco.find_single))
    for kind, find in finders:
        if reader := find(path):
            return kind, reader
    as_voc, as_yolo = voc.find_flat(path), yolo.find_flat(path)
    if as_voc and as_yolo:
        raise UserError(
            f"{path} has both VOC (.xml) and YOLO (.txt) labels beside the images. Keep one format and move the other "
            "files elsewhere."
        )
    if as_voc or (as_yolo is None and (as_voc := voc.find_alone(path))):
        return "VOC", as_voc
    return ("YOLO", as_yolo) if as_yolo else None


def _missing(path: Path) -> UserError:
    if str(path) == path.name and (known := get_close_matches(path.name, (MADE, *voc.ARCHIVES), n=1, cutoff=0.7)):
        return UserError(f"{path} does not exist. Did you mean {known[0]!r}?")
    advice = "Check the path of the file." if path.suffix else "Name a folder with images and labels."
    if not os.path.isdir(path.parent):
        there = next(parent for parent in path.absolute().parents if os.path.isdir(parent))
        return UserError(f"{path} does not exist (only {there} does). {advice}")
    beside = [p.name for p in _entries(path.parent) if os.path.exists(p)]
    near = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    return UserError(f"{path} does not exist. {f'Did you mean {path.parent / near[0]}?' if near else advice}")


def _not_understood(path: Path) -> UserError:
    if known := foreign.advice(path):
        return UserError(f"{path}: {known}")
    if not os.path.isdir(path):
        return UserError(f"{path} is neither a COCO JSON nor a YOLO data.yaml. {_LAYOUTS}")
    entries = _entries(path)
    if not entries:
        return UserError(f"{path} is empty. Put images and labels there. {_LAYOUTS}")
    if {"settings.yaml", "labels.sqlite"} <= {entry.name for entry in entries}:
        return UserError(f"{path} is a project or run, not a data set. Export its labels: rarebox export {path} labels")
    images = len(image_files(path))
    holds = f"holds {images} images and no labels" if images else "holds no data set"
    shown = ", ".join(p.name + "/" * os.path.isdir(p) for p in entries[:6]) + ", ..." * (len(entries) > 6)
    inside = next((f" Did you mean {p}?" for p in entries if os.path.isdir(p) and _reader(p)), "")
    return UserError(f"{path} {holds} that rarebox understands (found {shown}).{inside} {_LAYOUTS}")


def _entries(folder: Path) -> list[Path]:
    """What is in a folder, sorted. Raises `UserError`."""
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}. Check its permissions.") from None


def load_data(name: str, progress: Progress = lambda step, done, total, unit: None) -> listings.Dataset:
    """A data set by its folder or name. ``scenes`` is generated and VOC downloaded if they do not exist yet."""

    def read(done: int, of: int) -> None:
        progress("read", done, of, "images")

    if name == MADE:
        return load(scenes.make(cache_folder() / f"scenes-{scenes.RECIPE}"), read=read)
    if name in voc.ARCHIVES and not Path(name).exists():
        voc.download(cache_folder() / name)
        return load(cache_folder() / name, read=read)
    return load(name, check_pixels=True, read=read)
