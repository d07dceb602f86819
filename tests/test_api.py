"""``import rarebox``: what its names do, that they load late, and that they suffice for a short script."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rarebox
from rarebox import config, external
from rarebox.errors import UserError
from rarebox.types import Detections, Floats, ImageLabels
from tests import tiny

CLASSES = ("cat", "dog", "owl")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *arguments], capture_output=True, text=True, check=False
    )


# ------------------------------------------------------------------------------------------- the names


def test_importing_rarebox_loads_no_library() -> None:
    done = run("import sys, rarebox; print(*sorted({name.split('.')[0] for name in sys.modules}))")
    assert done.returncode == 0, done.stderr
    heavy = {"numpy", "torch", "torchvision", "sqlalchemy", "pydantic", "matplotlib", "PIL", "sklearn", "yaml", "rich"}
    assert "rarebox" in done.stdout.split()
    assert not heavy & {*done.stdout.split()}


def test_no_name_loads_torch() -> None:
    done = run(
        "import sys, rarebox\nfor n in rarebox.__all__:\n getattr(rarebox, n); assert 'torch' not in sys.modules, n"
    )
    assert done.returncode == 0, done.stderr


def test_every_name_is_there_and_documented() -> None:
    assert sorted(rarebox.__all__) == sorted(rarebox._HOME)
    assert {*rarebox.__all__} <= {*dir(rarebox)}
    for name in rarebox.__all__:
        assert getattr(rarebox, name).__doc__, name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ranks'"):
        getattr(rarebox, "ranks")  # noqa: B009 a type checker would rightly refuse it


# ------------------------------------------------------------------------------------------- settings and detectors


def test_settings_are_named_with_two_underscores_for_a_dot(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("seed: 3\ntraining: {steps: 7}\n")
    made = rarebox.make_settings("paper", tmp_path / "s.yaml", training__steps=50, budget=[10])
    assert made == config.resolve("paper", None, {"seed": 3, "training.steps": 50, "budget": [10]})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"training__step": 50}, "unknown setting 'training.step'; did you mean 'training.steps'"),
        ({"training__steps": "many"}, "training.steps: must be a whole number"),
        ({"preset": "labtop"}, "unknown preset 'labtop'; did you mean 'laptop'"),
        ({"preset": None}, "unknown preset 'None'"),
    ],
)
def test_a_wrong_setting_is_explained(changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        rarebox.make_settings(**changes)


def test_a_detector_has_the_settings_of_a_run() -> None:
    settings = rarebox.make_settings("paper", device="cpu", detector__weights="none")
    with tiny.small_network():
        built = rarebox.build_detector("retinanet", num_classes=3, settings=settings, seed=1, image_size=64)
        assert built.num_classes == 3
        assert built.settings == settings.detector.model_copy(update={"name": "retinanet", "image_size": 64})
        assert built.training == settings.training
        with pytest.raises(UserError, match=r"did you mean 'detector\.image_size'"):
            rarebox.build_detector(num_classes=3, image_siz=64)


def test_a_detector_is_by_default_that_of_the_settings() -> None:
    settings = rarebox.make_settings(detector__name="retinanet", detector__image_size=64, detector__weights="none")
    with tiny.small_network():
        assert rarebox.build_detector(num_classes=2, settings=settings).settings.name == "retinanet"
        assert rarebox.build_detector(num_classes=2, image_size=64).settings.name == "faster_rcnn"


def test_another_detector_needs_its_own_learning_rate(tmp_path: Path) -> None:
    papers = rarebox.make_settings("paper", detector__name="retinanet")
    for change in ({"detector__name": "faster_rcnn"}, {"detector": {"name": "faster_rcnn"}}):
        with pytest.raises(UserError, match=r"are for retinanet, not faster_rcnn.*make_settings"):
            rarebox.simulate(tmp_path / "nowhere", tmp_path / "run", settings=papers, **change)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="are for retinanet, not faster_rcnn"):
        rarebox.build_detector("faster_rcnn", num_classes=2, settings=papers)
    with pytest.raises(UserError, match="nowhere does not exist"):  # all settings are accepted
        rarebox.simulate(
            tmp_path / "nowhere", tmp_path / "run", settings=papers, detector__name="faster_rcnn", training__lr=5e-3
        )


@pytest.mark.parametrize("settings", [{"seed": 1}, {}, "paper"])
def test_settings_of_another_type_are_refused(tmp_path: Path, settings: Any) -> None:
    with pytest.raises(UserError, match=r"settings must be Settings.*make_settings"):
        rarebox.rank({"a": NOTHING}, classes=CLASSES, settings=settings)
    with pytest.raises(UserError, match="settings must be Settings"):
        rarebox.simulate(tmp_path, settings=settings)
    with pytest.raises(UserError, match="settings must be Settings"):
        rarebox.build_detector(num_classes=2, settings=settings)


def test_a_data_set_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        rarebox.load_dataset(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------- ranking in memory


def some_boxes(seed: int, count: int) -> Floats:
    corner, size = np.split(np.random.default_rng(seed).uniform(20, 200, (2 * count, 2)), 2)
    return np.concatenate([corner, corner + size], axis=1)


def found(seed: int, count: int = 12) -> Detections:
    """Detections with class vectors, the background first."""
    dice = np.random.default_rng(seed)
    vectors = dice.dirichlet([0.5] * (len(CLASSES) + 1), count)
    labels = vectors[:, 1:].argmax(axis=1)
    return Detections(some_boxes(seed, count), labels, vectors[np.arange(count), labels + 1], vectors)


def shaken(seed: int, boxes: Detections) -> Detections:
    """The same, as on a mirrored copy of an image 400 pixels wide, each box some pixels off."""
    x1, y1, x2, y2 = (boxes.boxes + np.random.default_rng(seed).uniform(-4, 4, boxes.boxes.shape)).T
    return Detections(np.stack([400 - x2, y1, 400 - x1, y2], axis=1), boxes.labels, boxes.scores, boxes.class_probs)


def as_line(image: int, boxes: Detections, **about: Any) -> str:
    columns = {name: getattr(boxes, name).astype(float).tolist() for name in ("boxes", "scores", "class_probs")}
    size = {"width": 400, "height": 400}
    return json.dumps({"image": image, **size, **columns, "labels": boxes.labels.tolist(), **about}) + "\n"


def write_coco(file: Path, labels: dict[int, ImageLabels]) -> None:
    """Labels of square images, 400 pixels wide, as a COCO file."""
    rows = [
        (n, box, int(label) + 1, source)
        for n, said in labels.items()
        for boxes, classes, source in ((said.boxes, said.labels, "human"), (said.rejected, [0] * 9, "rejected"))
        for box, label in zip(boxes.astype(float), classes, strict=False)
    ]
    size = {"width": 400, "height": 400}
    content = {
        "categories": [{"id": n, "name": name} for n, name in enumerate(CLASSES, 1)],
        "images": [
            {"id": n, "file_name": f"{n}.jpg", **size, "attributes": {"complete": said.complete}}
            for n, said in labels.items()
        ],
        "annotations": [
            {
                "id": row,
                "image_id": n,
                "category_id": category,
                "bbox": [*box[:2], *(box[2:] - box[:2])],
                "attributes": {"source": source},
            }
            for row, (n, box, category, source) in enumerate(rows, 1)
        ],
    }
    file.write_text(json.dumps(content))


@pytest.mark.parametrize("strategy", ["class_balanced", "uncertainty", "entropy", "quota", "compas", "random"])
@pytest.mark.parametrize("with_views", [True, False])
def test_memory_and_files_give_one_order(tmp_path: Path, strategy: str, with_views: bool) -> None:
    if strategy == "compas" and not with_views:
        pytest.skip("compas needs views")
    images = {n: found(n) for n in (5, 1, 3, 8)}
    copies = {n: shaken(n, boxes) for n, boxes in images.items()}
    said = {
        3: ImageLabels.of(images[3].boxes[:4], images[3].labels[:4], rejected=images[3].boxes[5:6]),
        8: ImageLabels.of(images[8].boxes[:2], images[8].labels[:2], complete=True),
    }
    head = '{"classes": ["cat", "dog", "owl"], "background": "first"}\n'
    (tmp_path / "d.jsonl").write_text(head + "".join(as_line(n, one) for n, one in images.items()))
    (tmp_path / "v.jsonl").write_text(head + "".join(as_line(n, one, view="flip") for n, one in copies.items()))
    write_coco(tmp_path / "labels.json", said)
    settings = config.resolve("laptop", None, {"selection.strategy": strategy})

    by_files = external.rank(
        tmp_path / "d.jsonl",
        tmp_path / "v.jsonl" if with_views else None,
        tmp_path / "labels.json",
        None,
        settings,
        30,
    )
    views = {n: [rarebox.View.of("flip", one, 400, 400)] for n, one in copies.items()} if with_views else None
    ranking = rarebox.rank(images, views, said, classes=CLASSES, strategy=strategy, budget=30)

    assert len(ranking.boxes) > 10
    assert ranking.open_boxes == by_files.candidates
    assert ranking.class_frequency.tolist() == by_files.class_frequency.tolist()
    assert [(b.image, b.box.tolist(), b.label, b.utility) for b in ranking.boxes] == [
        (q.image_id, q.box.tolist(), q.guess, q.utility)  # type: ignore[union-attr]
        for q in by_files.queries
    ]
    assert {b.name for b in ranking.boxes} <= {*CLASSES}


def test_boxes_mapped_back_already_rank_like_boxes_on_a_mirrored_copy() -> None:
    images = {"b.jpg": found(1), "a.jpg": found(2)}
    back = np.array([[-1.0, 0, 400], [0, 1, 0]])
    there = {name: [rarebox.View(shaken(7, one), back)] for name, one in images.items()}
    here = {name: [rarebox.View(mirrored(view.detections)) for view in views] for name, views in there.items()}
    assert np.abs(here["a.jpg"][0].detections.boxes - images["a.jpg"].boxes).max() < 5
    one, other = (rarebox.rank(images, views, classes=CLASSES) for views in (there, here))
    assert [(b.image, b.box.tolist()) for b in one.boxes] == [(b.image, b.box.tolist()) for b in other.boxes]
    assert [b.utility for b in one.boxes] == pytest.approx([b.utility for b in other.boxes], abs=1e-4)


def mirrored(boxes: Detections) -> Detections:
    x1, y1, x2, y2 = boxes.boxes.T
    return Detections(np.stack([400 - x2, y1, 400 - x1, y2], axis=1), boxes.labels, boxes.scores, boxes.class_probs)


def test_a_score_alone_is_enough_and_candidates_become_pseudo_labels() -> None:
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 90, 90], [5, 60, 20, 90]]
    one = Detections.from_scores(boxes, [0, 1, 2, 1], [0.9, 0.5, 0.2, 0.07], num_classes=3)
    ranking = rarebox.rank({"a": one}, {"a": [rarebox.View(one)]}, classes=CLASSES)
    # u(b) = 1.3 - |s + 1 - 1.3|: 0.7, 1.1 and 1.2; of classes, only cat is sure (score 0.8 or more): e^-1 for it
    assert [b.name for b in ranking.boxes] == ["owl", "dog", "cat"]
    assert [b.utility for b in ranking.boxes] == pytest.approx([1.2, 1.1, 0.7 * np.exp(-1)], abs=1e-6)
    human = ImageLabels.of([[0, 0, 10, 10]], [0])
    targets = rarebox.make_targets(human, ranking.candidates["a"])
    # Eq. 5: the score from 0.1 to 0.8, and 0 up to 0.1; Eq. 6: seen again at the same place, 1
    assert targets.source.tolist() == ["human", "pseudo", "pseudo", "pseudo"]
    assert targets.class_weight.tolist() == pytest.approx([1, 0.5, 0.2, 0])
    assert targets.box_weight.tolist() == [1, 1, 1, 1]


NOTHING = Detections.from_scores([], [], [], 3)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"strategy": "class_balance"}, "unknown strategy 'class_balance'; did you mean 'class_balanced'"),
        ({"strategy": "image_cald"}, "ranks whole images"),
        ({"strategy": "compas"}, "Give them as views"),
        *(({"budget": budget}, "budget must be a whole number, at least 1") for budget in (0, 1.5, np.nan, "3")),
        ({"classes": "cat"}, "classes must be a list of different names, got 'cat'"),
        ({"classes": ["cat", "dog", "cat"]}, "classes must be a list of different names"),
        ({"views": {"a": [], "b": []}}, "views has no view"),
        ({"detections": [NOTHING]}, "detections must be Mapping, got list"),
        ({"views": [NOTHING]}, "views must be Mapping, got list"),
        ({"detections": {"a": ([[0, 0, 1, 1]], [0], [1])}}, r"detections\['a'\] must be Detections, got tuple"),
        ({"views": {"a": NOTHING}}, r"views\['a'\] must be Sequence, got Detections"),
        ({"views": {"a": [NOTHING]}}, r"each of views\['a'\] must be View, got Detections"),
        ({"views": {"a": [rarebox.View([])]}}, r"views\['a'\]\.detections must be Detections"),  # type: ignore[arg-type]
        ({"labels": {"a": [[0, 0, 1, 1]]}}, r"labels\['a'\] must be ImageLabels, got list"),
        ({"labels": {"c": ImageLabels.of([], [])}}, "labels has the image 'c', but detections lacks it"),
        ({"detections": {1.5: found(1), 1.7: found(1)}}, "an image is named 1.5. Name images by whole numbers, text"),
        ({"detections": {Path("a"): found(1), "b": NOTHING}}, "named by paths and text. Use one kind of name"),
        ({"views": {"c": [rarebox.View(NOTHING)]}}, "views has the image 'c'"),
        ({"views": {"a": [rarebox.View(NOTHING)]}}, "the image 'b' has 0 views, others have 1"),
        ({"labels": {"a": ImageLabels.of([[0, 0, 1, 1]], [3])}}, r"labels of image 'a' must be in \[0, 3\)"),
        ({"labels": {7: ImageLabels.of([], [])}}, "Use one kind of name"),
        ({"classes": [*CLASSES, "bat", "eel"]}, "class vectors have 4 numbers. Give 5, one for each class, or 6"),
        (
            {"detections": {"a": Detections([[0, 0, 1, 1]], [0], [1.5], [[1, 0, 0]])}},  # type: ignore[arg-type]
            "scores must be probabilities",
        ),
        ({"detections": {"a": Detections([[0, 0, 1, 1]], [3], [1], [[1, 0, 0]])}}, "labels must be in"),  # type: ignore[arg-type]
        (
            {"detections": {"a": found(1), "b": Detections([[0, 0, 1, 1]], [0], [1], [[1, 0, 0]])}},  # type: ignore[arg-type]
            "some without",
        ),
    ],
)
def test_what_cannot_be_ranked_is_explained(given: dict[str, Any], wanted: str) -> None:
    fine: dict[str, Any] = {"detections": {"a": found(1), "b": NOTHING}, "classes": CLASSES}
    with pytest.raises(UserError, match=wanted):
        rarebox.rank(**{**fine, **given})


def test_paths_name_images_like_text() -> None:
    images = {"b.jpg": found(1), "a.jpg": found(2)}
    by_text = rarebox.rank(images, classes=CLASSES)
    by_path = rarebox.rank({Path(name): one for name, one in images.items()}, classes=CLASSES)
    assert [b.image for b in by_path.boxes] == [Path(b.image) for b in by_text.boxes]
    assert [b.utility for b in by_path.boxes] == [b.utility for b in by_text.boxes]
    assert {*by_path.candidates} == {Path("a.jpg"), Path("b.jpg")}


def test_nothing_detected_is_an_empty_ranking() -> None:
    ranking = rarebox.rank({"a": NOTHING}, classes=CLASSES)
    assert (len(ranking.boxes), ranking.open_boxes, len(ranking.candidates["a"])) == (0, 0, 0)
    assert rarebox.rank(dict[str, Detections](), classes=CLASSES).boxes == ()


@pytest.mark.parametrize("matrix", [np.eye(3), np.zeros((2, 3)), [[1, 0, np.nan], [0, 1, 0]]])
def test_a_matrix_that_is_not_a_map_is_refused(matrix: Any) -> None:
    with pytest.raises(ValueError, match="invertible affine map"):
        rarebox.View(NOTHING, matrix)
    with pytest.raises(UserError, match="unknown view 'flop'; did you mean 'flip'"):
        rarebox.View.of("flop", NOTHING, 400, 400)


@pytest.mark.parametrize("size", [(0, 0), (-5, 3), (np.nan, 3), (np.inf, 3), 3, (1, 2, 3)])
def test_a_view_without_an_area_is_refused(size: Any) -> None:
    with pytest.raises(ValueError, match="size must be a width and a height in pixels, both above 0"):
        rarebox.View(NOTHING, size=size)


@pytest.mark.parametrize(
    ("labels", "scores", "wanted"),
    [
        ([0.9], [1], "labels must be whole numbers"),  # the two in the wrong order
        ([np.nan], [1], "labels must be whole numbers"),
        ([3], [0.5], r"labels must be in \[0, 3\)"),
        ([-1], [0.5], r"labels must be in \[0, 3\)"),
        ([1], [60], r"scores must be in \[0, 1\]"),
        ([1], [np.nan], r"scores must be in \[0, 1\]"),
        ([1, 0], [0.5], "got 1 boxes, 2 labels and 1 scores"),
        ([1], [0.5, 0.4], "got 1 boxes, 1 labels and 2 scores"),
    ],
)
def test_labels_and_scores_of_a_detector_are_checked(labels: Any, scores: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        Detections.from_scores([[0, 0, 1, 1]], labels, scores, num_classes=3)


def test_labels_are_whole_numbers_everywhere() -> None:
    box, one, half = np.array([[0, 0, 1, 1]], np.float32), np.ones(1, np.float32), np.array([0.5])
    for make in (
        lambda labels: Detections(box, labels, one, one[:, None]),
        lambda labels: rarebox.GroundTruth(box, labels, one > 1),
        lambda labels: ImageLabels.of(box, labels),
        lambda labels: rarebox.Targets.of(box, labels),
    ):
        assert make(np.array([1.0])).labels.tolist() == [1]
        with pytest.raises(ValueError, match="labels must be whole numbers"):
            make(half)


# ------------------------------------------------------------------------------------------- scripts

COMPARE = """
import sys
import rarebox

data = rarebox.load_dataset(sys.argv[1])
settings = rarebox.make_settings(
    initial_images=4, budget=[6], device="cpu", detector__image_size=64, training__steps=2, training__epochs=0,
    training__warmup_steps=0, scoring__candidate_threshold=0.0, detector__score_threshold=0.0,
    scoring__views=["flip"], scoring__per_image=8, oracle__iou=0.05, detector__weights="none",
)
first = rarebox.simulate(data, strategy="random", seed=1, settings=settings)
second = rarebox.simulate(data, strategy="class_balanced", seed=1, settings=settings, share=first)
for run in (first, second):
    print(run.settings.selection.strategy, *run.labels, *run.ap50)
assert first.ap50[0] == second.ap50[0]
"""


@pytest.mark.exhaustive
def test_a_script_of_fifteen_lines_compares_two_strategies(tmp_path: Path) -> None:
    assert len(COMPARE.strip().splitlines()) <= 15
    done = run(COMPARE, str(tiny.make_data(tmp_path / "scenes")))
    assert done.returncode == 0, done.stderr
    random, balanced = done.stdout.splitlines()
    assert random.split()[:3] == ["random", "21", "27"]  # of the initial images, and six more
    assert balanced.split()[:3] == ["class_balanced", "21", "27"]
    assert done.stderr == ""  # no progress unless requested


RANK = """
import numpy as np
import rarebox

boxes = np.array([[10, 10, 60, 60], [100, 40, 180, 90]])
here = rarebox.Detections.from_scores(boxes, labels=[0, 1], scores=[0.9, 0.4], num_classes=2)
mirrored = rarebox.Detections.from_scores(300 - boxes[:, [2, 1, 0, 3]] * [1, -1, 1, -1] - [0, 300, 0, 300],
                                          labels=[0, 1], scores=[0.9, 0.2], num_classes=2)
labels = {"a.jpg": rarebox.ImageLabels.of([[12, 10, 60, 60]], [0])}
ranking = rarebox.rank({"a.jpg": here}, {"a.jpg": [rarebox.View.of("flip", mirrored, 300, 200)]}, labels,
                       classes=["cat", "dog"], budget=10)
for box in ranking.boxes:
    print(box.image, box.name, *box.box)
"""


def test_a_script_of_fifteen_lines_ranks_somebody_elses_boxes() -> None:
    assert len(RANK.strip().splitlines()) <= 15
    done = run(RANK)
    assert (done.returncode, done.stdout) == (0, "a.jpg dog 100.0 40.0 180.0 90.0\n"), done.stderr


def test_a_simulation_resumes_in_its_folder_and_shows_progress_when_asked(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tiny.make_data(tmp_path / "scenes")
    settings = tiny.settings(data, budget=[6])
    with tiny.small_network():
        first = rarebox.simulate(data, tmp_path / "run", strategy="random", settings=settings)
        silent = capfd.readouterr()
        again = rarebox.simulate(data, tmp_path / "run", strategy="random", settings=settings, seed=0)
        assert silent.err == silent.out == ""
        assert (again.folder, again.records) == (first.folder, first.records)
        shown = rarebox.simulate(data, tmp_path / "other", settings=settings, share=first.folder, progress=True)
    assert "fit" in capfd.readouterr().err
    assert shown.settings.selection.strategy == "class_balanced"
    assert len(shown.ap50) == 2


def test_a_first_model_trained_on_other_labels_is_not_shared(tmp_path: Path) -> None:
    data = rarebox.load_dataset(tiny.make_data(tmp_path / "scenes"))
    other = {i: replace(one, labels=(one.labels + 1) % len(data.classes)) for i, one in data.train.truth.items()}
    settings = tiny.settings(data.root, budget=[])
    with tiny.small_network():
        first = rarebox.simulate(data, tmp_path / "run", settings=settings)
        with pytest.raises(UserError, match=r"does not fit this run:\n  labels: those of image \d+ differ"):
            rarebox.simulate(
                replace(data, train=replace(data.train, truth=other)), tmp_path / "b", settings=settings, share=first
            )


def test_evaluate_gives_the_numbers_of_both_rules() -> None:
    truth = {1: rarebox.GroundTruth(np.array([[0, 0, 10, 10], [20, 20, 30, 30]]), np.array([0, 1]), np.zeros(2, bool))}
    hit = Detections.from_scores([[0, 0, 10, 10]], [0], [0.9], 2)
    measured = rarebox.evaluate({1: hit}, truth, num_classes=2)
    assert (measured.ap50, measured.ap50_11, measured.per_class_ap50.tolist()) == (0.5, 0.5, [1.0, 0.0])
    assert (measured.coco_ap, measured.coco_ap50, measured.coco_ap75) == pytest.approx((0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="no truth"):
        rarebox.evaluate({2: hit}, truth, num_classes=2)
