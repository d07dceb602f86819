"""What the store holds about the images that another tool returned."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sqlalchemy import bindparam, select

from rarebox.data.classes import Classes
from rarebox.labels import schema
from rarebox.labels.store import ANSWER, Store
from rarebox.types import Answer, Ints, Query, Verdict

MOST_TOGETHER = 1000
"""The most images or queries in one statement."""

CHANGE = ":~"
"""Part of the keys of imported answers that change a label, and do not name a region."""

_of_images = schema.queries.c.image_id.in_(bindparam("images", expanding=True))
_QUERIES = select(schema.queries).where(_of_images).order_by(*schema.in_order)
_ANSWERS = (
    select(schema.queries.c.image_id, schema.answers.c.key, *ANSWER)
    .join_from(schema.queries, schema.answers)
    .where(_of_images)
    .order_by(schema.answers.c.id)
)
_KEY = select(schema.answers.c.id).where(schema.answers.c.key == bindparam("key"))
_IMAGES = select(schema.queries.c.id, schema.queries.c.image_id).where(
    schema.queries.c.id.in_(bindparam("queries", expanding=True))
)


@dataclass
class Known:
    """What the store holds about some images, read once.

    ``queries`` by image. ``standing``: each person's current answers to a query, in the order recorded. ``past``: by
    image, all answers ever recorded, the oldest first. ``drawn``: by image, the queries of boxes imported earlier, from
    any tool, by the keys of their answers. ``last_key``: the key of the last answer to each query, or an empty string.
    ``newer``: the sessions of images in files with a class name that the session lacks: the classes of the tool have
    been changed since. ``told``: the last answer from each task to a query, by query and the prefix of the task's keys,
    in the order recorded. ``origin``: that prefix of the first answer to a query, or an empty string. ``counts_as``
    (K,): the current class of each index, after merges.
    """

    store: Store
    counts_as: Ints
    queries: dict[int, dict[int, Query]] = field(default_factory=dict[int, dict[int, Query]])
    standing: dict[int, dict[str, Answer]] = field(default_factory=dict[int, dict[str, Answer]])
    past: dict[int, list[Answer]] = field(default_factory=dict[int, list[Answer]])
    drawn: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])
    last_key: dict[int, str] = field(default_factory=dict[int, str])
    newer: Collection[str] = frozenset[str]()
    told: dict[int, dict[str, Answer]] = field(default_factory=dict[int, dict[str, Answer]])
    origin: dict[int, str] = field(default_factory=dict[int, str])
    _classes: dict[str, Classes] = field(default_factory=dict[str, Classes])

    @classmethod
    def of(cls, store: Store, images: Iterable[int], newer: Collection[str] = ()) -> "Known":
        """Read the queries and answers of these images."""
        with store.transaction():
            known = cls(store, store.counts_as(), newer=newer)
            for some in _parts(images):
                known._read(some)
        return known

    def _read(self, images: Sequence[int]) -> None:
        rows = self.store.rows
        with self.store.transaction() as connection:
            for row in connection.execute(_QUERIES, {"images": images}).all():
                if query := rows.query(row):
                    self.queries.setdefault(query.image_id, {})[query.id] = query
            for row in connection.execute(_ANSWERS, {"images": images}).all():
                if row.query_id in self.queries.get(row.image_id, {}):
                    answer = rows.answer(row, self.counts_as)
                    self.past.setdefault(row.image_id, []).append(answer)
                    self._apply(answer)
                    key = self.last_key[row.query_id] = row.key if isinstance(row.key, str) else ""
                    task = key.rpartition(":")[0] if f":{row.image_id}:" in key else ""
                    self.origin.setdefault(row.query_id, task)
                    if task:
                        told = self.told.setdefault(row.query_id, {})
                        told.pop(task, None)
                        told[task] = answer
                        if CHANGE not in key:
                            self.drawn.setdefault(row.image_id, {})[key] = row.query_id

    def _apply(self, answer: Answer) -> None:
        """Replace or withdraw the earlier answer of the same author."""
        on_query = self.standing.setdefault(answer.query_id, {})
        on_query.pop(answer.by, None)
        if answer.verdict is not Verdict.WITHDRAWN:
            on_query[answer.by] = answer

    def classes(self, session: str) -> Classes:
        """The classes by name: their names when this session began, else the present and former ones."""
        if session not in self._classes:
            found = self._classes[session] = Classes(())
            for then in dict.fromkeys((session, "")):
                names, counts_as = self.store.classes(then), self.store.counts_as(then)
                for label in sorted(range(len(names)), key=lambda n: counts_as[n] != n):  # names in use first
                    found.add(names[label], label)
            _add_former(found, self.store, self.counts_as)
        return self._classes[session]

    def latest(self, query_id: int) -> Answer | None:
        """The answer to a query that counts, if it has one."""
        return next(reversed(self.standing.get(query_id, {}).values()), None)

    def held_by(self, task: str, query_id: int) -> Answer | None:
        """The box that a task had on the object of a query when it was last imported, if it had one."""
        told = self.told.get(query_id, {}).get(task)
        return told if told and len(told.boxes) == 1 else None

    def held_elsewhere(self, task: str, query_id: int) -> dict[str, Answer]:
        """The boxes of other tasks on the object of a query, by task, in the order recorded."""
        others = self.told.get(query_id, {}).items()
        return {other: answer for other, answer in others if other != task and len(answer.boxes) == 1}

    def has_key(self, key: str) -> bool:
        """Whether an answer has this key. A browser may send any key, even for another image."""
        with self.store.transaction() as connection:
            return connection.scalar(_KEY, {"key": key}) is not None


def _add_former(classes: Classes, store: Store, counts_as: Ints) -> None:
    """Add former names of classes, except names that mean or meant another class."""
    former = defaultdict[str, set[int]](set)
    for label, names in store.names_of_classes().items():
        for name in names if 0 <= label < len(counts_as) else ():
            former[name].add(int(counts_as[label]))
    for name, (label, *others) in former.items():
        if not others and classes.find(name) is None:
            classes.add(name, label)


def images_of(store: Store, queries: Iterable[int]) -> dict[int, int]:
    """The image of each of these queries that is in the store, by query id."""
    found = dict[int, int]()
    with store.transaction() as connection:
        for some in _parts(number for number in queries if 0 < number < 2**63):
            found |= {row.id: row.image_id for row in connection.execute(_IMAGES, {"queries": some})}
    return found


def _parts(ids: Iterable[int]) -> Iterator[list[int]]:
    """Each id once, at most `MOST_TOGETHER` at a time."""
    once = list(dict.fromkeys(ids))
    for start in range(0, len(once), MOST_TOGETHER):
        yield once[start : start + MOST_TOGETHER]
