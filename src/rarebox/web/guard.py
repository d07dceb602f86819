"""Checks on every request before it reaches a route, and how requests are refused."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence

from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rarebox.web.security import HEADERS, LARGEST_BODY, good_host, good_origin

TOO_LARGE = f"The request is too large. Send at most {LARGEST_BODY:,} bytes."


def refusal_of(
    status: int, sentence: str, headers: Mapping[str, str] | None = None, keys: Sequence[str] = ()
) -> JSONResponse:
    """A JSON reply with a sentence for the page, cut to 400 characters because it may quote the request."""
    return JSONResponse({"error": sentence[:400]} | ({"keys": keys} if keys else {}), status, headers)


class Guard:
    """Middleware that refuses a wrong Host, changes from another site's page and bodies that are too large, and that
    adds the security headers to every response."""

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
            refusal = (421, "This server does not have that name. Open the link that `rarebox serve` printed.")
        elif request.method not in ("GET", "HEAD"):
            length = header("content-length", "0")
            if not good_origin(header("origin"), header("sec-fetch-site"), header("host", "")):
                refusal = (403, "A page of another site may not do this.")
            elif not re.fullmatch("[0-9]{1,9}", length) or int(length) > LARGEST_BODY:
                refusal = (413, TOO_LARGE)
            elif header("content-type", "").partition(";")[0].strip().lower() != "application/json":
                refusal = (415, "The content type must be application/json.")
        if refusal:
            await refusal_of(*refusal, HEADERS)(scope, receive, send)
            return
        await self.app(scope, _bounded(receive), _with_headers(send))


class TooLarge(HTTPException):
    """A body of unknown length that grew too large."""


def _bounded(receive: Receive) -> Receive:
    """Receive a body; raises TooLarge once it exceeds its bound."""
    seen = 0

    async def bounded() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > LARGEST_BODY:
            raise TooLarge(413, TOO_LARGE)
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
