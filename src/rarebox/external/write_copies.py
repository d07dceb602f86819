"""Write augmented copies of images, and the maps from images to copies, for detectors that cannot make copies."""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from rarebox.core import seeds
from rarebox.core.files import mark_own, write_bytes, write_text
from rarebox.data.image_list import left_out_for, named_images
from rarebox.data.images import UnreadableImage, read_image
from rarebox.errors import UserError
from rarebox.pool.views import View, make_views

MAP = "views.jsonl"
JPEG = (".jpg", ".jpeg")
QUALITY = 95


@dataclass(frozen=True)
class Copied:
    """The numbers of images and copies, the file of the map, and the images that could not be read.

    ``left_out`` is a note on images that rarebox has written itself or cannot read, or empty.
    """

    images: int
    copies: int
    map: Path
    unreadable: tuple[UnreadableImage, ...]
    left_out: str = ""


def write_copies(
    images: Path, to: Path, views: Sequence[str], seed: int, report: Callable[[int, int], None] = lambda done, of: None
) -> Copied:
    """Write every view of every image to ``to/images``, and a line for each copy to ``to/views.jsonl``.

    ``images`` is what :func:`named_images` takes. Copies have full size; those of JPEGs are JPEGs, others PNGs. A line
    holds ``file`` (the copy, relative to ``to``), ``image``, ``view``, ``width`` and ``height`` of the copy, ``matrix``
    (2, 3) from the image's pixels to the copy's, its ``inverse``, ``patches`` (P, 4) of the image that the copy hides,
    and the ``seed``. Random choices depend on the seed and the image's name only. Raises UserError for an unknown view,
    if no image can be read, and for a folder with other content.
    """
    make_views(views, 64, 64, np.random.default_rng(0))
    if len(set(views)) < len(views):
        raise UserError(f"--views must name each view once, got {', '.join(views)}")
    if to.is_dir() and any(to.iterdir()) and not (to / MAP).exists():
        raise UserError(f"{to} is not empty and holds no copies of rarebox. Name a new or empty folder")
    files = named_images(images, but=to)
    lines: list[str] = []
    unreadable: list[UnreadableImage] = []
    for done, (name, file) in enumerate(files, 1):
        try:
            pixels = read_image(file)
            mark_own(to, "views")
            lines += _write_views(name, pixels, to, views, seed)
        except UnreadableImage as error:
            unreadable.append(error)
        report(done, len(files))
    if not lines:
        raise UserError(f"none of the {len(files)} images can be read, the first: {unreadable[0]}")
    write_text(to / MAP, "".join(lines))
    return Copied(len(files) - len(unreadable), len(lines), to / MAP, tuple(unreadable), left_out_for(images, to))


def _write_views(name: str, pixels: NDArray[np.uint8], to: Path, views: Sequence[str], seed: int) -> list[str]:
    """Write the copies of one image, and return their lines of the map."""
    height, width = pixels.shape[:2]
    image = torch.tensor(pixels).permute(2, 0, 1).float()
    made = make_views(views, height, width, seeds.stream(seed, "views", 0, crc32(name.encode())))
    return [_write_view(name, view, image, to, seed) for view in made]


def _write_view(name: str, view: View, image: torch.Tensor, to: Path, seed: int) -> str:
    copy = view.apply(image).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    suffix = ".jpg" if Path(name).suffix.lower() in JPEG else ".png"
    file = Path("images") / f"{name}.{view.name}{suffix}"
    (to / file).parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(copy).save(content, "JPEG" if suffix == ".jpg" else "PNG", quality=QUALITY)
    write_bytes(to / file, content.getvalue())
    line = {
        "file": file.as_posix(),
        "image": name,
        "view": view.name,
        "width": copy.shape[1],
        "height": copy.shape[0],
        "matrix": view.matrix.tolist(),
        "inverse": view.inverse.tolist(),
        "patches": view.patches.tolist(),
        "seed": seed,
    }
    return json.dumps(line, ensure_ascii=False) + "\n"
