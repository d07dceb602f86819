"""The paper's Fig. 4 for a run: images of its last cycle with queried boxes and pseudo boxes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox.errors import UserError
from rarebox.labels.store import Store
from rarebox.labels.targets import read_targets
from rarebox.pool.candidates import Shards
from rarebox.report.reading import ReportedRun
from rarebox.report.shots import Box, Shot, box_of, scale_of, shot_of
from rarebox.report.wording import number, plural
from rarebox.types import Answer, Floats, ImageLabels, ImageRecord, Query, Source, Targets, Verdict

MOST = 8
SPOKEN_WEIGHT = 0.3  # the class of a pseudo box with a smaller weight is only in the tooltip

Asked = tuple[Query, Answer]
Name = Callable[[int | None], str]

MISSES = {
    Verdict.NOT_AN_OBJECT: "no object",
    Verdict.CANNOT_TELL: "the annotator could not tell",
    Verdict.ALREADY_LABELLED: "the object already had a label",
    Verdict.OBJECT: "no object",
}


@dataclass(frozen=True)
class Gallery:
    """The images, and their cycle; if there are none, ``missing`` says why."""

    shots: tuple[Shot, ...] = ()
    cycle: int = 0
    missing: str = ""


def of_run(run: ReportedRun) -> Gallery:
    """The gallery of the last finished cycle in which boxes were asked about."""
    chosen = [record["cycle"] for record in run.choosing if sum(record["selected_per_class"].values())]
    if not chosen:
        return Gallery(missing="No boxes have been queried yet, so there is nothing to show.")
    try:
        return _gallery(run, chosen[-1])
    except (UserError, OSError) as error:
        return Gallery(missing=f"The gallery cannot be made: {error}")


def _gallery(run: ReportedRun, cycle: int) -> Gallery:
    with Store(run.folder.store) as store:
        images, classes = store.images(), store.classes()
        before = store.labels(up_to_cycle=cycle - 1)
        asked = [(query, answer) for query, answer in store.answered(cycle) if query.box is not None]
    by_image: dict[int, list[Asked]] = {}
    for query, answer in asked:
        by_image.setdefault(query.image_id, []).append((query, answer))
    ids = choose(by_image, MOST)
    folder = run.folder.cycle(cycle)

    def name(label: int | None) -> str:
        return "something" if label is None else classes[label]

    targets = read_targets(folder / "targets.parquet") if (folder / "targets.parquet").exists() else {}
    scores = _scores(folder / "candidates", ids)
    shots = [_shot(images[i], by_image[i], targets.get(i), before.get(i), name, scores) for i in ids]
    return Gallery(tuple(shots), cycle)


def choose(asked: Mapping[int, Sequence[Asked]], most: int) -> list[int]:
    """Images that show as many different classes as possible, objects found first. Deterministic."""
    left, seen, chosen = dict(asked), set[int](), list[int]()
    while left and len(chosen) < most:
        best = min(left, key=lambda i: (*_novelty(left[i], seen), i))
        if _novelty(left[best], seen)[:2] == (0, 0) and seen:
            seen = set[int]()  # every class has been shown: start a second round
            continue
        seen |= {_class(pair) for pair in left.pop(best)}
        chosen.append(best)
    return chosen


def _novelty(asked: Sequence[Asked], seen: set[int]) -> tuple[int, int, int]:
    """What an image adds, best first when sorted: new classes found, new classes predicted, and boxes."""
    found = {_class(pair) for pair in asked if len(pair[1].labels)} - seen
    return -len(found), -len({_class(pair) for pair in asked} - seen), -len(asked)


def _class(asked: Asked) -> int:
    """The true class if there is one, otherwise the predicted class."""
    query, answer = asked
    return int(answer.labels[0]) if len(answer.labels) else -1 if query.guess is None else query.guess


# ------------------------------------------------------------------------------------------- one image


def _shot(
    record: ImageRecord,
    asked: Sequence[Asked],
    targets: Targets | None,
    before: ImageLabels | None,
    name: Name,
    scores: Mapping[tuple[int, bytes], float],
) -> Shot:
    scale = scale_of(record)
    boxes = [
        *_human_boxes(before, name, scale),
        *_pseudo_boxes(record.id, targets, name, scores, scale),
        *sorted((_asked_box(pair, name, scale) for pair in asked), key=lambda box: box.kind == "hit"),
    ]
    kinds = [box.kind for box in boxes]
    caption = _caption(asked, name, kinds.count("pseudo"), kinds.count("human"))
    return shot_of(record, boxes, caption)


def _asked_box(asked: Asked, name: Name, scale: Floats) -> Box:
    query, answer = asked
    assert query.box is not None
    why = query.why or {}
    figures = [f"{word.replace('_', ' ')} {number(why[word])}" for word in ("score", "uncertainty") if word in why]
    guess = name(query.guess)
    if len(answer.labels):
        truth = name(int(answer.labels[0]))
        said = f"predicted {guess}; it is {truth}" if truth != guess else f"correctly predicted {guess}"
        return box_of("hit", query.box, scale, truth, "; ".join(["queried", said, *figures]))
    said = f"predicted {guess}; {MISSES[answer.verdict]}"
    return box_of("miss", query.box, scale, f"{guess}?", "; ".join(["queried", said, *figures]))


def _pseudo_boxes(
    image_id: int, targets: Targets | None, name: Name, scores: Mapping[tuple[int, bytes], float], scale: Floats
) -> list[Box]:
    """The pseudo boxes with a positive weight, the largest weight last, so that it is drawn on top."""
    if targets is None:
        return []
    taught = (targets.class_weight > 0) | (targets.box_weight > 0)
    shown = targets[(targets.source == Source.PSEUDO) & taught]
    # Where the class branch is trained on background, only the place of the box is a target.
    weights = np.where(shown.background, 0.0, shown.class_weight)
    boxes: list[Box] = []
    for i in np.argsort(weights, kind="stable"):
        label, weight = name(int(shown.labels[i])), float(weights[i])
        score = scores.get((image_id, shown.boxes[i].tobytes()))
        told = [f"score {number(score)}"] if score is not None else []
        told += [f"class weight {number(weight)}", f"box weight {number(float(shown.box_weight[i]))}"]
        text = f"{label} {number(weight)}" if weight >= SPOKEN_WEIGHT else ""
        boxes.append(box_of("pseudo", shown.boxes[i], scale, text, f"pseudo label {label}; {', '.join(told)}", weight))
    return boxes


def _human_boxes(labels: ImageLabels | None, name: Name, scale: Floats) -> list[Box]:
    if labels is None:
        return []
    pairs = zip(labels.boxes, labels.labels, strict=True)
    return [box_of("human", box, scale, "", f"labelled earlier: {name(int(label))}") for box, label in pairs]


def _caption(asked: Sequence[Asked], name: Name, pseudo_boxes: int, human_boxes: int) -> str:
    found = Counter(name(int(answer.labels[0])) for _, answer in asked if len(answer.labels))
    hits = f"found {', '.join(f'{n} {c}' for c, n in found.most_common())}" if found else "found nothing"
    parts = [f"{plural(len(asked), 'queried box')}, {hits}", plural(pseudo_boxes, "pseudo box")]
    if human_boxes:
        parts.append(f"{human_boxes} labelled earlier")
    return " · ".join(parts)


def _scores(folder: Path, images: Sequence[int]) -> dict[tuple[int, bytes], float]:
    """Scores of the candidates of some images, by image and box; none where the run's candidates were removed."""
    scores: dict[tuple[int, bytes], float] = {}
    for columns in Shards(sorted(folder.glob("shard_*.parquet"))).columns(("image_id", "boxes", "scores")):
        mine = np.isin(columns["image_id"], images)
        for image_id, box, score in zip(*(columns[c][mine] for c in ("image_id", "boxes", "scores")), strict=True):
            scores[int(image_id), box.astype(np.float32).tobytes()] = float(score)
    return scores
