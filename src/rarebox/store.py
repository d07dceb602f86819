"""The label store: images, questions and answers as append-only events, in SQLite or, by URL, in PostgreSQL.

No row is ever changed or removed: who corrects an answer adds another to the same query, and the latest one counts.
A method that writes does so in one transaction; when it returns, the rows are there for good, also after ``kill -9``.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from json import JSONDecoder
from pathlib import Path
from typing import Any, Self

import numpy as np
from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    Connection,
    DateTime,
    Double,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    exists,
    func,
    insert,
    inspect,
    select,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, OperationalError

from rarebox.boxes import iou_matrix
from rarebox.errors import UserError
from rarebox.types import Answer, Bools, Floats, ImageRecord, Ints, Query, Verdict, as_boxes

SCHEMA = 1  # goes up whenever an older rarebox could no longer read the tables below
BUSY_SECONDS = 30
SAME_IOU = 0.9999  # two boxes of one label that overlap this much are one object, told twice

_json = JSONDecoder()


def _now() -> datetime:
    """UTC without a zone: SQLite keeps none, and so both databases read the same."""
    return datetime.now(UTC).replace(tzinfo=None)


_tables = MetaData()
_rarebox = Table("rarebox", _tables, Column("schema", Integer, primary_key=True))
_classes = Table(
    "classes",
    _tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String, nullable=False, unique=True),
)
_images = Table(
    "images",
    _tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("path", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
)
_cycles = Table(
    "cycles",
    _tables,
    Column("cycle", Integer, primary_key=True, autoincrement=False),
    Column("opened_at", DateTime, nullable=False, default=_now),
)
_queries = Table(
    "queries",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("cycle", ForeignKey(_cycles.c.cycle), nullable=False),
    Column("position", Integer, nullable=False),
    Column("image_id", ForeignKey(_images.c.id), nullable=False, index=True),
    Column("box", JSON(none_as_null=True)),
    Column("guess", Integer),
    Column("utility", Double, nullable=False),
    Column("why", JSON(none_as_null=True)),
    Column("asked_at", DateTime, nullable=False, default=_now),
    UniqueConstraint("cycle", "position"),
)
_answers = Table(
    "answers",
    _tables,
    Column("id", Integer, primary_key=True),
    Column("query_id", ForeignKey(_queries.c.id), nullable=False, index=True),
    Column("verdict", String, nullable=False),
    Column("boxes", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("by", String, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("answered_at", DateTime, nullable=False, default=_now),
)

_later = _answers.alias()
_is_latest = ~exists().where(_later.c.query_id == _answers.c.query_id, _later.c.id > _answers.c.id)
_is_unanswered = ~exists().where(_answers.c.query_id == _queries.c.id)
_in_order = (_queries.c.cycle, _queries.c.position)


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
        with self._transaction(writes=True) as connection:
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
                connection.execute(insert(_images), [vars(record) for record in new.values()])

    def images(self) -> dict[int, ImageRecord]:
        """Every image, by its id."""
        with self._transaction() as connection:
            return _read_images(connection)

    def classes(self) -> tuple[str, ...]:
        """The K class names; a label is an index into them."""
        with self._transaction() as connection:
            return tuple(connection.scalars(select(_classes.c.name).order_by(_classes.c.id)))

    def open_cycle(self, cycle: int) -> None:
        """Make the cycle known; one that is known stays as it is. The highest one is the latest."""
        with self._transaction(writes=True) as connection:
            if connection.scalar(select(_cycles).where(_cycles.c.cycle == cycle)) is None:
                connection.execute(insert(_cycles), {"cycle": cycle})

    def cycles(self) -> list[int]:
        """The opened cycles, ascending."""
        with self._transaction() as connection:
            return list(connection.scalars(select(_cycles.c.cycle).order_by(_cycles.c.cycle)))

    # Questions

    def ask(self, cycle: int, queries: Sequence[Query]) -> list[Query]:
        """Append queries to an opened cycle, all or none; they come back with their ids, in the same order.

        ``ValueError`` if the cycle is not open, an image is unknown or a box has no area.
        """
        queries = [q if q.box is None else replace(q, box=as_boxes([q.box])[0]) for q in queries]
        if not queries:
            return []
        returning_ids = insert(_queries).returning(_queries.c.id, sort_by_parameter_order=True)
        opened = select(_cycles.c.cycle).where(_cycles.c.cycle == cycle).with_for_update()  # one asks at a time
        with self._transaction(writes=True) as connection:
            if connection.scalar(opened) is None:
                raise ValueError(f"cycle {cycle} is not open; call open_cycle({cycle}) before asking in it")
            asked = connection.scalar(select(func.count()).where(_queries.c.cycle == cycle)) or 0
            rows = [_query_row(query, cycle, position) for position, query in enumerate(queries, start=asked)]
            try:
                ids = connection.scalars(returning_ids, rows).all()
            except IntegrityError as error:
                raise ValueError("every query must be about an image that was added, by add_images()") from error
        return [replace(query, id=id) for query, id in zip(queries, ids, strict=True)]

    def queries(self, cycle: int | None = None) -> list[Query]:
        """Everything asked in one cycle, or in all of them, in the order asked."""
        return self._asked(*_of(cycle))

    def unanswered(self, cycle: int) -> list[Query]:
        """The queries of a cycle that still have no answer, in the order asked."""
        return self._asked(_queries.c.cycle == cycle, _is_unanswered)

    def next_query(self) -> Query | None:
        """The first unanswered query of the latest cycle, or None when all are answered."""
        latest = select(func.max(_cycles.c.cycle)).scalar_subquery()
        return next(iter(self._asked(_queries.c.cycle == latest, _is_unanswered, limit=1)), None)

    # Answers

    def record(self, answers: Sequence[Answer]) -> None:
        """Append answers, all or none. A query answered before is thereby corrected: its latest answer counts.

        ``ValueError`` if a query was never asked, a label is no class, or an answer other than OBJECT has boxes.
        """
        if not answers:
            return
        with self._transaction(writes=True) as connection:
            classes = connection.scalar(select(func.count()).select_from(_classes)) or 0
            rows = [_answer_row(answer, classes) for answer in answers]
            try:
                connection.execute(insert(_answers), rows)
            except IntegrityError as error:
                raise ValueError("every answer must name a query that was asked, by the id ask() gave it") from error

    def answered(self, cycle: int | None = None) -> list[tuple[Query, Answer]]:
        """Each answered query of one cycle, or of all, with its latest answer, in the order asked."""
        columns = (_queries, *(column for column in _answers.c if column.name != "id"))
        return [(_query(row), _answer(row)) for row in self._latest(columns, *_of(cycle))]

    def labels(self, up_to_cycle: int | None = None) -> dict[int, ImageLabels]:
        """What is known of each image with an answer, by image id; on request only from cycles up to that one."""
        return self._labels(*(() if up_to_cycle is None else (_queries.c.cycle <= up_to_cycle,)))

    def labels_of(self, image_id: int) -> ImageLabels:
        """What is known of one image; without answers, empty."""
        return self._labels(_queries.c.image_id == image_id).get(image_id) or _image_labels([])

    def spent(self, cycle: int | None = None) -> Spent:
        """What the answers of one cycle, or of all, cost on each meter."""
        flags = (_queries.c.box.is_(None).label("whole"), _is_latest.label("latest"))
        statement = select(_answers.c.labels, _answers.c.milliseconds, *flags).join_from(_queries, _answers)
        with self._transaction() as connection:
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
        with self._transaction(writes=classes is not None) as connection:
            tables = inspect(connection).get_table_names()
            if not tables and classes is not None:
                _create(connection, classes)
            elif _rarebox.name not in tables:
                raise UserError(f"{self._where}: this is not a rarebox label store; choose another path")
            schema = connection.scalar(select(_rarebox.c.schema)) or 0
        if schema > SCHEMA:
            raise UserError(
                f"{self._where}: written by a newer rarebox (schema {schema}, this one reads up to {SCHEMA}); "
                "install a newer rarebox"
            )
        if classes is not None and self.classes() != tuple(classes):
            raise UserError(
                f"{self._where}: the store has the classes {', '.join(self.classes())}, but these were given: "
                f"{', '.join(classes)}; give the same ones, or start a new project"
            )

    @contextmanager
    def _transaction(self, writes: bool = False) -> Iterator[Connection]:
        try:
            with self._engine.execution_options(writes=writes).begin() as connection:
                yield connection
        except DatabaseError as error:
            if type(error) not in (DatabaseError, OperationalError):
                raise
            raise UserError(f"{self._where}: {_reason(error)}") from error

    def _asked(self, *where: ColumnElement[bool], limit: int | None = None) -> list[Query]:
        statement = select(_queries).where(*where).order_by(*_in_order).limit(limit)
        with self._transaction() as connection:
            return [_query(row) for row in connection.execute(statement)]

    def _latest(self, columns: Iterable[ColumnElement[Any] | Table], *where: ColumnElement[bool]) -> Sequence[Row[Any]]:
        """Columns of the answered queries and their latest answers, in the order asked."""
        statement = select(*columns).join_from(_queries, _answers).where(_is_latest, *where).order_by(*_in_order)
        with self._transaction() as connection:
            return connection.execute(statement).all()

    def _labels(self, *where: ColumnElement[bool]) -> dict[int, ImageLabels]:
        columns = (_queries.c.image_id, _queries.c.box, _answers.c.verdict, _answers.c.boxes, _answers.c.labels)
        rows_of: dict[int, list[Row[Any]]] = defaultdict(list)
        for row in self._latest(columns, *where):
            rows_of[row.image_id].append(row)
        return {image_id: _image_labels(rows) for image_id, rows in rows_of.items()}


def _url(path_or_url: str | Path) -> URL:
    if "://" not in str(path_or_url):
        return URL.create("sqlite", database=str(path_or_url))
    try:
        return make_url(str(path_or_url))
    except ArgumentError as error:
        raise UserError(f"{path_or_url}: not a database URL; wanted is driver://user:password@host/name") from error


def _engine(url: URL, flush: bool) -> Engine:
    try:
        return _sqlite(url, flush) if url.get_backend_name() == "sqlite" else create_engine(url)
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
        if not tables or _rarebox.name in tables:  # it is written into the file: never into somebody else's
            connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """A writer takes its lock at once, for one that starts as a reader may find the door closed half-way."""
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


def _read_json(text: str) -> Any:
    """``json.loads`` without its search for blanks around the text, which takes half of its time on short texts."""
    return _json.raw_decode(text)[0]


def _create(connection: Connection, classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError(f"each class needs its own name, got {', '.join(classes)}")
    _tables.create_all(connection)
    connection.execute(insert(_rarebox), {"schema": SCHEMA})
    if classes:
        connection.execute(insert(_classes), [{"id": label, "name": name} for label, name in enumerate(classes)])


def _reason(error: DatabaseError) -> str:
    """What went wrong in the database, and what to do."""
    said = str(error.orig)
    advice = {
        "disk I/O error": "the disk may be full; free some space and go on; nothing recorded before is lost",
        "is full": "free some space and go on; nothing recorded before is lost",
        "is locked": f"another program kept it busy for {BUSY_SECONDS} s; nothing recorded before is lost, try again",
        "not a database": "this is not a rarebox label store; choose another path",
        "unable to open": "check that the folder exists and may be written",
        "readonly": "allow this user to write the file and its folder",
        "malformed": "the file is damaged; restore a copy",
    }
    return next((f"{said}: {what}" for sign, what in advice.items() if sign in said), said)


def _of(cycle: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if cycle is None else (_queries.c.cycle == cycle,)


def _read_images(connection: Connection) -> dict[int, ImageRecord]:
    return {row.id: ImageRecord(*row) for row in connection.execute(select(_images).order_by(_images.c.id))}


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
    }


def _query(row: Row[Any]) -> Query:
    box = None if row.box is None else np.array(row.box, dtype=np.float32)
    return Query(row.image_id, box, row.guess, row.utility, row.why, row.id)


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


def _answer(row: Row[Any]) -> Answer:
    labels = np.array(row.labels, dtype=np.int64)
    return Answer(row.query_id, row.boxes, labels, Verdict(row.verdict), row.by, row.milliseconds)


def _image_labels(rows: Sequence[Row[Any]]) -> ImageLabels:
    """Put together the latest answers of one image: rows with box, verdict, boxes and labels."""
    boxes = as_boxes([box for row in rows for box in row.boxes])
    labels = np.array([label for row in rows for label in row.labels], dtype=np.int64)
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
