"""The configs of other commands, composed within a running one or without."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from dermalyze.config import CONF_DIR, register_resolvers


def composed(command: str, words: Sequence[str]) -> DictConfig:
    """Return the config of a command with these words on its command line."""
    register_resolvers()
    # A command is a Hydra app on the same folder already, and Hydra refuses to be started twice.
    is_app = GlobalHydra.instance().is_initialized()
    with nullcontext() if is_app else initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg: DictConfig = compose(command, list(words))
    return cfg
