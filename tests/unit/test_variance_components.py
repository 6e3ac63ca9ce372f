from __future__ import annotations

import numpy as np
import pytest

from dermalyze.evaluation.variance_components import Components, variance_components


def test_by_hand() -> None:
    """Means of folds 2, 4, 9 and of seeds 4, 6; rest 1 and -1 in the last two folds' cells.

    MS_data = 2 (9 + 1 + 16) / 2 = 26; MS_seed = 3 (1 + 1) / 1 = 6;
    rest = value - fold - seed + mean = [[0, 0], [1, -1], [-1, 1]]: MS_rest = 4 / 2 = 2.
    """
    values_FS = np.array([[1.0, 3.0], [4.0, 4.0], [7.0, 11.0]])
    found = variance_components(values_FS)
    assert found == Components(mean=5.0, data=12.0, seed=pytest.approx(4 / 3), rest=2.0)


def test_a_source_that_adds_nothing_is_zero_and_not_negative() -> None:
    values_FS = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert variance_components(values_FS) == Components(mean=1.5, data=0.0, seed=0.0, rest=1.0)


def test_known_variances_are_found_again() -> None:
    """Means of the estimates over 4,000 drawn experiments, within 4 standard errors."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(4000):
        data_F1, seed_1S = rng.normal(0, 3, (30, 1)), rng.normal(0, 2, (1, 20))
        found.append(variance_components(7 + data_F1 + seed_1S + rng.normal(0, 1, (30, 20))))
    for name, variance in (("data", 9), ("seed", 4), ("rest", 1)):
        values = np.array([getattr(one, name) for one in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - variance) < 4 * error


@pytest.mark.parametrize("shape", [(1, 3), (3, 1)])
def test_one_of_either_says_nothing(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both need two or more"):
        variance_components(np.zeros(shape))
