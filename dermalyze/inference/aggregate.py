"""Several probabilities of the same images made one: of views of an image, or of models."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dermalyze.errors import DataError

Aggregation = Literal["mean", "geometric_mean", "max"]


def aggregated(
    probs_VNK: np.ndarray, *, aggregation: Aggregation, weights_V: np.ndarray | None = None
) -> np.ndarray:
    """Return probs_NK (float64), each row scaled to sum to 1.

    - mean: the arithmetic mean; what a forecaster says who believes each with its weight.
    - geometric_mean: the exponential of the mean logarithm, which is the softmax of mean logits; a
      class that one of them calls impossible stays so.
    - max: the largest probability of each class; it knows no weights.

    One of them alone comes back as it is, to the last bit.

    Args:
        probs_VNK: of V views or models, each row summing to 1.
        weights_V: of each, >= 0, summing to 1; None: equal ones.

    Raises:
        DataError: of an image, each class is impossible to some of them, so that a geometric mean
            leaves nothing; or weights for max.
    """
    count = len(probs_VNK)
    if count == 1:
        only_NK: np.ndarray = probs_VNK[0]
        return only_NK
    if weights_V is None:
        weights_V = np.full(count, 1 / count)
    elif aggregation == "max":
        raise DataError("max takes the largest probability and knows no weights. Use mean.")
    there_V = weights_V > 0  # what has no say is not looked at: 0 times minus infinity is no number
    weights_V, probs_VNK = weights_V[there_V], probs_VNK[there_V]
    if aggregation == "mean":
        merged_NK = np.einsum("v,vnk->nk", weights_V, probs_VNK)
    elif aggregation == "max":
        merged_NK = probs_VNK.max(axis=0)
    else:
        merged_NK = _geometric_mean(probs_VNK, weights_V)
    scaled_NK: np.ndarray = merged_NK / merged_NK.sum(axis=1, keepdims=True)
    return scaled_NK


def _geometric_mean(probs_VNK: np.ndarray, weights_V: np.ndarray) -> np.ndarray:
    """Return it up to a factor a row, so that the largest of each is 1 and none is too small."""
    with np.errstate(divide="ignore"):  # the logarithm of a probability 0 is one of 0
        log_NK = np.einsum("v,vnk->nk", weights_V, np.log(probs_VNK))
    largest_N1 = log_NK.max(axis=1, keepdims=True)
    lost_N = np.flatnonzero(np.isneginf(largest_N1))
    if len(lost_N):
        raise DataError(
            f"geometric_mean: of {len(lost_N)} images (first: number {lost_N[0]}) each class has "
            "probability 0 in some view or model, so nothing is left. Use mean."
        )
    merged_NK: np.ndarray = np.exp(log_NK - largest_N1)
    return merged_NK
