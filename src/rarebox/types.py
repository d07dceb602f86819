"""The data that everything passes around. Shapes are checked once, on construction; functions then trust them.

Boxes are ``float32`` rows ``x1, y1, x2, y2`` in 0-based pixels of the *original* image. Labels are ``int64`` in
``[0, K)``; background is never a label. Scores are in ``[0, 1]``. N, T, G count rows; K counts classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def as_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    """Anything that is N boxes -> (N, 4) ``float32``, every one finite and with a positive area."""
    array = np.asarray(boxes, dtype=np.float32)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {array.shape}; wrap a single box in a list")
    if not (np.isfinite(array).all() and (array[:, 2:] > array[:, :2]).all()):
        good = np.isfinite(array).all(axis=1) & (array[:, 2:] > array[:, :2]).all(axis=1)
        raise ValueError(f"boxes must be finite with x2 > x1 and y2 > y1, got {array[~good][0].tolist()}")
    return array


class Rows:
    """A table of equally long columns: ``len``, indexing and concatenation act on all of them at once."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))  # type: ignore[arg-type]

    def __getitem__(self, rows: Any) -> Self:
        """The chosen rows (a mask, indices or a slice) as a table of the same type."""
        return type(self)(*(_pick(getattr(self, f.name), rows) for f in fields(self)))  # type: ignore[arg-type]

    def _column(self, name: str, dtype: Any, width: tuple[int | None, ...] = ()) -> None:
        """Convert one column and check that it is (length, *width), where None stands for any width."""
        array = np.asarray(getattr(self, name), dtype=dtype)
        wanted = (len(self), *width)
        if array.ndim != len(wanted) or any(w is not None and w != s for w, s in zip(wanted, array.shape, strict=True)):
            raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
        object.__setattr__(self, name, array)


def _pick(column: Any, rows: Any) -> Any:
    return None if column is None else column[rows]


R = TypeVar("R", bound="Rows")


def concatenate(tables: Sequence[R]) -> R:
    """Several tables of one type, one after the other; an optional column stays only where all have it."""
    columns = [[getattr(t, f.name) for t in tables] for f in fields(tables[0])]  # type: ignore[arg-type]
    return type(tables[0])(*(None if any(c is None for c in col) else np.concatenate(col) for col in columns))


@dataclass(frozen=True)
class Picture:
    """A decoded image at working size, which knows how large the original is.

    ``pixels`` is (h, w, 3) ``uint8`` RGB; ``width`` and ``height`` are those of the original image, in whose pixels
    all boxes are given.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be (h, w, 3) uint8, got {self.pixels.shape} {self.pixels.dtype}")

    @classmethod
    def of(cls, image: "Picture | NDArray[np.uint8]") -> "Picture":
        """A picture as it is, or pixels (h, w, 3) ``uint8`` as a picture of that very size."""
        return image if isinstance(image, Picture) else cls(image, image.shape[1], image.shape[0])


@dataclass(frozen=True, eq=False)
class Detections(Rows):
    """What a detector says about one picture.

    ``class_probs`` is the whole class vector of each box: (N, K) sigmoids (RetinaNet), or (N, K + 1) softmax with
    background first (Faster R-CNN). ``features`` (N, D) is there on request.
    """

    boxes: Floats
    labels: Ints
    scores: Floats
    class_probs: Floats
    features: Floats | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("labels", np.int64)
        self._column("scores", np.float32)
        self._column("class_probs", np.float32, (None,))
        if self.features is not None:
            self._column("features", np.float32, (None,))

    @classmethod
    def from_scores(cls, boxes: ArrayLike, labels: ArrayLike, scores: ArrayLike, num_classes: int) -> Self:
        """Detections of a detector that returns one score a box, in [0, 1]: (N, 4), (N,), (N,)."""
        labels, scores = np.asarray(labels, np.int64).reshape(-1), np.asarray(scores, np.float32).reshape(-1)
        return cls(as_boxes(boxes), labels, scores, score_vectors(labels, scores, num_classes))


def score_vectors(labels: Ints, scores: Floats, num_classes: int) -> Floats:
    """Class vectors where there is only a score, background first: (N,), (N,) -> (N, K + 1).

    The score is taken for the probability of the class, and the rest for that of background: the nearest to a detector
    with background that a score alone allows. Their entropy is that of the score against its complement.
    """
    vectors = np.zeros((len(scores), num_classes + 1))
    vectors[np.arange(len(scores)), labels + 1] = scores
    vectors[:, 0] = 1 - scores
    return vectors


@dataclass(frozen=True, eq=False)
class Candidates(Rows):
    """One row per box of the pool that could be asked about or become a pseudo label.

    ``uncertainty`` is u(b) of Eq. 3 in [0, c_m]; ``box_consistency`` is cons(b) of Eq. 4 in [0, 1]. ``box_index``
    counts the boxes of one image; (image_id, box_index) names a candidate within a cycle. ``class_disagreement`` and
    ``box_disagreement`` say how much the views, taken as a committee, differ on the class and on the place of the box
    (ComPAS; NaN where no view saw it).
    """

    image_id: Ints
    box_index: Ints
    boxes: Floats
    labels: Ints
    scores: Floats
    uncertainty: Floats
    box_consistency: Floats
    class_probs: Floats
    features: Floats | None = None
    class_disagreement: Floats | None = None
    box_disagreement: Floats | None = None

    def __post_init__(self) -> None:
        self._column("image_id", np.int64)
        self._column("box_index", np.int64)
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("boxes", np.float32, (4,))
        self._column("labels", np.int64)
        for name in ("scores", "uncertainty", "box_consistency"):
            self._column(name, np.float32)
        self._column("class_probs", np.float32, (None,))
        if self.features is not None:
            self._column("features", np.float32, (None,))
        for name in ("class_disagreement", "box_disagreement"):
            if getattr(self, name) is not None:
                self._column(name, np.float32)

    @classmethod
    def none(cls, num_classes: int) -> Self:
        """No candidates."""
        nothing: Any = np.zeros(0)
        return cls(nothing, nothing, np.zeros((0, 4)), nothing, nothing, nothing, nothing, np.zeros((0, num_classes)))


@dataclass(frozen=True, eq=False)
class ImageScores(Rows):
    """One row per scored image of the pool, also of those without a candidate: what CALD ranks images by.

    ``consistency`` (I,) is the least consistency of any detection, the mean over views, in [0, beta]; 0 where nothing
    was detected. ``class_scores`` (I, K) is the best score of each class, the mean over the image and its views.
    """

    image_id: Ints
    consistency: Floats
    class_scores: Floats

    def __post_init__(self) -> None:
        self._column("image_id", np.int64)
        self._column("consistency", np.float32)
        self._column("class_scores", np.float32, (None,))

    @classmethod
    def none(cls, num_classes: int) -> Self:
        """No images."""
        return cls(np.zeros(0), np.zeros(0), np.zeros((0, num_classes)))  # type: ignore[arg-type]


class Verdict(StrEnum):
    """What an answer says: the object with its true box and class; nothing there; nobody can tell; or an object that
    has its label already, so that a second look at it brings no box and must not teach background either.
    WITHDRAWN takes its author's answer back."""

    OBJECT = "object"
    NOT_AN_OBJECT = "not_an_object"
    CANNOT_TELL = "cannot_tell"
    ALREADY_LABELLED = "already_labelled"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, eq=False)
class Query:
    """A question: "what is in this box?", or, with ``box`` None, "what is in this whole image?".

    ``id`` is given by the store (0 before that). ``guess`` is the predicted label, ``utility`` what the strategy
    ranked by, ``why`` further numbers to show a person. ``wanted`` people are to answer it. ``asked_by`` names who
    drew the box (or called the image complete) unasked; None if a strategy asks.
    """

    image_id: int
    box: Floats | None = None
    guess: int | None = None
    utility: float = 0.0
    why: dict[str, float] | None = None
    id: int = 0
    wanted: int = 1
    asked_by: str | None = None


ORACLE = "oracle"
"""Who gives the answers of a simulation."""


@dataclass(frozen=True, eq=False)
class Answer:
    """What came back: the objects' boxes (G, 4) and labels (G,). A box query that hit nothing has no boxes."""

    query_id: int
    boxes: Floats
    labels: Ints
    verdict: Verdict
    by: str = ORACLE
    milliseconds: int = 0

    def __post_init__(self) -> None:
        boxes, labels = as_boxes(self.boxes), np.asarray(self.labels, dtype=np.int64)
        if labels.shape != (len(boxes),):
            raise ValueError(f"labels must have shape ({len(boxes)},), got {labels.shape}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "labels", labels)


class Source(StrEnum):
    """Where a target box comes from."""

    HUMAN = "human"
    PSEUDO = "pseudo"
    REJECTED = "rejected"
    DIFFICULT = "difficult"


@dataclass(frozen=True, eq=False)
class Targets(Rows):
    """Training truth of one image.

    ``class_weight`` and ``box_weight`` (G,) in [0, 1] multiply the losses of the anchors and proposals matched to a
    box (Eq. 7); with weight 0 that branch *ignores* the box's region. Where ``background`` (G,) is True the class
    branch is taught background there (a rejected box, or a box that only the box branch trusts); Eq. 7 has no weight
    on negatives, so such a box's class weight is either 0 or as good as 1.
    """

    boxes: Floats
    labels: Ints
    class_weight: Floats
    box_weight: Floats
    background: Bools
    source: NDArray[np.str_]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("labels", np.int64)
        for name in ("class_weight", "box_weight"):
            self._column(name, np.float32)
            weight = getattr(self, name)
            if not ((weight >= 0) & (weight <= 1)).all():
                raise ValueError(f"{name} must be in [0, 1], got {weight.min()} to {weight.max()}")
        self._column("background", np.bool_)
        self._column("source", np.str_)

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        labels: ArrayLike,
        source: Source = Source.HUMAN,
        class_weight: ArrayLike = 1.0,
        box_weight: ArrayLike = 1.0,
        background: ArrayLike = False,
    ) -> Self:
        """Boxes of one source; the weights and the flag may be one number for all of them."""
        boxes = as_boxes(boxes)
        columns = (np.broadcast_to(c, len(boxes)) for c in (class_weight, box_weight, background, str(source)))
        return cls(boxes, np.asarray(labels, dtype=np.int64).reshape(-1), *columns)


@dataclass(frozen=True, eq=False)
class LabelState:
    """All that a strategy may know of the labels so far.

    ``class_frequency`` (K,) is p(l) of Eq. 1, ``class_counts`` (K,) the human boxes of each class, ``images_labelled``
    the number of complete images, ``budget`` what this cycle may spend. ``images`` are the pool's images that nobody
    has labelled, for image-level strategies; for the others there are none. ``box_features`` (L, D),
    ``image_features`` (I, F) of those images and ``labelled_image_features`` (J, F) are there for the strategies that
    name them (``strategies.NEEDS``).
    """

    class_frequency: Floats
    class_counts: Ints
    images: ImageScores
    images_labelled: int = 0
    budget: int = 0
    box_features: Floats | None = None
    image_features: Floats | None = None
    labelled_image_features: Floats | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set: a number that names it for good, where it lies, and its size (EXIF rotation undone)."""

    id: int
    path: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class GroundTruth(Rows):
    """All objects of one image; only the oracle, the evaluation and the data readers may see it."""

    boxes: Floats
    labels: Ints
    difficult: Bools

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("labels", np.int64)
        self._column("difficult", np.bool_)


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """What people (or the oracle) said of one image so far, each object once.

    ``boxes`` (G, 4) with ``labels`` (G,) are the human boxes. ``rejected`` (R, 4) were shown and are not an object.
    ``skipped`` (S, 4) were shown and brought neither: nobody could tell, or the object had its label already.
    ``complete``: the whole image was labelled (a query without a box, whose answer was not that nobody can tell), so
    what has no box is background.
    """

    boxes: Floats
    labels: Ints
    rejected: Floats
    skipped: Floats
    complete: bool

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        labels: ArrayLike,
        rejected: ArrayLike = (),
        skipped: ArrayLike = (),
        complete: bool = False,
    ) -> Self:
        """The labels of one image, from anything that is arrays."""
        boxes, labels = as_boxes(boxes), np.asarray(labels, dtype=np.int64).reshape(-1)
        if len(labels) != len(boxes):
            raise ValueError(f"labels must have shape ({len(boxes)},), got ({len(labels)},)")
        return cls(boxes, labels, as_boxes(rejected), as_boxes(skipped), complete)

    @property
    def settled(self) -> Floats:
        """(G + R + S, 4): the boxes near which nothing is to be asked again."""
        return np.concatenate([self.boxes, self.rejected, self.skipped])
