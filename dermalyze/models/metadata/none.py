"""A model that sees pixels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dermalyze.errors import ConfigError


class NoMetadata(nn.Module):
    """Hand the feature map on as it is.

    Args:
        columns: empty.
        in_features: C, channels of the feature map.
        unknown_metadata: empty.

    Raises:
        ConfigError: there is metadata, which this model would pass over.
    """

    def __init__(
        self,
        *,
        columns: tuple[()],
        in_features: int,
        unknown_metadata: Mapping[str, Sequence[float]],
    ) -> None:
        super().__init__()
        if columns or unknown_metadata:
            raise ConfigError(
                f"model.metadata.columns={list(columns)}: this model takes no metadata, but there "
                f"are those of {list(unknown_metadata)}. Choose model/metadata=film."
            )
        self.out_channels = in_features

    def forward(self, features_BCHW: Tensor, metadata_BM: Tensor | None) -> Tensor:
        """Return features_BCHW.

        Raises:
            ValueError: there is metadata, which this model would pass over.
        """
        if metadata_BM is not None:
            raise ValueError("this model takes no metadata")
        return features_BCHW
