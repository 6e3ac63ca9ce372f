"""A training run of milliseconds: 27 tiny images, a net of two convolutions, three epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from dermalyze.augmentation.mixing import Mixing
from dermalyze.checkpoint_file import read_checkpoint, write_checkpoint
from dermalyze.compute import Precision
from dermalyze.data.batches import ImageStore
from dermalyze.data.samplers import UniformSampler
from dermalyze.distributed import ALONE, Ranks
from dermalyze.engine.checkpoints import NoCheckpoints, RunCheckpoints
from dermalyze.engine.early_stopping import EarlyStopping
from dermalyze.engine.interruption import Interruption
from dermalyze.engine.last_epochs import LastEpochs
from dermalyze.engine.loop import fit
from dermalyze.engine.state import Record, TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.losses.loss import Loss
from dermalyze.optim.ema import WeightAverage
from dermalyze.optim.schedules import Schedule
from dermalyze.optim.stages import Stage

CPU = torch.device("cpu")
IMAGES, CLASSES, SEED = 27, 3, 5
TRAIN, VAL = np.arange(21), np.arange(21, IMAGES)  # batches of 4: 4, 4, 4, 4, 5
BATCH, STEPS, EPOCHS = 4, 5, 3
LABELS = np.random.default_rng(1).integers(0, CLASSES, IMAGES)
PIXELS = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
STORE = ImageStore(
    images_NHWC=PIXELS, image_ids=[f"ISIC_{row:03}" for row in range(IMAGES)], device=CPU
)

STEP_OPTIONS = ("loss", "augment", "mixing", "image_size", "recomputes", "ranks")

MakeOptimizer = Callable[[Sequence[nn.Parameter]], torch.optim.Optimizer]


def adamw(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, weight_decay=0.02, fused=True)


def sgd(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, momentum=0.9)


def adamw_amsgrad(parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, amsgrad=True)


class Net(nn.Module):
    """Two channels-last convolutions and a classifier; uint8 images in, logits out."""

    def __init__(self, *, norm: bool = True, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(4, 5, 3),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(20, CLASSES),
        )
        self.to(memory_format=torch.channels_last)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        logits_BK: torch.Tensor = self.layers(images_BCHW.float() / 255 - 0.5)
        return logits_BK


def seeded(*, seed: int = 0, norm: bool = True, dropout: float = 0.3) -> Net:
    torch.manual_seed(seed)
    return Net(norm=norm, dropout=dropout)


def plain(images_BCHW: torch.Tensor, random: np.random.Generator, **_: object) -> torch.Tensor:
    return images_BCHW


def noisy(
    images_BCHW: torch.Tensor,
    random: np.random.Generator,
    *,
    size: int,
    positions_B: np.ndarray,
) -> torch.Tensor:
    shape = (positions_B.max() + 1, *images_BCHW.shape[1:])
    noise_BCHW = random.normal(0, 20, size=shape)[positions_B]
    return images_BCHW + torch.from_numpy(noise_BCHW).float()


def schedule(step: int, costs: Sequence[float] = ()) -> float:
    return 0.01 * 0.9**step


class PlainLoss(Loss):
    """Cross entropy, and the epochs that it was told of."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[int] = []

    def forward(self, logits_BK: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_BK, target_BK)

    def begin_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    @staticmethod
    def frequency_correction(options: Mapping[str, Any]) -> str | None:
        return None


def mixing(**changes: Any) -> Mixing:
    options = {"mixup_alpha": None, "cutmix_alpha": None, "cutmix_share": 0.5, "probability": 1.0}
    run = {"unmixed_last_epochs": 0, "total_epochs": EPOCHS}
    return Mixing(**{**options, **run, **changes})


def make_state(
    *,
    model: nn.Module | None = None,
    optimizer: MakeOptimizer = adamw,
    steps: int = STEPS,
    init: int = 0,
    scaler: bool = False,
    patience: int | None = None,
    monitor: str = "val/loss",
    rate: Schedule = schedule,
    stages: Callable[[nn.Module], Sequence[Stage]] | None = None,
    ema: float | None = None,
    last_epochs: int | None = None,
    ranks: Ranks = ALONE,
) -> TrainState:
    net = model or seeded(seed=init)

    def make_optimizer() -> torch.optim.Optimizer:
        return optimizer(list(net.parameters()))

    whole = [Stage("whole", 0, EPOCHS, rate, make_optimizer, None)]
    return TrainState(
        model=net,
        wrapped=ranks.wrapped,
        stages=whole if stages is None else stages(net),
        ema=None if ema is None else WeightAverage(net, decay=ema),
        last_epochs=None
        if last_epochs is None
        else LastEpochs(net, epochs=last_epochs, total_epochs=EPOCHS),
        scaler=torch.amp.GradScaler("cpu", enabled=scaler),
        stopping=EarlyStopping(monitor=monitor, direction="min", patience=patience, min_delta=0.0),
        step_losses_S=torch.zeros(steps),
        step_counts_S2K=torch.zeros((steps, 2, CLASSES), dtype=torch.int64),
    )


def make_step(**changes: Any) -> TrainingStep:
    options: dict[str, Any] = {
        "store": STORE,
        "labels_N": LABELS,
        "num_classes": CLASSES,
        "loss": PlainLoss(),
        "augment": noisy,
        "image_size": lambda epoch: 8,
        "mixing": mixing(),
        "images_change": True,
        "recomputes": False,
        "precision": Precision(CPU, None),
        "grad_clip": 1.0,
        "seed": SEED,
        "ranks": ALONE,
    }
    return TrainingStep(**{**options, **changes})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def copied(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.tensors().items()}


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Return the names whose tensors are not equal to the last bit."""
    assert one.keys() == other.keys()
    return [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]


def through_file(state: TrainState, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    write_checkpoint(path, state.tensors(), {"state": state.numbers()})
    tensors, header = read_checkpoint(path)
    return tensors, header["state"]


class LossAt(PlainLoss):
    """Cross entropy that does something at its n-th call, counted from 1."""

    def __init__(self, call: int, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.call, self.change, self.calls = call, change, 0

    def forward(self, logits_BK: torch.Tensor, target_BK: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        loss = F.cross_entropy(logits_BK, target_BK)
        return self.change(loss) if self.calls == self.call else loss


def about(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"_target_": "net", "backbone": "tiny"},
        "classes": ["akiec", "bcc", "bkl"],
        "preprocess": {"image_size": 8},
        "metadata": {"columns": []},
        "split_fingerprint": "abc",
        "images_fingerprint": "0ab",
        "evaluation_batch_size": 64,
        "software": {
            "threads": 1,
            "device": "cpu",
            "ranks": 1,
            "precision": "fp32",
            "torch": "2.7.0",
        },
        **changes,
    }


def validate(model: nn.Module) -> Record:
    model.eval()
    with torch.inference_mode():
        logits = model(STORE.batch(VAL))
    return {
        "val/loss": F.cross_entropy(logits, torch.tensor(LABELS[VAL])).item(),
        "val/macro_auc": None,
    }


def train(
    folder: Path,
    state: TrainState,
    *,
    interruption: Interruption | None = None,
    sinks: Sequence[Callable[[Record], None]] = (),
    **changes: Any,
) -> RunCheckpoints:
    """Run `fit` to its end, resuming if `folder` holds a checkpoint."""
    folder.mkdir(exist_ok=True)
    checkpoints = RunCheckpoints(folder=folder, about=about())
    checkpoints.load_latest(state)
    step_options = {name: changes.pop(name) for name in STEP_OPTIONS if name in changes}
    step = make_step(**step_options)
    options: dict[str, Any] = {
        "training_step": step,
        "train_rows_N": TRAIN,
        "sampler": UniformSampler(),
        "validate": validate,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "accumulate": 1,
        "seed": SEED,
        "check_every_steps": 2,
        "checkpoint_every_steps": None,
    }
    with interruption or Interruption() as asked:
        fit(
            state,
            checkpoints=checkpoints if step.ranks.is_writer else NoCheckpoints(),
            sinks=sinks,
            interruption=asked,
            **{**options, **changes},
        )
    return checkpoints


def without_timing(history: list[Record]) -> list[Record]:
    return [
        {name: value for name, value in record.items() if name != "images_per_second"}
        for record in history
    ]
