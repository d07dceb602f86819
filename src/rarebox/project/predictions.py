"""Boxes of other detectors in a project (``rarebox predictions add``): one file each, in the folder ``predictions``.

They become candidates: the trainer ranks them with those of the project's detector (``pool.ranking.with_added``), and
while a class has no example, a part of the questions is about its boxes here (:class:`rarebox.loop.rules.CycleAsker`).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from zlib import crc32

import numpy as np

from rarebox.core import parquet
from rarebox.core.boxes import rescaling
from rarebox.core.files import damaged
from rarebox.core.text import counted
from rarebox.data.classes import Classes
from rarebox.data.contents import same_photos
from rarebox.data.naming import ByName
from rarebox.errors import UserError, unknown_name
from rarebox.strategies.box import entropies
from rarebox.types import ADDED, Candidates, Floats, ImageRecord, Ints, concatenate

NONE = -1
"""The label of a class that the project does not have."""

COLUMNS = ("image_id", "boxes", "labels", "scores")

MOST_NAMED = 5
"""How many names a message lists."""


class Found(Protocol):
    """Boxes of another detector, and the images and classes that they refer to."""

    @property
    def candidates(self) -> Candidates: ...
    @property
    def images(self) -> Mapping[int, ImageRecord]: ...
    @property
    def classes(self) -> Sequence[str]: ...


@dataclass(frozen=True)
class Summary:
    """What one file of predictions holds: boxes by class name, the most frequent first, and the number of photos."""

    name: str
    boxes: int
    photos: int
    per_class: dict[str, int]


@dataclass(frozen=True, eq=False)
class Matched:
    """Boxes with the ids and labels of a project, and one sentence for each kind of box that was left out."""

    candidates: Candidates
    notes: tuple[str, ...]


def place_of(root: Path, name: str) -> Path:
    """The file of the predictions with this name. Raises UserError for a name that is not a plain file name."""
    if not re.fullmatch(r"(?!\.)[\w. -]{1,80}", name):
        raise UserError(f"{name!r} cannot name predictions. Use letters, digits, - and _, such as --name owlv2")
    return root / "predictions" / f"{name}.parquet"


def files(root: Path) -> dict[str, Path]:
    """The files of predictions by name. Version 0.1 had one, in the folder of the project."""
    former = root / "predictions.parquet"
    found = {"predictions": former} if former.exists() else {}
    return found | {file.stem: file for file in sorted((root / "predictions").glob("*.parquet"))}


def matched(found: Found, photos: Mapping[int, ImageRecord], classes: Sequence[str]) -> Matched:
    """Boxes of a detector with the ids, labels and pixels of a project's photos.

    Boxes on other images and of other classes are left out. A photo is found by its file (images of our exports are
    links or copies with other names), else by name. Raises UserError if a photo has another shape than the image that
    the detector saw.
    """
    known, boxes = Classes(classes), found.candidates
    seen = [found.images[i] for i in np.unique(boxes.image_id).tolist()]
    photo_of, ambiguous = _photos_of(seen, photos)
    label_of = np.array([_or_none(known.find(name)) for name in found.classes], dtype=np.int64)
    there, labels = np.isin(boxes.image_id, [*photo_of]), label_of[boxes.labels]
    kept, notes = there & (labels != NONE), list[str]()
    if ambiguous:
        notes.append(f"{counted(len(ambiguous), 'image')} skipped, since several photos fit: {ambiguous[0][1]}")
    unclear = {image_id for image_id, _ in ambiguous}
    if lacking := [image.path for image in seen if image.id not in photo_of and image.id not in unclear]:
        notes.append(f"{counted(len(lacking), 'image')} skipped, not among the project's photos: {_few(lacking)}")
    if strange := sorted({found.classes[int(i)] for i in boxes.labels[there & ~kept].tolist()}):
        count = counted(int((there & ~kept).sum()), "box", "boxes")
        notes.append(f"{count} skipped, of classes that the project does not have: {_few(strange)}")
    if not kept.any() and len(boxes):
        raise UserError(f"none of the {counted(len(boxes), 'box', 'boxes')} can be used. {'. '.join(notes)}")
    factors = {image.id: _factors(image, photos[photo_of[image.id]]) for image in seen if image.id in photo_of}
    ids = boxes.image_id[kept].tolist()
    scaled = boxes.boxes[kept] * np.reshape([factors[i] for i in ids], (-1, 4))
    found_here = as_candidates(np.array([photo_of[i] for i in ids]), scaled, labels[kept], boxes.scores[kept])
    return Matched(found_here, tuple(notes))


def _photos_of(
    seen: Sequence[ImageRecord], photos: Mapping[int, ImageRecord]
) -> tuple[dict[int, int], list[tuple[int, str]]]:
    """The id of the photo that each image shows, by the image's id; and the images that may be several, with why."""
    by_name = ByName[int]()
    for image_id, photo in photos.items():
        by_name.add(photo.path, image_id)
    same = same_photos([image.path for image in seen], photos.values())
    photo_of, ambiguous = dict[int, int](), list[tuple[int, str]]()
    for image in seen:
        try:
            photo = same[image.path] if image.path in same else by_name.match(image.path)
        except UserError as error:
            ambiguous.append((image.id, str(error)))
            continue
        if photo is not None:
            photo_of[image.id] = photo
    return photo_of, ambiguous


def _or_none(label: int | None) -> int:
    return NONE if label is None else label


def _factors(seen: ImageRecord, photo: ImageRecord) -> Floats:
    size = (photo.width, photo.height)
    factors = rescaling((seen.width, seen.height) if seen.width else size, size)
    if factors is None:
        raise UserError(
            f"{seen.path}: the boxes are of a picture of {seen.width} x {seen.height} pixels, the photo has "
            f"{size[0]} x {size[1]}. Run the detector on the photos themselves"
        )
    return factors


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


def as_candidates(image_id: Ints, boxes: Floats, labels: Ints, scores: Floats) -> Candidates:
    """Another detector's boxes as candidates: (T,), (T, 4), (T,), (T,).

    The index of a box is a hash of it, so it stays the same whatever other boxes there are.
    """
    count, boxes = len(labels), np.asarray(boxes, np.float32).reshape(-1, 4)
    index = [ADDED + crc32(box.tobytes(), label) for box, label in zip(boxes, labels.tolist(), strict=True)]
    nothing, no_vectors = np.zeros(count), np.zeros((count, 0))
    columns = (image_id, np.array(index, dtype=np.int64), boxes, labels)
    found = Candidates(*columns, scores, nothing, nothing, no_vectors)
    return Candidates(*columns, scores, entropies(found, num_classes=1), nothing, no_vectors)


def write(file: Path, found: Candidates) -> None:
    """Write boxes to a file atomically."""
    parquet.write(file, {name: getattr(found, name) for name in COLUMNS})


def read(file: Path, counts_as: Ints) -> Candidates:
    """Read boxes that :func:`write` wrote, with merged classes. Raises Damaged."""
    columns = parquet.read(file)
    try:
        image_id, boxes, labels, scores = (columns[name] for name in COLUMNS)
        return as_candidates(image_id, boxes, counts_as[labels], scores)
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError, RuntimeWarning) as error:
        raise damaged(file, repr(error)[:100]) from error


def read_all(root: Path, counts_as: Ints) -> Candidates | None:
    """The boxes of all files, equal ones once. None if there are none. Raises Damaged."""
    found = [read(file, counts_as) for file in files(root).values()]
    if not found:
        return None
    together = concatenate(found)
    keys = np.stack([together.image_id, together.box_index])
    return together[np.sort(np.unique(keys, axis=1, return_index=True)[1])]


def summary(name: str, found: Candidates, classes: Sequence[str]) -> Summary:
    """Count the boxes of a file."""
    per_class = Counter(classes[int(label)] for label in found.labels.tolist())
    return Summary(name, len(found), len(np.unique(found.image_id)), dict(per_class.most_common()))


def remove(root: Path, name: str) -> None:
    """Remove a file of predictions. Raises UserError if there is none of that name."""
    known = files(root)
    if name not in known:
        raise unknown_name("predictions", name, known) if known else UserError(f"{root} has no added predictions")
    known[name].unlink()
