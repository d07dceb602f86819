"""On a real GPU: the same results as on the CPU, and no waiting within a batch. Skipped without a GPU."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from rarebox.detectors import TorchDetector, load
from rarebox.loop import scoring
from rarebox.pool.views import make_views
from rarebox.types import Picture, Targets
from tests.detectors.test_on_device import SETTINGS, VIEWS, on_disk

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

NAMES = pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])


@pytest.fixture
def on_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[TorchDetector], TorchDetector]:
    """A small detector on the GPU, in exact float32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def move(detector: TorchDetector) -> TorchDetector:
        detector.save(tmp_path / "model")
        training = detector.training.model_copy(update={"precision": "float32"})
        return load(tmp_path / "model", "cuda", training)

    return move


@NAMES
def test_a_gpu_finds_what_a_cpu_finds(
    name: str,
    make_detector: Callable[..., TorchDetector],
    pictures: list[Picture],
    on_gpu: Callable[[TorchDetector], TorchDetector],
) -> None:
    detector = make_detector(name)
    detector.training = detector.training.model_copy(update={"precision": "float32"})
    dice = np.random.default_rng(0)
    plans = [make_views(VIEWS, *detector.input_size(p), dice) for p in pictures]
    wanted = detector.predict_views(pictures, plans, features=True)
    found = on_gpu(detector).predict_views(pictures, plans, features=True)
    for ours, theirs in zip(chain(*found), chain(*wanted), strict=True):
        assert len(theirs) > 5
        assert ours.labels.tolist() == theirs.labels.tolist()
        for column in ("boxes", "scores", "class_probs", "features"):
            assert getattr(ours, column) == pytest.approx(getattr(theirs, column), abs=2e-3), column


@NAMES
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Synchronization debug mode")
def test_scoring_never_makes_the_host_wait(
    name: str,
    make_detector: Callable[..., TorchDetector],
    pictures: list[Picture],
    tmp_path: Path,
    on_gpu: Callable[[TorchDetector], TorchDetector],
) -> None:
    """torch refuses every operation that waits, after the first batch has placed the anchors."""
    detector, pool = on_gpu(make_detector(name)), on_disk(pictures, tmp_path)
    scoring.score_images(detector, pool, SETTINGS, cycle=2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing"):
            torch.ones(1, device="cuda").item()
        scored, _ = scoring.score_images(detector, pool, SETTINGS, cycle=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(scored) > 5


@NAMES
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_trains(
    name: str,
    precision: str,
    make_detector: Callable[..., TorchDetector],
    pictures: list[Picture],
    targets: list[Targets],
    on_gpu: Callable[[TorchDetector], TorchDetector],
) -> None:
    detector = on_gpu(make_detector(name))
    changes = {"precision": precision, "steps": 60, "epochs": 0, "warmup_steps": 5, "lr": 1e-3, "batch_size": 3}
    detector.training = detector.training.model_copy(update=changes)
    losses: list[float] = []
    detector.fit(pictures, targets, seed=0, progress=lambda done, of, loss: losses.append(loss))
    assert losses[-1] < 0.7 * losses[0]
