"""What a sweep would run, composed and checked before its first job begins."""

from __future__ import annotations

from math import prod

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from dermalyze.errors import ConfigError

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
    choices = _choices(config)
    first = {key: of_key[0] for key, of_key in choices.items()}
    run = _checked_run(config, first)
    for key, of_key in choices.items():
        for word in of_key[1:]:
            if _is_value(run, key):  # composing anew would take a thousand seeds minutes
                _check_with(run, word)
            else:
                _checked_run(config, {**first, key: word})


def number_of_jobs(config: DictConfig) -> int | None:
    """Return how many jobs a grid has; None for a search, of which it is not known.

    Args:
        config: of the sweep, Hydra's own part included.
    """
    if config.hydra.sweeper._target_ != _GRID:
        return None
    return prod(len(of_key) for of_key in _choices(config).values())


def _choices(config: DictConfig) -> dict[str, list[str]]:
    """Return each key's overrides: several where it is swept over, else its only one."""
    params = config.hydra.sweeper.params or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    choices: dict[str, list[str]] = {}
    options = GlobalHydra.instance().config_loader()  # which `glob(*)` asks for
    for override in OverridesParser.create(options).parse_overrides(words):
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise ConfigError(
                f"{override.input_line}: an interval is for a search, which a grid is not. Add "
                "sweep=optuna_quick, or name values: KEY=A,B,C."
            )
        if override.is_sweep_override():
            choices[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            choices[key] = [str(override.input_line)]
    return choices


def _checked_run(config: DictConfig, job: dict[str, str]) -> DictConfig:
    run: DictConfig = hydra.compose(config.hydra.job.config_name, list(job.values()))
    _check_values(run)
    return run


def _is_value(run: DictConfig, key: str) -> bool:
    """Whether a key names one value that all jobs have, rather than a group or something added."""
    return not OmegaConf.is_config(OmegaConf.select(run, key, default=run))


def _check_with(run: DictConfig, word: str) -> None:
    (override,) = OverridesParser.create().parse_overrides([word])
    changed = run.copy()
    OmegaConf.update(changed, override.get_key_element(), override.value())
    _check_values(changed)


def _check_values(run: DictConfig) -> None:
    from dermalyze.schema import check_run_values  # takes 0.15 s, which no other command is to pay

    check_run_values(run)
