"""The detections on each image, recorded as soon as they are made, so that nothing is detected twice."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rarebox.core.files import stat_of, write_text
from rarebox.data.detected import ImageDetections
from rarebox.data.image_list import NamedImage
from rarebox.data.remote import is_url
from rarebox.data.tiles import Tiling
from rarebox.deploy.model import Model
from rarebox.errors import UserError

LINES = "detections.jsonl"


class Results:
    """The file of all detections: a first line with the classes and the model, then one JSON line for each image.

    ``rarebox rank --detections`` and ``rarebox init --predictions`` read it. Lines are appended; a line that a killed
    process left half-written is dropped. Classes that were renamed or merged since have their present names. Raises
    UserError if the file is of another model or tiling.
    """

    def __init__(self, file: Path, model: Model, tiling: Tiling | None = None) -> None:
        self.file, self._model = file, model
        self._head = {"classes": list(dict.fromkeys(model.classes)), "model": model.sha256}
        if tiling:
            self._head["tiles"] = asdict(tiling)
        self._found = dict[str, ImageDetections]()
        self._out: BufferedWriter | None = None

    def __enter__(self) -> Self:
        good = self._read() if self.file.exists() else 0
        self._out = self.file.open("ab")
        self._out.truncate(good)
        if not good:
            self._append(self._head)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._out:
            self._out.close()

    def knows(self, name: str, file: Path | str) -> bool:
        """Whether there is a result for an image, and its file is still the same."""
        return name in self._found and (stamp := stamp_of(file)) is not None and self._found[name].stamp == stamp

    def of(self, files: Sequence[NamedImage]) -> list[ImageDetections]:
        """The results for the images that have one, in their order."""
        return [self._found[name] for name, file in files if self.knows(name, file)]

    @property
    def names(self) -> list[str]:
        """The names of all images with a result."""
        return [*self._found]

    def add(self, image: NamedImage, found: ImageDetections) -> None:
        """Record a result at once."""
        name, file = image
        self._found[name] = replace(found, stamp=stamp_of(file))
        self._append(asdict(self._found[name]))

    def keep_only(self, found: Sequence[ImageDetections]) -> None:
        """Rewrite the file with these results, in this order."""
        assert self._out
        self._out.close()
        write_text(self.file, "".join(_line(one) for one in (self._head, *map(asdict, found))))
        self._out = self.file.open("ab")

    def _append(self, value: dict[str, Any]) -> None:
        assert self._out
        self._out.write(_line(value).encode(errors="backslashreplace"))
        self._out.flush()

    def _read(self) -> int:
        """Read the whole lines, and return the number of bytes that they take."""
        good = 0
        with self.file.open("rb") as lines:
            for number, line in enumerate(lines):
                if not line.endswith(b"\n"):
                    break
                try:
                    value = json.loads(line)
                    if number == 0:
                        self._check(value)
                    else:
                        one = self._result(value)
                        self._found[one.image] = one
                except (ValueError, TypeError, KeyError, IndexError):
                    if number == 0:
                        raise UserError(f"{self.file} is no file of rarebox. Name a new or empty folder") from None
                    break
                good += len(line)
        return good

    def _check(self, head: dict[str, Any]) -> None:
        if head["model"] != self._head["model"]:
            raise UserError(f"{self.file} holds the detections of another model. Name a new folder")
        if head.get("tiles") != self._head.get("tiles"):
            raise UserError(f"{self.file} holds detections on tiles of another size, or on none. Name a new folder")

    def _result(self, value: dict[str, Any]) -> ImageDetections:
        """A line as a result, its labels by the present classes."""
        labels = [self._model.name_of(number) for number in value["numbers"]]
        return ImageDetections(**{**value, "labels": labels})


def stamp_of(file: Path | str) -> str | None:
    """What changes when a local file changes or another one takes its name (`stat_of`). A URL is its own stamp.

    None if the file is missing.
    """
    if is_url(file):
        return str(file)
    try:
        return " ".join(map(str, stat_of(os.stat(file))))
    except (OSError, ValueError):
        return None


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
