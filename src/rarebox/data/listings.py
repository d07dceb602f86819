"""What label files contain, and which of it can be used: the rules that all formats share.

A reader (``coco``, ``voc``, ``yolo``) only parses. It returns the content of the label files as `Listing`s. This module
decides what can be used, and lists everything else as a `Problem`.
"""

import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rarebox.core.boxes import clip, hull_of_turned, rescaling
from rarebox.core.parsing import from_json
from rarebox.core.text import read_text
from rarebox.data.images import SIDEWAYS, UnreadableImage, content_of, image_size, read_image, readers
from rarebox.data.naming import ByName, clean
from rarebox.data.narrow import Object, as_float, as_list, as_object, is_object
from rarebox.data.remote import is_url, location
from rarebox.errors import UserError, presentable
from rarebox.types import Bools, Floats, GroundTruth, ImageRecord, Source

__all__ = [
    "EXPORT_MARK",
    "Dataset",
    "ListedBox",
    "ListedImage",
    "Listing",
    "Problem",
    "Split",
    "assemble",
    "usable",
]

EXPORT_MARK = "rarebox.json"  # a file in every folder that rarebox has exported
_LARGEST_ID = 2**53  # the largest integer that every JSON reader holds exactly
_LARGEST_SHARE = 1.001  # of an image's side, with some rounding

NOT_USED = "image not used"
"""The kind of the problems that list the images a simulation skips."""


@dataclass(frozen=True)
class Problem:
    """One thing in the data that was skipped, clipped or dropped, or should be checked.

    ``kind`` is a short name to count by, such as "box clipped". ``where`` is the file and the line or entry in it.
    ``what`` says what is wrong there and what happened to it, in sentences that follow ``where`` and a colon.
    """

    kind: str
    where: str
    what: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", presentable(self.where))
        object.__setattr__(self, "what", presentable(self.what))


@dataclass(frozen=True, eq=False)
class Split:
    """Readable images in listed order, and the objects of each image id (0 rows if it shows none).

    ``incomplete`` are the ids of images with objects that ``truth`` lacks: a box was dropped, or the labels say that
    some are missing. The area outside the boxes of these images is not background. ``unlabelled`` are images that no
    label file mentions: in a finished data set they show no object, otherwise they are not labelled yet. ``unsure``
    marks the rows of truth that no person drew around a single object: crowds, which are also difficult, and boxes of
    a model.
    """

    images: tuple[ImageRecord, ...]
    truth: Mapping[int, GroundTruth]
    incomplete: frozenset[int] = frozenset()
    unlabelled: frozenset[int] = frozenset()
    unsure: Mapping[int, Bools] = field(default_factory=dict[int, Bools])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready for use, and the ``problems`` found in its files.

    Image ids are unique across both splits; labels are indices into ``classes``.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    test: Split | None
    problems: tuple[Problem, ...]


class ListedBox(NamedTuple):
    """A box as a label file has it: x1, y1, x2, y2, which may be any numbers, and ``where`` it is in the file.

    ``source`` is the origin of the box, a `Source`, or empty if the file does not say. ``crowd``: the box is around
    several objects.
    """

    box: tuple[float, float, float, float]
    name: str
    difficult: bool
    where: str
    source: str = ""
    crowd: bool = False


def upright(box: Sequence[float], attributes: Object) -> tuple[float, float, float, float]:
    """The upright box around a box whose attributes may turn it about its centre: x1, y1, x2, y2 in pixels.

    ``rotation`` is in degrees, as CVAT writes it beside the unturned box. Raises ``ValueError`` for a rotation that is
    not finite, and for an ``angle`` or ``theta`` that may be in radians. A value that is not a number is ignored.
    """
    for name in ("rotation", "angle", "theta"):
        value = attributes.get(name)
        try:
            turn = as_float(value or 0)
        except (TypeError, ValueError, OverflowError):
            continue
        if not math.isfinite(turn) or (name != "rotation" and 0 < abs(turn) <= 2 * math.pi):
            why = "may be in degrees or radians" if math.isfinite(turn) else "is not finite"
            raise ValueError(f"it is turned ({name} {value}), which {why}. Write the upright box around it.")
        if turn:
            x1, y1, x2, y2 = hull_of_turned(box, turn).tolist()
            return x1, y1, x2, y2
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2


def listed_size(width: object, height: object, where: str, problems: list[Problem]) -> tuple[int, int] | None:
    """The (width, height) in pixels of an image in a label file, from numbers or text; None if it has none.

    It has none if a side is absent or empty, or both are 0. Any other value that is not a size becomes a problem.
    """
    if {None, ""}.intersection(side for side in (width, height) if isinstance(side, str | None)):
        return None
    try:
        said = [as_float(side) for side in (width, height)]
        size = (round(said[0]), round(said[1]))
        if min(size) < 1 and any(said):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = f"{width!r:.30} x {height!r:.30} is not a size. The boxes are taken as pixels of the image file."
        problems.append(Problem("size in labels is wrong", where, what))
        return None
    return size if any(said) else None


@dataclass(frozen=True, eq=False)
class ListedImage:
    """An image as a label file lists it.

    ``path`` is a file or a URL. ``size`` is the listed (width, height) in pixels, if any. With ``relative`` the boxes
    are in fractions of the image's sides, otherwise in 0-based pixels. ``complete``: whether every object has a box;
    None if unknown. ``lost``: the file lists an object that cannot be used and is not among the ``boxes``.
    ``labelled``: whether the image has labels at all.
    """

    path: Path | str
    boxes: Sequence[ListedBox] = ()
    id: int | None = None
    size: tuple[int, int] | None = None
    relative: bool = False
    complete: bool | None = None
    lost: bool = False
    labelled: bool = True


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader has found for one split. ``source`` is the file or folder that lists it.

    ``categories`` are the class names by the numbers of a COCO file; other formats have none. ``numbers`` are the class
    names by the numbers from 0 that a detector trained on the labels writes; empty if these are ambiguous. Class names
    that some format cannot hold are cleaned (:func:`rarebox.data.naming.clean`), and become a problem.
    """

    source: Path
    classes: Sequence[str]
    images: Sequence[ListedImage]
    problems: list[Problem] = field(default_factory=list[Problem])
    categories: Mapping[int, str] = field(default_factory=dict[int, str])
    numbers: Mapping[int, str] = field(default_factory=dict[int, str])

    def __post_init__(self) -> None:
        named = dict.fromkeys([*self.classes, *(box.name for image in self.images for box in image.boxes)])
        as_cleaned = {name: clean(name) or "unnamed" for name in named}
        changed = {name: cleaned for name, cleaned in as_cleaned.items() if name != cleaned}
        if not changed:
            return
        for name, cleaned in changed.items():
            what = f"files cannot hold the class name {name!r}. It becomes {cleaned!r}."
            self.problems.append(Problem("class name cleaned", str(self.source), what))
        images = [
            replace(image, boxes=[box._replace(name=as_cleaned[box.name]) for box in image.boxes])
            for image in self.images
        ]
        object.__setattr__(self, "classes", list(dict.fromkeys(as_cleaned[name] for name in self.classes)))
        object.__setattr__(self, "images", images)
        for numbered in ("categories", "numbers"):
            names: Mapping[int, str] = getattr(self, numbered)
            object.__setattr__(self, numbered, {key: as_cleaned[name] for key, name in names.items()})


@dataclass(frozen=True)
class Numbers:
    """What numbers mean that a detector trained on a data set writes.

    ``classes`` are the names by number from 0, which may have gaps and repeat a name. ``categories`` are the classes by
    category number, ``images`` the paths by image id. All are empty if the format has no numbers.
    """

    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    categories: Mapping[int, str] = field(default_factory=dict[int, str])
    images: Mapping[int, str] = field(default_factory=dict[int, str])


def agreed(numbered: Collection[tuple[int, str]]) -> dict[int, str]:
    """The names by rising number, from pairs; empty if two names have one number."""
    names = dict(sorted(numbered))
    return names if all(names[number] == name for number, name in numbered) else {}


Reader = Callable[[], tuple[Listing, Listing | None]]
"""Reads the training and the test images of a data set; a format's ``find`` returns one, or None for other formats."""

ReadProgress = Callable[[int, int], None]
"""Called with (number of images read, number of images)."""

Size = tuple[int, int, int]
"""Width and height of an upright image, and the EXIF orientation of its file."""


def assemble(
    root: Path,
    train: Listing,
    test: Listing | None = None,
    *,
    check_pixels: bool = False,
    read: ReadProgress = lambda done, of: None,
    photos: Sequence[str | Path] = (),
) -> Dataset:
    """A data set from what a reader has found: with ids, class indices, and only what fits the image files.

    Images that are missing where the labels expect them are looked up among ``photos`` by name. Raises `UserError` if
    no image, no class or no object is left.
    """
    if photos:
        train, test = _found_among(photos, train, test), None
    splits = [train, test] if test else [train]
    for listing in splits:
        if not listing.images:
            which = "training" if listing is train else "test"
            raise UserError(f"{listing.source} lists no {which} images. Add some, or choose another data set.")
    problems = [problem for listing in splits for problem in listing.problems]
    classes = tuple(dict.fromkeys(name for listing in splits for name in listing.classes))
    if not classes:
        _refuse_lost(train, [problem for problem in problems if problem.kind == "box dropped"])
        raise UserError(f"{train.source} names no class. Label at least one object.")
    for name in classes:
        if name not in train.classes:
            problems.append(Problem("class only in test", str(splits[-1].source), f"{name!r} has no training label."))
    problems += _listed_twice([image for listing in splits for image in listing.images])
    train_ids, test_ids = _numbers(train.images, test.images if test else ())
    sizes = _sizes([image.path for listing in splits for image in listing.images], check_pixels, read)
    for_training = _split(train, sizes[: len(train_ids)], train_ids, classes, problems)
    for_test = _split(test, sizes[len(train_ids) :], test_ids, classes, problems) if test else None
    if not any(len(truth) for truth in for_training.truth.values()):
        _refuse_lost(train, problems)
    name = root.stem if root.is_file() else root.name
    return Dataset(name, root, classes, for_training, for_test, tuple(problems))


def usable(dataset: Dataset) -> Dataset:
    """The part of a data set that a simulation can use: the images whose objects are all known.

    On other images a correct box would count as wrong, and a dropped object would train as background. These images
    become problems. Raises `UserError` if no training image with an object is left, or if the data set has test images
    and none with an object is left.
    """
    problems = list(dataset.problems)
    train, test = (split and _complete_only(split, problems) for split in (dataset.train, dataset.test))
    assert train is not None
    for which, split in (("training", train), ("test", test)):
        if split and not any(len(truth) for truth in split.truth.values()):
            kinds = Counter(problem.kind for problem in problems)
            counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()) or "no label names one"
            also = ", or remove the test images to hold out training images instead" if split is test else ""
            raise UserError(
                f"{dataset.root}: no {which} image has an object that can be used ({counts}). Correct the labels{also}."
            )
    return replace(dataset, train=train, test=test, problems=tuple(problems))


def _complete_only(split: Split, problems: list[Problem]) -> Split:
    for image in split.images:
        if image.id in split.incomplete:
            what = "it has an object without a usable box. A simulation skips the image."
            problems.append(Problem(NOT_USED, image.path, what))
    images = tuple(image for image in split.images if image.id not in split.incomplete)
    return replace(split, images=images, truth={image.id: split.truth[image.id] for image in images})


def _found_among(photos: Sequence[str | Path], train: Listing, test: Listing | None) -> Listing:
    """Both listings as one. Images that are missing where the labels expect them are replaced by photos of that name.

    If a photo's name fits several missing images, it is unknown which labels belong to it, so none of them are used.
    """
    by_name = ByName[str | Path]()
    for photo in photos:
        by_name.add(location(photo), photo)
    listings = [train, test] if test else [train]
    images = [image for listing in listings for image in listing.images]
    problems = [problem for listing in listings for problem in listing.problems]
    there = {image.path: is_url(image.path) or os.path.isfile(image.path) for image in images}
    named: dict[str | Path, list[str | Path]] = {}  # photo -> the images that have its name
    for path, found in there.items():
        try:
            photo = by_name.match(location(path))
        except UserError as error:
            if not found:
                what = f"several photos have that name: {error}. Its labels are skipped."
                problems.append(Problem("labels of no photo", str(path), what))
            continue
        if photo is not None:
            named.setdefault(photo, []).append(path)
    instead: dict[str | Path, str | Path] = {}
    nobody: set[str | Path] = set()
    for photo, paths in named.items():
        missing = [path for path in paths if not there[path]]
        own = any(location(path) == location(photo) for path in paths)
        if missing and len(paths) == 1:
            instead[missing[0]] = photo
        elif missing:
            nobody.update(missing if own else paths)
            what = f"{len(paths)} labelled images have the name of {photo}. Its labels are skipped."
            problems += [Problem("labels of no photo", str(path), what) for path in (missing if own else paths)]
    return Listing(
        train.source,
        list(dict.fromkeys(name for listing in listings for name in listing.classes)),
        [
            replace(image, boxes=(), labelled=False, lost=True)
            if image.path in nobody
            else replace(image, path=instead.get(image.path, image.path))
            for image in images
        ],
        problems,
    )


def _refuse_lost(listing: Listing, problems: Sequence[Problem]) -> None:
    """Raise `UserError` if a listing has objects and none of them can be used."""
    lost = [problem for problem in problems if problem.kind in OBJECT_LOST]
    if lost:
        raise UserError(
            f"{listing.source}: none of its objects can be used ({len(lost)} problems). The first: {lost[0].where}: "
            f"{lost[0].what} Correct the labels, or export them again."
        )


OBJECT_LOST = (
    "box dropped",
    "unknown category",
    "annotation without image",
    "several label files",
    "ambiguous annotation",
    "image size differs",
    "image turned by EXIF",
)
"""The kinds of problems in which an object loses its box."""


def export_mark(folder: Path) -> Object:
    """The content of ``rarebox.json`` if rarebox has exported this folder, else an empty object."""
    try:
        return as_object(from_json(read_text(folder / EXPORT_MARK)))
    except (OSError, ValueError, UserError):
        return {}


def exported_complete(mark: Object) -> Mapping[str, bool]:
    """File name of each image of an export -> whether it is fully labelled."""
    entries = as_object(mark.get("images")).items()
    return {name: bool(entry.get("complete")) for name, entry in entries if is_object(entry)}


def exported_pseudo(mark: Object) -> Mapping[str, Collection[str]]:
    """File name of each image of an export -> the lines of its pseudo labels, in formats without a field for them."""
    entries = as_object(mark.get("images")).items()
    return {name: {str(line) for line in as_list(entry.get("pseudo"))} for name, entry in entries if is_object(entry)}


def _listed_twice(images: Sequence[ListedImage]) -> list[Problem]:
    times = Counter(location(image.path) for image in images)
    return [
        Problem(
            "image listed twice", path, f"it is listed {n} times. If it is in both splits, the test result is too high."
        )
        for path, n in times.items()
        if n > 1
    ]


def _numbers(train: Sequence[ListedImage], test: Sequence[ListedImage]) -> tuple[Sequence[int], Sequence[int]]:
    """The ids of all listed images: those of the file if possible. Test ids are shifted if they collide with train's.

    Images that are dropped later are counted, so that an id does not depend on which files can be read.
    """
    first, second = own_numbers(train), own_numbers(test)
    if set(first) & set(second):
        shift = max(first) + 1 - min(second)
        second = [number + shift for number in second]
    return first, second


def own_numbers(images: Sequence[ListedImage]) -> Sequence[int]:
    """The ids that a file gives its images if they are distinct whole numbers, else 1, 2, and so on."""
    own = [image.id for image in images if image.id is not None and 0 <= image.id < _LARGEST_ID]
    return own if len(set(own)) == len(images) else range(1, len(images) + 1)


def _sizes(paths: Sequence[Path | str], check_pixels: bool, read: ReadProgress) -> list[Size | UnreadableImage]:
    """The size of each image file, or why it cannot be read."""
    sizes: list[Size | UnreadableImage] = []
    with ThreadPoolExecutor(readers(any(map(is_url, paths)))) as pool:
        for size in pool.map(partial(_probe, check_pixels=check_pixels), paths):
            sizes.append(size)
            read(len(sizes), len(paths))
    return sizes


def _split(
    listing: Listing,
    sizes: Sequence[Size | UnreadableImage],
    ids: Sequence[int],
    classes: Sequence[str],
    problems: list[Problem],
) -> Split:
    """The readable images of a listing with their usable boxes. Everything else goes to ``problems``."""
    number = {name: label for label, name in enumerate(classes)}
    images: list[ImageRecord] = []
    truth: dict[int, GroundTruth] = {}
    incomplete, unlabelled, unsure = set[int](), set[int](), dict[int, Bools]()
    turned: list[str] = []
    for image, id, size in zip(listing.images, ids, sizes, strict=True):
        if isinstance(size, UnreadableImage):
            kind = "unreadable image" if is_url(image.path) or os.path.isfile(image.path) else "missing image file"
            problems.append(Problem(kind, str(image.path), f"{size.reason}. The image is skipped."))
            continue
        record = ImageRecord(id, location(image.path), size[0], size[1])
        images.append(record)
        image = _fitted(_without_shares(image, size, problems), *size, problems)
        if _hides_its_turn(image, size[2]):
            turned.append(record.path)
        truth[id], kept = _truth(image, record, number, problems)
        guessed = np.array([box.source == Source.PSEUDO for box in kept], dtype=bool)
        unsure[id] = guessed | np.array([box.crowd for box in kept], dtype=bool)
        if image.lost or guessed.any() or len(kept) < len(image.boxes) or image.complete is False:
            incomplete.add(id)
        if not image.labelled:
            unlabelled.add(id)
    if turned:
        what = (
            f"{len(turned)} labelled images have an EXIF rotation, and their labels fit with and without it. They are "
            "taken as drawn on the upright photo. Check one."
        )
        problems.append(Problem("EXIF turn", turned[0], what))
    if not images:
        last = problems[-1]
        raise UserError(
            f"{listing.source}: none of its {len(listing.images)} images can be read, for example {last.where} "
            f"({last.kind}: {last.what}) Put the image files where the labels expect them."
        )
    return Split(tuple(images), truth, frozenset(incomplete), frozenset(unlabelled), unsure)


def _probe(path: Path | str, check_pixels: bool) -> Size | UnreadableImage:
    try:
        with content_of(path) as content:
            if check_pixels:
                read_image(path, content)
            return image_size(path, content)
    except UnreadableImage as error:
        return error


def _without_shares(image: ListedImage, size: Size, problems: list[Problem]) -> ListedImage:
    """The image without boxes that must be in fractions of its sides although the format has pixels.

    Fractions are at most 1, in any layout of a box. In pixels such a box would be at most one pixel large, in the
    corner of the image. Boxes of rarebox's exports, recognised by their source, are in pixels.
    """
    if image.relative or min(size[:2]) <= 2:
        return image
    kept: list[ListedBox] = []
    for box in image.boxes:
        x1, y1, x2, y2 = box.box
        ends, begins = max(x2, y2), max(x1, y1, x2 - x1, y2 - y1)
        ours = box.source in list(Source)
        if not ours and min(x2 - x1, y2 - y1) > 0 and min(ends, begins) <= _LARGEST_SHARE:
            what = (
                f"{list(box.box)} is not larger than the first pixel. "
                "If it is in fractions of the image's sides, write pixels."
            )
            problems.append(Problem("box dropped", box.where, what))
        else:
            kept.append(box)
    return replace(image, boxes=kept, lost=image.lost or len(kept) < len(image.boxes))


def _fitted(image: ListedImage, width: int, height: int, orientation: int, problems: list[Problem]) -> ListedImage:
    """The image with its boxes in pixels of the upright file, which may differ from the copy they were drawn on.

    The boxes are scaled if the aspect ratio is the same. Otherwise they are dropped, unless a box reaches out of the
    listed size and not out of the file: then only the size in the labels is wrong.
    """
    real = (width, height)
    if image.relative or image.size is None or image.size == real:
        return image
    listed, here, where = "{:g} x {:g}".format(*image.size), f"{width} x {height}", str(image.path)
    turned = orientation in SIDEWAYS and rescaling(image.size, (height, width)) is not None
    kind = "image turned by EXIF" if turned else "image size differs"
    if _reach_out(image, image.size) and not _reach_out(image, real):
        what = f"the labels say {listed}, but a box reaches beyond it. They are taken as drawn on the upright {here}."
        problems.append(Problem("size in labels is wrong", where, what))
        return image
    factors = rescaling(image.size, real)
    if factors is not None:
        what = f"the labels say {listed} pixels, the file has {here}. The boxes are scaled."
        problems.append(Problem("boxes scaled", where, what))
        return replace(image, boxes=[b._replace(box=tuple((np.array(b.box) * factors).tolist())) for b in image.boxes])
    why = "ignore its EXIF rotation" if turned else "belong to a cropped, rotated or different image"
    what = f"the labels say {listed}, but it is {here} upright, so they may {why}. They are skipped. Label it again."
    problems.append(Problem(kind, where, what))
    return replace(image, boxes=(), labelled=False, lost=True)


def _hides_its_turn(image: ListedImage, orientation: int) -> bool:
    """Whether the file has an EXIF rotation, and the labels fit with and without it."""
    if orientation == 1 or not image.boxes:
        return False
    return orientation not in SIDEWAYS or image.relative or image.size is None or image.size[0] == image.size[1]


def _reach_out(image: ListedImage, size: tuple[float, float]) -> bool:
    """Whether a box ends too far beyond a picture of that size to have been drawn on it."""
    return any(box[2] > 1.05 * size[0] + 1 or box[3] > 1.05 * size[1] + 1 for box, *_ in image.boxes)


def _truth(
    image: ListedImage, record: ImageRecord, number: Mapping[str, int], problems: list[Problem]
) -> tuple[GroundTruth, list[ListedBox]]:
    """The usable boxes of one image, in pixels, clipped to it; and the same boxes as listed."""
    sides = np.tile([record.width, record.height], 2) if image.relative else np.ones(4)
    with np.errstate(over="ignore"):  # a number too large for float32 becomes infinite and is dropped as such
        boxes = (np.array([b.box for b in image.boxes], dtype=np.float64).reshape(-1, 4) * sides).astype(np.float32)
    inside = clip(boxes, record.width, record.height)
    faults: dict[str, Bools] = {
        "it has a number that is not finite": ~np.asarray(np.isfinite(boxes).all(axis=1)),
        "its width or height is not positive": ~_has_area(boxes),
        f"it is outside the {record.width} x {record.height} image": ~_has_area(inside),
    }
    bad = np.any(list(faults.values()), axis=0)
    for row in np.flatnonzero(bad).tolist():
        fault = next(fault for fault, rows in faults.items() if rows[row])
        problems.append(Problem("box dropped", image.boxes[row].where, f"{boxes[row].tolist()}: {fault}."))
    for row in np.flatnonzero(~bad & (np.abs(boxes - inside) >= 1).any(axis=1)).tolist():  # less is rounding
        what = f"{boxes[row].tolist()} reaches out of the {record.width} x {record.height} image. It is clipped."
        problems.append(Problem("box clipped", image.boxes[row].where, what))
    kept = [b for b, dropped in zip(image.boxes, bad, strict=True) if not dropped]
    labels, difficult = np.array([number[b.name] for b in kept]), np.array([b.difficult for b in kept])
    return GroundTruth(inside[~bad], labels, difficult), kept


def _has_area(boxes: Floats) -> Bools:
    return np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
