"""Names of classes: which ones mean the same class. Everything that takes names in asks here."""

import unicodedata
from collections.abc import Iterable, Iterator


def class_key(name: str) -> str:
    """What is equal for two names of one class: neither capitals, nor blanks, nor the encoding of accents count."""
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()


class Classes:
    """Classes in the order of their indices, found again by name."""

    def __init__(self, names: Iterable[str]) -> None:
        self._exact: dict[str, int] = {}
        self._alike: dict[str, int] = {}
        for index, name in enumerate(names):
            self.add(name, index)

    def add(self, name: str, index: int) -> None:
        """Make a class known by its name; the first of several classes alike counts."""
        self._exact.setdefault(name, index)
        self._alike.setdefault(class_key(name), index)

    def find(self, name: str) -> int | None:
        """The index of the class of exactly that name, else of one that is alike; None if there is none."""
        return self._exact.get(name, self._alike.get(class_key(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._exact)
