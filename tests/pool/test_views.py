"""Views: boxes and pixels use the same map, and boxes map back exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rarebox.errors import UserError
from rarebox.pool.affine import MAPS, MAX_COVER, Frame
from rarebox.pool.views import CUTOUT_PATCHES, CUTOUT_SIDES, GREY, VIEWS, View, make_views
from rarebox.types import as_boxes


def view(name: str, height: int, width: int, seed: int = 0) -> View:
    return make_views([name], height, width, np.random.default_rng(seed))[0]


@st.composite
def box_and_size(draw: st.DrawFn) -> tuple[np.ndarray, int, int]:
    height, width = draw(st.integers(32, 700)), draw(st.integers(32, 700))
    x = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    y = sorted(draw(st.lists(st.floats(0, 1), min_size=2, max_size=2)))
    box = np.array([x[0] * (width - 1), y[0] * (height - 1), x[1] * (width - 1) + 1, y[1] * (height - 1) + 1])
    return box[None].astype(np.float32), height, width


@given(box_and_size(), st.sampled_from(sorted(VIEWS)))
def test_a_box_maps_back_from_every_view_unchanged(given_box: tuple[np.ndarray, int, int], name: str) -> None:
    box, height, width = given_box
    seen = view(name, height, width)
    assert seen.back(seen.to_view(box)) == pytest.approx(box, abs=4e-3)


@given(box_and_size(), st.sampled_from(sorted(VIEWS)))
def test_a_box_of_the_image_lies_within_every_view(given_box: tuple[np.ndarray, int, int], name: str) -> None:
    box, height, width = given_box
    seen = view(name, height, width)
    assert seen.extent == seen.apply(torch.zeros(3, height, width)).shape[:0:-1]
    # Cutting at the border changes nothing, also where the box touches the image's border.
    uncut = replace(seen, extent=None).to_view(box)
    assert seen.to_view(box) == pytest.approx(uncut, abs=1e-3)


def test_a_box_is_cut_at_the_border_of_a_copy_and_hidden_outside_of_it() -> None:
    # The copy shows the image from x = 40 to x = 100, doubled.
    part = Frame("part", np.array([[2.0, 0, -80], [0, 2, 0]]), extent=(120, 200))
    boxes = as_boxes([[50, 10, 60, 20], [30, 10, 60, 20], [10, 10, 40, 20]])
    assert part.to_view(boxes).tolist() == [[20, 20, 40, 40], [0, 20, 40, 40], [0, 20, 0, 40]]
    assert part.hides(boxes).tolist() == [False, False, True]


def test_the_frame_of_an_original_maps_its_pixels() -> None:
    # The network sees a 200 x 400 original at half its size; the view mirrors that.
    seen = view("flip", 100, 200).from_original(np.array([0.5, 0.5, 0.5, 0.5]))
    assert seen.to_view(as_boxes([[20, 40, 60, 80]])).tolist() == [[170, 20, 190, 40]]
    hidden = Frame("cutout", np.eye(2, 3), as_boxes([[0, 0, 10, 10]])).from_original(np.full(4, 0.5))
    assert hidden.hides(as_boxes([[0, 0, 20, 20], [20, 20, 40, 40]])).tolist() == [True, False]


def test_flip_and_scale_by_hand() -> None:
    box = as_boxes([[10, 20, 30, 60]])
    # mirrored at width 100: x runs from 100 - 30 to 100 - 10
    assert view("flip", 80, 100).to_view(box).tolist() == [[70, 20, 90, 60]]
    # an input of 80 x 100 becomes 64 x 80, and 96 x 120
    assert view("scale_0.8", 80, 100).to_view(box) == pytest.approx(box * 0.8)
    assert view("scale_1.2", 80, 100).to_view(box) == pytest.approx(box * 1.2)


def test_rotation_by_hand_turns_by_5_degrees_about_the_centre_and_fits_the_canvas() -> None:
    seen = view("rotate_5", 100, 100)
    # the hull of the whole 100 x 100 input is the whole view; its grown side 100 (cos 5 + sin 5) shrinks to 100
    assert seen.to_view(as_boxes([[0, 0, 100, 100]])) == pytest.approx(np.array([[0, 0, 100, 100]]), abs=1e-4)
    # a tiny box 40 right of the centre: moved by 40 (cos 5, sin 5) / (cos 5 + sin 5) = 36.78, 3.22
    tiny = seen.to_view(as_boxes([[89.99, 49.99, 90.01, 50.01]]))
    assert tiny[0, :2] == pytest.approx([50 + 36.782, 50 + 3.218], abs=0.05)


# ------------------------------------------------------------------------------------------- pixels


def painted(height: int, width: int, box: tuple[int, int, int, int]) -> Tensor:
    """A black picture with a white rectangle."""
    image = torch.zeros(3, height, width)
    x1, y1, x2, y2 = box
    image[:, y1:y2, x1:x2] = 255
    return image


def bright_hull(image: Tensor, at_least: float) -> list[int]:
    ys, xs = (image.mean(dim=0) > at_least).nonzero(as_tuple=True)
    return [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]


@pytest.mark.parametrize("name", sorted(VIEWS))
@pytest.mark.parametrize(("height", "width"), [(120, 200), (200, 120), (97, 131)])
@pytest.mark.parametrize("box", [(20, 30, 60, 80), (5, 5, 25, 90), (70, 40, 110, 70)])
def test_the_picture_and_the_boxes_take_the_same_map(
    name: str, height: int, width: int, box: tuple[int, int, int, int]
) -> None:
    seen, (x1, y1, x2, y2) = view(name, height, width), box
    rims = as_boxes([[x1, y1, x2, y1 + 4], [x1, y2 - 4, x2, y2], [x1, y1, x1 + 4, y2], [x2 - 4, y1, x2, y2]])
    for seed in range(20):
        if not seen.hides(rims).any():  # else a patch hides the rectangle's rim: take other patches
            break
        seen = view(name, height, width, seed)
    picture = seen.apply(painted(height, width, box))
    # The corners of a rotated picture are grey (117); noise and colours leave white far above 128.
    found = bright_hull(picture, 140 if name != "noise" else 200)
    wanted = seen.to_view(as_boxes([box]))[0]
    assert found == pytest.approx(wanted.tolist(), abs=1.5)


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_leaves_the_input_as_it_was_and_its_values_in_range(name: str) -> None:
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    before = image.clone()
    after = view(name, 64, 96).apply(image)
    assert image.equal(before)
    assert after.min() >= -1e-3
    assert after.max() <= 255 + 1e-3
    assert not after.equal(before) or name == "cutout"


def test_scaling_gives_a_picture_of_the_scaled_size() -> None:
    image = torch.zeros(3, 80, 100)
    assert view("scale_0.8", 80, 100).apply(image).shape == (3, 64, 80)
    assert view("scale_1.2", 80, 100).apply(image).shape == (3, 96, 120)


def test_rotation_fills_the_corners_with_grey() -> None:
    after = view("rotate_5", 100, 100).apply(torch.full((3, 100, 100), 255.0))
    assert after[:, 0, 0] == pytest.approx(torch.full((3,), GREY))
    assert after[:, 50, 50] == pytest.approx(torch.full((3,), 255.0))


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_a_view_repeats_with_its_seed(name: str) -> None:
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)) * 255
    one, again, other = (view(name, 64, 96, seed) for seed in (4, 4, 5))
    assert one.apply(image).equal(again.apply(image))
    assert one.apply(image).equal(one.apply(image))
    if name in ("cutout", "colour", "noise"):
        assert not one.apply(image).equal(other.apply(image))


# ------------------------------------------------------------------------------------------- cutout


@given(st.integers(0, 1000), st.integers(64, 400), st.integers(64, 400))
def test_cutout_hides_two_patches_of_5_to_20_percent_of_each_side(seed: int, height: int, width: int) -> None:
    patches = view("cutout", height, width, seed).patches
    assert patches.shape == (CUTOUT_PATCHES, 4)
    assert CUTOUT_PATCHES == 2
    assert CUTOUT_SIDES == (0.05, 0.2)
    sides = (patches[:, 2:] - patches[:, :2]) / (width, height)
    rounding = 1 / min(height, width)
    assert ((sides >= 0.05 - rounding) & (sides <= 0.2 + rounding)).all()
    assert ((patches >= 0) & (patches <= [width, height, width, height])).all()


def test_cutout_greys_its_patches_and_nothing_else() -> None:
    seen = view("cutout", 100, 100)
    image = torch.full((3, 100, 100), 200.0)
    wanted = image.clone()
    for x1, y1, x2, y2 in seen.patches.astype(int):
        wanted[:, y1:y2, x1:x2] = 117
    assert not wanted.equal(image)
    assert seen.apply(image).equal(wanted)


def test_a_patch_hides_a_box_when_it_covers_more_than_two_fifths_of_it() -> None:
    assert MAX_COVER == 0.4
    patches = as_boxes([[0, 0, 4, 10], [50, 50, 60, 60]])
    seen = Frame("cutout", np.eye(2, 3), patches)
    boxes = as_boxes([[0, 0, 10, 10], [0, 0, 9.9, 10], [51, 51, 59, 59], [20, 20, 30, 30]])
    # 40 of 100; 40 of 99; all; nothing
    assert seen.hides(boxes).tolist() == [False, True, True, False]


def test_two_patches_count_each_by_itself() -> None:
    patches = as_boxes([[0, 0, 4, 10], [6, 0, 10, 10]])  # 40 % each, 80 % together (decisions row 1: each patch)
    assert Frame("cutout", np.eye(2, 3), patches).hides(as_boxes([[0, 0, 10, 10]])).tolist() == [False]


def test_views_without_patches_hide_nothing() -> None:
    assert view("flip", 64, 64).hides(as_boxes([[0, 0, 10, 10]])).tolist() == [False]
    assert view("cutout", 64, 64).hides(as_boxes([])).shape == (0,)


# ------------------------------------------------------------------------------------------- names


def test_views_keep_the_requested_order_and_each_draws_separately() -> None:
    made = make_views(["noise", "flip", "cutout", "cutout"], 64, 64, np.random.default_rng(0))
    assert [v.name for v in made] == ["noise", "flip", "cutout", "cutout"]
    assert not (made[2].patches == made[3].patches).all()


def test_an_unknown_view_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown view 'rotate5'; did you mean 'rotate_5'"):
        make_views(["flip", "rotate5"], 64, 64, np.random.default_rng(0))


def test_maps_by_name_are_those_of_the_views() -> None:
    assert MAPS.keys() == VIEWS.keys() - {"cutout"}  # its patches are drawn at random
    for name, matrix in MAPS.items():
        assert matrix(80, 100).tolist() == view(name, 80, 100).matrix.tolist()
        assert len(view(name, 80, 100).patches) == 0
