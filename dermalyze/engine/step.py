"""One optimiser step: augment, forward, loss, backward, clip, update."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dermalyze.compute import Precision, seed_network
from dermalyze.data.batches import ImageStore
from dermalyze.engine.state import TrainState
from dermalyze.randomness import Purpose, generator

Augmentation = Callable[[torch.Tensor, np.random.Generator], torch.Tensor]


class TrainingStep:
    """A function of (state, images, time) without memory of its own.

    Args:
        store: where images come from.
        labels_N: class of each row of the store (int64).
        num_classes: K.
        loss: `(logits_BK, target_BK) -> scalar`, a mean over the batch.
        augment: whole uint8 batches in, images of the same size out.
        schedule: optimiser step, counted from 0 -> learning rate.
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
        loss: nn.Module,
        augment: Augmentation,
        schedule: Callable[[int], float],
        precision: Precision,
        grad_clip: float | None,
        seed: int,
    ) -> None:
        self.store = store
        self.labels_N = labels_N
        self.targets_NK = F.one_hot(torch.tensor(labels_N), num_classes).float()
        self.targets_NK = self.targets_NK.to(store.device)
        self.loss = loss.to(store.device)
        self.augment = augment
        self.schedule = schedule
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
        learning_rate = self.schedule(state.global_step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        images_in_window = sum(len(rows) for rows in window)
        for offset, rows_B in enumerate(window):
            share = len(rows_B) / images_in_window
            loss, correct = self._forward(state, rows_B, first_batch + offset)
            state.scaler.scale(loss * share).backward()
            state.step_losses_S[state.step] += loss.detach() * share
            state.step_correct_S[state.step] += correct
        if self.grad_clip is not None:
            state.scaler.unscale_(state.optimizer)
            nn.utils.clip_grad_norm_(state.model.parameters(), self.grad_clip)
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)

    def _forward(
        self, state: TrainState, rows_B: np.ndarray, batch: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        chance = generator(self.seed, Purpose.AUGMENTATION, state.epoch, batch)
        images_BCHW = self.augment(self.store.batch(rows_B), chance)
        target_BK = self.targets_NK[torch.from_numpy(rows_B).to(self.store.device)]
        seed_network(self.seed, Purpose.NETWORK, state.epoch, batch)
        with self.precision.autocast():
            logits_BK = state.model(images_BCHW)
        # Losses are taken in float32: their logarithms lose too much in half precision.
        loss: torch.Tensor = self.loss(logits_BK.float(), target_BK)
        correct = (logits_BK.detach().argmax(1) == target_BK.argmax(1)).sum()
        return loss, correct
