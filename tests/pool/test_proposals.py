"""Which detections a whole image is shown with."""

import numpy as np

from rarebox import config
from rarebox.pool.candidates import Shards
from rarebox.pool.proposals import MOST_SHOWN, proposals
from rarebox.types import Candidates, ImageLabels

SETTINGS = config.resolve("laptop", None, {"people.proposal_score": 0.4})


def found(*scores: float, image_id: int = 1) -> Candidates:
    """Boxes of width 10, 20 apart."""
    some = np.arange(len(scores))
    zeros = np.zeros(len(scores))
    boxes = np.stack([20.0 * some, zeros, 20.0 * some + 10, zeros + 10], axis=1)
    return Candidates(some * 0 + image_id, some, boxes, some * 0, np.array(scores), zeros, zeros, zeros[:, None])


def test_likely_detections_are_shown_best_first_and_settled_ones_are_not() -> None:
    pool = Shards([found(0.4, 0.39, 0.9, 0.8), found(0.7, image_id=2), found(0.1, image_id=3), found(1, image_id=4)])
    labels = {1: ImageLabels.of([], [], rejected=[[61, 0, 71, 10]]), 4: ImageLabels.of([[0, 0, 10, 10]], [0])}
    shown = proposals(SETTINGS, pool, [1, 3, 4], labels)
    assert {image_id: each.scores.tolist() for image_id, each in shown.items()} == {
        1: [np.float32(0.9), np.float32(0.4)]
    }


def test_a_crowded_image_shows_the_best() -> None:
    scores = np.linspace(0.5, 0.9, MOST_SHOWN + 5)
    [shown] = proposals(SETTINGS, Shards([found(*scores)]), [1], {}).values()
    assert shown.scores.tolist() == np.float32(scores[:4:-1]).tolist()
