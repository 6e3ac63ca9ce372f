"""Global average pooling and one layer, whose logits may be cosines."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermalyze.models.ranges import require_chance, require_positive


class LinearHead(nn.Module):
    """Average the feature map over its positions and classify the F averages x with one layer.

        logits_k = w_k . x + b_k                        plain
        logits_k = scale * cos(w_k, x), in [-scale, scale]   normalized, without a bias

    The cosine takes the length out of features and of class weights, which otherwise grows with a
    class's images. LDAM (Cao et al. 2019, "Learning imbalanced datasets with label-distribution-
    aware margin loss", section 4) has such a classifier in its experiments, with a scale of 30 that
    stays. As probabilities are read from these logits, the scale belongs here and not into the
    loss, whose margins are then in scaled units: 15 for half a cosine.

    Args:
        in_features: F, channels of the feature map.
        num_classes: K.
        dropout: chance that an average is dropped, in [0, 1).
        normalized: whether the logits are cosines.
        scale: of the cosines, > 0; a plain layer has none.
        learnable_scale: whether the scale is learnt from there on, or stays.

    Raises:
        ConfigError: a value out of its range.
    """

    scale: Tensor

    def __init__(
        self,
        *,
        in_features: int,
        num_classes: int,
        dropout: float,
        normalized: bool,
        scale: float,
        learnable_scale: bool,
    ) -> None:
        super().__init__()
        require_chance("model.head.dropout", dropout)
        require_positive("model.head.scale", scale)
        self.normalized = normalized
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_features, num_classes, bias=not normalized)
        if normalized and learnable_scale:
            self.scale = nn.Parameter(torch.tensor(scale))
        elif normalized:
            self.register_buffer("scale", torch.tensor(scale))

    def forward(self, features_BCHW: Tensor) -> Tensor:
        """Return logits_BK of features_BCHW (B, F, H, W)."""
        averages_BF = self.dropout(features_BCHW.mean(dim=(2, 3)))
        if not self.normalized:
            logits_BK: Tensor = self.classifier(averages_BF)
            return logits_BK
        directions_KF = F.normalize(self.classifier.weight, dim=1)
        return self.scale * F.linear(F.normalize(averages_BF, dim=1), directions_KF)
