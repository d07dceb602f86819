"""Which returned box belongs to which box of the store."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree  # pyright: ignore[reportMissingTypeStubs]

from rarebox.core.boxes import all_overlapping, iou_matrix, pair_up, paired_iou
from rarebox.data.review import Region
from rarebox.project.exchange.known import Known
from rarebox.types import Answer, Floats, Ints, Query, Verdict, as_boxes

SAME_OBJECT = 0.5
"""The lowest IoU at which two boxes show the same object."""


STILL = 0.05
"""Pixels by which the edges of an untouched box may move in transfer (CVAT keeps two decimals)."""


def match_asked(regions: Sequence[Region], boxes: Floats, shown: Mapping[int, Query]) -> dict[int, int]:
    """Which region answers which query: by query number (the nearest if several have it), else by position."""
    told: dict[int, list[int]] = {}
    for n, region in enumerate(regions):
        if region.query is not None and region.query in shown:
            told.setdefault(region.query, []).append(n)
    matched: dict[int, int] = {}
    for number, rows in told.items():
        box = shown[number].box
        assert box is not None
        matched[number] = rows[int(iou_matrix(box[None], boxes[rows])[0].argmax())]
    free = [number for number in shown if number not in matched]
    rest = sorted({*range(len(boxes))} - {*matched.values()})
    places = as_boxes([shown[number].box for number in free])  # type: ignore[arg-type]
    return matched | {free[a]: rest[b] for a, b in pair_up(places, boxes[rest], SAME_OBJECT)}


def match_held(
    regions: Sequence[Region],
    boxes: Floats,
    labels: Sequence[int],
    free: Iterable[int],
    places: Floats,
    classes: Sequence[int],
) -> tuple[dict[int, int], dict[int, int]]:
    """The regions that are labels of the export, unchanged and changed ones: region -> label.

    ``boxes`` (R, 4) and ``labels`` describe the regions, ``free`` are the rows to match, ``places`` (H, 4) and
    ``classes`` describe the labels. Changed ones are matched by the name from the export, unless their position fits
    another label, else by IoU.
    """
    same, changed = dict[int, int](), dict[int, int]()
    if not len(places):
        return same, changed
    rest, left = [*free], {*range(len(places))}
    rows, columns = unmoved(boxes, places)
    of_class = np.array(labels, np.int64)[rows] == np.array(classes, np.int64)[columns]
    alike = partners(rows[of_class], columns[of_class])
    for region in sorted(rest, key=lambda n: regions[n].held is None):
        if fits := [n for n in alike[region] if n in left]:
            own = regions[region].held
            left.remove(same.setdefault(region, own if own in fits else fits[0]))
    rest = [n for n in rest if n not in same]
    near = partners(*all_overlapping(boxes, places, SAME_OBJECT)[:2])
    for region in rest:
        own = regions[region].held
        if own in left and (own in near[region] or left.isdisjoint(near[region])):
            left.remove(changed.setdefault(region, own))
    rest, free_labels = [n for n in rest if n not in changed], sorted(left)
    return same, changed | {rest[b]: free_labels[a] for a, b in pair_up(places[free_labels], boxes[rest], SAME_OBJECT)}


def labels_before(
    places: Floats, classes: Sequence[int], past: Sequence[Answer], standing: Iterable[Answer], size: tuple[int, int]
) -> dict[int, int]:
    """The boxes (H, 4) that are or were labels of their class in the store: row -> query.

    ``past`` are all answers about the image, the oldest first, and ``standing`` those that count. Each query of one box
    is matched at most once, current labels first.
    """
    answers = [answer for answer in (*standing, *reversed(past)) if len(answer.boxes)]
    if not answers or not len(places):
        return {}
    rows = [(answer.query_id, row) for answer in answers for row in range(len(answer.boxes))]
    there = np.clip(np.concatenate([answer.boxes for answer in answers]), 0, [*size, *size])
    said, held = unmoved(there, places)
    same = np.concatenate([answer.labels for answer in answers])[said] == np.array(classes, np.int64)[held]
    found = dict[int, int]()
    taken = set[tuple[int, int]]()
    nth: int
    place: int
    for nth, place in np.stack([said, held], axis=1)[same].tolist():
        if place not in found and rows[nth] not in taken:
            found[place] = rows[nth][0]
            taken.add(rows[nth])
    return found


def match_drawn(
    keys: Sequence[str], boxes: Floats, free: Sequence[int], before: Mapping[str, int], places: Mapping[int, Floats]
) -> dict[int, int]:
    """The regions that show the objects of boxes imported earlier: region -> query, by key, else by position.

    ``before``: key -> query. ``places``: query -> where the box was then (4,). A box that was moved to another object
    is not matched by its key.
    """
    known = [region for region in free if keys[region] in before]
    there = as_boxes([places[before[keys[region]]] for region in known])
    near = paired_iou(there, boxes[known]) >= SAME_OBJECT
    found = {region: before[keys[region]] for region, is_near in zip(known, near, strict=True) if is_near}
    rest = [region for region in free if region not in found]
    matched = {*found.values()}
    left = [query for query in dict.fromkeys(before.values()) if query not in matched]
    return found | {rest[b]: left[a] for a, b in pair_up(as_boxes([places[n] for n in left]), boxes[rest], SAME_OBJECT)}


def match_labelled(
    boxes: Floats, labels: Sequence[int], free: Sequence[int], ours: Mapping[int, Query], known: Known
) -> dict[int, tuple[Query, int, bool]]:
    """Region -> the query whose latest answer labels the same object, the row there, and whether nothing has changed.

    ``boxes`` (R, 4) and ``labels`` are of all regions, ``free`` the rows to match, ``ours`` the image's queries by id.
    The same boxes are matched first, then those with the best IoU of at least 0.5. So the project's own labels are
    recognised, and a changed one contradicts its label.
    """
    latest = {n: answer for n in ours if (answer := known.latest(n))}
    places = [(n, row) for n, answer in latest.items() for row in range(len(answer.boxes))]
    if not places or not free:
        return {}
    there = np.stack([latest[n].boxes[row] for n, row in places])
    same = np.array([latest[n].labels[row] for n, row in places])
    rows, columns, exact = _by_likeness(boxes[list(free)], np.array(labels)[list(free)], there, same)
    found: dict[int, tuple[Query, int, bool]] = {}
    taken = set[int]()
    for row, column, is_exact in zip(rows.tolist(), columns.tolist(), exact.tolist(), strict=True):
        if free[row] not in found and column not in taken:
            number, there_row = places[int(column)]
            found[free[row]] = ours[number], there_row, is_exact
            taken.add(column)
    return found


def _by_likeness(
    boxes: Floats, labels: Ints, others: Floats, other_labels: Ints
) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    """Pairs of the same object: rows, other rows, and whether box and class are the same, (P,) each.

    The same ones come first, then by decreasing IoU, down to the minimum for the same object.
    """
    still = np.stack(unmoved(boxes, others))
    still = still[:, labels[still[0]] == other_labels[still[1]]]
    near = np.stack(all_overlapping(boxes, others, SAME_OBJECT)[:2])
    rows, columns = np.unique(np.concatenate([still, near], axis=1), axis=1)
    exact = np.isin(rows * len(others) + columns, still[0] * len(others) + still[1])
    order = np.lexsort((columns, rows, -paired_iou(boxes[rows], others[columns]), ~exact))
    return rows[order], columns[order], exact[order]


def unmoved(boxes: Floats, others: Floats) -> tuple[Ints, Ints]:
    """Pairs of boxes whose edges differ by at most `STILL`: rows of (N, 4) in order, and rows of (M, 4) in order."""
    tree: Any = KDTree(others)
    near: Sequence[list[int]] = tree.query_ball_point(boxes, 2 * STILL, p=np.inf, return_sorted=True)
    rows = np.repeat(np.arange(len(boxes)), [len(some) for some in near])
    columns = np.array([column for some in near for column in some], np.int64)
    still = np.abs(boxes[rows] - others[columns]).max(axis=1, initial=0) <= STILL
    return rows[still], columns[still]


def partners(rows: Ints, columns: Ints) -> Mapping[int, list[int]]:
    """The columns of each row, in order; none for a row that is not in a pair."""
    found = defaultdict[int, list[int]](list)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        found[row].append(column)
    return found


def keys_of(
    regions: Sequence[Region],
    boxes: Floats,
    labels: Sequence[int],
    prefix: str,
    is_taken: Callable[[str], bool],
) -> list[str]:
    """A lasting name for each region: the tool's own, or else one from its class and position.

    ``prefix`` is that of `prefix_of`. ``is_taken``: whether something else has a name.
    """
    keys: list[str] = []
    drawn = Counter[str]()
    for region, box, label in zip(regions, boxes.astype(float).round(1).tolist(), labels, strict=True):
        name = region.key or f"{label} {box}"
        key = f"{prefix}:{_digest(name)}"
        while is_taken(again := key + "+" * drawn[key]):  # the same box may be drawn twice
            drawn[key] += 1
        keys.append(again)
        drawn[key] += 1
    return keys


def prefix_of(source: str, image_id: int, task: str) -> str:
    """The prefix of the regions' names: tool, image, and task, since tools number the regions of a task."""
    return f"{source}:{image_id}:{_digest(task)}" if task else f"{source}:{image_id}"


def _digest(name: str) -> str:
    return sha256(name.encode(errors="surrogatepass")).hexdigest()[:24]


def settle(box: Floats, query: Query) -> Floats:
    """The query's own box if the region has not moved from it, else the region's box."""
    assert query.box is not None
    return query.box if np.abs(box - query.box).max() <= STILL else box


def rejection(query: Query, boxes: Floats) -> Verdict:
    """The answer to a query whose box was deleted. ``boxes`` (N, 4) are the returned ones."""
    assert query.box is not None
    near = iou_matrix(query.box[None], boxes).max(initial=0) >= SAME_OBJECT
    return Verdict.ALREADY_LABELLED if near else Verdict.NOT_AN_OBJECT
