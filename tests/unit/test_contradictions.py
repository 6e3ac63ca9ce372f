from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.contradictions import contradictions
from dermalyze.errors import ConfigError, DataError
from dermalyze.experiment import run_training
from dermalyze.schema import checked_run


@pytest.fixture(autouse=True)
def hydra_on_conf() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def run(*overrides: str) -> dict[str, Any]:
    return checked_run(compose("train", list(overrides)))


# Values that only the part itself, once it is made, knows to be out of its range.
REFUSED_BY_PARTS = [
    (["augmentation.geometry.rotation=-5.0"], "augmentation.geometry.rotation=-5.0"),
    (["augmentation.colour.hue=0.5"], "augmentation.colour.hue=0.5"),
    (["mix=both", "mix.unmixed_last_epochs=41"], "mix.unmixed_last_epochs=41"),
    (["mix=mixup", "mix.mixup_alpha=0.0"], "mix.mixup_alpha=0.0"),
    (
        ["sampler=balanced_power", "sampler.power=1.5", "loss.class_weights=none"],
        "sampler.power=1.5",
    ),
    (["loss=focal", "loss.gamma=-1.0"], "loss.gamma=-1.0"),
    (["loss=label_smoothing", "loss.epsilon=1.0"], "loss.epsilon=1.0"),
    (["loss=ldam", "loss.reweight_beta=1.0"], "loss.reweight_beta=1.0"),
    (["ema=on", "ema.decay=2.0"], "ema.decay=2.0"),
    (["scheduler.eta_min=1e-3"], "scheduler.eta_min=0.001: must lie between 0 and the peak"),
    (["stages=two", "stages.whole.lr=1e-6"], "the peak learning rate 1e-06"),
    (["stages=two", "stages.head.scheduler.warmup_fraction=1.0"], "warmup_fraction=1.0"),
    (["scheduler=plateau", "scheduler.factor=1.0"], "scheduler.factor=1.0"),
    (["model/head=acrnn", "model.head.kernel_size=2"], "model.head.kernel_size=2"),
    (["model/head=simple", "model.head.dropout=1.0"], "model.head.dropout=1.0"),
    (["model/metadata=film", "model.metadata.fusion.hidden=0"], "model.metadata.fusion.hidden=0"),
    (["model/metadata=concat", "model.metadata.dropout=-0.1"], "model.metadata.dropout=-0.1"),
    (
        ["model=timm", "model.backbone=resnt18"],
        "has no such model. Did you mean 'resnet18'?",
    ),
    (["model=timm", "model.backbone=resnet18.foo"], "has no weights 'foo' of resnet18."),
    (
        ["model=vit_small", "training.first_image_size=32", "training.growing_epochs=3"],
        "is built for images of one size, data.image_size",
    ),
    (
        ["optimizer.weight_decay=-0.1"],
        "optimizer: torch.optim.AdamW refuses its values (Invalid weight_decay value: -0.1)",
    ),
    (
        ["+optimizer.foreach=true"],
        "refuses its values (`fused` and `foreach` cannot be `True` together.)",
    ),
    (
        ["optimizer.fused=false", "+optimizer.differentiable=true"],
        "torch.optim.AdamW refuses its values (a leaf Variable that requires grad",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["stages=frozen", "model.pretrained=false"], "as random as it begins"),
        (["training.fast_mode=true"], "training.deterministic=false"),
        (["training.compile=true", "training.grad_checkpointing=true"], "Choose one"),
        (["training.average_last_epochs=3"], "training.patience=null"),
        (["training.average_last_epochs=41", "training.patience=null"], "training.epochs=40"),
        (["training.average_last_epochs=3", "training.patience=null", "ema=on"], "ema=off"),
        (
            [
                "training.average_last_epochs=3",
                "training.patience=null",
                "training.monitor=train/loss",
            ],
            "training.monitor=train/loss: no training metric is of the average",
        ),
        (["training.first_image_size=128"], "need both"),
        (["training.growing_epochs=5"], "need both"),
        (["training.first_image_size=256", "training.growing_epochs=5"], "data.image_size=224"),
        (["training.first_image_size=128", "training.growing_epochs=40"], "at least the last"),
        (
            ["training.first_image_size=128", "training.growing_epochs=5", "augmentation=none"],
            "without geometry",
        ),
        (["data.cache_size=223"], "smaller than data.image_size=224"),
        (["data.cache_size=449"], "Use 448 or less"),
        (
            ["data.cache_size=225", "training.first_image_size=96", "training.growing_epochs=5"],
            "training images of 96 pixels would leave out pixels of it",
        ),
        (["data.cache_size=225", "augmentation=none"], "without geometry: only its warp changes"),
        (["data.image_size=32", "augmentation.blur.kernel_size=65"], "Use 63 or less"),
        (
            ["tracking.register_as=a", "tracking.log_model=false"],
            "a mere file cannot be registered",
        ),
        (["tracking.register_as=a/b"], "tracking.register_as=a/b: MLflow takes no name"),
        (["~optimizer.weight_decay"], "optimizer.weight_decay: missing"),
        (["stages=two", "training.epochs=5"], "stages.head.epochs=5"),
        (["stages=two", "stages.whole.epochs=9"], "share out the run's epochs"),
        (["stages=two", "stages.head.lr=-1.0"], "stages.head.lr=-1.0"),
    ],
)
def test_options_that_cannot_hold_at_once_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(*overrides)
    assert str(refused.value).count("\n  - ") == 1
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["data.cache_size=448"],
        ["data.cache_size=224", "augmentation=none"],
        ["training.fast_mode=true", "training.deterministic=false"],
        ["training.average_last_epochs=40", "training.patience=null"],
        ["training.first_image_size=224", "training.growing_epochs=39"],
        ["stages=two", "ema=on", "mix=both", "scheduler=onecycle", "training.compile=true"],
        ["stages=frozen"],
        ["optimizer.fused=false", "+optimizer.capturable=true"],  # the CPU here cannot, a GPU can
        ["stages=frozen", "model.pretrained=false", "model.weights_file=a.safetensors"],
        ["stages=two", "model.pretrained=false"],
        ["scheduler.restart_epochs=0.01"],  # how many steps an epoch has is not known yet
        ["mix=both", "mix.unmixed_last_epochs=40"],
        ["loss=class_balanced", "data=folder", "data.root=a", "data.source.classes=[a,b]"],
    ],
)
def test_options_that_go_together_pass(overrides: list[str]) -> None:
    assert contradictions(run(*overrides)) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["training.min_delta=inf"],
            "training.min_delta=inf (float): Input should be a finite number",
        ),
        (
            ["training.grad_clip=inf"],
            "training.grad_clip=inf (float): Input should be a finite number",
        ),
        (
            ["scheduler=plateau", "scheduler.threshold=nan"],
            "scheduler.threshold=nan (float): Input should be a finite number",
        ),
        (["training.threads=100000"], "Input should be less than or equal to 1024"),
        (
            ["training.first_image_size=40", "training.growing_epochs=5"],
            "training.first_image_size=40 (int): Input should be a multiple of 32",
        ),
        (
            ["mix.probability=0.7"],
            "mix.probability=0.7 without mix.mixup_alpha and mix.cutmix_alpha: nothing is mixed",
        ),
        (
            ["mix=mixup", "mix.cutmix_share=0.7"],
            "mix.cutmix_share=0.7 without mix.cutmix_alpha: every mixed batch gets mixup",
        ),
        (
            ["mix=both", "mix.mixup_alpha=null"],
            "mix.cutmix_share=0.5 without mix.mixup_alpha: every mixed batch gets cutmix",
        ),
        (["mix.unmixed_last_epochs=3"], "mix.unmixed_last_epochs=3 without mix.mixup_alpha"),
        (
            ["model/head=linear", "model.head.learnable_scale=true"],
            "model.head.learnable_scale=true with model.head.normalized=false: only cosines have",
        ),
        (
            ["stages=two", "stages.head.layer_decay=0.75"],
            "stages.head.layer_decay=0.75: the layers below the head are frozen in this stage",
        ),
    ],
)
def test_values_that_would_have_no_effect_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run(*overrides)
    (problem,) = refused.value.problems
    assert said in problem


@pytest.mark.parametrize(
    "path",
    ["optimizer", "scheduler", "stages.head.scheduler", "ema", "model.head", "model.metadata"],
)
def test_what_a_run_completes_stays_partial(path: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run("stages=two", f"{path}._partial_=false")
    assert refused.value.problems == (
        f"{path}._partial_=false: the run completes this part itself, so it must stay true",
    )


def test_all_contradictions_come_in_one_error() -> None:
    with pytest.raises(ConfigError) as refused:
        run("training.fast_mode=true", "training.growing_epochs=3", "stages.whole.epochs=7")
    assert str(refused.value).count("\n  - ") == 3


@pytest.mark.parametrize(("overrides", "said"), REFUSED_BY_PARTS)
def test_no_data_are_read_for_what_a_part_refuses(
    overrides: list[str], said: str, tmp_path: Path
) -> None:
    """The folder of data is not even there."""
    nowhere, folder = f"data.root={tmp_path / 'nowhere'}", tmp_path / "run"
    folder.mkdir()
    with pytest.raises(ConfigError) as refused:
        run_training(compose("train", [nowhere, *overrides]), folder, resume=False)
    (problem,) = refused.value.problems
    assert said in problem
    assert list(tmp_path.rglob("*")) == [folder]


def test_no_data_are_read_for_a_number_format_that_the_device_has_not(tmp_path: Path) -> None:
    words = [f"data.root={tmp_path / 'nowhere'}", "training.device=cpu", "training.amp=fp16"]
    with pytest.raises(ConfigError, match=r"training\.amp=fp16 needs a CUDA device"):
        run_training(compose("train", words), tmp_path, resume=False)


def test_a_folder_of_data_that_is_not_there_is_told_where_all_options_are_good(
    tmp_path: Path,
) -> None:
    words = [f"data.root={tmp_path / 'nowhere'}", "training.device=cpu", "tracking=none"]
    with pytest.raises(InstantiationException, match="nowhere: there is no such folder") as refused:
        run_training(compose("train", words), tmp_path, resume=False)
    assert isinstance(refused.value.__cause__, DataError)


def test_what_parts_refuse_comes_with_the_contradictions_in_one_error() -> None:
    with pytest.raises(ConfigError) as refused:
        run("training.fast_mode=true", "mix=both", "mix.probability=2.0", "mix.cutmix_share=-1.0")
    assert len(refused.value.problems) == 3
    assert str(refused.value).count("\n  - ") == 3
