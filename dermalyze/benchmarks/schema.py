"""The configuration of `python -m dermalyze.benchmark`; values stand in `conf/benchmark.yaml`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dermalyze.config_part import ConfigPart
from dermalyze.schema import OutputPath


class CacheBenchmark(ConfigPart):
    """`cache.*`: the JPEG files to build a cache of, and its images' size."""

    images: int = Field(ge=1)
    width: int = Field(ge=32)
    height: int = Field(ge=32)
    quality: int = Field(ge=1, le=95)
    noise: float = Field(ge=0)
    image_size: int = Field(ge=16, le=4096)


class TrackingBenchmark(ConfigPart):
    """`tracking.*`: the run that is recorded."""

    epochs: int = Field(ge=1)
    seconds_per_epoch: float = Field(gt=0)
    checkpoint_megabytes: float = Field(gt=0)


class InputBenchmark(ConfigPart):
    """`input.*`: how many files, and the batches that they become."""

    images: int = Field(ge=1)
    image_size: int = Field(ge=16, le=4096)
    batch_size: int = Field(ge=1)


class StepBenchmark(ConfigPart):
    """`step.*`: the network and its batches."""

    backbone: str
    image_size: int = Field(ge=32, le=4096)
    batch_size: int = Field(ge=7)  # each class is in it


class EpochBenchmark(ConfigPart):
    """`epoch.*`: an epoch's images, the worker counts of a DataLoader to try, what is trained."""

    root: str | None
    images: int | None = Field(ge=2)
    workers: list[int] = Field(min_length=1)
    options: list[str]


class InferBenchmark(ConfigPart):
    """`infer.*`: the run or the network, and how many images it is shown at once."""

    checkpoint: str | None
    backbone: str
    image_size: int = Field(ge=32, le=4096)
    batch_sizes: list[int] = Field(min_length=1)
    calibration_images: int = Field(ge=1)


class EvaluateBenchmark(StepBenchmark):
    """`evaluate.*`: the images that are evaluated."""

    images: int = Field(ge=28)


class ScaleBenchmark(StepBenchmark):
    """`scale.*`: what is varied."""

    batch_sizes: list[int]
    image_sizes: list[int]
    data_sizes: list[int]
    processes: list[int]


class MemoryBenchmark(ConfigPart):
    """`memory.*`: what the commands are given."""

    backbone: str
    image_size: int = Field(ge=32, le=4096)
    images: list[int] = Field(min_length=1)
    files: list[Annotated[int, Field(ge=1)]]


class GpuBenchmark(ConfigPart):
    """`gpu.*`: the device, an epoch's images, the product it is held against, what is trained."""

    device: Literal["cuda", "mps", "cpu"]
    images: int = Field(ge=2)
    matrix: int = Field(ge=16)
    options: list[str]


class Benchmark(ConfigPart):
    """The whole configuration."""

    parts: list[
        Literal[
            "startup",
            "cache",
            "tracking",
            "input",
            "step",
            "epoch",
            "infer",
            "evaluate",
            "scale",
            "memory",
            "gpu",
        ]
    ] = Field(min_length=1)
    repeats: int = Field(ge=1)
    cache: CacheBenchmark
    tracking: TrackingBenchmark
    input: InputBenchmark
    step: StepBenchmark
    epoch: EpochBenchmark
    infer: InferBenchmark
    evaluate: EvaluateBenchmark
    scale: ScaleBenchmark
    memory: MemoryBenchmark
    gpu: GpuBenchmark
    output: str
    paths: OutputPath
