"""A project: a folder in which people answer. What it holds, and how it begins; see :mod:`rarebox.trainer` for more."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from rarebox import config, data, seeds, tables
from rarebox.asking import Asker
from rarebox.boxes import rescaling
from rarebox.classes import Classes, class_key
from rarebox.config import Settings
from rarebox.data.images import (
    SUFFIXES,
    UnreadableImage,
    content_of,
    files_below,
    image_files,
    image_size,
    read_picture,
    readers,
)
from rarebox.data.remote import is_list, is_url, listing, location, trust
from rarebox.errors import Busy, Damaged, UserError
from rarebox.files import PART, damaged, read_json, real, write_json, write_text
from rarebox.naming import ByName
from rarebox.people import clean_name
from rarebox.photos import Contents, Found, Photos, Progress
from rarebox.ranking import Head
from rarebox.run_folder import RunFolder, answers_in, discard_store, is_store
from rarebox.store import Store
from rarebox.strategies import IMAGE
from rarebox.types import Answer, Bools, Candidates, Floats, ImageRecord, Ints, Query, Verdict, as_boxes

HELD_BACK = "held_out"
"""Mark, among the reasons of a question, of a first image that is kept for evaluation."""

HELD_BACK_EVERY = 5
"""Every so manieth of the first images is kept for evaluation."""

IMPORTED = "import"
"""Who has answered what was labelled before."""

NOT_READ = {".heic", ".heif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".svg", ".pdf"}
"""Pictures that cannot be decoded here, and that people have."""

MOST_RANKED = 50_000
"""Boxes of a cycle's ranking that are kept to ask from; when they are used up, as many more."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """What is kept of a cycle's ranking: candidates in the order in which they are asked about, p(l), and how many
    candidates of each class were open when it was made, also those that are not kept (K,)."""

    candidates: Candidates
    queue: Head
    class_frequency: Floats
    open_per_class: Ints


class Project:
    """An open project. ``folder`` is laid out as a run's; ``settings.yaml`` may be edited between two starts."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        if not self.folder.settings.exists():
            raise UserError(f"{root} holds no project; start one: rarebox init {root} --images FOLDER")
        self.settings = self.folder.read_settings()
        if self.settings.selection.strategy in IMAGE:
            raise UserError("people are asked about boxes; choose a selection.strategy such as class_balanced")
        if not self.settings.budget:
            raise UserError("budget is empty; give at least one number, such as [50]")
        labels = self.folder.labels(self.settings)
        if not is_store(labels):
            raise UserError(
                f"{labels} is gone or empty; restore a copy of it, or move {self.folder.settings.name} away and begin "
                f"anew: rarebox init {root} --images FOLDER"
            )
        self.store = Store(labels)

    def add_new_images(self) -> int:
        """Take in what has come into the folder of photos since; how many images that were.

        A photo that was moved or renamed is no new one: it keeps its number and its labels.
        """
        self.find_moved_images()
        known = self.store.taken_paths()
        new, digests = _new_files(known.values(), Path(self.settings.data), self.folder.root), dict[int, str]()
        contents = Contents(self.folder.photos)
        records, _ = read_images(
            new, self.settings.detector.size, first_id=max(known, default=0) + 1, digests=digests, contents=contents
        )  # fmt: skip
        self.store.add_images(records, digests)
        contents.save()
        return len(records)

    def find_moved_images(self, progress: Progress = lambda *_: None) -> Found:
        """Find the photos that lie elsewhere in the folder of photos now, or under another name."""
        return find_moved_images(self.store, Path(self.settings.data), self.folder, progress)

    def photos(self) -> Photos:
        """Tells whether the file at an image's path is its photo."""
        return photos_of(self.folder, self.store)

    @property
    def cycle(self) -> int:
        """The cycle that people answer now; 0 before the first question."""
        return max(self.store.cycles(), default=0)

    def budget(self, cycle: int) -> int:
        """What a cycle may spend: the first one is as many images as were asked for."""
        if cycle <= 1:
            return sum(query.asked_by is None for query in self.store.queries(1))
        return self.settings.budget[min(cycle - 2, len(self.settings.budget) - 1)]

    def spent(self, cycle: int) -> int:
        """What of the budget of a cycle is spent."""
        if cycle <= 1:
            return self.budget(1) - len(self.store.unanswered(1))
        return getattr(self.store.spent(cycle), self.settings.budget_unit)

    # What another detector said before there was one here

    def write_predictions(self, queries: Sequence[Query]) -> None:
        """Keep another detector's boxes, to be offered on the first images: queries with box, guess and score."""
        boxes = np.array([query.box for query in queries], dtype=np.float32).reshape(-1, 4)
        tables.write(self.folder.root / "predictions.parquet", {
            "image_id": np.array([query.image_id for query in queries], dtype=np.int64), "boxes": boxes,
            "labels": np.array([query.guess for query in queries], dtype=np.int64),
            "scores": np.array([(query.why or {}).get("score", 0) for query in queries], dtype=np.float32),
        })  # fmt: skip

    def read_predictions(self) -> Candidates | None:
        """Those boxes, if there are any."""
        file = self.folder.root / "predictions.parquet"
        if not file.exists():
            return None
        with _as_written(file):
            columns = tables.read(file)
            count = len(columns["labels"])
            nothing, place = np.zeros(count), np.arange(count)
            return Candidates(
                columns["image_id"], place, columns["boxes"], self.store.counts_as()[columns["labels"]],
                columns["scores"], nothing, nothing, np.zeros((count, 0)),
            )  # fmt: skip

    # The ranking of a cycle, which the trainer makes and the server asks from

    def write_ranking(self, cycle: int, queue: Head, frequency: Floats, open_per_class: Ints, most: int | None = None) -> None:  # fmt: skip  # noqa: E501
        """Keep the first boxes of a cycle's ranking in their order, ``most`` of them (or MOST_RANKED); and p(l) and the
        number of open candidates of each class. Two files. What was kept before stays, what is new comes after it."""
        most = most or MOST_RANKED
        queue(most - 1)  # one pass over the pool makes them all
        order = [item for place in range(most) if (item := queue(place))]
        rows = queue.candidates[np.array([row for row, _ in order], dtype=np.int64)]
        columns = {name: getattr(rows, name) for name in RANKED}
        columns["utility"] = np.array([utility for _, utility in order], dtype=np.float64)
        if self.has_ranking(cycle):
            before = tables.read(self._ranking(cycle, "parquet"))
            known = {*zip(before["image_id"].tolist(), before["box_index"].tolist(), strict=True)}
            named = zip(columns["image_id"].tolist(), columns["box_index"].tolist(), strict=True)
            new = np.array([name not in known for name in named], dtype=bool)
            columns = {name: np.concatenate([before[name], column[new]]) for name, column in columns.items()}
        self.folder.cycle(cycle).mkdir(parents=True, exist_ok=True)
        told = {"class_frequency": frequency.tolist(), "open_per_class": open_per_class.tolist()}
        write_json(self._ranking(cycle, "json"), told)
        tables.write(self._ranking(cycle, "parquet"), columns)

    def read_ranking(self, cycle: int) -> Ranking:
        """What is kept of a cycle's ranking (labels as what they count as by now). Damaged if it cannot be read."""
        counts_as = self.store.counts_as()
        with _as_written(self._ranking(cycle, "parquet")):
            columns = tables.read(self._ranking(cycle, "parquet"))
            utility = columns.pop("utility").astype(np.float64)
            labels, no_vectors = counts_as[columns.pop("labels")], np.zeros((len(utility), 0))
            candidates = Candidates(**columns, labels=labels, class_probs=no_vectors)
        with _as_written(self._ranking(cycle, "json")):
            told = read_json(self._ranking(cycle, "json"), dict)
            frequency = np.array(told["class_frequency"], dtype=np.float64)
            frequency = np.pad(frequency, (0, len(counts_as) - len(frequency)))  # classes may have been added since
            open_per_class = np.bincount(candidates.labels, minlength=len(counts_as))
            if "open_per_class" in told:
                then = np.array(told["open_per_class"], dtype=np.int64)
                open_per_class = np.bincount(counts_as[: len(then)], then, len(counts_as)).astype(np.int64)
        return Ranking(candidates, Head.of(candidates, enumerate(utility.tolist())), frequency, open_per_class)  # fmt: skip  # noqa: E501

    def has_ranking(self, cycle: int) -> bool:
        """Whether the ranking of a cycle is there and can be read; otherwise the trainer makes it anew."""
        try:
            self.read_ranking(cycle)
        except Damaged:
            return False
        return True

    def _ranking(self, cycle: int, suffix: str) -> Path:
        return self.folder.cycle(cycle) / f"ranking.{suffix}"

    def asker(self, cycle: int) -> Asker | None:
        """What asks the questions of a cycle; None where there is no ranking."""
        if not self.has_ranking(cycle):
            return None
        seed, overlap = self.settings.seed, self.settings.people.overlap

        def wanted(place: int) -> int:
            return 2 if seeds.stream(seed, "overlap", cycle, place).random() < overlap else 1

        return Asker(self.store, cycle, self.read_ranking(cycle).queue, self.settings.selection.answered_iou, wanted)


@contextmanager
def _as_written(file: Path) -> Iterator[None]:
    """Damaged for a file whose content is not what is written here, though it can be read."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, RuntimeWarning) as error:
        raise damaged(file, repr(error)[:100]) from error


def _new_files(known: Iterable[str], folder: Path, root: Path) -> list[str]:
    """Image files below a folder, outside the project's own, that no image lies in, by whatever links."""
    paths = {*map(real, known)}
    files = photos_in(folder, root) if folder.is_dir() else ()
    return [os.path.abspath(file) for file in files if real(file) not in paths]


def photos_of(folder: RunFolder, store: Store) -> Photos:
    """The photos of a project, with the hashes that its folder keeps of their files."""
    return Photos(store.digests(), Contents(folder.photos))


def find_moved_images(
    store: Store, place: Path, folder: RunFolder, progress: Progress = lambda *_: None
) -> Found:  # fmt: skip
    """Find the images of a store whose photo is not at their path, below ``place``; the store then has their new paths.

    :meth:`rarebox.photos.Photos.find` says how.
    """
    photos, inside = photos_of(folder, store), photos_in(place, folder.root) if place.is_dir() else ()
    found = photos.find(store.images(), [os.path.abspath(file) for file in inside], place, progress)
    store.move_images({**found.moved, **found.lost})
    photos.contents.save()
    return found


def check_photos(root: Path, progress: Progress = lambda *_: None) -> Found:
    """The same for a project by its folder. In a simulation, whose store keeps no hashes, nothing is looked for."""
    folder = RunFolder(root)
    settings = folder.read_settings()
    with Store(folder.labels(settings)) as store:
        known = store.digests()
        return find_moved_images(store, Path(settings.data), folder, progress) if known else Found({}, {}, ())


@dataclass(frozen=True)
class Relocated:
    """What became of the images of a store: how many are in the new folder, and those that are not.

    ``warnings``: a sentence for each thing that a person should know.
    """

    there: int
    missing: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def relocate(root: Path, place: Path, progress: Progress = lambda *_: None) -> Relocated:
    """Say that the photos of a project, or the data set of a run, lie in another folder (or COCO or YOLO file) now.

    Each image keeps its number and all that was said of it. UserError, and nothing is changed, if none is found.
    """
    folder = RunFolder(root)
    settings = folder.read_settings()
    if not place.exists():
        raise UserError(f"{place} does not exist; name the folder in which the photos are now")
    within = place if place.is_dir() else place.parent
    try:
        with folder.alone(), Store(folder.labels(settings)) as store:
            found = find_moved_images(store, within, folder, progress)
            images = store.images().values()
            inside = os.path.join(os.path.abspath(within), "")
            missing = tuple(i.path for i in images if not (i.path.startswith(inside) and os.path.isfile(i.path)))
            if len(missing) == len(images):
                raise UserError(f"none of the {len(images)} images of {root} is in {within}; name another folder")
            data = location(place) if os.path.isabs(settings.data) else str(place)
            write_text(folder.settings, config.with_data(folder.settings, settings, data))
            return Relocated(len(images) - len(missing), missing, tuple(found.warnings()))
    except Busy:
        raise UserError(f"{root} is being worked on; stop `rarebox serve` or `rarebox run` there first") from None


RANKED = tuple(f.name for f in fields(Candidates) if f.name in (
    "image_id", "box_index", "boxes", "labels", "scores", "uncertainty", "box_consistency"
))  # fmt: skip


# ------------------------------------------------------------------------------------------- how it begins


def create(
    root: Path, images: str | Path, classes: Sequence[str] = (), labels: Path | None = None, *, partial: bool = False,
    preset: str = "laptop", changes: Mapping[str, Any] | None = None, progress: Progress = lambda *_: None,
) -> list[data.Problem]:  # fmt: skip
    """Make a project of the images below a folder or URL (:mod:`rarebox.data.remote`); the problems met come back.

    ``labels`` is a data set that :func:`rarebox.data.load` reads: what it says of images of that name is taken in. An
    image counts as labelled completely, unless ``partial``, or an object of it was lost. UserError where there is a
    project already, or no image.

    A store with answers that lies in the folder, a restored backup say, is taken over as it is.
    """
    settings = config.resolve(preset, None, {**config.PROJECT, "data": location(images), **(changes or {})})
    folder = RunFolder(root)
    if folder.settings.exists():
        raise UserError(f"there is a project in {root} already; go on with it: rarebox serve {root}")
    leftovers = [f"{folder.store.name}{end}" for end in ("", "-wal", "-shm", "-journal")]
    leftovers += [f"{file.name}{end}" for file in (folder.problems, folder.settings) for end in ("", PART)]
    leftovers += [lock.name for lock in folder.locks]
    place = folder.labels(settings)
    count = answers_in(place)
    if not count and root.exists() and any(file.name not in leftovers for file in root.iterdir()):
        raise UserError(f"{root} is not empty and holds no project; name a new or empty folder")
    if count and labels:
        raise UserError(
            f"{place} holds {count} answers; repeat the command without --labels to take it over (a start that "
            "was cut short has taken in all of the labels, or none)"
        )
    from_list = is_url(images) or (is_list(images) and Path(images).is_file())
    if not from_list and not Path(images).is_dir():
        raise UserError(f"{images} is no folder; name the one with your images")
    if from_list:
        trust(images)
        progress("list", 0, 1, str(images))  # a server may take its time
        files, unknown = listing(location(images), SUFFIXES), []
        progress("list", 1, 1, str(images))
    else:
        files, unknown = photos_in(Path(images), root), files_below(images, NOT_READ)
    if count:
        return _take_over(folder, settings, list(classes))
    known = data.load(labels, photos=files) if labels else None
    problems = list(known.problems) if known else []
    names = _class_names([*(known.classes if known else ()), *classes], problems)
    digests, contents = dict[int, str](), Contents(folder.photos)
    records, unreadable = read_images(files, settings.detector.size, progress, digests=digests, contents=contents)
    problems += unreadable
    if unknown:
        what = f"{len(unknown)} files of kinds that are not read; convert them to JPEG (HEIC: phones can export it)"
        problems.append(data.Problem("kind not read", str(unknown[0]), what))
    if not records:
        found = f"none of its images can be read ({unreadable[0].what})" if unreadable else "no image in it"
        raise UserError(f"{images}: {found}; name a folder with photos (JPEG, PNG, TIFF, WebP, …)")
    root.mkdir(parents=True, exist_ok=True)
    with folder.alone():
        discard_store(folder.store)  # of a start that was cut short
        with Store(place, classes=names) as store, store.transaction(writes=True):
            store.add_images(records, digests)
            if known:
                problems += _take_in(store, known, records, partial, settings.seed)
        write_json(folder.problems, [asdict(problem) for problem in problems])
        write_text(folder.settings, config.commented(settings))
        contents.save()
    return problems


def _take_over(folder: RunFolder, settings: Settings, classes: Sequence[str]) -> list[data.Problem]:
    """Go on with the answers of a store whose project is gone; the photos that are new come in when it is served."""
    with folder.alone(), Store(folder.labels(settings)) as store:
        there = {class_key(name) for name in store.classes()}
        if lacking := [name for name in classes if class_key(name) not in there]:
            raise UserError(
                f"the store that is there has the classes {', '.join(store.classes())}, and not {', '.join(lacking)}; "
                "repeat the command without --classes to take it over, and add classes on the page"
            )
        photos = Path(settings.data)
        missing = _not_found(store, photos, folder) if photos.is_dir() else []
        if missing and len(missing) == len(store.images()):
            raise UserError(
                f"none of the {len(missing)} photos of the store is in {photos}, {Path(missing[0]).name} for example. "
                "Name the folder in which they are."
            )
        write_text(folder.settings, config.commented(settings))
    return [data.Problem("photo not found", path, f"it is not in {photos}; its answers are kept") for path in missing]


def _not_found(store: Store, photos: Path, folder: RunFolder) -> list[str]:
    """The paths of images that are neither where they were nor in the folder of photos, once moved ones are found."""
    find_moved_images(store, photos, folder)
    paths = [image.path for image in store.images().values()]
    return [path for path in paths if not is_url(path) and not os.path.isfile(path)]


def _class_names(names: Sequence[str], problems: list[data.Problem]) -> list[str]:
    """Cleaned, each once; a name that is another's but for its capitals is a problem, and counts as that one."""
    once: dict[str, str] = {}
    for name in (clean_name(name, "class") for name in names):
        first = once.setdefault(class_key(name), name)
        if first != name:
            what = f"the class {name!r} counts as {first!r}, which differs in capitals only; rename one if they are two"
            problems.append(data.Problem("class names alike", name, what))
    return list(once.values())


def photos_in(folder: Path, root: Path) -> list[Path]:
    """The image files below a folder that are not in the folder of the project, where that lies among the photos."""
    own = real(root)
    return [file for file in image_files(folder) if own not in real(file).parents]


def read_images(
    files: Sequence[Path | str], size: tuple[int, int], progress: Progress = lambda *_: None, first_id: int = 1,
    digests: dict[int, str] | None = None, contents: Contents | None = None,
) -> tuple[list[ImageRecord], list[data.Problem]]:  # fmt: skip
    """Every image file (or URL) that can be decoded, numbered in that order; the others are problems.

    ``digests`` is given the hash of each image's content, by its number; ``contents`` knows those of local files.
    """
    known = contents or Contents()
    records: list[ImageRecord] = []
    problems: list[data.Problem] = []

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
                problems.append(data.Problem("unreadable image", str(file), f"{found.reason}; the image is left out"))
                continue
            record, content = found
            records.append(replace(record, id=first_id + len(records)))
            if digests is not None and content:
                digests[records[-1].id] = content
    return records, problems


@dataclass(frozen=True, eq=False)
class _Labels:
    """What labels that were there before say of a photo: boxes (N, 4) in its pixels, the project's labels (N,) of them,
    and which of them are around several objects. ``complete``: every object has a box of its own."""

    boxes: Floats
    labels: Ints
    crowds: Bools
    complete: bool

    def joined(self, other: "_Labels") -> "_Labels":
        """These and what another entry of the same photo adds."""
        ours = {(*box, label) for box, label in zip(self.boxes.tolist(), self.labels.tolist(), strict=True)}
        theirs = zip(other.boxes.tolist(), other.labels.tolist(), strict=True)
        new = np.array([(*box, label) not in ours for box, label in theirs], dtype=bool)
        return _Labels(
            np.concatenate([self.boxes, other.boxes[new]]), np.concatenate([self.labels, other.labels[new]]),
            np.concatenate([self.crowds, other.crowds[new]]), self.complete and other.complete,
        )  # fmt: skip


def _take_in(
    store: Store, known: data.Dataset, records: Sequence[ImageRecord], partial: bool, seed: int
) -> list[data.Problem]:
    """Answers from labels that were there before: whole images where they are complete, else single boxes.

    A crowd is no object, and whoever labelled it did not label what it holds: nobody is asked about it.
    """
    problems: list[data.Problem] = []
    found = _labels_of_photos(known, records, store.digests(), Classes(store.classes()), problems)
    store.open_cycle(1)
    asked: list[Query] = []
    said: list[tuple[Floats, list[int], Verdict]] = []
    nothing = np.zeros((0, 4), dtype=np.float32)
    whole = [record for record, one in found if one.complete and not partial]
    chance = seeds.stream(seed, "held out").permutation(len(whole))
    kept = {record.id for record, place in zip(whole, chance, strict=True) if place % HELD_BACK_EVERY == HELD_BACK_EVERY - 1}  # fmt: skip  # noqa: E501
    for record, one in found:
        if one.complete and not partial:
            asked.append(Query(record.id, why={HELD_BACK: 1.0} if record.id in kept else None, asked_by=IMPORTED))
            said.append((one.boxes, one.labels.tolist(), Verdict.OBJECT))
            continue
        for box, label, crowd in zip(one.boxes, one.labels.tolist(), one.crowds, strict=True):
            asked.append(Query(record.id, box, label, asked_by=IMPORTED))
            said.append((nothing, [], Verdict.CANNOT_TELL) if crowd else (box[None], [label], Verdict.OBJECT))
    queries = store.ask(1, asked)
    store.record([
        Answer(query.id, boxes, np.asarray(labels), verdict, IMPORTED)
        for query, (boxes, labels, verdict) in zip(queries, said, strict=True)
    ])  # fmt: skip
    return problems


def _labels_of_photos(
    known: data.Dataset, records: Sequence[ImageRecord], digests: Mapping[int, str], classes: Classes,
    problems: list[data.Problem],
) -> list[tuple[ImageRecord, _Labels]]:  # fmt: skip
    """Each photo that the labels speak of, and what they say. What belongs to no photo, or to several, is a problem.

    A photo is known by its place (an image of our own exports is a link of another name), else by its name, else by its
    content: ``digests`` are the hashes of the photos.
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

    def photo_of(path: str) -> int | None:
        """Raises `UserError` if several have that name."""
        if not is_url(path) and (there := places.get(os.path.realpath(path))):
            return there
        try:
            named, error = photos.match(path), None
        except UserError as several:
            named, error = None, several
        same = [] if named or is_url(path) else of_content.get(contents.of(path) or "-", [])
        if error and len(same) != 1:
            raise error
        return named or (same[0] if len(same) == 1 else None)

    def leave_out(path: str, what: str) -> None:
        problems.append(data.Problem("labels of no photo", path, f"{what}; its labels are left out"))

    for split in filter(None, (known.train, known.test)):
        for image in split.images:
            try:
                photo = photo_of(image.path)
            except UserError as error:
                leave_out(image.path, f"several photos have that name: {error}")
                continue
            if photo is None:
                to_do = "Name the folder of the photos that were labelled, with the file names that they had"
                leave_out(image.path, f"no photo has that name. {to_do}")
            elif image.id in split.unlabelled:
                problems.append(data.Problem("photo without labels", image.path, "it will be asked about like others"))
            elif (one := _labels_of(split, image, by_id[photo], numbers)) is None:
                record = by_id[photo]
                sizes = f"{image.width} x {image.height}, the photo {record.width} x {record.height}"
                leave_out(image.path, f"the labelled image has {sizes} pixels, so they show different things")
            else:
                before = claims.setdefault(photo, {})
                before[image.path] = before[image.path].joined(one) if image.path in before else one
    taken = []
    for photo, claiming in sorted(claims.items()):
        record = by_id[photo]
        chosen = record.path if record.path in claiming else next(iter(claiming)) if len(claiming) == 1 else None
        for path in claiming:
            if path != chosen:
                leave_out(path, f"labels of other images have the name of {record.path} too")
        if chosen:
            taken.append((record, claiming[chosen]))
    return taken


def _labels_of(split: data.Split, image: ImageRecord, photo: ImageRecord, numbers: Ints) -> _Labels | None:
    """What a data set says of a photo, which may be a larger or smaller copy of the image that was labelled; None if it
    is none."""
    factors = rescaling((image.width, image.height), (photo.width, photo.height))
    if factors is None:
        return None
    truth, unsure = split.truth[image.id], split.unsure[image.id]
    complete = image.id not in split.incomplete and not unsure.any()
    by_people = ~unsure | truth.difficult  # what a model made is asked about anew
    boxes, labels = as_boxes(truth.boxes * factors), numbers[truth.labels]
    return _Labels(boxes[by_people], labels[by_people], unsure[by_people], complete)
