"""The lines of ``metrics.json``: one record a cycle, and how those of earlier versions are read."""

from collections.abc import Mapping
from typing import Literal, TypedDict, cast, get_args

Meter = Literal["labels", "reviews"]
"""What a budget counts: boxes that the annotator returned, or boxes shown to the annotator."""

PerClass = Literal[
    "candidates_per_class",
    "uncertainty_would_select",
    "selected_per_class",
    "hits_per_class",
    "labels_per_class",
    "human_per_class",
    "pseudo_per_class",
    "sure_per_class",
]
"""The counts of a record that are kept for each class."""

METERS: tuple[Meter, ...] = get_args(Meter)


class Measures(TypedDict):
    """What a cycle's detector reached on the test images, in [0, 1]; None where there is no truth to measure on."""

    ap50: float | None
    ap50_11: float | None
    per_class_ap50: dict[str, float | None]
    coco_ap: float | None
    coco_ap50: float | None
    coco_ap75: float | None


class CycleRecord(Measures):
    """What one cycle spent, chose and reached.

    ``labels``, ``reviews``, ``images_full`` and ``images_partial`` count from the start of the run; ``…_this_cycle``,
    ``hits`` and the counts per class count this cycle alone. ``human_per_class`` and ``pseudo…`` count what the
    detector trained on.
    """

    cycle: int
    labels: int
    reviews: int
    labels_this_cycle: int
    reviews_this_cycle: int
    hits: int
    images_full: int
    images_partial: int
    candidates_per_class: dict[str, int]
    uncertainty_would_select: dict[str, int]
    selected_per_class: dict[str, int]
    hits_per_class: dict[str, int]
    labels_per_class: dict[str, int]
    human_per_class: dict[str, int]
    pseudo_per_class: dict[str, int]
    pseudo_boxes: int
    sure_per_class: dict[str, int]
    class_frequency: dict[str, float]
    imbalance_factor: float | None
    notes: list[str]
    seconds: dict[str, float]


FORMER = {"looks": "reviews", "looks_this_cycle": "reviews_this_cycle"}
"""Names in records of versions before 0.2, and what they are called now."""


def as_record(written: Mapping[str, object]) -> CycleRecord:
    """A record as it was read from a file of this version or an earlier one."""
    return cast(CycleRecord, {FORMER.get(name, name): value for name, value in written.items()})
