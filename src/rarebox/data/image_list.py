"""The images that a command is given: a folder, one image, a list of paths in a text file, or a COCO file."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

from rarebox.core.files import real
from rarebox.data import coco
from rarebox.data.images import SUFFIXES, image_files, left_out, not_read
from rarebox.data.remote import is_list, is_url, listing, location
from rarebox.errors import UserError

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

NamedImage = tuple[str, Path | str]
"""The name of an image, unique in its list, with forward slashes; and its file or URL."""


def named_images(images: Path, but: Path | None = None) -> list[NamedImage]:
    """The images of a folder, a text file with one path or URL per line, a COCO file, or a single image, each once.

    Those of a folder that lie below ``but``, where the command writes its own pictures, are left out. Paths in a text
    file are relative to its folder. A name is the path relative to the folder, or to that of the file, and longer if
    the path of another image ends with it. Raises UserError if there is no image.
    """
    suffix = images.suffix.lower()
    if images.is_dir():
        written = but and real(but)
        root, files = images, image_files(images)
        files = [file for file in files if not written or not real(file).is_relative_to(written)]
    elif not images.exists():
        raise UserError(f"{images} does not exist. Name a folder, one image, a text file of paths, or a COCO file")
    elif suffix in VIDEOS:
        raise UserError(
            f"{images} is a video. Extract its frames first, for example with ffmpeg -i {images.name} "
            "frames/%06d.jpg, and name that folder"
        )
    else:
        root = images.parent
        files = _listed(images, suffix)
    once, _ = each_once(files)
    if not once:
        note = _not_used(images) if images.is_dir() else ""
        raise UserError(f"{images} contains no images{f'. {note}' if note else ''}")
    return _named(once, Path(os.path.abspath(root)))


def each_once(files: Sequence[Path | str]) -> tuple[list[Path | str], list[Path | str]]:
    """The photos, each under the first of its paths, and the further paths, by links or detours to one of them."""
    first: dict[str, Path | str] = {}
    again: list[Path | str] = []
    for file in files:
        if first.setdefault(_place(file), file) is not file:
            again.append(file)
    return [*first.values()], again


def coco_numbers(images: Path, named: Sequence[NamedImage]) -> tuple[dict[str, int], dict[str, int]]:
    """Name -> image id, and class -> category id, of a COCO file, for what :func:`named_images` lists from it.

    An image that the file lists several times has the first id. Both are empty for everything but a COCO file.
    """
    if images.is_dir() or images.suffix.lower() in (*SUFFIXES, ".txt"):
        return {}, {}
    listing, _ = coco.read(images)
    ids = {_place(image.path): image.id for image in reversed(listing.images) if image.id is not None}
    own = {name: ids[place] for name, file in named if (place := _place(file)) in ids}
    return own, {name: number for number, name in sorted(listing.categories.items(), reverse=True)}


def _place(file: Path | str) -> str:
    """What is equal for paths that lead to one file."""
    return str(file) if is_url(file) else str(real(file))


def left_out_for(images: Path, but: Path) -> str:
    """A note on the images of a folder that :func:`named_images` leaves out, because rarebox has written them or cannot
    read them.

    Those below ``but``, where the command itself writes, are not mentioned. Empty if there are none.
    """
    return _not_used(images, but) if images.is_dir() else ""


def _not_used(folder: Path, but: Path | None = None) -> str:
    return ". ".join(filter(None, (left_out(folder, but), not_read(folder))))


def _listed(file: Path, suffix: str) -> Sequence[Path | str]:
    if suffix in SUFFIXES:
        return [file]
    if is_list(file):
        return [line if is_url(line) else Path(line) for line in listing(location(file), SUFFIXES)]
    return [image.path for image in coco.read(file)[0].images]


def _named(files: Sequence[Path | str], root: Path) -> list[NamedImage]:
    """The files by name: the shortest end of each path that no other path shares."""
    paths = [_parts(file) for file in files]
    alike = Counter(path[-1] for path in paths)
    ends = Counter("/".join(path[-n:]) for path in paths if alike[path[-1]] > 1 for n in range(1, len(path) + 1))
    names = dict[str, Path | str]()
    for file, path in zip(files, paths, strict=True):
        below = not is_url(file) and Path(os.path.abspath(file)).is_relative_to(root)
        least = max(len(path) - len(root.parts[1:]), 1) if below else 1
        longer = ("/".join(path[-n:]) for n in range(least, len(path) + 1))
        name = next((end for end in longer if ends[end] < 2), "/".join(path))
        names[next(other for other in _numbered(name) if other not in names)] = file
    return [*names.items()]


def _parts(file: Path | str) -> tuple[str, ...]:
    """The parts of a path, or of a URL's host and path, without the root and steps upwards."""
    if not is_url(file):
        return Path(os.path.abspath(file)).parts[1:]
    try:
        url = urlsplit(str(file))
    except ValueError as error:
        raise UserError(f"{file} is not a valid URL ({error}). Correct it, or remove it from the list") from None
    parts = tuple(part for part in url.path.split("/") if part not in ("", ".", ".."))
    return (url.netloc, *parts)


def _numbered(name: str) -> Iterator[str]:
    """The name itself, then ``a-2.jpg``, ``a-3.jpg``, …"""
    yield name
    stem, suffix = os.path.splitext(name)
    yield from (f"{stem}-{number}{suffix}" for number in count(2))
