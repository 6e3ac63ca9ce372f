from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from dermalyze.config import CONF_DIR, register_resolvers
from dermalyze.contradictions import contradictions
from dermalyze.errors import ConfigError
from dermalyze.schema import checked_run


@pytest.fixture(autouse=True)
def hydra_on_conf() -> Iterator[None]:
    register_resolvers()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        yield


def run(*overrides: str) -> dict[str, Any]:
    return checked_run(compose("train", list(overrides)))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["training.fast_mode=true"], "training.deterministic=false"),
        (["training.compile=true", "training.grad_checkpointing=true"], "Choose one"),
        (["training.average_last_epochs=3"], "training.patience=null"),
        (["training.average_last_epochs=41", "training.patience=null"], "training.epochs=40"),
        (["training.average_last_epochs=3", "training.patience=null", "ema=on"], "ema=off"),
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
    ],
)
def test_options_that_go_together_pass(overrides: list[str]) -> None:
    assert contradictions(run(*overrides)) == []


def test_all_contradictions_come_in_one_error() -> None:
    with pytest.raises(ConfigError) as refused:
        run("training.fast_mode=true", "training.growing_epochs=3", "stages.whole.epochs=7")
    assert str(refused.value).count("\n  - ") == 3
