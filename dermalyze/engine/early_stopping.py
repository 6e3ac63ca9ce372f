"""When a metric counts as better, and when to stop waiting for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dermalyze.errors import DataError


@dataclass
class EarlyStopping:
    """Counts epochs without improvement of one metric.

    Args:
        monitor: the metric's name in the epoch's record, such as `val/loss`.
        direction: whether smaller or larger is better.
        patience: epochs without improvement after which to stop; None never stops.
        min_delta: by how much a value must be better to count as improvement.
    """

    monitor: str
    direction: Literal["min", "max"]
    patience: int | None
    min_delta: float
    best_value: float | None = None
    best_epoch: int | None = None
    epochs_without_improvement: int = 0

    def update(self, record: dict[str, float | int | None]) -> bool:
        """Take in an epoch's record; return whether it is the best so far.

        Raises:
            DataError: the metric is not in the record, or has no finite value.
        """
        value = record.get(self.monitor)
        if value is None or not math.isfinite(value):
            valid = ", ".join(name for name, known in record.items() if known is not None)
            raise DataError(
                f"training.monitor={self.monitor}: {value} in epoch {record['epoch']}; "
                f"nothing can be selected by it. Metrics with a value here: {valid}."
            )
        gain = 0.0
        if self.best_value is not None:
            gain = self.best_value - value if self.direction == "min" else value - self.best_value
        if self.best_value is None or gain > self.min_delta:
            self.best_value, self.best_epoch = float(value), int(record["epoch"] or 0)
            self.epochs_without_improvement = 0
            return True
        self.epochs_without_improvement += 1
        return False

    @property
    def should_stop(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.epochs_without_improvement >= self.patience
