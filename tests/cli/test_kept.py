"""No command deletes a label store that holds an answer, in any state of the folder."""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import uvicorn

from rarebox.cli import main, options
from rarebox.core.files import hold
from rarebox.data import datasets
from rarebox.detectors import TorchDetector
from rarebox.errors import Busy, UserError
from rarebox.labels.store import Store
from rarebox.loop import simulate
from rarebox.loop.run_folder import answers_in, discard_store
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.types import ORACLE, Answer, ImageRecord, Query, Verdict
from rarebox.web import supervisor
from tests import tiny
from tests.serving import WAITING
from tests.thinned import first_seeds

pytestmark = pytest.mark.usefixtures("small_network")

DETECTIONS = {
    "classes": ["zero"],
    "image": "train_0000.jpg",
    "width": 96,
    "height": 96,
    "boxes": [[10, 20, 50, 60]],
    "scores": [0.9],
    "labels": ["zero"],
}

COMMANDS: dict[str, list[str]] = {
    "demo": ["{project}"],
    "run": [
        "{project} --data {data}",
        "{project} --data {data} --config {project}/settings.yaml",
        "{project} --data {data} --strategy random --share {project}",
        "{store} --data {data}",
        "{project}",
    ],
    "bench": ["{grid} {project}", "{grid} {project} --list", "{project}/settings.yaml {project}"],
    "report": ["{project}", "{project} --to {project}", "{project} --to {store}"],
    "export": [
        "{project} {project}",
        "{project} {store}",
        "{project} {out}",
        "{project} {project}/cycle_01",
        "{project} {project} --queries --format cvat",
    ],
    "backup": ["{project} {out}", "{project} {store}", "{project} {store}-wal", "{store} {project}/cycle_01"],
    "relocate": ["{project} {photos}", "{project} {data}", "{project} {project}"],
    "tile": ["{photos} {project}", "{project} {out}", "{photos} {store}", "{data} {project}/photos"],
    "import": ["{project} {tasks} --format labelstudio --replace --complete", "{store} {tasks} --format labelstudio"],
    "rank": [
        "--detections {found} --budget 3 --to {store}",
        "--detections {found} --budget 3 --to {store}-wal",
        "--detections {found} --budget 3 --to {store} --format labelstudio",
        "--detections {found} --budget 3 --labels {project}",
    ],
    "train": [
        "{data} --to {out}",
        "{data} --to {project}",
        "{data} --to {project}/cycle_01",
        "{data} --to {store}",
        "{project} --to {out}",
        "{store} --to {out}",
    ],
    "predict": [
        "{project} {photos} --to {out}",
        "{project} {photos} --to {project}",
        "{project} {photos} --to {project}/cycle_01",
        "{project} {photos} --to {store}",
    ],
    "export-model": [
        "{project} --to {out}.onnx",
        "{project} --to {store} --format torchscript",
        "{project} --to {store}-wal --format onnx",
        "{project} --to {project}/settings.yaml --format onnx",
    ],
    "views": ["--images {photos} --to {project}", "--images {photos} --to {store}"],
    "init": [
        "{project} --images {photos}",
        "{project} --images {photos} --classes zero,one",
        "{project} --data {data}",
        "{project} --images {photos} --labels {data}",
        "{store} --images {photos}",
        "{project} --images {photos} --predictions {found}",
    ],
    "predictions": [
        "add {project} {found}",
        "add {project} {found} --name labels",
        "add {store} {found}",
        "list {project}",
        "remove {project} labels",
        "remove {project} ../labels",
    ],
    "serve": ["{project} --no-browser", "{project} --no-browser --port 0 --people anna"],
    "doctor": ["", "--data {project}"],
}
"""How each command is tried on the folder of a project and on its store."""

EACH = [(name, line) for name, lines in COMMANDS.items() for line in lines]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def photos(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for image in datasets.load(pictures).train.images:
        shutil.copy(image.path, folder)
    return folder


def answer(store: Store, by: str = "anna", most: int = 4) -> None:
    """Ask and answer the first questions."""
    store.open_cycle(1)
    asked = store.queries(1) or store.ask(1, [Query(image_id) for image_id in [*store.images()][:most]])
    box, label = np.array([[5, 5, 40, 40]]), np.array([0])
    store.record([Answer(query.id, box, label, Verdict.OBJECT, by) for query in asked])


@pytest.fixture(scope="module")
def answered(pictures: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with four answers that has not trained."""
    root = tmp_path_factory.mktemp("answered") / "project"
    changes = {name: value for name, value in tiny.CHANGES.items() if name not in ("initial_images", "budget")}
    create(root, photos, datasets.load(pictures).classes, changes=changes)
    project = Project(root)
    answer(project.store)
    project.store.close()
    return root


def as_it_is(project: Path, holding: ExitStack) -> None:
    pass


def restored(project: Path, holding: ExitStack) -> None:
    """Nothing but a backup of the store."""
    for file in project.iterdir():
        if file.name != "labels.sqlite":
            file.unlink()


def killed(project: Path, holding: ExitStack) -> None:
    """Its last answers are in the log, as after ``kill -9``."""
    copy = project.with_name("copy")
    with Store(project / "labels.sqlite") as store:
        answer(store, "ben")
        shutil.copytree(project, copy)
    shutil.rmtree(project)
    copy.rename(project)
    assert (project / "labels.sqlite-wal").stat().st_size


def killed_and_restored(project: Path, holding: ExitStack) -> None:
    killed(project, holding)
    (project / "settings.yaml").unlink()


def log_alone(project: Path, holding: ExitStack) -> None:
    """The log of a store whose database was moved away."""
    killed(project, holding)
    (project / "labels.sqlite").rename(project.with_name("moved.sqlite"))


def served(project: Path, holding: ExitStack) -> None:
    """A server has the store open."""
    holding.enter_context(hold(project / "serve.lock"))
    holding.enter_context(Store(project / "labels.sqlite"))


def served_without_settings(project: Path, holding: ExitStack) -> None:
    served(project, holding)
    (project / "settings.yaml").unlink()


def simulated(project: Path, holding: ExitStack) -> None:
    """A run that was stopped before it trained, with other settings."""
    (project / "environment.json").write_text("{}")
    with sqlite3.connect(project / "labels.sqlite") as connection:
        connection.execute('UPDATE answers SET "by" = ?', [ORACLE])


def by_nobody(project: Path, holding: ExitStack) -> None:
    """The oracle's name under the answers of a project."""
    with sqlite3.connect(project / "labels.sqlite") as connection:
        connection.execute('UPDATE answers SET "by" = ?', [ORACLE])


def trained(project: Path, holding: ExitStack) -> None:
    """A project whose training has begun."""
    (project / "cycle_01").mkdir()
    (project / "cycle_01" / "model.safetensors").write_bytes(b"weights")


def damaged(project: Path, holding: ExitStack) -> None:
    file = project / "labels.sqlite"
    file.write_bytes(file.read_bytes()[:9000])


def damaged_without_settings(project: Path, holding: ExitStack) -> None:
    (project / "settings.yaml").unlink()
    file = project / "labels.sqlite"
    file.write_bytes(b"\0" * 100 + file.read_bytes()[100:])


def newer(project: Path, holding: ExitStack) -> None:
    (project / "settings.yaml").unlink()
    with sqlite3.connect(project / "labels.sqlite") as connection:
        connection.execute("UPDATE rarebox SET schema = 99")


STATES = [
    as_it_is,
    restored,
    killed,
    killed_and_restored,
    log_alone,
    served,
    served_without_settings,
    simulated,
    by_nobody,
    trained,
    damaged,
    damaged_without_settings,
    newer,
]


def answers(project: Path) -> set[tuple[Any, ...]] | bytes:
    """Every answer in the store of a project, including its log; the store's bytes if it cannot be read."""
    there = project.with_name("looked_at")
    shutil.rmtree(there, ignore_errors=True)
    there.mkdir()
    for end in ("", "-wal"):  # a copy, because opening the store would change it
        if (file := project / f"labels.sqlite{end}").is_file():
            shutil.copy(file, there)
    if (moved := project.with_name("moved.sqlite")).exists():
        shutil.copy(moved, there / "labels.sqlite")
    try:
        with closing(sqlite3.connect(there / "labels.sqlite")) as connection:
            return {*connection.execute('SELECT id, query_id, verdict, boxes, labels, "by", key FROM answers')}
    except sqlite3.DatabaseError:
        return (there / "labels.sqlite").read_bytes()


@pytest.fixture
def tame(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Callable[..., int]:
    """``rarebox WORDS``; its exit status. No run trains, no server waits, and scenes are those at hand."""

    def stopped(*_: Any, **__: Any) -> None:
        raise UserError("training was stopped")

    monkeypatch.setattr(TorchDetector, "fit", stopped)
    monkeypatch.setattr(simulate, "load_data", lambda *_: datasets.load(pictures))
    monkeypatch.setattr(uvicorn.Server, "run", lambda _, sockets: [listening.close() for listening in sockets])
    monkeypatch.setattr(supervisor, "COMMAND", (sys.executable, "-c", WAITING))

    def call(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["rarebox", *words])
        with pytest.raises(SystemExit) as left:
            main.main()
        return int(left.value.code or 0)

    return call


def test_every_command_is_tried() -> None:
    """A new command needs a line in ``COMMANDS``."""
    assert COMMANDS.keys() == typer.main.get_command(options.app).commands.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize("third", first_seeds(3))
@pytest.mark.parametrize(
    ("number_of_state", "state"), [pytest.param(number, one, id=one.__name__) for number, one in enumerate(STATES)]
)
def test_no_command_deletes_an_answer(
    third: int,
    number_of_state: int,
    state: Callable[[Path, ExitStack], None],
    answered: Path,
    pictures: Path,
    photos: Path,
    tmp_path: Path,
    tame: Callable[..., int],
) -> None:
    """Each third of the command lines starts elsewhere in the next state, so that one third of each has all lines."""
    found, grid, tasks = tmp_path / "found.jsonl", tmp_path / "grid.yaml", tmp_path / "tasks.json"
    found.write_text(json.dumps(DETECTIONS) + "\n")
    grid.write_text(f"data: {{tiny: {{data: '{pictures}'}}}}\nmethods: {{a: {{}}}}\nsettings: {{budget: [4]}}\n")
    tasks.write_text("[]")
    for number, (command, line) in enumerate(EACH[(number_of_state + third) % 3 :: 3]):
        project = tmp_path / f"{number}" / "project"
        shutil.copytree(answered, project)
        with ExitStack() as holding:
            state(project, holding)
            before = answers(project)
            assert before
            words = line.format(
                project=project,
                store=project / "labels.sqlite",
                data=pictures,
                photos=photos,
                found=found,
                grid=grid,
                tasks=tasks,
                out=tmp_path / f"{number}" / "out",
            )
            status = tame(command, *words.split())
            after = answers(project)
        assert status in (0, 1, 2), (command, line)
        if isinstance(before, set):
            assert isinstance(after, set), (command, line)
            assert before <= after, (command, line)
        else:
            assert before == after, (command, line)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().err.split())


def test_a_run_in_a_project_is_refused_with_what_is_there(
    answered: Path, pictures: Path, tmp_path: Path, tame: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    project = shutil.copytree(answered, tmp_path / "project")
    assert tame("run", str(project), "--data", str(pictures)) == 2
    text = said(capsys)
    assert f"a project in which people answer (4 answers so far). Continue it with rarebox serve {project}" in text
    with Store(project / "labels.sqlite") as store:
        assert len(store.answered()) == 4


def test_a_project_without_an_answer_is_no_place_for_a_run(
    photos: Path, pictures: Path, tmp_path: Path, tame: Callable[..., int]
) -> None:
    create(tmp_path / "project", photos, ["cat"])
    before = (tmp_path / "project" / "settings.yaml").read_text()
    assert tame("run", str(tmp_path / "project"), "--data", str(pictures)) == 2
    assert (tmp_path / "project" / "settings.yaml").read_text() == before
    assert Project(tmp_path / "project").store.classes() == ("cat",)


def test_a_restored_backup_is_adopted(
    answered: Path,
    photos: Path,
    pictures: Path,
    tmp_path: Path,
    tame: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    project = shutil.copytree(answered, tmp_path / "project")
    before = answers(project)
    restored(project, ExitStack())
    where = ("init", str(project), "--images", str(photos))
    assert tame(*where, "--labels", str(pictures)) == 2
    assert "holds 4 answers. Repeat the command without --labels to adopt it" in said(capsys)
    assert tame(*where, "--classes", "smudge") == 2
    assert "Repeat the command without --classes to adopt it" in said(capsys)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    now = [shutil.move(photo, elsewhere) for photo in sorted(photos.iterdir())]
    try:
        assert tame(*where) == 2
        assert f"photos of the store is in {photos}" in said(capsys)
        assert not (project / "settings.yaml").exists()
        Path(now[0]).rename(photos / Path(now[0]).name)
        assert tame(*where) == 0
        assert "it is not in" in said(capsys)
        (project / "settings.yaml").unlink()
    finally:
        for photo in elsewhere.iterdir():
            shutil.move(photo, photos)
    said(capsys)
    assert tame(*where) == 0
    told = said(capsys)
    assert "the store already has complete labels" in told
    assert "--partial" not in told  # these are answers, not labels that may be doubted
    now = Project(project)
    assert len(now.store.answered()) == 4
    assert now.add_new_images() == 0
    now.store.close()
    assert answers(project) == before


def test_a_run_without_settings_reports_what_it_holds(
    answered: Path, pictures: Path, tmp_path: Path, tame: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    project = shutil.copytree(answered, tmp_path / "project")
    restored(project, ExitStack())
    assert tame("run", str(project), "--data", str(pictures)) == 2
    assert "holds labels.sqlite with 4 answers" in said(capsys)


def test_a_run_that_stopped_before_its_first_answer_may_change_settings(pictures: Path, tmp_path: Path) -> None:
    wrong = tiny.settings(pictures, device="gpu", initial_images=3)
    with pytest.raises(UserError, match="'gpu' is not available"):
        simulate.simulate(tmp_path / "run", wrong)
    assert answers_in(tmp_path / "run" / "labels.sqlite") == 0
    assert len(simulate.simulate(tmp_path / "run", tiny.settings(pictures, budget=[]))) == 1
    with Store(tmp_path / "run" / "labels.sqlite") as store:
        assert len(store.queries(1)) == 4


def test_a_run_that_stopped_after_its_first_answer_does_not(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise UserError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(TorchDetector, "fit", stopped)
        with pytest.raises(UserError, match="stopped"):
            simulate.simulate(tmp_path / "run", tiny.settings(pictures, budget=[]))
    with pytest.raises(UserError, match=r"(?s)other settings.*initial_images: 4 -> 3"):
        simulate.simulate(tmp_path / "run", tiny.settings(pictures, budget=[], initial_images=3))
    assert len(simulate.simulate(tmp_path / "run", tiny.settings(pictures, budget=[]))) == 1


# ------------------------------------------------------------------------------------------- the one function


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "labels.sqlite", classes=["cat", "dog"]) as store:
        store.add_images([ImageRecord(1, "a.jpg", 100, 100)])
        store.open_cycle(1)
        store.ask(1, [Query(1)])
        yield store


def test_a_store_without_an_answer_is_replaced(store: Store, tmp_path: Path) -> None:
    store.close()
    discard_store(tmp_path / "labels.sqlite")
    with Store(tmp_path / "labels.sqlite", classes=["fish"]) as anew:
        assert (anew.classes(), anew.images(), anew.queries()) == (("fish",), {}, [])


def test_a_store_with_an_answer_does_not_withdrawn_or_not(store: Store, tmp_path: Path) -> None:
    answer(store)
    (query,) = store.queries(1)
    store.record([Answer(query.id, np.zeros((0, 4)), np.zeros(0, int), Verdict.WITHDRAWN, "anna")])
    store.close()
    with pytest.raises(UserError, match=r"holds 2 answers and is left unchanged"):
        discard_store(tmp_path / "labels.sqlite")
    assert answers_in(tmp_path / "labels.sqlite") == 2
    assert answers_in(tmp_path / "labels.sqlite", of_people=True) == 2


def test_a_store_that_somebody_has_open_does_not_and_they_can_go_on(store: Store, tmp_path: Path) -> None:
    assert len(store.queries(1)) == 1  # its connection is open
    with pytest.raises(Busy, match="another program has"):
        discard_store(tmp_path / "labels.sqlite")
    answer(store)
    assert answers_in(tmp_path / "labels.sqlite") == 1


def test_a_start_interrupted_at_any_moment_resumes(
    photos: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the store is complete, before the settings exist, and once more."""
    from rarebox.project import create as module

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("_take_in", "write_json", "write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, die)
            with pytest.raises((KeyboardInterrupt, UserError)):
                create(tmp_path / "p", photos, [], pictures)
    with pytest.raises(UserError, match="Repeat the command without --labels"):
        create(tmp_path / "p", photos, [], pictures)
    create(tmp_path / "p", photos)
    assert len(Project(tmp_path / "p").store.labels()) == 14


def test_only_one_function_removes_a_store() -> None:
    """No other code that removes files names the store's file."""
    source = Path(main.__file__).parents[1]
    takers = [file.name for file in source.rglob("*.py") if "DROP TABLE" in file.read_text(encoding="utf-8")]
    assert takers == ["run_folder.py"]
