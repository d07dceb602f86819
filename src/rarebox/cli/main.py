"""The command ``rarebox``. Mistakes of the user end in one message and exit status 2, never in a traceback."""

import io
import json
import os
import sys
from typing import Annotated, Any

import typer

from rarebox import __version__
from rarebox.cli import external, label, simulate  # noqa: F401 they add their commands to `app`
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
    "run",
    "bench",
    "report",
    "rank",
    "views",
    "doctor",
)
"""The commands in the order of the help."""


def main() -> None:
    """Entry point of the command line."""
    _make_everything_printable()
    try:
        _main()
    except BrokenPipeError:
        _nobody_reads()
        sys.exit(PIPE_CLOSED)


def _main() -> None:
    """Do what the command line says. Mistakes and trouble become a message and an exit status."""
    try:
        if note := places.settle():
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        app.registered_commands.sort(key=lambda command: COMMANDS.index(_name(command)))
        status = app(standalone_mode=False)
        if status == STOPPED:  # typer makes Ctrl-C an exit status
            raise KeyboardInterrupt
        print(end="", flush=True)  # a full disk or a closed pipe is to be known here
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
        console.print("rarebox: stopped; repeat the command to go on")
        sys.exit(STOPPED)
    except Exception as error:
        if not isinstance(error, USAGE_ERROR):
            raise
        usage: Any = error  # a wrong option or argument
        usage.show()
        sys.exit(usage.exit_code)


def _make_everything_printable() -> None:
    """Let no character end a command: lists and JSON that go to a file or a pipe are UTF-8, whatever the locale says;
    what a terminal cannot show is escaped, as ``\\u4e2d``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            data = stream is sys.stdout and not stream.isatty()
            stream.reconfigure(encoding="utf-8" if data else None, errors="backslashreplace")


def _nobody_reads() -> None:
    """Let the streams end in silence after their reader has gone, as with ``| head``."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nothing, stream.fileno())


@app.command()
def doctor(
    data: Annotated[str | None, typer.Option(help="Also look at this data set.")] = None, as_json: AsJson = False
) -> None:
    """Say what is installed, what was found, and what to do about what is missing."""
    from rarebox.cli.doctor import examine

    found = examine(data)
    if as_json:
        print(json.dumps([check._asdict() for check in found]))
    else:
        for check in found:
            mark = "[green]ok  [/green]" if check.ok else "[yellow]miss[/yellow]" if check.needed else "–   "
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


def _name(command: Any) -> str:
    """What a command is called."""
    return command.name or command.callback.__name__
