from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dermalyze.errors import CheckpointError, ConfigError
from dermalyze.evaluation.metrics import summary_metrics
from dermalyze.inference.aggregate import aggregated
from dermalyze.inference.ensemble import Candidates, GeometricMean, Greedy, Mean, WeightedMean

BALANCED = "val/balanced_accuracy"


def known(*values: float | None) -> Candidates:
    names = [f"run{number}" for number in range(len(values))]
    return Candidates(names, [{BALANCED: value, "val/loss": 1.0} for value in values])


def test_means_weigh_all_alike() -> None:
    for method in (Mean(), GeometricMean()):
        np.testing.assert_array_equal(method.weights(known(0.9, 0.1, None, 0.3)), [0.25] * 4)


def test_weights_are_in_proportion_to_the_metric_or_given() -> None:
    by_metric = WeightedMean(metric=BALANCED, weights=None)
    np.testing.assert_allclose(by_metric.weights(known(0.6, 0.9, 0.5)), [0.3, 0.45, 0.25])
    np.testing.assert_array_equal(by_metric.weights(known(None)), [1.0])  # alone
    given = WeightedMean(metric=BALANCED, weights=[3.0, 0.0, 1.0])
    np.testing.assert_array_equal(given.weights(known(0.6, 0.9, 0.5)), [0.75, 0.0, 0.25])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"metric": "val/loss"}, "ensemble.metric=val/loss: less of it is better"),
        ({"metric": "val/f1"}, "there is no such metric. Did you mean 'val/macro_f1'"),
        ({"weights": [1.0, -0.5]}, "ensemble.weights=[1.0, -0.5]: -0.5 is no finite number"),
        ({"weights": [1.0, math.nan]}, "ensemble.weights=[1.0, nan]: nan is no finite number"),
        ({"weights": [1.0, math.inf]}, "inf is no finite number"),
        ({"weights": [0.0, 0.0]}, "ensemble.weights=[0.0, 0.0]: their sum is 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        WeightedMean(**{"metric": BALANCED, "weights": None} | values)
    assert said in str(refused.value)


def test_a_wrong_number_of_weights_and_unknown_metrics_are_refused() -> None:
    for count in (1, 2, 4):
        with pytest.raises(ConfigError, match=rf"{count} weights for 3 models \(run0, run1, run2"):
            WeightedMean(metric=BALANCED, weights=[1.0] * count).weights(known(1, 1, 1))
    method = WeightedMean(metric=BALANCED, weights=None)
    with pytest.raises(CheckpointError, match=r"run1 does not say it of its validation"):
        method.weights(known(0.5, None))
    with pytest.raises(CheckpointError, match=r"is 0 of all models \(run0, run1\)"):
        method.weights(known(0.0, 0.0))


LABELS = np.array([0, 0, 1, 1])


def validated(*first_class: list[float]) -> Candidates:
    """Models by their probabilities of class 0 for four images."""
    probs_MN = np.array(first_class)
    names = [f"run{number}" for number in range(len(probs_MN))]
    probs_MNK = np.stack([probs_MN, 1 - probs_MN], axis=2)
    return Candidates(names, [{}] * len(names), LABELS, probs_MNK)


def test_greedy_takes_the_best_and_what_mends_it() -> None:
    # The first is right about three images, the second mends the fourth and is weak elsewhere; the
    # third is wrong everywhere. One of each: 0.7, 0.55, 0.45, 0.45 are all right.
    candidates = validated([0.9, 0.45, 0.2, 0.3], [0.5, 0.65, 0.7, 0.6], [0.1, 0.1, 0.9, 0.9])
    once = Greedy(metric=BALANCED, rounds=1).weights(candidates)
    np.testing.assert_array_equal(once, [1, 0, 0])
    for rounds in (2, 10):
        found = Greedy(metric=BALANCED, rounds=rounds).weights(candidates)
        np.testing.assert_array_equal(found, [0.5, 0.5, 0])


def test_greedy_may_choose_a_model_again_and_minimises_what_is_to_be_small() -> None:
    candidates = validated([0.9, 0.6, 0.3, 0.3], [0.4, 0.95, 0.1, 0.4])
    weights = Greedy(metric="val/loss", rounds=10).weights(candidates)
    assert candidates.probs_MNK is not None

    def loss(share: float) -> float:
        mixed = aggregated(
            candidates.probs_MNK, aggregation="mean", weights_V=np.array([share, 1 - share])
        )
        value = summary_metrics(LABELS, mixed)["loss"]
        assert value is not None
        return value

    assert weights[0] not in (0.0, 0.5, 1.0)
    # No share of up to ten choices is better by more than the steps between them are wide.
    assert loss(weights[0]) <= min(loss(step / 10) for step in range(11)) + 1e-3
    assert loss(weights[0]) < min(loss(0.0), loss(1.0), loss(0.5))


def test_greedy_prefers_the_first_of_equals_and_stops_there() -> None:
    same = [0.9, 0.8, 0.2, 0.1]
    weights = Greedy(metric=BALANCED, rounds=5).weights(validated(same, same))
    np.testing.assert_array_equal(weights, [1, 0])


def test_greedy_needs_a_round_and_a_metric() -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.rounds=0"):
        Greedy(metric=BALANCED, rounds=0)
    with pytest.raises(ConfigError, match="there is no such metric"):
        Greedy(metric="val/f1", rounds=1)


def test_weights_are_found_on_validation_alone() -> None:
    for make in (
        lambda of: Greedy(metric=of, rounds=1),
        lambda of: WeightedMean(metric=of, weights=None),
    ):
        with pytest.raises(ConfigError) as refused:
            make("train/accuracy")
        assert str(refused.value) == (
            "ensemble.metric=train/accuracy: weights are found on validation alone. Use "
            "val/accuracy."
        )
    by_short_name = Greedy(metric="balanced_accuracy", rounds=1)
    assert by_short_name.chosen_by == {"metric": BALANCED, "rounds": 1}
    assert Mean().chosen_by == WeightedMean(metric=BALANCED, weights=None).chosen_by == {}
