"""What `hydra.sweeper.*` of a search may be; the values stand in `conf/`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import AfterValidator, Field

from dermalyze.config import plain
from dermalyze.config_part import ConfigPart
from dermalyze.schema import Target, checked

Node = dict[str, Any]
Range = str | bool | int | float | None


def _whole(node: Node) -> Node:
    if node.get("_partial_"):
        raise ValueError("a grid needs no study: python -m dermalyze.train -m KEY=A,B OTHER=C,D")
    return node


class Condition(ConfigPart):
    """Ranges that are asked for where all of `when` holds: a value, or one of several, by name."""

    when: Annotated[dict[str, Range | list[Range]], Field(min_length=1)]
    params: Annotated[dict[str, Range], Field(min_length=1)]


class SearchOptions(ConfigPart):
    """How to search, what, and where the study is kept."""

    study: Annotated[str, Field(min_length=1, pattern=r"^[\w.-]+$")]
    folder: str
    storage: str
    seed: int = Field(ge=0)
    n_trials: int = Field(ge=1)
    n_jobs: int = Field(ge=1)
    max_failures: int = Field(ge=1)
    sampler: Annotated[Target, AfterValidator(_whole)]
    pruner: Target | None
    params: dict[str, Range]
    conditions: list[Condition]

    @property
    def place(self) -> Path:
        """The study's folder."""
        return Path(self.folder)


class _Hydra(ConfigPart):
    sweeper: SearchOptions


class _Whole(ConfigPart):
    hydra: _Hydra


def search_options(sweeper: DictConfig) -> SearchOptions:
    """Return the options of a search.

    Args:
        sweeper: Hydra's `hydra.sweeper`, within the whole config that it refers to.

    Raises:
        ConfigError: unknown keys, wrong types, values out of range, also of sampler and pruner.
    """
    node = plain(sweeper)
    # Words for Hydra, which makes the sweeper by them.
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    container = checked(OmegaConf.create({"hydra": {"sweeper": options}}), _Whole)
    return _Whole.model_validate(container).hydra.sweeper
