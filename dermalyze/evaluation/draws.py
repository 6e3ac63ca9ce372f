"""Images under many weightings at once, and what their metrics are made of: counted only once.

Shapes: D draws, B of them in a block, N images, K classes, as in `metrics`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dermalyze.errors import DataError
from dermalyze.evaluation.metrics import (
    ECE_BINS,
    calibration_gaps,
    checked_predictions,
    log_likelihoods,
)
from dermalyze.evaluation.ranking import Ranking, auc_draws

Floats = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 256  # bounds the memory: 1,500 images take 3 MB a temporary array


class Draws:
    """A block of B weightings of N images.

    Attributes:
        labels_N, probs_NK: as `metrics.checked_predictions` returns them.
        weights_BN: >= 0, each row with a sum > 0.
        right_BK: weight of each class's images that were called by their class.
        true_BK: weight of each class's images.
        predicted_BK: weight of the images that were called by the class.
    """

    def __init__(self, labels_N: np.ndarray, probs_NK: np.ndarray, weights_BN: Floats) -> None:
        """Count. See the attributes for the arguments."""
        self.labels_N, self.probs_NK, self.weights_BN = labels_N, probs_NK, weights_BN
        size = probs_NK.shape[1]
        cell_N = labels_N * size + probs_NK.argmax(axis=1)
        confusion_BKK = _sums(weights_BN, cell_N, size**2).reshape(-1, size, size)
        self.right_BK: Floats = np.diagonal(confusion_BKK, axis1=1, axis2=2)
        self.true_BK: Floats = confusion_BKK.sum(axis=2)
        self.predicted_BK: Floats = confusion_BKK.sum(axis=1)

    @cached_property
    def rankings(self) -> list[Ranking]:
        """Each class's images against the rest, by its probability."""
        return [
            Ranking(self.probs_NK[:, k], self.labels_N == k, self.weights_BN)
            for k in range(self.probs_NK.shape[1])
        ]

    @cached_property
    def auc_BK(self) -> Floats:  # noqa: N802 - the shape is in the name
        """The area under each class's ROC curve, one against the rest; NaN where there is none."""
        auc_KB = [
            auc_draws(self.probs_NK[:, k], self.labels_N == k, self.weights_BN)
            for k in range(self.probs_NK.shape[1])
        ]
        return np.stack(auc_KB, axis=1)

    def summary(self) -> dict[str, Floats]:
        """Return the metrics of `metrics.summary_metrics`: {name: values_B}, NaN for its None."""
        total_B = self.weights_BN.sum(axis=1)
        bin_N, gap_N = calibration_gaps(self.labels_N, self.probs_NK, ECE_BINS)
        likelihoods_N = log_likelihoods(self.labels_N, self.probs_NK)
        gaps_BE = _sums(self.weights_BN * gap_N, bin_N, ECE_BINS)
        return {
            "loss": -(self.weights_BN @ likelihoods_N) / total_B,
            "accuracy": self.right_BK.sum(axis=1) / total_B,
            "balanced_accuracy": mean_defined(ratio(self.right_BK, self.true_BK)),
            # F1 is 2 TP / (2 TP + FP + FN): undefined, and out of the mean, where neither the
            # labels nor the predictions have the class.
            "macro_f1": mean_defined(ratio(2 * self.right_BK, self.true_BK + self.predicted_BK)),
            "macro_auc": mean_defined(self.auc_BK),
            "ece": np.abs(gaps_BE).sum(axis=1) / total_B,
        }


def blocks_of_draws(
    labels_N: np.ndarray, probs_NK: np.ndarray, weights_DN: Floats
) -> Iterator[Draws]:
    """Yield the draws in order, so many at once as the memory holds with ease.

    Args:
        labels_N: true classes, in [0, K).
        probs_NK: probabilities, rows sum to 1.
        weights_DN: >= 0, each row with a sum > 0; one row of ones measures the images as they are.

    Raises:
        DataError: see `checked_predictions`; or the weights do not fit the images.
    """
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    weights_DN = np.asarray(weights_DN, dtype=np.float64)
    if weights_DN.ndim != 2 or weights_DN.shape[1] != len(labels_N):
        raise DataError(
            f"weights: shape {weights_DN.shape}, needed (draws, {len(labels_N)}), one an image"
        )
    if not (np.isfinite(weights_DN).all() and (weights_DN >= 0).all()):
        raise DataError("weights: negative or not finite; an image is in a draw 0 times or more")
    if not weights_DN.any(axis=1).all():
        raise DataError("weights: a draw with no image in it has no metrics")
    for start in range(0, len(weights_DN), _DRAWS_AT_ONCE):
        yield Draws(labels_N, probs_NK, weights_DN[start : start + _DRAWS_AT_ONCE])


def ratio(over: Floats, under: Floats) -> Floats:
    """Return over / under, NaN where `under` is 0."""
    found: Floats = np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)
    return found


def mean_defined(values_BK: Floats, weights_BK: Floats | None = None) -> Floats:
    """Return each draw's mean over the classes that have a value; NaN where none has.

    Args:
        weights_BK: of the classes; None: each weighs the same.
    """
    defined_BK = ~np.isnan(values_BK)
    kept_BK = defined_BK.astype(np.float64) if weights_BK is None else weights_BK * defined_BK
    return ratio((kept_BK * np.nan_to_num(values_BK)).sum(axis=1), kept_BK.sum(axis=1))


def _sums(values_BN: Floats, group_N: np.ndarray, groups: int) -> Floats:
    """Return sums_BG: each draw's values added up within each group of images."""
    sums_BG: Floats = values_BN @ np.eye(groups)[group_N]
    return sums_BG
