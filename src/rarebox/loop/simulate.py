"""A simulated run: open or resume its folder, and repeat the cycle until the budget is spent."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import numpy as np

from rarebox import strategies
from rarebox.config import Settings
from rarebox.core.files import read_json, write_json
from rarebox.core.progress import Progress, silent
from rarebox.data import assembly, listings
from rarebox.data.datasets import load_data
from rarebox.detectors.environment import describe
from rarebox.errors import Damaged, UserError
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.loop import rules, scoring
from rarebox.loop.begin import begun
from rarebox.loop.cycle import leaves_images_out, run_cycle
from rarebox.loop.metrics import CycleRecord
from rarebox.loop.run import Engine, Run, new_detector, pictures_of
from rarebox.loop.run_folder import RunFolder
from rarebox.types import ImageRecord


def simulate(
    folder: Path,
    settings: Settings,
    dataset: listings.Dataset | None = None,
    *,
    share: Path | None = None,
    engine: Engine | None = None,
    progress: Progress = silent,
    finished: Callable[[CycleRecord], None] = lambda _: None,
) -> list[CycleRecord]:
    """Run or resume all cycles of a simulation, and return the records of ``metrics.json``.

    ``dataset`` is the one that the settings name, if it is loaded already. ``share`` is the folder of another run
    with the same seed, data, detector and training, whose cycle-1 model this run copies. ``engine`` scores the pool
    (default: this process). ``finished`` is called with each new record. Raises UserError for anything the user can
    correct.
    """
    place = RunFolder(folder)
    strategies.choose(settings.selection)
    dataset = dataset or load_data(settings.data, progress)
    with _disk_errors_explained(folder), place.locked():
        resumed = place.environment.exists()
        if not resumed or leaves_images_out(place):
            dataset = assembly.usable(dataset)
        settings, lacking = place.claim(settings), ""
        if len(place.records()) <= len(settings.budget):
            settings, lacking = begun(place, settings, progress)
        if resumed and not place.environment.exists():  # begun anew with other settings
            dataset = assembly.usable(dataset)
        objects = _hash_of(dataset)
        if not place.environment.exists():
            write_json(place.problems, [asdict(problem) for problem in dataset.problems])
            write_json(place.environment, {**describe(), "labels": objects})
        with Store(place.store, classes=dataset.classes, flush=False) as store:
            now = open_run(place, settings, dataset, store, progress, engine, share)
            _same_labels_as_before(place, store, objects)
            if not store.queries(1):
                new_detector(now)  # a missing device or weights are reported before the first answer
            for cycle in range(len(place.records()) + 1, len(settings.budget) + 2):
                now.cycle, now.seconds, now.notes = cycle, {}, [lacking] if lacking and cycle == 1 else []
                done = run_cycle(now, cycle)
                write_json(place.metrics, [*place.records(), done])
                finished(done)
    return place.records()


def open_run(
    folder: RunFolder,
    settings: Settings,
    dataset: listings.Dataset,
    store: Store,
    progress: Progress,
    engine: Engine | None = None,
    share: Path | None = None,
) -> Run:
    """Open the context of the steps of a cycle. The store receives the images, the oracle the earlier answers."""
    images, test = dataset.train.images, dataset.test
    if test is None:
        held_out = held_out_images(images, settings.seed)
        test = listings.Split(held_out, {i.id: dataset.train.truth[i.id] for i in held_out})
        images = tuple(i for i in images if i.id not in test.truth)
    of_test = sha256(repr([(i.id, i.path, i.width, i.height) for i in test.images]).encode()).hexdigest()[:12]
    keep_in = share if share and share.exists() else folder.root
    pool, tested = pictures_of(settings, images, test.images, keep_in, f"test_{of_test}")
    _same_pool_as_before(store.images(), images)
    store.add_images(images)
    oracle = SimulatedOracle(dataset.train.truth, settings.oracle.iou, settings.oracle.accept_iou)
    oracle.remember(store.answered())
    how = engine or scoring.score_here
    return Run(folder, settings, dataset, pool, tested, test.truth, store, oracle, progress, how, share=share)


def _same_pool_as_before(before: Mapping[int, ImageRecord], images: Sequence[ImageRecord]) -> None:
    """Raise UserError if a run resumes with different images."""
    changed = {Path(i.path).name for i in {*before.values()} ^ {*images}} if before else set[str]()
    if changed:
        raise UserError(
            f"the data set has changed since this run began: {len(changed)} images were added, removed or replaced, "
            f"such as {min(changed)}. Restore them, or start over in a new folder"
        )


def _hash_of(dataset: listings.Dataset) -> str:
    """A short hash of the classes and of all objects."""
    told = sha256(repr(dataset.classes).encode())
    for split in (dataset.train, *([dataset.test] if dataset.test else [])):
        for image_id, truth in sorted(split.truth.items()):
            told.update(repr((image_id, len(truth))).encode())
            for column in (truth.boxes, truth.labels, truth.difficult):
                told.update(np.ascontiguousarray(column).tobytes())
    return told.hexdigest()[:12]


def _same_labels_as_before(place: RunFolder, store: Store, objects: str) -> None:
    """Raise UserError if a run that has answers resumes with other labels. Earlier versions kept no hash of them."""
    try:
        environment = read_json(place.environment, dict)
    except Damaged:
        return
    if not store.answered():
        write_json(place.environment, {**environment, "labels": objects})
    elif environment.get("labels", objects) != objects:
        raise UserError(
            f"the labels have changed since the run in {place.root} began: its answers and metrics so far rest on the "
            "earlier ones. Restore them, or start over in a new folder"
        )


def held_out_images(images: Sequence[ImageRecord], seed: int) -> tuple[ImageRecord, ...]:
    """The images held out for evaluation, in their order. Raises UserError if there are fewer than two images."""
    if len(images) < 2:
        raise UserError("the data set has no test split and a single image; there is nothing to hold out for testing")
    return tuple(images[place] for place in rules.held_out(seed, len(images)))


@contextmanager
def _disk_errors_explained(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:  # a copy of a folder collects its errors in `shutil.Error`, which has no number
        reason = error.strerror or error.args[0][0][2]
        raise UserError(
            f"{error.filename or folder}: {reason}. No finished step is lost. Fix this and repeat the command to resume"
        ) from error
