"""The grids under paper/: each can be read, and those of the paper's own setting start on a VOC tree."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from rarebox import config
from rarebox.data import datasets
from rarebox.grid import results, runner, spec
from tests.thinned import thinned
from tests.tiny import CHANGES, make_data

pytestmark = pytest.mark.usefixtures("small_network")

PAPER = Path(__file__).parents[2] / "paper"
GRIDS = sorted(PAPER.glob("*.yaml"))
VOC = [grid for grid in GRIDS if "voc0712" in grid.read_text(encoding="utf-8")]

SMALLER: dict[str, Any] = {
    **{name: value for name, value in CHANGES.items() if name != "detector.name"},  # the grid has it
    "detector.backbone": "efficientnet_lite0",
    "detector.long_side": None,
    "training.optimiser": "adamw",
    "initial_images": 3,
    "budget": [4, 4],
    "training.steps": 2,
}
"""The paper's setting, reduced for a test on a laptop."""


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: grid.stem)
def test_a_grid_can_be_read(grid: Path) -> None:
    assert spec.read(grid)


def test_entropy_of_images_runs_with_mean_and_with_sum_in_every_grid_that_has_it() -> None:
    """The paper does not say which of the two it compares with."""
    having = 0
    for grid in GRIDS:
        chosen = [run.settings.selection for run in spec.read(grid) if run.method != results.FULL]
        poolings = {one.image_entropy for one in chosen if one.strategy == "image_entropy"}
        having += bool(poolings)
        assert poolings in (set(), {"mean", "sum"}), grid
    assert having == 4


@pytest.mark.parametrize("name", ["retinanet", "faster-rcnn"])
def test_the_papers_setting_is_section_4_1(name: str) -> None:
    runs = [run for run in spec.read(PAPER / f"voc0712-{name}.yaml") if run.method != results.FULL]
    assert {run.settings.seed for run in runs} == {0, 1, 2}
    for run in runs:
        settings = run.settings
        assert (settings.data, settings.detector.name) == ("voc0712", name.replace("-", "_"))
        assert (settings.initial_images, settings.budget) == (1000, (2000, 4000, 8000))
        assert (settings.detector.backbone, settings.detector.size) == ("resnet50", (600, 1000))
        assert (settings.training.steps, settings.training.epochs, settings.training.batch_size) == (None, 26, 2)
        assert settings.training.lr == config.PAPER_LR[settings.detector.name]
        assert (settings.selection.sigma, settings.scoring.beta) == (1, 1.3)
        assert (settings.pseudo.class_high, settings.pseudo.class_low) == (0.8, 0.1)
        assert (settings.pseudo.box_high, settings.pseudo.box_low) == (0.7, 0.3)


def voc_tree(folder: Path, scenes: Path) -> Path:
    """The tiny data set as a VOC devkit of both years: the pictures for training are split between them."""
    told = datasets.load(scenes)
    assert told.test is not None
    half = len(told.train.images) // 2
    parts = (
        ("VOC2007", "trainval", told.train.images[:half], told.train.truth),
        ("VOC2007", "test", told.test.images, told.test.truth),
        ("VOC2012", "trainval", told.train.images[half:], told.train.truth),
    )
    for year, name, images, truth in parts:
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (folder / year / part).mkdir(parents=True, exist_ok=True)
        for image in images:
            Image.open(image.path).save(folder / year / "JPEGImages" / f"{image.id:06}.jpg")
            objects = "".join(
                f"<object><name>{told.classes[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
                f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2:.0f}</xmax><ymax>{y2:.0f}</ymax></bndbox></object>"
                for (x1, y1, x2, y2), label in zip(truth[image.id].boxes.round(), truth[image.id].labels, strict=True)
            )
            text = (
                f"<annotation><filename>{image.id:06}.jpg</filename><size><width>{image.width}</width>"
                f"<height>{image.height}</height></size>{objects}</annotation>"
            )
            (folder / year / "Annotations" / f"{image.id:06}.xml").write_text(text)
        stems = "".join(f"{image.id:06}\n" for image in images)
        (folder / year / "ImageSets/Main" / f"{name}.txt").write_text(stems)
    return folder


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc")
    return voc_tree(folder / "devkit", make_data(folder / "scenes"))


@pytest.mark.parametrize("grid", thinned(VOC, lambda number, _: number % 2 == 0), ids=lambda grid: grid.stem)
def test_the_papers_grids_start_on_a_voc_tree(grid: Path, voc: Path, tmp_path: Path) -> None:
    """Complete except for sizes, and with only two of the methods: the image-level one asks differently."""
    told = yaml.safe_load(grid.read_text(encoding="utf-8"))
    few = [n for n in ("U+CB+TSPL", "image_random") if n in told["methods"]] or [*told["methods"]]
    told |= {
        "settings": {**told.get("settings", {}), **SMALLER},
        "seeds": 1,
        "full": 0,
        "detector": told["detector"][:1],
        "methods": {name: told["methods"][name] for name in few},
    }
    small = tmp_path / grid.name
    small.write_text(yaml.safe_dump(told))
    runs = spec.read(small, {"voc0712": str(voc)})
    assert runner.Bench(tmp_path / "out", runs, runs).work(small) == []
    assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == len(few)
