"""Metadata on its way through a training step: beside its image, mixed and dropped as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_training import (
    CPU,
    IMAGES,
    LABELS,
    PIXELS,
    SEED,
    STORE,
    TRAIN,
    Net,
    make_state,
    make_step,
    mixing,
    plain,
)
from torch import nn
from torch.nn import functional as F

from dermalyze.data.batches import ImageStore
from dermalyze.models.metadata.film import Film
from dermalyze.models.metadata.fused import FusedMetadata
from dermalyze.randomness import Purpose, generator

METADATA = np.random.default_rng(2).normal(size=(IMAGES, 3)).astype(np.float32)
TOLD = ImageStore(images_NHWC=PIXELS, image_ids=STORE.image_ids, device=CPU, metadata_NM=METADATA)


class ToldNet(nn.Module):
    """The small net, with a fusion before its pooling."""

    def __init__(self, *, dropout: float) -> None:
        super().__init__()
        self.net = Net(norm=False, dropout=0.0)
        self.fusion = FusedMetadata(
            columns=("age",),
            dropout=dropout,
            fusion=lambda **widths: Film(hidden=4, **widths),
            in_features=5,
            unknown_metadata={"age": [0.0, 0.0, 1.0]},
        )
        nn.init.normal_(self.fusion.fusion.modulation.weight)

    def forward(self, images_BCHW: torch.Tensor, metadata_BM: torch.Tensor) -> torch.Tensor:
        convolutions, classifier = self.net.layers[:4], self.net.layers[4:]
        features_BCHW = convolutions(images_BCHW.float() / 255 - 0.5)
        logits_BK: torch.Tensor = classifier(self.fusion(features_BCHW, metadata_BM))
        return logits_BK


def told_net(*, dropout: float = 0.0) -> ToldNet:
    torch.manual_seed(0)
    return ToldNet(dropout=dropout).train()


def done(rows: np.ndarray, *, dropout: float = 0.0, batch: int = 3, **changes: Any) -> float:
    """Return the loss of one step on a fresh model."""
    state = make_state(model=told_net(dropout=dropout))
    step = make_step(store=TOLD, augment=plain, grad_clip=None, **changes)
    step(state, [rows], batch)
    return float(state.step_losses_S[0])


def test_a_step_gives_each_image_its_own_metadata() -> None:
    rows = np.array([5, 2, 11, 7])
    with torch.no_grad():
        logits = told_net()(STORE.batch(rows), torch.from_numpy(METADATA[rows]))
        others = told_net()(STORE.batch(rows), torch.from_numpy(METADATA[rows[::-1].copy()]))
    labels = torch.from_numpy(LABELS[rows])
    assert done(rows) == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)
    assert done(rows) != pytest.approx(F.cross_entropy(others, labels).item(), rel=1e-2)


def test_metadata_is_mixed_as_its_image_is() -> None:
    rows, mixed = TRAIN[:4], mixing(mixup_alpha=1.0)
    mix = mixed(generator(SEED, Purpose.MIXING, 0, 3), epoch=0, size=8)
    assert mix is not None
    partners = [1, 0, 3, 2]
    metadata = mix.kept * METADATA[rows] + (1 - mix.kept) * METADATA[rows][partners]
    images = STORE.batch(rows).float()
    with torch.no_grad():
        logits = told_net()(
            mix.kept * images + (1 - mix.kept) * images[partners], torch.from_numpy(metadata)
        )
    labels = torch.from_numpy(LABELS[rows])
    expected = mix.kept * F.cross_entropy(logits, labels)
    expected += (1 - mix.kept) * F.cross_entropy(logits, labels[partners])
    assert done(rows, mixing=mixed) == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_dropped_is_a_function_of_seed_and_time() -> None:
    rows = TRAIN  # so many that two draws are hardly ever alike
    once = done(rows, dropout=0.5)
    torch.manual_seed(99)
    assert done(rows, dropout=0.5) == once
    assert done(rows, dropout=0.0) != once
    assert done(rows, dropout=0.5, seed=SEED + 1) != once
    assert done(rows, dropout=0.5, batch=4) != once
