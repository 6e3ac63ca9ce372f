from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax

from dermalyze.errors import DataError
from dermalyze.inference.aggregate import Aggregation, aggregated

ALL: tuple[Aggregation, ...] = ("mean", "geometric_mean", "max")
TWO_111 = np.array([[[0.8, 0.2]], [[0.2, 0.8]]])
PROBS_VNK = np.array([[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.1, 0.6, 0.3], [0.2, 0.4, 0.4]]])


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("mean", [[0.4, 0.4, 0.2], [0.15, 0.25, 0.6]]),
        # max: 0.7, 0.6, 0.3 of 1.6; 0.2, 0.4, 0.8 of 1.4
        ("max", [[7 / 16, 6 / 16, 3 / 16], [1 / 7, 2 / 7, 4 / 7]]),
        # the roots of 7, 12, 3 and of 2, 4, 32
        (
            "geometric_mean",
            [
                np.sqrt([7, 12, 3]) / np.sqrt([7, 12, 3]).sum(),
                np.sqrt([2, 4, 32]) / np.sqrt([2, 4, 32]).sum(),
            ],
        ),
    ],
)
def test_by_hand(aggregation: Aggregation, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(aggregated(PROBS_VNK, aggregation=aggregation), expected, rtol=1e-14)


def test_weights_by_hand() -> None:
    weights = np.array([0.75, 0.25])
    mean = aggregated(TWO_111, aggregation="mean", weights_V=weights)
    np.testing.assert_allclose(mean, [[0.65, 0.35]], rtol=1e-14)
    # 0.8^3/4 0.2^1/4 to 0.2^3/4 0.8^1/4 is 2 to 1
    geometric = aggregated(TWO_111, aggregation="geometric_mean", weights_V=weights)
    np.testing.assert_allclose(geometric, [[2 / 3, 1 / 3]], rtol=1e-14)
    with pytest.raises(DataError, match="max takes the largest probability and knows no weights"):
        aggregated(TWO_111, aggregation="max", weights_V=weights)


def test_what_has_weight_0_has_no_say_in_what_is_possible() -> None:
    probs_VNK = np.array([[[1.0, 0.0]], [[0.4, 0.6]]])
    for aggregation in ("mean", "geometric_mean"):
        merged = aggregated(probs_VNK, aggregation=aggregation, weights_V=np.array([0.0, 1.0]))
        np.testing.assert_allclose(merged, [[0.4, 0.6]], rtol=1e-14)


def test_a_geometric_mean_is_the_softmax_of_mean_logits_however_far_apart() -> None:
    logits_VNK = np.random.default_rng(0).normal(0, 300, size=(3, 5, 4))
    logits_VNK[:, :, 0] = 0
    merged = aggregated(softmax(logits_VNK / 10, axis=2), aggregation="geometric_mean")
    expected = softmax(log_softmax(logits_VNK / 10, axis=2).mean(axis=0), axis=1)
    np.testing.assert_allclose(merged, expected, rtol=1e-9)


def test_classes_that_are_impossible_in_turn_leave_nothing() -> None:
    probs_VNK = np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.5, 0.5], [0.0, 1.0]]])
    with pytest.raises(DataError, match=r"of 1 images \(first: number 1\) each class has"):
        aggregated(probs_VNK, aggregation="geometric_mean")
    np.testing.assert_allclose(aggregated(probs_VNK, aggregation="mean")[1], [0.5, 0.5])


@pytest.mark.parametrize("aggregation", ALL)
def test_one_alone_comes_back_to_the_last_bit(aggregation: Aggregation) -> None:
    probs_1NK = softmax(np.random.default_rng(0).normal(size=(1, 50, 7)), axis=2)
    np.testing.assert_array_equal(aggregated(probs_1NK, aggregation=aggregation), probs_1NK[0])


@given(seed=st.integers(0, 1000), views=st.integers(1, 6))
def test_rows_stay_distributions_in_any_order(seed: int, views: int) -> None:
    random = np.random.default_rng(seed)
    probs_VNK = random.dirichlet(np.full(4, 0.3), size=(views, 3)).clip(1e-12)
    probs_VNK /= probs_VNK.sum(axis=2, keepdims=True)
    for aggregation in ALL:
        merged = aggregated(probs_VNK, aggregation=aggregation)
        np.testing.assert_allclose(merged.sum(axis=1), 1, rtol=1e-12)
        other = aggregated(random.permutation(probs_VNK), aggregation=aggregation)
        np.testing.assert_allclose(other, merged, rtol=1e-9)
