"""Questions put to people in another tool, and what comes back: what Label Studio's and CVAT's files have in common."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rarebox.types import ImageRecord, Query

MODEL = "rarebox"


@dataclass(frozen=True, eq=False)
class ReviewTask:
    """One image as another tool shows it: the queries about it, best first, and the labelled boxes, if any.

    ``file`` names the image there. ``labelled`` are queries too, of label ``guess``; ``complete``: a person has
    labelled every object. ``number`` counts the sheets from 1, best first.
    """

    number: int
    record: ImageRecord
    file: str
    queries: Sequence[Query] = ()
    labelled: Sequence[Query] = ()
    complete: bool = False


class Region(NamedTuple):
    """A box that came back, or the upright box around another shape: x1, y1, x2, y2 in pixels of the picture there, its
    class, the query it is an answer to, if it says so, and its own name in the tool, if it has one that lasts."""

    box: tuple[float, float, float, float]
    name: str
    query: int | None
    key: str


@dataclass(frozen=True, eq=False)
class Returned:
    """What came back for one image.

    ``image`` is its name there, ``image_id`` its number here, if the file tells; ``size`` the (width, height) of the
    picture there. ``queries`` are those that were shown, as far as the file tells. ``by`` names the person, if the file
    does, ``milliseconds`` is the time that the image took. ``began_with_guesses``: the person began with the boxes of
    the queries, so that one which is missing was deleted. ``left_out`` names the shapes that no box can be made of:
    objects may be there that none of the ``regions`` covers.
    """

    where: str
    image: str
    image_id: int | None
    size: tuple[int, int] | None
    queries: tuple[int, ...]
    regions: tuple[Region, ...]
    by: str = ""
    milliseconds: int = 0
    began_with_guesses: bool = True
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """All that a file brings back. ``skipped`` counts images that somebody put aside, ``older`` the annotations that a
    later one of the same image replaces."""

    returned: Sequence[Returned]
    skipped: int = 0
    older: int = 0


def sheets(images: Sequence[tuple[ImageRecord, str]], queries: Sequence[Query]) -> list[ReviewTask]:
    """One sheet for each image that is asked about, in the order of the best query of each.

    A query about a whole image brings a sheet without boxes.
    """
    known = {record.id: (record, file) for record, file in images}
    of_image: dict[int, list[Query]] = {}
    for query in queries:
        of_image.setdefault(query.image_id, []).extend([] if query.box is None else [query])
    return [ReviewTask(n, *known[image_id], asked) for n, (image_id, asked) in enumerate(of_image.items(), 1)]


def short(number: float | np.floating | None) -> float | None:
    """The shortest decimal number that gives the same ``float32``, 0.4 for 0.4000000059604645; None for NaN, which JSON
    lacks."""
    return None if number is None or np.isnan(number) else float(str(np.float32(number)))


def colour(label: int) -> str:
    """A colour for a class, as #rrggbb: neighbours far apart, the same one each time."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.9)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
