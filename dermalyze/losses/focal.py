"""Focal loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import Weighting
from dermalyze.losses.class_weights import class_weights as weights_of


class FocalLoss(nn.Module):
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
        if not 0 <= gamma < math.inf:
            raise ConfigError(
                f"loss.gamma={gamma}: a finite number >= 0 is needed; 0 gives cross entropy, 2 is "
                "the paper's choice."
            )
        self.gamma = gamma
        self.register_buffer("class_weights", weights_of(class_weights, class_counts))

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        log_rest_BK = _log_of_the_rest(logits_BK)
        focus_BK = torch.exp(self.gamma * log_rest_BK)
        return F.cross_entropy(logits_BK, target_BK * focus_BK, weight=self.class_weights)


def _log_of_the_rest(logits_BK: Tensor) -> Tensor:
    """Return log(1 - p_k) of each class, as the log of the other classes' summed probability.

    1 - p_k itself rounds to 0 where p_k nears 1, and 0^gamma with gamma < 1 has no finite slope
    there. K is small, so the K x K table costs nothing.
    """
    log_probs_BK = logits_BK.log_softmax(dim=1)
    itself_KK = torch.eye(logits_BK.shape[1], dtype=torch.bool, device=logits_BK.device)
    others_BKK = log_probs_BK.unsqueeze(1).masked_fill(itself_KK, -math.inf)
    return others_BKK.logsumexp(dim=2)
