"""What the commands share: the application, option types, exit codes, and lists of problems."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from rarebox.cli.progress import console, progress_bars
from rarebox.core.text import counted

app = typer.Typer(
    help="Decides which boxes a person should label next, so that an object detector learns most per label.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""Click's base class of wrong options and arguments, which typer brings along under a name of its own."""

STOPPED = 130
"""Exit status after Ctrl-C."""

PIPE_CLOSED = 1
"""Exit status when the reader of the output has gone, as with ``| head``; click has the same."""

SEVERAL = Path("rarebox-report")
"""Where the report on several runs goes, which belongs to none of them."""

MOST_NAMED = 5
"""Things of one kind that are named one by one; of more, only their number is shown."""

ImageUrl = Annotated[str | None, typer.Option(help="What Label Studio finds the images under, before their names.")]
Address = Annotated[
    str | None, typer.Option(help="Of --engine ray: HOST:PORT of a cluster, or auto; none: this machine alone.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read, one value a line.")]


class EngineName(StrEnum):
    """What can do the work that splits."""

    LOCAL = "local"
    RAY = "ray"


Engine = Annotated[EngineName, typer.Option(help="Where the pool is scored (bench: where the runs are done).")]


@contextmanager
def connected(engine: str, address: str | None, as_json: bool) -> Iterator[Any]:
    """:func:`rarebox.loop.cluster.connected`, which may take a minute, announced."""
    from rarebox.loop import cluster

    if engine == EngineName.RAY and not as_json:
        console.print(f"joining the Ray cluster {address}" if address else "starting Ray on this machine", markup=False)
    with cluster.connected(engine, address) as where:
        yield where


def warn_of_photos(project: Path) -> None:
    """Find the photos of a project that have moved, and say what a person should know of the others."""
    from rarebox.project.photo_folder import check_photos

    with progress_bars(False) as progress:
        found = check_photos(project, progress)
    for warning in found.warnings():
        console.print(warning, markup=False, soft_wrap=True)


def name_missing(missing: Sequence[str]) -> None:
    """Say which photos an export lacks."""
    for line in missing[:MOST_NAMED]:
        console.print(f"no photo: {line}", markup=False, soft_wrap=True)
    if missing:
        console.print(
            f"{counted(len(missing), 'photo')} cannot be read (see missing.txt). All labels are exported all the same. "
            "Put the photos back, or say where they are now: rarebox relocate",
            markup=False,
            soft_wrap=True,
        )


def print_problems(problems: Sequence[Any]) -> None:
    """How many problems of each kind there are, and the first of each."""
    for kind, count in Counter(p.kind for p in problems).most_common():
        first = next(p for p in problems if p.kind == kind)
        console.print(f"{count} x {kind}, the first: {first.where}: {first.what}", markup=False, soft_wrap=True)
