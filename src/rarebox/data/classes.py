"""Names of classes, and which of them mean the same class. Every reader of names uses this."""

import unicodedata
from collections.abc import Iterable, Iterator


def class_key(name: str) -> str:
    """A key that is equal for names of one class: it ignores case, spaces and the encoding of accents."""
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()


class Classes:
    """Classes in the order of their indices, looked up by name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, int] = {}
        self._alike: dict[str, int] = {}
        for index, name in enumerate(names):
            self.add(name, index)

    def add(self, name: str, index: int) -> None:
        """Add a class under its name. The first of several equivalent names counts."""
        self._exact.setdefault(name, index)
        self._alike.setdefault(class_key(name), index)

    def find(self, name: str) -> int | None:
        """The index of the class with exactly that name, else with an equivalent one; None if there is none."""
        return self._exact.get(name, self._alike.get(class_key(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact)
