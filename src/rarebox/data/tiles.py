"""Tiles: overlapping parts of large photos. They are labelled as images of their own, and their boxes are joined again.

A detector shrinks each image to its input. An object of 20 pixels on a photo of 4000 vanishes there; on a tile it stays
visible, to the detector and to people. Read :func:`cut` and :func:`join` first.
"""

import io
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from rarebox.core.boxes import all_overlapping, hull, iou_matrix
from rarebox.core.files import damaged, hold, read_json, real, write_bytes, write_json
from rarebox.core.progress import Progress, silent
from rarebox.data.images import (
    UnreadableImage,
    image_files,
    image_size,
    none_readable,
    not_read,
    read_image,
    readers,
    working_size,
)
from rarebox.data.naming import is_writable
from rarebox.errors import UserError
from rarebox.types import Bools, Detections, Floats, Ints, Picture, as_boxes, concatenate

TILES, LOCK = "tiles.json", "lock"
"""The file in a folder of tiles that lists their photos, and the lock of the folder."""

SAME_PART = 0.5
"""Boxes of one class on two tiles are one object if their IoU, within what both tiles show, is at least this."""

NEAR_EDGE = 0.01
"""A box is cut by its tile if it comes this close to an inner edge, as a fraction of the tile's side."""


@dataclass(frozen=True)
class Tiling:
    """How photos are cut: into square tiles of ``side`` pixels that overlap by at least ``overlap`` pixels.

    Raises UserError for a side below 64, and for an overlap of more than half of it.
    """

    side: int
    overlap: int

    def __post_init__(self) -> None:
        if self.side < 64:
            raise UserError(f"tiles must have sides of at least 64 pixels, got {self.side}")
        if not 0 <= self.overlap <= self.side // 2:
            raise UserError(f"the overlap must be between 0 and half of the side, {self.side // 2}, got {self.overlap}")

    @classmethod
    def of(cls, side: int, overlap: int | None = None) -> "Tiling":
        """With the default overlap, a fifth of the side."""
        return cls(side, side // 5 if overlap is None else overlap)

    def windows(self, width: int, height: int) -> Floats:
        """The tiles of a photo, row by row, evenly spaced: (T, 4) boxes. They cover it, and none extends beyond it."""
        across, down = self._starts(width), self._starts(height)
        w, h = min(self.side, width), min(self.side, height)
        return as_boxes([(x, y, x + w, y + h) for y in down for x in across])

    def _starts(self, length: int) -> list[int]:
        count = 1 if length <= self.side else math.ceil((length - self.overlap) / (self.side - self.overlap))
        return np.linspace(0, max(length - self.side, 0), count).round().astype(int).tolist()


def tiling_of(side: int | None, overlap: int | None) -> Tiling | None:
    """The tiling of a detection; None without a side. Raises UserError for an overlap alone, and as :class:`Tiling`."""
    if side is None and overlap is not None:
        raise UserError("an overlap is for tiles. Give the side of a tile, too")
    return None if side is None else Tiling.of(side, overlap)


@dataclass(frozen=True)
class Tiles:
    """A folder of tiles: the folder of the photos, and the (width, height) of each by its name there."""

    folder: Path
    photos: Path
    tiling: Tiling
    sizes: Mapping[str, tuple[int, int]]

    def files(self, photo: str) -> list[Path]:
        """The tiles of a photo, in the order of :meth:`Tiling.windows`."""
        return [self.folder / name for name in _names(photo, self.tiling.windows(*self.sizes[photo]))]


@dataclass(frozen=True)
class Cut:
    """What :func:`cut` did: counts of photos and tiles, and the photos that cannot be read."""

    photos: int
    tiles: int
    unreadable: tuple[UnreadableImage, ...]


def cut(photos: Path, to: Path, tiling: Tiling, progress: Progress = silent) -> Cut:
    """Write the tiles of all photos below a folder into the folder ``to``, and list them in its ``tiles.json``.

    The same call again resumes, and adds photos that are new. Raises UserError if there is no readable photo, and if
    ``to`` holds anything else or tiles of another size; and Busy while another process cuts into it.
    """
    if not photos.is_dir():
        raise UserError(f"{photos} is not a folder. Name the folder of your photos")
    if real(to).is_relative_to(real(photos)) or real(photos).is_relative_to(real(to)):
        raise UserError(f"{to} must lie outside of the folder of photos, {photos}")
    before = _known(to, tiling)
    names = {file.relative_to(photos).as_posix(): file for file in image_files(photos)}
    if not names:
        raise UserError(f"{photos} contains no images. {not_read(photos)}".removesuffix(". "))
    to.mkdir(parents=True, exist_ok=True)
    with hold(to / LOCK):
        _write(Tiles(to, photos, tiling, before), finished=False)
        sizes, unreadable = _cut_all(names, to, tiling, progress)
        if not sizes:
            raise none_readable(photos, unreadable)
        _write(Tiles(to, photos, tiling, {**before, **sizes}), finished=True)
    return Cut(len(sizes), sum(len(tiling.windows(*size)) for size in sizes.values()), tuple(unreadable))


def read(folder: Path) -> Tiles | None:
    """What a folder of tiles says; None if it holds none. Raises UserError if cutting was interrupted, and Damaged."""
    found = _read(folder)
    if found and not found[1]:
        tiles, tiling = found[0], found[0].tiling
        raise UserError(
            f"{folder} does not hold all tiles yet. Finish them: rarebox tile {tiles.photos} {folder} --side "
            f"{tiling.side} --overlap {tiling.overlap}"
        )
    return found[0] if found else None


def join(
    boxes: Floats, labels: Ints, scores: Floats, tile: Ints, windows: Floats, photo: tuple[int, int]
) -> tuple[Floats, Ints]:
    """The boxes of whole objects, from those on the tiles of a photo of a (width, height), and a row for each.

    ``boxes`` (N, 4) in pixels of the photo, ``labels`` and ``scores`` (N,), ``tile`` (N,) rows of ``windows`` (T, 4).
    Returns (G, 4) boxes and (G,) rows in ascending order, whose labels and scores count. An object that a tile shows
    whole has the box of the highest score from such a tile. Any other has the hull of its parts.
    """
    whole = ~_cut_by(windows[tile], boxes, photo)
    groups = _same_object(boxes, labels, tile, windows)
    best = {int(group[np.lexsort((-scores[group], ~whole[group]))[0]]): group for group in groups}
    rows = np.array(sorted(best), dtype=np.int64)
    return as_boxes([boxes[row] if whole[row] else hull(boxes[best[row]].reshape(-1, 2)) for row in rows]), rows


def join_detections(found: Sequence[Detections], windows: Floats, photo: tuple[int, int]) -> Detections:
    """The detections on a photo of a (width, height), best first, from those on its tiles, ``windows`` (T, 4)."""
    if len(windows) == 1:
        return found[0]
    tile = np.repeat(np.arange(len(found)), [len(one) for one in found])
    every = concatenate(found)
    boxes, rows = join(every.boxes + windows[tile][:, [0, 1, 0, 1]], every.labels, every.scores, tile, windows, photo)
    best = np.argsort(-every.scores[rows], kind="stable")
    return replace(every[rows[best]], boxes=boxes[best])


def pictures(path: str | Path, windows: Floats, size: tuple[int, int]) -> list[Picture]:
    """The tiles of a photo at working size: short and long side at most. Raises UnreadableImage."""
    whole, result = Image.fromarray(read_image(path)), list[Picture]()
    for x1, y1, x2, y2 in windows.astype(int).tolist():
        width, height = x2 - x1, y2 - y1
        small = whole.resize(working_size(width, height, *size), Image.Resampling.BILINEAR, (x1, y1, x2, y2))
        result.append(Picture(np.asarray(small), width, height))
    return result


def _same_object(boxes: Floats, labels: Ints, tile: Ints, windows: Floats) -> list[Ints]:
    """The rows of each object: boxes of one class that agree on what their tiles have in common."""
    links = [np.zeros((2, 0), dtype=np.int64)]
    for a, b in zip(*all_overlapping(windows, windows, 0.0)[:2], strict=True):
        if a < b:
            shared = np.concatenate(
                [np.maximum(windows[a, :2], windows[b, :2]), np.minimum(windows[a, 2:], windows[b, 2:])]
            )
            rows, others = np.flatnonzero(tile == a), np.flatnonzero(tile == b)
            seen, also = (np.clip(boxes[some], shared[[0, 1, 0, 1]], shared[[2, 3, 2, 3]]) for some in (rows, others))
            same = (iou_matrix(seen, also) >= SAME_PART) & (labels[rows, None] == labels[None, others])
            i, j = np.nonzero(same)
            links.append(np.stack([rows[i], others[j]]))
    i, j = np.concatenate(links, axis=1)
    first, before = np.arange(len(boxes)), np.zeros(0)  # the first row of each box's object
    while not np.array_equal(first, before):
        before = first.copy()
        np.minimum.at(first, i, before[j])
        np.minimum.at(first, j, before[i])
    return [np.flatnonzero(first == row) for row in np.unique(first)]


def _cut_by(windows: Floats, boxes: Floats, photo: tuple[int, int]) -> Bools:
    """Whether boxes reach the edge of their tile where the photo goes on: (N, 4), (N, 4) -> (N,)."""
    near = NEAR_EDGE * (windows[:, 2:] - windows[:, :2])
    start = (windows[:, :2] > 0) & (boxes[:, :2] < windows[:, :2] + near)
    end = (windows[:, 2:] < np.array(photo)) & (boxes[:, 2:] > windows[:, 2:] - near)
    return np.asarray((start | end).any(axis=1))


def _read(folder: Path) -> tuple[Tiles, bool] | None:
    """The content of ``tiles.json``, and whether cutting was finished."""
    file = folder / TILES
    if not file.is_file():
        return None
    content = read_json(file, dict)
    try:
        sizes = {str(name): (int(width), int(height)) for name, (width, height) in content["sizes"].items()}
        tiling = Tiling(int(content["side"]), int(content["overlap"]))
        return Tiles(folder, Path(content["photos"]), tiling, sizes), content["finished"] is True
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(file, error) from error


def _cut_all(
    names: Mapping[str, Path], to: Path, tiling: Tiling, progress: Progress
) -> tuple[dict[str, tuple[int, int]], list[UnreadableImage]]:
    """Cut photos by name. Returns the sizes of those that can be read, and the others."""
    sizes, unreadable = dict[str, tuple[int, int]](), list[UnreadableImage]()
    progress("cut", 0, len(names), "photos")
    with ThreadPoolExecutor(readers(far=False)) as threads:
        found = threads.map(partial(_cut_one, to=to, tiling=tiling), names.keys(), names.values())
        for number, (name, size) in enumerate(zip(names, found, strict=True), 1):
            if isinstance(size, UnreadableImage):
                unreadable.append(size)
            else:
                sizes[name] = size
            progress("cut", number, len(names), "photos")
    return sizes, unreadable


def _cut_one(name: str, photo: Path, to: Path, tiling: Tiling) -> tuple[int, int] | UnreadableImage:
    """Write the tiles of a photo, unless they are there and not older. Returns the photo's size."""
    if not is_writable(name):
        return UnreadableImage(photo, "its name holds a control character. Rename it")
    try:
        width, height, _ = image_size(photo)
        windows = tiling.windows(width, height)
        files = [to / file for file in _names(name, windows)]
        if all(file.exists() and file.stat().st_mtime >= photo.stat().st_mtime for file in files):
            return width, height
        whole = Image.fromarray(read_image(photo))
    except UnreadableImage as error:
        return error
    files[0].parent.mkdir(parents=True, exist_ok=True)
    for file, window in zip(files, windows.astype(int).tolist(), strict=True):
        write_bytes(file, _encoded(whole.crop(window), file.suffix))
    return width, height


def _names(photo: str, windows: Floats) -> list[str]:
    """A tile is named by its photo and its corner; it is a PNG file if the photo is one."""
    suffix = ".png" if photo.lower().endswith(".png") else ".jpg"
    return [f"{photo}_{x}_{y}{suffix}" for x, y, _, _ in windows.astype(int).tolist()]


def _encoded(tile: Image.Image, suffix: str) -> bytes:
    content = io.BytesIO()
    tile.save(content, "PNG") if suffix == ".png" else tile.save(content, "JPEG", quality=95)
    return content.getvalue()


def _known(to: Path, tiling: Tiling) -> dict[str, tuple[int, int]]:
    """The photos that the folder has tiles of. Raises UserError if it holds anything else, or tiles of another size."""
    if not to.exists():
        return {}
    if not to.is_dir():
        raise UserError(f"{to} is a file. Name a new or empty folder")
    tiles = _read(to)
    if tiles is None:
        if any(file.name != LOCK for file in to.iterdir()):
            raise UserError(f"{to} is not empty and holds no tiles. Name a new or empty folder")
        return {}
    if tiles[0].tiling != tiling:
        was = tiles[0].tiling
        raise UserError(
            f"{to} holds tiles of {was.side} pixels that overlap by {was.overlap}. Cut as before "
            f"(--side {was.side} --overlap {was.overlap}), or name a new folder"
        )
    return dict(tiles[0].sizes)


def _write(tiles: Tiles, *, finished: bool) -> None:
    tiling, photos = tiles.tiling, str(real(tiles.photos))
    sizes = {name: [*size] for name, size in tiles.sizes.items()}
    content = {"photos": photos, "side": tiling.side, "overlap": tiling.overlap, "finished": finished, "sizes": sizes}
    write_json(tiles.folder / TILES, content)
