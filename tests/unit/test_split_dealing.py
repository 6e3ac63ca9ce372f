"""Dealing to any number of parts; three of them, and the tables, are tried in test_split.py."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dermalyze.data.split_dealing import (
    deal,
    exact_share,
    fewest,
    lesions_per_part,
    shuffled_by_class,
    train_val_test,
)
from dermalyze.errors import ConfigError

HUNDREDTHS = [Fraction(percent, 100) for percent in range(1, 100)]


@pytest.mark.parametrize("ties_to_last", [False, True])
def test_two_lesions_are_enough_for_two_parts(ties_to_last: bool) -> None:
    for share in HUNDREDTHS:
        shares = (1 - share, share)
        assert fewest(shares) == 2
        for lesions in range(2, 130):
            dealt = lesions_per_part(lesions, shares, ties_to_last=ties_to_last)
            assert sum(dealt) == lesions
            assert min(dealt) >= 1
            assert all(abs(n - lesions * s) < 1 for n, s in zip(dealt, shares, strict=True))


def test_fewest_by_hand() -> None:
    def of(*percents: int) -> int:
        return fewest([Fraction(percent, 100) for percent in percents])

    # The largest part may miss one lesion: 0.3 n >= 1, 0.02 n >= 1, 0.1 n >= 2.
    assert (of(70, 15, 15), of(98, 1, 1), of(90, 4, 3, 3)) == (4, 50, 20)
    assert (of(40, 30, 30), of(25, 25, 25, 25), of(99, 1)) == (3, 4, 2)


def test_ties_go_to_the_first_part_in_even_classes_and_to_the_last_in_odd_ones() -> None:
    label = np.repeat([0, 1, 2, 3], 5)
    part = deal(label, (Fraction(1, 2), Fraction(1, 2)), 0)
    counts = [np.bincount(part[label == number]).tolist() for number in range(4)]
    assert counts == [[3, 2], [2, 3], [3, 2], [2, 3]]


def test_another_time_is_another_dealing_of_the_same_counts() -> None:
    label = np.repeat([0, 1], [30, 17])
    shares = (Fraction(2, 3), Fraction(1, 3))
    first, again, other = (deal(label, shares, 3, time) for time in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    counts = [[int(p[label == n].sum()) for n in (0, 1)] for p in (first, other)]
    assert counts == [[10, 6], [10, 6]]  # 17 / 3 = 5.67


def test_classes_do_not_shift_each_others_numbers() -> None:
    few, many = np.repeat([0, 1], [4, 9]), np.repeat([0, 1], [40, 9])
    np.testing.assert_array_equal(
        shuffled_by_class(few, 5)[1] - 4, shuffled_by_class(many, 5)[1] - 40
    )


def test_shares_are_meant_as_they_are_written() -> None:
    assert exact_share("val_size", 0.15) == Fraction(3, 20)
    assert train_val_test(0.2, 0.1) == (Fraction(7, 10), Fraction(1, 5), Fraction(1, 10))
    with pytest.raises(ConfigError, match=r"data\.split\.val_size=1: not a share"):
        exact_share("val_size", 1)
