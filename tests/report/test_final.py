"""The report on the final model: curves, threshold advice, confusion matrix, and detections on test images."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarebox.core.files import write_json, write_text
from rarebox.evaluation import best_thresholds
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.tested import read_tested, write_tested
from rarebox.report import curves, detections, drawing, final, shots
from rarebox.report.final import FinalModel, of_run
from rarebox.types import Detections, GroundTruth, ImageRecord
from tests.report.test_report import Page, make_run, one_run, report

CAT, DOG, YAK = range(3)  # from frequent to rare
Row = tuple[Sequence[float], int, float]


def at(place: int) -> list[float]:
    """The place of an object on a test image of 960 x 640."""
    return [100 * place, 200, 100 * place + 80, 300]


def store(root: Path, images: Sequence[tuple[Sequence[int], Sequence[Row]]], cycle: int = 3) -> None:
    """Store test images 1, 2, ...: the classes of objects at places 0, 1, ..., and the detections."""
    file = root.parent / "test.png"
    Image.new("RGB", (960, 640), "gray").save(file)
    records = [ImageRecord(i, str(file), 960, 640) for i in range(1, len(images) + 1)]
    found, truth = dict[int, Detections](), dict[int, GroundTruth]()
    for record, (labels, rows) in zip(records, images, strict=True):
        boxes, guesses, scores = zip(*rows, strict=True) if rows else ((), (), ())
        found[record.id] = Detections.from_scores(list(boxes), list(guesses), list(scores), 3)
        objects = np.array([at(place) for place in range(len(labels))]).reshape(-1, 4)
        truth[record.id] = GroundTruth(objects, np.array(labels, np.int64), np.zeros(len(labels), bool))
    write_tested(RunFolder(root).tested(cycle), records, found, truth)


ORDINARY: Sequence[tuple[Sequence[int], Sequence[Row]]] = [
    # 20 cats found, one of them with a low score; 4 of 20 dogs taken for cats; a yak missed, and a wrong one
    *(([CAT, DOG], [(at(0), CAT, 0.9), (at(1), CAT, 0.95), (at(5), DOG, 0.1)]) for _ in range(4)),
    *(([CAT, DOG], [(at(0), CAT, 0.9), (at(1), DOG, 0.8), (at(5), DOG, 0.1)]) for _ in range(14)),
    ([CAT, DOG], [(at(0), CAT, 0.2), (at(1), DOG, 0.8)]),
    ([CAT, DOG, YAK], [(at(0), CAT, 0.9), (at(1), DOG, 0.8), (at(7), YAK, 0.3)]),
]


@pytest.fixture(scope="module")
def ordinary(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FinalModel]:
    """A run whose final model was measured, and what the report says of it."""
    root = make_run(tmp_path_factory.mktemp("ordinary") / "run", images=3)
    store(root, ORDINARY)
    write_json(root / "cycle_03" / "evaluated.json", {"ap50_interval": [0.456, 0.789]})
    with drawing.style():
        return root, of_run(one_run(root))


@pytest.fixture(scope="module")
def page(ordinary: tuple[Path, FinalModel], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return report(tmp_path_factory.mktemp("page"), ordinary[0])


def test_the_page_shows_all_parts(page: Page, ordinary: tuple[Path, FinalModel]) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "(95 % interval 0.46 to 0.79) on 20 test images with 41 objects." in text
    assert "Precision and recall, rare to frequent" in text
    assert "Most frequent confusions: dog taken for cat (4 of 20)." in text
    assert "the first with yak · 2 right, 1 missed, 1 wrong" in text
    assert len(page.boxes("missed")) > 0
    assert page.boxes("right")[0] == (50, 100, 40, 50)  # half its size
    assert not re.search(r"\b(nan|None)\b", page.source)
    assert "is damaged" not in text
    assert ordinary[1].missing == ""


def test_the_numbers_are_those_of_the_curves(ordinary: tuple[Path, FinalModel]) -> None:
    root, told = ordinary
    measured = read_tested(root / "cycle_03" / "tested.parquet").curves(3)
    chosen = best_thresholds(measured)
    by_name = {one.name: one for one in told.advice}
    assert [one.name for one in told.advice] == ["yak", "dog", "cat"]
    for label, name in enumerate(("cat", "dog", "yak")):
        assert by_name[name].ap50 == measured.ap[label]
        assert by_name[name].threshold == chosen.scores[label]
    cat = by_name["cat"]
    # From 0.55 on: 19 right of 23 detections (4 are dogs), F1 38 / 43. From 0.1 on: 20 right of 24, F1 40 / 44.
    assert (cat.threshold, cat.precision, cat.recall, cat.f1) == pytest.approx((0.1, 20 / 24, 1, 40 / 44))
    dog = by_name["dog"]
    assert (dog.threshold, dog.precision, dog.recall) == pytest.approx((0.45, 1, 16 / 20))


def test_few_boxes_give_no_advice(ordinary: tuple[Path, FinalModel], page: Page) -> None:
    yak = ordinary[1].advice[0]
    assert yak.no_advice == "No advice: fewer than 20 test boxes."
    assert ordinary[1].caution.endswith("share the threshold of all classes, 0.15.")
    assert yak.no_advice in page.text
    assert [one.no_advice for one in ordinary[1].advice[1:]] == ["", ""]


def test_the_confusion_matrix_goes_from_rare_to_frequent(ordinary: tuple[Path, FinalModel]) -> None:
    told = ordinary[1]
    assert [*told.columns] == ["yak", "dog", "cat", "missed"]
    counts = {name: [cell.count for cell in cells] for name, cells in told.confusion}
    assert counts == {"yak": [0, 0, 0, 1], "dog": [0, 16, 4, 0], "cat": [0, 0, 20, 0], "no object": [1, 0, 0, 0]}
    dog = dict(told.confusion)["dog"]
    assert [(cell.share, cell.right) for cell in dog[1:3]] == [(0.8, True), (0.2, False)]


def test_optimism_is_stated(ordinary: tuple[Path, FinalModel]) -> None:
    assert "chosen on the same 20 images on which precision, recall and F1 are measured" in ordinary[1].caution
    assert "“F1, checked” is not" in ordinary[1].caution


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([([], [(at(0), CAT, 0.9)])], "there is no object on the test images"),
        ([], "there is no object on the test images"),
    ],
)
def test_without_objects_nothing_is_measured(
    images: Sequence[tuple[Sequence[int], Sequence[Row]]], said: str, tmp_path: Path
) -> None:
    store(make_run(tmp_path / "run", images=3), images)
    assert said in of_run(one_run(tmp_path / "run")).missing


def test_with_few_boxes_in_all_no_threshold_is_advised(tmp_path: Path) -> None:
    store(make_run(tmp_path / "run", images=3), ORDINARY[:5])
    with drawing.style():
        told = of_run(one_run(tmp_path / "run"))
    assert told.caution.startswith("There are only 10 test boxes in all, so no threshold is advised.")
    assert all(one.no_advice for one in told.advice)
    assert told.advice[0].no_advice == "No advice: no test boxes."


def test_a_detector_without_a_right_detection_has_no_advice(tmp_path: Path) -> None:
    store(make_run(tmp_path / "run", images=3), [([CAT], [])] * 25)
    with drawing.style():
        told = of_run(one_run(tmp_path / "run"))
    assert [one.no_advice for one in told.advice if one.name == "cat"] == [
        "No advice: no detection is right at any threshold."
    ]
    assert told.confused == "No class is taken for another one."
    assert "cat: AP50 0.00, no detections" in told.panels[0].alt


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda file: file.unlink(), "did not store the detections of cycle 3"),
        (lambda file: write_text(file, "PAR1"), "cycle_03/tested.parquet is damaged"),
    ],
)
def test_a_run_without_its_detections_still_has_a_page(
    harm: Callable[[Path], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawing, "publish", lambda panel, *_: panel)
    run = make_run(tmp_path / "run", images=3)
    store(run, ORDINARY[-1:])
    harm(run / "cycle_03" / "tested.parquet")
    text = report(tmp_path, run).text
    assert said in text
    assert "Confusion matrix" not in text


def test_labels_beyond_the_classes_are_damage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", images=3, classes=("cat", "dog"))
    store(run, ORDINARY)
    assert "is damaged" in of_run(one_run(run)).missing


# ------------------------------------------------------------------------------------------- curves


def test_many_classes_have_two_figures_and_the_middle_is_left_out(ordinary: tuple[Path, FinalModel]) -> None:
    measured = read_tested(ordinary[0] / "cycle_03" / "tested.parquet").curves(50)
    panels = curves.of_classes(range(50), [f"kind {i}" for i in range(50)], measured, best_thresholds(measured))
    assert [panel.name for panel in panels] == ["precision_recall_rare", "precision_recall_frequent"]
    assert panels[1].title == "Precision and recall, the more frequent classes, 10 classes between them left out"
    assert "kind 0: AP50 0." in panels[0].alt


def test_a_curve_is_drawn_by_its_hits() -> None:
    recall = np.array([0, 0.1, 0.1, 0.1, 0.2, 0.2, 0.2])
    assert curves._corners(recall).tolist() == [0, 1, 3, 4, 6]
    many = curves._corners(np.arange(1, 10_001) / 10_000)
    assert len(many) <= 2 * curves.POINTS + 1
    assert (many[0], many[-1]) == (0, 9_999)


def test_the_text_of_a_curve_has_its_threshold(ordinary: tuple[Path, FinalModel]) -> None:
    (panel,) = ordinary[1].panels
    assert "dog: AP50 0.80, at threshold 0.45 precision 1.00 and recall 0.80" in panel.alt


# ------------------------------------------------------------------------------------------- images


def test_images_are_chosen_by_rare_classes_and_then_at_equal_distances(tmp_path: Path) -> None:
    images = [([CAT], [])] * 30
    images[20], images[22] = ([CAT, YAK], []), ([YAK, DOG], [])
    store(make_run(tmp_path / "run", images=3), images)
    tested = read_tested(tmp_path / "run" / "cycle_03" / "tested.parquet")
    names = ("cat", "dog", "yak")
    chosen = detections.choose(tested, [YAK, DOG, CAT], names)
    assert chosen[:3] == [(21, "the first with yak"), (23, "the first with dog"), (1, "the first with cat")]
    assert [i for i, _ in chosen[3:]] == [3, 6, 9, 12, 15, 18, 22, 26, 29]
    assert {why for _, why in chosen[3:]} == {""}
    changed = replace(tested, detections=dict.fromkeys(tested.images, Detections.from_scores([at(0)], [YAK], [1.0], 3)))
    assert detections.choose(changed, [YAK, DOG, CAT], names) == chosen  # not cherry-picked


def test_right_missed_and_wrong_boxes_are_named(ordinary: tuple[Path, FinalModel]) -> None:
    told = ordinary[1]
    assert len(told.shots) == 12
    boxes = [(box.kind, box.tooltip) for shot in told.shots for box in shot.boxes]
    assert ("missed", "missed: yak") in boxes
    assert ("right", "right: dog, score 0.80") in boxes
    assert ("wrong", "wrong: cat, score 0.95; it is dog") in boxes


def test_a_crowded_image_is_bounded(tmp_path: Path) -> None:
    crowd = [([7 * i % 900, i, 7 * i % 900 + 20, i + 20], CAT, 0.9) for i in range(300)]
    store(make_run(tmp_path / "run", images=3), [([CAT], [(at(0), CAT, 0.95), *crowd])])
    tested = read_tested(tmp_path / "run" / "cycle_03" / "tested.parquet")
    (shot,) = detections.of_test(tested, tested.match(3, np.full(3, 0.5)), [CAT], ("cat", "dog", "yak"))
    assert len(shot.boxes) == detections.MOST_BOXES
    assert shot.boxes[-1].kind == "right"  # the best ones
    assert shot.caption == "the first with cat · 1 right, 0 missed, 300 wrong, only 150 of them are drawn"


def test_an_image_takes_a_bounded_part_of_the_page() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (640, 480, 3), dtype=np.uint8)
    assert len(shots._jpeg(Image.fromarray(noise))) <= shots.MOST_BYTES
    plain = Image.new("RGB", (480, 320))
    assert Image.open(io.BytesIO(shots._jpeg(plain))).size == (480, 320)
    most = detections.MOST * shots.MOST_BYTES * 4 / 3
    assert most < 1_000_000


def test_final_is_about_the_last_finished_cycle(tmp_path: Path) -> None:
    store(make_run(tmp_path / "run", images=3, cycles=2), ORDINARY, cycle=3)  # cycle 3 was measured, and then killed
    assert "detections of cycle 2" in final.of_run(one_run(tmp_path / "run")).missing
