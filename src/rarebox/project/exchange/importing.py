"""Import of what another tool returned: which answers are recorded, and which contradict the store."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rarebox.data.review import Batch, Returned
from rarebox.labels.store import Store
from rarebox.project.exchange.answers import Said, answers_of
from rarebox.project.exchange.known import Known
from rarebox.project.exchange.matching import STILL
from rarebox.project.exchange.photos import Photos, located, without_numbers
from rarebox.types import Answer, ImageRecord, Verdict


@dataclass(frozen=True)
class Imported:
    """The number of answers of each kind that an import recorded or skipped.

    ``objects`` and ``no_objects`` answer guesses, the latter also for objects that already have a label. ``withdrawn``
    are drawn boxes that are gone; they are rejected if another person's answer would otherwise count again.
    ``unchanged`` were known before. ``left`` contradict another person's later answer, which stands. ``unseen`` are
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
    unchanged: int = 0
    left: int = 0
    unseen: int = 0
    shapes: int = 0
    foreign: int = 0
    kept: int = 0


SKIPPED = ("unseen", "unchanged", "left", "kept")
"""Kinds of answers that are counted and not recorded."""


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
        fates = list[str]()
        for some in _in_turn(found):
            known = Known.of(store, source, (record.id for _, record in some))
            said = [one for back, record in some for one in answers_of(back, record, known, source, by, complete)]
            fate = [_fate(one, known, instead) for one in said]
            _record(store, [one for one, its in zip(said, fate, strict=True) if its == one.kind and its not in SKIPPED])
            fates += fate
    shapes = sum(len(one.left_out) for one in batch.returned)
    return Imported(**Counter(fate for fate in fates if fate), shapes=shapes, foreign=sum(foreign))


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


def _fate(one: Said, known: Known, instead: bool) -> str:
    """The field of `Imported` that counts an answer: its own kind if it is recorded, else the reason why it is not."""
    standing = known.standing.get(one.query.id, {})  # in the order recorded
    mine = standing.get(one.by)
    authors = [*standing]
    later = [standing[by] for by in authors[authors.index(one.by) + 1 if mine else 0 :]]
    latest = next(reversed(standing.values()), None)
    if one.kind == "withdrawn" and (latest is None or latest.verdict is not Verdict.OBJECT):
        return ""
    if one.kind == "unseen":
        return "" if standing else "unseen"
    if one.kind in SKIPPED:
        return one.kind
    if one.kind == "complete" and any(answer.verdict is not Verdict.CANNOT_TELL for answer in standing.values()):
        return "unchanged"
    overruled = len(later) >= one.query.wanted
    compared = [mine] if mine and not overruled else later[-one.query.wanted :]
    if any(_same(answer, one) for answer in compared):
        return "unchanged"
    return "left" if overruled and not instead else one.kind


def _same(answer: Answer, one: Said) -> bool:
    return (
        answer.verdict is one.verdict
        and answer.labels.tolist() == one.labels.tolist()
        and np.abs(answer.boxes - one.boxes).max(initial=0) <= STILL
    )


def _record(store: Store, said: Sequence[Said]) -> None:
    """Ask the questions that the store lacks, and record all answers, under their keys if they have any."""
    cycle = max(store.cycles(), default=1)
    store.open_cycle(cycle)
    new = iter(store.ask(cycle, [one.query for one in said if not one.query.id]))
    ids = [one.query.id or next(new).id for one in said]
    answers = [
        Answer(number, one.boxes, one.labels, one.verdict, one.by, one.milliseconds)
        for number, one in zip(ids, said, strict=True)
    ]
    keyed = [n for n, one in enumerate(said) if one.key]
    store.record([answers[n] for n in keyed], [str(said[n].key) for n in keyed])
    store.record([answer for answer, one in zip(answers, said, strict=True) if not one.key])
