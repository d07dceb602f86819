"""What the server sends to the page, name by name as in ``static/types.js``.

Boxes are ``[x1, y1, x2, y2]`` in pixels of the original image, rounded to two decimals.
"""

from collections.abc import Sequence
from typing import Literal, TypedDict

Box = list[float]
Verdict = str
Phase = Literal["preparing", "first_images", "asking", "finished"]


class Image(TypedDict):
    id: int
    name: str
    width: int
    height: int
    url: str


class Label(TypedDict):
    """An answered box."""

    box: Box
    label: int
    query: int
    answer: int
    by: str


class Other(TypedDict):
    """A detection that nobody has answered. ``likely``: a whole image shows it as a box that only has to be checked."""

    box: Box
    label: int
    score: float | None
    likely: bool


class LabelledImage(TypedDict):
    """An image with its boxes. ``complete``: every object has its box."""

    image: Image
    labels: list[Label]
    others: list[Other]
    complete: bool


class Query(LabelledImage):
    """A question: what is in this box, or (``box`` None) what is in this whole image?

    ``similarity``: somebody looked for boxes like an example, and this is one.
    """

    id: int
    cycle: int
    position: int
    box: Box | None
    guess: int | None
    score: float | None
    uncertainty: float | None
    similarity: float | None
    reason: str
    lease_seconds: float


class Answer(TypedDict):
    """An answer that counts. ``at`` is an ISO time in UTC."""

    answer: int
    query: int
    by: str
    verdict: Verdict
    boxes: list[Box]
    labels: list[int]
    milliseconds: int
    at: str
    image: Image
    box: Box | None
    guess: int | None
    cycle: int


class Result(TypedDict):
    """The outcome of an answer. ``current`` is the answer that stands instead."""

    key: str
    status: str
    query: int | None
    answer: int | None
    reason: str | None
    current: Answer | None


class Disagreement(TypedDict):
    query: Query
    answers: list[Answer]


class First(TypedDict):
    """When the first box of a class was found: the cycle, and the number of answers until then."""

    cycle: int
    answers: int


class Class(TypedDict):
    """A class: its boxes, when the first one was found, and the answered questions about boxes taken for it."""

    label: int
    name: str
    count: int
    first: First | None
    asked: int
    merged_into: int | None


class CycleRecord(TypedDict):
    cycle: int
    labels: int
    reviews: int
    ap50: float | None
    ap50_interval: tuple[float, float] | None
    seconds: dict[str, float]


class Budget(TypedDict):
    spent: float
    of: int
    unit: str


class Trainer(TypedDict):
    """The trainer's progress: ``done`` of ``of`` steps of a stage."""

    state: Literal["idle", "working", "failed"]
    stage: str | None
    done: int
    of: int
    note: str
    seconds_left: float | None
    reason: str | None


class HeldOut(TypedDict):
    images: int
    boxes: int
    note: str


class Agreement(TypedDict):
    """Fractions in [0, 1]; None if there is nothing to compare."""

    with_guesses: float | None
    between_people: float | None
    disagreements: int


class Person(TypedDict):
    name: str
    answers: int


class Speed(TypedDict):
    per_minute: float | None
    minutes_left: float | None


class Search(TypedDict):
    """Boxes like an example, which come first for one person. ``label``: the class offered, None for the detector's."""

    label: int | None
    left: int


class SharedState(TypedDict):
    """The part of the state that is the same for all visitors.

    ``session`` is the store's latest one, which goes into the requests and answers of a page. ``server`` names this
    process: between two states of one process, no backup was restored.
    """

    project: str
    server: str
    session: str
    classes: list[Class]
    phase: Phase
    cycle: int
    budget: Budget
    trainer: Trainer
    records: list[CycleRecord]
    held_out: HeldOut
    agreement: Agreement
    advice: str | None
    people: list[Person]
    can_train: bool
    version: int


class VisitorState(SharedState):
    """The state as one visitor sees it."""

    you: str | None
    fixed_name: bool
    speed: Speed
    search: Search | None


class State(VisitorState):
    """``id`` names the project. The page keeps unsaved answers under it, so no other project on this port gets them.
    ``names`` are all names of the visitor."""

    id: str
    names: list[str]


class Grid(TypedDict):
    """Boxes that the detector takes for one class, which a person may check at once."""

    label: int
    boxes: int


class Questions(TypedDict):
    """Questions for a tab, and what it may check at once instead.

    ``outdated``: the store was restored from a backup after the page was loaded, which must be loaded again.
    """

    queries: Sequence[Query]
    grid: Grid | None
    state: State
    outdated: bool


class Saved(Questions):
    results: Sequence[Result]


class Answers(TypedDict):
    answers: Sequence[Answer]


class Disagreements(TypedDict):
    disagreements: Sequence[Disagreement]


class Invitation(TypedDict):
    """A one-time link. ``local``: other machines cannot reach it."""

    url: str
    local: bool
