"""How much a metric owes to chance in training: its spread over runs that differ in the seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Spread(NamedTuple):
    """A metric over S seeds: its mean; of two or more also sd (with S - 1), smallest and largest.

    `error` is the standard error of the mean, sd / sqrt(S): how far it may lie from that of very
    many seeds.
    """

    mean: float
    sd: float | None
    smallest: float | None
    largest: float | None
    error: float | None


def spread(values_S: Sequence[float]) -> Spread:
    """Return the mean and the spread of one value a seed; S >= 1."""
    mean = float(np.mean(values_S))
    if len(values_S) < 2:
        return Spread(mean, None, None, None, None)
    sd = float(np.std(values_S, ddof=1))
    error = sd / len(values_S) ** 0.5
    return Spread(mean, sd, float(min(values_S)), float(max(values_S)), error)


def error_of_difference(one: Spread, other: Spread) -> float | None:
    """Return the standard error of the difference of two means; None where one has one seed.

    Seeds of different configs start other networks, so they count as independent even where the
    numbers are the same.
    """
    if one.error is None or other.error is None:
        return None
    return float(np.hypot(one.error, other.error))
