"""The weighted losses: torchvision's own if all weights are 1, nothing from a box of weight 0, linear in between."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import box_iou

from rarebox.config import PseudoSettings
from rarebox.detectors import TorchDetector
from rarebox.detectors.faster_rcnn import LeastMatcher, Sampler, Samples, WeightedFasterRCNN, smooth_l1
from rarebox.detectors.losses import Assignment, assign, reduce
from rarebox.detectors.retinanet import WeightedHead, WeightedRetinaNet
from rarebox.labels.targets import make_targets
from rarebox.types import Candidates, ImageLabels, Picture, Source, Targets, concatenate

CLASSES = 3
Losses = dict[str, Tensor]
Make = Callable[..., TorchDetector]
StockOf = Callable[[TorchDetector], Any]


def losses_of(detector: TorchDetector, pictures: list[Picture], targets: list[Targets]) -> Losses:
    """The losses with the same random samples each time."""
    torch.manual_seed(11)
    return detector.losses(pictures, targets)


def numbers(losses: Losses) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in losses.items()}


def weighted(targets: Targets, *, cls: list[float] | None = None, box: list[float] | None = None) -> Targets:
    """The same boxes with other weights."""
    return replace(
        targets,
        class_weight=targets.class_weight if cls is None else np.array(cls),
        box_weight=targets.box_weight if box is None else np.array(box),
    )


# ------------------------------------------------------------------------------------------- all weights 1


def stock_input(
    detector: TorchDetector, pictures: list[Picture], targets: list[Targets]
) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Pixels and targets in torchvision's form; classes from 1 for Faster R-CNN. Pictures have the input's size."""
    first = 0 if isinstance(detector.network, WeightedRetinaNet) else 1
    tensors = [torch.tensor(p.pixels).permute(2, 0, 1).float() for p in pictures]
    scales = [p.pixels.shape[1] / p.width for p in pictures]
    return tensors, [
        {"boxes": torch.tensor(t.boxes) * s, "labels": torch.tensor(t.labels) + first}
        for t, s in zip(targets, scales, strict=True)
    ]


def same_losses_and_gradients(
    detector: TorchDetector, stock: nn.Module, pictures: list[Picture], targets: list[Targets]
) -> None:
    parameters = {n: p for n, p in detector.network.named_parameters() if p.requires_grad}
    theirs_by_name = dict(stock.named_parameters())
    ours = losses_of(detector, pictures, targets)
    gradients = torch.autograd.grad(torch.stack(list(ours.values())).sum(), list(parameters.values()))

    torch.manual_seed(11)
    theirs = stock.train()(*stock_input(detector, pictures, targets))
    wanted = torch.autograd.grad(torch.stack(list(theirs.values())).sum(), [theirs_by_name[n] for n in parameters])

    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    for name, ours_gradient, theirs_gradient in zip(parameters, gradients, wanted, strict=True):
        size = float(theirs_gradient.abs().max())
        torch.testing.assert_close(
            ours_gradient, theirs_gradient, rtol=1e-4, atol=1e-5 * size + 1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("chosen", [[0, 1, 2], [2], [0]], ids=["with an empty image", "only empty", "one image"])
def test_all_weights_1_give_torchvisions_own_losses_and_gradients(
    detector: TorchDetector, stock_of: StockOf, pictures: list[Picture], targets: list[Targets], chosen: list[int]
) -> None:
    same_losses_and_gradients(detector, stock_of(detector), [pictures[i] for i in chosen], [targets[i] for i in chosen])


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_so_they_do_on_the_papers_backbone(
    name: str, make_detector: Make, stock_of: StockOf, pictures: list[Picture], targets: list[Targets]
) -> None:
    large = make_detector(name, backbone="resnet50")
    same_losses_and_gradients(large, stock_of(large), pictures[:1], targets[:1])


def test_our_input_transform_is_torchvisions_where_no_resizing_is_needed(
    detector: TorchDetector, pictures: list[Picture], targets: list[Targets]
) -> None:
    mean, std = [127.0] * 3, [128.0] * 3  # Lite0's, for pixels up to 255
    tensors, _ = stock_input(detector, pictures, targets)
    ours, _ = detector.network.transform(tensors, None)
    theirs, _ = GeneralizedRCNNTransform(64, 10_000, mean, std)(tensors)
    torch.testing.assert_close(ours.tensors, theirs.tensors)
    assert ours.image_sizes == theirs.image_sizes


# ------------------------------------------------------------------------------------------- where anchors are trained


class RecordedStep:
    """The outputs of one training step at each anchor, with gradients, and the anchors."""

    def __init__(self, detector: TorchDetector, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: Tensor
        self.deltas: Tensor
        self.anchors: list[Tensor] = []
        network = detector.network
        assert isinstance(network, WeightedRetinaNet | WeightedFasterRCNN)
        generator = network.anchor_generator if isinstance(network, WeightedRetinaNet) else network.rpn.anchor_generator
        self.handle = generator.register_forward_hook(self.add_anchors)
        if isinstance(network, WeightedRetinaNet):
            compute = network.head.losses

            def retina(targets: Any, outputs: dict[str, Tensor], *rest: Any) -> Losses:
                self.keep(outputs["cls_logits"], outputs["bbox_regression"])
                return compute(targets, outputs, *rest)

            monkeypatch.setattr(network.head, "losses", retina)
        else:
            compute_rpn = network.rpn.compute_loss

            def rpn(objectness: Tensor, deltas: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
                self.keep(objectness, deltas)
                return compute_rpn(objectness, deltas, *rest)

            monkeypatch.setattr(network.rpn, "compute_loss", rpn)

    def add_anchors(self, module: nn.Module, given: Any, anchors: list[Tensor]) -> None:
        self.anchors += anchors

    def keep(self, logits: Tensor, deltas: Tensor) -> None:
        self.logits, self.deltas = logits, deltas
        logits.retain_grad()
        deltas.retain_grad()

    def gradients(self, losses: Losses) -> tuple[Tensor, Tensor]:
        """Gradient of all losses: (anchors, classes or 1) at the logits, (anchors, 4) at the box deltas."""
        torch.stack(list(losses.values())).sum().backward()
        self.handle.remove()
        assert self.logits.grad is not None
        assert self.deltas.grad is not None
        return self.logits.grad.flatten(0, -2), self.deltas.grad.flatten(0, -2)


@pytest.fixture
def sample_everything(faster_rcnn: TorchDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train Faster R-CNN on every anchor and proposal that may be sampled."""
    network: Any = faster_rcnn.network
    everything = BalancedPositiveNegativeSampler(1_000_000, 0.5)
    monkeypatch.setattr(network.rpn, "fg_bg_sampler", everything)
    monkeypatch.setattr(network.roi_heads, "fg_bg_sampler", everything)


def matching(detector: TorchDetector, seen: RecordedStep, target: Targets) -> Tensor:
    """Which target each anchor belongs to (-1 background, -2 between), by torchvision's matcher and thresholds."""
    high, low = (0.5, 0.4) if isinstance(detector.network, WeightedRetinaNet) else (0.7, 0.3)
    return Matcher(high, low, allow_low_quality_matches=True)(box_iou(torch.tensor(target.boxes), seen.anchors[0]))


BOTH = Targets.of([[4, 6, 40, 50], [50, 20, 90, 44]], [2, 0])
"""Two boxes on the first picture, far from each other."""

Step = Callable[[TorchDetector, Targets], tuple[Tensor, Tensor, Tensor]]


@pytest.fixture
def step(sample_everything: None, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch) -> Step:
    """A training step on the first picture -> gradients at logits and at deltas, and the matched target, by anchor."""

    def take(detector: TorchDetector, target: Targets) -> tuple[Tensor, Tensor, Tensor]:
        with monkeypatch.context() as patch:
            seen = RecordedStep(detector, patch)
            logits, deltas = seen.gradients(losses_of(detector, pictures[:1], [target]))
        return logits, deltas, matching(detector, seen, target)

    return take


def moved(gradient: Tensor) -> Tensor:
    return (gradient != 0).any(dim=1)


def test_with_weight_1_every_anchor_not_between_the_thresholds_is_trained(detector: TorchDetector, step: Step) -> None:
    logits, deltas, matched = step(detector, BOTH)
    assert set(matched.tolist()) == {-2, -1, 0, 1}  # the picture has anchors of every kind
    assert moved(logits).equal(matched != -2)
    assert moved(deltas).equal(matched >= 0)


def test_weight_0_gives_no_gradient_at_the_boxs_anchors_and_does_not_change_others(
    detector: TorchDetector, step: Step
) -> None:
    logits, deltas, matched = step(detector, weighted(BOTH, cls=[1, 0], box=[1, 0]))
    assert moved(logits).equal((matched == -1) | (matched == 0))
    assert moved(deltas).equal(matched == 0)


def test_class_weight_0_silences_the_class_branch_alone(detector: TorchDetector, step: Step) -> None:
    logits, deltas, matched = step(detector, weighted(BOTH, cls=[0, 1]))
    assert moved(logits).equal((matched == -1) | (matched == 1))
    assert moved(deltas).equal(matched >= 0)


def test_box_weight_0_silences_the_box_branch_alone(detector: TorchDetector, step: Step) -> None:
    logits, deltas, matched = step(detector, weighted(BOTH, box=[0, 1]))
    assert moved(logits).equal(matched != -2)
    assert moved(deltas).equal(matched == 1)


def test_the_label_and_place_of_a_box_of_weight_0_do_not_matter(
    detector: TorchDetector, pictures: list[Picture]
) -> None:
    ignored = weighted(BOTH, cls=[1, 0], box=[1, 0])
    relabelled = replace(ignored, labels=np.array([2, 1]))
    assert numbers(losses_of(detector, pictures[:1], [ignored])) == numbers(
        losses_of(detector, pictures[:1], [relabelled])
    )


def test_a_rejected_box_trains_background_at_its_anchors(detector: TorchDetector, step: Step) -> None:
    rejected = Targets.of(BOTH.boxes, BOTH.labels, Source.REJECTED, 1.0, [1.0, 0.0], background=[False, True])
    logits, deltas, matched = step(detector, rejected)
    taught = (matched == -1) | (matched == 1)
    assert (logits[taught] > 0).all()  # every class (or objectness) is pushed down
    assert (logits[matched == 0].min(dim=1).values < 0).all()  # the object's own class is pulled up
    assert moved(deltas).equal(matched == 0)


def test_a_box_that_only_the_box_branch_trusts_is_background_for_classes_and_trains_its_position(
    detector: TorchDetector, step: Step
) -> None:
    steady = Targets.of(BOTH.boxes, BOTH.labels, Source.PSEUDO, 1.0, 1.0, background=[False, True])
    logits, deltas, matched = step(detector, steady)
    assert (logits[(matched == -1) | (matched == 1)] > 0).all()
    assert moved(deltas).equal(matched >= 0)


def on(targets: Targets, *rows: int) -> Targets:
    """Some of the targets."""
    return targets[list(rows)]


def test_a_rejected_box_removes_no_negative(detector: TorchDetector, step: Step) -> None:
    """Anchors that overlap it slightly remain background, as without it."""
    rejected = Targets.of(BOTH.boxes, BOTH.labels, Source.REJECTED, 1.0, [1.0, 0.0], background=[False, True])
    logits, deltas, matched = step(detector, rejected)
    alone, deltas_alone, human = step(detector, on(BOTH, 0))
    assert (matched == -2).sum() > (human == -2).sum()  # some anchors lie between the thresholds of the rejected box
    assert moved(logits).equal(moved(alone))
    assert moved(deltas).equal(moved(deltas_alone))


IGNORED_AND_REJECTED = Targets.of(
    [[4, 6, 40, 50], [50, 20, 90, 44], [54, 22, 94, 46]],
    [2, 0, 0],
    Source.PSEUDO,
    [1, 0, 1],
    [1, 0, 0],
    [False, False, True],
)
"""A human box, an ignored box, and a rejected box that lies on most of the ignored one."""


def test_a_rejected_box_trains_background_where_the_region_would_be_ignored(
    detector: TorchDetector, step: Step
) -> None:
    logits, deltas, _ = step(detector, IGNORED_AND_REJECTED)
    silent, _, ignored = step(detector, on(IGNORED_AND_REJECTED, 0, 1))
    _, _, rejected = step(detector, on(IGNORED_AND_REJECTED, 2))
    taught = (rejected >= 0) & (ignored != 0)
    assert (ignored[taught] == 1).any()  # some of them would be ignored
    assert not moved(silent)[ignored == 1].any()
    assert (logits[taught] > 0).all()
    assert moved(logits).equal(moved(silent) | taught)
    assert moved(deltas).equal(ignored == 0)


NEAR = [[6.0, 8, 42, 42], [10, 9, 46, 44]]
"""Two boxes that share most of their area."""


def only(branch: str, box: list[float], label: int, method: str) -> Targets:
    """A box that only one branch trusts, under THPL (``hard``) or TSPL (``soft``)."""
    if branch == "class":
        return Targets.of([box], [label], Source.PSEUDO, 1.0, 0.0)
    if method == "hard":
        return Targets.of([box], [label], Source.PSEUDO, 1.0, 1.0, background=True)
    return Targets.of([box], [label], Source.PSEUDO, 0.0, 1.0)


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_each_branch_trains_on_the_boxes_that_it_trusts(detector: TorchDetector, step: Step, method: str) -> None:
    sure, steady = only("class", NEAR[0], 2, method), only("box", NEAR[1], 1, method)
    logits, deltas, _ = step(detector, concatenate([sure, steady]))
    _, class_deltas, by_class = step(detector, on(concatenate([sure, steady]), 0))
    _, box_deltas, by_box = step(detector, Targets.of(steady.boxes, steady.labels))
    assert not moved(class_deltas).any()
    both = (by_class >= 0) & (by_box >= 0)
    assert both.any()  # the class target is the first box and the regression target the second
    # Every class but the first box's own is pushed down at its anchors, and that one is pulled up.
    column = 2 if logits.shape[1] > 1 else 0
    assert (logits[by_class >= 0, column] < 0).all()
    assert (logits[by_class >= 0][:, [c for c in range(logits.shape[1]) if c != column]] > 0).all()
    # The deltas are trained on the second box, wherever the first one is: the gradients are those of that box alone.
    assert moved(deltas).equal(by_box >= 0)
    assert torch.sign(deltas).equal(torch.sign(box_deltas))
    # Everything else is background, except between the thresholds and (soft) on a box that is not background.
    elsewhere = by_class == -1
    if method == "soft":
        assert not moved(logits)[elsewhere & (by_box != -1)].any()
        elsewhere &= by_box == -1
    assert (logits[elsewhere] > 0).all()
    assert not moved(logits)[by_class == -2].any()


def matched_once(overlap: Tensor, target: dict[str, Tensor], match: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """One match of all boxes for both branches: class weight, positive, row; box weight, row."""
    matched = match(overlap)
    row = matched.clamp(min=0)
    class_weight = torch.where(matched >= 0, target["class_weight"][row], (matched == -1).float())
    box_weight = torch.where(matched >= 0, target["box_weight"][row], 0.0)
    positive = (matched >= 0) & (class_weight > 0)
    return class_weight, positive, row * positive, box_weight, row * (box_weight > 0)


@pytest.mark.parametrize("low_quality", [False, True])
def test_branches_with_equal_weights_match_alike(low_quality: bool) -> None:
    dice = torch.Generator().manual_seed(2)
    match = Matcher(0.5, 0.4, allow_low_quality_matches=low_quality)
    for _ in range(50):
        corner = 40 * torch.rand(6, 2, generator=dice)
        boxes = torch.cat([corner, corner + 5 + 30 * torch.rand(6, 2, generator=dice)], dim=1)
        corner = 40 * torch.rand(200, 2, generator=dice)
        anchors = torch.cat([corner, corner + 5 + 30 * torch.rand(200, 2, generator=dice)], dim=1)
        weight = torch.rand(6, generator=dice) * (torch.rand(6, generator=dice) > 0.3)
        target = {"class_weight": weight, "box_weight": weight, "background": torch.zeros(6, dtype=torch.bool)}
        overlap = box_iou(boxes, anchors)
        found, wanted = assign(overlap, target, match), matched_once(overlap, target, match)
        taught = found.box_weight > 0
        columns = (
            found.class_weight,
            found.positive,
            found.row * found.positive,
            found.box_weight,
            found.box_row * taught,
        )
        for one, other in zip(columns, wanted, strict=True):
            assert one.equal(other)


def test_a_weak_pseudo_label_is_ignored_and_no_background(detector: TorchDetector, step: Step) -> None:
    """A score of 0.07 is below tau_1 of Eq. 5, and the box is not consistent either."""
    first = np.zeros(1, dtype=np.int64)
    weak = Candidates(
        first, first, BOTH.boxes[[1]], first, np.array([0.07]), np.zeros(1), np.array([0.2]), np.zeros((1, 3))
    )
    human = ImageLabels(BOTH.boxes[[0]], BOTH.labels[[0]], *[np.zeros((0, 4), np.float32)] * 2, complete=False)
    target = make_targets(human, weak, np.zeros((0, 4), np.float32), PseudoSettings())
    logits, deltas, matched = step(detector, target)
    assert (matched == 1).any()
    assert not moved(logits)[matched == 1].any()
    assert moved(deltas).equal(matched == 0)
    assert moved(logits).equal((matched == -1) | (matched == 0))


# ------------------------------------------------------------------------------------------- the box head's proposals


class Sampled:
    """The box head's training in one step: proposals, the matched target of each, and gradients at its outputs."""

    def __init__(self, detector: TorchDetector, pictures: list[Picture], target: Targets) -> None:
        heads: Any = detector.network.roi_heads
        choose, kept = heads.choose_samples, {}

        def select(*given: Any) -> Any:
            kept["samples"] = choose(*given)
            return kept["samples"]

        def keep(module: nn.Module, given: Any, out: tuple[Tensor, Tensor]) -> None:
            kept["out"] = out
            for tensor in out:
                tensor.retain_grad()

        handle = heads.box_predictor.register_forward_hook(keep)
        heads.choose_samples = select
        try:
            losses = losses_of(detector, pictures[:1], [target])
        finally:
            del heads.choose_samples
            handle.remove()
        (losses["loss_classifier"] + losses["loss_box_reg"]).backward()
        self.logits, self.deltas = (t.grad for t in kept["out"])
        self.labels = kept["samples"][1].label
        self.proposals = kept["samples"][0][0]
        overlap, self.row = box_iou(self.proposals, torch.tensor(target.boxes)).max(dim=1)
        self.row[overlap < 0.5] = -1


def test_with_weight_1_proposals_of_every_kind_are_sampled(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None
) -> None:
    found = Sampled(faster_rcnn, pictures, BOTH)
    assert set(found.row.tolist()) == {-1, 0, 1}
    assert moved(found.logits).all()
    assert moved(found.deltas).equal(found.row >= 0)


def test_proposals_on_an_ignored_box_are_never_sampled(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None
) -> None:
    found = Sampled(faster_rcnn, pictures, weighted(BOTH, cls=[0, 1], box=[0, 1]))
    assert set(found.row.tolist()) == {-1, 1}
    assert moved(found.logits).all()


@pytest.mark.parametrize("silent", [0, 1])
def test_each_branch_of_the_box_head_ignores_a_box_by_itself(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None, silent: int
) -> None:
    weights = [1.0, 1.0]
    weights[silent] = 0.0
    found = Sampled(faster_rcnn, pictures, weighted(BOTH, cls=weights))
    assert moved(found.logits).equal(found.row != silent)
    assert moved(found.deltas).equal(found.row >= 0)
    found = Sampled(faster_rcnn, pictures, weighted(BOTH, box=weights))
    assert moved(found.logits).all()
    assert moved(found.deltas).equal(found.row == 1 - silent)


@pytest.mark.parametrize("box_weight", [0.0, 1.0])
def test_the_box_head_trains_background_on_a_background_box(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None, box_weight: float
) -> None:
    target = Targets.of(BOTH.boxes, BOTH.labels, Source.REJECTED, 1.0, [box_weight, 1.0], background=[True, False])
    found = Sampled(faster_rcnn, pictures, target)
    assert set(found.row.tolist()) == {-1, 0, 1}
    background = found.row < 1
    assert (found.logits[background, 0] < 0).all()  # the background logit is pulled up
    assert (found.logits[background, 1:] > 0).all()
    assert (found.logits[found.row == 1, 1] < 0).all()  # label 0 is column 1
    assert moved(found.deltas).equal(found.row >= 0 if box_weight else found.row == 1)
    if not box_weight:  # it is sampled among the negatives and does not displace a positive
        assert (found.labels[background] == 0).all()


def test_proposals_on_a_rejected_box_are_background_where_the_region_would_be_ignored(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None
) -> None:
    found = Sampled(faster_rcnn, pictures, IGNORED_AND_REJECTED)
    overlap = box_iou(found.proposals, torch.tensor(IGNORED_AND_REJECTED.boxes))
    assert ((overlap[:, 1] > overlap[:, 2]) & (overlap[:, 2] >= 0.5)).any()  # nearer to the ignored box
    assert not ((overlap[:, 1] >= 0.5) & (overlap[:, 2] < 0.5) & (overlap[:, 0] < 0.5)).any()  # those stay ignored
    taught = (overlap[:, 2] >= 0.5) & (overlap[:, 0] < 0.5)
    assert (found.logits[taught, 0] < 0).all()
    assert moved(found.deltas).equal(overlap[:, 0] >= 0.5)


@pytest.mark.parametrize("method", ["hard", "soft"])
def test_each_branch_of_the_box_head_trains_on_the_boxes_that_it_trusts(
    faster_rcnn: TorchDetector, pictures: list[Picture], sample_everything: None, method: str
) -> None:
    target = concatenate([only("class", [10, 10, 50, 40], 2, method), only("box", [16, 12, 56, 46], 1, method)])
    found = Sampled(faster_rcnn, pictures, target)
    sure, steady = (box_iou(found.proposals, torch.tensor(target.boxes)) >= 0.5).unbind(dim=1)
    assert (sure & steady).any()
    assert (found.logits[sure, 3] < 0).all()  # label 2
    by_class = found.deltas.reshape(len(found.deltas), 4, 4)
    assert moved(by_class[:, 2]).equal(steady)  # label 1
    assert not by_class[:, [0, 1, 3]].any()
    only_steady = steady & ~sure
    assert only_steady.any()
    if method == "hard":
        assert (found.logits[only_steady, 0] < 0).all()
    else:
        assert not moved(found.logits)[only_steady].any()


# ------------------------------------------------------------------------------------------- as the paper's framework


def test_a_box_takes_its_best_anchor_from_the_least_iou_on() -> None:
    overlap = torch.tensor([[0.29, 0.1, 0.0], [0.0, 0.31, 0.2]])
    assert LeastMatcher(0.7, 0.3, 0.0)(overlap.clone()).tolist() == [0, 1, -1]
    assert LeastMatcher(0.7, 0.3, 0.3)(overlap.clone()).tolist() == [-1, 1, -1]
    assert LeastMatcher(0.7, 0.3, 0.5)(overlap.clone()).tolist() == [-1, -2, -1]
    assert Matcher(0.7, 0.3, allow_low_quality_matches=True)(overlap.clone()).tolist() == [0, 1, -1]


def test_the_box_loss_is_plain_l1_on_request(make_detector: Make) -> None:
    deltas, wanted = torch.tensor([[0.05, 0.0, 0.2, 0.0]]), torch.zeros(1, 4)
    # smooth: 0.05^2 / (2/9) + 0.2 - 1/18
    assert float(smooth_l1(deltas, wanted, 1 / 9)) == pytest.approx(0.01125 + 0.2 - 1 / 18)
    assert float(smooth_l1(deltas, wanted, 0.0)) == pytest.approx(0.25)
    for settings, beta in (({}, 1 / 9), ({"box_loss": "l1"}, 0.0)):
        network: Any = make_detector("faster_rcnn", **settings).network
        assert network.rpn.beta == network.roi_heads.beta == beta


def test_the_settings_of_the_papers_framework_reach_the_network(make_detector: Make) -> None:
    for settings, least, proposals in (({}, 0.0, 500), ({"low_quality_iou": 0.3, "proposals": 70}, 0.3, 70)):
        network: Any = make_detector("faster_rcnn", **settings).network
        assert network.rpn.proposal_matcher.least == least
        assert network.rpn.train().post_nms_top_n() == proposals
        assert network.rpn.eval().post_nms_top_n() == 200


# ------------------------------------------------------------------------------------------- linear in each weight

CLASS_TERMS = {"classification", "loss_classifier", "loss_objectness"}


@pytest.mark.parametrize("branch", ["cls", "box"])
@pytest.mark.parametrize("row", [0, 1])
def test_losses_are_linear_in_each_positive_weight_and_each_weight_acts_on_its_own_branch(
    detector: TorchDetector, pictures: list[Picture], branch: str, row: int
) -> None:
    def at(weight: float, other: float = 0.7) -> dict[str, float]:
        weights = [other, other]
        weights[row] = weight
        return numbers(losses_of(detector, pictures[:1], [weighted(BOTH, **{branch: weights})]))

    quarter, half, whole = at(0.25), at(0.5), at(1.0)
    for term in whole:
        if (term in CLASS_TERMS) == (branch == "cls"):
            slope = whole[term] - half[term]
            assert slope > 1e-4, term
            assert half[term] - quarter[term] == pytest.approx(slope / 2, rel=1e-3), term
            # The other box's weight does not change this one's part: weights are never multiplied together.
            assert at(1.0, other=0.2)[term] - at(0.5, other=0.2)[term] == pytest.approx(slope, rel=1e-3), term
        else:
            assert quarter[term] == half[term] == whole[term], term


def test_a_background_boxs_class_weight_is_all_or_nothing_for_eq_7_has_no_weight_on_negatives(
    detector: TorchDetector, pictures: list[Picture]
) -> None:
    def at(weight: float) -> dict[str, float]:
        target = Targets.of(BOTH.boxes, BOTH.labels, Source.REJECTED, [1.0, weight], [1.0, 0.0], [False, True])
        return numbers(losses_of(detector, pictures[:1], [target]))

    assert at(0.3) == at(1.0) != at(0.0)


# ------------------------------------------------------------------------------------------- normalisers, by hand


def test_reduce_divides_each_term_by_hand() -> None:
    class_loss, positive = torch.tensor([2.0, 4.0, 3.0, 1.0, 5.0]), torch.tensor([True, True, False, False, False])
    class_weight = torch.tensor([1.0, 0.5, 1.0, 1.0, 1.0])
    box_loss, box_weight = torch.tensor([8.0, 2.0]), torch.tensor([0.25, 1.0])
    given = (class_loss, positive, class_weight, box_loss, box_weight)
    # sums: positives 1*2 + 0.5*4 = 4, negatives 3 + 1 + 5 = 9, boxes 0.25*8 + 1*2 = 4
    assert [float(t) for t in reduce(*given, by=5, boxes_by=8, normaliser="own")] == pytest.approx([13 / 5, 4 / 8])
    assert [float(t) for t in reduce(*given, by=5, boxes_by=8, normaliser="batch")] == pytest.approx([13 / 5, 4 / 8])
    # to the letter: 4 / 2 + 9 / 3, and 4 / 2
    assert [float(t) for t in reduce(*given, by=5, boxes_by=8, normaliser="paper")] == pytest.approx([5, 2])


# Focal loss at logit 0 (p = 1/2): positive 0.25 * (1/2)^2 * ln 2, negative 0.75 * (1/2)^2 * ln 2.
LN2 = float(np.log(2))
POSITIVE, NEGATIVE = 0.0625 * LN2, 0.1875 * LN2


@pytest.mark.parametrize(
    ("normaliser", "classification", "boxes"),
    [
        # image 1: positives of weight 1 and 1/2, 3 negatives, over 2;  image 2: 1 positive, 2 negatives, over 1;
        # then the mean of the images
        ("own", ((1.5 * POSITIVE + 3 * NEGATIVE) / 2 + (POSITIVE + 2 * NEGATIVE) / 1) / 2, (0.4 / 2 + 0.2 / 1) / 2),
        # all together over the 3 positives
        ("batch", (2.5 * POSITIVE + 5 * NEGATIVE) / 3, (0.4 + 0.2) / 3),
        # 3 positives, 5 negatives, each by its own number
        ("paper", 2.5 * POSITIVE / 3 + 5 * NEGATIVE / 5, (0.4 + 0.2) / 3),
    ],
)
def test_retinanets_normalisers_by_hand(normaliser: Any, classification: float, boxes: float) -> None:
    head = WeightedHead(8, 1, 1)
    head.normaliser = normaliser
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(6, 1)
    # Both boxes of image 1 lie 2 to the right of the anchors: L1 of the encoding (0.2, 0, 0, 0) is 0.2.
    # Image 1: anchors 0, 1 -> boxes 0, 1 (box weights 1 and 1): 0.4. Image 2: anchor 0 -> its box: 0.2.
    box = torch.tensor([[2.0, 0.0, 12.0, 10.0]])

    def target(count: int, *class_weight: float) -> dict[str, Tensor]:
        return {
            "boxes": box.repeat(count, 1),
            "labels": torch.zeros(count, dtype=torch.int64),
            "class_weight": torch.tensor(class_weight),
            "box_weight": torch.ones(count),
            "background": torch.zeros(count, dtype=torch.bool),
        }

    outputs = {"cls_logits": torch.zeros(2, 6, 1), "bbox_regression": torch.zeros(2, 6, 4)}
    matched = [torch.tensor([0, 1, -1, -1, -1, -2]), torch.tensor([0, -1, -1, -2, -2, -2])]
    targets = [target(2, 1.0, 0.5), target(1, 1.0)]
    given = [
        assign(torch.zeros(len(t["boxes"]), 6), t, lambda _, m=m: m) for t, m in zip(targets, matched, strict=True)
    ]
    losses = head.losses(targets, outputs, [anchors, anchors], given)
    assert numbers(losses) == pytest.approx({"classification": classification, "bbox_regression": boxes})


def test_retinanets_own_normaliser_counts_each_branchs_positives_that_are_not_ignored() -> None:
    head = WeightedHead(8, 1, 1)
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(4, 1)
    target = {
        "boxes": torch.tensor([[2.0, 0.0, 12.0, 10.0]]).repeat(2, 1),
        "labels": torch.zeros(2, dtype=torch.int64),
        "class_weight": torch.tensor([0.0, 0.5]),
        "box_weight": torch.tensor([0.5, 0.25]),
        "background": torch.zeros(2, dtype=torch.bool),
    }
    outputs = {"cls_logits": torch.zeros(1, 4, 1), "bbox_regression": torch.zeros(1, 4, 4)}
    row = torch.tensor([0, 1, 1, 0])
    given = Assignment(
        row,
        torch.tensor([False, True, True, False]),
        torch.tensor([0, 0.5, 0.5, 1]),
        row,
        torch.tensor([0.5, 0.25, 0.25, 0]),
    )
    losses = head.losses([target], outputs, [anchors], [given])
    # class branch: two anchors of weight 1/2 count, the ignored one does not; box branch: all three count
    wanted = {
        "classification": (2 * 0.5 * POSITIVE + NEGATIVE) / 2,
        "bbox_regression": (0.5 + 0.25 + 0.25) * 0.2 / 3,
    }
    assert numbers(losses) == pytest.approx(wanted)


SMOOTH = 0.2 - 0.5 / 9
"""Smooth L1 (beta 1/9) of 0.2: linear beyond 1/9, less half of it."""


@pytest.mark.parametrize(
    ("normaliser", "objectness", "boxes"),
    [
        # class branch: weights 1, 1/2 and 1, one positive ignored by it, 2 negatives: over the 5 that take part;
        # box branch: weights 1, 1/4 and 1, one positive ignored by it, over the 6 anchors sampled
        ("own", (2.5 + 2) * LN2 / 5, 2.25 * SMOOTH / 6),
        ("batch", (2.5 + 2) * LN2 / 5, 2.25 * SMOOTH / 6),
        ("paper", 2.5 * LN2 / 3 + 2 * LN2 / 2, 2.25 * SMOOTH / 3),
    ],
)
def test_the_proposal_networks_normalisers_by_hand(
    make_detector: Make, normaliser: str, objectness: float, boxes: float
) -> None:
    network: Any = make_detector("faster_rcnn", normaliser=normaliser).network
    # columns: sampler's label, target objectness, class weight, box weight; the last anchor is between the thresholds
    packed = torch.tensor(
        [[1, 1, 1, 1], [1, 1, 0.5, 0.25], [1, 1, 0, 1], [1, 1, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [-1, 0, 0, 0]]
    )
    wanted = torch.tensor([[0.2, 0, 0, 0]]).repeat(7, 1)
    losses = network.rpn.compute_loss(torch.zeros(7, 1), torch.zeros(7, 4), [packed], [wanted])
    assert [float(loss) for loss in losses] == pytest.approx([objectness, boxes])


@pytest.mark.parametrize(
    ("normaliser", "classes", "boxes"),
    [
        # as above, with ln 4 for a flat softmax over background and three classes
        ("own", (2.5 + 2) * 2 * LN2 / 5, 2.25 * SMOOTH / 6),
        ("batch", (2.5 + 2) * 2 * LN2 / 5, 2.25 * SMOOTH / 6),
        ("paper", 2.5 * 2 * LN2 / 3 + 2 * 2 * LN2 / 2, 2.25 * SMOOTH / 3),
    ],
)
def test_the_box_heads_normalisers_by_hand(make_detector: Make, normaliser: str, classes: float, boxes: float) -> None:
    network = make_detector("faster_rcnn", normaliser=normaliser).network
    assert isinstance(network, WeightedFasterRCNN)
    # six proposals: one on each of four targets, then two on none
    samples = Samples(
        torch.tensor([1, 2, 0, 1, 0, 0]),
        torch.tensor([1, 0.5, 0, 1, 1, 1]),
        torch.tensor([1, 2, 3, 1, 1, 1]),
        torch.tensor([[0.2, 0, 0, 0]]).repeat(6, 1),
        torch.tensor([1, 0.25, 1, 0, 0, 0]),
    )
    losses = network.roi_heads.losses(torch.zeros(6, 4), torch.zeros(6, 16), samples)
    assert numbers(losses) == pytest.approx({"loss_classifier": classes, "loss_box_reg": boxes})


# ------------------------------------------------------------------------------------------- what is drawn


def test_what_is_sampled_of_an_image_depends_on_its_own_seed_alone() -> None:
    def drawn(seeds: list[int], images: list[Tensor]) -> list[list[int]]:
        sampler.seeds = seeds
        return [mask.nonzero()[:, 0].tolist() for masks in sampler(images) for mask in masks]

    sampler, dice = Sampler(8, 0.5), torch.Generator().manual_seed(0)
    first, second = (torch.randint(-1, 2, (60,), generator=dice) for _ in range(2))
    both = drawn([5, 6], [first, second])
    assert [len(rows) for rows in both] == [4, 4, 4, 4]
    assert drawn([6], [second]) == both[1::2]
    assert drawn([7], [second]) != both[1::2]
    torch.manual_seed(9)
    without = drawn([], [first, second])
    torch.manual_seed(9)
    stock = BalancedPositiveNegativeSampler(8, 0.5)([first, second])
    assert without == [mask.nonzero()[:, 0].tolist() for masks in stock for mask in masks]


# ------------------------------------------------------------------------------------------- which stages are weighted

FIRST_STAGE = {"loss_objectness", "loss_rpn_box_reg"}


def test_weights_act_on_both_stages_or_on_the_box_head_alone(
    faster_rcnn: TorchDetector, make_detector: Make, pictures: list[Picture]
) -> None:
    second_only = make_detector("faster_rcnn", weighted_stages="roi_only")
    light = weighted(BOTH, cls=[0.5, 0.5], box=[0.5, 0.5])
    plain = numbers(losses_of(faster_rcnn, pictures[:1], [BOTH]))
    both, roi_only = (numbers(losses_of(d, pictures[:1], [light])) for d in (faster_rcnn, second_only))
    for term in plain:
        assert both[term] < plain[term]
        assert roi_only[term] == pytest.approx(plain[term] if term in FIRST_STAGE else both[term], rel=1e-6)


def test_with_roi_only_the_first_stage_still_ignores_and_still_trains_background(
    make_detector: Make, pictures: list[Picture], monkeypatch: pytest.MonkeyPatch
) -> None:
    second_only = make_detector("faster_rcnn", weighted_stages="roi_only")
    network: Any = second_only.network
    network.rpn.fg_bg_sampler = BalancedPositiveNegativeSampler(1_000_000, 0.5)
    for target, wanted in [
        (weighted(BOTH, cls=[1, 0], box=[1, 0]), "ignored"),
        (Targets.of(BOTH.boxes, BOTH.labels, Source.REJECTED, 1.0, [1.0, 0.0], [False, True]), "background"),
    ]:
        with monkeypatch.context() as patch:
            seen = RecordedStep(second_only, patch)
            logits, deltas = seen.gradients(losses_of(second_only, pictures[:1], [target]))
        matched = matching(second_only, seen, target)
        assert moved(deltas).equal(matched == 0)
        if wanted == "ignored":
            assert not moved(logits)[matched == 1].any()
        else:
            assert (logits[matched == 1] > 0).all()
