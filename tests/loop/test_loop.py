"""The loop as a whole: the files of a run, reproducibility, and resuming after any interruption."""

import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file, save_file

from rarebox import config, detectors, strategies
from rarebox.core import parquet, seeds
from rarebox.core.boxes import iou_matrix
from rarebox.core.files import write_json
from rarebox.data import datasets, listings
from rarebox.data.pictures import Pictures
from rarebox.detectors import TorchDetector
from rarebox.errors import TrainingDiverged, UserError
from rarebox.labels import oracle, targets
from rarebox.labels.cost import milliseconds, on_new_images
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.labels.targets import METHODS, read_targets
from rarebox.loop import ask, rules, scoring, shards, simulate
from rarebox.loop.cycle import _test
from rarebox.loop.run import Run
from rarebox.loop.run_folder import RunFolder
from rarebox.pool import last
from rarebox.pool.ranking import LazyRanking, still_open
from rarebox.strategies import box
from rarebox.types import JUDGED, Answer, Candidates, GroundTruth, ImageRecord, ImageScores, LabelState, Query, Verdict
from tests import forked
from tests.shards import read_all
from tests.thinned import thinned
from tests.tiny import as_options, make_data, settings

pytestmark = pytest.mark.usefixtures("small_network")

Record = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run, to inspect."""
    out = tmp_path_factory.mktemp("runs") / "run"
    simulate.simulate(out, settings(pictures))
    return out


@pytest.fixture
def untrained() -> Iterator[None]:
    """Detectors are not trained: for tests of a cycle's questions, which precede its training."""
    with pytest.MonkeyPatch.context() as patch:  # a test may undo its own patches in between
        patch.setattr(TorchDetector, "fit", lambda *_, **__: 0.0)
        yield


def spent_by(record: Mapping[str, Any], unit: str) -> int:
    return record[f"{unit}_this_cycle"]


def timeless(records: Sequence[Mapping[str, Any]]) -> list[Record]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in records]


def outcome(out: Path) -> tuple[list[Record], list[Any]]:
    """Everything a run decided: its records, and every question with its answer, in order."""
    with Store(RunFolder(out).store) as store:
        said = [
            (q.image_id, None if q.box is None else q.box.tolist(), a.verdict, a.boxes.tolist(), a.labels.tolist())
            for q, a in store.answered()
        ]
    return timeless(RunFolder(out).records()), said


def begins_like(out: Path, finished: Path) -> bool:
    """Whether everything that a run decided in its cycles is what the finished one decided in those."""
    (records, said), (more_records, more_said) = outcome(out), outcome(finished)
    return records == more_records[: len(records)] and len(said) > 0 and said == more_said[: len(said)]


def test_record_has_the_documented_fields(finished: Path) -> None:
    records = json.loads((finished / "metrics.json").read_text())
    assert [r["cycle"] for r in records] == [1, 2, 3]
    wanted = {
        "cycle",
        "labels",
        "reviews",
        "images_full",
        "images_partial",
        "ap50",
        "ap50_11",
        "per_class_ap50",
        "selected_per_class",
        "hits",
        "class_frequency",
        "seconds",
    }
    assert all(wanted <= set(record) for record in records)
    assert set(records[1]["seconds"]) == {"score", "ask", "fit", "evaluate"}


def test_labels_and_reviews_add_up_from_the_stores_events(finished: Path) -> None:
    with Store(RunFolder(finished).store) as store:
        for record in RunFolder(finished).records():
            answered = [(q, a) for c in range(1, record["cycle"] + 1) for q, a in store.answered(c)]
            assert record["labels"] == sum(len(a.boxes) for _, a in answered)
            assert record["reviews"] == sum(1 if q.box is not None else max(len(a.boxes), 1) for q, a in answered)
            this = [(q, a) for q, a in store.answered(record["cycle"]) if q.box is not None]
            assert record["hits"] == sum(len(a.boxes) > 0 for _, a in this)
            assert sum(record["selected_per_class"].values()) == len(this)


@pytest.mark.usefixtures("untrained")
def test_budget_is_spent_and_never_exceeded(pictures: Path, finished: Path, tmp_path: Path) -> None:
    for unit in ("labels", "reviews"):
        records = simulate.simulate(
            tmp_path / unit, settings(pictures, budget_unit=unit, budget=[5, 3]), share=finished
        )
        spent = [spent_by(r, unit) for r in records[1:]]
        assert spent == [5, 3] or any("no candidates are left" in n for r in records for n in r["notes"])
        assert all(s <= b for s, b in zip(spent, (5, 3), strict=True))
        assert spent[0] > 0


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("strategy", ["class_balanced", "image_random"])
def test_only_the_last_question_exceeds_a_budget_of_seconds(
    pictures: Path, finished: Path, tmp_path: Path, strategy: str
) -> None:
    chosen = settings(pictures, selection__strategy=strategy, budget_unit="seconds", budget=[40, 21])
    records = simulate.simulate(tmp_path / "run", chosen, share=finished)
    with Store(tmp_path / "run" / "labels.sqlite") as store:
        for record, budget in zip(records[1:], (40, 21), strict=True):
            answered = store.answered(record["cycle"])
            new = on_new_images((query.id, query.image_id) for query, _ in answered)
            paid = [milliseconds(query, answer, chosen.cost, query.id in new) / 1000 for query, answer in answered]
            assert record["seconds_spent_this_cycle"] == pytest.approx(sum(paid))
            assert sum(paid[:-1]) < budget <= sum(paid)
    first, *later = (record["seconds_spent"] for record in records)
    images, objects = records[0]["images_full"], records[0]["labels"]
    assert first == pytest.approx(7.8 * images + 7 * objects)
    assert later == pytest.approx(np.cumsum([record["seconds_spent_this_cycle"] for record in records])[1:])


def test_seconds_follow_from_the_actions_of_a_record(finished: Path) -> None:
    cost = RunFolder(finished).read_settings().cost
    for record in RunFolder(finished).records():
        spent = sum(count * getattr(cost, action) for action, count in record["actions_this_cycle"].items())
        assert record["seconds_spent_this_cycle"] == pytest.approx(spent)
        looks = sum(record["actions_this_cycle"][action] for action in ("confirm", "mend", "reject", "cannot_tell"))
        assert looks == sum(record["selected_per_class"].values())


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("strategy", ["image_random", "image_per_second"])
def test_whole_images_are_verified_where_the_settings_say_so(
    pictures: Path, finished: Path, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run stops in the middle of its second cycle and goes on, with the same result as without a stop."""
    likely = float(np.quantile(read_all(finished / "cycle_02" / "candidates").scores, 0.7))
    verify: dict[str, Any] = {"oracle__verify": True, "oracle__accept_iou": 0.2, "people__proposal_score": likely}
    chosen = settings(pictures, selection__strategy=strategy, budget_unit="seconds", budget=[150], **verify)
    records = simulate.simulate(tmp_path / "run", chosen, share=finished)
    done = records[1]["actions_this_cycle"]
    spent = sum(count * getattr(chosen.cost, action) for action, count in done.items())
    assert records[1]["seconds_spent_this_cycle"] == pytest.approx(spent)
    assert done["confirm"] + done["mend"] + done["draw"] == records[1]["labels_this_cycle"]
    assert all(done[action] > 0 for action in ("scan", "confirm", "reject", "draw"))

    verified, answer = 0, ask.answer

    def dies(run: Run, query: Query, shown: Candidates | None) -> Answer:
        nonlocal verified
        verified += shown is not None
        if verified == 2:
            raise KeyboardInterrupt
        return answer(run, query, shown)

    monkeypatch.setattr(ask, "answer", dies)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(tmp_path / "again", chosen, share=finished)
    monkeypatch.undo()
    with Store(tmp_path / "again" / "labels.sqlite") as store:
        assert len(store.unanswered(2)) == 1
        assert store.answered(2)
    assert timeless(simulate.simulate(tmp_path / "again", chosen, share=finished)) == timeless(records)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "strategy", thinned(sorted(strategies.IMAGE), lambda _, name: name in ("image_entropy", "image_per_second"))
)
def test_image_level_methods_pay_for_every_object_of_their_images(
    pictures: Path, finished: Path, tmp_path: Path, strategy: str
) -> None:
    changes: dict[str, Any] = {"selection__strategy": strategy, "budget": [25, 30]}
    records = simulate.simulate(tmp_path / "run", settings(pictures, **changes), share=finished)
    truth = datasets.load(pictures).train.truth
    prices = {i: int((~t.difficult).sum()) for i, t in truth.items()}
    with Store(RunFolder(tmp_path / "run").store) as store:
        for record, budget in zip(records[1:], (25, 30), strict=True):
            asked = store.answered(record["cycle"])
            assert asked
            assert all(q.box is None and len(a.boxes) == prices[q.image_id] for q, a in asked)
            paid = [prices[q.image_id] for q, _ in asked]
            spent = sum(paid)
            assert record["labels_this_cycle"] == record["reviews_this_cycle"] == spent
            # Only the last image may exceed the budget; no image of the ranking is skipped.
            assert spent - paid[-1] < budget
            assert [q.why["rank"] for q, _ in asked if q.why] == [*range(len(asked))]
            short = f"no images are left: {spent} of the budget of {budget} labels were spent"
            assert (short in record["notes"]) == (spent < budget)
            assert spent >= budget or prices.keys() == store.labels(up_to_cycle=record["cycle"]).keys()
            assert record["images_partial"] == record["hits"] == record["pseudo_boxes"] == 0
        images = [q.image_id for q in store.queries()]
        assert len(images) == len(set(images))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("strategy", thinned(sorted(strategies.IMAGE), lambda _, name: name == "image_per_second"))
def test_image_level_method_reports_when_the_images_run_out(
    pictures: Path, finished: Path, tmp_path: Path, strategy: str
) -> None:
    changes: dict[str, Any] = {"selection__strategy": strategy, "budget": [10_000, 5]}
    records = simulate.simulate(tmp_path / "run", settings(pictures, **changes), share=finished)
    assert [record["images_full"] for record in records] == [4, 14, 14]
    assert all("no images are left" in record["notes"][-1] for record in records[1:])


@pytest.fixture(scope="module")
def all_labelled(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose first cycle has labelled every image of the pool."""
    out = tmp_path_factory.mktemp("all") / "run"
    simulate.simulate(out, settings(pictures, initial_images=99, budget=[]))
    return out


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    "strategy", thinned(sorted(strategies.BOX), lambda _, name: name in ("class_balanced", "coreset"))
)
def test_a_pool_that_is_labelled_completely_leaves_nothing_to_ask(
    pictures: Path, all_labelled: Path, tmp_path: Path, strategy: str
) -> None:
    chosen = settings(pictures, selection__strategy=strategy, initial_images=99, budget=[5])
    record = simulate.simulate(tmp_path / "run", chosen, share=all_labelled)[1]
    assert (record["reviews_this_cycle"], record["images_full"]) == (0, 14)
    assert "no candidates are left: 0 of the budget of 5 labels were spent" in record["notes"]


@pytest.mark.usefixtures("untrained")
def test_coreset_starts_where_no_labelled_image_has_a_box(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        oracle.SimulatedOracle,
        "answer",
        lambda self, q: Answer(q.id, np.zeros((0, 4)), np.zeros(0, int), VERDICTS[q.box is None]),
    )
    chosen = settings(pictures, selection__strategy="coreset", budget_unit="reviews", budget=[3])
    assert simulate.simulate(tmp_path / "run", chosen)[1]["reviews_this_cycle"] == 3


VERDICTS = (Verdict.NOT_AN_OBJECT, Verdict.OBJECT)


def test_random_images_are_as_large_as_those_of_the_pool(tmp_path: Path) -> None:
    """What 100 budgets buy, each in a separate cycle: no image is skipped because of its cost."""
    sizes = np.random.default_rng(5).geometric(1 / 13, size=300) - 1  # some are empty
    truth = {
        i: GroundTruth(np.tile(np.array([[0, 0, 9, 9]], np.float32), (n, 1)), np.zeros(n, np.int64), np.zeros(n, bool))
        for i, n in enumerate(sizes.tolist())
    }
    rows = ImageScores(np.arange(300), np.zeros(300, np.float32), np.zeros((300, 1), np.float32))
    state = LabelState(np.zeros(1), np.zeros(1, np.int64), rows)
    with Store(tmp_path / "labels.sqlite", classes=["thing"], flush=False) as store:
        store.add_images([ImageRecord(i, f"{i}.jpg", 9, 9) for i in truth])
        run: Any = SimpleNamespace(
            store=store,
            oracle=SimulatedOracle(truth),
            settings=config.Settings(),
            budget=lambda cycle: rules.Budget(30, store.spent(cycle).labels, len(store.unanswered(cycle))),
        )
        for cycle in range(100):
            store.open_cycle(cycle)
            ranking = strategies.IMAGE["image_random"](Candidates.none(1), state, np.random.default_rng(cycle))
            ranked: Any = SimpleNamespace(queue=LazyRanking.of(Candidates.none(1), ranking), cycle=cycle)
            assert ask.ask_about_images(run, cycle, ranked, lambda *_: None) <= 0
        bought = [len(answer.boxes) for _, answer in store.answered()]
        spent = store.spent()
    assert np.mean(bought) == pytest.approx(sizes.mean(), rel=0.1)
    assert np.mean(np.equal(bought, 0)) == pytest.approx(np.mean(sizes == 0), abs=0.03)
    # An empty image costs one review, like a box without an object.
    assert (spent.labels, spent.reviews) == (sum(bought), sum(bought) + bought.count(0))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("share", thinned([0.5, 1.0], lambda number, _: number == 0))
def test_exploring_ends_with_the_image_that_reaches_its_fraction(
    pictures: Path, finished: Path, tmp_path: Path, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    score_pool = shards.score_pool

    def one_class(run: Run, cycle: int) -> Any:
        found, images = score_pool(run, cycle)
        return replace(found, counts_as=np.zeros(len(run.classes), dtype=np.int64)), images

    monkeypatch.setattr(shards, "score_pool", one_class)
    for budget in (3, 11):
        chosen = settings(pictures, selection__exploration=share, budget=[budget])
        simulate.simulate(tmp_path / f"{budget}", chosen, share=finished)
        with Store(tmp_path / f"{budget}" / "labels.sqlite") as store:
            paid = [len(answer.boxes) for query, answer in store.answered(2) if query.box is None]
        assert sum(paid[:-1]) < share * budget


@pytest.mark.parametrize(
    ("strategy", "cosine", "kept"),
    [("class_balanced", 0.95, "sketch"), ("class_balanced", 1.0, None), ("coreset", 0.95, "whole")],
)
def test_scoring_keeps_a_sketch_of_the_features_for_near_duplicates(
    pictures: Path, finished: Path, strategy: str, cosine: float, kept: str | None
) -> None:
    detector = detectors.load(finished / "cycle_01", "cpu")
    records = Pictures(datasets.load(pictures).train.images[:2], (64, 107))
    chosen = settings(pictures, selection__strategy=strategy, selection__duplicate_cosine=cosine)
    found, _ = scoring.score_images(detector, records, chosen, 2)
    whole = scoring.score_images(detector, records, settings(pictures, selection__strategy="coreset"), 2)[0].features
    assert whole is not None
    wanted = {"sketch": last.sketch(whole), "whole": whole, None: None}[kept]
    if wanted is None:
        assert found.features is None
    else:
        assert found.features is not None
        np.testing.assert_allclose(found.features, wanted, atol=1e-6)


def test_an_images_result_does_not_depend_on_its_batch(pictures: Path, finished: Path, tmp_path: Path) -> None:
    detector = detectors.load(finished / "cycle_01", "cpu")
    records = datasets.load(pictures).train.images
    odd = []
    for i, record in enumerate(records[:6]):  # three shapes
        file = tmp_path / f"{i}.png"
        with Image.open(record.path) as image:
            image.resize(((96, 128, 96)[i % 3], (96, 96, 144)[i % 3])).save(file)
            odd.append(replace(record, path=str(file), width=(96, 128, 96)[i % 3], height=(96, 96, 144)[i % 3]))
    together, alone = (
        scoring.score_images(detector, Pictures(odd, (64, 107)), settings(pictures, scoring__batch_size=n), 2)[0]
        for n in (4, 1)
    )
    assert together.image_id.tolist() == alone.image_id.tolist()
    np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize(
    ("strategy", "unit", "recorded"),
    thinned(
        [
            (*asked, recorded)
            for asked in (("image_random", "labels"), ("coreset", "labels"), ("class_balanced", "seconds"))
            for recorded in (False, True)
        ],
        lambda number, _: number in (1, 2, 5),
    ),
)
def test_interrupted_asking_resumes(
    pictures: Path,
    finished: Path,
    tmp_path: Path,
    strategy: str,
    unit: str,
    recorded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the oracle accepts every box, so that labels equal no true box."""
    changes: dict[str, Any] = {"budget_unit": unit, "budget": [60 if unit == "seconds" else 25]}
    chosen = settings(pictures, selection__strategy=strategy, oracle__accept_iou=0.1, **changes)
    simulate.simulate(tmp_path / "whole", chosen, share=finished)
    answer_all, calls = ask.answer_all, []

    def cut(run: Run, queries: Any, *ranked: Any) -> None:
        calls.append(queries)
        if len(calls) < 5:
            return answer_all(run, queries, *ranked)
        if recorded:
            answer_all(run, queries, *ranked)
        raise KeyboardInterrupt

    monkeypatch.setattr(ask, "answer_all", cut)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(tmp_path / "cut", chosen, share=finished)
    monkeypatch.undo()
    simulate.simulate(tmp_path / "cut", chosen, share=finished)
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    if unit == "seconds":
        accepted = RunFolder(tmp_path / "cut").records()[1]["actions_this_cycle"]["confirm"]
        assert accepted == RunFolder(tmp_path / "cut").records()[1]["hits"] > 1


@pytest.mark.usefixtures("untrained")
def test_coreset_is_given_features_of_the_labelled_boxes_and_of_the_candidates(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Any, Any]] = []
    coreset = box.coreset
    monkeypatch.setattr(box, "coreset", lambda c, s, *more, **k: seen.append((c, s)) or coreset(c, s, *more, **k))
    simulate.simulate(tmp_path / "run", settings(pictures, selection__strategy="coreset", budget=[6]), share=finished)
    candidates, state = seen[0]
    assert candidates.features.shape == (len(candidates), state.box_features.shape[1])
    assert len(state.box_features) == state.class_counts.sum() > 0


def test_the_record_counts_what_was_open_and_what_plain_uncertainty_would_have_taken(finished: Path) -> None:
    folder = RunFolder(finished)
    with Store(folder.store) as store:
        before, reviews, classes = store.labels(up_to_cycle=1), store.spent(2).reviews, store.classes()
    found = read_all(finished / "cycle_02/candidates")
    rows = [
        i
        for i in range(len(found))
        if (said := before.get(int(found.image_id[i]))) is None or still_open(found.boxes[[i]], said, 0.5)[0]
    ]
    labels = found.labels[rows]
    taken = labels[np.argsort(-found.uncertainty[rows], kind="stable")[:reviews]]
    record = folder.records()[1]
    for name, of in (("candidates_per_class", labels), ("uncertainty_would_select", taken)):
        assert list(record[name].values()) == np.bincount(of, minlength=len(classes)).tolist(), name
    assert 0 < len(taken) < len(labels)


@pytest.mark.usefixtures("untrained")
def test_calibrated_pseudo_labels_weigh_what_the_answers_say_of_their_score(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"pseudo__calibrated": True, "budget": [6], "pseudo__class_low": 0.0}
    simulate.simulate(tmp_path / "run", settings(pictures, **changes), share=finished)
    with Store(RunFolder(tmp_path / "run").store) as store:
        told = [(q, a) for q, a in store.answered(2) if a.verdict in JUDGED]
    shown = np.array([q.why["score"] for q, _ in told if q.why])
    right = np.array([q.guess in a.labels for q, a in told])
    found = read_all(tmp_path / "run/cycle_02/candidates")
    worth = np.interp(found.scores, *targets.calibration(shown, right))
    by_box = {tuple(b): w for b, w in zip(found.boxes.tolist(), worth, strict=True)}
    written = read_targets(tmp_path / "run/cycle_02/targets.parquet")
    pairs = [
        (by_box[tuple(b)], w)
        for t in written.values()
        for b, w, s in zip(t.boxes.tolist(), t.class_weight, t.source, strict=True)
        if s == "pseudo"
    ]
    assert pairs
    assert all(w == pytest.approx(1 if value >= 0.8 else value, abs=1e-6) for value, w in pairs)


@pytest.mark.usefixtures("untrained")
def test_weak_detections_become_ignored_pseudo_labels_and_are_not_asked_about(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    """Scores of this detector lie below 0.5: questions from the middle on, pseudo labels from the first tenth on."""
    scores = np.sort(read_all(finished / "cycle_02/candidates").scores)
    weak, strong = float(scores[len(scores) // 10]), float(scores[len(scores) // 2])
    chosen: dict[str, Any] = {
        "budget": [6],
        "scoring__candidate_threshold": strong,
        "pseudo__score_floor": weak,
        "pseudo__class_low": strong,
        "pseudo__box_low": 1.0,
        "pseudo__box_high": 1.0,
        "budget_unit": "reviews",
    }
    record = simulate.simulate(tmp_path / "run", settings(pictures, **chosen), share=finished)[1]
    found = read_all(tmp_path / "run/cycle_02/candidates")
    assert weak <= found.scores.min() < strong
    assert sum(record["candidates_per_class"].values()) <= (found.scores >= strong).sum()
    with Store(RunFolder(tmp_path / "run").store) as store:
        asked = [q.why["score"] for q in store.queries(2) if q.why]
    assert len(asked) == 6
    assert min(asked) >= strong
    by_box = {tuple(b): s for b, s in zip(found.boxes.tolist(), found.scores, strict=True)}
    weights: list[tuple[float, float, bool]] = []
    for t in read_targets(tmp_path / "run/cycle_02/targets.parquet").values():
        rows = t[t.source == "pseudo"]
        columns = zip(rows.boxes.tolist(), rows.class_weight, rows.background, strict=True)
        weights += [(by_box[tuple(b)], weight, background) for b, weight, background in columns]
    below = [(weight, background) for score, weight, background in weights if score < strong]
    assert below
    assert set(below) == {(0.0, False)}  # ignored: neither object nor background


def test_a_run_of_an_earlier_version_keeps_its_behaviour(pictures: Path, finished: Path, tmp_path: Path) -> None:
    old = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    told = yaml.safe_load(old.settings.read_text())
    for section, name in (
        ("pseudo", "score_floor"),
        ("detector", "batch_norm"),
        ("detector", "box_loss"),
        ("detector", "proposals"),
        ("detector", "low_quality_iou"),
    ):
        del told[section][name]
    old.settings.write_text(yaml.safe_dump(told))
    kept = old.read_settings()
    assert (kept.pseudo.score_floor, kept.lowest_score) == (None, 0.01)
    assert (kept.detector.batch_norm, kept.detector.box_loss, kept.detector.proposals) == ("frozen", "smooth_l1", None)
    # The same command resumes, although the default of a new setting differs. Another value is refused.
    assert old.claim(settings(pictures, pseudo__score_floor=0.05)) == kept
    with pytest.raises(UserError, match=r"pseudo.score_floor: None -> 0.02"):
        old.claim(settings(pictures, pseudo__score_floor=0.02))


def test_scores_by_other_rules_are_never_mixed_with_ours(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cycle that an earlier version asked from keeps its scores; before the first question it is scored again."""
    folder = RunFolder(shutil.copytree(finished, tmp_path / "run"))
    scored = folder.cycle(2) / "candidates"
    ours = {file.name: file.read_bytes() for file in scored.glob("*.parquet")}
    for file in list(scored.glob("*.parquet")):  # names written by an earlier version
        kind, place, _ = file.name.split("_")
        file.rename(scored / f"{kind}_{place}_{'0' * 20}.parquet")
    names = sorted(file.name.removeprefix("shard_") for file in scored.glob("shard_*"))
    write_json(scored / "shards.json", names)

    def score() -> tuple[set[str], list[str]]:
        with Store(folder.store) as store:
            run = simulate.open_run(
                folder, settings(pictures), datasets.load_data(str(pictures)), store, lambda *_: None
            )
            found, _ = shards.score_pool(run, 2)
        return {part.name for part in found.parts if isinstance(part, Path)}, run.notes

    used, notes = score()
    assert used == {f"shard_{name}" for name in names}
    assert "an earlier version scored this cycle" in notes[0]
    monkeypatch.setattr(Store, "queries", lambda *_: [])  # nothing has been asked yet
    used, notes = score()
    assert notes == []
    assert {file.name: file.read_bytes() for file in scored.glob("*.parquet")} == ours
    assert used == {name for name in ours if name.startswith("shard_")}


def test_nothing_is_asked_twice_nor_near_what_is_settled(finished: Path) -> None:
    with Store(RunFolder(finished).store) as store:
        settled: dict[int, list[np.ndarray]] = {}
        complete = {q.image_id for q, _ in store.answered(1)}
        for query, answer in store.answered():
            if query.box is None:
                continue
            assert query.image_id not in complete
            for other in settled.setdefault(query.image_id, []):
                assert float(iou_matrix(query.box[None], other[None])[0, 0]) < 0.5
            settled[query.image_id] += [query.box, *answer.boxes] if not len(answer.boxes) else [*answer.boxes]


def test_same_seed_same_everything(pictures: Path, finished: Path, tmp_path: Path) -> None:
    simulate.simulate(tmp_path / "again", settings(pictures))
    assert outcome(tmp_path / "again") == outcome(finished)
    simulate.simulate(tmp_path / "other", settings(pictures, seed=1, budget=[]))
    assert not begins_like(tmp_path / "other", finished)


def test_a_finished_run_is_not_changed(pictures: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.*") if "labels.sqlite" not in p.name}
    assert timeless(simulate.simulate(finished, settings(pictures))) == timeless(RunFolder(finished).records())
    assert {p: p.stat().st_mtime_ns for p in before} == before


EAGER: dict[str, Any] = {
    "detector__score_threshold": 0.001,
    "scoring__candidate_threshold": 0.001,
    "pseudo__class_low": 0.0,
}


@pytest.fixture(scope="module", params=["retinanet", "faster_rcnn"])
def first(request: pytest.FixtureRequest, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A first cycle with each detector."""
    out = tmp_path_factory.mktemp(request.param) / "run"
    simulate.simulate(out, settings(pictures, detector__name=request.param, budget=[], **EAGER))
    return out


@pytest.mark.parametrize(
    ("first", "strategy", "method"),
    thinned(
        [
            (detector, *row)
            for detector in ("retinanet", "faster_rcnn")
            for row in (
                ("random", "none"),
                ("uncertainty", "hard"),
                ("class_balanced", "task_hard"),
                ("class_balanced", "ignore_only"),
            )
        ],
        lambda number, _: number in (1, 2, 4, 7),  # each row and each detector
    ),
    indirect=["first"],
)
def test_every_row_of_the_table_runs(pictures: Path, first: Path, tmp_path: Path, strategy: str, method: str) -> None:
    chosen = settings(
        pictures,
        detector__name=RunFolder(first).read_settings().detector.name,
        selection__strategy=strategy,
        pseudo__method=method,
        pseudo__calibrated=False,
        budget=[6],
        **EAGER,
    )
    records = simulate.simulate(tmp_path / "run", chosen, share=first)
    assert records[-1]["reviews_this_cycle"] > 0
    targets = read_targets(tmp_path / "run" / "cycle_02" / "targets.parquet")
    sources = {str(source) for target in targets.values() for source in target.source}
    assert ("pseudo" in sources) == (method == "ignore_only" or records[-1]["pseudo_boxes"] > 0)
    assert set(METHODS) == {"none", "hard", "task_hard", "soft", "ignore_only"}


def test_strategies_share_pool_and_first_model(pictures: Path, finished: Path, tmp_path: Path) -> None:
    other = settings(pictures, selection__strategy="random")
    shared = simulate.simulate(tmp_path / "shared", other, share=finished)
    alone = simulate.simulate(tmp_path / "alone", settings(pictures, selection__strategy="random", budget=[6]))
    said, said_alone = outcome(tmp_path / "shared")[1], outcome(tmp_path / "alone")[1]
    assert said[: len(said_alone)] == said_alone
    assert shared[0]["ap50"] == alone[0]["ap50"] == RunFolder(finished).records()[0]["ap50"]
    assert "fit" not in shared[0]["seconds"]
    assert "evaluate" not in shared[0]["seconds"]  # of the same model: copied, too
    assert "score" not in shared[1]["seconds"]
    assert {"fit", "evaluate"} <= shared[1]["seconds"].keys()
    assert {"score", "fit"} <= shared[2]["seconds"].keys()
    assert shared[0]["notes"]
    assert not alone[0]["notes"]


def test_the_ap_of_a_shared_model_is_reused_only_on_the_same_test_images(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(finished, tmp_path / "other")
    write_json(other / "cycle_01" / "evaluated.json", {"test": "another", "result": {"ap50": 0.123}})
    records = simulate.simulate(
        tmp_path / "run", settings(pictures, selection__strategy="random", budget=[]), share=other
    )
    assert "evaluate" in records[0]["seconds"]
    assert records[0]["ap50"] == RunFolder(finished).records()[0]["ap50"]


def test_test_sets_are_distinguished_by_truth_and_device() -> None:
    def told(
        x1: float = 0.0, label: int = 0, difficult: bool = False, image: str = "a.png", device: str = "cpu"
    ) -> str:
        truth = GroundTruth(np.array([[x1, 0, 9, 9]]), np.array([label]), np.array([difficult]))
        run: Any = SimpleNamespace(
            test=SimpleNamespace(records=[ImageRecord(3, image, 10, 10)]),
            test_truth={3: truth},
            classes=("a", "b"),
            settings=SimpleNamespace(device=device),
        )
        return _test(run)

    assert told() == told()
    changed = [told(x1=0.5), told(label=1), told(difficult=True), told(image="b.png"), told(device="cuda")]
    assert len({told(), *changed}) == 6


def test_options_that_change_what_is_trained_on_or_from_do(pictures: Path, finished: Path, tmp_path: Path) -> None:
    fits: list[str] = []
    warm = simulate.simulate(
        tmp_path / "warm",
        settings(pictures, training__start="warm", training__warm_fraction=0.5, budget=[6]),
        progress=lambda stage, done, of, note: fits.append(f"{stage} {of}") if "fit" in stage else None,
        share=finished,
    )
    fresh = RunFolder(finished).records()
    assert {*fits} == {
        "cycle 2/2: fit 3"
    }  # half of its steps; the first model is shared, though the other run starts each cycle anew
    assert warm[0]["ap50"] == fresh[0]["ap50"]
    assert outcome(tmp_path / "warm")[1] == [*outcome(finished)[1]][: len(outcome(tmp_path / "warm")[1])]
    one, other = (read_model(folder / "cycle_02") for folder in (tmp_path / "warm", finished))
    assert any((one[name] != other[name]).any() for name in one)

    simulate.simulate(tmp_path / "pool", settings(pictures, pseudo__images="pool", budget=[6]), share=finished)
    everywhere = read_targets(tmp_path / "pool" / "cycle_02" / "targets.parquet")
    assert set(read_targets(finished / "cycle_02" / "targets.parquet")) < set(everywhere)

    chosen = settings(pictures, selection__class_frequency="soft", budget=[6])
    soft = simulate.simulate(tmp_path / "soft", chosen, share=finished)
    assert sum(soft[1]["class_frequency"].values()) == pytest.approx(1)
    assert soft[1]["class_frequency"] != fresh[1]["class_frequency"]


def read_model(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "change",
    [{"initial_images": 5}, {"training__steps": 7}, {"detector__image_size": 96}, {"pseudo__difficult": "background"}],
)
def test_a_first_model_with_other_settings_is_not_shared(
    pictures: Path, finished: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="does not fit this run") as told:
        simulate.simulate(tmp_path / "run", settings(pictures, **change), share=finished)
    assert len(str(told.value).splitlines()) == 2  # only what differs


def test_sharing_with_a_run_of_another_kind_is_refused(pictures: Path, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)does not fit this run.*seed: 0 there, 5 here"):
        simulate.simulate(tmp_path / "seed", settings(pictures, seed=5), share=finished)
    with pytest.raises(UserError, match="no cycle-1 model"):
        simulate.simulate(tmp_path / "nothing", settings(pictures), share=tmp_path)


def test_other_settings_in_the_folder_are_refused_with_the_difference(pictures: Path, finished: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)other settings.*pseudo\.method: soft -> hard"):
        simulate.simulate(finished, settings(pictures, pseudo__method="hard"))


@pytest.mark.usefixtures("untrained")
def test_a_run_that_failed_before_training_takes_other_settings(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        simulate.simulate(tmp_path / "run", settings(pictures, detector__weights="nowhere.pth"))
    assert len(simulate.simulate(tmp_path / "run", settings(pictures, budget=[], seed=4))) == 1
    with Store(tmp_path / "run" / "labels.sqlite") as store:
        assert store.spent().labels == RunFolder(tmp_path / "run").records()[0]["labels"]


def test_a_folder_of_something_else_is_refused(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="not empty"):
        simulate.simulate(tmp_path, settings(pictures))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_two_processes_do_not_share_a_folder(pictures: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run").locked(), pytest.raises(UserError, match="another rarebox process is working in"):
        simulate.simulate(tmp_path / "run", settings(pictures))


def test_strategy_never_sees_the_truth(pictures: Path, tmp_path: Path) -> None:
    """With every label and box outside the initial pool scrambled, the ranking of cycle 2 stays the same."""
    honest = datasets.load(pictures)
    simulate.simulate(tmp_path / "honest", settings(pictures, budget=[8]), honest)
    with Store(tmp_path / "honest" / "labels.sqlite") as store:
        initial = {query.image_id for query, _ in store.answered(1)}
        ranking = {q.why["rank"]: (q.image_id, q.box.tolist()) for q in store.queries(2) if q.why and q.box is not None}
    rng = np.random.default_rng(0)

    def scrambled(image_id: int, truth: GroundTruth) -> GroundTruth:
        if image_id in initial:
            return truth
        corner = rng.uniform(0, 60, (len(truth), 2))
        labels = rng.integers(0, len(honest.classes), len(truth))
        return GroundTruth(np.hstack([corner, corner + 30]), labels, truth.difficult)

    truth = {i: scrambled(i, t) for i, t in honest.train.truth.items()}
    liar = replace(honest, train=listings.Split(honest.train.images, truth))
    simulate.simulate(tmp_path / "liar", settings(pictures, budget=[8]), liar)
    with Store(tmp_path / "liar" / "labels.sqlite") as store:
        other = {q.why["rank"]: (q.image_id, q.box.tolist()) for q in store.queries(2) if q.why and q.box is not None}
    common = ranking.keys() & other.keys()
    assert len(common) >= 2
    assert all(ranking[rank] == other[rank] for rank in common)
    assert len({i for i in truth if i not in initial and len(truth[i])}) > 3


@pytest.mark.usefixtures("untrained")
def test_budget_larger_than_the_pool_uses_all_and_reports_it(
    pictures: Path, finished: Path, all_labelled: Path, tmp_path: Path
) -> None:
    records = simulate.simulate(tmp_path / "run", settings(pictures, budget=[10_000]), share=finished)
    assert any("no candidates are left" in note for note in records[1]["notes"])
    records = simulate.simulate(tmp_path / "all", settings(pictures, initial_images=99, budget=[5]), share=all_labelled)
    assert records[0]["images_full"] == 14
    assert any("99" in note for note in records[0]["notes"])
    assert records[1]["reviews_this_cycle"] == 0


@pytest.mark.usefixtures("untrained")
def test_no_candidates_ends_in_a_note(pictures: Path, finished: Path, tmp_path: Path) -> None:
    chosen = settings(pictures, scoring__candidate_threshold=0.999, budget=[5])
    records = simulate.simulate(tmp_path / "run", chosen, share=finished)
    assert records[1]["labels_this_cycle"] == 0
    assert records[1]["notes"] == ["no candidates are left: 0 of the budget of 5 labels were spent"]


@pytest.mark.usefixtures("untrained")
def test_exploration_labels_whole_images_when_a_class_has_no_candidate(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    chosen = settings(pictures, selection__exploration=0.5, budget=[8], scoring__candidate_threshold=0.999)
    record = simulate.simulate(tmp_path / "run", chosen, share=finished)[1]
    assert record["images_full"] > 4
    assert record["labels_this_cycle"] >= 4


@pytest.mark.usefixtures("untrained")
def test_exploration_resumes_after_a_kill(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(pictures, selection__exploration=0.9, budget=[12], scoring__candidate_threshold=0.999)
    simulate.simulate(tmp_path / "whole", chosen)
    deaths = 0
    while True:
        try:
            with killed_at(deaths % 5 + 1, monkeypatch):
                simulate.simulate(tmp_path / "killed", chosen)
            break
        except Killed:
            deaths += 1
            assert deaths < 60
    assert deaths > 3
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "whole")
    images = [q.image_id for q in Store(tmp_path / "whole" / "labels.sqlite").queries()]
    assert len(images) == len(set(images))


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("answers", thinned([2, 4], lambda number, _: number == 0))
def test_interrupted_exploration_skips_the_images_already_asked_about(
    pictures: Path, finished: Path, tmp_path: Path, answers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(pictures, selection__exploration=1.0, budget=[23], scoring__candidate_threshold=0.999)
    simulate.simulate(tmp_path / "whole", chosen, share=finished)
    answer_all, calls = ask.answer_all, []

    def cut(run: Run, queries: Any, *ranked: Any) -> None:
        answer_all(run, queries, *ranked)
        calls.extend(queries if run.cycle == 2 else ())
        if len(calls) == answers:
            raise KeyboardInterrupt

    monkeypatch.setattr(ask, "answer_all", cut)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(tmp_path / "cut", chosen, share=finished)
    monkeypatch.undo()
    simulate.simulate(tmp_path / "cut", chosen, share=finished)
    with Store(tmp_path / "cut" / "labels.sqlite") as store:
        asked = [query.image_id for query in store.queries(2)]
        order = seeds.stream(0, "explore", 2).permutation(sorted(store.images().keys() - complete_in(store, 1)))
    assert len(asked) > answers
    assert asked == order[: len(asked)].tolist()
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def complete_in(store: Store, cycle: int) -> set[int]:
    """Images that were labelled completely in a cycle."""
    return {query.image_id for query in store.queries(cycle) if query.box is None}


@pytest.mark.usefixtures("untrained")
def test_asking_and_exploring_report_how_far_the_budget_is_spent(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    for name, changes in {
        "boxes": {"budget_unit": "reviews"},
        "images": {"selection__strategy": "image_random"},
        "explored": {"selection__exploration": 1.0, "scoring__candidate_threshold": 0.999},
    }.items():
        told: list[tuple[int, int, str]] = []
        record = simulate.simulate(
            tmp_path / name,
            settings(pictures, budget=[6], **changes),
            share=finished,
            progress=lambda stage, *rest, told=told: told.append(rest) if stage == "cycle 2/2: ask" else None,
        )[1]
        unit = "reviews" if name == "boxes" else "labels"
        spent = [done for done, _, _ in told]
        assert spent == sorted(spent)
        assert spent[-1] == spent_by(record, unit) > 0
        assert {(of, note) for _, of, note in told} == {(6, unit)}


def test_a_fit_receives_which_images_are_complete(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, finished: Path, tmp_path: Path
) -> None:
    told: list[tuple[Any, Any]] = []
    monkeypatch.setattr(TorchDetector, "fit", lambda self, images, *_, complete, **__: told.append((images, complete)))
    simulate.simulate(tmp_path / "run", settings(pictures, budget=[6]), share=finished)
    with Store(tmp_path / "run" / "labels.sqlite") as store:
        labels = store.labels()
    ((images, complete),) = told
    assert [labels[record.id].complete for record in images.records] == complete.tolist()
    assert 0 < complete.sum() < len(complete)


def test_reading_the_data_is_progress_too(pictures: Path) -> None:
    told: list[tuple[Any, ...]] = []
    found = datasets.load_data(str(pictures), lambda *said: told.append(said))
    assert found.test is not None
    everything = len(found.train.images) + len(found.test.images)
    assert told == [("read", done, everything, "images") for done in range(1, everything + 1)]


@pytest.mark.usefixtures("untrained")
@pytest.mark.parametrize("strategy", sorted(strategies.BLIND))
def test_a_strategy_that_reads_no_score_needs_none(
    pictures: Path, finished: Path, tmp_path: Path, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(name: str, **changes: Any) -> tuple[list[int], bool]:
        chosen = settings(pictures, selection__strategy=strategy, budget=[20], **changes)
        simulate.simulate(tmp_path / name, chosen, share=finished)
        with Store(tmp_path / name / "labels.sqlite") as store:
            scores = [*(tmp_path / name / "cycle_02" / "candidates").glob("*")]
            return [query.image_id for query in store.queries(2)], bool(scores)

    images, scored = asked("blind")
    assert not scored
    assert asked("pool", pseudo__images="pool")[1]  # pseudo labels on every image require candidates
    monkeypatch.setattr(strategies, "BLIND", set())
    assert asked("scored") == (images, True)


@pytest.mark.usefixtures("untrained")
def test_a_start_killed_while_writing_its_settings_resumes(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / "settings.yaml.part").write_text("data: da")
    assert len(simulate.simulate(tmp_path / "run", settings(pictures, budget=[]))) == 1


def test_another_data_set_in_the_same_place_is_noticed(pictures: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "metrics.json").unlink()
    whole = datasets.load(pictures)
    fewer = replace(whole, train=listings.Split(whole.train.images[1:], whole.train.truth))
    with pytest.raises(UserError, match=r"data set has changed.*1 images were added, removed"):
        simulate.simulate(tmp_path / "run", settings(pictures), fewer)


@pytest.mark.usefixtures("untrained")
def test_a_run_that_begins_anew_with_other_settings_can_be_resumed(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cuda"):
        simulate.simulate(tmp_path / "run", settings(pictures, budget=[], device="cuda:9"))
    simulate.simulate(tmp_path / "run", settings(pictures, budget=[]))
    (tmp_path / "run" / "metrics.json").unlink()
    (tmp_path / "run" / "cycle_01" / "model.safetensors").unlink()
    assert (tmp_path / "run" / "environment.json").exists()
    assert simulate.simulate(tmp_path / "run", settings(pictures, budget=[]))


def test_other_labels_in_the_same_place_are_noticed(pictures: Path, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    whole = datasets.load(pictures)
    number, truth = next((n, one) for n, one in whole.train.truth.items() if len(one))
    other = replace(truth, labels=(truth.labels + 1) % len(whole.classes))
    corrected = replace(whole, train=replace(whole.train, truth={**whole.train.truth, number: other}))
    with pytest.raises(UserError, match=r"the labels have changed since the run in .* began"):
        simulate.simulate(tmp_path / "run", settings(pictures), corrected)
    environment = tmp_path / "run" / "environment.json"
    told = json.loads(environment.read_text())
    del told["labels"]  # as an earlier version wrote it
    environment.write_text(json.dumps(told))
    assert simulate.simulate(tmp_path / "run", settings(pictures), corrected)


@pytest.mark.parametrize("name", ["cycle_02/candidates/shard_00000_*.parquet", "cycle_02/targets.parquet"])
def test_a_damaged_table_is_named(pictures: Path, finished: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (table,) = (tmp_path / "run").glob(name)
    table.write_bytes(table.read_bytes()[:50])
    with pytest.raises(UserError, match=r"parquet is damaged .*delete it and repeat"):
        parquet.read(table)


def test_a_damaged_checkpoint_is_ignored(pictures: Path, finished: Path, tmp_path: Path) -> None:
    chosen = settings(pictures, budget=[])
    RunFolder(tmp_path / "run").cycle(1).mkdir(parents=True)
    (tmp_path / "run" / "settings.yaml").write_text(config.dump(chosen))
    (tmp_path / "run" / "cycle_01" / "fit.checkpoint").write_bytes(b"not a checkpoint")
    simulate.simulate(tmp_path / "run", chosen)
    assert begins_like(tmp_path / "run", finished)


def test_boxes_that_shrink_to_nothing_do_not_stop_training(pictures: Path, tmp_path: Path) -> None:
    whole = datasets.load(pictures)
    crumb = np.array([[0, 10, 1e-6, 30]], dtype=np.float32)
    truth = {
        i: GroundTruth(np.vstack([t.boxes, crumb]), np.append(t.labels, 0), np.append(t.difficult, False))
        for i, t in whole.train.truth.items()
    }
    crumbs = replace(whole, train=listings.Split(whole.train.images, truth))
    assert len(simulate.simulate(tmp_path / "run", settings(pictures, budget=[], initial_images=14), crumbs)) == 1


@pytest.mark.usefixtures("untrained")
def test_without_a_test_split_a_fifth_of_the_pool_is_held_out(pictures: Path, tmp_path: Path) -> None:
    whole = datasets.load(pictures)
    records = simulate.simulate(tmp_path / "run", settings(pictures, budget=[3]), replace(whole, test=None))
    with Store(tmp_path / "run" / "labels.sqlite") as store:
        assert len(store.images()) == 11
    assert len(records) == 2


def test_an_unreadable_image_is_skipped_and_the_run_continues(pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures, tmp_path / "data")
    broken = Path(datasets.load(tmp_path / "data").train.images[0].path)
    broken.write_bytes(broken.read_bytes()[:400])
    records = simulate.simulate(tmp_path / "run", settings(tmp_path / "data", initial_images=20, budget=[2]))
    problems = json.loads((tmp_path / "run" / "problems.json").read_text())
    assert [p["kind"] for p in problems if broken.name in p["where"]] == ["unreadable image"]
    assert records[0]["images_full"] == 13


def test_a_loss_that_is_not_finite_stops_with_the_step(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from rarebox.detectors.retinanet import WeightedHead

    calls = iter(range(100))
    honest = WeightedHead.losses

    def sick(self: Any, *args: Any) -> Any:
        losses = honest(self, *args)
        return {k: v * torch.nan for k, v in losses.items()} if next(calls) == 3 else losses

    monkeypatch.setattr(WeightedHead, "losses", sick)
    chosen = settings(pictures, budget=[], training__checkpoint_seconds=0)
    with pytest.raises(TrainingDiverged, match=r"step 4 of 6.*state before it is in .*fit\.checkpoint"):
        simulate.simulate(tmp_path / "run", chosen)
    monkeypatch.undo()
    assert len(simulate.simulate(tmp_path / "run", chosen)) == 1  # the same command resumes


def test_a_full_disk_is_an_error_that_loses_nothing(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device", "shard_00000.part")

    chosen = settings(pictures, budget=[])
    monkeypatch.setattr(parquet.pq, "write_table", full)
    with pytest.raises(UserError, match=r"shard_00000\.part: No space left on device.*repeat the command"):
        simulate.simulate(tmp_path / "run", chosen)
    monkeypatch.undo()
    simulate.simulate(tmp_path / "run", chosen)
    assert begins_like(tmp_path / "run", finished)


class Killed(BaseException):
    """Simulates SIGKILL: no handler of ours may catch it."""


@contextmanager
def killed_at(write: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Die just before the n-th change of the disk: a rename of a file, or a transaction of the store."""
    count = 0

    def counted(honest: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            if count == write:
                raise Killed
            count += 1
            return honest(*args, **kwargs)

        return wrapper

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", counted(Path.replace))
        patch.setattr(Store, "ask", counted(Store.ask))
        patch.setattr(Store, "record", counted(Store.record))
        yield lambda: count


@pytest.mark.usefixtures("untrained")
def test_death_before_any_write_changes_nothing_in_the_end(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Die at every change of the state on disk, one after the other, within one run."""
    out, chosen, deaths = tmp_path / "run", settings(pictures, budget=[6]), 0
    simulate.simulate(tmp_path / "whole", chosen)
    while True:
        try:
            with killed_at(deaths % 5 + 1, monkeypatch):  # each life makes one to five changes, then dies
                simulate.simulate(out, chosen)
            break
        except Killed:
            deaths += 1
            assert deaths < 100
    assert deaths > 5
    assert outcome(out) == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_sigkill_at_random_moments(pictures: Path, finished: Path, tmp_path: Path) -> None:
    """A real process is killed; ``benchmarks/kill_and_resume.py`` does the same twenty times."""
    out, moments, kills = tmp_path / "run", random.Random(0), 0
    command = ["run", out, "--data", pictures, "--json", *as_options(budget=[6])]
    while kills < 4:
        said = tmp_path / f"said_{kills}"
        child = forked.start_command(command, said)
        wanted = moments.randrange(2, 9)  # this many lines of progress, then a moment longer
        while child.is_alive() and not (said.exists() and said.read_bytes().count(b"\n") >= wanted):
            time.sleep(0.01)
        time.sleep(moments.random() * 0.3)
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL, said.read_text()
        kills += 1
    last = forked.start_command(command, tmp_path / "said")
    last.join()
    assert last.exitcode == 0, (tmp_path / "said").read_text()
    assert kills
    assert begins_like(out, finished)


def test_pool_in_shards_or_in_one_piece_gives_the_same_candidates_and_questions(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    simulate.simulate(tmp_path / "run", settings(pictures, budget=[6], scoring__shard_size=1000))
    ours, theirs = ([asked[:1] + asked[2:3] for asked in outcome(out)[1]] for out in (tmp_path / "run", finished))
    assert ours == theirs[: len(ours)]
    assert len(ours) > 6
    one, many = read_all(tmp_path / "run/cycle_02/candidates"), read_all(finished / "cycle_02/candidates")
    assert len(list((finished / "cycle_02/candidates").glob("shard_*"))) == 2
    assert (one.image_id == many.image_id).all()
    np.testing.assert_allclose(one.boxes, many.boxes, atol=0.5)


def test_a_shard_is_scored_again_only_if_its_numbers_would_be_others(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    folder = RunFolder(out)
    scored: list[int] = []
    honest = scoring.score_images

    def counted(detector: Any, images: Any, *rest: Any) -> Any:
        scored.append(len(images))
        return honest(detector, images, *rest)

    monkeypatch.setattr(scoring, "score_images", counted)

    def score(images: slice = slice(None), **changes: Any) -> list[int]:
        chosen = settings(pictures, **changes)
        scored.clear()
        with Store(folder.store) as store:
            run = simulate.open_run(folder, chosen, datasets.load_data(str(pictures)), store, lambda *_: None)
            labels = store.labels(up_to_cycle=1)
            pool = [image for image in run.pool.records if image.id not in labels]
            shards.make_shards(run, 2, pool[images])
        files = [*(out / "cycle_02" / "candidates").glob("*.parquet")]
        assert len(files) == 2 * -(-len(pool[images]) // chosen.scoring.shard_size)  # no other may be read
        return list(scored)

    assert score() == score(selection__sigma=2.0, budget=[1], pseudo__method="hard") == []
    assert score(slice(9)) == [4]
    assert score() == [5]
    next((out / "cycle_02" / "candidates").glob("images_00001*")).unlink()
    assert score() == [5]
    changes: list[dict[str, Any]] = [
        {"scoring__beta": 1.2},
        {"seed": 1},
        {"selection__strategy": "coreset"},
        {"training__precision": "bfloat16"},
        {"device": "auto"},
    ]
    for change in changes:
        assert score(**change) == [5, 5], change
    weights = folder.cycle(1) / "model.safetensors"
    content = load_file(weights)
    save_file({name: value * 1.001 if value.dtype == np.float32 else value for name, value in content.items()}, weights)
    assert score(device="auto") == [5, 5]


def test_a_run_resumes_with_its_original_shards(
    pictures: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default size may change between two versions, in the middle of scoring."""
    honest, begun = scoring.score_images, []

    def cut(*args: Any) -> Any:
        if begun:
            raise KeyboardInterrupt
        begun.append(1)
        return honest(*args)

    monkeypatch.setattr(scoring, "score_images", cut)
    with pytest.raises(KeyboardInterrupt):
        simulate.simulate(tmp_path / "run", settings(pictures, budget=[6]))
    monkeypatch.undo()
    simulate.simulate(tmp_path / "run", settings(pictures, budget=[6], scoring__shard_size=3))
    assert begins_like(tmp_path / "run", finished)
    assert RunFolder(tmp_path / "run").read_settings() == settings(pictures, budget=[6])
