"""Names of classes and images: which ones every format can hold, and which image a file of another tool means."""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Generic, TypeVar
from urllib.parse import unquote, urlsplit

from rarebox.errors import UserError

T = TypeVar("T")

LONGEST_STEM = 180
"""Bytes of a file's name before its suffix; most file systems take 255 for the whole of it."""


def clean(text: str) -> str:
    """A name as every format can hold it and gives it back.

    It is one line, without blanks around it and without two in a row. A control character, half a character (a lone
    surrogate) and what XML cannot hold become ``_``; byte-order marks vanish.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = " ".join(text.replace("\ufeff", "").split())
    return " ".join("".join("_" if _is_unwritable(sign) else sign for sign in text).split())


def is_writable(name: str) -> bool:
    """Whether a name holds none of the characters that :func:`clean` takes for others."""
    return not any(_is_unwritable(sign) for sign in name)


def _is_unwritable(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff"


def clean_all(names: Iterable[str]) -> list[str]:
    """Each name cleaned, never empty, and told apart by a number where two would be alike."""
    cleaned: list[str] = []
    for number, name in enumerate(names):
        plain = clean(name) or f"class {number}"
        alike = plain
        while alike in cleaned:
            alike += f"-{number}"
        cleaned.append(alike)
    return cleaned


def file_names(images: Sequence[tuple[int, str]], suffixes: Iterable[str]) -> list[str]:
    """A name for the file of each image, from its number and path (or URL): cleaned, and no two alike but for suffixes.

    Names do not depend on the images that follow. A name without one of the ``suffixes``, by which readers know an
    image, gets ``.jpg``.
    """
    known, taken = frozenset(suffixes), set[str]()
    names = []
    for number, path in images:
        place = unquote(urlsplit(path).path.rsplit("/", 1)[-1]) if "://" in path else PurePath(path).name
        stem, dot, suffix = clean(place.replace("/", "_").replace("\\", "_")).rpartition(".")
        if f".{suffix.lower()}" not in known:
            stem, suffix = f"{stem}{dot}{suffix}", "jpg"
        stem = (
            stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(". ") or "image"
        )  # a leading dot would hide it
        while stem.casefold() in taken:
            stem += f"-{number}"
        taken.add(stem.casefold())
        names.append(f"{stem}.{suffix}")
    return names


class ByName(Generic[T]):
    """Things by a path, found again by as much of its end as tells them apart."""

    def __init__(self) -> None:
        self._alike: dict[str, list[tuple[str, T]]] = {}

    def add(self, path: str, value: T) -> None:
        """Make a thing known by its path."""
        self._alike.setdefault(_file_name(path), []).append((f"/{_slashes(path)}", value))

    def find(self, name: str) -> T | None:
        """What has that path, or one that ends so; None if nothing has. UserError where several end alike."""
        wanted = f"/{_slashes(name)}"
        alike = [(path, value) for path, value in self._alike.get(_file_name(name), ()) if _ends_alike(path, wanted)]
        if len({path for path, _ in alike}) > 1:
            raise UserError(
                f"{name!r} may be {alike[0][0][1:]} or {alike[1][0][1:]}; write as much of the path as tells them apart"
            )
        return alike[0][1] if alike else None


def _slashes(path: str) -> str:
    return path.replace("\\", "/").removeprefix("./")


def _file_name(path: str) -> str:
    return _slashes(path).rsplit("/", 1)[-1]


def _ends_alike(path: str, wanted: str) -> bool:
    """Whether a path ends as is wanted; or, if it is not from the root, is itself the end of what is wanted."""
    return path.endswith(wanted) or (not path.startswith("//") and wanted.endswith(path))
