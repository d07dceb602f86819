"""Runs that share a first model: methods that differ only after cycle 1 train it once."""

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree

from rarebox import config, detectors
from rarebox.config import TrainingSettings
from rarebox.core.files import copy, read_json
from rarebox.errors import Damaged, UserError
from rarebox.labels.targets import read_targets
from rarebox.loop import shards
from rarebox.loop.run import Run
from rarebox.loop.run_folder import RunFolder
from rarebox.types import Targets


def first_cycle(run: Run) -> dict[str, object]:
    """Everything that the model of cycle 1 depends on: runs with the same values may share it."""
    settings = run.settings
    pool = sha256(repr(shards.listed(run.pool.records)).encode()).hexdigest()
    return {
        "seed": settings.seed,
        "initial_images": settings.initial_images,
        "detector": settings.detector.model_dump(mode="json"),
        "training": settings.training.of_first_cycle().model_dump(mode="json"),
        "difficult": settings.pseudo.difficult,
        "classes": list(run.classes),
        "pool": pool,
    }


def take_first_model(run: Run, share: Path, targets: Mapping[int, Targets]) -> None:
    """Copy the cycle-1 model of another run, which this run would train on those targets.

    Raises UserError if the other run has none, or trained it under other settings or on other labels.
    """
    theirs, ours = RunFolder(share).cycle(1), first_cycle(run)
    RunFolder(share).check_first_model()
    try:
        told = read_json(theirs / "shared.json", dict)
        there_on, here_on = _plain(read_targets(theirs / "targets.parquet")), _plain(targets)
    except Damaged as error:
        raise UserError(f"--share {share}: {error.args[0]}; or share another run, or omit --share") from error
    # Settings that the version of that run lacked have the values it used.
    told["detector"] = detectors.read_about(theirs)[1].model_dump(mode="json")
    told["training"] = TrainingSettings.model_validate(told["training"]).of_first_cycle().model_dump(mode="json")
    there, here = dict(config.flatten(told)), dict(config.flatten(ours))
    different = [f"{n}: {there.get(n)} there, {here[n]} here" for n in here if there.get(n) != here[n]]
    if not different and there_on != here_on:
        other = min(i for i in {*there_on, *here_on} if there_on.get(i) != here_on.get(i))
        different = [f"labels: those of image {other} differ"]
    if different:
        raise UserError(
            f"--share {share}: the cycle-1 model of that run does not fit this run:\n  " + "\n  ".join(different)
        )
    part = run.folder.cycle(1).with_name("cycle_01.part")
    rmtree(part, ignore_errors=True)
    try:
        copytree(theirs, part, copy_function=copy)
        rmtree(run.folder.cycle(1), ignore_errors=True)
        part.replace(run.folder.cycle(1))
    finally:
        rmtree(part, ignore_errors=True)


def _plain(targets: Mapping[int, Targets]) -> dict[int, list[object]]:
    """Targets as values that compare, of the images that have any."""
    return {i: [column.tolist() for column in vars(one).values()] for i, one in targets.items() if len(one)}
