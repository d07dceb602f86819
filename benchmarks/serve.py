"""Waiting times for the next question and for saving an answer, at 1, 10 and 50 annotators.

    python -m benchmarks.serve [--label-studio VENV] [--annotators 1,10,50] [--rounds 250] >> results/serve.jsonl
    python -m benchmarks.serve --scenario few,many,class [--source OTHER_TREE] [--times 3] >> results/serve.jsonl

Each annotator keeps one connection open and asks again as soon as the reply arrives. A measurement ends after
``--rounds`` rounds of all annotators together, on a fresh project of 500 images with one predicted box each. With
rarebox a round is one ``POST /api/answers`` as the page sends it: it saves and returns the next questions. With Label
Studio it is two requests that its own page sends: ``next_task``, then the annotation with the predicted box. If VENV
names an environment with ``label-studio``, both are measured in turn in the same run. The commit time of the disk is
measured each time.

Options for rarebox only: ``--pages`` opens the event stream that every page listens to. ``--images``, ``--boxes`` (per
image, a square number), ``--answered`` and ``--open`` make the project larger. ``--classes`` is how often somebody
adds, renames and merges a class at the same time. No round starts after ``--seconds``. ``--think`` is how many seconds
an annotator looks at a question before answering; without it the server is always saturated, and waiting times say how
many answers it saves per second rather than how long a person waits.

A scenario is a set of these options (``SCENARIOS``). With ``--source``, another source tree of rarebox (such as a
``git worktree`` of an earlier commit), each measurement runs in turn with that tree and with this one, ``--times``
times, each in separate processes. The last line of a scenario has the medians over the runs and their ratios.
"""

import argparse
import asyncio
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import numpy as np
import psutil
from tests.serving import Served, make_project

from rarebox.project.project import Project
from rarebox.types import Answer, ImageRecord, Query, Verdict

SCENARIOS: dict[str, dict[str, Any]] = {
    "few": {"annotators": "50", "images": 60, "boxes": 100, "rounds": 2000, "seconds": 30},
    "many": {"annotators": "50", "images": 5000, "boxes": 9, "rounds": 2000, "seconds": 30},
    "class": {
        "annotators": "10",
        "images": 5000,
        "boxes": 9,
        "answered": 200_000,
        "classes": 1,
        "seconds": 60,
        "rounds": 10**6,
    },
}
"""Almost as many people as photos; many photos; a class that changes while there are many answers."""

VERIFICATION = 1.6
"""Seconds that a fast annotator takes to accept or reject a box (Papadopoulos et al., CVPR 2016)."""

SCENARIOS |= {f"{name}-people": {**SCENARIOS[name], "think": VERIFICATION} for name in ("few", "many")}

CLASSES = ("fish", "ray", "shark")
TASKS, PATIENCE = 500, 120.0
Milliseconds = list[float]


@dataclass
class Tally:
    """Times, errors and assignments of all annotators in one measurement."""

    next: Milliseconds = field(default_factory=list)
    save: Milliseconds = field(default_factory=list)
    classes: Milliseconds = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    waits: int = 0
    given: Counter[tuple[int, str]] = field(default_factory=Counter)
    answered: Counter[tuple[int, str]] = field(default_factory=Counter)

    async def timed(self, into: Milliseconds, request: Awaitable[httpx.Response]) -> Any:
        """Return the reply of a request and record its time; if it fails, record the error and return None."""
        start = time.perf_counter()
        try:
            reply = await request
            taken = (time.perf_counter() - start) * 1000
            if reply.is_success:
                into.append(taken)
                return reply.json()
            self.errors.append(f"status {reply.status_code}")
        except httpx.HTTPError as error:
            self.errors.append(type(error).__name__)
        return None

    def summary(self) -> dict[str, Any]:
        people_of, authors_of = Counter(task for task, _ in self.given), Counter(task for task, _ in self.answered)
        return {
            "next_ms": summary(self.next),
            "save_ms": summary(self.save),
            "classes_ms": summary(self.classes),
            "without_question": self.waits,
            "errors": dict(Counter(self.errors)),
            "questions_given": len(people_of),
            "given_to_several": sum(n > 1 for n in people_of.values()),
            "questions_answered": len(authors_of),
            "answered_by_several": sum(n > 1 for n in authors_of.values()),
        }


def summary(times: Milliseconds) -> dict[str, float]:
    """Median, 95th percentile and maximum."""
    if not times:
        return {}
    median, p95 = np.percentile(times, [50, 95]).tolist()
    return {"n": len(times), "median": round(median, 1), "p95": round(p95, 1), "max": round(max(times), 1)}


def disk(folder: Path, times: int = 40) -> dict[str, float]:
    """Medians in milliseconds: an fsync of a page, and a commit of one row in SQLite, without and with a WAL."""

    def median(work: Callable[[], object]) -> float:
        taken = []
        for _ in range(times):
            start = time.perf_counter()
            work()
            taken.append((time.perf_counter() - start) * 1000)
        return round(float(np.median(taken)), 2)

    found = {}
    with (folder / "page").open("wb") as file:
        found["fsync_ms"] = median(lambda: (file.write(b"x" * 4096), file.flush(), os.fsync(file.fileno())))
    for mode in ("delete", "wal"):
        database = folder / f"{mode}.sqlite"
        connection = sqlite3.connect(database, isolation_level=None)
        connection.executescript(f"PRAGMA journal_mode={mode}; PRAGMA synchronous=FULL; CREATE TABLE t (x)")
        found[f"commit_{mode}_ms"] = median(lambda: connection.execute("INSERT INTO t VALUES (1)"))  # noqa: B023
        connection.close()
        database.unlink()
    return found


async def annotate(
    people: Sequence[str],
    rounds: int,
    work: Callable[[str, Iterator[int]], Awaitable[None]],
    seconds: float = 3600,
    beside: Callable[[], Awaitable[None]] | None = None,
) -> float:
    """Run all annotators until the rounds or the time is used up, or until ``beside`` ends. Returns the seconds."""
    start, over = time.perf_counter(), False
    ticket = takewhile(lambda _: not over and time.perf_counter() < start + seconds, range(rounds))

    async def until_then() -> None:
        nonlocal over
        if beside:
            await beside()
            over = True

    await asyncio.gather(*(work(name, ticket) for name in people), until_then())
    return time.perf_counter() - start


def connection(url: str, **more: Any) -> httpx.AsyncClient:
    """One connection that stays open. (``verify`` is off, because reading certificates takes time.)"""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits, verify=False, **more)


def cpu_seconds(process: psutil.Process) -> float:
    """Processor seconds of a process and its children."""
    return sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True)))


# ------------------------------------------------------------------------------------------- ours


def project(root: Path, images: int, grid: int, answered: int, opened: int) -> None:
    """Create a project of the given size, in which some questions are open or answered."""
    records = [ImageRecord(i, f"photo{i}.jpg", 1024, 768) for i in range(1, images + 1)]
    made = make_project(root, records, CLASSES, grid)
    if answered or opened:
        fill(made, answered, opened)
    made.store.close()


def fill(made: Project, answered: int, opened: int) -> None:
    """Ask questions from the top of the ranking and answer the first of them.

    At most half of the ranking is asked about. Further answers belong to the previous cycle and to the same boxes.
    """
    found = made.read_ranking(2).candidates
    before = max(answered + opened - len(found) // 2, 0)
    for start in range(0, before, 5000):
        rows = np.arange(start, min(start + 5000, before)) % (len(found) // 2)
        asked = [Query(int(found.image_id[r]), found.boxes[r], int(found.labels[r])) for r in rows]
        made.store.record(
            [
                Answer(q.id, found.boxes[[r]], found.labels[[r]], Verdict.OBJECT, f"person {r % 5}", 1500)
                for q, r in zip(made.store.ask(1, asked), rows, strict=True)
            ]
        )
    answered -= min(before, answered)
    queries = made.store.ask(
        2,
        [
            Query(
                int(found.image_id[row]),
                found.boxes[row],
                int(found.labels[row]),
                1.0,
                {
                    "rank": float(row),
                    "cycle": 2.0,
                    "score": float(found.scores[row]),
                    "uncertainty": float(found.uncertainty[row]),
                },
            )
            for row in range(answered + opened)
        ],
    )
    made.store.record(
        [
            Answer(q.id, q.box[None], np.array([q.guess]), Verdict.OBJECT, f"person {place % 5}", 1500)
            for place, q in enumerate(queries[:answered])
            if q.box is not None
        ]
    )


async def ours(
    folder: Path,
    annotators: int,
    rounds: int,
    size: dict[str, int],
    pages: bool,
    seconds: float,
    classes: int,
    think: float,
) -> dict[str, Any]:
    root = folder / f"ours-{annotators}-{secrets.token_hex(3)}"
    project(root, **size)
    tally, people = Tally(), [f"person {i}" for i in range(annotators)]
    with Served(root) as server:
        cookies = server.cookies(people)
        process = psutil.Process(server.process.pid)
        before = cpu_seconds(process)

        async def work(name: str, ticket: Iterator[int]) -> None:
            async with connection(server.url, cookies=cookies[name]) as http, listening(server, cookies[name], pages):
                body: dict[str, Any] = {"client": "tab", "want": 4}
                await asyncio.sleep(think * people.index(name) / annotators)  # they do not start at the same moment
                reply = await tally.timed(tally.next, http.post("/api/next", json=body))
                while next(ticket, None) is not None:
                    if not reply or not reply["queries"]:
                        tally.waits += 1
                        await asyncio.sleep(0.1)
                        reply = await tally.timed(tally.next, http.post("/api/next", json=body))
                        continue
                    query = reply["queries"][0]
                    await asyncio.sleep(think)
                    tally.given.update((one["id"], name) for one in reply["queries"])
                    item = {
                        "key": str(uuid4()),
                        "query": query["id"],
                        "verdict": "object",
                        "boxes": [query["box"]],
                        "labels": [query["guess"]],
                        "milliseconds": 1000,
                    }
                    reply = await tally.timed(tally.save, http.post("/api/answers", json={**body, "answers": [item]}))
                    if reply and reply["results"][0]["status"] == "saved":
                        tally.answered[query["id"], name] += 1
                    elif reply:
                        tally.errors.append(reply["results"][0]["status"])

        async def change_classes() -> None:
            async with connection(server.url, cookies=cookies[people[0]]) as http:
                for turn in range(classes):
                    new = len(CLASSES) + turn
                    for change in (
                        {"add": f"new {turn}"},
                        {"rename": {"label": new, "name": f"renamed {turn}"}},
                        {"merge": {"label": new, "into": 0}},
                    ):
                        await asyncio.sleep(1)
                        await tally.timed(tally.classes, http.post("/api/classes", json=change))
                await asyncio.sleep(1)

        seconds = await annotate(people, rounds, work, seconds, change_classes if classes else None)
        used = cpu_seconds(process) - before
        memory = process.memory_info().rss / 2**20
    shutil.rmtree(root)
    return {
        **tally.summary(),
        "answers_per_second": round(sum(tally.answered.values()) / seconds, 1),
        "cpu_ms_per_answer": round(1000 * used / max(sum(tally.answered.values()), 1), 1),
        "server_mib": round(memory),
    }


@asynccontextmanager
async def listening(server: Served, cookies: httpx.Cookies, wanted: bool) -> AsyncIterator[None]:
    """Read and discard the event stream that an open page listens to."""

    async def listen() -> None:
        async with connection(server.url, cookies=cookies) as http, http.stream("GET", "/api/events") as stream:
            async for _ in stream.aiter_bytes():
                pass

    task = asyncio.create_task(listen()) if wanted else None
    try:
        yield
    finally:
        if task:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


# ------------------------------------------------------------------------------------------- Label Studio

LABELS = """<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">
<Label value="fish"/><Label value="ray"/><Label value="shark"/></RectangleLabels></View>"""
PREDICTED = [
    {
        "id": "box1",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 1024,
        "original_height": 768,
        "image_rotation": 0,
        "value": {"x": 5, "y": 5, "width": 80, "height": 80, "rotation": 0, "rectanglelabels": ["fish"]},
    }
]
MAKE_USERS = """
from users.models import User
from organizations.models import Organization
from rest_framework.authtoken.models import Token
organization = Organization.objects.first()
for i in range(1, {people}):
    user, _ = User.objects.get_or_create(email=f"person{{i}}@example.com", username=f"person{{i}}")
    user.active_organization = organization
    user.save()
    organization.add_user(user)
    Token.objects.filter(user=user).delete()
    Token.objects.create(user=user, key=f"{{i:040d}}")

"""


def token_of(name: str) -> dict[str, str]:
    """The header that authenticates a person. The first person creates the projects."""
    return {"Authorization": f"Token {int(name.split()[-1]):040d}"}


@contextmanager
def label_studio(environment: Path, folder: Path, people: int) -> Iterator[tuple[str, psutil.Process]]:
    """Run Label Studio as its own command starts it (SQLite by default), with ``people`` users."""
    port, data = 18123, folder / "label-studio"
    data.mkdir()
    quiet = {
        **os.environ,
        "COLLECT_ANALYTICS": "0",
        "LATEST_VERSION_CHECK": "0",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "HOME": str(data),
    }
    program = str(environment / "bin" / "label-studio")
    shared = ["--data-dir", str(data)]
    start = [
        program,
        "start",
        "--no-browser",
        *shared,
        "--internal-host",
        "127.0.0.1",
        "-p",
        str(port),
        "--username",
        "person0@example.com",
        "--password",
        "secret-0",
        "--user-token",
        f"{0:040d}",
        "--enable-legacy-api-token",
    ]
    with (folder / "label-studio.log").open("w") as log:
        process = subprocess.Popen(start, stdout=log, stderr=log, env=quiet, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with suppress(httpx.TransportError):
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                time.sleep(0.5)
            users = MAKE_USERS.format(people=people)
            subprocess.run(
                [program, "shell", *shared], input=users, text=True, check=True, env=quiet, stdout=log, stderr=log
            )
            yield url, psutil.Process(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


async def theirs(url: str, process: psutil.Process, annotators: int, rounds: int) -> dict[str, Any]:
    tally, people = Tally(), [f"person {i}" for i in range(annotators)]
    async with connection(url, headers=token_of("person 0")) as http:
        made = await http.post("/api/projects", json={"title": f"{annotators} annotators", "label_config": LABELS})
        made.raise_for_status()
        number = made.json()["id"]
        tasks = [
            {"data": {"image": f"/photo{i}.jpg"}, "predictions": [{"model_version": "one", "result": PREDICTED}]}
            for i in range(TASKS)
        ]
        (await http.post(f"/api/projects/{number}/import", json=tasks)).raise_for_status()

    async def work(name: str, ticket: Iterator[int]) -> None:
        async with connection(url, headers=token_of(name)) as http:
            while next(ticket, None) is not None:
                asking = http.post("/api/dm/actions", params={"id": "next_task", "project": number}, json={})
                if (task := await tally.timed(tally.next, asking)) is None:
                    continue
                tally.given[task["id"], name] += 1
                answer = {"result": PREDICTED, "lead_time": 1.0, "was_cancelled": False}
                saving = http.post(f"/api/tasks/{task['id']}/annotations", params={"project": number}, json=answer)
                if await tally.timed(tally.save, saving):
                    tally.answered[task["id"], name] += 1

    before = cpu_seconds(process)
    seconds = await annotate(people, rounds, work)
    used, done = cpu_seconds(process) - before, sum(tally.answered.values())
    return {
        **tally.summary(),
        "answers_per_second": round(done / seconds, 1),
        "cpu_ms_per_answer": round(1000 * used / max(done, 1), 1),
        "server_mib": round(process.memory_info().rss / 2**20),
    }


# ------------------------------------------------------------------------------------------- the run


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--label-studio", type=Path)
    options.add_argument("--annotators", default="1,10,50")
    options.add_argument("--rounds", type=int, default=250)
    options.add_argument("--pages", action="store_true")
    options.add_argument("--images", type=int, default=TASKS)
    options.add_argument("--boxes", type=int, default=1)
    options.add_argument("--answered", type=int, default=0)
    options.add_argument("--open", type=int, default=0)
    options.add_argument("--classes", type=int, default=0)
    options.add_argument("--seconds", type=float, default=3600)
    options.add_argument("--think", type=float, default=0.0)
    options.add_argument("--scenario", default="", help=f"any of {', '.join(SCENARIOS)}, separated by commas")
    options.add_argument("--source", type=Path, help="another source tree, for comparison")
    options.add_argument("--times", type=int, default=1)
    options.add_argument("--folder", type=Path, help="working folder, on the disk to measure")
    given = options.parse_args()
    names = [name for name in given.scenario.split(",") if name]
    if given.source or len(names) > 1:
        for name in names or [""]:
            compare(name, given, options)
        return
    if names:
        options.set_defaults(**SCENARIOS[names[0]])
        given = options.parse_args()
    places = {str(given.label_studio): "VENV", str(given.folder): "FOLDER"}
    command = " ".join(["python", "-m", "benchmarks.serve", *(places.get(part, part) for part in sys.argv[1:])])
    numbers = [int(number) for number in given.annotators.split(",")]
    size = {"images": given.images, "grid": round(given.boxes**0.5), "answered": given.answered, "opened": given.open}
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as name,
        theirs_if(given.label_studio, Path(name), max(numbers)) as peer,
    ):
        for annotators in numbers:
            line = {
                "command": command,
                "scenario": given.scenario,
                "annotators": annotators,
                "rounds": given.rounds,
                "pages": given.pages,
                "classes": given.classes,
                "think": given.think,
                "images": given.images,
                "boxes_of_each": given.boxes,
                "answered": given.answered,
                "open": given.open,
            }
            for who in ("rarebox", *(("label-studio",) if peer else ())):
                about = {**line, "who": who, "disk": disk(Path(name)), "load": round(os.getloadavg()[0], 1)}
                if who == "rarebox":
                    work = (given.rounds, size, given.pages, given.seconds, given.classes, given.think)
                    found = asyncio.run(ours(Path(name), annotators, *work))
                else:
                    assert peer
                    found = asyncio.run(theirs(*peer, annotators, given.rounds))
                print(json.dumps({**about, **found}), flush=True)


def compare(scenario: str, given: argparse.Namespace, options: argparse.ArgumentParser) -> None:
    """Run one scenario, or the given options, in turn with another source tree and with this one."""
    arguments, skipped = [], {"--scenario", "--source", "--times"}
    parts = iter(sys.argv[1:])
    for part in parts:
        if part.partition("=")[0] not in skipped:
            arguments.append(part)
        elif "=" not in part:
            next(parts)
    here = Path(__file__).parents[1]
    trees = {"before": given.source.resolve(), "now": here} if given.source else {"now": here}
    found: dict[str, list[dict[str, Any]]] = {which: [] for which in trees}
    for _ in range(given.times):
        for which, tree in trees.items():
            command = [sys.executable, __file__, *arguments, *(("--scenario", scenario) if scenario else ())]
            path = os.pathsep.join(map(str, (tree / "src", here)))
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, "PYTHONPATH": path}
            )
            for line in map(json.loads, done.stdout.splitlines()):
                found[which].append(line)
                print(json.dumps({"source": which, **line}), flush=True)
    if given.source:
        print(json.dumps({"scenario": scenario, "times": given.times, **ratios(found)}), flush=True)


def ratios(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the runs, before and now, and the ratio of before to now."""
    figures: dict[str, Any] = {}
    for name, part in (
        ("save_ms", "median"),
        ("save_ms", "p95"),
        ("save_ms", "max"),
        ("next_ms", "p95"),
        ("classes_ms", "max"),
        ("answers_per_second", None),
    ):
        values = {
            which: [line[name] if part is None else line[name][part] for line in lines if part is None or line[name]]
            for which, lines in found.items()
        }
        if all(values.values()):
            before, now = (float(np.median(values[which])) for which in ("before", "now"))
            ratio = round(before / now, 3) if now else None
            figures[f"{name} {part or ''}".strip()] = {"before": round(before, 1), "now": round(now, 1), "ratio": ratio}
    return figures


@contextmanager
def theirs_if(environment: Path | None, folder: Path, people: int) -> Iterator[tuple[str, psutil.Process] | None]:
    """Run Label Studio if an environment is given; otherwise yield None."""
    if environment is None:
        yield None
    else:
        with label_studio(environment, folder, people) as peer:
            yield peer


if __name__ == "__main__":
    main()
