"""Train one cycle of a finished run again with other settings, everything else equal, to find the cause of an effect.

    python benchmarks/refit.py RUN CYCLE --set pseudo.method=ignore_only --set training.steps=1000

The answers and candidates of the run are reused. Only the targets and the fit are new, in a temporary folder. Prints
one JSON line: settings, images, boxes, AP50.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

from rarebox import config
from rarebox.data import datasets
from rarebox.labels.store import Store
from rarebox.loop import cycle, simulate
from rarebox.loop.run_folder import RunFolder
from rarebox.pool.candidates import Shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("cycle", type=int)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    given = parser.parse_args()
    before = RunFolder(given.run)
    told = before.read_settings().model_dump(mode="json")
    for name, value in config.parse_changes(given.changes).items():
        *sections, last = name.split(".")
        place = told
        for section in sections:
            place = place[section]
        place[last] = value
    settings = config.check(told)
    dataset = datasets.load_data(settings.data)
    with tempfile.TemporaryDirectory() as scratch:
        here = RunFolder(Path(scratch))
        shutil.copy(before.store, here.store)
        with Store(here.store, classes=dataset.classes, flush=False) as store:
            run = simulate.open_run(here, settings, dataset, store, tell)
            run.cycle = given.cycle
            folder = before.cycle(given.cycle) / "candidates"
            found = Shards(sorted(folder.glob("shard_*.parquet"))) if given.cycle > 1 else None
            targets = cycle.training_targets(run, given.cycle, found)
            result = cycle.evaluate(run, given.cycle, cycle.retrain(run, given.cycle, targets))
    counts = {"images": len(targets), "boxes": sum(len(t) for t in targets.values())}
    line = {"run": given.run.name, "cycle": given.cycle, "set": given.changes, **counts, "ap50": result["ap50"]}
    print(json.dumps({**line, "per_class_ap50": result["per_class_ap50"]}))


def tell(stage: str, done: int, of: int, note: str) -> None:
    """Print a line of progress at every 50th step."""
    if done % 50 == 0:
        print(f"{stage}: {done} of {of} {note}", file=sys.stderr)


if __name__ == "__main__":
    main()
