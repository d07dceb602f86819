"""How many of the boxes that "find more like this" offers are of the class that was looked for.

    python benchmarks/similar.py RUN CYCLE >> benchmarks/results/similar.jsonl

The examples are boxes that the run had labelled before the cycle, those that a trainer keeps. Every class
is looked for once among all candidates of the cycle, and the offers are compared with the truth. Prints one JSON line:
of each class the share of right boxes among the first 30 (fewer if fewer reach the floor), among all from the floor up
and among all candidates, and the tenth percentile of the similarity of its boxes and the ninetieth of those of other
classes. Times are in processor seconds.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np

from rarebox.core.boxes import nearest
from rarebox.data import datasets
from rarebox.labels.store import Store
from rarebox.loop import simulate
from rarebox.loop.features import labelled_features, some_of_each_class
from rarebox.loop.run_folder import RunFolder
from rarebox.pool import last
from rarebox.pool.candidates import Shards, rows_by_image
from rarebox.pool.ranking import Answered, open_pieces
from rarebox.pool.similar import FLOOR, MOST, most_similar, similarity
from rarebox.project.trainer import EXAMPLES
from rarebox.types import concatenate


def main() -> None:
    place, number = RunFolder(Path(sys.argv[1])), int(sys.argv[2])
    settings = place.read_settings()
    dataset = datasets.load_data(settings.data)
    shards = Shards(sorted((place.cycle(number) / "candidates").glob("shard_*.parquet")))
    with Store(place.store, classes=dataset.classes, flush=False) as store:
        run = simulate.open_run(place, settings, dataset, store, lambda *_: None)
        run.cycle = number
        labels = store.labels(up_to_cycle=number - 1)
        found = concatenate(list(open_pieces(shards, Answered(labels), settings)))
        chosen = some_of_each_class(labels, EXAMPLES)
        known = labelled_features(run, number, chosen)
    examples = last.sketch(known.features)
    example_labels = np.concatenate([chosen[i].labels for i in dict.fromkeys(known.image_id.tolist())])
    true = np.full(len(found), -1)
    for image_id, rows in rows_by_image(found).items():
        objects = dataset.train.truth[image_id]
        partner, iou = nearest(found.boxes[rows], objects.boxes)
        true[rows] = np.where(iou >= settings.oracle.iou, objects.labels[partner], -1)
    features = last.features_of(found, shards)
    if features is None:
        sys.exit("the run kept no features: selection.duplicate_cosine is 1")
    line: dict[str, object] = {"data": dataset.name, "cycle": number, "candidates": len(found)}
    for label, name in enumerate(dataset.classes):
        if not (example_labels == label).any():
            continue
        start = time.process_time()
        cosines = similarity(features, examples[example_labels == label])
        order = most_similar(cosines)
        taken, right = time.process_time() - start, true == label
        line[name] = {
            "examples": int((example_labels == label).sum()),
            "first": round(float(right[order[:MOST]].mean()), 3),
            "from_floor": round(float(right[cosines >= FLOOR].mean()), 3),
            "all": round(float(right.mean()), 3),
            "own_tenth": round(float(np.quantile(cosines[right], 0.1)), 3),
            "others_ninetieth": round(float(np.quantile(cosines[(true >= 0) & ~right], 0.9)), 3),
            "seconds": round(taken, 3),
        }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
