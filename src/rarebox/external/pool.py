"""The images of external detections: their ids, how files name them, and their existing labels."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any, TypeGuard

import numpy as np

from rarebox.core.boxes import rescaling
from rarebox.core.text import counted
from rarebox.data import coco, fitting, listings
from rarebox.data.assembly import file_of, joined
from rarebox.data.contents import same_photos
from rarebox.data.detections import Image
from rarebox.data.disk import slashes
from rarebox.data.image_list import named_images
from rarebox.data.images import SUFFIXES, UnreadableImage, image_size, left_out, none_readable, not_read
from rarebox.data.listings import ListedImage, Problem, Size
from rarebox.data.naming import ByName
from rarebox.data.remote import is_list, is_url
from rarebox.errors import UserError
from rarebox.external.names import Names
from rarebox.loop.run_folder import open_store
from rarebox.types import Floats, ImageLabels, ImageRecord, Source, as_boxes


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labels of one image, by class names."""

    boxes: Floats
    names: Sequence[str]
    rejected: Floats
    skipped: Floats
    complete: bool

    def __bool__(self) -> bool:
        """Whether the image is labelled at all."""
        return self.complete or any(map(len, (self.boxes, self.rejected, self.skipped)))


@dataclass(frozen=True)
class Given:
    """The labels of images in ``source``, by image id, before they are fitted to the images' sizes.

    ``stored`` are from a label store, with the (width, height) that they fit, and ``listed`` from a COCO file.
    ``problems`` are those of that file.
    """

    source: Path
    stored: Mapping[int, tuple[Labelled, tuple[int, int]]] = field(default_factory=dict[int, Any])
    listed: Mapping[int, ListedImage] = field(default_factory=dict[int, ListedImage])
    problems: Sequence[Problem] = ()


class Pool:
    """The images by id, how files name them, and the classes and category numbers that files give.

    A number is an image id if a file gives ids. Otherwise it is a file name: detectors without ids write 2 for
    ``2.jpg``, and 139 for ``000000000139.jpg``. ``paths`` are the images of a data set by its ids, if the numbers are
    those ids.
    """

    def __init__(self, paths: Mapping[int, str] | None = None) -> None:
        self._paths = paths or {}
        self.project = ""
        """The session of the store that the labels are from, empty if they are from a file."""
        self.records: dict[int, ImageRecord] = {}
        self.classes: tuple[str, ...] = ()
        self.categories: dict[int, str] = {}
        self._numbered: set[tuple[int, str]] = set()
        self.disputed: set[int] = set()
        """Numbers that are the id of one image and the name of another. They are used as ids."""
        self.otherwise: dict[str, int] = {}
        """The ids of images that the detections name differently from the labels or --images, by those names."""
        self._aliases = dict[int, int]()  # further numbers of an image that a COCO file lists several times
        self._ambiguous = False
        self._known: Names | None = None
        self._also = ByName[int]()  # further paths of the same photos
        self._given: set[int] = set()
        self._internal: set[int] = set()

    @property
    def of_project(self) -> frozenset[int]:
        """The images that the store of the labels has numbered."""
        return frozenset(self._internal if self.project else ())

    @property
    def numbers(self) -> dict[int, str]:
        """The class names by number from 0, as the labels and images count; empty if they contradict each other.

        They do in a project with merged classes: its exports number the remaining ones from 0."""
        return {} if self._ambiguous else listings.agreed(self._numbered)

    def add(self, record: ImageRecord, *, given: bool = False, internal: bool = False) -> None:
        """Add an image, or update its size. ``given``: a file gave its id. ``internal``: a store numbered it."""
        if record.id not in self.records or self.records[record.id].path != record.path:
            self._known = None
        self._given |= {record.id} if given else set()
        self._internal |= {record.id} if internal else set()
        self.records[record.id] = record

    def find(self, image: Image) -> int | None:
        """The id of an image by its number or the end of its path; None if it is unknown.

        Raises UserError if several images match.
        """
        image = self._aliases.get(image, self._paths.get(image, image)) if isinstance(image, int) else image
        if isinstance(image, str):
            if image in self.otherwise:
                return self.otherwise[image]
            found = self._names().by_path.find(image)
            found = self._also.find(image) if found is None else found
            is_stem = found is None and PurePath(slashes(image)).suffix.lower() not in SUFFIXES
            return self._called(image) if is_stem else found
        if image in self._given:
            if self._names().by_stem.get(image, {image}) != {image}:
                self.disputed.add(image)
            return image
        called = self._called(image)
        if image in self._internal and called not in (None, image):
            assert called is not None
            raise UserError(
                f"the image {image} may be {self.records[image].path}, which has that number in the store, or "
                f"{self.records[called].path}. Write file names instead of numbers"
            )
        return image if image in self._internal else called

    def _called(self, stem: str | int) -> int | None:
        """The image whose file has that name without suffix. Raises UserError if there are several."""
        alike = sorted(self._names().by_stem.get(stem, ()))
        if len(alike) > 1:
            paths = " or ".join(self.records[i].path for i in alike[:2])
            raise UserError(f"the image {stem!r} may be {paths}. Write file names with their folders")
        return alike[0] if alike else None

    def _names(self) -> Names:
        if self._known is None:
            self._known = Names(self.records.values())
        return self._known

    def several(self, images: Sequence[Image]) -> dict[Image, str]:
        """The names of a file that several images have, and what they may be."""
        found: dict[Image, str] = {}
        for image in images:
            try:
                self.find(image)
            except UserError as error:
                found[image] = str(error)
        return found

    def place(self, images: Sequence[Image], file: Path, closed: bool) -> dict[int, list[Image]]:
        """The id of every image of a file, with its names in that file.

        A name that differs from that of one image in folders, case or suffix means that image, if no other name is its
        own. Unknown images get ids: their own number, or the next free one in the order of their names. Raises
        UserError for unknown images if the pool is ``closed``, and for a name that may be several images.
        """
        named = {image: self._paths.get(image, image) if isinstance(image, int) else image for image in images}
        strange = [name for image, name in named.items() if _is_text(name) and self.find(image) is None]
        for name, image_id in same_photos(strange, self.records.values()).items():
            self._also.add(name, image_id)
        own = {image: self.find(image) for image in images}
        strange = [named[image] for image, found in own.items() if found is None]
        taken = set(own.values())
        try:
            self.otherwise = self._names().named_otherwise(
                filter(_is_text, strange), lambda record: record.id not in taken
            )
        except UserError as error:
            raise UserError(f"{file}: {error}, or list the images with --images") from None
        unknown = sorted({i for i in images if self.find(i) is None}, key=lambda i: (isinstance(i, str), i))
        if unknown and closed:
            raise UserError(
                f"{file}: {len(unknown)} of its images are not among --images, such as {unknown[0]!r}. Use the same "
                "names, or omit --images"
            )
        for image in unknown:
            free = max(self.records, default=0) + 1
            number = image if isinstance(image, int) and image not in self.records else free
            self.add(ImageRecord(number, str(named[image]), 0, 0), given=number == image)
        placed: dict[int, list[Image]] = {}
        for image in images:
            image_id = self.find(image)
            assert image_id is not None
            placed.setdefault(image_id, []).append(image)
        return placed

    def add_images(self, path: Path, notes: list[str]) -> None:
        """Add the images of a folder, a text file of paths or a COCO file.

        Images known by content or name keep their ids.
        """
        every: Sequence[ListedImage] = ()
        if path.is_dir() or is_list(path):
            unreadable: list[UnreadableImage] = []
            listed: list[tuple[int | None, str, int, int]] = []
            for _, place in named_images(path):
                try:
                    width, height, _ = (0, 0, 1) if is_url(place) else image_size(place)
                    listed.append((None, str(place), width, height))
                except UnreadableImage as error:
                    unreadable.append(error)
            notes += filter(None, (left_out(path), not_read(path)) if path.is_dir() else ())
            if unreadable and not listed:
                raise none_readable(path, unreadable)
            if unreadable:
                notes.append(f"{len(unreadable)} unreadable images are skipped, the first: {unreadable[0]}")
        else:
            listing, every = self._read(path)
            sized = [(i, i.size or (0, 0)) for i in listing.images]
            listed = [(i.id, str(i.path), size[0], size[1]) for i, size in sized]
        if not listed:
            raise UserError(f"{path} holds no image")
        same = self._same([name for _, name, _, _ in listed])
        own = {name: same[name] if name in same else self._names().by_path.find(name) for _, name, _, _ in listed}
        taken = set(own.values())

        def is_missing(record: ImageRecord) -> bool:
            return record.id not in taken and not is_url(record.path) and not os.path.exists(record.path)

        own |= self._names().named_otherwise([name for name, found in own.items() if found is None], is_missing)
        for image_id, name, width, height in listed:
            known = own[name]
            if known is None:
                free = max(self.records, default=0) + 1
                known = free if image_id is None or image_id in self.records else image_id
            elif self.records[known].path != name:
                self._also.add(self.records[known].path, known)
            self.add(ImageRecord(known, name, width, height), given=known == image_id)
        self._note_aliases(every)

    def _same(self, files: Sequence[str]) -> dict[str, int]:
        """The ids of the images that are these files; if several are one, of that with the same name."""
        same = same_photos(files, self.records.values())
        once: dict[int, str] = {}
        for file in sorted(same, key=lambda file: PurePath(file).name != PurePath(self.records[same[file]].path).name):
            once.setdefault(same[file], file)
        return {file: image_id for image_id, file in once.items()}

    def add_labels(self, path: Path, all_complete: bool) -> Given:
        """The labels from a store or a COCO file, whose images are added."""
        suffix = path.suffix.lower()
        if suffix in (".yaml", ".yml", ".txt", ".xml", ".csv"):
            raise UserError(f"{path} is not a COCO file. Name one, or the folder or store of a run or project")
        if path.is_dir() or suffix != ".json":
            return self._add_store(path)
        listing, every = self._read(path)
        listed: dict[int, ListedImage] = {}
        for image_id, image in zip(listings.own_numbers(listing.images), listing.images, strict=True):
            record = ImageRecord(image_id, str(image.path), *(image.size or (0, 0)))
            self.add(record, given=image.id is not None)
            listed[image_id] = replace(image, complete=True) if all_complete else image
        self._note_aliases(every)
        return Given(path, listed=listed, problems=listing.problems)

    def _read(self, path: Path) -> tuple[listings.Listing, Sequence[ListedImage]]:
        """A COCO file with one entry for each photo, whose classes are added, and all its entries."""
        listing, _ = coco.read(path)
        self._name_classes(path, listing)
        return joined(listing), listing.images

    def _note_aliases(self, images: Sequence[ListedImage]) -> None:
        """Make all numbers of a photo that is listed several times refer to one image."""
        own = {file_of(image): image.id for image in reversed(images) if image.id is not None}
        for image in images:
            if image.id is not None and (first := own[file_of(image)]) != image.id:
                self._aliases[image.id] = self._aliases.get(first, first)

    def _name_classes(self, path: Path, listing: listings.Listing) -> None:
        """Add the classes of a COCO file with their numbers. Raises UserError if another file uses other numbers."""
        self.classes = tuple(dict.fromkeys((*self.classes, *listing.classes)))
        self._numbered |= listing.numbers.items()
        self._ambiguous |= bool(listing.classes) and not listing.numbers
        for number, name in listing.categories.items():
            if self.categories.setdefault(number, name) != name:
                raise UserError(
                    f"{path}: category {number} is {name!r} here and {self.categories[number]!r} in the other COCO "
                    "file. Both must use the same numbers"
                )

    def _add_store(self, path: Path) -> Given:
        with open_store(path) as store:
            self.classes, self.project = store.classes(), store.session()
            self._numbered |= set(enumerate(self.classes))
            self._ambiguous |= store.counts_as().tolist() != [*range(len(self.classes))]  # exports number the rest anew
            images = store.images()
            for record in images.values():
                self.add(record, internal=True)
            stored = {
                i: Labelled(
                    one.boxes, [self.classes[int(c)] for c in one.labels], one.rejected, one.skipped, one.complete
                )
                for i, one in store.labels().items()
            }
            return Given(path, {i: (one, (images[i].width, images[i].height)) for i, one in stored.items()})

    def fitted(self, given: Given, notes: list[str]) -> dict[int, Labelled]:
        """The labels in the images' own pixels, since their file may give another size.

        Those of a COCO file are judged as in every other command. Raises UserError if none of its objects is usable.
        """
        problems = [*given.problems]
        fitted = {
            image_id: _labelled(image, fitting.fitted(image, self._size(image_id), problems))
            for image_id, image in given.listed.items()
        }
        lost = [problem for problem in problems if problem.kind in listings.OBJECT_LOST]
        if not any(len(boxes) for one in fitted.values() for boxes in (one.boxes, one.rejected, one.skipped)):
            listings.refuse_lost(given.source, lost)
        if lost:
            notes.append(
                f"{len(lost)} objects of the labels cannot be used, and their images do not count as fully labelled. "
                f"The first: {lost[0].where}: {lost[0].what}"
            )
        if ignored := [problem for problem in problems if problem.kind == listings.OPEN_BOXES]:
            notes.append(
                f"{given.source.name} holds questions that nobody has answered, on {counted(len(ignored), 'image')}. "
                "They do not count as labels"
            )
        unknown = all(image.complete is None for image in given.listed.values())
        if unknown and not all(one.complete for one in fitted.values()):
            notes.append(
                f"{given.source.name} does not say which images are fully labelled, so all count as partially labelled "
                "and their boxes may be listed. If all are fully labelled, add --labels-complete"
            )
        other: list[str] = []
        for image_id, (one, drawn) in given.stored.items():
            size = self._size(image_id)
            factors = rescaling(drawn, size[:2]) if size else np.ones(4)
            if factors is None:
                other.append(self.records[image_id].path)
            else:
                columns = {name: as_boxes(getattr(one, name) * factors) for name in ("boxes", "rejected", "skipped")}
                fitted[image_id] = replace(one, **columns)
        if other:
            notes.append(
                f"the labels of {len(other)} images are for pictures of another shape, cropped or rotated. They are "
                f"skipped; the first is {other[0]}"
            )
        return fitted

    def _size(self, image_id: int) -> Size | None:
        """The size of an image, upright; None if it is unknown."""
        record = self.records[image_id]
        return (record.width, record.height, 1) if record.width else None


def _is_text(name: Image) -> TypeGuard[str]:
    return isinstance(name, str)


def _labelled(image: ListedImage, labels: fitting.Fitted) -> Labelled:
    """The labels of a COCO file's image: pseudo boxes are dropped, rejected boxes stay rejected, difficult ones count
    as skipped."""
    rejected = np.array([box.source == Source.REJECTED for box in labels.listed], dtype=bool)
    difficult = np.array([box.difficult for box in labels.listed], dtype=bool)
    pseudo = np.array([box.source == Source.PSEUDO for box in labels.listed], dtype=bool)
    human = ~(rejected | difficult | pseudo)
    whole = not labels.incomplete and not any(box.crowd for box in labels.listed)
    return Labelled(
        labels.boxes[human],
        [box.name for box, by_person in zip(labels.listed, human, strict=True) if by_person],
        labels.boxes[rejected],
        labels.boxes[difficult],
        bool(image.complete) and labels.labelled and whole,
    )


def image_labels(said: Labelled, classes: Sequence[str]) -> ImageLabels:
    """Labels with class names as labels with indices into ``classes``."""
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name] for name in said.names], dtype=np.int64)
    return ImageLabels(said.boxes, labels, said.rejected, said.skipped, said.complete)
