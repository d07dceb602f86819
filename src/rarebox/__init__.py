"""Box-level active learning for object detection: which boxes to label next, rare classes included.

The names in ``__all__`` are the Python API. Each is imported on first use, so ``import rarebox`` loads no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from rarebox.api import (
        Simulation,
        build_detector,
        export_model,
        load_dataset,
        make_settings,
        predict,
        simulate,
        train,
    )
    from rarebox.config import Settings
    from rarebox.data.detected import Predicted
    from rarebox.data.model_card import ClassCard, ModelCard
    from rarebox.data.pictures import Pictures
    from rarebox.errors import UserError
    from rarebox.evaluation import Evaluation, evaluate
    from rarebox.external.in_memory import RankedBox, Ranking, View, rank
    from rarebox.labels.store import Store
    from rarebox.labels.targets import make_targets
    from rarebox.types import Detections, GroundTruth, ImageLabels, Targets

__all__ = [
    "ClassCard",
    "Detections",
    "Evaluation",
    "GroundTruth",
    "ImageLabels",
    "ModelCard",
    "Pictures",
    "Predicted",
    "RankedBox",
    "Ranking",
    "Settings",
    "Simulation",
    "Store",
    "Targets",
    "UserError",
    "View",
    "build_detector",
    "evaluate",
    "export_model",
    "load_dataset",
    "make_settings",
    "make_targets",
    "predict",
    "rank",
    "simulate",
    "train",
]

_HOME = {
    "ClassCard": "data.model_card",
    "Detections": "types",
    "Evaluation": "evaluation",
    "GroundTruth": "types",
    "ImageLabels": "types",
    "ModelCard": "data.model_card",
    "Pictures": "data.pictures",
    "Predicted": "data.detected",
    "RankedBox": "external.in_memory",
    "Ranking": "external.in_memory",
    "Settings": "config",
    "Simulation": "api",
    "Store": "labels.store",
    "Targets": "types",
    "UserError": "errors",
    "View": "external.in_memory",
    "build_detector": "api",
    "evaluate": "evaluation",
    "export_model": "api",
    "load_dataset": "api",
    "make_settings": "api",
    "make_targets": "labels.targets",
    "predict": "api",
    "rank": "external.in_memory",
    "simulate": "api",
    "train": "api",
}
"""The module of each name of the API."""

if not TYPE_CHECKING:  # a type checker knows the names from above, and reports all others

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
