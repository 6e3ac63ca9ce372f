"""Our sets are those of MAPIE, the field's library, where both promise the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin

from dermalyze.evaluation.conformal import APS, LAC, prediction_sets, scores, thresholds

CLASSES = 7


class Given(ClassifierMixin, BaseEstimator):
    """A classifier whose pictures are the probabilities themselves."""

    def __init__(self) -> None:
        self.classes_, self.n_features_in_, self.fitted_ = np.arange(CLASSES), CLASSES, True

    def fit(self, probs_NK: np.ndarray, labels_N: np.ndarray) -> Given:
        return self

    def predict_proba(self, probs_NK: np.ndarray) -> np.ndarray:
        return probs_NK

    def predict(self, probs_NK: np.ndarray) -> np.ndarray:
        return probs_NK.argmax(axis=1)


class NoChance(np.random.RandomState):
    """Takes MAPIE's random step out, which ours leaves out so that an image keeps its set."""

    def uniform(self, *args: Any, size: int, **kwargs: Any) -> np.ndarray:
        return np.zeros(size)


def sampled(seed: int, images: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(CLASSES, size=images)
    odds_NK = np.exp(1.5 * (rng.normal(size=(images, CLASSES)) + np.eye(CLASSES)[labels_N]))
    return labels_N, odds_NK / odds_NK.sum(axis=1, keepdims=True)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # of scikit-learn, at the package
@pytest.mark.parametrize("level", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("method", [LAC, APS])
@pytest.mark.parametrize("seed", range(3))
def test_sets_are_those_of_mapie(method: str, level: float, seed: int) -> None:
    why = "MAPIE is not installed: pip install 'dermalyze[reference]'"
    classification = pytest.importorskip("mapie.classification", reason=why)
    (labels_V, probs_VK), (_, probs_NK) = sampled(seed, 401), sampled(seed + 10, 1000)
    theirs = classification.SplitConformalClassifier(
        Given(),
        confidence_level=level,
        conformity_score=method,
        prefit=True,
        random_state=NoChance(),
    )
    theirs.conformalize(probs_VK, labels_V)
    only_within = {"include_last_label": False} if method == APS else {}
    _, expected_NK1 = theirs.predict_set(probs_NK, conformity_score_params=only_within)

    raps_alone = {"penalty": 0.0, "free_ranks": 0}
    score_VK, score_NK = (scores(method, probs, **raps_alone) for probs in (probs_VK, probs_NK))
    found_K = thresholds(method, score_VK, labels_V, level=level)
    sets_NK = prediction_sets(score_NK, found_K, probs_NK)
    np.testing.assert_array_equal(sets_NK, expected_NK1[:, :, 0])
    assert 1 < sets_NK.sum(axis=1).mean() < CLASSES
