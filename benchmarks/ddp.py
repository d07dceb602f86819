"""A fit by several processes compared with one process at the same batch: every loss term of every step.

    OMP_NUM_THREADS=1 python -m benchmarks.ddp [--precision float64] [--optimiser sgd] [--steps 20] [--processes 2]

The targets have weights of every kind: 1, soft, 0, in one branch only, rejected boxes, none. The detectors start from
the packaged weights and train on small images like the preset ``laptop`` (AdamW) or ``paper`` (SGD). In float32 only
rounding may differ. It grows from step to step, faster with AdamW, which divides by the size of the gradients. In
float64 a remaining difference would be an error of the method. Results are appended to
``benchmarks/results/ddp.jsonl``.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests import crew
from tests.crew import Case

from rarebox import config, detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector

CASES = (
    ("retinanet", "own"),
    ("retinanet", "batch"),
    ("retinanet", "paper"),
    ("faster_rcnn", "own"),
    ("faster_rcnn", "paper"),
)


RESULTS = Path(__file__).parent / "results" / "ddp.jsonl"


def beginner(steps: int, optimiser: str, case: Case) -> TorchDetector:
    """Build the detector of a case, before its fit."""
    preset = "paper" if optimiser == "sgd" else "laptop"
    settings = config.resolve(preset, None, {"detector.name": case.detector}).training
    changes: dict[str, Any] = {
        "steps": steps,
        "epochs": 0,
        "batch_size": case.batch_size,
        "scale_jitter": 0.2,
        "precision": "float32",
        **({"warmup_steps": 1} if optimiser == "sgd" else {}),  # otherwise almost nothing changes in so few steps
    }
    training = TrainingSettings.model_validate({**settings.model_dump(), **changes})
    return detectors.build(
        case.detector, 3, image_size=crew.SIZE, device="cpu", training=training, seed=0, normaliser=case.normaliser
    )


def compare(
    case: Case, begin: Callable[[Case], TorchDetector], processes: int, exactly: bool, out: Path, number: int
) -> dict[str, object]:
    """Return the largest differences of one case, in loss terms and weights."""
    with crew.in_double_precision() if exactly else nullcontext(), crew.terms_noted() as alone:
        detector = begin(case)
        before = {name: weight.double() for name, weight in detector.network.state_dict().items()}
        detector.fit(*crew.to_learn(case.images), seed=7)
    shares = [json.loads((out / f"{number}_{rank}.json").read_text(encoding="utf-8")) for rank in range(processes)]
    terms = {}
    for name, values in alone.items():
        apart = np.abs(np.mean([share[name] for share in shares if share], axis=0) - values)
        relative = (apart / np.maximum(np.abs(values), 1e-12)).max()
        terms[name] = {"largest": max(values), "difference": float(apart.max()), "relative": float(relative)}
    ours = {name: weight.double() for name, weight in detector.network.state_dict().items()}
    theirs = torch.load(out / f"{number}_0.pt", weights_only=True)
    apart, moved = (
        max(float((weight - other[name].double()).abs().max()) for name, weight in ours.items())
        for other in (theirs, before)
    )
    return {**case._asdict(), "processes": processes, "terms": terms, "weights_apart": apart, "weights_moved": moved}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--precision", choices=("float32", "float64"), default="float32")
    options.add_argument("--optimiser", choices=("adamw", "sgd"), default="adamw")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--processes", type=int, default=2)
    chosen = options.parse_args()
    cases = [Case(name, normaliser, batch_size=4, images=10) for name, normaliser in CASES]
    begin, exactly = partial(beginner, chosen.steps, chosen.optimiser), chosen.precision == "float64"
    out = Path(tempfile.mkdtemp())
    ended = crew.together(chosen.processes, crew.fit_cases, out, cases, begin, exactly, seconds=3600)
    assert set(ended) == {0}, ended
    given = " ".join(f"--{name} {value}" for name, value in vars(chosen).items())
    with RESULTS.open("a", encoding="utf-8") as file:
        for number, case in enumerate(cases):
            found = compare(case, begin, chosen.processes, exactly, out, number)
            line = json.dumps({"command": f"OMP_NUM_THREADS=1 python -m benchmarks.ddp {given}", **found})
            print(line, flush=True)
            file.write(line + "\n")


if __name__ == "__main__":
    main()
