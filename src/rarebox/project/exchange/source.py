"""The questions of a project for another tool, image by image, and the import of its answers."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from typing import Protocol, TypeVar

import numpy as np

from rarebox.core.boxes import iou_matrix
from rarebox.data.review import MODEL, Batch, ReviewTask
from rarebox.pool.candidates import rows_by_image
from rarebox.pool.ranking import still_open
from rarebox.project.exchange.importing import bring_in
from rarebox.project.exchange.photos import Photos
from rarebox.project.exchange.questions import Questions, classes_now, open_questions
from rarebox.project.project import Project
from rarebox.types import Candidates, Ints, Query

T = TypeVar("T")


SHOWN_ABOVE = 0.3
"""The minimum score of a box that is shown without being asked about. Weaker boxes would clutter the image."""


class Writer(Protocol):
    """Starts a job that writes to the store, in the writing thread."""

    def __call__(self, job: Callable[[], T], /) -> Future[T]: ...


def at_once(job: Callable[[], T]) -> Future[T]:
    """Run a job in this thread."""
    done = Future[T]()
    try:
        done.set_result(job())
    except Exception as error:
        done.set_exception(error)
    return done


class ReviewSource:
    """The questions of a project for another tool, image by image, and the import of its answers.

    ``do`` starts jobs in the thread that writes. All methods may be called from any thread.
    """

    def __init__(self, project: Project, source: str = "labelstudio", do: Writer = at_once):
        self._project, self._source, self._do = project, source, do
        self._known_photos: Photos | None = None
        self._ranked: tuple[int, Candidates, dict[int, Ints]] = (-1, Candidates.none(0), {})

    def classes(self) -> tuple[str, ...]:
        """The current classes."""
        return classes_now(self._project.store)[0]

    def version(self) -> str:
        """The name of the model whose guesses are shown."""
        return f"{MODEL} cycle {self._project.cycle}"

    def sheets_of(self, images: Sequence[tuple[str, int | None]]) -> list[ReviewTask | None]:
        """The open questions about each image, and further boxes of the latest ranking that no answer has settled.

        Images are named, and numbered if the number is known; None for one that the project does not have.
        """
        found, photos = open_questions(self._project.store), self._photos()
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

    def record(self, batch: Batch) -> Future[dict[str, int]]:
        """Record returned annotations, and count the answers of each kind. The future is done when they are on disk."""
        photos = self._photos()
        return self._do(lambda: asdict(bring_in(self._project.store, batch, self._source, photos=photos)))

    def _photos(self) -> Photos:
        known = self._known_photos
        self._known_photos = photos = known.current() if known else Photos(self._project.store)
        return photos

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
