"""A project as a :class:`~rarebox.loop.run.Run`, for training and scoring."""

import numpy as np

from rarebox.config import Settings
from rarebox.core.progress import Progress
from rarebox.data import listings
from rarebox.labels.store import Store
from rarebox.loop import scoring
from rarebox.loop.begin import begun
from rarebox.loop.run import Engine, Run, pictures_of
from rarebox.loop.run_folder import RunFolder
from rarebox.project import predictions
from rarebox.project.photo_folder import photos_there
from rarebox.project.project import held_out_in
from rarebox.types import GroundTruth, ImageLabels


def open_project(
    folder: RunFolder, settings: Settings, store: Store, progress: Progress, engine: Engine | None = None
) -> Run:
    """Open a project as a run without an oracle.

    Its pool is the images of the store that have a photo. Its test images are the held-out ones, with people's answers
    as ground truth. Raises UserError if all photos are missing.
    """
    settings, lacking = begun(folder, settings, progress)
    said, classes = store.labels(), store.classes()
    held = held_out_in(store)
    truth = {i: _truth(said[i]) for i in sorted(held) if i in said and said[i].complete}
    images = photos_there(folder, settings, store)
    truth = {i: said_of for i, said_of in truth.items() if i in images}
    pool = listings.Split(tuple(image for i, image in images.items() if i not in held), {})
    test = listings.Split(tuple(images[i] for i in truth), truth)
    dataset = listings.Dataset(folder.root.name, folder.root, classes, pool, test, ())
    pictures, tested = pictures_of(settings, pool.images, test.images, folder.root)
    how = engine or scoring.score_here
    notes = [lacking] if lacking and not folder.records() else []
    added = predictions.read_all(folder.root, store.counts_as())
    if added is not None:
        added = added[np.isin(added.image_id, [image.id for image in pool.images])]
    return Run(folder, settings, dataset, pictures, tested, truth, store, None, progress, how, notes=notes, added=added)


def _truth(said: ImageLabels) -> GroundTruth:
    """The objects of a fully labelled image."""
    return GroundTruth(
        np.concatenate([said.boxes, said.difficult]),
        np.concatenate([said.labels, said.difficult_labels]),
        np.repeat([False, True], [len(said.boxes), len(said.difficult)]),
    )
