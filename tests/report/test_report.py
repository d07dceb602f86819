"""The report: the content of the page, that it is self-contained, and that it handles incomplete runs."""

import base64
import io
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

from rarebox import config
from rarebox.cli.main import app
from rarebox.core import parquet
from rarebox.core.files import OWN_MARK, write_json, write_text
from rarebox.errors import UserError
from rarebox.labels import targets
from rarebox.labels.store import Store
from rarebox.loop.run_folder import RunFolder
from rarebox.report import drawing, figures, gallery, rows, shots, wording, write_report
from rarebox.report.reading import ReportedRun, read_runs
from rarebox.types import Answer, ImageRecord, Query, Source, Targets, Verdict, concatenate
from tests import tiny

CLASSES = ("cat", "dog", "yak")
EVERY = ""
"""Matches the name of every figure."""
NOTHING = "(?!)"
SIZE = (960, 640)  # shown at 480 x 320: everything at half its size


def make_run(
    root: Path,
    cycles: int = 3,
    classes: Sequence[str] = CLASSES,
    ap: Sequence[float] = (0.31, 0.38, 0.43),
    images: int = 6,
    settings: Mapping[str, Any] = MappingProxyType({}),
) -> Path:
    """A run folder made by the real writers, with counts that fall from class to class, and small real images."""
    folder = RunFolder(root)
    folder.claim(config.resolve(changes={"initial_images": 2, "budget": [20, 40], **settings}))
    write_json(folder.environment, {"rarebox": "0.1.0", "torch": "9.9.9", "accelerator": None})
    write_json(folder.metrics, [record(cycle, classes, ap[cycle - 1]) for cycle in range(1, cycles + 1)])
    pictures = root.parent / f"{root.name}_images"
    pictures.mkdir()
    with Store(folder.store, classes=classes, flush=False) as store:
        store.add_images([_image(pictures, i) for i in range(1, images + 1)])
        for cycle in range(1, cycles + 1):
            store.open_cycle(cycle)
            _say(store, cycle, images, len(classes))
            targets.write_targets(
                folder.cycle(cycle) / "targets.parquet", {i: _targets() for i in range(3, images + 1)}
            )
    return root


def _image(folder: Path, number: int) -> ImageRecord:
    file = folder / f"photo {number}.png"
    shade = np.linspace(40, 200, SIZE[0], dtype=np.uint8)
    Image.fromarray(np.stack([np.broadcast_to(shade, SIZE[::-1])] * 3, axis=-1) // number).save(file, compress_level=1)
    return ImageRecord(number, str(file), *SIZE)


def _say(store: Store, cycle: int, images: int, classes: int) -> None:
    """Cycle 1 labels two images; each further one shows two boxes on each other image: a hit and a miss."""
    if cycle == 1:
        asked = store.ask(1, [Query(1), Query(2)])
        store.record([said(q.id, [10, 10, 90, 90], 0) for q in asked])
        return
    for i in range(3, images + 1):
        why = {"score": 0.4321, "uncertainty": 0.77}
        shown = [[100, 200, 300, 400 + cycle], [600, 100, 700, 160 + cycle]]
        hit, miss = store.ask(cycle, [Query(i, np.array(box), i % classes, why=why) for box in shown])
        store.record([said(hit.id, [102, 202, 298, 402], (i + 1) % classes), said(miss.id)])


def said(query_id: int, box: Sequence[float] = (), label: int = 0) -> Answer:
    """The answer that there is one object, or, without a box, none."""
    verdict = Verdict.OBJECT if box else Verdict.NOT_AN_OBJECT
    return Answer(query_id, np.array([box] if box else []), np.array([label] if box else [], np.int64), verdict)


def _targets() -> Targets:
    return concatenate(
        [
            Targets.of([[100, 200, 300, 400]], [0]),
            Targets.of([[400, 100, 500, 300], [500, 300, 520, 330]], [1, 0], Source.PSEUDO, [0.6, 0.0], [0.9, 0.0]),
        ]
    )


def record(cycle: int, classes: Sequence[str], ap: float) -> dict[str, Any]:
    """A record as :func:`rarebox.loop.record.record` makes it; the last class is the rarest."""
    falling = {name: 2 * (len(classes) - i) for i, name in enumerate(classes)}
    choosing = cycle > 1
    return {
        "cycle": cycle,
        "labels": 120 + 20 * (cycle - 1),
        "reviews": 120 + 33 * (cycle - 1),
        "labels_this_cycle": 20 if choosing else 120,
        "reviews_this_cycle": 33 if choosing else 120,
        "hits": sum(falling.values()) if choosing else 0,
        "images_full": 2,
        "images_partial": 4 * choosing,
        "ap50": ap,
        "ap50_11": ap + 0.011,
        "per_class_ap50": {name: ap - 0.1 * i / len(classes) for i, name in enumerate(classes)},
        "coco_ap": ap / 2,
        "coco_ap50": ap,
        "coco_ap75": ap / 3,
        "selected_per_class": {name: 2 * n * choosing for name, n in falling.items()},
        "hits_per_class": {name: n * choosing for name, n in falling.items()},
        "labels_per_class": falling,
        "human_per_class": {name: n * cycle for name, n in falling.items()},
        "pseudo_per_class": {name: n * choosing for name, n in falling.items()},
        "pseudo_boxes": 777 * choosing,
        "candidates_per_class": {name: 9 * n for name, n in falling.items()},
        "sure_per_class": {name: 11 * n * choosing for name, n in falling.items()},
        "uncertainty_would_select": {name: n * choosing for name, n in falling.items()},
        "class_frequency": {name: n / sum(falling.values()) * choosing for name, n in falling.items()},
        "imbalance_factor": 3.0,
        "notes": [f"something of note in cycle {cycle}"],
        "seconds": {"fit": 61.5, "evaluate": 4.25} | ({"score": 20.0, "ask": 0.5} if choosing else {}),
    }


class Page(HTMLParser):
    """A parsed page. It must be well formed: every element closed where it was opened, ids unique."""

    VOID = frozenset(["meta", "br", "img", "link", "input", "hr"])

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.source = file.read_text(encoding="utf-8")
        self.text, self.open = "", list[str]()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], f"left open: {self.open}"
        ids = self.all("id")
        assert len(ids) == len(set(ids)), "an id appears twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data

    def all(self, attribute: str, tag: str = "") -> list[str]:
        """Every value of an attribute, optionally of one kind of element only."""
        return [a[attribute] or "" for t, a in self.tags if attribute in a and tag in ("", t)]

    def boxes(self, kind: str) -> list[tuple[float, ...]]:
        """Where the boxes of one kind are drawn: x, y, width, height."""
        rects = [later for (tag, a), (_, later) in self._with_child("rect") if a.get("class") == f"box {kind}"]
        return [tuple(float(rect[name] or 0) for name in ("x", "y", "width", "height")) for rect in rects]

    def _with_child(self, tag: str) -> list[tuple[Any, Any]]:
        groups = [i for i, (name, _) in enumerate(self.tags) if name == "g"]
        return [
            (self.tags[i], next(t for t in self.tags[i + 1 :] if t[0] == tag))
            for i in groups
            if "class" in self.tags[i][1]
        ]


def report(tmp_path: Path, *runs: Path, draw: str = NOTHING, png: bool = False) -> Page:
    """The page of a report. Only figures whose names match ``draw`` are drawn, and PNG files are empty unless asked
    for: both take most of the time. Of a single run of which nothing is drawn, no figure of its cycles is made.
    """
    honest = Figure.savefig

    def savefig(self: Figure, file: Any, **named: Any) -> None:
        if png or named["format"] != "png":
            honest(self, file, **named)

    with tiny.figures_not_drawn(but=draw), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        if draw == NOTHING and len(runs) == 1:
            patch.setattr(figures, "of_run", lambda *_: tiny.NO_FIGURES)
        return Page(write_report(tmp_path / "out", runs))


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The folder with the report of a plain run of three cycles, and its page."""
    folder = tmp_path_factory.mktemp("standard")
    return folder, report(folder, make_run(folder / "run"), draw=EVERY, png=True)


def one_run(root: Path) -> ReportedRun:
    return read_runs([root])[0]


# ------------------------------------------------------------------------------------------- the page of one run


def test_the_page_is_self_contained(standard: tuple[Path, Page]) -> None:
    folder, page = standard
    assert not re.search(r"https?://|//[a-z]+\.", page.source)
    assert all(link.startswith("#") for name in ("href", "xlink:href") for link in page.all(name))
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.all("src"))
    assert "@import" not in page.source
    assert not re.search(r"url\((?!#)", page.source)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    assert str(folder) not in page.source


def test_seconds_are_those_of_the_record_or_an_estimate_that_says_so(
    standard: tuple[Path, Page], tmp_path: Path
) -> None:
    """Cycle 1: 2 images and 120 boxes: 2 x 7.8 + 120 x 7 = 855.6 s."""
    assert "≈ 856+856" in standard[1].text
    timed = make_run(tmp_path / "b")
    records = json.loads((timed / "metrics.json").read_text(encoding="utf-8"))
    for one in records:
        one |= {"seconds_spent": 1111.0 * one["cycle"], "seconds_spent_this_cycle": 1111.0}
        one |= {"actions_this_cycle": {"scan": 10, "draw": 50}}
    (timed / "metrics.json").write_text(json.dumps(records), encoding="utf-8")
    page = report(tmp_path, timed)
    assert "2\u202f222+1\u202f111" in page.text
    assert "≈ " not in page.text
    costs = ["--set", "cost.draw=10", "--set", "cost.scan=1"]
    with tiny.without_figures():
        assert CliRunner().invoke(app, ["report", str(timed), *costs]).exit_code == 0
    assert "1\u202f020+510" in Page(timed / "report.html").text  # 10 x 1 + 50 x 10 s in each cycle
    refused = CliRunner().invoke(app, ["report", str(timed), "--set", "seed=3"])
    assert "a report can only change the costs" in str(refused.exception)


def test_numbers_of_the_metrics_are_on_the_page(standard: tuple[Path, Page]) -> None:
    _, page = standard
    assert "With 160 labels after 3 cycles the detector reaches AP50\u00a00.43, up from 0.31." in page.text
    rows = re.sub(r"\s+", " ", page.text)
    for number in ("0.310", "0.380", "0.430", "0.441", "0.215", "777", "+33", "186", "torch", "9.9.9"):
        assert number in rows
    assert "something of note in cycle 2" in page.text


def test_same_run_same_bytes(standard: tuple[Path, Page], tmp_path: Path) -> None:
    folder, _ = standard
    write_report(tmp_path, [folder / "run"])
    for file in (tmp_path / "report.html", *(tmp_path / "figures").iterdir()):
        assert file.read_bytes() == (folder / "out" / file.relative_to(tmp_path)).read_bytes()


def test_figures_are_written_as_svg_and_png(standard: tuple[Path, Page]) -> None:
    folder = standard[0] / "out" / "figures"
    stems = ["ap50_labels", "ap50_reviews", "ap50_seconds", "ap_per_class", "asked", "class_frequency"]
    stems += ["fig1_a", "fig1_b", "fig1_d", "reviews_per_class", "time", "uncertainty_would_ask"]
    named = [f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")]
    assert sorted(p.name for p in folder.iterdir()) == sorted([*named, OWN_MARK])  # so no command takes it for photos
    for stem in stems:
        assert "<text" in (folder / f"{stem}.svg").read_text(encoding="utf-8")
        with Image.open(folder / f"{stem}.png") as image:
            assert image.width > 700


def test_every_figure_has_a_text_and_a_sentence(standard: tuple[Path, Page]) -> None:
    _, page = standard
    plots = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "plot"]
    assert len(plots) == 12
    assert all(a.get("role") == "img" and a.get("aria-label") for a in plots)
    assert all(page.all("alt", "img"))
    assert page.source.count("<figcaption>") == page.source.count("<figure")


def test_figures_follow_light_and_dark(standard: tuple[Path, Page]) -> None:
    _, page = standard
    body = page.source.partition("</style>")[2]
    assert "prefers-color-scheme: dark" in page.source
    assert "var(--ink)" in body
    assert not [colour for colour in drawing.LIGHT.values() if colour in body]
    assert set(drawing.LIGHT) == set(drawing.DARK)


@pytest.mark.parametrize("theme", [drawing.LIGHT, drawing.DARK])
def test_contrast(theme: dict[str, str]) -> None:
    def luminance(colour: str) -> float:
        part = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return float(
            np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    def contrast(name: str) -> float:
        high, low = sorted((luminance(theme[name]), luminance(theme["card"])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert min(contrast("ink"), contrast("muted")) >= 4.5
    assert min(contrast(f"c{i}") for i in range(8)) >= 3


def test_fig_1_names_its_imbalance_factors(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = json.loads((run / "metrics.json").read_text())
    records[1]["labels_per_class"] = {"cat": 20, "dog": 0, "yak": 8}
    write_json(run / "metrics.json", records)
    panels = {panel.name: panel for panel in figures.of_run(one_run(run))["balance"]}
    assert panels["fig1_a"].look_for.endswith("Imbalance factor 3.")
    assert panels["fig1_d"].look_for.endswith("Imbalance factor 2.5; 1 class has none.")
    assert panels["fig1_d"].alt == "(d) Labels from this run: yak 8; dog 0; cat 20"


def test_fig_1_counts_the_pool_and_takes_c_from_the_run_by_uncertainty(tmp_path: Path) -> None:
    plain = make_run(tmp_path / "U", settings={"selection.strategy": "uncertainty"})
    balanced, other = make_run(tmp_path / "CB"), make_run(tmp_path / "other", settings={"seed": 1})
    records = json.loads((plain / "metrics.json").read_text())
    records[1]["labels_per_class"] = {"cat": 19, "dog": 1, "yak": 0}
    write_json(plain / "metrics.json", records)
    alts = report(tmp_path, plain, balanced, other, draw="run[12]_fig1_c|run1_fig1_b", png=True).all("aria-label")
    assert "(b) Confident detections: yak 22; dog 44; cat 66" in alts
    assert "(c) Labels from uncertainty sampling: yak 0; dog 1; cat 19" in alts
    stems = {path.stem for path in (tmp_path / "out" / "figures").glob("run*_fig1_*.svg")}
    wanted = {1: "abc", 2: "abcd", 3: "abd"}  # no run by uncertainty starts like the third one
    assert stems == {f"run{run}_fig1_{panel}" for run, panels in wanted.items() for panel in panels}
    same = [(tmp_path / "out" / "figures" / f"run{run}_fig1_c.png").read_bytes() for run in (1, 2)]
    assert same[0] == same[1]


def test_a_record_without_pool_counts_has_no_fig_1_b(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = json.loads((run / "metrics.json").read_text())
    for told in records:
        del told["sure_per_class"]
    write_json(run / "metrics.json", records)
    names = [panel.name for panel in figures.of_run(one_run(run))["balance"]]
    assert names == ["fig1_a", "fig1_d", "class_frequency", "asked", "uncertainty_would_ask"]


def test_classes_go_from_rare_to_frequent_and_keep_their_colour(tmp_path: Path) -> None:
    run = one_run(make_run(tmp_path / "run"))
    assert run.rare_first == ["yak", "dog", "cat"]
    assert run.rarest == ["yak"]
    assert run.tail_ap(run.last) == pytest.approx(0.43 - 0.2 / 3)
    assert run.hit_rate == 0.5
    found = rows.rows_of(run)
    assert rows.colours(run, found) == [drawing.PALETTE[i] for i in (2, 1, 0)]


def test_eighty_classes_become_forty_rows(tmp_path: Path) -> None:
    names = [f"kind {i}" for i in range(80)]
    root = make_run(tmp_path / "run", classes=names)
    found = rows.rows_of(one_run(root))
    assert [row.label for row in found[:2]] == ["kind 79", "kind 78"]
    assert (len(found), found[20].label, found[-1].label) == (40, "mean of 41 others", "kind 0")
    assert sorted(name for row in found for name in row.members) == sorted(names)
    text = report(tmp_path, root, draw="^ap_per_class$|^asked$").text
    assert all(f"{name}\n" in text for name in names)  # the table lists all of them


# ------------------------------------------------------------------------------------------- the gallery


def test_boxes_are_drawn_where_they_are_in_the_image(standard: tuple[Path, Page]) -> None:
    _, page = standard
    assert page.boxes("hit") == [(50, 100, 100, 101.5)] * 4  # asked as 100, 200, 300, 403, shown at half the size
    assert page.boxes("miss") == [(300, 50, 50, 31.5)] * 4
    assert page.boxes("pseudo") == [(200, 50, 50, 100)] * 4  # the one of weight 0 does not train
    assert page.boxes("human") == [(51, 101, 98, 100)] * 4
    assert page.all("viewbox", "svg").count("0 0 480 320") == 4
    assert "queried; predicted cat; it is dog; score 0.43; uncertainty 0.77" in page.text
    assert "queried; predicted cat; no object; score 0.43" in page.text
    assert "pseudo label dog; class weight 0.60, box weight 0.90" in page.text
    assert "labelled earlier: dog" in page.text


def test_embedded_images_are_the_images(tmp_path: Path) -> None:
    run = one_run(make_run(tmp_path / "run"))
    shot = gallery.of_run(run).shots[0]
    assert (shot.width, shot.height, shot.problem) == (480, 320, "")
    assert shot.caption == "2 queried boxes, found 1 dog · 1 pseudo box · 1 labelled earlier"


def test_tall_images_keep_their_shape(tmp_path: Path) -> None:
    Image.new("RGB", (600, 1600)).save(tmp_path / "tall.png")
    record = ImageRecord(1, str(tmp_path / "tall.png"), 600, 1600)
    asked = (Query(1, np.array([0, 800, 600, 1600]), 0), said(0))
    shot = gallery._shot(record, [asked], None, None, lambda label: CLASSES[label or 0], {})
    assert (shot.width, shot.height) == (240, 640)
    assert (shot.boxes[0].y, shot.boxes[0].width, shot.boxes[0].height) == (320, 240, 320)
    data = base64.b64decode(shot.source.partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (240, 640)


def test_scores_come_from_the_candidates(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    columns = {"image_id": np.array([3]), "boxes": np.array([[400, 100, 500, 300]], np.float32), "scores": [0.5217]}
    parquet.write(
        run / "cycle_03" / "candidates" / "shard_00000.parquet", {k: np.asarray(v) for k, v in columns.items()}
    )
    tooltips = [box.tooltip for shot in gallery.of_run(one_run(run)).shots for box in shot.boxes]
    assert tooltips.count("pseudo label dog; score 0.52, class weight 0.60, box weight 0.90") == 1


def test_labels_keep_clear_of_each_other() -> None:
    row = [shots.Box("miss", 100 + 9 * i, 50, 60, 60, "yak?", "") for i in range(8)]
    placed = shots.with_labels([*row, shots.Box("hit", 470, 2, 10, 10, "yak", "")], 480, 320)
    spots = [(b.text_x, b.text_y) for b in placed if b.label]
    assert spots[-1] == (480 - 3 * 8.2, 25)  # no room above or to the right
    assert 3 <= len(spots) < 9
    assert all(abs(x - u) >= 3 * 8.2 or abs(y - v) >= 14 for i, (x, y) in enumerate(spots) for u, v in spots[:i])


def test_images_with_new_classes_come_first() -> None:
    def asked(image_id: int, guess: int, *found: int) -> tuple[Query, Answer]:
        box = [0, 0, 9, 9]
        return Query(image_id, np.array(box), guess), said(0, box, *found) if found else said(0)

    by_image = {
        5: [asked(5, 0, 0)],
        6: [asked(6, 0, 0), asked(6, 1, 1)],
        7: [asked(7, 2)],
        8: [asked(8, 1, 2)],
        9: [asked(9, 0, 1)],
    }
    assert gallery.choose(by_image, 3) == [6, 8, 5]
    assert gallery.choose(by_image, 9) == [6, 8, 5, 9, 7]


def test_missing_images_are_named_in_place(marred: Page) -> None:
    assert marred.text.count("This image cannot be shown: there is no such file.") == 4
    assert marred.boxes("hit")


def test_a_run_without_its_label_store_still_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "labels.sqlite").unlink()
    assert "The gallery cannot be made" in report(tmp_path, run).text


# ------------------------------------------------------------------------------------------- incomplete runs


def test_a_run_with_one_cycle(tmp_path: Path) -> None:
    page = report(tmp_path, make_run(tmp_path / "run", cycles=1), draw=EVERY)
    assert "With the 120 initial labels the detector reaches AP50\u00a00.31." in page.text
    assert "No box has been queried yet" in page.text
    assert "2 cycles remain" in page.text


@pytest.fixture(scope="module")
def marred(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that declined, with a setting of its own, problems in its data, and without its photos."""
    folder = tmp_path_factory.mktemp("marred")
    run = make_run(folder / "run", ap=(0.31, 0.28, 0.25), settings={"selection.sigma": 2.5})
    clipped = [{"kind": "box clipped", "where": f"train.json entry {i}", "what": "was cut"} for i in range(7)]
    missing = {"kind": "missing image file", "where": "a.jpg", "what": "the image is left out"}
    write_json(run / "problems.json", [missing, *clipped])
    shutil.rmtree(folder / "run_images")
    return report(folder, run)


def test_a_run_that_declined_says_so(marred: Page) -> None:
    page = marred
    assert "AP50\u00a00.25, down from 0.31." in page.text
    assert "fell from" in page.text
    assert "−0.06 since cycle 1" in page.text


def test_what_is_not_known_is_a_dash(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    records = json.loads((run / "metrics.json").read_text())
    for each in records:
        each |= {"ap50": None, "coco_ap": None, "imbalance_factor": None}
        each["per_class_ap50"] = dict.fromkeys(CLASSES)
    write_json(run / "metrics.json", records)
    page = report(tmp_path, run, draw=EVERY)
    assert "reaches AP50\u00a0–, which cannot be compared with cycle 1" in page.text
    assert not re.search(r"\b(nan|None)\b", page.source)


def test_names_cannot_become_markup(tmp_path: Path) -> None:
    odd = ("<script>alert(1)</script>", 'a "quoted" & $x_1$ \n name', "日本語 \\frac{")
    page = report(tmp_path, make_run(tmp_path / "run", classes=odd), draw=EVERY, png=True)
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "日本語" in page.text


def test_problems_in_the_data_are_counted(marred: Page) -> None:
    text = re.sub(r"\s+", " ", marred.text)
    assert "box clipped7 in all" in text
    assert "train.json entry 4" in text
    assert "train.json entry 5" not in text
    assert "and 2 more" in text
    assert text.index("box clipped") < text.index("missing image file")


def test_settings_other_than_the_defaults_come_first(marred: Page) -> None:
    changed, _, others = marred.text.partition("All others, at their defaults")
    assert "selection.sigma" in changed
    assert "2.5" in changed
    assert "selection.strategy" in others
    assert "selection.strategy" not in changed


# ------------------------------------------------------------------------------------------- several runs


def test_runs_side_by_side_are_named_by_their_differences(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a"),
        make_run(
            tmp_path / "b", ap=(0.31, 0.33, 0.35), settings={"selection.strategy": "random", "pseudo.method": "none"}
        ),
    ]
    page = report(tmp_path, *runs, draw="^compare_(ap50_labels|tail_reviews|ap_per_class)$")
    assert [run.name for run in read_runs(runs)] == [
        "class_balanced, ignore_only pseudo labels",
        "random, no pseudo labels",
    ]
    assert "“class_balanced, ignore_only pseudo labels” is ahead: AP50\u00a00.43 with 160 labels" in page.text
    names = {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert {
        "compare_ap50_labels",
        "compare_tail_reviews",
        "compare_ap_per_class",
        "run1_fig1_a",
        "run2_fig1_d",
    } <= names
    curve = (tmp_path / "out" / "figures" / "compare_ap50_labels.svg").read_text(encoding="utf-8")
    assert "random, no pseudo labels" in curve


def test_a_run_that_is_not_quite_compas_is_named_so(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, settings={"selection.strategy": name}) for name in ("compas", "random")]
    assert [run.name for run in read_runs(runs)] == ["compas-like", "random"]


def test_runs_are_compared_after_their_last_common_cycle(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", cycles=2, ap=(0.31, 0.41), settings={"seed": 1})]
    seen = read_runs(runs)
    ahead = "After 2 cycles “seed 1” is ahead: AP50\u00a00.41 with 140 labels; “seed 0” has 0.38."
    assert wording.comparison(seen) == ahead
    assert wording.comparison_findings(seen)[-1] == "1 run is not finished yet."


def test_equal_runs_are_level(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / "a"), make_run(tmp_path / "b")])
    assert wording.comparison(runs) == "After 3 cycles the best of the 2 runs are level, at AP50\u00a00.43."
    assert [run.name for run in runs] == ["a", "b"]


def test_runs_with_other_classes_are_not_compared_class_by_class(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", classes=("ant", "bee"), settings={"data": "insects"})]
    page = report(tmp_path, *runs)
    assert "must not be compared" in page.text
    assert not (tmp_path / "out" / "figures" / "compare_ap_per_class.svg").exists()


# ------------------------------------------------------------------------------------------- errors


def test_no_finished_cycle(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cycles=1)
    (run / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"no finished cycle yet.*repeat the command"):
        write_report(tmp_path / "out", [run])
    assert not (tmp_path / "out").exists()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path / "out", [tmp_path])
    with pytest.raises(UserError, match="Name the folder"):
        write_report(tmp_path / "out", [])


def test_no_place_for_the_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cycles=1)
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match=r"cannot be written to .*file: "):
        write_report(tmp_path / "file", [run])


def test_broken_metrics(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cycles=1)
    write_text(run / "metrics.json", "[{")
    with pytest.raises(UserError, match=r"metrics\.json is damaged"):
        write_report(tmp_path / "out", [run])


# ------------------------------------------------------------------------------------------- wording


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (wording.number(0.4271), "0.43"),
        (wording.number(None), "–"),
        (wording.share(float("nan")), "–"),
        (wording.share(0.4271), "43\u00a0%"),
        (wording.factor(31.0), "31"),
        (wording.count(12000), "12\u202f000"),
        (wording.duration(54.2), "54 s"),
        (wording.duration(12 * 60), "12 min"),
        (wording.duration(4800), "1 h 20 min"),
        (wording.change(0.43, 0.31), "+0.12"),
        (wording.change(0.434, 0.431), "±0.00"),
        (wording.change(0.28, 0.31), "−0.03"),
        (wording.plural(1, "box"), "1 box"),
        (wording.plural(2, "class"), "2 classes"),
        (wording.listed(["a"]), "a"),
        (wording.listed(["a", "b", "c"]), "a, b and c"),
        (wording.listed(list("abcdef")), "a, b, c, d and 2 more"),
    ],
)
def test_wording(said: str, expected: str) -> None:
    assert said == expected


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (["a"], "a cycle's record is an object"),
        ([{"cycle": 1}], "labels: Field required"),
        ([{"cycle": 1, "labels": -3, "reviews": 1, "ap50": 0.1}], "labels: Input should be greater"),
        ([{"cycle": 1, "labels": 1, "reviews": 1, "ap50": "x"}], "ap50: Input should be a valid number"),
        ([{"cycle": 1, "labels": 1, "reviews": 1, "ap50": 0.1}], "it lacks .*hits_per_class"),
    ],
)
def test_a_damaged_record_is_named(written: list[Any], reason: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cycles=1)
    write_json(run / "metrics.json", written)
    with pytest.raises(UserError, match=rf"metrics\.json is damaged \({reason}"):
        read_runs([run])
