"""Which cases of a long table `make test` runs; `make test-all` runs all of them."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def thinned(cases: Iterable[Any], keep: Callable[[int, Any], bool]) -> list[Any]:
    """Mark all cases as exhaustive but those that ``keep`` chooses by number and content. A case of several values is
    a tuple.
    """
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if keep(number, case) else pytest.mark.exhaustive,
        )
        for number, case in enumerate(cases)
    ]


def first_seeds(count: int, kept: int = 1) -> list[Any]:
    """The seeds from 0; `make test` runs the first ``kept``."""
    return thinned(range(count), lambda seed, _: seed < kept)
