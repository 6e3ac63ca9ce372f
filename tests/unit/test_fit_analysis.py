"""The verdict on a run's fit, at and around the bounds of its rule."""

from __future__ import annotations

import pytest

from dermalyze.errors import DataError
from dermalyze.evaluation.fit_analysis import RULE, fit_analysis


def history(train: float | None, val: float, epochs: int = 7) -> list[dict[str, float | None]]:
    last = {"train/accuracy": train, "val/accuracy": val, "train/loss": 0.5, "val/loss": 0.75}
    last |= {"train/balanced_accuracy": 0.875, "val/balanced_accuracy": 0.5}
    # The first epochs must not count.
    first = {"train/accuracy": 0.0, "val/accuracy": 1.0, "train/loss": 9.0, "val/loss": 1.0}
    return [first] * (epochs - 5) + [last] * 5


@pytest.mark.parametrize(
    ("train", "val", "verdict"),
    [
        (0.95, 0.75, "severe overfit"),
        (0.875, 0.71, "severe overfit"),
        (0.875, 0.74, "mild overfit"),
        (0.875, 0.82, "mild overfit"),
        (0.875, 0.83, "balanced"),
        (0.6, 0.7, "balanced"),
        (0.59, 0.7, "underfit"),
        (0.59, 0.5, "mild overfit"),
    ],
)
def test_verdicts(train: float, val: float, verdict: str) -> None:
    found = fit_analysis(history(train, val))
    assert found["verdict"] == verdict
    assert found["accuracy_gap"] == pytest.approx(train - val)
    assert found["loss_gap"] == pytest.approx(0.25)
    assert found["balanced_accuracy_gap"] == pytest.approx(0.375)
    assert (found["epochs"], found["rule"]) == (5, RULE)


def test_without_training_accuracy_there_is_no_verdict() -> None:
    found = fit_analysis(history(None, 0.7))
    assert found["verdict"] is None
    assert found["reason"] == "no epoch recorded both accuracies"
    assert found["val_accuracy"] == pytest.approx(0.7)
    # Nor a gap that a history does not hold.
    old = [{"train/accuracy": 0.9, "val/accuracy": 0.9, "val/balanced_accuracy": 0.5}]
    assert fit_analysis(old)["balanced_accuracy_gap"] is None


def test_short_histories_are_judged_whole_and_empty_ones_refused() -> None:
    assert fit_analysis(history(0.9, 0.9)[-2:])["epochs"] == 2
    with pytest.raises(DataError, match="not one epoch"):
        fit_analysis([])
