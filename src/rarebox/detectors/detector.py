"""The detector around a torch network: pictures and targets in, losses or detections out."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rarebox.config import DetectorSettings, TrainingSettings, as_written_before
from rarebox.core.files import damaged, read_json, write_bytes, write_json
from rarebox.data.pictures import Pictures
from rarebox.detectors import hub, on_device
from rarebox.detectors.augmentation import Draw, augmented
from rarebox.detectors.backbones import Pyramid
from rarebox.detectors.distributed import Job, call_helpers
from rarebox.detectors.faster_rcnn import FURTHER_ROWS, WeightedFasterRCNN
from rarebox.detectors.inputs import Size, as_input, as_target, input_size, scale_of, with_views
from rarebox.detectors.maps import CachedPicture, Extracted, Input, padded
from rarebox.detectors.protocol import FitProgress, Image, Scored
from rarebox.detectors.retinanet import WeightedRetinaNet
from rarebox.detectors.teacher import Renewal
from rarebox.detectors.training import autocast, train
from rarebox.detectors.weights import Tensors, take_over
from rarebox.errors import UserError
from rarebox.pool.affine import Frame
from rarebox.pool.views import View
from rarebox.types import Bools, Detections, Floats, Picture, Targets

if TYPE_CHECKING:  # transformers is an extra, and takes seconds to import
    from rarebox.detectors.dfine import WeightedDFine

Network: TypeAlias = "WeightedRetinaNet | WeightedFasterRCNN | WeightedDFine"

ABOUT, WEIGHTS = "model.json", "model.safetensors"
"""The two files of a saved model."""


class TorchDetector:
    """A :class:`~rarebox.detectors.protocol.Detector`: a network on a device, with its settings.

    Boxes are in pixels of the original images, both of targets and of detections.
    """

    def __init__(
        self,
        network: Network,
        num_classes: int,
        settings: DetectorSettings,
        training: TrainingSettings,
        device: torch.device,
        classes: Sequence[str] = (),
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_classes, self.settings, self.training, self.device = num_classes, settings, training, device
        self.classes = tuple(classes)
        if training.freeze == "backbone":
            self.network.backbone.body.requires_grad_(False)
        self.network.eval()

    @property
    def size(self) -> Size:
        """The size of the network's input, in pixels."""
        return self.settings.image_size if self.network.stretches else self.settings.size

    def start_from(self, saved: Tensors, rows: Sequence[str] = ()) -> None:
        """Copy the weights of a backbone or of a whole detector, whose class layers have these rows.

        Raises UserError unless they fit the backbone.
        """
        own = (*self.network.further_rows, *self.classes) if self.classes else ()
        take_over(self.network, saved, rows, own)

    def losses(self, images: Sequence[Image], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The loss terms of one batch, with gradients. Each term is linear in the positive weights of the targets."""
        self.network.train()
        tensors, truths = self._prepare(images, targets)
        with autocast(self.device, self.training.precision):
            return self.network(tensors, truths)

    def fit(
        self,
        images: Sequence[Image],
        targets: Sequence[Targets],
        *,
        seed: int,
        checkpoint: Path | None = None,
        progress: FitProgress | None = None,
        complete: Bools | None = None,
        renewal: Renewal | None = None,
    ) -> float:
        """Train on images and their targets by the training settings, and return the final smoothed loss.

        ``images`` may be decoded on access. ``complete`` (n,) marks the fully labelled ones; ``renewal`` says how the
        pseudo labels of the others are renewed from ``training.renew_from`` of the steps on. With ``checkpoint`` an
        interrupted fit resumes. Raises UserError without images, and TrainingDiverged.
        """
        if not len(images):
            raise UserError("there are no images to train on. Label some first")

        pictures: Sequence[Picture | CachedPicture] = images if isinstance(images, Pictures) else _as_pictures(images)
        call_helpers(
            Job(
                self.device.type,
                self.settings,
                self.training,
                self.num_classes,
                pictures,
                targets,
                seed,
                complete,
                renewal,
            )
        )

        def prepare(
            pictures: Sequence[Picture | CachedPicture], truths: Sequence[Targets], dice: Sequence[np.random.Generator]
        ) -> tuple[list[Input], list[dict[str, Tensor]]]:
            done = [
                augmented(picture, truth, Draw.of(die, self.training), self.size, self.training.zoom > 1, self.device)
                for picture, truth, die in zip(pictures, truths, dice, strict=True)
            ]
            return [image for image, _ in done], [truth for _, truth in done]

        with _memory_errors_explained():
            return train(
                self.network,
                prepare,
                pictures,
                targets,
                self.training,
                seed=seed,
                device=self.device,
                checkpoint=checkpoint,
                progress=progress,
                complete=complete,
                renew=renewal if self.training.renew_from < 1 else None,
            )

    def predict(self, images: Sequence[Image], *, features: bool = False) -> list[Detections]:
        """Detections of each image, best score first; with ``features``, a feature vector (D,) for each box."""
        return [found for (found,) in self.predict_views(images, [()] * len(images), features=features)]

    def predict_views(
        self, images: Sequence[Image], views: Sequence[Sequence[View]], *, features: bool = False
    ) -> list[list[Detections]]:
        """Detections of each image and of its views, from one batch: ``[image, view 1, … view M]`` for each image.

        ``views[i]`` are made for the input of image i (:meth:`input_size`). Boxes of a view are in the view's pixels
        (:meth:`frames`).
        """
        return [found for found, _ in self.queue_views(images, views, features=features)()] if len(images) else []

    @property
    def ahead(self) -> int:
        """How many batches to queue before the first result is read."""
        return int(on_device.use_async_path(self.device))

    def queue_views(
        self, images: Sequence[Image], views: Sequence[Sequence[View]], *, features: bool = False
    ) -> Callable[[], list[Scored]]:
        """Start :meth:`predict_views`, and return a function that waits for its result.

        On a GPU, fixed numbers of rows and rounds may not suffice for an image. The batch is then repeated on the
        synchronous path, for that image.
        """
        pictures = _as_pictures(images)
        inputs = [with_views(p, plan, self.size, self.device) for p, plan in zip(pictures, views, strict=True)]
        backs = [1 / scale_of(p, *image.shape[1:]) for p, (image, *_) in zip(pictures, inputs, strict=True)]
        found = self._run([one for views_too in inputs for one in views_too], features)
        if isinstance(found, dict):
            parcel = self._matched(found, [self.frames(*each) for each in zip(pictures, views, strict=True)], backs)

            def read() -> list[Scored]:
                opened = _opened(parcel, [1 + len(plan) for plan in views])
                if None not in opened:
                    return cast(list[Scored], opened)
                with on_device.waiting():
                    again = self.queue_views(images, views, features=features)()
                return [one or other for one, other in zip(opened, again, strict=True)]

            return read
        rest = iter(found)
        result: list[Scored] = [
            ([_detections(next(rest), back), *(_detections(next(rest)) for _ in plan)], None)
            for plan, back in zip(views, backs, strict=True)
        ]
        return lambda: result

    def has_backbone_of(self, other: Self) -> bool:
        """Whether both detectors have the same backbone weights, so that they may share cached features."""
        own, theirs = (cast(Pyramid, d.network.backbone).body.state_dict() for d in (self, other))
        return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)

    @torch.inference_mode()
    def extract(self, images: Sequence[Picture], views: Sequence[Sequence[View]]) -> list[Extracted]:
        """The frozen backbone's feature maps of each image and its views, for :class:`FeatureCache`."""
        inputs = [with_views(p, plan, self.size, self.device) for p, plan in zip(images, views, strict=True)]
        batch, _ = self.network.transform([one for views_too in inputs for one in views_too], None)
        pyramid = cast(Pyramid, self.network.backbone)
        with self._inference():
            maps = pyramid.extract(batch.tensors)
        levels = [level.permute(0, 2, 3, 1).half().cpu().numpy() for level in maps]
        row, result = 0, list[Extracted]()
        for views_too in inputs:
            kept: list[NDArray[np.float16]] = []
            for one in views_too:
                height, width = (padded(side) for side in one.shape[1:])
                kept += [m[row, : height // s, : width // s] for m, s in zip(levels, pyramid.strides, strict=True)]
                row += 1
            result.append(((views_too[0].shape[1], views_too[0].shape[2]), kept))
        return result

    @torch.inference_mode()
    def box_features(self, images: Sequence[Image], boxes: Sequence[Floats]) -> list[Floats]:
        """A feature vector of each given box, comparable with those of detections: (G, 4) -> (G, D) per image."""
        pictures = _as_pictures(images)
        tensors = [as_input(picture, self.size, self.device) for picture in pictures]
        scaled = [
            torch.tensor(b * scale_of(p, *t.shape[1:]), dtype=torch.float32, device=self.device)
            for b, p, t in zip(boxes, pictures, tensors, strict=True)
        ]
        with self._inference():
            return [f.float().cpu().numpy() for f in self.network.box_features(tensors, scaled)]

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image]) -> Floats:
        """The pyramid's four finest maps, averaged over each image as BLAD's CoreSet does: (B, 4 C)."""
        pictures = _as_pictures(images)
        batch, _ = self.network.transform([as_input(p, self.size, self.device) for p in pictures], None)
        with self._inference():
            maps = list(self.network.backbone(batch.tensors).values())[:4]
        rows = []
        for i, size in enumerate(batch.image_sizes):
            # without the padding
            parts = [
                level[
                    i,
                    :,
                    : math.ceil(size[0] * level.shape[2] / batch.tensors.shape[2]),
                    : math.ceil(size[1] * level.shape[3] / batch.tensors.shape[3]),
                ]
                for level in maps
            ]
            rows.append(torch.cat([part.float().mean(dim=(1, 2)) for part in parts]))
        return torch.stack(rows).cpu().numpy()

    def input_size(self, picture: Picture | CachedPicture) -> tuple[int, int]:
        """Height and width of the network's input for a picture, in pixels."""
        if isinstance(picture, CachedPicture):
            return picture.input_size
        return input_size(picture.pixels.shape[0], picture.pixels.shape[1], self.size)

    def scale_of(self, picture: Picture | CachedPicture) -> Floats:
        """The factors from boxes in the original image to boxes in the network's input: (4,)."""
        height, width = self.input_size(picture)
        return scale_of(picture, height, width)

    def frames(self, picture: Picture | CachedPicture, views: Sequence[View]) -> list[Frame]:
        """The map from the original image's pixels to those of each view."""
        return [view.from_original(self.scale_of(picture)) for view in views]

    def save(self, folder: Path) -> None:
        """Write the network's description, then its weights, each file whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"num_classes": self.num_classes, "classes": self.classes, "detector": self.settings.model_dump()}
        write_json(folder / ABOUT, about)
        # safetensors would not report a full disk as an OSError.
        write_bytes(folder / WEIGHTS, save({n: t.contiguous() for n, t in self.network.state_dict().items()}))

    def load(self, folder: Path) -> None:
        """Read weights that :meth:`save` wrote for a network of the same shape. Raises UserError for another shape."""
        num_classes, settings = read_about(folder)
        if num_classes != self.num_classes:
            raise UserError(f"the model in {folder} has {num_classes} classes, expected {self.num_classes}")
        try:
            self.network.load_state_dict(load_file(folder / WEIGHTS, device=str(self.device)))
        except (OSError, SafetensorError) as error:
            raise damaged(folder / WEIGHTS, error) from error
        except RuntimeError as error:
            kind = f"{settings.name} on {settings.backbone}"
            raise UserError(f"the model in {folder} is a {kind}, not the network that the settings name") from error
        self.network.eval()

    def _prepare(
        self, images: Sequence[Image], targets: Sequence[Targets]
    ) -> tuple[list[Input], list[dict[str, Tensor]]]:
        pictures = _as_pictures(images)
        tensors = [as_input(picture, self.size, self.device) for picture in pictures]
        truths = [
            as_target(target, scale_of(picture, *tensor.shape[1:]), self.device)
            for target, picture, tensor in zip(targets, pictures, tensors, strict=True)
        ]
        return tensors, truths

    @torch.inference_mode()
    def _run(self, inputs: list[Input], features: bool) -> list[dict[str, Tensor]] | on_device.Columns:
        """A dict of detections for each input; on the asynchronous path, Columns of all."""
        self.network.with_features = features
        with self._inference():
            return self.network(inputs)

    @torch.inference_mode()
    def _matched(
        self, found: on_device.Columns, frames: Sequence[Sequence[Frame]], backs: Sequence[Floats]
    ) -> on_device.Parcel:
        """Detections as :meth:`predict_views` returns them, with their matches, in transfer to the host."""
        itself, ones = Frame("", np.eye(2, 3)), np.ones(4, dtype=np.float32)
        scales = [scale for back, plan in zip(backs, frames, strict=True) for scale in (back, *(ones for _ in plan))]
        found = on_device.scaled(found, np.stack(scales))
        counts = [1 + len(plan) for plan in frames]
        images = np.repeat(np.cumsum([0, *counts[:-1]]), counts).tolist()
        return on_device.Parcel(
            {**found, **on_device.partners(found, images, [f for plan in frames for f in (itself, *plan)])}
        )

    @contextmanager
    def _inference(self) -> Iterator[None]:
        self.network.eval()
        with _memory_errors_explained(), autocast(self.device, self.training.precision, inference=True):
            yield


@contextmanager
def _memory_errors_explained() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "the accelerator is out of memory. Lower training.batch_size (while training), scoring.batch_size (while "
            "scoring) or detector.image_size, and start over in a new folder"
        ) from error


def _as_pictures(images: Sequence[Image]) -> list[Picture | CachedPicture]:
    return [image if isinstance(image, CachedPicture) else Picture.of(image) for image in images]


def _detections(found: dict[str, Tensor], back: Floats | float = 1.0) -> Detections:
    """The network's output for one input, its boxes multiplied by ``back``."""
    columns = {name: column.float().cpu().numpy() for name, column in found.items()}
    boxes = columns["boxes"] * back
    good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # clipping at the border may leave no area
    return Detections(boxes[good], **{name: column[good] for name, column in columns.items() if name != "boxes"})


def _opened(parcel: on_device.Parcel, counts: Sequence[int]) -> list[Scored | None]:
    """The content of a parcel by image; image i has ``counts[i]`` rows of the batch, its own first, then its views.

    None for an image of which a row is not settled.
    """
    columns = parcel.open()
    real, settled, partner, iou = (columns.pop(name) for name in ("real", "settled", "partner", "iou"))
    real, result = real.astype(bool), list[Scored | None]()
    for end, count in zip(np.cumsum(counts), counts, strict=True):
        first = end - count
        if not settled[first:end].all():
            result.append(None)
            continue
        found = [Detections(**{n: c[row, real[row]] for n, c in columns.items()}) for row in range(first, end)]
        views, own = slice(first + 1, end), real[first]
        result.append((found, (partner[views, own].astype(np.int64), iou[views, own].astype(np.float64))))
    return result


def check_saved(folder: Path) -> None:
    """Raise Damaged unless a folder holds a saved model. Its weights are not read."""
    read_about(folder)
    try:
        with safe_open(str(folder / WEIGHTS), "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise damaged(folder / WEIGHTS, error) from error


def rows_of(folder: Path) -> tuple[str, ...]:
    """The names of the rows of a model's class layers; empty if nothing in its folder names them."""
    if hub.is_model(folder):
        return hub.classes_of(folder)
    if not (folder / ABOUT).exists():
        return ()
    classes: list[str] = read_json(folder / ABOUT, dict).get("classes") or []
    return (*(FURTHER_ROWS if read_about(folder)[1].name == "faster_rcnn" else ()), *classes) if classes else ()


def read_about(folder: Path) -> tuple[int, DetectorSettings]:
    """The number of classes and the settings of a saved model. Raises Damaged if there is none."""
    about = read_json(folder / ABOUT, dict)
    try:
        saved = as_written_before({"detector": dict(about["detector"])})["detector"]
        return about["num_classes"], DetectorSettings.model_validate(saved)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / ABOUT, error) from error
