"""How the boxes that another tool returned for one image become answers.

A box that is returned unchanged or moved is an object. A deleted box is not an object, unless another box took its
place (IoU 0.5, as for the simulated oracle: decisions row 13). Any further box is a missed object: it is stored as a
question that its author asked and answered. If it is gone later, that answer is withdrawn, or another person's is
rejected.

If several tasks have drawn one object, the first box is its label. Each other box is kept as a spare: a question that
its author asked and answered with "already labelled". When the label is withdrawn, a spare takes its place.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from secrets import token_hex

import numpy as np

from rarebox.core.boxes import iou_matrix, rescaling
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
    prefix_of,
    rejection,
    settle,
)
from rarebox.types import Floats, ImageRecord, Ints, Query, Verdict, as_boxes


@dataclass(frozen=True, eq=False)
class Said:
    """An answer to an existing query, or to a new query that is created with it, under a key."""

    kind: str
    by: str
    verdict: Verdict
    boxes: Floats
    labels: Ints
    milliseconds: int
    query: Query
    key: str | None = None


def answers_of(one: Returned, record: ImageRecord, known: Known, source: str, by: str, complete: bool) -> list[Said]:
    """What one image's regions say about its queries, about boxes drawn earlier, and about unasked boxes."""
    author = clean_name(by, "person") if by else _annotator(one, source)
    boxes = _in_pixels(one, record)
    held, ours = _Held.of(one, record, known), known.queries.get(record.id, {})
    named = [
        _label(region, box, one, ours.get(region.query or 0), held.places, known)
        for region, box in zip(one.regions, boxes, strict=True)
    ]
    labels = known.counts_as[np.array(named, np.int64)].tolist()
    shown = _shown(one, ours)
    answer_to = match_asked(one.regions, boxes, shown)
    taken = {region: query for query, region in answer_to.items()}
    free = [n for n in range(len(boxes)) if n not in taken]
    same, changed = match_held(one.regions, boxes, labels, free, held.places, held.labels)
    # A label that is returned as it was exported says nothing new, even if it has changed here, unless this very task
    # changed it.
    known_as = {n: held.queries[label] for n, label in same.items() if label in held.queries}
    # A single box of a whole-image answer has no query.
    changed = {n: held.queries[label] for n, label in changed.items() if label in held.queries}
    changed = {n: number for n, number in changed.items() if ours[number].box is not None}
    claimed = {*changed.values(), *(number for number in known_as.values() if ours[number].box is not None)}

    prefix = prefix_of(source, record.id, one.task)
    all_drawn = known.drawn.get(record.id, {})
    before = {
        key: number for key, number in all_drawn.items() if key.rpartition(":")[0] == prefix and number not in claimed
    }
    keys = keys_of(one.regions, boxes, named, prefix, lambda key: key not in before and known.has_key(key))
    free = [n for n in free if n not in known_as and n not in changed]
    drawn = match_drawn(keys, boxes, free, before, ours)
    time = one.milliseconds // max(len(shown) + len(boxes) - len(taken), 1)

    used = {*shown, *before.values(), *claimed}
    others = {n: q for n, q in ours.items() if n not in used}
    counted = {n for n, number in drawn.items() if (answer := known.latest(number)) and len(answer.boxes)}
    free = [n for n in range(len(boxes)) if n not in taken and n not in counted and n not in changed]
    free = [n for n in free if known_as.get(n) not in claimed]
    labelled = match_labelled(boxes, labels, free, others, known)

    def said(kind: str, query: Query, verdict: Verdict, region: int | None = None, key: str | None = None) -> Said:
        rows = [] if region is None else [region]
        key = key or f"{prefix}{CHANGE}{token_hex(12)}"
        return Said(kind, author, verdict, boxes[rows], np.array(labels, np.int64)[rows], time, query, key)

    def new(region: int) -> Query:
        return Query(record.id, boxes[region], labels[region], asked_by=author)

    found: list[Said] = []
    for query in shown.values():
        if query.id in answer_to:
            region = answer_to[query.id]
            boxes[region] = settle(boxes[region], query)
            found.append(said("objects", query, Verdict.OBJECT, region))
        elif one.began_with_guesses and not one.left_out:
            found.append(said("no_objects", query, rejection(query, boxes)))
        else:
            found.append(said("unseen", query, Verdict.CANNOT_TELL))
    untouched = bool(one.image_id is not None or one.project) and not one.task  # no tool has processed the export
    spared = set[int]() if untouched else {*all_drawn.values()}
    for region in (n for n in range(len(boxes)) if n not in taken):
        if region in known_as:
            query = ours[known_as[region]]
            undone = one.task and query.box is not None and known.last_key[query.id].startswith(f"{prefix}:")
            found.append(said("missed" if undone else "unchanged", query, Verdict.OBJECT, region))
        elif region in labelled:
            query, _, exact = labelled[region]
            # a single box of a whole-image answer cannot be changed
            kind = "missed" if query.box is not None else "unchanged" if exact else "left"
            found.append(said(kind, query, Verdict.OBJECT, region))
            if region in drawn:
                found.append(said("spare", ours[drawn[region]], Verdict.ALREADY_LABELLED))
            elif query.id in spared:
                found.append(said("spare", new(region), Verdict.ALREADY_LABELLED, key=keys[region]))
        elif region in drawn or region in changed:
            number = drawn[region] if region in drawn else changed[region]
            contested = known.is_overruled(ours[number]) and _is_unchanged(boxes[region], labels[region], ours[number])
            found.append(said("contested" if contested else "missed", ours[number], Verdict.OBJECT, region))
        else:
            found.append(said("missed", new(region), Verdict.OBJECT, region, keys[region]))
    gone = set[int]() if one.left_out or untouched else {*before.values()} - {*drawn.values()}
    deleted = [ours[n] for n in sorted(gone) if ours[n].box is not None]
    if not one.left_out:
        there = {(query.id, row) for query, row, _ in labelled.values()}
        rest = [n for n in range(len(held.places)) if n not in same.values()]
        matched = match_labelled(held.places, held.labels, rest, others, known).values()
        deleted += [query for query, row, _ in matched if (query.id, row) not in there]
    for query in deleted:
        if query.box is None:
            found.append(said("left", query, Verdict.OBJECT))  # a single box of a whole-image answer cannot be deleted
            continue
        if known.is_spare(query.id):
            (by, *_) = known.standing[query.id]
            found.append(replace(said("shared", query, Verdict.WITHDRAWN), by=by))
            continue
        said_by = known.standing.get(query.id, {}).items()
        theirs = any(answer.verdict is Verdict.OBJECT for by, answer in said_by if by != author)
        asked = query.asked_by is None or theirs
        found.append(said("withdrawn", query, rejection(query, boxes) if asked else Verdict.WITHDRAWN))
    if complete and not one.left_out:
        whole = next((q for q in ours.values() if q.box is None), Query(record.id, asked_by=author))
        found.append(said("complete", whole, Verdict.OBJECT))
    return found


def _is_unchanged(box: Floats, label: int, query: Query) -> bool:
    return query.box is not None and bool(np.abs(box - query.box).max() <= STILL) and label == query.guess


def moves_away(one: Said, known: Known) -> bool:
    """Whether an answer moves a box to another object."""
    latest = known.latest(one.query.id) if one.kind == "missed" else None
    return latest is not None and len(latest.boxes) > 0 and iou_matrix(latest.boxes, one.boxes).max() < SAME_OBJECT


def heirs_of(gone_from: Sequence[Said], said: Sequence[Said], known: Known) -> dict[int, Said]:
    """The spares that replace boxes that one task has deleted or moved away: query of the box -> answer to the spare.

    A spare belongs to the label that overlaps it most, and replaces no other one. ``said`` are all answers of the file
    to the same images.
    """
    told, gone = {one.query.id for one in said}, {one.query.id for one in gone_from}
    heirs = dict[int, Said]()
    for one in gone_from:
        queries = known.queries[one.query.image_id]
        labels = {n: latest for n in queries if (latest := known.latest(n)) and len(latest.boxes)}
        found = list[tuple[bool, float, Query]]()
        for number in known.drawn.get(one.query.image_id, {}).values():
            spare = queries[number]
            if number in told or spare.box is None or spare.guess is None or not known.is_spare(number):
                continue
            iou = {n: float(iou_matrix(spare.box[None], latest.boxes).max()) for n, latest in labels.items()}
            own = iou[one.query.id]
            if own >= SAME_OBJECT and not any(iou[n] > own or (iou[n] == own and n not in gone) for n in iou):
                same = bool((labels[one.query.id].labels == known.counts_as[spare.guess]).any())
                found.append((same, own, spare))
        if found:
            *_, spare = max(found, key=lambda each: each[:2])
            assert spare.box is not None
            (by, *_) = known.standing[spare.id]
            label = known.counts_as[np.array([spare.guess])]
            heirs[one.query.id] = Said("heir", by, Verdict.OBJECT, spare.box[None], label, 0, spare)
            told.add(spare.id)
    return heirs


def lacking(tasks: Sequence[Returned], record: ImageRecord, known: Known, but: Collection[int]) -> int:
    """How many labels of an image no box of its ``tasks`` overlaps. Those of the queries ``but`` do not count."""
    boxes = np.concatenate([_in_pixels(one, record) for one in tasks])
    answers = [known.latest(number) for number in known.queries.get(record.id, {}) if number not in but]
    labels = as_boxes([box for answer in answers if answer for box in answer.boxes])
    return int((iou_matrix(labels, boxes).max(axis=1, initial=0) < SAME_OBJECT).sum())


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


def _label(region: Region, box: Floats, one: Returned, query: Query | None, held: Floats, known: Known) -> int:
    """The label that the name of a region means. ``query`` is the one it answers, ``held`` (H, 4) the exported labels.

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
    still = np.abs(held - box).max(axis=1, initial=0) <= STILL
    own = still if region.held is None else np.arange(len(still)) == region.held
    as_sent = any(label.name == region.name for label, is_own in zip(one.held, own, strict=True) if is_own)
    as_sent |= guess is not None and region.renamed is None and known.counts_as[guess] == known.counts_as[then]
    if not as_sent and now is not None and known.counts_as[now] != known.counts_as[then]:
        raise UserError(
            f"{one.where}: {region.name!r} is another class now than when this image was exported. Export it again, or "
            "rename that class on the page before the import"
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
