"""The average of the weights at the ends of the last epochs, which lies in a flatter place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn


class LastEpochs:
    """Stochastic weight averaging (Izmailov et al. 2018, algorithm 1) over the last epochs.

    Args:
        model: what is averaged; copied.
        epochs: how many epochs at the end, >= 1.
        total_epochs: of the whole run.
    """

    def __init__(self, model: nn.Module, *, epochs: int, total_epochs: int) -> None:
        self.average = AveragedModel(model)
        self.first_epoch = total_epochs - epochs
        self.last_epoch = total_epochs - 1

    def take_in(self, model: nn.Module, epoch: int) -> None:
        """Add the weights at the end of an epoch, counted from 0, if it is one of the last."""
        if epoch >= self.first_epoch:
            self.average.update_parameters(model)

    def model(self, batches: Iterable[tuple[Tensor, ...]]) -> nn.Module:
        """Return the averaged model with BatchNorm statistics of its own.

        The statistics of the epochs belong to their weights, not to the average, so they are
        taken anew over one epoch's training batches (the model's inputs).
        """
        model: nn.Module = self.average.module
        with torch.no_grad():
            update_bn(({"inputs": inputs} for inputs in batches), _Unpacking(model))
        return model.eval()


class _Unpacking(nn.Module):
    """A model that takes all its inputs at once; torch's `update_bn` passes on one thing only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, tuple[Tensor, ...]]) -> Tensor:
        logits_BK: Tensor = self.model(*batch["inputs"])
        return logits_BK
