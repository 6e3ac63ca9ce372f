"""How good predictions are: one set of metrics for training, evaluation and comparison.

Shapes: labels_N holds the true class of each of N images, integers in [0, K); probs_NK holds
probabilities, each row summing to 1. The predicted class is the most probable one, the first of
equals. A quantity that the labels leave undefined is None (NaN in tables), never a made-up 0.

scikit-learn is imported where it counts: prediction needs this module and takes no second longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from dermalyze.errors import ConfigError, DataError, nearest

METRICS: dict[str, Literal["min", "max"]] = {
    "loss": "min",
    "accuracy": "max",
    "balanced_accuracy": "max",
    "macro_f1": "max",
    "macro_auc": "max",
    "ece": "min",
}
"""Every metric of `summary_metrics`, and whether smaller or larger is better."""

ECE_BINS = 15  # as in the tables of Guo et al. 2017; other counts give incomparable numbers
_SUM_TOLERANCE = 1e-4  # what float32 sums may miss 1 by; float16 softmax misses by more
_ROWS_SHOWN = 5


def direction(metric: str) -> Literal["min", "max"]:
    """Return whether smaller ("min") or larger ("max") values of a metric are better.

    Args:
        metric: a name in `METRICS`, alone or after "train/" or "val/".

    Raises:
        ConfigError: the metric is unknown; the message names the nearest one.
    """
    prefix = next((start for start in ("train/", "val/") if metric.startswith(start)), "")
    name = metric.removeprefix(prefix)
    if name not in METRICS:
        valid = [prefix + known for known in METRICS]
        raise ConfigError(f"metric {metric!r}: there is no such metric.{nearest(metric, valid)}")
    return METRICS[name]


def summary_metrics(labels_N: np.ndarray, probs_NK: np.ndarray) -> dict[str, float | None]:
    """Return the metrics in `METRICS`, over all images.

    - loss: cross-entropy, the mean negative log-likelihood in nats, >= 0. Rows are scaled to sum
      to exactly 1 first; a true class with probability 0 costs 36 nats (float64's epsilon), not
      infinity.
    - accuracy: share of images whose predicted class is the true one, in [0, 1].
    - balanced_accuracy: mean recall over the classes present in the labels, in [0, 1].
    - macro_f1: mean F1 over the classes present in the labels or the predictions, in [0, 1].
    - macro_auc: mean area under the one-vs-rest ROC curve over the classes that have one, in
      [0, 1] (Fawcett 2006), each class weighing the same; None when only one class is present.
    - ece: expected calibration error over 15 bins, in [0, 1].

    Raises:
        DataError: see `checked_predictions`.
    """
    from sklearn import metrics as sk

    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    predicted_N = probs_NK.argmax(axis=1)
    auc_K = _auc_per_class(labels_N, probs_NK)
    present = np.unique(labels_N)
    return {
        "loss": float(-log_likelihoods(labels_N, probs_NK).mean()),
        "accuracy": float(sk.accuracy_score(labels_N, predicted_N)),
        # balanced_accuracy_score is the same number, but warns of predicted classes that are
        # absent from the labels.
        "balanced_accuracy": float(
            sk.recall_score(labels_N, predicted_N, labels=present, average="macro")
        ),
        "macro_f1": float(sk.f1_score(labels_N, predicted_N, average="macro")),
        "macro_auc": None if np.isnan(auc_K).all() else float(np.nanmean(auc_K)),
        "ece": _ece(labels_N, probs_NK, ECE_BINS),
    }


def per_class_metrics(
    labels_N: np.ndarray, probs_NK: np.ndarray, classes: Sequence[str]
) -> pd.DataFrame:
    """Return one row a class, indexed by its code, in the order of `classes`.

    Columns: support (images of the class), then precision, recall (sensitivity), specificity, f1
    and auc (one-vs-rest ROC), each in [0, 1], or NaN where its denominator is 0: precision of a
    class never predicted, recall of a class absent from the labels, f1 of one that is both,
    specificity of the only class present, auc of either (see `undefined_reasons`).

    Raises:
        DataError: see `checked_predictions`; or `classes` does not name the K columns.
    """
    from sklearn import metrics as sk

    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    columns = np.arange(probs_NK.shape[1])
    _check_classes(classes, len(columns))
    predicted_N = probs_NK.argmax(axis=1)
    precision_K, recall_K, f1_K, support_K = sk.precision_recall_fscore_support(
        labels_N, predicted_N, labels=columns, zero_division=np.nan
    )
    # Specificity is the recall of "not this class".
    specificity_K = [
        sk.recall_score(labels_N != column, predicted_N != column, zero_division=np.nan)
        for column in columns
    ]
    return pd.DataFrame(
        {
            "support": support_K.astype(np.int64),
            "precision": precision_K,
            "recall": recall_K,
            "specificity": specificity_K,
            "f1": f1_K,
            "auc": _auc_per_class(labels_N, probs_NK),
        },
        index=pd.Index(classes, name="class"),
    )


def undefined_reasons(
    labels_N: np.ndarray, num_classes: int, classes: Sequence[str]
) -> dict[str, str]:
    """Return, for each class without an AUC, why it has none: {code: reason}.

    Raises:
        DataError: labels are empty or out of range; or `classes` does not name `num_classes`.
    """
    labels_N = _checked_labels(labels_N, num_classes)
    _check_classes(classes, num_classes)
    total = len(labels_N)
    reasons = {}
    for code, count in zip(classes, np.bincount(labels_N, minlength=num_classes), strict=True):
        if count == 0:
            reasons[code] = f"none of the {total} images is labelled {code}"
        elif count == total:
            reasons[code] = f"all {total} images are labelled {code}: nothing to rank it against"
    return reasons


def expected_calibration_error(labels_N: np.ndarray, probs_NK: np.ndarray, *, bins: int) -> float:
    """Return the mean gap between confidence and accuracy, in [0, 1] (Guo et al. 2017, eq. 3).

    Confidence is the largest probability of a row. Bins have equal width, (lower, upper]; each
    weighs as many images as it holds.

    Raises:
        ConfigError: fewer than 1 bin.
        DataError: see `checked_predictions`.
    """
    if bins < 1:
        raise ConfigError(f"bins={bins}: calibration error needs at least 1 bin; 15 is usual.")
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    return _ece(labels_N, probs_NK, bins)


def log_likelihoods(labels_N: np.ndarray, probs_NK: np.ndarray) -> np.ndarray:
    """Return the log of each image's probability of its true class, in nats, <= 0.

    Rows are scaled to sum to exactly 1 first, and probabilities below float64's epsilon count as
    that, as in scikit-learn's log_loss.

    Args:
        labels_N: as `checked_predictions` returns them.
        probs_NK: likewise.
    """
    true_N = np.take_along_axis(probs_NK, labels_N[:, None], axis=1)[:, 0] / probs_NK.sum(axis=1)
    likelihoods_N: np.ndarray = np.log(np.clip(true_N, np.finfo(np.float64).eps, 1))
    return likelihoods_N


def calibration_gaps(
    labels_N: np.ndarray, probs_NK: np.ndarray, bins: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each image's confidence, in [0, bins), and (1 if right else 0) minus it.

    Args:
        labels_N: as `checked_predictions` returns them.
        probs_NK: likewise.
        bins: of equal width, (lower, upper], >= 1.
    """
    confidence_N = probs_NK.max(axis=1)
    correct_N = probs_NK.argmax(axis=1) == labels_N
    # Looking for a confidence among the upper edges puts an edge itself into the bin below it,
    # and one that rounding carried above 1 into the last.
    upper_edges = np.linspace(0, 1, bins + 1)[1:-1]
    return np.searchsorted(upper_edges, confidence_N, side="left"), correct_N - confidence_N


def confusion(labels_N: np.ndarray, probs_NK: np.ndarray) -> np.ndarray:
    """Return counts_KK (int64): rows are true classes, columns predicted ones.

    Raises:
        DataError: see `checked_predictions`.
    """
    from sklearn import metrics as sk

    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    columns = np.arange(probs_NK.shape[1])
    counts_KK = sk.confusion_matrix(labels_N, probs_NK.argmax(axis=1), labels=columns)
    return np.asarray(counts_KK, dtype=np.int64)


def checked_predictions(
    labels_N: np.ndarray, probs_NK: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels as int64 and probabilities as float64, values unchanged.

    Raises:
        DataError: no images; shapes that do not fit; labels that are no integers in [0, K); or
            probabilities that are non-finite, outside [0, 1], or whose row misses the sum 1 by
            more than 1e-4 (rounding within that bound may also carry one above 1). Names the
            first rows, counted from 0.
    """
    probs_NK = np.asarray(probs_NK, dtype=np.float64)
    if probs_NK.ndim != 2 or probs_NK.shape[1] < 2:
        raise DataError(f"probabilities: shape {probs_NK.shape}, needed (N, K) with K >= 2 classes")
    labels_N = _checked_labels(labels_N, probs_NK.shape[1])
    if len(labels_N) != len(probs_NK):
        raise DataError(
            f"{len(labels_N)} labels for {len(probs_NK)} rows of probabilities: "
            "give both for the same images, in the same order."
        )
    finite_N = np.isfinite(probs_NK).all(axis=1)
    inside_N = np.all((probs_NK >= 0) & (probs_NK <= 1 + _SUM_TOLERANCE), axis=1)
    sum_N = probs_NK.sum(axis=1, where=inside_N[:, None])
    problems = [
        _rows_described(bad_N, probs_NK, why)
        for bad_N, why in (
            (~finite_N, "not finite (NaN or infinity): the model has diverged or overflowed"),
            (finite_N & ~inside_N, "outside [0, 1]: logits are no probabilities; apply softmax"),
            (
                inside_N & (np.abs(sum_N - 1) > _SUM_TOLERANCE),
                "not summing to 1 within 1e-4: apply softmax in float32",
            ),
        )
        if bad_N.any()
    ]
    if problems:
        raise DataError("probabilities cannot be ranked:\n  - " + "\n  - ".join(problems))
    return labels_N, probs_NK


def _checked_labels(labels_N: np.ndarray, num_classes: int) -> np.ndarray:
    labels_N = np.asarray(labels_N)
    if labels_N.ndim != 1:
        raise DataError(f"labels: shape {labels_N.shape}, needed (N,): one class index an image")
    if len(labels_N) == 0:
        raise DataError("no images to measure: the labels are empty. Choose a split that has some.")
    if labels_N.dtype.kind not in "iu":
        raise DataError(f"labels: dtype {labels_N.dtype}, needed integers in [0, {num_classes})")
    bad_N = (labels_N < 0) | (labels_N >= num_classes)
    if bad_N.any():
        why = f"outside [0, {num_classes}): not an index into the {num_classes} classes"
        raise DataError(f"labels: {_rows_described(bad_N, labels_N, why)}")
    return labels_N.astype(np.int64)


def _check_classes(classes: Sequence[str], num_classes: int) -> None:
    if len(classes) != num_classes or len(set(classes)) != len(classes):
        raise DataError(
            f"classes {list(classes)}: needed {num_classes} different names, one a column"
        )


def _rows_described(bad_N: np.ndarray, values: np.ndarray, why: str) -> str:
    rows = np.flatnonzero(bad_N)
    shown = ", ".join(map(str, rows[:_ROWS_SHOWN])) + (", ..." if len(rows) > _ROWS_SHOWN else "")
    example = np.array2string(values[rows[0]], precision=4, threshold=10)
    return f"rows {shown} ({len(rows)} of {len(bad_N)}): {why}. Row {rows[0]}: {example}"


def _auc_per_class(labels_N: np.ndarray, probs_NK: np.ndarray) -> np.ndarray:
    """One-vs-rest AUC of each class; NaN where the labels hold all or none of it."""
    from sklearn import metrics as sk

    auc_K = np.full(probs_NK.shape[1], np.nan)
    for column in np.unique(labels_N):
        of_class_N = labels_N == column
        if not of_class_N.all():
            auc_K[column] = sk.roc_auc_score(of_class_N, probs_NK[:, column])
    return auc_K


def _ece(labels_N: np.ndarray, probs_NK: np.ndarray, bins: int) -> float:
    bin_N, gap_N = calibration_gaps(labels_N, probs_NK, bins)
    return float(np.abs(np.bincount(bin_N, weights=gap_N)).sum() / len(labels_N))
