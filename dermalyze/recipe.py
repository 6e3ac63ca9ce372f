"""From a checked config to what is trained and how: model, stages, loss, augmentation, averages."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from timm.layers import convert_sync_batchnorm
from torch import nn

from dermalyze.augmentation.image_sizes import ImageSizes
from dermalyze.compute import Precision, memory_format, seed_network
from dermalyze.data.batches import ImageStore
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.distributed import Ranks
from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.engine.last_epochs import LastEpochs
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import ConfigError
from dermalyze.evaluation.metrics import direction
from dermalyze.optim.schedules import CosineRestarts, Schedule
from dermalyze.optim.stages import Stage, Stages, stages_of_run
from dermalyze.randomness import Purpose

logger = logging.getLogger(__name__)

Node = dict[str, Any]

_LEFT_UNSAID = 0.05  # of a period's way down: so little hardly shows in a result


def build(
    config: Node,
    *,
    store: ImageStore,
    labels_N: np.ndarray,
    train_rows_M: np.ndarray,
    num_classes: int,
    encoding: MetadataEncoding,
    precision: Precision,
    ranks: Ranks,
) -> tuple[TrainState, TrainingStep]:
    """Instantiate everything that a run trains with.

    Args:
        config: checked, plain.
        store: the images of the table.
        labels_N: class of each row of the table.
        train_rows_M: rows of the training part; only their class counts are looked at.
        num_classes: K.
        encoding: of the metadata that the model is told.
        precision: number format, and device, of forward passes.
        ranks: who train it together.

    Raises:
        ConfigError: values that do not fit each other or the data.
    """
    training: Node = config["training"]
    model = _model(config, num_classes, encoding, precision.device, ranks)
    steps_per_epoch = len(
        epoch_windows(
            train_rows_M, batch_size=training["batch_size"], accumulate=training["accumulate"]
        )
    )
    state = TrainState(
        model=model,
        wrapped=ranks.wrapped,
        stages=_stages(config, model, steps_per_epoch),
        ema=instantiate(config["ema"])(model=model),
        last_epochs=_last_epochs(training, model),
        scaler=torch.amp.GradScaler(precision.device.type, enabled=precision.needs_scaler),
        stopping=EarlyStopping(
            monitor=training["monitor"],
            direction=direction(training["monitor"]),
            patience=training["patience"],
            min_delta=training["min_delta"],
        ),
        step_losses_S=torch.zeros(steps_per_epoch, device=precision.device),
        step_counts_S2K=torch.zeros(
            (steps_per_epoch, 2, num_classes), dtype=torch.int64, device=precision.device
        ),
    )
    if training["compile"]:  # after the averages were copied from it; they predict uncompiled
        model.compile()
    counts = np.bincount(labels_N[train_rows_M], minlength=num_classes).tolist()
    augment = instantiate(config["augmentation"], _convert_="all")
    mixing = instantiate(config["mix"], total_epochs=training["epochs"])
    step = TrainingStep(
        store=store,
        labels_N=labels_N,
        num_classes=num_classes,
        loss=instantiate(config["loss"], class_counts=counts, _convert_="all"),
        augment=augment,
        image_size=image_sizes(config),
        mixing=mixing,
        images_change=not (augment.is_off and mixing.is_off),
        recomputes=training["grad_checkpointing"],
        precision=precision,
        grad_clip=training["grad_clip"],
        seed=training["seed"],
        ranks=ranks,
    )
    return state, step


def image_sizes(config: Node) -> ImageSizes:
    """Return the size of training images in each epoch."""
    training, full = config["training"], config["data"]["image_size"]
    return ImageSizes(
        first=training["first_image_size"] or full,
        last=full,
        growing_epochs=training["growing_epochs"],
    )


def learning_rates(
    config: Node, *, steps_per_epoch: int, improving_epochs: int | None
) -> dict[str, list[float]]:
    """Return the learning rate of every step of each stage, in order; nothing is trained.

    Args:
        config: of a run; checked, plain.
        steps_per_epoch: optimiser steps.
        improving_epochs: results get better for so many epochs and then stand still; None: they
            get better throughout.
    """
    improving = config["training"]["epochs"] if improving_epochs is None else improving_epochs
    rates: dict[str, list[float]] = {}
    for stage in _stages(config, nn.Module(), steps_per_epoch):
        costs = [-float(min(stage.first_epoch + at, improving)) for at in range(stage.epochs)]
        rates[stage.name] = [
            stage.schedule(step, costs[: step // steps_per_epoch])
            for step in range(stage.epochs * steps_per_epoch)
        ]
    return rates


def _model(
    config: Node,
    num_classes: int,
    encoding: MetadataEncoding,
    device: torch.device,
    ranks: Ranks,
) -> nn.Module:
    training: Node = config["training"]
    seed_network(training["seed"], Purpose.INITIALISATION)
    model: Any = instantiate(
        config["model"],
        num_classes=num_classes,
        input_size=config["data"]["image_size"],
        unknown_metadata=encoding.unknown,
        _convert_="all",
    ).to(device)
    model.lay_out(memory_format(training["channels_last"], device))
    sizes = image_sizes(config)
    unread = model.backbone.unread_border(sizes.last)
    if unread:
        logger.warning(
            "data.image_size=%d: %s reads nothing of the last %d rows and columns of an image. It "
            "reads all of them with data.image_size=%d",
            sizes.last, model.backbone.name, unread, sizes.last - unread,
        )  # fmt: skip
    model.backbone.check_sizes(sorted({sizes(epoch) for epoch in range(sizes.growing_epochs)}))
    if training["grad_checkpointing"]:
        try:
            model.backbone.network.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"training.grad_checkpointing=true: {model.backbone.name} has no layers that timm "
                "can run twice. Leave it out, or choose another backbone."
            ) from error
    built: nn.Module = model
    if training["sync_batch_norm"] and ranks.size > 1:
        # Torch's own function would lose the activations that timm keeps in its BatchNorm layers.
        built = convert_sync_batchnorm(model)
    return built


def _stages(config: Node, model: nn.Module, steps_per_epoch: int) -> list[Stage]:
    stages: Stages = instantiate(config["stages"], _convert_="all")
    make_optimizer: partial[torch.optim.Optimizer] = instantiate(
        config["optimizer"], _convert_="all"
    )
    make_schedule: Callable[..., Schedule] = instantiate(config["scheduler"], _convert_="all")
    built = stages_of_run(
        stages,
        model=model,
        make_optimizer=make_optimizer,
        make_schedule=make_schedule,
        epochs=config["training"]["epochs"],
        steps_per_epoch=steps_per_epoch,
    )
    for stage in built:
        schedule = stage.schedule
        if isinstance(schedule, CosineRestarts) and schedule.left_at_end() > _LEFT_UNSAID:
            logger.warning(
                "stage %s: its %d epochs end amid a period of scheduler.restart_epochs, at a rate "
                "%.0f%% of the way up from eta_min. scheduler=cosine goes down all the way",
                stage.name, stage.epochs, 100 * schedule.left_at_end(),
            )  # fmt: skip
    return built


def _last_epochs(training: Node, model: nn.Module) -> LastEpochs | None:
    if training["average_last_epochs"] is None:
        return None
    return LastEpochs(
        model, epochs=training["average_last_epochs"], total_epochs=training["epochs"]
    )
