"""The commands for boxes of other detectors in a project: ``rarebox predictions add``, ``list`` and ``remove``."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarebox.cli.options import AsJson, app, class_names, warn_of_photos
from rarebox.cli.progress import console, progress_bars
from rarebox.core.text import counted
from rarebox.errors import UserError

if TYPE_CHECKING:
    from rarebox.external import Read
    from rarebox.project.predictions import Summary
    from rarebox.project.project import Project

predictions = typer.Typer(
    help="Detections of another detector, such as SAM 3 or Grounding DINO, as candidates of a project.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(predictions, name="predictions")

ProjectFolder = Annotated[Path, typer.Argument(help="Folder of the project.")]


@predictions.command()
def add(
    project: ProjectFolder,
    file: Annotated[Path, typer.Argument(help="Detections: JSON lines or COCO results.")],
    name: Annotated[str, typer.Option(help="Their name in the project; by default that of the file.")] = "",
    images: Annotated[
        Path | None, typer.Option(help="COCO file with the image ids and category numbers of COCO results.")
    ] = None,
    classes: Annotated[str | None, typer.Option(help="The detector's classes in order, such as cat,dog.")] = None,
    as_json: AsJson = False,
) -> None:
    """Add detections as candidates, even while the project is served."""
    from rarebox import external

    warn_of_photos(project)
    with _opened(project) as now, progress_bars(as_json) as progress:
        found = external.read(
            file,
            now.settings,
            labels=None if images else project,
            images=images,
            classes=class_names(classes) or None,
            skip_ambiguous=True,
            report=lambda done, of: progress("read", done, of, "images"),
        )
        for note in found.notes:
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        if not len(found.candidates):
            lowest = now.settings.scoring.candidate_threshold
            raise UserError(f"{file} holds no box with a score of at least {lowest} (scoring.candidate_threshold)")
        done = added(now, name or name_for(file), found)
    print(json.dumps(asdict(done)) if as_json else in_words(done))


@predictions.command(name="list")
def show(project: ProjectFolder, as_json: AsJson = False) -> None:
    """List the added detections."""
    with _opened(project) as now:
        found = now.list_predictions()
    for one in found:
        print(json.dumps(asdict(one)) if as_json else in_words(one))
    if not found and not as_json:
        print(f"{project} has no added predictions")


@predictions.command()
def remove(project: ProjectFolder, name: Annotated[str, typer.Argument(help="The name of the detections.")]) -> None:
    """Remove added detections. Questions and answers about them stay."""
    with _opened(project) as now:
        now.remove_predictions(name)
    print(f"{name}: removed")


def added(project: "Project", name: str, found: "Read") -> "Summary":
    """Add detections to an open project, print what was left out, and return what was added."""
    from rarebox.project.predictions import matched

    boxes = matched(found, project.store.images(), project.store.classes())
    for note in boxes.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    return project.add_predictions(name, boxes)


def name_for(file: Path) -> str:
    """The name of the detections in a file."""
    return re.sub(r"[^\w-]+", "-", file.stem).strip("-")[:80] or "predictions"


def in_words(one: "Summary") -> str:
    """What a file of predictions holds, in one line."""
    classes = ", ".join(f"{name} {count}" for name, count in one.per_class.items())
    what = f"{counted(one.boxes, 'box', 'boxes')} on {counted(one.photos, 'photo')}"
    return f"{one.name}: {what}{f' ({classes})' if classes else ''}"


@contextmanager
def _opened(root: Path) -> "Generator[Project]":
    from rarebox.project.project import Project

    project = Project(root)
    try:
        yield project
    finally:
        project.store.close()
