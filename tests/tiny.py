"""A data set and settings small enough for a whole run in a second or two."""

from pathlib import Path
from typing import Any

from rarebox import config
from rarebox.data import scenes

CHANGES: dict[str, Any] = {
    "initial_images": 4,
    "budget": [6, 6],
    "device": "cpu",
    "detector.name": "retinanet",
    "detector.image_size": 64,
    "detector.score_threshold": 0.01,
    "training.steps": 6,
    "training.epochs": 0,
    "pseudo.method": "soft",
    "training.batch_size": 2,
    "training.warmup_steps": 0,
    "training.lr": 3e-3,
    "scoring.candidate_threshold": 0.01,
    "pseudo.score_floor": 0.01,
    "scoring.per_image": 8,
    "scoring.shard_size": 5,
    "oracle.iou": 0.1,  # a detector this weak hits little; the rules are the same
}


def make_data(folder: Path) -> Path:
    """Fourteen pictures to choose from and five to test on."""
    return scenes.make(folder, seed=3, train=14, test=5, size=(96, 96))


def settings(data: Path, **changes: Any) -> config.Settings:
    """Settings of a tiny run; ``changes`` are named with two underscores for a dot."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return config.resolve("laptop", None, {**CHANGES, "data": str(data), **named})


def as_options(**changes: Any) -> list[str]:
    """The same settings for the command line."""
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return [part for name, value in {**CHANGES, **named}.items() for part in ("--set", f"{name}={value}")]
