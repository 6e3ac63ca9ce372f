"""The parts of `evaluate`'s config that say how predictions are measured, with their ranges."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Intervals(_Options):
    """`intervals.*` of `evaluate`."""

    level: float = Field(gt=0, lt=1)
    draws: int = Field(ge=1)
    seed: int = Field(ge=0)


class Subgroups(_Options):
    """`subgroups.*` of `evaluate`."""

    few_lesions: int = Field(ge=0)
    age_edges: list[float] = Field(min_length=1)


class Sets(_Options):
    """`sets.*` of `evaluate`."""

    level: float = Field(gt=0, lt=1)
    penalty: float = Field(ge=0)
    free_ranks: int = Field(ge=0)


class Abstention(_Options):
    """`abstention.*` of `evaluate`."""

    error: float = Field(ge=0, le=1)


class UnlikeTraining(_Options):
    """`unlike_training.*` of `evaluate`."""

    share: float = Field(gt=0, lt=1)
    directions: int = Field(ge=1)
    folds: int = Field(ge=2)
