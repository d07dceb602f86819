"""Label Studio's ML-backend protocol over HTTP: it shows our questions as predictions and sends the answers back.

Label Studio waits 1 s for ``/health``, 3 s for ``/setup`` and 100 s for ``/predict``; all are answered immediately from
the store. Nothing is trained here: answers go to the store, where the trainer finds them.
"""

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, HTTPException, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, FailFast, Field

from rarebox.data import labelstudio
from rarebox.data.narrow import Object
from rarebox.data.review import Batch, Returned, ReviewTask
from rarebox.errors import UserError
from rarebox.project.exchange.source import ReviewSource

logger = logging.getLogger(__name__)

ANSWERED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
"""Events that contain an answer. All others are ignored."""

UNEXPECTED = {
    "left": "another person answered differently. Answers not used: {}. To use them, export the task from Label Studio "
    "and import it with --replace",
    "whole": "single boxes of a fully labelled image can be changed only on the page. Answers not used: {}",
    "foreign": "exported by another project, so its image and boxes are matched by name and position alone",
    "shapes": "shapes left out, since only upright rectangles are used: {}",
}
"""Kinds of answers that the log of the server reports, since nobody reads the reply to a webhook."""

MOST_TASKS = 1000
"""Tasks of one request to ``/predict`` (Label Studio sends 100 at a time by default)."""


class Message(BaseModel):
    """A request of Label Studio. Further fields are ignored."""

    model_config = ConfigDict(extra="ignore")


class Setup(Message):
    """A Label Studio project that has been connected."""

    project: str | None = None
    label_config: str | None = Field(default=None, alias="schema")


class Predict(Message):
    """Tasks for which predictions are wanted."""

    tasks: Annotated[list[dict[str, object]], FailFast()] = Field(default=[], max_length=MOST_TASKS)
    label_config: str | None = None


class Event(Message):
    """An event in Label Studio. An event about many annotations lists them, and each of their tasks once."""

    action: str = ""
    task: dict[str, object] | list[dict[str, object]] | None = None
    annotation: dict[str, object] | list[dict[str, object]] | None = None


@dataclass
class _Recorded:
    """When the last recorded state of an annotation was saved in Label Studio. The ``lock`` is held while recording."""

    saved_at: float = -math.inf
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def make_router(
    sheets_of: Callable[[Sequence[tuple[str, int | None]]], Sequence[ReviewTask | None]],
    classes: Callable[[], Sequence[str]],
    version: Callable[[], str],
    record: Callable[[Batch], Future[dict[str, int]]],
) -> APIRouter:
    """The routes of the contract. Mount them under any prefix and enter that whole address in Label Studio.

    ``sheets_of`` takes the names of images, each with its number if the task knows it, and returns for each its open
    questions and other boxes to show, or None for an image that is not in the project. ``classes`` are the names that
    guesses are indices into; ``version`` names the model. ``record`` starts to save returned annotations as answers.
    Its future is done when they are on disk, and counts them by kind; its UserErrors are sent to Label Studio.
    """
    router = APIRouter(tags=["Label Studio"])
    newest: dict[int, _Recorded] = {}  # by annotation
    predictions = CapacityLimiter(1)

    def begin(task: Object, annotation: Object) -> Future[dict[str, int]]:
        returned = _returned(task, annotation)
        return record(Batch([returned] if returned else []))

    async def take(task: Object, annotation: Object) -> dict[str, int] | None:
        """Record one annotation, and count its answers; None if a later state of it is already recorded."""
        number, saved_at = annotation.get("id"), labelstudio.saved_at(annotation)
        last = newest.setdefault(number, _Recorded()) if isinstance(number, int) else _Recorded()
        async with last.lock:
            if saved_at < last.saved_at:
                return None
            counts = await asyncio.wrap_future(await run_in_threadpool(begin, task, annotation))
            last.saved_at = saved_at
        for kind in UNEXPECTED.keys() & {kind for kind, count in counts.items() if count}:
            logger.warning("Label Studio, task %s: %s", task.get("id"), UNEXPECTED[kind].format(counts[kind]))
        return counts

    @router.get("/", include_in_schema=False)
    @router.get("/health")
    def health() -> dict[str, str]:
        """Health check."""
        return {"status": "UP", "model_class": "rarebox"}

    @router.post("/setup")
    def setup(body: Setup) -> dict[str, str]:
        """Accept a connected project. Its labelling configuration must contain our classes."""
        if body.label_config:
            _check_classes(body.label_config, classes())
        return {"model_version": version()}

    @router.post("/predict")
    async def predict(body: Predict) -> dict[str, object]:
        """A prediction for each task, in order; without boxes where there is nothing to ask.

        One request at a time: each may read all open questions. Others wait without a thread.
        """

        def predicted() -> dict[str, object]:
            names, model = classes(), version()
            sheets = sheets_of([_image_of(task) for task in body.tasks])
            return {"results": [_prediction(sheet, names, model) for sheet in sheets], "model_version": model}

        return await to_thread.run_sync(predicted, limiter=predictions)

    @router.post("/webhook", status_code=201)
    @router.post("/train", status_code=201, include_in_schema=False)
    async def webhook(body: Event) -> dict[str, object]:
        """Record a submitted or changed annotation as answers.

        Events may arrive late or twice. A state older than the last one recorded (since the server started) is ignored.
        No thread waits for the writing thread: others may need one.
        """
        if body.action not in ANSWERED:
            return {"result": {}, "status": "ignored"}
        counts, late, refused = Counter[str](), 0, list[str]()
        try:
            for task, annotation in _annotations(body):
                try:
                    taken = await take(task, annotation)
                    counts.update(taken or {})
                    late += taken is None
                except UserError as error:  # the others are recorded
                    refused.append(f"Task {task.get('id')}, annotation {annotation.get('id')}: {error}")
        except UserError as error:
            refused.append(str(error))
        if refused:
            for one in refused:
                logger.warning("Label Studio: NOT recorded. %s. Then save the annotation again.", one.rstrip("."))
            raise HTTPException(422, "; ".join(refused))
        if late and not counts:
            return {"result": {}, "status": "ignored: a later state of this annotation is already recorded"}
        return {"result": counts, "status": "ok"}

    @router.get("/versions")
    @router.post("/versions")
    def versions() -> dict[str, list[str]]:
        """The only version: the latest model."""
        return {"versions": [version()]}

    @router.get("/is_training", include_in_schema=False)
    def is_training() -> dict[str, bool]:
        """False: the trainer trains, not this backend."""
        return {"is_training": False}

    @router.post("/job_status", include_in_schema=False)
    def job_status(response: Response) -> dict[str, str]:
        """410: this backend runs no jobs for Label Studio."""
        response.status_code = 410
        return {"error": "rarebox starts training by itself"}

    return router


def router_of(source: ReviewSource) -> APIRouter:
    """The routes for one project."""
    return make_router(source.sheets_of, source.classes, source.version, source.record)


def _image_of(task: Mapping[str, object]) -> tuple[str, int | None]:
    """The image of a task; the empty name, which no image has, if the task names none."""
    try:
        return labelstudio.image_of(task.get("data"), "the task")
    except UserError:
        return "", None


def _prediction(sheet: ReviewTask | None, classes: Sequence[str], version: str) -> labelstudio.Prediction:
    if sheet is None or not sheet.queries:
        return {"model_version": version, "score": 0.0, "result": []}
    return labelstudio.prediction(sheet, classes, version)


def _annotations(body: Event) -> list[tuple[Object, Object]]:
    """The annotations of an event, each after its task."""
    if not body.annotation or not body.task:
        raise UserError("The event has no 'annotation' or no 'task'. Turn on “Send payload” for the webhook.")
    tasks = body.task if isinstance(body.task, list) else [body.task]
    annotations = body.annotation if isinstance(body.annotation, list) else [body.annotation]
    if len(tasks) == 1:
        return [(tasks[0], annotation) for annotation in annotations]
    by_number = {task.get("id"): task for task in tasks}
    lost = next((a for a in annotations if a.get("task") not in by_number), None)
    if lost is not None:
        raise UserError(f"The event does not hold the task of annotation {lost.get('id')}. Export it, and import it.")
    return [(by_number[annotation["task"]], annotation) for annotation in annotations]


def _returned(task: Object, annotation: Object) -> Returned | None:
    """An annotation; None if it was skipped in Label Studio."""
    if annotation.get("was_cancelled"):
        return None
    return labelstudio.from_annotation(task, annotation, f"task {task.get('id')}")


def _check_classes(config: str, classes: Sequence[str]) -> None:
    """400 if the labelling configuration lacks one of our classes, whose boxes could then not be shown."""
    try:
        there = labelstudio.classes_of(config)
    except UserError as error:
        raise HTTPException(400, str(error)) from None
    missing = [name for name in classes if name not in there]
    if missing:
        raise HTTPException(
            400,
            f"The labelling configuration has no rectangle label for {', '.join(missing)}. Add it, or use the "
            "config.xml that `rarebox export --queries --format labelstudio` writes.",
        )
