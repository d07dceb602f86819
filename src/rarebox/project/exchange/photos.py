"""Matching names from another tool to the photos of a store."""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

from sqlalchemy import func, select

from rarebox.data.export import sent_as
from rarebox.data.images import SUFFIXES
from rarebox.data.naming import ByName, file_names
from rarebox.data.review import Returned
from rarebox.errors import UserError
from rarebox.labels import schema
from rarebox.labels.store import Store
from rarebox.project.exchange.known import images_of
from rarebox.types import ImageRecord

_LATEST = select(
    select(func.max(schema.images.c.id)).scalar_subquery(), select(func.max(schema.image_moves.c.id)).scalar_subquery()
)
"""A number that grows with every new photo and every new path."""


class Photos:
    """The photos of a store by their current and former names.

    ``records`` by image id. ``folders`` are the names of all folders above the photos, current and former. ``sent``:
    file name in an export of all photos -> image id.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        with store.transaction() as connection:
            self._latest = connection.execute(_LATEST).one()
            self.records, self._paths = store.images(), store.image_paths()
        self._by_name = ByName[int]()
        for image_id, paths in self._paths.items():
            self._by_name.add(paths[-1], image_id)
        self._alike = defaultdict[str, set[int]](set)
        for image_id, paths in self._paths.items():
            for path in paths:
                self._alike[_file(path)].add(image_id)
        plain = (path.replace("\\", "/") for paths in self._paths.values() for path in paths)
        self.folders = frozenset(part for path in plain for part in path.split("/")[:-1] if part)
        self.sent = sent_as(self.records.values())

    def current(self) -> Self:
        """These photos if they are up to date, else the current ones."""
        with self._store.transaction() as connection:
            same = connection.execute(_LATEST).one() == self._latest
        return self if same else type(self)(self._store)

    def is_made(self, file: str) -> bool:
        """Whether this is the name of a photo in an export only: a number distinguishes it from another photo's."""
        image_id = self.sent.get(file)
        return image_id is not None and file_names([(image_id, self.records[image_id].path)], SUFFIXES) != [file]

    def named(self, name: str) -> int | None:
        """The id of the photo that a name from another tool means. UserError if it fits several, now or in the past."""
        found = self._by_name.match(name)
        return None if found is None else self.only(found, name)

    def only(self, image_id: int, name: str) -> int:
        """The id of the photo with this name. UserError if another photo has or had the same name."""
        path = self._paths[image_id][-1]
        for other in sorted(self._alike[_file(path)] - {image_id}):
            if path in self._paths[other] or self._fits_as_well(name, path, self._paths[other]):
                raise UserError(
                    f"{name!r} is the name of image {image_id} and is or was the name of image {other}, so it may mean "
                    "either. Use tasks that rarebox has exported: they hold the number of the image"
                )
        return image_id

    def _fits_as_well(self, name: str, path: str, others: Sequence[str]) -> bool:
        """Whether a name fits one of the other paths at least as well as the path."""
        both = ByName[bool]()
        both.add(path, False)
        for other in others:
            both.add(other, True)
        try:
            return bool(both.match(name))
        except UserError:
            return True

    def agree(self, image_id: int, name: str, *, ours: bool = False) -> bool:
        """Whether the photo with this id has the name in another tool, or had it when it was sent there.

        Unless the number is certainly ``ours``, it must not contradict the folders in the name. Raises UserError if it
        is the name of this photo in an export only, and another photo's own.
        """
        paths = self._paths.get(image_id, ())
        if _fits(name, paths):
            return ours or self._is_best(image_id, name)
        made = list[str]()
        for path in paths:
            (file,) = file_names([(image_id, path)], SUFFIXES)
            stem, _, suffix = file.rpartition(".")
            # `data.export` tells two of one name apart by a number, written as often as it takes
            made += [file, *(f"{stem}{f'-{image_id}' * times}.{suffix}" for times in (1, 2, 3))]
        if not _fits(name, made):
            return False
        other = None if ours else self._by_name.match(name)
        if other not in (None, image_id):
            raise UserError(
                f"{name!r} is the name of image {other}, and of image {image_id} in an export. Export the task again"
            )
        return True

    def _is_best(self, image_id: int, name: str) -> bool:
        """Whether no photo fits a name better than this one, now or in the past."""
        by_path, having = self._ever
        try:
            path = by_path.match(name)
        except UserError:  # several fit equally
            return True
        return path is not None and image_id in having[path]

    @cached_property
    def _ever(self) -> tuple[ByName[str], Mapping[str, set[int]]]:
        """All paths, current and former, and the photos that have or had each."""
        by_path, having = ByName[str](), defaultdict[str, set[int]](set)
        for image_id, paths in self._paths.items():
            for path in paths:
                by_path.add(path, path)
                having[path].add(image_id)
        return by_path, having


def _fits(name: str, paths: Iterable[str]) -> bool:
    """Whether a name in another tool may mean one of these paths."""
    own = ByName[str]()
    for path in paths:
        own.add(path, path)
    try:
        return own.match(name) is not None
    except UserError:  # several fit
        return True


def located(returned: Sequence[Returned], photos: Photos, store: Store) -> list[tuple[Returned, ImageRecord]]:
    """Each with its image. UserError names the first unknown one and the number of the others.

    If a number does not fit the name beside it, the file is from another project. Then its image and question numbers
    are ignored, and photos are identified by name alone. If all names are names of our export, including one that no
    photo has, they are read as names of that export. CVAT may add one folder to all names.
    """
    numbered = any(one.image_id is not None for one in returned)
    if not all(
        one.image_id is None or photos.agree(one.image_id, one.image, ours=bool(one.project)) for one in returned
    ):
        returned = [without_numbers(one) for one in returned]
    if not numbered:
        returned = _without_folder(returned, photos)
    unnumbered = [one for one in returned if one.image_id is None]
    names = {one.image for one in unnumbered}
    ours = len(unnumbered) == len(returned) and not any(one.project for one in returned)
    ours = ours and names <= photos.sent.keys() and any(map(photos.is_made, names))
    asked = images_of(store, (number for one in unnumbered for number in one.queries))
    located = [(one, _find(one, photos, asked, ours)) for one in returned]
    unknown = [one for one, record in located if record is None]
    if unknown:
        more = f", and {len(unknown) - 1} more of {len(returned)} are not" if len(unknown) > 1 else ""
        raise UserError(
            f"{unknown[0].where}: the image {unknown[0].image!r} is not in the store{more}. Is this the file of "
            "another project? To use the labels of another project, export it with --format coco, and create a new "
            "project from them: rarebox init NEW --images PHOTOS --labels EXPORT"
        )
    pairs = [(one, record) for one, record in located if record is not None]
    seen: dict[tuple[int, str], Returned] = {}
    for one, record in pairs:
        first = seen.setdefault((record.id, one.task), one)
        if first is not one:
            raise UserError(
                f"{one.where}: this image is already in {first.where}, and the file does not say that they are "
                "different tasks. Keep one of the two in the file"
            )
    return pairs


def _file(path: str) -> str:
    """The last part of a path, to compare with that of others."""
    return unicodedata.normalize("NFC", path.replace("\\", "/").rpartition("/")[2])


def without_numbers(one: Returned) -> Returned:
    """The image without what is valid only in the store that exported it: numbers and held labels. Its regions' names
    are kept distinct from those of other stores.
    """
    regions = tuple(
        region._replace(query=None, held=None, key=f"{one.project} {region.key}" if region.key else "")
        for region in one.regions
    )
    return replace(one, image_id=None, queries=(), regions=regions, held=())


def _without_folder(returned: Sequence[Returned], photos: Photos) -> Sequence[Returned]:
    """The same with bare names, if all are names of our export in one folder that is not a folder of the photos."""
    names = [one.image.replace("\\", "/").rpartition("/") for one in returned]
    folders = {folder for folder, _, _ in names}
    if (
        len(folders) != 1
        or photos.folders & set(folders.pop().split("/"))
        or any(file not in photos.sent for *_, file in names)
    ):
        return returned
    return [replace(one, image=file) for one, (*_, file) in zip(returned, names, strict=True)]


def _find(one: Returned, photos: Photos, asked: Mapping[int, int], ours: bool) -> ImageRecord | None:
    """The image that is meant. ``asked``: the images of queries; ``ours``: the file is certainly our export."""
    if one.image_id is not None:
        return photos.records.get(one.image_id)
    there = photos.sent.get(one.image, -1)
    if ours or there in {asked.get(number) for number in one.queries}:
        return photos.records[photos.only(there, one.image)]
    image_id = photos.named(one.image)
    return None if image_id is None else photos.records.get(image_id)
