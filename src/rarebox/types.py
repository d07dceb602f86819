"""The data types shared by all modules. Constructors check shapes; functions then rely on them.

Boxes are ``float32`` rows ``x1, y1, x2, y2`` in 0-based pixels of the *original* image. Labels are ``int64`` in
``[0, K)``; background is never a label. Scores are in ``[0, 1]``. N, T, G count rows; K counts classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def as_boxes(boxes: ArrayLike) -> NDArray[np.float32]:
    """Convert N boxes to (N, 4) ``float32``. Raises ValueError unless each is finite and has a positive area."""
    array = np.asarray(boxes, dtype=np.float32)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {array.shape}. Wrap a single box in a list")
    if not (np.isfinite(array).all() and (array[:, 2:] > array[:, :2]).all()):
        good = np.isfinite(array).all(axis=1) & (array[:, 2:] > array[:, :2]).all(axis=1)
        raise ValueError(f"boxes must be finite with x2 > x1 and y2 > y1, got {array[~good][0].tolist()}")
    return array


def as_whole(name: str, values: ArrayLike) -> Ints:
    """Convert numbers to ``int64``. Raises ValueError unless each is a whole number."""
    array = np.asarray(values)
    if array.dtype.kind != "i":
        numbers = array.astype(np.float64)
        if not ((np.abs(numbers) < 2**53) & (np.trunc(numbers) == numbers)).all():
            raise ValueError(f"{name} must be whole numbers, got {array.tolist()}")
    return array.astype(np.int64, copy=False)


def check_fractions(name: str, values: Floats) -> None:
    """Raise ValueError unless all values are in [0, 1]."""
    if not ((values >= 0) & (values <= 1)).all():
        raise ValueError(f"{name} must be in [0, 1], got {values.min()} to {values.max()}")


RowIndex = Bools | NDArray[np.integer] | Sequence[int] | slice
"""Which rows of a table to take: a mask, row numbers or a slice."""


@dataclass(frozen=True, eq=False)
class Rows:
    """A table of columns of equal length: ``len``, indexing and concatenation act on all of them at once."""

    def __len__(self) -> int:
        return len(getattr(self, fields(self)[0].name))

    def __getitem__(self, rows: RowIndex) -> Self:
        """The chosen rows as a table of the same type."""
        columns = (getattr(self, f.name) for f in fields(self))
        return type(self)(*(None if column is None else column[rows] for column in columns))

    def _column(self, name: str, dtype: DTypeLike, width: tuple[int | None, ...] = ()) -> None:
        """Convert one column and check that its shape is (length, *width), where None stands for any width."""
        given = getattr(self, name)
        array = as_whole(name, given) if dtype is np.int64 else np.asarray(given, dtype=dtype)
        wanted = (len(self), *width)
        if array.ndim != len(wanted) or any(w is not None and w != s for w, s in zip(wanted, array.shape, strict=True)):
            raise ValueError(f"{name} must have shape {wanted}, got {array.shape}")
        object.__setattr__(self, name, array)


R = TypeVar("R", bound="Rows")


def concatenate(tables: Sequence[R]) -> R:
    """Concatenate tables of one type. An optional column is kept only if every table has it."""
    columns = [[getattr(t, f.name) for t in tables] for f in fields(tables[0])]
    return type(tables[0])(*(None if any(c is None for c in col) else np.concatenate(col) for col in columns))


@dataclass(frozen=True)
class Picture:
    """A decoded image at working size, with the size of the original.

    ``pixels`` is (h, w, 3) ``uint8`` RGB. ``width`` and ``height`` are those of the original image. All boxes are in
    pixels of the original.
    """

    pixels: NDArray[np.uint8]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.pixels.ndim != 3 or self.pixels.shape[2] != 3 or self.pixels.dtype != np.uint8:
            raise ValueError(f"pixels must be (h, w, 3) uint8, got {self.pixels.shape} {self.pixels.dtype}")

    @classmethod
    def of(cls, image: "Picture | NDArray[np.uint8]") -> "Picture":
        """Return a picture unchanged, or wrap pixels (h, w, 3) ``uint8`` whose original has the same size."""
        return image if isinstance(image, Picture) else cls(image, image.shape[1], image.shape[0])


@dataclass(frozen=True, eq=False)
class Detections(Rows):
    """The detections on one picture.

    ``class_probs`` is the whole class vector of each box: (N, K) sigmoids (RetinaNet), or (N, K + 1) softmax with
    background first (Faster R-CNN). ``features`` (N, D) is optional.
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
        """Detections of a detector that returns one score a box: boxes (N, 4), labels (N,), scores (N,) in [0, 1].

        Raises ValueError for lengths that differ, for labels that are not whole numbers in [0, num_classes), and for
        other scores.
        """
        boxes, labels = as_boxes(boxes), as_whole("labels", labels).reshape(-1)
        scores = np.asarray(scores, np.float32).reshape(-1)
        if not len(boxes) == len(labels) == len(scores):
            raise ValueError(
                f"each box needs one label and one score, got {len(boxes)} boxes, {len(labels)} labels and "
                f"{len(scores)} scores"
            )
        if not ((labels >= 0) & (labels < num_classes)).all():
            raise ValueError(f"labels must be in [0, {num_classes}), got {labels.tolist()}")
        check_fractions("scores", scores)
        return cls(boxes, labels, scores, score_vectors(labels, scores, num_classes))


def score_vectors(labels: Ints, scores: Floats, num_classes: int) -> Floats:
    """Class vectors where there is only a score, background first: (N,), (N,) -> (N, K + 1).

    The score counts as the probability of the class, and the rest as that of background: the best approximation of a
    detector with background from a score alone. Their entropy is that of the score against its complement.
    """
    vectors = np.zeros((len(scores), num_classes + 1))
    vectors[np.arange(len(scores)), labels + 1] = scores
    vectors[:, 0] = 1 - scores
    return vectors


ADDED = 2**32
"""The smallest ``box_index`` of a candidate that another detector has found."""


@dataclass(frozen=True, eq=False)
class Candidates(Rows):
    """One row per box of the pool that may be asked about or become a pseudo label.

    ``uncertainty`` is u(b) of Eq. 3 in [0, c_m]; ``box_consistency`` is cons(b) of Eq. 4 in [0, 1]. ``box_index``
    numbers the boxes of one image; (image_id, box_index) identifies a candidate within a cycle. From ``ADDED`` up it is
    another detector's box (``rarebox predictions add``), whose ``uncertainty`` is the entropy of its score in nats.
    ``class_disagreement`` and ``box_disagreement`` measure how much the views, as a committee, disagree on the class
    and on the position of the box (ComPAS). They are NaN for a box without a match in any view.
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
        ints, floats = np.zeros(0, np.int64), np.zeros(0)
        return cls(ints, ints, np.zeros((0, 4)), ints, floats, floats, floats, np.zeros((0, num_classes)))


@dataclass(frozen=True, eq=False)
class ImageScores(Rows):
    """One row per scored image of the pool, including images without candidates. CALD ranks images by it.

    ``consistency`` (I,) in [0, beta] is the least consistency of any detection, averaged over the views; 0 for an
    image without detections. ``class_scores`` (I, K) is the best score of each class, averaged over the image and its
    views.
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
        return cls(np.zeros(0, np.int64), np.zeros(0), np.zeros((0, num_classes)))


class Verdict(StrEnum):
    """The kind of an answer.

    OBJECT gives the true box and class. ALREADY_LABELLED means that the object has its label: the answer has no box,
    and the region is not background either. WITHDRAWN cancels the author's earlier answer.
    """

    OBJECT = "object"
    NOT_AN_OBJECT = "not_an_object"
    CANNOT_TELL = "cannot_tell"
    ALREADY_LABELLED = "already_labelled"
    WITHDRAWN = "withdrawn"


JUDGED = (Verdict.OBJECT, Verdict.NOT_AN_OBJECT)
"""The verdicts that say whether a box shows an object."""


@dataclass(frozen=True, eq=False)
class Query:
    """A question: "what is in this box?", or, with ``box`` None, "what is in this whole image?".

    The store sets ``id`` (0 before that). ``guess`` is the predicted label, ``utility`` the value that the strategy
    ranked by, ``why`` further numbers shown to the annotator. ``wanted`` is the number of people who should answer.
    ``asked_by`` names the person who drew the box (or marked the image complete) without being asked; None if a
    strategy asks.
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
"""The author of the answers in a simulation."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to a query: the objects' boxes (G, 4) and labels (G,). A box query that hit no object has none."""

    query_id: int
    boxes: Floats
    labels: Ints
    verdict: Verdict
    by: str = ORACLE
    milliseconds: int = 0

    def __post_init__(self) -> None:
        boxes, labels = as_boxes(self.boxes), as_whole("labels", self.labels)
        if labels.shape != (len(boxes),):
            raise ValueError(f"labels must have shape ({len(boxes)},), got {labels.shape}")
        object.__setattr__(self, "boxes", boxes)
        object.__setattr__(self, "labels", labels)


class Source(StrEnum):
    """The origin of a target box."""

    HUMAN = "human"
    PSEUDO = "pseudo"
    REJECTED = "rejected"
    DIFFICULT = "difficult"


@dataclass(frozen=True, eq=False)
class Targets(Rows):
    """The training targets of one image.

    ``class_weight`` and ``box_weight`` (G,) in [0, 1] multiply the losses of the anchors and proposals matched to a
    box (Eq. 7); with weight 0 that branch *ignores* the box's region. Where ``background`` (G,) is True, the class
    branch is trained on background there (a rejected box, or a box that only the box branch trusts). Eq. 7 has no
    weight on negatives, so any positive class weight of such a box has the effect of 1.
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
            check_fractions(name, getattr(self, name))
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
        """Targets of one source. The weights and the flag may be one value for all boxes."""
        boxes = as_boxes(boxes)
        columns = (np.broadcast_to(c, len(boxes)) for c in (class_weight, box_weight, background, str(source)))
        return cls(boxes, as_whole("labels", labels).reshape(-1), *columns)


@dataclass(frozen=True, eq=False)
class LabelState:
    """Everything that a strategy may know about the labels so far.

    ``class_frequency`` (K,) is p(l) of Eq. 1, ``class_counts`` (K,) the number of human boxes of each class,
    ``images_labelled`` the number of complete images, ``budget`` about how many boxes this cycle may spend.
    ``hit_weights`` (3,) turn the evidence on a box into the probability that it shows an object
    (:func:`rarebox.method.hit_probability`). ``images`` are the pool's unlabelled images, for image-level strategies,
    and empty for the others. ``box_features`` (L, D), ``image_features`` (I, F) of those images and
    ``labelled_image_features`` (J, F) are set for the strategies that need them (``strategies.NEEDS``).
    """

    class_frequency: Floats
    class_counts: Ints
    images: ImageScores
    images_labelled: int = 0
    budget: int = 0
    hit_weights: Floats = field(default_factory=lambda: np.zeros(3))
    box_features: Floats | None = None
    image_features: Floats | None = None
    labelled_image_features: Floats | None = None


@dataclass(frozen=True)
class ImageRecord:
    """One image of a data set: its permanent id, its path, and its size in pixels after EXIF rotation."""

    id: int
    path: str
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class GroundTruth(Rows):
    """All objects of one image. Only the oracle, the evaluation and the data readers may see it."""

    boxes: Floats
    labels: Ints
    difficult: Bools

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", as_boxes(self.boxes))
        self._column("labels", np.int64)
        self._column("difficult", np.bool_)


@dataclass(frozen=True, eq=False)
class ImageLabels:
    """The labels of one image so far, from people or the oracle, each object once.

    ``boxes`` (G, 4) with ``labels`` (G,) are the human boxes. ``rejected`` (R, 4) are the rejected boxes. ``skipped``
    (S, 4) are the skipped boxes: the annotator could not tell, or the object had its label already. ``complete``:
    the image is fully labelled (a query about the whole image got an answer other than CANNOT_TELL), so everything
    outside the boxes is background. ``difficult`` (D, 4) with ``difficult_labels`` (D,) are those skipped boxes that
    hold an object marked as difficult, which training ignores.
    """

    boxes: Floats
    labels: Ints
    rejected: Floats
    skipped: Floats
    complete: bool
    difficult: Floats = field(default_factory=lambda: as_boxes(()))
    difficult_labels: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @classmethod
    def of(
        cls,
        boxes: ArrayLike,
        labels: ArrayLike,
        rejected: ArrayLike = (),
        skipped: ArrayLike = (),
        complete: bool = False,
    ) -> Self:
        """The labels of one image, from anything that NumPy converts to arrays."""
        boxes, labels = as_boxes(boxes), as_whole("labels", labels).reshape(-1)
        if len(labels) != len(boxes):
            raise ValueError(f"labels must have shape ({len(boxes)},), got ({len(labels)},)")
        return cls(boxes, labels, as_boxes(rejected), as_boxes(skipped), complete)

    @property
    def settled(self) -> Floats:
        """(G + R + S, 4): all answered boxes. Nothing near them is asked again."""

        return np.concatenate([self.boxes, self.rejected, self.skipped])
