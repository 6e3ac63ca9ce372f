"""Our own training, and the plainest loop of torch, on images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional as F

from dermalyze.benchmarks.composing import composed
from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.distributed import ALONE
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.recipe import build
from dermalyze.schema import checked_run
from dermalyze.taxonomy import HAM10000_CODES

CLASSES = len(HAM10000_CODES)


def our_training(
    store: ImageStore, *, backbone: str, image_size: int, options: Sequence[str]
) -> tuple[TrainState, TrainingStep]:
    """Return what `python -m dermalyze.train` builds of its options, for images of any class.

    Args:
        store: the images.
        backbone: timm's name; its weights are random.
        image_size: pixels.
        options: of the command line.
    """
    words = [
        f"model.backbone={backbone}",
        "model.pretrained=false",
        f"data.image_size={image_size}",
    ]
    cfg = composed("train", ["data=synthetic", "model=timm", *words, *options])
    return build(
        checked_run(cfg),
        store=store,
        labels_N=labels_of(len(store)),
        train_rows_M=np.arange(len(store)),
        num_classes=CLASSES,
        encoding=MetadataEncoding(columns=(), age=(0.0, 1.0), categories={}),
        precision=Precision(torch.device("cpu"), None),
        ranks=ALONE,
    )


def labels_of(images: int) -> np.ndarray:
    """Return the classes of images, each in turn."""
    return np.arange(images) % CLASSES


def random_store(images: int, *, image_size: int) -> ImageStore:
    """Return so many images of noise, in memory."""
    shape = (images, image_size, image_size, 3)
    return ImageStore(
        images_NHWC=np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8),
        image_ids=[str(number) for number in range(images)],
        device=torch.device("cpu"),
    )


def plain_step(
    backbone: str,
) -> Callable[[torch.Tensor, torch.Tensor], float]:
    """Return (images_BCHW as floats, labels_B) -> loss: a step as tutorials write it.

    The network is timm's own with its classifier, in torch's own memory format; AdamW has torch's
    defaults; gradients are clipped, and the loss is read back in every step.
    """
    torch.manual_seed(0)
    network: Any = timm.create_model(backbone, num_classes=CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.02)
    network.train()

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images_BCHW), labels_B)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step
