"""Detectors that start from torchvision's COCO weights, or from another detector."""

import threading
from collections.abc import Callable
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection as stock

from rarebox import config, detectors
from rarebox.config import DetectorSettings, TrainingSettings
from rarebox.detectors import TorchDetector, start, weights
from rarebox.detectors.architectures import ARCHITECTURES, LIGHT
from rarebox.detectors.start import choose
from rarebox.detectors.weights import Source, WeightsUnavailable, same_classes
from rarebox.errors import UserError
from rarebox.loop import simulate
from rarebox.loop.run_folder import RunFolder
from rarebox.types import Picture
from tests import tiny
from tests.detectors.test_detectors import as_tensor, run

STOCK: dict[tuple[str, str], tuple[Callable[..., nn.Module], Any]] = {
    ("faster_rcnn", "resnet50"): (stock.fasterrcnn_resnet50_fpn, stock.FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
    ("faster_rcnn", "resnet50_v2"): (
        stock.fasterrcnn_resnet50_fpn_v2,
        stock.FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
    ),
    ("faster_rcnn", "mobilenet_v3_large"): (
        stock.fasterrcnn_mobilenet_v3_large_fpn,
        stock.FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1,
    ),
    ("faster_rcnn", "mobilenet_v3_large_320"): (
        stock.fasterrcnn_mobilenet_v3_large_320_fpn,
        stock.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights.COCO_V1,
    ),
    ("retinanet", "resnet50"): (stock.retinanet_resnet50_fpn, stock.RetinaNet_ResNet50_FPN_Weights.COCO_V1),
    ("retinanet", "resnet50_v2"): (stock.retinanet_resnet50_fpn_v2, stock.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1),
}
"""torchvision's detectors and their COCO weights."""

LIKE_OTHERS = (("faster_rcnn", "resnet50_v2"), ("faster_rcnn", "mobilenet_v3_large"))
"""Each of their parts is in another of these detectors: v2's in RetinaNet, MobileNet's in the one for small images."""


def old_names(name: str) -> str:
    """A tensor's name in the files of torchvision's first detectors."""
    if ".conv." not in name or not name.startswith(("head.", "rpn.")):
        return name
    before, after = name.split(".conv.")
    place, _, kind = after.split(".")
    return f"{before}.conv.{kind}" if name.startswith("rpn.") else f"{before}.conv.{2 * int(place)}.{kind}"


def level(tensor: Tensor) -> float:
    """The root mean square."""
    return float(tensor.square().mean().sqrt())


@torch.no_grad()
def drawn(make: Callable[..., nn.Module]) -> Any:
    """torchvision's network with random weights and varied outputs of ordinary size."""
    torch.manual_seed(7)
    network: Any = make(weights=None, weights_backbone=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    maps = list(network.backbone(torch.randn(1, 3, 64, 64)).values())
    for block in network.backbone.fpn.layer_blocks:
        block[0].weight /= level(maps[0])
    like_maps = torch.randn(4, 256, 7, 7)
    if hasattr(network, "head"):
        head = network.head
        size = level(head.classification_head.conv(like_maps)) * 48
        head.classification_head.cls_logits.weight.normal_(0, 1.5 / size)
        head.classification_head.cls_logits.bias.fill_(-3)
        head.regression_head.bbox_reg.weight.normal_(0, 0.01)
    else:
        network.rpn.head.cls_logits.weight.normal_(0, 0.1)
        size = level(network.roi_heads.box_head(like_maps)) * 32
        network.roi_heads.box_predictor.cls_score.weight.normal_(0, 2 / size)
        network.roi_heads.box_predictor.bbox_pred.weight.normal_(0, 1 / size)
    return network


def coco_file(key: tuple[str, str], home: Path) -> Path:
    """Put a file of random weights where torch looks for torchvision's, in torchvision's own format."""
    make, weights = STOCK[key]
    saved = {name: t for name, t in drawn(make).state_dict().items() if "num_batches" not in name}
    if key[1] == "resnet50":
        saved = {old_names(name): tensor for name, tensor in saved.items()}
    file = home / "hub" / "checkpoints" / weights.url.rsplit("/", 1)[1]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(saved, file)
    return file


def build(key: tuple[str, str], num_classes: int, weights: str, **settings: Any) -> TorchDetector:
    exact = TrainingSettings(precision="float32")
    given = {"image_size": 64, "long_side": 96, "device": "cpu", "seed": 3, "training": exact, **settings}
    return detectors.build(key[0], num_classes, key[1], weights=weights, **given)


# ------------------------------------------------------------------------------------------- parity


@pytest.mark.parametrize(
    "key",
    [pytest.param(key, marks=pytest.mark.exhaustive if key in LIKE_OTHERS else ()) for key in STOCK],
    ids="-".join,
)
def test_detections_with_the_stock_file_are_torchvisions_own(
    key: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, pictures: list[Picture]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file, first = coco_file(key, tmp_path), int(key[0] == "faster_rcnn")
    make, weights = STOCK[key]
    few = {"box_detections_per_img": 100} if first else {"detections_per_img": 100}
    theirs: Any = make(weights=weights, min_size=64, max_size=96, **few).eval()
    images = [as_tensor(p) for p in pictures]
    network: Any = build(key, 91 - first, "coco").network
    if key == ("faster_rcnn", "resnet50_v2"):  # its box head is slow
        for proposals in (theirs.rpn, network.rpn):
            proposals._post_nms_top_n["testing"] = 50
    wanted = run(theirs, [image / 255 for image in images])
    for ours, one in zip(run(network, images), wanted, strict=True):
        assert len(ours["scores"]) > 5
        assert ours["scores"] == pytest.approx(one["scores"], abs=1e-5)
        assert ours["boxes"] == pytest.approx(one["boxes"], rel=1e-5, abs=1e-3)
        assert ours["labels"].tolist() == (one["labels"] - first).tolist()
        assert len(set(ours["labels"].tolist())) > 1
    from_file = build(key, 91 - first, str(file)).network.state_dict()
    assert all(tensor.equal(from_file[name]) for name, tensor in network.state_dict().items())


def test_every_architecture_is_listed_with_torchvisions_weights_and_each_name_has_a_light_one() -> None:
    ours = {key for key, kind in ARCHITECTURES.items() if "coco" in kind.starts and not kind.library}
    assert ours == STOCK.keys()
    for key, (_, published) in STOCK.items():
        assert ARCHITECTURES[key].starts["coco"].url == published.url
    assert {(name, backbone) for name, several in LIGHT.items() for backbone in several} <= ARCHITECTURES.keys()
    assert {name for name, _ in ARCHITECTURES} == LIGHT.keys()


# ------------------------------------------------------------------------------------------- rows of the class layers


def test_names_match_ignoring_case_and_spaces_and_na_matches_none() -> None:
    theirs = ["__background__", "person", "N/A", "traffic light", "N/A"]
    assert same_classes(["__background__", " Traffic  Light", "fish", "N/A", "PERSON"], theirs) == [
        (0, 0),
        (1, 3),
        (4, 1),
    ]


@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet"])
def test_coco_classes_keep_their_rows_and_others_start_random(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    key = (name, "mobilenet_v3_large_320" if name == "faster_rcnn" else "resnet50_v2")
    saved = torch.load(coco_file(key, tmp_path), weights_only=True)
    own = build(key, 3, "coco", classes=("fish", "Car", "person")).network.state_dict()
    fresh = build(key, 3, "none").network.state_dict()
    layers = {
        # torchvision's numbers: car is 3, person 1
        "faster_rcnn": {"roi_heads.box_predictor.cls_score": (1, 4, 1), "roi_heads.box_predictor.bbox_pred": (1, 4, 4)},
        "retinanet": {"head.classification_head.cls_logits": (9, 3, 1)},
    }[name]
    rows = {0: 0, 2: 3, 3: 1} if name == "faster_rcnn" else {1: 3, 2: 1}
    new = 1 if name == "faster_rcnn" else 0
    for layer, (groups, count, each) in layers.items():
        for kind in ("weight", "bias"):
            there = saved[f"{layer}.{kind}"].reshape(groups, 91, each, -1)
            here, drawn_here = (s[f"{layer}.{kind}"].reshape(groups, count, each, -1) for s in (own, fresh))
            for row, other in rows.items():
                assert here[:, row].equal(there[:, other])
            assert here[:, new].equal(drawn_here[:, new])
    others = [n for n in own if n.rsplit(".", 1)[0] not in layers and "num_batches" not in n]
    assert all(own[n].equal(saved[n]) for n in others)


# ------------------------------------------------------------------------------------------- the start

LAPTOP = config.resolve().detector
LIGHT_COCO = ("faster_rcnn", "mobilenet_v3_large_320")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch"


def put(home: Path, content: bytes = b"weights") -> Path:
    """A file at the path of the light COCO weights."""
    place = ARCHITECTURES[LIGHT_COCO].starts["coco"].place
    assert place.is_relative_to(home)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return place


def test_laptop_starts_from_coco_if_available_and_otherwise_says_how_to_get_it(home: Path, no_network: None) -> None:
    lacking = choose(LAPTOP)
    assert (lacking.backbone, lacking.weights) == ("efficientnet_lite0", "imagenet")
    source = ARCHITECTURES[LIGHT_COCO].starts["coco"]
    for part in (source.url, str(source.place), "no route to host", "fewer objects"):
        assert part in lacking.note
    assert "\n" not in lacking.note
    assert lacking.note.count(". ") == 1  # what it costs, and how to get the file
    place = put(home)
    there = choose(LAPTOP)
    assert (there.backbone, there.weights, there.file, there.note) == (LIGHT_COCO[1], "coco", str(place), "")
    assert there.sha256 == weights.checksum(place)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"weights": "imagenet"}, ("efficientnet_lite0", "imagenet")),
        ({"weights": "none"}, ("efficientnet_lite0", "none")),
        ({"name": "retinanet"}, ("efficientnet_lite0", "imagenet")),
        ({"backbone": "efficientnet_lite0"}, ("efficientnet_lite0", "imagenet")),
        ({"backbone": "resnet50"}, ("efficientnet_lite0", "imagenet")),
    ],
)
def test_auto_asks_for_no_file_that_is_not_needed(
    changes: dict[str, str], wanted: tuple[str, str], home: Path, no_network: None
) -> None:
    chosen = choose(LAPTOP.model_copy(update=changes))
    assert (chosen.backbone, chosen.weights) == wanted
    assert bool(chosen.note) == (changes == {"backbone": "resnet50"})


def test_coco_by_name_is_not_replaced(home: Path, no_network: None) -> None:
    with pytest.raises(WeightsUnavailable, match=r"put the file at .*mobilenet_v3_large_320_fpn-907ea3f9.pth"):
        choose(LAPTOP.model_copy(update={"weights": "coco"}))
    with pytest.raises(UserError, match="no coco weights for retinanet on efficientnet_lite0"):
        choose(LAPTOP.model_copy(update={"weights": "coco", "name": "retinanet"}))


def test_a_file_of_torchvisions_brings_its_backbone(tmp_path: Path) -> None:
    file = tmp_path / ARCHITECTURES[LIGHT_COCO].starts["coco"].place.name
    file.write_bytes(b"weights")
    assert choose(LAPTOP.model_copy(update={"weights": str(file)})).backbone == LIGHT_COCO[1]


def test_a_server_that_does_not_answer_is_abandoned(
    home: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    held = threading.Event()
    monkeypatch.setattr(weights, "TIMEOUT", 0.05)
    monkeypatch.setattr(weights, "urlopen", lambda *_, **__: held.wait())
    try:
        assert "no answer" in choose(LAPTOP).note
        assert not weights.answers("https://nowhere/some.pth")
    finally:
        held.set()


@pytest.mark.parametrize("sent", ["whole", "other", "short"])
def test_a_download_is_whole_and_of_the_named_checksum_or_leaves_nothing(
    sent: str, home: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    content = b"pretrained"
    digest = sha256(content).hexdigest()[:8]
    source, seen = Source(f"https://nowhere/some-{digest}.pth"), list[tuple[object, ...]]()

    class Answer(BytesIO):
        headers: ClassVar = {"Content-Length": str(len(content))}

    body = {"whole": content, "other": b"different!", "short": content[:4]}[sent]
    monkeypatch.setattr(weights, "urlopen", lambda *_, **__: Answer(body))
    if sent == "whole":
        assert source.fetch(lambda *told: seen.append(told)).read_bytes() == content
        assert seen
        assert seen[-1][0] == "weights"
    else:
        with pytest.raises(WeightsUnavailable, match="a different file" if sent == "other" else "closed too early"):
            source.fetch()
        assert list(source.place.parent.iterdir()) == []


# ------------------------------------------------------------------------------------------- a run keeps its start


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data") / "scenes")


AUTO: dict[str, Any] = {
    "detector__name": "faster_rcnn",
    "detector__backbone": "auto",
    "detector__weights": "auto",
    "training__steps": 1,
}
INSTALLED: dict[str, Any] = {**AUTO, "detector__backbone": "efficientnet_lite0", "detector__weights": "none"}


def test_a_run_keeps_its_start_when_a_file_appears_later(
    data: Path, home: Path, tmp_path: Path, no_network: None
) -> None:
    folder = RunFolder(tmp_path / "run")
    with tiny.small_network():
        (first,) = simulate.simulate(folder.root, tiny.settings(data, budget=[], **AUTO))
        assert "To start from COCO" in first["notes"][0]
        put(home)
        kept = folder.read_settings()
        assert (kept.detector.backbone, kept.detector.weights) == ("efficientnet_lite0", "imagenet")
        folder.metrics.unlink()
        (again,) = simulate.simulate(folder.root, tiny.settings(data, budget=[], **AUTO))
        assert again["ap50"] == first["ap50"]
        folder.start.unlink()
        with pytest.raises(UserError, match=r"detector.weights: auto -> none"):
            folder.check(tiny.settings(data, budget=[], **INSTALLED))


def test_a_run_of_an_earlier_version_resumes_under_todays_preset(data: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with tiny.small_network():
        simulate.simulate(folder.root, tiny.settings(data, budget=[], **INSTALLED))
        folder.start.unlink()
        folder.check(tiny.settings(data, budget=[], **AUTO))


def test_weights_that_have_changed_since_the_start_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "own.safetensors"
    file.write_bytes(b"one")
    settings = DetectorSettings(weights=str(file))
    begun = choose(settings)
    start.verify(begun, settings)
    file.write_bytes(b"two")
    with pytest.raises(UserError, match="has changed"):
        start.verify(begun, settings)


# ------------------------------------------------------------------------------------------- another detector


def test_a_detector_continues_from_a_projects_with_the_rows_of_its_classes(tmp_path: Path) -> None:
    with tiny.small_network():
        key = ("faster_rcnn", "efficientnet_lite0")
        before = build(key, 2, "none", seed=1, classes=("fish", "Shark"))
        before.save(tmp_path / "cycle_02")
        (tmp_path / "cycle_03").mkdir()  # begun, but not trained yet
        after = build(("faster_rcnn", "auto"), 3, str(tmp_path), seed=2, classes=("ray", "shark", "crab"))
        fresh = build(key, 3, "none", seed=2)
        assert after.settings.weights == str(tmp_path / "cycle_02")
        old, new, drawn_new = (d.network.state_dict() for d in (before, after, fresh))
        head = "roi_heads.box_predictor."
        assert all(new[n].equal(old[n]) for n in new if not n.startswith(head))
        assert new[head + "cls_score.bias"][[0, 2]].equal(old[head + "cls_score.bias"][[0, 2]])
        assert new[head + "cls_score.bias"][[1, 3]].equal(drawn_new[head + "cls_score.bias"][[1, 3]])
        after.save(tmp_path / "again")  # a model that started from another loads without it
        assert detectors.load(tmp_path / "again", "cpu").settings == after.settings


def test_a_model_of_another_architecture_or_none_is_refused(tmp_path: Path) -> None:
    with tiny.small_network():
        build(("retinanet", "efficientnet_lite0"), 2, "none").save(tmp_path / "model")
        with pytest.raises(UserError, match=r"is a retinanet on efficientnet_lite0, .* Add --detector retinanet"):
            build(("faster_rcnn", "auto"), 2, str(tmp_path / "model"))
        with pytest.raises(UserError, match="Add --backbone efficientnet_lite0"):
            build(("retinanet", "resnet50"), 2, str(tmp_path / "model"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no model"):
        choose(DetectorSettings(weights=str(tmp_path / "empty")))
