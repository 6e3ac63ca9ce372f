"""One optimiser step: augment, mix, forward, loss, backward, clip, update, average."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm
from torch.profiler import record_function

from dermalyze.augmentation.mixing import Mixing
from dermalyze.compute import Precision, seed_network
from dermalyze.data.batches import ImageStore
from dermalyze.distributed import ALONE, Ranks
from dermalyze.engine.frozen_maps import FrozenMaps, maps_if_they_fit
from dermalyze.engine.state import TrainState
from dermalyze.losses.loss import Loss
from dermalyze.optim.parameter_groups import LR_SCALE
from dermalyze.randomness import Purpose, generator

logger = logging.getLogger(__name__)


class Augmentation(Protocol):
    """Chance for whole batches of training images."""

    def __call__(
        self,
        images_BCHW: torch.Tensor,
        random: np.random.Generator,
        *,
        size: int,
        positions_B: np.ndarray,
    ) -> torch.Tensor:
        """Return images, `size` x `size` pixels, of uint8 ones that may be larger.

        Args:
            images_BCHW: some of a batch, or all of it.
            random: the same for all of the batch, whoever augments which of its images.
            size: pixels of a side.
            positions_B: of the images in the batch.
        """


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
        images_change: whether an image may look different from epoch to epoch.
        recomputes: whether the backward pass runs layers of the forward pass again.
        precision: number format of the forward pass.
        grad_clip: largest L2 norm of all gradients together; None leaves them.
        seed: the run's seed.
        ranks: who share each batch.

    Attributes:
        after_step: called at the end of each step; a profiler counts them by it.
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
        images_change: bool,
        recomputes: bool,
        precision: Precision,
        grad_clip: float | None,
        seed: int,
        ranks: Ranks,
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
        self.images_change = images_change
        self.recomputes = recomputes
        self.precision = precision
        self.grad_clip = grad_clip
        self.seed = seed
        self.ranks = ranks
        self.maps: FrozenMaps | None = None
        self.after_step: Callable[[], object] = nothing

    def __call__(self, state: TrainState, window: Sequence[np.ndarray], first_batch: int) -> None:
        """Do the step that is due and record its loss; nothing is read back from the device.

        All ranks do it together, each on its share, and their states are equal after it.

        Args:
            state: its `step` is the one to do; it is not advanced here.
            window: rows of the micro-batches, of all ranks, whose gradients are added up. Each
                counts by its part of the window's images, so a last, shorter window is a true mean
                too.
            first_batch: position of the window's first micro-batch in the epoch.
        """
        learning_rate = state.learning_rate(state.step)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate * group.get(LR_SCALE, 1.0)
        images_in_window = sum(len(rows_B) for rows_B in window)
        own_part = 0.0
        for offset, rows_B in enumerate(window):
            share = self.ranks.share(len(rows_B))
            part = share.images / images_in_window
            own_part += part
            is_last = offset == len(window) - 1
            with self.ranks.accumulating(state.training_model, last=is_last):
                loss, counts_2K = self._forward(
                    state, rows_B, first_batch + offset, share.positions_B
                )
                kept = statistics_kept(state.model) if self.recomputes else nullcontext()
                with kept, record_function("backward"):
                    # The ranks' gradients are averaged, but belong to parts that add up.
                    state.scaler.scale(loss * (part * self.ranks.size)).backward()
            state.step_losses_S[state.step] += loss.detach() * part
            state.step_counts_S2K[state.step] += counts_2K * (share.images > 0)
        if self.ranks.size > 1:
            self._agree(state, own_part)
        with record_function("optimizer"):
            if self.grad_clip is not None:
                state.scaler.unscale_(state.optimizer)
                nn.utils.clip_grad_norm_(state.model.parameters(), self.grad_clip)
            state.scaler.step(state.optimizer)
            state.scaler.update()
            state.optimizer.zero_grad(set_to_none=True)
        if state.ema is not None:
            with record_function("average"):
                state.ema.update(state.model, step=state.global_step)
        self.after_step()

    def begin_epoch(self, state: TrainState, rows_N: np.ndarray) -> None:
        """Let the loss become that of the state's epoch, and do beforehand what its stage allows.

        Where a frozen backbone sees the same images in every epoch, its maps are computed once, if
        memory is large enough. A map depends in its last bits on the batch that it is computed in,
        so the state knows what was decided, and a resumed run keeps to it.

        Args:
            state: at any step of the epoch.
            rows_N: all rows that the epoch can draw from.
        """
        self.loss.begin_epoch(state.epoch)
        if state.stage.frozen is None or self.images_change or self.ranks.size > 1:
            self.maps = None
        elif self.maps is None and state.keeps_maps is not False:
            self.maps = maps_if_they_fit(state.model, self.store, rows_N, precision=self.precision)
            if self.maps is None and state.keeps_maps:
                logger.warning(
                    "the run so far kept the frozen backbone's maps in a larger memory: the result "
                    "will be as good, but not equal to the last bit"
                )
            state.keeps_maps = self.maps is not None

    def inputs(
        self, epoch: int, windows: Sequence[Sequence[np.ndarray]]
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield what the model is given in an epoch, a batch after another: whole batches.

        Before each, torch's generators are seeded for its forward pass, alike on all ranks.
        """
        batches = (rows_B for window in windows for rows_B in window)
        for batch, rows_B in enumerate(batches):
            inputs, _ = self._batch(rows_B, epoch, batch, ALONE.share(len(rows_B)).positions_B)
            seed_network(self.seed, Purpose.STATISTICS, epoch, batch)
            yield inputs

    def rows_to_read(self, windows: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
        """Return the rows whose images this rank's steps will ask for, batch by batch, in order."""
        if self.maps is not None:
            return []
        batches = [rows_B for window in windows for rows_B in window]
        return [rows_B[self.ranks.share(len(rows_B)).positions_B] for rows_B in batches]

    def _agree(self, state: TrainState, own_part: float) -> None:
        """Let loss, counts and BatchNorm's statistics be those of all ranks.

        Each rank's running statistics count by its part of the window's images. Synchronised layers
        have the same ones everywhere, and those that only predict have not changed.
        """
        statistics = [
            buffer
            for layer in state.model.modules()
            if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm)
            for buffer in layer.buffers(recurse=False)
            if layer.training and buffer.is_floating_point()
        ]
        if statistics:
            torch._foreach_mul_(statistics, own_part)
        counts_2K = state.step_counts_S2K[state.step].float()
        self.ranks.add_up([state.step_losses_S[state.step], counts_2K, *statistics])
        state.step_counts_S2K[state.step] = counts_2K

    def _forward(
        self, state: TrainState, rows_B: np.ndarray, batch: int, positions_B: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Dropout is drawn by the device, a batch at a time, so each rank has its own.
        rank = () if self.ranks.size == 1 else (self.ranks.rank,)
        model: Callable[..., torch.Tensor]
        if self.maps is None:
            model = state.training_model
            with record_function("input"):
                inputs, target_BK = self._batch(rows_B, state.epoch, batch, positions_B)
        else:
            model = self.maps.classify
            inputs, target_BK = self.maps.inputs(rows_B), self._targets(rows_B)
        seed_network(self.seed, Purpose.NETWORK, state.epoch, batch, *rank)
        with record_function("forward"):
            with self.precision.autocast():
                logits_BK = model(*inputs)
            # Losses are taken in float32: their logarithms lose too much in half precision.
            loss: torch.Tensor = self.loss(logits_BK.float(), target_BK)
        return loss, _counted(logits_BK.detach(), target_BK)

    def _targets(self, rows_B: np.ndarray) -> torch.Tensor:
        return self.targets_NK[torch.from_numpy(rows_B).to(self.store.device)]

    def _batch(
        self, rows_B: np.ndarray, epoch: int, batch: int, positions_B: np.ndarray
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """Return what the model is given, augmented and mixed, and target_BK.

        Args:
            rows_B: of the whole batch.
            positions_B: in it, of the images that are wanted.
        """
        rows_B = rows_B[positions_B]
        size = self.image_size(epoch)
        images_BCHW, *metadata = self.store.inputs(rows_B)
        target_BK = self._targets(rows_B)
        chance = generator(self.seed, Purpose.AUGMENTATION, epoch, batch)
        images_BCHW = self.augment(images_BCHW, chance, size=size, positions_B=positions_B)
        chance = generator(self.seed, Purpose.MIXING, epoch, batch)
        mix = self.mixing(chance, epoch=epoch, size=size)
        if mix is not None:
            images_BCHW, target_BK = mix.images(images_BCHW), mix.rows(target_BK)
            metadata = [mix.rows(metadata_BM) for metadata_BM in metadata]
        return (images_BCHW, *metadata), target_BK


def nothing() -> None:
    """Do nothing."""


def _counted(logits_BK: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
    """Return counts_2K: the images of each class, and those of them that are called by it.

    Of a mixture, the class with the larger part counts as the true one. Nothing is indexed by what
    the device has computed, for which the host would wait.
    """
    true_B1 = target_BK.argmax(1, keepdim=True)
    true_BK = true_B1 == torch.arange(target_BK.shape[1], device=target_BK.device)
    right_B1 = logits_BK.argmax(1, keepdim=True) == true_B1
    return torch.stack([true_BK.sum(0), (true_BK & right_B1).sum(0)])


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
