"""The parts of a configuration that are plain values, with their types and ranges.

Values live in `conf/`; here stands only what they may be. Nodes with a `_target_` are checked
against the signature of their target instead (`dermalyze.config.check_targets`).
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, open_dict
from pydantic import AfterValidator, BaseModel, Field, ValidationError

from dermalyze.config import all_target_problems, group_problem, plain, raise_problems
from dermalyze.config_part import ConfigPart
from dermalyze.contradictions import contradictions
from dermalyze.errors import nearest
from dermalyze.evaluation_options import (
    Abstention,
    Intervals,
    Sets,
    Subgroups,
    UnlikeTraining,
)
from dermalyze.frequency_correction import frequency_problems

Node = dict[str, Any]


def _with_target(node: Node) -> Node:
    if "_target_" not in node:
        raise ValueError("its _target_ is missing")
    return node


Target = Annotated[Node, AfterValidator(_with_target)]


class Training(ConfigPart):
    """`training.*`: how long, how fast, on what, and when to stop."""

    seed: int = Field(ge=0)
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    evaluation_batch_size: int = Field(ge=1)
    accumulate: int = Field(ge=1)
    grad_clip: float | None = Field(gt=0)
    monitor: str
    patience: int | None = Field(ge=1)
    min_delta: float = Field(ge=0)
    device: Literal["auto", "cuda", "mps", "cpu"]
    amp: Literal["auto", "off", "bf16", "fp16"]
    threads: int | None = Field(ge=1, le=1024)
    deterministic: bool
    fast_mode: bool
    compile: bool
    channels_last: Literal["auto"] | bool
    grad_checkpointing: bool
    first_image_size: int | None = Field(ge=32, multiple_of=32)
    growing_epochs: int = Field(ge=0)
    sync_batch_norm: bool
    rank_timeout: float = Field(gt=0)
    average_last_epochs: int | None = Field(ge=1)
    checkpoint_every_steps: int | None = Field(ge=1)
    check_every_steps: int = Field(ge=1)
    profile: bool
    resume: str | None
    allow_double_correction: bool


class Duplicates(ConfigPart):
    """`data.duplicates.*`: what counts as the same picture."""

    max_distance: int = Field(ge=0, le=63)
    min_similarity: float = Field(ge=0, le=1)


class Data(ConfigPart):
    """`data.*`: where the images are, what they become, how they are split."""

    root: str
    downloads: list[str]
    merge_duplicates: bool
    duplicates: Duplicates
    duplicates_across_splits: Literal["ignore", "report", "strict"]
    image_size: int = Field(ge=16, le=4096)
    cache_size: int | None = Field(ge=16, le=8192)
    on_missing: Literal["error", "drop"] | None = None
    source: Target
    split: Target


class Paths(ConfigPart):
    """`paths.*`: where everything that Dermalyze makes goes."""

    outputs: str
    cache: str


class Sweep(ConfigPart):
    """`sweep.*`: what a multirun does beyond its jobs."""

    evaluate: bool
    resume: str | None


class Run(ConfigPart):
    """The whole configuration of `python -m dermalyze.train`."""

    data: Data
    model: Target
    loss: Target
    augmentation: Target
    mix: Target
    sampler: Target
    optimizer: Target
    scheduler: Target
    stages: Target
    ema: Target
    tracking: Target
    training: Training
    sweep: Sweep | None = None  # None: of a run from before there were sweeps
    paths: Paths


class OutputPath(ConfigPart):
    """`paths.*` of `benchmark`, which keeps no image."""

    outputs: str


class TableData(ConfigPart):
    """`data.*` where a table is read and nothing is trained: no split."""

    root: str
    downloads: list[str]
    merge_duplicates: bool
    duplicates: Duplicates
    image_size: int = Field(ge=16, le=4096)
    on_missing: Literal["error", "drop"] | None = None
    source: Target


class PreparedData(TableData):
    """`data.*` of `prepare`."""

    download: bool


class Audit(ConfigPart):
    """`audit.*` of `prepare`: how many near-duplicates are pictured."""

    pictured_pairs: int = Field(ge=0)


class Preparation(ConfigPart):
    """The whole configuration of `python -m dermalyze.prepare`."""

    data: PreparedData
    audit: Audit
    download: Target
    output: str
    paths: Paths


class ShownAugmentation(ConfigPart):
    """The whole configuration of `python -m dermalyze.show_augmentation`."""

    augmentation: Target
    data: TableData
    images: str | None
    size: int = Field(ge=16, le=1024)
    rows: int = Field(ge=1, le=100)
    views: int = Field(ge=1, le=100)
    seed: int = Field(ge=0)
    compact: bool
    output: str | None
    paths: Paths


class ScheduleShown(ConfigPart):
    """`show.*` of `python -m dermalyze.show_schedule`."""

    steps_per_epoch: int = Field(ge=1)
    improving_epochs: int | None = Field(ge=0)
    output: str


class OtherData(ConfigPart):
    """`data.*` of `evaluate`: null where the run's own data are meant."""

    root: str | None
    downloads: list[str] | None = None
    merge_duplicates: bool | None
    duplicates: Duplicates
    image_size: int | None = None
    on_missing: Literal["error", "drop"] | None = None
    source: Target | None = None


class Evaluation(ConfigPart):
    """The whole configuration of `python -m dermalyze.evaluate`."""

    checkpoint: str | Annotated[list[str], Field(min_length=1)]
    tta: Target
    ensemble: Target
    split: Literal["train", "val", "test", "all"]
    data: OtherData
    output: str | None
    batch_size: int | None = Field(ge=1)
    device: Literal["auto", "cuda", "mps", "cpu"]
    amp: Literal["auto", "off", "bf16", "fp16"]
    logit_adjustment: float | None = Field(gt=0)
    allow_double_correction: bool
    allow_seen_lesions: bool
    intervals: Intervals
    sets: Sets
    abstention: Abstention
    unlike_training: UnlikeTraining
    specificities: list[Annotated[float, Field(ge=0, le=1)]]
    subgroups: Subgroups
    track: bool
    tracking_uri: str
    paths: Paths


class Prediction(ConfigPart):
    """The whole configuration of `python -m dermalyze.predict`."""

    checkpoint: str | Annotated[list[str], Field(min_length=1)]
    images: str
    tta: Target
    ensemble: Target
    output: str | None
    batch_size: int | None = Field(ge=1)
    device: Literal["auto", "cuda", "mps", "cpu"]
    amp: Literal["auto", "off", "bf16", "fp16"]
    set_method: Literal["lac", "aps", "raps", "class_conditional"]
    part_size: int = Field(ge=1)
    tracking_uri: str
    paths: OutputPath


def _problems(schema: type[BaseModel], container: Node) -> list[str]:
    try:
        schema.model_validate_json(json.dumps(container))
    except ValidationError as error:
        return [_described(schema, detail) for detail in error.errors()]
    return []


def _described(schema: type[BaseModel], detail: Any) -> str:
    place = [str(part) for part in detail["loc"]]
    path = ".".join(place)
    if detail["type"] == "extra_forbidden":
        return f"{path}: there is no such key.{nearest(place[-1], _siblings(schema, place))}"
    if detail["type"] == "missing":
        return f"{path}: missing"
    value = detail["input"]
    typed = f"{path}={value!r} ({type(value).__name__}): {detail['msg']}"
    return group_problem(path, value) or typed


def _siblings(schema: type[BaseModel], place: list[str]) -> list[str]:
    for part in place[:-1]:
        annotation = schema.model_fields[part].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        schema = annotation
    return list(schema.model_fields)


def checked(cfg: DictConfig, schema: type[BaseModel]) -> Node:
    """Return the config as plain containers after every check that needs no data.

    Raises:
        ConfigError: unknown keys (with the nearest valid one), wrong types, values out of range.
    """
    container = plain(cfg)
    raise_problems(_problems(schema, container) + all_target_problems(container))
    return container


def check_run_values(cfg: DictConfig) -> None:
    """Check of a training run what needs nothing imported that it would train with.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range.
    """
    raise_problems(_problems(Run, plain(cfg)))


def checked_run(cfg: DictConfig) -> Node:
    """Return a training run's config, checked also for options that contradict each other.

    Raises:
        ConfigError: as `checked`, or no epoch has the metric to monitor, or the model is to be told
            what gives the class away, or sampler and loss both correct for the class frequencies;
            see also `dermalyze.contradictions`.
    """
    from dermalyze.data.metadata_features import column_problems
    from dermalyze.evaluation.metrics import METRICS

    container = checked(cfg, Run)
    training = container["training"]
    problems = column_problems(container["model"]["metadata"]["columns"])
    monitors = [f"train/{name}" for name in ("loss", "accuracy", "balanced_accuracy")]
    monitors += [f"val/{name}" for name in METRICS]
    if training["monitor"] not in monitors:
        problems.append(
            f"training.monitor={training['monitor']}: no epoch has such a metric."
            f"{nearest(training['monitor'], monitors)}"
        )
    raise_problems(problems + frequency_problems(container) + contradictions(container))
    return container


def checked_show(cfg: DictConfig) -> tuple[Node, Node]:
    """Return the run's config, and `show`, of `python -m dermalyze.show_schedule`.

    Raises:
        ConfigError: as `checked_run`.
    """
    run = cfg.copy()
    with open_dict(run):
        show = run.pop("show")
    return checked_run(run), checked(show, ScheduleShown)
