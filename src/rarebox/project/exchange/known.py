"""What the store holds of the images that another tool returned."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import select

from rarebox.data.classes import Classes
from rarebox.labels import schema
from rarebox.labels.leases import People
from rarebox.labels.store import Store
from rarebox.types import Answer, ImageRecord, Query, Verdict


@dataclass
class Known:
    """What the store holds, looked up once: queries by image, what each person says of a query, and the
    queries of boxes that came before, by the keys of their answers."""

    images: Mapping[int, ImageRecord]
    classes: Classes
    queries: dict[int, dict[int, Query]] = field(default_factory=dict[int, dict[int, Query]])
    standing: dict[int, dict[str, Answer]] = field(default_factory=dict[int, dict[str, Answer]])
    drawn: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])
    taken: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, store: Store, source: str) -> "Known":
        names, counts_as = store.classes(), store.counts_as()
        classes = Classes(())
        for label in sorted(range(len(names)), key=lambda n: counts_as[n] != n):  # those that count first
            classes.add(names[label], label)
        known = cls(store.images(), classes)
        for query in store.queries():
            known.queries.setdefault(query.image_id, {})[query.id] = query
        for given in People(store).given():
            known._hear(given.answer)
        keyed = select(schema.answers.c.key, schema.answers.c.query_id).where(schema.answers.c.key.like(f"{source}:%"))
        image_of = {number: image_id for image_id, ours in known.queries.items() for number in ours}
        with store.transaction() as connection:
            for key, query_id in connection.execute(keyed):
                known.taken.add(key)
                image_id = image_of.get(query_id)
                if key.startswith(f"{source}:{image_id}:"):  # a browser may make up any key
                    known.drawn.setdefault(image_id, {})[key] = query_id  # type: ignore[arg-type]
        return known

    def _hear(self, answer: Answer) -> None:
        """Replace or withdraw the earlier answer of the same author."""
        on_query = self.standing.setdefault(answer.query_id, {})
        on_query.pop(answer.by, None)
        if answer.verdict is not Verdict.WITHDRAWN:
            on_query[answer.by] = answer
