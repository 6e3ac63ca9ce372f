"""Probabilities as they would be if classes were frequent in other shares than in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dermalyze.errors import ConfigError, DataError


def adjusted_probabilities(
    probs_NK: np.ndarray, class_counts: Sequence[int], *, tau: float
) -> np.ndarray:
    """Return p_k / pi_k^tau of each row, scaled to sum to 1; pi are the training split's shares.

    Menon et al. 2021, "Long-tail learning via logit adjustment", section 4.1. A model that learnt
    p(class | image) under the shares pi ranks at tau = 1 as if all classes were equally frequent,
    which is best for balanced accuracy. For images that come in the training's shares it makes
    probabilities worse: rare classes come out too probable.

    Args:
        probs_NK: probabilities, each row summing to 1.
        class_counts: images of each of the K classes in the training split.
        tau: strength, finite and > 0.

    Returns:
        float64 of shape (N, K).

    Raises:
        ConfigError: `tau` out of its range.
        DataError: not one count a class, or a class without images.
    """
    if not 0 < tau < math.inf:
        raise ConfigError(
            f"logit_adjustment={tau}: a finite number > 0 is needed, or null for probabilities as "
            "they are."
        )
    if len(class_counts) != probs_NK.shape[1] or min(class_counts) < 1:
        raise DataError(
            f"logit_adjustment={tau}: class_counts={list(class_counts)}, but one count of at least "
            f"1 is needed for each of the {probs_NK.shape[1]} classes. Evaluate with "
            "logit_adjustment=null."
        )
    log_counts_K = np.log(np.asarray(class_counts, dtype=np.float64))
    with np.errstate(divide="ignore"):  # the log of a probability 0 stays one of 0
        logits_NK = np.log(probs_NK.astype(np.float64)) - tau * log_counts_K
    weights_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    adjusted_NK: np.ndarray = weights_NK / weights_NK.sum(axis=1, keepdims=True)
    return adjusted_NK
