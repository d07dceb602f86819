"""The photo folder of a project: reads it, and finds new and moved photos."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from rarebox import settings_text
from rarebox.config import Settings
from rarebox.core.files import real, write_text
from rarebox.core.progress import Progress, silent
from rarebox.data import listings
from rarebox.data.contents import Contents
from rarebox.data.images import UnreadableImage, content_of, image_files, image_size, left_out, read_picture, readers
from rarebox.data.remote import is_url, location
from rarebox.errors import Busy, UserError
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.project.photos import Found, Photos
from rarebox.types import ImageRecord


def new_files(known: Iterable[str], folder: Path, root: Path) -> list[str]:
    """Image files below a folder, outside the project's own folder, that are no image's file yet, through any link."""
    paths = {*map(real, known)}
    files = photos_in(folder, root) if folder.is_dir() else ()
    return [os.path.abspath(file) for file in files if real(file) not in paths]


def photos_of(folder: RunFolder, store: Store) -> Photos:
    """The photos of a project, with the hashes that its folder keeps of their files."""
    return Photos(store.digests(), Contents(folder.photos))


def photos_there(folder: RunFolder, settings: Settings, store: Store) -> dict[int, ImageRecord]:
    """The images of a project that have their photo, by id. Raises UserError if there are images, and none has one."""
    images, photos = store.images(), photos_of(folder, store)
    there = {i: image for i, image in images.items() if photos.is_there(image)}
    if images and not there:
        raise UserError(
            f"the photos are missing: {settings.data} holds none of the {len(images)}, for example "
            f"{images[min(images)].path}. Put them back, or name the folder they are in: "
            f"rarebox relocate {folder.root} FOLDER"
        )
    return there


def find_moved_images(store: Store, place: Path, folder: RunFolder, progress: Progress = silent) -> Found:
    """Find the images of a store whose photo is not at their path, below ``place``; the store then has their new paths.

    :meth:`rarebox.project.photos.Photos.find` says how.
    """
    photos, inside = photos_of(folder, store), photos_in(place, folder.root) if place.is_dir() else ()
    found = photos.find(store.images(), [os.path.abspath(file) for file in inside], place, progress)
    store.move_images({**found.moved, **found.lost})
    photos.contents.save()
    return replace(found, left_out=left_out(place, folder.root))


def check_photos(root: Path, progress: Progress = silent) -> Found:
    """Find moved images as :func:`find_moved_images` does, by the folder of a project. Simulations are skipped."""
    folder = RunFolder(root)
    settings = folder.read_settings()
    with Store(folder.labels(settings)) as store:
        known = store.digests()
        found = find_moved_images(store, Path(settings.data), folder, progress) if known else Found({}, {}, ())
        return replace(found, left_out="")


@dataclass(frozen=True)
class Relocated:
    """The images of a store after a move: the number found in the new folder, and those that are missing. ``warnings``
    are sentences for the user.
    """

    there: int
    missing: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def relocate(root: Path, place: Path, progress: Progress = silent) -> Relocated:
    """Set a new folder (or COCO or YOLO file) for the photos of a project or the data set of a run.

    Each image keeps its id and its labels. Raises UserError, and changes nothing, if no image is found.
    """
    folder = RunFolder(root)
    settings = folder.read_settings()
    if not place.exists():
        raise UserError(f"{place} does not exist. Name the folder in which the photos are now")
    within = place if place.is_dir() else place.parent
    try:
        with folder.alone(), Store(folder.labels(settings)) as store:
            found = find_moved_images(store, within, folder, progress)
            images = store.images().values()
            inside = os.path.join(os.path.abspath(within), "")
            missing = tuple(i.path for i in images if not (i.path.startswith(inside) and os.path.isfile(i.path)))
            if len(missing) == len(images):
                advice = found.left_out or "Name another folder"
                raise UserError(f"none of the {len(images)} images of {root} is in {within}. {advice}")
            data = location(place) if os.path.isabs(settings.data) else str(place)
            write_text(folder.settings, settings_text.with_data(folder.settings, settings, data))
            return Relocated(len(images) - len(missing), missing, tuple(found.warnings()))
    except Busy:
        raise UserError(f"{root} is in use. Stop `rarebox serve` or `rarebox run` there first") from None


def photos_in(folder: Path, root: Path) -> list[Path]:
    """The image files below a folder, without those in the project's folder if that is among the photos."""
    own = real(root)
    return [file for file in image_files(folder) if own not in real(file).parents]


def read_images(
    files: Sequence[Path | str],
    size: tuple[int, int],
    progress: Progress = silent,
    first_id: int = 1,
    digests: dict[int, str] | None = None,
    contents: Contents | None = None,
) -> tuple[list[ImageRecord], list[listings.Problem]]:
    """Read all image files (or URLs), numbered in their order. Those that cannot be decoded are returned as problems.

    The function adds the hash of each image to ``digests``, by id. ``contents`` caches the hashes of local files.
    """
    known = contents or Contents()
    records: list[ImageRecord] = []
    problems: list[listings.Problem] = []

    def probe(file: Path | str) -> tuple[ImageRecord, str | None] | UnreadableImage:
        try:
            with content_of(file) as content:
                found = None if digests is None else known.of(file) if content is None else sha256(content).hexdigest()
                width, height, _ = image_size(file, content)
                record = ImageRecord(0, location(file), width, height)
                read_picture(record, *size, content)
                return record, found
        except UnreadableImage as error:
            return error

    with ThreadPoolExecutor(readers(any(map(is_url, files)))) as pool:
        for done, (file, found) in enumerate(zip(files, pool.map(probe, files), strict=True), start=1):
            progress("looking at the images", done, len(files), "")
            if isinstance(found, UnreadableImage):
                problems.append(
                    listings.Problem("unreadable image", str(file), f"{found.reason}; the image is left out")
                )
                continue
            record, content = found
            records.append(replace(record, id=first_id + len(records)))
            if digests is not None and content:
                digests[records[-1].id] = content
    return records, problems
