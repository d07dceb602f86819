"""Detections on an image and on its views -> candidates: scored boxes of the pool; and p(l), and their files."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np

from rarebox import method, tables
from rarebox.boxes import iou_matrix, suppress
from rarebox.config import ScoringSettings
from rarebox.types import Bools, Candidates, Detections, Floats, Ints, concatenate


def score_image(image_id: int, found: Sequence[Detections], hidden: Bools, settings: ScoringSettings) -> Candidates:
    """The candidates of one image, best score first.

    ``found``: detections on the image, then on each of its M views, all in the original image's pixels. ``hidden``
    (M, N): which of the N detections on the image a view hides too much to judge (it then does not count for them).
    """
    chosen = _choose(found[0], settings)
    boxes = found[0][chosen]
    view_score, js, iou = match_views(boxes, found[1:], settings.js_base)
    lost = iou == 0
    instead = {"formula": 0.0, "skip": np.nan, "most_uncertain": settings.beta}[settings.unmatched]
    iou_seen = np.where(hidden[:, chosen], np.nan, np.where(lost, instead, iou))
    iou_kept = np.where(hidden[:, chosen] | (lost & (settings.unmatched == "skip")), np.nan, iou)
    if settings.unmatched == "most_uncertain":
        js = np.where(lost, 1.0, js)  # so that c(b) is 0 in any base
    consistency = method.consistency(boxes.scores, view_score, js, iou_seen, settings.beta)
    return Candidates(
        np.full(len(boxes), image_id),
        np.arange(len(boxes)),
        boxes.boxes,
        boxes.labels,
        boxes.scores,
        method.uncertainty(consistency, settings.beta),
        method.box_consistency(iou_kept),
        boxes.class_probs,
        boxes.features,
    )


def _choose(found: Detections, settings: ScoringSettings) -> Ints:
    """Rows that become candidates: scored high enough, one per object, the best of the image (decisions 7, 8)."""
    rows = (found.scores >= settings.candidate_threshold).nonzero()[0]
    rows = rows[suppress(found.boxes[rows], found.scores[rows], settings.candidate_nms)]
    return rows[np.argsort(-found.scores[rows], kind="stable")][: settings.per_image]


def match_views(boxes: Detections, views: Sequence[Detections], js_base: float) -> tuple[Floats, Floats, Floats]:
    """b_m of Eq. 2: on each view the detection of largest IoU with b, whatever its class.

    N boxes, M views -> score of b_m, JS(b, b_m), IoU(b, b_m), each (M, N). Where nothing overlaps: 0, 1 (the
    logarithm's bound in other bases), 0.
    """
    shape = (len(views), len(boxes))
    view_score, js, iou = np.zeros(shape), np.full(shape, np.log(2) / np.log(js_base)), np.zeros(shape)
    for m, view in enumerate(views):
        if not len(view) or not len(boxes):
            continue
        overlap = iou_matrix(boxes.boxes, view.boxes)
        partner = overlap.argmax(axis=1)
        iou[m] = overlap[np.arange(len(boxes)), partner]
        met = iou[m] > 0
        view_score[m, met] = view.scores[partner[met]]
        js[m, met] = method.js_divergence(boxes.class_probs[met], view.class_probs[partner[met]], js_base)
    return view_score, js, iou


def class_frequency(candidates: Candidates, human_counts: Ints, threshold: float, reading: str = "hard") -> Floats:
    """p(l) of Eq. 1 for each class, from the candidates that are not yet answered: (K,) (decisions row 10).

    ``hard``: shares among those with score >= ``threshold``; ``soft``: shares of the summed scores; ``with_labels``:
    hard, human boxes counted too; ``max_normalised``: hard, divided by the largest. All 0 when there are none.
    """
    sure = candidates.scores >= threshold
    weights = candidates.scores if reading == "soft" else sure.astype(float)
    counts = np.bincount(candidates.labels, weights, minlength=len(human_counts)).astype(float)
    if reading == "with_labels":
        counts = counts + human_counts
    total = counts.max() if reading == "max_normalised" else counts.sum()
    return np.asarray(counts / max(float(total), 1e-12))


def write(file: Path, candidates: Candidates) -> None:
    """Write candidates as Parquet; class vectors and features as float16. Whole or not at all."""
    columns = {f.name: getattr(candidates, f.name) for f in fields(candidates)}
    columns["class_probs"] = columns["class_probs"].astype(np.float16)
    if columns["features"] is None:
        del columns["features"]
    else:
        columns["features"] = columns["features"].astype(np.float16)
    tables.write(file, columns)


def read_all(folder: Path) -> Candidates:
    """All shards of a folder, in the order of their names."""
    return concatenate([Candidates(**tables.read(file)) for file in sorted(folder.glob("*.parquet"))])


def rows_by_image(candidates: Candidates) -> dict[int, Ints]:
    """Row numbers of each image's candidates, by image id."""
    order = np.argsort(candidates.image_id, kind="stable")
    ids, starts = np.unique(candidates.image_id[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
