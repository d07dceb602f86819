"""What the page may send: the bodies of its requests, each field within bounds."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, model_validator

from rarebox.labels.store import LONGEST_TIME
from rarebox.web.grid_review import CROPS

MOST_ANSWERS, MOST_BOXES = 200, 20_000
"""The most answers of one request, and the most boxes of one answer: ten times what crowded images hold."""

LONGEST_KEY = 64

Coordinate = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Sides = tuple[Coordinate, Coordinate, Coordinate, Coordinate]
Box = Annotated[Sides, FailFast()]
Identifier = Annotated[int, Field(ge=0, lt=2**31)]
Session = Annotated[str, Field(max_length=LONGEST_KEY)]
Key = Annotated[str, Field(min_length=1, max_length=LONGEST_KEY, pattern="^[!-~]+$")]


Milliseconds = Annotated[int, AfterValidator(lambda value: min(max(value, 0), LONGEST_TIME))]
"""A time within what the store holds, whatever the clock of the browser did: no answer is refused for its time."""


class Body(BaseModel):
    """A request without unknown fields. Validation stops at the first problem, because a body may hold thousands."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_field(cls, value: object) -> object:
        if isinstance(value, dict):
            for name in map(str, value):  # pyright: ignore[reportUnknownArgumentType]
                if name not in cls.model_fields:
                    raise ValueError(f"there is no field {name[:40]!r}")
        return value  # pyright: ignore[reportUnknownVariableType]


class Item(Body):
    """One answer."""

    key: Key
    milliseconds: Milliseconds = 0
    query: Identifier | None = None
    image: Identifier | None = None
    verdict: Literal["object", "not_an_object", "cannot_tell", "withdrawn"]
    boxes: Annotated[list[Box], FailFast()] = Field(default=[], max_length=MOST_BOXES)
    labels: Annotated[list[Identifier], FailFast()] = Field(default=[], max_length=MOST_BOXES)
    after: Identifier | None = None
    complete: bool = False
    session: Session | None = None
    # Pages of version 0.1 and of early 0.2 may still send these, which are not used.
    on: Identifier | None = None
    class_names: Annotated[list[str], FailFast()] = Field(default=[], max_length=MOST_BOXES)

    @model_validator(mode="after")
    def _is_consistent(self) -> "Item":
        if (self.query is None) == (self.image is None):
            raise ValueError("an answer is about either a query or an image")
        if len(self.boxes) != len(self.labels):
            raise ValueError("every box needs one label")
        return self


class Leave(Body):
    """A tab that is being closed."""

    client: Key


class Next(Leave):
    """A tab that needs questions."""

    want: int = Field(default=3, ge=0, le=10)
    session: Session | None = None


class Grid(Leave):
    """A tab that checks boxes of one class at once."""

    session: Session | None = None


class Release(Leave):
    """Questions that a tab gives back."""

    queries: Annotated[list[Identifier], FailFast()] = Field(max_length=CROPS)


class Answers(Next):
    """Answers of a tab that needs more questions."""

    answers: Annotated[list[Item], FailFast()] = Field(max_length=MOST_ANSWERS)


class Rename(Body):
    label: Identifier
    name: str = Field(max_length=200)


class Merge(Body):
    label: Identifier
    into: Identifier


class ClassChange(Body):
    """Exactly one change of the classes."""

    add: str | None = Field(default=None, max_length=200)
    rename: Rename | None = None
    merge: Merge | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "ClassChange":
        if sum(part is not None for part in (self.add, self.rename, self.merge)) != 1:
            raise ValueError("give one of add, rename and merge")
        return self


class Search(Body):
    """What to look for: boxes like those of a class, or like one box of an image, perhaps with a class to offer."""

    label: Identifier | None = None
    image: Identifier | None = None
    box: Sides | None = None

    @model_validator(mode="after")
    def _is_one(self) -> "Search":
        if (self.image is None) != (self.box is None) or (self.image is None and self.label is None):
            raise ValueError("give a class, or an image and a box")
        return self


class Me(Body):
    """The visitor's name."""

    name: str = Field(max_length=200)
