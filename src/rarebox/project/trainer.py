"""The trainer: the process beside ``rarebox serve`` that trains and scores while people answer.

Read :func:`advance` first. The trainer reads commands as JSON lines from its input: ``{"do": "go on"}``, ``{"do":
"train"}`` (without waiting for the budget) or ``{"do": "rank on"}`` (the stored ranking is used up). It reports events
as JSON lines. Every step writes its result to disk, so a killed trainer resumes. It ends with the process that
started it.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from queue import Queue as Mailbox

import numpy as np

from rarebox import detectors
from rarebox.core import seeds
from rarebox.core.files import write_json
from rarebox.core.progress import Progress
from rarebox.data.pictures import Pictures
from rarebox.errors import UserError
from rarebox.loop import cluster, rules, shards
from rarebox.loop.cycle import rank_pool, train_cycle
from rarebox.loop.features import labelled_features, some_of_each_class
from rarebox.loop.run import Engine, Ranked, Run, batches
from rarebox.loop.scoring import kept_features
from rarebox.pool import last
from rarebox.pool.ranking import LazyRanking, on_images
from rarebox.project.photo_folder import photos_there
from rarebox.project.project import HELD_OUT, Project, is_further
from rarebox.project.run import open_project
from rarebox.strategies import IMAGE
from rarebox.strategies.greedy import k_center
from rarebox.types import ImageRecord, ImageScores, LabelState, Query

MOST_COMPARED = 1000
"""The number of random images from which the initial images, the most different ones, are chosen."""

EXAMPLES = 50
"""The labelled boxes of each class whose features are kept for comparison, if there are as many."""


def advance(project: Project, tell: Progress, train: bool = False, engine: Engine | None = None) -> str | None:
    """Do the next step that is due, and return its name. Return None if annotators must answer first.

    Cycle 1 asks about whole images. When the questions of a cycle are answered, the trainer trains and evaluates a
    model, then scores and ranks the pool and opens the next cycle.
    """
    cycle = project.cycle
    if cycle <= 1 and not awaits_first(project) and not is_due(project, 1, train):
        return "questions" if ask_first_images(project, tell) else None
    project.note_numbers()
    run = open_project(project.folder, project.settings, project.store, tell, engine)
    records = project.folder.records()
    if len(records) >= cycle:
        run.cycle = cycle + 1
        return "questions" if prepare(project, run, cycle + 1) else None
    trained = len(records) + 1
    if trained < cycle or is_due(project, cycle, train):  # an earlier cycle, if its record was lost
        run.cycle = trained
        write_json(project.folder.metrics, [*records, train_cycle(run, trained, ranked_before(project, run, trained))])
        return "trained"
    if cycle > 1 and not project.has_ranking(cycle):  # its ranking was lost
        run.cycle = cycle
        rank(project, run, cycle)
        return "questions"
    return None


def asked_first(project: Project) -> bool:
    """Whether the initial images have been asked about. Imported labels and further images do not count."""
    return any(query.asked_by is None and not is_further(query) for query in project.store.queries(1))


def awaits_first(project: Project) -> bool:
    """Whether an initial image is unanswered. Training does not wait for further ones, which only fill its time."""
    return not all(map(is_further, project.store.unanswered(1)))


def is_due(project: Project, cycle: int, train: bool) -> bool:
    """Whether to train the model of a cycle: its budget is spent, ``train`` is set, or a training was interrupted."""
    said = project.store.labels()
    if not any(len(labels.boxes) for labels in said.values()) or not project.store.classes():
        return False
    if train or (project.folder.cycle(cycle) / "targets.parquet").exists():
        return True
    if cycle == 1:
        # Imported labels may replace the initial images.
        further = {query.image_id for query in project.store.queries(1) if is_further(query)}
        labelled = sum(one.complete or len(one.boxes) > 0 for i, one in said.items() if i not in further)
        images = len(project.store.images().keys() - further)
        enough = asked_first(project) or labelled >= min(project.settings.initial_images, images)
        return enough and not awaits_first(project)
    return project.budget(cycle).left <= 0


def ask_first_images(project: Project, tell: Progress) -> bool:
    """Ask about the images that differ most, from each other and from those labelled or asked about before, and hold
    out some of them. Return False if every image is labelled. The trainer asks again if the first images show no object
    at all.
    """
    store, settings = project.store, project.settings
    records = [*photos_there(project.folder, settings, store).values()]
    if {record.id for record in records} <= store.labels().keys():
        return False
    order = most_different(project, records, tell)
    with store.transaction(writes=True):  # people may have answered in the meantime
        seen = project.seen_images()
        left = [image_id for image_id in order if image_id not in seen]
        first = left[: settings.initial_images]
        held_out = rules.held_out(settings.seed, len(first), rules.FEWEST_TO_HOLD_OUT)
        store.open_cycle(1)
        store.ask(1, [Query(i, why={"rank": p, HELD_OUT: float(p in held_out)}) for p, i in enumerate(first)])
    project.keep_further_images(left[settings.initial_images :])
    return bool(first)


def most_different(project: Project, records: Sequence[ImageRecord], tell: Progress) -> list[int]:
    """The ids of images, at most MOST_COMPARED random ones: first the one that differs most from all images seen
    before, then the next one, in the features of the pretrained backbone. If none was seen, a typical one is first."""
    settings = project.settings
    drawn = seeds.stream(settings.seed, "first images").permutation(len(records))[:MOST_COMPARED]
    compared = [records[i] for i in sorted(map(int, drawn))]
    detector = detectors.build(
        **settings.detector.model_dump(),
        num_classes=max(1, len(project.store.classes())),
        device=settings.device,
        training=settings.training,
        seed=settings.seed,
    )
    pictures = Pictures(compared, settings.detector.size)
    features: dict[int, np.ndarray] = {}
    for rows, batch in pictures.in_batches(batches(pictures, settings.scoring.batch_size)):
        features |= zip(rows.tolist(), detector.image_features(batch), strict=True)
        tell("looking for the most different photos", len(features), len(compared), "images")
    points = np.stack([features[i] for i in range(len(compared))])
    typical = int(np.linalg.norm(points - points.mean(axis=0), axis=1).argmin())
    seen = project.seen_images()
    centres = points[[row for row, record in enumerate(compared) if record.id in seen]]
    return [compared[row].id for row, _ in k_center(points, centres, typical)]


def prepare(project: Project, run: Run, cycle: int) -> bool:
    """Score and rank the pool for a cycle, and open the cycle. Return False if nothing is left to ask about.

    If no candidate is left, it asks about random whole images.
    """
    store, settings = project.store, project.settings
    if not project.has_ranking(cycle):
        rank(project, run, cycle)
    whole: list[int] = []
    if not len(project.read_ranking(cycle).candidates):
        whole = rules.images_to_explore(settings, store, cycle, (record.id for record in run.pool.records))
        if not whole:
            return False
    with store.transaction(writes=True):
        store.open_cycle(cycle)
        store.ask(cycle, [Query(i, why={"cycle": cycle}) for i in whole[: settings.initial_images]])
    return True


def rank(project: Project, run: Run, cycle: int) -> None:
    """Score and rank the pool for a cycle, and store the ranking and the features of some labelled boxes."""
    ranked = rank_pool(run, cycle)
    if kept_features(run.settings):
        labels = some_of_each_class(run.store.labels(up_to_cycle=cycle - 1), EXAMPLES)
        known = labelled_features(run, cycle, labels)
        project.write_examples(cycle, replace(known, features=last.sketch(known.features)))
    project.write_ranking(cycle, boxes_in_order(run, ranked), ranked.state.class_frequency, ranked.open_per_class)


def boxes_in_order(run: Run, ranked: Ranked) -> LazyRanking:
    """The ranking of boxes. For an image-level strategy these are the boxes of its images, image by image."""
    if run.settings.selection.strategy not in IMAGE:
        return ranked.queue
    return on_images(run.settings, ranked.pool, run.store.labels(up_to_cycle=ranked.cycle - 1), ranked.queue)


def rank_on(project: Project, tell: Progress, engine: Engine | None = None) -> bool:
    """Double the stored part of a used-up ranking. Return False if it was already complete."""
    cycle = project.cycle
    if not project.has_ranking(cycle):
        return False
    kept = project.read_ranking(cycle)
    if len(kept.candidates) >= kept.open_per_class.sum():
        return False
    run = open_project(project.folder, project.settings, project.store, tell, engine)
    run.cycle = cycle
    queue = boxes_in_order(run, rank_pool(run, cycle))
    project.write_ranking(cycle, queue, kept.class_frequency, kept.open_per_class, 2 * len(kept.candidates))
    return len(project.read_ranking(cycle).candidates) > len(kept.candidates)


def ranked_before(project: Project, run: Run, cycle: int) -> Ranked | None:
    """Read from disk how a cycle was scored and ranked. Lost files are computed again."""
    if cycle == 1:
        return None
    if not project.has_ranking(cycle) or not shards.is_scored(run, cycle):
        rank(project, run, cycle)
    kept = project.read_ranking(cycle)
    state = LabelState(kept.class_frequency, np.zeros(0, np.int64), ImageScores.none(0))
    return Ranked(cycle, shards.scored_pool(run, cycle), kept.queue, state, kept.open_per_class)


# ------------------------------------------------------------------------------------------- the process


def main(root: str, engine: str = "local", address: str | None = None) -> None:
    """Execute commands until the input ends, then stop immediately, even during a step."""
    mailbox: Mailbox[dict[str, str]] = Mailbox()

    def listen() -> None:
        for line in sys.stdin:
            mailbox.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    project = Project(Path(root))
    reported = 0.0

    def progress(stage: str, done: int, of: int, note: str) -> None:
        nonlocal reported
        if time.monotonic() - reported > 0.3 or done == of:
            reported = time.monotonic()
            say(event="progress", stage=stage, done=done, of=of, note=note)

    say(event="ready")
    while True:
        what = mailbox.get()["do"]
        train = what == "train"
        try:
            with cluster.connected(engine, address) as where:  # for each command, as the next may come days later
                how = where.score if where else None
                if what == "rank on":
                    if rank_on(project, progress, how):
                        say(event="questions")
                    else:
                        train = project.budget(project.cycle).spent > 0
                while step := advance(project, progress, train, how):
                    train = False
                    say(event=step)
            say(event="idle")
        except (UserError, OSError, MemoryError) as error:
            reason = str(error) or "the memory of this machine is full. Lower training.batch_size in settings.yaml"
            say(event="failed", reason=reason)


def say(**what: object) -> None:
    """Write one JSON line for the process that started this one."""
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
