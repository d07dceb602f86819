"""The command ``rarebox``. Mistakes of the user end in one message and exit status 2, never in a traceback."""

import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from rarebox import __version__, config, places
from rarebox.errors import UserError
from rarebox.files import real
from rarebox.naming import ByName
from rarebox.progress import bench_events, console, minutes, progress_bars, shown
from rarebox.text import counted

app = typer.Typer(
    help="Decides which boxes a person should label next, so that an object detector learns most per label.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)

USAGE_ERROR: Any = typer.BadParameter.__mro__[2]
"""Click's base class of wrong options and arguments, which typer brings along under a name of its own."""

STOPPED = 130
"""Exit status after Ctrl-C."""

PIPE_CLOSED = 1
"""Exit status when the reader of the output has gone, as with ``| head``; click has the same."""

SEVERAL = Path("rarebox-report")
"""Where the report on several runs goes, which belongs to none of them."""

MOST_NAMED = 5
"""Things of one kind that are named one by one; of more, only their number is shown."""

ImageUrl = Annotated[str | None, typer.Option(help="What Label Studio finds the images under, before their names.")]
Address = Annotated[
    str | None, typer.Option(help="Of --engine ray: HOST:PORT of a cluster, or auto; none: this machine alone.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a machine to read, one value a line.")]


class EngineName(StrEnum):
    """What can do the work that splits."""

    LOCAL = "local"
    RAY = "ray"


Engine = Annotated[EngineName, typer.Option(help="Where the pool is scored (bench: where the runs are done).")]


def main() -> None:
    """Entry point of the command line."""
    _make_everything_printable()
    try:
        _main()
    except BrokenPipeError:
        _nobody_reads()
        sys.exit(PIPE_CLOSED)


def _main() -> None:
    """Do what the command line says. Mistakes and trouble become a message and an exit status."""
    try:
        if note := places.settle():
            console.print(f"note: {note}", markup=False, soft_wrap=True)
        status = app(standalone_mode=False)
        if status == STOPPED:  # typer makes Ctrl-C an exit status
            raise KeyboardInterrupt
        print(end="", flush=True)  # a full disk or a closed pipe is to be known here
        sys.exit(status)
    except UserError as error:
        console.print(f"rarebox: {error}", markup=False, soft_wrap=True)
        sys.exit(2)
    except BrokenPipeError:
        raise
    except OSError as error:
        console.print(
            f"rarebox: {error.filename or 'the disk'}: {error.strerror or error}", markup=False, soft_wrap=True
        )
        sys.exit(2)
    except UnicodeEncodeError as error:
        console.print(
            f"rarebox: {error.object!r:.200} is not valid {error.encoding}. Rename that file, folder, or class",
            markup=False,
            soft_wrap=True,
        )
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        console.print("rarebox: stopped; repeat the command to go on")
        sys.exit(STOPPED)
    except Exception as error:
        if not isinstance(error, USAGE_ERROR):
            raise
        usage: Any = error  # a wrong option or argument
        usage.show()
        sys.exit(usage.exit_code)


def _make_everything_printable() -> None:
    """Let no character end a command: lists and JSON that go to a file or a pipe are UTF-8, whatever the locale says;
    what a terminal cannot show is escaped, as ``\\u4e2d``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            data = stream is sys.stdout and not stream.isatty()
            stream.reconfigure(encoding="utf-8" if data else None, errors="backslashreplace")


def _nobody_reads() -> None:
    """Let the streams end in silence after their reader has gone, as with ``| head``."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nothing, stream.fileno())


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Where to put the runs and the report.")] = Path("demo-out"),
    seed: Annotated[int, typer.Option(help="Root seed.")] = 0,
) -> None:
    """Run the method on the embedded data set, next to random boxes, and write a report to look at."""
    from rarebox.report import write_report

    console.print("[bold]rarebox demo[/bold]: handwritten digits in busy pictures, ten classes with a long tail")
    runs = []
    for number, (strategy, method) in enumerate(DEMO_RUNS, start=1):
        console.print(f"\nrun {number} of {len(DEMO_RUNS)}")
        changes = {**DEMO, "seed": seed, "selection.strategy": strategy, "pseudo.method": method}
        settings = config.resolve("laptop", None, changes)
        announce(out / strategy, settings)
        run_to_end(out / strategy, settings, share=runs[0] if runs else None)
        runs.append(out / strategy)
    report = write_report(out, runs)
    console.print(f"\nThe report is ready: {real(report)}", markup=False, style="bold", soft_wrap=True)


DEMO: dict[str, Any] = {
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
    out: Annotated[Path, typer.Argument(help="Folder of the run; an unfinished run there is continued.")],
    data: Annotated[str | None, typer.Option(help="Data set folder (COCO, VOC, YOLO), scenes, or voc0712.")] = None,
    preset: Annotated[str, typer.Option(help="laptop or paper.")] = "laptop",
    file: Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")] = None,
    detector: Annotated[str | None, typer.Option(help="retinanet or faster_rcnn.")] = None,
    backbone: Annotated[str | None, typer.Option(help="resnet50 or efficientnet_lite0.")] = None,
    weights: Annotated[str | None, typer.Option(help="imagenet, coco, none, or a file.")] = None,
    freeze: Annotated[str | None, typer.Option(help="backbone: train and score with the heads alone.")] = None,
    strategy: Annotated[str | None, typer.Option(help="How boxes or images are chosen: class_balanced, …")] = None,
    pseudo: Annotated[str | None, typer.Option(help="none, hard, task_hard, soft or ignore_only.")] = None,
    initial_images: Annotated[int | None, typer.Option(help="Images labelled completely at the start.")] = None,
    budget: Annotated[str | None, typer.Option(help="Labels bought in each further cycle, such as 150,300.")] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps.")] = None,
    share: Annotated[Path | None, typer.Option(help="A run whose initial pool and cycle-1 model to share.")] = None,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as a.b=value; repeatable.")] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate active learning on a labelled data set: select, label, train, evaluate, again and again."""
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":  # torchrun's others do as the first says
        from rarebox import detectors

        detectors.distributed.follow(detectors.help_train)
        return
    given = {
        "data": data, "detector.name": detector, "detector.backbone": backbone, "detector.weights": weights,
        "training.freeze": freeze, "selection.strategy": strategy, "pseudo.method": pseudo,
        "initial_images": initial_images, "budget": parse_budget(budget), "seed": seed, "device": device,
    }  # fmt: skip
    named = {name: value for name, value in given.items() if value is not None}
    from rarebox import cluster

    settings = config.resolve(preset, file, {**named, **config.parse_changes(changes or [])})
    refuse_early(out, settings, share)
    cluster.check(engine, address, settings)
    if not as_json:  # before the imports, which take some seconds
        announce(out, settings)
    if preset == "laptop":
        settings = with_weights_at_hand(settings)
    from rarebox import detectors

    with detectors.distributed.leading():
        idle = detectors.distributed.processes() - settings.training.batch_size
        if idle > 0:
            console.print(
                f"note: {idle} of the processes have nothing to do, for training.batch_size is "
                f"{settings.training.batch_size}"
            )
        with connected(engine, address, as_json) as where:
            run_to_end(out, settings, share=share, engine=where.score if where else None, as_json=as_json)
    if not as_json:
        from rarebox.report import write_report

        console.print(f"report: {real(write_report(out, [out]))}", markup=False, soft_wrap=True)


def announce(out: Path, settings: config.Settings) -> None:
    """Say what is run, and where."""
    network = f"{settings.detector.name} on {settings.detector.backbone}"
    method = f"{settings.selection.strategy}, {settings.pseudo.method} pseudo labels, seed {settings.seed}"
    console.print(f"{out}: {settings.data}, {network}, {method}", markup=False, soft_wrap=True)


@contextmanager
def connected(engine: str, address: str | None, as_json: bool) -> Iterator[Any]:
    """:func:`rarebox.cluster.connected`, which may take a minute, announced."""
    from rarebox import cluster

    if engine == EngineName.RAY and not as_json:
        console.print(f"joining the Ray cluster {address}" if address else "starting Ray on this machine", markup=False)
    with cluster.connected(engine, address) as where:
        yield where


def refuse_early(out: Path, settings: config.Settings, share: Path | None) -> None:
    """UserError for what can be told without torch, which takes some seconds to load."""
    from rarebox import data, strategies
    from rarebox.run_folder import RunFolder

    strategies.choose(settings.selection)
    data.refuse_missing(settings.data)
    if share and not RunFolder(out).records():
        RunFolder(share).check_first_model()
    # Weights that cannot be had may still change these two.
    RunFolder(out).check(settings, but=("detector.backbone", "detector.weights"))


def parse_budget(text: str | None) -> list[int] | None:
    """``"150,300"`` -> [150, 300]; UserError for anything else."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(
            f"--budget wants whole numbers with commas between them, such as 150,300; got {text!r}"
        ) from None


def with_weights_at_hand(settings: config.Settings) -> config.Settings:
    """The settings, or, where their weights cannot be had, the same with the backbone that comes along, saying so."""
    from rarebox import detectors
    from rarebox.detectors.backbones import WeightsUnavailable

    try:
        detectors.fetch_weights(settings.detector)
    except WeightsUnavailable as error:
        console.print(f"{error}\nGoing on with --backbone efficientnet_lite0 instead.", markup=False, soft_wrap=True)
        changed = {"backbone": "efficientnet_lite0", "weights": "imagenet"}
        return settings.model_copy(update={"detector": settings.detector.model_copy(update=changed)})
    return settings


def run_to_end(
    out: Path, settings: config.Settings, *, share: Path | None = None, engine: Any = None, as_json: bool = False
) -> None:
    """Run all cycles with live progress, and say after each what it brought and how long the rest may take."""
    from rarebox import loop
    from rarebox.run_folder import RunFolder

    ends: list[float] = []
    before = len(RunFolder(out).records())
    if 0 < before <= len(settings.budget) and not as_json:
        console.print(f"{out} goes on after cycle {before} of {len(settings.budget) + 1}", markup=False, soft_wrap=True)

    def finished(record: dict[str, Any]) -> None:
        ends.append(time.monotonic())
        done, cycles = record["cycle"], len(settings.budget) + 1
        if as_json:
            print(json.dumps({"event": "cycle", **record}), flush=True)
            return
        rest = ""
        if done < cycles and len(ends) > 1:
            # The first to end says nothing: it is cycle 1, which scores no pool, or was begun before a stop.
            left = (ends[-1] - ends[0]) / (len(ends) - 1) * (cycles - done)
            rest = f"; about {minutes(left)} left of this run"
        console.print(
            f"{escape(out.name)}, cycle {done} of {cycles}: AP50 [bold]{shown(record['ap50'])}[/bold] with "
            f"{record['labels']} labels and {record['looks']} looks{rest}"
        )
        for note in record["notes"]:
            console.print(f"  note: {note}", markup=False)

    with progress_bars(as_json) as progress:
        dataset = loop.load_data(settings.data, progress)
        if dataset.problems and not as_json:
            kinds = Counter(p.kind for p in dataset.problems)
            counts = ", ".join(f"{n} x {kind}" for kind, n in kinds.most_common())
            console.print(f"{dataset.name}: {counts} (listed in {out / 'problems.json'})", markup=False)
        records = loop.run(out, settings, dataset, share=share, engine=engine, progress=progress, finished=finished)
    if as_json:
        print(json.dumps({"event": "done", "metrics": str(out / "metrics.json")}), flush=True)
    elif not ends:
        console.print(
            f"{out} is finished already: {len(records)} cycles, AP50 {shown(records[-1]['ap50'])}", markup=False
        )


@app.command()
def bench(
    grid: Annotated[Path, typer.Argument(help="YAML file of the grid; docs/bench.md says what is in it.")],
    out: Annotated[Path | None, typer.Argument(help="Folder of all its runs; bench-out/NAME by default.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Where a data set lies, NAME=FOLDER; repeatable.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Runs whose name holds or fits this; repeatable.")] = None,
    keep_models: Annotated[bool, typer.Option("--keep-models", help="Keep the models of finished runs.")] = False,
    just_list: Annotated[bool, typer.Option("--list", help="Print the runs and how they stand, and do none.")] = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Run a grid of data, detectors, methods, budgets and seeds; any number of processes may work on it at once."""
    from rarebox import bench

    runs = bench.read(grid, dict(split_place(text) for text in data or []))
    work = bench.Bench(out or Path("bench-out") / grid.stem, runs, bench.choose(runs, only or []), keep_models)
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
        told = {"event": "end", "results": str(work.results), "done": done, "failed": [run.folder for run in failed]}
        print(json.dumps(told), flush=True)
    else:
        console.print(f"{done} of {len(work.wanted)} runs are done: {work.results}", markup=False, soft_wrap=True)
        for run in failed:
            console.print(f"failed: {run.name}: {work.reason(run)}", markup=False, soft_wrap=True)
        if failed:
            console.print("repeat the command to try again what failed")
        if done:
            console.print(f"next: rarebox report {work.out}", markup=False, soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def split_place(text: str) -> tuple[str, str]:
    """``"NAME=FOLDER"`` -> its two parts."""
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise UserError(f"--data wants NAME=FOLDER, got {text!r}")
    return name, folder


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or of a grid, or its results.jsonl.")],
    to: Annotated[Path | None, typer.Option(help=f"Folder for the report; one run's own, or {SEVERAL}.")] = None,
) -> None:
    """Write one HTML page (and its figures as PNG and SVG) about one run, several side by side, or a whole grid."""
    from rarebox.report import write_report

    own = runs[0].parent if runs[0].is_file() else runs[0]
    print(real(write_report(to or (own if len(runs) == 1 else SEVERAL), runs)))


class Format(StrEnum):
    """Label formats that can be written."""

    COCO = "coco"
    VOC = "voc"
    YOLO = "yolo"
    LABELSTUDIO = "labelstudio"
    CVAT = "cvat"


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    to: Annotated[Path, typer.Argument(help="Folder for the labels; replaces an earlier export, and nothing else.")],
    format: Annotated[Format, typer.Option(help="Format of the labels.")] = Format.COCO,
    include_pseudo: Annotated[bool, typer.Option(help="Also the last cycle's pseudo labels.")] = False,
    complete_only: Annotated[bool, typer.Option(help="Only images that are labelled completely.")] = False,
    allow_partial: Annotated[bool, typer.Option(help="YOLO: also partly labelled images, unsafe as that is.")] = False,
    copy_images: Annotated[bool, typer.Option(help="Copy the images instead of linking to them.")] = False,
    queries: Annotated[bool, typer.Option("--queries", help="Open questions, for labelstudio or cvat.")] = False,
    most: Annotated[int, typer.Option(min=1, help="Of --queries: how many, within the budget.")] = 1000,
    image_url: ImageUrl = None,
    as_json: AsJson = False,
) -> None:
    """Write the labels of a run, with where each box comes from; or its open questions, for another tool."""
    from rarebox.data.export import export as write
    from rarebox.data.export import export_queries
    from rarebox.exchange import ask_ahead, open_questions
    from rarebox.labels import collect
    from rarebox.run_folder import open_store

    warnings: list[str] = []
    if queries:
        warn_of_photos(run)
        ask_ahead(run, most)
        with open_store(run) as store:
            found = open_questions(store)
        done = export_queries(
            to, format.value, found.classes, list(found.images.values()), found.queries, copy_images=copy_images,
            image_url=image_url, version=f"rarebox cycle {found.cycle}",
        )  # fmt: skip
        name_missing(done.missing)
        told = {"folder": str(done.folder), "images": done.images, "queries": done.boxes}
        print(
            json.dumps(told)
            if as_json
            else f"{done.folder}: {counted(done.boxes, 'question')} on {counted(done.images, 'image')}"
        )
        return
    with progress_bars(False) as progress:
        images, classes, annotations = collect(run, None, warnings, progress)
    for warning in warnings:
        console.print(warning, markup=False, soft_wrap=True)
    done = write(
        to, format, classes, images, annotations, allow_partial=allow_partial, complete_only=complete_only,
        include_pseudo=include_pseudo, copy_images=copy_images, image_url=image_url,
    )  # fmt: skip
    name_missing(done.missing)
    if as_json:
        print(json.dumps({**asdict(done), "folder": str(done.folder)}))
        return
    print(f"{done.folder}: {counted(done.boxes, 'box', 'boxes')} on {counted(done.images, 'image')}")
    if done.partly_labelled or done.unlabelled:
        console.print(
            f"careful: {done.partly_labelled} of the images are labelled in part and {done.unlabelled} not at all "
            "(incomplete.txt lists them). To most trainers what has no box there is background; --complete-only "
            "leaves these images out", soft_wrap=True,
        )  # fmt: skip


def warn_of_photos(project: Path) -> None:
    """Find the photos of a project that have moved, and say what a person should know of the others."""
    from rarebox.project import check_photos

    with progress_bars(False) as progress:
        found = check_photos(project, progress)
    for warning in found.warnings():
        console.print(warning, markup=False, soft_wrap=True)


def name_missing(missing: Sequence[str]) -> None:
    """Say which photos an export lacks."""
    for line in missing[:5]:
        console.print(f"no photo: {line}", markup=False, soft_wrap=True)
    if missing:
        console.print(
            f"{counted(len(missing), 'photo')} cannot be read (see missing.txt). All labels are exported all the same. "
            "Put the photos back, or say where they are now: rarebox relocate", markup=False, soft_wrap=True,
        )  # fmt: skip


@app.command()
def relocate(
    run: Annotated[Path, typer.Argument(help="Folder of a project or run.")],
    data: Annotated[Path, typer.Argument(help="Where its photos, or its data set, are now.")],
) -> None:
    """Say where the photos of a project are now; each keeps its labels."""
    from rarebox.project import relocate as say

    with progress_bars(False) as progress:
        done = say(run, data, progress)
    print(f"{run}: {counted(done.there, 'photo')} found in {data}")
    for warning in done.warnings:
        console.print(warning, markup=False, soft_wrap=True)
    for path in done.missing[:5]:
        console.print(f"not found: {path}", markup=False, soft_wrap=True)
    if done.missing:
        console.print(
            f"{counted(len(done.missing), 'photo')} not found there. The labels are kept. Put the photos into {data} "
            "and repeat the command", markup=False, soft_wrap=True,
        )  # fmt: skip


@app.command()
def backup(
    run: Annotated[str, typer.Argument(help="Folder of a project or run, or its store.")],
    to: Annotated[Path, typer.Argument(help="New file for the copy.")],
) -> None:
    """Copy the label store to a file, also while people answer; docs/store.md says how to go back to it."""
    from rarebox.run_folder import open_store

    with open_store(run) as store:
        store.back_up(to)
    print(f"{to}: all that was answered so far")


class Tool(StrEnum):
    """Tools whose answers can be taken in."""

    LABELSTUDIO = "labelstudio"
    CVAT = "cvat"


@app.command(name="import")
def bring_in(
    run: Annotated[str, typer.Argument(help="Folder of a run or project, its store, or a database URL.")],
    file: Annotated[Path, typer.Argument(help="Label Studio: exported JSON or JSON-MIN. CVAT: annotations.xml.")],
    format: Annotated[Tool, typer.Option(help="Where the file comes from.")],
    by: Annotated[str, typer.Option(help="Whose answers they are; else whom the file names.")] = "",
    complete: Annotated[bool, typer.Option("--complete", help="Every image in it is labelled completely.")] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Also where somebody answered otherwise since.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take in what people answered in Label Studio or CVAT; the same file again changes nothing."""
    from rarebox import exchange
    from rarebox.data import cvat, labelstudio
    from rarebox.run_folder import RunFolder, open_store

    if "://" not in run and RunFolder(Path(run)).settings.exists():
        warn_of_photos(Path(run))
    batch = (labelstudio if format is Tool.LABELSTUDIO else cvat).read(file)
    with open_store(run) as store:
        done = exchange.bring_in(store, batch, format, by=by, complete=complete, instead=replace)
    counts = {**asdict(done), "skipped": batch.skipped, "older": batch.older}
    if as_json:
        print(json.dumps(counts))
        return
    for where, shape in [(one.where, shape) for one in batch.returned for shape in one.left_out][:MOST_NAMED]:
        console.print(f"{where}: {shape} left out; draw a box there if it is an object", markup=False, soft_wrap=True)
    told = [f"{counted(count, *IMPORTED[name][:2])} {IMPORTED[name][2]}" for name, count in counts.items() if count]
    print(f"{file}: {', '.join(told) or 'nothing'}")


IMPORTED = {
    "objects": ("guess", "guesses", "confirmed"),
    "no_objects": ("guess", "guesses", "rejected, or labelled already"),
    "missed": ("box", "boxes", "drawn for missed objects"),
    "complete": ("image", "images", "now complete"),
    "withdrawn": ("box", "boxes", "taken back"),
    "unchanged": ("answer", "answers", "known before"),
    "left": ("answer", "answers", "not used, because another person answered otherwise (--replace uses the file's)"),
    "unseen": ("guess", "guesses", "that the annotation did not begin with, left unanswered"),
    "skipped": ("image", "images", "skipped there, left unanswered"),
    "older": ("annotation", None, "replaced by later ones of the same image"),
    "shapes": ("shape", "shapes", "left out, because no box can be made of them; such images do not count as complete"),
}
"""What the command says of each count: one, several, and what became of them."""


class ListFormat(StrEnum):
    """How a ranked list of boxes can be written."""

    CSV = "csv"
    JSON = "json"
    COCO = "coco"
    LABELSTUDIO = "labelstudio"


@app.command()
def rank(
    detections: Annotated[Path, typer.Option(help="What a detector found: COCO results, or JSON lines.")],
    budget: Annotated[int, typer.Option(help="How many boxes to list.")],
    views: Annotated[Path | None, typer.Option(help="What it found on augmented copies, as JSON lines.")] = None,
    labels: Annotated[Path | None, typer.Option(help="What is labelled: COCO, or the folder of a run.")] = None,
    images: Annotated[Path | None, typer.Option(help="Which images there are: a folder, or a COCO file.")] = None,
    strategy: Annotated[
        str, typer.Option(help="How boxes are ranked: class_balanced, uncertainty, entropy, …")
    ] = "class_balanced",
    to: Annotated[Path | None, typer.Option(help="File for the list; standard output if none is named.")] = None,
    format: Annotated[ListFormat, typer.Option(help="Format of the list.")] = ListFormat.CSV,
    views_map: Annotated[Path | None, typer.Option(help="The views.jsonl that `rarebox views` wrote.")] = None,
    classes: Annotated[str | None, typer.Option(help="The detector's classes in their order, such as cat,dog.")] = None,
    labels_complete: Annotated[bool, typer.Option(help="All images of --labels are labelled completely.")] = False,
    image_url: ImageUrl = None,
    seed: Annotated[int, typer.Option(help="Root seed, for the strategy random.")] = 0,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as a.b=value; repeatable.")] = None,
) -> None:
    """List the boxes to label next, from the detections of any detector."""
    from rarebox import outside
    from rarebox.data import labelstudio, ranked
    from rarebox.data.review import sheets
    from rarebox.files import write_text

    given = {"selection.strategy": strategy, "seed": seed, **config.parse_changes(changes or [])}
    names = [name.strip() for name in classes.split(",") if name.strip()] if classes else None
    with progress_bars(False) as progress:
        found = outside.rank(
            detections, views, labels, images, config.resolve("laptop", None, given), budget, classes=names,
            views_map=views_map, labels_complete=labels_complete,
            report=lambda done, of: progress("score", done, of, "images"),
        )  # fmt: skip
    for note in found.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    about = {
        "strategy": found.strategy, "uncertainty": "views" if found.from_views else "class entropy", "budget": budget,
        "candidates": found.candidates,
    }  # fmt: skip
    match format:
        case ListFormat.CSV:
            text = ranked.as_csv(found.images, found.classes, found.queries)
        case ListFormat.JSON:
            text = ranked.as_json(found.images, found.classes, found.queries, found.class_frequency, about)
        case ListFormat.COCO:
            text = ranked.as_coco(found.images, found.classes, found.queries)
        case ListFormat.LABELSTUDIO:
            shown = sheets([(record, record.path) for record in found.images.values()], found.queries)
            text = json.dumps(labelstudio.tasks(shown, found.classes, image_url or ""), ensure_ascii=False) + "\n"
            if to:
                write_text(to.with_suffix(".xml"), labelstudio.config(found.classes))
    if to:
        write_text(to, text)
    else:
        print(text, end="")
    listed = f"{len(found.queries)} of {found.candidates} open boxes by {found.strategy}"
    console.print(f"{listed}{f': {to}' if to else ''}", markup=False, soft_wrap=True)


@app.command()
def views(
    images: Annotated[Path, typer.Option(help="A folder of images, or a COCO file.")],
    to: Annotated[Path, typer.Option(help="Folder for the copies and their map, views.jsonl.")],
    views: Annotated[str | None, typer.Option(help="Which views, such as flip,cutout; four by default.")] = None,
    seed: Annotated[int, typer.Option(help="Root seed of what is drawn at random.")] = 0,
) -> None:
    """Write augmented copies of images, for `rarebox rank` to compare what a detector says of them."""
    from rarebox.copying import write_copies

    names = [n.strip() for n in views.split(",") if n.strip()] if views else config.Settings().scoring.views
    with progress_bars(False) as progress:
        done = write_copies(images, to, names, seed, lambda n, of: progress("copy", n, of, "images"))
    if done.unreadable:
        left_out = f"{len(done.unreadable)} images cannot be read and are left out, the first: {done.unreadable[0]}"
        console.print(f"note: {left_out}", markup=False, soft_wrap=True)
    print(f"{done.map}: {done.copies} copies of {done.images} images")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New folder for the project.")],
    images: Annotated[str | None, typer.Option(help="Folder or URL of photos that people are to label.")] = None,
    classes: Annotated[str | None, typer.Option(help="Names of the classes, a,b,c; more can be added later.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Labels that are there already (COCO, VOC, YOLO).")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Those labels leave objects out.")] = False,
    predictions: Annotated[Path | None, typer.Option(help="Boxes of a detector, offered on the first images.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Or a labelled data set (COCO, VOC, YOLO), or scenes, to simulate on.")
    ] = None,
    preset: Annotated[str, typer.Option(help="laptop or paper.")] = "laptop",
    changes: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as a.b=value; repeatable.")] = None,
) -> None:
    """Begin: a project of your own photos, to label in the browser, or settings for a simulation on a data set."""
    if (images is None) == (data is None):
        raise UserError("give either --images FOLDER (photos to label) or --data FOLDER (a labelled data set)")
    from rarebox.data.remote import is_url

    given = config.parse_changes(changes or [])
    if images is not None:
        place = images if is_url(images) else Path(images)
        init_project(folder, place, classes, labels, partial, predictions, preset, given)
        return
    from rarebox import loop
    from rarebox.files import write_text

    settings = config.resolve(preset, None, {"data": data if data == "scenes" else str(real(data or "")), **given})
    file = folder / "rarebox.yaml"
    if file.exists():
        raise UserError(f"{file} is there already; edit it, or name another folder")
    with progress_bars(as_json=False) as progress:
        dataset = loop.load_data(settings.data, progress)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(file, config.commented(settings))
    print_summary(dataset)
    console.print(f"\nsettings: {file}\nnext: rarebox run {folder / 'run'} --config {file}", markup=False)


def init_project(
    folder: Path, images: Path | str, classes: str | None, labels: Path | None, partial: bool, predictions: Path | None,
    preset: str, changes: dict[str, Any],
) -> None:  # fmt: skip
    """A project of photos."""
    from rarebox import outside
    from rarebox.project import Project, create

    names = [name for name in (classes or "").split(",") if name.strip()]
    said_before = None
    if predictions:
        every = config.resolve(preset, None, {"selection.strategy": "uncertainty"})
        numbered = names if predictions.suffix == ".json" else None  # COCO results have numbers in place of names
        here = images if isinstance(images, Path) else None
        said_before = outside.rank(predictions, None, None, here, every, 10**9, classes=numbered)
        names += [name for name in said_before.classes if name not in names]
    with progress_bars(as_json=False) as progress:
        problems = create(
            folder, images, names, labels, partial=partial, preset=preset, changes=changes, progress=progress
        )
    print_problems(problems)
    if problems:
        console.print(f"all {len(problems)} are listed in {folder / 'problems.json'}", markup=False, soft_wrap=True)
    project = Project(folder)
    store = project.store
    if said_before:
        count = take_predictions(project, said_before)
        console.print(f"{counted(count, 'box', 'boxes')} of {predictions} will be offered on the first images", markup=False, soft_wrap=True)  # fmt: skip  # noqa: E501
    said = store.labels().values()
    whole = sum(one.complete for one in said)
    if labels:
        known = f"; {whole} of them taken as labelled completely (--partial if not)" if whole else ""
        known += f"; {len(said) - whole} as labelled in part" if len(said) > whole else ""
        known = known or "; no label was taken in"
    else:  # answers that were there already
        known = f"; the store labels {whole} of them completely and {len(said) - whole} in part" if said else ""
    shown = ", ".join(store.classes()) or "none yet: the page asks for them"
    console.print(f"{len(store.images())} photos{known}. Classes: {shown}", markup=False, soft_wrap=True)
    console.print(f"settings: {folder / 'settings.yaml'}\nnext: rarebox serve {folder}", markup=False, soft_wrap=True)
    store.close()


def take_predictions(project: Any, ranked: Any) -> int:
    """Give another detector's boxes the numbers of the project's images and classes, and its pixels; how many there
    are."""
    from rarebox.boxes import rescaling
    from rarebox.classes import Classes

    images, by_name, classes = project.store.images(), ByName[int](), Classes(project.store.classes())
    for i, record in images.items():
        by_name.add(record.path, i)
    kept = []
    for query in ranked.queries:
        record = ranked.images[query.image_id]
        image_id = by_name.match(record.path)
        if image_id is None:
            continue
        size = (images[image_id].width, images[image_id].height)
        factors = rescaling((record.width, record.height) if record.width else size, size)
        if factors is None:
            raise UserError(
                f"{record.path}: the boxes are of a picture of {record.width} x {record.height} pixels, the photo has "
                f"{size[0]} x {size[1]}; let the detector look at the photos themselves"
            )
        guess = classes.find(ranked.classes[query.guess])
        kept.append(replace(query, image_id=image_id, guess=guess, box=query.box * factors))
    project.write_predictions(kept)
    return len(kept)


@app.command()
def serve(
    project: Annotated[Path, typer.Argument(help="Folder of the project (`rarebox init` makes it).")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port; by default 8765 or the next that is free.", min=0, max=65535)
    ] = None,
    people: Annotated[str | None, typer.Option(help="Who may come in, anna,ben: a link for each of them.")] = None,
    also: Annotated[
        list[str] | None, typer.Option("--name", help="Another host name the server goes by; repeatable.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
    label_studio: Annotated[bool, typer.Option("--label-studio", help="Print the address for Label Studio.")] = False,
    engine: Engine = EngineName.LOCAL,
    address: Address = None,
) -> None:
    """Ask people in the browser, and train and choose the next questions meanwhile."""
    from rarebox.web.serve import leave
    from rarebox.web.serve import serve as serve_project

    names = [name for name in (people or "").split(",") if name.strip()]
    serve_project(
        project, host, port, names, browser=browser, also=also or [], label_studio=label_studio,
        engine=[engine, *([address] if address else [])],
        say=lambda line: console.print(line, markup=False, soft_wrap=True),
    )  # fmt: skip
    leave()


def print_summary(dataset: Any) -> None:
    """Images, objects per class and problems of a data set, as a table."""
    from rarebox.evaluate import imbalance_factor
    from rarebox.loop import count_classes

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


def print_problems(problems: Sequence[Any]) -> None:
    """How many problems of each kind there are, and the first of each."""
    for kind, count in Counter(p.kind for p in problems).most_common():
        first = next(p for p in problems if p.kind == kind)
        console.print(f"{count} x {kind}, the first: {first.where}: {first.what}", markup=False, soft_wrap=True)


@app.command()
def doctor(
    data: Annotated[str | None, typer.Option(help="Also look at this data set.")] = None, as_json: AsJson = False
) -> None:
    """Say what is installed, what was found, and what to do about what is missing."""
    from rarebox.doctor import examine

    found = examine(data)
    if as_json:
        print(json.dumps([check._asdict() for check in found]))
    else:
        for check in found:
            mark = "[green]ok  [/green]" if check.ok else "[yellow]miss[/yellow]" if check.needed else "–   "
            console.print(mark, end=" ")
            console.print(
                f"{check.name}: {check.found}" + (f"\n     -> {check.advice}" if check.advice else ""),
                markup=False,
                soft_wrap=True,
            )


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit
