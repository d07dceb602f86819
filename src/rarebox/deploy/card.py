"""The model card of a model that ``rarebox train`` made, or that a run or project has."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from rarebox import __version__
from rarebox.config import Settings
from rarebox.core.files import read_json
from rarebox.data.model_card import JSON, ModelCard, class_cards, read_card
from rarebox.deploy.labels import Labels
from rarebox.deploy.model import Model
from rarebox.detectors.detector import read_about
from rarebox.errors import Damaged, UserError
from rarebox.loop.measuring import Measured
from rarebox.loop.run_folder import RunFolder

NO_TEST = "no fully labelled image was left to measure it on"


def card_of_training(
    name: str, labels: Labels, settings: Settings, measured: Measured | None, sha256: str
) -> ModelCard:
    """The card of a model that was trained on labels. ``measured`` is None without test images."""
    where = "a random fifth of the fully labelled images, never trained on" if labels.held_out else "the test images"
    return ModelCard(
        name,
        __version__,
        labels.name,
        class_cards(labels.classes, objects=labels.objects.tolist(), **_columns(measured)),
        len(labels.complete),
        len(labels.partial),
        len(labels.test),
        where if measured else NO_TEST,
        **_results(measured),
        **_settings(settings),
        sha256=sha256,
    )


def card_of(model: Model) -> ModelCard:
    """The card of any model; of a run or project, from its records."""
    with suppress(Damaged):
        return read_card(model.folder / JSON)
    names = model.names
    try:
        measured: Any = read_json(model.folder / "evaluated.json", dict)
        fields = Measured.__required_keys__
        measured = measured if fields <= measured.keys() and len(measured["own"]) == len(names) else None
    except Damaged:
        measured = None
    run = RunFolder(model.folder.parent)
    record: Any = {}
    settings: dict[str, Any] = {"detector": read_about(model.folder)[1].model_dump(mode="json"), "training": {}}
    settings |= {"pseudo": {}, "seed": None}
    with suppress(UserError):
        settings = _settings(run.read_settings())
        record = next((one for one in run.records() if run.cycle(one["cycle"]) == model.folder), {})
    objects = record.get("human_per_class", {})
    return ModelCard(
        f"{model.folder.parent.name}, {model.folder.name}",
        __version__,
        run.root.name,
        class_cards(
            names,
            objects=[objects.get(name) for name in names] if objects else None,
            **(_columns(measured) if measured else {"threshold": model.thresholds.tolist()}),
        ),
        record.get("images_full"),
        record.get("images_partial"),
        measured["images"] if measured else 0,
        "its test or held-out images" if measured else "nothing is recorded",
        **_results(measured),
        **settings,
        sha256=model.sha256,
    )


def _columns(measured: Measured | None) -> dict[str, Any]:
    """The columns of the classes that were measured."""
    if not measured:
        return {}
    per_class = list(measured["result"]["per_class_ap50"].values())
    columns = {"test_objects": measured["objects"], "ap50": per_class, "f1": measured["f1"], "own": measured["own"]}
    return {**columns, "threshold": measured["thresholds"]}


def _results(measured: Measured | None) -> dict[str, Any]:
    if not measured:
        return {"ap50": None, "ap50_interval": None, "coco_ap": None}
    interval = measured["ap50_interval"]
    result = measured["result"]
    return {
        "ap50": result["ap50"],
        "ap50_interval": (interval[0], interval[1]) if interval else None,
        "coco_ap": result["coco_ap"],
    }


def _settings(settings: Settings) -> dict[str, Any]:
    """The settings that decide a model. A file of weights goes by its name, as its folder says nothing to others."""
    detector = settings.detector.model_dump(mode="json")
    if Path(detector["weights"]).is_absolute():
        detector["weights"] = Path(detector["weights"]).name
    training, pseudo = (part.model_dump(mode="json") for part in (settings.training, settings.pseudo))
    return {"detector": detector, "training": training, "pseudo": pseudo, "seed": settings.seed}
