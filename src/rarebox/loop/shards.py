"""The scored pool on disk, in shards that are scored once. Read :func:`make_shards` first."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import TypedDict, cast
from uuid import uuid4

import numpy as np

from rarebox import strategies
from rarebox.core import parquet
from rarebox.core.files import copy, read_json, write_json
from rarebox.detectors.detector import ABOUT, WEIGHTS
from rarebox.errors import Damaged
from rarebox.loop.run import Run, extract
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.scoring import kept_features
from rarebox.pool import candidates as pool_file
from rarebox.pool.candidates import Shards
from rarebox.types import ImageRecord, ImageScores

SHARDS = "shards.json"
"""The file that lists the shards of a cycle, in the order of the pool."""

RULES = 2
"""Increases when the same model and settings give different scores. 2: boxes are compared in the view's frame."""

KINDS = ("shard", "images")
"""The names of the two files of a shard: candidates, and scores of whole images."""


def score_pool(run: Run, cycle: int) -> tuple[Shards, ImageScores]:
    """Score every image that is not completely labelled with the previous model, and return the candidates.

    The pool is scored in shards, and finished shards are not scored again. If neither the strategy nor the training
    uses scores, there are no candidates and the image scores are 0.
    """
    labels = run.store.labels(up_to_cycle=cycle - 1)
    images = [i for i in run.pool.records if i.id not in labels or not labels[i.id].complete]
    if not images:
        return Shards([]), ImageScores.none(len(run.classes))
    needless = run.settings.pseudo.images == "labelled" and not run.settings.oracle.verify
    if run.settings.selection.strategy in strategies.BLIND and needless:
        ids = np.array([image.id for image in images])
        no_scores = np.zeros((len(images), len(run.classes)))
        return Shards([]), ImageScores(ids, no_scores[:, 0], no_scores)
    folder = make_shards(run, cycle, images)
    if run.settings.selection.strategy not in strategies.IMAGE:  # only these use the scores of whole images
        return scored_pool(run, cycle), ImageScores.none(len(run.classes))
    scores = pool_file.read_images(folder)
    # In a project, classes may have been merged or added since the model was trained.
    lacking = len(run.classes) - scores.class_scores.shape[1]
    return scored_pool(run, cycle), replace(scores, class_scores=np.pad(scores.class_scores, ((0, 0), (0, lacking))))


def scored_pool(run: Run, cycle: int) -> Shards:
    """The candidates that a cycle chooses from, read from disk with merged classes."""
    folder = run.folder.cycle(cycle) / "candidates"
    names = _listed(folder)
    files = [folder / f"shard_{name}" for name in names] if names is not None else folder.glob("shard_*")
    return Shards(sorted(files), run.store.counts_as())


def is_scored(run: Run, cycle: int) -> bool:
    """Whether everything that :func:`scored_pool` reads is on the disk and complete."""
    folder = run.folder.cycle(cycle) / "candidates"
    if not folder.exists():
        return False
    names = _listed(folder)
    if names is None:
        return not (folder / SHARDS).exists() and all(map(parquet.is_whole, folder.glob("shard_*")))
    return all(parquet.is_whole(folder / f"{kind}_{name}") for name in names for kind in KINDS)


class ShardList(TypedDict):
    """The content of ``shards.json``: the version of the rules that scored the shards, and the shards' names."""

    rules: int | None
    shards: list[str]


def _told(folder: Path) -> ShardList | None:
    """Read ``shards.json`` in its current form. None if it cannot be read."""
    try:
        told = read_json(folder / SHARDS)
    except Damaged:
        return None
    if isinstance(told, list):  # as an earlier version wrote it
        return {"rules": None, "shards": cast(list[str], told)}
    if not isinstance(told, dict) or not isinstance(cast(dict[str, object], told).get("shards"), list):
        return None
    return cast(ShardList, told)


def _listed(folder: Path) -> list[str] | None:
    """The names of the shards that belong together. None if their list cannot be read."""
    told = _told(folder)
    return told["shards"] if told else None


def _began_by_other_rules(run: Run, cycle: int, folder: Path) -> bool:
    """Whether an earlier version scored this cycle by other rules and asked from that ranking."""
    told = _told(folder)
    if told is None or told["rules"] == RULES:  # without the list, missing shards are scored again by our rules
        return False
    asked = any(query.why and "rank" in query.why for query in run.store.queries(cycle))
    return asked and any(folder.glob("shard_*.parquet"))


def make_shards(run: Run, cycle: int, images: Sequence[ImageRecord]) -> Path:
    """Score the images that are not scored yet, shard by shard, and return the folder of the files.

    A shard is named by its place in the pool, which is the order of reading, and by a hash of everything that its
    numbers depend on. So no engine scores it twice or confuses it with another. ``shards.json`` lists the shards that
    belong together. It changes when all of them are written, and only then are older shards removed. A cycle that an
    earlier version has scored and asked from keeps those scores, as places in two rankings must not be mixed.
    """
    folder, size = run.folder.cycle(cycle) / "candidates", run.settings.scoring.shard_size
    if _began_by_other_rules(run, cycle, folder):
        run.notes.append("an earlier version scored this cycle; its scores are used until the cycle ends")
        return folder
    shards = [images[i : i + size] for i in range(0, len(images), size)]
    recipe = scoring_recipe(run, cycle)
    names = [f"{place:05d}_{shard_name(recipe, shard)}.parquet" for place, shard in enumerate(shards)]
    wanted = {f"{kind}_{name}" for name in names for kind in KINDS}
    # Runs that share the model of cycle 1 share its scores too. If the other folder cannot be read or written, each run
    # scores by itself.
    lender = RunFolder(run.share) if run.share and run.share.exists() and cycle == 2 else None
    if lender:
        for place in (lender.root / "scored", lender.cycle(2) / "candidates"):
            with suppress(OSError):
                _give(place, folder, wanted)
    missing = [p for p, name in enumerate(names) if not all(parquet.is_whole(folder / f"{k}_{name}") for k in KINDS)]
    if missing:
        _score_shards(run, cycle, folder, images, shards, names, missing)
    listing: ShardList = {"rules": RULES, "shards": names}
    if _told(folder) != listing:
        write_json(folder / SHARDS, listing)
    for file in folder.glob("*.parquet*"):  # shards of other pools, and incomplete copies left by a killed process
        if file.name not in wanted:
            file.unlink()
    if lender:
        with suppress(OSError):
            _give(folder, lender.root / "scored", wanted)
    return folder


def _give(there: Path, here: Path, names: Iterable[str]) -> None:
    """Copy the complete files of one folder into another that lacks them.

    Files are never changed in place, so a hard link is used where the disk allows it.
    """
    lacking = [name for name in names if not parquet.is_whole(here / name) and parquet.is_whole(there / name)]
    for name in lacking:
        here.mkdir(parents=True, exist_ok=True)
        part = here / f"{name}.{uuid4().hex}"
        try:
            try:
                part.hardlink_to(there / name)
            except OSError:
                copy(there / name, part)
            part.replace(here / name)
        finally:
            part.unlink(missing_ok=True)


def _score_shards(
    run: Run,
    cycle: int,
    folder: Path,
    images: Sequence[ImageRecord],
    shards: Sequence[Sequence[ImageRecord]],
    names: Sequence[str],
    missing: Sequence[int],
) -> None:
    """Score the missing shards with the engine of the run, and write each as it arrives."""
    known = len(images) - sum(len(shards[place]) for place in missing)

    def tell(done: int, note: str = "") -> None:
        report(known + done, len(images), f"images{note}")

    extract(run, run.pool.of([image for place in missing for image in shards[place]]))
    with run.stage("score") as report:
        scored = run.engine(run, cycle, [shards[place] for place in missing], tell)
        for number, found, of_images in scored:
            pool_file.write(folder / f"images_{names[missing[number]]}", of_images)
            pool_file.write(folder / f"shard_{names[missing[number]]}", found)


def scoring_recipe(run: Run, cycle: int) -> dict[str, object]:
    """Everything except the image that its scores depend on: the content of the model, settings, seed and cycle."""
    settings, model = run.settings, run.folder.cycle(cycle - 1)
    return {
        "rules": RULES,
        "model": [sha256((model / name).read_bytes()).hexdigest() for name in (ABOUT, WEIGHTS)],
        "detector": settings.detector.model_dump(mode="json"),
        "scoring": settings.scoring.model_dump(mode="json", exclude={"shard_size"}),
        "lowest_score": settings.lowest_score,
        "features": kept_features(settings),
        "precision": settings.training.precision,
        "freeze": settings.training.freeze,
        "device": settings.device,
        "seed": settings.seed,
        "cycle": cycle,
    }


def shard_name(recipe: Mapping[str, object], images: Sequence[ImageRecord]) -> str:
    """A hash that identifies a shard."""
    return sha256(json.dumps([recipe, listed(images)]).encode()).hexdigest()[:20]


def listed(images: Sequence[ImageRecord]) -> list[tuple[int, str, int, int]]:
    """A hash that identifies images, even after their folder was moved."""
    return [(i.id, Path(i.path).name, i.width, i.height) for i in images]
