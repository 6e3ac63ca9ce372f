"""Ranges that the parts of the augmentation check, and draw from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def probability_problems(place: str, **probabilities: float) -> list[str]:
    """Return a line for each value outside [0, 1], named as it stands in the config."""
    return [
        f"{place}.{name}={value}: a probability between 0 and 1 is needed; 0 turns it off"
        for name, value in probabilities.items()
        if not 0 <= value <= 1
    ]


def span_problems(
    place: str, *, unit: str, low: float, high: float, **spans: Sequence[float]
) -> list[str]:
    """Return a line for each span that is not two numbers in [low, high], the smaller first."""
    return [
        f"{place}.{name}={list(span)}: {unit} between {low:g} and {high:g}, smallest and largest, "
        "are needed"
        for name, span in spans.items()
        if not (len(span) == 2 and low <= span[0] <= span[1] <= high)
    ]


def between(span: Sequence[float] | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return values uniform between the two ends of a span."""
    smallest, largest = span
    values: np.ndarray = smallest + (largest - smallest) * uniform
    return values


def colour_problems(place: str, **colours: Sequence[Sequence[float]]) -> list[str]:
    """Return a line for each pair of colours that is not two RGB triples in [0, 255]."""
    return [
        f"{place}.{name}={[list(colour) for colour in pair]}: two colours, each red, green and "
        "blue in [0, 255], are needed"
        for name, pair in colours.items()
        if len(pair) != 2
        or not all(len(colour) == 3 and all(0 <= c <= 255 for c in colour) for colour in pair)
    ]
