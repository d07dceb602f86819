"""The HTTP routes of ``rarebox serve``, and who may use them. Docs: ``docs/serve.md``."""

import asyncio
import hmac
import io
import json
import tempfile
import zipfile
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import numpy as np
from anyio import CapacityLimiter, to_thread
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import JsonValue
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.exceptions import HTTPException as StarletteError

from rarebox.core.files import real
from rarebox.data.images import UnreadableImage
from rarebox.data.remote import is_url
from rarebox.errors import Unavailable, UserError
from rarebox.labels.leases import Submission, clean_name
from rarebox.project.exchange.source import ReviewSource
from rarebox.types import ImageRecord, Verdict
from rarebox.web import replies
from rarebox.web.guard import Guard, refusal_of
from rarebox.web.ml_backend import router_of
from rarebox.web.pictures import LARGEST_SIDE, picture_of
from rarebox.web.requests import (
    LONGEST_KEY,
    Answers,
    ClassChange,
    Grid,
    Identifier,
    Item,
    Leave,
    Me,
    Next,
    Release,
    Search,
)
from rarebox.web.security import Authenticator, Visitor, is_loopback
from rarebox.web.service import AnnotationService, Exchange

STATIC = Path(__file__).parent / "static"

MOST_FAR = 8
"""Threads that read pictures from other hosts for the page."""

NEWS_SECONDS = 0.25
"""How often the server checks whether an open page needs an event."""

MOST_STREAMS = 400
"""Pages that receive events at the same time. Further pages must poll."""

SIGN_IN = (
    "Sign in first. Open the link that `rarebox serve` printed. It works once. For another link restart the server, or "
    "ask a signed-in annotator to press Invite."
)

OTHER_PROJECT = (
    "This server now serves another project. The page keeps its answers until its own project is back. Run "
    "`rarebox serve` for that project on this port."
)

T = TypeVar("T")


async def visitor(request: Request) -> Visitor:
    """The visitor whose cookie this is. 421 if the page belongs to another project that this port served before; 401
    without a valid cookie."""
    authenticator: Authenticator = request.app.state.authenticator
    if request.headers.get("rarebox-project", authenticator.project) != authenticator.project:
        raise HTTPException(421, OTHER_PROJECT)
    found = authenticator.recognise(request.cookies.get(authenticator.cookie))
    if found is None:
        raise HTTPException(401, SIGN_IN)
    return found


Anybody = Annotated[Visitor, Depends(visitor)]


async def person(found: Anybody) -> str:
    """The visitor's name. 403 if the visitor has none yet."""
    if found.name is None:
        raise HTTPException(403, "Enter your name first.")
    return found.name


Somebody = Annotated[str, Depends(person)]


def program(request: Request, key: str) -> None:
    """Admit another program (Label Studio) whose address contains the key. 404 otherwise."""
    authenticator: Authenticator = request.app.state.authenticator
    if not hmac.compare_digest(key.encode(), authenticator.key.encode()):
        raise HTTPException(404, "There is nothing at this address.")


def make_app(
    service: AnnotationService, authenticator: Authenticator, host: str = "127.0.0.1", also: Sequence[str] = ()
) -> FastAPI:
    """The application for one project. ``host`` is the address it listens on; ``also`` are further names of it."""
    app = FastAPI(title="rarebox", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.authenticator = authenticator
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    _explain_errors(app)
    # No response models: the replies are typed already, and validating them again would take time. The routes that an
    # annotator waits for return a response of their own, so FastAPI does not walk through their replies either.
    get, post = partial(app.get, response_model=None), partial(app.post, response_model=None)

    def sign_in(response: Response, found: Visitor) -> None:
        year = 365 * 24 * 3600
        response.set_cookie(
            authenticator.cookie, authenticator.cookie_of(found), max_age=year, httponly=True, samesite="strict"
        )

    def state_of(found: Visitor) -> replies.State:
        state = service.presenter.state(found.name, found.fixed)
        return {"id": authenticator.project, "names": found.names, **state}

    listening: set[Request] = set()
    far, downloads = CapacityLimiter(MOST_FAR), CapacityLimiter(1)
    lists, searches = CapacityLimiter(1), CapacityLimiter(1)

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

    @get("/api/openapi.json", dependencies=[Depends(visitor)], include_in_schema=False)
    def description() -> dict[str, object]:
        return app.openapi()

    @get("/api/state")
    def state(found: Anybody) -> Response:
        """The state of the project, as the visitor sees it."""
        return JSONResponse(state_of(found))

    @get("/api/events")
    async def events(request: Request, found: Anybody) -> EventSourceResponse:
        """Server-sent events: ``state`` after each change, ``queries`` when there are new questions."""

        async def news() -> AsyncIterator[ServerSentEvent]:
            version, questions = -1, service.memory.questions
            listening.add(request)
            try:
                while not await request.is_disconnected():
                    if service.memory.questions != questions:
                        questions = service.memory.questions
                        yield ServerSentEvent(data="{}", event="queries")
                    if service.memory.version != version:
                        version = service.memory.version
                        yield ServerSentEvent(data=json.dumps(state_of(found)), event="state")
                    await asyncio.sleep(NEWS_SECONDS)
            finally:
                listening.discard(request)

        if len(listening) >= MOST_STREAMS:
            raise HTTPException(503, "Too many pages are open. Close some. Answers are still saved.")
        return EventSourceResponse(news(), ping=20)

    # Questions and answers

    def questions(got: Exchange, found: Visitor) -> replies.Questions:
        queries = [service.presenter.query(query) for query in got.queries]
        label, boxes = got.grid or (0, 0)
        grid: replies.Grid | None = {"label": label, "boxes": boxes} if boxes else None
        return {"queries": queries, "grid": grid, "state": state_of(found), "outdated": got.outdated}

    @post("/api/next")
    async def following(body: Next, found: Anybody, by: Somebody) -> Response:
        """Questions for one tab of a browser."""
        got = await _done(
            service.answer(found.holder(body.client), by, [], body.want, found.former, body.session or "")
        )
        return JSONResponse(questions(got, found))

    @post("/api/grid")
    async def grid(body: Grid, found: Anybody, by: Somebody) -> Response:
        """Questions about boxes of one class, to be checked at once; none if there are too few."""
        got = await _done(service.grid(found.holder(body.client), by, found.former, body.session or ""))
        return JSONResponse(questions(got, found))

    @post("/api/release", status_code=204, response_class=Response)
    async def release(body: Release, found: Anybody, _: Somebody) -> None:
        """Give back questions of a tab, which stays open."""
        await _done(service.release(found.holder(body.client), body.queries))

    @post("/api/leave", status_code=204, response_class=Response)
    async def leave(body: Leave, found: Anybody, _: Somebody) -> None:
        """End the leases of a tab that is being closed or reloaded."""
        await _done(service.leave(found.holder(body.client)))

    @post("/api/answers")
    async def answer(body: Answers, found: Anybody, by: Somebody) -> Response:
        """Save answers and return the next questions. The answers are on the disk when this returns."""
        given = [_submission(item) for item in body.answers]
        got = await _done(
            service.answer(found.holder(body.client), by, given, body.want, found.former, body.session or "")
        )
        results = [service.presenter.outcome(outcome) for outcome in got.outcomes]
        reply: replies.Saved = {"results": results, **questions(got, found)}
        return JSONResponse(reply)

    @get("/api/answers")
    async def answers(
        found: Anybody,
        limit: Annotated[int, Query(ge=1, le=200)] = 10,
        before: Identifier | None = None,
        by: Annotated[str | None, Query(max_length=200)] = None,
        label: Identifier | None = None,
        verdict: Verdict | None = None,
    ) -> replies.Answers:
        """Answers that count, newest first. Those who ask at the same time wait without a thread."""
        names = found.names if by == "me" else [by] if by else None
        chosen = partial(service.presenter.answers, limit, before, names, label, verdict and verdict.value)
        return {"answers": await to_thread.run_sync(chosen, limiter=lists)}

    @get("/api/disagreements", dependencies=[Depends(visitor)])
    def disagreements() -> replies.Disagreements:
        """Questions that two people answered differently."""
        return {"disagreements": service.presenter.disagreements()}

    @post("/api/search")
    async def search(body: Search, found: Anybody, by: Somebody) -> replies.State:
        """Look for boxes like those of a class, or like one box: they come first for this person."""
        looking = partial(service.search, by, body.label, body.image, body.box or ())
        await _done(await to_thread.run_sync(looking, limiter=searches))
        return state_of(found)

    @post("/api/search/stop")
    async def stop_search(found: Anybody, by: Somebody) -> replies.State:
        """Stop looking for such boxes."""
        await _done(service.stop_search(by))
        return state_of(found)

    # Pictures

    def record(image_id: int) -> ImageRecord:
        if image_id not in service.memory.images:
            raise HTTPException(404, "There is no such image.")
        return service.memory.images[image_id]

    @get("/api/image/{image_id}", dependencies=[Depends(visitor)])
    def about_image(image_id: Identifier) -> replies.LabelledImage:
        """One image with its boxes."""
        return service.presenter.image(record(image_id).id)

    @get("/api/images/{image_id}", dependencies=[Depends(visitor)], response_class=Response)
    async def picture(
        image_id: Identifier, size: Annotated[int | None, Query(ge=16, le=LARGEST_SIDE)] = None
    ) -> Response:
        """The picture itself, upright, for a browser.

        Reading from another host may take minutes, so such reads have separate threads and delay no other request.
        """
        found = record(image_id)
        try:
            picture = await to_thread.run_sync(picture_of, found, size, limiter=far if is_url(found.path) else None)
            if not service.memory.photos.is_there(found):
                raise UnreadableImage(found.path, "another photo is now at its path. Restart the server")
            return picture
        except UnreadableImage as error:
            raise HTTPException(404, f"This picture cannot be shown: {error.reason}.") from error

    # The rest

    @post("/api/classes")
    async def classes(body: ClassChange, found: Anybody, by: Somebody) -> replies.State:
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

    @post("/api/me")
    def me(body: Me, found: Anybody) -> Response:
        """Set or change the visitor's name. Leases follow."""
        if found.fixed:
            raise HTTPException(403, f"This link is for {found.name}. Ask for your own link.")
        named = found.renamed(clean_name(body.name, "person"))
        response = JSONResponse(state_of(named))
        sign_in(response, named)
        return response

    @post("/api/train")
    def train(found: Anybody, by: Somebody) -> replies.State:
        """Train now, before the budget is spent."""
        service.train()
        return state_of(found)

    @post("/api/retry")
    def retry(found: Anybody, by: Somebody) -> replies.State:
        """Continue after the trainer failed."""
        service.retry()
        return state_of(found)

    @post("/api/invite")
    def invite(request: Request, found: Anybody, _: Somebody) -> replies.Invitation:
        """A one-time link for another browser. It is for anybody or, if the visitor's link is personal, for the
        visitor."""
        address, token = request.base_url, authenticator.one_time_link(found if found.fixed else Visitor())
        local = is_loopback(address.hostname or "")
        if local and also and not is_loopback(host):  # the visitor's browser runs on the server's machine
            address, local = address.replace(hostname=also[0]), False
        return {"url": f"{address}?token={token}", "local": local}

    @get("/api/export", dependencies=[Depends(visitor)], response_class=Response)
    async def export(format: Literal["coco", "voc", "yolo", "labelstudio", "cvat"] = "coco") -> Response:
        """All labels as a zip file. Those who ask at the same time wait without a thread."""
        name = f"{real(service.project.folder.root).name}-{format}.zip"
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)
        headers = {"Content-Disposition": f'attachment; filename="{safe}"'}

        def zipped() -> bytes:
            content = _zipped(service.project.folder.root, format)
            service.memory.see_photos()
            return content

        content = await to_thread.run_sync(zipped, limiter=downloads)
        return Response(content, media_type="application/zip", headers=headers)

    source = ReviewSource(service.project, do=service.do)
    app.include_router(router_of(source), prefix="/ml/{key}", dependencies=[Depends(program)])
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
        item.session or "",
    )


def _zipped(root: Path, format: str) -> bytes:
    """The labels of a project as files in a zip, without the images."""
    from rarebox.data.export import export
    from rarebox.loop.run_folder import open_store
    from rarebox.project.collect import collect

    damage: list[str] = []
    images, classes, annotations = collect(root, damage)
    with open_store(root) as store:
        project = store.session()
    if format == "yolo" and not any(one.complete for one in annotations):
        raise UserError("No image is fully labelled yet, and YOLO files hold only such images. Choose COCO or VOC.")
    content = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        to = Path(folder) / "labels"
        export(to, format, classes, images, annotations, complete_only=format == "yolo", photos=False, project=project)
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in sorted(to.rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(to))
            if damage:
                archive.writestr("damaged.txt", "".join(f"{line}\n" for line in damage))
    return content.getvalue()


def _explain_errors(app: FastAPI) -> None:
    """Reply to every refused request with ``{"error": "a sentence"}``; if one answer is at fault, with its key in
    ``"keys"``."""

    @app.exception_handler(UserError)
    def of_the_user(_: Request, error: Exception) -> JSONResponse:
        return refusal_of(503 if isinstance(error, Unavailable) else 400, str(error))

    @app.exception_handler(RequestValidationError)
    def of_the_request(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return refusal_of(422, f"{where}: {first['msg']}", keys=_key_of(first["loc"], error.body))

    @app.exception_handler(StarletteError)
    def of_http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, StarletteError)
        return refusal_of(error.status_code, str(error.detail), error.headers)


def _key_of(where: Sequence[str | int], body: JsonValue) -> list[str]:
    """The key of the answer at fault. Without it the page keeps the answer and tries again."""
    match where[:3], body:
        case ["body", "answers", int(place)], {"answers": list(answers)}:
            answer = answers[place]
        case _:
            return []
    key = answer.get("key") if isinstance(answer, dict) else None
    return [key] if isinstance(key, str) and len(key) <= LONGEST_KEY and key.isascii() else []
