"""Starting the server: one per project, on a free port, with a link to open."""

import getpass
import logging
import socket
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer

import uvicorn

from rarebox import cluster
from rarebox.data.remote import is_url
from rarebox.errors import Busy, UserError
from rarebox.people import clean_name
from rarebox.project import Project
from rarebox.run_folder import hold
from rarebox.web.app import make_app
from rarebox.web.desk import Desk
from rarebox.web.security import Door, Visitor, is_loopback, read_secret

DEFAULT_PORT = 8765


def serve(
    root: Path, host: str = "127.0.0.1", port: int | None = None, people: Sequence[str] = (), *, browser: bool = True,
    also: Sequence[str] = (), label_studio: bool = False, engine: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve a project until Ctrl-C. ``people`` get a link each; without them, one link that works once. ``engine``:
    where the pool is scored, if not in the trainer: a name, and perhaps an address."""
    name, address = (*engine, None, None)[:2]
    cluster.check(name or "local", address)
    names = list(dict.fromkeys(clean_name(name, "person") for name in people))
    if not is_loopback(host) and not names:
        raise UserError(
            f"--host {host} lets other machines in; say who may come: --people anna,ben gives each of them a link of "
            "their own. Whoever has a link can see the photos and answer; on a network that you do not trust put the "
            "server behind HTTPS (a reverse proxy, or an SSH tunnel to 127.0.0.1)"
        )
    project = Project(root)
    cluster.check(name or "local", address, project.settings)
    try:
        with hold(root / "serve.lock"):
            _serve(project, host, port, names, browser, also, label_studio, engine, say)
    except Busy:
        raise UserError(f"{root} is being served already; open its page, or stop that server first") from None
    finally:
        project.store.close()


def _serve(
    project: Project, host: str, port: int | None, names: Sequence[str], browser: bool, also: Sequence[str],
    label_studio: bool, engine: Sequence[str], say: Callable[[str], None],
) -> None:  # fmt: skip
    root = project.folder.root
    listening = _listen(host, port, root / "port")
    port = listening.getsockname()[1]
    door = Door(read_secret(root / "secret"))
    new = project.add_new_images()
    desk = Desk(project, engine=engine)
    shown = f"[{host}]" if ":" in host else host
    if host in ("0.0.0.0", "::"):
        shown = socket.gethostname()
    base = f"http://{shown}:{port}/"
    images = len(desk.images)
    more = f", {new} of them new" if new else ""
    say(f"{root.resolve().name}: {images} photos{more}. Stop with Ctrl-C; nothing that was answered is lost.")
    if gone := sum(not is_url(image.path) and not Path(image.path).exists() for image in desk.images.values()):
        say(f"{gone} of them are not where they were ({project.settings.data}); put them back, or they cannot be shown")
    for name in names:
        say(f"{name}: {base}?token={door.personal_link(name)}")
    if names:
        say("each link is good for that person on any device; to take all links back, remove the file 'secret'")
    else:
        link = f"{base}?token={door.one_time_link(Visitor(_user()))}"
        say(f"open this link (it works once; the page can make more): {link}")
        if browser:
            Timer(1.0, lambda: webbrowser.open(link)).start()
    if label_studio:
        say(f"Label Studio, Settings, Model, connect: {base}ml/{door.key} (and the same with /webhook as a webhook)")
    config = uvicorn.Config(
        make_app(desk, door, host, [shown, *also]), log_level="warning", access_log=False, timeout_graceful_shutdown=2,
        server_header=False, timeout_keep_alive=65,
    )  # fmt: skip
    # An open page's stream of events is cut at the end; uvicorn thinks that worth an error.
    logging.getLogger("uvicorn.error").addFilter(
        lambda record: "without completing response" not in record.getMessage()
    )
    try:
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        desk.close()


def _user() -> str | None:
    """What the system calls the person at the keyboard."""
    try:
        return clean_name(getpass.getuser(), "person")
    except (OSError, KeyError, ImportError, UserError):
        return None


def _listen(host: str, port: int | None, last: Path) -> socket.socket:
    """A listening socket: on the wanted port, or on the last one (open pages are there), or on the first free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    before = [int(text)] if last.exists() and (text := last.read_text(errors="replace").strip()).isdecimal() else []
    for candidate in (port,) if port is not None else (*before, *range(DEFAULT_PORT, DEFAULT_PORT + 20), 0):
        # Named as TCP: only then asyncio sends small packets at once (TCP_NODELAY); a reply would wait for 40 ms.
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
                raise UserError(f"cannot listen on {host}, port {port}: {error}; name another one with --port") from None  # fmt: skip  # noqa: E501
    raise UserError(f"cannot listen on {host}; name an address of this machine")
