"""Learning rates as pure functions of the optimiser step, so that there is no state to save."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dermalyze.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The peak learning rate throughout, after a linear warm-up.

    During the first `round(warmup_fraction * total_steps)` steps the rate is multiplied by
    (step + 1) / warmup_steps, so the last of them has the full rate.

    Args:
        warmup_fraction: part of all steps spent warming up, in [0, 1).
        peak_lr: the learning rate, > 0.
        total_steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch.

    Raises:
        ConfigError: a value out of its range.
    """

    warmup_fraction: float
    peak_lr: float
    total_steps: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        _check_run(self.warmup_fraction, self.peak_lr, self.total_steps, self.steps_per_epoch)

    def __call__(self, step: int) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0."""
        return self.peak_lr * _warmup(step, self.warmup_fraction, self.total_steps)


@dataclass(frozen=True, kw_only=True)
class CosineRestarts:
    """Cosine annealing with warm restarts, after a linear warm-up.

    eta = eta_min + (peak_lr - eta_min) (1 + cos(pi T_cur / T_i)) / 2 (Loshchilov and Hutter
    2017, "SGDR", equation 5), per step. The first period has `restart_epochs * steps_per_epoch`
    steps, rounded to whole ones; each later one is `restart_factor` times as long as the one
    before. Warm-up as in `Constant` multiplies this: it may go below eta_min, and shifts no
    restart.

    Args:
        restart_epochs: length of the first period in epochs, at least one step.
        restart_factor: growth of the periods, >= 1.
        eta_min: the lowest rate of a period, in [0, peak_lr].
        warmup_fraction: part of all steps spent warming up, in [0, 1).
        peak_lr: the rate at the start of each period, > 0.
        total_steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch.

    Raises:
        ConfigError: a value out of its range.
    """

    restart_epochs: float
    restart_factor: int
    eta_min: float
    warmup_fraction: float
    peak_lr: float
    total_steps: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        _check_run(self.warmup_fraction, self.peak_lr, self.total_steps, self.steps_per_epoch)
        if not 0 <= self.eta_min <= self.peak_lr:
            raise ConfigError(
                f"scheduler.eta_min={self.eta_min}: must lie between 0 and the peak learning rate "
                f"{self.peak_lr}; lower eta_min or raise the optimizer's learning rate."
            )
        if self.restart_factor < 1:
            raise ConfigError(
                f"scheduler.restart_factor={self.restart_factor}: must be at least 1; 1 keeps all "
                "periods equally long."
            )
        if not (math.isfinite(self.restart_epochs) and self._first_period >= 1):
            raise ConfigError(
                f"scheduler.restart_epochs={self.restart_epochs}: a finite number of epochs of at "
                f"least one optimiser step is needed (an epoch has {self.steps_per_epoch}); for "
                "one period over the whole run give the run's number of epochs."
            )

    @property
    def _first_period(self) -> int:
        return round(self.restart_epochs * self.steps_per_epoch)

    def __call__(self, step: int) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0."""
        since_restart, period = step, self._first_period
        while since_restart >= period:
            since_restart -= period
            period *= self.restart_factor
        cosine = (1 + math.cos(math.pi * since_restart / period)) / 2
        annealed = self.eta_min + (self.peak_lr - self.eta_min) * cosine
        return annealed * _warmup(step, self.warmup_fraction, self.total_steps)


def _warmup(step: int, warmup_fraction: float, total_steps: int) -> float:
    warmup_steps = round(warmup_fraction * total_steps)
    return (step + 1) / warmup_steps if step < warmup_steps else 1.0


def _check_run(
    warmup_fraction: float, peak_lr: float, total_steps: int, steps_per_epoch: int
) -> None:
    if not 0 <= warmup_fraction < 1:
        raise ConfigError(
            f"scheduler.warmup_fraction={warmup_fraction}: a part of the run in [0, 1) is needed; "
            "0 does without warm-up."
        )
    if not 0 < peak_lr < math.inf:
        raise ConfigError(
            f"peak_lr={peak_lr}: a finite learning rate > 0 is needed; set the optimizer's."
        )
    if total_steps < 1 or steps_per_epoch < 1:
        raise ConfigError(
            f"total_steps={total_steps}, steps_per_epoch={steps_per_epoch}: a run needs at least "
            "one optimiser step; lower training.batch_size or training.accumulate, or raise "
            "training.epochs."
        )
