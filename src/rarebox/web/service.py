"""Where questions are handed out and answers come in. Read :meth:`AnnotationService.answer` first."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import Empty, SimpleQueue
from threading import RLock, Thread
from typing import Any, TypeVar

import numpy as np

from rarebox.core.boxes import far_from
from rarebox.core.files import real
from rarebox.core.text import counted
from rarebox.labels.leases import Given, Lease, Outcome, People, Submission
from rarebox.loop import rules
from rarebox.loop.metrics import CycleRecord
from rarebox.pool.asker import Asker
from rarebox.pool.candidates import rows_by_image
from rarebox.project.project import Project
from rarebox.types import Candidates, Floats, ImageRecord, Ints, Query, Verdict
from rarebox.web.answer_index import AnswerIndex
from rarebox.web.supervisor import Supervisor

MOST_TOGETHER = 20
"""Jobs that share one commit: so few that browsers have their answers while the next ones are worked on."""

MOST_QUESTIONS = 10
"""Questions that one browser may hold."""

LATELY = 30.0
"""Seconds for which a tab that asked for questions counts as waiting."""

MOST_OTHERS = 30
"""Detections shown beside the one that is asked about."""

UNSTEADY = 1.0
"""u(b), of at most 1.3, from which a guess is said to change with the view."""

FEW_IMAGES = 20
"""Held-out images below which AP is called a rough trend."""

T = TypeVar("T")


class AnnotationService:
    """One project being worked on by people.

    All writing is done by one thread, which takes together what has piled up: many people's answers cost one
    commit, and each is told "saved" only when the disk has it.
    """

    def __init__(self, project: Project, train: bool = True, engine: Sequence[str] = ()) -> None:
        self.project, self.people = project, People(project.store)
        self.see_photos()
        self.version, self.questions = 0, 0
        self.trainer = Supervisor(project.folder.root, self._hear, engine) if train else None
        self._answer_index, self._lock, self._anew = AnswerIndex(), RLock(), False
        self._asker: Asker | None = None
        self._cycle = -1
        self._shown: Candidates | None = None
        self._rows: dict[int, Ints] = {}
        self._budget, self._spent, self._went_on = 0, 0, (-1, -1, -1, -1)
        self._exhausted = False
        self._asked_at: dict[str, float] = {}
        self._counts: Ints = np.zeros(0, dtype=np.int64)
        self._common: tuple[int, dict[str, Any]] = (-1, {})
        self._classes: tuple[str, ...] = ()
        self._counts_as: Ints = np.zeros(0, dtype=np.int64)
        self._records: list[CycleRecord] = []
        self._jobs: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        self._writer = Thread(target=self._write, daemon=True)
        self.refresh()
        self._writer.start()
        self.retry()

    def close(self) -> None:
        """Finish what is being written, and end the trainer."""
        if self.trainer:
            self.trainer.close()
        self._jobs.put(None)
        self._writer.join()
        self.project.store.close()

    # What people do

    def answer(
        self, holder: str, by: str, said: Sequence[Submission], want: int
    ) -> Future[tuple[list[Outcome], list[Query]]]:
        """Record answers and hand out questions, in one transaction; done when it is on the disk."""
        seconds = self.project.settings.people.lease_seconds

        def job() -> tuple[list[Outcome], list[Query]]:
            outcomes = [self.people.submit(holder, by, one, seconds) for one in said]
            reopened = {one.query_id for one in said if one.verdict is Verdict.WITHDRAWN}
            queries = self._hand_out(holder, by, min(want, MOST_QUESTIONS))
            return outcomes, sorted(queries, key=lambda query: query.id not in reopened)

        return self.do(job)

    def leave(self, holder: str) -> "Future[None]":
        """A tab is closed: its questions wait for nobody."""

        def job() -> None:
            self._asked_at.pop(holder, None)
            self.people.let_go(holder)

        return self.do(job)

    def do(self, job: Callable[[], T]) -> "Future[T]":
        """Have something done by the thread that writes, as part of a transaction."""
        future: Future[T] = Future()
        self._jobs.put((job, future))
        return future

    def change_classes(self, job: Callable[[], object]) -> "Future[None]":
        """Add, rename or merge classes, and see all answers in their light. No answer is read again for it."""

        def work() -> None:
            job()
            self._see_classes()
            self.questions += 1

        return self.do(work)

    def see_photos(self) -> None:
        """Read where the photos lie: they may have been found elsewhere."""
        self.images: dict[int, ImageRecord] = self.project.store.images()
        self.photos = self.project.photos()

    def train(self) -> None:
        """Train now, whatever is left of the budget."""
        if self.trainer:
            self.trainer.send("train")

    def retry(self) -> None:
        """Go on with what is due, also after the trainer has failed."""
        if self.trainer:
            self.trainer.again()

    def _hand_out(self, holder: str, by: str, want: int) -> list[Query]:
        """Questions for one holder: those at hand, and, if that is too few, more from the ranking.

        When the budget is spent people go on with the ranking until the next cycle's questions are there.
        """
        self._take_in()
        answer_index, cycle, leases = self._answer_index, self._cycle, self.people.leases(holder)
        want = min(want, self._share_of(holder, leases))
        held = len(answer_index.held(holder, by, leases))
        found = list(islice(answer_index.open_to(holder, by, cycle, leases), max(want - held, 0)))
        if (missing := want - held - len(found)) > 0 and self._asker:
            budget = self._budget_of(cycle)
            over = budget.left <= 0 and self.trainer is not None and self.trainer.working
            most = missing if over else min(missing, budget.to_ask)
            if most > 0:
                asked = self._asker.ask(most, busy=answer_index.busy(cycle))
                if not asked and not held and not found:
                    asked = self._asker.ask(1, anyhow=True, busy=answer_index.busy(cycle))
                self._exhausted = not asked and not budget.open and budget.left > 0
                found += [query.id for query in asked]
        seconds = self.project.settings.people.lease_seconds
        if want and not held and not found and self.people.leave_other_tabs(holder, by, seconds):
            return self._hand_out(holder, by, want)  # all that is left was in a tab that they have closed
        return self.people.claim(holder, by, want, seconds, among=found)

    def _share_of(self, holder: str, leases: Sequence[Lease]) -> int:
        """How many questions one tab may hold: of few photos nobody holds many while others have none. One question
        an image is open at a time."""
        now = time.monotonic()
        self._asked_at = {tab: at for tab, at in self._asked_at.items() if at > now - LATELY} | {holder: now}
        tabs = self._asked_at.keys() | {lease.holder for lease in leases}
        return max(len(self.images) // len(tabs), 1)

    def _budget_of(self, cycle: int) -> rules.Budget:
        """What a cycle may spend and has spent, counted without reading all answers again."""
        sums = self._answer_index.sums
        return rules.budget_of(self.project.settings, cycle, lambda what: sums[what, cycle])

    # The thread that writes

    def _write(self) -> None:
        while job := self._jobs.get():
            jobs = [job]
            try:
                while len(jobs) < MOST_TOGETHER:
                    if (more := self._jobs.get_nowait()) is None:
                        self._jobs.put(None)  # the end, once these are done
                        break
                    jobs.append(more)
            except Empty:
                pass
            jobs = [(work, future) for work, future in jobs if future.set_running_or_notify_cancel()]
            store, done = self.project.store, list[tuple[Future[Any], Any, BaseException | None]]()
            try:
                with store.transaction(writes=True):
                    for work, future in jobs:
                        known = self._answer_index.last_question, self._answer_index.last_answer
                        try:
                            with store.part():
                                result = work()
                            done.append((future, result, None))
                        except Exception as error:
                            done.append((future, None, error))
                            if known != (self._answer_index.last_question, self._answer_index.last_answer):
                                self._forget()
            except Exception as error:  # the disk is full, say: nothing of it all was written
                done = [(future, None, error) for _, future in jobs]
                self._anew, self._cycle = True, -1
            try:
                self.refresh()
            except Exception as error:
                done = [(future, result, problem or error) for future, result, problem in done]
            for future, result, problem in done:
                if problem:
                    future.set_exception(problem)
                else:
                    future.set_result(result)
            self._go_on()

    def refresh(self) -> None:
        """Bring what is kept in memory up to date with the store."""
        project = self.project
        with self._lock:
            if self._anew:
                self._forget()
            else:
                self._take_in()
            if (cycle := project.cycle) != self._cycle:
                self._open(cycle)
            budget = self._budget_of(cycle)
            self._budget, self._spent = budget.total, budget.spent
            self._counts = self._answer_index.counts(len(self._classes))
            self.version += 1

    def _take_in(self) -> None:
        """Questions and answers that are new in the store, those of the transaction going on, too."""
        with self._lock, self.project.store.transaction():
            given = self.people.given(after=self._answer_index.last_answer)
            asked = self.people.questions(after=self._answer_index.last_question)
            if any(one.answer.labels.max(initial=-1) >= len(self._classes) for one in given):
                self._see_classes()  # another process has added some
            self._answer_index.take_in(asked, given)
            for question in asked:
                if self._asker and question.cycle == self._cycle:
                    self._asker.was_asked(question.why)

    def _see_classes(self) -> None:
        """Classes have changed, or may have."""
        with self._lock, self.project.store.transaction():
            self._classes, self._counts_as = self.project.store.classes(), self.project.store.counts_as()
            self._answer_index.merge(self._counts_as)
            self._counts = self._answer_index.counts(len(self._classes))

    def _forget(self) -> None:
        """Read everything again: what was taken in has not come to be."""
        with self._lock:
            self._answer_index, self._anew = AnswerIndex(), True
            self._see_classes()
            self._take_in()
            self._anew = False

    def _open(self, cycle: int) -> None:
        """A cycle's questions begin."""
        project = self.project
        self._cycle = cycle
        self._see_classes()
        self._asker = project.asker(cycle) if cycle > 1 else None
        ranked = project.has_ranking(cycle)
        self._shown = project.read_ranking(cycle).candidates if ranked else project.read_predictions()
        self._rows = rows_by_image(self._shown) if self._shown else {}
        self._records = project.folder.records()
        self._exhausted = False
        self.questions += 1

    def _hear(self, event: str) -> None:
        """The trainer tells something."""
        if event == "questions":  # those of a new cycle, or more of them in this one
            self.do(lambda: setattr(self, "_cycle", -1)).add_done_callback(lambda _: None)
        elif event in ("trained", "idle"):
            self.do(lambda: setattr(self, "_records", self.project.folder.records())).add_done_callback(lambda _: None)
        else:
            self.version += 1

    def _go_on(self) -> None:
        """Have the trainer work if something is due that needs no word of a person."""
        if not self.trainer or self.trainer.status["state"] != "idle":
            return
        here = (self._cycle, self._spent, len(self._records), len(self._shown or ()))
        ready = self._exhausted or len(self._records) >= self._cycle or self._spent >= self._budget
        if ready and here != self._went_on:
            self._went_on = here
            self.trainer.send("rank on" if self._exhausted else "go on")

    # What people see

    def query(self, query: Query) -> dict[str, Any]:
        """A question as the page wants it."""
        image, why = self.images[query.image_id], query.why or {}
        with self._lock:
            return {
                "id": query.id,
                "cycle": int(why.get("cycle", 1)),
                "position": int(why.get("rank", 0)),
                **self._image(image),
                "box": None if query.box is None else _rounded(query.box),
                "guess": query.guess if query.guess is None else int(self._counts_as[query.guess]),
                "score": why.get("score"),
                "uncertainty": why.get("uncertainty"),
                "reason": self._reason(query),
                "lease_seconds": self.project.settings.people.lease_seconds,
            }

    def image(self, image_id: int) -> dict[str, Any]:
        """One image with what is known of it."""
        with self._lock:
            return self._image(self.images[image_id])

    def given(self, one: Given) -> dict[str, Any]:
        """An answer as the page wants it."""
        image, guess = self.images[one.query.image_id], one.query.guess
        return {
            "answer": one.id,
            "query": one.query.id,
            "by": one.answer.by,
            "verdict": one.answer.verdict.value,
            "boxes": [_rounded(box) for box in one.answer.boxes],
            "labels": self._counted(one),
            "milliseconds": one.answer.milliseconds,
            "at": f"{one.at.isoformat(timespec='seconds')}Z",
            "image": _about(image),
            "box": None if one.query.box is None else _rounded(one.query.box),
            "guess": None if guess is None else int(self._counts_as[guess]),
            "cycle": one.cycle,
        }

    def _counted(self, one: Given) -> list[int]:
        """The labels of an answer as what they count as by now."""
        return self._counts_as[one.answer.labels].tolist()

    def answers(
        self, limit: int, before: int | None, by: str | None, label: int | None, verdict: str | None
    ) -> list[dict[str, Any]]:
        """Answers that count, newest first."""
        with self._lock:
            found = (
                one
                for one in self._answer_index.standing()
                if (before is None or one.id < before)
                and by in (None, one.answer.by)
                and (label is None or label in self._counted(one))
                and verdict in (None, one.answer.verdict.value)
            )
            return [self.given(one) for one in islice(found, limit)]

    def disagreements(self) -> list[dict[str, Any]]:
        """Questions that people answered differently, with their answers."""
        with self._lock:
            found = [sorted(h.standing.values(), key=lambda one: one.id) for h in self._answer_index.disagreements()]
        return [{"query": self.query(all[0].query), "answers": [self.given(one) for one in all]} for all in found]

    def outcome(self, outcome: Outcome) -> dict[str, Any]:
        """What became of an answer, as the page wants it."""
        current = self.given(outcome.current) if outcome.current else None
        return {
            "key": outcome.key,
            "status": outcome.status.value,
            "query": outcome.query_id,
            "answer": outcome.answer_id,
            "reason": outcome.reason,
            "current": current,
        }

    def state(self, person: str | None, fixed: bool) -> dict[str, Any]:
        """Everything around the question: progress, balance, cycles, people."""
        with self._lock:
            if self._common[0] != self.version:
                self._common = (self.version, self._state_for_all())
            per_minute = self._answer_index.per_minute(person) if person else None
            left = max(self._budget - self._spent, 0)
            minutes = round(left / per_minute, 1) if per_minute and self._cycle > 1 else None
            speed = {"per_minute": per_minute and round(per_minute, 1), "minutes_left": minutes}
            return {**self._common[1], "you": person, "fixed_name": fixed, "speed": speed}

    def _state_for_all(self) -> dict[str, Any]:
        answer_index, settings = self._answer_index, self.project.settings
        trainer = self.trainer.status if self.trainer else {"state": "idle"}
        return {
            "project": real(self.project.folder.root).name,
            "classes": [
                {
                    "label": label,
                    "name": name,
                    "count": int(self._counts[label]),
                    "merged_into": None if self._counts_as[label] == label else int(self._counts_as[label]),
                }
                for label, name in enumerate(self._classes)
            ],
            "phase": self._phase(),
            "cycle": self._cycle,
            "budget": {
                "spent": self._spent,
                "of": self._budget,
                "unit": "images" if self._cycle <= 1 else settings.budget_unit,
            },
            "trainer": trainer,
            "records": [
                {name: record[name] for name in ("cycle", "labels", "reviews", "ap50", "seconds")}
                for record in self._records
            ],
            "held_out": self._held_out(),
            "agreement": {
                "with_guesses": _share(answer_index.agreement_with_guesses(self._cycle)),
                "between_people": _share(answer_index.agreement_between_people()),
                "disagreements": len(answer_index.disagreements()),
            },
            "advice": self._advice(),
            "people": [
                {"name": name, "answers": answer_index.sums["by", name]} for name in sorted(answer_index.of_person)
            ],
            "can_train": trainer["state"] != "working"
            and bool(self._counts.sum())
            and len(self._records) < self._cycle,
            "version": self.version,
        }

    def _phase(self) -> str:
        if self._cycle == 0:
            return "preparing"
        idle = not self.trainer or self.trainer.status["state"] == "idle"
        if idle and (len(self._records) >= self._cycle or (self._exhausted and not self._spent)):
            return "finished"
        return "first_images" if self._cycle == 1 else "asking"

    def _held_out(self) -> dict[str, Any]:
        images, boxes = self._answer_index.sums["held images",], self._answer_index.sums["held boxes",]
        if boxes:
            note = f"AP is measured on {counted(images, 'image')} ({counted(boxes, 'box', 'boxes')}) not trained on"
            note += "; read it as a rough trend." if images < FEW_IMAGES else "."
        elif self._cycle <= 1 and self._budget - self._spent > 0:
            note = "One of every five first images is kept aside, not trained on, to measure AP."
        elif images:
            note = f"AP cannot be measured: there is no box on the {counted(images, 'image')} kept aside for it."
        else:
            note = "AP is not measured: none of the first images was kept aside for it (of five or more, one is)."
        return {"images": images, "boxes": boxes, "note": note}

    def _advice(self) -> str | None:
        """The stop signal: what the last answers brought, and how often the guesses are right by now."""
        measured = [(record["reviews"], ap) for record in self._records if (ap := record["ap50"]) is not None]
        right = self._answer_index.agreement_with_guesses(self._cycle)
        agreed = f" People confirm {right:.0%} of the guesses." if right is not None else ""
        if len(measured) < 2 or (reviews := measured[-1][0] - measured[-2][0]) < 1:
            return agreed.strip() or None
        gain = (measured[-1][1] - measured[-2][1]) / reviews * 100
        if gain >= 0.01:
            return f"AP50 rose by {gain:.2f} per 100 answers in the last cycle: going on pays.{agreed}"
        if right is not None and right >= 0.9:
            return f"AP50 changed by {gain:+.2f} per 100 answers in the last cycle: this may be enough.{agreed}"
        return f"AP50 changed by {gain:+.2f} per 100 answers in the last cycle; one more cycle will tell.{agreed}"

    def _image(self, image: ImageRecord) -> dict[str, Any]:
        given = self._answer_index.image(image.id)
        labels = [
            {"box": _rounded(box), "label": label, "query": one.query.id, "answer": one.id, "by": one.answer.by}
            for one in given
            for box, label in zip(one.answer.boxes, self._counted(one), strict=True)
        ]
        rows = self._rows.get(image.id, np.zeros(0, dtype=np.int64))
        others = []
        if (shown := self._shown) is not None and len(rows):
            settled = [one.query.box for one in given if one.query.box is not None]
            known = np.array([*settled, *(label["box"] for label in labels)], dtype=np.float32).reshape(-1, 4)
            free = rows[far_from(shown.boxes[rows], known, self.project.settings.selection.answered_iou)]
            best = free[np.argsort(-shown.scores[free], kind="stable")][:MOST_OTHERS]
            others = [
                {"box": _rounded(box), "label": int(self._counts_as[label]), "score": _share(float(score))}
                for box, label, score in zip(shown.boxes[best], shown.labels[best], shown.scores[best], strict=True)
            ]
        complete = any(one.query.box is None and one.answer.verdict.value != "cannot_tell" for one in given)
        return {"image": _about(image), "labels": labels, "others": others, "complete": complete}

    def _reason(self, query: Query) -> str:
        if query.box is None:
            return "Draw a box round every object: the detector learns from whole images first."
        counts, guess = self._counts, query.guess
        if guess is None:
            return "Somebody drew this box."
        guess = int(self._counts_as[guess])
        name, total = self._classes[guess], int(counts.sum())
        offered = int((self._counts_as == np.arange(len(self._counts_as))).sum())
        rare = total > 0 and counts[guess] / total < 0.5 / offered
        words = [
            f"It looks like {name}" + (f", a rare class ({counts[guess]} of {total} labels so far)" if rare else "")
        ]
        why = query.why or {}
        if why.get("uncertainty", 0) > UNSTEADY:
            words.append("the guess changes when the picture is turned or cropped")
        elif "score" in why:
            words.append(f"the detector is {why['score']:.0%} sure")
        return "; ".join(words) + "."


def _about(image: ImageRecord) -> dict[str, Any]:
    name = image.path.replace("\\", "/").rsplit("/", 1)[-1]
    return {
        "id": image.id,
        "name": name,
        "width": image.width,
        "height": image.height,
        "url": f"/api/images/{image.id}",
    }


def _rounded(box: Floats) -> list[float]:
    return [round(float(side), 2) for side in box]


def _share(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
