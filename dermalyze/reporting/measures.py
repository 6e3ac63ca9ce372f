"""All metrics of an evaluation with their intervals, overall and in subgroups, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.errors import ConfigError
from dermalyze.evaluation.full_metrics import full_metrics
from dermalyze.evaluation.intervals import interval, lesion_weights, metric_draws
from dermalyze.evaluation.metrics import undefined_reasons
from dermalyze.taxonomy import HAM10000

Node = dict[str, Any]
Floats = npt.NDArray[np.float64]

MELANOMA = "mel"
_MALIGNANT = {lesion_class.code: lesion_class.malignant for lesion_class in HAM10000}
_GROUPED_BY = ("sex", "localization", "dataset", "dx_type")
_UNKNOWN = "unknown"


class Bootstrap(NamedTuple):
    """How intervals are drawn: the share of draws they hold, how many draws, and their seed."""

    level: float
    draws: int
    seed: int

    def weights(self, lesion_ids_N: npt.ArrayLike) -> Floats:
        """Return the images as they are, a row of ones, and below it the draws of the lesions."""
        drawn_DN = lesion_weights(lesion_ids_N, draws=self.draws, seed=self.seed)
        return np.concatenate([np.ones((1, drawn_DN.shape[1])), drawn_DN])

    def estimate(self, values_D: Floats) -> Node:
        """Return value, low, high and how many draws had a value; None for what is undefined.

        Args:
            values_D: of the rows of `weights`.
        """
        found = interval(values_D[1:], level=self.level)
        if np.isnan(values_D[0]):
            return {"value": None, "low": None, "high": None, "draws": 0}
        value = float(values_D[0])
        if found is None:
            return {"value": value, "low": None, "high": None, "draws": 0}
        return {"value": value, "low": found.low, "high": found.high, "draws": found.draws}


def metrics_with_intervals(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    lesion_ids_N: npt.ArrayLike,
    classes: Sequence[str],
    *,
    bootstrap: Bootstrap,
    specificities: Sequence[float],
    few_lesions: int,
    weights_DN: Floats | None = None,
) -> Node:
    """Return "overall" {metric: estimate} and "per_class" {class: {metric: estimate}}.

    See `full_metrics` for the metrics; an estimate without a value says why in "reason". A class
    also has "support" (images), "lesions" and "note", see `subgroups`; "draws_lacking_a_class"
    counts the draws whose means over the classes are over fewer of them.

    Args:
        weights_DN: of `Bootstrap.weights` for these images, where they were drawn already.

    Raises:
        DataError: see `metrics.checked_predictions`.
    """
    unknown = [code for code in classes if code not in _MALIGNANT]
    malignant_K = None if unknown else [_MALIGNANT[code] for code in classes]
    melanoma = list(classes).index(MELANOMA) if MELANOMA in classes else None
    if weights_DN is None:
        weights_DN = bootstrap.weights(lesion_ids_N)
    found = full_metrics(
        labels_N,
        probs_NK,
        weights_DN,
        malignant_K=malignant_K,
        melanoma=melanoma,
        specificities=specificities,
    )
    overall = {name: bootstrap.estimate(values_D) for name, values_D in found.overall.items()}
    reasons = undefined_reasons(labels_N, len(classes), classes)
    if unknown:
        reason = f"whether {', '.join(unknown)} is malignant is not known"
        overall["malignant_auc"] = _undefined(reason)
    for name, estimate in overall.items():
        if estimate["value"] is None and "reason" not in estimate:
            estimate["reason"] = _why(name, reasons)
    per_class: dict[str, Node] = {}
    for column, code in enumerate(classes):
        lesions = len(set(np.asarray(lesion_ids_N)[labels_N == column]))
        per_class[code] = {
            "support": int((labels_N == column).sum()),
            "lesions": lesions,
            "note": _few(lesions, few_lesions),
        }
        for name, values_DK in found.per_class.items():
            estimate = bootstrap.estimate(values_DK[:, column])
            if estimate["value"] is None:
                never = f"no image is predicted to be {code}"
                estimate["reason"] = never if name == "precision" else reasons[code]
            per_class[code][name] = estimate
    return {
        "overall": overall,
        "per_class": per_class,
        "draws_lacking_a_class": _lacking(labels_N, weights_DN),
    }


def subgroups(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    frame: pd.DataFrame,
    *,
    bootstrap: Bootstrap,
    few_lesions: int,
    age_edges: Sequence[float],
) -> Node:
    """Return {column: {value: {"images", "metrics", "note", ...}}}, unknown values too.

    "classes" counts the classes that the group holds, "draws_lacking_a_class" the draws that lack
    one of these. A metric without a value says why in "reason".

    Columns are sex, age, localization, dataset and dx_type, those that the table has and that take
    more than one value. The note says that there are too few lesions to conclude from, else None.

    Args:
        labels_N, probs_NK: see `metrics.checked_predictions`.
        frame: the rows of a `LesionTable` for these images, in their order.
        bootstrap: of the lesions of each group.
        few_lesions: below so many a group is said to be too small.
        age_edges: in years, rising; a band holds its lower edge and not its upper.
    """
    columns = {column: frame[column] for column in _GROUPED_BY if column in frame}
    columns["age"] = age_bands(frame["age"], age_edges)
    lesions_N = frame["lesion_id"].to_numpy()
    found: Node = {}
    for column, values in columns.items():
        names = sorted(set(values), key=lambda name: (name == _UNKNOWN, name))
        if len(names) < 2:
            continue
        found[column] = {}
        for name in names:
            rows_N = (values == name).to_numpy()
            count = len(set(lesions_N[rows_N]))
            weights_DN = bootstrap.weights(lesions_N[rows_N])
            draws = metric_draws(labels_N[rows_N], probs_NK[rows_N], weights_DN)
            found[column][str(name)] = {
                "images": int(rows_N.sum()),
                "lesions": count,
                "classes": len(set(labels_N[rows_N])),
                "draws_lacking_a_class": _lacking(labels_N[rows_N], weights_DN),
                "note": _few(count, few_lesions),
                "metrics": {key: _of_group(bootstrap, values) for key, values in draws.items()},
            }
    return found


def age_bands(age_N: pd.Series[float], edges: Sequence[float]) -> pd.Series[str]:
    """Return the name of each age's band, such as "45 to under 60"; "unknown" of a missing one.

    Raises:
        ConfigError: the edges do not rise from above 0.
    """
    if any(low >= high for low, high in pairwise([0, *edges])):
        raise ConfigError(f"subgroups.age_edges={list(edges)}: give years that rise, from above 0.")
    names = [f"{low:g} to under {high:g}" for low, high in pairwise([0, *edges])]
    names.append(f"{edges[-1]:g} and over")
    position_N = np.searchsorted(np.asarray(edges), age_N.to_numpy(), side="right")
    banded = pd.Series([names[position] for position in position_N], index=age_N.index)
    return banded.mask(age_N.isna(), _UNKNOWN)


def _of_group(bootstrap: Bootstrap, values_D: Floats) -> Node:
    found = bootstrap.estimate(values_D)
    # Of a group's metrics only the AUC can lack a value, where there is nothing to rank against.
    return found if found["value"] is not None else found | {"reason": "all are of one class"}


def _few(lesions: int, few_lesions: int) -> str | None:
    if lesions >= few_lesions:
        return None
    return f"{lesions} lesions: too few to conclude from (fewer than {few_lesions})"


def _lacking(labels_N: np.ndarray, weights_DN: Floats) -> int:
    """Return how many draws lack a class that the images have."""
    present = np.unique(labels_N)
    weight_DP = weights_DN[1:] @ (labels_N[:, None] == present).astype(np.float64)
    return int((weight_DP == 0).any(axis=1).sum())


def _undefined(reason: str) -> Node:
    return {"value": None, "low": None, "high": None, "draws": 0, "reason": reason}


def _why(name: str, reasons: dict[str, str]) -> str:
    """Return why an overall metric has no value, from why classes have none."""
    if name.startswith("melanoma"):
        return reasons[MELANOMA]
    if name == "malignant_auc":
        return "all images are malignant, or all are benign: nothing to rank them against"
    return "; ".join(reasons.values()) or "all images are predicted to be of one class"
