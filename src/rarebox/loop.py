"""Active learning, cycle by cycle: the only module that knows all the others. Read :func:`run_cycle` first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np

from rarebox import config, data, detectors, pseudo, ranking, running, scoring, seeds, strategies
from rarebox.asking import Asker
from rarebox.candidates import Shards
from rarebox.config import Settings, TrainingSettings
from rarebox.data import scenes, voc
from rarebox.detectors import TorchDetector
from rarebox.detectors.detector import check_saved
from rarebox.detectors.environment import describe
from rarebox.errors import Damaged, UserError
from rarebox.evaluate import coco_ap, imbalance_factor, voc_ap
from rarebox.files import copy, read_json, write_json
from rarebox.oracle import SimulatedOracle
from rarebox.places import cache_folder
from rarebox.project import HELD_BACK, photos_of
from rarebox.ranking import Head
from rarebox.run_folder import RunFolder
from rarebox.running import Engine, Progress, Run, StageProgress
from rarebox.store import ImageLabels, Store
from rarebox.types import (
    Candidates,
    Detections,
    GroundTruth,
    ImageRecord,
    Ints,
    LabelState,
    Query,
    Targets,
    Verdict,
)

HELD_OUT = 0.2
"""Share of the pool kept for evaluation where a data set has no test split."""

TEST_BATCH = 8

TELLING = (Verdict.OBJECT, Verdict.NOT_AN_OBJECT)
"""Answers that say whether a guess was right."""

NO_BOXES = np.zeros((0, 4), dtype=np.float32)
NOTHING_SAID = ImageLabels(NO_BOXES, np.zeros(0, dtype=np.int64), NO_BOXES, NO_BOXES, complete=False)


def run_cycle(run: Run, cycle: int) -> dict[str, Any]:
    """One cycle of the paper's Fig. 2; cycle 1 labels random images completely. Its record comes back.

    Every step leaves its result on disk and finds it there again, so a cycle that was cut short goes on.
    """
    run.store.open_cycle(cycle)
    if cycle == 1:
        label_initial_pool(run)
        return train_cycle(run, cycle, None)
    ranked = rank_pool(run, cycle)
    ask(run, cycle, ranked)
    return train_cycle(run, cycle, ranked)


def train_cycle(run: Run, cycle: int, ranked: "Ranked | None") -> dict[str, Any]:
    """The second half of a cycle: what was answered trains the next model. Its record comes back."""
    targets = training_targets(run, cycle, ranked.pool if ranked else None)
    detector = retrain(run, cycle, targets)
    result = evaluate(run, cycle, detector)
    return record(run, cycle, ranked, targets, result)


@dataclass
class Ranked:
    """The pool of a cycle, scored and ranked.

    ``pool`` are all its candidates, ``open_per_class`` (K,) counts those that may be asked about, ``queue`` is their
    order (or that of image ids), ``state`` what the strategy knew.
    """

    pool: Shards
    queue: Head
    state: LabelState
    open_per_class: Ints


# ------------------------------------------------------------------------------------------- the whole run


def run(
    folder: Path,
    settings: Settings,
    dataset: data.Dataset | None = None,
    *,
    share: Path | None = None,
    engine: Engine | None = None,
    progress: Progress = lambda *_: None,
    finished: Callable[[dict[str, Any]], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Run all cycles of a simulation, or go on with one that was stopped; the records of ``metrics.json``.

    ``dataset`` is the one that the settings name, if it was read already. ``share`` names the folder of another run
    with the same seed, data, detector and training, whose cycle-1 model is taken over. ``engine`` scores the pool;
    this process does if none is named. ``finished`` is called with each new record. Raises UserError for anything the
    user can mend.
    """
    place = RunFolder(folder)
    strategies.choose(settings.selection)
    dataset = dataset or load_data(settings.data, progress)
    with _disk_errors_explained(folder), place.locked():
        begun = place.environment.exists()
        if not begun or _leaves_images_out(place):
            dataset = data.usable(dataset)
        settings = place.claim(settings)
        if not begun:
            write_json(place.problems, [asdict(problem) for problem in dataset.problems])
            write_json(place.environment, describe())
        with Store(place.store, classes=dataset.classes, flush=False) as store:
            now = open_run(place, settings, dataset, store, progress, engine, share)
            if not store.queries(1):
                running.new_detector(now)  # a device or weights that cannot be had are told before the first answer
            for cycle in range(len(place.records()) + 1, len(settings.budget) + 2):
                now.cycle, now.seconds, now.notes = cycle, {}, []
                done = run_cycle(now, cycle)
                write_json(place.metrics, [*place.records(), done])
                finished(done)
    return place.records()


def _leaves_images_out(place: RunFolder) -> bool:
    """Whether a run that has begun knows of images that it does not use; one of an older version used them all."""
    listed = read_json(place.problems) if place.problems.exists() else []
    return any(problem["kind"] == data.NOT_USED for problem in listed)


def load_data(name: str, progress: Progress = lambda *_: None) -> data.Dataset:
    """A data set by its folder or name; ``scenes`` is made on the spot, VOC fetched where it is not there yet."""

    def read(done: int, of: int) -> None:
        progress("read", done, of, "images")

    if name == data.MADE:
        return data.load(scenes.make(cache_folder() / f"scenes-{scenes.RECIPE}"), read=read)
    if name in voc.ARCHIVES and not Path(name).exists():
        voc.download(cache_folder() / name)
        return data.load(cache_folder() / name, read=read)
    return data.load(name, check_pixels=True, read=read)


def open_run(
    folder: RunFolder, settings: Settings, dataset: data.Dataset, store: Store, progress: Progress,
    engine: Engine | None = None, share: Path | None = None,
) -> Run:  # fmt: skip
    """All that the steps of a cycle work with; the store learns the pool's images, the oracle the store's answers."""
    images, test = dataset.train.images, dataset.test
    if test is None:
        held_out = _held_out(images, settings.seed)
        test = data.Split(held_out, {i.id: dataset.train.truth[i.id] for i in held_out})
        images = tuple(i for i in images if i.id not in test.truth)
    of_test = sha256(repr([(i.id, i.path, i.width, i.height) for i in test.images]).encode()).hexdigest()[:12]
    keep_in = share if share and share.exists() else folder.root
    pool, tested = running.pictures_of(settings, images, test.images, keep_in, f"test_{of_test}")
    _same_pool_as_before(store.images(), images)
    store.add_images(images)
    oracle = SimulatedOracle(dataset.train.truth, settings.oracle.iou)
    oracle.remember(store.answered())
    how = engine or scoring.score_here
    return Run(folder, settings, dataset, pool, tested, test.truth, store, oracle, progress, how, share=share)


def open_project(
    folder: RunFolder, settings: Settings, store: Store, progress: Progress, engine: Engine | None = None
) -> Run:
    """The same where people answer: the images are those of the store, the test images those held out (`HELD_BACK`),
    their truth is what people said of them."""
    said, classes = store.labels(), store.classes()
    held = {q.image_id for q in store.queries(1) if q.why and q.why.get(HELD_BACK)}
    truth = {i: GroundTruth(said[i].boxes, said[i].labels, np.zeros(len(said[i].boxes), dtype=bool))
             for i in sorted(held) if i in said and said[i].complete}  # fmt: skip
    photos = photos_of(folder, store)
    images = {i: image for i, image in store.images().items() if photos.is_there(image)}  # labels of the others wait
    truth = {i: said_of for i, said_of in truth.items() if i in images}
    pool = data.Split(tuple(image for i, image in images.items() if i not in held), {})
    test = data.Split(tuple(images[i] for i in truth), truth)
    dataset = data.Dataset(folder.root.name, folder.root, classes, pool, test, ())
    pictures, tested = running.pictures_of(settings, pool.images, test.images, folder.root)
    oracle, how = SimulatedOracle({}), engine or scoring.score_here
    return Run(folder, settings, dataset, pictures, tested, truth, store, oracle, progress, how, open_ended=True)


def _same_pool_as_before(before: Mapping[int, ImageRecord], images: Sequence[ImageRecord]) -> None:
    """UserError if a run is continued on other images than it began with."""
    changed = {Path(i.path).name for i in {*before.values()} ^ {*images}} if before else set()
    if changed:
        raise UserError(
            f"the data set has changed since this run began: {len(changed)} images are new, gone or other than before, "
            f"{min(changed)} among them. Restore them, or start again in a new folder"
        )


def _held_out(images: Sequence[ImageRecord], seed: int) -> tuple[ImageRecord, ...]:
    """A random share of the pool's images, at least one, in their order."""
    if len(images) < 2:
        raise UserError("the data set has no test split and a single image; there is nothing to hold out for testing")
    count = max(1, round(HELD_OUT * len(images)))
    chosen = seeds.stream(seed, "held out").permutation(len(images))[:count]
    return tuple(images[i] for i in sorted(chosen))


@contextmanager
def _disk_errors_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # a copy of a folder collects its errors in `shutil.Error`, which has no number
        reason = error.strerror or error.args[0][0][2]
        raise UserError(
            f"{error.filename or folder}: {reason}. Nothing that was finished is lost; mend this and repeat the "
            "command to go on"
        ) from error


# ------------------------------------------------------------------------------------------- the steps of a cycle


def label_initial_pool(run: Run) -> None:
    """Random images of the pool, labelled completely; the same for every strategy of a seed."""
    wanted, images = run.settings.initial_images, run.pool.records
    if wanted > len(images):
        run.notes.append(f"initial_images is {wanted}, the pool has {len(images)} images: all are labelled")
    by_id = sorted(image.id for image in images)
    order = seeds.stream(run.settings.seed, "initial pool").permutation(len(by_id))[:wanted]
    asked = run.store.queries(1) or run.store.ask(1, [Query(by_id[i]) for i in order])
    unanswered = {q.id for q in run.store.unanswered(1)}
    run.store.record([run.oracle.answer(q) for q in asked if q.id in unanswered])


def rank_pool(run: Run, cycle: int) -> Ranked:
    """Score the pool with the model of the cycle before, and let the strategy rank what is open."""
    settings, before = run.settings, run.store.labels(up_to_cycle=cycle - 1)
    restore_model(run, cycle - 1)
    pool, images = scoring.score_pool(run, cycle)
    state, open_per_class = ranking.label_state(settings, run.budget(cycle), before, pool, images)
    queue = Head.of(Candidates.none(len(run.classes)), iter(()))
    if len(state.images) if settings.selection.strategy in strategies.IMAGE else open_per_class.any():
        state = replace(state, **features(run, cycle, before, state.images.image_id.tolist()))
        queue = ranking.head(settings, pool, before, state, partial(seeds.stream, settings.seed, "strategy", cycle))
    return Ranked(pool, queue, state, open_per_class)


def ask(run: Run, cycle: int, ranked: Ranked) -> None:
    """Ask what the strategy puts first, and let the oracle answer, until the budget is spent."""
    settings, store = run.settings, run.store
    answer_all(run, store.unanswered(cycle))
    whole_images = settings.selection.strategy in strategies.IMAGE
    with run.stage("ask") as report:
        if whole_images:
            left = ask_about_images(run, cycle, ranked.queue, report)
        else:
            explore(run, cycle, ranked.open_per_class, report)
            left = ask_about_boxes(run, cycle, ranked, report)
    if left > 0:
        budget, what = run.budget(cycle), "images" if whole_images else "candidates"
        run.notes.append(
            f"no {what} are left: {budget - left} of the budget of {budget} {settings.budget_unit} were spent"
        )


def left_to_spend(run: Run, cycle: int) -> int:
    """What of this cycle's budget is not spent yet; below 0 where the last image overshot it."""
    return run.budget(cycle) - getattr(run.store.spent(cycle), run.settings.budget_unit)


def answer_and_report(run: Run, cycle: int, asked: Sequence[Query], report: StageProgress) -> int:
    """Let the oracle answer, and report how far the budget is spent; what is left of it."""
    answer_all(run, asked)
    budget, left = run.budget(cycle), left_to_spend(run, cycle)
    report(budget - left, budget, run.settings.budget_unit)
    return left


def ask_about_boxes(run: Run, cycle: int, ranked: Ranked, report: StageProgress) -> int:
    """Ask about candidates from the top of the queue; what is left of the budget."""
    asker = Asker(run.store, cycle, ranked.queue, run.settings.selection.answered_iou)
    left = left_to_spend(run, cycle)
    while left > 0 and (asked := asker.ask(left)):
        left = answer_and_report(run, cycle, asked, report)
    return left


def ask_about_images(run: Run, cycle: int, queue: Head, report: StageProgress) -> int:
    """Have whole images labelled from the top of the queue; what is left of the budget, below 0 if it was overshot.

    Nobody knows an image's price before it is labelled, so the last one may overshoot the budget (decisions row 15).
    """
    place = max((int(q.why["rank"]) + 1 for q in run.store.queries(cycle) if q.why), default=0)
    left = left_to_spend(run, cycle)
    while left > 0 and (item := queue(place)):
        image_id, utility = item
        query = Query(image_id, utility=utility, why={"rank": place, "cycle": cycle})
        left = answer_and_report(run, cycle, run.store.ask(cycle, [query]), report)
        place += 1
    return left


def explore(run: Run, cycle: int, open_per_class: Ints, report: StageProgress) -> None:
    """Spend a share of the budget on random whole images while some class has no candidate (decisions row 29).

    The detector cannot ask about what it never predicts. The last image may overshoot the share, and the budget too.
    """
    budget, left = run.budget(cycle), left_to_spend(run, cycle)
    share = run.settings.selection.exploration * budget
    if not share or open_per_class.all():
        return
    # Images that nobody has looked into: no object of theirs was paid before.
    before = run.store.labels(up_to_cycle=cycle - 1)
    untouched = sorted(i.id for i in run.pool.records if i.id not in before)
    order = seeds.stream(run.settings.seed, "explore", cycle).permutation(untouched)
    asked = {query.image_id for query in run.store.queries(cycle) if query.box is None}
    for image_id in order[~np.isin(order, list(asked))]:
        if budget - left >= share:
            break
        left = answer_and_report(run, cycle, run.store.ask(cycle, [Query(int(image_id))]), report)


def answer_all(run: Run, queries: Sequence[Query]) -> None:
    """Let the oracle answer queries, and keep the answers."""
    run.store.record([run.oracle.answer(query) for query in queries])


def features(
    run: Run, cycle: int, labels: Mapping[int, ImageLabels], untouched: Sequence[int]
) -> dict[str, np.ndarray]:
    """The features that the strategy needs, by the model of the cycle before, as fields of LabelState."""
    needs = strategies.NEEDS.get(run.settings.selection.strategy, set()) - {"features"}
    if not needs:
        return {}
    detector = running.load_detector(run, cycle - 1)
    records = {record.id: record for record in run.pool.records}  # not those held out, which are labelled too
    running.look(run, run.pool)

    def image_features(ids: Sequence[int]) -> np.ndarray:
        """Of the pictures of those ids, in their order; a batch holds one shape."""
        pictures = run.pool.of([records[i] for i in ids])
        rows = list(running.batches(pictures, run.settings.scoring.batch_size))
        found = [detector.image_features(batch) for _, batch in pictures.in_batches(rows)]
        return np.concatenate(found)[np.argsort(np.concatenate(rows))] if rows else np.zeros((0, 0), np.float32)

    def box_features() -> np.ndarray:
        """Of all labelled boxes."""
        pictures = run.pool.of([records[i] for i in labels if i in records and len(labels[i].boxes)])
        found: list[np.ndarray] = []
        for rows, batch in pictures.in_batches(running.batches(pictures, run.settings.scoring.batch_size)):
            found += detector.box_features(batch, [labels[pictures.records[i].id].boxes for i in rows])
        return np.concatenate(found) if found else np.zeros((0, 0), np.float32)

    with run.stage("features"):
        if "box_features" in needs:
            return {"box_features": box_features()}
        return {
            "image_features": image_features(untouched),
            "labelled_image_features": image_features(sorted(i for i, said in labels.items() if said.complete)),
        }


def training_targets(run: Run, cycle: int, candidates: Shards | None) -> dict[int, Targets]:
    """Targets of every image that is trained on (decisions row 21), by image id."""
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
        asked = [(q, a) for q, a in run.store.answered(cycle) if q.why and "score" in q.why and a.verdict in TELLING]
        shown = np.array([q.why["score"] for q, _ in asked if q.why])
        right = np.array([q.guess in a.labels for q, a in asked], dtype=bool)
        worth = pseudo.calibrate(np.concatenate([one.scores for one in found.values()]), shown, right)
        parts = np.split(worth, np.cumsum([len(one) for one in found.values()])[:-1])
        found = {i: replace(found[i], scores=scores) for i, scores in zip(found, parts, strict=True)}
    truth = run.dataset.train.truth
    # A difficult object is part of what a person says of a complete image, and unknown on every other image.
    difficult = {i: truth[i].boxes[truth[i].difficult] for i, said in chosen.items() if said.complete and i in truth}
    return {
        i: pseudo.make_targets(said, found.get(i), difficult.get(i, NO_BOXES), settings)
        for i, said in sorted(chosen.items())
    }


def retrain(run: Run, cycle: int, targets: Mapping[int, Targets]) -> TorchDetector:
    """The detector of this cycle: read from disk if it is there, else taken from ``share`` in cycle 1, else fitted."""
    shared = run.share if cycle == 1 else None
    if shared is not None:
        run.notes.append(f"the cycle-1 model was taken from {shared}")
    try:
        check_saved(run.folder.cycle(cycle))
    except Damaged:
        if shared is not None:
            take_first_model(run, shared)
        else:
            fit(run, cycle, targets)
    return running.load_detector(run, cycle)


def restore_model(run: Run, cycle: int) -> None:
    """Make the model of a finished cycle anew where it is gone or damaged, from the same answers and candidates."""
    try:
        check_saved(run.folder.cycle(cycle))
    except Damaged as error:
        run.notes.append(f"the model of cycle {cycle} is made anew: {error}")
        if cycle > 1 and not scoring.is_scored(run, cycle):
            restore_model(run, cycle - 1)
            scoring.score_pool(run, cycle)
        now, run.cycle = run.cycle, cycle
        try:
            retrain(run, cycle, training_targets(run, cycle, scoring.scored_pool(run, cycle) if cycle > 1 else None))
        finally:
            run.cycle = now


def fit(run: Run, cycle: int, targets: Mapping[int, Targets]) -> None:
    """Train on the targets, and keep them and the model; a fit that was cut short goes on from its checkpoint."""
    folder = run.folder.cycle(cycle)
    pseudo.write_targets(folder / "targets.parquet", targets)
    # People may add a class before a fit that was cut short goes on: then it starts afresh.
    checkpoint = folder / (f"fit_{len(run.classes)}.checkpoint" if run.open_ended else "fit.checkpoint")
    records = {record.id: record for record in run.pool.records}
    pictures = run.pool.of([records[i] for i in targets])
    running.look(run, pictures)
    with run.stage("fit") as report:
        warm = run.settings.training.start == "warm" and cycle > 1
        if warm:
            restore_model(run, cycle - 1)
        detector = running.load_detector(run, cycle - 1) if warm else None
        if detector is None or detector.num_classes != len(run.classes):  # people may add classes
            detector = running.new_detector(run)
        labelled = run.store.labels(up_to_cycle=cycle)
        complete = np.array([i in labelled and labelled[i].complete for i in targets])
        detector.fit(
            pictures, list(targets.values()), complete=complete, seed=seeds.number(run.settings.seed, "fit", cycle),
            checkpoint=checkpoint, progress=lambda step, steps, loss: report(step, steps, f"loss {loss:.3f}"),
        )  # fmt: skip
        if cycle == 1:
            write_json(folder / "shared.json", first_cycle(run))
        detector.save(folder)
        checkpoint.unlink(missing_ok=True)


def first_cycle(run: Run) -> dict[str, Any]:
    """All that the model of cycle 1 depends on, to tell whether two runs may share it."""
    settings = run.settings
    pool = sha256(repr(scoring.listed(run.pool.records)).encode()).hexdigest()
    return {
        "seed": settings.seed,
        "initial_images": settings.initial_images,
        "detector": settings.detector.model_dump(mode="json"),
        "training": settings.training.model_dump(mode="json"),
        "difficult": settings.pseudo.difficult,
        "classes": list(run.classes),
        "pool": pool,
    }


def take_first_model(run: Run, share: Path) -> None:
    """Copy the cycle-1 model of another run; UserError if it has none, or one that this run would not have made."""
    theirs, ours = RunFolder(share).cycle(1), first_cycle(run)
    RunFolder(share).check_first_model()
    try:
        told = read_json(theirs / "shared.json", dict)
    except Damaged as error:
        raise UserError(f"--share {share}: {error.args[0]}; or share another run, or leave --share out") from error
    # What an earlier version did not know yet is as it was then.
    told["detector"] = detectors.read_about(theirs)[1].model_dump(mode="json")
    told["training"] = TrainingSettings.model_validate(told["training"]).model_dump(mode="json")
    there, here = dict(config.flatten(told)), dict(config.flatten(ours))
    different = [f"{n}: {there.get(n)} there, {here[n]} here" for n in here if there.get(n) != here[n]]
    if different:
        raise UserError(f"--share {share}: that run's cycle-1 model is not this run's:\n  " + "\n  ".join(different))
    part = run.folder.cycle(1).with_name("cycle_01.part")
    rmtree(part, ignore_errors=True)
    try:
        copytree(theirs, part, copy_function=copy)
        rmtree(run.folder.cycle(1), ignore_errors=True)
        part.replace(run.folder.cycle(1))
    finally:
        rmtree(part, ignore_errors=True)


def evaluate(run: Run, cycle: int, detector: TorchDetector) -> dict[str, Any]:
    """AP of the model on the test images, by VOC's and by COCO's rules.

    It is kept beside the model, and goes with that of cycle 1 to the runs that share it, where it counts for the same
    test images.
    """
    kept, asked = run.folder.cycle(cycle) / "evaluated.json", _test(run)
    with suppress(Damaged):  # made anew
        if (told := read_json(kept, dict)).get("test") == asked:
            return told["result"]
    found: dict[int, Detections] = {}
    running.look(run, run.test)
    with run.stage("evaluate") as report:
        for places, batch in run.test.in_batches(running.batches(run.test, TEST_BATCH)):
            found |= zip([run.test.records[i].id for i in places], detector.predict(batch), strict=True)
            report(len(found), len(run.test), "images")
        voc = voc_ap(found, run.test_truth, len(run.classes))
        coco = coco_ap(found, run.test_truth, len(run.classes))
    result = {
        "ap50": _or_null(voc.mean_ap),
        "ap50_11": _or_null(voc.mean_ap11),
        "per_class_ap50": _named(run, voc.ap),
        "coco_ap": _or_null(coco["ap"]),
        "coco_ap50": _or_null(coco["ap50"]),
        "coco_ap75": _or_null(coco["ap75"]),
    }
    write_json(kept, {"test": asked, "result": result})
    return result


def _test(run: Run) -> str:
    """What an AP is measured on: the test images, their truth, and the kind of device."""
    truths = [run.test_truth[record.id] for record in run.test.records]
    columns = [np.ascontiguousarray(column) for truth in truths for column in vars(truth).values()]
    told = sha256(repr((scoring.listed(run.test.records), run.classes, run.settings.device)).encode())
    for column in columns:
        told.update(column.tobytes())
    return told.hexdigest()


def record(
    run: Run, cycle: int, ranked: Ranked | None, targets: Mapping[int, Targets], result: dict[str, Any]
) -> dict[str, Any]:
    """What one cycle spent, chose and reached, as it stands in ``metrics.json``."""
    store, classes = run.store, len(run.classes)
    labels, answered = store.labels(up_to_cycle=cycle), store.answered(cycle)
    boxes = [(q, a) for q, a in answered if q.box is not None]
    so_far = [store.spent(before) for before in range(1, cycle + 1)]  # later ones may be there, too
    spent = so_far[-1]
    human = np.bincount(ranking.joined([said.labels for said in labels.values()]), minlength=classes)
    hits = [q.guess for q, a in boxes if len(a.boxes)]
    pseudo_above = run.settings.pseudo.class_high
    most_uncertain: Sequence[int] | Ints = []
    sure = np.zeros(classes, dtype=np.int64)
    if ranked:
        before = store.labels(up_to_cycle=cycle - 1)
        most_uncertain = ranking.most_uncertain(ranked.pool, ranking.Answered(before), run.settings, len(boxes))
        sure = ranking.sure_per_class(run.settings, before, ranked.pool, classes)
    counts = {
        "uncertainty_would_select": most_uncertain,
        "selected_per_class": [q.guess for q, _ in boxes],
        "hits_per_class": hits,
        "labels_per_class": ranking.joined([a.labels for _, a in answered]),
    }
    return {
        "cycle": cycle,
        "labels": sum(each.labels for each in so_far),
        "looks": sum(each.looks for each in so_far),
        "labels_this_cycle": spent.labels,
        "looks_this_cycle": spent.looks,
        "hits": len(hits),
        "images_full": sum(said.complete for said in labels.values()),
        "images_partial": sum(not said.complete and len(said.boxes) > 0 for said in labels.values()),
        **result,
        "candidates_per_class": _named(run, ranked.open_per_class if ranked else np.zeros(classes, np.int64)),
        **{name: _named(run, np.bincount(np.array(c, np.int64), minlength=classes)) for name, c in counts.items()},
        "human_per_class": _named(run, human),
        "pseudo_per_class": _named(run, pseudo.count_sure(targets, classes, pseudo_above)),
        "pseudo_boxes": sum(int((t.source == "pseudo").sum()) for t in targets.values()),
        "sure_per_class": _named(run, sure),
        "class_frequency": _named(run, ranked.state.class_frequency if ranked else np.zeros(classes)),
        "imbalance_factor": _or_null(imbalance_factor(human)),
        "notes": list(run.notes),
        "seconds": {name: round(value, 2) for name, value in run.seconds.items()},
    }


def _named(run: Run, values: np.ndarray) -> dict[str, Any]:
    """Values by class name."""
    return {name: _or_null(value) for name, value in zip(run.classes, values.tolist(), strict=True)}


def _or_null(value: float) -> float | None:
    """NaN, which stands for "no truth to measure on" and which JSON lacks, becomes null."""
    return None if value != value else value


def count_classes(split: data.Split, num_classes: int) -> list[int]:
    """Objects of each class in a split, difficult ones included: (K,)."""
    return np.bincount(ranking.joined([t.labels for t in split.truth.values()]), minlength=num_classes).tolist()
