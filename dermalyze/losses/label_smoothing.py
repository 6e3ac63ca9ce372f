"""Cross entropy against smoothed labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import Weighting, class_weights_correction
from dermalyze.losses.class_weights import class_weights as weights_of
from dermalyze.losses.loss import Loss


class LabelSmoothing(Loss):
    """Cross entropy in which epsilon of each label is spread over the classes, batch mean.

    Conventions (K classes; smoothing is linear, so mixed targets are smoothed like their parts):
        others: 1 - epsilon on the true class, epsilon / (K - 1) on each other one. A class
            weight is that of the true class: it scales an image's loss and leaves the smoothed
            label as it is.
        uniform: 1 - epsilon + epsilon / K on the true class, epsilon / K on each other one
            (Szegedy et al. 2016, "Rethinking the Inception architecture", section 7), exactly
            as torch's `label_smoothing` does it. Torch weighs each entry of the smoothed label
            with the weight of its own class, so under strong weights an image of a frequent
            class pulls much probability towards rare ones.

    Args:
        epsilon: the part that is spread, in [0, 1), and below (K - 1) / K for `others`, where all
            classes are alike; 0 gives cross entropy.
        convention: `others` or `uniform`.
        class_weights: `balanced` or `none`, see `dermalyze.losses.class_weights`.
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: `epsilon` out of its range; see also `dermalyze.losses.class_weights`.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        *,
        epsilon: float,
        convention: Literal["others", "uniform"],
        class_weights: Weighting,
        class_counts: Sequence[int],
    ) -> None:
        super().__init__()
        if not 0 <= epsilon < 1:
            raise ConfigError(
                f"loss.epsilon={epsilon}: a part in [0, 1) is needed; 0 smooths nothing, 0.05 to "
                "0.1 are common."
            )
        alike = (len(class_counts) - 1) / len(class_counts)
        if convention == "others" and epsilon >= alike:
            raise ConfigError(
                f"loss.epsilon={epsilon}: from {alike:.3f} on, others of {len(class_counts)} "
                "classes are as true as the true one; 0.05 to 0.1 are common."
            )
        self.epsilon = epsilon
        self.convention = convention
        self.register_buffer("class_weights", weights_of(class_weights, class_counts))

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        if self.convention == "uniform":
            return F.cross_entropy(
                logits_BK, target_BK, weight=self.class_weights, label_smoothing=self.epsilon
            )
        # Weighed before it is smoothed: afterwards the rare classes' weights would turn their
        # small part of a frequent class's label into a large one.
        weighed_BK = target_BK if self.class_weights is None else target_BK * self.class_weights
        others_BK = weighed_BK.sum(dim=1, keepdim=True) - weighed_BK
        spread = self.epsilon / (logits_BK.shape[1] - 1)
        return F.cross_entropy(logits_BK, (1 - self.epsilon) * weighed_BK + spread * others_BK)

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the class weights, if there are any."""
        return class_weights_correction(options)
