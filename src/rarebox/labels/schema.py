"""The tables of the label store, and conditions on their rows. :mod:`rarebox.labels.store` explains their use."""

from datetime import UTC, datetime

from sqlalchemy import (
    JSON,
    Column,
    ColumnElement,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    FromClause,
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

SCHEMA = 6
"""The version of the tables below. It increases whenever an older rarebox could no longer read them."""


def now() -> datetime:
    """The UTC time without a time zone, because SQLite stores none."""
    return datetime.now(UTC).replace(tzinfo=None)


class _TolerantTime(sqlite.DATETIME):
    """A time, or the raw value of a damaged cell, so that one bad row does not fail the whole query."""

    def result_processor(self, dialect: Dialect, coltype: object):
        read = super().result_processor(dialect, coltype)
        assert read

        def process(value: object) -> object:
            try:
                return read(value)
            except (TypeError, ValueError):
                return value

        return process


_TIME = DateTime().with_variant(_TolerantTime(), "sqlite")

tables = MetaData()
rarebox = Table("rarebox", tables, Column("schema", Integer, primary_key=True))
sessions = Table(
    "sessions",
    tables,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("class_changes", Integer),  # the id of the last one at that time; None in sessions of earlier versions
)
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
    Column[int]("label", ForeignKey(classes.c.id), nullable=False),
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
    Column[int]("image_id", ForeignKey(images.c.id), nullable=False),
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
    Column[int]("cycle", ForeignKey(cycles.c.cycle), nullable=False),
    Column("position", Integer, nullable=False),
    Column[int]("image_id", ForeignKey(images.c.id), nullable=False, index=True),
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
    Column[int]("query_id", ForeignKey(queries.c.id), nullable=False, index=True),
    Column("verdict", String, nullable=False),
    Column("boxes", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("by", String, nullable=False),
    Column("milliseconds", Integer, nullable=False),
    Column("answered_at", _TIME, nullable=False, default=now),
    Column("key", String),
    Index("answers_key", "key", unique=True),
)
# What each task of another tool has said about a query, whether or not it became the label. The last row counts.
task_answers = Table(
    "task_answers",
    tables,
    Column("id", Integer, primary_key=True),
    Column[int]("query_id", ForeignKey(queries.c.id), nullable=False, index=True),
    Column("task", String, nullable=False),
    Column("key", String),  # the tool's name of the box, if the task was the first to draw it or joined others
    Column("verdict", String, nullable=False),
    Column("boxes", JSON, nullable=False),
    Column("labels", JSON, nullable=False),
    Column("by", String, nullable=False),
)
# Only the rows of these two tables change: current leases, timed by the store's own clock.
clock = Table("clock", tables, Column("seconds", Double, nullable=False))
leases = Table(
    "leases",
    tables,
    Column[int]("query_id", ForeignKey(queries.c.id), primary_key=True),
    Column("holder", String, primary_key=True),
    Column("by", String, nullable=False),
    Column("until", Double, nullable=False),
)


def stands(answer: FromClause) -> ColumnElement[bool]:
    """Whether an answer is its author's latest on the query and not withdrawn."""
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
