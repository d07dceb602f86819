"""Rows of the label store as objects. A damaged cell is reported, and costs no more than what it says.

Disks flip bits, and people edit files. So every cell is checked where it becomes part of an object: its type, its
range, and that what it refers to exists.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np

from rarebox.types import Answer, ImageRecord, Ints, Query, Verdict, as_boxes

MOST_TOLD = 20
"""Damaged cells of one store that are told on standard error."""

NOBODY = "unknown"
"""Whose an answer is where its cell is damaged."""

_LARGEST = 1e30  # a coordinate beyond this is damage, and may not fit into float32
_VERDICTS = frozenset(verdict.value for verdict in Verdict)
_NO_BOXES = np.zeros((0, 4), dtype=np.float32)
_log = logging.getLogger(__name__)


class Unreadable:
    """What the database hands over for a cell whose JSON cannot be parsed."""

    def __init__(self, content: Any) -> None:
        self.content = content

    def __repr__(self) -> str:
        return repr(self.content)


class Rows:
    """Turns the rows of one store into objects, and keeps a list of the damaged cells that it met.

    ``where`` names the store. ``has_image`` and ``is_label`` say whether a value is the id of a readable image, and
    the label of a class.
    """

    def __init__(self, where: str, has_image: Callable[[Any], bool], is_label: Callable[[Any], bool]) -> None:
        self._where, self._has_image, self._is_label = where, has_image, is_label
        self._damage: dict[tuple[str, Any, str], str] = {}

    @property
    def damage(self) -> list[str]:
        """A sentence for each damaged cell so far: the store, the table, the row, the column and what came of it."""
        return list(self._damage.values())

    def report(self, table: str, row: Any, column: str, value: Any, outcome: str) -> None:
        """Note a damaged cell, and say so once on standard error."""
        if (table, row, column) in self._damage:
            return
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:60]}…"
        told = f"{self._where}: table {table}, row {row}: {column} is damaged ({shown}); {outcome}"
        self._damage[table, row, column] = told.encode("utf-8", "backslashreplace").decode()
        if len(self._damage) <= MOST_TOLD:
            _log.warning("%s", self._damage[table, row, column])
        elif len(self._damage) == MOST_TOLD + 1:
            _log.warning("%s: more cells are damaged; restore a backup (docs/store.md)", self._where)

    def image(self, row: Any) -> ImageRecord | None:
        """A row of the images. None if its size is damaged: no box would have a place."""
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

    def name(self, table: str, row: Any, column: str, value: Any, instead: str) -> str:
        """A name, or another one where it is damaged."""
        if is_text(value) and value:
            return value
        self.report(table, row, column, value, f"it is called {instead!r}")
        return instead

    def query(self, row: Any) -> Query | None:
        """A row of the queries. None where it cannot be asked about; the labels that came of it are kept."""
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
        if why is not None and not (isinstance(why, dict) and all(map(is_number, why.values()))):
            why = self._without(row, "why", None)
        if type(wanted) is not int or not 0 < wanted < 2**31:
            wanted = self._without(row, "wanted", 1)
        if by is not None and not is_text(by):
            by = self._without(row, "asked_by", NOBODY)
        box = None if row.box is None else np.array(row.box, dtype=np.float32)
        return Query(row.image_id, box, guess, utility, why, row.id, wanted, by)

    def _without(self, row: Any, column: str, instead: Any) -> Any:
        self.report("queries", row.id, column, getattr(row, column), f"{instead} is taken instead")
        return instead

    def said(self, row: Any, classes: int) -> tuple[list[Any], list[int], Verdict]:
        """Boxes, labels and verdict of a row with an answer; where one of them is damaged: that nobody can tell."""
        if column := _fault(row.verdict, row.boxes, row.labels, classes):
            outcome = "the answer counts as 'cannot tell'; give it again, or restore a backup (docs/store.md)"
            self.report("answers", row.answer_id, column, getattr(row, column), outcome)
            return [], [], Verdict.CANNOT_TELL
        return row.boxes, row.labels, Verdict(row.verdict)

    def answer(self, row: Any, counts_as: Ints) -> Answer:
        """A row with an answer, its labels as what they count as by now."""
        boxes, labels, verdict = self.said(row, len(counts_as))
        by, milliseconds = row.by, self.milliseconds(row)
        if not is_text(by) or not by:
            by = NOBODY
            self.report("answers", row.answer_id, "by", row.by, f"it counts as an answer of {by!r}")
        counted = counts_as[np.array(labels, dtype=np.int64)]
        return Answer(row.query_id, as_boxes(boxes) if boxes else _NO_BOXES, counted, verdict, by, milliseconds)

    def milliseconds(self, row: Any) -> int:
        """How long a row with an answer took."""
        if type(row.milliseconds) is int and 0 <= row.milliseconds < 2**53:
            return row.milliseconds
        self.report("answers", row.answer_id, "milliseconds", row.milliseconds, "0 is taken instead")
        return 0

    def time(self, row: Any) -> datetime:
        """When a row with an answer came."""
        if isinstance(row.answered_at, datetime):
            return row.answered_at
        self.report("answers", row.answer_id, "answered_at", row.answered_at, "its time is shown as 1970")
        return datetime(1970, 1, 1)


def _fault(verdict: Any, boxes: Any, labels: Any, classes: int) -> str | None:
    """The first damaged column of an answer."""
    if not isinstance(verdict, str) or verdict not in _VERDICTS:
        return "verdict"
    if not isinstance(boxes, list) or not all(map(is_box, boxes)) or (boxes and verdict != Verdict.OBJECT):
        return "boxes"
    if not isinstance(labels, list) or len(labels) != len(boxes):
        return "labels"
    return None if all(type(label) is int and 0 <= label < classes for label in labels) else "labels"


def is_box(value: Any) -> bool:
    """Whether it is four finite numbers x1, y1, x2, y2 that span an area."""
    if type(value) is not list or len(value) != 4 or not all(map(is_number, value)):
        return False
    x1, y1, x2, y2 = value
    if not (-_LARGEST < x1 < x2 < _LARGEST and -_LARGEST < y1 < y2 < _LARGEST):
        return False
    return bool(np.float32(x1) < np.float32(x2) and np.float32(y1) < np.float32(y2))


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and -1e300 < value < 1e300


def is_text(value: Any) -> bool:
    """Whether it is text; bytes that were no UTF-8 have become lone surrogates."""
    return isinstance(value, str) and (value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value))
