"""What models that saw an image in views say of it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dermalyze.inference.aggregate import Aggregation, aggregated
from dermalyze.inference.uncertainty import Uncertainty, uncertainty


@dataclass(frozen=True, eq=False)
class Answer:
    """What models say together: probs_NK, how sure they are, and the weight of each model.

    `probs_MNK` is what each model says, its views made one. `features_MNF` are what each saw of the
    images, see `features`; None of a model that has none, and empty where they were not asked for.
    """

    probs_NK: np.ndarray
    uncertainty: Uncertainty
    weights_M: np.ndarray
    probs_MNK: np.ndarray
    features_MNF: Sequence[np.ndarray | None] = ()


def over_views(probs_MVNK: np.ndarray, aggregation: Aggregation) -> np.ndarray:
    """Return probs_MNK: of each model the V views made one.

    Raises:
        DataError: see `aggregated`.
    """
    return np.stack([aggregated(probs_VNK, aggregation=aggregation) for probs_VNK in probs_MVNK])


def answer_together(
    probs_MNK: np.ndarray,
    probs_MVNK: np.ndarray,
    *,
    aggregation: Aggregation,
    weights_M: np.ndarray,
    features_MNF: Sequence[np.ndarray | None] = (),
) -> Answer:
    """Return what M models say of N images, and how sure they are.

    Args:
        probs_MNK: as `over_views` returns them.
        probs_MVNK: what they were made of.
        aggregation: of the models.
        weights_M: of each, >= 0, summing to 1.
        features_MNF: handed on.

    Raises:
        DataError: see `aggregated`.
    """
    probs_NK = aggregated(probs_MNK, aggregation=aggregation, weights_V=weights_M)
    unsure = uncertainty(probs_NK, probs_MVNK, weights_M)
    return Answer(probs_NK, unsure, weights_M, probs_MNK, features_MNF)
