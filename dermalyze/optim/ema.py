"""The moving average of the weights, which predicts better than the weights of any one step."""

from __future__ import annotations

import torch
from timm.utils import ModelEmaV3
from torch import nn

from dermalyze.errors import ConfigError


class WeightAverage(ModelEmaV3):  # type: ignore[misc]
    """Exponential moving average of parameters and buffers, with a warm-up of its decay.

    After update n, counted from 0: average = d average + (1 - d) weights with
    d = min(decay, (1 + n) / (10 + n)), as TensorFlow's `ExponentialMovingAverage` does it: a
    decay of 0.9999 looks back over 10,000 steps, and without the warm-up a short run would
    average mostly its random start. The warm-up looks back over a ninth of the updates so far
    and ends after 9 / (1 - decay) of them, 90,000 for 0.9999 and 9,000 for 0.999: shorter runs
    are alike for all decays from there on. Counters of BatchNorm are copied.

    timm looks up both state dicts in each update, which takes longer than to average a small
    network on the CPU. Here tensors are paired once, in a model's first update, and anew where its
    first one has moved: nothing else puts others in their places (`load_state_dict` writes into
    them). Of timm's ways there is one: float32, averaged where the weights are.

    Args:
        model: what to average; copied.
        decay: in (0, 1).

    Raises:
        ConfigError: the decay is out of its range.
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(
                f"ema.decay={decay}: a number between 0 and 1 is needed, such as 0.9999; ema=off "
                "does without the average."
            )
        super().__init__(model, decay=decay)
        self.module.requires_grad_(requires_grad=False)
        self._pairs: Pairs | None = None

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay of update `step`, counted from 0."""
        if step is None:
            raise ValueError("the number of the update is needed")
        return float(min(self.decay, (1 + step) / (10 + step)))

    def apply_update_(self, model: nn.Module, decay: float) -> None:
        """Move the average towards the weights by 1 - decay of what lies between them."""
        if self._pairs is None or not self._pairs.still_of(model):
            self._pairs = Pairs(model, self.module)
        pairs = self._pairs
        torch._foreach_lerp_(pairs.averages, pairs.weights, weight=1 - decay)
        if pairs.counters:
            torch._foreach_copy_(pairs.counters, pairs.counted)


class Pairs:
    """The tensors of a model and of its average, each with its own: numbers, and counters."""

    def __init__(self, model: nn.Module, average: nn.Module) -> None:
        self.averages, self.counters = by_kind(average)
        self.weights, self.counted = by_kind(model)

    def still_of(self, model: nn.Module) -> bool:
        """Return whether the model's first tensor lies where it did."""
        return next(model.parameters()).data_ptr() == self.weights[0].data_ptr()


def by_kind(model: nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return what a state dict holds: tensors of floating point, and others."""
    tensors = list(model.state_dict().values())
    floating = [tensor for tensor in tensors if tensor.is_floating_point()]
    return floating, [tensor for tensor in tensors if not tensor.is_floating_point()]


def average_of(*, model: nn.Module, decay: float | None) -> WeightAverage | None:
    """Return the moving average that begins with this model; None where `decay` is None."""
    return None if decay is None else WeightAverage(model, decay=decay)
