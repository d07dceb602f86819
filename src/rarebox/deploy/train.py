"""A final detector from labels, complete or partial. Read :func:`train` first.

On partially labelled images an object without a box must not train as background. So a first detector trains on the
fully labelled images, its detections on the others become pseudo labels as in a run's cycle (Eq. 5, 6), and the final
detector trains on everything.
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox import config, detectors
from rarebox.config import Settings
from rarebox.core import seeds
from rarebox.core.files import copy, damaged, hold, read_json, write_json
from rarebox.core.progress import Progress, StageProgress, silent
from rarebox.data.contents import Contents
from rarebox.data.model_card import JSON, PAGE, ModelCard
from rarebox.data.pictures import Pictures
from rarebox.deploy.card import card_of_training
from rarebox.deploy.labels import NOTHING, Labels, read_labels
from rarebox.detectors import Detector
from rarebox.detectors.detector import ABOUT, WEIGHTS, check_saved
from rarebox.detectors.teacher import Renewal
from rarebox.detectors.weights import checksum
from rarebox.errors import Damaged, UserError
from rarebox.labels.targets import make_targets
from rarebox.loop.begin import begun
from rarebox.loop.measuring import Measured, detect, measure
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.scoring import score_images
from rarebox.pool.candidates import rows_by_image
from rarebox.types import Candidates, ImageRecord, Targets

CLAIM, LOCK, WORK = "training.json", "lock", "work"
"""What the model is made from, the lock of the folder, and the folder of what is only needed until it is made."""

IDENTITY = np.array([0.0, 1.0])
"""Scores as they are: there are no answers to calibrate them on."""


@dataclass(frozen=True, eq=False)
class _Work:
    """A training in progress: its folder, its images at working size, and how it reports."""

    folder: Path
    settings: Settings
    labels: Labels
    pictures: Pictures
    progress: Progress

    def of(self, images: tuple[ImageRecord, ...]) -> Pictures:
        return self.pictures.of(images)

    def stage(self, name: str) -> StageProgress:
        return lambda done, of, note: self.progress(name, done, of, note)


def train(
    labels: Path,
    to: Path,
    settings: Settings,
    *,
    hold_out: bool = True,
    partial: bool = False,
    progress: Progress = silent,
    found: Callable[[Labels], None] = lambda _: None,
) -> ModelCard:
    """Train a detector on labels, write it to a folder with its card, and return the card. Loads torch.

    ``labels`` is a data set in any format that rarebox reads, such as an export. ``hold_out`` and ``partial`` are those
    of :func:`read_labels`, and ``found`` is called with what it has read. The same call resumes after an interruption,
    with the same result. Raises UserError if ``to`` holds a model, the training of another one, or anything else, and
    without labels.
    """
    check_free(to)
    data = read_labels(labels, settings.seed, hold_out, partial, progress)
    found(data)
    to.mkdir(parents=True, exist_ok=True)
    with hold(to / LOCK):
        check_free(to)  # another process may have been faster
        _claim(to, settings, data, progress)
        settings, _ = begun(RunFolder(to), settings, progress)
        work = _Work(to / WORK, settings, data, Pictures(data.images, settings.detector.size), progress)
        detector = _fit(work, "final", _targets(work), "train")
        measured = _measure(work, detector) if data.test else None
        made = work.folder / "final"
        card = card_of_training(to.resolve().name, data, settings, measured, checksum(made / WEIGHTS))
        if measured:
            write_json(to / "evaluated.json", measured)
        card.write(to / JSON, to / PAGE)
        copy(made / ABOUT, to / ABOUT)
        (made / WEIGHTS).replace(to / WEIGHTS)  # last: with it the model is there
        shutil.rmtree(work.folder)
    return card


def check_free(to: Path) -> None:
    """Raise UserError if a model cannot be trained in this folder."""
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file. Name a new or empty folder")
    if (to / WEIGHTS).exists():
        raise UserError(f"{to} holds a trained model already, which stays as it is. Name a new folder")
    if to.is_dir() and not (to / CLAIM).exists() and {file.name for file in to.iterdir()} - {LOCK, f"{CLAIM}.part"}:
        raise UserError(f"{to} is not empty and holds no training of rarebox. Name a new or empty folder")


def _claim(to: Path, settings: Settings, data: Labels, progress: Progress) -> None:
    """Record what the model is made from, or check that a training that resumes is of the same."""
    contents = Contents(to / WORK / "photos.json")
    now = {"labels": data.fingerprint(contents, progress), "settings": settings.model_dump(mode="json")}
    if not (to / CLAIM).exists():
        write_json(to / CLAIM, now)
        _save(contents, to)
        return
    before = read_json(to / CLAIM, dict)
    try:
        then = config.check(config.as_written_before(before["settings"]))
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise damaged(to / CLAIM, error) from error
    changed = config.difference(then, settings, ("data", "device"))
    if before.get("labels") != now["labels"]:
        changed.insert(0, "the labels or images have changed")
    if changed:
        raise UserError(
            f"{to} holds an unfinished training of another model. Name another folder, or repeat what it was started "
            "with:\n  " + "\n  ".join(changed)
        )
    _save(contents, to)


def _save(contents: Contents, to: Path) -> None:
    """Keep the hashes of the photos for the next start. Only after the claim: a folder without one is refused."""
    (to / WORK).mkdir(exist_ok=True)
    contents.save()


def _targets(work: _Work) -> dict[int, Targets]:
    """The targets of all images by id. Partially labelled ones get pseudo labels of a first detector."""
    labels, settings = work.labels, work.settings
    guessed: dict[int, Candidates] = {}
    if labels.partial and settings.pseudo.method != "none":
        whole = {image.id: _target(work, image.id) for image in labels.complete or labels.partial}
        first = _fit(work, "first", whole, "train a first detector")
        report, count = work.stage("score"), len(labels.partial)
        scored, _ = score_images(
            first, work.of(labels.partial), settings, 2, lambda done: report(done, count, "images")
        )
        scored = scored[scored.scores >= settings.lowest_pseudo_score]
        guessed = {i: scored[rows] for i, rows in rows_by_image(scored).items()}
    return {image.id: _target(work, image.id, guessed.get(image.id)) for image in labels.images}


def _target(work: _Work, image_id: int, candidates: Candidates | None = None) -> Targets:
    labels = work.labels
    return make_targets(
        labels.said[image_id], candidates, labels.difficult.get(image_id, NOTHING), work.settings.pseudo
    )


def _fit(work: _Work, name: str, targets: Mapping[int, Targets], stage: str) -> Detector:
    """A detector trained on these targets: from the work's folder if it is there, else from its checkpoint or start."""
    folder, settings, report = work.folder / name, work.settings, work.stage(stage)
    try:
        check_saved(folder)
    except Damaged:
        folder.mkdir(parents=True, exist_ok=True)
        images = tuple(image for image in work.labels.images if image.id in targets)
        complete = np.array([work.labels.said[image.id].complete for image in images])
        detector = detectors.build(
            **settings.detector.model_dump(),
            num_classes=len(work.labels.classes),
            classes=work.labels.classes,
            device=settings.device,
            training=settings.training,
            seed=seeds.number(settings.seed, "model"),
        )
        detector.fit(
            work.of(images),
            [targets[image.id] for image in images],
            seed=seeds.number(settings.seed, "fit", 1 if name == "first" else 2),
            checkpoint=folder / "fit.checkpoint",
            progress=lambda step, steps, loss: report(step, steps, f"loss {loss:.3f}"),
            complete=complete,
            renewal=None if complete.all() else Renewal(settings.pseudo, IDENTITY, IDENTITY),
        )
        detector.save(folder)
    return detectors.load(folder, settings.device, settings.training)


def _measure(work: _Work, detector: Detector) -> Measured:
    labels, settings = work.labels, work.settings
    tested = Pictures(labels.test, settings.detector.size)
    found = detect(detector, tested, work.stage("evaluate"))
    return measure(settings.seed, found, labels.test_truth, labels.classes)
