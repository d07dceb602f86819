"""Collect the labels of a run from its store and its last targets, for export."""

from pathlib import Path

import numpy as np

from rarebox.core.progress import Progress, silent
from rarebox.data.export import Annotations
from rarebox.labels.store import Store
from rarebox.labels.targets import read_targets
from rarebox.loop.run_folder import RunFolder
from rarebox.project.photo_folder import check_photos
from rarebox.types import ImageLabels, ImageRecord, Source, Targets


def collect(
    run: Path, damage: list[str] | None = None, warnings: list[str] | None = None, progress: Progress = silent
) -> tuple[list[ImageRecord], tuple[str, ...], list[Annotations]]:
    """Images, class names and annotations of a run: human boxes, and the last cycle's pseudo labels.

    Damaged rows of the store are skipped and added to ``damage``. Moved photos are found again, and warnings about
    photos are added to ``warnings``. Raises UserError if there is no run.
    """
    folder, found = RunFolder(run), check_photos(run, progress)
    if warnings is not None:
        warnings += found.warnings()
    with Store(folder.labels(folder.read_settings())) as store:
        said, images, classes = store.labels(), store.images(), store.classes()
        if damage is not None:
            damage += store.damage
    targets = read_targets(last) if (last := _last_targets(folder)) else {}
    annotations = [_annotations(i, labels, targets.get(i)) for i, labels in said.items()]
    return list(images.values()), classes, annotations


def _last_targets(folder: RunFolder) -> Path | None:
    files = [folder.cycle(r["cycle"]) / "targets.parquet" for r in folder.records()]
    return next((file for file in reversed(files) if file.exists()), None)


def _annotations(image_id: int, said: ImageLabels, targets: Targets | None) -> Annotations:
    """The human boxes of the store, and the pseudo labels that were trained on beside them."""
    human = np.ones(len(said.boxes))
    if targets is None:
        source = np.array([Source.HUMAN] * len(human), dtype=object)
        return Annotations(image_id, said.boxes, said.labels, source, human, human, human, said.complete)
    guessed = targets[(targets.source == Source.PSEUDO) & ~targets.background]
    source = [Source.HUMAN] * len(human) + [Source.PSEUDO] * len(guessed)
    return Annotations(
        image_id,
        np.concatenate([said.boxes, guessed.boxes]),
        np.concatenate([said.labels, guessed.labels]),
        np.array(source, dtype=object),
        np.concatenate([human, guessed.class_weight]),
        np.concatenate([human, guessed.class_weight]),
        np.concatenate([human, guessed.box_weight]),
        said.complete,
    )
