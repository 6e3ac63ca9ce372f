"""The folder that a run was given, taken away again where the run was refused before it began."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from dermalyze.run_folder import CONFIG, ORIGIN, SHARED_CONFIG
from dermalyze.tracking.run_lock import LOCK

# What a run writes before its split, Hydra's record of it (never that of a resumed
# one), and what stays of a lock. Another process at work there has left more.
_OF_NO_WORTH = {CONFIG, ORIGIN, SHARED_CONFIG, LOCK, ".hydra"}

_fresh: set[Path] = set()  # Hydra makes its callbacks itself, and copies them


class FreshFolderCallback(Callback):  # type: ignore[misc]  # hydra has no types
    """Remember of a single run's folder that it was not there before; Hydra is about to make it."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Look for the folder."""
        try:
            folder = Path(config.hydra.run.dir).resolve()
        except OmegaConfBaseException:  # Hydra meets it next, and it is said then
            return
        if not folder.exists():
            _fresh.add(folder)


def remove_if_fresh(folder: Path, *, job: str) -> bool:
    """Remove a folder that this process made and that holds nothing of a run; say whether it did.

    A split, a checkpoint, or a file of anybody else's in it keeps all of it: from the split on, the
    run is in MLflow as well.

    Args:
        folder: of a run that was refused.
        job: Hydra's name of it, which its log has too.
    """
    folder = folder.resolve()
    if folder not in _fresh or not folder.is_dir() or Path.cwd().is_relative_to(folder):
        return False
    log = f"{job}.log"
    if not {path.name for path in folder.iterdir()} <= {*_OF_NO_WORTH, log}:
        return False
    root = logging.getLogger()
    if all(isinstance(handler, logging.FileHandler) for handler in root.handlers):
        return False  # what was refused, and why, stands in the log alone
    for handler in [*root.handlers]:
        if isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == folder / log:
            root.removeHandler(handler)
            handler.close()
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()
