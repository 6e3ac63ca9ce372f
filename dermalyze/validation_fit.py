"""What validation decides for models that predict in one way: found beside them, or fitted now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dermalyze.inference.identity import run_of, trained_as
from dermalyze.inference.loading import ModelFacts
from dermalyze.reporting.fitted import fit_on_validation, keep, kept

Node = dict[str, Any]


def validation_fit(
    config: Node,
    facts: Sequence[ModelFacts],
    *,
    home: Path,
    prediction: Node,
    on_validation: Callable[[], tuple[np.ndarray, np.ndarray]],
) -> tuple[Node | None, str | None]:
    """Return temperature, sets and threshold of abstention; or None, and why there are none.

    Args:
        config: checked, plain, of `python -m dermalyze.evaluate`.
        facts: of the models.
        home: folder that keeps what is fitted.
        prediction: how the models predict: views, ensemble and corrections, as plain values. What
            was fitted for another way is fitted anew.
        on_validation: () -> labels_V and probs_VK of the validation part; called when needed.
    """
    for member in facts:
        if run_of(member) is None:
            return None, f"{member.path} lies in no run's folder: there is no validation part"
    about = {
        "models": trained_as(facts),
        "prediction": prediction,
        "sets": config["sets"],
        "abstention": config["abstention"],
    }
    fitted = kept(home, about)
    if fitted is not None:
        return fitted, None
    if config["data"].get("source") is not None:
        return None, "not fitted yet: evaluate split=test of the model's own run first"
    labels_V, probs_VK = on_validation()
    fitted = fit_on_validation(
        labels_V, probs_VK, sets=config["sets"], abstention=config["abstention"]
    )
    home.mkdir(parents=True, exist_ok=True)
    keep(home, about, fitted)
    return fitted, None
