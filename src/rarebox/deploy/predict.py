"""Detection on a user's own images by a trained model. Read :func:`predict` first."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from rarebox import detectors
from rarebox.core.files import OWN_MARK, hold, mark_own, write_text
from rarebox.core.progress import Progress, silent
from rarebox.data.detected import ImageDetections, Predicted, write_detected
from rarebox.data.image_list import NamedImage, coco_numbers, left_out_for, named_images
from rarebox.data.images import UnreadableImage, image_size, none_readable, read_picture, readers
from rarebox.data.naming import is_writable
from rarebox.data.remote import is_url
from rarebox.data.tiles import Tiling, join_detections
from rarebox.data.tiles import pictures as tile_pictures
from rarebox.deploy.model import Model, open_model
from rarebox.deploy.pictures import draw, remove_pictures
from rarebox.deploy.results import LINES, Results
from rarebox.detectors import Detector
from rarebox.errors import UserError
from rarebox.loop.scoring import behind
from rarebox.types import Detections, Floats, ImageRecord, Picture, as_boxes

BATCH = 8

AHEAD = 32
"""Images that are read in advance."""

UNREADABLE, LOCK = "unreadable.txt", "lock"

UNWRITABLE = "its name holds a control character, which files of detections cannot. Rename it"


def predict(
    model: Path,
    images: Path,
    to: Path,
    *,
    score: float | None = None,
    tiling: Tiling | None = None,
    pictures: bool = True,
    device: str = "auto",
    progress: Progress = silent,
) -> Predicted:
    """Run a model on images, and write detections and pictures with their boxes into a folder. Loads torch.

    ``model`` is a run, a project or the folder of a model. ``images`` is what :func:`named_images` takes. ``to`` gets
    ``detections.jsonl`` and ``coco_results.json`` (all boxes), and ``detections.csv``, ``coco.json`` and ``pictures/``
    (the boxes that are shown). A box is shown from the threshold of its class on, or from ``score`` in [0, 1]. With
    ``tiling`` the model runs on the tiles of each image, and their boxes are joined. The same call resumes after an
    interruption, and repeats no image that has not changed. Raises UserError without a model or a readable image, and
    if ``to`` holds something else, such as detections of another model or with another tiling.
    """
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"the score must be in [0, 1], got {score}")
    opened = open_model(model)
    _check_free(to)
    named = named_images(images, but=to)
    files = [(name, file) for name, file in named if is_writable(name)]
    unreadable = [UnreadableImage(file, UNWRITABLE) for name, file in named if not is_writable(name)]
    to.mkdir(parents=True, exist_ok=True)
    with hold(to / LOCK), Results(to / LINES, opened, tiling) as results:
        mark_own(to, "predict")
        before = results.names
        todo = [file for file in files if not results.knows(*file)]
        unreadable += _detect(opened, todo, results, tiling, device, progress, len(files))
        found = results.of(files)
        if not found:  # the photos may come back, so earlier results stay
            raise none_readable(images, unreadable)
        results.keep_only(found)
        shown = _shown(found, opened, score)
        write_detected(to, opened.classes, shown, found, coco_numbers(images, files))
        _write_unreadable(to / UNREADABLE, unreadable)
        remove_pictures(to, before, found)
        if pictures:
            draw(to, dict(files), shown, opened.classes, progress)
    counts = Counter(label for one in shown for label in one.labels)
    return Predicted(
        to,
        len(found),
        len(files) - len(todo),
        sum(counts.values()),
        dict(counts.most_common()),
        tuple(map(str, unreadable)),
        opened.measured,
        left_out_for(images, to),
    )


def _detect(
    model: Model,
    files: Sequence[NamedImage],
    results: Results,
    tiling: Tiling | None,
    device: str,
    progress: Progress,
    total: int,
) -> list[UnreadableImage]:
    """Run the model on images, record each result at once, and return the images that cannot be read."""
    unreadable = list[UnreadableImage]()
    if not files:
        return unreadable
    detector, before = detectors.load(model.folder, device), total - len(files)
    progress("detect", before, total, "images")
    reading, done = _read(files, detector.settings.size, tiling), before
    while batch := list(islice(reading, BATCH)):
        good = [(image, read) for image, read in batch if isinstance(read, _Read)]
        unreadable += [read for _, read in batch if isinstance(read, UnreadableImage)]
        found = _on_tiles(detector, [read for _, read in good])
        for (image, read), detections in zip(good, found, strict=True):
            results.add(image, _found(image[0], read, detections, model))
        done += len(batch)
        progress("detect", done, total, "images")
    return unreadable


@dataclass(frozen=True, eq=False)
class _Read:
    """An image of a (width, height) as pictures for the detector: of itself, or of its tiles, at ``windows`` (T, 4)."""

    size: tuple[int, int]
    windows: Floats
    pictures: Sequence[Picture]


def _read(
    files: Sequence[NamedImage], size: tuple[int, int], tiling: Tiling | None
) -> Iterator[tuple[NamedImage, _Read | UnreadableImage]]:
    """Each image at working size, or why it cannot be read. Other threads read in advance."""

    def read(file: Path | str) -> _Read | UnreadableImage:
        try:
            width, height, _ = image_size(file)
            if tiling:
                windows = tiling.windows(width, height)
                return _Read((width, height), windows, tile_pictures(file, windows, size))
            picture = read_picture(ImageRecord(0, str(file), width, height), *size)
            return _Read((width, height), as_boxes([[0, 0, width, height]]), [picture])
        except UnreadableImage as error:
            return error

    far = any(is_url(file) for _, file in files)
    with ThreadPoolExecutor(min(AHEAD, readers(far))) as threads:
        try:
            for image, reading in behind(((image, threads.submit(read, image[1])) for image in files), AHEAD):
                yield image, reading.result()
        finally:
            threads.shutdown(cancel_futures=True)


def _on_tiles(detector: Detector, images: Sequence[_Read]) -> Iterator[Detections]:
    """The detections on each image, in its pixels; those of tiles are joined."""
    pictures = [picture for image in images for picture in image.pictures]
    batches = (pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH))
    found = (one for batch in batches for one in detector.predict(batch))
    for image in images:
        yield join_detections([*islice(found, len(image.pictures))], image.windows, image.size)


def _found(name: str, image: _Read, detections: Detections, model: Model) -> ImageDetections:
    labels = detections.labels
    return ImageDetections(
        name,
        *image.size,
        np.round(detections.boxes.astype(np.float64), 2).tolist(),
        [model.name_of(label) for label in labels.tolist()],
        np.round(detections.scores.astype(np.float64), 4).tolist(),
        labels.tolist(),
    )


def _shown(found: Sequence[ImageDetections], model: Model, score: float | None) -> list[ImageDetections]:
    """Of each image the boxes from the threshold of their class on."""
    least = model.thresholds if score is None else np.full(len(model.thresholds), score)
    return [one.only([s >= least[label] for s, label in zip(one.scores, one.numbers, strict=True)]) for one in found]


def _check_free(to: Path) -> None:
    """Raise UserError if a folder holds something that another command or a person has put there."""
    if to.exists() and not to.is_dir():
        raise UserError(f"{to} is a file. Name a new or empty folder")
    if to.is_dir() and not (to / LINES).exists() and set(os.listdir(to)) - {LOCK, OWN_MARK}:
        raise UserError(f"{to} is not empty and holds no detections of rarebox. Name a new or empty folder")


def _write_unreadable(file: Path, unreadable: Sequence[UnreadableImage]) -> None:
    if unreadable:
        write_text(file, "".join(f"{one.path}: {one.reason}\n" for one in unreadable))
    else:
        file.unlink(missing_ok=True)
