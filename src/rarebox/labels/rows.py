"""Conversion of label store rows to objects. A damaged cell is reported, and only the value of that cell is lost.

Disks flip bits, and people edit files. So every cell is checked when it becomes part of an object: its type, its
range, and the existence of what it refers to.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import TypeGuard, TypeVar, cast

import numpy as np
from sqlalchemy import Row

from rarebox.types import Answer, ImageRecord, Ints, Query, Verdict, as_boxes

MOST_TOLD = 20
"""The most damaged cells of one store that are reported on standard error."""

NOBODY = "unknown"
"""The author of an answer whose ``by`` is damaged."""

Cells = Row[*tuple[object, ...]]
"""A row as the database returns it; its cells are not checked yet."""

Box = list[float]
"""A box as the store holds it: x1, y1, x2, y2."""

T = TypeVar("T")

_LARGEST = 1e30  # a coordinate beyond this is damage, and may not fit into float32
_VERDICTS = frozenset(verdict.value for verdict in Verdict)
_NO_BOXES = np.zeros((0, 4), dtype=np.float32)
_log = logging.getLogger(__name__)


class Unreadable:
    """The value of a cell whose JSON cannot be parsed."""

    def __init__(self, content: object) -> None:
        self.content = content

    def __repr__(self) -> str:
        return repr(self.content)


class Rows:
    """Converts the rows of one store to objects, and lists the damaged cells that it finds.

    ``where`` names the store. ``has_image`` and ``is_label`` tell whether a value is the id of a readable image and
    the label of a class.
    """

    def __init__(self, where: str, has_image: Callable[[object], bool], is_label: Callable[[object], bool]) -> None:
        self._where, self._has_image, self._is_label = where, has_image, is_label
        self._damage: dict[tuple[str, object, str], str] = {}

    @property
    def damage(self) -> list[str]:
        """One sentence for each damaged cell so far: the store, the table, the row, the column and the outcome."""
        return list(self._damage.values())

    def report(self, table: str, row: object, column: str, value: object, outcome: str) -> None:
        """Record a damaged cell, and log it once to standard error."""
        if (table, row, column) in self._damage:
            return
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        sentence = f"{self._where}: table {table}, row {row}: {column} is damaged ({shown}); {outcome}"
        self._damage[table, row, column] = sentence.encode("utf-8", "backslashreplace").decode()
        if len(self._damage) <= MOST_TOLD:
            _log.warning("%s", self._damage[table, row, column])
        elif len(self._damage) == MOST_TOLD + 1:
            _log.warning("%s: more cells are damaged. Restore a backup (docs/store.md)", self._where)

    def image(self, row: Cells) -> ImageRecord | None:
        """Convert a row of ``images``. None if its size is damaged, because no box could be placed."""
        for side in ("width", "height"):
            value = getattr(row, side)
            if type(value) is not int or not 0 < value < 2**31:
                self.report("images", row.id, side, value, "the image and its labels are left out")
                return None
        path = row.path
        if not is_text(path) or "\0" in path:
            path = f"image {row.id}"
            self.report("images", row.id, "path", row.path, "its photo cannot be found; its labels are kept")
        return ImageRecord(row.id, path, row.width, row.height)

    def name(self, table: str, row: object, column: str, value: object, instead: str) -> str:
        """A name, or ``instead`` if it is damaged."""
        if is_text(value) and value:
            return value
        self.report(table, row, column, value, f"it is called {instead!r}")
        return instead

    def query(self, row: Cells) -> Query | None:
        """Convert a row of ``queries``. None if it cannot be asked; labels from its answers are kept."""
        for column, good in (
            ("image_id", self._has_image(row.image_id)),
            ("box", row.box is None or is_box(row.box)),
            ("cycle", type(row.cycle) is int),
            ("position", type(row.position) is int),
        ):
            if not good:
                self.report("queries", row.id, column, getattr(row, column), "the question is left out")
                return None
        guess, utility, why, wanted, by = row.guess, row.utility, row.why, row.wanted, row.asked_by
        if guess is not None and not self._is_label(guess):
            guess = self._without(row, "guess", None)
        if not is_number(utility):
            utility = self._without(row, "utility", 0.0)
        if why is not None and not are_numbers(why):
            why = self._without(row, "why", None)
        if type(wanted) is not int or not 0 < wanted < 2**31:
            wanted = self._without(row, "wanted", 1)
        if by is not None and not is_text(by):
            by = self._without(row, "asked_by", NOBODY)
        box = None if row.box is None else np.array(row.box, dtype=np.float32)
        return Query(row.image_id, box, guess, utility, why, row.id, wanted, by)

    def _without(self, row: Cells, column: str, instead: T) -> T:
        self.report("queries", row.id, column, getattr(row, column), f"{instead} is used instead")
        return instead

    def said(self, row: Cells, classes: int, table: str = "answers") -> tuple[list[Box], list[int], Verdict]:
        """Boxes, labels and verdict of a row with an answer. If one of them is damaged, the verdict is CANNOT_TELL."""
        if column := _fault(row.verdict, row.boxes, row.labels, classes):
            outcome = "the answer counts as 'cannot tell'. Answer again, or restore a backup (docs/store.md)"
            self.report(table, row.answer_id, column, getattr(row, column), outcome)
            return [], [], Verdict.CANNOT_TELL
        return row.boxes, row.labels, Verdict(row.verdict)

    def answer(self, row: Cells, counts_as: Ints, table: str = "answers") -> Answer:
        """Convert a row of a table with answers. ``counts_as`` (K,) maps merged classes."""
        boxes, labels, verdict = self.said(row, len(counts_as), table)
        by, milliseconds = row.by, self.milliseconds(row)
        if not is_text(by) or not by:
            by = NOBODY
            self.report(table, row.answer_id, "by", row.by, f"it counts as an answer of {by!r}")
        counted = counts_as[np.array(labels, dtype=np.int64)]
        return Answer(row.query_id, as_boxes(boxes) if boxes else _NO_BOXES, counted, verdict, by, milliseconds)

    def milliseconds(self, row: Cells) -> int:
        """The time that the annotator took for the answer in a row."""
        if type(row.milliseconds) is int and 0 <= row.milliseconds < 2**53:
            return row.milliseconds
        self.report("answers", row.answer_id, "milliseconds", row.milliseconds, "0 is used instead")
        return 0

    def time(self, row: Cells) -> datetime:
        """The time at which the answer in a row was recorded."""
        if isinstance(row.answered_at, datetime):
            return row.answered_at
        self.report("answers", row.answer_id, "answered_at", row.answered_at, "its time is shown as 1970")
        return datetime(1970, 1, 1)


def _fault(verdict: object, boxes: object, labels: object, classes: int) -> str | None:
    """The first damaged column of an answer, or None."""
    if not isinstance(verdict, str) or verdict not in _VERDICTS:
        return "verdict"
    if not _is_list(boxes) or not all(map(is_box, boxes)) or (boxes and verdict != Verdict.OBJECT):
        return "boxes"
    if not _is_list(labels) or len(labels) != len(boxes):
        return "labels"
    return None if all(type(label) is int and 0 <= label < classes for label in labels) else "labels"


def _is_list(value: object) -> TypeGuard[list[object]]:
    return isinstance(value, list)


def are_numbers(value: object) -> TypeGuard[dict[str, float]]:
    """Whether the value is a JSON object whose values are all finite numbers."""
    return isinstance(value, dict) and all(map(is_number, cast(dict[str, object], value).values()))


def is_box(value: object) -> TypeGuard[Box]:
    """Whether the value is four finite numbers x1, y1, x2, y2 that span an area."""
    if not _is_list(value) or len(value) != 4:
        return False
    x1, y1, x2, y2 = value
    if not (is_number(x1) and is_number(y1) and is_number(x2) and is_number(y2)):
        return False
    if not (-_LARGEST < x1 < x2 < _LARGEST and -_LARGEST < y1 < y2 < _LARGEST):
        return False
    return bool(np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2))


def is_number(value: object) -> TypeGuard[float]:
    """Whether the value is a finite number."""
    return (type(value) is int or type(value) is float) and -1e300 < value < 1e300


def is_text(value: object) -> TypeGuard[str]:
    """Whether the value is valid text. The store reads bytes that are not UTF-8 as lone surrogates."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))
