from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy

from dermalyze.inference.aggregate import aggregated
from dermalyze.inference.uncertainty import uncertainty

ONE = np.ones(1)


def test_by_hand() -> None:
    """Two members of one view and equal weight: one certain of each class."""
    probs_MVNK = np.array([[[[1.0, 0.0], [0.9, 0.1]]], [[[0.0, 1.0], [0.5, 0.5]]]])
    probs_NK = np.array([[0.5, 0.5], [0.7, 0.3]])
    found = uncertainty(probs_NK, probs_MVNK, np.array([0.5, 0.5]))
    assert found.entropy_N[0] == pytest.approx(math.log(2), abs=1e-15)
    assert found.mutual_information_N[0] == pytest.approx(math.log(2), abs=1e-15)
    second = entropy([0.7, 0.3]) - (entropy([0.9, 0.1]) + entropy([0.5, 0.5])) / 2
    assert found.mutual_information_N[1] == pytest.approx(second, abs=1e-15)
    assert found.deviation_N == pytest.approx([0.5, 0.2], abs=1e-15)
    assert found.margin_N == pytest.approx([0.0, 0.4], abs=1e-15)


def test_weights_count_and_views_share_them() -> None:
    random = np.random.default_rng(0)
    probs_MVNK = random.dirichlet(np.ones(5), size=(3, 4, 6))
    weights_M = np.array([0.5, 0.5, 0.0])
    merged_MNK = np.stack([aggregated(views, aggregation="max") for views in probs_MVNK])
    probs_NK = aggregated(merged_MNK, aggregation="mean", weights_V=weights_M)
    found = uncertainty(probs_NK, probs_MVNK, weights_M)
    answers_ANK = probs_MVNK[:2].reshape(8, 6, 5)  # the third member has no say
    members_MNK = probs_MVNK[:2].mean(axis=1)
    total_N = entropy(members_MNK.mean(axis=0), axis=1)
    expected_N = entropy(members_MNK, axis=2).mean(axis=0)
    np.testing.assert_allclose(found.mutual_information_N, total_N - expected_N, rtol=1e-12)
    np.testing.assert_allclose(found.entropy_N, entropy(probs_NK, axis=1), rtol=1e-12)
    of_predicted_AN = answers_ANK[:, range(6), probs_NK.argmax(axis=1)]
    np.testing.assert_allclose(found.deviation_N, of_predicted_AN.std(axis=0), rtol=1e-12)


def test_one_answer_alone_disagrees_with_nobody() -> None:
    probs_NK = np.random.default_rng(0).dirichlet(np.full(7, 0.2), size=200)
    found = uncertainty(probs_NK, probs_NK[None, None], ONE)
    assert np.all(found.mutual_information_N == 0)
    assert np.all(found.deviation_N == 0)
    np.testing.assert_allclose(found.entropy_N, entropy(probs_NK, axis=1), rtol=1e-12)


def test_views_of_one_member_disagree_in_their_deviation_alone() -> None:
    probs_MVNK = np.array([[[[0.9, 0.1]], [[0.5, 0.5]]]])
    found = uncertainty(probs_MVNK[0].mean(axis=0), probs_MVNK, ONE)
    assert found.mutual_information_N[0] == 0
    assert found.deviation_N[0] == pytest.approx(0.2, abs=1e-15)


def test_agreement_is_never_below_0() -> None:
    probs_NK = np.random.default_rng(1).dirichlet(np.full(7, 0.2), size=200)
    same_MVNK = np.broadcast_to(probs_NK, (3, 4, 200, 7))
    found = uncertainty(probs_NK, same_MVNK, np.full(3, 1 / 3))
    assert found.mutual_information_N.min() >= 0
    assert found.mutual_information_N.max() < 1e-14
