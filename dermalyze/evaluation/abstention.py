"""How many errors are left when a model keeps silent about what it is least sure of."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermalyze.errors import DataError

Floats = npt.NDArray[np.float64]


def risk_coverage(
    confidence_N: np.ndarray, right_N: npt.NDArray[np.bool_]
) -> tuple[Floats, Floats]:
    """Return coverage and risk: the error rate among the n most confident images, n = 1 ... N.

    Images of equal confidence have no order: each counts with the mean of their errors.

    Args:
        confidence_N: higher is surer.
        right_N: whether each image's predicted class is the true one.

    Raises:
        DataError: no images.
    """
    if len(confidence_N) == 0:
        raise DataError("no images, so no risk and no coverage. Choose a split that has some.")
    _, group_N = np.unique(confidence_N, return_inverse=True)
    mean_G = np.bincount(group_N, weights=~right_N) / np.bincount(group_N)
    order = np.argsort(-confidence_N, kind="stable")
    taken_N = np.arange(1, len(order) + 1)
    return taken_N / len(order), np.cumsum(mean_G[group_N[order]]) / taken_N


def area(risk_N: Floats) -> float:
    """Return the area under a risk-coverage curve, the mean risk (Geifman & El-Yaniv 2017)."""
    return float(risk_N.mean())


def abstention_threshold(
    confidence_N: np.ndarray, right_N: npt.NDArray[np.bool_], *, error: float
) -> float | None:
    """Return the smallest confidence from which on the error rate is at most `error`.

    None if no threshold reaches it. To be chosen on images that do not judge the model.

    Args:
        confidence_N, right_N: as in `risk_coverage`.
        error: in [0, 1].
    """
    _, risk_N = risk_coverage(confidence_N, right_N)
    falling = np.sort(confidence_N)[::-1]
    last_of_equals_N = np.r_[falling[1:] < falling[:-1], True]
    allowed = np.flatnonzero(last_of_equals_N & (risk_N <= error))
    return float(falling[allowed[-1]]) if len(allowed) else None
