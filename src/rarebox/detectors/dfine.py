"""D-FINE, a transformer that finds a set of boxes, trained on weighted boxes (Eq. 7). Needs the extra ``detr``.

The network is Hugging Face's ``DFineForObjectDetection`` (Apache-2.0) in four parts that ``TorchDetector`` knows: the
``transform``, the ``backbone`` (whose maps may be cached), the transformer with its heads, and the loss.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image
from transformers import DFineConfig, DFineForObjectDetection
from transformers.utils import logging

from rarebox.config import DetectorSettings
from rarebox.detectors import on_device
from rarebox.detectors.backbones import AffineBatchNorm2d
from rarebox.detectors.dfine_loss import SetLoss, Wanted
from rarebox.detectors.dfine_sizes import Size
from rarebox.detectors.inputs import InputTransform
from rarebox.detectors.maps import FeatureMaps, Input
from rarebox.detectors.weights import Tensors
from rarebox.pool.views import send

DETECTIONS = 100
"""At most this many detections of an image, as of the other networks."""


def describe(size: Size, num_classes: int) -> DFineConfig:
    """The library's description of a network of this size."""
    config = DFineConfig(backbone_config={"model_type": "hgnet_v2", **size.body}, **size.network)
    config.num_labels = num_classes
    config.freeze_backbone_batch_norms = True
    config.initializer_bias_prior_prob = 0.01  # of D-FINE's authors; the library's is 1 / (K + 1)
    return config


class Body(nn.Module):
    """The convolutional body: maps at increasing strides, from pixels or from a cache."""

    def __init__(self, body: nn.Module, strides: Sequence[int]) -> None:
        super().__init__()
        self.body, self.strides = body, list(strides)

    def forward(self, pixels: Tensor | FeatureMaps) -> "OrderedDict[str, Tensor]":
        """Pixels (B, 3, h, w) or cached maps -> maps "0", "1", … from fine to coarse."""
        maps = pixels.levels if isinstance(pixels, FeatureMaps) else self.extract(pixels)
        return OrderedDict((str(i), level) for i, level in enumerate(maps))

    def extract(self, pixels: Tensor) -> list[Tensor]:
        """The body's maps, from fine to coarse: (B, 3, h, w) -> (B, C, h / stride, w / stride) each."""
        return list(self.body(pixels).feature_maps)


class Given(nn.Module):
    """Replaces the body of the library's model, and passes on computed maps."""

    def forward(self, maps: FeatureMaps, mask: Tensor) -> list[tuple[Tensor, None]]:
        """The levels, without the masks of padding, which the model ignores."""
        return [(level.float(), None) for level in maps.levels]


class WeightedDFine(nn.Module):
    """D-FINE whose detections keep their class vector (a sigmoid per class) and, on request, a feature vector.

    Batch statistics are frozen: batches are small, and a result must not depend on them. Boxes are not suppressed:
    training teaches the queries not to repeat each other.
    """

    further_rows = ()
    """Rows before those of the classes."""
    stretches = True
    with_features = False

    def __init__(self, size: Size, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        config = describe(size, num_classes)
        stock = DFineForObjectDetection(config)
        self.backbone = Body(stock.model.backbone.model, config.feat_strides)
        self.transformer: Any = stock.model
        self.transformer.backbone = Given()
        _freeze_statistics(self.transformer)
        heads = [f"decoder.class_embed.{i}" for i in range(len(self.transformer.decoder.class_embed))]
        layers = (*heads, "enc_score_head", "denoising_class_embed")
        self.class_layers = {f"transformer.{layer}": (1, 1) for layer in layers}
        """Layers with a row for each class, as in :class:`~rarebox.detectors.retinanet.WeightedRetinaNet`."""
        self.loss = SetLoss(config, settings.normaliser, settings.soft_loss == "two_sided")
        self.transform = InputTransform((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.score_threshold, self.config = settings.score_threshold, config

    def forward(self, images: list[Input], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """In training, the losses. Otherwise a list with one dict of detections per image, or Columns.

        The ``seed`` of the first image's target decides the noise of the denoising queries.
        """
        if self.training:
            assert targets is not None
            return self._losses(images, targets)
        places, parts = [], list[on_device.Columns]()
        for rows, batch, outputs in self._run_by_size(images):
            places += rows
            parts.append(self._detect(batch, outputs))
        device = parts[0]["scores"].device
        order = send(torch.tensor(places).argsort(), device)
        found = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
        if on_device.use_async_path(device):
            return {**found, "settled": torch.ones(len(order), dtype=torch.bool, device=device)}
        real = found.pop("real")
        return [{name: column[i, real[i]] for name, column in found.items()} for i in range(len(images))]

    def detect_one(self, batch: ImageList) -> dict[str, Tensor]:
        """The detections of a batch of one image, by code that can be traced."""
        found = self._detect(batch, self._transform(batch.tensors))
        real = found["real"][0].nonzero()[:, 0]
        return {name: found[name][0][real] for name in ("boxes", "scores", "labels")}

    def box_features(self, images: list[Input], boxes: list[Tensor]) -> list[Tensor]:
        """The vector of the query whose box overlaps each given box most: (G, 4) -> (G, D) per image."""
        features: dict[int, Tensor] = {}
        for rows, batch, outputs in self._run_by_size(images):
            found = _in_pixels(outputs.intermediate_reference_points[:, -1], batch)
            for i, own, vectors in zip(rows, found, outputs.last_hidden_state, strict=True):
                features[i] = vectors[box_iou(boxes[i], own).argmax(dim=1)]
        return [features[i] for i in range(len(images))]

    def _losses(self, images: list[Input], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        batch, _ = self.transform(images, None)
        height, width = batch.tensors.shape[-2:]
        wanted = [Wanted.of(target, (height, width)) for target in targets]
        if "seed" in targets[0]:
            torch.manual_seed(int(targets[0]["seed"]))
        outputs = self._transform(batch.tensors, [image.as_labels for image in wanted])
        terms = self.loss(outputs, wanted)
        if outputs.denoising_meta_values is None and self.config.num_denoising:
            # Every parameter takes part in every step, as DistributedDataParallel requires.
            terms["loss_vfl"] = terms["loss_vfl"] + 0 * self.transformer.denoising_class_embed.weight.sum()
        return terms

    def _transform(self, pixels: Tensor | FeatureMaps, labels: list[dict[str, Tensor]] | None = None) -> Any:
        """The transformer's output for a batch. It computes in float32: bfloat16 rounds coordinates to 1/256."""
        maps = FeatureMaps(tuple(self.backbone(pixels).values()), tuple(pixels.shape))
        with torch.autocast(maps.device.type, enabled=False):
            return self.transformer(pixel_values=maps, labels=labels)

    def _run_by_size(self, images: list[Input]) -> Iterator[tuple[list[int], ImageList, Any]]:
        """The places of the inputs of each size, their batch, and its output.

        Boxes are fractions of the canvas, so another input's padding would change a result.
        """
        sizes: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            sizes.setdefault(tuple(image.shape), []).append(i)
        for rows in sizes.values():
            batch, _ = self.transform([images[i] for i in rows], None)
            yield rows, batch, self._transform(batch.tensors)

    def _detect(self, batch: ImageList, outputs: Any) -> on_device.Columns:
        """The best classes of the queries, a fixed number for each image, as the library's post-processing."""
        probs = outputs.intermediate_logits[:, -1].float().sigmoid()
        scores, rows = probs.flatten(1).topk(min(DETECTIONS, probs.shape[1:].numel()), dim=1)
        source = rows // probs.shape[2]
        found = {
            "boxes": on_device.take(_in_pixels(outputs.intermediate_reference_points[:, -1], batch), source),
            "scores": scores,
            "labels": rows % probs.shape[2],
            "class_probs": on_device.take(probs, source),
            "real": scores > self.score_threshold,
        }
        return {**found, "features": on_device.take(outputs.last_hidden_state, source)} if self.with_features else found


def _in_pixels(boxes: Tensor, batch: ImageList) -> Tensor:
    """Boxes (B, Q, 4), centre and size in fractions of the canvas -> corners in pixels, within the inputs' one size."""
    height, width = batch.tensors.shape[-2:]
    corners = box_convert(boxes.float(), "cxcywh", "xyxy") * torch.tensor(
        [width, height, width, height], device=boxes.device
    )
    return clip_boxes_to_image(corners, batch.image_sizes[0])


def _freeze_statistics(module: nn.Module) -> None:
    """Replace batch norms by ones that train scale and shift only, with the same values."""
    for parent in list(module.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.BatchNorm2d):
                frozen = AffineBatchNorm2d(norm.num_features, norm.eps)
                frozen.load_state_dict(norm.state_dict())
                setattr(parent, name, frozen)


def read(size: Size, saved: Tensors) -> Tensors:
    """The tensors of a saved ``DFineForObjectDetection``, renamed as in :class:`WeightedDFine`; ours stay.

    The library reads them: it renames the tensors of older files. Raises RuntimeError for tensors of another network.
    """
    if any(name.startswith("transformer.") for name in saved):
        return saved
    rows = next((tensor for name, tensor in saved.items() if name.endswith("enc_score_head.bias")), None)
    if rows is None:
        raise RuntimeError("it is no D-FINE of transformers")
    loaded: Any = DFineForObjectDetection
    logging.disable_progress_bar()
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # missing tensors are reported below
    try:
        config = describe(size, len(rows))
        stock, found = loaded.from_pretrained(None, config=config, state_dict=saved, output_loading_info=True)
    finally:
        logging.set_verbosity(level)
    if missing := sorted(found["missing_keys"]):
        raise RuntimeError(f"{len(missing)} tensors are missing, such as {missing[0]}")
    body, rest = "model.backbone.model.", "model."
    return {
        f"backbone.body.{name[len(body) :]}" if name.startswith(body) else f"transformer.{name[len(rest) :]}": tensor
        for name, tensor in stock.state_dict().items()
        if name.startswith(rest)
    }
