"""Pseudo labels and training targets, on one image with six candidates that cover every branch of Eq. 5 and Eq. 6."""

from pathlib import Path

import numpy as np
import pytest

from rarebox.config import PseudoSettings
from rarebox.core.boxes import far_from
from rarebox.labels.targets import (
    METHODS,
    calibration,
    count_sure,
    make_targets,
    pseudo_labels,
    read_targets,
    remaining,
    write_targets,
)
from rarebox.types import Candidates, ImageLabels, Source, Targets, as_boxes

NONE = np.zeros((0, 4), dtype=np.float32)


def box(x: float, width: float = 10) -> list[float]:
    return [x, 0, x + width, 10]


def candidates(*rows: tuple[float, float, float]) -> Candidates:
    """Rows of x, score, box consistency; the label is the row's number."""
    n = len(rows)
    x, scores, steady = np.array(rows).reshape(n, 3).T
    return Candidates(
        np.full(n, 5),
        np.arange(n),
        as_boxes([box(v) for v in x]),
        np.arange(n),
        scores,
        np.zeros(n),
        steady,
        np.full((n, 2), 0.5),
    )


def said(
    boxes: list[list[float]] | None = None, rejected: list[list[float]] | None = None, complete: bool = False
) -> ImageLabels:
    human = as_boxes(boxes or [])
    return ImageLabels(human, np.full(len(human), 9), as_boxes(rejected or []), NONE, complete)


def settings(**given: object) -> PseudoSettings:
    return PseudoSettings.model_validate(given)


SIX = candidates(
    (0, 0.9, 0.8),  # sure class, steady box
    (20, 0.8, 0.3),  # class exactly at tau_0, box exactly at tau_1
    (40, 0.6, 0.7),  # class in between, box exactly at tau_0
    (60, 0.5, 0.5),  # both in between
    (80, 0.1, 0.9),  # class exactly at tau_1, steady box
    (100, 0.05, 0.2),  # neither
)
"""With tau^cls = 0.8, 0.1 and tau^box = 0.7, 0.3, the paper's."""

Row = tuple[int, float, float, bool]


def rows(targets: Targets) -> list[Row]:
    """(label, class weight, box weight, background) of each target; labels are candidates' rows here."""
    weights = (targets.class_weight.round(6).tolist(), targets.box_weight.round(6).tolist())
    found = zip(targets.labels.tolist(), *weights, targets.background.tolist(), strict=True)
    return [(label, round(c, 6), round(b, 6), background) for label, c, b, background in found]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # no pseudo labels: every candidate's region is background, which it is without any target
        ("none", []),
        # HPL: score >= 0.8 trains both branches; the rest is background
        ("hard", [(0, 1, 1, False), (1, 1, 1, False)]),
        # THPL: the class branch has 0 and 1; the box branch has 0, 2 and 4 (cons >= 0.7), of which 2 and 4 are
        # background for the class branch; 1 does not train the box branch
        ("task_hard", [(0, 1, 1, False), (1, 1, 0, False), (2, 1, 1, True), (4, 1, 1, True)]),
        # TSPL: the class branch 1, 1, 0.6, 0.5, 0, 0; the box branch 1, 0, 1, 0.5, 1, 0; weight 0 is ignored
        (
            "soft",
            [
                (0, 1, 1, False),
                (1, 1, 0, False),
                (2, 0.6, 1, False),
                (3, 0.5, 0.5, False),
                (4, 0, 1, False),
                (5, 0, 0, False),
            ],
        ),
        # 0.1 < score < 0.8 ignored by both branches, at 0.8 and above as HPL, at 0.1 and below background
        ("ignore_only", [(0, 1, 1, False), (1, 1, 1, False), (2, 0, 0, False), (3, 0, 0, False)]),
    ],
)
def test_each_method_by_hand(method: str, wanted: list[Row]) -> None:
    targets = pseudo_labels(SIX, settings(method=method))
    assert rows(targets) == [pytest.approx(row) for row in wanted]
    assert set(targets.source.tolist()) <= {"pseudo"}
    assert targets.boxes.tolist() == SIX.boxes[targets.labels].tolist()


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        # class weight 0 becomes background; a box that trains neither branch is omitted
        ("soft", [(0, 1, 1, False), (1, 1, 0, False), (2, 0.6, 1, False), (3, 0.5, 0.5, False), (4, 1, 1, True)]),
        ("ignore_only", [(0, 1, 1, False), (1, 1, 1, False)]),
        ("hard", [(0, 1, 1, False), (1, 1, 1, False)]),
        ("none", []),
    ],
)
def test_dropped_instead_of_ignored_by_hand(method: str, wanted: list[Row]) -> None:
    assert rows(pseudo_labels(SIX, settings(method=method, zero_weight="drop"))) == [
        pytest.approx(row) for row in wanted
    ]


def test_the_thresholds_come_from_the_settings() -> None:
    soft = pseudo_labels(SIX, settings(class_high=0.6, class_low=0.5, box_high=0.9, box_low=0.2))
    # scores 0.9, 0.8, 0.6 -> 1; 0.5, 0.1, 0.05 -> 0.  cons 0.8, 0.3, 0.7, 0.5 stay; 0.9 -> 1; 0.2 -> 0
    assert soft.class_weight.tolist() == [1, 1, 1, 0, 0, 0]
    assert soft.box_weight == pytest.approx([0.8, 0.3, 0.7, 0.5, 1, 0])


@pytest.mark.parametrize("method", sorted(METHODS))
def test_no_candidates_give_no_targets(method: str) -> None:
    assert len(pseudo_labels(candidates(), settings(method=method))) == 0


# ------------------------------------------------------------------------------------------- next to answers


def test_a_pseudo_box_may_overlap_a_human_box_up_to_the_threshold_and_a_rejected_box_below_it() -> None:
    # Boxes of width 10 inside or around width w share min(w, 10) / max(w, 10): exactly 0.4 and 0.5 for w = 4 and 5.
    around = candidates((0, 0.9, 0.9))
    for human, stays in ((box(0, 4), True), (box(0, 4.1), False), (box(0, 3.9), True)):
        assert remaining(around.boxes, said([human]), settings()).tolist() == [stays]
    for rejected, stays in ((box(0, 5), False), (box(0, 4.9), True), (box(0, 5.1), False)):
        assert remaining(around.boxes, said(rejected=[rejected]), settings()).tolist() == [stays]
    assert remaining(around.boxes, said([box(0, 5)]), settings(human_iou=0.5)).tolist() == [True]
    assert remaining(around.boxes, said(rejected=[box(0, 4)]), settings(rejected_iou=0.4)).tolist() == [False]


def test_overlap_counts_with_any_answered_box_and_each_candidate_is_judged_by_itself() -> None:
    human = said([box(200), box(21)], rejected=[box(80)])
    assert remaining(SIX.boxes, human, settings()).tolist() == [True, False, True, True, False, True]
    assert remaining(SIX.boxes, said(), settings()).all()


def test_far_from_at_the_threshold() -> None:
    one, half = as_boxes([box(0)]), as_boxes([box(0, 5)])
    assert far_from(one, half, 0.5).tolist() == [False]
    assert far_from(one, half, 0.5, strict=True).tolist() == [True]
    assert far_from(one, NONE, 0.0, strict=True).tolist() == [True]
    assert far_from(NONE, one, 0.5).shape == (0,)


# ------------------------------------------------------------------------------------------- the image's targets


def by_source(targets: Targets) -> dict[str, list[tuple[list[float], float, float, bool]]]:
    found: dict[str, list[tuple[list[float], float, float, bool]]] = {}
    columns = (targets.boxes, targets.class_weight, targets.box_weight, targets.background)
    for source, *row in zip(targets.source.tolist(), *(c.tolist() for c in columns), strict=True):
        found.setdefault(source, []).append(tuple(row))
    return found


def test_a_partially_labelled_image_uses_all_its_boxes() -> None:
    targets = make_targets(
        said([box(300)], rejected=[box(320)]), SIX[:1], as_boxes([box(340)]), settings(method="hard")
    )
    assert by_source(targets) == {
        "human": [(box(300), 1, 1, False)],
        "difficult": [(box(340), 0, 0, False)],  # ignored
        "rejected": [(box(320), 1, 0, True)],  # trained as background
        "pseudo": [(box(0), 1, 1, False)],
    }
    assert targets.labels[targets.source == Source.HUMAN].tolist() == [9]


def test_candidates_on_answered_boxes_do_not_become_pseudo_labels() -> None:
    targets = make_targets(said([box(1)], rejected=[box(21)]), SIX[:3], NONE, settings())
    assert [b for b, *_ in by_source(targets)["pseudo"]] == [box(40)]


def test_a_fully_labelled_image_gets_no_pseudo_labels() -> None:
    assert by_source(make_targets(said([box(300)], complete=True), SIX, NONE, settings())) == {
        "human": [(box(300), 1, 1, False)]
    }


def test_rejected_and_difficult_boxes_are_forgotten_where_the_settings_say_so() -> None:
    targets = make_targets(
        said([box(300)], rejected=[box(320)]),
        None,
        as_boxes([box(340)]),
        settings(rejected="forget", difficult="background"),
    )
    assert by_source(targets) == {"human": [(box(300), 1, 1, False)]}


def test_a_forgotten_rejection_still_keeps_pseudo_labels_off() -> None:
    targets = make_targets(said(rejected=[box(0)]), SIX[:1], NONE, settings(rejected="forget"))
    assert len(targets) == 0


def test_an_unknown_image_has_no_targets() -> None:
    assert len(make_targets(said(), None, NONE, settings())) == 0
    assert len(make_targets(said(), candidates(), NONE, settings())) == 0


def test_sure_pseudo_labels_are_counted_by_class_without_background_and_human_boxes() -> None:
    targets = {
        1: make_targets(said([box(300)]), SIX, NONE, settings(method="task_hard")),
        2: make_targets(said(), SIX, NONE, settings(method="soft")),
        3: Targets.of([], []),
    }
    # image 1: labels 0 and 1, where 2 and 4 are background; image 2: 0 and 1 weigh 1, 2 weighs 0.6
    assert count_sure(targets, 10, 0.8).tolist() == [2, 2, 0, 0, 0, 0, 0, 0, 0, 0]
    assert count_sure(targets, 10, 0.6).tolist() == [2, 2, 1, 0, 0, 0, 0, 0, 0, 0]
    assert count_sure({}, 3, 0.8).tolist() == [0, 0, 0]


def test_targets_are_read_back_from_their_file(tmp_path: Path) -> None:
    made = {
        8: make_targets(said([box(300)], rejected=[box(320)]), SIX, as_boxes([box(340)]), settings()),
        3: Targets.of([], []),
        5: make_targets(said(), SIX, NONE, settings(method="task_hard")),
    }
    write_targets(tmp_path / "targets.parquet", made)
    back = read_targets(tmp_path / "targets.parquet")
    assert sorted(back) == [5, 8]  # an image without boxes has no row
    for image_id, targets in back.items():
        for name in ("boxes", "labels", "class_weight", "box_weight", "background", "source"):
            assert getattr(targets, name).tolist() == getattr(made[image_id], name).tolist(), name
            assert getattr(targets, name).dtype.kind == getattr(made[image_id], name).dtype.kind, name


def test_targets_without_any_box_are_written_and_read_too(tmp_path: Path) -> None:
    write_targets(tmp_path / "targets.parquet", {1: Targets.of([], [])})
    assert read_targets(tmp_path / "targets.parquet") == {}


def test_calibrated_scores_are_the_fraction_of_right_answers_and_never_fall() -> None:
    shown = np.array([0.2, 0.2, 0.2, 0.2, 0.6, 0.6])
    right = np.array([True, False, False, False, True, False])
    scores = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    # a quarter of those at 0.2, half of those at 0.6; in between, and towards the artificial ends, linear
    assert np.interp(scores, *calibration(shown, right)) == pytest.approx([0, 0.25, 0.375, 0.5, 0.75, 1])
    # more right ones at the lower score than at the higher: taken together, 4 of 6
    assert np.interp(np.array([0.2, 0.4, 0.6]), *calibration(shown, ~right)) == pytest.approx([4 / 6] * 3)
    assert np.interp(scores, *calibration(np.zeros(0), np.zeros(0, dtype=bool))) == pytest.approx(scores)
