"""Images that are not on this disk: listed once and read by URL, from ``http(s)://``, ``s3://`` or ``gs://``.

A source is a folder of a bucket, a web page that links to images (the index that most servers make of a folder), or a
text file, here or there, with the URL of an image on each line.

Most addresses are written by somebody else than the person at the keyboard: in a list, in a COCO file, in a redirect.
So one rule holds for all of them, wherever they come from, and here is the only place that follows an address:

- The scheme is one of ``SCHEMES``; nothing is chained (``zip::…``), nothing is a file of this disk.
- A host of this machine or of its network is refused, however it is written and whatever name it has: what is checked
  is the very address that is connected to, at every hop of a redirect. The hosts that the person has named are exempt:
  where the images are said to be (:func:`trust`), and those in the environment variable ``RAREBOX_HOSTS``.
- A redirect stays with HTTP, and from ``https://`` it does not lead to ``http://``.
- A body has a most of bytes, as a server sends it (packed ones are not asked for and refused), and a most of seconds.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rarebox.core.files import read_bytes
from rarebox.core.text import decode
from rarebox.data.naming import is_litter
from rarebox.data.room import Room
from rarebox.errors import UserError, presentable

T = TypeVar("T")

LIST = ".txt"
"""What a list of URLs ends in."""

WAITS = (0.2, 1.0, 4.0)
"""Seconds before each further try."""

SECONDS = 60
"""How long one try may take, from the first word to the last byte."""

MOST_BYTES = 64 << 20
"""Bytes of one file or page."""

MOST_LISTED = 10_000_000
"""Links of a web page and the pages below it, those that are no images included."""

LISTING_SECONDS = 600
"""How long the pages of a web server may take, all together."""

ROOM = Room(512 << 20)
"""Bytes of files that are not on this disk, for all threads that read some."""

SCHEMES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""The schemes that are read -> the extra of rarebox that brings what reads it."""

HOSTS = "RAREBOX_HOSTS"
"""Environment variable: hosts of this machine or its network that images may come from, ``nas.local,10.0.0.5:8000``."""

_named: set[str] = set()


class Refused(ValueError):
    """An address that is not followed, or a body that is not read to its end."""


FINAL = (UserError, FileNotFoundError, IsADirectoryError, PermissionError, ImportError, ValueError)
"""Errors that another try does not mend."""

BUSY = (408, 425, 429)
"""The HTTP statuses from 400 to 499 that another try may mend."""


def is_url(place: str | Path) -> bool:
    """Whether a place is a URL, not a path."""
    return "://" in str(place)


def is_list(place: str | Path) -> bool:
    """Whether a place is a list of images by its name."""
    return urlsplit(str(place)).path.lower().endswith(LIST)


def location(place: str | Path) -> str:
    """A URL as it is, a path made absolute."""
    return str(place) if is_url(place) else os.path.abspath(place)


def trust(address: str | Path) -> None:
    """Let images come from the host and port of an address that the person has written, wherever that host is."""
    try:
        parts = urlsplit(str(address))
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:  # not a URL, which whoever reads from it will say
        return
    if parts.hostname and port:
        _named.add(f"{parts.hostname}:{port}")


def check(url: str) -> str:
    """The scheme of an address that may be followed, as far as the address alone tells. Raises `Refused`."""
    try:
        scheme, host = urlsplit(url).scheme, urlsplit(url).hostname
    except ValueError as error:
        raise Refused(f"it is not a URL ({error})") from None
    if "::" in url.partition("://")[0] or scheme not in SCHEMES or (SCHEMES[scheme] != "http" and "::" in url):
        raise Refused("images are read from http://, https://, s3:// and gs:// addresses, and from none inside another")
    if not host:
        raise Refused("it names no host or bucket")
    return scheme


def check_hop(url: str, to: str) -> None:
    """Whether a redirect may be followed. Raises `Refused`."""
    scheme = check(to)
    if SCHEMES[scheme] != "http" or (urlsplit(url).scheme, scheme) == ("https", "http"):
        raise Refused(f"it leads from {urlsplit(url).scheme}:// to {scheme}://{urlsplit(to).hostname}")


@contextmanager
def fetched(url: str) -> Iterator[bytes]:
    """What is at a URL, for as long as the block runs, tried again where that may help.

    The bytes of all threads that are in such a block at a time are bounded (``ROOM``). Raises `Refused`, or what
    fsspec raises in the end.
    """
    with ExitStack() as held:
        yield _patiently(lambda: _read(url, held))


def listing(url: str, suffixes: frozenset[str]) -> list[str]:
    """The URLs of all files below a URL that end in one of the suffixes, sorted; or those of a list, in its order.

    A list may be a file on this disk, and name images relative to where it lies. UserError if it cannot be listed.
    """
    try:
        if is_list(url):
            return _listed(url)
        found = _patiently(lambda: _found(url))
    except UserError:
        raise
    except Exception as error:  # each service has errors of its own
        raise UserError(f"{url} cannot be listed: {reason(error)}; name a folder, or a text file of URLs") from error
    base = urlsplit(url).path
    return sorted(name for name in found if _is_image(urlsplit(name).path.removeprefix(base), suffixes))


def _listed(url: str) -> list[str]:
    """The images that a text file names."""
    if is_url(url):
        with fetched(url) as content:
            text = decode(content, url)
    else:
        text = decode(read_bytes(url), url)
    folder = url.rpartition("/")[0]
    named = []
    for line in dict.fromkeys(line.strip() for line in text.splitlines()):
        if not line or line.startswith("#"):
            continue
        if is_url(line):
            try:
                check(line)
            except Refused as error:
                raise UserError(f"{url} names {line}, which is not read: {error}") from None
        named.append(
            location(line if is_url(line) or (os.path.isabs(line) and not is_url(url)) else f"{folder}/{line}")
        )
    return named


def _found(url: str) -> list[str]:
    """The URLs of all files below a URL. Raises `Refused` for pages without end."""
    system, path = _system(url)
    if SCHEMES[check(url)] != "http":
        found = system.find(path) or system.ls(path, detail=False)
        return [system.unstrip_protocol(name) for name in found]
    until, names = time.monotonic() + LISTING_SECONDS, list[str]()
    for _, _, files in system.walk(path, detail=True, on_error="raise"):  # page by page
        names += [file["name"] for file in files.values()]
        if len(names) > MOST_LISTED or time.monotonic() > until:
            raise Refused(f"its pages name {len(names):,} files and lead further and further")
    return names or system.ls(path, detail=False)


def reason(error: Exception) -> str:
    """Why a URL could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    if isinstance(error, TimeoutError):
        return f"no answer, {len(WAITS) + 1} times"
    return presentable(str(error).replace(" ssl:default", "")) or type(error).__name__


def _is_image(path: str, suffixes: frozenset[str]) -> bool:
    parts = path.split("/")
    return os.path.splitext(parts[-1])[1].lower() in suffixes and not any(map(is_litter, parts))


def _read(url: str, held: ExitStack) -> bytes:
    """What is at a URL, in one try; ``held`` keeps room for it."""
    held.close()  # what an earlier try has kept
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
    """The result of a coroutine in fsspec's own loop, or a TimeoutError."""
    from fsspec.asyn import sync

    return sync(system.loop, work, *args, timeout=SECONDS)


def _refuse_size(size: int | None) -> None:
    if size is not None and size > MOST_BYTES:
        raise Refused(f"it has more than {MOST_BYTES >> 20} MiB; make it smaller, or copy it to this disk")


async def _ask(system: Any, url: str) -> Any:
    """The head of what a web server answers, its body still to be read."""
    session = await system.set_session()
    answer = await session.get(system.encode_url(url))
    if answer.status == 404:
        answer.close()
        raise FileNotFoundError(url)
    answer.raise_for_status()
    return answer


def _system(url: str) -> tuple[Any, str]:
    """What reads a URL, and the URL as it wants it. Raises `Refused`; UserError if what reads it is not installed."""
    import fsspec  # not at the top: the command line starts without it

    scheme = check(url)
    try:
        system = fsspec.filesystem(scheme, **_over_http() if SCHEMES[scheme] == "http" else {})
    except ImportError as error:
        what = f'pip install "rarebox[{SCHEMES[scheme]}]"'
        raise UserError(f"{url}: what reads {scheme}:// is not installed: {what}") from error
    return system, system._strip_protocol(url)


@cache
def _over_http() -> dict[str, Any]:
    """How fsspec is to speak HTTP."""
    import aiohttp
    from yarl import URL

    class Connector(aiohttp.TCPConnector):
        """Connects to no address of this machine or its network, unless the host was named."""

        async def _resolve_host(self, host: str, port: int, traces: Any = None) -> Any:
            found = await super()._resolve_host(host, port, traces)
            if not _is_named(host, port):
                for place in found:
                    _refuse_private(host, place["host"])
            return found  # these, and no others, are connected to

    class Response(aiohttp.ClientResponse):
        """A body is as long as is allowed, and not packed."""

        async def read(self) -> bytes:
            if self._body is None:
                if self.headers.get("Content-Encoding", "identity").lower() not in ("", "identity"):
                    raise Refused("the server sends it packed (Content-Encoding), which is not asked for")
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
    """Refused for an address that is not of the public internet."""
    if not _is_public(ip_address(address.partition("%")[0])):
        raise Refused(
            f"{host} is this machine or in its network ({address}); if images are to come from there, name it in the "
            f"environment: {HOSTS}={host}"
        )


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether an address is of the public internet, and so is the IPv4 address that it may stand for."""
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
    """Do it, again after a while where that may help."""
    for wait in WAITS:
        try:
            return work()
        except Exception as error:
            status = getattr(error, "status", 0)
            if isinstance(error, FINAL) or (400 <= status < 500 and status not in BUSY):
                raise
            time.sleep(wait)
    return work()
