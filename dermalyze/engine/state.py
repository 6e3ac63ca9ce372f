"""Everything about a run that changes while it trains: what a resumed run needs back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.errors import CheckpointError

Record = dict[str, float | int | None]


@dataclass
class TrainState:
    """The state of a run between two optimiser steps.

    Random states are missing on purpose: order, augmentation and dropout are functions of
    (seed, epoch, step). So is the learning rate.

    Attributes:
        epoch, step: the optimiser step to do next, counted from 0; step starts anew each epoch.
        step_losses_S: mean loss of each optimiser step of this epoch (float32, on the device).
        step_correct_S: correctly classified training images of each step (int64).
        history: one record for each finished epoch.
        finished: the last epoch is over, or early stopping ended the run.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    step_losses_S: torch.Tensor
    step_correct_S: torch.Tensor
    epoch: int = 0
    step: int = 0
    history: list[Record] = field(default_factory=list)
    finished: bool = False

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.step_losses_S)

    @property
    def global_step(self) -> int:
        """Optimiser steps done since the start."""
        return self.epoch * self.steps_per_epoch + self.step

    def begin_next_epoch(self) -> None:
        """Go on to step 0 of the next epoch."""
        self.epoch += 1
        self.step = 0
        self.step_losses_S.zero_()
        self.step_correct_S.zero_()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the state under a name of its own."""
        named = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            named |= {f"optimizer/{index}/{name}": value for name, value in values.items()}
        return named | {
            "epoch/step_losses": self.step_losses_S,
            "epoch/step_correct": self.step_correct_S,
        }

    def numbers(self) -> dict[str, Any]:
        """Return the rest of the state as values that JSON keeps exactly."""
        stopping = self.stopping
        return {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "history": self.history,
            "best_value": stopping.best_value,
            "best_epoch": stopping.best_epoch,
            "epochs_without_improvement": stopping.epochs_without_improvement,
            "scaler": self.scaler.state_dict(),
            "optimizer": type(self.optimizer).__name__,
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `numbers` returned earlier.

        Raises:
            CheckpointError: the tensors are those of another model or optimiser.
        """
        try:
            self.model.load_state_dict(_below(tensors, "model/"))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint holds another model: {error}") from error
        name = type(self.optimizer).__name__
        if numbers["optimizer"] != name:
            raise CheckpointError(
                f"the checkpoint holds the state of {numbers['optimizer']}, but this run trains "
                f"with {name}"
            )
        self._restore_optimizer(_below(tensors, "optimizer/"))
        self.step_losses_S.copy_(tensors["epoch/step_losses"])
        self.step_correct_S.copy_(tensors["epoch/step_correct"])
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self.finished, self.history = numbers["finished"], list(numbers["history"])
        self.stopping.best_value = numbers["best_value"]
        self.stopping.best_epoch = numbers["best_epoch"]
        self.stopping.epochs_without_improvement = numbers["epochs_without_improvement"]
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])

    def _restore_optimizer(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Fill the optimiser's buffers, each in the memory format of its parameter.

        Fused kernels walk a parameter and its moments side by side, so a moment that came back
        contiguous beside a channels-last weight would be applied to the wrong places.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in tensors.items():
            index, _, key = name.partition("/")
            parameter = parameters[int(index)]
            if value.shape == parameter.shape:
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
