"""Grids: the grammar of a file, and that every run is done exactly once, despite other processes and interruptions."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rarebox.cli import main
from rarebox.config import Settings
from rarebox.core.files import write_json
from rarebox.detectors import TorchDetector
from rarebox.errors import Busy, UserError
from rarebox.grid import runner, spec
from rarebox.grid.results import read
from rarebox.grid.runner import Bench
from rarebox.grid.spec import Planned
from rarebox.loop import scoring, simulate
from rarebox.loop.metrics import CycleRecord
from rarebox.loop.run_folder import RunFolder
from tests import forked
from tests.tiny import CHANGES, make_data

pytestmark = pytest.mark.usefixtures("small_network")

AXES = ("budget", "pseudo.method", "detector.name")
COMMON = {name: value for name, value in CHANGES.items() if name not in AXES}
METHODS = {
    "U": {"selection.strategy": "uncertainty", "pseudo": {"method": "none"}},
    "R": {"selection.strategy": "random", "pseudo.method": "none"},
}
Event = dict[str, Any]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture
def grid(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a grid file; ``key=None`` leaves a key out."""

    def write(**changes: Any) -> Path:
        keys = {
            "settings": COMMON,
            "data": ["scenes"],
            "detector": ["retinanet"],
            "methods": METHODS,
            "budgets": [[6]],
            "seeds": 1,
            **changes,
        }
        file = tmp_path / "grid.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in keys.items() if v is not None}, sort_keys=False))
        return file

    return write


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A list that grows by one whenever a detector is trained."""
    calls: list[int] = []
    honest = TorchDetector.fit

    def counted(self: TorchDetector, *args: Any, **kwargs: Any) -> None:
        calls.append(1)
        honest(self, *args, **kwargs)

    monkeypatch.setattr(TorchDetector, "fit", counted)
    return calls


def work(file: Path, out: Path, **options: Any) -> tuple[list[Planned], list[Event]]:
    """Execute a grid. Return the failed runs and the events."""
    runs, told = spec.read(file), []
    wanted = spec.choose(runs, options.pop("only", ()))
    return Bench(out, runs, wanted, tell=told.append, **options).work(file), told


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def metrics_written(out: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for file in out.rglob("metrics.json")}


# ------------------------------------------------------------------------------------------- what a file means


def test_the_product_in_order_with_shared_first_cycles(grid) -> None:
    runs = spec.read(grid(data=["scenes", "voc2007"], seeds=[0, 3], budgets=[[6], [9, 9]], full=1))
    assert [r.name for r in runs[:4]] == [
        "scenes/retinanet/full/seed_0",
        "voc2007/retinanet/full/seed_0",
        "scenes/retinanet/U/budget_6/seed_0",
        "scenes/retinanet/U/budget_9-9/seed_0",
    ]
    assert len(runs) == len({r.folder for r in runs}) == 2 + 2 * 2 * 2 * 2
    assert [r.settings.seed for r in runs] == [0] * 10 + [3] * 8
    one = runs[3]
    assert one.about == {
        "run": "runs/scenes/retinanet/U/budget_9-9/seed_0",
        "data": "scenes",
        "detector": "retinanet",
        "method": "U",
        "seed": 0,
        "budget": [9, 9],
    }
    assert one.settings.selection.strategy == "uncertainty"
    assert one.settings.training.steps == COMMON["training.steps"]
    assert runs[0].share is None
    assert runs[0].settings.budget == ()
    shares = {r.share.folder: r.share for r in runs if r.share}
    assert len(shares) == 4  # data × seeds
    assert all(share.settings.budget == () for share in shares.values())
    assert spec.with_shares(runs[2:4]) == [one.share, runs[2], one]


def test_what_cycle_1_depends_on_makes_another_first_run(grid) -> None:
    methods = {
        "a": {},
        "b": {"selection.sigma": 3, "pseudo.class_high": 0.9},
        "c": {"training.steps": 7},
        "d": {"pseudo.difficult": "background"},
        "e": {"initial_images": 5},
    }
    a, b, c, d, e = (r.share.folder for r in spec.read(grid(methods=methods)) if r.share)
    assert a == b
    assert len({a, c, d, e}) == 4


def test_lists_mappings_and_products(grid) -> None:
    runs = spec.read(
        grid(
            methods=None,
            budgets=None,
            seeds=None,
            preset="paper",
            strategy=["random", "uncertainty"],
            pseudo=["none", "hard"],
            data={"few": {"data": "scenes", "budget": [3], "initial_images": 2}},
            detector={"R": {}, "F": {"detector": {"name": "faster_rcnn"}}},
            settings={"training": {"steps": 3}, "detector.image_size": 64},
        )
    )
    assert [r.name for r in runs][:5] == [
        "few/R/random+none/seed_0",
        "few/R/random+hard/seed_0",
        "few/R/uncertainty+none/seed_0",
        "few/R/uncertainty+hard/seed_0",
        "few/F/random+none/seed_0",
    ]
    assert runs[4].settings.training.lr == 5e-3  # the preset's, which depends on the detector
    assert runs[4].settings.budget == (3,)
    assert runs[4].settings.pseudo.method == "none"


def test_a_small_grid_is_a_run_of_the_defaults(grid) -> None:
    (run,) = spec.read(grid(settings=None, data=None, detector=None, methods=None, budgets=None, seeds=None))
    assert run.name == "scenes/faster_rcnn/class_balanced+ignore_only/seed_0"


def test_data_may_be_elsewhere(grid) -> None:
    file = grid(data={"own": {"initial_images": 3}, "other": {"data": "photos/other"}})
    with pytest.raises(UserError, match=r"data\.own: its folder is missing.*--data own=FOLDER"):
        spec.read(file)
    runs = spec.read(file, {"own": "/photos/own"})
    assert [r.settings.data for r in runs] == ["/photos/own", "/photos/own", "photos/other", "photos/other"]
    with pytest.raises(UserError, match=r"grid\.yaml: unknown data set of the grid 'oher'; did you mean 'other'"):
        spec.read(file, {"own": "x", "oher": "x"})


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"sedes": 3}, r"unknown key 'sedes'; did you mean 'seeds'"),
        ({"preset": "labtop"}, r"unknown preset 'labtop'; did you mean 'laptop'"),
        ({"settings": {"training.stepz": 3}}, r"settings: unknown setting 'training\.stepz'.*'training\.steps'"),
        ({"methods": {"U": {"pseudo": {"methd": 1}}}}, r"methods\.U: unknown setting 'pseudo\.methd'.*pseudo\.method"),
        ({"methods": {"U": {"selection.strategy": "uncertanty"}}}, r"/U: unknown strategy 'uncertanty'.*'uncertainty'"),
        ({"methods": {"U": {"scoring.views": ["flup"]}}}, r"/U: .*flup"),
        ({"methods": {"U": {"training.lr": -1}}}, r"/U: setting training\.lr: .*got -1"),
        ({"methods": {"U": 3}}, r"methods\.U must hold settings and values, got 3"),
        ({"methods": ["U"]}, r"methods must be names with changes of settings; got \['U'\]"),
        ({"methods": {}}, "methods is empty"),
        ({"methods": {"U": {}, "u": {}}}, "'U' and 'u' are the same name"),
        ({"methods": {"a/b": {}}}, "'a/b' cannot name a folder"),
        ({"methods": {"..": {}}}, "cannot name a folder"),
        ({"methods": {"full": {}}}, "'full' is reserved for training on all labels"),
        ({"methods": {False: {}}}, "the name False is not text. Put it in quotes"),
        ({"pseudo": ["hard"]}, "give either methods, or strategy and pseudo"),
        ({"data": ["a/x", "b/x"]}, "data: 'x' and 'x' are the same name"),
        ({"data": "scenes"}, "data must be .* a list; got 'scenes'"),
        ({"detector": ["retinnet"]}, r"unknown detector\.name 'retinnet'; did you mean 'retinanet'"),
        ({"detector": []}, "detector is empty"),
        ({"budgets": [6, 6]}, r"budgets must be a list of budgets, such as \[\[60, 120\]\]"),
        ({"budgets": [[6], [6]]}, "budgets: '6' and '6' are the same name"),
        ({"budgets": [[-6]]}, "budgets: must be a whole number, 0 or more; got -6"),
        ({"settings": {"budget": [3]}}, "budget is set by both budgets and settings. Omit one of them"),
        ({"methods": {"U": {"seed": 3}}}, r"seed is set by both seeds and methods\.U"),
        ({"seeds": 0}, "seeds is empty"),
        ({"seeds": [1, 1]}, "seeds: '1' and '1' are the same"),
        ({"seeds": "five"}, "seeds: must be a whole number, 0 or more; got 'five'"),
        ({"full": 2}, "full is 2, but there are only 1 seeds"),
    ],
)
def test_mistakes_in_the_file_are_named(grid, changes: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)grid\.yaml: .*{wanted}"):
        spec.read(grid(**changes))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("seeds: 1\nseeds: 2", "the key 'seeds' occurs more than once"),
        ("methods:\n  U: {}\n  U: {}", "the key 'U' occurs more than once"),
        ("seeds: [", "not valid YAML"),
        ("- seeds", "a grid is a mapping"),
    ],
)
def test_mistakes_of_yaml(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "g.yaml").write_text(text)
    with pytest.raises(UserError, match=rf"g\.yaml: .*{wanted}"):
        spec.read(tmp_path / "g.yaml")
    with pytest.raises(UserError, match=r"none\.yaml: the file does not exist"):
        spec.read(tmp_path / "none.yaml")


def test_only_takes_texts_and_patterns(grid) -> None:
    runs = spec.read(grid(seeds=11))
    assert len(spec.choose(runs, [])) == 22
    assert [r.name for r in spec.choose(runs, ["*/seed_1"])] == [f"scenes/retinanet/{m}/seed_1" for m in "UR"]
    assert len(spec.choose(runs, ["/U/seed_1", "/R/seed_3"])) == 3  # 1, 10, 3
    with pytest.raises(UserError, match=r"--only nobody: no name of the 22 runs contains this\. The first is scenes/"):
        spec.choose(runs, ["/U/", "nobody"])


# ------------------------------------------------------------------------------------------- the work


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int, list[Event]]:
    """A finished grid: its file, its folder, the number of trainings, and the events."""
    folder = tmp_path_factory.mktemp("grid")
    keys = {
        "settings": COMMON,
        "data": [str(pictures)],
        "detector": ["retinanet"],
        "methods": METHODS,
        "budgets": [[6]],
        "seeds": 1,
        "full": 1,
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(keys))
    calls: list[int] = []
    honest = TorchDetector.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchDetector, "fit", lambda *args, **named: (calls.append(1), honest(*args, **named))[1])
        failed, told = work(folder / "grid.yaml", folder / "out")
    assert failed == []
    return folder / "grid.yaml", folder / "out", len(calls), told


def test_every_run_has_its_line(finished, pictures: Path) -> None:
    file, out, _, _ = finished
    found = lines(out)
    assert [line["run"] for line in found] == [run.folder for run in spec.read(file)]
    assert [(line["data"], line["method"], line["status"], line["reason"]) for line in found] == [
        ("tiny", method, "done", None) for method in ("full", "R", "U")
    ]
    assert [len(line["cycles"]) for line in found] == [1, 2, 2]
    assert found[1]["cycles"] == RunFolder(out / found[1]["run"]).records()
    assert found[0]["cycles"][0]["images_full"] == 14
    wanted = {"selection.strategy": "uncertainty", "pseudo.method": "none", "training.steps": 6, "budget": [6]}
    assert wanted.items() <= found[2]["settings"].items()
    assert str(pictures) not in json.dumps(found[2]["settings"])
    assert found[2]["seconds"] == pytest.approx(sum(s for c in found[2]["cycles"] for s in c["seconds"].values()))
    assert (out / "grid.yaml").read_text() == file.read_text()
    (group,) = read([out])
    assert [*group.methods] == ["R", "U"]
    assert len(group.full) == 1


def test_a_seeds_first_cycle_is_trained_once(finished) -> None:
    _, out, fits, _ = finished
    assert fits == 1 + 1 + 2  # the ceiling, the shared first cycle, cycle 2 of both methods
    one, other = (line["cycles"][0] for line in lines(out)[1:])
    assert one["ap50"] == other["ap50"] == RunFolder(next((out / "first").iterdir())).records()[0]["ap50"]
    assert one["labels"] == other["labels"]
    assert "fit" not in one["seconds"]


def test_big_files_are_removed_and_the_shared_model_is_kept(finished) -> None:
    _, out, _, _ = finished
    assert list((out / "runs").rglob("*.safetensors")) == []
    assert len(list((out / "first").rglob("*.safetensors"))) == 1
    one = out / "runs/tiny/retinanet/U/seed_0"
    kept = {file.relative_to(one).as_posix() for file in one.rglob("*")}
    assert {"cycle_02/targets.parquet", "labels.sqlite", "settings.yaml", "environment.json"} <= kept
    assert any(name.startswith("cycle_02/candidates/") for name in kept)


def test_the_reported_events(finished) -> None:
    _, out, _, told = finished
    assert told[0] == {"event": "accepted", "run": None, "finished": 0, "of": 3, "left": None}
    told = told[1:]
    assert [e["event"] for e in told if e["run"].startswith("first/")] == ["begin", "cycle", "done"]
    ended = [e for e in told if e["event"] == "done" and e["run"].startswith("runs/")]
    assert [(e["finished"], e["of"]) for e in ended] == [(1, 3), (2, 3), (3, 3)]
    assert told[0]["left"] is None
    assert ended[0]["left"] > 0
    assert ended[2]["left"] == 0
    assert ended[2]["ap50"] == [cycle["ap50"] for cycle in lines(out)[2]["cycles"]]


def test_a_finished_grid_is_not_changed(finished, fits: list[int]) -> None:
    file, out, _, _ = finished
    before, results = metrics_written(out), (out / "results.jsonl").read_bytes()
    (out / "results.jsonl").unlink()
    assert work(file, out) == ([], [])
    assert fits == []
    assert metrics_written(out) == before
    assert (out / "results.jsonl").read_bytes() == results


def test_a_grid_may_grow_and_shrink_but_its_runs_do_not_change(finished, grid, tmp_path, pictures: Path) -> None:
    out = Path(shutil.copytree(finished[1], tmp_path / "out"))
    first = next((out / "first").iterdir())
    grown = grid(data=[str(pictures)], methods={**METHODS, "H": {"pseudo.method": "hard"}})
    runs = spec.read(grown)
    assert {r.share.folder for r in runs if r.share} == {f"first/{first.name}"}
    failed, told = work(grown, out, only=["/U/"])
    assert failed == []
    assert told == [{"event": "dropped", "runs": ["runs/tiny/retinanet/full/seed_0"]}]
    assert len(lines(out)) == 2
    other = grid(data=[str(pictures)], settings={**COMMON, "pseudo.class_high": 0.9})
    with pytest.raises(UserError, match=r"U/seed_0 holds a run with other settings.*\n  pseudo.class_high: 0.8 -> 0.9"):
        work(other, out)
    assert yaml.safe_load((out / "grid.yaml").read_text())["methods"].keys() == {"U", "R", "H"}


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs finish at once with invented numbers; each appends its name here."""
    done: list[str] = []

    def run(folder: Path, settings: Settings, *_: Any, **named: Any) -> list[CycleRecord]:
        place = RunFolder(folder)
        with place.locked():
            if place.records():  # another one was faster; it wrote no store, which `claim` would miss
                return place.records()
            place.claim(settings)
            time.sleep(0.02)
            cycles = range(1, len(settings.budget) + 2)
            paid = [
                {"cycle": c, "labels": 6 * c, "reviews": 6 * c, "ap50": 0.5, "seconds": {"fit": 1.0}} for c in cycles
            ]
            write_json(place.metrics, paid)
            done.append(folder.as_posix().split("/tiny")[1])
        return place.records()

    monkeypatch.setattr(simulate, "simulate", run)
    return done


@pytest.mark.parametrize("damage", ['{"run"', "[1]", "{}", '"x"'])
def test_damaged_results_are_rebuilt(grid, pictures: Path, tmp_path: Path, pretended: list[str], damage: str) -> None:
    file, out = grid(data=[str(pictures)]), tmp_path / "out"
    work(file, out)
    good = (out / "results.jsonl").read_text()
    (out / "results.jsonl").write_text(good + damage + "\n")
    assert work(file, out)[0] == []
    assert (out / "results.jsonl").read_text() == good


def test_models_left_by_a_kill_are_removed_later(grid, pictures: Path, tmp_path: Path, pretended: list[str]) -> None:
    file, out = grid(data=[str(pictures)]), tmp_path / "out"
    work(file, out)
    left = out / "runs/tiny/retinanet/U/seed_0/cycle_01/model.safetensors"
    left.parent.mkdir(exist_ok=True)
    left.write_text("large")
    runs = spec.read(file)
    Bench(out, runs, runs, keep_models=True).work(file)
    assert left.exists()
    work(file, out)
    assert not left.exists()


def test_a_finished_grid_accepts_moved_data(grid, pictures: Path, tmp_path: Path, pretended: list[str]) -> None:
    shutil.copytree(pictures, tmp_path / "moved" / "tiny")
    out = tmp_path / "out"
    work(grid(data={"tiny": {"data": str(pictures)}}), out)
    before = len(pretended)
    assert work(grid(data={"tiny": {"data": str(tmp_path / "moved/tiny")}}), out)[0] == []
    assert len(pretended) == before


def test_a_failed_run_is_recorded_and_tried_again(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: list[str]
) -> None:
    file, out = grid(data=[str(pictures)], seeds=2), tmp_path / "out"
    honest = simulate.simulate

    def sick(folder: Path, *args: Any, **named: Any) -> Any:
        if folder.as_posix().endswith("/U/seed_0"):
            raise RuntimeError("the cable was pulled")
        return honest(folder, *args, **named)

    monkeypatch.setattr(simulate, "simulate", sick)
    failed, told = work(file, out)
    assert [r.name for r in failed] == ["tiny/retinanet/U/seed_0"]
    assert [e["event"] for e in told if str(e["run"]).endswith("/U/seed_0")] == ["begin", "failed"]
    found = lines(out)
    assert [line["status"] for line in found] == ["failed", "done", "done", "done"]
    assert found[0]["reason"] == "RuntimeError: the cable was pulled"
    assert "in sick" in json.loads((out / found[0]["run"] / "failed.json").read_text())["traceback"]
    pretended.clear()
    monkeypatch.setattr(simulate, "simulate", honest)
    assert work(file, out)[0] == []
    assert pretended == ["/retinanet/U/seed_0"]
    assert [(line["status"], line["reason"]) for line in lines(out)] == [("done", None)] * 4
    assert not list(out.rglob("failed.json"))


def test_a_stop_by_the_keyboard_is_no_failure(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(simulate, "simulate", stop)
    with pytest.raises(KeyboardInterrupt):
        work(grid(data=[str(pictures)]), tmp_path / "out")
    assert lines(tmp_path / "out") == []
    assert not list(tmp_path.rglob("failed.json"))


def test_a_first_cycle_that_fails_is_tried_once(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def sick(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise UserError("no luck")

    monkeypatch.setattr(TorchDetector, "fit", sick)
    failed, _ = work(grid(data=[str(pictures)]), tmp_path / "out")
    assert len(failed) == 2
    assert len(calls) == 1
    assert {line["reason"] for line in lines(tmp_path / "out")} == {"its shared first cycle failed: no luck"}


def test_missing_data_and_a_foreign_folder_stop_before_anything(grid, tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(UserError, match=r"data set photos: no/photos does not exist .*\n.* --data photos="):
        work(grid(data=["no/photos"]), tmp_path / "out")
    methods = {"a": {"data": f"{tmp_path}/gone"}, "b": {"data": "scenes"}}  # two with one name
    with pytest.raises(UserError, match="/gone does not exist"):
        work(grid(data=None, methods=methods), tmp_path / "out")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match=r"data set nothing: .* is empty"):
        work(grid(data=[str(tmp_path / "nothing")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty and holds no grid"):
        work(grid(data=[str(pictures)]), tmp_path / "out")


def test_a_run_of_another_process_is_waited_for(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: list[str]
) -> None:
    """Another process holds a run and another seed's first cycle, and releases them only when the rest is done."""
    file, out = grid(data=[str(pictures)], seeds=2), tmp_path / "out"
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.01)
    runs = spec.read(file)
    assert runs[2].share
    theirs = [RunFolder(out / run.folder) for run in (runs[0], runs[2].share)]
    for place in theirs:
        place.root.mkdir(parents=True)
    (out / "grid.yaml").touch()
    told: list[Event] = []
    ours = threading.Thread(target=Bench(out, runs, runs, tell=told.append).work, args=[file])
    with theirs[0].locked(), theirs[1].locked():
        with pytest.raises(Busy), theirs[0].locked():
            pass
        ours.start()
        while not any(e["event"] == "waiting" for e in told) and ours.is_alive():
            time.sleep(0.01)
        time.sleep(0.1)
        assert [name.split("seed_")[1] for name in pretended] == ["0", "0"]
        assert pretended[1] == "/retinanet/R/seed_0"
    ours.join(60)
    assert [e["runs"] for e in told if e["event"] == "waiting"] == [
        [runs[0].folder, runs[2].share.folder, runs[2].folder, runs[3].folder]
    ]
    assert len(pretended) == len(set(pretended)) == 6
    assert len(lines(out)) == 4


def test_a_run_that_has_since_failed_in_another_process_is_skipped(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretended: list[str]
) -> None:
    file, out = grid(data=[str(pictures)]), tmp_path / "out"
    other = RunFolder(out / spec.read(file)[1].folder)
    honest = simulate.simulate

    def run(folder: Path, *args: Any, **named: Any) -> Any:
        other.root.mkdir(parents=True, exist_ok=True)
        write_json(other.failed, {"reason": "over there", "traceback": ""})
        return honest(folder, *args, **named)

    monkeypatch.setattr(simulate, "simulate", run)
    failed, _ = work(file, out)
    assert [run.method for run in failed] == ["R"]
    assert len(pretended) == 2


def events(child: BaseProcess, said: Path) -> Iterator[Event]:
    """The events of a process, as they arrive, until it ends."""
    alive, done = True, 0
    while alive:
        alive = child.is_alive()
        told = said.read_text().splitlines(keepends=True) if said.exists() else []
        whole = [line for line in told if line.endswith("\n")]
        yield from map(json.loads, whole[done:])
        done = len(whole)
        time.sleep(0.01)


def cycles(told: Iterable[Event]) -> list[tuple[str, int]]:
    return [(e["run"], e["cycle"]) for e in told if e["event"] == "cycle"]


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_its_run_to_the_other(
    grid, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process, killed in the middle of its second run, while this one works on the third."""
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.1)
    methods = {**METHODS, "H": {"pseudo.method": "hard"}}
    file, out = grid(data=[str(pictures)], methods=methods, settings={**COMMON, "training.steps": 3}), tmp_path / "out"
    runs = spec.read(file)
    first, second, third = (run.folder for run in runs)
    ours: list[Event] = []
    child = forked.start_command(["bench", file, out, "--json"], tmp_path / "said")

    def tell(event: Event) -> None:
        ours.append(event)
        if event["event"] == "cycle":
            child.kill()

    told = events(child, tmp_path / "said")
    theirs = [next(e for e in told if e["event"] == "cycle" and e["run"] == second)]
    before = {file: when for file, when in metrics_written(out).items() if second not in file.as_posix()}
    assert [line["run"] for line in lines(out)] == [first]
    assert Bench(out, runs, runs, tell=tell).work(file) == []
    theirs += told
    assert child.exitcode == -signal.SIGKILL
    assert cycles(theirs)[0] == (second, 1)
    assert cycles(ours)[:2] == [(third, 1), (third, 2)]
    both = cycles(ours)[2:] + cycles(theirs)  # its last step may not have been reported
    assert both in (
        [(second, 2), (second, 1)],
        [(second, 1), (second, 2)],
        [(second, 1)],
    )
    assert before.items() <= metrics_written(out).items()
    assert [line["status"] for line in lines(out)] == ["done"] * 3
    assert len({line["cycles"][0]["ap50"] for line in lines(out)}) == 1


def test_a_folder_that_becomes_a_run_during_the_check_is_not_foreign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = RunFolder(tmp_path / "run")

    def looked(self: RunFolder) -> bool:
        self.claim(Settings())  # the other process claims the folder between the check and the use
        return any(self.root.iterdir())

    monkeypatch.setattr(RunFolder, "_holds_something_else", looked)
    with place.locked():
        pass


def test_many_at_once_do_each_run_once(grid, pictures: Path, tmp_path: Path, pretended: list[str]) -> None:
    """Locks hold between threads as they do between processes."""
    file, out = grid(data=[str(pictures)], seeds=6), tmp_path / "out"
    runs = spec.read(file)
    several = [threading.Thread(target=Bench(out, runs, runs).work, args=[file]) for _ in range(4)]
    for one in several:
        one.start()
    for one in several:
        one.join(120)
    assert [run.folder for run in runs if Bench(out, runs, runs).state(run) != "done"] == []
    assert len(pretended) == len(set(pretended)) == 18
    assert [line["run"] for line in lines(out)] == [run.folder for run in runs]


def test_a_shared_run_that_finishes_between_two_checks_has_not_failed(
    grid, pictures: Path, tmp_path: Path, pretended: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, out = grid(data=[str(pictures)]), tmp_path / "out"
    runs = spec.read(file)
    state, attempt = Bench.state, Bench._attempt
    unseen = list[str]()  # shared runs that another process finishes after the last check
    seen = list[str]()

    def look(self: Bench, run: Planned) -> str:
        if run.folder in unseen:
            unseen.remove(run.folder)
            seen.append(run.folder)
            return "started"
        return state(self, run)

    def attempt_while_it_finishes(self: Bench, run: Planned) -> bool:
        if run.share and state(self, run.share) == "done" and run.share.folder not in seen:
            unseen.append(run.share.folder)
        return attempt(self, run)

    monkeypatch.setattr(Bench, "state", look)
    monkeypatch.setattr(Bench, "_attempt", attempt_while_it_finishes)
    assert Bench(out, runs, runs).work(file) == []
    assert seen
    assert [line["status"] for line in lines(out)] == ["done"] * len(runs)


# ------------------------------------------------------------------------------------------- the command


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit status of ``rarebox bench words…``."""
    monkeypatch.setattr(sys, "argv", ["rarebox", "bench", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def test_command_lists(monkeypatch, capsys, finished, grid, pictures: Path) -> None:
    _, out, _, _ = finished
    more = grid(data=["tiny"], seeds=2, full=1)
    assert call(monkeypatch, more, out, "--list", "--only", "/U/", "--data", f"tiny={pictures}") == 0
    assert capsys.readouterr().out.splitlines() == [
        "done    tiny/retinanet/U/seed_0",
        "open    tiny/retinanet/U/seed_1",
    ]
    assert call(monkeypatch, more, out, "--list", "--json") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [t["state"] for t in told] == ["done", "done", "done", "open", "open"]


def test_command_reports_that_all_is_done(monkeypatch, capsys, finished) -> None:
    file, out, _, _ = finished
    assert call(monkeypatch, file, out) == 0
    assert f"3 of 3 runs are done: {out / 'results.jsonl'}" in capsys.readouterr().err
    assert call(monkeypatch, file, out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "event": "end",
        "results": str(out / "results.jsonl"),
        "done": 3,
        "failed": [],
    }


def test_command_names_what_failed(monkeypatch, capsys, grid, tmp_path: Path, pictures: Path) -> None:
    def sick(*_: Any, **__: Any) -> None:
        raise RuntimeError("[no luck]")

    monkeypatch.setattr(simulate, "simulate", sick)
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, grid(data=[str(pictures)], full=1), "--only", "full") == 1
    said = capsys.readouterr().err
    assert "[0/1] tiny/retinanet/full/seed_0 failed: RuntimeError: [no luck]" in said
    assert f"0 of 1 runs are done: {Path('bench-out/grid/results.jsonl')}" in said
    assert "failed: tiny/retinanet/full/seed_0: RuntimeError: [no luck]" in said
    assert "repeat the command" in said


def test_command_in_a_log_names_the_grid_the_runs_and_what_ended_short(
    monkeypatch, capsys, grid, tmp_path: Path, pictures: Path
) -> None:
    method = {"image": {"selection.strategy": "image_random"}}
    file = grid(data={"tiny": {"data": str(pictures)}}, methods=method, budgets=[[6, 500]])
    assert call(monkeypatch, file, tmp_path / "out") == 0
    said = [line.strip() for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert said[0] == f"{file}: 1 run, 0 done; results in {tmp_path / 'out'}"
    asked = [line for line in said if line.startswith("tiny/retinanet/image/seed_0, cycle 2/3: ask:")]
    assert re.search(r": ([6-9]|1\d) of 6 labels", asked[-1])  # the last image may overshoot the budget
    ended = [line for line in said if line.startswith("[")]  # of the run, not of its shared first cycle
    assert len(ended) == 1
    assert ended[0].startswith("[1/1] tiny/retinanet/image/seed_0 done: AP50 ")
    assert re.search(r"; cycle 3 spent \d+ of 500$", ended[0])
    other = {**COMMON, "scoring.beta": 1}
    file = grid(data={"tiny": {"data": str(pictures)}}, methods=method, budgets=[[6, 500]], settings=other)
    assert call(monkeypatch, file, tmp_path / "out") == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("rarebox: ")  # refused before it is announced
    assert "scoring.beta: 1.3 -> 1" in said


def test_a_mistake_in_a_grid_is_refused_before_torch_is_loaded(grid, tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from rarebox.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as left:\n"
        "    print(left.code, 'torch' in sys.modules)\n"
    )
    file = grid(methods={"U": {"selection.strategy": "uncertanty"}})
    for words in (["bench", str(file)], ["run", str(tmp_path / "run"), "--strategy", "uncertanty"]):
        command = [sys.executable, "-c", script, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert "did you mean 'uncertainty'" in done.stderr
        assert done.stdout == "2 False\n"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--data", "tiny"], "--data must be NAME=FOLDER, got 'tiny'"),
        (["--data", "tiiny=x"], "unknown data set of the grid 'tiiny'"),
        (["--only", "W"], "--only W: no name of the 2 runs contains this"),
    ],
)
def test_command_mistakes(monkeypatch, capsys, grid, tmp_path: Path, options: list[str], wanted: str) -> None:
    assert call(monkeypatch, grid(data=["tiny"]), tmp_path / "out", *options) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert wanted in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_maps_of_a_frozen_backbone_are_kept_while_a_run_needs_them(
    grid: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    assert COMMON["scoring.views"] != [*Settings().scoring.views]
    file, out = grid(data=[str(pictures)], settings={**COMMON, "training.freeze": "backbone"}), tmp_path / "out"
    failed, _ = work(file, out, only=("U",))
    assert not failed
    assert len([*out.glob("first/*/maps/*/pool/maps.f16")]) == 1  # one folder for all runs; R is not done yet
    failed, _ = work(file, out)
    assert not failed
    assert not [*out.rglob("maps")]
    next(out.glob("first/*")).joinpath("maps").mkdir()  # left by a kill between the last run and the clean-up
    work(file, out)
    assert not [*out.rglob("maps")]


def test_scores_by_the_shared_model_are_computed_once_and_change_nothing(
    monkeypatch: pytest.MonkeyPatch, grid: Callable[..., Path], pictures: Path, tmp_path: Path
) -> None:
    scored: list[int] = []
    honest = scoring.score_images

    def counted(*args: Any, **kwargs: Any) -> Any:
        scored.append(args[3])
        return honest(*args, **kwargs)

    monkeypatch.setattr(scoring, "score_images", counted)
    base = METHODS["U"]
    methods = {
        n: {**base, "selection.strategy": s}
        for n, s in (("U", "uncertainty"), ("CB", "class_balanced"), ("E", "entropy"))
    }
    file = grid(data=[str(pictures)], methods=methods, budgets=[[6, 6]], settings={**COMMON, "training.steps": 2})
    out, apart = tmp_path / "out", tmp_path / "apart"

    def done(only: str, where: Path = out) -> set[int]:
        scored[:] = []
        assert not work(file, where, only=(f"/{only}/",))[0]
        return set(scored)

    assert done("CB", apart) == {2, 3}
    assert done("U") == {2, 3}
    shared = [*out.glob("first/*/scored/*.parquet")]
    assert {file.name.split("_")[0] for file in shared} == {"shard", "images"}
    for damaged in shared[:2]:
        damaged.unlink()
        damaged.write_bytes(b"half")
    assert done("CB") == {2, 3}  # computed again, for the next one too
    assert done("E") == {3}
    assert not [*out.rglob("scored")]  # no longer needed

    def told(folder: Path) -> list[dict[str, Any]]:
        (file,) = folder.glob("runs/*/*/CB/seed_0/metrics.json")
        return [{**one, "seconds": 0, "notes": len(one["notes"])} for one in json.loads(file.read_text())]

    assert told(out) == told(apart)
