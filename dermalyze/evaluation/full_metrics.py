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

from dermalyze.evaluation.intervals import metric_draws
from dermalyze.evaluation.metrics import checked_predictions
from dermalyze.evaluation.ranking import Ranking

Floats = npt.NDArray[np.float64]

_DRAWS_AT_ONCE = 256  # bounds the memory, as in `intervals`


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
        weights_DN: see `intervals.metric_draws`.
        malignant_K: which classes are; None where it is not known: no malignant_auc.
        melanoma: its position among the classes; None: there is none, and no sensitivity of it.
        specificities: in [0, 1].

    Raises:
        DataError: see `intervals.metric_draws`.
    """
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    overall = metric_draws(labels_N, probs_NK, weights_DN)
    blocks = []
    for start in range(0, len(weights_DN), _DRAWS_AT_ONCE):
        weights_BN = np.asarray(weights_DN[start : start + _DRAWS_AT_ONCE], dtype=np.float64)
        block = _measured(labels_N, probs_NK, weights_BN)
        if malignant_K is not None:
            columns_K = np.asarray(malignant_K, dtype=np.bool_)
            scores_N = probs_NK[:, columns_K].sum(axis=1)
            ranking = Ranking(scores_N, columns_K[labels_N], weights_BN)
            block.overall["malignant_auc"] = ranking.auc()
        if melanoma is not None:
            ranking = Ranking(probs_NK[:, melanoma], labels_N == melanoma, weights_BN)
            for specificity in specificities:
                name = f"melanoma_sensitivity_at_specificity_{specificity:g}"
                block.overall[name] = ranking.sensitivity(specificity)
        blocks.append(block)
    first = blocks[0]
    return FullMetrics(
        overall
        | {name: np.concatenate([block.overall[name] for block in blocks]) for name in first[0]},
        {name: np.concatenate([block.per_class[name] for block in blocks]) for name in first[1]},
    )


def _measured(labels_N: np.ndarray, probs_NK: np.ndarray, weights_BN: Floats) -> FullMetrics:
    """Return what needs neither melanoma nor malignancy, for a block of B draws."""
    size = probs_NK.shape[1]
    cells_NC = np.eye(size**2)[labels_N * size + probs_NK.argmax(axis=1)]
    confusion_BKK = (weights_BN @ cells_NC).reshape(-1, size, size)
    right_BK = np.diagonal(confusion_BKK, axis1=1, axis2=2)
    true_BK, predicted_BK = confusion_BKK.sum(axis=2), confusion_BKK.sum(axis=1)
    total_B1 = true_BK.sum(axis=1, keepdims=True)
    rankings = [Ranking(probs_NK[:, k], labels_N == k, weights_BN) for k in range(size)]
    per_class = {
        "precision": _ratio(right_BK, predicted_BK),
        "recall": _ratio(right_BK, true_BK),
        "specificity": _ratio(total_B1 - true_BK - predicted_BK + right_BK, total_B1 - true_BK),
        "f1": _ratio(2 * right_BK, true_BK + predicted_BK),
        "auc": np.stack([ranking.auc() for ranking in rankings], axis=1),
        "average_precision": np.stack([r.average_precision() for r in rankings], axis=1),
    }
    overall = {
        f"{mean}_{name}": _mean(per_class[name], weights_BK)
        for name in ("precision", "recall", "f1")
        for mean, weights_BK in (("macro", np.ones_like(true_BK)), ("weighted", true_BK))
    }
    overall["macro_average_precision"] = _mean(
        per_class["average_precision"], np.ones_like(true_BK)
    )
    total_B, agreed_B = total_B1[:, 0], right_BK.sum(axis=1)
    by_chance_B = (true_BK * predicted_BK).sum(axis=1)
    covariance_B = agreed_B * total_B - by_chance_B
    overall["kappa"] = _ratio(covariance_B, total_B**2 - by_chance_B)
    spread_B = (total_B**2 - (true_BK**2).sum(axis=1)) * (
        total_B**2 - (predicted_BK**2).sum(axis=1)
    )
    overall["mcc"] = _ratio(covariance_B, np.sqrt(np.maximum(spread_B, 0)))
    return FullMetrics(overall, per_class)


def _ratio(over: Floats, under: Floats) -> Floats:
    ratio: Floats = np.divide(over, under, out=np.full(over.shape, np.nan), where=under > 0)
    return ratio


def _mean(values_BK: Floats, weights_BK: Floats) -> Floats:
    """Return each draw's weighted mean over the classes that have a value; NaN where none has."""
    defined_BK = ~np.isnan(values_BK)
    kept_BK = weights_BK * defined_BK
    return _ratio((kept_BK * np.nan_to_num(values_BK)).sum(axis=1), kept_BK.sum(axis=1))
