"""How files of detections name images."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import PurePath

from rarebox.data.disk import slashes
from rarebox.data.images import SUFFIXES
from rarebox.data.naming import ByName
from rarebox.errors import UserError
from rarebox.types import ImageRecord


class Names:
    """Index of images by the ends of their paths, and by file names without suffix, as text and as numbers."""

    def __init__(self, records: Iterable[ImageRecord]) -> None:
        self._records = {record.id: record for record in records}
        self.by_path = ByName[int]()
        self.by_stem: dict[str | int, set[int]] = defaultdict(set)
        for record in self._records.values():
            self.by_path.add(record.path, record.id)
            stem = PurePath(slashes(record.path)).stem
            for form in (stem, int(stem)) if stem.isdecimal() else (stem,):
                self.by_stem[form].add(record.id)

    def alike(self, name: str) -> int | None:
        """The image that a name may mean although folders, case or suffix differ; None if there is none.

        Raises UserError if several images fit equally.
        """
        if (found := self.by_path.match(name)) is not None:
            return found
        for simplified, index in self._simplified:
            if same := index.match(simplified(name)):
                if len(same) > 1:
                    paths = " or ".join(self._records[i].path for i in same[:2])
                    raise UserError(f"{name!r} may be {paths}. Write as much of the path as distinguishes them")
                return same[0]
        return None

    @cached_property
    def _simplified(self) -> list[tuple[Callable[[str], str], ByName[list[int]]]]:
        """Two ways to simplify a path, and the ids of the images by their simplified paths."""
        found: list[tuple[Callable[[str], str], ByName[list[int]]]] = []
        for simplified in (_without_capitals, _without_suffix):
            ids: dict[str, list[int]] = defaultdict(list)
            for record in self._records.values():
                ids[simplified(record.path)].append(record.id)
            index = ByName[list[int]]()
            for path, same in ids.items():
                index.add(path, same)
            found.append((simplified, index))
        return found

    def named_otherwise(self, names: Iterable[str], is_free: Callable[[ImageRecord], bool]) -> dict[str, int]:
        """The free image that each name means (:meth:`alike`), for names that mean one.

        Raises UserError if a name may be several images, or if several names may be one image.
        """
        meant: dict[int, str] = {}
        free: Names | None = None
        for name in names:
            try:
                found = self.alike(name)
            except UserError:
                free = free or Names(filter(is_free, self._records.values()))
                if free.alike(name) is None:
                    continue  # other names are the images' own
                raise
            if found is None or not is_free(self._records[found]):
                continue
            if (first := meant.setdefault(found, name)) != name:
                raise UserError(
                    f"{first!r} and {name!r} may both be {self._records[found].path}. Write its folder in all files"
                )
        return {name: image_id for image_id, name in meant.items()}


def _without_capitals(path: str) -> str:
    return slashes(path).casefold()


def _without_suffix(path: str) -> str:
    plain = _without_capitals(path)
    stem, dot, suffix = plain.rpartition(".")
    return stem if dot + suffix in SUFFIXES else plain


def examples(meant: Mapping[str, int], records: Mapping[int, ImageRecord]) -> str:
    """``images/a.jpg for photos/a.jpg``, of the first name."""
    name = min(meant)
    return f"{name} for {records[meant[name]].path}"
