"""Progress of long work on the command line: bars with the time left, log lines, or JSON lines."""

import json
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rarebox.core.progress import Progress as StageReport

if TYPE_CHECKING:  # loads slowly
    from rarebox.grid.runner import Bench

Event = dict[str, Any]
"""What a grid reports, as :class:`~rarebox.grid.runner.Bench` describes."""


class Messages(Console):
    """The console for messages and progress: standard error."""

    def on_broken_pipe(self) -> None:
        """Re-raise, so that the command line chooses the exit status."""
        raise


console = Messages(stderr=True, highlight=False)

LOG_SECONDS = 15
"""Seconds between log lines where no terminal shows bars."""

OVERALL = "all runs"
"""The title of the permanent bar of a grid, whose note says how much time is left."""


class StageTime(TimeRemainingColumn):
    """The time left of a stage; empty for the overall bar."""

    def render(self, task: Task) -> Text:
        return Text() if task.description == OVERALL else super().render(task)


@contextmanager
def progress_bars(as_json: bool) -> Generator[StageReport]:
    """Yield a callback for progress that draws bars, or prints JSON lines at most twice a second."""
    if as_json:
        last = 0.0

        def tell(stage: str, done: int, of: int, note: str) -> None:
            nonlocal last
            if time.monotonic() - last > 0.5 or done == of:
                last = time.monotonic()
                print(
                    json.dumps({"event": "progress", "stage": stage, "done": done, "of": of, "note": note}), flush=True
                )

        yield tell
        return
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        StageTime(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}
        said = 0.0

        def say(stage: str, task: Task) -> None:
            nonlocal said
            if time.monotonic() - said > LOG_SECONDS or task.finished:
                said = time.monotonic()
                left = f", about {minutes(task.time_remaining)} left" if task.time_remaining else ""
                counts = f"{task.completed:.0f} of {task.total:.0f} {task.fields['note']}"
                console.print(f"  {stage}: {counts}{left}", markup=False, soft_wrap=True)

        def show(stage: str, done: int, of: int, note: str) -> None:
            if stage not in tasks:
                whose = stage.rpartition(", ")[0]
                for old in tasks.keys() - {OVERALL}:  # several runs may be in progress
                    if old.rpartition(", ")[0] == whose or bars.tasks[bars.task_ids.index(tasks[old])].finished:
                        bars.remove_task(tasks.pop(old))
                # the overall bar names the run
                tasks[stage] = bars.add_task(stage.rpartition(", ")[2], total=of, note=note)
            bars.update(tasks[stage], completed=done, total=of, note=note)
            if not console.is_terminal and stage != OVERALL:  # a log file gets lines instead of bars
                say(stage, bars.tasks[bars.task_ids.index(tasks[stage])])

        yield show


def bench_events(grid: Path, work: "Bench", as_json: bool) -> Callable[[Event], None]:
    """A callback for a grid's events: it prints the start and each finished run, and updates the overall bar."""

    def tell(event: Event) -> None:
        kind, run = event["event"], str(event.get("run")).removeprefix("runs/")
        if as_json:
            print(json.dumps(event), flush=True)
            return
        if kind == "waiting":
            console.print(f"Waiting: another process is working on {len(event['runs'])} runs.", markup=False)
            return
        if kind == "dropped":
            console.print(
                f"{len(event['runs'])} runs are no longer in the grid, such as {event['runs'][0]}. Their folders "
                "stay; their lines in results.jsonl are removed",
                markup=False,
            )
            return
        if kind == "accepted":
            how_many = f"{event['of']} run{'s' * (event['of'] != 1)}, {event['finished']} done"
            console.print(f"{grid}: {how_many}; results in {work.out}", markup=False, soft_wrap=True)
            if work.cluster and event["finished"] < event["of"]:
                console.print("workers are starting", markup=False)
            return
        left = f", about {minutes(event['left'])} left" if event["left"] else ""
        work.progress(OVERALL, event["finished"], event["of"], run + left)
        if kind == "failed" or (kind == "done" and run != event["run"]):  # not a finished shared first cycle
            outcome = event["reason"] if kind == "failed" else "AP50 " + " → ".join(shown(ap) for ap in event["ap50"])
            for cycle, spent, budget in event.get("short", ()):
                outcome += f"; cycle {cycle} spent {spent} of {budget}"
            counts = f"[{event['finished']}/{event['of']}]"
            console.print(f"{counts} {run} {kind}: {outcome}{left}", markup=False, soft_wrap=True)

    return tell


def shown(ap: float | None) -> str:
    """An AP as text."""
    return "–" if ap is None else f"{ap:.3f}"


def minutes(seconds: float) -> str:
    """A duration as text: in minutes from 90 seconds on."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
