"""The asker puts the top of a ranking into the store as questions, for simulations and for people alike."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import heappop, heappush, nsmallest

import numpy as np

from rarebox.core.boxes import far_from
from rarebox.labels.store import Store
from rarebox.pool.ranking import LazyRanking, still_open
from rarebox.pool.similar import SIMILARITY, Search
from rarebox.types import ADDED, Bools, Floats, ImageLabels, Query

BATCH = 500
"""The most questions asked at once."""


class Asker:
    """Asks about candidates from the top of a ranking, as many as the caller needs.

    It skips a box that an answer of the same cycle has settled. A box whose image has an open question waits, and so
    do the boxes ranked below it, so asking many at once gives the same questions as asking one by one.

    Places of the ranking that were read are kept by image until they are asked or settled. So a call reads only the
    labels of the images that it asks about.
    """

    def __init__(
        self,
        store: Store,
        cycle: int,
        queue: LazyRanking,
        answered_iou: float,
        wanted: Callable[[int], int] = lambda place: 1,
    ) -> None:
        """``wanted`` returns the number of people who should answer the question at a place."""
        self.store, self.cycle, self.queue = store, cycle, queue
        self._iou, self._wanted = answered_iou, wanted
        self._done: set[int] = set()
        self._waiting: dict[int, list[int]] = {}  # for each image, places that were read, ascending
        self._firsts: list[tuple[int, int]] = []  # a heap of (first waiting place, image); may hold outdated entries
        self._checked: set[int] = set()  # images whose waiting places this call has checked: none is settled
        self._next = 0  # the first place that was not read
        for query in store.queries(cycle):
            self.was_asked(query.why)

    @property
    def passed(self) -> int:
        """How many places were asked about, or found settled by a search. It only grows."""
        return len(self._done)

    def was_asked(self, why: Mapping[str, float] | None) -> None:
        """Note that another process has asked a question of the ranking."""
        if why and "rank" in why:
            self._done.add(int(why["rank"]))

    def ask(
        self,
        most: int,
        skip_busy: bool = False,
        busy: Iterable[int] | None = None,
        in_hand: Collection[int] = (),
    ) -> list[Query]:
        """Ask up to ``most`` questions, and return them; none if nothing is left or every box must wait.

        ``skip_busy`` passes over boxes whose image has an open question, so that another person gets one. ``busy`` are
        the images with an open question, if the caller knows them; by default they are read from the store. Images
        ``in_hand``, of which somebody holds a question of an earlier cycle, are passed over always.
        """
        batch: list[Query] = []
        busy = set(busy) if busy is not None else {query.image_id for query in self.store.unanswered(self.cycle)}
        self._checked.clear()
        aside: list[tuple[int, int]] = []
        at_once = 1
        while len(batch) < min(most, BATCH):
            without = busy.union(in_hand) if skip_busy else in_hand
            if (first := self._first(without, aside)) is None:
                break
            place, image_id = first
            if image_id not in self._checked:
                self._pass_over_settled(at_once)
                at_once = min(2 * at_once, BATCH)  # many settled places in a row take few database queries
            elif image_id in busy:
                break
            else:
                self._keep(image_id, self._waiting[image_id][1:])
                self._done.add(place)
                batch.append(self._query(place))
                busy.add(image_id)
        for entry in aside:
            heappush(self._firsts, entry)
        return self.store.ask(self.cycle, batch)

    def ahead(self, most: int, certain: bool = False) -> list[int]:
        """The first ``most`` places that were not asked, best first: what the next questions are about.

        ``certain``: none of them is settled, for which the answers on their images are read.
        """
        while sum(map(len, self._waiting.values())) < most and self._read_further():
            pass
        if certain:
            self._checked.clear()
            self._pass_over_settled(BATCH)
        waiting = (place for places in self._waiting.values() for place in places if place not in self._done)
        return nsmallest(most, waiting)

    def ask_at(self, places: Sequence[int]) -> list[Query]:
        """Ask about the boxes at these places now: places of :meth:`ahead`, each on another image."""
        self._done |= {*places}
        return self.store.ask(self.cycle, [self._query(place) for place in places])

    # Questions before their turn

    def ask_ahead(self, search: Search, most: int, in_hand: Collection[int] = ()) -> list[Query]:
        """Ask about up to ``most`` of the boxes that a search has found, the most similar first. ``in_hand``: as for
        :meth:`ask`."""
        places = self.free(search.places, most, in_hand)
        self._done.update(places)
        return self.store.ask(self.cycle, [self._similar(search, place) for place in places])

    def free(self, places: Iterable[int], most: int, in_hand: Collection[int] = ()) -> list[int]:
        """The first ``most`` of some places that can be asked about now.

        Those whose box an answer has settled count as asked from now on. A box waits while another question about the
        same place or the whole image is open.
        """
        unasked, found = self.unasked(places), list[int]()
        if not unasked or most < 1:
            return found
        waiting: dict[int, list[Floats | None]] = defaultdict(list)
        for query in self.store.unanswered(self.cycle):
            waiting[query.image_id].append(query.box)
        for start in range(0, len(unasked), BATCH):
            row_of = {place: item[0] for place in unasked[start : start + BATCH] if (item := self.queue(place))}
            image_of = {place: int(self.queue.candidates.image_id[row]) for place, row in row_of.items()}
            said = self.store.labels_of_images({*image_of.values()})
            for place, row in row_of.items():
                box, open_ones = self.queue.candidates.boxes[row], waiting[image_of[place]]
                if not self._unsettled([row], said[image_of[place]])[0]:
                    self._done.add(place)
                elif image_of[place] not in in_hand and self._is_clear(box, open_ones):
                    open_ones.append(box)
                    found.append(place)
                if len(found) == most:
                    return found
        return found

    def unasked(self, places: Iterable[int]) -> list[int]:
        """Those of some places that no question was asked about."""
        return [place for place in places if place not in self._done]

    def _is_clear(self, box: Floats, open_ones: Sequence[Floats | None]) -> bool:
        """Whether no open question of its image is about a box: (4,)."""
        boxes = [other for other in open_ones if other is not None]
        if len(boxes) < len(open_ones):
            return False
        return not boxes or bool(far_from(box[None], np.stack(boxes), self._iou)[0])

    def _similar(self, search: Search, place: int) -> Query:
        """The question about a box of a search. The detector's numbers are about another guess, so it has none."""
        query = self._query(place)
        why = {"rank": float(place), "cycle": float(self.cycle), SIMILARITY: search.places[place]}
        return replace(query, guess=query.guess if search.label is None else search.label, why=why)

    # Reading the ranking

    def _first(self, without: Collection[int], aside: list[tuple[int, int]]) -> tuple[int, int] | None:
        """The first place that is neither asked nor settled, and its image; None at the end of the ranking.

        Entries of the images in ``without`` move to ``aside``.
        """
        while self._firsts or self._read_further():
            if not self._firsts:
                continue
            place, image_id = self._firsts[0]
            places = self._waiting.get(image_id)
            if not places or places[0] != place:
                heappop(self._firsts)
            elif place in self._done:
                self._keep(image_id, [other for other in places if other not in self._done])
            elif image_id in without:
                aside.append(heappop(self._firsts))
            else:
                return place, image_id
        return None

    def _read_further(self) -> bool:
        """Read the next places; False at the end of the ranking."""
        start = self._next
        while self._next < start + BATCH and (item := self.queue(self._next)):
            if self._next not in self._done:
                image_id = int(self.queue.candidates.image_id[item[0]])
                self._waiting.setdefault(image_id, []).append(self._next)
                if len(self._waiting[image_id]) == 1:
                    heappush(self._firsts, (self._next, image_id))
                self._checked.discard(image_id)
            self._next += 1
        return self._next > start

    def _pass_over_settled(self, most: int) -> None:
        """Drop the settled places of the first ``most`` images, except those that this call has checked."""
        first = {image for _, image in nsmallest(most, self._firsts) if image in self._waiting}
        unchecked = first - self._checked
        for image_id, said in self.store.labels_of_images(unchecked).items():
            places = self._waiting[image_id]
            rows = [item[0] for place in places if (item := self.queue(place))]
            free = self._unsettled(rows, said)
            self._keep(image_id, [place for place, one in zip(places, free, strict=True) if one])
        self._checked |= unchecked

    def _unsettled(self, rows: Sequence[int], said: ImageLabels) -> Bools:
        """Which of some candidates of one image no answer has settled: (R,)."""
        return still_open(self.queue.candidates.boxes[rows], said, self._iou)

    def _keep(self, image_id: int, places: list[int]) -> None:
        before = self._waiting.pop(image_id)
        if places:
            self._waiting[image_id] = places
            if places[0] != before[0]:
                heappush(self._firsts, (places[0], image_id))

    def _query(self, place: int) -> Query:
        item, found = self.queue(place), self.queue.candidates
        assert item
        row, utility = item
        score = float(found.scores[row])
        why: dict[str, float] = {"rank": place, "cycle": self.cycle}
        if found.box_index[row] >= ADDED:  # the numbers are not those of our detector
            why["added"] = score
        else:
            ours = {name: float(getattr(found, name)[row]) for name in ("uncertainty", "box_consistency")}
            why |= {"score": score, **ours}
        return Query(
            int(found.image_id[row]), found.boxes[row], int(found.labels[row]), utility, why, wanted=self._wanted(place)
        )
