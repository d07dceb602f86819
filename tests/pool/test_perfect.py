"""A perfect detector on every code path: it finds on each view what it found on the image.

Then JS is 0 and IoU(b, b_m) is 1 on every view, so c(b) = |s + 1 - beta| and cons(b) = 1, whatever the box's shape.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rarebox import config, external
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector, body_channels, on_device
from rarebox.detectors.frozen import FeatureCache, FrozenPictures, Layout
from rarebox.external.write_copies import write_copies
from rarebox.loop import scoring
from rarebox.loop.run import views_of
from rarebox.pool import ranking
from rarebox.pool.candidates import Shards
from rarebox.pool.views import VIEWS, View
from rarebox.types import Candidates, Floats, ImageRecord

WIDTH, HEIGHT = 211, 157
"""Of the photo, which becomes 86 x 64 in the network: neither scale is a round number."""

BOXES = np.array(
    [
        [60, 50, 100, 90],  # square, in the middle
        [5, 5, 105, 25],  # 5 : 1
        [150, 20, 162, 140],  # 1 : 10
        [0, 100, 50, 157],  # in a corner
        [170, 0, 211, 12],  # at the border
        [118, 62, 122, 65],  # smaller than four pixels of the network's input
    ],
    dtype=np.float32,
)
SCORES = np.array([0.9, 0.75, 0.6, 0.45, 0.3, 0.15], dtype=np.float32)
PROBS = np.stack([SCORES, (1 - SCORES) / 3, np.full(6, 0.05, np.float32)], axis=1)
UNCERTAINTY = 1.3 - np.abs(SCORES + 1 - 1.3)


def hulls(boxes: Floats, matrix: Floats) -> Floats:
    """The axis-aligned hulls of mapped boxes, computed plainly: (N, 4), (2, 3) -> (N, 4)."""
    found = []
    for x1, y1, x2, y2 in boxes.astype(float):
        corners = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]]) @ np.array(matrix)[:, :2].T
        corners += np.array(matrix)[:, 2]
        found.append([*corners.min(axis=0), *corners.max(axis=0)])
    return np.array(found)


class Perfect:
    """A fake network that returns the true boxes of each picture in a batch of one image and its views."""

    def __init__(self, detector: TorchDetector, plan: Sequence[View], scale: Floats) -> None:
        self.detector, self.plan, self.scale = detector, plan, scale

    def boxes(self, place: int, size: tuple[int, int]) -> Floats:
        """Of the picture at that place, in its pixels, which are (h, w); cut at its border, as networks do."""
        boxes = BOXES * self.scale
        boxes = hulls(boxes, self.plan[place - 1].matrix) if place else boxes
        return np.clip(boxes, 0, np.tile(size[::-1], 2)).astype(np.float32)

    def __call__(self, tensors: Sequence[Any], features: bool) -> Any:
        assert len(tensors) == 1 + len(self.plan)
        pictures = [
            {
                "boxes": torch.tensor(self.boxes(place, tuple(one.shape[1:]))),
                "scores": torch.tensor(SCORES),
                "labels": torch.zeros(6, dtype=torch.int64),
                "class_probs": torch.tensor(PROBS),
            }
            for place, one in enumerate(tensors)
        ]
        if not on_device.use_async_path(self.detector.device):
            return pictures
        columns = {name: torch.stack([one[name] for one in pictures]) for name in pictures[0]}
        real = torch.ones(len(pictures), 6, dtype=torch.bool)
        return {**columns, "real": real, "settled": torch.ones(len(pictures), dtype=torch.bool)}


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A folder with one photo."""
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "a.png")
    return folder


def settings(views: Sequence[str], freeze: str = "nothing", **more: Any) -> config.Settings:
    changes = {"scoring.views": list(views), "training.freeze": freeze, "scoring.candidate_nms": 1.0, **more}
    return config.resolve("laptop", None, changes)


def is_perfect(found: Candidates) -> None:
    """Every box has a match, and every number is that of the formula; a view that hides a box does not count."""
    assert found.boxes == pytest.approx(BOXES, abs=1e-3)
    assert found.box_consistency == pytest.approx(np.ones(6), abs=2e-4)
    assert found.uncertainty == pytest.approx(UNCERTAINTY, abs=2e-4)
    if found.box_disagreement is not None:
        assert found.box_disagreement == pytest.approx(np.zeros(6), abs=1e-4)


EACH = [*([name] for name in sorted(VIEWS)), ["flip", "cutout", "scale_0.8", "rotate_5"]]


@pytest.mark.parametrize("way", ["pixels", "frozen", "gpu"])
@pytest.mark.parametrize("views", EACH, ids="-".join)
def test_a_perfect_detector_is_consistent_on_every_view(
    views: list[str], way: str, retinanet: TorchDetector, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = settings(views, "backbone" if way == "frozen" else "nothing")
    size = retinanet.settings.size
    pool: Any = Pictures([ImageRecord(4, str(photo / "a.png"), WIDTH, HEIGHT)], size)
    plan = views_of(told, views, 2, 4, retinanet.input_size(pool[0]))
    if way == "frozen":
        store = FeatureCache(photo.parent / "maps", Layout(body_channels(retinanet.settings), tuple(views)))
        with store.adding() as keep:
            keep({4: retinanet.extract(pool[:1], [plan])[0]})
        pool = FrozenPictures(pool, store)
    if way == "gpu":
        monkeypatch.setattr(on_device, "use_async_path", lambda device: not on_device._may_wait.get())
    monkeypatch.setattr(retinanet, "_run", Perfect(retinanet, plan, retinanet.scale_of(pool[0])))
    found, image = scoring.score_images(retinanet, pool, told, cycle=2)
    is_perfect(found)
    if "cutout" not in views:
        assert image.consistency == pytest.approx([np.abs(SCORES + 1 - 1.3).min()], abs=2e-4)


# ------------------------------------------------------------------------------------------- external detections


def line(image: str, boxes: Floats, **more: Any) -> dict[str, Any]:
    return {"image": image, "boxes": boxes.tolist(), "class_probs": PROBS.tolist(), "labels": [0] * 6, **more}


def write(file: Path, lines: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(one) + "\n" for one in [{"classes": ["a", "b", "c"]}, *lines]))
    return file


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Candidates]:
    """A function that ranks files of detections and returns the candidates that were ranked."""
    seen: list[Candidates] = []
    honest = ranking.label_state

    def label_state(told: Any, budget: int, labels: Any, pool: Shards, images: Any) -> Any:
        seen.extend(pool.parts)  # type: ignore[arg-type]
        return honest(told, budget, labels, pool, images)

    monkeypatch.setattr(ranking, "label_state", label_state)

    def rank(found: Path, views: Path, names: Sequence[str], views_map: Path | None = None) -> Candidates:
        external.rank(found, views, None, None, settings(names), 9, views_map=views_map)
        return seen[-1]

    return rank


@pytest.mark.parametrize("views", EACH, ids="-".join)
def test_so_is_one_on_rareboxs_copies(
    views: list[str], photo: Path, tmp_path: Path, scored: Callable[..., Candidates]
) -> None:
    copied = write_copies(photo, tmp_path / "copies", views, seed=0)
    entries = [json.loads(text) for text in copied.map.read_text().splitlines()]
    on_copies = [line(e["file"], np.clip(hulls(BOXES, e["matrix"]), 0, [e["width"], e["height"]] * 2)) for e in entries]
    found = write(tmp_path / "found.jsonl", [line("a.png", BOXES, width=WIDTH, height=HEIGHT)])
    is_perfect(scored(found, write(tmp_path / "views.jsonl", on_copies), views, copied.map))
    if "cutout" not in views:  # its name does not determine what it hides
        by_name = [{**one, "image": "a.png", "view": e["view"]} for one, e in zip(on_copies, entries, strict=True)]
        is_perfect(scored(found, write(tmp_path / "named.jsonl", by_name), views))


@pytest.mark.parametrize("degrees", [5, 20, 45, 90, 180])
def test_so_is_one_on_its_own_rotated_copies(degrees: int, tmp_path: Path, scored: Callable[..., Candidates]) -> None:
    turn = np.deg2rad(degrees)
    matrix = [[np.cos(turn), -np.sin(turn), 300.0], [np.sin(turn), np.cos(turn), 300.0]]
    found = write(tmp_path / "found.jsonl", [line("a.png", BOXES, width=WIDTH, height=HEIGHT)])
    on_copy = line("a.png", hulls(BOXES, np.array(matrix)), view="mine", matrix=matrix)
    candidates = scored(found, write(tmp_path / "views.jsonl", [on_copy]), ["flip"])
    # At 45 degrees boxes of many shapes have the same hull, so none can be mapped back for the committee.
    is_perfect(candidates if degrees != 45 else replace(candidates, box_disagreement=None))


def test_so_is_one_on_a_copy_that_shows_a_part(tmp_path: Path, scored: Callable[..., Candidates]) -> None:
    """The copy shows the image up to x = 80: the visible part of a box is compared, and boxes outside are not."""
    matrix = [[1.0, 0, 0], [0, 1, 0]]
    cut = np.clip(BOXES, 0, [80, HEIGHT] * 2)
    shown = cut[:, 2] > cut[:, 0]
    assert shown.tolist() == [True, True, False, True, False, False]
    found = write(tmp_path / "found.jsonl", [line("a.png", BOXES, width=WIDTH, height=HEIGHT)])
    whole = line("a.png", BOXES, view="colour")
    part = line("a.png", cut, view="part", matrix=matrix, width=80, height=HEIGHT)
    candidates = scored(found, write(tmp_path / "views.jsonl", [whole, part]), ["colour"])
    is_perfect(replace(candidates, box_disagreement=None))
