"""Training by several processes equals training by one. If one process ends, all end, and the command resumes."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from rarebox import detectors
from rarebox.cli import main
from rarebox.data.pictures import which_are_tall
from rarebox.detectors import distributed
from rarebox.detectors.training import Walk
from rarebox.loop.run_folder import RunFolder
from tests import crew, tiny
from tests.crew import Case

pytestmark = pytest.mark.skipif(os.name == "nt", reason="processes are forked and killed as Unix does it")

CASES = (
    Case("retinanet"),
    Case("retinanet", "batch", batch_size=3),
    Case("retinanet", "paper", batch_size=2, images=1),
    Case("faster_rcnn"),
    Case("faster_rcnn", "paper", batch_size=1),
)
"""A batch of 4 on three processes gives shares of 2, 1 and 1; of 3, one image each; of 2 and 1, idle processes. (Faster
R-CNN's own normaliser is that of the batch.)"""

PROCESSES = 3


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases, fitted by three processes."""
    out = tmp_path_factory.mktemp("fitted")
    assert crew.together(PROCESSES, crew.fit_cases, out, CASES) == [0] * PROCESSES
    return out


def parts(out: Path, number: int) -> list[crew.Terms]:
    """What each process computed in a fit; nothing if it was idle."""
    files = [out / f"{number}_{rank}.json" for rank in range(PROCESSES)]
    return [terms for file in files if (terms := json.loads(file.read_text(encoding="utf-8")))]


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: "-".join(map(str, CASES[number])))
def test_several_processes_have_the_losses_and_weights_of_one(fitted: Path, number: int) -> None:
    case = CASES[number]
    shares = parts(fitted, number)
    assert len(shares) == min(PROCESSES, case.batch_size)
    with crew.in_double_precision(), crew.terms_noted() as wanted:
        alone = crew.small(case)
        before = {name: weight.clone() for name, weight in alone.network.state_dict().items()}
        alone.fit(*crew.to_learn(case.images), seed=7)
    assert all(len(values) == crew.TRAINING["steps"] for values in wanted.values())
    for name, values in wanted.items():
        np.testing.assert_allclose(np.mean([share[name] for share in shares], axis=0), values, rtol=1e-9, atol=1e-12)
    for rank in range(len(shares)):
        weights = torch.load(fitted / f"{number}_{rank}.pt", weights_only=True)
        for name, weight in alone.network.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-7, atol=1e-9)
    assert any((weight - before[name]).abs().max() > 1e-4 for name, weight in alone.network.state_dict().items())


def test_each_image_of_a_batch_is_read_by_one_process(fitted: Path) -> None:
    for number, case in enumerate(CASES):
        walk = Walk(7, which_are_tall(crew.to_learn(case.images)[0]), case.batch_size)
        batches = [walk(step) for step in range(crew.TRAINING["steps"])]
        shares = min(PROCESSES, case.batch_size)
        for rank in range(PROCESSES):
            file = fitted / f"{number}_{rank}.read"
            read = sorted(map(int, file.read_text().split())) if file.exists() else []
            assert read == sorted(i for batch in batches for i in (batch[rank::shares] if rank < shares else []))


# ------------------------------------------------------------------------------------------- processes that are lost


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_data(tmp_path_factory.mktemp("data"))


def arguments(out: Path, data: Path, **changes: Any) -> list[str]:
    """A run of one cycle, whose fit is saved after each step."""
    given = {"budget": [], "training__steps": 4, "training__checkpoint_seconds": 0, **changes}
    return [str(out), "--data", str(data), "--json", *tiny.as_options(**given)]


def outcome(out: Path) -> tuple[Any, bytes]:
    """Everything that a run decided, and its model."""
    records = [{k: v for k, v in record.items() if k != "seconds"} for record in RunFolder(out).records()]
    return records, (out / "cycle_01/model.safetensors").read_bytes()


Run = Callable[..., tuple[list[int | None], str]]


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Run:
    """Start a run by two processes, one of which meets an event. Return their exit codes and messages."""

    def start(end: Callable[[], None] | None = None, rank: int = 0, step: int = 3, **changes: Any) -> Any:
        said = tmp_path / "said"
        said.unlink(missing_ok=True)
        given = arguments(tmp_path / "run", data, **changes)
        codes = crew.together(2, crew.run_command, given, said, end, rank, step)
        lines = said.read_text(encoding="utf-8").splitlines()
        return codes, "\n".join(line for line in lines if not line.startswith("{"))

    return start


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, bytes]:
    """The outcome of an undisturbed run."""
    out = tmp_path_factory.mktemp("whole")
    codes = crew.together(2, crew.run_command, arguments(out / "run", data), out / "said", None, 0, 0)
    assert codes == [0, 0], (out / "said").read_text(encoding="utf-8")
    return outcome(out / "run")


def progress_lines(said: Path) -> list[str]:
    return [line for line in said.read_text(encoding="utf-8").splitlines() if line.startswith('{"event": "progress"')]


@pytest.mark.parametrize("rank", [0, 1])
def test_when_a_process_is_killed_the_other_ends_and_the_command_resumes(
    rank: int, run: Run, whole: tuple[Any, bytes], tmp_path: Path
) -> None:
    codes, said = run(crew.die, rank)
    assert codes[rank] == -signal.SIGKILL
    assert codes[1 - rank] == 2
    assert said.startswith("rarebox: another process of this training has ended")
    assert said.count("\n") == 0
    state = torch.load(tmp_path / "run/cycle_01/fit.checkpoint", weights_only=True)
    assert state["step"] == 2
    codes, said = run()
    assert codes == [0, 0], said
    assert outcome(tmp_path / "run") == whole


def test_torchrun_starts_lost_processes_again(whole: tuple[Any, bytes], data: Path, tmp_path: Path) -> None:
    torchrun = LaunchConfig(
        1,
        1,
        2,
        run_id="tests",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1,
        start_method="forkserver",
    )
    said = tmp_path / "said"
    elastic_launch(torchrun, crew.run_command)(arguments(tmp_path / "run", data), said, crew.die, 1, 3)
    assert outcome(tmp_path / "run") == whole
    steps = [line["done"] for line in map(json.loads, progress_lines(said)) if line["stage"].endswith("fit")]
    assert steps == sorted(set(steps))  # it resumed and did not start over


@pytest.mark.parametrize(
    ("end", "rank", "code", "message"),
    [
        (crew.be_interrupted, 0, 130, "rarebox: stopped. Repeat the command to resume"),
        (crew.meet_a_mistake, 0, 2, "rarebox: this GPU is too small"),
        (crew.meet_a_mistake, 1, 2, "rarebox: this GPU is too small"),
    ],
)
def test_an_error_in_one_process_ends_all_and_is_reported_once(
    end: Callable[[], None], rank: int, code: int, message: str, run: Run
) -> None:
    codes, said = run(end, rank)
    assert codes[rank] == code
    assert codes[1 - rank] == 2
    assert said == message


def test_a_loss_that_is_not_finite_is_reported_once_with_the_checkpoint(run: Run) -> None:
    codes, said = run(training__lr=1e30)
    assert codes == [2, 2]
    assert said.startswith("rarebox: the loss became")
    assert "fit.checkpoint" in said
    assert said.count("\n") == 0


def test_a_mistake_in_the_command_is_reported_by_the_first_process_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others wait for it, and torchrun ends them."""
    came: list[Any] = []
    monkeypatch.setattr(distributed, "follow", came.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("sys.argv", ["rarebox", "run", "out", "--set", "selection.strategy=coin"])
    for rank, status in (("0", 2), ("1", None)):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            main.main()
        assert ended.value.code == status
        assert ("coin" in capsys.readouterr().err) == (rank == "0")
    assert came == [detectors.help_train]


def test_more_processes_than_images_in_a_batch_are_noted(run: Run) -> None:
    codes, said = run(training__batch_size=1, training__steps=1)
    assert codes == [0, 0]
    assert "1 of the processes are idle, because training.batch_size is 1" in said
