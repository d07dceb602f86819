"""The lines of ``metrics.json``: one record per cycle, and how records of earlier versions are read."""

from typing import Literal, TypedDict, cast, get_args

from pydantic import BaseModel, Field, ValidationError

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


LATER = frozenset({"sure_per_class"})
"""Fields that versions before 0.1 did not write."""

FORMER = {"looks": "reviews", "looks_this_cycle": "reviews_this_cycle"}
"""Names in records of versions before 0.2, and their current names."""


class _Known(BaseModel):
    """The fields of every record, and the types of further ones."""

    cycle: int = Field(ge=1)
    labels: int = Field(ge=0)
    reviews: int = Field(ge=0)
    ap50: float | None
    seconds: dict[str, float] = {}
    notes: list[str] = []
    per_class_ap50: dict[str, float | None] = {}
    human_per_class: dict[str, float] = {}
    selected_per_class: dict[str, float] = {}
    hits_per_class: dict[str, float] = {}


def as_record(written: object) -> CycleRecord:
    """A record as it was read from a file of this version or an earlier one. Raises ValueError if it is not one."""
    if not isinstance(written, dict):
        raise ValueError("a cycle's record is an object")
    named = {FORMER.get(str(name), str(name)): value for name, value in cast("dict[object, object]", written).items()}
    try:
        _Known.model_validate(named)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return cast("CycleRecord", named)


def lacks(record: CycleRecord) -> list[str]:
    """The fields of version 0.1 that a record lacks."""
    return sorted(CycleRecord.__required_keys__ - LATER - record.keys())
