"""The configurations of `compare` and `report`; values stand in `conf/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dermalyze.config_part import ConfigPart
from dermalyze.schema import OutputPath


class Comparison(ConfigPart):
    """The whole configuration of `python -m dermalyze.compare`."""

    runs: str | Annotated[list[str], Field(min_length=1)]
    baseline: str | None
    group_seeds: bool
    split: Literal["train", "val", "test", "all"]
    level: float = Field(gt=0, lt=1)
    draws: int = Field(ge=1)
    seed: int = Field(ge=0)
    output: str
    paths: OutputPath


class Report(ConfigPart):
    """The whole configuration of `python -m dermalyze.report`."""

    runs: str | Annotated[list[str], Field(min_length=1)]
    group_seeds: bool
    pictured_runs: int = Field(ge=0)
    output: str | None
    track: bool
    paths: OutputPath
