"""Detections and ground truth of all test images as one table each, as every measure needs them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rarebox.types import Bools, Detections, Floats, GroundTruth, Ints


class FoundRows(NamedTuple):
    """All detections, N rows; ``image`` counts the test images in order of their ids."""

    image: Ints
    labels: Ints
    boxes: Floats
    scores: Floats


class TrueRows(NamedTuple):
    """All truth, G rows, sorted by image."""

    image: Ints
    labels: Ints
    boxes: Floats
    difficult: Bools


def flatten(
    detections: Mapping[int, Detections], truth: Mapping[int, GroundTruth], num_classes: int
) -> tuple[FoundRows, TrueRows]:
    """One table of all detections and one of all truth, in order of the image ids."""
    strange = sorted(set(detections) - set(truth))
    if strange:
        raise ValueError(f"detections on images that have no truth: {strange[:5]}. Give those an empty GroundTruth")
    ids = sorted(truth)
    found = [detections[i] for i in ids if i in detections]
    images = np.flatnonzero([i in detections for i in ids])
    true = [truth[i] for i in ids]
    tables = (
        FoundRows(_owners(images, found), _column(found, "labels"), _boxes(found), _column(found, "scores")),
        TrueRows(_owners(np.arange(len(ids)), true), _column(true, "labels"), _boxes(true), _column(true, "difficult")),
    )
    for labels in (tables[0].labels, tables[1].labels):
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(f"labels must be in [0, {num_classes}), got {labels.min()} to {labels.max()}")
    return tables


_DTYPES = {"labels": np.int64, "scores": np.float64, "difficult": np.bool_}


def _column(tables: list[Detections] | list[GroundTruth], name: str) -> NDArray[Any]:
    return np.concatenate([np.zeros(0, _DTYPES[name]), *(getattr(t, name) for t in tables)], dtype=_DTYPES[name])


def _boxes(tables: list[Detections] | list[GroundTruth]) -> Floats:
    """All boxes (N, 4) in double precision, so that an IoU of exactly one half is one half."""
    return np.concatenate([np.zeros((0, 4)), *(t.boxes for t in tables)])


def _owners(images: Ints, tables: list[Detections] | list[GroundTruth]) -> Ints:
    return np.repeat(images, [len(t) for t in tables])


def mean(values: Floats) -> float:
    """The mean of the values that are not NaN; NaN if there are none."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
