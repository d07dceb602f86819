"""The command ``rarebox``. A user's mistake ends in one message and exit status 2, not in a traceback."""

import io
import json
import os
import sys
from functools import cache
from typing import Annotated, Protocol, cast

import typer
from typer.models import CommandInfo

from rarebox import __version__
from rarebox.cli import deploy, external, label, predictions, simulate
from rarebox.cli.options import PIPE_CLOSED, STOPPED, USAGE_ERROR, AsJson, app
from rarebox.cli.progress import console
from rarebox.core import places
from rarebox.errors import UserError

COMMANDS = (
    "demo",
    "init",
    "serve",
    "export",
    "import",
    "backup",
    "relocate",
    "tile",
    "run",
    "bench",
    "report",
    "train",
    "predict",
    "export-model",
    "rank",
    "views",
    "doctor",
)
"""The commands in the order of the help."""

_MODULES = deploy, external, label, predictions, simulate  # importing them adds their commands to `app`


class Command(Protocol):
    """A command line, as click runs it."""

    def __call__(self, *, standalone_mode: bool) -> int | str | None:
        """Run the command that ``sys.argv`` names; return its exit status."""
        ...


class UsageError(Protocol):
    """A wrong option or argument, as click raises it."""

    exit_code: int

    def show(self) -> None:
        """Print the message."""


def main() -> None:
    """Entry point of the command line."""
    _make_everything_printable()
    try:
        _main()
    except BrokenPipeError:
        _silence_closed_pipes()
        sys.exit(PIPE_CLOSED)


def _main() -> None:
    """Run the command. Errors become a message and an exit status."""
    try:
        if note := places.settle():
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        status = _command()(standalone_mode=False)
        if status == STOPPED:  # typer makes Ctrl-C an exit status
            raise KeyboardInterrupt
        print(end="", flush=True)  # raises here on a full disk or a closed pipe
        sys.exit(status)
    except UserError as error:
        console.print(f"rarebox: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        console.print(
            f"rarebox: {error.filename or 'the disk'}: {error.strerror or error}", markup=False, soft_wrap=True
        )
        sys.exit(2)
    except UnicodeEncodeError as error:
        console.print(
            f"rarebox: {error.object!r:.200} is not valid {error.encoding}. Rename that file, folder, or class",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        console.print("rarebox: stopped. Repeat the command to resume")
        sys.exit(STOPPED)
    except Exception as error:
        if not isinstance(error, USAGE_ERROR):
            raise
        usage = cast(UsageError, error)
        usage.show()
        sys.exit(usage.exit_code)


@cache
def _command() -> Command:
    """The command line built from `app`, once for all calls in a process."""
    app.registered_commands.sort(key=lambda command: COMMANDS.index(_name(command)))
    return cast(Command, typer.main.get_command(app))


def _make_everything_printable() -> None:
    """Prevent encoding errors: output to files and pipes is UTF-8 in any locale; a terminal shows escapes such as
    ``\\u4e2d``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            data = stream is sys.stdout and not stream.isatty()
            stream.reconfigure(encoding="utf-8" if data else None, errors="backslashreplace")


def _silence_closed_pipes() -> None:
    """Prevent errors at exit from streams whose reader has closed the pipe, as ``| head`` does."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nothing, stream.fileno())


@app.command()
def doctor(
    data: Annotated[str | None, typer.Option(help="Also check this data set.")] = None, as_json: AsJson = False
) -> None:
    """Report what is installed, what is missing, and what to do about it."""
    from rarebox.cli.doctor import examine

    found = examine(data)
    if as_json:
        print(json.dumps([check._asdict() for check in found]))
    else:
        for check in found:
            mark = "[green]ok  [/green]" if check.ok else "[yellow]todo[/yellow]" if check.needed else "–   "
            console.print(mark, end=" ")
            console.print(
                f"{check.name}: {check.found}" + (f"\n     -> {check.advice}" if check.advice else ""),
                markup=False,
                soft_wrap=True,
            )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def _name(command: CommandInfo) -> str:
    """The name of a command."""
    return command.name or getattr(command.callback, "__name__", "")
