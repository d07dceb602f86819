"""What answers cost: each answered question becomes actions, and these become seconds (decisions row 43).

The same functions serve simulations, where nobody's time is recorded, and projects, where it is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from enum import StrEnum
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from rarebox.config import CostSettings
from rarebox.core.boxes import pair_up, paired_iou
from rarebox.labels.store import Store
from rarebox.types import Answer, Candidates, Query, Verdict

SAME_BOX = 0.99
"""From this IoU with the box shown up, a box was accepted and not mended: the page rounds coordinates."""

MENDED = 0.5
"""From this IoU with a proposal up, a box of a whole image was mended and not drawn."""


class Action(StrEnum):
    """What an annotator does, by the name of its cost in :class:`rarebox.config.CostSettings`."""

    LOOK = "look"
    CONFIRM = "confirm"
    CLASS_KEY = "class_key"
    MEND = "mend"
    REJECT = "reject"
    CANNOT_TELL = "cannot_tell"
    DRAW = "draw"
    SCAN = "scan"


Actions = Counter[Action]
"""How often each action was done."""

HARDEST_FIRST = (
    Action.DRAW,
    Action.SCAN,
    Action.CANNOT_TELL,
    Action.MEND,
    Action.CLASS_KEY,
    Action.REJECT,
    Action.CONFIRM,
    Action.LOOK,
)

Pace = dict[Action, float]
"""For each main action, one annotator's time divided by the price of the answer; 1 if the action is missing."""

EVIDENCE = 5
"""The weight of the price when a pace is fitted, in answers."""

ACTION_WITHOUT_BOX = {
    Verdict.NOT_AN_OBJECT: Action.REJECT,
    Verdict.ALREADY_LABELLED: Action.REJECT,
    Verdict.CANNOT_TELL: Action.CANNOT_TELL,
}
"""The action behind an answer without a box."""


def actions_of(query: Query, answer: Answer, new_image: bool = True, proposals: Candidates | None = None) -> Actions:
    """The actions that an answer takes; none if it withdraws another one.

    A whole image is scanned, and each of its boxes is drawn, or checked if it was shown as one of the ``proposals``. A
    box shown is looked at if its image is new to the annotator; then it is confirmed, mended or rejected, and a class
    other than the guess costs a key. Of several boxes in the answer to one box, the further ones are drawn, as is a box
    that nobody asked about.
    """
    if answer.verdict is Verdict.WITHDRAWN:
        return Counter()
    if query.box is None:
        checked = check_actions(answer, proposals) if proposals is not None else Counter[Action]()
        drawn = len(answer.boxes) - checked[Action.CONFIRM] - checked[Action.MEND]
        return checked + Counter({Action.SCAN: 1, Action.DRAW: drawn})
    if query.asked_by is not None:
        return Counter({Action.DRAW: len(answer.boxes)})
    look = Counter({Action.LOOK: int(new_image)})
    if not len(answer.boxes):
        return look + Counter({ACTION_WITHOUT_BOX.get(answer.verdict, Action.REJECT): 1})
    kept = paired_iou(query.box, answer.boxes).max() >= SAME_BOX
    judged = Action.CONFIRM if kept else Action.MEND
    corrected = query.guess not in answer.labels.tolist()
    return look + Counter({judged: 1, Action.CLASS_KEY: int(corrected), Action.DRAW: len(answer.boxes) - 1})


def check_actions(answer: Answer, proposals: Candidates) -> Actions:
    """The actions by which the proposals of a whole image became its answer.

    Each box of the answer and each proposal are in at most one pair, the largest IoU first. A pair is confirmed if it
    is the same box, and mended from an IoU of :data:`MENDED` up; another class costs a key. The other proposals are
    rejected.
    """
    found: Actions = Counter({Action.REJECT: len(proposals)})
    for row, shown in pair_up(answer.boxes, proposals.boxes, MENDED):
        kept = paired_iou(answer.boxes[row], proposals.boxes[shown]) >= SAME_BOX
        found[Action.REJECT] -= 1
        found[Action.CONFIRM if kept else Action.MEND] += 1
        found[Action.CLASS_KEY] += int(proposals.labels[shown] != answer.labels[row])
    return found


def price(actions: Actions, cost: CostSettings) -> int:
    """What actions cost, in milliseconds: whole numbers, whose sums do not depend on their order."""
    return sum(count * round(1000 * getattr(cost, action)) for action, count in actions.items())


def dearest_box(cost: CostSettings) -> float:
    """The most that a question about one box is expected to cost, in seconds."""
    return cost.look + cost.class_key + max(cost.confirm, cost.mend, cost.reject, cost.cannot_tell)


def milliseconds(query: Query, answer: Answer, cost: CostSettings, new_image: bool = True) -> int:
    """What an answer cost: the recorded time, at most ``cost.longest`` times the price of its actions.

    Without a recorded time (a simulation, most imports) it is that price, or 0 for a box that nobody asked about.
    """
    worth = price(actions_of(query, answer, new_image), cost)
    if answer.milliseconds:
        return min(answer.milliseconds, round(cost.longest * worth))
    return worth if query.asked_by is None else 0


def main_action(actions: Actions) -> Action:
    """The action that an answer is named by: the hardest one."""
    return next(action for action in HARDEST_FIRST if actions[action])


def fit_pace(timed: Iterable[tuple[Actions, int]], cost: CostSettings) -> Pace:
    """How fast one annotator is: ``timed`` are the actions and milliseconds of the annotator's answers.

    For each main action it is the median of recorded time over price, so that breaks have no effect, averaged with 1
    as if :data:`EVIDENCE` answers had taken exactly their price.
    """
    ratios: dict[Action, list[float]] = {}
    for actions, took in timed:
        if worth := price(actions, cost):
            ratios.setdefault(main_action(actions), []).append(took / worth)
    return {
        action: (len(found) * median(found) + EVIDENCE) / (len(found) + EVIDENCE) for action, found in ratios.items()
    }


def expected_seconds(actions: Actions, cost: CostSettings, pace: Pace) -> float:
    """How long an answer is expected to take an annotator of this pace."""
    return price(actions, cost) / 1000 * pace.get(main_action(actions), 1.0)


def on_new_images(image_of: Iterable[tuple[int, int]]) -> set[int]:
    """The questions whose image differs from that of the question before: ``image_of`` are (question, image) in the
    order asked."""
    order = [(0, -1), *image_of]
    return {number for (_, before), (number, image_id) in pairwise(order) if image_id != before}


class Bill(NamedTuple):
    """What answers cost together, in milliseconds, and the actions behind them."""

    milliseconds: int
    actions: Actions

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000


def bill(store: Store, cycle: int, cost: CostSettings, proposals: Mapping[int, Candidates] | None = None) -> Bill:
    """The bill of one cycle: every answer counts, corrected ones and second opinions too, because each took time.

    ``proposals`` are the detections that were shown on whole images, by image id. They change the actions. They change
    the seconds only of answers without a recorded time.
    """
    with store.transaction():
        asked = [(query.id, query.image_id) for query in store.queries(cycle) if query.asked_by is None]
        every, counts_as = store.answered(cycle, every=True), store.counts_as()
    new, spent, actions = on_new_images(asked), 0, Actions()
    for query, answer in every:
        query = query if query.guess is None else replace(query, guess=int(counts_as[query.guess]))
        spent += milliseconds(query, answer, cost, query.id in new)
        actions += actions_of(query, answer, query.id in new, (proposals or {}).get(query.image_id))
    return Bill(spent, actions)
