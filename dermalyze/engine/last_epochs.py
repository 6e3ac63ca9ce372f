"""The average of the weights at the ends of the last epochs, which lies in a flatter place."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel


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

    def model(self, trained: nn.Module, batches: Iterable[tuple[Tensor, ...]]) -> nn.Module:
        """Return the averaged model with BatchNorm statistics of its own.

        The statistics of the epochs belong to their weights, not to the average, so they are
        taken anew over one epoch's training batches. Layers that a stage keeps frozen have the same
        weights throughout, and keep their statistics; torch's `update_bn` would take all anew.

        Args:
            trained: the model as its stage trains it, each layer in training mode or not.
            batches: what it is given, batch by batch. Dropout draws from torch's generators, which
                are seeded before each of them.
        """
        model: nn.Module = self.average.module
        for layer, other in zip(model.modules(), trained.modules(), strict=True):
            layer.training = other.training
        norms = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
        learning = [layer for layer in norms if layer.training and layer.track_running_stats]
        momenta = [layer.momentum for layer in learning]
        for layer in learning:
            layer.reset_running_stats()
            layer.momentum = None  # the plain mean over the batches
        with torch.no_grad():
            for inputs in batches if learning else ():
                model(*inputs)
        for layer, momentum in zip(learning, momenta, strict=True):
            layer.momentum = momentum
        return model.eval()
