"""Detections of any detector: the same ranking as the loop's, and no silent errors."""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rarebox import config, detectors, external, method, strategies
from rarebox.core import seeds
from rarebox.core.boxes import far_from
from rarebox.data.export import Annotations, export
from rarebox.data.pictures import Pictures
from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.loop import simulate
from rarebox.loop.run_folder import RunFolder
from rarebox.pool import ranking
from rarebox.pool.candidates import Shards, read_images
from rarebox.pool.views import make_views
from rarebox.types import Answer, Detections, ImageRecord, Query, Source, Verdict
from tests.shards import read_all
from tests.tiny import make_data, settings

pytestmark = pytest.mark.usefixtures("small_network")

Lines = list[dict[str, Any]]


def write(file: Path, lines: Sequence[Any]) -> Path:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def chosen(strategy: str = "class_balanced", **changes: Any) -> config.Settings:
    named = {name.replace("__", "."): value for name, value in changes.items()}
    return config.resolve("laptop", None, {"selection.strategy": strategy, **named})


def listed(ranked: external.Ranked) -> list[tuple[int, list[float], int]]:
    """Image, box and guess of each query."""
    return [(q.image_id, q.box.tolist(), q.guess) for q in ranked.queries]  # type: ignore[misc, union-attr]


# ------------------------------------------------------------------------------------------- the loop's own numbers


@pytest.fixture(scope="module", params=["retinanet", "faster_rcnn"])
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of each detector: class vectors without a background, and with one."""
    root = tmp_path_factory.mktemp(request.param)
    # One image per batch, as below: another batch size may round differently. No file holds features.
    changes = {"budget": [5], "scoring__batch_size": 1, "selection__duplicate_cosine": 1.0}
    chosen = settings(make_data(root / "scenes"), detector__name=request.param, **changes)
    simulate.simulate(root / "run", chosen)
    return root / "run"


def dump(run: Path, file: Path, views_file: Path) -> None:
    """The first model's detections on the images and copies that cycle 2 was chosen from, as JSON lines."""
    folder = RunFolder(run)
    told = folder.read_settings()
    detector = detectors.load(folder.cycle(1), "cpu", told.training)
    with Store(folder.store) as store:
        said, images, classes = store.labels(up_to_cycle=1), store.images(), store.classes()
    pictures = Pictures([r for i, r in images.items() if i not in said or not said[i].complete], told.detector.size)
    found: Lines = [{"classes": classes}]
    on_views: Lines = []
    for record, picture in zip(pictures.records, pictures, strict=True):
        views = make_views(
            told.scoring.views, *detector.input_size(picture), seeds.stream(told.seed, "views", 2, record.id)
        )
        boxes, *copies = detector.predict_views([picture], [views])[0]
        found.append({"image": record.id, "width": record.width, "height": record.height, **as_lists(boxes)})
        for frame, detected in zip(detector.frames(picture, views), copies, strict=True):
            where = {"matrix": frame.matrix.tolist(), "patches": frame.patches.tolist()}
            on_views.append({"image": record.id, "view": frame.name, **where, **as_lists(detected)})
    write(file, [found[0], *reversed(found[1:])])  # the order of lines is irrelevant
    write(views_file, on_views)


@pytest.fixture(scope="module")
def dumped(finished: Path) -> tuple[Path, Path]:
    """The files of detections on the images and on their copies."""
    found, views = finished.with_name("d.jsonl"), finished.with_name("v.jsonl")
    dump(finished, found, views)
    return found, views


def as_lists(found: Detections) -> dict[str, Any]:
    columns = {name: getattr(found, name).astype(float).tolist() for name in ("boxes", "scores", "class_probs")}
    return {**columns, "labels": found.labels.tolist()}


@pytest.mark.parametrize("strategy", ["class_balanced", "uncertainty", "entropy", "quota", "inverse_frequency"])
def test_the_loops_own_numbers_give_the_loops_own_order(
    finished: Path, dumped: tuple[Path, Path], tmp_path: Path, strategy: str
) -> None:
    folder = RunFolder(finished)
    told = folder.read_settings()
    told = told.model_copy(update={"selection": told.selection.model_copy(update={"strategy": strategy})})
    found, views = dumped
    with Store(folder.store) as store:
        before, classes, images = store.labels(up_to_cycle=1), store.classes(), list(store.images().values())
        labels = [annotated(i, said.boxes, said.labels, said.complete) for i, said in before.items()]
        export(tmp_path / "labels", "coco", classes, images, labels)

    candidates = read_all(folder.cycle(2) / "candidates")
    open_ones = candidates[ranking.Answered(before).leaves_open(candidates, told.selection.answered_iou)]
    images = read_images(folder.cycle(2) / "candidates")
    state, _ = ranking.label_state(told, 10_000, before, Shards([candidates]), images)
    order = list(strategies.choose(told.selection)(open_ones, state, seeds.stream(told.seed, "strategy", 2)))
    assert len(order) > 20

    ranked = external.rank(found, views, tmp_path / "labels" / "annotations.json", None, told, 10_000)
    assert ranked.from_views
    assert ranked.candidates == len(order)
    assert ranked.class_frequency.tolist() == state.class_frequency.tolist()
    for query in ranked.queries:  # at each place the same box with the same utility
        row, utility = order[int(query.why["rank"])]  # type: ignore[index]
        assert (query.image_id, query.guess, query.utility) == (
            open_ones.image_id[row],
            open_ones.labels[row],
            pytest.approx(utility, rel=1e-6),
        )
        assert query.box.tolist() == open_ones.boxes[row].tolist()  # type: ignore[union-attr]
    # Skipped boxes are near a box above them.
    places = {int(q.why["rank"]) for q in ranked.queries}  # type: ignore[index]
    for place in set(range(len(order))) - places:
        row = order[place][0]
        above = [q for q in ranked.queries if q.why["rank"] < place and q.image_id == open_ones.image_id[row]]  # type: ignore[index]
        boxes = np.stack([q.box for q in above])  # type: ignore[type-var]
        assert not far_from(open_ones.boxes[[row]], boxes, told.selection.answered_iou)[0]


def test_the_loops_questions_have_the_same_ranks(finished: Path, dumped: tuple[Path, Path], tmp_path: Path) -> None:
    folder = RunFolder(finished)
    found, views = dumped
    with Store(folder.store) as store:
        asked = store.queries(2)
        labels = [annotated(i, s.boxes, s.labels, s.complete) for i, s in store.labels(up_to_cycle=1).items()]
        export(tmp_path / "labels", "coco", store.classes(), list(store.images().values()), labels)
    told = folder.read_settings()
    told = told.model_copy(update={"selection": told.selection.model_copy(update={"answered_iou": 1.0})})
    coco = tmp_path / "labels" / "annotations.json"
    ranked = external.rank(found, views, coco, None, told, 10_000)
    assert len(asked) >= 5
    for query in asked:
        same = ranked.queries[int(query.why["rank"])]  # type: ignore[index]
        assert (same.image_id, same.guess, same.box.tolist()) == (query.image_id, query.guess, query.box.tolist())  # type: ignore[union-attr]
        assert same.utility == pytest.approx(query.utility, rel=1e-6)
        for name in ("score", "uncertainty", "box_consistency"):
            assert same.why[name] == pytest.approx(query.why[name], rel=1e-6)  # type: ignore[index]


def annotated(image_id: int, boxes: Any, labels: Any, complete: bool, source: Any = Source.HUMAN) -> Annotations:
    ones = np.ones(len(boxes))
    names = np.broadcast_to(np.asarray(source, dtype=np.str_), len(boxes))
    return Annotations(image_id, boxes, labels, names, ones, ones, ones, complete)


# ------------------------------------------------------------------------------------------- by hand

HEAD = {"classes": ["cat", "dog", "owl"]}
FOUND: Lines = [
    HEAD,
    {
        "image": "b.jpg",
        "width": 200,
        "height": 100,
        "boxes": [[10, 10, 50, 50], [100, 20, 150, 90]],
        "scores": [0.9, 0.6],
        "labels": ["cat", "dog"],
    },
    {"image": "a.jpg", "width": 200, "height": 100, "boxes": [[20, 20, 60, 60]], "scores": [0.5], "labels": [2]},
]
LINE = FOUND[1]
VIEWS: Lines = [
    {
        "image": "b.jpg",
        "view": "flip",
        "boxes": [[150, 10, 190, 50], [50, 20, 100, 90]],
        "scores": [0.9, 0.2],
        "labels": ["cat", "dog"],
    },
    {"image": "a.jpg", "view": "flip", "boxes": [], "scores": [], "labels": []},
]


def test_an_outside_detectors_numbers_by_hand(tmp_path: Path) -> None:
    ranked = external.rank(
        write(tmp_path / "d.jsonl", FOUND), write(tmp_path / "v.jsonl", VIEWS), None, None, chosen(), 9
    )
    u = {(q.image_id, q.guess): q.why["uncertainty"] for q in ranked.queries}  # type: ignore[index]
    # The flipped boxes match exactly: c(b) = |(s + s_m) / 2 (1 - JS) + 1 - 1.3|, and u(b) = 1.3 - c(b).
    assert u[2, 0] == pytest.approx(1.3 - abs(0.9 + 1 - 1.3), abs=1e-6)
    js = float(method.js_divergence(np.array([0.4, 0, 0.6, 0]), np.array([0.8, 0, 0.2, 0])))
    assert u[2, 1] == pytest.approx(1.3 - abs(0.4 * (1 - js) + 1 - 1.3), abs=1e-6)
    assert u[1, 2] == pytest.approx(0, abs=1e-6)  # lost on the view
    # p(l): of the pseudo labels, scored 0.8 or more, all are cats.
    assert ranked.class_frequency.tolist() == [1, 0, 0]
    assert [(q.image_id, q.guess) for q in ranked.queries] == [(2, 1), (2, 0), (1, 2)]
    assert ranked.queries[1].utility == pytest.approx(u[2, 0] * np.exp(-1))


def test_without_views_the_class_entropy_is_used_and_reported(tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", FOUND)
    ranked = external.rank(file, None, None, None, chosen(), 9)
    assert not ranked.from_views
    assert any("Eq. 2" in note for note in ranked.notes)
    assert all("box_consistency" not in q.why for q in ranked.queries)  # type: ignore[operator]
    entropy = {s: -(s * np.log(s) + (1 - s) * np.log(1 - s)) for s in (0.9, 0.6, 0.5)}
    assert [q.why["uncertainty"] for q in ranked.queries] == pytest.approx([entropy[0.5], entropy[0.6], entropy[0.9]])  # type: ignore[index]
    assert listed(external.rank(file, None, None, None, chosen("entropy"), 9)) == listed(ranked)
    with pytest.raises(UserError, match="--views"):
        external.rank(file, None, None, None, chosen("compas"), 9)


def test_labels_of_a_class_that_the_detector_does_not_name_are_reported(tmp_path: Path) -> None:
    names = [{"id": 1, "name": "Cat"}, {"id": 2, "name": "newt"}, {"id": 3, "name": "dog"}]
    coco = {"images": [{"id": 1, "file_name": "a.jpg"}], "categories": names, "annotations": []}
    (labels := tmp_path / "l.json").write_text(json.dumps(coco))
    ranked = external.rank(write(tmp_path / "d.jsonl", FOUND), None, labels, None, chosen(), 9)
    (note,) = [note for note in ranked.notes if "does not name" in note]
    assert "does not name: Cat, newt;" in note
    assert "(write 'Cat' as 'cat' if you mean these)" in note
    assert ranked.classes == ("cat", "dog", "owl", "Cat", "newt")


def test_the_order_of_lines_and_the_names_of_labels_do_not_matter(tmp_path: Path) -> None:
    one = external.rank(write(tmp_path / "d.jsonl", FOUND), write(tmp_path / "v.jsonl", VIEWS), None, None, chosen(), 9)
    numbered = [
        {**line, "labels": [HEAD["classes"].index(n) if isinstance(n, str) else n for n in line["labels"]]}
        for line in reversed(FOUND[1:])
    ]
    two = external.rank(
        write(tmp_path / "e.jsonl", numbered),
        write(tmp_path / "w.jsonl", VIEWS[::-1]),
        None,
        None,
        chosen(),
        9,
        classes=HEAD["classes"],
    )
    assert listed(one) == listed(two)
    assert one.classes == two.classes == ("cat", "dog", "owl")


def test_budget_and_boxes_near_one_above(tmp_path: Path) -> None:
    near = [[10, 10, 50, 50], [10, 10, 50, 75], [60, 60, 90, 90]]  # IoU 0.615: not suppressed, but settled by the first
    file = write(tmp_path / "d.jsonl", [{"image": 1, "boxes": near, "scores": [0.5, 0.45, 0.9], "labels": ["a"] * 3}])
    ranked = external.rank(file, None, None, None, chosen("entropy"), 9)
    assert [q.box.tolist() for q in ranked.queries] == [near[0], near[2]]  # type: ignore[union-attr]
    assert [q.why["rank"] for q in ranked.queries] == [0, 2]  # type: ignore[index]
    assert len(external.rank(file, None, None, None, chosen("entropy"), 1).queries) == 1
    with pytest.raises(UserError, match="--budget"):
        external.rank(file, None, None, None, chosen("entropy"), 0)


def test_labelled_boxes_are_skipped_and_pseudo_labels_are_not_labels(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.jpg")
    Image.new("RGB", (200, 100)).save(tmp_path / "b.jpg")
    records = [ImageRecord(7, str(tmp_path / "a.jpg"), 200, 100), ImageRecord(3, str(tmp_path / "b.jpg"), 200, 100)]
    labels = [annotated(3, [[11, 11, 51, 51], [101, 21, 151, 91]], [0, 1], False, [Source.HUMAN, Source.PSEUDO])]
    export(tmp_path / "out", "coco", HEAD["classes"], records, labels, include_pseudo=True)
    file, coco = write(tmp_path / "d.jsonl", FOUND), tmp_path / "out" / "annotations.json"
    ranked = external.rank(file, None, coco, None, chosen(), 9)
    assert [(q.image_id, q.guess) for q in ranked.queries] == [(7, 2), (3, 1)]  # the file's ids, found by the names
    # The cat is labelled, so it is no longer a pseudo label.
    assert ranked.class_frequency.tolist() == [0, 0, 0]
    whole = external.rank(file, None, coco, None, chosen(), 9, labels_complete=True)
    assert [(q.image_id, q.guess) for q in whole.queries] == [(3, 1)]  # as in init, pseudo labels must be confirmed
    export(tmp_path / "out", "coco", HEAD["classes"], records, [annotated(3, [], [], True)])
    assert [q.image_id for q in external.rank(file, None, coco, None, chosen(), 9).queries] == [7]


def test_a_store_includes_rejected_boxes(tmp_path: Path) -> None:
    with Store(tmp_path / "labels.sqlite", classes=["cat", "dog", "owl"]) as store:
        store.add_images([ImageRecord(5, "photos/a.jpg", 200, 100), ImageRecord(6, "photos/b.jpg", 200, 100)])
        store.open_cycle(1)
        (query,) = store.ask(1, [Query(5, np.array([20, 20, 60, 60]), 2)])
        store.record([Answer(query.id, [], [], Verdict.NOT_AN_OBJECT)])  # type: ignore[arg-type]
    ranked = external.rank(write(tmp_path / "d.jsonl", FOUND), None, tmp_path, None, chosen(), 9)
    assert [q.image_id for q in ranked.queries] == [6, 6]


COCO: dict[str, Any] = {
    "images": [{"id": 4, "file_name": "x/b.jpg", "width": 200, "height": 100}, {"id": 9, "file_name": "a.jpg"}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    "annotations": [],
}
RESULTS: Lines = [
    {"image_id": 9, "category_id": 1, "bbox": [20, 20, 40, 40], "score": 0.5},
    {"image_id": 4, "category_id": 3, "bbox": [100, 20, 50, 70], "score": 0.6},
    {"image_id": 9, "category_id": 3, "bbox": [70, 70, 10, 20], "score": 0.7, "segmentation": []},
]


@pytest.mark.parametrize("text", [json.dumps(RESULTS), json.dumps(RESULTS, indent=2), " [ ]"])
def test_coco_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("rarebox.data.detections.CHUNK", 16)  # entries that span the chunks they are read in
    (tmp_path / "results.json").write_text(text)
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    ranked = external.rank(tmp_path / "results.json", None, None, tmp_path / "coco.json", chosen("entropy"), 9)
    wanted = [(9, [20, 20, 60, 60], 0), (4, [100, 20, 150, 90], 1), (9, [70, 70, 80, 90], 1)]
    assert listed(ranked) == (wanted if len(text) > 5 else [])
    assert ranked.classes == ("cat", "dog")


def test_coco_results_without_a_coco_file_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(RESULTS))
    ranked = external.rank(tmp_path / "results.json", None, None, None, chosen("entropy"), 9)
    assert ranked.classes == ("1", "3")
    assert [(q.image_id, q.guess) for q in ranked.queries] == [(9, 0), (4, 1), (9, 1)]


def test_class_vectors_with_the_background_first_last_or_not_at_all(tmp_path: Path) -> None:
    vectors = np.array([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]])  # background, cat, dog
    line = {"image": 1, "boxes": [[0, 0, 9, 9], [20, 20, 40, 40]]}
    orders = {"first": vectors, "last": vectors[:, [1, 2, 0]]}
    found = []
    for where, given in orders.items():
        head = {"classes": ["cat", "dog"], "background": where}
        file = write(tmp_path / f"{where}.jsonl", [head, {**line, "class_probs": given.tolist()}])
        found.append(external.rank(file, None, None, None, chosen("entropy"), 9))
        # Nothing else in the lines: class and score come from the vector.
        assert [(q.guess, q.why["score"]) for q in found[-1].queries] == [
            (1, pytest.approx(0.4)),
            (0, pytest.approx(0.7)),
        ]  # type: ignore[index]
    assert listed(found[0]) == listed(found[1])
    entropy = -(vectors * np.log(vectors)).sum(axis=1)
    assert [q.utility for q in found[0].queries] == pytest.approx(entropy[::-1], rel=1e-3)
    without = write(
        tmp_path / "k.jsonl", [{"classes": ["cat", "dog"]}, {**line, "class_probs": vectors[:, 1:].tolist()}]
    )
    scores = np.array([0.4, 0.7])
    binary = -(scores * np.log(scores) + (1 - scores) * np.log(1 - scores))
    assert [q.utility for q in external.rank(without, None, None, None, chosen("entropy"), 9).queries] == pytest.approx(
        binary
    )


@pytest.mark.parametrize(
    ("name", "box"),
    [
        ("flip", [150, 10, 190, 50]),  # mirrored in 200 pixels
        ("scale_0.8", [8, 8, 40, 40]),
        ("colour", [10, 10, 50, 50]),
        ("mine", [110, 10, 150, 50]),  # a custom copy, shifted by 100 pixels
    ],
)
def test_boxes_of_copies_map_back(tmp_path: Path, name: str, box: list[float]) -> None:
    matrix = {"matrix": [[1, 0, 100], [0, 1, 0]]} if name == "mine" else {}
    on_view = {"image": "b.jpg", "view": name, "boxes": [box], "scores": [0.9], "labels": ["cat"], **matrix}
    file = write(
        tmp_path / "d.jsonl", [HEAD, {**FOUND[1], "boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": [0]}]
    )
    ranked = external.rank(file, write(tmp_path / "v.jsonl", [on_view]), None, None, chosen(), 1)
    assert ranked.queries[0].why["box_consistency"] == pytest.approx(1, abs=1e-6)  # type: ignore[index]


def test_a_patch_over_a_box_makes_the_copy_not_count(tmp_path: Path) -> None:
    file = write(
        tmp_path / "d.jsonl", [HEAD, {**FOUND[1], "boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": [0]}]
    )
    still = {"image": "b.jpg", "view": "colour", "boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": [0]}
    cut = {"image": "b.jpg", "view": "cutout", "undone": True, "boxes": [], "patches": [[10, 10, 50, 30]]}
    seen = external.rank(file, write(tmp_path / "v.jsonl", [still, cut]), None, None, chosen(), 1)
    assert seen.queries[0].why["box_consistency"] == 1  # type: ignore[index]
    lost = external.rank(file, write(tmp_path / "v.jsonl", [still, {**cut, "patches": []}]), None, None, chosen(), 1)
    assert lost.queries[0].why["box_consistency"] == 0.5  # type: ignore[index]


def test_images_of_a_folder_get_their_sizes_and_unreadable_ones_are_reported(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Image.new("RGB", (200, 100)).save(photos / name)
    (photos / "broken.png").write_text("no image")
    lines = [HEAD, *({k: v for k, v in line.items() if k not in ("width", "height")} for line in FOUND[1:])]
    file, views = write(tmp_path / "d.jsonl", lines), write(tmp_path / "v.jsonl", VIEWS)
    ranked = external.rank(file, views, None, photos, chosen(), 9)
    assert listed(ranked) == listed(external.rank(write(tmp_path / "e.jsonl", FOUND), views, None, None, chosen(), 9))
    assert ranked.images[2].width == 200
    assert [note[:2] for note in ranked.notes] == ["1 ", "1 "]  # one unreadable, one without a line
    with pytest.raises(UserError, match="size of the image is unknown"):
        external.rank(file, views, None, None, chosen(), 9)
    (photos / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"not among --images.*b\.jpg"):
        external.rank(file, views, None, photos, chosen(), 9)
    (tmp_path / "photos.txt").write_text("photos/b.jpg\n")
    with pytest.raises(UserError, match=r"photos\.txt: none of its images can be read, for example .*b\.jpg: there"):
        external.rank(file, views, None, tmp_path / "photos.txt", chosen(), 9)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        (["nonsense"], "holds no detections"),
        ([HEAD, {"image": "a.jpg"}], 'line 2: there are no "boxes"'),
        (
            [HEAD, {**LINE, "boxes": [[10, 10, 5, 50], [0, 0, 9, 9]]}],
            r"got \[10.0, 10.0, 5.0, 50.0\]; if that is x, y, width",
        ),
        ([HEAD, {**LINE, "boxes": [[10, 10, 50]]}], '"boxes" must be rows of 4 numbers'),
        ([HEAD, {**LINE, "boxes": [[0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.3, 0.9]]}], "not in fractions"),
        ([HEAD, {**LINE, "scores": [0.9]}], 'there are 2 boxes but 1 "scores"'),
        ([HEAD, {**LINE, "scores": [90, 60]}], r"scores must be in \[0, 1\]"),
        ([HEAD, {**LINE, "labels": ["cat", "dgo"]}], "unknown class 'dgo'; did you mean 'dog'"),
        ([HEAD, {**LINE, "labels": [0, 3]}], "class number 3.*0 cat, 1 dog, 2 owl"),
        ([HEAD, {**LINE, "labels": [0, -1]}], "a label is a class name or a number from 0"),
        ([HEAD, {**LINE, "class_probs": [[0.1] * 6] * 2}], "6 numbers, expected 3.*or 4"),
        ([HEAD, {**LINE, "class_probs": [[3, -2, 1]] * 2}], "softmax or sigmoid"),
        ([HEAD, {**LINE, "class_probs": [[0.9, 0, 0, 0.1], [0, 0.6, 0, 0.4]]}], '"background": "last"'),
        ([HEAD, {"image": 1, "boxes": [[0, 0, 9, 9]], "class_probs": [[0.9, 0, 0, 0.1]]}], "where the background is"),
        ([HEAD, LINE, {**LINE, "image": "a.jpg", "class_probs": [[0.9, 0, 0], [0, 0.6, 0]]}], "one form"),
        ([HEAD, LINE, LINE], "line 3: this image is already in .*line 2"),
        ([HEAD, {**LINE, "view": "flip"}], "Give copies with --views"),
        ([HEAD, {**LINE, "labels": None}], 'neither "labels" nor "class_probs"'),
        ([HEAD, {**LINE, "scores": None}], 'neither "scores" nor "class_probs"'),
        ([HEAD, {**LINE, "image": None}], '"image" must be a file name or a number'),
        ([{"classes": ["cat", "cat"]}, LINE], "different names"),
        ([HEAD, {**LINE, "width": "200"}], "width and height must be whole numbers"),
    ],
)
def test_mistakes_in_detections(tmp_path: Path, lines: list[Any], wanted: str) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    with pytest.raises(UserError, match=wanted):
        external.rank(file, None, None, None, chosen(), 9)


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([VIEWS[0]], "a.jpg has the views none"),
        ([*VIEWS, {**VIEWS[1], "view": "colour"}], "others have"),
        ([*VIEWS, VIEWS[0]], "is already in"),
        ([{**line, "view": "cutout"} for line in VIEWS], "does not say where its boxes are"),
        ([{k: v for k, v in line.items() if k != "view"} for line in VIEWS], 'there is no "view"'),
        ([{**line, "matrix": [[1, 0, 0], [2, 0, 0]]} for line in VIEWS], "can be inverted"),
    ],
)
def test_mistakes_in_views(tmp_path: Path, lines: Lines, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        external.rank(write(tmp_path / "d.jsonl", FOUND), write(tmp_path / "v.jsonl", lines), None, None, chosen(), 9)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[{"image_id": 1}]', "result 1: a COCO result has"),
        (json.dumps(RESULTS)[:-30], "result 3: not valid JSON"),
        (json.dumps(RESULTS)[:-1], "after result 3: a comma or bracket is missing"),
        (json.dumps([{**RESULTS[0], "bbox": [1, 2, 3]}]), "four numbers"),
        (json.dumps([{**RESULTS[0], "category_id": 77}]), "category 77"),
        (json.dumps([{**RESULTS[0], "image_id": 77}]), "not among --images"),
    ],
)
def test_mistakes_in_coco_results(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "r.json").write_text(text)
    (tmp_path / "coco.json").write_text(json.dumps(COCO))
    with pytest.raises(UserError, match=wanted):
        external.rank(tmp_path / "r.json", None, None, tmp_path / "coco.json", chosen(), 9)


@pytest.mark.parametrize("strategy", ["image_cald", "coreset", "class_balance"])
def test_strategies_that_cannot_be_used(tmp_path: Path, strategy: str) -> None:
    with pytest.raises(UserError, match="class_balanced"):
        external.rank(write(tmp_path / "d.jsonl", FOUND), None, None, None, chosen(strategy), 9)


def test_names_that_may_be_two_images(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}/b.jpg", "width": 200, "height": 100} for n in (1, 2)]
    (tmp_path / "coco.json").write_text(json.dumps({**COCO, "images": images}))
    with pytest.raises(UserError, match=r"1/b\.jpg or .*2/b\.jpg"):
        external.rank(write(tmp_path / "d.jsonl", [LINE]), None, None, tmp_path / "coco.json", chosen(), 9)
    whole = write(tmp_path / "d.jsonl", [{**LINE, "image": "2/b.jpg"}])
    ranked = external.rank(whole, None, None, tmp_path / "coco.json", chosen(), 9)
    assert {q.image_id for q in ranked.queries} == {2}


def test_many_boxes_are_ranked_in_little_memory(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    with (tmp_path / "r.json").open("w") as file:
        file.write("[")
        for number in range(10_000):
            x, y = (dice.random(2) * 1000).round(1).tolist()
            score = round(float(dice.uniform(0.1, 1)), 3)
            entry = {"image_id": number // 20, "category_id": number % 80, "bbox": [x, y, 50, 50], "score": score}
            file.write(("," if number else "") + json.dumps(entry))
        file.write("]")
    tracemalloc.start()
    ranked = external.rank(tmp_path / "r.json", None, None, None, chosen(), 100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ranked.candidates > 9_000
    assert peak < 10_000 * 600  # bytes a box, the text of a result alone has about 100


def test_ranking_starts_without_torch_and_learning_libraries(tmp_path: Path) -> None:
    write(tmp_path / "d.jsonl", FOUND)
    script = (
        "import sys; from rarebox.cli.main import main\n"
        "try: main()\nexcept SystemExit as left: assert not left.code\n"
        "assert not {'torch', 'sklearn', 'matplotlib'} & sys.modules.keys()\n"
    )
    words = ["rank", "--detections", str(tmp_path / "d.jsonl"), "--budget", "2", "--to", str(tmp_path / "out.csv")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Eq. 2" in done.stderr  # loudly
    table = (tmp_path / "out.csv").read_text().splitlines()
    assert table[0].startswith("rank,image,image_id,x1")
    assert [line.split(",")[1] for line in table[1:]] == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"width": 100, "height": 50}, "the copy has 200 x 100 pixels, and the line says 100 x 50"),
        ({"undone": True, "width": 100, "height": 50}, "the image has 200 x 100 pixels"),
        ({"view": "scale_0.8", "width": 200, "height": 100}, "the copy has 160 x 80 pixels"),
        ({"undone": "false"}, '"undone" must be true or false'),
        ({"view": 5}, '"view" must be the name'),
        ({"width": True, "height": True}, "width and height must be whole numbers"),
        ({"scores": [True]}, '"scores" must hold numbers'),
        ({"boxes": [["10", "10", "50", "50"]]}, '"boxes" must hold numbers'),
    ],
)
def test_sizes_and_flags_of_copies_are_checked(tmp_path: Path, change: dict[str, Any], wanted: str) -> None:
    one = {"boxes": [[10, 10, 50, 50]], "scores": [0.9], "labels": ["cat"]}
    file = write(tmp_path / "d.jsonl", [HEAD, {**FOUND[1], **one}])
    view = {"image": FOUND[1]["image"], "view": "flip", **one, **change}
    with pytest.raises(UserError, match=wanted):
        external.rank(file, write(tmp_path / "v.jsonl", [view]), None, None, chosen(), 1)


def test_two_first_lines_with_other_classes_are_refused(tmp_path: Path) -> None:
    lines = [HEAD, FOUND[1], {"classes": HEAD["classes"][::-1]}]
    with pytest.raises(UserError, match="line 3: another line gives other classes"):
        external.rank(write(tmp_path / "d.jsonl", lines), None, None, None, chosen(), 1)
    lines[2] = HEAD
    assert external.rank(write(tmp_path / "d.jsonl", lines), None, None, None, chosen(), 1).queries


@pytest.mark.parametrize(("classes", "wanted"), [(["dog", "cat"], "names the classes"), (["cat", "cat"], "twice")])
def test_classes_that_contradict_the_file_are_refused(tmp_path: Path, classes: list[str], wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        external.rank(write(tmp_path / "d.jsonl", FOUND), None, None, None, chosen(), 1, classes=classes)
