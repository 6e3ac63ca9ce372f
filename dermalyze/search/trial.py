"""A run as a trial of a search: it says how it does, and stops where others did better."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from dermalyze.errors import Pruned
from dermalyze.search.options import search_options
from dermalyze.search.study import Study
from dermalyze.search.trial_file import trial_number


class SearchTrial:
    """The trial that a run is.

    Args:
        study: that it belongs to.
        number: of the trial in the study.
    """

    def __init__(self, *, study: Study, number: int) -> None:
        self._study, self.number = study, number
        self._trial = study.watched(number)

    def verdict(self, record: Mapping[str, float | int | None]) -> Pruned | None:
        """Take in a finished epoch's record; return what to stop with, None to go on.

        Args:
            record: with `epoch`, counted from 1, and the metric that the study searches by.
        """
        value, epoch = record[self._study.monitor], int(record["epoch"] or 0)
        if value is None:
            return None
        step = epoch - 1  # pruners count from 0
        known = self._study.trials[self.number].intermediate_values
        if step not in known:  # a resumed run comes by an epoch twice
            self._trial.report(value, step)
        if not self._trial.should_prune():
            return None
        values = [*known.values(), value]
        best = max(values) if self._study.maximises else min(values)
        return Pruned(epoch, self._study.monitor, best)

    @property
    def tags(self) -> dict[str, str]:
        """What to find its run by."""
        return {"study": self._study.options.study, "trial": str(self.number)}


def trial_of(folder: Path, sweeper: DictConfig, monitor: str) -> SearchTrial | None:
    """Return the trial whose run goes into a folder; None where it is no search's.

    Args:
        folder: of a job of a multirun.
        sweeper: Hydra's `hydra.sweeper`.
        monitor: `training.monitor`.
    """
    number = trial_number(folder)
    if number is None:
        return None
    return SearchTrial(study=Study(options=search_options(sweeper), monitor=monitor), number=number)
