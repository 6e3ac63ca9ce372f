"""What was fitted on validation, applied to images of which only the models' word is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dermalyze.evaluation.calibration import bound_note, with_temperature
from dermalyze.prediction.ways import Way
from dermalyze.reporting.fitted import NO_THRESHOLD, sets_of


class FittedAnswer(NamedTuple):
    """Of one image the fields of a `Prediction` that need a fit, with their notes."""

    prediction_set: tuple[str, ...] | None
    prediction_set_note: str
    calibrated_probabilities: dict[str, float] | None
    abstain: bool | None
    calibration_note: str


def fitted_answers(
    way: Way, probs_NK: np.ndarray, classes: Sequence[str], set_method: str
) -> list[FittedAnswer]:
    """Return what the way's fit says of each image; where there is none, why.

    Args:
        probs_NK: of the models together, as they give them.
        classes: the K codes.
        set_method: which of `conformal.METHODS` makes the sets.
    """
    if way.fit is None:
        why_not = str(way.why_no_fit)
        return [FittedAnswer(None, why_not, None, None, why_not)] * len(probs_NK)
    about, fitted = way.fit["about"], way.fit["fitted"]
    images, limit = fitted["validation"]["images"], fitted["abstain_below"]
    sets_NK = sets_of(fitted, probs_NK, about["sets"])[set_method]
    level = f"{100 * about['sets']['level']:g}%"
    set_note = (
        f"{set_method}: made to hold the true class in {level} of images, on average over images "
        f"like the {images} of validation that it was fitted on; of one image it promises nothing"
    )
    cooled_NK = with_temperature(probs_NK, fitted["temperature"])
    silence = (
        f"{NO_THRESHOLD}, so there is no word on abstaining"
        if limit is None
        else f"abstain: below a confidence of {limit:.4f}, from which on at most "
        f"{100 * about['abstention']['error']:g}% of those images were mistaken"
    )
    note = f"temperature {fitted['temperature']:.4f}, fitted on {images} images of validation"
    if at_bound := bound_note(fitted["temperature"]):
        note += f" ({at_bound})"
    return [
        FittedAnswer(
            prediction_set=tuple(np.array(classes)[set_K].tolist()),
            prediction_set_note=set_note,
            calibrated_probabilities=dict(zip(classes, cooled_K.tolist(), strict=True)),
            abstain=None if limit is None else bool(cooled_K.max() < limit),
            calibration_note=f"{note}; {silence}",
        )
        for set_K, cooled_K in zip(sets_NK, cooled_NK, strict=True)
    ]
