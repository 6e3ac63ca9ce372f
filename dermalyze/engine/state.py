"""Everything about a run that changes while it trains: what a resumed run needs back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.engine.last_epochs import LastEpochs
from dermalyze.errors import CheckpointError
from dermalyze.optim.ema import WeightAverage
from dermalyze.optim.optimizer_state import restore_optimizer, saved_numbers, saved_tensors
from dermalyze.optim.stages import Stage

Record = dict[str, float | int | None]


@dataclass
class TrainState:
    """The state of a run between two optimiser steps.

    Random states are missing on purpose: order, augmentation and dropout are functions of
    (seed, epoch, step). So is the learning rate.

    Attributes:
        model: what is trained: the raw weights.
        wrapped: what makes of the model the one that training calls, once its stage has frozen
            what it freezes; itself, but for several ranks.
        stages: one after another; the one that `epoch` lies in gives the optimiser.
        ema: the moving average of the weights, which then predicts in the model's place.
        last_epochs: the plain average of the weights at the ends of the last epochs.
        epoch, step: the optimiser step to do next, counted from 0; step starts anew each epoch.
        step_losses_S: mean loss of each optimiser step of this epoch (float32, on the device).
        step_counts_S2K: training images of each step and class, and those of them that were
            classified correctly (int64).
        history: one record for each finished epoch.
        best_record: that of the best model so far.
        finished: the last epoch is over, or early stopping ended the run.
        keeps_maps: whether what a frozen backbone makes of the images is kept from epoch to epoch;
            None: not decided yet.
        training_model: the wrapped model, whose weights are those of `model`.
    """

    model: nn.Module
    wrapped: Callable[[nn.Module], nn.Module]
    stages: Sequence[Stage]
    ema: WeightAverage | None
    last_epochs: LastEpochs | None
    scaler: torch.amp.GradScaler
    stopping: EarlyStopping
    step_losses_S: torch.Tensor
    step_counts_S2K: torch.Tensor
    epoch: int = 0
    step: int = 0
    history: list[Record] = field(default_factory=list)
    best_record: Record | None = None
    finished: bool = False
    keeps_maps: bool | None = None
    stage: Stage = field(init=False)
    optimizer: torch.optim.Optimizer = field(init=False)
    training_model: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self._enter(self.stages[0])

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch."""
        return len(self.step_losses_S)

    @property
    def global_step(self) -> int:
        """Optimiser steps done since the start."""
        return self.epoch * self.steps_per_epoch + self.step

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step of this epoch, counted from 0."""
        epochs = self.epoch - self.stage.first_epoch
        return self.stage.schedule(epochs * self.steps_per_epoch + step, self._costs())

    @property
    def predictor(self) -> nn.Module:
        """The weights that are validated, selected and predict."""
        return self.model if self.ema is None else self.ema.module

    @property
    def predicts_by(self) -> str:
        """In words, which weights the predictor has."""
        return "raw" if self.ema is None else "moving average"

    def train_mode(self) -> None:
        """Put the model into training mode, but for what the stage keeps frozen."""
        self.model.train()
        if self.stage.frozen is not None:
            self.stage.frozen.eval()

    def begin_next_epoch(self, epochs: int) -> bool:
        """Go on to step 0 of the next epoch, in the stage that it lies in, or finish.

        Returns whether patience ended the run. It ends the last stage only: the weights of an
        earlier one wait for the next.

        Args:
            epochs: of the whole run.
        """
        is_out_of_patience = self.stage is self.stages[-1] and self.stopping.should_stop
        self.epoch += 1
        self.step = 0
        self.step_losses_S.zero_()
        self.step_counts_S2K.zero_()
        if self._stage_of_epoch() is not self.stage:
            self._enter(self._stage_of_epoch())
            self.stopping.epochs_without_improvement = 0
        self.finished = self.epoch >= epochs or is_out_of_patience
        return is_out_of_patience

    def _stage_of_epoch(self) -> Stage:
        return [stage for stage in self.stages if stage.first_epoch <= self.epoch][-1]

    def _enter(self, stage: Stage) -> None:
        """Free what the stage before froze, freeze what this one keeps, make its optimiser."""
        for before in self.stages:
            if before.frozen is not None:
                before.frozen.requires_grad_(requires_grad=before is not stage)
        self.stage = stage
        self.optimizer = stage.make_optimizer()
        self.training_model = self.wrapped(self.model)

    def _costs(self) -> list[float]:
        """Return the monitored metric of the finished epochs of the stage; less is better."""
        sign = 1 if self.stopping.direction == "min" else -1
        values = [record[self.stopping.monitor] for record in self.history]
        return [sign * float(value or 0) for value in values[self.stage.first_epoch :]]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the state under a name of its own."""
        named = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        named |= saved_tensors(self.optimizer)
        if self.ema is not None:
            named |= {f"ema/{name}": v for name, v in self.ema.module.state_dict().items()}
        if self.last_epochs is not None:
            average = self.last_epochs.average.state_dict()
            named |= {f"last_epochs/{name}": value for name, value in average.items()}
        return named | {
            "epoch/step_losses": self.step_losses_S,
            "epoch/step_counts": self.step_counts_S2K,
        }

    def numbers(self) -> dict[str, Any]:
        """Return the rest of the state as values that JSON keeps exactly."""
        stopping = self.stopping
        return {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "keeps_maps": self.keeps_maps,
            "history": self.history,
            "best_record": self.best_record,
            "best_value": stopping.best_value,
            "best_epoch": stopping.best_epoch,
            "epochs_without_improvement": stopping.epochs_without_improvement,
            "scaler": self.scaler.state_dict(),
            "optimizer": type(self.optimizer).__name__,
            "optimizer_numbers": saved_numbers(self.optimizer),
        }

    def restore(self, tensors: Mapping[str, torch.Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over what `tensors` and `numbers` returned earlier.

        Raises:
            CheckpointError: the tensors are those of another model or optimiser.
        """
        try:
            self.model.load_state_dict(_below(tensors, "model/"))
            if self.ema is not None:
                self.ema.module.load_state_dict(_below(tensors, "ema/"))
            if self.last_epochs is not None:
                self.last_epochs.average.load_state_dict(_below(tensors, "last_epochs/"))
        except RuntimeError as error:
            raise CheckpointError(f"the checkpoint holds another model: {error}") from error
        self.epoch, self.step = numbers["epoch"], numbers["step"]
        self._enter(self._stage_of_epoch())
        name = type(self.optimizer).__name__
        if numbers["optimizer"] != name:
            raise CheckpointError(
                f"the checkpoint holds the state of {numbers['optimizer']}, but this run trains "
                f"with {name}"
            )
        restore_optimizer(self.optimizer, tensors, numbers.get("optimizer_numbers", {}))
        self.step_losses_S.copy_(tensors["epoch/step_losses"])
        self.step_counts_S2K.copy_(tensors["epoch/step_counts"])
        self.finished, self.history = numbers["finished"], list(numbers["history"])
        self.keeps_maps = numbers.get("keeps_maps")
        self.best_record = numbers["best_record"]
        self.stopping.best_value = numbers["best_value"]
        self.stopping.best_epoch = numbers["best_epoch"]
        self.stopping.epochs_without_improvement = numbers["epochs_without_improvement"]
        if numbers["scaler"]:
            self.scaler.load_state_dict(numbers["scaler"])


def _below(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix)
    }
