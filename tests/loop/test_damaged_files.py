"""Each file of a run and of a project, damaged or missing: work continues, or the advice in the message helps."""

import json
import random
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rarebox import config
from rarebox.data import scenes
from rarebox.data.datasets import load
from rarebox.detectors import TorchDetector
from rarebox.errors import UserError
from rarebox.labels.oracle import SimulatedOracle
from rarebox.loop import simulate
from rarebox.loop.metrics import CycleRecord
from rarebox.project import predictions, trainer
from rarebox.project.collect import collect
from rarebox.project.create import create
from rarebox.project.project import Project
from rarebox.report import write_report
from rarebox.web.service import AnnotationService
from tests import tiny
from tests.thinned import thinned


def first_half(content: bytes) -> bytes:
    """The first half, extended to the end of a name in text, so that the length of paths does not matter."""
    half = len(content) // 2
    return content[: max(half, content.find(b":", half) - 1)]


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut short": first_half,
    "cut at a line": lambda content: content[: content.rfind(b"\n", 0, len(content) // 2) + 1],
    "empty": lambda content: b"",
    "garbage": lambda content: random.Random(0).randbytes(max(len(content), 1)),
    "gone": lambda content: None,
}

SHARDS = "cycle_02/candidates/shards.json"

RUN = (
    "settings.yaml",
    "environment.json",
    "problems.json",
    "labels.sqlite",
    "metrics.json",
    "cycle_01/model.json",
    "cycle_01/model.safetensors",
    "cycle_01/shared.json",
    "cycle_01/evaluated.json",
    "cycle_01/tested.parquet",
    "cycle_01/targets.parquet",
    "cycle_02/model.json",
    "cycle_02/model.safetensors",
    "cycle_02/evaluated.json",
    "cycle_02/tested.parquet",
    "cycle_02/targets.parquet",
    SHARDS,
    "cycle_02/candidates/shard_00000_*.parquet",
    "cycle_02/candidates/images_00000_*.parquet",
)

LATER = (
    "environment.json",
    "cycle_02/model.json",
    "cycle_02/model.safetensors",
    "cycle_02/targets.parquet",
    "cycle_02/evaluated.json",
    "cycle_02/tested.parquet",
    "cycle_01/shared.json",
)
"""Files that a project in its second cycle lacks."""

PROJECT = (
    *(name for name in RUN if name not in LATER),
    "predictions/sam.parquet",
    "cycle_02/ranking.parquet",
    "cycle_02/ranking.json",
    "secret",
    "port",
)

CHANGES = {**tiny.CHANGES, "scoring.views": ["flip"], "scoring.shard_size": 3}

FOR_GOOD = ("settings.yaml", "labels.sqlite")
"""Files that cannot be rebuilt."""

READ_ALIKE = tuple(name for name in PROJECT if name in RUN[2:] and name not in (*FOR_GOOD, "metrics.json", SHARDS))
"""Files that a project reads by the code of a run."""


@pytest.fixture(scope="module", autouse=True)
def untrained() -> Any:
    """Nothing here depends on the result of training or on the figures of a report, which are made of what is read."""
    with tiny.small_network(), tiny.without_figures(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(TorchDetector, "fit", lambda *_, **__: 0.0)
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five images more than a run labels first, and four more than a project."""
    return scenes.make(tmp_path_factory.mktemp("data") / "scenes", seed=3, train=9, test=3, size=(96, 96))


def each(names: tuple[str, ...], part: int = 0, alike: Collection[str] = ()) -> list[Any]:
    """Names with kinds of damage: all kinds for the most important files, two for the rest. `make test` does every
    second kind of each file but of those ``alike``; which half it is depends on the file and on ``part``.
    """
    most = (*FOR_GOOD, "metrics.json", "cycle_02/ranking.parquet", "cycle_02/ranking.json")
    every = (*RUN, *PROJECT, *names)
    cases = [
        (name, damage, (every.index(name) + number + part) % 2)
        for name in names
        for number, damage in enumerate(DAMAGES if name in most else ("garbage", "gone"))
        if damage != "cut at a line" or name in FOR_GOOD
    ]
    kept = [name not in alike and not second for name, _, second in cases]
    return thinned([case[:2] for case in cases], lambda number, _: kept[number])


def in_words(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The results of cycles, without times and notes on rebuilt files."""
    return [{name: value for name, value in record.items() if name not in ("seconds", "notes")} for record in records]


def harm(root: Path, name: str, damage: str) -> Path:
    """Damage a file, and keep a copy beside the folder."""
    file = sorted(root.glob(name))[0]
    shutil.copy(file, root.with_name("backup"))
    content = DAMAGES[damage](file.read_bytes())
    for log in root.glob(f"{file.name}-*"):
        log.unlink()
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    return file


def follow(error: UserError, file: Path) -> None:
    """Follow a message's advice about a file."""
    said = str(error)
    assert str(file) in said or file.parent.name in said, said
    if "delete it and repeat" in said:
        (named,) = {Path(path) for path in re.findall(r"(/\S+) is damaged", said)}
        assert named.is_relative_to(file.parents[1])
        named.unlink(missing_ok=True)
    else:
        assert "restore a copy" in said.lower(), said
        shutil.copy(file.parent.with_name("backup"), file)


def with_advice(do: Callable[[], Any], file: Path) -> tuple[Any, int]:
    """Do something, following the advice of errors at most twice. Return the result and the number of errors."""
    for times in range(3):
        try:
            return do(), times
        except UserError as error:
            follow(error, file)
    raise AssertionError("the advice led nowhere")


# ------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def chosen(pictures: Path) -> Any:
    return config.resolve("laptop", None, {**CHANGES, "data": str(pictures)})


@pytest.fixture(scope="module")
def finished(chosen: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    simulate.simulate(out, chosen)
    return out


@pytest.mark.parametrize(("name", "damage"), each(RUN))
def test_a_run_resumes(name: str, damage: str, finished: Path, chosen: Any, tmp_path: Path) -> None:
    """The run was stopped in cycle 3; then a file was damaged."""
    out = shutil.copytree(finished, tmp_path / "run")
    records = json.loads((out / "metrics.json").read_text())
    (out / "metrics.json").write_text(json.dumps(records[:2]))
    shutil.rmtree(out / "cycle_03")
    file = harm(out, name, damage)
    if (name, damage) == ("settings.yaml", "gone"):  # the settings of the run are lost
        with pytest.raises(UserError, match=r"holds no run.*Name a new or empty folder.*It holds labels\.sqlite"):
            simulate.simulate(out, chosen)
        return
    again, _ = with_advice(lambda: simulate.simulate(out, chosen), file)
    assert in_words(again) == in_words(records)
    with_advice(lambda: write_report(out, [out]), file)
    with_advice(lambda: collect(out), file)


@pytest.mark.parametrize(
    ("name", "damage"), each(("shared.json", "targets.parquet", "model.json", "model.safetensors"))
)
def test_a_run_that_shares_a_damaged_model_reports_it(
    name: str, damage: str, finished: Path, chosen: Any, tmp_path: Path
) -> None:
    out = shutil.copytree(finished, tmp_path / "lender")
    harm(out, f"cycle_01/{name}", damage)
    with pytest.raises(UserError, match=r"cycle_01|cycle-1"):
        simulate.simulate(tmp_path / "run", chosen, share=out)
    assert len(simulate.simulate(tmp_path / "run", chosen)) == 3  # skipped, as the message says


# ------------------------------------------------------------------------------------------- a project


def quiet(*_: Any) -> None:
    pass


def oracle_of(pictures: Path, now: Project) -> SimulatedOracle:
    truth = load(pictures).train
    by_name = {Path(image.path).name: truth.truth[image.id] for image in truth.images}
    return SimulatedOracle({i: by_name[Path(image.path).name] for i, image in now.store.images().items()}, iou=0.1)


@pytest.fixture(scope="module")
def asking(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose second cycle is open."""
    folder = tmp_path_factory.mktemp("asking")
    (folder / "photos").mkdir()
    for image in load(pictures).train.images:
        shutil.copy(image.path, folder / "photos")
    changes = {**CHANGES, "initial_images": 5, "budget": [6], "budget_unit": "reviews", "people.overlap": 0}
    create(folder / "project", folder / "photos", load(pictures).classes, changes=changes)
    now = Project(folder / "project")
    boxes = predictions.as_candidates(np.array([1]), np.array([[10, 10, 40, 40]]), np.array([0]), np.array([0.5]))
    now.add_predictions("sam", predictions.Matched(boxes, ()))
    (now.folder.root / "secret").write_text("x" * 64)
    (now.folder.root / "port").write_text("8765")
    trainer.advance(now, quiet)
    oracle = oracle_of(pictures, now)
    now.store.record([oracle.answer(query) for query in now.store.unanswered(1)])
    while trainer.advance(now, quiet):
        pass
    now.store.close()
    return folder / "project"


def questions(root: Path) -> list[tuple[int, list[float]]]:
    """Serve, do the next training, and ask. Return the questions."""
    now = Project(root)
    try:
        service = AnnotationService(now, train=False)
        while trainer.advance(now, quiet):
            pass
        service._hear("questions")
        service.do(lambda: None).result(60)
        asked = service.answer("anna", "anna", [], 4).result(60)[1]
        service.close()
        return [(query.image_id, query.box.tolist()) for query in asked if query.box is not None]
    finally:
        now.store.close()


def lessons(root: Path, pictures: Path) -> list[CycleRecord]:
    """Answer the questions of cycle 2, and train."""
    now = Project(root)
    try:
        oracle = oracle_of(pictures, now)
        now.store.record([oracle.answer(query) for query in now.store.unanswered(2)])
        while trainer.advance(now, quiet, train=len(now.folder.records()) < 2):
            pass
        return now.folder.records()
    finally:
        now.store.close()


@pytest.fixture(scope="module")
def wanted(asking: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    root = shutil.copytree(asking, tmp_path_factory.mktemp("wanted") / "project")
    return questions(root), in_words(lessons(root, pictures))


@pytest.mark.parametrize(("name", "damage"), each(PROJECT, 1, READ_ALIKE))
def test_a_project_resumes(
    name: str, damage: str, asking: Path, wanted: tuple[Any, Any], pictures: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(asking, tmp_path / "project")
    file = harm(root, name, damage)
    if (name, damage) == ("settings.yaml", "gone"):
        with pytest.raises(UserError, match="Start one: rarebox init"):
            questions(root)
        create(root, asking.with_name("photos"), changes={**CHANGES, "budget": [6], "budget_unit": "reviews"})
        assert questions(root) == wanted[0]
        return
    asked, times = with_advice(lambda: questions(root), file)
    assert asked == wanted[0]
    if name not in (*FOR_GOOD, "predictions/sam.parquet", "metrics.json"):
        assert not times  # it is rebuilt without a message
    records, _ = with_advice(lambda: lessons(root, pictures), file)
    assert in_words(records) == wanted[1]
