"""The questions of a cycle, and the answers of the oracle within the budget."""

from collections.abc import Sequence

import numpy as np

from rarebox import strategies
from rarebox.core import seeds
from rarebox.core.progress import StageProgress
from rarebox.loop.run import Ranked, Run
from rarebox.pool.asker import Asker
from rarebox.pool.ranking import LazyRanking
from rarebox.types import Ints, Query


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


def ask_about_images(run: Run, cycle: int, queue: LazyRanking, report: StageProgress) -> int:
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
