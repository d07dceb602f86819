"""Questions that people answer in another tool: which ones are sent, and how its results become answers.

A box that comes back unchanged or moved is an object. A deleted box is not an object, unless another box took its place
(IoU 0.5, as for the simulated oracle: decisions row 13). Any further box is a missed object: it is stored as a question
that its author asked and answered. If it is gone later, that answer is withdrawn, or another person's is rejected.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from sqlalchemy import select

from rarebox.core.boxes import iou_matrix, overlapping, rescaling
from rarebox.data.classes import Classes
from rarebox.data.export import sent_as
from rarebox.data.images import SUFFIXES
from rarebox.data.naming import ByName, file_names
from rarebox.data.review import MODEL, Batch, Region, Returned, ReviewTask
from rarebox.errors import UserError, unknown_name
from rarebox.labels import schema
from rarebox.labels.leases import People, clean_name
from rarebox.labels.store import Store
from rarebox.pool.candidates import rows_by_image
from rarebox.pool.ranking import still_open
from rarebox.project.project import Project
from rarebox.types import Answer, Candidates, Floats, ImageRecord, Ints, Query, Verdict, as_boxes

SAME_OBJECT = 0.5
"""The lowest IoU at which two boxes show the same object."""

STILL = 0.05
"""Pixels by which the edges of an untouched box may move in transfer (CVAT keeps two decimals)."""


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Questions:
    """The open queries of the latest cycle, best first, their images, and the classes that there are now.

    ``queries`` about boxes have indices into ``classes`` as guesses: classes that were merged into another are not
    among them. ``place_of`` gives that index for a label of the store.
    """

    cycle: int
    images: Mapping[int, ImageRecord]
    classes: tuple[str, ...]
    queries: Sequence[Query]
    place_of: Mapping[int, int]


def ask_ahead(root: Path, most: int) -> None:
    """Ask questions from the ranking of a project until ``most`` are open, within the budget.

    The page asks one question at a time; other tools receive many at once. Each image has at most one open question.
    """
    project = Project(root)
    try:
        cycle = project.cycle
        with project.store.transaction(writes=True):
            asker = project.asker(cycle)
            budget = project.budget(cycle)
            wanted = min(most - budget.open, budget.to_ask)
            while asker and wanted > 0 and (asked := asker.ask(wanted, anyhow=True)):
                wanted -= len(asked)
    finally:
        project.store.close()


def open_questions(store: Store) -> Questions:
    """The unanswered questions. A box without a guess gets the first class."""
    with store.transaction():
        cycle = max(store.cycles(), default=0)
        images, names, counts_as = store.images(), store.classes(), store.counts_as()
        asked = store.unanswered(cycle)
    live = [label for label in range(len(names)) if counts_as[label] == label]
    place = {label: live.index(counts_as[label]) for label in range(len(names))}
    queries = [_guessing(query, place[query.guess or 0]) for query in asked]
    return Questions(cycle, images, tuple(names[label] for label in live), queries, place)


def _guessing(query: Query, guess: int) -> Query:
    return replace(query, guess=guess)


SHOWN_ABOVE = 0.3
"""The lowest score at which a box that is not asked about is shown too. Weaker boxes would clutter the image."""


class Writer(Protocol):
    """Runs a job that writes to the store, in the thread that may write, and returns its result."""

    def __call__(self, job: Callable[[], T], /) -> T: ...


class ReviewSource:
    """The questions of a project for another tool, image by image, and the import of its answers.

    ``do`` runs jobs in the thread that writes. All methods may be called from any thread.
    """

    def __init__(self, project: Project, source: str = "labelstudio", do: Writer = lambda job: job()):
        self._project, self._source, self._do = project, source, do
        self._ranked: tuple[int, Candidates, dict[int, Ints]] = (-1, Candidates.none(0), {})

    def classes(self) -> tuple[str, ...]:
        """The current classes."""
        return open_questions(self._project.store).classes

    def version(self) -> str:
        """The name of the model whose guesses are shown."""
        return f"{MODEL} cycle {self._project.cycle}"

    def sheets_of(self, images: Sequence[tuple[str, int | None]]) -> list[ReviewTask | None]:
        """The open questions about each image, and further boxes of the latest ranking that no answer has settled.

        Images are named, and numbered if the number is known; None for one that the project does not have.
        """
        found, photos = open_questions(self._project.store), _Photos(self._project.store)
        asked = dict[int, list[Query]]()
        for query in found.queries:
            if query.box is not None:
                asked.setdefault(query.image_id, []).append(query)
        sheets: list[ReviewTask | None] = []
        for name, number in images:
            image_id = number if number is not None and photos.agree(number, name) else photos.named(name)
            if image_id is None:
                sheets.append(None)
                continue
            record, ours = found.images[image_id], asked.get(image_id, [])
            sheets.append(
                ReviewTask(len(sheets) + 1, record, record.path, [*ours, *self._others(image_id, ours, found)])
            )
        return sheets

    def record(self, batch: Batch) -> dict[str, int]:
        """Record returned annotations. Return the number of answers of each kind."""
        return asdict(self._do(lambda: bring_in(self._project.store, batch, self._source)))

    def _others(self, image_id: int, asked: Sequence[Query], found: Questions) -> list[Query]:
        """Boxes of the ranking that overlap no open question and no settled box."""
        candidates, rows_of = self._ranking(found.cycle)
        rows = candidates[rows_of.get(image_id, np.zeros(0, np.int64))]
        iou = self._project.settings.selection.answered_iou
        free = still_open(rows.boxes, self._project.store.labels_of(image_id), iou) & (rows.scores >= SHOWN_ABOVE)
        for query in asked:
            free &= iou_matrix(rows.boxes, query.box[None])[:, 0] < iou  # type: ignore[index]
        place = found.place_of
        return [
            Query(image_id, box, place[int(label)], 0.0, {"score": float(score)})
            for box, label, score in zip(rows.boxes[free], rows.labels[free], rows.scores[free], strict=True)
        ]

    def _ranking(self, cycle: int) -> tuple[Candidates, dict[int, Ints]]:
        """The ranking of a cycle, cached."""
        if self._ranked[0] != cycle:
            known = self._project.has_ranking(cycle)
            ranked = self._project.read_ranking(cycle).candidates if known else Candidates.none(0)
            self._ranked = (cycle, ranked, rows_by_image(ranked))
        return self._ranked[1:]


# ------------------------------------------------------------------------------------------- what comes back


@dataclass(frozen=True)
class Imported:
    """What a file brought, in answers: guesses that are an object and those that are none or have their label already,
    missed boxes, images called complete, and drawn boxes that are gone: withdrawn, or rejected where another person's
    answer would count again. ``unchanged`` were known before; ``left`` contradict another person's later answer, which
    stands; ``unseen`` are guesses on images whose annotation was not begun with them, so that a missing one says
    nothing. ``shapes`` are those that no box can be made of; on their images a missing box says nothing either, and no
    such image is called complete."""

    objects: int = 0
    no_objects: int = 0
    missed: int = 0
    complete: int = 0
    withdrawn: int = 0
    unchanged: int = 0
    left: int = 0
    unseen: int = 0
    shapes: int = 0


SKIPPED = ("unseen", "unchanged", "left")
"""Kinds of answers that are counted and not recorded."""


@dataclass(frozen=True, eq=False)
class _Said:
    """One answer to give: to a query that is there, or to one that is asked along with it, under a key."""

    kind: str
    by: str
    verdict: Verdict
    boxes: Floats
    labels: Ints
    milliseconds: int
    query: Query
    key: str | None = None


@dataclass
class _Known:
    """What the store holds, looked up once: queries by image, what each person says of a query, and the
    queries of boxes that came before, by the keys of their answers."""

    images: Mapping[int, ImageRecord]
    classes: Classes
    queries: dict[int, dict[int, Query]] = field(default_factory=dict[int, dict[int, Query]])
    standing: dict[int, dict[str, Answer]] = field(default_factory=dict[int, dict[str, Answer]])
    drawn: dict[int, dict[str, int]] = field(default_factory=dict[int, dict[str, int]])
    taken: set[str] = field(default_factory=set[str])

    @classmethod
    def of(cls, store: Store, source: str) -> "_Known":
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


def bring_in(
    store: Store, batch: Batch, source: str, *, by: str = "", complete: bool = False, instead: bool = False
) -> Imported:
    """Record what came back from another tool, all of it or, on an error, none; the same file again changes nothing.

    ``source`` names the tool; ``by`` is whose answers they are, where the file does not name the person or another
    name is wanted. With ``complete`` every image of the batch is labelled completely. What somebody else has answered
    otherwise meanwhile stands, unless ``instead``. Raises UserError for images, queries and classes that the store does
    not have.
    """
    with store.transaction(writes=True):
        known = _Known.of(store, source)
        said = [
            one
            for returned, record in _located(batch.returned, known, _Photos(store))
            for one in _answers(returned, record, known, source, by, complete)
        ]
        fates = [_fate(one, known, instead) for one in said]
        _record(store, [one for one, fate in zip(said, fates, strict=True) if fate == one.kind and fate not in SKIPPED])
    return Imported(**Counter(fate for fate in fates if fate), shapes=sum(len(one.left_out) for one in batch.returned))


def _located(returned: Sequence[Returned], known: _Known, photos: "_Photos") -> list[tuple[Returned, ImageRecord]]:
    """Each with its image. UserError names the first of those that are unknown, and how many there are.

    If one number does not fit the name beside it, the file is another project's. Then no number of images and
    questions in it means anything here, and names alone tell which photo is meant. If only names of our export are in
    the file, and one that no photo has, they are meant as that export means them. CVAT may add one folder to all names.
    """
    numbered = any(one.image_id is not None for one in returned)
    if any(one.image_id is not None and not photos.agree(one.image_id, one.image) for one in returned):
        returned = [_without_numbers(one) for one in returned]
    sent = sent_as(known.images.values()) if any(one.image_id is None for one in returned) else {}
    if not numbered:
        returned = _without_folder(returned, sent, photos)
    names = {one.image for one in returned}
    made = (
        file
        for file, i in sent.items()
        if file in names and file_names([(i, known.images[i].path)], SUFFIXES) != [file]
    )
    ours = names <= sent.keys() and any(made)
    located = [(one, _find(one, known, photos, sent, ours)) for one in returned]
    unknown = [one for one, record in located if record is None]
    if unknown:
        more = f", and {len(unknown) - 1} more of {len(returned)} are not" if len(unknown) > 1 else ""
        raise UserError(
            f"{unknown[0].where}: the image {unknown[0].image!r} is not in the store{more}. Is this the file of "
            "another project?"
        )
    pairs = [(one, record) for one, record in located if record is not None]
    seen: dict[int, Returned] = {}
    for one, record in pairs:
        if record.id in seen:
            raise UserError(f"{one.where}: this image came already, in {seen[record.id].where}; import them one by one")
        seen[record.id] = one
    return pairs


def _without_numbers(one: Returned) -> Returned:
    regions = tuple(region._replace(query=None) for region in one.regions)
    return replace(one, image_id=None, queries=(), regions=regions)


def _without_folder(returned: Sequence[Returned], sent: Mapping[str, int], photos: "_Photos") -> Sequence[Returned]:
    """The same with bare names, if all are names of our export in one folder that is no folder of the photos."""
    names = [one.image.replace("\\", "/").rpartition("/") for one in returned]
    folders = {folder for folder, _, _ in names}
    if (
        len(folders) != 1
        or photos.folders & set(folders.pop().split("/"))
        or any(file not in sent for *_, file in names)
    ):
        return returned
    return [replace(one, image=file) for one, (*_, file) in zip(returned, names, strict=True)]


class _Photos:
    """The photos of a store by their current and former names."""

    def __init__(self, store: Store) -> None:
        self._paths = store.image_paths()
        self._by_name = ByName[int]()
        for image_id, paths in self._paths.items():
            self._by_name.add(paths[-1], image_id)

    @property
    def folders(self) -> set[str]:
        """The names of all folders above the photos, current and former."""
        plain = (path.replace("\\", "/") for paths in self._paths.values() for path in paths)
        return {part for path in plain for part in path.split("/")[:-1] if part}

    def named(self, name: str) -> int | None:
        """The id of the photo that another tool means by a name. UserError if it fits several."""
        return self._by_name.match(name)

    def agree(self, image_id: int, name: str) -> bool:
        """Whether the photo with this id has the name in another tool, or had it when it was sent there."""
        own = ByName[int]()
        for path in self._paths.get(image_id, ()):
            (file,) = file_names([(image_id, path)], SUFFIXES)
            stem, _, suffix = file.rpartition(".")
            # `data.export` tells two of one name apart by a number, written as often as it takes
            for alike in (path, file, *(f"{stem}{f'-{image_id}' * times}.{suffix}" for times in (1, 2, 3))):
                own.add(alike, image_id)
        try:
            return own.match(name) is not None
        except UserError:  # several of its names fit
            return True


def _find(one: Returned, known: _Known, photos: _Photos, sent: Mapping[str, int], ours: bool) -> ImageRecord | None:
    """The image that is meant. ``sent`` are the names in an export of ours; ``ours``: the file is one for certain."""
    if one.image_id is not None:
        return known.images.get(one.image_id)
    there = sent.get(one.image, -1)
    if ours or known.queries.get(there, {}).keys() & {*one.queries}:
        return known.images[there]
    image_id = photos.named(one.image)
    return None if image_id is None else known.images.get(image_id)


def _answers(one: Returned, record: ImageRecord, known: _Known, source: str, by: str, complete: bool) -> list[_Said]:
    """What one image's regions say of its queries, of boxes that were drawn before, and of nothing asked."""
    author = clean_name(by or one.by or source, "person")
    boxes = _in_pixels(one, record)
    labels = [_label(region, one, known) for region in one.regions]
    ours = known.queries.get(record.id, {})
    shown = _shown(one, ours)
    answer_to = _match(one.regions, boxes, shown)
    taken = {region: query for query, region in answer_to.items()}
    before = known.drawn.get(record.id, {})
    keys = _keys(one.regions, boxes, labels, source, record.id, known.taken - before.keys())
    drawn = _match_drawn(keys, boxes, [n for n in range(len(boxes)) if n not in taken], before, ours)
    time = one.milliseconds // max(len(shown) + len(boxes) - len(taken), 1)

    free = [n for n in range(len(boxes)) if n not in taken and n not in drawn]
    used = {*shown, *before.values()}
    labelled = _match_labelled(boxes, labels, free, {n: q for n, q in ours.items() if n not in used}, known)

    def said(kind: str, query: Query, verdict: Verdict, region: int | None = None, key: str | None = None) -> _Said:
        rows = [] if region is None else [region]
        return _Said(kind, author, verdict, boxes[rows], np.array(labels, np.int64)[rows], time, query, key)

    found: list[_Said] = []
    for query in shown.values():
        if query.id in answer_to:
            region = answer_to[query.id]
            boxes[region] = _settle(boxes[region], query)
            found.append(said("objects", query, Verdict.OBJECT, region))
        elif one.began_with_guesses and not one.left_out:
            found.append(said("no_objects", query, _rejection(query, boxes)))
        else:
            found.append(said("unseen", query, Verdict.CANNOT_TELL))
    for region in (n for n in range(len(boxes)) if n not in taken):
        if region in drawn:
            found.append(said("missed", ours[drawn[region]], Verdict.OBJECT, region))
        elif region in labelled:
            query, exact = labelled[region]
            # One box of many cannot be changed alone.
            kind = "missed" if query.box is not None else "unchanged" if exact else "left"
            found.append(said(kind, query, Verdict.OBJECT, region))
        else:
            query = Query(record.id, boxes[region], labels[region], asked_by=author)
            found.append(said("missed", query, Verdict.OBJECT, region, keys[region]))
    gone = set[int]() if one.left_out else {*before.values()} - {*drawn.values()}
    for query in (ours[n] for n in sorted(gone) if ours[n].box is not None):
        others = (answer for by, answer in known.standing.get(query.id, {}).items() if by != author)
        theirs = any(answer.verdict is Verdict.OBJECT for answer in others)
        found.append(said("withdrawn", query, _rejection(query, boxes) if theirs else Verdict.WITHDRAWN))
    if complete and not one.left_out:
        whole = next((q for q in ours.values() if q.box is None), Query(record.id, asked_by=author))
        found.append(said("complete", whole, Verdict.OBJECT))
    return found


def _match_labelled(
    boxes: Floats, labels: Sequence[int], free: Sequence[int], ours: Mapping[int, Query], known: _Known
) -> dict[int, tuple[Query, bool]]:
    """Region -> the query whose latest answer labels the same object, and whether box and class are the very same.

    ``boxes`` (R, 4) and ``labels`` are of all regions, ``free`` the rows to match, ``ours`` the image's queries by id.
    The same boxes are matched first, then those with the best IoU of at least 0.5. So the project's own labels are
    known when they come back, and a changed one contradicts its label.
    """
    latest = {n: next(reversed(known.standing[n].values())) for n in ours if known.standing.get(n)}
    places = [(n, row) for n, answer in latest.items() for row in range(len(answer.boxes))]
    if not places or not free:
        return {}
    there = np.stack([latest[n].boxes[row] for n, row in places])
    same = np.array([latest[n].labels[row] for n, row in places])
    near = iou_matrix(boxes[list(free)], there)
    exact = np.abs(boxes[list(free)][:, None] - there).max(axis=2) <= STILL
    worth = near + 2 * (exact & (np.array(labels)[list(free)][:, None] == same))
    found: dict[int, tuple[Query, bool]] = {}
    taken = set[int]()
    for place in np.argsort(-worth, axis=None, kind="stable"):
        row, column = divmod(int(place), len(places))
        if worth[row, column] < 0.5:
            break
        if free[row] not in found and column not in taken:
            found[free[row]] = ours[places[column][0]], bool(worth[row, column] >= 2)
            taken.add(column)
    return found


def _rejection(query: Query, boxes: Floats) -> Verdict:
    """The answer to a query whose box was deleted. ``boxes``: (N, 4), those that are there."""
    assert query.box is not None
    near = iou_matrix(query.box[None], boxes).max(initial=0) >= SAME_OBJECT
    return Verdict.ALREADY_LABELLED if near else Verdict.NOT_AN_OBJECT


def _in_pixels(one: Returned, record: ImageRecord) -> Floats:
    """The regions' boxes in pixels of the image here: (N, 4). UserError for another picture, or a box without area."""
    size = (record.width, record.height)
    scale = rescaling(one.size or size, size)
    if scale is None:
        width, height = one.size or size
        raise UserError(
            f"{one.where}: the picture there has {width} x {height} pixels, here {record.width} x {record.height}; it "
            "is another one, or turned"
        )
    boxes = np.array([region.box for region in one.regions], dtype=np.float64).reshape(-1, 4) * scale
    boxes = np.clip(boxes, 0, [record.width, record.height] * 2)
    try:
        return as_boxes(boxes)
    except ValueError as error:
        raise UserError(f"{one.where}: {error}; delete that box there, and export again") from None


def _label(region: Region, one: Returned, known: _Known) -> int:
    label = known.classes.find(region.name)
    if label is None:
        raise UserError(
            f"{one.where}: {unknown_name('class', region.name, known.classes)}; add it to the project first"
        )
    return label


def _shown(one: Returned, ours: Mapping[int, Query]) -> dict[int, Query]:
    """The box queries that the file is about. UserError for one that was never asked of this image."""
    told = dict.fromkeys([*one.queries, *(r.query for r in one.regions if r.query is not None and r.query in ours)])
    for number in told:
        if number not in ours or ours[number].box is None:
            raise UserError(f"{one.where}: query {number} is not one of this image's; is this another project's file?")
    return {number: ours[number] for number in told}


def _match(regions: Sequence[Region], boxes: Floats, shown: Mapping[int, Query]) -> dict[int, int]:
    """Which region answers which query: by its number, the nearest if several say so; else by its place."""
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
    return matched | {free[a]: rest[b] for a, b in _pairs(places, boxes[rest])}


def _pairs(boxes: Floats, others: Floats) -> Iterable[tuple[int, int]]:
    """Rows that belong together, each in one pair: the largest IoU first, down to that of one object."""
    rows, columns, iou = (np.concatenate(parts) for parts in zip(*overlapping(boxes, others, SAME_OBJECT), strict=True))
    free, free_others = {*range(len(boxes))}, {*range(len(others))}
    for nth in np.lexsort((columns, rows, -iou)):
        a, b = int(rows[nth]), int(columns[nth])
        if a in free and b in free_others:
            yield a, b
            free.remove(a)
            free_others.remove(b)


def _keys(
    regions: Sequence[Region], boxes: Floats, labels: Sequence[int], source: str, image_id: int, taken: Set[str]
) -> list[str]:
    """A name for each region that lasts: its own, or, where the tool has none, one of its class and place.

    ``taken`` are names that something else has.
    """
    keys: list[str] = []
    drawn = Counter[str]()
    for region, box, label in zip(regions, boxes.astype(float).round(1).tolist(), labels, strict=True):
        name = region.key or f"{label} {box}"
        key = f"{source}:{image_id}:{sha256(name.encode(errors='surrogatepass')).hexdigest()[:24]}"
        while (again := key + "+" * drawn[key]) in taken:  # the same box may be drawn twice
            drawn[key] += 1
        keys.append(again)
        drawn[key] += 1
    return keys


def _match_drawn(
    keys: Sequence[str], boxes: Floats, free: Sequence[int], before: Mapping[str, int], ours: Mapping[int, Query]
) -> dict[int, int]:
    """Which region is a box that was drawn and brought in before: by its key, else by its place; region -> query."""
    found = {region: before[keys[region]] for region in free if keys[region] in before}
    rest = [region for region in free if region not in found]
    again = {*found.values()}
    left = [n for n in before.values() if n not in again and ours[n].box is not None]
    places = as_boxes([ours[n].box for n in left])  # type: ignore[arg-type]
    return found | {rest[b]: left[a] for a, b in _pairs(places, boxes[rest])}


def _settle(box: Floats, query: Query) -> Floats:
    """The query's own box where a person has not moved it."""
    assert query.box is not None
    return query.box if np.abs(box - query.box).max() <= STILL else box


def _fate(one: _Said, known: _Known, instead: bool) -> str:
    """What becomes of an answer, as `Imported` counts: its own kind if it is recorded, else the reason why not."""
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


def _same(answer: Answer, one: _Said) -> bool:
    return (
        answer.verdict is one.verdict
        and answer.labels.tolist() == one.labels.tolist()
        and np.abs(answer.boxes - one.boxes).max(initial=0) <= STILL
    )


def _record(store: Store, said: Sequence[_Said]) -> None:
    """Ask what nobody has asked, and record all answers, those to such questions under their keys."""
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
