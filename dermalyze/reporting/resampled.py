"""Means and calibration errors of images, each with the interval of its lesions' draws.

Shapes: D draws below a row of ones, N images, K classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from dermalyze.evaluation.draws import ratio
from dermalyze.evaluation.metrics import ECE_BINS, calibration_gaps, log_likelihoods
from dermalyze.reporting.measures import Bootstrap

Node = dict[str, Any]


class Resampled:
    """Images as they are and as their lesions are drawn, for what is a mean over images.

    Args:
        bootstrap: how lesions are drawn; the same draws as all other intervals have.
        lesion_ids_N: of the images.

    Attributes:
        weights_DN: see `Bootstrap.weights`.
    """

    def __init__(self, bootstrap: Bootstrap, lesion_ids_N: npt.ArrayLike) -> None:
        self._bootstrap = bootstrap
        self.weights_DN = bootstrap.weights(lesion_ids_N)

    def mean(
        self, values_N: npt.ArrayLike, *, among_N: np.ndarray | None = None, reason: str = ""
    ) -> Node:
        """Return the estimate of the values' mean: value, low, high, draws.

        Args:
            values_N: of the images; True counts as 1.
            among_N: which images the mean is over; None: all. A draw without one of them has no
                value.
            reason: why there is no mean, where it is over no image.
        """
        counted_N = np.ones(self.weights_DN.shape[1]) if among_N is None else among_N
        sums_D = self.weights_DN @ (np.asarray(values_N, dtype=np.float64) * counted_N)
        found = self._bootstrap.estimate(ratio(sums_D, self.weights_DN @ counted_N.astype(float)))
        return found if found["value"] is not None else found | {"reason": reason}

    def calibration_errors(self, labels_N: np.ndarray, probs_NK: np.ndarray) -> Node:
        """Return the estimates of nll, ece and brier, see `calibration.calibration_errors`.

        The calibration error of a draw comes out too large, see `intervals.interval`.

        Args:
            labels_N, probs_NK: as `metrics.checked_predictions` returns them.
        """
        one_hot_NK = np.eye(probs_NK.shape[1])[labels_N]
        bin_N, gap_N = calibration_gaps(labels_N, probs_NK, ECE_BINS)
        gaps_DE = self.weights_DN @ (np.eye(ECE_BINS)[bin_N] * gap_N[:, None])
        ece_D = np.abs(gaps_DE).sum(axis=1) / self.weights_DN.sum(axis=1)
        return {
            "nll": self.mean(-log_likelihoods(labels_N, probs_NK)),
            "ece": self._bootstrap.estimate(ece_D),
            "brier": self.mean(((one_hot_NK - probs_NK) ** 2).sum(axis=1)),
        }
