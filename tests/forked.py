"""Processes that need not import anything: forked from one that has all imported, for that takes seconds."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Any

PRELOADED = ["rarebox.cli", "rarebox.loop", "rarebox.web.serve", "tests.crew", "tests.serving"]
"""All that any of them needs, for the first one decides what is loaded."""

CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


def start(work: Callable[..., None], *given: Any) -> BaseProcess:
    """A process that does this work, as another one than that which runs the tests."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    process = CONTEXT.Process(target=work, args=given, daemon=True)
    process.start()
    return process
