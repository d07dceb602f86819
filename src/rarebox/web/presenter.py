"""What annotators see: the state of a project, its questions, images and answers in the page's form."""

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import islice
from secrets import token_hex
from typing import Literal

import numpy as np

from rarebox.core.boxes import far_from
from rarebox.core.files import real
from rarebox.labels.leases import Given, Outcome
from rarebox.pool.proposals import MOST_SHOWN
from rarebox.pool.similar import SIMILARITY
from rarebox.project.project import is_further
from rarebox.types import Floats, ImageRecord, Query
from rarebox.web import replies, wording
from rarebox.web.answer_index import Unit
from rarebox.web.memory import PIECE, ProjectMemory


class Presenter:
    """Presents the memory of a project. ``trainer`` returns the trainer's status."""

    def __init__(self, memory: ProjectMemory, trainer: Callable[[], replies.Trainer]) -> None:
        self._now, self._trainer = memory, trainer
        self._common: tuple[int, replies.SharedState] | None = None
        self._server = token_hex(8)

    def query(self, query: Query) -> replies.Query:
        """A question in the page's form."""
        image, why = self._now.images[query.image_id], query.why or {}
        with self._now.lock:
            return {
                "id": query.id,
                "cycle": int(why.get("cycle", 1)),
                "position": int(why.get("rank", why.get("image_rank", 0))),
                **self._image(image),
                "box": None if query.box is None else _rounded(query.box),
                "guess": self._now.class_of(query.guess),
                "score": why.get("score"),
                "uncertainty": why.get("uncertainty"),
                "similarity": why.get(SIMILARITY),
                "reason": self._reason(query),
                "lease_seconds": self._now.project.settings.people.lease_seconds,
            }

    def image(self, image_id: int) -> replies.LabelledImage:
        """One image with its boxes."""
        with self._now.lock:
            return self._image(self._now.images[image_id])

    def given(self, one: Given) -> replies.Answer:
        """An answer in the page's form."""
        image = self._now.images[one.query.image_id]
        return {
            "answer": one.id,
            "query": one.query.id,
            "by": one.answer.by,
            "verdict": one.answer.verdict.value,
            "boxes": [_rounded(box) for box in one.answer.boxes],
            "labels": self._now.counted(one),
            "milliseconds": one.answer.milliseconds,
            "at": f"{one.at.isoformat(timespec='seconds')}Z",
            "image": _about(image),
            "box": None if one.query.box is None else _rounded(one.query.box),
            "guess": self._now.class_of(one.query.guess),
            "cycle": one.cycle,
        }

    def answers(
        self, limit: int, before: int | None, names: Sequence[str] | None, label: int | None, verdict: str | None
    ) -> list[replies.Answer]:
        """Answers that count, newest first; with ``names`` those under one of them.

        A filter may match nothing, so the scan of all answers yields to other requests after each piece.
        """
        found: list[replies.Answer] = []
        with self._now.lock:
            walk = self._now.answer_index.standing()
        while len(found) < limit:
            with self._now.lock:
                if not (piece := list(islice(walk, PIECE))):
                    break
                found += [
                    self.given(one)
                    for one in piece
                    if (before is None or one.id < before)
                    and (names is None or one.answer.by in names)
                    and verdict in (None, one.answer.verdict.value)
                    and (label is None or label in self._now.counted(one))
                ]
        return found[:limit]

    def disagreements(self) -> list[replies.Disagreement]:
        """Questions that annotators answered differently, with their answers."""
        with self._now.lock:
            found = [
                sorted(h.standing.values(), key=lambda one: one.id) for h in self._now.answer_index.disagreements()
            ]
        return [{"query": self.query(all[0].query), "answers": [self.given(one) for one in all]} for all in found]

    def outcome(self, outcome: Outcome) -> replies.Result:
        """The outcome of an answer, in the page's form."""
        current = self.given(outcome.current) if outcome.current else None
        return {
            "key": outcome.key,
            "status": outcome.status.value,
            "query": outcome.query_id,
            "answer": outcome.answer_id,
            "reason": outcome.reason,
            "current": current,
        }

    def state(self, person: str | None, fixed: bool) -> replies.VisitorState:
        """Progress, class counts, cycles and annotators, with the speed of one person."""
        with self._now.lock:
            if self._common is None or self._common[0] != self._now.version:
                self._common = (self._now.version, self._state_for_all())
            per_minute = self._now.answer_index.per_minute(person) if person else None
            minutes = self._minutes_left(person) if person else None
            speed: replies.Speed = {"per_minute": per_minute and round(per_minute, 1), "minutes_left": minutes}
            search = self._search_state(person) if person else None
            return {**self._common[1], "you": person, "fixed_name": fixed, "speed": speed, "search": search}

    def _search_state(self, person: str) -> replies.Search | None:
        """What a person looks for and how many boxes are left. None if none is."""
        if not (sought := self._now.search_of(person)) or self._now.asker is None:
            return None
        unasked = self._now.asker.unasked(sought.places)
        left = len(unasked) + sum(sought.found(one.why) for one in self._now.answer_index.unanswered(self._now.cycle))
        return {"label": sought.label, "left": left} if left else None

    def _minutes_left(self, person: str) -> float | None:
        """About how long the rest of the cycle's budget takes one person. None if that is not known."""
        unit, left = self._unit, max(self._now.budget - self._now.spent, 0)
        each = 1.0 if unit == "seconds" else self._now.answer_index.seconds_each(person, unit)
        return None if each is None else round(left * each / 60, 1)

    @property
    def _unit(self) -> Unit | Literal["seconds"]:
        """What the current cycle counts."""
        return "images" if self._now.cycle <= 1 else self._now.project.settings.budget_unit

    def _state_for_all(self) -> replies.SharedState:
        answer_index = self._now.answer_index
        trainer = self._trainer()
        return {
            "project": real(self._now.project.folder.root).name,
            "server": self._server,
            "session": self._now.session,
            "classes": self._class_states(),
            "phase": self._phase(),
            "cycle": self._now.cycle,
            "budget": {
                "spent": round(self._now.spent, 1),
                "of": self._now.budget,
                "unit": self._unit,
            },
            "trainer": trainer,
            "records": [
                {
                    "cycle": record["cycle"],
                    "labels": record["labels"],
                    "reviews": record["reviews"],
                    "ap50": record["ap50"] if self._is_measured else None,
                    "ap50_interval": interval if self._is_measured else None,
                    "seconds": record["seconds"],
                }
                for record, interval in zip(self._now.records, self._now.intervals, strict=True)
            ],
            "held_out": self._held_out(),
            "agreement": {
                "with_guesses": _fraction(answer_index.agreement_with_guesses(self._now.cycle)),
                "between_people": _fraction(answer_index.agreement_between_people()),
                "disagreements": len(answer_index.disagreements()),
            },
            "advice": self._advice(),
            "people": [
                {"name": name, "answers": answer_index.sums["by", name]} for name in sorted(answer_index.of_person)
            ],
            "can_train": trainer["state"] != "working"
            and bool(self._now.counts.sum())
            and len(self._now.records) < self._now.cycle,
            "version": self._now.version,
        }

    def _class_states(self) -> list[replies.Class]:
        found, asked = (
            self._now.answer_index.first_found(),
            self._now.answer_index.asked_about(len(self._now.classes)),
        )
        return [
            {
                "label": label,
                "name": name,
                "count": int(self._now.counts[label]),
                "first": {"cycle": found[label][0], "answers": found[label][1]} if label in found else None,
                "asked": int(asked[label]),
                "merged_into": None if self._now.counts_as[label] == label else int(self._now.counts_as[label]),
            }
            for label, name in enumerate(self._now.classes)
        ]

    def _phase(self) -> replies.Phase:
        if not self._now.initial_are_chosen:
            return "preparing"
        idle = self._trainer()["state"] == "idle"
        if idle and (len(self._now.records) >= self._now.cycle or (self._now.exhausted and not self._now.spent)):
            return "finished"
        return "first_images" if self._now.cycle == 1 else "asking"

    def _held_out(self) -> replies.HeldOut:
        images, boxes = self._now.answer_index.sums["held images",], self._now.answer_index.sums["held boxes",]
        asking = self._now.cycle <= 1 and self._now.budget - self._now.spent > 0
        return {"images": images, "boxes": boxes, "note": wording.held_out(images, boxes, asking)}

    @property
    def _is_measured(self) -> bool:
        """Whether there are enough held-out boxes for AP to mean anything."""
        return self._now.answer_index.sums["held boxes",] >= wording.FEWEST_BOXES

    def _advice(self) -> str | None:
        measured = [(record["reviews"], ap) for record in self._now.records if (ap := record["ap50"]) is not None]
        measured = measured if self._is_measured else []
        return wording.advice(measured, self._now.answer_index.agreement_with_guesses(self._now.cycle))

    def _image(self, image: ImageRecord) -> replies.LabelledImage:
        given = self._now.answer_index.image(image.id)
        labels: list[replies.Label] = [
            {"box": _rounded(box), "label": label, "query": one.query.id, "answer": one.id, "by": one.answer.by}
            for one in given
            for box, label in zip(one.answer.boxes, self._now.counted(one), strict=True)
        ]
        rows = self._now.rows.get(image.id, np.zeros(0, dtype=np.int64))
        others: list[replies.Other] = []
        if (shown := self._now.shown) is not None and len(rows):
            settled = [one.query.box for one in given if one.query.box is not None]
            known = np.array([*settled, *(label["box"] for label in labels)], dtype=np.float32).reshape(-1, 4)
            free = rows[far_from(shown.boxes[rows], known, self._now.project.settings.selection.answered_iou)]
            best = free[np.argsort(-shown.scores[free], kind="stable")][:MOST_SHOWN]
            others = [
                {
                    "box": _rounded(box),
                    "label": int(self._now.counts_as[label]),
                    "score": _fraction(float(score)),
                    "likely": bool(score >= self._now.project.settings.people.proposal_score),
                }
                for box, label, score in zip(shown.boxes[best], shown.labels[best], shown.scores[best], strict=True)
            ]
        complete = any(one.query.box is None and one.answer.verdict.value != "cannot_tell" for one in given)
        return {"image": _about(image), "labels": labels, "others": others, "complete": complete}

    def _reason(self, query: Query) -> str:
        if query.box is None:
            why = query.why or {}
            later = wording.RANKED_IMAGE if "image_rank" in why else wording.EXPLORED
            further = wording.FURTHER_IMAGE if self._now.initial_are_chosen else wording.RANDOM_IMAGE
            first = further if is_further(query) else wording.FIRST_IMAGE
            return later if why.get("cycle", 1) > 1 else first
        if query.guess is None:
            return wording.DRAWN
        guess, counts = int(self._now.counts_as[query.guess]), self._now.counts
        offered = int((self._now.counts_as == np.arange(len(self._now.counts_as))).sum())
        return wording.reason(self._now.classes[guess], int(counts[guess]), int(counts.sum()), offered, query.why or {})


def _about(image: ImageRecord) -> replies.Image:
    name = image.path.replace("\\", "/").rsplit("/", 1)[-1]
    return {
        "id": image.id,
        "name": name,
        "width": image.width,
        "height": image.height,
        "url": f"/api/images/{image.id}?of={sha256(image.path.encode(errors='replace')).hexdigest()[:8]}",
    }


def _rounded(box: Floats) -> replies.Box:
    return [round(side, 2) for side in box.tolist()]


def _fraction(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)
