"""Names of classes and files: what formats can hold, which image another tool means, which files to ignore."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePath
from typing import Generic, TypeVar
from urllib.parse import unquote, urlsplit

from rarebox.errors import UserError

T = TypeVar("T")

_PREFIX = re.compile(r"([0-9a-f]{8}-|[0-9a-f]{6}__|[0-9a-f]{8}__)(?=.)")
"""The prefix that Label Studio adds to the name of an uploaded file, the start of a UUID; or to that of a file from its
storage in an export, the start of a hash."""

_DROPPED_ON_UPLOAD = re.compile(r"[^-\w.]")
"""What Label Studio removes from the name of an uploaded file, after replacing spaces with underscores."""

_INVISIBLE = re.compile(
    "((?<=[\u0530-\u1fff\u2070-\ufefe\U00010000-\U000dffff])[\u200c\u200d](?![\x21-\u052f\u200b-\u200f])"
    "|(?<=[\U0001f3f4\U000e0020-\U000e007e])[\U000e0020-\U000e007f])"
    "|[\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\U000e0001-\U000e007f]"
)
"""Invisible characters. The group has those that belong to the text: joiners within other scripts than Latin, Greek and
Cyrillic and within emoji, and the tags of flags."""

LITTER = frozenset(
    [
        "__macosx",
        "network trash folder",
        "temporary items",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "~snapshot",
        "$recycle.bin",
        "system volume information",
        "lost+found",
    ]
)
"""Folders that operating systems and storage devices create (macOS, Synology, QNAP, NetApp, Windows, Linux), in lower
case."""


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden or in :data:`LITTER`, so that no person has put it there."""
    return name.startswith(".") or name.lower() in LITTER


LONGEST_STEM = 180
"""The most bytes of a file name before its suffix. Most file systems allow 255 for the whole name."""


def clean(text: str) -> str:
    """A name that every format can write and read back unchanged.

    The result is one line without spaces at the ends and without two in a row. Control characters, lone surrogates and
    characters that XML cannot hold become ``_``. Invisible characters and marks of the direction of text (Unicode
    category Cf) are removed, except where an emoji or a script such as Persian or Hindi needs them.
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = " ".join(_INVISIBLE.sub(lambda found: found[1] or "", text).split())
    return " ".join("".join("_" if _is_unwritable(sign) else sign for sign in text).split())


def is_writable(name: str) -> bool:
    """Whether a name has none of the characters that :func:`clean` replaces."""
    return not any(_is_unwritable(sign) for sign in name)


def _is_unwritable(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cs") or sign in "\ufffe\uffff"


def clean_all(names: Iterable[str]) -> list[str]:
    """Each name cleaned, never empty, and with a number appended where two would be equal."""
    cleaned: list[str] = []
    for number, name in enumerate(names):
        plain = clean(name) or f"class {number}"
        alike = plain
        while alike in cleaned:
            alike += f"-{number}"
        cleaned.append(alike)
    return cleaned


def file_names(images: Sequence[tuple[int, str]], suffixes: Iterable[str]) -> list[str]:
    """A file name for each image, given as (id, path or URL): cleaned, and unique even without the suffix.

    Of several images with one name, all but the first get their id appended, repeatedly if necessary, until no image
    has that name. A name without one of the ``suffixes`` gets ``.jpg``.
    """
    known = frozenset(suffixes)
    own = [_stem_and_suffix(path, known) for _, path in images]
    having = {_folded(stem) for stem, _ in own}
    taken = set[str]()
    names: list[str] = []
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
    return stem.encode()[:LONGEST_STEM].decode(errors="ignore").strip(
        ". "
    ) or "image", suffix  # a leading dot would hide the file


def _folded(stem: str) -> str:
    """A key that is equal for names that some file systems treat as the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())


class ByName(Generic[T]):
    """Values by path or URL, looked up by the names in label files.

    :meth:`find` compares paths as they are; :meth:`match` also understands how other tools write names. Every reader
    uses one of the two.
    """

    def __init__(self) -> None:
        self._whole: dict[str, T] = {}
        # The end of a path, from some folder on -> the first two values there, enough to know if it is unique.
        self._ends: dict[str, dict[str, T]] = defaultdict(dict)
        self._uploaded: dict[str, dict[str, T]] = defaultdict(dict)
        self._folders: set[str] = set()
        self._lower: ByName[list[str]] | None = None

    def add(self, path: str, value: T) -> None:
        """Add a value under its path. The first of several with the same path counts."""
        path = _plain(path)
        if path in self._whole:
            return
        self._lower = None
        self._whole[path] = value
        ends = _ends(path)
        for same in (*(self._ends[end] for end in ends), self._uploaded[_as_uploaded(ends[-1])]):
            if len(same) < 2:
                same[path] = value
        self._folders.add(_folder(path).casefold())

    def find(self, name: str) -> T | None:
        """The value with that path, or whose path ends with the name, or whose relative path ends the name.

        None if there is none. Raises `UserError` if there are several.
        """
        name = _plain(name)
        if name in self._whole:
            return self._whole[name]
        ends = {end: self._whole[end] for end in _ends(name) if end in self._whole and not _is_rooted(end)}
        return _only({**self._ends.get(name, {}), **ends}, name)

    def match(self, name: str) -> T | None:
        """The value that another tool means by a name. None if none fits. Raises `UserError` if several fit equally.

        The name may be a path on another machine, a web address, percent-encoded, an address of Label Studio, or have
        Windows separators. The value with the longest common end of the path wins, so folders distinguish photos of
        one name. A photo in another known folder is excluded. Label Studio's prefixes are removed only if nothing has
        the full name. A prefix of eight digits may be a date, so it is removed only in the address of an upload. The
        case of letters is ignored if nothing fits otherwise.
        """
        found = self._match(name)
        if found is None and (paths := self._caseless._match(name.casefold())):
            return _only({path: self._whole[path] for path in paths}, name)
        return found

    @property
    def _caseless(self) -> "ByName[list[str]]":
        """The paths by themselves in lower case."""
        if self._lower is None:
            paths = defaultdict[str, list[str]](list)
            for path in self._whole:
                paths[path.casefold()].append(path)
            self._lower = ByName[list[str]]()
            for lower, same in paths.items():
                self._lower.add(lower, same)
        return self._lower

    def _match(self, name: str) -> T | None:
        """The value that a name means if the case of letters counts."""
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
        """The longest end of a name that is the end of a known path; empty if no path has its last part."""
        return next((end for end in _ends(form) if end in self._ends), "")

    def _uploaded_as(self, form: str, name: str) -> T | None:
        """The value whose upload to Label Studio or export from it has that name, with a prefix, perhaps cleaned."""
        file = form.rsplit("/", 1)[-1]
        prefix = _PREFIX.match(file)
        if not prefix or (prefix[0].rstrip("-_").isdecimal() and not _is_upload(form)):
            return None
        return self._fitting(self._uploaded.get(_as_uploaded(file[prefix.end() :]), {}), form, name)

    def _fitting(self, alike: dict[str, T], form: str, name: str) -> T | None:
        """The only one of these, unless the name points to another known folder."""
        folder = _folder(form).casefold()
        elsewhere = folder in self._folders and not any(folder in path.casefold().split("/")[:-1] for path in alike)
        return None if folder and elsewhere and not _is_upload(form) else _only(alike, name)


def _only(alike: dict[str, T], name: str) -> T | None:
    if len(alike) > 1:
        first, second, *_ = alike
        raise UserError(f"{name!r} may be {first} or {second}. Write as much of the path as distinguishes them")
    return next(iter(alike.values()), None)


def _plain(path: str) -> str:
    """A path with ``/`` between folders and composed accents (macOS writes decomposed ones)."""
    return unicodedata.normalize("NFC", path.replace("\\", "/").removeprefix("./"))


def _ends(path: str) -> list[str]:
    """A path, and the rest of it without its first folder, its first two, and so on: the longest first."""
    parts = path.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _folder(path: str) -> str:
    """The name of the folder that a file lies in; empty if the path names none."""
    return path.split("/")[-2] if "/" in path else ""


def _is_rooted(path: str) -> bool:
    return path.startswith("/")


def _is_upload(path: str) -> bool:
    """Whether it is the address of an upload to Label Studio, whose folders are only project numbers."""
    return "upload" in path.split("/")[:-1]


def _without_query(address: str) -> str:
    """The path in an address: of Label Studio's local files (``?d=``), or of a URL."""
    _, local, path = address.partition("?d=")
    return path if local else address.split("?", 1)[0] if "://" in address else address


def _as_uploaded(file: str) -> str:
    return _DROPPED_ON_UPLOAD.sub("", file.strip().replace(" ", "_"))
