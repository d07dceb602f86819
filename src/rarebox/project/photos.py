"""Identify photos by the content of their files, not by their paths."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rarebox.core.files import real
from rarebox.core.progress import Progress, silent
from rarebox.data.contents import Contents
from rarebox.data.images import UnreadableImage, image_size
from rarebox.data.remote import is_url
from rarebox.types import ImageRecord

MOST_PAIRS = 10_000
"""The most pairs of images and files with the same content that are matched by name."""

MOST_NAMED = 5
"""How many photos a warning names."""


@dataclass(frozen=True)
class Found:
    """The photos after a search. ``moved``: the new path of each moved image, by its id.

    ``lost``: the same for images whose path another photo has taken; no file lies at the path they get here.
    ``changed``: the paths of photos whose content differs from when they were added, at the same size in pixels.
    ``left_out`` is a note on images in the folder of photos that rarebox has written itself, or empty.
    """

    moved: Mapping[int, str]
    lost: Mapping[int, str]
    changed: tuple[str, ...]
    left_out: str = ""

    def warnings(self) -> list[str]:
        """One warning for each kind of problem, for the user."""
        told: list[str] = []
        if self.lost:
            one = "cannot be found, and another photo has taken its path"
            several = "cannot be found, and other photos have taken their paths"
            what = _counted(self.lost.values(), one, several)
            told.append(f"{what}. The labels are kept. Put the files back under any name")
        if self.changed:
            what = _counted(self.changed, "changed since it was labelled", "changed since they were labelled")
            told.append(f"{what}. Check the labels or restore the files")
        return [*told, self.left_out] if self.left_out else told


def _counted(paths: Iterable[str], one: str, several: str) -> str:
    """``2 photos changed: a.jpg, b.jpg``."""
    names = [Path(path).name for path in paths]
    what = f"1 photo {one}" if len(names) == 1 else f"{len(names)} photos {several}"
    return f"{what}: {', '.join(names[:MOST_NAMED])}{', …' if len(names) > MOST_NAMED else ''}"


class Photos:
    """The photos of a store: ``digests`` are the hashes that it keeps by image id, ``contents`` those of the files.

    An image without a digest (an older store, a simulation, a URL) is assumed to be the file at its path.
    """

    def __init__(self, digests: Mapping[int, str], contents: Contents) -> None:
        self.digests, self.contents = digests, contents
        self._all = frozenset(digests.values())

    def is_there(self, record: ImageRecord) -> bool:
        """Whether the photo of an image is at its path, perhaps edited. A URL is assumed to be valid."""
        if is_url(record.path):
            return True
        return os.path.isfile(record.path) and (self._is_own(record) or self._is_edited(record))

    def find(
        self,
        images: Mapping[int, ImageRecord],
        files: Sequence[str],
        folder: Path,
        progress: Progress = silent,
    ) -> Found:
        """Look among the ``files`` of the ``folder`` of photos for every image whose photo is not at its path.

        An image whose file is where it was, outside of that folder, counts as moved only if a copy of it is found. No
        two images get one file: an image whose path holds the photo of another one is ``lost``.
        """
        inside = os.path.join(os.path.abspath(folder), "")
        local = {i: image for i, image in images.items() if not is_url(image.path)}
        self.contents.read([image.path for i, image in local.items() if i in self.digests], progress)
        away = {
            i: image
            for i, image in local.items()
            if not (image.path.startswith(inside) and os.path.isfile(image.path) and self._is_own(image))
        }
        if not away:
            return Found({}, {}, ())
        held = {real(image.path) for i, image in local.items() if i not in away}
        free = [file for file in files if real(file) not in held]
        claimed = {real(image.path) for image in away.values()}
        moved = self._find_again(away, free, [file for file in free if real(file) not in claimed], progress)
        left = {i: image for i, image in away.items() if i not in moved and os.path.isfile(image.path)}
        held |= {real(file) for file in moved.values()}
        held |= {real(image.path) for image in left.values() if self._is_own(image)}
        strange = {i: image for i, image in left.items() if not self._is_own(image)}
        # Photos outside of the folder may have changed places, too.
        elsewhere = [image.path for image in strange.values() if real(image.path) not in held]
        moved |= self._find_again(strange, elsewhere, [], progress)
        held |= {real(file) for file in moved.values()}
        lost, changed = dict[int, str](), list[str]()
        for i, image in strange.items():
            if i in moved or self.contents.of(image.path) is None:  # unreadable, perhaps temporarily
                continue
            if real(image.path) in held or not self._is_edited(image):
                lost[i] = path_of_lost(image)
            else:
                held.add(real(image.path))
                changed.append(image.path)
        return Found(moved, lost, tuple(changed))

    def _is_own(self, image: ImageRecord) -> bool:
        """Whether the file at an image's path has the content that the image had when it was added, as far as known."""
        return image.id not in self.digests or self.contents.of(image.path) == self.digests[image.id]

    def _is_edited(self, image: ImageRecord) -> bool:
        """Whether the file at an image's path may be its edited photo: of the same size, and no other image's."""
        return self.contents.of(image.path) not in self._all and _size(image.path) == (image.width, image.height)

    def _find_again(
        self, lost: Mapping[int, ImageRecord], files: Sequence[str], new: Sequence[str], progress: Progress
    ) -> dict[int, str]:
        """The file of ``files`` that each image of ``lost`` now has, by its id, where its content is found.

        A missing image without a digest is identified by its name, its size in pixels and the folder that most images
        moved to, if only one of the ``new`` files fits. No two images get the same file.
        """
        known = {i: self.digests.get(i) or self.contents.of(record.path) for i, record in lost.items()}
        by_content: dict[str, list[str]] = defaultdict(list)
        if any(known.values()):
            self.contents.read(files, progress)
            for file in files:
                by_content[self.contents.of(file) or ""].append(file)
        ids_of: dict[str, list[int]] = defaultdict(list)
        for i, content in known.items():
            ids_of[content or ""].append(i)
        without = ids_of.pop("", [])
        found: dict[int, str] = {}
        for content, ids in ids_of.items():
            for i, file in _pairs(ids, lost, by_content.get(content, ())):  # any pairing is correct; names make it tidy
                found[i] = file
        taken = set(found.values())
        return found | _by_name({i: lost[i] for i in without}, [file for file in new if file not in taken])


def path_of_lost(image: ImageRecord) -> str:
    """The path for an image whose old path another photo has taken. No file exists there, and the name says why."""
    path = Path(image.path)
    return str(path.with_name(f"{path.stem} (missing, image {image.id}){path.suffix}"))


def _pairs(ids: Sequence[int], lost: Mapping[int, ImageRecord], files: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Pair images with files, those whose paths share the longest end first."""
    if len(ids) * len(files) > MOST_PAIRS:
        yield from zip(ids, files, strict=False)
        return
    pairs = sorted(((i, file) for i in ids for file in files), key=lambda pair: -_alike(lost[pair[0]].path, pair[1]))
    seen: set[int | str] = set()
    for i, file in pairs:
        if not seen & {i, file}:
            seen |= {i, file}
            yield i, file


def _by_name(lost: Mapping[int, ImageRecord], files: Sequence[str]) -> dict[int, str]:
    """Match by name, size and the folder that most images moved to, where this is unambiguous."""
    named: dict[str, list[str]] = defaultdict(list)
    for file in files:
        named[os.path.basename(file)].append(file)
    size_of = cache(_size)
    moves = {
        (i, file): _move(record.path, file)
        for i, record in lost.items()
        for file in named[os.path.basename(record.path)]
        if size_of(file) == (record.width, record.height)
    }
    votes = Counter(moves.values())
    best_of: dict[int | str, list[tuple[int, str]]] = defaultdict(list)
    for pair in sorted(moves, key=lambda pair: -votes[moves[pair]]):
        for one in pair:
            if not best_of[one] or votes[moves[best_of[one][0]]] == votes[moves[pair]]:
                best_of[one].append(pair)
    return dict(pair for pair in moves if best_of[pair[0]] == best_of[pair[1]] == [pair])


def _size(file: str) -> tuple[int, int] | None:
    try:
        return image_size(file)[:2]
    except UnreadableImage:
        return None


def _alike(path: str, other: str) -> int:
    """The number of equal parts at the end of two paths."""
    parts = list(zip(reversed(Path(path).parts), reversed(Path(other).parts), strict=False))
    return next((n for n, (a, b) in enumerate(parts) if a != b), len(parts))


def _move(path: str, other: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The folder that was moved with everything below it: its old and its new path."""
    alike = _alike(path, other)
    return Path(path).parts[:-alike], Path(other).parts[:-alike]
