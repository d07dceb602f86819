"""Formats numbers for reading and writes the sentences about a run. An unknown number becomes a dash."""

from collections.abc import Sequence
from typing import TypeGuard

from rarebox.report.reading import ReportedRun

DASH = "–"


def is_number(value: float | None) -> TypeGuard[float]:
    """Whether there is a number: neither None nor NaN."""
    return value is not None and value == value


def number(value: float | None, digits: int = 2) -> str:
    """``0.4271`` -> ``0.43``."""
    return f"{value:.{digits}f}" if is_number(value) else DASH


def share(value: float | None) -> str:
    """``0.4271`` -> ``43 %``, with a non-breaking space."""
    return f"{value:.0%}".replace("%", "\u00a0%") if is_number(value) else DASH


def factor(value: float | None) -> str:
    """``28.5`` -> ``28.5``, ``31.0`` -> ``31``."""
    return f"{value:.3g}" if is_number(value) else DASH


def count(value: float | None) -> str:
    """``12000`` -> ``12 000``, with a thin space."""
    return f"{value:,.0f}".replace(",", "\u202f") if is_number(value) else DASH


def duration(seconds: float) -> str:
    """``54 s``, ``12 min``, ``1 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def change(now: float | None, before: float | None) -> str:
    """``+0.12``, ``−0.03``, ``±0.00``; a dash if either is unknown."""
    if is_number(now) and is_number(before):
        step = round(now, 2) - round(before, 2)
        return f"{'±' if abs(step) < 0.005 else '+' if step > 0 else '−'}{abs(step):.2f}"
    return DASH


def plural(n: int, noun: str) -> str:
    """``1 cycle``, ``3 cycles``, ``2 classes``."""
    return f"{count(n)} {noun}{'' if n == 1 else 'es' if noun.endswith(('s', 'x')) else 's'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """``a, b and c``; ``a, b, c, d and 3 more``."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))


def short(name: str, most: int) -> str:
    """A name cut to ``most`` characters, with unprintable characters replaced by spaces."""
    name = "".join(c if c.isprintable() else " " for c in name)
    return name if len(name) <= most else name[: most - 1] + "…"


def headline(run: ReportedRun) -> str:
    """The result of a run in one sentence."""
    labels, ap, start = count(run.last["labels"]), run.last["ap50"], run.first["ap50"]
    if len(run.records) == 1:
        return f"With the {labels} initial labels the detector reaches AP50\u00a0{number(ap)}."
    reached = f"With {labels} labels after {len(run.records)} cycles the detector reaches AP50\u00a0{number(ap)}"
    return f"{reached}, {_compared(ap, start)}."


def _compared(now: float | None, before: float | None) -> str:
    step = change(now, before)
    if step == DASH:
        return "which cannot be compared with cycle 1"
    if step.startswith("±"):
        return "the same as after cycle 1"
    return f"{'up' if step.startswith('+') else 'down'} from {number(before)}"


def findings(run: ReportedRun) -> list[str]:
    """Sentences below the headline: the rare classes, the reviews and the remaining cycles."""
    return [s for s in (_tail(run), _attention(run), _reviews(run), _left(run)) if s]


def _tail(run: ReportedRun) -> str:
    now, before = run.tail_ap(run.last), run.tail_ap(run.first)
    who = f"The rarest third of the classes ({listed(run.rarest)})"
    if len(run.records) == 1 or not (is_number(now) and is_number(before)):
        return f"{who} is at {number(now)}."
    step = change(now, before)
    if step.startswith("±"):
        return f"{who} stayed at {number(now)}."
    return f"{who} {'rose' if step.startswith('+') else 'fell'} from {number(before)} to {number(now)}."


def _attention(run: ReportedRun) -> str:
    """The fraction of the queries that were of rare classes, compared with their fraction of the initial labels."""
    first = run.first["human_per_class"]
    if not run.asked or not sum(first.values()):
        return ""
    was = sum(first[name] for name in run.rarest) / sum(first.values())
    got = sum(run.summed("selected_per_class")[name] for name in run.rarest) / run.asked
    return f"They make up {share(was)} of the initial labels and {share(got)} of the queries (by predicted class)."


def _reviews(run: ReportedRun) -> str:
    if not run.asked:
        return "No box has been queried yet. Queries start with cycle 2." if run.cycles_left else ""
    return f"Of {plural(run.asked, 'queried box')}, {count(run.hits)} held an object without a label."


def _left(run: ReportedRun) -> str:
    if run.cycles_left <= 0:
        return ""
    remain = "remains" if run.cycles_left == 1 else "remain"
    return f"{plural(run.cycles_left, 'cycle')} {remain}. Repeat the command of the run to resume where it stopped."


def comparison(runs: Sequence[ReportedRun]) -> str:
    """Which of several runs is ahead after the last cycle that all have finished, in one sentence."""
    place = min(len(run.records) for run in runs) - 1
    best, next_best = sorted(runs, key=lambda run: run.records[place]["ap50"] or -1.0, reverse=True)[:2]
    reached = [number(run.records[place]["ap50"]) for run in (best, next_best)]
    when = f"After {plural(place + 1, 'cycle')}"
    if reached[0] == reached[1]:
        return f"{when} the best of the {len(runs)} runs are level, at AP50\u00a0{reached[0]}."
    labels = count(best.records[place]["labels"])
    ahead = f"“{best.name}” is ahead: AP50\u00a0{reached[0]} with {labels} labels"
    return f"{when} {ahead}; “{next_best.name}” has {reached[1]}."


def comparison_findings(runs: Sequence[ReportedRun]) -> list[str]:
    """A caution for comparing runs."""
    said = ["Each curve is one run. Differences of a few hundredths may be chance: repeat the runs with other seeds."]
    if len({tuple(run.classes) for run in runs}) > 1:
        said.append("The runs have different classes, so their numbers must not be compared.")
    elif len({run.settings.data for run in runs}) > 1:
        said.append("The runs use different data, so their numbers must not be compared.")
    unfinished = sum(run.cycles_left > 0 for run in runs)
    if unfinished:
        said.append(f"{plural(unfinished, 'run')} {'is' if unfinished == 1 else 'are'} not finished yet.")
    return said
