"""The types of progress callbacks."""

from collections.abc import Callable

Progress = Callable[[str, int, int, str], None]
"""Called with (stage, done, in all, a note), often."""


def silent(stage: str, done: int, of: int, note: str) -> None:
    """Report nothing."""


StageProgress = Callable[[int, int, str], None]
"""The same within a stage: (done, in all, a note)."""
