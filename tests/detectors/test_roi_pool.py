"""The pooling of boxes as a sparse product gives what torchvision's kernel gives, forwards and backwards."""

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import LevelMapper

from rarebox.detectors.roi_pool import RoIPool

STRIDES = (8, 16, 32)


def pools(side: int, ratio: int) -> tuple[RoIPool, MultiScaleRoIAlign]:
    made = [kind(["0", "1", "2"], side, ratio, canonical_scale=32) for kind in (RoIPool, MultiScaleRoIAlign)]
    for pool in made:
        pool.scales = [1 / stride for stride in STRIDES]
        pool.map_levels = LevelMapper(3, 5, 32, 4)
    return made[0], made[1]  # type: ignore[return-value]


def maps(images: int, dice: torch.Generator) -> dict[str, Tensor]:
    sizes = [(13, 17), (7, 9), (4, 5)]
    return {str(i): torch.randn(images, 6, *size, generator=dice).requires_grad_() for i, size in enumerate(sizes)}


@pytest.mark.parametrize(("side", "ratio"), [(7, 2), (3, 1)])
def test_pooled_boxes_and_their_gradients_are_torchvisions(side: int, ratio: int) -> None:
    dice = torch.Generator().manual_seed(0)
    features, shapes = maps(2, dice), [(104, 136)] * 2
    centre, extent = torch.rand(60, 2, generator=dice) * 140 - 4, torch.rand(60, 2, generator=dice) ** 3 * 130
    boxes = torch.cat([centre - extent / 2, centre + extent / 2], dim=1)  # many of them extend beyond the image
    odd = torch.tensor(
        [[0.0, 0, 136, 104], [5, 5, 5, 5], [-40, -40, -20, -20], [136, 104, 300, 300], [128, 96, 136, 104]]
    )
    given = [torch.cat([boxes[:40], odd]), boxes[40:]]
    ours, theirs = pools(side, ratio)
    results = []
    for pool in (ours, theirs):
        pooled = pool(features, given, shapes)
        torch.manual_seed(1)
        gradients = torch.autograd.grad(pooled, list(features.values()), torch.randn(pooled.shape))
        results.append((pooled, *gradients))
    assert results[0][0].shape == (65, 6, side, side)
    for one, other in zip(*results, strict=True):
        assert other.abs().sum() > 0
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_all_levels_are_looked_up_and_no_box_is_none() -> None:
    ours, _ = pools(7, 2)
    features = maps(1, torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 40, 40], [0, 0, 130, 100]])
    ours(features, [boxes], [(104, 136)]).sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in features.values())
    assert ours(features, [boxes[:0]], [(104, 136)]).shape == (0, 6, 7, 7)


def test_under_mixed_precision_the_sum_is_made_in_full_precision() -> None:
    ours, theirs = pools(7, 2)
    features = {name: level.detach().bfloat16() for name, level in maps(1, torch.Generator().manual_seed(0)).items()}
    boxes = torch.tensor([[3.0, 4, 90, 80], [20, 30, 44, 41]])
    exact = theirs({name: level.float() for name, level in features.items()}, [boxes], [(104, 136)])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(ours(features, [boxes], [(104, 136)]).float(), exact, atol=1e-5, rtol=1e-5)
