"""Any detector's boxes ranked in memory, by the functions that rank files of them."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from rarebox import config
from rarebox.config import Settings
from rarebox.errors import UserError, unknown_name
from rarebox.external import NO_BOXES, candidates_of, check_strategy, choose_queries
from rarebox.pool.affine import MAPS, Frame, size
from rarebox.pool.candidates import rows_by_image
from rarebox.types import Candidates, Detections, Floats, ImageLabels, Query, as_boxes, concatenate

Image = TypeVar("Image", int, str, os.PathLike[str])
"""What names an image: a whole number, text, or a path; one kind for all images."""

SLACK = 1e-3
"""The tolerance above 1 for rounded probabilities."""


@dataclass(frozen=True, eq=False)
class View:
    """What a detector found on one augmented copy of an image.

    The boxes are in pixels of the copy. ``matrix`` (2, 3) maps a point (x, y, 1) of the image to a point of the copy;
    the default is for boxes that are mapped back to the image already. ``size`` is the copy's (width, height) in
    pixels; a copy that does not show the whole image needs it. ``patches`` (P, 4) are the parts of the image that the
    copy hides.
    """

    detections: Detections
    matrix: NDArray[np.float64] = field(default_factory=lambda: np.eye(2, 3))
    size: tuple[float, float] | None = None
    patches: Floats = field(default_factory=lambda: NO_BOXES)

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        if matrix.shape != (2, 3) or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix[:, :2])) < 1e-9:
            raise ValueError(f"matrix must be an invertible affine map of shape (2, 3), got {matrix.tolist()}")
        if self.size is not None:
            sides = np.asarray(self.size, dtype=np.float64)
            if sides.shape != (2,) or not (np.isfinite(sides) & (sides > 0)).all():
                raise ValueError(f"size must be a width and a height in pixels, both above 0, got {self.size}")
            object.__setattr__(self, "size", (float(sides[0]), float(sides[1])))
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "patches", as_boxes(self.patches))

    @classmethod
    def of(cls, name: str, detections: Detections, width: int, height: int) -> Self:
        """A view whose map follows from its name and the image's size in pixels.

        ``name`` is ``flip``, ``scale_0.8``, ``scale_1.2``, ``rotate_5``, ``colour`` or ``noise``. Raises UserError for
        any other name.
        """
        if name not in MAPS:
            raise unknown_name("view", name, MAPS)
        view_height, view_width = size(name, height, width)
        return cls(detections, MAPS[name](height, width), (view_width, view_height))


@dataclass(frozen=True, eq=False)
class RankedBox(Generic[Image]):
    """One box to label, and what it was ranked by.

    ``box`` (4,) is x1, y1, x2, y2 in pixels, ``label`` the predicted class and ``name`` its name. ``uncertainty`` is
    u(b) of Eq. 3, or the entropy of the class in nats where there are no views.
    """

    image: Image
    box: Floats
    label: int
    name: str
    score: float
    uncertainty: float
    utility: float


@dataclass(frozen=True, eq=False)
class Ranking(Generic[Image]):
    """The boxes to label next, best first.

    ``open_boxes`` counts the boxes there were to choose from, ``class_frequency`` (K,) is p(l) of Eq. 1.
    ``candidates`` holds each image's candidates, which :func:`rarebox.make_targets` turns into pseudo labels.
    """

    boxes: Sequence[RankedBox[Image]]
    open_boxes: int
    class_frequency: Floats
    candidates: Mapping[Image, Candidates]


def rank(
    detections: Mapping[Image, Detections],
    views: Mapping[Image, Sequence[View]] | None = None,
    labels: Mapping[Image, ImageLabels] | None = None,
    *,
    classes: Sequence[str],
    strategy: str | None = None,
    budget: int | None = None,
    settings: Settings | None = None,
) -> Ranking[Image]:
    """Rank the boxes that any detector found, by how much a label would teach it.

    ``detections`` and ``views`` are by image; every image needs the same number of views. Without views the uncertainty
    is the entropy of each box's class. ``labels`` say what is labelled on images of ``detections``: boxes near a
    labelled or rejected one, and boxes of a complete image, are skipped. ``classes`` are the K class names. ``budget``
    is the number of boxes to return, by default all. ``settings`` are by default those of the preset ``laptop``;
    ``strategy`` overrides theirs. Raises UserError for input that contradicts itself, naming the image.
    """
    chosen = config.or_laptop(settings)
    if strategy:
        chosen = chosen.model_copy(update={"selection": chosen.selection.model_copy(update={"strategy": strategy})})
    check_strategy(chosen, bool(views))
    if budget is not None and not (_is_whole(budget) and budget >= 1):
        raise UserError(f"budget must be a whole number, at least 1 box, got {budget}. Omit it to rank all boxes")
    if isinstance(classes, str) or len({*classes}) < len(classes):
        raise UserError(f"classes must be a list of different names, got {classes!r}")
    views, labels = {} if views is None else views, {} if labels is None else labels
    _check(detections, views, labels, len(classes))
    number = _numbers([*detections])
    scored = [
        candidates_of(
            number[image],
            detections[image],
            [view.detections for view in views.get(image, ())],
            [Frame("", view.matrix, view.patches, view.size) for view in views.get(image, ())],
            chosen,
            len(classes),
            bool(views),
            chosen.lowest_score,
        )
        for image in sorted(detections, key=number.__getitem__)
    ]
    found = [one for one in scored if len(one)]
    together = concatenate(found) if found else Candidates.none(len(classes))
    said = {number[image]: one for image, one in labels.items()}
    queries, frequency, total = choose_queries(
        together, said, chosen, budget or max(len(together), 1), len(classes), bool(views)
    )
    image_of = {n: image for image, n in number.items()}
    boxes = tuple(_ranked(query, image_of[query.image_id], classes) for query in queries)
    by_image = {image_of[n]: together[rows] for n, rows in rows_by_image(together).items()}
    return Ranking(boxes, total, frequency, {image: by_image.get(image, together[:0]) for image in detections})


def _ranked(query: Query, image: Image, classes: Sequence[str]) -> RankedBox[Image]:
    assert query.box is not None
    assert query.guess is not None
    assert query.why is not None
    score, uncertainty = query.why["score"], query.why["uncertainty"]
    return RankedBox(image, query.box, query.guess, classes[query.guess], score, uncertainty, query.utility)


def _numbers(images: Sequence[Image]) -> dict[Image, int]:
    """A number for each image, its own where it is one; ties in the ranking are broken by it."""
    numbers = {image: int(image) for image in images if isinstance(image, int | np.integer)}
    return numbers or {image: n for n, image in enumerate(sorted(images, key=str), 1)}


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer)


NAMED_BY = {"whole numbers": (int, np.integer), "text": (str,), "paths": (os.PathLike,)}
"""The kinds of names that images may have, and their types."""


def _kind_of_name(image: object) -> str:
    for kind, types in NAMED_BY.items():
        if isinstance(image, types):
            return kind
    raise UserError(f"an image is named {image!r}. Name images by {', '.join(NAMED_BY)}")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise UserError(f"{name} must be {kind.__name__}, got {type(value).__name__}")


def _check(
    detections: Mapping[Image, Detections],
    views: Mapping[Image, Sequence[View]],
    labels: Mapping[Image, ImageLabels],
    num_classes: int,
) -> None:
    """UserError if the input contradicts itself."""
    for name, table in (("detections", detections), ("views", views), ("labels", labels)):
        _check_type(name, table, Mapping)
    kinds = {_kind_of_name(image) for image in (*detections, *views, *labels)}
    if len(kinds) > 1:
        raise UserError(f"the images are named by {' and '.join(sorted(kinds))}. Use one kind of name")
    for name, images in (("views", views), ("labels", labels)):
        for image in {*images} - {*detections}:
            raise UserError(f"{name} has the image {image!r}, but detections lacks it. Add its detections")
    for image, found in detections.items():
        _check_type(f"detections[{image!r}]", found, Detections)
    for image, several in views.items():
        _check_type(f"views[{image!r}]", several, Sequence)
        for view in several:
            _check_type(f"each of views[{image!r}]", view, View)
            _check_type(f"each of views[{image!r}].detections", view.detections, Detections)
    for image, said in labels.items():
        _check_type(f"labels[{image!r}]", said, ImageLabels)
    if views and not any(views.values()):
        raise UserError("views has no view of any image. Omit it to rank by the entropy of the classes")
    counts = {image: len(views.get(image, ())) for image in detections}
    least = min(counts, key=counts.__getitem__, default=None)
    if least is not None and counts[least] < max(counts.values()):
        raise UserError(
            f"the image {least!r} has {counts[least]} views, others have {max(counts.values())}. Give every image the "
            "same views, with empty detections where nothing was found"
        )
    widths: set[int] = set()
    for image, found in detections.items():
        for one in (found, *(view.detections for view in views.get(image, ()))):
            if len(one):
                _check_detections(image, one, num_classes)
                widths.add(one.class_probs.shape[1])
    if len(widths) > 1:
        raise UserError(
            "some detections have class vectors with background and some without. Use one form for all, including views"
        )
    for image, said in labels.items():
        if len(said.labels) and not 0 <= said.labels.min() <= said.labels.max() < num_classes:
            raise UserError(f"the labels of image {image!r} must be in [0, {num_classes}), got {said.labels.tolist()}")


def _check_detections(image: object, found: Detections, num_classes: int) -> None:
    if not 0 <= found.labels.min() <= found.labels.max() < num_classes:
        raise UserError(f"image {image!r}: labels must be in [0, {num_classes}), got {found.labels.tolist()}")
    if found.class_probs.shape[1] not in (num_classes, num_classes + 1):
        raise UserError(
            f"image {image!r}: class vectors have {found.class_probs.shape[1]} numbers. Give {num_classes}, one for "
            f"each class, or {num_classes + 1} with background first"
        )
    for name, values in (("scores", found.scores), ("class_probs", found.class_probs)):
        if not ((values >= 0) & (values <= 1 + SLACK)).all():
            raise UserError(
                f"image {image!r}: {name} must be probabilities in [0, 1], got {values.min():.3g} to {values.max():.3g}"
            )
