"""Focal loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import Weighting, class_weights_correction
from dermalyze.losses.class_weights import class_weights as weights_of
from dermalyze.losses.loss import Loss
from dermalyze.losses.softmax_rest import log_of_the_rest


class FocalLoss(Loss):
    """Cross entropy in which images already classified well count less.

    FL = -alpha_t (1 - p_t)^gamma log p_t (Lin et al. 2017, "Focal loss for dense object
    detection", equation 5), with the class weights as alpha. A soft target weighs the losses of
    the classes: -sum_k t_k alpha_k (1 - p_k)^gamma log p_k, averaged over the batch.

    Args:
        gamma: focusing, finite and >= 0; 0 gives cross entropy.
        class_weights: `balanced` or `none`, see `dermalyze.losses.class_weights`.
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: `gamma` out of its range; see also `dermalyze.losses.class_weights`.
    """

    class_weights: Tensor | None

    def __init__(
        self, *, gamma: float, class_weights: Weighting, class_counts: Sequence[int]
    ) -> None:
        super().__init__()
        self.gamma = checked_gamma(gamma)
        self.register_buffer("class_weights", weights_of(class_weights, class_counts))

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        return focal_cross_entropy(
            logits_BK, target_BK, gamma=self.gamma, weights_K=self.class_weights
        )

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the class weights, if there are any."""
        return class_weights_correction(options)


def focal_cross_entropy(
    logits_BK: Tensor, target_BK: Tensor, *, gamma: float, weights_K: Tensor | None
) -> Tensor:
    """Return -sum_k t_k w_k (1 - p_k)^gamma log p_k, averaged over the batch.

    Args:
        logits_BK: of any size; no probability is formed that could round to 0 or 1.
        target_BK: rows sum to 1.
        gamma: finite and >= 0; 0 gives weighted cross entropy to the last bit.
        weights_K: of the classes; None: 1 each.
    """
    focus_BK = torch.exp(gamma * log_of_the_rest(logits_BK.log_softmax(dim=1)))
    return F.cross_entropy(logits_BK, target_BK * focus_BK, weight=weights_K)


def checked_gamma(gamma: float) -> float:
    """Return gamma.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if not 0 <= gamma < math.inf:
        raise ConfigError(
            f"loss.gamma={gamma}: a finite number >= 0 is needed; 0 gives cross entropy, 2 is the "
            "choice of the focal loss's paper."
        )
    return gamma
