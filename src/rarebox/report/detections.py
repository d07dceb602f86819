"""The final model's detections on test images: right, missed and wrong ones."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from rarebox.evaluation import Matches
from rarebox.loop.tested import Tested
from rarebox.report.shots import Box, Shot, box_of, scale_of, shot_of
from rarebox.report.wording import count, number
from rarebox.types import Floats

MOST, OF_RARE = 12, 6
"""So many images are shown, and at most so many of them because of their rare classes."""

MOST_BOXES = 150
"""The most boxes that are drawn on an image."""


def of_test(tested: Tested, matches: Matches, rare_first: Sequence[int], names: Sequence[str]) -> list[Shot]:
    """The images with their boxes. ``rare_first`` are the labels from rare to frequent, ``names`` (K,) their names."""
    return [_shot(tested, matches, image_id, why, names) for image_id, why in choose(tested, rare_first, names)]


def choose(tested: Tested, rare_first: Sequence[int], names: Sequence[str]) -> list[tuple[int, str]]:
    """The ids of the images to show, each with the reason. The choice depends on no detection.

    For each of the rarest classes in turn, the image with the lowest id that has an object of it and is not chosen yet;
    then images at equal distances in the order of the ids.
    """
    left = sorted(tested.images)
    chosen: list[tuple[int, str]] = []
    for label in rare_first[:OF_RARE]:
        first = next((i for i in left if label in tested.classes_of(i)), None)
        if first is not None:
            chosen.append((first, f"the first with {names[label]}"))
            left.remove(first)
    spread = min(MOST - len(chosen), len(left))
    places = ((np.arange(spread) + 0.5) * len(left) / max(spread, 1)).astype(int)
    return [*chosen, *((left[place], "") for place in places)]


def _shot(tested: Tested, matches: Matches, image_id: int, why: str, names: Sequence[str]) -> Shot:
    record = tested.images[image_id]
    scale = scale_of(record)
    lost = np.flatnonzero(matches.missed & (matches.objects.image == image_id))
    boxes = [
        *(_lost(matches, row, names, scale) for row in map(int, lost)),
        *(_found(matches, row, names, scale) for row in _worst_first(matches, image_id)),
    ]
    kinds = Counter(box.kind for box in boxes)
    said = [f"{count(kinds[kind])} {kind}" for kind in ("right", "missed", "wrong")]
    if len(boxes) > MOST_BOXES:
        said.append(f"only {MOST_BOXES} of them are drawn")
    return shot_of(record, boxes[-MOST_BOXES:], " · ".join([*filter(None, [why]), ", ".join(said)]))


def _worst_first(matches: Matches, image_id: int) -> list[int]:
    """The rows of the detections on an image, so that the best one is drawn on top."""
    mine = np.flatnonzero(matches.found.image == image_id)
    return mine[np.argsort(matches.found.scores[mine], kind="stable")].tolist()


def _lost(matches: Matches, row: int, names: Sequence[str], scale: Floats) -> Box:
    name = names[int(matches.objects.labels[row])]
    return box_of("missed", matches.objects.boxes[row], scale, name, f"missed: {name}")


def _found(matches: Matches, row: int, names: Sequence[str], scale: Floats) -> Box:
    found, partner = matches.found, int(matches.partner[row])
    name, score = names[int(found.labels[row])], number(float(found.scores[row]))
    if partner < 0:
        return box_of("wrong", found.boxes[row], scale, f"{name}?", f"wrong: {name}, score {score}; no object for it")
    true = names[int(matches.objects.labels[partner])]
    if true == name:
        return box_of("right", found.boxes[row], scale, name, f"right: {name}, score {score}")
    return box_of("wrong", found.boxes[row], scale, f"{name}? is {true}", f"wrong: {name}, score {score}; it is {true}")
