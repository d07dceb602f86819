"""Label Studio's ML-backend contract over HTTP: it shows our questions as predictions, and sends the answers back.

Label Studio waits 1 s for ``/health``, 3 s for ``/setup`` and 100 s for ``/predict``; all are answered at once from
what is stored. Nothing is trained here: answers go to the store, where the trainer finds them.
"""

from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, ConfigDict, FailFast, Field

from rarebox.data import labelstudio
from rarebox.data.review import Batch, Returned, ReviewTask
from rarebox.errors import UserError
from rarebox.project.exchange import ReviewSource

ANSWERED = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED")
"""Events that bring an answer; all others are heard and passed over."""

MOST_TASKS = 1000
"""Tasks of one request to ``/predict`` (Label Studio sends 100 at a time unless told otherwise)."""


class Message(BaseModel):
    """A request of Label Studio's, whose further fields are none of our business."""

    model_config = ConfigDict(extra="ignore")


class Setup(Message):
    """What Label Studio says of a project that has been connected."""

    project: str | None = None
    label_config: str | None = Field(default=None, alias="schema")


class Predict(Message):
    """Tasks for which predictions are wanted."""

    tasks: Annotated[list[dict[str, Any]], FailFast()] = Field(default=[], max_length=MOST_TASKS)
    label_config: str | None = None


class Event(Message):
    """What has happened in Label Studio."""

    action: str = ""
    task: dict[str, Any] | None = None
    annotation: dict[str, Any] | None = None


def make_router(
    sheets_of: Callable[[Sequence[tuple[str, int | None]]], Sequence[ReviewTask | None]],
    classes: Callable[[], Sequence[str]],
    version: Callable[[], str],
    record: Callable[[Batch], Mapping[str, int]],
) -> APIRouter:
    """The routes of the contract, to be mounted under any prefix; that whole address is what Label Studio is given.

    ``sheets_of`` takes the names of images, each with its number if the task knows it, and gives for each its open
    questions and other boxes to show, or None for an image that is not the project's. ``classes`` are the names that
    guesses are indices into, ``version`` names the model. ``record`` turns what came back into answers, durable when it
    returns, and says how many of which kind; its UserErrors are told to Label Studio.
    """
    router = APIRouter(tags=["Label Studio"])
    newest: dict[Any, str] = {}  # of each annotation: when the last state taken in was saved in Label Studio
    one_at_a_time = Lock()

    @router.get("/", include_in_schema=False)
    @router.get("/health")
    def health() -> dict[str, str]:
        """Whether the backend is there."""
        return {"status": "UP", "model_class": "rarebox"}

    @router.post("/setup")
    def setup(body: Setup) -> dict[str, str]:
        """A project has been connected; its labelling configuration must name our classes."""
        if body.label_config:
            _check_classes(body.label_config, classes())
        return {"model_version": version()}

    @router.post("/predict")
    def predict(body: Predict) -> dict[str, Any]:
        """A prediction for each task, in their order; one without boxes where there is nothing to ask."""
        names, model = classes(), version()
        sheets = sheets_of([_image_of(task) for task in body.tasks])
        return {"results": [_prediction(sheet, names, model) for sheet in sheets], "model_version": model}

    @router.post("/webhook", status_code=201)
    @router.post("/train", status_code=201, include_in_schema=False)
    def webhook(body: Event) -> dict[str, Any]:
        """An annotation was submitted or changed: it becomes answers.

        Events may arrive late or twice. A state older than the last one taken in (since the server started) is passed
        over.
        """
        if body.action not in ANSWERED:
            return {"result": {}, "status": "passed over"}
        about = body.annotation or {}
        number, saved_at = about.get("id"), str(about.get("updated_at") or "")  # ISO dates sort as text
        with one_at_a_time:
            if isinstance(number, int) and saved_at < newest.get(number, ""):
                return {"result": {}, "status": "passed over: a later state of this annotation is here"}
            try:
                returned = _returned(body)
                counts = dict(record(Batch([returned] if returned else [])))
            except UserError as error:
                raise HTTPException(422, str(error)) from None
            if isinstance(number, int):
                newest[number] = saved_at
        return {"result": counts, "status": "ok"}

    @router.get("/versions")
    @router.post("/versions")
    def versions() -> dict[str, list[str]]:
        """The one version there is: the latest model's."""
        return {"versions": [version()]}

    @router.get("/is_training", include_in_schema=False)
    def is_training() -> dict[str, bool]:
        """Training is the trainer's business."""
        return {"is_training": False}

    @router.post("/job_status", include_in_schema=False)
    def job_status(response: Response) -> dict[str, str]:
        """There are no jobs of Label Studio's."""
        response.status_code = 410
        return {"error": "rarebox trains by itself"}

    return router


def router_of(offer: ReviewSource) -> APIRouter:
    """The routes for one project."""
    return make_router(offer.sheets_of, offer.classes, offer.version, offer.record)


def _image_of(task: Mapping[str, Any]) -> tuple[str, int | None]:
    """The image of a task; a name that no image has, where the task is about none."""
    try:
        return labelstudio.image_of(task.get("data"), "the task")
    except UserError:
        return "", None


def _prediction(sheet: ReviewTask | None, classes: Sequence[str], version: str) -> labelstudio.Prediction:
    if sheet is None or not sheet.queries:
        return {"model_version": version, "score": 0.0, "result": []}
    return labelstudio.prediction(sheet, classes, version)


def _returned(body: Event) -> Returned | None:
    """What came back; None for an annotation that was put aside."""
    if body.annotation is None or body.task is None:
        raise UserError("an event about an annotation has 'annotation' and 'task'; let the webhook send its payload")
    if body.annotation.get("was_cancelled"):
        return None
    return labelstudio.from_annotation(body.task, body.annotation, f"task {body.task.get('id')}")


def _check_classes(config: str, classes: Sequence[str]) -> None:
    """400 where the labelling configuration lacks one of our classes: its boxes could not be shown."""
    try:
        there = labelstudio.classes_of(config)
    except UserError as error:
        raise HTTPException(400, str(error)) from None
    missing = [name for name in classes if name not in there]
    if missing:
        raise HTTPException(
            400,
            f"the labelling configuration has no rectangle label for {', '.join(missing)}; add it, or take the "
            "config.xml that `rarebox export --queries --format labelstudio` writes",
        )
