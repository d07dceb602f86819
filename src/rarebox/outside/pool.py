"""The images that detections from outside are about: their ids, how files name them, what is labelled of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox import data
from rarebox.data import coco
from rarebox.data.detections import FARTHEST, Image
from rarebox.data.images import UnreadableImage, image_files, image_size
from rarebox.errors import UserError
from rarebox.naming import ByName
from rarebox.run_folder import open_store
from rarebox.store import ImageLabels
from rarebox.types import Floats, ImageRecord, Source, as_boxes


@dataclass(frozen=True, eq=False)
class Said:
    """What is labelled of one image, by class names."""

    boxes: Floats
    names: Sequence[str]
    rejected: Floats
    skipped: Floats
    complete: bool


class Pool:
    """The images, by id, and how files name them; the classes that files name, and by which numbers."""

    def __init__(self) -> None:
        self.records: dict[int, ImageRecord] = {}
        self.classes: tuple[str, ...] = ()
        self.categories: dict[int, str] = {}
        self._by_name = ByName[int]()

    def add(self, record: ImageRecord) -> None:
        """Make an image known, or know its size now."""
        if record.id not in self.records:
            self._by_name.add(record.path, record.id)
        self.records[record.id] = record

    def find(self, image: Image) -> int | None:
        """The id of an image that a file names, by its number or by the end of its path; None if it is unknown.

        UserError where several images end alike.
        """
        if isinstance(image, int):
            return image if image in self.records else None
        return self._by_name.find(image)

    def place(self, images: Sequence[Image], file: Path, closed: bool) -> dict[int, list[Image]]:
        """The id of every image of a file, with the names that the file has for it.

        Unknown ones get ids: their own numbers, or, in the order of their names, the next ones that are free; where
        the pool is ``closed`` they are an error.
        """
        unknown = sorted({i for i in images if self.find(i) is None}, key=lambda i: (isinstance(i, str), i))
        if unknown and closed:
            raise UserError(
                f"{file}: {len(unknown)} of its images are not among --images, the first is {unknown[0]!r}; name the "
                "images as there, or leave --images out"
            )
        for image in unknown:
            free = max(self.records, default=0) + 1
            self.add(ImageRecord(image if isinstance(image, int) else free, str(image), 0, 0))
        placed: dict[int, list[Image]] = {}
        for image in images:
            image_id = self.find(image)
            assert image_id is not None
            placed.setdefault(image_id, []).append(image)
        return placed

    def add_images(self, path: Path, notes: list[str]) -> None:
        """The images of a folder, or of a COCO file; those known by name keep their ids."""
        if path.is_dir():
            unreadable = []
            listed: list[tuple[int | None, str, int, int]] = []
            for place in image_files(path):
                try:
                    width, height, _ = image_size(place)
                    listed.append((None, str(place), width, height))
                except UnreadableImage as error:
                    unreadable.append(error)
            if unreadable:
                notes.append(f"{len(unreadable)} images cannot be read and are left out, the first: {unreadable[0]}")
        else:
            listing, _ = coco.read(path)
            self._name_classes(path, listing)
            sized = [(i, i.size or (0, 0)) for i in listing.images]
            listed = [(i.id, str(i.path), size[0], size[1]) for i, size in sized]
        if not listed:
            raise UserError(f"{path} holds no image")
        for image_id, name, width, height in listed:
            known = self.find(name)
            if known is None:
                free = max(self.records, default=0) + 1
                known = free if image_id is None or image_id in self.records else image_id
            self.add(ImageRecord(known, name, width, height))

    def add_labels(self, path: Path, all_complete: bool, notes: list[str]) -> dict[int, Said]:
        """What is labelled, by image id, from a store or a COCO file; its images become known."""
        if path.is_dir() or path.suffix != ".json":
            return self._add_store(path)
        listing, _ = coco.read(path)
        self._name_classes(path, listing)
        said: dict[int, Said] = {}
        for image_id, image in zip(data.own_numbers(listing.images), listing.images, strict=True):
            self.add(ImageRecord(image_id, str(image.path), *(image.size or (0, 0))))
            said[image_id] = _said(image, all_complete)
        partly = sum(not one.complete for one in said.values())
        if partly and not any(image.complete is not None for image in listing.images):
            notes.append(
                f"{path.name} does not say which images are labelled completely: all count as partly labelled, so "
                "boxes of theirs may be asked about; --labels-complete says that all are"
            )
        return said

    def _name_classes(self, path: Path, listing: data.Listing) -> None:
        """Take over the classes of a COCO file, and their numbers; UserError if another file numbers them otherwise."""
        self.classes = tuple(dict.fromkeys((*self.classes, *listing.classes)))
        for number, name in coco.categories(path).items():
            if self.categories.setdefault(number, name) != name:
                raise UserError(
                    f"{path}: category {number} is {name!r} here and {self.categories[number]!r} in the other COCO "
                    "file; both must number the classes alike"
                )

    def _add_store(self, path: Path) -> dict[int, Said]:
        with open_store(path) as store:
            self.classes = store.classes()
            for record in store.images().values():
                self.add(record)
            return {
                i: Said(one.boxes, [self.classes[c] for c in one.labels], one.rejected, one.skipped, one.complete)
                for i, one in store.labels().items()
            }


def _said(image: data.ListedImage, all_complete: bool) -> Said:
    """Boxes of a COCO file as labels: pseudo labels are none, rejected boxes stay rejected, difficult ones are not
    asked about."""

    def boxes(wanted: Callable[[data.ListedBox], bool]) -> Floats:
        return _with_area(np.array([b.box for b in image.boxes if wanted(b)], dtype=np.float64).reshape(-1, 4))

    def human(box: data.ListedBox) -> bool:
        return not box.difficult and box.source not in (Source.PSEUDO, Source.REJECTED)

    kept = [b for b in image.boxes if human(b) and len(_with_area(np.array([b.box])))]
    return Said(
        as_boxes([b.box for b in kept]),
        [b.name for b in kept],
        boxes(lambda b: b.source == Source.REJECTED),
        boxes(lambda b: b.difficult),
        all_complete or bool(image.complete),
    )


def _with_area(boxes: Floats) -> Floats:
    """Those boxes (N, 4) that are places of an image and have an area as ``float32``."""
    boxes = boxes[(np.abs(boxes) < FARTHEST).all(axis=1)].astype(np.float32)
    return as_boxes(boxes[(boxes[:, 2:] > boxes[:, :2]).all(axis=1)])


def image_labels(said: Said, classes: Sequence[str]) -> ImageLabels:
    number = {name: label for label, name in enumerate(classes)}
    labels = np.array([number[name] for name in said.names], dtype=np.int64)
    return ImageLabels(said.boxes, labels, said.rejected, said.skipped, said.complete)
