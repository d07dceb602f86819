"""Work on Ray equals local work byte for byte, even if workers and nodes are lost."""

import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from rarebox.core.files import read_json
from rarebox.data import datasets
from rarebox.errors import UserError
from rarebox.grid import runner, spec
from rarebox.labels.store import Store
from rarebox.loop import cluster, scoring, shards, simulate
from rarebox.loop.cycle import rank_pool
from rarebox.loop.run import Engine, EngineProgress, Run
from rarebox.loop.run_folder import RunFolder
from rarebox.types import Candidates, ImageRecord, ImageScores
from tests.tiny import CHANGES, make_data, settings

SHARDS = 10


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local run in which every image of the pool is a shard."""
    out = tmp_path_factory.mktemp("runs") / "run"
    simulate.simulate(out, settings(pictures, budget=[6], scoring__shard_size=1))
    return out


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes of one core each, of which this process is on the first."""
    pytest.importorskip("ray", reason='Ray is not installed: pip install "rarebox[cluster]"')
    os.environ.update(cluster.ENVIRONMENT)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def joined(nodes: Any) -> Iterator[cluster.Cluster]:
    with cluster.connected("ray", nodes.address) as found:
        assert found
        yield found


def rank_again(finished: Path, out: Path, engine: Engine) -> None:
    """Score and rank the pool of cycle 2 with an engine: files and ranking equal those of the finished run."""
    shutil.copytree(finished, out)
    shutil.rmtree(out / "cycle_02")
    assert rank(out, engine) == rank(finished, no_engine)
    theirs, ours = (folder / "cycle_02" / "candidates" for folder in (finished, out))
    names = sorted(file.name for file in theirs.glob("*.parquet"))
    assert len(names) == 2 * SHARDS
    assert names == sorted(file.name for file in ours.glob("*.parquet"))
    assert all((theirs / name).read_bytes() == (ours / name).read_bytes() for name in names)


def rank(out: Path, engine: Engine) -> list[Any]:
    """The ranking of cycle 2: image, box and utility, in order."""
    place = RunFolder(out)
    chosen = place.read_settings()
    with closing(Store(place.store)) as store:
        run = simulate.open_run(place, chosen, datasets.load_data(chosen.data), store, lambda *_: None, engine)
        run.cycle = 2
        ranked = rank_pool(run, 2)
        order, found = [], ranked.queue
        while item := found(len(order)):
            row, utility = item
            order.append((found.candidates.image_id[row], found.candidates.boxes[row].tobytes(), utility))
    assert order
    return order


def no_engine(*_: Any) -> Any:
    raise AssertionError("every shard is there already")


class Watched:
    """An engine whose work is observed: ``after`` is called when the first shards have arrived."""

    def __init__(self, joined: cluster.Cluster, after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.joined, self.after, self.done = joined, after, list[int]()
        self.scoring: Any = None
        honest = cluster.Dispatcher

        def remember(*args: Any) -> cluster.Dispatcher:
            self.scoring = honest(*args)
            return self.scoring

        monkeypatch.setattr(cluster, "Dispatcher", remember)

    def __call__(
        self, run: Run, cycle: int, shards: Sequence[Sequence[ImageRecord]], report: EngineProgress
    ) -> Iterator[tuple[int, Candidates, ImageScores]]:
        for result in self.joined.score(run, cycle, shards, report):
            self.done.append(result[0])
            yield result
            if len(self.done) == 2:
                self.after(self)


def _command(process: psutil.Process) -> str:
    """What a process runs; nothing for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def wait_for_two_workers(watched: Watched) -> None:
    # The pool is so small that one worker could finish before the other starts.
    until = time.monotonic() + 60
    while len(watched.scoring.starting) and time.monotonic() < until:
        ready, _ = watched.joined.ray.wait([*watched.scoring.starting], timeout=1)
        for ref in ready:
            watched.scoring._started(ref)
    assert len(watched.scoring.busy) == 2


# Run first: once this process has joined a cluster, it stays in that one.
@pytest.mark.parametrize(
    ("engine", "address", "said"),
    [
        ("rey", None, "did you mean 'ray'"),
        ("local", "auto", "Use it with --engine ray"),
        ("ray", "127.0.0.1:1", "127.0.0.1:1: nothing answers"),
        ("ray", "127.0.0.1:here", "127.0.0.1:here: give HOST:PORT"),
        ("ray", "ray://127.0.0.1:10001", "Run it there with --address auto"),
        ("ray", "nonsense", "nonsense: give HOST:PORT"),
    ],
)
def test_an_unavailable_engine_is_refused(engine: str, address: str | None, said: str) -> None:
    if engine == "ray":
        pytest.importorskip("ray", reason='Ray is not installed: pip install "rarebox[cluster]"')
    with pytest.raises(UserError, match=said), cluster.connected(engine, address):
        pass


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_its_shard_only(
    finished: Path, joined: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(watched: Watched) -> None:
        wait_for_two_workers(watched)
        ours = psutil.Process().children(recursive=True)  # others may use Ray on this machine, too
        workers = [process for process in ours if "ray::Scorer" in _command(process)]
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGKILL)

    watched = Watched(joined, kill, monkeypatch)
    rank_again(finished, tmp_path / "run", watched)
    assert sorted(watched.done) == [*range(SHARDS)]
    assert watched.scoring.lost == 1
    assert sum(watched.scoring.tries) == SHARDS + 1


def test_a_shard_that_fails_by_its_own_error_reports_why_and_finished_shards_are_kept(
    finished: Path, joined: cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.Cluster, "room", lambda *_: 1)  # a worker takes seconds to start, and one is enough
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "cycle_02")
    chosen = RunFolder(out).read_settings()
    with closing(Store(out / "labels.sqlite")) as store:
        run = simulate.open_run(
            RunFolder(out), chosen, datasets.load_data(chosen.data), store, lambda *_: None, joined.score
        )
        labels = store.labels(up_to_cycle=1)
        images = [image for image in run.pool.records if image.id not in labels]
        broken = Path(images[-1].path)
        whole = broken.read_bytes()
        broken.write_bytes(whole[:100])
        try:
            with pytest.raises(UserError, match=rf"cannot read the image .*{broken.name}"):
                shards.make_shards(run, 2, images)
        finally:
            broken.write_bytes(whole)
        there = {file: file.stat().st_mtime_ns for file in (out / "cycle_02" / "candidates").glob("shard_*")}
        assert there
        run.engine = scoring.score_here
        shards.make_shards(run, 2, images)
    assert all(file.stat().st_mtime_ns == then for file, then in there.items())
    assert len(list((out / "cycle_02" / "candidates").glob("shard_*"))) == SHARDS


@pytest.mark.slow
def test_runs_of_a_grid_are_tasks_with_the_same_results(
    finished: Path, joined: cluster.Cluster, pictures: Path, tmp_path: Path
) -> None:
    grid = tmp_path / "grid.yaml"
    common = {**CHANGES, "scoring.shard_size": 1}
    del common["budget"], common["detector.name"], common["pseudo.method"]
    grid.write_text(
        f"data: [{pictures}]\nsettings: {common}\ndetector: [retinanet]\nseeds: 1\nbudgets: [[6]]\n"
        "methods: {ours: {pseudo.method: soft}, bad: {detector.weights: gone.safetensors}}\n"
    )
    events: list[dict[str, Any]] = []
    runs = spec.read(grid)
    work = runner.Bench(tmp_path / "out", runs, runs, tell=events.append, cluster=joined)
    failed = work.work(grid)
    assert [run.method for run in failed] == ["bad"]
    (good,) = [run for run in runs if run.method == "ours"]
    ours, here = work.records(good), RunFolder(finished).records()
    assert [timeless(record) for record in ours] == [timeless(record) for record in here]
    assert {"begin", "cycle", "done", "failed"} <= {event["event"] for event in events}
    assert "gone.safetensors" in read_json(work.place(failed[0]).failed, dict)["reason"]


def timeless(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("seconds", "notes")}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_node_removed_in_the_middle_changes_nothing(
    finished: Path, joined: cluster.Cluster, nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remove(watched: Watched) -> None:
        wait_for_two_workers(watched)
        (second,) = [node for node in nodes.list_all_nodes() if node != nodes.head_node]
        nodes.remove_node(second, allow_graceful=False)

    watched = Watched(joined, remove, monkeypatch)
    rank_again(finished, tmp_path / "run", watched)
    assert sorted(watched.done) == [*range(SHARDS)]
    assert watched.scoring.lost <= 1  # its worker may just have returned its shard


def test_an_engine_that_is_not_installed_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "rarebox\[cluster\]"'):
        cluster.check("ray")


def test_a_token_of_ray_is_named_where_it_may_be_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)

    class Refusing:
        def init(self, **_: Any) -> None:
            raise ConnectionError("Failed to connect")

    with pytest.raises(UserError) as without:
        cluster._connect(Refusing(), "127.0.0.1:6379")
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    with pytest.raises(UserError, match="export RAY_AUTH_MODE=token"):
        cluster._connect(Refusing(), "127.0.0.1:6379")
    assert "RAY_AUTH_MODE" not in str(without.value)
