"""Leases and answers of several annotators: who has which question, and answers that never overwrite each other.

A question is *leased* to one holder (a browser tab) for some time, so two people get the same question only if it
wants two answers. A correction names the answer that it corrects. If that is no longer the latest, the store writes
nothing and the annotator is shown the current answer.
"""

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from sqlalchemy import BindParameter, Connection, and_, bindparam, delete, exists, func, insert, or_, select, update

from rarebox.core.boxes import clip, nearest
from rarebox.data.classes import class_key
from rarebox.errors import UserError
from rarebox.labels import schema
from rarebox.labels.rows import Cells, is_number, is_text
from rarebox.labels.store import ANSWER, Store
from rarebox.types import ORACLE, Answer, Floats, Ints, Query, Verdict

LONGEST_LEASE = 7 * 24 * 3600
"""The longest lease in seconds. A longer one is damaged and counts as ended."""

TICK = 1.0
"""The most seconds by which the store's clock may lag behind."""

LONGEST_NAME = 60
"""The most characters of the name of a class or a person."""


@dataclass(frozen=True, eq=False)
class Submission:
    """An answer sent by one person, under a unique ``key``: the same answer under the same key is saved once.

    A different answer under a used key is refused. The submission answers the query ``query_id``; with ``after`` it
    corrects (or withdraws) the answer of that id. Without a query it is about the image ``image_id``: a box that the
    person drew without being asked, or, with ``complete``, the statement that every object has its box. ``session`` is
    the store's session in which the person saw its numbers (:meth:`Store.session`); empty if unknown.
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
    session: str = ""


ROLLED_BACK = (
    "the labels were restored from a backup after this page was loaded. Reload it and answer again. The browser keeps "
    "this answer in case the newer labels come back"
)


class Status(StrEnum):
    """The result of a submission. REFUSED: it is not valid. CONFLICT: somebody else answered first. ROLLED_BACK: the
    store lacks the session in which the person saw its numbers."""

    SAVED = "saved"
    CONFLICT = "conflict"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


@dataclass(frozen=True, eq=False)
class Given:
    """An answer with its id, its question and the time at which it was recorded."""

    id: int
    query: Query
    cycle: int
    answer: Answer
    at: datetime


class Question(NamedTuple):
    """The fields of a question that are needed to assign it."""

    id: int
    cycle: int
    position: int
    image_id: int
    wanted: int
    asked_by: str | None
    why: dict[str, float] | None


class Lease(NamedTuple):
    """A question assigned to a holder, until a time on the store's clock."""

    query_id: int
    holder: str
    by: str
    until: float


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of a submission. ``current`` is the answer that counts, if it is another one."""

    key: str
    status: Status
    query_id: int | None = None
    answer_id: int | None = None
    reason: str | None = None
    current: Given | None = None


class People:
    """Leases, answers and classes of one store. Every method is one transaction, or joins the surrounding one.

    Leases run on a clock kept in the store: the seconds during which any process worked on it. Each process adds the
    time since its last reading, by its own monotonic ``clock``; of several processes, the one that is ahead counts. So
    changing the computer's clock neither ends nor extends a lease, and a restart pauses it.
    """

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self.store = store
        self._clock = clock
        self._last: tuple[float, float] | None = None  # the last reading of the store's clock, and of our own

    # Questions

    def claim(
        self,
        holder: str,
        by: str,
        want: int,
        seconds: float,
        cycle: int | None = None,
        among: Sequence[int] | None = None,
        former: Collection[str] = (),
    ) -> list[Query]:
        """Lease up to ``want`` questions to a holder: first those it has, then open ones of a cycle, in their order.

        Each lease runs for ``seconds`` from now. ``cycle`` is the latest one by default. ``among`` restricts the search
        for open questions to these ids, which avoids a scan of all answered ones. Nobody gets a question that they
        answered under a ``former`` name.
        """
        with self.store.transaction(writes=True) as connection:
            now = self._now(connection, writes=True)
            asking: dict[str, object] = {"holder": holder, "names": _names(by, former), "now": now}
            found = connection.execute(_HELD, asking).all()
            if (more := want - len(found)) > 0:
                if among is not None:
                    statement, asking = _OPEN_AMONG, {**asking, "among": among}
                else:
                    asking["cycle"] = connection.scalar(_LATEST_CYCLE) if cycle is None else cycle
                    statement = _OPEN
                found = [*found, *connection.execute(statement, {**asking, "most": more}).all()]
            connection.execute(_END_LEASES, {"ended_holder": holder})
            if found:
                rows = [{"query_id": row.id, "holder": holder, "by": by, "until": now + seconds} for row in found]
                connection.execute(_LEASE, rows)
        return [query for row in found if (query := self.store.rows.query(row))]

    def leave_other_tabs(self, holder: str, by: str, seconds: float, former: Collection[str] = ()) -> bool:
        """End a person's leases in other tabs that must be closed, and return whether there were any.

        An open tab renews its leases of ``seconds`` before half of that time is over.
        """
        with self.store.transaction(writes=True) as connection:
            until = self._now(connection, writes=True) + seconds / 2
            ended = {"ended_holder": holder, "ended_names": _names(by, former), "ended_until": until}
            return connection.execute(_END_OTHER_TABS, ended).rowcount > 0

    def let_go(self, holder: str) -> None:
        """Let a tab's leases expire now. The tab keeps its questions until another one claims them."""
        with self.store.transaction(writes=True) as connection:
            now = self._now(connection, writes=True)
            connection.execute(_LET_GO, {"ended_holder": holder, "now": now})

    def release(self, holder: str, queries: Collection[int]) -> None:
        """End a tab's leases of some questions, so that anybody may get them. Those of others are not touched."""
        with self.store.transaction(writes=True) as connection:
            ended = [{"ended_holder": holder, "ended_query": number} for number in queries]
            if ended:
                connection.execute(_END_LEASE, ended)

    def leases(self, holder: str = "") -> list[Lease]:
        """The current leases, and those of ``holder`` that have expired."""
        with self.store.transaction() as connection:
            found = connection.execute(_LEASES, {"now": self._now(connection), "holder": holder}).all()
        return [Lease._make(row) for row in found if is_text(row.holder) and is_text(row.by)]

    def _now(self, connection: Connection, writes: bool = False) -> float:
        """The reading of the store's clock. If the caller writes anyway, the clock is updated too."""
        stored = connection.scalar(_CLOCK)
        kept: float = stored if stored is not None and is_number(stored) else 0.0
        here, now = self._clock(), kept
        if self._last is not None:
            now = max(kept, self._last[0] + here - self._last[1])
        self._last = (now, here)
        behind = stored != kept or now - kept >= TICK
        if writes and behind and not connection.execute(_SET_CLOCK, {"now": now}).rowcount:
            connection.execute(insert(schema.clock), {"seconds": now})
        return now

    # Answers

    def submit(
        self, holder: str, by: str, said: Submission, seconds: float = 0, former: Collection[str] = ()
    ) -> Outcome:
        """Record a person's answer if it is valid. A withdrawn question stays leased to them for ``seconds``.

        Answers under the ``former`` names of the person are their own.
        """
        names = _names(by, former)
        try:
            with self.store.part() as connection:
                if there := connection.execute(_SAID_BEFORE, {"key": said.key}).first():
                    return self._again(connection, there, by, names, said)
                if said.session and not self.store.has_session(said.session):
                    return Outcome(said.key, Status.ROLLED_BACK, said.query_id, reason=ROLLED_BACK)
                submit = self._unasked if said.query_id is None else self._asked
                return submit(connection, holder, by, names, said, seconds)
        except ValueError as error:
            return Outcome(said.key, Status.REFUSED, said.query_id, reason=str(error))

    def _again(
        self, connection: Connection, there: Cells, by: str, names: Collection[str], said: Submission
    ) -> Outcome:
        """The outcome for a used key: SAVED if the answer under it is the same one, REFUSED otherwise."""
        boxes, labels, verdict = self.store.rows.said(there, 2**31)
        image_id = there.image_id if said.query_id is not None else said.image_id or 0
        answer = self._answer(connection, there.query_id, image_id, by, said)
        about = there.query_id == said.query_id
        if said.query_id is None:
            same = (there.image_id, there.box is None) == (said.image_id, said.complete)
            about = same and there.asked_by in names
        submitted = (answer.verdict, answer.boxes.tolist(), answer.labels.tolist())
        if about and there.by in names and submitted == (verdict, boxes, labels):
            return Outcome(said.key, Status.SAVED, there.query_id, there.answer_id)
        reason = "another answer was saved under this key. Send this one under a new key"
        return Outcome(said.key, Status.REFUSED, said.query_id, reason=reason)

    def _asked(
        self, connection: Connection, holder: str, by: str, names: Collection[str], said: Submission, seconds: float
    ) -> Outcome:
        """Record the answer to a question, or a correction."""
        now = self._now(connection, writes=True)
        row = connection.execute(_QUESTION, {"id": said.query_id, "holder": holder, "now": now}).first()
        if row is None or (query := self.store.rows.query(row)) is None:
            return Outcome(said.key, Status.REFUSED, reason=f"there is no question {said.query_id}")
        standing = connection.execute(_STANDING, {"id": row.id}).all()
        if objection := self._objection(standing, row, query, names, said):
            return objection
        # The person's answer to this question keeps the name it was given under.
        by = next((str(one.by) for one in reversed(standing) if one.by in names), by)
        answer = self._answer(connection, row.id, row.image_id, by, said)
        (number,) = self.store.record([answer], [said.key])
        connection.execute(_END_LEASE, {"ended_holder": holder, "ended_query": row.id})
        if said.verdict is Verdict.WITHDRAWN and row.asked_by is None:
            lease = {"query_id": row.id, "holder": holder, "by": by, "until": now + seconds}
            connection.execute(_LEASE, lease)
        return Outcome(said.key, Status.SAVED, row.id, number)

    def _unasked(
        self, connection: Connection, _: str, by: str, __: Collection[str], said: Submission, ___: float
    ) -> Outcome:
        """Record a missed object, or that an image is complete, as a query by this person together with its answer."""
        refused = Outcome(said.key, Status.REFUSED)
        if said.verdict is not Verdict.OBJECT or len(said.boxes) != (0 if said.complete else 1):
            return replace(refused, reason="a missed object needs one box, and a complete image none")
        cycle = connection.scalar(_LATEST_CYCLE)
        if cycle is None:
            return replace(refused, reason="the project is still being prepared. Wait for the first questions")
        if connection.execute(_IMAGE_SIZE, {"id": said.image_id}).first() is None:
            return replace(refused, reason=f"there is no image {said.image_id}. Reload the page")
        answer = self._answer(connection, 0, said.image_id or 0, by, said)
        box, guess = (None, None) if said.complete else (answer.boxes[0], int(answer.labels[0]))
        (query,) = self.store.ask(cycle, [Query(said.image_id or 0, box, guess, asked_by=by)])
        (number,) = self.store.record([replace(answer, query_id=query.id)], [said.key])
        return Outcome(said.key, Status.SAVED, query.id, number)

    def _answer(self, connection: Connection, query_id: int, image_id: int, by: str, said: Submission) -> Answer:
        """The submission as an answer, its boxes clipped to the image. Raises ValueError if it is not valid."""
        boxes = said.boxes
        if len(boxes):
            if (image := connection.execute(_IMAGE_SIZE, {"id": image_id}).first()) is None:
                raise ValueError(f"there is no image {image_id}")
            boxes = clip(boxes, *image)
        return Answer(query_id, boxes, said.labels, said.verdict, by, said.milliseconds)

    def _objection(
        self, rows: Sequence[Cells], row: Cells, query: Query, names: Collection[str], said: Submission
    ) -> Outcome | None:
        """The outcome for a submission that must not be recorded, or None. ``rows`` are the answers that stand and
        ``row`` is the query."""
        current = self._given(rows[-1], self.store.counts_as()) if rows else None
        conflict = Outcome(said.key, Status.CONFLICT, query.id, current=current)
        refused = replace(conflict, status=Status.REFUSED)
        if said.after is not None:
            if current is None or current.id != said.after:
                return replace(conflict, reason="somebody has changed this answer in the meantime")
            if said.verdict is Verdict.WITHDRAWN and current.answer.by not in names:
                return replace(refused, reason=f"this is an answer by {current.answer.by}. Correct it instead")
            return None
        if said.verdict is Verdict.WITHDRAWN:
            return replace(refused, reason="there is no answer to withdraw")
        if len(rows) >= query.wanted or any(one.by in names for one in rows):
            return replace(conflict, reason="this question has been answered in the meantime")
        if query.asked_by in names:
            return None  # their own box, withdrawn and restored
        if not row.leased:
            return replace(refused, reason="this question is not assigned to you. Ask for the next one")
        if len(rows) + row.others >= query.wanted:
            return replace(refused, reason="this question is now assigned to somebody else")
        return None

    def questions(self, after: int = 0) -> list[Question]:
        """Every question with an id above ``after``, in the order asked."""
        with self.store.transaction() as connection:
            rows = connection.execute(_QUESTIONS, {"after": after}).all()
            asked = ((row, query) for row in rows if (query := self.store.rows.query(row)))
            return [
                Question(row.id, row.cycle, row.position, row.image_id, query.wanted, query.asked_by, query.why)
                for row, query in asked
            ]

    def given(self, after: int = 0) -> list[Given]:
        """Every answer with an id above ``after``, including withdrawn ones, in the order recorded."""
        with self.store.transaction() as connection:
            rows = connection.execute(_GIVEN, {"after": after}).all()
            counts_as = self.store.counts_as() if rows else np.zeros(0, dtype=np.int64)
        return [given for row in rows if (given := self._given(row, counts_as))]

    def _given(self, row: Cells, counts_as: Ints) -> Given | None:
        rows = self.store.rows
        if (query := rows.query(row)) is None:
            return None
        if query.guess is not None:
            query = replace(query, guess=int(counts_as[query.guess]))
        return Given(row.answer_id, query, row.cycle, rows.answer(row, counts_as), rows.time(row))

    # Classes

    def add_class(self, name: str) -> int:
        """Add a class and return its label, the next number. Raises UserError for an invalid or used name."""
        with self.store.transaction(writes=True) as connection:
            name = self._free(name)
            self.store.begin_session()
            label = connection.scalar(select(func.count()).select_from(schema.classes)) or 0
            connection.execute(insert(schema.classes), {"id": label, "name": name})
        return label

    def rename_class(self, label: int, name: str, by: str) -> None:
        """Rename a class; its label stays the same."""
        with self.store.transaction(writes=True) as connection:
            self._known(label)
            name = self._free(name, but=label)
            connection.execute(insert(schema.class_changes), {"label": label, "name": name, "by": by})
            self.store.begin_session()

    def merge_class(self, label: int, into: int, by: str) -> None:
        """Count all past and future labels of one class as another class."""
        with self.store.transaction(writes=True) as connection:
            self._known(label)
            self._known(into)
            if label == into:
                raise UserError("a class cannot be merged into itself. Choose another one")
            connection.execute(insert(schema.class_changes), {"label": label, "merged_into": into, "by": by})
            self.store.begin_session()

    def _known(self, label: int) -> None:
        counts_as = self.store.counts_as()
        if not 0 <= label < len(counts_as) or counts_as[label] != label:
            raise UserError(f"there is no class {label}. Choose one from the list of classes")

    def _free(self, name: str, but: int | None = None) -> str:
        name = clean_name(name, "class")
        counts_as = self.store.counts_as()
        for label, there in enumerate(self.store.classes()):
            if label != but and counts_as[label] == label and class_key(there) == class_key(name):
                raise UserError(f"there is already a class {there!r}. Choose another name, or merge the two")
        return name


def clean_name(name: str, kind: str) -> str:
    """A name without surrounding spaces. Raises UserError unless it is printable, short enough and not reserved."""
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise UserError(f"a {kind} needs a name of 1 to {LONGEST_NAME} printable characters, got {name[:80]!r}")
    if kind == "person" and name.casefold() == ORACLE:
        raise UserError(f"{name!r} is the name of the simulated annotator. Choose another name.")
    return name


def _names(by: str, former: Collection[str]) -> list[str]:
    """All names of one person: answers and leases under any of them are theirs."""
    return [*{by, *former}]


def agreement(answers: Sequence[Answer], iou: float = 0.5) -> bool:
    """Whether the answers about one box agree: the same verdict and, for an object, the same class and position."""
    first = answers[0]
    for other in answers[1:]:
        if other.verdict is not first.verdict or sorted(other.labels) != sorted(first.labels):
            return False
        if len(first.boxes) and nearest(first.boxes, other.boxes, iou)[1].min() < iou:
            return False
    return True


# ------------------------------------------------------------------------------------------- which questions are open
#
# Statements are built once: building one takes longer than running it. Their parameters are holder, names (of one
# person) and now.

_holder: BindParameter[str] = bindparam("holder")
_names_of_one: BindParameter[str] = bindparam("names", expanding=True)
_now: BindParameter[float] = bindparam("now")
_of_query = schema.leases.c.query_id == schema.queries.c.id
_running = and_(schema.leases.c.until > _now, schema.leases.c.until < _now + LONGEST_LEASE)
_stands = and_(schema.answers.c.query_id == schema.queries.c.id, schema.stands(schema.answers))
_others = (
    select(func.count())
    .select_from(schema.leases)
    .where(_of_query, schema.leases.c.holder != _holder, _running)
    .scalar_subquery()
)
_said = select(func.count()).select_from(schema.answers).where(_stands).scalar_subquery()
_mine = exists().where(_of_query, schema.leases.c.holder == _holder)
_my_other_tab = exists().where(
    _of_query, schema.leases.c.by.in_(_names_of_one), schema.leases.c.holder != _holder, _running
)
_can_be_given = and_(
    _said + _others < schema.queries.c.wanted,
    ~exists().where(_stands, schema.answers.c.by.in_(_names_of_one)),
    ~_my_other_tab,
)
_open = (
    select(schema.queries)
    .where(schema.queries.c.asked_by.is_(None), _can_be_given, ~_mine)
    .order_by(*schema.in_order)
    .limit(bindparam("most"))
)
_OPEN = _open.where(schema.queries.c.cycle == bindparam("cycle"))
_OPEN_AMONG = _open.where(schema.queries.c.id.in_(bindparam("among", expanding=True)))
# A holder keeps a question whose lease has expired, unless somebody else has claimed it.
_of_holder = select(schema.leases.c.query_id).where(schema.leases.c.holder == _holder)
_HELD = select(schema.queries).where(schema.queries.c.id.in_(_of_holder), _can_be_given).order_by(*schema.in_order)
_QUESTION = select(schema.queries, _others.label("others"), _mine.label("leased")).where(
    schema.queries.c.id == bindparam("id")
)
_QUESTIONS = select(schema.queries).where(schema.queries.c.id > bindparam("after")).order_by(schema.queries.c.id)
_LEASES = select(schema.leases).where(or_(_running, schema.leases.c.holder == _holder))
_LEASE = insert(schema.leases)
_END_LEASES = delete(schema.leases).where(schema.leases.c.holder == bindparam("ended_holder"))
_END_LEASE = _END_LEASES.where(schema.leases.c.query_id == bindparam("ended_query"))
_LET_GO = (
    update(schema.leases)
    .where(schema.leases.c.holder == bindparam("ended_holder"), schema.leases.c.until > bindparam("now"))
    .values(until=bindparam("now"))
)
_END_OTHER_TABS = delete(schema.leases).where(
    schema.leases.c.holder != bindparam("ended_holder"),
    schema.leases.c.by.in_(bindparam("ended_names", expanding=True)),
    schema.leases.c.until < bindparam("ended_until"),
)
_LATEST_CYCLE = select(func.max(schema.cycles.c.cycle))
_IMAGE_SIZE = select(schema.images.c.width, schema.images.c.height).where(schema.images.c.id == bindparam("id"))
_CLOCK = select(schema.clock.c.seconds)
_SET_CLOCK = update(schema.clock).values(seconds=bindparam("now"))
_answers = select(*schema.queries.c, *ANSWER).join_from(schema.queries, schema.answers).order_by(schema.answers.c.id)
_SAID_BEFORE = _answers.where(schema.answers.c.key == bindparam("key"))
_GIVEN = _answers.where(schema.answers.c.id > bindparam("after"))
_STANDING = _answers.where(schema.queries.c.id == bindparam("id"), schema.stands(schema.answers))
