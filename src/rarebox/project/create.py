"""Start a project from a folder of photos, with or without labels."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rarebox import config, settings_text
from rarebox.config import Settings
from rarebox.core.boxes import rescaling
from rarebox.core.files import PART, write_json, write_text
from rarebox.core.progress import Progress, silent
from rarebox.data import datasets, listings, tiles
from rarebox.data.classes import Classes, class_key
from rarebox.data.contents import Contents
from rarebox.data.image_list import each_once
from rarebox.data.images import SUFFIXES, files_below
from rarebox.data.naming import ByName
from rarebox.data.remote import is_list, is_url, listing, location, trust
from rarebox.errors import UserError
from rarebox.labels.leases import clean_name
from rarebox.labels.store import Store
from rarebox.loop import rules
from rarebox.loop.run_folder import RunFolder, answers_in, discard_store
from rarebox.project.photo_folder import NOT_READ, find_moved_images, photos_in, read_images
from rarebox.project.project import HELD_OUT
from rarebox.types import Answer, Bools, Floats, ImageRecord, Ints, Query, Verdict, as_boxes

IMPORTED = "import"
"""The author of imported labels."""


def create(
    root: Path,
    images: str | Path,
    classes: Sequence[str] = (),
    labels: Path | None = None,
    *,
    partial: bool = False,
    preset: str = "laptop",
    changes: Mapping[str, object] | None = None,
    progress: Progress = silent,
) -> list[listings.Problem]:
    """Create a project from the images below a folder or URL (:mod:`rarebox.data.remote`). Return the problems found.

    ``labels`` is a data set that :func:`rarebox.data.datasets.load` reads. Its labels of images with the same name are
    imported. An image counts as completely labelled, unless ``partial`` is set or an object of it was lost. Raises
    UserError if there is a project already, no image, or a folder of tiles that is not finished.

    If the folder holds a store with answers, such as a restored backup, the project adopts it unchanged.
    """
    settings = config.resolve(preset, None, {**config.PROJECT, "data": location(images), **(changes or {})})
    folder = RunFolder(root)
    if folder.settings.exists():
        raise UserError(f"there is a project in {root} already. Continue it with rarebox serve {root}")
    leftovers = [f"{folder.store.name}{end}" for end in ("", "-wal", "-shm", "-journal")]
    leftovers.append(f".{folder.store.name}.open")
    leftovers += [f"{file.name}{end}" for file in (folder.problems, folder.settings) for end in ("", PART)]
    leftovers += [lock.name for lock in folder.locks]
    place = folder.labels(settings)
    count = answers_in(place)
    if not count and root.exists() and any(file.name not in leftovers for file in root.iterdir()):
        raise UserError(f"{root} is not empty and holds no project. Name a new or empty folder")
    if count and labels:
        raise UserError(
            f"{place} holds {count} answers. Repeat the command without --labels to adopt it (an interrupted "
            "start has imported all of the labels or none)"
        )
    from_list = is_url(images) or (is_list(images) and Path(images).is_file())
    if not from_list and not Path(images).is_dir():
        raise UserError(f"{images} is not a folder. Name the folder of your images")
    if not from_list:
        tiles.read(Path(images))  # raises UserError if they are not all there
    if from_list:
        trust(images)
        progress("list", 0, 1, str(images))  # a server may be slow
        (files, again), unknown = each_once(listing(location(images), SUFFIXES)), []
        progress("list", 1, 1, str(images))
    else:
        files, again, unknown = photos_in(Path(images), root), [], files_below(images, NOT_READ)
    if count:
        return _take_over(folder, settings, list(classes))
    known = datasets.load(labels, photos=files) if labels else None
    problems = list(known.problems) if known else []
    names = _class_names([*(known.classes if known else ()), *classes], problems)
    digests, contents = dict[int, str](), Contents(folder.photos)
    records, unreadable = read_images(files, settings.detector.size, progress, digests=digests, contents=contents)
    problems += unreadable
    if again:
        what = f"{len(again)} lines of {images} name a photo that an earlier line names. It counts once."
        problems.append(listings.Problem("image listed twice", str(again[0]), what))
    own = [] if from_list else listings.written_by_rarebox(Path(images))
    problems += own
    if unknown:
        what = f"{len(unknown)} files of kinds that are not read. Convert them to JPEG (HEIC: phones can export it)"
        problems.append(listings.Problem("kind not read", str(unknown[0]), what))
    if not records:
        found = f"none of its images can be read ({unreadable[0].what})" if unreadable else "no image in it"
        advice = own[0].what.rstrip(".") if own else "Name a folder with photos (JPEG, PNG, TIFF, WebP, …)"
        raise UserError(f"{images}: {found}. {advice}")
    root.mkdir(parents=True, exist_ok=True)
    with folder.alone():
        discard_store(folder.store)  # left by an interrupted start
        with Store(place, classes=names) as store, store.transaction(writes=True):
            store.add_images(records, digests)
            if known:
                problems += _take_in(store, known, records, partial, settings.seed)
        write_json(folder.problems, [asdict(problem) for problem in problems])
        write_text(folder.settings, settings_text.commented(settings))
        contents.save()
    return problems


def _take_over(folder: RunFolder, settings: Settings, classes: Sequence[str]) -> list[listings.Problem]:
    """Resume with the store of a lost project. New photos are added when the project is served."""
    with folder.alone(), Store(folder.labels(settings)) as store:
        there = {class_key(name) for name in store.classes()}
        if lacking := [name for name in classes if class_key(name) not in there]:
            raise UserError(
                f"the existing store has the classes {', '.join(store.classes())}, but not {', '.join(lacking)}. "
                "Repeat the command without --classes to adopt it, and add classes on the page"
            )
        photos = Path(settings.data)
        missing = _not_found(store, photos, folder) if photos.is_dir() else []
        if missing and len(missing) == len(store.images()):
            raise UserError(
                f"none of the {len(missing)} photos of the store is in {photos}, {Path(missing[0]).name} for example. "
                "Name the folder in which they are."
            )
        write_text(folder.settings, settings_text.commented(settings))
    return [
        listings.Problem("photo not found", path, f"it is not in {photos}; its answers are kept") for path in missing
    ]


def _not_found(store: Store, photos: Path, folder: RunFolder) -> list[str]:
    """Find moved images, and return the paths of those that are missing."""
    find_moved_images(store, photos, folder)
    paths = [image.path for image in store.images().values()]
    return [path for path in paths if not is_url(path) and not os.path.isfile(path)]


def _class_names(names: Sequence[str], problems: list[listings.Problem]) -> list[str]:
    """Clean the class names and remove duplicates. Names that differ only in case become one, and a problem."""
    once: dict[str, str] = {}
    for name in (clean_name(name, "class") for name in names):
        first = once.setdefault(class_key(name), name)
        if first != name:
            what = (
                f"the class {name!r} counts as {first!r}, which differs only in case. Rename one if they are different"
            )
            problems.append(listings.Problem("class names alike", name, what))
    return list(once.values())


@dataclass(frozen=True, eq=False)
class _Labels:
    """The imported labels of a photo: boxes (N, 4) in its pixels, their labels (N,) in the project, and which of them
    are crowds. ``complete``: every object has a box."""

    boxes: Floats
    labels: Ints
    crowds: Bools
    complete: bool

    def joined(self, other: "_Labels") -> "_Labels":
        """These labels and the further ones of another entry for the same photo."""
        ours = {(*box, label) for box, label in zip(self.boxes.tolist(), self.labels.tolist(), strict=True)}
        theirs = zip(other.boxes.tolist(), other.labels.tolist(), strict=True)
        new = np.array([(*box, label) not in ours for box, label in theirs], dtype=bool)
        return _Labels(
            np.concatenate([self.boxes, other.boxes[new]]),
            np.concatenate([self.labels, other.labels[new]]),
            np.concatenate([self.crowds, other.crowds[new]]),
            self.complete and other.complete,
        )


def _take_in(
    store: Store, known: listings.Dataset, records: Sequence[ImageRecord], partial: bool, seed: int
) -> list[listings.Problem]:
    """Import labels as answers: to whole images where they are complete, else to single boxes.

    A crowd is not an object, and the objects in it have no boxes, so nobody is asked about it.
    """
    problems: list[listings.Problem] = []
    found = _labels_of_photos(known, records, store.digests(), Classes(store.classes()), problems)
    store.open_cycle(1)
    asked: list[Query] = []
    said: list[tuple[Floats, list[int], Verdict]] = []
    nothing = np.zeros((0, 4), dtype=np.float32)
    whole = [record for record, one in found if one.complete and not partial]
    held_out = {whole[place].id for place in rules.held_out(seed, len(whole), rules.FEWEST_TO_HOLD_OUT)}
    for record, one in found:
        if one.complete and not partial:
            asked.append(Query(record.id, why={HELD_OUT: 1.0} if record.id in held_out else None, asked_by=IMPORTED))
            said.append((one.boxes, one.labels.tolist(), Verdict.OBJECT))
            continue
        for box, label, crowd in zip(one.boxes, one.labels.tolist(), one.crowds, strict=True):
            asked.append(Query(record.id, box, label, asked_by=IMPORTED))
            said.append((nothing, [], Verdict.CANNOT_TELL) if crowd else (box[None], [label], Verdict.OBJECT))
    queries = store.ask(1, asked)
    store.record(
        [
            Answer(query.id, boxes, np.asarray(labels), verdict, IMPORTED)
            for query, (boxes, labels, verdict) in zip(queries, said, strict=True)
        ]
    )
    return problems


def _labels_of_photos(
    known: listings.Dataset,
    records: Sequence[ImageRecord],
    digests: Mapping[int, str],
    classes: Classes,
    problems: list[listings.Problem],
) -> list[tuple[ImageRecord, _Labels]]:
    """Match the labels to photos. Labels that fit no photo, or several, are reported as problems.

    A photo is found by its path (images of our exports are links with other names), else by content, else by name.
    ``digests`` are the hashes of the photos. A name that contradicts the content is a problem.
    """
    photos, by_id = ByName[int](), {record.id: record for record in records}
    places: dict[str, int] = {}
    contents, of_content = Contents(), dict[str, list[int]]()
    for record in records:
        photos.add(record.path, record.id)
        if not is_url(record.path):
            places[os.path.realpath(record.path)] = record.id
        of_content.setdefault(digests.get(record.id, ""), []).append(record.id)
    numbers = np.array([classes.find(clean_name(name, "class")) for name in known.classes], dtype=np.int64)
    claims: dict[int, dict[str, _Labels]] = {}
    differing: list[str] = []  # images that are not the photos of their names, which may be edited copies

    def photo_of(path: str) -> int | None:
        """The id of the photo that an image shows. Raises UserError if several photos have its name."""
        if not is_url(path) and (there := places.get(os.path.realpath(path))):
            return there
        same = [] if is_url(path) else of_content.get(contents.of(path) or "-", [])
        try:
            named = photos.match(path)
        except UserError:
            if len(same) != 1:
                raise
            return same[0]
        if not same and named and digests.get(named) and not is_url(path) and contents.of(path):
            differing.append(path)
        if not same or named in same:
            return named
        if len(same) > 1:
            raise UserError(f"{by_id[same[0]].path} and {len(same) - 1} more have its content")
        if named:
            what = f"its content is that of {by_id[same[0]].path}, which gets its labels, and not that of the photo"
            problems.append(listings.Problem("contradicting name", path, f"{what} of the same name."))
        return same[0]

    def leave_out(path: str, what: str) -> None:
        problems.append(listings.Problem("labels match no single photo", path, f"{what}; its labels are skipped"))

    for split in filter(None, (known.train, known.test)):
        for image in split.images:
            try:
                photo = photo_of(image.path)
            except UserError as error:
                leave_out(image.path, f"several photos fit: {error}")
                continue
            if photo is None:
                to_do = "Name the folder of the photos that were labelled, with the file names that they had"
                leave_out(image.path, f"no photo has that name. {to_do}")
            elif image.id in split.unlabelled:
                problems.append(
                    listings.Problem("photo without labels", image.path, "it will be asked about like others")
                )
            elif (one := _labels_of(split, image, by_id[photo], numbers)) is None:
                record = by_id[photo]
                sizes = f"{image.width} x {image.height}, the photo {record.width} x {record.height}"
                leave_out(image.path, f"the labelled image has {sizes} pixels, so they show different things")
            else:
                before = claims.setdefault(photo, {})
                before[image.path] = before[image.path].joined(one) if image.path in before else one
    if differing:
        what = f"{len(differing)} labelled images differ from the photos of the same names, which get their labels."
        problems.append(listings.Problem("content differs", differing[0], f"{what} Check that one shows the same."))
    taken: list[tuple[ImageRecord, _Labels]] = []
    for photo, claiming in sorted(claims.items()):
        record = by_id[photo]
        chosen = record.path if record.path in claiming else next(iter(claiming)) if len(claiming) == 1 else None
        for path in claiming:
            if path != chosen:
                leave_out(path, f"labels of other images have the name of {record.path} too")
        if chosen:
            taken.append((record, claiming[chosen]))
    return taken


def _labels_of(split: listings.Split, image: ImageRecord, photo: ImageRecord, numbers: Ints) -> _Labels | None:
    """The labels of an image, scaled to a photo that may be a larger or smaller copy. None if the shapes differ."""
    factors = rescaling((image.width, image.height), (photo.width, photo.height))
    if factors is None:
        return None
    truth, unsure = split.truth[image.id], split.unsure[image.id]
    complete = image.id not in split.incomplete and not unsure.any()
    by_people = ~unsure | truth.difficult  # boxes of a model are asked about again
    boxes, labels = as_boxes(truth.boxes * factors), numbers[truth.labels]
    return _Labels(boxes[by_people], labels[by_people], unsure[by_people], complete)
