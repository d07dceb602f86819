"""Drawing one picture of the embedded data set: digits among distractors, on a busy ground.

Digits and distractors are both drawn from ink, (8, 8) in [0, 1], with the same pen.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from rarebox.core.boxes import area, intersection
from rarebox.errors import UserError
from rarebox.types import Floats

Colour = tuple[int, int, int]

MOST_TRIES = 60  # sizes tried for one thing before the whole picture is arranged in cells
RIM = 1  # pixels of a cell that may be lost to rounding
SMALLEST = 8  # pixels of the longer side; anything smaller has no recognisable shape


@dataclass(frozen=True)
class Look:
    """How hard the pictures are.

    Lower ``contrast`` and higher ``faint``, ``strangers``, ``occluded``, ``texture``, ``clutter`` and ``grain`` make
    them harder. Lengths are in pixels, angles in degrees, colour distances in RGB units of 0 to 255, fractions in
    [0, 1]. A pair is the range to draw from.
    """

    object_size: tuple[float, float] = (20, 64)  # longer side of a digit; small ones are more frequent
    max_objects: int = 9
    turn: float = 15  # largest rotation; a six must not become a nine
    contrast: tuple[float, float] = (60, 180)  # distance of an object's colour from what is behind it
    faint: float = 1.2  # exponent >= 1 that pushes contrasts to the lower end
    strangers: tuple[int, int] = (0, 4)  # how many things that are not digits
    occluded: float = 0.08  # fraction of objects with a bar across
    texture: float = 0.7  # 0: flat background, 1: the whole range of its colours
    clutter: tuple[int, int] = (2, 7)  # patches, stripes and lines behind the objects
    grain: float = 4  # standard deviation of the noise on each pixel
    train_imbalance: float = 30  # largest over smallest class count
    test_imbalance: float = 6  # less skewed, so that the AP of rare classes can be measured


DEFAULT_LOOK = Look()


def check_room(size: tuple[int, int], look: Look = DEFAULT_LOOK) -> None:
    """Raise `UserError` if a picture of ``size`` (height, width) in pixels is too small for what ``look`` may draw."""
    if min(size) < 96:
        raise UserError(f"scenes: height and width must be at least 96 pixels each, not {tuple(size)}")
    low, high = look.object_size
    if not SMALLEST <= low <= high <= min(size) - RIM:
        raise UserError(
            f"scenes: object_size must be a range between {SMALLEST} and {min(size) - RIM} pixels in pictures of "
            f"{size[0]} x {size[1]}, not {tuple(look.object_size)}"
        )
    most = look.max_objects + look.strangers[1]
    if len(_cells(size, low)) < most:
        raise UserError(
            f"scenes: a picture of {size[0]} x {size[1]} pixels has no room for {most} things of {low:g} pixels. "
            "Choose a larger size, smaller objects, or fewer objects and strangers."
        )


def draw(
    rng: np.random.Generator, inks: Floats, spare: Floats, size: tuple[int, int], look: Look = DEFAULT_LOOK
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """One picture with a digit for each ink (N, 8, 8), and strangers, some made from the digits ``spare`` (S, 8, 8).

    Returns the pixels (height, width, 3) and the tight boxes (N, 4) of the digits, in the order of ``inks``.
    """
    palette = PALETTES[int(rng.integers(len(PALETTES)))]
    canvas = _background(rng, size, palette, look)
    strangers = [_stranger(rng, spare) for _ in range(rng.integers(*look.strangers, endpoint=True))]
    stamps, places = _arrange(rng, [*inks, *strangers], size, look)
    order: list[int] = rng.permutation(len(stamps)).tolist()
    for index in order:
        _paint(canvas, stamps[index], places[index], _visible_colour(rng, canvas, stamps[index], places[index], look))
        if rng.random() < look.occluded:
            _cross_out(rng, canvas, places[index], palette)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * look.grain
    return np.clip(canvas.round(), 0, 255).astype(np.uint8), places[: len(inks)]


def _arrange(
    rng: np.random.Generator, inks: Sequence[Floats], size: tuple[int, int], look: Look
) -> tuple[list[Floats], NDArray[np.float32]]:
    """Stamps and their boxes (N, 4), placed by trial: no two overlap by more than an eighth of the smaller one.

    If the first ones leave no room for another, all of them are arranged in cells instead.
    """
    stamps: list[Floats] = []
    places = np.zeros((0, 4), dtype=np.float32)
    low, high = look.object_size
    for ink in inks:
        side = low * (high / low) ** rng.random()
        for _ in range(MOST_TRIES):
            stamp = _stamp(rng, ink, side, look)
            found = _free_place(rng, stamp.shape, places, size)
            if found is not None:
                stamps.append(stamp)
                places = np.vstack([places, found])
                break
            side = max(low, 0.85 * side)
        else:
            return _arrange_in_cells(rng, inks, size, look)
    return stamps, places


def _arrange_in_cells(
    rng: np.random.Generator, inks: Sequence[Floats], size: tuple[int, int], look: Look
) -> tuple[list[Floats], NDArray[np.float32]]:
    """Stamps and their boxes (N, 4), each at a random place in a separate cell, and no larger than the cell."""
    low, high = look.object_size
    cells = _cells(size, low)
    stamps, places = list[Floats](), list[list[int]]()
    order: list[int] = rng.permutation(len(cells)).tolist()
    for ink, cell in zip(inks, order[: len(inks)], strict=True):
        top, left, room = cells[cell]
        stamp = _stamp(rng, ink, min(low * (high / low) ** rng.random(), room - RIM), look)
        height, width = (int(side) for side in stamp.shape)
        y, x = top + int(rng.integers(0, room - height + 1)), left + int(rng.integers(0, room - width + 1))
        stamps.append(stamp)
        places.append([x, y, x + width, y + height])
    return stamps, np.array(places, dtype=np.float32)


def _cells(size: tuple[int, int], side: float) -> list[tuple[int, int, int]]:
    """Disjoint squares that each hold a thing of that side, in pixels: top, left and side of each."""
    rows, columns = (max(1, int(extent // (side + RIM))) for extent in size)
    room = min(size[0] // rows, size[1] // columns)
    return [(size[0] * r // rows, size[1] * c // columns, room) for r in range(rows) for c in range(columns)]


def _free_place(
    rng: np.random.Generator,
    shape: tuple[int, ...],
    places: NDArray[np.float32],
    size: tuple[int, int],
    tries: int = 20,
) -> NDArray[np.float32] | None:
    """A random box (4,) of that shape that overlaps no other by more than an eighth; None if no try finds one."""
    height, width = shape
    x, y = rng.integers(0, size[1] - width + 1, tries), rng.integers(0, size[0] - height + 1, tries)
    boxes = np.stack([x, y, x + width, y + height], axis=1).astype(np.float32)
    smaller = np.minimum(area(boxes)[:, None], area(places)[None])
    free = (intersection(boxes[:, None], places[None]) <= smaller / 8).all(axis=1)
    return boxes[free.argmax()] if free.any() else None


def _stamp(rng: np.random.Generator, ink: Floats, side: float, look: Look) -> Floats:
    """An ink (8, 8) rotated, slanted and drawn smoothly: coverage (h, w) in [0, 1], cropped to where it is visible."""
    angle, slant = math.radians(rng.uniform(-look.turn, look.turn)), rng.uniform(-0.15, 0.15)
    stretch = rng.uniform(0.85, 1.15)
    big = _resized(np.pad(ink / ink.max(), 2), (60, 60))  # five pixels a cell; the diagonal of the ink still fits
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.array([[cos * stretch, sin + slant], [-sin * stretch, cos]])
    offset = np.array([30, 30]) - matrix @ np.array([30, 30])
    affine = (*matrix[0], offset[0], *matrix[1], offset[1])
    turned = Image.fromarray(big).transform((60, 60), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    edge = rng.uniform(0.1, 0.3)  # how soft the pen is
    core = _crop(np.asarray(turned), above=0.4 - edge / 2)  # where a quarter is covered
    scale = side / max(core.shape)
    shape = tuple(max(2, round(s * scale)) for s in core.shape)
    return _crop(np.clip((_resized(core, shape) - 0.4 + edge) / (2 * edge), 0, 1), above=0.25)


def _resized(array: Floats, shape: tuple[int, ...]) -> Floats:
    image = Image.fromarray(np.asarray(array, dtype=np.float32))
    return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


def _crop(array: Floats, above: float) -> Floats:
    """The smallest part (h, w) that holds every value greater than ``above``."""
    rows, columns = (np.flatnonzero((array > above).any(axis=axis)) for axis in (1, 0))
    return array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _paint(canvas: Floats, stamp: Floats, place: Floats, colour: Floats) -> None:
    """Blend a colour (3,) into the canvas (H, W, 3) in place, with the stamp (h, w) as opacity."""
    behind = _window(canvas, place)
    behind += stamp[..., None] * (colour - behind)


def _window(canvas: Floats, place: Floats) -> Floats:
    x1, y1, x2, y2 = place.astype(int)
    return canvas[y1:y2, x1:x2]


def _visible_colour(rng: np.random.Generator, canvas: Floats, stamp: Floats, place: Floats, look: Look) -> Floats:
    """A colour (3,) at a random contrast from the mean behind the stamp, and further away on a textured ground."""
    behind = _window(canvas, place)[stamp > 0.5]
    mean = behind.mean(axis=0)
    low, high = look.contrast
    distance = low + (high - low) * rng.random() ** look.faint + behind.std(axis=0).mean()
    candidates = _vary(rng, np.array(INKS)[rng.permutation(len(INKS))])
    away = np.linalg.norm(candidates - mean, axis=1)
    chosen = np.argmax(away >= distance) if (away >= distance).any() else np.argmax(away)
    return mean + (candidates[chosen] - mean) * min(1, distance / away[chosen])


def _vary(rng: np.random.Generator, colours: Floats) -> Floats:
    return np.clip(colours + rng.normal(0, 12, colours.shape), 0, 255)


def _cross_out(rng: np.random.Generator, canvas: Floats, place: Floats, palette: Sequence[Colour]) -> None:
    """Draw a bar across a box in a colour of the ground, as wide as 10 to 17 % of the longer side."""
    x1, y1, x2, y2 = place
    centre, length = np.array([x1 + x2, y1 + y2]) / 2, max(x2 - x1, y2 - y1)
    angle = rng.uniform(0, math.pi)
    along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
    middle = centre + across * rng.uniform(-0.3, 0.3) * length
    ends = [middle + along * length * reach for reach in (-0.6, 0.6)]
    colour = _vary(rng, np.array(palette[int(rng.integers(3))], dtype=float))
    layer = _Layer(canvas.shape)
    layer.line(ends, rng.uniform(0.10, 0.17) * length)
    layer.onto(canvas, colour, 1.0)


# ---------------------------------------------------------------------------------------------- strangers

LETTERS = {
    "A": [[(0, 1), (0.5, 0), (1, 1)], [(0.2, 0.62), (0.8, 0.62)]],
    "E": [[(1, 0), (0, 0), (0, 1), (1, 1)], [(0, 0.5), (0.8, 0.5)]],
    "F": [[(1, 0), (0, 0), (0, 1)], [(0, 0.5), (0.8, 0.5)]],
    "H": [[(0, 0), (0, 1)], [(1, 0), (1, 1)], [(0, 0.5), (1, 0.5)]],
    "K": [[(0, 0), (0, 1)], [(1, 0), (0, 0.5), (1, 1)]],
    "M": [[(0, 1), (0, 0), (0.5, 0.6), (1, 0), (1, 1)]],
    "N": [[(0, 1), (0, 0), (1, 1), (1, 0)]],
    "P": [[(0, 1), (0, 0), (0.8, 0), (1, 0.25), (0.8, 0.5), (0, 0.5)]],
    "R": [[(0, 1), (0, 0), (0.8, 0), (1, 0.25), (0.8, 0.5), (0, 0.5)], [(0.4, 0.5), (1, 1)]],
    "T": [[(0, 0), (1, 0)], [(0.5, 0), (0.5, 1)]],
    "U": [[(0, 0), (0, 0.8), (0.3, 1), (0.7, 1), (1, 0.8), (1, 0)]],
    "V": [[(0, 0), (0.5, 1), (1, 0)]],
    "X": [[(0, 0), (1, 1)], [(1, 0), (0, 1)]],
    "Y": [[(0, 0), (0.5, 0.5), (1, 0)], [(0.5, 0.5), (0.5, 1)]],
    "+": [[(0, 0.5), (1, 0.5)], [(0.5, 0), (0.5, 1)]],
    "=": [[(0, 0.25), (1, 0.25)], [(0, 0.75), (1, 0.75)]],
}


def _stranger(rng: np.random.Generator, spare: Floats) -> Floats:
    """The ink (8, 8) of something that is not a digit; half of them are made from a digit."""
    kind = STRANGERS[int(rng.choice(len(STRANGERS), p=(0.25, 0.25, 0.25, 0.15, 0.1)))]
    while True:
        ink = kind(rng, spare)
        if not _passes_for_digit(ink, spare):
            return ink


def _passes_for_digit(ink: Floats, digits: Floats, distance: float = 1.8) -> bool:
    """Whether an ink (8, 8), scaled to fill its frame, is as close to one of the digits (S, 8, 8) as digits are.

    The distance is Euclidean over 64 values in [0, 1]. 95 % of the digits have another one within 1.45.
    """
    core = _crop(ink / ink.max(), above=0.25)
    shape = [max(1, round(8 * s / max(core.shape))) for s in core.shape]
    filled = np.zeros((8, 8))
    top, left = (8 - shape[0]) // 2, (8 - shape[1]) // 2
    filled[top : top + shape[0], left : left + shape[1]] = np.clip(_resized(core, (shape[0], shape[1])), 0, 1)
    return bool((((digits - filled) ** 2).sum(axis=(1, 2)) < distance**2).any())


def _piece(rng: np.random.Generator, spare: Floats) -> Floats:
    """A part of a digit, cut along a random line: 40 to 60 % of its ink."""
    ink = spare[rng.integers(len(spare))]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[:8, :8]
    depth = x * math.cos(angle) + y * math.sin(angle)
    order = np.argsort(depth, axis=None)
    kept = np.cumsum(ink.ravel()[order]) / ink.sum() <= rng.uniform(0.4, 0.6)
    piece = np.zeros(64)
    piece[order[kept]] = ink.ravel()[order[kept]]
    return piece.reshape(8, 8)


def _mirrored(rng: np.random.Generator, spare: Floats) -> Floats:
    """A mirrored digit."""
    return spare[rng.integers(len(spare)), :, ::-1]


def _letter(rng: np.random.Generator, _: Floats) -> Floats:
    """A capital letter or a sign with jittered strokes."""
    strokes = list(LETTERS.values())[int(rng.integers(len(LETTERS)))]
    width = rng.uniform(0.55, 0.85)
    return _pen([(np.array(s) + rng.normal(0, 0.05, (len(s), 2))) * (width, 1) for s in strokes])


def _scribble(rng: np.random.Generator, _: Floats) -> Floats:
    """A smooth line through a few random points."""
    steps = np.linspace(0, 1, 24)[:, None]
    waves = [np.sin(2 * math.pi * (k * steps / 2 + rng.random(2))) * rng.normal(0, 1 / k, 2) for k in (1, 2, 3)]
    return _pen([np.sum(waves, axis=0)])


def _blob(rng: np.random.Generator, _: Floats) -> Floats:
    """A filled shape with a wavy rim."""
    y, x = (np.mgrid[:8, :8] - 3.5) / 4
    angle = np.arctan2(y, x)
    rim = 0.75 + sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 6.28)) for k in (2, 3, 4))
    return np.clip((rim - np.hypot(x, y)) * 3 + 0.5, 0, 1)


def _pen(strokes: Sequence[Floats]) -> Floats:
    """An ink (8, 8) of lines through points of any scale, as thick as the handwriting."""
    points = np.concatenate(strokes)
    low, extent = points.min(axis=0), max(float(np.ptp(points, axis=0).max()), 1e-6)
    shift = (1 - np.ptp(points, axis=0) / extent) / 2
    image = Image.new("L", (64, 64))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        path = [tuple(p) for p in 8 + 48 * ((stroke - low) / extent + shift)]
        pen.line(path, fill=255, width=9, joint="curve")
    return np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=float) / 255


STRANGERS = (_piece, _mirrored, _letter, _scribble, _blob)

# ---------------------------------------------------------------------------------------------- the ground

PALETTES: tuple[tuple[Colour, ...], ...] = (
    ((11, 57, 84), (8, 126, 139), (191, 215, 234), (60, 145, 160)),
    ((52, 78, 65), (88, 129, 87), (163, 177, 138), (218, 215, 205)),
    ((74, 78, 105), (154, 140, 152), (201, 173, 167), (242, 233, 228)),
    ((96, 108, 56), (221, 161, 94), (254, 250, 224), (188, 108, 37)),
    ((38, 70, 83), (42, 157, 143), (233, 196, 106), (244, 162, 97)),
    ((27, 38, 59), (65, 90, 119), (119, 141, 169), (224, 225, 221)),
    ((53, 80, 112), (109, 89, 122), (181, 101, 118), (234, 172, 139)),
    ((61, 64, 91), (129, 178, 154), (242, 204, 143), (244, 241, 222)),
)
INKS: tuple[Colour, ...] = (
    (250, 247, 240),
    (24, 26, 38),
    (255, 209, 102),
    (239, 71, 111),
    (6, 214, 160),
    (17, 138, 178),
    (255, 140, 66),
    (92, 61, 138),
    (200, 29, 37),
    (120, 190, 255),
    (60, 110, 60),
    (255, 182, 193),
)


class _Layer:
    """A mask as large as the canvas, drawn at twice its size so that edges come out smooth."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.height, self.width = shape[:2]
        self.image = Image.new("L", (2 * self.width, 2 * self.height))
        self.pen = ImageDraw.Draw(self.image)

    def line(self, points: ArrayLike, width: float) -> None:
        """Draw a line through points (N, 2) in pixels of the canvas."""
        self.pen.line(_doubled(points), fill=255, width=max(1, round(2 * width)), joint="curve")

    def polygon(self, points: ArrayLike) -> None:
        """Fill a polygon with corners (N, 2) in pixels of the canvas."""
        self.pen.polygon(_doubled(points), fill=255)

    def onto(self, canvas: Floats, colour: Floats, opacity: float) -> None:
        """Blend a colour (3,) into the canvas (H, W, 3) in place where something was drawn."""
        mask = self.image.reduce(2)
        box = mask.getbbox()
        if box is None:
            return
        _paint(canvas, np.asarray(mask.crop(box), dtype=np.float32) * (opacity / 255), np.array(box), colour)


def _doubled(points: ArrayLike) -> list[tuple[float, float]]:
    return [(x, y) for x, y in (2 * np.asarray(points, dtype=np.float64)).tolist()]


def _background(rng: np.random.Generator, size: tuple[int, int], palette: Sequence[Colour], look: Look) -> Floats:
    """A smooth gradient of three colours (H, W, 3) in [0, 255], with patches, stripes and lines on it."""
    height, width = size
    angle = rng.uniform(0, 2 * math.pi)
    slope = np.linspace(0, math.cos(angle), width) + np.linspace(0, math.sin(angle), height)[:, None]
    field = 0.5 * slope + 0.35 * _noise(rng, size)
    field = (field - field.min()) / np.ptp(field)
    centre = rng.uniform(0.2, 0.8)
    colours = np.array(palette)[rng.permutation(len(palette))].astype(float)
    steps = np.clip(centre + look.texture * (field - centre), 0, 1)
    ramp = np.stack([np.interp(np.linspace(0, 1, 512), [0, 0.5, 1], colours[:3, c]) for c in range(3)], axis=-1)
    canvas = ramp.astype(np.float32)[(511 * steps).round().astype(int)]
    for _ in range(rng.integers(*look.clutter, endpoint=True)):
        _add_clutter(rng, canvas, _vary(rng, colours[rng.integers(len(colours))]))
    return canvas + look.texture * 10 * _noise(rng, size, octaves=(16, 32, 64))[..., None]


def _noise(rng: np.random.Generator, size: tuple[int, int], octaves: Sequence[int] = (2, 4, 8, 16, 32)) -> Floats:
    """Smooth noise (H, W) of about unit deviation; each finer octave has half the amplitude of the one before."""
    noise = np.zeros(size, dtype=np.float32)
    for k, cells in enumerate(octaves):
        noise += _resized(rng.standard_normal((cells, cells), dtype=np.float32), size) * 0.5**k
    return noise


def _add_clutter(rng: np.random.Generator, canvas: Floats, colour: Floats) -> None:
    """Draw one patch, striped patch or curve at a random place on the canvas, with random opacity."""
    height, width = canvas.shape[:2]
    middle, reach = rng.uniform((0, 0), (width, height)), rng.uniform(12, 70)
    layer = _Layer(canvas.shape)
    kind = rng.choice(3, p=(0.4, 0.25, 0.35))
    if kind == 0:
        angles = np.sort(rng.uniform(0, 2 * math.pi, rng.integers(4, 9)))
        layer.polygon([middle + reach * np.array([math.cos(a), math.sin(a)]) for a in angles])
    elif kind == 1:
        angle, pitch = rng.uniform(0, math.pi), rng.uniform(5, 12)
        along, across = np.array([math.cos(angle), math.sin(angle)]), np.array([-math.sin(angle), math.cos(angle)])
        for k in range(-4, 5):
            offset = middle + across * pitch * k
            layer.line([offset - along * reach, offset + along * reach], rng.uniform(0.25, 0.45) * pitch)
    else:
        bend = rng.uniform((0, 0), (width, height), (4, 2))
        t = np.linspace(0, 1, 40)[:, None]
        powers = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3]  # a cubic Bézier curve
        layer.line(np.hstack(powers) @ bend, rng.uniform(1, 4))
    layer.onto(canvas, colour, rng.uniform(0.2, 0.7))
