"""Find more like this: what can be compared, and the boxes of a cycle that look like an example."""

from collections.abc import Iterable

import numpy as np

from rarebox.errors import Damaged, UserError
from rarebox.labels.leases import Given
from rarebox.pool.similar import MOST_EXAMPLES, BoxFeatures, most_similar, similarity
from rarebox.project.project import Project
from rarebox.strategies import IMAGE
from rarebox.types import Candidates, Floats, Ints, as_boxes

TOO_EARLY = (
    "Boxes can be compared once the first model is trained. Until then, box whole photos: each object that you box "
    "becomes an example."
)
WHOLE_IMAGES = (
    "This project asks about whole photos, so there are no single boxes to look through. To change that, stop the "
    "server and set selection.strategy to class_balanced in settings.yaml."
)
NO_FEATURES = (
    "The boxes of this cycle cannot be compared, because their features were not kept. Set "
    "selection.duplicate_cosine below 1 in settings.yaml; the next cycle then keeps them."
)
FEATURES_LOST = (
    "The boxes of this cycle cannot be compared, because the files with their features are missing, damaged or of an "
    "earlier version. The next cycle writes new ones."
)
NO_MORE = "No further box looks like this. The next model may find some: try again after the training."
NEW_CYCLE = "A new cycle has just begun. Press the button again to look through its boxes."
SPENT = "The budget of this cycle is spent. Search again when the next questions are available."
NOT_DETECTED = (
    "The detector did not find this box, so it cannot be compared yet. Label it, and look for more of its class after "
    "the next training."
)


def no_example(name: str) -> str:
    """The reason for a class without a box."""
    return (
        f"“{name}” has no box yet, so there is nothing to compare with. Draw one on any photo, or bring in another "
        "detector's boxes (rarebox predictions add)."
    )


def no_features(name: str) -> str:
    """The reason for a class whose boxes have no features."""
    return (
        f"The boxes of “{name}” cannot be compared yet: the detector did not find them. After the next training they "
        "can be."
    )


def check_project(project: Project, cycle: int) -> None:
    """Raise UserError if a cycle has no boxes that could be compared."""
    if cycle <= 1:
        raise UserError(TOO_EARLY)
    if project.settings.selection.strategy in IMAGE:
        raise UserError(WHOLE_IMAGES)


def features_of(project: Project, cycle: int, ranked: Candidates) -> BoxFeatures:
    """The features of a cycle's candidates and of labelled boxes. Raises UserError if there are none."""
    try:
        known = project.read_features(cycle, ranked)
    except Damaged as error:
        raise UserError(FEATURES_LOST) from error
    if known is None:
        raise UserError(FEATURES_LOST if project.settings.selection.duplicate_cosine < 1 else NO_FEATURES)
    return known


def boxes_of(label: int, standing: Iterable[tuple[Given, list[int]]]) -> tuple[Ints, Floats]:
    """The latest boxes of a class among answers and their labels, newest first: (E,) image ids, (E, 4)."""
    found = [
        (one.query.image_id, box)
        for one, labels in standing
        for box, other in zip(one.answer.boxes, labels, strict=True)
        if other == label
    ][:MOST_EXAMPLES]
    return np.array([image_id for image_id, _ in found], dtype=np.int64), as_boxes([box for _, box in found])


def most_like(known: BoxFeatures, ranked: Candidates, examples: Ints) -> dict[int, float]:
    """The places of a ranking whose boxes look like some of its ``known`` (rows), the most similar first, with their
    similarity. The examples themselves are left out."""
    cosines = similarity(known.features[: len(ranked)], known.features[examples])
    cosines[examples[examples < len(ranked)]] = -1
    return {place: float(cosines[place]) for place in most_similar(cosines).tolist()}
