"""Labels to train a final detector on: which images are complete, which partial, and which measure it."""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from rarebox.core.progress import Progress, silent
from rarebox.data import datasets, listings
from rarebox.data.contents import Contents
from rarebox.data.remote import is_url
from rarebox.errors import UserError
from rarebox.loop import rules
from rarebox.types import Floats, GroundTruth, ImageLabels, ImageRecord, Ints

NOTHING = np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Labels:
    """The images that a detector trains on with their labels, and those that measure it.

    ``said`` are the labels of each image by its id. ``difficult`` are its objects that training ignores. The ``test``
    images are fully labelled; they are those that the data set names, or ``held_out`` of the others. ``skipped`` counts
    images without labels.
    """

    name: str
    classes: tuple[str, ...]
    images: tuple[ImageRecord, ...]
    said: Mapping[int, ImageLabels]
    difficult: Mapping[int, Floats]
    test: tuple[ImageRecord, ...]
    test_truth: Mapping[int, GroundTruth]
    held_out: bool
    skipped: int
    problems: tuple[listings.Problem, ...]

    @property
    def complete(self) -> tuple[ImageRecord, ...]:
        """The fully labelled images."""
        return tuple(image for image in self.images if self.said[image.id].complete)

    @property
    def partial(self) -> tuple[ImageRecord, ...]:
        """The images on which objects may lack a box."""
        return tuple(image for image in self.images if not self.said[image.id].complete)

    @property
    def objects(self) -> Ints:
        """How many boxes of each class train the detector: (K,)."""
        labels = [said.labels for said in self.said.values()]
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=len(self.classes))

    def fingerprint(self, contents: Contents, progress: Progress = silent) -> str:
        """A hash of everything but the folders of the images. Remote images count by name and size only."""
        images = (*self.images, *self.test)
        local = {image.path for image in images if not is_url(image.path)}
        contents.read(sorted(local), progress)
        told = sha256(repr(self.classes).encode())
        for image in images:
            content = contents.of(image.path) if image.path in local else ""
            told.update(repr((image.id, Path(image.path).name, image.width, image.height, content)).encode())
        for table in (*self.said.values(), *self.test_truth.values()):
            for column in vars(table).values():
                told.update(np.ascontiguousarray(column).tobytes())
        return told.hexdigest()


def read_labels(place: Path, seed: int, hold_out: bool, partial: bool, progress: Progress) -> Labels:
    """Read labels in any format that rarebox reads. Raises UserError if there is no box of a person.

    Boxes of a model are no labels: their images are partial. Images that no label file mentions are skipped. Without
    test images, a random fifth of five or more fully labelled images is held out, if ``hold_out``. With ``partial``,
    no image counts as fully labelled, whatever the labels say.
    """
    data = datasets.load_data(str(place), progress)
    said, difficult, partial_test = dict[int, ImageLabels](), dict[int, Floats](), 0
    for image in data.train.images:
        if image.id not in data.train.unlabelled:
            said[image.id], difficult[image.id] = _labels_of(data.train, image.id, partial)
    if not any(len(one.boxes) for one in said.values()):
        raise UserError(f"{place}: no image has a box that a person has drawn. Label some objects first")
    test, truth = tuple[ImageRecord, ...](), dict[int, GroundTruth]()
    if data.test:
        incomplete = data.test.incomplete | data.test.unlabelled
        test = tuple(image for image in data.test.images if image.id not in incomplete)
        truth = {image.id: data.test.truth[image.id] for image in test}
        partial_test = len(data.test.images) - len(test)
    used = [image for image in data.train.images if image.id in said]
    used = [image for image in used if said[image.id].complete or len(said[image.id].settled)]
    held_out = hold_out and not test
    if held_out:
        whole = [image for image in used if said[image.id].complete]
        chosen = [whole[i] for i in rules.held_out(seed, len(whole), rules.FEWEST_TO_HOLD_OUT)]
        known = {image.id: data.train.truth[image.id] for image in chosen}
        rest = [image for image in used if image.id not in known]
        if any(len(said[image.id].boxes) for image in rest):  # else there would be nothing to train on
            test, truth, used = tuple(chosen), known, rest
    ids = {image.id for image in used}
    return Labels(
        data.name,
        data.classes,
        tuple(used),
        {i: one for i, one in said.items() if i in ids},
        {i: one for i, one in difficult.items() if i in ids},
        test,
        truth,
        held_out and len(test) > 0,
        len(data.train.images) - len(used) - held_out * len(test) + partial_test,
        data.problems,
    )


def _labels_of(split: listings.Split, image_id: int, partial: bool) -> tuple[ImageLabels, Floats]:
    """What people have said about an image, and its difficult objects."""
    truth, unsure = split.truth[image_id], split.unsure[image_id]
    drawn = ~unsure & ~truth.difficult
    said = ImageLabels.of(
        truth.boxes[drawn],
        truth.labels[drawn],
        rejected=split.rejected.get(image_id, NOTHING),
        complete=not partial and image_id not in split.incomplete,
    )
    return said, truth.boxes[truth.difficult]
