"""Ask the questions of a cycle, and let the oracle answer them within the budget."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rarebox import strategies
from rarebox.core import seeds
from rarebox.core.progress import StageProgress
from rarebox.labels.cost import actions_of, price
from rarebox.loop import rules
from rarebox.loop.run import Ranked, Run
from rarebox.pool.proposals import proposals
from rarebox.types import Answer, Candidates, Query


def label_initial_pool(run: Run) -> None:
    """Label random images of the pool completely: the same ones for every strategy of a seed."""
    wanted, images = run.settings.initial_images, run.pool.records
    if wanted > len(images):
        run.notes.append(f"initial_images is {wanted}, the pool has {len(images)} images: all are labelled")
    by_id = sorted(image.id for image in images)
    order = seeds.stream(run.settings.seed, "initial pool").permutation(len(by_id))[:wanted]
    asked = run.store.queries(1) or run.store.ask(1, [Query(by_id[int(i)]) for i in order])
    unanswered = {q.id for q in run.store.unanswered(1)}
    answer_all(run, [query for query in asked if query.id in unanswered])


def ask(run: Run, cycle: int, ranked: Ranked) -> None:
    """Ask what the strategy ranks first, and let the oracle answer, until the budget is spent."""
    settings = run.settings
    answer_all(run, run.store.unanswered(cycle), ranked)
    whole_images = settings.selection.strategy in strategies.IMAGE
    with run.stage("ask") as report:
        if whole_images:
            left = ask_about_images(run, cycle, ranked, report)
        else:
            left = ask_about_boxes(run, cycle, ranked, report)
    if left > 0:
        total, what = rules.total_of(settings, cycle), "images" if whole_images else "candidates"
        run.notes.append(
            f"no {what} are left: {round(total - left, 1)} of the budget of {total} {settings.budget_unit} were spent"
        )


def ask_about_boxes(run: Run, cycle: int, ranked: Ranked, report: StageProgress) -> float:
    """Explore if that is due, then ask about candidates from the top of the queue. Return what is left to spend."""
    asker = rules.CycleAsker(
        run.settings, run.store, cycle, ranked.queue, ranked.open_per_class, lambda: (i.id for i in run.pool.records)
    )
    budget = run.budget(cycle)
    while budget.to_ask > 0 and (asked := asker.ask(budget.to_ask)):
        budget = answer_and_report(run, cycle, asked, ranked, report)
    return budget.left


def ask_about_images(run: Run, cycle: int, ranked: Ranked, report: StageProgress) -> float:
    """Have whole images labelled from the top of the queue. Return what is left to spend.

    The cost of an image is unknown before it is labelled, so the last one may exceed the budget (decisions row 15).
    """
    place = max((int(q.why["rank"]) + 1 for q in run.store.queries(cycle) if q.why), default=0)
    budget = run.budget(cycle)
    while budget.to_ask > 0 and (item := ranked.queue(place)):
        image_id, utility = item
        query = Query(image_id, utility=utility, why={"rank": place, "cycle": cycle})
        budget = answer_and_report(run, cycle, run.store.ask(cycle, [query]), ranked, report)
        place += 1
    return budget.left


def answer_and_report(
    run: Run, cycle: int, asked: Sequence[Query], ranked: Ranked, report: StageProgress
) -> rules.Budget:
    """Let the oracle answer, report how much of the budget is spent, and return it."""
    answer_all(run, asked, ranked)
    budget = run.budget(cycle)
    report(round(budget.spent), budget.total, run.settings.budget_unit)
    return budget


def answer_all(run: Run, queries: Sequence[Query], ranked: Ranked | None = None) -> None:
    """Let the oracle answer queries, and record the answers. Without an oracle the queries wait for people."""
    if run.oracle:
        shown = shown_on(run, queries, ranked)
        run.store.record([answer(run, query, shown.get(query.image_id)) for query in queries])


def answer(run: Run, query: Query, shown: Candidates | None) -> Answer:
    """The oracle's answer. For a whole image with proposals it has the time that checking them takes, because the
    store does not keep the proposals."""
    assert run.oracle
    if query.box is not None or shown is None:
        return run.oracle.answer(query)
    said = run.oracle.answer(query, shown.boxes)
    return replace(said, milliseconds=price(actions_of(query, said, proposals=shown), run.settings.cost))


def shown_on(run: Run, queries: Sequence[Query], ranked: Ranked | None) -> Mapping[int, Candidates]:
    """The proposals on the images of queries about whole images, by image id; none unless ``oracle.verify``."""
    whole = {query.image_id for query in queries if query.box is None}
    if ranked is None or not run.settings.oracle.verify or not whole:
        return {}
    return proposals(run.settings, ranked.pool, whole, run.store.labels(up_to_cycle=ranked.cycle - 1))
