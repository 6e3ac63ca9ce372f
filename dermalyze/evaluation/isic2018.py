"""The ISIC 2018 challenge, task 3: its submission file and its scores.

Codella et al. 2019, "Skin lesion analysis toward melanoma detection 2018". The score that ranked
its teams is the mean recall of the seven classes. The definitions, their answers to 0 / 0 included,
are those of the challenge's own package, isic-challenge-scoring 5.6, which tests hold this against.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from dermalyze.evaluation.metrics import checked_predictions, undefined_reasons

SUBMISSION = "submission_isic2018.csv"

CATEGORIES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
_SENSITIVE_FROM = 0.8

Node = dict[str, Any]


def are_its_classes(classes: Sequence[str]) -> bool:
    """Return whether these codes are the challenge's seven categories, in any order."""
    return sorted(code.upper() for code in classes) == sorted(CATEGORIES)


def submission(image_ids_N: Sequence[str], probs_NK: np.ndarray, classes: Sequence[str]) -> str:
    """Return the file that the challenge takes: image, then a probability for each category.

    Args:
        probs_NK: rows sum to 1.
        classes: of the columns; the seven categories, see `are_its_classes`.
    """
    columns = [code.upper() for code in classes]
    frame = pd.DataFrame(np.minimum(probs_NK, 1.0), columns=columns)[list(CATEGORIES)]
    frame.insert(0, "image", list(image_ids_N))
    return str(frame.to_csv(index=False))


def challenge_scores(labels_N: np.ndarray, probs_NK: np.ndarray, classes: Sequence[str]) -> Node:
    """Return the challenge's scores.

    - balanced_accuracy: the mean recall over the categories that have images, the score that
      ranked. An image of which two categories are most probable counts as wrong.
    - per_category: of each against the rest, called where its probability is above 0.5, accuracy,
      sensitivity, specificity, dice, ppv and npv, 1 where nothing is to be divided by; and free of
      a threshold auc, auc_sens_80 (the part of that area from a sensitivity of 0.8 on) and ap; null
      where the labels hold all or none of the category.
    - macro_average: of each of these over the categories that have it.
    - undefined: of each category with nulls, why.

    Args:
        labels_N, probs_NK: see `metrics.checked_predictions`.
        classes: of the columns; the seven categories, see `are_its_classes`.

    Raises:
        DataError: see `metrics.checked_predictions`.
    """
    labels_N, probs_NK = checked_predictions(labels_N, probs_NK)
    largest_N1 = probs_NK.max(axis=1, keepdims=True)
    right_N = (probs_NK.argmax(axis=1) == labels_N) & ((probs_NK == largest_N1).sum(axis=1) == 1)
    codes = [code.upper() for code in classes]
    columns = {category: codes.index(category) for category in CATEGORIES}
    per_category = {
        category: _of_category(labels_N == column, probs_NK[:, column])
        for category, column in columns.items()
    }
    return {
        "balanced_accuracy": float(np.mean([right_N[labels_N == k].mean() for k in set(labels_N)])),
        "per_category": per_category,
        "macro_average": {
            name: _mean([scores[name] for scores in per_category.values()])
            for name in per_category[CATEGORIES[0]]
        },
        "undefined": {
            code.upper(): reason
            for code, reason in undefined_reasons(labels_N, len(classes), classes).items()
        },
    }


def _of_category(true_N: np.ndarray, probability_N: np.ndarray) -> dict[str, float | None]:
    called_N = probability_N > 0.5
    tp, fp = int((called_N & true_N).sum()), int((called_N & ~true_N).sum())
    fn, tn = int((~called_N & true_N).sum()), int((~called_N & ~true_N).sum())
    found: dict[str, float | None] = {
        "accuracy": (tp + tn) / len(true_N),
        "sensitivity": _ratio(tp, tp + fn),
        "specificity": _ratio(tn, tn + fp),
        "dice": _ratio(2 * tp, 2 * tp + fp + fn),
        "ppv": _ratio(tp, tp + fp),
        "npv": _ratio(tn, tn + fn),
        "auc": None,
        "auc_sens_80": None,
        "ap": None,
    }
    if 0 < true_N.sum() < len(true_N):
        found |= _threshold_free(true_N, probability_N)
    return found


def _threshold_free(true_N: np.ndarray, probability_N: np.ndarray) -> dict[str, float | None]:
    from sklearn import metrics as sk

    false_G, sensitivity_G, _ = sk.roc_curve(true_N, probability_N, drop_intermediate=False)
    at = int(np.searchsorted(sensitivity_G, _SENSITIVE_FROM))
    around = slice(at - 1, at + 1)
    start = np.interp(_SENSITIVE_FROM, sensitivity_G[around], false_G[around])
    above = np.r_[start, false_G[at:]], np.r_[_SENSITIVE_FROM, sensitivity_G[at:]]
    return {
        "auc": float(sk.auc(false_G, sensitivity_G)),
        "auc_sens_80": float(sk.auc(*above)),
        "ap": float(sk.average_precision_score(true_N, probability_N)),
    }


def _ratio(over: int, under: int) -> float:
    return over / under if under else 1.0


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
