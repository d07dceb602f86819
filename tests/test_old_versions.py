"""Version 0.1.0 wrote a project, a run that stopped after cycle 2, and result lines of grids: they can still be read.

``data_old/version_0_1.zip`` was written by that version, with the small network of ``tests/tiny.py`` at width 8:

- ``data/``: 8 images and 2 test images.
- ``project/``: three whole images labelled by anna; in cycle 2 two objects, a rejection and a "can't tell" by ben, and
  one open question.
- ``exported.json``: the COCO export of the project by that version.
- ``run/``: cycles 1 and 2 of 3.
- ``results/``: the first four lines of each file in ``paper/results`` at that time.
"""

import json
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from rarebox.cli import main
from rarebox.data.datasets import load
from rarebox.detectors.backbones import BACKBONES
from rarebox.grid import results
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.simulate import simulate
from rarebox.project import trainer
from rarebox.project.project import Project
from rarebox.types import Answer, Verdict
from tests import tiny
from tests.browser import served

ARCHIVE = Path(__file__).parent / "data_old" / "version_0_1.zip"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The unpacked archive, with the project's photos separate from the labels of the data set."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(tmp_path / "old")
    (tmp_path / "old" / "photos").mkdir()
    for file in (tmp_path / "old" / "data" / "images").glob("train_*.jpg"):
        shutil.copy(file, tmp_path / "old" / "photos")
    return tmp_path / "old"


@pytest.fixture
def project(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old project, after its photos were relocated."""
    assert rarebox(monkeypatch, "relocate", old / "project", old / "photos") == 0
    return old / "project"


@pytest.fixture
def run(old: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The old run, after its data set was relocated."""
    assert rarebox(monkeypatch, "relocate", old / "run", old / "data") == 0
    return old / "run"


@pytest.fixture
def narrow_network() -> Iterator[None]:
    """The network that the archive's models belong to."""
    with tiny.small_network(), pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "efficientnet_lite0", replace(BACKBONES["efficientnet_lite0"], width=8))
        yield


def rarebox(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["rarebox", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def boxes_by_image(exported: dict[str, Any]) -> dict[str, list[tuple[str, list[float], str]]]:
    """File name -> class, box and source of each annotation."""
    names = {image["id"]: Path(image["file_name"]).name for image in exported["images"]}
    classes = {category["id"]: category["name"] for category in exported["categories"]}
    found: dict[str, list[tuple[str, list[float], str]]] = {name: [] for name in names.values()}
    for one in exported["annotations"]:
        box = [round(side, 3) for side in one["bbox"]]
        found[names[one["image_id"]]].append((classes[one["category_id"]], box, one["attributes"]["source"]))
    return found


def complete(exported: dict[str, Any]) -> set[str]:
    """File names of the images that an export calls completely labelled."""
    return {Path(image["file_name"]).name for image in exported["images"] if image["attributes"]["complete"]}


def test_the_labels_of_an_old_project_are_exported_as_before(
    old: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert rarebox(monkeypatch, "export", project, old / "labels", "--format", "coco") == 0
    now = json.loads((old / "labels" / "annotations.json").read_text(encoding="utf-8"))
    before = json.loads((old / "exported.json").read_text(encoding="utf-8"))
    assert sum(map(len, boxes_by_image(now).values())) == 13
    assert boxes_by_image(now) == boxes_by_image(before)
    assert len(complete(now)) == 3
    assert complete(now) == complete(before)


def test_the_answers_of_an_old_project_agree_with_the_truth(old: Path, project: Path) -> None:
    opened, known = Project(project), load(old / "data").train
    truth = {Path(image.path).name: known.truth[image.id] for image in known.images}
    with opened.store as store:
        assert (opened.cycle, opened.budget(2).total, opened.budget(2).spent) == (2, 5, 4)
        assert [(query.asked_by, answer.by) for query, answer in store.answered()] == [(None, "anna")] * 3 + [
            (None, "ben")
        ] * 4
        labels = store.labels()
        assert sum(len(said.rejected) for said in labels.values()) == 1
        assert sum(len(said.skipped) for said in labels.values()) == 1
        whole = {i: said for i, said in labels.items() if said.complete}
        assert len(whole) == 3
        for i, said in whole.items():
            there = truth[Path(store.images()[i].path).name]
            np.testing.assert_allclose(said.boxes, there.boxes[~there.difficult])
            np.testing.assert_array_equal(said.labels, there.labels[~there.difficult])


def test_an_old_project_is_served(project: Path) -> None:
    with served(project) as link, httpx.Client(base_url=link.split("?")[0], timeout=60) as http:
        assert http.get(link).status_code == 303
        state = http.get("/api/state").json()
        assert (state["cycle"], state["budget"]["spent"], state["budget"]["of"]) == (2, 4, 5)
        (query,) = http.post("/api/next", json={"client": "tab", "want": 1}).json()["queries"]
        assert query["cycle"] == 2
        assert http.get(query["image"]["url"]).headers["content-type"] == "image/jpeg"


@pytest.mark.usefixtures("narrow_network")
def test_an_old_project_is_trained_further(project: Path) -> None:
    opened = Project(project)
    with opened.store as store:
        (query,) = store.unanswered(2)
        store.record([Answer(query.id, np.zeros((0, 4), np.float32), np.zeros(0, np.int64), Verdict.NOT_AN_OBJECT)])
        assert trainer.advance(opened, lambda *_: None) == "trained"
        assert trainer.advance(opened, lambda *_: None) == "questions"
        assert (opened.cycle, opened.budget(2).spent) == (3, 5)
        assert [record["cycle"] for record in opened.folder.records()] == [1, 2]


def test_an_old_run_is_reported(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tiny.without_figures():
        assert rarebox(monkeypatch, "report", run) == 0
    page = re.sub(r"<[^>]+>|\s+", " ", (run / "report.html").read_text(encoding="utf-8"))
    assert re.search(r"Labels +21 +16 in the initial images", page)
    # Of the class "zero": first labels, human boxes now, asked about, hits, pseudo labels, p(l).
    assert re.search(r" zero +7 +8 +12 +5 +0 +0.000 ", page)


@pytest.mark.usefixtures("narrow_network")
def test_an_old_run_is_resumed(run: Path) -> None:
    before = RunFolder(run).records()
    records = simulate(run, RunFolder(run).read_settings())
    assert records[:2] == before
    assert records[2]["cycle"] == 3
    assert records[2]["labels"] == 26


@pytest.mark.parametrize(
    ("name", "methods", "ap50"),
    [
        ("aquarium", ["U", "U+CB", "U+CB+HPL"], 0.186),
        ("bccd", ["U", "U+CB", "U+CB+HPL"], 0.493),
        ("scenes", ["random", "entropy", "coreset"], 0.193),
        ("scenes-ablation", ["U", "U+CB", "U+CB+HPL"], 0.177),
    ],
)
def test_old_result_lines_are_compared(
    old: Path, name: str, methods: list[str], ap50: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    (group,) = results.read([old / "results" / f"{name}.jsonl"])
    assert list(group.methods) == methods
    assert len(group.full) == 1
    assert results.ap50(group.methods[methods[0]][0].cycles[-1]) == pytest.approx(ap50, abs=5e-4)
    with tiny.figures_not_drawn():
        assert rarebox(monkeypatch, "report", old / "results" / f"{name}.jsonl", "--to", old / "page") == 0
    assert f"{ap50:.3f}" in (old / "page" / "tables.md").read_text(encoding="utf-8")
