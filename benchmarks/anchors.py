"""AP50 by the width of the smallest anchor on small inputs: frozen backbone, all labels, one seed.

    python benchmarks/anchors.py [--data aquarium=FOLDER] [--only scenes-retinanet]

With ``detector.anchor_cells`` 0 anchors shrink with the input without a limit. Finished measurements are not repeated.
Results are appended to ``benchmarks/results/anchors.jsonl``, each with its command.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "anchors.jsonl"

CASES = (
    ("scenes", "retinanet", 160, 600, (0, 2, 3, 4)),
    ("scenes", "faster_rcnn", 160, 400, (0, 2, 3, 4)),
    ("aquarium", "retinanet", 256, 400, (0, 3, 4)),
    ("aquarium", "faster_rcnn", 256, 300, (0, 3, 4)),
    ("aquarium", "retinanet", 320, 400, (0, 3)),
    ("aquarium", "faster_rcnn", 320, 400, (0, 3)),
)
"""Data set, detector, short side of the input in pixels, steps, anchor cells."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", action="append", default=[], help="location of a data set, NAME=FOLDER")
    options.add_argument("--only", default="", help="only cases whose name starts with this")
    given = options.parse_args()
    places = {"scenes": "scenes", **dict(place.split("=", 1) for place in given.data)}
    measured = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.exists() else []
    done = {json.loads(line)["command"] for line in measured}
    for data, detector, size, steps, several in CASES:
        for cells in several if f"{data}-{detector}-{size}".startswith(given.only) and data in places else ():
            changes = {
                "budget": "[]",
                "initial_images": 100_000,
                "detector.image_size": size,
                "training.steps": steps,
                "training.epochs": 1,
                "scoring.views": "[flip]",
                "detector.anchor_cells": cells,
            }
            words = ["--detector", detector, "--freeze", "backbone"]
            words += [word for name, value in changes.items() for word in ("--set", f"{name}={value}")]
            command = shlex.join(["rarebox", "run", "OUT", "--data", data, *words])
            if command in done:
                continue
            with tempfile.TemporaryDirectory() as scratch:
                out = Path(scratch) / "run"
                here = [sys.executable, "-m", "rarebox", "run", str(out), "--data", places[data], *words]
                subprocess.run(here, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                (record,) = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
            line = {"command": command, "data": data, "detector": detector, "image_size": size, "steps": steps}
            line |= {"anchor_cells": cells, "ap50": record["ap50"]}
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
