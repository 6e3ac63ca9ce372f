"""What an evaluation left in its folder, read back and held against itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from dermalyze.errors import DataError
from dermalyze.evaluation.metrics import checked_predictions, summary_metrics
from dermalyze.files import text_of_cell

PREDICTIONS = "predictions.csv"
METRICS_FILE = "evaluation_metrics.json"
TRAINED_AS = ("epoch", "validation_metrics", "seed", "split_fingerprint")
"""What a report and a checkpoint say alike of a model, which another training would not."""
_PROBABILITY = "probability_"
_COLUMNS = ("image_id", "lesion_id", "dx")
_TOLERANCE = 1e-6  # probabilities are written as text, metrics by another version perhaps


@dataclass(frozen=True, eq=False)
class Predictions:
    """A model's probabilities for N images of known class, in the order of the image ids.

    labels_N holds positions in `classes`, in [0, K); each row of probs_NK sums to 1. `metrics` are
    those of `metrics.summary_metrics`.
    """

    classes: tuple[str, ...]
    image_ids_N: npt.NDArray[np.object_]
    lesion_ids_N: npt.NDArray[np.object_]
    labels_N: npt.NDArray[np.int64]
    probs_NK: npt.NDArray[np.float64]
    metrics: dict[str, float | None]

    def of(self, rows_N: npt.NDArray[np.bool_]) -> Predictions:
        """Return those of the images for which `rows_N` is true, with their own metrics."""
        labels_N, probs_NK = self.labels_N[rows_N], self.probs_NK[rows_N]
        return Predictions(
            self.classes,
            self.image_ids_N[rows_N],
            self.lesion_ids_N[rows_N],
            labels_N,
            probs_NK,
            summary_metrics(labels_N, probs_NK),
        )

    def right(self) -> npt.NDArray[np.bool_]:
        """Return for each image whether its most probable class is the true one."""
        found_N: npt.NDArray[np.bool_] = self.probs_NK.argmax(axis=1) == self.labels_N
        return found_N


def read_predictions(folder: Path) -> Predictions:
    """Read predictions.csv and evaluation_metrics.json of an evaluation's folder.

    Raises:
        DataError: a file cannot be read or lacks something; an image is listed twice; a dx is no
            class; probabilities that are none; or the metrics are not those of the predictions.
    """
    try:
        report = json.loads((folder / METRICS_FILE).read_text(encoding="utf-8"))
        classes = tuple(report["confusion_matrix"]["classes"])
        stored = dict(report["metrics"])
        frame = pd.read_csv(folder / PREDICTIONS, dtype=str, keep_default_na=False)
        columns = [f"{_PROBABILITY}{code}" for code in classes]
        frame = frame[[*_COLUMNS, *columns]]
        for column in _COLUMNS:
            frame[column] = frame[column].map(text_of_cell)
        frame = frame.sort_values("image_id", ignore_index=True)
        probs_NK = frame[columns].to_numpy(dtype=np.float64)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{folder}: {PREDICTIONS} and {METRICS_FILE} are not those of an evaluation "
            f"({type(error).__name__}: {error}). Evaluate the run again."
        ) from error
    twice = frame["image_id"][frame["image_id"].duplicated()]
    labels_N = pd.Index(classes).get_indexer(pd.Index(frame["dx"]))
    foreign = frame["dx"][labels_N < 0]
    for wrong, why in ((twice, "is listed twice"), (foreign, "is none of the classes")):
        if len(wrong):
            raise DataError(f"{folder / PREDICTIONS}: {wrong.iloc[0]} {why}. Evaluate again.")
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    metrics = summary_metrics(labels_N, probs_NK)
    if not _same(metrics, stored):
        raise DataError(
            f"{folder}: {METRICS_FILE} has other metrics than {PREDICTIONS} gives, so the two are "
            "not of one evaluation. Evaluate the run again."
        )
    image_ids_N, lesion_ids_N = (
        frame[column].to_numpy(dtype=object) for column in ("image_id", "lesion_id")
    )
    return Predictions(classes, image_ids_N, lesion_ids_N, labels_N, probs_NK, metrics)


def _same(metrics: dict[str, float | None], stored: dict[str, float | None]) -> bool:
    for name, value in metrics.items():
        other = stored.get(name)
        if (value is None) != (other is None):
            return False
        if value is not None and other is not None and abs(value - other) > _TOLERANCE:
            return False
    return True
