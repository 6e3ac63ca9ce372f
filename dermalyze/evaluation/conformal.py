"""Sets of classes that hold the true one with a chosen probability: split conformal prediction.

A score says how badly a class fits an image. The quantile of the true classes' scores on images set
apart decides what is in a set. The promise holds for images that are exchangeable with those:
several images of a lesion are not independent of each other, so it is checked on test.

Shapes: N images, K classes.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dermalyze.errors import ConfigError

Floats = npt.NDArray[np.float64]

LAC, APS, RAPS, PER_CLASS = "lac", "aps", "raps", "class_conditional"
METHODS = (LAC, APS, RAPS, PER_CLASS)


def scores(method: str, probs_NK: np.ndarray, *, penalty: float, free_ranks: int) -> Floats:
    """Return the score of every class of every image, lower for what fits better.

    - lac: 1 minus the probability (Sadinle et al. 2019); smallest sets on average.
      class_conditional has the same scores, and a quantile for each class.
    - aps: the probability of the class and of all more probable ones (Romano et al. 2020), without
      their random step, so that an image always gets the same set; sets come out a little larger.
    - raps: that, and `penalty` for each rank after the first `free_ranks` (Angelopoulos et al.
      2021), against long tails of improbable classes.

    Raises:
        ConfigError: there is no such method.
    """
    if method not in METHODS:
        raise ConfigError(f"method {method!r}: there is none. Choose from {', '.join(METHODS)}.")
    if method in (LAC, PER_CLASS):
        return np.asarray(1 - probs_NK, dtype=np.float64)
    order_NK = np.argsort(-probs_NK, axis=1, kind="stable")
    falling_NK = np.cumsum(np.take_along_axis(probs_NK, order_NK, axis=1), axis=1)
    if method == RAPS:
        ranks_K = np.arange(1, probs_NK.shape[1] + 1)
        falling_NK = falling_NK + penalty * np.maximum(0, ranks_K - free_ranks)
    score_NK = np.empty_like(falling_NK)
    np.put_along_axis(score_NK, order_NK, falling_NK, axis=1)
    return score_NK


def thresholds(method: str, score_NK: Floats, labels_N: np.ndarray, *, level: float) -> Floats:
    """Return the largest score that is still in a set, for each class (the same but PER_CLASS).

    It is the ceil((n + 1) * level)-th smallest score of the true classes; infinity, every set then
    holding the class, where n is too small for the level: fewer than level / (1 - level) images.

    Args:
        method: see `scores`.
        score_NK: of images set apart for this.
        labels_N: their true classes.
        level: in (0, 1), the share of sets that are to hold the true class.

    Raises:
        ConfigError: the level is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ConfigError(f"level={level}: not in (0, 1). Give one such as 0.9.")
    true_N = score_NK[np.arange(len(labels_N)), labels_N]
    columns = range(score_NK.shape[1])
    if method == PER_CLASS:
        return np.array([_quantile(true_N[labels_N == k], level) for k in columns])
    return np.full(len(columns), _quantile(true_N, level))


def prediction_sets(
    score_NK: Floats, thresholds_K: npt.ArrayLike, probs_NK: np.ndarray
) -> npt.NDArray[np.bool_]:
    """Return which classes are in each image's set; the most probable one always is."""
    sets_NK = score_NK <= np.asarray(thresholds_K)
    sets_NK[np.arange(len(probs_NK)), probs_NK.argmax(axis=1)] = True
    return sets_NK


def _quantile(scores_N: Floats, level: float) -> float:
    rank = math.ceil((len(scores_N) + 1) * level - 1e-9)  # 10 * 0.9 is 9, whatever rounding says
    return float(np.sort(scores_N)[rank - 1]) if rank <= len(scores_N) else math.inf
