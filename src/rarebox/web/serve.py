"""Starts the server: one per project, on a free port, with a link to open."""

import asyncio
import getpass
import logging
import os
import signal
import socket
import sys
import time
import webbrowser
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Timer, current_thread, main_thread
from threading import enumerate as enumerate_threads
from types import FrameType

import uvicorn

from rarebox.core.files import hold, real
from rarebox.core.progress import Progress
from rarebox.errors import Busy, UserError
from rarebox.labels.leases import clean_name
from rarebox.loop import cluster
from rarebox.project.project import Project
from rarebox.web.app import make_app
from rarebox.web.connections import config_of
from rarebox.web.security import Authenticator, Visitor, is_loopback, read_name, read_secret
from rarebox.web.service import AnnotationService

DEFAULT_PORT = 8765

LOG_SECONDS = 5
"""Seconds between reports on long work at the start."""


def serve(
    root: Path,
    host: str = "127.0.0.1",
    port: int | None = None,
    people: Sequence[str] = (),
    *,
    browser: bool = True,
    also: Sequence[str] = (),
    label_studio: bool = False,
    engine: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serve a project until Ctrl-C or a signal to end.

    ``people`` get a personal link each; without them, ``say`` reports one link that works once. ``engine`` is where the
    pool is scored, if not in the trainer: a name, and perhaps an address. Raises UserError if the project cannot be
    served.
    """
    name, address = (*engine, None, None)[:2]
    cluster.check(name or "local", address)
    names = list(dict.fromkeys(clean_name(name, "person") for name in people))
    if not is_loopback(host) and not names:
        raise UserError(
            f"--host {host} admits other machines. Name the annotators: --people anna,ben gives each of them a link. "
            "Anyone with a link can see the photos and answer. On an untrusted network put the server behind HTTPS (a "
            "reverse proxy, or an SSH tunnel to 127.0.0.1)."
        )
    ending = Ending()
    project = Project(root)
    cluster.check(name or "local", address, project.settings)
    try:
        with ending.heard(), hold(root / "serve.lock"):
            _serve(project, host, port, names, browser, also, label_studio, engine, say, ending)
    except Busy:
        raise UserError(f"{root} is already being served. Open its page, or stop that server first.") from None
    finally:
        project.store.close()


def _serve(
    project: Project,
    host: str,
    port: int | None,
    names: Sequence[str],
    browser: bool,
    also: Sequence[str],
    label_studio: bool,
    engine: Sequence[str],
    say: Callable[[str], None],
    ending: "Ending",
) -> None:
    root = project.folder.root
    listening = _listen(host, port, root / "port")
    port = listening.getsockname()[1]
    name = read_name(root / "name", root / "secret", project.store.session(first=True))
    authenticator = Authenticator(read_secret(root / "secret"), name)
    if lost := project.restore_classes():
        say(
            f"The labels were restored from a backup. Classes that the models know were added again: {', '.join(lost)}."
        )
    found = project.find_moved_images(_sometimes(say))
    if found.moved:
        one = len(found.moved) == 1
        say(
            "1 photo has moved and was found again. It keeps its labels."
            if one
            else f"{len(found.moved)} photos have moved and were found again. They keep their labels."
        )
    for warning in found.warnings():
        say(warning)
    new = project.add_new_images()
    service = AnnotationService(project, engine=engine)
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    base = f"http://{shown}:{port}/"
    images = len(service.memory.images)
    more = f", {new} of them new" if new else ""
    say(f"{real(root).name}: {images} photos{more}. Stop with Ctrl-C; no answer is lost.")
    if gone := sum(not service.memory.photos.is_there(image) for image in service.memory.images.values()):
        say(
            f"{gone} of them are missing and cannot be shown. Put them back into {project.settings.data}, or, if the "
            f"folder has moved, run: rarebox relocate {root} FOLDER"
        )
    for name in names:
        say(f"{name}: {base}?token={authenticator.personal_link(name)}")
    if names:
        say("Each link is valid for that person on any device. To revoke all links, remove the file 'secret'.")
    else:
        link = f"{base}?token={authenticator.one_time_link(Visitor(_user()))}"
        say(f"Open this link (it works once; the page can make more): {link}")
        if browser:
            Timer(1.0, lambda: webbrowser.open(link)).start()
    if label_studio:
        address = f"{base}ml/{authenticator.key}"
        say(f"In Label Studio, Settings, Model, connect: {address} (and add the same with /webhook as a webhook)")
    config = config_of(make_app(service, authenticator, host, [shown, *also]))
    logging.getLogger("uvicorn.error").addFilter(_is_worth_an_error)
    ending.server = uvicorn.Server(config)
    try:
        ending.server.run(sockets=[listening])
    finally:
        service.close()


def _sometimes(say: Callable[[str], None]) -> Progress:
    """A progress function that reports every LOG_SECONDS."""
    last = time.monotonic()

    def progress(stage: str, done: int, of: int, note: str) -> None:
        nonlocal last
        if time.monotonic() - last > LOG_SECONDS:
            last = time.monotonic()
            say(f"{stage}: {done} of {of} {note}")

    return progress


def _is_worth_an_error(record: logging.LogRecord) -> bool:
    """Whether a log record is worth showing: not an event stream or reply that the end of the server cut off."""
    cut = record.exc_info is not None and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not cut and "without completing response" not in record.getMessage()


def leave(seconds: float = 3.0) -> None:
    """End the process after at most ``seconds``, even if a thread still works on a reply that nobody waits for. The
    store must be closed."""
    until = time.monotonic() + seconds
    others = [thread for thread in enumerate_threads() if thread is not current_thread() and not thread.daemon]
    for thread in others:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        sys.stdout.flush()
        os._exit(0)


class Ending:
    """Handles the signals to end: before the server runs they stop its start; later they stop the server, once.

    The store is closed in every case, so that its file is complete. While it is being closed, signals do nothing.
    """

    SIGNALS = tuple(
        getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)
    )

    def __init__(self) -> None:
        self.server: uvicorn.Server | None = None

    @contextmanager
    def heard(self) -> Generator[None]:
        """Handle the signals, except those that the parent process set to be ignored (nohup)."""
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.getsignal(number) or signal.SIG_DFL for number in self.SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._hear)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.server is None:
            raise KeyboardInterrupt
        if not self.server.should_exit:  # uvicorn restores our handlers when it ends
            self.server.handle_exit(number, frame)


def _user() -> str | None:
    """The name of the system's user; None if it has none that can be used."""
    try:
        return clean_name(getpass.getuser(), "person")
    except (OSError, KeyError, ImportError, UserError):
        return None


def _listen(host: str, port: int | None, last: Path) -> socket.socket:
    """A listening socket: on the wanted port, or on the last one (where open pages are), or on the first free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    before = [int(text)] if last.exists() and (text := last.read_text(errors="replace").strip()).isdecimal() else []
    for candidate in (port,) if port is not None else (*before, *range(DEFAULT_PORT, DEFAULT_PORT + 20), 0):
        # Only for IPPROTO_TCP does asyncio set TCP_NODELAY. Without it a reply would wait for 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, candidate))
            listening.listen(200)
            last.write_text(str(listening.getsockname()[1]))
            return listening
        except (OSError, OverflowError) as error:
            listening.close()
            if port is not None:
                raise UserError(
                    f"The server cannot listen on {host}, port {port}: {error}. Choose another port with --port."
                ) from None
    raise UserError(f"The server cannot listen on {host}. Give an address of this machine.")
