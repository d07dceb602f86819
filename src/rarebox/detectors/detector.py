"""What the rest of rarebox sees of a network: pictures and targets in, losses or detections out."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from rarebox.config import DetectorSettings, TrainingSettings, as_written_before
from rarebox.core.files import damaged, read_json, write_bytes, write_json
from rarebox.data.pictures import Pictures
from rarebox.detectors import on_device
from rarebox.detectors.backbones import Pyramid
from rarebox.detectors.distributed import Job, call_helpers
from rarebox.detectors.faster_rcnn import WeightedFasterRCNN
from rarebox.detectors.frozen import Look
from rarebox.detectors.inputs import as_input, as_target, augment, input_size, scale_of, with_views
from rarebox.detectors.maps import CachedPicture, padded
from rarebox.detectors.retinanet import WeightedRetinaNet
from rarebox.detectors.training import Progress, autocast, train
from rarebox.errors import UserError
from rarebox.pool.affine import Frame
from rarebox.pool.views import View
from rarebox.types import Bools, Detections, Floats, Ints, Picture, Targets

Network = WeightedRetinaNet | WeightedFasterRCNN

Image = Picture | CachedPicture | NDArray[np.uint8]
"""A picture that knows the size of its original, one that a frozen body has seen, or bare pixels (h, w, 3), RGB."""

Matched = tuple[Ints, Floats]
"""What ``candidates.find_partners`` returns."""

Scored = tuple[list[Detections], Matched | None]
"""Detections of an image and of each of its views, and the partners of its boxes, if the device has looked for them."""

ABOUT, WEIGHTS = "model.json", "model.safetensors"
"""The two files of a saved model."""


class TorchDetector:
    """A weighted network on a device. Boxes are in pixels of the original images, on the way in and out."""

    def __init__(
        self,
        network: Network,
        num_classes: int,
        settings: DetectorSettings,
        training: TrainingSettings,
        device: torch.device,
    ) -> None:
        self.network = network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.num_classes, self.settings, self.training, self.device = num_classes, settings, training, device
        if training.freeze == "backbone":
            self.network.backbone.body.requires_grad_(False)
        self.network.eval()

    def losses(self, images: Sequence[Image], targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The loss terms of one batch, with gradients; linear in each positive weight of the targets."""
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
        progress: Progress | None = None,
        complete: Bools | None = None,
    ) -> float:
        """Train on images and their targets, as ``training`` says; the smoothed loss at the end.

        ``images`` may decode them on access; ``complete`` (n,) says which are completely labelled. With ``checkpoint``
        a killed fit goes on where it was.
        """
        if not len(images):
            raise UserError("there is no image to train on; label some first")

        pictures: Sequence[Picture | CachedPicture] = images if isinstance(images, Pictures) else _as_pictures(images)
        call_helpers(
            Job(self.device.type, self.settings, self.training, self.num_classes, pictures, targets, seed, complete)
        )

        def prepare(
            pictures: Sequence[Picture | CachedPicture], truths: Sequence[Targets], dice: Sequence[np.random.Generator]
        ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
            return augment(*self._prepare(pictures, truths), dice, self.training.flip, self.training.scale_jitter)

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
            )

    def predict(self, images: Sequence[Image], *, features: bool = False) -> list[Detections]:
        """Detections of each image, best score first; with ``features``, a feature vector for each box."""
        return [found for (found,) in self.predict_views(images, [()] * len(images), features=features)]

    def predict_views(
        self, images: Sequence[Image], views: Sequence[Sequence[View]], *, features: bool = False
    ) -> list[list[Detections]]:
        """Each image and all its views through the network in one batch: [image, view 1, … view M] of each image.

        ``views[i]`` are made for the input of image i (see :meth:`input_size`). Boxes come back in the original image's
        pixels, those of a view in the view's pixels (see :meth:`frames`).
        """
        return [found for found, _ in self.queue_views(images, views, features=features)()] if len(images) else []

    @property
    def ahead(self) -> int:
        """How many batches should be queued before the first of them is read."""
        return int(on_device.use_async_path(self.device))

    def queue_views(
        self, images: Sequence[Image], views: Sequence[Sequence[View]], *, features: bool = False
    ) -> Callable[[], list[Scored]]:
        """:meth:`predict_views` as a function to be called for its result, when the device had time to compute it.

        Where a GPU could not settle everything about an image without waiting, the batch is done again in the way that
        waits, for that image.
        """
        pictures = _as_pictures(images)
        inputs = [with_views(p, plan, self.settings.size, self.device) for p, plan in zip(pictures, views, strict=True)]
        backs = [1 / scale_of(p, *image.shape[1:]) for p, (image, *_) in zip(pictures, inputs, strict=True)]
        found = self._run([one for views_too in inputs for one in views_too], features)
        if on_device.use_async_path(self.device):
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

    def has_body_of(self, other: "TorchDetector") -> bool:
        """Whether the two look at pictures with the same weights."""
        own, theirs = (cast(Pyramid, d.network.backbone).body.state_dict() for d in (self, other))
        return own.keys() == theirs.keys() and all(torch.equal(own[name], theirs[name]) for name in own)

    @torch.inference_mode()
    def look(self, images: Sequence[Picture], views: Sequence[Sequence[View]]) -> list[Look]:
        """What the body makes of each image and of all its views, to be kept for a frozen one: a :data:`Look` each."""
        inputs = [with_views(p, plan, self.settings.size, self.device) for p, plan in zip(images, views, strict=True)]
        batch, _ = self.network.transform([one for views_too in inputs for one in views_too], None)
        pyramid = cast(Pyramid, self.network.backbone)
        with self._inference():
            maps = pyramid.look(batch.tensors)
        levels = [level.permute(0, 2, 3, 1).half().cpu().numpy() for level in maps]
        row, result = 0, []
        for views_too in inputs:
            kept = []
            for one in views_too:
                height, width = (padded(side) for side in one.shape[1:])
                kept += [m[row, : height // s, : width // s] for m, s in zip(levels, pyramid.strides, strict=True)]
                row += 1
            result.append(((views_too[0].shape[1], views_too[0].shape[2]), kept))
        return result

    @torch.inference_mode()
    def box_features(self, images: Sequence[Image], boxes: Sequence[Floats]) -> list[Floats]:
        """A feature vector of each given box, comparable with those of detections: (G, 4) -> (G, D) of each image."""
        pictures = _as_pictures(images)
        tensors = [as_input(picture, self.settings.size, self.device) for picture in pictures]
        scaled = [
            torch.tensor(b * scale_of(p, *t.shape[1:]), dtype=torch.float32, device=self.device)
            for b, p, t in zip(boxes, pictures, tensors, strict=True)
        ]
        with self._inference():
            return [f.float().cpu().numpy() for f in self.network.box_features(tensors, scaled)]

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image]) -> Floats:
        """One vector of each image: the pyramid's four finest maps, averaged over the image (as BLAD's CoreSet does):
        (B, 4 C)."""
        pictures = _as_pictures(images)
        batch, _ = self.network.transform([as_input(p, self.settings.size, self.device) for p in pictures], None)
        with self._inference():
            maps = list(self.network.backbone(batch.tensors).values())[:4]
        rows = []
        for i, size in enumerate(batch.image_sizes):
            # Of each map the part that shows the image, not the padding.
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
        """Height and width of the network's input for a picture."""
        if isinstance(picture, CachedPicture):
            return picture.input_size
        return input_size(picture.pixels.shape[0], picture.pixels.shape[1], self.settings.size)

    def scale_of(self, picture: Picture | CachedPicture) -> Floats:
        """What boxes in the original image's pixels are multiplied by in the network's input: (4,)."""
        height, width = self.input_size(picture)
        return scale_of(picture, height, width)

    def frames(self, picture: Picture | CachedPicture, views: Sequence[View]) -> list[Frame]:
        """Where boxes in the original image's pixels lie on each view of a picture."""
        return [view.from_original(self.scale_of(picture)) for view in views]

    def save(self, folder: Path) -> None:
        """Write the weights and how to rebuild the network; the weights come last, and whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        about = {"num_classes": self.num_classes, "detector": self.settings.model_dump()}
        write_json(folder / ABOUT, about)
        # Through bytes of our own: the library reports a full disk as an error of another kind.
        write_bytes(folder / WEIGHTS, save({n: t.contiguous() for n, t in self.network.state_dict().items()}))

    def load(self, folder: Path) -> None:
        """Read weights that :meth:`save` wrote for a network of the same shape."""
        num_classes, settings = read_about(folder)
        if num_classes != self.num_classes:
            raise UserError(f"the model in {folder} knows {num_classes} classes, {self.num_classes} are wanted")
        try:
            self.network.load_state_dict(load_file(folder / WEIGHTS, device=str(self.device)))
        except (OSError, SafetensorError) as error:
            raise damaged(folder / WEIGHTS, error) from error
        except RuntimeError as error:
            kind = f"{settings.name} on {settings.backbone}"
            raise UserError(f"the model in {folder} is a {kind}, not the network it is loaded into") from error
        self.network.eval()

    def _prepare(
        self, images: Sequence[Image], targets: Sequence[Targets]
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        pictures = _as_pictures(images)
        tensors = [as_input(picture, self.settings.size, self.device) for picture in pictures]
        truths = [
            as_target(target, scale_of(picture, *tensor.shape[1:]), self.device)
            for target, picture, tensor in zip(targets, pictures, tensors, strict=True)
        ]
        return tensors, truths

    @torch.inference_mode()
    def _run(self, tensors: list[Any], features: bool) -> Any:
        """A dict of detections for each input; the way on a GPU, Columns of all."""
        part = self.network if isinstance(self.network, WeightedRetinaNet) else self.network.roi_heads
        part.with_features = features
        with self._inference():
            return self.network(tensors)

    @torch.inference_mode()
    def _matched(
        self, found: on_device.Columns, frames: Sequence[Sequence[Frame]], backs: Sequence[Floats]
    ) -> on_device.Parcel:
        """Detections as :meth:`predict_views` returns them, with their partners, on their way to the host."""
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
            "the accelerator has too little memory; lower training.batch_size (in training), scoring.batch_size (in "
            "scoring) or detector.image_size, and start again in a new folder"
        ) from error


def _as_pictures(images: Sequence[Image]) -> list[Picture | CachedPicture]:
    return [image if isinstance(image, CachedPicture) else Picture.of(image) for image in images]


def _detections(found: dict[str, Tensor], back: Floats | float = 1.0) -> Detections:
    """The network's output, its boxes multiplied by ``back``."""
    columns = {name: column.float().cpu().numpy() for name, column in found.items()}
    boxes = columns["boxes"] * back
    good = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # a box clipped to nothing at the border is none
    return Detections(boxes[good], **{name: column[good] for name, column in columns.items() if name != "boxes"})


def _opened(parcel: on_device.Parcel, counts: Sequence[int]) -> list[Scored | None]:
    """What lies in the parcel, image by image: each with so many pictures of the batch, the image itself first.

    None for an image of which a picture is not settled.
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
    """Damaged unless a model is there, as far as can be told without reading its weights."""
    read_about(folder)
    try:
        with safe_open(str(folder / WEIGHTS), "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise damaged(folder / WEIGHTS, error) from error


def read_about(folder: Path) -> tuple[int, DetectorSettings]:
    """Number of classes and settings of a saved model; Damaged if there is none."""
    about = read_json(folder / ABOUT, dict)
    try:
        told = as_written_before({"detector": dict(about["detector"])})["detector"]
        return about["num_classes"], DetectorSettings.model_validate(told)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(folder / ABOUT, error) from error
