"""Our own training, the plainest loop of torch and timm's, on images that lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from hydra.utils import instantiate
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import nn
from torch.nn import functional as F

from dermalyze.benchmarks.composing import composed
from dermalyze.compute import Precision, choose_precision, numerics
from dermalyze.data.batches import ImageStore
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.distributed import ALONE
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import ConfigError
from dermalyze.recipe import build
from dermalyze.schema import checked_run
from dermalyze.taxonomy import HAM10000_CODES

CLASSES = len(HAM10000_CODES)

Node = dict[str, Any]
Step = Callable[[torch.Tensor, torch.Tensor], float | torch.Tensor]
"""(images_BCHW as floats, labels_B) -> loss."""

ON_CPU = Precision(torch.device("cpu"), None)


def config_of(words: Sequence[str]) -> Node:
    """Return the checked config of `python -m dermalyze.train WORDS`; its weights are random.

    Raises:
        ConfigError: words that `train` refuses; or its model is told metadata, which no image has
            here.
    """
    config = checked_run(composed("train", ["data.root=.", *words, "model.pretrained=false"]))
    if config["model"]["metadata"]["columns"]:
        raise ConfigError(
            "model/metadata: the images here have no metadata. Use model/metadata=none."
        )
    return config


def built(config: Node, store: ImageStore) -> tuple[TrainState, TrainingStep]:
    """Return what `train` builds of its config, for images of any class, on the store's device."""
    return build(
        config,
        store=store,
        labels_N=labels_of(len(store)),
        train_rows_M=np.arange(len(store)),
        num_classes=CLASSES,
        encoding=MetadataEncoding(columns=(), age=(0.0, 1.0), categories={}),
        precision=choose_precision(config["training"]["amp"], store.device),
        ranks=ALONE,
    )


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
    words = ["model=timm", f"model.backbone={backbone}", f"data.image_size={image_size}"]
    return built(config_of([*words, *options]), store)


def our_epoch(config: Node, store: ImageStore) -> Callable[[], None]:
    """Return what trains a config's first epoch, on the store's device."""
    training = config["training"]
    state, step = built(config, store)
    sampler = instantiate(config["sampler"], _convert_="all")
    accumulate = training["accumulate"]

    def epoch() -> None:
        order_N = sampler.order(labels_of(len(store)), seed=training["seed"], epoch=0)
        windows = epoch_windows(order_N, batch_size=training["batch_size"], accumulate=accumulate)
        state.train_mode()
        step.begin_epoch(state, np.arange(len(store)))
        with (
            numerics(deterministic=training["deterministic"], fast=training["fast_mode"]),
            store.reading_ahead(step.rows_to_read(windows)),
        ):
            for number, window in enumerate(windows):
                state.step = number
                step(state, window, number * accumulate)
        state.step = 0

    return epoch


def labels_of(images: int) -> np.ndarray:
    """Return the classes of images, each in turn."""
    return np.arange(images) % CLASSES


def noise(images: int, image_size: int) -> np.ndarray:
    """Return so many images_NHWC, uint8."""
    shape = (images, image_size, image_size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def random_store(
    images: int,
    *,
    image_size: int,
    file: Path | None = None,
    device: torch.device = ON_CPU.device,
) -> ImageStore:
    """Return so many images of noise, in memory; or in a file (.npy), as a map of it."""
    images_NHWC = noise(images, image_size)
    if file is not None:
        np.save(file, images_NHWC)
        images_NHWC = np.load(file, mmap_mode="r")
    return ImageStore(
        images_NHWC=images_NHWC,
        image_ids=[str(number) for number in range(images)],
        device=device,
    )


def peer_network(backbone: str) -> Any:
    """Return timm's network with a linear classifier, as ours is with `model/head=linear`.

    Where timm's own has a hidden layer after the pooling (MobileNetV3 and its kin), it is left out.
    """
    torch.manual_seed(0)
    network: Any = timm.create_model(backbone, num_classes=CLASSES)
    if network.head_hidden_size == network.num_features:
        return network
    return LinearOnMap(timm.create_model(backbone, num_classes=0, global_pool=""))


class LinearOnMap(nn.Module):
    """A linear classifier on the mean of a convolutional network's map."""

    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body
        self.classifier = nn.Linear(body.num_features, CLASSES)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return logits_BK."""
        logits_BK: torch.Tensor = self.classifier(
            self.body.forward_features(images_BCHW).mean((2, 3))
        )
        return logits_BK


def plain_step(backbone: str, precision: Precision = ON_CPU) -> Step:
    """Return a step as tutorials write it.

    The network is `peer_network`, in torch's own memory format; AdamW has torch's defaults;
    gradients are clipped, and the loss is read back in every step.
    """
    network = peer_network(backbone).to(precision.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4, weight_decay=0.02)
    network.train()

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> float:
        optimizer.zero_grad()
        with precision.autocast():
            loss = F.cross_entropy(network(images_BCHW), labels_B)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step


def timm_step(backbone: str, precision: Precision = ON_CPU, *, compiled: bool = False) -> Step:
    """Return a step as timm's train script composes it of timm's public parts.

    Its options would be `--opt adamw --channels-last --model-ema --clip-grad 1`, and `--amp` and
    `--torchcompile` where that is asked for. As there, the loss is not read back in each step.
    """
    network = peer_network(backbone).to(precision.device)
    network.to(memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=3e-4, weight_decay=0.02)
    average = ModelEmaV3(network, decay=0.9999)
    network.train()
    if compiled:
        network.compile()

    def step(images_BCHW: torch.Tensor, labels_B: torch.Tensor) -> torch.Tensor:
        images_BCHW = images_BCHW.contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            loss = F.cross_entropy(network(images_BCHW), labels_B)
        loss.backward()
        dispatch_clip_grad(network.parameters(), value=1.0, mode="norm")
        optimizer.step()
        optimizer.zero_grad()
        average.update(network)
        return loss.detach()

    return step
