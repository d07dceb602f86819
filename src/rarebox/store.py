"""The label store: images, questions and answers as append-only events, in SQLite or, by URL, in PostgreSQL.

No row of these is ever changed or removed: who corrects an answer adds another to the same query, and the latest one
counts; who takes one back adds that it is withdrawn. :mod:`rarebox.people` has what is special to people.
A method that writes does so in one transaction; when it returns, the rows are there for good, also after ``kill -9``.
"""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from json import JSONDecoder
from pathlib import Path
from threading import local
from typing import Any, Self

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    and_,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, OperationalError
from sqlalchemy.schema import CreateColumn

from rarebox import schema
from rarebox.boxes import iou_matrix
from rarebox.errors import Unavailable, UserError
from rarebox.types import Answer, Bools, Floats, ImageRecord, Ints, Query, Verdict, as_boxes

BUSY_SECONDS = 30
WRITERS_LOCK = 0x7261726562  # of the whole database; any number that nobody else takes
SAME_IOU = 0.9999  # two boxes of one label that overlap this much are one object, told twice

_json = JSONDecoder()

# What is asked for again and again; it takes longer to put a statement together than to run it.
_CYCLE = select(schema.cycles).where(schema.cycles.c.cycle == bindparam("cycle"))
_LAST_POSITION = select(func.max(schema.queries.c.position)).where(schema.queries.c.cycle == bindparam("cycle"))
_ADD_QUERIES = insert(schema.queries).returning(schema.queries.c.id, sort_by_parameter_order=True)
_ADD_ANSWERS = insert(schema.answers).returning(schema.answers.c.id, sort_by_parameter_order=True)
_HOW_MANY_CLASSES = select(func.count()).select_from(schema.classes)
_merged = and_(schema.class_changes.c.label == schema.classes.c.id, schema.class_changes.c.merged_into.is_not(None))
_MERGERS = (
    select(schema.classes.c.id, schema.class_changes.c.merged_into)
    .outerjoin_from(schema.classes, schema.class_changes, _merged)
    .order_by(schema.class_changes.c.id)
)
_LABELS = (
    select(
        schema.queries.c.image_id, schema.queries.c.box, schema.answers.c.verdict, schema.answers.c.boxes,
        schema.answers.c.labels,
    )
    .join_from(schema.queries, schema.answers)
    .where(schema.is_latest)
    .order_by(*schema.in_order)
)  # fmt: skip
_LABELS_OF_IMAGE = _LABELS.where(schema.queries.c.image_id == bindparam("image_id"))


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """What people (or the oracle) said of one image so far, each object once.

    ``boxes`` (G, 4) with ``labels`` (G,) are the human boxes. ``rejected`` (R, 4) were shown and are not an object.
    ``skipped`` (S, 4) were shown and brought neither: nobody could tell, or the object had its label already.
    ``complete``: the whole image was labelled (a query without a box, whose answer was not that nobody can tell), so
    what has no box is background.
    """

    boxes: Floats
    labels: Ints
    rejected: Floats
    skipped: Floats
    complete: bool

    @property
    def settled(self) -> Floats:
        """(G + R + S, 4): the boxes near which nothing is to be asked again."""
        return np.concatenate([self.boxes, self.rejected, self.skipped])


@dataclass(frozen=True)
class Spent:
    """What answers cost. ``labels``: boxes that came back. ``looks``: boxes shown, where a whole image counts as the
    boxes that it brought. Of each query the latest answer counts; ``milliseconds`` adds up every answer, corrected
    ones too, for that time was spent."""

    labels: int = 0
    looks: int = 0
    milliseconds: int = 0


class Store:
    """The labels of one project, in a file (SQLite) or at a database URL such as ``postgresql+psycopg://...``.

    ``Store(path, classes=names)`` makes the store where there is none yet; ``Store(path)`` wants one that is there.
    With ``flush`` every write waits until the disk has it, so that a power cut loses nothing (people); without, only
    the operating system has it: safe from ``kill -9``, and much faster (simulations). Use it as a context manager, or
    ``close`` it. It may be shared between threads, and many processes may open one store.

    Every method raises ``UserError`` where the database cannot be read or written (not a store, a newer one, disk
    full, locked by another process); the failed write then left nothing behind.
    """

    def __init__(self, path_or_url: str | Path, *, classes: Sequence[str] | None = None, flush: bool = True) -> None:
        url = _url(path_or_url)
        in_file = url.get_backend_name() == "sqlite"
        self._where = url.database if in_file and url.database else str(url)  # a URL prints without its password
        if in_file and classes is None and not Path(self._where).exists():
            raise UserError(f"{self._where}: there is no label store here; start a project, or mend the path")
        self._engine = _engine(url, flush)
        self._thread = local()
        try:
            self._prepare(classes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; an SQLite file is then complete in itself and may be copied."""
        self._engine.dispose()

    # Images, classes, cycles

    def add_images(self, records: Iterable[ImageRecord]) -> None:
        """Add those that are not there yet. ``UserError`` if an id already names another path or size."""
        with self.transaction(writes=True) as connection:
            known = _read_images(connection)
            new: dict[int, ImageRecord] = {}
            for record in records:
                there = known.get(record.id) or new.setdefault(record.id, record)
                if there != record:
                    raise UserError(
                        f"{self._where}: image {record.id} is {_describe(there)} in the store but {_describe(record)} "
                        "now; put the images back as they were, or start a new project"
                    )
            if new:
                connection.execute(insert(schema.images), [vars(record) for record in new.values()])

    def images(self) -> dict[int, ImageRecord]:
        """Every image, by its id."""
        with self.transaction() as connection:
            return _read_images(connection)

    def classes(self) -> tuple[str, ...]:
        """The K class names; a label is an index into them. Classes merged into another keep their place."""
        with self.transaction() as connection:
            names: dict[int, str] = dict(map(tuple, connection.execute(select(schema.classes))))
            changes = select(schema.class_changes.c.label, schema.class_changes.c.name).order_by(
                schema.class_changes.c.id
            )
            names |= {label: name for label, name in connection.execute(changes) if name is not None}
        return tuple(names[label] for label in sorted(names))

    def counts_as(self) -> Ints:
        """(K,): the label that each label counts as; its own unless the class was merged into another."""
        with self.transaction() as connection:
            return _counts_as(connection)

    def open_cycle(self, cycle: int) -> None:
        """Make the cycle known; one that is known stays as it is. The highest one is the latest."""
        with self.transaction(writes=True) as connection:
            if connection.scalar(select(schema.cycles).where(schema.cycles.c.cycle == cycle)) is None:
                connection.execute(insert(schema.cycles), {"cycle": cycle})

    def cycles(self) -> list[int]:
        """The opened cycles, ascending."""
        with self.transaction() as connection:
            return list(connection.scalars(select(schema.cycles.c.cycle).order_by(schema.cycles.c.cycle)))

    # Questions

    def ask(self, cycle: int, queries: Sequence[Query]) -> list[Query]:
        """Append queries to an opened cycle, all or none; they come back with their ids, in the same order.

        ``ValueError`` if the cycle is not open, an image is unknown or a box has no area.
        """
        queries = [q if q.box is None else replace(q, box=as_boxes([q.box])[0]) for q in queries]
        if not queries:
            return []
        with self.transaction(writes=True) as connection:
            if connection.scalar(_CYCLE, {"cycle": cycle}) is None:
                raise ValueError(f"cycle {cycle} is not open; call open_cycle({cycle}) before asking in it")
            last = connection.scalar(_LAST_POSITION, {"cycle": cycle})
            first = 0 if last is None else last + 1
            rows = [_query_row(query, cycle, position) for position, query in enumerate(queries, start=first)]
            try:
                ids = connection.scalars(_ADD_QUERIES, rows).all()
            except IntegrityError as error:
                raise ValueError("every query must be about an image that was added, by add_images()") from error
        return [replace(query, id=id) for query, id in zip(queries, ids, strict=True)]

    def queries(self, cycle: int | None = None) -> list[Query]:
        """Everything asked in one cycle, or in all of them, in the order asked."""
        return self._asked(*_of(cycle))

    def unanswered(self, cycle: int) -> list[Query]:
        """What a strategy asks in a cycle and nobody has answered, in the order asked."""
        return self._asked(schema.queries.c.cycle == cycle, schema.is_unanswered)

    def next_query(self) -> Query | None:
        """The first unanswered query of the latest cycle, or None when all are answered."""
        latest = select(func.max(schema.cycles.c.cycle)).scalar_subquery()
        return next(iter(self._asked(schema.queries.c.cycle == latest, schema.is_unanswered, limit=1)), None)

    # Answers

    def record(self, answers: Sequence[Answer], keys: Sequence[str] | None = None) -> list[int]:
        """Append answers, all or none; their numbers come back. A query answered before is thereby corrected: its
        latest answer counts. ``keys`` are their senders' own names for them, unique in the store.

        ``ValueError`` if a query was never asked, a label is no class, or an answer other than OBJECT has boxes.
        """
        if not answers:
            return []
        with self.transaction(writes=True) as connection:
            classes = connection.scalar(_HOW_MANY_CLASSES) or 0
            rows = [_answer_row(answer, classes) for answer in answers]
            rows = [{**row, "key": key} for row, key in zip(rows, keys, strict=True)] if keys else rows
            try:
                return list(connection.scalars(_ADD_ANSWERS, rows))
            except IntegrityError as error:
                raise ValueError("every answer must name a query that was asked, by the id ask() gave it") from error

    def answered(self, cycle: int | None = None) -> list[tuple[Query, Answer]]:
        """Each answered query of one cycle, or of all, with its latest answer, in the order asked."""
        columns = (schema.queries, *(column for column in schema.answers.c if column.name not in ("id", "key")))
        statement = select(*columns).join_from(schema.queries, schema.answers).where(schema.is_latest, *_of(cycle))
        with self.transaction() as connection:
            counts_as = _counts_as(connection)
            rows = connection.execute(statement.order_by(*schema.in_order))
            return [(as_query(row), as_answer(row, counts_as)) for row in rows]

    def labels(self, up_to_cycle: int | None = None) -> dict[int, ImageLabels]:
        """What is known of each image with an answer, by image id; on request only from cycles up to that one."""
        within = () if up_to_cycle is None else (schema.queries.c.cycle <= up_to_cycle,)
        return self._labels(_LABELS.where(*within))

    def labels_of(self, image_id: int) -> ImageLabels:
        """What is known of one image; without answers, empty."""
        return self._labels(_LABELS_OF_IMAGE, {"image_id": image_id}).get(image_id, _NOTHING)

    def spent(self, cycle: int | None = None) -> Spent:
        """What the answers of one cycle, or of all, cost on each meter."""
        flags = (schema.queries.c.box.is_(None).label("whole"), schema.is_latest.label("latest"))
        columns = (schema.answers.c.labels, schema.answers.c.milliseconds, *flags)
        statement = select(*columns).join_from(schema.queries, schema.answers)
        with self.transaction() as connection:
            rows = connection.execute(statement.where(*_of(cycle))).all()
        latest = [row for row in rows if row.latest]
        return Spent(
            labels=sum(len(row.labels) for row in latest),
            looks=sum(len(row.labels) if row.whole else 1 for row in latest),
            milliseconds=sum(row.milliseconds for row in rows),
        )

    # Inside

    def _prepare(self, classes: Sequence[str] | None) -> None:
        """Check that the database is a store which we can read, having made one if it is empty."""
        with self.transaction(writes=classes is not None) as connection:
            there = inspect(connection).get_table_names()
            if not there and classes is not None:
                _create(connection, classes)
            elif schema.rarebox.name not in there:
                raise UserError(f"{self._where}: this is not a rarebox label store; choose another path")
            version = connection.scalar(select(schema.rarebox.c.schema)) or 0
        if version > schema.SCHEMA:
            raise UserError(
                f"{self._where}: written by a newer rarebox (schema {version}, this one reads up to {schema.SCHEMA}); "
                "install a newer rarebox"
            )
        if version < schema.SCHEMA:
            with self.transaction(writes=True) as connection:
                _bring_up_to_date(connection)
        if classes is not None and self.classes() != tuple(classes):
            raise UserError(
                f"{self._where}: the store has the classes {', '.join(self.classes())}, but these were given: "
                f"{', '.join(classes)}; give the same ones, or start a new project"
            )

    @contextmanager
    def transaction(self, writes: bool = False) -> Iterator[Connection]:
        """All that this thread reads and writes inside is one transaction: durable at the end, all of it, or none.

        A transaction inside another is part of it; see :meth:`part` for one that may fail by itself.
        """
        if (outer := getattr(self._thread, "connection", None)) is not None:
            yield outer
            return
        with self._explained(), self._engine.execution_options(writes=writes).begin() as self._thread.connection:
            try:
                yield self._thread.connection
            finally:
                del self._thread.connection

    @contextmanager
    def part(self) -> Iterator[Connection]:
        """A part of a transaction that is all or nothing by itself: where it raises, what was done before it stays."""
        with self.transaction(writes=True) as connection, self._explained(), connection.begin_nested():
            yield connection

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Errors of the database in words; those of a wrong row or statement as they are."""
        try:
            yield
        except DatabaseError as error:
            if type(error) not in (DatabaseError, OperationalError):
                raise
            raise Unavailable(f"{self._where}: {_reason(error)}") from error

    def _asked(self, *where: ColumnElement[bool], limit: int | None = None) -> list[Query]:
        statement = select(schema.queries).where(*where).order_by(*schema.in_order).limit(limit)
        with self.transaction() as connection:
            return [as_query(row) for row in connection.execute(statement)]

    def _labels(
        self, statement: Select[*tuple[Any, ...]], values: dict[str, Any] | None = None
    ) -> dict[int, ImageLabels]:
        rows_of: dict[int, list[Row[Any]]] = defaultdict(list)
        with self.transaction() as connection:
            for row in connection.execute(statement, values):
                rows_of[row.image_id].append(row)
            counts_as = _counts_as(connection) if rows_of else np.zeros(0, dtype=np.int64)
        return {image_id: _image_labels(rows, counts_as) for image_id, rows in rows_of.items()}


def _url(path_or_url: str | Path) -> URL:
    if "://" not in str(path_or_url):
        return URL.create("sqlite", database=str(path_or_url))
    try:
        return make_url(str(path_or_url))
    except ArgumentError as error:
        raise UserError(f"{path_or_url}: not a database URL; wanted is driver://user:password@host/name") from error


def _engine(url: URL, flush: bool) -> Engine:
    try:
        return _sqlite(url, flush) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ImportError, ArgumentError) as error:
        raise UserError(f"{url}: no driver for this database ({error}); install it, e.g. psycopg") from error


def _sqlite(url: URL, flush: bool) -> Engine:
    """All that is special to SQLite."""
    engine = create_engine(url, json_deserializer=_read_json)

    @event.listens_for(engine, "connect")
    def tune(connection: Any, _: object) -> None:
        connection.isolation_level = None  # the driver opens no transactions behind our back; `begin` below does
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables or schema.rarebox.name in tables:  # it is written into the file: never into somebody else's
            _log_ahead(connection)
        connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """A writer takes its lock at once, for one that starts as a reader may find the door closed half-way."""
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _log_ahead(connection: Any) -> None:
    """Switch to a write-ahead log. Where others open a new file at the same moment SQLite does not wait by itself."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)


def _postgresql(url: URL) -> Engine:
    """All that is special to PostgreSQL: writers come one after the other, as in SQLite, and so do their numbers."""
    engine = create_engine(url)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Readers never wait for this lock; it ends with the transaction."""
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")

    return engine


def _read_json(text: str) -> Any:
    """``json.loads`` without its search for blanks around the text, which takes half of its time on short texts."""
    return _json.raw_decode(text)[0]


def _create(connection: Connection, classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError(f"each class needs its own name, got {', '.join(classes)}")
    schema.tables.create_all(connection)
    connection.execute(insert(schema.rarebox), {"schema": schema.SCHEMA})
    if classes:
        connection.execute(insert(schema.classes), [{"id": label, "name": name} for label, name in enumerate(classes)])


def _bring_up_to_date(connection: Connection) -> None:
    """From schema 1: tables and columns that it lacks."""
    schema.tables.create_all(connection)
    there = {t: {c["name"] for c in inspect(connection).get_columns(t)} for t in ("queries", "answers")}
    for column in (schema.queries.c.wanted, schema.queries.c.asked_by, schema.answers.c.key):
        if column.name not in there[column.table.name]:
            added = CreateColumn(column).compile(connection)
            connection.execute(text(f"ALTER TABLE {column.table.name} ADD COLUMN {added}"))
    for index in schema.answers.indexes:
        index.create(connection, checkfirst=True)
    connection.execute(update(schema.rarebox).values(schema=schema.SCHEMA))


def _counts_as(connection: Connection) -> Ints:
    """(K,): the label that each label counts as."""
    rows = connection.execute(_MERGERS).all()
    found = np.arange(len({row.id for row in rows}))
    for label, into in rows:
        if into is not None:
            found[found == label] = into
    return found


def _reason(error: DatabaseError) -> str:
    """What went wrong in the database, and what to do."""
    said = str(error.orig)
    advice = {
        "disk I/O error": "the disk may be full; free some space and go on; nothing recorded before is lost",
        "is full": "free some space and go on; nothing recorded before is lost",
        "is locked": f"another program kept it busy for {BUSY_SECONDS} s; nothing recorded before is lost, try again",
        "not a database": "this is not a rarebox label store; restore a copy of it, or choose another path",
        "unable to open": "check that the folder exists and may be written",
        "readonly": "allow this user to write the file and its folder",
        "malformed": "the file is damaged; restore a copy of it",
    }
    return next((f"{said}: {what}" for sign, what in advice.items() if sign in said), said)


def _of(cycle: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if cycle is None else (schema.queries.c.cycle == cycle,)


def _read_images(connection: Connection) -> dict[int, ImageRecord]:
    everything = select(schema.images).order_by(schema.images.c.id)
    return {row.id: ImageRecord(*row) for row in connection.execute(everything)}


def _describe(image: ImageRecord) -> str:
    return f"{image.path} ({image.width} x {image.height})"


def _query_row(query: Query, cycle: int, position: int) -> dict[str, Any]:
    return {
        "cycle": cycle,
        "position": position,
        "image_id": int(query.image_id),
        "box": None if query.box is None else query.box.tolist(),
        "guess": None if query.guess is None else int(query.guess),
        "utility": float(query.utility),
        "why": None if query.why is None else {name: float(value) for name, value in query.why.items()},
        "wanted": query.wanted,
        "asked_by": query.asked_by,
    }


def as_query(row: Row[Any]) -> Query:
    """A row of the queries."""
    box = None if row.box is None else np.array(row.box, dtype=np.float32)
    return Query(row.image_id, box, row.guess, row.utility, row.why, row.id, row.wanted, row.asked_by)


def _answer_row(answer: Answer, classes: int) -> dict[str, Any]:
    if len(answer.boxes) and answer.verdict != Verdict.OBJECT:
        raise ValueError(f"an answer {answer.verdict.value!r} must have no boxes, got {len(answer.boxes)}")
    if ((answer.labels < 0) | (answer.labels >= classes)).any():
        raise ValueError(f"labels must be in [0, {classes}), got {answer.labels.tolist()}")
    return {
        "query_id": answer.query_id,
        "verdict": answer.verdict.value,
        "boxes": answer.boxes.tolist(),
        "labels": answer.labels.tolist(),
        "by": answer.by,
        "milliseconds": answer.milliseconds,
    }


def as_answer(row: Row[Any], counts_as: Ints) -> Answer:
    """A row of the answers, its labels as what they count as by now."""
    labels = counts_as[np.array(row.labels, dtype=np.int64)]
    return Answer(row.query_id, row.boxes, labels, Verdict(row.verdict), row.by, row.milliseconds)


def _image_labels(rows: Sequence[Row[Any]], counts_as: Ints) -> ImageLabels:
    """Put together the latest answers of one image: rows with box, verdict, boxes and labels."""
    boxes = as_boxes([box for row in rows for box in row.boxes])
    labels = counts_as[np.array([label for row in rows for label in row.labels], dtype=np.int64)]
    once = _first_of_each(boxes, labels)
    fruitless = [row for row in rows if row.box is not None and not row.boxes]
    return ImageLabels(
        boxes=boxes[once],
        labels=labels[once],
        rejected=as_boxes([row.box for row in fruitless if row.verdict == Verdict.NOT_AN_OBJECT]),
        skipped=as_boxes([row.box for row in fruitless if row.verdict != Verdict.NOT_AN_OBJECT]),
        complete=any(row.box is None and row.verdict != Verdict.CANNOT_TELL for row in rows),
    )


def _first_of_each(boxes: Floats, labels: Ints) -> Bools:
    """(G, 4), (G,) -> (G,): True where no earlier row is the same object."""
    same = (iou_matrix(boxes, boxes) >= SAME_IOU) & (labels[:, None] == labels[None])
    return ~np.triu(same, k=1).any(axis=0)


_NOTHING = _image_labels([], np.zeros(0, dtype=np.int64))
