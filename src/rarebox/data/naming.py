"""Names of classes and files: what formats can hold, which image a tool means, what nobody put there."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath
from typing import Generic, TypeVar
from urllib.parse import unquote, urlsplit

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

    Of several images with one name, all but the first have their number behind it, as often as it takes to be a name
    that no image has. A name without one of the ``suffixes``, by which readers know an image, gets ``.jpg``.
    """
    known = frozenset(suffixes)
    own = [_stem_and_suffix(path, known) for _, path in images]
    having = {_folded(stem) for stem, _ in own}
    taken = set[str]()
    names = []
    for (number, _), (stem, suffix) in zip(images, own, strict=True):
        if _folded(stem) in taken:
            stem += f"-{number}"
            while _folded(stem) in taken or _folded(stem) in having:
                stem += f"-{number}"
        taken.add(_folded(stem))
        names.append(f"{stem}.{suffix}")
    return names


def _stem_and_suffix(path: str, known: Collection[str]) -> tuple[str, str]:
    place = unquote(urlsplit(path).path.rsplit("/", 1)[-1]) if "://" in path else PurePath(path).name
    stem, dot, suffix = clean(place.replace("/", "_").replace("\\", "_")).rpartition(".")
    if f".{suffix.lower()}" not in known:
        stem, suffix = f"{stem}{dot}{suffix}", "jpg"
    return stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(". ") or "image", suffix  # a dot would hide it


def _folded(stem: str) -> str:
    """What is equal for two names that some file systems take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


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
