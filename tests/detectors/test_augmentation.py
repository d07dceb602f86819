"""Augmented images and their boxes, the order in which a fit draws images, and the recipe settings."""

import numpy as np
import pytest
import torch

from rarebox.config import TrainingSettings
from rarebox.detectors.augmentation import VISIBLE, Draw, augmented
from rarebox.detectors.training import Walk, repeat_factors
from rarebox.types import Picture, Source, Targets

CPU = torch.device("cpu")
SIZE = (80, 120)
BOX = [10.0, 20.0, 70.0, 50.0]
PLAIN = Draw(mirrored=False, scale=1.0, place=(0.5, 0.5), colour=(1.0, 1.0, 1.0))


def white_box() -> Picture:
    """A white box on black, in a picture of twice the size of the input."""
    pixels = np.zeros((160, 240, 3), dtype=np.uint8)
    pixels[40:100, 20:140] = 255
    return Picture(pixels, 120, 80)


def hull(image: torch.Tensor) -> list[int]:
    ys, xs = (image.mean(dim=0) > 128).nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("place", [(0.0, 0.0), (1.0, 1.0), (0.2, 0.6)])
@pytest.mark.parametrize("crop", [False, True])
def test_augmented_boxes_stay_on_their_objects(
    mirrored: bool, scale: float, place: tuple[float, float], crop: bool
) -> None:
    draw = Draw(mirrored, scale, place, (0.9, 1.1, 0.5))
    image, truth = augmented(white_box(), Targets.of([BOX], [2]), draw, SIZE, crop, CPU)
    assert isinstance(image, torch.Tensor)
    assert truth["boxes"][0].tolist() == pytest.approx(hull(image), abs=1)
    assert truth["labels"].tolist() == [2]
    wanted = SIZE if crop and scale > 1 else tuple(round(side * scale) for side in SIZE)
    assert image.shape == (3, *wanted)


def test_without_augmentation_nothing_changes() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    image, truth = augmented(Picture(pixels, 120, 80), Targets.of([BOX], [2]), PLAIN, SIZE, crop=True, device=CPU)
    assert truth["boxes"].tolist() == [BOX]
    assert isinstance(image, torch.Tensor)
    assert image.permute(1, 2, 0).equal(torch.tensor(pixels).float())


def test_a_box_that_a_crop_hardly_shows_is_ignored_and_one_outside_is_gone() -> None:
    """At scale 2 and the upper left, the crop shows x < 60 and y < 40 of the original."""
    boxes = [[0, 0, 50, 30], [50, 0, 70, 30], [56, 0, 76, 30], [70, 50, 90, 70]]  # all, half, a fifth, none
    draw = Draw(mirrored=False, scale=2.0, place=(0.0, 0.0), colour=PLAIN.colour)
    _, truth = augmented(white_box(), Targets.of(boxes, [0, 1, 2, 3]), draw, SIZE, crop=True, device=CPU)
    assert truth["boxes"].tolist() == [[0, 0, 100, 60], [100, 0, 120, 60], [112, 0, 120, 60]]
    assert truth["class_weight"].tolist() == truth["box_weight"].tolist() == [1, 1, 0]
    assert 4 / 20 < VISIBLE < 10 / 20


def test_colour_factors_by_hand() -> None:
    pixels = np.full((80, 120, 3), (100, 50, 200), dtype=np.uint8)
    pixels[:, 60:] = (200, 200, 200)
    for factors, left, right in [
        ((1.2, 1.0, 1.0), (120, 60, 240), (240, 240, 240)),
        # the left half's luminance is 0.299 * 100 + 0.587 * 50 + 0.114 * 200 = 82.05, the mean 141.025
        ((1.0, 1.0, 0.0), (82.05, 82.05, 82.05), (200, 200, 200)),
        ((1.0, 0.5, 1.0), (120.5125, 95.5125, 170.5125), (170.5125, 170.5125, 170.5125)),
    ]:
        draw = Draw(mirrored=False, scale=1.0, place=(0, 0), colour=factors)
        image, _ = augmented(Picture(pixels, 120, 80), Targets.of([BOX], [0]), draw, SIZE, crop=True, device=CPU)
        assert isinstance(image, torch.Tensor)
        assert image[:, 0, 0].tolist() == pytest.approx(left, abs=0.01)
        assert image[:, 0, -1].tolist() == pytest.approx(right, abs=0.01)


def test_draws_cover_their_ranges_and_come_from_the_generator_alone() -> None:
    settings = TrainingSettings(flip=0.5, zoom=1.5, colour_jitter=0.4)
    draws = [Draw.of(np.random.default_rng(seed), settings) for seed in range(400)]
    assert draws == [Draw.of(np.random.default_rng(seed), settings) for seed in range(400)]
    scales = np.array([draw.scale for draw in draws])
    assert (scales.min(), scales.max()) == pytest.approx((1 / 1.5, 1.5), rel=0.02)
    assert np.median(scales) == pytest.approx(1, abs=0.05)  # as often smaller as larger
    assert 160 < sum(draw.mirrored for draw in draws) < 240
    factors = np.array([draw.colour for draw in draws])
    assert factors.min() == pytest.approx(0.6, abs=0.01)
    assert factors.max() == pytest.approx(1.4, abs=0.01)
    still = Draw.of(np.random.default_rng(0), TrainingSettings(flip=0))
    assert (still.mirrored, still.scale, still.colour) == (False, 1.0, (1.0, 1.0, 1.0))


# ------------------------------------------------------------------------------------------- rare classes


def shows(*labels: int, source: Source = Source.HUMAN, weight: float = 1.0, background: bool = False) -> Targets:
    return Targets.of([[0, 0, 9, 9]] * len(labels), labels, source, weight, weight, background)


def test_repeat_factors_by_hand() -> None:
    """Class 0 is on 8 of 8 images, class 1 on 2 (factor sqrt(0.5 / 0.25)), class 2 on 1 (factor 2)."""
    targets = [shows(0), shows(0, 1), shows(0, 1, 2), *(shows(0) for _ in range(5))]
    assert repeat_factors(targets, 0.5) == pytest.approx([1, 2**0.5, 2, 1, 1, 1, 1, 1])
    hidden = [shows(0), shows(1, weight=0.0), shows(1, source=Source.REJECTED, background=True), shows()]
    assert repeat_factors(hidden, 0.5) == pytest.approx([2**0.5, 1, 1, 1])


def test_an_image_is_drawn_as_often_as_its_factor_says() -> None:
    repeat = np.array([1.0, 1.0, 2.0, 4.0])
    walk = Walk(3, np.zeros(4, dtype=bool), 2, repeat=repeat)
    steps = [walk(step) for step in range(400)]  # 200 epochs of 2 batches
    counts = np.bincount(np.concatenate(steps), minlength=4)
    assert counts / counts.sum() == pytest.approx(repeat / repeat.sum(), abs=0.02)
    assert all(len(step) == 2 for step in steps)
    assert steps == [Walk(3, np.zeros(4, dtype=bool), 2, repeat=repeat)(step) for step in range(400)]
