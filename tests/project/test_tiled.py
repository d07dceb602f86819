"""A project of tiles: its labels are exported as those of the tiles, or joined as those of the photos."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarebox.cli import main
from rarebox.data.export import Annotations
from rarebox.data.tiles import Tiling, cut, read
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.project.collect import join_tiles
from rarebox.project.create import create
from rarebox.types import Answer, ImageRecord, Query, Source, Verdict, as_boxes

OBJECT = [150, 10, 750, 60]
"""An object that all of the upper tiles cut."""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of the seven tiles of two photos, of 1000 x 500 and 200 x 300 pixels."""
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1000, 500), (0, 90, 0)).save(tmp_path / "photos" / "large.png")
    Image.new("RGB", (200, 300), (0, 0, 90)).save(tmp_path / "photos" / "small.png")
    cut(tmp_path / "photos", tmp_path / "tiles", Tiling(400, 100))
    create(tmp_path / "p", tmp_path / "tiles", ["cat", "dog"])
    return tmp_path / "p"


def label(project: Path, boxes_of: dict[str, list[list[float]]], *, complete: bool = True) -> None:
    """Answer the question about each named tile; with ``complete`` about all others too: no object."""
    with Store(project / "labels.sqlite") as store:
        ids = {Path(image.path).name: image.id for image in store.images().values()}
        names = [*ids] if complete else [*boxes_of]
        store.open_cycle(1)
        for name, query in zip(names, store.ask(1, [Query(ids[name]) for name in names]), strict=True):
            boxes = as_boxes(boxes_of.get(name, []))
            store.record([Answer(query.id, boxes, np.ones(len(boxes), np.int64), Verdict.OBJECT, "ann")])


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """Run a command in this process, and return its status."""
    monkeypatch.setattr(sys, "argv", ["rarebox", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def export(monkeypatch: pytest.MonkeyPatch, project: Path, *options: str) -> dict[str, Any]:
    to = project.parent / "out"
    assert command(monkeypatch, "export", project, to, *options) == 0
    return json.loads((to / "annotations.json").read_text())


UPPER: dict[str, list[list[float]]] = {
    "large.png_0_0.png": [[150, 10, 400, 60]],
    "large.png_300_0.png": [[0, 10, 400, 60]],
    "large.png_600_0.png": [[0, 10, 150, 60]],
}


def test_labels_of_whole_photos(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(project, UPPER)
    found = export(monkeypatch, project, "--join-tiles")
    images = {image["id"]: image for image in found["images"]}
    assert [(i["file_name"], i["width"], i["height"]) for i in images.values()] == [
        ("images/large.png", 1000, 500),
        ("images/small.png", 200, 300),
    ]
    assert all(image["attributes"]["complete"] for image in images.values())
    (one,) = found["annotations"]
    x, y, w, h = one["bbox"]
    assert ([x, y, x + w, y + h], images[one["image_id"]]["file_name"]) == (OBJECT, "images/large.png")
    assert found["categories"][1] == {"id": one["category_id"], "name": "dog"}
    assert (project.parent / "out" / "images" / "large.png").resolve() == project.parent / "photos" / "large.png"


def test_a_photo_is_fully_labelled_only_if_all_its_tiles_are(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    label(project, UPPER, complete=False)
    images = export(monkeypatch, project, "--join-tiles")["images"]
    assert [image["attributes"]["complete"] for image in images] == [False, False]
    assert (project.parent / "out" / "incomplete.txt").read_text().split() == ["large.png", "small.png"]


def test_without_the_option_tiles_are_exported_and_it_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    label(project, UPPER)
    found = export(monkeypatch, project)
    assert (len(found["images"]), len(found["annotations"])) == (7, 3)
    assert "--join-tiles" in capsys.readouterr().err


def test_the_option_needs_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 80)).save(tmp_path / "photos" / "a.png")
    create(tmp_path / "p", tmp_path / "photos", ["cat"])
    label(tmp_path / "p", {})
    assert command(monkeypatch, "export", tmp_path / "p", tmp_path / "out", "--join-tiles") == 2
    assert "are not tiles" in capsys.readouterr().err
    assert command(monkeypatch, "export", tmp_path / "p", tmp_path / "out", "--join-tiles", "--queries") == 2
    assert "--join-tiles is for labels" in capsys.readouterr().err


def test_unfinished_tiles_start_no_project(project: Path) -> None:
    file = project.parent / "tiles" / "tiles.json"
    file.write_text(file.read_text().replace("true", "false"))
    with pytest.raises(UserError, match="rarebox tile"):
        create(project.parent / "q", project.parent / "tiles", ["cat"])


def test_a_person_wins_over_a_pseudo_label_of_the_same_object(project: Path) -> None:
    tiles = read(project.parent / "tiles")
    assert tiles
    first, second, *_ = tiles.files("large.png")

    def on(image_id: int, box: list[float], source: Source) -> Annotations:
        one = np.full(1, 0.9)
        return Annotations(image_id, as_boxes([box]), np.zeros(1, np.int64), np.array([source]), one, one, one, True)

    images = [ImageRecord(1, str(first), 400, 400), ImageRecord(2, str(second), 400, 400)]
    labels = [on(1, [310, 10, 380, 60], Source.HUMAN), on(2, [8, 10, 78, 60], Source.PSEUDO)]
    photos, (joined,) = join_tiles(tiles, images, labels)
    assert [photo.path for photo in photos] == [str(project.parent / "photos" / "large.png")]
    assert (joined.boxes.tolist(), joined.source.tolist()) == ([[310, 10, 380, 60]], [Source.HUMAN])
    apart = [labels[0], on(2, [200, 10, 270, 60], Source.PSEUDO)]
    _, (joined,) = join_tiles(tiles, images, apart)
    assert joined.source.tolist() == [Source.HUMAN, Source.PSEUDO]
    assert joined.boxes.tolist() == [[310, 10, 380, 60], [500, 10, 570, 60]]


def test_the_command_cuts_and_says_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (1000, 500)).save(tmp_path / "photos" / "a.png")
    assert command(monkeypatch, "tile", tmp_path / "photos", tmp_path / "t", "--side", "400") == 0
    said = capsys.readouterr()
    assert "6 tiles of 1 photo" in said.out
    assert "rarebox init" in said.err
