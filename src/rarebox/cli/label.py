"""The commands for annotators: start a project, serve it, import and export."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarebox import config, settings_text
from rarebox.cli.options import (
    MOST_NAMED,
    Address,
    AsJson,
    Engine,
    EngineName,
    ImageUrl,
    Weights,
    app,
    class_names,
    name_missing,
    print_problems,
    warn_of_photos,
)
from rarebox.cli.predictions import added, in_words, name_for
from rarebox.cli.progress import console, progress_bars
from rarebox.cli.simulate import print_summary
from rarebox.core.files import real
from rarebox.core.text import counted
from rarebox.errors import UserError

if TYPE_CHECKING:
    from rarebox.data.listings import Numbers


class Format(StrEnum):
    """Label formats for export."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"
    LABELSTUDIO = "labelstudio"
    CVAT = "cvat"


@app.command()
def tile(
    photos: Annotated[Path, typer.Argument(help="Folder of large photos.")],
    to: Annotated[Path, typer.Argument(help="Folder for the tiles, new or of an earlier call.")],
    side: Annotated[int, typer.Option(help="Side of a tile, in pixels.")] = 1000,
    overlap: Annotated[
        int | None, typer.Option(help="Overlap of neighbours, in pixels: the size of the largest objects.")
    ] = None,
) -> None:
    """Cut large photos into tiles to be labelled as images, so that small objects are seen."""
    from rarebox.data.tiles import Tiling, cut

    tiling = Tiling.of(side, overlap)
    with progress_bars(False) as progress:
        done = cut(photos, to, tiling, progress)
    for line in done.unreadable[:MOST_NAMED]:
        console.print(f"skipped: {line}", markup=False, soft_wrap=True)
    if len(done.unreadable) > MOST_NAMED:
        console.print(f"{counted(len(done.unreadable), 'photo')} skipped", markup=False)
    print(f"{to}: {counted(done.tiles, 'tile')} of {counted(done.photos, 'photo')}")
    console.print(f"next: rarebox init PROJECT --images {to} --classes …", markup=False, soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a project or run.")],
    to: Annotated[Path, typer.Argument(help="Folder for the labels. Only an earlier export is replaced.")],
    format: Annotated[Format, typer.Option(help="Format of the labels.")] = Format.COCO,
    include_pseudo: Annotated[bool, typer.Option(help="Include the pseudo labels of the last cycle.")] = False,
    complete_only: Annotated[bool, typer.Option(help="Only fully labelled images.")] = False,
    allow_partial: Annotated[
        bool, typer.Option(help="YOLO: include partially labelled images, which is unsafe.")
    ] = False,
    copy_images: Annotated[bool, typer.Option(help="Copy the images instead of linking to them.")] = False,
    join_tiles: Annotated[
        bool, typer.Option("--join-tiles", help="Labels of whole photos, if the images are tiles of them.")
    ] = False,
    queries: Annotated[bool, typer.Option("--queries", help="Export open questions, for labelstudio or cvat.")] = False,
    most: Annotated[
        int,
        typer.Option(
            min=1, help="With --queries: at most this many questions, and never more than the budget has left."
        ),
    ] = 1000,
    image_url: ImageUrl = None,
    as_json: AsJson = False,
) -> None:
    """Export the labels of a run, with the source of each box, or its open questions for another tool."""
    from rarebox.data.export import export as write
    from rarebox.data.export import export_queries
    from rarebox.loop.run_folder import open_store
    from rarebox.project.collect import collect, tiles_of
    from rarebox.project.collect import join_tiles as joined
    from rarebox.project.exchange.questions import ask_ahead, open_questions

    warnings: list[str] = []
    if queries and join_tiles:
        raise UserError("--join-tiles is for labels: questions are about tiles. Omit it, or --queries")
    if queries:
        warn_of_photos(run)
        ask_ahead(run, most)
        with open_store(run) as store:
            found, project = open_questions(store), store.session()
        done = export_queries(
            to,
            format.value,
            found.classes,
            list(found.images.values()),
            found.queries,
            copy_images=copy_images,
            image_url=image_url,
            version=f"rarebox cycle {found.cycle}",
            project=project,
        )
        name_missing(done.missing)
        counts = {"folder": str(done.folder), "images": done.images, "queries": done.boxes}
        print(
            json.dumps(counts)
            if as_json
            else f"{done.folder}: {counted(done.boxes, 'question')} on {counted(done.images, 'image')}"
        )
        return
    with progress_bars(False) as progress:
        images, classes, annotations = collect(run, None, warnings, progress)
    for warning in warnings:
        console.print(warning, markup=False, soft_wrap=True)
    with open_store(run) as store:
        project, digests = store.session(), store.digests()
    tiles = tiles_of(run)
    if tiles and join_tiles:
        images, annotations = joined(tiles, images, annotations)
        project, digests = "", {}
    elif tiles:
        console.print("These are labels of tiles. --join-tiles exports those of the whole photos", markup=False)
    elif join_tiles:
        raise UserError(f"the images of {run} are not tiles that rarebox tile wrote. Omit --join-tiles")
    done = write(
        to,
        format,
        classes,
        images,
        annotations,
        allow_partial=allow_partial,
        complete_only=complete_only,
        include_pseudo=include_pseudo,
        copy_images=copy_images,
        image_url=image_url,
        project=project,
        digests=digests,
    )
    name_missing(done.missing)
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    print(f"{done.folder}: {counted(done.boxes, 'box', 'boxes')} on {counted(done.images, 'image')}")
    if done.partly_labelled or done.unlabelled:
        console.print(
            f"warning: {counted(done.partly_labelled, 'image')} partially labelled, {done.unlabelled} unlabelled "
            "(listed in incomplete.txt). Most trainers treat regions without a box as background. "
            "--complete-only skips these images",
            soft_wrap=True,
        )


@app.command()
def relocate(
    run: Annotated[Path, typer.Argument(help="Folder of a project or run.")],
    data: Annotated[Path, typer.Argument(help="New folder of its photos or data set.")],
) -> None:
    """Set the folder of a project's photos after they have moved. Each photo keeps its labels."""
    from rarebox.project.photo_folder import relocate as move

    with progress_bars(False) as progress:
        done = move(run, data, progress)
    print(f"{run}: {counted(done.there, 'photo')} found in {data}")
    for warning in done.warnings:
        console.print(warning, markup=False, soft_wrap=True)
    for path in done.missing[:MOST_NAMED]:
        console.print(f"not found: {path}", markup=False, soft_wrap=True)
    if done.missing:
        console.print(
            f"{counted(len(done.missing), 'photo')} not found there. The labels are kept. Put the photos into {data} "
            "and repeat the command",
            markup=False,
            soft_wrap=True,
        )


@app.command()
def backup(
    run: Annotated[str, typer.Argument(help="Folder of a project or run, or its store.")],
    to: Annotated[Path, typer.Argument(help="New file for the copy.")],
) -> None:
    """Copy the label store to a file, even while people answer. For restoring, see docs/store.md."""
    from rarebox.loop.run_folder import open_store

    with open_store(run) as store:
        store.back_up(to)
    print(f"{to}: backup of all answers so far")


class Tool(StrEnum):
    """Tools whose answers can be imported."""

    LABELSTUDIO = "labelstudio"
    CVAT = "cvat"


@app.command(name="import")
def bring_in(
    run: Annotated[str, typer.Argument(help="Folder of a run or project, its store, or a database URL.")],
    file: Annotated[Path, typer.Argument(help="Label Studio: exported JSON. CVAT: annotations.xml.")],
    format: Annotated[Tool, typer.Option(help="The tool that wrote the file.")],
    by: Annotated[str, typer.Option(help="The annotator; by default the one named in the file.")] = "",
    complete: Annotated[bool, typer.Option("--complete", help="All images in the file are fully labelled.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Overwrite different answers of other people.")] = False,
    as_json: AsJson = False,
) -> None:
    """Import answers from Label Studio or CVAT. Importing a file twice changes nothing."""
    from rarebox.data import cvat, labelstudio
    from rarebox.loop.run_folder import open_store
    from rarebox.project.exchange import importing

    warn_of_photos(run)
    batch = (labelstudio if format is Tool.LABELSTUDIO else cvat).read(file)
    with open_store(run) as store:
        done = importing.bring_in(store, batch, format, by=by, complete=complete, instead=replace)
    counts = {**asdict(done), "skipped": batch.skipped, "older": batch.older}
    if as_json:
        print(json.dumps(counts))
        return
    for where, shape in [(one.where, shape) for one in batch.returned for shape in one.left_out][:MOST_NAMED]:
        console.print(f"{where}: {shape} skipped. Draw a box there if it is an object", markup=False, soft_wrap=True)
    parts = [f"{counted(count, *IMPORTED[name][:2])} {IMPORTED[name][2]}" for name, count in counts.items() if count]
    print(f"{file}: {', '.join(parts) or 'nothing'}")


IMPORTED = {
    "objects": ("guess", "guesses", "confirmed"),
    "no_objects": ("guess", "guesses", "rejected or already labelled"),
    "missed": ("box", "boxes", "drawn for missed objects"),
    "complete": ("image", "images", "now complete"),
    "withdrawn": ("box", "boxes", "withdrawn"),
    "shared": ("box", "boxes", "withdrawn, but another task has drawn the object, so it keeps a label"),
    "unchanged": ("answer", "answers", "already known"),
    "left": (
        "answer",
        "answers",
        "not used, because another person answered differently (--replace uses the answers in the file)",
    ),
    "whole": ("answer", "answers", "not used: single boxes of a fully labelled image can be changed only on the page"),
    "unseen": (
        "guess",
        "guesses",
        "left unanswered, because the annotation did not start from the predictions or has shapes without a box",
    ),
    "skipped": ("image", "images", "skipped in the tool, left unanswered"),
    "older": ("annotation", None, "replaced by later ones of the same image"),
    "kept": (
        "label",
        "labels",
        "kept, although --complete was given and the file lacks them (delete them on the page if they are wrong)",
    ),
    "foreign": ("image", "images", "exported by another project: matched by name and position, not by number"),
    "shapes": ("shape", "shapes", "skipped, because they have no box; their images do not count as fully labelled"),
}
"""For each count: the singular, the plural, and what happened to them."""


class Ask(StrEnum):
    """What a project asks about."""

    BOXES = "boxes"
    IMAGES = "images"


VERIFY = {"selection.strategy": "image_per_second", "oracle.verify": True}
"""Settings of a project that asks about whole images."""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the project.")],
    images: Annotated[str | None, typer.Option(help="Folder or URL of the photos to label.")] = None,
    classes: Annotated[str | None, typer.Option(help="Class names, such as cat,dog; more can be added later.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Existing labels (COCO, VOC, YOLO).")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="The labels of --labels are incomplete.")] = False,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Detections of another detector, offered on the initial images and asked about later."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Instead of --images: a labelled data set (COCO, VOC, YOLO) or scenes, to simulate on."),
    ] = None,
    ask: Annotated[Ask, typer.Option(help="One box at a time, or whole photos with the detector's boxes to check.")] = (
        Ask.BOXES
    ),
    preset: Annotated[str, typer.Option(help="laptop, paper or dfine.")] = "laptop",
    weights: Weights = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="A setting, as a.b=value; repeatable.")] = None,
) -> None:
    """Create a project of your own photos to label in the browser, or settings for a simulation."""
    if (images is None) == (data is None):
        raise UserError("give either --images FOLDER (photos to label) or --data FOLDER (a labelled data set)")
    from rarebox.data.remote import is_url

    given = {**(VERIFY if ask is Ask.IMAGES else {}), **config.parse_changes(changes or [])}
    if weights is not None:
        given["detector.weights"] = str(real(weights)) if Path(weights).exists() else weights
    if images is not None:
        place = images if is_url(images) else Path(images)
        init_project(folder, place, classes, labels, partial, predictions, preset, given)
        return
    from rarebox.core.files import write_text
    from rarebox.data import datasets

    settings = config.resolve(preset, None, {"data": data if data == "scenes" else str(real(data or "")), **given})
    file = folder / "rarebox.yaml"
    if file.exists():
        raise UserError(f"{file} already exists. Edit it, or name another folder")
    with progress_bars(as_json=False) as progress:
        dataset = datasets.load_data(settings.data, progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, settings_text.commented(settings))
    print_summary(dataset)
    console.print(f"\nsettings: {file}\nnext: rarebox run {folder / 'run'} --config {file}", markup=False)


def numbers_in_use(classes: Sequence[str], labels: Path | None) -> "Numbers":
    """What class, category and image numbers in detections mean in a new project.

    ``classes`` is empty if class numbers are ambiguous: the labels and --classes name one number differently.
    """
    from rarebox.data import datasets, listings

    known = datasets.numbers_of(labels) if labels else listings.Numbers()
    ours = dict(enumerate(classes))
    agree = all(known.classes.get(number, name) == name for number, name in ours.items())
    return replace(known, classes={**known.classes, **ours} if agree else {})


def init_project(
    folder: Path,
    images: Path | str,
    classes: str | None,
    labels: Path | None,
    partial: bool,
    predictions: Path | None,
    preset: str,
    changes: dict[str, object],
) -> None:
    """Create a project of photos, and print what it holds."""
    from rarebox import external
    from rarebox.data.images import left_out, not_read
    from rarebox.detectors.start import choose
    from rarebox.detectors.weights import WeightsUnavailable
    from rarebox.project.create import create
    from rarebox.project.project import Project

    names = class_names(classes)
    try:
        with progress_bars(as_json=False) as progress:
            note: object = choose(config.resolve(preset, None, changes).detector, progress).note
    except WeightsUnavailable as error:  # labelling can start without the weights; training cannot
        note = error
    if note:
        console.print(str(note), markup=False, soft_wrap=True)
    predicted = None
    if predictions:
        settings = config.resolve(preset, None, changes)
        here = images if isinstance(images, Path) else None
        numbers = numbers_in_use(names, labels)
        predicted = external.read(predictions, settings, images=here, numbers=numbers, skip_ambiguous=True)
        told = (left_out(here), not_read(here)) if here else ()  # by create, too
        for note in predicted.notes:
            if note not in told:
                console.print(f"note: {note}", markup=False, soft_wrap=True)
        names += [name for name in predicted.classes if name not in names]
    with progress_bars(as_json=False) as progress:
        problems = create(
            folder, images, names, labels, partial=partial, preset=preset, changes=changes, progress=progress
        )
    print_problems(problems)
    if problems:
        console.print(f"all {len(problems)} are listed in {folder / 'problems.json'}", markup=False, soft_wrap=True)
    project = Project(folder)
    store = project.store
    if predictions and predicted and len(predicted.candidates):
        done = in_words(added(project, name_for(predictions), predicted))
        console.print(f"{done}. They will be offered on the initial images", markup=False, soft_wrap=True)
    labelled = store.labels().values()
    whole = sum(one.complete for one in labelled)
    if labels:
        known = f"; {whole} of them count as fully labelled (--partial if they are not)" if whole else ""
        known += f"; {len(labelled) - whole} as partially labelled" if len(labelled) > whole else ""
        known = known or "; no label was imported"
    else:  # the store may hold answers already
        partly = len(labelled) - whole
        known = (
            f"; the store already has complete labels for {whole} of them and partial labels for {partly}"
            if labelled
            else ""
        )
    shown = ", ".join(store.classes()) or "none yet; the page asks for them"
    console.print(f"{len(store.images())} photos{known}. Classes: {shown}", markup=False, soft_wrap=True)
    console.print(f"settings: {folder / 'settings.yaml'}\nnext: rarebox serve {folder}", markup=False, soft_wrap=True)
    store.close()


@app.command()
def serve(
    project: Annotated[Path, typer.Argument(help="Folder of the project, made by `rarebox init`.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 accepts connections from other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; by default 8765 or the next free one.", min=0, max=65535)
    ] = None,
    people: Annotated[str | None, typer.Option(help="Annotators, such as anna,ben; each gets a link.")] = None,
    also: Annotated[
        list[str] | None, typer.Option("--name", help="Another host name of the server; repeatable.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    label_studio: Annotated[bool, typer.Option("--label-studio", help="Print the address for Label Studio.")] = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
) -> None:
    """Serve the labelling page, and train and choose the next questions in the background."""
    from rarebox.web.serve import leave
    from rarebox.web.serve import serve as serve_project

    names = [name for name in (people or "").split(",") if name.strip()]
    serve_project(
        project,
        host,
        port,
        names,
        browser=browser,
        also=also or [],
        label_studio=label_studio,
        engine=[engine, *([address] if address else [])],
        say=lambda line: console.print(line, markup=False, soft_wrap=True),
    )
    leave()
