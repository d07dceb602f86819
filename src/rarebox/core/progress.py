"""The types of progress callbacks."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called often, with (stage, steps done, steps in total, note)."""


def silent(stage: str, done: int, of: int, note: str) -> None:
    """Report nothing."""


StageProgress = Callable[[int, int, str], None]
"""Called often within one stage, with (steps done, steps in total, note)."""
