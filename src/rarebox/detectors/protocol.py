"""The interface between rarebox and its detectors.

To add one, add an entry to ``detectors.architectures.ARCHITECTURES`` and its names to ``DetectorSettings``. The entry
makes the detector from a ``Blueprint`` (settings, classes, device), and lists the weights that it can start from. A
network like :class:`~rarebox.detectors.retinanet.WeightedRetinaNet` goes into a ``TorchDetector``, which trains and
runs it (``docs/add-a-detector.md`` lists what it needs from a network); a detector that shares nothing with these
networks implements :class:`Detector`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from rarebox.detectors.maps import CachedPicture, Extracted
from rarebox.detectors.teacher import Renewal
from rarebox.pool.affine import Frame
from rarebox.pool.views import View
from rarebox.types import Bools, Detections, Floats, Ints, Picture, Targets

Image = Picture | CachedPicture | NDArray[np.uint8]
"""A decoded picture, one whose feature maps are cached, or bare RGB pixels (h, w, 3)."""

Matched = tuple[Ints, Floats]
"""The result of ``candidates.find_partners``: for each of M views and N boxes a detection and its IoU, (M, N) each."""

Scored = tuple[list[Detections], Matched | None]
"""Detections of an image and of each of its views, and the matches between them if the device has computed them."""

FitProgress = Callable[[int, int, float], None]
"""Called with (steps done, all steps, smoothed loss)."""


class Detector(Protocol):
    """A detector with K classes that the loop trains, runs and saves.

    Boxes are (N, 4) ``x1, y1, x2, y2`` in pixels of the original image, or of a view where a method says so.
    """

    num_classes: int
    """K, without background."""

    @property
    def ahead(self) -> int:
        """How many batches to queue before the first result is read; 0 where nothing runs in parallel."""
        ...

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
        """Train on n images and their weighted targets (Eq. 7), and return the final smoothed loss.

        ``images`` may be decoded on access. ``complete`` (n,) marks the fully labelled images. The same ``seed`` gives
        the same model. ``renewal`` says how an average of the weights renews pseudo labels. With
        ``checkpoint`` an interrupted fit resumes. Raises UserError without images, and
        TrainingDiverged.
        """
        ...

    def predict(self, images: Sequence[Image], *, features: bool = False) -> list[Detections]:
        """Detections of each image, best score first; with ``features``, a feature vector (D,) for each box."""
        ...

    def queue_views(
        self, images: Sequence[Image], views: Sequence[Sequence[View]], *, features: bool = False
    ) -> Callable[[], list[Scored]]:
        """Start detection on each image and its views, and return a function that waits for the result.

        ``views[i]`` are made for the input of image i (:meth:`input_size`). Boxes of a view are in the view's pixels
        (:meth:`frames`).
        """
        ...

    def input_size(self, picture: Picture | CachedPicture) -> tuple[int, int]:
        """Height and width of the detector's input for a picture, in pixels."""
        ...

    def frames(self, picture: Picture | CachedPicture, views: Sequence[View]) -> list[Frame]:
        """The map from the original image's pixels to those of each view."""
        ...

    def has_backbone_of(self, other: Self) -> bool:
        """Whether both detectors have the same backbone weights, so that they may share cached features."""
        ...

    def extract(self, images: Sequence[Picture], views: Sequence[Sequence[View]]) -> list[Extracted]:
        """The frozen backbone's feature maps of each image and its views, for :class:`FeatureCache`."""
        ...

    def box_features(self, images: Sequence[Image], boxes: Sequence[Floats]) -> list[Floats]:
        """A feature vector of each given box, comparable with those of detections: (G, 4) -> (G, D) per image."""
        ...

    def image_features(self, images: Sequence[Image]) -> Floats:
        """A feature vector of each image: (B, F)."""
        ...

    def save(self, folder: Path) -> None:
        """Write the model to a folder, whole or not at all, so that ``detectors.load`` can restore it."""
        ...
