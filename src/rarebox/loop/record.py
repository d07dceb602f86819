"""The record of a cycle: the line of ``metrics.json``."""

from collections.abc import Mapping, Sequence

import numpy as np

from rarebox.data import listings
from rarebox.evaluation import imbalance_factor
from rarebox.labels.cost import Action, bill
from rarebox.labels.targets import count_sure
from rarebox.loop.ask import shown_on
from rarebox.loop.metrics import CycleRecord, Measures
from rarebox.loop.run import Ranked, Run
from rarebox.pool import ranking
from rarebox.types import Ints, Targets


def record(
    run: Run, cycle: int, ranked: Ranked | None, targets: Mapping[int, Targets], result: Measures
) -> CycleRecord:
    """What one cycle spent, chose and reached, as it stands in ``metrics.json``."""
    store, classes = run.store, len(run.classes)
    labels, answered = store.labels(up_to_cycle=cycle), store.answered(cycle)
    boxes = [(q, a) for q, a in answered if q.box is not None]
    so_far = [store.spent(before) for before in range(1, cycle + 1)]  # later ones may be there, too
    shown = shown_on(run, store.queries(cycle), ranked)
    cost = run.settings.cost
    bills = [*(bill(store, before, cost) for before in range(1, cycle)), bill(store, cycle, cost, shown)]
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

    frequency = ranked.state.class_frequency if ranked else np.zeros(classes)

    def counted(found: Sequence[int | None] | Ints) -> dict[str, int]:
        return by_class(run, np.bincount(np.array(found, np.int64), minlength=classes))

    return {
        "cycle": cycle,
        "labels": sum(each.labels for each in so_far),
        "reviews": sum(each.reviews for each in so_far),
        "labels_this_cycle": spent.labels,
        "reviews_this_cycle": spent.reviews,
        "seconds_spent": sum(each.milliseconds for each in bills) / 1000,
        "seconds_spent_this_cycle": bills[-1].seconds,
        "actions_this_cycle": {action.value: bills[-1].actions[action] for action in Action},
        "hits": len(hits),
        "images_full": sum(said.complete for said in labels.values()),
        "images_partial": sum(not said.complete and len(said.boxes) > 0 for said in labels.values()),
        **result,
        "candidates_per_class": by_class(run, ranked.open_per_class if ranked else np.zeros(classes, np.int64)),
        "uncertainty_would_select": counted(most_uncertain),
        "selected_per_class": counted([q.guess for q, _ in boxes]),
        "hits_per_class": counted(hits),
        "labels_per_class": counted(ranking.joined([a.labels for _, a in answered])),
        "human_per_class": by_class(run, human),
        "pseudo_per_class": by_class(run, count_sure(targets, classes, pseudo_above)),
        "pseudo_boxes": sum(int((t.source == "pseudo").sum()) for t in targets.values()),
        "sure_per_class": by_class(run, sure),
        "class_frequency": dict(zip(run.classes, frequency.tolist(), strict=True)),
        "imbalance_factor": or_null(imbalance_factor(human)),
        "notes": list(run.notes),
        "seconds": {name: round(value, 2) for name, value in run.seconds.items()},
    }


def by_class(run: Run, values: Ints) -> dict[str, int]:
    """Counts (K,) by class name."""
    return dict(zip(run.classes, values.tolist(), strict=True))


def or_null(value: float) -> float | None:
    """Replace NaN, which JSON lacks and which stands for "no truth to measure on", by None."""
    return None if value != value else value


def count_classes(split: listings.Split, num_classes: int) -> list[int]:
    """Objects of each class in a split, difficult ones included: (K,)."""
    return np.bincount(ranking.joined([t.labels for t in split.truth.values()]), minlength=num_classes).tolist()
