"""Data sets by name or path: which reader understands it, and what to say if none does."""

import os
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from rarebox.core.places import cache_folder
from rarebox.core.progress import Progress
from rarebox.data import coco, listings, scenes, voc, yolo
from rarebox.data.images import image_files
from rarebox.data.listings import Dataset, Reader, ReadProgress, assemble
from rarebox.errors import UserError

_LAYOUTS = """Understood are:
  COCO   train.json and test.json (or valid.json), train/_annotations.coco.json, or one JSON file
  VOC    VOCdevkit/VOC2007 and VOC2012, or a folder with Annotations/ and JPEGImages/
  YOLO   data.yaml with images/ and labels/"""


def load(
    path: str | Path,
    *,
    check_pixels: bool = False,
    read: ReadProgress = lambda *_: None,
    photos: Sequence[str | Path] = (),
) -> Dataset:
    """Read a data set whose format is told by the folder's content: COCO, VOC or YOLO.

    The headers of all images are read, their pixels only with ``check_pixels``. What cannot be used is left out and
    listed in ``problems``. A folder ``voc0712``, ``voc2007`` or ``voc2012`` is downloaded when it is not there.
    ``read`` hears of every image that was read. Images that do not lie where the labels say are looked for, by name,
    among ``photos``. Raises `UserError` when nothing is left to go on with.
    """
    path = Path(os.path.expanduser(path))
    if voc.wants_download(path):
        voc.download(path)
    if not os.path.exists(path):  # unlike Path.exists, False for a name that the file system refuses
        raise _missing(path)
    reader = _reader(path)
    if reader is None:
        raise _not_understood(path)
    train, test = reader()
    return assemble(Path(os.path.abspath(path)), train, test, check_pixels=check_pixels, read=read, photos=photos)


MADE = "scenes"
"""The data set that is made on the spot."""


def refuse_missing(name: str | Path) -> None:
    """UserError, at once, for a data set that is not there or of no format that is understood.

    What its images are like is not looked at, and what would be made or downloaded is there.
    """
    if not str(name).strip():
        raise UserError("the data set has no name; give a folder with images and labels, or scenes")
    path = Path(os.path.expanduser(name))
    if str(name) == MADE or voc.wants_download(path):
        return
    if not os.path.exists(path):
        raise _missing(path)
    if _reader(path) is None:
        raise _not_understood(path)


def _reader(path: Path) -> Reader | None:
    """What reads this path: the first format that recognises it."""
    finders = (coco.find, voc.find, yolo.find, coco.find_single)
    return next((reader for find in finders if (reader := find(path)) is not None), None)


def _missing(path: Path) -> UserError:
    if str(path) == path.name and (known := get_close_matches(path.name, (MADE, *voc.ARCHIVES), n=1, cutoff=0.7)):
        return UserError(f"{path} does not exist; did you mean {known[0]!r}?")
    if not os.path.isdir(path.parent):
        there = next(parent for parent in path.absolute().parents if os.path.isdir(parent))
        where = "check the path of the file" if path.suffix else "name a folder with images and labels"
        return UserError(f"{path} does not exist (there is only {there}); {where}")
    beside = [p.name for p in path.parent.iterdir() if p.exists()]
    near = get_close_matches(path.name, beside, n=1, cutoff=0.5)
    where = "check the path of the file" if path.suffix else "name a folder with images and labels"
    hint = f"did you mean {path.parent / near[0]}?" if near else where
    return UserError(f"{path} does not exist; {hint}")


def _not_understood(path: Path) -> UserError:
    if not path.is_dir():
        return UserError(f"{path} is neither a COCO JSON nor a YOLO data.yaml. {_LAYOUTS}")
    entries = sorted(path.iterdir())
    if not entries:
        return UserError(f"{path} is empty; put images and labels there. {_LAYOUTS}")
    images = len(image_files(path))
    holds = f"holds {images} images and no labels" if images else "holds no data set"
    shown = ", ".join(p.name + "/" * p.is_dir() for p in entries[:6]) + ", ..." * (len(entries) > 6)
    inside = next((f"; did you mean {p}?" for p in entries if p.is_dir() and _reader(p)), "")
    return UserError(f"{path} {holds} that rarebox understands (found {shown}){inside}. {_LAYOUTS}")


def load_data(name: str, progress: Progress = lambda *_: None) -> listings.Dataset:
    """A data set by its folder or name; ``scenes`` is made on the spot, VOC fetched where it is not there yet."""

    def read(done: int, of: int) -> None:
        progress("read", done, of, "images")

    if name == MADE:
        return load(scenes.make(cache_folder() / f"scenes-{scenes.RECIPE}"), read=read)
    if name in voc.ARCHIVES and not Path(name).exists():
        voc.download(cache_folder() / name)
        return load(cache_folder() / name, read=read)
    return load(name, check_pixels=True, read=read)
