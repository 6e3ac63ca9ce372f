"""Every metric of an evaluation, for many weightings of the images at once.

What `metrics.summary_metrics` has, and what a report wants beside it. A row of ones measures the
images as they are; rows of `intervals.lesion_weights` say how far that may be off by chance. What a
draw leaves undefined is NaN, never a made-up 0.

Shapes: D draws, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dermalyze.evaluation.draws import Draws, blocks_of_draws, mean_defined, ratio
from dermalyze.evaluation.ranking import auc_draws

Floats = npt.NDArray[np.float64]


class FullMetrics(NamedTuple):
    """Metrics of each draw: {name: values_D}, and of each class {name: values_DK}."""

    overall: dict[str, Floats]
    per_class: dict[str, Floats]


def full_metrics(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    weights_DN: Floats,
    *,
    malignant_K: Sequence[bool] | None,
    melanoma: int | None,
    specificities: Sequence[float],
) -> FullMetrics:
    """Return all metrics for each draw.

    Of each class: precision, recall (sensitivity), specificity, f1, auc and average_precision, the
    last two one against the rest. Overall: those of `metrics.METRICS`; precision, recall and f1 as
    the mean over the classes that have one ("macro_") and with classes weighing as many images as
    they have ("weighted_"); macro_average_precision; kappa (Cohen 1960) and mcc (Gorodkin 2004), in
    [-1, 1]; malignant_auc, of the sum of the malignant classes' probabilities; and for each
    specificity melanoma_sensitivity_at_specificity_S, see `Ranking.sensitivity`.

    Args:
        labels_N, probs_NK: see `metrics.checked_predictions`.
        weights_DN: see `draws.blocks_of_draws`.
        malignant_K: which classes are; None where it is not known: no malignant_auc.
        melanoma: its position among the classes; None: there is none, and no sensitivity of it.
        specificities: in [0, 1].

    Raises:
        DataError: see `draws.blocks_of_draws`.
    """
    blocks = []
    for draws in blocks_of_draws(labels_N, probs_NK, weights_DN):
        per_class = _per_class(draws)
        overall = draws.summary() | _overall(draws, per_class)
        if malignant_K is not None:
            columns_K = np.asarray(malignant_K, dtype=np.bool_)
            scores_N = draws.probs_NK[:, columns_K].sum(axis=1)
            malignant_N = columns_K[draws.labels_N]
            overall["malignant_auc"] = auc_draws(scores_N, malignant_N, draws.weights_BN)
        if melanoma is not None:
            for specificity in specificities:
                name = f"melanoma_sensitivity_at_specificity_{specificity:g}"
                overall[name] = draws.rankings[melanoma].sensitivity(specificity)
        blocks.append(FullMetrics(overall, per_class))
    first = blocks[0]
    return FullMetrics(
        {name: np.concatenate([block.overall[name] for block in blocks]) for name in first[0]},
        {name: np.concatenate([block.per_class[name] for block in blocks]) for name in first[1]},
    )


def _per_class(draws: Draws) -> dict[str, Floats]:
    right_BK, true_BK, predicted_BK = draws.right_BK, draws.true_BK, draws.predicted_BK
    total_B1 = true_BK.sum(axis=1, keepdims=True)
    return {
        "precision": ratio(right_BK, predicted_BK),
        "recall": ratio(right_BK, true_BK),
        "specificity": ratio(total_B1 - true_BK - predicted_BK + right_BK, total_B1 - true_BK),
        "f1": ratio(2 * right_BK, true_BK + predicted_BK),
        "auc": draws.auc_BK,
        "average_precision": np.stack([r.average_precision() for r in draws.rankings], axis=1),
    }


def _overall(draws: Draws, per_class: dict[str, Floats]) -> dict[str, Floats]:
    """Return what the summary lacks and needs neither melanoma nor malignancy."""
    right_BK, true_BK, predicted_BK = draws.right_BK, draws.true_BK, draws.predicted_BK
    overall = {}
    for name in ("precision", "recall", "f1"):
        overall[f"macro_{name}"] = mean_defined(per_class[name])
        overall[f"weighted_{name}"] = mean_defined(per_class[name], true_BK)
    overall["macro_average_precision"] = mean_defined(per_class["average_precision"])
    total_B, agreed_B = true_BK.sum(axis=1), right_BK.sum(axis=1)
    by_chance_B = (true_BK * predicted_BK).sum(axis=1)
    covariance_B = agreed_B * total_B - by_chance_B
    overall["kappa"] = ratio(covariance_B, total_B**2 - by_chance_B)
    spread_B = (total_B**2 - (true_BK**2).sum(axis=1)) * (
        total_B**2 - (predicted_BK**2).sum(axis=1)
    )
    overall["mcc"] = ratio(covariance_B, np.sqrt(np.maximum(spread_B, 0)))
    return overall
