"""Every setting of a run, in one place: two presets, a YAML file, and ``--set a.b=value`` on top of each other.

The numbers in square brackets are rows of ``docs/decisions.md``. The resolved settings are saved with each run.
"""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rarebox.core.parsing import from_yaml
from rarebox.core.text import read_text
from rarebox.errors import UserError, unknown_name

Share = float
"""A number in [0, 1]."""

ViewName = Literal["flip", "cutout", "scale_0.8", "rotate_5", "scale_1.2", "colour", "noise"]


class Section(BaseModel):
    """A group of settings: frozen, and strict about names."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DetectorSettings(Section):
    """Which network."""

    name: Literal["retinanet", "faster_rcnn"] = Field(default="retinanet", description="the detector")
    backbone: Literal["resnet50", "efficientnet_lite0"] = Field(
        default="efficientnet_lite0", description="its backbone"
    )
    image_size: int = Field(default=320, ge=64, description="short side of the network's input, in pixels")
    long_side: int | None = Field(
        default=None, description="its long side at most; none: 5/3 of the short side (1000x600)"
    )
    anchor_cells: float = Field(
        default=3.0,
        ge=0,
        description="smallest anchor of the light backbone, in cells of its map; on a large input it is larger [31]",
    )
    weights: str = Field(default="imagenet", description="imagenet, coco, none, or a file to start from")
    score_threshold: Share = Field(
        default=0.05, ge=0, le=1, description="detections below this score are not looked at"
    )
    nms_iou: Share = Field(default=0.5, ge=0, le=1, description="per-class non-maximum suppression")
    batch_norm: Literal["frozen", "affine"] = Field(
        default="frozen", description="affine: resnet50 trains scale and shift where it trains, statistics stay [32]"
    )
    box_loss: Literal["smooth_l1", "l1"] = Field(
        default="smooth_l1", description="Faster R-CNN: box loss; smooth_l1 has beta 1/9. RetinaNet's is l1 [32]"
    )
    low_quality_iou: Share = Field(
        default=0.0, ge=0, le=1, description="Faster R-CNN: least IoU at which a box takes its best anchor [32]"
    )
    proposals: int | None = Field(
        default=None,
        ge=1,
        description="Faster R-CNN: proposals an image in training; none: 2000, light body 500 [32]",
    )
    normaliser: Literal["own", "batch", "paper"] = Field(
        default="own", description="what divides the sums of Eq. 7 [19]"
    )
    weighted_stages: Literal["both", "roi_only"] = Field(
        default="both", description="Faster R-CNN: where weights act [20]"
    )

    @property
    def size(self) -> tuple[int, int]:
        """Short and long side of the network's input at most."""
        return self.image_size, self.long_side or round(self.image_size * 5 / 3)


class TrainingSettings(Section):
    """How a detector is fitted [26]."""

    steps: int | None = Field(default=400, ge=1, description="optimiser steps per cycle, at least; none: epochs alone")
    epochs: int = Field(default=10, ge=0, description="passes over the images, at least")
    batch_size: int = Field(default=4, ge=1, description="images a step, over all processes together")
    optimiser: Literal["sgd", "adamw"] = Field(default="adamw", description="the optimiser")
    lr: float = Field(default=1e-3, gt=0, description="highest learning rate")
    backbone_lr: float = Field(default=0.1, ge=0, description="what the backbone's learning rate is multiplied by")
    weight_decay: float = Field(default=1e-4, ge=0, description="weight decay")
    momentum: Share = Field(default=0.9, ge=0, lt=1, description="momentum of sgd")
    schedule: Literal["cosine", "step"] = Field(
        default="cosine", description="step: divided by 10 after drop_at of the way"
    )
    drop_at: Share = Field(default=20 / 26, gt=0, le=1, description="where the step schedule drops")
    warmup_steps: int = Field(default=50, ge=0, description="linear warm-up")
    clip_norm: float = Field(default=10.0, gt=0, description="largest gradient norm")
    complete_share: Share | None = Field(
        default=None,
        ge=0,
        le=1,
        description="share of an epoch's images that are completely labelled, where some are not; none: as they come",
    )
    flip: Share = Field(default=0.5, ge=0, le=1, description="share of images mirrored")
    scale_jitter: Share = Field(default=0.0, ge=0, lt=1, description="images scaled by 1 ± this, drawn anew each time")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="auto: bfloat16 where it pays"
    )
    start: Literal["pretrained", "warm"] = Field(
        default="pretrained", description="each cycle from: pretrained weights, or the last model [22]"
    )
    freeze: Literal["nothing", "backbone"] = Field(
        default="nothing",
        description="backbone: its body is never trained; it looks at each image and its views once, and a cycle "
        "trains and scores with the heads alone",
    )
    checkpoint_seconds: float = Field(
        default=60, ge=0, description="how often a fit is saved, to go on from after a kill"
    )


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
    candidate_threshold: Share = Field(default=0.1, ge=0, le=1, description="lowest score of a box asked about [7]")
    candidate_nms: Share = Field(default=0.7, ge=0, le=1, description="class-agnostic suppression among candidates [8]")
    per_image: int = Field(default=100, ge=1, description="candidates kept per image [8]")
    batch_size: int = Field(default=4, ge=1, description="images a batch; each comes with all its views")
    shard_size: int = Field(
        default=2000,
        ge=1,
        description="images per candidates file: the work lost if scoring is interrupted; a run keeps the size it "
        "started with",
    )


class SelectionSettings(Section):
    """Which candidates are asked about."""

    strategy: str = Field(
        default="class_balanced", description="how candidates are ranked; docs/strategies.md has the names"
    )
    sigma: float = Field(default=1.0, gt=0, description="sigma of Eq. 1")
    image_entropy: Literal["mean", "max", "sum"] = Field(
        default="mean", description="image_entropy: what becomes of the entropies of an image's boxes"
    )
    class_frequency: Literal["hard", "soft", "with_labels", "max_normalised"] = Field(
        default="hard", description="p(l) of Eq. 1 [10]"
    )
    coreset_points: int = Field(
        default=100_000,
        ge=1,
        description="coreset: candidates that are chosen among; of more, the most uncertain ones [30]",
    )
    answered_iou: Share = Field(
        default=0.5, ge=0, le=1, description="a candidate this close to an answered box is settled [9]"
    )
    exploration: Share = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the budget for random whole images while a class has no candidate [29]",
    )


class PseudoSettings(Section):
    """Which predictions train the next model, and with which weight."""

    method: Literal["none", "hard", "task_hard", "soft", "ignore_only"] = Field(
        default="soft", description="pseudo labels [17]"
    )
    class_high: Share = Field(default=0.8, ge=0, le=1, description="tau_0^cls of Eq. 5")
    class_low: Share = Field(default=0.1, ge=0, le=1, description="tau_1^cls of Eq. 5")
    box_high: Share = Field(default=0.7, ge=0, le=1, description="tau_0^box of Eq. 6")
    box_low: Share = Field(default=0.3, ge=0, le=1, description="tau_1^box of Eq. 6")
    zero_weight: Literal["ignore", "drop"] = Field(
        default="ignore", description="a box of weight 0: ignored, or background [17]"
    )
    calibrated: bool = Field(
        default=False,
        description="conf(b) of Eq. 5: what the answers of the cycle say of a score, not the score itself",
    )
    score_floor: Share | None = Field(
        default=0.05, ge=0, le=1, description="lowest score of a pseudo label; none: that of a candidate [18]"
    )
    human_iou: Share = Field(default=0.4, ge=0, le=1, description="a pseudo box closer to a human box is dropped [16]")
    rejected_iou: Share = Field(
        default=0.5, ge=0, le=1, description="a pseudo box this close to a rejected box is dropped"
    )
    rejected: Literal["background", "forget"] = Field(
        default="background", description="what a rejected box teaches [14]"
    )
    images: Literal["labelled", "pool"] = Field(default="labelled", description="images trained on [21]")
    difficult: Literal["ignore", "background"] = Field(
        default="ignore", description="difficult objects in training [25]"
    )


class OracleSettings(Section):
    """The simulated annotator."""

    iou: Share = Field(default=0.5, gt=0, le=1, description="overlap from which a shown box means an object [13]")


class PeopleSettings(Section):
    """Where people answer instead of the oracle."""

    store: str | None = Field(
        default=None, description="URL of a database for the answers, such as postgresql+psycopg://…; none: a file"
    )
    overlap: Share = Field(default=0.1, ge=0, le=1, description="share of the questions asked of two people")
    lease_seconds: float = Field(default=600, gt=0, description="how long a question is kept for the one who has it")


class Settings(Section):
    """One run."""

    data: str = Field(default="scenes", description="a data set folder, or scenes, voc0712, voc2007")
    seed: int = Field(default=0, ge=0, description="root seed")
    initial_images: int = Field(default=60, ge=1, description="images of the pool labelled completely at the start")
    budget: tuple[int, ...] = Field(default=(150, 300), description="what each further cycle may spend")
    budget_unit: Literal["labels", "reviews"] = Field(default="labels", description="what a budget counts [12]")
    device: str = Field(default="auto", description="auto, cpu, cuda, mps")
    detector: DetectorSettings = DetectorSettings()
    training: TrainingSettings = TrainingSettings()
    scoring: ScoringSettings = ScoringSettings()
    selection: SelectionSettings = SelectionSettings()
    pseudo: PseudoSettings = PseudoSettings()
    oracle: OracleSettings = OracleSettings()
    people: PeopleSettings = PeopleSettings()

    @field_validator("budget_unit", mode="before")
    @classmethod
    def _unit_of_earlier_versions(cls, unit: object) -> object:
        return current_unit(unit)

    @property
    def lowest_score(self) -> float:
        """Detections from this score on are kept: those that may be asked about, and those that may train."""
        return min(self.scoring.candidate_threshold, self.lowest_pseudo_score)

    @property
    def lowest_pseudo_score(self) -> float:
        """The lowest score of a pseudo label, before any calibration."""
        floor = self.pseudo.score_floor
        return self.scoring.candidate_threshold if floor is None else floor

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> Self:
        for branch in ("class", "box"):
            low, high = getattr(self.pseudo, f"{branch}_low"), getattr(self.pseudo, f"{branch}_high")
            if low > high:
                raise ValueError(f"pseudo.{branch}_low ({low}) must not be above pseudo.{branch}_high ({high})")
        if self.training.freeze == "backbone" and self.training.scale_jitter:
            raise ValueError(
                "training.freeze: backbone keeps what the backbone saw of each image, which cannot be scaled any more; "
                "leave training.scale_jitter at 0"
            )
        if any(spend < 0 for spend in self.budget):
            raise ValueError("budget must not be negative")
        return self


PRESETS: dict[str, dict[str, Any]] = {
    "laptop": {
        "detector": {"name": "faster_rcnn", "normaliser": "batch"},
        "scoring": {"shard_size": 100},  # a minute's work, as 2000 images are on a GPU
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
    },
}

PROJECT: dict[str, Any] = {"initial_images": 8, "budget": [50], "budget_unit": "reviews"}
"""What a project of people starts with over its preset; the last budget holds for all cycles after it too."""

BEFORE: dict[str, Any] = {"detector.anchor_cells": 0.0, "pseudo.score_floor": None}
"""What runs did before a setting existed, where that is not its default. Files of earlier versions lack the setting."""

FORMER_UNITS: dict[object, str] = {"looks": "reviews"}
"""Values of ``budget_unit`` before version 0.2, and what they are called now."""

PAPER_LR = {"retinanet": 1e-3, "faster_rcnn": 5e-3}
"""§4.1: the preset's learning rate depends on the detector."""


def current_unit(unit: object) -> object:
    """A value of ``budget_unit`` by the name it has today."""
    return FORMER_UNITS.get(unit, unit) if isinstance(unit, str) else unit


def resolve(preset: str = "laptop", file: Path | None = None, changes: Mapping[str, Any] | None = None) -> Settings:
    """A preset, then a YAML file, then single changes (``{"pseudo.method": "hard"}``), each over the one before.

    UserError names an unknown preset or setting with the nearest known one, or what is wrong with a value.
    """
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    values: dict[str, Any] = {}
    given = [*flatten(read_file(file) if file else {}), *flatten(changes or {})]
    for path, value in (*flatten(PRESETS[preset]), *given):
        _put(values, path, value)
    if preset == "paper" and "training.lr" not in dict(given):
        _put(values, "training.lr", PAPER_LR[check(values).detector.name])
    return check(values)


def check(values: dict[str, Any]) -> Settings:
    """Nested plain values -> Settings, or a UserError that names the setting."""
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
"""What is wrong with a value, by the beginning of pydantic's name for it."""


def parse_changes(changes: Sequence[str]) -> dict[str, Any]:
    """``["a.b=1", …]`` as given to ``--set`` -> values, read as YAML."""
    parsed = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set wants name=value, got {change!r}")
        try:
            parsed[name.strip()] = from_yaml(value)
        except yaml.YAMLError as error:
            raise UserError(f"--set {change}: the value is not valid YAML: {error}") from error
    return parsed


FIRST, LAST = "---", "..."
"""What YAML begins and ends a document with."""


def dump(settings: Settings) -> str:
    """The settings as YAML text that :func:`resolve` reads back."""
    return f"{FIRST}\n{yaml.safe_dump(settings.model_dump(mode='json'), sort_keys=False)}{LAST}\n"


def commented(settings: Settings) -> str:
    """The settings as YAML text with a comment on each, to edit."""
    return "\n".join([FIRST, *_commented(settings, ""), LAST]) + "\n"


def is_cut_short(text: str) -> bool:
    """Whether the end of a text is missing that :func:`dump` or :func:`commented` wrote."""
    lines = text.split()
    return lines[:1] == [FIRST] and lines[-1:] != [LAST]


def with_data(file: Path, settings: Settings, data: str) -> str:
    """The text of a settings file in which ``data`` is another one; comments stay where they can."""
    changed = settings.model_copy(update={"data": data})
    line = yaml.safe_dump({"data": data}, allow_unicode=True, width=float("inf")).rstrip("\n")
    before = file.read_text(encoding="utf-8")
    text = re.sub(r"^data:.*?(?=\s+#|$)", lambda _: line, before, count=1, flags=re.MULTILINE)
    try:
        old = from_yaml(before)
        same = isinstance(old, dict) and from_yaml(text) == {**old, "data": data}
    except yaml.YAMLError:
        same = False
    return text if same else commented(changed)


def _commented(section: Section, indent: str) -> Iterator[str]:
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield f"\n{indent}{name}:  # {_with_page((type(value).__doc__ or '').splitlines()[0])}"
            yield from _commented(value, indent + "  ")
        else:
            text = yaml.safe_dump(
                section.model_dump(mode="json")[name], default_flow_style=True, width=float("inf")
            ).split("\n")[0]
            yield f"{indent}{name}: {text}  # {_with_page(about.description or '')}{_choices(about.annotation)}"


def _with_page(text: str) -> str:
    """``"beta [2]"`` -> ``"beta (docs/decisions.md, row 2)"``, for where there is no page around it to explain."""
    return re.sub(r"\[(\d+)\]", r"(docs/decisions.md, row \1)", text)


def _choices(annotation: Any, mark: str = "") -> str:
    """``"; one of a, b"`` for a setting that may have those names, each between marks; nothing for any other."""
    parts = get_args(annotation)
    if parts[1:] == (...,):
        return _choices(parts[0], mark).replace("one of", "any of")
    names = [f"{mark}{choice}{mark}" for choice in parts if isinstance(choice, str)]
    return f"; one of {', '.join(names)}" if names else ""


def reference() -> str:
    """Every setting, what it means and its default, as the Markdown of ``docs/settings.md``."""
    head = (
        "# Settings\n\nNumbers in square brackets: rows of [decisions](decisions.md). `make docs` writes this page. "
        "Unless another is named, commands begin with the preset `laptop`; its [changes](#presets) stand at the end.\n"
    )
    return head + "".join(_reference(Settings(), "", "A run")) + _reference_of_presets()


def _reference(section: Section, prefix: str, title: str) -> Iterator[str]:
    yield f"\n## {title}\n\n{(type(section).__doc__ or '').splitlines()[0]}\n\n"
    yield "| setting | default | meaning |\n|---|---|---|\n"
    inner = []
    for name, about in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            inner.append((value, name))
        else:
            default = json.dumps(section.model_dump(mode="json")[name])
            meaning = f"{about.description}{_choices(about.annotation, '`')}"
            yield f"| `{prefix}{name}` | `{default}` | {meaning} |\n"
    for value, name in inner:
        yield from _reference(value, f"{prefix}{name}.", f"`{name}`")


def _reference_of_presets() -> str:
    text = "\n## Presets\n\nWhat they change of the defaults; `paper` is section 4.1 of the paper.\n"
    for preset, changes in PRESETS.items():
        rows = "".join(f"| `{name}` | `{json.dumps(value)}` |\n" for name, value in flatten(changes))
        text += f"\n| setting | `{preset}` |\n|---|---|\n{rows}"
    return text


def difference(one: Settings, other: Settings, but: Collection[str] = ()) -> list[str]:
    """What two settings disagree on, ``but`` for those names, a line each: ``name: one -> other``."""
    left, right = dict(flatten(one.model_dump(mode="json"))), dict(flatten(other.model_dump(mode="json")))
    return [f"{name}: {left[name]} -> {right[name]}" for name in left if left[name] != right[name] and name not in but]


def read_file(file: Path) -> dict[str, Any]:
    """The nested plain values of a YAML file; UserError if it cannot be read or holds something else."""
    try:
        values = from_yaml(read_text(file)) or {}
    except OSError as error:
        raise UserError(f"the settings file {file} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the settings file {file} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"the settings file {file} must hold names and values, got {type(values).__name__}")
    return values


def as_written_before(values: dict[str, Any]) -> dict[str, Any]:
    """Nested values of a settings file, with what runs did before a setting existed where the file lacks it."""
    known: dict[str, Any] = {}
    for path, value in (*BEFORE.items(), *flatten(values)):
        _put(known, path, value)
    return known


def usual(settings: Settings) -> set[str]:
    """Names of the settings whose value is the default or that of a preset."""
    defaults = dict(flatten(Settings().model_dump(mode="json")))
    values = [defaults, *({**defaults, **dict(flatten(changes))} for changes in PRESETS.values())]
    given = flatten(settings.model_dump(mode="json"))
    return {name for name, value in given if any(each[name] == value for each in values)}


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """``{"a": {"b": 1}}`` -> ``("a.b", 1)``."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        elif value is None and f"{prefix}{name}" in SECTIONS:
            continue  # a section with nothing in it
        else:
            yield f"{prefix}{name}", value


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise unknown_name("setting", path, NAMES)
    values[name] = value


SECTIONS = frozenset(name for name in Settings.model_fields if isinstance(getattr(Settings(), name), Section))
"""The groups of settings."""

NAMES = frozenset(name for name, _ in flatten(Settings().model_dump()))
"""Every setting, in dotted form."""
