"""What the commands share: the application, option types, exit codes, and lists of problems."""

import os
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarebox.cli.progress import console, progress_bars
from rarebox.core.text import counted
from rarebox.errors import UserError

if TYPE_CHECKING:  # these load slowly
    from rarebox.data.listings import Problem
    from rarebox.loop.cluster import Cluster

app = typer.Typer(
    help="Decides which boxes a person should label next, so that an object detector learns as much as possible from "
    "each label.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

USAGE_ERROR = typer.BadParameter.__mro__[2]
"""Click's base class of wrong options and arguments, for which typer has no public name."""

STOPPED = 130
"""Exit status after Ctrl-C."""

PIPE_CLOSED = 1
"""Exit status when the output pipe is closed, as by ``| head``; the same as click's."""

SEVERAL = Path("rarebox-report")
"""Default folder for a report on several runs."""

MOST_NAMED = 5
"""How many items of one kind are listed by name; the rest are only counted."""

ImageUrl = Annotated[str | None, typer.Option(help="URL prefix under which Label Studio finds the images.")]
Address = Annotated[
    str | None, typer.Option(help="With --engine ray: HOST:PORT of a cluster, or auto. Without it: this machine only.")
]
Weights = Annotated[
    str | None, typer.Option(help="auto, coco, imagenet, none, a file, or the folder of a model, run or project.")
]
Preset = Annotated[str, typer.Option(help="laptop, paper or dfine.")]
SettingsFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]
DetectorName = Annotated[str | None, typer.Option(help="retinanet, faster_rcnn or dfine.")]
Backbone = Annotated[
    str | None, typer.Option(help="What it sees with, such as resnet50; auto: what suits the weights.")
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="A setting, as a.b=value; repeatable.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one value per line.")]


class EngineName(StrEnum):
    """Where parallel work is done."""

    LOCAL = "local"
    RAY = "ray"


Engine = Annotated[EngineName, typer.Option(help="Where to score the pool (bench: where to execute the runs).")]


@contextmanager
def connected(engine: str, address: str | None, as_json: bool) -> "Generator[Cluster | None]":
    """:func:`rarebox.loop.cluster.connected` with a message, since it may take a minute."""
    from rarebox.loop import cluster

    if engine == EngineName.RAY and not as_json:
        console.print(f"joining the Ray cluster {address}" if address else "starting Ray on this machine", markup=False)
    with cluster.connected(engine, address) as where:
        yield where


def helped_torchrun() -> bool:
    """Do a helper's part of all fits, in a process of torchrun other than its first. Return whether this is one."""
    if "WORLD_SIZE" not in os.environ or os.environ.get("RANK", "0") == "0":
        return False
    from rarebox import detectors
    from rarebox.detectors import distributed

    distributed.follow(detectors.help_train)
    return True


def warn_of_photos(place: str | Path) -> None:
    """Find the photos of a project that have moved, and print warnings about missing ones.

    Does nothing unless the place is a folder of a project or run (not a store, a file or a URL).
    """
    from rarebox.loop.run_folder import RunFolder
    from rarebox.project.photo_folder import check_photos

    project = Path(place)
    if "://" in str(place) or not RunFolder(project).settings.exists():
        return
    with progress_bars(False) as progress:
        found = check_photos(project, progress)
    for warning in found.warnings():
        console.print(warning, markup=False, soft_wrap=True)


def name_missing(missing: Sequence[str]) -> None:
    """Print which photos an export lacks."""
    for line in missing[:MOST_NAMED]:
        console.print(f"missing photo: {line}", markup=False, soft_wrap=True)
    if missing:
        console.print(
            f"{counted(len(missing), 'photo')} cannot be read (see missing.txt). Their labels are exported anyway. "
            "Put the photos back, or run `rarebox relocate PROJECT FOLDER`.",
            markup=False,
            soft_wrap=True,
        )


def print_problems(problems: "Sequence[Problem]") -> None:
    """Print the number of problems of each kind, and the first of each."""
    for kind, count in Counter(p.kind for p in problems).most_common():
        first = next(p for p in problems if p.kind == kind)
        console.print(f"{count} x {kind}, the first: {first.where}: {first.what}", markup=False, soft_wrap=True)


def class_names(text: str | None) -> list[str]:
    """The names in ``--classes``. Raises UserError for the name of a file."""
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if Path(name).suffix and Path(name).is_file():
            raise UserError(f"--classes takes names, such as cat,dog, and {name} is a file. Write the names in it")
    return names
