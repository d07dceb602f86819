"""What each task has last said on each query, and objects that several tasks have drawn: which label they keep."""

from collections.abc import Iterable, Iterator, Mapping
from secrets import token_hex

import numpy as np
from sqlalchemy import insert

from rarebox.core.boxes import iou_matrix
from rarebox.labels import schema
from rarebox.labels.store import Store
from rarebox.project.exchange.answers import Said, same
from rarebox.project.exchange.known import CHANGE, Known
from rarebox.project.exchange.matching import SAME_OBJECT
from rarebox.types import Answer, Query, Verdict


def remember(store: Store, said: Iterable[Said]) -> None:
    """Record what tasks have said, so that only what differs from it is news. Labels do not change by this."""
    rows = [
        {
            "query_id": one.query.id,
            "task": one.task,
            "key": one.name,
            "verdict": one.verdict.value,
            "boxes": one.boxes.tolist(),
            "labels": one.labels.tolist(),
            "by": one.by,
        }
        for one in said
    ]
    if rows:
        with store.transaction(writes=True) as connection:
            connection.execute(insert(schema.task_answers), rows)


def withdraw(store: Store, one: Said, known: Known) -> list[Said]:
    """Remember that a task has deleted its box on an object that others have drawn, too. Return what is to be recorded.

    The label stays if it is not the box of the task. Otherwise, the first box of another task becomes the label, or
    these boxes join another label of the task on the same object.
    """
    remember(store, [one])
    own, others = known.held_by(one.task, one.query.id), known.held_elsewhere(one.task, one.query.id)
    standing, latest = known.standing.get(one.query.id, {}), known.latest(one.query.id)
    assert own is not None
    if (label := _other_label(one, others, known)) is not None:
        remember(store, _joined(others, one.query, label, known))
        return [_says(one.task, one.query, _withdrawn(answer)) for answer in standing.values()]
    mine = standing.get(one.by)
    withdrawn = [one] if mine and same(mine, own) else []
    if mine is not latest or not withdrawn or not others:
        return withdrawn
    task, answer = next(iter(others.items()))
    return [one, _says(task, one.query, answer)]


def _other_label(one: Said, others: Mapping[str, Answer], known: Known) -> Query | None:
    """Another query with a label of the same task on the object, which none of the other tasks has drawn.

    None if anything but the tasks' boxes is said on the query on which the task has deleted its box.
    """
    boxes = [*others.values(), *filter(None, [known.held_by(one.task, one.query.id)])]
    standing = known.standing.get(one.query.id, {}).values()
    if not others or not all(any(same(answer, box) for box in boxes) for answer in standing):
        return None
    theirs = np.concatenate([answer.boxes for answer in others.values()])
    for query in known.queries[one.query.image_id].values():
        latest = known.latest(query.id)
        if query.id == one.query.id or not latest or not known.held_by(one.task, query.id):
            continue
        alone = not any(known.held_by(task, query.id) for task in others)
        if alone and iou_matrix(theirs, latest.boxes).max(initial=0) >= SAME_OBJECT:
            return query
    return None


def _joined(others: Mapping[str, Answer], query: Query, to: Query, known: Known) -> Iterator[Said]:
    """The boxes of other tasks on a query as boxes on another one."""
    names = known.drawn[query.image_id]
    for task, answer in others.items():
        name = next(key for key, number in names.items() if number == query.id and key.rpartition(":")[0] == task)
        while name in names or known.has_key(name):
            name += "+"
        yield _says(task, query, _withdrawn(answer))
        yield _says(task, to, answer, name)


def _withdrawn(answer: Answer) -> Answer:
    return Answer(answer.query_id, answer.boxes[:0], answer.labels[:0], Verdict.WITHDRAWN, answer.by)


def _says(task: str, query: Query, answer: Answer, name: str | None = None) -> Said:
    """An earlier answer of a task once more."""
    key = f"{task}{CHANGE}{token_hex(12)}"
    return Said("", answer.by, answer.verdict, answer.boxes, answer.labels, 0, query, key, name)
