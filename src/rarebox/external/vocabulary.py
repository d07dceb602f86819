"""Interpret lines of detections: classes by name or number, scores, class vectors with or without background."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox.data import detections
from rarebox.data.detections import DetectionFile, Line
from rarebox.data.fitting import has_area, in_first_pixel
from rarebox.data.listings import Numbers
from rarebox.errors import UserError, unknown_name
from rarebox.external.pool import Pool
from rarebox.types import Bools, Detections, Floats, Ints, score_vectors


@dataclass(frozen=True)
class Vocabulary:
    """The K classes. The first ``own`` are the detector's. ``numbers`` maps numbers in the files to classes.
    ``background`` is its place in class vectors, "first" or "last", if the file gives it."""

    classes: tuple[str, ...]
    numbers: Mapping[int, int]
    own: int
    background: str | None = None

    def label(self, label: str | int) -> int:
        """The index of a class from its name or number in a file."""
        return self.classes.index(label) if isinstance(label, str) else self.numbers[label]


def vocabulary(
    files: Sequence[DetectionFile],
    given: Sequence[str] | None,
    pool: Pool,
    notes: list[str],
    known: Numbers | None = None,
) -> Vocabulary:
    """The classes from the first source that names them: --classes, the file's head, labels and images, boxes.

    ``known`` are the numbers of a new project's labels and classes. Where it is given, other numbers are refused.
    """
    names = set[str]().union(*(file.names for file in files))
    numbers = set[int]().union(*(file.numbers for file in files))
    if isinstance(files[0], detections.CocoResults):
        return _by_category(files[0].path, given, pool, numbers, known)
    if len({file.classes for file in files if file.classes}) > 1:
        raise UserError(f"{files[1].path} names other classes than {files[0].path}. Both must come from one detector")
    if given and len({*given}) < len(given):
        raise UserError(f"--classes names a class twice: {', '.join(given)}. Name each class once, in order")
    head = next((file.classes for file in files if file.classes), ())
    if given and head and tuple(given) != head:
        raise UserError(
            f"{files[0].path} names the classes {', '.join(head)}, and --classes names {', '.join(given)}. Omit "
            "--classes, or correct it"
        )
    numbered: Mapping[int, str] = dict(enumerate(given or head))
    if known and not numbered and (numbers or not names):
        numbered = known.classes
        if not numbered:
            raise _unnumbered(files[0].path)
    declared = tuple(dict.fromkeys(numbered.values()))
    for name in sorted(names - {*declared}) if declared else ():
        raise unknown_name("class", name, declared)
    new = tuple(sorted(names - {*pool.classes}))
    if not declared and pool.classes and new:
        notes.append(f"classes that the labels and images do not name: {', '.join(new)}")
    strange = tuple(name for name in pool.classes if name not in declared) if declared else ()
    if strange:
        alike = {name.casefold(): name for name in declared}
        meant = [f"{name!r} as {alike[name.casefold()]!r}" for name in strange if name.casefold() in alike]
        notes.append(
            f"classes of the labels and images that the detector does not name: {', '.join(strange)}; no box will be "
            "of these classes" + (f" (write {', '.join(meant)} if you mean these)" if meant else "")
        )
    own = declared or (*pool.classes, *new) or tuple(str(n) for n in range(max(numbers, default=0) + 1))
    if not numbered:
        numbered = dict(enumerate(own)) if pool.numbers == dict(enumerate(pool.classes)) else pool.numbers
    if numbers and not numbered:
        raise _unnumbered(files[0].path)
    if unknown := sorted(numbers - numbered.keys()):
        listed = ", ".join(f"{number} {name}" for number, name in numbered.items())
        raise UserError(
            f"{files[0].path} has boxes of class number {unknown[0]}, counted from 0. Known are {listed}. Name all "
            "classes with --classes"
        )
    background = next((file.background for file in files if file.background), None)
    classes = tuple(dict.fromkeys((*own, *pool.classes)))
    return Vocabulary(classes, {n: classes.index(name) for n, name in numbered.items()}, len(own), background)


def _unnumbered(path: Path) -> UserError:
    return UserError(
        f"{path} does not name its classes, and neither --classes nor the labels number them (those of a project with "
        'merged classes do not). Add a first line such as {"classes": ["cat", "dog"]}'
    )


def _by_category(
    path: Path, given: Sequence[str] | None, pool: Pool, numbers: set[int], known: Numbers | None
) -> Vocabulary:
    """The classes of COCO results, from the categories of a COCO file; without one, the numbers are the names."""
    categories = known.categories if known else pool.categories
    if known and not categories:
        raise UserError(
            f"{path} gives classes as category numbers. Give the COCO file with these categories as --labels, or write "
            "JSON lines with class names (docs/your-detector.md)"
        )
    if given or (pool.classes and not categories):
        raise UserError(
            f"{path} gives classes as category numbers. Give a COCO file with these categories as --images or "
            "--labels, and omit --classes"
        )
    if not categories:
        categories = {number: str(number) for number in sorted(numbers)}
    unknown = sorted(numbers - categories.keys())
    if unknown:
        raise UserError(f"{path} has boxes of category {unknown[0]}, which no given COCO file names")
    own = tuple(dict.fromkeys(categories.values()))
    classes = tuple(dict.fromkeys((*own, *pool.classes)))
    return Vocabulary(classes, {number: classes.index(name) for number, name in categories.items()}, len(own))


class Understanding:
    """Convert lines to Detections with class vectors of one kind.

    ``dropped`` counts boxes without an area, ``shares`` those that seem to be in fractions of the image's sides, and
    ``clipped`` those that extended beyond their images. If the file has no class vectors,
    :func:`~rarebox.types.score_vectors` makes them.
    """

    def __init__(self, words: Vocabulary) -> None:
        self.words = words
        self.dropped = self.shares = self.clipped = 0
        self._width: int | None = None
        self._used = 0

    def __call__(self, line: Line) -> Detections:
        """The detections of a line. Raises UserError if it is inconsistent in itself or with earlier lines."""
        boxes, keep = self._boxes(line)
        probs = self._vectors(line)
        labels = self._labels(line, probs)
        scores = self._scores(line, labels, probs)
        if probs is None:
            probs = score_vectors(labels, scores, len(self.words.classes))
        self._same_kind(line, probs)
        return Detections(boxes[keep], labels[keep], scores[keep], probs[keep])

    def check_pixels(self, path: Path) -> None:
        """Raise UserError if all boxes lie within the first pixel, as boxes in fractions of the image do."""
        if self.shares and not self._used:
            raise UserError(
                f"{path}: all boxes lie between 0 and 1. Write them in pixels of the image, not in fractions"
            )

    def _boxes(self, line: Line) -> tuple[Floats, Bools]:
        boxes = line.boxes.astype(np.float32)
        sides = boxes[:, 2:] - boxes[:, :2]
        if (sides < 0).any():
            wrong = line.boxes[(sides < 0).any(axis=1)][0].tolist()
            raise UserError(
                f"{line.where}: a box is x1, y1, x2, y2 with x2 > x1 and y2 > y1, got {wrong}; if that is x, y, width, "
                "height, write the second corner instead"
            )
        shares = in_first_pixel(boxes, line.size)
        keep = has_area(boxes) & ~shares
        self.shares += int(shares.sum())
        self.dropped += int((~keep & ~shares).sum())
        self._used += int(keep.sum())
        return boxes, keep

    def _vectors(self, line: Line) -> Floats | None:
        """Class vectors over all K classes, with background first if there is one: (N, K) or (N, K + 1)."""
        given, own = line.class_probs, self.words.own
        if given is None or not len(line.boxes):
            return None
        if self.words.numbers != dict(enumerate(range(own))):
            raise UserError(
                f"{line.where}: there are class vectors, but the labels number their classes with gaps, or a class "
                'twice or not at all. Add a first line such as {"classes": ["cat", "dog"]}'
            )
        if given.shape[1] not in (own, own + 1):
            raise UserError(
                f"{line.where}: class vectors have {given.shape[1]} numbers, expected {own}, one for each class, or "
                f"{own + 1} with the background. Are all classes named ({', '.join(self.words.classes[:own])})?"
            )
        if given.min() < 0 or given.max() > 1 + 1e-3:
            raise UserError(
                f"{line.where}: class vectors must hold probabilities in [0, 1], got {given.min():.3g} to "
                f"{given.max():.3g}; if these are logits, apply softmax or sigmoid"
            )
        more = np.zeros((len(given), len(self.words.classes) - own))
        if given.shape[1] == own:
            return np.hstack([given, more])
        last = self.words.background == "last"
        if self.words.background is None:
            self._background_first(line, given)
        return np.hstack([given[:, -1:], given[:, :-1], more] if last else [given, more])

    def _background_first(self, line: Line, given: Floats) -> None:
        """Raise UserError unless the boxes' scores show that the background comes first."""
        if line.labels is None or line.scores is None:
            raise UserError(
                f"{line.where}: class vectors have one number more than there are classes. Say where the background is "
                'with a first line such as {"classes": ["cat", "dog"], "background": "first"}'
            )
        labels = np.array([self.words.label(label) for label in line.labels])
        if np.abs(given[np.arange(len(given)), labels + 1] - line.scores).max() > 0.01:
            raise UserError(
                f"{line.where}: the scores are not those of the boxes' classes in vectors with the background first. "
                'Say where it is with a first line such as {"classes": ["cat", "dog"], "background": "last"}'
            )

    def _labels(self, line: Line, probs: Floats | None) -> Ints:
        if line.labels is not None:
            return np.array([self.words.label(label) for label in line.labels], dtype=np.int64)
        if len(line.boxes) and probs is None:
            raise UserError(f'{line.where}: there are neither "labels" nor "class_probs"')
        first = 0 if probs is None else probs.shape[1] - len(self.words.classes)
        return np.zeros(0, np.int64) if probs is None else probs[:, first:].argmax(axis=1)

    def _scores(self, line: Line, labels: Ints, probs: Floats | None) -> Floats:
        if line.scores is not None:
            scores = line.scores
        elif probs is not None:
            scores = probs[np.arange(len(probs)), labels + probs.shape[1] - len(self.words.classes)]
        elif len(line.boxes):
            raise UserError(f'{line.where}: there are neither "scores" nor "class_probs"')
        else:
            scores = np.zeros(0)
        if len(scores) and (scores.min() < 0 or scores.max() > 1 + 1e-3):
            raise UserError(f"{line.where}: scores must be in [0, 1], got {scores.min():.3g} to {scores.max():.3g}")
        return np.minimum(scores, 1)

    def _same_kind(self, line: Line, probs: Floats) -> None:
        if len(probs) and self._width not in (None, probs.shape[1]):
            raise UserError(
                f"{line.where}: some boxes have class vectors with a background, others without, or none at all. Use "
                "one form for all, including those on copies"
            )
        self._width = self._width or (probs.shape[1] if len(probs) else None)
