"""The one thread that writes to a project's store. Jobs that are waiting share one transaction, and so one commit."""

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, Protocol, TypeVar

from rarebox.labels.store import Store

MOST_TOGETHER = 20
"""The most jobs of one commit: few enough that browsers receive replies while the next jobs run."""

CLOSING_SECONDS = 30.0
"""The most seconds that closing waits for the database. What is not written by then stays in the browsers."""

IDLE_SECONDS = 1.0
"""Seconds between an idle writer's checks of the store."""

T = TypeVar("T")


Mark = tuple[int, int, int, int]
"""How far a store has been read: the last question, the last answer, how often its classes were read, and how many
places of the ranking are done with."""


class Memory(Protocol):
    """State in memory that the writer keeps consistent with the store on disk."""

    def mark(self) -> Mark:
        """How far the store has been read."""
        ...

    def undo(self, mark: Mark) -> None:
        """Forget what was read after ``mark``: a job, or the transaction, failed and was rolled back."""
        ...

    def refresh(self) -> None:
        """Read new rows of the store, after each transaction."""
        ...


class Job(Generic[T]):
    """A function to be called by the writing thread, and the future of its result."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self.problem: Exception | None = None
        self._work = work
        self._result: Callable[[], T]

    def run(self) -> None:
        """Call the function and keep its result."""
        result = self._work()
        self._result = lambda: result

    def report(self, problem: Exception | None) -> None:
        """Report the result; ``problem`` or the job's own exception instead, if there is one."""
        if failure := self.problem or problem:
            self.future.set_exception(failure)
        else:
            self.future.set_result(self._result())


class Writer:
    """Does all writing. A future is done only when its transaction is on the disk.

    ``written`` is called after each transaction whose jobs have been reported, ``waiting`` while there are no jobs.
    """

    def __init__(self, store: Store, memory: Memory, written: Callable[[], None], waiting: Callable[[], None]) -> None:
        self._store, self._memory = store, memory
        self._written, self._catch_up = written, waiting
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def do(self, work: Callable[[], T]) -> "Future[T]":
        """Have a function called by the writing thread, as part of a transaction."""
        job = Job(work)
        self._jobs.put(job)
        return job.future

    def close(self) -> bool:
        """Finish the jobs that are waiting, then end the thread. False if the database does not answer in time."""
        self._jobs.put(None)
        self._thread.join(CLOSING_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while job := self._next():
            jobs = [job, *self._waiting(MOST_TOGETHER - 1)]
            self._write([job for job in jobs if job.future.set_running_or_notify_cancel()])
            self._written()

    def _next(self) -> Job[Any] | None:
        """Wait for a job, or for the end."""
        while True:
            try:
                return self._jobs.get(timeout=IDLE_SECONDS)
            except Empty:
                self._store.keep_log()
                with suppress(Exception):  # such as a full disk; the next job reports it
                    self._catch_up()

    def _waiting(self, most: int) -> list[Job[Any]]:
        """The jobs that are waiting now, at most ``most``."""
        jobs: list[Job[Any]] = []
        try:
            while len(jobs) < most:
                if (job := self._jobs.get_nowait()) is None:
                    self._jobs.put(None)  # the end, once these are done
                    break
                jobs.append(job)
        except Empty:
            pass
        return jobs

    def _write(self, jobs: list[Job[Any]]) -> None:
        """Run the jobs in one transaction and report the outcome of each. A failed job undoes only its own writes."""
        failure: Exception | None = None
        before = self._memory.mark()
        try:
            with self._store.transaction(writes=True):
                for job in jobs:
                    mark = self._memory.mark()
                    try:
                        with self._store.part():
                            job.run()
                    except Exception as error:
                        job.problem = error
                        self._memory.undo(mark)
        except Exception as error:  # a full disk, for example: nothing was written
            for job in jobs:
                job.problem = error
            self._memory.undo(before)
        try:
            self._memory.refresh()
        except Exception as error:
            failure = error
        for job in jobs:
            job.report(failure)
