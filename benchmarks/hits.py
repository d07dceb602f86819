"""How well P(object) is calibrated on the boxes of the pool that are still open, by several ways to learn it.

    python benchmarks/hits.py RUN [RUN ...] --to benchmarks/results/hits.jsonl --figure docs/images/hits.png

For each cycle of finished simulations that follows a cycle of box questions, it learns P(object) from the answers of
that cycle, as the loop does, and compares it with the truth of all open candidates:

- ``score``: the detector's score, unchanged;
- ``isotonic``: isotonic regression of the answers on the score;
- ``logistic``: :func:`rarebox.loop.hits.fit` on u(b) and cons(b) beside the score, which the loop uses;
- ``isotonic+probes`` and ``logistic+probes``: also with probes, 8 % more questions drawn at random within strata of the
  score, and answered truthfully; the mean of ten draws.

ECE is the expected calibration error over ten bins of equally many boxes, ``brier`` the mean squared error, and AUC the
area under the ROC curve. One JSON line per run and cycle; the figure is a reliability diagram of all lines.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from sklearn.metrics import brier_score_loss, roc_auc_score

from rarebox.core.boxes import nearest
from rarebox.data import datasets
from rarebox.labels.store import Store
from rarebox.labels.targets import calibration
from rarebox.loop import hits
from rarebox.loop.run_folder import RunFolder
from rarebox.method import hit_probability
from rarebox.pool.candidates import Shards, rows_by_image
from rarebox.pool.ranking import Answered, open_pieces
from rarebox.strategies.box import evidence
from rarebox.types import JUDGED, Bools, Candidates, Floats, GroundTruth, ImageLabels, Ints, concatenate

BINS, DRAWS, PROBES = 10, 10, 0.08


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--to", type=Path, required=True, help="file of lines; new ones are added")
    parser.add_argument("--figure", type=Path)
    given = parser.parse_args()
    with given.to.open("a") as file:
        for run in given.runs:
            for line in lines(run):
                file.write(json.dumps(line) + "\n")
                print(json.dumps({k: v for k, v in line.items() if k != "curves"}), flush=True)
    if given.figure:
        draw([json.loads(line) for line in given.to.read_text().splitlines()], given.figure)


def lines(folder: Path) -> list[dict[str, object]]:
    """The measurements of one run."""
    place = RunFolder(folder)
    settings = place.read_settings()
    dataset = datasets.load_data(settings.data)
    found = []
    with Store(place.store, classes=dataset.classes, flush=False) as store:
        for cycle in range(3, len(settings.budget) + 2):
            pools, rights = [], []
            for at in (cycle - 1, cycle):
                labels = store.labels(up_to_cycle=at - 1)
                shards = Shards(sorted((place.cycle(at) / "candidates").glob("shard_*.parquet")))
                pools.append(concatenate(list(open_pieces(shards, Answered(labels), settings))))
                rights.append(shows_object(pools[-1], dataset.train.truth, labels, settings.oracle.iou))
            places = {
                (int(image), *box): row
                for row, (image, box) in enumerate(zip(pools[0].image_id, pools[0].boxes.tolist(), strict=True))
            }
            asked = [
                (places[key], answer.verdict is hits.Verdict.OBJECT)
                for query, answer in store.answered(cycle - 1)
                if query.box is not None
                and answer.verdict in JUDGED
                and (key := (query.image_id, *query.box.tolist())) in places
            ]
            if len(asked) >= BINS:
                rows, right = map(np.array, zip(*asked, strict=True))
                measured = compare(pools[0], pools[1], rights[0], rights[1], rows, right)
                about = {"data": dataset.name, "run": "/".join(folder.parts[-2:]), "seed": settings.seed}
                found.append({**about, "strategy": settings.selection.strategy, "cycle": cycle, **measured})
    return found


def shows_object(
    found: Candidates, truth: Mapping[int, GroundTruth], labels: Mapping[int, ImageLabels], iou: float
) -> Bools:
    """Which candidates a truthful annotator would take for an object that has no label yet: (T,)."""
    right = np.zeros(len(found), dtype=bool)
    for image_id, rows in rows_by_image(found).items():
        objects = truth[image_id].boxes[~truth[image_id].difficult]
        if image_id in labels and len(objects):
            objects = objects[nearest(objects, labels[image_id].boxes)[1] < iou]
        if len(objects):
            right[rows] = nearest(found.boxes[rows], objects)[1] >= iou
    return right


def compare(
    before: Candidates, now: Candidates, right_before: Bools, right_now: Bools, rows: Ints, answers: Bools
) -> dict[str, object]:
    """Learn from the answers on ``rows`` of the pool before, with and without probes; measure on the pool now."""
    known, new = evidence(before), evidence(now)

    def isotonic(rows: Ints, right: Bools) -> Floats:
        return np.interp(now.scores, *calibration(before.scores[rows], right))

    def logistic(rows: Ints, right: Bools) -> Floats:
        return hit_probability(new, hits.fit(known[rows], right))

    def with_probes(learn: Callable[[Ints, Bools], Floats]) -> list[Floats]:
        strata = np.array_split(np.argsort(before.scores, kind="stable"), max(round(PROBES * len(rows)), 1))
        predicted = []
        for seed in range(DRAWS):
            dice = np.random.default_rng(seed)
            probes = np.array([dice.choice(stratum) for stratum in strata])
            predicted.append(learn(np.r_[rows, probes], np.r_[answers, right_before[probes]]))
        return predicted

    ways = {
        "score": [now.scores.astype(float)],
        "isotonic": [isotonic(rows, answers)],
        "logistic": [logistic(rows, answers)],
        "isotonic+probes": with_probes(isotonic),
        "logistic+probes": with_probes(logistic),
    }
    figures = {
        name: {
            measure: round(float(np.mean([of(right_now, p) for p in predicted])), 4)
            for measure, of in (("ece", ece), ("brier", brier_score_loss), ("auc", roc_auc_score))
        }
        for name, predicted in ways.items()
    }
    return {
        "open": len(now),
        "objects": round(float(right_now.mean()), 4),
        "answers": len(rows),
        "hits": round(float(answers.mean()), 4),
        **figures,
        "curves": {name: curve(right_now, predicted[0]) for name, predicted in ways.items() if "probes" not in name},
    }


def curve(right: Bools, predicted: Floats) -> list[tuple[float, float]]:
    """Mean probability and share of objects in bins of equally many boxes."""
    parts = np.array_split(np.argsort(predicted, kind="stable"), BINS)
    return [(round(float(predicted[p].mean()), 4), round(float(right[p].mean()), 4)) for p in parts]


def ece(right: Bools, predicted: Floats) -> float:
    """The expected calibration error: how far the means of the bins are apart, on average."""
    return float(np.mean([abs(said - true) for said, true in curve(right, predicted)]))


def draw(lines: list[dict], file: Path) -> None:
    """One panel per data set: the share of objects against P(object), a thin line per run."""
    import matplotlib.pyplot as plt

    names = sorted({line["data"] for line in lines})
    figure, axes = plt.subplots(1, len(names), figsize=(4 * len(names), 4), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for way, colour in (("score", "0.45"), ("isotonic", "#d95f02"), ("logistic", "#1b6ca8")):
            for number, line in enumerate(line for line in lines if line["data"] == name):
                label = way if not number else None
                axis.plot(*zip(*line["curves"][way], strict=True), ".-", color=colour, linewidth=1, label=label)
        axis.set(title=name, xlabel="P(object)", xlim=(0, 1), ylim=(0, 1))
    axes[0][0].set_ylabel("share of objects")
    axes[0][0].legend(frameon=False)
    figure.tight_layout()
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
