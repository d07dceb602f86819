"""Images that are not on this disk: listed once and read by URL through fsspec (``s3://``, ``gs://``, ``https://``, …).

A source is a folder of a bucket, a web page that links to images (the index that most servers make of a folder), or a
text file, here or there, with the URL of an image on each line.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from rarebox.errors import UserError
from rarebox.text import decode

T = TypeVar("T")

LIST = ".txt"
"""What a list of URLs ends in."""

WAITS = (0.2, 1.0, 4.0)
"""Seconds before each further try."""

SECONDS = 60
"""How long one try may take over HTTP."""

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "http": "http", "https": "http"}
"""Scheme -> the extra of rarebox that brings what reads it."""

HERE = ("file", "local")
"""Schemes of this disk."""

FINAL = (FileNotFoundError, IsADirectoryError, PermissionError, ImportError, ValueError)
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


def fetch(url: str) -> bytes:
    """What is at a URL, tried again where that may help. Raises what fsspec raises, in the end."""
    system, path = _system(url)
    return _patiently(lambda: system.cat_file(path))


def listing(url: str, suffixes: frozenset[str]) -> list[str]:
    """The URLs of all files below a URL that end in one of the suffixes, sorted; or those of a list, in its order.

    A list may be a file on this disk, and name images relative to where it lies. UserError if it cannot be listed.
    """
    try:
        if is_list(url):
            text = fetch(url) if is_url(url) else Path(url).read_bytes()
            lines = dict.fromkeys(line.strip() for line in decode(text, url).splitlines())
            folder = url.rpartition("/")[0]
            named = [
                location(line if is_url(line) or (os.path.isabs(line) and not is_url(url)) else f"{folder}/{line}")
                for line in lines
                if line and not line.startswith("#")
            ]
            if is_url(url):
                _refuse_what_is_here(url, named)
            return named
        system, path = _system(url)
        # What is silently left out by default: the links of a page that cannot be read; and that there is nothing.
        strictly = {"on_error": "raise"} if EXTRAS.get(urlsplit(url).scheme) == "http" else {}
        found = _patiently(lambda: system.find(path, **strictly)) or _patiently(lambda: system.ls(path, detail=False))
    except UserError:
        raise
    except Exception as error:  # each service has errors of its own
        raise UserError(f"{url} cannot be listed: {reason(error)}; name a folder, or a text file of URLs") from error
    names = (system.unstrip_protocol(name) for name in found)
    return sorted(name for name in names if _is_image(urlsplit(name).path, suffixes))


def _refuse_what_is_here(url: str, named: list[str]) -> None:
    """UserError if a list from elsewhere names anything but images of such places: a file of this disk, say."""
    for image in named:
        scheme = urlsplit(image).scheme
        if "::" in image or scheme not in {urlsplit(url).scheme, *EXTRAS} or scheme in HERE:
            raise UserError(f"{url} names {image}, and a list from elsewhere may name only what lies elsewhere")


def reason(error: Exception) -> str:
    """Why a URL could not be read."""
    if isinstance(error, FileNotFoundError):
        return "there is nothing"
    if isinstance(error, TimeoutError):
        return f"no answer, {len(WAITS) + 1} times"
    return str(error).replace(" ssl:default", "") or type(error).__name__


def _is_image(path: str, suffixes: frozenset[str]) -> bool:
    name = path.rsplit("/", 1)[-1]
    return os.path.splitext(name)[1].lower() in suffixes and not name.startswith(".")


def _system(url: str) -> tuple[Any, str]:
    """What reads a URL, and the URL as it wants it; UserError if that is not installed."""
    import fsspec  # not at the top: the command line starts without it

    scheme = urlsplit(url).scheme
    try:
        return fsspec.core.url_to_fs(url, **_patience(scheme))
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        what = f'pip install "rarebox[{extra}]"' if extra else str(error)
        raise UserError(f"{url}: what reads {scheme}:// is not installed: {what}") from error
    except ValueError as error:
        raise UserError(f"{url}: {error}; known are {', '.join(sorted(EXTRAS))} and what fsspec knows") from error


def _patience(scheme: str) -> dict[str, Any]:
    if EXTRAS.get(scheme) != "http":
        return {}
    from aiohttp import ClientTimeout

    return {"client_kwargs": {"timeout": ClientTimeout(total=SECONDS, sock_connect=10, sock_read=15)}}


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
