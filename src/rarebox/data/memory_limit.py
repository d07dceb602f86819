"""A memory limit that all threads share."""

from collections.abc import Generator
from contextlib import contextmanager
from threading import Condition


class MemoryLimit:
    """``size`` bytes for all threads together. A thread waits until the bytes that it asks for are free.

    A thread that asks for more than ``size`` gets all of it, once no other thread holds any.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._freed = Condition()

    @contextmanager
    def hold(self, wanted: int) -> Generator[None, None, None]:
        """Reserve ``wanted`` bytes while the block runs."""
        wanted = min(wanted, self.size)
        with self._freed:
            self._freed.wait_for(lambda: self._free >= wanted)
            self._free -= wanted
        try:
            yield
        finally:
            with self._freed:
                self._free += wanted
                self._freed.notify_all()
