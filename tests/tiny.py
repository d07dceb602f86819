"""A data set, settings and a network small enough for a whole run in a second or two."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rarebox import config
from rarebox.data import scenes
from rarebox.detectors.architectures import ARCHITECTURES
from rarebox.detectors.backbones import BACKBONES
from rarebox.detectors.weights import Source
from rarebox.report import curves, drawing, figures, grid_figures

CHANGES: dict[str, Any] = {
    **config.INSTALLED,
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
    "scoring.views": ["flip", "rotate_5"],
    "scoring.per_image": 8,
    "scoring.shard_size": 5,
    "selection.exploration": 0.0,  # the small network predicts few classes
    "oracle.iou": 0.1,  # such a weak detector hits little; the rules are the same
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


WIDTHS = {8: 8, 16: 12, 32: 16}
"""Channels of the small body's maps, by stride."""


class SmallBody(nn.Module):
    """Five convolutions where EfficientNet-Lite0 has fifty: maps at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(halving(3, 8), nn.ReLU(), halving(8, 8), nn.ReLU(), halving(8, WIDTHS[8]))
        self.later = nn.ModuleList(halving(*pair) for pair in pairwise(WIDTHS.values()))
        self.stem.requires_grad_(False)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        maps = [self.stem(pixels)]
        for layer in self.later:
            maps.append(layer(maps[-1].relu()))
        return maps


def halving(given: int, wanted: int) -> nn.Module:
    return nn.Conv2d(given, wanted, 3, stride=2, padding=1)


def pretrained() -> dict[str, Tensor]:
    """The same weights every time, drawn without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        body = SmallBody()
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight)
    return body.state_dict()


class SmallSource(Source):
    """The pretrained weights of the small body, which are in no file."""

    def load(self, file: Path | None = None) -> dict[str, Tensor]:
        return pretrained()


@contextmanager
def small_network() -> Iterator[None]:
    """Detectors on EfficientNet-Lite0 have a small body in this process, for tests that do not depend on accuracy. The
    heads, the losses, and the code that reads and writes models are the real ones.
    """
    spec = BACKBONES["efficientnet_lite0"]
    weights, levels = SmallSource(packaged=lambda: Path(__file__)), tuple(WIDTHS.items())
    small = replace(spec, body=lambda _: SmallBody(), levels=levels, width=16, imagenet=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "efficientnet_lite0", small)
        for name in ("retinanet", "faster_rcnn"):
            kind = replace(ARCHITECTURES[name, "efficientnet_lite0"], starts={"imagenet": weights}, levels=levels)
            patch.setitem(ARCHITECTURES, (name, "efficientnet_lite0"), kind)
        yield


@contextmanager
def figures_not_drawn(but: str = "(?!)") -> Iterator[None]:
    """Reports make their figures, but draw only those whose names match ``but``: drawing takes most of a report's
    time. The SVG files of the others are empty.
    """
    draw = drawing.publish

    def publish(panel: drawing.Panel, folder: Path, prefix: str = "") -> drawing.Panel:
        if re.search(but, prefix + panel.name):
            return draw(panel, folder, prefix)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{prefix}{panel.name}.svg").touch()
        return panel

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "publish", publish)
        yield


NO_FIGURES: dict[str, tuple[()]] = dict.fromkeys(("learning", "classes", "balance", "time"), ())
"""The sections of a report on a run."""


@contextmanager
def without_figures() -> Iterator[None]:
    """Reports have no figure of a run or a grid: for tests that read none. What it shows is read all the same."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "of_run", lambda *_: NO_FIGURES)
        patch.setattr(curves, "of_classes", lambda *_: [])
        patch.setattr(grid_figures, "of_group", lambda *_: {})
        yield
