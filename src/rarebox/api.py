"""The functions of ``import rarebox`` that set up other modules' work: data, settings, a detector, a simulation."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial as partial_
from pathlib import Path
from typing import TYPE_CHECKING

from rarebox import config
from rarebox.config import Settings
from rarebox.data.listings import Dataset
from rarebox.errors import UserError

if TYPE_CHECKING:
    from rarebox.data.detected import Predicted
    from rarebox.data.model_card import ModelCard
    from rarebox.detectors import TorchDetector
    from rarebox.loop.metrics import CycleRecord


def load_dataset(path: str | Path) -> Dataset:
    """Load a labelled data set: a folder in COCO, VOC or YOLO format, or a name.

    ``scenes`` is drawn on the spot; ``voc0712``, ``voc2007`` and ``voc2012`` are downloaded on first use. What cannot
    be used is listed in ``problems``. Raises UserError if the path does not exist or holds no known format.
    """
    from rarebox.data import datasets  # here, because it loads scikit-learn

    return datasets.load_data(str(path))


def make_settings(preset: str = "laptop", file: str | Path | None = None, **changes: object) -> Settings:
    """Make the settings of a run: a preset, then a YAML file, then single changes, each over the one before.

    ``preset`` is ``laptop`` or ``paper``. A change is named like the setting, with two underscores for the dot:
    ``training__steps=50``. Raises UserError for an unknown name, with the nearest known one, and for a wrong value.
    """
    return config.resolve(str(preset), Path(file) if file else None, _dotted(changes))


def build_detector(
    name: str | None = None,
    *,
    num_classes: int,
    settings: Settings | None = None,
    seed: int | None = None,
    **changes: object,
) -> "TorchDetector":
    """Build a detector with ``fit``, ``predict``, ``predict_views``, ``save`` and ``load``. Loads torch.

    ``name`` is ``faster_rcnn`` or ``retinanet``, by default that of the settings. ``settings`` say the device, how it
    trains and what else it is made of, by default those of the preset ``laptop``, a ``faster_rcnn``; ``changes`` are
    settings of the section ``detector``, such as ``image_size=192``. Weights that are not pretrained are drawn from
    ``seed``. Raises UserError for an unknown name, a wrong value, ``settings`` made for another detector, or weights
    that are not available.
    """
    from rarebox import detectors  # here, because it loads torch

    given = {"name": name, **changes} if name is not None else changes
    chosen = _changed(settings, {f"detector.{key}": value for key, value in given.items()})
    return detectors.build(
        **chosen.detector.model_dump(),
        num_classes=num_classes,
        device=chosen.device,
        training=chosen.training,
        seed=seed,
    )


def train(
    labels: str | Path,
    to: str | Path,
    *,
    settings: Settings | None = None,
    hold_out: bool = True,
    partial: bool = False,
    progress: bool = False,
    **changes: object,
) -> "ModelCard":
    """Train a final detector on labels, complete or partial, and write it to a new folder with its card. Loads torch.

    ``labels`` is a data set as :func:`load_dataset` takes it, such as an export; what its files say of each image
    decides whether it is fully labelled, and with ``partial`` none is. ``settings`` are by default those of the preset
    ``laptop`` with 30 epochs; ``changes`` (as in :func:`make_settings`) override them. Without test images, a fifth of
    the fully labelled ones measure the detector, unless ``hold_out`` is False. The same call resumes after an
    interruption. ``progress`` draws progress bars. Raises UserError for anything to put right.
    """
    from rarebox.cli.progress import progress_bars
    from rarebox.deploy.train import train as make  # here, because it loads torch

    base = config.resolve(final=True) if settings is None else settings
    chosen = _changed(base, _dotted(changes))
    work = partial_(make, Path(labels), Path(to), chosen, hold_out=hold_out, partial=partial)
    if not progress:
        return work()
    with progress_bars(False) as report:
        return work(progress=report)


def predict(
    model: "Simulation | str | Path",
    images: str | Path,
    to: str | Path,
    *,
    score: float | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    pictures: bool = True,
    device: str = "auto",
    progress: bool = False,
) -> "Predicted":
    """Detect objects on images with a trained model, and write the results into a folder. Loads torch.

    ``model`` is a simulation, or the folder of a run, a project or a model. ``images`` is a folder, an image, a text
    file of paths or a COCO file. ``to`` gets ``detections.csv`` and ``coco.json`` with the boxes that are shown,
    ``detections.jsonl`` and ``coco_results.json`` with all, and, with ``pictures``, images with boxes. A box is shown
    from the threshold of its class on, or from ``score`` in [0, 1]. With ``tile`` the model runs on square tiles with
    this side in pixels, which overlap by ``overlap`` pixels (a fifth of the side by default). The same call resumes
    after an interruption. ``progress`` draws progress bars. Raises UserError for anything that the user can correct.
    """
    from rarebox.cli.progress import progress_bars
    from rarebox.data.tiles import tiling_of
    from rarebox.deploy.predict import predict as detect  # here, because it loads torch

    folder = model.folder if isinstance(model, Simulation) else Path(model)
    tiling = tiling_of(tile, overlap)
    work = partial_(
        detect, folder, Path(images), Path(to), score=score, tiling=tiling, pictures=pictures, device=device
    )
    if not progress:
        return work()
    with progress_bars(False) as report:
        return work(progress=report)


def export_model(
    model: "Simulation | str | Path", to: str | Path, *, format: str | None = None, size: str | None = None
) -> Path:
    """Write a trained model as one file for other programs, with its card in ``TO.md`` and ``TO.json``. Loads torch.

    ``model`` is a simulation, or the folder of a run, a project or a model. ``format`` is ``onnx`` (needs
    ``rarebox[onnx]``) or ``torchscript``, by default that of the file's name. ``size`` is the one size of images, such
    as ``"640x480"`` (width and height), by default any. Raises UserError for anything to put right.
    """
    from rarebox.deploy.export import export_model as write  # here, because it loads torch

    return write(model.folder if isinstance(model, Simulation) else Path(model), Path(to), format, size)


@dataclass(frozen=True)
class Simulation:
    """A finished simulation.

    ``records`` has one entry for each cycle, the same as ``metrics.json`` in ``folder``. Cycle 1 trains on the initial
    images; each later cycle first spends its budget.
    """

    folder: Path
    settings: Settings
    records: "Sequence[CycleRecord]"

    @property
    def labels(self) -> list[int]:
        """Human boxes up to each cycle, those of the initial images included."""
        return [record["labels"] for record in self.records]

    @property
    def ap50(self) -> list[float | None]:
        """VOC AP at IoU 0.5 after each cycle, in [0, 1]; None where the test images hold no object."""
        return [record["ap50"] for record in self.records]


def simulate(
    data: str | Path | Dataset,
    out: str | Path | None = None,
    *,
    strategy: str | None = None,
    seed: int | None = None,
    settings: Settings | None = None,
    share: "Simulation | str | Path | None" = None,
    progress: bool = False,
    **changes: object,
) -> Simulation:
    """Simulate active learning on a labelled data set, or resume a simulation that was interrupted. Loads torch.

    ``data`` is what :func:`load_dataset` takes or returns. ``out`` is the run's folder, by default a new temporary one;
    the same call with the same folder resumes the run. ``settings`` are by default those of the preset ``laptop``;
    ``strategy``, ``seed`` and further ``changes`` (as in :func:`make_settings`) override them. Another detector than
    that of ``settings`` needs its own ``training__lr``. ``share`` is a simulation, or its folder, with the same images,
    labels, seed and detector: its model of cycle 1 is reused, so that strategies are compared from the same start.
    ``progress`` draws progress bars. Raises UserError for anything that the user can correct.
    """
    from rarebox.cli.progress import progress_bars
    from rarebox.loop.simulate import simulate as run_all_cycles  # here, because it loads torch

    dataset = data if isinstance(data, Dataset) else None
    given = {"data": str(dataset.root if dataset else data), "selection.strategy": strategy, "seed": seed}
    chosen = _changed(settings, {name: v for name, v in given.items() if v is not None} | _dotted(changes))
    folder = Path(out) if out else Path(tempfile.mkdtemp(prefix="rarebox-"))
    first = share.folder if isinstance(share, Simulation) else Path(share) if share else None
    if progress:
        with progress_bars(False) as report:
            records = run_all_cycles(folder, chosen, dataset, share=first, progress=report)
    else:
        records = run_all_cycles(folder, chosen, dataset, share=first)
    return Simulation(folder, chosen, tuple(records))


def _changed(settings: Settings | None, changes: Mapping[str, object]) -> Settings:
    """The settings, or those of the preset ``laptop``, with changes by dotted name.

    Raises UserError for another detector without a learning rate: the preset chose the rate by the detector.
    """
    base, new = config.or_laptop(settings), dict(config.flatten(changes))
    chosen = config.resolve("laptop", None, {**dict(config.flatten(base.model_dump(mode="json"))), **new})
    before, now = base.detector.name, chosen.detector.name
    if settings is not None and before != now and "training.lr" not in new:
        raise UserError(
            f"the settings, with their learning rate, are for {before}, not {now}. Make them for it: "
            f"make_settings(…, detector__name={now!r})"
        )
    return chosen


def _dotted(changes: Mapping[str, object]) -> dict[str, object]:
    return {name.replace("__", "."): value for name, value in changes.items()}
