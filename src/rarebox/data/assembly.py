"""Data sets from what readers have found: with ids, class indices, and only what fits the image files."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from rarebox.core.files import real
from rarebox.data.contents import Contents
from rarebox.data.fitting import fitted
from rarebox.data.images import UnreadableImage, content_of, image_size, read_image, readers
from rarebox.data.listings import (
    NOT_USED,
    OWN_OUTPUT,
    Dataset,
    ListedImage,
    Listing,
    Problem,
    ReadProgress,
    Size,
    Split,
    own_numbers,
    refuse_lost,
)
from rarebox.data.naming import ByName
from rarebox.data.remote import is_url, location
from rarebox.errors import UserError
from rarebox.types import Bools, Floats, GroundTruth, ImageRecord, Source


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
    train, test = joined(train), test and joined(test)
    splits = [train, test] if test else [train]
    for listing in splits:
        if not listing.images:
            which = "training" if listing is train else "test"
            own = next((problem.what for problem in listing.problems if problem.kind == OWN_OUTPUT), "")
            advice = own or "Add some, or choose another data set."
            raise UserError(f"{listing.source} lists no {which} images. {advice}")
    problems = [problem for listing in splits for problem in listing.problems]
    classes = tuple(dict.fromkeys(name for listing in splits for name in listing.classes))
    if not classes:
        refuse_lost(train.source, [problem for problem in problems if problem.kind == "box dropped"])
        raise UserError(f"{train.source} has no classes. Label at least one object.")
    for name in classes:
        if name not in train.classes:
            problems.append(Problem("class only in test", str(splits[-1].source), f"{name!r} has no training label."))
    problems += _listed_twice([image for listing in splits for image in listing.images])
    train_ids, test_ids = _numbers(train.images, test.images if test else ())
    every = [image for listing in splits for image in listing.images]
    sizes = _sizes([image.path for image in every], check_pixels, read)
    problems += _changed_since(every)
    for_training = _split(train, sizes[: len(train_ids)], train_ids, classes, problems)
    for_test = _split(test, sizes[len(train_ids) :], test_ids, classes, problems) if test else None
    if not any(len(truth) for truth in for_training.truth.values()):
        refuse_lost(train.source, problems)
    name = root.stem if root.is_file() else root.name
    return Dataset(name, root, classes, for_training, for_test, tuple(problems))


def usable(dataset: Dataset) -> Dataset:
    """The part of a data set that a simulation can use: the images whose objects are all known.

    On other images a correct box would count as wrong, and a dropped object would train as background. These images are
    reported as problems. Raises `UserError` if no training image with an object is left, or if the data set has test
    images and none with an object is left.
    """
    problems = list(dataset.problems)
    train, test = (split and _complete_only(split, problems) for split in (dataset.train, dataset.test))
    assert train is not None
    for which, split in (("training", train), ("test", test)):
        if split and not any(len(truth) for truth in split.truth.values()):
            kinds = Counter(problem.kind for problem in problems)
            counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common()) or "there are no labels"
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
                problems.append(Problem("labels match no single photo", str(path), what))
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
            problems += [
                Problem("labels match no single photo", str(path), what) for path in (missing if own else paths)
            ]
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


def file_of(image: ListedImage) -> str:
    """What the entries of one photo have in common: its path without links and detours, or its URL."""
    path = str(image.path)
    return path if is_url(path) else str(real(path))


def joined(listing: Listing) -> Listing:
    """The listing with one entry for each file, which has the boxes of all its entries.

    An object that one of several entries lacks would be background there.
    """
    entries: dict[str, list[ListedImage]] = {}
    for image in listing.images:
        entries.setdefault(file_of(image), []).append(image)
    images: list[ListedImage] = []
    problems = list(listing.problems)
    for first, *others in entries.values():
        same = [one for one in others if (one.size, one.relative) == (first.size, first.relative)]
        if others:
            what = f"it is listed {1 + len(others)} times. The boxes of its entries are joined."
            problems.append(Problem("image listed twice", str(first.path), what))
            said = {one.complete for one in (first, *same)}
            first = replace(
                first,
                boxes=[box for one in (first, *same) for box in one.boxes],
                complete=False if False in said else None if None in said else True,
                lost=any(one.lost for one in (first, *same)) or len(same) < len(others),
                labelled=any(one.labelled for one in (first, *same)),
                guesses=[guess for one in (first, *same) for guess in one.guesses],
            )
            if any(one.boxes for one in others if one not in same):
                what = "it is listed in several sizes. The boxes of entries in other sizes than the first are dropped."
                problems.append(Problem("image size differs", str(first.path), what))
        images.append(first)
    return replace(listing, images=images, problems=problems)


def _listed_twice(images: Sequence[ListedImage]) -> list[Problem]:
    times = Counter(location(image.path) for image in images)
    return [
        Problem("image listed twice", path, "it is in both splits, so the test result is too high.")
        for path, n in times.items()
        if n > 1
    ]


def _changed_since(images: Sequence[ListedImage]) -> list[Problem]:
    """A problem for each photo whose content is no longer what was labelled, as far as known."""
    said = [one for one in images if one.content and (one.boxes or one.complete) and not is_url(one.path)]
    contents = Contents()
    contents.read([str(image.path) for image in said])
    what = "it has changed since it was labelled, so its labels may not fit. Check them, or restore the photo."
    return [
        Problem("photo changed", str(image.path), what)
        for image in said
        if contents.of(image.path) not in (image.content, None)
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
    rejected: dict[int, Floats] = {}
    turned: list[str] = []
    for image, id, size in zip(listing.images, ids, sizes, strict=True):
        if isinstance(size, UnreadableImage):
            kind = "unreadable image" if is_url(image.path) or os.path.isfile(image.path) else "missing image file"
            problems.append(Problem(kind, str(image.path), f"{size.reason}. The image is skipped."))
            continue
        record = ImageRecord(id, location(image.path), size[0], size[1])
        images.append(record)
        labels = fitted(image, size, problems)
        if labels.doubtful:
            turned.append(record.path)
        objects = np.array([box.source != Source.REJECTED for box in labels.listed], dtype=bool)
        listed = [box for box in labels.listed if box.source != Source.REJECTED]
        names, difficult = np.array([number[box.name] for box in listed]), np.array([box.difficult for box in listed])
        truth[id] = GroundTruth(labels.boxes[objects], names, difficult)
        unsure[id] = np.array([box.crowd or box.source == Source.PSEUDO for box in listed], dtype=bool)
        if not objects.all():
            rejected[id] = labels.boxes[~objects]
        if labels.incomplete:
            incomplete.add(id)
        if not labels.labelled:
            unlabelled.add(id)
    if turned:
        what = (
            f"{len(turned)} labelled images have an EXIF rotation, and their labels fit with and without it. They are "
            "assumed to be drawn on the upright photo. Check one."
        )
        problems.append(Problem("EXIF rotation", turned[0], what))
    if not images:
        last = problems[-1]
        raise UserError(
            f"{listing.source}: none of its {len(listing.images)} images can be read, for example {last.where} "
            f"({last.kind}: {last.what}) Put the image files where the labels expect them."
        )
    return Split(tuple(images), truth, frozenset(incomplete), frozenset(unlabelled), unsure, rejected)


def _probe(path: Path | str, check_pixels: bool) -> Size | UnreadableImage:
    try:
        with content_of(path) as content:
            if check_pixels:
                read_image(path, content)
            return image_size(path, content)
    except UnreadableImage as error:
        return error
