"""Pixels to probabilities: the ONE forward path of validation, evaluation and prediction."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.errors import DataError
from dermalyze.inference.views import AS_THEY_ARE, Views


def predict_probabilities(
    model: nn.Module,
    store: ImageStore,
    rows_N: np.ndarray,
    *,
    batch_size: int,
    precision: Precision,
) -> np.ndarray:
    """Return probs_NK (float64, rows sum to 1) for rows of the store as they are, in their order.

    See `predict_views`.
    """
    probs_1NK = predict_views(
        model, store, rows_N, views=AS_THEY_ARE, batch_size=batch_size, precision=precision
    )
    only_NK: np.ndarray = probs_1NK[0]
    return only_NK


def predict_views(
    model: nn.Module,
    store: ImageStore,
    rows_N: np.ndarray,
    *,
    views: Views,
    batch_size: int,
    precision: Precision,
) -> np.ndarray:
    """Return probs_VNK (float64, rows sum to 1) of the views of rows of the store, in their order.

    The model predicts in eval mode and is given back in the mode it came in.

    Args:
        batch_size: pictures of a batch. All views of an image are in one, so that a batch has
            `batch_size` // V images, but at least one.

    Raises:
        DataError: a probability is not finite; it names the images. Such values are never ranked.
    """
    was_training = model.training
    model.eval()
    parts = []
    step = max(1, batch_size // len(views))
    batches = [rows_N[start : start + step] for start in range(0, len(rows_N), step)]
    shown = tqdm(batches, desc="predict", unit="batch", leave=False, disable=None, delay=2)
    with torch.inference_mode(), precision.autocast(), store.reading_ahead(batches):
        for rows_B in shown:
            images_BCHW, *metadata = store.inputs(rows_B)
            repeated = [known_BM.repeat(len(views), 1) for known_BM in metadata]
            logits_PK = model(views.of(images_BCHW), *repeated)
            # The softmax is taken in float64: its sums and tiny probabilities stay exact enough
            # for calibration and for comparison between machines. MPS has no float64.
            parts.append(logits_PK.float().unflatten(0, (len(views), -1)))
    model.train(was_training)
    probs_VNK: np.ndarray = torch.cat(parts, dim=1).cpu().double().softmax(dim=2).numpy()
    bad = np.flatnonzero(~np.isfinite(probs_VNK).all(axis=(0, 2)))
    if len(bad):
        names = ", ".join(store.image_ids[rows_N[position]] for position in bad[:5])
        raise DataError(
            f"{len(bad)} of {len(rows_N)} images got probabilities that are not finite (first: "
            f"{names}). The weights are broken: train again with a lower optimizer.lr, or with "
            "training.amp=off."
        )
    return probs_VNK
