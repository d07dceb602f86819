"""Names of files: which image a name in another tool's file means, and which files no person has put there."""

import re
import unicodedata
from collections import defaultdict
from typing import Generic, TypeVar
from urllib.parse import unquote

from rarebox.errors import UserError

T = TypeVar("T")

_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file: the start of a UUID."""

_DROPPED_ON_UPLOAD = re.compile(r"[^-\w.]")
"""What Label Studio leaves out of the name of an uploaded file, once blanks have become underscores."""


LITTER = frozenset(["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"])
"""Folders that systems put beside people's own (macOS, Synology, Windows, Linux)."""


def is_litter(name: str) -> bool:
    """Whether a file or folder of that name was not put there by a person: hidden ones, and :data:`LITTER`."""
    return name.startswith(".") or name in LITTER


class ByName(Generic[T]):
    """Things by path or URL, found again under the names that files give them.

    :meth:`find` takes a name at its word, :meth:`match` also understands how other tools write names. All files that
    come in use one of the two.
    """

    def __init__(self) -> None:
        self._whole: dict[str, T] = {}
        # The end of a path, from some folder on -> the first two that end so, which is enough to tell if it is unique.
        self._ends: dict[str, dict[str, T]] = defaultdict(dict)
        self._uploaded: dict[str, dict[str, T]] = defaultdict(dict)
        self._folders: set[str] = set()

    def add(self, path: str, value: T) -> None:
        """Make a thing known by its path. The first of several with the same path counts."""
        path = _plain(path)
        if path in self._whole:
            return
        self._whole[path] = value
        ends = _ends(path)
        for same in (*(self._ends[end] for end in ends), self._uploaded[_as_uploaded(ends[-1])]):
            if len(same) < 2:
                same[path] = value
        self._folders.add(_folder(path))

    def find(self, name: str) -> T | None:
        """What has that path; or whose path ends so; or, if its path is relative, is itself the end of the name.

        None if nothing has. UserError if several have.
        """
        name = _plain(name)
        if name in self._whole:
            return self._whole[name]
        ends = {end: self._whole[end] for end in _ends(name) if end in self._whole and not _is_rooted(end)}
        return _only({**self._ends.get(name, {}), **ends}, name)

    def match(self, name: str) -> T | None:
        """What another tool means by a name. None if nothing fits. UserError if several fit equally well.

        The name may be a path on another machine, a web address, percent-encoded, or an address of Label Studio, and
        have the separators of Windows. What shares most of the end of its path wins, so folders tell photos of one
        name apart; a folder that is known and does not hold the photo excludes it. Only if nothing has the name does
        Label Studio's prefix of uploads count as one. Eight digits may be a date, so they do only in the address of an
        upload.
        """
        address = _without_query(name)
        forms = [_plain(form) for form in dict.fromkeys((address, unquote(address)))]
        for form in (_plain(name), *forms):
            if form in self._whole:
                return self._whole[form]
        known = ((self._known_end(form), form) for form in forms)
        end, form = max(known, key=lambda pair: len(pair[0].split("/")) if pair[0] else 0)
        found = self._fitting(self._ends.get(end, {}), form, name) if end else None
        return found if found is not None else self._uploaded_as(forms[-1], name)

    def _known_end(self, form: str) -> str:
        """The longest end of a name that something has as well; empty if nothing has its last part."""
        return next((end for end in _ends(form) if end in self._ends), "")

    def _uploaded_as(self, form: str, name: str) -> T | None:
        """What was uploaded to Label Studio under that name, with a prefix and without its special characters."""
        file = form.rsplit("/", 1)[-1]
        if not _PREFIX.match(file) or (file[:8].isdecimal() and not _is_upload(form)):
            return None
        return self._fitting(self._uploaded.get(_as_uploaded(file[9:]), {}), form, name)

    def _fitting(self, alike: dict[str, T], form: str, name: str) -> T | None:
        """The only one of these, unless the name is that of a photo in another of our folders."""
        value, folder = _only(alike, name), _folder(form)
        elsewhere = folder and folder in self._folders and not any(folder in path.split("/")[:-1] for path in alike)
        return None if elsewhere and not _is_upload(form) else value


def _only(alike: dict[str, T], name: str) -> T | None:
    if len(alike) > 1:
        first, second, *_ = alike
        raise UserError(f"{name!r} may be {first} or {second}; write as much of the path as tells them apart")
    return next(iter(alike.values()), None)


def _plain(path: str) -> str:
    """With ``/`` between folders, and accents in one of their two encodings (macOS has the other one)."""
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./"))


def _ends(path: str) -> list[str]:
    """A path, and what is left of it without its first folder, its first two, and so on: the longest first."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _folder(path: str) -> str:
    """The name of the folder that a file lies in; empty if the path names none."""
    return path.split("/")[-2] if "/" in path else ""


def _is_rooted(path: str) -> bool:
    return path.startswith("/")


def _is_upload(path: str) -> bool:
    """Whether it is the address of an upload to Label Studio, whose folders are a number of its own."""
    return "upload" in path.split("/")[:-1]


def _without_query(address: str) -> str:
    """The path in an address: of Label Studio's local files (``?d=``), or of a URL."""
    _, local, path = address.partition("?d=")
    return path if local else address.split("?", 1)[0] if "://" in address else address


def _as_uploaded(file: str) -> str:
    return _DROPPED_ON_UPLOAD.sub("", file.strip().replace(" ", "_"))
