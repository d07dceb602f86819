"""D-FINE as a detector: predictions, training, weights, and a whole run."""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import RTDetrImageProcessor

from rarebox import config, detectors
from rarebox.cli import main
from rarebox.config import PseudoSettings, TrainingSettings
from rarebox.data import scenes
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector, body_channels, hub, on_device
from rarebox.detectors.architectures import ARCHITECTURES, COCO
from rarebox.detectors.dfine import WeightedDFine
from rarebox.detectors.dfine_sizes import NANO, SMALL, Size
from rarebox.detectors.frozen import FeatureCache, FrozenPictures, Layout
from rarebox.detectors.start import choose
from rarebox.detectors.teacher import Renewal
from rarebox.detectors.weights import WeightsUnavailable
from rarebox.errors import TrainingDiverged, UserError
from rarebox.labels.store import Store
from rarebox.pool.views import make_views
from rarebox.types import Detections, ImageRecord, Picture, Targets
from tests import tiny, tiny_dfine

VIEWS = ("flip", "cutout", "scale_0.8", "rotate_5")
STEPS = 4


@pytest.fixture(autouse=True, scope="module")
def tiny_installed() -> Iterator[None]:
    with tiny_dfine.installed():
        yield


@pytest.fixture(scope="module")
def detector() -> TorchDetector:
    """A tiny D-FINE that no test may change."""
    return tiny_dfine.make(score_threshold=0.02)


def learner(two_sided: bool = False, **settings: Any) -> TorchDetector:
    soft_loss = "two_sided" if two_sided else "one_sided"
    training = {
        "steps": STEPS,
        "epochs": 0,
        "batch_size": 2,
        "precision": "float32",
        "scale_jitter": 0.2,
        "checkpoint_seconds": 0,
    }
    return tiny_dfine.make(soft_loss=soft_loss, training=TrainingSettings.model_validate({**training, **settings}))


def same(one: Detections, other: Detections) -> None:
    assert len(one) == len(other) > 5
    for name in ("boxes", "scores", "class_probs"):
        assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-3), name
    assert one.labels.tolist() == other.labels.tolist()


def same_weights(one: TorchDetector, other: TorchDetector) -> bool:
    return all(
        torch.equal(*pair) for pair in zip(*(d.network.state_dict().values() for d in (one, other)), strict=True)
    )


# ------------------------------------------------------------------------------------------- predictions


def test_detections_are_the_librarys_own(detector: TorchDetector, pictures: list[Picture]) -> None:
    network: Any = detector.network
    stock = tiny_dfine.stock_of(network).eval()
    for picture, found in zip(pictures, detector.predict(pictures), strict=True):
        pixels = torch.tensor(picture.pixels).permute(2, 0, 1)[None].float()
        square = torch.nn.functional.interpolate(pixels, (64, 64), mode="bilinear", antialias=True)
        with torch.inference_mode():
            said = stock(pixel_values=square / 255)
        original = [(picture.height, picture.width)]  # the picture was stretched to a square
        (theirs,) = RTDetrImageProcessor().post_process_object_detection(said, 0.02, original)
        order = theirs["scores"].argsort(descending=True)
        wanted = {name: column[order].numpy() for name, column in theirs.items()}
        found = found[: len(order)]  # the library keeps as many as there are queries
        assert len(found) == len(order) > 20
        assert found.scores == pytest.approx(wanted["scores"], abs=1e-4)
        assert found.labels.tolist() == wanted["labels"].tolist()
        assert found.boxes == pytest.approx(wanted["boxes"].clip(0, [picture.width, picture.height] * 2), abs=0.05)
        assert (found.class_probs[np.arange(len(found)), found.labels] == found.scores).all()


def test_a_prediction_does_not_depend_on_the_batch(detector: TorchDetector, pictures: list[Picture]) -> None:
    plans = [make_views(VIEWS, *detector.input_size(p), np.random.default_rng(i)) for i, p in enumerate(pictures)]
    together = detector.predict_views(pictures, plans)
    for picture, plan, found in zip(pictures, plans, together, strict=True):
        for one, other in zip(detector.predict_views([picture], [plan])[0], found, strict=True):
            same(one, other)
        same(detector.predict([picture])[0], found[0])  # the views, one of which is smaller, change nothing


def test_a_still_view_is_found_again_where_the_frame_maps_it(detector: TorchDetector, pictures: list[Picture]) -> None:
    wide = pictures[0]
    plan = make_views(("flip",), *detector.input_size(wide), np.random.default_rng(0))
    frame = detector.frames(wide, plan)[0]
    mirrored = frame.to_view(np.array([[0.0, 0, 48, 64]], dtype=np.float32))
    assert mirrored == pytest.approx(np.array([[32.0, 0, 64, 64]]))  # 96 x 64 pixels, stretched to 64 x 64


def test_the_gpus_path_finds_the_same(
    detector: TorchDetector, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [make_views(VIEWS, *detector.input_size(p), np.random.default_rng(i)) for i, p in enumerate(pictures)]
    wanted = detector.predict_views(pictures, plans, features=True)
    monkeypatch.setattr(on_device, "use_async_path", lambda _: True)
    for found, expected in zip(detector.predict_views(pictures, plans, features=True), wanted, strict=True):
        for one, other in zip(found, expected, strict=True):
            same(one, other)
            assert one.features == pytest.approx(other.features, abs=1e-4)


def test_features_of_given_boxes_are_those_of_the_queries_there(
    detector: TorchDetector, pictures: list[Picture]
) -> None:
    found = detector.predict(pictures, features=True)
    given = detector.box_features(pictures, [f.boxes for f in found])
    for detections, features in zip(found, given, strict=True):
        assert detections.features is not None
        apart = np.abs(features - detections.features).max(axis=1)
        assert (apart < 1e-3).mean() > 0.9  # two queries may have one box
    widths = [channels for _, channels in body_channels(detector.settings)]
    assert detector.image_features(pictures).shape == (3, sum(widths))
    assert [f.shape for f in detector.box_features(pictures[:1], [np.zeros((0, 4), np.float32)])] == [(0, 32)]


def test_cached_features_of_the_body_give_the_same(
    detector: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    plans = [make_views(VIEWS, *detector.input_size(p), np.random.default_rng(i)) for i, p in enumerate(pictures)]
    store = FeatureCache(tmp_path, Layout(body_channels(detector.settings), VIEWS))
    with store.adding() as keep:
        keep(dict(zip((1, 2, 3), detector.extract(pictures, plans), strict=True)))
    records = [ImageRecord(i + 1, f"{i}.png", p.width, p.height) for i, p in enumerate(pictures)]
    kept = FrozenPictures(Pictures(records, detector.settings.size), store)[:]
    for found, expected in zip(detector.predict(kept), detector.predict(pictures), strict=True):
        assert found.scores[:5] == pytest.approx(expected.scores[:5], abs=5e-3)
    targets = [Targets.of([[4, 6, 40, 50]], [2])] * 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        on_maps = detector.losses(kept, targets)
        torch.manual_seed(0)
        on_pixels = detector.losses(pictures, targets)
    assert float(on_maps["loss_giou"].detach()) == pytest.approx(float(on_pixels["loss_giou"].detach()), rel=1e-2)


# ------------------------------------------------------------------------------------------- training


def test_a_fit_that_was_stopped_resumes_to_the_same_end(
    pictures: list[Picture], targets: list[Targets], tmp_path: Path
) -> None:
    whole, stopped, resumed = (learner() for _ in range(3))
    before = whole.network.state_dict()["backbone.body.embedder.stem1.normalization.running_mean"].clone()
    loss = whole.fit(pictures, targets, seed=5)
    assert whole.network.state_dict()["backbone.body.embedder.stem1.normalization.running_mean"].equal(before)

    def stop(step: int, steps: int, smooth: float) -> None:
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.fit(pictures, targets, seed=5, checkpoint=tmp_path / "fit", progress=stop)
    torch.manual_seed(99)
    assert resumed.fit(pictures, targets, seed=5, checkpoint=tmp_path / "fit") == loss
    assert same_weights(resumed, whole)
    assert not same_weights(resumed, learner())


RECIPE: dict[str, Any] = {"zoom": 2.0, "colour_jitter": 0.3, "ema": 0.9, "renew_from": 0.5, "repeat_below": 0.5}


def test_the_recipe_of_the_other_detectors_trains_it_and_resumes(
    pictures: list[Picture], targets: list[Targets], tmp_path: Path
) -> None:
    seen = list[int]()
    renewal = Renewal(PseudoSettings(class_high=0.02, class_low=0.01), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    complete = np.array([True, False, False])

    def count(teacher: Any, images: Any, truths: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        renewed = renewal(teacher, images, truths)
        seen.extend(int(truth["pseudo"].sum()) for truth in renewed if truth["partial"])
        return renewed

    def fit(name: str, stop: int = STEPS) -> tuple[TorchDetector, float]:
        def at(step: int, *_: object) -> None:
            if step == stop < STEPS:
                raise KeyboardInterrupt

        detector, given = learner(**RECIPE, two_sided=True), cast(Renewal, count)
        return detector, detector.fit(
            pictures, targets, seed=5, checkpoint=tmp_path / name, progress=at, complete=complete, renewal=given
        )

    whole, loss = fit("whole")
    network: Any = whole.network
    assert network.loss.two_sided
    assert math.isfinite(loss)
    assert len(seen) >= STEPS // 2
    assert min(seen) > 0  # each partial image shows pseudo boxes of the averaged network
    with pytest.raises(KeyboardInterrupt):
        fit("stopped", stop=3)
    assert (tmp_path / "stopped").exists()
    resumed, again = fit("stopped")
    assert again == loss
    assert same_weights(resumed, whole)


def test_a_fit_makes_the_loss_smaller(pictures: list[Picture], targets: list[Targets]) -> None:
    detector = learner(steps=12, lr=2e-3, warmup_steps=0, flip=0.0, scale_jitter=0.0)

    def loss() -> float:
        torch.manual_seed(0)
        return sum(float(term.detach()) for term in detector.losses(pictures[:2], targets[:2]).values())

    before = loss()
    detector.fit(pictures[:2], targets[:2], seed=1)
    assert not detector.network.training
    assert loss() < 0.8 * before


def test_every_parameter_takes_part_in_every_step(pictures: list[Picture], targets: list[Targets]) -> None:
    detector = learner()
    for truth in (targets[:1], targets[2:], [Targets.of([[4, 6, 40, 50]], [2], class_weight=0.0, box_weight=0.0)]):
        detector.network.zero_grad(set_to_none=True)
        torch.stack(list(detector.losses(pictures[:1], truth).values())).sum().backward()
        trained = [n for n, p in detector.network.named_parameters() if p.requires_grad and p.grad is None]
        assert trained == []


def test_a_loss_that_is_not_finite_is_reported(pictures: list[Picture], targets: list[Targets]) -> None:
    detector = learner()
    network: Any = detector.network
    with torch.no_grad():
        network.transformer.decoder.bbox_embed[0].layers[0].weight[0, 0] = math.nan
    with pytest.raises(TrainingDiverged, match="the loss became nan at step 1"):
        detector.fit(pictures, targets, seed=1)


def test_coordinates_are_exact_in_mixed_precision(pictures: list[Picture]) -> None:
    exact, mixed = (
        tiny_dfine.make(score_threshold=0.0, training=TrainingSettings(precision=p)) for p in ("float32", "bfloat16")
    )
    seen: list[torch.Tensor] = []
    network: Any = mixed.network
    network.transformer.enc_score_head.register_forward_hook(lambda *given: seen.append(given[2]))
    for one, other in zip(exact.predict(pictures), mixed.predict(pictures), strict=True):
        assert one.scores[:3] == pytest.approx(other.scores[:3], abs=0.1)
    assert {tensor.dtype for tensor in seen} == {torch.float32}


def test_a_saved_detector_predicts_the_same_when_loaded(
    detector: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    detector.save(tmp_path)
    loaded = detectors.load(tmp_path, "cpu", detector.training)
    assert loaded.has_backbone_of(detector)
    for one, other in zip(loaded.predict(pictures), detector.predict(pictures), strict=True):
        assert one.boxes.tolist() == other.boxes.tolist()


@pytest.mark.parametrize(("size", "millions"), [(NANO, 3.8), (SMALL, 10.3)], ids=["N", "S"])
def test_the_sizes_are_those_of_d_fines_authors(size: Size, millions: float) -> None:
    with torch.device("meta"):
        network = WeightedDFine(size, 80, config.DetectorSettings())
    count = sum(tensor.numel() for name, tensor in network.state_dict().items() if "running" not in name)
    assert count / 1e6 == pytest.approx(millions, abs=0.15)
    assert size.levels == tuple((s, c) for s, c in ((8, 256), (16, 512), (32, 1024)) if s in network.backbone.strides)


# ------------------------------------------------------------------------------------------- weights


NAMES = ["person", "traffic light", "cat", "dog"]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the Hub holds a model of four classes."""
    folder = tmp_path_factory.mktemp("weights") / "tiny"
    tiny_dfine.write_pretrained(folder, NAMES)
    return folder


def test_weights_load_from_a_folder_with_the_rows_of_known_classes(pretrained: Path) -> None:
    saved = load_file(pretrained / "model.safetensors")
    detector = detectors.build(
        "dfine", 3, tiny_dfine.BACKBONE, 64, str(pretrained), "cpu", seed=0, classes=("Cat", "owl", " traffic  light")
    )
    own = detector.network.state_dict()
    file, classes = str(pretrained / "model.safetensors"), ("Cat", "owl", " traffic  light")
    from_file = detectors.build("dfine", 3, tiny_dfine.BACKBONE, 64, file, "cpu", seed=0, classes=classes)
    assert same_weights(from_file, detector)
    body = "embedder.stem1.convolution.weight"
    assert own[f"backbone.body.{body}"].equal(saved[f"model.backbone.model.{body}"])
    assert own["transformer.decoder.bbox_embed.1.layers.0.weight"].equal(
        saved["model.decoder.bbox_embed.1.layers.0.weight"]
    )
    fresh = detectors.build("dfine", 3, tiny_dfine.BACKBONE, 64, "none", "cpu", seed=0).network.state_dict()
    for name in ("decoder.class_embed.0.weight", "decoder.class_embed.2.bias", "enc_score_head.weight"):
        ours, theirs = own[f"transformer.{name}"], saved[f"model.{name}"]
        assert ours[0].equal(theirs[2])
        assert ours[2].equal(theirs[1])
        assert ours[1].equal(fresh[f"transformer.{name}"][1])
    labels = own["transformer.denoising_class_embed.weight"]
    assert labels[0].equal(saved["model.denoising_class_embed.weight"][2])


def test_coco_is_a_file_in_torchs_cache_and_its_rows_are_cocos_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    coco = ARCHITECTURES["dfine", tiny_dfine.BACKBONE].starts["coco"]
    settings = config.DetectorSettings(name="dfine", backbone="hgnet_v2_n", weights="auto")
    with pytest.raises(WeightsUnavailable, match=f"{coco.url} .*put the file at {coco.place}, .*preset laptop"):
        choose(settings)  # auto does not replace D-FINE by another detector
    tiny_dfine.write_pretrained(tmp_path / "model", list(COCO))
    coco.place.parent.mkdir(parents=True)
    saved = load_file((tmp_path / "model/model.safetensors").rename(coco.place))
    assert any(".out_proj." in name for name in saved)  # a name of earlier versions of the library
    found = choose(settings)
    assert (found.backbone, found.weights, found.file) == ("hgnet_v2_n", "coco", str(coco.place))
    made = detectors.build("dfine", 2, tiny_dfine.BACKBONE, 64, "auto", "cpu", seed=0, classes=("fish", "Car"))
    assert made.settings.weights == "coco"
    head = made.network.state_dict()["transformer.enc_score_head.weight"]
    assert head[1].equal(saved["model.enc_score_head.weight"][2])
    named = detectors.build("dfine", 2, "auto", 64, str(coco.place), "cpu", seed=0, classes=("fish", "Car"))
    assert same_weights(made, named)


def test_another_projects_model_is_continued_from(tmp_path: Path) -> None:
    before = tiny_dfine.make()
    before.classes = ("fish", "shark", "ray")
    before.save(tmp_path)
    after = detectors.build("dfine", 2, "auto", 64, str(tmp_path), "cpu", seed=0, classes=("crab", "Ray"))
    old, new = before.network.state_dict(), after.network.state_dict()
    assert new["transformer.enc_score_head.weight"][1].equal(old["transformer.enc_score_head.weight"][2])
    classes = ("transformer.decoder.class_embed.", "transformer.enc_score_head.", "transformer.denoising_class_embed.")
    assert all(new[name].equal(old[name]) for name in new if not name.startswith(classes))


def test_a_model_of_the_hub_is_named_by_owner_and_name(pretrained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []

    def download(name: str, *, local_files_only: bool, **_: Any) -> str:
        asked.append((name, local_files_only))
        if local_files_only:
            raise FileNotFoundError("not cached")
        return str(pretrained)

    monkeypatch.setattr(hub, "snapshot_download", download)
    monkeypatch.delenv("RAREBOX_OFFLINE", raising=False)
    detector = detectors.build("dfine", 1, tiny_dfine.BACKBONE, 64, "me/mine", "cpu", classes=("cat",))
    assert asked == [("me/mine", True), ("me/mine", False)]
    assert detector.settings.weights == str(pretrained)  # a copy that does not change
    saved = load_file(pretrained / "model.safetensors")
    rows = detector.network.state_dict()["transformer.enc_score_head.weight"]
    assert rows[0].equal(saved["model.enc_score_head.weight"][2])
    monkeypatch.setenv("RAREBOX_OFFLINE", "1")
    with pytest.raises(UserError, match="cannot be downloaded: RAREBOX_OFFLINE is set"):
        hub.copy_of("me/other")
    assert asked[2:] == [("me/other", True)]


def test_an_unavailable_model_is_reported_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsUnavailable, match=r"hf download me/mine --local-dir FOLDER.* --weights FOLDER"):
        detectors.build("dfine", 3, tiny_dfine.BACKBONE, 64, "me/mine", "cpu")


def test_weights_that_do_not_fit_are_refused_by_name(pretrained: Path, tmp_path: Path) -> None:
    def refused(weights: str, backbone: str = tiny_dfine.BACKBONE, name: str = "dfine") -> str:
        with pytest.raises(UserError) as caught:
            detectors.build(name, 3, backbone, 64, weights, "cpu", classes=("a", "b", "cat"))
        return str(caught.value)

    def written(name: str, saved: dict[str, torch.Tensor], **changes: object) -> str:
        (tmp_path / name).mkdir()
        save_file(saved, tmp_path / name / "model.safetensors", {"format": "pt"})
        told = json.loads((pretrained / "config.json").read_text(encoding="utf-8"))
        (tmp_path / name / "config.json").write_text(json.dumps({**told, **changes}), encoding="utf-8")
        return str(tmp_path / name)

    saved = load_file(pretrained / "model.safetensors")
    assert refused("imagenet").endswith("no imagenet weights for dfine on hgnet_v2_n. Use --weights coco")
    assert "holds another network" in refused(str(pretrained), "hgnet_v2_s")
    assert "do not fit the backbone" in refused(str(pretrained), "efficientnet_lite0", "faster_rcnn")
    assert "holds no model" in refused(str(tmp_path))
    assert "it is no D-FINE" in refused(written("other", {"conv.weight": torch.zeros(1)}))
    short = {name: tensor for name, tensor in saved.items() if name != "model.enc_output.0.weight"}
    assert "1 tensors are missing, such as model.enc_output.0.weight" in refused(written("short", short))
    many = {str(i): f"class {i}" for i in range(5)}
    assert "4 rows of transformer." in refused(written("many", saved, id2label=many))


def test_names_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"no dfine on resnet50\. Use --backbone with one of hgnet_v2_n, hgnet_v2_s"):
        detectors.build("dfine", 3, "resnet50", weights="none", device="cpu")
    with pytest.raises(UserError, match=r"no retinanet on hgnet_v2_s\. Use --backbone with one of resnet50"):
        detectors.build("retinanet", 3, "hgnet_v2_s", weights="none", device="cpu")


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for weights in ("none", "coco", "me/mine", str(Path(__file__))):
        with pytest.raises(UserError, match=r'dfine needs the package transformers.* pip install "rarebox\[detr\]"'):
            detectors.build("dfine", 3, tiny_dfine.BACKBONE, weights=weights, device="cpu")


# ------------------------------------------------------------------------------------------- a whole run


def test_a_run_asks_the_same_boxes_twice(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = scenes.make(tmp_path / "data", seed=3, train=8, test=2, size=(96, 96))
    options = tiny.as_options(
        budget=[6],
        detector__name="dfine",
        detector__backbone=tiny_dfine.BACKBONE,
        detector__weights=pretrained,
        training__lr=1e-3,
        training__steps=3,
        scoring__views=["flip"],
    )
    asked: list[list[tuple[int, list[float]]]] = []
    models: list[dict[str, torch.Tensor]] = []
    for name in ("one", "other"):
        monkeypatch.setattr(
            sys, "argv", ["rarebox", "run", str(tmp_path / name), "--data", str(data), "--json", *options]
        )
        with pytest.raises(SystemExit) as ended, tiny.without_figures():
            main.main()
        assert not ended.value.code, capsys.readouterr()
        with Store(tmp_path / name / "labels.sqlite") as store:
            asked.append([(q.image_id, q.box.tolist()) for q, _ in store.answered(2) if q.box is not None])
        models.append(load_file(tmp_path / name / "cycle_02/model.safetensors"))
    assert len(asked[0]) >= 6
    assert asked[0] == asked[1]
    assert all(models[0][name].equal(models[1][name]) for name in models[0])
