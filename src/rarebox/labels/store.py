"""The label store: images, queries and answers as append-only events, in SQLite or, by URL, in PostgreSQL.

Their rows are never changed or removed. A correction is a further answer to the same query, and the latest one counts;
a withdrawal is an answer too. :mod:`rarebox.labels.leases` adds what several annotators need. A method that writes uses
one transaction; when it returns, the rows survive ``kill -9``.
"""

import os
import re
import sqlite3
from collections import defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from json import JSONDecoder
from pathlib import Path
from secrets import token_hex
from threading import local
from typing import Self

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    bindparam,
    case,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
    union_all,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, OperationalError
from sqlalchemy.schema import CreateColumn

from rarebox.core.files import real
from rarebox.errors import Unavailable, UserError
from rarebox.labels import schema, sqlite
from rarebox.labels.combining import NOTHING, Said, combined
from rarebox.labels.rows import Cells, Rows, Unreadable, are_numbers, is_box, is_text
from rarebox.labels.sqlite import BUSY_SECONDS, Watch, has_content, is_database
from rarebox.types import Answer, ImageLabels, ImageRecord, Ints, Query, Verdict, as_boxes

LONGEST_TIME = 10**9
"""The longest time of an answer that is stored, in milliseconds: eleven days. A page or a task may stay open longer."""

WRITERS_LOCK = 0x7261726562  # an arbitrary number: PostgreSQL's lock for writers of the whole database

DIFFICULT = "difficult"
"""In the ``why`` of a query that was answered CANNOT_TELL: the box holds a difficult object of the guess."""

_json = JSONDecoder()

# Frequent statements are built once: building a statement takes longer than running it.
_LATEST_SESSION = select(schema.sessions.c.name).order_by(schema.sessions.c.id.desc()).limit(1)
_FIRST_SESSION = select(schema.sessions.c.name).order_by(schema.sessions.c.id).limit(1)
_SESSION = select(schema.sessions.c.id).where(schema.sessions.c.name == bindparam("name"))
_CHANGES_BEFORE = select(schema.sessions.c.class_changes).where(schema.sessions.c.name == bindparam("name"))
_LAST_CHANGE = select(func.coalesce(func.max(schema.class_changes.c.id), 0))
_CYCLE = select(schema.cycles).where(schema.cycles.c.cycle == bindparam("cycle"))
_LAST_POSITION = select(func.max(schema.queries.c.position)).where(
    schema.queries.c.cycle == bindparam("cycle"),
    schema.queries.c.position < 2**30,  # larger ones and texts are damaged
)
_ADD_QUERIES = insert(schema.queries).returning(schema.queries.c.id, sort_by_parameter_order=True)
_ADD_ANSWERS = insert(schema.answers).returning(schema.answers.c.id, sort_by_parameter_order=True)
_HOW_MANY_CLASSES = select(func.count()).select_from(schema.classes)
_merged = and_(schema.class_changes.c.label == schema.classes.c.id, schema.class_changes.c.merged_into.is_not(None))
_MERGERS = (
    select(schema.classes.c.id, schema.class_changes.c.merged_into, schema.class_changes.c.id.label("change"))
    .outerjoin_from(schema.classes, schema.class_changes, _merged)
    .order_by(schema.class_changes.c.id)
)
_CHANGES = select(schema.class_changes.c.id, schema.class_changes.c.label, schema.class_changes.c.name).order_by(
    schema.class_changes.c.id
)
_NAMES = union_all(
    select(schema.classes.c.id.label("label"), schema.classes.c.name),
    select(schema.class_changes.c.label, schema.class_changes.c.name),
)
_MOVES = select(schema.image_moves.c.id, schema.image_moves.c.image_id, schema.image_moves.c.path).order_by(
    schema.image_moves.c.id
)
ANSWER = (
    *(column for column in schema.answers.c if column.name not in ("id", "key")),
    schema.answers.c.id.label("answer_id"),
)
"""The columns of an answer, without those of its query."""
_LABELS = (
    select(
        schema.queries.c.id,
        schema.queries.c.image_id,
        schema.queries.c.box,
        schema.answers.c.verdict,
        schema.answers.c.boxes,
        schema.answers.c.labels,
        schema.answers.c.id.label("answer_id"),
        schema.queries.c.guess,
        case((schema.answers.c.verdict == Verdict.CANNOT_TELL.value, schema.queries.c.why)).label("why"),
    )
    .join_from(schema.queries, schema.answers)
    .where(schema.is_latest)
    .order_by(*schema.in_order)
)
_ORPHANS = select(schema.answers.c.id, schema.answers.c.query_id).where(
    schema.answers.c.query_id.not_in(select(schema.queries.c.id))
)
_LABELS_OF_IMAGES = _LABELS.where(schema.queries.c.image_id.in_(bindparam("images", expanding=True)))


@dataclass(frozen=True)
class Spent:
    """What answers cost: ``labels`` counts the boxes returned, ``reviews`` the boxes shown.

    A whole image costs one review per box returned, or one review if it was asked about and none was returned. The
    latest answer to each query counts. ``milliseconds`` is the time of all answers, corrected ones too.
    """

    labels: int = 0
    reviews: int = 0
    milliseconds: int = 0


class Store:
    """The labels of one project, in a file (SQLite) or at a database URL such as ``postgresql+psycopg://...``.

    ``Store(path, classes=names)`` creates the store if it does not exist; ``Store(path)`` requires an existing one.
    With ``flush`` every write waits for the disk, so a power cut loses nothing (people). Without it, writes are handed
    to the operating system, which is safe from ``kill -9`` and much faster (simulations). Use the store as a context
    manager, or ``close`` it. Threads may share it, and many processes may open one store.

    Every method raises ``UserError`` if the database cannot be read or written (not a store, a newer one, disk full,
    locked by another process). A failed write changes nothing.
    """

    def __init__(self, path_or_url: str | Path, *, classes: Sequence[str] | None = None, flush: bool = True) -> None:
        url = _url(path_or_url)
        in_file = url.get_backend_name() == "sqlite"
        self._where = url.database if in_file and url.database else str(url)  # a URL prints without its password
        self._image_ids, self._class_count = frozenset[int](), 0
        self.rows = Rows(self._where, self._has_image, self._is_label)
        on_disk = in_file and self._where != ":memory:"
        if on_disk:
            self._check_file(Path(self._where), classes is not None)
        self._engine = _engine(url, flush)
        self._thread = local()
        self._watch = Watch(real(self._where)) if on_disk else None
        try:
            with self._watch.opening() if self._watch else nullcontext():
                self._prepare(classes)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections. An SQLite file is then complete and may be copied."""
        self._engine.dispose()
        if self._watch:
            self._watch.close()

    def keep_log(self) -> None:
        """Copy SQLite's log into the database if somebody has removed it while the store is open.

        Every transaction does this, too. A process that may be idle calls it regularly.
        """
        if self._watch:
            self._watch.keep()

    # Sessions

    def session(self, first: bool = False) -> str:
        """The random name of the latest session, or of the ``first`` one. Empty if it is damaged.

        Whatever leaves the store with numbers of images, classes, questions or answers carries this name. A store that
        was restored from an older backup does not have it (:meth:`has_session`) and may have given these numbers to
        something else since.
        """
        with self.transaction() as connection:
            name = connection.scalar(_FIRST_SESSION if first else _LATEST_SESSION)
        if name is None:  # a store of an earlier version
            with self.transaction(writes=True):
                self.begin_session()
            return self.session()
        return name if is_text(name) and re.fullmatch("[0-9a-f]{32}", name) else ""

    def begin_session(self) -> None:
        """Begin a session in the current transaction, which adds numbers or has changed classes. Once per transaction.

        So a copy of the store, made at whatever time, has the sessions of the numbers in it, and no others.
        """
        if not self._thread.numbers:
            session = {"name": token_hex(16), "class_changes": self._thread.connection.scalar(_LAST_CHANGE)}
            self._thread.connection.execute(insert(schema.sessions), session)
            self._thread.numbers = True

    def has_session(self, name: str) -> bool:
        """Whether a session of this name is in the store."""
        with self.transaction() as connection:
            return connection.scalar(_SESSION, {"name": name}) is not None

    # Images, classes, cycles

    def add_images(self, records: Iterable[ImageRecord], digests: Mapping[int, str] | None = None) -> None:
        """Add images that are not in the store. ``UserError`` if an id already names another path or size.

        ``digests`` are hashes of the files' content, by image id; :meth:`digests` returns them.
        """
        with self.transaction(writes=True) as connection:
            known = self._read_images(connection)
            new: dict[int, ImageRecord] = {}
            for record in records:
                there = known.get(record.id) or new.setdefault(record.id, record)
                if there != record:
                    raise UserError(
                        f"{self._where}: image {record.id} is {_describe(there)} in the store but {_describe(record)} "
                        "now. Restore the images, or start a new project"
                    )
            if new:
                self.begin_session()
                found = digests or {}
                rows = [{**vars(record), "digest": found.get(record.id)} for record in new.values()]
                connection.execute(insert(schema.images), rows)

    def images(self) -> dict[int, ImageRecord]:
        """Every image with its current path, by image id."""
        with self.transaction() as connection:
            return self._read_images(connection)

    def digests(self) -> dict[int, str]:
        """The stored hashes of the images' content, by image id."""
        stored = select(schema.images.c.id, schema.images.c.digest).where(schema.images.c.digest.is_not(None))
        with self.transaction() as connection:
            return {row.id: row.digest for row in connection.execute(stored) if is_text(row.digest)}

    def move_images(self, paths: Mapping[int, str]) -> None:
        """Record new paths of images, by image id."""
        with self.transaction(writes=True) as connection:
            if paths:
                rows = [{"image_id": number, "path": path} for number, path in paths.items()]
                connection.execute(insert(schema.image_moves), rows)

    def taken_paths(self) -> dict[int, str]:
        """The current path of each image, by image id, including images whose size is damaged.

        A new image can use neither these ids nor these files.
        """
        with self.transaction() as connection:
            rows = [(row.id, row.path) for row in connection.execute(select(schema.images))]
            rows += [(row.image_id, row.path) for row in connection.execute(_MOVES)]
        return {image_id: path if is_text(path) else "" for image_id, path in rows if type(image_id) is int}

    def image_paths(self) -> dict[int, list[str]]:
        """Every path that each image has had, by image id, the current one last."""
        with self.transaction() as connection:
            paths = {image_id: [image.path] for image_id, image in self._read_images(connection).items()}
            earlier = [(row.id, row.path) for row in connection.execute(select(schema.images))]
            earlier += [(row.image_id, row.path) for row in connection.execute(_MOVES)]
        for image_id, path in earlier:
            if image_id in paths and is_text(path) and path not in paths[image_id]:
                paths[image_id].insert(-1, path)
        return paths

    def classes(self, session: str = "") -> tuple[str, ...]:
        """The K class names; a label is an index into them. A class merged into another keeps its index.

        With a ``session``, the names are those of the time when it began, if the store knows them.
        """
        with self.transaction() as connection:
            rows = connection.execute(select(schema.classes)).all()
            last = self._last_change(connection, session)
            changes = [row for row in connection.execute(_CHANGES) if row.id <= last]
        names = {label: f"class {label}" for label in range(len(rows))}
        for row in rows:
            if row.id in names:
                names[row.id] = self.rows.name("classes", row.id, "name", row.name, names[row.id])
            else:
                self.rows.report("classes", row.id, "id", row.id, f"{len(rows)} classes have labels below {len(rows)}")
        for row in changes:
            if row.label not in names:
                self.rows.report("class_changes", row.id, "label", row.label, "the change is ignored")
            elif row.name is not None:
                names[row.label] = self.rows.name("class_changes", row.id, "name", row.name, names[row.label])
        return tuple(names.values())

    def names_of_classes(self) -> dict[int, set[str]]:
        """Every name that each class has or had, by label. Damaged rows are left out."""
        found = defaultdict[int, set[str]](set)
        with self.transaction() as connection:
            for row in connection.execute(_NAMES).all():
                if type(row.label) is int and isinstance(row.name, str):
                    found[row.label].add(row.name)
        return found

    def counts_as(self, session: str = "") -> Ints:
        """(K,): the label that each label counts as: itself, or the class into which it was merged.

        With a ``session``, without the mergers after it, as in :meth:`classes`.
        """
        with self.transaction() as connection:
            return self._counts_as(connection, self._last_change(connection, session))

    def open_cycle(self, cycle: int) -> None:
        """Add a cycle unless it exists. The highest cycle is the latest."""
        with self.transaction(writes=True) as connection:
            if connection.scalar(select(schema.cycles).where(schema.cycles.c.cycle == cycle)) is None:
                connection.execute(insert(schema.cycles), {"cycle": cycle})

    def cycles(self) -> list[int]:
        """The open cycles, ascending."""
        with self.transaction() as connection:
            return list(connection.scalars(select(schema.cycles.c.cycle).order_by(schema.cycles.c.cycle)))

    # Questions

    def ask(self, cycle: int, queries: Sequence[Query]) -> list[Query]:
        """Append queries to an open cycle, all or none. Returns them with their ids, in the same order.

        Raises ``ValueError`` if the cycle is not open, an image is unknown or a box has no area.
        """
        queries = [q if q.box is None else replace(q, box=as_boxes([q.box])[0]) for q in queries]
        if not queries:
            return []
        with self.transaction(writes=True) as connection:
            if connection.scalar(_CYCLE, {"cycle": cycle}) is None:
                raise ValueError(f"cycle {cycle} is not open. Call open_cycle({cycle}) before asking in it")
            last = connection.scalar(_LAST_POSITION, {"cycle": cycle})
            first = 0 if last is None else int(last) + 1
            self.begin_session()
            rows = [_query_row(query, cycle, position) for position, query in enumerate(queries, start=first)]
            try:
                ids = connection.scalars(_ADD_QUERIES, rows).all()
            except IntegrityError as error:
                raise ValueError("every query must name an image of the store. Call add_images() first") from error
        return [replace(query, id=id) for query, id in zip(queries, ids, strict=True)]

    def queries(self, cycle: int | None = None) -> list[Query]:
        """The queries of one cycle, or of all cycles, in the order asked."""
        return self._asked(*_of(cycle))

    def unanswered(self, cycle: int) -> list[Query]:
        """The unanswered queries that a strategy asked in a cycle, in the order asked."""
        return self._asked(schema.queries.c.cycle == cycle, schema.is_unanswered)

    # Answers

    def record(self, answers: Sequence[Answer], keys: Sequence[str] | None = None) -> list[int]:
        """Append answers, all or none, and return their ids. An answer to an answered query corrects it.

        ``keys`` are the senders' names for the answers, unique in the store. Raises ``ValueError`` if a query was never
        asked, a label is not a class, or an answer other than OBJECT has boxes.
        """
        if not answers:
            return []
        with self.transaction(writes=True) as connection:
            classes = connection.scalar(_HOW_MANY_CLASSES) or 0
            rows = [_answer_row(answer, classes) for answer in answers]
            rows = [{**row, "key": key} for row, key in zip(rows, keys, strict=True)] if keys else rows
            self.begin_session()
            try:
                return list(connection.scalars(_ADD_ANSWERS, rows))
            except IntegrityError as error:
                raise ValueError(
                    "every answer needs the id of a query that ask() returned, and a unique key"
                ) from error

    def answered(self, cycle: int | None = None, *, every: bool = False) -> list[tuple[Query, Answer]]:
        """The answered queries of one cycle, or of all, each with its latest answer, in the order asked.

        With ``every``, a query is listed with each of its answers, corrected and withdrawn ones too.
        """
        which = _of(cycle) if every else (schema.is_latest, *_of(cycle))
        statement = select(schema.queries, *ANSWER).join_from(schema.queries, schema.answers)
        statement = statement.where(*which).order_by(*schema.in_order, schema.answers.c.id)
        with self.transaction() as connection:
            counts_as = self._counts_as(connection)
            rows = connection.execute(statement).all()
            return [(query, self.rows.answer(row, counts_as)) for row in rows if (query := self.rows.query(row))]

    def labels(self, up_to_cycle: int | None = None) -> dict[int, ImageLabels]:
        """The labels of each image with an answer, by image id; optionally only those of cycles up to one."""
        within = () if up_to_cycle is None else (schema.queries.c.cycle <= up_to_cycle,)
        return self._labels(_LABELS.where(*within))

    def labels_of(self, image_id: int) -> ImageLabels:
        """The labels of one image; empty if it has no answers."""
        return self.labels_of_images([image_id])[image_id]

    def labels_of_images(self, image_ids: Iterable[int]) -> dict[int, ImageLabels]:
        """The labels of each of at most a few thousand images, by image id; empty for those without answers."""
        images = list(image_ids)
        found = self._labels(_LABELS_OF_IMAGES, {"images": images})
        return {image_id: found.get(image_id, NOTHING) for image_id in images}

    def spent(self, cycle: int | None = None) -> Spent:
        """The cost of the answers of one cycle, or of all, in each budget unit."""
        flags = (
            schema.queries.c.box.is_(None).label("whole"),
            schema.queries.c.asked_by.is_(None).label("asked"),
            schema.is_latest.label("latest"),
        )
        statement = select(*ANSWER, *flags).join_from(schema.queries, schema.answers)
        with self.transaction() as connection:
            rows = connection.execute(statement.where(*_of(cycle))).all()
            classes = connection.scalar(_HOW_MANY_CLASSES) or 0
        latest = [(row.whole, row.asked, len(self.rows.said(row, classes)[1])) for row in rows if row.latest]
        return Spent(
            labels=sum(boxes for _, _, boxes in latest),
            reviews=sum(max(boxes, asked) if whole else 1 for whole, asked, boxes in latest),
            milliseconds=sum(self.rows.milliseconds(row) for row in rows),
        )

    # Damage and copies

    @property
    def damage(self) -> list[str]:
        """One sentence for each damaged cell found so far; :mod:`rarebox.labels.rows` describes their handling."""
        return self.rows.damage

    def back_up(self, file: Path) -> None:
        """Copy the current store to a new file atomically. Others may read and write in the meantime.

        Raises ``UserError`` if the file exists, cannot be written or has a name that SQLite uses for its own files, or
        if the store is on a database server.
        """
        if self._engine.url.get_backend_name() != "sqlite":
            raise UserError(f"{self._where}: this store is on a database server. Use pg_dump")
        if file.exists() or file.is_symlink():
            raise UserError(f"{file} exists and is not overwritten. Name a new file")
        if file.name.casefold().endswith(sqlite.COMPANIONS):
            raise UserError(f"SQLite may delete files with names such as {file.name}. Name another file")
        if not file.parent.is_dir():
            raise UserError(f"there is no folder {file.parent}. Create it, or name a file in another one")
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            with self._explained(), closing(self._engine.raw_connection()) as source:
                assert isinstance(source.driver_connection, sqlite3.Connection)
                sqlite.copy(source.driver_connection, part)
            sqlite.place(part, file)
        except FileExistsError:
            raise UserError(f"{file} exists and is not overwritten. Name a new file") from None
        except sqlite3.DatabaseError as error:
            raise UserError(f"{self._where} cannot be copied to {file}: {error}") from error
        except OSError as error:
            raise UserError(f"{file} cannot be written ({error}). Free some space or name another file") from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)

    # Inside

    @staticmethod
    def _check_file(file: Path, may_create: bool) -> None:
        """Raise UserError for a file that is no store, which opening it would change."""
        if file.is_dir():
            return  # the database says what is wrong
        if not has_content(file):
            if not (may_create or file.exists()):
                raise UserError(f"{file}: there is no label store here. Start a project, or correct the path")
            if not may_create:
                raise UserError(f"{file}: this is not a rarebox label store, but an empty file. Choose another path")
        elif not is_database(file):
            raise UserError(
                f"{file}: this is not a rarebox label store. Restore a copy of it (docs/store.md), or choose another "
                "path"
            )

    def _prepare(self, classes: Sequence[str] | None) -> None:
        """Create the store if the database is empty, and check that this version can read it."""
        with self.transaction(writes=classes is not None) as connection:
            there = inspect(connection).get_table_names()
            if not there and classes is not None:
                _create(connection, classes)
            elif schema.rarebox.name not in there:
                raise UserError(f"{self._where}: this is not a rarebox label store. Choose another path")
            version = connection.scalar(select(schema.rarebox.c.schema))
        if type(version) is not int or version < 1:
            raise UserError(
                f"{self._where}: table rarebox: schema is damaged ({version!r}). Restore a copy of it (docs/store.md)"
            )
        if version > schema.SCHEMA:
            raise UserError(
                f"{self._where}: written by a newer rarebox (schema {version}, this one reads up to {schema.SCHEMA}). "
                "Upgrade rarebox"
            )
        if version < schema.SCHEMA:
            with self.transaction(writes=True) as connection:
                _bring_up_to_date(connection)
        if classes is not None and self.classes() != tuple(classes):
            raise UserError(
                f"{self._where}: the store has the classes {', '.join(self.classes())}, but you gave "
                f"{', '.join(classes)}. Give the same classes, or start a new project"
            )

    @contextmanager
    def transaction(self, writes: bool = False) -> Generator[Connection]:
        """Run this thread's reads and writes in one transaction: all of them are durable at the end, or none.

        A transaction inside another joins it; see :meth:`part` for one that may fail by itself.
        """
        if (outer := getattr(self._thread, "connection", None)) is not None:
            yield outer
            return
        self.keep_log()
        try:
            with self._explained(), self._engine.execution_options(writes=writes).begin() as self._thread.connection:
                self._thread.numbers = False
                try:
                    if writes and self._watch:
                        self._watch.check()
                    yield self._thread.connection
                    if writes and self._watch:
                        self._watch.check()
                finally:
                    del self._thread.connection
        finally:
            if writes:
                self.keep_log()

    @contextmanager
    def part(self) -> Generator[Connection]:
        """Run a savepoint of a transaction: if it raises, only its own writes are undone."""
        with self.transaction(writes=True) as connection, self._explained():
            begun: bool = self._thread.numbers
            try:
                with connection.begin_nested():
                    yield connection
            except BaseException:
                self._thread.numbers = begun
                raise

    @contextmanager
    def _explained(self) -> Generator[None]:
        """Turn database errors into Unavailable with advice. Errors of a wrong row or statement pass unchanged."""
        try:
            yield
        except DatabaseError as error:
            if type(error) not in (DatabaseError, OperationalError):
                raise
            if self._watch:
                self._watch.check()  # a missing log explains it better
            raise Unavailable(f"{self._where}: {_reason(error)}") from error

    def _asked(self, *where: ColumnElement[bool]) -> list[Query]:
        statement = select(schema.queries).where(*where).order_by(*schema.in_order)
        with self.transaction() as connection:
            rows = connection.execute(statement).all()
            return [query for row in rows if (query := self.rows.query(row))]

    def _labels(
        self, statement: Select[*tuple[object, ...]], values: dict[str, list[int]] | None = None
    ) -> dict[int, ImageLabels]:
        rows_of: dict[int, list[Said]] = defaultdict(list)
        with self.transaction() as connection:
            rows = connection.execute(statement, values).all()
            counts_as = self._counts_as(connection) if rows else np.zeros(0, dtype=np.int64)
            if values is None:
                for answer, query in connection.execute(_ORPHANS):
                    self.rows.report("answers", answer, "query_id", query, "the answer is ignored")
            for row in rows:
                if self._has_image(row.image_id):
                    rows_of[row.image_id].append(self._said(row, len(counts_as)))
                else:
                    self.rows.report("queries", row.id, "image_id", row.image_id, "its labels are ignored")
        return {image_id: combined(said, counts_as) for image_id, said in rows_of.items()}

    def _said(self, row: Cells, classes: int) -> Said:
        boxes, labels, verdict = self.rows.said(row, classes)
        shown, whole = row.box, row.box is None
        if not whole and not is_box(shown):
            self.rows.report("queries", row.id, "box", shown, "the box shown is lost; the labels are kept")
            shown = None
        marked = are_numbers(row.why) and DIFFICULT in row.why and verdict is Verdict.CANNOT_TELL
        difficult = row.guess if marked and shown is not None and self._is_label(row.guess) else None
        return Said(boxes, labels, verdict, shown, whole, difficult)

    def _read_images(self, connection: Connection) -> dict[int, ImageRecord]:
        rows = connection.execute(select(schema.images).order_by(schema.images.c.id)).all()
        found = {record.id: record for row in rows if (record := self.rows.image(row))}
        for row in connection.execute(_MOVES):
            if type(row.image_id) is not int or not is_text(row.path) or "\0" in row.path:
                self.rows.report("image_moves", row.id, "path", row.path, "the move is ignored")
            elif row.image_id in found:
                found[row.image_id] = replace(found[row.image_id], path=row.path)
        self._image_ids = frozenset(found)
        return found

    def _has_image(self, value: object) -> bool:
        """Whether the value is the id of a usable image."""
        if type(value) is int and value not in self._image_ids:
            self.images()
        return type(value) is int and value in self._image_ids

    def _is_label(self, value: object) -> bool:
        """Whether the value is the label of a class."""
        if type(value) is int and value >= self._class_count:
            with self.transaction() as connection:
                self._class_count = connection.scalar(_HOW_MANY_CLASSES) or 0
        return type(value) is int and 0 <= value < self._class_count

    @staticmethod
    def _last_change(connection: Connection, session: str) -> int:
        """The id of the last change of classes before a session; that of any change if the session is not known."""
        last = connection.scalar(_CHANGES_BEFORE, {"name": session}) if session else None
        return last if isinstance(last, int) else 2**63 - 1

    def _counts_as(self, connection: Connection, last: int = 2**63 - 1) -> Ints:
        """(K,): the label that each label counts as after the change ``last``."""
        rows = connection.execute(_MERGERS).all()
        found = np.arange(len({row.id for row in rows}))
        for label, into, change in rows:
            if into is None or change > last:
                continue
            if type(into) is int and 0 <= into < len(found):
                found[found == label] = into
            else:
                self.rows.report("class_changes", change, "merged_into", into, "the change is ignored")
        return found


def _url(path_or_url: str | Path) -> URL:
    if "://" not in str(path_or_url):
        return URL.create("sqlite", database=str(path_or_url))
    try:
        return make_url(str(path_or_url))
    except ArgumentError as error:
        raise UserError(f"{path_or_url}: not a database URL. Write driver://user:password@host/name") from error


def _engine(url: URL, flush: bool) -> Engine:
    try:
        return _sqlite(url, flush) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ImportError, ArgumentError) as error:
        raise UserError(f"{url}: no driver for this database ({error}). Install one, such as psycopg") from error


def _sqlite(url: URL, flush: bool) -> Engine:
    """An engine for SQLite."""
    engine = create_engine(url, json_deserializer=_read_json)

    @event.listens_for(engine, "connect")
    def tune(connection: sqlite3.Connection, _: object) -> None:
        connection.text_factory = _AS_TEXT
        connection.isolation_level = None  # the driver must open no transactions; `begin` below does
        connection.execute(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        try:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        except UnicodeDecodeError as error:  # SQLite's own error message quotes the damaged bytes
            raise sqlite3.DatabaseError("malformed database schema") from error
        if not tables or schema.rarebox.name in tables:  # this writes to the file, so only to a store
            sqlite.log_ahead(connection.execute)
        connection.execute(f"PRAGMA synchronous = {'FULL' if flush else 'NORMAL'}")
        connection.execute("PRAGMA foreign_keys = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Lock at once for a writer. One that starts as a reader might fail to get the lock in mid-transaction."""
        connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")

    return engine


_AS_TEXT = partial(str, encoding="utf-8", errors="surrogateescape")
"""Read damaged text too. Only its cell is damaged, and the conversion of the row reports it."""


def _postgresql(url: URL) -> Engine:
    """An engine for PostgreSQL. Writers take turns, as in SQLite, so ids follow the order of commits.

    A connection is tried before it is used, because the database may have been restarted."""
    engine = create_engine(url, pool_pre_ping=True)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Lock for a writer until its transaction ends. Readers never wait for this lock."""
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS_LOCK})")

    return engine


def _read_json(text: str) -> object:
    """``json.loads`` without stripping spaces around the text, which takes half of its time on short texts."""
    try:
        value, end = _json.raw_decode(text)
    except (ValueError, TypeError, RecursionError):
        return Unreadable(text)
    return value if end == len(text) else Unreadable(text)


def _create(connection: Connection, classes: Sequence[str]) -> None:
    if len(set(classes)) < len(classes):
        raise UserError(f"each class needs its own name, got {', '.join(classes)}")
    schema.tables.create_all(connection)
    connection.execute(insert(schema.rarebox), {"schema": schema.SCHEMA})
    if classes:
        connection.execute(insert(schema.classes), [{"id": label, "name": name} for label, name in enumerate(classes)])


def _bring_up_to_date(connection: Connection) -> None:
    """Add the tables and columns that an older schema lacks. Leases, which used the time of day, start over."""
    schema.tables.create_all(connection)
    new = (schema.images.c.digest, schema.queries.c.wanted, schema.queries.c.asked_by, schema.answers.c.key)
    for column in (*new, schema.sessions.c.class_changes):
        if column.name not in {there["name"] for there in inspect(connection).get_columns(column.table.name)}:
            added = CreateColumn(column).compile(connection)
            connection.execute(text(f"ALTER TABLE {column.table.name} ADD COLUMN {added}"))
    for index in schema.answers.indexes:
        index.create(connection, checkfirst=True)
    connection.execute(update(schema.leases).values(until=0))
    connection.execute(update(schema.rarebox).values(schema=schema.SCHEMA))


def _reason(error: DatabaseError) -> str:
    """What went wrong in the database, and what to do."""
    said = str(error.orig)
    advice = {
        "disk I/O error": "the disk may be full or failing. Free some space and try again. Nothing recorded is lost",
        "is full": "free some space and try again. Nothing recorded before is lost",
        "is locked": f"another program kept it busy for {BUSY_SECONDS} s. Try again. Nothing recorded before is lost",
        "not a database": "this is not a rarebox label store. Restore a copy of it, or choose another path",
        "unable to open": "check that the folder exists and may be written",
        "readonly": "allow this user to write the file and its folder",
        "malformed": "the file is damaged. Restore a copy of it (docs/store.md)",
        "no such": "the file is damaged. Restore a copy of it (docs/store.md)",
    }
    return next((f"{said}: {what}" for sign, what in advice.items() if sign in said), said)


def _of(cycle: int | None) -> tuple[ColumnElement[bool], ...]:
    return () if cycle is None else (schema.queries.c.cycle == cycle,)


def _describe(image: ImageRecord) -> str:
    return f"{image.path} ({image.width} x {image.height})"


def _query_row(query: Query, cycle: int, position: int) -> dict[str, object]:
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


def _answer_row(answer: Answer, classes: int) -> dict[str, object]:
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
        "milliseconds": min(answer.milliseconds, LONGEST_TIME),
    }
