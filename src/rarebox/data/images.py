"""Reading image files of all common formats as upright 8-bit RGB, with a reason for each that cannot be read."""

import errno
import io
import os
import struct
import warnings
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rarebox.core.files import NOT_REGULAR, is_own, real
from rarebox.core.text import counted
from rarebox.data import remote
from rarebox.data.memory_limit import MemoryLimit
from rarebox.data.naming import is_litter
from rarebox.errors import UserError, presentable
from rarebox.types import ImageRecord, Picture

SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".bmp",
        ".dib",
        ".gif",
        ".webp",
        ".avif",
        ".tif",
        ".tiff",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".jp2",
        ".mpo",
    ]
)

NOT_READ = frozenset({".heic", ".heif", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".svg", ".pdf"})
"""Suffixes of common pictures that rarebox cannot decode."""

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "AVIF", "TIFF", "PPM", "JPEG2000")
"""Pillow's names of the formats that are read. The content decides, not the suffix. Pillow's other formats are refused,
because some start other programs, such as Ghostscript."""

DECODED = MemoryLimit(1 << 30)
"""The memory for pixels being decoded, in bytes, for all threads together."""

STRIP = 1 << 22
"""The pixels converted at a time."""

# Pillow only warns of an image larger than MAX_IMAGE_PIXELS; here it is an error.
warnings.simplefilter("error", Image.DecompressionBombWarning)

# EXIF orientation -> the operation that makes the picture upright (EXIF 2.32, tag 0x0112)
_ORIENTATION_TAG = 0x0112
_SHORT = 3  # the type of a TIFF field
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = frozenset({5, 6, 7, 8})
"""EXIF orientations that swap width and height."""


class UnreadableImage(UserError):
    """An image file that cannot be used. ``path`` names it, ``reason`` says why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)  # both in ``args``, so that the error can be pickled
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return presentable(f"cannot read the image {self.path}: {self.reason}. Replace the file, or remove it.")


def none_readable(images: Path, errors: Sequence[UnreadableImage]) -> UserError:
    """The error for a folder or list of ``images`` of which none can be read, each for one of the ``errors``."""
    first = f"{errors[0].path}: {errors[0].reason}"
    return UserError(f"{images}: none of its images can be read, for example {first}. Restore the files")


def image_files(folder: str | Path) -> list[Path]:
    """All image files below a folder, by their suffix, sorted by path.

    The walk is that of :func:`files_below`, and :func:`left_out` names the folders that it leaves out. Dead links and
    unreadable folders are listed too, so that reading them raises `UnreadableImage` and nothing is silently ignored.
    """
    return files_below(folder, SUFFIXES, lost=True)


def files_below(folder: str | Path, suffixes: Collection[str], *, lost: bool = False) -> list[Path]:
    """All files below a folder with one of the suffixes, ignoring case, sorted by path.

    Links are followed, but not to a folder that contains ``folder``. A file that is reachable in several ways is listed
    once, preferably not by a link. Litter is excluded, and so are folders below that rarebox has written
    (:func:`rarebox.core.files.is_own`): exports, runs, projects, copies and pictures with boxes. With ``lost`` the list
    also has unreadable folders, and dead links with one of the suffixes or without any.
    """
    files, nowhere, _ = _walk(Path(folder), suffixes)
    return sorted([*files, *nowhere] if lost else files)


def left_out(folder: str | Path, but: Path | None = None) -> str:
    """A note on the images below a folder that :func:`image_files` leaves out, because rarebox has written them.

    The folder ``but`` is not mentioned. Empty if there are none.
    """
    own = [place for place in sorted(_walk(Path(folder), SUFFIXES)[2]) if but is None or real(place) != real(but)]
    counts = dict[Path, int]()
    for place in own:  # grows
        files, _, inner = _walk(place, SUFFIXES)
        counts[place] = len(files)
        own += inner
    if not (total := sum(counts.values())):
        return ""
    first = next(place for place, count in counts.items() if count)
    what = f"{counted(total, 'image')} left out, in folders that rarebox wrote, such as {first}"
    return presentable(f"{what}. To use them, name that folder")


def not_read(folder: str | Path) -> str:
    """A note on the pictures below a folder that rarebox cannot decode. Empty if there are none."""
    if not (files := files_below(folder, NOT_READ)):
        return ""
    what = f"{counted(len(files), 'file')} of a kind that is not read, such as {files[0]}"
    return presentable(f"{what}. Convert such files to JPEG (phones can export HEIC as JPEG)")


def _walk(top: Path, suffixes: Collection[str]) -> tuple[list[Path], list[Path], list[Path]]:
    """The files below a folder, its unreadable folders and dead links, and the folders that rarebox has written."""
    found: dict[str, Path] = {}  # real path -> path that reaches it
    nowhere: list[Path] = []
    own: list[Path] = []
    links: list[Path] = []
    walked = {str(parent) for parent in Path(os.path.realpath(top)).parents}
    waiting, linked = [top], list[Path]()
    while waiting or linked:
        place = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(place)
        if real in walked:
            continue
        walked.add(real)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError:
            nowhere.append(place)
            continue
        if place != top and is_own([entry.name for entry in entries]):
            own.append(place)
            continue
        for entry in entries:
            path = place / entry.name
            if is_litter(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif os.path.isdir(path):
                linked.append(path)
            elif entry.is_symlink() and not os.path.exists(path):
                if not path.suffix or path.suffix.lower() in suffixes:
                    nowhere.append(path)
            elif path.suffix.lower() in suffixes:
                if entry.is_symlink():
                    links.append(path)
                else:
                    found[os.path.join(real, entry.name)] = path
    for path in links:
        found.setdefault(os.path.realpath(path), path)
    return [*found.values()], nowhere, own


def image_size(path: str | Path, content: bytes | None = None) -> tuple[int, int, int]:
    """Width and height of the upright image, and the EXIF orientation of the file (1: it is upright).

    Only the header is read, from ``content`` if given. Raises `UnreadableImage`.
    """
    with opened(path, content) as image:
        orientation = _orientation(image)
        return *_swapped(image.size, orientation), orientation if orientation in _UPRIGHT else 1


def read_image(path: str | Path, content: bytes | None = None) -> NDArray[np.uint8]:
    """The whole image, upright: (H, W, 3) ``uint8`` RGB.

    Grey, palette, CMYK and 1-bit images become RGB. Transparent pixels are blended with white, as annotators see them
    on the page. 16-bit grey is scaled from its full range. An animation yields its first frame. ``content`` is that of
    the file, if already read. Raises `UnreadableImage`.
    """
    with opened(path, content) as image:
        orientation = _orientation(image)
        with DECODED.hold(_bytes_of(image) + _coefficients_of(image)):
            return np.array(_upright(_eight_bits(image), orientation).convert("RGB"))


def read_picture(record: ImageRecord, short_side: int, long_side: int, content: bytes | None = None) -> Picture:
    """The image at working size: as large as ``short_side`` allows, but no side longer than ``long_side`` pixels.

    The image is decoded and resized once, with antialiasing. A JPEG that shrinks to half or less is decoded at a
    fraction of its size, which is several times faster. ``content`` is that of the file, if already read. Raises
    `UnreadableImage`, also if the size of the file differs from the record, since then no box would fit.
    """
    with opened(record.path, content) as image:
        orientation = _orientation(image)
        size = _swapped(image.size, orientation)
        if size != (record.width, record.height):
            was, now = f"{record.width} x {record.height}", f"{size[0]} x {size[1]}"
            raise UnreadableImage(record.path, f"it is {now} pixels now, but was {was} when the data set was read")
        working = _swapped(working_size(record.width, record.height, short_side, long_side), orientation)
        coefficients = _coefficients_of(image)
        image.draft(None, working)
        with DECODED.hold(_bytes_of(image) + coefficients):
            small = _eight_bits(image).resize(working, Image.Resampling.BILINEAR)
        return Picture(np.array(_upright(small, orientation).convert("RGB")), record.width, record.height)


def working_size(width: int, height: int, short_side: int, long_side: int) -> tuple[int, int]:
    """Width and height after scaling by min(short_side / shorter side, long_side / longer side), at least 1 pixel."""
    scale = min(short_side / min(width, height), long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def readers(far: bool) -> int:
    """How many threads read images at a time. More if the images are remote, since waiting needs no core."""
    return 2 * (os.cpu_count() or 1) if not far else 32


@contextmanager
def content_of(path: str | Path) -> Generator[bytes | None, None, None]:
    """The content of a remote image while the block runs; None for a local file.

    Raises `UnreadableImage`.
    """
    with ExitStack() as held:
        try:
            content = held.enter_context(remote.fetched(str(path))) if remote.is_url(path) else None
        except (UserError, MemoryError):
            raise
        except Exception as error:  # each service has its own errors
            raise UnreadableImage(path, remote.reason(error)) from error
        yield content


@contextmanager
def opened(path: str | Path, content: bytes | None = None) -> Generator[Image.Image, None, None]:
    """The open image file, of one of the ``FORMATS``. ``content`` is that of the file, if already read.

    Any error while it is open becomes an `UnreadableImage`.
    """
    with ExitStack() as held:
        content = held.enter_context(content_of(path)) if content is None else content
        if not _is_text(str(path)):
            raise UnreadableImage(path, "its name is not valid UTF-8. Rename it")
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block
            folder = os.path.isdir(path)
            raise UnreadableImage(path, "this user may not read the folder" if folder else NOT_REGULAR)
        try:
            image = Image.open(path if content is None else io.BytesIO(content), formats=_formats())
            held.enter_context(image)
            if image.format == "TIFF":
                image.info.pop("xmp", None)  # Pillow would turn the pixels by its orientation, but not the size
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:  # Pillow itself only warns up to twice this
                raise Image.DecompressionBombError
            yield image
        except (UserError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            reason = f"it has more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels. Scale it down"
            raise UnreadableImage(path, reason) from None
        except FileNotFoundError:
            try:
                reason = f"it is a link to {os.readlink(path)}, which does not exist"
            except OSError:
                reason = "there is no such file"
            raise UnreadableImage(path, reason) from None
        except Image.UnidentifiedImageError:
            size = Path(path).stat().st_size if content is None else len(content)
            reason = "it is not an image in a supported format" if size else "the file is empty"
            raise UnreadableImage(path, reason) from None
        except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, zlib.error and more
            refused = getattr(error, "errno", None) == errno.ENAMETOOLONG or "\0" in str(path)  # no file has that name
            reason = "there is no such file" if refused else str(error) or type(error).__name__
            raise UnreadableImage(path, reason) from error


def _is_text(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False


@cache
def _formats() -> tuple[str, ...]:
    """Those of ``FORMATS`` that the installed Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) if there is none. Call it before the pixels are loaded.

    Like browsers, it ignores an orientation in XMP, or one that is not a single SHORT.
    """
    if image.format == "TIFF":
        return 1  # Pillow rotates these itself
    try:
        return _orientation_in(_exif_block(image))
    except Exception:  # a broken EXIF block raises anything, but the pixels are fine
        return 1


def _exif_block(image: Image.Image) -> bytes:
    """The EXIF block, a TIFF file without pixels. Pillow reads it as text from PNG files of ImageMagick."""
    if "Raw profile type exif" in image.info:
        block = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    else:
        block = image.info.get("exif", b"")
    return block.removeprefix(b"Exif\0\0")


def _orientation_in(block: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}[block[:2]]
    (start,) = struct.unpack_from(f"{order}I", block, 4)
    (entries,) = struct.unpack_from(f"{order}H", block, start)
    for place in range(start + 2, start + 2 + 12 * entries, 12):
        tag, kind, count, value = struct.unpack_from(f"{order}HHIH", block, place)
        if tag == _ORIENTATION_TAG:
            return value if (kind, count) == (_SHORT, 1) else 1
    return 1


def seen_alike(image: Image.Image) -> bool:
    """Whether every program turns the open image as rarebox does: its orientation is plain, and not only in XMP."""
    try:  # the base class's method, because that of PNG files decodes all pixels in search of a late EXIF block
        return Image.Image.getexif(image).get(_ORIENTATION_TAG, 1) == _orientation(image)
    except Exception:
        return True  # a broken EXIF block


def _swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """A size in the file as the size of the upright image, and vice versa."""
    return (size[1], size[0]) if orientation in SIDEWAYS else size


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _bytes_of(image: Image.Image) -> int:
    """The most bytes that decoding takes: Pillow's pixels, a second copy in decoders that do not stream, and the
    converted pixels."""
    each = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(image.mode, 4)
    at_once = image.format in ("WEBP", "AVIF", "JPEG2000", "GIF")
    becomes = 0 if image.mode in ("L", "RGB") else 4
    return image.width * image.height * (each * (1 + at_once) + becomes)


def _coefficients_of(image: Image.Image) -> int:
    """The most bytes of the coefficients of a progressive JPEG, which its decoder keeps at full size until the last
    scan, at whatever size it decodes."""
    if image.format not in ("JPEG", "MPO") or not image.info.get("progressive"):
        return 0
    return image.width * image.height * 2 * len(image.getbands())


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image as 8-bit grey or RGB. Other modes are converted in strips, which avoids a third copy."""
    if image.mode in ("L", "RGB") and not image.has_transparency_data:
        image.load()
        return image
    deep = image.mode == "F" or image.mode.startswith("I")
    low, high = _range(image) if deep else (0.0, 0.0)
    shown = Image.new("L" if deep or image.mode == "1" else "RGB", image.size)
    for strip, box in _strips(image):
        if deep:
            strip = Image.fromarray(_scaled(np.asarray(strip), low, high))
        elif strip.has_transparency_data:
            white = Image.new("RGBA", strip.size, "white")
            white.alpha_composite(strip.convert("RGBA"))
            strip = white
        shown.paste(strip.convert(shown.mode), box)
    return shown


def _strips(image: Image.Image) -> Iterator[tuple[Image.Image, tuple[int, int, int, int]]]:
    """The image in strips of its whole width, each with its box: left, top, right, bottom in pixels."""
    rows = max(1, STRIP // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        yield image.crop(box), box


def _range(image: Image.Image) -> tuple[float, float]:
    """The values of deep grey that become 0 and 255: the full range of 16 bits, or the min and max of 32-bit and float
    images."""
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    strips = (np.asarray(strip) for strip, _ in _strips(image))
    ends = [(float(values.min()), float(values.max())) for values in strips]
    low, high = min(end for end, _ in ends), max(end for _, end in ends)
    if not np.isfinite([low, high]).all() or np.isnan(sum(one + other for one, other in ends)):
        raise ValueError("it holds values that are not finite numbers")
    return (0.0, 65535.0) if image.mode != "F" and low >= 0 and high <= 65535 else (low, high)


def _scaled(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    """Deep grey as 8 bits, linear between ``low`` and ``high``."""
    return np.round((values.astype(np.float64) - low) * (255 / ((high - low) or 1.0))).astype(np.uint8)
