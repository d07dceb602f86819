"""Rules for every strategy, and for each a case that only this method ranks in that way."""

import inspect
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rarebox import config, strategies
from rarebox.config import CostSettings, SelectionSettings
from rarebox.core import seeds
from rarebox.errors import UserError
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.loop import ask, cycle, scoring, shards
from rarebox.loop.cycle import rank_pool
from rarebox.loop.run import Run
from rarebox.loop.run_folder import RunFolder
from rarebox.pool.candidates import Shards
from rarebox.strategies.greedy import k_center
from rarebox.strategies.image import _describe, entropy_nms
from rarebox.types import Candidates, GroundTruth, ImageRecord, ImageScores, LabelState

BOX, IMAGE = sorted(strategies.BOX), sorted(strategies.IMAGE)
NAMES = [*BOX, *IMAGE]


def pool(count: int = 40, seed: int = 0) -> Candidates:
    """Candidates of eight images with random numbers, some of which are equal."""
    dice = np.random.default_rng(seed)
    corner = dice.uniform(0, 50, (count, 2))
    probs = dice.dirichlet(np.ones(3), count)
    return Candidates(
        np.arange(count) // 5,
        np.arange(count) % 5,
        np.concatenate([corner, corner + 9], axis=1),
        dice.integers(0, 3, count),
        dice.integers(1, 10, count) / 10,
        dice.integers(0, 7, count) / 5,
        dice.random(count),
        probs,
        dice.random((count, 4)),
        dice.integers(0, 9, count) / 4,
        dice.integers(0, 9, count) / 8,
    )


DICE = np.random.default_rng(5)
IMAGES = ImageScores(np.arange(8), DICE.integers(0, 4, 8) / 4, DICE.random((8, 3)))
STATE = LabelState(
    np.array([0.7, 0.3, 0.0]),
    np.array([20, 5, 0]),
    IMAGES,
    images_labelled=5,
    budget=20,
    box_features=DICE.random((6, 4)),
    image_features=DICE.random((8, 12)),
    labelled_image_features=DICE.random((3, 12)),
)


def of(name: str, **changes: Any) -> strategies.Strategy:
    return strategies.choose(SelectionSettings(strategy=name, **changes))


def ranking(name: str, candidates: Candidates, state: LabelState = STATE, seed: int = 0, **changes: Any) -> list[Any]:
    """The ranking, best first: (image id, box index) of candidates, or image ids."""
    found = list(of(name, **changes)(candidates, state, seeds.stream(seed, "strategy", 2)))
    if name in IMAGE:
        return [image_id for image_id, _ in found]
    return [(int(candidates.image_id[i]), int(candidates.box_index[i])) for i, _ in found]


# ------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_names_each_candidate_or_image_once_and_repeats_with_its_seed(name: str) -> None:
    first = ranking(name, pool())
    assert sorted(first) == (list(range(8)) if name in IMAGE else [(i // 5, i % 5) for i in range(40)])
    assert ranking(name, pool()) == first


@pytest.mark.parametrize("name", BOX)
def test_the_utility_of_a_box_strategy_decreases_unless_classes_take_turns(name: str) -> None:
    utility = [u for _, u in of(name)(pool(), STATE, np.random.default_rng(0))]
    assert np.isfinite(utility).all()
    assert name == "quota" or (np.diff(utility) <= 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_pool_changes_no_ranking(name: str) -> None:
    mixed = np.random.default_rng(3).permutation(8)
    assert STATE.image_features is not None
    state = replace(STATE, images=IMAGES[mixed], image_features=STATE.image_features[mixed])
    shuffled = pool()[np.random.default_rng(3).permutation(40)]
    assert ranking(name, shuffled, state) == ranking(name, pool())


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_pool_has_an_empty_ranking(name: str) -> None:
    nothing = replace(Candidates.none(3), features=np.zeros((0, 4)), class_disagreement=[], box_disagreement=[])
    state = replace(STATE, images=ImageScores.none(3), image_features=np.zeros((0, 12)))
    assert ranking(name, nothing, state) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_first_cycle_without_any_label_is_ranked_too(name: str) -> None:
    state = LabelState(
        np.zeros(3),
        np.zeros(3, dtype=np.int64),
        IMAGES,
        box_features=np.zeros((0, 4)),
        image_features=STATE.image_features,
        labelled_image_features=np.zeros((0, 0)),
    )
    assert len(ranking(name, pool(), state)) == (8 if name in IMAGE else 40)


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_without_any_candidate_can_be_asked_about(name: str) -> None:
    kept = pool()[np.arange(40) >= 5]
    assert sorted(ranking(name, kept)) == list(range(8))


@pytest.mark.parametrize("name", IMAGE)
def test_an_image_that_somebody_labelled_is_never_asked_about_again(name: str) -> None:
    assert STATE.image_features is not None
    state = replace(STATE, images=IMAGES[2:], image_features=STATE.image_features[2:])
    assert sorted(ranking(name, pool(), state)) == list(range(2, 8))  # images 0 and 1 still have candidates


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_changes_nothing_that_it_is_given(name: str) -> None:
    candidates, state = pool(), replace(STATE, images=replace(IMAGES))
    for table in (candidates, state, state.images):
        for f in fields(table):
            if isinstance(column := getattr(table, f.name), np.ndarray):
                column = column.copy()
                column.flags.writeable = False
                object.__setattr__(table, f.name, column)
    ranking(name, candidates, state)  # writing into any array would raise


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_receives_only_candidates_the_label_state_and_randomness(name: str) -> None:
    free = [p for p in inspect.signature(of(name)).parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    assert [p.name for p in free] == ["candidates", "state", "rng"]
    assert [f.name for f in fields(LabelState)] == [
        "class_frequency",
        "class_counts",
        "images",
        "images_labelled",
        "budget",
        "hit_weights",
        "box_features",
        "image_features",
        "labelled_image_features",
    ]


def asked(
    name: str, labels: np.ndarray, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[int, list[float] | None]]:
    """What a cycle asks about, in order, when the objects of the pool have these labels (8, 5)."""
    candidates = pool()
    truth = {
        i: GroundTruth(candidates.boxes[candidates.image_id == i], labels[i], np.zeros(5, dtype=bool)) for i in range(8)
    }
    records = [ImageRecord(i, f"{i}.png", 100, 100) for i in range(8)]
    settings = config.resolve(changes={"selection.strategy": name, "budget": [20], "initial_images": 2})
    data: Any = SimpleNamespace(classes=("a", "b", "c"))
    pictures: Any = SimpleNamespace(records=records)
    rows = {"box_features": STATE.box_features, "labelled_image_features": STATE.labelled_image_features}

    def features(run: object, cycle: int, before: object, untouched: list[int]) -> dict[str, Any]:
        assert STATE.image_features is not None
        return {**rows, "image_features": STATE.image_features[untouched]}

    monkeypatch.setattr(cycle, "features", features)
    monkeypatch.setattr(cycle, "restore_model", lambda run, cycle: None)  # without training
    monkeypatch.setattr(shards, "score_pool", lambda run, cycle: (Shards([candidates]), IMAGES))
    with Store(folder / "labels.sqlite", classes=data.classes, flush=False) as store:
        store.add_images(records)
        run = Run(
            RunFolder(folder),
            settings,
            data,
            pictures,
            pictures,
            truth,
            store,
            SimulatedOracle(truth),
            lambda *_: None,
            scoring.score_here,
        )
        store.open_cycle(1)
        ask.label_initial_pool(run)
        store.open_cycle(2)
        ask.ask(run, 2, rank_pool(run, 2))
        assert sum(len(answer.boxes) for _, answer in store.answered(2)) == 20
        questions = [(q.image_id, None if q.box is None else q.box.tolist()) for q in store.queries(2)]
        assert all((box is None) == (name in IMAGE) for _, box in questions)
        return questions


@pytest.mark.parametrize("name", NAMES)
def test_the_same_is_asked_when_every_label_of_the_truth_is_scrambled(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = np.random.default_rng(8).integers(0, 3, (8, 5))
    scrambled = (labels + 1) % 3
    told = seeds.stream(0, "initial pool").permutation(8)[:2]  # answers of cycle 1, which every strategy may count
    scrambled[told] = labels[told]
    found = []
    for truth in (labels, scrambled):
        (folder := tmp_path / str(len(found))).mkdir()
        found.append(asked(name, truth, folder, monkeypatch))
    assert found[0] == found[1]


def test_equal_utilities_are_asked_by_image_and_box_index() -> None:
    candidates = replace(pool(), uncertainty=np.zeros(40))[np.random.default_rng(3).permutation(40)]
    assert ranking("uncertainty", candidates) == [(i // 5, i % 5) for i in range(40)]


def test_an_unknown_strategy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown strategy 'class_balance'; did you mean 'class_balanced'"):
        of("class_balance")
    with pytest.raises(UserError, match="unknown strategy 'image_cold'; did you mean 'image_cald'"):
        of("image_cold")


# ------------------------------------------------------------------------------------------- by hand


def three(uncertainty: list[float], labels: list[int]) -> Candidates:
    return replace(pool()[:3], uncertainty=np.array(uncertainty), labels=np.array(labels))


def test_uncertainty_asks_the_largest_u_first() -> None:
    assert ranking("uncertainty", three([0.2, 0.9, 0.5], [0, 1, 2])) == [(0, 1), (0, 2), (0, 0)]


def test_class_balanced_weighs_the_uncertainty_by_how_rare_the_class_is() -> None:
    # p = 0.7, 0.3, 0 for classes 0, 1, 2: 1.0 e^-0.7 = 0.497, 0.8 e^-0.3 = 0.593, 0.55 e^0 = 0.55
    candidates = three([1.0, 0.8, 0.55], [0, 1, 2])
    assert ranking("class_balanced", candidates) == [(0, 1), (0, 2), (0, 0)]
    assert ranking("uncertainty", candidates) == [(0, 0), (0, 1), (0, 2)]
    utility = [u for _, u in of("class_balanced")(candidates, STATE, np.random.default_rng(0))]
    assert utility == pytest.approx([0.5926546, 0.55, 0.4965853])


def test_sigma_says_how_much_rare_classes_are_favoured() -> None:
    # sigma 0.1: e^-7 and e^-3 are nearly 0; sigma 100: hardly different from plain uncertainty
    candidates = three([1.0, 0.8, 0.55], [0, 1, 2])
    for sigma, wanted in ((0.1, [2, 1, 0]), (100.0, [0, 1, 2])):
        assert [box for _, box in ranking("class_balanced", candidates, sigma=sigma)] == wanted


def test_entropy_asks_first_where_the_score_is_nearest_to_a_half_or_the_vector_flattest() -> None:
    sigmoids = replace(three([0, 0, 0], [0, 1, 2]), scores=np.array([0.9, 0.4, 0.2]))
    assert ranking("entropy", sigmoids) == [(0, 1), (0, 2), (0, 0)]
    # entropy of (0.4, 0.6) in nats: 0.673
    assert next(of("entropy")(sigmoids, STATE, np.random.default_rng(0)))[1] == pytest.approx(0.6730117)
    with_background = replace(
        sigmoids, class_probs=np.array([[0.05, 0.9, 0.03, 0.02], [0.6, 0.0, 0.4, 0.0], [0.3, 0.25, 0.25, 0.2]])
    )
    assert ranking("entropy", with_background) == [(0, 2), (0, 1), (0, 0)]  # 1.38, 0.67, 0.43 nats


def test_coreset_prefers_boxes_far_from_labelled_and_chosen_ones() -> None:
    line = replace(pool()[:4], features=np.array([[0.0], [1.0], [2.0], [10.0]]))
    state = replace(STATE, box_features=np.array([[0.0]]))
    # the farthest from 0 is 10; then 2 (2 from 0); then 1 (1 from both); then 0 itself
    assert list(of("coreset")(line, state, np.random.default_rng(0))) == [(3, 10), (2, 2), (1, 1), (0, 0)]
    shifted = replace(STATE, box_features=np.array([[0.0], [9.0]]))
    assert [row for row, _ in of("coreset")(line, shifted, np.random.default_rng(0))] == [2, 1, 3, 0]


def test_coreset_without_a_labelled_box_opens_with_a_random_one() -> None:
    line = replace(pool()[:4], features=np.array([[0.0], [1.0], [2.0], [10.0]]))
    state = replace(STATE, box_features=np.zeros((0, 1)))
    firsts = {next(of("coreset")(line, state, np.random.default_rng(seed)))[0] for seed in range(40)}
    assert firsts == {0, 1, 2, 3}
    for seed in range(4):
        first, second, *_ = (row for row, _ in of("coreset")(line, state, np.random.default_rng(seed)))
        assert second == (0 if first == 3 else 3)


def test_inverse_frequency_divides_by_the_human_boxes_of_the_class() -> None:
    # 25 boxes, 3 classes: 28 / 21, 28 / 6, 28 / 1;  times u: 1.33, 3.73, 2.80 (Eq. 1: 0.50, 0.59, 0.10)
    candidates = three([1.0, 0.8, 0.1], [0, 1, 2])
    assert ranking("inverse_frequency", candidates) == [(0, 1), (0, 2), (0, 0)]
    assert ranking("class_balanced", candidates) == [(0, 1), (0, 0), (0, 2)]


def test_quota_fills_the_quota_of_each_class_before_the_rest() -> None:
    # softmax(1 - (20, 5, 0) / 25) = 0.198, 0.361, 0.441; of a budget of 3, rounded up: 1, 2, 2 reviews
    candidates = replace(
        pool()[:6], uncertainty=np.array([0.9, 0.8, 0.7, 0.3, 0.2, 0.1]), labels=np.array([0, 0, 0, 1, 1, 1])
    )
    asked = [row for row, _ in of("quota")(candidates, replace(STATE, budget=3), np.random.default_rng(0))]
    assert asked == [0, 3, 4, 1, 2, 5]
    # of a budget of 10: 2, 4, 5 (in plain proportion to 1 - N_c / N the first would have 1)
    asked = [row for row, _ in of("quota")(candidates, replace(STATE, budget=10), np.random.default_rng(0))]
    assert asked == [0, 1, 3, 4, 5, 2]


def test_compas_multiplies_the_scaled_disagreements_on_class_and_place() -> None:
    candidates = replace(
        pool()[:5],
        scores=np.array([0.9, 0.8, 0.7, 0.45, 0.6]),
        class_disagreement=np.array([1.0, 2.0, 0.0, 9.0, np.nan]),
        box_disagreement=np.array([1.0, 0.5, 2.0, 9.0, np.nan]),
    )
    # scaled over those asked: 1/2, 1, 0 and 1/3, 0, 1: products 1/6, 0, 0.  Below a score of 0.5 or never seen: last
    found = list(of("compas")(candidates, STATE, np.random.default_rng(0)))
    assert [row for row, _ in found] == [0, 1, 2, 4, 3]
    assert found[0][1] == pytest.approx(1 / 6)


def test_compas_asks_from_its_floor_on() -> None:
    """0.5 and 0.55 are asked about, 0.49 is not: it comes last whatever the disagreement."""
    candidates = replace(
        pool()[:4],
        scores=np.array([0.49, 0.5, 0.55, 0.9]),
        class_disagreement=np.array([9.0, 2.0, 1.0, 0.0]),
        box_disagreement=np.array([9.0, 2.0, 1.0, 0.0]),
    )
    found = list(of("compas")(candidates, STATE, np.random.default_rng(0)))
    assert found == [(1, 1.0), (2, 0.25), (3, 0.0), (0, pytest.approx(0.49 - 2))]


def images_of(counts: list[int], scores: list[float], **columns: Any) -> Candidates:
    """Candidates of images 0, 1, …, with these counts, and these scores in order."""
    return replace(
        pool()[: len(scores)],
        image_id=np.repeat(np.arange(len(counts)), counts),
        box_index=np.concatenate([np.arange(n) for n in counts]),
        scores=np.array(scores),
        **columns,
    )


def test_image_entropy_takes_the_mean_the_largest_or_the_sum_of_the_boxes() -> None:
    # nats: 0.5 -> 0.693, 0.6 -> 0.673, 0.9 -> 0.325, 0.99 -> 0.056;  image 3 has no candidate
    candidates = images_of([2, 1, 4], [0.5, 0.99, 0.6, 0.9, 0.9, 0.9, 0.9])
    state = replace(STATE, images=IMAGES[:4])
    assert ranking("image_entropy", candidates, state) == [1, 0, 2, 3]
    assert ranking("image_entropy", candidates, state, image_entropy="max") == [0, 1, 2, 3]
    assert ranking("image_entropy", candidates, state, image_entropy="sum") == [2, 0, 1, 3]


def test_image_entropy_skips_candidates_of_images_that_are_not_open() -> None:
    candidates = images_of([2, 1, 4], [0.5, 0.99, 0.6, 0.9, 0.9, 0.9, 0.9])
    assert ranking("image_entropy", candidates, replace(STATE, images=IMAGES[1:3])) == [1, 2]
    assert ranking("image_entropy", candidates, replace(STATE, images=IMAGES[:2]), image_entropy="sum") == [0, 1]


COST = CostSettings(look=0, confirm=1, mend=4, reject=2, draw=8, scan=10)
LESS = np.array([-1.0, 0, 0])
"""Weights of P(object): its logit is that of the score minus 1."""


def less(score: float) -> float:
    """P(object) by :data:`LESS`."""
    return 1 / (1 + np.exp(1 - np.log(score / (1 - score))))


def test_per_second_divides_a_of_eq_1_times_the_hit_probability_by_the_expected_seconds() -> None:
    found = replace(images_of([3], [0.8, 0.4, 0.4], uncertainty=[1, 1, 1]), box_consistency=[1, 1, 0], labels=[2, 2, 2])
    ranking = strategies.choose(SelectionSettings(strategy="per_second"), COST)(
        found, replace(STATE, hit_weights=LESS), np.random.default_rng(0)
    )
    # Class 2 has the frequency 0. A hit is confirmed or, without consistency, mended; the rest is rejected.
    high, low = less(0.8), less(0.4)
    expected = [high / (high + (1 - high) * 2), low / (low + (1 - low) * 2), low / (low * 4 + (1 - low) * 2)]
    assert [(row, pytest.approx(worth)) for row, worth in enumerate(expected)] == list(ranking)


def per_image(found: Candidates, state: LabelState, proposed_from: float = 0.5) -> list[tuple[int, float]]:
    strategy = strategies.choose(SelectionSettings(strategy="image_per_second"), COST, proposed_from)
    return list(strategy(found, state, np.random.default_rng(0)))


def test_image_per_second_sums_the_worth_of_an_image_over_its_scan_checks_and_drawings() -> None:
    found = images_of([2, 1], [0.8, 0.4, 0.9], uncertainty=[1, 0.5, 0.1])
    found = replace(found, box_consistency=[1, 1, 1], labels=[2, 2, 2])
    state = replace(two_class_state(2, 5), class_counts=np.array([20, 5, 0]), class_frequency=STATE.class_frequency)
    first = 0.8 * 1 + 0.4 * 0.5, 10 + (0.8 * 1 + 0.2 * 2) + 0.4 * 8
    second = 0.9 * 0.1, 10 + (0.9 * 1 + 0.1 * 2)
    share = 1.2 / (25 + 1.2)  # the objects expected on the first image count in p(l)
    assert per_image(found, state) == [
        (0, pytest.approx(first[0] / first[1])),
        (1, pytest.approx(second[0] * np.exp(-share) / second[1])),
    ]


def test_image_per_second_shows_other_classes_after_an_image_full_of_one() -> None:
    found = replace(
        images_of([4, 4, 3], [0.5] * 11, uncertainty=[1] * 11), box_consistency=[1] * 11, labels=[0] * 8 + [1] * 3
    )
    state = replace(two_class_state(3, 5, (1, 1)), hit_weights=np.array([20.0, 0, 0]))
    order = [image_id for image_id, _ in per_image(found, state)]
    assert order == [0, 2, 1]


def test_image_coreset_prefers_images_far_from_labelled_ones() -> None:
    state = replace(
        STATE,
        images=IMAGES[:4],
        image_features=np.array([[1.0], [5.0], [6.0], [3.0]]),
        labelled_image_features=np.array([[1.0]]),
    )
    assert list(of("image_coreset")(pool(), state, np.random.default_rng(0))) == [(2, 5), (3, 2), (1, 1), (0, 0)]


def test_cald_takes_the_least_consistent_and_of_those_first_the_ones_unlike_the_labelled() -> None:
    # Labelled: class 0 mostly (4 boxes an image, 20 of 25 of class 0). Budget 8: two images, so 2.4, three are mixed.
    images = ImageScores(
        np.arange(5),
        np.array([0.1, 0.2, 0.3, 0.4, 0.0]),
        np.array([[0.9, 0.0, 0.0], [0.0, 0.0, 0.9], [0.0, 0.9, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]),
    )
    state = replace(STATE, images=images, class_counts=np.array([16, 4, 0]), images_labelled=5, budget=8)
    # in: 4 (nothing detected, so first), 0 and 1; 1 shows a class never labelled, 0 the common one. Then 2 and 3.
    assert ranking("image_cald", pool(), state) == [4, 1, 0, 2, 3]


def test_cald_compares_softmaxes_of_class_scores_and_of_counts_an_image() -> None:
    """Three images that are equally inconsistent, the first of which has no detection. JS to the labelled images' mean
    counts: 0.230 and 0.177; reversed without softmaxes (0.295, 0.355) and by whole counts (0.441, 0.491)."""
    scores = np.array([[0.0, 0.0, 0.0], [0.5, 0.9, 0.2], [0.0, 0.1, 0.6]])
    images = ImageScores(np.arange(3), np.zeros(3), scores)
    state = replace(STATE, images=images, class_counts=np.array([18, 1, 14]), images_labelled=5, budget=20)
    assert ranking("image_cald", pool(), state) == [0, 1, 2]


def test_cald_reorders_no_more_than_the_head() -> None:
    """Five boxes an image: a budget of 20 covers four images, so 4.8, five, are reordered and the sixth is not."""
    scores = np.eye(3)[[0, 0, 0, 0, 1, 2, 2]]
    images = ImageScores(np.arange(7), np.arange(7) / 10, scores)
    state = replace(STATE, images=images, class_counts=np.array([20, 5, 0]), images_labelled=5, budget=20)
    assert ranking("image_cald", pool(), state) == [4, 0, 1, 2, 3, 5, 6]


def test_enms_divproto_skips_repetition_and_prefers_minorities() -> None:
    # Class 0 is common (20 boxes), the rarest half of two classes is class 1. Five boxes an image: a budget of 10 is
    # two images, of which 0.75 x 2 = 1.5, so 2, for class 1.
    left, right = [1.0, 0.0], [0.0, 1.0]
    candidates = images_of(
        [2, 1, 1, 1],
        [0.5, 0.5, 0.5, 0.4, 0.8],
        labels=np.array([0, 0, 1, 1, 1]),
        class_probs=np.full((5, 2), 0.5),
        features=np.array([left, left, left, left, right]),
    )
    state = LabelState(
        np.zeros(2), np.array([20, 5]), ImageScores(np.arange(4), np.zeros(4), np.zeros((4, 2))), 5, budget=10
    )
    # By entropy: 0 (0.69, its second box repeats the first), 1 (0.69), 2 (0.67), 3 (0.50). 0 shows no minority; 2 is
    # like 1 (cosine 1); 3 is not. So 1 and 3 first, then the rest by entropy. Plain entropy: 0, 1, 2, 3.
    found = list(of("enms_divproto")(candidates, state, np.random.default_rng(0)))
    assert [image for image, _ in found] == [1, 3, 0, 2]
    assert dict(found)[0] == pytest.approx(0.6931472)  # one box of the two


def test_enms_divproto_closes_a_minority_whose_quota_is_full() -> None:
    candidates = images_of(
        [1, 1, 1],
        [0.5, 0.6, 0.55],
        labels=np.array([0, 1, 1]),
        class_probs=np.full((3, 2), 0.5),
        features=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
    state = LabelState(
        np.zeros(2), np.array([20, 5]), ImageScores(np.arange(3), np.zeros(3), np.zeros((3, 2))), 5, budget=5
    )
    # By entropy 0, 2, 1; 2 and 1 show the minority. A budget of one image opens one place for it, of two images two.
    assert ranking("enms_divproto", candidates, state) == [2, 0, 1]
    assert ranking("enms_divproto", candidates, replace(state, budget=10)) == [2, 1, 0]
    assert ranking("enms_divproto", candidates, replace(state, budget=0)) == [0, 2, 1]


@pytest.mark.parametrize(("score", "order"), [(0.29, [1, 0, 2]), (0.31, [1, 2, 0])])
def test_enms_divproto_counts_a_minority_from_a_score_of_three_tenths(score: float, order: list[int]) -> None:
    candidates = images_of(
        [1, 1, 1],
        [0.5, 0.6, score],
        labels=np.array([0, 1, 1]),
        class_probs=np.full((3, 2), 0.5),
        features=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
    )
    state = LabelState(
        np.zeros(2), np.array([20, 5]), ImageScores(np.arange(3), np.zeros(3), np.zeros((3, 2))), 5, budget=10
    )
    # By entropy 0, 1, 2 (0.693, 0.673, 0.602 or 0.619). Two places are open for the minority, which 1 shows.
    assert ranking("enms_divproto", candidates, state) == order


def test_k_center_takes_points_that_are_not_numbers_once_each() -> None:
    points = np.array([[0.0, 0.0], [np.nan, 1.0], [3.0, 0.0], [9.0, np.nan], [1.0, 0.0]])
    for centres in (np.zeros((0, 2)), np.array([[0.0, 0.0], [np.nan, 0.0]])):
        rows = [row for row, _ in k_center(points, centres, first=0)]
        assert sorted(rows) == [0, 1, 2, 3, 4]
        assert [row for row in rows if row not in (1, 3)] == ([0, 2, 4] if len(centres) == 0 else [2, 4, 0])


def test_k_center_takes_equal_points_once_each() -> None:
    assert [row for row, _ in k_center(np.ones((4, 2)), np.zeros((0, 2)), first=0)] == [0, 1, 2, 3]


def two_class_state(images: int, budget: float, counts: tuple[int, ...] = (20, 5)) -> LabelState:
    """Five boxes an image in five labelled images."""
    scores = ImageScores(np.arange(images), np.zeros(images), np.zeros((images, len(counts))))
    return LabelState(np.zeros(len(counts)), np.array(counts), scores, 5, budget=int(budget))


def test_enms_divproto_sums_the_kept_entropies_and_weights_prototypes_by_them() -> None:
    # Image 0: two unlike boxes of class 1, of scores 0.5 and 0.95 (0.693 and 0.199 nats); image 1: one like their
    # weighted mean, (0.693, 0.199) / 0.721 = (0.961, 0.276), and far (cosine 0.7) from a plain sum's (0.707, 0.707).
    candidates = images_of(
        [2, 1],
        [0.5, 0.95, 0.5],
        labels=np.array([1, 1, 1]),
        class_probs=np.full((3, 2), 0.5),
        features=np.array([[1.0, 0.0], [0.0, 1.0], [1.0, -0.01]]),
    )
    found = list(of("enms_divproto")(candidates, two_class_state(2, 50), np.random.default_rng(0)))
    assert found[0] == (0, pytest.approx(0.6931472 + 0.1985152))
    score, prototypes, confidence = _describe(candidates, two_class_state(2, 50))
    assert prototypes[0][1] == pytest.approx([0.9614, 0.2753], abs=1e-3)
    assert confidence.tolist() == [[0, pytest.approx(0.95)], [0, pytest.approx(0.5)]]
    assert score[1] == pytest.approx(0.6931472)


def test_enms_divproto_takes_an_image_that_is_new_in_one_of_its_classes_and_compares_with_all_before() -> None:
    x, y, z = np.eye(3)
    candidates = images_of(
        [1, 1, 2, 1],
        [0.5, 0.52, 0.53, 0.4, 0.6],
        labels=np.array([1, 1, 1, 0, 1]),
        class_probs=np.full((5, 2), 0.5),
        features=np.array([x, y, x, z, x]),
    )
    # By entropy 2 (two boxes), 0, 1, 3. Image 2 opens with classes 0 and 1; 0 is like it in its only class; 1 is not;
    # 3 is like image 2, though not like the last one chosen. 0 and 3 come at the end, by entropy.
    assert ranking("enms_divproto", candidates, two_class_state(4, 50)) == [2, 1, 0, 3]
    # Image 0 first now (a higher entropy than 2's boxes alone): 2 repeats its class 1 but is new in class 0.
    sure = replace(candidates, scores=np.array([0.5, 0.52, 0.98, 0.97, 0.6]))
    assert ranking("enms_divproto", sure, two_class_state(4, 50)) == [0, 1, 2, 3]


def test_enms_divproto_charges_an_image_to_every_open_minority_that_it_shows() -> None:
    # Four classes, the rarest two (2 and 3) have one place each: 0.75 x 2 images / 2, rounded up.
    candidates = images_of(
        [2, 1, 1],
        [0.5, 0.5, 0.55, 0.6],
        labels=np.array([2, 3, 0, 3]),
        class_probs=np.full((4, 4), 0.5),
        features=np.eye(4),
    )
    state = two_class_state(3, 10, (20, 20, 5, 5))
    state = replace(state, images_labelled=10)  # five boxes an image
    # Image 0 takes both places, so the rest goes by entropy: 1 before 2, which shows class 3 too.
    assert ranking("enms_divproto", candidates, state) == [0, 1, 2]


@pytest.mark.parametrize(("cosine", "stays"), [(0.49, True), (0.51, False)])
def test_t_enms_is_a_half(cosine: float, stays: bool) -> None:
    unit = np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)]])
    assert (1 in entropy_nms(np.array([0.5, 0.4]), np.zeros(2, dtype=np.int64), unit)) == stays


@pytest.mark.parametrize(("cosine", "taken"), [(0.69, True), (0.71, False)])
def test_t_intra_is_seven_tenths(cosine: float, taken: bool) -> None:
    candidates = images_of(
        [1, 1, 1],
        [0.5, 0.55, 0.51],
        labels=np.array([1, 1, 0]),
        class_probs=np.full((3, 2), 0.5),
        features=np.array([[1.0, 0.0], [cosine, np.sqrt(1 - cosine**2)], [0.0, 1.0]]),
    )
    # 0 first; then 1, if it is unlike enough; 2 shows no minority but has more entropy than 1.
    assert ranking("enms_divproto", candidates, two_class_state(3, 50)) == ([0, 1, 2] if taken else [0, 2, 1])


@pytest.mark.parametrize(("wanted", "places"), [(4, 3), (5, 4)])
def test_beta_of_the_picks_go_to_the_rarest_alpha_of_the_classes(wanted: int, places: int) -> None:
    # Two classes, one of them rare: 0.75 x 4 = 3 and 0.75 x 5 = 3.75, rounded up, images for it; then by entropy, where
    # image 5 comes first with the common class.
    candidates = images_of(
        [1] * 6,
        [0.6, 0.61, 0.62, 0.63, 0.64, 0.5],
        labels=np.array([1, 1, 1, 1, 1, 0]),
        class_probs=np.full((6, 2), 0.5),
        features=np.eye(6),
    )
    assert ranking("enms_divproto", candidates, two_class_state(6, 5 * wanted)).index(5) == places


def test_entropy_nms_keeps_boxes_of_another_class_or_appearance() -> None:
    unit = np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0], [0.0, 1.0]])
    kept = entropy_nms(np.array([0.5, 0.6, 0.3, 0.1]), np.array([0, 0, 1, 0]), unit)
    # 1 first; 0 is similar (cosine 0.8) and is dropped; 3 is similar too (0.6); 2 is of another class
    assert kept.tolist() == [1, 2]


def test_a_queue_computes_a_ranking_only_as_far_as_it_is_read() -> None:
    made = []

    def numbers() -> Iterator[tuple[int, float]]:
        for i in range(3):
            made.append(i)
            yield i, 0.5

    queue = strategies.Queue(numbers())
    assert queue(1) == (1, 0.5)
    assert made == [0, 1]
    assert (queue(0), queue(2), queue(3), queue(3)) == ((0, 0.5), (2, 0.5), None, None)


@pytest.mark.parametrize("seeded", [0, 5, 300])
def test_k_center_picks_what_the_full_matrix_of_distances_would(seeded: int) -> None:
    dice = np.random.default_rng(1)
    points, centres = dice.normal(size=(60, 8)), dice.normal(size=(seeded, 8))
    nearest = np.full(60, np.inf)
    if seeded:
        nearest = np.linalg.norm(points[:, None] - centres[None], axis=2).min(axis=1)
    for row, far in islice(k_center(points, centres, first=7), 40):
        assert row == (7 if np.isinf(nearest).all() else nearest.argmax())
        if not np.isinf(nearest[row]):
            assert far == pytest.approx(nearest[row], abs=1e-3)
        nearest = np.minimum(nearest, np.linalg.norm(points - points[row], axis=1))
        nearest[row] = -1


def test_random_follows_its_seed_and_nothing_else() -> None:
    candidates = pool()
    boring = replace(candidates, uncertainty=np.zeros(40), scores=np.zeros(40), labels=np.zeros(40, dtype=np.int64))
    assert ranking("random", boring) == ranking("random", candidates)
    assert ranking("random", candidates, seed=1) != ranking("random", candidates, seed=0)


def test_random_asks_every_candidate_first_about_as_often() -> None:
    candidates = pool(4)
    first = [ranking("random", candidates, seed=seed)[0][1] for seed in range(400)]
    # 400 draws from 4: 100 each, standard deviation 8.7
    assert np.bincount(first, minlength=4) == pytest.approx([100] * 4, abs=35)
