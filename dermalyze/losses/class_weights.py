"""Weights that let rare classes count as much as frequent ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

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
    if mode == "none":
        _check_number_of_classes(class_counts)
        return None
    counts_K = counts_of_every_class(
        class_counts, setting=f"loss.class_weights={mode}", without="set loss.class_weights=none"
    )
    return (counts_K.sum() / (len(counts_K) * counts_K)).float()


def class_weights_correction(options: Mapping[str, Any]) -> str | None:
    """Return `loss.class_weights=...` for a loss's config, or None where they are `none`."""
    mode = options["class_weights"]
    return None if mode == "none" else f"loss.class_weights={mode}"


def effective_number_weights(
    beta: float, class_counts: Sequence[int], *, setting: str, without: str
) -> Tensor:
    """Return weights_K in inverse proportion to each class's effective number of images.

    The effective number of n images is (1 - beta^n) / (1 - beta): further images of a class
    overlap ever more with those that are there (Cui et al. 2019, "Class-balanced loss based on
    effective number of samples", proposition 1). beta = 0 gives every class weight 1, beta towards
    1 the inverse of the counts. The weights sum to K, as in the paper (section 4).

    Args:
        beta: in [0, 1).
        class_counts: images of each class in the training split, in the order of the classes.
        setting: the name of beta's key in the config.
        without: what to set to do without these weights, for messages.

    Returns:
        float32 of shape (K,).

    Raises:
        ConfigError: `beta` out of its range, or see `counts_of_every_class`.
    """
    if not 0 <= beta < 1:
        raise ConfigError(
            f"{setting}={beta}: a number in [0, 1) is needed; 0 weighs all classes the same, "
            "0.9999 nearly by the inverse of their counts."
        )
    counts_K = counts_of_every_class(class_counts, setting=f"{setting}={beta}", without=without)
    # 1 - beta^n by way of the logarithm: beta^n itself rounds to 1 where beta is close to it.
    overlap_K = -torch.expm1(counts_K * torch.tensor(beta, dtype=torch.float64).log())
    weights_K = (1 - beta) / overlap_K
    return (len(weights_K) * weights_K / weights_K.sum()).float()


def counts_of_every_class(class_counts: Sequence[int], *, setting: str, without: str) -> Tensor:
    """Return counts_K (float64), each at least 1.

    Args:
        class_counts: images of each class in the training split, in the order of the classes.
        setting: what needs them, as it stands in the config, for messages.
        without: what to set to do without them, for messages.

    Raises:
        ConfigError: fewer than two classes, or the training split has no image of some class.
    """
    _check_number_of_classes(class_counts)
    empty = [position for position, count in enumerate(class_counts) if count < 1]
    if empty:
        raise ConfigError(
            f"{setting}: class_counts={list(class_counts)}, so the training split has no image of "
            f"the class at position {', '.join(map(str, empty))} (counted from 0), and nothing can "
            "balance that. Give the training split images of it (another data.split seed or "
            f"larger share), or {without}."
        )
    return torch.tensor(list(class_counts), dtype=torch.float64)


def _check_number_of_classes(class_counts: Sequence[int]) -> None:
    if len(class_counts) < 2:
        raise ConfigError(
            f"class_counts={list(class_counts)}: a classifier needs at least two classes; check "
            "the class list."
        )
