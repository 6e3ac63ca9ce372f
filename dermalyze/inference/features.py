"""What a model has seen of an image before it decides: its feature map, averaged over positions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dermalyze.models.classifier import Classifier


class Features:
    """Gathers features_NF of the first of the V views of each image that a model predicts.

    A forward hook on the backbone reads them where they pass anyway, so that probabilities come by
    the one forward path and images go through the network once.

    Args:
        views: V, of which each batch holds all of the first view, then all of the second, ...
    """

    def __init__(self, *, views: int) -> None:
        self._views = views
        self._parts: list[Tensor] = []

    @contextmanager
    def gathered_from(self, model: nn.Module) -> Iterator[None]:
        """Within this context, gather. Of a model that is no `Classifier` there is no map."""
        if not isinstance(model, Classifier):
            yield
            return
        handle = model.backbone.register_forward_hook(self._take)
        try:
            yield
        finally:
            handle.remove()

    def array(self) -> npt.NDArray[np.float32] | None:
        """Return features_NF in the order in which the images went through; None without a map."""
        if not self._parts:
            return None
        features_NF: npt.NDArray[np.float32] = torch.cat(self._parts).cpu().numpy()
        return features_NF

    def _take(self, backbone: nn.Module, inputs: Any, features_PCHW: Tensor) -> None:
        first_BCHW = features_PCHW[: len(features_PCHW) // self._views]
        self._parts.append(first_BCHW.float().mean(dim=(2, 3)))
