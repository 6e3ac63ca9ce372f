"""Learning rates as pure functions of time, so that there is no state to save.

A schedule covers one stage of training: steps are counted from the stage's first. One that looks
at results gets them handed in and forgets them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dermalyze.errors import ConfigError


class Schedule(Protocol):
    """(optimiser step, results so far) -> learning rate."""

    def __call__(self, step: int, costs: Sequence[float] = ()) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0.

        Args:
            step: of this stage.
            costs: what the monitored metric was after each finished epoch of this stage, turned
                so that less is better.
        """


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The stage that a schedule covers, and its linear warm-up: see `Constant`."""

    warmup_fraction: float
    peak_lr: float
    total_steps: int
    steps_per_epoch: int

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_fraction < 1:
            raise ConfigError(
                f"scheduler.warmup_fraction={self.warmup_fraction}: a part of the run in [0, 1) is "
                "needed; 0 does without warm-up."
            )
        if not 0 < self.peak_lr < math.inf:
            raise ConfigError(
                f"peak_lr={self.peak_lr}: a finite learning rate > 0 is needed; set the "
                "optimizer's."
            )
        if self.total_steps < 1 or self.steps_per_epoch < 1:
            raise ConfigError(
                f"total_steps={self.total_steps}, steps_per_epoch={self.steps_per_epoch}: a stage "
                "needs at least one optimiser step; lower training.batch_size or "
                "training.accumulate, or raise training.epochs."
            )

    def _warmed(self, rate: float, step: int) -> float:
        warmup_steps = round(self.warmup_fraction * self.total_steps)
        return rate * ((step + 1) / warmup_steps) if step < warmup_steps else rate


@dataclass(frozen=True, kw_only=True)
class Constant(_Stage):
    """The peak learning rate throughout, after a linear warm-up.

    Args:
        warmup_fraction: part of the stage's steps spent warming up, in [0, 1): during the first
            `round(warmup_fraction * total_steps)` steps the rate is multiplied by
            (step + 1) / warmup_steps, so the last of them has the full rate.
        peak_lr: the learning rate, > 0.
        total_steps: optimiser steps of the stage.
        steps_per_epoch: optimiser steps of one epoch.

    Raises:
        ConfigError: a value out of its range.
    """

    def __call__(self, step: int, costs: Sequence[float] = ()) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0."""
        return self._warmed(self.peak_lr, step)


@dataclass(frozen=True, kw_only=True)
class CosineRestarts(_Stage):
    """Cosine annealing with warm restarts, after a linear warm-up.

    eta = eta_min + (peak_lr - eta_min) (1 + cos(pi T_cur / T_i)) / 2 (Loshchilov and Hutter
    2017, "SGDR", equation 5), per step. The first period has `restart_epochs * steps_per_epoch`
    steps, rounded to whole ones; each later one is `restart_factor` times as long as the one
    before. Warm-up as in `Constant` multiplies this: it may go below eta_min, and shifts no
    restart.

    Args:
        restart_epochs: length of the first period in epochs, at least one step; None: one period
            as long as the stage, without a restart.
        restart_factor: growth of the periods, >= 1.
        eta_min: the lowest rate of a period, in [0, peak_lr].
        peak_lr: the rate at the start of each period, > 0.
        warmup_fraction, total_steps, steps_per_epoch: as in `Constant`.

    Raises:
        ConfigError: a value out of its range.
    """

    restart_epochs: float | None
    restart_factor: int
    eta_min: float

    def __post_init__(self) -> None:
        super().__post_init__()
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
        if self.restart_epochs is not None and not (
            math.isfinite(self.restart_epochs) and self._first_period >= 1
        ):
            raise ConfigError(
                f"scheduler.restart_epochs={self.restart_epochs}: a finite number of epochs of at "
                f"least one optimiser step is needed (an epoch has {self.steps_per_epoch}); null "
                "makes one period of the whole stage."
            )

    @property
    def _first_period(self) -> int:
        if self.restart_epochs is None:
            return self.total_steps
        return round(self.restart_epochs * self.steps_per_epoch)

    def __call__(self, step: int, costs: Sequence[float] = ()) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0."""
        annealed = _half_cosine(self.peak_lr, self.eta_min, self._way_in_period(step))
        return self._warmed(annealed, step)

    def _way_in_period(self, step: int) -> float:
        since_restart, period = step, self._first_period
        while since_restart >= period:
            since_restart -= period
            period *= self.restart_factor
        return since_restart / period

    def left_at_end(self) -> float:
        """Return which share of the way down to eta_min is left when the stage ends, in [0, 1).

        0 where the stage ends with a period.
        """
        way = self._way_in_period(self.total_steps)
        return _half_cosine(1.0, 0.0, way) if way else 0.0


@dataclass(frozen=True, kw_only=True)
class OneCycle(_Stage):
    """Up to the peak and down again, once, both by half a cosine.

    From peak_lr / start_divisor up to peak_lr during the first `warmup_fraction` of the steps, then
    down to peak_lr / start_divisor / end_divisor (Smith and Topin 2019, "Super-convergence", with
    cosines for its straight lines), as `torch.optim.lr_scheduler.OneCycleLR` does it, which moves
    momentum as well: here that stays the optimiser's.

    Args:
        warmup_fraction: part of the stage's steps that go up, in [0, 1).
        start_divisor: the peak over the first rate, >= 1.
        end_divisor: the first rate over the last, >= 1.
        peak_lr, total_steps, steps_per_epoch: as in `Constant`.

    Raises:
        ConfigError: a value out of its range.
    """

    start_divisor: float
    end_divisor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("start_divisor", "end_divisor"):
            value = getattr(self, name)
            if not 1 <= value < math.inf:
                raise ConfigError(
                    f"scheduler.{name}={value}: a finite number >= 1 is needed; 1 divides nothing."
                )

    def __call__(self, step: int, costs: Sequence[float] = ()) -> float:
        """Return the learning rate of optimiser step `step`, counted from 0."""
        first = self.peak_lr / self.start_divisor
        last = first / self.end_divisor
        top = self.warmup_fraction * self.total_steps - 1
        if step <= top:
            return _half_cosine(first, self.peak_lr, step / top if top else 1.0)
        return _half_cosine(self.peak_lr, last, (step - top) / (self.total_steps - 1 - top))


@dataclass(frozen=True, kw_only=True)
class Plateau(_Stage):
    """The peak, multiplied by `factor` each time the monitored metric stops getting better.

    As `torch.optim.lr_scheduler.ReduceLROnPlateau` with an absolute threshold, but as a function
    of the results so far.

    Args:
        factor: the rate is multiplied by it, in (0, 1).
        patience: epochs without improvement that are waited for; one more lowers the rate, >= 0.
        threshold: by how much a result must be better to count as improvement, >= 0.
        cooldown: epochs after each lowering in which nothing is counted, >= 0.
        min_lr: the rate goes no lower, in [0, peak_lr].
        warmup_fraction, peak_lr, total_steps, steps_per_epoch: as in `Constant`.

    Raises:
        ConfigError: a value out of its range.
    """

    factor: float
    patience: int
    threshold: float
    cooldown: int
    min_lr: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.factor < 1:
            raise ConfigError(
                f"scheduler.factor={self.factor}: a number between 0 and 1 is needed, such as 0.1."
            )
        if not 0 <= self.min_lr <= self.peak_lr:
            raise ConfigError(
                f"scheduler.min_lr={self.min_lr}: must lie between 0 and the peak learning rate "
                f"{self.peak_lr}."
            )
        for name in ("patience", "threshold", "cooldown"):
            if getattr(self, name) < 0:
                raise ConfigError(f"scheduler.{name}={getattr(self, name)}: must be at least 0.")

    def __call__(self, step: int, costs: Sequence[float] = ()) -> float:
        """Return the learning rate of optimiser step `step` after epochs of these costs."""
        rate, best = self.peak_lr, math.inf
        waited = cooling = 0
        for cost in costs:
            if cost < best - self.threshold:
                best, waited = cost, 0
            else:
                waited += 1
            if cooling:
                cooling, waited = cooling - 1, 0
            if waited > self.patience:
                rate = max(rate * self.factor, self.min_lr)
                waited, cooling = 0, self.cooldown
        return self._warmed(rate, step)


def _half_cosine(start: float, end: float, way: float) -> float:
    """Return the value `way` in [0, 1] of the way from start to end along half a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * way)) / 2
