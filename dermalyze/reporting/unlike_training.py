"""A score for images unlike those that a model was made for, with a threshold from validation.

A classifier may be as sure of a photograph, of text or of noise as of a lesion. Validation images
say what a model sees of images that it is meant for and was not trained on; the score is how far an
image lies from them (see `evaluation.unlikeness`).

Shapes: N images, V of validation, F features, M models.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dermalyze.errors import DataError
from dermalyze.evaluation.unlikeness import Seen, distances_of_unseen
from dermalyze.reporting.resampled import Resampled

Node = dict[str, Any]
Floats = npt.NDArray[np.float64]

_NO_MAP = "a file for other programs gives probabilities, and no features"


def fit_unlikeness(
    features_MVF: Sequence[np.ndarray | None],
    lesion_ids_V: npt.ArrayLike,
    weights_M: np.ndarray,
    *,
    share: float,
    directions: int,
    folds: int,
) -> Node:
    """Return as plain values for JSON what models see of validation images, and a threshold.

    "members", of each model a `Seen`, its arrays as float32 in base64; "flag_above", the score that
    a share of the validation images is above, each held against those of other lesions. Both are
    null where "reason" says why.

    Args:
        features_MVF: see `inference.features`; None of a model that has none.
        lesion_ids_V: of the images.
        weights_M: of the models, summing to 1.
        share: in (0, 1).
        directions: of `Seen`.
        folds: see `distances_of_unseen`.
    """
    known_MVF = [found for found in features_MVF if found is not None]
    if len(known_MVF) < len(features_MVF):
        return {"members": None, "flag_above": None, "reason": _NO_MAP}
    try:
        distances_MV = [
            distances_of_unseen(found, lesion_ids_V, directions=directions, folds=folds)
            for found in known_MVF
        ]
    except DataError as error:
        return {"members": None, "flag_above": None, "reason": f"validation: {error}"}
    return {
        "members": [_as_node(Seen.of(found, directions)) for found in known_MVF],
        "flag_above": float(np.quantile(weights_M @ np.stack(distances_MV), 1 - share)),
        "reason": None,
    }


def unlikeness(
    fitted: Node | None, features_MNF: Sequence[np.ndarray | None], weights_M: np.ndarray
) -> Floats | None:
    """Return the score of each image, about 1 for one like those of validation.

    None where there is no fit.

    Args:
        fitted: holds "unlike_training", see `fit_unlikeness`; None where nothing was fitted.
        features_MNF, weights_M: of the same models.
    """
    if fitted is None or fitted["unlike_training"]["members"] is None:
        return None
    members = fitted["unlike_training"]["members"]
    distances_MN = [
        _from_node(member).distance(found)
        for member, found in zip(members, features_MNF, strict=True)
        if found is not None  # which was so when they were fitted
    ]
    scores_N: Floats = weights_M @ np.stack(distances_MN)
    return scores_N


def unlikeness_report(
    unlike_N: Floats | None, fitted: Node | None, *, resampled: Resampled, why_not: str | None
) -> Node:
    """Return the threshold of validation and the share of images above it; or why there is none.

    "intervals" holds the estimate of that share.
    """
    if fitted is None or unlike_N is None:
        reason = why_not if fitted is None else fitted["unlike_training"]["reason"]
        return {"flag_above": None, "flagged": None, "intervals": None, "reason": reason}
    limit = fitted["unlike_training"]["flag_above"]
    flagged = resampled.mean(unlike_N > limit)
    return {
        "flag_above": limit,
        "flagged": flagged["value"],
        "intervals": {"flagged": flagged},
        "reason": None,
    }


def unlikeness_columns(unlike_N: Floats | None, fitted: Node | None) -> dict[str, list[Any]]:
    """Return the columns of predictions.csv: the score, and whether it is above the threshold."""
    if fitted is None or unlike_N is None:
        return {}
    flagged_N = unlike_N > fitted["unlike_training"]["flag_above"]
    return {"unlike_training": unlike_N.tolist(), "unlike_training_flag": flagged_N.tolist()}


def _as_node(seen: Seen) -> Node:
    packed = {
        name: base64.b64encode(value.astype("<f4").tobytes()).decode("ascii")
        for name, value in vars(seen).items()
        if isinstance(value, np.ndarray)
    }
    return packed | {"other_variance": seen.other_variance}


def _from_node(node: Node) -> Seen:
    arrays = {
        name: np.frombuffer(base64.b64decode(value), "<f4")
        for name, value in node.items()
        if isinstance(value, str)
    }
    features = len(arrays["mean_F"])
    arrays["directions_RF"] = arrays["directions_RF"].reshape(-1, features)
    return Seen(**arrays, other_variance=node["other_variance"])
