"""Generalised-mean pooling: between the average and the maximum, as the data ask."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dermalyze.models.ranges import require_chance, require_positive


class GemHead(nn.Module):
    """Pool each channel by its generalised mean over the T positions, then classify.

        g_f = (1/T * sum_t max(x_ft, eps)^p)^(1/p)

    Radenovic, Tolias and Chum (2019, "Fine-tuning CNN image retrieval with no human annotation",
    eq. 3). p = 1 is the average of the clamped map, a growing p nears the maximum. One p for all
    channels is learnt, as its logarithm, so that it stays above 0. Values below eps count as eps:
    maps that are not made by a ReLU lose their negative half.

    The mean is taken of logarithms: eps^p would be 0 in float32 from p = 8 on, and its gradient
    not a number.

    Args:
        in_features: F, channels of the feature map.
        num_classes: K.
        power: p to begin with, > 0.
        eps: the least value of the map, > 0.
        dropout: chance that a pooled value is dropped, in [0, 1).

    Raises:
        ConfigError: a value out of its range.
    """

    def __init__(
        self, *, in_features: int, num_classes: int, power: float, eps: float, dropout: float
    ) -> None:
        super().__init__()
        require_positive("model.head.power", power)
        require_positive("model.head.eps", eps)
        require_chance("model.head.dropout", dropout)
        self.log_power = nn.Parameter(torch.tensor(math.log(power)))
        self.eps = eps
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_features, num_classes)

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BK of features_BCHW (B, F, H, W)."""
        logits_BK: Tensor = self.classifier(self.dropout(self.pool(features_BCHW)))
        return logits_BK

    def pool(self, features_BCHW: Tensor) -> Tensor:
        """Return the generalised means_BF, each >= eps."""
        power = self.log_power.exp()
        values_BFT = features_BCHW.flatten(2)
        values_BFT = values_BFT.to(self.log_power.dtype)  # half precision has no place for eps
        logarithms_BFT = values_BFT.clamp(min=self.eps).log()
        sums_BF = torch.logsumexp(power * logarithms_BFT, dim=2)
        return ((sums_BF - math.log(values_BFT.shape[2])) / power).exp()
