"""Photos that have moved, found again by what is in them."""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from rarebox.data.images import UnreadableImage, image_size, readers
from rarebox.data.remote import is_url
from rarebox.types import ImageRecord

MOST_PAIRS = 10_000
"""Images times files of one and the same content that are paired by their names."""


def digest(file: str | Path, content: bytes | None = None) -> str | None:
    """A hash of a file's content, which may be at hand; None for a file that cannot be read."""
    if content is not None:
        return hashlib.sha256(content).hexdigest()
    try:
        with open(file, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return None


def is_there(record: ImageRecord) -> bool:
    """Whether an image's file is where it was; one behind a URL is taken to be."""
    return is_url(record.path) or os.path.isfile(record.path)


def find_again(
    lost: Mapping[int, ImageRecord], digests: Mapping[int, str], files: Sequence[str]
) -> dict[int, str]:  # fmt: skip
    """Which of ``files`` each image of ``lost`` lies in now: by its id, as far as one is found.

    ``digests`` are those that were kept. An image without one, whose file is gone (its store is an old one), is known
    by its name, its size in pixels and the folder that most of them moved to, if only one file fits. No two images get
    one file.
    """
    known = {i: digests.get(i) or digest(record.path) for i, record in lost.items() if not is_url(record.path)}
    by_content: dict[str, list[str]] = defaultdict(list)
    if any(known.values()):
        with ThreadPoolExecutor(readers(far=False)) as pool:
            for file, content in zip(files, pool.map(digest, files), strict=True):
                by_content[content or ""].append(file)
    ids_of: dict[str, list[int]] = defaultdict(list)
    for i, content in known.items():
        ids_of[content or ""].append(i)
    without = ids_of.pop("", [])
    found: dict[int, str] = {}
    for content, ids in ids_of.items():
        for i, file in _pairs(ids, lost, by_content.get(content, ())):  # any pair is right; names make it a neat one
            found[i] = file
    taken = set(found.values())
    return found | _by_name({i: lost[i] for i in without}, [file for file in files if file not in taken])


def _pairs(ids: Sequence[int], lost: Mapping[int, ImageRecord], files: Sequence[str]) -> Iterator[tuple[int, str]]:
    """Images with one file each, in the order of how much their paths end alike."""
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
    """By name, size and the folder that most of them moved to, where nothing else could be meant."""
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
    """How many parts at the end of two paths are the same."""
    parts = list(zip(reversed(Path(path).parts), reversed(Path(other).parts), strict=False))
    return next((n for n, (a, b) in enumerate(parts) if a != b), len(parts))


def _move(path: str, other: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """From which folder to which one a file was moved, with all that lies below it."""
    alike = _alike(path, other)
    return Path(path).parts[:-alike], Path(other).parts[:-alike]
