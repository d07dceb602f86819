"""Collect the labels of a run from its store and its last targets, for export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from rarebox.config import PseudoSettings
from rarebox.core.boxes import far_from
from rarebox.core.files import real
from rarebox.core.progress import Progress, silent
from rarebox.data.export import COLUMNS, Annotations
from rarebox.data.remote import is_url
from rarebox.data.tiles import Tiles, join
from rarebox.data.tiles import read as read_tiles
from rarebox.labels.store import Store
from rarebox.labels.targets import read_targets, remaining
from rarebox.loop.run_folder import RunFolder
from rarebox.project.photo_folder import check_photos
from rarebox.types import Bools, Floats, ImageLabels, ImageRecord, Ints, Source, Targets, concatenate

SAME_OBJECT = 0.5
"""A pseudo label is left out if its IoU with a human box, joined from tiles, is at least this."""


def collect(
    run: Path, damage: list[str] | None = None, warnings: list[str] | None = None, progress: Progress = silent
) -> tuple[list[ImageRecord], tuple[str, ...], list[Annotations]]:
    """Images, class names and annotations of a run: human and difficult boxes, and the pseudo labels of the last cycle.

    Later answers count: there is no pseudo label near a box that a person has drawn, rejected or skipped since the
    training, or on a fully labelled image, and each has its current class. Classes that were merged into others are
    left out, and the others numbered without gaps. Damaged rows of the store are skipped and added to ``damage``. Moved
    photos are found again, and warnings about photos are added to ``warnings``. Raises UserError if there is no run.
    """
    folder, found = RunFolder(run), check_photos(run, progress)
    if warnings is not None:
        warnings += found.warnings()
    settings = folder.read_settings()
    with Store(folder.labels(settings)) as store:
        said, images, classes, counts_as = store.labels(), store.images(), store.classes(), store.counts_as()
        if damage is not None:
            damage += store.damage
    targets = read_targets(last) if (last := _last_targets(folder)) else {}
    guesses = {
        i: _guesses(targets[i], labels, settings.pseudo, counts_as) for i, labels in said.items() if i in targets
    }
    annotations = [_annotations(i, labels, guesses.get(i)) for i, labels in said.items()]
    live = np.flatnonzero(counts_as == np.arange(len(counts_as)))
    annotations = [replace(one, labels=np.searchsorted(live, one.labels)) for one in annotations]
    return list(images.values()), tuple(classes[label] for label in live), annotations


def tiles_of(run: Path) -> Tiles | None:
    """The tiles that the images of a run are; None if they are not tiles. Raises UserError."""
    data = RunFolder(run).read_settings().data
    return None if is_url(data) else read_tiles(Path(data))


def join_tiles(
    tiles: Tiles, images: Sequence[ImageRecord], annotations: Sequence[Annotations]
) -> tuple[list[ImageRecord], list[Annotations]]:
    """The photos of a project's tiles, numbered from 1, and their labels in pixels of the photos.

    A pseudo label joins no human box: if both are of one object, the human box alone counts. A photo is fully labelled
    if all its tiles are.
    """
    id_of = {real(image.path): image.id for image in images}
    labels_of = {labels.image_id: labels for labels in annotations}
    photos, joined = list[ImageRecord](), list[Annotations]()
    for number, (name, size) in enumerate(tiles.sizes.items(), 1):
        ids = [id_of.get(real(file), 0) for file in tiles.files(name)]
        if any(ids):
            photos.append(ImageRecord(number, str(tiles.photos / name), *size))
            parts = [labels_of.get(image_id) for image_id in ids]
            joined += [_joined(number, parts, tiles.tiling.windows(*size), size)] if any(parts) else []
    return photos, joined


def _joined(number: int, parts: Sequence[Annotations | None], windows: Floats, size: tuple[int, int]) -> Annotations:
    """The labels of a photo of a (width, height), from those of its tiles, ``windows`` (T, 4); None: no answer."""
    known = [(tile, part) for tile, part in enumerate(parts) if part is not None]
    complete = all(part is not None and part.complete for part in parts)
    columns = {name: np.concatenate([getattr(part, name) for _, part in known]) for name in COLUMNS}
    tiles = np.repeat([tile for tile, _ in known], [len(part.boxes) for _, part in known])
    columns["boxes"] += windows[tiles][:, [0, 1, 0, 1]]
    every = Annotations(number, **columns, complete=complete)
    guessed = every.source == Source.PSEUDO
    people, model = (_objects(every, tiles, rows, windows, size) for rows in (~guessed, guessed))
    model = model.only(far_from(model.boxes, people.boxes, SAME_OBJECT))
    return replace(people, **{name: np.concatenate([getattr(people, name), getattr(model, name)]) for name in COLUMNS})


def _objects(labels: Annotations, tiles: Ints, chosen: Bools, windows: Floats, size: tuple[int, int]) -> Annotations:
    """The chosen boxes of tiles, joined."""
    some = labels.only(chosen)
    boxes, rows = join(some.boxes, some.labels, some.scores, tiles[chosen], windows, size)
    return replace(some.only(rows), boxes=boxes)


def _last_targets(folder: RunFolder) -> Path | None:
    files = [folder.cycle(r["cycle"]) / "targets.parquet" for r in folder.records()]
    return next((file for file in reversed(files) if file.exists()), None)


def _guesses(targets: Targets, said: ImageLabels, settings: PseudoSettings, counts_as: Ints) -> Targets:
    """The pseudo labels of one image that no answer has settled."""
    if said.complete:
        return targets[np.zeros(len(targets), dtype=bool)]
    guesses = targets[(targets.source == Source.PSEUDO) & ~targets.background]
    known = guesses.labels < len(counts_as)
    guesses = guesses[known & remaining(guesses.boxes, said, settings)]
    return replace(guesses, labels=counts_as[guesses.labels])


def _annotations(image_id: int, said: ImageLabels, guessed: Targets | None) -> Annotations:
    """The human and difficult boxes of the store, and the pseudo labels beside them."""
    human = Targets.of(said.boxes, said.labels)
    difficult = Targets.of(said.difficult, said.difficult_labels, Source.DIFFICULT)
    none = human[np.zeros(len(human), dtype=bool)]
    every = concatenate([human, difficult, none if guessed is None else guessed])
    weights = every.class_weight, every.class_weight, every.box_weight
    return Annotations(image_id, every.boxes, every.labels, every.source, *weights, said.complete)
