"""What a step asks for, counted: so that a slow one is noticed on any machine, however busy."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.utils._python_dispatch import TorchDispatchMode

from dermalyze.compute import Precision
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.batches import ImageStore
from dermalyze.data.metadata_features import MetadataEncoding
from dermalyze.distributed import ALONE
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.recipe import build
from dermalyze.schema import checked_run

SIZE, IMAGES, BATCH = 32, 16, 8
# What the host cannot answer before the device has done all that it was asked.
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero", "equal")


class Counted(TorchDispatchMode):
    """Counts what torch is asked for, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.calls[name] += 1
        if name in ("index", "index_put_", "index_put"):  # a mask's true places are looked up
            self.calls["nonzero"] += any(
                at is not None and at.dtype == torch.bool for at in args[1]
            )
        return func(*args, **(kwargs or {}))


def trainer(backbone: str = "test_resnet", **more: str) -> tuple[TrainState, TrainingStep]:
    words = {"data": "synthetic", "data.image_size": str(SIZE), "model": "timm"}
    words |= {"model.backbone": backbone, "model.pretrained": "false", "ema": "on"}
    register_resolvers()
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("train", [f"{name}={value}" for name, value in (words | more).items()])
    pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
    device = torch.device("cpu")
    return build(
        checked_run(cfg),
        store=ImageStore(images_NHWC=pixels, image_ids=["x"] * IMAGES, device=device),
        labels_N=np.arange(IMAGES) % 7,
        train_rows_M=np.arange(IMAGES),
        num_classes=7,
        encoding=MetadataEncoding(columns=(), age=(0.0, 1.0), categories={}),
        precision=Precision(device, None),
        ranks=ALONE,
    )


def counted(state: TrainState, step: TrainingStep) -> Counter[str]:
    """Return what the second step asks for: the first one makes the optimiser's moments."""
    (window, *_) = epoch_windows(np.arange(IMAGES), batch_size=BATCH, accumulate=1)
    state.train_mode()
    step(state, window, 0)
    with Counted() as mode:
        step(state, window, 0)
    return mode.calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mix": "both"},
        {"loss": "ldam"},
        {"augmentation": "domain"},
        {"training.accumulate": "2"},
    ],
    ids=str,
)
def test_a_step_never_waits_for_the_device(options: dict[str, str]) -> None:
    calls = counted(*trainer(**options))
    assert {name: calls[name] for name in WAITING if calls[name]} == {}


def test_the_count_would_notice_a_wait() -> None:
    with Counted() as mode:
        torch.ones(2).sum().item()
        torch.ones(2)[torch.ones(2) > 0]
    assert [name for name in WAITING if mode.calls[name]] == ["_local_scalar_dense", "nonzero"]


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_layers_run_once_and_all_parameters_are_updated_in_one_call(backbone: str) -> None:
    state, step = trainer(backbone)
    calls = counted(state, step)
    layers = [type(module).__name__ for module in state.model.modules()]
    convolutions = sum("Conv2d" in name for name in layers)
    assert calls["convolution"] == calls["convolution_backward"] == convolutions > 10
    groups = [group for group in state.optimizer.param_groups if group["params"]]
    assert len(list(state.model.parameters())) > 10 * len(groups)
    assert calls["_fused_adamw_"] == len(groups)
    assert calls["_foreach_norm"] == 1  # clipping looks at all gradients at once
    assert calls["_foreach_lerp_"] == 1  # and so does the moving average at all weights


def test_a_step_asks_for_little_besides_the_network() -> None:
    """Detaching is free; what a network needs is counted on a forward and backward pass alone."""
    state, step = trainer()
    inputs = torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8)
    state.train_mode()
    with Counted() as mode:
        state.model(inputs).sum().backward()
    alone, whole = mode.calls, counted(state, step)
    besides = {name: whole[name] - alone[name] for name in whole if name not in ("detach", "empty")}
    assert sum(max(0, more) for more in besides.values()) < 100  # 77 with torch 2.14


def peak(work: Any) -> int:
    """Return the most bytes of NumPy's that the work held at once; torch's are not counted."""
    tracemalloc.start()
    try:
        kept = work()
        del kept
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_images_are_copied_once_on_their_way(tmp_path: Path) -> None:
    """The whole array stays on the disk; a batch of bytes is copied, and two of floats are made."""
    side, count = 64, 400
    np.save(tmp_path / "images.npy", np.zeros((count, side, side, 3), dtype=np.uint8))
    images = np.load(tmp_path / "images.npy", mmap_mode="r")
    whole, one = images.nbytes, side * side * 3
    device = torch.device("cpu")

    def opened() -> ImageStore:
        return ImageStore(images_NHWC=images, image_ids=["x"] * count, device=device)

    small = 40_000  # bytes, for objects of Python
    assert whole > 100 * small
    assert peak(opened) < small
    store, rows = opened(), np.arange(BATCH) * 7
    store.batch(rows)
    assert one * BATCH <= peak(lambda: store.batch(rows)) < one * BATCH + small

    _, step = trainer()
    batch, random = store.batch(rows), np.random.default_rng(0)
    step.augment(batch, random, size=side, positions_B=np.arange(BATCH))
    augmented = peak(lambda: step.augment(batch, random, size=side, positions_B=np.arange(BATCH)))
    # Warped and recoloured, four bytes a value, and one image at work.
    assert augmented < 4 * one * (2 * BATCH + 2) + small
