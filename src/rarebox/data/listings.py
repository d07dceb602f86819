"""What label files contain, in the form that all formats share.

A reader (``coco``, ``voc``, ``yolo``) only parses. It returns the content of the label files as `Listing`s. Then
``fitting`` decides what can be used, and lists everything else as a `Problem`.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from rarebox.core.boxes import hull_of_turned
from rarebox.core.files import OWN_MARK
from rarebox.data.images import left_out
from rarebox.data.naming import clean
from rarebox.data.narrow import Object, as_float
from rarebox.errors import UserError, presentable
from rarebox.types import Bools, Floats, GroundTruth, ImageRecord

__all__ = [
    "EXPORT_MARK",
    "Dataset",
    "ListedBox",
    "ListedImage",
    "Listing",
    "Problem",
    "Split",
]

EXPORT_MARK = OWN_MARK
_LARGEST_ID = 2**53  # the largest integer that every JSON reader holds exactly

QUESTION = "query"
"""The source of a box in a ranked list: a question to people, which is no label."""

OPEN_BOXES = "questions, not labels"
"""The kind of the problems that list the images whose questions are ignored."""

NO_LABEL_FILE = (
    "it has no label file. A simulation takes it as an image without objects, other commands take it as unlabelled."
)

OWN_OUTPUT = "written by rarebox"
"""The kind of the problem that reports images in folders that rarebox has written."""

NOT_USED = "image not used"
"""The kind of the problems that list the images a simulation skips."""


@dataclass(frozen=True)
class Problem:
    """One thing in the data that was skipped, clipped or dropped, or should be checked.

    ``kind`` is a short name to count by, such as "box clipped". ``where`` is the file and the line or entry in it.
    ``what`` says what is wrong there and what happened to it, in sentences that follow ``where`` and a colon.
    """

    kind: str
    where: str
    what: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "where", presentable(self.where))
        object.__setattr__(self, "what", presentable(self.what))


@dataclass(frozen=True, eq=False)
class Split:
    """Readable images in listed order, and the objects of each image id (0 rows if it shows none).

    ``incomplete`` are the ids of images with objects that ``truth`` lacks: a box was dropped, or the labels say that
    some are missing. The area outside the boxes of these images is not background. ``unlabelled`` are images that no
    label file mentions: in a finished data set they show no object, otherwise they are not labelled yet. ``unsure``
    marks the rows of truth that no person drew around a single object: crowds, which are also difficult, and boxes of
    a model. ``rejected`` (R, 4) are boxes without an object, of the images that have some.
    """

    images: tuple[ImageRecord, ...]
    truth: Mapping[int, GroundTruth]
    incomplete: frozenset[int] = frozenset()
    unlabelled: frozenset[int] = frozenset()
    unsure: Mapping[int, Bools] = field(default_factory=dict[int, Bools])
    rejected: Mapping[int, Floats] = field(default_factory=dict[int, Floats])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set that is ready for use, and the ``problems`` found in its files.

    Image ids are unique across both splits; labels are indices into ``classes``.
    """

    name: str
    root: Path
    classes: tuple[str, ...]
    train: Split
    test: Split | None
    problems: tuple[Problem, ...]


class ListedBox(NamedTuple):
    """A box as written in a label file: x1, y1, x2, y2, which may be any numbers. ``where`` is its place in the file.

    ``source`` is the origin of the box, a `Source` or `QUESTION`, or empty if the file does not say. ``crowd``: the box
    is around several objects.
    """

    box: tuple[float, float, float, float]
    name: str
    difficult: bool
    where: str
    source: str = ""
    crowd: bool = False


_DEGREES = re.compile(r"\s*(°|deg\.?|degrees?)\s*$", re.IGNORECASE)


def upright(box: Sequence[float], attributes: Object) -> tuple[float, float, float, float]:
    """The upright box around a box whose attributes may rotate it about its centre: x1, y1, x2, y2 in pixels.

    ``rotation`` is in degrees, as CVAT writes it beside the unrotated box, perhaps with a degree sign. Case in names is
    ignored. Raises ``ValueError`` for a rotation that is not finite, for text with digits that is not a number, and for
    an ``angle`` or ``theta`` that may be in radians. A value without digits is ignored.
    """
    plain = {name.strip().casefold(): value for name, value in attributes.items() if value}
    for name in ("rotation", "angle", "theta"):
        value = plain.get(name)
        try:
            turn = as_float((_DEGREES.sub("", value) if isinstance(value, str) else value) or 0)
        except (TypeError, ValueError, OverflowError):
            if any(map(str.isdecimal, str(value))):
                raise ValueError(
                    f"its {name} {value!r:.40} is not a number. Write the upright box around it."
                ) from None
            continue
        if not math.isfinite(turn) or (name != "rotation" and 0 < abs(turn) <= 2 * math.pi):
            why = "may be in degrees or radians" if math.isfinite(turn) else "is not finite"
            raise ValueError(f"it is rotated ({name} {value}), which {why}. Write the upright box around it.")
        if turn:
            x1, y1, x2, y2 = hull_of_turned(box, turn).tolist()
            return x1, y1, x2, y2
    x1, y1, x2, y2 = box
    return x1, y1, x2, y2


def listed_size(width: object, height: object, where: str, problems: list[Problem]) -> tuple[int, int] | None:
    """The (width, height) in pixels of an image in a label file, from numbers or text; None if it has none.

    It has none if a side is absent or empty, or both are 0. Any other value that is not a size is reported.
    """
    if {None, ""}.intersection(side for side in (width, height) if isinstance(side, str | None)):
        return None
    try:
        said = [as_float(side) for side in (width, height)]
        size = (round(said[0]), round(said[1]))
        if min(size) < 1 and any(said):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        what = f"{width!r:.30} x {height!r:.30} is not a valid size. The boxes are read as pixels of the image file."
        problems.append(Problem("size in labels is wrong", where, what))
        return None
    return size if any(said) else None


class Guess(NamedTuple):
    """A pseudo label in an export: its class, None if that was renamed since; its centre and sides in fractions of the
    image's sides."""

    name: str | None
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class ListedImage:
    """An image as a label file lists it.

    ``path`` is a file or a URL. ``size`` is the listed (width, height) in pixels, if any. With ``relative`` the boxes
    are in fractions of the image's sides, otherwise in 0-based pixels. ``complete``: whether every object has a box;
    None if unknown. ``lost``: the file lists an object that cannot be used and is not among the ``boxes``.
    ``labelled``: whether the image has labels at all. ``content``: the SHA-256 of the labelled photo, if known.
    ``guesses`` are pseudo labels, which other tools may have saved among the ``boxes`` without their source.
    """

    path: Path | str
    boxes: Sequence[ListedBox] = ()
    id: int | None = None
    size: tuple[int, int] | None = None
    relative: bool = False
    complete: bool | None = None
    lost: bool = False
    labelled: bool = True
    content: str = ""
    guesses: Sequence[Guess] = ()


@dataclass(frozen=True, eq=False)
class Listing:
    """What a reader has found for one split. ``source`` is the file or folder that lists it.

    ``categories`` are the class names by the numbers of a COCO file; other formats have none. ``numbers`` are the class
    names by the numbers from 0 that a detector trained on the labels writes; empty if these are ambiguous. ``files``
    are the label files that were read or that a problem names. Class names that some format cannot hold are cleaned
    (:func:`rarebox.data.naming.clean`), and reported.
    """

    source: Path
    classes: Sequence[str]
    images: Sequence[ListedImage]
    problems: list[Problem] = field(default_factory=list[Problem])
    categories: Mapping[int, str] = field(default_factory=dict[int, str])
    numbers: Mapping[int, str] = field(default_factory=dict[int, str])
    files: set[Path] = field(default_factory=set[Path])

    def __post_init__(self) -> None:
        named = dict.fromkeys([*self.classes, *(box.name for image in self.images for box in image.boxes)])
        as_cleaned = {name: clean(name) or "unnamed" for name in named}
        changed = {name: cleaned for name, cleaned in as_cleaned.items() if name != cleaned}
        if not changed:
            return
        for name, cleaned in changed.items():
            what = f"files cannot hold the class name {name!r}. It becomes {cleaned!r}."
            if any(as_cleaned[other] == cleaned for other in named if other != name):
                what += " Another class has that name, so both become one class. Rename one if they differ."
            self.problems.append(Problem("class name cleaned", str(self.source), what))
        images = [
            replace(image, boxes=[box._replace(name=as_cleaned[box.name]) for box in image.boxes])
            for image in self.images
        ]
        object.__setattr__(self, "classes", list(dict.fromkeys(as_cleaned[name] for name in self.classes)))
        object.__setattr__(self, "images", images)
        for numbered in ("categories", "numbers"):
            names: Mapping[int, str] = getattr(self, numbered)
            object.__setattr__(self, numbered, {key: as_cleaned[name] for key, name in names.items()})


@dataclass(frozen=True)
class Numbers:
    """The meaning of the numbers that a detector trained on a data set writes.

    ``classes`` are the names by number from 0, which may have gaps and repeat a name. ``categories`` are the classes by
    category number, ``images`` the paths by image id. All are empty if the format has no numbers.
    """

    classes: Mapping[int, str] = field(default_factory=dict[int, str])
    categories: Mapping[int, str] = field(default_factory=dict[int, str])
    images: Mapping[int, str] = field(default_factory=dict[int, str])


def agreed(numbered: Collection[tuple[int, str]]) -> dict[int, str]:
    """The names in order of number, from pairs; empty if one number has two different names."""
    names = dict(sorted(numbered))
    return names if all(names[number] == name for number, name in numbered) else {}


Reader = Callable[[], tuple[Listing, Listing | None]]
"""Reads the training and the test images of a data set; a format's ``find`` returns one, or None for other formats."""

ReadProgress = Callable[[int, int], None]
"""Called with (number of images read, number of images)."""

Size = tuple[int, int, int]
"""Width and height of an upright image, and the EXIF orientation of its file."""


OBJECT_LOST = (
    "box dropped",
    "unknown category",
    "annotation without image",
    "several label files",
    "ambiguous annotation",
    "image size differs",
    "image rotated by EXIF",
)
"""The kinds of problems in which an object loses its box."""


def refuse_lost(source: Path, problems: Sequence[Problem]) -> None:
    """Raise `UserError` if any problem cost an object its box. Call this only when ``source`` has no usable object."""
    lost = [problem for problem in problems if problem.kind in OBJECT_LOST]
    if lost:
        raise UserError(
            f"{source}: none of its objects can be used ({len(lost)} problems). The first: {lost[0].where}: "
            f"{lost[0].what} Correct the labels, or export them again."
        )


def written_by_rarebox(folder: Path) -> list[Problem]:
    """The problem that images below a folder are left out, because rarebox has written them, if there are any."""
    note = left_out(folder)
    return [Problem(OWN_OUTPUT, str(folder), f"{note}.")] if note else []


def own_numbers(images: Sequence[ListedImage]) -> Sequence[int]:
    """The ids that a file gives its images if they are distinct whole numbers, else 1, 2, and so on."""
    own = [image.id for image in images if image.id is not None and 0 <= image.id < _LARGEST_ID]
    return own if len(set(own)) == len(images) else range(1, len(images) + 1)
