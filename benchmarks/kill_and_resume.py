"""Kill a small run with SIGKILL at random moments, resume it each time, and compare it with a run never killed.

When a run finishes before the kills are used up, it is compared, and the next one starts.

    python -m benchmarks.kill_and_resume [--kills 20] [--detector retinanet] [--seed 0]

Exits with 1 unless metrics (except times), questions and answers are the same at the end.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.tiny import as_options, make_data

from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder


def outcome(out: Path) -> object:
    """The records of a run without times, and its questions and answers."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in RunFolder(out).records()]
    with Store(RunFolder(out).store) as store:
        said = [(q.image_id, q.box is None or q.box.tolist(), a.verdict, a.boxes.tolist()) for q, a in store.answered()]
    return json.loads(json.dumps([records, said]))


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=20)
    options.add_argument("--detector", default="retinanet")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args()
    moments, folder = random.Random(chosen.seed), Path(tempfile.mkdtemp())
    data = make_data(folder / "data")
    settings = as_options(training__steps=40, training__checkpoint_seconds=0.5, budget=[6, 6, 6])

    def command(out: str) -> list[str]:
        return [
            sys.executable,
            "-m",
            "rarebox",
            "run",
            str(folder / out),
            "--data",
            str(data),
            "--json",
            "--detector",
            chosen.detector,
            *settings,
        ]

    start = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True)
    seconds = time.monotonic() - start
    wanted = outcome(folder / "whole")
    kills, where, same, finished = 0, [], [], True
    while kills < chosen.kills or not finished:
        name = f"killed_{len(same)}"
        child = subprocess.Popen(command(name), stdout=subprocess.PIPE, text=True)
        patience = moments.uniform(0.2, 0.9) * seconds if kills < chosen.kills else None
        try:
            said, finished = child.communicate(timeout=patience)[0], True
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            said, finished = child.communicate()[0], False
        if finished:
            same.append(outcome(folder / name) == wanted)
            continue
        kills += 1
        whole_lines = said.rpartition("\n")[0].splitlines()
        where.append(json.loads(whole_lines[-1]).get("stage", "between cycles") if whole_lines else "starting")
    print(json.dumps({"detector": chosen.detector, "kills": kills, "killed_in": where, "same_in_the_end": same}))
    return 0 if same and all(same) else 1


if __name__ == "__main__":
    sys.exit(main())
