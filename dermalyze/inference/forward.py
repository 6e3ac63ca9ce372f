"""Pixels to probabilities: the ONE forward path of validation, evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
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

    Args:
        batch_size: pictures of a batch; see `images_at_once`.

    Raises:
        DataError: a probability is not finite; it names the images. Such values are never ranked.
    """
    step = images_at_once(batch_size, views)
    batches = [rows_N[start : start + step] for start in range(0, len(rows_N), step)]
    shown = tqdm(batches, desc="predict", unit="batch", leave=False, disable=None, delay=2)
    with store.reading_ahead(batches):
        inputs = (store.inputs(rows_B) for rows_B in shown)
        probs_VNK = view_probabilities(model, inputs, views=views, precision=precision)
    refuse_not_finite(probs_VNK, [store.image_ids[row] for row in rows_N])
    return probs_VNK


def images_at_once(batch_size: int, views: Views) -> int:
    """Return how many images, at least one, are in a batch of so many pictures: all their views."""
    return max(1, batch_size // len(views))


def view_probabilities(
    model: nn.Module, batches: Iterable[Sequence[Tensor]], *, views: Views, precision: Precision
) -> np.ndarray:
    """Return probs_VNK (float64) of the views of all images of the batches, finite or not.

    The model predicts in eval mode and is given back in the mode it came in.

    Args:
        model: called with pictures_PCHW, RGB in [0, 255] (uint8, or float32 where a view
            interpolates), and metadata_PM where there is any; returns logits_PK.
        batches: each images_BCHW (uint8, on the device), and metadata_BM where there is any. At
            least one.
    """
    was_training = model.training
    model.eval()
    parts = []
    with torch.inference_mode(), precision.autocast():
        for images_BCHW, *metadata in batches:
            repeated = [known_BM.repeat(len(views), 1) for known_BM in metadata]
            logits_PK = model(views.of(images_BCHW), *repeated)
            # The softmax is taken in float64: its sums and tiny probabilities stay exact enough
            # for calibration and for comparison between machines. MPS has no float64.
            parts.append(logits_PK.float().unflatten(0, (len(views), -1)))
    model.train(was_training)
    probs_VNK: np.ndarray = torch.cat(parts, dim=1).cpu().double().softmax(dim=2).numpy()
    return probs_VNK


def refuse_not_finite(probs_XNK: np.ndarray, names_N: Sequence[str]) -> None:
    """Refuse to rank what cannot be ranked.

    Args:
        probs_XNK: of N images, with any axes before.
        names_N: of the images, for the message.

    Raises:
        DataError: a probability is not finite; it names the images.
    """
    finite_XN = np.isfinite(probs_XNK).all(axis=-1)
    bad = np.flatnonzero(~finite_XN.reshape(-1, finite_XN.shape[-1]).all(axis=0))
    if len(bad):
        names = ", ".join(names_N[position] for position in bad[:5])
        raise DataError(
            f"{len(bad)} of {len(names_N)} images got probabilities that are not finite (first: "
            f"{names}). The weights are broken: train again with a lower optimizer.lr, or with "
            "training.amp=off."
        )
