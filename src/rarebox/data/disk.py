"""Files under names that were written on another system, with different case, accents or separators."""

import os
import unicodedata
from pathlib import Path

from rarebox.core.files import read_bytes


def slashes(name: str) -> str:
    """A path, possibly from Windows, with ``/`` between its folders."""
    return name.replace("\\", "/")


def place_key(path: str | Path) -> str:
    """A key that is equal for paths that some systems treat as the same: it ignores case and accent encodings."""
    return unicodedata.normalize("NFC", Path(path).as_posix()).casefold()


def searchable(file: Path) -> bytes:
    """The content of a file to search for words, without the zeros of UTF-16; empty if it cannot be read."""
    try:
        return read_bytes(file).replace(b"\0", b"")
    except OSError:  # no permission, a pipe or a folder
        return b""


class Disk:
    """Files and folders by name, ignoring case. Folders are listed once, so create one `Disk` for each read."""

    def __init__(self) -> None:
        self._inside: dict[Path, dict[str, list[str]]] = {}
        self._stems: dict[Path, dict[str, list[str]]] = {}

    def find(self, path: Path) -> Path | None:
        """What is at that path, else the only entry with an equivalent path; None if there are none or several."""
        if os.path.exists(path):
            return path
        if path.parent == path or (parent := self.find(path.parent)) is None:
            return None
        names = self._entries(parent).get(place_key(path.name), ())
        return parent / names[0] if len(names) == 1 else None

    def namesakes(self, path: Path) -> list[Path]:
        """The entries in the folder of a path whose names differ from it only in case and suffix."""
        folder = path.parent
        if folder not in self._stems:
            found = self._stems[folder] = {}
            for name in (name for alike in self._entries(folder).values() for name in alike):
                found.setdefault(place_key(Path(name).stem), []).append(name)
        return [folder / name for name in self._stems[folder].get(place_key(path.stem), ())]

    def _entries(self, folder: Path) -> dict[str, list[str]]:
        if folder not in self._inside:
            found: dict[str, list[str]] = {}
            try:
                for name in os.listdir(folder):
                    found.setdefault(place_key(name), []).append(name)
            except OSError:  # missing or unreadable: nothing is found there
                pass
            self._inside[folder] = found
        return self._inside[folder]
