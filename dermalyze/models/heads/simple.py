"""Global average pooling and a small perceptron."""

from __future__ import annotations

from torch import Tensor, nn

from dermalyze.errors import ConfigError
from dermalyze.models.ranges import require_chance


class SimpleHead(nn.Module):
    """Average the feature map over its positions, then classify the F averages.

    Each entry of `hidden` adds Dropout, Linear, BatchNorm1d and ReLU; a last Dropout and Linear
    give the logits. In training mode a batch needs two images, as batch statistics of one do
    not exist.

    Args:
        in_features: F, channels of the feature map.
        num_classes: K.
        dropout: chance that an input of a Linear layer is dropped, in [0, 1).
        hidden: widths of the hidden layers, each >= 1; empty for a linear classifier.

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self, *, in_features: int, num_classes: int, dropout: float, hidden: tuple[int, ...]
    ) -> None:
        super().__init__()
        require_chance("model.head.dropout", dropout)
        if any(width < 1 for width in hidden):
            raise ConfigError(
                f"model.head.hidden={list(hidden)}: each width must be at least 1; leave a layer "
                "out of the list to do without it."
            )
        layers: list[nn.Module] = []
        width_in = in_features
        for width in hidden:
            layers += [
                nn.Dropout(dropout),
                nn.Linear(width_in, width),
                nn.BatchNorm1d(width),
                nn.ReLU(),
            ]
            width_in = width
        layers += [nn.Dropout(dropout), nn.Linear(width_in, num_classes)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BK of features_BCHW (B, F, H, W)."""
        logits_BK: Tensor = self.layers(features_BCHW.mean(dim=(2, 3)))
        return logits_BK
