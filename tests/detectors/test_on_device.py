"""The asynchronous GPU path, tested without a GPU: the same results, and no operation that waits."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import batched_nms, box_iou

from rarebox import config
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector, on_device
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.retinanet import WeightedRetinaNet
from rarebox.loop import scoring
from rarebox.pool.affine import Frame
from rarebox.pool.candidates import find_partners
from rarebox.pool.views import make_views
from rarebox.types import Candidates, ImageRecord, ImageScores, Picture

VIEWS = ("flip", "cutout", "scale_0.8", "rotate_5", "noise")


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """A function that makes detectors use the asynchronous path on any device, or the synchronous one."""
    return lambda on: monkeypatch.setattr(
        on_device, "use_async_path", lambda device: on and not on_device._may_wait.get()
    )


def random_boxes(*shape: int) -> Tensor:
    dice = torch.Generator().manual_seed(sum(shape))
    corner = 60 * torch.rand(*shape, 2, generator=dice)
    return torch.cat([corner, corner + 5 + 25 * torch.rand(*shape, 2, generator=dice)], dim=-1)


@pytest.mark.parametrize("count", [4, 60])
def test_the_best_boxes_are_the_first_that_torchvision_keeps(count: int) -> None:
    boxes, scores, labels = random_boxes(3, 60), torch.rand(3, 60), torch.arange(180).view(3, 60) % 2
    scores[1, ::3] = -1  # take no part
    scores[2] = -1
    rows, real, settled = on_device.best_boxes(boxes, scores, labels, 0.4, count)
    assert settled.all()
    for image in range(3):
        part = (scores[image] >= 0).nonzero()[:, 0]
        kept = batched_nms(boxes[image, part], scores[image, part], labels[image, part], 0.4)
        assert rows[image, real[image]].tolist() == part[kept][:count].tolist()
        assert image == 2 or 3 < len(kept) < len(part)
    assert not real[2].any()


def test_survivors_are_what_torchvision_keeps() -> None:
    boxes, real = random_boxes(3, 40), torch.ones(3, 40, dtype=torch.bool)
    real[1, ::4] = False
    stays, settled = on_device.survivors(boxes, real, 0.4)
    assert settled.all()
    falling = torch.linspace(1, 0, 40)
    for image in range(3):
        part = real[image].nonzero()[:, 0]
        kept = batched_nms(boxes[image, part], falling[part], torch.zeros(len(part)), 0.4)
        assert stays[image].nonzero()[:, 0].tolist() == part[kept].tolist()
    assert 0 < stays.sum() < real.sum()


def chain(links: int) -> Tensor:
    """Boxes in a row, each of which overlaps only its neighbours; and as many far from each other: (2, links, 4)."""
    left = torch.tensor([[6.0], [60.0]]) * torch.arange(links)
    return torch.stack([left, 0 * left, left + 10, 0 * left + 10], dim=2)


def test_a_picture_is_settled_when_another_round_would_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second link stays; each link waits for the one before it, so a chain takes as many rounds."""
    real = torch.ones(2, 30, dtype=torch.bool)
    for rounds, settled in ((29, False), (30, True), (31, True)):
        monkeypatch.setattr(on_device, "ROUNDS", rounds)
        stays, done = on_device.survivors(chain(30), real, 0.2)
        assert done.tolist() == [settled, True]
    assert stays[0].nonzero()[:, 0].tolist() == list(range(0, 30, 2))
    assert stays[1].all()


def test_a_picture_is_settled_if_the_rest_cannot_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of six rows four are considered: two stay. The third may be among the rest."""
    monkeypatch.setattr(on_device, "FIRST", 4)
    boxes, scores, labels = chain(6)[:1], torch.linspace(1, 0.5, 6)[None], torch.zeros(1, 6)
    assert [on_device.best_boxes(boxes, scores, labels, 0.2, count)[2].item() for count in (2, 3)] == [True, False]
    scores[0, 3:] = -1  # the rest is empty
    assert on_device.best_boxes(boxes, scores, labels, 0.2, 3)[2].item()
    monkeypatch.setattr(on_device, "FIRST", 6)
    assert on_device.best_boxes(boxes, torch.linspace(1, 0.5, 6)[None], labels, 0.2, 6)[2].item()


def test_an_image_that_is_not_settled_is_repeated_synchronously(
    detector: TorchDetector, pictures: list[Picture], forced: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All images, and then the second alone because of its last view, with features as requested for the batch."""
    plans = [make_views(VIEWS[2:4], *detector.input_size(p), np.random.default_rng(0)) for p in pictures]
    forced(False)
    other = detector.predict_views(pictures, plans, features=True)
    forced(True)
    settled = [found for found, _ in detector.queue_views(pictures, plans, features=True)()]
    honest = detector._matched

    def unsettled(found: on_device.Columns, *args: Any) -> on_device.Parcel:
        assert found["settled"].tolist() == [True] * 9
        return honest({**found, "settled": torch.arange(9) != 5}, *args)

    changes: list[tuple[Any, str, Any]] = [
        (on_device, "ROUNDS", 1),
        (on_device, "FIRST", 1),
        (detector, "_matched", unsettled),
    ]
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            result = detector.queue_views(pictures, plans, features=True)()
        for place, (found, matched) in enumerate(result):
            again = name != "_matched" or place == 1
            assert (matched is None) == again, name
            for ours, theirs in zip(found, (other if again else settled)[place], strict=True):
                for column in ("boxes", "features"):
                    np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))


def test_proposals_of_one_level_that_are_not_settled_unsettle_their_picture(
    make_detector: Callable[..., TorchDetector],
    pictures: list[Picture],
    forced: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call of ``survivors`` by the proposal network is one level of all pictures."""
    detector, told = make_detector("faster_rcnn"), []
    monkeypatch.setattr(detector, "_matched", lambda found, *_: told.append(found["settled"].tolist()))
    forced(True)
    honest, calls = on_device.survivors, 0

    def survivors(boxes: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        nonlocal calls
        stays, settled = honest(boxes, *rest)
        calls += 1
        return stays, settled & (torch.arange(len(boxes)) != calls - 1) if calls < 3 else settled

    monkeypatch.setattr(on_device, "survivors", survivors)
    detector.queue_views(pictures, [()] * 3)
    assert calls > 3
    assert told == [[False, False, True]]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_proposals_are_the_same_on_both_paths_in_any_precision(
    precision: str, make_detector: Callable[..., TorchDetector], forced: Callable[[bool], None]
) -> None:
    """Above 256, bfloat16 represents only even numbers; no proposal may be rounded to them."""
    detector = make_detector("faster_rcnn", image_size=320)
    detector.training = detector.training.model_copy(update={"precision": precision})
    picture = Picture(np.random.default_rng(0).integers(0, 255, (320, 480, 3), dtype=np.uint8), 480, 320)
    seen: list[Tensor] = []
    heads: Any = detector.network.roi_heads
    heads.register_forward_pre_hook(lambda _, args: seen.append(args[1][0]))
    for on in (False, True):
        forced(on)
        detector.queue_views([picture], [()])
    there, here = (boxes[boxes[:, 2] > boxes[:, 0]] for boxes in seen)
    assert there.dtype == here.dtype == torch.float32
    beyond = there[there[:, 0] > 256, 0]
    assert len(beyond) > 10
    assert (beyond % 1 != 0).any()
    overlap = box_iou(there, here).amax(dim=1)
    assert (overlap > 0.999).float().mean() > 0.95


def test_deltas_are_decoded_as_torchvision_does() -> None:
    coder, boxes, deltas = BoxCoder((10.0, 10.0, 5.0, 5.0)), random_boxes(50), 8 * torch.randn(50, 4)
    deltas[:3] = 100  # beyond the limit of a size
    torch.testing.assert_close(on_device.decode(coder, deltas, boxes), coder.decode_single(deltas, boxes))


def test_items_are_delayed_by_the_given_number() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for i in range(3):
            made.append(i)
            yield i

    assert [(i, len(made)) for i in scoring.behind(items(), 1)] == [(0, 2), (1, 3), (2, 3)]
    made.clear()
    assert [(i, len(made)) for i in scoring.behind(items(), 0)] == [(0, 1), (1, 2), (2, 3)]


def test_a_partner_is_a_real_box_that_overlaps_or_there_is_none() -> None:
    boxes = torch.tensor([[[0, 0, 10, 10], [50, 50, 60, 60]], [[0, 0, 10, 10], [0, 0, 10, 5.0]]])
    real = torch.tensor([[True, True], [False, True]])
    met = on_device.partners({"boxes": boxes, "real": real}, [0, 0], [Frame("", np.eye(2, 3))] * 2)
    assert met["partner"][1].tolist() == [0, -1]  # index among the real ones; nothing overlaps the second
    assert met["iou"][1].tolist() == [0.5, 0.0]


def test_a_gpu_finds_what_a_cpu_finds(
    detector: TorchDetector, pictures: list[Picture], forced: Callable[[bool], None]
) -> None:
    """Boxes, classes, class vectors, features, and the partners on the views."""
    dice = np.random.default_rng(0)
    chosen = [pictures[2], pictures[0]]
    plans = [
        make_views(names, *detector.input_size(p), dice) for names, p in zip((VIEWS, ("flip",)), chosen, strict=True)
    ]
    forced(False)
    wanted = detector.predict_views(chosen, plans, features=True)
    forced(True)
    scored = detector.queue_views(chosen, plans, features=True)()
    for (found, matched), expected, picture, plan in zip(scored, wanted, chosen, plans, strict=True):
        for ours, theirs in zip(found, expected, strict=True):
            assert len(theirs) > 5
            assert ours.labels.tolist() == theirs.labels.tolist()
            for name in ("boxes", "scores", "class_probs", "features"):
                assert getattr(ours, name) == pytest.approx(getattr(theirs, name), abs=2e-4), name
        assert matched is not None
        partner, iou = find_partners(found[0], found[1:], detector.frames(picture, plan))
        assert matched[0].tolist() == partner.tolist()
        assert matched[1] == pytest.approx(iou, abs=1e-6)


# ------------------------------------------------------------------------------------------- the whole loop

SETTINGS = config.resolve(
    "laptop",
    None,
    {
        "scoring.batch_size": 1,
        "scoring.candidate_threshold": 0.01,
        "scoring.views": VIEWS,
        "selection.strategy": "coreset",
    },
)


def on_disk(pictures: list[Picture], folder: Path) -> Pictures:
    """The pictures as files of a pool, decoded again."""
    records = []
    for i, picture in enumerate(pictures):
        Image.fromarray(picture.pixels).save(folder / f"{i}.png")
        records.append(ImageRecord(i, str(folder / f"{i}.png"), picture.pixels.shape[1], picture.pixels.shape[0]))
    return Pictures(records, (64, 107))


def test_a_pool_scored_on_a_gpu_has_the_same_candidates(
    retinanet: TorchDetector, pictures: list[Picture], tmp_path: Path, forced: Callable[[bool], None]
) -> None:
    pool = on_disk(pictures, tmp_path)

    def scored(on: bool) -> tuple[Candidates, ImageScores]:
        forced(on)
        return scoring.score_images(retinanet, pool, SETTINGS, cycle=2)

    for ours, theirs in zip(scored(True), scored(False), strict=True):
        assert len(theirs) >= 3
        for name, column in vars(theirs).items():
            assert getattr(ours, name) == pytest.approx(column, abs=1e-3, nan_ok=True), name


# ------------------------------------------------------------------------------------------- nothing waits


class NoWaiting(TorchDispatchMode):
    """Allows operations that do not make the host wait for the GPU, and counts the copies back. With fake tensors,
    torch itself refuses everything that depends on data: sizes, and numbers that are read. This class refuses copies
    that wait: explicit ones, and those of pageable memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.pinned: list[Tensor] = []
        self.back = 0

    def is_pinned(self, tensor: Tensor) -> bool:
        return any(tensor is one for one in self.pinned)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given = [a for a in tree_leaves((args, kwargs)) if isinstance(a, Tensor)]
        if kwargs.get("pin_memory") or (func is torch.ops.aten.detach.default and self.is_pinned(args[0])):
            self.pinned.append(result)
        copied = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_, torch.ops.aten.to)
        tensors = [*given, result] if isinstance(result, Tensor) else given
        if len({t.device.type for t in tensors if t.ndim or copied}) > 1:
            assert copied, f"{func} takes tensors of two devices"
            assert kwargs.get("non_blocking") or args[2:] == (True,), f"{func} waits for the copy"
            assert all(self.is_pinned(t) for t in tensors if t.device.type == "cpu"), f"{func} copies ordinary memory"
            self.back += result.device.type == "cpu"
        return result


@contextmanager
def no_gpu_needed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Fake tensors on a fake GPU, whose parcels return settled and full of zeros; records created and opened ones."""
    told: list[str] = []
    honest = on_device.Parcel.__init__

    def make(parcel: Any, tensors: Any) -> None:
        told.append("queued")
        honest(parcel, tensors)

    def open_(parcel: Any) -> dict[str, np.ndarray]:
        told.append("read")
        shapes = parcel._shapes.items()
        return {name: np.full(shape, name == "settled", dtype=np.float32) for name, shape in shapes}

    class Stream:
        def __init__(self, device: object) -> None:
            self.record_event = lambda: None

    monkeypatch.setattr(on_device.Parcel, "__init__", make)
    monkeypatch.setattr(on_device.Parcel, "open", open_)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield told


def to_gpu(detector: TorchDetector) -> None:
    """Move a detector, with fake tensors, to an imaginary GPU. It finds few boxes, because fake tensors are slow."""
    detector.device, network = torch.device("cuda"), detector.network
    if isinstance(network, WeightedRetinaNet):
        network.detections_per_img = 5
    else:
        assert isinstance(network, WeightedFasterRCNN)
        network.roi_heads.detections_per_img, network.rpn._pre_nms_top_n["testing"] = 5, 20
    for module in detector.network.modules():
        parts: Any = (module._parameters, module._buffers)
        for tensors in parts:
            tensors.update({n: t if t is None else torch.empty_like(t, device="cuda") for n, t in tensors.items()})
        if isinstance(module, AnchorGenerator):  # stays on the device after the first batch
            module.cell_anchors = [torch.empty_like(anchors, device="cuda") for anchors in module.cell_anchors]


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_scoring_never_waits_for_a_gpu(
    name: str,
    make_detector: Callable[..., TorchDetector],
    pictures: list[Picture],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = on_disk(pictures[:2], tmp_path)
    detector = make_detector(name)
    with no_gpu_needed(monkeypatch) as told:
        to_gpu(detector)
        with NoWaiting() as seen:
            scoring.score_images(detector, pool, SETTINGS, cycle=2)
    assert told == ["queued", "queued", "read", "read"]
    assert seen.back == 2


@pytest.mark.filterwarnings("ignore:`create_unbacked_symint`:FutureWarning")  # torchvision's nms
@pytest.mark.parametrize(
    "waits",
    [
        lambda t: t.sum().item(),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.cpu(),
        lambda t: torch.tensor(1.0, device=t.device),
        lambda t: t[torch.tensor([0])],
        lambda t: torch.zeros(2).to(t.device, non_blocking=True),
        lambda t: torch.ops.torchvision.nms(t.view(1, 4), t[:1], 0.5),
    ],
)
def test_waiting_operations_are_detected(waits: Callable[[Tensor], object]) -> None:
    with FakeTensorMode(), NoWaiting():
        given = torch.zeros(4, device="cuda")
        with pytest.raises((AssertionError, RuntimeError)):
            waits(given)
