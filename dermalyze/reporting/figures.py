"""The figures of an evaluation, written into its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.data.decode import PreprocessSpec, decode
from dermalyze.evaluation.calibration import with_temperature
from dermalyze.evaluation.plots import save_figure
from dermalyze.evaluation.result_plots import (
    calibration_figure,
    errors_figure,
    per_class_figure,
    pr_curves_figure,
    risk_coverage_figure,
    roc_curves_figure,
)

_PICTURED = 12  # mistakes
_PICTURE_SIZE = 160  # pixels a side


def write_figures(
    folder: Path,
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    frame: pd.DataFrame,
    classes: Sequence[str],
    report: dict[str, Any],
) -> None:
    """Write roc_curves, pr_curves, per_class_metrics, calibration_curve, risk_coverage and errors.

    Args:
        folder: exists.
        labels_N, probs_NK: see `metrics.checked_predictions`.
        frame: the rows of a `LesionTable` for these images, in their order.
        classes: the K codes.
        report: of `results.results`.

    Raises:
        DataError: a picture cannot be read.
    """
    calibration, abstention = report["calibration"], report["abstention"]
    right_N = probs_NK.argmax(axis=1) == labels_N
    cooled_NK = with_temperature(probs_NK, calibration["temperature"] or 1.0)
    confidence_N = cooled_NK.max(axis=1)
    worst = most_confident_mistakes(confidence_N, right_N)
    spec = PreprocessSpec(image_size=_PICTURE_SIZE)
    captions = [
        f"{frame['image_id'].iloc[row]}\n{classes[labels_N[row]]}, called "
        f"{classes[probs_NK[row].argmax()]} ({confidence_N[row]:.0%})"
        for row in worst
    ]
    figures = {
        "roc_curves": roc_curves_figure(labels_N, probs_NK, classes),
        "pr_curves": pr_curves_figure(labels_N, probs_NK, classes),
        "per_class_metrics": per_class_figure(report["intervals"]["per_class"]),
        "calibration_curve": calibration_figure(
            calibration["reliability"], calibration["reliability_after"]
        ),
        "risk_coverage": risk_coverage_figure(confidence_N, right_N, abstention["coverage"]),
        "errors": errors_figure([decode(frame["path"].iloc[row], spec) for row in worst], captions),
    }
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")


def most_confident_mistakes(confidence_N: np.ndarray, right_N: np.ndarray) -> list[int]:
    """Return the rows of at most 12 wrong images, the most confident first."""
    order = np.argsort(-confidence_N, kind="stable")
    return [int(row) for row in order if not right_N[row]][:_PICTURED]
