"""Objects that several tasks have drawn: which label they keep, and how the answers of all tasks are recorded.

The last answer to a query counts. If a task says something that must not become the label, its answer is recorded, and
the label after it once more.
"""

from collections.abc import Iterator
from dataclasses import replace
from secrets import token_hex

import numpy as np

from rarebox.core.boxes import iou_matrix
from rarebox.project.exchange.answers import Said
from rarebox.project.exchange.known import CHANGE, Known
from rarebox.project.exchange.matching import SAME_OBJECT
from rarebox.types import Answer, Query, Verdict


def beside_the_label(one: Said, known: Known) -> list[Said]:
    """Record an answer of a task, and leave the label as it is."""
    latest = known.latest(one.query.id)
    return [one, *([_restated(latest, one.query, known)] if latest else [])]


def withdrawal(one: Said, known: Known) -> list[Said]:
    """Record that a task has deleted its box on an object that others have drawn, too.

    The label stays if it is not the box of the task. Otherwise, the first box of another task becomes the label, or
    these boxes join another label of the task on the same object.
    """
    latest, own = known.latest(one.query.id), known.held_by(one.task, one.query.id)
    others = known.held_elsewhere(one.task, one.query.id)
    if (label := _other_label(one, others, known)) is not None:
        return [one, *_joined(others, one.query, label, known)]
    label = latest if latest is not own else next(iter(others.values()), None)
    return [one, *([_restated(label, one.query, known)] if label else [])]


def _other_label(one: Said, others: dict[str, Answer], known: Known) -> Query | None:
    """Another query with a label of the same task on the object, which none of the other tasks has drawn.

    None if anybody else has answered the query on which the task has deleted its box.
    """
    tasks = [one.task, *others]
    standing = known.standing[one.query.id].values()
    if not others or any(all(answer is not known.held_by(task, one.query.id) for task in tasks) for answer in standing):
        return None
    boxes = np.concatenate([answer.boxes for answer in others.values()])
    for query in known.queries[one.query.image_id].values():
        latest = known.latest(query.id)
        if query.id == one.query.id or not latest or not known.held_by(one.task, query.id):
            continue
        alone = not any(known.held_by(task, query.id) for task in others)
        if alone and iou_matrix(boxes, latest.boxes).max(initial=0) >= SAME_OBJECT:
            return query
    return None


def _joined(others: dict[str, Answer], query: Query, to: Query, known: Known) -> Iterator[Said]:
    """The boxes of other tasks on a query as boxes on another one, whose label stays."""
    names = {key.rpartition(":")[0]: key for key, number in known.drawn[query.image_id].items() if number == query.id}
    for task, answer in others.items():
        key = names[task]
        while known.has_key(key):
            key += "+"
        again = _restated(answer, query, known)
        yield replace(again, verdict=Verdict.WITHDRAWN, boxes=answer.boxes[:0], labels=answer.labels[:0])
        yield Said("restated", answer.by, answer.verdict, answer.boxes, answer.labels, 0, to, key)
    if latest := known.latest(to.id):
        yield _restated(latest, to, known)


def _restated(label: Answer, query: Query, known: Known) -> Said:
    """An earlier answer to a query once more, from the same person and task."""
    task = next((task for task, told in known.told.get(query.id, {}).items() if told is label), "")
    key = f"{task}{CHANGE}{token_hex(12)}"
    return Said("restated", label.by, label.verdict, label.boxes, label.labels, 0, query, key)
