"""Remote images: listed once and read by URL, from ``http(s)://``, ``s3://`` or ``gs://``.

A source is a folder of a bucket, a web page that links to images (the index that most servers make of a folder), or a
local or remote text file with the URL of an image on each line.

Most addresses come from a list, a COCO file or a redirect, not from the user. So the same rules apply to all of them,
and only this module follows addresses:

- The scheme is one of ``SCHEMES``. Chained addresses (``zip::…``) and local files are refused.
- A host on this machine or in its network is refused, whatever its name. The check applies to the address that the
  connection uses, at every redirect. Hosts that the user has named are exempt: in the address of the images
  (:func:`trust`), or in the environment variable ``RAREBOX_HOSTS``.
- A redirect stays with HTTP, and never leads from ``https://`` to ``http://``.
- The size of a body is limited as the server sends it (compressed ones are refused), and so is the time.
"""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rarebox.core.files import is_own, read_bytes
from rarebox.core.text import decode, lines_of
from rarebox.data.disk import slashes
from rarebox.data.memory_limit import MemoryLimit
from rarebox.data.naming import is_litter
from rarebox.errors import UserError, presentable

T = TypeVar("T")

LIST = ".txt"
"""The suffix of a list of URLs."""

WAITS = (0.2, 1.0, 4.0)
"""Seconds before each further attempt."""

SECONDS = 60
"""The time limit of one attempt, in seconds."""

MOST_BYTES = 64 << 20
"""The most bytes of one file or page."""

MOST_LISTED = 10_000_000
"""The most links of a web page and the pages below it, to images and anything else."""

LISTING_SECONDS = 600
"""The time limit for listing all pages of a web server, in seconds."""

ROOM = MemoryLimit(512 << 20)
"""The memory for content of remote files, in bytes, for all threads together."""

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""Scheme -> the extra of rarebox that installs its reader."""

HOSTS = "RAREBOX_HOSTS"
"""Environment variable: local hosts that images may come from, such as ``nas.local,10.0.0.5:8000``."""

_named: set[str] = set()


class Refused(ValueError):
    """An address that is not followed, or a body that is too large. The message has no final period."""


FINAL = (UserError, FileNotFoundError, IsADirectoryError, PermissionError, ImportError, ValueError)
"""Errors that another attempt cannot fix."""

BUSY = (408, 425, 429)
"""The HTTP statuses from 400 to 499 that another attempt may fix."""


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL, not a path."""
    return "://" in str(place)


def is_list(place: str | Path) -> bool:
    """Whether the name of a place is that of a list of images."""
    return urlsplit(str(place)).path.lower().endswith(LIST)


def location(place: str | Path) -> str:
    """A URL unchanged, or a path made absolute."""
    return str(place) if is_url(place) else os.path.abspath(place)


def trust(address: str | Path) -> None:
    """Allow images from the host and port of an address that the user has written, even on a local network."""
    try:
        parts = urlsplit(str(address))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # not a URL; reading from it reports the error
        return
    if parts.hostname and port:
        _named.add(f"{parts.hostname}:{port}")


def check(url: str) -> str:
    """The scheme of an address, if the address itself is allowed. Raises `Refused`."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError as error:
        raise Refused(f"it is not a URL ({error})") from None
    if "::" in url.partition("://")[0] or scheme not in SCHEMES or (SCHEMES[scheme] != "http" and "::" in url):
        raise Refused(
            "images are read from http://, https://, s3:// and gs:// addresses only, and not from nested ones"
        )
    if not host:
        raise Refused("it names no host or bucket")
    return scheme


def check_hop(url: str, to: str) -> None:
    """Raise `Refused` if a redirect from ``url`` to ``to`` must not be followed."""
    scheme = check(to)
    if SCHEMES[scheme] != "http" or (urlsplit(url).scheme, scheme) == ("https", "http"):
        raise Refused(f"it redirects from {urlsplit(url).scheme}:// to {scheme}://{urlsplit(to).hostname}")


@contextmanager
def fetched(url: str) -> Generator[bytes, None, None]:
    """The content of a URL while the block runs. Temporary errors are retried.

    The content held by all threads together is limited (``ROOM``). Raises `Refused`, or the last error of fsspec.
    """
    with ExitStack() as held:
        yield _patiently(lambda: _read(url, held))


def listing(url: str, suffixes: frozenset[str]) -> list[str]:
    """The URLs of all files below a URL with one of the suffixes, sorted; or those in a list, in its order.

    Folders below that rarebox has written are left out. A list may be a local file, and may name images relative to
    its folder. Raises `UserError` if listing fails.
    """
    try:
        if is_list(url):
            return _listed(url)
        found = _patiently(lambda: _found(url))
    except UserError:
        raise
    except Exception as error:  # each service has its own errors
        raise UserError(f"{url} cannot be listed: {reason(error)}. Name a folder, or a text file of URLs.") from error
    base = urlsplit(url).path
    own = _own_folders(found) - {url.rstrip("/")}
    named = (name for name in found if _is_image(urlsplit(name).path.removeprefix(base), suffixes))
    return sorted(name for name in named if not any(name.startswith(f"{folder}/") for folder in own))


def _own_folders(files: Collection[str]) -> set[str]:
    """The folders of these files that rarebox has written."""
    inside = defaultdict[str, set[str]](set)
    for folder, _, name in (file.rpartition("/") for file in files):
        inside[folder].add(name)
    return {folder for folder, names in inside.items() if is_own(names)}


def _listed(url: str) -> list[str]:
    """The images that a text file names, without empty lines and comments.

    In a local list, a line that is the name of a file is that file, even if it starts with ``#`` or a space.
    """
    if is_url(url):
        with fetched(url) as content:
            text = decode(content, url)
    else:
        text = decode(read_bytes(url), url)
    folder = url.rpartition("/")[0]
    named: list[str] = []

    def is_file(line: str) -> bool:
        return bool(line.strip()) and not is_url(url) and os.path.isfile(_local(folder, line))

    for line in dict.fromkeys(line if is_file(line) else line.strip() for line in lines_of(text)):
        if not line or (line.startswith("#") and not is_file(line)):
            continue
        if is_url(line):
            try:
                check(line)
            except Refused as error:
                raise UserError(f"{url} names {line}, which is not read: {error}. Remove that line.") from None
        named.append(line if is_url(line) else f"{folder}/{line}" if is_url(url) else _local(folder, line))
    return named


def _local(folder: str, line: str) -> str:
    """The path that a line of a local list means, from the folder of the list. It may be from Windows."""
    path = location(os.path.join(folder, line))
    return path if os.path.exists(path) else location(os.path.join(folder, slashes(line)))


def _found(url: str) -> list[str]:
    """The URLs of all files below a URL. Raises `Refused` if there are too many."""
    system, path = _system(url)
    if SCHEMES[check(url)] != "http":
        found = system.find(path) or system.ls(path, detail=False)
        return [system.unstrip_protocol(name) for name in found]
    until, names = time.monotonic() + LISTING_SECONDS, list[str]()
    for _, _, files in system.walk(path, detail=True, on_error="raise"):  # page by page
        names += [file["name"] for file in files.values()]
        if len(names) > MOST_LISTED or time.monotonic() > until:
            raise Refused(f"its index pages list {len(names):,} files and do not end")
    return names or system.ls(path, detail=False)


def reason(error: Exception) -> str:
    """Why a URL could not be read."""
    if isinstance(error, FileNotFoundError):
        return "nothing is there"
    if isinstance(error, TimeoutError):
        return f"no answer in {len(WAITS) + 1} attempts"
    return presentable(str(error).replace(" ssl:default", "")) or type(error).__name__


def _is_image(path: str, suffixes: frozenset[str]) -> bool:
    parts = path.split("/")
    return os.path.splitext(parts[-1])[1].lower() in suffixes and not any(map(is_litter, parts))


def _read(url: str, held: ExitStack) -> bytes:
    """The content of a URL, in one attempt. ``held`` reserves memory for it."""
    held.close()  # the memory of an earlier attempt
    system, path = _system(url)
    if SCHEMES[check(url)] != "http":
        size = system.info(path)["size"]
        _refuse_size(size)
        held.enter_context(ROOM.hold(size))
        return _call(system, system._cat_file, path) if system.async_impl else system.cat_file(path)
    answer = _call(system, _ask, system, path)
    try:
        size = answer.content_length
        _refuse_size(size)
        held.enter_context(ROOM.hold(MOST_BYTES if size is None else size))
        return _call(system, answer.read)
    finally:
        system.loop.call_soon_threadsafe(answer.close)


def _call(system: Any, work: Callable[..., Any], *args: Any) -> Any:
    """The result of a coroutine in fsspec's event loop. Raises ``TimeoutError`` after ``SECONDS``."""
    from fsspec.asyn import sync  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return sync(system.loop, work, *args, timeout=SECONDS)


def _refuse_size(size: int | None) -> None:
    if size is not None and size > MOST_BYTES:
        raise Refused(f"it has more than {MOST_BYTES >> 20} MiB. Make it smaller, or copy it to this disk")


async def _ask(system: Any, url: str) -> Any:
    """The response of a web server, whose body is not read yet."""
    session = await system.set_session()
    answer = await session.get(system.encode_url(url))
    if answer.status == 404:
        answer.close()
        raise FileNotFoundError(url)
    answer.raise_for_status()
    return answer


def _system(url: str) -> tuple[Any, str]:
    """The file system for a URL, and the URL in its form. Raises `Refused`, or `UserError` if it is not installed."""
    # imported here so that the command line starts quickly
    from fsspec import filesystem  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    scheme = check(url)
    try:
        system: Any = filesystem(scheme, **_over_http() if SCHEMES[scheme] == "http" else {})
    except ImportError as error:
        command = f'pip install "rarebox[{SCHEMES[scheme]}]"'
        raise UserError(f"{url}: the reader for {scheme}:// is not installed. Run: {command}") from error
    return system, system._strip_protocol(url)


@cache
def _over_http() -> dict[str, Any]:
    """The options with which fsspec follows the rules of this module over HTTP."""
    import aiohttp
    from yarl import URL

    class Connector(aiohttp.TCPConnector):
        """Refuses addresses of this machine and its network, unless the user has named the host."""

        async def _resolve_host(self, host: str, port: int, traces: Any = None) -> Any:
            found = await super()._resolve_host(host, port, traces)
            if not _is_named(host, port):
                for place in found:
                    _refuse_private(host, place["host"])
            return found  # the connection uses these addresses only

    class Response(aiohttp.ClientResponse):
        """Refuses bodies that are too large or compressed."""

        async def read(self) -> bytes:
            if self._body is None:
                if self.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
                    raise Refused(
                        "the server sends it compressed (Content-Encoding), although rarebox asks for plain data"
                    )
                _refuse_size(self.content_length)
                body = bytearray()
                async for part in self.content.iter_any():
                    body += part
                    _refuse_size(len(body))
                self._body = bytes(body)
            return await super().read()

    async def check_redirect(_: Any, __: Any, params: Any) -> None:
        check_hop(str(params.url), str(params.url.join(URL(params.response.headers.get("Location", "")))))

    async def session(**given: Any) -> aiohttp.ClientSession:
        watch = aiohttp.TraceConfig()
        watch.on_request_redirect.append(check_redirect)
        return aiohttp.ClientSession(
            connector=Connector(),
            response_class=Response,
            trace_configs=[watch],
            auto_decompress=False,
            headers={"Accept-Encoding": "identity"},
            timeout=aiohttp.ClientTimeout(total=SECONDS, sock_connect=10, sock_read=15),
            **given,
        )

    return {"get_client": session}


def _is_named(host: str, port: int) -> bool:
    hosts = _named | {name.strip().lower() for name in os.environ.get(HOSTS, "").split(",")}
    return not hosts.isdisjoint({host.lower(), f"{host.lower()}:{port}"})


def _refuse_private(host: str, address: str) -> None:
    """Raise `Refused` for an address that is not on the public internet."""
    if not _is_public(ip_address(address.partition("%")[0])):
        raise Refused(
            f"{host} is this machine or in its network ({address}). To allow images from it, set the environment "
            f"variable {HOSTS}={host}"
        )


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address, and the IPv4 address that it may embed, are on the public internet."""
    if isinstance(address, IPv6Address):
        inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if int(address) >> 32 == int(IPv6Address("64:ff9b::")) >> 32:  # NAT64, RFC 6052
            inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(_is_public(one) for one in inner if one):
            return False
        if address.ipv4_mapped:
            return True
    return address.is_global and not address.is_multicast


def _patiently(work: Callable[[], T]) -> T:
    """The result of ``work``, which is repeated after a pause if the error may be temporary."""
    for wait in WAITS:
        try:
            return work()
        except Exception as error:
            status = getattr(error, "status", 0)
            if isinstance(error, FINAL) or (400 <= status < 500 and status not in BUSY):
                raise
            time.sleep(wait)
    return work()
