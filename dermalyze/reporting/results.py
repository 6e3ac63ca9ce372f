"""What evaluation_metrics.json says beside the plain metrics, as plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dermalyze.evaluation.metrics import confusion
from dermalyze.files import joined_codes, spreadsheet_cell
from dermalyze.reporting.fitted import (
    abstention_report,
    calibration_report,
    sets_of,
    sets_report,
)
from dermalyze.reporting.measures import Bootstrap, metrics_with_intervals, subgroups
from dermalyze.reporting.resampled import Resampled
from dermalyze.reporting.unlike_training import unlikeness_columns, unlikeness_report

Node = dict[str, Any]


class Results(NamedTuple):
    """The report, and columns of predictions.csv: {name: value of each image}."""

    report: Node
    columns: dict[str, list[Any]]


def results(
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    config: Node,
    fitted: Node | None,
    why_not_fitted: str | None,
    unlike_N: np.ndarray | None,
    probs_MNK: Sequence[np.ndarray] | np.ndarray = (),
) -> Results:
    """Measure predictions in every way that `conf/evaluate.yaml` asks for.

    Args:
        labels_N, probs_NK: see `metrics.checked_predictions`.
        frame: the rows of a `LesionTable` for these images, in their order.
        classes: the K codes.
        config: checked, plain: intervals, specificities, subgroups and sets are read.
        fitted: see `fitted.fit_on_validation`; None where there is none, for the reason
            `why_not_fitted`.
        unlike_N: see `unlike_training.unlikeness`.
        probs_MNK: what each of several models says alone.

    Raises:
        ConfigError: the edges of the age bands do not rise.
        DataError: see `metrics.checked_predictions`.
    """
    bootstrap = Bootstrap(**config["intervals"])
    lesion_ids = frame["lesion_id"].to_numpy()
    sets = {} if fitted is None else sets_of(fitted, probs_NK, config["sets"])
    resampled = Resampled(bootstrap, lesion_ids)
    metrics = metrics_with_intervals(
        labels_N,
        probs_NK,
        lesion_ids,
        classes,
        bootstrap=bootstrap,
        specificities=config["specificities"],
        few_lesions=config["subgroups"]["few_lesions"],
        weights_DN=resampled.weights_DN,
    )
    how: Node = {"resampled": resampled, "why_not": why_not_fitted}
    counts_KK = confusion(labels_N, probs_NK)
    report = {
        "confusion_matrix": {
            "classes": list(classes),
            "counts": counts_KK.tolist(),
            "share_of_true": [_shares(counts_K) for counts_K in counts_KK],
        },
        "intervals": {**config["intervals"], "lesions": len(set(lesion_ids)), **metrics},
        "subgroups": subgroups(
            labels_N, probs_NK, frame, bootstrap=bootstrap, **config["subgroups"]
        ),
        "calibration": calibration_report(labels_N, probs_NK, fitted, probs_MNK=probs_MNK, **how),
        "sets": sets_report(labels_N, sets, classes, config["sets"]["level"], resampled=resampled),
        "abstention": abstention_report(labels_N, probs_NK, fitted, **how),
        "unlike_training": unlikeness_report(unlike_N, fitted, **how),
    }
    named = {f"set_{name}": _named(sets_NK, classes) for name, sets_NK in sets.items()}
    return Results(report, named | unlikeness_columns(unlike_N, fitted))


def _shares(counts_K: np.ndarray) -> list[float | None]:
    """Return how a class's images were called, as shares; null of a class without images."""
    total = int(counts_K.sum())
    return [count / total if total else None for count in counts_K.tolist()]


def _named(sets_NK: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return each image's set as a cell with the codes of its classes."""
    codes_K = np.asarray(classes, dtype=object)
    return [spreadsheet_cell(joined_codes(codes_K[row_K], classes)) for row_K in sets_NK]
