"""The ranges that most parts of a model check."""

from __future__ import annotations

from dermalyze.errors import ConfigError


def require_chance(place: str, value: float) -> None:
    """Raise a ConfigError for a chance of dropping something that is not in [0, 1)."""
    if not 0 <= value < 1:
        raise ConfigError(f"{place}={value}: a chance in [0, 1) is needed; 0 drops nothing.")


def require_width(place: str, value: int) -> None:
    """Raise a ConfigError for a layer's width below 1."""
    if value < 1:
        raise ConfigError(f"{place}={value}: a width of at least 1 is needed.")


def require_positive(place: str, value: float) -> None:
    """Raise a ConfigError for a value that is not finite and above 0."""
    if not 0 < value < float("inf"):
        raise ConfigError(f"{place}={value}: a finite number above 0 is needed.")
