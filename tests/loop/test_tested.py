"""The detections on test images that a cycle stores for the report."""

import json
from pathlib import Path

import numpy as np
import pytest

from rarebox.core import parquet
from rarebox.errors import Damaged
from rarebox.evaluation import best_thresholds
from rarebox.loop import simulate
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.tested import read_tested, write_tested
from rarebox.types import Detections, GroundTruth, ImageRecord
from tests import tiny

IMAGES = [ImageRecord(7, "b.png", 30, 20), ImageRecord(3, "a\udce4.png", 40, 50), ImageRecord(5, "empty.png", 9, 9)]
FOUND = {
    7: Detections.from_scores([[1, 2, 3.25, 4]], [1], [0.1], 3),
    3: Detections.from_scores([[0, 0, 9, 9], [1, 1, 5, 5]], [0, 2], [0.75, 0.3], 3),
    5: Detections.from_scores([], [], [], 3),
}
TRUTH = {
    7: GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)),
    3: GroundTruth(np.array([[0, 0, 9, 10], [4, 4, 8, 8]]), np.array([0, 1]), np.array([False, True])),
    5: GroundTruth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_tested(tmp_path / "tested.parquet", IMAGES, FOUND, TRUTH)
    told = read_tested(tmp_path / "tested.parquet")
    assert [*told.images] == [7, 3, 5]
    assert [told.images[i] for i in (7, 5)] == [IMAGES[0], IMAGES[2]]
    assert told.images[3].path == "a?.png"  # no valid text
    for image_id in (7, 3, 5):
        for name in ("boxes", "labels", "scores"):
            np.testing.assert_array_equal(
                getattr(told.detections[image_id], name), getattr(FOUND[image_id], name), strict=True
            )
        for name in ("boxes", "labels", "difficult"):
            np.testing.assert_array_equal(
                getattr(told.truth[image_id], name), getattr(TRUTH[image_id], name), strict=True
            )
    assert [told.classes_of(i) for i in (7, 3, 5)] == [set(), {0}, set()]


def test_no_test_images(tmp_path: Path) -> None:
    write_tested(tmp_path / "tested.parquet", [], {}, {})
    assert not read_tested(tmp_path / "tested.parquet").images


def test_an_unusable_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "tested.parquet"
    with pytest.raises(Damaged):
        read_tested(file)
    parquet.write(file, {"image_id": np.arange(3)})
    with pytest.raises(Damaged, match="row"):
        read_tested(file)


@pytest.mark.usefixtures("small_network")
def test_a_cycle_stores_what_it_was_measured_on(tmp_path: Path) -> None:
    """The same curves, AP50 and thresholds come out of the file as are in the records."""
    data = tiny.make_data(tmp_path / "data")
    folder = RunFolder(tmp_path / "run")
    (record,) = simulate.simulate(folder.root, tiny.settings(data, budget=[], training__steps=2))
    told = read_tested(folder.tested(1))
    classes = len(record["per_class_ap50"])
    curves = told.curves(classes)
    measured = json.loads((folder.cycle(1) / "evaluated.json").read_text())
    assert len(told.images) == measured["images"] == 5
    known = [ap for ap in record["per_class_ap50"].values() if ap is not None]
    assert curves.ap[~np.isnan(curves.ap)].tolist() == known
    assert best_thresholds(curves).scores.tolist() == (measured["thresholds"] or [0.5] * classes)
    before = folder.tested(1).read_bytes()

    # Without the file, the model is measured again; the record stays as it is.
    folder.tested(1).unlink()
    folder.metrics.unlink()
    (again,) = simulate.simulate(folder.root, tiny.settings(data, budget=[], training__steps=2))
    assert "fit" not in again["seconds"]
    assert again["ap50"] == record["ap50"]
    assert folder.tested(1).read_bytes() == before
