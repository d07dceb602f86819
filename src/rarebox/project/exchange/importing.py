"""Import of what another tool returned: which answers are recorded, and which contradict the store."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rarebox.data.classes import class_key
from rarebox.data.review import Batch, Returned
from rarebox.labels.store import Store
from rarebox.project.exchange import shared
from rarebox.project.exchange.answers import Said, answers_of, lacking, same
from rarebox.project.exchange.known import Known
from rarebox.project.exchange.photos import Photos, located, without_numbers
from rarebox.types import Answer, ImageRecord, Verdict


@dataclass(frozen=True)
class Imported:
    """The number of answers of each kind that an import recorded or skipped.

    ``objects`` and ``no_objects`` answer guesses, the latter also for objects that already have a label. ``withdrawn``
    are drawn boxes that are gone; they are rejected if another person's answer would otherwise count again.
    ``shared`` are boxes that are gone from one task while another one has drawn the object, which keeps a label.
    ``unchanged`` were known before. ``left`` contradict another person's later answer, which stands. ``whole`` differ
    from single boxes of an answer to a whole image, which can be changed only on the page. ``unseen`` are
    guesses that the annotation did not start with, so their absence has no meaning. ``shapes`` cannot become a box; on
    their images a missing box has no meaning either, and the images do not count as complete. ``foreign`` images were
    exported by another project, so only names and positions are used. ``kept`` are labels of the store that the file
    lacks on images that it marks as complete.
    """

    objects: int = 0
    no_objects: int = 0
    missed: int = 0
    complete: int = 0
    withdrawn: int = 0
    shared: int = 0
    unchanged: int = 0
    left: int = 0
    whole: int = 0
    unseen: int = 0
    shapes: int = 0
    foreign: int = 0
    kept: int = 0


RECORDED = ("objects", "no_objects", "missed", "withdrawn")
"""Kinds of answers to single boxes that are recorded unless they are known."""

SKIPPED = ("unseen", "unchanged", "left", "whole", "shared")
"""Kinds of answers that are counted and not recorded as they are."""


def bring_in(
    store: Store,
    batch: Batch,
    source: str,
    *,
    by: str = "",
    complete: bool = False,
    instead: bool = False,
    photos: Photos | None = None,
) -> Imported:
    """Record what another tool returned, all of it or, on an error, none. The same file again changes nothing.

    ``source`` names the tool; ``by`` is the annotator's name; by default, the one in the file. With ``complete`` every
    image of the batch is labelled completely. Different answers that somebody else has given since stand, unless
    ``instead``. ``photos`` are those of the store, if they have been read. Raises UserError for images, queries and
    classes that the store does not have.
    """
    with store.transaction(writes=True):
        ours = {"", *filter(store.has_session, {one.project for one in batch.returned})}
        foreign = [one.project not in ours for one in batch.returned]
        returned = [without_numbers(one) if apart else one for one, apart in zip(batch.returned, foreign, strict=True)]
        found = located(returned, photos or Photos(store), store)
        fates, left, newer = list[str](), set[int](), _with_newer_names(store, returned)
        for some in _in_turn(found):
            known = Known.of(store, (record.id for _, record in some), newer)
            parts = [
                answers_of(one, record, known, source, by=by, complete=complete, instead=instead)
                for one, record in some
            ]
            said = _asked(store, [one for part in parts for one in part])
            fate = [_fate(one, known, instead) for one in said]
            fates += fate
            left |= {one.query.id for one, its in zip(said, fate, strict=True) if its in ("left", "whole")}
            _record(store, [one for one, its in zip(said, fate, strict=True) if its == one.kind and its not in SKIPPED])
            shared.remember(store, [one for one in said if _is_news(one, known)])
            for one in (one for one in said if one.kind == "shared"):
                _record(store, shared.withdraw(store, one, Known.of(store, [one.query.image_id], newer)))
        if complete:
            fates += ["kept"] * _lacking(store, found, left)
    shapes = sum(len(one.left_out) for one in batch.returned)
    return Imported(**Counter(filter(None, fates)), shapes=shapes, foreign=sum(foreign))


def _with_newer_names(store: Store, returned: Sequence[Returned]) -> set[str]:
    """The sessions of images of which one has a class name that the session lacks."""
    names = defaultdict[str, set[str]](set)
    for one in returned:
        names[one.project] |= {class_key(region.name) for region in one.regions}
    return {session for session in names if session and names[session] - {*map(class_key, store.classes(session))}}


def _in_turn(found: Sequence[tuple[Returned, ImageRecord]]) -> list[list[tuple[Returned, ImageRecord]]]:
    """The tasks in parts that hold each image once, so that what one task says of it is known to the next."""
    parts = list[list[tuple[Returned, ImageRecord]]]()
    times = Counter[int]()
    for pair in found:
        turn = times[pair[1].id]
        times[pair[1].id] += 1
        parts += [[]] if turn == len(parts) else []
        parts[turn].append(pair)
    return parts


def _lacking(store: Store, found: Sequence[tuple[Returned, ImageRecord]], but: Collection[int]) -> int:
    """How many labels of the images no task of the file has. Images with shapes that were left out do not count."""
    tasks = defaultdict[int, list[Returned]](list)
    for one, record in found:
        tasks[record.id].append(one)
    whole = {record.id: record for _, record in found if not any(one.left_out for one in tasks[record.id])}
    known = Known.of(store, whole)
    return sum(lacking(tasks[image_id], record, known, but) for image_id, record in whole.items())


def _fate(one: Said, known: Known, instead: bool) -> str:
    """The field of `Imported` that counts an answer: its own kind if it is recorded, else the reason why it is not."""
    standing = known.standing.get(one.query.id, {})  # in the order recorded
    mine = standing.get(one.by)
    authors = [*standing]
    later = [standing[by] for by in authors[authors.index(one.by) + 1 if mine else 0 :]]
    latest = known.latest(one.query.id)
    if one.kind == "shared":
        return one.kind
    if one.kind == "withdrawn" and (latest is None or latest.verdict is not Verdict.OBJECT):
        return ""
    told = _told(one, known)
    if told and same(told, one) and one.kind in RECORDED and not instead:  # nothing new; others may have answered since
        return "left" if latest and latest.by != one.by and not same(latest, one) else "unchanged"
    if one.kind == "unseen":
        return "" if standing else "unseen"
    if one.kind in SKIPPED:
        return one.kind
    if one.kind == "complete" and any(answer.verdict is not Verdict.CANNOT_TELL for answer in standing.values()):
        return "unchanged"
    overruled = len(later) >= one.query.wanted
    compared = [mine] if mine and not overruled else later[-one.query.wanted :]
    agreed = any(same(answer, one) for answer in compared)
    return "unchanged" if agreed else "left" if overruled and not instead else one.kind


def _told(one: Said, known: Known) -> Answer | None:
    """What the same person has last said on the same query in the same task."""
    told = known.told.get(one.query.id, {}).get(one.task)
    return told if told and told.by == one.by else None


def _is_news(one: Said, known: Known) -> bool:
    """Whether a task has not said this before."""
    told = _told(one, known)
    return not (told and same(told, one)) and (one.kind in RECORDED or bool(told and one.kind == "unchanged"))


def _asked(store: Store, said: Sequence[Said]) -> list[Said]:
    """The answers, after their new queries were asked."""
    cycle = max(store.cycles(), default=1)
    store.open_cycle(cycle)
    new = iter(store.ask(cycle, [one.query for one in said if not one.query.id]))
    return [one if one.query.id else replace(one, query=next(new)) for one in said]


def _record(store: Store, said: Sequence[Said]) -> None:
    answers = [Answer(one.query.id, one.boxes, one.labels, one.verdict, one.by, one.milliseconds) for one in said]
    store.record(answers, [one.key for one in said])
