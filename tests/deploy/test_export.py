"""`rarebox export-model`: the same boxes in ONNX Runtime and TorchScript as in the detector, for any size of image."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

import rarebox
from rarebox import detectors
from rarebox.cli import main
from rarebox.config import TrainingSettings
from rarebox.core.files import write_json
from rarebox.data.model_card import JSON, read_card
from rarebox.deploy.card import card_of
from rarebox.deploy.export import export_model
from rarebox.deploy.model import open_model
from rarebox.deploy.train import train
from rarebox.detectors import TorchDetector, export
from rarebox.detectors.export import OUTPUTS, as_onnx, as_torchscript
from rarebox.errors import UserError
from rarebox.loop import simulate
from tests import tiny, tiny_dfine
from tests.small import enliven

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.load`:FutureWarning")

SIZES = [(64, 64), (48, 80), (211, 100), (20, 150)]
"""Heights and widths: kept, enlarged, reduced, and with much padding."""

Outputs = Sequence[Any]


def noise(height: int, width: int) -> NDArray[np.uint8]:
    dice = np.random.default_rng(height)
    coarse = dice.integers(0, 255, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width])


def in_onnxruntime(content: bytes) -> Callable[[NDArray[np.uint8]], Outputs]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})


def in_torchscript(content: bytes) -> Callable[[NDArray[np.uint8]], Outputs]:
    loaded = torch.jit.load(io.BytesIO(content))
    return lambda image: [column.numpy() for column in loaded(torch.from_numpy(image))]


def assert_same(detector: TorchDetector, image: NDArray[np.uint8], found: Outputs) -> int:
    """Compare with the detector's own boxes, and return how many there are."""
    (expected,) = detector.predict([image])
    boxes, scores, labels = found
    assert [column.dtype for column in found] == [np.float32, np.float32, np.int64]
    np.testing.assert_array_equal(labels, expected.labels)
    np.testing.assert_allclose(boxes, expected.boxes, rtol=0, atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-3)
    return len(labels)


def make(name: str, **settings: object) -> TorchDetector:
    """A tiny detector for three classes with lively random weights."""
    if name == "dfine":
        with tiny_dfine.installed():
            return tiny_dfine.make(**settings)
    fixed = {"image_size": 64, "weights": "none", "device": "cpu", "seed": 3}
    exact = TrainingSettings(precision="float32")
    with tiny.small_network():
        return enliven(detectors.build(name, 3, training=exact, **{**fixed, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn", "dfine"])
def test_onnxruntime_finds_the_detectors_own_boxes(name: str) -> None:
    detector = make(name)
    before = {name: tensor.clone() for name, tensor in detector.network.state_dict().items()}
    about = {"classes": ["cat", "dog", "owl"]}
    content = as_onnx(detector, about)
    run = in_onnxruntime(content)
    assert max(assert_same(detector, noise(*size), run(noise(*size))) for size in SIZES) > 10
    assert all(torch.equal(before[name], tensor) for name, tensor in detector.network.state_dict().items())
    assert any(weight.requires_grad for weight in detector.network.parameters())  # it can still be trained
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model)
    assert {one.key: json.loads(one.value) for one in model.metadata_props} == about
    assert [[d.dim_param for d in one.type.tensor_type.shape.dim] for one in model.graph.input] == [
        ["height", "width", ""]
    ]
    assert [one.name for one in model.graph.output] == OUTPUTS


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_torchscript_finds_the_detectors_own_boxes(name: str) -> None:
    detector, about = make(name), {"classes": ["cat", "dog", "owl"]}
    script = as_torchscript(detector, about)
    run = in_torchscript(script)
    assert max(assert_same(detector, noise(*size), run(noise(*size))) for size in SIZES) > 10
    files = {"classes.json": ""}
    torch.jit.load(io.BytesIO(script), _extra_files=files)
    assert json.loads(files["classes.json"]) == about["classes"]


def test_an_image_without_detections_has_none() -> None:
    content = as_onnx(make("faster_rcnn", score_threshold=0.9999), {}, (64, 96))
    assert [column.shape for column in in_onnxruntime(content)(noise(64, 96))] == [(0, 4), (0,), (0,)]
    (given,) = onnx.load_from_string(content).graph.input
    assert [d.dim_value for d in given.type.tensor_type.shape.dim] == [64, 96, 3]


# ------------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one cycle, and beside it a final model of the same labels."""
    root = tmp_path_factory.mktemp("export")
    settings = tiny.settings(tiny.make_data(root / "scenes"), budget=[], training__steps=2)
    with tiny.small_network():
        simulate.simulate(root / "run", settings)
        train(root / "scenes", root / "model", settings)
    return root


def test_a_model_is_exported_with_its_card(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "new" / "m.onnx"
    monkeypatch.setattr(sys, "argv", ["rarebox", "export-model", str(trained / "model"), "--to", str(to)])
    with tiny.small_network(), pytest.raises(SystemExit) as left:
        main.main()
    assert not left.value.code
    card = read_card(trained / "model" / JSON)
    assert read_card(to.with_name("m.onnx.json")) == card
    assert "any size" in to.with_name("m.onnx.md").read_text()
    told = {one.key: json.loads(one.value) for one in onnx.load(to).metadata_props}
    assert told["classes"] == [one.name for one in card.classes]
    assert told["thresholds"] == [one.threshold for one in card.classes]
    with tiny.small_network():
        detector = detectors.load(trained / "model", "cpu", TrainingSettings(precision="float32"))
    assert_same(detector, noise(96, 96), in_onnxruntime(to.read_bytes())(noise(96, 96)))
    script = rarebox.export_model
    with tiny.small_network(), pytest.raises(UserError, match="exists already"):
        script(trained / "model", to)
    (tmp_path / "labels.json").write_text("of somebody")
    with tiny.small_network(), pytest.raises(UserError, match=r"labels\.json exists already"):
        script(trained / "model", tmp_path / "labels", format="torchscript")
    with tiny.small_network():
        assert script(trained / "run", tmp_path / "m.pt", size="96x64") == tmp_path / "m.pt"
    assert "height x width: 64 x 96" in (tmp_path / "m.pt.md").read_text()


def test_a_final_model_inside_a_run_has_its_own_classes(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    shutil.copytree(trained / "model", run / "final")
    about = json.loads((run / "final" / "model.json").read_text())
    names = about["classes"][::-1]
    write_json(run / "final" / "model.json", {**about, "classes": names})
    assert open_model(run / "final").names == tuple(names) != open_model(run).names


def test_the_card_of_a_run_comes_from_its_records(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "run", tmp_path / "run"))
    card, record = card_of(open_model(run)), json.loads((run / "metrics.json").read_text())[-1]
    assert (card.ap50, card.coco_ap, card.complete) == (record["ap50"], record["coco_ap"], record["images_full"])
    assert {one.name: one.objects for one in card.classes} == record["human_per_class"]
    assert (card.training["steps"], card.seed, card.test) == (2, 0, 5)
    told = json.loads((run / "cycle_01" / "evaluated.json").read_text())
    assert [one.test_objects for one in card.classes] == told["objects"]
    del told["objects"]  # a run of an earlier version
    write_json(run / "cycle_01" / "evaluated.json", told)
    card = card_of(open_model(run))
    assert (card.ap50, card.test, card.tested_on) == (None, 0, "nothing is recorded")
    shutil.copytree(run / "cycle_01", tmp_path / "alone")
    alone = card_of(open_model(tmp_path / "alone"))
    assert (alone.detector["name"], alone.training, alone.complete) == ("retinanet", {}, None)


@pytest.mark.parametrize(
    ("to", "format", "size", "wanted"),
    [
        ("m", None, None, "does not say which format"),
        ("m.onnx", "onxx", None, "did you mean 'onnx'"),
        ("m.onnx", None, "640", "such as 640x480, got '640'"),
        ("m.onnx", None, "8x640", "from 16 to 16384 pixels"),
        ("labels.sqlite.onnx", None, "64x64", "is a database"),
    ],
)
def test_what_cannot_be_exported_is_explained(
    trained: Path, tmp_path: Path, to: str, format: str | None, size: str | None, wanted: str
) -> None:
    with tiny.small_network(), pytest.raises(UserError, match=wanted):
        export_model(trained / "model", tmp_path / to, format, size)
    assert not list(tmp_path.iterdir())


def test_the_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "rarebox\[onnx\]"'):
        as_onnx(make("retinanet"), {})
