"""The detections of a cycle's detector on the test images, with the objects there: ``tested.parquet``.

The report draws the final model from it, without the detector and the data set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox.core import parquet
from rarebox.core.files import damaged
from rarebox.evaluation import Matches, VocResult, cross_checked, match, voc_ap
from rarebox.types import Detections, Floats, GroundTruth, ImageRecord, Ints

IMAGE, OBJECT, DIFFICULT, DETECTION = "image", "object", "difficult", "detection"
"""The kind of a row: an image (its box covers the whole image), an object in it, a difficult object (which does not
count), or a detection."""


@dataclass(frozen=True, eq=False)
class Tested:
    """What a detector found on the test images, by image id, in the order in which they were tested."""

    images: Mapping[int, ImageRecord]
    detections: Mapping[int, Detections]
    truth: Mapping[int, GroundTruth]

    def curves(self, num_classes: int) -> VocResult:
        """The precision-recall curve and AP50 of each class, as the cycle was measured."""
        return voc_ap(self.detections, self.truth, num_classes)

    def match(self, num_classes: int, thresholds: Floats) -> Matches:
        """Which detection found which object, at a threshold for each class, (K,)."""
        return match(self.detections, self.truth, num_classes, thresholds)

    def cross_checked(self, num_classes: int) -> Ints:
        """The confusion matrix where each half of the images has the thresholds of the other half."""
        return cross_checked(self.detections, self.truth, num_classes)

    def classes_of(self, image_id: int) -> set[int]:
        """The labels of the objects of an image that count."""
        truth = self.truth[image_id]
        return {int(label) for label in truth.labels[~truth.difficult]}


def write_tested(
    file: Path,
    images: Sequence[ImageRecord],
    detections: Mapping[int, Detections],
    truth: Mapping[int, GroundTruth],
) -> None:
    """Write one table: a row for each image, then for each object, then for each detection.

    Columns: ``image_id``, ``row`` (image, object, difficult or detection), ``path`` (of an image), ``boxes`` (4) in
    pixels of the image, ``labels`` (-1 for an image) and ``scores`` (NaN unless it is a detection).
    """
    ids = np.array([image.id for image in images], dtype=np.int64)
    true, found = [truth[image.id] for image in images], [detections[image.id] for image in images]
    owners = [ids, np.repeat(ids, [len(t) for t in true]), np.repeat(ids, [len(d) for d in found])]
    whole = np.array([[0, 0, image.width, image.height] for image in images], dtype=np.float32).reshape(-1, 4)
    kinds = [DIFFICULT if one else OBJECT for t in true for one in t.difficult]
    paths = [image.path.encode(errors="replace").decode() for image in images]  # a name may not be valid text
    columns = {
        "image_id": np.concatenate(owners),
        "row": np.array([IMAGE] * len(ids) + kinds + [DETECTION] * len(owners[2]), dtype=object),
        "path": np.array(paths + [""] * (len(owners[1]) + len(owners[2])), dtype=object),
        "boxes": np.concatenate([whole, *(t.boxes for t in true), *(d.boxes for d in found)]),
        "labels": np.concatenate([np.full(len(ids), -1), *(t.labels for t in true), *(d.labels for d in found)]),
        "scores": np.concatenate(
            [np.full(len(ids) + len(owners[1]), np.nan, dtype=np.float32), *(d.scores for d in found)]
        ),
    }
    parquet.write(file, columns)


def read_tested(file: Path) -> Tested:
    """Read what :func:`write_tested` wrote. Raises Damaged if it is missing, unreadable or incomplete."""
    table = parquet.read(file)
    try:
        ids, kinds, boxes, labels = (table[name] for name in ("image_id", "row", "boxes", "labels"))
        whole = np.flatnonzero(kinds == IMAGE)
        images = {
            int(ids[row]): ImageRecord(int(ids[row]), str(table["path"][row]), *(int(side) for side in boxes[row, 2:]))
            for row in whole
        }
        found, true = np.flatnonzero(kinds == DETECTION), np.flatnonzero((kinds == OBJECT) | (kinds == DIFFICULT))
        detections = {
            i: Detections(boxes[rows], labels[rows], table["scores"][rows], np.zeros((len(rows), 0)))
            for i, rows in _by_image(ids, found, images).items()
        }
        truth = {
            i: GroundTruth(boxes[rows], labels[rows], kinds[rows] == DIFFICULT)
            for i, rows in _by_image(ids, true, images).items()
        }
    except (KeyError, ValueError, IndexError) as error:
        raise damaged(file, error) from error
    return Tested(images, detections, truth)


def _by_image(ids: Ints, rows: Ints, images: Mapping[int, ImageRecord]) -> dict[int, Ints]:
    """``rows`` by image, in their order. An image without rows has none."""
    order = rows[np.argsort(ids[rows], kind="stable")]
    starts, ends = (np.searchsorted(ids[order], [*images], side) for side in ("left", "right"))
    return {i: order[start:end] for i, start, end in zip(images, starts, ends, strict=True)}
