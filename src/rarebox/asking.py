"""From a ranking to questions in the store: the same for a simulation and for people."""

from collections.abc import Callable, Iterable, Mapping

from rarebox.ranking import Head, still_open
from rarebox.store import Store
from rarebox.types import Query

BATCH = 500
"""Questions asked at once at most."""


class Asker:
    """Asks about candidates from the top of a ranking, as many as there is a use for.

    A box that an answer of this very cycle has settled is passed over. A box whose image has an open question waits,
    and what stands behind it too, so that asking many at once comes to the same as asking one by one.
    """

    def __init__(
        self, store: Store, cycle: int, queue: Head, answered_iou: float,
        wanted: Callable[[int], int] = lambda place: 1,
    ) -> None:  # fmt: skip
        self.store, self.cycle, self.queue = store, cycle, queue
        self._iou, self._wanted = answered_iou, wanted
        self._done: set[int] = set()
        self._first = 0
        for query in store.queries(cycle):
            self.was_asked(query.why)

    def was_asked(self, why: Mapping[str, float] | None) -> None:
        """Somebody else, another process say, has asked a question of the ranking."""
        if why and "rank" in why:
            self._done.add(int(why["rank"]))

    def ask(self, most: int, anyhow: bool = False, busy: Iterable[int] | None = None) -> list[Query]:
        """Ask up to ``most`` questions, and return them; none when nothing is left, or all must wait.

        ``anyhow`` takes also what stands behind a box that waits: for one more person, who would have nothing to do.
        ``busy`` are the images with an open question, where the caller knows them; otherwise the store is asked.
        """
        batch: list[Query] = []
        busy = set(busy) if busy is not None else {query.image_id for query in self.store.unanswered(self.cycle)}
        place = self._first
        while len(batch) < min(most, BATCH) and (item := self.queue(place)):
            row, utility = item
            image_id = int(self.queue.candidates.image_id[row])
            if place in self._done:
                pass
            elif not self._is_open(row):
                self._done.add(place)
            elif image_id not in busy:
                batch.append(self._query(row, utility, place))
                busy.add(image_id)
                self._done.add(place)
            elif not anyhow:
                break
            place += 1
        while self._first in self._done:
            self._first += 1
        return self.store.ask(self.cycle, batch)

    def _is_open(self, row: int) -> bool:
        found = self.queue.candidates
        said = self.store.labels_of(int(found.image_id[row]))
        return bool(still_open(found.boxes[[row]], said, self._iou)[0])

    def _query(self, row: int, utility: float, place: int) -> Query:
        found = self.queue.candidates
        why = {
            "rank": place,
            "cycle": self.cycle,
            "score": float(found.scores[row]),
            "uncertainty": float(found.uncertainty[row]),
            "box_consistency": float(found.box_consistency[row]),
        }
        return Query(
            int(found.image_id[row]), found.boxes[row], int(found.labels[row]), utility, why, wanted=self._wanted(place)
        )
