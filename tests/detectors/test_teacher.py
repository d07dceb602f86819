"""Soft labels with background as the counterweight, and the moving average that renews pseudo labels."""

import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rarebox.config import PseudoSettings
from rarebox.detectors.faster_rcnn import Samples, WeightedProposals, WeightedRoIHeads
from rarebox.detectors.inputs import as_target
from rarebox.detectors.losses import Assignment
from rarebox.detectors.retinanet import WeightedHead
from rarebox.detectors.teacher import Average, Renewal
from rarebox.method import two_sided_loss
from rarebox.types import Source, Targets, concatenate

CPU = torch.device("cpu")


def test_two_sided_loss_by_hand() -> None:
    loss = two_sided_loss(np.array([2.0, 3.0, 5.0]), np.array([0.5, 1.0, 7.0]), np.array([1.0, 0.25, 0.5]))
    assert loss.tolist() == [2.0, 0.25 * 3 + 0.75 * 1, 6.0]


def test_the_box_heads_two_sided_loss_by_hand() -> None:
    """Two proposals of weight 1 and 0.25 on class 1 of 2, and one negative."""
    heads: Any = WeightedRoIHeads.__new__(WeightedRoIHeads)
    nn.Module.__init__(heads)
    heads.two_sided, heads.normaliser = True, "own"
    logits = torch.tensor([[0.1, 0.7, -0.4], [0.3, -0.2, 0.9], [1.0, 0.0, 0.0]])
    samples = Samples(
        label=torch.tensor([1, 1, 0]),
        class_weight=torch.tensor([1.0, 0.25, 1.0]),
        box_label=torch.zeros(3, dtype=torch.int64),
        deltas=torch.zeros(3, 4),
        box_weight=torch.zeros(3),
    )
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    wanted = -(math.log(p[0][1]) + 0.25 * math.log(p[1][1]) + 0.75 * math.log(p[1][0]) + math.log(p[2][0])) / 3
    assert float(heads.losses(logits, torch.zeros(3, 12), samples)["loss_classifier"]) == pytest.approx(wanted)


def test_the_proposals_two_sided_loss_by_hand() -> None:
    rpn: Any = WeightedProposals.__new__(WeightedProposals)
    nn.Module.__init__(rpn)
    rpn.two_sided, rpn.normaliser = True, "own"
    rpn.fg_bg_sampler = lambda labels: (
        [(columns == 1).to(torch.uint8) for columns in labels],
        [(columns == 0).to(torch.uint8) for columns in labels],
    )
    objectness = torch.tensor([[0.4], [-0.3], [0.2]])
    packed = torch.tensor(
        [[1.0, 1, 0.25, 0], [0, 0, 1, 0], [-1, 0, 0, 0]]
    )  # positive of weight 0.25, negative, ignored
    loss, _ = rpn.compute_loss(objectness, torch.zeros(3, 4), [packed], [torch.zeros(3, 4)])

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    wanted = -(0.25 * log_sigmoid(0.4) + 0.75 * log_sigmoid(-0.4) + log_sigmoid(0.3)) / 2
    assert float(loss) == pytest.approx(wanted)


def test_retinanets_two_sided_loss_by_hand() -> None:
    head = WeightedHead(8, 1, 2)
    head.two_sided = True
    target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": torch.tensor([1])}
    given = Assignment(
        torch.tensor([0]), torch.tensor([True]), torch.tensor([0.25]), torch.tensor([0]), torch.tensor([0.0])
    )
    logits = torch.tensor([[0.3, -0.5]])
    loss, _, weight, *_ = head._samples(target, logits, torch.zeros(1, 4), torch.tensor([[0.0, 0, 8, 8]]), given)

    def focal(x: float, positive: bool) -> float:
        p = 1 / (1 + math.exp(-x))
        return -0.25 * (1 - p) ** 2 * math.log(p) if positive else -0.75 * p**2 * math.log(1 - p)

    other = focal(0.3, False)
    assert float(loss[0]) == pytest.approx(0.25 * (focal(-0.5, True) + other) + 0.75 * (focal(-0.5, False) + other))
    assert weight.tolist() == [1.0]


@pytest.mark.parametrize("weight", [0.2, 0.7])
def test_a_two_sided_loss_ends_at_the_weight_and_a_one_sided_one_at_1(weight: float) -> None:
    ends: dict[bool, float] = {}
    for two_sided in (True, False):
        logit = torch.zeros(1, requires_grad=True)
        for _ in range(3000):
            positive, background = nn.functional.softplus(-logit), nn.functional.softplus(logit)
            loss = two_sided_loss(positive, background, torch.tensor([weight])) if two_sided else weight * positive
            (slope,) = torch.autograd.grad(loss.sum(), logit)
            logit = (logit - slope).detach().requires_grad_()
        ends[two_sided] = float(logit.detach().sigmoid())
    assert ends[True] == pytest.approx(weight, abs=1e-3)
    assert ends[False] > 0.99


# ------------------------------------------------------------------------------------------- the teacher


def test_the_average_follows_the_weights_and_replaces_them() -> None:
    network = nn.Linear(1, 1, bias=False)
    frozen = nn.Parameter(torch.tensor([7.0]), requires_grad=False)
    network.register_parameter("frozen", frozen)
    network.weight.data.fill_(0.0)
    average = Average(network, 0.5)
    for step, value in enumerate([1.0, 2.0, 3.0]):
        network.weight.data.fill_(value)
        average.update(step)
    expected = 0.0
    for value, decay in zip([1.0, 2.0, 3.0], [1 / 10, 2 / 11, 3 / 12], strict=True):
        expected = decay * expected + (1 - decay) * value
    assert network.weight.item() == 3
    average.apply()
    assert network.weight.item() == pytest.approx(expected)
    assert average.teacher is not None
    late = Average(network, 0.5)
    network.weight.data.fill_(expected + 1)
    late.update(1000)
    assert float(late.weights[0]) == pytest.approx(expected + 0.5)
    nothing = Average(network, 0.0)
    nothing.update(0)
    nothing.apply()
    assert nothing.weights == []


class Seen(nn.Module):
    """A teacher that reports fixed detections and counts the images it is shown."""

    def __init__(self, boxes: list[list[float]], scores: list[float]) -> None:
        super().__init__()
        self.found = {
            "boxes": torch.tensor(boxes),
            "labels": torch.arange(len(boxes)),
            "scores": torch.tensor(scores),
        }
        self.shown = 0

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        self.shown += len(images)
        return [self.found] * len(images)


def target(*parts: Targets, partial: bool) -> dict[str, Tensor]:
    truth = as_target(concatenate(list(parts)), np.ones(4, np.float32), CPU)
    return {**truth, "partial": torch.tensor(partial)}


def test_a_teacher_renews_pseudo_labels_on_partially_labelled_images_alone() -> None:
    human = Targets.of([[0, 0, 10, 10]], [3])
    rejected = Targets.of([[50, 50, 60, 60]], [0], Source.REJECTED, 1.0, 0.0, background=True)
    old = Targets.of([[20, 20, 30, 30]], [1], Source.PSEUDO, 0.5, 0.5)
    sure, doubted, weak = [80.0, 0, 90, 10], [80.0, 20, 90, 30], [80.0, 40, 90, 50]
    on_human, on_rejected = [0.0, 0, 10, 9], [50.0, 50, 60, 59]
    teacher = Seen([sure, doubted, weak, on_human, on_rejected], [0.8, 0.5, 0.1, 0.9, 0.9])
    renewal = Renewal(PseudoSettings(class_high=0.7, class_low=0.2), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    truths = [target(human, rejected, old, partial=True), target(human, partial=False)]
    new, complete = renewal(teacher, [torch.zeros(3, 100, 100)] * 2, truths)
    assert teacher.shown == 1
    assert complete is truths[1]
    assert new["boxes"].tolist() == [[0, 0, 10, 10], [50, 50, 60, 60], sure, doubted]
    assert new["labels"].tolist() == [3, 0, 0, 1]
    assert new["class_weight"].tolist() == [1, 1, 1, 0]
    assert new["box_weight"].tolist() == [1, 0, 1, 0]
    assert new["background"].tolist() == [False, True, False, False]
    assert new["pseudo"].tolist() == [False, False, True, True]


def test_the_thresholds_apply_to_calibrated_scores() -> None:
    """Detections with score 0.8 of a detector that is right half the time are not trained on."""
    teacher = Seen([[80.0, 0, 90, 10]], [0.8])
    truth = target(Targets.of([[0, 0, 10, 10]], [3]), partial=True)
    for worth, weight in ((0.5, 0.0), (0.9, 1.0)):
        points = np.array([0.0, 0.8, 1.0]), np.array([0.0, worth, 1.0])
        (new,) = Renewal(PseudoSettings(class_high=0.7, class_low=0.2), *points)(
            teacher, [torch.zeros(3, 99, 99)], [truth]
        )
        assert cast(Tensor, new["class_weight"]).tolist() == [1.0, weight]
