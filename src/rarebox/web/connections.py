"""Limits on connections to the server: how many are open at once, and how long one may stay idle."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

BACKLOG = 128
"""Connections that the system queues while the server is busy."""

MOST_HANDLES = 2**16
"""The most open files to ask the system for."""

REPEAT_SECONDS = 10.0
"""The same line is logged at most once in this time."""


@dataclass(frozen=True)
class Limits:
    """``connections``: open at once, and at most half of the files that the system lets us open. In seconds:
    ``request`` for a whole request to arrive, counted from the connection or from its first byte; ``idle`` between two
    requests; ``reply`` that a client may leave a reply unread."""

    connections: int = 1000
    request: float = 30.0
    idle: float = 65.0
    reply: float = 60.0


def config_of(app: FastAPI, limits: Limits | None = None) -> uvicorn.Config:
    """How uvicorn serves the application. Uvicorn itself has no time-out for a request to arrive."""
    limits = limits or Limits()

    class Connection(BoundedConnection):
        most = min(limits.connections, raise_handles() // 2)
        seconds = limits

    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(RateLimited())
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        timeout_keep_alive=int(limits.idle),
        lifespan="off",
    )


class BoundedConnection(H11Protocol):
    """A connection that is closed when a request or the reading of a reply takes too long, or to admit another one."""

    most: ClassVar[int]
    seconds: ClassVar[Limits]

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # None before the first request
    _since: float = 0.0  # when the wait for a request began
    _coming: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a whole request has arrived and its reply is not complete."""
        return self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_request()
        if len(self.connections) > self.most:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self._coming is None and not self.answering:
            self._wait_for_request()
        super().data_received(data)
        if self.cycle is not None and not self.cycle.more_body:
            self._coming = _cancelled(self._coming)

    def on_response_complete(self) -> None:
        self._since = time.monotonic()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.seconds.reply, self.transport.abort)

    def resume_writing(self) -> None:
        self._unread = _cancelled(self._unread)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._coming, self._unread = _cancelled(self._coming), _cancelled(self._unread)
        super().connection_lost(exc)

    def _wait_for_request(self) -> None:
        self._since = time.monotonic()
        self._coming = self.loop.call_later(self.seconds.request, self.transport.abort)

    def _make_room(self) -> None:
        """Close the connection that has waited longest: one that never sent a request, else one between two requests,
        else one whose reply is not being read. If all are being answered, close the new one."""
        every: set[object] = {*self.connections}  # pyright: ignore[reportUnknownMemberType]
        there = [one for one in every if isinstance(one, BoundedConnection) and not one.transport.is_closing()]
        if len(there) > self.most:
            waiting = [one for one in there if one is not self and (one._unread or not one.answering)]
            longest = min(
                waiting, key=lambda one: (one._unread is not None, one.cycle is not None, one._since), default=self
            )
            longest.transport.abort()


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


def raise_handles() -> int:
    """Raise the limit on open files as far as the system allows, and return it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_HANDLES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_HANDLES if hard == resource.RLIM_INFINITY else min(hard, MOST_HANDLES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_HANDLES if soft == resource.RLIM_INFINITY else soft


class RateLimited(logging.Filter):
    """Passes the same line at most once per REPEAT_SECONDS, so that bad requests do not flood the log."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line was not logged recently."""
        line, now = f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}", time.monotonic()
        if now - self._last.get(line, -REPEAT_SECONDS) < REPEAT_SECONDS:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[line] = now
        return True
