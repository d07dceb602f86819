"""Checks of the installation, for ``rarebox doctor``."""

import os
import shutil
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from rarebox.config import resolve
from rarebox.core.places import cache_folder
from rarebox.data import assembly, datasets
from rarebox.detectors.architectures import ARCHITECTURES, LIGHT
from rarebox.detectors.environment import describe
from rarebox.detectors.weights import answers, cached, checksum
from rarebox.errors import UserError


class Check(NamedTuple):
    """One check: whether it passed, what was found, what to do otherwise, and whether every run needs it."""

    name: str
    ok: bool
    found: str
    advice: str = ""
    needed: bool = True


def examine(path: str | None) -> list[Check]:
    """Run all checks, which are quick, and read the data set if a path is given."""
    facts = describe()
    versions = ", ".join(f"{name} {facts[name]}" for name in ("rarebox", "python", "torch", "torchvision", "timm"))
    checks = [Check("versions", True, versions), _accelerator(), _disk()]
    checks += [_start(), _weights(), _voc()]
    if path:
        checks.append(_data(path))
    photos = Check("your own photos", True, "rarebox init PROJECT --images FOLDER, then rarebox serve PROJECT")
    return [*checks, photos]


def _accelerator() -> Check:
    if torch.cuda.is_available():
        memory = float(torch.cuda.get_device_properties(0).total_memory) / 2**30  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        return Check("accelerator", True, f"{torch.cuda.get_device_name()}, {memory:.0f} GiB")
    if torch.backends.mps.is_available():
        return Check("accelerator", True, "Apple GPU (mps)")
    return Check(
        "accelerator",
        True,
        f"none; {os.cpu_count()} CPU cores",
        "use the preset laptop; paper needs a GPU",
    )


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    advice = "" if free > 2 else "a run saves a model every cycle. Free some space"
    return Check("disk", free > 2, f"{free:.0f} GiB free here", advice)


def _start() -> Check:
    """The initial weights of a detector of the preset ``laptop``, and the path of their file."""
    name = resolve("laptop").detector.name
    light = next(backbone for backbone in LIGHT[name] if "coco" in ARCHITECTURES[name, backbone].starts)
    coco = ARCHITECTURES[name, light].starts["coco"]
    title = "detector's start"
    if coco.is_here():
        other = (
            "" if checksum(coco.place).startswith(coco.digest) else ", which is not the file that torchvision publishes"
        )
        return Check(title, True, f"COCO on {light}: {coco.place}{other}")
    if answers(coco.url):
        return Check(title, True, f"COCO on {light}, downloaded when first used: {coco.url} to {coco.place}")
    return Check(
        title,
        False,
        f"ImageNet on {LIGHT[name][-1]}, because {coco.place} is missing and its server cannot be reached",
        f"early models from COCO find more objects. Download {coco.url} elsewhere, and put it there",
        needed=False,
    )


def _weights() -> Check:
    """Which other weights are on this machine."""
    sources = {source.place: source for kind in ARCHITECTURES.values() for source in kind.starts.values()}
    here = [place.name for place, source in sources.items() if source.is_here()]
    missing = [place.name for place, source in sources.items() if not source.is_here()]
    found = f"{', '.join(here)}; not in {cached('x').parent}: {', '.join(missing) or 'none'}"
    return Check("weights", True, found)


def _voc() -> Check:
    root = cache_folder() / "voc0712"
    if root.exists():
        return Check("PASCAL VOC", True, str(root))
    return Check(
        "PASCAL VOC",
        False,
        "not downloaded yet; downloaded when first used",
        "only to reproduce the paper: --data voc0712 downloads it, or says where to put it",
        needed=False,
    )


def _data(path: str) -> Check:
    try:
        found = assembly.usable(datasets.load_data(path))
    except UserError as error:
        return Check("data", False, path, str(error))
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(p.kind for p in found.problems).most_common())
    test = len(found.test.images) if found.test else 0
    text = f"{found.name}: {len(found.train.images)} training and {test} test images, {len(found.classes)} classes"
    return Check("data", True, text, f"skipped or changed: {kinds}" if kinds else "")
