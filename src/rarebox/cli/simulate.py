"""The commands for researchers: simulated runs, grids, and reports."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from rarebox import config
from rarebox.cli.options import (
    SEVERAL,
    Address,
    AsJson,
    Backbone,
    Changes,
    DetectorName,
    Device,
    Engine,
    EngineName,
    Preset,
    SettingsFile,
    Weights,
    app,
    connected,
    helped_torchrun,
    print_problems,
)
from rarebox.cli.progress import bench_events, console, minutes, progress_bars, shown
from rarebox.core.files import real
from rarebox.errors import UserError
from rarebox.loop.metrics import CycleRecord

if TYPE_CHECKING:  # these load slowly
    from rarebox.data.listings import Dataset
    from rarebox.loop.run import Engine as Scorer


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for the runs and the report.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
) -> None:
    """Compare the method with random boxes on the embedded data set, and write a report."""
    from rarebox.report import write_report

    console.print("[bold]rarebox demo[/bold]: handwritten digits in busy pictures, ten classes with a long tail")
    runs: list[Path] = []
    for number, (strategy, method) in enumerate(DEMO_RUNS, start=1):
        console.print(f"\nrun {number} of {len(DEMO_RUNS)}")
        changes = {**DEMO, "seed": seed, "selection.strategy": strategy, "pseudo.method": method}
        settings = config.resolve("laptop", None, changes)
        announce(out / strategy, settings)
        run_to_end(out / strategy, settings, share=runs[0] if runs else None)
        runs.append(out / strategy)
    report = write_report(out, runs)
    console.print(f"\nThe report is ready: {real(report)}", markup=False, style="bold", soft_wrap=True)


DEMO: config.Values = {
    **config.INSTALLED,
    "data": "scenes",
    "detector.name": "faster_rcnn",
    "initial_images": 30,
    "budget": [60, 120],
    "detector.image_size": 192,
    "training.steps": 160,
    "training.epochs": 6,  # single boxes are spread over many images
}
DEMO_RUNS = (("class_balanced", "soft"), ("random", "soft"))


@app.command()
def run(
    out: Annotated[Path, typer.Argument(help="Folder of the run. An unfinished run there is resumed.")],
    data: Annotated[str | None, typer.Option(help="Data set folder (COCO, VOC, YOLO), scenes, or voc0712.")] = None,
    preset: Preset = "laptop",
    file: SettingsFile = None,
    detector: DetectorName = None,
    backbone: Backbone = None,
    weights: Weights = None,
    freeze: Annotated[str | None, typer.Option(help="backbone: train and score with the heads only.")] = None,
    strategy: Annotated[
        str | None, typer.Option(help="How boxes or images are chosen, such as class_balanced.")
    ] = None,
    pseudo: Annotated[str | None, typer.Option(help="none, hard, task_hard, soft or ignore_only.")] = None,
    initial_images: Annotated[int | None, typer.Option(help="Images labelled completely at the start.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="Labels to buy in each cycle after the first, such as 150,300.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed.")] = None,
    device: Device = None,
    share: Annotated[
        Path | None, typer.Option(help="Another run, whose initial pool and cycle-1 model are reused.")
    ] = None,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    changes: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Simulate active learning on a labelled data set: cycles of select, label, train and evaluate."""
    if helped_torchrun():
        return
    given = {
        "data": data,
        "detector.name": detector,
        "detector.backbone": backbone,
        "detector.weights": weights,
        "training.freeze": freeze,
        "selection.strategy": strategy,
        "pseudo.method": pseudo,
        "initial_images": initial_images,
        "budget": parse_budget(budget),
        "seed": seed,
        "device": device,
    }
    named = {name: value for name, value in given.items() if value is not None}
    from rarebox.loop import cluster

    settings = config.resolve(preset, file, {**named, **config.parse_changes(changes or [])})
    refuse_early(out, settings, share)
    cluster.check(engine, address, settings)
    if not as_json:  # before the imports, which take seconds
        announce(out, settings)
    from rarebox.detectors import distributed

    with distributed.leading():
        idle = distributed.processes() - settings.training.batch_size
        if idle > 0:
            console.print(
                f"note: {idle} of the processes are idle, because training.batch_size is {settings.training.batch_size}"
            )
        with connected(engine, address, as_json) as where:
            run_to_end(out, settings, share=share, engine=where.score if where else None, as_json=as_json)
    if not as_json:
        from rarebox.report import write_report

        console.print(f"report: {real(write_report(out, [out]))}", markup=False, soft_wrap=True)


def announce(out: Path, settings: config.Settings) -> None:
    """Print what is run, and where."""
    network = f"{settings.detector.name} on {settings.detector.backbone}"
    method = f"{settings.selection.strategy}, {settings.pseudo.method} pseudo labels, seed {settings.seed}"
    console.print(f"{out}: {settings.data}, {network}, {method}", markup=False, soft_wrap=True)


def refuse_early(out: Path, settings: config.Settings, share: Path | None) -> None:
    """Raise UserError for mistakes that can be found before torch loads, which takes seconds."""
    from rarebox import strategies
    from rarebox.data import datasets
    from rarebox.loop.run_folder import RunFolder

    strategies.choose(settings.selection)
    datasets.refuse_missing(settings.data)
    if share and not RunFolder(out).records():
        RunFolder(share).check_first_model()
    RunFolder(out).check(settings)


def parse_budget(text: str | None) -> list[int] | None:
    """Parse ``"150,300"`` to ``[150, 300]``. Raises UserError for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"--budget must be whole numbers separated by commas, such as 150,300; got {text!r}") from None


def run_to_end(
    out: Path,
    settings: config.Settings,
    *,
    share: Path | None = None,
    engine: "Scorer | None" = None,
    as_json: bool = False,
) -> None:
    """Run all cycles with live progress, and print the result of each and the estimated time left."""
    from rarebox.data import datasets
    from rarebox.loop import simulate
    from rarebox.loop.run_folder import RunFolder

    ends: list[float] = []
    before = len(RunFolder(out).records())
    if 0 < before <= len(settings.budget) and not as_json:
        console.print(f"{out} resumes after cycle {before} of {len(settings.budget) + 1}", markup=False, soft_wrap=True)

    def finished(record: CycleRecord) -> None:
        ends.append(time.monotonic())
        done, cycles = record["cycle"], len(settings.budget) + 1
        if as_json:
            print(json.dumps({"event": "cycle", **record}), flush=True)
            return
        rest = ""
        if done < cycles and len(ends) > 1:
            # The first cycle to end is not representative: cycle 1 scores no pool, and a resumed cycle was partly done.
            left = (ends[-1] - ends[0]) / (len(ends) - 1) * (cycles - done)
            rest = f"; about {minutes(left)} left of this run"
        console.print(
            f"{escape(out.name)}, cycle {done} of {cycles}: AP50 [bold]{shown(record['ap50'])}[/bold] with "
            f"{record['labels']} labels and {record['reviews']} reviews{rest}"
        )
        for note in record["notes"]:
            console.print(f"  note: {note}", markup=False)

    with progress_bars(as_json) as progress:
        dataset = datasets.load_data(settings.data, progress)
        if dataset.problems and not as_json:
            kinds = Counter(p.kind for p in dataset.problems)
            counts = ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common())
            console.print(f"{dataset.name}: {counts} (listed in {out / 'problems.json'})", markup=False)
        records = simulate.simulate(
            out, settings, dataset, share=share, engine=engine, progress=progress, finished=finished
        )
    if as_json:
        print(json.dumps({"event": "done", "metrics": str(out / "metrics.json")}), flush=True)
    elif not ends:
        console.print(
            f"{out} is already finished: {len(records)} cycles, AP50 {shown(records[-1]['ap50'])}", markup=False
        )


@app.command()
def bench(
    grid: Annotated[Path, typer.Argument(help="YAML file of the grid, described in docs/bench.md.")],
    out: Annotated[Path | None, typer.Argument(help="Folder for all its runs; bench-out/NAME by default.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Location of a data set, as NAME=FOLDER; repeatable.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Only runs whose name contains or matches this; repeatable.")
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the models of finished runs.")] = False,
    just_list: Annotated[
        bool, typer.Option("--list", help="Print the runs and their states without running any.")
    ] = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of data sets, detectors, methods, budgets and seeds. Several processes may share the work."""
    from rarebox.grid import runner, spec

    runs = spec.read(grid, dict(split_place(text) for text in data or []))
    work = runner.Bench(out or Path("bench-out") / grid.stem, runs, spec.choose(runs, only or []), keep_models)
    if just_list:
        for run in work.wanted:
            about = {**run.about, "state": work.state(run), "reason": work.reason(run)}
            why = f": {about['reason']}" if about["reason"] else ""
            print(json.dumps(about) if as_json else f"{about['state']:<8}{run.name}{why}")
        return
    with connected(engine, address, as_json) as work.cluster, progress_bars(as_json) as work.progress:
        work.tell = bench_events(grid, work, as_json)
        failed = work.work(grid)
    done = len(work.wanted) - len(failed)
    if as_json:
        outcome = {"event": "end", "results": str(work.results), "done": done, "failed": [run.folder for run in failed]}
        print(json.dumps(outcome), flush=True)
    else:
        console.print(f"{done} of {len(work.wanted)} runs are done: {work.results}", markup=False, soft_wrap=True)
        for run in failed:
            console.print(f"failed: {run.name}: {work.reason(run)}", markup=False, soft_wrap=True)
        if failed:
            console.print("repeat the command to retry the failed runs")
        if done:
            console.print(f"next: rarebox report {work.out}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def split_place(text: str) -> tuple[str, str]:
    """Split ``"NAME=FOLDER"``. Raises UserError for anything else."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--data must be NAME=FOLDER, got {text!r}")
    return name, folder


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of a grid, or its results.jsonl.")],
    to: Annotated[
        Path | None, typer.Option(help=f"Folder for the report; by default that of the run or {SEVERAL}.")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="Score the annotators' seconds by cost.NAME=SECONDS; repeatable.")
    ] = None,
) -> None:
    """Write an HTML page, with figures as PNG and SVG, about one run, several runs or a grid."""
    from rarebox.report import write_report

    own = runs[0].parent if runs[0].is_file() else runs[0]
    cost = other_costs(changes) if changes else None
    print(real(write_report(to or (own if len(runs) == 1 else SEVERAL), runs, cost)))


def other_costs(changes: list[str]) -> config.CostSettings:
    """The costs with changes such as ``cost.draw=14``. Raises UserError for other settings: the runs have theirs."""
    parsed = config.parse_changes(changes)
    if other := next((name for name in parsed if not name.startswith("cost.")), None):
        raise UserError(f"--set {other}: a report can only change the costs of answers, such as cost.draw=14")
    return config.resolve(changes=parsed).cost


def print_summary(dataset: "Dataset") -> None:
    """Print the images, objects per class and problems of a data set."""
    from rarebox.evaluation import imbalance_factor
    from rarebox.loop.record import count_classes

    held = f", {len(dataset.test.images)} test images" if dataset.test else ", no test images"
    console.print(f"{dataset.name}: {len(dataset.train.images)} training images{held}", markup=False, soft_wrap=True)
    table = Table()
    for column in ("class", "training", "test"):
        table.add_column(column, justify="left" if column == "class" else "right")
    train = count_classes(dataset.train, len(dataset.classes))
    test = count_classes(dataset.test, len(dataset.classes)) if dataset.test else [""] * len(dataset.classes)
    for name, *counts in zip(dataset.classes, train, test, strict=True):
        table.add_row(escape(name), *(str(c) for c in counts))
    console.print(table)
    console.print(f"imbalance factor {imbalance_factor(train):.1f} (largest class over smallest)")
    if not dataset.problems:
        console.print("no problems found in the data")
    print_problems(dataset.problems)
