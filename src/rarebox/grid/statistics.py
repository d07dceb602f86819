"""Means, deviations, paired differences with t intervals, and areas under curves."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit  # pyright: ignore[reportMissingTypeStubs]

ENOUGH_SEEDS = 6
"""With fewer common seeds a result is never called a difference, regardless of its interval."""
NAN = float("nan")


class Spread(NamedTuple):
    """Mean and sample standard deviation of ``n`` known numbers."""

    mean: float
    sd: float
    n: int


def spread(values: Iterable[float]) -> Spread:
    """Mean and standard deviation of the known values."""
    known = [value for value in values if value == value]
    mean = float(np.mean(known)) if known else NAN
    return Spread(mean, float(np.std(known, ddof=1)) if len(known) > 1 else NAN, len(known))


class Difference(NamedTuple):
    """Mean difference over ``n`` common seeds, and its interval; NaN bounds with one seed."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def sign(self) -> int:
        """1 or -1 for a difference: enough seeds, and an interval that excludes 0. Otherwise 0."""
        return (int(self.low > 0) - int(self.high < 0)) if self.n >= ENOUGH_SEEDS else 0


def paired(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """Value minus reference, seed by seed, with the 95 % t interval of the mean over seeds (Student 1908).

    Pairing removes what a seed contributes to both: the same first images and first model. The interval is the mean -/+
    t s / sqrt(n), with s the standard deviation of the differences (divisor n - 1) and t the 97.5th percentile of
    Student's distribution with n - 1 degrees of freedom. With one seed there is none.
    """
    common = sorted(values.keys() & reference.keys())
    steps = np.array([values[seed] - reference[seed] for seed in common], dtype=float)
    steps = steps[~np.isnan(steps)]
    n, mean = len(steps), float(steps.mean()) if len(steps) else NAN
    if n < 2:
        return Difference(mean, NAN, NAN, n)
    reach = float(stdtrit(n - 1, 0.975) * steps.std(ddof=1) / np.sqrt(n))
    return Difference(mean, mean - reach, mean + reach, n)


CAUTION = (
    "Intervals are paired t intervals: if differences are approximately normal, 95 of 100 contain the true mean "
    f"difference. With fewer than {ENOUGH_SEEDS} seeds a result is not called a difference. "
    "There is no correction for the number of intervals."
)


def area(x: np.ndarray, y: np.ndarray, low: float, high: float) -> float:
    """The mean height of the curve between two numbers of labels (reviews, seconds)."""
    if not high > low:
        return NAN
    at = np.array([low, *x[(x > low) & (x < high)], high])
    return float(np.trapezoid(np.interp(at, x, y), at) / (high - low))
