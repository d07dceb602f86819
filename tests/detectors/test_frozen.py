"""A frozen backbone processes each image once: maps are cached whole or not at all, and the heads work as on pixels."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from rarebox import config
from rarebox.core.files import hold
from rarebox.data import datasets, scenes
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector, body_channels, frozen
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.frozen import FeatureCache, FrozenPictures, Layout
from rarebox.detectors.maps import CachedPicture
from rarebox.errors import Busy, UserError
from rarebox.labels.store import Store
from rarebox.loop import simulate
from rarebox.loop.cycle import rank_pool
from rarebox.loop.run import pictures_of, views_of
from rarebox.loop.run_folder import RunFolder
from rarebox.pool.views import View, make_views
from rarebox.types import ImageRecord, Picture, Targets
from tests import tiny
from tests.loop.test_loop import outcome, timeless

VIEWS = ("cutout", "scale_0.8", "rotate_5", "flip")
FREEZE: dict[str, Any] = {"training__freeze": "backbone"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes.make(tmp_path_factory.mktemp("data") / "scenes", seed=3, train=8, test=2, size=(96, 96))


def settings(data: Path, **changes: Any) -> config.Settings:
    """Settings of a run with the whole network, which is slow."""
    return tiny.settings(data, **{"training__steps": 2, **changes})


@pytest.fixture(scope="module")
def extracted() -> list[int]:
    """How many images the body processed in each call during the finished run."""
    return []


@pytest.fixture(scope="module")
def finished(data: Path, extracted: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of two cycles."""
    out, extract = tmp_path_factory.mktemp("runs") / "run", TorchDetector.extract
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchDetector, "extract", lambda self, i, v: extracted.append(len(i)) or extract(self, i, v))
        simulate.simulate(out, settings(data, budget=[6], **FREEZE))
    return out


def plan_of(detector: TorchDetector, picture: Picture, seed: int) -> tuple[View, ...]:
    return make_views(VIEWS, *detector.input_size(picture), np.random.default_rng(seed))


def seen(
    detector: TorchDetector, pictures: list[Picture], folder: Path
) -> tuple[list[CachedPicture], list[tuple[View, ...]]]:
    """The pictures' feature maps by a frozen body, read from the files; ids count from 1."""
    store = FeatureCache(folder, Layout(body_channels(detector.settings), VIEWS))
    plans = [plan_of(detector, picture, i) for i, picture in enumerate(pictures)]
    with store.adding() as keep:
        for i, (picture, plan) in enumerate(zip(pictures, plans, strict=True)):
            keep({i + 1: detector.extract([picture], [plan])[0]})
    records = [ImageRecord(i + 1, f"{i}.png", p.width, p.height) for i, p in enumerate(pictures)]
    return FrozenPictures(Pictures(records, detector.settings.size), store)[:], plans


def test_predictions_are_those_on_pixels_for_an_image_and_every_view(
    detector: TorchDetector, pictures: list[Picture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = detector.network
    if isinstance(network, WeightedFasterRCNN):  # no suppression, which rounding could change
        for part in (network.rpn, network.roi_heads):
            monkeypatch.setattr(part, "nms_thresh", 1.0)
        for limit in ("_pre_nms_top_n", "_post_nms_top_n"):
            monkeypatch.setattr(network.rpn, limit, {"training": 10**5, "testing": 10**5})
    kept, plans = seen(detector, pictures, tmp_path)
    for one, picture, plan in zip(kept, pictures, plans, strict=True):
        # A view smaller than its batch is padded before the body or after it: compared where nothing is padded.
        as_large = [view for view in plan if view.name != "scale_0.8"]
        places = [0, *(plan.index(view) + 1 for view in as_large)]
        apart = CachedPicture(
            one.width, one.height, one.input_size, lambda m, one=one, places=places: one.maps(places[m])
        )
        wanted = detector.predict_views([picture], [as_large])[0]
        for found, expected in zip(detector.predict_views([apart], [as_large])[0], wanted, strict=True):
            assert len(found) == len(expected) > 5
            assert found.scores == pytest.approx(expected.scores, abs=2e-3)
            assert found.scores.tolist() != expected.scores.tolist()  # float16 maps: it did not use the pixels
    for found, expected in zip(detector.predict(kept[:1]), detector.predict(pictures[:1]), strict=True):
        assert found.scores == pytest.approx(expected.scores, abs=2e-3)
    assert detector.image_features(kept[:1]) == pytest.approx(detector.image_features(pictures[:1]), abs=5e-3)


def test_losses_are_those_on_pixels_mirrored_or_not(
    make_detector: Callable[..., TorchDetector], pictures: list[Picture], targets: list[Targets], tmp_path: Path
) -> None:
    for flip in (0.0, 1.0):
        training = config.TrainingSettings(freeze="backbone", precision="float32", flip=flip, steps=1, epochs=0)
        ends = []
        for source in ("pixels", "maps"):
            detector = make_detector("retinanet", training=training)
            images = pictures if source == "pixels" else seen(detector, pictures, tmp_path / f"{flip}")[0]
            ends.append(detector.fit(images[:1], targets[:1], seed=1))
        assert ends[1] == pytest.approx(ends[0], rel=1e-3)
        assert ends[1] != ends[0]


def test_a_mirrored_picture_is_its_flip_view(detector: TorchDetector, pictures: list[Picture], tmp_path: Path) -> None:
    one = seen(detector, pictures[:1], tmp_path)[0][0]
    mirrored, view = one.maps(0).flip(2), one.maps(VIEWS.index("flip") + 1)
    assert all((a == b).all() for a, b in zip(mirrored.levels, view.levels, strict=True))
    assert any((a != b).any() for a, b in zip(mirrored.levels, one.maps(0).levels, strict=True))


def test_a_run_keeps_its_body_and_processes_each_image_once(finished: Path, extracted: list[int]) -> None:
    assert sum(extracted) == 8 + 2
    assert "backbone" in RunFolder(finished).records()[0]["seconds"]
    first, last = (load_file(finished / f"cycle_0{c}/model.safetensors") for c in (1, 2))
    body = [name for name in first if name.startswith("backbone.body.")]
    assert len(body) > 50
    assert all((first[name] == last[name]).all() for name in body)
    assert any((first[name] != last[name]).any() for name in first)


def test_the_same_run_again_and_one_that_shares_its_maps_end_the_same(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(data, budget=[6], **FREEZE)
    simulate.simulate(tmp_path / "again", given)
    assert outcome(tmp_path / "again") == outcome(finished)
    monkeypatch.setattr(TorchDetector, "extract", None)  # everything it needs is cached
    shared = simulate.simulate(tmp_path / "sharing", given, share=finished)
    assert not (tmp_path / "sharing/maps").exists()
    for record in shared:
        record["notes"] = []
    assert timeless(shared) == timeless(RunFolder(finished).records())


def test_other_views_another_size_or_seed_are_kept_apart(data: Path, finished: Path) -> None:
    images = [ImageRecord(1, "a.png", 96, 96)]

    def place(**changes: Any) -> Path:
        pool, _ = pictures_of(settings(data, **FREEZE, **changes), images, images, finished)
        assert isinstance(pool, FrozenPictures)
        return pool.store.folder

    assert place() == place(training__steps=9, initial_images=3, pseudo__method="hard")
    others = [place(seed=1), place(detector__image_size=96), place(scoring__views=["flip"]), place(training__flip=0)]
    assert len({place(), *others[:3]}) == 4
    assert others[3] == place()  # the mirrored image is a view anyway


def test_a_partly_written_end_after_a_kill_is_cut_off(
    retinanet: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    seen(retinanet, pictures[:2], tmp_path)
    whole = [(tmp_path / name).read_bytes() for name in ("maps.f16", "index.jsonl")]
    with (tmp_path / "maps.f16").open("ab") as numbers, (tmp_path / "index.jsonl").open("ab") as index:
        numbers.write(b"half of the next")
        index.write(b"[3, 123456")
    store = FeatureCache(tmp_path, Layout(body_channels(retinanet.settings), VIEWS))
    assert store.missing([1, 2, 3]) == [3]
    plan = plan_of(retinanet, pictures[2], 2)
    with store.adding() as keep:
        keep({3: retinanet.extract([pictures[2]], [plan])[0]})
    seen(retinanet, pictures, tmp_path / "at once")
    assert (tmp_path / "maps.f16").read_bytes() == (tmp_path / "at once/maps.f16").read_bytes()
    assert (tmp_path / "maps.f16").read_bytes().startswith(whole[0])
    lines = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert [line[0] for line in lines] == [1, 2, 3]


def test_a_second_process_sees_what_the_first_has_added(
    retinanet: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    reader = FeatureCache(tmp_path, Layout(body_channels(retinanet.settings), VIEWS))
    assert reader.missing([1, 2]) == [1, 2]
    kept, _ = seen(retinanet, pictures[:1], tmp_path)
    assert reader.missing([1, 2]) == [2]
    assert (reader.maps(1, 0).levels[0] == kept[0].maps(0).levels[0]).all()


def test_another_process_that_is_sent_the_pictures_finds_their_maps(
    retinanet: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    seen(retinanet, pictures[:1], tmp_path)
    store = FeatureCache(tmp_path, Layout(body_channels(retinanet.settings), VIEWS))
    records = [ImageRecord(1, "0.png", pictures[0].width, pictures[0].height)]
    sent = pickle.loads(pickle.dumps(FrozenPictures(Pictures(records, retinanet.settings.size), store)))
    assert (sent[0].maps(0).levels[0] == FeatureCache.maps(sent.store, 1, 0).levels[0]).all()


def test_views_are_the_same_in_every_cycle(data: Path) -> None:
    given, names = settings(data, **FREEZE), ("cutout",)
    plans = [views_of(given, names, cycle, 7, (64, 64))[0].patches.tolist() for cycle in (0, 2, 3)]
    assert plans[0] == plans[1] == plans[2]
    thawed = settings(data)
    moving = [views_of(thawed, names, cycle, 7, (64, 64))[0].patches.tolist() for cycle in (2, 3)]
    assert moving[0] != moving[1]


def test_maps_of_other_photos_are_never_taken(
    data: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    extract = TorchDetector.extract
    monkeypatch.setattr(TorchDetector, "extract", lambda self, i, v: looked.append(len(i)) or extract(self, i, v))
    # A different test set, with a pool whose first model and maps are shared.
    other = tmp_path / "other"
    shutil.copytree(data, other)
    simulate.simulate(tmp_path / "sharing", settings(other, budget=[6], **FREEZE), share=finished)
    assert sum(looked) == 2
    # A run that has cached maps but not trained does not resume with other photos.
    with monkeypatch.context() as broken:
        broken.setattr(TorchDetector, "fit", lambda *_, **__: (_ for _ in ()).throw(UserError("stopped")))
        with pytest.raises(UserError, match="stopped"):
            simulate.simulate(tmp_path / "run", settings(data, budget=[], **FREEZE))
    with pytest.raises(UserError, match="holds a run with other settings"):
        simulate.simulate(tmp_path / "run", settings(other, budget=[], **FREEZE))


def test_frozen_in_the_middle_is_refused(data: Path, tmp_path: Path) -> None:
    thawed = settings(data, budget=[6])
    simulate.simulate(tmp_path / "run", thawed.model_copy(update={"budget": ()}))
    place = RunFolder(tmp_path / "run")
    given = settings(data, budget=[6], **FREEZE)
    with Store(place.store) as store:
        run = simulate.open_run(place, given, datasets.load_data(given.data), store, lambda *_: None)
        run.cycle = 2
        with pytest.raises(UserError, match=r"training\.freeze was switched on in the middle"):
            rank_pool(run, 2)


def test_an_odd_byte_at_the_end_is_cut_off_like_the_rest(
    retinanet: TorchDetector, pictures: list[Picture], tmp_path: Path
) -> None:
    seen(retinanet, pictures[:1], tmp_path)
    with (tmp_path / "maps.f16").open("ab") as numbers:
        numbers.write(b"x")
    kept, _ = seen(retinanet, pictures[:1], tmp_path)
    assert kept[0].maps(0).levels[0].isfinite().all()


def test_a_disk_without_room_is_reported_in_advance(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen, "ROOM_LEFT", 1 << 60)
    with pytest.raises(UserError, match=r"the frozen backbone.s features of 4 images take 0\.0 GB, and the disk"):
        simulate.simulate(tmp_path / "run", settings(data, **FREEZE))


def test_frozen_maps_cannot_be_scaled(data: Path) -> None:
    for name, value, off in (("scale_jitter", 0.2, 0), ("zoom", 1.5, 1), ("colour_jitter", 0.1, 0)):
        with pytest.raises(UserError, match=rf"Set training\.{name} to {off}"):
            settings(data, **{f"training__{name}": value}, **FREEZE)


def test_one_process_adds_at_a_time(retinanet: TorchDetector, tmp_path: Path) -> None:
    layout = Layout(body_channels(retinanet.settings), VIEWS)
    one, other = FeatureCache(tmp_path, layout), FeatureCache(tmp_path, layout)
    with one.adding():
        with pytest.raises(Busy), hold(tmp_path / "lock"):
            pass
        waiting = threading.Thread(target=lambda: other.adding().__enter__(), daemon=True)
        waiting.start()
        waiting.join(timeout=0.5)
        assert waiting.is_alive()
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_another_weights_file_is_another_body(data: Path, tmp_path: Path) -> None:
    weights, images = tmp_path / "body.safetensors", [ImageRecord(1, "a.png", 96, 96)]
    folders = []
    for content in (b"one", b"other"):
        weights.write_bytes(content)
        given = settings(data, detector__weights=str(weights), **FREEZE)
        pool, _ = pictures_of(given, images, images, tmp_path)
        assert isinstance(pool, FrozenPictures)
        folders.append(pool.store.folder)
    assert folders[0] != folders[1]
