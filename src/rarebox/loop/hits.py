"""How often a box with some score shows an object, learnt from the answers of the previous cycle."""

import numpy as np

from rarebox.core.boxes import nearest
from rarebox.labels.targets import calibration
from rarebox.loop.run import Run
from rarebox.loop.shards import scored_pool
from rarebox.types import UNIT, Candidates, Floats, Verdict

JUDGED = (Verdict.OBJECT, Verdict.NOT_AN_OBJECT)
"""Verdicts that show whether a box shows an object."""


def hit_map(run: Run, cycle: int) -> tuple[Floats, Floats]:
    """The points of the piecewise linear map from scores to P(object); the identity before the first answers.

    The answers of the previous cycle count: each box that was asked about, and each candidate on an image that was
    labelled completely, because there it is known which of them are objects.
    """
    asked = run.store.answered(cycle - 1) if cycle > 2 else []
    judged = [(q.why["score"], a) for q, a in asked if q.why and "score" in q.why and a.verdict in JUDGED]
    complete = {q.image_id for q, a in asked if q.box is None and a.verdict is Verdict.OBJECT}
    labels = run.store.labels(up_to_cycle=cycle - 1) if complete else {}
    whole = {image_id: said.boxes for image_id, said in labels.items() if image_id in complete and said.complete}
    scores = [np.array([score for score, _ in judged])]
    right = [np.array([a.verdict is Verdict.OBJECT for _, a in judged], dtype=bool)]
    lowest = run.settings.scoring.candidate_threshold
    for image_id, found in (scored_pool(run, cycle - 1).of_images(whole) if whole else dict[int, Candidates]()).items():
        found = found[found.scores >= lowest]
        scores.append(found.scores)
        right.append(nearest(found.boxes, whole[image_id])[1] >= run.settings.oracle.iou)
    known = np.concatenate(scores)
    return calibration(known, np.concatenate(right)) if len(known) else (UNIT, UNIT)
