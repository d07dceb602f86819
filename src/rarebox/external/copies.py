"""Detections on augmented copies, and the maps from images to copies."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rarebox.data.detections import DetectionFile, Image, Line
from rarebox.data.naming import ByName
from rarebox.errors import UserError
from rarebox.external.pool import Pool
from rarebox.external.vocabulary import Understanding
from rarebox.pool.affine import MAPS, Frame, size
from rarebox.types import Detections


class Copies:
    """The detections on augmented copies.

    The map from image to copy comes from the line ("undone" or its matrix), else from the file that ``rarebox views``
    wrote, else from the name of a view that determines it. ``elsewhere`` counts copies of unknown images.
    """

    def __init__(
        self, file: DetectionFile, copies: Mapping[str, Mapping[str, Any]], pool: Pool, order: Sequence[str]
    ) -> None:
        self._file, self._pool, self._order = file, pool, order
        self._entries = ByName[Mapping[str, Any]]()
        self._of_view: dict[tuple[int, str], Mapping[str, Any]] = {}
        for copy, entry in copies.items():
            self._entries.add(copy, entry)
            image_id = pool.find(entry["image"])
            if image_id is not None:
                self._of_view[image_id, entry["view"]] = entry
        self._named: dict[int, list[Image]] = {}
        self.elsewhere = 0
        for name in file.images():
            entry = self._entry(name)
            image_id = pool.find(entry["image"] if entry else name)
            if image_id is None:
                self.elsewhere += 1
            else:
                self._named.setdefault(image_id, []).append(name)
        self._views: list[str] | None = None

    def of(self, image_id: int, understand: Understanding) -> tuple[list[Detections], list[Frame]]:
        """Detections on each copy of an image, in the copy's pixels, and the copies' frames.

        Raises UserError unless every image has the same views, each once.
        """
        lines: dict[str, Line] = {}
        for line in (line for name in self._named.get(image_id, ()) for line in self._file.read(name)):
            entry = self._entry(line.image)
            view = line.view or (str(entry["view"]) if entry else "")
            if not view:
                raise UserError(
                    f'{line.where}: there is no "view". Name it, or name the copy\'s file and give --views-map'
                )
            if view in lines:
                raise UserError(f"{line.where}: the view {view!r} of this image is already in {lines[view].where}")
            lines[view] = line
        if self._views is None:
            known = [name for name in self._order if name in lines]
            self._views = known + sorted(lines.keys() - {*known})
        if not self._views or lines.keys() != {*self._views}:
            ours, others = (", ".join(sorted(views)) or "none" for views in (lines, self._views))
            raise UserError(
                f"{self._file.path}: the image {self._pool.records[image_id].path} has the views {ours}, others have "
                f"{others}. Every image needs a line for each view, with an empty list if there are no detections"
            )
        frames = [self._frame(image_id, view, lines[view]) for view in self._views]
        return [understand(lines[frame.name]) for frame in frames], frames

    def _entry(self, image: Image) -> Mapping[str, Any] | None:
        """The map's entry of a copy, if the line names a file that the map contains."""
        return self._entries.find(image) if isinstance(image, str) else None

    def _frame(self, image_id: int, view: str, line: Line) -> Frame:
        record, entry = self._pool.records[image_id], self._of_view.get((image_id, view))
        patches = entry["patches"] if entry and not len(line.patches) else line.patches.astype(np.float32)
        if line.undone:
            _check_size(line, (record.width, record.height) if record.width else None, "image")
            return Frame(view, np.eye(2, 3), patches)
        if line.matrix is not None:
            return Frame(view, line.matrix, patches, line.size)
        if entry:
            copy = (entry["width"], entry["height"])
            _check_size(line, copy, "copy")
            return Frame(view, entry["matrix"], patches, copy)
        if view not in MAPS:
            raise UserError(
                f"{line.where}: the name {view!r} does not say where its boxes are in the image. Give "
                '--views-map, a "matrix" in the line, or boxes in pixels of the image with "undone": true'
            )
        if not record.width:
            raise UserError(
                f"{line.where}: the size of the image is unknown. Write its width and height beside its detections, or "
                "give --images"
            )
        height, width = size(view, record.height, record.width)
        _check_size(line, (width, height), "copy")
        return Frame(view, MAPS[view](record.height, record.width), patches, (width, height))


def _check_size(line: Line, wanted: tuple[float, float] | None, what: str) -> None:
    """Raise UserError for a line whose boxes are in pixels of a picture of another size."""
    if wanted and line.size not in (None, wanted):
        raise UserError(
            f"{line.where}: the {what} has {wanted[0]:g} x {wanted[1]:g} pixels, and the line says {line.size[0]} x "
            f"{line.size[1]}. Write boxes in pixels of the {what}, and give its width and height or omit them"
        )
