"""Kill a small run with SIGKILL at random moments, start it again each time, and compare with a run never killed.

    python benchmarks/kill_and_resume.py [--kills 20] [--detector retinanet]

Exits with 1 unless metrics (time fields aside), questions and answers are the same in the end.
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

from rarebox.run_folder import RunFolder
from rarebox.store import Store


def outcome(out: Path) -> object:
    """All that a run decided."""
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
            sys.executable, "-m", "rarebox", "run", str(folder / out), "--data", str(data), "--json", "--detector",
            chosen.detector, *settings,
        ]  # fmt: skip

    start = time.monotonic()
    subprocess.run(command("whole"), check=True, capture_output=True)
    whole = time.monotonic() - start
    kills, where = 0, []
    while kills < chosen.kills:
        child = subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True)
        time.sleep(moments.uniform(0.3, 0.6) * whole)
        child.send_signal(signal.SIGKILL)
        said = child.communicate()[0].splitlines()
        if child.returncode == 0:  # it was faster than the kill: begin again in a new folder, the kills count on
            break
        kills += 1
        where.append(json.loads(said[-1]).get("stage", "between cycles") if said else "starting")
    subprocess.run(command("killed"), check=True, capture_output=True)
    same = outcome(folder / "killed") == outcome(folder / "whole")
    print(json.dumps({"detector": chosen.detector, "kills": kills, "killed_in": where, "same": same}))
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
