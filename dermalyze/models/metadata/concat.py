"""The metadata as further channels of the feature map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dermalyze.models.ranges import require_width


class Concat(nn.Module):
    """Add an embedding of the metadata to the feature map as channels, alike at every position.

    The embedding is ReLU(Linear(m)). A head that averages over positions then sees the plain
    concatenation of image and metadata features.

    Args:
        in_features: C, channels of the feature map.
        metadata_features: M.
        width: channels of the embedding.

    Attributes:
        out_channels: C + width.

    Raises:
        ConfigError: a width below 1.
    """

    def __init__(self, *, in_features: int, metadata_features: int, width: int) -> None:
        super().__init__()
        require_width("model.metadata.fusion.width", width)
        self.out_channels = in_features + width
        self.embedding = nn.Linear(metadata_features, width)

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor) -> Tensor:
        """Return the map with the embedding's channels after its own."""
        embedded_BE11 = self.embedding(metadata_BM).relu()[:, :, None, None]
        embedded_BEHW = embedded_BE11.expand(-1, -1, *features_BCHW.shape[2:])
        return torch.cat([features_BCHW, embedded_BEHW.to(features_BCHW.dtype)], dim=1)
