"""Class-balanced loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from dermalyze.losses.class_weights import effective_number_weights
from dermalyze.losses.focal import checked_gamma, focal_cross_entropy
from dermalyze.losses.loss import Loss


class ClassBalancedLoss(Loss):
    """Cross entropy or focal loss, weighted by the effective number of a class's images.

    CB = -w_t (1 - p_t)^gamma log p_t with w_k in proportion to (1 - beta) / (1 - beta^n_k), the
    weights summing to K (Cui et al. 2019, "Class-balanced loss based on effective number of
    samples": CB softmax, section 4.1, at gamma 0; above it CB focal, section 4.3, with a softmax
    instead of K sigmoids). A soft target weighs the losses of the classes:
    -sum_k t_k w_k (1 - p_k)^gamma log p_k, averaged over the batch.

    With a few thousand images, beta = 0.999 lies between no weights and `balanced` ones: a class
    of 100 images has an effective number of 95, one of 5000 of 993.

    Args:
        beta: in [0, 1); 0 weighs all classes the same, towards 1 by the inverse of their counts.
        gamma: focusing, finite and >= 0; 0 gives cross entropy.
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: `beta` or `gamma` out of its range; or the training split has no image of
            some class.
    """

    weights_K: Tensor

    def __init__(self, *, beta: float, gamma: float, class_counts: Sequence[int]) -> None:
        super().__init__()
        self.gamma = checked_gamma(gamma)
        weights_K = effective_number_weights(
            beta,
            class_counts,
            setting="loss.beta",
            without="choose loss=focal loss.class_weights=none",
        )
        self.register_buffer("weights_K", weights_K)

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        return focal_cross_entropy(logits_BK, target_BK, gamma=self.gamma, weights_K=self.weights_K)

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return beta, unless it is 0 and all weights are 1."""
        return f"loss.beta={options['beta']}" if options["beta"] != 0 else None
