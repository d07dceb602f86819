"""The open questions of a project that are sent to another tool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rarebox.labels.store import Store
from rarebox.project.project import Project
from rarebox.types import ImageRecord, Query


@dataclass(frozen=True, eq=False)
class Questions:
    """The open queries of the latest cycle, best first, their images, and the current classes.

    ``queries`` about boxes have indices into ``classes`` as guesses: classes that were merged into another are not
    among them. ``place_of`` gives that index for a label of the store.
    """

    cycle: int
    images: Mapping[int, ImageRecord]
    classes: tuple[str, ...]
    queries: Sequence[Query]
    place_of: Mapping[int, int]


def ask_ahead(root: Path, most: int) -> None:
    """Ask questions from the ranking of a project until ``most`` are open, within the budget.

    The page asks one question at a time; other tools receive many at once. Each image has at most one open question.
    """
    project = Project(root)
    try:
        cycle = project.cycle
        with project.store.transaction(writes=True):
            asker = project.asker(cycle)
            budget = project.budget(cycle)
            wanted = min(most - budget.open, budget.to_ask)
            while asker and wanted > 0 and (asked := asker.ask(wanted, skip_busy=True)):
                wanted -= len(asked)
    finally:
        project.store.close()


def open_questions(store: Store) -> Questions:
    """The unanswered questions. A box without a guess gets the first class."""
    with store.transaction():
        cycle = max(store.cycles(), default=0)
        images, (classes, place) = store.images(), classes_now(store)
        asked = store.unanswered(cycle)
    queries = [replace(query, guess=place[query.guess or 0]) for query in asked]
    return Questions(cycle, images, classes, queries, place)


def classes_now(store: Store) -> tuple[tuple[str, ...], dict[int, int]]:
    """The classes without those that were merged into another, and the index among them of each label of the store."""
    with store.transaction():
        names, counts_as = store.classes(), store.counts_as()
    live = [label for label in range(len(names)) if counts_as[label] == label]
    return tuple(names[label] for label in live), {label: live.index(counts_as[label]) for label in range(len(names))}
