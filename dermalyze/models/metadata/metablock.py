"""The metadata processing block: the metadata say what of the feature map counts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MetaBlock(nn.Module):
    """Gate each channel c of the feature map F by the metadata m.

        MetaBlock(F_c) = sigmoid(tanh(f_c(m) * F_c) + g_c(m)), in (0, 1)

    Pacheco and Krohling (2021, "An attention-based mechanism to combine images and metadata in deep
    learning models applied to skin cancer classification"); f and g are a linear layer with
    BatchNorm each, as in their published code, so a training batch needs two images.

    Args:
        in_features: C, channels of the feature map.
        metadata_features: M.

    Attributes:
        out_channels: C.
    """

    def __init__(self, *, in_features: int, metadata_features: int) -> None:
        super().__init__()
        self.out_channels = in_features
        self.scale = _affine(metadata_features, in_features)
        self.shift = _affine(metadata_features, in_features)

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor) -> Tensor:
        """Return the gated map, of the same shape."""
        scale_BC11 = self.scale(metadata_BM)[:, :, None, None]
        shift_BC11 = self.shift(metadata_BM)[:, :, None, None]
        gated: Tensor = (torch.tanh(scale_BC11 * features_BCHW) + shift_BC11).sigmoid()
        return gated


def _affine(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out))
