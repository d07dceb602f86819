"""The page of a grid: the differences in words, and the curves, differences, classes and tables of each group."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rarebox.core.files import write_text
from rarebox.grid import measures, paper, results, statistics
from rarebox.grid.results import Group
from rarebox.grid.statistics import ENOUGH_SEEDS
from rarebox.report import drawing, grid_figures, grid_tables
from rarebox.report.drawing import Panel
from rarebox.report.grid_tables import Table
from rarebox.report.page import render
from rarebox.report.wording import listed, number, plural

MOST_NAMED = 8
"""The most methods that a sentence names; the figures show all."""


@dataclass(frozen=True, eq=False)
class GroupPart:
    """The part of the page about one group."""

    group: Group
    anchor: str
    findings: list[str]
    panels: dict[str, list[Panel]]
    tables: list[Table]


def write(out: Path, groups: Sequence[Group]) -> Path:
    """Write ``report.html``, ``tables.md`` and ``figures/`` into an existing folder, and return the page's path."""
    styles = grid_figures.styles_of(groups)
    parts: list[GroupPart] = []
    with drawing.style():
        for i, group in enumerate(groups, start=1):
            prefix = f"group{i}_" if len(groups) > 1 else ""
            drawn = grid_figures.of_group(group, styles) if group.methods else {}
            panels = {
                section: [drawing.publish(panel, out / "figures", prefix) for panel in some]
                for section, some in drawn.items()
            }
            parts.append(GroupPart(group, f"group{i}", findings(group), panels, grid_tables.tables(group)))
    page = render(
        "grid.html.j2",
        parts=parts,
        headline=headline(groups),
        about=about(groups),
        caution=grid_tables.caution(groups),
        failed=list(dict.fromkeys(run for group in groups for run in group.failed)),
    )
    write_text(out / "tables.md", grid_tables.markdown(groups))
    write_text(out / "report.html", page)
    return out / "report.html"


# ------------------------------------------------------------------------------------------------ words


def headline(groups: Sequence[Group]) -> str:
    """Whether the paper's whole method is ahead of plain uncertainty, if the grid has both; else what is compared."""
    steps: list[statistics.Difference] = []
    for group in groups:
        whole, plain = (paper.ablation(group).get(row) for row in ("+ TSPL", "U"))
        if whole and plain:
            values = measures.measures(group)["AP50"]
            steps.append(statistics.paired(values[whole], values[plain]))
    known = [step for step in steps if step.n]
    if not known:
        names = {name for group in groups for name in group.methods}
        return f"{plural(len(names), 'method')} compared in {plural(len(groups), 'setting')}."
    who = "The paper’s whole method ends"
    if len(known) > 1:
        above, below = sum(step.sign > 0 for step in known), sum(step.sign < 0 for step in known)
        rest = len(known) - above - below
        return (
            f"{who} above plain uncertainty in {above} of {len(known)} settings, below it in {below}; in {rest} the "
            "seeds are inconclusive."
        )
    step = known[0]
    where = f"{number(abs(step.mean), 3)} AP50 {'above' if step.mean >= 0 else 'below'} plain uncertainty"
    if step.n == 1:
        return f"{who} {where}, with a single seed."
    verdict = "" if step.sign else f"; {step.n} seeds cannot distinguish this from chance"
    return f"{who} {where}{verdict}."


def about(groups: Sequence[Group]) -> str:
    """The number of runs, finished and failed."""
    runs = dict.fromkeys(run for group in groups for run in group.runs)  # a ceiling may be in several groups
    failed = sum(run.reason is not None for run in runs)
    text = f"{plural(len(runs) - failed, 'run')} finished"
    return f"{text}, {failed} failed." if failed else f"{text}, none failed."


def findings(group: Group) -> list[str]:
    """The results of a group in words; only intervals decide what is called a difference."""
    if not group.methods:
        return ["No run has finished here."]
    best = measures.ranked(group)[0]
    reached = statistics.spread(results.ap50(run.cycles[-1]) for run in group.methods[best].values())
    said = [
        f"{plural(len(group.methods), 'method')} with {_seeds(group)}.",
        f"The highest final AP50 is that of “{best}”, {number(reached.mean, 3)}"
        + (f"; training on all labels reaches {number(group.ceiling, 3)}." if group.full else "."),
        *(_against(group, label, reference) for label, reference in paper.references(group).items()),
    ]
    missing = [label for label in paper.REFERENCES if label not in paper.references(group)]
    if missing:
        said.append(f"The grid has no {' and no '.join(missing)} to compare with.")
    if group.failed:
        said.append(
            f"{plural(len(group.failed), 'run')} failed and {'is' if len(group.failed) == 1 else 'are'} left out."
        )
    return said


def _seeds(group: Group) -> str:
    numbers = sorted({len(runs) for runs in group.methods.values()})
    if len(numbers) == 1:
        return f"{plural(numbers[0], 'seed')} each"
    return f"{numbers[0]} to {numbers[-1]} seeds each"


def _against(group: Group, label: str, reference: str) -> str:
    """The methods whose intervals lie above, below or across 0."""
    values = measures.measures(group)["AP50"]
    steps = {name: statistics.paired(values[name], values[reference]) for name in measures.ranked(group)}
    steps = {name: step for name, step in steps.items() if name != reference and step.n > 1}
    who = f"Against {label} (“{reference}”)"
    if not steps:
        return f"{who} there are not two common seeds, so no difference can be distinguished from chance."
    named = {name: f"{name} ({results.signed(step.mean)})" for name, step in steps.items()}
    places = {
        "above 0 for": [named[name] for name, step in steps.items() if step.sign > 0],
        "below 0 for": [named[name] for name, step in steps.items() if step.sign < 0],
        "across 0 for": [named[name] for name, step in steps.items() if not step.sign and step.n >= ENOUGH_SEEDS],
    }
    said = [f"{where} {listed(names, MOST_NAMED)}" for where, names in places.items() if names]
    few = [named[name] for name, step in steps.items() if step.n < ENOUGH_SEEDS]
    parts = [f"the interval of the final AP50 lies {'; '.join(said)}"] if said else []
    parts += [f"fewer than {ENOUGH_SEEDS} common seeds are inconclusive for {listed(few, MOST_NAMED)}"] if few else []
    return f"{who} {'; '.join(parts)}."
