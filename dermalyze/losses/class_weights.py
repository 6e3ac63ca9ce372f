"""Weights that let rare classes count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dermalyze.errors import ConfigError

Weighting = Literal["balanced", "none"]


def class_weights(mode: Weighting, class_counts: Sequence[int]) -> Tensor | None:
    """Return weights_K for a loss, or None where every class counts as it comes.

    `balanced` gives class k the weight total / (K * count_k), as scikit-learn's "balanced" does:
    an average training image weighs 1, and all classes weigh the same in sum.

    Args:
        mode: `balanced` or `none`.
        class_counts: images of each class in the training split, in the order of the classes.

    Returns:
        float32 of shape (K,).

    Raises:
        ConfigError: fewer than two classes; or `balanced`, and the training split has no image
            of some class.
    """
    if len(class_counts) < 2:
        raise ConfigError(
            f"class_counts={list(class_counts)}: a classifier needs at least two classes; check "
            "the class list."
        )
    if mode == "none":
        return None
    empty = [position for position, count in enumerate(class_counts) if count < 1]
    if empty:
        raise ConfigError(
            f"loss.class_weights={mode}: class_counts={list(class_counts)}, so the training split "
            f"has no image of the class at position {', '.join(map(str, empty))} (counted from "
            "0), and no weight can balance that. Give the training split images of it (another "
            "data.split seed or larger share), or set loss.class_weights=none."
        )
    counts_K = torch.tensor(list(class_counts), dtype=torch.float64)
    return (counts_K.sum() / (len(counts_K) * counts_K)).float()
