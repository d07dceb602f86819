"""A run and the context of its steps: pictures, models, views, and progress reports. Read :class:`Run` first."""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np

from rarebox import detectors
from rarebox.config import Settings
from rarebox.core import seeds
from rarebox.core.progress import Progress, StageProgress
from rarebox.data import listings
from rarebox.data.pictures import Pictures
from rarebox.detectors import Detector
from rarebox.detectors.frozen import FeatureCache, FrozenPictures, Layout
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.loop import rules
from rarebox.loop.run_folder import RunFolder
from rarebox.pool.candidates import Shards
from rarebox.pool.ranking import LazyRanking
from rarebox.pool.views import View, make_views
from rarebox.types import Candidates, GroundTruth, ImageRecord, ImageScores, Ints, LabelState


class EngineProgress(Protocol):
    """Called by an engine with the number of images scored so far, and perhaps a note on its workers."""

    def __call__(self, done: int, note: str = "") -> None: ...


Engine = Callable[
    ["Run", int, Sequence[Sequence[ImageRecord]], EngineProgress], Iterator[tuple[int, Candidates, ImageScores]]
]
"""Scores shards of the pool: a run, its cycle, the images of each shard -> the numbers of the shards and their scores,
in any order. Every engine must return the same bits."""


@dataclass
class Run:
    """Everything one run works with.

    Without an ``oracle`` people answer, for any number of cycles. ``share`` is the folder of the run whose cycle-1
    model this run copies. ``added`` are the boxes of other detectors on images of the pool.
    """

    folder: RunFolder
    settings: Settings
    dataset: listings.Dataset
    pool: Pictures
    test: Pictures
    test_truth: Mapping[int, GroundTruth]
    store: Store
    oracle: SimulatedOracle | None
    progress: Progress
    engine: Engine
    share: Path | None = None
    cycle: int = 0
    seconds: dict[str, float] = field(default_factory=dict[str, float])
    notes: list[str] = field(default_factory=list[str])
    added: Candidates | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @property
    def open_ended(self) -> bool:
        """Whether people answer, so the number of cycles is unknown."""
        return self.oracle is None

    def budget(self, cycle: int) -> rules.Budget:
        """What a cycle may spend and has spent."""
        return rules.budget_of(self.settings, cycle, rules.counts_in(self.store, cycle, self.settings.cost))

    @contextmanager
    def stage(self, name: str) -> Generator[StageProgress]:
        """Time a stage, and report its progress under its name."""
        start = time.perf_counter()
        of = "" if self.open_ended else f"/{len(self.settings.budget) + 1}"
        title = f"cycle {self.cycle}{of}: {name}"
        yield lambda done, of, note="": self.progress(title, done, of, note)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def pictures_of(
    settings: Settings,
    pool: Sequence[ImageRecord],
    test: Sequence[ImageRecord],
    keep_in: Path,
    name_of_test: str = "test",
) -> tuple[Pictures, Pictures]:
    """The images of the pool and of the test set, decoded on access; with a frozen body, their feature maps.

    The maps are kept in the folder ``keep_in``, in one folder for each body, precision, seed and set of views. They are
    stored by image id, so runs that share a folder must have the same pool. ``name_of_test`` names the test set.
    """
    size, views = settings.detector.size, settings.scoring.views
    decoded = Pictures(pool, size), Pictures(test, size)
    if settings.training.freeze != "backbone":
        return decoded
    if settings.training.flip and "flip" not in views:
        views = (*views, "flip")  # last, so that the other views draw the same random numbers
    body = settings.detector.model_dump(include={"name", "backbone", "weights", "image_size", "long_side"})
    weights = Path(settings.detector.weights)
    files = [weights] if weights.is_file() else sorted(weights.glob("*.safetensors")) if weights.is_dir() else []
    content = sha256(b"".join(file.read_bytes() for file in files)).hexdigest() if files else ""
    told = repr((body, content, views, settings.seed, settings.training.precision))
    folder = keep_in / "maps" / sha256(told.encode()).hexdigest()[:12]
    channels = detectors.body_channels(settings.detector)
    return (
        FrozenPictures(decoded[0], FeatureCache(folder / "pool", Layout(channels, views))),
        FrozenPictures(decoded[1], FeatureCache(folder / name_of_test, Layout(channels, ()))),
    )


def extract(run: Run, pictures: Pictures) -> None:
    """Compute and store missing feature maps of a frozen body for the pictures and their views."""
    if not isinstance(pictures, FrozenPictures) or not len(pictures.missing()):
        return
    detector = new_detector(run)
    with run.stage("backbone") as report, pictures.store.adding() as keep:
        missing = pictures.missing()
        note, views, done = f"images, {_size(missing.check_room())}", pictures.store.layout.views, 0
        for rows, batch in missing.decoded.in_batches(batches(missing, run.settings.scoring.batch_size)):
            ids = [missing.records[i].id for i in map(int, rows)]
            sizes = [detector.input_size(picture) for picture in batch]
            plans = [views_of(run.settings, views, 0, *each) for each in zip(ids, sizes, strict=True)]
            keep(dict(zip(ids, detector.extract(batch, plans), strict=True)))
            done += len(rows)
            report(done, len(missing), note)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count // 10**6, 1)} MB"


def views_of(
    settings: Settings, names: Sequence[str], cycle: int, image_id: int, size: tuple[int, int]
) -> tuple[View, ...]:
    """The views of an image of this input size. With a frozen body they are the same in every cycle."""
    cycle = 0 if settings.training.freeze == "backbone" else cycle
    return make_views(names, *size, seeds.stream(settings.seed, "views", cycle, image_id))


def batches(pictures: Pictures, size: int) -> Iterator[np.ndarray]:
    """Yield the places of the pictures in batches of one shape.

    Pictures are padded only to the stride of the network, so no result depends on the rest of the batch.
    """
    by_shape: dict[tuple[int, int], list[int]] = {}
    for place, shape in enumerate(pictures.sizes):
        by_shape.setdefault(shape, []).append(place)
    for places in by_shape.values():
        yield from (np.array(places[i : i + size]) for i in range(0, len(places), size))


def new_detector(run: Run) -> Detector:
    """A detector with pretrained weights and random heads, the same in every cycle of a seed."""
    settings = run.settings
    return detectors.build(
        **settings.detector.model_dump(),
        num_classes=len(run.classes),
        classes=run.classes,
        device=settings.device,
        training=settings.training.of_first_cycle(),
        seed=seeds.number(settings.seed, "model"),
    )


def load_detector(run: Run, cycle: int) -> Detector:
    """The model of a finished cycle."""
    return detectors.load(run.folder.cycle(cycle), run.settings.device, run.settings.training)


@dataclass
class Ranked:
    """The pool of a cycle, scored and ranked.

    ``cycle`` is its number, ``pool`` are all its candidates, ``open_per_class`` (K,) counts those that may be asked
    about, ``queue`` is their order (or that of image ids), ``state`` the input of the strategy.
    """

    cycle: int
    pool: Shards
    queue: LazyRanking
    state: LabelState
    open_per_class: Ints
