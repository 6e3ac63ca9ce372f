"""What Hydra calls when a sweep begins."""

from __future__ import annotations

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from dermalyze.config import register_resolvers
from dermalyze.sweeps.study_sweeper import register_sweeper
from dermalyze.sweeps.sweep import begin_sweep

# A launcher's process gets this callback along with its job, and by it what conf/ resolves with.
register_resolvers()
register_sweeper()


class SweepCallback(Callback):  # type: ignore[misc]  # hydra has no types
    """Make one sweep of the jobs of `--multirun`, whoever launches them.

    Its end is the command's (`whole_sweep`): Hydra says nothing of it where a launcher breaks off.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Take the sweep's folder, and begin its MLflow run."""
        begin_sweep(config)
