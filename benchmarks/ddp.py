"""A fit by several processes against one by a single process at the same batch: every loss term of every step.

    OMP_NUM_THREADS=1 python -m benchmarks.ddp [--steps 20] [--processes 2] [--images 10] [--batch-size 4] [--to FILE]

The targets have weights of every kind: 1, soft, 0, in one branch only, rejected boxes, none. The detectors start from
the packaged weights and train as the preset ``laptop`` does, on small pictures. In float32, rounding is all that may
differ, and it grows from step to step; in float64, what is left of a difference would be one of the method.
"""

import argparse
import json
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tests import crew
from tests.crew import Case

from rarebox import detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector

CASES = (("retinanet", "own"), ("retinanet", "batch"), ("retinanet", "paper"), ("faster_rcnn", "own"), ("faster_rcnn", "paper"))  # fmt: skip  # noqa: E501


def beginner(steps: int, case: Case) -> TorchDetector:
    """The detector of a case as it is before its fit."""
    training = TrainingSettings(
        steps=steps, epochs=0, batch_size=case.batch_size, scale_jitter=0.2, precision="float32"
    )
    return detectors.build(
        case.detector, 3, image_size=crew.SIZE, device="cpu", training=training, seed=0, normaliser=case.normaliser
    )


def compare(case: Case, steps: int, processes: int, exactly: bool, out: Path, number: int) -> dict[str, object]:
    """Largest differences of one case."""
    with crew.in_double_precision() if exactly else nullcontext(), crew.terms_noted() as alone:
        detector = beginner(steps, case)
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
    return {
        **case._asdict(), "processes": processes, "steps": steps, "precision": "float64" if exactly else "float32",
        "terms": terms, "weights_difference": max(float((ours[n] - theirs[n].double()).abs().max()) for n in ours),
        "weights_moved": max(float((ours[n] - before[n]).abs().max()) for n in ours),
    }  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--processes", type=int, default=2)
    options.add_argument("--images", type=int, default=10)
    options.add_argument("--batch-size", type=int, default=4)
    options.add_argument("--to", type=Path, default=Path("benchmarks/results/ddp.jsonl"))
    chosen = options.parse_args()
    cases = [Case(name, normaliser, chosen.batch_size, chosen.images) for name, normaliser in CASES]
    given = f"--steps {chosen.steps} --processes {chosen.processes} --images {chosen.images} --batch-size {chosen.batch_size}"  # fmt: skip  # noqa: E501
    lines: list[dict[str, object]] = [{"command": f"OMP_NUM_THREADS=1 python -m benchmarks.ddp {given}"}]
    for exactly in (False, True):
        out = Path(tempfile.mkdtemp())
        ended = crew.together(chosen.processes, crew.fit_cases, out, cases, partial(beginner, chosen.steps), exactly)
        assert set(ended) == {0}, ended
        for number, case in enumerate(cases):
            lines.append(compare(case, chosen.steps, chosen.processes, exactly, out, number))
            print(json.dumps(lines[-1]), flush=True)
    chosen.to.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
