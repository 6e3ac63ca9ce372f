"""Pixels to probabilities: the ONE forward path of validation, evaluation and prediction."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.errors import DataError


def predict_probabilities(
    model: nn.Module,
    store: ImageStore,
    rows_N: np.ndarray,
    *,
    batch_size: int,
    precision: Precision,
) -> np.ndarray:
    """Return probs_NK (float64, rows sum to 1) for rows of the store, in their order.

    The model predicts in eval mode and is given back in the mode it came in.

    Raises:
        DataError: a probability is not finite; it names the images. Such values are never ranked.
    """
    was_training = model.training
    model.eval()
    parts = []
    batches = [rows_N[start : start + batch_size] for start in range(0, len(rows_N), batch_size)]
    shown = tqdm(batches, desc="predict", unit="batch", leave=False, disable=None, delay=2)
    with torch.inference_mode(), precision.autocast(), store.reading_ahead(batches):
        for rows_B in shown:
            logits_BK = model(*store.inputs(rows_B))
            # The softmax is taken in float64: its sums and tiny probabilities stay exact enough
            # for calibration and for comparison between machines. MPS has no float64.
            parts.append(logits_BK.float())
    model.train(was_training)
    probs_NK = torch.cat(parts).cpu().double().softmax(dim=1).numpy()
    bad = np.flatnonzero(~np.isfinite(probs_NK).all(axis=1))
    if len(bad):
        names = ", ".join(store.image_ids[rows_N[position]] for position in bad[:5])
        raise DataError(
            f"{len(bad)} of {len(rows_N)} images got probabilities that are not finite (first: "
            f"{names}). The weights are broken: train again with a lower optimizer.lr, or with "
            "training.amp=off."
        )
    return probs_NK
