"""What every strategy must keep to, and one case each where only that method ranks so."""

import inspect
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rarebox import config, loop, seeds, strategies
from rarebox.errors import UserError
from rarebox.oracle import SimulatedOracle
from rarebox.run_folder import RunFolder
from rarebox.store import Store
from rarebox.types import Candidates, GroundTruth, ImageRecord, LabelState

NAMES = sorted(strategies.strategies(sigma=1.0))


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
    )


STATE = LabelState(np.array([0.7, 0.3, 0.0]), np.array([20, 5, 0]))


def ranking(name: str, candidates: Candidates, state: LabelState = STATE, seed: int = 0) -> list[tuple[int, int]]:
    """(image id, box index) of the candidates, first asked first."""
    utility = strategies.choose(name)(candidates, state, seeds.stream(seed, "strategy", 2))
    assert utility.shape == (len(candidates),)
    order = strategies.rank(candidates, utility)
    return [(int(candidates.image_id[i]), int(candidates.box_index[i])) for i in order]


# ------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_names_each_candidate_once_and_repeats_with_its_seed(name: str) -> None:
    first = ranking(name, pool())
    assert sorted(first) == [(i // 5, i % 5) for i in range(40)]
    assert ranking(name, pool()) == first


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_pool_changes_no_ranking(name: str) -> None:
    shuffled = pool()[np.random.default_rng(3).permutation(40)]
    assert ranking(name, shuffled) == ranking(name, pool())


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_pool_has_an_empty_ranking(name: str) -> None:
    assert ranking(name, Candidates.none(3)) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_changes_nothing_that_it_is_given(name: str) -> None:
    candidates, state = pool(), LabelState(STATE.class_frequency.copy(), STATE.class_counts.copy())
    for table in (candidates, state):
        for f in fields(table):
            getattr(table, f.name).flags.writeable = False
    ranking(name, candidates, state)  # writing into any of it would raise


@pytest.mark.parametrize("name", NAMES)
def test_a_strategy_is_handed_candidates_the_label_state_and_randomness_only(name: str) -> None:
    free = [
        p
        for p in inspect.signature(strategies.choose(name)).parameters.values()
        if p.kind is not inspect.Parameter.KEYWORD_ONLY
    ]
    assert [p.name for p in free] == ["candidates", "state", "rng"]
    assert [f.name for f in fields(LabelState)] == ["class_frequency", "class_counts"]


def asked(name: str, labels: np.ndarray, folder: Path) -> list[tuple[int, list[float]]]:
    """The boxes that a cycle asks about, in order, when the objects of the pool have these labels (8, 5)."""
    candidates = pool()
    truth = {
        i: GroundTruth(candidates.boxes[candidates.image_id == i], labels[i], np.zeros(5, dtype=bool)) for i in range(8)
    }
    records = [ImageRecord(i, f"{i}.png", 100, 100) for i in range(8)]
    settings = config.resolve(changes={"selection.strategy": name, "budget": [20], "initial_images": 2})
    data: Any = SimpleNamespace(classes=("a", "b", "c"))
    pictures: Any = SimpleNamespace(records=records)
    with Store(folder / "labels.sqlite", classes=data.classes, flush=False) as store:
        store.add_images(records)
        run = loop.Run(
            RunFolder(folder), settings, data, pictures, pictures, truth, store, SimulatedOracle(truth), lambda *_: None
        )
        store.open_cycle(1)
        loop.label_initial_pool(run)
        store.open_cycle(2)
        loop.ask(run, 2, candidates)
        assert sum(len(answer.boxes) for _, answer in store.answered(2)) == 20
        return [(q.image_id, q.box.tolist()) for q in store.queries(2) if q.box is not None]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_is_asked_when_every_label_of_the_truth_is_scrambled(name: str, tmp_path: Path) -> None:
    labels = np.random.default_rng(8).integers(0, 3, (8, 5))
    folders = [tmp_path / "true", tmp_path / "scrambled"]
    for folder in folders:
        folder.mkdir()
    assert asked(name, labels, folders[0]) == asked(name, (labels + 1) % 3, folders[1])


def test_equal_utilities_are_asked_by_image_and_box_index() -> None:
    candidates = pool()[np.random.default_rng(3).permutation(40)]
    order = strategies.rank(candidates, np.zeros(40))
    assert candidates.image_id[order].tolist() == [i // 5 for i in range(40)]
    assert candidates.box_index[order].tolist() == [i % 5 for i in range(40)]


def test_an_unknown_strategy_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UserError, match="unknown strategy 'class_balance'; did you mean 'class_balanced'"):
        strategies.choose("class_balance")


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
    utility = strategies.choose("class_balanced")(candidates, STATE, np.random.default_rng(0))
    assert utility == pytest.approx([0.4965853, 0.5926546, 0.55])


def test_sigma_says_how_much_rare_classes_are_favoured() -> None:
    # sigma 0.1: e^-7 and e^-3 leave next to nothing;  sigma 100: hardly a difference to plain uncertainty
    candidates = three([1.0, 0.8, 0.55], [0, 1, 2])
    for sigma, wanted in ((0.1, [2, 1, 0]), (100.0, [0, 1, 2])):
        utility = strategies.choose("class_balanced", sigma)(candidates, STATE, np.random.default_rng(0))
        assert np.argsort(-utility).tolist() == wanted


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
