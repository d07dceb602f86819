"""Rank the boxes of an external detector by the same code as the loop.

Detections on an image and its augmented copies become candidates (:func:`candidates.score_image`). Existing labels
settle some of them (:mod:`ranking`), and a strategy ranks the rest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from rarebox import strategies
from rarebox.config import Settings
from rarebox.core import seeds
from rarebox.core.boxes import clip, rescaling
from rarebox.core.text import counted
from rarebox.data import detections
from rarebox.data.detections import CocoResults, DetectionFile, Image, Line, concatenated
from rarebox.data.fitting import CornerCheck, has_area, reach_out
from rarebox.data.listings import Numbers
from rarebox.errors import UserError
from rarebox.external.copies import Copies
from rarebox.external.names import examples
from rarebox.external.pool import Labelled, Pool, image_labels
from rarebox.external.vocabulary import Understanding, vocabulary
from rarebox.pool import ranking
from rarebox.pool.affine import Frame
from rarebox.pool.candidates import Shards, score_image
from rarebox.strategies.box import entropies
from rarebox.types import Candidates, Detections, Floats, ImageLabels, ImageRecord, ImageScores, Query, concatenate

Report = Callable[[int, int], None]
"""Called with (images done, all images)."""

NO_BOXES = np.zeros((0, 4), dtype=np.float32)

NO_VIEWS = (
    "no --views: the uncertainty is the entropy of each box's class, not the consistency over augmented copies of "
    "Eq. 2 and 3, and box consistency is unknown. `rarebox views` makes the copies"
)

NEED_VIEWS = ("compas",)


@dataclass(frozen=True, eq=False)
class Ranked:
    """The boxes to label next as queries, best first, and how they were ranked.

    ``class_frequency`` (K,) is p(l) of Eq. 1. ``from_views`` says whether the uncertainty is that of Eq. 3.
    ``candidates`` counts the open boxes. ``notes`` are warnings about the input, for the user. ``of_project`` are the
    images whose numbers are those of ``project``, the session of the store with the labels; empty without one.
    """

    strategy: str
    classes: tuple[str, ...]
    images: Mapping[int, ImageRecord]
    queries: Sequence[Query]
    class_frequency: Floats
    from_views: bool
    candidates: int
    notes: tuple[str, ...]
    project: str
    of_project: frozenset[int]


@dataclass(frozen=True, eq=False)
class Read:
    """Detections as candidates, with the images, classes and labels that they refer to.

    ``candidates`` have ids of ``pool``'s images and indices into ``classes``. ``labels`` are those of the images, by
    id. ``notes`` are warnings about the input, for the user.
    """

    pool: Pool
    classes: tuple[str, ...]
    candidates: Candidates
    labels: Mapping[int, ImageLabels]
    notes: tuple[str, ...]

    @property
    def images(self) -> Mapping[int, ImageRecord]:
        """The images by id."""
        return self.pool.records


def rank(
    found: Path,
    views: Path | None,
    labels: Path | None,
    images: Path | None,
    settings: Settings,
    budget: int,
    *,
    classes: Sequence[str] | None = None,
    views_map: Path | None = None,
    labels_complete: bool = False,
    report: Report = lambda done, of: None,
) -> Ranked:
    """Rank the boxes of a file of detections by the strategy of the settings. The arguments are those of :func:`read`.

    Raises UserError for invalid files and arguments.
    """
    check_strategy(settings, bool(views))
    if budget < 1:
        raise UserError(f"--budget must be at least 1 box, got {budget}")
    one = read(
        found,
        settings,
        views,
        labels,
        images,
        classes=classes,
        views_map=views_map,
        labels_complete=labels_complete,
        report=report,
    )
    sizes = {image.id: (image.width, image.height) for image in one.images.values()}
    queries, frequency, total = choose_queries(
        one.candidates, one.labels, settings, budget, len(one.classes), bool(views), sizes
    )
    return Ranked(
        settings.selection.strategy,
        one.classes,
        one.images,
        queries,
        frequency,
        bool(views),
        total,
        one.notes if views else (NO_VIEWS, *one.notes),
        one.pool.project,
        one.pool.of_project,
    )


def read(
    found: Path,
    settings: Settings,
    views: Path | None = None,
    labels: Path | None = None,
    images: Path | None = None,
    *,
    classes: Sequence[str] | None = None,
    views_map: Path | None = None,
    labels_complete: bool = False,
    numbers: Numbers | None = None,
    skip_ambiguous: bool = False,
    report: Report = lambda done, of: None,
) -> Read:
    """Read a file of detections.

    ``labels`` is a COCO file, the folder of a run or project, or a label store; with ``labels_complete`` all its images
    count as fully labelled. ``images`` is a folder or COCO file that lists the images. ``numbers`` says what the
    numbers of classes and images mean, for a project that is created from labels. With ``skip_ambiguous`` a name that
    several images have costs only its own detections. Raises UserError for invalid files and arguments.
    """
    file, file_of_views = detections.open_detections(found), views and detections.open_detections(views)
    if isinstance(file_of_views, detections.CocoResults):
        raise UserError(f"{views}: COCO results do not name the copy. Write detections on copies as JSON lines")
    notes: list[str] = []
    pool = Pool(numbers.images if numbers else None)
    given = pool.add_labels(labels, labels_complete) if labels else None
    if images:
        pool.add_images(images, notes)
    several = pool.several(file.images()) if skip_ambiguous else {}
    placed = pool.place([name for name in file.images() if name not in several], found, closed=images is not None)
    if several:
        skipped = f"{counted(len(several), 'image')} skipped, since several photos fit: {next(iter(several.values()))}"
        if not placed:
            raise UserError(f"{found}: {skipped}")
        notes.append(skipped)
    if pool.otherwise:
        notes.append(_otherwise(pool, found))
    if pool.disputed:
        number = min(pool.disputed)
        notes.append(
            f"{len(pool.disputed)} image numbers are ids in the COCO file and also names of other images, such as "
            f"{number}: they are read as ids, so {number} is {pool.records[number].path}"
        )
    words = vocabulary([f for f in (file, file_of_views) if f], classes, pool, notes, numbers)
    understand = Understanding(words)
    copies = None
    if file_of_views:
        entries = detections.read_map(views_map) if views_map else {}
        copies = Copies(file_of_views, entries, pool, settings.scoring.views)
    candidates = read_candidates(file, placed, copies, understand, pool, settings, report)
    notes += _counted(len(pool.records) - len(placed) if images else 0, understand, copies)
    fitted = pool.fitted(given, notes) if given else {}
    notes += _matched(pool, placed, fitted, found, labels)
    labelled = {image_id: image_labels(one, words.classes) for image_id, one in fitted.items()}
    return Read(pool, words.classes, candidates, labelled, tuple(notes))


def _otherwise(pool: Pool, found: Path) -> str:
    return (
        f"{len(pool.otherwise)} images of {found.name} are matched to images with almost the same name, such as "
        f"{examples(pool.otherwise, pool.records)}. If they are different photos, list all images with --images"
    )


def _matched(
    pool: Pool, placed: Mapping[int, Sequence[Image]], fitted: Mapping[int, Labelled], found: Path, labels: Path | None
) -> list[str]:
    """A note on how many labelled images have detections, and what to do if no name fits."""
    labelled = [image_id for image_id, one in fitted.items() if one]
    if not labels or not labelled:
        return []
    there = sum(image_id in placed for image_id in labelled)
    note = f"{there} of {len(labelled)} labelled images of {labels.name} have detections in {found.name}"
    if placed and placed.keys().isdisjoint(fitted):
        (other, *_), *_ = placed.values()
        note += (
            f". Their names do not match, such as {pool.records[labelled[0]].path} and {other}. If they are the same "
            "photos, use the same names, because labelled boxes may be listed again"
        )
    return [note]


def _counted(images_without: int, understand: Understanding, copies: Copies | None) -> list[str]:
    counts = {
        "images have no line in --detections, so none of their boxes is listed": images_without,
        "boxes have no area and are skipped": understand.dropped,
        "boxes lie within the first pixel and are skipped. If they are in fractions of the image's sides, "
        "write pixels": understand.shares,
        "boxes extend beyond their images and are clipped": understand.clipped,
        "copies in --views belong to images that --detections lacks": copies.elsewhere if copies else 0,
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def check_strategy(settings: Settings, from_views: bool) -> None:
    """UserError for a strategy that is unknown, or that needs more than boxes, scores and classes."""
    strategy = settings.selection.strategy
    strategies.choose(settings.selection)
    if strategy in strategies.IMAGE:
        raise UserError(f"{strategy} ranks whole images, not boxes. Choose one of {', '.join(_usable())}")
    if strategy in strategies.NEEDS:
        raise UserError(f"{strategy} needs feature vectors of the detector. Choose one of {', '.join(_usable())}")
    if strategy in NEED_VIEWS and not from_views:
        raise UserError(f"{strategy} compares detections on augmented copies. Give them as views (--views)")


def _usable() -> list[str]:
    return [name for name in strategies.BOX if name not in strategies.NEEDS]


def choose_queries(
    candidates: Candidates,
    labels: Mapping[int, ImageLabels],
    settings: Settings,
    budget: int,
    num_classes: int,
    from_views: bool,
    sizes: Mapping[int, tuple[int, int]] | None = None,
) -> tuple[list[Query], Floats, int]:
    """The first ``budget`` open boxes of the ranking, p(l), and the count of open boxes.

    A box that overlaps a better one by ``answered_iou`` (decisions row 9) is skipped: the answer to the better one will
    settle it.
    """
    iou = settings.selection.answered_iou
    pool = Shards([candidates])
    state, open_per_class = ranking.label_state(settings, budget, labels, pool, ImageScores.none(num_classes))
    total = int(open_per_class.sum())
    if not total:
        return [], state.class_frequency, 0
    rng = partial(seeds.stream, settings.seed, "strategy", 0)
    queue = ranking.head(settings, pool, labels, state, rng, sizes)
    asked: dict[int, Floats] = {}
    queries: list[Query] = []
    for place in range(total):
        if len(queries) == budget or not (item := queue(place)):
            break
        (row, utility), open_ones = item, queue.candidates
        image_id, box = int(open_ones.image_id[row]), open_ones.boxes[[row]]
        before = asked.get(image_id, NO_BOXES)
        if ranking.still_open(box, _settled_by(before), iou)[0]:
            asked[image_id] = np.concatenate([before, box])
            queries.append(_query(open_ones, row, utility, place, state.class_frequency, from_views))
    return queries, state.class_frequency, total


def _settled_by(boxes: Floats) -> ImageLabels:
    return ImageLabels(NO_BOXES, np.zeros(0, np.int64), NO_BOXES, boxes, complete=False)


def _query(candidates: Candidates, row: int, utility: float, place: int, frequency: Floats, from_views: bool) -> Query:
    label = int(candidates.labels[row])
    why = {
        "rank": place,
        "score": float(candidates.scores[row]),
        "uncertainty": float(candidates.uncertainty[row]),
        "class_frequency": float(frequency[label]),
    }
    if from_views:
        why["box_consistency"] = float(candidates.box_consistency[row])
    return Query(int(candidates.image_id[row]), candidates.boxes[row], label, float(utility), why)


def read_candidates(
    file: DetectionFile,
    placed: Mapping[int, Sequence[Image]],
    copies: Copies | None,
    understand: Understanding,
    pool: Pool,
    settings: Settings,
    report: Report,
) -> Candidates:
    """The candidates of all images, by image id. Without copies, their uncertainty is the entropy of the class."""
    num_classes = len(understand.words.classes)
    found: list[Candidates] = []
    corners = CornerCheck()
    for done, image_id in enumerate(sorted(placed), 1):
        line = _single_line(file, placed[image_id])
        if line.size and not pool.records[image_id].width:
            pool.add(replace(pool.records[image_id], width=line.size[0], height=line.size[1]))
        detected, clipped = _in_image(understand(line), line, pool.records[image_id], corners)
        understand.clipped += clipped
        views, frames = copies.of(image_id, understand) if copies else ([], [])
        scored = candidates_of(image_id, detected, views, frames, settings, num_classes, bool(copies))
        if len(scored):
            found.append(scored)
        report(done, len(placed))
    understand.check_pixels(file.path)
    if isinstance(file, detections.CocoResults):
        corners.refuse(file.path)
    return concatenate(found) if found else Candidates.none(num_classes)


def candidates_of(
    image_id: int,
    found: Detections,
    views: Sequence[Detections],
    frames: Sequence[Frame],
    settings: Settings,
    num_classes: int,
    from_views: bool,
    lowest: float | None = None,
) -> Candidates:
    """The candidates of one image; if not ``from_views``, with the entropy of the class as uncertainty.

    ``frames`` (M) say where the image lies on each of the M views, ``lowest`` is the lowest score of a candidate, by
    default that of a box that may be asked about.
    """
    scored, _ = score_image(image_id, [found, *views], frames, settings.scoring, num_classes, lowest=lowest)
    unsure = scored.uncertainty if from_views else entropies(scored, num_classes)
    with_vectors = settings.selection.strategy == "entropy"  # no other strategy reads them again
    vectors = scored.class_probs if with_vectors else scored.class_probs[:, :0]
    return replace(scored, uncertainty=unsure, class_probs=vectors.astype(np.float16))


def _in_image(found: Detections, line: Line, record: ImageRecord, corners: CornerCheck) -> tuple[Detections, int]:
    """Detections in pixels of the image, clipped to it, and how many of them extended beyond it.

    Raises UserError for another aspect ratio and for boxes outside the image.
    """
    if not record.width:
        return found, 0
    size = (record.width, record.height)
    factors = rescaling(line.size or size, size)
    if factors is None:
        found_on = "{} x {}".format(*(line.size or size))
        raise UserError(
            f"{line.where}: the picture has {found_on} pixels, and {record.path} {size[0]} x {size[1]}: it is cropped, "
            "rotated or a different image. Run the detector on the image itself"
        )
    boxes = (found.boxes * factors).astype(np.float32)
    inside = clip(boxes, *size)
    corners.add(boxes, size)
    if not has_area(inside).all():
        raise UserError(
            f"{line.where}: a box lies outside of {record.path}, which has {size[0]} x {size[1]} pixels. Write boxes "
            "in its pixels, or add the width and height of the picture that they refer to"
        )
    return replace(found, boxes=inside), int(reach_out(boxes, inside).sum())


def _single_line(file: DetectionFile, names: Sequence[Image]) -> Line:
    """The line about an image. Raises UserError if there are several."""
    lines = [line for name in names for line in file.read(name)]
    if isinstance(file, CocoResults):  # a photo may have several numbers
        lines = [concatenated(lines)]
    if len(lines) > 1:
        raise UserError(f"{lines[1].where}: this image is already in {lines[0].where}. Write all its boxes in one line")
    if lines[0].view:
        raise UserError(f"{lines[0].where}: this is a copy (view {lines[0].view!r}). Give copies with --views")
    return lines[0]
