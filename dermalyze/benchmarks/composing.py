"""The configs of other commands, composed within a running one or without."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dermalyze.composition_errors import better_said
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.errors import ConfigError


def composed(command: str, words: Sequence[str]) -> DictConfig:
    """Return the config of a command with these words on its command line.

    Raises:
        ConfigError: words that make no config.
    """
    register_resolvers()
    # A command is a Hydra app on the same folder already, and Hydra refuses to be started twice.
    is_app = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_app else initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        try:
            cfg: DictConfig = compose(command, list(words))
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise ConfigError(f"{command}: {better_said(error) or error}") from error
    return cfg
