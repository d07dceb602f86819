"""The statistics of a grid on hand-computed numbers, and the resulting page and tables."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from typer.testing import CliRunner

from rarebox.cli.main import app
from rarebox.config import NAMES, CostSettings, Settings, flatten, resolve
from rarebox.errors import UserError
from rarebox.grid import measures, paper, results, statistics
from rarebox.grid.measures import Point
from rarebox.grid.results import Group
from rarebox.grid.statistics import Spread
from rarebox.loop.metrics import as_record
from rarebox.report import drawing, grid, grid_figures, grid_tables, write_report
from tests import tiny
from tests.report.test_report import Page

CLASSES = ("cat", "dog", "yak")
SETTINGS = {
    "plain": {"selection.strategy": "uncertainty", "pseudo.method": "none"},
    "whole": {"selection.strategy": "class_balanced", "pseudo.method": "soft"},
    "dice": {"selection.strategy": "random", "pseudo.method": "none"},
}
FINAL = {"plain": (0.40, 0.44, 0.48), "whole": (0.46, 0.48, 0.50), "dice": (0.30, 0.50, 0.40)}
"""The final AP50 with seeds 0, 1, 2. Differences to ``plain``: whole +6, +4, +2, dice -10, +6, -8 hundredths."""


def record(
    cycle: int, labels: int, ap: float | None, *, reviews: int = 0, shown: int = 0, hits: int = 0
) -> dict[str, Any]:
    """A record; the yak is the rarest and a tenth worse, and every box shown is predicted as dog."""
    return {
        "cycle": cycle,
        "labels": labels,
        "reviews": reviews or labels,
        "hits": hits,
        "ap50": ap,
        "ap50_11": None if ap is None else ap + 0.01,
        "per_class_ap50": {"cat": ap, "dog": None, "yak": None if ap is None else ap - 0.1},
        "human_per_class": {"cat": labels - 6, "dog": 4, "yak": 2},
        "selected_per_class": {"cat": 0, "dog": shown, "yak": 0},
        "hits_per_class": {"cat": 0, "dog": hits, "yak": 0},
    }


def line(method: str, seed: int, cycles: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "run": f"{method}-{seed}",
        "data": "zoo",
        "detector": "retinanet",
        "method": method,
        "seed": seed,
        "budget": [50],
        "status": "done",
        "reason": None,
        "settings": SETTINGS.get(method, {}),
        "cycles": list(cycles),
        "seconds": 1.0,
        **more,
    }


def two_cycles(method: str, seed: int, **more: Any) -> dict[str, Any]:
    """100 labels and AP50 0.3, then 150 labels (one more each seed), 100 reviews, of which half hit."""
    last = record(2, 150 + seed, FINAL[method][seed], reviews=200, shown=100, hits=50)
    return line(method, seed, [record(1, 100, 0.3), last], **more)


def standard() -> list[dict[str, Any]]:
    return [two_cycles(method, seed) for seed in range(3) for method in FINAL]


FAILED = line("dice", 3, [], status="failed", reason="the disk | is full\nreally")
FULL = line("full", 0, [record(1, 1000, 0.5)], budget=[])


def write(folder: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "results.jsonl").write_text("".join(json.dumps(value) + "\n" for value in lines), encoding="utf-8")
    return folder


def group_of(tmp_path: Path, lines: Sequence[Mapping[str, Any]]) -> Group:
    (group,) = results.read([write(tmp_path / "grid", lines)])
    return group


def finals(group: Group) -> results.Values:
    return measures.measures(group)["AP50"]


# ------------------------------------------------------------------------------------------------ reading


def test_runs_of_one_data_set_detector_and_budget_make_a_group(tmp_path: Path) -> None:
    other = [two_cycles("plain", 0, data="farm"), two_cycles("plain", 0, budget=[60])]
    reviews = two_cycles("plain", 0, settings={**SETTINGS["plain"], "budget_unit": "reviews"})
    groups = results.read([write(tmp_path / "grid", [*standard(), FAILED, FULL, *other, reviews])])
    assert [g.title for g in groups] == [
        "zoo · retinanet · +50 labels",
        "farm · retinanet · +50 labels",
        "zoo · retinanet · +60 labels",
        "zoo · retinanet · +50 reviews",
    ]
    assert list(groups[0].methods) == ["plain", "whole", "dice"]
    assert groups[0].seeds == [0, 1, 2]
    assert [run.reason for run in groups[0].failed] == ["the disk | is full\nreally"]
    assert [len(g.full) for g in groups] == [1, 0, 1, 1]  # the ceiling does not depend on the budget


def test_the_last_line_about_a_run_counts(tmp_path: Path) -> None:
    again = line("dice", 3, [record(1, 100, 0.3), record(2, 150, 0.37)])
    group = group_of(tmp_path, [*standard(), FAILED, again])
    assert not group.failed
    assert finals(group)["dice"][3] == 0.37


def test_several_files_make_one_comparison(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", standard()[:3]), write(tmp_path / "b", standard()[3:])
    (group,) = results.read([one, two / "results.jsonl"])
    assert group.seeds == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "holds no run yet"),
        ("\n\n", "holds no run yet"),
        (json.dumps(FULL) + '\n{"run": "a', r"results\.jsonl, line 2 is not a run of a grid \(Invalid JSON"),
        ("[1]", r"results\.jsonl, line 1 is not a run of a grid"),
        (json.dumps({**FULL, "status": "going"}), "line 1 .*status: Input should be 'done' or 'failed'"),
        (json.dumps({**FULL, "cycles": []}), "line 1 .*a run that is done has cycles"),
        (json.dumps({**FULL, "cycles": [{"cycle": 1}]}), r"line 1 .*cycles\.0\.labels: Field required"),
    ],
)
def test_a_file_that_is_no_results_file_is_named_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "results.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        results.read([tmp_path])


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"results\.jsonl cannot be read \(No such file"):
        results.read([tmp_path])
    (tmp_path / "results.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not UTF-16 text"):
        results.read([tmp_path])


def test_what_is_a_grid(tmp_path: Path) -> None:
    assert results.is_grid(write(tmp_path / "grid", [FULL]))
    assert results.is_grid(tmp_path / "somewhere.jsonl")
    assert not results.is_grid(tmp_path)
    (tmp_path / "grid" / "settings.yaml").touch()  # a run's folder, even with other content
    assert not results.is_grid(tmp_path / "grid")


# ------------------------------------------------------------------------------------------------ over the seeds


def test_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    first, last = measures.curve(group_of(tmp_path, standard()).methods["plain"].values())
    assert (first.cycle, first.paid, first.value) == (1, 100, (pytest.approx(0.3), pytest.approx(0), 3))
    assert (last.cycle, last.paid) == (2, 151)  # 150, 151, 152
    assert last.value == (pytest.approx(0.44), pytest.approx(0.04), 3)  # 0.40, 0.44, 0.48, divisor 2


def test_what_is_not_known_is_left_out() -> None:
    assert statistics.spread([1.0, float("nan"), 3.0]) == (2.0, pytest.approx(2**0.5), 2)
    mean, sd, n = statistics.spread([5.0])
    assert (mean, np.isnan(sd), n) == (5.0, True, 1)
    assert np.isnan(statistics.spread([]).mean)


def test_paired_difference_by_hand(tmp_path: Path) -> None:
    values = finals(group_of(tmp_path, standard()))
    step = statistics.paired(values["whole"], values["plain"])
    # +6, +4, +2: s = 2, and t = 4.3027 for 2 degrees of freedom, so 4 -/+ 4.3027 * 2 / sqrt(3) = 4 -/+ 4.968.
    assert step == (pytest.approx(0.04), pytest.approx(-0.00968, abs=1e-5), pytest.approx(0.08968, abs=1e-5), 3)
    # -10, +6, -8: s = sqrt(76), so -4 -/+ 4.3027 * 5.0332 = -4 -/+ 21.656.
    noisy = statistics.paired(values["dice"], values["plain"])
    assert noisy == (pytest.approx(-0.04), pytest.approx(-0.25656, abs=1e-5), pytest.approx(0.17656, abs=1e-5), 3)


@given(st.lists(st.floats(-1, 1).map(lambda step: round(step, 3)), min_size=2, max_size=12))
def test_the_interval_is_that_of_the_t_test(steps: list[float]) -> None:
    step = statistics.paired(dict(enumerate(steps)), dict.fromkeys(range(len(steps)), 0.0))
    if len(set(steps)) > 1:
        expected = ttest_1samp(steps, 0).confidence_interval(0.95)
        assert (step.low, step.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    else:
        assert (step.low, step.high) == (pytest.approx(steps[0]), pytest.approx(steps[0]))


@pytest.mark.parametrize("seeds", [3, 6, 10])
def test_the_interval_holds_the_truth_in_95_of_100_cases(seeds: int) -> None:
    draws = np.random.default_rng(seeds).normal(0.3, 2, size=(2000, seeds))
    nothing = dict.fromkeys(range(seeds), 0.0)
    steps = [statistics.paired(dict(enumerate(row)), nothing) for row in draws]
    assert np.mean([step.low <= 0.3 <= step.high for step in steps]) == pytest.approx(0.95, abs=0.015)


def test_fewer_than_six_seeds_never_make_a_difference() -> None:
    """Regardless of its size; with six seeds or more it counts if the interval excludes 0."""
    for seeds in range(1, 9):
        apart = [0.5 + seed / 1000 for seed in range(seeds)]
        for direction in (1, -1):
            step = statistics.paired({s: direction * v for s, v in enumerate(apart)}, dict.fromkeys(range(seeds), 0.0))
            assert step.sign == direction * (seeds >= 6)
    across = statistics.paired(dict(enumerate([0.1, -0.1] * 4)), dict.fromkeys(range(8), 0.0))
    assert across.sign == 0


def test_differences_use_common_seeds_only() -> None:
    step = statistics.paired({0: 0.5, 1: 0.9, 2: float("nan")}, {0: 0.4, 2: 0.1, 3: 0.2})
    assert (step.mean, step.n) == (pytest.approx(0.1), 1)
    assert np.isnan([step.low, step.high]).all()
    assert statistics.paired({0: 1.0}, {1: 1.0}).n == 0


def test_area_by_hand() -> None:
    x, y = np.array([0.0, 10.0, 30.0]), np.array([0.0, 1.0, 1.0])
    assert statistics.area(x, y, 0, 30) == pytest.approx((5 + 20) / 30)
    assert statistics.area(x, y, 5, 20) == pytest.approx((5 * 0.75 + 10) / 15)  # from 0.5 to 1, then flat
    assert np.isnan(statistics.area(x, y, 10, 10))


def test_areas_share_the_range_of_their_seed(tmp_path: Path) -> None:
    """One method overshoots to 200 labels; over 100 to 150 its line rises from 0.3 to 0.5 only."""
    over = line("over", 0, [record(1, 100, 0.3), record(2, 200, 0.7)])
    group = group_of(tmp_path, [two_cycles("plain", 0), over])
    assert measures.areas(group) == {"plain": {0: pytest.approx(0.35)}, "over": {0: pytest.approx(0.4)}}
    late = line("late", 0, [record(1, 125, 0.4), record(2, 150, 0.6)])
    begins_late = measures.areas(group_of(tmp_path, [two_cycles("plain", 0), over, late]))
    assert begins_late["over"] == {0: pytest.approx(0.45)}  # from 125 to 150: 0.4 to 0.5
    by_reviews = measures.areas(group, "reviews")
    assert by_reviews["over"][0] == pytest.approx(0.5)
    told = [
        ({**record(1, 100, 0.3), "seconds_spent": 100.0}, {**record(2, 150, ap), "seconds_spent": spent})
        for ap, spent in ((0.4, 150.0), (0.7, 300.0))
    ]
    timed = group_of(tmp_path, [line("slow", 0, told[1]), line("fast", 0, told[0])])
    assert measures.areas(timed, "seconds") == {"slow": {0: pytest.approx(0.35)}, "fast": {0: pytest.approx(0.35)}}
    # At the 150 labels that both have paid, not where each ended.
    assert measures.at_equal_cost(group) == {"plain": {0: pytest.approx(0.4)}, "over": {0: pytest.approx(0.5)}}
    assert measures.at_equal_cost(group, "reviews")["over"][0] == pytest.approx(0.7)
    # A run that bought nothing has no area and does not affect the others.
    idle = line("idle", 0, [record(1, 100, 0.3), record(2, 100, 0.3)])
    assert measures.areas(group_of(tmp_path, [two_cycles("plain", 0), over, idle])) == {
        **measures.areas(group),
        "idle": {},
    }


def test_labels_to_reach_a_height() -> None:
    points = [
        Point(i, x, Spread(y, 0.0, 1)) for i, (x, y) in enumerate([(100, 0.2), (200, 0.4), (400, 0.3), (500, 0.6)])
    ]
    assert measures.labels_to_reach(points, 0.3) == pytest.approx(150)
    assert measures.labels_to_reach(points, 0.45) == pytest.approx(450)
    assert measures.labels_to_reach(points, 0.1) == 100
    assert measures.labels_to_reach(points, 0.61) is None
    assert measures.labels_to_reach(points, float("nan")) is None  # no run on all labels
    assert measures.labels_to_reach([], 0.1) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cycles": [1]}, "cycles"),
        ({"settings": {"budget_unit": "coins"}}, "budget_unit is 'coins', not labels, reviews or seconds"),
        ({"budget": 5}, "budget"),
        ({"settings": None}, "settings"),
        ({"seed": "x"}, "seed"),
        ({"data": None}, "data"),
        ({"method": ["U"]}, "method"),
        ({"cycles": [{**record(1, 100, 0.3), "ap50": "x"}]}, r"cycles\.0\.ap50"),
        ({"cycles": [{**record(1, 100, 0.3), "labels": None}]}, r"cycles\.0\.labels"),
        ({"cycles": [{**record(1, 100, 0.3), "human_per_class": None}]}, r"cycles\.0\.human_per_class"),
        ({"cycles": [{**record(1, 100, 0.3), "actions_this_cycle": {"dance": 2}}]}, "there is no action 'dance'"),
        ({"status": "failed", "cycles": [], "reason": {"a": 1}}, "reason"),
    ],
)
def test_a_line_with_a_value_of_another_kind_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    lines = [two_cycles("plain", 0), {**two_cycles("plain", 1), **changes}]
    with pytest.raises(UserError, match=rf"line 2.*{told}"):
        group_of(tmp_path, lines)


def test_runs_with_other_classes_are_not_compared(tmp_path: Path) -> None:
    other = {**record(1, 100, 0.3), "per_class_ap50": {"boat": 0.3}}
    with pytest.raises(UserError, match="do not have the same classes"):
        group_of(tmp_path, [two_cycles("plain", 0), line("V", 0, [other])])


# ------------------------------------------------------------------------------------------------ classes


def test_lines_of_earlier_versions_count_looks(tmp_path: Path) -> None:
    now = line("whole", 0, [record(1, 100, 0.3, reviews=100)], settings={**SETTINGS["whole"], "budget_unit": "reviews"})
    before = json.loads(json.dumps(now).replace('"reviews', '"looks'))
    assert before["cycles"][0]["looks"] == 100
    assert before["settings"]["budget_unit"] == "looks"
    (ours,), (theirs,) = (
        results.read([write(tmp_path / name, [run])]) for name, run in (("now", now), ("before", before))
    )
    assert ours.unit == theirs.unit == "reviews"
    assert [vars(run) for run in ours.runs] == [vars(run) for run in theirs.runs]


def test_rare_classes_come_from_the_full_run_or_the_first_images(tmp_path: Path) -> None:
    group = group_of(tmp_path, standard())
    assert measures.rare_first(group) == ["yak", "dog", "cat"]
    assert measures.rarest(group) == ["yak"]
    assert measures.mean_ap(["yak", "dog"])(as_record(record(1, 100, 0.3))) == pytest.approx(0.2)  # no dog to find
    assert np.isnan(measures.mean_ap(["dog"])(as_record(record(1, 100, 0.3))))
    counted = {**record(1, 1000, 0.5), "human_per_class": {"cat": 5, "dog": 400, "yak": 900}}
    group = group_of(tmp_path, [*standard(), line("full", 0, [counted])])
    assert measures.rare_first(group) == ["cat", "dog", "yak"]


def test_first_images_are_counted_once_a_seed(tmp_path: Path) -> None:
    """Two methods of seed 0 share a first cycle with 10 dogs and 11 yaks; seed 1 alone has 3 and 0: 13 and 11."""
    lines = [two_cycles("plain", 0), two_cycles("whole", 0), two_cycles("plain", 1)]
    for value, (dogs, yaks) in zip(lines, [(10, 11), (10, 11), (3, 0)], strict=True):
        value["cycles"][0]["human_per_class"] = {"cat": 99, "dog": dogs, "yak": yaks}
    assert measures.rare_first(group_of(tmp_path, lines)) == ["yak", "dog", "cat"]


def test_hit_rate_pools_the_choosing_cycles(tmp_path: Path) -> None:
    cycles = [
        record(1, 100, 0.3, shown=7, hits=7),
        record(2, 150, 0.4, shown=100, hits=50),
        record(3, 150, 0.4, shown=20, hits=4),
    ]
    group = group_of(tmp_path, [line("plain", 0, cycles), line("image", 0, [record(1, 100, 0.3), record(2, 150, 0.3)])])
    rates = measures.hit_rates(group.methods["plain"].values())
    assert (rates["dog"], rates[""]) == (54 / 120, 54 / 120)
    assert np.isnan(rates["cat"])
    assert np.isnan(measures.hit_rates(group.methods["image"].values())[""])  # whole images: no box is shown


# ------------------------------------------------------------------------------------------------ recognising methods


def test_references_and_ablation_are_recognised_by_settings(tmp_path: Path) -> None:
    group = group_of(tmp_path, standard())
    assert paper.references(group) == {"U": "plain", "box random": "dice"}
    assert paper.ablation(group) == {"U": "plain", "+ TSPL": "whole"}
    assert group.methods["whole"][0].setting("selection.sigma") == Settings().selection.sigma  # missing from the line


def test_the_plainest_of_several_is_the_reference(tmp_path: Path) -> None:
    chosen = {
        "random soft": {"selection.strategy": "random", "pseudo.method": "soft"},
        "random hard": {"selection.strategy": "random", "pseudo.method": "none", "pseudo.human_iou": 0.3},
        "random": {"selection.strategy": "random", "pseudo.method": "none"},
        "U soft": {"selection.strategy": "uncertainty", "pseudo.method": "soft"},
        "sigma": {"selection.strategy": "class_balanced", "pseudo.method": "none", "selection.sigma": 2.0},
        "U+CB": {"selection.strategy": "class_balanced", "pseudo.method": "none"},
    }
    group = group_of(tmp_path, [line(m, 0, [record(1, 100, 0.3)], settings=s) for m, s in chosen.items()])
    wanted = {"U": "U soft", "box random": "random"}
    assert paper.references(group) == wanted
    # The same if every line holds every setting, as written by `rarebox bench`, in any order.
    usual = dict(flatten(Settings().model_dump(mode="json")))
    full = {m: {**usual, **s} for m, s in reversed(chosen.items())}
    lines = [line(m, 0, [record(1, 100, 0.3)], settings=s) for m, s in full.items()]
    assert paper.references(group_of(tmp_path, lines)) == wanted
    assert paper.ablation(group_of(tmp_path, lines))["U+CB"] == "U+CB"
    assert paper.ablation(group) == {"U+CB": "U+CB"}


# ------------------------------------------------------------------------------------------------ tables


def cells(tables: Sequence[grid_tables.Table], title: str) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for table in tables if table.title == title for row in table.rows}


def test_the_table_of_methods(tmp_path: Path) -> None:
    rows = cells(grid_tables.tables(group_of(tmp_path, [*standard(), FULL])), "All methods")
    assert list(rows) == ["whole", "plain", "dice", "all labels"]
    seeds, ap, equal, area, _, by_seconds, rare, hit, labels, reviews, seconds, at_90, at_95 = rows["whole"]
    assert (seeds, ap, rare, hit, labels, reviews) == ("3", "0.480 ± 0.020", "0.380 ± 0.020", "50\u00a0%", "151", "200")
    # Seed by seed (0.3 + the end) / 2 = 0.38, 0.39, 0.40.
    assert area == "0.390 ± 0.010"
    assert equal == ap  # all methods of a seed have paid as much
    # The mean curve goes from (100, 0.30) to (151, 0.48); 0.45 and 0.475 are 15/18 and 17.5/18 of the way.
    assert (at_90, at_95) == ("142", "150")
    assert (by_seconds, seconds) == ("–", "–")  # these lines do not say how many images were labelled
    assert rows["dice"][11:] == ("–", "–")
    assert rows["all labels"][:2] == ("1", "0.500")
    assert rows["all labels"][8] == "1\u202f000"
    assert len({*map(len, rows.values())}) == 1


def test_seconds_of_earlier_lines_are_estimated_and_say_so(tmp_path: Path) -> None:
    """Cycle 1: 10 images, 100 labels: 10 x 7.8 + 100 x 7 = 778 s. Cycle 2: 40 boxes are shown and 30 hit, and 2 images
    have 20 labels: 40 x 0.8 + 15 x 1 + 15 x 5 + 10 x 1 + 2 x 7.8 + 20 x 7 = 287.6 s."""
    first = {**record(1, 100, 0.3), "images_full": 10, "labels_this_cycle": 100}
    second = {**record(2, 150, 0.5, shown=40, hits=30), "images_full": 12, "labels_this_cycle": 50}
    third = {**record(3, 160, 0.6), "images_full": 12, "labels_this_cycle": 10, "seconds_spent": 1100.0}
    group = group_of(tmp_path, [line("plain", 0, [first, second, third])])
    (run,) = group.finished
    assert [one["seconds_spent"] for one in run.cycles] == pytest.approx([778, 778 + 287.6, 1100])
    assert [one.get("seconds_estimated") for one in run.cycles] == [True, True, None]
    (methods,) = (table for table in grid_tables.tables(group) if table.title == "All methods")
    assert methods.rows[0][methods.columns.index("seconds")] == "≈ 1\u202f100"
    assert "≈: seconds estimated" in methods.note
    third["actions_this_cycle"] = {"look": 1, "confirm": 1}
    known = [{**first, "seconds_spent": 10.0}, {**third, "cycle": 2}]
    (methods,) = (
        table
        for table in grid_tables.tables(group_of(tmp_path, [line("plain", 0, known)]))
        if table.title == "All methods"
    )
    assert methods.rows[0][methods.columns.index("seconds")] == "1\u202f100"
    assert "≈" not in methods.note


def test_runs_are_scored_again_for_other_costs(tmp_path: Path) -> None:
    first = {**record(1, 100, 0.3), "seconds_spent": 778.0, "actions_this_cycle": {"scan": 10, "draw": 100}}
    second = {**record(2, 102, 0.5), "seconds_spent": 790.0, "actions_this_cycle": {"look": 4, "confirm": 2, "mend": 1}}
    folder = write(tmp_path / "grid", [line("plain", 0, [first, second])])
    for cost, seconds in ((None, [778, 790]), (CostSettings(draw=14, mend=2.5), [1478, 1478 + 3.2 + 2 + 2.5])):
        ((run,),) = (group.finished for group in results.read([folder], cost))
        assert [one["seconds_spent"] for one in run.cycles] == pytest.approx(seconds)
        assert not run.estimated


def test_a_budget_of_seconds_makes_a_group(tmp_path: Path) -> None:
    told = [{**record(1, 100, 0.3), "seconds_spent": 700.0}, {**record(2, 120, 0.4), "seconds_spent": 744.5}]
    group = group_of(tmp_path, [line("whole", 0, told, settings={**SETTINGS["whole"], "budget_unit": "seconds"})])
    assert group.title == "zoo · retinanet · +50 seconds"
    assert results.short([as_record(one) for one in told], [50], "seconds") == [(2, 44.5, 50)]


def test_the_table_of_differences(tmp_path: Path) -> None:
    tables = grid_tables.tables(group_of(tmp_path, standard()))
    rows = cells(tables, "Differences: AP50")
    assert rows["whole"][0] == "+0.040 (−0.010 to +0.090)"
    assert rows["dice"] == ("−0.040 (−0.257 to +0.177)", "–")
    assert rows["plain"][0] == "–"
    note = next(table.note for table in tables if table.title == "Differences: AP50")
    assert note == "Paired by seed: n = 3; in brackets the paired 95 % t interval, * where 6 seeds or more exclude 0."


def lead(seeds: int) -> list[dict[str, Any]]:
    """The whole method is ahead of plain by 6, 7, 8 ... hundredths."""
    cycles = {
        m: [[record(1, 100, 0.3), record(2, 150, 0.4 + (0.06 + s / 100) * (m == "whole"))] for s in range(seeds)]
        for m in ("plain", "whole")
    }
    return [line(method, seed, told) for method, runs in cycles.items() for seed, told in enumerate(runs)]


def test_a_star_and_a_claim_require_six_seeds(tmp_path: Path) -> None:
    few, enough = group_of(tmp_path, lead(5)), group_of(tmp_path, lead(6))
    for group, star in ((few, ""), (enough, " *")):
        (cell, *_) = cells(grid_tables.tables(group), "Differences: AP50")["whole"]
        assert cell.endswith(f"){star}")
        assert "(+0.0" in cell  # the interval excludes 0 in both
    head = (
        "The paper’s whole method ends 0.080 AP50 above plain uncertainty; 5 seeds cannot distinguish this from chance."
    )
    assert grid.headline([few]) == head
    assert grid.headline([enough]) == "The paper’s whole method ends 0.085 AP50 above plain uncertainty."
    said = "Against U (“plain”) fewer than 6 common seeds are inconclusive for whole (+0.080)."
    assert said in grid.findings(few)
    said = "Against U (“plain”) the interval of the final AP50 lies above 0 for whole (+0.085)."
    assert said in grid.findings(enough)
    assert "in 0 of 2 settings, below it in 0; in 2 the seeds are inconclusive" in grid.headline([few, few])
    assert "in 1 of 2 settings" in grid.headline([few, enough])
    with drawing.style():
        dots = [grid_figures._differences(g, grid_figures.styles_of([g]), "U", "plain") for g in (few, enough)]
    figures: list[Any] = [panel.figure for panel in dots]
    shapes = [figure.axes[0].lines[1].get_markerfacecolor() for figure in figures]
    assert shapes[0] == drawing.LIGHT["card"] != shapes[1]
    assert "over 5 seeds. A full dot: it excludes 0, over 6 seeds or more" in dots[0].look_for


def test_the_ablation_in_another_setting_has_no_number_of_the_papers_beside_it(tmp_path: Path) -> None:
    group = group_of(tmp_path, standard())
    rows = cells(grid_tables.tables(group), "Ablation")
    assert rows["U"] == ("✓", "", "", "", "", "44.00 (4.00)", "plain")
    assert rows["+ TSPL"] == ("✓", "✓", "", "", "✓", "48.00 (2.00)", "whole")
    text = grid_tables.markdown([group])
    assert not [mean for row in grid_tables.PAPER_TABLE_1.values() for mean, _ in row if f"{mean:.2f} (" in text]


def voc_runs(**changes: Any) -> list[dict[str, Any]]:
    """Two seeds of the last row of Table 1, as `rarebox bench paper/table1.yaml` would write them."""
    settings = resolve("paper", None, {"detector.name": "retinanet", "data": "voc0712", **SETTINGS["whole"]})
    told = {**dict(flatten(settings.model_dump(mode="json"))), **changes}
    points = ((1, 3000, 0.4), (2, 5000, 0.5), (3, 9000, 0.6), (4, 17000, 0.7))
    classes = dict.fromkeys(sorted(paper.VOC_CLASSES), 0.5)
    counts = dict.fromkeys(classes, 7)
    per_class = {
        "per_class_ap50": classes,
        **dict.fromkeys(("human_per_class", "selected_per_class", "hits_per_class"), counts),
    }
    cycles = [{**record(i, n, ap), **per_class} for i, n, ap in points]
    about = {"data": "voc0712", "budget": told["budget"], "settings": told}
    return [line("whole", seed, cycles, **about) for seed in range(2)]


def test_the_papers_numbers_appear_beside_ours_in_its_own_setting(tmp_path: Path) -> None:
    group = group_of(tmp_path, voc_runs())
    rows = cells(grid_tables.tables(group), "Ablation")
    assert rows["+ TSPL"][5:11] == (
        "51.00 (0.00)",
        "61.90 (0.88)",
        "61.00 (0.00)",
        "67.92 (1.87)",
        "71.00 (0.00)",
        "73.56 (0.32)",
    )  # by 11 points
    machine = {"device": "cuda", "scoring.batch_size": 16, "training.checkpoint_seconds": 5.0}
    assert paper.is_papers(group_of(tmp_path, voc_runs(**machine)))


@pytest.mark.parametrize("name", sorted(paper.paper_setting()))
def test_any_relevant_setting_removes_the_papers_numbers(tmp_path: Path, name: str) -> None:
    value = paper.paper_setting()[name]
    other = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v / 2 + 0.01, list: lambda v: v[:-1]}
    changed = "reviews" if name == "budget_unit" else other[type(value)](value) if type(value) in other else "another"
    runs = voc_runs(**{name: changed})
    group = group_of(tmp_path, runs)
    assert not paper.is_papers(group)
    text = grid_tables.markdown([group])
    assert "the paper |" not in text
    assert "73.56" not in text


def test_other_data_under_the_papers_name_is_not_the_papers(tmp_path: Path) -> None:
    runs = voc_runs()
    for cycle in runs[0]["cycles"]:
        cycle["per_class_ap50"] = {"cat": 0.5}
        for counts in ("human_per_class", "selected_per_class", "hits_per_class"):
            cycle[counts] = {"cat": 7}
    assert not paper.is_papers(group_of(tmp_path, runs[:1]))
    assert not paper.is_papers(group_of(tmp_path, [{**run, "data": "voc2007"} for run in voc_runs()]))


def test_settings_that_do_not_matter_are_named_and_exist() -> None:
    """An outdated name would exclude nothing; all other settings are in `paper_setting`."""
    ignored = paper.OF_THE_MACHINE | paper.OF_OTHERS
    assert ignored <= NAMES
    assert paper.paper_setting().keys() | ignored == NAMES


def test_the_rarest_third_of_six_classes_are_two_and_of_twenty_seven(tmp_path: Path) -> None:
    last = record(1, 100, 0.3) | {"human_per_class": {name: 10 + i for i, name in enumerate("fedcba")}}
    assert measures.rarest(group_of(tmp_path, [line("plain", 0, [last])])) == ["f", "e"]
    names = [f"c{i:02d}" for i in range(20)]
    last |= {"human_per_class": {name: 10 + i for i, name in enumerate(names)}}
    assert measures.rarest(group_of(tmp_path, [line("plain", 0, [last])])) == names[:7]  # of VOC's twenty classes


def test_one_seed_has_no_deviation_and_no_interval(tmp_path: Path) -> None:
    group = group_of(tmp_path, standard()[:3])
    tables = grid_tables.tables(group)
    assert not re.search("±|deviation|interval", grid_tables.markdown([group]))
    assert statistics.CAUTION not in grid_tables.markdown([group])
    assert cells(tables, "All methods")["whole"][1] == "0.460"
    assert cells(tables, "Differences: AP50")["whole"][0] == "+0.060"
    assert "not two common seeds" in " ".join(grid.findings(group))
    assert (
        grid.headline([group])
        == "The paper’s whole method ends 0.060 AP50 above plain uncertainty, with a single seed."
    )


def test_a_reference_of_that_name_is_named_once_and_has_no_row_of_its_own(tmp_path: Path) -> None:
    told = [{**run, "method": "U" if run["method"] == "plain" else "whole"} for run in standard()[:2]]
    told[1]["cycles"] = told[0]["cycles"]
    table = next(t for t in grid_tables.tables(group_of(tmp_path, told)) if t.title == "Differences: AP50")
    assert table.columns == ("method", "minus U")
    assert table.rows == (("whole", "0.000"),)
    alone = grid_tables.tables(group_of(tmp_path, told[:1]))
    assert "Differences: AP50" not in [t.title for t in alone]


def test_labels_to_a_fraction_of_all_labels_require_a_run_on_all_labels(tmp_path: Path) -> None:
    columns = [grid_tables.tables(group_of(tmp_path, runs))[0].columns for runs in (standard(), [*standard(), FULL])]
    assert len(columns[0]) == 12
    assert [column[:2] for column in columns[1][12:]] == ["to", "to"]


def test_batches_that_ended_short_are_listed(tmp_path: Path) -> None:
    """Of 50 labels plain spends 50, 44, 52 and 47, whole 30 of 50 reviews."""
    cycles = [[record(1, 100, 0.3), record(2, 100 + spent, 0.4)] for spent in (50, 44, 52, 47)]
    runs = [line("plain", seed, told) for seed, told in enumerate(cycles)]
    assert "ended short" not in grid_tables.markdown([group_of(tmp_path, [runs[0], runs[2]])])
    rows = cells(grid_tables.tables(group_of(tmp_path, runs)), "Batches that ended short of their budget")
    assert rows == {"plain": ("2 of 4", "44 of 50 (seed 1, cycle 2)")}
    reviews = {**SETTINGS["whole"], "budget_unit": "reviews"}
    told = [record(1, 100, 0.3, reviews=100), record(2, 190, 0.4, reviews=130)]
    text = grid_tables.markdown([group_of(tmp_path, [line("whole", 0, told, settings=reviews)])])
    assert "The budget counts reviews.\n" in text
    assert "| whole | 1 of 1 | 30 of 50 (seed 0, cycle 2) |" in text
    assert results.short([as_record(told[0])], [50, 60], "reviews") == []


def test_what_is_not_quite_compas_is_named_so(tmp_path: Path) -> None:
    settings = {"selection.strategy": "compas"}
    lines = [two_cycles("plain", 0), line("compas", 0, [record(1, 100, 0.3)], settings=settings)]
    lines.append(line("mine", 0, [record(1, 100, 0.3)], settings=settings))  # a name that the user chose
    assert [*group_of(tmp_path, lines).methods] == ["plain", "compas-like", "mine"]


def test_no_reference_no_difference(tmp_path: Path) -> None:
    group = group_of(tmp_path, [run for run in standard() if run["method"] == "whole"])
    assert [table.title for table in grid_tables.tables(group)] == ["All methods", "Ablation"]
    assert "The grid has no U and no box random and no image random to compare with." in grid.findings(group)


def test_markdown(tmp_path: Path) -> None:
    text = grid_tables.markdown([group_of(tmp_path, [*standard(), FAILED])])
    assert text.startswith("## zoo · retinanet · +50 labels\n\n### All methods\n\n")
    assert "| whole | +0.040 (−0.010 to +0.090) | +0.080 (−0.148 to +0.308) |\n" in text
    assert ") \\* |" in grid_tables.markdown([group_of(tmp_path, lead(6))])
    assert "- dice, seed 3: the disk \\| is full really\n" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


# ------------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid, with its report in ``out``."""
    folder = write(tmp_path_factory.mktemp("reported") / "grid", [*standard(), FAILED, FULL])
    write_report(folder / "out", [folder])
    return folder


def test_the_page_of_a_grid(reported: Path) -> None:
    page = Page(reported / "out" / "report.html")
    told = (
        "The paper’s whole method ends 0.040 AP50 above plain uncertainty; 3 seeds cannot distinguish this from chance."
    )
    assert told in page.text
    assert "10 runs finished, 1 failed." in page.text
    against = "Against U (“plain”) fewer than 6 common seeds are inconclusive for whole (+0.040) and dice (−0.040)."
    assert against in page.text
    assert "The grid has no image random to compare with." in page.text
    assert "73.56" not in page.text  # of the paper, in another setting
    for said in ("the disk | is full", "0.480 ± 0.020", "training on all labels reaches 0.500"):
        assert said in page.text
    assert not re.search(r"https?://|url\((?!#)|@import", page.source)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    body = page.source.partition("</style>")[2]
    assert not [colour for colour in drawing.LIGHT.values() if colour in body]
    assert str(reported.parent) not in page.source
    stems = {path.stem for path in (reported / "out" / "figures").glob("*.svg")}
    assert stems == {path.stem for path in (reported / "out" / "figures").glob("*.png")}
    assert {"ap50_labels", "ap50_reviews", "rare_labels", "minus_U", "minus_box_random", "hits_of_classes"} <= stems
    assert (reported / "out" / "tables.md").read_text(encoding="utf-8").startswith("## zoo")


def test_the_same_grid_gives_the_same_bytes(reported: Path, tmp_path: Path) -> None:
    write_report(tmp_path, [reported])
    for file in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert file.read_bytes() == (reported / "out" / file.relative_to(tmp_path)).read_bytes()


def test_several_groups_and_one_with_nothing_finished(tmp_path: Path) -> None:
    lines = [*standard(), *({**run, "data": "farm"} for run in standard()), {**FAILED, "data": "moon"}]
    lines += [two_cycles("plain", 0, budget=[60]), {**FULL, "status": "failed"}]  # a ceiling of two groups
    with tiny.figures_not_drawn(but="^group2_ap50_labels$"):
        page = Page(write_report(tmp_path / "out", [write(tmp_path / "grid", lines)]))
    assert "above plain uncertainty in 0 of 2 settings, below it in 0; in 2 the seeds are inconclusive." in page.text
    assert "No run has finished here." in page.text
    assert "19 runs finished, 2 failed." in page.text
    assert page.text.count("no reason was given") == 1
    assert (tmp_path / "out" / "figures" / "group2_ap50_labels.png").exists()


def test_unknown_numbers_do_not_break_the_page(tmp_path: Path) -> None:
    lines = [line("whole", seed, [record(1, 100, None), record(2, 150, None)]) for seed in range(2)]
    lines += [line("plain", 0, [record(1, 100, 0.3)])]
    page = Page(write_report(tmp_path / "out", [write(tmp_path / "grid", lines)]))
    assert "2 methods compared in 1 setting." in page.text


def test_sixteen_methods_keep_their_colours_and_eighty_classes_their_room(tmp_path: Path) -> None:
    classes = [f"kind {i}" for i in range(80)]
    lines = []
    for i in range(13):
        value = line(f"other {i}", 0, [record(1, 100, 0.3), record(2, 150, 0.3 + i / 100, shown=9, hits=3)])
        value["settings"] = {"selection.strategy": f"strategy_{i}"}
        lines.append(value)
    lines += [two_cycles(method, 0) for method in FINAL]
    for value in lines:
        for cycle in value["cycles"]:
            for key in ("per_class_ap50", "human_per_class", "selected_per_class", "hits_per_class"):
                cycle[key] = {name: next(v for v in cycle[key].values() if v is not None) for name in classes}
    group = group_of(tmp_path, lines)
    styles = grid_figures.styles_of([group])
    assert [styles[name] for name in ("plain", "whole", "dice")] == [*zip(drawing.PALETTE, "osD", strict=False)]
    named = [name for name, (colour, _) in styles.items() if colour != drawing.LIGHT["muted"]]
    assert len(named) == 8
    assert named[3:] == [f"other {i}" for i in (12, 11, 10, 9, 8)]  # the best of the others
    with drawing.style():
        panels = grid_figures.of_group(group, styles)
    assert [panel.name for panel in panels["each"]] == ["each_labels", "each_reviews", "each_seconds"]
    assert all("Grey: 8 other methods" in panel.look_for for panel in panels["learning"])
    assert all("Of 80 classes the 10 rarest and the 10 most frequent." in panel.look_for for panel in panels["classes"])


def test_names_at_the_ends_of_lines_do_not_overlap() -> None:
    assert grid_figures._apart([1, 2, 3], gap=0.5, low=0, high=4) == [1, 2, 3]
    assert grid_figures._apart([1, 1, 3], gap=0.5, low=0, high=4) == [0.75, 1.25, 3]
    assert grid_figures._apart([4, 4, 4], gap=0.5, low=0, high=4) == [3, 3.5, 4]


def test_a_report_on_several_grids_is_in_no_grids_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [write(tmp_path / name, [two_cycles("plain", seed)]) for seed, name in enumerate("ab")]
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["report", "a", "b/results.jsonl"])
    assert done.output.strip() == str(tmp_path / "rarebox-report" / "report.html")
    assert (tmp_path / "rarebox-report" / "tables.md").exists()
    assert not [path for folder in folders for path in folder.glob("report.html")]


def test_the_command(tmp_path: Path) -> None:
    folder = write(tmp_path / "grid", standard())
    with tiny.without_figures():
        done = CliRunner().invoke(app, ["report", str(folder)])
        assert done.output.strip() == str((folder / "report.html").resolve())
        CliRunner().invoke(app, ["report", str(folder / "results.jsonl"), "--to", str(tmp_path / "to")])
    assert (tmp_path / "to" / "tables.md").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty/results\.jsonl cannot be read"):  # a grid, and something else
        CliRunner().invoke(app, ["report", str(folder), str(tmp_path / "empty")], catch_exceptions=False)
