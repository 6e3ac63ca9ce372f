"""Cross entropy on logits to which the class frequencies were added."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import counts_of_every_class
from dermalyze.losses.loss import Loss


class LogitAdjustedLoss(Loss):
    """Cross entropy of softmax(z_k + tau log pi_k), pi being the training split's class shares.

    Menon et al. 2021, "Long-tail learning via logit adjustment", equation 10. The frequencies are
    explained by the addend, so the logits z themselves, which predict without it, learn to rank
    as if all classes were equally frequent. At tau = 1 this is the balanced softmax, p_k
    proportional to n_k e^z_k (Ren et al. 2020, "Balanced meta-softmax for long-tailed visual
    recognition", equation 4): shares and counts differ by a factor that a softmax does not see.

    The addend does not depend on the target, so a soft target enters as in any cross entropy:
    -sum_k t_k log p_k, averaged over the batch.

    Args:
        tau: strength, finite and >= 0; 0 gives cross entropy, 1 is consistent for the balanced
            error.
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: `tau` out of its range; or the training split has no image of some class.
    """

    addend_K: Tensor

    def __init__(self, *, tau: float, class_counts: Sequence[int]) -> None:
        super().__init__()
        if not 0 <= tau < math.inf:
            raise ConfigError(
                f"loss.tau={tau}: a finite number >= 0 is needed; 0 gives cross entropy, 1 aims at "
                "equally frequent classes."
            )
        counts_K = counts_of_every_class(
            class_counts,
            setting=f"loss.tau={tau}",
            without="choose loss=cross_entropy loss.class_weights=none",
        )
        self.register_buffer("addend_K", (tau * (counts_K / counts_K.sum()).log()).float())

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        return F.cross_entropy(logits_BK + self.addend_K, target_BK)

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return tau, unless it is 0."""
        return f"loss.tau={options['tau']}" if options["tau"] != 0 else None
