"""Processes without import time: forked from one that has imported everything, which takes seconds."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PRELOADED = [
    "rarebox.cli.main",
    "rarebox.loop.cycle",
    "rarebox.web.serve",
    "rarebox.report",
    "tests.crew",
    "tests.serving",
    "tests.tiny",
]
"""Everything that any of them needs, because the first one decides what is loaded."""

CONTEXT = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")


def start(work: Callable[..., None], *given: Any) -> BaseProcess:
    """Start a process that does this work, separate from the one that runs the tests."""
    CONTEXT.set_forkserver_preload(PRELOADED)
    process = CONTEXT.Process(target=work, args=given, daemon=True)
    process.start()
    return process


def start_command(words: Sequence[object], said: Path) -> BaseProcess:
    """``rarebox words…`` on a small network, as another process; it writes all its output to a file."""
    return start(be_command, [str(word) for word in words], said)


def be_command(words: Sequence[str], said: Path) -> None:
    """Run ``rarebox words…`` and exit with the command's exit code. A report has no figures."""
    from rarebox.cli import main
    from tests import tiny

    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    sys.argv = ["rarebox", *words]
    with tiny.small_network(), tiny.without_figures():
        main.main()
