"""How likely a box shows an object, learnt from the answers of the previous cycle."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from rarebox.core.boxes import nearest
from rarebox.loop.run import Run
from rarebox.loop.shards import scored_pool
from rarebox.method import hit_evidence, hit_probability
from rarebox.strategies.box import evidence
from rarebox.types import JUDGED, Bools, Candidates, Floats, Verdict

NEEDED = {"score", "uncertainty", "box_consistency"}
"""What a question must say about its box. One about another detector's box does not."""

RIDGE = 1.0
"""The penalty on the squared weights: few answers correct the scores only a little."""


def hit_weights(run: Run, cycle: int) -> Floats:
    """The weights of :func:`rarebox.method.hit_probability` for a cycle (decisions row 47): (3,).

    The answers of the previous cycle count: each box that was asked about, and each candidate on an image that was
    labelled completely, because there it is known which of them are objects. Before the first answers they are zeros.
    """
    asked = run.store.answered(cycle - 1) if cycle > 2 else []
    judged = [(q.why, a) for q, a in asked if q.why and q.why.keys() >= NEEDED and a.verdict in JUDGED]
    complete = {q.image_id for q, a in asked if q.box is None and a.verdict is Verdict.OBJECT}
    labels = run.store.labels(up_to_cycle=cycle - 1) if complete else {}
    whole = {image_id: said.boxes for image_id, said in labels.items() if image_id in complete and said.complete}
    known = [_evidence([why for why, _ in judged])]
    right = [np.array([a.verdict is Verdict.OBJECT for _, a in judged], dtype=bool)]
    lowest = run.settings.scoring.candidate_threshold
    for image_id, found in (scored_pool(run, cycle - 1).of_images(whole) if whole else dict[int, Candidates]()).items():
        found = found[found.scores >= lowest]
        known.append(evidence(found))
        right.append(nearest(found.boxes, whole[image_id])[1] >= run.settings.oracle.iou)
    return fit(np.concatenate(known), np.concatenate(right))


def _evidence(asked: Sequence[Mapping[str, float]]) -> Floats:
    """The evidence on the boxes asked about, by what their questions say: (Q,) -> (Q, 4)."""
    columns = ([why[name] for why in asked] for name in ("score", "uncertainty", "box_consistency"))
    return hit_evidence(*map(np.array, columns))


def fit(known: Floats, right: Bools) -> Floats:
    """The weights of the most likely logistic function, held near 0 by :data:`RIDGE`: (N, 4), (N,) -> (3,)."""

    def loss(weights: Floats) -> tuple[float, Floats]:
        p = hit_probability(known, weights)
        wrong = np.log(np.clip(np.where(right, p, 1 - p), 1e-12, 1))
        return RIDGE / 2 * (weights @ weights) - wrong.sum(), RIDGE * weights + (p - right) @ known[:, 1:]

    # Imported here: it takes half a second, and most runs do not need it.
    from scipy.optimize import minimize  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]

    return cast("dict[str, Floats]", minimize(loss, np.zeros(3), jac=True, method="L-BFGS-B"))["x"]
