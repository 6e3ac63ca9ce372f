"""What a frozen backbone makes of images that never change, computed once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore, machine_memory

logger = logging.getLogger(__name__)

IMAGES_AT_ONCE = 64  # always cut in the same way, so that a resumed run has the same maps


class FrozenMaps:
    """The feature maps of a training part, in host memory.

    Attributes:
        classify: the rest of the model: (features_BCHW, metadata_BM if any) -> logits_BK.
    """

    def __init__(
        self, *, maps_NCHW: Tensor, rows_N: np.ndarray, model: Any, store: ImageStore
    ) -> None:
        self.classify: Callable[..., Tensor] = model.classify
        self._maps_NCHW = maps_NCHW
        self._store = store
        self._position_of = np.full(len(store), -1)
        self._position_of[rows_N] = np.arange(len(rows_N))

    def inputs(self, rows_B: np.ndarray) -> tuple[Tensor, ...]:
        """Return what `classify` is called with, for rows of the store."""
        maps_BCHW = self._maps_NCHW[torch.from_numpy(self._position_of[rows_B])]
        return maps_BCHW.to(self._store.device), *self._store.metadata(rows_B)


def maps_if_they_fit(
    model: nn.Module, store: ImageStore, rows_N: np.ndarray, *, precision: Precision
) -> FrozenMaps | None:
    """Return the maps of rows of the store; None, and say so, where memory is too small for them.

    They may take a quarter of the machine's memory. How much of it is free is not asked: a run that
    is resumed while others run beside it would decide otherwise.

    Args:
        model: with `feature_map` and `classify`; its backbone predicts as in evaluation.
        store: the images, at the size that the model sees.
        rows_N: in the order in which the maps are kept.
        precision: number format of the forward pass, and so of the maps.
    """
    backbone: Any = model
    was_training = model.training
    model.eval()
    maps_NCHW: Tensor | None = None
    starts = range(0, len(rows_N), IMAGES_AT_ONCE)
    with torch.no_grad(), precision.autocast():
        for start in tqdm(starts, desc="frozen maps", unit="batch", leave=False, disable=None):
            rows_B = rows_N[start : start + IMAGES_AT_ONCE]
            maps_BCHW = backbone.feature_map(store.batch(rows_B)).cpu()
            if maps_NCHW is None:
                needed = maps_BCHW[0].nbytes * len(rows_N)
                memory = machine_memory()
                if needed > memory // 4:
                    logger.info(
                        "the frozen backbone's maps need %.1f GiB, more than a quarter of the "
                        "machine's %.1f; they are computed anew in every epoch",
                        needed / 2**30,
                        memory / 2**30,
                    )
                    break
                maps_NCHW = maps_BCHW.new_empty((len(rows_N), *maps_BCHW.shape[1:]))
            maps_NCHW[start : start + len(rows_B)] = maps_BCHW
    model.train(was_training)
    if maps_NCHW is None:
        return None
    logger.info("the frozen backbone has seen %d images; epochs now train on its maps", len(rows_N))
    return FrozenMaps(maps_NCHW=maps_NCHW, rows_N=rows_N, model=model, store=store)
