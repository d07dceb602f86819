"""The model card: what a trained model is, what it was trained and measured on, as JSON and as a page of Markdown."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from rarebox.core.files import damaged, read_json, write_json, write_text
from rarebox.core.text import counted
from rarebox.errors import presentable

JSON, PAGE = "card.json", "MODEL.md"
"""The two files of a card in the folder of a model."""

FEW = 100
"""With fewer test objects in all, the page says that AP and thresholds are uncertain."""


@dataclass(frozen=True)
class ClassCard:
    """One class of a model.

    ``objects`` is the number of boxes that it was trained on, ``test_objects`` that it was measured on, ``ap50`` its AP
    at IoU 0.5 and ``f1`` the F1 at its ``threshold``, all in [0, 1]. ``own``: the threshold was chosen for this class
    alone; otherwise it has too few test objects, and the threshold is that of all classes. None where unknown.
    """

    name: str
    objects: int | None = None
    test_objects: int | None = None
    ap50: float | None = None
    threshold: float = 0.5
    f1: float | None = None
    own: bool = False


@dataclass(frozen=True)
class ModelCard:
    """What a trained model is, what it was trained on, and what it reached.

    ``complete`` and ``partial`` count the images that it was trained on, ``test`` those that it was measured on, which
    ``tested_on`` describes. ``ap50`` is VOC's AP at IoU 0.5 with its 95 % interval for other images of the same kind,
    ``coco_ap`` COCO's mean over IoU 0.5 to 0.95; None where nothing was measured. ``detector``, ``training`` and
    ``pseudo`` are settings. ``sha256`` is the checksum of the weights.
    """

    name: str
    rarebox: str
    data: str
    classes: tuple[ClassCard, ...]
    complete: int | None
    partial: int | None
    test: int
    tested_on: str
    ap50: float | None
    ap50_interval: tuple[float, float] | None
    coco_ap: float | None
    detector: Mapping[str, Any]
    training: Mapping[str, Any]
    pseudo: Mapping[str, Any]
    seed: int | None
    sha256: str

    @property
    def measured(self) -> bool:
        """Whether its thresholds were chosen on test images."""
        return any(one.f1 is not None for one in self.classes)

    def write(self, to_json: Path, to_page: Path, export: Mapping[str, str] | None = None) -> None:
        """Write the card as JSON and as a page. ``export`` describes the file of an exported model."""
        write_json(to_json, {**asdict(self), **({"export": export} if export else {})})
        write_text(to_page, self.as_page(export or {}))

    def as_page(self, export: Mapping[str, str]) -> str:
        """The card as Markdown."""
        parts = [f"# {_cell(self.name)}", self._summary(), self._table(), *self._warnings()]
        settings = {"detector": self.detector, "training": self.training, "pseudo labels": self.pseudo}
        tables = [_pairs(title, values) for title, values in {"export": export, **settings}.items()]
        seed = "" if self.seed is None else f" Seed {self.seed}."
        return "\n\n".join(filter(None, (*parts, *tables, f"Weights: SHA-256 `{self.sha256}`.{seed}"))) + "\n"

    def _summary(self) -> str:
        kind = f"{self.detector.get('name')} on {self.detector.get('backbone')}"
        lines = [f"A {kind} for {counted(len(self.classes), 'class', 'classes')}, trained by rarebox {self.rarebox}."]
        if self.complete is not None:
            images = f"{self.complete} fully and {self.partial} partially labelled images"
            lines.append(f"Trained on {images} of {_cell(self.data)}.")
        if self.ap50 is not None:
            low_high = self.ap50_interval
            interval = f" (95 % interval {low_high[0]:.3f} to {low_high[1]:.3f})" if low_high else ""
            coco = "" if self.coco_ap is None else f", COCO AP {self.coco_ap:.3f}"
            images = counted(self.test, "image")
            lines.append(f"AP50 {self.ap50:.3f}{interval}{coco} on {images}: {self.tested_on}.")
        else:
            lines.append(f"Not measured: {self.tested_on}.")
        return "\n".join(lines)

    def _table(self) -> str:
        head = "| class | trained on | test objects | AP50 | threshold | F1 there |\n|---|---|---|---|---|---|"
        rows = [
            f"| {_cell(one.name)} | {_number(one.objects)} | {_number(one.test_objects)} | {_fraction(one.ap50)} | "
            f"{one.threshold:.2f}{'' if one.own or not self.measured else ' (all classes)'} | {_fraction(one.f1)} |"
            for one in self.classes
        ]
        return "\n".join([head, *rows])

    def _warnings(self) -> list[str]:
        if not self.measured:
            return ["No threshold was measured. 0.5 is a guess: try others on your own images."]
        shared = [one.name for one in self.classes if not one.own]
        lines = [
            "A box is shown from the threshold of its class on: the score at which F1 is largest on the test images."
        ]
        if shared:
            lines.append(
                f"{counted(len(shared), 'class has', 'classes have')} too few test objects for a threshold and share "
                "that of all classes."
            )
        total = sum(one.test_objects or 0 for one in self.classes)
        if total < FEW:
            lines.append(f"There are only {counted(total, 'test object')}, so AP and thresholds are uncertain.")
        return [" ".join(lines)]


def read_card(file: Path) -> ModelCard:
    """Read a card that :meth:`ModelCard.write` wrote. Raises Damaged if there is none."""
    told = read_json(file, dict)
    try:
        known = {name: value for name, value in told.items() if name in ModelCard.__dataclass_fields__}
        return TypeAdapter(ModelCard).validate_python(known)
    except ValidationError as error:
        raise damaged(file, error.errors()[0]["msg"]) from error


def _pairs(title: str, values: Mapping[str, object]) -> str:
    rows = [f"| {name} | {_cell(str(value))} |" for name, value in values.items()]
    return "\n".join([f"## {title.capitalize()}", "", "| setting | value |", "|---|---|", *rows]) if rows else ""


def _cell(text: str) -> str:
    """A text in Markdown, also within a table."""
    plain = " ".join(presentable(text).split())
    return "".join(f"\\{sign}" if sign in "\\|`*_[]<>#" else sign for sign in plain)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _fraction(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def class_cards(names: Sequence[str], **columns: Sequence[Any] | None) -> tuple[ClassCard, ...]:
    """The cards of classes, from columns of the fields of :class:`ClassCard`; a column that is None is unknown."""
    known = {name: column for name, column in columns.items() if column is not None}
    return tuple(
        ClassCard(name, **{field: column[row] for field, column in known.items()}) for row, name in enumerate(names)
    )
