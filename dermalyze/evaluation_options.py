"""The parts of `evaluate`'s config that say how predictions are measured, with their ranges."""

from __future__ import annotations

from pydantic import Field

from dermalyze.config_part import ConfigPart


class Intervals(ConfigPart):
    """`intervals.*` of `evaluate`."""

    level: float = Field(gt=0, lt=1)
    draws: int = Field(ge=1)
    seed: int = Field(ge=0)


class Subgroups(ConfigPart):
    """`subgroups.*` of `evaluate`."""

    few_lesions: int = Field(ge=0)
    age_edges: list[float] = Field(min_length=1)


class Sets(ConfigPart):
    """`sets.*` of `evaluate`."""

    level: float = Field(gt=0, lt=1)
    penalty: float = Field(ge=0)
    free_ranks: int = Field(ge=0)


class Abstention(ConfigPart):
    """`abstention.*` of `evaluate`."""

    error: float = Field(ge=0, le=1)


class UnlikeTraining(ConfigPart):
    """`unlike_training.*` of `evaluate`."""

    share: float = Field(gt=0, lt=1)
    directions: int = Field(ge=1)
    folds: int = Field(ge=2)
