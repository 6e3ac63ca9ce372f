"""One optimiser step: augment, mix, forward, loss, backward, clip, update, average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dermalyze.augmentation.mixing import Mixing
from dermalyze.compute import Precision, seed_network
from dermalyze.data.batches import ImageStore
from dermalyze.engine.state import TrainState
from dermalyze.losses.loss import Loss
from dermalyze.optim.parameter_groups import LR_SCALE
from dermalyze.randomness import Purpose, generator


class Augmentation(Protocol):
    """Chance for whole batches of training images."""

    def __call__(
        self, images_BCHW: torch.Tensor, random: np.random.Generator, *, size: int
    ) -> torch.Tensor:
        """Return images, `size` x `size` pixels, of uint8 ones that may be larger."""


class TrainingStep:
    """A function of (state, images, time) without memory of its own.

    Args:
        store: where images come from.
        labels_N: class of each row of the store (int64).
        num_classes: K.
        loss: `(logits_BK, target_BK) -> scalar`, a mean over the batch.
        augment: whole uint8 batches in, images of `image_size` out.
        image_size: epoch -> pixels of a side as the model sees them; the store's may be larger.
        mixing: what is done to whole batches and their labels after that.
        recomputes: whether the backward pass runs layers of the forward pass again.
        precision: number format of the forward pass.
        grad_clip: largest L2 norm of all gradients together; None leaves them.
        seed: the run's seed.
    """

    def __init__(
        self,
        *,
        store: ImageStore,
        labels_N: np.ndarray,
        num_classes: int,
        loss: Loss,
        augment: Augmentation,
        image_size: Callable[[int], int],
        mixing: Mixing,
        recomputes: bool,
        precision: Precision,
        grad_clip: float | None,
        seed: int,
    ) -> None:
        self.store = store
        self.labels_N = labels_N
        self.targets_NK = F.one_hot(torch.tensor(labels_N), num_classes).float()
        self.targets_NK = self.targets_NK.to(store.device)
        self.loss = loss
        self.loss.to(store.device)
        self.augment = augment
        self.image_size = image_size
        self.mixing = mixing
        self.recomputes = recomputes
        self.precision = precision
        self.grad_clip = grad_clip
        self.seed = seed

    def __call__(self, state: TrainState, window: Sequence[np.ndarray], first_batch: int) -> None:
        """Do the step that is due and record its loss; nothing is read back from the device.

        Args:
            state: its `step` is the one to do; it is not advanced here.
            window: rows of the micro-batches whose gradients are added up. Each counts by its
                share of the window's images, so a last, shorter window is a true mean too.
            first_batch: position of the window's first micro-batch in the epoch.
        """
        learning_rate = state.learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(LR_SCALE, 1.0)
        images_in_window = sum(len(rows) for rows in window)
        for offset, rows_B in enumerate(window):
            share = len(rows_B) / images_in_window
            loss, correct = self._forward(state, rows_B, first_batch + offset)
            with statistics_kept(state.model) if self.recomputes else nullcontext():
                state.scaler.scale(loss * share).backward()
            state.step_losses_S[state.step] += loss.detach() * share
            state.step_correct_S[state.step] += correct
        if self.grad_clip is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.grad_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            state.ema.update(state.model, step=state.global_step)

    def begin_epoch(self, epoch: int) -> None:
        """Let the loss become that of an epoch, counted from 0."""
        self.loss.begin_epoch(epoch)

    def inputs(
        self, epoch: int, windows: Sequence[Sequence[np.ndarray]]
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield what the model is given in an epoch, a batch after another."""
        batches = (rows_B for window in windows for rows_B in window)
        for batch, rows_B in enumerate(batches):
            inputs, _ = self._batch(rows_B, epoch, batch)
            yield inputs

    def _forward(
        self, state: TrainState, rows_B: np.ndarray, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, target_BK = self._batch(rows_B, state.epoch, batch)
        seed_network(self.seed, Purpose.NETWORK, state.epoch, batch)
        with self.precision.autocast():
            logits_BK = state.model(*inputs)
        # Losses are taken in float32: their logarithms lose too much in half precision.
        loss: torch.Tensor = self.loss(logits_BK.float(), target_BK)
        # Of a mixture, the class with the larger part counts as the true one.
        correct = (logits_BK.detach().argmax(1) == target_BK.argmax(1)).sum()
        return loss, correct

    def _batch(
        self, rows_B: np.ndarray, epoch: int, batch: int
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what the model is given, augmented and mixed, and target_BK."""
        size = self.image_size(epoch)
        images_BCHW, *metadata = self.store.inputs(rows_B)
        target_BK = self.targets_NK[torch.from_numpy(rows_B).to(self.store.device)]
        chance = generator(self.seed, Purpose.AUGMENTATION, epoch, batch)
        images_BCHW = self.augment(images_BCHW, chance, size=size)
        chance = generator(self.seed, Purpose.MIXING, epoch, batch)
        mix = self.mixing(chance, epoch=epoch, size=size)
        if mix is not None:
            images_BCHW, target_BK = mix.images(images_BCHW), mix.rows(target_BK)
            metadata = [mix.rows(metadata_BM) for metadata_BM in metadata]
        return (images_BCHW, *metadata), target_BK


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """After this context, the running statistics of BatchNorm layers are as they were before it.

    For a backward pass that runs parts of the forward pass again (gradient checkpointing): each
    batch would be counted twice. Switching the counting off would save other tensors than the
    forward pass did, which torch refuses.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _BatchNorm)]
    buffers = [buffer for layer in layers for buffer in layer.buffers(recurse=False)]
    before = [buffer.clone() for buffer in buffers]
    yield
    if buffers:
        torch._foreach_copy_(buffers, before)
