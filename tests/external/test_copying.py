"""Copies as files: boxes map back correctly, and the same seed writes the same files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarebox import config, external
from rarebox.errors import UserError
from rarebox.external import write_copies
from rarebox.pool.views import VIEWS
from rarebox.types import as_boxes

GREEN = (0, 255, 0)
BOX = (60, 30, 110, 70)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images with the same name in two folders, each grey with a green box, and a file that is not an image."""
    folder = tmp_path / "photos"
    for name in ("x/a.png", "y/a.jpg"):
        (folder / name).parent.mkdir(parents=True)
        image = Image.new("RGB", (200, 100), (117, 117, 117))
        image.paste(GREEN, BOX)
        image.save(folder / name, quality=95)
    (folder / "broken.jpg").write_text("no image")
    return folder


def see(file: Path) -> list[float]:
    """A detector: the bounding box of the green pixels."""
    pixels = np.asarray(Image.open(file).convert("RGB")).astype(int)
    y, x = np.nonzero(pixels[..., 1] - pixels[..., 0] > 60)
    return [float(x.min()), float(y.min()), float(x.max() + 1), float(y.max() + 1)]


def run_detector(root: Path, files: list[Path], to: Path) -> None:
    """Write the detections as JSON lines, with file names relative to ``root``."""
    lines = [
        {"image": file.relative_to(root).as_posix(), "boxes": [see(file)], "scores": [0.9], "labels": ["box"]}
        for file in files
    ]
    to.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_boxes_found_on_copies_map_back(photos: Path, tmp_path: Path) -> None:
    views = [name for name in VIEWS if name not in ("cutout", "noise")]
    done = write_copies.write_copies(photos, tmp_path / "out", views, 3)
    assert (done.images, done.copies) == (2, 2 * len(views))
    assert [Path(error.path).name for error in done.unreadable] == ["broken.jpg"]
    files = sorted((tmp_path / "out" / "images").rglob("*.*"))
    assert len(files) == done.copies
    # The detector is unaware of views: it names the copy's file, with enough of the path to distinguish the two.
    run_detector(tmp_path / "out" / "images", files, tmp_path / "v.jsonl")
    run_detector(photos, [photos / "x/a.png", photos / "y/a.jpg"], tmp_path / "d.jsonl")
    ranked = external.rank(
        tmp_path / "d.jsonl", tmp_path / "v.jsonl", None, photos, config.resolve("laptop"), 9, views_map=done.map
    )
    assert len(ranked.queries) == 2
    for query in ranked.queries:
        # A rotated box maps back enlarged, the others within a pixel at the edges.
        assert 0.85 < query.why["box_consistency"] <= 1  # type: ignore[index]


def test_the_map_holds_both_ways_and_the_hidden_patches(photos: Path, tmp_path: Path) -> None:
    write_copies.write_copies(photos, tmp_path / "out", ["cutout", "rotate_5", "scale_0.8"], 0)
    entries = [json.loads(line) for line in (tmp_path / "out" / "views.jsonl").read_text().splitlines()]
    assert {(e["image"], e["view"]) for e in entries} == {
        (image, view) for image in ("x/a.png", "y/a.jpg") for view in ("cutout", "rotate_5", "scale_0.8")
    }
    for entry in entries:
        with Image.open(tmp_path / "out" / entry["file"]) as image:
            assert image.size == (entry["width"], entry["height"])
        both = np.vstack([entry["matrix"], [0, 0, 1]]) @ np.vstack([entry["inverse"], [0, 0, 1]])
        assert both == pytest.approx(np.eye(3), abs=1e-9)
        assert len(entry["patches"]) == (2 if entry["view"] == "cutout" else 0)
    cut = next(e for e in entries if e["view"] == "cutout" and e["file"].endswith("png"))
    pixels = np.asarray(Image.open(tmp_path / "out" / cut["file"]))
    for x1, y1, x2, y2 in as_boxes(cut["patches"]).astype(int):
        assert (pixels[y1:y2, x1:x2] == 117).all()


def test_the_same_seed_writes_the_same_files(photos: Path, tmp_path: Path) -> None:
    def written(folder: str, seed: int) -> dict[str, bytes]:
        write_copies.write_copies(photos, tmp_path / folder, ["cutout", "noise"], seed)
        return {f.relative_to(tmp_path / folder).as_posix(): f.read_bytes() for f in (tmp_path / folder).rglob("*.*")}

    assert written("one", 1) == written("two", 1)
    (photos / "0.png").write_bytes((photos / "x/a.png").read_bytes())  # another image does not change the others
    more = written("three", 1)
    assert {name: more[name] for name in written("one", 1) if name.startswith("images")}.items() <= more.items()
    assert written("four", 2)["images/x/a.png.cutout.png"] != more["images/x/a.png.cutout.png"]


def test_mistakes(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'flip'"):
        write_copies.write_copies(photos, tmp_path / "out", ["flop"], 0)
    with pytest.raises(UserError, match="each view once"):
        write_copies.write_copies(photos, tmp_path / "out", ["flip", "flip"], 0)
    with pytest.raises(UserError, match="does not exist"):
        write_copies.write_copies(tmp_path / "nowhere", tmp_path / "out", ["flip"], 0)
    with pytest.raises(UserError, match="holds no copies of rarebox"):
        write_copies.write_copies(photos, photos, ["flip"], 0)
    for file in photos.rglob("a.*"):
        file.unlink()
    with pytest.raises(UserError, match=r"none of the 1 images can be read.*broken\.jpg"):
        write_copies.write_copies(photos, tmp_path / "out", ["flip"], 0)
    assert not (tmp_path / "out").exists()


def test_a_broken_map(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "views.jsonl").write_text('{"file": "a"}\n')
    line = {"image": "x/a.png", "boxes": [BOX], "scores": [0.9], "labels": ["box"]}
    for name, extra in (("d.jsonl", {}), ("v.jsonl", {"view": "flip"})):
        (tmp_path / name).write_text(json.dumps({**line, **extra}))
    with pytest.raises(UserError, match="line 1: this is not a map"):
        external.rank(
            tmp_path / "d.jsonl",
            tmp_path / "v.jsonl",
            None,
            None,
            config.resolve("laptop"),
            9,
            views_map=tmp_path / "views.jsonl",
        )
