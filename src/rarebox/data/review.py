"""Questions to people in another tool, and their answers: the common part of Label Studio's and CVAT's files."""

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rarebox.core.parsing import finite
from rarebox.data.narrow import as_list
from rarebox.errors import UserError
from rarebox.types import ImageRecord, Query

MODEL = "rarebox"


@dataclass(frozen=True, eq=False)
class ReviewTask:
    """One image as another tool shows it: the queries about it, best first, and its labelled boxes.

    ``file`` is the image's name there. ``labelled`` are boxes as queries, whose label is ``guess``. ``complete``: a
    person has labelled every object. ``number`` counts the tasks from 1, best first. ``project`` is the session of the
    store that the numbers of image and queries belong to, empty if unknown; with ``numbered`` off, the image's number
    belongs to no store.
    """

    number: int
    record: ImageRecord
    file: str
    queries: Sequence[Query] = ()
    labelled: Sequence[Query] = ()
    complete: bool = False
    project: str = ""
    numbered: bool = True


class Region(NamedTuple):
    """A box from another tool, or the upright box around another shape.

    ``box`` is x1, y1, x2, y2 in pixels of the picture there, ``name`` the class, ``query`` the query that it answers,
    if it names one, and ``key`` its lasting id in the tool, empty if it has none. If the tool tells: ``held``, the
    index in `Returned.held` of the label that it was exported as, and ``renamed``, whether its name is another one than
    that with which its guess was shown.
    """

    box: tuple[float, float, float, float]
    name: str
    query: int | None
    key: str
    held: int | None = None
    renamed: bool | None = None


def held_name(index: int) -> str:
    """The name in an export of the label with this index in the list of its image."""
    return f"box-{index}"


def held_index(name: str) -> int | None:
    """The index of the label that has this name in an export. None for other names."""
    found = _HELD.fullmatch(name)
    return int(found[1]) if found else None


_HELD = re.compile(r"box-([0-9]{1,9})")


class Held(NamedTuple):
    """A label that an export held: its class, and x1, y1, x2, y2 in percent of the image's sides."""

    name: str
    place: tuple[float, float, float, float]


def held_in(sheet: ReviewTask, classes: Sequence[str]) -> list[Held]:
    """The labels of one image, for its export to carry: a box that is missing later was deleted."""
    sides = np.array([sheet.record.width or np.inf, sheet.record.height or np.inf] * 2)
    found: list[Held] = []
    for query in sheet.labelled:
        assert query.box is not None
        assert query.guess is not None
        x1, y1, x2, y2 = np.round(query.box * 100 / sides, 4).tolist()
        found.append(Held(classes[query.guess], (x1, y1, x2, y2)))
    return found


def read_held(value: object, where: str) -> tuple[Held, ...]:
    """The labels that an export held, as JSON gives them. Raises `UserError`, which begins with ``where``."""
    try:
        return tuple(_held(entry) for entry in as_list(value))
    except (TypeError, ValueError):
        raise UserError(
            f"{where}: the list of the labels that it was exported with is damaged. Export the labels again."
        ) from None


def _held(entry: object) -> Held:
    name, place = as_list(entry)
    x1, y1, x2, y2 = map(finite, as_list(place))
    return Held(str(name), (x1, y1, x2, y2))


@dataclass(frozen=True, eq=False)
class Returned:
    """What another tool returned for one image.

    ``where`` is the file and the task. ``image`` is the image's name there, ``image_id`` its id in the store, if the
    file has it, ``size`` the (width, height) in pixels of the picture there. ``queries`` are the queries that were
    shown, if the file lists them. ``by`` names the annotator, empty if unknown; ``milliseconds`` is the time spent.
    ``began_with_guesses``: the annotator started from the boxes of the queries, so a missing one was deleted.
    ``left_out`` names the shapes that cannot become a box, so ``regions`` may lack some objects. ``held`` are the
    labels that were exported with the image, if the annotator started from them. ``task`` names the tool's own task, in
    which the keys of regions are unique, and ``project`` the session of the store that has exported the image; both
    are empty if the file does not say.
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
    held: tuple[Held, ...] = ()
    task: str = ""
    project: str = ""


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything that a file returns. ``skipped`` counts images that an annotator skipped, ``older`` the annotations
    that a later one of the same image replaces."""

    returned: Sequence[Returned]
    skipped: int = 0
    older: int = 0


def sheets(images: Sequence[tuple[ImageRecord, str]], queries: Sequence[Query]) -> list[ReviewTask]:
    """One task for each image with a query, in the order of the best query of each.

    A query about a whole image makes a task without boxes.
    """
    known = {record.id: (record, file) for record, file in images}
    of_image: dict[int, list[Query]] = {}
    for query in queries:
        of_image.setdefault(query.image_id, []).extend([] if query.box is None else [query])
    return [ReviewTask(n, *known[image_id], asked) for n, (image_id, asked) in enumerate(of_image.items(), 1)]


def shortest(number: float | np.floating) -> float:
    """The shortest decimal with the same ``float32``: 0.4 for 0.4000000059604645."""
    return float(str(np.float32(number)))


def short(number: float | np.floating | None) -> float | None:
    """The same as :func:`shortest`; None for None and for NaN, which JSON lacks."""
    return None if number is None or np.isnan(number) else shortest(number)


def colour(label: int) -> str:
    """The colour of a class, as #rrggbb. Successive classes have distinct colours."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.65, 0.9)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
