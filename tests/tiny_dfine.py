"""A D-FINE small enough for a fit in a second."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import DFineForObjectDetection

from rarebox import detectors
from rarebox.config import TrainingSettings
from rarebox.detectors import TorchDetector
from rarebox.detectors.architectures import ARCHITECTURES, transformer
from rarebox.detectors.dfine import WeightedDFine, describe
from rarebox.detectors.dfine_sizes import Size

BACKBONE = "hgnet_v2_n"
"""The name under which :func:`installed` puts the tiny network."""

TINY = Size(
    "somebody/dfine-tiny-coco",
    {
        "feat_strides": [8, 16, 32],
        "encoder_in_channels": [16, 16, 24],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "d_model": 32,
        "num_queries": 30,
        "num_denoising": 12,
        "decoder_in_channels": [32, 32, 32],
        "decoder_ffn_dim": 32,
        "decoder_layers": 3,
        "decoder_n_points": [2, 2, 2],
        "decoder_attention_heads": 4,
        "lqe_hidden_dim": 8,
        "depth_mult": 0.34,
        "hidden_expansion": 0.5,
    },
    {
        "stem_channels": [3, 8, 8],
        "stage_in_channels": [8, 8, 16, 16],
        "stage_mid_channels": [8, 8, 8, 8],
        "stage_out_channels": [8, 16, 16, 24],
        "stage_num_blocks": [1, 1, 1, 1],
        "stage_numb_of_layers": [1, 1, 1, 1],
        "hidden_sizes": [8, 16, 16, 24],
        "embedding_size": 8,
        "out_indices": [2, 3, 4],
        "use_learnable_affine_block": True,
    },
)


@contextmanager
def installed() -> Iterator[None]:
    """D-FINE N is the tiny network in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, ("dfine", BACKBONE), transformer(TINY))
        yield


def make(**settings: Any) -> TorchDetector:
    """A tiny D-FINE for three classes on a 64-pixel input, with varied random weights that are always the same."""
    exact = TrainingSettings(precision="float32")
    given = {"image_size": 64, "weights": "none", "device": "cpu", "seed": 3, "training": exact, **settings}
    detector = detectors.build("dfine", 3, BACKBONE, **given)
    if given["weights"] == "none":
        enliven(detector.network)
    return detector


def enliven(network: nn.Module) -> None:
    """Spread the outputs of fresh layers: the library's give every query nearly the same box and scores."""
    dice = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and parameter.requires_grad and "embed" not in name:
                parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5, generator=dice)
        for name, parameter in network.named_parameters():
            if "class_embed" in name or "enc_score_head" in name:
                parameter.normal_(0, 0.3, generator=dice)
            if "bbox" in name and name.endswith("weight"):
                parameter.normal_(0, 0.1, generator=dice)


def stock_of(network: WeightedDFine) -> Any:
    """The library's own network with the same weights, for training; its batch norms do not update."""
    stock = DFineForObjectDetection(network.config)
    saved = {
        f"model.backbone.model.{name.removeprefix('backbone.body.')}"
        if name.startswith("backbone.body.")
        else f"model.{name.removeprefix('transformer.')}": tensor
        for name, tensor in network.state_dict().items()
    }
    missing = stock.load_state_dict(saved, strict=False).missing_keys
    assert all(name.startswith(("class_embed", "bbox_embed")) or "num_batches" in name for name in missing)
    stock.train()
    for module in stock.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return stock


def write_pretrained(folder: Path, names: list[str]) -> Any:
    """Write a tiny random model with those classes, as the Hub holds it, and return the library's network."""
    config = describe(TINY, len(names))
    config.id2label = dict(enumerate(names))
    config.label2id = {name: i for i, name in enumerate(names)}
    torch.manual_seed(1)
    stock = DFineForObjectDetection(config)
    enliven(stock)
    stock.save_pretrained(folder)
    return stock
