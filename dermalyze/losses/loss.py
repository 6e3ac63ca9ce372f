"""What every loss is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Loss(nn.Module, ABC):
    """A scalar that training makes small: `(logits_BK, target_BK) -> mean over the batch`.

    Targets are soft: a row of target_BK is >= 0 and sums to 1, so that mixed images and smoothed
    labels need no loss of their own. The sum over the images is divided by B, whatever their
    weights, so that micro-batches add up to the large batch.

    What the run's data say (`class_counts`) is passed when a loss is made; what depends on time
    comes from `begin_epoch`.
    """

    @abstractmethod
    def forward(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        """Return the scalar loss; rows of target_BK sum to 1. The sum is divided by B."""

    def begin_epoch(self, epoch: int) -> None:
        """Become the loss of an epoch, counted from 0; a loss just made is that of epoch 0.

        Called before an epoch's first step, and again after resuming within one: what the loss
        becomes may depend on `epoch` alone, or a resumed run would be another run.
        """

    @staticmethod
    @abstractmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        """Return the setting that corrects for the class frequencies, such as `loss.tau=1.0`.

        None where every image counts the same whatever its class. Known from the config alone, so
        that two corrections are refused before any data is read.

        Args:
            options: the loss's node of the config: its constructor's arguments by name.
        """
