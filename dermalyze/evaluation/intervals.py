"""How far a result may be off by chance: a bootstrap that draws lesions, not images.

Images of one lesion succeed and fail together, so it is lesions that are drawn, with replacement,
each with all its images (a cluster bootstrap: Davison & Hinkley 1997, section 3.8). A draw is a row
of weights: how many times each image is in it. Metrics of all draws come from matrix products of
these weights, so that they cost seconds; two models that are given the same weights are compared
draw by draw, which is what makes a difference of theirs paired.

Shapes: D draws, N images, K classes, as in `metrics`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.metrics import (
    ECE_BINS,
    calibration_gaps,
    checked_predictions,
    log_likelihoods,
)
from dermalyze.evaluation.ranking import Ranking
from dermalyze.randomness import Purpose, generator

Floats = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 256  # bounds the memory: 1,500 images take 3 MB a temporary array


class Interval(NamedTuple):
    """A confidence interval: `low` <= `high`, and how many draws had a value to make it from."""

    low: float
    high: float
    draws: int


def lesion_weights(lesion_ids_N: npt.ArrayLike, *, draws: int, seed: int) -> Floats:
    """Return weights_DN: how many times each image is in each draw of the lesions, whole numbers.

    A draw takes as many lesions as there are, with replacement. Which ones is a pure function of
    the seed and of the set of lesion ids: the order of the images has no say, and two models
    judged on the same images get the same draws.

    Args:
        lesion_ids_N: the lesion of each image.
        draws: D, >= 1; 2,000 settle the ends of a 95 % interval to about 2 % of its width.
        seed: >= 0.

    Raises:
        ConfigError: fewer than 1 draw, or a negative seed.
        DataError: no images.
    """
    if draws < 1 or seed < 0:
        raise ConfigError(f"draws={draws}, seed={seed}: give at least 1 draw and a seed >= 0.")
    lesions, lesion_of_image_N = np.unique(np.asarray(lesion_ids_N), return_inverse=True)
    if len(lesions) == 0:
        raise DataError("no lesions to draw: there are no images.")
    shares = np.full(len(lesions), 1 / len(lesions))
    times_DL = generator(seed, Purpose.BOOTSTRAP).multinomial(len(lesions), shares, size=draws)
    return times_DL[:, lesion_of_image_N].astype(np.float64)


def metric_draws(
    labels_N: np.ndarray, probs_NK: np.ndarray, weights_DN: Floats
) -> dict[str, Floats]:
    """Return each metric of `metrics.summary_metrics` for each draw: {name: values_D}.

    A value is what `summary_metrics` would give for the images of the draw, repeated as often as
    they were drawn; NaN where it would give None. Weights need not be whole numbers: they are the
    `sample_weight` of scikit-learn.

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
    blocks = [
        _measured(labels_N, probs_NK, weights_DN[start : start + _DRAWS_AT_ONCE])
        for start in range(0, len(weights_DN), _DRAWS_AT_ONCE)
    ]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def interval(values_D: Floats, *, level: float) -> Interval | None:
    """Return the interval that holds the middle `level` of the draws: the percentile bootstrap.

    Draws in which the value is undefined (NaN) are left out and missing from `Interval.draws`.
    None if it is undefined in all. The calibration error of a draw comes out too large, since noise
    within a bin adds to it and a draw has more of it than the images: its interval lies high.

    Args:
        values_D: a metric, or the difference of two models' metric, in each draw.
        level: in (0, 1), such as 0.95.

    Raises:
        ConfigError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: not in (0, 1). Give one such as 0.95.")
    defined = values_D[~np.isnan(values_D)]
    if len(defined) == 0:
        return None
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(defined))


def _measured(labels_N: np.ndarray, probs_NK: np.ndarray, weights_BN: Floats) -> dict[str, Floats]:
    """`metric_draws` of a block of B draws."""
    total_B = weights_BN.sum(axis=1)
    num_classes = probs_NK.shape[1]
    cell_N = labels_N * num_classes + probs_NK.argmax(axis=1)
    confusion_BKK = _sums(weights_BN, cell_N, num_classes**2).reshape(-1, num_classes, num_classes)
    right_BK = np.diagonal(confusion_BKK, axis1=1, axis2=2)
    true_BK, predicted_BK = confusion_BKK.sum(axis=2), confusion_BKK.sum(axis=1)
    bin_N, gap_N = calibration_gaps(labels_N, probs_NK, ECE_BINS)
    rankings = [Ranking(probs_NK[:, k], labels_N == k, weights_BN) for k in range(num_classes)]
    auc_BK = np.stack([ranking.auc() for ranking in rankings], axis=1)
    return {
        "loss": -(weights_BN @ log_likelihoods(labels_N, probs_NK)) / total_B,
        "accuracy": right_BK.sum(axis=1) / total_B,
        "balanced_accuracy": _mean_of_ratios(right_BK, true_BK),
        # F1 is 2 TP / (2 TP + FP + FN): undefined, and out of the mean, where neither the labels
        # nor the predictions have the class.
        "macro_f1": _mean_of_ratios(2 * right_BK, true_BK + predicted_BK),
        "macro_auc": _mean_of_ratios(np.nan_to_num(auc_BK), (~np.isnan(auc_BK)).astype(float)),
        "ece": np.abs(_sums(weights_BN * gap_N, bin_N, ECE_BINS)).sum(axis=1) / total_B,
    }


def _sums(values_BN: Floats, group_N: np.ndarray, groups: int) -> Floats:
    """Return sums_BG: each draw's values added up within each group of images."""
    sums_BG: Floats = values_BN @ np.eye(groups)[group_N]
    return sums_BG


def _mean_of_ratios(over_BK: Floats, under_BK: Floats) -> Floats:
    """Return the mean over the classes whose denominator is not 0; NaN where all are."""
    defined_BK = under_BK > 0
    ratio_BK = np.divide(over_BK, under_BK, out=np.zeros_like(over_BK), where=defined_BK)
    count_B = defined_BK.sum(axis=1)
    sums_B = ratio_BK.sum(axis=1)
    undefined_B = np.full(len(count_B), np.nan)
    mean_B: Floats = np.divide(sums_B, count_B, out=undefined_B, where=count_B > 0)
    return mean_B
