"""The commands for a trained model in use."""

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rarebox import config
from rarebox.cli.options import (
    MOST_NAMED,
    AsJson,
    Backbone,
    Changes,
    DetectorName,
    Device,
    Preset,
    SettingsFile,
    Weights,
    app,
    helped_torchrun,
    print_problems,
)
from rarebox.cli.progress import console, progress_bars, shown
from rarebox.core.text import counted

if TYPE_CHECKING:  # it loads torch
    from rarebox.deploy.labels import Labels


class ModelFormat(StrEnum):
    """File formats of models for other programs."""

    ONNX = "onnx"
    TORCHSCRIPT = "torchscript"


@app.command()
def train(
    labels: Annotated[Path, typer.Argument(help="Labels to train on: an export, or any COCO, VOC or YOLO data set.")],
    to: Annotated[Path, typer.Option(help="New folder for the model. An unfinished training there is resumed.")],
    preset: Preset = "laptop",
    file: SettingsFile = None,
    detector: DetectorName = None,
    backbone: Backbone = None,
    weights: Weights = None,
    hold_out: Annotated[
        bool, typer.Option(help="Without test images, measure on a fifth of the fully labelled images.")
    ] = True,
    partial: Annotated[bool, typer.Option("--partial", help="Objects may lack a box on every image.")] = False,
    seed: Annotated[int | None, typer.Option(help="Root seed.")] = None,
    device: Device = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Train a final detector on labels, complete or partial, and write it with its card."""
    if helped_torchrun():
        return
    given = {
        "detector.name": detector,
        "detector.backbone": backbone,
        "detector.weights": weights,
        "seed": seed,
        "device": device,
    }
    named = {name: value for name, value in given.items() if value is not None}
    settings = config.resolve(preset, file, {**named, **config.parse_changes(changes or [])}, final=True)
    from rarebox.data import datasets
    from rarebox.data.model_card import PAGE

    datasets.refuse_missing(str(labels))  # before the imports, which take seconds
    from rarebox.deploy.train import train as make
    from rarebox.detectors import distributed

    def tell(found: "Labels") -> None:
        print_problems(found.problems)
        if found.skipped:
            skipped = f"{counted(found.skipped, 'image')} skipped: no label, or a test image that is not fully labelled"
            console.print(skipped, markup=False, soft_wrap=True)

    with distributed.leading(), progress_bars(as_json) as progress:
        card = make(labels, to, settings, hold_out=hold_out, partial=partial, progress=progress, found=tell)
    if as_json:
        print(json.dumps({"event": "trained", "folder": str(to), **asdict(card)}))
        return
    if card.ap50 is None:
        console.print(f"not measured: {card.tested_on}", markup=False, soft_wrap=True)
    else:
        low_high = card.ap50_interval
        interval = f" (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
        console.print(
            f"AP50 {shown(card.ap50)}{interval} on {counted(card.test, 'image')}: {card.tested_on}",
            markup=False,
            soft_wrap=True,
        )
    images = f"{card.complete} fully and {card.partial} partially labelled images"
    print(f"{to}: trained on {images}. Its card: {to / PAGE}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a project, a run, or a model.")],
    images: Annotated[Path, typer.Argument(help="Folder of images, an image, a text file of paths, or a COCO file.")],
    to: Annotated[Path, typer.Option(help="Folder for the detections; existing results are completed.")],
    score: Annotated[
        float | None, typer.Option(help="Minimum score of the boxes shown; by default each class's threshold.")
    ] = None,
    tile: Annotated[
        int | None, typer.Option(help="Detect on tiles with this side in pixels, for small objects on large images.")
    ] = None,
    overlap: Annotated[int | None, typer.Option(help="With --tile: overlap of neighbours, in pixels.")] = None,
    pictures: Annotated[bool, typer.Option(help="Draw the boxes on copies of the images.")] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, or auto.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Detect objects on your images with a trained model: CSV, COCO files, and pictures with boxes."""
    from rarebox.data.tiles import tiling_of
    from rarebox.deploy.predict import UNREADABLE
    from rarebox.deploy.predict import predict as detect

    tiling = tiling_of(tile, overlap)
    with progress_bars(as_json) as progress:
        done = detect(
            model, images, to, score=score, tiling=tiling, pictures=pictures, device=device, progress=progress
        )
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    if done.left_out:
        console.print(f"note: {done.left_out}", markup=False, soft_wrap=True)
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


@app.command("export-model")
def export_model(
    model: Annotated[Path, typer.Argument(help="Folder of a project, a run, or a model.")],
    to: Annotated[Path, typer.Option(help="New file; its card goes beside it.")],
    format: Annotated[
        ModelFormat | None, typer.Option(help="Format of the file; by default that of its name (.onnx, .pt).")
    ] = None,
    size: Annotated[
        str | None, typer.Option(help="The one size of images, width x height, such as 640x480; by default any.")
    ] = None,
) -> None:
    """Write a trained model as one ONNX or TorchScript file for other programs, with its card."""
    from rarebox.deploy.export import export_model as write

    print(f"{write(model, to, format, size)}: written. Its card: {to}.md")
