"""The probability that a softmax leaves to the other classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def log_of_the_rest(log_probs_BK: Tensor) -> Tensor:
    """Return log(1 - p_k) of each class, as the log of the other classes' summed probability.

    1 - p_k itself rounds to 0 where p_k nears 1, and neither its logarithm nor its power has a
    finite slope there. K is small, so the K x K table costs nothing.

    Args:
        log_probs_BK: log-softmax of logits, K >= 2.
    """
    itself_KK = torch.eye(log_probs_BK.shape[1], dtype=torch.bool, device=log_probs_BK.device)
    others_BKK = log_probs_BK.unsqueeze(1).masked_fill(itself_KK, -math.inf)
    return others_BKK.logsumexp(dim=2)
