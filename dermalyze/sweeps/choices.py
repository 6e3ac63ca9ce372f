"""What a sweep would run, composed and checked before its first job begins."""

from __future__ import annotations

from collections.abc import Iterator

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from dermalyze.schema import check_run_values

_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def check_choices(config: DictConfig) -> None:
    """Refuse a grid in which a key, an option or a value is wrong.

    Each value of each key is tried once, with the first values of the others: jobs are their
    product, and may be too many. A search checks its own ranges.

    Args:
        config: of the sweep, Hydra's own part included.

    Raises:
        ConfigError: a value has the wrong type or is out of range.
        HydraException: there is no such key or option.
    """
    if config.hydra.sweeper._target_ != _GRID:
        return
    params = config.hydra.sweeper.params or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    for job in _each_choice_once(words):
        check_run_values(hydra.compose(config.hydra.job.config_name, job))


def _each_choice_once(words: list[str]) -> Iterator[list[str]]:
    """Yield the overrides of jobs in which, taken together, every choice is made."""
    choices: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(words):
        key = override.get_key_element()
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [str(override.input_line)]
    first = {key: words[0] for key, words in choices.items()}
    yield list(first.values())
    for key, of_key in choices.items():
        for word in of_key[1:]:
            yield list({**first, key: word}.values())
