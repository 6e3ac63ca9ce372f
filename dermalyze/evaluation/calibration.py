"""Whether probabilities mean what they say, and a temperature that mends them.

Shapes: N images, K classes, B bins; labels and probabilities as in `metrics`. Probabilities of
confidence are compared with how often they come true, in bins of equal width, or of equal mass (as
many images in each; ties stay in their order).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dermalyze.evaluation.metrics import (
    ECE_BINS,
    calibration_gaps,
    checked_predictions,
    log_likelihoods,
)

Floats = npt.NDArray[np.float64]

_COLDEST, _HOTTEST = 0.05, 20.0  # beyond, probabilities are all 0 and 1, or all equal
_AT_BOUND = 1e-4  # relative; the search ends within 1e-6 of a bound


def fit_temperature(labels_N: np.ndarray, probs_NK: np.ndarray) -> float:
    """Return the temperature, in [0.05, 20], with the smallest mean negative log-likelihood.

    Guo et al. 2017, section 4.2. Above 1 the model was too sure, below 1 not sure enough. To be
    fitted on images that neither train nor judge the model.

    Raises:
        DataError: see `metrics.checked_predictions`.
    """
    from scipy.optimize import minimize_scalar  # a second's import, that predicting does not need

    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)

    def loss(log_temperature: float) -> float:
        cooled_NK = with_temperature(probs_NK, float(np.exp(log_temperature)))
        return float(-log_likelihoods(labels_N, cooled_NK).mean())

    bounds = (np.log(_COLDEST), np.log(_HOTTEST))
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))


def bound_note(temperature: float) -> str | None:
    """Return that a fitted temperature is a bound of the search and no optimum, None if it is."""
    for bound, how in ((_COLDEST, "far from sure enough"), (_HOTTEST, "far too sure")):
        if abs(temperature / bound - 1) < _AT_BOUND:
            return (
                f"temperature {bound:g} is a bound of the search ({_COLDEST:g} to {_HOTTEST:g}), "
                f"not an optimum: on validation the model is {how}, and what is calibrated by it "
                "means little"
            )
    return None


def with_temperature(probs_NK: np.ndarray, temperature: float) -> Floats:
    """Return softmax(logits / temperature) of each row; its order of classes stays.

    Args:
        probs_NK: softmax(logits).
        temperature: > 0; 1 changes nothing.
    """
    logits_NK = np.log(np.maximum(probs_NK, np.finfo(np.float64).tiny)) / temperature
    odds_NK = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    scaled_NK: Floats = odds_NK / odds_NK.sum(axis=1, keepdims=True)
    return scaled_NK


def calibration_errors(labels_N: np.ndarray, probs_NK: np.ndarray) -> dict[str, float]:
    """Return how far probabilities and frequencies are apart, 15 bins each.

    - nll: mean negative log-likelihood, nats.
    - ece, ece_equal_mass: of the largest probability, in bins of equal width and of equal mass.
    - classwise_ece, adaptive_ece: of every class's probability, averaged over the classes, in bins
      of equal width (Kull et al. 2019) and of equal mass (Nixon et al. 2019).
    - brier: mean squared distance to the one-hot label, summed over the classes, in [0, 2]. It is
      brier_reliability - brier_resolution + brier_uncertainty + brier_within_bins (Murphy 1973;
      the last term, of probabilities that differ within a bin, is Stephenson's, 2008).

    Raises:
        DataError: see `metrics.checked_predictions`.
    """
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    bin_N, gap_N = calibration_gaps(labels_N, probs_NK, ECE_BINS)
    one_hot_NK = np.eye(probs_NK.shape[1])[labels_N]
    columns = range(probs_NK.shape[1])
    width = [_width_bins(probs_NK[:, k]) for k in columns]
    mass = [_mass_bins(probs_NK[:, k]) for k in columns]
    gap_NK = one_hot_NK - probs_NK
    parts = [_brier_parts(one_hot_NK[:, k], probs_NK[:, k], width[k]) for k in columns]
    reliability, resolution, uncertainty = (float(part) for part in np.sum(parts, axis=0))
    brier = float((gap_NK**2).sum(axis=1).mean())
    return {
        "nll": float(-log_likelihoods(labels_N, probs_NK).mean()),
        "ece": _mean_gap(bin_N, gap_N),
        "ece_equal_mass": _mean_gap(_mass_bins(probs_NK.max(axis=1)), gap_N),
        "classwise_ece": float(np.mean([_mean_gap(width[k], gap_NK[:, k]) for k in columns])),
        "adaptive_ece": float(np.mean([_mean_gap(mass[k], gap_NK[:, k]) for k in columns])),
        "brier": brier,
        "brier_reliability": reliability,
        "brier_resolution": resolution,
        "brier_uncertainty": uncertainty,
        "brier_within_bins": brier - (reliability - resolution + uncertainty),
    }


def reliability_table(labels_N: np.ndarray, probs_NK: np.ndarray) -> list[dict[str, float | None]]:
    """Return for each of 15 bins of equal width: low, high, images, confidence and accuracy.

    The last two are means, None in an empty bin.

    Raises:
        DataError: see `metrics.checked_predictions`.
    """
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    bin_N, gap_N = calibration_gaps(labels_N, probs_NK, ECE_BINS)
    confidence_N = probs_NK.max(axis=1)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    table: list[dict[str, float | None]] = []
    for position in range(ECE_BINS):
        inside_N = bin_N == position
        row: dict[str, float | None] = {
            "low": float(edges[position]),
            "high": float(edges[position + 1]),
            "images": int(inside_N.sum()),
            "confidence": None,
            "accuracy": None,
        }
        if inside_N.any():
            confidence = float(confidence_N[inside_N].mean())
            row["confidence"] = confidence
            row["accuracy"] = confidence + float(gap_N[inside_N].mean())
        table.append(row)
    return table


def _width_bins(values_N: Floats) -> npt.NDArray[np.intp]:
    return np.searchsorted(np.linspace(0, 1, ECE_BINS + 1)[1:-1], values_N, side="left")


def _mass_bins(values_N: Floats) -> npt.NDArray[np.intp]:
    bin_N = np.empty(len(values_N), dtype=np.intp)
    order = np.argsort(values_N, kind="stable")
    bin_N[order] = np.arange(len(values_N)) * ECE_BINS // len(values_N)
    return bin_N


def _mean_gap(bin_N: np.ndarray, gap_N: Floats) -> float:
    return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum() / len(gap_N))


def _brier_parts(
    outcome_N: Floats, probability_N: Floats, bin_N: npt.NDArray[np.intp]
) -> tuple[float, float, float]:
    """Return reliability, resolution and uncertainty of one class's probabilities."""
    count_B = np.bincount(bin_N, minlength=ECE_BINS)
    some_B = np.maximum(count_B, 1)
    mean_B = np.bincount(bin_N, weights=probability_N, minlength=ECE_BINS) / some_B
    rate_B = np.bincount(bin_N, weights=outcome_N, minlength=ECE_BINS) / some_B
    rate, total = outcome_N.mean(), len(outcome_N)
    reliability = (count_B * (mean_B - rate_B) ** 2).sum() / total
    resolution = (count_B * (rate_B - rate) ** 2).sum() / total
    return float(reliability), float(resolution), float(rate * (1 - rate))
