"""Images at working size, decoded once and kept in memory up to a limit."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock
from typing import Protocol, overload

import numpy as np

from rarebox.data.images import read_picture, readers, working_size
from rarebox.data.remote import is_url
from rarebox.types import Bools, ImageRecord, Ints, Picture

AHEAD = 32
"""The most pictures that are read in advance."""


class _Memory:
    """Decoded pictures by image id, up to ``room`` bytes; shared by all lists over the same images."""

    def __init__(self, room: int) -> None:
        self.room, self.kept, self.lock = room, dict[int, Picture](), Lock()

    def keep(self, image_id: int, picture: Picture) -> None:
        with self.lock:
            if image_id not in self.kept and picture.pixels.nbytes <= self.room:
                self.room -= picture.pixels.nbytes
                self.kept[image_id] = picture


class Pictures(Sequence[Picture]):
    """A list of pictures that are decoded on access; those that fit into ``keep_bytes`` stay decoded.

    Safe to read from several threads. ``tall`` (n,) says which images are higher than wide: batches of one orientation
    need less padding.
    """

    def __init__(self, records: Sequence[ImageRecord], size: tuple[int, int], keep_bytes: int = 2 << 30) -> None:
        self.records = tuple(records)
        self.size = size
        self._memory = _Memory(keep_bytes)

    def __reduce__(self) -> tuple[type["Pictures"], tuple[tuple[ImageRecord, ...], tuple[int, int]]]:
        """Pickled without the decoded pictures."""
        return Pictures, (self.records, self.size)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height at working size of each picture, in pixels, without decoding."""
        return [working_size(r.width, r.height, *self.size) for r in self.records]

    @property
    def tall(self) -> Bools:
        return np.array([r.height > r.width for r in self.records], dtype=bool)

    def __len__(self) -> int:
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...

    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        """The picture at a place. Raises UnreadableImage if the file cannot be decoded."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self.records[index]
        picture = self._memory.kept.get(record.id)
        if picture is None:
            picture = read_picture(record, *self.size)
            self._memory.keep(record.id, picture)
        return picture

    def in_batches(self, batches: Iterable[Ints]) -> Iterator[tuple[Ints, list[Picture]]]:
        """The pictures of each batch of indices, which other threads read in advance.

        At most ``AHEAD`` pictures are read in advance, which bounds the memory. Raises `UnreadableImage`.
        """
        waiting: deque[tuple[Ints, list[Future[Picture]]]] = deque()
        with ThreadPoolExecutor(min(AHEAD, readers(any(is_url(record.path) for record in self.records)))) as threads:
            try:
                for places in batches:
                    waiting.append((places, [threads.submit(self.__getitem__, int(place)) for place in places]))
                    while sum(len(batch) for batch, _ in waiting) > AHEAD and len(waiting) > 1:
                        yield _read(*waiting.popleft())
                while waiting:
                    yield _read(*waiting.popleft())
            finally:
                threads.shutdown(cancel_futures=True)

    def of(self, records: Sequence[ImageRecord]) -> "Pictures":
        """Pictures of these records, which share this list's decoded pictures."""
        part = Pictures(records, self.size)
        part._memory = self._memory
        return part


def _read(places: Ints, pictures: Sequence[Future[Picture]]) -> tuple[Ints, list[Picture]]:
    return places, [picture.result() for picture in pictures]


class Sized(Protocol):
    """Anything with a width and a height, such as a picture or a record of an image."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...


def which_are_tall(images: Sequence[Sized]) -> Bools:
    """Which pictures are higher than wide: (n,), without decoding."""
    if isinstance(images, Pictures):
        return images.tall
    return np.array([picture.height > picture.width for picture in images], dtype=bool)
