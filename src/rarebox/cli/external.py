"""The commands for other detectors: rank their boxes, and write augmented copies of images."""

import json
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rarebox import config
from rarebox.cli.options import ImageUrl, app, class_names, warn_of_photos
from rarebox.cli.progress import console, progress_bars


class ListFormat(StrEnum):
    """Formats of a ranked list of boxes."""

    CSV = "csv"
    JSON = "json"
    COCO = "coco"
    LABELSTUDIO = "labelstudio"


@app.command()
def rank(
    detections: Annotated[Path, typer.Option(help="Detections: COCO results, or JSON lines.")],
    budget: Annotated[int, typer.Option(help="How many boxes to list.")],
    views: Annotated[Path | None, typer.Option(help="Detections on augmented copies, as JSON lines.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="Existing labels: a COCO file, or the folder of a run or project.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="The images: a folder, a text file of paths, or a COCO file.")
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="How boxes are ranked: class_balanced, uncertainty, entropy, …")
    ] = "class_balanced",
    to: Annotated[Path | None, typer.Option(help="File for the list; standard output by default.")] = None,
    format: Annotated[ListFormat, typer.Option(help="Format of the list.")] = ListFormat.CSV,
    views_map: Annotated[Path | None, typer.Option(help="The views.jsonl that `rarebox views` wrote.")] = None,
    classes: Annotated[str | None, typer.Option(help="The detector's classes in order, such as cat,dog.")] = None,
    labels_complete: Annotated[bool, typer.Option(help="All images of --labels are fully labelled.")] = False,
    image_url: ImageUrl = None,
    seed: Annotated[int, typer.Option(help="Root seed, for the strategy random.")] = 0,
    changes: Annotated[list[str] | None, typer.Option("--set", help="A setting, as a.b=value; repeatable.")] = None,
) -> None:
    """List the boxes to label next, from the output of any detector."""
    from rarebox import external
    from rarebox.core.files import write_text
    from rarebox.data import labelstudio, ranked
    from rarebox.data.review import sheets

    given = {"selection.strategy": strategy, "seed": seed, **config.parse_changes(changes or [])}
    names = class_names(classes) or None
    if labels:
        warn_of_photos(labels)
    with progress_bars(False) as progress:
        found = external.rank(
            detections,
            views,
            labels,
            images,
            config.resolve("laptop", None, given),
            budget,
            classes=names,
            views_map=views_map,
            labels_complete=labels_complete,
            report=lambda done, of: progress("score", done, of, "images"),
        )
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    about = {
        "strategy": found.strategy,
        "uncertainty": "views" if found.from_views else "class entropy",
        "budget": budget,
        "candidates": found.candidates,
    }
    match format:
        case ListFormat.CSV:
            text = ranked.as_csv(found.images, found.classes, found.queries)
        case ListFormat.JSON:
            text = ranked.as_json(found.images, found.classes, found.queries, found.class_frequency, about)
        case ListFormat.COCO:
            text = ranked.as_coco(found.images, found.classes, found.queries)
        case ListFormat.LABELSTUDIO:
            shown = [
                replace(sheet, project=found.project, numbered=True)
                if sheet.record.id in found.of_project
                else replace(sheet, numbered=False)
                for sheet in sheets([(record, record.path) for record in found.images.values()], found.queries)
            ]
            text = json.dumps(labelstudio.tasks(shown, found.classes, image_url or ""), ensure_ascii=False) + "\n"
            if to:
                write_text(to.with_suffix(".xml"), labelstudio.config(found.classes))
    if to:
        write_text(to, text)
    else:
        print(text, end="")
    listed = f"{len(found.queries)} of {found.candidates} open boxes by {found.strategy}"
    console.print(f"{listed}{f': {to}' if to else ''}", markup=False, soft_wrap=True)


@app.command()
def views(
    images: Annotated[Path, typer.Option(help="A folder of images, or a COCO file.")],
    to: Annotated[Path, typer.Option(help="Folder for the copies and their map, views.jsonl.")],
    views: Annotated[str | None, typer.Option(help="Views, such as flip,cutout; four by default.")] = None,
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
) -> None:
    """Write augmented copies of images. Run your detector on them for `rarebox rank --views`."""
    from rarebox.external.write_copies import write_copies

    names = [n.strip() for n in views.split(",") if n.strip()] if views else config.Settings().scoring.views
    with progress_bars(False) as progress:
        done = write_copies(images, to, names, seed, lambda n, of: progress("copy", n, of, "images"))
    if done.left_out:
        console.print(f"note: {done.left_out}", markup=False, soft_wrap=True)
    if done.unreadable:
        skipped = f"{len(done.unreadable)} unreadable images are skipped, the first: {done.unreadable[0]}"
        console.print(f"note: {skipped}", markup=False, soft_wrap=True)
    print(f"{done.map}: {done.copies} copies of {done.images} images")
