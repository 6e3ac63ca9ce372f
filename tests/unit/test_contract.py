"""Every option of every group, alone and in random company: it composes, takes a step, is saved
and comes back.

What comes back is compared with what goes on: the next step of a restored run equals the next step
of the uninterrupted one to the last bit, and the model of the checkpoint predicts the same.
"""

from __future__ import annotations

import atexit
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import save_file

from dermalyze.checkpoint_file import BEST, read_checkpoint
from dermalyze.compute import Precision, choose_precision, numerics
from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.data.batches import ImageStore
from dermalyze.data.decode import PreprocessSpec
from dermalyze.data.metadata_features import fit_encoding
from dermalyze.data.samplers import Sampler
from dermalyze.distributed import ALONE
from dermalyze.engine.checkpoints import RunCheckpoints
from dermalyze.engine.loop import epoch_windows
from dermalyze.engine.state import TrainState
from dermalyze.engine.step import TrainingStep
from dermalyze.errors import ConfigError
from dermalyze.inference.forward import predict_probabilities
from dermalyze.inference.loading import load_model
from dermalyze.recipe import build
from dermalyze.schema import checked_run
from dermalyze.taxonomy import HAM10000_CODES

SIZE, IMAGES = 64, 28
PIXELS = np.random.default_rng(0).integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8)
LABELS = np.arange(IMAGES) % len(HAM10000_CODES)
TRAIN = np.arange(21)
FRAME = pd.DataFrame(
    {
        "age": np.where(np.arange(IMAGES) % 5 == 0, np.nan, 30.0 + np.arange(IMAGES)),
        "sex": np.array(["male", "female", "unknown"])[np.arange(IMAGES) % 3],
        "localization": np.array(["back", "face", "foot", "unknown"])[np.arange(IMAGES) % 4],
    }
)
CPU = Precision(torch.device("cpu"), None)
ALWAYS = [
    "data=synthetic", f"data.image_size={SIZE}", "training.batch_size=8", "training.epochs=8",
    "training.patience=null", "tracking=none", "training.allow_double_correction=true",
]  # fmt: skip
# Networks of timm that are made for tests: a map of convolutions, and tokens.
TINY = ["test_efficientnet", "test_resnet", "test_vit"]
SMALL = ["model=timm", "model.backbone=test_efficientnet", "model.pretrained=false"]

GROUPS = ["loss", "augmentation", "mix", "sampler", "optimizer", "scheduler", "stages", "ema",
          "model/head", "model/metadata"]  # fmt: skip
OPTIONS = {
    group: sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml")) for group in GROUPS
}
PRESETS = sorted(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))


@pytest.fixture(autouse=True)
def hydra_on_conf() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


@cache
def weights_of(backbone: str) -> str:
    """A file of weights: random ones are refused where they would never be trained."""
    file = Path(mkdtemp()) / "weights.safetensors"
    atexit.register(shutil.rmtree, file.parent)
    save_file(timm.create_model(backbone, num_classes=0).state_dict(), file)
    return str(file)


@lru_cache(maxsize=1)  # a run and the one that resumes it have the same
def config_of(*overrides: str) -> dict[str, Any]:
    cfg = compose("train", [*ALWAYS, *overrides])
    if cfg.stages.whole is None:
        cfg.model.weights_file = weights_of(cfg.model.backbone)
    return checked_run(cfg)


@dataclass
class Trial:
    """A run of a few steps, and what its checkpoints say of themselves."""

    config: dict[str, Any]
    state: TrainState
    step: TrainingStep
    sampler: Sampler
    store: ImageStore
    about: dict[str, Any]

    @classmethod
    def of(cls, *overrides: str) -> Trial:
        config = config_of(*overrides)
        encoding = fit_encoding(FRAME.iloc[TRAIN], config["model"]["metadata"]["columns"])
        store = ImageStore(
            images_NHWC=PIXELS,
            image_ids=[f"image {row}" for row in range(IMAGES)],
            device=CPU.device,
            metadata_NM=encoding.numbers(FRAME) if encoding.columns else None,
        )
        state, step = build(
            config,
            store=store,
            labels_N=LABELS,
            train_rows_M=TRAIN,
            num_classes=len(HAM10000_CODES),
            encoding=encoding,
            precision=choose_precision(config["training"]["amp"], CPU.device),
            ranks=ALONE,
        )
        about = {
            "model": {**config["model"], "pretrained": False, "weights_file": None},
            "classes": list(HAM10000_CODES),
            "preprocess": PreprocessSpec(image_size=SIZE).as_dict(),
            "metadata": encoding.as_dict(),
            "split_fingerprint": "0",
            "images_fingerprint": "0",
            "software": {"threads": 1, "device": "cpu", "ranks": 1},
        }
        return cls(config, state, step, instantiate(config["sampler"]), store, about)

    def windows(self) -> list[list[np.ndarray]]:
        """The rows of each step of epoch 0, in the sampler's order."""
        training = self.config["training"]
        order = self.sampler.order(LABELS[TRAIN], seed=training["seed"], epoch=0)
        return epoch_windows(
            TRAIN[order], batch_size=training["batch_size"], accumulate=training["accumulate"]
        )

    def go_on(self) -> None:
        """Take one step of epoch 0, as the loop would."""
        training, step = self.config["training"], self.state.step
        with numerics(deterministic=training["deterministic"], fast=training["fast_mode"]):
            self.step.begin_epoch(self.state, TRAIN)
            self.state.train_mode()
            self.step(self.state, self.windows()[step], step * training["accumulate"])
        self.state.step += 1

    def predictions(self, model: torch.nn.Module) -> np.ndarray:
        rows = np.arange(len(TRAIN), IMAGES)
        return predict_probabilities(model, self.store, rows, batch_size=4, precision=CPU)


def keep_the_contract(folder: Path, *overrides: str) -> None:
    whole = Trial.of(*overrides)
    before = {name: value.clone() for name, value in whole.state.model.state_dict().items()}
    whole.go_on()
    changed = [
        name
        for name, value in whole.state.model.state_dict().items()
        if not torch.equal(value, before[name])
    ]
    assert changed, "the step changed nothing"
    assert torch.isfinite(whole.state.step_losses_S).all()

    checkpoints = RunCheckpoints(folder=folder, about=whole.about)
    whole.state.best_record = {"epoch": 1, "val/loss": 1.0}
    checkpoints.save_latest(whole.state)
    checkpoints.save_best(whole.state, whole.state.predictor, "of this test")
    expected = whole.predictions(whole.state.predictor)
    found = whole.predictions(load_model(checkpoints.best, CPU.device).model)
    # Weights come back equal; laid out otherwise in memory, they may be summed in another order.
    weights = read_checkpoint(checkpoints.best)[0]
    for name, value in whole.state.predictor.state_dict().items():
        assert torch.equal(weights[name], value), name
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    torch.manual_seed(1234)  # a restored run may not depend on what torch drew before
    resumed = Trial.of(*overrides)
    assert checkpoints.load_latest(resumed.state)
    whole.go_on()
    resumed.go_on()
    for name, value in whole.state.tensors().items():
        assert torch.equal(resumed.state.tensors()[name], value), name


@pytest.mark.parametrize(
    ("group", "option"), [(group, option) for group in GROUPS for option in OPTIONS[group]]
)
def test_every_option_keeps_the_contract(tmp_path: Path, group: str, option: str) -> None:
    keep_the_contract(tmp_path, *SMALL, f"{group}={option}")


def test_an_optimizer_by_its_target_keeps_the_contract(tmp_path: Path) -> None:
    radam = ["optimizer._target_=torch.optim.RAdam", "~optimizer.fused"]
    keep_the_contract(tmp_path, *SMALL, *radam)
    assert type(Trial.of(*SMALL, *radam).state.optimizer) is torch.optim.RAdam


# Hundreds of megabytes in a checkpoint with its moments, written and read.
LARGE = {"convnext_tiny", "efficientnet_v2_l", "efficientnet_v2_m", "efficientnet_v2_s"}
LARGE |= {"resnet50", "swin_tiny"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [pytest.param(p, marks=pytest.mark.thorough) if p in LARGE else p for p in PRESETS],
)
def test_every_model_keeps_the_contract(tmp_path: Path, preset: str) -> None:
    name = ["model.backbone=resnet18"] if preset == "timm" else []
    keep_the_contract(tmp_path, f"model={preset}", "model.pretrained=false", *name)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_keeps_the_contract(tmp_path: Path, experiment: str) -> None:
    """With a tiny network in place of its own, and long enough for its stages."""
    tiny = ["model.backbone=test_vit", "model.pretrained=false", "training.epochs=70"]
    keep_the_contract(tmp_path, f"experiment={experiment}", *ALWAYS[1:3], *tiny)


def company(seed: int) -> list[str]:
    """Draw one option of every group, a tiny network and settings of training."""
    draw = random.Random(seed)
    settings = {
        "model.backbone": TINY,
        "model.colour_constancy": ["none", "shades_of_grey"],
        "training.accumulate": [1, 2],
        "training.grad_clip": ["null", 1.0],
        "training.grad_checkpointing": ["false", "true"],
        "training.channels_last": ["auto", "true", "false"],
        "training.amp": ["off", "bf16"],
        "training.deterministic": ["true", "false"],
    }
    drawn = [f"{group}={draw.choice(OPTIONS[group])}" for group in GROUPS]
    drawn += [f"{name}={draw.choice(values)}" for name, values in settings.items()]
    return ["model=timm", "model.pretrained=false", *drawn]


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed",
    [seed if seed < 25 else pytest.param(seed, marks=pytest.mark.thorough) for seed in range(100)],
)
def test_random_company_keeps_the_contract(tmp_path: Path, seed: int) -> None:
    keep_the_contract(tmp_path, *company(seed))


def test_random_company_is_varied() -> None:
    drawn = {word for seed in range(100) for word in company(seed)}
    missing = {f"{group}={option}" for group in GROUPS for option in OPTIONS[group]} - drawn
    assert missing == set()


def test_the_trials_heed_sampler_number_format_and_determinism() -> None:
    """So that a broken option would fail above."""

    def seen(*overrides: str) -> tuple[list[int], torch.dtype, bool, str]:
        trial, logits = Trial.of(*SMALL, *overrides), []

        def look(module: torch.nn.Module, args: object, output: torch.Tensor) -> None:
            precise = torch.get_float32_matmul_precision()
            logits.append((output.dtype, torch.are_deterministic_algorithms_enabled(), precise))

        trial.state.model.register_forward_hook(look)
        trial.go_on()
        rows = np.concatenate([rows for window in trial.windows() for rows in window])
        return sorted(rows), *logits[0]

    assert seen() == (list(TRAIN), torch.float32, True, "highest")
    rows, *_ = seen("sampler=weighted")
    assert set(rows) < set(TRAIN)  # some are drawn twice
    assert len(rows) == len(TRAIN)
    _, *computed = seen("training.amp=bf16", "training.deterministic=false")
    assert computed == [torch.bfloat16, False, "highest"]
    _, *computed = seen("training.fast_mode=true", "training.deterministic=false")
    assert computed == [torch.float32, False, "high"]


def test_fast_mode_keeps_the_contract(tmp_path: Path) -> None:
    fast = ["training.fast_mode=true", "training.deterministic=false"]
    keep_the_contract(tmp_path, *SMALL, *fast)


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_keeps_the_contract(tmp_path: Path) -> None:
    """Its checkpoint is that of the same model uncompiled, names and weights. (But for dropout,
    which a compiled model draws in its own way.)"""
    certain = ["model/head=linear", "model.head.dropout=0.0", "optimizer=sgd"]
    compiled, plain = tmp_path / "compiled", tmp_path / "plain"
    for folder, word in ((compiled, "true"), (plain, "false")):
        folder.mkdir()
        keep_the_contract(folder, *SMALL, *certain, f"training.compile={word}")
    one, other = (read_checkpoint(folder / BEST)[0] for folder in (compiled, plain))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-4, atol=1e-4, msg=name)


def test_the_contract_would_notice_a_lost_tensor(tmp_path: Path) -> None:
    trial = Trial.of("model=timm", "model.backbone=test_vit", "model.pretrained=false", "ema=on")
    trial.go_on()
    tensors, numbers = trial.state.tensors(), trial.state.numbers()
    resumed = Trial.of("model=timm", "model.backbone=test_vit", "model.pretrained=false", "ema=on")
    name = next(name for name in tensors if name.startswith("optimizer/") and "exp_avg" in name)
    resumed.state.restore(tensors | {name: torch.zeros_like(tensors[name])}, numbers)
    trial.go_on()
    resumed.go_on()
    lost = [key for key, value in trial.state.tensors().items()
            if not torch.equal(resumed.state.tensors()[key], value)]  # fmt: skip
    assert name in lost


def test_a_group_that_nobody_tests_is_noticed() -> None:
    """A new group of conf/ has to be named here."""
    elsewhere = {"data", "data/split", "model", "tracking", "experiment"}
    elsewhere |= {"ensemble", "tta"}  # of evaluate
    elsewhere |= {"sweep", "hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler"}  # of -m
    groups = {path.parent.relative_to(CONF_DIR).as_posix() for path in CONF_DIR.rglob("*/*.yaml")}
    assert groups == {*GROUPS, *elsewhere}
    with pytest.raises(ConfigError):
        checked_run(compose("train", ["training.fast_mode=true"]))
