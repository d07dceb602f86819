"""From detections on an image and its views to candidates, and p(l). Boxes lie on a line: IoU of two boxes of width
10, d apart, is (10 - d) / (10 + d)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from rarebox.config import ScoringSettings
from rarebox.pool import candidates
from rarebox.pool.affine import Frame
from rarebox.types import Bools, Candidates, Detections, Floats, ImageScores
from tests.shards import read_all

SURE, SPLIT = [1.0, 0.0], [0.5, 0.5]


def box(x: float, width: float = 10) -> list[float]:
    return [x, 0, x + width, 10]


def detections(*rows: tuple[list[float], int, float, list[float]], features: bool = False) -> Detections:
    """Rows of box, label, score, class vector."""
    n = len(rows)
    return Detections(
        np.array([b for b, *_ in rows], dtype=np.float32).reshape(n, 4),
        np.array([label for _, label, *_ in rows], dtype=np.int64),
        np.array([score for *_, score, _ in rows]),
        np.array([probs for *_, probs in rows]).reshape(n, 2),
        np.arange(n * 3.0).reshape(n, 3) if features else None,
    )


NOTHING = detections()


@dataclass(frozen=True, eq=False)
class Still(Frame):
    """A copy with the identity map that hides the given boxes."""

    hidden: Sequence[bool] = ()

    def hides(self, boxes: Floats) -> Bools:
        return np.array(self.hidden or [False] * len(boxes))


def still(found: list[Detections], hidden: list[list[bool]] | None = None) -> list[Still]:
    """Frames of the views of an image, the first of ``found``."""
    return [Still("colour", np.eye(2, 3), hidden=hidden[m] if hidden else ()) for m in range(len(found) - 1)]


def score(found: list[Detections], hidden: list[list[bool]] | None = None, **settings: object) -> Candidates:
    return candidates.score_image(7, found, still(found, hidden), ScoringSettings.model_validate(settings), 2)[0]


def match(image: Detections, views: list[Detections], base: float) -> tuple[Floats, Floats, Floats]:
    """Score of b_m, JS and IoU."""
    partner, iou = candidates.find_partners(image, views, still([image, *views]))
    return *candidates.compare_views(image, views, partner, base), iou


# ------------------------------------------------------------------------------------------- matching


def test_the_partner_is_the_box_of_largest_iou_of_any_class_and_score() -> None:
    image = detections((box(0), 0, 0.9, SURE))
    view = detections((box(4), 0, 0.95, SURE), (box(2), 1, 0.3, [0.0, 1.0]), (box(50), 0, 0.9, SURE))
    view_score, js, iou = match(image, [view], 2.0)
    # the second box, 2 apart: IoU 8 / 12; its class vector is disjoint from ours: JS 1
    assert (view_score.tolist(), js.tolist()) == ([[pytest.approx(0.3)]], [[pytest.approx(1)]])
    assert iou == pytest.approx(np.array([[8 / 12]]))


def test_each_box_finds_its_own_partner_on_each_view_and_two_may_share_one() -> None:
    image = detections((box(0), 0, 0.9, SURE), (box(2), 0, 0.8, SPLIT))
    views = [detections((box(1), 0, 0.7, SURE)), detections((box(2), 0, 0.6, SPLIT), (box(0), 0, 0.5, SURE))]
    view_score, js, iou = match(image, views, 2.0)
    assert view_score == pytest.approx(np.array([[0.7, 0.7], [0.5, 0.6]]))
    # JS of (1, 0) and (1/2, 1/2) is 0.3112781 (see test_method.py)
    assert js == pytest.approx(np.array([[0, 0.3112781], [0, 0]]), abs=1e-6)
    assert iou == pytest.approx(np.array([[9 / 11, 9 / 11], [1, 1]]))


@pytest.mark.parametrize(("base", "most"), [(2.0, 1.0), (np.e, np.log(2))])
def test_where_nothing_overlaps_the_numbers_are_the_formulas_own_limit(base: float, most: float) -> None:
    image = detections((box(0), 0, 0.9, SURE))
    for view in (NOTHING, detections((box(10), 0, 0.9, SURE))):  # 10 apart: they only touch
        view_score, js, iou = match(image, [view], base)
        assert (view_score.tolist(), iou.tolist()) == ([[0]], [[0]])
        assert js == pytest.approx(np.array([[most]]))


def test_no_boxes_and_no_views_match_to_empty_tables() -> None:
    assert [a.shape for a in match(NOTHING, [NOTHING, NOTHING], 2.0)] == [(2, 0)] * 3
    assert [a.shape for a in match(detections((box(0), 0, 0.9, SURE)), [], 2.0)] == [(0, 1)] * 3


# ------------------------------------------------------------------------------------------- scoring


IMAGE = detections((box(0), 0, 0.9, SURE))
SEEN = detections((box(2), 0, 0.7, SURE))
"""IoU 8/12 = 0.6667, JS 0: |(0.9 + 0.7) / 2 + 0.6667 - 1.3| = 0.1667."""


def test_scores_by_hand_over_a_view_with_a_match_and_one_without() -> None:
    found = score([IMAGE, SEEN, NOTHING])
    # lost: |0.45 * 0 + 0 - 1.3| = 1.3;  c = (0.1667 + 1.3) / 2 = 0.7333;  u = 0.5667;  cons = (0.6667 + 0) / 2
    assert found.uncertainty == pytest.approx([0.566667], abs=1e-5)
    assert found.box_consistency == pytest.approx([0.333333], abs=1e-5)
    assert (found.image_id.tolist(), found.box_index.tolist(), found.labels.tolist()) == ([7], [0], [0])
    assert found.scores == pytest.approx([0.9])
    assert found.boxes.tolist() == [box(0)]
    assert found.class_probs.tolist() == [SURE]


def test_a_view_without_a_match_may_be_skipped() -> None:
    found = score([IMAGE, SEEN, NOTHING], unmatched="skip")
    # only the first view counts: u = 1.3 - 0.1667, cons = 0.6667
    assert found.uncertainty == pytest.approx([1.133333], abs=1e-5)
    assert found.box_consistency == pytest.approx([0.666667], abs=1e-5)


@pytest.mark.parametrize("base", [2.0, np.e])
def test_a_view_without_a_match_may_count_as_the_most_uncertain(base: float) -> None:
    found = score([IMAGE, NOTHING], unmatched="most_uncertain", js_base=base)
    # c = 0, so u = c_m = 1.3; the box is lost nevertheless, so cons = 0
    assert found.uncertainty == pytest.approx([1.3])
    assert found.box_consistency == pytest.approx([0])


def test_a_view_that_hides_the_box_does_not_count_whatever_it_found() -> None:
    for on_hidden_view in (NOTHING, SEEN, detections((box(0), 1, 0.2, SPLIT))):
        for unmatched in ("formula", "skip", "most_uncertain"):
            found = score([IMAGE, SEEN, on_hidden_view], [[False], [True]], unmatched=unmatched)
            assert found.uncertainty == pytest.approx([1.133333], abs=1e-5)
            assert found.box_consistency == pytest.approx([0.666667], abs=1e-5)


def test_hidden_columns_follow_the_boxes_they_belong_to() -> None:
    # The first row falls below the threshold and the others are sorted: the mask's columns must go along.
    image = detections((box(0), 0, 0.05, SURE), (box(30), 0, 0.5, SURE), (box(60), 0, 0.9, SURE))
    view = detections((box(30), 0, 0.5, SURE), (box(60), 0, 0.9, SURE))
    found = score([image, view, NOTHING], [[False] * 3, [False, False, True]])
    assert found.boxes[:, 0].tolist() == [60, 30]
    # 60: hidden on the second view, |0.9 + 1 - 1.3| = 0.6, u = 0.7;  30: 0.2 and, lost, 1.3: u = 1.3 - 0.75
    assert found.uncertainty == pytest.approx([0.7, 0.55], abs=1e-6)
    assert found.box_consistency == pytest.approx([1, 0.5], abs=1e-6)


def test_beta_and_the_base_of_the_logarithm_come_from_the_settings() -> None:
    view = detections((box(0), 0, 0.9, SPLIT))
    # base 2: |0.9 (1 - 0.3112781) + 1 - 1.3| = 0.3198497;  base e: |0.9 (1 - 0.2157615) - 0.3| = 0.4058147
    assert score([IMAGE, view]).uncertainty == pytest.approx([1.3 - 0.3198497], abs=1e-6)
    assert score([IMAGE, view], js_base=float(np.e)).uncertainty == pytest.approx([1.3 - 0.4058147], abs=1e-6)
    # beta 1/2: c_m = 1.5, |0.9 * 0.6887219 + 1 - 0.5| = 1.1198497
    assert score([IMAGE, view], beta=0.5).uncertainty == pytest.approx([1.5 - 1.1198497], abs=1e-6)


# ------------------------------------------------------------------------------------------- candidates


def test_the_candidate_threshold_is_included() -> None:
    image = detections((box(0), 0, 0.3, SURE), (box(20), 0, 0.29, SURE), (box(40), 0, 0.31, SURE))
    assert score([image, NOTHING], candidate_threshold=0.3).boxes[:, 0].tolist() == [40, 0]


def test_weaker_detections_are_kept_on_request_and_do_not_change_others() -> None:
    rows = [(box(0), 0, 0.3, SURE), (box(20), 0, 0.07, SURE), (box(40), 0, 0.04, SURE), (box(1), 0, 0.08, SURE)]
    chosen = ScoringSettings()
    few, more = (
        candidates.score_image(7, [detections(*rows), SEEN], still([IMAGE, SEEN]), chosen, 2, None, lowest)[0]
        for lowest in (None, 0.05)
    )
    assert few.scores == pytest.approx([0.3])
    assert more.scores == pytest.approx([0.3, 0.07])  # 0.08 lies on the first one: one object, one candidate
    same(more[:1], few)


def test_one_object_is_one_candidate_across_classes() -> None:
    # 1 apart: IoU 9/11 = 0.82 falls, though its class is another; 2 apart: IoU 0.67 <= 0.7 stays
    image = detections((box(0), 0, 0.8, SURE), (box(1), 1, 0.9, SPLIT), (box(3), 0, 0.4, SURE))
    assert score([image, NOTHING]).boxes[:, 0].tolist() == [1, 3]
    assert score([image, NOTHING], candidate_nms=1.0).boxes[:, 0].tolist() == [1, 0, 3]


def test_a_box_below_the_threshold_suppresses_none_and_the_best_per_image_are_kept_in_order() -> None:
    image = detections(*[(box(20 * i), 0, s, SURE) for i, s in enumerate([0.3, 0.9, 0.5, 0.5, 0.7])], features=True)
    found = score([image, NOTHING], per_image=4)
    assert found.scores == pytest.approx([0.9, 0.7, 0.5, 0.5])
    assert found.boxes[:, 0].tolist() == [20, 80, 40, 60]  # equal scores: the earlier row first
    assert found.box_index.tolist() == [0, 1, 2, 3]
    assert found.features is not None
    assert found.features[:, 0].tolist() == [3, 12, 6, 9]  # features are kept


def test_an_image_without_detections_has_no_candidates() -> None:
    found = score([NOTHING, SEEN, NOTHING])
    assert len(found) == 0
    assert found.class_probs.shape == (0, 2)


# ------------------------------------------------------------------------------------------- p(l)


def labelled(labels: list[int], scores: list[float]) -> Candidates:
    n = len(labels)
    corner = 20.0 * np.arange(n)[:, None] + np.array([0, 0, 9, 9])
    return Candidates(
        np.arange(n) // 2,
        np.arange(n) % 2,
        corner,
        np.array(labels, dtype=np.int64),
        np.array(scores),
        np.linspace(0, 1, n),
        np.linspace(1, 0, n),
        np.full((n, 3), 0.25),
    )


POOL = labelled([0, 0, 0, 1, 1, 0], [0.9, 0.8, 0.9, 0.85, 0.3, 0.2])
"""From 0.8: three of class 0, one of class 1. Scores add up to 2.8 and 1.15."""


@pytest.mark.parametrize(
    ("reading", "wanted"),
    [
        ("hard", [3 / 4, 1 / 4, 0]),
        ("soft", [2.8 / 3.95, 1.15 / 3.95, 0]),
        ("with_labels", [(3 + 1) / 10, (1 + 0) / 10, 5 / 10]),  # human boxes 1, 0, 5
        ("max_normalised", [1, 1 / 3, 0]),
    ],
)
def test_class_frequency_by_hand(reading: str, wanted: list[float]) -> None:
    found = candidates.class_frequency([(POOL.labels, POOL.scores)], np.array([1, 0, 5]), 0.8, reading)
    assert found == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("reading", ["hard", "soft", "max_normalised", "with_labels"])
def test_class_frequency_of_an_empty_pool_is_0_but_for_human_boxes(reading: str) -> None:
    counts = np.array([1, 0, 3])
    wanted = [0.25, 0, 0.75] if reading == "with_labels" else [0, 0, 0]
    assert candidates.class_frequency([], counts, 0.8, reading).tolist() == wanted
    unsure = [(np.array([0, 1]), np.array([0.5, 0.5]))]
    if reading in ("hard", "max_normalised"):
        assert candidates.class_frequency(unsure, counts, 0.8, reading).tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------- files and rows


def same(one: Candidates, other: Candidates) -> None:
    for name in ("image_id", "box_index", "labels", "boxes", "scores", "uncertainty", "box_consistency"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert left.tolist() == right.tolist(), name
    assert one.class_probs == pytest.approx(other.class_probs, abs=1e-3)  # kept as float16
    assert (one.features is None) == (other.features is None)


@pytest.mark.parametrize("features", [False, True])
def test_candidates_are_read_back_in_the_order_of_the_shards(tmp_path: Path, features: bool) -> None:
    image = detections((box(0), 0, 0.9, SURE), (box(30), 1, 0.7, SPLIT), features=features)
    first, second = score([image, SEEN]), score([image[:1], NOTHING])
    candidates.write(tmp_path / "shard_00001.parquet", second)
    candidates.write(tmp_path / "shard_00000.parquet", first)
    back = read_all(tmp_path)
    same(back[:2], first)
    same(back[2:], second)


def test_a_shard_without_candidates_is_written_and_read_too(tmp_path: Path) -> None:
    candidates.write(tmp_path / "shard_00000.parquet", score([NOTHING, NOTHING]))
    assert len(read_all(tmp_path)) == 0
    candidates.write(tmp_path / "shard_00001.parquet", score([IMAGE, SEEN]))
    same(read_all(tmp_path), score([IMAGE, SEEN]))


# ------------------------------------------------------------------------------------------- scores of other methods


def of_image(found: list[Detections], hidden: list[list[bool]] | None = None) -> ImageScores:
    return candidates.score_image(7, found, still(found, hidden), ScoringSettings(), 2)[1]


def test_cald_takes_the_least_consistent_detection_of_each_view_and_the_mean_over_the_views() -> None:
    image = detections((box(0), 0, 0.9, SURE), (box(30), 0, 0.06, SURE))  # 0.06: no candidate, but a detection
    same_again = detections((box(0), 0, 0.9, SURE), (box(30), 0, 0.06, SURE))
    # |0.9 + 1 - 1.3| = 0.6 and |0.06 + 1 - 1.3| = 0.24
    assert of_image([image, same_again]).consistency == pytest.approx([0.24])
    # second view: the first box only: 0.6, the other lost: 1.3
    assert of_image([image, same_again, same_again[:1]]).consistency == pytest.approx([(0.24 + 0.6) / 2])
    # a view without detections is the most informative, 0; and so is an image without any
    assert of_image([image, same_again, NOTHING]).consistency == pytest.approx([0.12])
    assert of_image([NOTHING, same_again]).consistency == pytest.approx([0.0])
    # a detection that the view hides does not count
    assert of_image([image, same_again], [[False, True]]).consistency == pytest.approx([0.6])
    # and a view that hides all of them counts for nothing
    assert of_image([image, same_again, same_again], [[False, False], [True, True]]).consistency == pytest.approx(
        [0.24]
    )
    assert of_image([image, same_again], [[True, True]]).consistency == pytest.approx([1.3])


def test_class_scores_of_an_image_are_the_best_ones_averaged_over_it_and_its_views() -> None:
    image = detections((box(0), 0, 0.9, SURE), (box(30), 0, 0.5, SURE))
    view = detections((box(0), 1, 0.4, SPLIT))
    assert of_image([image, view]).class_scores == pytest.approx(np.array([[0.45, 0.2]]))
    assert of_image([NOTHING, NOTHING]).class_scores == pytest.approx(np.zeros((1, 2)))


def test_the_committee_disagrees_on_the_class_by_its_loss_against_the_label() -> None:
    image = detections((box(0), 0, 0.9, SURE), (box(30), 1, 0.8, SPLIT))
    views = [detections((box(0), 0, 0.9, [0.5, 0.5])), detections((box(0), 1, 0.9, [0.25, 0.75]))]
    # -ln 0.5 and -ln 0.25, the mean; the second box is lost in every view
    found = score([image, *views])
    assert found.class_disagreement == pytest.approx([1.0397208, np.nan], nan_ok=True)
    hidden = score([image, *views], [[False, False], [True, True]])
    assert hidden.class_disagreement == pytest.approx([0.6931472, np.nan], nan_ok=True)


def test_a_background_column_is_skipped_when_the_class_is_looked_up() -> None:
    image = replace(detections((box(0), 1, 0.9, SURE)), class_probs=np.array([[0.1, 0.0, 0.9]]))
    view = replace(detections((box(0), 1, 0.5, SURE)), class_probs=np.array([[0.3, 0.2, 0.5]]))
    assert score([image, view]).class_disagreement == pytest.approx([0.6931472])


def test_the_committee_disagrees_on_the_position_by_the_spread_of_the_corners() -> None:
    image = detections((box(0), 0, 0.9, SURE))
    views = [detections((box(2), 0, 0.9, SURE)), detections((box(4), 0, 0.9, SURE)), NOTHING]
    # x1 and x2: 0, 2, 4 apart, standard deviation 1.633 of a width of 10; y1 and y2 agree: (0.1633 x 2) / 4
    assert score([image, *views]).box_disagreement == pytest.approx([0.0816497])
    assert score([image, NOTHING]).box_disagreement == pytest.approx([np.nan], nan_ok=True)


def test_image_scores_are_read_back_from_their_files(tmp_path: Path) -> None:
    one, two = of_image([IMAGE, SEEN]), of_image([NOTHING, NOTHING])
    candidates.write(tmp_path / "images_00001.parquet", two)
    candidates.write(tmp_path / "images_00000.parquet", one)
    back = candidates.read_images(tmp_path)
    assert back.image_id.tolist() == [7, 7]
    assert back.consistency.tolist() == [*one.consistency, *two.consistency]
    assert back.class_scores.tolist() == [*one.class_scores.tolist(), *two.class_scores.tolist()]


def test_rows_by_image_finds_each_images_rows_also_where_they_are_scattered() -> None:
    scattered = POOL[np.array([4, 0, 5, 1, 2, 3])]  # images 2, 0, 2, 0, 1, 1
    found = {image_id: rows.tolist() for image_id, rows in candidates.rows_by_image(scattered).items()}
    assert found == {0: [1, 3], 1: [4, 5], 2: [0, 2]}
    assert candidates.rows_by_image(Candidates.none(3)) == {}
