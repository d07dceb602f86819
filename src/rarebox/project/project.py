"""A project: the folder in which people answer, and its contents."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from rarebox.core import parquet, seeds
from rarebox.core.files import damaged, read_json, write_json
from rarebox.core.progress import Progress, silent
from rarebox.data.classes import class_key
from rarebox.data.contents import Contents
from rarebox.errors import Damaged, UserError
from rarebox.labels.leases import People, Question
from rarebox.labels.store import Store
from rarebox.loop import rules
from rarebox.loop.run_folder import RunFolder, is_store
from rarebox.pool import last
from rarebox.pool.candidates import Shards
from rarebox.pool.ranking import LazyRanking
from rarebox.pool.similar import BoxFeatures
from rarebox.project import predictions
from rarebox.project.photo_folder import find_moved_images, new_files, photos_of, read_images
from rarebox.project.photos import Found, Photos
from rarebox.strategies import IMAGE
from rarebox.types import Candidates, Floats, Ints, Query, concatenate

HELD_OUT = "held_out"
"""The key in a query's reasons that marks an initial image held out for evaluation."""

FURTHER = "further"
"""The key in a query's reasons that marks an image asked about while people would wait for the trainer."""

MOST_RANKED = 50_000
"""The number of boxes of a ranking that are stored. When they are used up, the trainer adds as many again."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """The stored part of a ranking: candidates in the order of asking, p(l), and how many candidates of each class were
    open when it was made (K,), including those that are not stored."""

    candidates: Candidates
    queue: LazyRanking
    class_frequency: Floats
    open_per_class: Ints

    @property
    def images(self) -> LazyRanking:
        """The order of the images: the first candidate of each."""
        firsts = np.sort(np.unique(self.candidates.image_id, return_index=True)[1])
        return LazyRanking.of(self.candidates, ((row, item[1]) for row in firsts if (item := self.queue(int(row)))))


class Project:
    """An open project. ``folder`` is laid out as a run's; Edit ``settings.yaml`` only while it is closed."""

    def __init__(self, root: Path) -> None:
        self.folder = RunFolder(root)
        if not self.folder.settings.exists():
            raise UserError(f"{root} holds no project. Start one: rarebox init {root} --images FOLDER")
        self.settings = self.folder.read_settings()
        if not self.settings.budget or 0 in self.settings.budget:
            raise UserError(
                f"budget is {[*self.settings.budget]}. Give at least one number, such as [50], and no 0, which would "
                "train without new answers. To stop training, stop the server"
            )
        labels = self.folder.labels(self.settings)
        if not is_store(labels):
            raise UserError(
                f"{labels} is missing or empty. Restore a copy of it, or move {self.folder.settings.name} away and "
                f"start over: rarebox init {root} --images FOLDER"
            )
        self.store = Store(labels)

    def add_new_images(self) -> int:
        """Add the new photos in the photo folder, and return their number. A moved or renamed photo is not new: it
        keeps its id and its labels.
        """
        self.find_moved_images()
        known = self.store.taken_paths()
        first_id = max(0, *known, self._noted_numbers()[0]) + 1
        new, digests = new_files(known.values(), Path(self.settings.data), self.folder.root), dict[int, str]()
        contents = Contents(self.folder.photos)
        records, _ = read_images(
            new, self.settings.detector.size, first_id=first_id, digests=digests, contents=contents
        )
        self.store.add_images(records, digests)
        contents.save()
        return len(records)

    # The numbers of images and classes that models and rankings use. A store that was restored from an older backup
    # lacks some of them, and must not give them to other images and classes.

    def note_numbers(self) -> None:
        """Note the numbers of images and classes before they go into a model or a ranking."""
        self.restore_classes()
        before = self._noted_numbers()
        images, classes = max(before[0], *self.store.taken_paths()), [*self.store.classes()]
        if (images, classes) != before:
            write_json(self.folder.numbers, {"images": images, "classes": classes})

    def restore_classes(self) -> list[str]:
        """Add the classes that a restored store lacks and that models know, under their numbers. Return their names."""
        noted = self._noted_numbers()[1]
        if len(noted) <= len(self.store.classes()):
            return []
        with self.store.transaction(writes=True):
            there = self.store.classes()
            lost = noted[len(there) :]
            used = {class_key(name) for name in there}
            names = [f"{name} (restored)" if class_key(name) in used else name for name in lost]
            for name in names:
                People(self.store).add_class(name)
        return names

    def _noted_numbers(self) -> tuple[int, list[str]]:
        """The highest number of an image, and the names of the classes."""
        try:
            noted = read_json(self.folder.numbers, dict) if self.folder.numbers.exists() else {}
            return int(noted.get("images", 0)), [str(name) for name in noted.get("classes", [])]
        except (Damaged, TypeError, ValueError):
            return 0, []

    def find_moved_images(self, progress: Progress = silent) -> Found:
        """Find the photos that were renamed or moved within the photo folder."""
        return find_moved_images(self.store, Path(self.settings.data), self.folder, progress)

    def photos(self) -> Photos:
        """The photos of the project, which know whether the file at a path is the photo of an image."""
        return photos_of(self.folder, self.store)

    @property
    def cycle(self) -> int:
        """The current cycle; 0 before the first question."""
        return max(self.store.cycles(), default=0)

    def budget(self, cycle: int) -> rules.Budget:
        """What a cycle may spend and has spent."""
        return rules.budget_of(self.settings, cycle, rules.counts_in(self.store, cycle, self.settings.cost))

    def _pool(self) -> set[int]:
        """The ids of the images that may be asked about: those with a photo that are not held out."""
        photos = self.photos()
        return {i for i, image in self.store.images().items() if photos.is_there(image)} - held_out_in(self.store)

    # Boxes of other detectors. A new session tells a running server that there is something to read.

    def add_predictions(self, name: str, found: predictions.Matched) -> predictions.Summary:
        """Add another detector's boxes as candidates. The same ones again change nothing.

        Raises UserError if there are other predictions of that name.
        """
        file = predictions.place_of(self.folder.root, name)
        there = predictions.files(self.folder.root).get(name)
        if there and not self._holds(there, found.candidates):
            raise UserError(
                f"there are other predictions named {name}. Add these under another one (--name), or first remove the "
                f"old ones: rarebox predictions remove {self.folder.root} {name}"
            )
        self.note_numbers()
        if not there:
            predictions.write(file, found.candidates)
        self._begin_session()
        return predictions.summary(name, found.candidates, self.store.classes())

    def remove_predictions(self, name: str) -> None:
        """Remove another detector's boxes. Questions that have been asked stay."""
        predictions.remove(self.folder.root, name)
        self._begin_session()

    def list_predictions(self) -> list[predictions.Summary]:
        """What was added, by name. Raises Damaged."""
        names, counts_as = self.store.classes(), self.store.counts_as()
        return [
            predictions.summary(name, predictions.read(file, counts_as), names)
            for name, file in predictions.files(self.folder.root).items()
        ]

    def read_predictions(self) -> Candidates | None:
        """The boxes of all added predictions. None if there are none. Raises Damaged."""
        return predictions.read_all(self.folder.root, self.store.counts_as())

    def _holds(self, file: Path, found: Candidates) -> bool:
        there = predictions.read(file, np.arange(len(self.store.classes())))
        return all(np.array_equal(getattr(there, name), getattr(found, name)) for name in predictions.COLUMNS)

    def _begin_session(self) -> None:
        with self.store.transaction(writes=True):
            self.store.begin_session()

    # The ranking of a cycle: the trainer writes it, the server asks from it

    def write_ranking(
        self, cycle: int, queue: LazyRanking, frequency: Floats, open_per_class: Ints, most: int | None = None
    ) -> None:
        """Store the first ``most`` (MOST_RANKED) boxes of a ranking, p(l) and the open candidates of each class.

        They go to two files. Stored boxes keep their places, and new ones are appended.
        """
        most = most or MOST_RANKED
        queue(most - 1)  # one pass over the pool ranks them all
        order: list[tuple[int, float]] = []
        while len(order) < most and (item := queue(len(order))):
            order.append(item)
        rows = queue.candidates[np.array([row for row, _ in order], dtype=np.int64)]
        columns = {name: getattr(rows, name) for name in RANKED}
        columns["utility"] = np.array([utility for _, utility in order], dtype=np.float64)
        if self.has_ranking(cycle):
            before = parquet.read(self._ranking(cycle, "parquet"))
            known = {*zip(before["image_id"].tolist(), before["box_index"].tolist(), strict=True)}
            named = zip(columns["image_id"].tolist(), columns["box_index"].tolist(), strict=True)
            new = np.array([name not in known for name in named], dtype=bool)
            columns = {name: np.concatenate([before[name], column[new]]) for name, column in columns.items()}
        self.folder.cycle(cycle).mkdir(parents=True, exist_ok=True)
        told = {"class_frequency": frequency.tolist(), "open_per_class": open_per_class.tolist()}
        write_json(self._ranking(cycle, "json"), told)
        parquet.write(self._ranking(cycle, "parquet"), columns)

    def read_ranking(self, cycle: int) -> Ranking:
        """Read the stored ranking of a cycle, with merged classes. Raises Damaged if it cannot be read."""
        counts_as = self.store.counts_as()
        with _as_written(self._ranking(cycle, "parquet")):
            columns = parquet.read(self._ranking(cycle, "parquet"))
            utility: list[float] = columns.pop("utility").astype(np.float64).tolist()
            labels, no_vectors = counts_as[columns.pop("labels")], np.zeros((len(utility), 0))
            candidates = Candidates(**columns, labels=labels, class_probs=no_vectors)
        with _as_written(self._ranking(cycle, "json")):
            told = read_json(self._ranking(cycle, "json"), dict)
            frequency = np.array(told["class_frequency"], dtype=np.float64)
            frequency = np.pad(frequency, (0, len(counts_as) - len(frequency)))  # classes may have been added
            open_per_class = np.bincount(candidates.labels, minlength=len(counts_as))
            if "open_per_class" in told:
                then = np.array(told["open_per_class"], dtype=np.int64)
                open_per_class = np.bincount(counts_as[: len(then)], then, len(counts_as)).astype(np.int64)
        return Ranking(candidates, LazyRanking.of(candidates, enumerate(utility)), frequency, open_per_class)

    def has_ranking(self, cycle: int) -> bool:
        """Whether the ranking of a cycle can be read. If not, the trainer makes it again."""
        try:
            self.read_ranking(cycle)
        except Damaged:
            return False
        return True

    # Features, by which a person finds more boxes like one

    def write_examples(self, cycle: int, labelled: BoxFeatures) -> None:
        """Store the features of labelled boxes by the model whose candidates a cycle asks about."""
        columns = {f.name: getattr(labelled, f.name) for f in fields(BoxFeatures)}
        parquet.write(self._examples(cycle), columns | {"features": labelled.features.astype(np.float16)})

    def read_features(self, cycle: int, found: Candidates) -> BoxFeatures | None:
        """The candidates of a cycle with their features, in their order, followed by labelled boxes.

        None if no candidate has features: the settings or an earlier version did not keep them. Raises Damaged.
        """
        shards = Shards(sorted((self.folder.cycle(cycle) / "candidates").glob("shard_*.parquet")))
        with _as_written(self.folder.cycle(cycle) / "candidates"):
            features = last.features_of(found, shards)
        if features is None:
            return None
        known = BoxFeatures(found.image_id, found.boxes, features)
        with suppress(Damaged), _as_written(self._examples(cycle)):  # an earlier version may have ranked the cycle
            return concatenate([known, BoxFeatures(**parquet.read(self._examples(cycle)))])
        return known

    def _examples(self, cycle: int) -> Path:
        return self.folder.cycle(cycle) / "examples.parquet"

    def _ranking(self, cycle: int, suffix: str) -> Path:
        return self.folder.cycle(cycle) / f"ranking.{suffix}"

    def ap50_interval(self, cycle: int) -> tuple[float, float] | None:
        """The 95 % interval of a cycle's AP50; None if it was not stored or cannot be read."""
        with suppress(Damaged, KeyError, TypeError, ValueError):
            low, high = read_json(self.folder.cycle(cycle) / "evaluated.json", dict)["ap50_interval"]
            return float(low), float(high)
        return None

    def keep_further_images(self, image_ids: Sequence[int]) -> None:
        """Store which images to ask about while the first model is trained, in this order."""
        self.folder.cycle(1).mkdir(exist_ok=True)
        write_json(self._further, [*image_ids])

    def ask_further(self) -> list[Query]:
        """Ask about one more whole image in cycle 1, so that people need not wait until the trainer has chosen the
        initial images or trained the first model. Returns no question if no image is left.

        The order is that of :meth:`keep_further_images`, or random before the trainer has chosen.
        """
        images, photos = self.store.images(), self.photos()
        try:
            order: list[int] = [int(i) for i in read_json(self._further, list)]
        except (Damaged, TypeError, ValueError):
            order = seeds.stream(self.settings.seed, "further images").permutation(sorted(images)).tolist()
        seen = self.seen_images()
        left = (i for i in order if i in images and i not in seen and photos.is_there(images[i]))
        if (image_id := next(left, None)) is None:
            return []
        self.store.open_cycle(1)
        return self.store.ask(1, [Query(image_id, why={FURTHER: 1.0})])

    def seen_images(self) -> set[int]:
        """The ids of the images that are labelled or that cycle 1 has asked about."""
        return {query.image_id for query in self.store.queries(1)} | self.store.labels().keys()

    @property
    def _further(self) -> Path:
        return self.folder.cycle(1) / "further_images.json"

    def asker(self, cycle: int) -> rules.CycleAsker | None:
        """The asker of a cycle. None if there is no ranking."""
        if not self.has_ranking(cycle):
            return None
        seed, overlap = self.settings.seed, self.settings.people.overlap

        def wanted(place: int) -> int:
            return 2 if seeds.stream(seed, "overlap", cycle, place).random() < overlap else 1

        kept, images = self.read_ranking(cycle), self.settings.selection.strategy in IMAGE
        return (rules.ImageAsker if images else rules.CycleAsker)(
            self.settings,
            self.store,
            cycle,
            kept.images if images else kept.queue,
            kept.open_per_class,
            self._pool,
            wanted,
            None if images else self.read_predictions(),
        )


def is_further(query: Query | Question) -> bool:
    """Whether a question only fills the time in which people would wait for the trainer."""
    return FURTHER in (query.why or {})


def held_out_in(store: Store) -> set[int]:
    """The ids of the images held out for evaluation. They are neither asked about again nor trained on."""
    return {query.image_id for query in store.queries(1) if query.why and query.why.get(HELD_OUT)}


@contextmanager
def _as_written(file: Path) -> Generator[None]:
    """Raise Damaged for a readable file whose content this class cannot have written."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, RuntimeWarning) as error:
        raise damaged(file, repr(error)[:100]) from error


RANKED = tuple(
    f.name
    for f in fields(Candidates)
    if f.name in ("image_id", "box_index", "boxes", "labels", "scores", "uncertainty", "box_consistency")
)
