"""Cross entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dermalyze.losses.class_weights import Weighting, class_weights_correction
from dermalyze.losses.class_weights import class_weights as weights_of
from dermalyze.losses.loss import Loss


class CrossEntropy(Loss):
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

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the class weights, if there are any."""
        return class_weights_correction(options)
