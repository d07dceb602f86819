"""`rarebox train`: what is trained on and what measures it, resuming, and nothing overwritten."""

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rarebox
from rarebox import config
from rarebox.cli import main
from rarebox.config import Settings
from rarebox.core.progress import silent
from rarebox.data.contents import Contents
from rarebox.data.model_card import JSON, PAGE, ModelCard, class_cards, read_card
from rarebox.deploy import train as training
from rarebox.deploy.labels import read_labels
from rarebox.deploy.model import open_model
from rarebox.deploy.train import WORK, train
from rarebox.detectors import TorchDetector
from rarebox.detectors.detector import WEIGHTS
from rarebox.errors import Damaged, UserError
from rarebox.types import Source, Targets
from tests.tiny import CHANGES, as_options, make_data

pytestmark = pytest.mark.usefixtures("small_network")

QUICK = {**CHANGES, "training.steps": 3, "pseudo.method": "ignore_only", "scoring.views": ["flip"]}


def quick(**changes: Any) -> Settings:
    return config.resolve("laptop", None, {**QUICK, **{n.replace("__", "."): v for n, v in changes.items()}})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("scenes") / "scenes")


@pytest.fixture
def data(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the data set, to be changed."""
    return Path(shutil.copytree(scenes, tmp_path / "data"))


def change(data: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    """Edit the training labels of a data set."""
    content = json.loads((data / "train.json").read_text())
    edit(content)
    (data / "train.json").write_text(json.dumps(content))


def make_partial(data: Path, first: int = 8) -> set[int]:
    """Leave one box on each image from the given place on, and mark these images as partial. Return their ids."""
    ids: set[int] = set()

    def edit(content: dict[str, Any]) -> None:
        ids.update(image["id"] for image in content["images"][first:])
        for image in content["images"]:
            image["attributes"] = {"complete": image["id"] not in ids}
        kept, seen = [], set[int]()
        for one in content["annotations"]:
            if one["image_id"] not in seen:
                kept.append(one)
            seen |= {one["image_id"]} & ids
        content["annotations"] = kept

    change(data, edit)
    return ids


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The images, targets and further arguments of every fit."""
    seen: list[dict[str, Any]] = []
    fit = TorchDetector.fit

    def watched(self: TorchDetector, images: Any, targets: Any, **more: Any) -> float:
        seen.append({"ids": [record.id for record in images.records], "targets": targets, **more})
        return fit(self, images, targets, **more)

    monkeypatch.setattr(TorchDetector, "fit", watched)
    return seen


def test_a_detector_of_complete_labels_has_a_card_and_predicts(
    data: Path, tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    card = train(data, tmp_path / "model", quick())
    assert len(fits) == 1
    assert fits[0]["complete"].all()
    assert fits[0]["renewal"] is None
    assert (card.complete, card.partial, card.test, card.tested_on) == (14, 0, 5, "the test images")
    assert sum(one.objects or 0 for one in card.classes) == sum(len(one) for one in fits[0]["targets"])
    assert sum(one.test_objects or 0 for one in card.classes) == len(
        json.loads((data / "test.json").read_text())["annotations"]
    )
    assert card == read_card(tmp_path / "model" / JSON)
    model = open_model(tmp_path / "model")
    assert model.classes == tuple(one.name for one in card.classes)
    assert model.sha256 == card.sha256
    assert not (tmp_path / "model" / WORK).exists()
    page = (tmp_path / "model" / PAGE).read_text()
    assert "14 fully and 0 partially labelled images of data" in page
    done = rarebox.predict(tmp_path / "model", data / "images", tmp_path / "found", pictures=False)
    assert done.images == 19


def test_partial_images_get_pseudo_labels_of_a_detector_that_saw_complete_ones_only(
    data: Path, tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    incomplete = make_partial(data)
    card = train(data, tmp_path / "model", quick(pseudo__class_low=0.0))  # the scores of this detector are low
    first, final = fits
    assert (card.complete, card.partial) == (8, 6)
    assert not incomplete & {*first["ids"]}
    assert {*final["ids"]} == {*first["ids"]} | incomplete
    assert {i for i, whole in zip(final["ids"], final["complete"], strict=True) if not whole} == incomplete
    assert final["renewal"] is not None
    for image_id, target in zip(final["ids"], final["targets"], strict=True):
        human = target.source == Source.HUMAN
        assert (human.sum() == 1) if image_id in incomplete else human.all()
    guessed = [t for i, t in zip(final["ids"], final["targets"], strict=True) if i in incomplete]
    assert sum((t.source == Source.PSEUDO).sum() for t in guessed) > 0


def test_only_partial_labels_train_too_and_are_not_measured(
    data: Path, tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    (data / "test.json").unlink()
    card = train(data, tmp_path / "model", quick(), partial=True)
    assert [len(fit["ids"]) for fit in fits] == [14, 14]
    assert (card.complete, card.partial, card.test, card.ap50) == (0, 14, 0, None)
    assert not card.measured
    assert not open_model(tmp_path / "model").measured
    assert "Not measured" in (tmp_path / "model" / PAGE).read_text()


def test_a_fifth_of_the_complete_images_is_held_out_and_never_trained_on(data: Path) -> None:
    (data / "test.json").unlink()
    incomplete = make_partial(data, first=10)
    found = read_labels(data, 0, True, False, silent)
    held = {image.id for image in found.test}
    assert (found.held_out, len(held)) == (True, 2)
    assert not held & ({image.id for image in found.images} | {*found.said} | incomplete)
    assert not read_labels(data, 0, False, False, silent).test
    make_partial(data, first=4)
    assert not read_labels(data, 0, True, False, silent).test  # too few to spare one


def test_the_only_image_with_an_object_is_not_held_out(data: Path) -> None:
    (data / "test.json").unlink()
    held = {image.id for image in read_labels(data, 0, True, False, silent).test}
    change(
        data,
        lambda content: content.update(annotations=[one for one in content["annotations"] if one["image_id"] in held]),
    )
    found = read_labels(data, 0, True, False, silent)
    assert (len(found.images), found.test, found.held_out) == (14, (), False)


def test_what_people_rejected_ignored_and_did_not_draw(data: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        rejected, pseudo, crowd, *_ = [one for one in content["annotations"] if one["image_id"] == first["id"]]
        rejected["attributes"] = {"source": "rejected"}
        pseudo["attributes"] = {"source": "pseudo"}
        crowd["iscrowd"] = 1

    content = json.loads((data / "train.json").read_text())
    counts = [one["image_id"] for one in content["annotations"]]
    first = next(image for image in content["images"] if counts.count(image["id"]) >= 4)
    before = read_labels(data, 0, True, False, silent)
    change(data, edit)
    after = read_labels(data, 0, True, False, silent)
    said, number = after.said[first["id"]], first["id"]
    assert len(said.boxes) == len(before.said[number].boxes) - 3
    assert (len(said.rejected), len(after.difficult[number]), said.complete) == (1, 1, False)
    assert before.fingerprint(Contents()) != after.fingerprint(Contents())


def test_test_images_that_are_partial_do_not_measure(data: Path) -> None:
    content = json.loads((data / "test.json").read_text())
    content["images"][0]["attributes"] = {"complete": False}
    (data / "test.json").write_text(json.dumps(content))
    found = read_labels(data, 0, True, False, silent)
    assert (len(found.test), found.held_out, found.skipped) == (4, False, 1)


def test_an_interrupted_training_resumes_with_the_same_result(
    data: Path, tmp_path: Path, fits: list[dict[str, Any]]
) -> None:
    make_partial(data)
    settings = quick(training__checkpoint_seconds=0)
    train(data, tmp_path / "whole", settings)
    fits.clear()

    def stop_in(wanted: str, stage: str, done: int, of: int, note: str) -> None:
        if stage == wanted and done == 2:
            raise KeyboardInterrupt

    for stage in ("train a first detector", "train"):
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "model", settings, progress=partial(stop_in, stage))
        with pytest.raises(UserError, match="holds no model"):
            open_model(tmp_path / "model")
    train(data, tmp_path / "model", settings)
    assert [len(fit["ids"]) for fit in fits] == [8, 8, 14, 14]
    for name in (WEIGHTS, "evaluated.json"):
        assert (tmp_path / "model" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_training_that_was_stopped_while_it_measured_does_not_train_again(
    data: Path, tmp_path: Path, fits: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(training, "measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "model", quick())
    train(data, tmp_path / "model", quick())
    assert len(fits) == 1


def test_nothing_is_overwritten(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_fit(*_: Any, **__: Any) -> None:
        raise UserError("stopped")

    monkeypatch.setattr(TorchDetector, "fit", no_fit)
    with pytest.raises(UserError, match="stopped"):
        train(data, tmp_path / "model", quick())
    with pytest.raises(UserError, match=r"another model.*\n  training\.lr: 0\.003 -> 0\.01"):
        train(data, tmp_path / "model", quick(training__lr=0.01))
    with pytest.raises(UserError, match="stopped"):  # the device and the place of the data may change
        train(Path(shutil.copytree(data, tmp_path / "moved" / "data")), tmp_path / "model", quick(device="auto"))
    photo = next((data / "images").iterdir())
    pixels = photo.read_bytes()
    Image.open(photo).transpose(Image.Transpose.ROTATE_180).save(photo)
    with pytest.raises(UserError, match="the labels or images have changed"):
        train(data, tmp_path / "model", quick())
    photo.write_bytes(pixels)
    with pytest.raises(UserError, match="stopped"):
        train(data, tmp_path / "model", quick())
    make_partial(data)
    with pytest.raises(UserError, match="the labels or images have changed"):
        train(data, tmp_path / "model", quick())
    (tmp_path / "model" / WEIGHTS).write_bytes(b"weights")
    with pytest.raises(UserError, match="holds a trained model already"):
        train(data, tmp_path / "model", quick())
    with pytest.raises(UserError, match="is not empty"):
        train(data, data, quick())
    with pytest.raises(UserError, match="is a file"):
        train(data, data / "train.json", quick())


def test_labels_without_a_box_of_a_person_are_refused(data: Path, tmp_path: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for one in content["annotations"]:
            one["attributes"] = {"source": "pseudo"}

    change(data, edit)
    with pytest.raises(UserError, match="no image has a box that a person has drawn"):
        train(data, tmp_path / "model", quick())
    assert not (tmp_path / "model").exists()


def test_a_final_training_is_longer_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("training: {epochs: 3}\n")
    longer = {preset: config.resolve(preset, final=True).training.epochs for preset in config.PRESETS}
    assert longer == {"laptop": 30, "paper": 26, "dfine": 30}
    assert config.resolve("laptop").training.epochs == 10
    assert config.resolve("laptop", tmp_path / "s.yaml", final=True).training.epochs == 3
    assert config.resolve("laptop", None, {"training.epochs": 5}, final=True).training.epochs == 5


@pytest.mark.parametrize("as_json", [True, False])
def test_the_command_and_python_make_the_same_model(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    words = ["rarebox", "train", str(data), "--to", str(tmp_path / "a"), *as_options(training__steps=3)]
    monkeypatch.setattr(sys, "argv", [*words, *["--json"] * as_json])
    with pytest.raises(SystemExit) as left:
        main.main()
    assert not left.value.code
    out = capsys.readouterr().out.splitlines()
    if not as_json:
        assert out == [
            f"{tmp_path / 'a'}: trained on 14 fully and 0 partially labelled images. Its card: {tmp_path / 'a' / PAGE}"
        ]
        return
    told = json.loads(out[-1])
    settings = config.resolve("laptop", None, {**CHANGES, "training.steps": 3})
    card = rarebox.train(data, tmp_path / "b", settings=settings)
    assert told["sha256"] == card.sha256
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()


# ------------------------------------------------------------------------------------------- the card


def card(**fields: Any) -> ModelCard:
    few = class_cards(["cat|dog", "owl"], objects=[3, 4], test_objects=[30, 5], f1=[0.5, 0.25], own=[True, False])
    given: dict[str, Any] = {
        "name": "*m*",
        "rarebox": "0",
        "data": "labels",
        "classes": few,
        "complete": 3,
        "partial": 2,
        "test": 4,
        "tested_on": "the test images",
        "ap50": 0.5,
        "ap50_interval": (0.25, 0.75),
        "coco_ap": 0.3,
        "detector": {"name": "retinanet", "backbone": "resnet50"},
        "training": {"lr": 0.1},
        "pseudo": {},
        "seed": 0,
        "sha256": "00",
    }
    return ModelCard(**{**given, **fields})


def test_the_page_of_a_card_says_how_sure_it_is(tmp_path: Path) -> None:
    page = card().as_page({})
    assert "AP50 0.500 (95 % interval 0.250 to 0.750), COCO AP 0.300 on 4 images: the test images." in page
    assert "# \\*m\\*" in page
    assert "| cat\\|dog | 3 | 30 | – | 0.50 | 0.500 |" in page
    assert "| owl | 4 | 5 | – | 0.50 (all classes) | 0.250 |" in page
    assert "1 class has too few test objects" in page
    assert "only 35 test objects" in page
    unknown = card(classes=class_cards(["owl"]), ap50=None, ap50_interval=None, coco_ap=None, complete=None)
    assert "Not measured" in unknown.as_page({})
    assert "0.5 is a guess" in unknown.as_page({})


def test_a_card_comes_back_as_it_was_written(tmp_path: Path) -> None:
    card().write(tmp_path / JSON, tmp_path / PAGE, {"format": "onnx"})
    assert json.loads((tmp_path / JSON).read_text())["export"] == {"format": "onnx"}
    assert "| format | onnx |" in (tmp_path / PAGE).read_text()
    assert read_card(tmp_path / JSON) == card()
    (tmp_path / JSON).write_text('{"name": 3}')
    with pytest.raises(Damaged):
        read_card(tmp_path / JSON)


def test_targets_of_rejected_boxes_are_background(data: Path, tmp_path: Path, fits: list[dict[str, Any]]) -> None:
    def edit(content: dict[str, Any]) -> None:
        content["annotations"][0]["attributes"] = {"source": "rejected"}

    change(data, edit)
    train(data, tmp_path / "model", quick(training__steps=1))
    together: list[Targets] = fits[0]["targets"]
    assert np.concatenate([t.background[t.source == Source.REJECTED] for t in together]).tolist() == [True]
