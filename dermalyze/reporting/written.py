"""What an evaluation leaves in its folder: numbers, predictions, pictures and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.evaluation.isic2018 import (
    SUBMISSION,
    are_its_classes,
    challenge_scores,
    submission,
)
from dermalyze.evaluation.metrics import (
    confusion,
    per_class_metrics,
    summary_metrics,
    undefined_reasons,
)
from dermalyze.evaluation.plots import confusion_matrix_figure, save_figure
from dermalyze.evaluation.predictions import METRICS_FILE, PREDICTIONS
from dermalyze.files import spreadsheet_cell, write_json, write_whole
from dermalyze.reporting.figures import write_figures
from dermalyze.reporting.page import write_page
from dermalyze.reporting.results import Results
from dermalyze.taxonomy import DISCLAIMER

Node = dict[str, Any]


def write_evaluation(
    folder: Path,
    labels_N: np.ndarray,
    probs_NK: np.ndarray,
    frame: pd.DataFrame,
    classes: Sequence[str],
    *,
    unsure: Mapping[str, np.ndarray],
    found: Results,
    about: Node,
) -> dict[str, float | None]:
    """Write everything and return the metrics of `metrics.summary_metrics`.

    evaluation_metrics.json, predictions.csv, the figures and report.html; and of the ISIC
    challenge's classes its submission_isic2018.csv. In the tables, ids and classes that a
    spreadsheet would take for formulas begin with a '.

    Args:
        labels_N, probs_NK: see `metrics.checked_predictions`.
        frame: the rows of a `LesionTable` for these images, in their order.
        classes: the K codes.
        unsure: columns of predictions.csv, {name: value of each image}.
        found: of `results.results`.
        about: what else the report says: data, split, logit_adjustment and how it came about.

    Raises:
        DataError: a picture of a mistake cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    of_isic = are_its_classes(classes)
    metrics = summary_metrics(labels_N, probs_NK)
    per_class = per_class_metrics(labels_N, probs_NK, classes).to_dict(orient="index")
    report = {
        "metrics": metrics,
        "undefined": undefined_reasons(labels_N, len(classes), classes),
        "per_class": {
            name: {k: None if pd.isna(v) else float(v) for k, v in values.items()}
            for name, values in per_class.items()
        },
        "isic2018": challenge_scores(labels_N, probs_NK, classes) if of_isic else None,
        **found.report,
        "images": len(labels_N),
        **about,
        "disclaimer": DISCLAIMER,
    }
    write_json(folder / METRICS_FILE, report)
    predictions = pd.DataFrame(
        {
            **{
                column: frame[column].map(spreadsheet_cell).to_numpy()
                for column in ("image_id", "lesion_id", "dx")
            },
            "predicted": [spreadsheet_cell(classes[k]) for k in probs_NK.argmax(axis=1)],
            **{f"probability_{name}": probs_NK[:, k] for k, name in enumerate(classes)},
            **unsure,
            **found.columns,
            "disclaimer": DISCLAIMER,
        }
    )
    write_whole(folder / PREDICTIONS, predictions.to_csv(index=False))
    if of_isic:
        ids = frame["image_id"].map(spreadsheet_cell).tolist()
        write_whole(folder / SUBMISSION, submission(ids, probs_NK, classes))
    title = f"{about['data']}, split {about['split']}, {len(labels_N)} images"
    if about["logit_adjustment"] is not None:
        title += f", logit adjustment {about['logit_adjustment']['tau']:g}"
    counts_KK = confusion(labels_N, probs_NK)
    save_figure(confusion_matrix_figure(counts_KK, classes, title), folder / "confusion_matrix.png")
    write_figures(folder, labels_N, probs_NK, frame, classes, found.report)
    write_page(folder, report)
    return metrics
