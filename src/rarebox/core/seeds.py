"""Named random streams of one root seed. Each part of a run has its own generator, so none affects another."""

from zlib import crc32

import numpy as np


def stream(seed: int, name: str, *keys: int) -> np.random.Generator:
    """The generator of one named stream of a root seed; ``keys`` (a cycle, an image id) split the stream further.

    Use the same number of keys with a name everywhere: NumPy's seeds ignore trailing zeros.
    """
    return np.random.default_rng(np.random.SeedSequence([seed, crc32(name.encode()), *keys]))


def number(seed: int, name: str, *keys: int) -> int:
    """A seed in [0, 2**31) drawn from a named stream, for libraries that take a number."""

    return int(stream(seed, name, *keys).integers(2**31))
