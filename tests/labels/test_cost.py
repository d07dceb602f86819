"""What answers cost, by hand. Boxes of width 10 on a line; IoU of two of them, d apart, is (10 - d) / (10 + d)."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from rarebox.config import CostSettings
from rarebox.labels.cost import (
    Action,
    actions_of,
    bill,
    expected_seconds,
    fit_pace,
    main_action,
    milliseconds,
    on_new_images,
    price,
)
from rarebox.labels.leases import People
from rarebox.labels.oracle import SimulatedOracle
from rarebox.labels.store import Store
from rarebox.types import Answer, Candidates, GroundTruth, ImageRecord, Query, Verdict

COST = CostSettings(look=1, confirm=2, class_key=4, mend=8, reject=16, cannot_tell=32, draw=64, scan=128, longest=3)
"""Powers of two: every sum says which actions it holds."""


def box(x: float) -> list[float]:
    return [x, 0, x + 10, 10]


def asked(x: float, guess: int | None = 0, asked_by: str | None = None) -> Query:
    return Query(1, np.array(box(x), dtype=np.float32), guess, id=1, asked_by=asked_by)


def said(*boxes: float, label: int = 0, verdict: Verdict = Verdict.OBJECT, ms: int = 0) -> Answer:
    return Answer(1, np.array([box(x) for x in boxes]), np.full(len(boxes), label), verdict, milliseconds=ms)


def nothing(verdict: Verdict, ms: int = 0) -> Answer:
    return said(verdict=verdict, ms=ms)


WHOLE = Query(1, id=1)
DRAWN = asked(0, asked_by="anna")
CASES: list[tuple[str, Query, Answer, float]] = [
    ("confirmed", asked(0), said(0), 1 + 2),
    ("confirmed with another class", asked(0), said(0, label=1), 1 + 2 + 4),
    ("a box without a guess needs its class", asked(0, None), said(0), 1 + 2 + 4),
    ("rounded by the page", asked(0.004), said(0), 1 + 2),
    ("mended: IoU 9 / 11", asked(1), said(0), 1 + 8),
    ("mended with another class", asked(1), said(0, label=2), 1 + 8 + 4),
    ("two objects in one box: one is mended, one drawn", asked(1), said(0, 3), 1 + 8 + 64),
    ("rejected", asked(0), nothing(Verdict.NOT_AN_OBJECT), 1 + 16),
    ("already labelled", asked(0), nothing(Verdict.ALREADY_LABELLED), 1 + 16),
    ("cannot tell", asked(0), nothing(Verdict.CANNOT_TELL), 1 + 32),
    ("a whole image with three objects", WHOLE, said(0, 20, 40), 128 + 3 * 64),
    ("an empty image", WHOLE, nothing(Verdict.OBJECT), 128),
    ("an image that cannot be labelled", WHOLE, nothing(Verdict.CANNOT_TELL), 128),
    ("withdrawn", asked(0), nothing(Verdict.WITHDRAWN), 0),
]


@pytest.mark.parametrize(("name", "query", "answer", "seconds"), CASES, ids=[case[0] for case in CASES])
def test_the_price_of_one_answer(name: str, query: Query, answer: Answer, seconds: float) -> None:
    assert price(actions_of(query, answer), COST) == milliseconds(query, answer, COST) == 1000 * seconds


def test_the_look_at_an_image_is_paid_once_while_questions_stay_on_it() -> None:
    assert on_new_images([(1, 7), (2, 7), (5, 8), (6, 7)]) == {1, 5, 6}
    assert actions_of(asked(0), said(0), new_image=False) == Counter({Action.CONFIRM: 1})
    assert actions_of(WHOLE, said(0), new_image=False) == actions_of(WHOLE, said(0))  # scanning is looking


def test_recorded_time_counts_but_not_a_coffee_break() -> None:
    assert milliseconds(asked(0), said(0, ms=1234), COST) == 1234
    assert milliseconds(asked(0), said(0, ms=10**7), COST) == 3 * 3000  # three times look and confirm
    assert milliseconds(asked(0), nothing(Verdict.WITHDRAWN, ms=900), COST) == 0
    assert milliseconds(DRAWN, said(0, ms=5000), COST) == 5000
    assert milliseconds(DRAWN, said(0), COST) == 0  # an import: nobody is known to have spent time on it


def test_the_pace_of_one_annotator_is_a_median_that_starts_from_the_price() -> None:
    """With a look, a confirmation is worth 3 s, a mended box with a key 13 s, an image with two objects 256 s."""
    confirmed, mended = actions_of(asked(0), said(0)), actions_of(asked(1), said(0, label=2))
    image = actions_of(WHOLE, said(0, 20))
    assert [main_action(one) for one in (confirmed, mended, image)] == [Action.CONFIRM, Action.MEND, Action.DRAW]
    assert fit_pace([], COST) == {}
    assert expected_seconds(mended, COST, {}) == 13
    # Four confirmations at half the price and a coffee break: the median is 0.5; (5 x 0.5 + 5 x 1) / 10.
    timed = [*[(confirmed, 1500)] * 4, (confirmed, 900_000), (mended, 26_000)]
    pace = fit_pace([*timed, (actions_of(asked(0), nothing(Verdict.WITHDRAWN)), 700)], COST)
    assert pace == {Action.CONFIRM: pytest.approx(0.75), Action.MEND: pytest.approx((2 + 5) / 6)}
    assert expected_seconds(confirmed, COST, pace) == pytest.approx(3 * 0.75)
    assert expected_seconds(image, COST, pace) == 256
    many = fit_pace([(confirmed, 1500)] * 95, COST)
    assert many[Action.CONFIRM] == pytest.approx(0.525)


def test_every_cost_has_an_action() -> None:
    assert {*Action} == CostSettings.model_fields.keys() - {"longest"}


def record(store: Store, cycle: int, *pairs: tuple[Query, Answer]) -> None:
    store.open_cycle(cycle)
    for query, answer in pairs:
        (query,) = store.ask(cycle, [query])
        store.record([Answer(query.id, answer.boxes, answer.labels, answer.verdict, "anna", answer.milliseconds)])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "labels.sqlite", classes=("cat", "dog"), flush=False)
    made.add_images(ImageRecord(i, f"{i}.jpg", 100, 100) for i in (1, 2))
    return made


def test_a_bill_adds_up_one_cycle_with_corrections(store: Store) -> None:
    record(store, 1, (WHOLE, said(0, 20)))
    there = Query(2, np.array(box(0), dtype=np.float32), 0)
    record(store, 2, (asked(0), said(0)), (asked(20), nothing(Verdict.NOT_AN_OBJECT)), (there, said(3, ms=2000)))
    last = store.queries(2)[-1]
    store.record([Answer(last.id, np.array([box(0)]), np.array([0]), Verdict.OBJECT, "anna", 500)])
    assert bill(store, 1, COST).seconds == 128 + 2 * 64
    paid = bill(store, 2, COST)
    # Confirmed; rejected in the same image, without a look; mended in another image, then corrected.
    assert paid.seconds == (1 + 2) + 16 + 2 + 0.5
    assert paid.actions == Counter({Action.LOOK: 1 + 2, Action.CONFIRM: 1 + 1, Action.REJECT: 1, Action.MEND: 1})
    store.close()


def test_a_guess_of_a_merged_class_is_right(store: Store) -> None:
    record(store, 2, (asked(0, guess=1), said(0, label=0)))
    assert bill(store, 2, COST).seconds == 1 + 2 + 4
    People(store).merge_class(1, 0, "anna")
    assert bill(store, 2, COST).seconds == 1 + 2
    store.close()


def test_the_oracle_confirms_mends_and_rejects() -> None:
    objects = GroundTruth(np.array([box(0), box(40)]), np.array([0, 1]), np.zeros(2, bool))
    oracle = SimulatedOracle({1: objects}, accept_iou=0.75)

    def kinds(shown: Sequence[float]) -> list[str]:
        return [str(a) for x in shown for a in actions_of(asked(x), oracle.answer(asked(x)), new_image=False)]

    # 1 away: IoU 0.82. 3 away: IoU 0.54, and of the class that was not guessed. Then nothing new is left.
    assert kinds([1, 43, 0, 80]) == ["confirm", "mend", "class_key", "reject", "reject"]


def shown(*places: float, labels: Sequence[int] = ()) -> Candidates:
    """Proposals on image 1, of class 0 if no ``labels`` are given."""
    some = np.arange(len(places))
    boxes = np.array([box(x) for x in places]).reshape(-1, 4)
    labelled, some = np.array(labels or some * 0), some.astype(np.float32)
    return Candidates(some.astype(int) * 0 + 1, some.astype(int), boxes, labelled, some, some, some, some[:, None])


CHECKS: list[tuple[str, Candidates, Answer, float]] = [
    ("no proposals", shown(), said(0, 20), 128 + 2 * 64),
    ("confirmed, and one drawn", shown(0), said(0, 20), 128 + 2 + 64),
    ("confirmed with another class", shown(0, labels=[3]), said(0), 128 + 2 + 4),
    ("mended: IoU 9 / 11", shown(1), said(0), 128 + 8),
    ("too far to mend: IoU 1 / 3", shown(5), said(0), 128 + 16 + 64),
    ("rejected in an empty image", shown(0, 20), nothing(Verdict.OBJECT), 128 + 2 * 16),
    ("each proposal counts once: the nearer one is confirmed", shown(0), said(2, 0), 128 + 2 + 64),
    ("each box counts once: the other proposal is rejected", shown(0, 1), said(0), 128 + 2 + 16),
]


@pytest.mark.parametrize(("proposals", "answer", "wanted"), [one[1:] for one in CHECKS], ids=[one[0] for one in CHECKS])
def test_checking_the_proposals_of_a_whole_image(proposals: Candidates, answer: Answer, wanted: float) -> None:
    assert price(actions_of(WHOLE, answer, proposals=proposals), COST) == 1000 * wanted
