"""Detections on an image and on its views -> candidates: scored boxes of the pool; and p(l), and their files."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from rarebox import method
from rarebox.config import ScoringSettings
from rarebox.core import parquet
from rarebox.core.boxes import nearest, suppress
from rarebox.pool.affine import Frame
from rarebox.types import Bools, Candidates, Detections, Floats, ImageScores, Ints, concatenate


def score_image(
    image_id: int,
    found: Sequence[Detections],
    frames: Sequence[Frame],
    settings: ScoringSettings,
    num_classes: int,
    matched: tuple[Ints, Floats] | None = None,
    lowest: float | None = None,
) -> tuple[Candidates, ImageScores]:
    """The candidates of one image, best score first, and what CALD says of the image as a whole (one row).

    ``found``: detections on the image, in its pixels, then on each of its M views, in the view's pixels. ``frames`` (M)
    map the image's pixels into those of each view; a view does not count for the boxes that it hides. ``matched`` is
    what :func:`find_partners` would return, where that is known. Detections from the score ``lowest`` on are kept, by
    default from ``settings.candidate_threshold`` on.
    """
    detections, views = found[0], found[1:]
    partner, iou = matched or find_partners(detections, views, frames)
    hidden = np.array([frame.hides(detections.boxes) for frame in frames], dtype=bool).reshape(iou.shape)
    view_score, js = compare_views(detections, views, partner, settings.js_base)
    lost = iou == 0
    instead = {"formula": 0.0, "skip": np.nan, "most_uncertain": settings.beta}[settings.unmatched]
    iou_seen = np.where(hidden, np.nan, np.where(lost, instead, iou))
    iou_kept = np.where(hidden | (lost & (settings.unmatched == "skip")), np.nan, iou)
    js_seen = np.where(lost, 1.0, js) if settings.unmatched == "most_uncertain" else js  # c(b) is 0 in any base

    rows = _choose(detections, settings, settings.candidate_threshold if lowest is None else lowest)
    boxes = detections[rows]
    consistency = method.consistency(
        boxes.scores, view_score[:, rows], js_seen[:, rows], iou_seen[:, rows], settings.beta
    )
    seen = (partner >= 0) & ~hidden
    candidates = Candidates(
        np.full(len(boxes), image_id),
        np.arange(len(boxes)),
        boxes.boxes,
        boxes.labels,
        boxes.scores,
        method.uncertainty(consistency, settings.beta),
        method.box_consistency(iou_kept[:, rows]),
        boxes.class_probs,
        boxes.features,
        class_disagreement(boxes, views, partner[:, rows], seen[:, rows], num_classes),
        box_disagreement(boxes, views, frames, partner[:, rows], seen[:, rows]),
    )
    iou_counted = np.where(hidden, np.nan, iou)
    return candidates, ImageScores(
        np.array([image_id]),
        np.array([_least_consistency(detections, views, view_score, js, iou_counted, settings.beta)]),
        _best_scores(found, num_classes)[None],
    )


def _choose(found: Detections, settings: ScoringSettings, lowest: float) -> Ints:
    """Rows that become candidates: scored high enough, one per object, the best of the image (decisions 7, 8)."""
    rows = (found.scores >= lowest).nonzero()[0]
    rows = rows[suppress(found.boxes[rows], found.scores[rows], settings.candidate_nms)]
    return rows[np.argsort(-found.scores[rows], kind="stable")][: settings.per_image]


def find_partners(boxes: Detections, views: Sequence[Detections], frames: Sequence[Frame]) -> tuple[Ints, Floats]:
    """b_m of Eq. 2: on each view the detection of largest IoU with b, whatever its class (decisions row 2).

    b is mapped into the view, where both are cut at the border. N boxes, M views -> the row of b_m, or -1 where nothing
    overlaps, and IoU(b, b_m), 0 there: (M, N) each.
    """
    partner, iou = np.full((len(views), len(boxes)), -1), np.zeros((len(views), len(boxes)))
    for m, (view, frame) in enumerate(zip(views, frames, strict=True)):
        partner[m], iou[m] = nearest(frame.to_view(boxes.boxes), frame.cut(view.boxes))
    return partner, iou


def compare_views(
    boxes: Detections, views: Sequence[Detections], partner: Ints, js_base: float
) -> tuple[Floats, Floats]:
    """Score of b_m, and JS(b, b_m): (M, N) each; 0 and 1 (the logarithm's bound in other bases) where there is none."""
    view_score, js = np.zeros(partner.shape), np.full(partner.shape, np.log(2) / np.log(js_base))
    for m, view in enumerate(views):
        met = partner[m] >= 0
        view_score[m, met] = view.scores[partner[m, met]]
        js[m, met] = method.js_divergence(boxes.class_probs[met], view.class_probs[partner[m, met]], js_base)
    return view_score, js


def class_disagreement(
    boxes: Detections, views: Sequence[Detections], partner: Ints, seen: Bools, num_classes: int
) -> Floats:
    """ComPAS: the loss of each b_m's class vector against b's label, -ln p, mean over the views that saw it.

    ``partner`` and ``seen`` are (M, N) -> (N,) from 0 up, NaN where no view saw the box.
    """
    loss = np.full(partner.shape, np.nan)
    for m, view in enumerate(views):
        at = seen[m].nonzero()[0]
        column = boxes.labels[at] + view.class_probs.shape[1] - num_classes  # background, where there is, comes first
        loss[m, at] = -np.log(np.maximum(view.class_probs[partner[m, at], column], 1e-12))
    return _mean_where(seen, loss)


def box_disagreement(
    boxes: Detections, views: Sequence[Detections], frames: Sequence[Frame], partner: Ints, seen: Bools
) -> Floats:
    """ComPAS: how far b and its b_m lie apart: the standard deviation of each coordinate over b's width or height,
    mean over the four: (N,) from 0 up, NaN where no view saw the box. Each b_m is taken back to the image."""
    places = np.full((len(views) + 1, len(boxes), 4), np.nan)
    places[0] = boxes.boxes
    for m, view in enumerate(views):
        at = seen[m].nonzero()[0]
        places[m + 1, at] = frames[m].back(view.boxes[partner[m, at]])
    with_self = np.concatenate([np.ones((1, len(boxes)), dtype=bool), seen])[..., None]
    spread = np.sqrt(_mean_where(with_self, (places - _mean_where(with_self, places)) ** 2))
    size = np.tile(boxes.boxes[:, 2:] - boxes.boxes[:, :2], 2)
    return np.where(seen.any(axis=0), (spread / size).mean(axis=1), np.nan)


def _mean_where(counts: Bools, value: Floats) -> Floats:
    """Mean over the first axis of what counts; NaN where nothing does."""
    number = counts.sum(axis=0)
    return np.divide(
        np.where(counts, value, 0).sum(axis=0), number, out=np.full(value.shape[1:], np.nan), where=number > 0
    )


MOST_REFERENCES, REFERENCES = 40, 50
"""CALD: of more than 40 detections, 50 evenly spaced ranks are looked at."""


def _least_consistency(
    boxes: Detections, views: Sequence[Detections], view_score: Floats, js: Floats, iou: Floats, beta: float
) -> float:
    """CALD's image score: the least |IoU + (s + s_m) / 2 (1 - JS) - beta| of any detection, mean over the views.

    0, the most informative, for an image without detections and for a view without any.
    """
    if not len(boxes):
        return 0.0
    ranks = np.argsort(-boxes.scores, kind="stable")
    if len(ranks) > MOST_REFERENCES:
        ranks = ranks[np.linspace(0, len(ranks) - 1, REFERENCES).astype(int)]
    value = np.abs((boxes.scores + view_score) / 2 * (1 - js) + iou - beta)[:, ranks]
    least = np.where(np.isnan(value), np.inf, value).min(axis=1)
    least[[not len(view) for view in views]] = 0.0
    judging = np.isfinite(least)  # the other views hide every detection
    return float(least[judging].mean()) if judging.any() else beta


def _best_scores(found: Sequence[Detections], num_classes: int) -> Floats:
    """The best score of each class, mean over the image and its views: (K,)."""
    best = np.zeros((len(found), num_classes))
    for row, detections in zip(best, found, strict=True):
        np.maximum.at(row, detections.labels, detections.scores)
    return best.mean(axis=0)


def class_frequency(
    pieces: Iterable[tuple[Ints, Floats]], human_counts: Ints, threshold: float, reading: str = "hard"
) -> Floats:
    """p(l) of Eq. 1 for each class, from the candidates that are not yet answered: (K,) (decisions row 10).

    ``pieces``: labels (T,) and scores (T,) of those candidates, a piece of the pool at a time. ``hard``: shares among
    those with score >= ``threshold``; ``soft``: shares of the summed scores; ``with_labels``: hard, human boxes counted
    too; ``max_normalised``: hard, divided by the largest. All 0 when there are none.
    """
    counts = np.zeros(len(human_counts))
    for labels, scores in pieces:
        # One after the other in the order of the rows, so that no cut between two pieces changes a sum.
        np.add.at(counts, labels, scores if reading == "soft" else scores >= threshold)
    if reading == "with_labels":
        counts = counts + human_counts
    total = counts.max() if reading == "max_normalised" else counts.sum()
    return np.asarray(counts / max(float(total), 1e-12))


NARROW = ("class_probs", "features")
"""Columns kept as float16."""


def write(file: Path, rows: Candidates | ImageScores) -> None:
    """Write a table as Parquet, without the columns it lacks; wide ones as float16. Whole or not at all."""
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    parquet.write(
        file,
        {n: c.astype(np.float16) if n in NARROW else c for n, c in columns.items() if c is not None},
    )


PIECE, WIDE_PIECE = 2**18, 2**15
"""Rows of a shard in memory at once; fewer where wide columns are read."""

PLAIN = ("image_id", "box_index", "boxes", "labels", "scores", "uncertainty", "box_consistency")
"""What every candidate has; the other columns are read where somebody needs them."""

REST = tuple(f.name for f in fields(Candidates) if f.name not in PLAIN)


@dataclass(frozen=True, eq=False)
class Shards:
    """All candidates of a pool, which may be more than the memory holds: they come in pieces, as often as wanted.

    ``parts`` are files that :func:`write` wrote, or tables in memory, in their order; ``counts_as`` (K,), if given, is
    what each label counts as.
    """

    parts: Sequence[Path | Candidates]
    counts_as: Ints | None = None

    def columns(self, names: Collection[str]) -> Iterator[dict[str, Any]]:
        """Columns by name, those that are there, piece by piece; nothing else is read."""
        rows = WIDE_PIECE if {*NARROW} & {*names} else PIECE
        for part in self.parts:
            if isinstance(part, Path):
                pieces = parquet.batches(part, names, rows)
            else:
                pieces = iter([{name: c for name in names if (c := getattr(part, name)) is not None}])
            for piece in pieces:
                if self.counts_as is not None and "labels" in piece:
                    piece["labels"] = self.counts_as[piece["labels"]]
                yield piece

    def pieces(self, rest: Collection[str] = ()) -> Iterator[Candidates]:
        """Candidates with the columns that all have, and those of the ``rest`` that are wanted."""
        for piece in self.columns({*PLAIN, *rest}):
            yield Candidates(**{"class_probs": np.zeros((len(piece["labels"]), 0)), **piece})

    def of_images(self, ids: Collection[int]) -> dict[int, Candidates]:
        """Candidates of some images, by image id; of the others nothing stays in memory."""
        wanted = np.fromiter(ids, np.int64, len(ids))
        found = [piece[mask] for piece in self.pieces() if (mask := np.isin(piece.image_id, wanted)).any()]
        together = concatenate(found) if found else Candidates.none(0)
        return {image_id: together[rows] for image_id, rows in rows_by_image(together).items()}


def read_all(folder: Path) -> Candidates:
    """The candidates of all shards of a folder, in the order of their names."""
    return concatenate([Candidates(**parquet.read(file)) for file in sorted(folder.glob("shard_*.parquet"))])


def read_images(folder: Path) -> ImageScores:
    """The image scores of all shards of a folder, in the order of their names."""
    return concatenate([ImageScores(**parquet.read(file)) for file in sorted(folder.glob("images_*.parquet"))])


def rows_by_image(candidates: Candidates) -> dict[int, Ints]:
    """Row numbers of each image's candidates, by image id."""
    order = np.argsort(candidates.image_id, kind="stable")
    ids, starts = np.unique(candidates.image_id[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
