"""Cross entropy."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dermalyze.losses.class_weights import Weighting
from dermalyze.losses.class_weights import class_weights as weights_of


class CrossEntropy(nn.Module):
    """Class-weighted cross entropy, -sum_k w_k t_k log p_k, averaged over the batch.

    Args:
        class_weights: `balanced` or `none`, see `dermalyze.losses.class_weights`.
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: see `dermalyze.losses.class_weights`.
    """

    class_weights: Tensor | None

    def __init__(self, *, class_weights: Weighting, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("class_weights", weights_of(class_weights, class_counts))

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        return F.cross_entropy(logits_BK, target_BK, weight=self.class_weights)
