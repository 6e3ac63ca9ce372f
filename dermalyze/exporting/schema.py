"""The configuration of `python -m dermalyze.export`: types and ranges; values stand in `conf/`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dermalyze.config_part import ConfigPart
from dermalyze.schema import OtherData, Paths


class LimitsGiven(ConfigPart):
    """`limits.*`: see `dermalyze.exporting.agreement.Limits`."""

    probability: float = Field(gt=0, le=1)
    agreement: float = Field(ge=0, le=1)
    balanced_accuracy: float = Field(ge=0, le=1)


class Int8Given(ConfigPart):
    """`int8.*`: see `dermalyze.exporting.int8.Int8`."""

    images: int = Field(ge=1)
    seed: int = Field(ge=0)
    method: Literal["minmax", "entropy", "percentile"]
    seven_bits: bool
    operators: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    groups: int = Field(ge=1)
    most_in_float32: float = Field(ge=0, lt=1)


class Export(ConfigPart):
    """The whole configuration of `python -m dermalyze.export`."""

    checkpoint: str
    format: Literal["onnx", "onnx_int8", "torch_export", "safetensors"]
    output: str | None
    data: OtherData
    batch_size: int | None = Field(ge=1)
    threads: int | None = Field(ge=1, le=1024)
    opset: int = Field(ge=18)
    limits: LimitsGiven
    int8: Int8Given
    paths: Paths
