"""The training loop, plain and whole: train, validate, record, save, stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from torch import nn
from tqdm import tqdm

from dermalyze.data.batches import micro_batches
from dermalyze.data.samplers import Sampler
from dermalyze.distributed import Ranks
from dermalyze.engine.interruption import Interruption
from dermalyze.engine.progress import (
    mean_loss,
    refuse_non_finite,
    report,
    training_accuracies,
)
from dermalyze.engine.state import Record, TrainState
from dermalyze.engine.step import TrainingStep

logger = logging.getLogger(__name__)


class Checkpoints(Protocol):
    """Where states and best models are kept."""

    def save_latest(self, state: TrainState) -> None:
        """Keep everything that resuming needs."""

    def save_best(self, state: TrainState, model: nn.Module, weights: str) -> None:
        """Keep the model to predict with, of the epoch whose record is the state's best."""


def epoch_windows(
    order_N: np.ndarray, *, batch_size: int, accumulate: int
) -> list[list[np.ndarray]]:
    """Cut an epoch's order into windows of micro-batches, one window an optimiser step."""
    batches = micro_batches(order_N, batch_size)
    return [batches[start : start + accumulate] for start in range(0, len(batches), accumulate)]


def fit(
    state: TrainState,
    *,
    training_step: TrainingStep,
    train_rows_N: np.ndarray,
    sampler: Sampler,
    validate: Callable[[nn.Module], Record],
    checkpoints: Checkpoints,
    sinks: Sequence[Callable[[Record], None]],
    interruption: Interruption,
    epochs: int,
    batch_size: int,
    accumulate: int,
    seed: int,
    check_every_steps: int,
    checkpoint_every_steps: int | None,
) -> None:
    """Train from where `state` stands until the last epoch or until early stopping.

    Args:
        state: changed in place.
        train_rows_N: rows of the store to train on.
        sampler: the order of an epoch as a function of (seed, epoch).
        validate: model -> the metrics of an epoch's record, named `val/...`.
        sinks: each takes a finished epoch's record.
        interruption: asked after each step whether to save and stop; by several ranks together,
            each time the loss is read back.
        check_every_steps: how often the loss is read back, for the progress bar and to find out
            whether it is still finite.
        checkpoint_every_steps: save within epochs too, every so many optimiser steps.

    Raises:
        NonFiniteLossError: names the step and its images.
        Interrupted: after the state was saved.
    """
    labels_N = training_step.labels_N[train_rows_N]
    ranks = training_step.ranks

    def windows_of(epoch: int) -> list[list[np.ndarray]]:
        order = train_rows_N[sampler.order(labels_N, seed=seed, epoch=epoch)]
        return epoch_windows(order, batch_size=batch_size, accumulate=accumulate)

    while not state.finished:
        windows = windows_of(state.epoch)
        started, first_step = time.monotonic(), state.step
        training_step.begin_epoch(state, train_rows_N)
        state.train_mode()
        upcoming = training_step.rows_to_read(windows[first_step:])
        with (
            training_step.store.reading_ahead(upcoming),
            tqdm(
                total=len(windows),
                initial=state.step,
                desc=f"epoch {state.epoch + 1}/{epochs}",
                unit="step",
                leave=False,
                disable=None if ranks.is_writer else True,  # None: where nobody looks at a terminal
            ) as progress,
        ):
            while state.step < len(windows):
                training_step(state, windows[state.step], state.step * accumulate)
                state.step += 1
                progress.update()
                saving = bool(
                    checkpoint_every_steps and state.global_step % checkpoint_every_steps == 0
                )
                checking = saving or state.step % check_every_steps == 0
                # Asked once: a signal between saving and stopping waits for the next step.
                asked_to_stop = _asked_to_stop(interruption, ranks, checking=checking)
                if checking or asked_to_stop:
                    refuse_non_finite(state, windows, training_step)
                    progress.set_postfix(loss=f"{mean_loss(state, windows):.4f}")
                if saving or asked_to_stop:
                    checkpoints.save_latest(state)
                if asked_to_stop:
                    interruption.stop_if_requested()
        refuse_non_finite(state, windows, training_step)
        seconds = time.monotonic() - started
        images = sum(len(rows) for window in windows[first_step:] for rows in window)

        record: Record = {
            "epoch": state.epoch + 1,
            "train/loss": mean_loss(state, windows),
            **training_accuracies(state),
            **validate(state.predictor),
            "lr": state.learning_rate(state.step - 1),
            "images_per_second": images / seconds if images else None,
        }
        improved = _keep_if_best(state, record, state.predictor, state.predicts_by, checkpoints)
        if state.last_epochs is not None:
            state.last_epochs.take_in(state.model, state.epoch)
            if state.epoch == state.last_epochs.last_epoch:
                state.train_mode()
                inputs = training_step.inputs(state.epoch, windows)
                model = state.last_epochs.model(state.model, inputs)
                metrics = validate(model)
                other = {**record, **metrics}
                improved |= _keep_if_best(state, other, model, "average of epochs", checkpoints)
                record |= {f"average_of_epochs/{name}": value for name, value in metrics.items()}
        state.history.append(record)
        out_of_patience = state.begin_next_epoch(epochs)
        for sink in sinks:
            sink(record)
        checkpoints.save_latest(state)
        report(record, epochs, improved)
        if out_of_patience and state.epoch < epochs:
            logger.info(
                "stopped early: %s has not improved for %d epochs",
                state.stopping.monitor,
                state.stopping.epochs_without_improvement,
            )
        # A finished run has nothing left to stop.
        if not state.finished and _asked_to_stop(interruption, ranks, checking=True):
            interruption.stop_if_requested()


def _asked_to_stop(interruption: Interruption, ranks: Ranks, *, checking: bool) -> bool:
    """Return whether any rank was asked to stop; all ranks get the same answer.

    Asking each other takes a moment in which the device waits for the host, so several ranks do it
    only at the steps where they wait anyway.
    """
    if ranks.size > 1:
        if not checking:
            return False
        interruption.heed(max(ranks.gathered(interruption.signal)))
    return interruption.requested


def _keep_if_best(
    state: TrainState, record: Record, model: nn.Module, weights: str, checkpoints: Checkpoints
) -> bool:
    """Save the model if its record is the best so far; return whether it is."""
    improved = state.stopping.update(record)
    if improved:
        state.best_record = dict(record)  # the epoch's own goes on to hold more
        checkpoints.save_best(state, model, weights)
    return improved
