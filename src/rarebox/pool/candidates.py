"""Candidates from detections on an image and its views: matching, Eq. 2 to Eq. 4, p(l) of Eq. 1, and their files."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

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
    """The candidates of one image (Eq. 2 to Eq. 4), best score first, and one row of CALD's scores for the image.

    ``found`` are the detections on the image, in its pixels, then on each of its M views, in the view's pixels.
    ``frames`` (M) map the image's pixels to those of each view; a view does not count for the boxes that it hides.
    ``matched`` is the result of :func:`find_partners` if it is known. Detections with a score of at least ``lowest``
    are kept (default: ``settings.candidate_threshold``).
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
    """Rows that become candidates: above the threshold, after NMS, the best of the image (decisions rows 7, 8)."""
    rows = (found.scores >= lowest).nonzero()[0]
    rows = rows[suppress(found.boxes[rows], found.scores[rows], settings.candidate_nms)]
    return rows[np.argsort(-found.scores[rows], kind="stable")][: settings.per_image]


def find_partners(boxes: Detections, views: Sequence[Detections], frames: Sequence[Frame]) -> tuple[Ints, Floats]:
    """b_m of Eq. 2: on each view the detection of any class with the largest IoU with b (decisions row 2).

    b is mapped into the view, and both boxes are clipped at its border. N boxes, M views -> the row of b_m, or -1
    where nothing overlaps, and IoU(b, b_m), 0 there: (M, N) each.
    """
    partner, iou = np.full((len(views), len(boxes)), -1), np.zeros((len(views), len(boxes)))
    for m, (view, frame) in enumerate(zip(views, frames, strict=True)):
        partner[m], iou[m] = nearest(frame.to_view(boxes.boxes), frame.cut(view.boxes))
    return partner, iou


def compare_views(
    boxes: Detections, views: Sequence[Detections], partner: Ints, js_base: float
) -> tuple[Floats, Floats]:
    """s_bm and JS(b, b_m) of Eq. 2: (M, N) each. Without a match 0 and log_base(2), the upper bound of JS."""
    view_score, js = np.zeros(partner.shape), np.full(partner.shape, np.log(2) / np.log(js_base))
    for m, view in enumerate(views):
        met = partner[m] >= 0
        view_score[m, met] = view.scores[partner[m, met]]
        js[m, met] = method.js_divergence(boxes.class_probs[met], view.class_probs[partner[m, met]], js_base)
    return view_score, js


def class_disagreement(
    boxes: Detections, views: Sequence[Detections], partner: Ints, seen: Bools, num_classes: int
) -> Floats:
    """ComPAS: the loss -ln p of each b_m's class vector at b's label, averaged over the views with a match.

    ``partner`` and ``seen`` are (M, N) -> (N,) from 0 up, NaN for a box without a match in any view.
    """
    loss = np.full(partner.shape, np.nan)
    for m, view in enumerate(views):
        at = seen[m].nonzero()[0]
        column = boxes.labels[at] + view.class_probs.shape[1] - num_classes  # a background column comes first
        loss[m, at] = -np.log(np.maximum(view.class_probs[partner[m, at], column], 1e-12))
    return _mean_where(seen, loss)


def box_disagreement(
    boxes: Detections, views: Sequence[Detections], frames: Sequence[Frame], partner: Ints, seen: Bools
) -> Floats:
    """ComPAS: the spread of b and its b_m, mapped back to the image: (N,) from 0 up.

    It is the standard deviation of each coordinate over b's width or height, averaged over the four coordinates; NaN
    for a box without a match in any view.
    """
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
    """Mean over the first axis of the values that count; NaN where none does."""
    number = counts.sum(axis=0)
    return np.divide(
        np.where(counts, value, 0).sum(axis=0), number, out=np.full(value.shape[1:], np.nan), where=number > 0
    )


MOST_REFERENCES, REFERENCES = 40, 50
"""CALD: of more than 40 detections, 50 evenly spaced ranks are compared."""


def _least_consistency(
    boxes: Detections, views: Sequence[Detections], view_score: Floats, js: Floats, iou: Floats, beta: float
) -> float:
    """CALD's image score: the least |IoU + (s + s_m) / 2 (1 - JS) - beta| of any detection, averaged over the views.

    An image without detections, and a view without any, gets 0, the most informative value.
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
    """The best score of each class, averaged over the image and its views: (K,)."""
    best = np.zeros((len(found), num_classes))
    for row, detections in zip(best, found, strict=True):
        np.maximum.at(row, detections.labels, detections.scores)
    return best.mean(axis=0)


def class_frequency(
    pieces: Iterable[tuple[Ints, Floats]], human_counts: Ints, threshold: float, reading: str = "hard"
) -> Floats:
    """p(l) of Eq. 1 for each class, from the candidates that are not answered yet: (K,) (decisions row 10).

    ``pieces`` are labels (T,) and scores (T,) of those candidates, a piece of the pool at a time. ``reading`` is
    ``hard``: fractions of the candidates with score >= ``threshold``; ``soft``: fractions of the summed scores;
    ``with_labels``: hard, counting human boxes too; or ``max_normalised``: hard, divided by the largest. All 0 without
    candidates.
    """
    counts = np.zeros(len(human_counts))
    for labels, scores in pieces:
        # Add in the order of the rows, so that the division into pieces does not change a sum.
        np.add.at(counts, labels, scores if reading == "soft" else scores >= threshold)
    if reading == "with_labels":
        counts = counts + human_counts
    total = counts.max() if reading == "max_normalised" else counts.sum()
    return np.asarray(counts / max(float(total), 1e-12))


NARROW = ("class_probs", "features")
"""Columns stored as float16."""


def write(file: Path, rows: Candidates | ImageScores) -> None:
    """Write a table to a Parquet file atomically, wide columns as float16, missing columns omitted."""
    columns = {f.name: getattr(rows, f.name) for f in fields(rows)}
    parquet.write(
        file,
        {n: c.astype(np.float16) if n in NARROW else c for n, c in columns.items() if c is not None},
    )


PIECE, WIDE_PIECE = 2**18, 2**15
"""The most rows of a shard in memory at once, without and with wide columns."""

PLAIN = ("image_id", "box_index", "boxes", "labels", "scores", "uncertainty", "box_consistency")
"""The columns that every candidate has. The others are read on request."""

REST = tuple(f.name for f in fields(Candidates) if f.name not in PLAIN)


@dataclass(frozen=True, eq=False)
class Shards:
    """All candidates of a pool, read in pieces because they may not fit in memory. They can be read repeatedly.

    ``parts`` are files that :func:`write` wrote, or tables in memory, in order. ``counts_as`` (K,), if given, maps the
    labels of merged classes.
    """

    parts: Sequence[Path | Candidates]
    counts_as: Ints | None = None

    def columns(self, names: Collection[str]) -> Iterator[dict[str, parquet.Column]]:
        """The named columns that exist, piece by piece. Other columns are not read."""
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
        """Candidates with the columns that all have, and those named in ``rest``."""
        for piece in self.columns({*PLAIN, *rest}):
            piece.setdefault("class_probs", np.zeros((len(piece["labels"]), 0)))
            yield Candidates(**piece)

    def of_images(self, ids: Collection[int]) -> dict[int, Candidates]:
        """The candidates of some images, by image id. The others are not kept in memory."""
        wanted = np.fromiter(ids, np.int64, len(ids))
        found = [piece[mask] for piece in self.pieces() if (mask := np.isin(piece.image_id, wanted)).any()]
        together = concatenate(found) if found else Candidates.none(0)
        return {image_id: together[rows] for image_id, rows in rows_by_image(together).items()}


def read_images(folder: Path) -> ImageScores:
    """The image scores of all shards of a folder, in the order of their names."""
    return concatenate([ImageScores(**parquet.read(file)) for file in sorted(folder.glob("images_*.parquet"))])


def rows_by_image(candidates: Candidates) -> dict[int, Ints]:
    """Row numbers of each image's candidates, by image id."""
    order = np.argsort(candidates.image_id, kind="stable")
    ids, starts = np.unique(candidates.image_id[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=True)) if len(order) else {}
