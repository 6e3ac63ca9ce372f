"""Stages of a run: what is trained, by which optimiser, at which rate, from which epoch on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from dermalyze.config import raise_problems
from dermalyze.errors import ConfigError
from dermalyze.optim.parameter_groups import parameter_groups
from dermalyze.optim.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What a stage does in its own way; None takes what the run says.

    Args:
        epochs: how many, >= 1; None: what the other stage leaves of training.epochs.
        lr: peak learning rate, > 0; None: the optimizer's.
        weight_decay: >= 0; None: the optimizer's.
        layer_decay: factor in (0, 1] on the learning rate from each layer to the one below it,
            the head being the top; None: all layers learn alike.
        scheduler: made as the run's is; None: the run's scheduler.
    """

    epochs: int | None
    lr: float | None
    weight_decay: float | None
    layer_decay: float | None
    scheduler: Callable[..., Schedule] | None

    def problems(self, name: str) -> list[str]:
        """Return what is wrong, each as a line that names the key."""
        limits = {
            "epochs": (self.epochs is None or self.epochs >= 1, "at least 1 epoch"),
            "lr": (self.lr is None or self.lr > 0, "a learning rate > 0"),
            "weight_decay": (self.weight_decay is None or self.weight_decay >= 0, "at least 0"),
            "layer_decay": (self.layer_decay is None or 0 < self.layer_decay <= 1, "in (0, 1]"),
        }
        return [
            f"stages.{name}.{key}={getattr(self, key)}: {needed} is needed, or null"
            for key, (is_good, needed) in limits.items()
            if not is_good
        ]


class Stages:
    """First the head alone, then everything; either may be left out.

    While the head learns alone, the backbone keeps its weights, and its BatchNorm layers predict
    (eval mode) and keep their statistics.

    Args:
        head: the stage with a frozen backbone, or None.
        whole: the stage in which everything is trained, or None.

    Raises:
        ConfigError: no stage, or values out of their ranges; all of them are named.
    """

    def __init__(self, *, head: StageOptions | None, whole: StageOptions | None) -> None:
        self.options = {
            name: options for name, options in (("head", head), ("whole", whole)) if options
        }
        if not self.options:
            raise ConfigError("stages: both stages are null; nothing would be trained.")
        problems = [line for name, each in self.options.items() for line in each.problems(name)]
        if head is not None and head.layer_decay is not None:
            problems.append(
                f"stages.head.layer_decay={head.layer_decay}: the layers below the head are frozen "
                "in this stage; null is needed"
            )
        raise_problems(problems)

    def lengths(self, epochs: int) -> dict[str, int]:
        """Return the epochs of each stage.

        Args:
            epochs: of the whole run.

        Raises:
            ConfigError: the stages' epochs do not add up to those of the run.
        """
        given = {name: each.epochs for name, each in self.options.items()}
        left = epochs - sum(number or 0 for number in given.values())
        open_ended = [name for name, number in given.items() if number is None]
        # Each open-ended stage needs an epoch of its own; of two, nobody knows how to share.
        if len(open_ended) > 1 or (left != 0 and not open_ended) or left < len(open_ended):
            shown = ", ".join(f"stages.{name}.epochs={number}" for name, number in given.items())
            raise ConfigError(
                f"training.epochs={epochs} with {shown}: the stages must share out the run's "
                "epochs. Let them add up, or set one of them to null: it gets what is left."
            )
        return {name: left if number is None else number for name, number in given.items()}

    def schedules(
        self,
        make_schedule: Callable[..., Schedule],
        *,
        lr: float,
        epochs: int,
        steps_per_epoch: int,
    ) -> dict[str, Schedule]:
        """Return the learning rates of each stage.

        Args:
            make_schedule: of a stage without a scheduler of its own; takes `peak_lr`,
                `steps_per_epoch` and `total_steps`.
            lr: peak of a stage without one of its own.
            epochs: of the whole run.
            steps_per_epoch: optimiser steps.

        Raises:
            ConfigError: the stages' epochs do not add up, or a schedule refuses its values.
        """
        return {
            name: (self.options[name].scheduler or make_schedule)(
                peak_lr=lr if self.options[name].lr is None else self.options[name].lr,
                steps_per_epoch=steps_per_epoch,
                total_steps=length * steps_per_epoch,
            )
            for name, length in self.lengths(epochs).items()
        }


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs with one optimiser.

    Attributes:
        first_epoch: counted from 0 over the whole run.
        schedule: learning rate of the stage's own steps.
        make_optimizer: a fresh optimiser for what is then trainable.
        frozen: what keeps its weights and predicts as in evaluation; None: nothing.
    """

    name: str
    first_epoch: int
    epochs: int
    schedule: Schedule
    make_optimizer: Callable[[], torch.optim.Optimizer]
    frozen: nn.Module | None


def stages_of_run(
    stages: Stages,
    *,
    model: nn.Module,
    make_optimizer: partial[torch.optim.Optimizer],
    make_schedule: Callable[..., Schedule],
    epochs: int,
    steps_per_epoch: int,
) -> list[Stage]:
    """Return the stages in their order.

    Args:
        stages: what the config says.
        model: with a `backbone` where the head is trained alone.
        make_optimizer: takes parameter groups; its keywords hold `lr` and `weight_decay`.
        make_schedule: takes `peak_lr`, `steps_per_epoch` and `total_steps`.
        epochs: of the whole run.
        steps_per_epoch: optimiser steps.

    Raises:
        ConfigError: the stages' epochs do not add up, or a schedule refuses its values.
    """
    made: list[Stage] = []
    usual: dict[str, Any] = make_optimizer.keywords
    schedules = stages.schedules(
        make_schedule, lr=usual["lr"], epochs=epochs, steps_per_epoch=steps_per_epoch
    )
    for name, length in stages.lengths(epochs).items():
        options = stages.options[name]
        lr = usual["lr"] if options.lr is None else options.lr
        decay = usual["weight_decay"] if options.weight_decay is None else options.weight_decay

        def optimizer(
            lr: float = lr, decay: float = decay, layer_decay: float | None = options.layer_decay
        ) -> torch.optim.Optimizer:
            groups = parameter_groups(model, weight_decay=decay, layer_decay=layer_decay)
            return make_optimizer(groups, lr=lr, weight_decay=decay)

        made.append(
            Stage(
                name=name,
                first_epoch=sum(stage.epochs for stage in made),
                epochs=length,
                schedule=schedules[name],
                make_optimizer=optimizer,
                frozen=getattr(model, "backbone", None) if name == "head" else None,
            )
        )
    return made
