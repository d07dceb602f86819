"""The tables of the label store, and what of them counts. :mod:`rarebox.labels.store` says what they are for."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    and_,
    exists,
)
from sqlalchemy.dialects import sqlite

from rarebox.types import Verdict

SCHEMA = 3
"""Goes up whenever an older rarebox could no longer read the tables below."""


def now() -> datetime:
    """UTC without a zone: SQLite keeps none, and so both databases read the same."""
    return datetime.now(UTC).replace(tzinfo=None)


class _TolerantTime(sqlite.DATETIME):
    """A time; where the cell holds none, the cell as it is, so that one bad row does not end the whole query."""

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        read: Any = super().result_processor(dialect, coltype)

        def process(value: Any) -> Any:
            try:
                return read(value)
            except (TypeError, ValueError):
                return value

        return process


_TIME = DateTime().with_variant(_TolerantTime(), "sqlite")

tables = MetaData()
rarebox = Table("rarebox", tables, Column("schema", Integer, primary_key=True))
classes = Table(
    "classes",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("name", String, nullable=False),
)
class_changes = Table(
    "class_changes",
    tables,
    Column("id", Integer, primary_key=True),
    Column("label", ForeignKey(classes.c.id), nullable=False),
    Column("name", String),
    Column("merged_into", Integer),
    Column("by", String, nullable=False),
    Column("changed_at", _TIME, nullable=False, default=now),
)
images = Table(
    "images",
    tables,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("path", String, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("digest", String),
)
image_moves = Table(
    "image_moves",
    tables,
    Column("id", Integer, primary_key=True),
    Column("image_id", ForeignKey(images.c.id), nullable=False),
    Column("path", String, nullable=False),
    Column("moved_at", _TIME, nullable=False, default=now),
)
cycles = Table(
    "cycles",
    tables,
    Column("cycle", Integer, primary_key=True, autoincrement=False),
    Column("opened_at", _TIME, nullable=False, default=now),
)
queries = Table(
    "queries",
    tables,
    Column("id", Integer, primary_key=True),
    Column("cycle", ForeignKey(cycles.c.cycle), nullable=False),
    Column("position", Integer, nullable=False),
    Column("image_id", ForeignKey(images.c.id), nullable=False, index=True),
    Column("box", JSON(none_as_null=True)),
    Column("guess", Integer),
    Column("utility", Double, nullable=False),
    Column("why", JSON(none_as_null=True)),
    Column("asked_at", _TIME, nullable=False, default=now),
    Column("wanted", Integer, nullable=False, server_default="1"),
    Column("asked_by", String),
    UniqueConstraint("cycle", "position"),
)
answers = Table(
    "answers",
    tables,
    Column("id", Integer, primary_key=True),
    Column("query_id", ForeignKey(queries.c.id), nullable=False, index=True),
    Column("verdict", String, nullable=False),
    Column("boxes", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("by", String, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("answered_at", _TIME, nullable=False, default=now),
    Column("key", String),
    Index("answers_key", "key", unique=True),
)
# Only the rows of these two change: who is at work on what just now, by a clock of the store's own.
clock = Table("clock", tables, Column("seconds", Double, nullable=False))
leases = Table(
    "leases",
    tables,
    Column("query_id", ForeignKey(queries.c.id), primary_key=True),
    Column("holder", String, primary_key=True),
    Column("by", String, nullable=False),
    Column("until", Double, nullable=False),
)


def stands(answer: Any) -> ColumnElement[bool]:
    """Whether it is its author's last word on the query, and was not withdrawn."""
    later = answers.alias()
    corrected = exists().where(
        later.c.query_id == answer.c.query_id, later.c.by == answer.c.by, later.c.id > answer.c.id
    )
    return and_(answer.c.verdict != Verdict.WITHDRAWN.value, ~corrected)


_other = answers.alias()
is_latest = and_(
    stands(answers),
    ~exists().where(_other.c.query_id == answers.c.query_id, _other.c.id > answers.c.id, stands(_other)),
)
is_unanswered = and_(queries.c.asked_by.is_(None), ~exists().where(answers.c.query_id == queries.c.id, stands(answers)))
in_order = (queries.c.cycle, queries.c.position)
