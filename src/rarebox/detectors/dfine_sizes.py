"""The sizes of D-FINE. This module does not import ``transformers``, which is an extra."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """One size of D-FINE: its model on the Hub, trained on COCO, and what its ``DFineConfig`` changes."""

    coco: str
    network: Mapping[str, Any]
    body: Mapping[str, Any]

    @property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """Stride and channels of the body's maps, from fine to coarse."""
        strides, widths = self.network["feat_strides"], self.body["stage_out_channels"]
        return tuple(zip(strides, widths[-len(strides) :], strict=True))


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

NANO = Size(
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
)

SMALL = Size(
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
)
