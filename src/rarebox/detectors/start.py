"""The weights a detector starts from. ``auto`` is decided here, and files are identified by checksum."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from rarebox.config import DetectorSettings
from rarebox.core.files import real
from rarebox.core.progress import Progress, silent
from rarebox.detectors import hub
from rarebox.detectors.architectures import ARCHITECTURES, LIGHT, Architecture
from rarebox.detectors.detector import WEIGHTS, check_saved, read_about
from rarebox.detectors.weights import Source, WeightsUnavailable, checksum
from rarebox.errors import UserError, unknown_name

AUTO, NONE = "auto", "none"

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""The name of a model on the Hugging Face Hub: owner and model."""


@dataclass(frozen=True)
class Start:
    """The backbone and weights that a detector starts from.

    ``weights`` is a value of ``detector.weights`` other than ``auto``; ``file`` holds them, and ``sha256`` is its
    checksum (both empty for random weights). ``note`` says what is missing for a better start.
    """

    backbone: str
    weights: str
    file: str = ""
    sha256: str = ""
    note: str = ""

    def of(self, settings: DetectorSettings) -> DetectorSettings:
        """The settings with this start in place of ``auto``."""
        return settings.model_copy(update={"backbone": self.backbone, "weights": self.weights})


def choose(settings: DetectorSettings, progress: Progress = silent) -> Start:
    """Decide what a detector starts from, and make sure that the file is there.

    ``weights: auto`` is COCO if the file is on this machine or can be downloaded, else ImageNet on an installed
    backbone. ``backbone: auto`` is the backbone that belongs to the weights. Raises UserError for weights that do not
    exist or belong to another detector, and WeightsUnavailable.
    """
    if settings.name not in LIGHT:
        raise unknown_name("detector", settings.name, LIGHT)
    if settings.weights in (AUTO, "coco"):
        return _coco(settings, progress)
    if settings.weights in (NONE, "imagenet"):
        light = LIGHT[settings.name][-1] if settings.backbone == AUTO else settings.backbone
        source = None if settings.weights == NONE else source_of(settings.name, light, settings.weights)
        architecture(settings.name, light)
        return _start(light, settings.weights, source.fetch(progress) if source else None)
    place = real(settings.weights)
    if place.is_dir():
        return _of_model(settings, model_in(place))
    if not place.exists() and HUB_NAME.fullmatch(settings.weights) and _named(settings).library:
        return _of_model(settings, hub.copy_of(settings.weights))
    named = [b for b, kind in _of(settings.name).items() if any(s.is_named(place.name) for s in kind.starts.values())]
    light = (named or LIGHT[settings.name])[-1] if settings.backbone == AUTO else settings.backbone
    architecture(settings.name, light)
    return _start(light, str(place), place)


def _named(settings: DetectorSettings) -> Architecture:
    """The architecture that the settings name; with ``backbone: auto``, that on the last light backbone."""
    return architecture(settings.name, LIGHT[settings.name][-1] if settings.backbone == AUTO else settings.backbone)


def _coco(settings: DetectorSettings, progress: Progress) -> Start:
    """COCO weights; with ``auto``, ImageNet weights if COCO's are unavailable."""
    light, lacking = LIGHT[settings.name], ""
    for backbone in light if settings.backbone == AUTO else (settings.backbone,):
        source = architecture(settings.name, backbone).starts.get("coco")
        if source is None and settings.weights == "coco" and backbone == light[-1]:
            source_of(settings.name, backbone, "coco")  # raises
        if source is None:
            continue
        try:
            return _start(backbone, "coco", source.fetch(progress))
        except WeightsUnavailable as error:
            if settings.weights == "coco" or "imagenet" not in architecture(settings.name, light[-1]).starts:
                raise
            lacking = (
                f"{backbone} with COCO weights is not available ({error.__cause__}), so {light[-1]} starts from "
                f"ImageNet, and early models find fewer objects. To start from COCO, download {source.url}, put it at "
                f"{source.place}, and start over before anything is trained"
            )
    backbone = light[-1] if settings.backbone == AUTO or lacking else settings.backbone
    return _start(backbone, "imagenet", source_of(settings.name, backbone, "imagenet").fetch(progress), lacking)


def _of_model(settings: DetectorSettings, folder: Path) -> Start:
    """The start from a saved model. Raises UserError if its architecture is not the one in the settings."""
    if hub.is_model(folder):
        backbone = LIGHT[settings.name][-1] if settings.backbone == AUTO else settings.backbone
        architecture(settings.name, backbone)
        return _start(backbone, str(folder), folder / hub.WEIGHTS)
    check_saved(folder)
    _, theirs = read_about(folder)
    wanted = {"name": settings.name, "backbone": settings.backbone}
    for option, ours in wanted.items():
        there: str = getattr(theirs, option)
        if ours not in (AUTO, there):
            flag = "--detector" if option == "name" else "--backbone"
            raise UserError(
                f"the model in {folder} is a {theirs.name} on {theirs.backbone}, and the settings name {ours}. Add "
                f"{flag} {there}, or choose another model"
            )
    return _start(theirs.backbone, str(folder), folder / WEIGHTS)


def model_in(folder: Path) -> Path:
    """The folder of a model: the given one, or that of the last cycle of a run or project. Raises UserError."""
    for place in (folder, *sorted(folder.glob("cycle_*"), reverse=True)):
        if (place / WEIGHTS).is_file():
            return place
    raise UserError(f"{folder} holds no model. Name the folder of a run, a project or a model that has been trained")


def _start(backbone: str, weights: str, file: Path | None, note: str = "") -> Start:
    if file is None:
        return Start(backbone, weights)
    try:
        return Start(backbone, weights, str(file), checksum(file), note)
    except OSError as error:
        raise UserError(f"the weights file {file} cannot be read: {error.strerror or error}") from error


def verify(start: Start, settings: DetectorSettings, progress: Progress = silent) -> None:
    """Raise UserError unless the file of a start that was chosen earlier is still the same."""
    if not start.file:
        return
    file = Path(start.file)
    source = architecture(settings.name, start.backbone).starts.get(start.weights)
    if source and not file.is_file():
        file = source.fetch(progress)  # torch's cache was emptied, or is elsewhere on this machine
    now = _start(start.backbone, start.weights, file)
    if now.sha256 != start.sha256:
        raise UserError(
            f"{file} has changed: its SHA-256 is {now.sha256}, and training started from {start.sha256}. Restore the "
            "file, or start over in a new folder"
        )


# ------------------------------------------------------------------------------------------- the table by name


def _of(name: str) -> Mapping[str, Architecture]:
    return {backbone: kind for (other, backbone), kind in ARCHITECTURES.items() if other == name}


def architecture(name: str, backbone: str) -> Architecture:
    """The entry of ``ARCHITECTURES``. Raises UserError if there is none."""
    if name not in LIGHT:
        raise unknown_name("detector", name, LIGHT)
    known = _of(name)
    if backbone not in known:
        if backbone not in {other for _, other in ARCHITECTURES}:
            raise unknown_name("backbone", backbone, known)
        raise UserError(f"there is no {name} on {backbone}. Use --backbone with one of {', '.join(known)}")
    kind = known[backbone]
    if kind.library and find_spec(kind.library) is None:
        raise UserError(f'{name} needs the package {kind.library}, which is not installed: pip install "rarebox[detr]"')
    return kind


def source_of(name: str, backbone: str, weights: str) -> Source:
    """The source of named weights. Raises UserError if there are none for this detector."""
    starts = architecture(name, backbone).starts
    if weights not in starts:
        having = ", ".join(other for other, kind in _of(name).items() if weights in kind.starts)
        other = f", or --backbone with one of {having}" if having else ""
        raise UserError(
            f"there are no {weights} weights for {name} on {backbone}. Use --weights {', '.join(starts)}{other}"
        )
    return starts[weights]
