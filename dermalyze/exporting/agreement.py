"""Whether an exported model says what the model said: measured, and refused where it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermalyze.evaluation.metrics import summary_metrics


@dataclass(frozen=True)
class Limits:
    """What an export may differ by from its model.

    Attributes:
        probability: the largest difference of a probability; for exports in float32.
        agreement: the smallest share of images of which both name the same class; for int8.
        balanced_accuracy: by how much it may be lower; for int8.
    """

    probability: float
    agreement: float
    balanced_accuracy: float


@dataclass(frozen=True)
class Agreement:
    """How two models agree on N images.

    Attributes:
        images: N.
        largest_difference: of two probabilities.
        agreement: share of images of which both name the same class.
        balanced_accuracy: of the model and of its export.
    """

    images: int
    largest_difference: float
    agreement: float
    balanced_accuracy: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for a file's header."""
        return {
            "images": self.images,
            "largest_difference": self.largest_difference,
            "agreement": self.agreement,
            "balanced_accuracy": list(self.balanced_accuracy),
        }


def agreement(labels_N: np.ndarray, model_NK: np.ndarray, export_NK: np.ndarray) -> Agreement:
    """Return how probabilities of a model and of its export agree on labelled images."""
    model, export = (
        float(summary_metrics(labels_N, probs_NK)["balanced_accuracy"] or 0.0)
        for probs_NK in (model_NK, export_NK)
    )
    return Agreement(
        images=len(labels_N),
        largest_difference=float(np.abs(model_NK - export_NK).max()),
        agreement=float((model_NK.argmax(axis=1) == export_NK.argmax(axis=1)).mean()),
        balanced_accuracy=(model, export),
    )


def why_not_equal(found: Agreement, limits: Limits) -> str | None:
    """Return why an export in float32 is not its model, None where it is."""
    if found.largest_difference <= limits.probability:
        return None
    return (
        f"the largest difference of a probability on {found.images} validation images is "
        f"{found.largest_difference:.2g}, above limits.probability={limits.probability:g}"
    )


def why_not_alike(found: Agreement, limits: Limits) -> str | None:
    """Return why a quantised model is too far from its model, None where it is not."""
    model, export = found.balanced_accuracy
    reasons = []
    if found.agreement < limits.agreement:
        reasons.append(
            f"both name the same class for {round(found.agreement * found.images)} of "
            f"{found.images} validation images, below limits.agreement={limits.agreement:g}"
        )
    if model - export > limits.balanced_accuracy:
        reasons.append(
            f"balanced accuracy falls from {model:.4f} to {export:.4f}, by more than "
            f"limits.balanced_accuracy={limits.balanced_accuracy:g}"
        )
    return " and ".join(reasons) or None
