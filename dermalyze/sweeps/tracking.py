"""A sweep in MLflow: one run that its jobs' runs are children of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dermalyze.config import plain
from dermalyze.redaction import shown
from dermalyze.sweep_folder import read_sweep
from dermalyze.taxonomy import DISCLAIMER
from dermalyze.tracking.tracker import Tracker


def begin_tracking(sweep: Path, cfg: DictConfig) -> Tracker:
    """Begin the sweep's run, or go on with it; close runs of jobs whose process is gone."""
    record = read_sweep(sweep)
    words = [shown(override) for override in record["overrides"]]
    parameters = dict(word.lstrip("+").split("=", 1) for word in words if "=" in word)  # not ~key
    return begun(cfg, f"sweep {sweep.name}", sweep, parameters, {})


def begun(
    cfg: DictConfig,
    name: str,
    folder: Path,
    parameters: Mapping[str, str],
    tags: Mapping[str, str],
) -> Tracker:
    """Begin a run for what lies in a folder, tracked as the sweep's config says."""
    tracker: Tracker = instantiate(plain(cfg.tracking), _convert_="all")
    tracker.start(
        name=name,
        folder=folder,
        parameters=parameters,
        tags={**tags, "disclaimer": DISCLAIMER},
    )
    return tracker
