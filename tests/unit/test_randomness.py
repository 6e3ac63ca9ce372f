from __future__ import annotations

import itertools

import numpy as np
import pytest

from dermalyze.randomness import Purpose, generator, torch_seed

MOMENTS = [
    (0, Purpose.ORDER),
    (0, Purpose.ORDER, 0),
    (0, Purpose.ORDER, 0, 0),
    (0, Purpose.ORDER, 1),
    (0, Purpose.ORDER, 1, 0),
    (0, Purpose.ORDER, 0, 1),
    (0, Purpose.AUGMENTATION, 0),
    (1, Purpose.ORDER, 0),
    (2**32, Purpose.ORDER, 0),
    (2**32 + 5, Purpose.ORDER, 3),
    (5, Purpose.SPLIT, 3),
]


def test_every_moment_has_numbers_of_its_own():
    draws = [generator(*moment).random(4).tolist() for moment in MOMENTS]
    assert all(one != other for one, other in itertools.combinations(draws, 2))
    seeds = [torch_seed(*moment) for moment in MOMENTS]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_moment_has_the_same_numbers(moment):
    np.testing.assert_array_equal(generator(*moment).random(9), generator(*moment).random(9))
    assert torch_seed(*moment) == torch_seed(*moment)
