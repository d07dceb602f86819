"""Proposals: the detections that a whole image is shown with, so that the annotator checks them and draws the rest."""

from collections.abc import Collection, Mapping

import numpy as np

from rarebox.config import Settings
from rarebox.core.boxes import far_from
from rarebox.pool.candidates import Shards
from rarebox.types import Candidates, ImageLabels

MOST_SHOWN = 30
"""The most detections that one image is shown with, in a simulation and on the page."""


def proposals(
    settings: Settings, pool: Shards, image_ids: Collection[int], labels: Mapping[int, ImageLabels]
) -> dict[int, Candidates]:
    """The proposals of some images by image id, best score first; an image without any is missing.

    They are the candidates with a score of at least ``people.proposal_score`` that no answer has settled.
    """
    found: dict[int, Candidates] = {}
    for image_id, candidates in pool.of_images(image_ids).items():
        likely = candidates[candidates.scores >= settings.people.proposal_score]
        if image_id in labels:
            likely = likely[far_from(likely.boxes, labels[image_id].settled, settings.selection.answered_iou)]
        if len(likely):
            found[image_id] = likely[np.argsort(-likely.scores, kind="stable")[:MOST_SHOWN]]
    return found
