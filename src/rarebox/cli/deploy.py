"""The commands for a trained model in use."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rarebox.cli.options import MOST_NAMED, AsJson, app
from rarebox.cli.progress import console, progress_bars
from rarebox.core.text import counted


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a project, a run, or a model.")],
    images: Annotated[Path, typer.Argument(help="Folder of images, an image, a text file of paths, or a COCO file.")],
    to: Annotated[Path, typer.Option(help="Folder for the detections; existing results are completed.")],
    score: Annotated[
        float | None, typer.Option(help="Minimum score of the boxes shown; by default each class's threshold.")
    ] = None,
    pictures: Annotated[bool, typer.Option(help="Draw the boxes on copies of the images.")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Detect objects on your images with a trained model: CSV, COCO files, and pictures with boxes."""
    from rarebox.deploy.predict import UNREADABLE
    from rarebox.deploy.predict import predict as detect

    with progress_bars(as_json) as progress:
        done = detect(model, images, to, score=score, pictures=pictures, device=device, progress=progress)
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    for line in done.unreadable[:MOST_NAMED]:
        console.print(line, markup=False, soft_wrap=True)
    if done.unreadable:
        skipped = f"{counted(len(done.unreadable), 'image')} skipped, listed in {to / UNREADABLE}"
        console.print(skipped, markup=False, soft_wrap=True)
    if done.known:
        known = f"{counted(done.known, 'image')} already had a result"
        console.print(known, markup=False, soft_wrap=True)
    if score is None and not done.measured:
        console.print(
            "no threshold was measured for this model, so boxes are shown from score 0.5 on (--score changes that)",
            markup=False,
            soft_wrap=True,
        )
    parts = ", ".join(f"{name} {count}" for name, count in done.per_class.items())
    boxes, images_ = counted(done.boxes, "box", "boxes"), counted(done.images, "image")
    print(f"{done.folder}: {boxes} on {images_}{f' ({parts})' if parts else ''}")
