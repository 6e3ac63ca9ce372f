"""Label-distribution-aware margins, with deferred re-weighting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dermalyze.errors import ConfigError
from dermalyze.losses.class_weights import counts_of_every_class, effective_number_weights
from dermalyze.losses.loss import Loss
from dermalyze.losses.softmax_rest import log_of_the_rest

_WITHOUT = "choose loss=cross_entropy loss.class_weights=none"


class LDAMLoss(Loss):
    """Cross entropy in which the true class must lead by a margin, the larger the rarer it is.

    For the true class y: -log(e^s(z_y - D_y) / (e^s(z_y - D_y) + sum_{k != y} e^(s z_k))), with
    D_k = C / n_k^(1/4) and C such that the rarest class's margin is `max_margin` (Cao et al. 2019,
    "Learning imbalanced datasets with label-distribution-aware margin loss", section 3.2). From
    epoch `reweight_from` on it is weighted by the effective numbers of images, too (section 3.3,
    deferred re-weighting). The paper designed the two for each other, so they count as one
    correction.

    The weights are those of `dermalyze.losses.class_balanced`, but scaled to be 1 for an average
    training image. The paper divides a batch's weighted sum by the sum of its weights; this is the
    same in expectation and lets micro-batches add up. With weights that sum to K, gradients would
    shrink several times at once when the weights begin, while AdamW remembers the old size.

    The margin belongs to the true class, so a soft target weighs the losses of the classes:
    sum_k t_k w_k loss(y = k), averaged over the batch.

    What `scale` means here: the paper's s = 30 serves its cosine classifier, whose logits lie in
    [-1, 1] and could not become certain without it. Other heads give logits without bound, so a
    network can undo any s by logits s times smaller. Probabilities are read from z as softmax(z),
    however, in validation as in evaluation: with s = 30 their log-odds come out thirty times too
    small. s = 1 keeps them what the loss trained. The margin then counts in the log-odds of the
    true class against the rest: 0.5 asks for odds e^0.5 = 1.6 times those of cross entropy. The
    paper's own setting is a normalized head with its scale of 30 inside
    (`dermalyze.models.heads.linear`), s = 1 and a `max_margin` of 30 * 0.5 = 15.

    Args:
        max_margin: margin of the rarest class, in units of the logits; finite and > 0.
        scale: s, finite and > 0.
        reweight_from: the first epoch with class weights, counted from 0; None: never.
        reweight_beta: beta of the effective numbers, in [0, 1).
        class_counts: images of each class in the training split.

    Raises:
        ConfigError: a value out of its range; or the training split has no image of some class.
    """

    margins_K: Tensor
    weights_K: Tensor

    def __init__(
        self,
        *,
        max_margin: float,
        scale: float,
        reweight_from: int | None,
        reweight_beta: float,
        class_counts: Sequence[int],
    ) -> None:
        super().__init__()
        for name, value in (("max_margin", max_margin), ("scale", scale)):
            if not 0 < value < math.inf:
                raise ConfigError(
                    f"loss.{name}={value}: a finite number > 0 is needed; for a loss without "
                    f"margins {_WITHOUT}."
                )
        if reweight_from is not None and reweight_from < 0:
            raise ConfigError(
                f"loss.reweight_from={reweight_from}: an epoch counted from 0 is needed, or "
                "null to weigh in none."
            )
        counts_K = counts_of_every_class(
            class_counts, setting=f"loss.max_margin={max_margin}", without=_WITHOUT
        )
        self.scale = scale
        self.reweight_from = reweight_from
        self.reweights = False
        self.register_buffer(
            "margins_K", (max_margin * (counts_K.min() / counts_K) ** 0.25).float()
        )
        weights_K = effective_number_weights(
            reweight_beta, class_counts, setting="loss.reweight_beta", without=_WITHOUT
        )
        mean = (weights_K * counts_K).sum() / counts_K.sum()
        self.register_buffer("weights_K", (weights_K / mean).float())
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Weigh the classes from `reweight_from` on."""
        self.reweights = self.reweight_from is not None and epoch >= self.reweight_from

    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""
        log_probs_BK = (self.scale * logits_BK).log_softmax(dim=1)
        # With one class against the rest, a loss is log(1 + e^-(log-odds)); a margin lowers these.
        log_odds_BK = log_probs_BK - log_of_the_rest(log_probs_BK) - self.scale * self.margins_K
        losses_BK = torch.logaddexp(-log_odds_BK, torch.zeros_like(log_odds_BK))
        weighed_BK = target_BK * self.weights_K if self.reweights else target_BK
        return (weighed_BK * losses_BK).sum(dim=1).mean()

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the largest margin: the margins always depend on the frequencies."""
        return f"loss.max_margin={options['max_margin']}"
