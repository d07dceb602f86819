"""Every setting of a run. A preset, a YAML file and ``--set a.b=value`` are layered in that order.

Numbers in square brackets are rows of ``docs/decisions.md``. The resolved settings are saved with each run.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, Self, cast, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from rarebox.core.parsing import from_yaml
from rarebox.core.text import read_text
from rarebox.errors import UserError, unknown_name

Fraction = float
"""A number in [0, 1]."""

Values = Mapping[str, object]
"""Plain values by name, as in YAML: nested by section, or with dotted names."""

ViewName = Literal["flip", "cutout", "scale_0.8", "rotate_5", "scale_1.2", "colour", "noise"]


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_for_a_number(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("must be a number")
        return value


class DetectorSettings(Section):
    """The detector network and its losses."""

    name: Literal["retinanet", "faster_rcnn", "dfine"] = Field(
        default="retinanet", description="network architecture; dfine requires the extra detr"
    )
    backbone: Literal[
        "auto",
        "efficientnet_lite0",
        "mobilenet_v3_large_320",
        "mobilenet_v3_large",
        "resnet50",
        "resnet50_v2",
        "hgnet_v2_n",
        "hgnet_v2_s",
    ] = Field(default="efficientnet_lite0", description="pretrained backbone with its heads [37]")
    image_size: int = Field(
        default=320, ge=64, le=4096, description="short side of the network's input, in pixels; D-FINE: both sides"
    )
    long_side: int | None = Field(
        default=None,
        ge=64,
        le=8192,
        description="maximum long side of the input; null: 5/3 of the short side (1000x600); D-FINE does not use it",
    )
    anchor_cells: float = Field(
        default=3.0,
        ge=0,
        description="minimum width of the light backbone's smallest anchor, in cells of its finest map [31]",
    )
    weights: str = Field(
        default="imagenet",
        description="initial weights: auto (coco if available), coco, imagenet, none, a file, or a folder (model, "
        "run or project); D-FINE: a model on the Hugging Face Hub too [37]",
    )
    score_threshold: Fraction = Field(default=0.05, ge=0, le=1, description="detections below this score are discarded")
    nms_iou: Fraction = Field(
        default=0.5, ge=0, le=1, description="IoU threshold of per-class non-maximum suppression; D-FINE has none"
    )
    batch_norm: Literal["frozen", "affine"] = Field(
        default="frozen",
        description="affine: trained stages of resnet50 also train scale and shift [32]",
    )
    box_loss: Literal["smooth_l1", "l1"] = Field(
        default="smooth_l1", description="Faster R-CNN: box loss (smooth_l1 has beta 1/9); RetinaNet uses l1 [32]"
    )
    low_quality_iou: Fraction = Field(
        default=0.0, ge=0, le=1, description="Faster R-CNN: minimum IoU for a box to claim its best anchor [32]"
    )
    proposals: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Faster R-CNN: proposals per image in training; null: 2000, or 500 with the light backbone [32]",
    )
    normaliser: Literal["own", "batch", "paper"] = Field(
        default="own", description="what the sums of Eq. 7 are divided by [19]"
    )
    soft_loss: Literal["one_sided", "two_sided"] = Field(
        default="one_sided",
        description="class loss of a box of weight w: w L(class); two_sided: w L(class) + (1 - w) L(background) [34]",
    )
    weighted_stages: Literal["both", "roi_only"] = Field(
        default="both", description="Faster R-CNN: stages whose losses are weighted [20]"
    )

    @property
    def size(self) -> tuple[int, int]:
        """Maximum short and long side of the network's input, in pixels."""
        return self.image_size, self.long_side or round(self.image_size * 5 / 3)


class TrainingSettings(Section):
    """How a detector is fitted [26]."""

    steps: int | None = Field(default=400, ge=1, description="minimum optimiser steps per cycle; null: epochs alone")
    epochs: int = Field(default=10, ge=0, description="minimum passes over the images")
    batch_size: int = Field(default=4, ge=1, le=1024, description="images per step, summed over all processes")
    optimiser: Literal["sgd", "adamw"] = Field(default="adamw", description="optimiser")
    lr: float = Field(default=1e-3, gt=0, description="peak learning rate")
    backbone_lr: float = Field(default=0.1, ge=0, description="factor on the backbone's learning rate")
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay")
    momentum: Fraction = Field(default=0.9, ge=0, lt=1, description="momentum, for sgd")
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="learning rate schedule; step divides by 10 once, at drop_at"
    )
    drop_at: Fraction = Field(
        default=20 / 26, gt=0, le=1, description="when schedule step drops, as a fraction of the steps"
    )
    warmup_steps: int = Field(default=50, ge=0, description="steps of linear warm-up")
    clip_norm: float = Field(default=10.0, gt=0, description="maximum gradient norm")
    complete_share: Fraction | None = Field(
        default=None,
        ge=0,
        le=1,
        description="fraction of fully labelled images in an epoch, where both kinds exist; null: as they occur",
    )
    repeat_below: Fraction = Field(
        default=0.0,
        ge=0,
        le=1,
        description="images with a class that appears in fewer than this fraction of the images are drawn more often",
    )
    flip: Fraction = Field(default=0.5, ge=0, le=1, description="probability of mirroring an image")
    scale_jitter: Fraction = Field(default=0.0, ge=0, lt=1, description="images are scaled by a factor of 1 ± this")
    zoom: float = Field(
        default=1.0,
        ge=1,
        le=4,
        description="images are scaled by a random factor between 1/zoom and zoom, and cropped to the input's size",
    )
    colour_jitter: Fraction = Field(
        default=0.0, ge=0, lt=1, description="brightness, contrast and saturation change by factors of 1 ± this"
    )
    renew_from: Fraction = Field(
        default=1.0,
        ge=0,
        le=1,
        description="from this fraction of the steps on, the moving average renews pseudo labels each step; 1: never",
    )
    ema: Fraction = Field(
        default=0.0, ge=0, lt=1, description="decay of the moving average of the weights that a fit returns; 0: none"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 if it is faster"
    )
    start: Literal["pretrained", "warm"] = Field(
        default="pretrained", description="initial weights of each cycle; warm: the model of the previous cycle [22]"
    )
    warm_fraction: Fraction = Field(
        default=1.0, gt=0, le=1, description="fraction of the steps that a warm start takes [22]"
    )
    freeze: Literal["nothing", "backbone"] = Field(
        default="nothing",
        description="backbone: never trained; its features of each image and view are computed once, and cycles train "
        "and score with the heads alone",
    )
    checkpoint_seconds: float = Field(
        default=60, ge=0, description="seconds between checkpoints, from which an interrupted fit resumes"
    )

    def of_first_cycle(self) -> "TrainingSettings":
        """The same settings for a fit that cannot start from an earlier cycle's model."""
        return self.model_copy(update={"start": "pretrained", "warm_fraction": 1.0})


class ScoringSettings(Section):
    """How the pool becomes candidates."""

    views: tuple[ViewName, ...] = Field(
        default=("flip", "cutout", "scale_0.8", "rotate_5"),
        min_length=1,
        description="augmentations M of Eq. 2 and 4 [1]",
    )
    beta: float = Field(default=1.3, ge=0, le=2, description="beta of Eq. 2")
    unmatched: Literal["formula", "skip", "most_uncertain"] = Field(
        default="formula", description="how to score a box with no match in a view [3]"
    )
    js_base: float = Field(default=2.0, ge=2, description="base of the logarithm in JS [4]")
    candidate_threshold: Fraction = Field(default=0.1, ge=0, le=1, description="minimum score of a candidate [7]")
    candidate_nms: Fraction = Field(default=0.7, ge=0, le=1, description="IoU of class-agnostic suppression [8]")
    per_image: int = Field(default=100, ge=1, le=10_000, description="maximum candidates per image [8]")
    batch_size: int = Field(default=4, ge=1, le=1024, description="images per batch, each with all its views")
    shard_size: int = Field(
        default=2000,
        ge=1,
        le=100_000,
        description="images per shard: the work lost if scoring is interrupted; a run keeps the size it started with",
    )


class SelectionSettings(Section):
    """Which candidates are asked about."""

    strategy: str = Field(
        default="class_balanced", description="how candidates are ranked; docs/strategies.md lists the names"
    )
    sigma: float = Field(default=1.0, gt=0, description="sigma of Eq. 1")
    image_entropy: Literal["mean", "max", "sum"] = Field(
        default="mean", description="strategy image_entropy: how the entropies of an image's boxes are combined"
    )
    class_frequency: Literal["hard", "soft", "with_labels", "max_normalised"] = Field(
        default="hard", description="p(l) of Eq. 1 [10]"
    )
    coreset_points: int = Field(
        default=100_000,
        ge=1,
        description="strategy coreset: number of most uncertain candidates to choose among [30]",
    )
    answered_iou: Fraction = Field(
        default=0.5, ge=0, le=1, description="minimum IoU with an answered box at which a candidate is settled [9]"
    )
    exploration: Fraction = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of the budget for random whole images while a class has no candidate or no example [29]",
    )
    slivers_last: bool = Field(
        default=False, description="boxes at a photo's border of which hardly anything is visible come last [45]"
    )
    duplicate_cosine: Fraction = Field(
        default=1.0,
        ge=0,
        le=1,
        description="a box comes last if a better one of its class on another photo has features of at least this "
        "cosine; 1: none does [45]",
    )
    added: Fraction = Field(
        default=0.3,
        ge=0,
        le=1,
        description="fraction of the questions about added predictions of classes without an example [44]",
    )


class PseudoSettings(Section):
    """Which predictions train the next model, and with which weight."""

    method: Literal["none", "hard", "task_hard", "soft", "ignore_only"] = Field(
        default="soft", description="how pseudo labels are made [17]"
    )
    class_high: Fraction = Field(default=0.8, ge=0, le=1, description="tau_0^cls of Eq. 5")
    class_low: Fraction = Field(default=0.1, ge=0, le=1, description="tau_1^cls of Eq. 5")
    box_high: Fraction = Field(default=0.7, ge=0, le=1, description="tau_0^box of Eq. 6")
    box_low: Fraction = Field(default=0.3, ge=0, le=1, description="tau_1^box of Eq. 6")
    zero_weight: Literal["ignore", "drop"] = Field(
        default="ignore", description="a pseudo box of weight 0: its region is ignored, or becomes background [17]"
    )
    calibrated: bool = Field(
        default=False,
        description="use the precision of the cycle's answers at that score as conf(b) of Eq. 5, not the raw score",
    )
    score_floor: Fraction | None = Field(
        default=0.05, ge=0, le=1, description="minimum score of a pseudo label; null: that of a candidate [18]"
    )
    human_iou: Fraction = Field(
        default=0.4, ge=0, le=1, description="a pseudo box with this IoU to a human box is dropped [16]"
    )
    rejected_iou: Fraction = Field(
        default=0.5, ge=0, le=1, description="a pseudo box with this IoU to a rejected box is dropped"
    )
    rejected: Literal["background", "forget"] = Field(
        default="background", description="how training uses a rejected box [14]"
    )
    images: Literal["labelled", "pool"] = Field(default="labelled", description="which images are trained on [21]")
    difficult: Literal["ignore", "background"] = Field(
        default="ignore", description="how training uses difficult objects [25]"
    )


class OracleSettings(Section):
    """The simulated annotator."""

    iou: Fraction = Field(
        default=0.5,
        gt=0,
        le=1,
        description="minimum IoU with an object for a reviewed box to count as that object [13]",
    )
    accept_iou: Fraction | None = Field(
        default=0.75,
        gt=0,
        le=1,
        description="from this IoU with the object up, the label is the box shown; below it, and with null always, it "
        "is the true box [13]",
    )
    verify: bool = Field(
        default=False,
        description="a whole image is shown with its detections from people.proposal_score up, as on the page: the "
        "annotator checks them and draws only what is missing; false: every box is drawn [46]",
    )


class CostSettings(Section):
    """What the actions of an annotator cost, in seconds [43]."""

    look: float = Field(default=0.8, ge=0, description="a look at a new image, before a box in it is judged")
    confirm: float = Field(default=1.0, gt=0, description="accept the box shown")
    class_key: float = Field(default=1.0, ge=0, description="give another class than the guess, in addition")
    mend: float = Field(default=5.0, gt=0, description="accept the object and move or reshape its box")
    reject: float = Field(default=1.0, gt=0, description="say that the box shows no object, or one that has its label")
    cannot_tell: float = Field(default=3.0, gt=0, description="decide that nobody can tell")
    draw: float = Field(default=7.0, gt=0, description="draw one box and give its class")
    scan: float = Field(default=7.8, gt=0, description="search a whole image for objects")
    longest: float = Field(
        default=10.0, ge=1, description="the recorded time of an answer counts up to this multiple of its cost"
    )


class PeopleSettings(Section):
    """Projects in which people answer."""

    store: str | None = Field(
        default=None, description="database URL for the answers, such as postgresql+psycopg://…; null: a file"
    )
    overlap: Fraction = Field(default=0.1, ge=0, le=1, description="fraction of questions assigned to two people")
    lease_seconds: float = Field(
        default=600, gt=0, le=7 * 24 * 3600, description="seconds that a question stays assigned to a person"
    )
    proposal_score: Fraction = Field(
        default=0.5,
        ge=0,
        le=1,
        description="lowest score of a detection that a whole image shows as a box which only has to be checked, and "
        "that the page offers to check at once with others of its class",
    )


class Settings(Section):
    """Settings of a run."""

    data: str = Field(default="scenes", description="data set folder, or scenes, voc0712, voc2007")
    seed: int = Field(default=0, ge=0, description="root seed")
    initial_images: int = Field(default=60, ge=1, description="pool images labelled completely at the start")
    budget: tuple[int, ...] = Field(default=(150, 300), description="budget of each cycle after the first")
    budget_unit: Literal["labels", "reviews", "seconds"] = Field(
        default="labels", description="what a budget counts [12]"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or mps")
    detector: DetectorSettings = DetectorSettings()
    training: TrainingSettings = TrainingSettings()
    scoring: ScoringSettings = ScoringSettings()
    selection: SelectionSettings = SelectionSettings()
    pseudo: PseudoSettings = PseudoSettings()
    oracle: OracleSettings = OracleSettings()
    cost: CostSettings = CostSettings()
    people: PeopleSettings = PeopleSettings()

    @field_validator("budget_unit", mode="before")
    @classmethod
    def _unit_of_earlier_versions(cls, unit: object) -> object:
        return current_unit(unit)

    @property
    def lowest_score(self) -> float:
        """The minimum score of a detection that scoring keeps, as a candidate or as a pseudo label."""
        return min(self.scoring.candidate_threshold, self.lowest_pseudo_score)

    @property
    def lowest_pseudo_score(self) -> float:
        """The minimum score of a pseudo label, before calibration."""
        floor = self.pseudo.score_floor
        return self.scoring.candidate_threshold if floor is None else floor

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        for branch in ("class", "box"):
            low, high = getattr(self.pseudo, f"{branch}_low"), getattr(self.pseudo, f"{branch}_high")
            if low > high:
                raise ValueError(f"pseudo.{branch}_low ({low}) must not be above pseudo.{branch}_high ({high})")
        if self.training.freeze == "backbone":
            for name, off in (("scale_jitter", 0), ("zoom", 1), ("colour_jitter", 0)):
                if getattr(self.training, name) != off:
                    raise ValueError(
                        "training.freeze: backbone caches the features of each image, which cannot be rescaled, "
                        f"cropped or recoloured. Set training.{name} to {off}"
                    )
        if self.training.renew_from < 1 and not self.training.ema:
            raise ValueError("training.renew_from needs a moving average. Set training.ema, for example to 0.99")
        if any(spend < 0 for spend in self.budget):
            raise ValueError("budget must not be negative")
        return self


PRESETS: dict[str, Values] = {
    "laptop": {
        "detector": {"name": "faster_rcnn", "backbone": "auto", "weights": "auto", "normaliser": "batch"},
        "scoring": {"shard_size": 100},  # a minute's work, as 2000 images are on a GPU
        "selection": {"exploration": 0.2, "slivers_last": True, "duplicate_cosine": 0.95},
        "pseudo": {"method": "ignore_only", "calibrated": True},
    },
    "paper": {
        "initial_images": 1000,
        "budget": [2000, 4000, 8000],
        "detector": {
            "backbone": "resnet50",
            "image_size": 600,
            "long_side": 1000,
            "normaliser": "batch",
            "batch_norm": "affine",
            "box_loss": "l1",
            "low_quality_iou": 0.3,
            "proposals": 1000,
        },
        "training": {
            "steps": None,
            "epochs": 26,
            "batch_size": 2,
            "optimiser": "sgd",
            "lr": 1e-3,
            "backbone_lr": 1.0,
            "schedule": "step",
            "warmup_steps": 500,
            "clip_norm": 35.0,
            "precision": "float32",
        },
        "pseudo": {"rejected": "forget", "difficult": "background"},
        "oracle": {"accept_iou": None},
    },
    "dfine": {  # not measured on COCO weights; gradients are clipped as by D-FINE's authors
        "detector": {"name": "dfine", "backbone": "hgnet_v2_s", "weights": "coco", "image_size": 640},
        "training": {"lr": 1e-4, "backbone_lr": 0.5, "clip_norm": 0.1},
        "scoring": {"shard_size": 100},
        "selection": {"exploration": 0.2, "slivers_last": True, "duplicate_cosine": 0.95},
        "pseudo": {"method": "ignore_only", "calibrated": True},
    },
}

INSTALLED: Values = {"detector.backbone": "efficientnet_lite0", "detector.weights": "imagenet"}
"""Initial weights that are installed with rarebox, for results that must not depend on the machine."""

PROJECT: Values = {"initial_images": 8, "budget": [50], "budget_unit": "reviews"}
"""Changes of a new project to its preset. The last budget applies to all later cycles."""

FINAL: dict[str, Values] = {"laptop": {"training.epochs": 30}, "dfine": {"training.epochs": 30}}
"""Changes of a final training (``rarebox train``) to its preset: it is trained once, so it may take longer."""

BEFORE: Values = {"detector.anchor_cells": 0.0, "pseudo.score_floor": None, "oracle.accept_iou": None}
"""Values for settings that files of earlier versions lack, where they differ from today's defaults."""

FORMER_UNITS: dict[object, str] = {"looks": "reviews"}
"""Values of ``budget_unit`` before version 0.2, and their current names."""

PAPER_LR = {"retinanet": 1e-3, "faster_rcnn": 5e-3}
"""Learning rates of section 4.1, by detector."""


def current_unit(unit: object) -> object:
    """The current name of a value of ``budget_unit``."""
    return FORMER_UNITS.get(unit, unit) if isinstance(unit, str) else unit


def resolve(
    preset: str = "laptop", file: Path | None = None, changes: Values | None = None, *, final: bool = False
) -> Settings:
    """Layer a YAML file and single changes (``{"pseudo.method": "hard"}``) over a preset, with ``final`` over FINAL.

    Raises UserError for an unknown preset or setting, naming the nearest known one, and for an invalid value.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    values: dict[str, object] = {}
    given = [*flatten(read_file(file) if file else {}), *flatten(changes or {})]
    longer: Values = FINAL.get(preset, {}) if final else {}
    for path, value in (*flatten(PRESETS[preset]), *flatten(longer), *given):
        _put(values, path, value)
    if preset == "paper" and "training.lr" not in dict(given) and (lr := PAPER_LR.get(check(values).detector.name)):
        _put(values, "training.lr", lr)
    return check(values)


def or_laptop(settings: object) -> Settings:
    """The settings given to a function, by default those of the preset ``laptop``. Raises UserError for other types."""
    if settings is None:
        return resolve()
    if not isinstance(settings, Settings):
        raise UserError(f"settings must be Settings, got {settings!r}. Make them with rarebox.make_settings")
    return settings


def check(values: Values) -> Settings:
    """Validate nested plain values. Raises UserError that names the wrong setting."""
    for path, _ in flatten(values):
        if path not in NAMES:
            raise unknown_name("setting", path, NAMES)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "literal_error":
            expected = str(first.get("ctx", {}).get("expected")).replace(" or ", ", ").replace("'", "")
            raise unknown_name(where, str(first["input"]), expected.split(", ")) from None
        plain = next((words for kind, words in PLAIN.items() if first["type"].startswith(kind)), first["msg"])
        reason = plain.removeprefix("Value error, ").replace("Input should be", "must be")
        raise UserError(f"setting {where}: {reason}, got {first['input']!r}" if where else reason) from None


PLAIN = {
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "tuple_": "must be a list, such as [150, 300]",
    "string_": "must be text",
}
"""Error messages by the prefix of pydantic's error type."""


def parse_changes(changes: Sequence[str]) -> dict[str, object]:
    """Parse the arguments of ``--set``, ``["a.b=1", …]``, whose values are YAML. Raises UserError."""
    parsed: dict[str, object] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set must be name=value, got {change!r}")
        try:
            parsed[name.strip()] = from_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {change}: the value is not valid YAML: {error}") from error
    return parsed


FIRST, LAST = "---", "..."
"""The first and last line of a YAML document."""


def dump(settings: Settings) -> str:
    """The settings as YAML text, which :func:`resolve` reads back."""
    return f"{FIRST}\n{yaml.safe_dump(settings.model_dump(mode='json'), sort_keys=False)}{LAST}\n"


def is_cut_short(text: str) -> bool:
    """Whether a settings text lacks its last line, because a process was killed while it wrote the file."""
    lines = text.split()
    return lines[:1] == [FIRST] and lines[-1:] != [LAST]


def difference(one: Settings, other: Settings, but: Collection[str] = ()) -> list[str]:
    """One line ``name: one -> other`` for each setting that differs, except those named in ``but``."""
    left, right = dict(flatten(one.model_dump(mode="json"))), dict(flatten(other.model_dump(mode="json")))
    return [f"{name}: {left[name]} -> {right[name]}" for name in left if left[name] != right[name] and name not in but]


def read_file(file: Path) -> dict[str, object]:
    """The nested plain values of a YAML file. Raises UserError if it is unreadable or not a mapping."""
    try:
        values = from_yaml(read_text(file))
    except OSError as error:
        raise UserError(f"the settings file {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the settings file {file} is not valid YAML: {error}") from error
    if not isinstance(values or {}, dict):
        raise UserError(f"the settings file {file} must hold names and values, got {type(values).__name__}")
    return cast("dict[str, object]", values or {})


def as_written_before(values: Values) -> dict[str, object]:
    """The nested values of a settings file, completed by the behaviour of the versions that lacked a setting."""
    known: dict[str, object] = {}
    for path, value in (*BEFORE.items(), *flatten(values)):
        _put(known, path, value)
    return known


def usual(settings: Settings) -> set[str]:
    """Names of the settings whose value is the default or that of a preset."""
    defaults = dict(flatten(Settings().model_dump(mode="json")))
    values = [defaults, *({**defaults, **dict(flatten(changes))} for changes in PRESETS.values())]
    given = flatten(settings.model_dump(mode="json"))
    return {name for name, value in given if any(each[name] == value for each in values)}


def flatten(values: Values, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Nested values by dotted names: ``{"a": {"b": 1}}`` -> ``("a.b", 1)``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(cast(Values, value), f"{prefix}{name}.")
        elif value is None and f"{prefix}{name}" in SECTIONS:
            continue  # an empty section
        else:
            yield f"{prefix}{name}", value


def _put(values: dict[str, object], path: str, value: object) -> None:
    *sections, name = path.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        if not isinstance(inner, dict):
            raise unknown_name("setting", path, NAMES)
        values = cast(dict[str, object], inner)
    values[name] = value


SECTIONS = frozenset(name for name in Settings.model_fields if isinstance(getattr(Settings(), name), Section))
"""Names of the groups of settings."""

NAMES = frozenset(name for name, _ in flatten(Settings().model_dump()))
"""Every setting, in dotted form."""
