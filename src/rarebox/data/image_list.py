"""The images that a command is given: a folder, one image, a list of paths in a text file, or a COCO file."""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rarebox.core.files import real
from rarebox.core.text import lines_of, read_text
from rarebox.data import coco
from rarebox.data.images import SUFFIXES, image_files
from rarebox.data.remote import is_url
from rarebox.errors import UserError

VIDEOS = (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v")

NamedImage = tuple[str, Path | str]
"""The name of an image, unique in its list, with forward slashes; and its file or URL."""


def named_images(images: Path, but: Path) -> list[NamedImage]:
    """The images of a folder, a text file with one path or URL per line, a COCO file, or a single image.

    Those of a folder that lie below ``but``, where the command writes its own pictures, are left out.

    Names are relative to the folder, or to that of the file; those of other places are as long as needed to be unique.
    Paths in a text file are relative to its folder. Raises UserError if there is no image.
    """
    suffix = images.suffix.lower()
    if images.is_dir():
        written = real(but)
        root, files = images, [file for file in image_files(images) if not real(file).is_relative_to(written)]
    elif not images.exists():
        raise UserError(f"{images} does not exist. Name a folder, one image, a text file of paths, or a COCO file")
    elif suffix in VIDEOS:
        raise UserError(
            f"{images} is a video. Write its frames into a folder first, such as ffmpeg -i {images.name} "
            "frames/%06d.jpg, and name that folder"
        )
    else:
        root = images.parent
        files = _listed(images, suffix)
    if not files:
        raise UserError(f"{images} holds no image")
    return _named(files, Path(os.path.abspath(root)))


def _listed(file: Path, suffix: str) -> list[Path | str]:
    if suffix in SUFFIXES:
        return [file]
    if suffix == ".txt":
        lines = (line.strip() for line in lines_of(read_text(file)))
        return [line if is_url(line) else file.parent / line for line in lines if line]
    return [image.path for image in coco.read(file)[0].images]


def _named(files: Sequence[Path | str], root: Path) -> list[NamedImage]:
    """The files in their order, each once, by a name that no other has. Those below ``root`` are named first."""
    places = {
        file: PurePosixPath(urlsplit(file).path) if isinstance(file, str) else Path(os.path.abspath(file))
        for file in files
    }
    names = {file: at.relative_to(root).as_posix() for file, at in places.items() if at.is_relative_to(root)}
    taken = set(names.values())
    for file, at in places.items():
        if file not in names:
            ends = ("/".join(at.parts[-n:]) for n in range(1, len(at.parts) + 1))
            names[file] = next((end for end in ends if end not in taken), str(file))
            taken.add(names[file])
    return [(names[file], file) for file in places]
