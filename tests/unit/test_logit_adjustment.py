from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dermalyze.errors import ConfigError, DataError
from dermalyze.evaluation.logit_adjustment import adjusted_probabilities
from dermalyze.losses.logit_adjusted import LogitAdjustedLoss

PROBS_NK = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.0, 1.0, 0.0]])
counts = st.lists(st.integers(1, 10_000), min_size=3, max_size=3)


def test_by_hand():
    """Divided by 0.6, 0.3 and 0.1, the rows are 1, 1, 1 and 1/3, 2/3, 6; 4 to 2 is 2 to 1."""
    adjusted_NK = adjusted_probabilities(PROBS_NK, [60, 30, 10], tau=1.0)
    np.testing.assert_allclose(
        adjusted_NK, [[1 / 3, 1 / 3, 1 / 3], [1 / 21, 2 / 21, 18 / 21], [0, 1, 0]], rtol=1e-12
    )
    half_NK = adjusted_probabilities(np.array([[0.5, 0.5]]), [16, 4], tau=0.5)
    np.testing.assert_allclose(half_NK, [[1 / 3, 2 / 3]], rtol=1e-12)


def test_it_undoes_what_the_loss_of_the_same_name_adds():
    """Softmax of z + tau log pi, divided by pi^tau, is the softmax of z."""
    logits_NK = np.random.default_rng(0).normal(size=(5, 3))
    addend_K = LogitAdjustedLoss(tau=1.5, class_counts=[60, 30, 10]).addend_K.double()
    trained_NK = (torch.tensor(logits_NK) + addend_K).softmax(dim=1).numpy()
    adjusted_NK = adjusted_probabilities(trained_NK, [60, 30, 10], tau=1.5)
    np.testing.assert_allclose(adjusted_NK, torch.tensor(logits_NK).softmax(dim=1), rtol=1e-6)


@given(class_counts=counts, tau=st.floats(0.01, 50))
def test_rows_stay_distributions_and_only_shares_matter(class_counts, tau):
    adjusted_NK = adjusted_probabilities(PROBS_NK, class_counts, tau=tau)
    np.testing.assert_allclose(adjusted_NK.sum(axis=1), 1, rtol=1e-12)
    assert (adjusted_NK >= 0).all()
    assert ((adjusted_NK > 0) <= (PROBS_NK > 0)).all()  # nothing comes out of a probability of 0
    ten_times = adjusted_probabilities(PROBS_NK, [10 * n for n in class_counts], tau=tau)
    np.testing.assert_allclose(ten_times, adjusted_NK, rtol=1e-9, atol=1e-300)


@given(count=st.integers(1, 10_000), tau=st.floats(0.01, 50))
def test_equally_frequent_classes_change_nothing(count, tau):
    adjusted_NK = adjusted_probabilities(PROBS_NK, [count] * 3, tau=tau)
    np.testing.assert_allclose(adjusted_NK, PROBS_NK, rtol=1e-12)


@pytest.mark.parametrize("tau", [0.0, -1.0, math.inf, math.nan])
def test_a_strength_out_of_range_is_refused(tau):
    with pytest.raises(ConfigError, match=f"logit_adjustment={tau}"):
        adjusted_probabilities(PROBS_NK, [1, 1, 1], tau=tau)


@pytest.mark.parametrize("class_counts", [[5, 5], [5, 5, 5, 5], [5, 0, 5]])
def test_counts_that_do_not_fit_are_refused(class_counts):
    with pytest.raises(DataError) as error:
        adjusted_probabilities(PROBS_NK, class_counts, tau=1.0)
    assert f"class_counts={class_counts}" in str(error.value)
