"""The HTTP side of ``rarebox serve``: routes, what they take, and who may use them. Docs: ``docs/serve.md``."""

import asyncio
import hmac
import io
import json
import re
import tempfile
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from PIL import ExifTags, Image
from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException as StarletteError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rarebox.core.files import real
from rarebox.data.images import UnreadableImage, content_of, opened, read_picture
from rarebox.data.remote import is_url
from rarebox.errors import Unavailable, UserError
from rarebox.labels.leases import Submission, clean_name
from rarebox.project.exchange import ReviewSource
from rarebox.types import ImageRecord, Verdict
from rarebox.web.ml_backend import router_of
from rarebox.web.security import HEADERS, LARGEST_BODY, Authenticator, Visitor, good_host, good_origin, is_loopback
from rarebox.web.service import AnnotationService

STATIC = Path(__file__).parent / "static"

LARGEST_SIDE = 4096
"""Pixels of a picture's longer side that the page is sent at most."""

MOST_FAR = 8
"""Threads that read pictures from other hosts for the page."""

LOOK_SECONDS = 0.25
"""How often an open page is looked after for news."""

MOST_STREAMS = 400
"""Pages that are told the news at once; others have to ask."""

MOST_ANSWERS, MOST_BOXES = 200, 2000
"""Answers of one request, and boxes of one answer."""

SIGN_IN = (
    "sign in first: open the link that `rarebox serve` printed. It works once; start it again for a new one, or let "
    "somebody who is in press Invite"
)

OTHER_PROJECT = (
    "another project is served here now; this page keeps its answers until its own project is back: run "
    "`rarebox serve` for that one, on this port"
)

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Box = Annotated[tuple[Coordinate, Coordinate, Coordinate, Coordinate], FailFast()]
Identifier = Annotated[int, Field(ge=0, lt=2**31)]
LONGEST_KEY = 64
Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY, pattern="^[!-~]+$")]
T = TypeVar("T")


class Body(BaseModel):
    """What a request may hold, and nothing else. The first thing wrong ends the looking: a body may hold thousands."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _nothing_else(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name in value:
                if name not in cls.model_fields:
                    raise ValueError(f"there is no field {str(name)[:40]!r}")
        return value


class Item(Body):
    """One answer."""

    key: Key
    milliseconds: int = Field(default=0, ge=0, le=10**9)
    query: Identifier | None = None
    image: Identifier | None = None
    verdict: Literal["object", "not_an_object", "cannot_tell", "withdrawn"]
    boxes: Annotated[list[Box], FailFast()] = Field(default=[], max_length=MOST_BOXES)
    labels: Annotated[list[Identifier], FailFast()] = Field(default=[], max_length=MOST_BOXES)
    after: Identifier | None = None
    complete: bool = False

    @model_validator(mode="after")
    def _makes_sense(self) -> "Item":
        if (self.query is None) == (self.image is None):
            raise ValueError("an answer is about either a query or an image")
        if len(self.boxes) != len(self.labels):
            raise ValueError("every box needs one label")
        return self


class Leave(Body):
    """Which tab."""

    client: Key


class Next(Leave):
    """Asking for questions."""

    want: int = Field(default=3, ge=0, le=10)


class Answers(Next):
    """Answers, and asking for questions."""

    answers: Annotated[list[Item], FailFast()] = Field(max_length=MOST_ANSWERS)


class Rename(Body):
    label: Identifier
    name: str = Field(max_length=200)


class Merge(Body):
    label: Identifier
    into: Identifier


class ClassChange(Body):
    """One of the three."""

    add: str | None = Field(default=None, max_length=200)
    rename: Rename | None = None
    merge: Merge | None = None

    @model_validator(mode="after")
    def _one(self) -> "ClassChange":
        if sum(part is not None for part in (self.add, self.rename, self.merge)) != 1:
            raise ValueError("give one of add, rename and merge")
        return self


class Me(Body):
    name: str = Field(max_length=200)


async def visitor(request: Request) -> Visitor:
    """Whoever has one of our cookies, and means this project: another one may have been served on this port before."""
    authenticator: Authenticator = request.app.state.authenticator
    if request.headers.get("rarebox-project", authenticator.project) != authenticator.project:
        raise HTTPException(421, OTHER_PROJECT)
    found = authenticator.recognise(request.cookies.get(authenticator.cookie))
    if found is None:
        raise HTTPException(401, SIGN_IN)
    return found


Anybody = Annotated[Visitor, Depends(visitor)]


async def person(found: Anybody) -> str:
    """Whoever has said their name."""
    if found.name is None:
        raise HTTPException(403, "say who you are first")
    return found.name


Somebody = Annotated[str, Depends(person)]


def program(request: Request, key: str) -> None:
    """Another program (Label Studio) that has the key in the address it was given."""
    authenticator: Authenticator = request.app.state.authenticator
    if not hmac.compare_digest(key.encode(), authenticator.key.encode()):
        raise HTTPException(404, "there is nothing here")


def make_app(
    service: AnnotationService, authenticator: Authenticator, host: str = "127.0.0.1", also: Sequence[str] = ()
) -> FastAPI:
    """The application for one project. ``host`` is the address listened on, ``also`` further names it goes by."""
    app = FastAPI(title="rarebox", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.authenticator = authenticator
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _explain_errors(app)

    def sign_in(response: Response, found: Visitor) -> None:
        year = 365 * 24 * 3600
        response.set_cookie(
            authenticator.cookie, authenticator.cookie_of(found), max_age=year, httponly=True, samesite="strict"
        )

    def state_of(found: Visitor) -> dict[str, Any]:
        # The page keeps what is not saved yet under this, so that no other project on this port ever gets it.
        return {"id": authenticator.project, **service.state(found.name, found.fixed)}

    listening: set[Request] = set()

    # The page

    @app.get("/", include_in_schema=False)
    def page(request: Request, token: str | None = None) -> Response:
        if token is not None and (found := authenticator.enter(token)):
            response: Response = RedirectResponse("/", status_code=303)
            sign_in(response, found)
            return response
        if token is not None and authenticator.recognise(request.cookies.get(authenticator.cookie)):
            return RedirectResponse("/", status_code=303)
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/api/openapi.json", dependencies=[Depends(visitor)], include_in_schema=False)
    def description() -> dict[str, Any]:
        return app.openapi()

    @app.get("/api/state")
    def state(found: Anybody) -> dict[str, Any]:
        """How things stand."""
        return state_of(found)

    @app.get("/api/events")
    async def events(request: Request, found: Anybody) -> EventSourceResponse:
        """The same, pushed whenever something changes; ``queries`` when a new cycle has questions."""

        async def news() -> AsyncIterator[ServerSentEvent]:
            version, questions = -1, service.questions
            listening.add(request)
            try:
                while not await request.is_disconnected():
                    if service.questions != questions:
                        questions = service.questions
                        yield ServerSentEvent(data="{}", event="queries")
                    if service.version != version:
                        version = service.version
                        yield ServerSentEvent(data=json.dumps(state_of(found)), event="state")
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                listening.discard(request)

        if len(listening) >= MOST_STREAMS:
            raise HTTPException(503, "too many pages are open; close some. Answers are saved all the same")
        return EventSourceResponse(news(), ping=20)

    # Questions and answers

    @app.post("/api/next")
    async def following(body: Next, found: Anybody, by: Somebody) -> dict[str, Any]:
        """Questions for one tab of a browser."""
        _, queries = await _done(service.answer(found.holder(body.client), by, [], body.want))
        return {"queries": [service.query(query) for query in queries], "state": state_of(found)}

    @app.post("/api/leave", status_code=204, response_class=Response)
    async def leave(body: Leave, found: Anybody, _: Somebody) -> None:
        """A tab is being closed, or loaded again: what it was asked may be asked elsewhere."""
        await _done(service.leave(found.holder(body.client)))

    @app.post("/api/answers")
    async def answer(body: Answers, found: Anybody, by: Somebody) -> dict[str, Any]:
        """Answers, durable when this returns; with the questions that come next."""
        said = [_submission(item) for item in body.answers]
        outcomes, queries = await _done(service.answer(found.holder(body.client), by, said, body.want))
        return {
            "results": [service.outcome(outcome) for outcome in outcomes],
            "queries": [service.query(query) for query in queries],
            "state": state_of(found),
        }

    @app.get("/api/answers")
    def answers(
        found: Anybody,
        limit: Annotated[int, Query(ge=1, le=200)] = 10,
        before: Identifier | None = None,
        by: Annotated[str | None, Query(max_length=200)] = None,
        label: Identifier | None = None,
        verdict: Verdict | None = None,
    ) -> dict[str, Any]:
        """Answers that count, newest first."""
        who = found.name if by == "me" else by
        return {"answers": service.answers(limit, before, who, label, verdict and verdict.value)}

    @app.get("/api/disagreements", dependencies=[Depends(visitor)])
    def disagreements() -> dict[str, Any]:
        """Questions that two people answered differently."""
        return {"disagreements": service.disagreements()}

    # Pictures

    def record(image_id: int) -> ImageRecord:
        if image_id not in service.images:
            raise HTTPException(404, "there is no such image")
        return service.images[image_id]

    far = CapacityLimiter(MOST_FAR)

    @app.get("/api/image/{image_id}", dependencies=[Depends(visitor)])
    def about_image(image_id: Identifier) -> dict[str, Any]:
        """One image with its boxes."""
        return service.image(record(image_id).id)

    @app.get("/api/images/{image_id}", dependencies=[Depends(visitor)], response_class=Response)
    async def picture(
        image_id: Identifier, size: Annotated[int | None, Query(ge=16, le=LARGEST_SIDE)] = None
    ) -> Response:
        """The picture itself, upright, for a browser.

        Reading one from another host may take minutes. Such reads have threads of their own, so that a slow host
        delays no other request.
        """
        found = record(image_id)
        try:
            picture = await to_thread.run_sync(_picture, found, size, limiter=far if is_url(found.path) else None)
            if not service.photos.is_there(found):
                raise UnreadableImage(found.path, "another photo has taken its path; restart the server")
            return picture
        except UnreadableImage as error:
            raise HTTPException(404, f"this picture cannot be shown: {error.reason}") from error

    # The rest

    @app.post("/api/classes")
    async def classes(body: ClassChange, found: Anybody, by: Somebody) -> dict[str, Any]:
        """Add, rename or merge a class."""
        people = service.people
        if body.add is not None:
            job: Callable[[], object] = partial(people.add_class, body.add)
        elif body.rename is not None:
            job = partial(people.rename_class, body.rename.label, body.rename.name, by)
        else:
            assert body.merge is not None
            job = partial(people.merge_class, body.merge.label, body.merge.into, by)
        await _done(service.change_classes(job))
        return state_of(found)

    @app.post("/api/me")
    def me(body: Me, found: Anybody) -> Response:
        """Say who you are."""
        if found.fixed:
            raise HTTPException(403, f"this link is {found.name}'s; ask for one of your own")
        named = found.renamed(clean_name(body.name, "person"))
        response = JSONResponse(state_of(named))
        sign_in(response, named)
        return response

    @app.post("/api/train")
    def train(found: Anybody, by: Somebody) -> dict[str, Any]:
        """Train now, whatever is left of the budget."""
        service.train()
        return state_of(found)

    @app.post("/api/retry")
    def retry(found: Anybody, by: Somebody) -> dict[str, Any]:
        """Go on after the trainer failed."""
        service.retry()
        return state_of(found)

    @app.post("/api/invite")
    def invite(request: Request, found: Anybody, _: Somebody) -> dict[str, Any]:
        """A link for another browser, good once: for anybody, or, where names are given out, for the same person.

        ``local``: other machines cannot reach it.
        """
        address, token = request.base_url, authenticator.one_time_link(found if found.fixed else Visitor())
        local = is_loopback(address.hostname or "")
        if local and also and not is_loopback(host):  # who sits at the server's own machine
            address, local = address.replace(hostname=also[0]), False
        return {"url": f"{address}?token={token}", "local": local}

    @app.get("/api/export", dependencies=[Depends(visitor)], response_class=Response)
    def export(format: Literal["coco", "voc", "yolo", "labelstudio", "cvat"] = "coco") -> Response:
        """All labels as a zip file."""
        name = f"{real(service.project.folder.root).name}-{format}.zip"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
        headers = {"Content-Disposition": f'attachment; filename="{safe}"'}
        content = _zipped(service.project.folder.root, format)
        service.see_photos()
        return Response(content, media_type="application/zip", headers=headers)

    offer = ReviewSource(service.project, do=lambda job: service.do(job).result())
    app.include_router(router_of(offer), prefix="/ml/{key}", dependencies=[Depends(program)])
    app.add_middleware(Guard, host=host, also=tuple(also))
    return app


async def _done(future: Future[T]) -> T:
    return await asyncio.wrap_future(future)


def _submission(item: Item) -> Submission:
    boxes, labels = np.array(item.boxes, dtype=np.float32).reshape(-1, 4), np.array(item.labels, dtype=np.int64)
    return Submission(
        item.key,
        Verdict(item.verdict),
        boxes,
        labels,
        item.milliseconds,
        item.query,
        item.image,
        item.after,
        item.complete,
    )


def _picture(record: ImageRecord, size: int | None) -> Response:
    """A file as it is where a browser can show it; otherwise upright, in RGB, not too large, as JPEG."""
    cached = {"Cache-Control": "private, max-age=86400, immutable"}
    side = max(record.width, record.height)
    wanted = min(size or LARGEST_SIDE, side, LARGEST_SIDE)
    with content_of(record.path) as far:
        if wanted == side and (media_type := _plain(record, far)):
            if far is not None:
                return Response(far, media_type=media_type, headers=cached)
            return FileResponse(record.path, media_type=media_type, headers=cached)
        pixels = read_picture(record, wanted, wanted, far).pixels
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=90)
    return Response(content.getvalue(), media_type="image/jpeg", headers=cached)


def _plain(record: ImageRecord, content: bytes | None) -> str | None:
    """The media type of a file that every browser shows as we read it; None for CMYK, transparency, films and such."""
    try:
        with opened(record.path, content) as image:
            if image.mode not in ("RGB", "L") or set(image.size) != {record.width, record.height}:
                return None
            if image.format in ("JPEG", "MPO"):  # many a phone's photo is an MPO, a JPEG with more behind it
                return "image/jpeg"
            # Not every browser turns these kinds. (The method of the base class reads no pixels.)
            turned = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1) != 1
            if turned or image.has_transparency_data or getattr(image, "is_animated", False):
                return None
            return {"PNG": "image/png", "WEBP": "image/webp"}.get(image.format or "")
    except Exception:  # whatever is wrong with it, reading it properly will say so
        return None


def _zipped(root: Path, format: str) -> bytes:
    """The labels of a project as files in a zip, without the images."""
    from rarebox.data.export import export
    from rarebox.project.collect import collect

    damage: list[str] = []
    images, classes, annotations = collect(root, damage)
    if format == "yolo" and not any(one.complete for one in annotations):
        raise UserError("no image is labelled as a whole yet, and YOLO's files can hold no other; choose COCO or VOC")
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "labels"
        export(to, format, classes, images, annotations, complete_only=format == "yolo", photos=False)
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(to.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(to))
            if damage:
                archive.writestr("damaged.txt", "".join(f"{line}\n" for line in damage))
    return content.getvalue()


def _explain_errors(app: FastAPI) -> None:
    """Every refusal is ``{"error": "a sentence"}``; one of a single answer has its key in ``"keys"``."""

    @app.exception_handler(UserError)
    def of_the_user(_: Request, error: Exception) -> JSONResponse:
        return _refusal(503 if isinstance(error, Unavailable) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    def of_the_request(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return _refusal(422, f"{where}: {first['msg']}", keys=_key_of(first["loc"], error.body))

    @app.exception_handler(StarletteError)
    def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteError)
        return _refusal(error.status_code, str(error.detail), error.headers)


def _key_of(where: Sequence[str | int], body: Any) -> list[str]:
    """The key of the answer in which something is wrong. Without it the page keeps the answer and tries again."""
    match where, body:
        case ("body", "answers", int(place), *_), {"answers": list(answers)}:
            key = answers[place].get("key") if isinstance(answers[place], dict) else None
            return [key] if isinstance(key, str) and len(key) <= LONGEST_KEY and key.isascii() else []
    return []


def _refusal(
    status: int, sentence: str, headers: Mapping[str, str] | None = None, keys: Sequence[str] = ()
) -> JSONResponse:
    """What the page shows, shortened where it quotes something endless that came."""
    return JSONResponse({"error": sentence[:400]} | ({"keys": keys} if keys else {}), status, headers)


class Guard:
    """Before anything else: the Host we go by, no foreign page behind a change, no endless body; and headers after."""

    def __init__(self, app: ASGIApp, host: str, also: tuple[str, ...]) -> None:
        self.app, self.host, self.also = app, host, also

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        header = request.headers.get
        refusal = None
        if not good_host(header("host", ""), self.host, self.also):
            refusal = (421, "this server does not go by that name; open the link that `rarebox serve` printed")
        elif request.method not in ("GET", "HEAD"):
            length = header("content-length", "0")
            if not good_origin(header("origin"), header("sec-fetch-site"), header("host", "")):
                refusal = (403, "another site's page may not do this")
            elif not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST_BODY:
                refusal = (413, f"a request may have {LARGEST_BODY:,} bytes at most")
            elif header("content-type", "").partition(";")[0].strip().lower() != "application/json":
                refusal = (415, "only application/json is taken")
        if refusal:
            await _refusal(*refusal, HEADERS)(scope, receive, send)
            return
        await self.app(scope, _bounded(receive), _with_headers(send))


class TooLarge(HTTPException):
    """A body without a stated length that does not end."""


def _bounded(receive: Receive) -> Receive:
    """A body that grows beyond its bound is broken off."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LARGEST_BODY:
            raise TooLarge(413, f"a request may have {LARGEST_BODY:,} bytes at most")
        return message

    return bounded


def _with_headers(send: Send) -> Callable[[Message], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message["headers"]}
            extra = [(n.lower().encode(), v.encode()) for n, v in HEADERS.items() if n.lower().encode() not in there]
            message = {**message, "headers": [*message["headers"], *extra]}
        await send(message)

    return sending
