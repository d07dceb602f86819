"""Active learning, cycle by cycle: the only module that knows all the others. Read :func:`run_cycle` first."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from hashlib import sha256

import numpy as np

from rarebox import strategies
from rarebox.core import parquet, seeds
from rarebox.core.files import read_json, write_json
from rarebox.data import listings
from rarebox.detectors import Detector
from rarebox.detectors.detector import check_saved
from rarebox.detectors.teacher import Renewal
from rarebox.errors import Damaged, UserError
from rarebox.labels.targets import calibration, make_targets, write_targets
from rarebox.loop import rules, shards
from rarebox.loop.ask import ask, label_initial_pool
from rarebox.loop.features import features
from rarebox.loop.hits import hit_weights
from rarebox.loop.measuring import detect, measure
from rarebox.loop.metrics import CycleRecord, Measures
from rarebox.loop.record import record
from rarebox.loop.run import Ranked, Run, extract, load_detector, new_detector
from rarebox.loop.run_folder import RunFolder
from rarebox.loop.sharing import first_cycle, take_first_model
from rarebox.loop.tested import write_tested
from rarebox.pool import ranking
from rarebox.pool.candidates import Shards
from rarebox.pool.ranking import LazyRanking
from rarebox.types import JUDGED, Candidates, Floats, ImageLabels, Targets

NO_BOXES = np.zeros((0, 4), dtype=np.float32)
NOTHING_SAID = ImageLabels(NO_BOXES, np.zeros(0, dtype=np.int64), NO_BOXES, NO_BOXES, complete=False)


def run_cycle(run: Run, cycle: int) -> CycleRecord:
    """Run one cycle of the paper's Fig. 2 and return its record. Cycle 1 labels random images completely.

    Every step writes its result to disk and reads it again, so an interrupted cycle resumes.
    """
    run.store.open_cycle(cycle)
    if cycle == 1:
        label_initial_pool(run)
        return train_cycle(run, cycle, None)
    ranked = rank_pool(run, cycle)
    ask(run, cycle, ranked)
    return train_cycle(run, cycle, ranked)


def train_cycle(run: Run, cycle: int, ranked: "Ranked | None") -> CycleRecord:
    """Run the second half of a cycle: train on the answers, evaluate, and return the record."""
    targets = training_targets(run, cycle, ranked.pool if ranked else None)
    detector = retrain(run, cycle, targets)
    result = evaluate(run, cycle, detector)
    return record(run, cycle, ranked, targets, result)


def leaves_images_out(place: RunFolder) -> bool:
    """Whether a run excludes unusable images. Runs of older versions used all images."""
    listed = read_json(place.problems, list) if place.problems.exists() else list[dict[str, str]]()
    return any(problem["kind"] == listings.NOT_USED for problem in listed)


def rank_pool(run: Run, cycle: int) -> Ranked:
    """Score the pool with the previous cycle's model, and let the strategy rank the open candidates."""
    settings, before = run.settings, run.store.labels(up_to_cycle=cycle - 1)
    restore_model(run, cycle - 1)
    pool, images = shards.score_pool(run, cycle)
    among = ranking.with_added(pool, run.added, settings)
    state, open_per_class = ranking.label_state(settings, rules.boxes_of(settings, cycle), before, among, images)
    queue = LazyRanking.of(Candidates.none(len(run.classes)), iter(()))
    if len(state.images) if settings.selection.strategy in strategies.IMAGE else open_per_class.any():
        if settings.selection.strategy in strategies.BY_HITS:
            state = replace(state, hit_weights=hit_weights(run, cycle))
        state = replace(state, **features(run, cycle, before, state.images.image_id.tolist()))
        sizes = {record.id: (record.width, record.height) for record in run.pool.records}
        rng = partial(seeds.stream, settings.seed, "strategy", cycle)
        queue = ranking.head(settings, among, before, state, rng, sizes)
    return Ranked(cycle, pool, queue, state, open_per_class)


def training_targets(run: Run, cycle: int, candidates: Shards | None) -> dict[int, Targets]:
    """The targets of every training image (decisions row 21), by image id."""
    settings = run.settings.pseudo
    labels = run.store.labels(up_to_cycle=cycle)
    lowest = run.settings.lowest_pseudo_score
    pool = {record.id for record in run.pool.records}
    chosen = {i: said for i, said in labels.items() if i in pool and (said.complete or len(said.boxes))}
    found: dict[int, Candidates] = {}
    if candidates is not None:
        found = candidates.of_images(pool if settings.images == "pool" else chosen)
        found = {i: strong for i, each in found.items() if len(strong := each[each.scores >= lowest])}
    if settings.images == "pool":
        chosen |= {i: labels.get(i, NOTHING_SAID) for i in found if i not in chosen}
    if settings.calibrated and found:
        worth = np.interp(np.concatenate([one.scores for one in found.values()]), *score_map(run, cycle))
        parts = np.split(worth, np.cumsum([len(one) for one in found.values()])[:-1])
        found = {i: replace(found[i], scores=scores) for i, scores in zip(found, parts, strict=True)}
    truth = run.dataset.train.truth
    # Difficult objects are known on completely labelled images only.
    difficult = {i: truth[i].boxes[truth[i].difficult] for i, said in chosen.items() if said.complete and i in truth}
    return {
        i: make_targets(said, found.get(i), difficult.get(i, NO_BOXES), settings) for i, said in sorted(chosen.items())
    }


def score_map(run: Run, cycle: int) -> tuple[Floats, Floats]:
    """The points of the map from scores to conf(b) of Eq. 5: the identity, or calibrated on the cycle's answers."""
    if not run.settings.pseudo.calibrated:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    asked = [(q, a) for q, a in run.store.answered(cycle) if q.why and "score" in q.why and a.verdict in JUDGED]
    shown = np.array([q.why["score"] for q, _ in asked if q.why])
    return calibration(shown, np.array([q.guess in a.labels for q, a in asked], dtype=bool))


def retrain(run: Run, cycle: int, targets: Mapping[int, Targets]) -> Detector:
    """Return the detector of this cycle: from disk if it is there, in cycle 1 from ``share``, else trained."""
    shared = run.share if cycle == 1 else None
    if shared is not None:
        run.notes.append(f"the cycle-1 model was taken from {shared}")
    try:
        check_saved(run.folder.cycle(cycle))
    except Damaged:
        if shared is not None:
            take_first_model(run, shared, targets)
        else:
            fit(run, cycle, targets)
    return load_detector(run, cycle)


def restore_model(run: Run, cycle: int) -> None:
    """Train the model of a finished cycle again if it is missing or damaged, from the same answers and candidates."""
    try:
        check_saved(run.folder.cycle(cycle))
    except Damaged as error:
        run.notes.append(f"the model of cycle {cycle} is trained again: {error}")
        if cycle > 1 and not shards.is_scored(run, cycle):
            restore_model(run, cycle - 1)
            shards.score_pool(run, cycle)
        now, run.cycle = run.cycle, cycle
        try:
            retrain(run, cycle, training_targets(run, cycle, shards.scored_pool(run, cycle) if cycle > 1 else None))
        finally:
            run.cycle = now


def fit(run: Run, cycle: int, targets: Mapping[int, Targets]) -> None:
    """Train on the targets, and save them and the model. An interrupted training resumes from its checkpoint.

    Raises UserError without any target, which happens only if the photos of all labelled images are missing.
    """
    if not targets:
        raise UserError(
            f"the photos of all labelled images are missing: {run.settings.data} no longer holds them. Put them back, "
            f"or name the folder they are in: rarebox relocate {run.folder.root} FOLDER"
        )
    folder = run.folder.cycle(cycle)
    write_targets(folder / "targets.parquet", targets)
    # People may add a class before an interrupted training resumes. Then it starts over.
    checkpoint = folder / (f"fit_{len(run.classes)}.checkpoint" if run.open_ended else "fit.checkpoint")
    records = {record.id: record for record in run.pool.records}
    pictures = run.pool.of([records[i] for i in targets])
    extract(run, pictures)
    with run.stage("fit") as report:
        warm = run.settings.training.start == "warm" and cycle > 1
        if warm:
            restore_model(run, cycle - 1)
        detector = load_detector(run, cycle - 1) if warm else None
        if detector is None or detector.num_classes != len(run.classes):  # people may add classes
            detector = new_detector(run)
        labelled = run.store.labels(up_to_cycle=cycle)
        complete = np.array([i in labelled and labelled[i].complete for i in targets])
        detector.fit(
            pictures,
            list(targets.values()),
            complete=complete,
            renewal=Renewal(run.settings.pseudo, *score_map(run, cycle)) if cycle > 1 else None,
            seed=seeds.number(run.settings.seed, "fit", cycle),
            checkpoint=checkpoint,
            progress=lambda step, steps, loss: report(step, steps, f"loss {loss:.3f}"),
        )
        if cycle == 1:
            write_json(folder / "shared.json", first_cycle(run))
        detector.save(folder)
        checkpoint.unlink(missing_ok=True)


def evaluate(run: Run, cycle: int, detector: Detector) -> Measures:
    """Measure AP on the test images by the rules of VOC and of COCO.

    The result and the detections are saved beside the model. Runs that share the model of cycle 1 use them if they have
    the same test images.
    """
    kept, tested, asked = run.folder.cycle(cycle) / "evaluated.json", run.folder.tested(cycle), _test(run)
    with suppress(Damaged):  # then it is measured again
        if (told := read_json(kept, dict)).get("test") == asked and parquet.is_whole(tested):
            return told["result"]
    extract(run, run.test)
    with run.stage("evaluate") as report:
        found = detect(detector, run.test, report)
        told = measure(run.settings.seed, found, run.test_truth, run.classes)
    write_tested(tested, run.test.records, found, run.test_truth)
    write_json(kept, {"test": asked, **told})
    return told["result"]


def _test(run: Run) -> str:
    """A hash of what AP is measured on: the test images, their truth, and the kind of device."""
    truths = [run.test_truth[record.id] for record in run.test.records]
    columns = [np.ascontiguousarray(column) for truth in truths for column in vars(truth).values()]
    told = sha256(repr((shards.listed(run.test.records), run.classes, run.settings.device)).encode())
    for column in columns:
        told.update(column.tobytes())
    return told.hexdigest()
