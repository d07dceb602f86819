"""Feature maps of a frozen backbone, computed once for each image and its views and cached on disk.

:class:`FeatureCache` stores them. :class:`FrozenPictures` takes the place of decoded pictures.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rarebox.core.files import damaged, hold_when_free
from rarebox.data.pictures import Pictures
from rarebox.detectors.maps import CachedPicture, Extracted, FeatureMaps, padded
from rarebox.errors import UserError
from rarebox.pool import affine
from rarebox.types import ImageRecord

ROOM_LEFT = 1 << 30
"""Bytes of the disk that the cache leaves free."""


@dataclass(frozen=True)
class Layout:
    """The order of one image's maps in the file: the input, then each view; of each, the levels (h, w, C) ``float16``
    from fine to coarse. ``levels`` are the stride and C of each, ``views`` are names."""

    levels: tuple[tuple[int, int], ...]
    views: tuple[str, ...]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """(h, w) of an input and of each of its views."""
        return [(height, width), *(affine.size(name, height, width) for name in self.views)]

    def shapes(self, height: int, width: int) -> list[list[tuple[int, int, int]]]:
        """(h, w, C) of each level of the input and of each of its views."""
        return [[(padded(h) // s, padded(w) // s, c) for s, c in self.levels] for h, w in self.sizes(height, width)]

    def numbers(self, height: int, width: int) -> int:
        """The count of numbers in all maps of an image with that input size."""
        return sum(math.prod(level) for view in self.shapes(height, width) for level in view)


class FeatureCache:
    """Feature maps by image id: an append-only file ``maps.f16``, and the place of each image in ``index.jsonl``.

    An image enters the index only after its maps are synced to disk, so a killed process loses at most one batch.
    Several processes may share a cache; one writes at a time.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self._places: dict[int, tuple[int, int, int]] = {}
        """Image id -> (first number, height and width of the input)."""
        self._read_up_to = 0
        self._numbers: NDArray[np.float16] | None = None

    def __getstate__(self) -> dict[str, object]:
        """State without open files: another process opens its own."""
        return {"folder": self.folder, "layout": self.layout, "_places": {}, "_read_up_to": 0, "_numbers": None}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._read()

    def missing(self, ids: Sequence[int]) -> list[int]:
        """The ids whose maps are not cached."""
        self._read()
        return [i for i in ids if i not in self._places]

    def input_size(self, image_id: int) -> tuple[int, int]:
        """(h, w) of an image's input. Raises KeyError if the image is missing."""
        return self._places[image_id][1:]

    def maps(self, image_id: int, view: int) -> FeatureMaps:
        """The maps of an image (``view`` 0) or of one of its views. Raises KeyError if the image is missing."""
        assert self._numbers is not None
        first, height, width = self._places[image_id]
        shapes = self.layout.shapes(height, width)
        first += sum(math.prod(level) for before in shapes[:view] for level in before)
        levels = []
        for shape in shapes[view]:
            part = np.array(self._numbers[first : first + math.prod(shape)]).reshape(shape)
            levels.append(torch.from_numpy(part).permute(2, 0, 1).float())
            first += math.prod(shape)
        size, views = self.layout.sizes(height, width)[view], self.layout.views
        mirror = partial(self.maps, image_id, views.index("flip") + 1) if not view and "flip" in views else None
        return FeatureMaps(tuple(levels), (3, *size), mirror)

    @contextmanager
    def adding(self) -> Iterator[Callable[[Mapping[int, Extracted]], None]]:
        """Yield a function that stores the maps of a batch by image id. Waits while another process adds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_when_free(self.folder / "lock"):
            self._read()
            end = max((f + self.layout.numbers(h, w) for f, h, w in self._places.values()), default=0)
            kept = {self.folder / "maps.f16": 2 * end, self.folder / "index.jsonl": self._read_up_to}
            try:
                with ExitStack() as open_files:
                    numbers, index = (open_files.enter_context(file.open("ab")) for file in kept)
                    for file, size in zip((numbers, index), kept.values(), strict=True):
                        file.truncate(size)  # the remains of a killed process

                    def keep(batch: Mapping[int, Extracted]) -> None:
                        nonlocal end
                        lines = []
                        for image_id, (size, levels) in batch.items():
                            lines.append(json.dumps([image_id, end, *size]) + "\n")
                            for level in levels:
                                numbers.write(np.ascontiguousarray(level, dtype=np.float16).tobytes())
                                end += level.size
                        for file, content in ((numbers, b""), (index, "".join(lines).encode())):
                            file.write(content)
                            file.flush()
                            os.fsync(file.fileno())
                        kept.update(zip(kept, (2 * end, index.tell()), strict=True))

                    yield keep
            except BaseException:  # such as a full disk, which half-written maps would keep full
                for name, size in kept.items():
                    with suppress(OSError):
                        os.truncate(name, size)
                raise
        self._read()

    def _read(self) -> None:
        """Read the lines added to the index since the last call, except an unfinished one."""
        file = self.folder / "index.jsonl"
        if (file.stat().st_size if file.exists() else 0) < self._read_up_to:  # the cache was deleted
            self._places, self._read_up_to, self._numbers = {}, 0, None
        if not file.exists():
            return
        with file.open("rb") as index:
            index.seek(self._read_up_to)
            new = index.read()
        new = new[: new.rfind(b"\n") + 1]
        for line in new.splitlines():
            try:
                image_id, first, height, width = json.loads(line)
                self._places[image_id] = (first, height, width)
            except (ValueError, TypeError) as error:
                raise damaged(self.folder, error) from error
        self._read_up_to += len(new)
        if self._places and (new or self._numbers is None):
            file = self.folder / "maps.f16"  # it may end in half a number after a kill
            there = file.stat().st_size // 2 if file.exists() else 0
            if there < max(f + self.layout.numbers(h, w) for f, h, w in self._places.values()):
                raise damaged(self.folder, "maps.f16 is too short")
            self._numbers = np.memmap(file, dtype=np.float16, mode="r", shape=(there,))


class FrozenPictures(Pictures):
    """Pictures that need no decoding: each is a :class:`CachedPicture`, unless it is ``missing``."""

    def __init__(self, pictures: Pictures, store: FeatureCache) -> None:
        self._pictures, self.store = pictures, store
        self.records, self.size = pictures.records, pictures.size

    def __reduce__(self) -> tuple[type[Pictures], tuple[Pictures, FeatureCache]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return FrozenPictures, (self._pictures, self.store)

    def __getitem__(self, index: Any) -> Any:
        """The :class:`CachedPicture` at a place. Raises KeyError if it is missing."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        record = self.records[index]
        return CachedPicture(
            record.width, record.height, self.store.input_size(record.id), partial(self.store.maps, record.id)
        )

    def of(self, records: Sequence[ImageRecord]) -> "FrozenPictures":
        return FrozenPictures(self._pictures.of(records), self.store)

    def missing(self) -> "FrozenPictures":
        """The pictures whose maps are not cached."""
        missing = set(self.store.missing([record.id for record in self.records]))
        return self.of([record for record in self.records if record.id in missing])

    @property
    def decoded(self) -> Pictures:
        """The same pictures with their pixels."""
        return self._pictures

    def check_room(self) -> int:
        """Bytes that the maps of these pictures take. Raises UserError if the disk lacks room for them."""
        need = 2 * sum(self.store.layout.numbers(height, width) for width, height in self.sizes)
        free = shutil.disk_usage(_existing(self.store.folder)).free
        if need > free - ROOM_LEFT:
            raise UserError(
                f"the frozen backbone's features of {len(self)} images take {need / 1e9:.1f} GB, and the disk of "
                f"{self.store.folder} has {free / 1e9:.1f} GB free. Make room, lower detector.image_size, or train "
                "without --freeze"
            )
        return need


def _existing(folder: Path) -> Path:
    return folder if folder.exists() else _existing(folder.parent)
