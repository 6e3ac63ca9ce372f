"""A fusion of feature map and metadata, and what it is told where nothing is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dermalyze.errors import ConfigError
from dermalyze.models.ranges import require_chance


class Fusion(Protocol):
    """Joins a feature map and the metadata."""

    out_channels: int

    def __call__(self, features_BCHW: Tensor, metadata_BM: Tensor) -> Tensor:
        """Return a map of `out_channels` channels."""


class FusedMetadata(nn.Module):
    """Fuse the feature map with metadata; without metadata, with the numbers for "not known".

    In training an image's metadata is dropped as a whole with a chance of its own: the model gets
    the numbers for "not known" in its place, and so learns to predict without. The chance is drawn
    from torch's generator, which the engine seeds at every step.

    Args:
        columns: what of the table the model is told, in the order of the numbers.
        dropout: chance that an image's metadata is dropped in training, in [0, 1).
        fusion: called with `in_features` and `metadata_features`; maps (features_BCHW,
            metadata_BM) to a map of `out_channels` channels.
        in_features: C, channels of the feature map.
        unknown_metadata: the numbers of each column where its value is not known; M in all.

    Attributes:
        out_channels: channels of the map that the head gets.

    Raises:
        ConfigError: a value out of its range, or an encoding of other columns.
    """

    unknown_M: Tensor

    def __init__(
        self,
        *,
        columns: tuple[str, ...],
        dropout: float,
        fusion: Callable[..., Fusion],
        in_features: int,
        unknown_metadata: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__()
        require_chance("model.metadata.dropout", dropout)
        if list(columns) != list(unknown_metadata) or not columns:
            raise ConfigError(
                f"model.metadata.columns={list(columns)}: the metadata at hand are those of "
                f"{list(unknown_metadata)}. Both must name the same, at least one; a model "
                "without metadata is model/metadata=none."
            )
        self.dropout = dropout
        numbers = [number for column in columns for number in unknown_metadata[column]]
        # Not saved: they follow from the encoding, which the checkpoint knows.
        self.register_buffer("unknown_M", torch.tensor(numbers), persistent=False)
        self.fusion = fusion(in_features=in_features, metadata_features=len(numbers))
        self.out_channels = self.fusion.out_channels

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor | None) -> Tensor:
        """Return the fused map; without metadata, nothing is known of any image."""
        images = features_BCHW.shape[0]  # len() would be a constant in an exported graph
        if metadata_BM is None:
            metadata_BM = self.unknown_M.expand(images, -1)
        elif self.training and self.dropout > 0:
            dropped_B1 = torch.rand(images, 1, device=features_BCHW.device) < self.dropout
            metadata_BM = torch.where(dropped_B1, self.unknown_M, metadata_BM)
        fused: Tensor = self.fusion(features_BCHW, metadata_BM)
        return fused
