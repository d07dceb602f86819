"""How the boxes that another tool returned for one image become answers.

A box that is returned unchanged or moved is an object. A deleted box is not an object, unless another box took its
place (IoU 0.5, as for the simulated oracle: decisions row 13). Any further box is a missed object: it is stored as a
question that its author asked and answered. If it is gone later, that answer is withdrawn, or another person's is
rejected.

An object has one query. The store remembers what each task has last said on it, and only what differs from that is
news. If several tasks have drawn an object, the first box is its label. When the task of the label deletes its box, the
box of another task becomes the label.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from secrets import token_hex

import numpy as np

from rarebox.core.boxes import far_from, iou_matrix, rescaling
from rarebox.data.review import Region, Returned
from rarebox.errors import UserError, unknown_name
from rarebox.labels.leases import clean_name
from rarebox.project.exchange.known import CHANGE, Known
from rarebox.project.exchange.matching import (
    SAME_OBJECT,
    STILL,
    keys_of,
    labels_before,
    match_asked,
    match_drawn,
    match_held,
    match_labelled,
    partners,
    prefix_of,
    rejection,
    settle,
    unmoved,
)
from rarebox.types import Answer, Floats, ImageRecord, Ints, Query, Verdict, as_boxes


@dataclass(frozen=True, eq=False)
class Said:
    """An answer to an existing query, or to a new query that is created with it, under a key.

    ``name`` is the lasting name of a box that is the first of its task on the object.
    """

    kind: str
    by: str
    verdict: Verdict
    boxes: Floats
    labels: Ints
    milliseconds: int
    query: Query
    key: str = ""
    name: str | None = None

    @property
    def task(self) -> str:
        """The prefix of the keys of its task."""
        return self.key.rpartition(":")[0]


def answers_of(
    one: Returned, record: ImageRecord, known: Known, source: str, *, by: str, complete: bool, instead: bool
) -> list[Said]:
    """What one image's regions say about its queries, about boxes drawn earlier, and about unasked boxes."""
    image = _Image(one, record, known, source, by, instead)
    whole = image.as_complete() if complete and not one.left_out else []
    return [*image.to_questions(), *image.to_regions(), *image.to_deleted(), *whole]


class _Image:
    """One returned image: which region is which box of the store, and what that says.

    Regions are rows of ``boxes`` (N, 4) and ``labels`` (N). Each is at most one of these, the first that fits:
    ``asked`` (query -> region), the answer to a question of the file; ``as_sent`` (region -> query), a label that
    returned as it was exported; ``changed``, an exported label with another box or class; ``drawn``, a box that was
    imported from this task before; ``labelled`` (region -> query, row, and whether nothing differs), an object that has
    a label from elsewhere.
    """

    def __init__(self, one: Returned, record: ImageRecord, known: Known, source: str, by: str, instead: bool) -> None:
        self.one, self.record, self.known, self.instead = one, record, known, instead
        self.author = clean_name(by, "person") if by else _annotator(one, source)
        self.boxes = _in_pixels(one, record)
        self.held, self.ours = _Held.of(one, record, known), known.queries.get(record.id, {})
        there = partners(*unmoved(self.boxes, self.held.places))
        named = [
            _label(region, there[n], one, self.ours.get(region.query or 0), known)
            for n, region in enumerate(one.regions)
        ]
        self.labels: list[int] = known.counts_as[np.array(named, np.int64)].tolist()
        self.prefix = prefix_of(source, record.id, one.task)
        self.imported = known.drawn.get(record.id, {})
        self.untouched = bool(one.image_id is not None or one.project) and not one.task  # an export as it left rarebox
        self._match_questions()
        self._match_exported()
        self._match_imported(named)
        self._match_labelled()
        self.milliseconds = one.milliseconds // max(len(self.shown) + len(self.free), 1)

    # Which region is which box

    def _match_questions(self) -> None:
        self.shown = _shown(self.one, self.ours)
        self.asked = match_asked(self.one.regions, self.boxes, self.shown)
        asked = {*self.asked.values()}
        self.free = [n for n in range(len(self.boxes)) if n not in asked]

    def _match_exported(self) -> None:
        held, ours = self.held, self.ours
        same, changed = match_held(self.one.regions, self.boxes, self.labels, self.free, held.places, held.labels)
        self.lost = sorted({*range(len(held.places))} - {*same.values()})
        self.as_sent = {n: held.queries[label] for n, label in same.items() if label in held.queries}
        # A single box of a whole-image answer has no query.
        moved = {n: held.queries[label] for n, label in changed.items() if label in held.queries}
        self.changed = {n: number for n, number in moved.items() if ours[number].box is not None}
        self.claimed = {*self.changed.values(), *(n for n in self.as_sent.values() if ours[n].box is not None)}

    def _match_imported(self, named: Sequence[int]) -> None:
        mine = {key: number for key, number in self.imported.items() if key.rpartition(":")[0] == self.prefix}
        self.before = {key: number for key, number in mine.items() if number not in self.claimed}
        self.used = set[str]()
        self.keys = keys_of(
            self.one.regions,
            self.boxes,
            named,
            self.prefix,
            lambda key: key not in self.before and (key in self.imported or self.known.has_key(key)),
        )
        numbers = {*self.before.values()}
        self.held_before = {n: held for n in numbers if (held := self.known.held_by(self.prefix, n))}
        self.refused = {n for n in numbers - {*self.held_before} if self._was_refused(n)}
        before = {key: number for key, number in self.before.items() if number in self.held_before}
        free = [n for n in self.free if n not in self.as_sent and n not in self.changed]
        places = {number: box.boxes[0] for number, box in self.held_before.items()}
        self.drawn = match_drawn(self.keys, self.boxes, free, before, places)

    def _was_refused(self, query_id: int) -> bool:
        """Whether this task deleted its box of an object while another person's label of that object was kept."""
        told, latest = self.known.told.get(query_id, {}).get(self.prefix), self.known.latest(query_id)
        return bool(told and latest and len(latest.boxes) and told.verdict is not Verdict.WITHDRAWN)

    def _match_labelled(self) -> None:
        used = {*self.shown, *self.drawn.values(), *self.claimed}
        self.others = {n: query for n, query in self.ours.items() if n not in used}
        settled = {region for region, number in self.drawn.items() if not self._says_anew(region, number)}
        free = [n for n in self.free if n not in settled and n not in self.changed]
        free = [n for n in free if self.as_sent.get(n) not in self.claimed]
        self.labelled = match_labelled(self.boxes, self.labels, free, self.others, self.known)
        self.drawn = {region: number for region, number in self.drawn.items() if region not in self.labelled}

    def _says_anew(self, region: int, query_id: int) -> bool:
        """Whether a box is to be a label, and that of its query is gone. The object may have another label since."""
        latest = self.known.latest(query_id)
        now = Answer(query_id, self.boxes[[region]], np.array([self.labels[region]]), Verdict.OBJECT)
        changed = not same(self.held_before[query_id], now)
        return not (latest and len(latest.boxes)) and (changed or self.instead)

    # What that says

    def to_questions(self) -> Iterator[Said]:
        """The answers to the questions of the file."""
        for query in self.shown.values():
            if query.id in self.asked:
                region = self.asked[query.id]
                self.boxes[region] = settle(self.boxes[region], query)
                yield self._said("objects", query, Verdict.OBJECT, region)
            elif self.one.began_with_guesses and not self.one.left_out:
                yield self._said("no_objects", query, rejection(query, self.boxes))
            else:
                yield self._said("unseen", query, Verdict.CANNOT_TELL)

    def to_regions(self) -> Iterator[Said]:
        """What the other regions say."""
        for region in self.free:
            if region in self.as_sent:
                query = self.ours[self.as_sent[region]]
                kind = "missed" if self._undoes(query) else "unchanged"
                yield self._said(kind, query, Verdict.OBJECT, region)
            elif region in self.labelled:
                yield self._confirmed(region)
            elif region in self.drawn or region in self.changed:
                query = self.ours[self.drawn[region] if region in self.drawn else self.changed[region]]
                yield self._said("missed", query, Verdict.OBJECT, region)
            else:
                query = self._former(region)
                new = Query(self.record.id, self.boxes[region], self.labels[region], asked_by=self.author)
                name = None if query else self._free_key(region)
                yield self._said("missed", query or new, Verdict.OBJECT, region, name)

    def to_deleted(self) -> Iterator[Said]:
        """What is said by the absence of boxes that this task has drawn, and of labels that it was sent."""
        for query in self._deleted():
            others = [answer for by, answer in self.known.standing.get(query.id, {}).items() if by != self.author]
            theirs = any(answer.verdict is Verdict.OBJECT for answer in others)
            asked = query.asked_by is None or theirs
            if query.box is None:
                # A single box of a whole-image answer cannot be deleted.
                yield self._said("whole", query, Verdict.OBJECT)
            elif self._is_shared(query):
                yield self._said("shared", query, Verdict.WITHDRAWN)
            else:
                yield self._said("withdrawn", query, rejection(query, self.boxes) if asked else Verdict.WITHDRAWN)

    def as_complete(self) -> list[Said]:
        """That all objects of the image have a box."""
        whole = next((query for query in self.ours.values() if query.box is None), None)
        return [self._said("complete", whole or Query(self.record.id, asked_by=self.author), Verdict.OBJECT)]

    def _undoes(self, query: Query) -> bool:
        """Whether this task gave the latest answer to a query. If it did not, a label that returns as it was exported
        changes nothing, even if the label has changed in the project."""
        last = self.known.last_key[query.id]
        return bool(self.one.task) and query.box is not None and last.startswith(f"{self.prefix}:")

    def _confirmed(self, region: int) -> Said:
        """The answer that an object keeps the label it already has."""
        query, _, exact = self.labelled[region]
        # A single box of a whole-image answer cannot be changed.
        kind = "missed" if query.box is not None else "unchanged" if exact else "whole"
        known = query.box is None or query.id in self.held_before or self.untouched
        return self._said(kind, query, Verdict.OBJECT, region, None if known else self._free_key(region))

    def _deleted(self) -> list[Query]:
        if self.one.left_out:
            return []
        there = {(query.id, row) for query, row, _ in self.labelled.values()}
        kept = {*self.drawn.values(), *(number for number, _ in there)}
        gone = set[int]() if self.untouched else {*self.held_before, *self.refused} - kept
        numbers = {self.held.queries[row] for row in self.lost if row in self.held.queries}
        gone |= {n for n in numbers & {*self.others} if self.ours[n].box is not None} - kept
        unknown = [
            row for row in self.lost if row not in self.held.queries or self.ours[self.held.queries[row]].box is None
        ]
        sent = match_labelled(self.held.places, self.held.labels, unknown, self.others, self.known).values()
        return [
            *(self.ours[n] for n in sorted(gone) if self.ours[n].box is not None),
            *(query for query, row, _ in sent if (query.id, row) not in there and query.id not in gone),
        ]

    def _is_shared(self, query: Query) -> bool:
        """Whether an object keeps a label when this task deletes its box: that of another task, or, if this task was
        not the first to draw it, that of anybody."""
        own, latest = self.held_before.get(query.id), self.known.latest(query.id)
        if own is None or latest is None or not len(latest.boxes):
            return False
        if self.known.origin[query.id] == self.prefix:
            return bool(self.known.held_elsewhere(self.prefix, query.id)) and not self.instead
        theirs = latest.by != self.author or not same(latest, own)
        return bool(self.known.held_elsewhere(self.prefix, query.id)) or theirs

    def _former(self, region: int) -> Query | None:
        """The query of a box that this task has deleted and drawn again."""
        number = self.before.get(self.keys[region])
        if number is None or number in self.held_before or number in self.drawn.values():
            return None
        query = self.ours[number]
        near = query.box is not None and iou_matrix(query.box[None], self.boxes[[region]]).max() >= SAME_OBJECT
        return query if near else None

    def _free_key(self, region: int) -> str:
        """The name of a region for a query that this task does not hold yet."""
        key = self.keys[region]
        while key in self.used or key in self.imported or self.known.has_key(key):
            key += "+"
        self.used.add(key)
        return key

    def _said(
        self, kind: str, query: Query, verdict: Verdict, region: int | None = None, name: str | None = None
    ) -> Said:
        rows = [] if region is None else [region]
        boxes, labels = self.boxes[rows], np.array(self.labels, np.int64)[rows]
        # Only the first answer to a query has the name of its box as key.
        key = name if name and not query.id else f"{self.prefix}{CHANGE}{token_hex(12)}"
        return Said(kind, self.author, verdict, boxes, labels, self.milliseconds, query, key, name)


def same(answer: Answer, other: Answer | Said) -> bool:
    """Whether two answers have the same verdict, classes and boxes."""
    return (
        answer.verdict is other.verdict
        and answer.labels.tolist() == other.labels.tolist()
        and np.abs(answer.boxes - other.boxes).max(initial=0) <= STILL
    )


def lacking(tasks: Sequence[Returned], record: ImageRecord, known: Known, but: Collection[int]) -> int:
    """How many labels of an image no box of its ``tasks`` overlaps. Those of the queries ``but`` do not count."""
    boxes = np.concatenate([_in_pixels(one, record) for one in tasks])
    answers = [known.latest(number) for number in known.queries.get(record.id, {}) if number not in but]
    labels = as_boxes([box for answer in answers if answer for box in answer.boxes])
    return int(far_from(labels, boxes, SAME_OBJECT).sum())


@dataclass(frozen=True, eq=False)
class _Held:
    """The H labels that the image was exported with.

    ``places`` (H, 4) in pixels and ``labels`` (H,). ``queries``: row -> the query whose answer it is or was, if the
    store ever had one.
    """

    places: Floats
    labels: Sequence[int]
    queries: Mapping[int, int]

    @classmethod
    def of(cls, one: Returned, record: ImageRecord, known: Known) -> "_Held":
        size = record.width, record.height
        places = np.array([held.place for held in one.held]).reshape(-1, 4) * np.array([*size, *size]) / 100
        places = np.clip(places, 0, [*size, *size])
        found = [known.classes(one.project).find(held.name) for held in one.held]
        labels = [-1 if label is None else int(known.counts_as[label]) for label in found]
        standing = [answer for n in known.queries.get(record.id, {}) if (answer := known.latest(n))]
        past = known.past.get(record.id, [])
        return cls(places, labels, labels_before(places, labels, past, standing, size))


def _annotator(one: Returned, source: str) -> str:
    """The person that the file names. UserError if the name is not valid here."""
    try:
        return clean_name(one.by or source, "person")
    except UserError as error:
        message = str(error).rstrip(".")
        raise UserError(f"{one.where}: {message}. Import the file with --by and the annotator's name here.") from None


def _in_pixels(one: Returned, record: ImageRecord) -> Floats:
    """The regions' boxes in pixels of the image here: (N, 4). UserError for another picture, or a box without area."""
    size = (record.width, record.height)
    scale = rescaling(one.size or size, size)
    if scale is None:
        width, height = one.size or size
        raise UserError(
            f"{one.where}: the image has {width} x {height} pixels there and {record.width} x {record.height} here. "
            "It is a different image, or rotated"
        )
    boxes = np.array([region.box for region in one.regions], dtype=np.float64).reshape(-1, 4) * scale
    boxes = np.clip(boxes, 0, [record.width, record.height] * 2)
    try:
        return as_boxes(boxes)
    except ValueError as error:
        raise UserError(f"{one.where}: {error}. Delete that box there, and export again") from None


def _label(region: Region, there: Collection[int], one: Returned, query: Query | None, known: Known) -> int:
    """The label that the name of a region means. ``query`` is the one it answers, ``there`` the exported labels there.

    UserError if the name is that of no class. Also if it was another class's when the image was exported, unless the
    region still has the name with which it was sent: nobody can tell which of the two the annotator meant.
    """
    guess = query.guess if query else None
    if guess is not None and region.renamed is False:
        return guess
    classes = known.classes(one.project)
    then, now = classes.find(region.name), known.classes("").find(region.name)
    if then is None:
        unknown = unknown_name("class", region.name, classes)
        raise UserError(f"{one.where}: {unknown}. Add it to the project first")
    own = there if region.held is None else [region.held] if 0 <= region.held < len(one.held) else []
    as_sent = any(one.held[n].name == region.name for n in own)
    as_sent &= one.project not in known.newer
    as_sent |= guess is not None and region.renamed is None and known.counts_as[guess] == known.counts_as[then]
    if not as_sent and now is not None and known.counts_as[now] != known.counts_as[then]:
        meant = known.store.classes()[int(known.counts_as[then])]
        raise UserError(
            f"{one.where}: {region.name!r} was the name of {meant!r} when this image was exported, and is another "
            f"class now. If you mean {meant!r}, use that name there. If not, give the new class another name, here and "
            "there"
        )
    return then


def _shown(one: Returned, ours: Mapping[int, Query]) -> dict[int, Query]:
    """The box queries that the file is about. UserError for one that was never asked about this image."""
    told = dict.fromkeys([*one.queries, *(r.query for r in one.regions if r.query is not None and r.query in ours)])
    for number in told:
        if number not in ours or ours[number].box is None:
            raise UserError(
                f"{one.where}: query {number} does not belong to this image; is this another project's file?"
            )
    return {number: ours[number] for number in told}
