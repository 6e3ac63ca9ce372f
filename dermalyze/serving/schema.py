"""The configuration of `python -m dermalyze.serve`: types and ranges; values stand in `conf/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dermalyze.config_part import ConfigPart
from dermalyze.schema import OutputPath, Target


class Serving(ConfigPart):
    """The whole configuration of `python -m dermalyze.serve`."""

    checkpoint: str | Annotated[list[str], Field(min_length=1)]
    tta: Target
    ensemble: Target
    host: str = Field(min_length=1)  # to Python's sockets, an empty one is every address
    port: int = Field(ge=0, le=65535)
    most_megabytes: float = Field(gt=0)
    most_waiting: int = Field(ge=1)
    most_seconds: float = Field(gt=0)
    device: Literal["auto", "cuda", "mps", "cpu"]
    amp: Literal["auto", "off", "bf16", "fp16"]
    set_method: Literal["lac", "aps", "raps", "class_conditional"]
    tracking_uri: str
    paths: OutputPath
