"""What validation decides for models that predict in one way: found beside them, or fitted now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dermalyze.evaluation.calibration import bound_note
from dermalyze.inference.answer import Answer
from dermalyze.inference.identity import run_of, trained_as
from dermalyze.inference.loading import ModelFacts
from dermalyze.reporting.fitted import fit_on_validation, keep, kept
from dermalyze.reporting.unlike_training import fit_unlikeness

logger = logging.getLogger(__name__)

Node = dict[str, Any]


class Validated(NamedTuple):
    """The validation images: their classes and lesions, and what the models say of them."""

    labels_V: np.ndarray
    lesion_ids_V: np.ndarray
    answer: Answer


def validation_fit(
    config: Node,
    facts: Sequence[ModelFacts],
    *,
    home: Path,
    prediction: Node,
    on_validation: Callable[[], Validated | None],
) -> tuple[Node | None, str | None]:
    """Return what `fit_on_validation` and `fit_unlikeness` find; or None, and why there is none.

    A temperature that is a bound of its search is warned of, each model's own as well.

    Args:
        config: checked, plain, of `python -m dermalyze.evaluate`.
        facts: of the models.
        home: folder that keeps what is fitted.
        prediction: how the models predict: views, ensemble and corrections, as plain values. What
            was fitted for another way is fitted anew.
        on_validation: called when it is needed; None where the models have no validation part in
            common.
    """
    for member in facts:
        if run_of(member) is None:
            return None, f"{member.path} lies in no run's folder: there is no validation part"
    about = {
        "models": trained_as(facts),
        "prediction": prediction,
        "sets": config["sets"],
        "abstention": config["abstention"],
        "unlike_training": config["unlike_training"],
    }
    fitted = kept(home, about)
    if fitted is None or "members" not in fitted:  # or by an older version
        if config["data"].get("source") is not None:
            return None, "not fitted yet: evaluate split=test of the model's own run first"
        validated = on_validation()
        if validated is None:
            return None, "the models' validation parts differ, so none is unseen by all of them"
        labels_V, lesion_ids_V, answer = validated
        fitted = fit_on_validation(
            labels_V,
            answer.probs_NK,
            sets=config["sets"],
            abstention=config["abstention"],
            probs_MNK=answer.probs_MNK,
        )
        fitted["unlike_training"] = fit_unlikeness(
            answer.features_MNF, lesion_ids_V, answer.weights_M, **config["unlike_training"]
        )
        home.mkdir(parents=True, exist_ok=True)
        keep(home, about, fitted)
    temperatures = {"the": fitted["temperature"]}
    temperatures |= {
        f"model {number} by itself: its": alone["temperature"]
        for number, alone in enumerate(fitted["members"], start=1)
    }
    for whose, temperature in temperatures.items():
        if note := bound_note(temperature):
            logger.warning("%s %s", whose, note)
    return fitted, None
