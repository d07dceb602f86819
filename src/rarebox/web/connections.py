"""Connections to the server: so many at once, and none that keeps its place without asking for anything."""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

BACKLOG = 128
"""Connections that the system keeps for us while we are busy."""

MOST_HANDLES = 2**16
"""Open files that are asked for at most, where the system would give more."""

SELDOM_SECONDS = 10.0
"""The same line is logged once in so many seconds."""


@dataclass(frozen=True)
class Limits:
    """``connections`` that are open at once, at most half of what the system lets us open. Seconds: ``request`` for a
    whole request to come in, counted from the connection or from its first byte; ``idle`` between two requests;
    ``reply`` for which somebody may leave a reply unread."""

    connections: int = 1000
    request: float = 30.0
    idle: float = 65.0
    reply: float = 60.0


def config_of(app: FastAPI, limits: Limits | None = None) -> uvicorn.Config:
    """How uvicorn serves the application. It has no time-outs of its own before a request is in."""
    limits = limits or Limits()

    class Connection(BoundedConnection):
        most = min(limits.connections, raise_handles() // 2)
        seconds = limits

    for name in ("asyncio", "uvicorn.error"):
        logging.getLogger(name).addFilter(Seldom())
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
    """A connection that is closed when a request or the reading of a reply takes too long, or when others want in."""

    most: ClassVar[int]
    seconds: ClassVar[Limits]

    _since = 0.0  # when we began to wait for a request
    _coming: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a whole request is in and its reply is not yet out."""
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
        else one whose reply is not being read. If all are being answered, the newcomer is closed."""
        there = [
            one for one in self.connections if isinstance(one, BoundedConnection) and not one.transport.is_closing()
        ]
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
    """Have the system let us open as many files as it will; how many that is."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST_HANDLES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_HANDLES if hard == resource.RLIM_INFINITY else min(hard, MOST_HANDLES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_HANDLES if soft == resource.RLIM_INFINITY else soft


class Seldom(logging.Filter):
    """Passes the same line once in a while: what strangers send, or a system without free handles, floods no log."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it was not logged a moment ago."""
        line, now = f"{record.getMessage()} {record.exc_info and record.exc_info[1]!r}", time.monotonic()
        if now - self._last.get(line, -SELDOM_SECONDS) < SELDOM_SECONDS:
            return False
        if len(self._last) > 1000:
            self._last.clear()
        self._last[line] = now
        return True
