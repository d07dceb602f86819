"""The command line as users see it: mistakes give one message, status 2 and no traceback; valid commands work."""

import csv
import json
import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from rarebox import config
from rarebox.cli import main, simulate
from rarebox.cli.options import PIPE_CLOSED
from rarebox.core.text import counted
from rarebox.loop.run_folder import RunFolder, open_store
from rarebox.types import Query
from tests.thinned import thinned
from tests.tiny import as_options, figures_not_drawn, make_data, without_figures

pytestmark = pytest.mark.usefixtures("small_network")


@pytest.fixture(scope="module", autouse=True)
def undrawn() -> Iterator[None]:
    """No test here reads a figure. Those of the report's tests and of the installed commands are drawn."""
    with figures_not_drawn(but="^ap50_labels$"):
        yield


@pytest.fixture(autouse=True)
def figureless() -> Iterator[None]:
    """Runs other than the finished one, which is made before this, leave reports without figures."""
    with without_figures():
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rarebox", "run", str(out), "--data", str(pictures), *as_options(budget=[4])])
        with pytest.raises(SystemExit) as left:
            main.main()
    assert not left.value.code
    return out


def call(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> int:
    """Exit status of ``rarebox words…``."""
    monkeypatch.setattr(sys, "argv", ["rarebox", *map(str, words)])
    with pytest.raises(SystemExit) as left:
        main.main()
    return int(left.value.code or 0)


def complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The error message of a mistake, joined to one line. It must exit with 2 and show no traceback."""
    status = call(monkeypatch, *words)
    said = capsys.readouterr()
    assert status == 2, said
    assert "Traceback" not in said.err + said.out
    return " ".join(said.err.split())


def test_missing_folder(monkeypatch, capsys, tmp_path, pictures) -> None:
    wrong = pictures.with_name("scene")
    said = complaint(monkeypatch, capsys, "run", tmp_path / "out", "--data", wrong)
    assert str(wrong) in said
    assert "scenes" in said  # the nearest existing name
    assert not (tmp_path / "out").exists()


def test_empty_folder_and_folder_without_labels(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in complaint(monkeypatch, capsys, "run", tmp_path / "out", "--data", tmp_path / "empty")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "photos" / "a.jpg")
    said = complaint(monkeypatch, capsys, "run", tmp_path / "out", "--data", tmp_path / "photos")
    assert "1 image" in said
    assert "COCO" in said


@pytest.mark.parametrize(("name", "text"), [("train.json", '{"images": [,'), ("data.yaml", "names: [a, b\ntrain: x")])
def test_broken_label_files(monkeypatch, capsys, tmp_path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert name in complaint(monkeypatch, capsys, "run", tmp_path / "out", "--data", tmp_path)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--preset", "laptpo"], "'laptop'"),
        (["--strategy", "class_balance"], "did you mean 'class_balanced'"),
        (["--set", "training.stepz=3"], "did you mean 'training.steps'"),
        (["--set", "training.steps"], "--set must be name=value"),
        (["--set", "training.steps=many"], "setting training.steps: must be a whole number, got 'many'"),
        (["--set", "training.lr=-1"], "setting training.lr: must be greater than 0, got -1"),
        (["--set", "budget=3"], "setting budget: must be a list, such as [150, 300], got 3"),
        (["--set", "budget=[1, x]"], "setting budget.1: must be a whole number, got 'x'"),
        (["--set", "pseudo.calibrated=maybe"], "setting pseudo.calibrated: must be true or false, got 'maybe'"),
        (["--set", "scoring.views=[flop]"], "did you mean 'flip'"),
        (["--set", "pseudo.class_low=0.9"], "must not be above"),
        (["--set", "detector.name=retina"], "did you mean 'retinanet'"),
        (["--set", "pseudo.method=sfot"], "did you mean 'soft'"),
        (["--set", "scoring.beta=.nan"], "scoring.beta"),
        (["--budget", "lots"], "whole numbers"),
        (["--set", "budget=[-5]"], "must not be negative"),
        (["--set", "device=gpu"], "'gpu' is not available"),
    ],
)
def test_unknown_names_and_values(monkeypatch, capsys, tmp_path, pictures, options: list[str], wanted: str) -> None:
    said = complaint(monkeypatch, capsys, "run", tmp_path / "out", "--data", pictures, *as_options(), *options)
    assert wanted in said


def test_broken_settings_file(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text("training: [")
    assert "s.yaml is not valid YAML" in complaint(
        monkeypatch, capsys, "run", tmp_path / "o", "--config", tmp_path / "s.yaml"
    )
    assert "cannot be read" in complaint(monkeypatch, capsys, "run", tmp_path / "o", "--config", tmp_path / "none.yaml")


def test_missing_weights(monkeypatch, capsys, tmp_path, pictures) -> None:
    said = complaint(
        monkeypatch,
        capsys,
        "run",
        tmp_path / "out",
        "--data",
        pictures,
        *as_options(detector__weights=str(tmp_path / "w.pth")),
    )
    assert "w.pth cannot be read" in said


def test_laptop_falls_back_to_installed_weights(monkeypatch, capsys, tmp_path, pictures, no_network) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    auto = as_options(budget=[], detector__backbone="resnet50", detector__weights="auto")
    assert call(monkeypatch, "run", tmp_path / "out", "--data", str(pictures), *auto) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "note: resnet50 with COCO weights is not available (<urlopen error no route to host>)" in said
    assert RunFolder(tmp_path / "out").read_settings().detector.backbone == "efficientnet_lite0"
    said = complaint(monkeypatch, capsys, "run", tmp_path / "p", "--preset", "paper", "--data", pictures)
    assert "put the file at" in said
    assert "resnet50" in said


def test_output_folder_of_another_run(monkeypatch, capsys, finished, pictures) -> None:
    said = complaint(monkeypatch, capsys, "run", finished, "--data", pictures, *as_options(budget=[5]))
    assert "budget: [4] -> [5]" in said


def test_output_that_cannot_be_written(monkeypatch, capsys, tmp_path, pictures) -> None:
    (tmp_path / "file").write_text("mine")
    said = complaint(monkeypatch, capsys, "run", tmp_path / "file", "--data", pictures, *as_options())
    assert "file" in said
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    said = complaint(monkeypatch, capsys, "run", tmp_path / "full", "--data", pictures, *as_options())
    assert "not empty" in said
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_damaged_settings_of_a_run(monkeypatch, capsys, tmp_path, pictures) -> None:
    (tmp_path / "settings.yaml").write_text("a: [1")
    assert "not valid YAML" in complaint(monkeypatch, capsys, "report", tmp_path)


def test_names_that_look_like_markup(monkeypatch, capsys, tmp_path, pictures) -> None:
    out = tmp_path / "run[" / "x]"
    assert call(monkeypatch, "run", out.parent, "--data", pictures, *as_options(budget=[])) == 0
    said = capsys.readouterr().err
    assert "run[, cycle 1 of 1" in said
    assert "cycle 1/1: fit: 6 of 6 loss" in said  # progress, where there is no terminal for a bar


def test_share_with_a_folder_that_has_no_run(monkeypatch, capsys, tmp_path, pictures) -> None:
    said = complaint(
        monkeypatch, capsys, "run", tmp_path / "out", "--data", pictures, *as_options(), "--share", tmp_path
    )
    assert "no cycle-1 model" in said
    assert not (tmp_path / "out").exists()  # reported before anything is created


def test_report_and_export_require_a_run(monkeypatch, capsys, tmp_path) -> None:
    assert "holds no run" in complaint(monkeypatch, capsys, "report", tmp_path)
    assert "holds no run" in complaint(monkeypatch, capsys, "export", tmp_path, tmp_path / "labels")


def test_run_leaves_a_report(finished: Path) -> None:
    assert "<html" in (finished / "report.html").read_text(encoding="utf-8")
    assert list((finished / "figures").glob("*.png"))


def test_run_repeated_reports_that_it_is_finished(monkeypatch, capsys, finished, pictures) -> None:
    assert call(monkeypatch, "run", finished, "--data", pictures, *as_options(budget=[4])) == 0
    assert "is already finished: 2 cycles" in " ".join(capsys.readouterr().err.split())


def test_run_reports_after_which_cycle_it_resumes(monkeypatch, capsys, tmp_path, finished, pictures) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    records = json.loads((out / "metrics.json").read_text())
    (out / "metrics.json").write_text(json.dumps(records[:1]))
    assert call(monkeypatch, "run", out, "--data", pictures, *as_options(budget=[4])) == 0
    assert "resumes after cycle 1 of 2" in " ".join(capsys.readouterr().err.split())
    assert json.loads((out / "metrics.json").read_text())[1]["ap50"] == records[1]["ap50"]


def test_the_time_left_is_reported_after_a_cycle_that_scores(monkeypatch, capsys, tmp_path, pictures) -> None:
    """Cycle 1 scores no pool, so it does not predict the others. After the last one nothing is left."""
    assert (
        call(monkeypatch, "run", tmp_path / "out", "--data", pictures, *as_options(budget=[3, 3], training__steps=2))
        == 0
    )
    said = {line.split(":")[0][-6:]: line for line in capsys.readouterr().err.splitlines() if " reviews" in line}
    assert ["left" in said[cycle] for cycle in ("1 of 3", "2 of 3", "3 of 3")] == [False, True, False]


def test_a_refused_run_is_not_announced(monkeypatch, capsys, finished, pictures) -> None:
    complaint_only = complaint(monkeypatch, capsys, "run", finished, "--data", pictures, *as_options(budget=[5]))
    assert complaint_only.startswith("rarebox: ")


def test_a_report_on_several_runs_is_in_no_runs_folder(monkeypatch, capsys, tmp_path, finished) -> None:
    monkeypatch.chdir(tmp_path)
    before = (finished / "report.html").read_bytes()
    other = shutil.copytree(finished, tmp_path / "other")
    assert call(monkeypatch, "report", finished, other) == 0
    page = tmp_path / "rarebox-report" / "report.html"
    assert capsys.readouterr().out.strip() == str(page)
    assert page.exists()
    assert (finished / "report.html").read_bytes() == before == (other / "report.html").read_bytes()


def test_json_output_is_one_value_a_line(monkeypatch, capsys, tmp_path, pictures) -> None:
    words = ["run", tmp_path / "out", "--data", pictures, "--json", *as_options(budget=[3])]
    assert call(monkeypatch, *words) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {e["event"] for e in events} == {"progress", "cycle", "done"}
    assert [e["cycle"] for e in events if e["event"] == "cycle"] == [1, 2]


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_export_of_partly_labelled_images(monkeypatch, capsys, tmp_path, finished, format: str) -> None:
    out = tmp_path / "labels"
    if format == "yolo":
        said = complaint(monkeypatch, capsys, "export", finished, out, "--format", "yolo")
        assert "background" in said
        assert "--complete-only" in said
        assert not out.exists()
    extra = ["--complete-only"] if format == "yolo" else []
    assert call(monkeypatch, "export", finished, out, "--format", format, "--json", *extra) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["boxes"] > 0
    assert (told["unlabelled"] == 0) == (format == "yolo")
    assert call(monkeypatch, "export", finished, out, "--format", format, *extra) == 0
    warning = f"{counted(told['partly_labelled'], 'image')} partially labelled, {told['unlabelled']} unlabelled"
    assert (warning in capsys.readouterr().err) == (format != "yolo")
    if format == "coco":
        labels = json.loads(next(out.glob("*.json")).read_text())
        assert {a["attributes"]["source"] for a in labels.get("annotations", [])} <= {"human"}


def test_init_writes_settings_that_run_reads(monkeypatch, capsys, tmp_path, pictures) -> None:
    assert call(monkeypatch, "init", tmp_path / "project", "--data", pictures) == 0
    shown = capsys.readouterr().err
    assert f"{pictures.name}: 14 training images, 5 test images\n" in shown  # on one line
    assert "nine" in shown
    assert "imbalance factor" in shown
    file = tmp_path / "project" / "rarebox.yaml"
    assert config.resolve("laptop", file) == config.resolve("laptop", None, {"data": str(pictures.resolve())})
    assert yaml.safe_load(file.read_text())["training"]["steps"] == config.Settings().training.steps
    assert "already exists" in complaint(monkeypatch, capsys, "init", tmp_path / "project", "--data", pictures)


def test_init_asks_about_boxes_or_whole_images(monkeypatch, capsys, tmp_path, pictures) -> None:
    for ask, strategy in (("boxes", "class_balanced"), ("images", "image_per_second")):
        photos = ("--images", pictures, "--classes", "one,two", "--ask", ask)
        assert call(monkeypatch, "init", tmp_path / ask, *photos) == 0
        settings = config.resolve("laptop", tmp_path / ask / "settings.yaml")
        assert (settings.selection.strategy, settings.oracle.verify) == (strategy, ask == "images")
    given = ("--set", "selection.strategy=image_entropy")
    assert call(monkeypatch, "init", tmp_path / "own", *photos, *given) == 0
    assert config.resolve("laptop", tmp_path / "own" / "settings.yaml").selection.strategy == "image_entropy"


def test_doctor_says_what_is_there_and_what_to_do(monkeypatch, capsys, pictures, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert call(monkeypatch, "doctor", "--json", "--data", pictures) == 0
    checks = {c["name"]: c for c in json.loads(capsys.readouterr().out)}
    start = checks["detector's start"]
    assert not start["ok"]
    assert "ImageNet on efficientnet_lite0" in start["found"]
    assert str(tmp_path / "hub" / "checkpoints") in start["found"]
    assert "Download https://" in start["advice"]
    assert "resnet50-0676ba61.pth" in checks["weights"]["found"].split("; not in")[1]
    assert "14 training and 5 test images" in checks["data"]["found"]
    assert "rarebox init PROJECT --images FOLDER" in checks["your own photos"]["found"]
    assert call(monkeypatch, "doctor", "--data", tmp_path / "nowhere") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "todo data" in said
    assert "– detector's start: ImageNet on efficientnet_lite0" in said


def test_usage_mistakes_exit_with_2(monkeypatch, capsys) -> None:
    assert call(monkeypatch, "run") == 2
    assert call(monkeypatch, "dance") == 2
    assert call(monkeypatch, "--version") == 0


def test_demo_settings_are_settings() -> None:
    assert config.resolve("laptop", None, simulate.DEMO).data == "scenes"
    assert shutil.which("rarebox") or Path(sys.executable).with_name("rarebox").exists()


def test_ctrl_c_reports_that_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rarebox.loop.simulate.simulate", stopped)
    monkeypatch.setattr(sys, "argv", ["rarebox", "run", str(tmp_path / "out")])
    monkeypatch.setattr("rarebox.loop.simulate.load_data", lambda name, progress: SimpleNamespace(problems=()))
    with pytest.raises(SystemExit) as left:
        main.main()
    assert left.value.code == 130
    assert "stopped. Repeat the command to resume" in capsys.readouterr().err


DETECTIONS = """{"classes": ["cat", "dog"]}
{"image": "a.png", "width": 80, "height": 60, "boxes": [[5, 5, 30, 40]], "scores": [0.6], "labels": ["dog"]}
{"image": "b.png", "width": 80, "height": 60, "boxes": [[9, 9, 50, 50]], "scores": [0.9], "labels": ["cat"]}
"""


@pytest.fixture
def found(tmp_path: Path) -> Path:
    """The detections of some detector."""
    file = tmp_path / "found.jsonl"
    file.write_text(DETECTIONS)
    return file


def test_rank_in_all_formats(monkeypatch, capsys, tmp_path, found) -> None:
    words = ("rank", "--detections", found, "--budget", "5")
    assert call(monkeypatch, *words) == 0
    said = capsys.readouterr()
    assert "no --views" in " ".join(said.err.split())
    rows = list(csv.DictReader(said.out.splitlines()))
    assert [(row["rank"], row["image"], row["guess"], row["box_consistency"]) for row in rows] == [
        ("1", "a.png", "dog", ""),
        ("2", "b.png", "cat", ""),
    ]
    assert [row["score"] for row in rows] == ["0.6", "0.9"]  # single precision would be 0.6000000238418579
    assert call(monkeypatch, *words, "--format", "json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert (listed["strategy"], listed["uncertainty"]) == ("class_balanced", "class entropy")
    assert [box["utility"] for box in listed["boxes"]] == [pytest.approx(float(row["utility"])) for row in rows]
    assert call(monkeypatch, *words, "--format", "coco", "--to", tmp_path / "c.json") == 0
    coco = json.loads((tmp_path / "c.json").read_text())
    assert [a["attributes"]["rank"] for a in coco["annotations"]] == [1, 2]
    assert call(monkeypatch, *words, "--format", "labelstudio", "--to", tmp_path / "t.json", "--image-url", "/x/") == 0
    tasks = json.loads((tmp_path / "t.json").read_text())
    assert [task["data"]["image"] for task in tasks] == ["/x/a.png", "/x/b.png"]
    assert [task["predictions"][0]["score"] for task in tasks] == [0.6, 0.9]
    assert [box["score"] for box in (*listed["boxes"], *coco["annotations"])] == [0.6, 0.9, 0.6, 0.9]
    assert "RectangleLabels" in (tmp_path / "t.xml").read_text()


def test_rank_and_mistakes(monkeypatch, capsys, tmp_path, found) -> None:
    words = ("rank", "--detections", found, "--budget", "5")
    assert "did you mean 'class_balanced'" in complaint(monkeypatch, capsys, *words, "--strategy", "class_balance")
    assert "cannot be read" in complaint(monkeypatch, capsys, "rank", "--detections", tmp_path / "no", "--budget", "5")
    assert "did you mean 'selection.sigma'" in complaint(monkeypatch, capsys, *words, "--set", "selection.sigm=2")
    assert "no label store" in complaint(monkeypatch, capsys, *words, "--labels", tmp_path)
    (tmp_path / "data.yaml").touch()
    assert "data.yaml is not a COCO file" in complaint(monkeypatch, capsys, *words, "--labels", tmp_path / "data.yaml")
    empty = {"images": [], "annotations": [], "categories": []}
    (tmp_path / "L.JSON").write_text(json.dumps(empty))
    assert call(monkeypatch, *words, "--labels", tmp_path / "L.JSON") == 0
    (tmp_path / "classes.txt").write_text("cat\n")
    for command in (words, ("init", tmp_path / "new", "--images", tmp_path)):
        said = complaint(monkeypatch, capsys, *command, "--classes", tmp_path / "classes.txt")
        assert "classes.txt is a file" in said
    assert call(monkeypatch, "rank", "--budget", "5") == 2


def test_views_are_written(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (80, 60)).save(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "b.png").write_text("no image")
    assert call(monkeypatch, "views", "--images", tmp_path / "photos", "--to", tmp_path / "out", "--views", "flip") == 0
    said = capsys.readouterr()
    assert "1 copies of 1 images" in said.out
    assert "1 unreadable images are skipped" in " ".join(said.err.split())
    assert (tmp_path / "out" / "images" / "a.png.flip.png").is_file()
    nowhere = ("views", "--images", tmp_path / "no", "--to", tmp_path / "x")
    assert "does not exist" in complaint(monkeypatch, capsys, *nowhere)


def test_questions_are_exported_and_answers_imported(monkeypatch, capsys, tmp_path, pictures) -> None:
    assert call(monkeypatch, "init", tmp_path / "project", "--images", pictures, "--classes", "one,two") == 0
    with open_store(tmp_path / "project") as store:
        store.open_cycle(2)
        store.ask(2, [Query(1, np.array([5, 5, 30, 40]), 1, why={"score": 0.5})])
    words = ("export", tmp_path / "project", tmp_path / "out", "--queries")
    capsys.readouterr()
    assert call(monkeypatch, *words, "--format", "labelstudio", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "out"), "images": 1, "queries": 1}
    assert "unknown format for queries 'voc'" in complaint(monkeypatch, capsys, *words, "--format", "voc")
    assert call(monkeypatch, *words, "--format", "cvat") == 0
    file = tmp_path / "out" / "annotations.xml"
    take_in = ("import", tmp_path / "project", file, "--format", "cvat", "--by", "Ada")
    capsys.readouterr()
    assert call(monkeypatch, *take_in) == 0
    assert "1 guess confirmed" in capsys.readouterr().out
    assert call(monkeypatch, *take_in, "--json") == 0
    assert json.loads(capsys.readouterr().out)["unchanged"] == 1
    with open_store(tmp_path / "project") as store:
        assert [(a.by, a.labels.tolist(), a.boxes.tolist()) for _, a in store.answered()] == [
            ("Ada", [1], [[5, 5, 30, 40]])
        ]
    assert "no open question" in complaint(monkeypatch, capsys, *words, "--format", "cvat")
    assert "no label store" in complaint(monkeypatch, capsys, "import", tmp_path, file, "--format", "cvat")
    assert call(monkeypatch, "export", tmp_path / "project", tmp_path / "labels", "--format", "cvat") == 0
    assert 'label="two"' in (tmp_path / "labels" / "annotations.xml").read_text()


# ------------------------------------------------------------------------------------------- output


@pytest.fixture(scope="module")
def cats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Detections of a class with a Chinese name."""
    file = tmp_path_factory.mktemp("cats") / "found.jsonl"
    lines = [{"image": f"{n}.jpg", "boxes": [[1, 2, 30, 40]], "scores": [0.5], "labels": ["\u732b"]} for n in range(20)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


def in_a_process(*words: str | Path, encoding: str, stdout: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "rarebox", *map(str, words)]
    return subprocess.Popen(command, env=environment, stdout=stdout, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("encoding", "format"), thinned([("cp1252", "csv"), ("ascii", "json")], lambda number, _: number == 0)
)
def test_redirected_lists_are_utf_8_in_any_locale(cats: Path, encoding: str, format: str) -> None:
    words = ("rank", "--detections", cats, "--budget", "2", "--format", format)
    with in_a_process(*words, encoding=encoding, stdout=subprocess.PIPE) as process:
        out, errors = process.communicate()
    assert process.returncode == 0, errors
    text = out.decode("utf-8")
    guesses = (
        [b["guess"] for b in json.loads(text)["boxes"]]
        if format == "json"
        else [row["guess"] for row in csv.DictReader(text.splitlines())]
    )
    assert guesses == ["\u732b"] * 2


def test_what_a_terminal_cannot_show_is_escaped(cats: Path) -> None:
    ours, theirs = pty.openpty()
    words = ("rank", "--detections", cats, "--budget", "1")
    with in_a_process(*words, encoding="ascii", stdout=theirs) as process:
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # the terminal's end
            while block := os.read(ours, 4096):
                shown += block
        errors = process.communicate()[1]
    os.close(ours)
    assert process.returncode == 0, errors
    assert b",\\u732b," in shown


def test_a_closed_pipe_ends_a_command_silently(cats: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    words = ("rank", "--detections", cats, "--budget", "20")
    with in_a_process(*words, encoding="utf-8", stdout=writer) as process:
        os.close(writer)
        errors = process.communicate()[1].decode()
    assert process.returncode == PIPE_CLOSED
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert "Broken" not in errors


def test_files_whose_names_are_not_text_are_listed(monkeypatch, capsys, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "photos" / "a.jpg")
    shutil.copy(tmp_path / "photos" / "a.jpg", os.fsencode(tmp_path / "photos") + b"/caf\xe9.jpg")
    assert call(monkeypatch, "init", tmp_path / "p", "--images", tmp_path / "photos", "--classes", "cat") == 0
    (problem,) = json.loads((tmp_path / "p" / "problems.json").read_text())
    assert "not valid UTF-8" in problem["what"]
    assert problem["where"].endswith(r"caf\udce9.jpg")
    assert "1 photo" in capsys.readouterr().err
