"""One root seed, named streams: each part of a run draws from its own generator, so that none disturbs another."""

from zlib import crc32

import numpy as np


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """The generator of one named stream of a root seed; further ``keys`` (a cycle, an image id) split it again.

    One name takes the same number of keys wherever it is used: NumPy's seeds do not see trailing zeros.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, crc32(name.encode()), *keys]))


def number(seed: int, name: str, *keys: int) -> int:
    """A seed in [0, 2**31) drawn from that stream, for libraries that want a plain number."""
    return int(stream(seed, name, *keys).integers(2**31))
