"""The range that most parts of the augmentation check."""

from __future__ import annotations


def probability_problems(place: str, **probabilities: float) -> list[str]:
    """Return a line for each value outside [0, 1], named as it stands in the config."""
    return [
        f"{place}.{name}={value}: a probability between 0 and 1 is needed; 0 turns it off"
        for name, value in probabilities.items()
        if not 0 <= value <= 1
    ]
