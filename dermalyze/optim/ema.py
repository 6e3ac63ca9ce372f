"""The moving average of the weights, which predicts better than the weights of any one step."""

from __future__ import annotations

from timm.utils import ModelEmaV3
from torch import nn

from dermalyze.errors import ConfigError


class WeightAverage(ModelEmaV3):  # type: ignore[misc]
    """Exponential moving average of parameters and buffers, with a warm-up of its decay.

    After update n, counted from 0: average = d average + (1 - d) weights with
    d = min(decay, (1 + n) / (10 + n)), as TensorFlow's `ExponentialMovingAverage` does it: a
    decay of 0.9999 looks back over 10,000 steps, and without the warm-up a short run would
    average mostly its random start. Counters of BatchNorm are copied.

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

    def get_decay(self, step: int | None = None) -> float:
        """Return the decay of update `step`, counted from 0."""
        if step is None:
            raise ValueError("the number of the update is needed")
        return float(min(self.decay, (1 + step) / (10 + step)))


def average_of(*, model: nn.Module, decay: float | None) -> WeightAverage | None:
    """Return the moving average that begins with this model; None where `decay` is None."""
    return None if decay is None else WeightAverage(model, decay=decay)
