"""People at the label store: who is at work on which question, and answers that never overwrite one another.

A question is *leased* to one holder (a tab of a browser) for a while, so that no two people get the same one unless it
wants two answers. An answer that corrects another names the one that it corrects; if that is not the latest any more,
nothing is written and the person is shown what stands.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, select

from rarebox import schema
from rarebox.boxes import clip, iou_matrix
from rarebox.errors import UserError
from rarebox.store import Store, as_answer, as_query
from rarebox.types import Answer, Floats, Ints, Query, Verdict

LONGEST_NAME = 60
"""Characters of a class's or a person's name."""


@dataclass(frozen=True, eq=False)
class Submission:
    """What one person says, under a ``key`` of their own making: the same key again is the same answer again.

    It answers the query ``query_id``; with ``after`` it corrects (or withdraws) the answer of that id. Without a query
    it is about the image ``image_id``: a box drawn unasked, or, with ``complete``, that every object has its box now.
    """

    key: str
    verdict: Verdict
    boxes: Floats
    labels: Ints
    milliseconds: int = 0
    query_id: int | None = None
    image_id: int | None = None
    after: int | None = None
    complete: bool = False


class Status(StrEnum):
    """What became of a submission. REFUSED: it cannot count; CONFLICT: somebody else was there first."""

    SAVED = "saved"
    CONFLICT = "conflict"
    REFUSED = "refused"


@dataclass(frozen=True, eq=False)
class Given:
    """An answer with its number, its question and when it came."""

    id: int
    query: Query
    cycle: int
    answer: Answer
    at: datetime


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a submission; ``current`` is the answer that stands, where it is another one."""

    key: str
    status: Status
    query_id: int | None = None
    answer_id: int | None = None
    reason: str | None = None
    current: Given | None = None


class People:
    """Leases, answers and classes of one store. Every method is one transaction, or part of the one around it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    # Questions

    def claim(self, holder: str, by: str, want: int, seconds: float, cycle: int | None = None) -> list[Query]:
        """Up to ``want`` questions for a holder: those it has, then open ones of a cycle (the latest) in their order.

        Each is this holder's for so many seconds from now.
        """
        now = time.time()
        with self.store.transaction(writes=True) as connection:
            latest = select(func.max(schema.cycles.c.cycle)).scalar_subquery() if cycle is None else cycle
            found = connection.execute(_held(holder, by)).all()
            if len(found) < want:
                more = _open(by, now, holder).where(schema.queries.c.cycle == latest).limit(want - len(found))
                found = [*found, *connection.execute(more).all()]
            connection.execute(delete(schema.leases).where(schema.leases.c.holder == holder))
            if found:
                rows = [{"query_id": row.id, "holder": holder, "by": by, "until": now + seconds} for row in found]
                connection.execute(insert(schema.leases), rows)
        return [as_query(row) for row in found]

    def waiting(self, cycle: int) -> int:
        """How many questions of a cycle are open and nobody's just now."""
        with self.store.transaction() as connection:
            statement = _open("", time.time(), "").where(schema.queries.c.cycle == cycle)
            return connection.scalar(select(func.count()).select_from(statement.subquery())) or 0

    # Answers

    def submit(self, holder: str, by: str, said: Submission, seconds: float = 0) -> Outcome:
        """Record what a person says, unless that cannot be; ``seconds`` for which a withdrawn question stays theirs."""
        with self.store.transaction(writes=True) as connection:
            before = select(schema.answers.c.id, schema.answers.c.query_id).where(schema.answers.c.key == said.key)
            if there := connection.execute(before).first():
                return Outcome(said.key, Status.SAVED, there.query_id, there.id)
            if said.query_id is None:
                return self._unasked(connection, by, said)
            row = connection.execute(
                select(schema.queries).where(schema.queries.c.id == said.query_id).with_for_update()
            ).first()
            if row is None:
                return Outcome(said.key, Status.REFUSED, reason=f"there is no question {said.query_id}")
            if objection := _objection(connection, row, holder, by, said, self.store.counts_as()):
                return objection
            try:
                answer = self._answer(connection, row.id, row.image_id, by, said)
                (number,) = self.store.record([answer], [said.key])
            except ValueError as error:
                return Outcome(said.key, Status.REFUSED, row.id, reason=str(error))
            mine = (schema.leases.c.query_id == row.id, schema.leases.c.holder == holder)
            connection.execute(delete(schema.leases).where(*mine))
            if said.verdict is Verdict.WITHDRAWN and row.asked_by is None:
                lease = {"query_id": row.id, "holder": holder, "by": by, "until": time.time() + seconds}
                connection.execute(insert(schema.leases), lease)
            return Outcome(said.key, Status.SAVED, row.id, number)

    def _unasked(self, connection: Connection, by: str, said: Submission) -> Outcome:
        """A box that was missed, or the word that an image is complete: a question of the person's own, answered."""
        refused = Outcome(said.key, Status.REFUSED)
        if said.verdict is not Verdict.OBJECT or len(said.boxes) != (0 if said.complete else 1):
            return replace(refused, reason="a missed object needs one box, and a complete image none")
        cycle = connection.scalar(select(func.max(schema.cycles.c.cycle)))
        if cycle is None:
            return replace(refused, reason="the project is still being prepared; wait for the first questions")
        try:
            answer = self._answer(connection, 0, said.image_id or 0, by, said)
            box, guess = (None, None) if said.complete else (answer.boxes[0], int(answer.labels[0]))
            (query,) = self.store.ask(cycle, [Query(said.image_id or 0, box, guess, asked_by=by)])
            (number,) = self.store.record([replace(answer, query_id=query.id)], [said.key])
            return Outcome(said.key, Status.SAVED, query.id, number)
        except ValueError as error:
            return replace(refused, reason=str(error))

    def _answer(self, connection: Connection, query_id: int, image_id: int, by: str, said: Submission) -> Answer:
        """What was said as an answer, its boxes cut at the border of the image; ValueError for what cannot be one."""
        boxes = said.boxes
        if len(boxes):
            size = select(schema.images.c.width, schema.images.c.height).where(schema.images.c.id == image_id)
            if (image := connection.execute(size).first()) is None:
                raise ValueError(f"there is no image {image_id}")
            boxes = clip(boxes, *image)
        return Answer(query_id, boxes, said.labels, said.verdict, by, said.milliseconds)

    def given(self, after: int = 0) -> list[Given]:
        """Every answer with a number above ``after``, withdrawn ones too, in the order in which they came."""
        columns = (*schema.queries.c, *_answer_columns())
        statement = select(*columns).join_from(schema.queries, schema.answers).where(schema.answers.c.id > after)
        with self.store.transaction() as connection:
            counts_as = self.store.counts_as()
            return [_given(row, counts_as) for row in connection.execute(statement.order_by(schema.answers.c.id))]

    # Classes

    def add_class(self, name: str) -> int:
        """A new class; its label, the next number, comes back. UserError for a name that is taken or none."""
        with self.store.transaction(writes=True) as connection:
            name = self._free(name)
            label = connection.scalar(select(func.count()).select_from(schema.classes)) or 0
            connection.execute(insert(schema.classes), {"id": label, "name": name})
        return label

    def rename_class(self, label: int, name: str, by: str) -> None:
        """Call a class otherwise; its label stays."""
        with self.store.transaction(writes=True) as connection:
            self._known(label)
            name = self._free(name, but=label)
            connection.execute(insert(schema.class_changes), {"label": label, "name": name, "by": by})

    def merge_class(self, label: int, into: int, by: str) -> None:
        """Let all that has been and will be called one class count as another."""
        with self.store.transaction(writes=True) as connection:
            self._known(label)
            self._known(into)
            if label == into:
                raise UserError("a class cannot be merged into itself; choose another one")
            connection.execute(insert(schema.class_changes), {"label": label, "merged_into": into, "by": by})

    def _known(self, label: int) -> None:
        counts_as = self.store.counts_as()
        if not 0 <= label < len(counts_as) or counts_as[label] != label:
            raise UserError(f"there is no class {label} (any more); look at the list of classes")

    def _free(self, name: str, but: int | None = None) -> str:
        name = clean_name(name, "class")
        counts_as = self.store.counts_as()
        for label, there in enumerate(self.store.classes()):
            if label != but and counts_as[label] == label and there.casefold() == name.casefold():
                raise UserError(f"there is a class {there!r} already; choose another name, or merge the two")
        return name


def clean_name(name: str, kind: str) -> str:
    """A name without blanks around it, or a UserError: it must be printable and not too long."""
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"a {kind} needs a name of 1 to {LONGEST_NAME} printable characters, got {name[:80]!r}")
    return name


def agreement(answers: Sequence[Answer], iou: float = 0.5) -> bool:
    """Whether people said the same of one box: the same verdict and, for an object, the same class and place."""
    first = answers[0]
    for other in answers[1:]:
        if other.verdict is not first.verdict or sorted(other.labels) != sorted(first.labels):
            return False
        if len(first.boxes) and iou_matrix(first.boxes, other.boxes).max(axis=1).min() < iou:
            return False
    return True


# ------------------------------------------------------------------------------------------- what is open, and to whom


def _standing() -> Any:
    """How many answers of a query count."""
    counted = select(func.count()).select_from(schema.answers)
    return counted.where(schema.answers.c.query_id == schema.queries.c.id, schema.stands(schema.answers)).scalar_subquery()  # fmt: skip  # noqa: E501


def _answered_by(by: str) -> Any:
    mine = (schema.answers.c.query_id == schema.queries.c.id, schema.answers.c.by == by)
    return exists().where(*mine, schema.stands(schema.answers))


def _others_leases(now: float, holder: str) -> Any:
    """How many others are at work on a query."""
    theirs = and_(schema.leases.c.holder != holder, schema.leases.c.until > now)
    counted = select(func.count()).select_from(schema.leases)
    return counted.where(schema.leases.c.query_id == schema.queries.c.id, theirs).scalar_subquery()


def _open(by: str, now: float, holder: str) -> Any:
    """Queries that a person may be given, in their order."""
    free = _standing() + _others_leases(now, holder) < schema.queries.c.wanted
    mine = exists().where(schema.leases.c.query_id == schema.queries.c.id, schema.leases.c.holder == holder)
    same_person = exists().where(
        schema.leases.c.query_id == schema.queries.c.id, schema.leases.c.by == by, schema.leases.c.until > now
    )
    asked = schema.queries.c.asked_by.is_(None)
    return select(schema.queries).where(asked, free, ~_answered_by(by), ~mine, ~same_person).order_by(*schema.in_order)


def _held(holder: str, by: str) -> Any:
    """Queries that a holder has and that are still to be answered by this person."""
    joined = select(schema.queries).join_from(schema.queries, schema.leases)
    fresh = and_(_standing() < schema.queries.c.wanted, ~_answered_by(by))
    return joined.where(schema.leases.c.holder == holder, fresh).order_by(*schema.in_order)


def _objection(
    connection: Connection, query: Row[Any], holder: str, by: str, said: Submission, counts_as: Ints
) -> Outcome | None:
    """Why a submission about a query cannot be recorded, if so."""
    standing = (schema.answers.c.query_id == query.id, schema.stands(schema.answers))
    columns = (*schema.queries.c, *_answer_columns())
    statement = (
        select(*columns).join_from(schema.queries, schema.answers).where(*standing).order_by(schema.answers.c.id)
    )
    rows = connection.execute(statement).all()
    current = _given(rows[-1], counts_as) if rows else None
    conflict = Outcome(said.key, Status.CONFLICT, query.id, current=current)
    if said.after is not None:
        if current is None or current.id != said.after:
            return replace(conflict, reason="somebody has changed this answer meanwhile")
        if said.verdict is Verdict.WITHDRAWN and current.answer.by != by:
            return replace(conflict, status=Status.REFUSED, reason=f"this is {current.answer.by}'s answer: correct it")
        return None
    if said.verdict is Verdict.WITHDRAWN:
        return replace(conflict, status=Status.REFUSED, reason="there is nothing to take back")
    if len(rows) >= query.wanted or any(row.by == by for row in rows):
        return replace(conflict, reason="this question has been answered meanwhile")
    if query.asked_by == by:
        return None  # their own box, taken back and given again
    if not connection.scalar(select(_lease_of(query.id, holder))):
        return replace(
            conflict, status=Status.REFUSED, reason="this question was not given to you; ask for the next one"
        )
    others = _others_leases(time.time(), holder)
    taken = connection.scalar(
        select(others + len(rows) >= schema.queries.c.wanted).where(schema.queries.c.id == query.id)
    )
    if taken:
        return replace(conflict, status=Status.REFUSED, reason="somebody else has this question by now")
    return None


def _lease_of(query_id: int, holder: str) -> Any:
    return exists().where(and_(schema.leases.c.query_id == query_id, schema.leases.c.holder == holder))


def _answer_columns() -> Iterable[Any]:
    own = (column for column in schema.answers.c if column.name not in ("id", "key"))
    return (*own, schema.answers.c.id.label("answer_id"))


def _given(row: Row[Any], counts_as: Ints) -> Given:
    query = as_query(row)
    if query.guess is not None:
        query = replace(query, guess=int(counts_as[query.guess]))
    return Given(row.answer_id, query, row.cycle, as_answer(row, counts_as), row.answered_at)
