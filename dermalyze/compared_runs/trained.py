"""What training left in a run's folder: its epochs, the best of them, and how well it fits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dermalyze.compared_runs.groups import Group
from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.errors import DataError
from dermalyze.evaluation.fit_analysis import fit_analysis
from dermalyze.evaluation.metrics import direction
from dermalyze.run_folder import load_config
from dermalyze.tracking.history import HISTORY

Epoch = Mapping[str, Any]


@dataclass(frozen=True)
class Trained:
    """A run as it was trained.

    Attributes:
        folder: of the run.
        history: one record an epoch.
        monitor: the metric that chose the best epoch.
        best: that epoch's record.
        fit: see `fit_analysis`.
    """

    folder: Path
    history: Sequence[Epoch]
    monitor: str
    best: Epoch
    fit: Mapping[str, Any]

    def as_node(self, group: Group) -> dict[str, Any]:
        """Return what a report says of the run, plain.

        Args:
            group: that the run is in.
        """
        return {
            "run": str(self.folder),
            "group": group.label,
            "seed": group.seeds[group.runs.index(self.folder)],
            "epochs": len(self.history),
            "best_epoch": self.best["epoch"],
            "monitor": self.monitor,
            "validation": {
                key.removeprefix("val/"): value
                for key, value in self.best.items()
                if key.startswith("val/")
            },
            "fit": dict(self.fit),
        }


def read_trained(folder: Path) -> Trained:
    """Read a run's history; its best epoch and its fit are worked out anew, by this version's rule.

    Raises:
        CheckpointError: the folder is no run's.
        DataError: there is no epoch yet, or the history cannot be read.
    """
    training = load_config(folder).training
    monitor = str(OmegaConf.select(training, "monitor"))
    stopping = EarlyStopping(
        monitor=monitor,
        direction=direction(monitor),
        patience=None,
        min_delta=float(OmegaConf.select(training, "min_delta")),
    )
    path = folder / HISTORY
    try:
        history: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        if not history:
            raise DataError(f"{path}: not one epoch is recorded. Train the run first.")
        best = history[0]
        for record in history:
            if stopping.update(record):
                best = record
    except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise DataError(
            f"{path}: not the history of a run ({type(error).__name__}: {error}). Give the whole "
            "folder of a run that has finished an epoch."
        ) from error
    return Trained(folder, history, monitor, best, fit_analysis(history))
