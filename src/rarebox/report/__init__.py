"""A run, several side by side, or a whole grid, as one HTML page that works offline, with its figures as SVG and PNG.

``reading`` reads a run folder, ``wording`` writes the sentences, ``figures``, ``comparison`` and ``gallery`` draw;
``final``, ``curves`` and ``detections`` are about the final model; ``page`` and the templates put it together.
``grid``, ``grid_figures`` and ``grid_tables`` do the same for a grid.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rarebox.config import CostSettings
from rarebox.core.files import write_text
from rarebox.errors import UserError
from rarebox.grid import results
from rarebox.loop.metrics import CycleRecord, paid
from rarebox.report import comparison, drawing, figures, final, grid, wording
from rarebox.report.drawing import Panel
from rarebox.report.final import FinalModel
from rarebox.report.gallery import Gallery, of_run
from rarebox.report.page import render
from rarebox.report.reading import ReportedRun, read_runs, settings_of

__all__ = ["write_report"]

PROBLEMS_SHOWN = 5
"""Problems of each kind that are listed."""


@dataclass(frozen=True)
class Tile:
    """A key figure: its name, its value and a short note."""

    name: str
    value: str
    note: str


@dataclass(frozen=True, eq=False)
class RunPart:
    """The part of the page about one run."""

    run: ReportedRun
    anchor: str
    headline: str
    findings: list[str]
    tiles: list[Tile]
    panels: dict[str, list[Panel]]
    final: FinalModel
    gallery: Gallery
    problems: list[tuple[str, int, list[dict[str, str]]]]


def write_report(out: Path, runs: Sequence[Path], cost: CostSettings | None = None) -> Path:
    """Write ``report.html`` and ``figures/`` on the run folders ``runs`` to ``out``, and return the page's path.

    A run must have at least one finished cycle. Folders of grids, or their ``results.jsonl``, yield a comparison
    instead. With ``cost``, the annotators' seconds of all runs follow from these costs. Raises UserError if there is
    no finished cycle or no run, or if ``out`` cannot be written.
    """
    groups = results.read(runs, cost) if any(map(results.is_grid, runs)) else []
    found = [] if groups else read_runs(runs, cost)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return grid.write(out, groups) if groups else _write(out, found)
    except OSError as error:
        raise UserError(f"The report cannot be written to {out}: {error.strerror or error}.") from error


def _write(out: Path, found: Sequence[ReportedRun]) -> Path:
    several = len(found) > 1
    with drawing.style():
        parts = [
            _part(run, _uncertain(run, found), out / "figures", f"run{i}_" if several else "")
            for i, run in enumerate(found, start=1)
        ]
        compared = _published(comparison.of_runs(found), out / "figures") if several else {}
    page = render(
        "run.html.j2",
        parts=parts,
        compared=compared,
        headline=wording.comparison(found) if several else parts[0].headline,
        findings=wording.comparison_findings(found) if several else parts[0].findings,
        settings=settings_of(found),
    )
    write_text(out / "report.html", page)
    return out / "report.html"


def _uncertain(run: ReportedRun, found: Sequence[ReportedRun]) -> ReportedRun | None:
    """The run by uncertainty sampling with the same start as this one; the run itself, if it is one."""
    alike = ("data", "seed", "initial_images", "budget", "budget_unit", "detector", "training", "scoring")
    fitting = [
        other
        for other in (run, *found)
        if other.settings.selection.strategy == "uncertainty"
        and all(getattr(other.settings, name) == getattr(run.settings, name) for name in alike)
    ]
    return fitting[0] if fitting else None


def _part(run: ReportedRun, uncertain: ReportedRun | None, folder: Path, prefix: str) -> RunPart:
    last = final.of_run(run)
    return RunPart(
        run,
        anchor=prefix.rstrip("_") or "run",
        headline=wording.headline(run),
        findings=wording.findings(run),
        tiles=_tiles(run),
        panels=_published({**figures.of_run(run, uncertain), "final": last.panels}, folder, prefix),
        final=last,
        gallery=of_run(run),
        problems=_problems(run),
    )


def _published(panels: Mapping[str, Sequence[Panel]], folder: Path, prefix: str = "") -> dict[str, list[Panel]]:
    return {section: [drawing.publish(panel, folder, prefix) for panel in group] for section, group in panels.items()}


def _tiles(run: ReportedRun) -> list[Tile]:
    """The key figures, the same ones for every run."""
    first, last = run.first, run.last
    tail = run.tail_ap(last)
    longest = max(run.seconds, key=run.seconds.__getitem__, default="")

    def since(now: float | None, before: float | None) -> str:
        return f"{wording.change(now, before)} since cycle 1" if len(run.records) > 1 else ""

    return [
        Tile("AP50", wording.number(last["ap50"]), since(last["ap50"], first["ap50"])),
        Tile("AP50, rarest third", wording.number(tail), since(tail, run.tail_ap(first))),
        Tile("Labels", wording.count(last["labels"]), f"{wording.count(first['labels'])} in the initial images"),
        Tile("Reviews", wording.count(last["reviews"]), "boxes shown to annotators"),
        Tile("Annotators’ time", _time(last), "estimated" if last.get("seconds_estimated") else ""),
        Tile("Hit rate", wording.share(run.hit_rate), "of the queried boxes held a new object"),
        Tile(
            "Images",
            wording.count(last["images_full"] + last["images_partial"]),
            f"{wording.count(last['images_full'])} fully, {wording.count(last['images_partial'])} partly labelled",
        ),
        Tile(
            "Computing time", wording.duration(sum(run.seconds.values())), f"most of it: {longest}" if longest else ""
        ),
    ]


def _time(record: CycleRecord) -> str:
    seconds = paid(record, "seconds")
    return wording.duration(seconds) if wording.is_number(seconds) else wording.DASH


def _problems(run: ReportedRun) -> list[tuple[str, int, list[dict[str, str]]]]:
    """Each kind of problem in the data with its count and first examples, the most frequent kind first."""
    counts = Counter(problem["kind"] for problem in run.problems)
    return [
        (kind, n, [problem for problem in run.problems if problem["kind"] == kind][:PROBLEMS_SHOWN])
        for kind, n in counts.most_common()
    ]
