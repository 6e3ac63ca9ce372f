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
from dermalyze.evaluation.draws import blocks_of_draws
from dermalyze.randomness import Purpose, generator

Floats = npt.NDArray[np.float64]


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
        labels_N, probs_NK, weights_DN: see `draws.blocks_of_draws`.

    Raises:
        DataError: see `draws.blocks_of_draws`.
    """
    blocks = [draws.summary() for draws in blocks_of_draws(labels_N, probs_NK, weights_DN)]
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
