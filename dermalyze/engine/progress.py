"""What the loop looks at while it trains: the mean loss, whether numbers are sound, what to say."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from dermalyze.engine.state import Record, TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import DataError

logger = logging.getLogger(__name__)


class NonFiniteLossError(DataError):
    """The loss or a weight was infinite or not a number; the last good checkpoint is intact."""


def mean_loss(state: TrainState, windows: list[list[np.ndarray]]) -> float:
    """Return the mean training loss an image, over the steps done in this epoch."""
    images_S = torch.tensor([sum(len(rows) for rows in window) for window in windows[: state.step]])
    losses_S = state.step_losses_S[: state.step].cpu().double()
    return float((losses_S * images_S).sum() / images_S.sum())


def training_accuracies(state: TrainState) -> Record:
    """Return accuracy and balanced accuracy of the epoch's training images, as the model saw them.

    Balanced accuracy is the mean over the classes that the epoch had images of. Both are of
    augmented images and of weights that change meanwhile.
    """
    images_K, right_K = state.step_counts_S2K.sum(dim=0).cpu().double()
    present_K = images_K > 0
    return {
        "train/accuracy": float(right_K.sum() / images_K.sum()),
        "train/balanced_accuracy": float((right_K[present_K] / images_K[present_K]).mean()),
    }


def refuse_non_finite(
    state: TrainState, windows: list[list[np.ndarray]], training_step: TrainingStep
) -> None:
    """Stop the run if a loss of this epoch, or a weight, is infinite or not a number.

    Raises:
        NonFiniteLossError: names the step and its images.
    """
    finite_S = torch.isfinite(state.step_losses_S[: state.step]).cpu()
    if not bool(finite_S.all()):
        step = int((~finite_S).nonzero()[0])
        what = f"the loss became {float(state.step_losses_S[step])}"
    elif not bool(torch.isfinite(nn.utils.get_total_norm(state.model.parameters()))):
        # A finite loss can have a gradient that is not. The next loss would tell, but by then
        # the broken weights may be saved.
        step, what = state.step - 1, "the weights became infinite or not a number"
    else:
        return
    names = [training_step.store.image_ids[row] for rows in windows[step] for row in rows]
    raise NonFiniteLossError(
        f"{what} in epoch {state.epoch + 1}, step {step + 1} (images {', '.join(names)}). Nothing "
        "of it was saved. Resumed, the run would come to the same. Begin a new one with a lower "
        "optimizer.lr, training.grad_clip=1.0 or training.amp=off."
    )


def report(record: Record, epochs: int, improved: bool) -> None:
    """Say an epoch's results in one line."""

    def shown(name: str, digits: int = 4) -> str:
        value = record.get(name)
        return "n/a" if value is None else f"{value:.{digits}f}"

    logger.info(
        "epoch %d/%d  train loss %s  val loss %s  balanced accuracy %s  macro F1 %s  macro AUC %s"
        "  %s images/s%s",
        record["epoch"],
        epochs,
        shown("train/loss"),
        shown("val/loss"),
        shown("val/balanced_accuracy"),
        shown("val/macro_f1"),
        shown("val/macro_auc"),
        shown("images_per_second", 0),
        "  (best)" if improved else "",
    )
