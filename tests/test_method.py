"""Eq. 1 to Eq. 7 against hand-computed numbers, and properties that hold for all numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rarebox import method

UNIT = st.floats(0, 1, allow_subnormal=False)


def row(*values: float) -> np.ndarray:
    return np.array(values)


# ------------------------------------------------------------------------------------------- Jensen-Shannon


def test_js_of_two_vectors_by_hand() -> None:
    # p = (1, 0), q = (1/2, 1/2), mean = (3/4, 1/4).
    # KL(p | mean) = log2(4/3) = 0.4150375; KL(q | mean) = (log2(2/3) + log2(2)) / 2 = (-0.5849625 + 1) / 2 = 0.2075187
    # JS = (0.4150375 + 0.2075187) / 2 = 0.3112781
    assert method.js_divergence(row(1, 0), row(0.5, 0.5)) == pytest.approx(0.3112781, abs=1e-7)


def test_js_in_nats_is_ln_2_times_that_in_bits() -> None:
    # 0.3112781 * 0.6931472 = 0.2157615
    assert method.js_divergence(row(1, 0), row(0.5, 0.5), base=math.e) == pytest.approx(0.2157615, abs=1e-7)


def test_js_of_disjoint_vectors_is_one_bit() -> None:
    # mean = (1/2, 1/4, 1/4): KL(p | mean) = log2(2) = 1, KL(q | mean) = 1/2 log2(2) + 1/2 log2(2) = 1
    assert method.js_divergence(row(1, 0, 0), row(0, 0.5, 0.5)) == pytest.approx(1)
    assert method.js_divergence(row(1, 0, 0), row(0, 0.5, 0.5), base=math.e) == pytest.approx(math.log(2))


def test_js_normalises_each_row_by_itself() -> None:
    # (3, 0) is (1, 0) and (0.2, 0.2) is (1/2, 1/2): the case worked above
    assert method.js_divergence(row(3, 0), row(0.2, 0.2)) == pytest.approx(0.3112781, abs=1e-7)


def test_js_treats_a_vector_of_zeros_as_uniform() -> None:
    assert method.js_divergence(row(0, 0), row(1, 0)) == pytest.approx(0.3112781, abs=1e-7)
    assert method.js_divergence(row(0, 0), row(0, 0)) == 0


def test_js_goes_row_by_row_and_over_any_leading_axes() -> None:
    p, q = np.array([[[1, 0], [0.3, 0.3]]]), np.array([[[0, 1], [2, 2]]])
    assert method.js_divergence(p, q) == pytest.approx(np.array([[1.0, 0.0]]))


CLASS_VECTORS = st.integers(1, 6).flatmap(
    lambda k: st.tuples(*[arrays(np.float64, k, elements=st.floats(0, 5, allow_subnormal=False))] * 2)
)


@given(CLASS_VECTORS)
def test_js_is_symmetric_and_between_0_and_1(vectors: tuple[np.ndarray, np.ndarray]) -> None:
    p, q = vectors
    assert 0 <= method.js_divergence(p, q) <= 1 + 1e-12
    assert method.js_divergence(p, q) == pytest.approx(method.js_divergence(q, p), abs=1e-12)


@given(CLASS_VECTORS, st.floats(0.01, 100))
def test_js_does_not_see_a_common_factor_and_is_0_for_proportional_vectors(
    vectors: tuple[np.ndarray, np.ndarray], factor: float
) -> None:
    p, q = vectors
    assert method.js_divergence(p * factor, q) == pytest.approx(method.js_divergence(p, q), abs=1e-9)
    assert method.js_divergence(p, p * factor) == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------------------------------- Eq. 2 and 3


def test_consistency_by_hand_over_two_views() -> None:
    # view 1: |(0.9 + 0.7) / 2 * (1 - 0.2) + 0.8 - 1.3| = |0.64 + 0.8 - 1.3| = 0.14
    # view 2: |(0.9 + 0.5) / 2 * (1 - 0.5) + 0.4 - 1.3| = |0.35 + 0.4 - 1.3| = 0.55
    # mean: 0.345
    c = method.consistency(row(0.9), np.array([[0.7], [0.5]]), np.array([[0.2], [0.5]]), np.array([[0.8], [0.4]]))
    assert c == pytest.approx(row(0.345))


def test_consistency_by_hand_with_beta_one_half() -> None:
    # |(0.9 + 0.7) / 2 * (1 - 0.2) + 0.8 - 0.5| = |0.64 + 0.3| = 0.94
    c = method.consistency(row(0.9), np.array([[0.7]]), np.array([[0.2]]), np.array([[0.8]]), beta=0.5)
    assert c == pytest.approx(row(0.94))


def test_consistency_is_bounded_by_c_m_on_its_side() -> None:
    nothing, everything, one = np.zeros((1, 1)), np.ones((1, 1)), np.ones((1, 1))
    # beta 1.3, lost: |1/2 * 0 + 0 - 1.3| = 1.3 = c_m;  beta 1/2, perfect: |1 * 1 + 1 - 0.5| = 1.5 = c_m
    assert method.consistency(row(1), nothing, one, nothing, beta=1.3) == pytest.approx(row(1.3))
    assert method.consistency(row(1), everything, nothing, everything, beta=0.5) == pytest.approx(row(1.5))


def test_nan_excludes_a_view_for_that_box_only() -> None:
    # box 1: only view 1 counts, 0.14 as above.  box 2: both count, |1 * 1 + 1 - 1.3| = 0.7 each
    score, js = row(0.9, 1), np.array([[0.2, 0], [0.5, 0]])
    c = method.consistency(score, np.array([[0.7, 1], [0.5, 1]]), js, np.array([[0.8, 1], [np.nan, 1]]))
    assert c == pytest.approx(row(0.14, 0.7))


@pytest.mark.parametrize("beta", [0.5, 1.3])
def test_a_box_without_a_counting_view_gets_beta(beta: float) -> None:
    nan = np.full((2, 1), np.nan)
    assert method.consistency(row(0.9), np.ones((2, 1)), np.zeros((2, 1)), nan, beta) == pytest.approx(row(beta))


def test_uncertainty_is_c_m_minus_c() -> None:
    # c_m = max(1.3, 0.7) = 1.3: 1.3 - 0.345 = 0.955;  c_m = max(0.5, 1.5) = 1.5: 1.5 - 0.345 = 1.155
    assert method.uncertainty(row(0.345)) == pytest.approx(row(0.955))
    assert method.uncertainty(row(0.345), beta=0.5) == pytest.approx(row(1.155))


@given(
    st.integers(1, 4).flatmap(lambda m: arrays(np.float64, (4, m, 3), elements=UNIT)),
    st.floats(0, 2),
)
def test_c_and_u_stay_between_0_and_c_m(numbers: np.ndarray, beta: float) -> None:
    most = max(beta, 2 - beta)
    c = method.consistency(numbers[0, 0], numbers[1], numbers[2], numbers[3], beta)
    assert ((c >= 0) & (c <= most + 1e-9)).all()
    assert method.uncertainty(c, beta) == pytest.approx(most - c)


# ------------------------------------------------------------------------------------------- Eq. 4


def test_box_consistency_is_the_mean_over_the_views_that_count() -> None:
    # box 1: (0.8 + 0.4) / 2;  box 2: the first view alone;  box 3: no view at all
    iou = np.array([[0.8, 0.5, np.nan], [0.4, np.nan, np.nan]])
    assert method.box_consistency(iou) == pytest.approx(row(0.6, 0.5, 0))


def test_a_lost_view_lowers_box_consistency() -> None:
    assert method.box_consistency(np.array([[0.8], [0.0]])) == pytest.approx(row(0.4))


# ------------------------------------------------------------------------------------------- Eq. 1


def test_class_balanced_utility_by_hand() -> None:
    # 0.8 exp(-0.5 / 1) = 0.8 * 0.6065307 = 0.4852245;  0.8 exp(-0.5 / 0.25) = 0.8 * 0.1353353 = 0.1082682
    assert method.class_balanced_utility(row(0.8), row(0.5)) == pytest.approx(row(0.4852245))
    assert method.class_balanced_utility(row(0.8), row(0.5), sigma=0.25) == pytest.approx(row(0.1082682))


def test_a_class_never_seen_keeps_its_uncertainty() -> None:
    assert method.class_balanced_utility(row(0.8, 0), row(0, 0)).tolist() == [0.8, 0]


@given(st.floats(0.01, 2), UNIT, UNIT, st.floats(0.1, 10))
def test_utility_falls_as_the_class_gets_more_frequent(u: float, p: float, q: float, sigma: float) -> None:
    rarer, commoner = method.class_balanced_utility(row(u, u), np.sort(row(p, q)), sigma)
    assert rarer >= commoner
    assert (rarer > commoner) or abs(p - q) < 1e-12


# ------------------------------------------------------------------------------------------- Eq. 5 and 6


def test_soft_weight_at_just_above_and_just_below_each_threshold() -> None:
    up, down = (lambda x: np.nextafter(x, 1)), (lambda x: np.nextafter(x, 0))
    value = row(0, down(0.1), 0.1, up(0.1), 0.5, down(0.8), 0.8, up(0.8), 1)
    wanted = [0, 0, 0, up(0.1), 0.5, down(0.8), 1, 1, 1]
    assert method.soft_weight(value, high=0.8, low=0.1).tolist() == wanted


def test_soft_weight_thresholds_hold_for_float32_scores_too() -> None:
    assert method.soft_weight(np.array([0.8, 0.1], dtype=np.float32), high=0.8, low=0.1).tolist() == [1, 0]


def test_soft_weight_with_equal_thresholds_is_a_hard_one() -> None:
    assert method.soft_weight(row(0.69, 0.7, 0.71), high=0.7, low=0.7).tolist() == [0, 1, 1]


@given(arrays(np.float64, 8, elements=UNIT), UNIT, UNIT)
def test_soft_weight_never_falls_with_its_value(value: np.ndarray, one: float, other: float) -> None:
    weight = method.soft_weight(np.sort(value), high=max(one, other), low=min(one, other))
    assert (np.diff(weight) >= 0).all()
    assert ((weight >= 0) & (weight <= 1)).all()


# ------------------------------------------------------------------------------------------- Eq. 7


def test_weighted_loss_to_the_letter() -> None:
    # positives: (1 * 2 + 0.5 * 4) / 2 = 2;  negatives: (1 + 2 + 3) / 3 = 2;  boxes: (0.25 * 8 + 1 * 1 + 0) / 3 = 1
    terms = method.weighted_loss(row(2, 4), row(1, 0.5), row(1, 2, 3), row(8, 1, 5), row(0.25, 1, 0))
    assert terms == pytest.approx((2, 2, 1))


def test_weighted_loss_divided_by_given_normalisers() -> None:
    # sums 4, 6, 3 as above over 4, 2 and 6
    terms = method.weighted_loss(row(2, 4), row(1, 0.5), row(1, 2, 3), row(8, 1, 5), row(0.25, 1, 0), (4, 2, 6))
    assert terms == pytest.approx((1, 3, 0.5))


def test_weighted_loss_divides_by_one_at_least() -> None:
    assert method.weighted_loss(row(), row(), row(), row(), row()) == (0, 0, 0)
    assert method.weighted_loss(row(2), row(1), row(3), row(5), row(1), (0, 0, 0)) == (2, 3, 5)
