"""Whether a run learned too little, enough, or by heart: a verdict with its rule beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dermalyze.errors import DataError

FIT = "fit.json"
LAST_EPOCHS = 5
_LOW_ACCURACY, _MILD, _SEVERE = 0.6, 0.05, 0.15

RULE = (
    f"Means over the last {LAST_EPOCHS} epochs. The gap is training accuracy minus validation "
    f"accuracy. severe overfit: a gap of {_SEVERE:g} or more; mild overfit: of {_MILD:g} or more; "
    f"else underfit: training accuracy below {_LOW_ACCURACY:g}; else balanced. Training accuracy "
    "is measured on augmented images and while weights change, so gaps come out small or negative, "
    "the more so where images are mixed, which count as the class of their larger part. Gaps of "
    "balanced accuracy and of loss (validation minus training) are given beside it and decide "
    "nothing: the one is noisy where classes are rare, the other depends on the loss trained with."
)


def fit_analysis(history: Sequence[Mapping[str, float | int | None]]) -> dict[str, Any]:
    """Return "verdict", the numbers behind it, and the rule.

    Args:
        history: one record an epoch with train/ and val/ loss, accuracy and balanced_accuracy;
            what is None or absent is left out of the means.

    Returns:
        "verdict": severe overfit, mild overfit, underfit, balanced, or None with a "reason";
        "epochs"; of accuracy, balanced_accuracy and loss the means "train_...", "val_..." and
        "..._gap" (that of the loss is validation minus training), or None.

    Raises:
        DataError: no epochs.
    """
    if not history:
        raise DataError("no training history to judge: not one epoch has been recorded.")
    last = history[-LAST_EPOCHS:]
    means = {
        f"{part}_{name}": _mean([record.get(f"{part}/{name}") for record in last])
        for name in ("accuracy", "balanced_accuracy", "loss")
        for part in ("train", "val")
    }
    gap = _difference(means["train_accuracy"], means["val_accuracy"])
    train = means["train_accuracy"]
    verdict = None if gap is None or train is None else _verdict(gap, train)
    return {
        "verdict": verdict,
        "reason": None if verdict else "no epoch recorded both accuracies",
        "epochs": len(last),
        **means,
        "accuracy_gap": gap,
        "balanced_accuracy_gap": _difference(
            means["train_balanced_accuracy"], means["val_balanced_accuracy"]
        ),
        "loss_gap": _difference(means["val_loss"], means["train_loss"]),
        "rule": RULE,
    }


def _verdict(gap: float, train_accuracy: float) -> str:
    if gap >= _SEVERE:
        return "severe overfit"
    if gap >= _MILD:
        return "mild overfit"
    return "underfit" if train_accuracy < _LOW_ACCURACY else "balanced"


def _mean(values: Sequence[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second
