"""A bound on memory that all threads share."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition


class Room:
    """So many bytes for all threads together; whoever wants more than is free waits.

    Who wants more than there is at all gets all of it, alone.
    """

    def __init__(self, size: int) -> None:
        self.size = self._free = size
        self._freed = Condition()

    @contextmanager
    def hold(self, wanted: int) -> Iterator[None]:
        """Keep ``wanted`` bytes for as long as the block runs."""
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
