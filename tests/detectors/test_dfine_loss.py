"""D-FINE's loss: the library's own if every weight is 1, otherwise Eq. 7."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert
from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss

from rarebox.detectors import TorchDetector
from rarebox.detectors.dfine import describe
from rarebox.detectors.dfine_loss import SetLoss, Wanted
from rarebox.types import Picture, Targets
from tests import tiny_dfine

CANVAS = 100
"""Height and width of the canvas, in pixels: targets are given in percent of it."""

CONFIG = describe(tiny_dfine.TINY, 3)
QUERIES, LAYERS = 30, CONFIG.decoder_layers


@pytest.fixture(scope="module")
def dfine() -> Iterator[TorchDetector]:
    with tiny_dfine.installed():
        yield tiny_dfine.make()


def wanted(*rows: tuple[list[float], int, float, float, bool]) -> Wanted:
    """Targets of one image: corners in percent of the canvas, class, class weight, box weight, background."""
    boxes, labels, class_weight, box_weight, background = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "class_weight": torch.tensor(class_weight, dtype=torch.float32),
        "box_weight": torch.tensor(box_weight, dtype=torch.float32),
        "background": torch.tensor(background, dtype=torch.bool),
    }
    return Wanted.of(target, (CANVAS, CANVAS))


def outputs(images: int = 1, boxes: dict[int, list[float]] | None = None, noisy: dict[str, Any] | None = None) -> Any:
    """Possible outputs of a decoder, with gradients: ``boxes`` are the corners of some queries, in percent of the
    canvas.

    The other queries are in the last tenth of the canvas.
    """
    dice = torch.Generator().manual_seed(8)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=dice)

    count = QUERIES + (noisy["dn_num_split"][0] if noisy else 0)
    places = torch.rand(images, count, 4, generator=dice) * 0.05 + torch.tensor([0.93, 0.93, 0.01, 0.01])
    for query, corners in (boxes or {}).items():
        places[:, count - QUERIES + query] = box_convert(torch.tensor(corners) / CANVAS, "xyxy", "cxcywh")
    all_layers = places[:, None].repeat(1, LAYERS + 1, 1, 1) + 0.002 * random(images, LAYERS + 1, count, 4)
    return SimpleNamespace(
        intermediate_logits=random(images, LAYERS + 1, count, 3).requires_grad_(),
        intermediate_reference_points=all_layers.requires_grad_(),
        intermediate_predicted_corners=random(images, LAYERS, count, 4 * 33).requires_grad_(),
        initial_reference_points=all_layers[:, :LAYERS].detach() * 1.05,
        enc_topk_logits=random(images, QUERIES, 3).requires_grad_(),
        enc_topk_bboxes=all_layers[:, 0, count - QUERIES :].detach().clone().requires_grad_(),
        denoising_meta_values=noisy,
    )


def gradients(given: Any, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """The size of the gradient at each query, summed over layers: (B, Q) by output."""
    names = ("intermediate_logits", "intermediate_reference_points", "intermediate_predicted_corners")
    names = (*names, "enc_topk_logits", "enc_topk_bboxes")
    loss = torch.stack(list(terms.values())).sum()
    found = torch.autograd.grad(loss, [getattr(given, name) for name in names], allow_unused=True)
    return {
        name: gradient.abs().sum(dim=-1).reshape(len(gradient), -1, gradient.shape[-2]).sum(dim=1)
        for name, gradient in zip(names, found, strict=True)
        if gradient is not None
    }


def slopes(given: Any, terms: dict[str, Tensor]) -> Tensor:
    """The gradient of the logits."""
    return torch.autograd.grad(torch.stack(list(terms.values())).sum(), given.intermediate_logits)[0]


def loss_of(given: Any, *images: Wanted, normaliser: Any = "own", two_sided: bool = False) -> dict[str, Tensor]:
    return SetLoss(CONFIG, normaliser, two_sided)(given, images)


A, B, FAR = [10.0, 10, 40, 40], [50.0, 20, 70, 60], [10.0, 60, 30, 80]
NEAR_A, NEAR_B, NEAR_FAR = [12.0, 9, 41, 38], [49.0, 22, 71, 58], [11.0, 61, 31, 79]

NOISY = {
    "dn_positive_idx": [torch.tensor([0, 1, 4, 5]), torch.tensor([0, 4])],
    "dn_num_group": 2,
    "dn_num_split": [8, QUERIES],
}
"""Two groups of denoising queries for two targets in one image and one in the other: positives, then negatives."""


def test_with_weights_of_one_every_term_is_the_librarys() -> None:
    images = wanted((A, 0, 1, 1, False), (B, 2, 1, 1, False)), wanted((FAR, 1, 1, 1, False))
    for noisy in (NOISY, None):
        denoised = {i - 8: box for i, box in enumerate([NEAR_A, NEAR_B, B, A] * 2)} if noisy else {}
        given = outputs(2, {3: NEAR_A, 4: NEAR_B, 5: NEAR_FAR, **denoised}, noisy)
        ours = loss_of(given, *images)
        _, theirs, _ = DFineForObjectDetectionLoss(
            given.intermediate_logits[:, -1],
            [image.as_labels for image in images],
            torch.device("cpu"),
            given.intermediate_reference_points[:, -1],
            CONFIG,
            given.intermediate_logits,
            given.intermediate_reference_points,
            enc_topk_logits=given.enc_topk_logits,
            enc_topk_bboxes=given.enc_topk_bboxes,
            denoising_meta_values=noisy,
            predicted_corners=given.intermediate_predicted_corners,
            initial_reference_points=given.initial_reference_points,
        )
        assert set(theirs) - set(ours) <= {f"loss_ddf_dn_{LAYERS - 1}"}  # the teacher distilled from itself: 0
        assert len(ours) == len(theirs) - (noisy is not None)
        for name, term in ours.items():
            assert float(term.detach()) == pytest.approx(float(theirs[name].detach()), rel=1e-6), name
            assert float(term.detach()) > 0
        for mine, their in zip(*(gradients(given, t).values() for t in (ours, theirs)), strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-5, atol=1e-6)


def test_the_whole_networks_loss_is_that_of_the_librarys_network(dfine: TorchDetector) -> None:
    noise = torch.randint(0, 255, (2, 64, 64, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    pictures = [Picture(image.numpy(), 64, 64) for image in noise]
    targets = [Targets.of([[4, 6, 40, 50], [50, 20, 60, 44]], [2, 0]), Targets.of([[10, 10, 50, 60]], [1])]
    network: Any = dfine.network
    inputs, truths = dfine._prepare(pictures, targets)
    pixels = torch.stack([image for image in inputs if isinstance(image, Tensor)]) / 255
    truths[0]["seed"] = torch.tensor(5)
    ours = network.train()(inputs, truths)
    stock, labels = tiny_dfine.stock_of(network), [Wanted.of(truth, (64, 64)).as_labels for truth in truths]
    torch.manual_seed(5)
    theirs = stock(pixel_values=pixels, labels=labels).loss_dict
    assert len(ours) == len(theirs) - 1 > 25
    for name, term in ours.items():
        assert float(term.detach()) == pytest.approx(float(theirs[name].detach()), rel=1e-4), name


def test_an_ignored_box_gives_no_gradient_and_is_no_background() -> None:
    boxes = {3: NEAR_A, 4: NEAR_B, 5: [46.0, 20, 66, 60]}  # two queries show B, one of them badly
    given = outputs(boxes=boxes)
    touched = gradients(given, loss_of(given, wanted((B, 2, 0, 0, False))))
    assert all((gradient[0, [4, 5]] == 0).all() for gradient in touched.values())
    assert touched["intermediate_logits"][0, 3] > 0  # elsewhere it is background
    assert touched["enc_topk_logits"][0, 3] > 0


def test_an_ignored_box_changes_nothing_for_the_others() -> None:
    boxes = {3: NEAR_A, 4: NEAR_B}
    given = outputs(boxes=boxes)
    without = loss_of(given, wanted((A, 0, 1, 1, False)))
    with_it = loss_of(given, wanted((A, 0, 1, 1, False), (B, 2, 0, 0, False)))
    for name in without:
        if "vfl" not in name and "ddf" not in name:
            assert with_it[name].equal(without[name]), name
    # The class loss omits the ignored query's part, and is divided by one object as before.
    logits = given.intermediate_logits[0, -1, 4]
    probs = logits.sigmoid()
    share = (0.75 * probs**2 * -(1 - probs).log()).sum()
    torch.testing.assert_close(without["loss_vfl"] - with_it["loss_vfl"], share, rtol=1e-4, atol=1e-5)


def test_a_query_on_a_rejected_box_becomes_background() -> None:
    boxes = {3: NEAR_A, 4: NEAR_B}
    given = outputs(boxes=boxes)
    images = wanted((B, 2, 0, 0, False), (B, 0, 1, 0, True))  # ignored by a pseudo label, rejected by a person
    slope = slopes(given, loss_of(given, images))
    assert (slope[0, -1, 4] > 0).all()  # a step along the negative gradient lowers every class
    lone = outputs(boxes=boxes)
    slope = slopes(lone, loss_of(lone, wanted((B, 2, 0, 0, False))))
    assert (slope[0, -1, 4] == 0).all()


def test_each_weight_scales_the_terms_of_its_branch() -> None:
    given = outputs(boxes={3: NEAR_A, 4: NEAR_B})
    full = loss_of(given, wanted((A, 0, 1, 1, False)))
    quarter = loss_of(given, wanted((A, 0, 1, 0.25, False)))
    half = loss_of(given, wanted((A, 0, 0.5, 1, False)))
    for name in full:
        if "vfl" in name:
            assert quarter[name].equal(full[name])
        elif "ddf" in name:
            assert half[name].equal(full[name])
            assert quarter[name] < full[name]
        else:
            assert half[name].equal(full[name])
            torch.testing.assert_close(quarter[name], full[name] / 4)
    # By hand: the varifocal loss of the matched query, whose target is its IoU, counts half.
    shown = box_convert(given.intermediate_reference_points[0, -1, 3].detach(), "cxcywh", "xyxy") * CANVAS
    low, high = torch.maximum(shown[:2], torch.tensor([10.0, 10])), torch.minimum(shown[2:], torch.tensor([40.0, 40]))
    shared = (high - low).prod()
    iou = shared / (900 + (shown[2:] - shown[:2]).prod() - shared)
    logits = given.intermediate_logits[0, -1, 3].detach()
    probs = logits.sigmoid()
    own = -iou * (iou * probs[0].log() + (1 - iou) * (1 - probs[0]).log())
    others = -(0.75 * probs[1:] ** 2 * (1 - probs[1:]).log()).sum()
    torch.testing.assert_close((full["loss_vfl"] - half["loss_vfl"]).detach(), (own + others) / 2, rtol=1e-4, atol=1e-5)


def test_a_two_sided_weight_has_background_as_its_counterweight() -> None:
    given = outputs(2, {3: NEAR_A, 4: NEAR_B, **{i - 8: box for i, box in enumerate([NEAR_A, NEAR_B] * 4)}}, NOISY)
    other = wanted((FAR, 1, 0, 0.5, False))

    def loss(weight: float, two_sided: bool) -> dict[str, Tensor]:
        return loss_of(given, wanted((A, 0, weight, 1, False), (B, 2, 1, 1, False)), other, two_sided=two_sided)

    one = loss(1.0, False)
    for name, term in loss(1.0, True).items():
        assert term.equal(one[name]), name
    quarter, rejected = loss(0.25, True), loss_of(given, wanted((A, 0, 1, 1, True), (B, 2, 1, 1, False)), other)
    names = [name for name in one if "vfl" in name]
    assert len(names) == 2 * LAYERS + 1
    for name in names:
        # With A rejected its query is background, and one object is counted instead of two.
        torch.testing.assert_close(quarter[name], 0.25 * one[name] + 0.75 * rejected[name] / 2)


def test_sums_are_divided_by_the_targets_whose_weight_is_above_0() -> None:
    given = outputs(boxes={3: NEAR_A, 4: NEAR_B})
    alone = loss_of(given, wanted((A, 0, 1, 1, False)))
    soft = loss_of(given, wanted((A, 0, 1, 1, False), (B, 2, 0.5, 0, False)))  # the box branch still has one target
    torch.testing.assert_close(soft["loss_bbox"], alone["loss_bbox"])
    torch.testing.assert_close(soft["loss_giou_aux_1"], alone["loss_giou_aux_1"])
    places = loss_of(given, wanted((A, 0, 1, 1, False), (B, 2, 0, 0.5, False)))  # and so does the class branch here
    ignored = loss_of(given, wanted((A, 0, 1, 1, False), (B, 2, 0, 0, False)))
    torch.testing.assert_close(places["loss_vfl"], ignored["loss_vfl"])
    both = loss_of(given, wanted((A, 0, 1, 1, False), (B, 2, 1, 1, False)))
    torch.testing.assert_close(2 * places["loss_bbox"], 2 * both["loss_bbox"] * 0.5 + alone["loss_bbox"] * 0.5)


def test_the_papers_normaliser_divides_negatives_by_their_number() -> None:
    given = outputs(boxes={3: NEAR_A})
    images = wanted((A, 0, 1, 1, False), (B, 1, 1, 1, False))
    own, paper = (loss_of(given, images, normaliser=kind) for kind in ("own", "paper"))
    assert paper["loss_bbox"].equal(own["loss_bbox"])
    zero = wanted((A, 0, 0, 1, False), (B, 1, 0, 1, False))  # negatives alone, each matched query ignored
    negatives = loss_of(given, zero, normaliser="own")["loss_vfl"]  # divided by max(1, no object)
    torch.testing.assert_close(
        paper["loss_vfl"], own["loss_vfl"] - negatives / 2 + negatives / (QUERIES - 2), rtol=1e-5, atol=1e-6
    )


def test_a_box_that_one_branch_trusts_trains_that_branch_alone() -> None:
    given = outputs(boxes={3: NEAR_A, 4: NEAR_B})
    for class_weight, box_weight, background in ((1.0, 0.0, False), (0.0, 1.0, False), (1.0, 1.0, True)):
        touched = gradients(given, loss_of(given, wanted((A, 0, class_weight, box_weight, background))))
        assert (touched["enc_topk_logits"][0, 3] > 0) == (class_weight > 0)
        assert (touched["enc_topk_bboxes"][0, 3] > 0) == (box_weight > 0)
        assert (touched["intermediate_predicted_corners"][0, 3] > 0) == (box_weight > 0)
    slope = slopes(given, {"vfl": loss_of(given, wanted((A, 0, 1, 1, True)))["loss_vfl"]})
    assert (slope[0, -1, 3] > 0).all()  # background to the class branch


def test_denoising_queries_are_weighted_like_their_targets() -> None:
    near = {i - 8: box for i, box in enumerate([NEAR_A, NEAR_B, NEAR_FAR, FAR] * 2)}
    given = outputs(2, near, NOISY)
    images = wanted((A, 0, 1, 1, False), (B, 2, 1, 0, False)), wanted((FAR, 1, 0, 0.5, False))
    terms = loss_of(given, *images)
    touched = gradients(given, {name: term for name, term in terms.items() if "_dn_" in name})
    logits, boxes = touched["intermediate_logits"], touched["intermediate_reference_points"]
    assert (logits[0, [0, 1, 4, 5]] > 0).all()
    assert (boxes[0, [0, 4]] > 0).all()
    assert (boxes[0, [1, 5]] == 0).all()  # no box weight
    assert (logits[1, [0, 4]] == 0).all()  # no class weight
    assert (boxes[1, [0, 4]] > 0).all()
    assert (logits[1, [2, 3, 6, 7]] == 0).all()  # negatives that show the box which the class branch ignores
    assert (logits[0, [2, 3, 6, 7]] > 0).all()
    assert (logits[:, 8:] == 0).all()


def test_an_image_without_targets_is_background() -> None:
    given = outputs(boxes={3: NEAR_A})
    touched = gradients(given, loss_of(given, wanted()))
    assert (touched["intermediate_logits"] > 0).all()
    assert (touched["intermediate_reference_points"] == 0).all()
