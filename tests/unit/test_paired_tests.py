"""McNemar's exact test and Holm's correction, against counts and tables that others worked out."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from dermalyze.errors import DataError
from dermalyze.evaluation.paired_tests import McNemar, holm, mcnemar


def rights(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    """Two models' rights, with so many images that both, one or none got right."""
    counts = (both, first, second, none)
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


def test_by_hand() -> None:
    # 1 against 5 of 6 that tell them apart: 2 (C(6,0) + C(6,1)) / 2^6 = 14 / 64.
    assert mcnemar(*rights(7, 1, 5, 3)) == McNemar(1, 5, pytest.approx(14 / 64, rel=1e-12))
    assert mcnemar(*rights(7, 5, 1, 3)) == McNemar(5, 1, pytest.approx(14 / 64, rel=1e-12))


def test_even_counts_and_equal_models_tell_nothing() -> None:
    assert mcnemar(*rights(2, 4, 4, 1)) == McNemar(4, 4, pytest.approx(1.0))
    assert mcnemar(*rights(5, 0, 0, 5)) == McNemar(0, 0, 1.0)


def test_many_images_agree_with_the_chi_squared_form() -> None:
    # McNemar's own statistic with the correction for continuity, (|b - c| - 1)^2 / (b + c).
    found = mcnemar(*rights(800, 180, 240, 300))
    expected = stats.chi2.sf((abs(180 - 240) - 1) ** 2 / (180 + 240), df=1)
    assert found.p == pytest.approx(expected, rel=0.03)


def test_equal_models_are_told_apart_as_often_as_p_says() -> None:
    # An exact test rejects at most as often as its level; 2,000 sets, standard error 0.005.
    rng = np.random.default_rng(0)
    p = [mcnemar(*(rng.random((2, 100)) < 0.6)).p for _ in range(2000)]
    assert 0.02 < np.mean(np.array(p) < 0.05) < 0.065


def test_other_images_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="3 and 2 images"):
        mcnemar(np.ones(3, dtype=bool), np.ones(2, dtype=bool))


def test_holm_by_hand() -> None:
    # 4 x 0.01, 3 x 0.02, 2 x 0.03 (0.06, no less than the one before), 1 x 0.04 likewise.
    np.testing.assert_allclose(holm([0.03, 0.01, 0.04, 0.02]), [0.06, 0.04, 0.06, 0.06])
    np.testing.assert_allclose(holm([0.5, 0.6]), [1, 1])
    np.testing.assert_array_equal(holm([0.03]), [0.03])


def test_holm_rejects_what_closed_testing_by_bonferroni_rejects() -> None:
    """Holm's p is the largest Bonferroni p of all sets of hypotheses that hold the one."""
    p_M = np.random.default_rng(0).random(6) ** 3
    for member, found in enumerate(holm(p_M)):
        sets = [
            chosen
            for size in range(1, 7)
            for chosen in itertools.combinations(range(6), size)
            if member in chosen
        ]
        expected = max(min(1, len(chosen) * p_M[list(chosen)].min()) for chosen in sets)
        assert found == pytest.approx(expected, rel=1e-12)
