"""The detections on each image, recorded as soon as they are made, so that nothing is detected twice."""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rarebox.core.files import write_text
from rarebox.data.detected import ImageDetections
from rarebox.data.image_list import NamedImage
from rarebox.deploy.model import Model
from rarebox.errors import UserError

LINES = "detections.jsonl"


class Results:
    """The file of all detections: a first line with the classes and the model, then one JSON line for each image.

    ``rarebox rank --detections`` and ``rarebox init --predictions`` read it. Lines are appended; a line that a killed
    process left half-written is dropped. Raises UserError if the file is of another model.
    """

    def __init__(self, file: Path, model: Model) -> None:
        self.file = file
        self._head = {"classes": list(dict.fromkeys(model.classes)), "model": model.sha256}
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
        return name in self._found and self._found[name].stamp == stamp_of(file)

    def get(self, name: str) -> ImageDetections | None:
        """The result for an image, if there is one."""
        return self._found.get(name)

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
                        one = ImageDetections(**{**value, "stamp": tuple(value["stamp"]) if value["stamp"] else None})
                        self._found[one.image] = one
                except (ValueError, TypeError, KeyError):
                    if number == 0:
                        raise UserError(f"{self.file} is no file of rarebox. Name a new or empty folder") from None
                    break
                good += len(line)
        return good

    def _check(self, head: dict[str, Any]) -> None:
        if head["model"] != self._head["model"]:
            raise UserError(f"{self.file} holds the detections of another model. Name a new folder")
        if head["classes"] != self._head["classes"]:
            raise UserError(f"classes have changed since {self.file} was written. Name a new folder")


def stamp_of(file: Path | str) -> tuple[int, int] | None:
    """Size and time of change of a local file, in bytes and nanoseconds; None for a URL or a missing file."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
