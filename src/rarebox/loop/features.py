"""Features of labelled boxes and of images, computed with the previous cycle's model."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from rarebox import strategies
from rarebox.loop.run import Run, batches, extract, load_detector
from rarebox.pool.similar import BoxFeatures
from rarebox.types import ImageLabels, as_boxes


def features(
    run: Run, cycle: int, labels: Mapping[int, ImageLabels], untouched: Sequence[int]
) -> dict[str, np.ndarray]:
    """Compute the features that the strategy needs, with the previous model, as fields of LabelState."""
    needs = strategies.NEEDS.get(run.settings.selection.strategy, set()) - {"features"}
    if not needs:
        return {}
    if "box_features" in needs:
        return {"box_features": labelled_features(run, cycle, labels).features}
    detector = load_detector(run, cycle - 1)
    records = {record.id: record for record in run.pool.records}  # without held-out images, which are labelled too
    extract(run, run.pool)

    def image_features(ids: Sequence[int]) -> np.ndarray:
        """The features of the images with these ids, in this order. Every batch holds one shape."""
        pictures = run.pool.of([records[i] for i in ids])
        rows = list(batches(pictures, run.settings.scoring.batch_size))
        found = [detector.image_features(batch) for _, batch in pictures.in_batches(rows)]
        return np.concatenate(found)[np.argsort(np.concatenate(rows))] if rows else np.zeros((0, 0), np.float32)

    with run.stage("features"):
        return {
            "image_features": image_features(untouched),
            "labelled_image_features": image_features(sorted(i for i, said in labels.items() if said.complete)),
        }


def labelled_features(run: Run, cycle: int, labels: Mapping[int, ImageLabels]) -> BoxFeatures:
    """The labelled boxes of the pool with their features by the previous model."""
    detector = load_detector(run, cycle - 1)
    records = {record.id: record for record in run.pool.records}  # without held-out images, which are labelled too
    pictures = run.pool.of([records[i] for i in labels if i in records and len(labels[i].boxes)])
    extract(run, pictures)
    ids, found = list[int](), list[np.ndarray]()
    with run.stage("features") as report:
        for rows, batch in pictures.in_batches(batches(pictures, run.settings.scoring.batch_size)):
            here = [pictures.records[i].id for i in map(int, rows)]
            found += detector.box_features(batch, [labels[i].boxes for i in here])
            ids += here
            report(len(ids), len(pictures), "images")
    return BoxFeatures(
        np.repeat(np.array(ids, dtype=np.int64), [len(labels[i].boxes) for i in ids]),
        np.concatenate([as_boxes([]), *(labels[i].boxes for i in ids)]),
        np.concatenate(found) if found else np.zeros((0, 0), np.float32),
    )


def some_of_each_class(labels: Mapping[int, ImageLabels], most: int) -> dict[int, ImageLabels]:
    """The labels of so many images, the highest ids first, that there are ``most`` boxes of each class if possible."""
    chosen, seen = dict[int, ImageLabels](), Counter[int]()
    for image_id, said in sorted(labels.items(), reverse=True):
        if any(seen[label] < most for label in said.labels.tolist()):
            chosen[image_id] = said
            seen.update(said.labels.tolist())
    return chosen
