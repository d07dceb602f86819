"""D-FINE, a transformer that finds a set of boxes, trained on weighted boxes (Eq. 7). Needs the extra ``detr``.

The network is Hugging Face's ``DFineForObjectDetection`` (Apache-2.0) in four parts that ``TorchDetector`` knows: the
``transform``, the ``backbone`` (whose maps may be cached), the transformer with its heads, and the loss. Weights come
from the Hugging Face Hub or from a folder.
"""

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_convert, box_iou, clip_boxes_to_image
from transformers import DFineConfig, DFineForObjectDetection
from transformers.utils import logging

from rarebox.config import DetectorSettings
from rarebox.data.classes import Classes
from rarebox.detectors import on_device
from rarebox.detectors.backbones import AffineBatchNorm2d
from rarebox.detectors.dfine_loss import SetLoss, Wanted
from rarebox.detectors.inputs import InputTransform
from rarebox.detectors.maps import FeatureMaps, Input
from rarebox.errors import UserError
from rarebox.pool.views import send

DETECTIONS = 100
"""At most this many detections of an image, as of the other networks."""

FILES = ["config.json", "*.safetensors"]
"""What is needed of a model on the Hub."""


@dataclass(frozen=True)
class Size:
    """One size of D-FINE: its model on the Hub, trained on COCO, and what its ``DFineConfig`` changes."""

    coco: str
    network: Mapping[str, Any]
    body: Mapping[str, Any]

    def config(self, num_classes: int) -> DFineConfig:
        """The library's description of a network of this size."""
        config = DFineConfig(backbone_config={"model_type": "hgnet_v2", **self.body}, **self.network)
        config.num_labels = num_classes
        config.freeze_backbone_batch_norms = True
        config.initializer_bias_prior_prob = 0.01  # of D-FINE's authors; the library's is 1 / (K + 1)
        return config

    @property
    def channels(self) -> dict[int, int]:
        """Channels of the body's maps, by stride."""
        strides, widths = self.network["feat_strides"], self.body["stage_out_channels"]
        return dict(zip(strides, widths[-len(strides) :], strict=True))


SMALL_BODY: Mapping[str, Any] = {
    "stem_channels": [3, 16, 16],
    "stage_in_channels": [16, 64, 256, 512],
    "stage_mid_channels": [16, 32, 64, 128],
    "stage_out_channels": [64, 256, 512, 1024],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_numb_of_layers": [3, 3, 3, 3],
    "hidden_sizes": [128, 256, 512, 1024],
    "embedding_size": 32,
    "use_learnable_affine_block": True,
}

SIZES = {
    "hgnet_v2_n": Size(
        "ustc-community/dfine-nano-coco",
        {
            "feat_strides": [16, 32],
            "num_feature_levels": 2,
            "encoder_in_channels": [512, 1024],
            "encoder_hidden_dim": 128,
            "encoder_ffn_dim": 512,
            "encode_proj_layers": [1],
            "d_model": 128,
            "decoder_in_channels": [128, 128],
            "decoder_ffn_dim": 512,
            "decoder_layers": 3,
            "decoder_n_points": [6, 6],
            "depth_mult": 0.5,
            "hidden_expansion": 0.34,
        },
        {**SMALL_BODY, "out_indices": [3, 4]},
    ),
    "hgnet_v2_s": Size(
        "ustc-community/dfine-small-coco",
        {
            "feat_strides": [8, 16, 32],
            "encoder_in_channels": [256, 512, 1024],
            "decoder_layers": 3,
            "decoder_n_points": [3, 6, 3],
            "depth_mult": 0.34,
            "hidden_expansion": 0.5,
        },
        {**SMALL_BODY, "out_indices": [2, 3, 4]},
    ),
}
"""D-FINE N and S, by ``detector.backbone``."""


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
    """Stands where the library's model has its body, and passes on maps that are already there."""

    def forward(self, maps: FeatureMaps, mask: Tensor) -> list[tuple[Tensor, None]]:
        """The levels, without the masks of padding, which the model ignores."""
        return [(level.float(), None) for level in maps.levels]


class WeightedDFine(nn.Module):
    """D-FINE whose detections keep their class vector (a sigmoid per class) and, on request, a feature vector.

    Batch statistics are frozen: batches are small, and a result must not depend on them. Boxes are not suppressed:
    training teaches the queries not to repeat each other.
    """

    class_layers = (
        "transformer.decoder.class_embed.",
        "transformer.enc_score_head.",
        "transformer.denoising_class_embed.",
    )
    """The layers with a row for each class, by the starts of their names."""

    stretches = True
    with_features = False

    def __init__(self, num_classes: int, settings: DetectorSettings) -> None:
        super().__init__()
        config = size_of(settings).config(num_classes)
        stock = DFineForObjectDetection(config)
        self.backbone = Body(stock.model.backbone.model, config.feat_strides)
        self.transformer: Any = stock.model
        self.transformer.backbone = Given()
        _freeze_statistics(self.transformer)
        self.loss = SetLoss(config, settings.normaliser)
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


# ------------------------------------------------------------------------------------------- weights


def size_of(settings: DetectorSettings) -> Size:
    """The size that the settings name. Raises UserError if it is none of D-FINE's."""
    if settings.backbone not in SIZES:
        raise UserError(
            f"dfine has no backbone {settings.backbone}. Use --preset dfine, or set detector.backbone to one of "
            f"{', '.join(SIZES)}"
        )
    return SIZES[settings.backbone]


def start_from(network: WeightedDFine, settings: DetectorSettings, classes: Sequence[str] = ()) -> None:
    """Load the weights that the settings name.

    In the layers that depend on the classes, the rows of ``classes`` that the model knows by name are loaded, and the
    others stay as they are. Raises UserError if there is no such model.
    """
    saved, theirs = _read(find_folder(settings))
    own, known = network.state_dict(), Classes(theirs)
    pairs = [(here, there) for here, name in enumerate(classes) if (there := known.find(name)) is not None]
    fitting: dict[str, Tensor] = {}
    for name, tensor in saved.items():
        if name.startswith(network.class_layers):
            fitting[name] = own[name].clone()
            for here, there in pairs:
                fitting[name][here] = tensor[there]
        elif name in own and own[name].shape == tensor.shape:
            fitting[name] = tensor
    wrong = [name for name in own if name not in fitting]
    if wrong:
        raise UserError(
            f"the weights {settings.weights} do not fit dfine on {settings.backbone}: {len(wrong)} of its {len(own)} "
            f"tensors are missing or have another shape, such as {wrong[0]}. Choose another detector.backbone"
        )
    network.load_state_dict({**own, **fitting})


def find_folder(settings: DetectorSettings) -> Path:
    """The folder of a model: a folder, or a copy of a model on the Hugging Face Hub, which is downloaded if necessary.

    Raises UserError, which says how to get the files.
    """
    weights, coco = settings.weights, size_of(settings).coco
    if Path(weights).is_dir():
        return Path(weights)
    name = coco if weights == "coco" else weights
    if name.count("/") != 1:
        raise UserError(
            f"dfine has no weights {weights!r}. Set detector.weights to coco, to a D-FINE on the Hugging Face Hub such "
            f"as {coco}, or to a folder with config.json and model.safetensors"
        )
    reason: Exception | None = None
    for here_only in (True, False):  # a copy that is here must not change in the middle of a run
        try:
            folder = Path(snapshot_download(name, allow_patterns=FILES, local_files_only=here_only, etag_timeout=5))
        except (OSError, ValueError) as error:
            reason = error
        else:
            if (folder / "config.json").exists() and list(folder.glob("*.safetensors")):
                return folder
    told = str(reason).strip().splitlines()[0] if reason else "it has no config.json and model.safetensors"
    raise UserError(
        f"the weights {name} are not on this machine and cannot be downloaded: {told}. On a machine with a network run "
        f"'hf download {name} --local-dir FOLDER', copy the folder here, and set detector.weights to it"
    ) from reason


def _read(folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A saved ``DFineForObjectDetection``: its tensors, by their names in :class:`WeightedDFine`, and its classes."""
    logging.disable_progress_bar()
    loaded: Any = DFineForObjectDetection
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "d_fine":
            raise UserError(f"{folder}: holds a model of type {kind}, not d_fine. Choose a D-FINE")
        stock, told = loaded.from_pretrained(folder, output_loading_info=True)
    except UserError:
        raise
    except Exception as error:  # the library raises many types
        raise UserError(f"{folder}: not a model that transformers can read: {error}. Download it again") from error
    if missing := sorted(told["missing_keys"]):
        raise UserError(f"{folder}: {len(missing)} tensors are missing, such as {missing[0]}. Download the model again")
    body, rest = "model.backbone.model.", "model."
    saved = {
        (f"backbone.body.{name[len(body) :]}" if name.startswith(body) else f"transformer.{name[len(rest) :]}"): tensor
        for name, tensor in stock.state_dict().items()
        if name.startswith(rest)
    }
    return saved, [stock.config.id2label[i] for i in range(stock.config.num_labels)]
