"""A trained model as one file for other programs, with its card beside it."""

from pathlib import Path

from rarebox import detectors
from rarebox.core.files import real, refuse_database, write_bytes
from rarebox.deploy.card import card_of
from rarebox.deploy.model import open_model
from rarebox.detectors.export import INPUT, OPSET, OUTPUTS, Size, as_onnx, as_torchscript
from rarebox.errors import UserError, unknown_name

FORMATS = {"onnx": as_onnx, "torchscript": as_torchscript}

SUFFIXES = {".onnx": "onnx", ".pt": "torchscript", ".ts": "torchscript"}
"""The format by the end of a file's name."""

SMALLEST, LARGEST = 16, 16384
"""Limits of a fixed side of an image, in pixels."""


def export_model(model: Path, to: Path, format: str | None = None, size: str | None = None) -> Path:
    """Write a model as one file, ``onnx`` or ``torchscript``, and its card beside it. Return the file. Loads torch.

    ``model`` is a run, a project or the folder of a model. ``format`` is by default that of the file's name. ``size``
    is the one size of images, such as ``640x480`` (width and height), by default any. The card is in ``TO.md`` and
    ``TO.json``. Raises UserError without a model, and if the file exists.
    """
    chosen = format or SUFFIXES.get(to.suffix.lower())
    if chosen is None:
        raise UserError(f"{to}: its name does not say which format it is. Add --format onnx or torchscript")
    if chosen not in FORMATS:
        raise unknown_name("format", chosen, FORMATS)
    fixed = _parse(size) if size else None
    as_json, as_page = (to.with_name(f"{to.name}{end}") for end in (".json", ".md"))
    for file in (to, as_json, as_page):
        if file.exists() or file.is_symlink():
            raise UserError(f"{file} exists already. Name a new file")
    refuse_database(to)
    opened = open_model(model)
    card = card_of(opened)
    about = {
        "classes": [one.name for one in card.classes],
        "thresholds": [one.threshold for one in card.classes],
        "sha256": card.sha256,
    }
    content = FORMATS[chosen](detectors.load(opened.folder, "cpu"), about, fixed)
    sides = f"{fixed[0]} x {fixed[1]}" if fixed else "any size"
    export = {
        "format": f"onnx, operators {OPSET}" if chosen == "onnx" else chosen,
        "input": f"{INPUT}: uint8 RGB, height x width x 3; height x width: {sides}",
        "outputs": f"{', '.join(OUTPUTS)}: N x 4 corners in pixels of the image, N, N; best first, labels count from 0",
    }
    real(to).parent.mkdir(parents=True, exist_ok=True)
    card.write(as_json, as_page, export)
    write_bytes(to, content)
    return to


def _parse(size: str) -> Size:
    """``640x480`` -> height and width. Raises UserError for anything else."""
    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError:
        raise UserError(f"the size must be width x height in pixels, such as 640x480, got {size!r}") from None
    if not all(SMALLEST <= side <= LARGEST for side in (width, height)):
        raise UserError(f"both sides must be from {SMALLEST} to {LARGEST} pixels, got {size!r}")
    return height, width
