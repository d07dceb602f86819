"""The lines of ``metrics.json``: one record per cycle, and how records of earlier versions are read."""

from collections.abc import Sequence
from typing import Literal, NotRequired, TypedDict, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rarebox.config import CostSettings

Meter = Literal["labels", "reviews", "seconds"]
"""What a budget counts: boxes that the annotator returned, boxes shown to the annotator, or the annotator's seconds."""

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

NAN = float("nan")

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

    ``labels``, ``reviews``, ``seconds_spent``, ``images_full`` and ``images_partial`` count from the start of the run;
    ``…_this_cycle``, ``hits`` and the counts per class count this cycle alone. ``human_per_class`` and ``pseudo…``
    count what the detector trained on. ``seconds_spent`` are the annotator's, ``seconds`` the computer's, by stage.
    ``seconds_estimated`` is true only in reports, on records of versions that did not count seconds.
    """

    cycle: int
    labels: int
    reviews: int
    labels_this_cycle: int
    reviews_this_cycle: int
    seconds_spent: float
    seconds_spent_this_cycle: float
    actions_this_cycle: dict[str, int]
    seconds_estimated: NotRequired[bool]
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


LATER = frozenset({"sure_per_class", "seconds_spent", "seconds_spent_this_cycle", "actions_this_cycle"})
"""Fields that records of earlier versions lack."""

FORMER = {"looks": "reviews", "looks_this_cycle": "reviews_this_cycle"}
"""Names in records of versions before 0.2, and their current names."""


class _Known(BaseModel):
    """The fields of every record, and the types of further ones."""

    model_config = ConfigDict(strict=True)

    cycle: int = Field(ge=1)
    labels: int = Field(ge=0)
    reviews: int = Field(ge=0)
    labels_this_cycle: int = Field(default=0, ge=0)
    images_full: int = Field(default=0, ge=0)
    seconds_spent: float = Field(default=0, ge=0)
    actions_this_cycle: dict[str, int] = {}
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
        known = _Known.model_validate(named)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if unknown := known.actions_this_cycle.keys() - CostSettings.model_fields.keys():
        raise ValueError(f"actions_this_cycle: there is no action {min(unknown)!r}")
    return cast("CycleRecord", named)


def paid(record: CycleRecord, meter: Meter) -> float:
    """What a run has paid up to and with a cycle; NaN if the record does not say."""
    return record.get("seconds_spent", NAN) if meter == "seconds" else record[meter]


def with_seconds(records: Sequence[CycleRecord], cost: CostSettings, rescore: bool = False) -> list[CycleRecord]:
    """The records of a run with ``seconds_spent``: records of earlier versions get an estimate, if they allow one.

    With ``rescore`` the seconds of all records follow from ``cost``, and recorded times of people no longer count.
    """
    found: list[CycleRecord] = []
    spent, images = 0.0, 0.0
    for record in records:
        scanned, images = record.get("images_full", NAN) - images, record.get("images_full", NAN)
        if "seconds_spent" in record and not rescore:
            spent = record["seconds_spent"]
            found.append(record)
            continue
        estimated = "actions_this_cycle" not in record
        actions = _estimate(record, scanned) if estimated else record["actions_this_cycle"]
        seconds = sum(count * getattr(cost, action) for action, count in actions.items())
        spent += seconds
        more = {"seconds_spent": spent, "seconds_spent_this_cycle": seconds, "seconds_estimated": estimated}
        found.append(cast("CycleRecord", {**record, **more} if spent == spent else record))
    return found


def _estimate(record: CycleRecord, scanned: float) -> dict[str, float]:
    """About how often each action was done in a cycle whose record does not say (decisions row 43).

    ``scanned`` counts its whole images; their boxes are the labels that no box question returned.
    """
    shown, hits = (sum(record.get(name, {"": NAN}).values()) for name in ("selected_per_class", "hits_per_class"))
    drawn = record.get("labels_this_cycle", NAN) - hits
    judged = {"look": shown, "confirm": hits / 2, "mend": hits / 2, "reject": shown - hits}
    return {**judged, "scan": scanned, "draw": drawn}


def lacks(record: CycleRecord) -> list[str]:
    """The fields of version 0.1 that a record lacks."""
    return sorted(CycleRecord.__required_keys__ - LATER - record.keys())
