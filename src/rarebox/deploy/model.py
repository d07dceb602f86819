"""A trained model with what is needed to use it: the names of its classes, and a threshold for each."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rarebox.core.files import read_json
from rarebox.data.model_card import JSON
from rarebox.detectors.detector import ABOUT, WEIGHTS, check_saved, read_about
from rarebox.detectors.start import model_in
from rarebox.detectors.weights import checksum
from rarebox.errors import Damaged, UserError
from rarebox.evaluation import UNMEASURED
from rarebox.loop.run_folder import RunFolder, is_store, open_store
from rarebox.types import Floats, Ints


@dataclass(frozen=True, eq=False)
class Model:
    """A saved model of K classes.

    ``counts_as`` (K,) is the class that each of its classes is today, after merges, as a place in ``classes``.
    ``thresholds`` (K,) are the scores from which its detections are shown. ``measured``: they were chosen on test or
    held-out images; otherwise they are UNMEASURED. ``sha256`` is the checksum of its weights.
    """

    folder: Path
    classes: tuple[str, ...]
    counts_as: Ints
    thresholds: Floats
    measured: bool
    sha256: str

    def name_of(self, number: int) -> str:
        """The present name of one of its classes."""
        return self.classes[int(self.counts_as[number])]

    @property
    def names(self) -> tuple[str, ...]:
        """The present names of its K classes; merged ones repeat."""
        return tuple(self.name_of(number) for number in range(len(self.counts_as)))


def open_model(place: Path) -> Model:
    """The model in a folder, or that of the last trained cycle of a run or project.

    Classes that were renamed or merged since the training have their present names. Raises UserError if there is no
    model, or nothing knows the names of its classes.
    """
    if not place.is_dir():
        raise UserError(f"{place} is not a folder. Name the folder of a run, a project or a model")
    folder = model_in(place)
    check_saved(folder)
    count, _ = read_about(folder)
    classes, counts_as = _classes(folder, count)
    thresholds = _thresholds(folder, count)
    return Model(
        folder,
        classes,
        counts_as[:count],
        np.full(count, UNMEASURED) if thresholds is None else thresholds,
        thresholds is not None,
        checksum(folder / WEIGHTS),
    )


def _classes(folder: Path, count: int) -> tuple[tuple[str, ...], Ints]:
    """All class names of the run or project of a model, and what each counts as; else those saved with the model.

    A model with a card is from ``rarebox train`` and belongs to no run, even if its folder lies in one. Neither does a
    model with a class name that was never used there.
    """
    named: list[str] = read_json(folder / ABOUT, dict).get("classes") or []
    for root in () if (folder / JSON).exists() else (folder, folder.parent):
        run = RunFolder(root)
        if run.settings.exists() and is_store(run.labels(run.read_settings())):
            with open_store(root) as store:
                classes, counts_as, names = store.classes(), store.counts_as(), store.names_of_classes()
            theirs = all(name in names.get(label, ()) for label, name in enumerate(named))
            if len(classes) >= count and theirs:
                return classes, counts_as
    if len(named) != count:
        raise UserError(
            f"the model in {folder} has {count} classes and no names for them. Name the run or project that it belongs "
            "to"
        )
    return tuple(named), np.arange(count)


def _thresholds(folder: Path, count: int) -> Floats | None:
    """The thresholds that were measured with the model, (K,), if they were."""
    try:
        told = read_json(folder / "evaluated.json", dict).get("thresholds")
        found = np.array(told, dtype=np.float64)
    except (Damaged, ValueError, TypeError):
        return None
    return found if told and found.shape == (count,) and ((found >= 0) & (found <= 1)).all() else None
