"""What is fitted on validation and used on other images: temperature, sets, abstention."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.abstention import abstention_threshold, area, risk_coverage
from dermalyze.evaluation.calibration import (
    bound_note,
    calibration_errors,
    fit_temperature,
    reliability_table,
    with_temperature,
)
from dermalyze.evaluation.conformal import METHODS, prediction_sets, scores, thresholds
from dermalyze.files import write_json
from dermalyze.reporting.resampled import Resampled

Node = dict[str, Any]

CALIBRATION = "calibration.json"
NO_THRESHOLD = "no confidence reached on validation the error that was asked for"
_KEYS = {"models", "prediction"}  # at least, of what something was fitted for


def fit_on_validation(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    *,
    sets: Node,
    abstention: Node,
    probs_MNK: Sequence[np.ndarray] | np.ndarray = (),
) -> Node:
    """Return as plain values for JSON what validation decides.

    "temperature"; "thresholds", of each method of `conformal` the largest score in a set for each
    class, null for infinity; "abstain_below", a confidence after temperature, null where none
    reaches the error that is asked for; "validation", the images and their calibration errors
    before and after; "members", of each of several models its own temperature and errors, which are
    told and not used: the temperature of all together is fitted on what they say together.

    Args:
        labels_N, probs_NK: of the validation images; see `metrics.checked_predictions`.
        sets: level, penalty and free_ranks; see `conformal`.
        abstention: error; see `abstention_threshold`.
        probs_MNK: what each of several models says alone.
    """
    temperature = fit_temperature(labels_N, probs_NK)
    cooled_NK = with_temperature(probs_NK, temperature)
    found: dict[str, list[float | None]] = {}
    for method in METHODS:
        score_NK = _scores(method, cooled_NK, sets)
        found_K = thresholds(method, score_NK, labels_N, level=sets["level"])
        found[method] = [None if math.isinf(value) else float(value) for value in found_K]
    right_N = cooled_NK.argmax(axis=1) == labels_N
    return {
        "temperature": temperature,
        "thresholds": found,
        "abstain_below": abstention_threshold(cooled_NK.max(axis=1), right_N, **abstention),
        "validation": {
            "images": len(labels_N),
            **_errors(labels_N, probs_NK, temperature),
        },
        "members": [_fit_alone(labels_N, alone_NK) for alone_NK in _several(probs_MNK)],
    }


def kept(folder: Path, about: Node) -> Node | None:
    """Return what `keep` wrote for the same models, predicting and asked in the same way, or None.

    Raises:
        DataError: the file cannot be read.
    """
    same = [fit["fitted"] for fit in all_kept(folder) if fit["about"] == as_json(about)]
    return same[0] if same else None


def keep(folder: Path, about: Node, fitted: Node) -> None:
    """Write what was fitted beside the models, with what it was fitted for.

    It takes the place of what was fitted for the same models predicting in the same way, and of
    what was fitted for models that the folder held before a new training. Fits of a model's
    exports stand beside its own.
    """
    new = as_json(about)
    others = [
        fit
        for fit in all_kept(folder)
        if _training_of(fit["about"]) == _training_of(new)
        and (fit["about"]["models"], fit["about"]["prediction"])
        != (new["models"], new["prediction"])
    ]
    write_json(folder / CALIBRATION, {"fits": [*others, {"about": new, "fitted": fitted}]})


def chosen_weights(folder: Path, models: list[Node], prediction: Node) -> np.ndarray:
    """Return the weights that an evaluation chose on validation, weights_M, for the same question.

    Args:
        folder: what `keep` writes into.
        models: of `identity.trained_as`.
        prediction: as `keep` is told it; its weights are not looked at.

    Raises:
        ConfigError: no evaluation has chosen any.
        DataError: the file cannot be read.
    """
    asked = as_json({"models": models, "prediction": {**prediction, "weights": None}})
    for about in (fit["about"] for fit in all_kept(folder)):
        unweighted = {**about["prediction"], "weights": None}
        if (about["models"], unweighted) == (asked["models"], asked["prediction"]):
            return np.array(about["prediction"]["weights"])
    options = ", ".join(f"{name}={value}" for name, value in prediction["chosen_by"].items())
    raise ConfigError(
        f"ensemble={prediction['ensemble']} ({options}): its weights are chosen on validation, and "
        "no evaluation has done so yet for these models predicting in this way. Do it first, on "
        "their runs' own data: python -m dermalyze.evaluate split=test with the same checkpoint, "
        "ensemble, tta and amp; or use another ensemble."
    )


def _training_of(about: Node) -> list[Node]:
    """Return what tells the models' training from another; their exports share it."""
    return [
        {key: value for key, value in model.items() if key != "export"} for model in about["models"]
    ]


def all_kept(folder: Path) -> list[Node]:
    """Return everything that `keep` wrote into a folder, each with "about" and "fitted".

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / CALIBRATION
    if not path.is_file():
        return []
    try:
        fits: list[Node] = json.loads(path.read_text(encoding="utf-8"))["fits"]
        if not all(
            {"about", "fitted"} == fit.keys() and fit["about"].keys() >= _KEYS for fit in fits
        ):
            raise ValueError("other keys than are written today")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"{path}: cannot be read ({error}). Remove it and evaluate again."
        ) from error
    return fits


def as_json(about: Node) -> Node:
    """Return plain values as JSON gives them back, to be compared with what was kept."""
    read: Node = json.loads(json.dumps(about))
    return read


def sets_of(fitted: Node, probs_NK: np.ndarray, sets: Node) -> dict[str, np.ndarray]:
    """Return for each method which classes are in each image's set, sets_NK."""
    cooled_NK = with_temperature(probs_NK, fitted["temperature"])
    found: dict[str, np.ndarray] = {}
    for method, values in fitted["thresholds"].items():
        limits_K = [math.inf if value is None else value for value in values]
        score_NK = _scores(method, cooled_NK, sets)
        found[method] = prediction_sets(score_NK, limits_K, cooled_NK)
    return found


def calibration_report(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    fitted: Node | None,
    *,
    resampled: Resampled,
    why_not: str | None,
    probs_MNK: Sequence[np.ndarray] | np.ndarray = (),
) -> Node:
    """Return calibration errors and reliability, as they are and after the temperature.

    "intervals" holds the estimates of nll, ece and brier, before and after; "members", of each of
    several models by what it says alone (probs_MNK), its own temperature and its errors before and
    after. "temperature_note" says where a temperature is a bound of its search.
    """
    report: Node = {
        "before": calibration_errors(labels_N, probs_NK),
        "reliability": reliability_table(labels_N, probs_NK),
        "temperature": None,
        "temperature_note": None,
        "after": None,
        "reliability_after": None,
        "intervals": {"before": resampled.calibration_errors(labels_N, probs_NK), "after": None},
        "reason": why_not,
        "validation": None,
        "members": [],
    }
    if fitted is None:
        return report
    cooled_NK = with_temperature(probs_NK, fitted["temperature"])
    after = resampled.calibration_errors(labels_N, cooled_NK)
    return report | {
        "temperature": fitted["temperature"],
        "temperature_note": bound_note(fitted["temperature"]),
        "after": calibration_errors(labels_N, cooled_NK),
        "reliability_after": reliability_table(labels_N, cooled_NK),
        "intervals": {"before": report["intervals"]["before"], "after": after},
        "validation": fitted["validation"],
        "members": [
            {
                "temperature": one["temperature"],
                "temperature_note": bound_note(one["temperature"]),
                **_errors(labels_N, alone_NK, one["temperature"]),
                "validation": {when: one[when] for when in ("before", "after")},
            }
            for one, alone_NK in zip(fitted["members"], _several(probs_MNK), strict=True)
        ],
    }


def sets_report(
    labels_N: np.ndarray,
    sets: Mapping[str, np.ndarray],
    classes: Sequence[str],
    level: float,
    *,
    resampled: Resampled,
) -> Node:
    """Return for each method how often the set holds the true class, and how large sets are.

    Coverage is overall and of each class, null of one without images; "sizes" counts the images
    with sets of 1, 2, ... K classes; "intervals" holds the estimates of coverage, mean_size and
    coverage_per_class, which say why one is null.
    """
    report: Node = {"level": level}
    for method, sets_NK in sets.items():
        held_N = sets_NK[np.arange(len(labels_N)), labels_N]
        size_N = sets_NK.sum(axis=1)
        per_class = {
            code: resampled.mean(
                held_N,
                among_N=labels_N == k,
                reason=f"none of the {len(labels_N)} images is labelled {code}",
            )
            for k, code in enumerate(classes)
        }
        estimates = {"coverage": resampled.mean(held_N), "mean_size": resampled.mean(size_N)}
        report[method] = {
            "coverage": estimates["coverage"]["value"],
            "coverage_per_class": {code: found["value"] for code, found in per_class.items()},
            "mean_size": estimates["mean_size"]["value"],
            "sizes": np.bincount(size_N, minlength=len(classes) + 1)[1:].tolist(),
            "intervals": {**estimates, "coverage_per_class": per_class},
        }
    return report


def abstention_report(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    fitted: Node | None,
    *,
    resampled: Resampled,
    why_not: str | None,
) -> Node:
    """Return the area under the risk-coverage curve, and what the threshold of validation does.

    "coverage" is the share of the images that are answered, "error" that of mistakes among those;
    "intervals" holds the estimates of both. They are null where "reason" says why.
    """
    temperature = 1.0 if fitted is None else fitted["temperature"]
    confidence_N = with_temperature(probs_NK, temperature).max(axis=1)
    right_N = probs_NK.argmax(axis=1) == labels_N
    report: Node = {
        "area": area(risk_coverage(confidence_N, right_N)[1]),
        "abstain_below": None,
        "coverage": None,
        "error": None,
        "intervals": None,
        "reason": why_not if fitted is None else NO_THRESHOLD,
    }
    if fitted is None or fitted["abstain_below"] is None:
        return report
    kept_N = confidence_N >= fitted["abstain_below"]
    estimates = {
        "coverage": resampled.mean(kept_N),
        "error": resampled.mean(~right_N, among_N=kept_N, reason="no image is so confident"),
    }
    return report | {
        "abstain_below": fitted["abstain_below"],
        **{name: estimate["value"] for name, estimate in estimates.items()},
        "intervals": estimates,
        "reason": estimates["error"].get("reason"),
    }


def _several(probs_MNK: Sequence[np.ndarray] | np.ndarray) -> Sequence[np.ndarray]:
    """Return what each model says; nothing for a single one, of which all else speaks."""
    return list(probs_MNK) if len(probs_MNK) > 1 else ()


def _fit_alone(labels_N: np.ndarray, probs_NK: np.ndarray) -> Node:
    temperature = fit_temperature(labels_N, probs_NK)
    return {"temperature": temperature, **_errors(labels_N, probs_NK, temperature)}


def _errors(labels_N: np.ndarray, probs_NK: np.ndarray, temperature: float) -> Node:
    """Return the calibration errors before and after a temperature."""
    return {
        "before": calibration_errors(labels_N, probs_NK),
        "after": calibration_errors(labels_N, with_temperature(probs_NK, temperature)),
    }


def _scores(method: str, cooled_NK: np.ndarray, sets: Node) -> np.ndarray:
    return scores(method, cooled_NK, penalty=sets["penalty"], free_ranks=sets["free_ranks"])
